package rollout

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// zeroRule is a field whose zero stands for "not given": who writes 0 would get the default.
type zeroRule struct {
	// field with what it is in: "concurrency.maxQueueWaitMs".
	field string
	// use is the smallest value, in words; def the default.
	use string
	def float64
}

func zeroRules() []zeroRule {
	const least = "use 1 or more"
	probe := (*Probe)(nil).Resolved()
	return []zeroRule{
		{"concurrency.maxConcurrentRequests", least, DefaultSlots},
		{"concurrency.maxQueueWaitMs", "use 1 for practically no waiting", DefaultMaxQueueWaitMs},
		{"scoringTimeoutMs", least, DefaultScoringTimeoutMs},
		{"autoscale.targetUtilization", "use per cent from 1 to 100", DefaultTargetUtilization},
		{"autoscale.refreshPeriodSeconds", least, DefaultRefreshSeconds},
		{"livenessProbe.initialDelaySeconds", least, float64(probe.InitialDelaySeconds)},
		{"livenessProbe.periodSeconds", least, float64(probe.PeriodSeconds)},
		{"livenessProbe.timeoutSeconds", least, float64(probe.TimeoutSeconds)},
		{"livenessProbe.successThreshold", least, float64(probe.SuccessThreshold)},
		{"livenessProbe.failureThreshold", least, float64(probe.FailureThreshold)},
		{"strategy.alpha", "use a number from 1e-09 to 0.5", DefaultAlpha},
		{"strategy.beta", "use a number from 1e-09 to 0.5", DefaultBeta},
		{"strategy.r0", "use a number from 1 to 1000", DefaultR0},
		{"strategy.r1", "use a number from 1 to 1000", DefaultR1},
	}
}

// ExplicitZero is the refusal of a zero that was written for a field, nil where a zero means zero.
// The domain's types hold the same for a zero and for a field that is left out, so only
// who decodes can tell.
func ExplicitZero(field string) *Error {
	for _, r := range zeroRules() {
		// As encoding/json has it, names match in any case.
		i := len(field) - len(r.field)
		if i < 0 || !strings.EqualFold(field[i:], r.field) || i > 0 && field[i-1] != '.' {
			continue
		}
		return refuse(ReasonInvalid, field, fmt.Sprintf("%s, or leave it out for the default of %g", r.use, r.def), "0 is not a value that it can have")
	}
	return nil
}

// ExplicitZeros finds such zeros in a spec as it was written: what encoding/json makes of it in an
// any. field is its path; elements with a name are called by it.
func ExplicitZeros(field string, written any) []*Error {
	var errs []*Error
	switch x := written.(type) {
	case map[string]any:
		for _, key := range slices.Sorted(maps.Keys(x)) {
			switch strings.ToLower(key) {
			case "template", "environmentvariables", "changes": // hold names that are others'
			default:
				errs = append(errs, ExplicitZeros(field+"."+key, x[key])...)
			}
		}
	case []any:
		for i, v := range x {
			f := fmt.Sprintf("%s[%d]", field, i)
			if m, ok := v.(map[string]any); ok {
				if name, ok := m["name"].(string); ok {
					f = fmt.Sprintf("%s[%s]", field, name)
				}
			}
			errs = append(errs, ExplicitZeros(f, v)...)
		}
	case float64:
		if x != 0 {
			break
		}
		if e := ExplicitZero(field); e != nil {
			errs = append(errs, e)
		}
	}
	return errs
}
