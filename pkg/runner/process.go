package runner

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"syscall"
	"time"
)

// A spawner starts the children of one Run and knows which processes are its own.
type spawner struct {
	log    *slog.Logger
	out    *os.File // stdout and stderr of every child
	starts chan func()
	ended  chan struct{}
	reaped chan struct{} // poked when a child of ours has been waited for

	mu   sync.Mutex // held while forking, so that no child of ours passes for a stranger
	pids map[int]struct{}
}

// newSpawner starts the thread that forks. Linux sends a parent-death signal when the
// forking *thread* ends, not the process (prctl(2), PR_SET_PDEATHSIG): so all
// children come from one goroutine that keeps its thread until close.
func newSpawner(log *slog.Logger, out *os.File) *spawner {
	s := &spawner{log: log, out: out, starts: make(chan func()), ended: make(chan struct{}),
		reaped: make(chan struct{}, 1), pids: map[int]struct{}{}}
	go func() {
		defer close(s.ended)
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		for start := range s.starts {
			start()
		}
	}()
	return s
}

// close ends the forking thread, after every child has ended.
func (s *spawner) close() {
	close(s.starts)
	<-s.ended
}

// A process is a child in a process group of its own.
type process struct {
	cmd   *exec.Cmd
	guard *os.File // its closing kills what is left of the group, see proc_linux.go
	done  chan struct{}
	state *os.ProcessState // valid after done; nil if waiting failed
}

// start runs cmd in a new process group that ends with this process. Descriptor 3 of
// the child is the guard, its ExtraFiles follow.
func (s *spawner) start(cmd *exec.Cmd) (*process, error) {
	guardChild, guard, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("open guard pipe: %w", err)
	}
	defer func() { _ = guardChild.Close() }()
	cmd.ExtraFiles = append([]*os.File{guardChild}, cmd.ExtraFiles...)
	cmd.Stdout, cmd.Stderr = s.out, s.out
	cmd.SysProcAttr = groupAttributes()

	started := make(chan error)
	s.starts <- func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		err := cmd.Start()
		if err == nil {
			s.pids[cmd.Process.Pid] = struct{}{}
		}
		started <- err
	}
	if err := <-started; err != nil {
		_ = guard.Close()
		return nil, fmt.Errorf("start %s: %w", cmd.Path, err)
	}
	p := &process{cmd: cmd, guard: guard, done: make(chan struct{})}
	if err := guardGroup(guardChild, cmd.Process.Pid); err != nil {
		s.log.Warn("cannot tie the process group to the gate; children of the child may survive a kill -9", "err", err)
	}
	go func() {
		err := cmd.Wait()
		var exit *exec.ExitError
		if err != nil && !errors.As(err, &exit) {
			s.log.Error("wait for child", "pid", cmd.Process.Pid, "err", err)
		}
		p.state = cmd.ProcessState
		killGroup(cmd.Process.Pid) // what the leader left behind
		_ = guard.Close()
		s.mu.Lock()
		delete(s.pids, cmd.Process.Pid)
		s.mu.Unlock()
		select {
		case s.reaped <- struct{}{}:
		default:
		}
		close(p.done)
	}()
	return p, nil
}

// owns says whether pid is a child that is waited for elsewhere.
func (s *spawner) owns(pid int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ok := s.pids[pid]
	return ok
}

// alive says whether the process has not been waited for.
func (p *process) alive() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// kill ends the whole group at once and waits for its leader.
func (p *process) kill() {
	if p.alive() {
		killGroup(p.cmd.Process.Pid)
	}
	<-p.done
}

// wait waits for the end, at most d, and reports whether it came.
func (p *process) wait(d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-p.done:
		return true
	case <-t.C:
		return false
	}
}

// exitCode of a process that has ended, as a shell has it.
func (p *process) exitCode() int {
	if p.state == nil {
		return 1
	}
	if ws, ok := p.state.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		return 128 + int(ws.Signal())
	}
	return p.state.ExitCode()
}

// how describes the end of a process.
func (p *process) how() string {
	if p.state == nil {
		return "unknown end"
	}
	return p.state.String()
}
