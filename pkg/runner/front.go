package runner

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/sluice-dev/sluice/rollout"
)

// A front is the engine that passes requests on to a server at an address. It knows
// nothing of processes: who runs that server is the business of a command, or of
// another container.
type front struct {
	o      *Options
	target string // host:port
	proxy  *httputil.ReverseProxy
	client *http.Transport
}

func newFront(o *Options, target string) *front {
	f := &front{o: o, target: target}
	f.client = &http.Transport{
		DialContext:         (&net.Dialer{Timeout: 5 * time.Second}).DialContext,
		MaxIdleConnsPerHost: o.MaxConcurrentRequests + 1,
		// Shorter than the keep-alive of usual servers (gunicorn 2 s, uvicorn 5 s): a
		// request sent as the server closes would be lost.
		IdleConnTimeout:        1500 * time.Millisecond,
		DisableCompression:     true, // the bytes pass as they are
		MaxResponseHeaderBytes: 1 << 20,
		ReadBufferSize:         16 << 10,
		WriteBufferSize:        16 << 10,
	}
	f.proxy = &httputil.ReverseProxy{
		Rewrite:        f.rewrite,
		Transport:      f.client,
		FlushInterval:  -1,
		ModifyResponse: ownHeadersOnly,
		ErrorHandler:   f.proxyError,
		ErrorLog:       slog.NewLogLogger(o.Logger.Handler(), slog.LevelDebug),
		BufferPool:     &buffers{},
	}
	return f
}

