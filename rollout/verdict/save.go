package verdict

import (
	"errors"
	"fmt"
	"hash/crc32"
	"math"
	"strconv"
	"strings"
)

// evidenceFormat names the layout of saved evidence and the mixtures that its sums
// belong to.
const evidenceFormat = "e1"

const evidenceFields = 1 + 2 + 4 + nWorse + nNotWorse + 1

// Save is the exact state as one line of text: format, r0, r1, requests and bad of the
// treatment and of the control, the sums, and a checksum. Restore gives back the same bits.
func (e Evidence) Save() string {
	b := make([]byte, 0, 400)
	b = append(b, evidenceFormat...)
	float := func(f float64) { b = strconv.AppendFloat(append(b, ' '), f, 'g', -1, 64) }
	float(e.r0)
	float(e.r1)
	for l := range e.requests {
		b = strconv.AppendInt(append(b, ' '), e.requests[l], 10)
		b = strconv.AppendInt(append(b, ' '), e.bad[l], 10)
	}
	for _, f := range e.worse {
		float(f)
	}
	for _, f := range e.notWorse {
		float(f)
	}
	return string(b) + " " + checksum(string(b))
}

func checksum(s string) string {
	return fmt.Sprintf("%08x", crc32.Checksum([]byte(s), crc32.MakeTable(crc32.Castagnoli)))
}

var errCorrupted = errors.New("it is corrupted")

// Restore reads what Save wrote. Anything else, down to one changed character, is an error.
func Restore(saved string) (Evidence, error) {
	e, err := restore(saved)
	if err != nil {
		return Evidence{}, fmt.Errorf("restore evidence: %w", err)
	}
	return e, nil
}

func restore(saved string) (Evidence, error) {
	var e Evidence
	f := strings.Split(saved, " ")
	if f[0] != evidenceFormat {
		return e, fmt.Errorf("format %.16q is not %q, the one of this build", f[0], evidenceFormat)
	}
	if len(f) != evidenceFields {
		return e, fmt.Errorf("%w: %d fields, not %d", errCorrupted, len(f), evidenceFields)
	}
	if body, sum := saved[:len(saved)-len(f[len(f)-1])-1], f[len(f)-1]; checksum(body) != sum {
		return e, fmt.Errorf("%w: its checksum is wrong", errCorrupted)
	}
	var errs []error
	next := 1
	float := func() float64 {
		v, err := strconv.ParseFloat(f[next], 64)
		errs = append(errs, err)
		next++
		return v
	}
	integer := func() int64 {
		v, err := strconv.ParseInt(f[next], 10, 64)
		errs = append(errs, err)
		next++
		return v
	}
	e.r0, e.r1 = float(), float()
	for l := range e.requests {
		e.requests[l], e.bad[l] = integer(), integer()
	}
	for j := range e.worse {
		e.worse[j] = float()
	}
	for j := range e.notWorse {
		e.notWorse[j] = float()
	}
	if err := errors.Join(errs...); err != nil {
		return Evidence{}, fmt.Errorf("%w: %w", errCorrupted, err)
	}
	if err := e.check(); err != nil {
		return Evidence{}, err
	}
	return e, nil
}

// check says why e is no evidence that Observe and Merge could have made.
func (e Evidence) check() error {
	if !(e.r0 == 0 && e.r1 == 0) && !(e.r0 >= 1 && e.r0 < e.r1 && e.r1 <= maxRatio) {
		return fmt.Errorf("%w: ratios r0 %g and r1 %g", errCorrupted, e.r0, e.r1)
	}
	for l := range e.requests {
		if n, k := e.requests[l], e.bad[l]; k < 0 || n < k {
			return fmt.Errorf("%w: %d bad events among %d requests of the %s", errCorrupted, k, n, Label(l))
		}
	}
	for _, sums := range [][]float64{e.worse[:], e.notWorse[:]} {
		for _, s := range sums {
			if math.IsNaN(s) || math.IsInf(s, 0) {
				return fmt.Errorf("%w: a sum of %g", errCorrupted, s)
			}
		}
	}
	return nil
}

// MarshalText writes what Save does, so that evidence is one string in JSON.
func (e Evidence) MarshalText() ([]byte, error) { return []byte(e.Save()), nil }

// UnmarshalText reads what Save wrote.
func (e *Evidence) UnmarshalText(b []byte) error {
	v, err := Restore(string(b))
	if err != nil {
		return err
	}
	*e = v
	return nil
}
