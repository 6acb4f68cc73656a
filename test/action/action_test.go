// Package action runs the Action as GitHub does: in workflows, by act, on a real cluster. `make action-e2e` does all of it.
package action

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/sluice-dev/sluice/test/act"
)

const root = "../.."

// probe is a container action built by this project's Dockerfile whose program has a revision.
func probe(t *testing.T, revision string) string {
	t.Helper()
	binary := filepath.Join(t.TempDir(), "action")
	cmd := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-ldflags", "-s -w -X main.revision="+revision, "-o", binary, "./cmd/action")
	cmd.Dir, cmd.Env = "testdata/probe", append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	dir := act.Action(t, "testdata/probe/action.yml", filepath.Join(root, "Dockerfile"), binary)
	if err := os.CopyFS(filepath.Join(dir, "composite"), os.DirFS("testdata/probe/composite")); err != nil {
		t.Fatal(err)
	}
	return dir
}

// pullRequest is what a test needs of an event's payload.
func pullRequest(number int) map[string]any {
	return map[string]any{
		"action": "opened", "number": number,
		"pull_request": map[string]any{
			"number": number,
			"head":   map[string]any{"ref": "change", "sha": strings.Repeat("a", 40)},
			"base":   map[string]any{"ref": "main", "sha": strings.Repeat("b", 40)},
		},
		"repository": map[string]any{"id": 1296269, "full_name": "octo-org/model", "owner": map[string]any{"id": 6811672, "login": "octo-org"}},
		"sender":     map[string]any{"id": 583231, "login": "octocat"},
	}
}

// TestProbe: a container action gets its inputs, the workspace and the event, reaches a registry on loopback and a cluster's
// API server, and its outputs, summary, annotations and masks come back; a changed program is not answered by the image of the one before.
func TestProbe(t *testing.T) {
	path := os.Getenv("SLUICE_TEST_KUBECONFIG")
	if path == "" {
		t.Skip("it needs a cluster: `make action-e2e`")
	}
	kubeconfig, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	model := act.Repository(t, "testdata/model", "octo-org/model")
	note := filepath.Join(t.TempDir(), "note")
	if err := os.WriteFile(note, []byte("from outside"), 0o644); err != nil {
		t.Fatal(err)
	}
	o := act.Options{
		Repository: model, Workflow: ".github/workflows/probe.yml", Event: "pull_request", Payload: pullRequest(7),
		Secrets:   map[string]string{"KUBECONFIG": string(kubeconfig)},
		Variables: map[string]string{"REGISTRY": os.Getenv(act.RegistryVariable)},
		Env:       map[string]string{"GITHUB_API_URL": "http://127.0.0.1:1/api", "GITHUB_RUN_ID": "41"},
		Mounts:    []string{note + ":/mnt/note"},
		Builder:   true,
	}
	commit := act.Commit(t, model)
	for _, revision := range []string{"first", "second"} {
		o.Actions = map[string]string{"sluice-dev/probe@v1": probe(t, revision)}
		r := act.Run(t, o)
		t.Logf("%s: %s", revision, r.Took.Round(10*time.Millisecond))
		if r.ExitCode != 0 {
			t.Fatalf("exit code %d:\n%s", r.ExitCode, r.Log)
		}
		s := r.Step("probe")
		if s.Outcome != "success" || s.Outputs["revision"] != revision || s.Outputs["lines"] != "one\ntwo" ||
			!strings.Contains(s.Outputs["registry"], "base/busybox") || !strings.Contains(s.Outputs["cluster"], "gitVersion") {
			t.Errorf("the step is %+v", s)
		}
		if want := "## Hello, pull request 7\n\n| pull request | workspace |\n| --- | --- |\n| #7 | 62 bytes |\n"; s.Summary != want {
			t.Errorf("its summary is %q, want %q", s.Summary, want)
		}
		if r.Summary() != s.Summary+"Read by a second step.\n" {
			t.Errorf("the job's summary is %q", r.Summary())
		}
		if len(s.Annotations) != 1 || s.Annotations[0].Level != "notice" || s.Annotations[0].Message != "all reached" || s.Annotations[0].Properties["title"] != "Probe" {
			t.Errorf("its annotations are %v", s.Annotations)
		}
		for _, want := range []string{
			"uid 0\n", "this is ***\n", "GITHUB_REPOSITORY=octo-org/model\n", "GITHUB_REPOSITORY_ID=1296269\n", "GITHUB_SHA=" + commit + "\n",
			"GITHUB_EVENT_NAME=pull_request\n", "GITHUB_REF=refs/pull/7/merge\n", "GITHUB_HEAD_REF=change\n", "INPUT_GREETING=pull request 7\n", "GITHUB_API_URL=http://127.0.0.1:1/api\n", "GITHUB_RUN_ID=41\n", "GITHUB_ACTOR=octocat\n", "note: from outside\n",
			"engine's socket: true\n", "builder: true\n",
		} {
			if !strings.Contains(s.Log, want) {
				t.Errorf("it does not say %q, but\n%s", want, s.Log)
			}
		}
		if !strings.Contains(r.Log, "lines: one\n") || !strings.HasPrefix(r.Step("read").Outputs["kubernetes"], "v1.") {
			t.Errorf("the next step did not get the outputs:\n%s", r.Log)
		}
		if inner := r.Step("inner"); inner.Outputs["about"] != "a composite action, after "+revision || r.Step("inner/say").Outcome != "success" {
			t.Errorf("the composite action is %+v, and its step %+v", inner, r.Step("inner/say"))
		}
	}
	o.Variables["FAIL"] = "true"
	r := act.Run(t, o)
	if s := r.Step("probe"); r.ExitCode == 0 || s.Outcome != "failure" || len(s.Annotations) != 1 || s.Annotations[0].Properties["file"] != "sluice.yaml" ||
		s.Annotations[0].Properties["line"] != "3" || r.Step("read").Outcome != "" {
		t.Errorf("a step that fails is %+v, exit code %d", s, r.ExitCode)
	}
}

