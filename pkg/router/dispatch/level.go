package dispatch

import "time"

// level is a count over time and its exact integral. The caller guards it.
type level struct {
	n    int64
	last time.Duration
	// The integral is sec seconds and ns nanoseconds: nanoseconds alone would
	// overflow in months under a thousand requests in flight.
	sec, ns int64
}

const flushAt = int64(time.Hour)

// add changes the count at time now; time never goes back.
func (l *level) add(now time.Duration, delta int64) {
	l.advance(now)
	l.n += delta
}

func (l *level) advance(now time.Duration) {
	if now <= l.last {
		return
	}
	l.ns += l.n * int64(now-l.last)
	l.last = now
	if l.ns >= flushAt {
		l.sec += l.ns / int64(time.Second)
		l.ns %= int64(time.Second)
	}
}

// seconds is the integral up to now, in request-seconds.
func (l *level) seconds(now time.Duration) float64 {
	l.advance(now)
	return float64(l.sec) + float64(l.ns)/float64(time.Second)
}
