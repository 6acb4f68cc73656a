package action

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"sigs.k8s.io/yaml"

	"github.com/sluice-dev/sluice/rollout"
)

func (r result) ok(t *testing.T, status string) result {
	t.Helper()
	if r.code != 0 || r.outputs["status"] != status || r.outputs["reason-code"] != "" {
		t.Fatalf("exit code %d, status %q, reason %q; want %q\n%s%s", r.code, r.outputs["status"], r.outputs["reason-code"], status, r.log, r.stderr)
	}
	return r
}

func (r result) refused(t *testing.T, reason rollout.Reason) result {
	t.Helper()
	if r.code != exitFailed || r.outputs["status"] != statusFailed || r.outputs["reason-code"] != string(reason) {
		t.Fatalf("exit code %d, status %q, reason %q; want %q\n%s%s", r.code, r.outputs["status"], r.outputs["reason-code"], reason, r.log, r.stderr)
	}
	return r
}

// The life of two pull requests: a first version, a treatment, another push, a merge, another workflow run of it, and one that is
// closed without a merge.
func TestPullRequestLife(t *testing.T) {
	w := newWorld(t)
	first := w.step(push('a'), nil).ok(t, statusDeployed)
	if first.outputs["version"] != "sha-aaaaaaa" || first.outputs["endpoint"] != "fraud" || first.outputs["environment-source"] != "base" ||
		!strings.HasPrefix(first.outputs["digest"], "sha256:") || first.outputs["image"] != w.registry+"/models/fraud@"+first.outputs["digest"] ||
		len(first.outputs["environment-hash"]) != 64 || !strings.HasPrefix(first.outputs["scoring-uri"], "http") {
		t.Errorf("outputs %v", first.outputs)
	}
	if v := w.endpoint().Spec.Version("sha-aaaaaaa"); v.Type != rollout.Control || v.Source != (rollout.Source{RepositoryID: repositoryID, Commit: strings.Repeat("a", 40), RunID: 1001}) {
		t.Errorf("the first version is %+v", v)
	}
	if c := w.endpoint().Spec.Changes[0]; c.Actor != "github:octocat (team/fraud)" {
		t.Errorf("it was done by %q", c.Actor)
	}

	w.write("score.py", "pass # better\n")
	treat := w.step(pullRequest(42, 'b'), with("traffic-percentile", "10")).ok(t, statusDeployed)
	var shares []part
	if err := json.Unmarshal([]byte(treat.outputs["traffic"]), &shares); err != nil {
		t.Fatalf("traffic %q: %v", treat.outputs["traffic"], err)
	}
	ten := 10 * rollout.OnePercent
	if diff := cmp.Diff([]part{{"sha-aaaaaaa", "control", true, 0, rollout.Full - ten}, {"pr-42-bbbbbbb", "treatment", false, ten, ten}}, shares); diff != "" {
		t.Error(diff)
	}
	for _, want := range []string{"### Sluice: fraud / pr-42-bbbbbbb", "| sha-aaaaaaa | control default | 100 % | 90 % |", "| pr-42-bbbbbbb | treatment | – | 10 % | ██░", "the base image is all of it", "| Push the image | ", "to the registry |"} {
		if !strings.Contains(treat.summary, want) {
			t.Errorf("the summary has no %q:\n%s", want, treat.summary)
		}
	}
	for _, want := range []string{"::group::Package the project", "::group::Smoke test", "::add-mask::" + token} {
		if !strings.Contains(treat.log, want) {
			t.Errorf("the log has no %q:\n%s", want, treat.log)
		}
	}
	if strings.Count(treat.log, "::group::") != strings.Count(treat.log, "::endgroup::") {
		t.Errorf("groups are not ended:\n%s", treat.log)
	}

	// The same run again changes nothing and says so.
	generation := w.endpoint().Metadata.Generation
	again := w.step(pullRequest(42, 'b'), with("traffic-percentile", "10")).ok(t, statusUnchanged)
	if !strings.Contains(again.summary, "nothing changed") || !strings.Contains(again.summary, "nothing: the registry has the image") || w.endpoint().Metadata.Generation != generation {
		t.Errorf("run again:\n%s", again.summary)
	}

	// Another push takes the first one's place.
	w.write("score.py", "pass # better still\n")
	w.step(pullRequest(42, 'c'), with("traffic-percentile", "10")).ok(t, statusDeployed)
	if old := w.endpoint().Spec.Version("pr-42-bbbbbbb"); old.Type != rollout.Untyped || old.TrafficPercentile != 0 || old.RetiredAt.IsZero() {
		t.Errorf("the earlier treatment is %+v", old)
	}

	// What is merged must be what was deployed.
	late := w.step(pullRequest(42, 'd').closed(true), with("command", "promote")).refused(t, rollout.ReasonVersionChanged)
	if !strings.Contains(late.log, "pr-42-ccccccc") {
		t.Errorf("told %s", late.log)
	}
	merged := w.step(pullRequest(42, 'c').closed(true), with("command", "promote")).ok(t, statusPromoted)
	if s := w.endpoint().Spec; s.Default().Name != "pr-42-ccccccc" || s.ByRole(rollout.Control).Name != "pr-42-ccccccc" {
		t.Errorf("after the merge %+v", parts(&s))
	}
	if !strings.Contains(merged.summary, "| pr-42-ccccccc | control default | 10 % | 100 % |") {
		t.Errorf("summary\n%s", merged.summary)
	}
	w.step(pullRequest(42, 'c').closed(true), with("command", "promote")).ok(t, statusUnchanged)

	// One that is closed without a merge is cleaned up, also if its last push was never deployed.
	w.write("score.py", "pass # worse\n")
	w.step(pullRequest(43, 'f'), with("traffic-percentile", "5")).ok(t, statusDeployed)
	w.step(pullRequest(43, '9').closed(false), with("command", "delete")).ok(t, statusDeleted)
	if w.endpoint().Spec.Version("pr-43-fffffff") != nil {
		t.Error("the version is still there")
	}
	w.step(pullRequest(43, '9').closed(false), with("command", "delete")).ok(t, statusUnchanged)
}

