// Package report shows on a pull request what traffic says about its versions:
// a comment that is edited in place, a check run or commit status, and a
// deployment. What is shown is rendered purely from the endpoint; the Reporter
// carries it to GitHub.
package report

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/sluice-dev/sluice/pkg/markdown"
	"github.com/sluice-dev/sluice/rollout"
	"github.com/sluice-dev/sluice/rollout/verdict"
)

// PullRequest whose versions are reported on.
type PullRequest struct {
	Repository int64
	Number     int
}

// PullRequests that have a version at the endpoint, of repositories that are
// bound to it, in order.
func PullRequests(e *rollout.Endpoint) []PullRequest {
	var out []PullRequest
	for i := range e.Spec.Versions {
		s := e.Spec.Versions[i].Source
		p := PullRequest{s.RepositoryID, s.PullRequest}
		if p.Number > 0 && p.Repository > 0 && slices.Contains(e.Spec.Repositories, p.Repository) && !slices.Contains(out, p) {
			out = append(out, p)
		}
	}
	slices.SortFunc(out, func(a, b PullRequest) int {
		return cmp.Or(cmp.Compare(a.Repository, b.Repository), cmp.Compare(a.Number, b.Number))
	})
	return out
}

// versions of the pull request at the endpoint, newest first.
func (p PullRequest) versions(e *rollout.Endpoint) []*rollout.Version {
	var out []*rollout.Version
	for i := range e.Spec.Versions {
		if v := &e.Spec.Versions[i]; v.Source.RepositoryID == p.Repository && v.Source.PullRequest == p.Number {
			out = append(out, v)
		}
	}
	slices.SortStableFunc(out, func(a, b *rollout.Version) int { return b.CreatedAt.Compare(a.CreatedAt) })
	return out
}

// State of a version in one word, as its pull request sees it.
type State string

// The states.
const (
	// StateJoined: at 0, until its replicas are ready and its smoke test has passed.
	StateJoined State = "joined"
	// StateFailed: it does not start.
	StateFailed State = "failed"
	// StateRunning: a step of the strategy, or without one a share that people set.
	StateRunning State = "running"
	// StateHeld: a hold, a lock or the deadline; a person must act.
	StateHeld State = "held"
	// StateWaiting: for capacity, for room beside other claims, for an older treatment.
	StateWaiting State = "waiting"
	// StateUnknown: the evidence is unavailable, so that nothing moves.
	StateUnknown State = "unknown"
	// StateWorse: rolled back by the evidence.
	StateWorse State = "worse"
	// StateRolledBack: by a person, or at the deadline.
	StateRolledBack State = "rolled back"
	StatePromoted   State = "promoted"
	// StateClosed: its pull request was closed without a merge.
	StateClosed State = "closed"
	// StateReplaced: by a newer version.
	StateReplaced State = "replaced"
	// StateRemoved: deleted, alone or with its endpoint, or of a repository that is not bound any more.
	StateRemoved State = "removed"
)

// standing is where a version stands, and why.
type standing struct {
	state  State
	reason rollout.Reason
	// message explains the reason; from outside, and not escaped.
	message string
	share   rollout.Percent
	// change that brought it here, if one did.
	change *rollout.Change
}

// standingOf a version of the endpoint.
func standingOf(e *rollout.Endpoint, v *rollout.Version) standing {
	vs := e.Status.Version(v.Name)
	s := standing{share: e.Spec.Effective(v.Name)}
	fails := vs.State == rollout.StateFailed || vs.State == rollout.StateStarting && vs.Reason != "" && vs.Reason != rollout.ReasonStarting
	switch {
	case v.Type == rollout.Control:
		s.state, s.change = StatePromoted, lastChange(e, "promote "+v.Name)
		s.reason, s.message = rollout.ReasonRequested, "it is the control"
		if s.change != nil {
			s.reason, s.message = s.change.Reason, s.change.Message
		}
	case v.Type == rollout.Standby:
		s.state, s.reason, s.message = StateReplaced, rollout.ReasonSuperseded, "another version was promoted; this one is kept as the way back"
	case v.Type == rollout.Untyped && !e.Spec.Active(v) && !v.RetiredAt.IsZero():
		gone(e, v, &s)
	case fails:
		s.state, s.reason, s.message = StateFailed, vs.Reason, vs.Message
	case v.Type == rollout.Untyped && s.share == 0:
		s.state, s.reason, s.message = StateJoined, rollout.ReasonStarting, "its replicas start"
		if vs.State == rollout.StateReady {
			s.message = "its replicas are ready; the deploy tests it before it gets traffic"
		}
	case e.Spec.Lock != nil:
		s.state, s.reason, s.message = StateHeld, rollout.ReasonLocked, "locked by "+e.Spec.Lock.Actor+because(e.Spec.Lock.Reason)
	case e.Spec.Hold != nil:
		s.state, s.reason, s.message = StateHeld, rollout.ReasonHeld, "held by "+e.Spec.Hold.Actor+because(e.Spec.Hold.Reason)
	default:
		underway(e, v, &s)
	}
	return s
}

