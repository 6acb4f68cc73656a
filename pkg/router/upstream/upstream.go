// Package upstream keeps HTTP/1.1 connections to one replica and moves requests
// over them, one goroutine per request and no hand-offs.
//
// It is not net/http's Transport because the router has to know what that hides:
// whether a lost connection had carried the whole request (then the model may have
// run and nothing is sent again), and whether a 100-continue came. Transport
// also sends some requests again on its own. Parsing of answers and of bodies is net/http's.
package upstream

import (
	"bufio"
	"context"
	"errors"
	"io"
	"math"
	"net"
	"net/http"
	"os"
	"sync"
	"syscall"
	"time"
)

const (
	// dialTimeout bounds connecting: within a cluster it takes far less, and a dead
	// node's address answers nothing at all.
	dialTimeout = time.Second
	// keepAlive probes find a peer that is gone without a word.
	keepAlive = 15 * time.Second
	// MaxIdle is how long a connection is kept without use: shorter than any gate keeps it.
	MaxIdle = time.Minute
	// maxHead bounds the head of an answer.
	maxHead = 256 << 10
	// maxInformational bounds the interim answers before the final one.
	maxInformational = 8
)

// ErrHeadTooLarge is an answer whose head exceeds 256 KiB.
var ErrHeadTooLarge = errors.New("head of the answer is too large")

// Replica is the connections to one replica. Safe for concurrent use.
type Replica struct {
	address string
	dialer  net.Dialer
	onClose func(*Replica)

	mu     sync.Mutex
	idle   []*Conn // the one used last is at the end and used next
	closed bool
}

// New replica at host:port. onClose, if set, is told when it is closed.
func New(address string, onClose func(*Replica)) *Replica {
	return &Replica{
		address: address, onClose: onClose,
		dialer: net.Dialer{Timeout: dialTimeout, KeepAlive: keepAlive},
	}
}

// Conn is a connection that nothing else uses: an idle one that is still open, or a
// new one. It ends in Reuse or Close.
func (r *Replica) Conn(ctx context.Context) (*Conn, error) {
	for {
		c := r.pop()
		if c == nil {
			break
		}
		if time.Since(c.idleSince) < MaxIdle && c.quiet() {
			return c, nil
		}
		c.Close()
	}
	nc, err := r.dialer.DialContext(ctx, "tcp", r.address)
	if err != nil {
		return nil, err
	}
	c := &Conn{Conn: nc, replica: r}
	c.br = bufio.NewReaderSize((*limited)(c), 4<<10)
	if sc, ok := nc.(syscall.Conn); ok {
		if raw, err := sc.SyscallConn(); err == nil {
			c.watch(raw)
		}
	}
	return c, nil
}

func (r *Replica) pop() *Conn {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := len(r.idle)
	if n == 0 {
		return nil
	}
	c := r.idle[n-1]
	r.idle[n-1] = nil
	r.idle = r.idle[:n-1]
	return c
}

// CloseIdle closes the connections that are not in use.
func (r *Replica) CloseIdle() {
	r.mu.Lock()
	idle := r.idle
	r.idle = nil
	r.mu.Unlock()
	for _, c := range idle {
		c.Close()
	}
}

// Close closes idle connections now and those in use when they are given back.
func (r *Replica) Close() {
	r.mu.Lock()
	was := r.closed
	r.closed = true
	r.mu.Unlock()
	r.CloseIdle()
	if !was && r.onClose != nil {
		r.onClose(r)
	}
}

// Sweep closes connections that have been idle too long, or that the replica closed.
func (r *Replica) Sweep() {
	r.mu.Lock()
	var dead []*Conn
	kept := r.idle[:0]
	for _, c := range r.idle {
		if time.Since(c.idleSince) < MaxIdle && c.quiet() {
			kept = append(kept, c)
		} else {
			dead = append(dead, c)
		}
	}
	clear(r.idle[len(kept):])
	r.idle = kept
	r.mu.Unlock()
	for _, c := range dead {
		c.Close()
	}
}

