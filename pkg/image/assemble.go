package image

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/sluice-dev/sluice/pkg/project"
	"github.com/sluice-dev/sluice/pkg/runner"
)

const (
	// ProjectDir is where a project is in its image, as in Azure ML.
	ProjectDir = "/var/azureml-app"
	// user and group that nothing else has; replicas do not run as root.
	user = "65532:65532"
	// maxModelLayers keeps an image well under the 127 layers that file systems stack: models beyond
	// share the last of these.
	maxModelLayers = 32
)

// Names of labels and annotations (OCI image specification, annotations).
const (
	ociPrefix     = "org.opencontainers.image."
	labelSource   = ociPrefix + "source"
	labelRevision = ociPrefix + "revision"
	labelBaseName = ociPrefix + "base.name"
	labelBaseSum  = ociPrefix + "base.digest"
	labelArchive  = "dev.sluice.archive"
)

// notFromBase are variables by which a base image would tell the runner what to serve and where.
var notFromBase = []string{"AML_APP_ROOT", "AZUREML_ENTRY_SCRIPT", "AZUREML_SOURCE_DIRECTORY", project.VariableModelDir, "PORT", "SCORING_TIMEOUT_MS"}

// Parts of a version's image.
type Parts struct {
	Base   Found
	Runner v1.Layer
	// Platform of the runner, which the base's must be.
	Platform v1.Platform
	// Archive is the file that project.Package wrote as Package; it must stay there for as long as
	// the image is read.
	Archive string
	Package project.Result
	// Source is the address of the repository, Revision its commit; both may be empty.
	Source, Revision string
}

// Assemble makes a version's image. It reads the archive once or twice for each layer to learn
// digests, and again when the image is pushed; memory does not grow with it. Errors are
// *rollout.Error values for what cannot be in an image or run in it.
func Assemble(p Parts) (v1.Image, error) {
	img, err := assemble(p)
	if err != nil {
		return nil, fmt.Errorf("assemble image: %w", err)
	}
	return img, nil
}

func assemble(p Parts) (v1.Image, error) {
	config, err := versionConfig(p)
	if err != nil {
		return nil, err
	}
	own := []addition{{p.Runner, "runner"}}
	layers, err := projectLayers(p)
	if err != nil {
		return nil, err
	}
	own = append(own, layers...)
	labels := map[string]string{labelBaseName: p.Base.Name, labelBaseSum: p.Base.Digest.String(), labelArchive: p.Package.Digest}
	if p.Source != "" {
		labels[labelSource] = p.Source
	}
	if p.Revision != "" {
		labels[labelRevision] = p.Revision
	}
	return stack(p.Base.Image, p.Platform, own, config, labels)
}

// addition is a layer and what its history says.
type addition struct {
	layer v1.Layer
	what  string
}

// projectLayers are those of the models, in the manifest's order, and the rest of the project.
func projectLayers(p Parts) ([]addition, error) {
	models := p.Package.Manifest.Models
	n := min(len(models), maxModelLayers)
	modelOf := p.Package.Listing.ModelOf()
	layers, err := archiveLayers(p.Archive, ProjectDir, n+1, func(path string) int {
		if i := modelOf(path); i >= 0 {
			return min(i, n-1)
		}
		return n
	}, func(i int) bool { return i == n })
	if err != nil {
		return nil, err
	}
	var out []addition
	for i, l := range layers {
		what := "project"
		switch {
		case i < n-1 || i == n-1 && len(models) == n:
			what = "model " + models[i].Name + " " + models[i].Version
		case i < n:
			what = "models"
		}
		if l != nil {
			out = append(out, addition{l, what})
		}
	}
	return out, nil
}

