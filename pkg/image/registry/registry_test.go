package registry_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/validate"

	"github.com/sluice-dev/sluice/pkg/image"
	"github.com/sluice-dev/sluice/pkg/image/registry"
	"github.com/sluice-dev/sluice/rollout"
)

// child makes this program a registry: its directory, and the descriptor of its listener.
const child = "SLUICE_TEST_REGISTRY_DIR"

func TestMain(m *testing.M) {
	dir := os.Getenv(child)
	if dir == "" {
		os.Exit(m.Run())
	}
	l, err := net.FileListener(os.NewFile(3, "listener"))
	if err == nil {
		err = registry.Serve(context.Background(), l, dir, nil)
	}
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

// serve until the test, or end, ends it.
func serve(t *testing.T, dir string, l net.Listener) (end func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- registry.Serve(ctx, l, dir, nil) }()
	end = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("the registry ended with %v", err)
		}
	})
	t.Cleanup(end)
	return end
}

func listen(t *testing.T, address string) net.Listener {
	t.Helper()
	l, err := registry.Listen(t.Context(), address, false)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func ref(t *testing.T, s string) name.Reference {
	t.Helper()
	r, err := name.ParseReference(s)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// shipper whose base and runner are in the registry, as images that no process could start.
func shipper(t *testing.T, host string) image.Shipper {
	t.Helper()
	for name, entry := range map[string]string{"base": "", "runner": "/sluice/runner"} {
		img, err := random.Image(100_000, 2)
		if err != nil {
			t.Fatal(err)
		}
		c, err := img.ConfigFile()
		if err != nil {
			t.Fatal(err)
		}
		c.OS, c.Architecture, c.Config.Entrypoint = "linux", "amd64", []string{entry}
		if img, err = mutate.ConfigFile(img, c); err != nil {
			t.Fatal(err)
		}
		if err := remote.Write(ref(t, host+"/"+name+":1"), img); err != nil {
			t.Fatal(err)
		}
	}
	return image.Shipper{Registry: host + "/models", BaseImage: host + "/base:1", RunnerImage: host + "/runner:1"}
}

const size = 70 << 20

// project with a model of 70 MiB that does not shrink.
func project(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	weights := make([]byte, size)
	if _, err := rand.Read(weights); err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string][]byte{
		"weights.bin": weights, "score.py": []byte("pass"),
		"sluice.yaml": []byte("apiVersion: sluice.dev/v1alpha1\nkind: Project\nendpoint: fraud\nmodels: [{name: fraud, version: \"1\", path: weights.bin}]\nscoring: {entryScript: score.py}\n"),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// whole reads an image to its last byte.
func whole(t *testing.T, what string) v1.Image {
	t.Helper()
	img, err := remote.Image(ref(t, what))
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	if err := validate.Image(img, validate.Fast); err != nil {
		t.Errorf("%s is not what it says: %v", what, err)
	}
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range layers {
		r, err := l.Compressed() // it compares digests at the end
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if _, err := io.Copy(io.Discard, r); err != nil {
			t.Errorf("%s: %v", what, err)
		}
		r.Close()
	}
	return img
}

// TestRestart: images, tags and referrers are there after the server has ended, on any number of turns.
func TestRestart(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "registry")
	l := listen(t, "127.0.0.1:0")
	host := l.Addr().String()
	end := serve(t, dir, l)
	src := project(t)
	s := shipper(t, host)
	shipped, err := s.Ship(t.Context(), src)
	if err != nil {
		t.Fatal(err)
	}
	img := whole(t, shipped.Image)
	subject, err := partial.Descriptor(img)
	if err != nil {
		t.Fatal(err)
	}
	note := mutate.Subject(mutate.ConfigMediaType(mutate.MediaType(empty.Image, "application/vnd.oci.image.manifest.v1+json"), "application/spdx+json"), *subject).(v1.Image)
	noteDigest, err := note.Digest()
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(ref(t, host+"/models/fraud@"+noteDigest.String()), note); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		end()
		end = serve(t, dir, listen(t, host))
		whole(t, shipped.Image)
		whole(t, host+"/models/fraud:"+shipped.Name)
		if tags, err := remote.List(ref(t, host+"/models/fraud").Context()); err != nil || !slices.Equal(tags, []string{shipped.Name}) {
			t.Errorf("the tags are %q (%v)", tags, err)
		}
		index, err := remote.Referrers(ref(t, shipped.Image).(name.Digest))
		if err != nil {
			t.Fatal(err)
		}
		if m, err := index.IndexManifest(); err != nil || len(m.Manifests) != 1 || m.Manifests[0].Digest != noteDigest || m.Manifests[0].ArtifactType != "application/spdx+json" {
			t.Errorf("the referrers are %+v (%v)", m, err)
		}
	}
	again, err := s.Ship(t.Context(), src)
	if err != nil || !again.Known || again.Image != shipped.Image {
		t.Errorf("the same again: %+v, %v", again, err)
	}
	if err := remote.Delete(ref(t, host+"/models/fraud:"+shipped.Name)); err != nil {
		t.Fatal(err)
	}
	whole(t, shipped.Image) // endpoints name it by digest
	if tags, err := remote.List(ref(t, host+"/models/fraud").Context()); err != nil || len(tags) > 0 {
		t.Errorf("after deleting the tag: %q (%v)", tags, err)
	}
	if err := remote.Delete(ref(t, shipped.Image)); err != nil {
		t.Fatal(err)
	}
	if _, err := remote.Head(ref(t, shipped.Image)); err == nil {
		t.Error("a deleted image is still there")
	}
}

// TestProtocol is what clients other than ours use: ranges, mounts, and uploads in pieces by hand.
func TestProtocol(t *testing.T) {
	l := listen(t, "127.0.0.1:0")
	host := l.Addr().String()
	dir := t.TempDir()
	serve(t, dir, l)
	do := func(method, url string, body []byte, header ...string) (*http.Response, []byte) {
		t.Helper()
		if strings.HasPrefix(url, "/") {
			url = "http://" + host + url
		}
		req, err := http.NewRequestWithContext(t.Context(), method, url, bytes.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		for i := 0; i < len(header); i += 2 {
			req.Header.Set(header[i], header[i+1])
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		got, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp, got
	}
	want := func(resp *http.Response, status int) {
		t.Helper()
		if resp.StatusCode != status {
			t.Fatalf("%s %s: %s, want %d", resp.Request.Method, resp.Request.URL, resp.Status, status)
		}
	}
	next := func(resp *http.Response) string {
		t.Helper()
		at, err := resp.Location()
		if err != nil {
			t.Fatal(err)
		}
		return at.String()
	}
	data := []byte("some bytes of a blob")
	digest, _, err := v1.SHA256(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	resp, _ := do(http.MethodPost, "/v2/a/blobs/uploads/", nil)
	want(resp, http.StatusAccepted)
	resp, _ = do(http.MethodPatch, next(resp), data[:5], "Content-Range", "0-4")
	want(resp, http.StatusAccepted)
	at := next(resp)
	wrong, _ := do(http.MethodPatch, at, data[9:], "Content-Range", "9-19")
	want(wrong, http.StatusRequestedRangeNotSatisfiable)
	resp, _ = do(http.MethodGet, at, nil)
	want(resp, http.StatusNoContent)
	if r := resp.Header.Get("Range"); r != "0-4" {
		t.Errorf("the upload stands at %q", r)
	}
	resp, _ = do(http.MethodPatch, next(resp), data[5:], "Content-Range", "5-19")
	want(resp, http.StatusAccepted)
	resp, _ = do(http.MethodPut, next(resp)+"&digest="+digest.String(), nil)
	want(resp, http.StatusCreated)
	gone, _ := do(http.MethodPatch, at, data)
	want(gone, http.StatusNotFound)

	resp, _ = do(http.MethodHead, "/v2/a/blobs/"+digest.String(), nil)
	if want(resp, http.StatusOK); resp.ContentLength != int64(len(data)) {
		t.Errorf("the blob has %d bytes", resp.ContentLength)
	}
	resp, got := do(http.MethodGet, "/v2/a/blobs/"+digest.String(), nil, "Range", "bytes=5-9")
	if want(resp, http.StatusPartialContent); string(got) != "bytes" {
		t.Errorf("bytes 5 to 9 are %q", got)
	}
	resp, _ = do(http.MethodPost, "/v2/b/c/blobs/uploads/?mount="+digest.String()+"&from=a", nil)
	want(resp, http.StatusCreated)
	resp, _ = do(http.MethodHead, "/v2/b/c/blobs/"+digest.String(), nil)
	want(resp, http.StatusOK)
	one, err := os.Stat(filepath.Join(dir, "a", "blobs", "sha256", digest.Hex))
	if err != nil {
		t.Fatal(err)
	}
	other, err := os.Stat(filepath.Join(dir, "b", "c", "blobs", "sha256", digest.Hex))
	if err != nil || !os.SameFile(one, other) {
		t.Errorf("a mounted blob is there twice (%v)", err)
	}
	for _, from := range []string{"nothing", "../" + filepath.Base(dir) + "/a", "a/../a", ""} {
		resp, _ = do(http.MethodPost, "/v2/d/blobs/uploads/?mount="+digest.String()+"&from="+from, nil)
		want(resp, http.StatusAccepted) // to be uploaded
	}
	resp, _ = do(http.MethodPost, "/v2/a/blobs/uploads/?digest="+digest.String(), data)
	want(resp, http.StatusCreated)
	// Half an image gets no name.
	half, _ := json.Marshal(map[string]any{
		"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
		"config": map[string]any{"mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest.String(), "size": len(data)},
		"layers": []any{map[string]any{"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": "sha256:" + strings.Repeat("0", 64), "size": 1}},
	})
	resp, _ = do(http.MethodPut, "/v2/a/manifests/half", half, "Content-Type", "application/vnd.oci.image.manifest.v1+json")
	want(resp, http.StatusBadRequest)
	resp, _ = do(http.MethodDelete, "/v2/a/blobs/"+digest.String(), nil)
	want(resp, http.StatusMethodNotAllowed)
}

// TestHosts: on an address of this machine alone, only its own names are answered: a browser could be sent there by another.
func TestHosts(t *testing.T) {
	ask := func(l net.Listener, host string) int {
		t.Helper()
		_, port, err := net.SplitHostPort(l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://127.0.0.1:"+port+"/v2/", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Host = host
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		return resp.StatusCode
	}
	own := listen(t, "127.0.0.1:0")
	serve(t, t.TempDir(), own)
	for host, want := range map[string]int{
		"127.0.0.1:5000": 200, "localhost:5000": 200, "LOCALHOST": 200, "[::1]:5000": 200, "a.localhost": 200,
		"evil.example": 421, "evil.example:5000": 421, "10.0.0.1:5000": 421, "localhost.evil.example": 421,
	} {
		if got := ask(own, host); got != want {
			t.Errorf("%s: %d, want %d", host, got, want)
		}
	}
	if _, err := registry.Listen(t.Context(), own.Addr().String(), false); rollout.ReasonOf(err) != rollout.ReasonConflict || !strings.Contains(err.Error(), "another port") {
		t.Errorf("an address that is in use: %v", err)
	}
	all, err := registry.Listen(t.Context(), ":0", true)
	if err != nil {
		t.Fatal(err)
	}
	serve(t, t.TempDir(), all)
	if got := ask(all, "registry.example"); got != 200 {
		t.Errorf("on all addresses: %d", got)
	}
}

func TestRefusals(t *testing.T) {
	for _, address := range []string{":0", "0.0.0.0:0", "192.0.2.1:5000", "nonsense"} {
		if _, err := registry.Listen(t.Context(), address, false); rollout.ReasonOf(err) != rollout.ReasonInvalid {
			t.Errorf("%s: %v", address, err)
		}
	}
	l, err := registry.Listen(t.Context(), ":0", true)
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	dir := t.TempDir()
	first := listen(t, "127.0.0.1:0")
	serve(t, dir, first)
	if resp, err := http.Get("http://" + first.Addr().String() + "/v2/"); err != nil || resp.StatusCode != http.StatusOK {
		t.Fatal(resp, err)
	}
	if err := registry.Serve(t.Context(), listen(t, "127.0.0.1:0"), dir, nil); rollout.ReasonOf(err) != rollout.ReasonConflict {
		t.Errorf("a second one of the same directory: %v", err)
	}
}

// breaker is a proxy whose connections break, each of the first few after some bytes of a request.
type breaker struct {
	net.Listener
	to       string
	breaks   atomic.Int64
	after    int64
	received atomic.Int64
}

func (b *breaker) run() {
	for {
		c, err := b.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			up, err := net.Dial("tcp", b.to)
			if err != nil {
				return
			}
			defer up.Close()
			go func() { _, _ = io.Copy(c, up) }()
			n, _ := io.Copy(up, io.LimitReader(c, b.after))
			b.received.Add(n)
			if n < b.after || b.breaks.Add(-1) < 0 {
				n, _ = io.Copy(up, c)
				b.received.Add(n)
			}
		}()
	}
}

// TestBrokenUploadResumes: what was sent before a connection broke is not sent again.
func TestBrokenUploadResumes(t *testing.T) {
	l := listen(t, "127.0.0.1:0")
	serve(t, t.TempDir(), l)
	s := shipper(t, l.Addr().String())
	b := &breaker{Listener: listen(t, "127.0.0.1:0"), to: l.Addr().String(), after: 21 << 20}
	defer b.Close()
	b.breaks.Store(3)
	go b.run()
	s.Registry = b.Addr().String() + "/models"
	shipped, err := s.Ship(t.Context(), project(t))
	if err != nil {
		t.Fatal(err)
	}
	whole(t, shipped.Image)
	if left := b.breaks.Load(); left > 0 {
		t.Errorf("%d connections more should have broken", left)
	}
	// Each break costs the piece that was under way at most.
	if got := b.received.Load(); got > size+3*16<<20 {
		t.Errorf("%d bytes were sent for a model of %d", got, size)
	}
}

// process is a registry as one, on a socket that outlives it: who connects in between waits.
type process struct {
	*exec.Cmd
	log bytes.Buffer
}

func start(t *testing.T, dir string, socket *os.File) *process {
	t.Helper()
	p := &process{Cmd: exec.Command(os.Args[0])}
	p.Env = append(os.Environ(), child+"="+dir)
	p.ExtraFiles = []*os.File{socket}
	p.Stderr = &p.log
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	return p
}

func (p *process) kill() {
	_ = p.Process.Kill()
	_ = p.Wait()
}

// TestKill kills the registry in the middle of pushes, at any moment: what has a name is whole each time, what was
// answered with success stays, and a push that goes on meanwhile gets through.
func TestKill(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "registry")
	l := listen(t, "127.0.0.1:0")
	host := l.Addr().String()
	socket, err := l.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	l.Close() // the socket stays open
	p := start(t, dir, socket)
	defer func() { p.kill() }()
	s := shipper(t, host)
	s.Progress = t.Logf
	src := project(t)

	shippings := make(chan error, 1)
	var image string
	go func() {
		out, err := s.Ship(context.Background(), src)
		image = out.Image
		shippings <- err
	}()
	pushed, answered := map[string]v1.Hash{}, 0
	for turn := range 12 {
		var acked sync.Map
		stop, done := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(done)
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				img, err := random.Image(300_000, 3)
				if err != nil {
					t.Error(err)
					return
				}
				tag := fmt.Sprintf("t%d-%d", turn, i)
				if err := remote.Write(ref(t, host+"/models/small:"+tag), img, remote.WithRetryBackoff(remote.Backoff{Steps: 1})); err == nil {
					d, _ := img.Digest()
					acked.Store(tag, d)
				}
			}
		}()
		time.Sleep(100*time.Millisecond + time.Duration(mathrand.Int64N(int64(300*time.Millisecond))))
		p.kill()
		close(stop)
		p = start(t, dir, socket)
		<-done
		acked.Range(func(tag, digest any) bool {
			pushed[tag.(string)] = digest.(v1.Hash)
			answered++
			return true
		})
		tags, err := remote.List(ref(t, host+"/models/small").Context())
		if err != nil {
			t.Fatal(err)
		}
		for tag, digest := range pushed {
			if !slices.Contains(tags, tag) {
				t.Errorf("%s is gone, which was pushed", tag)
			} else if is, err := whole(t, host+"/models/small:"+tag).Digest(); err != nil || is != digest {
				t.Errorf("%s is %s, not %s (%v)", tag, is, digest, err)
			}
		}
		for _, tag := range tags {
			if _, known := pushed[tag]; !known {
				whole(t, host+"/models/small:"+tag)
			}
		}
		pushed = map[string]v1.Hash{} // they were read; the next turn has its own
		for _, tag := range tags {
			if err := remote.Delete(ref(t, host+"/models/small:"+tag)); err != nil {
				t.Fatal(err)
			}
		}
	}
	select {
	case err := <-shippings:
		if err != nil {
			t.Fatal(err)
		}
	case <-time.After(2 * time.Minute):
		t.Fatal("the push does not end")
	}
	whole(t, image)
	p.kill()
	p = start(t, dir, socket)
	whole(t, image)
	if left, err := filepath.Glob(filepath.Join(dir, "models", "*", "_uploads", "*")); err != nil || len(left) > 0 {
		t.Errorf("uploads are left behind: %v (%v)", left, err)
	}
	p.kill()
	if s := p.log.String(); s != "" {
		t.Errorf("the registry says %s", s)
	}
	if t.Logf("%d small images were pushed between kills", answered); answered == 0 {
		t.Error("nothing was pushed between kills")
	}
}
