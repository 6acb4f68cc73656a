package build_test

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/subtle"
	"debug/elf"
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
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/moby/buildkit/client"
	docker "github.com/moby/moby/client"

	"github.com/sluice-dev/sluice/pkg/image/build"
	"github.com/sluice-dev/sluice/rollout"
)

// ownDir is a variable with the directory of a buildkitd that is nobody else's: what `buildkit run` starts.
const ownDir = "SLUICE_TEST_BUILDKIT_DIR"

const busybox = "/bin/busybox"

// place is a registry with a base image, and a builder that reports.
type place struct {
	*hub
	t *testing.T
	b build.Builder
	// dated says that the builder keeps times.
	dated bool

	mu    sync.Mutex
	lines []string
}

func newPlace(t *testing.T) *place {
	t.Helper()
	if os.Getenv(build.HostVariable) == "" {
		t.Skip("it needs a builder: run `make build-e2e` as root on Linux, or set BUILDKIT_HOST")
	}
	return newPlaceOf(t)
}

func newPlaceOf(t *testing.T) *place {
	t.Helper()
	p := &place{t: t, hub: newHub(t)}
	p.b = build.Builder{Keychain: keys{}, LogDir: t.TempDir(), Progress: func(format string, args ...any) {
		line := fmt.Sprintf(format, args...)
		t.Log(line)
		p.mu.Lock()
		defer p.mu.Unlock()
		p.lines = append(p.lines, line)
	}}
	if err := remote.Write(p.tag("base:1"), baseImage(t)); err != nil {
		t.Fatal(err)
	}
	return p
}

// said are the lines of progress since the last call.
func (p *place) said() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	defer func() { p.lines = nil }()
	return strings.Join(p.lines, "\n") + "\n"
}

// request is a build of files (by path; FROM base stands for the base image).
func (p *place) request(target string, files map[string]string) build.Request {
	p.t.Helper()
	dir := p.t.TempDir()
	for path, text := range files {
		path = filepath.Join(dir, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			p.t.Fatal(err)
		}
		text = strings.ReplaceAll(text, "FROM base\n", "FROM "+p.tag("base:1").Name()+"\n")
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			p.t.Fatal(err)
		}
	}
	return build.Request{
		ContextDir: dir, Dockerfile: "Dockerfile", Target: p.tag(target),
		Platform: v1.Platform{OS: "linux", Architecture: runtime.GOARCH},
	}
}

func (p *place) build(r build.Request) v1.Hash {
	p.t.Helper()
	digest, err := p.b.Build(p.t.Context(), r)
	if err != nil {
		p.t.Fatal(err)
	}
	return digest
}

// refused builds what cannot be built.
func (p *place) refused(r build.Request, want rollout.Reason, says ...string) *rollout.Error {
	p.t.Helper()
	_, err := p.b.Build(p.t.Context(), r)
	var e *rollout.Error
	if !errors.As(err, &e) || e.Reason != want || e.Hint == "" {
		p.t.Fatalf("the build's error is %v, not of %s", err, want)
	}
	p.t.Logf("refused: %v", err)
	for _, s := range append(says, p.log()) {
		if !strings.Contains(e.Message, s) {
			p.t.Errorf("the error lacks %q: %v", s, err)
		}
	}
	p.absent(r.Target)
	return e
}

// log is the path of the last log.
func (p *place) log() string {
	p.t.Helper()
	logs, err := filepath.Glob(filepath.Join(p.b.LogDir, "sluice-build-*.log"))
	if err != nil || len(logs) == 0 {
		p.t.Fatalf("there is no log: %v", err)
	}
	return slices.MaxFunc(logs, func(a, b string) int { return modified(p.t, a).Compare(modified(p.t, b)) })
}

func modified(t *testing.T, path string) time.Time {
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.ModTime()
}

func (p *place) absent(tag name.Tag) {
	p.t.Helper()
	if _, err := remote.Head(tag, remote.WithAuth(p.admin())); err == nil {
		p.t.Errorf("%s is there", tag)
	}
}

