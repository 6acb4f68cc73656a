package image

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// memory keeps what was worked out from files in a directory, one small file for each set of them, under a key made of
// what identifies their content (see identity). The files are then not read again until they change. The zero
// value keeps nothing. Whatever is wrong with it costs only time, so it has no errors.
type memory struct {
	dir string

	mu   sync.Mutex
	used []string
}

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

// DefaultCacheDir is where the programs of this machine's user keep what was hashed, for Shipper.CacheDir; empty without a
// home, which keeps nothing.
func DefaultCacheDir() string {
	dir, err := os.UserCacheDir()
	if err != nil {
		return ""
	}
	return filepath.Join(dir, "sluice", "layers")
}

func (m *memory) path(key string) string { return filepath.Join(m.dir, key+".json") }

func (m *memory) get(key string) (remembered, bool) {
	if m.dir == "" {
		return remembered{}, false
	}
	data, err := os.ReadFile(m.path(key))
	if err != nil {
		return remembered{}, false
	}
	var r remembered
	if err := json.Unmarshal(data, &r); err != nil || !r.valid() {
		return remembered{}, false
	}
	m.mu.Lock()
	m.used = append(m.used, key)
	m.mu.Unlock()
	now := time.Now()
	_ = os.Chtimes(m.path(key), now, now)
	return r, true
}

// layer that was remembered, as write writes it.
func (r remembered) layer(write func(io.Writer) error) *layer {
	return &layer{write: write, compress: r.Compressed, digest: r.Digest, diffID: r.DiffID, size: r.Size}
}

// remembered is what to remember of a layer.
func (l *layer) remembered(sums map[string]string) remembered {
	return remembered{Digest: l.digest, DiffID: l.diffID, Size: l.size, Compressed: l.compress, Sums: sums}
}

// valid tells whether it can be what was kept.
func (r remembered) valid() bool {
	hashes := []v1.Hash{r.Digest}
	if r.Size != 0 {
		hashes = append(hashes, r.DiffID)
	}
	return r.Size >= 0 && !slices.ContainsFunc(hashes, func(h v1.Hash) bool {
		sum, err := hex.DecodeString(h.Hex)
		return h.Algorithm != "sha256" || err != nil || len(sum) != sha256.Size
	})
}

// put keeps r; changed is when the files last changed, seen when that was looked up, which is before they were read.
func (m *memory) put(key string, changed, seen time.Time, r remembered) {
	if m.dir == "" || changed.IsZero() || seen.Sub(changed) < settled {
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

// forget all that was used: one digest may be wrong, whatever the reason.
func (m *memory) forget() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, key := range m.used {
		_ = os.Remove(m.path(key))
	}
	m.used = nil
}

// tidy removes what nobody asked for in a long time.
func (m *memory) tidy() {
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

// maker tells apart what makes other bytes of the same files. Every key has it, and there is one for each file of a model.
var maker = sync.OnceValue(func() string {
	const library = "github.com/klauspost/compress"
	out := "layer 2 " + runtime.Version()
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, d := range info.Deps {
			if strings.HasPrefix(d.Path, library) {
				out += " " + d.Version
			}
		}
	}
	return out
})
