package up

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"syscall"
	"time"
)

// How a child that ended is started again: at once, then ever later while it
// ends soon after its start.
const (
	firstDelay = 50 * time.Millisecond
	lastDelay  = 5 * time.Second
	soon       = 10 * time.Second
)

// child is a process of this system that is kept running.
type child struct {
	name string
	argv []string
	env  []string
	// files become the child's descriptors 3, 4, …
	files []*os.File
	out   io.Writer
	log   *slog.Logger
	// drain is how long it may take to end after SIGTERM.
	drain time.Duration
	// start runs a command from a thread that lives as long as this process: the kernel ties
	// the parent-death signal to the thread that forked.
	start func(*exec.Cmd) error
}

// run keeps the child running until ctx ends, then ends it: SIGTERM first, and
// SIGKILL when it takes longer than drain.
func (c *child) run(ctx context.Context) {
	delay := time.Duration(0)
	for {
		if delay > 0 {
			select {
			case <-ctx.Done():
				return
			case <-time.After(delay):
			}
		}
		began := time.Now()
		err := c.once(ctx)
		if ctx.Err() != nil {
			return
		}
		if time.Since(began) > soon {
			delay = 0
		} else {
			delay = min(max(2*delay, firstDelay), lastDelay)
		}
		c.log.Error("a process ended and is started again", "process", c.name, "cause", cause(err), "after", time.Since(began).Round(time.Millisecond).String())
	}
}

func cause(err error) string {
	if err == nil {
		return "it ended by itself"
	}
	return err.Error()
}

func (c *child) once(ctx context.Context) error {
	cmd := exec.Command(c.argv[0], c.argv[1:]...)
	cmd.Env, cmd.ExtraFiles, cmd.Stdout, cmd.Stderr = c.env, c.files, c.out, c.out
	// An own process group, so that an interrupt typed at the terminal reaches only the supervisor.
	cmd.SysProcAttr = childAttributes()
	if err := c.start(cmd); err != nil {
		return fmt.Errorf("start %s: %w", c.name, err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
	}
	_ = cmd.Process.Signal(syscall.SIGTERM)
	select {
	case err := <-ended:
		return err
	case <-time.After(c.drain):
		_ = cmd.Process.Kill()
		return fmt.Errorf("it had to be killed: %w", <-ended)
	}
}

// starter runs commands' Start on one locked thread until ctx ends.
func starter(ctx context.Context, wg *sync.WaitGroup) func(*exec.Cmd) error {
	type job struct {
		cmd  *exec.Cmd
		done chan error
	}
	jobs := make(chan job)
	wg.Go(func() {
		runtime.LockOSThread() // never unlocked while children live
		for {
			select {
			case <-ctx.Done():
				return
			case j := <-jobs:
				j.done <- j.cmd.Start()
			}
		}
	})
	return func(cmd *exec.Cmd) error {
		j := job{cmd, make(chan error, 1)}
		select {
		case jobs <- j:
			return <-j.done
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
