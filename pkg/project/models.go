package project

import (
	"context"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"
)

// layoutDir is where an archive has the layout of its models.
const layoutDir = reservedDir + "/models"

// LayoutPath is a model's directory in the layout, from the project's root and with slashes. That of a model from
// elsewhere has nothing in it until whoever fetches the model puts its files, or links to them, there.
func LayoutPath(m Model) string { return path.Join(layoutDir, m.Name, m.Version) }

// ModelDir is the directory that AZUREML_MODEL_DIR must name for the project of m
// that was extracted to root, empty if m names no models. Of one model it is the
// folder itself; of one that is a single file, a folder that holds this file; of
// several, a folder with <name>/<version>/ for each. The latter two are real
// directories in the archive, under .sluice/models, with a relative link to each of
// the project's files, which stay where they are as well: so scripts that walk the
// directory find everything, and a model's bytes ship once. A model from elsewhere has
// its place there, too.
//
// A Listing knows the same without extracting.
func (m *Manifest) ModelDir(root string) (string, error) {
	switch len(m.Models) {
	case 0:
		return "", nil
	case 1:
	default:
		return filepath.Join(root, filepath.FromSlash(layoutDir)), nil
	}
	if m.Models[0].Path == "" {
		return filepath.Join(root, filepath.FromSlash(LayoutPath(m.Models[0]))), nil
	}
	p := filepath.Join(root, filepath.FromSlash(m.Models[0].Path))
	info, err := os.Stat(p)
	if err != nil {
		return "", fmt.Errorf("find model: %w", err)
	}
	if info.IsDir() {
		return p, nil
	}
	return filepath.Join(root, filepath.FromSlash(LayoutPath(m.Models[0]))), nil
}

// walkLayout gives the links that lay out the models, which an archive has after the
// project's own files.
func (l *Listing) walkLayout(ctx context.Context, t *tree, fn func(*item) error) error {
	if len(l.models) == 0 || len(l.manifest.Models) == 1 && !l.models[0].isFile {
		return nil
	}
	for i := range l.models {
		m := &l.models[i]
		at := LayoutPath(m.model)
		because := &Rule{Built: fmt.Sprintf("models[%d] %s", m.index, m.model.Name)}
		err := l.walkTree(ctx, t, walkOptions{only: m.place}, func(it *item) error {
			if it.Action != Ship || !within(it.Path, m.place) {
				return nil
			}
			// A single file keeps its declared name even if that was a link's.
			link := path.Join(at, path.Base(m.path))
			if !m.isFile {
				link = at + it.Path[len(m.place):]
			}
			return fn(&item{Entry: Entry{
				Path: link, Type: TypeLink, Action: Ship, Because: because,
				Target: strings.Repeat("../", strings.Count(link, "/")) + it.Path,
			}})
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// ModelPath returns a function that tells of the path of a file that ships where it is as a model's:
// NAME/VERSION/PATH, with what is below a model's directory, or the name of a model that is a
// single file, as PATH. It is empty for all else. A file of several models belongs to the one whose path is
// nearest above it.
func (l *Listing) ModelPath() func(path string) string {
	at := map[string]*modelPlace{}
	for i := range l.models {
		m := &l.models[i]
		if _, taken := at[m.place]; !taken {
			at[m.place] = m
		}
	}
	return func(p string) string {
		if len(at) == 0 {
			return ""
		}
		for above := p; above != "." && above != "/"; above = path.Dir(above) {
			if m := at[above]; m != nil {
				if m.isFile {
					return path.Join(m.model.Name, m.model.Version, path.Base(m.path))
				}
				return path.Join(m.model.Name, m.model.Version) + p[len(m.place):]
			}
		}
		return ""
	}
}
