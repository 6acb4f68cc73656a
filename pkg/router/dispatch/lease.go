package dispatch

import (
	"context"
	"time"

	"github.com/sluice-dev/sluice/rollout"
)

// Lease is one request's right to a slot of a replica. It belongs to one goroutine:
// Acquire, then any number of Again, then at most one Judge, then Free.
type Lease struct {
	endpoint *Endpoint
	version  *version
	plan     *plan // nil if pinned
	replica  *replica
	pinned   bool
	held     bool // the slot has not been given back

	seq      uint64
	deadline time.Duration
	granted  time.Duration
	timeout  time.Duration
	since    time.Duration // when it began to wait
	waited   time.Duration

	// The endpoint's mutex guards these while it waits.
	waiting    bool
	refusal    *Refusal
	prev, next *Lease
	ready      chan struct{}
	timer      *time.Timer
}

// Acquire draws a version by the shares in force, or takes the one named by pin,
// and waits for a slot of one of its replicas. The error is a *Refusal.
func (e *Endpoint) Acquire(ctx context.Context, pin string) (*Lease, error) {
	s := e.scheduler
	e.mu.Lock()
	if e.closed {
		e.mu.Unlock()
		return nil, &Refusal{Reason: rollout.ReasonUnknownEndpoint}
	}
	if len(e.versions) == 0 {
		e.mu.Unlock()
		return nil, &Refusal{Reason: rollout.ReasonNoReadyReplicas, RetryAfter: retryAfter}
	}
	var pinned *version
	if pin != "" {
		if pinned = e.byName[pin]; pinned == nil {
			e.mu.Unlock()
			return nil, &Refusal{Reason: rollout.ReasonUnknownVersion}
		}
	}
	l := s.lease(e)
	if pinned != nil {
		l.version, l.pinned = pinned, true
	} else {
		e.draw(l)
	}
	v, now := l.version, s.now() // under the mutex, so that time never goes back
	e.seq++
	l.seq, l.deadline = e.seq, now+v.maxWait
	if len(v.free) > 0 { // then nobody waits
		v.grant(l, now)
		e.mu.Unlock()
		return l, nil
	}
	if v.queue.len >= s.opts.MaxQueue {
		l.refuse(rollout.ReasonQueueFull)
		e.mu.Unlock()
		return nil, l.abandon()
	}
	v.enqueue(l, now)
	e.mu.Unlock()
	if !l.wait(ctx) {
		return nil, l.abandon()
	}
	return l, nil
}

// Why a request has to go elsewhere.
type Why int

// The reasons for Again.
const (
	// Busy: the gate refused for want of a slot.
	Busy Why = iota
	// Leaving: the gate refused because it drains or has not started.
	Leaving
	// Unreachable: no connection could be made.
	Unreachable
	// Lost: the connection broke before the replica had accepted the request.
	Lost
)

// Again gives the slot back because the replica did not accept the request, and
// waits for another at the head of the queue. What the request has waited so far
// counts. After an error, which is a *Refusal, the lease must still be freed.
func (l *Lease) Again(ctx context.Context, why Why) error {
	e, v, r := l.endpoint, l.version, l.replica
	e.mu.Lock()
	now := e.scheduler.now()
	v.release(l, now)
	flipped := false
	if !r.stopped {
		switch why {
		case Busy, Lost:
			v.rest(r)
		case Leaving:
			v.suspects(r, leavingSuspect)
		case Unreachable:
			v.suspects(r, 0)
		}
		flipped = !v.removed && v.refresh()
	}
	switch why {
	case Busy, Leaving:
		v.gateRefusals++
	case Unreachable:
		// A dead node answers nothing for a second: that is no waiting in line.
		l.deadline += now - l.granted
	}
	var strays []*Lease
	switch {
	case e.closed:
		l.refuse(rollout.ReasonUnknownEndpoint)
	case v.removed && l.pinned:
		l.refuse(rollout.ReasonUnknownVersion)
	case now >= l.deadline:
		l.refuseLate()
	case v.removed:
		strays = []*Lease{l}
		flipped = true
	default:
		v.enqueue(l, now)
	}
	if !e.closed {
		if flipped || v.serving == 0 && !v.removed && e.plan.of(v).percent == 0 {
			e.replan(strays, now)
		} else {
			v.hand(now)
		}
	}
	refused := !l.held && !l.waiting
	e.mu.Unlock()
	if refused || !l.wait(ctx) {
		return l.refusal
	}
	return nil
}

