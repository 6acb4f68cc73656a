package control

import (
	"context"
	"sync"
	"time"

	"github.com/sluice-dev/sluice/pkg/autoscale"
	"github.com/sluice-dev/sluice/pkg/cluster"
	"github.com/sluice-dev/sluice/pkg/telemetry"
	"github.com/sluice-dev/sluice/rollout"
	"github.com/sluice-dev/sluice/rollout/verdict"
)

const (
	// staleAfter is how long after the last complete round of reports evidence counts as unavailable.
	staleAfter = 3 * time.Second
	// saveEvery bounds how often evidence alone rewrites the status.
	saveEvery = 2 * time.Second
)

// Routers gives every router's report; an error means that at least one is
// missing, and the reports that are there come with it.
type Routers interface {
	Reports(ctx context.Context) ([]telemetry.Report, error)
}

// book names one treatment's ledger.
type book struct {
	endpoint  rollout.Key
	treatment string
}

// source is one router run's evidence for one comparison.
type source struct {
	book
	epoch string
	key   verdict.Key
}

// evidence keeps what routers reported, and restores what the status saved.
type evidence struct {
	routers Routers

	mu       sync.Mutex
	books    map[book]*verdict.Ledger
	seen     map[source]int64 // observations at the last poll
	restored map[rollout.Key]bool
	savedAt  map[rollout.Key]time.Time
	// complete is when every router reported last.
	complete time.Time
	meter    autoscale.Meter
	metered  time.Time
	loads    map[cluster.FleetKey]autoscale.Load
	loadsOK  bool
	traffic  traffic
	showedAt map[rollout.Key]time.Time
}

func newEvidence(r Routers) *evidence {
	return &evidence{
		routers: r, books: map[book]*verdict.Ledger{}, seen: map[source]int64{}, restored: map[rollout.Key]bool{}, savedAt: map[rollout.Key]time.Time{},
		showedAt: map[rollout.Key]time.Time{},
	}
}

// poll asks the routers once and returns the endpoints whose evidence grew.
func (v *evidence) poll(ctx context.Context) []rollout.Key {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	reports, err := v.routers.Reports(ctx)
	now := time.Now()

	v.mu.Lock()
	defer v.mu.Unlock()
	if err == nil {
		v.complete = now
	}
	if now.Sub(v.metered) >= autoscale.Tick {
		v.loads, v.loadsOK = v.meter.Loads(reports)
		v.metered = now
		v.traffic.add(reports, now)
	}
	grown := map[rollout.Key]bool{}
	seen := make(map[source]int64, len(v.seen))
	for _, r := range reports {
		for _, er := range r.Evidence {
			b := book{er.Endpoint, er.Treatment}
			e, err := verdict.Restore(er.Saved)
			if err != nil || e.None() {
				continue
			}
			l := v.ledger(b)
			if _, err := l.Update(r.Epoch, verdict.Key(er.Key), e); err != nil {
				continue
			}
			from := source{b, r.Epoch, verdict.Key(er.Key)}
			seen[from] = e.Requests(verdict.Treatment) + e.Requests(verdict.Control)
			if seen[from] != v.seen[from] {
				grown[er.Endpoint] = true
			}
		}
	}
	v.seen = seen
	out := make([]rollout.Key, 0, len(grown))
	for k := range grown {
		out = append(out, k)
	}
	return out
}

func (v *evidence) ledger(b book) *verdict.Ledger {
	l := v.books[b]
	if l == nil {
		l = &verdict.Ledger{}
		v.books[b] = l
	}
	return l
}

// restore takes over, once per endpoint, what an earlier run of this role saved
// in the status. Reports that came before keep their place: they are newer.
func (v *evidence) restore(e *rollout.Endpoint) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.restored[e.Key()] {
		return
	}
	v.restored[e.Key()] = true
	if e.Status.Rollout == nil {
		return
	}
	for _, s := range e.Status.Rollout.Evidence {
		b := book{e.Key(), s.Treatment}
		fresh := v.books[b]
		l := &verdict.Ledger{}
		if s.Saved == "" || l.Load(s.Saved) != nil {
			continue // damaged or of another build: evidence starts afresh
		}
		if fresh != nil {
			l = merge(l, fresh)
		}
		v.books[b] = l
	}
}

