package image_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/sluice-dev/sluice/pkg/image"
)

// unit is to the small sizes of these tests what a MiB is to the real ones.
const (
	mib  = 1 << 20
	unit = mib / divided
)

const divided = 16

// weights writes a file of random bytes, which do not shrink.
func weights(t testing.TB, path string, size int64, seed uint64) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	var key [32]byte
	key[0] = byte(seed)
	_, err = io.CopyN(f, rand.NewChaCha8(key), size)
	if err2 := f.Close(); err != nil || err2 != nil {
		t.Fatal(err, err2)
	}
}

// age makes files, and all in directories, old enough that their digests are remembered. A change of times is a change, so
// it waits.
func age(t testing.TB, paths ...string) {
	t.Helper()
	for _, p := range paths {
		long := time.Now().Add(-time.Hour)
		if err := filepath.WalkDir(p, func(f string, _ fs.DirEntry, err error) error {
			return errors.Join(err, os.Chtimes(f, long, long))
		}); err != nil {
			t.Fatal(err)
		}
	}
	time.Sleep(2100 * time.Millisecond)
}

type layerIs struct {
	what string
	is   types.MediaType
	size int64
}

func layersOf(t *testing.T, img v1.Image) (out []layerIs) {
	t.Helper()
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	config, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	var history []v1.History
	for _, h := range config.History {
		if !h.EmptyLayer {
			history = append(history, h)
		}
	}
	for i, l := range layers {
		is, err := l.MediaType()
		if err != nil {
			t.Fatal(err)
		}
		size, err := l.Size()
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, layerIs{history[i].Comment, is, size})
	}
	return out
}

// TestLargeFiles: each has a layer, compressed where that pays, and only those that changed are read or moved.
func TestLargeFiles(t *testing.T) {
	r := newRegistry(t)
	s := r.small(t)
	s.CacheDir = t.TempDir()
	dir := project(t)
	weights(t, filepath.Join(dir, "model/a.safetensors"), 65*unit, 1)
	weights(t, filepath.Join(dir, "model/b.safetensors"), 70*unit, 2)
	if err := os.WriteFile(filepath.Join(dir, "model/vocabulary.json"), bytes.Repeat([]byte(`{"token": 12345}, `), 4*unit), 0o644); err != nil {
		t.Fatal(err)
	}
	age(t)
	first := ship(t, s, dir)
	got := layersOf(t, r.image(t, first.Image))[2:]
	if len(got) != 5 {
		t.Fatalf("layers %+v, want three large files, models and project", got)
	}
	for i, want := range []struct {
		what     string
		is       types.MediaType
		min, max int64
	}{
		{"model/a.safetensors", types.OCIUncompressedLayer, 65 * unit, 66 * unit}, {"model/b.safetensors", types.OCIUncompressedLayer, 70 * unit, 71 * unit},
		{"models", types.OCILayer, 1, 2000}, {"model/vocabulary.json", types.OCILayer, 1, 2 * unit}, {"project", types.OCILayer, 1, 2000},
	} {
		if g := got[i]; g.what != want.what || g.is != want.is || g.size < want.min || g.size > want.max {
			t.Errorf("layer %d is %+v, want %+v", i, g, want)
		}
	}
	r.since()

	// Only code changed.
	write(t, dir, "src/score.py", "pass # better")
	second := ship(t, s, dir)
	if sent := r.since(); len(sent) != 2 {
		t.Errorf("sent %d blobs, want the project's layer and the configuration", len(sent))
	}
	if first.Image == second.Image {
		t.Error("the change is not in the image")
	}

	weights(t, filepath.Join(dir, "model/b.safetensors"), 70*unit, 3)
	third := ship(t, s, dir)
	if sent := r.since(); len(sent) != 2 {
		t.Errorf("sent %d blobs, want one model file's layer and the configuration (its set digest)", len(sent))
	}
	// What is remembered gives what hashing anew gives.
	s.CacheDir = ""
	if again := ship(t, s, dir); again.Image != third.Image || !again.Known {
		t.Errorf("without a memory it is %+v, with it %+v", again, third)
	}
}

// bytesRead by this process, as the kernel counts them.
func bytesRead(t *testing.T) int64 {
	t.Helper()
	data, err := os.ReadFile("/proc/self/io")
	if err != nil {
		t.Skip("the system does not tell how much is read")
	}
	var n int64
	if _, err := fmt.Sscanf(string(data), "rchar: %d", &n); err != nil {
		t.Fatal(err)
	}
	return n
}

