package image

import (
	"context"
	"fmt"
	"os"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/sluice-dev/sluice/pkg/deploy"
	"github.com/sluice-dev/sluice/pkg/image/build"
	"github.com/sluice-dev/sluice/pkg/image/environment"
	"github.com/sluice-dev/sluice/rollout"
)

// Resolve finds an image as environment.Load asks for it.
func (c Client) Resolve(ctx context.Context, field, ref string, platform v1.Platform) (environment.Image, Found, error) {
	found, err := c.Find(ctx, field, ref, platform)
	if err != nil {
		return environment.Image{}, Found{}, err
	}
	config, err := found.Image.ConfigFile()
	if err != nil {
		return environment.Image{}, Found{}, fmt.Errorf("read image %s: %w", ref, err)
	}
	return environment.Image{Digest: found.Digest.String(), Env: config.Config.Env}, found, nil
}

// Builder builds an image and pushes it; *build.Builder is one. Refusals are *rollout.Error values.
type Builder interface {
	Build(ctx context.Context, r build.Request) (v1.Hash, error)
}

const (
	// environments is the repository of environments' images, below a registry's path.
	environments = "environments"
	// tagEnvironment begins the tag of an environment's image; its hash follows.
	tagEnvironment = "env-"
	// tagCache is the tag under which BuildKit keeps what steps made.
	tagCache = "cache"
	// labelEnvironment says in an image which environment's it is.
	labelEnvironment = "dev.sluice.environment"
)

// Environments finds the images of environments, or has them built.
type Environments struct {
	Client
	// Workspace and Global are registries, HOST[:PORT][/PATH]. Images are kept in the repository "environments"
	// below the workspace's, as env-HASH; Global, which may be empty, is only read.
	Workspace, Global string
	Builder           Builder
	// Rebuild builds even what is there: the same definition may install other packages today, where they are
	// not pinned. Whoever uses the tag from now on gets the new image; versions keep theirs, by digest.
	Rebuild bool
	// TempDir holds a build's context; default the system's.
	TempDir string
}

// Ensure gives the image of an environment: the workspace registry's, else the global one's, copied to
// the workspace's, else one that is built now. The tag names an image only once that is whole, and two that do the
// same at once do it twice, harmlessly. base is the definition's base image as it was found; it is the image where
// that alone is the environment. Refusals are those of Client.Find, of the builder, and of d.WriteContext.
func (e Environments) Ensure(ctx context.Context, d *environment.Definition, base Found, platform v1.Platform) (Found, deploy.EnvironmentSource, error) {
	if !d.Needed() {
		return base, deploy.EnvironmentBase, nil
	}
	found, from, err := e.ensure(ctx, d, platform)
	if err != nil {
		return Found{}, "", fmt.Errorf("find environment: %w", err)
	}
	to, err := e.tag(e.Workspace, tagEnvironment+d.Hash())
	if err != nil {
		return Found{}, "", err
	}
	// However it came there, images that are made on it say the same of it.
	found.Name = to.Name()
	return found, from, nil
}

func (e Environments) ensure(ctx context.Context, d *environment.Definition, platform v1.Platform) (Found, deploy.EnvironmentSource, error) {
	hash := d.Hash()
	if e.Workspace == "" {
		return Found{}, "", refuse(rollout.ReasonInvalid, fieldRegistry, "name the registry that has, or will have, images of environments with --registry or $SLUICE_REGISTRY, such as registry.example/models",
			"environment %s has steps of its own, and no registry is named for its image", short(hash))
	}
	to, err := e.tag(e.Workspace, tagEnvironment+hash)
	if err != nil {
		return Found{}, "", err
	}
	if !e.Rebuild {
		found, there, err := e.look(ctx, to, hash, platform)
		if err != nil {
			return Found{}, "", err
		}
		if there {
			e.progress("environment %s is in the workspace registry", short(hash))
			return found, deploy.EnvironmentWorkspace, nil
		}
		if found, there := e.global(ctx, hash, platform); there {
			if err := e.copy(ctx, found, to); err != nil {
				return Found{}, "", err
			}
			e.progress("environment %s is in the global registry: copied", short(hash))
			found, err = e.Find(ctx, fieldRegistry, to.Context().Digest(found.Digest.String()).Name(), platform)
			return found, deploy.EnvironmentGlobal, err
		}
	}
	for _, p := range d.Unpinned() {
		e.progress("warning: %s is not fixed to one version: the environment keeps the one that is installed now", p)
	}
	e.progress("environment %s is not there yet: it is built", short(hash))
	digest, err := e.build(ctx, d, hash, to, platform)
	if err != nil {
		return Found{}, "", err
	}
	found, err := e.Find(ctx, fieldRegistry, to.Digest(digest.String()).Name(), platform)
	return found, deploy.EnvironmentBuilt, err
}

