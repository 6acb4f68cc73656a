package image_test

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
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

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/sluice-dev/sluice/pkg/image"
	"github.com/sluice-dev/sluice/rollout"
)

// builtRunner is the real runner, compiled once for all tests.
var builtRunner = struct {
	once sync.Once
	dir  string
	err  error
}{}

func TestMain(m *testing.M) {
	if args := os.Getenv(variableShip); args != "" {
		shipAndExit(args)
	}
	code := m.Run()
	if builtRunner.dir != "" {
		_ = os.RemoveAll(builtRunner.dir)
	}
	os.Exit(code)
}

func runnerFile(t *testing.T) string {
	t.Helper()
	if runtime.GOOS != "linux" {
		t.Skip("the runner of this machine cannot be in an image")
	}
	b := &builtRunner
	b.once.Do(func() {
		if b.dir, b.err = os.MkdirTemp("", "sluice-runner-*"); b.err != nil {
			return
		}
		c := exec.Command("go", "build", "-o", filepath.Join(b.dir, "runner"), "github.com/sluice-dev/sluice/cmd/runner")
		c.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := c.CombinedOutput(); err != nil {
			b.err = errors.New(err.Error() + ": " + string(out))
		}
	})
	if b.err != nil {
		t.Fatal(b.err)
	}
	return filepath.Join(b.dir, "runner")
}

// testRegistry is a real one in this process that counts what it is sent.
type testRegistry struct {
	host    string
	handler http.Handler
	mu      sync.Mutex
	sent    []string // digests of blobs
}

func newRegistry(t *testing.T) *testRegistry {
	t.Helper()
	r := &testRegistry{}
	inner := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	r.handler = http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if d := req.URL.Query().Get("digest"); req.Method == http.MethodPut && d != "" {
			r.mu.Lock()
			r.sent = append(r.sent, d)
			r.mu.Unlock()
		}
		inner.ServeHTTP(w, req)
	})
	s := httptest.NewServer(r.handler)
	t.Cleanup(s.Close)
	r.host = strings.TrimPrefix(s.URL, "http://")
	return r
}

// since gives the digests of the blobs sent since it was called last.
func (r *testRegistry) since() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := r.sent
	r.sent = nil
	return out
}

// tags of a repository, which need not exist.
func (r *testRegistry) tags(t *testing.T, repo string) []string {
	t.Helper()
	parsed, err := name.NewRepository(r.host + "/" + repo)
	if err != nil {
		t.Fatal(err)
	}
	tags, err := remote.List(parsed)
	var said *transport.Error
	if errors.As(err, &said) && said.StatusCode == http.StatusNotFound {
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	return tags
}

func (r *testRegistry) image(t *testing.T, ref string) v1.Image {
	t.Helper()
	parsed, err := name.ParseReference(ref)
	if err != nil {
		t.Fatal(err)
	}
	img, err := remote.Image(parsed)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// baseOf is a base image in Docker's format, as most are, for a platform.
func baseOf(t *testing.T, arch string) v1.Image {
	t.Helper()
	l, err := random.Layer(2000, types.DockerLayer)
	if err != nil {
		t.Fatal(err)
	}
	img, err := mutate.Append(empty.Image, mutate.Addendum{Layer: l, History: v1.History{CreatedBy: "base"}},
		mutate.Addendum{History: v1.History{CreatedBy: "ENV", EmptyLayer: true}})
	if err != nil {
		t.Fatal(err)
	}
	config, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	config.OS, config.Architecture = "linux", arch
	config.Config = v1.Config{
		Env:        []string{"PATH=/opt/bin:/usr/bin", "LANG=C.UTF-8", "PORT=80", "AZUREML_ENTRY_SCRIPT=other.py", "SLUICE_RUNNER_MODE=script"},
		Entrypoint: []string{"/bin/sh"}, Cmd: []string{"-c", "true"}, User: "root", StopSignal: "SIGQUIT",
		Labels: map[string]string{"org.opencontainers.image.revision": "of the base", "maintainer": "someone"},
	}
	if img, err = mutate.ConfigFile(img, config); err != nil {
		t.Fatal(err)
	}
	return img
}

// base puts base:1 (amd64 and arm64) and base:arm (arm64 alone, no index) into the registry.
func (r *testRegistry) base(t *testing.T) string {
	t.Helper()
	arm := baseOf(t, "arm64")
	index := mutate.AppendManifests(mutate.IndexMediaType(empty.Index, types.DockerManifestList),
		mutate.IndexAddendum{Add: baseOf(t, "amd64"), Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "amd64"}}},
		mutate.IndexAddendum{Add: arm, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "arm64", Variant: "v8"}}})
	tag := func(s string) name.Tag {
		ref, err := name.NewTag(r.host + "/base:" + s)
		if err != nil {
			t.Fatal(err)
		}
		return ref
	}
	if err := errors.Join(remote.WriteIndex(tag("1"), index), remote.Write(tag("arm"), arm)); err != nil {
		t.Fatal(err)
	}
	r.since()
	return r.host + "/base:1"
}

