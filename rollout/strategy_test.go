package rollout_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sluice-dev/sluice/rollout"
)

// ramp drives the strategy as the control role does: plan, apply, look again.
type ramp struct {
	driver
	now  time.Time
	view rollout.View
}

func newRamp(t *testing.T, s rollout.Strategy) *ramp {
	r := &ramp{driver: driver{t: t, e: endpoint()}, now: start.Add(time.Hour), view: rollout.View{Judgements: map[string]rollout.Judgement{}}}
	r.do(rollout.Deploy{Version: version("a", 1)})
	r.do(rollout.Deploy{Version: version("b", 2), Strategy: &s})
	r.do(rollout.Update{Version: "b", Type: role(rollout.Treatment)})
	r.ready(1, "a", "b")
	return r
}

func (r *ramp) judge(name string, v rollout.Verdict, rule rollout.Reason, requests int64) {
	r.view.Judgements[name] = rollout.Judgement{Verdict: v, Rule: rule, Requests: requests, Sentence: "evidence of " + name}
}

// step plans once, keeps the status as the control role would, and applies.
func (r *ramp) step() rollout.Plan {
	r.t.Helper()
	r.view.Now = r.now
	p := rollout.Next(r.e, r.view)
	r.e.Status.Rollout = &p.Rollout
	if p.Op != nil {
		r.n++
		next, _, err := rollout.Apply(r.e, rollout.Request{ID: fmt.Sprint("engine-", r.n), Actor: rollout.Engine, Reason: p.Why, At: r.now}, p.Op)
		if err != nil {
			r.t.Fatalf("%s: %v", p.Op, err)
		}
		rollout.RecordHistory(&next.Status, next.Spec.Changes)
		r.e = next
	}
	return p
}

func (r *ramp) expect(op string, why rollout.Reason) rollout.Plan {
	r.t.Helper()
	p := r.step()
	got := ""
	if p.Op != nil {
		got = p.Op.String()
	}
	reason := p.Why
	if p.Op == nil {
		reason = p.Rollout.Reason
	}
	if got != op || reason != why {
		r.t.Fatalf("plan is %q because of %s (%s), want %q because of %s", got, reason, p.Rollout.Message, op, why)
	}
	return p
}

func steps(pct ...rollout.Percent) []rollout.Step {
	var out []rollout.Step
	for _, p := range pct {
		out = append(out, rollout.Step{Percent: p * rollout.OnePercent})
	}
	return out
}

// While settings are being replaced nothing is evidence, and the status says so.
func TestReplicasOfTwoSettings(t *testing.T) {
	r := newRamp(t, rollout.Strategy{Steps: steps(10, 50)})
	r.judge("b", rollout.VerdictUndecided, rollout.ReasonUndecided, 0)
	r.expect("traffic b 10", rollout.ReasonStepStarted)
	r.judge("b", rollout.VerdictUndecided, rollout.ReasonUndecided, 200)
	st := &r.e.Status.Versions[slices.IndexFunc(r.e.Status.Versions, func(v rollout.VersionStatus) bool { return v.Name == "a" })]
	st.OutdatedReplicas, st.Message = 1, "ModuleNotFoundError"
	p := r.expect("", rollout.ReasonReplacing)
	for _, want := range []string{"replicas of a", "1 of ", "ModuleNotFoundError"} {
		if !strings.Contains(p.Rollout.Message, want) {
			t.Errorf("message %q lacks %q", p.Rollout.Message, want)
		}
	}
	r.judge("b", rollout.VerdictWorse, rollout.ReasonWorse, 200)
	r.expect("rollback b", rollout.ReasonWorse) // what was proven before stands
	r = newRamp(t, rollout.Strategy{Gate: rollout.GateNone, Steps: steps(10, 50)})
	r.judge("b", rollout.VerdictUndecided, rollout.ReasonUndecided, 0)
	r.expect("traffic b 10", rollout.ReasonStepStarted)
	r.expect("", rollout.ReasonStepRunning)
	r.e.Status.Versions[0].OutdatedReplicas = 1
	r.judge("b", rollout.VerdictUndecided, rollout.ReasonUndecided, 200)
	r.expect("traffic b 50", rollout.ReasonStepComplete)
}

