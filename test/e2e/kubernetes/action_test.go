package kubernetes

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sluice-dev/sluice/pkg/cluster/kube"
	"github.com/sluice-dev/sluice/pkg/cluster/kube/v1alpha1"
	"github.com/sluice-dev/sluice/rollout"
	"github.com/sluice-dev/sluice/test/act"
)

const (
	repoRoot = "../../.."
	// repositoryID is what events say of the model's repository.
	repositoryID = 1296269
)

// programs compiles the Action with a revision of its own, and the runner that it brings.
func programs(t *testing.T, revision string) (dir string) {
	t.Helper()
	dir = t.TempDir()
	for program, flags := range map[string]string{"action": " -X github.com/sluice-dev/sluice/cmd/action/internal/action.revision=" + revision, "runner": ""} {
		cmd := exec.CommandContext(t.Context(), "go", "build", "-tags", "grpcnotrace", "-trimpath", "-ldflags", "-s -w"+flags, "-o", filepath.Join(dir, program), "./cmd/"+program)
		cmd.Dir, cmd.Env = repoRoot, append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	return dir
}

// theAction is this repository's, of these programs, as `uses: sluice-dev/sluice@v1` finds it.
func theAction(t *testing.T, from string) string {
	t.Helper()
	dir := act.Action(t, filepath.Join(repoRoot, "action.yml"), filepath.Join(repoRoot, "Dockerfile"), filepath.Join(from, "action"), filepath.Join(from, "runner"))
	for to, path := range map[string]string{
		"action/composite/action.yml": filepath.Join(repoRoot, "action/composite/action.yml"), "action/composite/run.sh": filepath.Join(repoRoot, "action/composite/run.sh"),
	} {
		text, err := os.ReadFile(path)
		if err == nil {
			err = os.MkdirAll(filepath.Dir(filepath.Join(dir, to)), 0o755)
		}
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, to), text, 0o755)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// modelRepository is a project with the examples' workflows, of which only the names of registry and namespace are this test's.
func (in *installation) modelRepository(t *testing.T, endpoint string) string {
	t.Helper()
	dir := project(t, endpoint, "one", "")
	edit(t, dir, "scoring:", "environment: {baseImage: "+in.push+"/base/python:3}\nscoring:")
	// No strategy: shares are what workflows say.
	edit(t, dir, "strategy: {steps: [{percent: 10, minRequests: 50}, {percent: 50, minRequests: 50}]}\n", "")
	for _, name := range []string{"canary.yml", "promote-on-merge.yml"} {
		raw, err := os.ReadFile(filepath.Join(repoRoot, ".github/examples", name))
		if err != nil {
			t.Fatal(err)
		}
		text := string(raw)
		for old, to := range map[string]string{"ghcr.io/${{ github.repository_owner }}/models": in.push + "/action", "namespace: models": "namespace: " + models} {
			if !strings.Contains(text, old) {
				t.Fatalf("%s has no %q", name, old)
			}
			text = strings.ReplaceAll(text, old, to)
		}
		path := filepath.Join(dir, ".github/workflows", name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return act.Repository(t, dir, "octo-org/model")
}

func payload(action string, more map[string]any) map[string]any {
	p := map[string]any{
		"action":     action,
		"repository": map[string]any{"id": repositoryID, "full_name": "octo-org/model", "owner": map[string]any{"id": 6811672, "login": "octo-org"}},
		"sender":     map[string]any{"id": 583231, "login": "octocat"},
	}
	for k, v := range more {
		p[k] = v
	}
	return p
}

// ofPullRequest is an event of one from the same repository.
func ofPullRequest(action string, number int, head string, merged bool) map[string]any {
	state := "open"
	if action == "closed" {
		state = "closed"
	}
	repo := map[string]any{"id": repositoryID, "full_name": "octo-org/model"}
	return payload(action, map[string]any{"number": number, "pull_request": map[string]any{
		"number": number, "state": state, "merged": merged,
		"head": map[string]any{"ref": "change", "sha": head, "repo": repo}, "base": map[string]any{"ref": "main", "sha": strings.Repeat("b", 40), "repo": repo},
	}})
}

func needsAct(t *testing.T) {
	t.Helper()
	if os.Getenv(act.ProgramVariable) == "" {
		t.Skip("needs act: `make action-e2e`")
	}
}

// TestActionInWorkflows runs the examples' workflows by act: a push makes the first version, a pull request a treatment at 10 per
// cent that scores through the router, its merge promotes it, and another one that is closed without a merge is removed.
func TestActionInWorkflows(t *testing.T) {
	needsAct(t)
	in := install(t)
	in.remove(t, "flow")
	t.Cleanup(func() { in.remove(t, "flow") })
	kubeconfig, err := os.ReadFile(in.kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	revision := fmt.Sprintf("test-%x", time.Now().UnixNano())
	repo := in.modelRepository(t, "flow")
	from := programs(t, revision)
	action := theAction(t, from)
	o := act.Options{
		Repository: repo, Actions: map[string]string{"sluice-dev/sluice@v1": action, "sluice-dev/sluice/action/composite@v1": action},
		Mounts:  []string{from + ":/opt/sluice"},
		Secrets: map[string]string{"KUBECONFIG": string(kubeconfig)},
	}
	run := func(workflow, event string, p map[string]any) act.Result {
		t.Helper()
		o.Workflow, o.Event, o.Payload = ".github/workflows/"+workflow, event, p
		r := act.Run(t, o)
		if r.ExitCode != 0 {
			t.Fatalf("%s on %s: exit code %d:\n%s", workflow, event, r.ExitCode, r.Log)
		}
		if !strings.Contains(r.Log, "revision "+revision) {
			t.Errorf("it was not this revision's program that ran:\n%s", r.Log)
		}
		t.Logf("%s on %s %v: %s", workflow, event, p["action"], r.Took.Round(100*time.Millisecond))
		return r
	}
	// step is the only one of a run that uses the Action.
	step := func(r act.Result) act.Step {
		t.Helper()
		for _, s := range r.Steps {
			if s.Outputs["status"] != "" {
				return s
			}
		}
		t.Fatalf("no step has the Action's outputs:\n%s", r.Log)
		return act.Step{}
	}
	first := act.Commit(t, repo)
	r := run("canary.yml", "push", payload("", map[string]any{"ref": "refs/heads/main", "after": first}))
	if len(r.Images) != 1 {
		t.Fatalf("images %q were built", r.Images)
	}
	if is := act.Inspect(t, r.Images[0]); is.Bytes >= 60e6 || is.User != "" {
		t.Errorf("the Action's image has %d bytes and the user %q", is.Bytes, is.User)
	} else {
		t.Logf("the Action's image has %.1f MB", float64(is.Bytes)/1e6)
	}
	s := step(r)
	if s.Outputs["version"] != "sha-"+first[:7] || s.Outputs["status"] != "deployed" || s.Outputs["environment-source"] != "base" {
		t.Errorf("the first deploy says %v", s.Outputs)
	}

	change := func(tag string) string {
		t.Helper()
		path := filepath.Join(repo, "score.py")
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, regexp.MustCompile(`TAG = .*`).ReplaceAll(text, []byte("TAG = "+strconv.Quote(tag))), 0o644); err != nil {
			t.Fatal(err)
		}
		return act.Commit(t, repo)
	}
	head := change("two")
	s = step(run("promote-on-merge.yml", "pull_request", ofPullRequest("opened", 42, head, false)))
	treatment := "pr-42-" + head[:7]
	if s.Outputs["version"] != treatment || s.Outputs["endpoint"] != "flow" || s.Outputs["status"] != "deployed" || s.Outputs["reason-code"] != "" || !strings.HasPrefix(s.Outputs["digest"], "sha256:") ||
		s.Outputs["image"] != in.push+"/action/flow@"+s.Outputs["digest"] || len(s.Outputs["environment-hash"]) != 64 || !strings.HasPrefix(s.Outputs["scoring-uri"], routerURL+"/") || !strings.HasSuffix(s.Outputs["scoring-uri"], "/flow/score") {
		t.Errorf("the treatment's deploy says %v", s.Outputs)
	}
	var shares []struct {
		Version, Type string
		Percent       float64
		Default       bool
	}
	if err := json.Unmarshal([]byte(s.Outputs["traffic"]), &shares); err != nil || len(shares) != 2 || shares[1].Version != treatment || shares[1].Percent != 10 || shares[1].Type != "treatment" || !shares[0].Default || shares[0].Percent != 90 {
		t.Errorf("traffic %s (%v)", s.Outputs["traffic"], err)
	}
	for _, want := range []string{"### Sluice: flow / " + treatment, "| " + treatment + " | treatment | – | 10 % |", "| sha-" + first[:7] + " | control default | 100 % | 90 % |", "the base image is all of it", "| Wait until it is ready |", "to the registry"} {
		if !strings.Contains(s.Summary, want) {
			t.Errorf("the summary has no %q:\n%s", want, s.Summary)
		}
	}
	v := in.endpoint(t, "flow").Spec.Version(treatment)
	if v.TrafficPercentile != 10*rollout.OnePercent || v.Source.PullRequest != 42 || v.Source.Commit != head || v.Source.RepositoryID != repositoryID {
		t.Errorf("the treatment is %+v", v)
	}
	// Its share comes through the router: of 300 requests between 10 and 60, but for one run in a million.
	key, c := in.key(t, "flow"), &http.Client{Timeout: 10 * time.Second}
	counts := map[string]int{}
	for n := range 300 {
		status, version, answer, err := score(t.Context(), c, "flow", key, fmt.Appendf(nil, `{"n": %d}`, n))
		if err != nil || status != http.StatusOK {
			t.Fatalf("request %d: %d %s %v", n, status, answer, err)
		}
		if want := map[string]string{treatment: "two", "sha-" + first[:7]: "one"}[version]; !strings.Contains(string(answer), strconv.Quote(want)) {
			t.Fatalf("%s answered %s", version, answer)
		}
		counts[version]++
	}
	t.Logf("of 300 requests: %v", counts)
	if n := counts[treatment]; n < 10 || n > 60 {
		t.Errorf("the treatment got %d of 300 requests, want about 30", n)
	}

	again := step(run("promote-on-merge.yml", "pull_request", ofPullRequest("synchronize", 42, head, false)))
	if again.Outputs["status"] != "unchanged" || !strings.Contains(again.Summary, "nothing changed") {
		t.Errorf("the same commit again says %v:\n%s", again.Outputs, again.Summary)
	}
	s = step(run("promote-on-merge.yml", "pull_request", ofPullRequest("closed", 42, head, true)))
	if e := in.endpoint(t, "flow"); s.Outputs["status"] != "promoted" || e.Spec.Default().Name != treatment || e.Spec.Version(treatment).Type != rollout.Control {
		t.Errorf("after the merge %v: %+v", s.Outputs, e.Spec.Shares())
	}

	head = change("three")
	step(run("canary.yml", "pull_request", ofPullRequest("opened", 43, head, false)))
	if v := in.endpoint(t, "flow").Spec.Version("pr-43-" + head[:7]); v == nil || v.Type != rollout.Treatment {
		t.Errorf("the other pull request's is %+v", v)
	}
	s = step(run("canary.yml", "pull_request", ofPullRequest("closed", 43, head, false)))
	if v := in.endpoint(t, "flow").Spec.Version("pr-43-" + head[:7]); v != nil || s.Outputs["status"] != "deleted" {
		t.Errorf("closed without a merge it is %+v, and the step says %v", v, s.Outputs)
	}

	// The composite variant is the same program.
	composite := "on: push\njobs:\n  j:\n    runs-on: ubuntu-latest\n    steps:\n      - uses: actions/checkout@v5\n      - uses: sluice-dev/sluice/action/composite@v1\n        id: sluice\n" +
		"        env: {SLUICE_ACTION_DIR: /opt/sluice}\n        with: {command: status, namespace: " + models + ", \"kubeconfig\": \"${{ secrets.KUBECONFIG }}\"}\n"
	if err := os.WriteFile(filepath.Join(repo, ".github/workflows/composite.yml"), []byte(composite), 0o644); err != nil {
		t.Fatal(err)
	}
	act.Commit(t, repo)
	s = step(run("composite.yml", "push", payload("", map[string]any{"ref": "refs/heads/main"})))
	if s.Outputs["status"] != "shown" || s.Outputs["endpoint"] != "flow" || !strings.Contains(s.Outputs["traffic"], treatment) {
		t.Errorf("the composite variant says %v", s.Outputs)
	}

	// A model that does not start fails the step, with its reason and its last lines, and is in nobody's way.
	path := filepath.Join(repo, "score.py")
	if err := os.WriteFile(path, []byte("def init():\n    print(\"looking for weights\")\n    raise ValueError(\"no weights\")\ndef run(data):\n    return {}\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	head = act.Commit(t, repo)
	o.Workflow, o.Event, o.Payload = ".github/workflows/canary.yml", "pull_request", ofPullRequest("opened", 44, head, false)
	r = act.Run(t, o)
	s = step(r)
	if r.ExitCode == 0 || s.Outcome != "failure" || s.Outputs["status"] != "failed" || s.Outputs["reason-code"] != string(rollout.ReasonInitFailed) {
		t.Errorf("exit code %d, %v:\n%s", r.ExitCode, s.Outputs, r.Log)
	}
	if len(s.Annotations) != 1 || !strings.Contains(s.Annotations[0].Message, "no weights") || !strings.Contains(s.Log+s.Annotations[0].Message, "ValueError") {
		t.Errorf("annotations %v\n%s", s.Annotations, s.Log)
	}
	if v := in.endpoint(t, "flow").Spec.Version("pr-44-" + head[:7]); v.Type != rollout.Untyped || v.TrafficPercentile != 0 {
		t.Errorf("it is left as %+v", v)
	}

	// A fork's is checked, and nothing else.
	p := ofPullRequest("opened", 45, head, false)
	p["pull_request"].(map[string]any)["head"].(map[string]any)["repo"] = map[string]any{"id": 7, "full_name": "mallory/model"}
	s = step(run("canary.yml", "pull_request", p))
	if s.Outputs["status"] != "checked" || s.Outputs["reason-code"] != string(rollout.ReasonFork) || in.endpoint(t, "flow").Spec.Version("pr-45-"+head[:7]) != nil {
		t.Errorf("a fork's: %v", s.Outputs)
	}
}

// TestActionWarmPath: what a second deploy with one changed line takes, stage by stage, and how a treatment's start compares with
// that of a bare pod of the same image.
func TestActionWarmPath(t *testing.T) {
	in := install(t)
	in.remove(t, "warm")
	t.Cleanup(func() { in.remove(t, "warm") })
	bin := programs(t, "warm")
	dir := project(t, "warm", "one", "")
	home := t.TempDir()
	step := func(version string) (seconds map[string]float64) {
		t.Helper()
		out := t.TempDir()
		cmd := exec.CommandContext(t.Context(), filepath.Join(bin, "action"), "--directory", dir, "--registry", in.push+"/action", "--pull-registry", in.pull,
			"--base-image", in.push+"/base/python:3", "--namespace", models, "--version", version)
		cmd.Env = []string{
			"GITHUB_ACTIONS=true", "GITHUB_EVENT_NAME=push", "GITHUB_WORKSPACE=" + dir, "GITHUB_OUTPUT=" + out + "/output", "GITHUB_STEP_SUMMARY=" + out + "/summary", "PATH=" + os.Getenv("PATH"), "HOME=" + home, "KUBECONFIG=" + in.kubeconfig,
		}
		began := time.Now()
		said, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v\n%s", err, said)
		}
		all := time.Since(began)
		summary, err := os.ReadFile(out + "/summary")
		if err != nil {
			t.Fatal(err)
		}
		seconds = map[string]float64{}
		for _, m := range regexp.MustCompile(`(?m)^\| ([A-Za-z ]+) \| ([0-9.]+) \|$`).FindAllStringSubmatch(string(summary), -1) {
			seconds[m[1]], _ = strconv.ParseFloat(m[2], 64)
		}
		t.Logf("%s: %s in all; stages %v", version, all.Round(10*time.Millisecond), seconds)
		return seconds
	}
	step("one")
	path := filepath.Join(dir, "score.py")
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, append(text, "# one line\n"...), 0o644); err != nil {
		t.Fatal(err)
	}
	seen := make(chan [2]time.Time, 1)
	go func() {
		var recorded time.Time
		for ctx := t.Context(); ctx.Err() == nil; time.Sleep(20 * time.Millisecond) {
			var m v1alpha1.ModelEndpoint
			if recorded.IsZero() && in.client.Get(ctx, client.ObjectKey{Namespace: models, Name: "warm"}, &m) == nil && m.Spec.Version("two") != nil {
				recorded = time.Now()
			}
			var pods corev1.PodList
			if recorded.IsZero() || in.client.List(ctx, &pods, client.InNamespace(models), client.MatchingLabels{kube.LabelEndpoint: "warm", kube.LabelVersion: "two"}) != nil {
				continue
			}
			for i := range pods.Items {
				if isReady(&pods.Items[i]) {
					seen <- [2]time.Time{recorded, time.Now()}
					return
				}
			}
		}
	}()
	began := time.Now()
	seconds := step("two")
	var at [2]time.Time
	select {
	case at = <-seen:
	case <-time.After(10 * time.Second):
		t.Fatal("no pod of the treatment was seen to be ready")
	}
	push := time.Duration(seconds["Push the image"] * float64(time.Second))
	beyond, treatment := at[0].Sub(began)-push, at[1].Sub(at[0])
	bare := in.barePod(t, in.endpoint(t, "warm").Spec.Version("two").Image)
	t.Logf("recorded %s after the start beyond the push, which took %s (goal 3 s); the treatment's pod ready %s after that, a bare pod %s after its creation (goal: 2 s between them)",
		beyond.Round(10*time.Millisecond), push, treatment.Round(10*time.Millisecond), bare.Round(10*time.Millisecond))
	if beyond > 10*time.Second {
		t.Errorf("it took %s to record the version", beyond)
	}
	if treatment-bare > 10*time.Second {
		t.Errorf("the treatment took %s longer than a bare pod", treatment-bare)
	}
}

func isReady(p *corev1.Pod) bool {
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue {
			return true
		}
	}
	return false
}

// barePod is how long Kubernetes takes from a pod's creation to its readiness, without a probe.
func (in *installation) barePod(t *testing.T, image string) time.Duration {
	t.Helper()
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: models, GenerateName: "bare-"},
		Spec: corev1.PodSpec{
			TerminationGracePeriodSeconds: ptr.To(int64(0)),
			SecurityContext:               &corev1.PodSecurityContext{RunAsNonRoot: ptr.To(true), SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault}},
			Containers: []corev1.Container{{Name: "c", Image: image, SecurityContext: &corev1.SecurityContext{
				AllowPrivilegeEscalation: ptr.To(false), Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
			}}},
		},
	}
	began := time.Now()
	if err := in.client.Create(t.Context(), pod); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = in.client.Delete(context.WithoutCancel(t.Context()), pod) })
	eventually(t, time.Minute, "a bare pod is ready", func() error {
		var p corev1.Pod
		if err := in.client.Get(t.Context(), client.ObjectKeyFromObject(pod), &p); err != nil {
			return err
		}
		if !isReady(&p) {
			return fmt.Errorf("it is %s", p.Status.Phase)
		}
		return nil
	})
	return time.Since(began)
}
