// Package binaries compiles the programs of the cluster, once for each state of their sources.
package binaries

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// KubernetesVersion is what the programs say they are. It follows k8s.io/kubernetes in go.mod; a
// binary that is not told says v0.0.0, which clients cannot parse.
const KubernetesVersion = "v1.35.4"

// Set is where the compiled programs are.
type Set struct {
	// Kube is the multi-call binary of all Kubernetes programs.
	Kube string
	// Pause is the process of a pod's sandbox.
	Pause string
}

// Build compiles the programs of module (its directory) into a folder below cache that is named by
// the hash of all that goes into them, or finds them there. It says on out what it does and how long
// it took. Two builds at a time wait for one another.
func Build(ctx context.Context, module, cache string, out io.Writer) (Set, error) {
	sum, err := hash(ctx, module)
	if err != nil {
		return Set{}, fmt.Errorf("hash sources: %w", err)
	}
	dir := filepath.Join(cache, "cluster-bin", sum)
	set := Set{Kube: filepath.Join(dir, "kube"), Pause: filepath.Join(dir, "pause")}
	if set.present() {
		return set, nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return Set{}, fmt.Errorf("make cache: %w", err)
	}
	unlock, err := lock(filepath.Join(dir, "lock"))
	if err != nil {
		return Set{}, fmt.Errorf("lock cache: %w", err)
	}
	defer unlock()
	if set.present() {
		return set, nil
	}
	began := time.Now()
	fmt.Fprintln(out, "compiling Kubernetes "+KubernetesVersion+", etcd and CoreDNS; the first time this takes 7 to 15 minutes on two cores")
	for name, to := range map[string]string{"kube": set.Kube, "pause": set.Pause} {
		if err := compile(ctx, module, "./cmd/"+name, to); err != nil {
			return Set{}, fmt.Errorf("compile %s: %w", name, err)
		}
	}
	fmt.Fprintf(out, "compiled in %.0f s\n", time.Since(began).Seconds())
	return set, nil
}

func (s Set) present() bool {
	for _, path := range []string{s.Kube, s.Pause} {
		if _, err := os.Stat(path); err != nil {
			return false
		}
	}
	return true
}

func compile(ctx context.Context, module, pkg, to string) error {
	parts := strings.Split(strings.TrimPrefix(KubernetesVersion, "v"), ".")
	const version = "k8s.io/component-base/version."
	flags := fmt.Sprintf("-s -w -X %[1]sgitVersion=%[2]s -X %[1]sgitMajor=%[3]s -X %[1]sgitMinor=%[4]s",
		version, KubernetesVersion, parts[0], parts[1])
	// A name of its own until it is whole: an interrupted link leaves nothing that looks ready.
	part := to + ".part"
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", flags, "-o", part, pkg)
	cmd.Dir = module
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off")
	if output, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("run go build: %w\n%s", err, output)
	}
	return os.Rename(part, to)
}

// hash covers what decides the programs' bytes: their sources, the modules' versions, the flags
// above and the compiler.
func hash(ctx context.Context, module string) (string, error) {
	h := sha256.New()
	goVersion, err := exec.CommandContext(ctx, "go", "env", "GOVERSION").Output()
	if err != nil {
		return "", fmt.Errorf("ask for Go's version: %w", err)
	}
	fmt.Fprintln(h, runtime.GOARCH, KubernetesVersion, string(goVersion))
	add := func(path string) error {
		body, err := os.ReadFile(filepath.Join(module, path))
		if err != nil {
			return err
		}
		fmt.Fprintln(h, path, len(body))
		h.Write(body)
		return nil
	}
	for _, name := range []string{"go.mod", "go.sum"} {
		if err := add(name); err != nil {
			return "", err
		}
	}
	for _, name := range []string{"cmd/kube", "cmd/pause"} {
		err := fs.WalkDir(os.DirFS(module), name, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || filepath.Ext(path) != ".go" {
				return err
			}
			return add(path)
		})
		if err != nil {
			return "", err
		}
	}
	return hex.EncodeToString(h.Sum(nil))[:16], nil
}

func lock(path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	for {
		if err = unix.Flock(int(f.Fd()), unix.LOCK_EX); !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return func() { f.Close() }, nil
}
