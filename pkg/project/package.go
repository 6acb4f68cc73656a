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
// archive may be written into its own project. The options are those of Load: a project
// that breaks a Check is not packaged, and a Given manifest ships as the project's sluice.yaml.
func Package(ctx context.Context, dir string, out io.Writer, besides []fs.FileInfo, opts ...Option) (Result, error) {
	skip := slices.Clone(besides)
	if f, ok := out.(interface{ Stat() (fs.FileInfo, error) }); ok {
		if info, err := f.Stat(); err == nil && info.Mode().IsRegular() {
			skip = append(skip, info)
		}
	}
	r, err := prepare(ctx, dir, skip, opts)
	if err != nil {
		return Result{}, err
	}
	if r.Archive, err = Write(ctx, out, r.Listing); err != nil {
		return Result{}, err
	}
	if r.Source, err = Git(ctx, r.Listing); err != nil {
		return Result{}, err
	}
	if r.Version, err = VersionName(r.Source, r.Digest); err != nil {
		return Result{}, err
	}
	return r, nil
}

// Prepare is Package without an archive: its digest and size are not known, git is not asked and no version is
// named, but Files are counted. It reads no more than rules and the manifest.
func Prepare(ctx context.Context, dir string, besides []fs.FileInfo, opts ...Option) (Result, error) {
	r, err := prepare(ctx, dir, besides, opts)
	if err != nil {
		return Result{}, err
	}
	if err := r.Listing.Err(); err != nil {
		return Result{}, fmt.Errorf("plan archive: %w", err)
	}
	r.Files = r.Listing.Files + r.Listing.Links
	return r, nil
}

func prepare(ctx context.Context, dir string, skip []fs.FileInfo, opts []Option) (Result, error) {
	o := optionsOf(opts)
	m, err := load(dir, o)
	if err != nil {
		return Result{}, err
	}
	l, err := plan(ctx, dir, m, skip, o.given)
	if err != nil {
		return Result{}, fmt.Errorf("plan archive: %w", err)
	}
	return Result{Manifest: m, Listing: l, ModelDir: l.ModelDir}, nil
}
