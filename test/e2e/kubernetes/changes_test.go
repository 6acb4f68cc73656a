package kubernetes

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sluice-dev/sluice/pkg/cluster/kube"
	"github.com/sluice-dev/sluice/pkg/cluster/kube/v1alpha1"
	"github.com/sluice-dev/sluice/pkg/telemetry"
	"github.com/sluice-dev/sluice/rollout"
)

// scale is 1 in `make test`, more in `make bench`: SLUICE_E2E_SCALE.
func scale() int {
	if n, err := strconv.Atoi(os.Getenv("SLUICE_E2E_SCALE")); err == nil && n > 0 {
		return n
	}
	return 1
}

// pair deploys two versions without a strategy that moves them by itself: one is control, two a treatment.
func (in *installation) pair(t *testing.T, endpoint string) {
	t.Helper()
	in.remove(t, endpoint)
	t.Cleanup(func() { in.remove(t, endpoint) })
	in.must(t, "deploy", project(t, endpoint, "one", ""), "--version", "one")
	in.must(t, "hold", endpoint)
	in.must(t, "deploy", project(t, endpoint, "two", "    # another\n"), "--version", "two")
}

// routers are the pods that serve.
func (in *installation) routers(t *testing.T) []corev1.Pod {
	t.Helper()
	var pods corev1.PodList
	if err := in.client.List(t.Context(), &pods, client.InNamespace(system), client.MatchingLabels{"app.kubernetes.io/component": "router"}); err != nil {
		t.Fatal(err)
	}
	return slices.DeleteFunc(pods.Items, func(p corev1.Pod) bool { return p.DeletionTimestamp != nil || p.Status.PodIP == "" })
}

// TestEditToEffect: a percentile written to the API server is in force at every router soon.
func TestEditToEffect(t *testing.T) {
	in := install(t)
	in.pair(t, "edits")
	var reporters []*telemetry.HTTPReporter
	for _, p := range in.routers(t) {
		reporters = append(reporters, telemetry.NewHTTPReporter("http://"+net.JoinHostPort(p.Status.PodIP, "9090")))
	}
	if len(reporters) != 2 {
		t.Fatalf("%d routers, want two", len(reporters))
	}
	var took []time.Duration
	for i := range 50 * scale() {
		percent := rollout.Percent(1+i%40) * rollout.OnePercent
		patch := fmt.Sprintf(`[{"op":"replace","path":"/spec/versions/1/trafficPercentile","value":%s}]`, percent)
		m := &v1alpha1.ModelEndpoint{}
		m.Namespace, m.Name = models, "edits"
		began := time.Now()
		if err := in.client.Patch(t.Context(), m, client.RawPatch(types.JSONPatchType, []byte(patch)), client.FieldOwner("e2e")); err != nil {
			t.Fatal(err)
		}
		for _, r := range reporters {
			eventually(t, 10*time.Second, fmt.Sprintf("%s per cent at a router", percent), func() error {
				report, err := r.Report(t.Context())
				if err != nil {
					return err
				}
				for _, v := range report.Versions {
					if v.Endpoint.Name == "edits" && v.Version == "two" && v.AppliedPercent == percent {
						return nil
					}
				}
				return errors.New("not yet")
			})
		}
		took = append(took, time.Since(began))
	}
	slices.Sort(took)
	p99 := took[len(took)*99/100]
	t.Logf("edit to effect at both routers: median %s, p99 %s of %d edits (polled every 50 ms)", took[len(took)/2].Round(time.Millisecond), p99.Round(time.Millisecond), len(took))
	if p99 > time.Second {
		t.Errorf("p99 is %s, want under a second", p99)
	}
	// A foreign edit of a shift field is recorded and holds.
	e := in.endpoint(t, "edits")
	if !slices.ContainsFunc(append(e.Status.History, e.Spec.Changes...), func(c rollout.Change) bool { return c.Reason == rollout.ReasonForeignEdit && c.Actor == "e2e" }) {
		t.Errorf("no record of the edits by e2e: %+v", e.Spec.Changes)
	}
}

