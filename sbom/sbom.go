// Package sbom makes the bill of materials of an image, an SPDX 2.3 document, with syft. It is a module of its own:
// syft brings more along than all of Sluice.
package sbom

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"github.com/anchore/stereoscope/pkg/file"
	"github.com/anchore/stereoscope/pkg/image"
	"github.com/anchore/syft/syft"
	"github.com/anchore/syft/syft/cataloging"
	"github.com/anchore/syft/syft/format/common/spdxhelpers"
	"github.com/anchore/syft/syft/source"
	"github.com/anchore/syft/syft/source/stereoscopesource"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/spdx/tools-golang/spdx"

	_ "modernc.org/sqlite" // reads the package database of newer RPM distributions
)

// Name of the image in its document. It is not that of a repository: the same image has the same document wherever
// it is.
const Name = "image"

// Write writes the SPDX document, JSON, of an image to w: packages of the distribution, of languages, and the files that belong to
// them. The same image gives the same bytes with the same version of this program: the time is the image's own, and
// the namespace is made of its digest. The image is unpacked below tempDir (default the system's), which needs that
// much space; nothing stays there. Nothing is looked up on the network.
func Write(ctx context.Context, w io.Writer, img v1.Image, tempDir string) (err error) {
	fail := func(err error) error { return fmt.Errorf("make bill of materials: %w", err) }
	digest, err := img.Digest()
	if err != nil {
		return fail(err)
	}
	config, err := img.ConfigFile()
	if err != nil {
		return fail(err)
	}
	work, err := os.MkdirTemp(tempDir, "sluice-sbom-*")
	if err != nil {
		return fail(err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(work)) }()
	temps := file.NewTempDirGenerator("sluice-sbom") // makes nothing: the only directory is ours
	content, err := os.MkdirTemp(work, "content-*")
	if err != nil {
		return fail(err)
	}
	raw, err := img.RawManifest()
	if err != nil {
		return fail(err)
	}
	read := image.New(interrupted{img, ctx}, temps, content, image.WithManifestDigest(digest.String()), image.WithManifest(raw))
	if err := read.Read(); err != nil {
		return fail(err)
	}
	src := stereoscopesource.New(read, stereoscopesource.ImageConfig{Reference: Name, Alias: source.Alias{Name: Name, Version: digest.String()}})
	defer func() { err = errors.Join(err, src.Close()) }()
	found, err := syft.CreateSBOM(ctx, src, syft.DefaultCreateSBOMConfig().
		WithTool("syft", version("github.com/anchore/syft")).
		WithSearchConfig(cataloging.DefaultSearchConfig().WithScope(source.SquashedScope)))
	if err != nil {
		return fail(err)
	}
	doc := spdxhelpers.ToFormatModel(*found)
	if doc == nil {
		return fail(errors.New("there is no document"))
	}
	settle(doc, digest, config.Created.Time)
	out := json.NewEncoder(w)
	out.SetEscapeHTML(false)
	if err := out.Encode(doc); err != nil {
		return fail(err)
	}
	return nil
}

// settle what would differ from one time to the next: when and under which name the document was made, and the order of what
// was found by several at once.
func settle(doc *spdx.Document, digest v1.Hash, created time.Time) {
	if created.Before(time.Unix(0, 0)) {
		created = time.Unix(0, 0) // images of versions have no time
	}
	doc.CreationInfo.Created = created.UTC().Truncate(time.Second).Format(time.RFC3339)
	doc.DocumentNamespace = "https://sluice.dev/sbom/" + version("github.com/anchore/syft") + "/" + digest.Algorithm + "/" + digest.Hex
	slices.SortStableFunc(doc.Packages, func(a, b *spdx.Package) int {
		return cmp.Compare(a.PackageSPDXIdentifier, b.PackageSPDXIdentifier)
	})
	slices.SortStableFunc(doc.Files, func(a, b *spdx.File) int { return cmp.Compare(a.FileSPDXIdentifier, b.FileSPDXIdentifier) })
	slices.SortStableFunc(doc.OtherLicenses, func(a, b *spdx.OtherLicense) int {
		return cmp.Compare(a.LicenseIdentifier, b.LicenseIdentifier)
	})
	element := func(d spdx.DocElementID) string {
		return string(d.DocumentRefID) + "\x00" + string(d.ElementRefID) + "\x00" + d.SpecialID
	}
	slices.SortStableFunc(doc.Relationships, func(a, b *spdx.Relationship) int {
		return cmp.Or(cmp.Compare(element(a.RefA), element(b.RefA)), cmp.Compare(a.Relationship, b.Relationship),
			cmp.Compare(element(a.RefB), element(b.RefB)), cmp.Compare(a.RelationshipComment, b.RelationshipComment))
	})
}

// interrupted is an image that cannot be read any more once its context ends: reading a large one takes long, and what
// reads it knows no context.
type interrupted struct {
	v1.Image
	ctx context.Context //nolint:containedctx // of one call
}

func (i interrupted) Layers() ([]v1.Layer, error) {
	layers, err := i.Image.Layers()
	out := make([]v1.Layer, len(layers))
	for n, l := range layers {
		out[n] = interruptedLayer{l, i.ctx}
	}
	return out, err
}

type interruptedLayer struct {
	v1.Layer
	ctx context.Context //nolint:containedctx // of one call
}

func (l interruptedLayer) Compressed() (io.ReadCloser, error) { return l.reader(l.Layer.Compressed()) }
func (l interruptedLayer) Uncompressed() (io.ReadCloser, error) {
	return l.reader(l.Layer.Uncompressed())
}

func (l interruptedLayer) reader(r io.ReadCloser, err error) (io.ReadCloser, error) {
	if err != nil {
		return nil, err
	}
	return interruptedReader{r, l.ctx}, nil
}

type interruptedReader struct {
	io.ReadCloser
	ctx context.Context //nolint:containedctx // of one call
}

func (r interruptedReader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.ReadCloser.Read(p)
}
