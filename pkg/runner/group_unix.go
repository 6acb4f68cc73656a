//go:build unix

package runner

import (
	"fmt"
	"net"
	"os"
	"syscall"
)

// killGroup ends every process of a group; one that is gone already is no error.
func killGroup(pgid int) { _ = syscall.Kill(-pgid, syscall.SIGKILL) }

// terminate asks the processes of the group to end.
func (p *process) terminate() {
	if p.alive() {
		_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGTERM)
	}
}

// dumpStacks asks a worker to write its threads' stacks to the log.
func (p *process) dumpStacks() {
	if p.alive() {
		_ = p.cmd.Process.Signal(syscall.SIGUSR2)
	}
}

// socketPair is a stream between here and a child: our end, and the file to hand over.
func socketPair() (net.Conn, *os.File, error) {
	// Not one step everywhere (SOCK_CLOEXEC is Linux's): hold off forks in between.
	syscall.ForkLock.RLock()
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
	if err == nil {
		syscall.CloseOnExec(fds[0])
		syscall.CloseOnExec(fds[1])
	}
	syscall.ForkLock.RUnlock()
	if err != nil {
		return nil, nil, fmt.Errorf("open socket pair: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "lane"), os.NewFile(uintptr(fds[1]), "lane of worker")
	conn, err := net.FileConn(ours) // a duplicate, non-blocking
	_ = ours.Close()
	if err != nil {
		_ = theirs.Close()
		return nil, nil, fmt.Errorf("open socket pair: %w", err)
	}
	return conn, theirs, nil
}

// inherited is a descriptor that the owner handed over, not to be handed on.
func inherited(fd int, name string) *os.File {
	syscall.CloseOnExec(fd)
	_ = syscall.SetNonblock(fd, true) // so that Close ends a Read; an invalid one fails there
	return os.NewFile(uintptr(fd), name)
}