// clients send one request after the other until the test ends.
func clients(t *testing.T, n int, endpoint, key string) {
	ctx, stop := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	t.Cleanup(func() { stop(); wg.Wait() })
	c := &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: n}}
	for range n {
		wg.Go(func() {
			for ctx.Err() == nil {
				if status, _, _, err := score(ctx, c, endpoint, key, []byte(`{"n": 1}`)); err != nil || status != http.StatusOK {
					time.Sleep(50 * time.Millisecond)
				}
			}
		})
	}
}

// TestLoadStep: replicas are asked for soon after a step of load.
func TestLoadStep(t *testing.T) {
	in := install(t)
	in.remove(t, "step")
	defer in.remove(t, "step")
	in.must(t, "deploy", project(t, "step", "one", "    import time; time.sleep(0.5)\n"), "--version", "one")
	key := in.key(t, "step")
	began := time.Now()
	clients(t, 6, "step", key)
	eventually(t, 20*time.Second, "more replicas are asked for", func() error {
		if n := *in.deployment(t, "step").Spec.Replicas; n <= 1 {
			return fmt.Errorf("%d replicas", n)
		}
		return nil
	})
	asked := time.Since(began)
	eventually(t, time.Minute, "a second replica serves", func() error {
		if n := in.deployment(t, "step").Status.ReadyReplicas; n < 2 {
			return fmt.Errorf("%d ready", n)
		}
		return nil
	})
	serving := time.Since(began)
	// Kubernetes' own part: from the newest pod's creation to its readiness.
	var pods corev1.PodList
	if err := in.client.List(t.Context(), &pods, client.InNamespace(models), client.MatchingLabels{kube.LabelEndpoint: "step"}); err != nil {
		t.Fatal(err)
	}
	var own time.Duration
	for _, p := range pods.Items {
		for _, x := range p.Status.Conditions {
			if x.Type == corev1.PodReady && x.Status == corev1.ConditionTrue {
				own = max(own, x.LastTransitionTime.Sub(p.CreationTimestamp.Time))
			}
		}
	}
	t.Logf("load step: scale written after %s (polled every 50 ms), second replica ready after %s; a pod takes %s from creation to ready (whole seconds)", asked.Round(10*time.Millisecond), serving.Round(10*time.Millisecond), own)
	if asked > 3*time.Second {
		t.Errorf("the first scale was written after %s", asked)
	}
}

// capacity of an endpoint in requests per second, by closed loops.
func capacity(t *testing.T, endpoint, key string) float64 {
	t.Helper()
	c := &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: 20}}
	var n atomic.Int64
	var wg sync.WaitGroup
	const d = 4 * time.Second
	for end, i := time.Now().Add(d), 0; i < 4; i++ {
		wg.Go(func() {
			for time.Now().Before(end) {
				if status, _, _, err := score(t.Context(), c, endpoint, key, []byte(`{"n": 1}`)); err == nil && status == http.StatusOK {
					n.Add(1)
				}
			}
		})
	}
	wg.Wait()
	return float64(n.Load()) / d.Seconds()
}

