package local

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/gofrs/flock"
)

// ErrLocked is wrapped by Lock's error when another supervisor runs.
var ErrLocked = errors.New("state directory is in use")

// lockPatience is how long a supervisor's lock is tried.
const lockPatience = 500 * time.Millisecond

// Lock makes this process the supervisor of a state directory until it calls
// unlock; the kernel frees the lock when the process dies, however that happens. If there is
// a supervisor already, the error wraps ErrLocked and names its process id.
func Lock(dir string) (unlock func() error, err error) { return lockFor(dir, "supervisor") }

// lockFor takes one of a state directory's locks that are held for a process's life.
func lockFor(dir, name string) (func() error, error) {
	if err := makeDir(filepath.Join(dir, "locks")); err != nil {
		return nil, fmt.Errorf("lock state directory: %w", err)
	}
	path := filepath.Join(dir, "locks", name)
	f := flock.New(path, flock.SetPermissions(fileMode), flock.SetFlag(os.O_CREATE|os.O_RDWR))
	// A process that was killed while it started another leaves the lock to that one for
	// the moment until it comes to close what it inherited.
	ctx, cancel := context.WithTimeout(context.Background(), lockPatience)
	defer cancel()
	ok, err := f.TryLockContext(ctx, 10*time.Millisecond)
	if err != nil && !errors.Is(err, context.DeadlineExceeded) {
		return nil, fmt.Errorf("lock state directory: %w", err)
	}
	if !ok {
		_ = f.Close()
		owner := "another process"
		if data, _, err := readBounded(path, 64); err == nil {
			if pid, err := strconv.Atoi(strings.TrimSpace(string(data))); err == nil {
				owner = fmt.Sprintf("process %d", pid)
			}
		}
		return nil, fmt.Errorf("lock %s: %w by %s: end that one first, or use another directory", dir, ErrLocked, owner)
	}
	// In place, since the lock is on this very file. Who reads it half-written only misses a number.
	if err := os.WriteFile(path, fmt.Appendln(nil, os.Getpid()), fileMode); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("lock state directory: %w", err)
	}
	return func() error {
		if err := errors.Join(os.Truncate(path, 0), f.Close()); err != nil {
			return fmt.Errorf("unlock state directory: %w", err)
		}
		return nil
	}, nil
}
