package image

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/sluice-dev/sluice/pkg/deploy"
	"github.com/sluice-dev/sluice/pkg/image/environment"
	"github.com/sluice-dev/sluice/pkg/project"
	"github.com/sluice-dev/sluice/pkg/runner"
	"github.com/sluice-dev/sluice/rollout"
)

const (
	// ProjectDir is where a project is in its image, as in Azure ML.
	ProjectDir = "/var/azureml-app"
	// createdBy is what the history says of layers that are Sluice's.
	createdBy = "sluice"
	// user and group that nothing else has; replicas do not run as root.
	user = "65532:65532"
)

// Names of labels and annotations (OCI image specification, annotations).
const (
	ociPrefix     = "org.opencontainers.image."
	labelSource   = ociPrefix + "source"
	labelRevision = ociPrefix + "revision"
	labelBaseName = ociPrefix + "base.name"
	labelBaseSum  = ociPrefix + "base.digest"
	// labelModels has the set digest of the models' files, see SetDigest.
	labelModels = "dev.sluice.models"
	// labelInputs has the environment.Summary of what the image stands on, in JSON, so that a later one can say
	// what differs.
	labelInputs = "dev.sluice.environment.inputs"
)

// maxInputs bounds that label, in bytes: it is read with each image.
const maxInputs = 32 << 10

// inputs is a summary for the label. Inputs of many items, such as a build's context, lose these first: their digest
// still says that they differ.
func inputs(s environment.Summary) (string, error) {
	s.Inputs = slices.Clone(s.Inputs)
	for {
		b, err := json.Marshal(s)
		if err != nil || len(b) <= maxInputs {
			return string(b), err
		}
		most := 0
		for i := range s.Inputs {
			if len(s.Inputs[i].Items) > len(s.Inputs[most].Items) {
				most = i
			}
		}
		if len(s.Inputs) == 0 || len(s.Inputs[most].Items) == 0 {
			return "", nil
		}
		s.Inputs[most].Items = nil
	}
}

// InputsOf reads what an image says of its environment; false if it says nothing that can be read.
func InputsOf(img v1.Image) (environment.Summary, bool) {
	var s environment.Summary
	config, err := img.ConfigFile()
	if err != nil || json.Unmarshal([]byte(config.Config.Labels[labelInputs]), &s) != nil {
		return environment.Summary{}, false
	}
	return s, true
}

// notFromBase are variables by which a base image would tell the runner what to serve and where.
var notFromBase = []string{"AML_APP_ROOT", "AZUREML_ENTRY_SCRIPT", "AZUREML_SOURCE_DIRECTORY", project.VariableModelDir, "PORT", "SCORING_TIMEOUT_MS"}

// Parts of a version's image.
type Parts struct {
	Base   Found
	Runner v1.Layer
	// Platform of the runner, which the base's must be.
	Platform v1.Platform
	Package  project.Result
	// Models are those that the manifest names by uri, fetched.
	Models []Model
	// Environment that Base is the image of.
	Environment deploy.Environment
	// Source is the address of the repository, Revision its commit; both may be empty.
	Source, Revision string
	// layers of the project, and the SHA-256 of its models' files.
	layers []addition
	sums   map[string]string
}

// Assemble makes a version's image. What has not changed since it was last hashed is not read, and
// nothing is read again before the image is; memory does not grow with it. ready, which may be nil, gets each layer of the
// project as soon as its digest is known, several at once. The image can be read for as long as ctx lasts and the
// project stays as it is. Errors are *rollout.Error values for what cannot be in an image or run in it.
func Assemble(ctx context.Context, p Parts, ready func(context.Context, v1.Layer) error) (v1.Image, error) {
	c, err := Client{}.planContents(ctx, projectFiles(p.Package.Listing, modelLinks(p.Models)), &memory{})
	if err == nil {
		p.layers, p.sums, err = c.layers(ctx, ready)
	}
	if err != nil {
		return nil, fmt.Errorf("assemble image: %w", err)
	}
	return assemble(p)
}

// assemble an image of which the layers are there.
func assemble(p Parts) (v1.Image, error) {
	fail := func(err error) (v1.Image, error) { return nil, fmt.Errorf("assemble image: %w", err) }
	config, err := versionConfig(p)
	if err != nil {
		return fail(err)
	}
	if p.Environment.Hash != "" {
		about, err := inputs(p.Environment.Summary)
		if err != nil {
			return fail(err)
		}
		// Not an annotation, as the others are too: those are fetched with each manifest.
		config.Labels = maps.Clone(config.Labels)
		if config.Labels == nil {
			config.Labels = map[string]string{}
		}
		config.Labels[labelInputs] = about
	}
	sums := maps.Clone(p.sums)
	labels := map[string]string{labelBaseName: p.Base.Name, labelBaseSum: p.Base.Digest.String()}
	// Models from elsewhere lie below what is Sluice's and the project's, over which they have no say; over the base image
	// they have: whoever pushes a model is trusted with that.
	var own []addition
	for _, m := range p.Models {
		own = append(own, m.layers...)
		for _, f := range m.Files {
			sums[m.Name+"/"+m.Version+"/"+f.Path] = f.SHA256
		}
	}
	own = append(append(own, addition{p.Runner, "runner"}), p.layers...)
	var models string
	if len(sums) > 0 {
		models = SetDigest(sums)
	}
	for name, value := range map[string]string{
		labelModels: models, labelEnvironment: p.Environment.Hash, labelSource: p.Source, labelRevision: p.Revision,
	} {
		if value != "" {
			labels[name] = value
		}
	}
	img, err := stack(p.Base.Image, p.Platform, own, config, labels)
	if err != nil {
		return fail(err)
	}
	return img, nil
}

// countLayers refuses more layers than nodes can stack, before any is made.
func countLayers(base v1.Image, models []Model, parts int) error {
	below, err := base.Layers()
	if err != nil {
		return fmt.Errorf("read base image: %w", err)
	}
	fetched := 0
	for _, m := range models {
		fetched += len(m.layers)
	}
	if n := len(below) + fetched + 1 + parts; n > maxLayers {
		return refuse(rollout.ReasonTooManyModels, "models", "push files that belong together as one model with `sluice model push`, or use a base image of fewer layers",
			"the image would have %d layers: %d of the base image, %d of models with a uri, %d of the project and 1 of the runner; file systems take %d", n, len(below), fetched, parts, maxLayers)
	}
	return nil
}

// addition is a layer and what its history says.
type addition struct {
	layer v1.Layer
	what  string
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
		history = append(history, v1.History{CreatedBy: createdBy, Comment: a.what})
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
