package main

import (
	"math"
	"math/rand/v2"
	"sort"
	"sync"

	"github.com/sluice-dev/sluice/rollout/verdict"
)

// phase of a ramp: rho holds until the treatment has had so many requests.
type phase struct {
	rho   float64
	until int64
}

const forever = math.MaxInt64

// The shares 1, 5, 20 and 50 %, moved by the treatment's requests as a strategy's steps are.
func ramp() []phase {
	return []phase{{0.01, 500}, {0.05, 1500}, {0.20, 3500}, {0.50, forever}}
}

func constant(rho float64) []phase { return []phase{{rho, forever}} }

// scenario is a pair of versions under traffic.
type scenario struct {
	control, treatment float64 // bad rates, fractions
	ramp               []phase
	// horizon ends a run, in treatment requests.
	horizon int64
	// drift makes both rates swing together by a factor of 19 between their extremes.
	drift bool
	// burst > 1 makes one cause break a geometric number of requests of one arm, with
	// this mean; once observes only the first of them.
	burst float64
	once  bool
}

// rule names what can fire in a run.
type rule int

const (
	worse1  rule = iota // worse at alpha 1 %
	worse5              // worse at alpha 5 %
	fine5               // not_worse at level 5 %
	fine25              // not_worse at level 2.5 %, beta/2
	bound25             // bounded at level 2.5 %, beta/2
	nRules
)

const (
	alphaStrict, alphaLoose = 0.01, 0.05
	beta                    = 0.05
)

// never is the time of what did not fire within the horizon.
const never = int64(math.MaxInt64)

// result of a run: the treatment requests, and how many of them bad, when each rule's
// e-value first reached its threshold, looking after every single request.
type result struct {
	at  [nRules]int64
	bad [nRules]int64
}

func (r *result) fired(rules ...rule) bool {
	for _, x := range rules {
		if r.at[x] != never {
			return true
		}
	}
	return false
}

// bench carries what all runs share.
type bench struct {
	params  verdict.Params
	seed    uint64
	runs    int
	workers int

	mu     sync.Mutex
	bounds []int64 // bounds[k]: fewest requests at which k bad are bounded
	cell   uint64
}

// boundedFrom is the number of treatment requests from which on k bad events among
// them are bounded; the e-value rises with every good request, so between two bad
// events this one number decides.
func (b *bench) boundedFrom(k int64) int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	for int64(len(b.bounds)) <= k {
		bad := int64(len(b.bounds))
		e := verdict.New(b.params)
		for range bad {
			e.Observe(verdict.Treatment, 0, true)
		}
		threshold, limit := -math.Log(beta/2), b.params.MaxBadPercent/100
		n := sort.Search(1<<30, func(n int) bool {
			with := e
			with.ObserveGood(verdict.Treatment, int64(n))
			return with.LogBounded(limit) >= threshold
		})
		b.bounds = append(b.bounds, bad+int64(n))
	}
	return b.bounds[k]
}

// driftBlock is how many treatment requests a drifting rate stays the same.
const driftBlock = 100

// driftFactor is between 1/√19 and √19, with a period of 4,000 treatment requests.
func driftFactor(n int64) float64 {
	return math.Exp(0.5 * math.Log(19) * math.Sin(2*math.Pi*float64(n/driftBlock*driftBlock)/4000))
}