// watch keeps the gate informed of the server's health until ctx ends: at first every
// 50 ms, later every healthPeriod. A server that does not answer while it works on a
// request is busy, not ill: one with a single thread cannot do both. It returns an
// error if the server was not well within limit.
func (f *front) watch(ctx context.Context, g *gate, limit time.Duration) error {
	began, ready, misses := time.Now(), false, 0
	pause := 50 * time.Millisecond
	for {
		err := f.check(ctx, min(f.o.healthPeriod, 2*time.Second))
		_, inFlight := g.look()
		switch {
		case ctx.Err() != nil:
			return nil
		case err == nil:
			if !ready {
				f.o.Logger.Info("server ready", "address", f.target, "took", time.Since(began).Round(time.Millisecond).String())
			}
			ready, misses, pause = true, 0, f.o.healthPeriod
			g.set(stateReady)
		case !ready && time.Since(began) > limit:
			return fmt.Errorf("wait for the server on %s: not well within %v: %w", f.target, limit, err)
		case ready && inFlight > 0 && isTimeout(err):
		case ready:
			if misses++; misses == 2 {
				f.o.Logger.Warn("server fails its health check", "address", f.target, "err", err)
				g.set(stateUnhealthy)
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
	}
}

func isTimeout(err error) bool {
	var t interface{ Timeout() bool }
	return errors.As(err, &t) && t.Timeout()
}

// check asks once whether the server is well.
func (f *front) check(ctx context.Context, timeout time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	if f.o.Server.HealthPath == "" {
		conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", f.target)
		if err != nil {
			return fmt.Errorf("check health: %w", err)
		}
		return conn.Close()
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+f.target+f.o.Server.HealthPath, nil)
	if err != nil {
		return fmt.Errorf("check health: %w", err)
	}
	r.Header.Set("User-Agent", "sluice-gate")
	resp, err := f.client.RoundTrip(r)
	if err != nil {
		return fmt.Errorf("check health: %w", err)
	}
	_, _ = io.CopyN(io.Discard, resp.Body, 64<<10)
	_ = resp.Body.Close()
	if resp.StatusCode < 200 || resp.StatusCode > 399 {
		return fmt.Errorf("check health: GET %s: %s", f.o.Server.HealthPath, resp.Status)
	}
	return nil
}

// run is the engine for a server that someone else runs. While it is away the gate
// refuses; it comes back when the server does.
func (f *front) run(ctx context.Context, g *gate) error {
	defer f.client.CloseIdleConnections()
	if err := f.watch(ctx, g, f.o.InitTimeout); err != nil {
		return &ExitError{Code: ExitInit, Err: err}
	}
	return nil
}

// bypass passes health checks on without a slot.
func (f *front) bypass(w http.ResponseWriter, r *http.Request, id string) bool {
	if f.o.Server.HealthPath == "" || r.Method != http.MethodGet || r.URL.Path != f.o.Server.HealthPath || r.ContentLength != 0 {
		return false
	}
	f.pass(w, r, id, f.o.ScoringTimeout)
	return true
}

func (f *front) serve(w http.ResponseWriter, r *http.Request, id string, s *slot) {
	f.pass(&releasing{ResponseWriter: w, rc: http.NewResponseController(w), s: s, left: -1, head: r.Method == http.MethodHead, stall: f.o.stall}, r, id, f.o.ScoringTimeout)
}

// pass proxies one request. The timeout runs from the end of the request's body, or
// from the answer's head if that comes earlier, to the end of the answer.
func (f *front) pass(w http.ResponseWriter, r *http.Request, id string, timeout time.Duration) {
	ctx, cancel := context.WithCancelCause(r.Context())
	t := &timer{timeout: timeout, expired: func() { cancel(errScoringTimeout) }}
	defer func() {
		t.stop()
		cancel(nil)
	}()
	p := &pass{id: id, t: t}
	out := r.WithContext(context.WithValue(ctx, passing{}, p))
	rc := http.NewResponseController(w)
	if r.ContentLength == 0 {
		_ = rc.SetReadDeadline(time.Time{})
		t.start()
	} else {
		// Without this net/http would read the whole body before the answer may begin.
		_ = rc.EnableFullDuplex()
		out.Body = &bodyIn{Closer: r.Body, patient: patient{rc: rc, r: r.Body, stall: f.o.stall, left: f.o.MaxBodyBytes}, of: p}
	}
	f.proxy.ServeHTTP(w, out)
}

// A pass is what the proxy's hooks need to know of a request.
type pass struct {
	id string
	t  *timer

	mu      sync.Mutex
	bodyErr error // why the request's body could not be read
}

func (p *pass) bodyFailed(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.bodyErr = err
}

func (p *pass) whyBody() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.bodyErr
}

type passing struct{}

func passOf(ctx context.Context) *pass {
	p, _ := ctx.Value(passing{}).(*pass)
	return p
}

var errScoringTimeout = errors.New("scoring timeout")

// rewrite keeps what came: path, query, host and all headers but the hop-by-hop ones.
func (f *front) rewrite(r *httputil.ProxyRequest) {
	r.Out.URL = &url.URL{Scheme: "http", Host: f.target, Path: r.In.URL.Path, RawPath: r.In.URL.RawPath,
		RawQuery: r.In.URL.RawQuery, ForceQuery: r.In.URL.ForceQuery}
	if r.In.URL.Path == "/score" {
		r.Out.URL.Path, r.Out.URL.RawPath = f.o.Server.ScorePath, ""
	}
	r.Out.Host = r.In.Host
	for _, name := range []string{"Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto"} {
		if v, ok := r.In.Header[name]; ok {
			r.Out.Header[name] = v
		}
	}
	if p := passOf(r.In.Context()); p != nil {
		r.Out.Header["X-Request-Id"] = []string{p.id}
	}
	// The gate admitted the request: its own server answers 100 as the body is read.
	r.Out.Header.Del("Expect")
}

// ownHeadersOnly removes what only the gate may say, and starts the clock for a server
// that answers before it has read the body.
func ownHeadersOnly(resp *http.Response) error {
	for name := range resp.Header {
		if strings.HasPrefix(name, "Sluice-") {
			delete(resp.Header, name)
		}
	}
	if p := passOf(resp.Request.Context()); p != nil {
		if resp.Header["X-Request-Id"] == nil {
			resp.Header["X-Request-Id"] = []string{p.id}
		}
		if resp.StatusCode != http.StatusSwitchingProtocols {
			p.t.start()
		} else {
			p.t.stop() // a tunnel lasts as long as its ends wish
		}
	}
	return nil
}

// proxyError answers when the server did not.
func (f *front) proxyError(w http.ResponseWriter, r *http.Request, err error) {
	p := passOf(r.Context())
	if p == nil { // every request passes through pass
		p = &pass{}
	}
	id, body, cause := p.id, p.whyBody(), context.Cause(r.Context())
	switch {
	case errors.Is(body, errBodyTooLarge):
		tooLarge(w, f.o.MaxBodyBytes, id)
	case errors.Is(cause, errScoringTimeout):
		fail(w, http.StatusGatewayTimeout, rollout.ReasonScoringTimeout,
			"the server did not answer within "+f.o.ScoringTimeout.String(), id)
	case body != nil:
		bodyLost(w, body, id)
	case cause != nil: // the client is gone; nobody reads this
		w.Header().Set("Connection", "close")
		writeError(w, 499, rollout.ReasonClientGone, "the client is gone", id)
	default:
		f.o.Logger.Warn("server did not answer", "request", id, "err", err)
		fail(w, http.StatusBadGateway, rollout.ReasonReplicaFailed, "the server behind the gate did not answer", id)
	}
}

// A timer is started at most once, from any goroutine, and stays stopped once stopped.
type timer struct {
	timeout time.Duration
	expired func()

	mu      sync.Mutex
	t       *time.Timer
	stopped bool
}

func (t *timer) start() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.t == nil && !t.stopped {
		t.t = time.AfterFunc(t.timeout, t.expired)
	}
}

