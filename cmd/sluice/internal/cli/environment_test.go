package cli

import (
	"encoding/json"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// environmentProject writes a project whose environment no deploy takes yet.
func environmentProject(t *testing.T, baseImage, requirements string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{
		"sluice.yaml": "apiVersion: sluice.dev/v1alpha1\nkind: Project\nendpoint: e\nmodels: [{name: m, version: \"1\", path: not-there}]\n" +
			"scoring: {entryScript: score.py}\nenvironment: {baseImage: '" + baseImage + "', requirements: requirements.txt}\n",
		"requirements.txt": requirements,
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestEnvironmentHash(t *testing.T) {
	const digest = "sha256:1111111111111111111111111111111111111111111111111111111111111111"
	dir := environmentProject(t, "python:3.12-slim", "numpy==1.26\nscipy\n")
	code, was, errs := runCLI(t, "environment", "hash", dir, "--base-digest", digest, "-o", "json")
	if code != 0 {
		t.Fatal(code, errs)
	}
	var summary struct{ Hash string }
	if err := json.Unmarshal([]byte(was), &summary); err != nil || len(summary.Hash) != 64 {
		t.Fatalf("%s: %v", was, err)
	}
	earlier := filepath.Join(t.TempDir(), "earlier.json")
	if err := os.WriteFile(earlier, []byte(was), 0o644); err != nil {
		t.Fatal(err)
	}
	code, out, errs := runCLI(t, "environment", "hash", dir, "--base-digest", digest, "--explain", earlier)
	for _, want := range []string{summary.Hash, "python:3.12-slim is " + digest + " now", "not fixed to one version: requirements.txt:2: scipy", "Nothing changed since "} {
		if code != 0 || !strings.Contains(out, want) {
			t.Errorf("%d, no %q in:\n%s%s", code, want, out, errs)
		}
	}
	if strings.Contains(was, "changes") {
		t.Errorf("changes since nothing: %s", was)
	}
	code, out, errs = runCLI(t, "environment", "hash", dir, "--base-digest", digest, "--explain", earlier, "-o", "json")
	if code != 0 || !strings.Contains(out, `"changes": []`) {
		t.Errorf("%d, no changes is no empty list:\n%s%s", code, out, errs)
	}
	if err := os.WriteFile(filepath.Join(dir, "requirements.txt"), []byte("numpy==2.0 # newer\nscipy\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	code, out, errs = runCLI(t, "environment", "hash", dir, "--base-digest", digest, "--explain", earlier)
	if code != 0 || !strings.Contains(out, "requirements.txt: numpy==1.26 → numpy==2.0") || strings.Contains(out, summary.Hash) {
		t.Errorf("%d:\n%s%s", code, out, errs)
	}
}

// A tag is what its registry says of it at that moment, for the platform asked for.
func TestEnvironmentHashAsksTheRegistry(t *testing.T) {
	s := httptest.NewServer(registry.New())
	defer s.Close()
	ref := strings.TrimPrefix(s.URL, "http://") + "/base:1"
	push := func() string {
		t.Helper()
		img, err := random.Image(64, 1)
		if err != nil {
			t.Fatal(err)
		}
		config, err := img.ConfigFile()
		if err != nil {
			t.Fatal(err)
		}
		config = config.DeepCopy()
		config.OS, config.Architecture = "linux", "arm64"
		if img, err = mutate.ConfigFile(img, config); err != nil {
			t.Fatal(err)
		}
		tag, err := name.ParseReference(ref)
		if err != nil {
			t.Fatal(err)
		}
		if err := remote.Write(tag, img); err != nil {
			t.Fatal(err)
		}
		d, err := img.Digest()
		if err != nil {
			t.Fatal(err)
		}
		return d.String()
	}
	dir := environmentProject(t, ref, "numpy==1.26\n")
	for _, platform := range []string{"linux/arm64", "linux/aarch64"} {
		digest := push()
		if code, out, errs := runCLI(t, "environment", "hash", dir, "--platform", platform); code != 0 || !strings.Contains(out, ref+" is "+digest+" now") {
			t.Errorf("%d, not with %s:\n%s%s", code, digest, out, errs)
		}
	}
	if code, _, errs := runCLI(t, "environment", "hash", dir); code != exitRefused || !strings.Contains(errs, "wrong_platform") {
		t.Errorf("another platform: %d %s", code, errs)
	}
}

func TestEnvironmentHashMistakes(t *testing.T) {
	const digest = "sha256:1111111111111111111111111111111111111111111111111111111111111111"
	dir := environmentProject(t, "python:3.12-slim", "numpy==1.26\n-r more.txt\n")
	noSummary := filepath.Join(dir, "requirements.txt")
	for name, c := range map[string]struct {
		args []string
		code int
		says string
	}{
		"place":      {[]string{"hash", dir, "--base-digest", digest}, exitRefused, "requirements.txt:2: environment.requirements: there is no more.txt"},
		"digest":     {[]string{"hash", dir, "--base-digest", "sha256:1"}, exitRefused, "is not the digest of python:3.12-slim"},
		"platform":   {[]string{"hash", dir, "--base-digest", digest, "--platform", "windows/amd64"}, exitRefused, "is not a platform"},
		"no summary": {[]string{"hash", dir, "--explain", noSummary}, exitRefused, "is no output of"},
		"no file":    {[]string{"hash", dir, "--explain", noSummary + ".not"}, exitFailed, "no such file"},
		"no project": {[]string{"hash", t.TempDir()}, exitRefused, "there is no sluice.yaml"},
		"no command": {[]string{"hsah"}, exitUsage, "unknown command"},
	} {
		if code, _, errs := runCLI(t, append([]string{"environment"}, c.args...)...); code != c.code || !strings.Contains(errs, c.says) {
			t.Errorf("%s: exit code %d, %s", name, code, errs)
		}
	}
}

// TestEnvironmentHashBesides: the output does not count where it lies in the project, whose own Dockerfile copies all of it.
func TestEnvironmentHashBesides(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"sluice.yaml": "apiVersion: sluice.dev/v1alpha1\nkind: Project\nendpoint: e\nscoring: {entryScript: score.py}\nenvironment: {dockerfile: Dockerfile}\n",
		"Dockerfile":  "FROM scratch\nCOPY . /\n", "score.py": "pass",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	before := filepath.Join(dir, "before.json")
	f, err := os.Create(before)
	if err != nil {
		t.Fatal(err)
	}
	code := Main(t.Context(), []string{"environment", "hash", dir, "-o", "json"}, IO{In: strings.NewReader(""), Out: f, Err: os.Stderr})
	if err := f.Close(); code != 0 || err != nil {
		t.Fatal(code, err)
	}
	if code, out, errs := runCLI(t, "environment", "hash", dir, "--explain", before); code != 0 || !strings.Contains(out, "Nothing changed since ") {
		t.Errorf("%d: %s%s", code, out, errs)
	}
}
