package cli

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/sluice-dev/sluice/pkg/image"
	"github.com/sluice-dev/sluice/pkg/project"
)

// The forms that package writes.
const (
	formatArchive = "archive"
	formatLayout  = "oci-layout"
	formatTarball = "tarball"
)

func (a *app) packageCmd() *cobra.Command {
	var list bool
	var out, format string
	c := &cobra.Command{
		Use:   "package [DIR]",
		Short: "Make a project's archive or image, or list what ships and what stays out",
		Long: `Make a project's archive or image, or list what ships and what stays out.

"-o PATH" says where to. With --format archive (the default) and tarball it is a file, which appears complete or not at all;
a symbolic link is followed, a device or a named pipe is written to as it stands, and - is standard output. The words table, json and yaml after -o are
the output format, as in every command; write "-o ./json" for a file of that name. Both may be given.

--format oci-layout and tarball make the image that "sluice deploy --target kubernetes" pushes, with the same flags and the
same digest, and push nothing; --registry is needed only for an environment that has to be built. oci-layout writes an
OCI image layout into the directory PATH, or adds to the one that is there, under the version's name. tarball writes a file for
"docker load", "podman load" and "ctr image import", in which the image is named [REGISTRY/]ENDPOINT:VERSION.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			dir := "."
			if len(args) > 0 {
				dir = args[0]
			}
			switch {
			case format != formatArchive && format != formatLayout && format != formatTarball:
				return misuse("--format", "use archive, oci-layout or tarball", "--format %q is not known", format)
			case list:
				return a.packageList(c.Context(), dir)
			case format == formatArchive:
				return a.packageTo(c.Context(), dir, out)
			case out == "":
				return misuse("--output", "say where to with -o PATH", "--format %s writes an image, and nothing says where to", format)
			}
			return a.packageImage(c.Context(), dir, out, format)
		},
	}
	f := c.Flags()
	f.BoolVar(&list, "list", false, "list every path, and the rule that left it out")
	f.StringVar(&format, "format", formatArchive, "what to write: archive, oci-layout or tarball")
	f.VarP(packageOutput{format: &a.output, file: &out}, "output", "o", "where to write to; table, json or yaml: the output format")
	f.StringVar(&a.azure.endpoint, flagEndpoint, "", "endpoint that Azure ML's files do not name, with --inference-config")
	a.azureFlagSet(f)
	a.imageFlags(f)
	return c
}

// packageOutput is -o of package: the file of the archive, but a format if it is the name of
// one. So that -o json means the same everywhere.
type packageOutput struct{ format, file *string }

// String implements pflag.Value.
func (packageOutput) String() string { return "" }

// Type implements pflag.Value.
func (packageOutput) Type() string { return "FILE" }

// Set implements pflag.Value.
func (o packageOutput) Set(s string) error {
	if isFormat(s) {
		*o.format = s
		return nil
	}
	*o.file = s
	return nil
}

func (a *app) packageList(ctx context.Context, dir string) error {
	m, err := project.Load(dir, a.manifest)
	if err != nil {
		return err
	}
	l, err := project.Plan(ctx, dir, m, a.manifest)
	if err != nil {
		return err
	}
	entries := []project.Entry{}
	for e, err := range l.Entries(ctx) {
		if err != nil {
			return err
		}
		if a.output != "table" {
			entries = append(entries, *e)
			continue
		}
		if _, err := fmt.Fprintln(a.io.Out, e.String()); err != nil {
			return err
		}
	}
	if a.output != "table" {
		if err := a.print(entries, nil); err != nil {
			return err
		}
	}
	return l.Err()
}

func (a *app) packageTo(ctx context.Context, dir, out string) (err error) {
	w := io.Discard
	var besides []fs.FileInfo
	if out != "" {
		f, ferr := a.openArchiveFile(ctx, out)
		if ferr != nil {
			return ferr
		}
		defer func() { err = f.close(err) }()
		if f.stdout {
			a = a.besideStdout()
		}
		w, besides = f.w, f.replaced
	}
	res, err := project.Package(ctx, dir, w, besides, a.manifest)
	if err != nil {
		return err
	}
	return a.print(struct {
		Digest  string `json:"digest"`
		Files   int    `json:"files"`
		Bytes   int64  `json:"bytes"`
		Version string `json:"version"`
		Written string `json:"written,omitempty"`
	}{res.Digest, res.Files, res.Size, res.Version, out}, func(w io.Writer) {
		t := table{}
		t.add("digest", res.Digest)
		t.add("files", strconv.Itoa(res.Files))
		t.add("bytes", strconv.FormatInt(res.Size, 10))
		t.add("version", res.Version)
		if out != "" {
			t.add("written", out)
		}
		t.write(w)
	})
}

// packageImage writes the project's image.
func (a *app) packageImage(ctx context.Context, dir, out, format string) error {
	s := a.imageShipper(project.Source{}, a.progress)
	write := a.writeLayout
	if format == formatTarball {
		write = a.writeTarball
	}
	m, said, err := write(ctx, s, dir, out)
	if err != nil {
		return err
	}
	digest, err := m.Image.Digest()
	if err != nil {
		return err
	}
	size, err := image.Size(m.Image)
	if err != nil {
		return err
	}
	return said.print(struct {
		Digest   string `json:"digest"`
		Files    int    `json:"files"`
		Bytes    int64  `json:"bytes"`
		Version  string `json:"version"`
		Platform string `json:"platform"`
		Base     string `json:"base"`
		Written  string `json:"written"`
	}{digest.String(), m.Files, size, m.Name, m.Platform.String(), m.Base.Name, out}, func(w io.Writer) {
		t := table{}
		t.add("image", digest.String())
		t.add("files", strconv.Itoa(m.Files))
		t.add("bytes", strconv.FormatInt(size, 10))
		t.add("version", m.Name)
		t.add("platform", m.Platform.String())
		t.add("base", m.Base.Name)
		t.add("written", out)
		t.write(w)
	})
}

// progress is told what happens, one line a step.
func (a *app) progress(format string, args ...any) {
	_, _ = fmt.Fprintf(a.io.Err, format+"\n", args...)
}

func (a *app) writeLayout(ctx context.Context, s image.Shipper, dir, out string) (m image.Made, said *app, err error) {
	if out == stdoutName {
		return m, a, misuse("--output", "name a directory, or use --format tarball", "a layout is a directory, and standard output is none")
	}
	l, err := image.OpenLayout(out)
	if err != nil {
		return m, a, err
	}
	defer func() { err = l.Close(err) }()
	if m, err = s.Make(ctx, dir, l.Files()); err != nil {
		return m, a, err
	}
	defer m.Close()
	return m, a, m.AddTo(ctx, l)
}

func (a *app) writeTarball(ctx context.Context, s image.Shipper, dir, out string) (m image.Made, said *app, err error) {
	f, err := a.openArchiveFile(ctx, out)
	if err != nil {
		return m, a, err
	}
	defer func() { err = f.close(err) }()
	if f.stdout {
		a = a.besideStdout()
	}
	if m, err = s.Make(ctx, dir, f.own()); err != nil {
		return m, a, err
	}
	defer m.Close()
	name := m.Endpoint + ":" + m.Name
	if r := strings.TrimSuffix(s.Registry, "/"); r != "" {
		name = r + "/" + name
	}
	return m, a, m.WriteTarball(ctx, f.w, name)
}

// besideStdout says everything on standard error: standard output has something else to carry.
func (a *app) besideStdout() *app {
	said := *a
	said.io.Out = a.io.Err
	return &said
}
