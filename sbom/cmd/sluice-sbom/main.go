// Command sluice-sbom writes the bill of materials of an image to standard output, as SPDX JSON.
//
//	sluice-sbom [--insecure HOST]… [--platform OS/ARCH] IMAGE
//	sluice-sbom --layout DIR [--ref NAME]
//
// It ends with 0, 1 if that failed, or 2 if it was called wrongly. `sluice sbom` and `sluice deploy --sbom` run it.
package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/sluice-dev/sluice/sbom"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

type options struct {
	layout, ref, platform string
	insecure              []string
}

func run(ctx context.Context, args []string, out, errs io.Writer) int {
	var o options
	f := flag.NewFlagSet("sluice-sbom", flag.ContinueOnError)
	f.SetOutput(errs)
	f.Usage = func() {
		_, _ = fmt.Fprintln(errs, "sluice-sbom [--insecure HOST]… [--platform OS/ARCH] IMAGE\nsluice-sbom --layout DIR [--ref NAME]")
		f.PrintDefaults()
	}
	f.StringVar(&o.layout, "layout", "", "OCI image layout to read the image from")
	f.StringVar(&o.ref, "ref", "", "name of the image in the layout, if it has several")
	f.StringVar(&o.platform, "platform", "linux/amd64", "platform to choose from an image for several")
	f.Func("insecure", "HOST[:PORT] of a registry that may be spoken to in plain HTTP", func(s string) error {
		o.insecure = append(o.insecure, s)
		return nil
	})
	if err := f.Parse(args); err != nil {
		return 2
	}
	if (o.layout == "") == (f.NArg() == 0) || f.NArg() > 1 {
		f.Usage()
		return 2
	}
	img, err := open(ctx, o, f.Arg(0))
	if err == nil {
		w := bufio.NewWriter(out)
		err = errors.Join(sbom.Write(ctx, w, img, ""), w.Flush())
	}
	if err != nil {
		_, _ = fmt.Fprintf(errs, "sluice-sbom: %v\n", err)
		return 1
	}
	return 0
}

func open(ctx context.Context, o options, image string) (v1.Image, error) {
	if o.layout != "" {
		return fromLayout(o.layout, o.ref)
	}
	platform, err := v1.ParsePlatform(o.platform)
	if err != nil {
		return nil, fmt.Errorf("read --platform: %w", err)
	}
	var how []name.Option
	if host, _, _ := strings.Cut(image, "/"); slices.Contains(o.insecure, host) {
		how = append(how, name.Insecure)
	}
	ref, err := name.ParseReference(image, how...)
	if err != nil {
		return nil, fmt.Errorf("read the name of the image: %w", err)
	}
	img, err := remote.Image(ref, remote.WithContext(ctx), remote.WithAuthFromKeychain(authn.DefaultKeychain), remote.WithPlatform(*platform), remote.WithUserAgent("sluice"))
	if err != nil {
		return nil, fmt.Errorf("read image %s: %w", image, err)
	}
	return img, nil
}

func fromLayout(dir, ref string) (v1.Image, error) {
	fail := func(err error) (v1.Image, error) { return nil, fmt.Errorf("read layout %s: %w", dir, err) }
	index, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		return fail(err)
	}
	m, err := index.IndexManifest()
	if err != nil {
		return fail(err)
	}
	var has []string
	var found []v1.Descriptor
	for _, d := range m.Manifests {
		is := d.Annotations["org.opencontainers.image.ref.name"]
		has = append(has, is)
		if d.MediaType.IsImage() && (ref == "" || is == ref) {
			found = append(found, d)
		}
	}
	if len(found) != 1 {
		return fail(fmt.Errorf("%d images are called %q; it has %q: name one with --ref", len(found), ref, has))
	}
	return index.Image(found[0].Digest)
}
