package runner

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"
)

// The frames between gate and worker; worker.py has the other side and says what the
// fields are. All numbers little-endian.
const (
	requestHead  = 24
	pieceHead    = 8
	responseHead = 24
	// pieceBytes bounds what is held of a body on its way, in either direction.
	pieceBytes = 64 << 10

	flagLast  = 1
	flagQuery = 2
	flagAbort = 4

	kindOK          = 0
	kindScriptError = 1
	kindRaw         = 2
	kindBadInput    = 3
	kindReady       = 4
	kindInitFailed  = 5
)

// errBodyTooLarge: the body went on past the limit.
var errBodyTooLarge = errors.New("body too large")

// A clientError is a failure to read the request's body: not the worker's fault.
type clientError struct{ err error }

func (e *clientError) Error() string { return fmt.Sprintf("read request body: %v", e.err) }
func (e *clientError) Unwrap() error { return e.err }

// A lane carries the requests of one slot to the worker's thread for it, one at a time.
type lane struct {
	conn net.Conn
	buf  []byte // a frame on its way out, then the answer
}

func newLane(conn net.Conn) *lane { return &lane{conn: conn, buf: make([]byte, 4096)} }

// grow makes the buffer hold n bytes, of which the first keep stay.
func (l *lane) grow(n, keep int) {
	if n > len(l.buf) {
		buf := make([]byte, max(n, min(2*len(l.buf), pieceBytes)))
		copy(buf, l.buf[:keep])
		l.buf = buf
	}
}

// shrink gives back a buffer that a long header made larger than usual.
func (l *lane) shrink() {
	if len(l.buf) > pieceBytes+requestHead {
		l.buf = make([]byte, 4096)
	}
}

// send writes a request: in one frame and one system call if it is small, else in
// pieces as the body arrives. body reads the request's body; timeout bounds the
// writing of the last piece and the wait for the answer. A *clientError leaves the
// lane usable.
func (l *lane) send(r *http.Request, id string, headers bool, body io.Reader, timeout time.Duration) error {
	flags, total := 0, r.ContentLength
	at := requestHead
	l.grow(requestHead+len(id), requestHead)
	at += copy(l.buf[at:], id)
	headerLen := 0
	if headers {
		l.buf = appendHeaders(l.buf[:at], r)
		headerLen = len(l.buf) - at
		at = len(l.buf)
		l.buf = l.buf[:cap(l.buf)]
	}
	last := true
	switch {
	case r.Method == http.MethodGet:
		flags |= flagQuery
		query := r.URL.RawQuery
		l.grow(at+len(query), at)
		at += copy(l.buf[at:], query)
	case total == 0:
	case total > 0 && total <= int64(pieceBytes-at):
		l.grow(at+int(total), at)
		n, err := io.ReadFull(body, l.buf[at:at+int(total)])
		if err != nil {
			return &clientError{err}
		}
		at += n
	default:
		// Long or of unknown length: as much as fits, then pieces.
		l.grow(max(pieceBytes, at+512), at)
		n, err := readFull(body, l.buf[at:])
		last = errors.Is(err, io.EOF)
		if err != nil && !last {
			return &clientError{err}
		}
		at += n
	}
	if last {
		flags |= flagLast
		total = -1
	}
	binary.LittleEndian.PutUint32(l.buf[0:], uint32(at-requestHead))
	binary.LittleEndian.PutUint32(l.buf[4:], uint32(headerLen))
	binary.LittleEndian.PutUint64(l.buf[8:], uint64(total))
	binary.LittleEndian.PutUint16(l.buf[16:], uint16(flags))
	binary.LittleEndian.PutUint16(l.buf[18:], uint16(len(id)))
	binary.LittleEndian.PutUint32(l.buf[20:], 0)
	if err := l.conn.SetDeadline(time.Now().Add(timeout)); err != nil {
		return fmt.Errorf("set deadline: %w", err)
	}
	if _, err := l.conn.Write(l.buf[:at]); err != nil {
		return fmt.Errorf("write request: %w", err)
	}
	if last {
		return nil
	}
	return l.sendPieces(body, timeout)
}

