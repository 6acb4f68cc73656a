package dispatch

import (
	"math/rand/v2"
	"sync"
	"time"

	"github.com/sluice-dev/sluice/rollout"
)

// Scheduler makes endpoints; they share its clock, its options and its leases.
type Scheduler struct {
	opts   Options
	start  time.Time
	leases sync.Pool
}

// New scheduler.
func New(o Options) *Scheduler {
	if o.Random == nil {
		o.Random = rand.Uint32N
	}
	if o.MaxQueue <= 0 {
		o.MaxQueue = DefaultMaxQueue
	}
	return &Scheduler{opts: o, start: time.Now()}
}

// now is the monotonic time since the scheduler's start; never 0, which means "not yet".
func (s *Scheduler) now() time.Duration { return 1 + time.Since(s.start) }

// Endpoint is the mutable state behind one endpoint's routes: it survives every
// change of the table. Safe for concurrent use.
type Endpoint struct {
	scheduler *Scheduler

	mu       sync.Mutex
	closed   bool
	spec     *rollout.Spec
	versions []*version // in the order of the spec
	byName   map[string]*version
	// gone versions keep their numbers for the case that they come back.
	gone    map[string]*version
	plan    *plan
	current []current
	cells   []*cell // least recently used first
	seq     uint64
}

// maxGone bounds how many versions' numbers an endpoint remembers.
const maxGone = 64

// Endpoint without versions; Apply fills it.
func (s *Scheduler) Endpoint() *Endpoint {
	return &Endpoint{scheduler: s, byName: map[string]*version{}, gone: map[string]*version{}, plan: new(plan)}
}

// Apply makes the endpoint be as c, which must be valid. Requests in flight stay
// where they are; those that wait stay in line unless their version is gone or
// cannot serve any more.
func (e *Endpoint) Apply(c Config) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return
	}
	e.spec = c.Spec
	old := e.byName
	e.byName = make(map[string]*version, len(c.Spec.Versions))
	e.versions = make([]*version, 0, len(c.Spec.Versions))
	for i := range c.Spec.Versions {
		want := &c.Spec.Versions[i]
		v := old[want.Name]
		if v == nil {
			v = e.gone[want.Name]
			delete(e.gone, want.Name)
		}
		if v == nil {
			v = &version{endpoint: e, name: want.Name, replicas: map[string]*replica{}}
		}
		v.configure(want, c.Fleets[want.Name])
		e.byName[v.name] = v
		e.versions = append(e.versions, v)
	}
	now := e.scheduler.now()
	var strays []*Lease
	for name, v := range old {
		if e.byName[name] == nil {
			strays = append(strays, e.remove(v, now)...)
		}
	}
	e.replan(strays, now)
}

// remove a version; its unpinned waiters are to be drawn again.
func (e *Endpoint) remove(v *version, now time.Duration) []*Lease {
	v.end()
	if len(e.gone) >= maxGone {
		for name := range e.gone {
			delete(e.gone, name)
			break
		}
	}
	e.gone[v.name] = v
	for l := v.queue.head; l != nil; {
		next := l.next
		if l.pinned {
			v.dequeue(l, now)
			l.reject(rollout.ReasonUnknownVersion)
		}
		l = next
	}
	return v.strays(now)
}

// Close ends the endpoint: it is not routed any more. Who waits is told that it is
// unknown; what is in flight goes on.
func (e *Endpoint) Close() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.closed = true
	now := e.scheduler.now()
	for _, v := range e.versions {
		v.end()
		for l := v.queue.head; l != nil; l = v.queue.head {
			v.dequeue(l, now)
			l.reject(rollout.ReasonUnknownEndpoint)
		}
	}
	e.versions, e.byName, e.plan, e.current = nil, map[string]*version{}, new(plan), nil
}

// Stats of all versions, in the order of the spec.
func (e *Endpoint) Stats() []Stats {
	e.mu.Lock()
	defer e.mu.Unlock()
	now := e.scheduler.now()
	out := make([]Stats, len(e.versions))
	for i, v := range e.versions {
		s := &out[i]
		*s = Stats{
			Version:         v.name,
			InFlightSeconds: v.inFlight.seconds(now), InFlight: v.inFlight.n,
			QueuedSeconds: v.queued.seconds(now), Queued: v.queued.n,
			Refused: v.refused, Fallbacks: v.fallbacks, GateRefusals: v.gateRefusals,
			Service: v.service, Serving: v.serving,
		}
		for _, r := range v.replicas {
			if r.able {
				s.Slots += r.slots
			}
		}
		if sh := e.plan.of(v); sh != nil {
			s.Applied, s.Fallback = sh.percent, sh.fallback
		}
	}
	return out
}

// Evidence of the comparisons that the spec asks for now.
func (e *Endpoint) Evidence() []Evidence {
	e.mu.Lock()
	now := e.current
	e.mu.Unlock()
	out := make([]Evidence, len(now))
	for i, c := range now {
		ev := c.cell.look()
		out[i] = Evidence{
			Treatment: c.treatment, Key: string(c.cell.key), Saved: ev.Save(),
			LogWorse: ev.LogWorse(), LogNotWorse: ev.LogNotWorse(), LogBounded: ev.LogBounded(c.cell.params.MaxBadPercent / 100),
		}
	}
	return out
}
