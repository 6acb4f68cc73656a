package kube_test

import (
	"archive/tar"
	"bytes"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/sluice-dev/sluice/pkg/cluster"
	"github.com/sluice-dev/sluice/pkg/cluster/clustertest"
	"github.com/sluice-dev/sluice/pkg/cluster/kube"
)

// The images of the fleet's suite are the test cluster's Python, the runner and a script.
const (
	worksScript = "print('the script was read', flush=True)\ndef init():\n    pass\ndef run(data):\n    return data\n"
	failsScript = "def init():\n    raise RuntimeError('no model here')\ndef run(data):\n    return data\n"
)

// registries are where images are pushed to, and what nodes call it.
func registries(t *testing.T) (push, pull string) {
	t.Helper()
	push, pull = os.Getenv("SLUICE_TEST_REGISTRY"), os.Getenv("SLUICE_TEST_PULL_REGISTRY")
	if push == "" {
		t.Skip("needs a registry that the cluster pulls from: SLUICE_TEST_REGISTRY (and SLUICE_TEST_PULL_REGISTRY, as nodes call it); `make cluster-up` has one")
	}
	if pull == "" {
		pull = push
	}
	return push, pull
}

// layer of files, all of them executable.
func layer(t *testing.T, files map[string][]byte) v1.Layer {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for path, data := range files {
		if err := w.WriteHeader(&tar.Header{Name: path, Mode: 0o755, Size: int64(len(data))}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(data); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b.Bytes())), nil })
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// scriptImage pushes an image that serves the script, and returns it by digest.
func scriptImage(t *testing.T, runner []byte, script string) string {
	t.Helper()
	push, pull := registries(t)
	base, err := name.ParseReference(push + "/base/python:3")
	if err != nil {
		t.Fatal(err)
	}
	img, err := remote.Image(base)
	if err != nil {
		t.Fatalf("base image: %v", err)
	}
	if img, err = mutate.AppendLayers(img, layer(t, map[string][]byte{"sluice/runner": runner}), layer(t, map[string][]byte{"app/score.py": []byte(script)})); err != nil {
		t.Fatal(err)
	}
	cfg, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	c := cfg.Config
	c.Entrypoint, c.Cmd, c.WorkingDir = []string{"/sluice/runner"}, []string{"--entry-script=score.py"}, "/app"
	c.Env = append(c.Env, "SLUICE_RUNNER_PROJECT_DIR=/app")
	if img, err = mutate.Config(img, c); err != nil {
		t.Fatal(err)
	}
	repo, err := name.NewRepository(push + "/suite")
	if err != nil {
		t.Fatal(err)
	}
	digest, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(repo.Digest(digest.String()), img); err != nil {
		t.Fatal(err)
	}
	return pull + "/suite@" + digest.String()
}

// TestFleet runs the suite on real pods. It dials their addresses, so it must run where these are
// reached: `cluster exec`.
func TestFleet(t *testing.T) {
	l := newLive(t)
	_, pull := registries(t)
	file := filepath.Join(t.TempDir(), "runner")
	build := exec.Command("go", "build", "-o", file, "github.com/sluice-dev/sluice/cmd/runner")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build runner: %v\n%s", err, out)
	}
	runner, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	clustertest.Fleet(t, clustertest.FleetWorld{
		Open: func(t *testing.T) cluster.Fleet {
			l.clear(t)
			c, start := l.open(t, kube.SecretsNone)
			f, err := c.Fleets(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			start()
			return f
		},
		Works: scriptImage(t, runner, worksScript), WorksToo: scriptImage(t, runner, "# too\n"+worksScript), Writes: "the script was read",
		Fails:   scriptImage(t, runner, failsScript),
		Missing: pull + "/suite@sha256:" + strings.Repeat("0", 64),
		// A pod drains for some seconds before it ends, and a failing one is started again with back-off.
		Wait: 45 * time.Second, Answers: true, LogsEnd: true,
	})
}
