package local

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/sluice-dev/sluice/pkg/cluster"
	"github.com/sluice-dev/sluice/pkg/project"
	"github.com/sluice-dev/sluice/rollout"
)

// Launch is how a replica's process is started: the host's runner command, the
// flags of socket and lifeline, then Args.
type Launch struct {
	// Dir is the working directory.
	Dir  string
	Args []string
	// Env are variables, NAME=VALUE, beside the few that the host passes on.
	Env []string
}

// Launcher makes a version ready to run on this machine and says how to. Prepare is
// called before every start, so it must be quick when all is there. Its errors carry
// the reason (image_missing if none) that the fleet shows.
type Launcher interface {
	Prepare(ctx context.Context, spec cluster.FleetSpec) (Launch, error)
}

// ProjectLauncher runs projects from archives with the runner of pkg/runner.
type ProjectLauncher struct{ Archives *Archives }

// Prepare implements Launcher.
func (p ProjectLauncher) Prepare(ctx context.Context, spec cluster.FleetSpec) (Launch, error) {
	digest, err := DigestOf(spec.Image)
	if err != nil {
		return Launch{}, err
	}
	dir, err := p.Archives.Unpack(ctx, digest)
	if err != nil {
		return Launch{}, err
	}
	m, err := project.Load(dir, project.Check(CheckProject))
	if err != nil {
		return Launch{}, fmt.Errorf("read manifest of %s: %w", spec.Image, err)
	}
	if err := joined(unsupported("version", spec.Settings)); err != nil {
		return Launch{}, err
	}
	models, err := m.ModelDir(dir)
	if err != nil {
		return Launch{}, fmt.Errorf("find models of %s: %w", spec.Image, err)
	}
	run, err := m.Scoring.RunnerCommand(spec.Settings.Server)
	if err != nil {
		return Launch{}, err
	}
	args := []string{
		"--project-dir=" + dir,
		"--fleet=" + spec.Key.String(),
		"--max-concurrent-requests=" + strconv.Itoa(spec.Settings.Slots()),
		"--scoring-timeout=" + spec.Settings.ScoringTimeout().String(),
	}
	if models != "" {
		args = append(args, "--model-dir="+models)
	}
	return Launch{
		Dir: dir, Args: append(args, run.Args()...),
		Env: variables(m.Environment.Variables, spec.Settings.EnvironmentVariables),
	}, nil
}

// variables of the project, and those of the version over them.
func variables(ofProject map[string]string, ofVersion map[string]rollout.EnvValue) []string {
	all := map[string]string{}
	maps.Copy(all, ofProject)
	for name, v := range ofVersion {
		all[name] = v.Value
	}
	out := make([]string, 0, len(all))
	for name, v := range all {
		out = append(out, name+"="+v)
	}
	slices.Sort(out)
	return out
}

// inheritedNames and inheritedPrefixes are all that replicas get of the host's own
// environment: what programs need to find their files, interpreter and hardware. Everything else
// stays out, because the host's environment may hold secrets that models must not see.
var (
	inheritedNames = []string{
		"PATH", "HOME", "USER", "LOGNAME", "LANG", "LANGUAGE", "TZ", "TMPDIR", "LD_LIBRARY_PATH",
		"VIRTUAL_ENV", "CONDA_PREFIX", "CONDA_DEFAULT_ENV", "PYENV_ROOT", "PYENV_VERSION",
		"SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CUDA_HOME", "CUDA_VISIBLE_DEVICES",
	}
	inheritedPrefixes = []string{"LC_", "PYTHON", "OMP_", "MKL_", "OPENBLAS_", "NVIDIA_"}
)

// replicaEnv is the environment of a replica: what it inherits, its own variables
// over that, and the mark by which the host finds everything it started.
func replicaEnv(host, own []string, mark string) []string {
	all := map[string]string{}
	for _, kv := range host {
		name, v, _ := strings.Cut(kv, "=")
		if slices.Contains(inheritedNames, name) || slices.ContainsFunc(inheritedPrefixes, func(p string) bool { return strings.HasPrefix(name, p) }) {
			all[name] = v
		}
	}
	for _, kv := range own {
		name, v, _ := strings.Cut(kv, "=")
		all[name] = v
	}
	all[markVariable] = mark
	out := make([]string, 0, len(all))
	for name, v := range all {
		out = append(out, name+"="+v)
	}
	slices.Sort(out)
	return out
}

// markVariable holds RUN/NUMBER/REPLICA, RUN being the host's and NUMBER that of the
// start, in the environment of every process of a replica, children included.
const markVariable = "SLUICE_REPLICA"
