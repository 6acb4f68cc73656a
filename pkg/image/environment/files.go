package environment

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"slices"
	"strings"
	"syscall"
	"unicode/utf8"

	"github.com/moby/patternmatcher"
	"github.com/moby/patternmatcher/ignorefile"

	"github.com/sluice-dev/sluice/rollout"
)

// Bounds of what is read.
const (
	// maxLinks is how many symbolic links one path may lead through, as on Linux.
	maxLinks = 40
	// maxDirDepth is how deep directories may nest.
	maxDirDepth = 255
	// maxTextSize in bytes of a definition: a Conda file, a requirements file, a Dockerfile.
	maxTextSize = 4 << 20
)

// reservedDir at the project's root is Sluice's own and never part of a build context.
const reservedDir = ".sluice"

// mode says what an entry is.
type mode string

const (
	modeFile mode = "file"
	modeExec mode = "exec"
	modeLink mode = "link"
)

// entry is a file that counts.
type entry struct {
	path string // from the project's root, slashes
	mode mode
	// value is the SHA-256 of the contents in hex, or a link's target.
	value string
}

// fileSet holds entries by path.
type fileSet map[string]entry

// sorted by the bytes of paths.
func (s fileSet) sorted() []entry {
	out := make([]entry, 0, len(s))
	for _, p := range slices.Sorted(maps.Keys(s)) {
		out = append(out, s[p])
	}
	return out
}

// tree is a project that files are read from. os.Root makes sure that nothing outside is.
type tree struct {
	root *os.Root
	// ignore says what stays out of directories; nil is nothing.
	ignore *patternmatcher.PatternMatcher
	// ignoreFile is its name, for messages.
	ignoreFile string
	// given are contents of files at the root that are not there; see Options.Files.
	given map[string][]byte
	// besides are files and directories that never count.
	besides []fs.FileInfo
}

func openTree(dir string) (*tree, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("open project: %w", err)
	}
	return &tree{root: root}, nil
}

func (t *tree) close() { _ = t.root.Close() }

// readIgnore reads the first of the ignore files that is there.
func (t *tree) readIgnore(names ...string) error {
	for _, name := range names {
		data, err := t.read(place{file: name}, name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		patterns, err := ignorefile.ReadAll(strings.NewReader(string(data)))
		if err == nil {
			t.ignore, err = patternmatcher.New(patterns)
		}
		if err != nil {
			return place{file: name}.invalid("write patterns as for `docker build`", "cannot be read: %v", err)
		}
		t.ignoreFile = name
		return nil
	}
	return nil
}

// out says whether a path stays out of every build context.
func (t *tree) out(p string) (bool, error) {
	if neverCounts(p) {
		return true, nil
	}
	if t.ignore == nil {
		return false, nil
	}
	hit, err := t.ignore.MatchesOrParentMatches(p)
	if err != nil {
		return false, fmt.Errorf("match %s: %w", t.ignoreFile, err)
	}
	return hit, nil
}

// neverCounts says of a path whether it is git's or Sluice's own, which change on their own.
func neverCounts(p string) bool {
	first, _, _ := strings.Cut(p, "/")
	return strings.EqualFold(first, reservedDir) || slices.ContainsFunc(strings.Split(p, "/"), func(part string) bool { return strings.EqualFold(part, ".git") })
}

// localPath cleans a path that the project names; ok is false if it is none inside the project.
func localPath(p string) (cleaned string, ok bool) {
	if p == "" || path.IsAbs(p) || strings.ContainsAny(p, "\x00\\") {
		return "", false
	}
	cleaned = path.Clean(p)
	return cleaned, cleaned != ".." && !strings.HasPrefix(cleaned, "../")
}

// local is localPath with a refusal.
func (p place) local(name string) (string, error) {
	cleaned, ok := localPath(name)
	if !ok {
		return "", p.invalid("name a file in the project", "%q is not a path inside the project", name)
	}
	return cleaned, nil
}

// resolved is where a path leads.
type resolved struct {
	path  string // without links
	info  fs.FileInfo
	links []entry // that were followed
}

// missing is a refusal of what is not there; it is fs.ErrNotExist as well.
type missing struct{ error }

func (m missing) Unwrap() []error { return []error{m.error, fs.ErrNotExist} }

// resolve follows a path through symbolic links without leaving the project. What is not there or
// leads outside is refused at the place.
func (t *tree) resolve(at place, p string) (resolved, error) {
	outside := func(how string) (resolved, error) {
		return resolved{}, at.refuse(rollout.ReasonUnsafeFile, "keep what the environment needs inside the project", "%s leaves the project%s", shown(p), how)
	}
	if _, ok := localPath(p); !ok {
		return outside("")
	}
	var r resolved
	todo, done := strings.Split(p, "/"), []string{}
	for len(todo) > 0 {
		part := todo[0]
		todo = todo[1:]
		switch part {
		case "", ".":
			continue
		case "..":
			if len(done) == 0 {
				return outside("")
			}
			done = done[:len(done)-1]
			continue
		}
		done = append(done, part)
		here := strings.Join(done, "/")
		info, err := t.root.Lstat(here)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
			return resolved{}, missing{at.invalid("check the path, or add what it names to the project", "there is no %s in the project", shown(p))}
		}
		if err != nil {
			return resolved{}, t.unreadable(at, here, err)
		}
		if info.Mode()&fs.ModeSymlink == 0 {
			continue
		}
		target, err := t.root.Readlink(here)
		if err != nil {
			return resolved{}, t.unreadable(at, here, err)
		}
		if path.IsAbs(target) {
			return outside(fmt.Sprintf(": the symbolic link %s leads to %s", shown(here), shown(target)))
		}
		r.links = append(r.links, entry{path: here, mode: modeLink, value: target})
		if len(r.links) > maxLinks {
			return resolved{}, at.refuse(rollout.ReasonUnsafeFile, "replace them by what they lead to", "%s leads through too many symbolic links, or in a circle", shown(p))
		}
		done = done[:len(done)-1]
		todo = append(strings.Split(target, "/"), todo...)
	}
	r.path = path.Join(done...)
	if r.path == "" {
		r.path = "."
	}
	info, err := t.root.Lstat(r.path)
	if err != nil {
		return resolved{}, t.unreadable(at, r.path, err)
	}
	r.info = info
	return r, nil
}

