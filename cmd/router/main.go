// Command router is the request router and the autoscaler. See package router.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/sluice-dev/sluice/pkg/router/routercmd"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	context.AfterFunc(ctx, stop) // a second signal ends it at once
	os.Exit(routercmd.Main(ctx, os.Args[1:], os.Environ(), os.Stdout, os.Stderr))
}
