package supervisor

import (
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"sync"

	"golang.org/x/sys/unix"
)

// forwarder joins connections between the host and the inside. A socket belongs to the network
// namespace that it was made in, whoever uses it; so a listener of the host, accepted at in here, is
// all that it takes.
type forwarder struct {
	hostNetwork int

	mu  sync.Mutex
	all []Forward
}

// adopt takes a listener that was made on the host.
func (f *forwarder) adopt(forward Forward, file *os.File) error {
	defer file.Close()
	listener, err := net.FileListener(file)
	if err != nil {
		return fmt.Errorf("take listener over: %w", err)
	}
	f.serve(forward, listener, net.Dial)
	return nil
}

// outward listens inside for connections to the host.
func (f *forwarder) outward(forward Forward) error {
	listener, err := net.Listen("tcp", forward.Host)
	if err != nil {
		return fmt.Errorf("listen inside: %w", err)
	}
	f.serve(forward, listener, f.dialHost)
	return nil
}

func (f *forwarder) list() []Forward {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]Forward(nil), f.all...)
}

func (f *forwarder) serve(forward Forward, listener net.Listener, dial func(network, address string) (net.Conn, error)) {
	f.mu.Lock()
	f.all = append(f.all, forward)
	f.mu.Unlock()
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				fmt.Printf("forward %s: accept: %v\n", forward.Host, err)
				return
			}
			go func() {
				defer conn.Close()
				to, err := dial("tcp", forward.Target)
				if err != nil {
					// As near as it gets to the refusal that the peer would have seen.
					if tcp, ok := conn.(*net.TCPConn); ok {
						_ = tcp.SetLinger(0)
					}
					return
				}
				defer to.Close()
				join(conn, to)
			}()
		}
	}()
}

// join copies both ways until both have ended.
func join(a, b net.Conn) {
	var wg sync.WaitGroup
	for _, way := range []struct{ to, from net.Conn }{{a, b}, {b, a}} {
		wg.Go(func() {
			if _, err := io.Copy(way.to, way.from); err != nil {
				// The other direction would wait for a peer that is gone.
				a.Close()
				b.Close()
				return
			}
			if half, ok := way.to.(interface{ CloseWrite() error }); ok {
				_ = half.CloseWrite()
			}
		})
	}
	wg.Wait()
}

// dialHost dials from the host's network namespace. The thread that was moved there is not used
// again: it ends with its goroutine, which never unlocks it.
func (f *forwarder) dialHost(network, address string) (net.Conn, error) {
	type result struct {
		conn net.Conn
		err  error
	}
	done := make(chan result, 1)
	go func() {
		runtime.LockOSThread()
		if err := unix.Setns(f.hostNetwork, unix.CLONE_NEWNET); err != nil {
			done <- result{err: fmt.Errorf("enter host network: %w", err)}
			return
		}
		// With one literal address the socket is made by the goroutine that dials.
		conn, err := net.Dial(network, address)
		done <- result{conn, err}
	}()
	r := <-done
	return r.conn, r.err
}
