package project

import (
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
		c := &Content{Entry: it.Entry, Layout: it.dir == nil, it: it, l: l}
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

// unchangedFile reads a file that must stay as it was when a walk saw it.
type unchangedFile struct {
	f    *os.File
	it   *item
	left int64
}

// open opens a file that a walk is at.
func (l *Listing) open(it *item) (*unchangedFile, error) {
	f, err := openFile(it.dir, baseName(it.Path))
	if isMissing(err) {
		return nil, changedFile(it)
	}
	if err != nil {
		return nil, refuse(rollout.ReasonUnsafeFile, "", "make it readable, or keep it out with "+l.rules, "%s cannot be read: %v", printable(it.Path), cause(err))
	}
	u := &unchangedFile{f: f, it: it, left: it.Size}
	if err := u.check(); err != nil {
		_ = f.Close()
		return nil, err
	}
	if it.Size > pieceSize {
		adviseSequential(f)
	}
	return u, nil
}

func changedFile(it *item) error {
	return refuse(rollout.ReasonUnsafeFile, "", "run it again when nothing writes to the project", "%s changed while it was read", printable(it.Path))
}

// check that it is the file that the walk saw, with its size and time: a file may also change without growing.
func (u *unchangedFile) check() error {
	now, err := u.f.Stat()
	if err != nil {
		return fmt.Errorf("look at %s: %w", printable(u.it.Path), err)
	}
	was := u.it.info
	if !now.Mode().IsRegular() || !os.SameFile(now, was) || now.Size() != was.Size() || !now.ModTime().Equal(was.ModTime()) {
		return changedFile(u.it)
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
		return 0, changedFile(u.it)
	case err != nil:
		return n, fmt.Errorf("read %s: %w", printable(u.it.Path), cause(err))
	case u.left == 0:
		if err := u.check(); err != nil {
			return 0, err
		}
	}
	return n, nil
}

// Close implements io.Closer.
func (u *unchangedFile) Close() error { return u.f.Close() }
