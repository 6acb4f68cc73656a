package environment

import (
	"fmt"

	"github.com/sluice-dev/sluice/pkg/project"
	"github.com/sluice-dev/sluice/rollout"
)

// The fields that refusals name.
const (
	fieldBase         = "environment.baseImage"
	fieldSteps        = "environment.dockerSteps"
	fieldDockerfile   = "environment.dockerfile"
	fieldConda        = "environment.conda"
	fieldRequirements = "environment.requirements"
	fieldPlatform     = "platform"
)

func refuse(reason rollout.Reason, field, hint, format string, args ...any) *rollout.Error {
	return &rollout.Error{Reason: reason, Field: field, Message: fmt.Sprintf(format, args...), Hint: hint}
}

// place is where something stands that may be refused: a line of a file, or a field of the manifest.
type place struct {
	file, field string
	line        int
}

// refuse makes a refusal of what stands there: a *project.Error if it is in a file, else a
// *rollout.Error.
func (p place) refuse(reason rollout.Reason, hint, format string, args ...any) error {
	e := refuse(reason, p.field, hint, format, args...)
	if p.file == "" {
		return e
	}
	return &project.Error{File: p.file, Line: p.line, Refusal: e}
}

func (p place) invalid(hint, format string, args ...any) error {
	return p.refuse(rollout.ReasonInvalid, hint, format, args...)
}

// String is FILE:LINE or the field.
func (p place) String() string {
	if p.file == "" {
		return p.field
	}
	if p.line == 0 {
		return p.file
	}
	return fmt.Sprintf("%s:%d", p.file, p.line)
}
