package project

import (
	"archive/tar"
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/sluice-dev/sluice/rollout"
)

// Bounds of an archive that is extracted, unless options say otherwise.
const (
	// DefaultMaxBytes is 256 GiB.
	DefaultMaxBytes = 256 << 30
	// DefaultMaxEntries leaves room for a layout link beside each file.
	DefaultMaxEntries = 2*MaxFiles + 1000
	// maxTrailer is what may follow an archive's end, as padding.
	maxTrailer = 1 << 20
)

// ExtractOptions bound and check what is extracted. The zero value means defaults and
// no check of the digest.
type ExtractOptions struct {
	// Digest that the archive's bytes must have: "sha256:" and 64 hexadecimal digits.
	Digest     string
	MaxBytes   int64
	MaxEntries int
	// Unsynced leaves out waiting until the files are durable, for a directory that need
	// not outlive a crash of the machine.
	Unsynced bool
}

// Extract unpacks an archive that Write wrote into dir, which must not exist: it
// appears complete and (unless Unsynced) durable, or not at all. Files get modes 0644 or 0755 whatever the
// umask. Only files and symbolic links are accepted; an entry outside dir, a link
// that leaves it, a name that stands twice, anything else and anything over the
// bounds is refused with reason unsafe_file. If dir exists, the error is fs.ErrExist.
//
// The files are unpacked next to dir under a name that begins with a dot, its name
// and ".tmp-"; what a crash leaves under such a name can be removed.
func Extract(ctx context.Context, r io.Reader, dir string, o ExtractOptions) error {
	if o.MaxBytes <= 0 {
		o.MaxBytes = DefaultMaxBytes
	}
	if o.MaxEntries <= 0 {
		o.MaxEntries = DefaultMaxEntries
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return fmt.Errorf("extract archive: %w", err)
	}
	if _, err := os.Lstat(dir); err == nil {
		return fmt.Errorf("extract archive to %s: %w", dir, fs.ErrExist)
	}
	tmp, err := os.MkdirTemp(filepath.Dir(dir), "."+filepath.Base(dir)+".tmp-*")
	if err != nil {
		return fmt.Errorf("extract archive: %w", err)
	}
	if err := extractTo(ctx, r, tmp, dir, o); err != nil {
		if rmErr := os.RemoveAll(tmp); rmErr != nil {
			err = errors.Join(err, rmErr)
		}
		return fmt.Errorf("extract archive: %w", err)
	}
	return nil
}

func extractTo(ctx context.Context, r io.Reader, tmp, dir string, o ExtractOptions) error {
	root, err := os.OpenRoot(tmp)
	if err != nil {
		return err
	}
	x := extractor{ctx: ctx, root: root, bytes: o.MaxBytes, entries: o.MaxEntries, parents: map[string]bool{"": true}}
	err = x.all(r, o.Digest)
	if err == nil {
		err = x.checkLinks(tmp)
	}
	if closeErr := root.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return err
	}
	if err := os.Chmod(tmp, 0o755); err != nil { // a project is as readable as its files
		return err
	}
	if !o.Unsynced {
		if err := syncTree(tmp); err != nil {
			return err
		}
	}
	if err := os.Rename(tmp, dir); err != nil {
		if _, statErr := os.Lstat(dir); statErr == nil {
			return fmt.Errorf("%s: %w", dir, fs.ErrExist)
		}
		return err
	}
	if o.Unsynced {
		return nil
	}
	return syncDir(filepath.Dir(dir))
}

type extractor struct {
	ctx     context.Context // lives as long as one extraction
	root    *os.Root
	bytes   int64
	entries int
	links   []string
	// parents are directories made already; the last ones suffice, since archives are sorted.
	parents map[string]bool
}

func unsafeEntry(format string, args ...any) error {
	return refuse(rollout.ReasonUnsafeFile, "", "make the archive with `sluice package`", format, args...)
}

func (x *extractor) all(r io.Reader, digest string) error {
	sum := sha256.New()
	in := bufio.NewReaderSize(io.TeeReader(&contextReader{x.ctx, r}, sum), pieceSize)
	tr := tar.NewReader(in)
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		if err := x.entry(h, tr); err != nil {
			return err
		}
	}
	// The digest is that of all bytes, so what is behind the end counts as well.
	n, err := io.Copy(io.Discard, io.LimitReader(in, maxTrailer+1))
	if err != nil {
		return err
	}
	if n > maxTrailer {
		return unsafeEntry("more than %d bytes follow the archive's end", maxTrailer)
	}
	if got := "sha256:" + hex.EncodeToString(sum.Sum(nil)); digest != "" && got != digest {
		return unsafeEntry("the archive's digest is %s, not %s", got, digest)
	}
	return nil
}

