package router

import (
	"context"
	"errors"
	"io"
	"net/http"
	"runtime/debug"
	"strings"
	"syscall"
	"time"

	"github.com/sluice-dev/sluice/pkg/access"
	"github.com/sluice-dev/sluice/pkg/router/dispatch"
	"github.com/sluice-dev/sluice/pkg/router/upstream"
	"github.com/sluice-dev/sluice/pkg/telemetry"
	"github.com/sluice-dev/sluice/rollout"
)

const (
	// timeoutGrace is what the router waits beyond the scoring timeout: the gate measures it too,
	// knows better when it began, and can say what happened.
	timeoutGrace = 250 * time.Millisecond
	// smallAnswer is up to which size an answer is read whole before any of it is sent: the
	// slot comes free however slowly the client reads, and a replica lost in the
	// middle is a clean error.
	smallAnswer = 64 << 10
)

// An exchange is one request on its way: engine state, pooled.
type exchange struct {
	router *Router
	w      http.ResponseWriter
	r      *http.Request
	route  *route
	lease  *dispatch.Lease
	head   head
	start  time.Time
	// budget is the time that the replica has left.
	budget time.Duration
	// others is the time that others took: the client for its body, replicas for their part. trying is
	// since when the present attempt goes.
	others time.Duration
	trying time.Time

	// body is what has been read of the client's; bodyEnd says that it is all of it.
	body    []byte
	bodyEnd bool

	headBuf                    []byte
	bodyBuf, copyBuf, replyBuf *buffer

	measured telemetry.Request
	version  string
}

// ServeHTTP is the data path.
func (rt *Router) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	x, _ := rt.exchanges.Get().(*exchange)
	if x == nil {
		x = &exchange{router: rt, headBuf: make([]byte, 0, 2<<10)}
	}
	x.w, x.r, x.start = w, r, time.Now()
	x.head.id = requestID(r.Header)
	abort := true // in a panic, too
	defer func() {
		if p := recover(); p != nil {
			rt.log.Error("panic in the data path", "panic", p, "requestId", x.head.id, "stack", string(debug.Stack()))
			x.measured = telemetry.Request{Code: http.StatusInternalServerError, Reason: rollout.ReasonInternal, Cut: true}
		}
		x.end()
		if abort {
			panic(http.ErrAbortHandler)
		}
	}()
	h := w.Header()
	id := []string{x.head.id}
	h[headerRequestID], h[headerMSRequestID] = id, id
	if rt.draining.Load() {
		h["Connection"] = []string{"close"}
	}
	abort = !x.serve()
}

// end counts the request and gives back what it used.
func (x *exchange) end() {
	x.measured.Duration = time.Since(x.start)
	if x.lease != nil {
		x.measured.Wait = x.lease.Waited()
		x.lease.Free()
	}
	if x.measured.Code != 0 {
		x.router.meter(x.route, x.version).Record(x.measured)
	}
	rt := x.router
	rt.release(x.bodyBuf)
	rt.release(x.copyBuf)
	rt.release(x.replyBuf)
	if cap(x.headBuf) > 16<<10 {
		x.headBuf = nil
	}
	*x = exchange{router: rt, headBuf: x.headBuf[:0]}
	rt.exchanges.Put(x)
}

// fail answers with an error of the router.
func (x *exchange) fail(f *failure) bool {
	x.measured.Code, x.measured.Reason = f.status, f.reason
	if x.version != "" {
		x.w.Header()[headerVersion] = []string{x.version}
	}
	x.writeDeadline()
	f.write(x.w, x.head.id)
	return true
}

// gone ends an exchange whose client does not wait for the answer.
func (x *exchange) gone() bool {
	x.measured = telemetry.Request{Code: telemetry.ClientGone, Reason: rollout.ReasonClientGone}
	return false
}

func (x *exchange) writeDeadline() {
	if d, ok := x.w.(deadlines); ok {
		_ = d.SetWriteDeadline(time.Now().Add(writeStall))
	}
}

