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
}

// forget digests that were remembered, one of which may be why the image could not be written. An
// interrupt is no such reason.
func (m Made) forget(ctx context.Context) {
	if ctx.Err() == nil {
		m.contents.forget()
	}
}

// send takes a layer of a project as soon as its digest is known; several are sent at once.
type send func(context.Context, v1.Layer) error

// Make makes the image that Ship pushes, and pushes nothing: Registry is needed only for an environment that has to be
// built. Files in besides do not ship. The image can be read for as long as ctx lasts and the project stays
// as it is. Refusals are those of project.Package and Client.Find.
func (s Shipper) Make(ctx context.Context, dir string, besides []fs.FileInfo) (Made, error) {
	return s.make(ctx, dir, besides, nil)
}

// make calls to, which may be nil, once the name of the endpoint is known, to learn where layers go.
func (s Shipper) make(ctx context.Context, dir string, besides []fs.FileInfo, to func(endpoint string) (send, error)) (Made, error) {
	pack, err := project.Prepare(ctx, dir, besides)
	if err != nil {
		return Made{}, err
	}
	memory := memory{dir: s.CacheDir}
	c, err := planContents(ctx, pack.Listing, memory)
	if err != nil {
		return Made{}, fmt.Errorf("plan layers: %w", err)
	}
	pack.Size = pack.Listing.Bytes
	if deploy.SourceOf(pack, s.Source).NamedByArchive() {
		if pack.Digest, err = c.archiveDigest(ctx); err != nil {
			return Made{}, err
		}
	}
	out := Made{contents: c}
	if out.Shipment, err = deploy.NewShipment(dir, pack, s.Source); err != nil {
		return Made{}, err
	}
	if sv := out.Settings.Server; sv != nil && len(sv.Command) == 0 && sv.Port != 0 {
		// A script in mode script. A version with a port and no command is an image that knows nothing
		// of the runner; this one has it, and the port with it.
		own := *sv
		own.Port = 0
		out.Settings.Server = &own
	}
	var ready send
	if to != nil {
		if ready, err = to(cmp.Or(s.Endpoint, out.Endpoint)); err != nil {
			return Made{}, err
		}
	}
	parts := Parts{Package: pack, Source: s.SourceURL, Revision: out.Source.Commit}
	if err := s.underlay(ctx, dir, &parts, memory); err != nil {
		return Made{}, err
	}
	out.Platform, out.Base = parts.Platform, parts.Base
	if out.Image, err = assemble(ctx, parts, c, ready); err != nil {
		out.forget(ctx)
		return Made{}, err
	}
	if size, err := Size(out.Image); err == nil {
		s.progress("assembled for %s on %s: %d MB", parts.Platform.String(), parts.Base.Name, size>>20)
	}
	return out, nil
}
