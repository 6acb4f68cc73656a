package buildkit_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// tool compiles the program under test and the daemon, or skips.
func tool(t *testing.T) string {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("it needs root")
	}
	program := filepath.Join(t.TempDir(), "buildkit")
	if out, err := exec.Command("go", "build", "-o", program, "./cmd/buildkit").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if out, err := exec.Command(program, "build").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return program
}

// script leaves in $1 what it sees, and answers whether the daemon does.
const script = `echo "$BUILDKIT_HOST $SLUICE_TEST_BUILDKIT_DIR" > "$1"; test -S "${BUILDKIT_HOST#unix://}" || exit 4; mount > "$1.mounts"; `

func TestRun(t *testing.T) {
	program := tool(t)
	before := machine(t)
	dir, out := short(t), filepath.Join(t.TempDir(), "out")
	began := time.Now()
	cmd := exec.Command(program, "run", "--dir", dir, "--", "sh", "-c", script+"exit 7", "sh", out)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	var ended *exec.ExitError
	if err := cmd.Run(); !errors.As(err, &ended) || ended.ExitCode() != 7 {
		t.Errorf("the command's exit code 7 became %v\n%s", err, &stderr)
	}
	t.Logf("start, command and end: %.2f s", time.Since(began).Seconds())
	if text, err := os.ReadFile(out); err != nil || string(text) != fmt.Sprintf("unix://%s/daemon.sock %s\n", dir, dir) {
		t.Errorf("the command was told %q, %v", text, err)
	}
	if text, err := os.ReadFile(out + ".mounts"); err != nil || strings.Contains(string(text), dir) {
		t.Errorf("the host sees mounts of the daemon, %v", err)
	}
	gone(t, dir, before)
}

func TestKilled(t *testing.T) {
	program := tool(t)
	before := machine(t)
	for _, signal := range []unix.Signal{unix.SIGKILL, unix.SIGTERM} {
		dir, out := short(t), filepath.Join(t.TempDir(), "out")
		cmd := exec.Command(program, "run", "--dir", dir, "--", "sh", "-c", script+"exec sleep 4712.5", "sh", out)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		until(t, "the command runs", func() bool { _, err := os.Stat(out + ".mounts"); return err == nil })
		if err := cmd.Process.Signal(signal); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait()
		until(t, "the directory goes", func() bool { _, err := os.Stat(dir); return errors.Is(err, fs.ErrNotExist) })
		until(t, "the command ends", func() bool { return exec.Command("pgrep", "-f", "^sleep 4712.5").Run() != nil })
		gone(t, dir, before)
	}
}

func TestCommandThatIsNot(t *testing.T) {
	program := tool(t)
	before := machine(t)
	dir := short(t)
	out, err := exec.Command(program, "run", "--dir", dir, "--", "/nowhere/command").CombinedOutput()
	if err == nil || !strings.Contains(string(out), "/nowhere/command") {
		t.Errorf("it says %s, %v", out, err)
	}
	gone(t, dir, before)
}

// TestEngineHere: an engine in the caller's network has no bridge, leaves the interfaces alone, and takes no other engine's.
func TestEngineHere(t *testing.T) {
	program := tool(t)
	before := machine(t)
	interfaces := func() string {
		t.Helper()
		found, err := net.Interfaces()
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, i := range found {
			names = append(names, i.Name)
		}
		return strings.Join(names, " ")
	}
	had := interfaces()
	dir, out := short(t), filepath.Join(t.TempDir(), "out")
	const script = `test -S "${DOCKER_HOST#unix://}" || exit 4; readlink /proc/self/ns/net >"$1"; ls /sys/class/net >>"$1"`
	if said, err := exec.Command(program, "run", "--docker", "--here", "--dir", dir, "--", "sh", "-c", script, "sh", out).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, said)
	}
	network, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	if text, err := os.ReadFile(out); err != nil || !strings.HasPrefix(string(text), network+"\n") || strings.Contains(string(text), "docker0") {
		t.Errorf("the command was in %s, %v, want %s without a docker0", text, err, network)
	}
	gone(t, dir, before)

	other := exec.Command("unshare", "--net", "sh", "-c", `ip link add docker0 type bridge && ! "$@" && ip link show docker0`, "sh", program, "run", "--docker", "--here", "--dir", dir, "--", "true")
	if said, err := other.CombinedOutput(); err != nil || !strings.Contains(string(said), "of another engine") {
		t.Errorf("beside another engine's bridge: %v\n%s", err, said)
	}
	gone(t, dir, before)
	if has := interfaces(); has != had {
		t.Errorf("the interfaces were %s and are %s", had, has)
	}
}

// short is a directory that is not there, with a name short enough for a socket in it.
func short(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "bk")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return filepath.Join(dir, "bk-"+filepath.Base(dir))
}

// gone checks that nothing of a run is left.
func gone(t *testing.T, dir, before string) {
	t.Helper()
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the directory is there: %v", err)
	}
	if after := machine(t); after != before {
		t.Errorf("the machine had\n%s\nand has\n%s", before, after)
	}
	for _, pattern := range []string{"/sys/fs/cgroup/", "/sys/fs/cgroup/*/"} {
		if left, err := filepath.Glob(pattern + "sluice-" + filepath.Base(dir)); err != nil || len(left) > 0 {
			t.Errorf("cgroups are left: %v, %v", left, err)
		}
	}
	commands, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range commands {
		if line, err := os.ReadFile(c); err == nil && bytes.Contains(line, []byte(dir)) {
			t.Errorf("a process is left: %q", line)
		}
	}
}

// machine is what a run may not change, as text: mounts, and where engines that are installed keep what is theirs.
func machine(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	out := string(text)
	for _, path := range []string{"/run/buildkit", "/run/runc", "/run/docker", "/var/lib/buildkit", "/var/lib/docker"} {
		if _, err := os.Lstat(path); err == nil {
			out += path + "\n"
		}
	}
	for _, path := range []string{"/etc/buildkit", "/etc/docker"} {
		err := filepath.WalkDir(path, func(path string, _ fs.DirEntry, err error) error {
			if err == nil {
				out += path + "\n"
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return out
}

func until(t *testing.T, what string, is func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for !is() {
		if ctx.Err() != nil {
			t.Fatalf("waited for: %s", what)
		}
		time.Sleep(20 * time.Millisecond)
	}
}