// run simulates one run until the horizon, or until all of wanted have fired. Good
// requests of the control carry no evidence and are left out; good requests of the
// treatment before the next bad event of either arm are a geometric number, which is drawn at
// once. Where a share or rate changes the draw is cut and begun again, exact because
// geometric numbers have no memory.
func (b *bench) run(s scenario, rng *rand.Rand, wanted []rule) result {
	var r result
	for i := range r.at {
		r.at[i] = never
	}
	e := verdict.New(b.params)
	strict, loose := -math.Log(alphaStrict), -math.Log(alphaLoose)
	fine, fineHalf := -math.Log(beta), -math.Log(beta/2)
	var n, bad int64
	fire := func(x rule, at int64) {
		if r.at[x] == never {
			r.at[x], r.bad[x] = at, bad
		}
	}
	needBound := r.at[bound25] == never
	good := func(k int64) {
		if k > 0 {
			from := n
			n += k
			e.ObserveGood(verdict.Treatment, k)
			if needBound {
				if first := b.boundedFrom(bad); n >= first {
					fire(bound25, max(first, from))
					needBound = false
				}
			}
		}
	}
	causes := max(s.burst, 1)
	step := 0
	for n < s.horizon {
		for s.ramp[step].until <= n {
			step++
		}
		rho, limit := s.ramp[step].rho, min(s.ramp[step].until, s.horizon)
		pt, pc := s.treatment/causes, s.control/causes
		if s.drift {
			f := driftFactor(n)
			pt, pc = min(1, pt*f), min(1, pc*f)
			limit = min(limit, (n/driftBlock+1)*driftBlock)
		}
		badT, badC := rho*pt, (1-rho)*pc
		gap := math.Inf(1)
		if q := (badT + badC) / (rho*(1-pt) + badT + badC); q > 0 {
			gap = math.Floor(math.Log(1-rng.Float64()) / math.Log1p(-q))
		}
		if gap >= float64(limit-n) {
			good(limit - n)
		} else {
			good(int64(gap))
			label := verdict.Control
			if rng.Float64()*(badT+badC) < badT {
				label = verdict.Treatment
			}
			size := 1
			if s.burst > 1 {
				size += int(math.Log(1-rng.Float64()) / math.Log1p(-1/s.burst))
			}
			for i := range size {
				if label == verdict.Treatment {
					n++
					bad++
				}
				if i == 0 || !s.once {
					e.Observe(label, rho, true)
				}
			}
			if w := e.LogWorse(); w >= loose {
				fire(worse5, n)
				if w >= strict {
					fire(worse1, n)
				}
			}
			if f := e.LogNotWorse(); f >= fine {
				fire(fine5, n)
				if f >= fineHalf {
					fire(fine25, n)
				}
			}
		}
		done := true
		for _, x := range wanted {
			done = done && r.at[x] != never
		}
		if done {
			break
		}
	}
	return r
}

// all runs of a scenario.
func (b *bench) all(s scenario, wanted ...rule) []result { return b.many(b.runs, s, wanted...) }

// many is that many runs of a scenario. Every run has its own random numbers, so that results do not
// depend on the number of workers.
func (b *bench) many(runs int, s scenario, wanted ...rule) []result {
	b.cell++
	cell := b.cell
	out := make([]result, runs)
	var wg sync.WaitGroup
	for w := range b.workers {
		wg.Go(func() {
			for i := w; i < runs; i += b.workers {
				out[i] = b.run(s, rand.New(rand.NewPCG(b.seed+cell<<32, uint64(i))), wanted)
			}
		})
	}
	wg.Wait()
	return out
}

// share of runs in which any of the rules fired.
func share(rs []result, rules ...rule) float64 {
	k := 0
	for i := range rs {
		if rs[i].fired(rules...) {
			k++
		}
	}
	return float64(k) / float64(len(rs))
}

// quantile of the treatment requests at which x fired; never if it had not by then.
func quantile(rs []result, x rule, q float64) int64 {
	v := make([]int64, len(rs))
	for i := range rs {
		v[i] = rs[i].at[x]
	}
	return pick(v, q)
}

func pick(v []int64, q float64) int64 {
	sort.Slice(v, func(i, j int) bool { return v[i] < v[j] })
	return v[min(len(v)-1, int(q*float64(len(v))))]
}

func badSeen(rs []result, x rule) int64 {
	v := make([]int64, len(rs))
	for i := range rs {
		v[i] = rs[i].bad[x]
		if rs[i].at[x] == never {
			v[i] = never
		}
	}
	return pick(v, 0.5)
}

// wald is the floor of treatment requests for any test at that level, when the
// control's rate is known (rho → 0): ln(1/level)/[p_C·(r ln(r/null) − r + null)].
func wald(level, pc, r, null float64) float64 {
	rlog := 0.0
	if r > 0 {
		rlog = r * math.Log(r/null)
	}
	return -math.Log(level) / (pc * (rlog - r + null))
}

// waldAt is the same at a share: the control's rate has to be learned from its own
// bad events.
func waldAt(level, pc, r, null, rho float64) float64 {
	rlog := 0.0
	if r > 0 {
		rlog = r * math.Log(r/null)
	}
	return -math.Log(level) / (pc * (rlog - (r+(1-rho)/rho)*math.Log((1+rho*(r-1))/(1+rho*(null-1)))))
}

// waldBound is the floor for a rate p against a limit m: ln(1/level)/KL(p‖m).
func waldBound(level, p, m float64) float64 {
	kl := (1 - p) * (math.Log1p(-p) - math.Log1p(-m))
	if p > 0 {
		kl += p * math.Log(p/m)
	}
	return -math.Log(level) / kl
}
