package kube_test

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"k8s.io/client-go/rest"

	"github.com/sluice-dev/sluice/pkg/cluster/clustertest"
	"github.com/sluice-dev/sluice/pkg/cluster/kube"
	"github.com/sluice-dev/sluice/pkg/control"
	"github.com/sluice-dev/sluice/pkg/telemetry"
	"github.com/sluice-dev/sluice/rollout"
)

// quietRouters report nothing.
type quietRouters struct{}

func (quietRouters) Reports(context.Context) ([]telemetry.Report, error) { return nil, nil }

// counted counts requests to the API server by method, watches apart.
type counted struct {
	http.RoundTripper
	writes, reads, watches *atomic.Int64
}

func (c counted) RoundTrip(r *http.Request) (*http.Response, error) {
	switch {
	case r.URL.Query().Get("watch") != "":
		c.watches.Add(1)
	case r.Method == http.MethodGet:
		c.reads.Add(1)
	default:
		c.writes.Add(1)
	}
	return c.RoundTripper.RoundTrip(r)
}

// TestManyEndpoints: 200 endpoints of three versions (their fleets scaled to nothing) under the control
// role. A change of one is carried out within a second, and at rest hardly anything is asked of the API server.
func TestManyEndpoints(t *testing.T) {
	l := newLive(t)
	l.clear(t)
	t.Cleanup(func() { l.clear(t) })
	const endpoints = 200
	var writes, reads, watches atomic.Int64
	config := rest.CopyConfig(l.config)
	config.Wrap(func(rt http.RoundTripper) http.RoundTripper { return counted{rt, &writes, &reads, &watches} })
	c, err := kube.New(config, kube.Options{Namespaces: []string{"models"}, SystemNamespace: system, Secrets: kube.SecretsOfKeys, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	store, err := c.Store(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	fleets, err := c.Fleets(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	keys, err := c.WatchedKeys(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	zero := 0
	make := func(i int) *rollout.Endpoint {
		e := clustertest.Endpoint("models", fmt.Sprintf("many-%03d", i))
		e.Spec.Versions[0].Replicas = &zero
		for j, role := range []rollout.Role{rollout.Treatment, rollout.Untyped} {
			v := e.Spec.Versions[0]
			v.Name, v.Type, v.IsDefault, v.Image = fmt.Sprintf("v%d", j+2), role, false, clustertest.Image('b'+byte(j))
			e.Spec.Versions = append(e.Spec.Versions, v)
		}
		return e
	}
	r := control.NewReconciler(control.Options{Store: store, Fleets: fleets, Keys: keys, Routers: quietRouters{}, Logger: slog.New(slog.DiscardHandler)})
	ctx, stop := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	t.Cleanup(func() { stop(); wg.Wait() })
	wg.Go(func() {
		if err := c.RunController(ctx, kube.ControllerOptions{Reconciler: r, PollEvery: control.PollEvidence, Lease: "many", Workers: 4, MetricsAddress: "0", HealthAddress: "0"}); err != nil {
			t.Errorf("controller: %v", err)
		}
	})
	// A new fleet has one replica until somebody scales: the test is the autoscaler, and the fewer pods start meanwhile the better.
	wg.Go(func() {
		changes, err := fleets.WatchFleets(ctx)
		if err != nil {
			return
		}
		for range changes {
			all, err := fleets.Fleets(ctx)
			if err != nil {
				continue
			}
			for _, f := range all {
				if f.Desired != 0 {
					_ = fleets.Scale(ctx, f.Key, 0)
				}
			}
		}
	})
	began := time.Now()
	for i := range endpoints {
		e := make(i)
		l.until(t, time.Minute, "create "+e.Metadata.Name, func() error { _, err := store.Create(t.Context(), e); return err })
	}
	l.until(t, 5*time.Minute, "every fleet", func() error {
		all, err := fleets.Fleets(t.Context())
		if err != nil {
			return err
		}
		quiet := 0
		for _, f := range all {
			if f.Desired == 0 && len(f.Replicas) == 0 {
				quiet++
			}
		}
		if quiet != 3*endpoints {
			return fmt.Errorf("%d fleets, %d of them at rest", len(all), quiet)
		}
		return nil
	})
	t.Logf("%d endpoints of three versions made and scaled to nothing in %s: %d writes, %d reads, %d watches", endpoints, time.Since(began).Round(time.Second), writes.Load(), reads.Load(), watches.Load())

	// A change of one: until its fleets and status follow.
	var worst time.Duration
	for i := range 20 {
		key := rollout.Key{Namespace: "models", Name: fmt.Sprintf("many-%03d", i*7)}
		changed := time.Now()
		var generation int64
		l.until(t, 10*time.Second, "write", func() error {
			e, err := store.Get(t.Context(), key)
			if err != nil {
				return err
			}
			e.Spec.Versions[0].EnvironmentVariables = map[string]rollout.EnvValue{"N": {Value: fmt.Sprint(i)}}
			e, err = store.Update(t.Context(), e)
			if err == nil {
				generation = e.Metadata.Generation
			}
			return err
		})
		l.until(t, 10*time.Second, "the change is carried out", func() error {
			e, err := store.Get(t.Context(), key)
			if err != nil {
				return err
			}
			all, err := fleets.Fleets(t.Context())
			if err != nil {
				return err
			}
			for _, f := range all {
				if f.Key.Endpoint == key && f.Key.Version == "v1" && f.Revision == e.Spec.Versions[0].Revision() && e.Status.ObservedGeneration >= generation {
					return nil
				}
			}
			return fmt.Errorf("observed generation %d of %d", e.Status.ObservedGeneration, generation)
		})
		worst = max(worst, time.Since(changed))
	}
	time.Sleep(5 * time.Second)
	w, g := writes.Load(), reads.Load()
	const rest = 20 * time.Second
	time.Sleep(rest)
	perHour := func(n int64) int64 { return int64(float64(n) / rest.Seconds() * 3600) }
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	t.Logf("slowest of 20 changes: %s; heap %d MiB; at rest %d writes and %d reads an hour (a lease's renewals among them)", worst.Round(time.Millisecond), m.HeapAlloc>>20, perHour(writes.Load()-w), perHour(reads.Load()-g))
	if worst > time.Second {
		t.Errorf("a change took %s, want under a second", worst)
	}
	if n := perHour(writes.Load() - w + reads.Load() - g); n > 10_000 {
		t.Errorf("%d requests an hour at rest", n)
	}
}
