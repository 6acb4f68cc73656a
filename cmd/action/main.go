// Command action is the GitHub Action: one step of a workflow that packages a project, builds or
// reuses its image, and deploys it. See package action.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/sluice-dev/sluice/cmd/action/internal/action"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	context.AfterFunc(ctx, stop) // a second signal ends it at once
	os.Exit(action.Main(ctx, os.Args[1:], os.Environ(), os.Stdout, os.Stderr))
}
