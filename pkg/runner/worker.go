package runner

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sluice-dev/sluice/rollout"
)

//go:embed worker.py
var workerSource string

// boot runs the worker's source from descriptor 4, in a namespace of its own so that
// __main__ stays empty for scripts that use multiprocessing.
const boot = `import os;exec(compile(os.fdopen(4,encoding="utf-8").read(),"<sluice worker>","exec"),{"__name__":"sluice_worker"})`

// stopGrace is how long a worker or server may take to end once it has been asked to.
const stopGrace = 3 * time.Second

// errAbrupt is the cause of a context that ends without grace.
var errAbrupt = errors.New("end at once")

// A worker is one Python process and its lanes.
type worker struct {
	proc    *process
	lanes   []*lane
	headers bool // run() wants the request's headers
	started time.Time

	mu      sync.Mutex
	free    []*lane       // the one used last on top: its thread is warm
	closed  bool          // free lanes are closed, others will be by put
	failing chan struct{} // closed when it must be replaced, or has died
	cause   string        // why, once failing is closed
}

// take gives a lane, nil when the worker is failing. There is one for every slot.
func (w *worker) take() *lane {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := len(w.free)
	if n == 0 || w.closed || w.cause != "" {
		return nil
	}
	l := w.free[n-1]
	w.free = w.free[:n-1]
	return l
}

// put takes a lane back.
func (w *worker) put(l *lane) {
	l.shrink()
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		_ = l.conn.Close()
		return
	}
	w.free = append(w.free, l)
}

// close closes the lanes: those in use as they come back, since an answer may have
// arrived before its worker's end.
func (w *worker) close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.closed = true
	for _, l := range w.free {
		_ = l.conn.Close()
	}
	w.free = nil
}

// died ends the waiting on the lanes of a worker that has ended. They are at end of
// file, but for a process outside its group that inherited them.
func (w *worker) died() {
	w.fail("the worker ended (" + w.proc.how() + ")")
	w.close()
	for _, l := range w.lanes {
		_ = l.conn.SetReadDeadline(time.Now().Add(time.Second))
	}
}

// fail says once why the worker has to go, and that nothing new goes to it.
func (w *worker) fail(cause string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.cause == "" {
		w.cause = cause
		close(w.failing)
	}
}

func (w *worker) why() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.cause
}

// stop ends the worker: after the requests in flight, its exit handlers and
// stopGrace, or at once.
func (w *worker) stop(abrupt bool) {
	if !abrupt {
		w.close() // a thread ends at end of file, the process with the last of them
		if w.proc.wait(stopGrace) {
			return
		}
	}
	w.proc.kill()
}

// A pool is the engine that scores with a Python worker, one at a time.
type pool struct {
	o     *Options
	spawn *spawner
	cur   atomic.Pointer[worker]
}

// run keeps a worker alive. A worker that cannot be brought up fails the pool: the
// owner of the replica starts it again with a pause, and people see it not come up.
func (p *pool) run(ctx context.Context, g *gate) error {
	log := p.o.Logger
	pause := time.Duration(0)
	for {
		w, err := p.start(ctx)
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return &ExitError{Code: ExitInit, Err: err}
		}
		p.cur.Store(w)
		g.set(stateReady)
		log.Info("worker ready", "pid", w.proc.cmd.Process.Pid, "slots", len(w.lanes), "took", time.Since(w.started).Round(time.Millisecond).String())
		began := time.Now()
		select {
		case <-ctx.Done():
			p.cur.Store(nil)
			w.stop(errors.Is(context.Cause(ctx), errAbrupt))
			return nil
		case <-w.failing:
		}
		p.cur.Store(nil)
		g.set(stateStarting)
		if w.proc.alive() {
			w.proc.dumpStacks()
			w.proc.wait(200 * time.Millisecond)
			w.proc.kill()
		}
		log.Error("worker replaced", "cause", w.why(), "end", w.proc.how(), "after", time.Since(began).Round(time.Millisecond).String())
		if time.Since(began) > 3*p.o.maxBackoff {
			pause = 0
		}
		if pause > 0 {
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(pause):
			}
		}
		pause = min(max(2*pause, p.o.backoff), p.o.maxBackoff)
	}
}

