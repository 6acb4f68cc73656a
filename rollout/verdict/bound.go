package verdict

import "math"

// boundMix: alternatives as multiples c < 1 of the limit m. A discrete mixture is as
// valid as a Beta one and needs no incomplete Beta function; with points scaled by m the
// e-value grows with m, so that limit and upper bound are two readings of one function.
// The weight at 0 decides how soon a treatment that never fails is bounded: 408 requests for
// m = 1 % at level 0.025, where no test can do with fewer than 368.
var boundMix = mixture(
	[2]float64{0, 0.40}, [2]float64{0.03, 0.06}, [2]float64{0.07, 0.10}, [2]float64{0.13, 0.11}, [2]float64{0.22, 0.09},
	[2]float64{0.33, 0.07}, [2]float64{0.45, 0.05}, [2]float64{0.57, 0.04}, [2]float64{0.68, 0.03}, [2]float64{0.77, 0.02},
	[2]float64{0.85, 0.012}, [2]float64{0.91, 0.008}, [2]float64{0.95, 0.005}, [2]float64{0.98, 0.005},
)

// certain stands for a limit of 100 %: a bad rate above it is not told from one of 1.
const certain = 1 - 1e-9

// logBound is ln Σ_c w_c·c^k·((1−cm)/(1−m))^(n−k), the mixed likelihood ratio of
// rates cm < m against m after k bad among n requests.
func logBound(m float64, n, k int64) float64 {
	m = min(m, certain)
	good := float64(n - k)
	null := math.Log1p(-m)
	var s [32]float64
	terms := s[:len(boundMix)]
	for j, a := range boundMix {
		terms[j] = good * (math.Log1p(-a.at*m) - null)
		if k > 0 {
			terms[j] += float64(k) * math.Log(a.at) // −Inf at 0: refuted
		}
	}
	return logMix(boundMix, terms)
}

// upperBound is the root in m of logBound = ln(1/level), by bisection: logBound rises
// with m and is below 0 at k/n, the likelihood's maximum. It errs upwards.
func upperBound(level float64, n, k int64) float64 {
	threshold := -math.Log(level)
	if n <= 0 || logBound(certain, n, k) < threshold {
		return 1
	}
	lo, hi := float64(k)/float64(n), certain
	for range 200 {
		mid := lo + (hi-lo)/2
		if mid <= lo || mid >= hi || hi-lo <= 1e-12*hi {
			break
		}
		if logBound(mid, n, k) >= threshold {
			hi = mid
		} else {
			lo = mid
		}
	}
	return hi
}
