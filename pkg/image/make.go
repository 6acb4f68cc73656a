package image

import (
	"cmp"
	"context"
	"fmt"
	"io/fs"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/sluice-dev/sluice/pkg/deploy"
	"github.com/sluice-dev/sluice/pkg/project"
)

// Made is a project's image before it is anywhere.
type Made struct {
	// Shipment says what it is; its Image and Known are empty.
	deploy.Shipment
	Image v1.Image
	// Platform and Base that the image was made for and on.
	Platform v1.Platform
	Base     Found
	// contents are the project's layers.
	contents *contents
	client   Client
	close    []func()
}

// Close ends what the image may still be read from: models that were fetched to temporary files.
func (m Made) Close() {
	for _, f := range m.close {
		f()
	}
}

// forget digests that were remembered, one of which may be why the image could not be written. An
// interrupt is no such reason.
func (m Made) forget(ctx context.Context) {
	if ctx.Err() == nil {
		m.contents.memory.forget()
	}
}

// Make makes the image that Ship pushes, and pushes nothing: Registry is needed only for an environment that has to be
// built. Files in besides do not ship. The image can be read until it is closed, for as long as ctx lasts and the project stays
// as it is. Refusals are those of project.Package and Client.Find.
func (s Shipper) Make(ctx context.Context, dir string, besides []fs.FileInfo) (Made, error) {
	return s.make(ctx, dir, besides, nil)
}

// make calls to, which may be nil, once the name of the endpoint is known, to learn where layers go.
func (s Shipper) make(ctx context.Context, dir string, besides []fs.FileInfo, to func(endpoint string) (*uploads, error)) (_ Made, err error) {
	s.stage(deploy.StagePackage)
	pack, err := project.Prepare(ctx, dir, besides, s.Manifest)
	if err != nil {
		return Made{}, err
	}
	// Git takes its time, and so do registries.
	var source project.Source
	asked := make(chan error, 1)
	go func() {
		var err error
		source, err = project.Git(ctx, pack.Listing)
		asked <- err
	}()
	var out Made
	var end func()
	s.Client, end, err = s.begin(ctx)
	if err != nil {
		return Made{}, err
	}
	out.client, out.close = s.Client, append(out.close, end)
	defer func() {
		if err != nil {
			out.Close()
		}
	}()
	parts := Parts{Package: pack, Source: s.SourceURL}
	err = s.layers(ctx, dir, besides, &parts, &out, to)
	if err := <-asked; err != nil { // whatever else is wrong
		return Made{}, err
	}
	if err != nil {
		return Made{}, err
	}
	pack.Source, pack.Size = source, pack.Listing.Bytes
	if deploy.SourceOf(pack, s.Source).NamedByArchive() {
		if pack.Digest, err = out.contents.archiveDigest(ctx, pack.Listing); err != nil {
			return Made{}, err
		}
	}
	if out.Shipment, err = deploy.NewShipment(dir, pack, s.Source); err != nil {
		return Made{}, err
	}
	parts.Revision = out.Source.Commit
	if sv := out.Settings.Server; sv != nil && len(sv.Command) == 0 && sv.Port != 0 {
		// A script in mode script. A version with a port and no command is an image that knows nothing
		// of the runner; this one has it, and the port with it.
		own := *sv
		own.Port = 0
		out.Settings.Server = &own
	}
	out.Platform, out.Base, out.Environment = parts.Platform, parts.Base, parts.Environment
	if out.Image, err = assemble(parts); err != nil {
		return Made{}, err
	}
	if size, err := Size(out.Image); err == nil {
		s.progress("assembled for %s on %s: %d MB", parts.Platform.String(), parts.Base.Name, size>>20)
	}
	return out, nil
}

// layers makes all that does not depend on the commit, and sends what is large to where to says, as soon as it is hashed.
func (s Shipper) layers(ctx context.Context, dir string, besides []fs.FileInfo, p *Parts, out *Made, to func(endpoint string) (*uploads, error)) error {
	var up *uploads
	if to != nil {
		var err error
		if up, err = to(cmp.Or(s.Endpoint, p.Package.Manifest.Endpoint)); err != nil {
			return err
		}
	}
	memory := &memory{dir: s.CacheDir}
	s.stage(deploy.StageEnvironment)
	if err := s.underlay(ctx, dir, besides, p, memory); err != nil {
		return err
	}
	s.stage(deploy.StageImage)
	var clean func()
	var err error
	if p.Models, clean, err = s.fetchModels(ctx, p.Package.Manifest, memory); err != nil {
		return err
	}
	out.close = append(out.close, clean)
	if out.contents, err = s.planContents(ctx, projectFiles(p.Package.Listing, modelLinks(p.Models)), memory); err != nil {
		return err
	}
	if err := countLayers(p.Base.Image, p.Models, len(out.contents.parts)); err != nil {
		return err
	}
	var ready func(context.Context, v1.Layer) error
	if up != nil {
		ready = up.send
	}
	if p.layers, p.sums, err = out.contents.layers(ctx, ready); err != nil {
		out.forget(ctx)
		return fmt.Errorf("make layers: %w", err)
	}
	if up == nil {
		return nil
	}
	// Those of the same registry are mounted.
	var others []v1.Layer
	if p.Base.registry != up.repo.Registry {
		if others, err = p.Base.Image.Layers(); err != nil {
			return fmt.Errorf("read base image: %w", err)
		}
	}
	for _, m := range p.Models {
		if m.registry == up.repo.Registry {
			continue
		}
		for _, l := range m.layers {
			others = append(others, l.layer)
		}
	}
	if err := up.sendAll(ctx, others); err != nil {
		out.forget(ctx)
		return err
	}
	return nil
}
