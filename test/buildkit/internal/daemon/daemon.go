// Package daemon runs a buildkitd, or a Docker engine, that leaves nothing behind. There are two processes beside
// the one that wants it:
//
//   - the keeper, which has a pipe from that one: when it ends, in whatever way, the keeper kills the
//     daemon and removes its control groups and its directory;
//   - the daemon, the first process of PID and mount namespaces of its own, so that its end is the
//     end of every step's processes and of every mount.
//
// A buildkitd has the caller's network, so that builds reach registries on loopback and package mirrors. An engine
// makes interfaces and rules; it has a network of its own, in which Run runs what wants to reach it, or makes none and
// has the caller's.
package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// startTimeout is generous for machines that are busy with the tests themselves.
	startTimeout = time.Minute
	// removeTimeout bounds what only waits for the kernel.
	removeTimeout = 30 * time.Second
	// maxSocket is how long the address of a socket may be, its final zero byte not counted.
	maxSocket = 107
	ready     = "ready"
	// aliveFile is the keeper's descriptor of the pipe from its owner.
	aliveFile = 3
)

// Arguments with which this program has to call Keep and Become: each takes the rest of the arguments.
const (
	KeepArg   = "keep"
	BecomeArg = "become"
)

// Kind is what runs.
type Kind string

// The kinds.
const (
	BuildKit Kind = "buildkitd"
	Docker   Kind = "dockerd"
	// DockerHere is an engine in the caller's network. It has no bridge: containers want host or none.
	DockerHere Kind = "dockerd-here"
)

// networked says that it has a network of its own.
func (k Kind) networked() bool { return k == Docker }

// Daemon is one that runs.
type Daemon struct {
	kind   Kind
	dir    string
	pid    int
	alive  *os.File
	keeper *exec.Cmd
	ended  chan error
}

// Start runs program, which is of a kind, in dir, which must exist, be empty and be on a disk that overlays can
// be on; it is gone when the daemon is. It returns when the daemon answers.
func Start(kind Kind, program, dir string) (*Daemon, error) {
	if n := len(socket(dir)); n > maxSocket {
		return nil, fmt.Errorf("start daemon: its socket would be %s, %d bytes, and may have %d; give a shorter directory", socket(dir), n, maxSocket)
	}
	out, told, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("start daemon: %w", err)
	}
	defer func() { _ = out.Close() }()
	defer func() { _ = told.Close() }()
	theirs, alive, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("start daemon: %w", err)
	}
	defer func() { _ = theirs.Close() }()
	d := &Daemon{kind: kind, dir: dir, alive: alive, ended: make(chan error, 1)}
	d.keeper = exec.Command("/proc/self/exe", KeepArg, string(kind), program, dir)
	d.keeper.Stdout, d.keeper.Stderr = told, os.Stderr
	d.keeper.ExtraFiles = []*os.File{theirs}
	// Not in the terminal's group: Ctrl-C is for the command, and the daemon ends after it.
	d.keeper.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := d.keeper.Start(); err != nil {
		_ = alive.Close()
		return nil, fmt.Errorf("start daemon: %w", err)
	}
	_ = told.Close()
	go func() { d.ended <- d.keeper.Wait() }()
	if _, err := fmt.Fscanf(out, ready+" %d\n", &d.pid); err != nil {
		_ = alive.Close()
		return nil, fmt.Errorf("start daemon: its keeper gave up: %w", <-d.ended)
	}
	return d, nil
}

// Address is what BUILDKIT_HOST, or DOCKER_HOST, has to be.
func (d *Daemon) Address() string { return "unix://" + socket(d.dir) }

// Run starts a command in the daemon's network and waits for its end; it ends with this process. The calling
// goroutine's thread stays in that network.
func (d *Daemon) Run(ctx context.Context, cmd *exec.Cmd) error {
	// A network is a thread's, and so is what a parent's death is told by.
	runtime.LockOSThread()
	if d.kind.networked() {
		network, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", d.pid))
		if err != nil {
			return fmt.Errorf("open network: %w", err)
		}
		defer func() { _ = network.Close() }()
		if err := unix.Setns(int(network.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter network: %w", err)
		}
	}
	// The command has no use without its daemon.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start command: %w", err)
	}
	// It may clean up, and its end is waited for.
	defer context.AfterFunc(ctx, func() { _ = cmd.Process.Signal(unix.SIGTERM) })()
	return cmd.Wait()
}

