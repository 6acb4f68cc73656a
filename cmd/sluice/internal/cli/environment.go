package cli

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/spf13/cobra"

	"github.com/sluice-dev/sluice/pkg/image"
	"github.com/sluice-dev/sluice/pkg/image/environment"
	"github.com/sluice-dev/sluice/pkg/project"
	"github.com/sluice-dev/sluice/rollout"
)

// maxSummarySize in bytes of a file that --explain reads.
const maxSummarySize = 64 << 20

func (a *app) environmentCmd() *cobra.Command {
	return group("environment", "Look at a project's environment", a.environmentHashCmd())
}

// group is a command that only has others.
func group(use, short string, commands ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{
		Use: use, Short: short,
		// cobra would show the help for a command that it does not know, and succeed.
		Args: func(c *cobra.Command, args []string) error {
			if len(args) > 0 {
				return misuse("", fmt.Sprintf("see `%s --help`", c.CommandPath()), "unknown command %q for %q", args[0], c.CommandPath())
			}
			return nil
		},
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(commands...)
	return c
}

// environmentHash are the options of `environment hash`.
type environmentHash struct {
	dir, explain, platform, baseImage, baseDigest string
	insecure                                      []string
}

func (a *app) environmentHashCmd() *cobra.Command {
	var o environmentHash
	c := &cobra.Command{
		Use:   "hash [DIR]",
		Short: "Print the hash of a project's environment and what went into it",
		Long: `Print the hash of a project's environment and what went into it: docs/environments.md.

References to images without a digest are looked up in their registries. "-o json" prints what
a later --explain compares with.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			o.dir = "."
			if len(args) > 0 {
				o.dir = args[0]
			}
			return a.environmentHash(c.Context(), o)
		},
	}
	f := c.Flags()
	a.azureFlagSet(f)
	f.StringVar(&o.explain, "explain", "", "file with an earlier output of -o json: say what changed since")
	f.StringVar(&o.platform, "platform", cmp.Or(a.io.Getenv("SLUICE_PLATFORM"), environment.DefaultPlatform), "linux/ARCHITECTURE[/VARIANT] of the image ($SLUICE_PLATFORM)")
	f.StringVar(&o.baseImage, "base-image", a.io.Getenv("SLUICE_BASE_IMAGE"), "base image for projects that name none ($SLUICE_BASE_IMAGE)")
	f.StringVar(&o.baseDigest, "base-digest", "", "sha256:… of the base image, instead of asking its registry")
	f.StringSliceVar(&o.insecure, "insecure-registry", nil, "HOST[:PORT] that may be spoken to in plain HTTP")
	return c
}

func (a *app) environmentHash(ctx context.Context, o environmentHash) error {
	var earlier *environment.Summary
	if o.explain != "" {
		// What is wrong with it shows before registries are asked.
		s, err := readSummary(o.explain)
		if err != nil {
			return err
		}
		earlier = s
	}
	env, err := project.LoadEnvironment(o.dir, a.manifest)
	if err != nil {
		return err
	}
	if env.Dockerfile == "" {
		env.BaseImage = cmp.Or(env.BaseImage, o.baseImage)
	}
	platform, err := environment.ParsePlatform(o.platform)
	if err != nil {
		return misuse("--platform", "write it as linux/amd64 or linux/arm64", "--platform %q is not known", o.platform)
	}
	client := image.Client{Insecure: o.insecure}
	d, err := environment.Load(ctx, o.dir, env, environment.Options{
		Platform: o.platform, Files: a.manifest.Contents(), Besides: a.outputs(o.explain),
		Resolve: func(ctx context.Context, field, ref string) (environment.Image, error) {
			if o.baseDigest != "" && ref == env.BaseImage {
				return environment.Image{Digest: o.baseDigest}, nil
			}
			img, _, err := client.Resolve(ctx, field, ref, *platform)
			return img, err
		},
	})
	if err != nil {
		return err
	}
	out := struct {
		environment.Summary
		// Changes is nil, and left out, unless they are asked for.
		Changes []environment.Change `json:"changes,omitzero"`
	}{Summary: d.Summary()}
	if earlier != nil {
		out.Changes = append([]environment.Change{}, environment.Explain(*earlier, out.Summary)...)
	}
	return a.print(out, func(w io.Writer) {
		t := table{}
		t.add("hash", out.Hash)
		for _, in := range out.Inputs {
			t.add(in.Name, in.Description)
		}
		t.write(w)
		if !out.BuildNeeded {
			_, _ = fmt.Fprintln(w, "The base image alone is the environment: nothing is built.")
		}
		for _, s := range out.Unpinned {
			_, _ = fmt.Fprintf(w, "Warning: not fixed to one version: %s\n", s)
		}
		switch {
		case earlier == nil:
		case len(out.Changes) == 0:
			_, _ = fmt.Fprintf(w, "Nothing changed since %s.\n", o.explain)
		default:
			_, _ = fmt.Fprintf(w, "Changed since %s:\n", o.explain)
			for _, c := range out.Changes {
				_, _ = fmt.Fprintf(w, "  %s\n", c)
			}
		}
	})
}

// outputs are the file that standard output is, if it is one, and a further one, which may be "".
func (a *app) outputs(further string) []fs.FileInfo {
	var out []fs.FileInfo
	if f, ok := a.io.Out.(*os.File); ok {
		if info, err := f.Stat(); err == nil && info.Mode().IsRegular() {
			out = append(out, info)
		}
	}
	if info, err := os.Stat(further); further != "" && err == nil {
		out = append(out, info)
	}
	return out
}

// readSummary reads an earlier output.
func readSummary(file string) (*environment.Summary, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, fmt.Errorf("read earlier hash: %w", err)
	}
	defer func() { _ = f.Close() }()
	var s environment.Summary
	if err := json.NewDecoder(io.LimitReader(f, maxSummarySize)).Decode(&s); err != nil || s.Hash == "" {
		return nil, &rollout.Error{
			Reason: rollout.ReasonInvalid, Field: "--explain", Message: file + " is no output of `sluice environment hash -o json`",
			Hint: "write one with `sluice environment hash -o json > FILE` before the change",
		}
	}
	return &s, nil
}
