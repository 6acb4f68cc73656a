package telemetry

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/sluice-dev/sluice/rollout"
)

var fraud = rollout.Key{Namespace: "models", Name: "fraud"}

func TestBuckets(t *testing.T) {
	last := -1
	for us := uint64(0); us < 2_000_000_000; us += 1 + us/1000 {
		b := bucketOf(us)
		if b < last || b >= numBuckets {
			t.Fatalf("%d µs is in bucket %d after %d", us, b, last)
		}
		last = b
		if us < lowerBound(b) || b != overflow && us >= lowerBound(b+1) {
			t.Fatalf("%d µs is in bucket %d: [%d, %d)", us, b, lowerBound(b), lowerBound(b+1))
		}
		if width := lowerBound(b+1) - lowerBound(b); b != overflow && us >= 10 && width*10 > us {
			t.Fatalf("bucket %d is %d µs wide", b, width)
		}
	}
	if last != overflow {
		t.Errorf("the longest is in bucket %d of %d", last, numBuckets)
	}
	for _, le := range exposed {
		us := uint64(math.Round(le * 1e6))
		if lowerBound(bucketOf(us)) != us {
			t.Errorf("%v s is no bound of a bucket", le)
		}
	}
}

func TestQuantilesAndExposedBounds(t *testing.T) {
	h := NewHistogram()
	random := rand.New(rand.NewPCG(3, 4))
	var all []float64
	for range 20_000 {
		d := math.Exp(random.NormFloat64()*1.5 - 4)
		all = append(all, d)
		h.Observe(time.Duration(d * 1e9))
	}
	slices.Sort(all)
	c := h.counts()
	for _, q := range []float64{0, 0.1, 0.5, 0.9, 0.99, 0.999, 1} {
		want := all[min(int(q*float64(len(all))), len(all)-1)]
		if got := c.quantile(q); math.Abs(got-want) > 0.06*want+1e-6 {
			t.Errorf("quantile %v: %v, want %v", q, got, want)
		}
	}
	for le, got := range c.cumulative() {
		want, _ := slices.BinarySearch(all, le)
		if math.Abs(float64(got)-float64(want)) > 1 {
			t.Errorf("%d at or below %v, want %d", got, le, want)
		}
	}
	h.Observe(-time.Second)
	h.Observe(2000 * time.Hour)
	if c := h.counts(); c.buckets[0] != 1 || c.buckets[overflow] != 1 {
		t.Error("extremes are not counted")
	}
	if c := (&counts{}); c.quantile(0.5) != 0 {
		t.Error("a quantile of nothing")
	}
}

func query(t *testing.T, s Source, window time.Duration) map[string]Sample {
	t.Helper()
	got, err := s.Query(t.Context(), fraud, "a", window)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func TestWindows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := NewRecorder()
		ctx, cancel := context.WithCancel(t.Context())
		go r.Run(ctx)
		if got := query(t, r, time.Minute); len(got) != 0 {
			t.Errorf("an unknown version has metrics: %v", got)
		}
		v := r.Version(VersionKey{fraud, "a"})
		// Ten requests a second for 70 minutes, every fifth of them failed, then silence.
		time.Sleep(time.Second / 2)
		for s := range 4200 {
			for i := range 10 {
				code := 200
				if i%5 == 0 {
					code = 502
				}
				v.Record(Request{Code: code, Duration: time.Duration(s/60+1) * time.Millisecond})
			}
			time.Sleep(time.Second)
		}
		for _, x := range []struct {
			window           time.Duration
			count, tolerance int64
		}{{time.Second, 10, 0}, {10 * time.Second, 100, 0}, {time.Minute, 600, 0}, {10 * time.Minute, 6000, 100}, {time.Hour, 36000, 100}} {
			got := query(t, r, x.window)
			count := got[MetricCount].Count
			if count < x.count || count > x.count+x.tolerance {
				t.Errorf("%v: %d requests, want %d", x.window, count, x.count)
			}
			if failed := got[MetricFailed]; int64(failed.Value)*5 != count || failed.Count != count {
				t.Errorf("%v: %v failed of %d", x.window, failed, count)
			}
		}
		if d := query(t, r, time.Minute)[MetricDuration]; d.Value != 70 {
			t.Errorf("mean duration %v ms, want 70", d.Value)
		}
		if n := len(v.samples); n > maxSamples {
			t.Errorf("%d samples kept", n)
		}
		if p50, p99 := v.Recent(); math.Abs(p50-0.07) > 0.001 || math.Abs(p99-0.07) > 0.001 {
			t.Errorf("quantiles %v and %v, want 0.07", p50, p99)
		}
		time.Sleep(20 * time.Second)
		if p50, p99 := v.Recent(); p50 != 0 || p99 != 0 {
			t.Errorf("quantiles %v and %v after silence", p50, p99)
		}
		if got := query(t, r, 10*time.Second); got[MetricCount].Value != 0 {
			t.Errorf("silence: %v", got)
		} else if _, known := got[MetricDuration]; known {
			t.Error("a mean of nothing")
		}
		if _, err := r.Query(t.Context(), fraud, "a", 2*time.Hour); err == nil {
			t.Error("a window longer than what is kept was answered")
		}

		// Versions that are gone are forgotten after a while, not at once.
		r.Retain(nil)
		time.Sleep(time.Minute)
		r.Retain(nil)
		if n, _, _ := r.Version(VersionKey{fraud, "a"}).Requests(); n != 42_000 {
			t.Errorf("%d requests", n)
		}
		time.Sleep(time.Hour)
		r.Retain(nil)
		if n, _, _ := r.Version(VersionKey{fraud, "a"}).Requests(); n != 0 {
			t.Errorf("%d requests of a forgotten version", n)
		}
		cancel()
		synctest.Wait()
	})
}

