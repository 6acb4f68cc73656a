package supervisor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// ErrNotRunning says that a directory has no running cluster.
var ErrNotRunning = errors.New("no cluster is running")

// commandTimeout bounds one command; the longest waits for the API server, on a machine that may be busy.
const commandTimeout = 2 * time.Minute

// request and response are one message each, on a connection of their own; a request to forward has
// the listener with it.
type request struct {
	Command   string
	Component string  `json:",omitempty"`
	Forward   Forward `json:",omitzero"`
}

type response struct {
	Error  string  `json:",omitempty"`
	Status *Status `json:",omitempty"`
}

// Status is how a cluster is doing.
type Status struct {
	Components []ComponentStatus `json:"components"`
	Forwards   []Forward         `json:"forwards"`
}

const (
	commandStatus  = "status"
	commandKill    = "kill"
	commandStart   = "start"
	commandForward = "forward"
)

func serveControl(listener net.Listener, c *components, f *forwarder) error {
	for {
		conn, err := listener.Accept()
		if err != nil {
			return fmt.Errorf("accept command: %w", err)
		}
		go func() {
			defer conn.Close()
			var answer response
			if err := handle(conn.(*net.UnixConn), c, f, &answer); err != nil {
				answer.Error = err.Error()
			}
			_ = json.NewEncoder(conn).Encode(answer)
		}()
	}
}

func handle(conn *net.UnixConn, c *components, f *forwarder, answer *response) error {
	body, files := make([]byte, 64<<10), make([]byte, unix.CmsgSpace(4))
	n, oobn, _, _, err := conn.ReadMsgUnix(body, files)
	if err != nil {
		return fmt.Errorf("read command: %w", err)
	}
	if n == 0 {
		return errors.New("read command: there is none")
	}
	var req request
	if err := json.Unmarshal(body[:n], &req); err != nil {
		return fmt.Errorf("decode command: %w", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), commandTimeout)
	defer cancel()
	switch req.Command {
	case commandStatus:
		answer.Status = &Status{Components: c.status(), Forwards: f.list()}
		return nil
	case commandKill, commandStart:
		one, err := c.find(req.Component)
		if err != nil {
			return err
		}
		if req.Command == commandKill {
			return one.kill()
		}
		return one.release(ctx)
	case commandForward:
		if req.Forward.Outward {
			return f.outward(req.Forward)
		}
		file, err := received(files[:oobn])
		if err != nil {
			return fmt.Errorf("receive listener: %w", err)
		}
		return f.adopt(req.Forward, file)
	}
	return fmt.Errorf("find command: there is no %q", req.Command)
}

func received(oob []byte) (*os.File, error) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, err
	}
	if len(messages) != 1 {
		return nil, errors.New("the command has none with it")
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil {
		return nil, err
	}
	unix.CloseOnExec(fds[0])
	return os.NewFile(uintptr(fds[0]), "listener"), nil
}

// Client talks to the supervisor of a directory.
type Client struct {
	dir string
}

// NewClient is for the cluster in dir, running or not.
func NewClient(dir string) Client { return Client{dir: dir} }

// Status asks how the cluster is doing.
func (c Client) Status() (Status, error) {
	answer, err := c.do(request{Command: commandStatus}, nil)
	if err != nil {
		return Status{}, err
	}
	if answer.Status == nil {
		return Status{}, errors.New("read status: the answer has none")
	}
	return *answer.Status, nil
}

// Kill kills a component as by kill -9 and keeps it down.
func (c Client) Kill(component string) error {
	_, err := c.do(request{Command: commandKill, Component: component}, nil)
	return err
}

// StartComponent ends what Kill began.
func (c Client) StartComponent(component string) error {
	_, err := c.do(request{Command: commandStart, Component: component}, nil)
	return err
}

// Forward adds a forward; its listener is not needed on the host after that.
func (c Client) Forward(l Listener) error {
	if l.Outward {
		_, err := c.do(request{Command: commandForward, Forward: l.Forward}, nil)
		return err
	}
	file, err := l.Socket.File()
	if err != nil {
		return fmt.Errorf("hand listener over: %w", err)
	}
	defer file.Close()
	_, err = c.do(request{Command: commandForward, Forward: l.Forward}, unix.UnixRights(int(file.Fd())))
	return err
}

// PID is the supervisor's, as its caller sees it. It comes from the kernel for a socket that is alive,
// and so cannot be a number that was given to another process since.
func (c Client) PID() (int, error) {
	conn, err := c.dial()
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0, fmt.Errorf("read peer: %w", err)
	}
	var peer *unix.Ucred
	var optErr error
	if err := raw.Control(func(fd uintptr) {
		peer, optErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return 0, fmt.Errorf("read peer: %w", err)
	}
	if optErr != nil {
		return 0, fmt.Errorf("read peer: %w", optErr)
	}
	return int(peer.Pid), nil
}

func (c Client) dial() (*net.UnixConn, error) {
	// Through the directory's descriptor, since the address of a socket may have no more than 107
	// bytes and a test's directory can have more.
	dir, err := os.Open(c.dir)
	if err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return nil, ErrNotRunning
		}
		return nil, fmt.Errorf("open directory: %w", err)
	}
	defer dir.Close()
	path := filepath.Join(fmt.Sprintf("/proc/self/fd/%d", dir.Fd()), socketFile)
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Net: "unix", Name: path})
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ECONNREFUSED) {
		return nil, ErrNotRunning
	}
	if err != nil {
		return nil, fmt.Errorf("reach supervisor: %w", err)
	}
	return conn, nil
}

func (c Client) do(req request, rights []byte) (response, error) {
	conn, err := c.dial()
	if err != nil {
		return response{}, err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(commandTimeout + 5*time.Second)); err != nil {
		return response{}, fmt.Errorf("bound command: %w", err)
	}
	body, err := json.Marshal(req)
	if err != nil {
		return response{}, fmt.Errorf("encode command: %w", err)
	}
	if _, _, err := conn.WriteMsgUnix(body, rights, nil); err != nil {
		return response{}, fmt.Errorf("send command: %w", err)
	}
	var answer response
	if err := json.NewDecoder(conn).Decode(&answer); err != nil {
		return response{}, fmt.Errorf("read answer: %w", err)
	}
	if answer.Error != "" {
		return response{}, errors.New(answer.Error)
	}
	return answer, nil
}
