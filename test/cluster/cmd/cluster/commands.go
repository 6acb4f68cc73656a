package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"text/tabwriter"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/sluice-dev/sluice/test/cluster/internal/binaries"
	"github.com/sluice-dev/sluice/test/cluster/internal/images"
	"github.com/sluice-dev/sluice/test/cluster/internal/node"
	"github.com/sluice-dev/sluice/test/cluster/internal/preflight"
	"github.com/sluice-dev/sluice/test/cluster/internal/supervisor"
)

func newStatus(o *options) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Say how the cluster's components are; exit code 3 if there is no cluster",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			p, err := o.paths()
			if err != nil {
				return err
			}
			client := supervisor.NewClient(p.cluster)
			status, err := client.Status()
			if errors.Is(err, supervisor.ErrNotRunning) {
				return fmt.Errorf("ask supervisor: %w: %w", err, notRunning)
			}
			if err != nil {
				return err
			}
			if asJSON {
				return json.NewEncoder(cmd.OutOrStdout()).Encode(struct {
					supervisor.Status
					Kubeconfig string `json:"kubeconfig"`
					Logs       string `json:"logs"`
				}{status, node.Node{Dir: p.cluster}.Kubeconfig(), node.Node{Dir: p.cluster}.Logs()})
			}
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
			fmt.Fprintln(w, "COMPONENT\tSTATE\tRESTARTS\tLAST END")
			for _, c := range status.Components {
				fmt.Fprintf(w, "%s\t%s\t%d\t%s\n", c.Name, state(c), c.Restarts, c.LastEnd)
			}
			if err := w.Flush(); err != nil {
				return err
			}
			return report(client, p, cmd.OutOrStdout())
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "as JSON")
	return cmd
}

func state(c supervisor.ComponentStatus) string {
	switch {
	case c.Held:
		return "killed"
	case c.PID == 0:
		return "down"
	case !c.Ready:
		return "starting"
	}
	return "running"
}

func newExec(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "exec -- COMMAND [ARGUMENT...]",
		Short: "Run a command in the cluster's network, with its DNS and KUBECONFIG set",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			p, err := o.paths()
			if err != nil {
				return err
			}
			pid, err := supervisor.NewClient(p.cluster).PID()
			if err != nil {
				return fmt.Errorf("find supervisor: %w", err)
			}
			return enter(pid, node.Node{Dir: p.cluster}, args)
		},
	}
}

// enter replaces this process by a command in the network namespace of pid. The command keeps the
// host's files and processes, and so outlives the cluster if nobody ends it.
func enter(pid int, n node.Node, args []string) error {
	path, err := exec.LookPath(args[0])
	if err != nil {
		return fmt.Errorf("find command: %w", err)
	}
	network, err := unix.Open(fmt.Sprintf("/proc/%d/ns/net", pid), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open network namespace: %w", err)
	}
	// A namespace is entered by one thread, and it is that one which becomes the command.
	runtime.LockOSThread()
	if err := unix.Setns(network, unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter network namespace: %w", err)
	}
	// Mounts of its own, for the cluster's DNS to be in /etc/resolv.conf.
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("unshare mounts: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return fmt.Errorf("set mount propagation: %w", err)
	}
	if err := unix.Mount(n.ResolvConf(), "/etc/resolv.conf", "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mount /etc/resolv.conf: %w", err)
	}
	if err := os.Setenv("KUBECONFIG", n.Kubeconfig()); err != nil {
		return fmt.Errorf("set KUBECONFIG: %w", err)
	}
	if err := unix.Exec(path, args, os.Environ()); err != nil {
		return fmt.Errorf("run %s: %w", path, err)
	}
	return nil
}

func newKill(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "kill COMPONENT",
		Short: "End a component as by kill -9 and keep it down",
		Args:  cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			client, err := o.client()
			if err != nil {
				return err
			}
			return client.Kill(args[0])
		},
	}
}

func newStart(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "start COMPONENT",
		Short: "Start a component that was killed; returns when it is ready",
		Args:  cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			client, err := o.client()
			if err != nil {
				return err
			}
			return client.StartComponent(args[0])
		},
	}
}

func newForward(o *options) *cobra.Command {
	var outward bool
	cmd := &cobra.Command{
		Use:   "forward HOSTPORT:NODEPORT | HOSTPORT:ADDRESS:PORT | --reach NODEPORT:HOSTPORT",
		Short: "Add a port of the host that leads inside, or with --reach the reverse; prints the address to use",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, err := o.client()
			if err != nil {
				return err
			}
			read := inward
			if outward {
				read = reach
			}
			l, err := read(args[0])
			if err != nil {
				return err
			}
			if l.Socket != nil {
				defer l.Socket.Close()
			}
			if err := client.Forward(l); err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), l.Host)
			return nil
		},
	}
	cmd.Flags().BoolVar(&outward, "reach", false, "a port of the node that leads to the host's loopback")
	return cmd
}

func newImages(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "images [NAME...]",
		Short: "Make the base images and put them into the registry: " + images.Busybox + ", " + images.Python,
		RunE: func(cmd *cobra.Command, args []string) error {
			return withRegistry(o, func(registry string, p paths) error {
				if err := preflight.Images(cmd.Context(), cmd.OutOrStdout()); err != nil {
					return err
				}
				return images.Push(cmd.Context(), registry, filepath.Join(p.cache, "cluster-images"), args, cmd.OutOrStdout())
			})
		},
	}
}

func newLoad(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "load IMAGE.tar...",
		Short: "Put images, as `docker save` writes them, into the registry",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return withRegistry(o, func(registry string, _ paths) error {
				return images.Load(cmd.Context(), registry, args, cmd.OutOrStdout())
			})
		},
	}
}

func withRegistry(o *options, do func(registry string, p paths) error) error {
	p, err := o.paths()
	if err != nil {
		return err
	}
	status, err := supervisor.NewClient(p.cluster).Status()
	if err != nil {
		return err
	}
	for _, f := range status.Forwards {
		if f.Name == forwardRegistry {
			return do(f.Host, p)
		}
	}
	return errors.New("find registry: the cluster has none")
}

func newBuild(o *options) *cobra.Command {
	return &cobra.Command{
		Use:   "build",
		Short: "Compile the cluster's programs; up does it too",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			p, err := o.paths()
			if err != nil {
				return err
			}
			set, err := binaries.Build(cmd.Context(), p.module, p.cache, cmd.OutOrStdout())
			if err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), set.Kube)
			return nil
		},
	}
}

func newSupervise() *cobra.Command {
	return &cobra.Command{
		Use:    "supervise",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			// Nothing but the end of its namespace ends it, so that it takes no signal's context.
			return supervisor.Run(context.Background())
		},
	}
}
