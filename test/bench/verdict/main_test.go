package main

import (
	"bytes"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/sluice-dev/sluice/rollout"
	"github.com/sluice-dev/sluice/rollout/verdict"
)

func newBench(runs, workers int) *bench {
	return &bench{params: verdict.ParamsOf(rollout.Strategy{}), seed: 1, runs: runs, workers: workers}
}

func TestReportDoesNotDependOnTheWorkers(t *testing.T) {
	var one, two bytes.Buffer
	if err := report(&one, newBench(10, 1)); err != nil {
		t.Fatal(err)
	}
	if err := report(&two, newBench(10, 3)); err != nil {
		t.Fatal(err)
	}
	cut := func(s string) string { return s[:strings.LastIndex(s, "\n\n")] } // the time taken
	if cut(one.String()) != cut(two.String()) {
		t.Errorf("with one worker:\n%s\nwith three:\n%s", one.String(), two.String())
	}
}

// The simulation leaps over good requests; here every request is drawn on its own.
func TestLeapsAreExact(t *testing.T) {
	b := newBench(1500, 2)
	s := scenario{control: 0.05, treatment: 0.05 * 5, ramp: []phase{{0.1, 5}, {0.3, forever}}, horizon: 1000}
	leaps := b.all(s, worse1)
	g := rand.New(rand.NewPCG(2, 2))
	plain := make([]result, b.runs)
	for i := range plain {
		e := verdict.New(b.params)
		n := int64(0)
		for e.LogWorse() < 4.605170185988091 {
			rho, label, rate := 0.1, verdict.Control, s.control
			if n >= 5 {
				rho = 0.3
			}
			if g.Float64() < rho {
				label, rate = verdict.Treatment, s.treatment
				n++
			}
			e.Observe(label, rho, g.Float64() < rate)
		}
		plain[i].at[worse1] = n
	}
	for _, q := range []float64{0.25, 0.5, 0.75, 0.9} {
		a, b := quantile(leaps, worse1, q), quantile(plain, worse1, q)
		if d := float64(a-b) / float64(b); d > 0.12 || d < -0.12 {
			t.Errorf("quantile %g: %d requests with leaps, %d without", q, a, b)
		}
	}
}

func TestPromisesAreKept(t *testing.T) {
	b := newBench(300, 2)
	equal := scenario{control: 0.02, treatment: 0.02, ramp: ramp(), horizon: 10_000}
	if f := share(b.all(equal, worse5), worse5); f > 0.05+0.045 { // +3.6σ
		t.Errorf("an equal treatment was rolled back in %.3f of the runs", f)
	}
	edge := scenario{control: 0.005, treatment: 0.01, ramp: ramp(), horizon: 10_000}
	if f := share(b.all(edge, fine25, bound25), fine25, bound25); f > 0.05+0.045 {
		t.Errorf("a treatment at r1 and at maxBadPercent was promoted in %.3f of the runs", f)
	}
	perfect := scenario{ramp: ramp(), horizon: 1_000}
	if f := share(b.all(perfect, bound25), bound25); f != 1 {
		t.Errorf("a perfect pair was promoted in %.3f of the runs", f)
	}
}
