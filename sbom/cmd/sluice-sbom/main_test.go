package main

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log"
	"net/http/httptest"
	"os"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// files of a tar, in that order.
func files(t *testing.T, nameAndText ...string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for i := 0; i < len(nameAndText); i += 2 {
		if err := w.WriteHeader(&tar.Header{Name: nameAndText[i], Mode: 0o644, Size: int64(len(nameAndText[i+1])), Typeflag: tar.TypeReg}); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, nameAndText[i+1]); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// debianWithPython is an image as a version's is: the base's layer compressed, another as it stands.
func debianWithPython(t *testing.T) v1.Image {
	t.Helper()
	base := files(t,
		"etc/os-release", "ID=debian\nVERSION_ID=\"12\"\nNAME=\"Debian GNU/Linux\"\n",
		"var/lib/dpkg/status", "Package: libgomp1\nStatus: install ok installed\nArchitecture: amd64\nSource: gcc-12\nVersion: 12.2.0-14\nMaintainer: x <x@example.org>\nDescription: runtime\n\nPackage: base-files\nStatus: install ok installed\nArchitecture: amd64\nVersion: 12.4\nMaintainer: x <x@example.org>\nDescription: files\n",
		"var/lib/dpkg/info/libgomp1.list", "/usr/lib/libgomp.so.1\n", "usr/lib/libgomp.so.1", "elf",
	)
	compressed, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(base)), nil }, tarball.WithMediaType(types.OCILayer))
	if err != nil {
		t.Fatal(err)
	}
	const site = "usr/local/lib/python3.12/site-packages/"
	plain := static.NewLayer(files(t,
		site+"numpy-1.26.4.dist-info/METADATA", "Metadata-Version: 2.1\nName: numpy\nVersion: 1.26.4\nLicense: BSD-3-Clause\n",
		site+"numpy-1.26.4.dist-info/RECORD", "numpy/__init__.py,,\n", site+"numpy-1.26.4.dist-info/top_level.txt", "numpy\n", site+"numpy/__init__.py", "",
	), types.OCIUncompressedLayer)
	img, err := mutate.Append(mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON),
		mutate.Addendum{Layer: compressed, MediaType: types.OCILayer}, mutate.Addendum{Layer: plain, MediaType: types.OCIUncompressedLayer})
	if err != nil {
		t.Fatal(err)
	}
	c, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	c.OS, c.Architecture = "linux", "amd64"
	if img, err = mutate.ConfigFile(img, c); err != nil {
		t.Fatal(err)
	}
	return img
}

// TestDocument: packages of both kinds, and the same bytes from a layout, from a registry, and once more.
func TestDocument(t *testing.T) {
	temp := t.TempDir()
	t.Setenv("TMPDIR", temp)
	img := debianWithPython(t)
	digest, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	path, err := layout.Write(dir, mutate.IndexMediaType(empty.Index, types.OCIImageIndex))
	if err != nil {
		t.Fatal(err)
	}
	if err := path.AppendImage(img, layout.WithAnnotations(map[string]string{"org.opencontainers.image.ref.name": "v1"})); err != nil {
		t.Fatal(err)
	}
	s := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	defer s.Close()
	at := strings.TrimPrefix(s.URL, "http://") + "/team/fraud:1"
	ref, err := name.ParseReference(at)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(ref, img); err != nil {
		t.Fatal(err)
	}
	var first []byte
	for _, args := range [][]string{{"--layout", dir}, {"--layout", dir, "--ref", "v1"}, {at}, {at}} {
		var out, errs bytes.Buffer
		if code := run(t.Context(), args, &out, &errs); code != 0 {
			t.Fatalf("%q: exit code %d: %s", args, code, &errs)
		}
		if first == nil {
			first = out.Bytes()
		} else if !bytes.Equal(first, out.Bytes()) {
			t.Errorf("%q: the same image has another document:\n%s\nbefore:\n%s", args, &out, first)
		}
	}
	var doc struct {
		SPDXVersion       string
		DocumentNamespace string
		CreationInfo      struct{ Created string }
		Packages          []struct {
			Name, VersionInfo string
			ExternalRefs      []struct{ ReferenceLocator string }
		}
	}
	if err := json.Unmarshal(first, &doc); err != nil {
		t.Fatal(err)
	}
	if doc.SPDXVersion != "SPDX-2.3" || doc.CreationInfo.Created != "1970-01-01T00:00:00Z" || !strings.HasSuffix(doc.DocumentNamespace, "/sha256/"+digest.Hex) {
		t.Errorf("the document is %s of %s, created %s", doc.SPDXVersion, doc.DocumentNamespace, doc.CreationInfo.Created)
	}
	has := map[string]string{}
	for _, p := range doc.Packages {
		for _, r := range p.ExternalRefs {
			if strings.HasPrefix(r.ReferenceLocator, "pkg:") {
				has[p.Name+" "+p.VersionInfo] = r.ReferenceLocator
			}
		}
	}
	for what, purl := range map[string]string{
		"libgomp1 12.2.0-14": "pkg:deb/debian/libgomp1@12.2.0-14", "base-files 12.4": "pkg:deb/debian/base-files@12.4", "numpy 1.26.4": "pkg:pypi/numpy@1.26.4",
		"image " + digest.String(): "pkg:oci/image@sha256",
	} {
		if !strings.HasPrefix(has[what], purl) {
			t.Errorf("no %s in %v", purl, has)
		}
	}
	if left, err := os.ReadDir(temp); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v (%v)", left, err)
	}
}

func TestFailures(t *testing.T) {
	temp := t.TempDir()
	t.Setenv("TMPDIR", temp)
	for want, args := range map[int][]string{2: {}, 1: {"--layout", t.TempDir()}} {
		var out, errs bytes.Buffer
		if code := run(t.Context(), args, &out, &errs); code != want || errs.Len() == 0 || out.Len() > 0 {
			t.Errorf("%q: exit code %d, %q, %q", args, code, &out, &errs)
		}
	}
	dir := t.TempDir()
	path, err := layout.Write(dir, empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	if err := path.AppendImage(debianWithPython(t)); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var out, errs bytes.Buffer
	if code := run(ctx, []string{"--layout", dir}, &out, &errs); code != 1 || !strings.Contains(errs.String(), context.Canceled.Error()) || out.Len() > 0 {
		t.Errorf("interrupted: exit code %d, %q, %q", code, &out, &errs)
	}
	if left, err := os.ReadDir(temp); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v (%v)", left, err)
	}
}
