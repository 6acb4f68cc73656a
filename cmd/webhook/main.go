// Command webhook is the control plane: GitHub's webhooks, the API and the
// control role. See package webhook.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/sluice-dev/sluice/pkg/webhook/webhookcmd"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	context.AfterFunc(ctx, stop) // a second signal ends it at once
	os.Exit(webhookcmd.Main(ctx, os.Args[1:], os.Environ(), os.Stdout, os.Stderr))
}
