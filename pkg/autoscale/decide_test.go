package autoscale

import (
	"testing"
	"time"
)

func TestSizingFormula(t *testing.T) {
	for _, tc := range []struct {
		rps     float64
		latency time.Duration
		target  float64
		slots   int
		want    int
	}{
		{20, 10 * time.Second, 0.7, 1, 286}, // the example of Azure ML's documentation
		{7, 100 * time.Millisecond, 0.7, 1, 1},
		{7.1, 100 * time.Millisecond, 0.7, 1, 2},
		{100, time.Second, 1, 8, 13},
		{0, time.Second, 0.7, 1, 0},
	} {
		if got := Replicas(tc.rps, tc.latency, tc.target, tc.slots); got != tc.want {
			t.Errorf("%v requests/s of %s at %v with %d slots: %d replicas, want %d", tc.rps, tc.latency, tc.target, tc.slots, got, tc.want)
		}
	}
}

func TestDemandUnits(t *testing.T) {
	for name, tc := range map[string]struct {
		load Load
		want float64
	}{
		"busy":                     {Load{InFlight: 3, ServiceSeconds: 1}, 3},
		"worked off a backlog":     {Load{InFlight: 6, ServiceSeconds: 0.02, ArrivalsPerSecond: 200}, 4},
		"slow model, queue":        {Load{InFlight: 2, Queued: 38, QueuedNow: 38, ServiceSeconds: 1, QueueWaitSeconds: 0.5}, 40},
		"fast model, queue":        {Load{InFlight: 2, Queued: 50, QueuedNow: 50, ServiceSeconds: 0.02, QueueWaitSeconds: 0.5}, 4},
		"fast model, refusals":     {Load{InFlight: 1, Queued: 75, QueuedNow: 75, RefusedPerSecond: 150, ServiceSeconds: 0.02, QueueWaitSeconds: 0.5}, 4},
		"a backlog that is gone":   {Load{InFlight: 2, Queued: 50, ServiceSeconds: 0.02, QueueWaitSeconds: 0.5, ArrivalsPerSecond: -1}, 2},
		"nothing is known of time": {Load{Queued: 100, RefusedPerSecond: 200, QueueWaitSeconds: 0.5}, 0},
	} {
		if got := tc.load.Demand(); got < tc.want-1e-9 || got > tc.want+1e-9 {
			t.Errorf("%s: demand %v, want %v", name, got, tc.want)
		}
	}
}

func TestDownOnlyAfterAMinuteOfLowerNeed(t *testing.T) {
	var m Memory
	now := time.Unix(1000, 0)
	have := 1
	look := func(need int, complete bool) int {
		now = now.Add(time.Second)
		have = m.Decide(Input{Now: now, Have: have, Fixed: -1, Min: 1, Max: 100, Need: need, Least: need, Complete: complete})
		return have
	}
	if got := look(10, true); got != 10 {
		t.Fatalf("need of 10: asked for %d at once, want 10", got)
	}
	for i := 1; i < 60; i++ {
		if got := look(3, true); got != 10 {
			t.Fatalf("%d s after the need fell: %d, want 10 still", i, got)
		}
	}
	if got := look(3, true); got != 3 {
		t.Fatalf("a minute after the need fell: %d, want 3", got)
	}
	// A short rise in between keeps what it asked for, for a minute from then on.
	look(8, true)
	for range 30 {
		look(2, true)
	}
	look(6, true)
	for range 29 {
		look(2, true)
	}
	if got := look(2, true); got != 6 {
		t.Fatalf("a minute after 8 and half after 6: %d, want 6", got)
	}
	// A missing report begins the minute anew.
	look(6, true)
	for range 40 {
		look(2, true)
	}
	look(2, false)
	for i := 1; i < 60; i++ {
		if got := look(2, true); got != 6 {
			t.Fatalf("%d s after a missing report: %d, want 6 still", i, got)
		}
	}
	if got := look(2, true); got != 2 {
		t.Fatalf("a minute after the missing report: %d, want 2", got)
	}
}

func TestTolerance(t *testing.T) {
	now := time.Unix(0, 0)
	decide := func(have int, demand float64) int {
		var m Memory
		var got int
		for range 70 { // over a minute of it
			now = now.Add(time.Second)
			got = m.Decide(Input{Now: now, Have: have, Fixed: -1, Min: 1, Max: 100, Need: Need(demand, 1, 0.7), Least: Need(demand/(1+tolerance), 1, 0.7), Complete: true})
		}
		return got
	}
	for _, tc := range []struct {
		have   int
		demand float64
		want   int
	}{
		{7, 5.1, 7}, {7, 5.4, 8}, {58, 39.5, 58}, {58, 35, 50}, {1, 0.75, 1}, {1, 0.8, 2}, {2, 0.5, 1}, {10, 6.3, 9},
	} {
		if got := decide(tc.have, tc.demand); got != tc.want {
			t.Errorf("%d replicas with a demand of %v: %d, want %d", tc.have, tc.demand, got, tc.want)
		}
	}
}

