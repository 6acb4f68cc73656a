package self

import (
	"slices"
	"strings"
	"testing"
	"time"
)

// settings of the tests: from 1 to 2 cores in two steps, 1 to 3 pods.
func settings() Settings {
	s := Defaults()
	s.CPUMin, s.CPUMax, s.PodsMin, s.PodsMax = 1000, 2000, 1, 3
	return s
}

// world is a cluster without surprises: what is asked for is there at once.
type world struct {
	t      *testing.T
	s      Settings
	m      Memory
	in     Input
	taken  []Kind
	reason string
}

func newWorld(t *testing.T, pods ...Pod) *world {
	return &world{t: t, s: settings(), in: Input{Now: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC), Complete: true, Pods: pods, Desired: len(pods)}}
}

func pod(name string, cpu Milli) Pod { return Pod{Name: name, CPU: cpu, Has: cpu, Ready: true} }

// pass lets time pass in ticks, carries out what is decided and returns the kinds.
func (w *world) pass(d time.Duration) []Kind {
	w.t.Helper()
	var out []Kind
	for end := w.in.Now.Add(d); w.in.Now.Before(end); w.in.Now = w.in.Now.Add(Tick) {
		a := w.m.Decide(w.s, w.in)
		if a.Kind == Hold {
			continue
		}
		if a.Figure == "" {
			w.t.Errorf("%s without a figure", a.Kind)
		}
		out, w.reason = append(out, a.Kind), a.Figure
		for _, r := range a.Resizes {
			for i := range w.in.Pods {
				if p := &w.in.Pods[i]; p.Name == r.Pod {
					if p.CPU != r.From {
						w.t.Errorf("%+v of a pod with %v", r, p.CPU)
					}
					p.CPU, p.Has, p.Resize = r.To, r.To, PendingNone
				}
			}
		}
		if a.Replicas > 0 {
			w.in.Desired = a.Replicas
			for len(w.in.Pods) < a.Replicas {
				w.in.Pods = append(w.in.Pods, pod(string(rune('a'+len(w.in.Pods))), w.s.CPUMin))
			}
			w.in.Pods = w.in.Pods[:a.Replicas]
		}
	}
	w.taken = append(w.taken, out...)
	return out
}

func (w *world) want(have []Kind, want ...Kind) {
	w.t.Helper()
	if !slices.Equal(have, want) {
		w.t.Errorf("%s: %q, want %q (%s)", w.in.Now.Format(time.TimeOnly), have, want, w.reason)
	}
}

// TestUpAndBack: CPU first, then pods, which catch up in CPU before there is another; back in CPU, then in.
func TestUpAndBack(t *testing.T) {
	w := newWorld(t, pod("a", 1000))
	w.in.P99, w.in.Used = 8*time.Millisecond, 900
	w.want(w.pass(15 * time.Second)) // not yet
	w.want(w.pass(Tick), CPUUp)
	if !strings.Contains(w.reason, "8ms") || !strings.Contains(w.reason, "5ms") || w.in.Pods[0].CPU != 1500 {
		t.Errorf("%s: %+v", w.reason, w.in.Pods)
	}
	w.want(w.pass(20*time.Second), CPUUp)
	w.want(w.pass(20*time.Second), PodsOut)
	w.want(w.pass(40*time.Second), CPUUp, CPUUp) // the new one
	if w.in.Pods[0].CPU != 2000 || w.in.Pods[1].CPU != 2000 {
		t.Errorf("%+v", w.in.Pods)
	}
	w.want(w.pass(20*time.Second), PodsOut)
	w.want(w.pass(40*time.Second), CPUUp, CPUUp)
	w.want(w.pass(20*time.Second), Full)
	w.want(w.pass(4 * time.Minute)) // said once
	w.in.P99, w.in.Used = time.Millisecond, 240
	w.want(w.pass(2 * time.Minute))
	w.want(w.pass(Tick), CPUDown)
	if !strings.Contains(w.reason, "4%") || !strings.Contains(w.reason, "30%") || !strings.Contains(w.reason, "1ms") {
		t.Error(w.reason)
	}
	w.want(w.pass(10*time.Minute), CPUDown, PodsIn, PodsIn)
	if len(w.in.Pods) != 1 || w.in.Pods[0].CPU != 1000 {
		t.Errorf("%+v", w.in.Pods)
	}
}

// TestHysteresis: a spike is nothing, and between the thresholds nothing changes.
func TestHysteresis(t *testing.T) {
	for name, edit := range map[string]func(w *world, i int){
		"spikes":            func(w *world, i int) { w.in.P99 = []time.Duration{9e6, 9e6, 1e6}[i%3] },
		"between":           func(w *world, _ int) { w.in.P99 = 4 * time.Millisecond },
		"busy":              func(w *world, _ int) { w.in.P99, w.in.Used = time.Millisecond, 1800 },
		"busy now and then": func(w *world, i int) { w.in.Used = []Milli{100, 1800}[i/20%2] },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, pod("a", 1500), pod("b", 1500))
			for i := range 200 {
				edit(w, i)
				w.want(w.pass(Tick))
			}
		})
	}
}

