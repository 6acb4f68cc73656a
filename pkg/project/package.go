package project

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"slices"
)

// Result of Package.
type Result struct {
	Archive
	Manifest *Manifest `json:"-"`
	// Listing says what shipped; its walk still reads the project's files.
	Listing *Listing `json:"-"`
	Source  Source   `json:"source"`
	// Version is the name that CONTRACTS gives to a version made from the archive
	// outside a pull request.
	Version string `json:"version"`
	// ModelDir is where AZUREML_MODEL_DIR must lead below the extracted archive; see Manifest.ModelDir.
	ModelDir string `json:"modelDir,omitempty"`
}

// Package reads the manifest of the project in dir, plans what ships, writes its
// archive to out and names the version that it makes. A file that out is does not
// ship, nor do those in besides (such as what the archive will replace), so that an
// archive may be written into its own project. The checks are those of Load: a project
// that breaks one is not packaged.
func Package(ctx context.Context, dir string, out io.Writer, besides []fs.FileInfo, checks ...Check) (Result, error) {
	m, err := Load(dir, checks...)
	if err != nil {
		return Result{}, err
	}
	skip := slices.Clone(besides)
	if f, ok := out.(interface{ Stat() (fs.FileInfo, error) }); ok {
		if info, err := f.Stat(); err == nil && info.Mode().IsRegular() {
			skip = append(skip, info)
		}
	}
	l, err := plan(ctx, dir, m, skip)
	if err != nil {
		return Result{}, fmt.Errorf("plan archive: %w", err)
	}
	a, err := Write(ctx, out, l)
	if err != nil {
		return Result{}, err
	}
	s, err := Git(ctx, l)
	if err != nil {
		return Result{}, err
	}
	name, err := VersionName(s, a.Digest)
	if err != nil {
		return Result{}, err
	}
	return Result{Archive: a, Manifest: m, Listing: l, Source: s, Version: name, ModelDir: l.ModelDir}, nil
}
