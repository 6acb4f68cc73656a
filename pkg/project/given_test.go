package project

import (
	"bytes"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sluice-dev/sluice/rollout"
)

const givenManifest = "apiVersion: sluice.dev/v1alpha1\nkind: Project\nendpoint: fraud\nmodels: [{name: m, version: \"1\", path: model}, {name: n, version: \"1\", path: other.bin}]\nscoring: {entryScript: score.py}\n"

// givenProject has files around the names that are given, in the order of an archive.
func givenProject(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{
		"score.py": "x", "model/w": "1", "other.bin": "2", "a-conda.ymm": "3", "a-conda.yml.bak": "4", "sluice.yaml.old": "5", "zz/z": "6", "sluice/x": "7",
	} {
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// TestGiven compares what is made of a manifest beside the project with what is made of the same manifest in it.
func TestGiven(t *testing.T) {
	given := &Given{Files: map[string][]byte{ManifestName: []byte(givenManifest), "a-conda.yml": []byte("dependencies: [x]\n"), "empty": nil}}
	dir := givenProject(t)
	archive := func(opts ...Option) ([]byte, Result) {
		t.Helper()
		var b bytes.Buffer
		res, err := Package(t.Context(), dir, &b, nil, opts...)
		if err != nil {
			t.Fatal(err)
		}
		return b.Bytes(), res
	}
	gave, res := archive(given)
	prepared, err := Prepare(t.Context(), dir, nil, given)
	if err != nil || prepared.Files != res.Files || prepared.ModelDir != res.ModelDir {
		t.Errorf("prepared %+v, %v; packaged %+v", prepared, err, res)
	}
	var contents []string
	if err := prepared.Listing.Contents(t.Context(), "", func(c *Content) error {
		if _, is := given.Files[c.Path]; is && (c.Layout || c.Info.Size() != c.Size) {
			t.Errorf("%s: layout %t, size %d and %d", c.Path, c.Layout, c.Info.Size(), c.Size)
		}
		contents = append(contents, c.Path)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	for name, text := range given.Files {
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	have, want := archive()
	if !bytes.Equal(gave, have) {
		t.Errorf("the archives differ: %s and %s", res.Digest, want.Digest)
	}
	if res.Files != want.Files || res.Size != want.Size || res.ModelDir != want.ModelDir || res.Version != want.Version {
		t.Errorf("%+v, want %+v", res, want)
	}
	var there []string
	if err := want.Listing.Contents(t.Context(), "", func(c *Content) error { there = append(there, c.Path); return nil }); err != nil {
		t.Fatal(err)
	}
	if a, b := strings.Join(contents, " "), strings.Join(there, " "); a != b {
		t.Errorf("contents\n%s, want\n%s", a, b)
	}
}

func TestGivenBesideAnother(t *testing.T) {
	dir := givenProject(t)
	given := &Given{Files: map[string][]byte{ManifestName: []byte(givenManifest), "a-conda.yml": []byte("mine")}}
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("a-conda.yml", "mine")
	if _, err := Load(dir, given); err != nil {
		t.Errorf("the same content: %v", err)
	}
	write("a-conda.yml", "theirs")
	if _, err := Load(dir, given); err == nil || !strings.Contains(err.Error(), "a-conda.yml: is the name of a file that is to ship") {
		t.Errorf("another content: %v", err)
	}
	write(ManifestName, givenManifest)
	if _, err := Load(dir, &Given{Files: map[string][]byte{ManifestName: []byte(givenManifest)}}); err == nil || !strings.Contains(err.Error(), "is there already") {
		t.Errorf("two manifests: %v", err)
	}
	if _, err := Load(dir, (*Given)(nil)); err != nil {
		t.Errorf("nothing given: %v", err)
	}
}

func TestGivenOrigin(t *testing.T) {
	dir := givenProject(t)
	given := &Given{
		Files:  map[string][]byte{ManifestName: []byte(strings.Replace(givenManifest, "score.py", "gone.py", 1))},
		Origin: func(field string) Place { return Place{"conf.json", len(field), 2} },
	}
	_, err := Load(dir, given, Check(func(*Manifest) []*rollout.Error { return []*rollout.Error{{Field: "version"}} }))
	errs := Errors(err)
	if len(errs) != 2 || errs[0].Place() != "conf.json:7:2" || errs[1].Place() != "conf.json:19:2" || errs[1].Refusal.Field != "scoring.entryScript" {
		t.Errorf("%v", err)
	}
}

// TestGivenVersion says when a version is named after the commit: when that determines the manifest.
func TestGivenVersion(t *testing.T) {
	if _, err := exec.LookPath("git"); err != nil {
		t.Skip("no git")
	}
	dir := givenProject(t)
	git := func(args ...string) {
		t.Helper()
		c := exec.Command("git", append([]string{"-C", dir, "-c", "user.name=t", "-c", "user.email=t@example.com"}, args...)...)
		if out, err := c.CombinedOutput(); err != nil {
			t.Fatalf("git %v: %v %s", args, err, out)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "ic.json"), []byte("{}"), 0o644); err != nil {
		t.Fatal(err)
	}
	git("init", "-q")
	git("add", ".")
	git("commit", "-qm", "one")
	given := Given{Files: map[string][]byte{ManifestName: []byte(givenManifest)}, Sources: []string{"ic.json"}}
	prefix := func(g Given) string {
		t.Helper()
		res, err := Package(t.Context(), dir, io.Discard, nil, &g)
		if err != nil {
			t.Fatal(err)
		}
		before, _, _ := strings.Cut(res.Version, "-")
		return before
	}
	if got := prefix(given); got != "sha" {
		t.Errorf("tracked: %s", got)
	}
	beside := given
	beside.Beside = true
	if got := prefix(beside); got != "src" {
		t.Errorf("with flags: %s", got)
	}
	untracked := given
	untracked.Sources = []string{"ic.json", "dc.json"}
	if got := prefix(untracked); got != "src" {
		t.Errorf("a source that is not tracked: %s", got)
	}
	if err := os.WriteFile(filepath.Join(dir, "ic.json"), []byte("{ }"), 0o644); err != nil {
		t.Fatal(err)
	}
	if got := prefix(given); got != "src" {
		t.Errorf("changed: %s", got)
	}
}
