package dispatch

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/sluice-dev/sluice/rollout"
	"github.com/sluice-dev/sluice/rollout/verdict"
)

// maxCells bounds how many comparisons an endpoint remembers. A comparison that
// comes back goes on where it stood: what is reported under a key only ever grows.
const maxCells = 64

// A cell is the evidence of one comparison.
type cell struct {
	key    verdict.Key
	params verdict.Params
	// good counts good requests by arm until the next look: they carry no share, so
	// that the usual case needs no lock.
	good [2]atomic.Int64

	mu sync.Mutex
	ev verdict.Evidence
}

func (c *cell) observe(arm verdict.Label, rho float64, bad bool) {
	if !bad {
		c.good[arm].Add(1)
		return
	}
	c.mu.Lock()
	c.ev.Observe(arm, rho, true)
	c.mu.Unlock()
}

func (c *cell) look() verdict.Evidence {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, arm := range []verdict.Label{verdict.Treatment, verdict.Control} {
		c.ev.ObserveGood(arm, c.good[arm].Swap(0))
	}
	return c.ev
}

// A trial is a comparison under the shares of one plan.
type trial struct {
	cell      *cell
	treatment *version
	control   *version
	// rho is the probability that a request which goes to either goes to the treatment.
	rho float64
}

// trials are the comparisons that requests drawn under these shares are evidence
// for. A version whose replicas are being replaced is two versions for a while:
// nothing is judged until all that serve have the revision that the key names.
func (e *Endpoint) trials(shares []share) []trial {
	if e.spec.Strategy == nil {
		return nil
	}
	var control *share
	for i := range shares {
		if shares[i].version.role == rollout.Control {
			control = &shares[i]
		}
	}
	if control == nil {
		return nil
	}
	params := verdict.ParamsOf(*e.spec.Strategy)
	var out []trial
	for i := range shares {
		t := &shares[i]
		if t.version.role != rollout.Treatment {
			continue
		}
		c := e.cell(verdict.KeyOf(t.version.revision, control.version.revision, params), params)
		e.current = append(e.current, current{treatment: t.version.name, cell: c})
		if t.percent == 0 || t.version.mixed() || control.version.mixed() {
			continue
		}
		out = append(out, trial{
			cell: c, treatment: t.version, control: control.version,
			rho: float64(t.percent) / float64(t.percent+control.percent),
		})
	}
	return out
}

// current is a comparison that the spec asks for now.
type current struct {
	treatment string
	cell      *cell
}

func (e *Endpoint) cell(key verdict.Key, params verdict.Params) *cell {
	for i, c := range e.cells {
		if c.key == key {
			// Most recently used last.
			copy(e.cells[i:], e.cells[i+1:])
			e.cells[len(e.cells)-1] = c
			return c
		}
	}
	if len(e.cells) >= maxCells {
		e.cells = append(e.cells[:0], e.cells[1:]...)
	}
	c := &cell{key: key, params: params, ev: verdict.New(params)}
	e.cells = append(e.cells, c)
	return c
}

// Outcome is how an accepted request ended, as far as a verdict is concerned.
type Outcome int

// The outcomes.
const (
	// Good: accepted and answered, whatever the model's status below 500.
	Good Outcome = iota
	// Bad: a 5xx from the replica.
	Bad
	// Broken: a scoring timeout, a lost connection or a dead worker: bad, and
	// whatever else was in flight at the replica then broke for the same cause.
	Broken
)

// Judge makes the request evidence for each comparison that it was drawn under.
// Call it once per accepted request, at its end; not at all for what is not
// judged: refusals, client aborts. Pinned requests are left out here, and so is
// a broken one whose replica was being stopped.
//
// Of the requests that break together at one replica only the first is
// evidence: a verdict counts causes, and a replica that dies with a hundred requests
// in flight is one. It says whether the request was a bad event, evidence or not.
func (l *Lease) Judge(o Outcome) (bad bool) {
	if o == Broken {
		stopped, known := l.replica.broke(l.granted, l.plan != nil)
		if stopped {
			return false
		}
		if known {
			return true
		}
	}
	if l.plan != nil {
		for i := range l.plan.trials {
			t := &l.plan.trials[i]
			switch l.version {
			case t.treatment:
				t.cell.observe(verdict.Treatment, t.rho, o != Good)
			case t.control:
				t.cell.observe(verdict.Control, t.rho, o != Good)
			}
		}
	}
	return o != Good
}

// broke notes that a request granted at that time broke at the replica: was the
// replica being stopped, and is the cause known already because something else that
// was in flight then broke before? Only requests that are judged make a cause known.
func (r *replica) broke(granted time.Duration, judged bool) (stopped, known bool) {
	e := r.version.endpoint
	e.mu.Lock()
	defer e.mu.Unlock()
	if r.stopped {
		return true, false
	}
	known = r.brokeAt > 0 && granted <= r.brokeAt
	if judged && !known {
		r.brokeAt = e.scheduler.now()
	}
	return false, known
}
