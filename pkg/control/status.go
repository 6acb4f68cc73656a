package control

import (
	"context"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sluice-dev/sluice/pkg/cluster"
	"github.com/sluice-dev/sluice/rollout"
)

// messageBytes bounds what of a replica's last words goes into the status.
const messageBytes = 2000

// observe writes into e's status what is seen of its versions now: the strategy
// decides on it, and report stores it.
func (r *Reconciler) observe(e *rollout.Endpoint, fleets map[string]cluster.FleetState, now time.Time) {
	out := make([]rollout.VersionStatus, 0, len(e.Spec.Versions))
	ready := map[string]bool{}
	for i := range e.Spec.Versions {
		v := &e.Spec.Versions[i]
		f, has := fleets[v.Name]
		s := versionStatus(v, f, has)
		if refused := r.refusals.of(e.Key(), v.Name); refused != nil && v.RetiredAt.IsZero() {
			// What serves goes on with the settings that it has.
			if s.Reason, s.Message = refused.Reason, ending(refused.Error(), messageBytes); s.State != rollout.StateReady {
				s.State = rollout.StateFailed
			}
		}
		ready[v.Name] = s.ReadyReplicas > 0
		out = append(out, s)
	}
	for i, sh := range e.Spec.SharesWith(func(n string) bool { return ready[n] }) {
		out[i].EffectivePercent = sh.Percent
		out[i].PlannedPercent = sh.Percent
	}
	e.Status.Versions = out
	if d, known := r.evidence.demand(e, now); known {
		e.Status.Demand = settle(e.Status.Demand, d)
	}
}

func versionStatus(v *rollout.Version, f cluster.FleetState, has bool) rollout.VersionStatus {
	s := rollout.VersionStatus{Name: v.Name, State: rollout.StateStarting}
	if has {
		s.ReadyReplicas = f.Count(cluster.ReplicaReady)
		for i := range f.Replicas {
			if rep := &f.Replicas[i]; rep.State == cluster.ReplicaReady && rep.Revision != "" && rep.Revision != v.Revision() {
				s.OutdatedReplicas++
			}
		}
		s.Replicas = len(f.Replicas) - f.Count(cluster.ReplicaTerminating)
	}
	switch {
	case !v.RetiredAt.IsZero():
		s.State = rollout.StateRetired
	case s.ReadyReplicas > 0:
		s.State = rollout.StateReady
		for _, rep := range f.Replicas {
			// What serves hides what cannot start, such as the replicas of a changed setting.
			if rep.State == cluster.ReplicaFailed {
				s.Reason, s.Message = rep.Reason, ending(rep.Message, messageBytes)
			}
		}
	case has && f.Reason != "":
		s.State, s.Reason, s.Message = rollout.StateFailed, f.Reason, ending(f.Message, messageBytes)
	case has && f.Count(cluster.ReplicaFailed) > 0:
		s.State = rollout.StateFailed
		for _, rep := range f.Replicas {
			if rep.State == cluster.ReplicaFailed {
				s.Reason, s.Message = rep.Reason, ending(rep.Message, messageBytes)
			}
		}
	default:
		s.Reason = rollout.ReasonStarting
		for _, rep := range f.Replicas {
			// A replica between two crashes is starting, but what ended it is the news.
			if rep.Restarts > 0 && rep.Message != "" {
				s.Reason, s.Message = rep.Reason, ending(rep.Message, messageBytes)
			}
		}
	}
	return s
}

// settle keeps the written demand while the new one is within a tenth of it, so
// that the status is not rewritten for noise.
func settle(written string, d float64) string {
	w, err := strconv.ParseFloat(written, 64)
	if err == nil && d <= w*1.1+0.05 && d >= w*0.9-0.05 {
		return written
	}
	return strconv.FormatFloat(d, 'g', 3, 64)
}

