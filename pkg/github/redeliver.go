package github

import (
	"cmp"
	"context"
	"log/slog"
	"net/http"
	"slices"
	"time"
)

// How often GitHub is asked for a delivery again, and for how many at a time.
const (
	// firstLook waits until what leads deliveries here knows of this process.
	firstLook = 30 * time.Second
	// lostAttempts, after lostWait and then ever longer, of what did not arrive or found us busy: for a day and a half.
	lostAttempts = 10
	lostWait     = 5 * time.Minute
	longestWait  = 12 * time.Hour
	// refusedAttempts, after refusedWait and then ever longer, of what was refused for something that settings change,
	// such as another secret.
	refusedAttempts = 3
	refusedWait     = time.Hour
	// perRound bounds what is asked for at a time; moreAfter is when the rest follows.
	perRound  = 30
	moreAfter = time.Minute
	// maxMissed bounds the deliveries that are kept in mind; the oldest go first.
	maxMissed = 10_000
	// buttonAge: who pressed a button longer ago than that pressed it again.
	buttonAge = time.Hour
)

// RedeliveryLog is what Redeliverer needs of HookLog.
type RedeliveryLog interface {
	List(ctx context.Context, cursor string) (page []Delivery, next string, err error)
	Redeliver(ctx context.Context, id int64) error
}

// RedelivererOptions of a Redeliverer; Log must be set.
type RedelivererOptions struct {
	Log RedeliveryLog
	// Every is the time between two looks; 3 min unless set.
	Every time.Duration
	// First is the time before the first look; 30 s unless set, and never more than Every.
	First  time.Duration
	Logger *slog.Logger
}

// Redeliverer finds the events that nobody took and has GitHub deliver them
// again, which it never does by itself. They come by the way of all deliveries,
// where what was done already is known, so that it does no harm to ask twice.
//
// Only what would be lost is asked for. How often that was done is counted by
// what GitHub lists, so it is remembered across starts and shared by several
// processes.
type Redeliverer struct {
	o   RedelivererOptions
	log *slog.Logger

	newest time.Time // of what was listed
	missed map[string]*missed
	given  map[string]time.Time // given up, by GUID, and when they were delivered last
}

// missed is an event that nobody took yet.
type missed struct {
	Delivery // the newest attempt
	first    time.Time
	again    map[int64]bool // the attempts that were asked for, by us or others
	asked    int            // by us
	at       time.Time      // when we asked last
	failed   int            // times in a row that GitHub did not even take the question; the next is not before then
	next     time.Time
}

// NewRedeliverer does nothing before Run.
func NewRedeliverer(o RedelivererOptions) *Redeliverer {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Every <= 0 {
		o.Every = 3 * time.Minute
	}
	if o.First <= 0 {
		o.First = firstLook
	}
	o.First = min(o.First, o.Every)
	return &Redeliverer{o: o, log: o.Logger, missed: map[string]*missed{}, given: map[string]time.Time{}}
}

// Run looks again and again until ctx ends.
func (r *Redeliverer) Run(ctx context.Context) error {
	rounds(ctx, r.o.First, r.o.Every, r.round, func(err error, wait time.Duration) {
		r.log.WarnContext(ctx, "GitHub does not say what it delivered, or does not deliver again", "again", wait, "error", err)
	})
	return nil
}

func (r *Redeliverer) round(ctx context.Context) (time.Duration, error) {
	now := time.Now()
	all, complete, err := since(ctx, r.o.Log, lookFrom(r.newest, now))
	if err != nil {
		return 0, err
	}
	if !complete {
		r.log.WarnContext(ctx, "more was delivered than is looked through: what was missed before is not asked for again", "deliveries", len(all), "before", all[0].DeliveredAt)
	}
	r.note(all)
	r.forget(ctx, now)
	return r.ask(ctx, now)
}

// note what was delivered; all is oldest first.
func (r *Redeliverer) note(all []Delivery) {
	taken := map[string]bool{}
	for i := range all {
		if all[i].ok() {
			taken[all[i].GUID] = true
			delete(r.missed, all[i].GUID)
		}
	}
	for _, d := range all {
		r.newest = maxTime(r.newest, d.DeliveredAt)
		if _, ok := r.given[d.GUID]; ok || taken[d.GUID] || d.ID <= 0 || d.GUID == "" || weigh(d.Event, d.Action) != commands {
			continue
		}
		m := r.missed[d.GUID]
		if m == nil {
			if d.Redelivery { // what happened first is not listed any more: it is too old, or was taken
				continue
			}
			m = &missed{first: d.DeliveredAt, again: map[int64]bool{}}
			r.missed[d.GUID] = m
		}
		if !d.DeliveredAt.Before(m.DeliveredAt) {
			m.Delivery = d
		}
		if d.Redelivery && len(m.again) <= lostAttempts {
			m.again[d.ID] = true
		}
	}
}

