package image_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/sluice-dev/sluice/pkg/deploy"
	"github.com/sluice-dev/sluice/pkg/image"
	"github.com/sluice-dev/sluice/pkg/image/build"
	"github.com/sluice-dev/sluice/rollout"
)

// builder stands in for BuildKit: it pushes an image with a random layer under the tag asked for, since a real build
// is never twice the same.
type builder struct {
	t    *testing.T
	mu   sync.Mutex
	got  []build.Request
	fail error
}

func (b *builder) Build(ctx context.Context, r build.Request) (v1.Hash, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, err := os.Stat(filepath.Join(r.ContextDir, filepath.FromSlash(r.Dockerfile))); err != nil {
		b.t.Errorf("the context has no Dockerfile: %v", err)
	}
	b.got = append(b.got, r)
	if b.fail != nil {
		return v1.Hash{}, b.fail
	}
	l, err := random.Layer(1000, types.OCILayer)
	if err != nil {
		return v1.Hash{}, err
	}
	img, err := mutate.AppendLayers(baseOf(b.t, r.Platform.Architecture), l)
	if err != nil {
		return v1.Hash{}, err
	}
	config, err := img.ConfigFile()
	if err != nil {
		return v1.Hash{}, err
	}
	config = config.DeepCopy()
	config.Config.Labels = r.Labels
	if img, err = mutate.ConfigFile(img, config); err != nil {
		return v1.Hash{}, err
	}
	if err := remote.Write(r.Target, img, remote.WithContext(ctx)); err != nil {
		return v1.Hash{}, err
	}
	return img.Digest()
}

// builds that were asked for since this was called last.
func (b *builder) builds() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := len(b.got)
	b.got = nil
	return n
}

// said collects progress.
type said struct {
	mu    sync.Mutex
	lines []string
}

func (s *said) progress(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lines = append(s.lines, fmt.Sprintf(format, args...))
}

func (s *said) has(text string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Contains(strings.Join(s.lines, "\n"), text)
}

// withPackages is a project whose environment has to be built.
func withPackages(t *testing.T, requirements string) string {
	t.Helper()
	return write(t, project(t), "sluice.yaml", strings.Replace(manifest, "environment: {", "environment: {requirements: requirements.txt, ", 1), "requirements.txt", requirements)
}

func TestEnvironmentIsBuiltOnce(t *testing.T) {
	r := newRegistry(t)
	b := &builder{t: t}
	var told said
	s := r.shipper(t)
	s.Builder, s.Progress = b, told.progress

	first := ship(t, s, withPackages(t, "numpy==1.26\nscipy\n"))
	if n := b.builds(); n != 1 {
		t.Fatalf("the first deploy built %d times", n)
	}
	if !told.has("scipy is not fixed to one version") || told.has("numpy==1.26 is not") {
		t.Errorf("told %q", told.lines)
	}
	second := ship(t, s, withPackages(t, "# another comment\nnumpy == 1.26\n\nscipy\n"))
	if n := b.builds(); n != 0 || !told.has("is in the workspace registry") {
		t.Errorf("a changed comment built %d times; told %q", n, told.lines)
	}
	if first.Environment.Source != deploy.EnvironmentBuilt || second.Environment.Source != deploy.EnvironmentWorkspace || first.Environment.Hash != second.Environment.Hash {
		t.Errorf("environments %+v, then %+v", first.Environment, second.Environment)
	}
	if first.Image == second.Image {
		t.Error("the requirements file is a part of the project, and changed")
	}
	// Built or found, it is the same image.
	if again := ship(t, s, withPackages(t, "numpy==1.26\nscipy\n")); again.Image != first.Image || b.builds() != 0 {
		t.Errorf("the same project gave %s when its environment was built, and %s when it was found", first.Image, again.Image)
	}
	ship(t, s, withPackages(t, "numpy==2.0\nscipy\n"))
	if n := b.builds(); n != 1 {
		t.Errorf("a changed package built %d times", n)
	}
	// The environment's layers lie under the version's.
	layers := func(img string) int {
		l, err := r.image(t, img).Layers()
		if err != nil {
			t.Fatal(err)
		}
		return len(l)
	}
	if plain := ship(t, s, project(t)); layers(first.Image) != layers(plain.Image)+1 || b.builds() != 0 {
		t.Errorf("%d layers with an environment, %d without", layers(first.Image), layers(plain.Image))
	}
	s.Rebuild = true
	again := ship(t, s, withPackages(t, "numpy==1.26\nscipy\n"))
	if b.mu.Lock(); len(b.got) != 1 || !b.got[0].NoCache {
		t.Errorf("--rebuild asked for %+v", b.got)
	}
	b.mu.Unlock()
	if again.Image == first.Image {
		t.Error("--rebuild gave the same image")
	}
}