func short(hash string) string { return hash[:12] }

// tag in the repository of environments below a registry.
func (e Environments) tag(registry, tag string) (name.Tag, error) {
	repo, err := e.Repository(strings.TrimSuffix(registry, "/") + "/" + environments)
	if err != nil {
		return name.Tag{}, err
	}
	return repo.Tag(tag), nil
}

// look for an environment's image. An image of another label is not what its tag says, and none.
func (e Environments) look(ctx context.Context, tag name.Tag, hash string, platform v1.Platform) (found Found, there bool, err error) {
	found, err = e.Find(ctx, fieldRegistry, tag.Name(), platform)
	if rollout.ReasonOf(err) == rollout.ReasonBaseImageMissing {
		return Found{}, false, nil
	}
	if err != nil {
		return Found{}, false, err
	}
	config, err := found.Image.ConfigFile()
	if err != nil {
		return Found{}, false, failure(err, fieldRegistry, "read image "+tag.Name(), tag.Registry, rollout.ReasonBaseImageMissing)
	}
	if is := config.Config.Labels[labelEnvironment]; is != hash {
		e.progress("warning: %s is not an image of that environment (its label %s says %q): it is built anew", tag.Name(), labelEnvironment, is)
		return Found{}, false, nil
	}
	return found, true, nil
}

// global is as look, in the global registry, which nothing depends on: what is wrong with it is told, and the
// environment is built.
func (e Environments) global(ctx context.Context, hash string, platform v1.Platform) (Found, bool) {
	if e.Global == "" {
		return Found{}, false
	}
	tag, err := e.tag(e.Global, tagEnvironment+hash)
	if err == nil {
		var found Found
		var there bool
		if found, there, err = e.look(ctx, tag, hash, platform); err == nil {
			return found, there
		}
	}
	e.progress("warning: the global registry is of no help: %v", err)
	return Found{}, false
}

// copy an image under a tag of the workspace's. Layers are mounted where the registry is the same.
func (e Environments) copy(ctx context.Context, found Found, to name.Tag) error {
	if found.registry != to.Registry {
		layers, err := found.Image.Layers()
		if err != nil {
			return failure(err, fieldRegistry, "copy to "+to.Name(), to.Registry, rollout.ReasonRegistryRefused)
		}
		if err := e.uploads(to.Context()).sendAll(ctx, layers); err != nil {
			return err
		}
	}
	if err := remote.Write(to, found.Image, e.options(ctx)...); err != nil {
		return failure(err, fieldRegistry, "copy to "+to.Name(), to.Registry, rollout.ReasonRegistryRefused)
	}
	return nil
}

func (e Environments) build(ctx context.Context, d *environment.Definition, hash string, to name.Tag, platform v1.Platform) (v1.Hash, error) {
	if e.Builder == nil {
		return v1.Hash{}, refuse(rollout.ReasonNoBuilder, "environment", "set BUILDKIT_HOST to a buildkitd, or start the Docker engine", "environment %s has to be built, and there is no builder", short(hash))
	}
	dir, err := os.MkdirTemp(e.TempDir, "sluice-build-*")
	if err != nil {
		return v1.Hash{}, fmt.Errorf("make build context: %w", err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	if err := d.WriteContext(ctx, dir); err != nil {
		return v1.Hash{}, diskFull(err, "the build's context", "free some, or let TMPDIR name a place with more")
	}
	images := map[string]string{}
	for _, i := range d.Images() {
		images[i.Reference] = i.Digest
	}
	return e.Builder.Build(ctx, build.Request{
		ContextDir: dir, Dockerfile: environment.DockerfileName, Platform: platform, Target: to, Insecure: to.Scheme() == "http",
		CacheRef: to.Context().Tag(tagCache).Name(), NoCache: e.Rebuild, Images: images, Labels: map[string]string{labelEnvironment: hash},
	})
}