// has is the image that a tag names.
func (p *place) has(tag name.Tag) v1.Image {
	p.t.Helper()
	img, err := remote.Image(tag, remote.WithAuth(p.admin()))
	if err != nil {
		p.t.Fatal(err)
	}
	return img
}

// files are those of an image's layers above the base's.
func (p *place) files(img v1.Image) map[string]string {
	p.t.Helper()
	layers, err := img.Layers()
	if err != nil {
		p.t.Fatal(err)
	}
	out := map[string]string{}
	for _, l := range layers[1:] {
		r, err := l.Uncompressed()
		if err != nil {
			p.t.Fatal(err)
		}
		defer r.Close()
		for tr := tar.NewReader(r); ; {
			h, err := tr.Next()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				p.t.Fatal(err)
			}
			if !p.dated && h.ModTime.Unix() != 0 {
				p.t.Errorf("%s is of %v", h.Name, h.ModTime)
			}
			text, err := io.ReadAll(tr)
			if err != nil {
				p.t.Fatal(err)
			}
			out[h.Name] = fmt.Sprintf("%v %d:%d %s", h.FileInfo().Mode(), h.Uid, h.Gid, text)
		}
	}
	return out
}

func TestBuild(t *testing.T) {
	p := newPlace(t)
	files := map[string]string{
		"Dockerfile":    "FROM base\nCOPY data /data\nRUN cat /data/hello > /made && date +%s%N > /dev/null\n",
		"data/hello":    "hello\n",
		"data/deep/own": "x",
	}
	r := p.request("env:1", files)
	r.Labels = map[string]string{"dev.sluice.environment": "abc"}
	r.Annotations = map[string]string{"org.opencontainers.image.source": "https://git.example/x"}
	began := time.Now()
	first := p.build(r)
	t.Logf("first build: %.1f s", time.Since(began).Seconds())
	if said := p.said(); !strings.Contains(said, "RUN cat /data/hello") || !strings.Contains(said, p.log()) || strings.Contains(said, "RUN cat /data/hello > /made && date +%s%N > /dev/null: cached") {
		t.Errorf("the first build said %s", said)
	}
	img := p.has(r.Target)
	if is, err := img.Digest(); err != nil || is != first {
		t.Errorf("the registry has %v, %v, and not %v", is, err, first)
	}
	m, err := img.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	if m.MediaType != types.OCIManifestSchema1 || m.Annotations["org.opencontainers.image.source"] != "https://git.example/x" {
		t.Errorf("the manifest is %+v", m)
	}
	config, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	if config.Config.Labels["dev.sluice.environment"] != "abc" || config.Created.Unix() != 0 || config.Architecture != runtime.GOARCH {
		t.Errorf("the configuration is %+v", config)
	}
	if is := p.files(img); is["data/hello"] != "-rw-r--r-- 0:0 hello\n" || is["made"] != "-rw-r--r-- 0:0 hello\n" {
		t.Errorf("the files are %q", is)
	}

	began = time.Now()
	if again := p.build(r); again != first {
		t.Errorf("again it is %v", again)
	}
	t.Logf("second build: %.1f s", time.Since(began).Seconds())
	again := strings.Split(p.said(), "\n")
	for _, step := range []string{"RUN cat /data/hello", "COPY data"} {
		if !slices.ContainsFunc(again, func(l string) bool { return strings.Contains(l, step) && strings.HasSuffix(l, ": cached") }) {
			t.Errorf("%s is not from the cache: %q", step, again)
		}
	}

	// Elsewhere, at another time, by somebody with another umask, and with every step run again.
	other := p.request("env:other", files)
	other.Labels, other.Annotations, other.NoCache = r.Labels, r.Annotations, true
	hello := filepath.Join(other.ContextDir, "data/hello")
	if err := errors.Join(os.Chmod(hello, 0o600), os.Chtimes(hello, time.Time{}, time.Unix(5000, 0)), os.Chmod(filepath.Dir(hello), 0o700)); err != nil {
		t.Fatal(err)
	}
	if is := p.build(other); is != first {
		t.Errorf("the same files give %v and %v", first, is)
	}
	if strings.Contains(p.said(), "RUN cat /data/hello > /made && date +%s%N > /dev/null: cached") {
		t.Error("a build without cache used it")
	}
}

