package clustertest

import (
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-dev/sluice/pkg/cluster"
	"github.com/sluice-dev/sluice/rollout"
)

// EditorRepository is the id of the repository that the suite's changes come from.
const EditorRepository = 74

// Editor runs the suite of cluster.Editor. open gives one for a store without endpoints, and that store: the suite plays the
// control role in it.
func Editor(t *testing.T, open func(t *testing.T) (cluster.Editor, cluster.Store)) {
	key := rollout.Key{Namespace: "models", Name: "fraud"}
	n := 0
	request := func() rollout.Request {
		n++
		return rollout.Request{ID: fmt.Sprintf("change-%d", n), Actor: "ann", At: time.Now().UTC()}
	}
	always := func(op rollout.Op) func(*rollout.Endpoint) (rollout.Op, error) {
		return func(*rollout.Endpoint) (rollout.Op, error) { return op, nil }
	}
	deploy := func(name string, digit byte) rollout.Deploy {
		return rollout.Deploy{
			Repositories: []int64{EditorRepository},
			Version:      rollout.Version{Name: name, Image: Image(digit), Source: rollout.Source{RepositoryID: EditorRepository}, Description: "the model <1> & co", Tags: map[string]string{"team": "risk"}},
		}
	}
	edit := func(t *testing.T, ed cluster.Editor, op rollout.Op) *rollout.Endpoint {
		t.Helper()
		e, out, err := ed.Edit(t.Context(), key, request(), always(op))
		if err != nil || !out.Changed || !out.Applied || out.Message == "" {
			t.Fatalf("%s: %+v, %v", op, out, err)
		}
		return e
	}
	ready := func(t *testing.T, s cluster.Store) {
		t.Helper()
		e := must[*rollout.Endpoint](t)(s.Get(t.Context(), key))
		e.Status = rollout.Status{ScoringURI: "http://router.example/score"}
		for _, v := range e.Spec.Versions {
			e.Status.Versions = append(e.Status.Versions, rollout.VersionStatus{Name: v.Name, State: rollout.StateReady, Replicas: 1, ReadyReplicas: 1})
		}
		must[*rollout.Endpoint](t)(s.UpdateStatus(t.Context(), e))
	}
	refused := func(t *testing.T, ed cluster.Editor, op rollout.Op, want rollout.Reason) {
		t.Helper()
		_, _, err := ed.Edit(t.Context(), key, request(), always(op))
		if rollout.ReasonOf(err) != want {
			t.Errorf("%s: %v, want %s", op, err, want)
		}
	}

	t.Run("nothing there", func(t *testing.T) {
		ed, _ := open(t)
		_, err := ed.Get(t.Context(), key)
		wantIs(t, err, cluster.ErrNotFound, "get")
		wantIs(t, ed.Delete(t.Context(), key, ""), cluster.ErrNotFound, "delete")
		refused(t, ed, rollout.Hold{}, rollout.ReasonUnknownEndpoint)
		refused(t, ed, rollout.Promote{Version: "v1"}, rollout.ReasonUnknownEndpoint)
	})

	t.Run("a first deploy makes the endpoint", func(t *testing.T) {
		ed, s := open(t)
		called := 0
		op := deploy("v1", 'a')
		op.Strategy = &rollout.Strategy{Steps: []rollout.Step{{Percent: 1500}, {Percent: 50 * rollout.OnePercent}}, Gate: rollout.GateNone}
		op.Version.Settings = rollout.Settings{ScoringTimeoutMs: 1234, EnvironmentVariables: map[string]rollout.EnvValue{"OMP": {Value: "1"}}}
		e, out, err := ed.Edit(t.Context(), key, request(), func(e *rollout.Endpoint) (rollout.Op, error) {
			called++
			if e.Metadata.UID != "" || e.Key() != key || len(e.Spec.Versions) != 0 {
				t.Errorf("change is handed %+v", e)
			}
			return op, nil
		})
		if err != nil || !out.Changed || called != 1 {
			t.Fatalf("%+v, %v, called %d times", out, err, called)
		}
		stored := must[*rollout.Endpoint](t)(s.Get(t.Context(), key))
		if diff := cmp.Diff(stored, e); diff != "" {
			t.Errorf("Edit returns another endpoint than is stored (-stored +got):\n%s", diff)
		}
		got := must[*rollout.Endpoint](t)(ed.Get(t.Context(), key))
		if diff := cmp.Diff(stored, got); diff != "" {
			t.Errorf("Get returns another endpoint than is stored (-stored +got):\n%s", diff)
		}
		v := stored.Spec.Versions[0]
		if v.Type != rollout.Control || !v.IsDefault || v.Image != Image('a') || v.Description != op.Version.Description || v.Tags["team"] != "risk" ||
			v.ScoringTimeoutMs != 1234 || v.EnvironmentVariables["OMP"].Value != "1" || v.Source.RepositoryID != EditorRepository {
			t.Errorf("stored %+v", v)
		}
		if diff := cmp.Diff(op.Strategy, stored.Spec.Strategy); diff != "" {
			t.Errorf("strategy (-want +got):\n%s", diff)
		}
		if fmt.Sprint(stored.Spec.Repositories) != fmt.Sprintf("[%d]", EditorRepository) {
			t.Errorf("bound to %v", stored.Spec.Repositories)
		}
	})

	t.Run("every transition", func(t *testing.T) {
		ed, s := open(t)
		edit(t, ed, deploy("v1", 'a'))
		edit(t, ed, deploy("v2", 'b'))
		ready(t, s)
		treatment, none, ten := rollout.Treatment, rollout.Untyped, 10*rollout.OnePercent
		limit := 2
		e := edit(t, ed, rollout.Update{Version: "v2", Type: &treatment, Percent: &ten, Settings: &rollout.Settings{Replicas: &limit}})
		if v := e.Spec.Version("v2"); v.Type != treatment || v.TrafficPercentile != ten || *v.Replicas != 2 {
			t.Errorf("updated: %+v", v)
		}
		if e.Status.ScoringURI == "" {
			t.Error("Edit returns no status")
		}
		if e = edit(t, ed, rollout.Shift{Version: "v2", Percent: 20 * rollout.OnePercent}); e.Spec.Version("v2").TrafficPercentile != 20*rollout.OnePercent || e.Spec.Hold == nil {
			t.Errorf("shifted: %+v", e.Spec)
		}
		if e = edit(t, ed, rollout.Prepare{Version: "v2", Percent: 30 * rollout.OnePercent}); e.Spec.Version("v2").PlannedPercentile != 30*rollout.OnePercent {
			t.Errorf("prepared: %+v", e.Spec.Version("v2"))
		}
		if e = edit(t, ed, rollout.Prepare{Version: "v2"}); e.Spec.Version("v2").PlannedPercentile != 0 {
			t.Errorf("prepared for nothing: %+v", e.Spec.Version("v2"))
		}
		if e = edit(t, ed, rollout.Resume{}); e.Spec.Hold != nil {
			t.Error("not resumed")
		}
		if e = edit(t, ed, rollout.Hold{Reason: "wait \"a\" moment"}); e.Spec.Hold == nil || e.Spec.Hold.Reason != "wait \"a\" moment" {
			t.Errorf("held: %+v", e.Spec.Hold)
		}
		edit(t, ed, rollout.Resume{})
		if e = edit(t, ed, rollout.Lock{Reason: "freeze"}); e.Spec.Lock == nil || e.Spec.Lock.Reason != "freeze" {
			t.Errorf("locked: %+v", e.Spec.Lock)
		}
		refused(t, ed, rollout.Promote{Version: "v2"}, rollout.ReasonLocked)
		edit(t, ed, rollout.Unlock{})
		if e = edit(t, ed, rollout.Promote{Version: "v2"}); e.Spec.Default().Name != "v2" || e.Spec.ByRole(rollout.Standby) == nil {
			t.Errorf("promoted: %+v", e.Spec.Versions)
		}
		if e = edit(t, ed, rollout.Rollback{Version: "v2"}); e.Spec.Default().Name != "v1" {
			t.Errorf("rolled back: %+v", e.Spec.Versions)
		}
		edit(t, ed, rollout.Update{Version: "v2", Type: &treatment})
		edit(t, ed, rollout.Update{Version: "v2", Type: &none})
		edit(t, ed, rollout.Update{Version: "v2", Type: &treatment})
		if e = edit(t, ed, rollout.Retire{Version: "v2"}); e.Spec.Version("v2").RetiredAt.IsZero() {
			t.Error("not retired")
		}
		edit(t, ed, rollout.Update{Version: "v2", Default: true})
		if e = edit(t, ed, rollout.Delete{Version: "v2", NewDefault: "v1"}); len(e.Spec.Versions) != 1 {
			t.Errorf("deleted: %+v", e.Spec.Versions)
		}
	})

	t.Run("refusals keep reason, field and way out", func(t *testing.T) {
		ed, s := open(t)
		edit(t, ed, deploy("v1", 'a'))
		ready(t, s)
		refused(t, ed, rollout.Promote{Version: "v9"}, rollout.ReasonUnknownVersion)
		refused(t, ed, rollout.Delete{Version: "v1"}, rollout.ReasonLastVersion)
		bad := deploy("v2", 'b')
		bad.Version.Image = "registry.example/model:latest"
		refused(t, ed, bad, rollout.ReasonInvalid)
		_, _, err := ed.Edit(t.Context(), key, request(), always(rollout.Rollback{Version: "v1"}))
		var e *rollout.Error
		if !errors.As(err, &e) || e.Reason != rollout.ReasonNoStandby || e.Field == "" || e.Message == "" || e.Hint == "" {
			t.Errorf("%v", err)
		}
		if _, _, err := ed.Edit(t.Context(), key, rollout.Request{}, always(rollout.Hold{})); rollout.ReasonOf(err) != rollout.ReasonInvalid {
			t.Errorf("a change without id: %v", err)
		}
		own := errors.New("its own error")
		_, _, err = ed.Edit(t.Context(), key, request(), func(*rollout.Endpoint) (rollout.Op, error) { return nil, own })
		wantIs(t, err, own, "change's error")
	})

	t.Run("once by id, and nothing where nothing is to do", func(t *testing.T) {
		ed, _ := open(t)
		edit(t, ed, deploy("v1", 'a'))
		req := request()
		if _, out, err := ed.Edit(t.Context(), key, req, always(rollout.Hold{Reason: "one"})); err != nil || !out.Changed {
			t.Fatalf("%+v, %v", out, err)
		}
		e, out, err := ed.Edit(t.Context(), key, req, always(rollout.Hold{Reason: "two"}))
		if err != nil || out.Changed || e.Spec.Hold.Reason != "one" {
			t.Errorf("again: %+v, %v, %+v", out, err, e.Spec.Hold)
		}
		before := e.Metadata.ResourceVersion
		if e, out, err = ed.Edit(t.Context(), key, request(), always(deploy("v1", 'a'))); err != nil || out.Changed || !out.Applied || e.Metadata.ResourceVersion != before {
			t.Errorf("the same version: %+v, %v", out, err)
		}
	})

	t.Run("a lost race begins again from the read", func(t *testing.T) {
		ed, s := open(t)
		edit(t, ed, deploy("v1", 'a'))
		called := 0
		e, _, err := ed.Edit(t.Context(), key, request(), func(e *rollout.Endpoint) (rollout.Op, error) {
			if called++; called <= 2 { // someone else is quicker, twice
				other := e.Clone()
				other.Spec.Versions[0].Description = fmt.Sprint("changed ", called)
				must[*rollout.Endpoint](t)(s.Update(t.Context(), other))
			}
			return rollout.Hold{Reason: "seen: " + e.Spec.Versions[0].Description}, nil
		})
		if err != nil || called != 3 || e.Spec.Hold.Reason != "seen: changed 2" {
			t.Errorf("called %d times: %v, %+v", called, err, e)
		}
		// Two first deploys at once: one makes the endpoint, the other joins it.
		ed, s = open(t)
		called = 0
		e, _, err = ed.Edit(t.Context(), key, request(), func(*rollout.Endpoint) (rollout.Op, error) {
			if called++; called == 1 {
				other := Endpoint(key.Namespace, key.Name)
				other.Spec.Repositories = []int64{EditorRepository}
				must[*rollout.Endpoint](t)(s.Create(t.Context(), other))
			}
			return deploy("v2", 'b'), nil
		})
		if err != nil || called != 2 || len(e.Spec.Versions) != 2 {
			t.Errorf("called %d times: %v, %+v", called, err, e)
		}
		called = 0
		_, _, err = ed.Edit(t.Context(), key, request(), func(e *rollout.Endpoint) (rollout.Op, error) {
			called++
			other := must[*rollout.Endpoint](t)(s.Get(t.Context(), key))
			other.Spec.Versions[0].Description = fmt.Sprint("again ", called)
			must[*rollout.Endpoint](t)(s.Update(t.Context(), other))
			return rollout.Hold{Reason: fmt.Sprint(called)}, nil
		})
		if rollout.ReasonOf(err) != rollout.ReasonConflict {
			t.Errorf("a race that is always lost: %v", err)
		}
	})

	t.Run("many at once", func(t *testing.T) {
		ed, s := open(t)
		edit(t, ed, deploy("v1", 'a'))
		const each = 8
		var wg sync.WaitGroup
		for i := range each {
			req := request()
			wg.Go(func() {
				if _, out, err := ed.Edit(t.Context(), key, req, always(rollout.Hold{Reason: fmt.Sprint(i)})); err != nil || !out.Changed {
					t.Errorf("%d: %+v, %v", i, out, err)
				}
			})
		}
		wg.Wait()
		if n := len(must[*rollout.Endpoint](t)(s.Get(t.Context(), key)).Spec.Changes); n != each+1 {
			t.Errorf("%d changes are recorded, want %d", n, each+1)
		}
	})

	t.Run("delete", func(t *testing.T) {
		ed, s := open(t)
		first := edit(t, ed, deploy("v1", 'a'))
		edit(t, ed, rollout.Hold{})
		wantIs(t, ed.Delete(t.Context(), key, first.Metadata.ResourceVersion), cluster.ErrConflict, "delete what was")
		now := must[*rollout.Endpoint](t)(ed.Get(t.Context(), key))
		if err := ed.Delete(t.Context(), key, now.Metadata.ResourceVersion); err != nil {
			t.Fatal(err)
		}
		_, err := s.Get(t.Context(), key)
		wantIs(t, err, cluster.ErrNotFound, "get after delete")
		edit(t, ed, deploy("v1", 'a'))
		if err := ed.Delete(t.Context(), key, ""); err != nil {
			t.Error(err)
		}
	})

	t.Run("news come to who waits for them", func(t *testing.T) {
		ed, s := open(t)
		edit(t, ed, deploy("v1", 'a'))
		must[*rollout.Endpoint](t)(ed.Get(t.Context(), key))
		go func() {
			time.Sleep(50 * time.Millisecond)
			e, err := s.Get(t.Context(), key)
			if err == nil {
				e.Status.ScoringURI = "http://router.example/score"
				_, err = s.UpdateStatus(t.Context(), e)
			}
			if err != nil {
				t.Error(err)
			}
		}()
		eventually(t, "the status", func() error {
			if e := must[*rollout.Endpoint](t)(ed.Get(t.Context(), key)); e.Status.ScoringURI == "" {
				return errors.New("not there yet")
			}
			return nil
		})
		got := must[*rollout.Endpoint](t)(ed.Get(t.Context(), key))
		got.Spec.Versions[0].Name = "scribbled"
		if e := must[*rollout.Endpoint](t)(ed.Get(t.Context(), key)); e.Spec.Versions[0].Name != "v1" {
			t.Error("what Get returns is not the caller's own")
		}
	})
}
