package dispatch

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sluice-dev/sluice/pkg/cluster"
	"github.com/sluice-dev/sluice/rollout"
	"github.com/sluice-dev/sluice/rollout/verdict"
)

const digest = "@sha256:0000000000000000000000000000000000000000000000000000000000000000"

type backend struct {
	address string
	idle    atomic.Int32
	closed  atomic.Int32
}

func (b *backend) CloseIdle() { b.idle.Add(1) }
func (b *backend) Close()     { b.closed.Add(1) }

// world is an endpoint under test with the config that it was given last.
type world struct {
	t        testing.TB
	s        *Scheduler
	e        *Endpoint
	spec     *rollout.Spec
	fleets   map[string]*cluster.FleetState
	mu       sync.Mutex
	backends map[string]*backend
}

func newWorld(t testing.TB, o Options, versions ...rollout.Version) *world {
	w := &world{t: t, fleets: map[string]*cluster.FleetState{}, backends: map[string]*backend{}, spec: &rollout.Spec{}}
	o.Open = func(address string) Backend {
		w.mu.Lock()
		defer w.mu.Unlock()
		b := &backend{address: address}
		w.backends[address] = b
		return b
	}
	w.s = New(o)
	w.e = w.s.Endpoint()
	w.spec.Versions = versions
	return w
}

func ver(name string, role rollout.Role, claim rollout.Percent) rollout.Version {
	return rollout.Version{Name: name, Type: role, TrafficPercentile: claim, Image: name + digest}
}

// ready gives the version n ready replicas.
func (w *world) ready(name string, n int) {
	f := &cluster.FleetState{}
	for i := range n {
		f.Replicas = append(f.Replicas, cluster.Replica{
			Name: fmt.Sprintf("%s-%d", name, i), State: cluster.ReplicaReady, Address: fmt.Sprintf("%s-%d:1", name, i),
		})
	}
	w.fleets[name] = f
}

func (w *world) state(name string, i int, state cluster.ReplicaState) {
	f := *w.fleets[name]
	f.Replicas = append([]cluster.Replica(nil), f.Replicas...)
	f.Replicas[i].State = state
	w.fleets[name] = &f
}

func (w *world) apply() {
	w.t.Helper()
	if err := w.spec.Validate(); err != nil {
		w.t.Fatalf("invalid spec: %v", err)
	}
	spec := *w.spec
	spec.Versions = append([]rollout.Version(nil), spec.Versions...)
	fleets := map[string]*cluster.FleetState{}
	for k, v := range w.fleets {
		fleets[k] = v
	}
	w.e.Apply(Config{Spec: &spec, Fleets: fleets})
}

func (w *world) acquire(pin string) *Lease {
	w.t.Helper()
	l, err := w.e.Acquire(w.t.Context(), pin)
	if err != nil {
		w.t.Fatalf("acquire: %v", err)
	}
	return l
}

func (w *world) refused(pin string) *Refusal {
	w.t.Helper()
	l, err := w.e.Acquire(w.t.Context(), pin)
	var r *Refusal
	if !errors.As(err, &r) {
		w.t.Fatalf("got lease %v, error %v; want a refusal", l, err)
	}
	return r
}

func (w *world) stats(name string) Stats {
	w.t.Helper()
	for _, s := range w.e.Stats() {
		if s.Version == name {
			return s
		}
	}
	w.t.Fatalf("no stats of %s", name)
	return Stats{}
}

func sixVersions() []rollout.Version {
	return []rollout.Version{
		ver("a", rollout.Control, 20_000), ver("b", rollout.Treatment, 1_000), ver("c", rollout.Treatment, 10_001),
		ver("d", rollout.Untyped, 499), ver("e", rollout.Standby, 0), ver("f", rollout.Treatment, 30_500),
	}
}

func TestSplitIsExact(t *testing.T) {
	var x uint32
	w := newWorld(t, Options{Random: func(uint32) uint32 { return x }}, sixVersions()...)
	for _, v := range w.spec.Versions {
		w.ready(v.Name, 1)
	}
	w.apply()
	got := map[string]rollout.Percent{}
	for x = range uint32(rollout.Full) {
		l := w.acquire("")
		got[l.Version()]++
		l.Free()
	}
	for _, s := range w.spec.Shares() {
		if got[s.Name] != s.Percent {
			t.Errorf("%s: %d of 100,000 draws, want %d", s.Name, got[s.Name], s.Percent)
		}
	}
}

