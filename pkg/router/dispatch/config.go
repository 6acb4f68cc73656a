package dispatch

import (
	"time"

	"github.com/sluice-dev/sluice/pkg/cluster"
	"github.com/sluice-dev/sluice/rollout"
)

// Backend is the engine's side of one replica, made when the replica appears.
type Backend interface {
	// CloseIdle drops connections that are not in use: the replica gets nothing for now.
	CloseIdle()
	// Close says that the replica gets nothing any more; what is in flight goes on.
	Close()
}

// Options of a scheduler.
type Options struct {
	// Open makes the backend of the replica at that address; it must not block.
	Open func(address string) Backend
	// Random gives a uniform number in [0,n); nil uses math/rand/v2.
	Random func(n uint32) uint32
	// MaxQueue is how many requests may wait for one version; 0 means DefaultMaxQueue.
	MaxQueue int
}

// DefaultMaxQueue bounds a version's queue. Each waiter may hold a body of 64 KiB.
const DefaultMaxQueue = 4096

// Config is what an endpoint is to be: its spec, which is not changed afterwards,
// and what is known of its versions' fleets, by version.
type Config struct {
	Spec   *rollout.Spec
	Fleets map[string]*cluster.FleetState
}

// Refusal is why a request got no replica. It is an error of the router, never a
// bad event of a version.
type Refusal struct {
	Reason rollout.Reason
	// Version the request was for; empty when it got as far as none.
	Version string
	// RetryAfter is when another try makes sense; 0 if waiting does not help.
	RetryAfter time.Duration
}

func (r *Refusal) Error() string {
	if r.Version == "" {
		return "dispatch: " + string(r.Reason)
	}
	return "dispatch to " + r.Version + ": " + string(r.Reason)
}

// Stats are one version's numbers at a moment.
type Stats struct {
	Version string
	// InFlightSeconds and QueuedSeconds are exact integrals since the version was first seen.
	InFlightSeconds, QueuedSeconds float64
	InFlight, Queued               int64
	// Refused requests: those that got no slot.
	Refused int64
	// Fallbacks are requests drawn for the version that another's share fell back to it for.
	Fallbacks int64
	// GateRefusals are refusals by replicas; each was picked again.
	GateRefusals int64
	// Service is the exponentially weighted mean of how long a request holds its slot; 0 when unknown.
	Service time.Duration
	// Applied is the share in force after fallbacks, Fallback its part that came from other versions.
	Applied, Fallback rollout.Percent
	// Slots of the replicas that can take requests now, and how many such replicas there are.
	Slots, Serving int
}

// Evidence is one comparison's state, as rollout/verdict saves it.
type Evidence struct {
	Treatment string
	Key       string
	Saved     string
	// LogWorse, LogNotWorse and LogBounded are the natural logarithms of the e-values.
	LogWorse, LogNotWorse, LogBounded float64
}
