package page

import (
	"fmt"
	"testing"
	"time"

	"github.com/sluice-dev/sluice/pkg/cluster/memory"
	"github.com/sluice-dev/sluice/rollout"
	"github.com/sluice-dev/sluice/rollout/verdict"
)

// story makes endpoints by the transitions that make real ones, at times before now.
type story struct {
	t     *testing.T
	store *memory.Store
	now   time.Time
	e     *rollout.Endpoint
	n     int
}

func image(n int) string { return fmt.Sprintf("registry.example/models@sha256:%064x", n) }

func (s *story) begin(namespace, name string) {
	s.e = &rollout.Endpoint{Metadata: rollout.Metadata{Namespace: namespace, Name: name, ResourceVersion: "1", Generation: 1}}
}

// at, so many minutes ago, somebody does something.
func (s *story) at(minutes float64, actor string, reason rollout.Reason, evidence string, op rollout.Op) {
	s.t.Helper()
	s.n++
	next, _, err := rollout.Apply(s.e, rollout.Request{
		ID: fmt.Sprintf("c-%d", s.n), Actor: actor, Reason: reason, Evidence: evidence, At: s.now.Add(-time.Duration(minutes * float64(time.Minute))).Truncate(time.Second), Force: true,
	}, op)
	if err != nil {
		s.t.Fatal(err)
	}
	s.e = next
	rollout.RecordHistory(&s.e.Status, s.e.Spec.Changes)
}

func (s *story) deploy(minutes float64, name string, n, pr int, strategy *rollout.Strategy) {
	s.t.Helper()
	s.at(minutes, "github:alice@acme/fraud#981", "", "", rollout.Deploy{Strategy: strategy, Version: rollout.Version{
		Name: name, Image: image(n), Source: rollout.Source{RepositoryID: 74, PullRequest: pr, Commit: fmt.Sprintf("%040x", n*0x1f2e3d4)},
	}})
}

func (s *story) treatment(minutes float64, name string) {
	s.t.Helper()
	role := rollout.Treatment
	s.at(minutes, "github:alice@acme/fraud#981", "", "", rollout.Update{Version: name, Type: &role})
}

// judged is the decision on so many requests.
func (s *story) judged(requests, bad, controlRequests, controlBad int64, rho float64) verdict.Decision {
	p := verdict.ParamsOf(*s.e.Spec.Strategy)
	e := verdict.New(p)
	e.ObserveGood(verdict.Treatment, requests-bad)
	e.ObserveGood(verdict.Control, controlRequests-controlBad)
	for i := range max(bad, controlBad) {
		if i < bad {
			e.Observe(verdict.Treatment, rho, true)
		}
		if i < controlBad {
			e.Observe(verdict.Control, rho, true)
		}
	}
	return verdict.Judge(p, e)
}

// settle fills in what the control role reports, and stores the endpoint.
func (s *story) settle(ready func(name string) (int, int)) {
	s.t.Helper()
	st := &s.e.Status
	st.ObservedGeneration = 1
	st.ScoringURI = "https://models.example/api/v1/endpoint/" + s.e.Key().String() + "/score"
	conditions := rollout.Condition{Type: "Ready", Status: "False", Reason: rollout.ReasonNothingServes, Message: "no version has a ready replica", LastTransitionTime: s.now}
	for _, sh := range s.e.Spec.Shares() {
		v := s.e.Spec.Version(sh.Name)
		vs := rollout.VersionStatus{Name: sh.Name, State: rollout.StateReady, EffectivePercent: sh.Percent, PlannedPercent: sh.Percent}
		vs.ReadyReplicas, vs.Replicas = ready(sh.Name)
		switch {
		case !v.RetiredAt.IsZero():
			vs.State, vs.ReadyReplicas, vs.Replicas = rollout.StateRetired, 0, 0
		case vs.ReadyReplicas == 0 && vs.Replicas > 0:
			vs.State, vs.Reason, vs.Message = rollout.StateFailed, rollout.ReasonInitFailed, "Traceback (most recent call last):\n  File \"score.py\", line 7, in init\nKeyError: 'THRESHOLD'"
		case vs.ReadyReplicas > 0:
			conditions = rollout.Condition{Type: "Ready", Status: "True", Reason: rollout.ReasonNoChange, LastTransitionTime: s.now}
		}
		st.Versions = append(st.Versions, vs)
	}
	st.Conditions = []rollout.Condition{conditions}
	e := s.e
	made, err := s.store.Create(s.t.Context(), e)
	if err != nil {
		s.t.Fatal(err)
	}
	made.Status = e.Status
	if _, err := s.store.UpdateStatus(s.t.Context(), made); err != nil {
		s.t.Fatal(err)
	}
}