// versionConfig is how a version's image is run.
func versionConfig(p Parts) (v1.Config, error) {
	base, err := p.Base.Image.ConfigFile()
	if err != nil {
		return v1.Config{}, fmt.Errorf("read base image: %w", err)
	}
	m := p.Package.Manifest
	run, err := m.Scoring.RunnerCommand(m.Settings().Server)
	if err != nil {
		return v1.Config{}, err
	}
	env := variables{}
	for _, kv := range base.Config.Env {
		name, value, _ := strings.Cut(kv, "=")
		if !slices.Contains(notFromBase, name) && !strings.HasPrefix(name, runner.EnvPrefix) {
			env.set(name, value)
		}
	}
	if !env.has("HOME") {
		env.set("HOME", "/tmp") // the user has none, and libraries want to write there
	}
	vars := m.Environment.Variables
	for _, name := range slices.Sorted(maps.Keys(vars)) {
		env.set(name, vars[name])
	}
	env.set(runner.EnvPrefix+"PROJECT_DIR", ProjectDir)
	if dir := p.Package.ModelDir; dir != "" {
		env.set(project.VariableModelDir, ProjectDir+"/"+dir)
	}
	for _, f := range run.Flags {
		env.set(runner.EnvPrefix+strings.ToUpper(strings.ReplaceAll(f.Name, "-", "_")), f.Value)
	}
	return v1.Config{
		Entrypoint: []string{runnerPath}, Cmd: run.What, Env: env, User: user, WorkingDir: ProjectDir,
		ExposedPorts: map[string]struct{}{strconv.Itoa(runner.DefaultPort) + "/tcp": {}},
		Labels:       base.Config.Labels,
	}, nil
}

// variables is a list of NAME=VALUE.
type variables []string

func (e variables) index(name string) int {
	return slices.IndexFunc(e, func(kv string) bool { return strings.HasPrefix(kv, name+"=") })
}

func (e variables) has(name string) bool { return e.index(name) >= 0 }

func (e *variables) set(name, value string) {
	kv := name + "=" + value
	if i := e.index(name); i >= 0 {
		(*e)[i] = kv
		return
	}
	*e = append(*e, kv)
}

// ociTypes are the names that the OCI's specification has for Docker's layers; the bytes are the same.
var ociTypes = map[types.MediaType]types.MediaType{
	types.DockerLayer: types.OCILayer, types.DockerUncompressedLayer: types.OCIUncompressedLayer,
}

// stack puts layers on base and describes the result in the OCI's terms, whatever the base's are: its
// layers may be uncompressed, for which Docker's format has no name that registries agree on. The
// base's own description of itself does not hold for the result and goes.
func stack(base v1.Image, platform v1.Platform, own []addition, config v1.Config, labels map[string]string) (v1.Image, error) {
	was, err := base.ConfigFile()
	if err != nil {
		return nil, fmt.Errorf("read base image: %w", err)
	}
	below, err := base.Layers()
	if err != nil {
		return nil, fmt.Errorf("read base image: %w", err)
	}
	var adds []mutate.Addendum
	for _, l := range below {
		is, err := l.MediaType()
		if err != nil {
			return nil, fmt.Errorf("read base image: %w", err)
		}
		adds = append(adds, mutate.Addendum{Layer: l, MediaType: ociTypes[is]})
	}
	history := slices.Clone(was.History)
	if real := slices.DeleteFunc(slices.Clone(history), func(h v1.History) bool { return h.EmptyLayer }); len(real) != len(below) {
		history = make([]v1.History, len(below)) // it tells of other layers
	}
	for _, a := range own {
		is, err := a.layer.MediaType()
		if err != nil {
			return nil, fmt.Errorf("read layer: %w", err)
		}
		adds = append(adds, mutate.Addendum{Layer: a.layer, MediaType: ociTypes[is]})
		history = append(history, v1.History{CreatedBy: "sluice", Comment: a.what})
	}
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	if img, err = mutate.Append(img, adds...); err != nil {
		return nil, err
	}
	file, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	kept := map[string]string{}
	for name, value := range config.Labels {
		if !strings.HasPrefix(name, ociPrefix) {
			kept[name] = value
		}
	}
	maps.Copy(kept, labels)
	config.Labels = kept
	// Zero times and no name of a machine: what does not tell images apart would make them differ.
	file = &v1.ConfigFile{
		OS: platform.OS, Architecture: platform.Architecture, Variant: was.Variant,
		OSVersion: was.OSVersion, OSFeatures: was.OSFeatures,
		Config: config, RootFS: file.RootFS, History: history,
	}
	if img, err = mutate.ConfigFile(img, file); err != nil {
		return nil, err
	}
	if len(labels) > 0 {
		img = mutate.Annotations(img, labels).(v1.Image)
	}
	return img, nil
}
