package project

import (
	"bytes"
	"io/fs"
	"maps"
	"slices"
	"time"

	"github.com/sluice-dev/sluice/rollout"
)

// Given is a manifest that a project's directory does not have, such as one made from files of
// another form. It is an Option of all that reads projects, nil included, which means the directory's
// own. The archive is as if its files lay in the directory.
type Given struct {
	// Files are contents by name, at the project's root: ManifestName, and what else the manifest names and the
	// directory lacks. Without Instead the directory must not have a manifest of its own, nor the others with another content.
	Files map[string][]byte
	// Sources are the files that it was made from, relative to the project's root and with slashes: a version is
	// named after a commit only if git tracks them.
	Sources []string
	// Instead says that it stands for a manifest that the directory may have.
	Instead bool
	// Beside says that it was made from more, such as flags, so that no commit determines it.
	Beside bool
	// Origin, if not nil, is the place that a field of the manifest was made from, which errors then show. It may say less:
	// a file alone.
	Origin func(field string) Place
}

// Place in a file; Line and Column count from 1, and 0 is the file as a whole.
type Place struct {
	File         string
	Line, Column int
}

func (g *Given) apply(o *options) {
	if g != nil {
		o.given = g
	}
}

// Contents are the given files. g may be nil.
func (g *Given) Contents() map[string][]byte {
	if g == nil {
		return nil
	}
	return g.Files
}

// manifest is the text of the project's manifest.
func (o options) manifest(t *tree) ([]byte, error) {
	if o.given == nil {
		return readManifest(t)
	}
	for _, name := range slices.Sorted(maps.Keys(o.given.Files)) {
		if err := o.given.shadows(t, name); err != nil {
			return nil, err
		}
	}
	return o.given.Files[ManifestName], nil
}

// shadows refuses a file that would ship in another one's place.
func (g *Given) shadows(t *tree, name string) error {
	if _, err := t.root.Lstat(name); err != nil || (g.Instead && name == ManifestName) {
		return nil
	}
	whole := func(hint, format string, args ...any) error {
		return &Error{File: name, Refusal: refuse(rollout.ReasonInvalid, "", hint, format, args...)}
	}
	if name == ManifestName {
		return whole("leave those files out, or remove "+ManifestName, "is there already, in %s, beside files that say the same in another form", t.dir)
	}
	have, err := t.root.ReadFile(name)
	if err != nil || !bytes.Equal(have, g.Files[name]) {
		return whole("rename it, or remove it", "is the name of a file that is to ship, and %s has another one of that name", t.dir)
	}
	return nil
}

// placed gives errors the places that the manifest was made from.
func (g *Given) placed(errs []*Error) []*Error {
	if g == nil || g.Origin == nil {
		return errs
	}
	out := make([]*Error, len(errs))
	for i, e := range errs {
		p := g.Origin(e.Refusal.Field)
		out[i] = &Error{File: p.File, Line: p.Line, Column: p.Column, Refusal: e.Refusal}
	}
	return out
}

// among walks with the given files where they would be.
func (g *Given) among(fn func(*item) error, walk func(func(*item) error) error) error {
	left := slices.Sorted(maps.Keys(g.Files))
	next := func() error {
		name := left[0]
		left = left[1:]
		data := g.Files[name]
		if data == nil {
			data = []byte{}
		}
		info := givenInfo{name, int64(len(data))}
		return fn(&item{given: data, info: info, Entry: Entry{Path: name, Type: TypeFile, Action: Ship, Size: info.size}})
	}
	err := walk(func(it *item) error {
		for len(left) > 0 && left[0] < it.Path {
			if err := next(); err != nil {
				return err
			}
		}
		if len(left) > 0 && left[0] == it.Path {
			return nil // of the same content
		}
		return fn(it)
	})
	for err == nil && len(left) > 0 {
		err = next()
	}
	return err
}

// givenInfo is the fs.FileInfo of a given file.
type givenInfo struct {
	name string
	size int64
}

func (i givenInfo) Name() string     { return i.name }
func (i givenInfo) Size() int64      { return i.size }
func (givenInfo) Mode() fs.FileMode  { return 0o644 }
func (givenInfo) ModTime() time.Time { return time.Unix(0, 0) }
func (givenInfo) IsDir() bool        { return false }
func (givenInfo) Sys() any           { return nil }
