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

	"github.com/sluice-dev/sluice/pkg/autoscale"
	"github.com/sluice-dev/sluice/pkg/cluster/clustertest"
	"github.com/sluice-dev/sluice/pkg/cluster/kube"
	"github.com/sluice-dev/sluice/pkg/control"
	"github.com/sluice-dev/sluice/pkg/telemetry"
	"github.com/sluice-dev/sluice/rollout"
)

// quietRouters report nothing.
type quietRouters struct{}

func (quietRouters) Reports(context.Context) ([]telemetry.Report, error) { return nil, nil }

// asked counts what a process asks of the API server.
type asked struct {
	writes, reads, watches atomic.Int64
}

func (a *asked) String() string {
	return fmt.Sprintf("%d writes, %d reads, %d watches", a.writes.Load(), a.reads.Load(), a.watches.Load())
}

func (a *asked) count(config *rest.Config) *rest.Config {
	config = rest.CopyConfig(config)
	config.Wrap(func(rt http.RoundTripper) http.RoundTripper { return counted{rt, a} })
	return config
}

type counted struct {
	http.RoundTripper
	asked *asked
}

func (c counted) RoundTrip(r *http.Request) (*http.Response, error) {
	switch {
	case r.URL.Query().Get("watch") != "":
		c.asked.watches.Add(1)
	case r.Method == http.MethodGet:
		c.asked.reads.Add(1)
	default:
		c.asked.writes.Add(1)
	}
	return c.RoundTripper.RoundTrip(r)
}

// role of an installation: its view of the cluster, and what it asks of the API server.
type role struct {
	asked
	*kube.Cluster
	store  *kube.Store
	fleets *kube.Fleets
}

func (l *live) role(t *testing.T, secrets kube.SecretScope) *role {
	t.Helper()
	r := &role{}
	var err error
	if r.Cluster, err = kube.New(r.count(l.config), kube.Options{Namespaces: []string{"models"}, SystemNamespace: system, Secrets: secrets, Logger: slog.New(slog.DiscardHandler)}); err != nil {
		t.Fatal(err)
	}
	if r.store, err = r.Store(t.Context()); err != nil {
		t.Fatal(err)
	}
	if r.fleets, err = r.Fleets(t.Context()); err != nil {
		t.Fatal(err)
	}
	return r
}

// heap in use, in MiB.
func heap() float64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&m)
	return float64(m.HeapAlloc) / (1 << 20)
}

// TestManyEndpoints: 200 endpoints of three versions, their fleets scaled to nothing, under the control role and a
// router with its autoscaler. A change of one is carried out within a second, and at rest hardly anything is asked
// of the API server.
func TestManyEndpoints(t *testing.T) {
	l := newLive(t)
	l.clear(t)
	t.Cleanup(func() { l.clear(t) })
	const endpoints = 200
	zero := 0
	endpoint := func(i int) *rollout.Endpoint {
		e := clustertest.Endpoint("models", fmt.Sprintf("many-%03d", i))
		e.Spec.Versions[0].Replicas = &zero
		// A new fleet has one replica until somebody scales: here it finds no node meanwhile.
		e.Spec.Versions[0].Template = map[string]any{"spec": map[string]any{"nodeSelector": map[string]any{"example.com/none": "none"}}}
		for j, role := range []rollout.Role{rollout.Treatment, rollout.Untyped} {
			v := e.Spec.Versions[0]
			v.Name, v.Type, v.IsDefault, v.Image = fmt.Sprintf("v%d", j+2), role, false, clustertest.Image('b'+byte(j))
			e.Spec.Versions = append(e.Spec.Versions, v)
		}
		return e
	}
	ctx, stop := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	t.Cleanup(func() { stop(); wg.Wait() })

	nothing := heap()
	controller := l.role(t, kube.SecretsOfKeys)
	keys, err := controller.WatchedKeys(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	store, fleets := controller.store, controller.fleets
	r := control.NewReconciler(control.Options{Store: store, Fleets: fleets, Keys: keys, Routers: quietRouters{}, Logger: slog.New(slog.DiscardHandler)})
	wg.Go(func() {
		if err := controller.RunController(ctx, kube.ControllerOptions{Reconciler: r, PollEvery: control.PollEvidence, Lease: "many", Workers: 4, MetricsAddress: "0", HealthAddress: "0"}); err != nil {
			t.Errorf("controller: %v", err)
		}
	})
	scaling, enough := context.WithCancel(ctx)
	defer enough()
	scaler := l.role(t, kube.SecretsNone)
	if err := scaler.Start(scaling); err != nil {
		t.Fatal(err)
	}
	scale := func(ctx context.Context, r *role) error {
		return autoscale.Run(ctx, autoscale.Options{Endpoints: r.store, Fleets: r.fleets, Scaler: r.fleets, Routers: quietRouters{}, Logger: slog.New(slog.DiscardHandler)})
	}
	wg.Go(func() { _ = scale(scaling, scaler) })
	began := time.Now()
	for i := range endpoints {
		e := endpoint(i)
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
	t.Logf("%d endpoints of three versions made and scaled to nothing in %s: %s by the control role", endpoints, time.Since(began).Round(time.Second), &controller.asked)

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
	// What it costs at rest.
	enough()
	time.Sleep(5 * time.Second)
	ofControl := heap()
	router := l.role(t, kube.SecretsOfHashes)
	hashes, err := router.Hashes(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := router.Start(ctx); err != nil {
		t.Fatal(err)
	}
	wg.Go(func() {
		_ = router.Lead(ctx, "many-autoscaler", func(ctx context.Context) error { return scale(ctx, router) })
	})
	time.Sleep(10 * time.Second)
	runtime.KeepAlive(hashes)
	ofRouter := heap()
	const rest = 30 * time.Second
	was := map[*role][2]int64{}
	for _, r := range []*role{controller, router} {
		was[r] = [2]int64{r.writes.Load(), r.reads.Load()}
	}
	time.Sleep(rest)
	perHour := func(n int64) int64 { return int64(float64(n) / rest.Seconds() * 3600) }
	t.Logf("slowest of 20 changes: %s", worst.Round(time.Millisecond))
	for _, x := range []struct {
		name string
		*role
		heap float64
	}{{"control role", controller, ofControl - nothing}, {"router", router, ofRouter - ofControl}} {
		w, g := perHour(x.writes.Load()-was[x.role][0]), perHour(x.reads.Load()-was[x.role][1])
		t.Logf("%s: %.0f MiB of heap; at rest %d writes and %d reads an hour, renewals of the lease among them; since its start %s", x.name, x.heap, w, g, &x.asked)
		if w+g > 5000 {
			t.Errorf("%s: %d requests an hour at rest", x.name, w+g)
		}
	}
	if worst > time.Second {
		t.Errorf("a change took %s, want under a second", worst)
	}
}
