package verdict

import (
	"encoding/json"
	"errors"
	"math"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/sluice-dev/sluice/rollout"
)

func TestParamsAreAStrategys(t *testing.T) {
	got := defaults()
	want := Params{Alpha: 0.01, Beta: 0.05, R0: 1, R1: 2, MaxBadPercent: 1}
	if got != want {
		t.Errorf("the defaults are %+v, not %+v", got, want)
	}
	if err := got.Validate(); err != nil {
		t.Error(err)
	}
	for field, p := range map[string]Params{
		"alpha":         {0, 0.05, 1, 2, 1},
		"beta":          {0.01, 0.6, 1, 2, 1},
		"r0":            {0.01, 0.05, 0.9, 2, 1},
		"r1":            {0.01, 0.05, 2, 2, 1},
		"maxBadPercent": {0.01, 0.05, 1, 2, math.NaN()},
	} {
		err := p.Validate()
		var e *rollout.Error
		if !errors.As(err, &e) || e.Field != field || e.Hint == "" || e.Reason != rollout.ReasonInvalid {
			t.Errorf("%+v: %v", p, err)
		}
	}
	for _, f := range []float64{math.NaN(), math.Inf(1), math.Inf(-1), -1} {
		if (Params{f, f, f, f, f}).Validate() == nil {
			t.Errorf("all %g was accepted", f)
		}
	}
}

func TestKeyChangesWithEverything(t *testing.T) {
	p := defaults()
	seen := map[Key]string{}
	add := func(name string, k Key) {
		if was, ok := seen[k]; ok {
			t.Errorf("%s and %s have the same key", name, was)
		}
		seen[k] = name
	}
	add("plain", KeyOf("a", "b", p))
	add("swapped", KeyOf("b", "a", p))
	add("shifted", KeyOf("ab", "", p))
	add("shifted the other way", KeyOf("", "ab", p))
	for name, change := range map[string]func(*Params){
		"alpha": func(p *Params) { p.Alpha = 0.02 }, "beta": func(p *Params) { p.Beta = 0.02 },
		"r0": func(p *Params) { p.R0 = 1.1 }, "r1": func(p *Params) { p.R1 = 3 }, "maxBad": func(p *Params) { p.MaxBadPercent = 2 },
	} {
		q := p
		change(&q)
		add(name, KeyOf("a", "b", q))
	}
	same := p
	if k := KeyOf("a", "b", same); seen[k] != "plain" {
		t.Error("a key is not a function of its parts")
	}
}

// The bound's e-value has mean 1 at its limit, for every number of requests.
func TestBoundIsFairAtItsLimit(t *testing.T) {
	for _, m := range []float64{0.01, 0.2, 0.9} {
		for _, n := range []int64{1, 2, 10, 200} {
			mean := 0.0
			for k := range n + 1 {
				lg := func(x int64) float64 { v, _ := math.Lgamma(float64(x) + 1); return v }
				prob := math.Exp(lg(n) - lg(k) - lg(n-k) + float64(k)*math.Log(m) + float64(n-k)*math.Log1p(-m))
				mean += prob * math.Exp(logBound(m, n, k))
			}
			if !near(mean, 1, 1e-9) {
				t.Errorf("limit %g, %d requests: the mean of E is %v", m, n, mean)
			}
		}
	}
}

func TestBoundAgreesWithTheFormula(t *testing.T) {
	for _, c := range []struct {
		m    float64
		n, k int64
	}{{0.01, 100, 0}, {0.01, 500, 2}, {0.05, 40, 39}, {0.5, 9, 9}} {
		want := 0.0
		for _, a := range boundMix {
			want += math.Exp(a.logWeight) * math.Pow(a.at, float64(c.k)) * math.Pow((1-a.at*c.m)/(1-c.m), float64(c.n-c.k))
		}
		if got := logBound(c.m, c.n, c.k); !near(got, math.Log(want), 1e-9) {
			t.Errorf("%+v: %v, not %v", c, got, math.Log(want))
		}
	}
}

func TestUpperBound(t *testing.T) {
	const level = 0.025
	e := New(defaults())
	if got := e.UpperBound(level); got != 1 {
		t.Errorf("without requests the bound is %v", got)
	}
	last := 1.0
	for n := range int64(2000) {
		e.ObserveGood(Treatment, 1)
		u := e.UpperBound(level)
		if u > last {
			t.Fatalf("a good request raised the bound from %v to %v", last, u)
		}
		if (u < 0.01) != (e.LogBounded(0.01) > -math.Log(level)) {
			t.Fatalf("after %d requests the bound is %v, but ln E is %v", n+1, u, e.LogBounded(0.01))
		}
		last = u
	}
	for _, c := range []struct {
		n, k   int64
		lo, hi float64
	}{{1000, 5, 0.012, 0.018}, {10_000, 100, 0.0125, 0.0150}, {1_000_000, 50_000, 0.0503, 0.0520}, {10, 10, 1, 1}} {
		if u := upperBound(level, c.n, c.k); u < c.lo || u > c.hi {
			t.Errorf("%d of %d: the bound %v is not between %v and %v", c.k, c.n, u, c.lo, c.hi)
		}
	}
}

