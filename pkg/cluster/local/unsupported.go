package local

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/sluice-dev/sluice/pkg/project"
	"github.com/sluice-dev/sluice/rollout"
)

// CheckProject is a project.Check: it refuses, with not_supported_yet, what a manifest asks of a
// cluster and one machine does not do.
func CheckProject(m *project.Manifest) []*rollout.Error {
	errs := unsupported("version", m.Version)
	env := m.Environment
	const own = "remove it, or deploy to Kubernetes; on one machine its own python3 runs the script, with what is installed for it"
	for _, f := range []struct {
		field, what string
		set         bool
	}{
		{"environment.baseImage", "building on an image", env.BaseImage != ""},
		{"environment.dockerSteps", "building an image", len(env.DockerSteps) > 0},
		{"environment.dockerfile", "building an image", env.Dockerfile != ""},
		{"environment.conda", "an environment from a Conda definition", env.Conda != ""},
		{"environment.requirements", "an environment from requirements", env.Requirements != ""},
	} {
		if f.set {
			errs = append(errs, notHere(f.field, f.what, own))
		}
	}
	for i, model := range m.Models {
		if model.URI != "" {
			errs = append(errs, notHere(fmt.Sprintf("models[%d].uri", i), "fetching models", "give the model's path in the project, or deploy to Kubernetes"))
		}
	}
	return errs
}

// unsupported refuses the settings that only a cluster carries out; field is their path.
func unsupported(field string, s rollout.Settings) []*rollout.Error {
	var errs []*rollout.Error
	if s.Resources != nil {
		errs = append(errs, notHere(field+".resources", "limiting the resources of replicas", "leave it out, or deploy to Kubernetes; replicas share the machine"))
	}
	if s.Template != nil {
		errs = append(errs, notHere(field+".template", "patching pods", "leave it out, or deploy to Kubernetes"))
	}
	for _, name := range slices.Sorted(maps.Keys(s.EnvironmentVariables)) {
		if s.EnvironmentVariables[name].Secret != "" {
			errs = append(errs, notHere(field+".environmentVariables["+name+"]", "reading a variable from a secret", "give its value, or deploy to Kubernetes"))
		}
	}
	return errs
}

// validateSpec refuses the unsupported settings of all versions. The error joins *rollout.Error values.
func validateSpec(s *rollout.Spec) error {
	var errs []*rollout.Error
	for i := range s.Versions {
		errs = append(errs, unsupported("spec.versions["+s.Versions[i].Name+"]", s.Versions[i].Settings)...)
	}
	return joined(errs)
}

func notHere(field, what, way string) *rollout.Error {
	return &rollout.Error{
		Reason: rollout.ReasonNotSupportedYet, Field: field, Hint: way,
		Message: what + " is not built for one machine, so it is refused rather than ignored",
	}
}

func joined(errs []*rollout.Error) error {
	all := make([]error, len(errs))
	for i, e := range errs {
		all[i] = e
	}
	return errors.Join(all...)
}