func TestBounds(t *testing.T) {
	in := Input{Now: time.Unix(0, 0), Have: 2, Fixed: -1, Min: 2, Max: 5, Complete: true}
	for _, tc := range []struct{ need, floor, fixed, want int }{
		{0, 0, -1, 2}, {4, 0, -1, 4}, {50, 0, -1, 5}, {0, 7, -1, 7}, {50, 0, 3, 3}, {9, 9, 0, 0},
	} {
		in.Need, in.Least, in.Floor, in.Fixed = tc.need, tc.need, tc.floor, tc.fixed
		if got := new(Memory).Decide(in); got != tc.want {
			t.Errorf("need %d, floor %d, fixed %d: %d, want %d", tc.need, tc.floor, tc.fixed, got, tc.want)
		}
	}
}

// model is a version under load in virtual time, one step a millisecond: a
// central queue with patience, one-slot replicas that take a while to start.
type model struct {
	service, patience, startUp int // ms
	ready                      int
	starting                   []int // ready at
	busy                       []int // free at
	queue                      []int // gives up at
	inFlightMs, queuedMs       int
	refused                    int
	served                     int
	came                       int
	peak                       int
	firstAsk                   int
}

func (m *model) run(t *testing.T, until int, arrivals func(now, present int) int) {
	t.Helper()
	var mem Memory
	desired := m.ready
	for now := range until {
		keep := m.starting[:0]
		for _, at := range m.starting {
			if at <= now {
				m.ready++
			} else {
				keep = append(keep, at)
			}
		}
		m.starting = keep
		busy := m.busy[:0]
		for _, free := range m.busy {
			if free > now {
				busy = append(busy, free)
			} else {
				m.served++
			}
		}
		m.busy = busy
		q := m.queue[:0]
		for _, gone := range m.queue {
			if gone > now {
				q = append(q, gone)
			} else {
				m.refused++
			}
		}
		m.queue = q
		for range arrivals(now, len(m.busy)+len(m.queue)) {
			m.came++
			m.queue = append(m.queue, now+m.patience)
		}
		for len(m.queue) > 0 && len(m.busy) < m.ready {
			m.queue = m.queue[1:]
			m.busy = append(m.busy, now+m.service)
		}
		m.inFlightMs += len(m.busy)
		m.queuedMs += len(m.queue)
		if now%1000 == 999 {
			load := Load{InFlight: float64(m.inFlightMs) / 1000, Queued: float64(m.queuedMs) / 1000, QueuedNow: float64(len(m.queue)), RefusedPerSecond: float64(m.refused), ArrivalsPerSecond: float64(m.came), QueueWaitSeconds: float64(m.patience) / 1000}
			if m.served > 0 {
				load.ServiceSeconds = float64(m.service) / 1000
			}
			m.inFlightMs, m.queuedMs, m.refused, m.came = 0, 0, 0, 0
			want := mem.Decide(Input{Now: time.Unix(0, 0).Add(time.Duration(now) * time.Millisecond), Have: desired, Fixed: -1, Min: 1, Max: 1000, Need: Need(load.Demand(), 1, 0.7), Least: Need(load.Demand()/(1+tolerance), 1, 0.7), Complete: true})
			for ; desired < want; desired++ {
				m.starting = append(m.starting, now+m.startUp)
				if m.firstAsk == 0 {
					m.firstAsk = now
				}
			}
			m.peak = max(m.peak, desired)
		}
	}
}

// TestStepOfConcurrentClients: 2 → 40 clients that ask again at once.
func TestStepOfConcurrentClients(t *testing.T) {
	for _, service := range []int{20, 100, 200, 500} {
		m := &model{service: service, patience: 500, startUp: 1500, ready: 3}
		const at = 3000
		m.run(t, 40000, func(now, present int) int {
			if now < at {
				return 2 - present
			}
			return max(0, 40-present)
		})
		need := Need(40, 1, 0.7)
		t.Logf("service %d ms: asked after %d ms, peak %d, need %d", service, m.firstAsk-at, m.peak, need)
		if m.firstAsk-at > 1500 || m.firstAsk < at {
			t.Errorf("service %d ms: first new replica asked for %d ms after the step, want within 1500", service, m.firstAsk-at)
		}
		if float64(m.peak) > 1.5*float64(need) || m.ready < 40 {
			t.Errorf("service %d ms: peak %d and %d ready in the end, need %d", service, m.peak, m.ready, need)
		}
	}
}

// TestColdReplicaUnderConstantRate: 200 requests/s of a 20 ms model that is still starting.
func TestColdReplicaUnderConstantRate(t *testing.T) {
	for _, startUp := range []int{800, 3000, 10000} {
		m := &model{service: 20, patience: 500, startUp: 2000, starting: []int{startUp}}
		m.run(t, 40000, func(now, _ int) int {
			if now%5 == 0 {
				return 1
			}
			return 0
		})
		need := Need(200*0.02, 1, 0.7)
		t.Logf("cold for %d ms: peak %d, need %d", startUp, m.peak, need)
		if float64(m.peak) > 1.5*float64(need) || m.ready < need {
			t.Errorf("cold for %d ms: peak %d, %d ready in the end, need %d", startUp, m.peak, m.ready, need)
		}
	}
}
