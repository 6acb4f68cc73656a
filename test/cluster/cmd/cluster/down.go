package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/sluice-dev/sluice/test/cluster/internal/cgroup"
	"github.com/sluice-dev/sluice/test/cluster/internal/node"
	"github.com/sluice-dev/sluice/test/cluster/internal/supervisor"
)

// removeTimeout bounds what only waits for the kernel.
const removeTimeout = 30 * time.Second

func newDown(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "down",
		Short: "End the cluster and remove all of it, its directory included; does nothing if there is none",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			p, err := o.paths()
			if err != nil {
				return err
			}
			began := time.Now()
			if _, err := os.Stat(p.cluster); errors.Is(err, os.ErrNotExist) {
				fmt.Fprintln(cmd.OutOrStdout(), "there is no cluster")
				return nil
			}
			if err := remove(cmd.Context(), p.cluster); err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "the cluster is gone, %.1f s\n", time.Since(began).Seconds())
			return nil
		},
	}
}

// remove ends the cluster of dir, if it runs, and removes its control groups and dir. There is no need
// to end pods first: with the first process of their namespace the kernel ends all others, before
// that one counts as ended itself, and then drops the mounts and the network that only they had.
func remove(ctx context.Context, dir string) error {
	if _, err := os.Stat(filepath.Join(dir, marker)); err != nil {
		return fmt.Errorf("remove cluster: %s is not a cluster's directory: %w", dir, err)
	}
	ctx, cancel := context.WithTimeout(ctx, removeTimeout)
	defer cancel()
	pid, err := supervisor.NewClient(dir).PID()
	switch {
	case errors.Is(err, supervisor.ErrNotRunning):
	case err != nil:
		return fmt.Errorf("find supervisor: %w", err)
	default:
		if err := end(ctx, pid); err != nil {
			return fmt.Errorf("end supervisor: %w", err)
		}
	}
	if err := cgroup.Remove(ctx, node.Node{Dir: dir}.Cgroup()); err != nil {
		return err
	}
	for {
		// The kernel lets go of the last mounts a moment after the last process.
		err := os.RemoveAll(dir)
		if err == nil {
			return nil
		}
		if !errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("remove directory: %w", err)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("remove directory: %w", err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// end kills a process and waits until it is gone, by a descriptor that cannot come to mean another.
func end(ctx context.Context, pid int) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return err
	}
	for {
		ready, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 100)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
		if ready > 0 {
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
}
