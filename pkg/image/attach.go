package image

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/sluice-dev/sluice/rollout"
)

// emptyConfig is what an artifact has for a configuration (image specification, "Guidance for an empty descriptor").
const emptyConfig = types.MediaType("application/vnd.oci.empty.v1+json")

// Attach puts a document into the repository of an image, as an artifact that refers to it (image specification,
// "subject"): whoever has the image finds it by the referrers API, or by the tag that stands in for that in a registry without
// it. image names the image by its digest. The same document is the same artifact, and known says that it was there.
// Refusals are those of Push.
func (c Client) Attach(ctx context.Context, image, artifactType string, document []byte) (ref name.Digest, known bool, err error) {
	to, err := name.NewDigest(image, c.insecure(image)...)
	if err != nil {
		return name.Digest{}, false, badName("image", "name it as REPOSITORY@sha256:…", image, "the name of an image by its digest", err)
	}
	doing := "attach to " + to.Name()
	fail := func(err error) (name.Digest, bool, error) {
		return name.Digest{}, false, failure(err, fieldRegistry, doing, to.Registry, rollout.ReasonRegistryRefused)
	}
	subject, err := remote.Head(to, c.options(ctx)...)
	if err != nil {
		return fail(err)
	}
	img, err := newArtifact(v1.Descriptor{MediaType: subject.MediaType, Digest: subject.Digest, Size: subject.Size}, artifactType, document)
	if err != nil {
		return name.Digest{}, false, fmt.Errorf("%s: %w", doing, err)
	}
	digest, err := img.Digest()
	if err != nil {
		return name.Digest{}, false, fmt.Errorf("%s: %w", doing, err)
	}
	ref = to.Context().Digest(digest.String())
	if known, err = c.has(ctx, ref); err != nil {
		return fail(err)
	}
	// Also if it is known: it may be that only the tag was not written any more.
	if err := remote.Write(ref, img, c.options(ctx)...); err != nil {
		return fail(err)
	}
	return ref, known, nil
}

// Repository that the image is in, in full.
func (f Found) Repository() (string, error) {
	ref, err := name.ParseReference(f.Name)
	if err != nil {
		return "", fmt.Errorf("read the name of an image: %w", err)
	}
	return ref.Context().Name(), nil
}

// artifact is a document in the form of an image. It is a partial.CompressedImageCore.
type artifact struct {
	manifest []byte
	layer    v1.Layer
}

func newArtifact(subject v1.Descriptor, artifactType string, document []byte) (v1.Image, error) {
	a := artifact{layer: static.NewLayer(document, types.MediaType(artifactType))}
	digest, err := a.layer.Digest()
	if err != nil {
		return nil, err
	}
	config, _ := a.RawConfigFile()
	configDigest, size, err := v1.SHA256(bytes.NewReader(config))
	if err != nil {
		return nil, err
	}
	a.manifest, err = json.Marshal(v1.Manifest{
		SchemaVersion: 2, MediaType: types.OCIManifestSchema1, ArtifactType: artifactType,
		Config: v1.Descriptor{MediaType: emptyConfig, Digest: configDigest, Size: size},
		Layers: []v1.Descriptor{{MediaType: types.MediaType(artifactType), Digest: digest, Size: int64(len(document))}}, Subject: &subject,
	})
	if err != nil {
		return nil, err
	}
	return partial.CompressedToImage(a)
}

func (a artifact) RawConfigFile() ([]byte, error)      { return []byte("{}"), nil }
func (a artifact) RawManifest() ([]byte, error)        { return a.manifest, nil }
func (a artifact) MediaType() (types.MediaType, error) { return types.OCIManifestSchema1, nil }

func (a artifact) LayerByDigest(h v1.Hash) (partial.CompressedLayer, error) {
	if d, err := a.layer.Digest(); err != nil || d == h {
		return a.layer, err
	}
	return partial.ConfigLayer(a)
}

// has says whether a repository has a manifest.
func (c Client) has(ctx context.Context, ref name.Reference) (bool, error) {
	_, err := remote.Head(ref, c.options(ctx)...)
	if err == nil {
		return true, nil
	}
	// Some registries answer with 401 or 403 what is not there yet; pushing tells.
	var said *transport.Error
	if errors.As(err, &said) && said.StatusCode < http.StatusInternalServerError && said.StatusCode != http.StatusTooManyRequests {
		return false, nil
	}
	return false, err
}
