package image

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/sluice-dev/sluice/rollout"
)

// certificates is where Go programs look for the authorities that they trust.
const certificates = "/etc/ssl/certs/ca-certificates.crt"

// Program is one of Sluice's own, built without cgo for Linux.
type Program struct {
	// Name in the image, File that has it.
	Name, File string
	// Certificates is a file with the authorities to trust, or empty for none.
	Certificates string
	// Source and Revision are as in Parts.
	Source, Revision string
}

// Product is the image of a program on nothing else, and the platform that it is for. The program's layer
// is the last one: RunnerImageLayer relies on it. It depends on the program's and the certificates' bytes
// and on source and revision alone.
func Product(p Program) (v1.Image, v1.Platform, error) {
	platform, err := programPlatform("program", p.File)
	if err != nil {
		return nil, platform, err
	}
	var own []addition
	if p.Certificates != "" {
		l, err := fileLayer(p.Certificates, certificates, false, &memory{})
		if err != nil {
			return nil, platform, fmt.Errorf("read certificates: %w", err)
		}
		own = append(own, addition{l, "certificates"})
	}
	target := programDir + "/" + p.Name
	l, err := fileLayer(p.File, target, true, &memory{})
	if err != nil {
		return nil, platform, fmt.Errorf("read %s: %w", p.Name, err)
	}
	own = append(own, addition{l, p.Name})
	labels := map[string]string{}
	if p.Source != "" {
		labels[labelSource] = p.Source
	}
	if p.Revision != "" {
		labels[labelRevision] = p.Revision
	}
	config := v1.Config{Entrypoint: []string{target}, User: user, Env: []string{"PATH=" + programDir}, WorkingDir: "/"}
	img, err := stack(empty.Image, platform, own, config, labels)
	if err != nil {
		return nil, platform, fmt.Errorf("make image of %s: %w", p.Name, err)
	}
	return img, platform, nil
}

// Index is an image for several platforms, in the order of the programs, which differ in their
// platforms alone. Two for the same platform are an error.
func Index(programs ...Program) (v1.ImageIndex, error) {
	index := mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	seen := map[string]bool{}
	for _, p := range programs {
		img, platform, err := Product(p)
		if err != nil {
			return nil, err
		}
		if seen[platform.String()] {
			return nil, fmt.Errorf("make index of %s: two programs are for %s", p.Name, platform.String())
		}
		seen[platform.String()] = true
		index = mutate.AppendManifests(index, mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Platform: &platform}})
	}
	return index, nil
}

// IndexSize in bytes of what a registry holds for an index.
func IndexSize(index v1.ImageIndex) (int64, error) {
	n, err := partial.Size(index)
	if err != nil {
		return 0, err
	}
	m, err := index.IndexManifest()
	if err != nil {
		return 0, err
	}
	for _, d := range m.Manifests {
		img, err := index.Image(d.Digest)
		if err != nil {
			return 0, err
		}
		size, err := Size(img)
		if err != nil {
			return 0, err
		}
		n += size
	}
	return n, nil
}

// PushIndex writes an index with all its images to a registry under a tag (HOST[:PORT]/NAME:TAG) and
// returns its name by digest. Refusals are those of Push.
func (c Client) PushIndex(ctx context.Context, index v1.ImageIndex, tag string) (name.Digest, error) {
	ref, err := name.NewTag(tag, c.insecure(tag)...)
	if err != nil {
		return name.Digest{}, badName(fieldRegistry, "write it as HOST[:PORT]/NAME:TAG, in lower case", tag, "the name of an image", err)
	}
	doing := "push " + ref.Name()
	digest, err := index.Digest()
	if err != nil {
		return name.Digest{}, fmt.Errorf("%s: %w", doing, err)
	}
	if err := remote.WriteIndex(ref, index, c.options(ctx)...); err != nil {
		return name.Digest{}, failure(err, fieldRegistry, doing, ref.Registry, rollout.ReasonRegistryRefused)
	}
	return ref.Context().Digest(digest.String()), nil
}

// WriteLayout writes indexes to an OCI image layout in dir, each under its name (ORG/NAME:TAG), in
// place of what dir named before; blobs that are there already stay.
func WriteLayout(dir string, names []string, indexes []v1.ImageIndex) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("write layout: %w", err)
	}
	if entries, err := os.ReadDir(dir); err != nil {
		return fmt.Errorf("write layout: %w", err)
	} else if _, err := layout.FromPath(dir); err != nil && len(entries) > 0 {
		return fmt.Errorf("write layout: %s has other files and is no layout", dir)
	}
	path, err := layout.Write(dir, mutate.IndexMediaType(empty.Index, types.OCIImageIndex))
	if err != nil {
		return fmt.Errorf("write layout: %w", err)
	}
	if len(names) != len(indexes) {
		return errors.New("write layout: as many names as indexes are needed")
	}
	for i, index := range indexes {
		if err := path.AppendIndex(index, layout.WithAnnotations(map[string]string{ociPrefix + "ref.name": names[i]})); err != nil {
			return fmt.Errorf("write layout: %w", err)
		}
	}
	return nil
}
