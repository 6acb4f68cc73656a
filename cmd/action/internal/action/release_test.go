package action

import (
	"crypto/sha256"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"

	yaml "go.yaml.in/yaml/v3"
)

// release is a copy of what `build/release.sh pin` changes and of the composite action.
func release(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, name := range []string{"action.yml", "build/release.sh", "action/composite/action.yml", "action/composite/run.sh"} {
		text, err := os.ReadFile(root + name)
		if err == nil {
			err = os.MkdirAll(filepath.Join(dir, filepath.Dir(name)), 0o755)
		}
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, name), text, 0o755)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestPinnedRelease(t *testing.T) {
	dir := release(t)
	digest := "sha256:" + strings.Repeat("5", 64)
	pin := func(args ...string) (string, error) {
		c := exec.Command("bash", append([]string{filepath.Join(dir, "build/release.sh"), "pin"}, args...)...)
		out, err := c.CombinedOutput()
		return string(out), err
	}
	dist := filepath.Join(dir, "dist")
	if out, err := pin("v1.2.3", "ghcr.io/sluice-dev/sluice/action@"+digest, dist); err == nil || !strings.Contains(out, "no checksums.txt") {
		t.Errorf("without programs: %v %s", err, out)
	}
	if err := os.MkdirAll(dist, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dist, "checksums.txt"), []byte("0  x\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"1.2", "ghcr.io/sluice-dev/sluice/action@" + digest, dist}, {"v1.2.3", "ghcr.io/sluice-dev/sluice/action:v1", dist}} {
		if out, err := pin(args...); err == nil {
			t.Errorf("%q was taken: %s", args, out)
		}
	}
	if out, err := pin("v1.2.3", "ghcr.io/sluice-dev/sluice/action@"+digest, dist); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	raw, err := os.ReadFile(filepath.Join(dir, "action.yml"))
	if err != nil {
		t.Fatal(err)
	}
	var got struct{ Runs struct{ Using, Image string } }
	if err := yaml.Unmarshal(raw, &got); err != nil || got.Runs.Image != "docker://ghcr.io/sluice-dev/sluice/action@"+digest {
		t.Errorf("it runs %+v (%v)", got.Runs, err)
	}
	if version, err := os.ReadFile(filepath.Join(dir, "action/composite/version")); err != nil || string(version) != "v1.2.3\n" {
		t.Errorf("the composite action's version is %q (%v)", version, err)
	}
}

// The composite action fetches its release's programs once, and only those that the release was made with.
func TestCompositeFetchesPrograms(t *testing.T) {
	for _, tool := range []string{"bash", "curl", "tar", "sha256sum"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("needs %s", tool)
		}
	}
	arch := map[string]string{"amd64": "amd64", "arm64": "arm64"}[runtime.GOARCH]
	if arch == "" || runtime.GOOS != "linux" {
		t.Skip("the composite action is for Linux on amd64 and arm64")
	}
	dir := release(t)
	made := t.TempDir()
	for name, text := range map[string]string{"action": "#!/bin/sh\necho \"inputs $SLUICE_ACTION_INPUTS, runner $(test -x \"$(dirname \"$0\")/runner\" && echo there)\"\n", "runner": "#!/bin/sh\n"} {
		if err := os.WriteFile(filepath.Join(made, name), []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	archive := filepath.Join(made, "a.tar.gz")
	if out, err := exec.Command("tar", "-C", made, "-czf", archive, "action", "runner").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	content, err := os.ReadFile(archive)
	if err != nil {
		t.Fatal(err)
	}
	name := "sluice-action_linux_" + arch + ".tar.gz"
	var asked atomic.Int64
	var served atomic.Pointer[[]byte]
	served.Store(&content)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		if r.URL.Path != "/v1.2.3/"+name {
			http.NotFound(w, r)
			return
		}
		_, _ = w.Write(*served.Load())
	}))
	t.Cleanup(s.Close)
	tools := t.TempDir()
	run := func() (string, error) {
		c := exec.Command(filepath.Join(dir, "action/composite/run.sh"))
		c.Env = []string{"PATH=" + os.Getenv("PATH"), "RUNNER_TEMP=" + t.TempDir(), "RUNNER_TOOL_CACHE=" + tools, "SLUICE_ACTION_DOWNLOADS=" + s.URL, `SLUICE_ACTION_INPUTS={"command":"status"}`}
		out, err := c.CombinedOutput()
		return string(out), err
	}
	if out, err := run(); err == nil || !strings.Contains(out, "this is no release of Sluice") {
		t.Errorf("from a branch: %v %s", err, out)
	}
	for file, text := range map[string]string{"version": "v1.2.3\n", "checksums.txt": fmt.Sprintf("%x  other_%s\n%x  %s\n", sha256.Sum256(nil), name, sha256.Sum256(content), name)} {
		if err := os.WriteFile(filepath.Join(dir, "action/composite", file), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	wrong := append([]byte("x"), content...)
	served.Store(&wrong)
	if out, err := run(); err == nil || !strings.Contains(out, "is not the file that this release was made with") {
		t.Errorf("another file: %v %s", err, out)
	}
	served.Store(&content)
	for n := range 2 {
		out, err := run()
		if err != nil || out != "inputs {\"command\":\"status\"}, runner there\n" {
			t.Fatalf("run %d: %v %s", n, err, out)
		}
	}
	if n := asked.Load(); n != 2 {
		t.Errorf("it was fetched %d times, want once after the wrong one", n)
	}
}

// Inputs of the composite action come in JSON; they are read as those of the other.
func TestCompositeInputs(t *testing.T) {
	in, err := parse(nil, []string{compositeInputs + `={"command":"traffic","traffic-percentile":"12.5","endpoint":"fraud","kubeconfig":"","dry-run":"true"}`}, nil)
	if err != nil || in.text["command"] != "traffic" || in.percent == nil || in.percent.String() != "12.5" || !in.is("dry-run") || in.text["timeout"] != "10m" {
		t.Errorf("read %+v (%v)", in, err)
	}
	if _, err := parse(nil, []string{compositeInputs + "={secret"}, nil); err == nil || strings.Contains(err.Error(), "secret") {
		t.Errorf("error %v", err)
	}
}