// wait until a slot is handed over (true) or there is a refusal (false).
func (l *Lease) wait(ctx context.Context) bool {
	e := l.endpoint
	select {
	case <-l.ready: // already: no timer needed
		return l.refusal == nil
	default:
	}
	l.timer.Reset(l.deadline - e.scheduler.now())
	defer l.timer.Stop()
	gone := false
	select {
	case <-l.ready:
		return l.refusal == nil
	case <-ctx.Done():
		gone = true
	case <-l.timer.C:
	}
	e.mu.Lock()
	if l.waiting {
		l.version.dequeue(l, e.scheduler.now())
		if gone {
			l.refuse(rollout.ReasonClientGone)
		} else {
			l.refuseLate()
		}
		e.mu.Unlock()
		return false
	}
	e.mu.Unlock()
	<-l.ready // it was just decided
	if gone && l.refusal == nil {
		l.Release(false)
		l.refusal = &Refusal{Reason: rollout.ReasonClientGone, Version: l.version.name}
	}
	return l.refusal == nil
}

const retryAfter = time.Second

// refuseLate refuses a request whose time is up.
func (l *Lease) refuseLate() {
	if l.version.serving == 0 {
		l.refuse(rollout.ReasonNoReadyReplicas)
		return
	}
	l.refuse(rollout.ReasonQueueTimeout)
}

func (l *Lease) refuse(why rollout.Reason) {
	l.refusal = &Refusal{Reason: why, Version: l.version.name}
	switch why {
	case rollout.ReasonQueueFull, rollout.ReasonQueueTimeout, rollout.ReasonNoReadyReplicas:
		l.refusal.RetryAfter = retryAfter
		l.version.refused++
	}
}

// reject a waiter that has been taken out of its queue.
func (l *Lease) reject(why rollout.Reason) {
	l.refuse(why)
	l.ready <- struct{}{}
}

// Release gives the slot back; the head of the queue gets it. served says that the
// replica did the work, so that the time counts towards the mean service time. Again
// it does nothing.
func (l *Lease) Release(served bool) {
	if !l.held {
		return
	}
	e, v := l.endpoint, l.version
	e.mu.Lock()
	now := e.scheduler.now()
	v.release(l, now)
	if served {
		v.served(now - l.granted)
		l.replica.fails = 0
	}
	v.hand(now)
	e.mu.Unlock()
}

func (s *Scheduler) lease(e *Endpoint) *Lease {
	l, _ := s.leases.Get().(*Lease)
	if l == nil {
		l = &Lease{ready: make(chan struct{}, 1), timer: time.NewTimer(time.Hour)}
		l.timer.Stop()
	}
	l.endpoint = e
	return l
}

// Free gives back the slot, if it is still held, and ends the lease.
func (l *Lease) Free() {
	l.Release(false)
	s := l.endpoint.scheduler
	*l = Lease{ready: l.ready, timer: l.timer}
	s.leases.Put(l)
}

// abandon a lease that never got a slot.
func (l *Lease) abandon() *Refusal {
	refusal := l.refusal
	l.Free()
	return refusal
}

// Version that the request is for.
func (l *Lease) Version() string { return l.version.name }

// Backend of the replica whose slot this is.
func (l *Lease) Backend() Backend { return l.replica.backend }

// Replica is the name of that replica.
func (l *Lease) Replica() string { return l.replica.name }

// ScoringTimeout bounds the call.
func (l *Lease) ScoringTimeout() time.Duration { return l.timeout }

// Waited is the time spent in queues so far.
func (l *Lease) Waited() time.Duration { return l.waited }