func TestRampToPromotion(t *testing.T) {
	r := newRamp(t, rollout.Strategy{Steps: []rollout.Step{{Percent: 1000}, {Percent: 50000, MinDuration: rollout.Duration(time.Minute)}}})
	r.judge("b", rollout.VerdictUndecided, rollout.ReasonUndecided, 0)
	r.expect("traffic b 1", rollout.ReasonStepStarted)
	if p := r.expect("", rollout.ReasonStepRunning); p.Planned["b"] != 50000 {
		t.Errorf("planned %v: the next step is to be prepared", p.Planned)
	}
	r.judge("b", rollout.VerdictUndecided, rollout.ReasonUndecided, 100)
	r.e.Status.Versions = nil // no replica is ready any more
	r.expect("", rollout.ReasonCapacity)
	r.ready(1, "a", "b")
	r.e.Status.Demand = "6.5"
	r.ready(3, "a", "b")
	r.expect("", rollout.ReasonCapacity) // 50 % of 6.5 busy slots need four
	r.ready(4, "a", "b")
	r.expect("traffic b 50", rollout.ReasonStepComplete)
	r.judge("b", rollout.VerdictUndecided, rollout.ReasonUndecided, 150)
	r.expect("", rollout.ReasonStepRunning)
	r.judge("b", rollout.VerdictUndecided, rollout.ReasonUndecided, 250)
	r.expect("", rollout.ReasonStepRunning)
	r.now = r.now.Add(time.Minute)
	r.expect("", rollout.ReasonUndecided)
	r.judge("b", rollout.VerdictNotWorse, rollout.ReasonBounded, 400)
	if p := r.expect("", rollout.ReasonCapacity); p.Planned["b"] != rollout.Full {
		t.Errorf("planned %v: all traffic is to be prepared", p.Planned)
	}
	r.ready(8, "a", "b")
	r.expect("promote b", rollout.ReasonBounded)
	r.want("a standby 0=0, b control default 0=100")
	r.now = r.now.Add(25 * time.Hour)
	r.expect("retire a", rollout.ReasonRetainExpired)
	r.want("a 0=0, b control default 0=100")
	if last := r.e.Spec.Changes[len(r.e.Spec.Changes)-2]; last.Reason != rollout.ReasonBounded {
		t.Errorf("the record of the promotion names %s, not the rule that fired", last.Reason)
	}
}

func TestRollbackComesFirst(t *testing.T) {
	r := newRamp(t, rollout.Strategy{Steps: steps(1, 10)})
	r.judge("b", rollout.VerdictUndecided, rollout.ReasonUndecided, 0)
	r.step()
	r.do(rollout.Hold{Reason: "lunch"})
	r.expect("", rollout.ReasonStepRunning)
	r.judge("b", rollout.VerdictUndecided, rollout.ReasonUndecided, 100)
	r.expect("", rollout.ReasonHeld)
	r.do(rollout.Lock{})
	r.expect("", rollout.ReasonLocked)
	r.judge("b", rollout.VerdictWorse, rollout.ReasonWorse, 120)
	r.expect("rollback b", rollout.ReasonWorse)
	r.want("a control default 0=100, b 0=0")
}

func TestMissingEvidenceHolds(t *testing.T) {
	r := newRamp(t, rollout.Strategy{Steps: steps(1, 10)})
	r.judge("b", rollout.VerdictUndecided, rollout.ReasonUndecided, 0)
	r.step()
	delete(r.view.Judgements, "b")
	r.expect("", rollout.ReasonUnknown)
	// It comes back from a fresh key: counting begins anew.
	r.judge("b", rollout.VerdictUndecided, rollout.ReasonUndecided, 99)
	r.expect("", rollout.ReasonStepRunning)
}

func TestFreshEvidenceRestartsCounting(t *testing.T) {
	r := newRamp(t, rollout.Strategy{Steps: steps(1, 10)})
	r.judge("b", rollout.VerdictUndecided, rollout.ReasonUndecided, 5000)
	r.step()
	r.expect("", rollout.ReasonStepRunning)
	r.judge("b", rollout.VerdictUndecided, rollout.ReasonUndecided, 60)
	r.expect("", rollout.ReasonStepRunning)
	r.judge("b", rollout.VerdictUndecided, rollout.ReasonUndecided, 100)
	r.expect("traffic b 10", rollout.ReasonStepComplete)
}