// serve answers the request; false means that the client's connection is to be cut.
func (x *exchange) serve() bool {
	r := x.r
	t, ok := parseTarget(r.RequestURI, x.router.namespace)
	if !ok {
		return x.fail(fail(rollout.ReasonUnknownEndpoint))
	}
	x.head.target = t
	table := x.router.table.Load()
	if table == nil {
		f := fail(rollout.ReasonNoReadyReplicas)
		f.message, f.retryAfter = "the router is starting", time.Second
		return x.fail(f)
	}
	if x.route = table.routes[t.key]; x.route == nil {
		return x.fail(fail(rollout.ReasonUnknownEndpoint))
	}
	if !x.route.admits(r.Header) {
		return x.fail(fail(rollout.ReasonUnauthorized))
	}
	x.head.hideKey = x.route.auth != rollout.AuthNone
	if allow, ok := t.allows(r.Method); !ok {
		f := &failure{status: http.StatusMethodNotAllowed, reason: rollout.ReasonInvalid, message: "the method is not allowed here", allow: allow, close: r.ContentLength != 0}
		return x.fail(f)
	}
	if r.ContentLength > maxBody {
		return x.bodyFailed(errBodyTooLarge)
	}
	pin, ok := pinOf(r.Header)
	if !ok {
		return x.fail(&failure{status: http.StatusBadRequest, reason: rollout.ReasonInvalid, message: "the headers pin more than one version", close: r.ContentLength != 0})
	}
	begged := len(r.Header["Expect"]) > 0 && r.ContentLength != 0
	large := r.ContentLength > keptBody || begged && r.ContentLength < 0
	if !begged && !large {
		var err error
		from := time.Now()
		x.bodyEnd, err = x.readBody(bodyStall)
		x.others = time.Since(from)
		if err != nil {
			return x.bodyFailed(err)
		}
	}
	var err error
	if x.lease, err = x.route.endpoint.Acquire(r.Context(), pin); err != nil {
		return x.refused(err)
	}
	x.version = x.lease.Version()
	if begged && !large {
		// Only now is the client asked for its body: it holds a slot.
		from := time.Now()
		x.bodyEnd, err = x.readBody(x.router.opts.uploads.left(keptBody, 0))
		x.others += time.Since(from)
		if err != nil {
			return x.bodyFailed(err)
		}
	}
	for {
		x.trying = time.Now()
		again, why, ok := x.attempt()
		if !again {
			return ok
		}
		x.others += time.Since(x.trying)
		if err := x.lease.Again(r.Context(), why); err != nil {
			return x.refused(err)
		}
		x.version = x.lease.Version()
	}
}

// answered says that the replica's answer is there, as far as it is read before any of it is sent.
func (x *exchange) answered() { x.others += time.Since(x.trying) }

// routed notes what the router added, just before the answer goes to the client: how fast that
// one reads is its own affair.
func (x *exchange) routed() {
	x.measured.Routed = true
	x.measured.Routing = time.Since(x.start) - x.lease.Waited() - x.others
}

// pinOf is the version that the request is pinned to, or ""; two different ones are refused.
func pinOf(h http.Header) (string, bool) {
	pin := ""
	for _, name := range [...]string{headerVersion, headerPin} {
		for _, v := range h[name] {
			if v = strings.TrimSpace(v); v == "" || pin != "" && pin != v {
				return "", false
			}
			pin = v
		}
	}
	return pin, true
}

// admits says whether the request may score. Without a mode that is built, nobody may.
func (rt *route) admits(h http.Header) bool {
	switch rt.auth {
	case rollout.AuthNone:
		return true
	case rollout.AuthKey:
		given := h["Authorization"]
		if len(given) != 1 {
			return false
		}
		key := access.Bearer(given[0])
		return key != "" && access.Allows(rt.hashes, key)
	}
	return false
}

// refused answers a request that got no slot.
func (x *exchange) refused(err error) bool {
	var refusal *dispatch.Refusal
	if !errors.As(err, &refusal) {
		return x.fail(fail(rollout.ReasonInternal))
	}
	x.version = refusal.Version
	if refusal.Reason == rollout.ReasonClientGone {
		return x.gone()
	}
	f := fail(refusal.Reason)
	f.retryAfter = refusal.RetryAfter
	return x.fail(f)
}

