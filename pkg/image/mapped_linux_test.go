package image_test

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sluice-dev/sluice/pkg/image"
)

// mapped is a file's content through a mapping: writing to it need not change the file's times.
func mapped(t *testing.T, file string) []byte {
	t.Helper()
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	m, err := unix.Mmap(int(f.Fd()), 0, int(info.Size()), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		t.Skip("no mappings here")
	}
	t.Cleanup(func() { _ = unix.Munmap(m) })
	return m
}

// TestMappedFiles: what is written through a mapping shows, although the file's times may not change with it, whatever its
// size is and however the file's age looks.
func TestMappedFiles(t *testing.T) {
	for name, c := range map[string]struct {
		size int64
		old  bool
	}{"large": {2 * mib, true}, "small": {mib / 2, true}, "small and young": {mib / 2, false}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRegistry(t)
			s := r.small(t)
			cache := t.TempDir()
			file := filepath.Join(t.TempDir(), "model.bin")
			weights(t, file, c.size, 1)
			m := mapped(t, file)
			seen := map[string]bool{}
			for i := range 3 {
				m[100] = byte(i)
				if i == 0 && c.old {
					age(t, file)
				} else if i == 0 {
					age(t)
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
		})
	}
}

// TestMappedProject: a version that is named by its archive has another name with other content.
func TestMappedProject(t *testing.T) {
	for name, old := range map[string]bool{"old": true, "young": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRegistry(t)
			s := r.small(t)
			s.CacheDir = t.TempDir()
			dir := project(t)
			file := filepath.Join(dir, "model/a.bin")
			weights(t, file, 3*mib, 1)
			m := mapped(t, file)
			m[100] = 1
			if old {
				age(t, dir)
			} else {
				age(t)
			}
			names, images := map[string]bool{}, map[string]bool{}
			for i := range 3 {
				m[5] = byte(i + 1)
				made, err := s.Make(t.Context(), dir, nil)
				if err != nil {
					t.Fatal(err)
				}
				digest, err := made.Image.Digest()
				if err != nil {
					t.Fatal(err)
				}
				made.Close()
				names[made.Name], images[digest.String()] = true, true
			}
			if len(names) != 3 || len(images) != 3 {
				t.Errorf("three contents gave %d names and %d images", len(names), len(images))
			}
		})
	}
}

// TestChangedBehindItsDigest: a file that is written to between its hashing and its copying is named, with what to do.
func TestChangedBehindItsDigest(t *testing.T) {
	r := newRegistry(t)
	s := r.small(t)
	s.CacheDir = t.TempDir()
	dir := project(t)
	file := filepath.Join(dir, "model/a.bin")
	weights(t, file, 65*unit, 1)
	m := mapped(t, file)
	m[100] = 1
	made, err := s.Make(t.Context(), dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer made.Close()
	m[100] = 2
	l, err := image.OpenLayout(filepath.Join(t.TempDir(), "out"))
	if err != nil {
		t.Fatal(err)
	}
	refused(t, l.Close(made.AddTo(t.Context(), l)), "unsafe_file", "model/a.bin", "run it again")
}