func TestCommands(t *testing.T) {
	w := newWorld(t)
	w.step(push('a'), nil).ok(t, statusDeployed)
	w.write("score.py", "pass # 2\n")
	w.step(push('b'), with("type", "none")).ok(t, statusDeployed)
	if v := w.endpoint().Spec.Version("sha-bbbbbbb"); v.Type != rollout.Untyped {
		t.Errorf("type none made %+v", v)
	}
	w.step(push('b'), with("command", "update", "type", "treatment", "traffic-percentile", "2.5")).ok(t, statusUpdated)
	if v := w.endpoint().Spec.Version("sha-bbbbbbb"); v.Type != rollout.Treatment || v.TrafficPercentile.String() != "2.5" {
		t.Errorf("update made %+v", v)
	}
	w.step(push('b'), with("command", "update", "type", "treatment")).ok(t, statusUnchanged)
	planned := w.step(push('b'), with("command", "traffic", "traffic-percentile", "20", "dry-run", "true")).ok(t, statusPlanned)
	if w.endpoint().Spec.Version("sha-bbbbbbb").TrafficPercentile.String() != "2.5" || !strings.Contains(planned.summary, "would be") {
		t.Errorf("a dry run:\n%s", planned.summary)
	}
	w.step(push('b'), with("command", "traffic", "traffic-percentile", "20")).ok(t, statusShifted)
	if e := w.endpoint(); e.Spec.Version("sha-bbbbbbb").TrafficPercentile.String() != "20" || e.Spec.Hold == nil {
		t.Errorf("traffic made %+v", e.Spec)
	}
	shown := w.step(push('b'), with("command", "status", "version", "sha-bbbbbbb")).ok(t, statusShown)
	if !strings.Contains(shown.log, "sha-bbbbbbb  treatment      20%") || shown.outputs["image"] == "" {
		t.Errorf("status:\n%s", shown.log)
	}
	w.step(push('b'), with("command", "rollback")).ok(t, statusRolledBack)
	if v := w.endpoint().Spec.Version("sha-bbbbbbb"); v.Type != rollout.Untyped || v.TrafficPercentile != 0 {
		t.Errorf("rollback made %+v", v)
	}
	w.step(push('c'), with("command", "rollback", "version", "sha-ccccccc")).refused(t, rollout.ReasonUnknownVersion)
	w.step(push('a'), with("command", "delete", "endpoint", "other")).ok(t, statusUnchanged)
	w.step(push('a'), with("command", "promote", "endpoint", "other")).refused(t, rollout.ReasonUnknownEndpoint)
	packaged := w.step(push('d'), with("command", "package")).ok(t, statusPackaged)
	if packaged.outputs["image"] == "" || w.endpoint().Spec.Version("sha-ddddddd") != nil {
		t.Errorf("package gave %v", packaged.outputs)
	}
}

func TestDryRun(t *testing.T) {
	w := newWorld(t)
	out := w.step(push('a'), with("dry-run", "true")).ok(t, statusPlanned)
	if _, err := w.store.Get(t.Context(), models); err == nil || out.outputs["environment-hash"] == "" || out.outputs["image"] != "" {
		t.Errorf("a dry run left %v, and an endpoint (%v)", out.outputs, err)
	}
	w.step(push('a'), nil).ok(t, statusDeployed)
	w.write("score.py", "pass # 2\n")
	out = w.step(pullRequest(7, 'b'), with("dry-run", "true", "traffic-percentile", "10")).ok(t, statusPlanned)
	if !strings.Contains(out.summary, "| pr-7-bbbbbbb | treatment | – | 10 % |") || len(w.endpoint().Spec.Versions) != 1 {
		t.Errorf("summary\n%s", out.summary)
	}
}

