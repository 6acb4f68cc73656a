package runner

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// kernelGuards: the kernel ends a child's process group with this process.
const kernelGuards = true

// groupAttributes puts a child into a group of its own and kills it when the thread
// that forked it ends. That reaches the child alone; guardGroup reaches its children.
func groupAttributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}

// guardGroup makes the kernel kill a process group when this process ends, even by
// kill -9: the guard is a pipe whose write end only we hold and whose read end the
// group inherited. In asynchronous mode (fcntl(2): O_ASYNC, F_SETOWN, F_SETSIG) the
// hang-up of the last writer sends its owner, the group, a signal of our choice.
func guardGroup(readEnd *os.File, pgid int) error {
	conn, err := readEnd.SyscallConn()
	if err != nil {
		return fmt.Errorf("guard process group: %w", err)
	}
	var failed error
	err = conn.Control(func(fd uintptr) {
		for _, set := range []struct{ cmd, arg int }{{unix.F_SETSIG, int(unix.SIGKILL)}, {unix.F_SETOWN, -pgid}} {
			if _, failed = unix.FcntlInt(fd, set.cmd, set.arg); failed != nil {
				return
			}
		}
		var flags int
		if flags, failed = unix.FcntlInt(fd, unix.F_GETFL, 0); failed == nil {
			_, failed = unix.FcntlInt(fd, unix.F_SETFL, flags|unix.O_ASYNC)
		}
	})
	if err == nil {
		err = failed
	}
	if err != nil {
		return fmt.Errorf("guard process group: %w", err)
	}
	return nil
}

// reapOrphans waits for children that nobody here started: as the first process of a
// container the runner inherits every process whose parent ended. It returns when ctx
// ends.
func (s *spawner) reapOrphans(ctx context.Context) {
	sigs := make(chan os.Signal, 1)
	signal.Notify(sigs, unix.SIGCHLD)
	defer signal.Stop(sigs)
	for {
		select {
		case <-ctx.Done():
			return
		case <-sigs:
		case <-s.reaped:
		}
		// A script that forks much raises many signals: one look a while later does for all.
		select {
		case <-ctx.Done():
			return
		case <-time.After(200 * time.Millisecond):
		}
		for _, pid := range zombies(os.Getpid()) {
			if s.owns(pid) {
				continue
			}
			if _, err := unix.Wait4(pid, nil, unix.WNOHANG, nil); err != nil {
				s.log.Debug("reap orphan", "pid", pid, "err", err)
			}
		}
	}
}

// zombies are the ended children of parent that nobody has waited for, by proc(5).
func zombies(parent int) []int {
	dir, err := os.Open("/proc")
	if err != nil {
		return nil
	}
	defer func() { _ = dir.Close() }()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil
	}
	var found []int
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		stat, err := os.ReadFile("/proc/" + name + "/stat")
		if err != nil {
			continue
		}
		// pid (comm) state ppid …; comm may hold anything, so from the last parenthesis.
		i := bytes.LastIndexByte(stat, ')')
		fields := bytes.Fields(stat[i+1:])
		if i < 0 || len(fields) < 2 || string(fields[0]) != "Z" || string(fields[1]) != strconv.Itoa(parent) {
			continue
		}
		found = append(found, pid)
	}
	return found
}
