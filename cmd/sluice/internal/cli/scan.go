package cli

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/sluice-dev/sluice/pkg/image/scan"
)

func (a *app) scanCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "scan IMAGE -- COMMAND [ARGUMENT…]",
		Short: "Have a scanner look at an image",
		Long: `Have a scanner look at an image: any command that takes an image's name and whose exit code says whether it
objects, such as

  sluice scan registry.example/models/fraud@sha256:… -- trivy image --exit-code 1 --severity CRITICAL {image}

{image} in its arguments is the image, and so is $SLUICE_IMAGE in its environment. Its output is passed on as it comes. When it
ends with another exit code than 0, this command ends with 1 and the reason scan_failed.`,
		Args: func(c *cobra.Command, args []string) error {
			if at := c.ArgsLenAtDash(); at != 1 || len(args) < 2 {
				return misuse("", "try `"+c.UseLine()+"`", "one image, -- and the scanner's command are needed")
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			return a.scan(c.Context(), args[0], args[1:])
		},
	}
}

func (a *app) scan(ctx context.Context, image string, command scan.Command) error {
	if err := command.Run(ctx, image, scan.Streams{Out: a.io.Out, Err: a.io.Err, Env: a.io.Env}); err != nil {
		return err
	}
	a.progress("%s does not object to %s", command[0], image)
	return nil
}
