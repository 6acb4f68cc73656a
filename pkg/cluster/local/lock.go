package local

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/gofrs/flock"
)

// Lock says that this process is the supervisor of a state directory. The kernel
// frees it when the process dies, however that happens.
type Lock struct {
	flock *flock.Flock
	path  string
}

// ErrLocked is wrapped by AcquireLock's error when another supervisor runs.
var ErrLocked = errors.New("state directory is in use")

// AcquireLock makes this process the supervisor of a state directory. If there is
// one already, the error wraps ErrLocked and names its process id.
func AcquireLock(dir string) (*Lock, error) {
	if err := makeDir(filepath.Join(dir, "locks")); err != nil {
		return nil, fmt.Errorf("lock state directory: %w", err)
	}
	path := filepath.Join(dir, "locks", "supervisor")
	f := flock.New(path, flock.SetPermissions(fileMode), flock.SetFlag(os.O_CREATE|os.O_RDWR))
	ok, err := f.TryLock()
	if err != nil {
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
	return &Lock{flock: f, path: path}, nil
}

// Release ends it.
func (l *Lock) Release() error {
	if err := os.Truncate(l.path, 0); err != nil {
		return errors.Join(fmt.Errorf("unlock state directory: %w", err), l.flock.Close())
	}
	if err := l.flock.Close(); err != nil {
		return fmt.Errorf("unlock state directory: %w", err)
	}
	return nil
}