func (t *tree) unreadable(at place, p string, err error) error {
	if errors.Is(err, fs.ErrPermission) {
		return at.refuse(rollout.ReasonUnsafeFile, "make it readable", "%s cannot be read: permission denied", shown(p))
	}
	return fmt.Errorf("read %s: %w", shown(p), err)
}

// read gives a definition's text.
func (t *tree) read(at place, p string) ([]byte, error) {
	r, err := t.resolve(at, p)
	if err != nil {
		return nil, err
	}
	return t.readResolved(at, p, r)
}

func (t *tree) readResolved(at place, p string, r resolved) ([]byte, error) {
	if !r.info.Mode().IsRegular() {
		return nil, at.refuse(rollout.ReasonUnsafeFile, "name a file", "%s is not a file", shown(p))
	}
	if r.info.Size() > maxTextSize {
		return nil, at.invalid("split it", "%s is larger than %d bytes", shown(p), maxTextSize)
	}
	f, err := t.root.OpenFile(r.path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, t.unreadable(at, p, err)
	}
	defer func() { _ = f.Close() }()
	data, err := io.ReadAll(io.LimitReader(f, maxTextSize))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", shown(p), err)
	}
	return data, nil
}

// add puts what a path leads to into the set: a file, or all in a directory that is not ignored, and
// the links on the way. It returns how many files that were. skip leaves out further names in directories.
func (t *tree) add(ctx context.Context, set fileSet, at place, p string, skip func(name string) bool) (int, error) {
	r, err := t.resolve(at, p)
	if err != nil {
		return 0, err
	}
	found := 0
	if err := t.walk(ctx, set, at, r.path, r.info, skip, 0, &found); err != nil {
		return 0, err
	}
	if found > 0 {
		for _, l := range r.links {
			set[l.path] = l
		}
	}
	return found, nil
}

