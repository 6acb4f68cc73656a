package webhook

import (
	"net"
	"sync"
)

// sharing is a listener of which no address has more than some connections at a time: what is beyond is closed at
// once. Behind an ingress all of them have one address, so that has to be many.
type sharing struct {
	net.Listener
	each int

	mu sync.Mutex
	of map[string]int
}

func newSharing(l net.Listener, each int) *sharing {
	return &sharing{Listener: l, each: each, of: map[string]int{}}
}

// Accept implements net.Listener.
func (s *sharing) Accept() (net.Conn, error) {
	for {
		c, err := s.Listener.Accept()
		if err != nil {
			return nil, err
		}
		address := c.RemoteAddr().String()
		if host, _, err := net.SplitHostPort(address); err == nil {
			address = host
		}
		if s.enter(address) {
			return &shared{Conn: c, leave: sync.OnceFunc(func() { s.leave(address) })}, nil
		}
		_ = c.Close() // nothing was said on it
	}
}

func (s *sharing) enter(address string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.of[address] >= s.each {
		return false
	}
	s.of[address]++
	return true
}

func (s *sharing) leave(address string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.of[address]--; s.of[address] == 0 {
		delete(s.of, address)
	}
}

// shared is one of an address's connections.
type shared struct {
	net.Conn
	leave func()
}

// Close implements net.Conn.
func (c *shared) Close() error {
	defer c.leave()
	return c.Conn.Close()
}