// TestImage: with and without BuildKit the Dockerfile takes the program that is there, and it compiles one that is not; the image has
// no user of its own and is small.
func TestImage(t *testing.T) {
	file := filepath.Join(root, "Dockerfile")
	for how, build := range map[string]func(*testing.T, string, string) (string, error){"classic": act.BuildClassic, "buildkit": act.BuildKit} {
		t.Run(how, func(t *testing.T) {
			dir := probe(t, "there")
			want, err := os.ReadFile(filepath.Join(dir, "dist/action"))
			if err != nil {
				t.Fatal(err)
			}
			made := func() act.Contents {
				t.Helper()
				began := time.Now()
				if said, err := build(t, dir, "sluice-test/probe:"+how); err != nil {
					t.Fatalf("%v\n%s", err, said)
				}
				is := act.Inspect(t, "sluice-test/probe:"+how)
				t.Logf("built in %s, %.1f MB", time.Since(began).Round(10*time.Millisecond), float64(is.Bytes)/1e6)
				if is.User != "" || is.Bytes >= 60e6 {
					t.Errorf("its user is %q and it has %d bytes", is.User, is.Bytes)
				}
				return is
			}
			if is := made(); string(is.Program) != string(want) {
				t.Error("the program that is there was not taken")
			}
			if how == "buildkit" {
				return // what follows is the shell's and Go's, and takes its time
			}
			began := time.Now()
			act.Toolchain(t, file)
			t.Logf("a toolchain's image loaded in %s", time.Since(began).Round(10*time.Millisecond))
			if err := os.RemoveAll(filepath.Join(dir, "dist")); err != nil {
				t.Fatal(err)
			}
			for name, text := range map[string]string{"go.mod": "module probe\n\ngo 1.26\n", "cmd/action/main.go": "package main\n\nfunc main() { println(\"compiled here\") }\n"} {
				if err := os.MkdirAll(filepath.Join(dir, filepath.Dir(name)), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if is := made(); string(is.Program) == string(want) || !strings.Contains(string(is.Program), "compiled here") {
				t.Error("the program was not compiled")
			}
		})
	}
}

// TestDockerfile: Go's version is go.mod's, and nothing in it needs BuildKit or keeps GitHub from running it.
func TestDockerfile(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(root, "Dockerfile"))
	if err != nil {
		t.Fatal(err)
	}
	module, err := os.ReadFile(filepath.Join(root, "go.mod"))
	if err != nil {
		t.Fatal(err)
	}
	version := regexp.MustCompile(`(?m)^go (\S+)$`).FindSubmatch(module)
	image, err := act.BuildImage(filepath.Join(root, "Dockerfile"))
	if err != nil || version == nil || !strings.HasPrefix(image, "golang:"+string(version[1])+"-") {
		t.Errorf("it builds with %s, %v, and go.mod wants %s", image, err, version)
	}
	for _, not := range []string{`(?m)^#\s*syntax`, `(?m)^\s*(RUN|COPY|ADD) .*--(mount|link|chmod|chown|parents|exclude|network|security)`, `<<`, `(?m)^USER`, `TARGET(ARCH|OS|PLATFORM)`, `BUILDPLATFORM`} {
		if found := regexp.MustCompile(not).Find(text); found != nil {
			t.Errorf("it has %q", found)
		}
	}
	_, last, _ := strings.Cut(string(text), "FROM scratch\n")
	if last == "" || strings.Contains(last, "WORKDIR") || !strings.Contains(last, `ENTRYPOINT ["/`) {
		t.Errorf("its last stage is %q", last)
	}
}

// TestWorkflows: what actionlint says of the workflows here.
func TestWorkflows(t *testing.T) {
	program := os.Getenv("SLUICE_TEST_ACTIONLINT")
	if program == "" {
		t.Skip("it needs actionlint: `make action-e2e`")
	}
	if out, err := exec.CommandContext(t.Context(), program, "-no-color", "-shellcheck=", "-pyflakes=", "testdata/model/.github/workflows/probe.yml").CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}
