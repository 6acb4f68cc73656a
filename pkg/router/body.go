package router

import (
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/sluice-dev/sluice/pkg/router/upstream"
)

const (
	// keptBody is up to which size a body is kept until a replica has accepted it.
	keptBody = 64 << 10
	// maxBody is the limit of Azure ML: 100 MB, taken as 100 MiB.
	maxBody = 100 << 20
	// bodyStall is how long a client may send nothing in the middle of its body, and
	// how long it may take for a body that is kept.
	bodyStall = 30 * time.Second
	// writeStall is how long a client may read nothing of an answer for which it holds no slot.
	writeStall = 30 * time.Second
)

var (
	errBodyTooLarge = errors.New("body is too large")
	errBodyTooSlow  = errors.New("body comes too slowly")
	errClient       = errors.New("client did not send its body")
)

// uploads bounds how long a client may hold a slot with a body that is on its way. As with
// Apache's RequestReadTimeout (MinRate), the time that it may have taken grows with what it
// has sent: the grace, and a second for every rate bytes.
type uploads struct {
	grace time.Duration
	// rate is in bytes a second, on average after the grace.
	rate int64
	// most is the longest that the client may take, and the replica for its part.
	most time.Duration
}

// defaultUploads let a line of half a megabit a second send, and who sends next to nothing go after
// ten seconds.
func defaultUploads() uploads {
	return uploads{grace: 10 * time.Second, rate: 64 << 10, most: 5 * time.Minute}
}

// left is how long a client may still take that has taken that long to send n bytes.
func (u uploads) left(n int64, taken time.Duration) time.Duration {
	earned := time.Duration(float64(n) / float64(u.rate) * float64(time.Second))
	return min(u.grace+earned, u.most) - taken
}

// downloads bounds how long a client may hold a slot with an answer that it is to read. Only the time
// for which writing to it waits counts, never that for which the replica is waited for: a bucket
// of patience, which what it has taken fills again.
type downloads struct {
	// patience is the longest pause. It is longer than that of uploads, because a system hands on
	// room in its buffers in large pieces: a third of a buffer of 4 MiB takes 20 s at the rate below.
	patience time.Duration
	// rate is in bytes a second.
	rate int64
	// most is the longest that writing may wait in all.
	most time.Duration
}

func defaultDownloads() downloads {
	return downloads{patience: 20 * time.Second, rate: 64 << 10, most: 5 * time.Minute}
}

// reader is a client of which an answer's parts are asked to be read.
type reader struct {
	limits downloads
	// spent is what is used of the patience, taken the time that writing has waited in all.
	spent, taken time.Duration
}

// left is how long the next part may take.
func (r *reader) left() time.Duration {
	return min(r.limits.patience-r.spent, r.limits.most-r.taken)
}

// took counts a part of n bytes for which writing waited that long.
func (r *reader) took(n int, d time.Duration) {
	r.taken += d
	r.spent = max(0, r.spent+d-time.Duration(float64(n)/float64(r.limits.rate)*float64(time.Second)))
}

var crlf = []byte("\r\n")

// deadlines are what net/http's response writers can do beside writing.
type deadlines interface {
	SetReadDeadline(time.Time) error
	SetWriteDeadline(time.Time) error
}

// readBody reads what can be kept of the body, within that time; all says that this is all of
// it. A body that begs for a 100-continue is asked for by this.
func (x *exchange) readBody(within time.Duration) (all bool, err error) {
	r := x.r
	if r.ContentLength == 0 || r.Body == nil || r.Body == http.NoBody {
		return true, nil
	}
	if d, ok := x.w.(deadlines); ok {
		// net/http lifts it at the body's end.
		_ = d.SetReadDeadline(time.Now().Add(within))
	}
	want := keptBody
	if r.ContentLength > 0 && r.ContentLength < keptBody {
		want = int(r.ContentLength)
	}
	buf := x.router.buffer(&x.bodyBuf, want+1)
	n := 0
	for n <= want {
		m, err := r.Body.Read(buf[n : want+1])
		n += m
		if err == io.EOF {
			x.body = buf[:n]
			return true, nil
		}
		if err != nil {
			return false, x.bodyError(err)
		}
	}
	x.body = buf[:n] // one byte more than is kept, or a lying Content-Length, which net/http does not allow
	return false, nil
}

// bodyError sorts the errors of reading a client's body: who is slow, or sends a malformed
// one, can be told so.
func (x *exchange) bodyError(err error) error {
	switch {
	case isTimeout(err): // first, because net/http ends the context with it
		return errBodyTooSlow
	case x.r.Context().Err() != nil || isNetwork(err):
		return errClient
	}
	return err
}