// bodyFailed answers a request whose body cannot be read.
func (x *exchange) bodyFailed(err error) bool {
	switch {
	case errors.Is(err, errBodyTooLarge):
		f := fail(rollout.ReasonBodyTooLarge)
		f.close = true
		return x.fail(f)
	case errors.Is(err, errBodyTooSlow):
		f := fail(rollout.ReasonBodyTooSlow)
		f.close = true
		return x.fail(f)
	case errors.Is(err, errClient):
		return x.gone()
	default:
		return x.fail(&failure{status: http.StatusBadRequest, reason: rollout.ReasonInvalid, message: "the body is malformed", close: true})
	}
}

// attempt sends the request to the replica whose slot is held. again means that the replica
// did not accept it; else the exchange is over, and !ok that the client's connection is to be cut.
func (x *exchange) attempt() (again bool, why dispatch.Why, ok bool) {
	ctx := x.r.Context()
	conn, err := x.lease.Backend().(*upstream.Replica).Conn(ctx)
	if err != nil {
		if ctx.Err() != nil {
			return false, 0, x.gone()
		}
		x.router.log.Debug("replica cannot be reached", "endpoint", x.head.target.key.String(), "version", x.version, "replica", x.lease.Replica(), "error", err)
		if exhausted(err) {
			return true, dispatch.Lost, false // no fault of the replica
		}
		return true, dispatch.Unreachable, false
	}
	x.budget = x.lease.ScoringTimeout() + timeoutGrace
	c := call{exchange: x, conn: conn, sent: time.Now()}
	_ = conn.SetDeadline(c.sent.Add(x.budget))
	defer c.giveBack()
	return c.run()
}

