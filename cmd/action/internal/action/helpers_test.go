package action

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/sluice-dev/sluice/pkg/cluster"
	"github.com/sluice-dev/sluice/pkg/cluster/memory"
	"github.com/sluice-dev/sluice/pkg/process"
	"github.com/sluice-dev/sluice/rollout"
)

// TestMain puts the runner beside the test's program, as it is in the Action's image.
func TestMain(m *testing.M) {
	self, err := os.Executable()
	if err == nil {
		c := exec.Command("go", "build", "-o", filepath.Join(filepath.Dir(self), "runner"), "github.com/sluice-dev/sluice/cmd/runner")
		c.Env = append(os.Environ(), "CGO_ENABLED=0")
		var out []byte
		if out, err = c.CombinedOutput(); err != nil {
			err = fmt.Errorf("%w: %s", err, out)
		}
	}
	if err != nil {
		log.Fatal(err)
	}
	os.Exit(m.Run())
}

const (
	repositoryID = 123456789
	token        = "ghs_0123456789abcdef"
)

// world is a repository on GitHub, a registry, and a cluster whose control role finds every version ready at once.
type world struct {
	t         *testing.T
	workspace string
	registry  string
	store     *memory.Store
	keys      *memory.Keys
	// broken versions never become ready: names to what is told of them.
	broken sync.Map
	runs   int
}

var models = rollout.Key{Namespace: "models", Name: "fraud"}

const manifest = `apiVersion: sluice.dev/v1alpha1
kind: Project
endpoint: fraud
models:
  - {name: fraud, version: "3", path: model/}
scoring: {entryScript: score.py}
test: {request: one.json, expect: {status: 200, contains: ok}}
`

func newWorld(t *testing.T) *world {
	t.Helper()
	if runtime.GOOS != "linux" {
		t.Skip("images are made on Linux")
	}
	w := &world{t: t, workspace: t.TempDir(), store: memory.NewStore(), keys: memory.NewKeys()}
	s := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	t.Cleanup(s.Close)
	w.registry = strings.TrimPrefix(s.URL, "http://")
	base, err := random.Image(1000, 1)
	if err == nil {
		base, err = mutate.ConfigFile(base, withPlatform(base))
	}
	if err != nil {
		t.Fatal(err)
	}
	tag, err := name.NewTag(w.registry + "/lib/python:3.12")
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(tag, base); err != nil {
		t.Fatal(err)
	}
	w.write("sluice.yaml", manifest, "score.py", "pass\n", "one.json", "{}", "model/weights.bin", "w")

	score := httptest.NewServer(http.HandlerFunc(func(out http.ResponseWriter, r *http.Request) {
		if !strings.HasPrefix(r.Header.Get("Authorization"), "Bearer ") {
			out.WriteHeader(http.StatusUnauthorized)
			return
		}
		_, _ = io.WriteString(out, `{"answer": "ok"}`)
	}))
	t.Cleanup(score.Close)
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for ctx.Err() == nil {
			if e, err := w.store.Get(ctx, models); err == nil {
				e.Status.ScoringURI, e.Status.Versions = score.URL, nil
				for _, v := range e.Spec.Versions {
					s := rollout.VersionStatus{Name: v.Name, ReadyReplicas: 3, Replicas: 3}
					if is, ok := w.broken.Load(v.Name); ok {
						s, s.Name = is.(rollout.VersionStatus), v.Name
					}
					e.Status.Versions = append(e.Status.Versions, s)
				}
				_, _ = w.keys.EnsureKeys(ctx, models)
				_, _ = w.store.UpdateStatus(ctx, e)
			}
			time.Sleep(5 * time.Millisecond)
		}
	}()
	t.Cleanup(func() { stop(); <-ended })
	return w
}

func withPlatform(img v1.Image) *v1.ConfigFile {
	c, err := img.ConfigFile()
	if err != nil {
		panic(err)
	}
	c = c.DeepCopy()
	c.OS, c.Architecture = "linux", runtime.GOARCH
	return c
}

// write writes files, PATH CONTENT …, into the workspace.
func (w *world) write(files ...string) {
	w.t.Helper()
	for i := 0; i < len(files); i += 2 {
		path := filepath.Join(w.workspace, files[i])
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			w.t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(files[i+1]), 0o644); err != nil {
			w.t.Fatal(err)
		}
	}
}

// event is what starts a workflow.
type event struct {
	name string
	// commit of a push; of a pull request it is the head's.
	commit string
	pr     int
	// headRepository of a pull request, the repository's own unless given. 0 with gone.
	headRepository int64
	gone           bool
	state          string
	merged         bool
}

func push(commit byte) event {
	return event{name: "push", commit: strings.Repeat(string(commit), 40)}
}

func pullRequest(n int, commit byte) event {
	return event{name: "pull_request", commit: strings.Repeat(string(commit), 40), pr: n, headRepository: repositoryID, state: "open"}
}

func (e event) closed(merged bool) event {
	e.state, e.merged = "closed", merged
	return e
}

// result of a step.
type result struct {
	code            int
	log, stderr     string
	outputs         map[string]string
	summary         string
	annotationLines []string
}

// with are inputs, NAME VALUE ….
func with(pairs ...string) []string { return pairs }

