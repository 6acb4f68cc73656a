// Command cluster runs a Kubernetes cluster of one node on this machine, for tests: `cluster up`,
// `cluster down`, and what a test wants to do to it in between.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	defer stop()
	if err := newRoot().ExecuteContext(ctx); err != nil {
		fmt.Fprintf(os.Stderr, "cluster: %v\n", err)
		var code exitCode
		if errors.As(err, &code) {
			os.Exit(int(code))
		}
		os.Exit(1)
	}
}

// exitCode is an error that ends the program with a code of its own.
type exitCode int

func (c exitCode) Error() string { return fmt.Sprintf("exit code %d", int(c)) }

// notRunning is the exit code of `status` where there is no cluster.
const notRunning exitCode = 3

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:           "cluster",
		Short:         "A Kubernetes cluster of one node on this machine, for tests",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	o := &options{}
	root.PersistentFlags().StringVar(&o.dir, "dir", "", "the cluster's directory (default .cache/cluster of this repository)")
	root.AddCommand(
		newUp(o), newDown(o), newStatus(o), newExec(o), newKill(o), newStart(o), newForward(o), newImages(o), newLoad(o),
		newBuild(o), newSupervise(),
	)
	return root
}
