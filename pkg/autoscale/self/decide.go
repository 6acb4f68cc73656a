// Package self decides how much CPU the routers have and how many pods of them there are, as Azure ML's
// front end does: CPU first, in place and without a restart, then pods; back in the reverse order. Decide is
// pure; Run is a loop around it behind small ports. Models' replicas are pkg/autoscale's affair.
package self

import (
	"fmt"
	"math"
	"time"
)

// Milli is CPU in thousandths of a core.
type Milli int64

// String is as Kubernetes writes it.
func (m Milli) String() string {
	if m%1000 == 0 {
		return fmt.Sprintf("%d", m/1000)
	}
	return fmt.Sprintf("%dm", int64(m))
}

// Settings are the thresholds and bounds.
type Settings struct {
	// P99 of the routing time above which there is too little CPU, once it has been above for Over.
	P99, Over time.Duration
	// CPUStep is what one step adds to each pod or takes from it, between CPUMin and CPUMax.
	CPUStep, CPUMin, CPUMax Milli
	// CPULow is the part of all pods' CPU, 0 to 1, below which there is too much of it, once the use
	// has been below for Calm with a P99 of at most half the one above.
	CPULow           float64
	Calm             time.Duration
	PodsMin, PodsMax int
	// Patience is how long a resize or a pod may wait for room; then it is taken back.
	Patience time.Duration
	// Backoff is how long nothing is asked for again that there was no room for.
	Backoff time.Duration
}

// Defaults of the settings.
func Defaults() Settings {
	return Settings{
		P99: 5 * time.Millisecond, Over: 15 * time.Second,
		CPUStep: 500, CPUMin: 2000, CPUMax: 4000, CPULow: 0.3, Calm: 2 * time.Minute,
		PodsMin: 1, PodsMax: 10, Patience: 30 * time.Second, Backoff: 5 * time.Minute,
	}
}

// Validate says what makes no sense.
func (s Settings) Validate() error {
	switch {
	case s.P99 <= 0 || s.Over <= 0 || s.Calm <= 0:
		return fmt.Errorf("the p99 (%v) and the times over it (%v) and calm (%v) must be above 0", s.P99, s.Over, s.Calm)
	case s.CPUStep <= 0 || s.CPUMin <= 0 || s.CPUMax < s.CPUMin:
		return fmt.Errorf("CPU goes from %v to %v in steps of %v: each must be above 0, and the most no less than the least", s.CPUMin, s.CPUMax, s.CPUStep)
	case s.CPULow <= 0 || s.CPULow >= 1:
		return fmt.Errorf("a low use of CPU of %v is not between 0 and 1", s.CPULow)
	case s.PodsMin < 1 || s.PodsMax < s.PodsMin:
		return fmt.Errorf("pods go from %d to %d: at least 1, and the most no less than the least", s.PodsMin, s.PodsMax)
	}
	return nil
}

// Pending is how a resize stands that is not done.
type Pending string

// The ways. In the first two the node has no room; the second will not pass while the pod is on it.
const (
	PendingNone       Pending = ""
	PendingDeferred   Pending = "Deferred"
	PendingInfeasible Pending = "Infeasible"
	PendingInProgress Pending = "InProgress"
)

// Pod is a router pod that does not end.
type Pod struct {
	Name string
	// CPU is its limit as asked for, or the request if there is no limit; 0 without either: such a pod
	// has all that its node has, and is not resized. Has is what it got.
	CPU, Has Milli
	Ready    bool
	Resize   Pending
	// Unschedulable says why no node takes it, or is empty.
	Unschedulable string
}

// Input of one decision.
type Input struct {
	Now time.Time
	// Complete says that every router reported, over a time that is known.
	Complete bool
	// P99 is the routing time of the slowest router; 0 where too few requests came to tell.
	P99 time.Duration
	// Used is the CPU that all routers used.
	Used Milli
	Pods []Pod
	// Desired is how many pods were asked for last.
	Desired int
}

// Kind of a step. The names are those of the metric.
type Kind string

