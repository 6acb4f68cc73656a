package runner

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/sluice-dev/sluice/rollout"
)

// An engine is what stands behind the gate: the scoring server or a server on a port.
type engine interface {
	// run keeps it alive until ctx ends, then ends it: at once if the cause of ctx is
	// errAbrupt. It tells the gate when it is ready and when not any more. An error
	// means that it failed for good before ctx ended.
	run(ctx context.Context, g *gate) error
	// bypass answers what needs no slot, or returns false.
	bypass(w http.ResponseWriter, r *http.Request, id string) bool
	// serve answers an admitted request and may release the slot early, when only the
	// last piece of the answer is still to be written.
	serve(w http.ResponseWriter, r *http.Request, id string, s *slot)
}

type state string

const (
	stateStarting  state = "starting"
	stateReady     state = "ready"
	stateUnhealthy state = "unhealthy"
	stateDraining  state = "draining"
)

// Error codes beside rollout's reasons.
const (
	codeDraining rollout.Reason = "draining" // the replica is about to end
	codeNotFound                = rollout.ReasonInvalid
	codeMethod                  = rollout.ReasonInvalid
	codeBadInput                = rollout.ReasonInvalid
)

// explain is the error code and message of a state that is not ready.
func (s state) explain() (rollout.Reason, string) {
	switch s {
	case stateDraining:
		return codeDraining, "the replica is draining"
	case stateUnhealthy:
		return rollout.ReasonProbeFailed, "the server behind the gate fails its health check"
	default:
		return rollout.ReasonStarting, "the replica is starting"
	}
}

// A gate admits requests to its engine: at most slots at once, none unless ready.
type gate struct {
	// fleet whose requests are served, "" for any.
	fleet string

	engine  engine
	slots   int
	maxBody int64
	log     *slog.Logger

	mu       sync.Mutex
	inFlight int
	ready    state // starting, ready or unhealthy
	was      bool  // has been ready
	draining bool
	idle     chan struct{} // closed once draining and nothing is in flight
}

func newGate(o *Options) *gate {
	return &gate{fleet: o.Fleet, slots: o.MaxConcurrentRequests, maxBody: o.MaxBodyBytes, log: o.Logger, ready: stateStarting, idle: make(chan struct{})}
}

// set says what the engine can do now.
func (g *gate) set(s state) {
	g.mu.Lock()
	changed := g.ready != s
	g.ready = s
	g.was = g.was || s == stateReady
	g.mu.Unlock()
	if changed {
		g.log.Info("state changed", "state", string(s))
	}
}

func (g *gate) look() (s state, inFlight int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.draining {
		return stateDraining, g.inFlight
	}
	return g.ready, g.inFlight
}

// closeIfDraining asks the client to use another connection next.
func (g *gate) closeIfDraining(h http.Header) {
	if s, _ := g.look(); s == stateDraining {
		h["Connection"] = sayClose
	}
}

// drain refuses all that is new from now on.
func (g *gate) drain() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.draining {
		g.draining = true
		if g.inFlight == 0 {
			close(g.idle)
		}
	}
}

// wasReady says whether the replica has ever been ready.
func (g *gate) wasReady() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.was
}

// A slot is the right to one request in flight.
type slot struct {
	g    *gate
	once bool
}

// release frees the slot; again it does nothing. It belongs to one goroutine.
func (s *slot) release() {
	if s.once {
		return
	}
	s.once = true
	g := s.g
	g.mu.Lock()
	g.inFlight--
	if g.draining && g.inFlight == 0 {
		close(g.idle)
	}
	g.mu.Unlock()
}

// admit takes a slot, or says in which state there is none: ready means busy.
func (g *gate) admit() (*slot, state) {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case g.draining:
		return nil, stateDraining
	case g.ready != stateReady:
		return nil, g.ready
	case g.inFlight >= g.slots:
		return nil, stateReady
	}
	g.inFlight++
	return &slot{g: g}, stateReady
}

func (g *gate) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	id := requestID(r.Header)
	if r.URL.Path == "/" && (r.Method == http.MethodGet || r.Method == http.MethodHead) {
		g.health(w, id)
		return
	}
	if asked := r.Header["Sluice-Fleet"]; g.fleet != "" && len(asked) > 0 && asked[0] != g.fleet {
		g.stray(w, id, asked[0])
		return
	}
	if g.engine.bypass(w, r, id) {
		return
	}
	if r.ContentLength > g.maxBody {
		tooLarge(w, g.maxBody, id)
		return
	}
	s, refused := g.admit()
	if s == nil {
		g.refuse(w, id, refused)
		return
	}
	defer s.release()
	g.engine.serve(w, r, id, s)
}