func TestEnvironmentOfTheGlobalRegistry(t *testing.T) {
	ours, global := newRegistry(t), newRegistry(t)
	b := &builder{t: t}
	theirs := global.shipper(t)
	theirs.Builder, theirs.Registry = b, global.host+"/shared"
	// One base image for both, since its digest counts.
	base := theirs.BaseImage
	dir := withPackages(t, "numpy==1.26\n")
	ship(t, theirs, dir)
	b.builds()

	var told said
	s := ours.shipper(t)
	s.Builder, s.Progress, s.BaseImage, s.GlobalRegistry = b, told.progress, base, global.host+"/shared"
	copied := ship(t, s, dir)
	if n := b.builds(); n != 0 || !told.has("copied") {
		t.Errorf("built %d times; told %q", n, told.lines)
	}
	if copied.Environment.Source != deploy.EnvironmentGlobal {
		t.Errorf("the environment came from %q", copied.Environment.Source)
	}
	// It is the workspace's now, under the same digest, whatever becomes of the other.
	s.GlobalRegistry = ""
	found := ship(t, s, dir)
	if n := b.builds(); n != 0 || found.Image != copied.Image {
		t.Errorf("built %d times after the copy; %s then, %s now", n, copied.Image, found.Image)
	}
	// A global registry that is not reached is no reason to fail.
	s.GlobalRegistry = "127.0.0.1:1/shared"
	ship(t, s, withPackages(t, "numpy==1.27\n"))
	if n := b.builds(); n != 1 || !told.has("the global registry is of no help") {
		t.Errorf("built %d times; told %q", n, told.lines)
	}
}

// A tag that something else was pushed under is not taken for the environment.
func TestEnvironmentOfAnotherLabel(t *testing.T) {
	r := newRegistry(t)
	b := &builder{t: t}
	var told said
	s := r.shipper(t)
	s.Builder, s.Progress = b, told.progress
	dir := withPackages(t, "numpy==1.26\n")
	ship(t, s, dir)
	b.mu.Lock()
	tag := b.got[0].Target
	b.mu.Unlock()
	if err := remote.Write(tag, baseOf(t, "amd64")); err != nil {
		t.Fatal(err)
	}
	b.builds()
	ship(t, s, dir)
	if n := b.builds(); n != 1 || !told.has("is not an image of that environment") {
		t.Errorf("built %d times; told %q", n, told.lines)
	}
}

func TestEnvironmentRefusals(t *testing.T) {
	r := newRegistry(t)
	dir := withPackages(t, "numpy==1.26\n")
	s := r.shipper(t)
	if _, err := s.Ship(t.Context(), dir); rollout.ReasonOf(err) != rollout.ReasonNoBuilder {
		t.Errorf("without a builder: %v", err)
	}
	failed := &rollout.Error{Reason: rollout.ReasonBuildFailed, Message: "pip ended with 1"}
	s.Builder = &builder{t: t, fail: failed}
	if _, err := s.Ship(t.Context(), dir); !errors.Is(err, failed) {
		t.Errorf("a failing build: %v", err)
	}
	// Nothing is left behind, neither here nor under the tag.
	left, err := os.ReadDir(s.TempDir)
	if err != nil || len(left) > 0 {
		t.Errorf("left %v, %v", left, err)
	}
	repo, err := name.NewRepository(r.host + "/models/environments")
	if err != nil {
		t.Fatal(err)
	}
	if tags, err := remote.List(repo); err == nil && len(tags) > 0 {
		t.Errorf("tags %v", tags)
	}
}

// TestOutputsInTheProject: an environment with a Dockerfile of its own, of which the whole project is the context, is the same one
// wherever the image is written to.
func TestOutputsInTheProject(t *testing.T) {
	r := newRegistry(t)
	s := r.small(t)
	b := &builder{t: t}
	s.Builder = b
	dir := write(t, t.TempDir(), "sluice.yaml", strings.Replace(manifest, `environment: {`, `environment: {dockerfile: Dockerfile, `, 1),
		"Dockerfile", "FROM "+s.BaseImage+"\nCOPY . /all\n", "model/weights.bin", "w", "src/score.py", "pass")
	s.BaseImage = ""
	var hashes []string
	for range 2 {
		l, err := image.OpenLayout(filepath.Join(dir, "out/fraud"))
		if err != nil {
			t.Fatal(err)
		}
		m, err := s.Make(t.Context(), dir, l.Files())
		if err != nil {
			t.Fatal(l.Close(err))
		}
		hashes = append(hashes, m.Environment.Hash)
		err = l.Close(m.AddTo(t.Context(), l))
		m.Close()
		if err != nil {
			t.Fatal(err)
		}
	}
	if hashes[0] != hashes[1] || b.builds() != 1 {
		t.Errorf("the environments %q", hashes)
	}
}
