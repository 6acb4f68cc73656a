package deploy

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/sluice-dev/sluice/pkg/project"
	"github.com/sluice-dev/sluice/rollout"
)

// NewShipment is what the project in dir, packaged as res, is shipped as: everything but its
// image. What source says (commit, pull request) stands over what was found beside the project;
// a version is named after both by the naming rules. Errors are *rollout.Error values, or say that
// the smoke test's request could not be read.
func NewShipment(dir string, res project.Result, source project.Source) (Shipment, error) {
	src := SourceOf(res, source)
	name, err := project.VersionName(src, res.Digest)
	if err != nil {
		return Shipment{}, err
	}
	out := Shipment{
		Endpoint: res.Manifest.Endpoint, Settings: res.Manifest.Settings(), Strategy: res.Manifest.Strategy,
		Files: res.Files, Bytes: res.Size, Name: name, Source: rollout.Source{PullRequest: src.PullRequest},
	}
	// A version named after its content is not from the commit that lies beneath it.
	if src.PullRequest != 0 || !src.Dirty {
		out.Source.Commit = src.Commit
	}
	if t := res.Manifest.Test; t != nil {
		body, err := os.ReadFile(filepath.Join(dir, filepath.FromSlash(t.Request)))
		if err != nil {
			return Shipment{}, fmt.Errorf("read the smoke test's request: %w", err)
		}
		out.Test = &Test{Body: body, Status: t.Expect.Status, Contains: t.Expect.Contains}
		if out.Test.Status == 0 {
			out.Test.Status = 200
		}
	}
	return out, nil
}

// SourceOf is where a project comes from: what source says, over what was found beside it.
func SourceOf(res project.Result, source project.Source) project.Source {
	src := res.Source
	if source.PullRequest != 0 {
		src.PullRequest = source.PullRequest
	}
	if source.Commit != "" {
		src.Commit = source.Commit
	}
	return src
}