// TestUnknown: nothing is done while something is missing or on its way, and measuring begins anew after.
func TestUnknown(t *testing.T) {
	for name, tc := range map[string]struct{ disturb, mend func(w *world) }{
		"report":   {func(w *world) { w.in.Complete = false }, func(w *world) { w.in.Complete = true }},
		"resize":   {func(w *world) { w.in.Pods[0].Resize = PendingInProgress }, func(w *world) { w.in.Pods[0].Resize = PendingNone }},
		"starting": {func(w *world) { w.in.Pods[1].Ready = false }, func(w *world) { w.in.Pods[1].Ready = true }},
		"rollout":  {func(w *world) { w.in.Desired = 1 }, func(w *world) { w.in.Desired = 2 }},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, pod("a", 1500), pod("b", 1500))
			w.pass(115 * time.Second) // nearly calm for long enough
			tc.disturb(w)
			w.want(w.pass(3 * time.Minute))
			tc.mend(w)
			w.want(w.pass(2 * time.Minute))
			w.want(w.pass(Tick), CPUDown)
			tc.disturb(w)
			w.in.P99 = time.Second
			w.want(w.pass(3 * time.Minute))
		})
	}
	t.Run("use", func(t *testing.T) {
		w := newWorld(t, Pod{Name: "a", Ready: true}, Pod{Name: "b", Ready: true}) // no limit, no request
		w.want(w.pass(time.Hour))
		w.in.P99 = time.Second
		w.want(w.pass(20*time.Second), PodsOut) // CPU is no way
	})
}

// TestNoRoomForCPU: what the node has no room for is taken back, and pods come instead for a while.
func TestNoRoomForCPU(t *testing.T) {
	for _, pending := range []Pending{PendingInfeasible, PendingDeferred} {
		t.Run(string(pending), func(t *testing.T) {
			w := newWorld(t, pod("a", 1000))
			w.in.P99 = 8 * time.Millisecond
			w.want(w.pass(20*time.Second), CPUUp)
			w.in.Pods[0].Has, w.in.Pods[0].Resize = 1000, pending
			if pending == PendingDeferred {
				w.want(w.pass(30 * time.Second))
			}
			w.want(w.pass(Tick), CPUTakenBack)
			if w.in.Pods[0].CPU != 1000 || !strings.Contains(w.reason, string(pending)) {
				t.Errorf("%s: %+v", w.reason, w.in.Pods)
			}
			w.want(w.pass(20*time.Second), PodsOut)
			w.in.P99 = 4 * time.Millisecond
			w.want(w.pass(5 * time.Minute))
			w.in.P99 = 8 * time.Millisecond
			w.want(w.pass(20*time.Second), CPUUp) // tried again
		})
	}
}

// TestNoRoomForPods: a pod that no node takes stops growth and is taken back, but never below the least.
func TestNoRoomForPods(t *testing.T) {
	w := newWorld(t, pod("a", 2000))
	w.in.P99 = 8 * time.Millisecond
	w.want(w.pass(20*time.Second), PodsOut)
	w.in.Pods[1].Ready, w.in.Pods[1].Unschedulable = false, "0/1 nodes are available"
	w.want(w.pass(30 * time.Second))
	w.want(w.pass(Tick), PodsTakenBack)
	if w.in.Desired != 1 || !strings.Contains(w.reason, "0/1 nodes") {
		t.Errorf("%s: %d", w.reason, w.in.Desired)
	}
	w.want(w.pass(4*time.Minute), Full)
	w.in.Pods[0].Ready, w.in.Pods[0].Unschedulable = false, "0/1 nodes are available"
	w.want(w.pass(10 * time.Minute))
}

func TestBounds(t *testing.T) {
	w := newWorld(t, pod("a", 1000))
	w.s.PodsMin = 2
	w.want(w.pass(Tick), PodsOut)
	w.s.PodsMin, w.s.PodsMax = 1, 1
	w.want(w.pass(Tick), PodsIn)
	w.in.Desired, w.in.Pods = 0, nil
	w.want(w.pass(time.Hour)) // somebody's will
}

func TestValidate(t *testing.T) {
	if err := Defaults().Validate(); err != nil {
		t.Error(err)
	}
	for _, edit := range []func(*Settings){
		func(s *Settings) { s.P99 = 0 }, func(s *Settings) { s.CPUStep = 0 }, func(s *Settings) { s.CPUMax = s.CPUMin - 1 },
		func(s *Settings) { s.CPULow = 1 }, func(s *Settings) { s.PodsMin = 0 }, func(s *Settings) { s.PodsMax = s.PodsMin - 1 },
	} {
		s := Defaults()
		if edit(&s); s.Validate() == nil {
			t.Errorf("accepted %+v", s)
		}
	}
	if Milli(2500).String() != "2500m" || Milli(2000).String() != "2" {
		t.Error(Milli(2500), Milli(2000))
	}
}
