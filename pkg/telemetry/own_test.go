package telemetry

import (
	"testing"
	"testing/synctest"
	"time"
)

// TestRouter: the router's own figures are of the last ten seconds, and of requests that it routed.
func TestRouter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := NewRecorder()
		go r.Run(t.Context())
		v := r.Version(VersionKey{Version: "v1"})
		for range 100 {
			v.Record(Request{Code: 200, Duration: time.Second, Routed: true, Routing: 20 * time.Millisecond})
		}
		v.Record(Request{Code: 503, Duration: time.Minute, Wait: time.Minute}) // no replica answered it
		if have := r.Router(); have.Routed != 100 || have.RoutingP99Seconds < 0.02 || have.RoutingP99Seconds > 0.021 || have.Procs < 1 {
			t.Errorf("%+v", have)
		}
		time.Sleep(5 * time.Second)
		for range 10_000 {
			v.Record(Request{Code: 200, Duration: time.Second, Routed: true, Routing: time.Millisecond})
		}
		time.Sleep(20 * time.Second)
		if have := r.Router(); have.Routed != 0 || have.RoutingP99Seconds != 0 {
			t.Errorf("after 20 s of silence: %+v", have)
		}
		v.Record(Request{Code: 200, Routed: true, Routing: time.Millisecond})
		if have := r.Router(); have.Routed != 1 || have.RoutingP99Seconds > 0.0011 {
			t.Errorf("%+v", have)
		}
	})
}

func TestWaitQuantile(t *testing.T) {
	bounds := []float64{0, 1, 2, 4, 8}
	for _, tc := range []struct {
		was, now []uint64
		want     float64
	}{
		{nil, []uint64{0, 0, 0, 0}, 0},
		{nil, []uint64{98, 1, 1, 0}, 4},
		{[]uint64{0, 0, 1, 0}, []uint64{100, 0, 1, 0}, 1},
		{nil, []uint64{0, 0, 0, 1}, 4}, // the last bucket ends nowhere
	} {
		if have := waitQuantile(0.99, tc.was, tc.now, bounds); have != tc.want {
			t.Errorf("%v since %v: %v, want %v", tc.now, tc.was, have, tc.want)
		}
	}
}

// TestCPUWait: goroutines that wait for a processor are seen.
func TestCPUWait(t *testing.T) {
	counts, bounds := readWaits()
	if len(bounds) != len(counts)+1 {
		t.Fatalf("%d bounds of %d counts: does the runtime not tell?", len(bounds), len(counts))
	}
	before := cpuSeconds()
	for began := time.Now(); time.Since(began) < 50*time.Millisecond; {
	}
	if used := cpuSeconds() - before; used <= 0 || used > 10 {
		t.Errorf("used %v s of CPU", used)
	}
}
