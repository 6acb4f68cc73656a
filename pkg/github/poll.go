package github

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"runtime/debug"
	"slices"
	"time"
)

// Bounds of polling.
const (
	// fetches bounds the payloads that are read in a round; the rest follows at once.
	fetches = 100
	// maxPending bounds the deliveries that are known and not taken yet; the oldest go first.
	maxPending = 10_000
	// heldFor is how many tries of a delivery hold later ones of its repository back.
	heldFor = 6
)

// PollLog is what Poller needs of HookLog.
type PollLog interface {
	List(ctx context.Context, cursor string) (page []Delivery, next string, err error)
	Payload(ctx context.Context, id int64) ([]byte, error)
}

// PollerOptions of a Poller; Log and Handle must be set.
type PollerOptions struct {
	Log PollLog
	// Handle takes an event; *Events does. A code of 500 or more means: hand it over again.
	Handle func(ctx context.Context, event, delivery string, body []byte) (code int, a Answer)
	// Every is the time between two looks; 10 s unless set.
	Every  time.Duration
	Logger *slog.Logger
}

// Poller fetches events from GitHub's record of the App's deliveries, for a
// service that the internet cannot reach: whether a delivery arrived anywhere
// does not matter. That an event is GitHub's is known by where it was read.
//
// What was taken is remembered only by this process. The next one begins with
// what GitHub still has, where the journal knows what was done, and so do several
// at once. The oldest is taken first; what fails is tried again in each round, what
// cannot be read ever later, and for a while either holds back what came later from
// the same repository, and nothing else.
//
// A push is not fetched: it can be as large as somebody likes, and says only where a
// repository is, which any other event says too.
type Poller struct {
	o       PollerOptions
	log     *slog.Logger
	began   time.Time
	newest  time.Time            // of what was listed
	known   map[string]time.Time // by GUID, when it was delivered first
	pending []*fetch             // oldest first
}

type fetch struct {
	Delivery
	tries int
	// unread are the tries that did not even read it; the next is not before then.
	unread int
	next   time.Time
}

// holds says whether it holds back what came later from its repository.
func (f *fetch) holds() bool { return f.tries+f.unread > 0 && f.tries+f.unread <= heldFor }

// NewPoller does nothing before Run.
func NewPoller(o PollerOptions) *Poller {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Every <= 0 {
		o.Every = 10 * time.Second
	}
	return &Poller{o: o, log: o.Logger, known: map[string]time.Time{}}
}

// Run polls until ctx ends.
func (p *Poller) Run(ctx context.Context) error {
	p.began = time.Now()
	rounds(ctx, 0, p.o.Every, p.round, func(err error, wait time.Duration) {
		p.log.WarnContext(ctx, "deliveries cannot be fetched from GitHub", "again", wait, "error", err)
	})
	return nil
}

func (p *Poller) round(ctx context.Context) (time.Duration, error) {
	from := lookFrom(p.newest, time.Now())
	all, complete, err := since(ctx, p.o.Log, from)
	if err != nil {
		return 0, err
	}
	if !complete {
		p.log.WarnContext(ctx, "more was delivered than is looked through: what was before is not taken", "deliveries", len(all), "before", all[0].DeliveredAt)
	}
	p.note(ctx, all, from)
	return p.take(ctx)
}

// note what was delivered since then, oldest first.
func (p *Poller) note(ctx context.Context, all []Delivery, then time.Time) {
	for _, d := range all {
		p.newest = maxTime(p.newest, d.DeliveredAt)
		if _, ok := p.known[d.GUID]; ok || d.ID <= 0 || d.GUID == "" {
			continue
		}
		p.known[d.GUID] = d.DeliveredAt
		// At the start, reports are looked at anyway, and what was pressed long ago was pressed again.
		switch w := weigh(d.Event, d.Action); {
		case w == nothing, d.Event == "push",
			w == tells && d.DeliveredAt.Before(p.began.Add(-overlap)),
			d.Event == "check_run" && d.DeliveredAt.Before(p.began.Add(-buttonAge)):
			continue
		}
		p.pending = append(p.pending, &fetch{Delivery: d})
	}
	slices.SortStableFunc(p.pending, func(a, b *fetch) int { return a.DeliveredAt.Compare(b.DeliveredAt) })
	if over := len(p.pending) - maxPending; over > 0 {
		p.log.ErrorContext(ctx, "too many deliveries wait: the oldest are left out", "deliveries", over, "before", p.pending[over].DeliveredAt)
		p.pending = slices.Delete(p.pending, 0, over)
	}
	for guid, at := range p.known {
		if at.Before(then) { // it is not listed again
			delete(p.known, guid)
		}
	}
}

