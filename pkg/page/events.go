package page

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/sluice-dev/sluice/pkg/cluster"
	"github.com/sluice-dev/sluice/rollout"
)

// Bounds of events.
const (
	// maxNamed endpoints are named in one event; where more have changed, all may have.
	maxNamed = 100
	// maxKnown endpoints are remembered with when they changed last, those that are gone included. Beyond that
	// positions start afresh, which costs each client one load of its page.
	maxKnown = 10_000
	// watchAgain is how long after the end of a watch of the store the next one begins.
	watchAgain = time.Second
)

// hub knows of each endpoint when it changed last, as a count of changes. It holds nothing for its clients:
// each knows how far it is and asks what is newer, so that a slow one costs no memory and misses nothing but
// what has been overtaken.
type hub struct {
	mu      sync.Mutex
	epoch   string
	seq     int64
	changed map[rollout.Key]int64
	clients map[chan struct{}]struct{}
	most    int
	follows bool
}

func newHub(most int) *hub {
	return &hub{epoch: uuid.NewString()[:8], changed: map[rollout.Key]int64{}, clients: map[chan struct{}]struct{}{}, most: most}
}

// run follows the store until ctx ends.
func (h *hub) run(ctx context.Context, r cluster.Reader, log *slog.Logger) {
	for ctx.Err() == nil {
		keys, err := r.Watch(ctx)
		if err == nil {
			h.restart(true)
			for key := range keys {
				h.touch(key)
			}
			h.restart(false)
		}
		if ctx.Err() == nil {
			log.WarnContext(ctx, "the watch of endpoints ended; the page follows again in a moment", "error", err)
			select {
			case <-ctx.Done():
			case <-time.After(watchAgain):
			}
		}
	}
}

// restart forgets positions: what changed while nothing was watched is not known.
func (h *hub) restart(follows bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.follows = follows
	h.fresh()
}

// fresh positions; every client takes its page again.
func (h *hub) fresh() {
	h.epoch, h.seq, h.changed = uuid.NewString()[:8], 0, map[rollout.Key]int64{}
	h.ring()
}

func (h *hub) touch(key rollout.Key) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.changed) >= maxKnown {
		h.fresh()
	}
	h.seq++
	h.changed[key] = h.seq
	h.ring()
}

func (h *hub) ring() {
	for c := range h.clients {
		select {
		case c <- struct{}{}:
		default: // it has not looked since the last time
		}
	}
}

// enter a client; false if there are as many as may be.
func (h *hub) enter() (chan struct{}, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.clients) >= h.most {
		return nil, false
	}
	c := make(chan struct{}, 1)
	c <- struct{}{}
	h.clients[c] = struct{}{}
	return c, true
}

func (h *hub) leave(c chan struct{}) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.clients, c)
}

// position now.
func (h *hub) position() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.at()
}

// following says whether the hub hears of changes.
func (h *hub) following() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.follows
}

func (h *hub) at() string { return h.epoch + "-" + strconv.FormatInt(h.seq, 10) }

// since a position: the endpoints that have changed and the position now. all says that any may have: the
// position is of another epoch, or none.
func (h *hub) since(position string, only rollout.Key) (keys []rollout.Key, all bool, now string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	now = h.at()
	epoch, text, _ := strings.Cut(position, "-")
	seq, err := strconv.ParseInt(text, 10, 64)
	if err != nil || epoch != h.epoch || seq > h.seq {
		return nil, true, now
	}
	if seq == h.seq {
		return nil, false, now
	}
	for key, at := range h.changed {
		if at <= seq || only.Name != "" && key != only {
			continue
		}
		if keys = append(keys, key); len(keys) > maxNamed {
			return nil, true, now
		}
	}
	return keys, false, now
}

// change is the data of an event: the endpoints that changed, or that any may have.
type change struct {
	All       bool     `json:"all,omitempty"`
	Endpoints []string `json:"endpoints,omitempty"`
}

// stream events: `change` whenever an endpoint has changed, merged where they come faster than the pace, and
// `beat` where nothing does, so that proxies keep the connection and clients notice one that is gone. Each carries the position
// as its id; who comes back with it (Last-Event-ID, or ?since= of a page) gets what it has missed.
func (p *Page) stream(w http.ResponseWriter, r *http.Request) {
	if site := r.Header.Get("Sec-Fetch-Site"); site != "" && site != "same-origin" && site != "none" {
		refuse(w, http.StatusForbidden, "other sites may not listen")
		return
	}
	v := p.visitor(r)
	if !v.all && v.person == nil {
		refuse(w, http.StatusForbidden, "the page is for those who have logged in")
		return
	}
	var only rollout.Key
	if s := r.URL.Query().Get("endpoint"); s != "" {
		only.Namespace, only.Name, _ = strings.Cut(s, "/")
		if cluster.ValidateKey(only) != nil {
			refuse(w, http.StatusBadRequest, "endpoint is to be NAMESPACE/NAME")
			return
		}
	}
	position := r.Header.Get("Last-Event-ID")
	if position == "" {
		position = r.URL.Query().Get("since")
	}
	wake, ok := p.hub.enter()
	if !ok {
		w.Header().Set("Retry-After", "15")
		refuse(w, http.StatusServiceUnavailable, "as many listen as may: try again later, the page itself goes on")
		return
	}
	defer p.hub.leave(wake)

	h := w.Header()
	h.Set("Content-Type", "text/event-stream")
	h.Set("Cache-Control", "no-store, no-transform")
	h.Set("X-Accel-Buffering", "no") // nginx
	conn := http.NewResponseController(w)
	send := func(text string) bool {
		// The server's own deadline is that of short answers. Where none can be set there is none.
		_ = conn.SetWriteDeadline(time.Now().Add(p.t.write))
		if _, err := io.WriteString(w, text); err != nil {
			return false
		}
		return conn.Flush() == nil
	}
	// Not all at once come back after a restart.
	if !send(fmt.Sprintf("retry: %d\n\n", 1000+rand.IntN(2000))) {
		return
	}
	beat := time.NewTicker(p.t.beat)
	defer beat.Stop()
	span := p.t.life/2 + rand.N(p.t.life/2)
	if !v.all { // nobody hears more than their session lasts
		span = min(span, v.person.Until().Sub(p.o.Now()))
	}
	life := time.NewTimer(span)
	defer life.Stop()
	for {
		select {
		case <-r.Context().Done():
			return
		case <-p.ending:
			return
		case <-life.C:
			return
		case <-beat.C:
			keys, all, now := p.hub.since(position, only)
			if all || len(keys) > 0 {
				continue // the bell has rung for it
			}
			position = now
			if !send("event: beat\nid: " + now + "\ndata: {}\n\n") {
				return
			}
			continue
		case <-wake:
		}
		keys, all, now := p.hub.since(position, only)
		position = now
		keys = slices.DeleteFunc(keys, func(k rollout.Key) bool { return !v.sees(k) })
		if !all && len(keys) == 0 {
			continue
		}
		c := change{All: all}
		for _, k := range keys {
			c.Endpoints = append(c.Endpoints, k.String())
		}
		data, err := json.Marshal(c)
		if err != nil || !send("event: change\nid: "+now+"\ndata: "+string(data)+"\n\n") {
			return
		}
		select {
		case <-r.Context().Done():
			return
		case <-p.ending:
			return
		case <-time.After(p.t.pace):
		}
	}
}
