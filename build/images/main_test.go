package main

import (
	"bytes"
	"encoding/json"
	"io"
	"log"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// module has one program, as small as can be: what is tested is not its size.
func module(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for file, text := range map[string]string{"go.mod": "module example.org/m\n\ngo 1.24\n", "cmd/router/main.go": "package main\n\nfunc main() { println(1) }\n"} {
		p := filepath.Join(dir, filepath.FromSlash(file))
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func images(t *testing.T, args ...string) string {
	t.Helper()
	var out, log bytes.Buffer
	if err := run(t.Context(), args, &out, &log); err != nil {
		t.Fatalf("%v: %s", err, log.String())
	}
	return out.String()
}

func TestImages(t *testing.T) {
	authorities := filepath.Join(t.TempDir(), "ca.crt")
	if err := os.WriteFile(authorities, []byte("trusted"), 0o600); err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(t.TempDir(), "images")
	common := []string{"--programs", "router", "--certificates", authorities, "--tag", "1.2", "--revision", "abc"}
	first := images(t, append(common, "--module", module(t), "--output", out)...)
	if !strings.Contains(first, "router:1.2  sha256:") {
		t.Errorf("printed\n%s", first)
	}
	server := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	defer server.Close()
	host := strings.TrimPrefix(server.URL, "http://")
	// Once more, from another directory, over what is there and into a registry.
	dir := module(t)
	if again := images(t, append(common, "--module", dir, "--output", out)...); again != first {
		t.Errorf("first\n%sthen\n%s", first, again)
	}
	pushed := images(t, append(common, "--module", dir, "--push", host+"/sluice")...)

	path, err := layout.FromPath(out)
	if err != nil {
		t.Fatal(err)
	}
	all, err := path.ImageIndex()
	if err != nil {
		t.Fatal(err)
	}
	top, err := all.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	if len(top.Manifests) != 1 || top.Manifests[0].Annotations["org.opencontainers.image.ref.name"] != "router:1.2" {
		t.Fatalf("the layout names %+v", top.Manifests)
	}
	digest := top.Manifests[0].Digest
	if !strings.Contains(first, digest.String()) || !strings.Contains(pushed, host+"/sluice/router:1.2  "+digest.String()) {
		t.Errorf("the layout has %s; printed\n%s%s", digest, first, pushed)
	}
	ref, err := name.ParseReference(host + "/sluice/router:1.2")
	if err != nil {
		t.Fatal(err)
	}
	index, err := remote.Index(ref)
	if err != nil {
		t.Fatal(err)
	}
	m, err := index.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	var platforms []string
	for _, d := range m.Manifests {
		platforms = append(platforms, d.Platform.String())
		img, err := index.Image(d.Digest)
		if err != nil {
			t.Fatal(err)
		}
		config, err := img.ConfigFile()
		if err != nil {
			t.Fatal(err)
		}
		layers, err := img.Layers()
		if err != nil {
			t.Fatal(err)
		}
		text, err := json.Marshal(config.Config)
		if err != nil {
			t.Fatal(err)
		}
		const want = `{"Entrypoint":["/sluice/router"],"Env":["PATH=/sluice"],"Labels":{"org.opencontainers.image.revision":"abc"},"User":"65532:65532","WorkingDir":"/"}`
		if string(text) != want || config.Architecture != d.Platform.Architecture || len(layers) != 2 {
			t.Errorf("%s has %d layers and %s,\nwant 2 and %s", config.Architecture, len(layers), text, want)
		}
	}
	if got := strings.Join(platforms, " "); got != "linux/amd64 linux/arm64" {
		t.Errorf("platforms %s", got)
	}
}

func TestMistakes(t *testing.T) {
	for says, args := range map[string][]string{
		"write it as linux/amd64": {"--platform", "plan9/386"},
		"is not understood":       {"extra"},
		"has other files":         {"--module", module(t), "--programs", "router", "--platform", "linux/amd64", "--output", module(t)},
		"two programs are for":    {"--module", module(t), "--programs", "router", "--platform", "linux/amd64,linux/amd64"},
	} {
		if err := run(t.Context(), args, io.Discard, io.Discard); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%q: %v, want one that says %q", args, err, says)
		}
	}
}
