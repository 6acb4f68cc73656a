// Package scan has a scanner of the user's look at an image: any program that takes the image's name and
// says by its exit code whether it objects.
package scan

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"

	"github.com/google/shlex"

	"github.com/sluice-dev/sluice/rollout"
)

const (
	// Placeholder stands for the image in a scanner's arguments.
	Placeholder = "{image}"
	// Variable has the image in a scanner's environment.
	Variable = "SLUICE_IMAGE"
	// grace is how long a scanner gets to end once it is interrupted.
	grace = 5 * time.Second
)

// Command is a scanner and its arguments.
type Command []string

// Parse splits a line into a command by the rules of a shell's words and quotes; there is no shell, so that
// nothing else of one works. field is named in the refusal, a *rollout.Error.
func Parse(field, line string) (Command, error) {
	words, err := shlex.Split(line)
	if err == nil && len(words) == 0 {
		err = errors.New("it is empty")
	}
	if err != nil {
		return nil, &rollout.Error{
			Reason: rollout.ReasonInvalid, Field: field, Message: fmt.Sprintf("%q is no command: %v", line, err), Hint: "write it as 'SCANNER ARGUMENT… " + Placeholder + "'",
		}
	}
	return words, nil
}

// Streams are where a scanner's output goes, as it comes, and Env is what its environment is made of.
type Streams struct {
	Out, Err io.Writer
	Env      []string
}

// Run runs the scanner on an image. A scanner that ends with another exit code than 0 is a *rollout.Error with reason
// scan_failed, one that cannot be started no_scanner. When ctx ends the scanner is interrupted, and the error is ctx's.
func (c Command) Run(ctx context.Context, image string, s Streams) error {
	if len(c) == 0 {
		return errors.New("run scanner: no command")
	}
	args := slices.Clone(c)
	for i := range args {
		args[i] = strings.ReplaceAll(args[i], Placeholder, image)
	}
	cmd := exec.CommandContext(ctx, args[0], args[1:]...) //nolint:gosec // running it is what it is for
	cmd.Stdout, cmd.Stderr = s.Out, s.Err
	cmd.Env = append(slices.Clone(s.Env), Variable+"="+image)
	cmd.Cancel, cmd.WaitDelay = func() error { return cmd.Process.Signal(os.Interrupt) }, grace
	refused := func(reason rollout.Reason, hint, format string, more ...any) error {
		return &rollout.Error{Reason: reason, Field: "scan", Message: fmt.Sprintf(format, more...), Hint: hint}
	}
	if err := cmd.Start(); err != nil {
		return refused(rollout.ReasonNoScanner, "install it, or name its file", "the scanner %s cannot be started: %v", c[0], err)
	}
	err := cmd.Wait()
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return fmt.Errorf("run scanner %s: %w", c[0], ctx.Err())
	}
	var ended *exec.ExitError
	switch {
	case !errors.As(err, &ended):
		return fmt.Errorf("run scanner %s: %w", c[0], err)
	case ended.ExitCode() < 0:
		return refused(rollout.ReasonScanFailed, "see why, and scan again", "the scanner %s did not finish with %s: %v", c[0], image, ended)
	}
	return refused(rollout.ReasonScanFailed, "what it objects to is in its output above; mend that, or tell the scanner to accept it",
		"the scanner %s ended with exit code %d for %s", c[0], ended.ExitCode(), image)
}