// pump sends the rest of a body while the answer is awaited.
type pump struct {
	done chan struct{}
	// stopped says that the rest is not wanted: no deadline may be set after it.
	stopped atomic.Bool
	// err is set before done is closed: nil, errBodyTooLarge, errBodyTooSlow, errClient, a
	// malformed body, or the replica's connection's.
	err error
	// replica says that err is the replica's connection's.
	replica bool
	// ended is when the body was sent.
	ended time.Time
}

// stream sends the body behind a head that got its 100-continue.
func (x *exchange) stream(conn *upstream.Conn) *pump {
	p := &pump{done: make(chan struct{})}
	go func() {
		defer close(p.done)
		p.replica, p.err = x.copyBody(conn, p)
		if p.err != nil && !p.replica {
			conn.Abort() // the answer is of no use any more
			return
		}
		if p.err == nil {
			// The replica's time begins when it has everything.
			p.ended = time.Now()
			_ = conn.SetDeadline(p.ended.Add(x.budget))
			if x.r.Context().Err() != nil {
				conn.Abort()
			}
		}
	}()
	return p
}

// copyBody also says whether it was the replica's connection that failed. The times of the
// two are counted apart: a replica that reads slowly does not make its client slow.
func (x *exchange) copyBody(conn *upstream.Conn, p *pump) (replica bool, err error) {
	client, _ := x.w.(deadlines)
	buf := x.router.buffer(&x.copyBuf, 32<<10)
	chunked := x.r.ContentLength < 0
	limits := x.router.opts.uploads
	var clients, replicas time.Duration // the time that each has taken
	total, received := int64(0), int64(0)
	var size []byte
	var frame net.Buffers
	send := func(b []byte) error {
		began := time.Now()
		defer func() { replicas += time.Since(began) }()
		_ = conn.SetWriteDeadline(began.Add(min(x.budget, limits.most-replicas)))
		if p.stopped.Load() {
			return os.ErrDeadlineExceeded
		}
		if !chunked {
			_, err := conn.Write(b)
			return err
		}
		size = append(strconv.AppendInt(size[:0], int64(len(b)), 16), crlf...)
		frame = append(frame[:0], size, b, crlf)
		rest := frame // WriteTo eats it
		_, err := rest.WriteTo(conn.Conn)
		return err
	}
	part := x.body
	for {
		if len(part) > 0 {
			if total += int64(len(part)); total > maxBody {
				return false, errBodyTooLarge
			}
			if err := send(part); err != nil {
				return true, err
			}
		}
		if x.bodyEnd {
			break
		}
		left := limits.left(received, clients)
		if left <= 0 {
			return false, errBodyTooSlow
		}
		began := time.Now()
		deadline := began.Add(min(bodyStall, left))
		if client != nil {
			_ = client.SetReadDeadline(deadline)
		}
		if p.stopped.Load() {
			return false, errClient
		}
		n, err := x.r.Body.Read(buf)
		clients += time.Since(began)
		received += int64(n)
		part = buf[:n]
		if err == io.EOF {
			x.bodyEnd = true
		} else if err != nil {
			if isTimeout(err) && time.Now().Before(deadline) {
				return false, errClient // stopped, not slow
			}
			return false, x.bodyError(err)
		}
	}
	if chunked {
		_ = conn.SetWriteDeadline(time.Now().Add(x.budget))
		if _, err := io.WriteString(conn, "0\r\n\r\n"); err != nil {
			return true, err
		}
	}
	return false, nil
}

// finish waits for the pump, once there is an answer or none will come. If it has
// not ended by itself, the rest of the body is not wanted: it is stopped.
func (x *exchange) finish(p *pump, conn *upstream.Conn) (stopped bool) {
	select {
	case <-p.done:
		return false
	case <-time.After(20 * time.Millisecond): // it may be just about to end
	}
	p.stopped.Store(true)
	if client, ok := x.w.(deadlines); ok {
		_ = client.SetReadDeadline(time.Unix(1, 0))
	}
	_ = conn.SetWriteDeadline(time.Unix(1, 0))
	<-p.done
	return true
}

func isTimeout(err error) bool { return errors.Is(err, os.ErrDeadlineExceeded) }

func isNetwork(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) || errors.Is(err, net.ErrClosed) || errors.Is(err, io.ErrUnexpectedEOF)
}
