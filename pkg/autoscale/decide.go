// Package autoscale decides how many replicas each version needs, from what
// routers report, and asks fleets for them. Only this package sets replica counts.
package autoscale

import (
	"math"
	"time"
)

// DownAfter is how long the need must have been lower before replicas are taken away.
const DownAfter = time.Minute

// shortService, in seconds, is a quarter of a tick.
const shortService = 0.25

// tolerance is how far demand and replicas may be apart before anything is done, as in
// Kubernetes' HorizontalPodAutoscaler: measured means tremble, and one tick's tremor is
// no reason for a replica more, nor the mean of forty busy clients, a little under
// forty, for one less.
const tolerance = 0.1

// Load is what a version's traffic asks for over one tick, summed over all routers.
type Load struct {
	// InFlight and Queued are means over the tick, QueuedNow is the queue at its end.
	InFlight  float64
	Queued    float64
	QueuedNow float64
	// RefusedPerSecond counts requests that no slot came free for in time.
	RefusedPerSecond float64
	// ArrivalsPerSecond counts all requests that came in the tick; negative when unknown.
	ArrivalsPerSecond float64
	// ServiceSeconds is the mean time that a request holds its slot; 0 when unknown.
	ServiceSeconds float64
	// QueueWaitSeconds is how long a request may wait.
	QueueWaitSeconds float64
}

// Demand is how many slots the traffic would keep busy if no request waited.
//
// Requests in flight count one each. A refused request would have held a slot
// for the service time, so refusals per second become slots through it (Little's
// law). A queued one counts as what is needed to serve it within the patience of
// the queue: one slot if the service takes that long, else the fraction service
// time ÷ patience. When everything in the queue runs into its timeout the two are
// the same quantity (queued = refusals per second × patience), so the larger of
// them is taken and not their sum. A queue that is gone at the tick's end was a
// backlog that what is there has worked off: it counts no more. With an unknown service time neither the queue
// nor the refusals say how much is needed: they count as nothing.
func (l Load) Demand() float64 {
	if l.ServiceSeconds <= 0 {
		return l.InFlight
	}
	busy := l.InFlight
	if l.QueuedNow == 0 && l.ServiceSeconds <= shortService && l.ArrivalsPerSecond >= 0 {
		// Of a tick many service times long, what came in is the truer measure: slots
		// that worked off a backlog were busier than the traffic asks for.
		busy = min(busy, l.ArrivalsPerSecond*l.ServiceSeconds)
	}
	drain := 1.0
	if l.QueueWaitSeconds > 0 {
		drain = min(1, l.ServiceSeconds/l.QueueWaitSeconds)
	}
	return busy + max(min(l.Queued, l.QueuedNow)*drain, l.RefusedPerSecond*l.ServiceSeconds)
}

// Need is how many replicas carry a demand at the target utilisation:
// ceil(demand ÷ (slots × target)), as Azure ML's sizing formula has it.
func Need(demand float64, slots int, target float64) int {
	if demand <= 0 || slots <= 0 || target <= 0 {
		return 0
	}
	// A demand that is over by rounding alone needs no further replica.
	return int(math.Ceil(demand/(float64(slots)*target) - 1e-6))
}

// Replicas is the sizing formula for a planned load: requests per second, mean
// seconds per request, target utilisation between 0 and 1, slots per replica.
func Replicas(rps float64, latency time.Duration, target float64, slots int) int {
	return Need(rps*latency.Seconds(), slots, target)
}

// Input of one decision for one version.
type Input struct {
	Now time.Time
	// Have is the number of replicas ready or starting: what was asked for last.
	Have int
	// Fixed count, or -1.
	Fixed, Min, Max int
	// Floor holds the count up, such as a standby's size; 0 for none.
	Floor int
	// Need by the demand, own or planned, and Least, the need by a demand that is lower by
	// the tolerance.
	Need, Least int
	// Complete says that every router reported: without it nothing is taken away.
	Complete bool
}

// Memory of a version's needs over the last DownAfter: the highest in each second.
type Memory struct {
	marks []mark
}

type mark struct {
	at   time.Time
	need int
}

// Decide how many replicas to ask for now: more at once, fewer only when the
// need was lower for all of DownAfter, with every report there.
func (m *Memory) Decide(in Input) int {
	if in.Fixed >= 0 {
		m.marks = m.marks[:0]
		return in.Fixed
	}
	need := in.Need
	if need > in.Have && in.Least <= in.Have {
		need = in.Have // within the tolerance: as good as enough
	}
	want := max(need, in.Min, in.Floor)
	want = min(want, max(in.Max, in.Floor))
	seen := want
	if want < in.Have && float64(want) > (1-tolerance)*float64(in.Have) {
		seen = in.Have
	}
	if !in.Complete || len(m.marks) == 0 {
		// What a missing report would have said is unknown, and so is what came
		// before the first look: nothing is taken away for a minute.
		seen = max(want, in.Have)
	}
	m.remember(in.Now, seen)
	for _, k := range m.marks {
		want = max(want, min(k.need, in.Have))
	}
	return want
}

// remember drops marks older than DownAfter; of those that a later, higher mark
// covers only the later is kept, so the list stays short.
func (m *Memory) remember(now time.Time, need int) {
	for len(m.marks) > 0 && m.marks[len(m.marks)-1].need <= need {
		m.marks = m.marks[:len(m.marks)-1]
	}
	m.marks = append(m.marks, mark{now, need})
	for len(m.marks) > 1 && now.Sub(m.marks[0].at) >= DownAfter {
		m.marks = m.marks[1:]
	}
}
