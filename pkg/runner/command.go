package runner

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
)

// A command is the engine of a custom server or a script that the runner starts: it
// supervises the process and leaves requests to the front.
type command struct {
	*front
	o     *Options
	spawn *spawner
	port  int
}

// newCommand picks the server's port and builds its front.
func newCommand(o *Options, spawn *spawner, own net.Addr) (*command, error) {
	port := o.Server.Port
	if tcp, ok := own.(*net.TCPAddr); ok && port != 0 && tcp.Port == port {
		return nil, invalid("server.port", "use another one, or leave it out and listen on $PORT", "the gate itself listens on %d", port)
	}
	// Free now: if it is fixed, because the health of another server there would pass
	// for this one's; if not, because it was picked so.
	ln, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
	if err != nil {
		return nil, &ExitError{Code: ExitInit, Err: fmt.Errorf("find a port for the server: %w", err)}
	}
	port = ln.Addr().(*net.TCPAddr).Port
	if err := ln.Close(); err != nil {
		return nil, fmt.Errorf("find a port for the server: %w", err)
	}
	target := net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
	return &command{front: newFront(o, target), o: o, spawn: spawn, port: port}, nil
}

func (c *command) line() (path string, args []string, err error) {
	if len(c.o.Command) > 0 {
		path, err = c.o.lookPath(c.o.Command[0])
		return path, c.o.Command[1:], err
	}
	if path, err = c.o.lookPath(c.o.Python); err != nil {
		return "", nil, err
	}
	script, err := c.o.entryScript()
	return path, append([]string{script}, c.o.Arguments...), err
}

func (c *command) env() []string {
	set := []string{"PORT=" + strconv.Itoa(c.port)}
	has := func(name string) bool {
		for _, kv := range c.o.Env {
			if strings.HasPrefix(kv, name+"=") {
				return true
			}
		}
		return false
	}
	if !has("PYTHONUNBUFFERED") {
		set = append(set, "PYTHONUNBUFFERED=1") // prints must reach the log as they happen
	}
	if c.o.SourceDirectory != "" && c.o.Mode == ModeScript && !has("PYTHONPATH") {
		set = append(set, "PYTHONPATH="+filepath.Join(c.o.ProjectDir, c.o.SourceDirectory))
	}
	return c.o.childEnv(set...)
}

// run starts the server, reports its health to the gate and ends when it does: with
// its exit code, or ExitInit if it had never been ready.
func (c *command) run(ctx context.Context, g *gate) error {
	defer c.client.CloseIdleConnections()
	path, args, err := c.line()
	if err != nil {
		return &ExitError{Code: ExitInit, Err: fmt.Errorf("find server: %w", err)}
	}
	cmd := exec.Command(path, args...)
	cmd.Dir = c.o.ProjectDir
	cmd.Env = c.env()
	proc, err := c.spawn.start(cmd)
	if err != nil {
		return &ExitError{Code: ExitInit, Err: err}
	}
	c.o.Logger.Info("server started", "pid", proc.cmd.Process.Pid, "port", c.port)

	watching, stopWatch := context.WithCancel(ctx)
	ill := make(chan error, 1)
	go func() { ill <- c.watch(watching, g, c.o.InitTimeout) }()
	defer stopWatch()
	select {
	case <-proc.done:
		stopWatch()
		if err := <-ill; err != nil { // both at once
			c.o.Logger.Debug("server was not well", "err", err)
		}
	case err := <-ill: // the server did not come up, or ctx has ended
		if err != nil {
			proc.kill()
			return &ExitError{Code: ExitInit, Err: err}
		}
		if !errors.Is(context.Cause(ctx), errAbrupt) {
			proc.terminate()
			proc.wait(stopGrace)
		}
		proc.kill()
		return nil
	}
	g.set(stateStarting)
	if !g.wasReady() {
		return &ExitError{Code: ExitInit, Err: fmt.Errorf("wait for the server on port %d: it ended before it was ready (%s)", c.port, proc.how())}
	}
	return &ExitError{Code: proc.exitCode(), Err: fmt.Errorf("run server: it ended (%s)", proc.how())}
}