// TestChangesLoseNoRequest: an open loop at 60 per cent of capacity, with answers checked, while
// everything is changed that may change.
func TestChangesLoseNoRequest(t *testing.T) {
	in := install(t)
	// A model of 5 ms and one replica each: slots, not processors, are what is short.
	in.remove(t, "changes")
	t.Cleanup(func() { in.remove(t, "changes") })
	const body = "    import time; time.sleep(0.005)\n"
	in.must(t, "deploy", project(t, "changes", "one", body), "--version", "one")
	in.must(t, "hold", "changes")
	in.must(t, "deploy", project(t, "changes", "two", body), "--version", "two")
	key := in.key(t, "changes")
	most := capacity(t, "changes", key)
	l := stream(t, "changes", key, max(1, int(0.6*most)))
	began := time.Now()
	step := func(what string, f func()) {
		was := l.failed.Load()
		f()
		t.Logf("%6.1f s: %s; %d requests, %d failed in it", time.Since(began).Seconds(), what, l.sent.Load(), l.failed.Load()-was)
	}
	for range scale() {
		in.must(t, "update", "changes", "two", "--type", "treatment") // a rollback takes the role
		step("traffic two 40", func() { in.must(t, "traffic", "changes", "two", "40", "--wait"); time.Sleep(2 * time.Second) })
		step("settings that replace pods", func() {
			in.must(t, "update", "changes", "one", "--env", "X="+strconv.FormatInt(time.Now().UnixNano(), 36))
			time.Sleep(time.Second)
			eventually(t, 2*time.Minute, "the new pods serve", func() error {
				st := in.endpoint(t, "changes").Status.Version("one")
				if st.OutdatedReplicas > 0 || st.ReadyReplicas == 0 {
					return fmt.Errorf("status is %+v", st)
				}
				return nil
			})
			time.Sleep(8 * time.Second) // the old ones drain
		})
		step("rolling update of both routers", func() {
			var d appsv1.Deployment
			k := client.ObjectKey{Namespace: system, Name: "sluice-router"}
			if err := in.client.Get(t.Context(), k, &d); err != nil {
				t.Fatal(err)
			}
			patch := fmt.Sprintf(`{"spec":{"template":{"metadata":{"annotations":{"e2e/restarted":"%d"}}}}}`, time.Now().UnixNano())
			if err := in.client.Patch(t.Context(), &d, client.RawPatch(types.StrategicMergePatchType, []byte(patch))); err != nil {
				t.Fatal(err)
			}
			eventually(t, 3*time.Minute, "both routers are new", func() error {
				if err := in.client.Get(t.Context(), k, &d); err != nil {
					return err
				}
				if s := d.Status; s.ObservedGeneration < d.Generation || s.UpdatedReplicas != 2 || s.ReadyReplicas != 2 || s.Replicas != 2 {
					return fmt.Errorf("status is %+v", s)
				}
				return nil
			})
			time.Sleep(8 * time.Second)
		})
		step("scale-up and down", func() {
			in.must(t, "update", "changes", "two", "--replicas", "3")
			time.Sleep(8 * time.Second)
			// Not a fixed count: what is promoted next may need to grow first.
			in.must(t, "update", "changes", "two", "--min-replicas", "1", "--max-replicas", "3")
			time.Sleep(8 * time.Second)
		})
		step("promotion", func() { in.must(t, "promote", "changes", "two", "--wait"); time.Sleep(3 * time.Second) })
		step("rollback", func() { in.must(t, "rollback", "changes", "two"); time.Sleep(3 * time.Second) })
	}
	for l.sent.Load() < int64(5000*scale()) {
		step("more traffic two 30 and 60", func() {
			in.must(t, "traffic", "changes", "two", "30", "--wait")
			time.Sleep(2 * time.Second)
			in.must(t, "traffic", "changes", "two", "60", "--wait")
			time.Sleep(2 * time.Second)
		})
	}
	step("deletion of the treatment", func() { in.must(t, "delete", "changes", "two"); time.Sleep(8 * time.Second) })
	l.stop()
	t.Logf("capacity %.0f requests/s; open loop at %d; %d requests, %d failed; by version %v", most, int(0.6*most), l.sent.Load(), l.failed.Load(), l.versions)
	if l.failed.Load() != 0 {
		t.Errorf("%d requests failed: %v, the first: %s", l.failed.Load(), l.kinds, l.first)
	}
}