func TestSplitChiSquare(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	w := newWorld(t, Options{Random: random.Uint32N}, sixVersions()...)
	for _, v := range w.spec.Versions {
		w.ready(v.Name, 1)
	}
	w.apply()
	const n = 100_000
	got := map[string]int{}
	for range n {
		l := w.acquire("")
		got[l.Version()]++
		l.Free()
	}
	chi, cells := 0.0, 0
	for _, s := range w.spec.Shares() {
		want := n * s.Percent.Fraction()
		if want == 0 {
			if got[s.Name] != 0 {
				t.Errorf("%s has no share and got %d", s.Name, got[s.Name])
			}
			continue
		}
		cells++
		chi += (float64(got[s.Name]) - want) * (float64(got[s.Name]) - want) / want
	}
	// 4 degrees of freedom: P(chi² > 18.5) = 0.001.
	if cells != 5 || chi > 18.5 {
		t.Errorf("chi² = %.1f over %d versions, got %v", chi, cells, got)
	}
}

// waiters start n requests one after the other; each sends its number when it gets its slot.
func (w *world) waiters(n int, pin string) (got chan int, leases []*Lease) {
	got = make(chan int, n)
	leases = make([]*Lease, n)
	for i := range n {
		go func() {
			l, err := w.e.Acquire(w.t.Context(), pin)
			if err != nil {
				w.t.Errorf("waiter %d: %v", i, err)
				return
			}
			leases[i] = l
			got <- i
		}()
		synctest.Wait()
	}
	return got, leases
}

func TestFirstComeFirstServedByDirectHandOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, Options{}, ver("a", rollout.Control, 0))
		w.ready("a", 1)
		w.apply()
		busy := w.acquire("")
		got, leases := w.waiters(5, "")
		for i := range 5 {
			if i == 0 {
				busy.Free()
			} else {
				leases[i-1].Free()
			}
			// No barging: the slot was handed over inside Free, so a newcomer waits.
			if s := w.stats("a"); s.InFlight != 1 || s.Queued != int64(4-i) {
				t.Fatalf("after release %d: %+v", i, s)
			}
			if n := <-got; n != i {
				t.Fatalf("slot %d went to waiter %d", i, n)
			}
		}
		leases[4].Free()
	})
}

func TestQueueTimeouts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := ver("a", rollout.Control, 0)
		v.Concurrency = &rollout.Concurrency{MaxQueueWaitMs: 300}
		w := newWorld(t, Options{MaxQueue: 2}, v)
		w.ready("a", 1)
		w.apply()
		busy := w.acquire("")
		start := time.Now()
		var wg sync.WaitGroup
		for range 2 {
			wg.Go(func() {
				r := w.refused("")
				if r.Reason != rollout.ReasonQueueTimeout || r.RetryAfter <= 0 || time.Since(start) != 300*time.Millisecond {
					t.Errorf("%v after %v", r, time.Since(start))
				}
			})
		}
		synctest.Wait()
		if r := w.refused(""); r.Reason != rollout.ReasonQueueFull || r.RetryAfter <= 0 {
			t.Errorf("got %v, want queue_full", r)
		}
		wg.Wait()
		busy.Free()
		if s := w.stats("a"); s.Refused != 3 || s.Queued != 0 {
			t.Errorf("%+v", s)
		}
		w.ready("a", 0)
		w.apply()
		start = time.Now()
		if r := w.refused(""); r.Reason != rollout.ReasonNoReadyReplicas || time.Since(start) != 300*time.Millisecond {
			t.Errorf("%v after %v", r, time.Since(start))
		}
	})
}

func TestARestartInTimeIsWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, Options{}, ver("a", rollout.Control, 0))
		w.ready("a", 1)
		w.state("a", 0, cluster.ReplicaFailed)
		w.apply()
		time.AfterFunc(400*time.Millisecond, func() { w.ready("a", 1); w.apply() })
		start := time.Now()
		l := w.acquire("")
		if d := time.Since(start); d != 400*time.Millisecond || l.Waited() != d {
			t.Errorf("waited %v, says %v", d, l.Waited())
		}
		l.Free()
	})
}

func TestClientGoneLeavesTheQueueAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, Options{}, ver("a", rollout.Control, 0))
		w.ready("a", 1)
		w.apply()
		busy := w.acquire("")
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() {
			_, err := w.e.Acquire(ctx, "")
			done <- err
		}()
		synctest.Wait()
		start := time.Now()
		cancel()
		var r *Refusal
		if err := <-done; !errors.As(err, &r) || r.Reason != rollout.ReasonClientGone || time.Since(start) != 0 {
			t.Errorf("got %v after %v", err, time.Since(start))
		}
		if s := w.stats("a"); s.Queued != 0 || s.Refused != 0 {
			t.Errorf("%+v", s)
		}
		busy.Free()
		w.acquire("").Free()
	})
}

func TestRefusalsArePacedAndKeepTheirPlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, Options{}, ver("a", rollout.Control, 0))
		w.ready("a", 1)
		w.apply()
		l := w.acquire("")
		time.Sleep(200 * time.Millisecond) // the mean service time
		l.Release(true)
		l.Free()

		first := w.acquire("")
		second := make(chan *Lease)
		go func() { second <- w.acquire("") }()
		synctest.Wait()
		start, tries := time.Now(), 0
		for range 20 {
			before := time.Now()
			if err := first.Again(t.Context(), Busy); err != nil {
				t.Fatal(err)
			}
			tries++
			if d := time.Since(before); d < 7*time.Millisecond || d > 13*time.Millisecond {
				t.Errorf("rested %v, want 5 %% of 200 ms, jittered", d)
			}
		}
		if d := time.Since(start); d < 150*time.Millisecond || d > 260*time.Millisecond {
			t.Errorf("20 refusals took %v", d)
		}
		select {
		case <-second:
			t.Fatal("a refused request lost its place")
		default:
		}
		first.Free()
		(<-second).Free()

		// And its patience: what it waited before counts.
		l = w.acquire("")
		start = time.Now()
		var err error
		for err == nil {
			err = l.Again(t.Context(), Busy)
		}
		var r *Refusal
		if !errors.As(err, &r) || r.Reason != rollout.ReasonQueueTimeout {
			t.Errorf("got %v", err)
		}
		if d := time.Since(start); d < 500*time.Millisecond || d > 515*time.Millisecond {
			t.Errorf("gave up after %v, want 500 ms", d)
		}
		l.Free()
		if s := w.stats("a"); s.GateRefusals < 50 || s.GateRefusals > 100 || s.Refused != 1 || s.InFlight != 0 {
			t.Errorf("%+v", s)
		}
	})
}

func TestARefusalGoesElsewhereAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, Options{}, ver("a", rollout.Control, 0))
		w.ready("a", 2)
		w.apply()
		l := w.acquire("")
		was, start := l.Replica(), time.Now()
		if err := l.Again(t.Context(), Busy); err != nil {
			t.Fatal(err)
		}
		if l.Replica() == was || time.Since(start) != 0 {
			t.Errorf("%s again after %v", l.Replica(), time.Since(start))
		}
		l.Free()
	})
}

func TestPins(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, Options{}, ver("a", rollout.Control, 0), ver("b", rollout.Untyped, 0), ver("c", rollout.Untyped, 0))
		w.ready("a", 1)
		w.ready("b", 1)
		w.apply()
		l := w.acquire("b")
		if l.Version() != "b" {
			t.Errorf("pinned to b, got %s", l.Version())
		}
		if r := w.refused("nope"); r.Reason != rollout.ReasonUnknownVersion || r.RetryAfter != 0 {
			t.Errorf("got %v", r)
		}
		// A pin never falls back.
		if r := w.refused("c"); r.Reason != rollout.ReasonNoReadyReplicas {
			t.Errorf("got %v", r)
		}
		// Its version goes while it waits.
		time.AfterFunc(100*time.Millisecond, func() {
			w.spec.Versions = w.spec.Versions[:1]
			w.apply()
		})
		if r := w.refused("b"); r.Reason != rollout.ReasonUnknownVersion {
			t.Errorf("got %v", r)
		}
		l.Free()
	})
}

func TestSharesFallBackToControlThenDefault(t *testing.T) {
	control, def := ver("a", rollout.Control, 50_000), ver("d", rollout.Untyped, 20_000)
	def.IsDefault = true
	w := newWorld(t, Options{}, control, ver("b", rollout.Treatment, 30_000), def)
	want := func(step string, a, b, d rollout.Percent) {
		t.Helper()
		if x, y, z := w.stats("a"), w.stats("b"), w.stats("d"); x.Applied != a || y.Applied != b || z.Applied != d {
			t.Errorf("%s: shares %v, %v, %v, want %v, %v, %v", step, x.Applied, y.Applied, z.Applied, a, b, d)
		}
	}
	for _, v := range w.spec.Versions {
		w.ready(v.Name, 1)
	}
	w.apply()
	want("all serve", 50_000, 30_000, 20_000)
	w.ready("b", 0)
	w.apply()
	want("treatment gone", 80_000, 0, 20_000)
	for range 1000 {
		l := w.acquire("")
		l.Free()
	}
	if n := w.stats("a").Fallbacks; n < 220 || n > 380 {
		t.Errorf("%d of 1000 requests fell back, want about 300", n)
	}
	w.ready("a", 0)
	w.apply()
	want("only the default", 0, 0, 100_000)
	w.ready("b", 1)
	w.apply()
	want("control gone", 0, 30_000, 70_000)
	w.ready("d", 0)
	w.apply()
	want("no fallback: shares wait where they are", 50_000, 30_000, 20_000)
}

func TestWaitersOfADeadVersionMoveInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var x uint32
		w := newWorld(t, Options{Random: func(uint32) uint32 { return x }},
			ver("a", rollout.Control, 0), ver("b", rollout.Treatment, 50_000))
		w.ready("a", 1)
		w.ready("b", 1)
		w.apply()
		inA := w.acquire("a")
		inB := w.acquire("b")
		got := make(chan int, 6)
		leases := make([]*Lease, 6)
		for i := range 6 {
			if x = 0; i%2 == 1 {
				x = 60_000 // b comes second
			}
			go func() {
				leases[i] = w.acquire("")
				got <- i
			}()
			synctest.Wait()
		}
		if a, b := w.stats("a"), w.stats("b"); a.Queued != 3 || b.Queued != 3 {
			t.Fatalf("queued %d and %d", a.Queued, b.Queued)
		}
		w.state("b", 0, cluster.ReplicaFailed)
		w.apply()
		if a, b := w.stats("a"), w.stats("b"); a.Queued != 6 || b.Queued != 0 {
			t.Fatalf("queued %d and %d", a.Queued, b.Queued)
		}
		inB.Free()
		inA.Free()
		for i := range 6 {
			if n := <-got; n != i {
				t.Fatalf("slot %d went to waiter %d", i, n)
			}
			if leases[i].Version() != "a" {
				t.Errorf("waiter %d got %s", i, leases[i].Version())
			}
			leases[i].Free()
		}
	})
}

func TestUnreadyAllAtOnceAreKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, Options{}, ver("a", rollout.Control, 0), ver("b", rollout.Treatment, 50_000))
		w.ready("a", 1)
		w.ready("b", 3)
		w.apply()
		w.state("b", 0, cluster.ReplicaUnready)
		w.apply()
		if n := w.stats("b").Serving; n != 2 {
			t.Errorf("one unready of three: %d serve, want 2", n)
		}
		if n := w.backends["b-0:1"].idle.Load(); n != 1 {
			t.Errorf("idle connections of the unready one dropped %d times", n)
		}
		w.state("b", 1, cluster.ReplicaUnready)
		w.state("b", 2, cluster.ReplicaUnready)
		w.apply()
		if n := w.stats("b").Serving; n != 3 {
			t.Errorf("all unready: %d serve, want 3", n)
		}
		// One does not answer any more, and is not asked again before its fleet has news.
		l := w.acquire("b")
		dead := l.Replica()
		if err := l.Again(t.Context(), Unreachable); err != nil {
			t.Fatal(err)
		}
		l.Free()
		time.Sleep(time.Minute)
		if n := w.stats("b").Serving; n != 2 {
			t.Errorf("one unreachable: %d serve, want 2", n)
		}
		for range 10 {
			l := w.acquire("b")
			if l.Replica() == dead {
				t.Errorf("%s was picked again", dead)
			}
			l.Free()
		}
		// Terminating ones are never kept.
		for i := range 3 {
			w.state("b", i, cluster.ReplicaTerminating)
		}
		w.apply()
		if s := w.stats("b"); s.Serving != 0 || s.Applied != 0 {
			t.Errorf("terminating: %+v", s)
		}
		for i := range 3 {
			if n := w.backends[fmt.Sprintf("b-%d:1", i)].closed.Load(); n != 1 {
				t.Errorf("backend %d closed %d times", i, n)
			}
		}
	})
}

func TestUnreachableReplicasAreTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, Options{}, ver("a", rollout.Control, 0), ver("b", rollout.Treatment, 50_000))
		w.ready("a", 1)
		w.ready("b", 1)
		w.apply()
		l := w.acquire("b")
		l.pinned = false // as if drawn
		if err := l.Again(t.Context(), Unreachable); err != nil {
			t.Fatal(err)
		}
		if l.Version() != "a" {
			t.Errorf("went to %s, want the control", l.Version())
		}
		if s := w.stats("b"); s.Serving != 0 || s.Applied != 0 {
			t.Errorf("%+v", s)
		}
		l.Free()
		time.Sleep(100 * time.Millisecond)
		if s := w.stats("b"); s.Serving != 1 || s.Applied != 50_000 {
			t.Errorf("%+v", s)
		}
		// The pause doubles while it stays away, up to a bound.
		for range 12 {
			l := w.acquire("b")
			_ = l.Again(t.Context(), Unreachable)
			l.Free()
			time.Sleep(2 * time.Second)
		}
		l = w.acquire("b")
		_ = l.Again(t.Context(), Unreachable)
		l.Free()
		time.Sleep(1400 * time.Millisecond) // 500 ms were spent waiting
		if n := w.stats("b").Serving; n != 0 {
			t.Error("tried again too early")
		}
		time.Sleep(200 * time.Millisecond)
		if n := w.stats("b").Serving; n != 1 {
			t.Error("never tried again")
		}
	})
}

func TestConnectingIsNotWaiting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, Options{}, ver("a", rollout.Control, 0))
		w.ready("a", 2)
		w.apply()
		l := w.acquire("")
		was := l.Replica()
		time.Sleep(time.Second) // longer than the queue's patience
		if err := l.Again(t.Context(), Unreachable); err != nil || l.Replica() == was {
			t.Errorf("%v, at %s after %s", err, l.Replica(), was)
		}
		l.Free()
	})
}

func TestIntegralsAreExact(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, Options{}, ver("a", rollout.Control, 0))
		w.ready("a", 1)
		w.apply()
		first := w.acquire("")
		var second *Lease
		done := make(chan struct{})
		go func() { second = w.acquire(""); close(done) }()
		synctest.Wait()
		time.Sleep(250 * time.Millisecond)
		if s := w.stats("a"); s.InFlightSeconds != 0.25 || s.QueuedSeconds != 0.25 || s.InFlight != 1 || s.Queued != 1 {
			t.Errorf("%+v", s)
		}
		first.Release(true)
		first.Free()
		<-done
		time.Sleep(750 * time.Millisecond)
		second.Release(true)
		second.Free()
		time.Sleep(time.Hour)
		s := w.stats("a")
		if s.InFlightSeconds != 1 || s.QueuedSeconds != 0.25 || s.InFlight != 0 || s.Queued != 0 {
			t.Errorf("%+v", s)
		}
		if want := 250*time.Millisecond + 50*time.Millisecond; s.Service != want {
			t.Errorf("mean service time %v, want %v", s.Service, want)
		}
	})
	// Years of a thousand in flight do not overflow.
	var l level
	l.add(0, 1000)
	l.advance(0)
	const year = 365 * 24 * time.Hour
	for i := range 5 {
		l.advance(time.Duration(i+1) * year / 4)
	}
	if got, want := l.seconds(5*year/4), 1000*(5*year/4).Seconds(); math.Abs(got-want) > 1e-3 {
		t.Errorf("%v request-seconds, want %v", got, want)
	}
}

func strategy() *rollout.Strategy { return &rollout.Strategy{} }

// evidence of one treatment, restored.
func (w *world) evidence(treatment string) (verdict.Evidence, string) {
	w.t.Helper()
	for _, x := range w.e.Evidence() {
		if x.Treatment == treatment {
			ev, err := verdict.Restore(x.Saved)
			if err != nil {
				w.t.Fatal(err)
			}
			return ev, x.Key
		}
	}
	w.t.Fatalf("no evidence of %s", treatment)
	return verdict.Evidence{}, ""
}

