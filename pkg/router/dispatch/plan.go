package dispatch

import (
	"time"

	"github.com/sluice-dev/sluice/rollout"
)

// A plan is the shares in force and what they are evidence for. It never changes;
// a request keeps the plan it was drawn under.
type plan struct {
	shares []share
	trials []trial
}

type share struct {
	version *version
	percent rollout.Percent
	// fallback is the part of percent that came from versions that cannot serve.
	fallback rollout.Percent
	// upTo bounds the draws that mean this version; its last ones are the fallback.
	upTo uint32
}

func (p *plan) of(v *version) *share {
	for i := range p.shares {
		if p.shares[i].version == v {
			return &p.shares[i]
		}
	}
	return nil
}

// draw a version for the request. Draws are integers below 100,000, as fine as
// shares are, so that shares are met exactly.
func (e *Endpoint) draw(l *Lease) {
	l.plan = e.plan
	x := e.scheduler.opts.Random(uint32(rollout.Full))
	for i := range e.plan.shares {
		if s := &e.plan.shares[i]; x < s.upTo {
			l.version = s.version
			if s.upTo-x <= uint32(s.fallback) {
				s.version.fallbacks++
			}
			return
		}
	}
	panic("dispatch: shares do not add up to 100")
}

// replan works out the shares now in force, draws again the strays and those who
// wait for a version that lost its share because it cannot serve, and hands out
// what is free. Call it when a version begins or stops to serve.
func (e *Endpoint) replan(strays []*Lease, now time.Duration) {
	p := &plan{}
	upTo := uint32(0)
	for i, s := range e.spec.SharesWith(func(name string) bool { return e.byName[name].serving > 0 }) {
		upTo += uint32(s.Percent)
		p.shares = append(p.shares, share{version: e.versions[i], percent: s.Percent, fallback: s.Fallback, upTo: upTo})
	}
	e.current = nil
	p.trials = e.trials(p.shares)
	e.plan = p
	for i := range p.shares {
		if s := &p.shares[i]; s.percent == 0 && s.version.serving == 0 {
			strays = append(strays, s.version.strays(now)...)
		}
	}
	for _, v := range e.versions {
		v.queue.cursor = nil
	}
	for _, l := range strays {
		e.draw(l)
		l.version.enqueue(l, now)
	}
	for _, v := range e.versions {
		v.hand(now)
	}
}