// A builder takes a file for unchanged when its size and time are.
func TestChangedFileIsSeen(t *testing.T) {
	p := newPlace(t)
	r := p.request("env:1", map[string]string{"Dockerfile": "FROM base\nCOPY a /a\n", "a": "one"})
	file := filepath.Join(r.ContextDir, "a")
	still := time.Unix(1000, 0)
	for _, text := range []string{"one", "two"} {
		if err := errors.Join(os.WriteFile(file, []byte(text), 0o644), os.Chtimes(file, still, still)); err != nil {
			t.Fatal(err)
		}
		p.build(r)
		if is := p.files(p.has(r.Target))["a"]; !strings.HasSuffix(is, text) {
			t.Errorf("of %q there is %q", text, is)
		}
	}
}

func TestFailingStepIsQuoted(t *testing.T) {
	p := newPlace(t)
	r := p.request("env:1", map[string]string{
		"Dockerfile": "FROM base\nRUN true\nRUN seq 1 3000; echo this is wrong >&2; exit 3\n",
	})
	p.refused(r, rollout.ReasonBuildFailed, "RUN seq 1 3000", "exit code 3", "| this is wrong\n", "line 3 of Dockerfile")
	if said := p.said(); !strings.Contains(said, "RUN seq 1 3000; echo this is wrong >&2; exit 3: failed after") {
		t.Errorf("it said %s", said)
	}
	text, err := os.ReadFile(p.log())
	if err != nil {
		t.Fatal(err)
	}
	for i := 1; i <= 3000; i++ {
		if !bytes.Contains(text, fmt.Appendf(nil, " %d\n", i)) {
			t.Fatalf("the log lacks line %d of the output", i)
		}
	}
}

func TestWrongDockerfile(t *testing.T) {
	p := newPlace(t)
	p.refused(p.request("env:1", map[string]string{"Dockerfile": "FROM base\n\nRUNN true\n"}), rollout.ReasonBuildFailed, "RUNN", "line 3 of Dockerfile")
	p.refused(p.request("env:1", map[string]string{"Dockerfile": "FROM base\nCOPY nothing /\n"}), rollout.ReasonBuildFailed, "nothing", "line 2 of Dockerfile")
}

func TestFullDisk(t *testing.T) {
	p := newPlace(t)
	p.refused(p.request("env:1", map[string]string{"Dockerfile": "FROM base\nRUN echo x > /dev/full\n"}), rollout.ReasonDiskFull, "RUN echo x")
}

func TestBaseImages(t *testing.T) {
	p := newPlace(t)
	base := func(ref string) build.Request {
		return p.request("env:1", map[string]string{"Dockerfile": "FROM " + ref + "\nRUN true\n"})
	}
	p.refused(base(p.tag("nothing:1").Name()), rollout.ReasonBaseImageMissing, "nothing:1")
	p.refused(base("127.0.0.1:1/base:1"), rollout.ReasonRegistryUnreachable, "127.0.0.1:1")
	p.hub.secret = "right"
	p.refused(base(p.tag("base:1").Name()), rollout.ReasonRegistryDenied, "base:1")
}

func TestPushIsRefused(t *testing.T) {
	p := newPlace(t)
	r := p.request("env:1", map[string]string{"Dockerfile": "FROM base\nRUN echo > /x\n"})
	for status, want := range map[int]rollout.Reason{
		http.StatusForbidden: rollout.ReasonRegistryDenied, http.StatusBadRequest: rollout.ReasonRegistryRefused,
		http.StatusInternalServerError: rollout.ReasonRegistryUnreachable,
	} {
		p.hub.setWrites(status)
		p.refused(r, want, p.hub.host)
	}
	p.hub.setWrites(0)
	r.Target = (&hub{host: "127.0.0.1:1"}).tag("env:1")
	if _, err := p.b.Build(t.Context(), r); rollout.ReasonOf(err) != rollout.ReasonRegistryUnreachable {
		t.Errorf("without a registry: %v", err)
	}
}

