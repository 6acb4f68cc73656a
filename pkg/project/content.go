package project

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/sluice-dev/sluice/rollout"
)

// Content is one file or link that ships, on the way of Listing.Contents.
type Content struct {
	Entry
	// Layout: it is not the project's but one of the links that lay out its models.
	Layout bool
	// Info of a file as the walk saw it; nil for links.
	Info fs.FileInfo
	it   *item
	l    *Listing
}

// Open opens a file, while the walk is at it. Reading gives Info's size of bytes, or fails with a
// *rollout.Error of reason unsafe_file if the file has changed since the walk saw it or changes meanwhile.
func (c *Content) Open() (io.ReadCloser, error) {
	if c.Type != TypeFile {
		return nil, fmt.Errorf("open %s: it is no file", printable(c.Path))
	}
	return c.l.open(c.it)
}

// Contents walks what ships in the order of the archive. With below it goes no further than to
// that path and what is below it, and leaves out the links that lay out models. A path that may not ship, having appeared
// since Plan, ends it with its refusal.
func (l *Listing) Contents(ctx context.Context, below string, fn func(*Content) error) error {
	each := func(it *item) error {
		switch {
		case it.Action == Leave, below != "" && !within(it.Path, below):
			return nil
		case it.Action == Refuse:
			return it.Refusal
		}
		c := &Content{Entry: it.Entry, Layout: it.isLayout(), it: it, l: l}
		if it.Type == TypeFile {
			c.Info = it.info
		}
		return fn(c)
	}
	if below == "" {
		return l.walkAll(ctx, walkOptions{}, each)
	}
	t, err := openTree(l.dir)
	if err != nil {
		return err
	}
	defer t.close()
	return l.walkTree(ctx, t, walkOptions{only: below}, each)
}

// open opens a file that a walk is at.
func (l *Listing) open(it *item) (io.ReadCloser, error) {
	if it.given != nil {
		return io.NopCloser(bytes.NewReader(it.given)), nil
	}
	return openUnchanged(it.dir, baseName(it.Path), it.Path, it.info, "make it readable, or keep it out with "+l.rules)
}

// OpenUnchanged opens a file below root that must stay as it was when info was taken: else reading, or
// opening, ends with a *rollout.Error of reason unsafe_file.
func OpenUnchanged(root *os.Root, path string, info fs.FileInfo) (io.ReadCloser, error) {
	return openUnchanged(root, path, path, info, "make it readable")
}

// unchangedFile reads a file that must stay as it was.
type unchangedFile struct {
	f    *os.File
	path string
	was  fs.FileInfo
	left int64
}

// openUnchanged opens a file of root by name; path and hint are for messages.
func openUnchanged(root *os.Root, name, path string, info fs.FileInfo, hint string) (io.ReadCloser, error) {
	u := &unchangedFile{path: path, was: info, left: info.Size()}
	var err error
	u.f, err = openFile(root, name)
	if isMissing(err) {
		return nil, u.changed()
	}
	if err != nil {
		return nil, refuse(rollout.ReasonUnsafeFile, "", hint, "%s cannot be read: %v", printable(path), cause(err))
	}
	if err := u.check(); err != nil {
		_ = u.f.Close()
		return nil, err
	}
	if info.Size() > pieceSize {
		adviseSequential(u.f)
	}
	return u, nil
}

func (u *unchangedFile) changed() error {
	return refuse(rollout.ReasonUnsafeFile, "", "run it again when nothing writes to it", "%s changed while it was read", printable(u.path))
}

// check that it is the file that info was taken of, with its size and time: a file may also change without growing.
func (u *unchangedFile) check() error {
	now, err := u.f.Stat()
	if err != nil {
		return fmt.Errorf("look at %s: %w", printable(u.path), err)
	}
	if !now.Mode().IsRegular() || !os.SameFile(now, u.was) || now.Size() != u.was.Size() || !now.ModTime().Equal(u.was.ModTime()) {
		return u.changed()
	}
	return nil
}

// Read implements io.Reader. The last bytes come only from a file that has not changed.
func (u *unchangedFile) Read(p []byte) (int, error) {
	if u.left == 0 {
		return 0, io.EOF
	}
	n, err := u.f.Read(p[:min(u.left, int64(len(p)))])
	u.left -= int64(n)
	switch {
	case errors.Is(err, io.EOF):
		return 0, u.changed()
	case err != nil:
		return n, fmt.Errorf("read %s: %w", printable(u.path), cause(err))
	case u.left == 0:
		if err := u.check(); err != nil {
			return 0, err
		}
	}
	return n, nil
}

// Close implements io.Closer.
func (u *unchangedFile) Close() error { return u.f.Close() }

// Settle has what was written to the file's pages, also through a mapping, be on the disk, and tells whether the file's
// times will tell of whatever is written from now on.
func (u *unchangedFile) Settle() bool { return settle(u.f) }
