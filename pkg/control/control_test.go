package control

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sluice-dev/sluice/pkg/autoscale"
	"github.com/sluice-dev/sluice/pkg/cluster"
	"github.com/sluice-dev/sluice/pkg/cluster/memory"
	"github.com/sluice-dev/sluice/pkg/telemetry"
	"github.com/sluice-dev/sluice/rollout"
	"github.com/sluice-dev/sluice/rollout/verdict"
)

var key = rollout.Key{Namespace: "models", Name: "fraud"}

// routers is one router whose evidence a test writes.
type routers struct {
	mu       sync.Mutex
	began    time.Time
	epoch    string
	store    cluster.Reader
	evidence map[string]*verdict.Evidence // by treatment
	versions func() []telemetry.VersionReport
	fail     error
}

// observe requests of a treatment and its control under the keys in force.
func (r *routers) observe(t *testing.T, treatment string, label verdict.Label, rho float64, bad bool, n int) {
	t.Helper()
	e, err := r.store.Get(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	ev := r.evidence[treatment]
	if ev == nil {
		x := verdict.New(verdict.ParamsOf(*e.Spec.Strategy))
		ev = &x
		r.evidence[treatment] = ev
	}
	for range n {
		ev.Observe(label, rho, bad)
	}
}

func (r *routers) Reports(ctx context.Context) ([]telemetry.Report, error) {
	e, err := r.store.Get(ctx, key)
	if err != nil {
		return nil, nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.fail != nil {
		return nil, r.fail
	}
	out := telemetry.Report{Epoch: r.epoch, Elapsed: time.Since(r.began)}
	if r.versions != nil {
		out.Versions = r.versions()
	}
	for name, ev := range r.evidence {
		v := e.Spec.Version(name)
		if v == nil {
			continue
		}
		if k, _, ok := comparison(e, v); ok {
			out.Evidence = append(out.Evidence, telemetry.EvidenceReport{Endpoint: key, Treatment: name, Key: string(k), Saved: ev.Save()})
		}
	}
	return []telemetry.Report{out}, nil
}

func (r *routers) set(f func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f()
}

type world struct {
	t       *testing.T
	store   *memory.Store
	fleet   *memory.Fleet
	keys    *memory.Keys
	routers *routers
	n       int
	stop    context.CancelFunc
	done    chan struct{}
}

func newWorld(t *testing.T) *world {
	w := &world{t: t, store: memory.NewStore(), keys: memory.NewKeys(), fleet: memory.NewFleet(memory.Behaviour{ReadyAfter: 500 * time.Millisecond})}
	w.routers = &routers{began: time.Now(), epoch: "one", store: w.store, evidence: map[string]*verdict.Evidence{}}
	w.start()
	return w
}

func (w *world) options() Options {
	return Options{
		Store: w.store, Fleets: w.fleet, Keys: w.keys, Routers: w.routers, Logger: slog.New(slog.DiscardHandler),
		ScoringURI: func(k rollout.Key) string { return "http://router/" + k.String() },
	}
}

func (w *world) start() {
	ctx, cancel := context.WithCancel(context.Background())
	w.stop, w.done = cancel, make(chan struct{})
	go func() {
		defer close(w.done)
		if err := Run(ctx, w.options()); err != nil {
			w.t.Errorf("Run: %v", err)
		}
	}()
	// The autoscaler brings fleets to their planned size.
	go func() {
		_ = autoscale.Run(ctx, autoscale.Options{Endpoints: w.store, Fleets: w.fleet, Scaler: w.fleet, Routers: w.routers, Logger: slog.New(slog.DiscardHandler)})
	}()
}

func (w *world) kill() {
	w.stop()
	<-w.done
}

func (w *world) apply(op rollout.Op) {
	w.t.Helper()
	w.n++
	_, _, err := cluster.Edit(w.t.Context(), w.store, key, rollout.Request{ID: fmt.Sprint("t-", w.n), Actor: "alice", At: time.Now()}, func(*rollout.Endpoint) (rollout.Op, error) { return op, nil })
	if err != nil {
		w.t.Fatalf("%s: %v", op, err)
	}
}

func (w *world) get() *rollout.Endpoint {
	w.t.Helper()
	e, err := w.store.Get(w.t.Context(), key)
	if err != nil {
		w.t.Fatal(err)
	}
	return e
}

// within waits, in the bubble's time, until the condition holds.
func (w *world) within(d time.Duration, what string, holds func(*rollout.Endpoint) bool) time.Duration {
	w.t.Helper()
	began := time.Now()
	for {
		e := w.get()
		if holds(e) {
			return time.Since(began)
		}
		if time.Since(began) > d {
			w.t.Fatalf("not within %s: %s\nspec %+v\nstatus %+v", d, what, e.Spec, e.Status)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func version(name string, n int) rollout.Version {
	return rollout.Version{Name: name, Image: fmt.Sprintf("local/fraud@sha256:%064x", n)}
}

func (w *world) pair(s rollout.Strategy) {
	w.t.Helper()
	w.apply(rollout.Deploy{Version: version("a", 1)})
	w.apply(rollout.Deploy{Version: version("b", 2), Strategy: &s})
	w.within(5*time.Second, "both are ready", func(e *rollout.Endpoint) bool {
		return e.Status.Version("a").ReadyReplicas == 1 && e.Status.Version("b").ReadyReplicas == 1
	})
	role := rollout.Treatment
	w.apply(rollout.Update{Version: "b", Type: &role})
}

func claim(name string, p rollout.Percent) func(*rollout.Endpoint) bool {
	return func(e *rollout.Endpoint) bool { return e.Spec.Version(name).TrafficPercentile == p }
}

func TestClimbAndPromotePerfectPair(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.kill()
		w.pair(rollout.Strategy{Steps: []rollout.Step{{Percent: 5000}, {Percent: 50000}}})
		w.within(time.Second, "first step", claim("b", 5000))
		w.routers.observe(t, "b", verdict.Treatment, 0.05, false, 100)
		w.within(time.Second, "second step", claim("b", 50000))
		time.Sleep(time.Second)
		w.routers.observe(t, "b", verdict.Treatment, 0.5, false, 150)
		time.Sleep(2 * time.Second)
		if e := w.get(); e.Spec.Version("b").Type != rollout.Treatment {
			t.Fatalf("promoted on too little evidence: %+v", e.Spec.Changes)
		}
		w.routers.observe(t, "b", verdict.Treatment, 0.5, false, 300)
		took := w.within(time.Second, "promoted", func(e *rollout.Endpoint) bool { return e.Spec.Version("b").Type == rollout.Control })
		t.Logf("promoted %s after the evidence", took)
		e := w.get()
		last := e.Spec.Changes[len(e.Spec.Changes)-1]
		if last.Reason != rollout.ReasonBounded || last.Actor != rollout.Engine || last.Evidence == "" {
			t.Errorf("the record is %+v, want the engine's promotion by the bound with its evidence", last)
		}
		if a := e.Spec.Version("a"); a.Type != rollout.Standby {
			t.Errorf("the former control is %q, want standby", a.Type)
		}
		w.within(5*time.Second, "history has it", func(e *rollout.Endpoint) bool {
			h := e.Status.History
			return len(h) > 0 && h[len(h)-1].ID == last.ID
		})
	})
}

func TestRollbackWithinASecondAndFleetGoneAfterAMinute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.kill()
		w.pair(rollout.Strategy{Steps: []rollout.Step{{Percent: 5000}, {Percent: 50000}}})
		w.within(time.Second, "first step", claim("b", 5000))
		w.apply(rollout.Hold{Reason: "the rollback must not care"})
		w.routers.observe(t, "b", verdict.Control, 0.05, false, 1000)
		w.routers.observe(t, "b", verdict.Treatment, 0.05, true, 10)
		took := w.within(time.Second, "rolled back", func(e *rollout.Endpoint) bool { return e.Spec.Version("b").Type == rollout.Untyped })
		t.Logf("rolled back %s after the evidence", took)
		if last := w.get().Spec.Changes; last[len(last)-1].Reason != rollout.ReasonWorse {
			t.Errorf("the record says %+v", last[len(last)-1])
		}
		time.Sleep(55 * time.Second)
		if _, there := w.fleet.Spec(cluster.FleetKey{Endpoint: key, Version: "b"}); !there {
			t.Error("the fleet is gone before a minute has passed")
		}
		time.Sleep(10 * time.Second)
		if _, there := w.fleet.Spec(cluster.FleetKey{Endpoint: key, Version: "b"}); there {
			t.Error("the fleet of the version rolled back is still there")
		}
		w.within(5*time.Second, "state", func(e *rollout.Endpoint) bool { return e.Status.Version("b").State == rollout.StateRetired })
	})
}

func TestLostEvidenceHoldsAndComesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.kill()
		w.pair(rollout.Strategy{Steps: []rollout.Step{{Percent: 5000}, {Percent: 50000}}})
		w.within(time.Second, "first step", claim("b", 5000))
		w.routers.set(func() { w.routers.fail = errors.New("unreachable") })
		time.Sleep(staleAfter + time.Second)
		w.within(time.Second, "unknown", func(e *rollout.Endpoint) bool { return e.Status.Rollout.Reason == rollout.ReasonUnknown })
		w.routers.set(func() { w.routers.fail = nil })
		w.routers.observe(t, "b", verdict.Treatment, 0.05, false, 100)
		w.within(2*time.Second, "second step", claim("b", 50000))
	})
}

// TestEvidenceOutlivesControlAndRouter: neither role's restart counts anything twice or loses what was read.
func TestEvidenceOutlivesControlAndRouter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.pair(rollout.Strategy{Steps: []rollout.Step{{Percent: 5000}}})
		w.within(time.Second, "first step", claim("b", 5000))
		w.routers.observe(t, "b", verdict.Treatment, 0.05, false, 200)
		requests := func(n string) func(*rollout.Endpoint) bool {
			return func(e *rollout.Endpoint) bool {
				return e.Status.Rollout != nil && len(e.Status.Rollout.Evidence) == 1 && e.Status.Rollout.Evidence[0].Requests == n
			}
		}
		w.within(2*saveEvery, "saved", requests("200"))
		w.kill()
		w.start()
		time.Sleep(3 * saveEvery)
		w.within(2*saveEvery, "not counted twice", requests("200"))

		// The router restarts while control is away: what it had is only in the status.
		w.kill()
		w.routers.set(func() {
			w.routers.epoch, w.routers.began = "two", time.Now()
			clear(w.routers.evidence)
		})
		w.start()
		defer w.kill()
		w.routers.observe(t, "b", verdict.Treatment, 0.05, false, 50)
		w.within(3*saveEvery, "both epochs", requests("250"))
		w.routers.observe(t, "b", verdict.Treatment, 0.05, false, 200)
		w.within(2*time.Second, "promoted", func(e *rollout.Endpoint) bool { return e.Spec.Version("b").Type == rollout.Control })
	})
}

