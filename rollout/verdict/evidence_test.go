package verdict

import (
	"encoding/json"
	"math"
	"math/rand/v2"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/sluice-dev/sluice/rollout"
)

func defaults() Params { return ParamsOf(rollout.Strategy{}) }

// event is one completed request.
type event struct {
	label Label
	rho   float64
	bad   bool
}

func observe(p Params, events []event) Evidence {
	e := New(p)
	for _, x := range events {
		e.Observe(x.label, x.rho, x.bad)
	}
	return e
}

// bruteForce is Σ_j w_j Π_i P(label_i | r_j)/P(label_i | null) by plain multiplication.
func bruteForce(ratios, weights []float64, null float64, events []event) float64 {
	sum := 0.0
	for j, r := range ratios {
		prod := weights[j]
		for _, x := range events {
			if !x.bad || x.rho <= 0 || x.rho >= 1 {
				continue
			}
			pr, p0 := x.rho*r/(x.rho*r+1-x.rho), x.rho*null/(x.rho*null+1-x.rho)
			if x.label == Treatment {
				prod *= pr / p0
			} else {
				prod *= (1 - pr) / (1 - p0)
			}
		}
		sum += prod
	}
	return sum
}

func grids(p Params) (worse, worseW, fine, fineW []float64) {
	worse = []float64{1.25, 1.5, 2, 3, 5, 10, 30, 100}
	worseW = []float64{0.07, 0.15, 0.20, 0.18, 0.15, 0.12, 0.09, 0.04}
	for j := range worse {
		worse[j] *= p.R0
	}
	for _, x := range []float64{-1, -0.5, -0.25, 0, 0.2} {
		fine = append(fine, p.R0*math.Pow(p.R1/p.R0, x))
	}
	return worse, worseW, fine, []float64{0.12, 0.08, 0.20, 0.40, 0.20}
}

func near(a, b, tolerance float64) bool {
	return math.Abs(a-b) <= tolerance*(1+math.Abs(a)+math.Abs(b))
}

func TestEvidenceAgreesWithTheFormula(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := defaults()
		p.R0 = rapid.Float64Range(1, 3).Draw(t, "r0")
		p.R1 = p.R0 * rapid.Float64Range(1.1, 5).Draw(t, "r1/r0")
		events := rapid.SliceOfN(eventGen(), 0, 40).Draw(t, "events")
		e := observe(p, events)
		worse, worseW, fine, fineW := grids(p)
		if got, want := e.LogWorse(), math.Log(bruteForce(worse, worseW, p.R0, events)); !near(got, want, 1e-9) {
			t.Fatalf("worse: ln E is %v, the formula gives %v", got, want)
		}
		if got, want := e.LogNotWorse(), math.Log(bruteForce(fine, fineW, p.R1, events)); !near(got, want, 1e-9) {
			t.Fatalf("not worse: ln E is %v, the formula gives %v", got, want)
		}
	})
}

func eventGen() *rapid.Generator[event] {
	return rapid.Custom(func(t *rapid.T) event {
		rho := rapid.OneOf(rapid.Float64Range(0.001, 0.999), rapid.SampledFrom([]float64{0, 1, 0.01, 0.5})).Draw(t, "rho")
		label := Control
		if rho > 0 && (rho == 1 || rapid.Bool().Draw(t, "treatment")) {
			label = Treatment
		}
		return event{label, rho, rapid.Bool().Draw(t, "bad")}
	})
}

func TestDefaultGridOfNotWorse(t *testing.T) {
	_, _, fine, _ := grids(defaults())
	for j, want := range []float64{0.5, 0.7, 0.85, 1.0, 1.15} {
		if math.Abs(fine[j]-want) > 0.011 {
			t.Errorf("alternative %d is %.3f, not about %g", j, fine[j], want)
		}
	}
	for _, r := range [][2]float64{{1, 1.1}, {1, 3}, {2, 3}, {1, 1000}, {10, 12}} {
		_, _, fine, _ := grids(Params{R0: r[0], R1: r[1]})
		for _, f := range fine {
			if f >= r[1] {
				t.Errorf("r0 %g, r1 %g: the alternative %g is not below r1", r[0], r[1], f)
			}
		}
	}
}

