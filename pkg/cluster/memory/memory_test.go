package memory_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sluice-dev/sluice/pkg/cluster"
	"github.com/sluice-dev/sluice/pkg/cluster/clustertest"
	"github.com/sluice-dev/sluice/pkg/cluster/memory"
	"github.com/sluice-dev/sluice/rollout"
)

func TestStore(t *testing.T) {
	clustertest.Store(t, func(*testing.T) cluster.Store { return memory.NewStore() })
}

func TestEditing(t *testing.T) {
	clustertest.Editor(t, func(*testing.T) (cluster.Editor, cluster.Store) {
		s := memory.NewStore()
		return cluster.Editing(s), s
	})
}

func TestJournal(t *testing.T) {
	clustertest.Journal(t, func(*testing.T) cluster.Journal { return memory.NewJournal() })
}

func TestKeys(t *testing.T) {
	clustertest.Keys(t, func(*testing.T) (cluster.Keys, cluster.KeyHashes) {
		k := memory.NewKeys()
		return k, k
	})
}

func TestFleet(t *testing.T) {
	works, fails, missing := clustertest.Image('a'), clustertest.Image('b'), clustertest.Image('c')
	clustertest.Fleet(t, clustertest.FleetWorld{
		Works: works, WorksToo: clustertest.Image('d'), Writes: "started", Fails: fails, Missing: missing, Wait: 5 * time.Second,
		Open: func(*testing.T) cluster.Fleet {
			f := memory.NewFleet(memory.Behaviour{ReadyAfter: 3 * time.Millisecond, DrainFor: time.Millisecond})
			f.SetImage(fails, memory.Behaviour{ReadyAfter: time.Millisecond, Fail: rollout.ReasonInitFailed, Message: "no model"})
			f.SetImage(missing, memory.Behaviour{Missing: true})
			return f
		},
	})
}

var fleetKey = cluster.FleetKey{Endpoint: rollout.Key{Namespace: "models", Name: "fraud"}, Version: "v1"}

func fleetOf(t *testing.T, f *memory.Fleet) cluster.FleetState {
	t.Helper()
	fs, err := f.Fleets(t.Context())
	if err != nil || len(fs) != 1 {
		t.Fatalf("fleets = %v, %v; want one", fs, err)
	}
	return fs[0]
}

func TestFleetInBubble(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		f := memory.NewFleet(memory.Behaviour{ReadyAfter: 10 * time.Second, DrainFor: time.Minute})
		changes, err := f.WatchFleets(ctx)
		if err != nil {
			t.Fatal(err)
		}
		<-changes
		if err := f.Apply(ctx, cluster.FleetSpec{Key: fleetKey, Image: clustertest.Image('a'), Revision: "r1"}); err != nil {
			t.Fatal(err)
		}
		<-changes
		begin := time.Now()
		<-changes
		if took := time.Since(begin); took != 10*time.Second {
			t.Errorf("ready after %s, want exactly 10s", took)
		}
		s := fleetOf(t, f)
		if s.Count(cluster.ReplicaReady) != 1 || !s.Replicas[0].ReadySince.Equal(time.Now()) {
			t.Errorf("fleet = %+v", s)
		}

		f.Crash(fleetKey, s.Replicas[0].Name, time.Second)
		if r := fleetOf(t, f).Replicas[0]; r.State != cluster.ReplicaFailed || r.Reason != rollout.ReasonCrashed {
			t.Errorf("after a crash: %+v", r)
		}
		time.Sleep(11*time.Second + time.Millisecond)
		if r := fleetOf(t, f).Replicas[0]; r.State != cluster.ReplicaReady || r.Restarts != 1 {
			t.Errorf("after a restart: %+v", r)
		}

		f.SetAll(fleetKey, func(r *cluster.Replica) { r.State = cluster.ReplicaUnready })
		if err := f.Scale(ctx, fleetKey, 2); err != nil {
			t.Fatal(err)
		}
		time.Sleep(11 * time.Second)
		if s := fleetOf(t, f); s.Count(cluster.ReplicaUnready) != 1 || s.Count(cluster.ReplicaReady) != 1 {
			t.Errorf("a state that the test set did not stay: %+v", s)
		}
		if err := f.Delete(ctx, fleetKey); err != nil {
			t.Fatal(err)
		}
		if s := fleetOf(t, f); s.Count(cluster.ReplicaTerminating) != 2 {
			t.Errorf("while draining: %+v", s)
		}
		time.Sleep(time.Minute + time.Millisecond)
		if fs, err := f.Fleets(ctx); err != nil || len(fs) != 0 {
			t.Errorf("after draining: %v, %v", fs, err)
		}
	})
}

func TestFailures(t *testing.T) {
	down := errors.New("down")
	ctx := t.Context()
	s, f, j, k := memory.NewStore(), memory.NewFleet(memory.Behaviour{}), memory.NewJournal(), memory.NewKeys()
	calls := map[string]func() error{
		"get":     func() error { _, err := s.Get(ctx, fleetKey.Endpoint); return err },
		"create":  func() error { _, err := s.Create(ctx, clustertest.Endpoint("models", "x")); return err },
		"list":    func() error { _, err := s.List(ctx); return err },
		"apply":   func() error { return f.Apply(ctx, cluster.FleetSpec{Key: fleetKey, Image: clustertest.Image('a')}) },
		"fleets":  func() error { _, err := f.Fleets(ctx); return err },
		"claim":   func() error { _, _, err := j.Claim(ctx, cluster.Entry{Name: "c-1-1"}); return err },
		"entries": func() error { _, err := j.Entries(ctx); return err },
		"ensure":  func() error { _, err := k.EnsureKeys(ctx, fleetKey.Endpoint); return err },
		"hashes":  func() error { _, err := k.KeyHashes(ctx); return err },
	}
	set := func(err error) {
		s.SetFailure(err)
		f.SetFailure(err)
		j.SetFailure(err)
		k.SetFailure(err)
	}
	set(down)
	for name, call := range calls {
		if err := call(); !errors.Is(err, down) {
			t.Errorf("%s: err = %v, want the failure that was set", name, err)
		}
	}
	set(nil)
	for name, call := range calls {
		if err := call(); errors.Is(err, down) {
			t.Errorf("%s fails still", name)
		}
	}
}
