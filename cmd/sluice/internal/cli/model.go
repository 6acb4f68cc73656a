package cli

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/sluice-dev/sluice/pkg/image"
	"github.com/sluice-dev/sluice/pkg/project"
)

func (a *app) modelCmd() *cobra.Command {
	return group("model", "Keep models in a registry", a.modelPushCmd())
}

func (a *app) modelPushCmd() *cobra.Command {
	c := &cobra.Command{
		Use:   "push PATH oci://REGISTRY/NAME:TAG",
		Short: "Push a model's file or directory to a registry",
		Long: `Push a model's file or directory to a registry, for manifests to name it by uri. Large files
are sent in pieces, and only if the registry does not have them. Versions whose images go to
the same registry take the model from there without it passing through the machine that deploys.`,
		Args: cobra.ExactArgs(2),
		RunE: func(c *cobra.Command, args []string) error {
			ref, ok := strings.CutPrefix(args[1], project.SchemeOCI+"://")
			if !ok {
				// It is not quoted: there may be credentials in it.
				return misuse("", "write oci://REGISTRY/NAME:TAG", "where to push to does not begin with oci://")
			}
			return a.modelPush(c.Context(), args[0], ref)
		},
	}
	a.insecureFlag(c.Flags())
	return c
}

func (a *app) modelPush(ctx context.Context, path, ref string) error {
	client := image.Client{Insecure: a.images.insecure, Progress: a.progress}
	pushed, err := client.PushModel(ctx, path, ref, image.DefaultCacheDir())
	if err != nil {
		return err
	}
	return a.print(pushed, func(w io.Writer) {
		t := table{}
		t.add("ref", pushed.Ref)
		t.add("files", fmt.Sprintf("%d, %d MB, digest %s", pushed.Files, pushed.Bytes>>20, pushed.Digest))
		t.write(w)
		if pushed.Known {
			_, _ = fmt.Fprintln(w, "The registry had it already.")
		}
		_, _ = fmt.Fprintf(w, "In a manifest: models: [{name: NAME, version: \"1\", uri: \"oci://%s\"}]\n", pushed.Ref)
	})
}
