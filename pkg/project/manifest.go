package project

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"sigs.k8s.io/yaml"

	"github.com/sluice-dev/sluice/rollout"
)

// The manifest's name, kind and limits.
const (
	// ManifestName is the manifest's file name at the project's root.
	ManifestName = "sluice.yaml"
	// Kind of the manifest; its apiVersion is rollout.APIVersion.
	Kind = "Project"
	// MaxManifestSize in bytes.
	MaxManifestSize = 1 << 20
	// MaxModels that one project may name.
	MaxModels = 1000
)

// Manifest is the content of sluice.yaml: what a project ships and how it is run.
type Manifest struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	// Endpoint is the name of the endpoint that the project's versions join.
	Endpoint    string      `json:"endpoint"`
	Models      []Model     `json:"models,omitempty"`
	Environment Environment `json:"environment,omitzero"`
	Scoring     Scoring     `json:"scoring"`
	// Include holds patterns of paths that ship even if ignored or secret-looking.
	// A pattern is anchored at the project's root; * and ? stop at a slash, ** as
	// a whole component stands for any number of directories, and a pattern that
	// names a directory names all below it.
	Include []string `json:"include,omitempty"`
	Test    *Test    `json:"test,omitempty"`
	// Version holds the settings of the versions made from the project; its server
	// stays empty (see Settings).
	Version  rollout.Settings  `json:"version,omitzero"`
	Strategy *rollout.Strategy `json:"strategy,omitempty"`
}

// Model is a set of model files: one file or one directory.
type Model struct {
	Name    string `json:"name"`
	Version string `json:"version"`
	// Path of the file or directory, relative to the project's root.
	Path string `json:"path,omitempty"`
	// URI names a model elsewhere, instead of Path: oci://REGISTRY/NAME:TAG (or @sha256:…), as `sluice model push`
	// pushes them, or https://HOST/FILE, a single file, with its SHA256.
	URI    string `json:"uri,omitempty"`
	SHA256 string `json:"sha256,omitempty"`
}

// SchemeOCI is that of models in registries.
const SchemeOCI = "oci"

// Environment is what the project needs around its code. Only BaseImage and Variables
// are supported yet.
type Environment struct {
	// BaseImage is the image that versions are built on, by tag or digest. One machine has
	// none and refuses it.
	BaseImage    string   `json:"baseImage,omitempty"`
	DockerSteps  []string `json:"dockerSteps,omitempty"`
	Dockerfile   string   `json:"dockerfile,omitempty"`
	Conda        string   `json:"conda,omitempty"`
	Requirements string   `json:"requirements,omitempty"`
	// Variables of the process; a version's environmentVariables override them.
	Variables map[string]string `json:"variables,omitempty"`
}

// Mode says how the entry script is run.
type Mode string

// The modes.
const (
	// ModeServe (the default): Sluice's own server calls the script's init and run.
	ModeServe Mode = "serve"
	// ModeScript: the script is run literally, `python SCRIPT ARGUMENTS`, and serves
	// HTTP itself on the port in $PORT, or on the server's port if given.
	ModeScript Mode = "script"
)

// Scoring says what answers requests: an entry script or a command.
type Scoring struct {
	// EntryScript is relative to SourceDirectory.
	EntryScript string `json:"entryScript,omitempty"`
	// SourceDirectory is the working directory, relative to the project's root,
	// which it is if empty.
	SourceDirectory string `json:"sourceDirectory,omitempty"`
	// Arguments are the script's sys.argv[1:].
	Arguments []string `json:"arguments,omitempty"`
	Mode      Mode     `json:"mode,omitempty"`
	// Command runs a server of the project's own instead of a script.
	Command []string `json:"command,omitempty"`
	Server  *Server  `json:"server,omitempty"`
}

// Server says where a project's own server listens.
type Server struct {
	// Port that it listens on; 0 or absent means the one in $PORT.
	Port       int    `json:"port,omitempty"`
	ScorePath  string `json:"scorePath,omitempty"`
	HealthPath string `json:"healthPath,omitempty"`
}

// Test is the smoke test that a version passes before it gets traffic.
type Test struct {
	// Request is the path of a file with the request's body.
	Request string `json:"request"`
	Expect  Expect `json:"expect,omitzero"`
}

// Expect says which answer passes the smoke test.
type Expect struct {
	// Status that is expected; 0 or absent means 200.
	Status int `json:"status,omitempty"`
	// Contains, if not empty, must occur in the answer's body.
	Contains string `json:"contains,omitempty"`
}

// EffectiveMode of the entry script.
func (s Scoring) EffectiveMode() Mode {
	if s.Mode == "" {
		return ModeServe
	}
	return s.Mode
}

// Settings are those of a version made from the project: m.Version, with the server
// if the project brings its own (by command, or by a script in mode script; the
// latter has no command here, since which Python runs it is the replica's business).
func (m *Manifest) Settings() rollout.Settings {
	s := m.Version
	if len(m.Scoring.Command) == 0 && m.Scoring.EffectiveMode() != ModeScript {
		return s
	}
	s.Server = &rollout.Server{Command: m.Scoring.Command}
	if own := m.Scoring.Server; own != nil {
		s.Server.Port, s.Server.ScorePath, s.Server.HealthPath = own.Port, own.ScorePath, own.HealthPath
	}
	return s
}

