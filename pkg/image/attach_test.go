package image_test

import (
	"context"
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/sluice-dev/sluice/pkg/image"
	"github.com/sluice-dev/sluice/pkg/image/registry"
	"github.com/sluice-dev/sluice/rollout"
)

// TestAttach: whoever has the image finds its document, by the referrers API and, in a registry without it, by the tag.
func TestAttach(t *testing.T) {
	t.Parallel()
	for _, api := range []bool{true, false} {
		r := newRegistry(t) // without it
		host := r.host
		if api {
			l, err := registry.Listen(t.Context(), "127.0.0.1:0", false)
			if err != nil {
				t.Fatal(err)
			}
			dir, done := t.TempDir(), make(chan error, 1)
			ctx, cancel := context.WithCancel(t.Context())
			go func() { done <- registry.Serve(ctx, l, dir, nil) }()
			t.Cleanup(func() {
				cancel()
				if err := <-done; err != nil {
					t.Error(err)
				}
			})
			host = l.Addr().String()
		}
		s := r.shipper(t)
		s.Registry = host + "/models"
		shipped := ship(t, s, project(t))
		const kind, document = "application/spdx+json", `{"spdxVersion":"SPDX-2.3"}`
		ref, known, err := s.Attach(t.Context(), shipped.Image, kind, []byte(document))
		if err != nil || known {
			t.Fatal(ref, known, err)
		}
		again, known, err := s.Attach(t.Context(), shipped.Image, kind, []byte(document))
		if err != nil || !known || again != ref {
			t.Errorf("once more: %s, %v, %v; want %s", again, known, err, ref)
		}
		to, err := name.NewDigest(shipped.Image)
		if err != nil {
			t.Fatal(err)
		}
		index, err := remote.Referrers(to)
		if err != nil {
			t.Fatal(err)
		}
		m, err := index.IndexManifest()
		if err != nil || len(m.Manifests) != 1 || m.Manifests[0].ArtifactType != kind || m.Manifests[0].Digest.String() != ref.DigestStr() {
			t.Fatalf("api %v: the referrers are %+v (%v), want %s", api, m, err, ref)
		}
		tags, err := remote.List(to.Context())
		if err != nil || (len(tags) == 2) == api {
			t.Errorf("api %v: the tags are %q (%v)", api, tags, err)
		}
		img := r.image(t, ref.Name())
		raw, err := img.RawManifest()
		if err != nil {
			t.Fatal(err)
		}
		var got struct {
			ArtifactType string
			Config       struct{ MediaType, Digest string }
			Subject      struct{ Digest string }
		}
		if err := json.Unmarshal(raw, &got); err != nil {
			t.Fatal(err)
		}
		if got.ArtifactType != kind || got.Subject.Digest != to.DigestStr() || got.Config.MediaType != "application/vnd.oci.empty.v1+json" ||
			got.Config.Digest != "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a" {
			t.Errorf("the manifest is %s", raw)
		}
		layers, err := img.Layers()
		if err != nil || len(layers) != 1 {
			t.Fatal(layers, err)
		}
		rc, err := layers[0].Compressed()
		if err != nil {
			t.Fatal(err)
		}
		var back map[string]string
		decode(t, rc, &back)
		rc.Close()
		if back["spdxVersion"] != "SPDX-2.3" {
			t.Errorf("the document came back as %v", back)
		}
		missing := to.Context().Digest("sha256:" + strings.Repeat("0", 64)).Name()
		if _, _, err := (image.Client{}).Attach(t.Context(), missing, kind, nil); rollout.ReasonOf(err) != rollout.ReasonRegistryRefused {
			t.Errorf("to no image: %v", err)
		}
	}
	if _, _, err := (image.Client{}).Attach(t.Context(), "host/x:tag", "a/b", nil); rollout.ReasonOf(err) != rollout.ReasonInvalid {
		t.Errorf("by a tag: %v", err)
	}
}