// The mean of an e-value over all outcomes is 1 at the edge of its null, and at most
// 1 inside it. Here all outcomes of a few bad events under moving shares are enumerated.
func TestMeanUnderTheNullIsAtMostOne(t *testing.T) {
	p := defaults()
	p.R0, p.R1 = 1.3, 2.4
	rhos := []float64{0.01, 0.05, 0.05, 0.2, 0.5, 0.9, 0.01, 0.33, 0, 1}
	mean := func(ratio float64, log func(Evidence) float64) float64 {
		sum := 0.0
		for outcome := range 1 << len(rhos) {
			e, prob := New(p), 1.0
			for i, rho := range rhos {
				pt := rho * ratio / (rho*ratio + 1 - rho)
				if outcome>>i&1 == 1 {
					prob *= pt
					e.Observe(Treatment, rho, true)
				} else {
					prob *= 1 - pt
					e.Observe(Control, rho, true)
				}
			}
			sum += prob * math.Exp(log(e))
		}
		return sum
	}
	for _, ratio := range []float64{1.3, 1.2, 1, 0.3, 0} {
		got := mean(ratio, Evidence.LogWorse)
		if got > 1+1e-9 || (ratio == p.R0 && !near(got, 1, 1e-9)) {
			t.Errorf("worse: mean of E is %v at ratio %g", got, ratio)
		}
	}
	for _, ratio := range []float64{2.4, 2.5, 4, 50} {
		got := mean(ratio, Evidence.LogNotWorse)
		if got > 1+1e-9 || (ratio == p.R1 && !near(got, 1, 1e-9)) {
			t.Errorf("not worse: mean of E is %v at ratio %g", got, ratio)
		}
	}
	if got := mean(5, Evidence.LogWorse); got < 2 {
		t.Errorf("worse: mean of E is only %v at ratio 5", got)
	}
	if got := mean(0.7, Evidence.LogNotWorse); got < 1.05 {
		t.Errorf("not worse: mean of E is only %v at ratio 0.7", got)
	}
}

func TestSplitStreamsMergeToTheSame(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		events := rapid.SliceOfN(eventGen(), 0, 200).Draw(t, "events")
		parts := rapid.IntRange(1, 5).Draw(t, "routers")
		p := defaults()
		whole := observe(p, events)
		split := make([]Evidence, parts)
		for i := range split {
			split[i] = New(p)
		}
		for _, x := range events {
			split[rapid.IntRange(0, parts-1).Draw(t, "router")].Observe(x.label, x.rho, x.bad)
		}
		var forwards, backwards Evidence
		for i := range split {
			if err := forwards.Merge(split[i]); err != nil {
				t.Fatal(err)
			}
			if err := backwards.Merge(split[parts-1-i]); err != nil {
				t.Fatal(err)
			}
		}
		// (a+b)+c against a+(b+c)
		nested := split[parts-1]
		for i := parts - 2; i >= 0; i-- {
			left := split[i]
			if err := left.Merge(nested); err != nil {
				t.Fatal(err)
			}
			nested = left
		}
		for _, e := range []Evidence{forwards, backwards, nested} {
			same(t, whole, e)
		}
	})
}

func same(t interface {
	Helper()
	Fatalf(string, ...any)
}, a, b Evidence) {
	t.Helper()
	if a.requests != b.requests || a.bad != b.bad || a.r0 != b.r0 || a.r1 != b.r1 {
		t.Fatalf("counts differ: %+v and %+v", a, b)
	}
	for j := range a.worse {
		if !near(a.worse[j], b.worse[j], 1e-9) {
			t.Fatalf("worse sums differ: %v and %v", a.worse, b.worse)
		}
	}
	for j := range a.notWorse {
		if !near(a.notWorse[j], b.notWorse[j], 1e-9) {
			t.Fatalf("not-worse sums differ: %v and %v", a.notWorse, b.notWorse)
		}
	}
}

func TestMergeRefusesOtherRatios(t *testing.T) {
	p, q := defaults(), defaults()
	q.R1 = 3
	a, b := observe(p, []event{{Treatment, 0.1, true}}), New(q)
	before := a
	if err := a.Merge(b); err == nil || !strings.Contains(err.Error(), "ratios differ") {
		t.Errorf("merged evidence of other ratios: %v", err)
	}
	if a != before {
		t.Error("a refused merge changed the evidence")
	}
	if err := a.Merge(Evidence{}); err != nil || a != before {
		t.Errorf("merging nothing: %v", err)
	}
	var none Evidence
	if err := none.Merge(a); err != nil || none != a {
		t.Errorf("merging into nothing: %v", err)
	}
}

