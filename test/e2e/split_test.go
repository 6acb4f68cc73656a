package e2e

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net"
	"net/http"
	"net/http/httptest"
	"sort"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sluice-dev/sluice/pkg/cluster"
	"github.com/sluice-dev/sluice/pkg/cluster/memory"
	"github.com/sluice-dev/sluice/pkg/router"
	"github.com/sluice-dev/sluice/rollout"
)

// sixVersions is a router before six versions that all answer at once: what is
// measured is the split, not a model.
func sixVersions(t *testing.T) (url string, store *memory.Store, key rollout.Key) {
	t.Helper()
	gate := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(w, r.Body)
	}))
	t.Cleanup(gate.Close)
	store = memory.NewStore()
	fleet := memory.NewFleet(memory.Behaviour{Address: func(cluster.Replica) string { return gate.Listener.Addr().String() }})
	key = rollout.Key{Namespace: "default", Name: "six"}
	e := &rollout.Endpoint{APIVersion: rollout.APIVersion, Kind: rollout.Kind, Metadata: rollout.Metadata{Name: key.Name, Namespace: key.Namespace}}
	e.Spec.Auth = &rollout.Auth{Mode: rollout.AuthNone}
	// 12.345 + 0.5 + 20 + 33.333 + 1.2 = 67.378; the default gets the other 32.622.
	for i, p := range []string{"0", "12.345", "0.5", "20", "33.333", "1.2"} {
		percent, err := rollout.ParsePercent(p)
		if err != nil {
			t.Fatal(err)
		}
		v := rollout.Version{Name: fmt.Sprintf("v%d", i), TrafficPercentile: percent, Image: fmt.Sprintf("local/six@sha256:%064x", i)}
		v.Concurrency = &rollout.Concurrency{MaxConcurrentRequests: 64}
		if i == 0 {
			v.Type = rollout.Control
		}
		e.Spec.Versions = append(e.Spec.Versions, v)
		if err := fleet.Apply(t.Context(), cluster.FleetSpec{Key: cluster.FleetKey{Endpoint: key, Version: v.Name}, Revision: v.Revision(), Image: v.Image, Settings: v.Settings}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := store.Create(t.Context(), e); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	admin, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- router.Run(ctx, router.Options{
			Listener: l, AdminListener: admin, Namespace: "default", Reader: store, Fleets: fleet, KeyHashes: memory.NewKeys(), Logger: slog.New(slog.DiscardHandler),
		})
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("router: %v", err)
		}
	})
	url = "http://" + l.Addr().String() + "/api/v1/service/six/score"
	eventually(t, 10*time.Second, "the router answers", func() error {
		resp, err := http.Post(url, "application/json", strings.NewReader("{}"))
		if err != nil {
			return err
		}
		resp.Body.Close()
		if resp.StatusCode != 200 {
			return fmt.Errorf("%s", resp.Status)
		}
		return nil
	})
	return url, store, key
}

// TestSplit: 100,000 requests over six versions agree with the shares by a chi-square test.
func TestSplit(t *testing.T) {
	url, store, key := sixVersions(t)
	const n, clients = 100_000, 16
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: clients}}
	var mu sync.Mutex
	count := map[string]int{}
	var wg sync.WaitGroup
	for range clients {
		wg.Go(func() {
			mine := map[string]int{}
			for range n / clients {
				resp, err := client.Post(url, "application/json", strings.NewReader("{}"))
				if err != nil {
					t.Error(err)
					return
				}
				_, _ = io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
				if resp.StatusCode != 200 {
					t.Errorf("got %s", resp.Status)
					return
				}
				mine[resp.Header.Get("Sluice-Version")]++
			}
			mu.Lock()
			defer mu.Unlock()
			for v, c := range mine {
				count[v] += c
			}
		})
	}
	wg.Wait()
	e, err := store.Get(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	chi := 0.0
	for _, sh := range e.Spec.Shares() {
		want := sh.Percent.Fraction() * n
		chi += math.Pow(float64(count[sh.Name])-want, 2) / want
		t.Logf("%s: %d requests, %.0f by its share of %s %%", sh.Name, count[sh.Name], want, sh.Percent)
	}
	// The 99.99th percentile of chi-square with five degrees of freedom.
	t.Logf("chi-square %.2f with 5 degrees of freedom", chi)
	if chi > 25.74 {
		t.Errorf("chi-square %.2f: the split does not follow the shares", chi)
	}
}

// TestEditToEffectQuantile: the time from a written edit until requests feel it.
func TestEditToEffectQuantile(t *testing.T) {
	url, store, key := sixVersions(t)
	client := &http.Client{}
	var took []time.Duration
	for i := range 200 {
		want := fmt.Sprintf("v%d", 1+i%5)
		e, err := store.Get(t.Context(), key)
		if err != nil {
			t.Fatal(err)
		}
		for j := range e.Spec.Versions {
			v := &e.Spec.Versions[j]
			v.TrafficPercentile = 0
			if v.Name == want {
				v.TrafficPercentile = rollout.Full
			}
		}
		began := time.Now()
		if _, err := store.Update(t.Context(), e); err != nil {
			t.Fatal(err)
		}
		for {
			sent := time.Now()
			resp, err := client.Post(url, "application/json", strings.NewReader("{}"))
			if err != nil {
				t.Fatal(err)
			}
			_, _ = io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
			if resp.Header.Get("Sluice-Version") == want {
				took = append(took, sent.Sub(began))
				break
			}
			if time.Since(began) > 5*time.Second {
				t.Fatal("an edit had no effect within 5 s")
			}
		}
	}
	sort.Slice(took, func(i, j int) bool { return took[i] < took[j] })
	p99 := took[len(took)*99/100]
	t.Logf("edit to effect: median %s, p99 %s of %d edits", took[len(took)/2], p99, len(took))
	if p99 > time.Second {
		t.Errorf("p99 of edit to effect is %s, want under a second", p99)
	}
}
