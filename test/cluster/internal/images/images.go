// Package images makes the base images that others are built on, out of Debian packages, so that no
// registry on the internet is needed.
package images

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/crane"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/sluice-dev/sluice/test/cluster/internal/preflight"
)

// Names of the images, in the registry.
const (
	Busybox = "base/busybox:1"
	Python  = "base/python:3"
)

// searchPath is what programs are looked for in.
const searchPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// Push makes the base images that are named, or all of them, or takes them from the folder cache, and
// puts those into the registry (a host and a port) that are not there. It says on out what it does.
func Push(ctx context.Context, registry, cache string, names []string, out io.Writer) error {
	for _, name := range names {
		if name != Busybox && name != Python {
			return fmt.Errorf("find image %q: there are %s and %s", name, Busybox, Python)
		}
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return fmt.Errorf("make cache: %w", err)
	}
	for _, one := range []struct {
		name string
		make func(ctx context.Context, cache string, out io.Writer) (v1.Image, error)
	}{{Busybox, busybox}, {Python, python}} {
		if len(names) > 0 && !slices.Contains(names, one.name) {
			continue
		}
		began := time.Now()
		image, err := one.make(ctx, cache, out)
		if err != nil {
			return fmt.Errorf("make image %s: %w", one.name, err)
		}
		pushed, err := pushOnce(ctx, image, registry+"/"+one.name)
		if err != nil {
			return fmt.Errorf("push image %s: %w", one.name, err)
		}
		if pushed {
			fmt.Fprintf(out, "%s pushed, %.1f s\n", one.name, time.Since(began).Seconds())
		} else {
			fmt.Fprintf(out, "%s is there\n", one.name)
		}
	}
	return nil
}

// Load pushes the images of tar files as `docker save` writes them, each under the name that it has in
// there without its registry.
func Load(ctx context.Context, registry string, files []string, out io.Writer) error {
	for _, file := range files {
		manifest, err := tarball.LoadManifest(func() (io.ReadCloser, error) { return os.Open(file) })
		if err != nil {
			return fmt.Errorf("read image %s: %w", file, err)
		}
		for _, one := range manifest {
			for _, name := range one.RepoTags {
				image, err := crane.LoadTag(file, name)
				if err != nil {
					return fmt.Errorf("read image %s: %w", name, err)
				}
				to := registry + "/" + withoutRegistry(name)
				if err := crane.Push(image, to, crane.Insecure, crane.WithContext(ctx)); err != nil {
					return fmt.Errorf("push image %s: %w", to, err)
				}
				fmt.Fprintf(out, "%s pushed\n", withoutRegistry(name))
			}
		}
	}
	return nil
}

// withoutRegistry follows the rule that a first part with a dot or colon, or localhost, is a registry.
func withoutRegistry(name string) string {
	first, rest, ok := strings.Cut(name, "/")
	if ok && (strings.ContainsAny(first, ".:") || first == "localhost") {
		return rest
	}
	return name
}

func pushOnce(ctx context.Context, image v1.Image, to string) (pushed bool, err error) {
	want, err := image.Digest()
	if err != nil {
		return false, fmt.Errorf("compute digest: %w", err)
	}
	options := []crane.Option{crane.Insecure, crane.WithContext(ctx)}
	is, err := crane.Digest(to, options...)
	if err == nil && is == want.String() {
		return false, nil
	}
	var refused *transport.Error
	if err != nil && (!errors.As(err, &refused) || refused.StatusCode != http.StatusNotFound) {
		return false, fmt.Errorf("look for it: %w", err)
	}
	return true, crane.Push(image, to, options...)
}

// busybox is one program under all of its names.
func busybox(ctx context.Context, cache string, _ io.Writer) (v1.Image, error) {
	program, err := os.ReadFile(preflight.Busybox)
	if err != nil {
		return nil, fmt.Errorf("read program: %w", err)
	}
	list, err := exec.CommandContext(ctx, preflight.Busybox, "--list").Output()
	if err != nil {
		return nil, fmt.Errorf("list applets: %w", err)
	}
	layer := filepath.Join(cache, "busybox-"+sum(program, list)+".tar.gz")
	err = once(layer, func(w io.Writer) error {
		z := gzip.NewWriter(w)
		t := tar.NewWriter(z)
		for _, dir := range []string{"bin/", "etc/", "home/", "root/", "tmp/", "var/", "usr/", "usr/bin/"} {
			mode := int64(0o755)
			if dir == "tmp/" {
				mode = 0o1777
			}
			if err := t.WriteHeader(&tar.Header{Name: dir, Typeflag: tar.TypeDir, Mode: mode}); err != nil {
				return err
			}
		}
		for _, file := range []struct {
			name string
			mode int64
			body []byte
		}{
			{"bin/busybox", 0o755, program},
			{"etc/passwd", 0o644, []byte("root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/home:/bin/false\n")},
			{"etc/group", 0o644, []byte("root:x:0:\nnogroup:x:65534:\n")},
		} {
			if err := t.WriteHeader(&tar.Header{Name: file.name, Mode: file.mode, Size: int64(len(file.body))}); err != nil {
				return err
			}
			if _, err := t.Write(file.body); err != nil {
				return err
			}
		}
		for _, applet := range strings.Fields(string(list)) {
			if applet == "busybox" {
				continue
			}
			if err := t.WriteHeader(&tar.Header{Name: "bin/" + applet, Typeflag: tar.TypeSymlink, Linkname: "busybox", Mode: 0o777}); err != nil {
				return err
			}
		}
		return errors.Join(t.Close(), z.Close())
	})
	if err != nil {
		return nil, err
	}
	return image(layer, v1.Config{Cmd: []string{"sh"}, Env: []string{searchPath}})
}

