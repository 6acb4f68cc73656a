package deploy

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync/atomic"
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
	// demand in slots that the status tells of.
	demand atomic.Int64
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
		Namespace: at.Namespace, Actor: "tester", Timeout: 2 * time.Second, Endpoints: cluster.Editing(b.store), Keys: b.keys,
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
				e.Status.Demand = strconv.FormatInt(b.demand.Load(), 10)
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

// An endpoint's address that only pods know: the error says what to do, and --router-url does it.
func TestSmokeTestFromOutside(t *testing.T) {
	asked := make(chan string, 10)
	b := newBench(t, func(w http.ResponseWriter, r *http.Request) { asked <- r.URL.Path })
	router := b.uri
	b.uri = "http://router.invalid/api/v1/endpoint/models/fraud/score"
	defer b.serve()()
	o := b.options("one", 0)
	s := o.Shipper.(fixed)
	s.s.Test = &Test{Status: 200}
	o.Shipper = s
	_, err := Run(t.Context(), o)
	if rollout.ReasonOf(err) != rollout.ReasonSmokeFailed || !strings.Contains(err.Error(), "--router-url") {
		t.Fatalf("got %v, want smoke_test_failed and a way out", err)
	}
	o = b.options("two", 0)
	s.s.Image, s.s.Name = o.Shipper.(fixed).s.Image, "two"
	o.Shipper, o.Router = s, router
	if _, err := Run(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	if path := <-asked; path != "/api/v1/endpoint/models/fraud/score" {
		t.Errorf("the smoke test went to %s", path)
	}
	o.Router = "localhost:8080"
	if _, err := Run(t.Context(), o); rollout.ReasonOf(err) != rollout.ReasonInvalid {
		t.Errorf("an address without a scheme: %v", err)
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

// TestInterruptedGoesOn: an interrupted deploy, like a killed one, leaves the version where it
// is and says how to go on; the same again waits, tests and gives it its part.
func TestInterruptedGoesOn(t *testing.T) {
	var tested atomic.Int64
	b := newBench(t, func(w http.ResponseWriter, _ *http.Request) {
		tested.Add(1)
		_, _ = io.WriteString(w, "{}")
	})
	withTest := func(name string) Options {
		o := b.options(name, 0)
		s := o.Shipper.(fixed)
		s.s.Test = &Test{Status: 200}
		o.Shipper = s
		return o
	}
	// interrupt the deploy once its version has joined.
	interrupt := func(o Options) error {
		ctx, cancel := context.WithCancel(t.Context())
		o.Progress = func(format string, _ ...any) {
			if strings.HasPrefix(format, "waiting for") {
				cancel()
			}
		}
		_, err := Run(ctx, o)
		return err
	}
	first := withTest("one")
	err := interrupt(first)
	if rollout.ReasonOf(err) != rollout.ReasonInterrupted || !strings.Contains(err.Error(), "`sluice delete fraud`") {
		t.Fatalf("first: got %v, want interrupted and what to type", err)
	}
	stop := b.serve()
	if _, err := Run(t.Context(), first); err != nil || tested.Load() != 1 {
		t.Fatalf("the first again: %v after %d tests, want one", err, tested.Load())
	}
	stop()
	second := withTest("two")
	err = interrupt(second)
	if rollout.ReasonOf(err) != rollout.ReasonInterrupted || !strings.Contains(err.Error(), "`sluice delete fraud two`") {
		t.Fatalf("second: got %v, want interrupted and what to type", err)
	}
	if v := b.version("two"); v.Type != rollout.Untyped || !v.RetiredAt.IsZero() {
		t.Errorf("after the interrupt it is %+v, want it untyped and not retired", v)
	}
	defer b.serve()()
	res, err := Run(t.Context(), second)
	if err != nil || !res.Changed || tested.Load() != 2 {
		t.Fatalf("the second again: %+v, %v after %d tests", res, err, tested.Load())
	}
	if v := b.version("two"); v.Type != rollout.Treatment {
		t.Errorf("the second is %+v, want a treatment", v)
	}
}

// TestInterruptedWhilePreparing: replicas for a share that nobody will claim are not kept.
func TestInterruptedWhilePreparing(t *testing.T) {
	b := newBench(t, nil)
	defer b.serve()()
	if _, err := Run(t.Context(), b.options("one", 0)); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	o := b.options("two", 0)
	all := rollout.Full
	o.Percent, o.Timeout = &all, 10*time.Second
	b.demand.Store(50)
	o.Progress = func(format string, _ ...any) {
		if strings.HasPrefix(format, "preparing") {
			time.AfterFunc(50*time.Millisecond, cancel)
		}
	}
	if _, err := Run(ctx, o); rollout.ReasonOf(err) != rollout.ReasonInterrupted {
		t.Fatalf("got %v, want interrupted", err)
	}
	if v := b.version("two"); v.PlannedPercentile != 0 || !v.RetiredAt.IsZero() {
		t.Errorf("it is %+v, want it neither prepared nor retired", v)
	}
}

// TestNoRoomIsNoSuccess: a version that was retired for want of slots does not pass for deployed.
func TestNoRoomIsNoSuccess(t *testing.T) {
	b := newBench(t, nil)
	defer b.serve()()
	if _, err := Run(t.Context(), b.options("one", 0)); err != nil {
		t.Fatal(err)
	}
	b.demand.Store(50)
	o := b.options("two", 0)
	all := rollout.Full
	o.Percent, o.Timeout = &all, 200*time.Millisecond
	for range 2 {
		if _, err := Run(t.Context(), o); rollout.ReasonOf(err) != rollout.ReasonNotEnoughReady {
			t.Fatalf("got %v, want not_enough_ready", err)
		}
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

// A message that quotes what the replica wrote is not followed by the same lines.
func TestUnsaid(t *testing.T) {
	cause := fmt.Errorf("deploy: %w", &rollout.Error{Reason: rollout.ReasonInitFailed, Message: "init() failed:\nTraceback:\n  File x\nValueError: no", Hint: "mend it"})
	if got := unsaid("Traceback:\n  File x\nValueError: no\nprocess 7 ended\n", cause); got != "process 7 ended" {
		t.Errorf("got %q", got)
	}
	if got := unsaid("Traceback:\n  File x\nValueError: no\n", cause); got != "" {
		t.Errorf("got %q", got)
	}
	if got := unsaid("one\ntwo\n", context.Canceled); got != "one\ntwo" {
		t.Errorf("got %q", got)
	}
}