func TestGateNoneSaysSo(t *testing.T) {
	r := newRamp(t, rollout.Strategy{Gate: rollout.GateNone, Steps: steps(5)})
	r.judge("b", rollout.VerdictWorse, rollout.ReasonWorse, 0)
	r.expect("traffic b 5", rollout.ReasonStepStarted)
	r.step()
	r.judge("b", rollout.VerdictWorse, rollout.ReasonWorse, 100)
	r.expect("promote b", rollout.ReasonNoGate)
}

func TestDeadline(t *testing.T) {
	for _, on := range []rollout.OnDeadline{"", rollout.DeadlineRollback} {
		r := newRamp(t, rollout.Strategy{Steps: steps(1), OnDeadline: on})
		r.judge("b", rollout.VerdictUndecided, rollout.ReasonUndecided, 0)
		r.step()
		r.now = r.now.Add(25 * time.Hour)
		if on == rollout.DeadlineRollback {
			r.expect("rollback b", rollout.ReasonDeadline)
			continue
		}
		r.expect("hold", rollout.ReasonDeadline)
		r.expect("", rollout.ReasonDeadline)
	}
}

func TestNoShareNoControlQueued(t *testing.T) {
	r := newRamp(t, rollout.Strategy{Steps: steps(30, 60)})
	r.judge("b", rollout.VerdictUndecided, rollout.ReasonUndecided, 0)
	r.do(rollout.Deploy{Version: version("c", 3)})
	r.do(rollout.Update{Version: "c", Type: role(rollout.Treatment), Percent: pct("45")})
	if !rollout.Queued(&r.e.Spec, r.e.Spec.Version("c")) || rollout.Queued(&r.e.Spec, r.e.Spec.Version("b")) {
		t.Error("the younger treatment is the one that waits")
	}
	r.expect("traffic b 30", rollout.ReasonStepStarted)
	r.judge("b", rollout.VerdictUndecided, rollout.ReasonUndecided, 500)
	r.step()
	r.judge("b", rollout.VerdictUndecided, rollout.ReasonUndecided, 900)
	r.expect("", rollout.ReasonNoShare) // 60 + 45 is more than all
	r.do(rollout.Update{Version: "c", Percent: pct("40")})
	r.expect("", rollout.ReasonNoShare) // the control would be left with nothing
	r.do(rollout.Update{Version: "c", Percent: pct("39")})
	r.expect("traffic b 60", rollout.ReasonStepComplete)
	// A worse treatment in the queue is rolled back all the same.
	r.judge("c", rollout.VerdictWorse, rollout.ReasonWorse, 50)
	r.expect("rollback c", rollout.ReasonWorse)

	r.do(rollout.Update{Version: "a", Type: role(rollout.Untyped)})
	r.expect("", rollout.ReasonNoControl)
}

func TestPercentileOfTheDeployIsTheFirstStep(t *testing.T) {
	r := newRamp(t, rollout.Strategy{Steps: steps(10, 50)})
	r.do(rollout.Update{Version: "b", Percent: pct("2")})
	r.judge("b", rollout.VerdictUndecided, rollout.ReasonUndecided, 0)
	r.expect("", rollout.ReasonStepRunning)
	r.judge("b", rollout.VerdictUndecided, rollout.ReasonUndecided, 100)
	r.expect("traffic b 10", rollout.ReasonStepComplete)
}

func TestLostStatusRestartsTheStep(t *testing.T) {
	r := newRamp(t, rollout.Strategy{Steps: steps(10, 50)})
	r.judge("b", rollout.VerdictUndecided, rollout.ReasonUndecided, 0)
	r.step()
	r.step()
	r.e.Status.Rollout = nil
	r.judge("b", rollout.VerdictUndecided, rollout.ReasonUndecided, 150)
	r.expect("", rollout.ReasonStepRunning)
	r.judge("b", rollout.VerdictUndecided, rollout.ReasonUndecided, 250)
	r.expect("traffic b 50", rollout.ReasonStepComplete)
}

