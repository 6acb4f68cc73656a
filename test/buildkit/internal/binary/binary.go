// Package binary compiles buildkitd, once for each state of what decides its bytes.
package binary

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

const (
	daemon = "github.com/moby/buildkit/cmd/buildkitd"
	flags  = "-s -w"
)

// Build compiles buildkitd from the modules that module (a directory) requires into a folder below cache
// that is named by the hash of all that goes into it, or finds it there, and returns its path. It
// says on out what it does and how long it took. Two builds at a time wait for one another.
func Build(ctx context.Context, module, cache string, out io.Writer) (string, error) {
	sum, err := hash(ctx, module)
	if err != nil {
		return "", fmt.Errorf("hash sources: %w", err)
	}
	dir := filepath.Join(cache, "buildkit-bin", sum)
	program := filepath.Join(dir, "buildkitd")
	if present(program) {
		return program, nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("make cache: %w", err)
	}
	unlock, err := lock(filepath.Join(dir, "lock"))
	if err != nil {
		return "", fmt.Errorf("lock cache: %w", err)
	}
	defer unlock()
	if present(program) {
		return program, nil
	}
	began := time.Now()
	fmt.Fprintln(out, "compiling buildkitd; the first time this takes 3 to 5 minutes on two cores")
	// A name of its own until it is whole: an interrupted link leaves nothing that looks ready.
	part := program + ".part"
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", flags, "-o", part, daemon)
	cmd.Dir = module
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off")
	if output, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("compile buildkitd: run go build: %w\n%s", err, output)
	}
	if err := os.Rename(part, program); err != nil {
		return "", fmt.Errorf("compile buildkitd: %w", err)
	}
	fmt.Fprintf(out, "compiled in %.0f s\n", time.Since(began).Seconds())
	return program, nil
}

func present(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func hash(ctx context.Context, module string) (string, error) {
	h := sha256.New()
	version, err := exec.CommandContext(ctx, "go", "env", "GOVERSION").Output()
	if err != nil {
		return "", fmt.Errorf("ask for Go's version: %w", err)
	}
	fmt.Fprintln(h, runtime.GOARCH, daemon, flags, string(version))
	for _, name := range []string{"go.mod", "go.sum"} {
		body, err := os.ReadFile(filepath.Join(module, name))
		if err != nil {
			return "", err
		}
		fmt.Fprintln(h, name, len(body))
		h.Write(body)
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
		_ = f.Close()
		return nil, err
	}
	return func() { _ = f.Close() }, nil
}
