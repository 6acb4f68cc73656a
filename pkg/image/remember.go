package image

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// memory keeps what was worked out from files in a directory, one small file for each set of them, under a key made of
// what identifies their content (see identity). The files are then not read again until they change. The zero
// value keeps nothing. Whatever is wrong with it costs only time, so it has no errors.
type memory struct{ dir string }

// remembered of a layer, or of an archive, which has a digest alone.
type remembered struct {
	Digest     v1.Hash           `json:"digest"`
	DiffID     v1.Hash           `json:"diffId,omitzero"`
	Size       int64             `json:"size,omitempty"`
	Compressed bool              `json:"compressed,omitempty"`
	Sums       map[string]string `json:"sums,omitempty"`
}

const (
	// settled is how long a file must have been left alone for its times to tell it from a later one: some file
	// systems count seconds.
	settled = 2 * time.Second
	// forgetAfter is how long what nobody asks for is kept, tidyEvery how often that is looked at.
	forgetAfter = 30 * 24 * time.Hour
	tidyEvery   = 24 * time.Hour
)

func (m memory) path(key string) string { return filepath.Join(m.dir, key+".json") }

func (m memory) get(key string) (remembered, bool) {
	if m.dir == "" {
		return remembered{}, false
	}
	data, err := os.ReadFile(m.path(key))
	if err != nil {
		return remembered{}, false
	}
	var r remembered
	if err := json.Unmarshal(data, &r); err != nil || r.Digest.Hex == "" {
		return remembered{}, false
	}
	now := time.Now()
	_ = os.Chtimes(m.path(key), now, now)
	return r, true
}

// put keeps r; changed is when the files last changed.
func (m memory) put(key string, changed time.Time, r remembered) {
	if m.dir == "" || changed.IsZero() || time.Since(changed) < settled {
		return
	}
	data, err := json.Marshal(r)
	if err != nil || os.MkdirAll(m.dir, 0o700) != nil {
		return
	}
	f, err := os.CreateTemp(m.dir, "new-*")
	if err != nil {
		return
	}
	_, err = f.Write(data)
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), m.path(key))
	}
	if err != nil {
		_ = os.Remove(f.Name())
	}
	m.tidy()
}

func (m memory) forget(key string) {
	if m.dir != "" {
		_ = os.Remove(m.path(key))
	}
}

// tidy removes what nobody asked for in a long time.
func (m memory) tidy() {
	mark := filepath.Join(m.dir, "tidied")
	if info, err := os.Stat(mark); err == nil && time.Since(info.ModTime()) < tidyEvery {
		return
	}
	if os.WriteFile(mark, nil, 0o600) != nil {
		return
	}
	_ = filepath.WalkDir(m.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || path == mark {
			return nil //nolint:nilerr // it will be there the next time
		}
		if info, err := d.Info(); err == nil && time.Since(info.ModTime()) > forgetAfter {
			_ = os.Remove(path)
		}
		return nil
	})
}

// maker tells apart what makes other bytes of the same files.
func maker() string {
	const library = "github.com/klauspost/compress"
	out := "layer 1"
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, d := range info.Deps {
			if strings.HasPrefix(d.Path, library) {
				out += " " + d.Version
			}
		}
	}
	return out
}
