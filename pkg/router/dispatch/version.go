package dispatch

import (
	"time"

	"github.com/sluice-dev/sluice/pkg/cluster"
	"github.com/sluice-dev/sluice/rollout"
)

// The pauses of replicas.
const (
	// restShare of the mean service time is how long a replica rests that refused: a
	// twentieth loses next to nothing against a perfect central queue over several routers.
	restShare = 20
	minRest   = time.Millisecond
	maxRest   = 50 * time.Millisecond
	// A ready replica that could not be reached is tried again after a pause that
	// doubles; the fleet says sooner or later what is wrong with it.
	minSuspect = 50 * time.Millisecond
	maxSuspect = 2 * time.Second
	// leavingSuspect: one that said it drains or starts is asked again after this.
	leavingSuspect = 250 * time.Millisecond
)

// serviceWeight is the weight of a new value in the mean service time.
const serviceWeight = 10 // per cent

// A version of an endpoint; its endpoint's mutex guards it.
type version struct {
	endpoint *Endpoint
	name     string

	role           rollout.Role
	revision       string
	slots          int
	maxWait        time.Duration
	scoringTimeout time.Duration
	removed        bool

	replicas map[string]*replica
	free     freeHeap
	// serving is the number of replicas that may take requests, busy ones too.
	serving int
	queue   queue

	inFlight, queued                 level
	refused, fallbacks, gateRefusals int64
	service                          time.Duration
}

// A replica of a version; the endpoint's mutex guards it.
type replica struct {
	version  *version
	name     string
	address  string
	revision string
	backend  Backend
	state    cluster.ReplicaState
	restarts int

	slots    int
	inFlight int
	used     uint64 // when it was last given a request, as a sequence number
	index    int    // in the heap of free ones, or -1

	// able to take requests, by its state; a resting one only pauses.
	able    bool
	resting bool
	// suspect: it could not be reached. doubt outdates the timers that end suspicion.
	suspect bool
	fails   int
	doubt   int
	// stopped by Sluice or Kubernetes: terminating or gone.
	stopped bool
	brokeAt time.Duration
}

func (v *version) configure(want *rollout.Version, fleet *cluster.FleetState) {
	v.removed = false
	v.role, v.revision = want.Type, want.Revision()
	v.slots, v.maxWait, v.scoringTimeout = want.Slots(), want.QueueWait(), want.ScoringTimeout()
	seen := map[string]bool{}
	if fleet != nil {
		for i := range fleet.Replicas {
			seen[fleet.Replicas[i].Name] = true
			v.update(&fleet.Replicas[i])
		}
	}
	for name, r := range v.replicas {
		if !seen[name] {
			v.drop(r)
		}
	}
	v.refresh()
}

func (v *version) update(now *cluster.Replica) {
	r := v.replicas[now.Name]
	if r != nil && r.address != now.Address {
		v.drop(r)
		r = nil
	}
	if r == nil {
		if now.Address == "" {
			return
		}
		r = &replica{version: v, name: now.Name, address: now.Address, index: -1, slots: v.slots}
		r.backend = v.endpoint.scheduler.opts.Open(now.Address)
		v.replicas[r.name] = r
	}
	if now.State != r.state || now.Restarts != r.restarts {
		// News from the fleet outweighs what the router found out for itself.
		r.suspect, r.fails = false, 0
		r.doubt++
	}
	r.state, r.restarts, r.revision = now.State, now.Restarts, now.Revision
	if r.revision == v.revision || r.revision == "" {
		// Replicas of an older revision keep the slots they were started with.
		r.slots = v.slots
	}
	if stopped := now.State == cluster.ReplicaTerminating; stopped != r.stopped {
		r.stopped = stopped
		if stopped {
			r.backend.Close()
		}
	}
}

// drop a replica that is not there any more.
func (v *version) drop(r *replica) {
	r.stopped, r.able = true, false
	r.place()
	delete(v.replicas, r.name)
	r.backend.Close()
}

// end of the version: it has no replicas and gets nothing.
func (v *version) end() {
	v.removed = true
	for _, r := range v.replicas {
		v.drop(r)
	}
	v.refresh()
}

