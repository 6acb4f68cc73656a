package telemetry

import (
	"slices"
	"time"
)

// trail is a histogram's recent past: snapshots, oldest first, each recentStep after the one before.
type trail struct{ snapshots []snapshot }

type snapshot struct {
	at      time.Duration
	n       uint64
	buckets []uint32 // modulo 2³²: only differences over seconds are taken
}

// due says whether it is time for a snapshot of a histogram with n observations.
func (t *trail) due(now time.Duration, n uint64) bool {
	last := len(t.snapshots) - 1
	return last < 0 || now-t.snapshots[last].at >= recentStep-time.Second/2 && t.snapshots[last].n != n
}

func (t *trail) take(now time.Duration, n uint64, c counts) {
	s := snapshot{at: now, n: n, buckets: make([]uint32, numBuckets)}
	for b, n := range c.buckets {
		s.buckets[b] = uint32(n)
	}
	t.snapshots = append(t.snapshots, s)
	// One that is older than the window has to stay: it is where the window begins.
	for len(t.snapshots) > 1 && t.snapshots[1].at <= now-recent {
		t.snapshots = slices.Delete(t.snapshots, 0, 1)
	}
}

// recent takes from c what was there before the last 10 s or so.
func (t *trail) recent(now time.Duration, c *counts) {
	var was *snapshot
	for i := range t.snapshots {
		if t.snapshots[i].at <= now-recent {
			was = &t.snapshots[i]
		}
	}
	if was == nil {
		return
	}
	c.n = 0
	for b := range c.buckets {
		c.buckets[b] = uint64(uint32(c.buckets[b]) - was.buckets[b])
		c.n += c.buckets[b]
	}
}
