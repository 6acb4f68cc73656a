// Command images builds Sluice's own images, without Docker: static programs on nothing else, for
// several platforms. It writes an OCI image layout or pushes to a registry, and prints what it
// made. The same source and version of Go give the same digests.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"text/tabwriter"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/sluice-dev/sluice/pkg/image"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "images:", err)
		os.Exit(1)
	}
}

// options are the flags.
type options struct {
	module       string
	programs     string
	platforms    string
	output       string
	push         string
	tag          string
	insecure     bool
	certificates string
	source       string
	revision     string
}

func parse(args []string, stderr io.Writer) (options, error) {
	var o options
	f := flag.NewFlagSet("images", flag.ContinueOnError)
	f.SetOutput(stderr)
	f.StringVar(&o.module, "module", ".", "directory of the Go module that has the programs")
	f.StringVar(&o.programs, "programs", "router,webhook,runner,sluice", "programs of cmd/ to make images of")
	f.StringVar(&o.platforms, "platform", "linux/amd64,linux/arm64", "platforms to make them for")
	f.StringVar(&o.output, "output", "bin/images", "directory of the OCI image layout, unless they are pushed")
	f.StringVar(&o.push, "push", "", "registry to push to, HOST[:PORT][/PATH], instead of writing a layout")
	f.StringVar(&o.tag, "tag", "dev", "tag of the images")
	f.BoolVar(&o.insecure, "insecure", false, "speak plain HTTP to the registry; one on loopback needs no saying")
	f.StringVar(&o.certificates, "certificates", "/etc/ssl/certs/ca-certificates.crt", "file with the authorities that the programs trust; left out if it is not there")
	f.StringVar(&o.source, "source", "", "address of the repository, for a label")
	f.StringVar(&o.revision, "revision", "", "commit, for a label")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	if f.NArg() > 0 {
		return o, fmt.Errorf("%q is not understood", f.Arg(0))
	}
	return o, nil
}

// made is one line of the table.
type made struct {
	name, digest string
	size         int64
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	o, err := parse(args, stderr)
	if err != nil {
		return err
	}
	indexes, done, err := build(ctx, o, stderr)
	if err != nil {
		return err
	}
	defer done()
	names := strings.Split(o.programs, ",")
	var rows []made
	for i, name := range names {
		digest, err := indexes[i].Digest()
		if err != nil {
			return err
		}
		size, err := image.IndexSize(indexes[i])
		if err != nil {
			return err
		}
		rows = append(rows, made{name + ":" + o.tag, digest.String(), size})
	}
	if o.push == "" {
		refs := make([]string, len(rows))
		for i := range rows {
			refs[i] = rows[i].name
		}
		if err := image.WriteLayout(o.output, refs, indexes); err != nil {
			return err
		}
	} else {
		var c image.Client
		if o.insecure {
			host, _, _ := strings.Cut(o.push, "/")
			c.Insecure = []string{host}
		}
		for i := range rows {
			ref := strings.TrimSuffix(o.push, "/") + "/" + rows[i].name
			if _, err := c.PushIndex(ctx, indexes[i], ref); err != nil {
				return err
			}
			rows[i].name = ref
		}
	}
	w := tabwriter.NewWriter(stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "NAME\tDIGEST\tSIZE")
	for _, r := range rows {
		fmt.Fprintf(w, "%s\t%s\t%.1f MB\n", r.name, r.digest, float64(r.size)/1e6)
	}
	return w.Flush()
}

// build compiles the programs and makes an index of each. The images read the programs' files until
// done is called.
func build(ctx context.Context, o options, stderr io.Writer) (indexes []v1.ImageIndex, done func(), err error) {
	tmp, err := os.MkdirTemp("", "sluice-images-*")
	if err != nil {
		return nil, nil, err
	}
	clean := func() { _ = os.RemoveAll(tmp) }
	defer func() {
		if err != nil {
			clean()
		}
	}()
	certificates := o.certificates
	if _, err := os.Stat(certificates); err != nil {
		certificates = ""
	}
	names := strings.Split(o.programs, ",")
	programs := make([][]image.Program, len(names))
	for _, text := range strings.Split(o.platforms, ",") {
		p, err := v1.ParsePlatform(text)
		if err != nil || p.OS != "linux" || p.Architecture == "" {
			return nil, nil, fmt.Errorf("--platform %s: write it as linux/amd64 or linux/arm64", text)
		}
		dir := filepath.Join(tmp, p.Architecture)
		if err := compile(ctx, o.module, names, *p, dir, stderr); err != nil {
			return nil, nil, err
		}
		for i, name := range names {
			programs[i] = append(programs[i], image.Program{
				Name: name, File: filepath.Join(dir, name), Certificates: certificates, Source: o.source, Revision: o.revision,
			})
		}
	}
	for _, same := range programs {
		index, err := image.Index(same...)
		if err != nil {
			return nil, nil, err
		}
		indexes = append(indexes, index)
	}
	return indexes, clean, nil
}

// compile builds the programs into dir. Neither paths, nor the state of a checkout, nor settings of
// this machine get into them, so that what did not change keeps its digest.
func compile(ctx context.Context, module string, names []string, p v1.Platform, dir string, stderr io.Writer) error {
	args := []string{"build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w", "-o", dir + string(filepath.Separator)}
	for _, name := range names {
		args = append(args, "./cmd/"+name)
	}
	fmt.Fprintf(stderr, "compiling %s for %s\n", strings.Join(names, ", "), p.String())
	c := exec.CommandContext(ctx, "go", args...)
	c.Dir = module
	c.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS="+p.OS, "GOARCH="+p.Architecture, "GOFLAGS=", "GOWORK=off", "GOAMD64=v1", "GOARM64=v8.0", "GOEXPERIMENT=")
	c.Stdout, c.Stderr = stderr, stderr
	if err := c.Run(); err != nil {
		return fmt.Errorf("compile for %s: %w", p.String(), err)
	}
	return nil
}
