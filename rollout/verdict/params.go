package verdict

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"math"

	"github.com/sluice-dev/sluice/rollout"
)

// Params of a comparison. They are a strategy's, with the same meaning and bounds.
type Params struct {
	// Alpha bounds P(ever judging worse a treatment whose ratio of bad rates is at most R0).
	Alpha float64 `json:"alpha"`
	// Beta bounds P(ever judging fit for promotion a treatment whose ratio is at least
	// R1 and whose bad rate is at least MaxBadPercent). Each promotion rule runs at Beta/2.
	Beta float64 `json:"beta"`
	// R0 is the tolerated ratio of the treatment's bad rate to the control's, at least 1.
	R0 float64 `json:"r0"`
	// R1 is the ratio to be excluded before promotion, above R0.
	R1 float64 `json:"r1"`
	// MaxBadPercent is the bad rate, in per cent, below which a treatment is fit
	// for promotion whatever the control does.
	MaxBadPercent float64 `json:"maxBadPercent"`
}

// ParamsOf a strategy, with defaults for what it leaves out.
func ParamsOf(s rollout.Strategy) Params {
	s = s.Resolved()
	return Params{Alpha: s.Alpha, Beta: s.Beta, R0: s.R0, R1: s.R1, MaxBadPercent: *s.MaxBadPercent}
}

// Validate refuses parameters outside a strategy's bounds: alpha and beta from
// 1e-9 to 0.5, r0 and r1 from 1 to 1000 with r0 < r1, maxBadPercent above 0 and
// up to 100. The error joins one *rollout.Error per broken rule.
func (p Params) Validate() error {
	var errs []error
	add := func(field, hint, format string, args ...any) {
		errs = append(errs, &rollout.Error{Reason: rollout.ReasonInvalid, Field: field, Message: fmt.Sprintf(format, args...), Hint: hint})
	}
	inside := func(field string, v, lo, hi float64) bool {
		ok := v >= lo && v <= hi // false for NaN
		if !ok {
			add(field, fmt.Sprintf("use a number from %g to %g", lo, hi), "%g is not between %g and %g", v, lo, hi)
		}
		return ok
	}
	inside("alpha", p.Alpha, 1e-9, 0.5)
	inside("beta", p.Beta, 1e-9, 0.5)
	ok0, ok1 := inside("r0", p.R0, 1, maxRatio), inside("r1", p.R1, 1, maxRatio)
	if ok0 && ok1 && p.R1 <= p.R0 {
		add("r1", "use a ratio above r0; the defaults are r0 1 and r1 2", "r1 %g is not above r0 %g", p.R1, p.R0)
	}
	if !(p.MaxBadPercent > 0 && p.MaxBadPercent <= 100) {
		add("maxBadPercent", "use per cent above 0 and up to 100; 1 is the default", "%g is not above 0 and up to 100", p.MaxBadPercent)
	}
	return errors.Join(errs...)
}

const maxRatio = 1000

// Key names a comparison: evidence is only ever added up under one key.
type Key string

// KeyOf is a hash of the treatment's and the control's revision (rollout.Version's
// Revision), the parameters and the tests themselves: when any of them changes,
// evidence starts afresh.
func KeyOf(treatmentRevision, controlRevision string, p Params) Key {
	h := sha256.New()
	field := func(s string) {
		var n [8]byte
		binary.BigEndian.PutUint64(n[:], uint64(len(s)))
		h.Write(n[:])
		h.Write([]byte(s))
	}
	field(evidenceFormat)
	field(treatmentRevision)
	field(controlRevision)
	for _, f := range []float64{p.Alpha, p.Beta, p.R0, p.R1, p.MaxBadPercent} {
		var n [8]byte
		binary.BigEndian.PutUint64(n[:], math.Float64bits(f))
		h.Write(n[:])
	}
	return Key(hex.EncodeToString(h.Sum(nil)[:16]))
}
