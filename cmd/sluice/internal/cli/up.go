package cli

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/sluice-dev/sluice/cmd/sluice/internal/up"
	"github.com/sluice-dev/sluice/pkg/page"
	"github.com/sluice-dev/sluice/pkg/router/routercmd"
	"github.com/sluice-dev/sluice/pkg/runner"
	"github.com/sluice-dev/sluice/pkg/webhook"
	"github.com/sluice-dev/sluice/pkg/webhook/webhookcmd"
)

// internalCommands are the parts of the system that this binary runs as processes of their own.
var internalCommands = map[string]func(context.Context, []string, IO) int{
	up.RouterCommand: func(ctx context.Context, args []string, stdio IO) int {
		return routercmd.Main(ctx, args, stdio.Env, stdio.Out, stdio.Err)
	},
	up.ControlCommand: func(ctx context.Context, args []string, stdio IO) int {
		return webhookcmd.Main(ctx, args, stdio.Env, stdio.Out, stdio.Err)
	},
	up.RunnerCommand: func(ctx context.Context, args []string, stdio IO) int {
		return runner.Main(ctx, args, stdio.Env, stdio.Out, stdio.Err)
	},
}

func (a *app) upCmd() *cobra.Command {
	var o up.Options
	c := &cobra.Command{
		Use:   "up",
		Short: "Run the whole system on this machine until it is interrupted",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return a.up(c.Context(), o)
		},
	}
	f := c.Flags()
	f.StringVar(&o.Router, "router-address", cmp.Or(a.io.Getenv("SLUICE_ROUTER_ADDRESS"), "127.0.0.1:8080"), "where clients score ($SLUICE_ROUTER_ADDRESS)")
	f.StringVar(&o.API, "api-address", cmp.Or(a.io.Getenv("SLUICE_API_ADDRESS"), "127.0.0.1:8081"), "API and webhook ($SLUICE_API_ADDRESS)")
	f.StringVar(&o.Admin, "admin-address", cmp.Or(a.io.Getenv("SLUICE_ADMIN_ADDRESS"), "127.0.0.1:9090"), "metrics and health ($SLUICE_ADMIN_ADDRESS)")
	f.StringVar(&o.Page, "page", cmp.Or(a.io.Getenv("SLUICE_PAGE"), string(page.ModeLoopback)), "who may read the page at the API's address: none, loopback, anyone or, with $SLUICE_PAGE_LOGIN_ISSUER and so on, login ($SLUICE_PAGE)")
	return c
}

// complete fills in what the process knows.
func (a *app) complete(o *up.Options) error {
	exe, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find this program: %w", err)
	}
	o.Exe, o.Env, o.Namespace = exe, a.io.Env, a.namespace
	o.GitHub = a.io.Getenv("SLUICE_WEBHOOK_SECRET") != "" || a.io.Getenv("SLUICE_WEBHOOK_SECRET_FILE") != ""
	intake, err := webhook.ParseIntake(cmp.Or(a.io.Getenv("SLUICE_INTAKE"), string(webhook.IntakePush)))
	if err != nil {
		return err
	}
	if intake == webhook.IntakePoll {
		if a.io.Getenv("SLUICE_GITHUB_APP_ID") == "" || a.io.Getenv("SLUICE_GITHUB_APP_KEY_FILE") == "" {
			return misuse("SLUICE_INTAKE", "set SLUICE_GITHUB_APP_ID and SLUICE_GITHUB_APP_KEY_FILE, or leave it out", "only a GitHub App's events can be polled for")
		}
		o.GitHub = true
	}
	return nil
}

func (a *app) up(ctx context.Context, o up.Options) error {
	if err := a.complete(&o); err != nil {
		return err
	}
	mode, err := page.ParseMode(o.Page)
	if err != nil {
		return err
	}
	// The control plane would say so too, but only in the log, each time that it is started again.
	if mode == page.ModeLogin && a.io.Getenv("SLUICE_PAGE_LOGIN_ISSUER") == "" {
		return misuse("--page", "set SLUICE_PAGE_LOGIN_ISSUER and what belongs to it; docs/page.md shows how", "the page is for those who have logged in, and there is no issuer, so that nobody could")
	}
	if a.state == "" {
		return misuse("--state", "name the state directory with --state", "there is no home directory")
	}
	o.State = a.state
	o.Out = a.io.Err
	level := slog.LevelInfo
	if a.verbose {
		level = slog.LevelDebug
	}
	o.Logger = slog.New(slog.NewTextHandler(a.io.Err, &slog.HandlerOptions{Level: level}))
	o.Ready = func(at up.Addresses) {
		if err := writeAddresses(a.state, at); err != nil {
			o.Logger.Warn("the addresses cannot be written down", "error", err)
		}
		_ = a.print(at, func(w io.Writer) {
			t := table{}
			t.add("scoring", "http://"+at.Router)
			if o.Page != string(page.ModeNone) {
				t.add("page", "http://"+at.API+"/")
			}
			t.add("webhook", "http://"+at.API)
			t.add("metrics", "http://"+at.Admin+"/metrics")
			t.add("state", a.state)
			if !o.GitHub {
				t.add("github", "off: set SLUICE_WEBHOOK_SECRET and SLUICE_GITHUB_TOKEN for comments on pull requests")
			}
			t.add("next", "`sluice deploy DIR` in another terminal; Ctrl-C here ends it all")
			t.write(w)
		})
	}
	return up.Run(ctx, o)
}

// writeAddresses leaves a note of where the system listens, for scripts.
func writeAddresses(state string, at up.Addresses) error {
	b, err := json.Marshal(at)
	if err != nil {
		return err
	}
	dir := filepath.Join(state, "run")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	tmp := filepath.Join(dir, ".addresses.json.tmp")
	if err := os.WriteFile(tmp, append(b, '\n'), 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, filepath.Join(dir, "addresses.json"))
}