func TestEvidenceUsesTheSharesApplied(t *testing.T) {
	var x uint32
	w := newWorld(t, Options{Random: func(uint32) uint32 { return x }},
		ver("a", rollout.Control, 0), ver("b", rollout.Treatment, 10_000), ver("c", rollout.Treatment, 30_000), ver("d", rollout.Untyped, 20_000))
	w.spec.Strategy = strategy()
	for _, v := range w.spec.Versions {
		w.ready(v.Name, 10)
	}
	w.apply()
	params := verdict.ParamsOf(*w.spec.Strategy)
	wantB, wantC := verdict.New(params), verdict.New(params)
	run := func(draw uint32, o Outcome) {
		x = draw
		l := w.acquire("")
		l.Judge(o)
		l.Free()
	}
	// a has 40, b 10, c 30, d 20: a control event is evidence for each treatment with its own rho.
	run(0, Bad)
	wantB.Observe(verdict.Control, 0.2, true)
	wantC.Observe(verdict.Control, 30.0/70, true)
	run(45_000, Bad)
	wantB.Observe(verdict.Treatment, 0.2, true)
	run(45_000, Good)
	wantB.Observe(verdict.Treatment, 0.2, false)
	run(60_000, Bad)
	wantC.Observe(verdict.Treatment, 30.0/70, true)
	run(99_999, Bad) // d: untyped, in no comparison

	// Pinned: no evidence.
	l := w.acquire("b")
	l.Judge(Bad)
	l.Free()

	// c dies: its share goes to the control, and b is compared under what is applied now.
	w.ready("c", 0)
	w.apply()
	run(75_000, Bad)
	wantB.Observe(verdict.Treatment, 10.0/80, true)
	run(60_000, Bad)
	wantB.Observe(verdict.Control, 10.0/80, true)

	// A request keeps the shares it was drawn under.
	x = 75_000
	l = w.acquire("")
	w.ready("c", 10)
	w.apply()
	l.Judge(Bad)
	l.Free()
	wantB.Observe(verdict.Treatment, 10.0/80, true)

	if got, _ := w.evidence("b"); got != wantB {
		t.Errorf("b: got  %s\nwant %s", got.Save(), wantB.Save())
	}
	if got, _ := w.evidence("c"); got != wantC {
		t.Errorf("c: got  %s\nwant %s", got.Save(), wantC.Save())
	}
}

func TestEvidenceKeys(t *testing.T) {
	w := newWorld(t, Options{}, ver("a", rollout.Control, 0), ver("b", rollout.Treatment, 50_000))
	w.ready("a", 1)
	w.ready("b", 1)
	w.apply()
	if n := len(w.e.Evidence()); n != 0 {
		t.Errorf("%d comparisons without a strategy", n)
	}
	w.spec.Strategy = strategy()
	w.apply()
	bad := func(n int) {
		for range n {
			l := w.acquire("")
			l.Judge(Bad)
			l.Free()
		}
	}
	total := func() int64 {
		ev, _ := w.evidence("b")
		return ev.Bad(verdict.Treatment) + ev.Bad(verdict.Control)
	}
	bad(5)
	_, key := w.evidence("b")
	if want := verdict.KeyOf(w.spec.Versions[1].Revision(), w.spec.Versions[0].Revision(), verdict.ParamsOf(*w.spec.Strategy)); key != string(want) {
		t.Errorf("key %s, want %s", key, want)
	}
	// Shares, and waiting in queues, change no key; what changes the pods does.
	w.spec.Versions[1].TrafficPercentile = 20_000
	w.spec.Versions[1].Concurrency = &rollout.Concurrency{MaxQueueWaitMs: 100}
	w.apply()
	if n := total(); n != 5 {
		t.Errorf("%d bad events after a shift, want 5", n)
	}
	w.spec.Versions[1].ScoringTimeoutMs = 1000
	w.apply()
	if _, k := w.evidence("b"); k == key || total() != 0 {
		t.Errorf("a changed revision: key %s, %d bad events", k, total())
	}
	bad(2)
	w.spec.Strategy.Alpha = 0.05
	w.apply()
	if n := total(); n != 0 {
		t.Errorf("%d bad events after a change of parameters", n)
	}
	// What is reported under one key in one epoch only grows.
	w.spec.Strategy.Alpha = 0
	w.spec.Versions[1].ScoringTimeoutMs = 0
	w.apply()
	if _, k := w.evidence("b"); k != key || total() != 5 {
		t.Errorf("back again: key %s, %d bad events, want %s and 5", k, total(), key)
	}
	// While replicas of two revisions serve, nothing is judged.
	f := *w.fleets["a"]
	f.Replicas = []cluster.Replica{f.Replicas[0]}
	f.Replicas[0].Revision = "old"
	w.fleets["a"] = &f
	w.apply()
	bad(5)
	if n := total(); n != 5 {
		t.Errorf("%d bad events of mixed revisions, want 5 still", n)
	}
}

