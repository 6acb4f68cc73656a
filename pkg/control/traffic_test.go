package control

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-dev/sluice/pkg/telemetry"
	"github.com/sluice-dev/sluice/rollout"
)

// TestTraffic: counts of all routers over the last minute, restarts of routers included, and the durations of the slowest.
func TestTraffic(t *testing.T) {
	e := &rollout.Endpoint{Metadata: rollout.Metadata{Namespace: key.Namespace, Name: key.Name}, Spec: rollout.Spec{Versions: []rollout.Version{{Name: "a"}, {Name: "b"}, {Name: "idle"}}}}
	began := time.Date(2026, 11, 26, 9, 0, 0, 0, time.UTC)
	report := func(epoch string, requests, failed int64, p99 float64) telemetry.Report {
		return telemetry.Report{Epoch: epoch, Versions: []telemetry.VersionReport{
			{Endpoint: key, Version: "a", Requests: requests, Failed: failed, P50Seconds: p99 / 4, P99Seconds: p99},
			{Endpoint: key, Version: "idle"},
			{Endpoint: rollout.Key{Namespace: "other", Name: "other"}, Version: "a", Requests: 7 * requests},
		}}
	}
	var tr traffic
	var n int64
	for s := range int64(200) {
		now := began.Add(time.Duration(s) * time.Second)
		n += 10 // at the first router, which had 10,000 before; 5 at the second, which begins again after 100 s
		second := report("two", 5*s, s, 0.080)
		if s >= 100 {
			second = report("three", 5*(s-100), 0, 0.080)
		}
		tr.add([]telemetry.Report{report("one", 10_000+n, 0, 0.020), second}, now)
		st := tr.status(e, now)
		switch s {
		case 0:
			if st != nil {
				t.Errorf("after one look: %+v", st)
			}
		case 30:
			want := &rollout.TrafficStatus{At: now, Seconds: 30, Versions: []rollout.VersionTraffic{{Name: "a", Requests: 30 * 15, Failed: 30, P50: "20.0", P99: "80.0"}}}
			if diff := cmp.Diff(want, st); diff != "" {
				t.Errorf("after 30 s (-want +got):\n%s", diff)
			}
		case 180:
			if st.Seconds < 60 || st.Seconds > 65 || st.Versions[0].Requests != int64(st.Seconds)*15 || st.Versions[0].Failed != 0 {
				t.Errorf("after three minutes: %+v", st)
			}
			if m := tr.versions[key]["a"]; len(m.past) > 15 {
				t.Errorf("%d counts are kept", len(m.past))
			}
		case 190:
			if late := tr.status(e, now.Add(staleAfter+time.Second)); late != nil {
				t.Errorf("without reports: %+v", late)
			}
		}
	}
	tr.add(nil, began.Add(201*time.Second))
	if len(tr.versions)+len(tr.last) > 0 {
		t.Errorf("what no router reports is remembered: %v, %v", tr.versions, tr.last)
	}
}

// TestTrafficInStatus: it comes by itself, seldom, and goes when it ends.
func TestTrafficInStatus(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		defer w.kill()
		w.apply(rollout.Deploy{Version: version("a", 1)})
		time.Sleep(2 * time.Second)
		var requests int64
		w.routers.set(func() {
			w.routers.versions = func() []telemetry.VersionReport {
				return []telemetry.VersionReport{{Endpoint: key, Version: "a", Requests: requests, P99Seconds: 0.5}}
			}
		})
		time.Sleep(time.Second)
		writes, last := 0, w.get().Metadata.ResourceVersion
		for range 120 {
			w.routers.set(func() { requests += 20 })
			time.Sleep(time.Second)
			if is := w.get().Metadata.ResourceVersion; is != last {
				writes, last = writes+1, is
			}
		}
		st := w.get().Status.Traffic
		if st == nil || len(st.Versions) != 1 || st.Versions[0].Requests < 900 || st.Versions[0].P99 != "500.0" {
			t.Fatalf("status %+v", st)
		}
		if writes > 12 {
			t.Errorf("%d writes in two minutes", writes)
		}
		time.Sleep(3 * time.Minute)
		if st := w.get().Status.Traffic; st != nil {
			t.Errorf("after three idle minutes: %+v", st)
		}
		last = w.get().Metadata.ResourceVersion
		time.Sleep(3 * time.Minute)
		if is := w.get().Metadata.ResourceVersion; is != last {
			t.Error("an idle endpoint is written")
		}
	})
}