// TestWithoutAPIServer: routers serve on while the API server is gone, and what is written once it
// is back takes effect.
func TestWithoutAPIServer(t *testing.T) {
	in := install(t)
	tool := os.Getenv("SLUICE_TEST_CLUSTER")
	if tool == "" {
		t.Skip("needs a cluster that may be broken: SLUICE_TEST_CLUSTER names the tool of test/cluster")
	}
	run := func(args ...string) {
		t.Helper()
		if out, err := exec.Command(tool, args...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", args, err, out)
		}
	}
	in.pair(t, "outage")
	in.must(t, "traffic", "outage", "two", "20", "--wait")
	key := in.key(t, "outage")
	l := stream(t, "outage", key, 30)
	time.Sleep(3 * time.Second)
	run("kill", "kube-apiserver")
	down := time.Now()
	time.Sleep(time.Minute / 2 * time.Duration(1+min(scale()-1, 1))) // half a minute, a whole one at full N
	during := l.sent.Load()
	run("start", "kube-apiserver")
	back := time.Now()
	t.Logf("the API server was gone for %s, %d requests meanwhile, %d failed", time.Since(down).Round(time.Second), during, l.failed.Load())
	eventually(t, time.Minute, "a percentile is set", func() error { _, err := in.sluice("traffic", "outage", "two", "50", "--force"); return err })
	eventually(t, time.Minute, "it is applied", func() error {
		if p := in.endpoint(t, "outage").Status.Version("two").EffectivePercent; p != 50*rollout.OnePercent {
			return fmt.Errorf("it is %s", p)
		}
		return nil
	})
	// Whatever routers watch is up to date again, so that a new version is found by both.
	in.must(t, "deploy", project(t, "outage", "three", "    # again\n"), "--version", "three", "--percent", "5")
	t.Logf("a version that was deployed %s after the API server's return has its share", time.Since(back).Round(time.Second))
	time.Sleep(20 * time.Second * time.Duration(1+min(scale()-1, 1)))
	l.stop()
	t.Logf("%d requests, %d failed; by version %v", l.sent.Load(), l.failed.Load(), l.versions)
	if l.failed.Load() != 0 {
		t.Errorf("%d requests failed: %v, the first: %s", l.failed.Load(), l.kinds, l.first)
	}
}

// TestLeaderKilled: another router takes the autoscaler over, and what it finds is scaled once.
func TestLeaderKilled(t *testing.T) {
	in := install(t)
	in.remove(t, "leads")
	t.Cleanup(func() { in.remove(t, "leads") })
	dir := project(t, "leads", "one", "    import time; time.sleep(0.2)\n")
	edit(t, dir, "maxReplicas: 3", "maxReplicas: 9")
	in.must(t, "deploy", dir, "--version", "one")
	key := in.key(t, "leads")
	// Two busy clients need ceil(2 / 0.7) replicas.
	clients(t, 2, "leads", key)
	in.becomes(t, "leads", 3)
	in.stays(t, "leads", 3)

	holder := func() string {
		var lease coordinationv1.Lease
		if err := in.client.Get(t.Context(), client.ObjectKey{Namespace: system, Name: "sluice-autoscaler"}, &lease); err != nil {
			t.Fatal(err)
		}
		if lease.Spec.HolderIdentity == nil {
			return ""
		}
		return *lease.Spec.HolderIdentity
	}
	var was string
	var pods []corev1.Pod
	var i int
	eventually(t, time.Minute, "a leader that stays", func() error {
		was, pods = holder(), in.routers(t)
		i = slices.IndexFunc(pods, func(p corev1.Pod) bool { return strings.HasPrefix(was, p.Name+"_") })
		if i < 0 {
			return fmt.Errorf("the lease is held by %q", was)
		}
		return nil
	})
	generation := in.deployment(t, "leads").Generation
	began := time.Now()
	if err := in.client.Delete(t.Context(), &pods[i], client.GracePeriodSeconds(0)); err != nil { // as kill -9
		t.Fatal(err)
	}
	// Nobody leads now, and the need becomes ceil(4 / 0.7).
	clients(t, 2, "leads", key)
	var took time.Duration
	counts := []int32{3}
	for end := began.Add(time.Minute); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if took == 0 {
			if now := holder(); now != was && now != "" {
				took = time.Since(began)
				end = time.Now().Add(20 * time.Second)
			}
		}
		if n := *in.deployment(t, "leads").Spec.Replicas; n != counts[len(counts)-1] {
			counts = append(counts, n)
		}
	}
	writes := in.deployment(t, "leads").Generation - generation
	t.Logf("another router leads after %s; replicas asked for: %v in %d writes", took.Round(100*time.Millisecond), counts, writes)
	if took == 0 || took > 20*time.Second {
		t.Errorf("another router led after %s, want 20 s at most", took)
	}
	if !slices.IsSorted(counts) || counts[len(counts)-1] != 6 || writes != int64(len(counts)-1) {
		t.Errorf("replicas were %v by %d writes, want them to grow to 6, each count written once", counts, writes)
	}
}