func (r *testRegistry) shipper(t *testing.T) image.Shipper {
	runner := runnerFile(t)
	return image.Shipper{
		Registry: r.host + "/models", RunnerFile: runner, BaseImage: r.base(t), TempDir: t.TempDir(),
		// Compressing the runner anew takes most of a small test's time.
		CacheDir: filepath.Join(filepath.Dir(runner), "cache"),
	}
}

// small is a shipper for which a MiB is a sixteenth of one.
func (r *testRegistry) small(t *testing.T) image.Shipper {
	s := r.shipper(t)
	s.Client = s.Client.Divided(divided)
	return s
}

// write makes a project of files, in that order.
func write(t *testing.T, dir string, files ...string) string {
	t.Helper()
	for i := 0; i < len(files); i += 2 {
		p := filepath.Join(dir, filepath.FromSlash(files[i]))
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(files[i+1]), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

const manifest = `apiVersion: sluice.dev/v1alpha1
kind: Project
endpoint: fraud
models: [{name: fraud, version: "3", path: model/}]
environment: {variables: {OMP_NUM_THREADS: "1", LANG: C}}
scoring: {entryScript: score.py, sourceDirectory: src, arguments: ["--threshold", "0.7"]}
`

func project(t *testing.T) string {
	t.Helper()
	return write(t, t.TempDir(), "sluice.yaml", manifest, "model/weights.bin", "w", "model/more/index", "i", "src/score.py", "pass", "src/lib/util.py", "pass")
}

// entry is what a layer's tar says of a path.
type entry struct {
	typ  byte
	mode int64
	to   string
	text string
}

// entries of a layer, directories with a slash.
func entries(t *testing.T, l v1.Layer) map[string]entry {
	t.Helper()
	r, err := l.Uncompressed()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	out := map[string]entry{}
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.Uid != 0 || h.Gid != 0 || h.ModTime.Unix() != 0 || h.Uname != "" {
			t.Errorf("%s has an owner or a time: %+v", h.Name, h)
		}
		var text bytes.Buffer
		if h.Size < 1000 {
			if _, err := text.ReadFrom(tr); err != nil {
				t.Fatal(err)
			}
		}
		out[h.Name] = entry{h.Typeflag, h.Mode, h.Linkname, text.String()}
	}
}

func sum(text string) string { return fmt.Sprintf("%x", sha256.Sum256([]byte(text))) }

func decode(t *testing.T, r io.Reader, v any) {
	t.Helper()
	if err := json.NewDecoder(r).Decode(v); err != nil {
		t.Fatal(err)
	}
}

// refused wants an error with a reason, that has all of the texts.
func refused(t *testing.T, err error, reason rollout.Reason, texts ...string) {
	t.Helper()
	if rollout.ReasonOf(err) != reason {
		t.Errorf("%v, want %s", err, reason)
	}
	for _, text := range texts {
		if err != nil && !strings.Contains(err.Error(), text) {
			t.Errorf("%q is not in: %v", text, err)
		}
	}
}
