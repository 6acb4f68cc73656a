package project

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// adviseSequential asks the system to read ahead further; it may say no.
func adviseSequential(f *os.File) {
	_ = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_SEQUENTIAL)
}

// syncTree makes the file system that dir is on durable, which for many files is one
// wait instead of one for each.
func syncTree(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	if err := unix.Syncfs(int(f.Fd())); err != nil {
		return fmt.Errorf("sync %s: %w", dir, err)
	}
	return nil
}

// settle writes a file's pages back: writing to one through a mapping then changes the file's times again. A tmpfs never
// writes back.
func settle(f *os.File) bool {
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &st); err != nil || st.Type == unix.TMPFS_MAGIC {
		return false
	}
	return unix.Fdatasync(int(f.Fd())) == nil
}
