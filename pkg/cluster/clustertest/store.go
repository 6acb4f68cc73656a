package clustertest

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-dev/sluice/pkg/cluster"
	"github.com/sluice-dev/sluice/rollout"
)

// Store runs the suite of cluster.Store. open gives a store without endpoints.
func Store(t *testing.T, open func(t *testing.T) cluster.Store) {
	create := func(t *testing.T, s cluster.Store, e *rollout.Endpoint) *rollout.Endpoint {
		t.Helper()
		return must[*rollout.Endpoint](t)(s.Create(t.Context(), e))
	}
	get := func(t *testing.T, s cluster.Store, key rollout.Key) *rollout.Endpoint {
		t.Helper()
		return must[*rollout.Endpoint](t)(s.Get(t.Context(), key))
	}

	t.Run("create stamps and stores", func(t *testing.T) {
		s := open(t)
		in := Endpoint("models", "fraud")
		in.Status.ScoringURI = "not the creator's to set"
		before := time.Now().Add(-2 * time.Second)
		e := create(t, s, in)
		m := e.Metadata
		if m.UID == "" || m.ResourceVersion == "" || m.Generation != 1 {
			t.Errorf("metadata = %+v, want a UID, a resource version and generation 1", m)
		}
		if m.CreationTimestamp.Before(before) || m.CreationTimestamp.After(time.Now().Add(2*time.Second)) {
			t.Errorf("created at %s, not now", m.CreationTimestamp)
		}
		if e.APIVersion != rollout.APIVersion || e.Kind != rollout.Kind {
			t.Errorf("kind = %s %s", e.APIVersion, e.Kind)
		}
		if e.Status.ScoringURI != "" {
			t.Error("Create stored a status")
		}
		if diff := cmp.Diff(in.Spec, e.Spec); diff != "" {
			t.Errorf("spec (-given +stored):\n%s", diff)
		}
		if diff := cmp.Diff(e, get(t, s, e.Key())); diff != "" {
			t.Errorf("Get differs from what Create returned (-created +got):\n%s", diff)
		}
		if in.Metadata.UID != "" || in.Metadata.ResourceVersion != "" {
			t.Error("Create changed its argument")
		}
	})

	t.Run("create refuses", func(t *testing.T) {
		s := open(t)
		create(t, s, Endpoint("models", "fraud"))
		_, err := s.Create(t.Context(), Endpoint("models", "fraud"))
		wantIs(t, err, cluster.ErrExists, "create twice")
		for _, bad := range []struct{ namespace, name string }{
			{"models", ""}, {"models", "../x"}, {"models", "Fraud"}, {"", "fraud"}, {"..", "fraud"}, {"a/b", "fraud"}, {"models", "a-name-that-is-longer-than-32-letters"},
		} {
			_, err := s.Create(t.Context(), Endpoint(bad.namespace, bad.name))
			wantRefusal(t, err, rollout.ReasonInvalid)
		}
		e := Endpoint("models", "two-controls")
		v := e.Spec.Versions[0]
		v.Name, v.IsDefault = "v2", false
		e.Spec.Versions = append(e.Spec.Versions, v)
		_, err = s.Create(t.Context(), e)
		wantRefusal(t, err, rollout.ReasonTwoControls)
		_, err = s.Get(t.Context(), e.Key())
		wantIs(t, err, cluster.ErrNotFound, "get one that was refused")
	})

	t.Run("the same name in two namespaces", func(t *testing.T) {
		s := open(t)
		a, b := create(t, s, Endpoint("models", "fraud")), create(t, s, Endpoint("other", "fraud"))
		if a.Metadata.UID == b.Metadata.UID {
			t.Error("two endpoints have one UID")
		}
		b.Spec.Repositories = []int64{7}
		must[*rollout.Endpoint](t)(s.Update(t.Context(), b))
		if diff := cmp.Diff(a, get(t, s, a.Key())); diff != "" {
			t.Errorf("an update of %s changed %s:\n%s", b.Key(), a.Key(), diff)
		}
	})

	t.Run("everything survives", func(t *testing.T) {
		s := open(t)
		in := Endpoint("models", "full")
		ten, half, no := 10, 0.5, int64(0)
		in.Spec = rollout.Spec{
			Repositories: []int64{123456789, 9007199254740993},
			Changes: []rollout.Change{{
				ID: "c-1", Actor: "ann", Action: "promote v1", Reason: rollout.ReasonRequested, Evidence: "1e-3",
				Message: "quotes \" ' : # - \\ \t and\nlines,\u0085\u007f\u2028 umlauts äöü, 日本 and \U0001f600",
				At:      time.Date(2026, 1, 2, 3, 4, 5, 678900000, time.UTC), Digest: "0123456789012345",
			}},
			Hold: &rollout.Mark{Reason: "yes", Actor: "~"}, Lock: &rollout.Mark{Reason: "0x10"},
			Auth: &rollout.Auth{Mode: rollout.AuthNone},
			Versions: []rollout.Version{{
				Name: "v1", Type: rollout.Control, Image: Image('b'), TrafficPercentile: 12_345,
				Source:      rollout.Source{RepositoryID: 123456789, PullRequest: 41, Commit: "1e10000", RunID: 9007199254740993},
				Description: "null", Tags: map[string]string{"a": "1", "b": ""}, Properties: map[string]string{"x": "true"},
				Settings: rollout.Settings{
					Autoscale:        &rollout.Autoscale{MaxReplicas: &ten, TargetUtilization: 60},
					Concurrency:      &rollout.Concurrency{MaxConcurrentRequests: 2, MaxQueueWaitMs: 5},
					ScoringTimeoutMs: 1, LivenessProbe: &rollout.Probe{PeriodSeconds: 3},
					Server:               &rollout.Server{Command: []string{"serve", "--x=y: z"}, Port: 8000, ScorePath: "/s", HealthPath: "/h"},
					EnvironmentVariables: map[string]rollout.EnvValue{"A": {Value: "0755"}, "B": {Value: "line\nline "}, "C": {Value: ""}},
				},
			}},
			Strategy: &rollout.Strategy{
				Steps: []rollout.Step{{Percent: 1, MinRequests: &no}, {Percent: rollout.Full, MinDuration: rollout.Duration(90 * time.Minute)}},
				Alpha: 0.01, R1: 3, MaxBadPercent: &half,
			},
		}
		e := create(t, s, in)
		if diff := cmp.Diff(in.Spec, e.Spec); diff != "" {
			t.Fatalf("spec (-given +stored):\n%s", diff)
		}
		e.Status = rollout.Status{
			ObservedGeneration: 1, ScoringURI: "http://127.0.0.1:8080/x", Demand: "1.50",
			Versions: []rollout.VersionStatus{{Name: "v1", State: rollout.StateReady, Replicas: 2, ReadyReplicas: 1, EffectivePercent: rollout.Full, Message: "Traceback:\n  File \"x\"\n\x1b[31mred\x1b[0m"}},
			Rollout:  &rollout.RolloutStatus{Treatment: "v2", Step: -1, StepRequests: "12", Evidence: []rollout.EvidenceStatus{{Treatment: "v2", Saved: "base64=="}}},
			History:  in.Spec.Changes,
		}
		must[*rollout.Endpoint](t)(s.UpdateStatus(t.Context(), e))
		got := get(t, s, e.Key())
		if diff := cmp.Diff(in.Spec, got.Spec); diff != "" {
			t.Errorf("spec (-given +stored):\n%s", diff)
		}
		if diff := cmp.Diff(e.Status, got.Status); diff != "" {
			t.Errorf("status (-given +stored):\n%s", diff)
		}
	})

	t.Run("update writes the spec alone", func(t *testing.T) {
		s := open(t)
		e := create(t, s, Endpoint("models", "fraud"))
		e.Status.ScoringURI = "http://x/"
		e = must[*rollout.Endpoint](t)(s.UpdateStatus(t.Context(), e))
		if e.Metadata.Generation != 1 {
			t.Errorf("generation %d after an update of the status, want 1", e.Metadata.Generation)
		}
		next := e.Clone()
		next.Spec.Repositories = []int64{1}
		next.Status.ScoringURI = "changed by the wrong call"
		got := must[*rollout.Endpoint](t)(s.Update(t.Context(), next))
		if got.Metadata.Generation != 2 {
			t.Errorf("generation %d after an update of the spec, want 2", got.Metadata.Generation)
		}
		if got.Metadata.ResourceVersion == e.Metadata.ResourceVersion {
			t.Error("an update kept the resource version")
		}
		if got.Metadata.UID != e.Metadata.UID || !got.Metadata.CreationTimestamp.Equal(e.Metadata.CreationTimestamp) {
			t.Errorf("an update changed UID or creation: %+v, was %+v", got.Metadata, e.Metadata)
		}
		if got.Status.ScoringURI != "http://x/" {
			t.Errorf("an update of the spec changed the status to %q", got.Status.ScoringURI)
		}
		if diff := cmp.Diff(got, get(t, s, e.Key())); diff != "" {
			t.Errorf("Get differs from what Update returned (-updated +got):\n%s", diff)
		}
	})

	t.Run("update status writes the status alone", func(t *testing.T) {
		s := open(t)
		e := create(t, s, Endpoint("models", "fraud"))
		e.Spec.Repositories = []int64{1}
		e.Status.Demand = "3"
		got := must[*rollout.Endpoint](t)(s.UpdateStatus(t.Context(), e))
		if len(got.Spec.Repositories) != 0 || got.Status.Demand != "3" {
			t.Errorf("stored repositories %v and demand %q, want none and 3", got.Spec.Repositories, got.Status.Demand)
		}
		if got.Metadata.ResourceVersion == e.Metadata.ResourceVersion {
			t.Error("an update of the status kept the resource version")
		}
	})

	t.Run("what changes nothing keeps the resource version", func(t *testing.T) {
		s := open(t)
		e := create(t, s, Endpoint("models", "fraud"))
		e.Status.Demand = "1"
		e = must[*rollout.Endpoint](t)(s.UpdateStatus(t.Context(), e))
		for range 3 {
			again := must[*rollout.Endpoint](t)(s.UpdateStatus(t.Context(), e))
			if diff := cmp.Diff(e, again); diff != "" {
				t.Errorf("an unchanged status (-before +after):\n%s", diff)
			}
			again = must[*rollout.Endpoint](t)(s.Update(t.Context(), e))
			if diff := cmp.Diff(e, again); diff != "" {
				t.Errorf("an unchanged spec (-before +after):\n%s", diff)
			}
		}
	})

	t.Run("stale writes conflict", func(t *testing.T) {
		s := open(t)
		old := create(t, s, Endpoint("models", "fraud"))
		now := old.Clone()
		now.Spec.Repositories = []int64{1}
		now = must[*rollout.Endpoint](t)(s.Update(t.Context(), now))

		stale := old.Clone()
		stale.Spec.Repositories = []int64{2}
		_, err := s.Update(t.Context(), stale)
		wantIs(t, err, cluster.ErrConflict, "update with an old resource version")
		stale.Status.Demand = "9"
		_, err = s.UpdateStatus(t.Context(), stale)
		wantIs(t, err, cluster.ErrConflict, "update the status with an old resource version")
		wantIs(t, s.Delete(t.Context(), old.Key(), old.Metadata.ResourceVersion), cluster.ErrConflict, "delete with an old resource version")
		none := now.Clone()
		none.Metadata.ResourceVersion = ""
		none.Spec.Repositories = []int64{3}
		_, err = s.Update(t.Context(), none)
		wantIs(t, err, cluster.ErrConflict, "update without a resource version")
		if diff := cmp.Diff(now, get(t, s, now.Key())); diff != "" {
			t.Errorf("refused writes changed the endpoint (-want +got):\n%s", diff)
		}
	})

	t.Run("update refuses", func(t *testing.T) {
		s := open(t)
		e := create(t, s, Endpoint("models", "fraud"))
		bad := e.Clone()
		bad.Spec.Versions[0].TrafficPercentile = 101 * rollout.OnePercent // Clone would panic on it
		_, err := s.Update(t.Context(), bad)
		wantRefusal(t, err, rollout.ReasonPercentInvalid)
		bad = e.Clone()
		bad.Spec.Versions[0].Image = Image('f')
		_, err = s.Update(t.Context(), bad)
		wantRefusal(t, err, rollout.ReasonVersionExists)
		bad = e.Clone()
		bad.Status.Versions = []rollout.VersionStatus{{Name: "v1", EffectivePercent: -1}}
		if _, err = s.UpdateStatus(t.Context(), bad); err == nil {
			t.Error("a status that cannot be read back was stored")
		}
		_, err = s.Update(t.Context(), Endpoint("models", "missing"))
		wantIs(t, err, cluster.ErrNotFound, "update a missing one")
		_, err = s.UpdateStatus(t.Context(), Endpoint("models", "missing"))
		wantIs(t, err, cluster.ErrNotFound, "update the status of a missing one")
		if diff := cmp.Diff(e, get(t, s, e.Key())); diff != "" {
			t.Errorf("refused writes changed the endpoint (-want +got):\n%s", diff)
		}
	})

	t.Run("delete", func(t *testing.T) {
		s := open(t)
		e := create(t, s, Endpoint("models", "fraud"))
		if err := s.Delete(t.Context(), e.Key(), e.Metadata.ResourceVersion); err != nil {
			t.Fatal(err)
		}
		_, err := s.Get(t.Context(), e.Key())
		wantIs(t, err, cluster.ErrNotFound, "get a deleted one")
		wantIs(t, s.Delete(t.Context(), e.Key(), ""), cluster.ErrNotFound, "delete twice")
		_, err = s.Update(t.Context(), e)
		wantIs(t, err, cluster.ErrNotFound, "update a deleted one")

		again := create(t, s, Endpoint("models", "fraud"))
		if again.Metadata.UID == e.Metadata.UID {
			t.Error("an endpoint has the UID of an earlier one of its name")
		}
		e.Spec.Repositories = []int64{1}
		_, err = s.Update(t.Context(), e)
		wantIs(t, err, cluster.ErrConflict, "update a later endpoint of the name with the earlier one's resource version")
		if err := s.Delete(t.Context(), again.Key(), ""); err != nil {
			t.Errorf("delete whatever the resource version: %v", err)
		}
	})

	t.Run("get of names that cannot be", func(t *testing.T) {
		s := open(t)
		create(t, s, Endpoint("models", "fraud"))
		for _, key := range []rollout.Key{{}, {Namespace: "models"}, {Namespace: "models", Name: "../models/fraud"}, {Namespace: ".", Name: "fraud"}, {Namespace: "models", Name: "fraud\x00"}} {
			_, err := s.Get(t.Context(), key)
			wantIs(t, err, cluster.ErrNotFound, "get "+strconv.Quote(key.String()))
			wantIs(t, s.Delete(t.Context(), key, ""), cluster.ErrNotFound, "delete "+strconv.Quote(key.String()))
		}
	})

	t.Run("list is sorted and the caller's own", func(t *testing.T) {
		s := open(t)
		if l := must[[]*rollout.Endpoint](t)(s.List(t.Context())); len(l) != 0 {
			t.Fatalf("a new store lists %d endpoints", len(l))
		}
		for _, k := range []rollout.Key{{Namespace: "b", Name: "a"}, {Namespace: "a", Name: "z"}, {Namespace: "a-b", Name: "a"}, {Namespace: "a", Name: "b"}} {
			create(t, s, Endpoint(k.Namespace, k.Name))
		}
		var got []string
		for _, e := range must[[]*rollout.Endpoint](t)(s.List(t.Context())) {
			got = append(got, e.Key().String())
			e.Spec.Versions[0].Name = "scribbled"
		}
		if diff := cmp.Diff([]string{"a/b", "a/z", "a-b/a", "b/a"}, got); diff != "" {
			t.Errorf("list (-want +got):\n%s", diff)
		}
		e := get(t, s, rollout.Key{Namespace: "a", Name: "b"})
		if e.Spec.Versions[0].Name != "v1" {
			t.Error("writing into what List returned changed the store")
		}
		e.Spec.Versions[0].Name = "scribbled"
		if get(t, s, e.Key()).Spec.Versions[0].Name != "v1" {
			t.Error("writing into what Get returned changed the store")
		}
	})

	t.Run("watch", func(t *testing.T) {
		s := open(t)
		create(t, s, Endpoint("models", "first"))
		ctx, cancel := scoped(t)
		c, err := s.Watch(ctx)
		if err != nil {
			t.Fatal(err)
		}
		first := rollout.Key{Namespace: "models", Name: "first"}
		// until reads keys until key comes and check then holds of the store.
		until := func(key rollout.Key, what string, check func() bool) {
			t.Helper()
			for {
				if got := receive(t, c, what); got == key && check() {
					return
				}
			}
		}
		until(first, "the endpoint that is there", func() bool { return true })
		second := create(t, s, Endpoint("other", "second"))
		until(second.Key(), "a new one", func() bool { return true })
		second.Spec.Repositories = []int64{1}
		second = must[*rollout.Endpoint](t)(s.Update(t.Context(), second))
		until(second.Key(), "a change of the spec", func() bool { return len(get(t, s, second.Key()).Spec.Repositories) == 1 })
		second.Status.Demand = "1"
		second = must[*rollout.Endpoint](t)(s.UpdateStatus(t.Context(), second))
		until(second.Key(), "a change of the status", func() bool { return get(t, s, second.Key()).Status.Demand == "1" })
		if err := s.Delete(t.Context(), second.Key(), ""); err != nil {
			t.Fatal(err)
		}
		until(second.Key(), "one that goes", func() bool {
			_, err := s.Get(t.Context(), second.Key())
			return errors.Is(err, cluster.ErrNotFound)
		})
		cancel()
		closes(t, c, "watch")
	})

	t.Run("a slow watcher learns of the last write", func(t *testing.T) {
		s := open(t)
		e := create(t, s, Endpoint("models", "fraud"))
		ctx, _ := scoped(t)
		c, err := s.Watch(ctx)
		if err != nil {
			t.Fatal(err)
		}
		const writes = 60
		for i := range writes {
			e.Spec.Repositories = []int64{int64(i + 1)}
			e = must[*rollout.Endpoint](t)(s.Update(t.Context(), e))
		}
		events := 0
		for {
			receive(t, c, "the last write")
			events++
			if get(t, s, e.Key()).Spec.Repositories[0] == writes {
				break
			}
		}
		if events > writes+2 {
			t.Errorf("%d events for %d writes", events, writes)
		}
	})

	t.Run("no update is lost", func(t *testing.T) {
		s := open(t)
		key := create(t, s, Endpoint("models", "fraud")).Key()
		const writers, each = 8, 5
		var wg sync.WaitGroup
		for w := range writers {
			wg.Go(func() {
				for i := range each {
					if err := Append(t.Context(), s, key, int64(1+w*each+i)); err != nil {
						t.Error(err)
					}
				}
			})
			wg.Go(func() {
				for i := range each {
					if err := setDemand(t.Context(), s, key, fmt.Sprint(w, ".", i)); err != nil {
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()
		e := get(t, s, key)
		if n := len(e.Spec.Repositories); n != writers*each {
			t.Errorf("%d of %d updates are there", n, writers*each)
		}
		if e.Metadata.Generation != 1+writers*each {
			t.Errorf("generation %d, want %d: one for the creation and one for each change of the spec", e.Metadata.Generation, 1+writers*each)
		}
	})

	t.Run("a context that ended", func(t *testing.T) {
		s := open(t)
		e := create(t, s, Endpoint("models", "fraud"))
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		e.Spec.Repositories = []int64{1}
		if _, err := s.Update(ctx, e); err == nil {
			t.Error("Update went on although its context had ended")
		}
		if n := len(get(t, s, e.Key()).Spec.Repositories); n != 0 {
			t.Error("Update stored although its context had ended")
		}
	})
}

// Append adds a repository id to an endpoint as every writer should write: read,
// change, write with the resource version, again on conflict.
func Append(ctx context.Context, s cluster.Store, key rollout.Key, id int64) error {
	return retry(ctx, s, key, s.Update, func(e *rollout.Endpoint) { e.Spec.Repositories = append(e.Spec.Repositories, id) })
}

func setDemand(ctx context.Context, s cluster.Store, key rollout.Key, demand string) error {
	return retry(ctx, s, key, s.UpdateStatus, func(e *rollout.Endpoint) { e.Status.Demand = demand })
}

func retry(ctx context.Context, s cluster.Store, key rollout.Key, write func(context.Context, *rollout.Endpoint) (*rollout.Endpoint, error), change func(*rollout.Endpoint)) error {
	for {
		e, err := s.Get(ctx, key)
		if err != nil {
			return err
		}
		change(e)
		if _, err := write(ctx, e); err == nil || !errors.Is(err, cluster.ErrConflict) {
			return err
		}
	}
}
