package cli

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/sluice-dev/sluice/pkg/image"
	"github.com/sluice-dev/sluice/pkg/image/scan"
)

func (a *app) scanCmd() *cobra.Command {
	c := &cobra.Command{
		Use:   "scan IMAGE -- COMMAND [ARGUMENT…]",
		Short: "Have a scanner look at an image",
		Long: `Have a scanner look at an image: any command that takes an image's name and whose exit code says whether it
objects, such as

  sluice scan registry.example/models/fraud@sha256:… -- trivy image --exit-code 1 --severity CRITICAL {image}

{image} in its arguments is the image by its digest, and so is $SLUICE_IMAGE in its environment; a tag is looked up first. Its output is passed on as it comes. When it
ends with another exit code than 0, this command ends with 1 and the reason scan_failed.`,
		Args: func(c *cobra.Command, args []string) error {
			if at := c.ArgsLenAtDash(); at != 1 || len(args) < 2 {
				return misuse("", "try `"+c.UseLine()+"`", "one image, -- and the scanner's command are needed")
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			return a.scanNamed(c.Context(), args[0], args[1:])
		},
	}
	a.insecureFlag(c.Flags())
	return c
}

// scanNamed scans what a name means now: a tag may move while the scanner looks.
func (a *app) scanNamed(ctx context.Context, ref string, command scan.Command) error {
	fixed, err := image.Client{Insecure: a.images.insecure, Progress: a.progress}.Resolved(ctx, "image", ref)
	if err != nil {
		return err
	}
	return a.scan(ctx, fixed, command)
}

func (a *app) scan(ctx context.Context, ref string, command scan.Command) error {
	if err := command.Run(ctx, ref, scan.Streams{Out: a.io.Out, Err: a.io.Err, Env: a.io.Env}); err != nil {
		return err
	}
	a.progress("%s does not object to %s", command[0], ref)
	return nil
}
