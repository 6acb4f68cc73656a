// Package telemetry measures what versions do: counters, integrals and
// histograms that the request path feeds, reports that the autoscaler and the
// control role read, exporters, and the metric-source port.
package telemetry

import (
	"context"
	"time"

	"github.com/sluice-dev/sluice/rollout"
)

// Report is all that one router process knows at a moment. Every number but
// gauges is cumulative since the router's start (its epoch), so that any number
// of readers can take differences over any interval, and a lost report loses nothing.
type Report struct {
	// Epoch names this run of the router; it changes when the process restarts.
	Epoch string `json:"epoch"`
	// Elapsed is the router's monotonic time since its start.
	Elapsed  time.Duration    `json:"elapsed"`
	Router   RouterReport     `json:"router"`
	Versions []VersionReport  `json:"versions"`
	Evidence []EvidenceReport `json:"evidence"`
}

// RouterReport is what the router process itself uses and adds.
type RouterReport struct {
	// CPUSeconds that the process has used; cumulative. 0 where the system does not tell.
	CPUSeconds float64 `json:"cpuSeconds"`
	// Procs is GOMAXPROCS now. It follows the container's CPU limit by itself, changes in place
	// included: the Go runtime (1.25 and later) looks at the cgroup's limit every second or so.
	Procs int `json:"procs"`
	// Routed requests over about the last 10 s, and the 99th percentile of the time that the router
	// added to them: from the head to the answer, without the wait for a slot, the replica's time and the
	// client's with its body; 0 without requests.
	Routed            int64   `json:"routed"`
	RoutingP99Seconds float64 `json:"routingP99Seconds"`
	// CPUWaitP99Seconds is the 99th percentile, over the same time, of how long goroutines that were ready to
	// run waited for a processor. A router short of CPU is slow to notice that a request or an answer has come; no
	// clock that the request itself reads tells, it would count as the client's time or the replica's.
	CPUWaitP99Seconds float64 `json:"cpuWaitP99Seconds"`
}

// P99 is the time that a request of the slowest hundredth waits for the router: the router's
// own steps and the wait for a processor.
func (r RouterReport) P99() time.Duration {
	return time.Duration((r.RoutingP99Seconds + r.CPUWaitP99Seconds) * float64(time.Second))
}

// VersionReport is one version's measurements.
type VersionReport struct {
	Endpoint rollout.Key `json:"endpoint"`
	Version  string      `json:"version"`

	// InFlightSeconds and QueuedSeconds are integrals over time of the requests in
	// flight at replicas and in the queue, in request-seconds.
	InFlightSeconds float64 `json:"inFlightSeconds"`
	QueuedSeconds   float64 `json:"queuedSeconds"`
	// Refused requests: 503s made by the router because no slot came free in time.
	Refused int64 `json:"refused"`
	// ServiceSeconds is the mean time that a request holds its slot: an exponentially weighted mean; 0 when unknown.
	ServiceSeconds float64 `json:"serviceSeconds"`
	// InFlight and Queued now.
	InFlight int64 `json:"inFlight"`
	Queued   int64 `json:"queued"`

	// Requests that got an answer or were refused, Failed of them with status ≥ 400 or cut off,
	// Bad of them bad events in the sense of the verdict.
	Requests int64 `json:"requests"`
	Failed   int64 `json:"failed"`
	Bad      int64 `json:"bad"`
	// P50Seconds and P99Seconds of request durations over about the last 10 s; 0 without requests.
	P50Seconds float64 `json:"p50Seconds"`
	P99Seconds float64 `json:"p99Seconds"`
	// AppliedPercent is the share in force after fallbacks.
	AppliedPercent rollout.Percent `json:"appliedPercent"`
}

// EvidenceReport is one treatment's cumulative evidence in this epoch.
type EvidenceReport struct {
	Endpoint  rollout.Key `json:"endpoint"`
	Treatment string      `json:"treatment"`
	// Key of the comparison: treatment revision, control revision, parameters.
	Key string `json:"key"`
	// Saved is the exact state, as rollout/verdict saves it.
	Saved string `json:"saved"`
}

// Reporter gives reports; a router in this process, or one behind its admin port.
type Reporter interface {
	Report(ctx context.Context) (Report, error)
}

// The metrics a Source knows, with Application Insights' names.
const (
	MetricCount    = "requests/count"
	MetricFailed   = "requests/failed"
	MetricDuration = "requests/duration"
)

// Sample is one metric over a window: a sum for counts, the mean in milliseconds
// for the duration, with the number of requests it rests on.
type Sample struct {
	Value float64
	Count int64
}

// Source is the metric-source port: the router is its first implementation.
type Source interface {
	// Query gives the metrics of one version over the window that ends now. A metric that the
	// source does not know about is absent; an unreachable source is an error, never zeros.
	Query(ctx context.Context, endpoint rollout.Key, version string, window time.Duration) (map[string]Sample, error)
}
