package image

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/sluice-dev/sluice/pkg/project"
	"github.com/sluice-dev/sluice/rollout"
)

// jobs is how many layers are asked after, or sent, at once.
const jobs = 8

// Client reads from and writes to registries. The zero value works.
type Client struct {
	// Insecure names registries, HOST[:PORT], that may be spoken to in plain HTTP. Those on loopback and
	// private addresses may without being named.
	Insecure []string
	// Keychain has the credentials; nil is authn.DefaultKeychain, which reads Docker's and Podman's.
	Keychain authn.Keychain
	// Progress is told what happens, one line a step and one after the other; nil is silent.
	Progress func(format string, args ...any)
	// session shares logins and connections, if there is one.
	session *session
	// divide is what sizes by which layers are told apart are divided by: tests are about small ones. 0 is 1.
	divide int64
}

func (c Client) keychain() authn.Keychain {
	if c.Keychain == nil {
		return authn.DefaultKeychain
	}
	return c.Keychain
}

func (c Client) sized(n int64) int64 { return n / max(c.divide, 1) }

// session is what the steps of one deploy share: each registry is asked once how to log in.
type session struct {
	puller *remote.Puller
	pusher *remote.Pusher
	// sent counts the bytes of requests' bodies.
	sent atomic.Int64
}

// countedTransport counts what requests send.
type countedTransport struct {
	http.RoundTripper
	sent *atomic.Int64
}

func (t countedTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Body != nil && r.Body != http.NoBody {
		r = r.Clone(r.Context())
		r.Body = countedBody{r.Body, t.sent}
	}
	return t.RoundTripper.RoundTrip(r)
}

type countedBody struct {
	io.ReadCloser
	n *atomic.Int64
}

func (b countedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.n.Add(int64(n))
	return n, err
}

// begin gives a client with a session, which ends with end.
func (c Client) begin(ctx context.Context) (_ Client, end func(), err error) {
	c.session = nil
	updates := make(chan v1.Update, 16)
	s := &session{}
	options := append(c.options(ctx), remote.WithTransport(steady{countedTransport{remote.DefaultTransport, &s.sent}}))
	if s.puller, err = remote.NewPuller(options...); err != nil {
		return Client{}, nil, fmt.Errorf("reach registries: %w", err)
	}
	if s.pusher, err = remote.NewPusher(append(options, remote.WithProgress(updates))...); err != nil {
		return Client{}, nil, fmt.Errorf("reach registries: %w", err)
	}
	if tell := c.Progress; tell != nil {
		var one sync.Mutex // several layers are sent at once
		c.Progress = func(format string, args ...any) {
			one.Lock()
			defer one.Unlock()
			tell(format, args...)
		}
	}
	ended, told := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(told)
		last := time.Now()
		for {
			select {
			case u := <-updates:
				if u.Error == nil && u.Total > 0 && time.Since(last) >= reportEvery {
					c.progress("pushing: %d of %d MB", u.Complete>>20, u.Total>>20)
					last = time.Now()
				}
			case <-ended:
				return
			}
		}
	}()
	c.session = s
	return c, sync.OnceFunc(func() { close(ended); <-told }), nil
}

func (c Client) progress(format string, args ...any) {
	if c.Progress != nil {
		c.Progress(format, args...)
	}
}

func (c Client) options(ctx context.Context) []remote.Option {
	out := []remote.Option{
		remote.WithContext(ctx), remote.WithAuthFromKeychain(c.keychain()), remote.WithUserAgent("sluice"), remote.WithJobs(jobs),
		remote.WithTransport(steady{remote.DefaultTransport}), remote.WithRetryBackoff(backoff()),
	}
	if c.session != nil {
		out = append(out, remote.Reuse(c.session.puller), remote.Reuse(c.session.pusher))
	}
	return out
}

// insecure are the name options for a reference.
func (c Client) insecure(ref string) []name.Option {
	host, _, _ := strings.Cut(ref, "/")
	if slices.Contains(c.Insecure, host) {
		return []name.Option{name.Insecure}
	}
	return nil
}

// Repository parses the name of a repository. The error is a *rollout.Error.
func (c Client) Repository(repo string) (name.Repository, error) {
	r, err := name.NewRepository(repo, c.insecure(repo)...)
	if err != nil {
		return name.Repository{}, badName(fieldRegistry, "write it as HOST[:PORT][/PATH], in lower case", repo, "the name of a repository", err)
	}
	return r, nil
}

// Found is an image in a registry, for one platform.
type Found struct {
	Image v1.Image
	// Name is the reference in full, Digest that of the platform's image.
	Name   string
	Digest v1.Hash
	// registry that it is in.
	registry name.Registry
}

// imageForm is how images are named.
const imageForm = "write it as [HOST[:PORT]/]NAME[:TAG], or with @sha256:… for a fixed one"

// badName refuses ref, which should be what. What may be credentials in it is not told.
func badName(field, form, ref, what string, err error) *rollout.Error {
	if project.HasUser(ref) {
		return refuse(rollout.ReasonInvalid, field, "take them out, and log in with `docker login` (or the like: its credential store is read)", "what should be %s has credentials in it", what)
	}
	return refuse(rollout.ReasonInvalid, field, form, "%q is not %s: %v", ref, what, err)
}