// tell fills a store with endpoints in all states.
func tell(t *testing.T, now time.Time) *memory.Store {
	s := &story{t: t, store: memory.NewStore(), now: now}
	n := func(n int64) *int64 { return &n }
	strategy := func() *rollout.Strategy {
		return &rollout.Strategy{Steps: []rollout.Step{
			{Percent: rollout.OnePercent, MinRequests: n(200)}, {Percent: 10 * rollout.OnePercent}, {Percent: 50 * rollout.OnePercent, MinRequests: n(5000)},
		}}
	}
	all := func(n int) func(string) (int, int) { return func(string) (int, int) { return n, n } }

	s.begin("models", "fraud")
	s.deploy(3*24*60, "sha-1f2e3d4", 1, 0, strategy())
	s.deploy(58, "pr-42-3f9c2ab", 2, 42, nil)
	s.treatment(56, "pr-42-3f9c2ab")
	s.at(55.8, rollout.Engine, rollout.ReasonStepStarted, "", rollout.Shift{Version: "pr-42-3f9c2ab", Percent: rollout.OnePercent})
	s.at(41, rollout.Engine, rollout.ReasonStepComplete, s.judged(212, 0, 20912, 41, 0.01).Sentence(), rollout.Shift{Version: "pr-42-3f9c2ab", Percent: 10 * rollout.OnePercent})
	s.at(33, "github:bob@acme/fraud#41", "", "", rollout.Hold{Reason: "before the sale starts"})
	s.at(24, "github:bob@acme/fraud#41", "", "", rollout.Resume{})
	s.at(23, rollout.Engine, rollout.ReasonStepComplete, s.judged(3120, 5, 47210, 88, 0.1).Sentence(), rollout.Shift{Version: "pr-42-3f9c2ab", Percent: 50 * rollout.OnePercent})
	d := s.judged(7381, 13, 51304, 97, 0.5)
	s.e.Status.Rollout = &rollout.RolloutStatus{
		Treatment: "pr-42-3f9c2ab", Step: 2, StepPercent: 50 * rollout.OnePercent, StepStarted: now.Add(-23 * time.Minute), Started: now.Add(-56 * time.Minute), StepRequests: "3120",
		Reason: rollout.ReasonStepRunning, Message: "4261 of 5000 requests at 50 per cent", Evidence: []rollout.EvidenceStatus{d.Status("pr-42-3f9c2ab", "k")},
	}
	s.e.Status.Traffic = &rollout.TrafficStatus{At: now.Add(-3 * time.Second).Truncate(time.Second), Seconds: 60, Versions: []rollout.VersionTraffic{
		{Name: "sha-1f2e3d4", Requests: 1204, Failed: 2, P50: "11.8", P99: "48.3"}, {Name: "pr-42-3f9c2ab", Requests: 1187, Failed: 3, P50: "12.4", P99: "51.0"},
	}}
	s.settle(func(name string) (int, int) { return 3, 3 })

	s.begin("models", "churn")
	s.deploy(9000, "sha-77aa010", 3, 0, strategy())
	s.deploy(400, "pr-7-0a1b2c3", 4, 7, nil)
	s.treatment(398, "pr-7-0a1b2c3")
	s.at(397, rollout.Engine, rollout.ReasonStepStarted, "", rollout.Shift{Version: "pr-7-0a1b2c3", Percent: rollout.OnePercent})
	s.at(390, rollout.Engine, rollout.ReasonWorse, s.judged(41, 17, 4012, 6, 0.01).Sentence(), rollout.Rollback{Version: "pr-7-0a1b2c3"})
	s.settle(all(2))

	s.begin("models", "ranking")
	s.deploy(7000, "sha-0c0ffee", 5, 0, strategy())
	s.deploy(600, "pr-88-51ce1ab", 6, 88, nil)
	s.treatment(598, "pr-88-51ce1ab")
	s.at(597, rollout.Engine, rollout.ReasonStepStarted, "", rollout.Shift{Version: "pr-88-51ce1ab", Percent: rollout.OnePercent})
	s.at(560, rollout.Engine, rollout.ReasonStepComplete, "", rollout.Shift{Version: "pr-88-51ce1ab", Percent: 10 * rollout.OnePercent})
	s.at(500, rollout.Engine, rollout.ReasonStepComplete, "", rollout.Shift{Version: "pr-88-51ce1ab", Percent: 50 * rollout.OnePercent})
	s.at(430, rollout.Engine, rollout.ReasonNotWorse, s.judged(20100, 8, 60100, 45, 0.5).Sentence(), rollout.Promote{Version: "pr-88-51ce1ab"})
	s.settle(all(4))

	s.begin("models", "pricing-with-a-rather-long-name")
	s.deploy(4000, "sha-abcdef0", 7, 0, nil)
	for i, p := range []rollout.Percent{5 * rollout.OnePercent, 12500, 20 * rollout.OnePercent} {
		name := fmt.Sprintf("pr-%d-%07x", 100+i, i+1)
		s.deploy(300-float64(i)*20, name, 8+i, 100+i, nil)
		s.treatment(299-float64(i)*20, name)
		s.at(298-float64(i)*20, "github:carol@acme/pricing#7", "", "", rollout.Shift{Version: name, Percent: p})
	}
	s.at(100, "github:carol@acme/pricing#7", "", "", rollout.Lock{Reason: "audit until Friday"})
	s.settle(all(1))

	s.begin("speech", "transcribe")
	s.deploy(30, "sha-5005005", 20, 0, nil)
	s.settle(func(string) (int, int) { return 0, 1 })
	return s.store
}
