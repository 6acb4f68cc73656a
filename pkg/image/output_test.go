package image_test

import (
	"archive/tar"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images/archive"
	"github.com/containerd/containerd/v2/plugins/content/local"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/validate"

	"github.com/sluice-dev/sluice/pkg/image"
	"github.com/sluice-dev/sluice/rollout"
)

// made makes the project's image, and gives the digest that Ship pushes of the same project.
func made(t *testing.T, s image.Shipper, dir string) (image.Made, string) {
	t.Helper()
	_, digest, _ := strings.Cut(ship(t, s, dir).Image, "@")
	s.Registry = "" // not needed
	m, err := s.Make(t.Context(), dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	return m, digest
}

func addTo(t *testing.T, dir string, m image.Made) {
	t.Helper()
	l, err := image.OpenLayout(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Close(m.AddTo(t.Context(), l)); err != nil {
		t.Fatal(err)
	}
}

// refs that a layout names, with their digests.
func refs(t *testing.T, dir string) map[string]string {
	t.Helper()
	p, err := layout.FromPath(dir)
	if err != nil {
		t.Fatal(err)
	}
	index, err := p.ImageIndex()
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Index(index, validate.Fast); err != nil {
		t.Errorf("the layout is not what it says: %v", err)
	}
	m, err := index.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for _, d := range m.Manifests {
		out[d.Annotations["org.opencontainers.image.ref.name"]] = d.Digest.String()
		img, err := index.Image(d.Digest)
		if err != nil {
			t.Fatal(err)
		}
		layers, err := img.Layers()
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range layers { // each blob, read in full
			want, err := l.Digest()
			if err != nil {
				t.Fatal(err)
			}
			r, err := l.Compressed()
			if err != nil {
				t.Fatal(err)
			}
			if is, _, err := v1.SHA256(r); err != nil || is != want {
				t.Errorf("a layer has the digest %s, not %s (%v)", is, want, err)
			}
			r.Close()
		}
	}
	return out
}

// strays are files of a tree that nobody asked for.
func strays(t *testing.T, dir string) []string {
	t.Helper()
	var out []string
	if err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if strings.Contains(d.Name(), ".tmp-") {
			out = append(out, p)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return out
}

func TestLayoutHasWhatIsPushed(t *testing.T) {
	t.Parallel()
	r := newRegistry(t)
	s := r.shipper(t)
	dir := project(t)
	m, digest := made(t, s, dir)
	place := t.TempDir()
	out := filepath.Join(place, "layout")
	addTo(t, out, m)
	if got := refs(t, out); len(got) != 1 || got[m.Name] != digest {
		t.Errorf("the layout names %v, want %s as %s, as it was pushed", got, digest, m.Name)
	}
	// The same again changes nothing, another version is named beside it.
	addTo(t, out, m)
	write(t, dir, "src/score.py", "pass # better")
	other, otherDigest := made(t, s, dir)
	if other.Name == m.Name {
		t.Fatalf("both are named %s", m.Name)
	}
	addTo(t, out, other)
	if got := refs(t, out); len(got) != 2 || got[m.Name] != digest || got[other.Name] != otherDigest {
		t.Errorf("the layout names %v, want %s and %s", got, digest, otherDigest)
	}
	// An empty directory becomes a layout, one with other files does not.
	empty := filepath.Join(place, "empty")
	if err := os.Mkdir(empty, 0o755); err != nil {
		t.Fatal(err)
	}
	addTo(t, empty, other)
	for _, bad := range []string{dir, filepath.Join(dir, "sluice.yaml")} {
		if _, err := image.OpenLayout(bad); rollout.ReasonOf(err) != rollout.ReasonInvalid {
			t.Errorf("a layout in %s: %v", bad, err)
		}
	}
	if left := strays(t, place); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// TestHalfWrittenLayout: what fails on the way leaves no name for what is not whole.
func TestHalfWrittenLayout(t *testing.T) {
	t.Parallel()
	r := newRegistry(t)
	s := r.shipper(t)
	dir := project(t)
	first, digest := made(t, s, dir)
	place := t.TempDir()
	grown := filepath.Join(place, "grown")
	addTo(t, grown, first)
	write(t, dir, "model/weights.bin", "other weights")
	m, _ := made(t, s, dir)
	write(t, dir, "model/weights.bin", "once more, while it is read")
	for _, out := range []string{grown, filepath.Join(place, "new")} {
		l, err := image.OpenLayout(out)
		if err != nil {
			t.Fatal(err)
		}
		if err := l.Close(m.AddTo(t.Context(), l)); err == nil {
			t.Errorf("%s was written from a project that changed", out)
		}
	}
	if _, err := os.Stat(filepath.Join(place, "new")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a half-written layout is there: %v", err)
	}
	if got := refs(t, grown); len(got) != 1 || got[first.Name] != digest {
		t.Errorf("the layout names %v, want only %s", got, first.Name)
	}
	if left := strays(t, place); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// TestTarball: containerd's own import finds the image that is pushed, under its name, and what `docker load` reads names
// the same blobs.
func TestTarball(t *testing.T) {
	t.Parallel()
	r := newRegistry(t)
	m, digest := made(t, r.shipper(t), project(t))
	file := filepath.Join(t.TempDir(), "image.tar")
	sum := func() string {
		t.Helper()
		f, err := os.Create(file)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if err := m.WriteTarball(t.Context(), f, "fraud:"+m.Name); err != nil {
			t.Fatal(err)
		}
		if _, err := f.Seek(0, io.SeekStart); err != nil {
			t.Fatal(err)
		}
		h, _, err := v1.SHA256(f)
		if err != nil {
			t.Fatal(err)
		}
		return h.Hex
	}
	if one, two := sum(), sum(); one != two {
		t.Error("the same image gave other bytes")
	}
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	store, err := local.NewStore(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	top, err := archive.ImportIndex(t.Context(), store, f)
	if err != nil {
		t.Fatal(err)
	}
	data, err := content.ReadBlob(t.Context(), store, top)
	if err != nil {
		t.Fatal(err)
	}
	index, err := v1.ParseIndexManifest(strings.NewReader(string(data)))
	if err != nil {
		t.Fatal(err)
	}
	if len(index.Manifests) != 1 || index.Manifests[0].Digest.String() != digest || index.Manifests[0].Annotations["io.containerd.image.name"] != "docker.io/library/fraud:"+m.Name {
		t.Errorf("containerd imports %+v, want %s", index.Manifests, digest)
	}
	// The other half is Docker's: a file for each layer and the configuration, in order.
	want := []string{}
	manifest, err := m.Image.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range manifest.Layers {
		want = append(want, "blobs/sha256/"+l.Digest.Hex)
	}
	saved := readTarball(t, file)
	if len(saved.manifest) != 1 || !slices.Equal(saved.manifest[0].Layers, want) || saved.manifest[0].Config != "blobs/sha256/"+manifest.Config.Digest.Hex || !slices.Equal(saved.manifest[0].RepoTags, []string{"fraud:" + m.Name}) {
		t.Errorf("docker load reads %+v", saved.manifest)
	}
	for _, name := range append(want, "blobs/sha256/"+manifest.Config.Digest.Hex) {
		if !slices.Contains(saved.names, name) {
			t.Errorf("%s is not in it", name)
		}
	}
	if err := m.WriteTarball(t.Context(), io.Discard, "Not A Name"); rollout.ReasonOf(err) != rollout.ReasonInvalid {
		t.Errorf("a wrong name: %v", err)
	}
}

type savedTarball struct {
	names    []string
	manifest []struct {
		Config           string
		RepoTags, Layers []string
	}
}

func readTarball(t *testing.T, file string) (out savedTarball) {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for tr := tar.NewReader(f); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		out.names = append(out.names, h.Name)
		if h.Name == "manifest.json" {
			decode(t, tr, &out.manifest)
		}
	}
}

// TestOutputsStream: a model of 1 GiB goes into both forms without memory for it, and an interrupt ends both.
func TestOutputsStream(t *testing.T) {
	if raceDetector {
		t.Skip("make image-e2e runs it without the race detector, with which it takes minutes")
	}
	if testing.Short() {
		t.Skip("reads and writes several GiB")
	}
	const size, bound = 1 << 30, 32 << 20
	r := newRegistry(t)
	s := r.shipper(t)
	dir := project(t)
	weights(t, filepath.Join(dir, "model", "weights.bin"), 2*mib, 1)
	if err := os.Truncate(filepath.Join(dir, "model", "weights.bin"), size); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	m, err := s.Make(ctx, dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	l, err := image.OpenLayout(filepath.Join(t.TempDir(), "layout"))
	if err != nil {
		t.Fatal(err)
	}
	out, err := os.Create(filepath.Join(t.TempDir(), "image.tar"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	runtime.GC()
	before := inUse()
	most, done := before, make(chan error, 1)
	go func() {
		done <- errors.Join(l.Close(m.AddTo(ctx, l)), m.WriteTarball(ctx, out, "fraud:one"))
	}()
	for running := true; running; {
		most = max(most, inUse())
		select {
		case err := <-done:
			if err != nil {
				t.Fatal(err)
			}
			running = false
		case <-time.After(5 * time.Millisecond):
		}
	}
	if info, err := out.Stat(); err != nil || info.Size() < size {
		t.Errorf("the tarball has %d bytes (%v)", info.Size(), err)
	}
	t.Logf("memory in use grew by at most %d KB", (most-before)>>10)
	if most-before > bound {
		t.Errorf("memory grew by %d bytes, more than %d", most-before, bound)
	}
	cancel()
	if err := m.WriteTarball(ctx, io.Discard, "fraud:one"); !errors.Is(err, context.Canceled) {
		t.Errorf("after the interrupt: %v", err)
	}
}

func inUse() uint64 {
	var now runtime.MemStats
	runtime.ReadMemStats(&now)
	return now.HeapInuse + now.StackInuse
}

// TestBuiltEnvironmentNeedsRegistry: where its image would go must be known.
func TestBuiltEnvironmentNeedsRegistry(t *testing.T) {
	r := newRegistry(t)
	s := r.shipper(t)
	s.Registry = ""
	dir := project(t)
	write(t, dir, "sluice.yaml", strings.Replace(manifest, "environment: {", `environment: {dockerSteps: ["RUN true"], `, 1))
	if _, err := s.Make(t.Context(), dir, nil); rollout.ReasonOf(err) != rollout.ReasonInvalid || !strings.Contains(err.Error(), "registry") {
		t.Errorf("got %v", err)
	}
}

// TestDamagedLayouts: what is there is used only if it is what it is named after, and what names it is read or refused.
func TestDamagedLayouts(t *testing.T) {
	t.Parallel()
	r := newRegistry(t)
	m, digest := made(t, r.shipper(t), project(t))
	defer m.Close()
	out := filepath.Join(t.TempDir(), "out")
	addTo(t, out, m)
	blobs, err := filepath.Glob(filepath.Join(out, "blobs/sha256/*"))
	if err != nil || len(blobs) < 4 {
		t.Fatal(blobs, err)
	}
	for _, b := range blobs {
		data, err := os.ReadFile(b)
		if err != nil {
			t.Fatal(err)
		}
		data[len(data)/2] ^= 1
		if err := os.WriteFile(b, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	addTo(t, out, m)
	if got := refs(t, out)[m.Name]; got != digest {
		t.Errorf("it names %s, want %s", got, digest)
	}
	index := filepath.Join(out, "index.json")
	if err := os.WriteFile(index, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	l, err := image.OpenLayout(out)
	if err != nil {
		t.Fatal(err)
	}
	refused(t, l.Close(m.AddTo(t.Context(), l)), rollout.ReasonInvalid, index, "another directory")
}