// merge puts the newer ledger's epochs over the restored one's: a key that was
// reported since the start has only the epochs of live routers, the restored one
// also those that are gone.
func merge(restored, newer *verdict.Ledger) *verdict.Ledger {
	// The next poll, at most PollEvidence away, updates the live epochs; keys that
	// only the newer one knows are taken over.
	_ = restored.Load(newer.Save())
	return restored
}

// comparison is the key and parameters under which a treatment is judged now.
func comparison(e *rollout.Endpoint, t *rollout.Version) (verdict.Key, verdict.Params, bool) {
	c := e.Spec.ByRole(rollout.Control)
	if c == nil || e.Spec.Strategy == nil {
		return "", verdict.Params{}, false
	}
	p := verdict.ParamsOf(*e.Spec.Strategy)
	return verdict.KeyOf(t.Revision(), c.Revision(), p), p, true
}

// decide judges one treatment on what is known at that moment.
func (v *evidence) decide(e *rollout.Endpoint, t *rollout.Version, now time.Time) (verdict.Decision, verdict.Key, bool) {
	key, params, ok := comparison(e, t)
	if !ok {
		return verdict.Decision{}, "", false
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	var total verdict.Evidence
	if l := v.books[book{e.Key(), t.Name}]; l != nil {
		total, _ = l.Total(key)
	}
	if total.None() {
		total = verdict.New(params)
	}
	d := verdict.Judge(params, total)
	if now.Sub(v.complete) > staleAfter && d.Verdict != rollout.VerdictWorse {
		// What is missing could speak against it: nothing advances. What speaks against it already, stands.
		d.Verdict, d.Rule = rollout.VerdictUnknown, rollout.ReasonUnknown
	}
	return d, key, true
}

// judge all treatments of an endpoint.
func (v *evidence) judge(e *rollout.Endpoint, now time.Time) map[string]rollout.Judgement {
	out := map[string]rollout.Judgement{}
	for i := range e.Spec.Versions {
		t := &e.Spec.Versions[i]
		if t.Type != rollout.Treatment {
			continue
		}
		if d, _, ok := v.decide(e, t, now); ok {
			out[t.Name] = d.Judgement()
		}
	}
	return out
}

// status of every treatment's evidence, with what a later run needs to go on.
func (v *evidence) status(e *rollout.Endpoint, now time.Time) []rollout.EvidenceStatus {
	var out []rollout.EvidenceStatus
	for i := range e.Spec.Versions {
		t := &e.Spec.Versions[i]
		if t.Type != rollout.Treatment {
			continue
		}
		d, key, ok := v.decide(e, t, now)
		if !ok {
			continue
		}
		s := d.Status(t.Name, key)
		v.mu.Lock()
		if l := v.books[book{e.Key(), t.Name}]; l != nil {
			l.Keep(key)
			s.Saved = l.Save(key)
		}
		v.mu.Unlock()
		out = append(out, s)
	}
	return out
}

// demand of the endpoint in slots; not known while a router's report is missing.
func (v *evidence) demand(e *rollout.Endpoint, now time.Time) (float64, bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if !v.loadsOK || now.Sub(v.complete) > staleAfter {
		return 0, false
	}
	_, total := autoscale.Demands(e, v.loads)
	return total, true
}

func (v *evidence) saveDue(key rollout.Key, now time.Time) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return now.Sub(v.savedAt[key]) >= saveEvery
}

func (v *evidence) saved(key rollout.Key, now time.Time) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.savedAt[key] = now
}

// forget an endpoint that is gone.
func (v *evidence) forget(key rollout.Key) {
	v.mu.Lock()
	defer v.mu.Unlock()
	delete(v.restored, key)
	delete(v.savedAt, key)
	delete(v.showedAt, key)
	for b := range v.books {
		if b.endpoint == key {
			delete(v.books, b)
		}
	}
}

// measured is the endpoint's traffic, and whether it is time to write it though nothing else is new.
func (v *evidence) measured(e *rollout.Endpoint, now time.Time) (*rollout.TrafficStatus, bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.traffic.status(e, now), now.Sub(v.showedAt[e.Key()]) >= trafficEvery
}

func (v *evidence) showed(key rollout.Key, now time.Time) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.showedAt[key] = now
}