// forget what GitHub does not deliver any more.
func (r *Redeliverer) forget(ctx context.Context, now time.Time) {
	for guid, at := range r.given {
		if now.Sub(at) > lookBack+overlap { // it is not listed again
			delete(r.given, guid)
		}
	}
	for _, m := range r.missed {
		if now.Sub(m.first) > lookBack {
			r.giveUp(ctx, m, "GitHub does not deliver it any more")
		}
	}
	if over := len(r.missed) - maxMissed; over > 0 {
		for _, m := range r.sorted()[:over] {
			r.giveUp(ctx, m, "too many deliveries were missed")
		}
	}
}

func (m *missed) attrs() []any {
	return []any{"delivery", m.GUID, "event", m.Event, "action", m.Action, "repository", m.RepositoryID, "status", m.StatusCode, "delivered", m.first, "attempts", m.attempts()}
}

func (m *missed) attempts() int { return max(len(m.again), m.asked) }

func (r *Redeliverer) giveUp(ctx context.Context, m *missed, why string) {
	delete(r.missed, m.GUID)
	r.given[m.GUID] = m.DeliveredAt
	r.log.WarnContext(ctx, "a delivery is not asked for again: "+why, m.attrs()...)
}

// sorted by when the event happened: what came first is to be done first.
func (r *Redeliverer) sorted() []*missed {
	var out []*missed
	for _, m := range r.missed {
		out = append(out, m)
	}
	slices.SortFunc(out, func(a, b *missed) int {
		return cmp.Or(a.first.Compare(b.first), cmp.Compare(a.ID, b.ID))
	})
	return out
}

// due says when it is to be asked for again, or why never.
func (m *missed) due() (at time.Time, never string) {
	limit, first := lostAttempts, lostWait
	switch code := m.StatusCode; {
	case code == http.StatusBadRequest || code == http.StatusRequestEntityTooLarge:
		return time.Time{}, "its body was refused, and would be again"
	case code == http.StatusRequestTimeout || code == http.StatusTooManyRequests:
	case code >= 400 && code < 500:
		limit, first = refusedAttempts, refusedWait
	}
	n := m.attempts()
	switch {
	case n >= limit:
		return time.Time{}, "it was often enough"
	case n == 0 && limit == lostAttempts:
		return m.DeliveredAt, ""
	}
	return maxTime(m.DeliveredAt, m.at).Add(doubled(first, n, longestWait)), ""
}

// ask for what is due, the oldest first.
func (r *Redeliverer) ask(ctx context.Context, now time.Time) (again time.Duration, err error) {
	asked, failed := 0, 0
	for _, m := range r.sorted() {
		at, never := m.due()
		switch {
		case m.Event == "check_run" && now.Sub(m.first) > buttonAge:
			r.giveUp(ctx, m, "the button was pressed long ago")
			continue
		case never != "":
			r.giveUp(ctx, m, never)
			continue
		case at.After(now), m.next.After(now):
			continue
		case asked >= perRound:
			return moreAfter, nil
		}
		err := r.o.Log.Redeliver(ctx, m.ID)
		switch {
		case err != nil && gone(err):
			r.giveUp(ctx, m, "GitHub does not deliver it any more, or not for us")
			continue
		case err != nil && (ctx.Err() != nil || restFor(err, time.Now()) > 0):
			return 0, err
		}
		if err != nil {
			m.failed++
			wait := backOff(r.o.Every, m.failed)
			m.next = now.Add(wait)
			r.log.WarnContext(ctx, "a delivery that nobody took cannot be asked for again", append(m.attrs(), "again", wait, "error", err)...)
			if failed++; failed >= enough {
				return 0, nil
			}
			continue
		}
		asked++
		failed, m.failed = 0, 0
		m.asked, m.at = m.attempts()+1, time.Now()
		r.log.InfoContext(ctx, "a delivery that nobody took is asked for again", m.attrs()...)
	}
	return 0, nil
}
