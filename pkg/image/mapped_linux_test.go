package image_test

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// TestMappedFiles: what is written through a mapping shows, although the file's times may not change with it.
func TestMappedFiles(t *testing.T) {
	r := newRegistry(t)
	s := r.small(t)
	cache := t.TempDir()
	file := filepath.Join(t.TempDir(), "model.bin")
	weights(t, file, 2*mib, 1)
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	m, err := unix.Mmap(int(f.Fd()), 0, 2*mib, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		t.Skip("no mappings here")
	}
	defer func() { _ = unix.Munmap(m) }()
	seen := map[string]bool{}
	for i := range 3 {
		m[100] = byte(i)
		if i == 0 {
			age(t, file)
		}
		pushed, err := s.PushModel(t.Context(), file, r.host+"/library/m:1", cache)
		if err != nil {
			t.Fatal(err)
		}
		seen[pushed.Digest] = true
	}
	if len(seen) != 3 {
		t.Errorf("three contents gave %d digests", len(seen))
	}
}
