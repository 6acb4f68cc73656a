package deploy

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/sluice-dev/sluice/pkg/cluster"
	"github.com/sluice-dev/sluice/pkg/cluster/memory"
	"github.com/sluice-dev/sluice/rollout"
)

type fixed struct{ s Shipment }

func (f fixed) Ship(context.Context, string) (Shipment, error) { return f.s, nil }

type bench struct {
	t     *testing.T
	store *memory.Store
	keys  *memory.Keys
	n     int
	uri   string
}

func newBench(t *testing.T, score http.HandlerFunc) *bench {
	b := &bench{t: t, store: memory.NewStore(), keys: memory.NewKeys()}
	if score != nil {
		s := httptest.NewServer(score)
		t.Cleanup(s.Close)
		b.uri = s.URL
	}
	return b
}

var at = rollout.Key{Namespace: "models", Name: "fraud"}

func (b *bench) options(name string, pr int) Options {
	b.n++
	return Options{
		Namespace: at.Namespace, Actor: "tester", Timeout: 2 * time.Second, Store: b.store, Keys: b.keys,
		Shipper: fixed{Shipment{Endpoint: at.Name, Image: fmt.Sprintf("local/fraud@sha256:%064x", b.n), Name: name, Source: rollout.Source{PullRequest: pr, Commit: fmt.Sprintf("%040x", b.n)}}},
	}
}

// serve plays the control role: every version is ready at once, unless it is called so.
func (b *bench) serve() (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			if e, err := b.store.Get(ctx, at); err == nil {
				e.Status.ScoringURI, e.Status.Versions = b.uri, nil
				for _, v := range e.Spec.Versions {
					s := rollout.VersionStatus{Name: v.Name, ReadyReplicas: 1}
					if strings.HasPrefix(v.Name, "slow") {
						s = rollout.VersionStatus{Name: v.Name, State: rollout.StateStarting, Reason: rollout.ReasonStarting}
					}
					e.Status.Versions = append(e.Status.Versions, s)
				}
				_, _ = b.keys.EnsureKeys(ctx, at)
				_, _ = b.store.UpdateStatus(ctx, e)
			}
			time.Sleep(5 * time.Millisecond)
		}
	}()
	return func() { cancel(); <-done }
}

func (b *bench) version(name string) rollout.Version {
	b.t.Helper()
	e, err := b.store.Get(b.t.Context(), at)
	if err != nil || e.Spec.Version(name) == nil {
		b.t.Fatalf("version %s: %v", name, err)
	}
	return *e.Spec.Version(name)
}

func TestFirstThenTreatment(t *testing.T) {
	b := newBench(t, func(w http.ResponseWriter, r *http.Request) {
		if !strings.HasPrefix(r.Header.Get("Authorization"), "Bearer ") || r.Header.Get("Sluice-Version") == "" {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		_, _ = io.WriteString(w, `{"class": "ok"}`)
	})
	defer b.serve()()
	o := b.options("one", 0)
	o.Repositories = []int64{7}
	res, err := Run(t.Context(), o)
	if err != nil || !res.First || !res.Changed || b.version("one").Type != rollout.Control {
		t.Fatalf("first deploy: %+v, %v", res, err)
	}
	o = b.options("two", 0)
	o.Repositories = []int64{8}
	s := o.Shipper.(fixed)
	s.s.Test = &Test{Body: []byte("{}"), Status: 200, Contains: "class"}
	o.Shipper = s
	p := 5 * rollout.OnePercent
	o.Percent = &p
	if res, err = Run(t.Context(), o); err != nil || res.First {
		t.Fatalf("second deploy: %+v, %v", res, err)
	}
	if v := b.version("two"); v.Type != rollout.Treatment || v.TrafficPercentile != p {
		t.Errorf("the second is %+v, want a treatment at 5", v)
	}
	e, _ := b.store.Get(t.Context(), at)
	if fmt.Sprint(e.Spec.Repositories) != "[7]" {
		t.Errorf("bound to %v: only a new endpoint is bound by its deploy", e.Spec.Repositories)
	}
	before := e.Metadata.Generation
	if res, err = Run(t.Context(), o); err != nil || res.Changed || !strings.Contains(res.Message, "nothing changed") {
		t.Errorf("the same again: %+v, %v", res, err)
	}
	if e, _ = b.store.Get(t.Context(), at); e.Metadata.Generation != before {
		t.Error("the same again wrote the spec")
	}
}

func TestSmokeTestFails(t *testing.T) {
	b := newBench(t, func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusBadGateway) })
	defer b.serve()()
	if _, err := Run(t.Context(), b.options("one", 0)); err != nil {
		t.Fatal(err)
	}
	o := b.options("two", 0)
	s := o.Shipper.(fixed)
	s.s.Test = &Test{Status: 200}
	o.Shipper = s
	if _, err := Run(t.Context(), o); rollout.ReasonOf(err) != rollout.ReasonSmokeFailed {
		t.Fatalf("got %v, want smoke_test_failed", err)
	}
	if v := b.version("two"); v.Type != rollout.Untyped || v.RetiredAt.IsZero() {
		t.Errorf("it is %+v, want untyped and retired", v)
	}
}

func TestNotReadyInTime(t *testing.T) {
	b := newBench(t, nil)
	defer b.serve()()
	if _, err := Run(t.Context(), b.options("one", 0)); err != nil {
		t.Fatal(err)
	}
	o := b.options("slow", 0)
	o.Timeout = 300 * time.Millisecond
	if _, err := Run(t.Context(), o); rollout.ReasonOf(err) != rollout.ReasonReadyTimeout {
		t.Errorf("got %v, want not_ready_in_time", err)
	}
}

// TestOvertaken: a push that becomes ready after a later one of the same pull request stays out.
func TestOvertaken(t *testing.T) {
	b := newBench(t, nil)
	stop := b.serve()
	if _, err := Run(t.Context(), b.options("one", 0)); err != nil {
		t.Fatal(err)
	}
	stop()
	first := make(chan error, 1)
	o := b.options("pr-7-aaaaaaa", 7)
	go func() { _, err := Run(t.Context(), o); first <- err }()
	for deadline := time.Now().Add(time.Second); ; time.Sleep(time.Millisecond) {
		if e, err := b.store.Get(t.Context(), at); err == nil && e.Spec.Version("pr-7-aaaaaaa") != nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the first push never joined")
		}
	}
	later := b.options("pr-7-bbbbbbb", 7)
	later.Timeout = 0
	if _, err := Run(t.Context(), later); err != nil {
		t.Fatal(err)
	}
	defer b.serve()()
	if err := <-first; rollout.ReasonOf(err) != rollout.ReasonSuperseded {
		t.Errorf("got %v, want superseded", err)
	}
	if v := b.version("pr-7-aaaaaaa"); v.Type != rollout.Untyped || v.RetiredAt.IsZero() {
		t.Errorf("the overtaken push is %+v, want it retired", v)
	}
}

func TestUnknownEndpointIsNotMade(t *testing.T) {
	b := newBench(t, nil)
	_, _, err := cluster.Edit(t.Context(), b.store, at, rollout.Request{ID: "x", At: time.Now()}, func(*rollout.Endpoint) (rollout.Op, error) { return rollout.Hold{}, nil })
	if rollout.ReasonOf(err) != rollout.ReasonUnknownEndpoint {
		t.Errorf("got %v, want unknown_endpoint", err)
	}
}
