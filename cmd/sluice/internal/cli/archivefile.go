package cli

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/sluice-dev/sluice/rollout"
)

// maxLinks is how many symbolic links one name may lead through, as on Linux.
const maxLinks = 40

// archiveFile is what an archive is written to.
type archiveFile struct {
	w io.Writer
	// replaced are the files that stand where the archive will, and the links that lead there: a
	// project that they lie in must not ship them.
	replaced []fs.FileInfo
	// stdout says that it is what reports are written to, too.
	stdout bool
	// close ends the writing, which went well if err is nil, and gives back what went wrong.
	close func(err error) error
}

// own are all files that a project must not ship: what is replaced, and what is being written.
func (o *archiveFile) own() []fs.FileInfo {
	out := slices.Clone(o.replaced)
	if f, ok := o.w.(*os.File); ok {
		if info, err := f.Stat(); err == nil && info.Mode().IsRegular() {
			out = append(out, info)
		}
	}
	return out
}

// stdoutName is standard output by custom; "./-" is a file of that name.
const stdoutName = "-"

// openArchiveFile opens what the name leads to. A regular file, or none yet, is replaced once the
// archive is complete; anything else is written to as it stands, because a device or a pipe that
// is replaced by a file is lost to everybody else.
func (a *app) openArchiveFile(ctx context.Context, name string) (*archiveFile, error) {
	if name == stdoutName {
		return &archiveFile{w: a.io.Out, stdout: true, close: func(err error) error { return err }}, nil
	}
	info, err := os.Stat(name)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("write archive: %w", err)
	}
	if err == nil {
		if own, ok := a.io.Out.(*os.File); ok {
			// Not opened again: a file would be written from its beginning by both.
			if is, err := own.Stat(); err == nil && os.SameFile(is, info) && (!info.Mode().IsRegular() || isMagic(name)) {
				return &archiveFile{w: own, stdout: true, close: func(err error) error { return err }}, nil
			}
		}
		if info.IsDir() {
			return nil, &rollout.Error{Reason: rollout.ReasonInvalid, Field: "--output", Message: name + " is a directory", Hint: "name a file in it"}
		}
		if !info.Mode().IsRegular() {
			return openThrough(ctx, name)
		}
	}
	out := &archiveFile{}
	target := name
	for range maxLinks {
		info, err := os.Lstat(target)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("write archive: %w", err)
		}
		if err != nil {
			return out, out.replace(target, nil)
		}
		out.replaced = append(out.replaced, info)
		if info.Mode()&fs.ModeSymlink == 0 {
			return out, out.replace(target, info)
		}
		to, err := os.Readlink(target)
		if err != nil {
			return nil, fmt.Errorf("write archive: %w", err)
		}
		if !filepath.IsAbs(to) {
			// The directory's own links count before the way out of it does (path_resolution(7)).
			dir, err := filepath.EvalSymlinks(filepath.Dir(target))
			if err != nil {
				return nil, fmt.Errorf("write archive: %w", err)
			}
			to = dir + string(filepath.Separator) + to
		}
		target = to
	}
	return nil, fmt.Errorf("write archive: %s leads through too many symbolic links", name)
}

// isMagic says whether the name leads to a descriptor that is open already rather than to a place.
func isMagic(name string) bool {
	abs, err := filepath.Abs(name)
	return err == nil && (strings.HasPrefix(abs, "/dev/") || strings.HasPrefix(abs, "/proc/"))
}

// openThrough opens what is no regular file. Opening a named pipe waits for its reader, which may
// never come: the wait ends with ctx.
func openThrough(ctx context.Context, name string) (*archiveFile, error) {
	type opened struct {
		f   *os.File
		err error
	}
	done := make(chan opened, 1)
	go func() {
		f, err := os.OpenFile(name, os.O_WRONLY, 0)
		done <- opened{f, err}
	}()
	select {
	case o := <-done:
		if o.err != nil {
			return nil, fmt.Errorf("write archive: %w", o.err)
		}
		return &archiveFile{w: o.f, close: func(err error) error {
			if cerr := o.f.Close(); err == nil && cerr != nil {
				err = fmt.Errorf("write archive: %w", cerr)
			}
			return err
		}}, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("write archive: wait for a reader of %s: %w", name, ctx.Err())
	}
}

// replace makes o write a file that takes the target's place when it is complete. was is what
// stands there, nil if nothing does.
func (o *archiveFile) replace(target string, was fs.FileInfo) error {
	dir := filepath.Dir(target)
	// Not by os.CreateTemp: its files are for their owner alone.
	f, err := os.OpenFile(filepath.Join(dir, "."+filepath.Base(target)+".tmp-"+rand.Text()), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o666) //nolint:gosec // the umask decides
	if errors.Is(err, fs.ErrNotExist) {
		return &rollout.Error{Reason: rollout.ReasonInvalid, Field: "--output", Message: "there is no directory " + dir, Hint: "make it first, or name a file elsewhere"}
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", target, cause(err))
	}
	o.w = f
	finish := func() error {
		if was != nil {
			if err := f.Chmod(was.Mode().Perm()); err != nil {
				return err
			}
		}
		if err := f.Close(); err != nil {
			return err
		}
		return os.Rename(f.Name(), target)
	}
	o.close = func(err error) error {
		if err == nil {
			if err = finish(); err != nil {
				err = fmt.Errorf("write archive: %w", err)
			}
		}
		if err != nil {
			_ = f.Close()
			_ = os.Remove(f.Name())
		}
		return err
	}
	return nil
}

// cause is an error without the name of the file that it is about, which may be a temporary one.
func cause(err error) error {
	var p *fs.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	return err
}
