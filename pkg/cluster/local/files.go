package local

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/gofrs/flock"

	"github.com/sluice-dev/sluice/rollout"
)

const (
	dirMode  fs.FileMode = 0o700
	fileMode fs.FileMode = 0o600
	// tempPrefix begins the names of files that are being written. Readers skip them.
	tempPrefix = ".tmp-"
	// tempAge is when a temporary file surely belongs to nobody any more.
	tempAge = 24 * time.Hour
	// lockRetry is how often a taken lock is tried again. Holders need a few milliseconds.
	lockRetry = 2 * time.Millisecond
)

// makeDir makes a directory and what is missing above it, for this user only.
func makeDir(dir string) error {
	if err := os.MkdirAll(dir, dirMode); err != nil {
		return fmt.Errorf("make directory: %w", err)
	}
	return nil
}

// writeAtomic replaces a file so that readers see the old or the new content,
// whole, and that the new one survives a loss of power once it returns: write a
// temporary file beside it, fsync, rename, fsync the directory.
func writeAtomic(path string, data []byte) error { return replaceFile(path, data, true) }

// replaceFile is writeAtomic; without sync a loss of power may leave the old content, or none.
func replaceFile(path string, data []byte, sync bool) (err error) {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, tempPrefix+filepath.Base(path)+"-*") // mode 0600
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	defer func() {
		if err != nil {
			_ = f.Close()
			_ = os.Remove(f.Name())
			err = fmt.Errorf("write %s: %w", path, err)
		}
	}()
	if _, err = f.Write(data); err != nil {
		return err
	}
	if sync {
		if err = f.Sync(); err != nil {
			return err
		}
	}
	if err = f.Close(); err != nil {
		return err
	}
	if err = os.Rename(f.Name(), path); err != nil || !sync {
		return err
	}
	return syncDir(dir)
}

// syncDir makes renames and removals in a directory survive a loss of power.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer func() { _ = d.Close() }()
	// Some file systems cannot sync a directory and say so with EINVAL or ENOTSUP.
	if err := d.Sync(); err != nil && !errors.Is(err, syscall.EINVAL) && !errors.Is(err, syscall.ENOTSUP) {
		return err
	}
	return nil
}

// removeStaleTemps clears what crashed writers left in a directory.
func removeStaleTemps(dir string) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return
	}
	for _, e := range entries {
		// .tmp-…, and .NAME.tmp-… of what pkg/project extracts.
		if !strings.HasPrefix(e.Name(), ".") || !strings.Contains(e.Name(), tempPrefix) {
			continue
		}
		if info, err := e.Info(); err == nil && time.Since(info.ModTime()) > tempAge {
			_ = os.RemoveAll(filepath.Join(dir, e.Name()))
		}
	}
}

// readBounded reads a whole file of at most limit bytes. What is no regular file, nor a link
// to one, is refused without waiting: opening a named pipe would block until somebody writes.
func readBounded(path string, limit int64) ([]byte, fs.FileInfo, error) {
	// Looked at before it is opened, because opening a device may already do something; and
	// again afterwards, because it may have been replaced in between.
	info, err := os.Stat(path)
	if err != nil {
		return nil, nil, err
	}
	if err := regular(path, info.Mode()); err != nil {
		return nil, nil, err
	}
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil, err
	}
	defer func() { _ = f.Close() }()
	if info, err = f.Stat(); err != nil {
		return nil, nil, err
	}
	if err := regular(path, info.Mode()); err != nil {
		return nil, nil, err
	}
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, nil, err
	}
	if int64(len(data)) > limit {
		return nil, nil, fmt.Errorf("read %s: it is larger than %d bytes", path, limit)
	}
	return data, info, nil
}

// regular refuses what is not a regular file.
func regular(path string, mode fs.FileMode) error {
	kind := "something else"
	switch {
	case mode.IsRegular():
		return nil
	case mode.IsDir():
		kind = "a directory"
	case mode&fs.ModeNamedPipe != 0:
		kind = "a named pipe"
	case mode&fs.ModeSocket != 0:
		kind = "a socket"
	case mode&fs.ModeDevice != 0:
		kind = "a device"
	}
	return &rollout.Error{
		Reason: rollout.ReasonInvalid, Field: path, Message: "it is " + kind + ", but only a regular file is read here",
		Hint: "remove it, or put a regular file in its place",
	}
}

func digestOf(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

// pathLock excludes other processes, and other users of the same path in this one,
// by flock(2): the kernel frees it when its holder dies, however that happens.
type pathLock struct {
	path string
	// turn keeps this process's own users from polling against each other.
	turn chan struct{}
}

func newPathLock(path string) *pathLock {
	return &pathLock{path: path, turn: make(chan struct{}, 1)}
}

// with runs fn under the lock. It fails if ctx ends before the lock is free.
func (l *pathLock) with(ctx context.Context, fn func() error) error {
	select {
	case l.turn <- struct{}{}:
		defer func() { <-l.turn }()
	case <-ctx.Done():
		return fmt.Errorf("lock %s: %w", l.path, ctx.Err())
	}
	f := flock.New(l.path, flock.SetPermissions(fileMode))
	defer func() { _ = f.Close() }() // unlocks
	if _, err := f.TryLockContext(ctx, lockRetry); err != nil {
		return fmt.Errorf("lock %s: %w", l.path, err)
	}
	return fn()
}

// newDirLock is a lock in the state directory's folder of locks, apart from what
// it guards, so that taking it wakes no watcher.
func newDirLock(dir, name string) (*pathLock, error) {
	locks := filepath.Join(dir, "locks")
	if err := makeDir(locks); err != nil {
		return nil, err
	}
	return newPathLock(filepath.Join(locks, name)), nil
}
