package project

import (
	"fmt"

	"github.com/sluice-dev/sluice/rollout"
)

// unsupported lists the manifest's fields whose behaviour is not built yet. They are
// known, so that they are refused by name instead of called unknown, and refused, so
// that nobody believes they do something. Those of version and strategy are
// rollout's, whose validation refuses them for every writer alike; what only some targets
// cannot do is refused by the Check of those.
//
// A path ends in the field; [] stands for each element of a list.
var unsupported = []struct {
	path, what, hint string
	set              func(*Manifest) []int // the indices, or {-1}, where it is set
}{
	{
		"models[%d].uri", "models from elsewhere", "remove it and give the model's path in the project",
		eachModel(func(m Model) bool { return m.URI != "" }),
	},
	{
		"models[%d].sha256", "models from elsewhere", "remove it; the archive's digest covers models in the project",
		eachModel(func(m Model) bool { return m.SHA256 != "" }),
	},
}

func eachModel(set func(Model) bool) func(*Manifest) []int {
	return func(m *Manifest) []int {
		var out []int
		for i, model := range m.Models {
			if set(model) {
				out = append(out, i)
			}
		}
		return out
	}
}

// refuseUnsupported reports each field of the table that is set.
func (m *Manifest) unsupportedFields() []*rollout.Error {
	var errs []*rollout.Error
	for _, u := range unsupported {
		for _, i := range u.set(m) {
			field := u.path
			if i >= 0 {
				field = fmt.Sprintf(u.path, i)
			}
			errs = append(errs, refuse(rollout.ReasonNotSupportedYet, field, u.hint, "%s: not built yet, so it is refused rather than ignored", u.what))
		}
	}
	return errs
}