// underway is a version with traffic and nothing special about it.
func underway(e *rollout.Endpoint, v *rollout.Version, s *standing) {
	r := e.Status.Rollout
	s.state, s.reason = StateRunning, rollout.ReasonStepRunning
	switch {
	case e.Spec.Strategy == nil || v.Type != rollout.Treatment:
		s.reason, s.message = rollout.ReasonRequested, "no strategy moves it; people do"
		return
	case rollout.Queued(&e.Spec, v):
		s.state, s.reason, s.message = StateWaiting, rollout.ReasonQueued, "the strategy runs on an older treatment first"
		return
	case r == nil || r.Treatment != v.Name || r.Reason == "":
		s.message = "the strategy begins"
		return
	}
	s.reason, s.message = r.Reason, r.Message
	switch r.Reason {
	case rollout.ReasonUnknown:
		s.state = StateUnknown
	case rollout.ReasonCapacity, rollout.ReasonNoShare, rollout.ReasonNoControl, rollout.ReasonReplacing:
		s.state = StateWaiting
	case rollout.ReasonHeld, rollout.ReasonLocked, rollout.ReasonDeadline:
		s.state = StateHeld
	}
}

// gone is a version that had its time.
func gone(e *rollout.Endpoint, v *rollout.Version, s *standing) {
	s.change = lastChange(e, "rollback "+v.Name)
	if r := lastChange(e, "retire "+v.Name); r != nil && (s.change == nil || r.At.After(s.change.At)) {
		s.change = r
	}
	if s.change == nil || s.change.At.Before(v.RetiredAt) {
		s.change = nil
		s.state, s.reason, s.message = StateReplaced, rollout.ReasonSuperseded, "a newer version took its place"
		return
	}
	s.reason, s.message = s.change.Reason, s.change.Message
	switch s.reason {
	case rollout.ReasonWorse:
		s.state = StateWorse
	case rollout.ReasonClosed:
		s.state = StateClosed
	default:
		s.state = StateRolledBack
	}
}

// lastChange that did that, of those that are still on record.
func lastChange(e *rollout.Endpoint, action string) *rollout.Change {
	for _, list := range [][]rollout.Change{e.Spec.Changes, e.Status.History} {
		for i := range slices.Backward(list) {
			if list[i].Action == action {
				return &list[i]
			}
		}
	}
	return nil
}

// reached is the largest share that the version had on record.
func reached(e *rollout.Endpoint, v *rollout.Version) rollout.Percent {
	most := v.TrafficPercentile
	for _, list := range [][]rollout.Change{e.Status.History, e.Spec.Changes} {
		for i := range list {
			if text, ok := strings.CutPrefix(list[i].Action, "traffic "+v.Name+" "); ok {
				if p, err := rollout.ParsePercent(text); err == nil {
					most = max(most, p)
				}
			}
		}
	}
	return most
}

func because(reason string) string {
	if reason == "" {
		return ""
	}
	return ": " + reason
}

// evidenceOf a treatment, if the status has it.
func evidenceOf(e *rollout.Endpoint, name string) *rollout.EvidenceStatus {
	if e.Status.Rollout == nil {
		return nil
	}
	for i := range e.Status.Rollout.Evidence {
		if ev := &e.Status.Rollout.Evidence[i]; ev.Treatment == name {
			return ev
		}
	}
	return nil
}

// verdictOn is the evidence on a version in one sentence; empty without any.
func verdictOn(e *rollout.Endpoint, v *rollout.Version, s standing) string {
	if s.change != nil && s.change.Evidence != "" {
		return s.change.Evidence
	}
	ev := evidenceOf(e, v.Name)
	if ev == nil || e.Spec.Strategy == nil {
		return ""
	}
	d, err := verdict.Restored(*ev, verdict.ParamsOf(*e.Spec.Strategy))
	if err != nil {
		return "unknown: the evidence cannot be read"
	}
	return d.Sentence()
}