func (t *tree) walk(ctx context.Context, set fileSet, at place, p string, info fs.FileInfo, skip func(string) bool, depth int, found *int) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	unsafe := func(format string, args ...any) error {
		return at.refuse(rollout.ReasonUnsafeFile, "remove it, or keep it out with .dockerignore", "%s "+format, append([]any{shown(p)}, args...)...)
	}
	if slices.ContainsFunc(t.besides, func(b fs.FileInfo) bool { return os.SameFile(b, info) }) {
		return nil
	}
	if p != "." {
		out, err := t.out(p)
		if err != nil {
			return err
		}
		if out && (!info.IsDir() || neverCounts(p) || !t.ignore.Exclusions()) {
			return nil
		}
		if !utf8.ValidString(p) {
			return unsafe("has a name that is not UTF-8")
		}
	}
	switch {
	case info.Mode().IsRegular():
		*found++
		if _, known := set[p]; known {
			return nil
		}
		e, err := t.file(ctx, at, p, info)
		if err != nil {
			return err
		}
		set[p] = e
		return nil
	case info.Mode()&fs.ModeSymlink != 0:
		target, err := t.root.Readlink(p)
		if err != nil {
			return t.unreadable(at, p, err)
		}
		if _, err := t.resolve(at, p); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		*found++
		set[p] = entry{path: p, mode: modeLink, value: target}
		return nil
	case !info.IsDir():
		return unsafe("is neither a file nor a directory")
	case depth >= maxDirDepth:
		return unsafe("nests directories deeper than %d", maxDirDepth)
	}
	f, err := t.root.Open(p)
	if err != nil {
		return t.unreadable(at, p, err)
	}
	names, err := f.Readdirnames(-1)
	_ = f.Close()
	if err != nil {
		return t.unreadable(at, p, err)
	}
	slices.Sort(names)
	for _, name := range names {
		if skip != nil && skip(name) {
			continue
		}
		sub := path.Join(p, name)
		info, err := t.root.Lstat(sub)
		if errors.Is(err, fs.ErrNotExist) {
			continue // removed since the directory was read
		}
		if err != nil {
			return t.unreadable(at, sub, err)
		}
		if err := t.walk(ctx, set, at, sub, info, skip, depth+1, found); err != nil {
			return err
		}
	}
	if p == "." {
		return t.addGiven(set, skip, found)
	}
	return nil
}

// addGiven adds the given files, as if they lay at the root.
func (t *tree) addGiven(set fileSet, skip func(string) bool, found *int) error {
	for name, data := range t.given {
		out, err := t.out(name)
		if err != nil {
			return err
		}
		if _, known := set[name]; out || known || skip != nil && skip(name) {
			continue
		}
		*found++
		set[name] = entry{path: name, mode: modeFile, value: fmt.Sprintf("%x", sha256.Sum256(data))}
	}
	return nil
}

// file hashes a regular file.
func (t *tree) file(ctx context.Context, at place, p string, info fs.FileInfo) (entry, error) {
	f, err := t.root.OpenFile(p, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return entry{}, t.unreadable(at, p, err)
	}
	defer func() { _ = f.Close() }()
	h := sha256.New()
	if _, err := io.Copy(h, readerWithContext{ctx, f}); err != nil {
		return entry{}, fmt.Errorf("read %s: %w", shown(p), err)
	}
	e := entry{path: p, mode: modeFile, value: hex.EncodeToString(h.Sum(nil))}
	if info.Mode().Perm()&0o100 != 0 {
		e.mode = modeExec
	}
	return e, nil
}

// glob gives the paths that match a pattern as COPY has it: each component by path.Match.
func (t *tree) glob(at place, pattern string) ([]string, error) {
	if _, err := path.Match(pattern, ""); err != nil {
		return nil, at.invalid("write it as for `docker build`", "%q is not a pattern: %v", pattern, err)
	}
	matched := []string{"."}
	for part := range strings.SplitSeq(pattern, "/") {
		var next []string
		for _, dir := range matched {
			if !strings.ContainsAny(part, `*?[\`) {
				next = append(next, path.Join(dir, part))
				continue
			}
			r, err := t.resolve(at, dir)
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err != nil {
				return nil, err
			}
			if !r.info.IsDir() {
				continue
			}
			f, err := t.root.Open(r.path)
			if err != nil {
				return nil, t.unreadable(at, r.path, err)
			}
			names, err := f.Readdirnames(-1)
			_ = f.Close()
			if err != nil {
				return nil, t.unreadable(at, r.path, err)
			}
			slices.Sort(names)
			for _, name := range names {
				if hit, err := path.Match(part, name); err == nil && hit {
					next = append(next, path.Join(dir, name))
				}
			}
		}
		matched = next
	}
	return matched, nil
}

// readerWithContext ends with its context, so that hashing a large file can be interrupted.
type readerWithContext struct {
	ctx context.Context // lives as long as one file is read
	r   io.Reader
}

// Read implements io.Reader.
func (r readerWithContext) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.r.Read(p)
}

// shown is a name as messages have it: quoted if it would be misread.
func shown(s string) string {
	if s == "" || strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f || r == utf8.RuneError }) {
		return fmt.Sprintf("%q", s)
	}
	return s
}