func TestOneCauseIsOneBadEvent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := ver("a", rollout.Control, 0)
		v.Concurrency = &rollout.Concurrency{MaxConcurrentRequests: 100}
		w := newWorld(t, Options{}, v, ver("b", rollout.Treatment, 50_000))
		w.spec.Strategy = strategy()
		w.ready("a", 1)
		w.ready("b", 1)
		w.apply()
		drawn := func() *Lease {
			l := w.acquire("a")
			l.pinned, l.plan = false, w.e.plan
			return l
		}
		bad := func() int64 { ev, _ := w.evidence("b"); return ev.Bad(verdict.Control) }
		var leases []*Lease
		for range 10 {
			leases = append(leases, drawn())
		}
		time.Sleep(time.Second)
		for _, l := range leases {
			if !l.Judge(Broken) {
				t.Error("a lost request is a bad answer, whatever its cause")
			}
			l.Free()
		}
		if n := bad(); n != 1 {
			t.Errorf("ten that broke together: %d bad events, want 1", n)
		}
		time.Sleep(time.Second)
		l := drawn()
		time.Sleep(time.Second)
		l.Judge(Broken)
		l.Free()
		if n := bad(); n != 2 {
			t.Errorf("a later one: %d bad events, want 2", n)
		}
		// A replica that Sluice stops is no cause at all.
		l = drawn()
		w.state("a", 0, cluster.ReplicaTerminating)
		w.apply()
		if l.Judge(Broken) {
			t.Error("cut off by a stop: called bad")
		}
		l.Free()
		if n := bad(); n != 2 {
			t.Errorf("cut off by a stop: %d bad events, want 2", n)
		}
	})
}

func TestSwapsKeepWhatIsInFlight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, Options{}, ver("a", rollout.Control, 0), ver("b", rollout.Untyped, 0))
		w.ready("a", 1)
		w.ready("b", 1)
		w.apply()
		inA, inB := w.acquire("a"), w.acquire("b")
		w.spec.Versions = w.spec.Versions[:1]
		w.spec.Versions[0].Description = "changed"
		w.apply()
		if s := w.stats("a"); s.InFlight != 1 {
			t.Errorf("%+v", s)
		}
		if w.backends["a-0:1"].closed.Load() != 0 || w.backends["b-0:1"].closed.Load() != 1 {
			t.Error("the wrong backend was closed")
		}
		got, leases := w.waiters(1, "")
		inB.Release(true) // of a version that is gone: frees nothing for a
		inB.Free()
		if s := w.stats("a"); s.Queued != 1 {
			t.Errorf("%+v", s)
		}
		inA.Free()
		<-got
		leases[0].Free()

		// b comes back: its numbers go on.
		w.spec.Versions = append(w.spec.Versions, ver("b", rollout.Untyped, 0))
		w.apply()
		if s := w.stats("b"); s.Service == 0 && s.InFlight != 0 || s.Serving != 1 {
			t.Errorf("%+v", s)
		}
		w.acquire("b").Free()

		// A replica under a new address is a new replica.
		f := *w.fleets["a"]
		f.Replicas = []cluster.Replica{{Name: "a-0", State: cluster.ReplicaReady, Address: "elsewhere:1"}}
		w.fleets["a"] = &f
		w.apply()
		l := w.acquire("a")
		if got := l.Backend().(*backend).address; got != "elsewhere:1" {
			t.Errorf("went to %s", got)
		}
		l.Free()
	})
}

func TestClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, Options{}, ver("a", rollout.Control, 0))
		if r := w.refused(""); r.Reason != rollout.ReasonNoReadyReplicas {
			t.Errorf("before the first table: %v", r)
		}
		w.ready("a", 1)
		w.apply()
		l := w.acquire("")
		time.AfterFunc(time.Millisecond, w.e.Close)
		if r := w.refused(""); r.Reason != rollout.ReasonUnknownEndpoint {
			t.Errorf("waiting: %v", r)
		}
		if err := l.Again(t.Context(), Busy); err == nil {
			t.Error("a closed endpoint gave a slot")
		}
		l.Free()
		if r := w.refused(""); r.Reason != rollout.ReasonUnknownEndpoint {
			t.Errorf("later: %v", r)
		}
	})
}

