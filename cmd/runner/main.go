// Command runner is the first process of a replica: the gate and the scoring server.
// See package runner.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/sluice-dev/sluice/pkg/runner"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	context.AfterFunc(ctx, stop) // a second signal ends it at once
	os.Exit(runner.Main(ctx, os.Args[1:], os.Environ(), os.Stdout, os.Stderr))
}
