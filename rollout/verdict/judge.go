package verdict

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/sluice-dev/sluice/rollout"
)

// Decision on a treatment, with the numbers it rests on. In JSON numbers are strings.
type Decision struct {
	// Verdict: not worse means fit for promotion, and Rule says by which rule.
	Verdict rollout.Verdict `json:"verdict"`
	// Rule that fired: ReasonWorse, ReasonNotWorse, ReasonBounded; else ReasonUndecided, or ReasonUnknown.
	Rule rollout.Reason `json:"rule"`
	// Problem says why the verdict is unknown.
	Problem string `json:"problem,omitempty"`

	// The natural logarithms of the e-values of the rules worse, not_worse and bounded.
	LogE      float64 `json:"logE,string"`
	LogEFine  float64 `json:"logEFine,string"`
	LogEBound float64 `json:"logEBound,string"`
	// BadUpper is the upper bound on the treatment's bad rate, a fraction, at level beta/2.
	BadUpper float64 `json:"badUpper,string"`

	Requests        int64 `json:"requests,string"`
	Bad             int64 `json:"bad,string"`
	ControlRequests int64 `json:"controlRequests,string"`
	ControlBad      int64 `json:"controlBad,string"`

	Params Params `json:"params"`
}

// Judge decides from the evidence as it stands (see the package comment for why not from
// its running maximum). It is pure. When more than one rule holds, worse comes before
// not_worse and that before bounded. Without evidence, or with evidence that does not
// belong to the parameters, the verdict is unknown.
func Judge(p Params, e Evidence) Decision {
	d := Decision{
		Verdict: rollout.VerdictUnknown, Rule: rollout.ReasonUnknown, BadUpper: 1, Params: p,
		Requests: e.requests[Treatment], Bad: e.bad[Treatment],
		ControlRequests: e.requests[Control], ControlBad: e.bad[Control],
	}
	if err := p.Validate(); err != nil {
		d.Problem = "its parameters are invalid: " + strings.ReplaceAll(err.Error(), "\n", "; ")
		return d
	}
	if e.None() {
		d.Problem = "no router has reported evidence"
		return d
	}
	if err := e.check(); err != nil {
		d.Problem = "the evidence cannot be used: " + err.Error()
		return d
	}
	if e.r0 != p.R0 || e.r1 != p.R1 {
		d.Problem = "the evidence was taken with other ratios"
		return d
	}
	maxBad := p.MaxBadPercent / 100
	d.LogE, d.LogEFine, d.LogEBound = e.LogWorse(), e.LogNotWorse(), e.LogBounded(maxBad)
	d.BadUpper = e.UpperBound(p.Beta / 2)
	promote := p.promoteAt()
	switch {
	case d.LogE >= p.rollbackAt():
		d.Verdict, d.Rule = rollout.VerdictWorse, rollout.ReasonWorse
	case d.LogEFine >= promote:
		d.Verdict, d.Rule = rollout.VerdictNotWorse, rollout.ReasonNotWorse
	case d.LogEBound >= promote:
		d.Verdict, d.Rule = rollout.VerdictNotWorse, rollout.ReasonBounded
	default:
		d.Verdict, d.Rule = rollout.VerdictUndecided, rollout.ReasonUndecided
	}
	return d
}

// rollbackAt and promoteAt are the thresholds of the logarithmic e-values.
func (p Params) rollbackAt() float64 { return -math.Log(p.Alpha) }
func (p Params) promoteAt() float64  { return -math.Log(p.Beta / 2) }

// Judgement is the decision as the strategy reads it.
func (d Decision) Judgement() rollout.Judgement {
	return rollout.Judgement{Verdict: d.Verdict, Rule: d.Rule, Sentence: d.Sentence(), Requests: d.Requests}
}

// Status is the decision as the endpoint's status shows it; the caller adds what it saved.
func (d Decision) Status(treatment string, key Key) rollout.EvidenceStatus {
	integer := func(n int64) string { return strconv.FormatInt(n, 10) }
	float := func(f float64) string { return strconv.FormatFloat(f, 'g', 6, 64) }
	return rollout.EvidenceStatus{
		Treatment: treatment, Key: string(key), Verdict: string(d.Verdict),
		Requests: integer(d.Requests), Bad: integer(d.Bad),
		ControlRequests: integer(d.ControlRequests), ControlBad: integer(d.ControlBad),
		LogEvidenceWorse: float(d.LogE), LogEvidenceFine: float(d.LogEFine),
		BadUpperBound: float(100 * d.BadUpper),
	}
}

// Restored is the decision that a status shows, as far as it shows one: what an unknown verdict
// lacked is not in it.
func Restored(s rollout.EvidenceStatus, p Params) (Decision, error) {
	d := Decision{Verdict: rollout.Verdict(s.Verdict), Rule: rollout.ReasonUnknown, Problem: "the evidence or its source is unavailable", Params: p}
	var errs []error
	integer := func(text string) int64 {
		n, err := strconv.ParseInt(text, 10, 64)
		errs = append(errs, err)
		return n
	}
	float := func(text string) float64 {
		f, err := strconv.ParseFloat(text, 64)
		errs = append(errs, err)
		return f
	}
	d.Requests, d.Bad = integer(s.Requests), integer(s.Bad)
	d.ControlRequests, d.ControlBad = integer(s.ControlRequests), integer(s.ControlBad)
	d.LogE, d.LogEFine, d.BadUpper = float(s.LogEvidenceWorse), float(s.LogEvidenceFine), float(s.BadUpperBound)/100
	if err := errors.Join(errs...); err != nil {
		return d, fmt.Errorf("read evidence of %s: %w", s.Treatment, err)
	}
	const slack = 1e-4 // the status has six digits
	switch {
	case d.Verdict == rollout.VerdictWorse:
		d.Rule = rollout.ReasonWorse
	case d.Verdict == rollout.VerdictNotWorse && d.LogEFine >= p.promoteAt()-slack:
		d.Rule = rollout.ReasonNotWorse
	case d.Verdict == rollout.VerdictNotWorse:
		d.Rule = rollout.ReasonBounded
	case d.Verdict == rollout.VerdictUndecided:
		d.Rule = rollout.ReasonUndecided
	}
	if d.Rule != rollout.ReasonUnknown {
		d.Problem = ""
	}
	return d, nil
}
