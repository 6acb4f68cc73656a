package cli

import (
	"cmp"
	"context"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/sluice-dev/sluice/pkg/image"
	"github.com/sluice-dev/sluice/pkg/image/environment"
	"github.com/sluice-dev/sluice/pkg/image/sbom"
)

func (a *app) sbomCmd() *cobra.Command {
	var platform string
	c := &cobra.Command{
		Use:   "sbom IMAGE",
		Short: "Attach a bill of materials to an image in a registry",
		Long: `Attach a bill of materials to an image in a registry: an SPDX document with the packages of its distribution and of its languages,
as an artifact of type application/spdx+json that refers to the image. The same image has the same document.

The program sluice-sbom makes it ("make sbom"), which is looked for beside this one and on the PATH. It unpacks the image below
$TMPDIR.`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return a.sbom(c.Context(), args[0], platform)
		},
	}
	c.Flags().StringVar(&platform, "platform", cmp.Or(a.io.Getenv("SLUICE_PLATFORM"), "linux/amd64"), "OS/ARCHITECTURE to choose from an image for several ($SLUICE_PLATFORM)")
	a.insecureFlag(c.Flags())
	return c
}

func findSBOM() (string, error) {
	exe, err := os.Executable()
	if err != nil {
		exe = ""
	}
	return sbom.Find(exe)
}

// attached is a bill of materials that an image has.
type attached struct {
	Image string `json:"image"`
	SBOM  string `json:"sbom"`
	Bytes int    `json:"bytes"`
	// Changed is false when the image had it already.
	Changed bool `json:"changed"`
}

func (a *app) sbom(ctx context.Context, ref, platform string) error {
	p, err := environment.ParsePlatform(platform)
	if err != nil {
		return misuse("--platform", "write it as linux/amd64 or linux/arm64", "--platform %q is not known", platform)
	}
	program, err := findSBOM()
	if err != nil {
		return err
	}
	found, err := image.Client{Insecure: a.images.insecure}.Find(ctx, "image", ref, *p)
	if err != nil {
		return err
	}
	repo, err := found.Repository()
	if err != nil {
		return err
	}
	out, err := a.attachSBOM(ctx, program, repo+"@"+found.Digest.String())
	if err != nil {
		return err
	}
	return a.print(out, func(w io.Writer) {
		t := table{}
		t.add("image", out.Image)
		t.add("sbom", out.SBOM)
		t.write(w)
	})
}

// attachSBOM makes the document of an image, named by its digest, and attaches it.
func (a *app) attachSBOM(ctx context.Context, program, ref string) (attached, error) {
	a.progress("making the bill of materials of %s", ref)
	document, err := sbom.Make(ctx, program, ref, a.images.insecure)
	if err != nil {
		return attached{}, err
	}
	to, known, err := image.Client{Insecure: a.images.insecure}.Attach(ctx, ref, sbom.ArtifactType, document)
	if err != nil {
		return attached{}, err
	}
	a.progress("the bill of materials is %s", to.Name())
	return attached{Image: ref, SBOM: to.Name(), Bytes: len(document), Changed: !known}, nil
}