// python is a small Debian of the host's release with its Python.
func python(ctx context.Context, cache string, out io.Writer) (v1.Image, error) {
	suite, err := release()
	if err != nil {
		return nil, err
	}
	packages := "--include=python3,ca-certificates"
	const recipe = `
set -euo pipefail
debootstrap --variant=minbase "$PACKAGES" "$SUITE" "$ROOT" >"$ROOT.log" 2>&1 || { tail -20 "$ROOT.log"; exit 1; }
ln -sf python3 "$ROOT/usr/bin/python"
tar -C "$ROOT" --sort=name --mtime=@0 --numeric-owner \
  --exclude='./var/cache/apt/*' --exclude='./var/lib/apt/lists/*' --exclude='./var/log/*' --exclude='./dev/*' --exclude='./proc/*' \
  --exclude='./sys/*' --exclude='./usr/share/doc/*' --exclude='./usr/share/man/*' --exclude='./usr/share/locale/*' \
  -cf - . | gzip -1n
`
	layer := filepath.Join(cache, "python-"+sum([]byte(suite), []byte(packages), []byte(recipe))+".tar.gz")
	err = once(layer, func(w io.Writer) error {
		fmt.Fprintln(out, Python+": making a root file system from "+suite+"'s packages; about 80 s")
		dir, err := os.MkdirTemp(cache, "root-")
		if err != nil {
			return fmt.Errorf("make directory: %w", err)
		}
		defer os.RemoveAll(dir)
		cmd := exec.CommandContext(ctx, "bash", "-c", recipe)
		cmd.Env = append(os.Environ(), "PACKAGES="+packages, "SUITE="+suite, "ROOT="+filepath.Join(dir, "root"))
		var stderr bytes.Buffer
		cmd.Stdout, cmd.Stderr = w, &stderr
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("run debootstrap: %w\n%s", err, stderr.String())
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return image(layer, v1.Config{Cmd: []string{"python3"}, Env: []string{searchPath, "LANG=C.UTF-8"}})
}

// release is the code name of the Debian or Ubuntu that this is.
func release() (string, error) {
	f, err := os.Open("/etc/os-release")
	if err != nil {
		return "", fmt.Errorf("read release: %w", err)
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if name, ok := strings.CutPrefix(lines.Text(), "VERSION_CODENAME="); ok {
			return strings.Trim(name, `"`), nil
		}
	}
	return "", errors.New("read release: /etc/os-release has no VERSION_CODENAME; the Python image is made from Debian's or Ubuntu's packages")
}

// once makes a file unless it is there; an interrupted make leaves none.
func once(path string, make func(io.Writer) error) error {
	if _, err := os.Stat(path); err == nil {
		return nil
	}
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".part-")
	if err != nil {
		return fmt.Errorf("make file: %w", err)
	}
	defer os.Remove(f.Name())
	defer f.Close()
	if err := make(f); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return fmt.Errorf("write file: %w", err)
	}
	return os.Rename(f.Name(), path)
}

func image(layer string, config v1.Config) (v1.Image, error) {
	l, err := tarball.LayerFromFile(layer)
	if err != nil {
		return nil, fmt.Errorf("read layer: %w", err)
	}
	i, err := mutate.AppendLayers(empty.Image, l)
	if err != nil {
		return nil, fmt.Errorf("append layer: %w", err)
	}
	file, err := i.ConfigFile()
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	file = file.DeepCopy()
	file.OS, file.Architecture, file.Config = "linux", runtime.GOARCH, config
	return mutate.ConfigFile(i, file)
}

func sum(parts ...[]byte) string {
	h := sha256.New()
	for _, p := range parts {
		fmt.Fprintln(h, len(p))
		h.Write(p)
	}
	return hex.EncodeToString(h.Sum(nil))[:12]
}
