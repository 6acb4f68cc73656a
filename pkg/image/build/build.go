package build

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/exporter/containerimage/exptypes"
	"github.com/moby/buildkit/identity"
	"github.com/moby/buildkit/session"
	"github.com/tonistiigi/fsutil"
	"github.com/tonistiigi/fsutil/types"

	"github.com/sluice-dev/sluice/rollout"
)

// frontend is BuildKit's built-in one: it is asked for no image, unless the Dockerfile has a syntax line.
const frontend = "dockerfile.v0"

// Builder builds images. The zero value works where a builder is found.
type Builder struct {
	// Address of a buildkitd, such as unix:///run/buildkit/buildkitd.sock or tcp://HOST:PORT; default that of
	// the variable BUILDKIT_HOST, and without it the Docker engine of DOCKER_HOST or of its usual socket.
	Address string
	// Keychain has the credentials of registries; nil is authn.DefaultKeychain, which reads Docker's and Podman's.
	Keychain authn.Keychain
	// Progress is told what happens, one line a step; nil is silent.
	Progress func(format string, args ...any)
	// LogDir is where each build leaves its full log, in a file of its own; default the system's for
	// temporary files.
	LogDir string
}

// Request is what to build.
type Request struct {
	// ContextDir has the files that the build may COPY and ADD, no others: all of it is sent to the builder,
	// less what a .dockerignore in it says. Owners, times and modes but for the executable bit do not count.
	ContextDir string
	// Dockerfile is its path in ContextDir, with slashes.
	Dockerfile string
	// Platform of the image. One that is not the builder's needs an emulator there.
	Platform v1.Platform
	// Target is the tag that the image gets in its registry once it is whole.
	Target name.Tag
	// Insecure says that the registry of Target and CacheRef may be spoken to in plain HTTP, or HTTPS without
	// a certificate that is known. Those on loopback may anyhow. For registries of base images the builder's own
	// settings say.
	Insecure bool
	// CacheRef is an image's name under which the registry keeps what steps made; it is read and written, and
	// neither has to succeed. Empty is none.
	CacheRef string
	// NoCache runs all steps again.
	NoCache bool
	// Images pins references of the Dockerfile that name no digest: by reference as written, sha256:HEX.
	Images map[string]string
	// Labels are in the image's configuration, Annotations in its manifest.
	Labels, Annotations map[string]string
}

// Build builds an image, pushes it and returns the digest that its tag then has. The log's path is told to
// Progress at the beginning, and errors name it.
//
// Refusals are *rollout.Error values: build_failed with the step, its exit code and the end of its output;
// base_image_missing; wrong_platform; registry_denied, registry_refused and registry_unreachable for base
// image and target; disk_full; no_builder; invalid for the request; interrupted, which is the context's
// error too, when that ends: the builder then stops, and the tag is as it was.
func (b Builder) Build(ctx context.Context, r Request) (v1.Hash, error) {
	digest, err := b.build(ctx, r)
	if err != nil {
		return v1.Hash{}, fmt.Errorf("build image: %w", err)
	}
	return digest, nil
}

func (b Builder) build(ctx context.Context, r Request) (_ v1.Hash, err error) {
	files, err := r.files()
	if err != nil {
		return v1.Hash{}, err
	}
	if r.Target == (name.Tag{}) {
		return v1.Hash{}, refuse(rollout.ReasonInvalid, fieldTarget, "name a tag in a registry", "the image has no name to be pushed under")
	}
	dir := b.LogDir
	if dir == "" {
		dir = os.TempDir()
	}
	log, err := os.CreateTemp(dir, "sluice-build-*.log")
	if err != nil {
		return v1.Hash{}, fmt.Errorf("make log: %w", err)
	}
	defer func() {
		// A log that is not whole is no reason to fail a build that is.
		_ = log.Close()
	}()
	e, err := b.connect(ctx)
	if err != nil {
		_ = os.Remove(log.Name()) // it says nothing
		return v1.Hash{}, err
	}
	defer e.close()
	progress := b.Progress
	if progress == nil {
		progress = func(string, ...any) {}
	}
	progress("building %s with %s; the full log is %s", r.Target.Name(), e.name, log.Name())
	j := newJournal(log, progress)
	digest, err := e.solve(ctx, r, files, j, b.keychain())
	if err != nil {
		return v1.Hash{}, explanation{err: err, ctx: ctx, journal: j, request: r, builder: e.name, log: log.Name()}.error()
	}
	return digest, nil
}

func (b Builder) keychain() authn.Keychain {
	if b.Keychain == nil {
		return authn.DefaultKeychain
	}
	return b.Keychain
}