// report stores the status if it differs from the stored one in anything but
// evidence, or if evidence was last stored a while ago.
func (r *Reconciler) report(ctx context.Context, e *rollout.Endpoint, fleets map[string]cluster.FleetState, plan rollout.Plan, moved bool, now time.Time) error {
	stored, err := r.Store.Get(ctx, e.Key())
	if err != nil {
		return fmt.Errorf("get endpoint: %w", err)
	}
	if stored.Metadata.Generation != e.Metadata.Generation {
		return nil // what was observed is of an older spec: the watch brings the new one
	}
	next := stored.Clone()
	st := &next.Status
	st.ObservedGeneration = e.Metadata.Generation
	st.Versions, st.Demand = e.Status.Versions, e.Status.Demand
	for i := range st.Versions {
		v := &st.Versions[i]
		if p, ok := plan.Planned[v.Name]; ok {
			v.PlannedPercent = p
		}
		spec := e.Spec.Version(v.Name)
		switch {
		case v.Reason != "" || v.State != rollout.StateReady:
		case rollout.Queued(&e.Spec, spec):
			v.Reason, v.Message = rollout.ReasonQueued, "waits for an older treatment"
		case e.Spec.Strategy != nil && rollout.Overtaken(&e.Spec, spec):
			v.Reason, v.Message = rollout.ReasonSuperseded, "is older than the control: promote it by hand, or delete it"
		}
	}
	if r.ScoringURI != nil {
		st.ScoringURI = r.ScoringURI(e.Key())
	}
	rollout.RecordHistory(st, e.Spec.Changes)
	st.Conditions = conditions(st.Conditions, e, fleets, r.refusals.of(e.Key(), ""), now)
	evidence := r.evidence.status(e, now)
	var ro *rollout.RolloutStatus
	if plan.Rollout.Treatment != "" || len(evidence) > 0 {
		c := plan.Rollout
		ro = &c
	}
	var was []rollout.EvidenceStatus
	if stored.Status.Rollout != nil {
		was = stored.Status.Rollout.Evidence
	}
	if ro != nil {
		ro.Evidence = was
	}
	st.Rollout = ro
	st.Summary = summary(&e.Spec, st)
	same := reflect.DeepEqual(stored.Status, next.Status)
	if ro != nil && !reflect.DeepEqual(was, evidence) && (!same || moved || r.evidence.saveDue(e.Key(), now)) {
		ro.Evidence = evidence
		r.evidence.saved(e.Key(), now)
		same = false
	}
	// Traffic goes along with what is written anyway; alone it is written now and then, and once when it has ended.
	if traffic, due := r.evidence.measured(e, now); !same || due && (traffic != nil || st.Traffic != nil) {
		st.Traffic = traffic
		r.evidence.showed(e.Key(), now)
		same = false
	}
	if same {
		return nil
	}
	if _, err := r.Store.UpdateStatus(ctx, next); err != nil {
		return fmt.Errorf("store status: %w", err)
	}
	if r.Tell != nil {
		for _, c := range st.Conditions {
			if !slices.ContainsFunc(stored.Status.Conditions, func(w rollout.Condition) bool { return w.Type == c.Type && w.Status == c.Status }) {
				r.Tell(next, c)
			}
		}
	}
	return nil
}

// summary is the status in one line. The most urgent news comes first: what keeps requests from being
// served, then what people asked for, then where the strategy stands.
func summary(spec *rollout.Spec, st *rollout.Status) *rollout.Summary {
	var treatments []*rollout.Version
	var ready, all int
	var failed rollout.Reason
	for i := range spec.Versions {
		v := &spec.Versions[i]
		if v.Type == rollout.Treatment {
			treatments = append(treatments, v)
		}
		if s := st.Version(v.Name); spec.Active(v) {
			ready, all = ready+s.ReadyReplicas, all+s.Replicas
			if s.State == rollout.StateFailed {
				failed = s.Reason
			}
		}
	}
	slices.SortStableFunc(treatments, func(a, b *rollout.Version) int { return a.CreatedAt.Compare(b.CreatedAt) })
	var names, shares []string
	for _, v := range treatments {
		names, shares = append(names, v.Name), append(shares, st.Version(v.Name).EffectivePercent.String())
	}
	s := &rollout.Summary{
		Treatments: strings.Join(names, ","), Shares: strings.Join(shares, ","), Ready: fmt.Sprintf("%d/%d", ready, all),
	}
	for _, c := range st.Conditions {
		// Ready is good when true, Fallback when false.
		if (c.Type == "Ready") != (c.Status == "True") && s.Reason == "" {
			s.Reason = c.Reason
		}
	}
	switch {
	case s.Reason != "":
	case failed != "":
		s.Reason = failed
	case spec.Lock != nil:
		s.Reason = rollout.ReasonLocked
	case spec.Hold != nil:
		s.Reason = rollout.ReasonHeld
	case st.Rollout != nil:
		s.Reason = st.Rollout.Reason
	}
	return s
}

