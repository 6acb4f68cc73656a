package telemetry

import (
	"strconv"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sluice-dev/sluice/rollout"
)

// Gauges are what a router knows of a version at the moment of a scrape.
type Gauges struct {
	VersionKey
	InFlight, Queued int64
	// Share in force after fallbacks.
	Share rollout.Percent
	// Replicas by state, and how many are asked for; negative if not known.
	Replicas map[string]int
	Desired  int
	// Fallbacks are requests that came because their version could not serve;
	// Refusals are requests that a replica refused and the router picked again. Both cumulative.
	Fallbacks, Refusals int64
}

// LogEvidence is the natural logarithm of one test's e-value.
type LogEvidence struct {
	Endpoint  rollout.Key
	Treatment string
	// Test is the rule it belongs to: worse, not_worse or bounded.
	Test  string
	Value float64
}

// Live is the present state of a router, for its metrics.
type Live interface {
	Gauges() []Gauges
	LogEvidence() []LogEvidence
	// Sources are what the router reads, and whether each could be read the last time.
	Sources() map[string]bool
}

// Collector exports a recorder and a router's state under the names in CONTRACTS.md.
// All is read at the scrape; nothing is spent on it before.
type Collector struct {
	recorder *Recorder
	live     Live

	requests, duration, wait, inFlight, queue, share, replicas, desired, evidence,
	dropped, fallbacks, refusals, sources, routing *prometheus.Desc
}

// NewCollector for a registry.
func NewCollector(r *Recorder, live Live) *Collector {
	version := []string{"namespace", "endpoint", "version"}
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("sluice_"+name, help, labels, nil)
	}
	with := func(more ...string) []string { return append(version[:3:3], more...) }
	return &Collector{
		recorder: r, live: live,
		requests:  desc("requests_total", "Requests by the status their client got (499: it did not wait) and the reason if the router or the replica failed them.", with("code", "reason")...),
		duration:  desc("request_duration_seconds", "Time from a request's head to its answer's end.", version...),
		wait:      desc("queue_wait_seconds", "Time that requests waited for a slot.", version...),
		inFlight:  desc("in_flight", "Requests at replicas now.", version...),
		queue:     desc("queue_length", "Requests waiting for a slot now.", version...),
		share:     desc("share_percent", "Share of the endpoint's traffic in force, after fallbacks.", version...),
		replicas:  desc("replicas", "Replicas by state.", with("state")...),
		desired:   desc("desired_replicas", "Replicas asked for.", version...),
		evidence:  desc("log_evidence", "Natural logarithm of the e-value of a test on a treatment, from this router's requests.", with("test")...),
		dropped:   desc("telemetry_dropped_total", "Telemetry that was lost: requests counted under code \"other\"."),
		fallbacks: desc("fallback_requests_total", "Requests that got the version because their own could not serve.", version...),
		refusals:  desc("gate_refusals_total", "Requests that a replica's gate refused and that were picked again.", version...),
		routing:   desc("routing_seconds", "Time that the router added to requests that a replica answered: without the wait for a slot, the replica's time and the client's."),
		sources:   desc("source_up", "Whether what the router reads could be read the last time; it serves on with its last good table.", "source"),
	}
}

// Describe implements prometheus.Collector.
func (c *Collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		c.requests, c.duration, c.wait, c.inFlight, c.queue, c.share, c.replicas, c.desired, c.evidence,
		c.dropped, c.fallbacks, c.refusals, c.sources, c.routing,
	} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c *Collector) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, value float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value, labels...)
	}
	count := func(d *prometheus.Desc, value float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, value, labels...)
	}
	for _, v := range c.recorder.all() {
		ns, ep, name := v.key.Endpoint.Namespace, v.key.Endpoint.Name, v.key.Version
		for _, s := range *v.series.Load() {
			code := "other"
			if s.code != otherCode {
				code = strconv.Itoa(s.code)
			}
			count(c.requests, float64(s.n.load()), ns, ep, name, code, string(s.reason))
		}
		h := v.histograms.Load()
		if h == nil || name == "" {
			continue
		}
		for _, x := range []struct {
			desc *prometheus.Desc
			h    *Histogram
		}{{c.duration, h.duration}, {c.wait, h.wait}} {
			n := x.h.counts()
			ch <- prometheus.MustNewConstHistogram(x.desc, n.n, float64(n.nanos)/1e9, n.cumulative(), ns, ep, name)
		}
	}
	for _, g := range c.live.Gauges() {
		ns, ep, name := g.Endpoint.Namespace, g.Endpoint.Name, g.Version
		gauge(c.inFlight, float64(g.InFlight), ns, ep, name)
		gauge(c.queue, float64(g.Queued), ns, ep, name)
		gauge(c.share, float64(g.Share)/float64(rollout.OnePercent), ns, ep, name)
		count(c.fallbacks, float64(g.Fallbacks), ns, ep, name)
		count(c.refusals, float64(g.Refusals), ns, ep, name)
		for state, n := range g.Replicas {
			gauge(c.replicas, float64(n), ns, ep, name, state)
		}
		if g.Desired >= 0 {
			gauge(c.desired, float64(g.Desired), ns, ep, name)
		}
	}
	for _, x := range c.live.LogEvidence() {
		gauge(c.evidence, x.Value, x.Endpoint.Namespace, x.Endpoint.Name, x.Treatment, x.Test)
	}
	for source, up := range c.live.Sources() {
		value := 0.0
		if up {
			value = 1
		}
		gauge(c.sources, value, source)
	}
	n := c.recorder.own.routing.counts()
	ch <- prometheus.MustNewConstHistogram(c.routing, n.n, float64(n.nanos)/1e9, n.cumulative())
	count(c.dropped, float64(c.recorder.dropped.Load()))
}