// next says what comes of it.
func next(e *rollout.Endpoint, v *rollout.Version, s standing) string {
	switch s.state {
	case StateJoined:
		if e.Spec.Strategy == nil {
			return "once it is ready and tested it gets the share that its deploy asks for"
		}
		return fmt.Sprintf("once it is ready and tested it gets its first share, %s %%, and is judged against the control", first(e, v))
	case StateFailed:
		return "push a fix: a new commit deploys a new version. Traffic stays where it is"
	case StateHeld:
		switch s.reason {
		case rollout.ReasonLocked:
			return "nothing moves until someone comments `/unlock`; `/rollback` works all the same"
		case rollout.ReasonDeadline:
			return "a person decides: `/promote`, `/rollback`, or `/resume` for as much time again"
		}
		return "nothing advances until someone comments `/resume`; a treatment that turns out worse is rolled back all the same"
	case StateWaiting:
		switch s.reason {
		case rollout.ReasonCapacity:
			return "the autoscaler adds replicas, and the next step begins when enough are ready"
		case rollout.ReasonNoShare:
			return "lower another claim, or promote or roll back another treatment"
		case rollout.ReasonNoControl:
			return "give a version the role of the control with `sluice update ENDPOINT VERSION --control`"
		}
		return "it goes on by itself"
	case StateUnknown:
		return "nothing moves until the routers report again; then it goes on by itself"
	case StateRunning:
		if e.Spec.Strategy == nil || v.Type != rollout.Treatment {
			return "`/promote` gives it all traffic, `/traffic PERCENT` another share, `/rollback` none"
		}
		return upcoming(e, v)
	case StateWorse, StateRolledBack:
		return "push a fix: a new commit deploys a new version. Replicas of this one end after a minute"
	case StatePromoted:
		if sb := e.Spec.ByRole(rollout.Standby); sb != nil {
			return "`/rollback` goes back to `" + sb.Name + "`, which is kept for now"
		}
		return "the next pull request is compared with it"
	case StateClosed:
		return "reopen the pull request and push, to deploy it again"
	default:
		return ""
	}
}

func first(e *rollout.Endpoint, v *rollout.Version) rollout.Percent {
	for _, st := range e.Spec.Strategy.Resolved().Steps {
		return st.Percent
	}
	return v.TrafficPercentile
}

// upcoming is what the strategy does after the present step.
func upcoming(e *rollout.Endpoint, v *rollout.Version) string {
	st := e.Spec.Strategy.Resolved()
	needs := "when the step has its requests and its time"
	if st.Gate == rollout.GateVerdict {
		needs += ", and the evidence is not against it"
	}
	for _, step := range st.Steps {
		if step.Percent > v.TrafficPercentile {
			return fmt.Sprintf("%s %%, %s", step.Percent, needs)
		}
	}
	if st.Gate != rollout.GateVerdict {
		return "promotion, " + needs + " (the strategy has no gate)"
	}
	return "promotion, when the step is complete and the evidence says that it is not worse"
}

// over says whether the version's own story is told: what becomes of the endpoint then is news
// for other pull requests.
func (s standing) over() bool { return s.state.over() }

func (s State) over() bool {
	switch s {
	case StateWorse, StateRolledBack, StatePromoted, StateClosed, StateReplaced, StateRemoved:
		return true
	default:
		return false
	}
}

// title is a standing in a few words, without what changes all the time.
func title(s standing) string {
	gets := s.share.String() + " %"
	switch s.state {
	case StateJoined:
		return "joined: no traffic yet"
	case StateFailed:
		return "does not start: " + string(s.reason)
	case StateRunning:
		return "gets " + gets
	case StateHeld:
		return "held at " + gets
	case StateWaiting:
		return "waits at " + gets + ": " + string(s.reason)
	case StateUnknown:
		return "stands at " + gets + ": no evidence"
	case StateWorse:
		return "rolled back: worse than the control"
	case StateRolledBack:
		by := ""
		if s.change != nil && s.change.Actor != rollout.Engine {
			by = " by " + markdown.Plain(s.change.Actor)
		}
		return "rolled back" + by
	case StatePromoted:
		return "promoted: it is the control" // and what it gets is other versions' news
	case StateClosed:
		return "taken out: pull request closed"
	case StateRemoved:
		if s.reason == rollout.ReasonNotBound {
			return "not reported any more"
		}
		return "removed"
	default:
		return "replaced by another version"
	}
}