// Marshal writes m as YAML that Parse reads back.
func (m *Manifest) Marshal() ([]byte, error) {
	b, err := yaml.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("write manifest: %w", err)
	}
	return b, nil
}

// Parse reads a manifest from data; file names it in errors. It checks all that can
// be checked without the project's files. The error joins one *Error per mistake,
// at most 20 of them.
func Parse(file string, data []byte) (*Manifest, error) {
	m, d := decodeManifest(file, data)
	if m != nil {
		for _, e := range m.check() {
			d.report(e)
		}
	}
	if len(d.errs) > 0 {
		return nil, joinPositioned(d.errs)
	}
	return m, nil
}

// Option of what reads a project: a Check, or a Given manifest.
type Option interface{ apply(*options) }

type options struct {
	checks []Check
	given  *Given
}

func optionsOf(opts []Option) options {
	var o options
	for _, opt := range opts {
		opt.apply(&o)
	}
	return o
}

// Check is a rule beyond the manifest's own, such as one of the target that its versions
// are for. It gets a manifest that may break other rules, and returns a refusal for each
// mistake, its Field as the manifest has it.
type Check func(*Manifest) []*rollout.Error

func (c Check) apply(o *options) { o.checks = append(o.checks, c) }

// Load reads the manifest of the project in dir and checks it against the files
// that it names and the further checks. Errors are those of Parse; those about a
// Given manifest have the places that it came from.
func Load(dir string, opts ...Option) (*Manifest, error) {
	return load(dir, optionsOf(opts))
}

func load(dir string, o options) (*Manifest, error) {
	t, err := openTree(dir)
	if err != nil {
		return nil, err
	}
	defer t.close()
	data, err := o.manifest(t)
	if err != nil {
		return nil, err
	}
	m, d := decodeManifest(ManifestName, data)
	if m != nil {
		for _, e := range m.check() {
			d.report(e)
		}
		more, err := m.checkFiles(t)
		if err != nil {
			return nil, err
		}
		for _, check := range o.checks {
			more = append(more, check(m)...)
		}
		for _, e := range more {
			d.report(e)
		}
	}
	if len(d.errs) > 0 {
		return nil, joinPositioned(o.given.placed(d.errs))
	}
	return m, nil
}

// LoadEnvironment reads the environment of the project in dir, for what only looks at it: the manifest
// is checked as by Parse, but not against the files that it names.
func LoadEnvironment(dir string, opts ...Option) (Environment, error) {
	o := optionsOf(opts)
	t, err := openTree(dir)
	if err != nil {
		return Environment{}, err
	}
	defer t.close()
	data, err := o.manifest(t)
	if err != nil {
		return Environment{}, err
	}
	m, d := decodeManifest(ManifestName, data)
	if m != nil {
		for _, e := range m.check() {
			d.report(e)
		}
	}
	if len(d.errs) > 0 {
		return Environment{}, joinPositioned(o.given.placed(d.errs))
	}
	return m.Environment, nil
}

// foreignManifests are files that say "this is a project", but not in a form that
// Load reads.
var foreignManifests = []struct {
	name   string
	reason rollout.Reason
	hint   string
}{
	{"sluice.yml", rollout.ReasonInvalid, "rename sluice.yml to sluice.yaml"},
	{"inferenceconfig.json", rollout.ReasonInvalid, azureHint},
	{"deploymentconfig.json", rollout.ReasonInvalid, azureHint},
}

const azureHint = "Azure ML's configuration files are read where they are named: give -ic FILE and -dc FILE, or make a sluice.yaml of them with `sluice convert`"

func readManifest(t *tree) ([]byte, error) {
	whole := func(reason rollout.Reason, hint, format string, args ...any) error {
		return &Error{File: ManifestName, Refusal: refuse(reason, "", hint, format, args...)}
	}
	f, err := openFile(t.root, ManifestName)
	if errors.Is(err, fs.ErrNotExist) {
		for _, other := range foreignManifests {
			if _, err := t.root.Lstat(other.name); err == nil {
				return nil, whole(other.reason, other.hint, "there is no %s in %s", ManifestName, t.dir)
			}
		}
		return nil, whole(rollout.ReasonInvalid, "write one at the project's root, or name the directory that has it",
			"there is no %s in %s", ManifestName, t.dir)
	}
	if err != nil {
		return nil, whole(rollout.ReasonUnsafeFile, "make it a readable file inside the project", "cannot be read: %v", err)
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("read manifest: %w", err)
	}
	if !info.Mode().IsRegular() {
		return nil, whole(rollout.ReasonUnsafeFile, "make it a file", "is %s, not a file", kindName(info.Mode()))
	}
	data, err := io.ReadAll(io.LimitReader(f, MaxManifestSize+1))
	if err != nil {
		return nil, fmt.Errorf("read manifest: %w", err)
	}
	return data, nil
}

// openTree opens the directory that everything is read below.
func openTree(dir string) (*tree, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("open project: %w", err)
	}
	root, err := os.OpenRoot(abs)
	if err != nil {
		return nil, fmt.Errorf("open project: %w", err)
	}
	return &tree{dir: abs, root: root}, nil
}
