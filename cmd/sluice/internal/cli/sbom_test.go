//go:build unix

package cli

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/sluice-dev/sluice/pkg/deploy"
	"github.com/sluice-dev/sluice/pkg/image/sbom"
	"github.com/sluice-dev/sluice/rollout"
)

// sbomProgram puts a script on the PATH in the place of sluice-sbom.
func sbomProgram(t *testing.T, script string) {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, sbom.Program), []byte("#!/bin/sh\n"+script+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+string(filepath.ListSeparator)+os.Getenv("PATH"))
}

// documents that an image has.
func documents(t *testing.T, image string) []string {
	t.Helper()
	ref, err := name.NewDigest(image)
	if err != nil {
		t.Fatal(err)
	}
	index, err := remote.Referrers(ref)
	if err != nil {
		t.Fatal(err)
	}
	m, err := index.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, d := range m.Manifests {
		if d.ArtifactType == sbom.ArtifactType {
			out = append(out, ref.Context().Name()+"@"+d.Digest.String())
		}
	}
	return out
}

func TestSBOM(t *testing.T) {
	host := imageRegistry(t)
	t.Setenv("PATH", t.TempDir())
	if code, _, errs := runCLI(t, "sbom", host+"/base:1"); code != exitFailed || !strings.Contains(errs, "sbom_failed") || !strings.Contains(errs, "make sbom") {
		t.Errorf("without the program: %d, %s", code, errs)
	}
	t.Setenv("PATH", "/usr/bin:/bin")
	sbomProgram(t, `echo "{\"of\": \"$1\"}"`)
	for i, changed := range []bool{true, false} {
		code, out, errs := runCLI(t, "sbom", host+"/base:1", "-o", "json")
		var said attached
		if err := json.Unmarshal([]byte(out), &said); code != 0 || err != nil {
			t.Fatalf("%d: %d, %s%s (%v)", i, code, out, errs, err)
		}
		if has := documents(t, said.Image); len(has) != 1 || has[0] != said.SBOM || said.Changed != changed || !strings.HasPrefix(said.Image, host+"/base@sha256:") {
			t.Errorf("%d: it says %+v, and the image has %v", i, said, has)
		}
	}
	if code, _, errs := runCLI(t, "sbom", host+"/nothing:1"); code != exitRefused || !strings.Contains(errs, "base_image_missing") {
		t.Errorf("of no image: %d, %s", code, errs)
	}
	if code, _, errs := runCLI(t, "deploy", tree(t), "--sbom"); code != exitUsage || !strings.Contains(errs, "--target kubernetes") {
		t.Errorf("on this machine: %d, %s", code, errs)
	}
}

// TestDeployAttachesSBOM before the scanner looks, and keeps a version without one out.
func TestDeployAttachesSBOM(t *testing.T) {
	a, store, out := clusterApp(t)
	sbomProgram(t, "exit 1")
	dir := imageProject(t)
	if err := a.deploy(t.Context(), deploy.Options{Dir: dir}, admission{sbom: true}); rollout.ReasonOf(err) != rollout.ReasonSBOMFailed {
		t.Errorf("got %v", err)
	}
	key := rollout.Key{Namespace: "models", Name: "echo"}
	if e, err := store.Get(t.Context(), key); err == nil {
		t.Errorf("the endpoint is %+v, want none", e)
	}
	sbomProgram(t, `echo "{\"of\": \"$1\"}"`)
	if err := a.deploy(t.Context(), deploy.Options{Dir: dir}, admission{sbom: true, scanner: "true"}); err != nil {
		t.Fatal(err)
	}
	e, err := store.Get(t.Context(), key)
	if err != nil || len(e.Spec.Versions) != 1 {
		t.Fatal(e, err)
	}
	image := strings.Replace(e.Spec.Versions[0].Image, "nodes-only:5000/models", a.images.registry, 1)
	if has := documents(t, image); len(has) != 1 || !strings.Contains(out.String(), has[0]) {
		t.Errorf("%s has %v; it was said %s", image, has, out)
	}
}
