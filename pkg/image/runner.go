package image

import (
	"context"
	"debug/elf"
	"fmt"
	"slices"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/sluice-dev/sluice/rollout"
)

// Programs are in every image at programDir/NAME.
const programDir = "/sluice"

// runnerPath is the first process of every replica.
const runnerPath = programDir + "/runner"

// architectures of ELF files, by Go's names.
var architectures = map[elf.Machine]string{elf.EM_X86_64: "amd64", elf.EM_AARCH64: "arm64"}

// programPlatform is the platform of a program's file, which must be a Linux program that needs no
// libraries, since base images may have none. field is the refusals' one: invalid if it is no such program.
func programPlatform(field, file string) (v1.Platform, error) {
	bad := func(format string, args ...any) (v1.Platform, error) {
		return v1.Platform{}, refuse(rollout.ReasonInvalid, field, "build it with `CGO_ENABLED=0 GOOS=linux go build`", "%s %s", file, fmt.Sprintf(format, args...))
	}
	f, err := elf.Open(file)
	if err != nil {
		return bad("is no Linux program: %v", err)
	}
	defer func() { _ = f.Close() }()
	arch, ok := architectures[f.Machine]
	if !ok {
		return bad("is for %s, which is not supported", f.Machine)
	}
	if slices.ContainsFunc(f.Progs, func(p *elf.Prog) bool { return p.Type == elf.PT_INTERP }) {
		return bad("needs libraries that an image may not have")
	}
	return v1.Platform{OS: "linux", Architecture: arch}, nil
}

// RunnerFileLayer is the runner's layer from a static program.
func RunnerFileLayer(file string) (v1.Layer, v1.Platform, error) {
	return runnerFileLayer(file, &memory{})
}

func runnerFileLayer(file string, m *memory) (v1.Layer, v1.Platform, error) {
	p, err := programPlatform(fieldRunner, file)
	if err != nil {
		return nil, p, err
	}
	l, err := fileLayer(file, runnerPath, true, m)
	if err != nil {
		return nil, p, fmt.Errorf("read runner: %w", err)
	}
	return l, p, nil
}

// RunnerImageLayer is the runner's layer taken from Sluice's own runner image (see Product), so that
// all images share one blob of it. Errors are those of Find.
func (c Client) RunnerImageLayer(ctx context.Context, ref string, platform v1.Platform) (v1.Layer, error) {
	found, err := c.Find(ctx, fieldRunner, ref, platform)
	if err != nil {
		return nil, err
	}
	config, err := found.Image.ConfigFile()
	if err != nil {
		return nil, fmt.Errorf("read runner image: %w", err)
	}
	layers, err := found.Image.Layers()
	if err != nil {
		return nil, fmt.Errorf("read runner image: %w", err)
	}
	if len(layers) == 0 || !slices.Equal(config.Config.Entrypoint, []string{runnerPath}) {
		return nil, refuse(rollout.ReasonInvalid, fieldRunner, "name Sluice's own runner image with --runner-image or $SLUICE_RUNNER_IMAGE", "%s is not Sluice's runner: it starts %q", ref, config.Config.Entrypoint)
	}
	return layers[len(layers)-1], nil // see Product
}