func TestOddShares(t *testing.T) {
	for _, rho := range []float64{0, 1, -1, 2, math.NaN(), math.Inf(1), math.Inf(-1)} {
		for _, l := range []Label{Treatment, Control} {
			e := New(defaults())
			e.Observe(l, rho, true)
			e.Observe(l, rho, false)
			if e.LogWorse() != 0 && !near(e.LogWorse(), 0, 1e-12) || !near(e.LogNotWorse(), 0, 1e-12) {
				t.Errorf("rho %g, %s: a bad event that compares nothing moved the evidence", rho, l)
			}
			if e.Requests(l) != 2 || e.Bad(l) != 1 {
				t.Errorf("rho %g, %s: counted %d of %d", rho, l, e.Bad(l), e.Requests(l))
			}
		}
	}
	e := New(defaults())
	e.Observe(Label(7), 0.5, true)
	e.ObserveGood(Label(7), 1)
	e.ObserveGood(Treatment, -1)
	if e != New(defaults()) {
		t.Error("an unknown label or a negative number was counted")
	}
}

func TestSumsStayFinite(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := defaults()
		p.R0 = rapid.Float64Range(1, 999).Draw(t, "r0")
		p.R1 = min(1000, p.R0*(1+rapid.Float64Range(1e-9, 1).Draw(t, "above")))
		e := New(p)
		for range rapid.IntRange(0, 50).Draw(t, "n") {
			e.Observe(Label(rapid.IntRange(0, 1).Draw(t, "label")), rapid.Float64().Draw(t, "rho"), rapid.Bool().Draw(t, "bad"))
		}
		if err := e.check(); err != nil {
			t.Fatal(err)
		}
		d := Judge(p, e)
		for _, f := range []float64{d.LogE, d.LogEFine, d.LogEBound, d.BadUpper} {
			if math.IsNaN(f) || math.IsInf(f, 0) {
				t.Fatalf("%+v", d)
			}
		}
		if _, err := json.Marshal(d); err != nil {
			t.Fatal(err)
		}
	})
}

func TestHugeSumsDoNotOverflow(t *testing.T) {
	e := New(defaults())
	for range 10_000 {
		e.Observe(Treatment, 0.01, true)
	}
	if d := Judge(defaults(), e); d.Verdict != rollout.VerdictWorse || math.IsInf(d.LogE, 0) || d.LogE < 30_000 {
		t.Errorf("ten thousand bad treatments at 1 per cent: %+v", d)
	}
}

func TestSaveRestoresTheBits(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := defaults()
		p.R0 = rapid.Float64Range(1, 10).Draw(t, "r0")
		p.R1 = p.R0 + rapid.Float64Range(0.01, 10).Draw(t, "r1-r0")
		e := observe(p, rapid.SliceOfN(eventGen(), 0, 100).Draw(t, "events"))
		saved := e.Save()
		back, err := Restore(saved)
		if err != nil {
			t.Fatal(err)
		}
		if back != e || back.Save() != saved {
			t.Fatalf("%+v came back as %+v", e, back)
		}
		b, err := json.Marshal(map[string]Evidence{"x": e})
		if err != nil {
			t.Fatal(err)
		}
		var m map[string]Evidence
		if err := json.Unmarshal(b, &m); err != nil || m["x"] != e {
			t.Fatalf("through JSON: %v, %+v", err, m)
		}
	})
	if back, err := Restore(Evidence{}.Save()); err != nil || !back.None() {
		t.Errorf("no evidence came back as %+v, %v", back, err)
	}
}