func TestCapacityIsPreparedBeforeTheStep(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.kill()
		w.pair(rollout.Strategy{Steps: []rollout.Step{{Percent: 5000}, {Percent: 50000}}})
		w.within(time.Second, "first step", claim("b", 5000))
		e := w.get()
		e.Status.Demand = "6"
		if _, err := w.store.UpdateStatus(t.Context(), e); err != nil {
			t.Fatal(err)
		}
		w.within(2*time.Second, "planned", func(e *rollout.Endpoint) bool { return e.Status.Version("b").PlannedPercent == 50000 })
	})
}

// A changed setting whose replicas fail leaves the old ones serving: the status says that nothing is judged.
func TestChangedSettingThatFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.kill()
		w.pair(rollout.Strategy{Steps: []rollout.Step{{Percent: 5000}}})
		w.within(time.Second, "first step", claim("b", 5000))
		w.fleet.SetImage(version("b", 2).Image, memory.Behaviour{Fail: rollout.ReasonInitFailed, Message: "KeyError: THRESHOLD"})
		w.apply(rollout.Update{Version: "b", Settings: &rollout.Settings{EnvironmentVariables: map[string]rollout.EnvValue{"X": {Value: "1"}}}})
		w.within(5*time.Second, "the reason", func(e *rollout.Endpoint) bool {
			ro := e.Status.Rollout
			return ro != nil && ro.Reason == rollout.ReasonReplacing && strings.Contains(ro.Message, "KeyError") && e.Status.Version("b").OutdatedReplicas == 1
		})
		w.fleet.SetImage(version("b", 2).Image, memory.Behaviour{})
		w.apply(rollout.Update{Version: "b", Settings: &rollout.Settings{EnvironmentVariables: map[string]rollout.EnvValue{"X": {Value: "2"}}}})
		w.within(5*time.Second, "judging again", func(e *rollout.Endpoint) bool {
			return e.Status.Version("b").OutdatedReplicas == 0 && e.Status.Rollout != nil && e.Status.Rollout.Reason == rollout.ReasonStepRunning
		})
	})
}

