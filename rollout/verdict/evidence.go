package verdict

import (
	"fmt"
	"math"
)

// Label says which arm a request was assigned to.
type Label uint8

// The labels.
const (
	Treatment Label = iota
	Control
)

func (l Label) String() string {
	switch l {
	case Treatment:
		return "treatment"
	case Control:
		return "control"
	}
	return fmt.Sprintf("Label(%d)", uint8(l))
}

// alternative is one point of a mixture, its weight as a logarithm.
type alternative struct{ at, logWeight float64 }

// mixture pairs points with weights; the weights are normalised, since a mixture's mean
// under the null must not exceed 1.
func mixture(points ...[2]float64) []alternative {
	sum := 0.0
	for _, p := range points {
		sum += p[1]
	}
	out := make([]alternative, len(points))
	for i, p := range points {
		out[i] = alternative{p[0], math.Log(p[1] / sum)}
	}
	return out
}

const (
	nWorse    = 8
	nNotWorse = 5
)

// The mixtures may be changed only together with evidenceFormat: saved sums belong
// to their alternatives. The weights are tuned by simulation at 1 % and a share of 5 %:
// against uniform ones, worse needs 8 % fewer requests at ×2 and 3–6 % fewer at ×1.5, ×3 and
// ×5, 5 % more at ×1.25 and as many elsewhere; not_worse weighs the equal model most, which takes
// 5 % off its 90th percentile. See test/bench/verdict.
var (
	// worseMix: alternatives as multiples of r0.
	worseMix = [nWorse]alternative(mixture(
		[2]float64{1.25, 0.07}, [2]float64{1.5, 0.15}, [2]float64{2, 0.20}, [2]float64{3, 0.18},
		[2]float64{5, 0.15}, [2]float64{10, 0.12}, [2]float64{30, 0.09}, [2]float64{100, 0.04},
	))
	// notWorseMix: alternatives as exponents e of r0·(r1/r0)^e, all below r1.
	notWorseMix = [nNotWorse]alternative(mixture(
		[2]float64{-1, 0.12}, [2]float64{-0.5, 0.08}, [2]float64{-0.25, 0.20}, [2]float64{0, 0.40}, [2]float64{0.2, 0.20},
	))
	logWorseAt = func() (out [nWorse]float64) {
		for j, a := range worseMix {
			out[j] = math.Log(a.at)
		}
		return out
	}()
)

// Evidence is what a router keeps of one comparison: counts, and the sums of
// log-likelihood ratios of both label tests. It is a plain value of fixed size: copy
// it for a snapshot. The zero value means that there is no evidence at all; it
// merges with any, but observes only counts. It is not safe for concurrent use.
type Evidence struct {
	r0, r1   float64
	requests [2]int64 // by Label
	bad      [2]int64
	worse    [nWorse]float64
	notWorse [nNotWorse]float64
}

// New is evidence without observations for a comparison with these ratios.
func New(p Params) Evidence { return Evidence{r0: p.R0, r1: p.R1} }

// Observe counts one completed request: its arm, the probability rho with which it
// had been assigned to the treatment rather than the control, and whether it was a
// bad event. A rho of 0 or 1 (no comparison was possible), outside that range or
// NaN adds to the counts and nothing to the label tests.
func (e *Evidence) Observe(label Label, rho float64, bad bool) {
	if label > Control {
		return
	}
	e.requests[label]++
	if bad {
		e.observeBad(label, rho)
	}
}

// ObserveGood counts n good requests of an arm at once: good ones carry no share.
func (e *Evidence) ObserveGood(label Label, n int64) {
	if label > Control || n < 0 {
		return
	}
	e.requests[label] += n
}

// observeBad adds, for each alternative r against the null's edge r', the logarithm of
// P(label | r)/P(label | r') = (r/r')^[treatment] / ((1+rho(r−1))/(1+rho(r'−1))).
func (e *Evidence) observeBad(label Label, rho float64) {
	e.bad[label]++
	if !(rho > 0 && rho < 1) || e.r1 == 0 {
		return
	}
	null := math.Log1p(rho * (e.r0 - 1))
	for j := range worseMix {
		s := null - math.Log1p(rho*(e.r0*worseMix[j].at-1))
		if label == Treatment {
			s += logWorseAt[j]
		}
		e.worse[j] += s
	}
	null = math.Log1p(rho * (e.r1 - 1))
	span := math.Log(e.r1 / e.r0)
	for j := range notWorseMix {
		at := notWorseMix[j].at
		s := null - math.Log1p(rho*(e.r0*math.Exp(at*span)-1))
		if label == Treatment {
			s += (at - 1) * span
		}
		e.notWorse[j] += s
	}
}

// Requests of an arm that have completed.
func (e Evidence) Requests(l Label) int64 { return e.requests[l] }

// Bad events among an arm's requests.
func (e Evidence) Bad(l Label) int64 { return e.bad[l] }

// None says whether this is the zero value: no evidence was ever begun.
func (e Evidence) None() bool { return e == Evidence{} }

// Merge adds the evidence of other requests of the same comparison. It refuses
// evidence taken with other ratios and leaves e as it was then.
func (e *Evidence) Merge(o Evidence) error {
	if o.None() {
		return nil
	}
	if e.None() {
		*e = o
		return nil
	}
	if !e.comparable(o) {
		return fmt.Errorf("merge evidence: ratios differ: r0 %g and r1 %g against r0 %g and r1 %g", e.r0, e.r1, o.r0, o.r1)
	}
	for l := range e.requests {
		e.requests[l] += o.requests[l]
		e.bad[l] += o.bad[l]
	}
	for j := range e.worse {
		e.worse[j] += o.worse[j]
	}
	for j := range e.notWorse {
		e.notWorse[j] += o.notWorse[j]
	}
	return nil
}

func (e Evidence) comparable(o Evidence) bool { return e.r0 == o.r0 && e.r1 == o.r1 }

// LogWorse is the natural logarithm of the e-value against "the ratio of bad rates is
// at most r0".
func (e Evidence) LogWorse() float64 { return logMix(worseMix[:], e.worse[:]) }

// LogNotWorse is the natural logarithm of the e-value against "the ratio of bad rates
// is at least r1".
func (e Evidence) LogNotWorse() float64 { return logMix(notWorseMix[:], e.notWorse[:]) }

// LogBounded is the natural logarithm of the e-value against "the treatment's mean
// bad rate is at least maxBad", a fraction.
func (e Evidence) LogBounded(maxBad float64) float64 {
	return logBound(maxBad, e.requests[Treatment], e.bad[Treatment])
}

// UpperBound on the treatment's mean bad rate so far, a fraction: with probability
// 1−level it holds at all times together. It is below maxBad exactly when
// LogBounded(maxBad) has reached ln(1/level). Without requests it is 1.
func (e Evidence) UpperBound(level float64) float64 {
	return upperBound(level, e.requests[Treatment], e.bad[Treatment])
}

// logMix is ln Σ w_j·exp(s_j) without overflow.
func logMix(mix []alternative, s []float64) float64 {
	top := math.Inf(-1)
	for j := range mix {
		top = max(top, mix[j].logWeight+s[j])
	}
	sum := 0.0
	for j := range mix {
		sum += math.Exp(mix[j].logWeight + s[j] - top)
	}
	return top + math.Log(sum)
}
