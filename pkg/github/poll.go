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
	// enough deliveries that fail end a round: it is nothing of theirs.
	enough = 3
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
// at once. The oldest is taken first; what fails is tried again in each round, and
// for a while holds back what came later from the same repository.
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
}

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
	from := time.Now().Add(-lookBack)
	if t := p.newest.Add(-overlap); t.After(from) {
		from = t
	}
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
		case w == nothing,
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
	failed, fetched := 0, 0
	taken := map[*fetch]bool{}
	defer func() {
		p.pending = slices.DeleteFunc(p.pending, func(f *fetch) bool { return taken[f] })
	}()
	for _, f := range p.pending {
		if held[f.RepositoryID] {
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
		case err != nil:
			return 0, err
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
		if time.Since(f.DeliveredAt) > lookBack {
			log.ErrorContext(ctx, "a delivery is given up")
			taken[f] = true
		}
		if f.tries > heldFor {
			continue
		}
		held[f.RepositoryID] = true
		if failed++; failed >= enough {
			return 0, nil
		}
	}
	return 0, nil
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