// The kinds.
const (
	Hold          Kind = ""
	CPUUp         Kind = "cpu_up"
	PodsOut       Kind = "pods_out"
	CPUDown       Kind = "cpu_down"
	PodsIn        Kind = "pods_in"
	CPUTakenBack  Kind = "cpu_taken_back"
	PodsTakenBack Kind = "pods_taken_back"
	// Full is no step: more is needed, and nothing may grow.
	Full Kind = "full"
)

// Kinds are all that are counted.
func Kinds() []Kind {
	return []Kind{CPUUp, PodsOut, CPUDown, PodsIn, CPUTakenBack, PodsTakenBack, Full}
}

// Resize of one pod.
type Resize struct {
	Pod      string
	From, To Milli
}

// Action to take.
type Action struct {
	Kind    Kind
	Resizes []Resize
	// Replicas of the Deployment, for steps in pods.
	Replicas int
	// Figure that triggered it, for people.
	Figure string
}

// Memory of what has lasted for how long.
type Memory struct {
	over, low time.Time // since when; zero: not now
	worst     time.Duration
	// waiting is since when a pod's resize, or the pod itself, is pending.
	waiting map[string]time.Time
	// Until then no CPU, no pod is asked for, and nothing is said of fullness.
	noCPU, noPods, quiet time.Time
}

// Blocked notes that the cluster refused what was asked for: it is left alone for a while.
func (m *Memory) Blocked(s Settings, k Kind, now time.Time) {
	switch k {
	case CPUUp:
		m.noCPU = now.Add(s.Backoff)
	case PodsOut:
		m.noPods = now.Add(s.Backoff)
	}
}

// Decide on the next step, one at a time: what the cluster has no room for is taken back first, then bounds
// hold, then measurements count. After a step they begin anew, so that each is judged by what came of it.
func (m *Memory) Decide(s Settings, in Input) Action {
	if a := m.takeBack(s, in); a.Kind != Hold {
		return a
	}
	switch {
	case in.Desired < 1:
		m.restart()
		return Action{} // somebody put an end to the routers
	case in.Desired < s.PodsMin:
		m.restart()
		return Action{Kind: PodsOut, Replicas: s.PodsMin, Figure: fmt.Sprintf("%d pods are fewer than the least, %d", in.Desired, s.PodsMin)}
	case in.Desired > s.PodsMax:
		m.restart()
		return Action{Kind: PodsIn, Replicas: s.PodsMax, Figure: fmt.Sprintf("%d pods are more than the most, %d", in.Desired, s.PodsMax)}
	case !settled(in):
		// What is on its way will change the figures.
		m.restart()
		return Action{}
	case !in.Complete:
		// A router too busy to answer is no sign of calm, nor of anything else.
		m.low = time.Time{}
		return Action{}
	}
	use := in.use()
	m.measure(s, in, use)
	switch {
	case !m.over.IsZero() && in.Now.Sub(m.over) >= s.Over:
		figure := fmt.Sprintf("p99 routing time %v for %v, over %v", tidy(in.P99), in.Now.Sub(m.over).Round(time.Second), s.P99)
		return m.grow(s, in, figure)
	case !m.low.IsZero() && in.Now.Sub(m.low) >= s.Calm:
		figure := fmt.Sprintf("CPU use %.0f%% or less for %v, under %.0f%%, with a p99 routing time of at most %v",
			100*max(use, 0), in.Now.Sub(m.low).Round(time.Second), 100*s.CPULow, tidy(m.worst))
		return m.shrink(s, in, figure)
	}
	return Action{}
}

// restart the measurements.
func (m *Memory) restart() { m.over, m.low, m.worst = time.Time{}, time.Time{}, 0 }

// measure says since when there is too little, or too much.
func (m *Memory) measure(s Settings, in Input, use float64) {
	since := func(at *time.Time, is bool) {
		if !is {
			*at = time.Time{}
		} else if at.IsZero() {
			*at = in.Now
		}
	}
	since(&m.over, in.P99 > s.P99)
	// Between the two thresholds nothing changes.
	since(&m.low, use >= 0 && use < s.CPULow && in.P99 <= s.P99/2)
	if m.worst = max(m.worst, in.P99); m.low.IsZero() {
		m.worst = 0
	}
}