// take what is pending. What was taken is pending no more, also when an error ends the round.
func (p *Poller) take(ctx context.Context) (again time.Duration, err error) {
	held := map[int64]bool{}
	failed, unread, fetched := 0, 0, 0
	taken := map[*fetch]bool{}
	defer func() {
		p.pending = slices.DeleteFunc(p.pending, func(f *fetch) bool { return taken[f] })
	}()
	// What could not be read comes last: however much of it there is, nothing else waits for it.
	var order, last []*fetch
	for _, f := range p.pending {
		if f.unread == 0 {
			order = append(order, f)
			continue
		}
		if f.holds() {
			held[f.RepositoryID] = true
		}
		if !time.Now().Before(f.next) {
			last = append(last, f)
		}
	}
	for _, f := range append(order, last...) {
		if f.unread == 0 && held[f.RepositoryID] {
			continue
		}
		if fetched++; fetched > fetches {
			return time.Millisecond, nil
		}
		log := p.log.With("delivery", f.GUID, "event", f.Event, "action", f.Action, "repository", f.RepositoryID)
		body, err := p.o.Log.Payload(ctx, f.ID)
		switch {
		case err != nil && gone(err):
			log.WarnContext(ctx, "a delivery is lost: GitHub has it no more", "error", err)
			taken[f] = true
			continue
		case err != nil && (ctx.Err() != nil || restFor(err, time.Now()) > 0):
			return 0, err
		case err != nil:
			f.unread++
			wait := backOff(p.o.Every, f.unread)
			f.next = time.Now().Add(wait)
			held[f.RepositoryID] = f.holds()
			taken[f] = p.over(ctx, log, f)
			log.WarnContext(ctx, "a delivery cannot be read", "again", wait, "tries", f.unread, "error", err)
			if unread++; unread >= enough {
				return 0, nil
			}
			continue
		}
		if unread = 0; f.unread > 0 {
			f.unread, again = 0, time.Millisecond // for what waits for it
		}
		code, a := p.handle(ctx, f, body)
		if ctx.Err() != nil && code >= 500 {
			return 0, ctx.Err()
		}
		if code < 500 {
			taken[f] = true
			if code >= 400 {
				log.WarnContext(ctx, "delivery refused", "code", code, "message", a.Message)
			}
			continue
		}
		f.tries++
		log.WarnContext(ctx, "a delivery is tried again in a while", "code", code, "message", a.Message, "tries", f.tries)
		taken[f] = p.over(ctx, log, f)
		if !f.holds() {
			continue
		}
		held[f.RepositoryID] = true
		if failed++; failed >= enough {
			return 0, nil
		}
	}
	return again, nil
}

// over says whether it is given up: GitHub keeps it no longer.
func (p *Poller) over(ctx context.Context, log *slog.Logger, f *fetch) bool {
	if time.Since(f.DeliveredAt) <= lookBack {
		return false
	}
	log.ErrorContext(ctx, "a delivery is given up")
	return true
}

// handle one, which ends no more than itself.
func (p *Poller) handle(ctx context.Context, f *fetch, body []byte) (code int, a Answer) {
	defer func() {
		if v := recover(); v != nil {
			p.log.ErrorContext(ctx, "handling a delivery panicked", "delivery", f.GUID, "event", f.Event, "panic", fmt.Sprint(v), "stack", string(debug.Stack()))
			code, a = refusal(http.StatusInternalServerError, "something failed inside Sluice")
		}
	}()
	return p.o.Handle(ctx, f.Event, f.GUID, body)
}
