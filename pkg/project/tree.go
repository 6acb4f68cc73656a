package project

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strings"
	"syscall"
)

// tree is a directory that everything is read below. os.Root makes sure of that even
// while others change it.
type tree struct {
	dir  string // absolute, for messages
	root *os.Root
}

func (t *tree) close() { _ = t.root.Close() }

// openFile opens a file to be read without waiting, as opening a FIFO would.
func openFile(root *os.Root, name string) (*os.File, error) {
	return root.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
}

// resolution is where a path leads.
type resolution struct {
	// path without links, from the tree's root.
	path string
	// info of what is there; nil if nothing is.
	info fs.FileInfo
	// links that were followed, by their own paths without links.
	links []string
	// problem says why the path cannot be followed inside the tree: "leaves the project by …".
	problem string
}

// maxLinks is how many symbolic links one path may lead through, as on Linux.
const maxLinks = 40

// resolve follows the path p, relative to the tree's root, through symbolic links
// without ever leaving the tree. An error is one of reading.
func (t *tree) resolve(p string) (resolution, error) {
	var r resolution
	todo := strings.Split(p, "/")
	at := []string{}
	missing := false
	for len(todo) > 0 {
		part := todo[0]
		todo = todo[1:]
		switch part {
		case "", ".":
			continue
		case "..":
			if len(at) == 0 {
				r.problem = "leaves the project"
				return r, nil
			}
			if missing {
				r.problem = fmt.Sprintf("leads through %s, which does not exist", strings.Join(at, "/"))
				return r, nil
			}
			at = at[:len(at)-1]
			continue
		}
		at = append(at, part)
		if missing {
			continue
		}
		here := strings.Join(at, "/")
		info, err := t.root.Lstat(here)
		switch {
		case errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR):
			// What does not exist has no links; the rest is followed by name alone.
			missing = true
			continue
		case errors.Is(err, fs.ErrPermission):
			r.problem = "cannot be read: permission denied"
			return r, nil
		case err != nil:
			return r, fmt.Errorf("look at %s: %w", here, err)
		}
		if info.Mode()&fs.ModeSymlink == 0 {
			continue
		}
		if len(r.links) == maxLinks {
			r.problem = "leads through too many symbolic links, or in a circle"
			return r, nil
		}
		r.links = append(r.links, here)
		target, err := t.root.Readlink(here)
		if err != nil {
			return r, fmt.Errorf("look at %s: %w", here, err)
		}
		if path.IsAbs(target) {
			r.problem = fmt.Sprintf("leaves the project: the symbolic link %s leads to %s", here, target)
			return r, nil
		}
		at = at[:len(at)-1]
		todo = append(strings.Split(target, "/"), todo...)
		if len(todo) > 4096 {
			r.problem = "leads through too many symbolic links, or in a circle"
			return r, nil
		}
	}
	r.path = path.Join(at...)
	if r.path == "" {
		r.path = "."
	}
	if missing {
		return r, nil
	}
	info, err := t.root.Lstat(r.path)
	if err != nil {
		return r, fmt.Errorf("look at %s: %w", r.path, err)
	}
	r.info = info
	return r, nil
}

// kindName says what kind of file a mode is of.
func kindName(m fs.FileMode) string {
	switch {
	case m.IsRegular():
		return "a file"
	case m.IsDir():
		return "a directory"
	case m&fs.ModeSymlink != 0:
		return "a symbolic link"
	case m&fs.ModeNamedPipe != 0:
		return "a named pipe"
	case m&fs.ModeSocket != 0:
		return "a socket"
	case m&fs.ModeDevice != 0:
		return "a device"
	}
	return "neither a file nor a directory"
}
