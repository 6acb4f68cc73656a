package verdict

import (
	"fmt"
	"math"
	"strconv"

	"github.com/sluice-dev/sluice/rollout"
)

// Sentence says in one sentence what was decided and on which numbers.
// Likelihood ratios are written the way of odds, "340:1".
func (d Decision) Sentence() string {
	p := d.Params
	counts := fmt.Sprintf("%s of %s requests bad against %s of %s for the control",
		group(d.Bad), group(d.Requests), group(d.ControlBad), group(d.ControlRequests))
	worse := fmt.Sprintf("likelihood ratio %s that it %s", ratio(d.LogE), worseThan(p.R0))
	fine := fmt.Sprintf("likelihood ratio %s that it is bad less than %s times as often", ratio(d.LogEFine), number(p.R1))
	upper := fmt.Sprintf("its bad rate is at most %s %%", percent(d.BadUpper))
	switch d.Rule {
	case rollout.ReasonWorse:
		return fmt.Sprintf("worse: %s: %s; %s rolls back", counts, worse, needed(p.rollbackAt()))
	case rollout.ReasonNotWorse:
		return fmt.Sprintf("not worse: %s: %s; %s promotes", counts, fine, needed(p.promoteAt()))
	case rollout.ReasonBounded:
		return fmt.Sprintf("bounded: %s: %s at confidence %s %%; below %s %% promotes",
			counts, upper, percent(1-p.Beta/2), number(p.MaxBadPercent))
	case rollout.ReasonUndecided:
		return fmt.Sprintf("undecided: %s: %s (%s rolls back), %s (%s promotes), and %s (below %s %% promotes)",
			counts, worse, needed(p.rollbackAt()), fine, needed(p.promoteAt()), upper, number(p.MaxBadPercent))
	default:
		return "unknown: " + d.Problem
	}
}

func worseThan(r0 float64) string {
	if r0 == 1 {
		return "is bad more often"
	}
	return fmt.Sprintf("is bad more than %s times as often", number(r0))
}

// ratio writes exp(log) as odds, rounded towards the null, so that it never
// reads as having reached a threshold that it has not.
func ratio(log float64) string {
	const slack = 1e-9 // exp(ln 100) may fall short of 100
	if log >= 0 {
		return odds(log+slack, math.Floor) + ":1"
	}
	return "1:" + odds(-log-slack, math.Ceil)
}

func needed(log float64) string { return odds(log, math.Round) + ":1" }

func odds(log float64, round func(float64) float64) string {
	v := math.Exp(max(log, 0))
	switch {
	case log >= math.Log(1e9):
		return "10^" + group(int64(round(log/math.Ln10)))
	case v < 10:
		return number(round(v*10) / 10)
	default:
		return group(int64(round(v)))
	}
}

func number(f float64) string { return strconv.FormatFloat(f, 'g', -1, 64) }

// percent writes a fraction in per cent with three significant digits.
func percent(f float64) string { return strconv.FormatFloat(100*f, 'g', 3, 64) }

// group writes an integer with commas between thousands.
func group(n int64) string {
	s := strconv.FormatInt(n, 10)
	from := 0
	if n < 0 {
		from = 1
	}
	for i := len(s) - 3; i > from; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}
