package image

import (
	"cmp"
	"context"
	"errors"
	"io/fs"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/sluice-dev/sluice/pkg/deploy"
	"github.com/sluice-dev/sluice/pkg/image/environment"
	"github.com/sluice-dev/sluice/pkg/project"
	"github.com/sluice-dev/sluice/rollout"
)

// Shipper makes a project into an image in a registry. It is a deploy.Shipper for clusters.
type Shipper struct {
	Client
	// Registry, HOST[:PORT][/PATH], under which each endpoint has a repository of its name.
	Registry string
	// PullRegistry, HOST[:PORT], replaces Registry's host in the image's name if nodes reach the
	// registry by another address than this machine.
	PullRegistry string
	// Endpoint to name the repository after instead of the manifest's.
	Endpoint string
	// BaseImage for projects that name none.
	BaseImage string
	// GlobalRegistry, HOST[:PORT][/PATH], may have images of environments too; default none. Builder builds what
	// is in neither registry, and with Rebuild also what is.
	GlobalRegistry string
	Builder        Builder
	Rebuild        bool
	// RunnerFile is a static Linux program, RunnerImage Sluice's image with it; one of them is needed.
	RunnerFile, RunnerImage string
	// Platform, OS/ARCHITECTURE, of the image; default the runner's file's, else linux/amd64.
	Platform string
	// Source stands over what is found beside the project; SourceURL is the repository's address.
	Source    project.Source
	SourceURL string
	// TempDir holds a build's context, and models that are fetched by https://; default the system's.
	TempDir string
	// ModelQuery gives what belongs behind the ? of the address of a model that is fetched by https://, by the model's name: such as a
	// signature, which the manifest must not have. nil, or "", is nothing.
	ModelQuery func(model string) string
	// Stage, if not nil, is told when one begins: package, environment, image, push.
	Stage func(deploy.Stage)
	// CacheDir keeps what was hashed, so that files are read again only once they have changed; empty keeps nothing.
	CacheDir string
	// Manifest stands for the project's sluice.yaml; nil is its own.
	Manifest *project.Given
}

var _ deploy.Shipper = Shipper{}

// Ship implements deploy.Shipper. Refusals are those of project.Package, Client.Find and Client.Push.
func (s Shipper) Ship(ctx context.Context, dir string) (out deploy.Shipment, err error) {
	// What is wrong with the shipper shows before anything is read.
	if _, err := s.repository("endpoint"); err != nil {
		return deploy.Shipment{}, err
	}
	var repo name.Repository
	m, err := s.make(ctx, dir, nil, func(endpoint string) (*uploads, error) {
		var err error
		if repo, err = s.repository(endpoint); err != nil {
			return nil, err
		}
		return s.uploads(repo), nil
	})
	if err != nil {
		return deploy.Shipment{}, err
	}
	defer m.Close()
	out = m.Shipment
	s.stage(deploy.StagePush)
	ref, known, err := m.client.Push(ctx, m.Image, repo, out.Name)
	if err != nil {
		m.forget(ctx)
		return deploy.Shipment{}, err
	}
	out.Known, out.Pushed, out.Sent = known, ref.Name(), m.client.session.sent.Load()
	out.Image, err = s.pulled(ref)
	return out, err
}

func (s Shipper) stage(at deploy.Stage) {
	if s.Stage != nil {
		s.Stage(at)
	}
}

func (s Shipper) repository(endpoint string) (name.Repository, error) {
	if s.Registry == "" {
		return name.Repository{}, refuse(rollout.ReasonInvalid, fieldRegistry, "name the registry that the cluster pulls from with --registry or $SLUICE_REGISTRY, such as registry.example/models", "images need a registry")
	}
	return s.Repository(strings.TrimSuffix(s.Registry, "/") + "/" + endpoint)
}

// underlay finds what lies under the project: the runner and the image of the environment, for one platform.
func (s Shipper) underlay(ctx context.Context, dir string, besides []fs.FileInfo, p *Parts, m *memory) error {
	p.Platform = v1.Platform{OS: "linux", Architecture: "amd64"}
	if s.Platform != "" {
		asked, err := environment.ParsePlatform(s.Platform)
		if err != nil || asked.OS != "linux" || asked.Architecture == "" {
			return refuse(rollout.ReasonInvalid, fieldPlatform, "write it as linux/amd64 or linux/arm64", "%q is not a platform for images", s.Platform)
		}
		p.Platform = *asked
	}
	var err error
	switch {
	case s.RunnerFile != "":
		var is v1.Platform
		if p.Runner, is, err = runnerFileLayer(s.RunnerFile, m); err != nil {
			return err
		}
		if s.Platform == "" {
			p.Platform = is
		}
		if is.Architecture != p.Platform.Architecture {
			return refuse(rollout.ReasonWrongPlatform, fieldRunner, "give the runner for "+p.Platform.String(), "the runner %s is for %s", s.RunnerFile, is.String())
		}
	case s.RunnerImage != "":
		if p.Runner, err = s.RunnerImageLayer(ctx, s.RunnerImage, p.Platform); err != nil {
			return err
		}
	default:
		return refuse(rollout.ReasonInvalid, fieldRunner, "name its image with --runner-image or $SLUICE_RUNNER_IMAGE", "images need the runner")
	}
	env := p.Package.Manifest.Environment
	if env.Dockerfile == "" {
		env.BaseImage = cmp.Or(env.BaseImage, s.BaseImage)
	}
	var base Found
	d, err := environment.Load(ctx, dir, env, environment.Options{Platform: p.Platform.String(), Files: s.Manifest.Contents(), Besides: besides, Resolve: func(ctx context.Context, field, ref string) (environment.Image, error) {
		img, found, err := s.Resolve(ctx, field, ref, p.Platform)
		if err != nil {
			return environment.Image{}, err
		}
		if ref == env.BaseImage {
			base = found
		}
		s.progress("%s is %s", ref, found.Digest)
		return img, nil
	}})
	if err != nil {
		return err
	}
	p.Environment.Summary = d.Summary()
	p.Base, p.Environment.Source, err = Environments{
		Client: s.Client, Workspace: s.Registry, Global: s.GlobalRegistry, Builder: s.Builder, Rebuild: s.Rebuild, TempDir: s.TempDir,
	}.Ensure(ctx, d, base, p.Platform)
	return err
}

// pulled is the reference by which nodes pull the image.
func (s Shipper) pulled(ref name.Digest) (string, error) {
	if s.PullRegistry == "" {
		return ref.Name(), nil
	}
	out := strings.TrimSuffix(s.PullRegistry, "/") + "/" + ref.Context().RepositoryStr() + "@" + ref.DigestStr()
	if _, err := name.NewDigest(out); err != nil || strings.Contains(strings.TrimSuffix(s.PullRegistry, "/"), "/") {
		return "", badName("pullRegistry", "write it as HOST[:PORT]", s.PullRegistry, "the address of a registry", cmp.Or(err, errors.New("it has a path")))
	}
	return out, nil
}