// files are the context as it is sent.
func (r Request) files() (fsutil.FS, error) {
	if !filepath.IsLocal(filepath.FromSlash(r.Dockerfile)) {
		return nil, refuse(rollout.ReasonInvalid, fieldDockerfile, "write it relative to the context", "%q is not a path in the build's context", r.Dockerfile)
	}
	if _, err := os.Stat(filepath.Join(r.ContextDir, filepath.FromSlash(r.Dockerfile))); err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return nil, refuse(rollout.ReasonInvalid, fieldDockerfile, "check its path", "there is no %s in the build's context", r.Dockerfile)
		}
		return nil, fmt.Errorf("read Dockerfile: %w", err)
	}
	dir, err := fsutil.NewFS(r.ContextDir)
	if err != nil {
		return nil, fmt.Errorf("read build context: %w", err)
	}
	dir, err = fsutil.NewFilterFS(dir, &fsutil.FilterOpt{Map: func(_ string, s *types.Stat) fsutil.MapResult {
		plain(s)
		return fsutil.MapResultKeep
	}})
	if err != nil {
		return nil, fmt.Errorf("read build context: %w", err)
	}
	return dir, nil
}

// plain takes from a file what differs between machines and means nothing.
func plain(s *types.Stat) {
	s.Uid, s.Gid, s.ModTime, s.Xattrs = 0, 0, 0, nil
	mode := os.FileMode(s.Mode)
	perm := os.FileMode(0o644)
	switch {
	case mode&os.ModeSymlink != 0:
		perm = 0o777
	case mode.IsDir() || mode&0o100 != 0:
		perm = 0o755
	}
	s.Mode = uint32(mode.Type() | perm)
}

// solve has the engine build and push.
func (e *engine) solve(ctx context.Context, r Request, files fsutil.FS, j *journal, keys authn.Keychain) (v1.Hash, error) {
	opt := client.SolveOpt{
		Frontend:      frontend,
		FrontendAttrs: r.attributes(),
		LocalMounts:   map[string]fsutil.FS{"context": files, "dockerfile": files},
		Session:       []session.Attachable{newCredentials(keys)},
		// The builder keeps contexts of one key and takes a file for unchanged if its size and time are, and here all
		// times are the same; so each build gets a key of its own.
		SharedKey: identity.NewID(),
		Exports:   []client.ExportEntry{{Type: client.ExporterImage, Attrs: r.export()}},
	}
	if r.CacheRef != "" {
		attrs := map[string]string{"ref": r.CacheRef}
		if r.Insecure {
			attrs["registry.insecure"] = "true"
		}
		opt.CacheImports = []client.CacheOptionsEntry{{Type: "registry", Attrs: maps.Clone(attrs)}}
		maps.Copy(attrs, map[string]string{"mode": "max", "oci-mediatypes": "true", "image-manifest": "true", "ignore-error": "true"})
		opt.CacheExports = []client.CacheOptionsEntry{{Type: "registry", Attrs: attrs}}
	}
	said, err := e.once(ctx, opt, j)
	if e.docker != nil && err != nil && strings.Contains(err.Error(), noExporter) {
		// Nothing has been built: exporters are looked for first.
		return e.solveInStore(ctx, r, opt, j, keys)
	}
	if err != nil {
		return v1.Hash{}, err
	}
	digest, err := v1.NewHash(said[exptypes.ExporterImageDigestKey])
	if err != nil {
		return v1.Hash{}, fmt.Errorf("read digest of the image: %w", err)
	}
	return digest, nil
}

// once solves while the journal is kept, which is whole when it returns.
func (e *engine) once(ctx context.Context, opt client.SolveOpt, j *journal) (map[string]string, error) {
	status := make(chan *client.SolveStatus)
	kept := make(chan struct{})
	go func() {
		defer close(kept)
		j.keep(status)
	}()
	said, err := e.client.Solve(ctx, nil, opt, status)
	<-kept // Solve closes the channel
	if err != nil {
		return nil, err
	}
	return said.ExporterResponse, nil
}

// attributes are what the frontend is told.
func (r Request) attributes() map[string]string {
	attrs := map[string]string{
		"filename": r.Dockerfile,
		"platform": r.Platform.String(),
		// The specification of reproducible builds: all times that end up in the image.
		"build-arg:SOURCE_DATE_EPOCH": "0",
	}
	if r.NoCache {
		attrs["no-cache"] = ""
	}
	for name, value := range r.Labels {
		attrs["label:"+name] = value
	}
	for ref, digest := range r.Images {
		// A named context stands in for an image of that name.
		attrs["context:"+ref] = "docker-image://" + withoutTag(ref) + "@" + digest
	}
	return attrs
}

// withoutTag is the name of a reference's repository as written.
func withoutTag(ref string) string {
	if i := strings.LastIndexByte(ref, ':'); i > strings.LastIndexByte(ref, '/') {
		return ref[:i]
	}
	return ref
}

// export is what the exporter is told.
func (r Request) export() map[string]string {
	attrs := map[string]string{
		string(exptypes.OptKeyName):             r.Target.Name(),
		string(exptypes.OptKeyPush):             "true",
		string(exptypes.OptKeyOCITypes):         "true",
		string(exptypes.OptKeyRewriteTimestamp): "true",
		// Else a builder that has an image store keeps the image there, under its name.
		string(exptypes.OptKeyStore): "false",
	}
	// Plain HTTP on loopback is known to the builder for what it reads, but not for what it pushes.
	if r.Insecure || r.Target.Scheme() == "http" {
		attrs[string(exptypes.OptKeyInsecure)] = "true"
	}
	for name, value := range r.Annotations {
		attrs["annotation."+name] = value
	}
	return attrs
}