func TestCredentials(t *testing.T) {
	p := newPlace(t)
	const right, wrong = "right-as-rain-4711", "wrong-as-rain-4711"
	p.hub.secret = right
	r := p.request("env:1", map[string]string{"Dockerfile": "FROM base\nRUN env > /environment; cat /proc/*/cmdline > /commands\n"})
	p.b.Keychain = keys{p.hub.host: {Username: "robot", Password: wrong}}
	p.refused(r, rollout.ReasonRegistryDenied, p.hub.host)
	p.b.Keychain = keys{p.hub.host: {Username: "robot", Password: right}}
	p.build(r)
	for path, text := range p.files(p.has(r.Target)) {
		if strings.Contains(text, "as-rain") {
			t.Errorf("%s of the image has the password", path)
		}
	}
	logs, err := filepath.Glob(filepath.Join(p.b.LogDir, "*"))
	if err != nil || len(logs) < 2 {
		t.Fatalf("the logs are %v, %v", logs, err)
	}
	if dir := os.Getenv(ownDir); dir != "" {
		logs = append(logs, filepath.Join(dir, "daemon.log"))
	}
	for _, l := range logs {
		if text, err := os.ReadFile(l); err != nil || bytes.Contains(text, []byte("as-rain")) {
			t.Errorf("%s has the password: %v", l, err)
		}
	}
	if said := p.said(); strings.Contains(said, "as-rain") {
		t.Errorf("it said %s", said)
	}
}

func TestCancelLeavesNothing(t *testing.T) {
	p := newPlace(t)
	r := p.request("env:1", map[string]string{"Dockerfile": "FROM base\nRUN sleep 4711.5\n"})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan error, 1)
	go func() {
		_, err := p.b.Build(ctx, r)
		ended <- err
	}()
	running := func() bool { return exec.Command("pgrep", "-f", "^sleep 4711.5").Run() == nil }
	eventually(t, "the step runs", running)
	cancel()
	began := time.Now()
	err := <-ended
	t.Logf("ended after %.1f s: %v", time.Since(began).Seconds(), err)
	if !errors.Is(err, context.Canceled) || rollout.ReasonOf(err) != rollout.ReasonInterrupted || !strings.Contains(err.Error(), p.log()) {
		t.Errorf("the error is %v", err)
	}
	if took := time.Since(began); took > 20*time.Second {
		t.Errorf("it took %v", took)
	}
	eventually(t, "the step ends", func() bool { return !running() })
	p.absent(r.Target)
}

func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !is(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited for: %s", what)
		}
	}
}

func TestRegistryCache(t *testing.T) {
	p := newPlace(t)
	r := p.request("env:1", map[string]string{"Dockerfile": "FROM base\nRUN echo made > /made\n"})
	r.CacheRef = p.tag("cache:env").Name()
	first := p.build(r)
	if said := p.said(); strings.Contains(said, "RUN echo made > /made: cached") {
		t.Fatalf("the cache is not of this test: %s", said)
	}
	if _, err := remote.Head(p.tag("cache:env")); err != nil {
		t.Fatalf("there is no cache: %v", err)
	}
	if os.Getenv(ownDir) == "" {
		t.Skip("the builder's own cache stays: it is not this test's")
	}
	c, err := client.New(t.Context(), os.Getenv(build.HostVariable))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.Prune(t.Context(), nil, client.PruneAll); err != nil {
		t.Fatal(err)
	}
	if again := p.build(r); again != first {
		t.Errorf("with the registry's cache it is %v, not %v", again, first)
	}
	if said := p.said(); !strings.Contains(said, "RUN echo made > /made: cached") {
		t.Errorf("the registry's cache was not used: %s", said)
	}

	// A cache that cannot be written is no reason to fail.
	r.CacheRef = "127.0.0.1:1/cache:env"
	p.build(r)
}