// refresh works out which replicas may take requests: the ready ones; and when none
// is ready, those that fail their health checks without being stopped and still
// answer. All turning unready together tells more of the checks, or of the
// network between, than of the replicas.
func (v *version) refresh() (flipped bool) {
	was, ready := v.serving > 0, false
	for _, r := range v.replicas {
		ready = ready || r.usable(cluster.ReplicaReady)
	}
	v.serving = 0
	for _, r := range v.replicas {
		able := r.usable(cluster.ReplicaReady) || !ready && r.usable(cluster.ReplicaUnready)
		if r.able && !able && !r.stopped {
			r.backend.CloseIdle()
		}
		r.able = able
		if able {
			v.serving++
		}
		r.place()
	}
	return was != (v.serving > 0)
}

func (r *replica) usable(state cluster.ReplicaState) bool {
	return r.state == state && !r.stopped && !r.suspect
}

// place the replica in the heap of free ones, or out of it, or anew.
func (r *replica) place() {
	v := r.version
	free := r.able && !r.resting && r.inFlight < r.slots
	switch {
	case free && r.index < 0:
		v.free.push(r)
	case free:
		v.free.fix(r.index)
	case r.index >= 0:
		v.free.remove(r)
	}
}

// mixed says whether a replica of another revision than the spec's serves.
func (v *version) mixed() bool {
	for _, r := range v.replicas {
		if r.able && r.revision != "" && r.revision != v.revision {
			return true
		}
	}
	return false
}

// hand free slots to the heads of the queue.
func (v *version) hand(now time.Duration) {
	for v.queue.head != nil && len(v.free) > 0 {
		l := v.queue.head
		v.dequeue(l, now)
		v.grant(l, now)
		l.ready <- struct{}{}
	}
}

// grant the best free slot to l; there must be one.
func (v *version) grant(l *Lease, now time.Duration) {
	e, r := v.endpoint, v.free[0]
	e.seq++
	r.used = e.seq
	r.inFlight++
	r.place()
	v.inFlight.add(now, 1)
	l.replica, l.held, l.granted, l.timeout = r, true, now, v.scoringTimeout
}

// release l's slot.
func (v *version) release(l *Lease, now time.Duration) {
	r := l.replica
	l.held = false
	r.inFlight--
	v.inFlight.add(now, -1)
	r.place()
}

func (v *version) served(d time.Duration) {
	if v.service == 0 {
		v.service = d
		return
	}
	v.service += (d - v.service) * serviceWeight / 100
}

func (v *version) enqueue(l *Lease, now time.Duration) {
	l.waiting, l.since = true, now
	v.queue.insert(l)
	v.queued.add(now, 1)
}

func (v *version) dequeue(l *Lease, now time.Duration) {
	l.waiting = false
	l.waited += now - l.since
	v.queue.remove(l)
	v.queued.add(now, -1)
}

// strays takes the waiters that may go elsewhere out of the queue, first come first.
func (v *version) strays(now time.Duration) []*Lease {
	var out []*Lease
	for l := v.queue.head; l != nil; {
		next := l.next
		if !l.pinned {
			v.dequeue(l, now)
			out = append(out, l)
		}
		l = next
	}
	return out
}

// rest pauses a replica that refused, for 5 % of the mean service time, jittered.
func (v *version) rest(r *replica) {
	if r.resting {
		return
	}
	e := v.endpoint
	d := min(max(v.service/restShare, minRest), maxRest)
	d += d * (time.Duration(e.scheduler.opts.Random(501)) - 250) / 1000
	r.resting = true
	r.place()
	time.AfterFunc(d, func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		r.resting = false
		r.place()
		v.hand(e.scheduler.now())
	})
}

// suspects that the replica cannot be reached. One that is ready by its fleet is
// tried again after a while; one that is not, only when the fleet has news.
func (v *version) suspects(r *replica, atLeast time.Duration) {
	if r.suspect {
		return
	}
	e := v.endpoint
	d := max(atLeast, min(minSuspect<<min(r.fails, 10), maxSuspect))
	r.suspect = true
	r.fails++
	if r.state != cluster.ReplicaReady {
		return
	}
	r.doubt++
	doubt := r.doubt
	time.AfterFunc(d, func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		if r.doubt != doubt || e.closed {
			return
		}
		r.suspect = false
		if v.removed {
			return
		}
		if v.refresh() {
			e.replan(nil, e.scheduler.now())
			return
		}
		v.hand(e.scheduler.now())
	})
}
