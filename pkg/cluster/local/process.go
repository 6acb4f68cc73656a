package local

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"time"
)

// The descriptors that a runner inherits.
const (
	listenFlag   = "--listen-fd=3"
	lifelineFlag = "--lifeline-fd=4"
)

// outputPatience is how long output is still read after a process ended: what it
// left behind may hold the pipe open.
const outputPatience = 500 * time.Millisecond

// spawner starts processes that end with this one, however it ends: each reads a
// pipe whose other end only this process holds, and on Linux the kernel kills it when the
// thread that started it dies (PR_SET_PDEATHSIG). Therefore one thread starts all, and
// lives until close.
type spawner struct {
	requests   chan func()
	readLife   *os.File
	writeLife  *os.File
	threadDone chan struct{}
}

func newSpawner() (*spawner, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("make lifeline: %w", err)
	}
	s := &spawner{requests: make(chan func()), readLife: r, writeLife: w, threadDone: make(chan struct{})}
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		defer close(s.threadDone)
		for f := range s.requests {
			f()
		}
	}()
	return s, nil
}

// close ends all that still lives: the lifeline reports the end.
func (s *spawner) close() error {
	err := errors.Join(s.writeLife.Close(), s.readLife.Close())
	close(s.requests)
	<-s.threadDone
	return err
}

// process is one run of a replica's program, the leader of a process group.
type process struct {
	cmd  *exec.Cmd
	addr string
	// done is closed when it has ended, was reaped and its output was read.
	done chan struct{}
	// state and err are how it ended; set before done is closed.
	state *os.ProcessState
	err   error
}

// start opens a port on loopback and starts argv, which has listenFlag and
// lifelineFlag, on it. The port takes connections from the first moment; they wait in the
// kernel's backlog until the process accepts them.
func (s *spawner) start(argv []string, dir string, env []string, out io.Writer) (*process, error) {
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("open port: %w", err)
	}
	addr := ln.Addr().String()
	socket, err := ln.(*net.TCPListener).File()
	_ = ln.Close() // socket is a duplicate
	if err != nil {
		return nil, fmt.Errorf("open port: %w", err)
	}
	defer func() { _ = socket.Close() }()
	outR, outW, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("open pipe: %w", err)
	}
	defer func() { _ = outW.Close() }()

	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Dir, cmd.Env = dir, env
	cmd.Stdout, cmd.Stderr = outW, outW
	cmd.ExtraFiles = []*os.File{socket, s.readLife}
	cmd.SysProcAttr = processAttributes()
	started := make(chan error, 1)
	s.requests <- func() { started <- cmd.Start() }
	if err := <-started; err != nil {
		_ = outR.Close()
		return nil, fmt.Errorf("start runner: %w", err)
	}

	p := &process{cmd: cmd, addr: addr, done: make(chan struct{})}
	read := make(chan struct{})
	go func() {
		defer close(read)
		_, _ = io.Copy(out, outR)
	}()
	go func() {
		p.reap()
		p.state = cmd.ProcessState
		select {
		case <-read:
		case <-time.After(outputPatience):
		}
		_ = outR.Close() // ends a read that still waits
		<-read
		close(p.done)
	}()
	return p, nil
}

func (p *process) pid() int { return p.cmd.Process.Pid }

// terminate asks it to drain and end.
func (p *process) terminate() { _ = p.cmd.Process.Signal(syscall.SIGTERM) }

func (p *process) kill() { _ = p.cmd.Process.Kill() }

// how it ended, in words.
func (p *process) how() string {
	if p.state == nil {
		return fmt.Sprint(p.err)
	}
	return p.state.String()
}

func (p *process) exitCode() int {
	if p.state == nil {
		return -1
	}
	return p.state.ExitCode()
}
