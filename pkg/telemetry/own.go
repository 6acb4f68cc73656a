package telemetry

import (
	"runtime"
	"runtime/metrics"
	"slices"
	"sync"
	"time"
)

// cpuWait is the Go runtime's histogram of how long goroutines were ready before they ran.
const cpuWait = "/sched/latencies:seconds"

// own is what the router process adds and uses itself.
type own struct {
	routing *Histogram

	mu    sync.Mutex
	trail trail
	waits []waits // oldest first
}

// waits are the runtime's counts at a moment.
type waits struct {
	at     time.Duration
	counts []uint64
}

func (o *own) sample(now time.Duration) {
	c := o.routing.counts()
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.trail.due(now, c.n) {
		o.trail.take(now, c.n, c)
	}
	if n := len(o.waits); n > 0 && now-o.waits[n-1].at < recentStep-time.Second/2 {
		return
	}
	counts, _ := readWaits()
	o.waits = append(o.waits, waits{now, counts})
	for len(o.waits) > 1 && o.waits[1].at <= now-recent {
		o.waits = slices.Delete(o.waits, 0, 1)
	}
}

// readWaits gives the runtime's counts and the bounds of their buckets, one more than there are counts.
func readWaits() ([]uint64, []float64) {
	s := []metrics.Sample{{Name: cpuWait}}
	metrics.Read(s)
	if s[0].Value.Kind() != metrics.KindFloat64Histogram {
		return nil, nil // a runtime that does not tell
	}
	h := s[0].Value.Float64Histogram()
	return h.Counts, h.Buckets
}

// waitQuantile of what was counted since was, in seconds: the upper bound of its bucket.
func waitQuantile(q float64, was, now []uint64, bounds []float64) float64 {
	since := func(i int) uint64 {
		if i < len(was) {
			return now[i] - was[i]
		}
		return now[i]
	}
	total := uint64(0)
	for i := range now {
		total += since(i)
	}
	if total == 0 {
		return 0
	}
	rank := min(uint64(q*float64(total)), total-1)
	for i := range now {
		n := since(i)
		if rank < n {
			// The last bucket has no end.
			return bounds[min(i+1, len(bounds)-2)]
		}
		rank -= n
	}
	return 0
}

// Router gives the process's own figures.
func (r *Recorder) Router() RouterReport {
	o, now := &r.own, r.Elapsed()
	c := o.routing.counts()
	counts, bounds := readWaits()
	out := RouterReport{CPUSeconds: cpuSeconds(), Procs: runtime.GOMAXPROCS(0)}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.trail.recent(now, &c)
	out.Routed, out.RoutingP99Seconds = int64(c.n), c.quantile(0.99)
	if len(o.waits) > 0 {
		out.CPUWaitP99Seconds = waitQuantile(0.99, o.waits[0].counts, counts, bounds)
	}
	return out
}
