package rollout

import (
	"fmt"
	"slices"
	"strconv"
	"time"
)

// Verdict on a treatment against its control.
type Verdict string

// The verdicts.
const (
	VerdictWorse     Verdict = "worse"
	VerdictNotWorse  Verdict = "not worse"
	VerdictUndecided Verdict = "undecided"
	// VerdictUnknown means that evidence or its source is unavailable.
	VerdictUnknown Verdict = "unknown"
)

// Judgement is what is known of a treatment when the strategy decides.
type Judgement struct {
	Verdict Verdict
	// Rule that fired: ReasonWorse, ReasonNotWorse, ReasonBounded or ReasonUndecided.
	Rule Reason
	// Sentence is the evidence for people.
	Sentence string
	// Requests judged so far under the present key.
	Requests int64
}

// View is the world as the strategy sees it at one moment.
type View struct {
	Now time.Time
	// Judgements by treatment; one that is missing is VerdictUnknown.
	Judgements map[string]Judgement
}

// Plan is the strategy's decision.
type Plan struct {
	// Op to apply as the engine, or nil to wait; Why and Evidence go into the record.
	Op       Op
	Why      Reason
	Evidence string
	// Rollout is the status that replaces the endpoint's, evidence left out.
	Rollout RolloutStatus
	// Planned share per version: what autoscaling should prepare for.
	Planned map[string]Percent
}

// Next decides what the endpoint's strategy does now. It is pure: the same
// endpoint and view give the same plan. Order of precedence: recording an edit from
// outside, which holds; the automatic
// rollback of any treatment that is judged worse; the end of a standby; then the steps of the
// oldest treatment that is not overtaken.
func Next(e *Endpoint, v View) Plan {
	p := Plan{Planned: planned(&e.Spec)}
	if e.Spec.ForeignEdit() && e.Spec.Strategy != nil && activeTreatment(&e.Spec) != nil {
		// Whatever the engine applies first records the edit and holds; then this decides anew.
		p.Op, p.Why = Hold{}, ReasonForeignEdit
		return p
	}
	if op, j := worst(&e.Spec, v); op != nil {
		p.Op, p.Why, p.Evidence = op, ReasonWorse, j.Sentence
		p.Rollout = RolloutStatus{Treatment: op.(Rollback).Version, Reason: ReasonWorse, Message: j.Sentence}
		return p
	}
	if op := expired(&e.Spec, v.Now); op != nil && e.Spec.Lock == nil {
		p.Op, p.Why = op, ReasonRetainExpired
		if e.Status.Rollout != nil {
			p.Rollout = *e.Status.Rollout
		}
		return p
	}
	t := activeTreatment(&e.Spec)
	if t == nil || e.Spec.Strategy == nil {
		return p
	}
	s := stepper{e: e, t: t, strategy: e.Spec.Strategy.Resolved(), view: v, plan: &p}
	s.run()
	return p
}

// planned are the claims as they are; the stepper raises its treatment's.
func planned(s *Spec) map[string]Percent {
	out := map[string]Percent{}
	for _, sh := range s.Shares() {
		out[sh.Name] = max(sh.Percent, s.Version(sh.Name).PlannedPercentile)
	}
	return out
}

// worst finds a treatment with traffic that is judged worse.
func worst(s *Spec, v View) (Op, Judgement) {
	if s.Strategy == nil || s.Strategy.Gate == GateNone {
		return nil, Judgement{}
	}
	for i := range s.Versions {
		t := &s.Versions[i]
		if t.Type != Treatment {
			continue
		}
		if j := v.Judgements[t.Name]; j.Verdict == VerdictWorse {
			return Rollback{Version: t.Name}, j
		}
	}
	return nil, Judgement{}
}

func expired(s *Spec, now time.Time) Op {
	retain := Duration(DefaultRetainFor)
	if s.Strategy != nil {
		retain = *s.Strategy.Resolved().RetainFor
	}
	sb := s.ByRole(Standby)
	if sb == nil || sb.StandbySince.IsZero() || now.Before(sb.StandbySince.Add(retain.Std())) || s.Default() == sb {
		return nil
	}
	return Retire{Version: sb.Name}
}

// Overtaken says whether a treatment is older than the control, because somebody has promoted a later version before it.
// The strategy leaves it alone: by its evidence it could be let in for not being worse, and take back what the later one has
// brought. A person may still promote it, and it is still rolled back for being worse.
func Overtaken(s *Spec, v *Version) bool {
	c := s.ByRole(Control)
	return v.Type == Treatment && c != nil && v.CreatedAt.Before(c.CreatedAt)
}