// Azure ML's files stand for a manifest, and what they say of the deploy for inputs that are not given.
func TestAzureMLFiles(t *testing.T) {
	w := newWorld(t)
	if err := os.Remove(filepath.Join(w.workspace, "sluice.yaml")); err != nil {
		t.Fatal(err)
	}
	w.write("ic.json", `{"entryScript": "score.py", "environment": {"docker": {"baseImage": "`+w.registry+`/lib/python:3.12"}, "python": {"userManagedDependencies": true}, "inferencingStackVersion": "latest"}}`,
		"dc.json", `{"computeType": "aksendpoint", "versionName": "blue", "trafficPercentile": 15, "namespace": "models", "numReplicas": 2, "containerResourceRequirements": {"cpu": 0.5, "memoryInGB": 1}}`)
	inputs := with("inference-config", "ic.json", "endpoint", "fraud", "models", "fraud:3=model/")
	w.step(push('a'), inputs).ok(t, statusDeployed)
	w.write("score.py", "pass # 2\n")
	w.step(push('b'), append(inputs, "deployment-config", "dc.json")).ok(t, statusDeployed)
	v := w.endpoint().Spec.Version("sha-bbbbbbb")
	if v == nil || v.TrafficPercentile != 15*rollout.OnePercent || v.Replicas == nil || *v.Replicas != 2 || v.Resources == nil || v.Resources.CPU != "500m" && v.Resources.CPU != "0.5" {
		t.Errorf("the version is %+v", v)
	}
}

// A manifest of another name stands for the directory's own.
func TestConfigOfAnotherName(t *testing.T) {
	w := newWorld(t)
	w.write("staging.yaml", strings.Replace(manifest, "endpoint: fraud", "endpoint: fraud-staging", 1))
	out := w.step(push('a'), with("config", "staging.yaml", "command", "package", "registry", "")).ok(t, statusChecked)
	if out.outputs["endpoint"] != "fraud-staging" {
		t.Errorf("outputs %v", out.outputs)
	}
}

// A fork's code is checked and never deployed, whatever the event, and nothing is changed on its behalf.
func TestFork(t *testing.T) {
	for name, e := range map[string]event{
		"fork": {name: "pull_request", headRepository: 1, state: "open"}, "fork that is gone": {name: "pull_request", gone: true, state: "open"},
		"pull_request_target": {name: "pull_request_target", headRepository: 1, state: "open"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			e.pr, e.commit = 5, strings.Repeat("a", 40)
			out := w.step(e, nil)
			if out.code != 0 || out.outputs["status"] != statusChecked || out.outputs["reason-code"] != string(rollout.ReasonFork) || out.outputs["image"] != "" {
				t.Fatalf("exit code %d, outputs %v\n%s", out.code, out.outputs, out.log)
			}
			if !strings.Contains(out.log, "::warning") || !strings.Contains(out.summary, "comes from a fork") {
				t.Errorf("told\n%s\n%s", out.log, out.summary)
			}
			if _, err := w.store.Get(t.Context(), models); err == nil {
				t.Error("an endpoint was made")
			}
			w.write("sluice.yaml", strings.Replace(manifest, "endpoint", "endpont", 1))
			w.step(e, nil).refused(t, rollout.ReasonUnknownField)
		})
	}
	// Nothing is changed on its behalf either, and a closed one leaves nothing to clean up: that is no failure.
	for _, name := range []string{"pull_request", "pull_request_target"} {
		w := newWorld(t)
		w.step(push('a'), nil).ok(t, statusDeployed)
		before := w.endpoint().Metadata.Generation
		e := pullRequest(5, 'a')
		e.name, e.headRepository = name, 1
		for _, command := range []string{"promote", "delete", "rollback"} {
			out := w.step(e.closed(true), with("command", command, "version", "sha-aaaaaaa"))
			if out.code != 0 || out.outputs["status"] != statusUnchanged || out.outputs["reason-code"] != string(rollout.ReasonFork) || w.endpoint().Metadata.Generation != before {
				t.Errorf("%s of a fork on %s: exit code %d, %v", command, name, out.code, out.outputs)
			}
		}
	}
}

