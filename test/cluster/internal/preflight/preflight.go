// Package preflight makes sure that the machine has what a cluster needs from outside Go.
package preflight

import (
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
)

// Busybox is where Debian has it.
const Busybox = "/bin/busybox"

// tool is a program, what tells whether it is here (by default, that it is on the PATH), and the
// Debian package that has it. A package is installed only for a tool that is missing, since
// distributions of the same programs from elsewhere conflict with Debian's.
type tool struct {
	name  string
	check func() bool
	pkg   string
}

func cluster() []tool {
	return []tool{
		{name: "containerd", pkg: "containerd"},
		{name: "runc", pkg: "runc"},
		{name: "iptables", pkg: "iptables"},
		{name: "conntrack", pkg: "conntrack"},
		{name: "ip", pkg: "iproute2"},
		{name: "CNI plugins", check: func() bool { _, err := CNI(); return err == nil }, pkg: "containernetworking-plugins"},
	}
}

func images() []tool {
	return []tool{
		{name: "debootstrap", pkg: "debootstrap"},
		{name: "static busybox", check: staticBusybox, pkg: "busybox-static"},
	}
}

func cniPaths() []string {
	return []string{"/usr/lib/cni/ptp", "/opt/cni/bin/ptp", "/usr/libexec/cni/ptp"}
}

// CNI is the directory of the CNI plugins.
func CNI() (string, error) {
	for _, path := range cniPaths() {
		if _, err := os.Stat(path); err == nil {
			return filepath.Dir(path), nil
		}
	}
	return "", fmt.Errorf("find CNI plugins: none of %s exists", strings.Join(cniPaths(), ", "))
}

// Possible says why no cluster can run here, or nothing; it changes nothing.
func Possible() error {
	if runtime.GOOS != "linux" {
		return errors.New("a cluster needs Linux")
	}
	if os.Getuid() != 0 {
		return errors.New("a cluster needs root: it makes namespaces, mounts and cgroups")
	}
	if missing := lacking(cluster()); len(missing) > 0 && !installable() {
		return fmt.Errorf("a cluster needs programs that are not here: %s; install them, or run this as root on Debian or Ubuntu", names(missing))
	}
	return nil
}

// Cluster installs what a cluster lacks, as root on Debian or Ubuntu, and says so on out; elsewhere its
// error names what is missing and how to get it.
func Cluster(ctx context.Context, out io.Writer) error {
	if err := Possible(); err != nil {
		return err
	}
	return install(ctx, cluster(), out)
}

// Images is as Cluster, for what builds the base images.
func Images(ctx context.Context, out io.Writer) error { return install(ctx, images(), out) }

func install(ctx context.Context, tools []tool, out io.Writer) error {
	missing := lacking(tools)
	if len(missing) == 0 {
		return nil
	}
	if !installable() {
		return fmt.Errorf("find programs: missing are %s; install them, or run this as root on Debian or Ubuntu", names(missing))
	}
	packages := make([]string, len(missing))
	for i, t := range missing {
		packages[i] = t.pkg
	}
	fmt.Fprintln(out, "installing Debian packages: "+strings.Join(packages, " "))
	for _, args := range [][]string{
		{"update", "-qq"},
		append([]string{"install", "-y", "-qq", "--no-install-recommends"}, packages...),
	} {
		cmd := exec.CommandContext(ctx, "apt-get", args...)
		cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
		if output, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("run apt-get %s: %w\n%s", args[0], err, output)
		}
	}
	if still := lacking(tools); len(still) > 0 {
		return fmt.Errorf("find programs: still missing after the installation are %s", names(still))
	}
	return nil
}

func installable() bool {
	_, err := exec.LookPath("apt-get")
	return err == nil && os.Getuid() == 0
}

func lacking(tools []tool) []tool {
	var missing []tool
	for _, t := range tools {
		if !t.here() {
			missing = append(missing, t)
		}
	}
	return missing
}

func (t tool) here() bool {
	if t.check != nil {
		return t.check()
	}
	_, err := exec.LookPath(t.name)
	return err == nil
}

// staticBusybox tells the static program from the dynamic one, which has the same path and would
// find no libraries in an image of its own.
func staticBusybox() bool {
	f, err := elf.Open(Busybox)
	if err != nil {
		return false
	}
	defer f.Close()
	return !slices.ContainsFunc(f.Progs, func(p *elf.Prog) bool { return p.Type == elf.PT_INTERP })
}

func names(tools []tool) string {
	var all []string
	for _, t := range tools {
		all = append(all, fmt.Sprintf("%s (Debian package %s)", t.name, t.pkg))
	}
	return strings.Join(all, ", ")
}