// exhausted says that this machine, not the replica, stands against a new connection.
func exhausted(err error) bool {
	for _, e := range []error{syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.EADDRNOTAVAIL} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// A call is one attempt at one replica.
type call struct {
	*exchange
	conn *upstream.Conn
	sent time.Time
	// stop ends the watch over the client's presence, if there is one; false if it has struck.
	stop func() bool
	// accepted: the replica may have run the request.
	accepted bool
	// reusable: the exchange on the connection is complete.
	reusable bool
	returned bool
}

// unwatched is how long the answer is awaited before the client's presence is watched:
// most answers of fast models are there by then, and a watch costs more than the wait.
const unwatched = 5 * time.Millisecond

// watch cuts the call off when the client goes. Call it again for nothing.
func (c *call) watch() {
	if c.stop == nil {
		c.stop = context.AfterFunc(c.r.Context(), c.conn.Abort)
	}
}

// giveBack the connection; before the slot, so that whoever gets the slot finds it.
func (c *call) giveBack() {
	if c.returned {
		return
	}
	c.returned = true
	if (c.stop == nil || c.stop()) && c.reusable {
		c.conn.Reuse()
		return
	}
	c.conn.Close()
}

func (c *call) run() (again bool, why dispatch.Why, ok bool) {
	h, method := &c.head, c.r.Method
	h.version = c.version
	if c.bodyEnd {
		h.length, h.expect = int64(len(c.body)), false
		c.headBuf = appendHead(c.headBuf[:0], c.r, h)
		whole, sendErr := c.conn.Send(&c.headBuf, c.body)
		c.accepted = whole
		if sendErr != nil && isTimeout(sendErr) {
			return c.lost(sendErr)
		}
		answered := c.conn.Answered(unwatched)
		_ = c.conn.SetReadDeadline(c.sent.Add(c.budget))
		if !answered {
			c.watch() // after the deadline, which must not undo it
		}
		// Even after a failed write there may be an answer: a refusal before the body was read.
		resp, began, err := c.conn.Receive(method, false) //nolint:bodyclose // the connection owns it
		c.accepted = c.accepted || began
		if err != nil {
			return c.lost(err)
		}
		return c.answer(resp, sendErr == nil, true)
	}

	// The body is too large to be kept: the gate says first whether it wants it.
	c.watch()
	h.length, h.expect = c.r.ContentLength, true
	c.headBuf = appendHead(c.headBuf[:0], c.r, h)
	if _, err := c.conn.Send(&c.headBuf, nil); err != nil {
		return c.lost(err)
	}
	resp, began, err := c.conn.Receive(method, true) //nolint:bodyclose // the connection owns it
	c.accepted = began
	if err != nil {
		return c.lost(err)
	}
	if resp.StatusCode != http.StatusContinue {
		// A refusal, or an answer that needs no body. Whether the replica still waits for
		// the body cannot be known: the connection is not used again.
		return c.answer(resp, false, true)
	}
	_ = c.conn.SetReadDeadline(time.Time{}) // the body's end sets one
	if c.r.Context().Err() != nil {
		return c.lost(context.Canceled)
	}
	p := c.stream(c.conn)
	resp, _, err = c.conn.Receive(method, false) //nolint:bodyclose // the connection owns it
	stopped := c.finish(p, c.conn)
	switch {
	case err != nil && p.err != nil && !p.replica && (!stopped || errors.Is(p.err, errBodyTooSlow)):
		return false, 0, c.bodyFailed(p.err)
	case err != nil:
		return c.lost(err)
	case p.err != nil:
		// An answer before the body's end: the rest is not wanted.
		c.w.Header()["Connection"] = []string{"close"}
	default:
		c.sent = p.ended
	}
	return c.answer(resp, p.err == nil, false)
}

// lost ends a call whose answer did not come, or sends the request elsewhere
// if the replica cannot have run it.
func (c *call) lost(err error) (again bool, why dispatch.Why, ok bool) {
	if c.r.Context().Err() != nil {
		return false, 0, c.gone()
	}
	reason := rollout.ReasonReplicaFailed
	if isTimeout(err) {
		reason = rollout.ReasonScoringTimeout
	} else if !c.accepted {
		return true, dispatch.Lost, false
	}
	c.router.log.Warn("replica failed a request", "reason", string(reason), "endpoint", c.head.target.key.String(),
		"version", c.version, "replica", c.lease.Replica(), "requestId", c.head.id, "error", err)
	c.giveBack()
	c.lease.Release(false)
	if c.accepted {
		c.measured.Bad = c.lease.Judge(dispatch.Broken)
	}
	return false, 0, c.fail(fail(reason))
}

// answer passes on an answer, unless it is a refusal. complete says that the request was sent
// whole; refusable, that the gate has not accepted it yet.
func (c *call) answer(resp *http.Response, complete, refusable bool) (again bool, why dispatch.Why, ok bool) {
	if refused := resp.Header[headerRefused]; refusable && resp.StatusCode == http.StatusServiceUnavailable && len(refused) > 0 {
		_, err := io.Copy(io.Discard, io.LimitReader(resp.Body, smallAnswer))
		c.reusable = err == nil && complete && !resp.Close && resp.ContentLength >= 0
		if refused[0] != string(rollout.ReasonBusy) {
			return true, dispatch.Leaving, false
		}
		return true, dispatch.Busy, false
	}
	c.accepted = true
	outcome := c.classify(resp)
	h := c.w.Header()
	copyHeaders(h, resp.Header)
	h[headerVersion] = []string{c.version}
	if resp.ContentLength < 0 || resp.ContentLength > smallAnswer {
		return false, 0, c.relay(resp, complete, outcome)
	}
	var body []byte
	if resp.Body != http.NoBody && resp.ContentLength > 0 {
		body = c.router.buffer(&c.replyBuf, int(resp.ContentLength))[:resp.ContentLength]
		if c.conn.Buffered() < len(body) {
			c.watch()
		}
		if _, err := io.ReadFull(resp.Body, body); err != nil {
			clear(h)
			id := []string{c.head.id}
			h[headerRequestID], h[headerMSRequestID] = id, id
			c.measured = telemetry.Request{}
			return c.lost(unexpectedEnd(err))
		}
	}
	c.answered()
	c.reusable = complete && !resp.Close
	c.giveBack()
	c.lease.Release(true)
	c.measured.Bad = c.lease.Judge(outcome)
	c.writeDeadline()
	c.routed()
	c.w.WriteHeader(c.measured.Code)
	_, _ = c.w.Write(body)
	return false, 0, true
}

func unexpectedEnd(err error) error {
	if err == io.EOF { //nolint:errorlint // io gives it bare
		return io.ErrUnexpectedEOF
	}
	return err
}

// classify an answer: its code for the client, its reason, and what it means for a verdict.
func (c *call) classify(resp *http.Response) dispatch.Outcome {
	m := &c.measured
	m.Code = resp.StatusCode
	outcome := dispatch.Good
	if m.Code >= 500 {
		outcome, m.Reason = dispatch.Bad, rollout.ReasonScriptError
	}
	if gate := resp.Header[headerReason]; len(gate) == 1 {
		switch reason := rollout.Reason(gate[0]); reason {
		case rollout.ReasonScriptError:
			m.Reason = reason
		case rollout.ReasonReplicaFailed, rollout.ReasonScoringTimeout:
			// What else was in flight there broke for the same cause.
			outcome, m.Reason = dispatch.Broken, reason
		}
	}
	if m.Code == http.StatusInternalServerError {
		m.Code = http.StatusBadGateway // as Azure ML has it: a 500 is the front end's own
	}
	return outcome
}

// relay an answer that is too long to be kept, or whose length is not known, as it comes.
func (c *call) relay(resp *http.Response, complete bool, outcome dispatch.Outcome) (ok bool) {
	c.watch()
	buf := c.router.buffer(&c.replyBuf, 32<<10)
	flusher, _ := c.w.(http.Flusher)
	c.answered()
	flush := flusher != nil && (resp.ContentLength < 0 || strings.HasPrefix(resp.Header.Get("Content-Type"), "text/event-stream"))
	c.writeDeadline()
	c.routed()
	c.w.WriteHeader(c.measured.Code)
	if flush && c.conn.Buffered() == 0 {
		flusher.Flush()
	}
	// The time to the end is the replica's only while it is waited for; a client that
	// reads slowly costs it nothing.
	left := c.budget - time.Since(c.sent)
	client := reader{limits: c.router.opts.downloads}
	for {
		from := time.Now()
		_ = c.conn.SetReadDeadline(from.Add(left))
		if c.r.Context().Err() != nil {
			return c.gone()
		}
		n, err := resp.Body.Read(buf)
		left -= time.Since(from)
		if n > 0 {
			began := time.Now()
			if d, ok := c.w.(deadlines); ok {
				_ = d.SetWriteDeadline(began.Add(client.left()))
			}
			m, err := c.w.Write(buf[:n])
			if err == nil && flush {
				flusher.Flush() // what fails here ends the request's context
			}
			client.took(m, time.Since(began))
			if client.left() <= 0 || err != nil && isTimeout(err) {
				c.router.log.Debug("client reads too slowly", "endpoint", c.head.target.key.String(), "version", c.version, "requestId", c.head.id)
				return c.gone()
			}
			if err != nil {
				return c.gone()
			}
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			return c.cut(err)
		}
	}
	for name, values := range resp.Trailer {
		if !hopByHop(name) && !strings.HasPrefix(name, ownPrefix) {
			c.w.Header()[http.TrailerPrefix+name] = values
		}
	}
	c.reusable = complete && !resp.Close
	c.giveBack()
	c.lease.Release(true)
	c.measured.Bad = c.lease.Judge(outcome)
	c.writeDeadline() // for what net/http still holds
	return true
}

// cut off an answer that has begun: nothing may be appended to it, and its end
// must not look like one.
func (c *call) cut(err error) bool {
	if c.r.Context().Err() != nil {
		return c.gone()
	}
	c.measured.Cut, c.measured.Reason = true, rollout.ReasonReplicaFailed
	if isTimeout(err) {
		c.measured.Reason = rollout.ReasonScoringTimeout
	}
	c.router.log.Warn("answer was cut off", "reason", string(c.measured.Reason), "endpoint", c.head.target.key.String(),
		"version", c.version, "replica", c.lease.Replica(), "requestId", c.head.id, "error", err)
	c.giveBack()
	c.lease.Release(false)
	c.measured.Bad = c.lease.Judge(dispatch.Broken)
	return false
}
