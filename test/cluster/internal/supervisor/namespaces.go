package supervisor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/sluice-dev/sluice/test/cluster/internal/node"
)

// setUpNamespaces makes the new namespaces a place that a node can live in and leave no trace of.
func setUpNamespaces(ctx context.Context, n node.Node) error {
	if err := setUpMounts(n); err != nil {
		return err
	}
	if err := unix.Sethostname([]byte(node.Name)); err != nil {
		return fmt.Errorf("set host name: %w", err)
	}
	return setUpNetwork(ctx)
}

func setUpMounts(n node.Node) error {
	// Private first, so that nothing below reaches the host; then shared again among the cluster's
	// own namespaces, which the kubelet needs to hand mounts to containers.
	for _, flags := range []uintptr{unix.MS_REC | unix.MS_PRIVATE, unix.MS_REC | unix.MS_SHARED} {
		if err := unix.Mount("", "/", "", flags, ""); err != nil {
			return fmt.Errorf("set mount propagation: %w", err)
		}
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	// The programs have fixed paths in these directories: CNI's addresses, the shims' sockets, links
	// to logs, the lock of iptables.
	if err := unix.Mount("run", "/run", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755"); err != nil {
		return fmt.Errorf("mount /run: %w", err)
	}
	for from, to := range map[string]string{n.VarLib(): "/var/lib", n.VarLog(): "/var/log"} {
		if err := unix.Mount(from, to, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("mount %s: %w", to, err)
		}
	}
	return hideKernelSettings(n)
}

// hideKernelSettings covers the settings of the whole machine that a kubelet would change (its list,
// in k8s.io/component-helpers/node/util/sysctl) with files that have the values it wants.
func hideKernelSettings(n node.Node) error {
	for name, want := range map[string]string{
		"vm/overcommit_memory":      "1",
		"vm/panic_on_oom":           "0",
		"kernel/panic":              "10",
		"kernel/panic_on_oops":      "1",
		"kernel/keys/root_maxkeys":  "1000000",
		"kernel/keys/root_maxbytes": "25000000",
	} {
		setting := filepath.Join("/proc/sys", name)
		is, err := os.ReadFile(setting)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("read kernel setting: %w", err)
		}
		if strings.TrimSpace(string(is)) == want {
			continue
		}
		cover := filepath.Join(n.Data(), "sysctl", strings.ReplaceAll(name, "/", "."))
		if err := os.MkdirAll(filepath.Dir(cover), 0o755); err != nil {
			return fmt.Errorf("make directory: %w", err)
		}
		if err := os.WriteFile(cover, []byte(want+"\n"), 0o644); err != nil {
			return fmt.Errorf("write cover of kernel setting: %w", err)
		}
		if err := unix.Mount(cover, setting, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("cover kernel setting %s: %w", name, err)
		}
	}
	return nil
}

func setUpNetwork(ctx context.Context) error {
	// A pair of interfaces stands for the node's network card. Its default route leads nowhere; it is
	// there because a packet to a Service needs a route before iptables turns it to a pod.
	for _, line := range []string{
		"link set lo up",
		"link add node0 type veth peer name node1",
		fmt.Sprintf("addr add %s/%d dev node0", node.Address, node.AddressBits),
		"link set node0 up",
		"link set node1 up",
		"route add default dev node0",
	} {
		var stderr bytes.Buffer
		cmd := exec.CommandContext(ctx, "ip", strings.Fields(line)...)
		cmd.Stderr = &stderr
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("run ip %s: %w: %s", line, err, strings.TrimSpace(stderr.String()))
		}
	}
	if err := os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0o644); err != nil {
		return fmt.Errorf("allow forwarding: %w", err)
	}
	return nil
}
