package act

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	docker "github.com/moby/moby/client"
)

const (
	// Runner is the image of ubuntu-latest: a Debian with bash and Python, and without node.
	Runner = "sluice-test/runner:1"
	// RegistryVariable is a variable with the registry, host and port, that has what Runner is made of, base/python:3.
	RegistryVariable = "SLUICE_TEST_REGISTRY"

	busybox     = "/bin/busybox"
	authorities = "/etc/ssl/certs/ca-certificates.crt"
	// program is the Action's, in its directory.
	program = "dist/action"
)

type engine struct {
	*docker.Client
	program, host string
	// prepared says that the images are there.
	prepared bool
}

// shared is the engine of all tests of a process, under the lock of Run.
var shared *engine

// available finds act and the engine, or skips the test.
func available(t *testing.T) *engine {
	t.Helper()
	one.Lock()
	defer one.Unlock()
	if shared != nil {
		return shared
	}
	for _, variable := range []string{ProgramVariable, docker.EnvOverrideHost, RegistryVariable} {
		if os.Getenv(variable) == "" {
			t.Skipf("it needs act, a Docker engine and a registry: %s is not set; `make action-e2e` does all of it", variable)
		}
	}
	c, err := docker.New(docker.FromEnv)
	if err != nil {
		t.Fatal(err)
	}
	shared = &engine{Client: c, program: os.Getenv(ProgramVariable), host: os.Getenv(docker.EnvOverrideHost)}
	return shared
}

// prepare gives the engine the images of the runner and of the Dockerfile's first stage.
func (e *engine) prepare(t *testing.T) error {
	t.Helper()
	if e.prepared {
		return nil
	}
	ctx, began := t.Context(), time.Now()
	ref, err := name.ParseReference(os.Getenv(RegistryVariable) + "/base/python:3")
	if err != nil {
		return fmt.Errorf("prepare images: %w", err)
	}
	runner, err := remote.Image(ref, remote.WithContext(ctx))
	if err != nil {
		return fmt.Errorf("prepare images: %w", err)
	}
	if err := e.load(ctx, Runner, runner); err != nil {
		return fmt.Errorf("prepare images: %w", err)
	}
	if err := e.loadShell(ctx); err != nil {
		return fmt.Errorf("prepare images: %w", err)
	}
	e.prepared = true
	t.Logf("images of the runner and of a shell loaded in %s", time.Since(began).Round(10*time.Millisecond))
	return nil
}

// loadShell makes what the Dockerfile's first stage begins with an image of a shell.
func (e *engine) loadShell(ctx context.Context) error {
	file, err := dockerfile()
	if err != nil {
		return err
	}
	tag, err := BuildImage(file)
	if err != nil {
		return err
	}
	image, err := shell(ctx)
	if err != nil {
		return err
	}
	return e.load(ctx, tag, image)
}

var buildImage = regexp.MustCompile(`(?m)^ARG BUILD=(\S+)$`)

// BuildImage is the image of the first stage of a Dockerfile that names it as this project's does.
func BuildImage(dockerfile string) (string, error) {
	text, err := os.ReadFile(dockerfile)
	if err != nil {
		return "", fmt.Errorf("find build image: %w", err)
	}
	m := buildImage.FindSubmatch(text)
	if m == nil {
		return "", fmt.Errorf("find build image: %s has no line ARG BUILD=IMAGE", dockerfile)
	}
	return string(m[1]), nil
}

// dockerfile is this project's.
func dockerfile() (string, error) {
	dir, err := os.Getwd()
	for ; err == nil; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return filepath.Join(dir, "Dockerfile"), nil
		}
		if dir == filepath.Dir(dir) {
			err = errors.New("the working directory is in no module")
		}
	}
	return "", fmt.Errorf("find Dockerfile: %w", err)
}

// shell is an image with a shell and this machine's authorities: enough to build an action of a program that is there.
func shell(ctx context.Context) (v1.Image, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := errors.Join(shellInto(ctx, w), w.Close()); err != nil {
		return nil, fmt.Errorf("make image: %w", err)
	}
	return Image(b.Bytes(), config("/bin"))
}

func config(path string, env ...string) v1.Config {
	return v1.Config{Env: append(env, "PATH="+path)}
}

// shellInto adds a shell and authorities to an archive.
func shellInto(ctx context.Context, w *tar.Writer) error {
	static, err := os.ReadFile(busybox)
	if err != nil {
		return fmt.Errorf("%w (test/tools/static-busybox.sh installs it)", err)
	}
	list, err := exec.CommandContext(ctx, busybox, "--list").Output()
	if err != nil {
		return fmt.Errorf("list applets: %w", err)
	}
	certificates, err := os.ReadFile(authorities)
	if err != nil {
		return err
	}
	add := func(h tar.Header, body []byte) {
		h.Size = int64(len(body))
		err = errors.Join(err, w.WriteHeader(&h))
		_, e := w.Write(body)
		err = errors.Join(err, e)
	}
	for _, dir := range []string{"bin/", "etc/", "etc/ssl/", "etc/ssl/certs/"} {
		add(tar.Header{Name: dir, Typeflag: tar.TypeDir, Mode: 0o755}, nil)
	}
	add(tar.Header{Name: "tmp/", Typeflag: tar.TypeDir, Mode: 0o1777}, nil)
	add(tar.Header{Name: "bin/busybox", Mode: 0o755}, static)
	add(tar.Header{Name: strings.TrimPrefix(authorities, "/"), Mode: 0o644}, certificates)
	for _, applet := range strings.Fields(string(list)) {
		if applet != "busybox" {
			add(tar.Header{Name: "bin/" + applet, Typeflag: tar.TypeSymlink, Linkname: "busybox", Mode: 0o777}, nil)
		}
	}
	return err
}