// start brings a worker up: the process, the import of the script, init().
func (p *pool) start(ctx context.Context) (_ *worker, err error) {
	script, err := p.o.entryScript()
	if err != nil {
		return nil, fmt.Errorf("find entry script: %w", err)
	}
	python, err := p.o.lookPath(p.o.Python)
	if err != nil {
		return nil, fmt.Errorf("find Python: %w", err)
	}
	w := &worker{failing: make(chan struct{}), started: time.Now()}
	source, sourceIn, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("open pipe: %w", err)
	}
	files := []*os.File{source} // the child's ends: no longer ours once it has them
	closeFiles := func() {
		for _, f := range files {
			_ = f.Close()
		}
	}
	for range p.o.MaxConcurrentRequests {
		conn, file, err := socketPair()
		if err != nil {
			_ = sourceIn.Close()
			closeFiles()
			w.closeAll()
			return nil, err
		}
		files = append(files, file)
		w.lanes = append(w.lanes, newLane(conn))
	}
	watch := "1"
	if kernelGuards {
		watch = "0"
	}
	cmd := exec.Command(python, append([]string{"-c", boot, strconv.Itoa(len(w.lanes)), watch, script}, p.o.Arguments...)...)
	cmd.Dir = p.o.ProjectDir
	cmd.Env = p.o.childEnv()
	cmd.ExtraFiles = files
	w.proc, err = p.spawn.start(cmd)
	closeFiles()
	if err != nil {
		_ = sourceIn.Close()
		w.closeAll()
		return nil, fmt.Errorf("start worker: %w", err)
	}
	go func() {
		<-w.proc.done
		w.died()
	}()
	go func() {
		// More than a pipe may hold at once; a worker that dies early breaks it.
		_, _ = io.WriteString(sourceIn, workerSource)
		_ = sourceIn.Close()
	}()

	// init() may take long: the answer on the first lane is awaited, the end of ctx too.
	l := w.lanes[0]
	_ = l.conn.SetReadDeadline(w.started.Add(p.o.InitTimeout))
	stopped := context.AfterFunc(ctx, func() { _ = l.conn.SetReadDeadline(time.Unix(1, 0)) })
	a, err := l.receive()
	if !stopped() && err == nil {
		err = context.Cause(ctx)
	}
	switch {
	case ctx.Err() != nil:
		err = ctx.Err()
	case err == nil && a.kind == kindReady:
		w.headers = a.status&1 != 0
		for _, l := range w.lanes {
			w.put(l)
		}
		return w, nil
	case err == nil && a.kind == kindInitFailed:
		err = initError(string(a.payload))
	case errors.Is(err, os.ErrDeadlineExceeded) && w.proc.alive():
		w.proc.dumpStacks()
		w.proc.wait(200 * time.Millisecond)
		err = fmt.Errorf("initialise worker: init() did not return within %v", p.o.InitTimeout)
	default:
		w.proc.wait(stopGrace)
		w.proc.kill()
		err = fmt.Errorf("initialise worker: it ended before init() returned (%s)", w.proc.how())
	}
	w.proc.kill()
	w.closeAll()
	return nil, err
}

// initError is the failure that a traceback ends with.
func initError(traceback string) error {
	lines := strings.Split(strings.TrimSpace(traceback), "\n")
	return fmt.Errorf("initialise worker: %s", lines[len(lines)-1])
}

// closeAll closes the lanes of a worker that never became ready.
func (w *worker) closeAll() {
	for _, l := range w.lanes {
		_ = l.conn.Close()
	}
}

func (p *pool) bypass(w http.ResponseWriter, r *http.Request, id string) bool {
	if r.URL.Path != "/score" {
		writeError(w, http.StatusNotFound, codeNotFound, "the scoring server answers / and /score", id)
		return true
	}
	switch r.Method {
	case http.MethodGet, http.MethodPost:
		return false
	case http.MethodOptions:
		w.Header().Set("Allow", "GET, POST, OPTIONS")
		w.Header()["X-Request-Id"] = []string{id}
	default:
		w.Header().Set("Allow", "GET, POST, OPTIONS")
		writeError(w, http.StatusMethodNotAllowed, codeMethod, "use GET or POST", id)
	}
	return true
}

func (p *pool) serve(rw http.ResponseWriter, r *http.Request, id string, s *slot) {
	w := p.cur.Load()
	var l *lane
	if w != nil {
		l = w.take()
	}
	if l == nil { // it failed since the slot was taken
		s.release()
		s.g.refuse(rw, id, stateStarting)
		return
	}
	rc := http.NewResponseController(rw)
	body := io.Reader(r.Body)
	if r.ContentLength < 0 || r.ContentLength > pieceBytes {
		body = &patient{rc: rc, r: r.Body, stall: p.o.stall, left: p.o.MaxBodyBytes}
	}
	err := l.send(r, id, w.headers, body, p.o.ScoringTimeout)
	// The deadline for reading the request must not end the wait for the answer.
	_ = rc.SetReadDeadline(time.Time{})
	var a answer
	if err == nil {
		// A client that goes away changes nothing here: run() goes on, and so the slot
		// stays taken.
		a, err = l.receive()
	}
	if err != nil {
		p.failed(rw, id, w, l, err)
		return
	}
	h := rw.Header()
	echoIDs(h, r.Header, id)
	h["X-Ms-Run-Fn-Exec-Ms"] = []string{strconv.FormatFloat(float64(a.spent)/1e6, 'f', 3, 64)}
	status := http.StatusOK
	switch {
	case a.kind == kindOK:
		h["Content-Type"] = jsonType
		h["X-Ms-Run-Function-Failed"] = sayFalse
	case a.kind == kindRaw && a.status >= 200 && a.status <= 599:
		status = a.status
		h["X-Ms-Run-Function-Failed"] = sayFalse
		if status >= 500 {
			h["X-Ms-Run-Function-Failed"] = sayTrue
		}
		copyRawHeaders(h, string(a.headers))
	case a.kind == kindBadInput && a.rest == 0:
		writeError(rw, http.StatusBadRequest, codeBadInput, string(a.payload), id)
		w.put(l)
		return
	case a.kind == kindScriptError && a.rest == 0:
		fail(rw, http.StatusBadGateway, rollout.ReasonScriptError, "the scoring script raised an exception: the log has its traceback", id)
		w.put(l)
		return
	default:
		p.failed(rw, id, w, l, fmt.Errorf("read answer: kind %d with status %d cannot be", a.kind, a.status))
		return
	}
	h["Content-Length"] = []string{strconv.FormatInt(int64(len(a.payload))+a.rest, 10)}
	s.g.closeIfDraining(h)
	rw.WriteHeader(status)
	p.write(rw, rc, w, l, a)
	s.release()
}