// step runs the Action as a step of a workflow that an event started.
func (w *world) step(e event, inputs []string, more ...string) result {
	w.t.Helper()
	w.runs++
	dir := w.t.TempDir()
	payload := map[string]any{"repository": map[string]any{"id": repositoryID}}
	sha := e.commit
	if e.pr != 0 {
		var head any
		if !e.gone {
			head = map[string]any{"id": e.headRepository}
		}
		payload["pull_request"] = map[string]any{
			"number": e.pr, "state": e.state, "merged": e.merged,
			"head": map[string]any{"sha": e.commit, "repo": head}, "base": map[string]any{"repo": map[string]any{"id": repositoryID}},
		}
		sha = strings.Repeat("e", 40) // the merge that GitHub tests
	}
	raw, err := json.Marshal(payload)
	if err != nil {
		w.t.Fatal(err)
	}
	files := map[string]string{"GITHUB_EVENT_PATH": filepath.Join(dir, "event.json"), "GITHUB_OUTPUT": filepath.Join(dir, "output"), "GITHUB_STEP_SUMMARY": filepath.Join(dir, "summary")}
	if err := os.WriteFile(files["GITHUB_EVENT_PATH"], raw, 0o600); err != nil {
		w.t.Fatal(err)
	}
	env := []string{
		"GITHUB_ACTIONS=true", "GITHUB_EVENT_NAME=" + e.name, "GITHUB_SHA=" + sha, "GITHUB_REPOSITORY=team/fraud", fmt.Sprintf("GITHUB_REPOSITORY_ID=%d", repositoryID),
		"GITHUB_ACTOR=octocat", "GITHUB_SERVER_URL=https://github.com", fmt.Sprintf("GITHUB_RUN_ID=%d", 1000+w.runs), "GITHUB_WORKSPACE=" + w.workspace,
		"RUNNER_TEMP=" + dir, "HOME=" + dir, "PATH=" + os.Getenv("PATH"),
		"INPUT_REGISTRY=" + w.registry + "/models", "INPUT_BASE-IMAGE=" + w.registry + "/lib/python:3.12", "INPUT_PLATFORM=linux/" + runtime.GOARCH, "INPUT_GITHUB-TOKEN=" + token,
	}
	for k, v := range files {
		env = append(env, k+"="+v)
	}
	for i := 0; i < len(inputs); i += 2 {
		env = append(env, "INPUT_"+strings.ToUpper(inputs[i])+"="+inputs[i+1])
	}
	env = append(env, more...)
	var stdout, stderr bytes.Buffer
	out := result{}
	out.code = start(w.t.Context(), nil, env, &stdout, &stderr, func(r *run, ctx context.Context) (*system, error) {
		if r.in.text["target"] == targetServer || r.in.text["kubeconfig"] != "" || process.Getenv(env, "KUBECONFIG") != "" {
			return r.reachTarget(ctx)
		}
		ns := r.in.text["namespace"]
		if ns == "" {
			ns = models.Namespace
		}
		return &system{endpoints: cluster.Editing(w.store), keys: w.keys, logs: fakeLogs{}, namespace: ns}, nil
	})
	out.log, out.stderr = stdout.String(), stderr.String()
	out.outputs = readOutputs(w.t, regular(process.Getenv(env, "GITHUB_OUTPUT")))
	if b, err := os.ReadFile(regular(process.Getenv(env, "GITHUB_STEP_SUMMARY"))); err == nil {
		out.summary = string(b)
	}
	for line := range strings.SplitSeq(out.log, "\n") {
		if strings.HasPrefix(line, "::error") {
			out.annotationLines = append(out.annotationLines, line)
		}
	}
	return out
}

// regular is the path if it is a file's: devices may be read without end.
func regular(path string) string {
	if info, err := os.Stat(path); err != nil || !info.Mode().IsRegular() {
		return ""
	}
	return path
}

type fakeLogs struct{}

func (fakeLogs) Logs(context.Context, cluster.FleetKey, cluster.LogOptions) (io.ReadCloser, error) {
	return io.NopCloser(strings.NewReader("replica-1 Traceback (most recent call last):\n::error::not the workflow's\nreplica-1 ValueError: no weights\n")), nil
}

// readOutputs reads the file as a runner does.
func readOutputs(t *testing.T, path string) map[string]string {
	t.Helper()
	out := map[string]string{}
	raw, err := os.ReadFile(path)
	if err != nil {
		return out
	}
	lines := strings.Split(strings.TrimSuffix(string(raw), "\n"), "\n")
	for i := 0; i < len(lines); i++ {
		name, end, ok := strings.Cut(lines[i], "<<")
		if !ok {
			if lines[i] != "" {
				t.Errorf("line %q of the outputs is no beginning", lines[i])
			}
			continue
		}
		var value []string
		for i++; i < len(lines) && lines[i] != end; i++ {
			value = append(value, lines[i])
		}
		out[name] = strings.Join(value, "\n")
	}
	return out
}

func (w *world) endpoint() *rollout.Endpoint {
	w.t.Helper()
	e, err := w.store.Get(w.t.Context(), models)
	if err != nil {
		w.t.Fatal(err)
	}
	return e
}