// activeTreatment is the one that the strategy runs on: the oldest that is not overtaken.
func activeTreatment(s *Spec) *Version {
	var out *Version
	for i := range s.Versions {
		v := &s.Versions[i]
		if v.Type == Treatment && !Overtaken(s, v) && (out == nil || v.CreatedAt.Before(out.CreatedAt)) {
			out = v
		}
	}
	return out
}

// Queued says whether the strategy waits with this treatment for an older one.
func Queued(s *Spec, v *Version) bool {
	return s.Strategy != nil && v.Type == Treatment && !Overtaken(s, v) && activeTreatment(s) != v
}

type stepper struct {
	e        *Endpoint
	t        *Version
	strategy Strategy
	view     View
	plan     *Plan
}

func (s *stepper) run() {
	st := s.status()
	s.plan.Rollout = st
	j, known := s.view.Judgements[s.t.Name]
	if !known {
		j.Verdict = VerdictUnknown
	}
	if c := s.e.Spec.ByRole(Control); c == nil {
		s.wait(ReasonNoControl, "there is no control to compare with: give one the role with `sluice update ENDPOINT VERSION --control`")
		return
	}
	decided := j.Rule == ReasonNotWorse || j.Rule == ReasonBounded || s.strategy.Gate == GateNone
	if s.deadlinePassed(st) && !decided {
		s.onDeadline(j)
		return
	}
	if s.e.Spec.Lock != nil {
		s.wait(ReasonLocked, "locked by "+s.e.Spec.Lock.Actor+because(s.e.Spec.Lock.Reason))
		return
	}

	claim, steps := s.t.TrafficPercentile, s.strategy.Steps
	if claim < steps[0].Percent && st.Step < 0 {
		s.shift(steps[0].Percent, ReasonStepStarted, j)
		return
	}
	last := st.Step == len(steps)-1
	if !last {
		s.plan.Planned = withClaim(&s.e.Spec, s.t.Name, s.fit(steps[st.Step+1].Percent))
	}
	if s.strategy.Gate == GateVerdict && j.Verdict == VerdictUnknown {
		s.wait(ReasonUnknown, "evidence is unavailable: nothing moves until it is back")
		return
	}
	if text := s.replacing(); text != "" && s.strategy.Gate == GateVerdict {
		s.wait(ReasonReplacing, text)
		return
	}
	if done, why := s.stepDone(st, j); !done {
		s.wait(ReasonStepRunning, why)
		return
	}
	if !last {
		s.shift(steps[st.Step+1].Percent, ReasonStepComplete, j)
		return
	}
	if !decided {
		s.wait(ReasonUndecided, "the last step is complete, but the evidence does not allow a promotion yet: "+j.Sentence)
		return
	}
	s.plan.Planned = onlyPlanned(&s.e.Spec, s.t.Name)
	why := j.Rule
	if s.strategy.Gate == GateNone {
		why = ReasonNoGate
	}
	s.move(Promote{Version: s.t.Name}, Full, why, j)
}

// status is the stored one if it still fits the claim, else a fresh step. The
// present step is derived from the claim; -1 is before the first.
func (s *stepper) status() RolloutStatus {
	step := -1
	for i, st := range s.strategy.Steps {
		if st.Percent <= s.t.TrafficPercentile {
			step = i
		}
	}
	// A percentile given in the deploy, below the first step, is itself the first step.
	if step < 0 && s.t.TrafficPercentile > 0 {
		s.strategy.Steps = slices.Insert(s.strategy.Steps, 0, Step{Percent: s.t.TrafficPercentile, MinRequests: s.strategy.Steps[0].MinRequests, MinDuration: s.strategy.Steps[0].MinDuration})
		step = 0
	}
	j := s.view.Judgements[s.t.Name]
	out := RolloutStatus{Treatment: s.t.Name, Step: step, StepPercent: s.t.TrafficPercentile, StepStarted: s.view.Now, Started: s.view.Now, StepRequests: strconv.FormatInt(j.Requests, 10)}
	was := s.e.Status.Rollout
	if was == nil || was.Treatment != s.t.Name {
		return out
	}
	out.Started = was.Started
	if was.Step != step || was.StepPercent != out.StepPercent || was.StepStarted.IsZero() {
		return out
	}
	out.StepStarted, out.StepRequests = was.StepStarted, was.StepRequests
	if n, err := strconv.ParseInt(was.StepRequests, 10, 64); err != nil || (n > j.Requests && j.Verdict != VerdictUnknown && j.Verdict != "") {
		out.StepRequests = "0" // the evidence began afresh
	}
	return out
}