// TestCommitsReadNoModels: in a clean checkout the version is named after the commit, so a change of code reads little.
func TestCommitsReadNoModels(t *testing.T) {
	r := newRegistry(t)
	s := r.small(t)
	s.CacheDir = t.TempDir()
	dir := project(t)
	weights(t, filepath.Join(dir, "model/a.bin"), 65*unit, 1)
	commit := func() {
		t.Helper()
		for _, args := range [][]string{{"init", "-q"}, {"add", "-A"}, {"-c", "user.name=t", "-c", "user.email=t@t.example", "commit", "-qm", "x"}} {
			c := exec.Command("git", args...)
			c.Dir = dir
			if out, err := c.CombinedOutput(); err != nil {
				t.Fatalf("git %q: %v %s", args, err, out)
			}
		}
	}
	commit()
	age(t, filepath.Join(dir, "model/a.bin"))
	ship(t, s, dir)
	write(t, dir, "src/score.py", "pass # better")
	commit()
	before := bytesRead(t)
	out := ship(t, s, dir)
	if n := bytesRead(t) - before; n > 20*unit {
		t.Errorf("%d MiB were read for a change of code", n/unit)
	}
	if !strings.HasPrefix(out.Name, "sha-") {
		t.Errorf("it is named %s", out.Name)
	}
}

// TestSetDigest: it is what the shell says.
func TestSetDigest(t *testing.T) {
	dir := t.TempDir()
	names := []string{"fraud/3/weights.bin", "fraud/3/more/index", "fraud/10/a b", "Z", `odd\name`, "line\nbreak", "é"}
	sums := map[string]string{}
	for _, n := range names {
		write(t, dir, n, "content of "+n)
		sums[n] = sum("content of " + n)
	}
	got := image.SetDigest(sums)
	c := exec.Command("bash", "-c", `find . -type f -printf '%P\0' | LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum`)
	c.Dir = dir
	out, err := c.CombinedOutput()
	if err != nil {
		t.Skipf("no GNU tools: %v %s", err, out)
	}
	if want := "sha256:" + strings.Fields(string(out))[0]; got != want {
		t.Errorf("%s, and the shell says %s", got, want)
	}
	// The published vector.
	const vector = "sha256:4a0592128457a34898ff8f9b9fc286a84fc53bf7fd87ce0f2a0e21646995e349"
	if got := image.SetDigest(map[string]string{"fraud/3/weights.bin": sum("w"), "fraud/3/more/index": sum("i")}); got != vector {
		t.Errorf("the vector is %s, want %s", got, vector)
	}
}

// TestWrongMemory: what is remembered wrongly costs one deploy that fails, at most.
func TestWrongMemory(t *testing.T) {
	r := newRegistry(t)
	s := r.small(t)
	s.CacheDir = t.TempDir()
	dir := project(t)
	weights(t, filepath.Join(dir, "model/a.bin"), 65*unit, 1)
	age(t, dir)
	good := ship(t, s, dir)
	kept, err := filepath.Glob(filepath.Join(s.CacheDir, "*.json"))
	if err != nil || len(kept) < 4 { // the runner, a large file, the rest of the model and the project, and the archive
		t.Fatalf("kept %q, %v", kept, err)
	}
	digest := regexp.MustCompile(`"digest":"sha256:[0-9a-f]{64}"`)
	for name, c := range map[string]struct {
		with  string
		fails bool
	}{"garbage": {"{", false}, "no digest": {`{"digest": "sha256:00"}`, false}, "another digest": {"", true}} {
		for _, f := range kept {
			data, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			if c.with != "" {
				data = []byte(c.with)
			} else {
				data = digest.ReplaceAll(data, []byte(`"digest":"sha256:`+strings.Repeat("0a", 32)+`"`))
			}
			if err := os.WriteFile(f, data, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := s.Ship(t.Context(), dir); (err != nil) != c.fails {
			t.Errorf("%s: %v", name, err)
		}
		if again := ship(t, s, dir); again.Image != good.Image {
			t.Errorf("%s: %s, want %s", name, again.Image, good.Image)
		}
	}
}

// TestInterruptedHashing ends at once, whatever the size of a file.
func TestInterruptedHashing(t *testing.T) {
	r := newRegistry(t)
	s := r.small(t)
	dir := project(t)
	if err := os.Truncate(filepath.Join(dir, "model/weights.bin"), 1<<37); err != nil {
		t.Skip("the file system has no holes")
	}
	for what, run := range map[string]func(context.Context) error{
		"deploy":     func(ctx context.Context) error { _, err := s.Ship(ctx, dir); return err },
		"model push": func(ctx context.Context) error { _, err := s.PushModel(ctx, dir, r.host+"/m:1", ""); return err },
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		began := time.Now()
		err := run(ctx)
		cancel()
		if took := time.Since(began); !errors.Is(err, context.DeadlineExceeded) || took > 10*time.Second {
			t.Errorf("%s: %v after %s", what, err, took)
		}
	}
}