// Stop ends the daemon and all of its steps; they are gone, and its directory too, when it returns. It is
// an error if the daemon had ended before.
func (d *Daemon) Stop() error {
	_ = d.alive.Close()
	if err := <-d.ended; err != nil {
		return fmt.Errorf("stop daemon: %w", err)
	}
	return nil
}

func socket(dir string) string { return filepath.Join(dir, "daemon.sock") }
func log(dir string) string    { return filepath.Join(dir, "daemon.log") }

// cgroup is the control group of all steps. It differs between directories, so that several daemons
// can run at a time.
func cgroup(dir string) string { return "sluice-" + filepath.Base(dir) }

// Keep is the keeper; args are the kind, the program and the directory.
func Keep(args []string) error {
	if len(args) != 3 {
		return errors.New("keep daemon: this is not for people; use run")
	}
	dir := args[2]
	// A parent's death is told to a child when the thread ends that started it.
	runtime.LockOSThread()
	err := keep(Kind(args[0]), args[1], dir)
	ctx, cancel := context.WithTimeout(context.Background(), removeTimeout)
	defer cancel()
	return errors.Join(err, removeCgroups(ctx, cgroup(dir)), removeDir(ctx, dir))
}

func keep(kind Kind, program, dir string) error {
	owner := make(chan struct{})
	go func() {
		// There is nothing to read; it returns when the owner has ended.
		_, _ = io.Copy(io.Discard, os.NewFile(aliveFile, "owner"))
		close(owner)
	}()
	unix.CloseOnExec(aliveFile)
	for _, name := range []string{"tmp", "etc", "etc-work", "run", "run-work"} {
		if err := os.MkdirAll(filepath.Join(dir, name), 0o755); err != nil {
			return fmt.Errorf("make directory: %w", err)
		}
	}
	if kind == DockerHere {
		// An engine without a bridge removes this one, whoever made it.
		if _, err := net.InterfaceByName("docker0"); err == nil {
			return errors.New("start daemon: there is a docker0 in this network, of another engine")
		}
		// Containers get the caller's, which may be a mount, and those do not show through an overlay.
		text, err := os.ReadFile("/etc/resolv.conf")
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, "etc", "resolv.conf"), text, 0o644)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("copy resolv.conf: %w", err)
		}
	}
	text, flags := kind.settings(dir)
	if err := os.WriteFile(config(dir), []byte(text), 0o600); err != nil {
		return fmt.Errorf("write settings: %w", err)
	}
	out, err := os.Create(log(dir))
	if err != nil {
		return fmt.Errorf("make log: %w", err)
	}
	defer func() { _ = out.Close() }()
	cmd := exec.Command("/proc/self/exe", append([]string{BecomeArg, dir, program}, flags...)...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "TMPDIR="+filepath.Join(dir, "tmp"))
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS,
		Pdeathsig:  unix.SIGKILL,
	}
	if kind.networked() {
		cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWNET
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start daemon: %w", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	kill := func() {
		_ = cmd.Process.Kill()
		<-ended //nolint:errcheck // it was killed, and says so
	}
	deadline := time.After(startTimeout)
	for !answers(dir) {
		select {
		case err := <-ended:
			return fmt.Errorf("start daemon: it ended: %w; its log ends with:\n%s", err, tail(log(dir)))
		case <-owner:
			kill()
			return nil
		case <-deadline:
			kill()
			return fmt.Errorf("start daemon: it does not answer; its log ends with:\n%s", tail(log(dir)))
		case <-time.After(20 * time.Millisecond):
		}
	}
	if _, err := fmt.Printf(ready+" %d\n", cmd.Process.Pid); err != nil {
		kill()
		return fmt.Errorf("tell owner: %w", err)
	}
	select {
	case err := <-ended:
		<-owner
		return fmt.Errorf("the daemon ended before it was told to: %w; its log ends with:\n%s", err, tail(log(dir)))
	case <-owner:
		// No grace: with the first process of their namespace the kernel ends all others, and drops
		// the mounts that only they had.
		kill()
		return nil
	}
}

func config(dir string) string { return filepath.Join(dir, "daemon.conf") }

