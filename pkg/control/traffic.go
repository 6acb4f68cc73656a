package control

import (
	"strconv"
	"time"

	"github.com/sluice-dev/sluice/pkg/telemetry"
	"github.com/sluice-dev/sluice/rollout"
)

const (
	// trafficWindow is what the counts in the status are over, and trafficStep how exactly.
	trafficWindow = time.Minute
	trafficStep   = 5 * time.Second
	// trafficEvery bounds how often traffic alone rewrites a status.
	trafficEvery = 15 * time.Second
)

// counted are cumulative counts.
type counted struct{ requests, failed int64 }

// counter names what one router run counts.
type counter struct {
	epoch    string
	endpoint rollout.Key
	version  string
}

// measured is what all routers counted of one version since this process began, now and at steps of the window.
type measured struct {
	total    counted
	p50, p99 float64
	past     []pastCount
}

type pastCount struct {
	at time.Time
	counted
}

// traffic adds up over routers what their reports say of versions. The caller has the lock.
type traffic struct {
	last     map[counter]counted
	versions map[rollout.Key]map[string]*measured
	at       time.Time
}

// add the reports of one moment. What a router had counted before it was first seen belongs to no known time, and does not count.
func (t *traffic) add(reports []telemetry.Report, now time.Time) {
	last := make(map[counter]counted, len(t.last))
	versions := map[rollout.Key]map[string]*measured{}
	for _, r := range reports {
		for i := range r.Versions {
			v := &r.Versions[i]
			of := versions[v.Endpoint]
			if of == nil {
				of = map[string]*measured{}
				versions[v.Endpoint] = of
			}
			m := of[v.Version]
			if m == nil {
				if m = t.versions[v.Endpoint][v.Version]; m == nil {
					m = &measured{past: []pastCount{{at: now}}}
				}
				m.p50, m.p99 = 0, 0
				of[v.Version] = m
			}
			c, is := counter{r.Epoch, v.Endpoint, v.Version}, counted{v.Requests, v.Failed}
			if was, seen := t.last[c]; seen {
				m.total.requests += max(is.requests-was.requests, 0)
				m.total.failed += max(is.failed-was.failed, 0)
			}
			last[c] = is
			m.p50, m.p99 = max(m.p50, v.P50Seconds), max(m.p99, v.P99Seconds)
		}
	}
	for _, of := range versions {
		for _, m := range of {
			m.step(now)
		}
	}
	t.last, t.versions, t.at = last, versions, now
}

// step keeps the window: one count that is as old as it or older, and those since.
func (m *measured) step(now time.Time) {
	if n := len(m.past); now.Sub(m.past[n-1].at) < trafficStep {
		return
	}
	m.past = append(m.past, pastCount{now, m.total})
	for len(m.past) > 1 && now.Sub(m.past[1].at) >= trafficWindow {
		m.past = m.past[1:]
	}
}

// status of an endpoint; nil where no router said anything of it lately, or nothing happened.
func (t *traffic) status(e *rollout.Endpoint, now time.Time) *rollout.TrafficStatus {
	if now.Sub(t.at) > staleAfter {
		return nil
	}
	out := &rollout.TrafficStatus{At: t.at.UTC().Truncate(time.Second)}
	for i := range e.Spec.Versions {
		name := e.Spec.Versions[i].Name
		m := t.versions[e.Key()][name]
		if m == nil {
			continue
		}
		was := m.past[0]
		out.Seconds = max(out.Seconds, int(t.at.Sub(was.at).Round(time.Second)/time.Second))
		if v := (rollout.VersionTraffic{Name: name, Requests: m.total.requests - was.requests, Failed: m.total.failed - was.failed}); v.Requests > 0 {
			v.P50, v.P99 = milliseconds(m.p50), milliseconds(m.p99)
			out.Versions = append(out.Versions, v)
		}
	}
	if len(out.Versions) == 0 {
		return nil
	}
	return out
}

func milliseconds(seconds float64) string {
	if seconds <= 0 {
		return ""
	}
	return strconv.FormatFloat(seconds*1000, 'f', 1, 64)
}
