package image

import (
	"cmp"
	"context"
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
		m.contents.forget()
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
	pack, err := project.Prepare(ctx, dir, besides)
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
	memory := memory{dir: s.CacheDir}
	parts := Parts{Package: pack, Source: s.SourceURL}
	err = s.underlay(ctx, dir, &parts, memory)
	if err := <-asked; err != nil { // whatever else is wrong, this is looked at no more
		return Made{}, err
	}
	if err != nil {
		return Made{}, err
	}
	pack.Source, parts.Package.Source = source, source
	models, clean, err := s.fetchModels(ctx, pack.Manifest, memory, s.TempDir)
	if err != nil {
		return Made{}, err
	}
	out.close = append(out.close, clean)
	parts.Models = models
	c, err := planContents(ctx, projectFiles(pack.Listing, modelLinks(models)), memory)
	if err != nil {
		return Made{}, err
	}
	pack.Size = pack.Listing.Bytes
	if deploy.SourceOf(pack, s.Source).NamedByArchive() {
		if pack.Digest, err = c.archiveDigest(ctx, pack.Listing); err != nil {
			return Made{}, err
		}
	}
	out.contents = c
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
	out.Platform, out.Base = parts.Platform, parts.Base
	if out.Image, err = s.assembleTo(ctx, parts, c, cmp.Or(s.Endpoint, out.Endpoint), to); err != nil {
		out.forget(ctx)
		return Made{}, err
	}
	if size, err := Size(out.Image); err == nil {
		s.progress("assembled for %s on %s: %d MB", parts.Platform.String(), parts.Base.Name, size>>20)
	}
	return out, nil
}

// assembleTo assembles, and sends large layers to where to says as soon as they are hashed.
func (s Shipper) assembleTo(ctx context.Context, p Parts, c *contents, endpoint string, to func(endpoint string) (*uploads, error)) (v1.Image, error) {
	if to == nil {
		return assemble(ctx, p, c, nil)
	}
	up, err := to(endpoint)
	if err != nil {
		return nil, err
	}
	img, err := assemble(ctx, p, c, up.send)
	if err != nil {
		return nil, err
	}
	for _, m := range p.Models {
		if m.registry == up.repo.Registry {
			continue // its layers are mounted
		}
		for _, l := range m.layers {
			if err := up.send(ctx, l.layer); err != nil {
				return nil, err
			}
		}
	}
	return img, nil
}