// settings are the text of the daemon's file and its flags. They keep all that is its own in dir.
func (k Kind) settings(dir string) (text string, flags []string) {
	root := filepath.Join(dir, "root")
	if k == Docker || k == DockerHere {
		flags = []string{
			"--config-file=" + config(dir), "--data-root=" + root, "--exec-root=" + filepath.Join(dir, "exec"),
			"--pidfile=" + filepath.Join(dir, "daemon.pid"), "--host=unix://" + socket(dir), "--cgroup-parent=/" + cgroup(dir),
			// What they would make is for a bridge: its own leads nowhere anyhow.
			"--iptables=false", "--ip-forward=false",
		}
		if k == DockerHere {
			flags = append(flags, "--bridge=none")
		}
		return "{}", flags
	}
	return fmt.Sprintf(`root = %q
[grpc]
  address = [ "unix://%s" ]
[otel]
  socketPath = %q
[cdi]
  disabled = true
[worker.oci]
  enabled = true
  gc = false
  networkMode = "host"
  defaultCgroupParent = %q
[worker.containerd]
  enabled = false
`, root, socket(dir), filepath.Join(dir, "otel.sock"), "/"+cgroup(dir)), []string{"--config=" + config(dir)}
}

// Become makes this process, the first of new namespaces, the daemon; args are its directory, its program and
// its arguments. It returns only on failure.
func Become(args []string) error {
	if len(args) < 2 || os.Getpid() != 1 {
		return errors.New("become daemon: this is not for people; use run")
	}
	// So that no mount of the daemon reaches the host.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	// An engine writes there whatever it is told.
	for _, name := range []string{"etc", "run"} {
		layers := fmt.Sprintf("lowerdir=/%[2]s,upperdir=%[1]s/%[2]s,workdir=%[1]s/%[2]s-work", args[0], name)
		if err := unix.Mount(name, "/"+name, "overlay", 0, layers); err != nil {
			return fmt.Errorf("cover /%s: %w", name, err)
		}
	}
	if err := loopback(); err != nil {
		return fmt.Errorf("set loopback up: %w", err)
	}
	if err := unix.Exec(args[1], args[1:], os.Environ()); err != nil {
		return fmt.Errorf("run %s: %w", args[1], err)
	}
	return nil
}

// loopback sets the interface up, which in a new network it is not.
func loopback() error {
	socket, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(socket) }()
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	if err := unix.IoctlIfreq(socket, unix.SIOCGIFFLAGS, lo); err != nil {
		return err
	}
	if lo.Uint16()&unix.IFF_UP != 0 {
		return nil
	}
	lo.SetUint16(lo.Uint16() | unix.IFF_UP)
	return unix.IoctlIfreq(socket, unix.SIOCSIFFLAGS, lo)
}

func answers(dir string) bool {
	conn, err := net.DialTimeout("unix", socket(dir), time.Second)
	if err != nil {
		return false
	}
	_ = conn.Close()
	return true
}

// removeCgroups removes the control group name in whichever hierarchies have it. It waits, until ctx
// ends, for processes that are still ending.
func removeCgroups(ctx context.Context, name string) error {
	var tops []string
	// Version 2 has one hierarchy; version 1 one a controller.
	for _, pattern := range []string{"/sys/fs/cgroup/", "/sys/fs/cgroup/*/"} {
		found, err := filepath.Glob(pattern + name)
		if err != nil {
			return fmt.Errorf("find cgroups: %w", err)
		}
		tops = append(tops, found...)
	}
	for _, top := range tops {
		for {
			err := removeCgroup(top)
			if err == nil {
				break
			}
			if ctx.Err() != nil || !errors.Is(err, unix.EBUSY) {
				return fmt.Errorf("remove cgroup: %w", err)
			}
			time.Sleep(20 * time.Millisecond)
		}
	}
	return nil
}

// removeCgroup removes dir bottom-up; files of a cgroup cannot be removed and go with it.
func removeCgroup(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := removeCgroup(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	if err := unix.Rmdir(dir); err != nil && !errors.Is(err, unix.ENOENT) {
		return &fs.PathError{Op: "rmdir", Path: dir, Err: err}
	}
	return nil
}

func removeDir(ctx context.Context, dir string) error {
	for {
		// The kernel lets go of the last mounts a moment after the last process.
		err := os.RemoveAll(dir)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil || !errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("remove directory: %w", err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// tail is the end of a log, for an error message.
func tail(path string) string {
	body, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(body)), "\n")
	return strings.Join(lines[max(0, len(lines)-15):], "\n")
}
