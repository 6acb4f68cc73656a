package rollout

import (
	"errors"
	"fmt"
	"math/big"
	"regexp"
	"strconv"
	"strings"
)

// Percent is a share of an endpoint's scoring traffic: an integer count of
// 0.001 %, so that sums are exact. On the wire it is a JSON number with at most
// three decimals.
//
// Numbers are floats to the API server; k/1000 rounds to the float that the decimal k/1000 is read as, so the comparison is exact.
//
// +kubebuilder:validation:Type=number
// +kubebuilder:validation:XValidation:rule="self >= 0.0 && self <= 100.0 && double(int(self * 1000.0 + 0.5)) / 1000.0 == self",message="not a share; write a number from 0 to 100 with at most three decimals, such as 12.5 [percent_invalid]"
type Percent int32

// The two ends of the scale, and one per cent.
const (
	Zero       Percent = 0
	OnePercent Percent = 1000
	Full       Percent = 100 * OnePercent
)

// decimal is a JSON-like decimal number: no hexadecimal, underscores or words.
var decimal = regexp.MustCompile(`^[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?$`)

// zero is a number whose digits before any exponent are all zero.
var zero = regexp.MustCompile(`^[-+]?[0.]+([eE]|$)`)

var (
	errPercentNumber   = errors.New("is not a number")
	errPercentRange    = errors.New("is not between 0 and 100")
	errPercentDecimals = errors.New("has more than three decimals")
)

// ParsePercent reads a decimal number of per cent between 0 and 100 with at most
// three decimals ("12.5", "1e1"). The error says which of the three it broke and
// quotes the input.
func ParsePercent(s string) (Percent, error) {
	fail := func(cause error) (Percent, error) {
		return 0, fmt.Errorf("%q %w", s, cause)
	}
	trimmed := strings.TrimSuffix(strings.TrimSpace(s), "%")
	// ParseFloat first: it bounds what big.Rat would otherwise expand, such as 1e999999999.
	if !decimal.MatchString(trimmed) {
		return fail(errPercentNumber)
	}
	f, err := strconv.ParseFloat(trimmed, 64)
	if err != nil && !errors.Is(err, strconv.ErrRange) {
		return fail(errPercentNumber)
	}
	if f < 0 || f > 100 {
		return fail(errPercentRange)
	}
	if len(trimmed) > 64 || (f < 1e-9 && !zero.MatchString(trimmed)) {
		return fail(errPercentDecimals)
	}
	r, ok := new(big.Rat).SetString(trimmed)
	if !ok {
		return fail(errPercentNumber)
	}
	r.Mul(r, big.NewRat(int64(OnePercent), 1))
	if !r.IsInt() {
		return fail(errPercentDecimals)
	}
	return Percent(r.Num().Int64()), nil
}

// String gives the shortest decimal form without a sign for per cent: "12.5".
func (p Percent) String() string {
	sign := ""
	if p < 0 {
		sign, p = "-", -p
	}
	whole, frac := p/OnePercent, p%OnePercent
	if frac == 0 {
		return sign + strconv.Itoa(int(whole))
	}
	return sign + strconv.Itoa(int(whole)) + "." + strings.TrimRight(fmt.Sprintf("%03d", frac), "0")
}

// Fraction is p as a number between 0 and 1.
func (p Percent) Fraction() float64 { return float64(p) / float64(Full) }

// MarshalJSON writes the decimal form.
func (p Percent) MarshalJSON() ([]byte, error) { return []byte(p.String()), nil }

// UnmarshalJSON reads a JSON number as ParsePercent does; strings are refused.
func (p *Percent) UnmarshalJSON(b []byte) error {
	if string(b) == "null" {
		return nil
	}
	if len(b) == 0 || b[0] == '"' {
		return fmt.Errorf("%s %w (write it without quotes)", b, errPercentNumber)
	}
	v, err := ParsePercent(string(b))
	if err != nil {
		return err
	}
	*p = v
	return nil
}