func TestUpperBoundHoldsAtAllTimesTogether(t *testing.T) {
	const runs, level, p = 300, 0.05, 0.02
	g := rand.New(rand.NewPCG(1, 1))
	wrong := 0
	for range runs {
		e := New(defaults())
		for range 5000 {
			e.Observe(Treatment, 0.1, g.Float64() < p)
			if e.LogBounded(p) >= -math.Log(level) { // then the bound is at most p
				wrong++
				break
			}
		}
	}
	if wrong > 29 { // 15 expected at most, +3.7σ
		t.Errorf("the bound failed in %d of %d runs, promised %g", wrong, runs, level)
	}
}

func TestPerfectPairIsPromotedByTheBound(t *testing.T) {
	p := defaults()
	e := New(p)
	e.ObserveGood(Control, 40_000)
	floor := int64(math.Ceil(math.Log(40) / -math.Log(0.99)))
	var at int64
	for at = range int64(1000) {
		d := Judge(p, e)
		if d.Rule == rollout.ReasonBounded {
			if d.Verdict != rollout.VerdictNotWorse || d.BadUpper >= 0.01 {
				t.Errorf("%+v", d)
			}
			break
		}
		if d.Verdict != rollout.VerdictUndecided {
			t.Fatalf("%+v", d)
		}
		e.Observe(Treatment, 0.01, false)
	}
	if at < floor || at > floor*115/100 {
		t.Errorf("bounded after %d requests; the floor is %d", at, floor)
	}
}

func TestJudgeNamesTheRule(t *testing.T) {
	p := defaults()
	feed := func(rho float64, nt, kt, nc, kc int64) Evidence {
		e := New(p)
		for range kt {
			e.Observe(Treatment, rho, true)
		}
		for range kc {
			e.Observe(Control, rho, true)
		}
		e.ObserveGood(Treatment, nt-kt)
		e.ObserveGood(Control, nc-kc)
		return e
	}
	other := defaults()
	other.R1 = 3
	both := feed(0.5, 10_000, 12, 10_000, 0) // worse than a control that never fails, yet below 1 %
	damaged := New(p)
	damaged.worse[0] = math.NaN()
	for name, c := range map[string]struct {
		p       Params
		e       Evidence
		verdict rollout.Verdict
		rule    rollout.Reason
		says    string
	}{
		"nothing yet":      {p, New(p), rollout.VerdictUndecided, rollout.ReasonUndecided, "undecided: 0 of 0 requests bad against 0 of 0 for the control"},
		"many bad":         {p, feed(0.1, 410, 12, 3_700, 9), rollout.VerdictWorse, rollout.ReasonWorse, "worse: 12 of 410 requests bad against 9 of 3,700 for the control: likelihood ratio "},
		"equal":            {p, feed(0.05, 3_000, 30, 57_000, 570), rollout.VerdictNotWorse, rollout.ReasonNotWorse, "not worse: 30 of 3,000 requests bad"},
		"perfect":          {p, feed(0.05, 500, 0, 9_500, 0), rollout.VerdictNotWorse, rollout.ReasonBounded, "% at confidence 97.5 %; below 1 % promotes"},
		"no control event": {p, feed(0.05, 50, 1, 950, 0), rollout.VerdictUndecided, rollout.ReasonUndecided, "100:1 rolls back"},
		"only the control": {p, feed(0.05, 0, 0, 950, 3), rollout.VerdictUndecided, rollout.ReasonUndecided, "0 of 0 requests bad against 3 of 950"},
		"worse wins":       {p, both, rollout.VerdictWorse, rollout.ReasonWorse, "worse: 12 of 10,000"},
		"no evidence":      {p, Evidence{}, rollout.VerdictUnknown, rollout.ReasonUnknown, "unknown: no router has reported evidence"},
		"other ratios":     {other, New(p), rollout.VerdictUnknown, rollout.ReasonUnknown, "unknown: the evidence was taken with other ratios"},
		"no parameters":    {Params{}, New(p), rollout.VerdictUnknown, rollout.ReasonUnknown, "unknown: its parameters are invalid"},
		"damaged":          {p, damaged, rollout.VerdictUnknown, rollout.ReasonUnknown, "unknown: the evidence cannot be used"},
	} {
		t.Run(name, func(t *testing.T) {
			d := Judge(c.p, c.e)
			if d.Verdict != c.verdict || d.Rule != c.rule {
				t.Errorf("%s by %s: %+v", d.Verdict, d.Rule, d)
			}
			s := d.Sentence()
			if !strings.Contains(s, c.says) {
				t.Errorf("the sentence is %q, without %q", s, c.says)
			}
			if strings.Contains(s, "\n") {
				t.Errorf("not one line: %q", s)
			}
			j := d.Judgement()
			if j.Sentence != s || j.Rule != c.rule || j.Verdict != c.verdict || j.Requests != c.e.Requests(Treatment) {
				t.Errorf("as a judgement: %+v", j)
			}
		})
	}
	if d := Judge(p, both); d.LogEBound < p.promoteAt() {
		t.Errorf("the bound should hold as well: %+v", d)
	}
}