type live struct{}

func (live) Gauges() []Gauges {
	return []Gauges{{
		VersionKey: VersionKey{fraud, "a"}, InFlight: 2, Queued: 3, Share: 12_345,
		Replicas: map[string]int{"ready": 2, "starting": 1}, Desired: 3, Fallbacks: 7, Refusals: 8,
	}}
}
func (live) LogEvidence() []LogEvidence {
	return []LogEvidence{{Endpoint: fraud, Treatment: "b", Test: "worse", Value: -1.5}}
}
func (live) Sources() map[string]bool { return map[string]bool{"fleets": true, "keys": false} }

func TestMetrics(t *testing.T) {
	r := NewRecorder()
	v := r.Version(VersionKey{fraud, "a"})
	v.Record(Request{Code: 200, Duration: 30 * time.Millisecond, Wait: time.Millisecond})
	v.Record(Request{Code: 200, Duration: 300 * time.Millisecond})
	v.Record(Request{Code: 502, Reason: rollout.ReasonScriptError, Bad: true})
	v.Record(Request{Code: ClientGone, Reason: rollout.ReasonClientGone})
	r.Version(VersionKey{Endpoint: fraud}).Record(Request{Code: 401, Reason: rollout.ReasonUnauthorized})
	if n, failed, bad := v.Requests(); n != 3 || failed != 1 || bad != 1 {
		t.Errorf("%d requests, %d failed, %d bad", n, failed, bad)
	}
	registry := prometheus.NewPedanticRegistry()
	if err := registry.Register(NewCollector(r, live{})); err != nil {
		t.Fatal(err)
	}
	w := httptest.NewRecorder()
	promhttp.HandlerFor(registry, promhttp.HandlerOpts{}).ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	text := w.Body.String()
	for _, line := range []string{
		`sluice_requests_total{code="200",endpoint="fraud",namespace="models",reason="",version="a"} 2`,
		`sluice_requests_total{code="401",endpoint="fraud",namespace="models",reason="unauthorized",version=""} 1`,
		`sluice_requests_total{code="499",endpoint="fraud",namespace="models",reason="client_gone",version="a"} 1`,
		`sluice_requests_total{code="502",endpoint="fraud",namespace="models",reason="script_error",version="a"} 1`,
		`sluice_request_duration_seconds_bucket{endpoint="fraud",namespace="models",version="a",le="0.025"} 1`,
		`sluice_request_duration_seconds_bucket{endpoint="fraud",namespace="models",version="a",le="0.05"} 2`,
		`sluice_request_duration_seconds_sum{endpoint="fraud",namespace="models",version="a"} 0.33`,
		`sluice_queue_wait_seconds_count{endpoint="fraud",namespace="models",version="a"} 3`,
		`sluice_in_flight{endpoint="fraud",namespace="models",version="a"} 2`,
		`sluice_queue_length{endpoint="fraud",namespace="models",version="a"} 3`,
		`sluice_share_percent{endpoint="fraud",namespace="models",version="a"} 12.345`,
		`sluice_replicas{endpoint="fraud",namespace="models",state="starting",version="a"} 1`,
		`sluice_desired_replicas{endpoint="fraud",namespace="models",version="a"} 3`,
		`sluice_log_evidence{endpoint="fraud",namespace="models",test="worse",version="b"} -1.5`,
		`sluice_fallback_requests_total{endpoint="fraud",namespace="models",version="a"} 7`,
		`sluice_gate_refusals_total{endpoint="fraud",namespace="models",version="a"} 8`,
		`sluice_source_up{source="keys"} 0`,
		`sluice_telemetry_dropped_total 0`,
	} {
		if !strings.Contains(text, line+"\n") {
			t.Errorf("missing: %s", line)
		}
	}
	if t.Failed() {
		t.Log(text)
	}
}