// Image is an image for this machine of one layer, a tar archive.
func Image(layer []byte, config v1.Config) (v1.Image, error) {
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(layer)), nil })
	if err != nil {
		return nil, fmt.Errorf("make image: %w", err)
	}
	i, err := mutate.AppendLayers(empty.Image, l)
	if err != nil {
		return nil, fmt.Errorf("make image: %w", err)
	}
	file, err := i.ConfigFile()
	if err != nil {
		return nil, fmt.Errorf("make image: %w", err)
	}
	file = file.DeepCopy()
	file.OS, file.Architecture, file.Config = "linux", runtime.GOARCH, config
	return mutate.ConfigFile(i, file)
}

// Load puts an image into the engine under a name, which no registry has to have then.
func Load(t *testing.T, tag string, image v1.Image) {
	t.Helper()
	e := available(t)
	one.Lock()
	defer one.Unlock()
	// So that what a test loads stays over what all have.
	if err := e.prepare(t); err != nil {
		t.Fatal(err)
	}
	if err := e.load(t.Context(), tag, image); err != nil {
		t.Fatal(err)
	}
}

func (e *engine) load(ctx context.Context, tag string, image v1.Image) error {
	ref, err := name.NewTag(tag)
	if err != nil {
		return fmt.Errorf("load image: %w", err)
	}
	r, w := io.Pipe()
	defer func() { _ = r.Close() }()
	go func() { w.CloseWithError(tarball.Write(ref, image, w)) }()
	answer, err := e.ImageLoad(ctx, r, docker.ImageLoadWithQuiet(true))
	if err != nil {
		return fmt.Errorf("load image %s: %w", tag, err)
	}
	defer answer.Close()
	said, err := io.ReadAll(answer)
	if err == nil && bytes.Contains(said, []byte(`"error"`)) {
		err = errors.New(string(said))
	}
	if err != nil {
		return fmt.Errorf("load image %s: %w", tag, err)
	}
	return nil
}

// Contents gives a program of an image, by its entry point, the size of the image and its configuration's user.
type Contents struct {
	Program []byte
	Bytes   int64
	User    string
}

// Inspect gives what an image of the engine is made of.
func Inspect(t *testing.T, image string) Contents {
	t.Helper()
	c, err := available(t).inspect(t.Context(), image)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func (e *engine) inspect(ctx context.Context, image string) (c Contents, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("inspect image %s: %w", image, err)
		}
	}()
	is, err := e.ImageInspect(ctx, image)
	if err != nil {
		return c, err
	}
	c.Bytes = is.Size
	if is.Config == nil || len(is.Config.Entrypoint) == 0 {
		return c, errors.New("it has no entry point")
	}
	c.User = is.Config.User
	made, err := e.ContainerCreate(ctx, docker.ContainerCreateOptions{Image: image})
	if err != nil {
		return c, err
	}
	defer func() {
		_, gone := e.ContainerRemove(context.WithoutCancel(ctx), made.ID, docker.ContainerRemoveOptions{Force: true})
		err = errors.Join(err, gone)
	}()
	copied, err := e.CopyFromContainer(ctx, made.ID, docker.CopyFromContainerOptions{SourcePath: is.Config.Entrypoint[0]})
	if err != nil {
		return c, err
	}
	defer copied.Content.Close()
	archive := tar.NewReader(copied.Content)
	if _, err := archive.Next(); err != nil {
		return c, err
	}
	c.Program, err = io.ReadAll(archive)
	return c, err
}

// fresh checks that images are of the programs in the directories of actions.
func (e *engine) fresh(ctx context.Context, actions map[string]string, images []string) error {
	for action, dir := range actions {
		want, err := os.ReadFile(filepath.Join(dir, program))
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("check images: %w", err)
		}
		for _, image := range images {
			if image != tagOf(action) {
				continue
			}
			c, err := e.inspect(ctx, image)
			if err != nil {
				return fmt.Errorf("check images: %w", err)
			}
			if sha256.Sum256(c.Program) != sha256.Sum256(want) {
				return fmt.Errorf("check images: %s is not of %s: it is stale", image, filepath.Join(dir, program))
			}
		}
	}
	return nil
}

var others = regexp.MustCompile(`[^a-zA-Z0-9]`)

// tagOf is how act calls the image of an action (pkg/runner/action.go).
func tagOf(action string) string {
	return strings.ToLower("act-" + strings.TrimLeft(others.ReplaceAllString(action, "-"), "-") + "-dockeraction:latest")
}
