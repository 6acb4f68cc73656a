//go:build unix

package cli

import (
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"log"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/sluice-dev/sluice/pkg/image"
)

// imageRegistry has a base image, base:1, and what passes for Sluice's runner, runner:1.
func imageRegistry(t *testing.T) string {
	t.Helper()
	s := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	t.Cleanup(s.Close)
	host := strings.TrimPrefix(s.URL, "http://")
	for tag, config := range map[string]v1.Config{"base:1": {}, "runner:1": {Entrypoint: []string{"/sluice/runner"}}} {
		img, err := random.Image(1000, 1)
		if err != nil {
			t.Fatal(err)
		}
		if img, err = mutate.Config(img, config); err != nil {
			t.Fatal(err)
		}
		ref, err := name.ParseReference(host + "/" + tag)
		if err != nil {
			t.Fatal(err)
		}
		if err := remote.Write(ref, img); err != nil {
			t.Fatal(err)
		}
	}
	return host
}

// imageProject is one of the endpoint echo, with no base image of its own.
func imageProject(t *testing.T) string {
	t.Helper()
	dir := tree(t)
	if err := os.WriteFile(filepath.Join(dir, "sluice.yaml"), []byte("apiVersion: sluice.dev/v1alpha1\nkind: Project\nendpoint: echo\nscoring: {entryScript: score.py}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

// TestPackageImage: both forms have the image that a deploy pushes, and an output in the project is no part of it.
func TestPackageImage(t *testing.T) {
	host := imageRegistry(t)
	t.Setenv("HOME", t.TempDir())
	dir := imageProject(t)
	shipped, err := image.Shipper{Registry: host + "/models", BaseImage: host + "/base:1", RunnerImage: host + "/runner:1"}.Ship(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(dir, "out") // twice each, so that the first is there the second time
	for i, format := range []string{"oci-layout", "oci-layout", "tarball", "tarball"} {
		if i == 2 {
			if err := os.RemoveAll(out); err != nil {
				t.Fatal(err)
			}
		}
		code, stdout, errs := runCLI(t, "package", dir, "--format", format, "-o", out, "-o", "json", "--base-image", host+"/base:1", "--runner-image", host+"/runner:1")
		var said struct{ Digest, Version, Platform, Written string }
		if err := json.Unmarshal([]byte(stdout), &said); code != 0 || err != nil {
			t.Fatalf("%s: exit code %d: %s%s (%v)", format, code, stdout, errs, err)
		}
		if !strings.HasSuffix(shipped.Image, "@"+said.Digest) || said.Version != shipped.Name || said.Platform != "linux/amd64" || said.Written != out {
			t.Errorf("%s has %+v, want what was shipped: %s", format, said, shipped.Image)
		}
		if _, err := os.Stat(out); err != nil {
			t.Error(err)
		}
	}
	if err := os.RemoveAll(out); err != nil {
		t.Fatal(err)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, ".*tmp*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	// What fails leaves nothing.
	for _, format := range []string{"oci-layout", "tarball"} {
		out := filepath.Join(t.TempDir(), "out")
		if code, _, errs := runCLI(t, "package", dir, "--format", format, "-o", out, "--base-image", host+"/nothing:1", "--runner-image", host+"/runner:1"); code != exitRefused || !strings.Contains(errs, "base_image_missing") {
			t.Errorf("%s without a base: %d, %s", format, code, errs)
		}
		if left, _ := filepath.Glob(filepath.Join(filepath.Dir(out), "*")); len(left) > 0 {
			t.Errorf("%s left %v", format, left)
		}
	}
	// Where to is made for a layout, and else named.
	place := t.TempDir()
	flags := []string{"--base-image", host + "/base:1", "--runner-image", host + "/runner:1"}
	if code, _, errs := runCLI(t, append([]string{"package", dir, "--format", "oci-layout", "-o", filepath.Join(place, "a/b/fraud")}, flags...)...); code != 0 {
		t.Errorf("below directories that are not there: %d, %s", code, errs)
	}
	if code, _, errs := runCLI(t, "package", dir, "--format", "oci-layout", "-o", filepath.Join(place, "c/d"), "--base-image", host+"/nothing:1", "--runner-image", host+"/runner:1"); code == 0 {
		t.Error(errs)
	}
	if _, err := os.Stat(filepath.Join(place, "c")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a directory that was made for nothing is left: %v", err)
	}
	for _, format := range []string{"archive", "tarball"} {
		code, _, errs := runCLI(t, append([]string{"package", dir, "--format", format, "-o", filepath.Join(place, "none/x")}, flags...)...)
		if code != exitRefused || !strings.Contains(errs, "there is no directory "+filepath.Join(place, "none")) || strings.Contains(errs, ".tmp-") {
			t.Errorf("%s: %d, %s", format, code, errs)
		}
		file := filepath.Join(place, format)
		was := syscall.Umask(0o027)
		code, _, errs = runCLI(t, append([]string{"package", dir, "--format", format, "-o", file}, flags...)...)
		syscall.Umask(was)
		if info, err := os.Stat(file); code != 0 || err != nil || info.Mode().Perm() != 0o640 {
			t.Errorf("%s: %d, %s, %v", format, code, errs, info)
		}
		written, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		code, out, errs := runCLI(t, append([]string{"package", dir, "--format", format, "-o", "-"}, flags...)...)
		if code != 0 || out != string(written) || !strings.Contains(errs, "version") {
			t.Errorf("%s to standard output: %d, %d bytes, %s", format, code, len(out), errs)
		}
	}
	if code, _, errs := runCLI(t, append([]string{"package", dir, "--format", "oci-layout", "-o", "-"}, flags...)...); code != exitUsage {
		t.Errorf("a layout to standard output: %d, %s", code, errs)
	}
	for _, args := range [][]string{{"--format", "zip", "-o", "x"}, {"--format", "tarball"}} {
		if code, _, errs := runCLI(t, append([]string{"package", dir}, args...)...); code != exitUsage {
			t.Errorf("%v: exit code %d, %s", args, code, errs)
		}
	}
}