// The engine of Debian 12 has no containerd image store: it has to push from its own.
func TestDockerEngine(t *testing.T) {
	if os.Getenv(ownDir) == "" || os.Getenv("DOCKER_HOST") == "" || os.Getenv(build.HostVariable) != "" {
		t.Skip("it needs an engine of its own: run `make build-e2e` as root on Linux")
	}
	p := newPlaceOf(t)
	p.dated = true
	const right, wrong = "right-as-rain-4711", "wrong-as-rain-4711"
	p.hub.secret = right
	p.b.Keychain = keys{p.hub.host: {Username: "robot", Password: right}}
	r := p.request("env:1", map[string]string{
		"Dockerfile": "FROM base\nCOPY hello /hello\nRUN cat /hello > /made\n", "hello": "hello\n",
	})
	r.CacheRef = p.tag("cache:env").Name()
	r.Labels = map[string]string{"dev.sluice.environment": "abc"}
	began := time.Now()
	digest := p.build(r)
	t.Logf("first build: %.1f s", time.Since(began).Seconds())
	img := p.has(r.Target)
	if is, err := img.Digest(); err != nil || is != digest {
		t.Errorf("the registry has %v, %v, and not %v", is, err, digest)
	}
	if is := p.files(img); is["made"] != "-rw-r--r-- 0:0 hello\n" {
		t.Errorf("the files are %q", is)
	}
	config, err := img.ConfigFile()
	if err != nil || config.Config.Labels["dev.sluice.environment"] != "abc" {
		t.Errorf("the configuration is %+v, %v", config, err)
	}
	p.said()
	p.build(r)
	if said := p.said(); !strings.Contains(said, "cat /hello > /made: cached") {
		t.Errorf("the second build said %s", said)
	}
	d, err := docker.New(docker.FromEnv)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if _, err := d.ImageInspect(t.Context(), r.Target.Name()); err == nil {
		t.Error("the engine keeps the tag")
	}

	failing := p.request("failing:1", map[string]string{"Dockerfile": "FROM base\nRUN echo this is wrong >&2; exit 3\n"})
	p.refused(failing, rollout.ReasonBuildFailed, "exit 3\": exit code 3", "| this is wrong\n")
	p.refused(p.request("missing:1", map[string]string{"Dockerfile": "FROM " + p.tag("nothing:1").Name() + "\n"}), rollout.ReasonBaseImageMissing, "nothing:1")
	r.Target = p.tag("denied:1")
	p.hub.setWrites(http.StatusForbidden)
	p.refused(r, rollout.ReasonRegistryDenied, "push "+r.Target.Name())
	p.hub.setWrites(0)
	p.b.Keychain = keys{p.hub.host: {Username: "robot", Password: wrong}}
	e := p.refused(r, rollout.ReasonRegistryDenied, p.hub.host)
	if strings.Contains(e.Error(), "as-rain") {
		t.Errorf("the error has the password: %v", e)
	}
	if _, err := d.ImageInspect(t.Context(), r.Target.Name()); err == nil {
		t.Error("the engine keeps the tag of what it could not push")
	}
}

// keys is a keychain by host.
type keys map[string]authn.AuthConfig

func (k keys) Resolve(r authn.Resource) (authn.Authenticator, error) {
	return authn.FromConfig(k[r.RegistryStr()]), nil
}

// hub is a registry that watches: a tag has to be whole when it is written.
type hub struct {
	host string
	// secret is the password of the user robot; empty lets all in.
	secret string

	mu     sync.Mutex
	writes int
}

// setWrites has the registry answer everything that writes with a status; 0 is none.
func (h *hub) setWrites(status int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.writes = status
}