func (g *gate) health(w http.ResponseWriter, id string) {
	s, inFlight := g.look()
	h := w.Header()
	h.Set("Cache-Control", "no-store")
	h.Set("Sluice-State", string(s))
	h.Set("Sluice-In-Flight", strconv.Itoa(inFlight))
	h.Set("Sluice-Slots", strconv.Itoa(g.slots))
	if s == stateReady {
		h.Set("Content-Type", "text/plain; charset=utf-8")
		_, _ = w.Write([]byte("Healthy"))
		return
	}
	if s == stateDraining {
		h.Set("Connection", "close")
	}
	code, message := s.explain()
	writeError(w, http.StatusServiceUnavailable, code, message, id)
}

// refuse answers a request that gets no slot. The body has not been read: with
// Expect: 100-continue it was not even sent.
func (g *gate) refuse(w http.ResponseWriter, id string, s state) {
	h := w.Header()
	code, message := rollout.ReasonBusy, "all slots of the replica are taken"
	if s == stateReady {
		h["Sluice-Refused"] = refusedBusy
	} else {
		code, message = s.explain()
		h.Set("Sluice-Refused", string(s))
		if s == stateDraining {
			h.Set("Connection", "close")
		}
	}
	writeError(w, http.StatusServiceUnavailable, code, message, id)
}

// stray answers a request for another version: the router's table is old, and another replica had
// the address then. The wrong model's answer would be worse than none.
func (g *gate) stray(w http.ResponseWriter, id, asked string) {
	h := w.Header()
	h.Set("Sluice-Refused", "stray")
	h.Set("Connection", "close")
	g.log.Warn("request for another version refused", "asked", strconv.Quote(asked), "is", g.fleet)
	writeError(w, http.StatusServiceUnavailable, rollout.ReasonUnknownVersion, "this is a replica of another version", id)
}

func tooLarge(w http.ResponseWriter, limit int64, id string) {
	w.Header().Set("Connection", "close")
	writeError(w, http.StatusRequestEntityTooLarge, rollout.ReasonBodyTooLarge,
		"the body exceeds "+strconv.FormatInt(limit, 10)+" bytes", id)
}

// bodyLost answers a client that did not send what it had announced, if it is there.
func bodyLost(w http.ResponseWriter, err error, id string) {
	w.Header().Set("Connection", "close")
	status := http.StatusBadRequest
	if errors.Is(err, os.ErrDeadlineExceeded) {
		status = http.StatusRequestTimeout
	}
	writeError(w, status, rollout.ReasonClientGone, "the body did not arrive", id)
}

// Header values that are the same each time; net/http only reads them.
var (
	refusedBusy = []string{"busy"}
	jsonType    = []string{"application/json"}
	sayClose    = []string{"close"}
	sayFalse    = []string{"False"} // as Flask writes Azure ML's header
	sayTrue     = []string{"True"}
)

// fail answers a request the replica had accepted and could not serve.
func fail(w http.ResponseWriter, status int, code rollout.Reason, message, id string) {
	h := w.Header()
	h["Sluice-Reason"] = []string{string(code)}
	h["X-Ms-Run-Function-Failed"] = sayTrue
	writeError(w, status, code, message, id)
}

// writeError answers with the error body of every Sluice data path. id has been
// through requestID and needs no quoting.
func writeError(w http.ResponseWriter, status int, code rollout.Reason, message, id string) {
	h := w.Header()
	h["Content-Type"] = jsonType
	h["X-Request-Id"] = []string{id}
	b := make([]byte, 0, 256)
	b = append(b, `{"error":{"code":"`...)
	b = append(b, code...)
	b = append(b, `","message":`...)
	b = appendJSON(b, message)
	b = append(b, `,"requestId":"`...)
	b = append(b, id...)
	b = append(b, "\"}}\n"...)
	w.WriteHeader(status)
	_, _ = w.Write(b)
}

// appendJSON quotes a text, without reflection where nothing needs an escape.
func appendJSON(b []byte, s string) []byte {
	for i := range len(s) {
		if c := s[i]; c < ' ' || c > '~' || c == '"' || c == '\\' {
			quoted, err := json.Marshal(s)
			if err != nil { // a string always marshals
				quoted = []byte(`""`)
			}
			return append(b, quoted...)
		}
	}
	b = append(b, '"')
	b = append(b, s...)
	return append(b, '"')
}

// drained waits until nothing is in flight and linger has passed, or ctx ends.
func (g *gate) drained(ctx context.Context, linger time.Duration) error {
	if linger > 0 {
		select {
		case <-time.After(linger):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	select {
	case <-g.idle:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