// What does not become healthy fails the step, with what its replica said last, and is never in the way.
func TestUnhealthy(t *testing.T) {
	w := newWorld(t)
	w.step(push('a'), nil).ok(t, statusDeployed)
	for reason, state := range map[rollout.Reason]rollout.VersionStatus{
		rollout.ReasonImageMissing: {Reason: rollout.ReasonImageMissing, Message: "the node cannot pull the image"},
		rollout.ReasonInitFailed:   {Reason: rollout.ReasonInitFailed, Message: "init() raised ValueError: no weights"},
		rollout.ReasonCrashed:      {Reason: rollout.ReasonCrashed, Message: "it ended with exit code 1"},
		rollout.ReasonProbeFailed:  {Reason: rollout.ReasonProbeFailed, Message: "its probe failed 3 times"},
		rollout.ReasonClusterFull:  {Reason: rollout.ReasonClusterFull, Message: "no node has 64 free CPUs"},
		rollout.ReasonReadyTimeout: {Reason: rollout.ReasonStarting},
	} {
		t.Run(string(reason), func(t *testing.T) {
			w.t = t
			w.broken.Store("sha-bad0000", state)
			w.write("score.py", "pass # "+string(reason)+"\n")
			out := w.step(push('b'), with("version", "sha-bad0000", "timeout", "300ms", "traffic-percentile", "10")).refused(t, reason)
			if !strings.Contains(out.log, "ValueError: no weights") || len(out.annotationLines) != 1 || !strings.Contains(out.annotationLines[0], state.Message) {
				t.Errorf("told\n%s", out.log)
			}
			if strings.Contains(out.log, "\n::error::not the workflow's") {
				t.Error("a replica's line is a command of the workflow")
			}
			v := w.endpoint().Spec.Version("sha-bad0000")
			if v.Type != rollout.Untyped || v.TrafficPercentile != 0 || !strings.Contains(out.outputs["traffic"], `"sha-aaaaaaa","type":"control","default":true,"claim":0,"percent":100`) {
				t.Errorf("it is left as %+v; traffic %s", v, out.outputs["traffic"])
			}
			if !strings.Contains(out.summary, "❌") {
				t.Errorf("summary\n%s", out.summary)
			}
			w.step(push('b'), with("command", "delete", "version", "sha-bad0000")).ok(t, statusDeleted)
		})
	}
}

