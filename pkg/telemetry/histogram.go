package telemetry

import (
	"math/bits"
	"math/rand/v2"
	"runtime"
	"sync/atomic"
	"time"
)

// The buckets of durations are log-linear in base 10, as in Circllhist (Hartmann
// and Schlossnagle, 2020): ninety to each decade, bounded by two decimal digits, so
// that the usual bounds of dashboards (0.25 s) are bounds of buckets and any value is
// known to 10 % at worst, 5 % in the middle of a bucket. They begin with nine of one
// microsecond each and end at 1,000 s with one for all that is longer.
const (
	decades    = 8 // from 10 µs to 1,000 s
	perDecade  = 90
	numBuckets = 10 + decades*perDecade + 1
	overflow   = numBuckets - 1
)

var pow10 = [decades + 3]uint64{1, 10, 100, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10}

// bucketOf a duration in microseconds.
func bucketOf(us uint64) int {
	if us < 10 {
		return int(us)
	}
	if us >= pow10[decades+1] {
		return overflow
	}
	// The decade from the number of bits (1233/4096 ≈ log10 2), then corrected.
	d := bits.Len64(us) * 1233 >> 12
	if us < pow10[d] {
		d--
	}
	return 10 + (d-1)*perDecade + int(us/pow10[d-1]) - 10
}

// lowerBound of a bucket in microseconds.
func lowerBound(bucket int) uint64 {
	if bucket < 10 {
		return uint64(bucket)
	}
	d, i := (bucket-10)/perDecade, (bucket-10)%perDecade
	return uint64(10+i) * pow10[d]
}

// Histogram counts durations. It is sharded so that cores do not fight over cache
// lines: an observation costs a few nanoseconds whatever the number of cores, where
// client_golang's costs up to hundreds on one series. The zero value is not usable.
type Histogram struct {
	shards []histogramShard
	mask   uint32
}

type histogramShard struct {
	buckets [numBuckets]atomic.Uint64
	nanos   atomic.Int64
	_       [64]byte
}

// maxShards bounds the memory of a histogram: 6 KiB per shard.
const maxShards = 4

// NewHistogram is empty.
func NewHistogram() *Histogram {
	n := shardCount()
	return &Histogram{shards: make([]histogramShard, n), mask: uint32(n - 1)}
}

// shardCount is a power of two near the number of cores, at most maxShards.
func shardCount() int {
	n := 1
	for n < runtime.GOMAXPROCS(0) && n < maxShards {
		n *= 2
	}
	return n
}

// Observe a duration; a negative one counts as 0.
func (h *Histogram) Observe(d time.Duration) {
	d = max(d, 0)
	s := &h.shards[rand.Uint32()&h.mask]
	s.buckets[bucketOf(uint64(d/time.Microsecond))].Add(1)
	s.nanos.Add(int64(d))
}

// counts adds up the shards.
func (h *Histogram) counts() (out counts) {
	for i := range h.shards {
		s := &h.shards[i]
		for b := range s.buckets {
			if n := s.buckets[b].Load(); n != 0 {
				out.buckets[b] += n
				out.n += n
			}
		}
		out.nanos += s.nanos.Load()
	}
	return out
}

// counts are a histogram at a moment, or the difference of two.
type counts struct {
	buckets [numBuckets]uint64
	n       uint64
	nanos   int64
}

// quantile of the durations, in seconds: the middle of the bucket it falls into; 0 if
// there are none.
func (c *counts) quantile(q float64) float64 {
	if c.n == 0 {
		return 0
	}
	rank := min(uint64(q*float64(c.n)), c.n-1)
	for b, n := range c.buckets {
		if rank < n {
			lower := float64(lowerBound(b))
			if b == overflow {
				return lower / 1e6
			}
			return (lower + float64(lowerBound(b+1))) / 2e6
		}
		rank -= n
	}
	return 0
}

// exposed bounds, in seconds: those that Prometheus gets.
var exposed = []float64{
	0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 60, 120, 300,
}

// cumulative counts at the exposed bounds.
func (c *counts) cumulative() map[float64]uint64 {
	out := make(map[float64]uint64, len(exposed))
	sum, b := uint64(0), 0
	for _, le := range exposed {
		for end := bucketOf(uint64(le*1e6 + 0.5)); b < end; b++ {
			sum += c.buckets[b]
		}
		out[le] = sum
	}
	return out
}
