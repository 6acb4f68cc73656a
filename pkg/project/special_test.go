//go:build linux

package project

import (
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sluice-dev/sluice/rollout"
)

func TestRefusedKinds(t *testing.T) {
	dir := files(t, t.TempDir(), map[string]string{"sluice.yaml": simple, "score.py": "x", "sub/a": "x"})
	if err := syscall.Mkfifo(filepath.Join(dir, "sub/pipe"), 0o644); err != nil {
		t.Fatal(err)
	}
	// A socket's path is short, so it is bound from inside its directory.
	t.Chdir(filepath.Join(dir, "sub"))
	ln, err := net.Listen("unix", "sock")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	want := []string{"sub/pipe is a named pipe, which cannot ship", "sub/sock is a socket, which cannot ship"}
	if err := unix.Mknod(filepath.Join(dir, "null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))); err == nil {
		want = append(want, "null is a device, which cannot ship")
	} else {
		t.Logf("no device could be made: %v", err)
	}
	l := mustPlan(t, dir)
	for _, w := range want {
		if err := l.Err(); rollout.ReasonOf(err) != rollout.ReasonUnsafeFile || !strings.Contains(err.Error(), w) {
			t.Errorf("got %v, want %s", err, w)
		}
	}
	// What is ignored may be anything.
	files(t, dir, map[string]string{".gitignore": "pipe\nsock\nnull\n"})
	if err := mustPlan(t, dir).Err(); err != nil {
		t.Error(err)
	}
	// Neither a manifest nor rules that are a pipe make anyone wait.
	if err := os.Remove(filepath.Join(dir, ".gitignore")); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{".gitignore", ".amlignore"} {
		if err := syscall.Mkfifo(filepath.Join(dir, name), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := mustPlan(t, dir).Err(); err == nil || !strings.Contains(err.Error(), ".amlignore is a named pipe") {
		t.Errorf("%v", err)
	}
	if err := os.Remove(filepath.Join(dir, "sluice.yaml")); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(filepath.Join(dir, "sluice.yaml"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(dir); rollout.ReasonOf(err) != rollout.ReasonUnsafeFile {
		t.Errorf("%v", err)
	}
}

// asNobody runs f with the file rights of a user without any, on this thread only.
func asNobody(t *testing.T, f func()) {
	t.Helper()
	if os.Getuid() != 0 {
		f()
		return
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	const nobody = 65534
	if err := syscall.Setfsgid(nobody); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Setfsuid(nobody); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := syscall.Setfsuid(0); err != nil {
			t.Error(err)
		}
		if err := syscall.Setfsgid(0); err != nil {
			t.Error(err)
		}
	}()
	f()
}

func TestUnreadable(t *testing.T) {
	dir := files(t, t.TempDir(), map[string]string{
		"sluice.yaml": simple, "score.py": "x", "a/secret": "x", "closed/x": "x", "listed/x": "x", "ignored/x": "x", "b": "x", ".gitignore": "ignored/\n",
	})
	for up := dir; up != os.TempDir() && up != "/"; up = filepath.Dir(up) {
		if err := os.Chmod(up, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for p, mode := range map[string]os.FileMode{"a/secret": 0, "closed": 0, "listed": 0o711, "ignored": 0} {
		if err := os.Chmod(filepath.Join(dir, p), mode); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = os.Chmod(filepath.Join(dir, p), 0o755) })
	}
	asNobody(t, func() {
		err := mustPlan(t, dir).Err()
		for _, want := range []string{
			"a/secret cannot be read: permission denied", "closed cannot be read: permission denied", "listed cannot be read: permission denied",
		} {
			if rollout.ReasonOf(err) != rollout.ReasonUnsafeFile || !strings.Contains(err.Error(), want) {
				t.Errorf("got %v, want %s", err, want)
			}
		}
		if n := len(strings.Split(err.Error(), "\n")); n != 3 {
			t.Errorf("%d refusals: %v", n, err)
		}
	})
	// Rules that cannot be read are no reason to ship everything.
	if err := os.Chmod(filepath.Join(dir, ".gitignore"), 0); err != nil {
		t.Fatal(err)
	}
	asNobody(t, func() {
		m, err := Load(dir)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Plan(t.Context(), dir, m); rollout.ReasonOf(err) != rollout.ReasonUnsafeFile || !strings.Contains(err.Error(), ".gitignore: cannot be read") {
			t.Errorf("%v", err)
		}
	})
}
