package upstream

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// replica accepts connections and hands them to the test.
func replica(t *testing.T) (*Replica, chan net.Conn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	conns := make(chan net.Conn, 16)
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			conns <- c
		}
	})
	r := New(ln.Addr().String(), nil)
	t.Cleanup(func() {
		r.Close()
		_ = ln.Close()
		wg.Wait()
		for len(conns) > 0 {
			_ = (<-conns).Close()
		}
	})
	return r, conns
}

func dial(t *testing.T, r *Replica) *Conn {
	t.Helper()
	c, err := r.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	return c
}

func TestReuse(t *testing.T) {
	r, conns := replica(t)
	c := dial(t, r)
	peer := <-conns
	c.Reuse()
	if again := dial(t, r); again != c {
		t.Fatal("an idle connection was not used again")
	}
	second := dial(t, r)
	peer2 := <-conns
	if second == c {
		t.Fatal("a connection was used twice at a time")
	}
	c.Reuse()
	second.Reuse()
	if last := dial(t, r); last != second {
		t.Error("not the one used last")
	} else {
		last.Reuse()
	}

	// One on which something came unasked is not used again; one that was closed neither.
	if _, err := io.WriteString(peer2, "HTTP/1.1 408 Request Timeout\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	_ = peer.Close()
	eventually(t, func() bool { return !c.quiet() && !second.quiet() })
	fresh := dial(t, r)
	if fresh == c || fresh == second {
		t.Error("a dead connection was used again")
	}
	peer3 := <-conns
	fresh.Reuse()
	_ = peer3.Close()
	eventually(t, func() bool { return !fresh.quiet() })
	r.Sweep()
	if n := len(r.idle); n != 0 {
		t.Errorf("%d idle connections after a sweep", n)
	}
}

func eventually(t *testing.T, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(5 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("never")
		}
	}
}

func TestClose(t *testing.T) {
	closed := 0
	r, conns := replica(t)
	r.onClose = func(*Replica) { closed++ }
	busy, idle := dial(t, r), dial(t, r)
	<-conns
	<-conns
	idle.Reuse()
	r.Close()
	r.Close()
	if closed != 1 {
		t.Errorf("told %d times", closed)
	}
	if _, err := idle.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("idle: %v", err)
	}
	if _, err := busy.Write([]byte("x")); err != nil {
		t.Errorf("in use: %v", err)
	}
	busy.Reuse()
	if _, err := busy.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
		t.Errorf("given back: %v", err)
	}
}

func TestExchange(t *testing.T) {
	r, conns := replica(t)
	c := dial(t, r)
	peer := <-conns
	defer func() { _ = peer.Close() }()
	for _, size := range []int{0, 10, joined, joined + 1, 60_000} {
		body := []byte(strings.Repeat("b", size))
		head := []byte("POST /score HTTP/1.1\r\nHost: x\r\nContent-Length: " + strconv.Itoa(size) + "\r\n\r\n")
		got := make(chan int, 1)
		go func() {
			req, err := http.ReadRequest(bufio.NewReader(peer))
			if err != nil {
				got <- -1
				return
			}
			b, _ := io.ReadAll(req.Body)
			got <- len(b)
			_, _ = io.WriteString(peer, "HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
		}()
		whole, err := c.Send(&head, body)
		if !whole || err != nil {
			t.Fatalf("%d bytes: whole %v, %v", size, whole, err)
		}
		if n := <-got; n != size {
			t.Errorf("%d bytes arrived of %d", n, size)
		}
		if !c.Answered(5 * time.Second) {
			t.Error("no answer")
		}
		_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
		resp, began, err := c.Receive("POST", false)
		if err != nil || !began || resp.StatusCode != 200 {
			t.Fatalf("%v, %v, %v", resp, began, err)
		}
		if b, err := io.ReadAll(resp.Body); string(b) != "ok" || err != nil {
			t.Errorf("%q, %v", b, err)
		}
	}
	// Nothing yet is no failure, and what comes later is not lost.
	if c.Answered(time.Millisecond) {
		t.Error("an answer to nothing")
	}
	_, _ = io.WriteString(peer, "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n")
	_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
	if resp, _, err := c.Receive("POST", true); err != nil || resp.StatusCode != 100 {
		t.Errorf("%v, %v", resp, err)
	}
	if resp, _, err := c.Receive("POST", true); err != nil || resp.StatusCode != 204 {
		t.Errorf("%v, %v", resp, err)
	}
	// A hand that aborts ends a wait.
	time.AfterFunc(10*time.Millisecond, c.Abort)
	if _, began, err := c.Receive("POST", false); began || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("%v, %v", began, err)
	}
}

// A write to a replica that is gone: not all of it can be said to have been sent.
func TestPartialWrite(t *testing.T) {
	r, conns := replica(t)
	c := dial(t, r)
	peer := (<-conns).(*net.TCPConn)
	_ = c.SetDeadline(time.Now().Add(200 * time.Millisecond)) // the peer reads nothing
	head := []byte("x")
	whole, err := c.Send(&head, make([]byte, 64<<20))
	if whole || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("whole %v, %v", whole, err)
	}
	_ = peer.Close()

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := r.Conn(ctx); err == nil {
		t.Error("a connection for someone who is gone")
	}
}
