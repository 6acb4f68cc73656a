package local

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const canHost = true

func processAttributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}

// reap waits for the end of p and kills what is left of its group before it reaps it
// (waitid(2), WNOWAIT): so long the group's number is surely its own.
func (p *process) reap() {
	for {
		var info unix.Siginfo
		err := unix.Waitid(unix.P_PID, p.pid(), &info, unix.WEXITED|unix.WNOWAIT, nil)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	p.killGroup()
	p.err = p.cmd.Wait()
}

// killGroup ends what the process started and left in its group.
func (p *process) killGroup() { _ = syscall.Kill(-p.pid(), syscall.SIGKILL) }

// sweep kills every process with that mark in its environment (markVariable begins
// with it) and waits until there is none. The environment as of a process's start is in
// /proc/PID/environ and names are random, so nothing foreign is ever hit; and os.FindProcess holds
// on to the process itself (pidfd), so neither is one that gets its number meanwhile.
func sweep(mark string) error {
	want := []byte("\x00" + markVariable + "=" + mark)
	deadline := time.Now().Add(5 * time.Second)
	for {
		found, err := sweepOnce(want)
		if found == 0 || err != nil {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("end what replicas left behind: %d processes with %s=%s live on", found, markVariable, mark)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func sweepOnce(want []byte) (found int, err error) {
	dir, err := os.Open("/proc")
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil // some containers have none; the lifeline has to do
	}
	if err != nil {
		return 0, fmt.Errorf("look for processes: %w", err)
	}
	defer func() { _ = dir.Close() }()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return 0, fmt.Errorf("look for processes: %w", err)
	}
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil || pid == os.Getpid() {
			continue
		}
		// Held before its environment is read, so that both are of one process.
		p, err := os.FindProcess(pid)
		if err != nil {
			continue
		}
		env, err := os.ReadFile("/proc/" + name + "/environ") // empty for zombies, which need no killing
		if err == nil && bytes.Contains(append([]byte{0}, env...), want) && p.Kill() == nil {
			found++
		}
		_ = p.Release()
	}
	return found, nil
}
