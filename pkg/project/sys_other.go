//go:build !linux

package project

import (
	"io/fs"
	"os"
	"path/filepath"
)

// adviseSequential does nothing here.
func adviseSequential(*os.File) {}

// syncTree makes the files below dir durable.
func syncTree(dir string) error {
	return filepath.WalkDir(dir, func(p string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		f, err := os.OpenFile(p, os.O_RDWR, 0)
		if err != nil {
			return err
		}
		defer func() { _ = f.Close() }()
		return f.Sync()
	})
}

// settle cannot be sure here.
func settle(*os.File) bool { return false }