// Resolved is the name of an image by its digest, in full; that of an image for several platforms is not of one of them. Refusals are
// those of Find.
func (c Client) Resolved(ctx context.Context, field, ref string) (string, error) {
	r, err := name.ParseReference(ref, c.insecure(ref)...)
	if err != nil {
		return "", badName(field, imageForm, ref, "the name of an image", err)
	}
	if fixed, ok := r.(name.Digest); ok {
		return fixed.Name(), nil
	}
	d, err := remote.Head(r, c.options(ctx)...)
	if err != nil {
		// Some registries answer no HEAD; GET also tells why.
		got, err := remote.Get(r, c.options(ctx)...)
		if err != nil {
			return "", failure(err, field, "read image "+ref, r.Context().Registry, rollout.ReasonBaseImageMissing)
		}
		d = &got.Descriptor
	}
	return r.Context().Digest(d.Digest.String()).Name(), nil
}

// Find reads an image's manifest and configuration for a platform. field names in refusals where
// the reference was given: registry_unreachable, registry_denied, base_image_missing,
// wrong_platform, or invalid for what is no reference.
func (c Client) Find(ctx context.Context, field, ref string, platform v1.Platform) (Found, error) {
	r, err := name.ParseReference(ref, c.insecure(ref)...)
	if err != nil {
		return Found{}, badName(field, imageForm, ref, "the name of an image", err)
	}
	doing := "read image " + ref
	fail := func(err error) (Found, error) {
		return Found{}, failure(err, field, doing, r.Context().Registry, rollout.ReasonBaseImageMissing)
	}
	d, err := remote.Get(r, c.options(ctx)...)
	if err != nil {
		return fail(err)
	}
	wrong := func(has string) (Found, error) {
		return Found{}, refuse(rollout.ReasonWrongPlatform, field, "use an image for "+platform.String()+", or ask for a platform that it is for",
			"%s is for %s, not for %s", ref, has, platform.String())
	}
	out := Found{Name: r.Name(), registry: r.Context().Registry}
	switch {
	case d.MediaType.IsIndex():
		index, err := d.ImageIndex()
		if err != nil {
			return fail(err)
		}
		m, err := index.IndexManifest()
		if err != nil {
			return fail(err)
		}
		var has []string
		i := slices.IndexFunc(m.Manifests, func(d v1.Descriptor) bool {
			if !d.MediaType.IsImage() || d.Platform == nil {
				return false
			}
			has = append(has, d.Platform.String())
			return d.Platform.Satisfies(platform)
		})
		if i < 0 {
			return wrong(strings.Join(has, ", "))
		}
		if out.Image, err = index.Image(m.Manifests[i].Digest); err != nil {
			return fail(err)
		}
	case d.MediaType.IsImage():
		if out.Image, err = d.Image(); err != nil {
			return fail(err)
		}
	default:
		return Found{}, refuse(rollout.ReasonInvalid, field, "name an image", "%s is a %s, not an image", ref, d.MediaType)
	}
	config, err := out.Image.ConfigFile()
	if err != nil {
		return fail(err)
	}
	if is := config.Platform(); config.OS != "" && config.Architecture != "" && !is.Satisfies(v1.Platform{OS: platform.OS, Architecture: platform.Architecture}) {
		return wrong(is.String())
	}
	if out.Digest, err = out.Image.Digest(); err != nil {
		return fail(err)
	}
	return out, nil
}

// Push writes an image to a repository and returns its name by digest. Layers that the repository has are not
// sent, and nothing is if tag names the image already: known says so. Last, and only once the image is whole, tag names it, so that
// registries which clean up do not take it for left-overs; that a tag may not move is told, and no error. Refusals
// are registry_unreachable, registry_denied and registry_refused.
func (c Client) Push(ctx context.Context, img v1.Image, repo name.Repository, tag string) (ref name.Digest, known bool, err error) {
	return c.push(ctx, img, repo, tag, func(err error) error {
		c.progress("warning: tag %s does not name the image: %v; it is used by its digest, and the registry may take it for a left-over one day", tag, err)
		return nil
	})
}

// push is Push with what a tag that could not be written means.
func (c Client) push(ctx context.Context, img v1.Image, repo name.Repository, tag string, untagged func(error) error) (ref name.Digest, known bool, err error) {
	doing := "push to " + repo.Name()
	digest, err := img.Digest()
	if err != nil {
		return name.Digest{}, false, fmt.Errorf("%s: %w", doing, err)
	}
	ref = repo.Digest(digest.String())
	// Some registries answer with 401 or 403 what is not there yet; pushing tells.
	if d, err := remote.Head(repo.Tag(tag), c.options(ctx)...); err == nil && d.Digest == digest {
		return ref, true, nil
	}
	if err = remote.Write(ref, img, c.options(ctx)...); err != nil {
		return name.Digest{}, false, failure(err, fieldRegistry, doing, repo.Registry, rollout.ReasonRegistryRefused)
	}
	if err := remote.Tag(repo.Tag(tag), img, c.options(ctx)...); err != nil {
		return ref, false, untagged(err)
	}
	return ref, false, nil
}

// reportEvery is how often a long push says how far it is.
const reportEvery = 2 * time.Second

// Size in bytes of what a registry holds for an image: manifest, configuration and layers.
func Size(img v1.Image) (int64, error) {
	m, err := img.Manifest()
	if err != nil {
		return 0, err
	}
	n, err := partial.Size(img)
	if err != nil {
		return 0, err
	}
	n += m.Config.Size
	for _, l := range m.Layers {
		n += l.Size
	}
	return n, nil
}