// Under everything at once, no replica ever has more in flight than it has slots, nobody
// waits beside a free slot, and at the end the books are balanced.
func TestNeverMoreThanItsSlots(t *testing.T) {
	a, b := ver("a", rollout.Control, 0), ver("b", rollout.Treatment, 40_000)
	a.Concurrency = &rollout.Concurrency{MaxConcurrentRequests: 3}
	w := newWorld(t, Options{MaxQueue: 50}, a, b)
	w.spec.Strategy = strategy()
	w.ready("a", 4)
	w.ready("b", 3)
	w.apply()
	var inFlight sync.Map // by backend
	slots := map[string]int64{"a": 3, "b": 1}
	enter := func(l *Lease) *atomic.Int64 {
		n, _ := inFlight.LoadOrStore(l.Backend(), new(atomic.Int64))
		c := n.(*atomic.Int64)
		if got := c.Add(1); got > slots[l.Version()] {
			t.Errorf("%d in flight at %s", got, l.Replica())
		}
		return c
	}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for i := range 40 {
		wg.Go(func() {
			random := rand.New(rand.NewPCG(uint64(i), 7))
			for {
				select {
				case <-stop:
					return
				default:
				}
				ctx, cancel := context.WithCancel(t.Context())
				if random.IntN(10) == 0 {
					time.AfterFunc(time.Duration(random.IntN(1000))*time.Microsecond, cancel)
				}
				pin := ""
				if random.IntN(20) == 0 {
					pin = "b"
				}
				l, err := w.e.Acquire(ctx, pin)
				for err == nil {
					c := enter(l)
					if random.IntN(4) == 0 {
						time.Sleep(time.Duration(random.IntN(300)) * time.Microsecond)
					}
					c.Add(-1)
					if random.IntN(8) != 0 {
						l.Release(true)
						l.Judge(Outcome(random.IntN(3)))
						break
					}
					if err = l.Again(ctx, Why(random.IntN(4))); err != nil {
						l.Free()
					}
				}
				if err == nil {
					l.Free()
				}
				cancel()
			}
		})
	}
	random := rand.New(rand.NewPCG(1, 1))
	for range 300 {
		switch random.IntN(6) {
		case 0:
			w.ready("b", random.IntN(4))
		case 1:
			w.ready("a", 1+random.IntN(4))
		case 2:
			if n := len(w.fleets["b"].Replicas); n > 0 {
				w.state("b", random.IntN(n), []cluster.ReplicaState{cluster.ReplicaUnready, cluster.ReplicaTerminating, cluster.ReplicaFailed}[random.IntN(3)])
			}
		case 3:
			w.spec.Versions[len(w.spec.Versions)-1].TrafficPercentile = rollout.Percent(random.IntN(100_000))
		case 4:
			if len(w.spec.Versions) == 2 {
				w.spec.Versions = w.spec.Versions[:1]
			} else {
				w.spec.Versions[0].TrafficPercentile = 0
				w.spec.Versions = append(w.spec.Versions, b)
			}
		}
		w.apply()
		w.check()
		time.Sleep(time.Millisecond)
	}
	close(stop)
	wg.Wait()
	w.check()
	for _, s := range w.e.Stats() {
		if s.InFlight != 0 || s.Queued != 0 {
			t.Errorf("left over: %+v", s)
		}
	}
}

// check the invariants that hold whenever the mutex is free.
func (w *world) check() {
	w.t.Helper()
	w.e.mu.Lock()
	defer w.e.mu.Unlock()
	for _, v := range w.e.versions {
		if v.queue.head != nil && len(v.free) > 0 {
			w.t.Errorf("%s: %d wait beside %d free slots", v.name, v.queue.len, len(v.free))
		}
		n, seq := 0, uint64(0)
		for l := v.queue.head; l != nil; l = l.next {
			if l.seq <= seq || l.version != v {
				w.t.Errorf("%s: out of order", v.name)
			}
			seq = l.seq
			n++
		}
		if n != v.queue.len || int64(n) != v.queued.n {
			w.t.Errorf("%s: %d in the queue, which says %d and %d", v.name, n, v.queue.len, v.queued.n)
		}
		for _, r := range v.replicas {
			if r.inFlight > r.slots || r.inFlight < 0 {
				w.t.Errorf("%s: %d in flight with %d slots", r.name, r.inFlight, r.slots)
			}
			if free := r.able && !r.resting && r.inFlight < r.slots; free != (r.index >= 0) {
				w.t.Errorf("%s: free %v, index %d", r.name, free, r.index)
			}
		}
	}
}

func BenchmarkAcquireFree(b *testing.B) {
	v := ver("a", rollout.Control, 0)
	v.Concurrency = &rollout.Concurrency{MaxConcurrentRequests: 64}
	w := newWorld(b, Options{}, v, ver("b", rollout.Treatment, 10_000))
	w.spec.Strategy = strategy()
	w.ready("a", 8)
	w.ready("b", 64)
	w.apply()
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			l, err := w.e.Acquire(context.Background(), "")
			if err != nil {
				b.Fatal(err)
			}
			l.Release(true)
			l.Judge(Good)
			l.Free()
		}
	})
}
