package kubernetes

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sluice-dev/sluice/rollout"
)

// project is a model repository whose script answers {"n": N} with {"n": N, "version": tag}.
func project(t *testing.T, endpoint, tag, extra string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{
		"score.py": "import json\nTAG = " + strconv.Quote(tag) + "\ndef init():\n    pass\ndef run(data):\n    d = json.loads(data)\n" + extra + "    return {\"n\": d[\"n\"], \"version\": TAG}\n",
		"one.json": `{"n": 0}`,
		"sluice.yaml": "apiVersion: sluice.dev/v1alpha1\nkind: Project\nendpoint: " + endpoint + "\nscoring: {entryScript: score.py}\n" +
			"test: {request: one.json, expect: {status: 200}}\n" +
			"version: {resources: {cpu: 50m, memory: 32Mi}, autoscale: {minReplicas: 1, maxReplicas: 3}}\n" +
			"strategy: {steps: [{percent: 10, minRequests: 50}, {percent: 50, minRequests: 50}]}\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// edit the manifest of a project.
func edit(t *testing.T, dir, old, to string) {
	t.Helper()
	path := filepath.Join(dir, "sluice.yaml")
	b, err := os.ReadFile(path)
	if err != nil || !strings.Contains(string(b), old) {
		t.Fatalf("%s has no %q: %v", path, old, err)
	}
	if err := os.WriteFile(path, []byte(strings.Replace(string(b), old, to, 1)), 0o644); err != nil {
		t.Fatal(err)
	}
}

// load is a constant stream of checked requests.
type load struct {
	sent, failed, bad atomic.Int64
	mu                sync.Mutex
	first             string
	versions          map[string]int
	// kinds of failures, counted, and when the first and the last one came.
	kinds          map[string]int
	failedAt, last time.Time
	stop           func()
}

func stream(t *testing.T, endpoint, key string, perSecond int) *load {
	t.Helper()
	l := &load{versions: map[string]int{}, kinds: map[string]int{}}
	ctx, cancel := context.WithCancel(context.Background())
	c := &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: 200}}
	var wg sync.WaitGroup
	wg.Go(func() {
		tick := time.NewTicker(time.Second / time.Duration(perSecond))
		defer tick.Stop()
		for n := 1; ; n++ {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			wg.Go(func() {
				l.sent.Add(1)
				status, version, answer, err := score(context.Background(), c, endpoint, key, fmt.Appendf(nil, `{"n": %d}`, n))
				l.mu.Lock()
				defer l.mu.Unlock()
				l.versions[version]++
				switch {
				case err == nil && status == http.StatusBadGateway && strings.Contains(string(answer), "script_error"):
					l.bad.Add(1) // the bad treatment's own
				case err != nil || status != http.StatusOK || !strings.Contains(string(answer), fmt.Sprintf(`"n": %d,`, n)):
					kind := fmt.Sprintf("%d", status)
					if _, code, found := strings.Cut(string(answer), `"code":"`); found {
						kind, _, _ = strings.Cut(code, `"`)
					}
					if err != nil {
						kind = err.Error()[strings.LastIndex(err.Error(), ": ")+1:]
					}
					l.kinds[version+" "+kind]++
					if l.last = time.Now(); l.failed.Add(1) == 1 {
						l.failedAt = l.last
						l.first = fmt.Sprintf("status %d from %q: %s %v", status, version, answer, err)
					}
				}
			})
		}
	})
	l.stop = sync.OnceFunc(func() { cancel(); wg.Wait() })
	t.Cleanup(l.stop)
	return l
}

// TestShipJudgePromoteRollBack is the whole story on a cluster: a project becomes pods behind the
// router's Service, a good treatment is promoted by the verdict and a bad one rolled back.
func TestShipJudgePromoteRollBack(t *testing.T) {
	in := install(t)
	in.remove(t, "story")
	began := time.Now()
	in.must(t, "deploy", project(t, "story", "one", ""), "--version", "one")
	t.Logf("the first version serves %s after its deploy began", time.Since(began).Round(100*time.Millisecond))
	defer in.remove(t, "story")
	key := in.key(t, "story")
	c := &http.Client{Timeout: 10 * time.Second}
	if status, _, answer, err := score(t.Context(), c, "story", "wrong", []byte(`{"n": 1}`)); err != nil || status != http.StatusUnauthorized {
		t.Errorf("with a wrong key: %d %s %v", status, answer, err)
	}
	status, version, answer, err := score(t.Context(), c, "story", key, []byte(`{"n": 7}`))
	if err != nil || status != http.StatusOK || version != "one" || !strings.Contains(string(answer), `"n": 7`) {
		t.Fatalf("scored: %d from %q: %s %v", status, version, answer, err)
	}

	l := stream(t, "story", key, 40)
	in.must(t, "deploy", project(t, "story", "two", "    # better\n"), "--version", "two")
	began = time.Now()
	eventually(t, 3*time.Minute, "two is promoted", func() error {
		if e := in.endpoint(t, "story"); e.Spec.Version("two").Type != rollout.Control {
			return fmt.Errorf("it is %q at %s: %+v", e.Spec.Version("two").Type, e.Spec.Version("two").TrafficPercentile, e.Status.Rollout)
		}
		return nil
	})
	e := in.endpoint(t, "story")
	rule := e.Spec.Changes[len(e.Spec.Changes)-1]
	t.Logf("promoted %s after it joined, by rule %s: %s", time.Since(began).Round(100*time.Millisecond), rule.Reason, rule.Evidence)
	if rule.Reason != rollout.ReasonBounded && rule.Reason != rollout.ReasonNotWorse {
		t.Errorf("promoted because of %s, want the verdict's word", rule.Reason)
	}

	in.must(t, "deploy", project(t, "story", "three", "    if d[\"n\"] % 3 == 0 and d[\"n\"] > 0:\n        raise ValueError(\"broken\")\n"), "--version", "three")
	began = time.Now()
	eventually(t, 3*time.Minute, "three is rolled back", func() error {
		if v := in.endpoint(t, "story").Spec.Version("three"); v != nil && (v.Type != rollout.Untyped || v.RetiredAt.IsZero()) {
			return fmt.Errorf("it is %q at %s", v.Type, v.TrafficPercentile)
		}
		return nil
	})
	t.Logf("rolled back %s after it joined", time.Since(began).Round(100*time.Millisecond))
	l.stop()
	t.Logf("%d requests, %d bad answers of the bad treatment, %d failed; by version %v", l.sent.Load(), l.bad.Load(), l.failed.Load(), l.versions)
	if l.failed.Load() != 0 {
		t.Errorf("%d requests failed: %v, the first: %s", l.failed.Load(), l.kinds, l.first)
	}
	if l.bad.Load() == 0 {
		t.Error("no bad answer was seen: the rollback had no cause")
	}
}
