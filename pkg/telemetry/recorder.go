package telemetry

import (
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sluice-dev/sluice/rollout"
)

const (
	// maxSeries bounds the pairs of code and reason per version; what is beyond
	// counts as code "other".
	maxSeries = 48
	otherCode = 0
	// keepGone is how long the numbers of a version that is gone are kept, for the
	// case that it comes back and for the last look of whoever reads them.
	keepGone = 15 * time.Minute
	// Samples for windows: one a second for fineFor, then one in coarseStep.
	fineFor    = 2 * time.Minute
	coarseStep = 10 * time.Second
	// maxSamples is when they are thinned out: some more than are left then.
	maxSamples = int(MaxWindow/coarseStep+fineFor/time.Second) + 120
	// MaxWindow is the longest window that a Recorder can answer.
	MaxWindow = time.Hour
	// recent is what the quantiles of a report look at; snapshots stand recentStep apart.
	recent     = 10 * time.Second
	recentStep = 2 * time.Second
)

// VersionKey names a version of an endpoint. An empty version stands for requests
// that got as far as no version; an empty endpoint for those to unknown endpoints.
type VersionKey struct {
	Endpoint rollout.Key
	Version  string
}

// Request is what the request path measured of one request.
type Request struct {
	// Code is the status sent to the client; 499 if the client was gone.
	Code   int
	Reason rollout.Reason
	// Duration from the request's head to its answer's end; Wait the part of it spent in queues.
	Duration, Wait time.Duration
	// Routing is the part that the router added itself, of a request that a replica answered (Routed):
	// not its wait for a slot, not the replica's time, not the client's with its body.
	Routing time.Duration
	Routed  bool
	// Bad events in the sense of the verdict.
	Bad bool
	// Cut off: the answer had begun and did not end.
	Cut bool
}

// ClientGone is the code of a request whose client did not wait for the answer, as
// nginx has it.
const ClientGone = 499

// Recorder counts what versions do. It is safe for concurrent use.
type Recorder struct {
	start   time.Time
	dropped atomic.Uint64
	own     own

	mu       sync.RWMutex
	versions map[VersionKey]*Version
}

// NewRecorder counts from now on.
func NewRecorder() *Recorder {
	return &Recorder{start: time.Now(), versions: map[VersionKey]*Version{}, own: own{routing: NewHistogram()}}
}

// Elapsed monotonic time since the recorder's start.
func (r *Recorder) Elapsed() time.Duration { return time.Since(r.start) }

// Version gives a version's counters, made if there are none; keep them, to save the look-up.
func (r *Recorder) Version(key VersionKey) *Version {
	r.mu.RLock()
	v := r.versions[key]
	r.mu.RUnlock()
	if v != nil {
		return v
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if v = r.versions[key]; v == nil {
		v = &Version{key: key, recorder: r}
		v.series.Store(new([]*series))
		r.versions[key] = v
	}
	return v
}

// Retain says which versions exist; others are forgotten after a while.
func (r *Recorder) Retain(live map[VersionKey]bool) {
	now := r.Elapsed()
	r.mu.Lock()
	defer r.mu.Unlock()
	for key, v := range r.versions {
		switch {
		case live[key]:
			v.goneAt = 0
		case v.goneAt == 0:
			v.goneAt = max(now, 1)
		case now-v.goneAt > keepGone:
			delete(r.versions, key)
		}
	}
}

// Run samples once a second until ctx ends; windows and quantiles need it.
func (r *Recorder) Run(ctx context.Context) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			r.sample()
		}
	}
}

func (r *Recorder) sample() {
	now := r.Elapsed()
	r.own.sample(now)
	for _, v := range r.all() {
		v.sample(now)
	}
}

// all versions by key.
func (r *Recorder) all() []*Version {
	r.mu.RLock()
	out := make([]*Version, 0, len(r.versions))
	for _, v := range r.versions {
		out = append(out, v)
	}
	r.mu.RUnlock()
	slices.SortFunc(out, func(a, b *Version) int {
		return cmp.Or(
			cmp.Compare(a.key.Endpoint.Namespace, b.key.Endpoint.Namespace),
			cmp.Compare(a.key.Endpoint.Name, b.key.Endpoint.Name),
			cmp.Compare(a.key.Version, b.key.Version),
		)
	})
	return out
}

// Drop counts telemetry that was lost.
func (r *Recorder) Drop(n uint64) { r.dropped.Add(n) }

// Query gives requests/count, requests/failed and requests/duration of a version. A
// version without requests so far is not known: it has no metrics.
func (r *Recorder) Query(_ context.Context, endpoint rollout.Key, version string, window time.Duration) (map[string]Sample, error) {
	if window <= 0 || window > MaxWindow {
		return nil, fmt.Errorf("query %s/%s: a window of %v is not between 0 and %v", endpoint, version, window, MaxWindow)
	}
	r.mu.RLock()
	v := r.versions[VersionKey{endpoint, version}]
	r.mu.RUnlock()
	if v == nil {
		return map[string]Sample{}, nil
	}
	d := v.window(r.Elapsed(), window)
	out := map[string]Sample{
		MetricCount:  {Value: float64(d.requests), Count: d.requests},
		MetricFailed: {Value: float64(d.failed), Count: d.requests},
	}
	if d.requests > 0 {
		out[MetricDuration] = Sample{Value: float64(d.nanos) / 1e6 / float64(d.requests), Count: d.requests}
	}
	return out, nil
}

