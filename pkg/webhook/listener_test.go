package webhook

import (
	"errors"
	"io"
	"net"
	"testing"
	"time"
)

// TestSharing: one address cannot have all connections; what another has is its own.
func TestSharing(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := newSharing(l, 2)
	defer s.Close()
	accepted := make(chan net.Conn, 16)
	go func() {
		for {
			c, err := s.Accept()
			if err != nil {
				return
			}
			accepted <- c
		}
	}()
	dial := func(from string) net.Conn {
		t.Helper()
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
		c, err := d.DialContext(t.Context(), "tcp", l.Addr().String())
		if err != nil {
			t.Skipf("no second loopback address: %v", err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	taken := func() net.Conn {
		t.Helper()
		select {
		case c := <-accepted:
			return c
		case <-time.After(5 * time.Second):
			t.Fatal("no connection is taken")
			return nil
		}
	}
	dial("127.0.0.2")
	first := taken()
	dial("127.0.0.2")
	taken()
	third := dial("127.0.0.2")
	_ = third.SetReadDeadline(time.Now().Add(5 * time.Second))
	var late net.Error
	if _, err := third.Read(make([]byte, 1)); err == nil || errors.As(err, &late) && late.Timeout() {
		t.Errorf("the third connection is not closed: %v", err)
	} else if !errors.Is(err, io.EOF) {
		t.Logf("closed: %v", err)
	}
	dial("127.0.0.1")
	taken().Close()
	first.Close()
	first.Close() // counts once
	dial("127.0.0.2")
	taken()
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.of) != 1 || s.of["127.0.0.2"] != 2 {
		t.Errorf("counted %v", s.of)
	}
}