// Conn is a connection to a replica. It belongs to one goroutine, except that SetDeadline
// and its kin, Close and Abort may be called by others.
type Conn struct {
	net.Conn
	replica   *Replica
	br        *bufio.Reader
	limit     int64 // how much may still be read
	idleSince time.Time
	req       http.Request // what http.ReadResponse wants to know
	isQuiet   func() bool
}

// limited reads from the connection up to its limit.
type limited Conn

func (l *limited) Read(p []byte) (int, error) {
	if l.limit <= 0 {
		return 0, ErrHeadTooLarge
	}
	if int64(len(p)) > l.limit {
		p = p[:l.limit]
	}
	n, err := l.Conn.Read(p)
	l.limit -= int64(n)
	return n, err
}

// quiet says that the idle connection is open and nothing has arrived on it. It
// asks the kernel, so that a replica that ended before is noticed without a race.
func (c *Conn) quiet() bool { return c.br.Buffered() == 0 && (c.isQuiet == nil || c.isQuiet()) }

var longAgo = time.Unix(1, 0)

// Abort makes all reads and writes fail, those under way too, with a timeout.
func (c *Conn) Abort() { _ = c.SetDeadline(longAgo) }

// Close ends the connection.
func (c *Conn) Close() { _ = c.Conn.Close() }

// Reuse gives the connection back after a complete exchange.
func (c *Conn) Reuse() {
	if c.br.Buffered() != 0 {
		c.Close()
		return
	}
	_ = c.SetDeadline(time.Time{})
	c.idleSince = time.Now()
	r := c.replica
	r.mu.Lock()
	if r.closed {
		r.mu.Unlock()
		c.Close()
		return
	}
	r.idle = append(r.idle, c)
	r.mu.Unlock()
}

// joined is up to which size a body is copied behind its head for one write.
const joined = 4 << 10

// Send writes a head and a body that is complete. whole says that all was written:
// from then on the replica may have run the request.
func (c *Conn) Send(head *[]byte, body []byte) (whole bool, err error) {
	if len(body) <= joined {
		*head = append(*head, body...)
		n, err := c.Write(*head)
		return n == len(*head), err
	}
	bufs := net.Buffers{*head, body}
	n, err := bufs.WriteTo(c.Conn)
	return n == int64(len(*head)+len(body)), err
}

// Answered waits so long for the first byte of an answer, and says whether it or
// a failure came, which Receive then tells. The read deadline has to be set anew.
func (c *Conn) Answered(within time.Duration) bool {
	c.limit = maxHead
	_ = c.SetReadDeadline(time.Now().Add(within))
	_, err := c.br.Peek(1)
	return err == nil || !errors.Is(err, os.ErrDeadlineExceeded)
}

// Receive reads an answer's head. With wait100 it also returns a 100-continue, as a
// response without a body; other interim answers are passed over. began says
// that at least one byte of an answer came.
func (c *Conn) Receive(method string, wait100 bool) (resp *http.Response, began bool, err error) {
	c.limit = maxHead
	defer func() { c.limit = math.MaxInt64 }()
	c.req.Method = method
	if _, err := c.br.Peek(1); err != nil {
		return nil, false, unexpected(err)
	}
	for range maxInformational {
		resp, err = http.ReadResponse(c.br, &c.req)
		if err != nil {
			return nil, true, unexpected(err)
		}
		switch code := resp.StatusCode; {
		case code == http.StatusContinue && wait100:
			return resp, true, nil
		case code == http.StatusSwitchingProtocols:
			return nil, true, errors.New("the replica switched protocols unasked")
		case code < 100 || code > 999:
			return nil, true, errors.New("the replica answered with an impossible status")
		case code >= 200:
			return resp, true, nil
		}
	}
	return nil, true, errors.New("the replica sent too many interim answers")
}

func unexpected(err error) error {
	if err == io.EOF { //nolint:errorlint // bufio gives it bare
		return io.ErrUnexpectedEOF
	}
	return err
}

// Buffered is how many bytes have arrived and not been read.
func (c *Conn) Buffered() int { return c.br.Buffered() }
