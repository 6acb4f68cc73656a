package clustertest

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sluice-dev/sluice/pkg/cluster"
	"github.com/sluice-dev/sluice/rollout"
)

// FleetWorld is what the suite needs to know of a backend of fleets and the world it runs in.
type FleetWorld struct {
	// Open gives a backend without fleets.
	Open func(t *testing.T) cluster.Fleet
	// Works is an image whose replicas become ready, and write Writes to their log;
	// WorksToo is another one.
	Works, WorksToo, Writes string
	// Fails is an image whose replicas never become ready because init() fails.
	Fails string
	// Missing is an image that cannot be had.
	Missing string
	// Wait bounds how long a replica takes to start or to drain.
	Wait time.Duration
	// LogsEnd says that logs go with the replicas that wrote them, as on Kubernetes.
	LogsEnd bool
	// Answers says that replicas are real and answer GET / at their address with 200.
	Answers bool
}

// Fleet runs the suite of cluster.Fleet.
func Fleet(t *testing.T, w FleetWorld) {
	key := cluster.FleetKey{Endpoint: rollout.Key{Namespace: "models", Name: "fraud"}, Version: "v1"}
	spec := func(image, revision string) cluster.FleetSpec {
		return cluster.FleetSpec{Key: key, Image: image, Revision: revision}
	}
	apply := func(t *testing.T, f cluster.Fleet, s cluster.FleetSpec) {
		t.Helper()
		if err := f.Apply(t.Context(), s); err != nil {
			t.Fatal(err)
		}
	}
	scale := func(t *testing.T, f cluster.Fleet, n int) {
		t.Helper()
		if err := f.Scale(t.Context(), key, n); err != nil {
			t.Fatal(err)
		}
	}
	find := func(t *testing.T, f cluster.Fleet, key cluster.FleetKey) (cluster.FleetState, bool) {
		t.Helper()
		for _, s := range must[[]cluster.FleetState](t)(f.Fleets(t.Context())) {
			if s.Key == key {
				return s, true
			}
		}
		return cluster.FleetState{}, false
	}
	// settles waits until the fleet has exactly n replicas, all ready and of the revision.
	settles := func(t *testing.T, f cluster.Fleet, revision string, n int) cluster.FleetState {
		t.Helper()
		var out cluster.FleetState
		eventuallyWithin(t, time.Duration(n+2)*w.Wait, fmt.Sprintf("%d ready replicas of revision %s", n, revision), func() error {
			s, _ := find(t, f, key)
			out = s
			if len(s.Replicas) != n || s.Count(cluster.ReplicaReady) != n || s.Desired != n || s.Revision != revision {
				return fmt.Errorf("fleet is %+v", s)
			}
			for _, r := range s.Replicas {
				if r.Revision != revision {
					return fmt.Errorf("replica is %+v", r)
				}
			}
			return nil
		})
		return out
	}
	gone := func(t *testing.T, f cluster.Fleet, key cluster.FleetKey) {
		t.Helper()
		eventuallyWithin(t, w.Wait, "fleet gone", func() error {
			if s, there := find(t, f, key); there {
				return fmt.Errorf("fleet is %+v", s)
			}
			return nil
		})
	}
	answers := func(t *testing.T, r cluster.Replica) {
		t.Helper()
		if !w.Answers {
			return
		}
		c := http.Client{Timeout: w.Wait, Transport: &http.Transport{DisableKeepAlives: true}}
		resp, err := c.Get("http://" + r.Address + "/")
		if err != nil {
			t.Errorf("replica %s is said to be ready: %v", r.Name, err)
			return
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			t.Errorf("replica %s is said to be ready and answers %s", r.Name, resp.Status)
		}
	}

	t.Run("a new fleet has one replica", func(t *testing.T) {
		f := w.Open(t)
		if fs := must[[]cluster.FleetState](t)(f.Fleets(t.Context())); len(fs) != 0 {
			t.Fatalf("a new backend has %d fleets", len(fs))
		}
		before := time.Now().Add(-time.Second)
		apply(t, f, spec(w.Works, "r1"))
		s := settles(t, f, "r1", 1)
		r := s.Replicas[0]
		if r.Name == "" || r.Address == "" || r.Restarts != 0 || r.Reason != "" || s.Reason != "" {
			t.Errorf("replica %+v in fleet %+v", r, s)
		}
		if r.ReadySince.Before(before) || r.ReadySince.After(time.Now().Add(time.Second)) {
			t.Errorf("ready since %s, not just now", r.ReadySince)
		}
		answers(t, r)
	})

	t.Run("apply again changes nothing", func(t *testing.T) {
		f := w.Open(t)
		apply(t, f, spec(w.Works, "r1"))
		scale(t, f, 2)
		before := settles(t, f, "r1", 2)
		for range 3 {
			apply(t, f, spec(w.Works, "r1"))
		}
		after := settles(t, f, "r1", 2)
		if !slices.Equal(names(before), names(after)) {
			t.Errorf("replicas were %v, are %v", names(before), names(after))
		}
	})

	t.Run("scale", func(t *testing.T) {
		f := w.Open(t)
		wantIs(t, f.Scale(t.Context(), key, 1), cluster.ErrNotFound, "scale a missing fleet")
		apply(t, f, spec(w.Works, "r1"))
		one := settles(t, f, "r1", 1)
		scale(t, f, 3)
		three := settles(t, f, "r1", 3)
		if !slices.Contains(names(three), names(one)[0]) {
			t.Error("scaling up replaced the replica that was there")
		}
		addresses := map[string]bool{}
		for _, r := range three.Replicas {
			addresses[r.Address] = true
			answers(t, r)
		}
		if len(addresses) != 3 {
			t.Errorf("3 replicas have %d addresses", len(addresses))
		}
		scale(t, f, 1)
		left := settles(t, f, "r1", 1)
		if !slices.Contains(names(three), names(left)[0]) {
			t.Error("scaling down made a new replica")
		}
		scale(t, f, 0)
		settles(t, f, "r1", 0)
		scale(t, f, 1)
		settles(t, f, "r1", 1)
		wantRefusal(t, f.Scale(t.Context(), key, -1), rollout.ReasonInvalid)
	})

	t.Run("a changed revision replaces replicas, and enough serve all the time", func(t *testing.T) {
		f := w.Open(t)
		apply(t, f, spec(w.Works, "r1"))
		scale(t, f, 2)
		old := settles(t, f, "r1", 2)
		ctx, cancel := scoped(t)
		c, err := f.WatchFleets(ctx)
		if err != nil {
			t.Fatal(err)
		}
		apply(t, f, spec(w.WorksToo, "r2"))
		for done := false; !done; {
			receive(t, c, "a change of the fleet")
			s, there := find(t, f, key)
			if !there {
				t.Fatal("the fleet vanished while its replicas were replaced")
			}
			if n := s.Count(cluster.ReplicaReady); n < 2 {
				t.Fatalf("%d ready replicas while replacing 2: %+v", n, s)
			}
			if n := len(s.Replicas) - s.Count(cluster.ReplicaTerminating); n > 3 {
				t.Fatalf("%d replicas while replacing 2: %+v", n, s)
			}
			done = len(s.Replicas) == 2 && !slices.ContainsFunc(s.Replicas, func(r cluster.Replica) bool { return r.Revision != "r2" })
		}
		cancel()
		for _, n := range names(settles(t, f, "r2", 2)) {
			if slices.Contains(names(old), n) {
				t.Errorf("replica %s is of both revisions", n)
			}
		}
	})

	t.Run("a new revision that fails leaves the old one serving", func(t *testing.T) {
		f := w.Open(t)
		apply(t, f, spec(w.Works, "r1"))
		old := settles(t, f, "r1", 1)
		apply(t, f, spec(w.Fails, "r2"))
		eventuallyWithin(t, w.Wait, "the new replica to fail", func() error {
			s, _ := find(t, f, key)
			if s.Count(cluster.ReplicaFailed) == 0 || s.Count(cluster.ReplicaReady) != 1 {
				return fmt.Errorf("fleet is %+v", s)
			}
			return nil
		})
		apply(t, f, spec(w.Works, "r1"))
		back := settles(t, f, "r1", 1)
		if !slices.Equal(names(old), names(back)) {
			t.Errorf("replicas were %v, are %v after going back", names(old), names(back))
		}
	})

	t.Run("init that fails is said", func(t *testing.T) {
		f := w.Open(t)
		apply(t, f, spec(w.Fails, "r1"))
		eventuallyWithin(t, w.Wait, "a failed replica", func() error {
			s, _ := find(t, f, key)
			for _, r := range s.Replicas {
				if r.State == cluster.ReplicaReady {
					t.Fatalf("a replica whose init fails is ready: %+v", r)
				}
				if r.State == cluster.ReplicaFailed && r.Reason == rollout.ReasonInitFailed && r.Message != "" && r.ReadySince.IsZero() {
					return nil
				}
			}
			return fmt.Errorf("fleet is %+v", s)
		})
	})

	t.Run("an image that is missing is said", func(t *testing.T) {
		f := w.Open(t)
		apply(t, f, spec(w.Missing, "r1"))
		eventuallyWithin(t, w.Wait, "the fleet's reason", func() error {
			s, _ := find(t, f, key)
			if s.Reason != rollout.ReasonImageMissing || s.Message == "" {
				return fmt.Errorf("fleet is %+v", s)
			}
			return nil
		})
		apply(t, f, spec(w.Works, "r2"))
		if s := settles(t, f, "r2", 1); s.Reason != "" {
			t.Errorf("the fleet works and says %s", s.Reason)
		}
	})

	t.Run("delete", func(t *testing.T) {
		f := w.Open(t)
		if err := f.Delete(t.Context(), key); err != nil {
			t.Errorf("delete a missing fleet: %v", err)
		}
		apply(t, f, spec(w.Works, "r1"))
		settles(t, f, "r1", 1)
		if err := f.Delete(t.Context(), key); err != nil {
			t.Fatal(err)
		}
		wantIs(t, f.Scale(t.Context(), key, 2), cluster.ErrNotFound, "scale a deleted fleet")
		gone(t, f, key)
		if err := f.Delete(t.Context(), key); err != nil {
			t.Errorf("delete twice: %v", err)
		}
		apply(t, f, spec(w.Works, "r1"))
		settles(t, f, "r1", 1)
	})

	t.Run("deleted and applied at once", func(t *testing.T) {
		f := w.Open(t)
		apply(t, f, spec(w.Works, "r1"))
		scale(t, f, 2)
		settles(t, f, "r1", 2)
		if err := f.Delete(t.Context(), key); err != nil {
			t.Fatal(err)
		}
		apply(t, f, spec(w.Works, "r1"))
		settles(t, f, "r1", 1)
	})

	t.Run("fleets are sorted and the caller's own", func(t *testing.T) {
		f := w.Open(t)
		var want []string
		for _, k := range []cluster.FleetKey{
			{Endpoint: rollout.Key{Namespace: "a", Name: "x"}, Version: "v2"},
			{Endpoint: rollout.Key{Namespace: "b", Name: "a"}, Version: "v1"},
			{Endpoint: rollout.Key{Namespace: "a", Name: "x"}, Version: "v1"},
		} {
			apply(t, f, cluster.FleetSpec{Key: k, Image: w.Works, Revision: "r1"})
			if err := f.Scale(t.Context(), k, 0); err != nil {
				t.Fatal(err)
			}
		}
		want = []string{"a/x/v1", "a/x/v2", "b/a/v1"}
		list := func() (out []string) {
			for _, s := range must[[]cluster.FleetState](t)(f.Fleets(t.Context())) {
				out = append(out, s.Key.String())
			}
			return out
		}
		eventually(t, "sorted fleets", func() error {
			if got := list(); !slices.Equal(got, want) {
				return fmt.Errorf("fleets are %v, want %v", got, want)
			}
			return nil
		})
		fs := must[[]cluster.FleetState](t)(f.Fleets(t.Context()))
		fs[0].Key.Version = "scribbled"
		if got := list(); !slices.Equal(got, want) {
			t.Errorf("writing into what Fleets returned changed the backend: %v", got)
		}
	})

	t.Run("names that cannot be", func(t *testing.T) {
		f := w.Open(t)
		for _, k := range []cluster.FleetKey{
			{}, {Endpoint: rollout.Key{Namespace: "..", Name: "x"}, Version: "v1"},
			{Endpoint: rollout.Key{Namespace: "a", Name: "../x"}, Version: "v1"}, {Endpoint: rollout.Key{Namespace: "a", Name: "x"}, Version: "../../v1"},
		} {
			wantRefusal(t, f.Apply(t.Context(), cluster.FleetSpec{Key: k, Image: w.Works, Revision: "r1"}), rollout.ReasonInvalid)
			_, err := f.Logs(t.Context(), k, cluster.LogOptions{})
			wantIs(t, err, cluster.ErrNotFound, "logs of "+k.String())
		}
	})

	t.Run("watch", func(t *testing.T) {
		f := w.Open(t)
		ctx, cancel := scoped(t)
		c, err := f.WatchFleets(ctx)
		if err != nil {
			t.Fatal(err)
		}
		receive(t, c, "the beginning")
		apply(t, f, spec(w.Works, "r1"))
		for {
			receive(t, c, "a ready replica")
			if s, _ := find(t, f, key); s.Count(cluster.ReplicaReady) == 1 {
				break
			}
		}
		cancel()
		closes(t, c, "watch of fleets")
	})

	t.Run("logs", func(t *testing.T) {
		f := w.Open(t)
		_, err := f.Logs(t.Context(), key, cluster.LogOptions{})
		wantIs(t, err, cluster.ErrNotFound, "logs of a missing fleet")
		apply(t, f, spec(w.Works, "r1"))
		s := settles(t, f, "r1", 1)
		lines := func(o cluster.LogOptions) []string {
			t.Helper()
			ctx, cancel := context.WithTimeout(t.Context(), w.Wait)
			defer cancel()
			r, err := f.Logs(ctx, key, o)
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			var out []string
			sc := bufio.NewScanner(r)
			for sc.Scan() {
				out = append(out, sc.Text())
			}
			return out
		}
		eventuallyWithin(t, w.Wait, "the line "+w.Writes, func() error {
			ls := lines(cluster.LogOptions{})
			for _, l := range ls {
				if !strings.HasPrefix(l, s.Replicas[0].Name+" ") {
					t.Fatalf("line %q does not begin with the replica's name %s", l, s.Replicas[0].Name)
				}
			}
			if !slices.ContainsFunc(ls, func(l string) bool { return strings.Contains(l, w.Writes) }) {
				return fmt.Errorf("lines are %q", ls)
			}
			return nil
		})
		if ls := lines(cluster.LogOptions{Tail: 1}); len(ls) != 1 {
			t.Errorf("the last line of one replica is %q", ls)
		}

		ctx, cancel := scoped(t)
		r, err := f.Logs(ctx, key, cluster.LogOptions{Follow: true})
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		got := make(chan string)
		go func() {
			defer close(got)
			sc := bufio.NewScanner(r)
			for sc.Scan() {
				select {
				case got <- sc.Text():
				case <-ctx.Done():
					return
				}
			}
		}()
		scale(t, f, 2)
		two := settles(t, f, "r1", 2)
		second := two.Replicas[1].Name
		for {
			l := receive(t, got, "a line of the replica that came while following")
			if strings.HasPrefix(l, second+" ") {
				break
			}
		}
		cancel()
		closes(t, got, "following logs")

		if err := f.Delete(t.Context(), key); err != nil {
			t.Fatal(err)
		}
		gone(t, f, key)
		if w.LogsEnd {
			_, err := f.Logs(t.Context(), key, cluster.LogOptions{})
			wantIs(t, err, cluster.ErrNotFound, "logs of a fleet that is gone")
			return
		}
		if ls := lines(cluster.LogOptions{}); !slices.ContainsFunc(ls, func(l string) bool { return strings.Contains(l, w.Writes) }) {
			t.Errorf("after the fleet is gone its logs are %q", ls)
		}
	})

	t.Run("replicas answer until they are seen to terminate", func(t *testing.T) {
		if !w.Answers {
			t.Skip("these replicas are states only")
		}
		f := w.Open(t)
		apply(t, f, spec(w.Works, "r1"))
		settles(t, f, "r1", 1)
		// A client that looks at the state before each request, as routers do, never meets a closed door.
		ctx, cancel := scoped(t)
		failed := make(chan error, 1)
		ready := make(chan struct{})
		go func() {
			defer close(failed)
			c := http.Client{Timeout: w.Wait, Transport: &http.Transport{DisableKeepAlives: true}}
			for n := 0; ctx.Err() == nil; n++ {
				fs, err := f.Fleets(context.WithoutCancel(ctx))
				if err != nil {
					failed <- err
					return
				}
				for _, r := range fs[0].Replicas {
					if r.State != cluster.ReplicaReady {
						continue
					}
					resp, err := c.Get("http://" + r.Address + "/")
					if err != nil {
						failed <- err
						return
					}
					resp.Body.Close()
					if resp.StatusCode != http.StatusOK {
						failed <- errors.New(resp.Status)
						return
					}
				}
				if n == 10 {
					close(ready)
				}
			}
		}()
		<-ready
		for i := range 3 {
			apply(t, f, spec(w.Works, fmt.Sprint("again-", i)))
			settles(t, f, fmt.Sprint("again-", i), 1)
		}
		cancel()
		if err := <-failed; err != nil {
			t.Errorf("a request to a replica that was said to be ready: %v", err)
		}
	})
}

func names(s cluster.FleetState) []string {
	var out []string
	for _, r := range s.Replicas {
		out = append(out, r.Name)
	}
	return out
}