func TestPromotionRunsAtHalfBeta(t *testing.T) {
	p := defaults()
	e := New(p)
	for e.LogNotWorse() < math.Log(1/p.Beta)+1e-9 {
		e.Observe(Control, 0.5, true)
	}
	if e.LogNotWorse() >= math.Log(2/p.Beta) {
		t.Fatal("one event took the evidence over both thresholds")
	}
	if d := Judge(p, e); d.Verdict != rollout.VerdictUndecided {
		t.Errorf("promoted at beta: %+v", d)
	}
	for e.LogNotWorse() < math.Log(2/p.Beta) {
		e.Observe(Control, 0.5, true)
	}
	if d := Judge(p, e); d.Rule != rollout.ReasonNotWorse {
		t.Errorf("not promoted at beta/2: %+v", d)
	}
}

func TestLimitOfHundredPercent(t *testing.T) {
	p := defaults()
	p.MaxBadPercent = 100
	e := New(p)
	for range 50 {
		e.Observe(Treatment, 1, true)
	}
	if d := Judge(p, e); d.Verdict != rollout.VerdictUndecided || d.BadUpper != 1 {
		t.Errorf("all bad: %+v", d)
	}
	if _, err := json.Marshal(Judge(p, e)); err != nil {
		t.Error(err)
	}
}

func TestDecisionInJSONHasNumbersAsStrings(t *testing.T) {
	p := defaults()
	e := observe(p, []event{{Treatment, 0.1, true}, {Control, 0.1, true}})
	d := Judge(p, e)
	b, err := json.Marshal(d)
	if err != nil {
		t.Fatal(err)
	}
	var m map[string]any
	if err := json.Unmarshal(b, &m); err != nil {
		t.Fatal(err)
	}
	for _, k := range []string{"logE", "logEFine", "logEBound", "badUpper", "requests", "controlBad", "rule", "verdict"} {
		if _, ok := m[k].(string); !ok {
			t.Errorf("%s is %v", k, m[k])
		}
	}
	var back Decision
	if err := json.Unmarshal(b, &back); err != nil || back != d {
		t.Errorf("%v: %+v came back as %+v", err, d, back)
	}
	s := d.Status("pr-1", "k")
	if s.Treatment != "pr-1" || s.Key != "k" || s.Requests != "1" || s.Bad != "1" || s.ControlBad != "1" || s.BadUpperBound != "100" {
		t.Errorf("as a status: %+v", s)
	}
}

func TestRatiosNeverReadAsReached(t *testing.T) {
	for log, want := range map[float64]string{
		0: "1:1", math.Log(99.99): "99:1", math.Log(100): "100:1", -math.Log(3.21): "1:3.3", math.Log(2.57): "2.5:1",
		math.Log(12345): "12,345:1", -math.Log(4321): "1:4,321", 100: "10^43:1", -1000: "1:10^435",
	} {
		if got := ratio(log); got != want {
			t.Errorf("%g reads as %s, not %s", log, got, want)
		}
	}
	for n, want := range map[int64]string{0: "0", 999: "999", 1000: "1,000", 1234567: "1,234,567", -1234: "-1,234", -123: "-123"} {
		if got := group(n); got != want {
			t.Errorf("%d reads as %s, not %s", n, got, want)
		}
	}
}

// TestRestored: what the status shows says the same sentence as the decision did.
func TestRestored(t *testing.T) {
	p := ParamsOf(rollout.Strategy{})
	for _, d := range []Decision{
		{Verdict: rollout.VerdictWorse, Rule: rollout.ReasonWorse, LogE: 5.83, LogEFine: -3, BadUpper: 0.05, Requests: 1180, Bad: 41, ControlRequests: 10620, ControlBad: 31, Params: p},
		{Verdict: rollout.VerdictNotWorse, Rule: rollout.ReasonNotWorse, LogE: -1, LogEFine: p.promoteAt(), BadUpper: 0.012, Requests: 5, Params: p},
		{Verdict: rollout.VerdictNotWorse, Rule: rollout.ReasonBounded, LogE: -1, LogEFine: 1, BadUpper: 0.0071, Requests: 5000, Params: p},
		{Verdict: rollout.VerdictUndecided, Rule: rollout.ReasonUndecided, LogE: 0.4, LogEFine: 1, BadUpper: 0.2, Requests: 50, Params: p},
	} {
		got, err := Restored(d.Status("v", "k"), p)
		if err != nil || got.Rule != d.Rule || got.Sentence() != d.Sentence() {
			t.Errorf("%s: %v\n got %s\nwant %s", d.Rule, err, got.Sentence(), d.Sentence())
		}
	}
	got, err := Restored(Decision{Verdict: rollout.VerdictUnknown, Params: p}.Status("v", "k"), p)
	if err != nil || got.Sentence() != "unknown: the evidence or its source is unavailable" {
		t.Errorf("%s, %v", got.Sentence(), err)
	}
	if _, err := Restored(rollout.EvidenceStatus{Treatment: "v", Requests: "many"}, p); err == nil {
		t.Error("no numbers were read")
	}
}