// Version is one version's counters. Safe for concurrent use.
type Version struct {
	key      VersionKey
	recorder *Recorder
	goneAt   time.Duration // the recorder's mutex guards it

	series     atomic.Pointer[[]*series] // copied on write
	requests   counter
	failed     counter
	bad        counter
	histograms atomic.Pointer[histograms]

	mu sync.Mutex
	// samples of the cumulative numbers, oldest first: one after each second with a change.
	samples   []totals
	durations trail
}

// histograms are made with the first request: most versions never have one.
type histograms struct {
	duration, wait *Histogram
}

type series struct {
	code   int
	reason rollout.Reason
	n      counter
}

type totals struct {
	at               time.Duration
	requests, failed int64
	nanos            int64
}

// Record a request.
func (v *Version) Record(q Request) {
	v.pair(q.Code, q.Reason).n.add(1)
	if q.Bad {
		v.bad.add(1)
	}
	if q.Code == ClientGone {
		return
	}
	v.requests.add(1)
	if q.Code >= 400 || q.Cut {
		v.failed.add(1)
	}
	h := v.histograms.Load()
	if h == nil {
		h = v.makeHistograms()
	}
	h.duration.Observe(q.Duration)
	h.wait.Observe(q.Wait)
	if q.Routed {
		v.recorder.own.routing.Observe(q.Routing)
	}
}

func (v *Version) makeHistograms() *histograms {
	h := &histograms{duration: NewHistogram(), wait: NewHistogram()}
	if v.histograms.CompareAndSwap(nil, h) {
		return h
	}
	return v.histograms.Load()
}

func (v *Version) pair(code int, reason rollout.Reason) *series {
	for _, s := range *v.series.Load() {
		if s.code == code && s.reason == reason {
			return s
		}
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	was := *v.series.Load()
	if len(was) >= maxSeries {
		code, reason = otherCode, ""
		v.recorder.Drop(1)
	}
	for _, s := range was {
		if s.code == code && s.reason == reason {
			return s
		}
	}
	s := &series{code: code, reason: reason}
	now := append(slices.Clone(was), s)
	v.series.Store(&now)
	return s
}

// Requests that got an answer or were refused, how many failed, and bad events.
func (v *Version) Requests() (requests, failed, bad int64) {
	// Read in this order, so that there are never more failures than requests.
	bad, failed = v.bad.load(), v.failed.load()
	return v.requests.load(), failed, bad
}

func (v *Version) totals(now time.Duration) totals {
	t := totals{at: now}
	t.requests, t.failed, _ = v.Requests()
	if h := v.histograms.Load(); h != nil {
		for i := range h.duration.shards {
			t.nanos += h.duration.shards[i].nanos.Load()
		}
	}
	return t
}

func (v *Version) sample(now time.Duration) {
	t := v.totals(now)
	v.mu.Lock()
	defer v.mu.Unlock()
	if t.requests == 0 {
		return
	}
	if n := len(v.samples); n == 0 || v.samples[n-1].requests != t.requests {
		v.samples = append(v.samples, t)
		v.thin(now)
	}
	h := v.histograms.Load()
	if h == nil {
		return
	}
	if v.durations.due(now, uint64(t.requests)) {
		v.durations.take(now, uint64(t.requests), h.duration.counts())
	}
}

// thin out the samples: of those older than fineFor the last one of each coarseStep
// stays, and of those older than MaxWindow the last one, where the longest window begins.
func (v *Version) thin(now time.Duration) {
	if len(v.samples) < maxSamples {
		return
	}
	kept := v.samples[:0]
	for i, s := range v.samples {
		if i+1 < len(v.samples) {
			next := v.samples[i+1].at
			if next <= now-MaxWindow || next <= now-fineFor && s.at/coarseStep == next/coarseStep {
				continue
			}
		}
		kept = append(kept, s)
	}
	v.samples = kept
}

// window is the difference between now and the last sample before the window.
func (v *Version) window(now, window time.Duration) totals {
	t := v.totals(now)
	v.mu.Lock()
	defer v.mu.Unlock()
	i, found := slices.BinarySearchFunc(v.samples, now-window, func(t totals, at time.Duration) int { return cmp.Compare(t.at, at) })
	if !found {
		i--
	}
	if i >= 0 {
		was := v.samples[i]
		t.requests -= was.requests
		t.failed -= was.failed
		t.nanos -= was.nanos
	}
	return t
}

// Recent quantiles of durations, in seconds, over about the last 10 s; 0 without requests.
func (v *Version) Recent() (p50, p99 float64) {
	h := v.histograms.Load()
	if h == nil {
		return 0, 0
	}
	now := v.recorder.Elapsed()
	c := h.duration.counts()
	v.mu.Lock()
	v.durations.recent(now, &c)
	v.mu.Unlock()
	return c.quantile(0.5), c.quantile(0.99)
}

// counter is a sharded sum.
type counter struct {
	shards [maxShards]struct {
		n atomic.Int64
		_ [56]byte
	}
}

func (c *counter) add(n int64) { c.shards[rand.Uint32()&(maxShards-1)].n.Add(n) }

func (c *counter) load() (n int64) {
	for i := range c.shards {
		n += c.shards[i].n.Load()
	}
	return n
}
