package act

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/moby/buildkit/client"
	docker "github.com/moby/moby/client"
	"github.com/tonistiigi/fsutil"
)

// BuildClassic builds a directory's Dockerfile as act does: without BuildKit. It gives what was said.
func BuildClassic(t *testing.T, dir, tag string) (log string, err error) {
	t.Helper()
	e := available(t)
	if err := e.ready(t); err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := errors.Join(w.AddFS(os.DirFS(dir)), w.Close()); err != nil {
		return "", fmt.Errorf("build image: %w", err)
	}
	answer, err := e.ImageBuild(t.Context(), &b, docker.ImageBuildOptions{Tags: []string{tag}, Remove: true})
	if err != nil {
		return "", fmt.Errorf("build image: %w", err)
	}
	defer answer.Body.Close()
	var said strings.Builder
	for lines := json.NewDecoder(answer.Body); ; {
		var line struct{ Stream, Error string }
		err := lines.Decode(&line)
		if errors.Is(err, io.EOF) {
			return said.String(), nil
		}
		if err == nil && line.Error != "" {
			err = errors.New(line.Error)
		}
		if err != nil {
			return said.String(), fmt.Errorf("build image: %w", err)
		}
		said.WriteString(line.Stream)
	}
}

// BuildKit builds a directory's Dockerfile as `docker build` does by default: by the engine's BuildKit. It gives what was said.
func BuildKit(t *testing.T, dir, tag string) (log string, err error) {
	t.Helper()
	e := available(t)
	if err := e.ready(t); err != nil {
		t.Fatal(err)
	}
	c, err := client.New(t.Context(), "",
		client.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return e.DialHijack(ctx, "/grpc", "h2c", nil) }),
		client.WithSessionDialer(func(ctx context.Context, proto string, meta map[string][]string) (net.Conn, error) {
			return e.DialHijack(ctx, "/session", proto, meta)
		}))
	if err != nil {
		return "", fmt.Errorf("build image: %w", err)
	}
	defer func() { _ = c.Close() }()
	files, err := fsutil.NewFS(dir)
	if err != nil {
		return "", fmt.Errorf("build image: %w", err)
	}
	statuses := make(chan *client.SolveStatus)
	var said strings.Builder
	done := make(chan struct{})
	go func() {
		defer close(done)
		for s := range statuses {
			for _, l := range s.Logs {
				said.Write(l.Data)
			}
		}
	}()
	_, err = c.Solve(t.Context(), nil, client.SolveOpt{
		Frontend: "dockerfile.v0",
		// The engine of `buildkit run --docker --here` has no other.
		FrontendAttrs:       map[string]string{"force-network-mode": "host"},
		AllowedEntitlements: []string{"network.host"},
		LocalMounts:         map[string]fsutil.FS{"context": files, "dockerfile": files},
		Exports:             []client.ExportEntry{{Type: "moby", Attrs: map[string]string{"name": tag}}},
	}, statuses)
	<-done
	if err != nil {
		return said.String(), fmt.Errorf("build image: %w", err)
	}
	return said.String(), nil
}

// ready is prepare, under the lock.
func (e *engine) ready(t *testing.T) error {
	t.Helper()
	one.Lock()
	defer one.Unlock()
	return e.prepare(t)
}

// Toolchain loads an image of this machine's Go under the name that a Dockerfile's first stage has, in the place of the one that only
// has a shell, until the test ends: for images that compile.
func Toolchain(t *testing.T, dockerfile string) {
	t.Helper()
	goroot, err := exec.CommandContext(t.Context(), "go", "env", "GOROOT").Output()
	if err != nil {
		t.Fatal(err)
	}
	tag, err := BuildImage(dockerfile)
	if err != nil {
		t.Fatal(err)
	}
	e := available(t)
	if err := e.ready(t); err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	err = shellInto(t.Context(), w)
	err = errors.Join(err, toolchainInto(w, strings.TrimSpace(string(goroot))))
	if err := errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	image, err := Image(b.Bytes(), config("/usr/local/go/bin:/bin", "GOTOOLCHAIN=local", "GOPROXY=off", "GOFLAGS=-p=2"))
	if err != nil {
		t.Fatal(err)
	}
	Load(t, tag, image)
	t.Cleanup(func() {
		one.Lock()
		defer one.Unlock()
		if err := e.loadShell(context.Background()); err != nil {
			t.Error(err)
		}
	})
}

// toolchainInto adds what of Go compiles programs to an archive, as /usr/local/go.
func toolchainInto(w *tar.Writer, goroot string) error {
	return filepath.WalkDir(goroot, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		below, err := filepath.Rel(goroot, path)
		if err != nil {
			return err
		}
		below = filepath.ToSlash(below)
		if d.IsDir() {
			switch {
			case strings.HasSuffix(below, "/testdata"), below == "src/cmd", below == "test", below == "api", below == "doc", below == "misc", below == "lib":
				return filepath.SkipDir
			}
			return nil
		}
		if tool, is := strings.CutPrefix(below, "pkg/tool/"); is && !slices.Contains([]string{"asm", "compile", "link"}, filepath.Base(tool)) {
			return nil
		}
		if below == "bin/gofmt" || !d.Type().IsRegular() || strings.HasSuffix(below, "_test.go") {
			return nil
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		body, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		h := tar.Header{Name: "usr/local/go/" + below, Mode: int64(info.Mode().Perm()), Size: int64(len(body)), ModTime: info.ModTime()}
		if err := w.WriteHeader(&h); err != nil {
			return err
		}
		_, err = w.Write(body)
		return err
	})
}