func newHub(t *testing.T) *hub {
	t.Helper()
	h := &hub{}
	inner := registry.New(registry.WithBlobHandler(registry.NewDiskBlobHandler(t.TempDir())), registry.Logger(log.New(io.Discard, "", 0)))
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, password, _ := r.BasicAuth(); h.secret != "" && subtle.ConstantTimeCompare([]byte(password), []byte(h.secret)) == 0 {
			w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		h.mu.Lock()
		refuse := h.writes
		h.mu.Unlock()
		if refuse != 0 && r.Method != http.MethodGet && r.Method != http.MethodHead {
			w.WriteHeader(refuse)
			return
		}
		if r.Method == http.MethodPut && strings.Contains(r.URL.Path, "/manifests/") {
			body, err := io.ReadAll(r.Body)
			if err != nil {
				t.Error(err)
			}
			whole(t, inner, r.URL.Path, body)
			r.Body = io.NopCloser(bytes.NewReader(body))
		}
		inner.ServeHTTP(w, r)
	}))
	t.Cleanup(s.Close)
	h.host = s.Listener.Addr().String()
	return h
}

// whole checks that a registry has what a manifest names.
func whole(t *testing.T, registry http.Handler, path string, manifest []byte) {
	var m v1.Manifest
	if err := json.Unmarshal(manifest, &m); err != nil {
		t.Errorf("%s is no manifest: %v", path, err)
	}
	repo, _, _ := strings.Cut(path, "/manifests/")
	for _, d := range append(m.Layers, m.Config) {
		answer := httptest.NewRecorder()
		registry.ServeHTTP(answer, httptest.NewRequest(http.MethodHead, repo+"/blobs/"+d.Digest.String(), nil))
		if answer.Code != http.StatusOK {
			t.Errorf("%s is written without %s", path, d.Digest)
		}
	}
}

func (h *hub) tag(ref string) name.Tag {
	tag, err := name.NewTag(h.host + "/" + ref)
	if err != nil {
		panic(err) // all are constants of the tests
	}
	return tag
}

func (h *hub) admin() authn.Authenticator {
	if h.secret == "" {
		return authn.Anonymous
	}
	return &authn.Basic{Username: "robot", Password: h.secret}
}

// baseImage is one static program under all of its names.
func baseImage(t *testing.T) v1.Image {
	t.Helper()
	program, err := os.ReadFile(busybox)
	if err != nil {
		t.Skip("it needs " + busybox + ": install Debian's busybox-static")
	}
	f, err := elf.NewFile(bytes.NewReader(program))
	if err != nil || slices.ContainsFunc(f.Progs, func(p *elf.Prog) bool { return p.Type == elf.PT_INTERP }) {
		t.Skip("it needs a static " + busybox + ": install Debian's busybox-static")
	}
	list, err := exec.Command(busybox, "--list").Output()
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	add := func(h *tar.Header, body []byte) {
		h.Size = int64(len(body))
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(body); err != nil {
			t.Fatal(err)
		}
	}
	for _, dir := range []string{"bin/", "etc/", "tmp/", "dev/", "proc/", "sys/"} {
		add(&tar.Header{Name: dir, Typeflag: tar.TypeDir, Mode: 0o755}, nil)
	}
	add(&tar.Header{Name: "bin/busybox", Mode: 0o755}, program)
	for _, applet := range strings.Fields(string(list)) {
		if applet != "busybox" {
			add(&tar.Header{Name: "bin/" + applet, Typeflag: tar.TypeSymlink, Linkname: "busybox", Mode: 0o777}, nil)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b.Bytes())), nil })
	if err != nil {
		t.Fatal(err)
	}
	img, err := mutate.AppendLayers(empty.Image, l)
	if err != nil {
		t.Fatal(err)
	}
	file, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	file = file.DeepCopy()
	file.OS, file.Architecture, file.Config.Env = "linux", runtime.GOARCH, []string{"PATH=/bin"}
	if img, err = mutate.ConfigFile(img, file); err != nil {
		t.Fatal(err)
	}
	return img
}
