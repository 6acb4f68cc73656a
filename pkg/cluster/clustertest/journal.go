package clustertest

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-dev/sluice/pkg/cluster"
	"github.com/sluice-dev/sluice/rollout"
)

// Journal runs the suite of cluster.Journal. open gives an empty one.
func Journal(t *testing.T, open func(t *testing.T) cluster.Journal) {
	base := time.Date(2026, 11, 23, 10, 0, 0, 0, time.UTC)
	entry := func(name string, at time.Time) cluster.Entry {
		return cluster.Entry{
			Name: name, Endpoint: rollout.Key{Namespace: "models", Name: "fraud"}, Command: "/promote pr-1-abc\n\"x\"",
			Actor: "ann", Origin: map[string]string{"comment": "17", "url": "https://example/1?a=b&c"}, At: at,
		}
	}
	claim := func(t *testing.T, j cluster.Journal, e cluster.Entry) {
		t.Helper()
		if _, won, err := j.Claim(t.Context(), e); err != nil || !won {
			t.Fatalf("claim %s: %v, %v; want true", e.Name, won, err)
		}
	}
	entries := func(t *testing.T, j cluster.Journal) []cluster.Entry {
		t.Helper()
		return must[[]cluster.Entry](t)(j.Entries(t.Context()))
	}

	t.Run("claim once", func(t *testing.T) {
		j := open(t)
		e := entry("c-17-1", base)
		got, won, err := j.Claim(t.Context(), e)
		if err != nil || !won {
			t.Fatalf("claim: %v, %v", won, err)
		}
		want := e
		want.State = cluster.EntryPending
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("claimed (-want +got):\n%s", diff)
		}
		other := entry("c-17-1", base.Add(time.Hour))
		other.Command, other.Actor = "/rollback", "bob"
		got, won, err = j.Claim(t.Context(), other)
		if err != nil || won {
			t.Fatalf("claim a taken name: %v, %v; want false", won, err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("the stored entry (-want +got):\n%s", diff)
		}
		if diff := cmp.Diff([]cluster.Entry{want}, entries(t, j)); diff != "" {
			t.Errorf("entries (-want +got):\n%s", diff)
		}
	})

	t.Run("claim for no endpoint", func(t *testing.T) {
		j := open(t)
		e := entry("c-18-1", base)
		e.Endpoint = rollout.Key{} // which one a comment means is found out when it is carried out
		claim(t, j, e)
		e.State = cluster.EntryPending
		if diff := cmp.Diff([]cluster.Entry{e}, entries(t, j)); diff != "" {
			t.Errorf("entries (-want +got):\n%s", diff)
		}
		if err := j.Finish(t.Context(), e.Name, cluster.EntryDone, "", "held"); err != nil {
			t.Fatal(err)
		}
	})

	t.Run("claim begins pending", func(t *testing.T) {
		j := open(t)
		e := entry("c-1-1", time.Time{})
		e.State, e.Result = cluster.EntryDone, "made up"
		before := time.Now().Add(-2 * time.Second)
		got, won, err := j.Claim(t.Context(), e)
		if err != nil || !won {
			t.Fatalf("claim: %v, %v", won, err)
		}
		if got.State != cluster.EntryPending || got.Result != "" {
			t.Errorf("state %s, result %q; want pending and none", got.State, got.Result)
		}
		if got.At.Before(before) || got.At.After(time.Now().Add(2*time.Second)) {
			t.Errorf("an entry without a time is of %s, not now", got.At)
		}
		if _, _, err := j.Claim(t.Context(), cluster.Entry{}); err == nil {
			t.Error("an entry without a name was claimed")
		}
	})

	t.Run("finish", func(t *testing.T) {
		j := open(t)
		claim(t, j, entry("c-1-1", base))
		claim(t, j, entry("c-1-2", base))
		if err := j.Finish(t.Context(), "c-1-1", cluster.EntryDone, rollout.ReasonRequested, "promoted\n\"x\""); err != nil {
			t.Fatal(err)
		}
		if err := j.Finish(t.Context(), "c-1-2", cluster.EntryRefused, rollout.ReasonDenied, "no"); err != nil {
			t.Fatal(err)
		}
		wantIs(t, j.Finish(t.Context(), "c-9-9", cluster.EntryDone, "", ""), cluster.ErrNotFound, "finish a missing entry")
		es := entries(t, j)
		if len(es) != 2 {
			t.Fatalf("%d entries, want 2", len(es))
		}
		if es[0].State != cluster.EntryDone || es[0].Reason != rollout.ReasonRequested || es[0].Result != "promoted\n\"x\"" {
			t.Errorf("first = %+v", es[0])
		}
		if es[1].State != cluster.EntryRefused || es[1].Reason != rollout.ReasonDenied || es[1].Result != "no" {
			t.Errorf("second = %+v", es[1])
		}
		got, won, err := j.Claim(t.Context(), entry("c-1-1", base))
		if err != nil || won || got.State != cluster.EntryDone {
			t.Errorf("claim a finished name: %+v, %v, %v; want the finished entry and false", got, won, err)
		}
	})

	t.Run("oldest first, and pruned by age", func(t *testing.T) {
		j := open(t)
		for _, h := range []int{3, 1, 2} {
			claim(t, j, entry(fmt.Sprintf("c-%d-1", h), base.Add(time.Duration(h)*time.Hour)))
		}
		if err := j.Finish(t.Context(), "c-2-1", cluster.EntryDone, "", "kept"); err != nil {
			t.Fatal(err)
		}
		names := func() (out []string) {
			for _, e := range entries(t, j) {
				out = append(out, e.Name)
			}
			return out
		}
		if diff := cmp.Diff([]string{"c-1-1", "c-2-1", "c-3-1"}, names()); diff != "" {
			t.Errorf("order (-want +got):\n%s", diff)
		}
		if err := j.Prune(t.Context(), base.Add(2*time.Hour)); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff([]string{"c-2-1", "c-3-1"}, names()); diff != "" {
			t.Errorf("after Prune (-want +got):\n%s", diff)
		}
		if e := entries(t, j)[0]; e.State != cluster.EntryDone || e.Result != "kept" {
			t.Errorf("Prune changed an entry that stays: %+v", e)
		}
		claim(t, j, entry("c-1-1", base.Add(4*time.Hour)))
		wantIs(t, j.Finish(t.Context(), "c-9-1", cluster.EntryDone, "", ""), cluster.ErrNotFound, "finish a missing entry")
		if diff := cmp.Diff([]string{"c-2-1", "c-3-1", "c-1-1"}, names()); diff != "" {
			t.Errorf("a pruned name claimed again (-want +got):\n%s", diff)
		}
	})

	t.Run("the caller's own", func(t *testing.T) {
		j := open(t)
		e := entry("c-1-1", base)
		claim(t, j, e)
		e.Origin["comment"] = "scribbled"
		entries(t, j)[0].Origin["url"] = "scribbled"
		if got := entries(t, j)[0].Origin; got["comment"] != "17" || got["url"] == "scribbled" {
			t.Errorf("writing into maps changed the journal: %v", got)
		}
	})

	t.Run("one of many wins", func(t *testing.T) {
		j := open(t)
		const names, each = 10, 8
		var won [names]atomic.Int32
		var wg sync.WaitGroup
		for n := range names {
			for range each {
				wg.Go(func() {
					_, ok, err := j.Claim(t.Context(), entry(fmt.Sprintf("c-%d-1", n), base))
					if err != nil {
						t.Error(err)
					}
					if ok {
						won[n].Add(1)
					}
				})
			}
		}
		wg.Wait()
		for n := range names {
			if k := won[n].Load(); k != 1 {
				t.Errorf("%d claims of entry %d won, want 1", k, n)
			}
		}
		if n := len(entries(t, j)); n != names {
			t.Errorf("%d entries, want %d", n, names)
		}
	})
}
