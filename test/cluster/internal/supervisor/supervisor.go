// Package supervisor runs a cluster's programs as the first process of namespaces of its own, so that
// the end of that one process ends every other, and takes every mount, interface and iptables rule
// with it.
package supervisor

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/sluice-dev/sluice/test/cluster/internal/node"
)

const (
	specFile   = "supervisor.json"
	socketFile = "control.sock"
	logFile    = "supervisor.log"
	// firstFile is the descriptor of the first of the files that a child inherits.
	firstFile = 3
)

// spec is what the supervisor is told at its start. Its files are inherited, in the order of: the
// host's network namespace, then a listener for each forward.
type spec struct {
	Node     node.Node
	Forwards []Forward
}

// Forward is an address of the host whose connections go to Target inside.
type Forward struct {
	Name   string `json:"name,omitempty"`
	Host   string `json:"host"`
	Target string `json:"target"`
	// Outward turns it round: Host is listened at inside and Target dialled on the host.
	Outward bool `json:"outward,omitempty"`
}

// Listener is a forward and the host's end of it.
type Listener struct {
	Forward
	Socket *net.TCPListener
}

// Start starts a supervisor for n that outlives the caller and hands it the listeners, which stay
// sockets of the host wherever they are accepted at. The files of n have been written. The supervisor
// runs this program again with args, which have to lead to Run; done gets its end as long as the
// caller is there.
func Start(n node.Node, listeners []Listener, args ...string) (process *os.Process, done <-chan error, err error) {
	hostNetwork, err := os.Open("/proc/self/ns/net")
	if err != nil {
		return nil, nil, fmt.Errorf("open network namespace: %w", err)
	}
	defer hostNetwork.Close()
	files := []*os.File{hostNetwork}
	s := spec{Node: n}
	for _, l := range listeners {
		f, err := l.Socket.File()
		if err != nil {
			return nil, nil, fmt.Errorf("hand listener %s over: %w", l.Host, err)
		}
		defer f.Close()
		files = append(files, f)
		s.Forwards = append(s.Forwards, l.Forward)
	}
	body, err := json.Marshal(s)
	if err != nil {
		return nil, nil, fmt.Errorf("encode spec: %w", err)
	}
	if err := os.WriteFile(filepath.Join(n.Dir, specFile), body, 0o600); err != nil {
		return nil, nil, fmt.Errorf("write spec: %w", err)
	}
	log, err := os.OpenFile(filepath.Join(n.Logs(), logFile), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, nil, fmt.Errorf("open log: %w", err)
	}
	defer log.Close()

	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Args[0] = "cluster"
	cmd.Dir = n.Dir
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = files
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Setsid:     true,
		Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS,
	}
	if err := cmd.Start(); err != nil {
		return nil, nil, fmt.Errorf("start supervisor: %w", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	return cmd.Process, ended, nil
}

// Run is the supervisor: the first process of its namespaces, in the cluster's directory, started by
// Start. It returns only on failure.
func Run(ctx context.Context) error {
	if os.Getpid() != 1 {
		return fmt.Errorf("run supervisor: it is not for people, and has to be the first process of a namespace; use up")
	}
	body, err := os.ReadFile(specFile)
	if err != nil {
		return fmt.Errorf("read spec: %w", err)
	}
	var s spec
	if err := json.Unmarshal(body, &s); err != nil {
		return fmt.Errorf("decode spec: %w", err)
	}
	// What the children run must not keep these open.
	for i := range len(s.Forwards) + 1 {
		unix.CloseOnExec(firstFile + i)
	}
	if err := setUpNamespaces(ctx, s.Node); err != nil {
		return fmt.Errorf("set namespaces up: %w", err)
	}
	control, err := net.Listen("unix", socketFile)
	if err != nil {
		return fmt.Errorf("listen for commands: %w", err)
	}
	f := &forwarder{hostNetwork: firstFile}
	for i, forward := range s.Forwards {
		if err := f.adopt(forward, os.NewFile(uintptr(firstFile+1+i), forward.Host)); err != nil {
			return fmt.Errorf("forward %s: %w", forward.Host, err)
		}
	}
	if err := serveRegistry(ctx, s.Node); err != nil {
		return fmt.Errorf("serve registry: %w", err)
	}
	r := newReaper()
	go r.run()
	c, err := newComponents(s.Node, r)
	if err != nil {
		return err
	}
	c.run(ctx)
	return serveControl(control, c, f)
}
