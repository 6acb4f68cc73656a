package environment

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/sluice-dev/sluice/pkg/project"
	"github.com/sluice-dev/sluice/rollout"
)

// DefaultMicromamba is the image that micromamba comes from where the base image has neither it nor
// conda.
const DefaultMicromamba = "docker.io/mambaorg/micromamba:2.3.3"

// DefaultPlatform of environments.
const DefaultPlatform = "linux/amd64"

// Image is what a reference names at a moment.
type Image struct {
	// Digest, sha256:HEX, of its manifest for the platform.
	Digest string
	// Env of its configuration, NAME=VALUE. It tells whether the image has conda or micromamba and does not
	// count itself, since the digest does; it may be left out.
	Env []string
}

// Options of Load.
type Options struct {
	// Platform, linux/ARCHITECTURE[/VARIANT], default DefaultPlatform.
	Platform string
	// Resolve finds out what a reference names for the platform. It is asked once for the base image,
	// and for each image that docker steps or the Dockerfile name without a digest. field is the manifest's,
	// for refusals.
	Resolve func(ctx context.Context, field, ref string) (Image, error)
	// Micromamba is the image that has it as /bin/micromamba, default DefaultMicromamba. It counts, as written,
	// in environments from a Conda definition.
	Micromamba string
	// Files are contents, by name, of files that belong at the project's root and are not there: project.Given's.
	Files map[string][]byte
	// Besides are files and directories that never count, such as what an image is being written to.
	Besides []fs.FileInfo
}

// NamedImage is an image that a docker step or the project's Dockerfile names without a digest.
type NamedImage struct {
	// Reference as written, Digest what it named when the definition was loaded.
	Reference string `json:"reference"`
	Digest    string `json:"digest"`
}

// Definition is an environment with all that determines it, as it was when it was loaded.
type Definition struct {
	dir        string // absolute
	given      map[string][]byte
	platform   string
	micromamba string
	baseRef    string
	base       Image
	images     []NamedImage // sorted by reference
	steps      []string     // with LF
	dockerfile *ownDockerfile
	// context holds what steps or Dockerfile may copy, packages what the installing of packages reads;
	// both by paths from the project's root.
	context, packages fileSet
	conda             *condaFile
	requirements      string // path of the file, "" if there is none
	pip               []pipLine
	// sources are the definition's own files that packages are installed from; they count by their lines.
	sources []source
	// sourceLinks lead to them; as their names, they do not count.
	sourceLinks []entry
}

// source is a file as it was read, by its path from the project's root without links.
type source struct {
	path string
	data []byte
}

// ownDockerfile is the project's.
type ownDockerfile struct{ path, text string }

var (
	platformPattern = regexp.MustCompile(`^linux/[a-z0-9_]+(/[a-z0-9]+)?$`)
	digestPattern   = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)
)

// Load reads what determines the environment of the project in dir. It reads all files that count, so
// its time grows with them; its memory does not. What is wrong is a *rollout.Error with the field, or
// a *project.Error with file and line, that says what to do; errors of Resolve are passed on.
func Load(ctx context.Context, dir string, env project.Environment, o Options) (*Definition, error) {
	d, err := load(ctx, dir, env, o)
	if err != nil {
		return nil, fmt.Errorf("load environment: %w", err)
	}
	return d, nil
}

// loader is what loading needs besides the definition.
type loader struct {
	*Definition
	t       *tree // nil if files are not looked at
	resolve func(ctx context.Context, field, ref string) (Image, error)
}

func load(ctx context.Context, dir string, env project.Environment, o Options) (*Definition, error) {
	platform, err := normalPlatform(o.Platform)
	if err != nil {
		return nil, err
	}
	if err := exclusive(env); err != nil {
		return nil, err
	}
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("open project: %w", err)
	}
	t, err := openTree(abs)
	if err != nil {
		return nil, err
	}
	defer t.close()
	t.given = o.Files
	t.besides = o.Besides
	l := loader{t: t, resolve: o.Resolve, Definition: &Definition{
		dir: abs, given: o.Files, platform: platform, micromamba: o.Micromamba, context: fileSet{}, packages: fileSet{},
	}}
	if l.micromamba == "" {
		l.micromamba = DefaultMicromamba
	}
	if env.Dockerfile != "" {
		if err := l.loadDockerfile(ctx, env.Dockerfile); err != nil {
			return nil, err
		}
		return l.Definition, nil
	}
	if err := t.readIgnore(".dockerignore"); err != nil {
		return nil, err
	}
	l.baseRef = env.BaseImage
	if l.base, err = l.find(ctx, fieldBase, env.BaseImage); err != nil {
		return nil, err
	}
	for i, s := range env.DockerSteps {
		if err := l.loadStep(ctx, place{field: fmt.Sprintf("%s[%d]", fieldSteps, i)}, s); err != nil {
			return nil, err
		}
	}
	switch {
	case env.Conda != "":
		err = l.loadConda(ctx, env.Conda)
	case env.Requirements != "":
		err = l.loadRequirements(ctx, env.Requirements)
	}
	if err != nil {
		return nil, err
	}
	return l.Definition, nil
}