func (x *extractor) entry(h *tar.Header, content io.Reader) error {
	name := h.Name
	if x.entries--; x.entries < 0 {
		return unsafeEntry("the archive has too many entries")
	}
	if x.bytes -= h.Size; h.Size < 0 || x.bytes < 0 {
		return unsafeEntry("the archive's files are too large")
	}
	if !filepath.IsLocal(filepath.FromSlash(name)) || path.Clean(name) != name || name == "." || strings.Contains(name, `\`) && filepath.Separator == '\\' {
		return unsafeEntry("%s is not a path inside the project", printable(name))
	}
	if err := x.makeParents(name); err != nil {
		return err
	}
	switch h.Typeflag {
	case tar.TypeReg:
		return x.file(h, content)
	case tar.TypeSymlink:
		if path.IsAbs(h.Linkname) || h.Linkname == "" {
			return unsafeEntry("the symbolic link %s leads to %s, outside the project", printable(name), printable(h.Linkname))
		}
		if err := x.root.Symlink(h.Linkname, name); err != nil {
			return x.made(name, err)
		}
		x.links = append(x.links, name)
		return nil
	}
	return unsafeEntry("%s is neither a file nor a symbolic link (type %q)", printable(name), h.Typeflag)
}

// made explains why an entry could not be made.
func (x *extractor) made(name string, err error) error {
	if errors.Is(err, fs.ErrExist) {
		return unsafeEntry("%s stands twice", printable(name))
	}
	return err
}

func (x *extractor) makeParents(name string) error {
	dir := path.Dir(name)
	if dir == "." || x.parents[dir] {
		return nil
	}
	// Each parent must be a directory of the archive's own: a link that stands for one
	// would put files elsewhere than their names say.
	for i := 0; i <= len(dir); i++ {
		if i < len(dir) && dir[i] != '/' {
			continue
		}
		p := dir[:i]
		if x.parents[p] {
			continue
		}
		err := x.root.Mkdir(p, 0o755)
		if errors.Is(err, fs.ErrExist) {
			info, statErr := x.root.Lstat(p)
			if statErr != nil {
				return statErr
			}
			if !info.IsDir() {
				return unsafeEntry("%s is in %s, which is no directory", printable(name), printable(p))
			}
			err = nil
		} else if err == nil {
			err = x.root.Chmod(p, 0o755)
		}
		if err != nil {
			return err
		}
		if len(x.parents) > 10_000 {
			clear(x.parents)
			x.parents[""] = true
		}
		x.parents[p] = true
	}
	return nil
}

func (x *extractor) file(h *tar.Header, content io.Reader) error {
	mode := fs.FileMode(0o644)
	if h.FileInfo().Mode().Perm()&0o100 != 0 {
		mode = 0o755
	}
	f, err := x.root.OpenFile(h.Name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return x.made(h.Name, err)
	}
	_, err = io.Copy(f, content)
	if err == nil {
		err = f.Chmod(mode)
	}
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	return err
}

// checkLinks refuses links that leave the project, now that all they may lead
// through is there.
func (x *extractor) checkLinks(dir string) error {
	t := &tree{dir: dir, root: x.root}
	for _, name := range x.links {
		if err := x.ctx.Err(); err != nil {
			return err
		}
		r, err := t.resolve(name)
		if err != nil {
			return err
		}
		if r.problem != "" {
			return unsafeEntry("the symbolic link %s %s", printable(name), r.problem)
		}
	}
	return nil
}

// syncDir makes a new name in dir durable.
func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	if err := f.Sync(); err != nil && !errors.Is(err, errors.ErrUnsupported) && !errors.Is(err, fs.ErrInvalid) && !errors.Is(err, fs.ErrPermission) {
		return err
	}
	return nil
}

// contextReader stops reading when its context ends.
type contextReader struct {
	ctx context.Context // lives as long as one extraction
	r   io.Reader
}

func (c *contextReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}