// heldBack is how much of an answer's end stays in net/http's buffer (2 KiB, before its
// header is written) until the handler returns: so whoever has read the whole answer
// finds lane and slot free.
const heldBack = 1024

// write passes an answer on, from the worker if it is long, and frees the lane. It
// panics with http.ErrAbortHandler, which cuts the connection, if the worker fails
// halfway: a short answer must not pass for a whole one.
func (p *pool) write(rw http.ResponseWriter, rc *http.ResponseController, w *worker, l *lane, a answer) {
	if a.rest == 0 && len(a.payload) <= heldBack {
		_, _ = rw.Write(a.payload)
		w.put(l)
		return
	}
	piece, rest, gone := a.payload, a.rest, false
	for {
		tail := 0
		if rest == 0 {
			tail = min(heldBack, len(piece))
		}
		if !gone && len(piece) > tail {
			_ = rc.SetWriteDeadline(time.Now().Add(p.o.stall))
			_, err := rw.Write(piece[:len(piece)-tail])
			gone = err != nil
		}
		if rest == 0 {
			_, _ = rw.Write(piece[len(piece)-tail:])
			break
		}
		// The client may be gone, but the lane must be read to the end of the answer.
		_ = l.conn.SetReadDeadline(time.Now().Add(p.o.ScoringTimeout))
		n, err := l.conn.Read(l.buf[:min(int64(len(l.buf)), rest)])
		if err != nil {
			w.fail(fmt.Sprintf("read answer: %v", err))
			w.put(l)
			panic(http.ErrAbortHandler)
		}
		piece, rest = l.buf[:n], rest-int64(n)
	}
	w.put(l)
	_ = rc.SetWriteDeadline(time.Now().Add(p.o.stall)) // for the flush after the handler
}

// failed answers a request that got no answer from the worker.
func (p *pool) failed(rw http.ResponseWriter, id string, w *worker, l *lane, err error) {
	defer w.put(l)
	switch {
	case errors.Is(err, errBodyTooLarge):
		tooLarge(rw, p.o.MaxBodyBytes, id)
	case errors.As(err, new(*clientError)):
		bodyLost(rw, err, id)
	case errors.Is(err, os.ErrDeadlineExceeded) && w.proc.alive():
		w.fail("request " + id + " exceeded the scoring timeout")
		fail(rw, http.StatusGatewayTimeout, rollout.ReasonScoringTimeout,
			"the scoring script did not answer within "+p.o.ScoringTimeout.String(), id)
	default:
		w.fail("request " + id + " failed: " + err.Error())
		p.o.Logger.Warn("request failed with its worker", "request", id, "err", err)
		fail(rw, http.StatusBadGateway, rollout.ReasonReplicaFailed, "the worker ended during the request", id)
	}
}

// copyRawHeaders takes over what a script's own response says, but for what belongs to
// the connection or to Sluice.
func copyRawHeaders(h http.Header, raw string) {
	fields := strings.Split(raw, "\x00")
	seen := map[string]bool{}
	for i := 0; i+1 < len(fields); i += 2 {
		name := http.CanonicalHeaderKey(fields[i])
		switch {
		case strings.HasPrefix(name, "Sluice-"), name == "X-Ms-Run-Function-Failed":
			continue
		case name == "Content-Length", name == "Connection", name == "Keep-Alive", name == "Transfer-Encoding", name == "Trailer", name == "Upgrade":
			continue
		}
		if seen[name] {
			h.Add(name, fields[i+1])
		} else {
			h.Set(name, fields[i+1])
			seen[name] = true
		}
	}
}

// patient reads a body as long as it keeps coming, each read within stall, up to its
// largest size.
type patient struct {
	rc    *http.ResponseController
	r     io.Reader
	stall time.Duration
	left  int64
}

func (p *patient) Read(b []byte) (int, error) {
	if err := p.rc.SetReadDeadline(time.Now().Add(p.stall)); err != nil {
		return 0, fmt.Errorf("set deadline: %w", err)
	}
	n, err := p.r.Read(b)
	if p.left -= int64(n); p.left < 0 {
		return 0, errBodyTooLarge
	}
	return n, err
}
