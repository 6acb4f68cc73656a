package control

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-dev/sluice/rollout"
)

func TestSummary(t *testing.T) {
	at := time.Date(2026, 11, 23, 10, 0, 0, 0, time.UTC)
	spec := &rollout.Spec{Versions: []rollout.Version{
		{Name: "a", Type: rollout.Control, CreatedAt: at},
		{Name: "young", Type: rollout.Treatment, TrafficPercentile: 12_500, CreatedAt: at.Add(2 * time.Hour)},
		{Name: "old", Type: rollout.Treatment, TrafficPercentile: 1000, CreatedAt: at.Add(time.Hour)},
		{Name: "joining", CreatedAt: at.Add(3 * time.Hour)},
	}}
	good := []rollout.Condition{{Type: "Ready", Status: "True", Reason: rollout.ReasonNoChange}, {Type: "Fallback", Status: "False", Reason: rollout.ReasonNoChange}}
	fell := []rollout.Condition{good[0], {Type: "Fallback", Status: "True", Reason: rollout.ReasonFallback}}
	down := []rollout.Condition{{Type: "Ready", Status: "False", Reason: rollout.ReasonNothingServes}, good[1]}
	st := rollout.Status{
		Conditions: good,
		Versions: []rollout.VersionStatus{
			{Name: "a", State: rollout.StateReady, Replicas: 3, ReadyReplicas: 3, EffectivePercent: 86_500},
			{Name: "young", State: rollout.StateReady, Replicas: 2, ReadyReplicas: 1, EffectivePercent: 12_500},
			{Name: "old", State: rollout.StateStarting, Replicas: 1, EffectivePercent: 1000},
			{Name: "joining", State: rollout.StateFailed, Reason: rollout.ReasonCrashed, Replicas: 1},
		},
		Rollout: &rollout.RolloutStatus{Treatment: "old", Reason: rollout.ReasonStepRunning},
	}
	want := rollout.Summary{Treatments: "old,young", Shares: "1,12.5", Ready: "4/6", Reason: rollout.ReasonStepRunning}
	if diff := cmp.Diff(&want, summary(spec, &st)); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}

	// Each adds a more urgent reason; a version without a part in traffic is no news.
	for _, step := range []struct {
		change func()
		want   rollout.Reason
	}{
		{func() { spec.Hold = &rollout.Mark{} }, rollout.ReasonHeld},
		{func() { spec.Lock = &rollout.Mark{} }, rollout.ReasonLocked},
		{func() { st.Versions[1].State, st.Versions[1].Reason = rollout.StateFailed, rollout.ReasonInitFailed }, rollout.ReasonInitFailed},
		{func() { st.Conditions = fell }, rollout.ReasonFallback},
		{func() { st.Conditions = down }, rollout.ReasonNothingServes},
	} {
		step.change()
		if got := summary(spec, &st).Reason; got != step.want {
			t.Errorf("the news is %q, want %q", got, step.want)
		}
	}

	quiet := summary(&rollout.Spec{Versions: spec.Versions[:1]}, &rollout.Status{Versions: st.Versions[:1], Conditions: good})
	if diff := cmp.Diff(&rollout.Summary{Ready: "3/3"}, quiet); diff != "" {
		t.Errorf("without news: -want +got:\n%s", diff)
	}
}
