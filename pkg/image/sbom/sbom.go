// Package sbom has the bill of materials of an image made by the program sluice-sbom, which is a module apart since
// what it is linked with is larger than all of Sluice.
package sbom

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/sluice-dev/sluice/rollout"
)

const (
	// ArtifactType of a document that is attached to its image.
	ArtifactType = "application/spdx+json"
	// Program makes documents.
	Program = "sluice-sbom"
	// grace is how long the program gets to tidy up once it is interrupted.
	grace = 10 * time.Second
	// maxSaid is how much of what the program says on standard error is kept: its end.
	maxSaid = 2000
)

// Find the program: beside the executable file exe, which may be empty, else on the PATH. The error is a *rollout.Error.
func Find(exe string) (string, error) {
	if exe != "" {
		beside := filepath.Join(filepath.Dir(exe), Program)
		if path, err := exec.LookPath(beside); err == nil {
			return path, nil
		}
	}
	path, err := exec.LookPath(Program)
	if err != nil {
		return "", &rollout.Error{
			Reason: rollout.ReasonSBOMFailed, Field: "sbom", Message: fmt.Sprintf("there is no %s beside this program or on the PATH", Program),
			Hint: "make it with `make sbom`, which leaves it in bin/, and put it beside sluice",
		}
	}
	return path, nil
}

// Make makes the SPDX document, JSON, of an image in a registry. The program is the one that Find has found; image
// names the image by digest, and insecure registries that may be spoken to in plain HTTP. The same image has
// the same document. A failure is a *rollout.Error with reason sbom_failed; when ctx ends the error is ctx's.
func Make(ctx context.Context, program, image string, insecure []string) ([]byte, error) {
	args := []string{}
	for _, host := range insecure {
		args = append(args, "--insecure", host)
	}
	cmd := exec.CommandContext(ctx, program, append(args, image)...) //nolint:gosec // ours
	var out bytes.Buffer
	var said tail
	cmd.Stdout, cmd.Stderr = &out, &said
	cmd.Cancel, cmd.WaitDelay = func() error { return cmd.Process.Signal(os.Interrupt) }, grace
	err := cmd.Run()
	if ctx.Err() != nil {
		return nil, fmt.Errorf("make bill of materials of %s: %w", image, ctx.Err())
	}
	if err == nil && !json.Valid(out.Bytes()) {
		err = errors.New("it wrote no JSON")
	}
	if err != nil {
		return nil, &rollout.Error{
			Reason: rollout.ReasonSBOMFailed, Field: "sbom", Message: fmt.Sprintf("%s failed for %s: %v: %s", Program, image, err, bytes.TrimSpace(said.end)),
			Hint: "see what it says; it needs room for the unpacked image in $TMPDIR",
		}
	}
	return out.Bytes(), nil
}

// tail keeps the end of what is written to it.
type tail struct{ end []byte }

func (t *tail) Write(p []byte) (int, error) {
	t.end = append(t.end, p...)
	if n := len(t.end) - maxSaid; n > 0 {
		t.end = append([]byte{}, t.end[n:]...)
	}
	return len(p), nil
}