func (t *timer) stop() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.stopped = true
	if t.t != nil {
		t.t.Stop()
	}
}

// bodyIn is a request's body on its way to the server.
type bodyIn struct {
	io.Closer
	patient
	of *pass
}

func (b *bodyIn) Read(p []byte) (int, error) {
	n, err := b.patient.Read(p)
	if errors.Is(err, io.EOF) {
		_ = b.rc.SetReadDeadline(time.Time{})
		b.of.t.start()
	} else if err != nil {
		b.of.bodyFailed(err) // the context may end first and hide it
	}
	return n, err
}

// releasing frees the slot before the last bytes of an answer whose length is known:
// they are flushed at once, and whoever has read them must find the slot free. All
// other answers end when the handler returns, after the slot is free.
type releasing struct {
	http.ResponseWriter
	rc    *http.ResponseController
	s     *slot
	left  int64 // bytes of the answer to come, -1 if unknown
	head  bool
	stall time.Duration
}

// Unwrap lets the proxy flush and hijack.
func (w *releasing) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *releasing) WriteHeader(status int) {
	if status >= 200 {
		w.s.g.closeIfDraining(w.Header())
		if v := w.Header()["Content-Length"]; len(v) == 1 {
			if n, err := strconv.ParseInt(v[0], 10, 64); err == nil {
				w.left = n
			}
		}
		if w.left == 0 || w.head || status == http.StatusNoContent || status == http.StatusNotModified {
			w.s.release() // the head is all there is
		}
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *releasing) Write(p []byte) (int, error) {
	_ = w.rc.SetWriteDeadline(time.Now().Add(w.stall))
	if w.left >= 0 {
		if w.left -= int64(len(p)); w.left <= 0 {
			w.s.release()
		}
	}
	return w.ResponseWriter.Write(p)
}

// buffers lends the proxy its copy buffers.
type buffers struct{ pool sync.Pool }

func (b *buffers) Get() []byte {
	if p, ok := b.pool.Get().(*[]byte); ok {
		return *p
	}
	return make([]byte, 32<<10)
}

func (b *buffers) Put(p []byte) { b.pool.Put(&p) }