func TestRestoreRefusesEveryDamage(t *testing.T) {
	e := observe(defaults(), []event{{Treatment, 0.1, true}, {Control, 0.1, true}, {Control, 0.1, false}})
	saved := e.Save()
	for i := range saved {
		for _, c := range []byte{'0', '9', ' ', '-', 'x'} {
			if saved[i] == c {
				continue
			}
			if _, err := Restore(saved[:i] + string(c) + saved[i+1:]); err == nil {
				t.Fatalf("byte %d changed to %q went unnoticed", i, c)
			}
		}
		if _, err := Restore(saved[:i]); err == nil {
			t.Fatalf("cut at %d went unnoticed", i)
		}
	}
	sealed := func(body string) string { return body + " " + checksum(body) }
	for name, s := range map[string]string{
		"empty":           "",
		"longer":          saved + " 0",
		"another version": sealed(strings.Replace(saved[:strings.LastIndex(saved, " ")], "e1", "e2", 1)),
		"more bad":        sealed("e1 1 2 1 2 0 0" + strings.Repeat(" 0", nWorse+nNotWorse)),
		"negative":        sealed("e1 1 2 1 -1 0 0" + strings.Repeat(" 0", nWorse+nNotWorse)),
		"ratios":          sealed("e1 2 1 0 0 0 0" + strings.Repeat(" 0", nWorse+nNotWorse)),
		"NaN":             sealed("e1 1 2 0 0 0 0" + strings.Repeat(" NaN", nWorse+nNotWorse)),
		"infinite":        sealed("e1 1 2 0 0 0 0" + strings.Repeat(" -Inf", nWorse+nNotWorse)),
		"no number":       sealed("e1 1 2 0 0 0 0" + strings.Repeat(" x", nWorse+nNotWorse)),
	} {
		if got, err := Restore(s); err == nil || got != (Evidence{}) {
			t.Errorf("%s: restored %+v", name, got)
		}
	}
}

// simulate feeds requests one by one and says whether log ever reached threshold.
func simulate(g *rand.Rand, p Params, pc, pt float64, rhos []float64, each int, log func(Evidence) float64, threshold float64) bool {
	e := New(p)
	for _, rho := range rhos {
		for range each {
			label, rate := Control, pc
			if g.Float64() < rho {
				label, rate = Treatment, pt
			}
			bad := g.Float64() < rate
			e.Observe(label, rho, bad)
			if bad && log(e) >= threshold {
				return true
			}
		}
	}
	return false
}

func TestErrorsAreRareHoweverOftenOneLooks(t *testing.T) {
	p := defaults()
	rhos := []float64{0.01, 0.05, 0.2, 0.5}
	const runs, level = 400, 0.05
	for name, c := range map[string]struct {
		pc, pt float64
		log    func(Evidence) float64
		atMost int
	}{
		"equal, rolled back": {0.05, 0.05, Evidence.LogWorse, 36}, // level 20 of 400, +3.7σ
		"r1, promoted":       {0.05, 0.10, Evidence.LogNotWorse, 36},
	} {
		g := rand.New(rand.NewPCG(7, 7))
		wrong := 0
		for range runs {
			if simulate(g, p, c.pc, c.pt, rhos, 4000, c.log, -math.Log(level)) {
				wrong++
			}
		}
		if wrong > c.atMost {
			t.Errorf("%s: %d of %d runs, promised %g", name, wrong, runs, level)
		}
	}
	g := rand.New(rand.NewPCG(8, 8))
	found := 0
	for range 100 {
		if simulate(g, p, 0.05, 0.25, rhos, 4000, Evidence.LogWorse, -math.Log(0.01)) {
			found++
		}
	}
	if found < 99 {
		t.Errorf("five times as bad was found in only %d of 100 runs", found)
	}
}

func TestObserveAllocatesNothing(t *testing.T) {
	e := New(defaults())
	if n := testing.AllocsPerRun(100, func() {
		e.Observe(Treatment, 0.1, true)
		e.Observe(Control, 0.1, false)
	}); n != 0 {
		t.Errorf("%v allocations per observation", n)
	}
}

func BenchmarkObserveGood(b *testing.B) {
	e := New(defaults())
	for b.Loop() {
		e.Observe(Control, 0.1, false)
	}
}

func BenchmarkObserveBad(b *testing.B) {
	e := New(defaults())
	for b.Loop() {
		e.Observe(Control, 0.1, true)
	}
}

func BenchmarkJudge(b *testing.B) {
	p := defaults()
	e := observe(p, []event{{Treatment, 0.1, true}, {Control, 0.1, true}})
	e.ObserveGood(Treatment, 1000)
	for b.Loop() {
		Judge(p, e)
	}
}

func BenchmarkSave(b *testing.B) {
	e := observe(defaults(), []event{{Treatment, 0.1, true}, {Control, 0.1, true}})
	for b.Loop() {
		_ = e.Save()
	}
}