func TestLabelsAreBounded(t *testing.T) {
	r := NewRecorder()
	v := r.Version(VersionKey{fraud, "a"})
	for code := 200; code < 600; code++ {
		v.Record(Request{Code: code})
		v.Record(Request{Code: code})
	}
	if n := len(*v.series.Load()); n > maxSeries+1 {
		t.Errorf("%d series", n)
	}
	if n := r.dropped.Load(); n != 2*(400-maxSeries) {
		t.Errorf("%d dropped", n)
	}
	if n, _, _ := v.Requests(); n != 798 { // all but the two of 499
		t.Errorf("%d requests", n)
	}
}

type reporter struct {
	report Report
	err    error
}

func (r reporter) Report(context.Context) (Report, error) { return r.report, r.err }

func TestOverHTTP(t *testing.T) {
	want := Report{
		Epoch: "e", Elapsed: time.Minute,
		Versions: []VersionReport{{Endpoint: fraud, Version: "a", InFlightSeconds: 1.5, Requests: 7, AppliedPercent: 12_345}},
		Evidence: []EvidenceReport{{Endpoint: fraud, Treatment: "b", Key: "k", Saved: "s"}},
	}
	r := NewRecorder()
	r.Version(VersionKey{fraud, "a"}).Record(Request{Code: 200, Duration: 20 * time.Millisecond})
	mux := http.NewServeMux()
	mux.Handle(ReportPath, ReportHandler(reporter{report: want}))
	mux.Handle(QueryPath, QueryHandler(r))
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)

	got, err := NewHTTPReporter(server.URL + "/").Report(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	source := NewHTTPSource(server.URL)
	samples := query(t, source, time.Minute)
	if d := cmp.Diff(map[string]Sample{MetricCount: {1, 1}, MetricFailed: {0, 1}, MetricDuration: {20, 1}}, samples); d != "" {
		t.Error(d)
	}
	if _, err := source.Query(t.Context(), fraud, "a", 48*time.Hour); err == nil || !strings.Contains(err.Error(), "window") {
		t.Errorf("got %v", err)
	}

	// Unreachable or failing is an error, never zeros.
	failing := httptest.NewServer(ReportHandler(reporter{err: errors.New("no report")}))
	t.Cleanup(failing.Close)
	if _, err := NewHTTPReporter(failing.URL).Report(t.Context()); err == nil || !strings.Contains(err.Error(), "no report") {
		t.Errorf("got %v", err)
	}
	server.Close()
	if _, err := NewHTTPReporter(server.URL).Report(t.Context()); err == nil {
		t.Error("a report from nobody")
	}
	if _, err := source.Query(t.Context(), fraud, "a", time.Minute); err == nil {
		t.Error("metrics from nobody")
	}
	empty := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = fmt.Fprint(w, "{}") }))
	t.Cleanup(empty.Close)
	if _, err := NewHTTPReporter(empty.URL).Report(t.Context()); err == nil {
		t.Error("a report without an epoch")
	}
}

func BenchmarkObserve(b *testing.B) {
	h := NewHistogram()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			h.Observe(12345 * time.Microsecond)
		}
	})
}

func BenchmarkObserveClientGolang(b *testing.B) {
	h := prometheus.NewHistogram(prometheus.HistogramOpts{Name: "x", Buckets: exposed})
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			h.Observe(0.012345)
		}
	})
}

func BenchmarkRecord(b *testing.B) {
	v := NewRecorder().Version(VersionKey{fraud, "a"})
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			v.Record(Request{Code: 200, Duration: 12345 * time.Microsecond})
		}
	})
}
