package local_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/sluice-dev/sluice/pkg/cluster"
	"github.com/sluice-dev/sluice/pkg/cluster/local"
	"github.com/sluice-dev/sluice/pkg/project"
	"github.com/sluice-dev/sluice/pkg/runner"
	"github.com/sluice-dev/sluice/rollout"
)

// roleGate is the runner itself.
func roleGate(args []string) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	os.Exit(runner.Main(ctx, args, os.Environ(), os.Stdout, os.Stderr))
	return nil
}

// roleServer is a project's own server. It tells what it was started with.
func roleServer(args []string) error {
	http.HandleFunc("/predict", func(w http.ResponseWriter, _ *http.Request) {
		dir, _ := os.Getwd()
		model, err := os.ReadFile(filepath.Join(os.Getenv("AZUREML_MODEL_DIR"), "weights.txt"))
		fmt.Fprintf(w, "%s|%s|%s|%s|%v", strings.Join(args, " "), os.Getenv("GREETING"), model, filepath.Base(dir), err)
	})
	return http.ListenAndServe("127.0.0.1:"+os.Getenv("PORT"), nil)
}

func newArchives(t *testing.T, dir string) *local.Archives {
	t.Helper()
	a, err := local.NewArchives(dir, discard())
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// ship writes files as a project, packages it and returns the image.
func ship(t *testing.T, a *local.Archives, files map[string]string) string {
	t.Helper()
	src := t.TempDir()
	for name, text := range files {
		p := filepath.Join(src, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	var res project.Result
	digest, _, err := a.Write(t.Context(), func(w io.Writer) (err error) {
		res, err = project.Package(t.Context(), src, w, nil)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if digest != res.Digest {
		t.Errorf("stored under %s, packaged as %s", digest, res.Digest)
	}
	return "local/fraud@" + digest
}

func projectHost(t *testing.T) (*local.Host, *local.Archives) {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	var a *local.Archives
	h := newHost(t, func(o *local.HostOptions) {
		o.RunnerCommand, o.Launcher = []string{exe, "role=gate"}, nil
		o.Env = append(os.Environ(), "PYTHONDONTWRITEBYTECODE=1")
		a = newArchives(t, o.Dir)
	})
	return h, a
}

// A project with a server of its own, from its archive to an answer through the real gate.
func TestProjectWithItsOwnServer(t *testing.T) {
	t.Parallel()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	h, a := projectHost(t)
	image := ship(t, a, map[string]string{
		"sluice.yaml": `apiVersion: sluice.dev/v1alpha1
kind: Project
endpoint: fraud
models: [{name: m, version: "1", path: model/}]
environment: {variables: {GREETING: "overridden", ` + strings.Replace(quickExit, "=", `: "`, 1) + `"}}
scoring:
  command: ["` + exe + `", "role=server", "--threshold", "0.7"]
  server: {scorePath: /predict}
`,
		"model/weights.txt": "42",
	})
	digest, err := local.DigestOf(image)
	if err != nil {
		t.Fatal(err)
	}
	spec := cluster.FleetSpec{Key: v1, Image: image, Revision: "r1", Settings: rollout.Settings{
		EnvironmentVariables: map[string]rollout.EnvValue{"GREETING": {Value: "hello"}}, ScoringTimeoutMs: 5000,
	}}
	if err := h.Apply(t.Context(), spec); err != nil {
		t.Fatal(err)
	}
	if err := h.Scale(t.Context(), v1, 2); err != nil {
		t.Fatal(err)
	}
	eventually(t, 20*time.Second, "2 ready replicas", func() error {
		if s := fleet(t, h); s.Count(cluster.ReplicaReady) != 2 {
			return fmt.Errorf("fleet is %+v", s)
		}
		return nil
	})
	for _, r := range fleet(t, h).Replicas {
		want := "--threshold 0.7|hello|42|" + strings.TrimPrefix(digest, "sha256:") + "|<nil>"
		if got := mustGet(t, r, "/score"); got != want {
			t.Errorf("answer %q, want %q", got, want)
		}
	}
	begin := time.Now()
	if err := h.Delete(t.Context(), v1); err != nil {
		t.Fatal(err)
	}
	eventually(t, 10*time.Second, "gone", func() error {
		if s := fleet(t, h); len(s.Replicas) > 0 {
			return fmt.Errorf("fleet is %+v", s)
		}
		return nil
	})
	t.Logf("drained in %s", time.Since(begin).Round(time.Millisecond))
}

func TestProjectWithAScript(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("python3"); err != nil {
		t.Skip("no python3")
	}
	h, a := projectHost(t)
	manifest := "apiVersion: sluice.dev/v1alpha1\nkind: Project\nendpoint: fraud\nscoring: {entryScript: score.py, arguments: [x y]}\n"
	works := ship(t, a, map[string]string{"sluice.yaml": manifest, "score.py": "import sys\ndef init():\n    print('init of', sys.argv[1])\ndef run(data):\n    return {'got': data}\n"})
	fails := ship(t, a, map[string]string{"sluice.yaml": manifest, "score.py": "def init():\n    raise ValueError('no model here')\ndef run(data):\n    pass\n"})
	if err := h.Apply(t.Context(), cluster.FleetSpec{Key: v1, Image: fails, Revision: "r1"}); err != nil {
		t.Fatal(err)
	}
	r := first(t, h, "failed", func(r cluster.Replica) bool { return r.State == cluster.ReplicaFailed })
	if r.Reason != rollout.ReasonInitFailed || !strings.Contains(r.Message, "ValueError: no model here") {
		t.Errorf("failed with %s %q", r.Reason, r.Message)
	}
	begin := time.Now()
	if err := h.Apply(t.Context(), cluster.FleetSpec{Key: v1, Image: works, Revision: "r2"}); err != nil {
		t.Fatal(err)
	}
	var ready cluster.Replica
	eventually(t, 20*time.Second, "ready", func() error {
		s := fleet(t, h)
		if s.Count(cluster.ReplicaReady) != 1 || len(s.Replicas) != 1 {
			return fmt.Errorf("fleet is %+v", s)
		}
		ready = s.Replicas[0]
		return nil
	})
	t.Logf("applied to ready, with unpacking and Python's start: %s", time.Since(begin).Round(time.Millisecond))
	resp, err := http.Post("http://"+ready.Address+"/score", "application/json", strings.NewReader(`[1]`))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if b, err := io.ReadAll(resp.Body); err != nil || strings.TrimSpace(string(b)) != `{"got": "[1]"}` {
		t.Errorf("answer %q, %v", b, err)
	}
	// kill -9 of the gate takes the worker with it, and both come again.
	before := replicaProcesses(t, ready.Name)
	gate := 0
	for pid, cmd := range before {
		if strings.Contains(cmd, "role=gate") {
			gate = pid
		}
	}
	if len(before) != 2 || gate == 0 {
		t.Fatalf("processes are %v, want a gate and a worker", before)
	}
	if err := syscall.Kill(gate, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, 20*time.Second, "ready after kill -9 of the gate", func() error {
		s := fleet(t, h)
		if s.Count(cluster.ReplicaReady) != 1 || s.Replicas[0].Restarts != 1 {
			return fmt.Errorf("fleet is %+v", s)
		}
		return nil
	})
	for pid := range replicaProcesses(t, ready.Name) {
		if before[pid] != "" {
			t.Errorf("process %d (%s) outlived its gate", pid, before[pid])
		}
	}
	logs, err := h.Logs(t.Context(), v1, cluster.LogOptions{})
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(logs)
	if err != nil || !strings.Contains(string(text), "init of x y") || !strings.Contains(string(text), "ValueError: no model here") {
		t.Errorf("logs: %v\n%s", err, text)
	}
}

func TestProjectImageMissing(t *testing.T) {
	t.Parallel()
	h, a := projectHost(t)
	check := func(what string) {
		t.Helper()
		eventually(t, 10*time.Second, what, func() error {
			s := fleet(t, h)
			if s.Reason != rollout.ReasonImageMissing || !strings.Contains(s.Message, what) {
				return fmt.Errorf("fleet is %+v", s)
			}
			return nil
		})
	}
	if err := h.Apply(t.Context(), cluster.FleetSpec{Key: v1, Image: images["works"], Revision: "r1"}); err != nil {
		t.Fatal(err)
	}
	check("no archive")
	digest, _, err := a.Put(t.Context(), strings.NewReader("this is no archive, whatever its digest"))
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Apply(t.Context(), cluster.FleetSpec{Key: v1, Image: "x@" + digest, Revision: "r2"}); err != nil {
		t.Fatal(err)
	}
	check("damaged")
}

func TestArchives(t *testing.T) {
	dir := t.TempDir()
	a, b := newArchives(t, dir), newArchives(t, dir)
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	if err := w.WriteHeader(&tar.Header{Name: "a.txt", Size: 5, Mode: 0o644, Typeflag: tar.TypeReg}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	data := buf.Bytes()
	digest, known, err := a.Put(t.Context(), bytes.NewReader(data))
	if err != nil || known {
		t.Fatal(digest, known, err)
	}
	again, known, err := b.Put(t.Context(), bytes.NewReader(data))
	if err != nil || !known || again != digest {
		t.Errorf("put twice: %s, %v, %v; want %s and known", again, known, err, digest)
	}
	if !b.Has(digest) || b.Has("sha256:"+strings.Repeat("0", 64)) || b.Has("sha256:../../x") || b.Has("") {
		t.Error("Has is wrong")
	}
	r, err := b.Open(digest)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, data) {
		t.Errorf("read back %d of %d bytes, %v", len(got), len(data), err)
	}
	_ = r.Close()
	if _, err := a.Open("sha256:" + strings.Repeat("0", 64)); rollout.ReasonOf(err) != rollout.ReasonImageMissing {
		t.Errorf("open what is not there: %v", err)
	}

	var wg sync.WaitGroup
	for _, x := range []*local.Archives{a, b, a, b} {
		wg.Go(func() {
			tree, err := x.Unpack(t.Context(), digest)
			if err != nil {
				t.Error(err)
				return
			}
			if text, err := os.ReadFile(filepath.Join(tree, "a.txt")); err != nil || string(text) != "hello" {
				t.Errorf("unpacked %q, %v", text, err)
			}
		})
	}
	wg.Wait()

	// A write that fails, or that is given up, leaves nothing.
	if _, _, err := a.Write(t.Context(), func(w io.Writer) error {
		_, _ = w.Write([]byte("half"))
		return errors.New("disk full")
	}); err == nil {
		t.Error("a failed write was stored")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := a.Put(ctx, bytes.NewReader(data)); !errors.Is(err, context.Canceled) {
		t.Errorf("put with an ended context: %v", err)
	}
	if es, err := os.ReadDir(filepath.Join(dir, "archives")); err != nil || len(es) != 1 {
		t.Errorf("archives: %v, %v; want one file", es, err)
	}

	// Damage is noticed.
	other, _, err := a.Put(t.Context(), bytes.NewReader(append(bytes.Clone(data), 0)))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "archives", strings.TrimPrefix(other, "sha256:")+".tar"), data, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Unpack(t.Context(), other); rollout.ReasonOf(err) != rollout.ReasonImageMissing {
		t.Errorf("unpack a damaged archive: %v", err)
	}
}

func TestCollect(t *testing.T) {
	dir := t.TempDir()
	a := newArchives(t, dir)
	put := func(text string) string {
		t.Helper()
		digest, _, err := a.Put(t.Context(), strings.NewReader(text))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.MkdirAll(filepath.Join(dir, "projects", strings.TrimPrefix(digest, "sha256:"), "sub"), 0o755); err != nil {
			t.Fatal(err)
		}
		return digest
	}
	used, unused, back := put("used"), put("unused"), put("put again")
	collect := func(grace time.Duration, want ...string) {
		t.Helper()
		got, err := a.Collect(t.Context(), []string{"local/x@" + used, "not an image"}, grace)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Join(got, " ") != strings.Join(want, " ") {
			t.Errorf("collected %v, want %v", got, want)
		}
	}
	collect(time.Hour)
	collect(time.Hour)
	// An hour later the same is found, but one of them was stored again meanwhile.
	past := time.Now().Add(-2 * time.Hour)
	for _, d := range []string{unused, back} {
		if err := os.Chtimes(filepath.Join(dir, "archives", strings.TrimPrefix(d, "sha256:")+".unused"), past, past); err != nil {
			t.Fatal(err)
		}
	}
	put("put again")
	collect(time.Hour, unused)
	if !a.Has(used) || !a.Has(back) || a.Has(unused) {
		t.Error("the wrong archives are left")
	}
	es, err := os.ReadDir(filepath.Join(dir, "projects"))
	if err != nil || len(es) != 2 {
		t.Errorf("trees: %v, %v; want 2", es, err)
	}
	collect(0, back)
	if !a.Has(used) {
		t.Error("what is in use was removed")
	}
}

func TestDigestOf(t *testing.T) {
	good := "sha256:" + strings.Repeat("0a", 32)
	if d, err := local.DigestOf("local/fraud@" + good); err != nil || d != good {
		t.Errorf("%q, %v", d, err)
	}
	for _, bad := range []string{"", "fraud", "fraud:latest", "fraud@sha256:", "fraud@sha256:" + strings.Repeat("g", 64), "fraud@sha256:../../../../etc", "fraud@" + good + "0"} {
		if _, err := local.DigestOf(bad); rollout.ReasonOf(err) != rollout.ReasonInvalid {
			t.Errorf("%q: %v, want invalid", bad, err)
		}
	}
}

// replicaProcesses are those of one replica, by process id.
func replicaProcesses(t *testing.T, name string) map[int]string {
	t.Helper()
	out := map[int]string{}
	for pid, cmd := range withEnv(t, "SLUICE_REPLICA=") {
		env, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
		if err == nil && strings.Contains(string(env), "/"+name+"\x00") {
			out[pid] = cmd
		}
	}
	return out
}