// Settings that the cluster refuses keep nothing else from being done, the status says which rule they
// break, and they are tried again.
func TestRefusedSettings(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.kill()
		w.pair(rollout.Strategy{Steps: []rollout.Step{{Percent: 5000}}})
		w.within(time.Second, "first step", claim("b", 5000))
		w.fleet.SetImage(version("b", 2).Image, memory.Behaviour{Refuse: &rollout.Error{Reason: rollout.ReasonInvalid, Field: "template.spec.hostNetwork", Message: "would collide"}})
		x := func(n string) *rollout.Settings {
			return &rollout.Settings{EnvironmentVariables: map[string]rollout.EnvValue{"X": {Value: n}}}
		}
		w.apply(rollout.Update{Version: "b", Settings: x("1")})
		w.within(5*time.Second, "the rule", func(e *rollout.Endpoint) bool {
			v, ro := e.Status.Version("b"), e.Status.Rollout
			return v.State == rollout.StateReady && v.Reason == rollout.ReasonInvalid && strings.Contains(v.Message, "hostNetwork") && ro != nil && ro.Reason == rollout.ReasonReplacing
		})
		w.apply(rollout.Update{Version: "a", Settings: x("1")})
		a := cluster.FleetKey{Endpoint: key, Version: "a"}
		w.within(5*time.Second, "a's settings", func(e *rollout.Endpoint) bool {
			spec, ok := w.fleet.Spec(a)
			return ok && spec.Revision == e.Spec.Version("a").Revision() && e.Status.ObservedGeneration == e.Metadata.Generation
		})
		// One that never started is failed.
		w.fleet.SetImage(version("c", 3).Image, memory.Behaviour{Refuse: &rollout.Error{Reason: rollout.ReasonDenied, Message: "exceeded quota"}})
		w.apply(rollout.Deploy{Version: version("c", 3)})
		w.within(5*time.Second, "c failed", func(e *rollout.Endpoint) bool {
			v := e.Status.Version("c")
			return v.State == rollout.StateFailed && v.Reason == rollout.ReasonDenied
		})
		w.fleet.SetImage(version("b", 2).Image, memory.Behaviour{})
		w.within(2*resync, "applied after all", func(e *rollout.Endpoint) bool {
			v := e.Status.Version("b")
			return v.Reason == "" && v.ReadyReplicas > 0 && v.OutdatedReplicas == 0
		})
	})
}

func TestEndpointGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.kill()
		w.pair(rollout.Strategy{})
		w.within(2*time.Second, "keys", func(*rollout.Endpoint) bool { _, err := w.keys.Keys(t.Context(), key); return err == nil })
		if err := w.store.Delete(t.Context(), key, ""); err != nil {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Second)
		states, err := w.fleet.Fleets(t.Context())
		if err != nil || len(states) != 0 {
			t.Errorf("fleets left: %v, %v", states, err)
		}
		if _, err := w.keys.Keys(t.Context(), key); !errors.Is(err, cluster.ErrNotFound) {
			t.Errorf("keys of the endpoint that is gone: %v", err)
		}
	})
}

func TestQuietEndpointIsNotRewritten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.kill()
		w.pair(rollout.Strategy{Steps: []rollout.Step{{Percent: 5000}}})
		time.Sleep(5 * time.Second)
		was := w.get().Metadata.ResourceVersion
		time.Sleep(5 * time.Minute)
		if now := w.get().Metadata.ResourceVersion; now != was {
			t.Errorf("resource version went from %s to %s in five minutes without any event", was, now)
		}
	})
}

// TestFullListOfChangesEmpties: changes that piled up while control was away do not wedge it.
func TestFullListOfChangesEmpties(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		retain := rollout.Duration(time.Second)
		w.pair(rollout.Strategy{RetainFor: &retain, Steps: []rollout.Step{{Percent: 5000}}})
		w.within(time.Second, "first step", claim("b", 5000))
		w.apply(rollout.Promote{Version: "b"})
		w.kill()
		for i := 0; len(w.get().Spec.Changes) < rollout.MaxChanges; i++ {
			w.apply(rollout.Hold{Reason: fmt.Sprint("why ", i)})
		}
		time.Sleep(5 * time.Second) // the standby's time is over: the engine has something to do
		w.start()
		defer w.kill()
		w.within(5*time.Second, "the standby is retired", func(e *rollout.Endpoint) bool { return e.Spec.Version("a").Type == rollout.Untyped })
		w.apply(rollout.Resume{})
	})
}