func (l *lane) sendPieces(body io.Reader, timeout time.Duration) error {
	for {
		n, err := readFull(body, l.buf[pieceHead:pieceBytes])
		var failed error
		flags := 0
		if errors.Is(err, io.EOF) {
			flags = flagLast
		} else if err != nil {
			failed = &clientError{err}
			n, flags = 0, flagAbort
		}
		binary.LittleEndian.PutUint32(l.buf[0:], uint32(n))
		binary.LittleEndian.PutUint32(l.buf[4:], uint32(flags))
		if err := l.conn.SetDeadline(time.Now().Add(timeout)); err != nil {
			return fmt.Errorf("set deadline: %w", err)
		}
		if _, err := l.conn.Write(l.buf[:pieceHead+n]); err != nil {
			return fmt.Errorf("write request: %w", err)
		}
		if failed != nil || flags == flagLast {
			return failed
		}
	}
}

// readFull fills b as far as the reader goes: io.EOF says that it ended, with or
// without bytes before.
func readFull(r io.Reader, b []byte) (int, error) {
	n := 0
	for n < len(b) {
		m, err := r.Read(b[n:])
		n += m
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

// appendHeaders writes the request's headers as run() gets them: a name once, several
// values joined as RFC 9110 §5.3 has it.
func appendHeaders(b []byte, r *http.Request) []byte {
	put := func(name, value string) {
		b = append(append(append(append(b, name...), 0), value...), 0)
	}
	put("Host", r.Host)
	for name, values := range r.Header {
		if len(values) == 1 {
			put(name, values[0])
		} else {
			put(name, strings.Join(values, ", "))
		}
	}
	if r.ContentLength > 0 && r.Header["Content-Length"] == nil {
		put("Content-Length", fmt.Sprint(r.ContentLength))
	}
	return b[:len(b)-1] // the last NUL would make an empty name of what follows
}

// An answer is what a worker said, with as much of it as the lane's buffer holds.
type answer struct {
	kind, status int
	spent        time.Duration
	headers      []byte
	payload      []byte // all of it, or its beginning if rest > 0
	rest         int64  // still to be read from the lane
}

// receive reads the head of an answer and, if it is at most 64 KiB, all of it. The
// slices are the lane's until its next use.
func (l *lane) receive() (answer, error) {
	n, err := io.ReadAtLeast(l.conn, l.buf, responseHead)
	if err != nil {
		return answer{}, fmt.Errorf("read answer: %w", err)
	}
	payload := binary.LittleEndian.Uint64(l.buf[0:])
	a := answer{
		spent:  time.Duration(binary.LittleEndian.Uint64(l.buf[8:])),
		kind:   int(binary.LittleEndian.Uint16(l.buf[20:])),
		status: int(binary.LittleEndian.Uint16(l.buf[22:])),
	}
	headers := int(binary.LittleEndian.Uint32(l.buf[16:]))
	if headers > pieceBytes || payload > 1<<40 {
		return answer{}, fmt.Errorf("read answer: %d bytes of headers, %d of payload cannot be", headers, payload)
	}
	begin := responseHead + headers
	end := begin + int(min(payload, uint64(pieceBytes)))
	l.grow(end, n)
	if n < end {
		// The worker sends its answer in one go: the rest is on its way.
		m, err := io.ReadAtLeast(l.conn, l.buf[n:end], end-n)
		n += m
		if err != nil {
			return answer{}, fmt.Errorf("read answer: %w", err)
		}
	}
	a.headers = l.buf[responseHead:begin]
	a.payload = l.buf[begin:n]
	a.rest = int64(payload) - int64(len(a.payload))
	if a.rest < 0 {
		return answer{}, errors.New("read answer: more bytes than announced")
	}
	return a, nil
}
