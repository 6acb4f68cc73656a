package cli

import (
	"github.com/spf13/pflag"

	"github.com/sluice-dev/sluice/pkg/deploy"
	"github.com/sluice-dev/sluice/pkg/image"
	"github.com/sluice-dev/sluice/pkg/image/build"
	"github.com/sluice-dev/sluice/pkg/project"
)

// registryFlags say what images of versions are made of, and where they go.
type registryFlags struct {
	registry, pullRegistry string
	globalRegistry         string
	rebuild                bool
	baseImage              string
	runnerImage            string
	platform               string
	insecure               []string
}

// imageFlags are the flags of every command that makes a version's image.
func (a *app) imageFlags(f *pflag.FlagSet) {
	env := func(name string) string { return a.io.Getenv("SLUICE_" + name) }
	r := &a.images
	f.StringVar(&r.registry, "registry", env("REGISTRY"), "registry and path that images go to, HOST[:PORT][/PATH] (target kubernetes; $SLUICE_REGISTRY)")
	f.StringVar(&r.globalRegistry, "global-registry", env("GLOBAL_REGISTRY"), "registry and path that is looked for images of environments too ($SLUICE_GLOBAL_REGISTRY)")
	f.BoolVar(&r.rebuild, "rebuild", false, "build the environment's image even if there is one")
	f.StringVar(&r.baseImage, "base-image", env("BASE_IMAGE"), "base image for projects that name none ($SLUICE_BASE_IMAGE)")
	f.StringVar(&r.runnerImage, "runner-image", env("RUNNER_IMAGE"), "Sluice's runner image ($SLUICE_RUNNER_IMAGE)")
	f.StringVar(&r.platform, "platform", env("PLATFORM"), "OS/ARCHITECTURE of images (default linux/amd64)")
	a.insecureFlag(f)
}

// insecureFlag is of every command that speaks to registries.
func (a *app) insecureFlag(f *pflag.FlagSet) {
	f.StringSliceVar(&a.images.insecure, "insecure-registry", nil, "HOST[:PORT] that may be spoken to in plain HTTP")
}

// imageShipper makes images as the flags say.
func (a *app) imageShipper(src project.Source, progress deploy.Progress) image.Shipper {
	f := &a.images
	return image.Shipper{
		CacheDir: image.DefaultCacheDir(), Manifest: a.manifest,
		Client:   image.Client{Insecure: f.insecure, Progress: progress},
		Registry: f.registry, PullRegistry: f.pullRegistry, BaseImage: f.baseImage, RunnerImage: f.runnerImage, Platform: f.platform, Source: src,
		ModelQuery:     func(model string) string { return a.io.Getenv(project.ModelQueryVariable(model)) },
		GlobalRegistry: f.globalRegistry, Rebuild: f.rebuild, Builder: build.Builder{Progress: progress},
	}
}