// replacing says, if so, that replicas of two settings serve under one name: what they do
// is evidence for neither.
func (s *stepper) replacing() string {
	for _, v := range []*Version{s.t, s.e.Spec.ByRole(Control)} {
		st := s.e.Status.Version(v.Name)
		if st.OutdatedReplicas == 0 {
			continue
		}
		text := fmt.Sprintf("nothing is judged while replicas of %s with older settings serve: %d of %d are left", v.Name, st.OutdatedReplicas, st.ReadyReplicas)
		if st.Message != "" {
			text += "; those with the new settings do not start: " + st.Message
		}
		return text
	}
	return ""
}

func (s *stepper) deadlinePassed(st RolloutStatus) bool {
	from := st.Started
	for _, c := range s.e.Spec.Changes {
		// Who resumes after the deadline gives the treatment its time anew.
		if c.Action == (Resume{}).String() && c.At.After(from) {
			from = c.At
		}
	}
	return s.view.Now.Sub(from) > s.strategy.Deadline.Std()
}

func (s *stepper) onDeadline(j Judgement) {
	text := fmt.Sprintf("undecided for %s, its deadline: %s", *s.strategy.Deadline, j.Sentence)
	s.plan.Rollout.Reason, s.plan.Rollout.Message = ReasonDeadline, text
	s.plan.Why, s.plan.Evidence = ReasonDeadline, j.Sentence
	switch {
	case s.strategy.OnDeadline == DeadlineRollback:
		s.plan.Op = Rollback{Version: s.t.Name}
	case s.e.Spec.Hold == nil && s.e.Spec.Lock == nil:
		s.plan.Op = Hold{Reason: s.t.Name + " was " + text}
	default:
		s.wait(ReasonDeadline, text)
	}
}

func (s *stepper) stepDone(st RolloutStatus, j Judgement) (bool, string) {
	step := s.strategy.Steps[st.Step]
	before, _ := strconv.ParseInt(st.StepRequests, 10, 64)
	if n := j.Requests - before; n < *step.MinRequests {
		return false, fmt.Sprintf("%d of %d requests at %s per cent", max(n, 0), *step.MinRequests, s.t.TrafficPercentile)
	}
	if d := s.view.Now.Sub(st.StepStarted); d < step.MinDuration.Std() {
		return false, fmt.Sprintf("%s of %s at %s per cent", d.Round(time.Second), step.MinDuration, s.t.TrafficPercentile)
	}
	return true, ""
}

// fit is the target, unless it does not fit beside the other claims.
func (s *stepper) fit(target Percent) Percent {
	if s.room(target) {
		return target
	}
	return s.t.TrafficPercentile
}

func (s *stepper) room(target Percent) bool {
	var others Percent
	for i := range s.e.Spec.Versions {
		if v := &s.e.Spec.Versions[i]; v != s.t {
			others += v.TrafficPercentile
		}
	}
	if target > Full-others {
		return false
	}
	c := claimed(&s.e.Spec, s.t.Name, target)
	return c.Effective(c.ByRole(Control).Name) >= OnePercent
}

func (s *stepper) shift(target Percent, why Reason, j Judgement) {
	if !s.room(target) {
		s.wait(ReasonNoShare, fmt.Sprintf("%s per cent does not fit beside the other claims, or leaves the control under 1 per cent", target))
		return
	}
	s.plan.Planned = withClaim(&s.e.Spec, s.t.Name, target)
	s.move(Shift{Version: s.t.Name, Percent: target}, target, why, j)
}

// move applies op unless it is held or the ready slots cannot carry the share.
func (s *stepper) move(op Op, share Percent, why Reason, j Judgement) {
	if h := s.e.Spec.Hold; h != nil {
		s.wait(ReasonHeld, "held by "+h.Actor+because(h.Reason))
		return
	}
	if have, need := Slots(s.t, &s.e.Status, share); have < need {
		s.wait(ReasonCapacity, fmt.Sprintf("%d of %d slots are ready for %s per cent", have, need, share))
		return
	}
	s.plan.Op, s.plan.Why, s.plan.Evidence = op, why, j.Sentence
	s.plan.Rollout.Reason = why
}

func (s *stepper) wait(why Reason, text string) {
	s.plan.Rollout.Reason, s.plan.Rollout.Message = why, text
}

// claimed is the spec as if the version claimed p.
func claimed(spec *Spec, name string, p Percent) *Spec {
	c := *spec
	c.Versions = slices.Clone(spec.Versions)
	c.Version(name).TrafficPercentile = p
	return &c
}

// withClaim are the shares to prepare for if the version claimed p.
func withClaim(spec *Spec, name string, p Percent) map[string]Percent {
	return planned(claimed(spec, name, p))
}

// onlyPlanned prepares a version for all traffic while the others keep theirs.
func onlyPlanned(spec *Spec, name string) map[string]Percent {
	out := planned(spec)
	out[name] = Full
	return out
}