// use of all pods' CPU, 0 to 1; negative if it is not known.
func (in Input) use() float64 {
	sum := Milli(0)
	for _, p := range in.Pods {
		if p.Has == 0 {
			return -1
		}
		sum += p.Has
	}
	if sum == 0 {
		return -1
	}
	return float64(in.Used) / float64(sum)
}

// settled says that nothing is on its way.
func settled(in Input) bool {
	for _, p := range in.Pods {
		if !p.Ready || p.Resize != PendingNone || p.Unschedulable != "" {
			return false
		}
	}
	return len(in.Pods) == in.Desired
}

// takeBack what the cluster has no room for.
func (m *Memory) takeBack(s Settings, in Input) Action {
	waiting := map[string]time.Time{}
	long := func(name string) bool {
		at, was := m.waiting[name]
		if !was {
			at = in.Now
		}
		waiting[name] = at
		return in.Now.Sub(at) >= s.Patience
	}
	var resizes []Resize
	stuck, cpu, pods := 0, "", ""
	for _, p := range in.Pods {
		switch {
		case p.Unschedulable != "":
			if long(p.Name) {
				stuck++
				pods = fmt.Sprintf("pod %s cannot be scheduled: %s", p.Name, p.Unschedulable)
			}
		case p.Resize != PendingNone && p.Has > 0 && p.CPU > p.Has:
			if long(p.Name) || p.Resize == PendingInfeasible {
				resizes = append(resizes, Resize{p.Name, p.CPU, p.Has})
				cpu = fmt.Sprintf("resize of pod %s to %v is %s", p.Name, p.CPU, p.Resize)
			}
		}
	}
	m.waiting = waiting
	if len(resizes) > 0 {
		m.restart()
		m.noCPU = in.Now.Add(s.Backoff)
		return Action{Kind: CPUTakenBack, Resizes: resizes, Figure: cpu}
	}
	if want := max(in.Desired-stuck, s.PodsMin); stuck > 0 && want < in.Desired {
		m.restart()
		m.noPods = in.Now.Add(s.Backoff)
		return Action{Kind: PodsTakenBack, Replicas: want, Figure: pods}
	}
	return Action{}
}

// grow in CPU, the pods with the least first, so that new ones catch up; then by a pod.
func (m *Memory) grow(s Settings, in Input, figure string) Action {
	least := Milli(math.MaxInt64)
	for _, p := range in.Pods {
		if p.CPU > 0 {
			least = min(least, p.CPU)
		}
	}
	switch {
	case least < s.CPUMax && !in.Now.Before(m.noCPU):
		a := Action{Kind: CPUUp, Figure: figure}
		level := min(least+s.CPUStep, s.CPUMax)
		for _, p := range in.Pods {
			if p.CPU > 0 && p.CPU < level {
				a.Resizes = append(a.Resizes, Resize{p.Name, p.CPU, level})
			}
		}
		m.restart()
		return a
	case in.Desired < s.PodsMax && !in.Now.Before(m.noPods):
		m.restart()
		return Action{Kind: PodsOut, Replicas: in.Desired + 1, Figure: figure}
	case !in.Now.Before(m.quiet):
		m.quiet = in.Now.Add(s.Backoff)
		return Action{Kind: Full, Figure: figure}
	}
	return Action{}
}

// shrink in CPU, the pods with the most first, then by a pod.
func (m *Memory) shrink(s Settings, in Input, figure string) Action {
	most := Milli(0)
	for _, p := range in.Pods {
		most = max(most, p.CPU)
	}
	if most > s.CPUMin {
		a := Action{Kind: CPUDown, Figure: figure}
		level := max(most-s.CPUStep, s.CPUMin)
		for _, p := range in.Pods {
			if p.CPU > level {
				a.Resizes = append(a.Resizes, Resize{p.Name, p.CPU, level})
			}
		}
		m.restart()
		return a
	}
	if in.Desired > s.PodsMin {
		m.restart()
		return Action{Kind: PodsIn, Replicas: in.Desired - 1, Figure: figure}
	}
	return Action{}
}

// tidy to what a person reads.
func tidy(d time.Duration) time.Duration { return d.Round(10 * time.Microsecond) }