func TestNeedIsBoundedByScaling(t *testing.T) {
	v, st := version("v", 1), rollout.Status{Demand: "6.5", Versions: []rollout.VersionStatus{{Name: "v", ReadyReplicas: 3}}}
	need := func() int { _, n := rollout.Slots(&v, &st, rollout.Full); return n }
	if n := need(); n != 8 {
		t.Errorf("need %d, want 8 for a demand of 6.5 near 70 %% utilisation", n)
	}
	seven, two, three := 7, 2, 3
	v.Autoscale = &rollout.Autoscale{MaxReplicas: &seven}
	if n := need(); n != 7 {
		t.Errorf("need %d with at most seven replicas, want 7: no more will ever be ready", n)
	}
	v.Autoscale.MaxReplicas = &two
	if n := need(); n != 7 {
		t.Errorf("need %d, want 7: two replicas cannot carry it", n)
	}
	v.Autoscale, v.Replicas, v.Concurrency = nil, &three, &rollout.Concurrency{MaxConcurrentRequests: 4}
	if n := need(); n != 8 {
		t.Errorf("need %d, want 8", n)
	}
	if have, none := rollout.Slots(&v, &st, 0); have != 12 || none != 0 {
		t.Errorf("have %d and need %d for no share, want 12 and 0", have, none)
	}
}

func TestForeignEditHoldsAtOnce(t *testing.T) {
	r := newRamp(t, rollout.Strategy{Steps: steps(10, 50)})
	r.judge("b", rollout.VerdictUndecided, rollout.ReasonUndecided, 0)
	r.step()
	r.e.Spec.Version("b").TrafficPercentile = 33 * rollout.OnePercent
	r.expect("hold", rollout.ReasonForeignEdit)
	if h := r.e.Spec.Hold; h == nil || r.e.Spec.Version("b").TrafficPercentile != 33*rollout.OnePercent {
		t.Fatalf("hold %v, claim %s; want the edit kept and a hold", h, r.e.Spec.Version("b").TrafficPercentile)
	}
	if last := r.e.Spec.Changes[len(r.e.Spec.Changes)-1]; last.Reason != rollout.ReasonForeignEdit {
		t.Errorf("the newest change is %+v, want the edit", last)
	}
	r.judge("b", rollout.VerdictUndecided, rollout.ReasonUndecided, 1000)
	r.step()
	r.judge("b", rollout.VerdictUndecided, rollout.ReasonUndecided, 2000)
	r.expect("", rollout.ReasonHeld)
	// The edit does not protect a treatment that is worse.
	r.e.Spec.Version("b").TrafficPercentile = 34 * rollout.OnePercent
	r.judge("b", rollout.VerdictWorse, rollout.ReasonWorse, 2100)
	r.expect("hold", rollout.ReasonForeignEdit)
	r.expect("rollback b", rollout.ReasonWorse)
}

// A first step below the strategy's own is a step of its own: the next one counts from its own beginning.
func TestEveryStepCountsForItself(t *testing.T) {
	r := newRamp(t, rollout.Strategy{Steps: steps(10, 50)})
	r.do(rollout.Update{Version: "b", Percent: pct("2")})
	r.judge("b", rollout.VerdictUndecided, rollout.ReasonUndecided, 0)
	r.step()
	r.judge("b", rollout.VerdictUndecided, rollout.ReasonUndecided, 100)
	r.expect("traffic b 10", rollout.ReasonStepComplete)
	r.judge("b", rollout.VerdictUndecided, rollout.ReasonUndecided, 110)
	r.expect("", rollout.ReasonStepRunning)
	r.judge("b", rollout.VerdictUndecided, rollout.ReasonUndecided, 209)
	r.expect("", rollout.ReasonStepRunning)
	r.judge("b", rollout.VerdictUndecided, rollout.ReasonUndecided, 210)
	r.expect("traffic b 50", rollout.ReasonStepComplete)
}

func TestResumeAfterTheDeadlineGivesTimeAnew(t *testing.T) {
	r := newRamp(t, rollout.Strategy{Steps: steps(1, 10)})
	r.judge("b", rollout.VerdictUndecided, rollout.ReasonUndecided, 0)
	r.step()
	r.now = r.now.Add(25 * time.Hour)
	r.expect("hold", rollout.ReasonDeadline)
	next, _, err := rollout.Apply(r.e, rollout.Request{ID: "resume", Actor: "alice", At: r.now}, rollout.Resume{})
	if err != nil {
		t.Fatal(err)
	}
	r.e = next
	r.now = r.now.Add(time.Hour)
	r.judge("b", rollout.VerdictUndecided, rollout.ReasonUndecided, 200)
	r.expect("traffic b 10", rollout.ReasonStepComplete)
	r.now = r.now.Add(24 * time.Hour)
	r.expect("hold", rollout.ReasonDeadline)
}

