package cli

import (
	"context"

	"github.com/sluice-dev/sluice/pkg/deploy"
	"github.com/sluice-dev/sluice/pkg/image/scan"
)

// admission is what an image goes through between its push and its version's joining.
type admission struct {
	sbom    bool
	scanner string
	// asked says that the flag named the scanner, and not the environment.
	asked bool
}

// admit is what a deploy asks before a version joins; nil asks nothing. What is wrong with the flags shows before anything
// is done.
func (a *app) admit(o admission) (func(context.Context, deploy.Shipment) error, error) {
	if a.target != "kubernetes" && !o.asked {
		o.scanner = "" // the variable is about images
	}
	if !o.sbom && o.scanner == "" {
		return nil, nil
	}
	if a.target != "kubernetes" {
		flag := "--scan"
		if o.sbom {
			flag = "--sbom"
		}
		return nil, misuse(flag, "leave it out: on this machine a version is an archive, and no image", "%s goes with --target kubernetes", flag)
	}
	var program string
	var err error
	if o.sbom {
		if program, err = findSBOM(); err != nil {
			return nil, err
		}
	}
	var command scan.Command
	if o.scanner != "" {
		if command, err = scan.Parse("--scan", o.scanner); err != nil {
			return nil, err
		}
	}
	said := a.besideStdout() // standard output is the deploy's
	return func(ctx context.Context, s deploy.Shipment) error {
		// First, so that a scanner may read it.
		if o.sbom {
			if _, err := a.attachSBOM(ctx, program, s.Pushed); err != nil {
				return err
			}
		}
		if len(command) == 0 {
			return nil
		}
		a.progress("scanning %s with %s", s.Pushed, command[0])
		return said.scan(ctx, s.Pushed, command)
	}, nil
}