// exclusive refuses what cannot stand together.
func exclusive(env project.Environment) error {
	if env.Dockerfile != "" {
		for _, other := range []struct {
			field string
			set   bool
		}{
			{fieldBase, env.BaseImage != ""},
			{fieldSteps, len(env.DockerSteps) > 0},
			{fieldConda, env.Conda != ""},
			{fieldRequirements, env.Requirements != ""},
		} {
			if other.set {
				return refuse(rollout.ReasonInvalid, other.field, "keep one of them; what it says can stand in the Dockerfile", "a Dockerfile of the project's own and %s exclude each other", strings.TrimPrefix(other.field, "environment."))
			}
		}
		return nil
	}
	if env.BaseImage == "" {
		return refuse(rollout.ReasonInvalid, fieldBase, "write one with what the script needs, such as python:3.12-slim, or name it with --base-image or $SLUICE_BASE_IMAGE", "the project names no base image")
	}
	if env.Conda != "" && env.Requirements != "" {
		return refuse(rollout.ReasonInvalid, fieldRequirements, "keep one of them; a Conda definition can name requirements under `pip:` as `-r FILE`", "conda and requirements exclude each other")
	}
	return nil
}

// Architecture is what images call an architecture that has other names elsewhere, such as with `uname -m`: containerd's rules, but for
// those of 32 bits, which would be others' hashes.
func Architecture(name string) string {
	switch name {
	case "aarch64":
		return "arm64"
	case "x86_64", "x86-64":
		return "amd64"
	}
	return name
}

// ParsePlatform reads OS/ARCHITECTURE[/VARIANT], the architecture by any of its names.
func ParsePlatform(text string) (*v1.Platform, error) {
	p, err := v1.ParsePlatform(text)
	if err != nil {
		return nil, err
	}
	p.Architecture = Architecture(p.Architecture)
	return p, nil
}

// normalPlatform gives each platform one name: variants that are an architecture's only ones go.
func normalPlatform(p string) (string, error) {
	if p == "" {
		p = DefaultPlatform
	}
	given := p
	if parts := strings.Split(p, "/"); len(parts) > 1 {
		parts[1] = Architecture(parts[1])
		p = strings.Join(parts, "/")
	}
	if !platformPattern.MatchString(p) {
		return "", refuse(rollout.ReasonInvalid, fieldPlatform, "write it as linux/amd64 or linux/arm64", "%q is not a platform for images", given)
	}
	switch p {
	case "linux/arm64/v8":
		p = "linux/arm64"
	case "linux/amd64/v1":
		p = "linux/amd64"
	}
	return p, nil
}

// find asks what a reference names.
func (l *loader) find(ctx context.Context, field, ref string) (Image, error) {
	if l.resolve == nil {
		return Image{}, errors.New("find image: nothing is given that resolves references")
	}
	// Whoever resolves it may know the digest, and not look at the name.
	if e := project.CheckImage(field, ref); e != nil {
		return Image{}, e
	}
	img, err := l.resolve(ctx, field, ref)
	if err != nil {
		return Image{}, err
	}
	if !digestPattern.MatchString(img.Digest) {
		return Image{}, refuse(rollout.ReasonInvalid, field, "give it as sha256: and 64 hex digits, in lower case", "%q is not the digest of %s", img.Digest, ref)
	}
	return img, nil
}

// named notes an image that is named without a digest.
func (l *loader) named(ctx context.Context, field, ref string) error {
	at, known := slices.BinarySearchFunc(l.images, ref, func(i NamedImage, ref string) int { return strings.Compare(i.Reference, ref) })
	if known {
		return nil
	}
	img, err := l.find(ctx, field, ref)
	if err != nil {
		return err
	}
	l.images = slices.Insert(l.images, at, NamedImage{Reference: ref, Digest: img.Digest})
	return nil
}

// Platform that the environment is for.
func (d *Definition) Platform() string { return d.platform }

// Base is the base image's reference as written and its digest; both are empty with a Dockerfile of
// the project's own.
func (d *Definition) Base() (ref, digest string) { return d.baseRef, d.base.Digest }

// Images are those that docker steps or the project's Dockerfile name without a digest, in the order
// of their references. A build has to pin them to these digests (BuildKit: the named context
// `context:REFERENCE=docker-image://NAME@DIGEST`), since both leave the references as they are.
func (d *Definition) Images() []NamedImage { return slices.Clone(d.images) }

// Needed says whether an image must be built: the base image alone does not do.
func (d *Definition) Needed() bool {
	return d.dockerfile != nil || len(d.steps) > 0 || d.conda != nil || d.requirements != ""
}