// A treatment that a later version was promoted past is left alone by the strategy, and makes room for a seventh version; it
// is still rolled back for being worse.
func TestOvertakenTreatment(t *testing.T) {
	at := time.Date(2026, 11, 26, 8, 0, 0, 0, time.UTC)
	e := &rollout.Endpoint{Metadata: rollout.Metadata{Namespace: "models", Name: "fraud"}}
	n := 0
	apply := func(op rollout.Op) {
		t.Helper()
		n++
		at = at.Add(time.Minute)
		next, _, err := rollout.Apply(e, rollout.Request{ID: fmt.Sprint("c", n), Actor: "tester", At: at, Force: true}, op)
		if err != nil {
			t.Fatalf("%s: %v", op, err)
		}
		e = next
		e.Status.History, e.Spec.Changes = append(e.Status.History, e.Spec.Changes...), nil
	}
	treatment := rollout.Treatment
	strategy := &rollout.Strategy{Steps: []rollout.Step{{Percent: 10 * rollout.OnePercent}}}
	deploy := func(name string) rollout.Deploy {
		return rollout.Deploy{Version: rollout.Version{Name: name, Image: "r/x@sha256:" + strings.Repeat("1", 64), Source: rollout.Source{Commit: name}}, Strategy: strategy}
	}
	apply(deploy("one"))
	for _, name := range []string{"old", "new"} {
		apply(deploy(name))
		apply(rollout.Update{Version: name, Type: &treatment})
	}
	apply(rollout.Promote{Version: "new"})
	if !rollout.Overtaken(&e.Spec, e.Spec.Version("old")) || rollout.Queued(&e.Spec, e.Spec.Version("old")) {
		t.Errorf("the older treatment is not overtaken: %+v", e.Spec.Versions)
	}
	good := rollout.View{Now: at, Judgements: map[string]rollout.Judgement{"old": {Verdict: rollout.VerdictNotWorse, Rule: rollout.ReasonNotWorse, Requests: 1e6}}}
	if p := rollout.Next(e, good); p.Op != nil {
		t.Errorf("the strategy does %s", p.Op)
	}
	bad := rollout.View{Now: at, Judgements: map[string]rollout.Judgement{"old": {Verdict: rollout.VerdictWorse, Rule: rollout.ReasonWorse}}}
	if p := rollout.Next(e, bad); p.Op == nil || p.Op.String() != "rollback old" {
		t.Errorf("judged worse, the strategy does %v", p.Op)
	}
	// The strategy runs on a younger one instead.
	apply(deploy("younger"))
	apply(rollout.Update{Version: "younger", Type: &treatment})
	if p := rollout.Next(e, rollout.View{Now: at, Judgements: map[string]rollout.Judgement{"younger": {Verdict: rollout.VerdictUndecided}}}); p.Rollout.Treatment != "younger" {
		t.Errorf("the strategy runs on %q", p.Rollout.Treatment)
	}
	for _, name := range []string{"five", "six"} {
		apply(deploy(name))
		apply(rollout.Update{Version: name, Type: &treatment})
	}
	apply(deploy("seven"))
	if e.Spec.Version("old") != nil || e.Spec.Version("seven") == nil {
		t.Errorf("the overtaken one did not make room: %+v", e.Spec.Versions)
	}
}

// A workflow that is run again is older than what came after it.
func TestOlderRunOfThePullRequest(t *testing.T) {
	e := &rollout.Endpoint{Metadata: rollout.Metadata{Namespace: "models", Name: "fraud"}}
	deploy := func(name string, run int64) error {
		next, _, err := rollout.Apply(e, rollout.Request{ID: name, Actor: "tester", At: time.Now()}, rollout.Deploy{Version: rollout.Version{
			Name: name, Image: "r/x@sha256:" + strings.Repeat("1", 64), Source: rollout.Source{RepositoryID: 7, PullRequest: 3, Commit: name, RunID: run},
		}})
		if err == nil {
			e = next
		}
		return err
	}
	if err := errors.Join(deploy("pr-3-b", 11), deploy("pr-3-c", 12)); err != nil {
		t.Fatal(err)
	}
	if err := deploy("pr-3-a", 10); rollout.ReasonOf(err) != rollout.ReasonSuperseded {
		t.Errorf("an older run: %v", err)
	}
}
