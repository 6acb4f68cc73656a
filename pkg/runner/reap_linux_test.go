package runner

import (
	"log/slog"
	"os"
	"os/exec"
	"testing"

	"golang.org/x/sys/unix"
)

// Orphans that come to a runner as the first process of a container are waited for,
// and its own children are left to those who wait for them. A subreaper stands in for
// the first process; it is a process of its own, since it would inherit this one's.
func TestReapsOrphans(t *testing.T) {
	t.Parallel()
	if os.Getenv("RUNNER_TEST_REAP") != "1" {
		cmd := exec.Command(os.Args[0], "-test.run=^TestReapsOrphans$", "-test.v")
		cmd.Env = append(os.Environ(), "RUNNER_TEST_REAP=1")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return
	}
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		t.Skip("no subreaper:", err)
	}
	dir := script(t, `
import os, subprocess, time
def init(): pass
def run(data):
    if data == "die": os._exit(3)
    # A child that leaves a child of its own behind, which leaves the group and ends.
    out = subprocess.run(["sh", "-c", "setsid sleep 0.3 >/dev/null 2>&1 & echo $!"], stdout=subprocess.PIPE, check=True)
    return int(out.stdout)
`)
	r := launch(t, Options{ProjectDir: dir, reap: true, Logger: slog.Default()}).ready()
	for range 3 {
		a := r.score("x")
		if a.status != 200 {
			t.Fatalf("got %+v", a)
		}
		eventually(t, "orphan reaped", func() bool {
			_, err := os.Stat("/proc/" + a.body)
			return os.IsNotExist(err)
		})
		if a := r.score("die"); a.status != 502 { // our own child's end is still seen
			t.Errorf("got %+v", a)
		}
		r.ready()
	}
	if left := zombies(os.Getpid()); len(left) != 0 {
		t.Errorf("zombies %v", left)
	}
}
