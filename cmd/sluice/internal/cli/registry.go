package cli

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/sluice-dev/sluice/pkg/image/registry"
)

func (a *app) registryCmd() *cobra.Command {
	var address, dir string
	var anywhere bool
	c := &cobra.Command{
		Use:   "registry",
		Short: "Run an image registry on this machine until it is interrupted",
		Long: `Run an image registry on this machine until it is interrupted: for a cluster on the same machine, for tests, and for
looking at what a deploy pushes. Images stay in the directory, an OCI image layout a repository.

It speaks plain HTTP and knows no users, so that it listens on loopback alone unless --anywhere is said.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if dir == "" {
				if a.state == "" {
					return misuse("--dir", "name the directory with --dir", "there is no home directory")
				}
				dir = filepath.Join(a.state, "registry")
			}
			return a.registry(c.Context(), address, dir, anywhere)
		},
	}
	f := c.Flags()
	f.StringVar(&address, "listen", cmp.Or(a.io.Getenv("SLUICE_REGISTRY_ADDRESS"), "127.0.0.1:5000"), "HOST:PORT to listen on ($SLUICE_REGISTRY_ADDRESS)")
	f.StringVar(&dir, "dir", a.io.Getenv("SLUICE_REGISTRY_DIR"), "where images are kept (default: registry in the state directory; $SLUICE_REGISTRY_DIR)")
	f.BoolVar(&anywhere, "anywhere", false, "listen on an address that other machines reach, too: whoever reaches it may change everything")
	return c
}

func (a *app) registry(ctx context.Context, address, dir string, anywhere bool) error {
	l, err := registry.Listen(ctx, address, anywhere)
	if err != nil {
		return err
	}
	at := struct {
		Address string `json:"address"`
		Dir     string `json:"dir"`
	}{l.Addr().String(), dir}
	return registry.Serve(ctx, l, dir, a.log, func() {
		_ = a.print(at, func(w io.Writer) {
			t := table{}
			t.add("registry", "http://"+at.Address)
			t.add("images", dir)
			t.add("next", fmt.Sprintf("`sluice deploy DIR --target kubernetes --registry %s/models …` in another terminal; Ctrl-C here ends it", at.Address))
			t.write(w)
		})
	})
}