// The conditions of an endpoint beside Ready and Fallback.
const (
	// ConditionClusterFull: a replica that was asked for finds no node.
	ConditionClusterFull = "ClusterFull"
	// ConditionScaledByOther: something else scales a version; Sluice leaves it alone.
	ConditionScaledByOther = "ScaledByOther"
)

// conditions say whether the endpoint serves, and whether shares fell back.
func conditions(was []rollout.Condition, e *rollout.Endpoint, fleets map[string]cluster.FleetState, keys *rollout.Error, now time.Time) []rollout.Condition {
	ready := rollout.Condition{Type: "Ready", Status: "False", Reason: rollout.ReasonNothingServes, Message: "no version has a ready replica"}
	names := map[string]bool{}
	for _, v := range e.Status.Versions {
		names[v.Name] = v.ReadyReplicas > 0
		if v.ReadyReplicas > 0 {
			ready = rollout.Condition{Type: "Ready", Status: "True", Reason: rollout.ReasonNoChange}
		}
	}
	if keys != nil {
		ready = rollout.Condition{Type: "Ready", Status: "False", Reason: keys.Reason, Message: "nobody is let in: " + keys.Error()}
	}
	fell := rollout.Condition{Type: "Fallback", Status: "False", Reason: rollout.ReasonNoChange}
	for _, sh := range e.Spec.SharesWith(func(n string) bool { return names[n] }) {
		if sh.Fallback > 0 {
			fell = rollout.Condition{Type: "Fallback", Status: "True", Reason: rollout.ReasonFallback,
				Message: fmt.Sprintf("%s takes %s per cent of versions without ready replicas", sh.Name, sh.Fallback)}
		}
	}
	out := []rollout.Condition{ready, fell}
	full := rollout.Condition{Type: ConditionClusterFull, Status: "False", Reason: rollout.ReasonNoChange}
	foreign := rollout.Condition{Type: ConditionScaledByOther, Status: "False", Reason: rollout.ReasonNoChange}
	for i := range e.Spec.Versions {
		name := e.Spec.Versions[i].Name
		f := fleets[name]
		if why := f.Full(); why != "" && full.Status == "False" {
			full.Status, full.Reason, full.Message = "True", rollout.ReasonClusterFull, "no node has room for a replica of "+name+": "+ending(why, messageBytes)
		}
		if f.ScaledBy != "" && foreign.Status == "False" {
			foreign.Status, foreign.Reason = "True", rollout.ReasonScaledByOther
			foreign.Message = fmt.Sprintf("%s scales %s, so Sluice does not; once it is deleted Sluice scales the version again", f.ScaledBy, name)
		}
	}
	for _, c := range []rollout.Condition{full, foreign} {
		// Where it never was so, nothing is said.
		if c.Status == "True" || slices.ContainsFunc(was, func(w rollout.Condition) bool { return w.Type == c.Type }) {
			out = append(out, c)
		}
	}
	for i := range out {
		c := &out[i]
		c.ObservedGeneration, c.LastTransitionTime = e.Metadata.Generation, now.UTC().Truncate(time.Second)
		for _, w := range was {
			if w.Type == c.Type && w.Status == c.Status {
				c.LastTransitionTime = w.LastTransitionTime
			}
		}
	}
	return out
}