func TestScript(t *testing.T) {
	w := newWorld(t)
	w.step(push('a'), nil).ok(t, statusDeployed)
	script := func(body string) {
		w.write("check.sh", "#!/bin/sh\n"+body+"\n")
		if err := os.Chmod(filepath.Join(w.workspace, "check.sh"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	script(`echo "$SLUICE_ENDPOINT $SLUICE_VERSION $SLUICE_SCORING_URI ${SLUICE_KEY:+key} ${GITHUB_OUTPUT:-none} $(env | grep -c INPUT_)"; exit 3`)
	out := w.step(push('b'), with("test-script", "check.sh")).refused(t, rollout.ReasonSmokeFailed)
	if !strings.Contains(out.log, "fraud sha-bbbbbbb http://") || !strings.Contains(out.log, " key none 0") || !strings.Contains(out.log, "exit status 3") {
		t.Errorf("told\n%s", out.log)
	}
	if v := w.endpoint().Spec.Version("sha-bbbbbbb"); v.Type != rollout.Untyped {
		t.Errorf("it is %+v", v)
	}
	script("exit 0")
	w.step(push('c'), with("test-script", "check.sh")).ok(t, statusDeployed)
}

// The contract: names, defaults and outputs that workflows rely on. A change here is a change for everybody.
func TestContract(t *testing.T) {
	raw, err := os.ReadFile("../../../../action.yml")
	if err != nil {
		t.Fatal(err)
	}
	var got struct {
		Inputs map[string]struct {
			Default            string
			Required           bool
			DeprecationMessage string
		}
		Outputs map[string]struct{ Description string }
		Runs    struct{ Using, Image string }
	}
	if err := yaml.Unmarshal(raw, &got); err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"command": "deploy", "directory": ".", "config": "", "inference-config": "", "deployment-config": "", "environment-file": "", "models": "", "leave-out": "", "endpoint": "", "namespace": "", "version": "",
		"description": "", "type": "", "traffic-percentile": "", "is-default": "false", "new-default": "", "force": "false",
		"registry": "", "registry-username": "", "registry-password": "", "pull-registry": "", "insecure-registry": "", "global-registry": "",
		"builder": "", "rebuild": "false", "base-image": "", "runner-image": "", "platform": "linux/amd64",
		"target": "", "kubeconfig": "", "context": "", "server": "", "server-audience": "", "router-url": "", "endpoint-key": "",
		"test-script": "", "wait": "true", "timeout": "10m", "github-token": "${{ github.token }}", "dry-run": "false",
	}
	inputs := map[string]string{}
	for name, i := range got.Inputs {
		inputs[name] = i.Default
		if i.Required {
			t.Errorf("input %s is required: GitHub does not enforce it", name)
		}
	}
	if diff := cmp.Diff(want, inputs); diff != "" {
		t.Errorf("inputs: %s", diff)
	}
	own := map[string]string{}
	for _, i := range table {
		own[i.name] = i.defaults
	}
	own["github-token"] = "${{ github.token }}" // an expression of the workflow
	if diff := cmp.Diff(want, own); diff != "" {
		t.Errorf("the program's inputs: %s", diff)
	}
	outputs := map[string]bool{}
	for name := range got.Outputs {
		outputs[name] = true
	}
	if diff := cmp.Diff(map[string]bool{
		"endpoint": true, "version": true, "image": true, "digest": true, "environment-hash": true, "environment-source": true, "scoring-uri": true,
		"traffic": true, "status": true, "reason-code": true,
	}, outputs); diff != "" {
		t.Errorf("outputs: %s", diff)
	}
	if len(outputNames) != len(outputs) {
		t.Errorf("the program sets %q", outputNames)
	}
	if got.Runs.Using != "docker" {
		t.Errorf("runs using %q", got.Runs.Using)
	}
}

func TestOutsideGitHub(t *testing.T) {
	var stdout, stderr bytes.Buffer
	if code := Main(t.Context(), nil, []string{"HOME=" + t.TempDir()}, &stdout, &stderr); code != exitUsage || !strings.Contains(stderr.String(), "step of a GitHub workflow") {
		t.Errorf("exit code %d: %s", code, stderr.String())
	}
	w := newWorld(t)
	stdout.Reset()
	code := Main(t.Context(), []string{"--command", "package", "--directory", w.workspace, "--base-image", w.registry + "/lib/python:3.12", "--registry", ""}, []string{"HOME=" + t.TempDir()}, &stdout, &stderr)
	if code != 0 || !strings.Contains(stdout.String(), "\nstatus=checked\n") || strings.Contains(stdout.String(), "::") {
		t.Errorf("exit code %d:\n%s%s", code, stdout.String(), stderr.String())
	}
}

// A runner without its files is told of, and nothing panics.
func TestRunnerWithoutFiles(t *testing.T) {
	w := newWorld(t)
	out := w.step(push('a'), with("command", "package"), "GITHUB_OUTPUT=")
	if out.code != exitFailed || !strings.Contains(out.log, "GITHUB_OUTPUT is not set") || out.stderr != "" || len(out.annotationLines) != 1 {
		t.Errorf("exit code %d:\n%s%s", out.code, out.log, out.stderr)
	}
	out = w.step(push('a'), with("command", "package"), "GITHUB_STEP_SUMMARY=/nowhere/at/all")
	if out.code != 0 || !strings.Contains(out.log, "there is no job summary") {
		t.Errorf("exit code %d:\n%s", out.code, out.log)
	}
	// Disks that are full.
	if _, err := os.Stat("/dev/full"); err != nil {
		t.Skip("no /dev/full")
	}
	out = w.step(push('a'), with("command", "package"), "GITHUB_STEP_SUMMARY=/dev/full")
	if out.code != 0 || !strings.Contains(out.log, "there is no job summary") || out.stderr != "" {
		t.Errorf("exit code %d:\n%s%s", out.code, out.log, out.stderr)
	}
	out = w.step(push('a'), with("command", "package"), "GITHUB_OUTPUT=/dev/full")
	if out.code != exitFailed || len(out.annotationLines) != 1 || !strings.Contains(out.log, "write to the workflow by GITHUB_OUTPUT") || out.stderr != "" {
		t.Errorf("exit code %d:\n%s%s", out.code, out.log, out.stderr)
	}
}

func TestOutputsHoldNoOthers(t *testing.T) {
	path := filepath.Join(t.TempDir(), "output")
	r := &report{gh: nil, onGitHub: false, out: &bytes.Buffer{}, outputs: map[string]string{"image": "a\n" + delimiter + "\ndigest<<X\nevil\nX"}}
	if err := r.finish(""); err == nil || !strings.Contains(err.Error(), "output image") {
		t.Errorf("error %v", err)
	}
	if _, err := os.Stat(path); err == nil {
		t.Error("it was written")
	}
}

func TestHarmless(t *testing.T) {
	for in, want := range map[string]string{
		"plain :: text": "plain :: text", "::error::x": `\::error::x`, "a\n  ::set-output name=x::y": "a\n" + `  \::set-output name=x::y`,
		"a\r::add-mask::e": "a\n" + `\::add-mask::e`, "x ##[group]y": "x ## [group]y", "\v::a::b": "\n" + `\::a::b`, "\u00a0\u3000::a::b": "\u00a0\u3000" + `\::a::b`, "\ufeff::a": "\ufeff" + `\::a`, "a\u2028::b": "a\n" + `\::b`,
	} {
		if got := harmless(in); got != want {
			t.Errorf("%q became %q, want %q", in, got, want)
		}
	}
}

func TestSummaryIsNoMarkup(t *testing.T) {
	s := summary{endpoint: "fraud", failures: []string{"<img src=x> [a](http://evil) | `x` @team"}}
	if m := s.markdown(); strings.ContainsAny(strings.SplitN(m, "❌", 2)[1], "<[`@") {
		t.Errorf("summary %q", m)
	}
}

// Events with secrets that anybody may cause deploy nothing but what is checked out of their own commit.
func TestUntrustedEvents(t *testing.T) {
	w := newWorld(t)
	e := pullRequest(5, 'a')
	e.name = "pull_request_target"
	if out := w.step(e, nil).refused(t, rollout.ReasonInvalid); !strings.Contains(out.log, "under the name of the pull request's commit") {
		t.Errorf("told %s", out.log)
	}
	git := func(args ...string) string {
		t.Helper()
		c := exec.Command("git", append([]string{"-C", w.workspace, "-c", "user.name=t", "-c", "user.email=t@t.example"}, args...)...)
		out, err := c.CombinedOutput()
		if err != nil {
			t.Fatalf("git %q: %v: %s", args, err, out)
		}
		return strings.TrimSpace(string(out))
	}
	git("init", "-q", "-b", "main")
	git("add", "-A")
	git("commit", "-qm", "1")
	head := git("rev-parse", "HEAD")
	for _, name := range []string{"issue_comment", "workflow_run"} {
		e := push('a')
		e.name = name
		w.step(e, nil).refused(t, rollout.ReasonDenied)
		w.step(e, with("command", "package")).refused(t, rollout.ReasonDenied)
		e.commit = head
		w.step(e, with("command", "package")).ok(t, statusPackaged)
	}
	// By hand, what is checked out is what is deployed.
	e = push('a')
	e.name = "workflow_dispatch"
	if out := w.step(e, nil).ok(t, statusDeployed); out.outputs["version"] != "sha-"+head[:7] {
		t.Errorf("outputs %v", out.outputs)
	}
	git("pack-refs", "--all")
	if got := checkedOut(w.workspace, filepath.Join(w.workspace, "model")); got != head {
		t.Errorf("checked out is %q, by a packed reference", got)
	}
	git("checkout", "-q", "--detach")
	if got := checkedOut(w.workspace, w.workspace); got != head {
		t.Errorf("checked out is %q, detached", got)
	}
	w.write(".git/HEAD", "ref: ../../etc/passwd\n")
	if got := checkedOut(w.workspace, w.workspace); got != "" {
		t.Errorf("checked out is %q", got)
	}
}

// A job may check out several commits: what counts is the one that the project is in. What cannot be told is nobody's.
func TestUntrustedEventsBelow(t *testing.T) {
	w := newWorld(t)
	w.write("pr/sluice.yaml", manifest, "pr/score.py", "def init(): pass\n", "pr/model/w", "w", "pr/one.json", "{}")
	commit := func(dir string) string {
		t.Helper()
		var head string
		for _, args := range []string{"init -q -b main", "add sluice.yaml score.py model one.json", "commit -qm 1", "rev-parse HEAD"} {
			c := exec.Command("git", append([]string{"-C", dir, "-c", "user.name=t", "-c", "user.email=t@t.example"}, strings.Fields(args)...)...)
			out, err := c.CombinedOutput()
			if err != nil {
				t.Fatalf("git %q: %v: %s", args, err, out)
			}
			head = strings.TrimSpace(string(out))
		}
		return head
	}
	root, below := commit(w.workspace), commit(filepath.Join(w.workspace, "pr"))
	event := push('a')
	event.name, event.commit = "issue_comment", root
	for _, command := range []string{"deploy", "package"} {
		w.step(event, with("command", command, "directory", "pr")).refused(t, rollout.ReasonDenied)
		w.step(event, with("command", command, "config", "pr/sluice.yaml")).refused(t, rollout.ReasonDenied)
	}
	w.step(event, with("command", "package")).ok(t, statusPackaged) // the event's own commit at the root
	// With other events the workflow's author decides what it is about: the version has the name of what is in it.
	if out := w.step(push('a'), with("directory", "pr")).ok(t, statusDeployed); out.outputs["version"] != "sha-"+below[:7] {
		t.Errorf("outputs %v", out.outputs)
	}
	w.write("pr/.git/HEAD", "ref: refs/heads/nowhere\n")
	w.step(event, with("directory", "pr")).refused(t, rollout.ReasonDenied)
	if err := os.RemoveAll(filepath.Join(w.workspace, "pr/.git")); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(w.workspace, ".git")); err != nil {
		t.Fatal(err)
	}
	w.step(event, with("directory", "pr")).refused(t, rollout.ReasonDenied)
}

// What has no secrets pushes nothing, and nothing is pushed under the name of another commit.
func TestPackageOfOthers(t *testing.T) {
	w := newWorld(t)
	out := w.step(pullRequest(5, 'a'), with("command", "package"), "GITHUB_ACTOR=dependabot[bot]")
	if out.code != 0 || out.outputs["status"] != statusChecked || out.outputs["image"] != "" {
		t.Errorf("exit code %d, %v\n%s", out.code, out.outputs, out.log)
	}
	e := pullRequest(5, 'a')
	e.name = "pull_request_target"
	w.step(e, with("command", "package")).refused(t, rollout.ReasonInvalid)
}

func TestDependabot(t *testing.T) {
	w := newWorld(t)
	out := w.step(pullRequest(5, 'a'), nil, "GITHUB_ACTOR=dependabot[bot]")
	if out.code != 0 || out.outputs["status"] != statusChecked || out.outputs["reason-code"] != string(rollout.ReasonFork) {
		t.Errorf("exit code %d, %v\n%s", out.code, out.outputs, out.log)
	}
}

// The same commit with another content runs as it did, and outputs say as what.
func TestSameCommitOtherContent(t *testing.T) {
	w := newWorld(t)
	first := w.step(push('a'), nil).ok(t, statusDeployed)
	w.write("model/weights.bin", "trained again")
	again := w.step(push('a'), nil).ok(t, statusUnchanged)
	if again.outputs["image"] != first.outputs["image"] || again.outputs["digest"] != first.outputs["digest"] || !strings.Contains(again.log, "::warning") || !strings.Contains(again.summary, "another content") {
		t.Errorf("outputs %v\n%s", again.outputs, again.log)
	}
	// Another share is not silently left out.
	w.step(push('b'), with("traffic-percentile", "20")).ok(t, statusDeployed)
	if out := w.step(push('b'), with("traffic-percentile", "5")).ok(t, statusUnchanged); !strings.Contains(out.summary, "claims 20 &#37;") && !strings.Contains(out.summary, "claims 20 %") {
		t.Errorf("summary\n%s", out.summary)
	}
}

// What is closed is cleaned up, and what serves is not: neither the control, nor the last one.
func TestCleaningKeepsWhatServes(t *testing.T) {
	w := newWorld(t)
	w.step(pullRequest(5, 'a'), nil).ok(t, statusDeployed)
	out := w.step(pullRequest(5, 'a').closed(false), with("command", "delete")).ok(t, statusUnchanged)
	if !strings.Contains(out.log, "::warning") || w.endpoint().Spec.Version("pr-5-aaaaaaa") == nil {
		t.Errorf("told %s", out.log)
	}
	for _, c := range []byte("bcd") {
		w.write("score.py", "pass # "+string(c)+"\n")
		w.step(pullRequest(6, c), nil).ok(t, statusDeployed)
	}
	w.step(pullRequest(6, 'd').closed(true), with("command", "delete")).ok(t, statusDeleted)
	if n := len(w.endpoint().Spec.Versions); n != 1 {
		t.Errorf("%d versions are left", n)
	}
	w.step(push('9'), with("command", "delete")).ok(t, statusUnchanged)
	w.step(push('9'), with("command", "delete", "version", "sha-9999999")).refused(t, rollout.ReasonUnknownVersion)
}

// A version that was rolled back is not let in again by the same deploy, and its workflow does not turn green.
func TestRolledBackStaysOut(t *testing.T) {
	w := newWorld(t)
	w.step(push('a'), nil).ok(t, statusDeployed)
	w.write("score.py", "pass # 2\n")
	w.step(push('b'), nil).ok(t, statusDeployed)
	w.step(push('b'), with("command", "rollback")).ok(t, statusRolledBack)
	w.step(push('b'), nil).refused(t, rollout.ReasonRolledBack)
	w.write("score.py", "pass # 3\n")
	w.step(push('c'), nil).ok(t, statusDeployed)
	w.step(push('c'), with("command", "promote")).ok(t, statusPromoted)
	w.step(push('c'), with("command", "rollback")).ok(t, statusRolledBack)
	w.step(push('c'), nil).refused(t, rollout.ReasonRolledBack)
	if v := w.endpoint().Spec.Version("sha-ccccccc"); v.Type != rollout.Untyped {
		t.Errorf("it is %+v", v)
	}
}

// What mends a first version that never served takes its place.
func TestFirstVersionThatNeverServed(t *testing.T) {
	w := newWorld(t)
	w.broken.Store("sha-aaaaaaa", rollout.VersionStatus{Reason: rollout.ReasonInitFailed, Message: "init() raised"})
	w.step(push('a'), nil).refused(t, rollout.ReasonInitFailed)
	w.write("score.py", "pass # mended\n")
	out := w.step(push('b'), with("traffic-percentile", "10")).ok(t, statusDeployed)
	if s := w.endpoint().Spec; s.Default().Name != "sha-bbbbbbb" || s.ByRole(rollout.Control).Name != "sha-bbbbbbb" || !strings.Contains(out.summary, "serves nobody") {
		t.Errorf("afterwards %+v\n%s", parts(&s), out.summary)
	}
}

func TestScriptIsBounded(t *testing.T) {
	w := newWorld(t)
	w.step(push('a'), nil).ok(t, statusDeployed)
	script := func(body string) {
		w.write("check.sh", "#!/bin/sh\n"+body+"\n")
		if err := os.Chmod(filepath.Join(w.workspace, "check.sh"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	script("echo working\nsleep 300")
	began := time.Now()
	if out := w.step(push('b'), with("test-script", "check.sh", "timeout", "2s")).refused(t, rollout.ReasonSmokeFailed); !strings.Contains(out.log, "did not end within 2s") || !strings.Contains(out.log, "working") {
		t.Errorf("told %s", out.log)
	}
	// What it leaves behind holds nobody up.
	script("sleep 300 &\nexit 0")
	w.step(push('c'), with("test-script", "check.sh")).ok(t, statusDeployed)
	if took := time.Since(began); took > 60*time.Second {
		t.Errorf("it took %s", took)
	}
}

func TestCredentialsOfRegistries(t *testing.T) {
	for _, c := range []struct{ registry, host string }{{"docker.io/acme", "index.docker.io"}, {"acme", "index.docker.io"}, {"ghcr.io/MyOrg/models", "ghcr.io"}, {"127.0.0.1:5000/x", "127.0.0.1:5000"}} {
		in, err := parse([]string{"--registry", c.registry, "--registry-username", "me", "--registry-password", "secret"}, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		r := &run{in: in}
		k := r.keychain()
		k.rest = anonymous{}
		host, err := name.NewRegistry(c.host)
		if err != nil {
			t.Fatal(err)
		}
		auth, err := k.Resolve(host)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := auth.Authorization(); err != nil || got.Username != "me" || got.Password != "secret" {
			t.Errorf("%s: %+v (%v)", c.registry, got, err)
		}
		if in.text["registry"] != strings.ToLower(c.registry) {
			t.Errorf("the registry is %q", in.text["registry"])
		}
	}
}

type anonymous struct{}

func (anonymous) Resolve(authn.Resource) (authn.Authenticator, error) { return authn.Anonymous, nil }

// A kubeconfig in base64 is taken, and neither form of it, nor what it holds, is said.
func TestKubeconfigIsNotTold(t *testing.T) {
	text := `{"apiVersion": "v1", "kind": "Config", "current-context": "c", "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}], "clusters": [{"name": "c", "cluster": {"server": "https://127.0.0.1:1"}}], "users": [{"name": "u", "user": {"token": "verysecrettoken"}}]}`
	for _, given := range []string{base64.StdEncoding.EncodeToString([]byte(text)), "Zm9v" + base64.StdEncoding.EncodeToString([]byte(text))} {
		w := newWorld(t)
		out := w.step(push('a'), with("kubeconfig", given, "command", "status"))
		rest := strings.Builder{}
		for line := range strings.SplitSeq(out.log, "\n") {
			if !strings.HasPrefix(line, "::add-mask::") {
				rest.WriteString(line + "\n")
			}
		}
		if out.code == 0 || strings.Contains(rest.String(), given) || strings.Contains(rest.String()+out.summary, "verysecrettoken") || strings.Contains(out.summary, given) {
			t.Errorf("exit code %d, told\n%s", out.code, rest.String())
		}
	}
}

// A link of the repository's does not lead to files of the runner.
func TestLinksStayInTheWorkspace(t *testing.T) {
	w := newWorld(t)
	outside := filepath.Join(t.TempDir(), "config.json")
	if err := os.WriteFile(outside, []byte("secret: value\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside, filepath.Join(w.workspace, "link.yaml")); err != nil {
		t.Fatal(err)
	}
	for _, inputs := range [][]string{with("config", "link.yaml"), with("inference-config", "link.yaml", "endpoint", "fraud"), with("test-script", "link.yaml")} {
		if out := w.step(push('a'), inputs).refused(t, rollout.ReasonInvalid); strings.Contains(out.log+out.summary, "secret") || !strings.Contains(out.log, "leads out of the workspace") {
			t.Errorf("%q told %s", inputs, out.log)
		}
	}
}
