package clustertest

import (
	"fmt"
	"sync"
	"testing"

	"github.com/sluice-dev/sluice/pkg/access"
	"github.com/sluice-dev/sluice/pkg/cluster"
	"github.com/sluice-dev/sluice/rollout"
)

// Keys runs the suite of cluster.Keys and cluster.KeyHashes together. open gives
// both, without keys; they may be the same thing.
func Keys(t *testing.T, open func(t *testing.T) (cluster.Keys, cluster.KeyHashes)) {
	fraud := rollout.Key{Namespace: "models", Name: "fraud"}
	ensure := func(t *testing.T, k cluster.Keys, key rollout.Key) access.Keys {
		t.Helper()
		return must[access.Keys](t)(k.EnsureKeys(t.Context(), key))
	}
	// opens waits until the hashes of key let exactly the wanted ones of all through.
	opens := func(t *testing.T, h cluster.KeyHashes, key rollout.Key, all map[string]bool) {
		t.Helper()
		eventually(t, "hashes of "+key.String(), func() error {
			m, err := h.KeyHashes(t.Context())
			if err != nil {
				return err
			}
			for secret, want := range all {
				if access.Allows(m[key], secret) != want {
					return fmt.Errorf("a key is let through: %v, want %v", !want, want)
				}
			}
			return nil
		})
	}

	t.Run("made once", func(t *testing.T) {
		k, h := open(t)
		_, err := k.Keys(t.Context(), fraud)
		wantIs(t, err, cluster.ErrNotFound, "keys before there are any")
		m := must[map[rollout.Key][]access.Hash](t)(h.KeyHashes(t.Context()))
		if len(m) != 0 {
			t.Errorf("%d hashes before there are keys", len(m))
		}
		made := ensure(t, k, fraud)
		if made.Primary == "" || made.Secondary == "" || made.Primary == made.Secondary {
			t.Error("EnsureKeys made no two different keys")
		}
		if ensure(t, k, fraud) != made {
			t.Error("EnsureKeys made keys again")
		}
		if got := must[access.Keys](t)(k.Keys(t.Context(), fraud)); got != made {
			t.Error("Keys gives other keys than EnsureKeys")
		}
		opens(t, h, fraud, map[string]bool{made.Primary: true, made.Secondary: true, "": false, "x": false})
	})

	t.Run("each endpoint its own", func(t *testing.T) {
		k, h := open(t)
		same := rollout.Key{Namespace: "other", Name: "fraud"}
		a, b := ensure(t, k, fraud), ensure(t, k, same)
		if a == b {
			t.Error("two endpoints share keys")
		}
		opens(t, h, fraud, map[string]bool{a.Primary: true, b.Primary: false})
		opens(t, h, same, map[string]bool{a.Primary: false, b.Primary: true})
	})

	t.Run("replaced", func(t *testing.T) {
		k, h := open(t)
		old := ensure(t, k, fraud)
		next, err := old.Regenerate("primary")
		if err != nil {
			t.Fatal(err)
		}
		if err := k.PutKeys(t.Context(), fraud, next); err != nil {
			t.Fatal(err)
		}
		if must[access.Keys](t)(k.Keys(t.Context(), fraud)) != next || ensure(t, k, fraud) != next {
			t.Error("the keys put are not the ones given")
		}
		opens(t, h, fraud, map[string]bool{old.Primary: false, next.Primary: true, old.Secondary: true})
		fresh := rollout.Key{Namespace: "models", Name: "fresh"}
		if err := k.PutKeys(t.Context(), fresh, old); err != nil {
			t.Fatalf("put keys where there are none: %v", err)
		}
		opens(t, h, fresh, map[string]bool{old.Primary: true})
		wantRefusal(t, k.PutKeys(t.Context(), fraud, access.Keys{}), rollout.ReasonInvalid)
		if ensure(t, k, fraud) != next {
			t.Error("a refused PutKeys changed the keys")
		}
	})

	t.Run("deleted", func(t *testing.T) {
		k, h := open(t)
		old := ensure(t, k, fraud)
		kept := rollout.Key{Namespace: "models", Name: "kept"}
		other := ensure(t, k, kept)
		if err := k.DeleteKeys(t.Context(), fraud); err != nil {
			t.Fatal(err)
		}
		if err := k.DeleteKeys(t.Context(), fraud); err != nil {
			t.Errorf("delete twice: %v", err)
		}
		_, err := k.Keys(t.Context(), fraud)
		wantIs(t, err, cluster.ErrNotFound, "keys of a deleted endpoint")
		opens(t, h, fraud, map[string]bool{old.Primary: false, old.Secondary: false})
		opens(t, h, kept, map[string]bool{other.Primary: true})
		if ensure(t, k, fraud) == old {
			t.Error("an endpoint has the keys of an earlier one of its name")
		}
	})

	t.Run("names that cannot be", func(t *testing.T) {
		k, _ := open(t)
		for _, key := range []rollout.Key{{}, {Namespace: "..", Name: "fraud"}, {Namespace: "models", Name: "../fraud"}, {Namespace: "a/b", Name: "c"}} {
			_, err := k.EnsureKeys(t.Context(), key)
			wantRefusal(t, err, rollout.ReasonInvalid)
			wantRefusal(t, k.PutKeys(t.Context(), key, access.NewKeys()), rollout.ReasonInvalid)
			_, err = k.Keys(t.Context(), key)
			wantIs(t, err, cluster.ErrNotFound, "keys of a name that cannot be")
		}
	})

	t.Run("watch", func(t *testing.T) {
		k, h := open(t)
		ctx, cancel := scoped(t)
		c, err := h.WatchKeyHashes(ctx)
		if err != nil {
			t.Fatal(err)
		}
		receive(t, c, "the beginning")
		until := func(what string, check func(map[rollout.Key][]access.Hash) bool) {
			t.Helper()
			for {
				receive(t, c, what)
				if check(must[map[rollout.Key][]access.Hash](t)(h.KeyHashes(t.Context()))) {
					return
				}
			}
		}
		made := ensure(t, k, fraud)
		until("new keys", func(m map[rollout.Key][]access.Hash) bool { return access.Allows(m[fraud], made.Primary) })
		next := access.NewKeys()
		if err := k.PutKeys(t.Context(), fraud, next); err != nil {
			t.Fatal(err)
		}
		until("other keys", func(m map[rollout.Key][]access.Hash) bool { return access.Allows(m[fraud], next.Primary) })
		if err := k.DeleteKeys(t.Context(), fraud); err != nil {
			t.Fatal(err)
		}
		until("no keys", func(m map[rollout.Key][]access.Hash) bool { return len(m[fraud]) == 0 })
		cancel()
		closes(t, c, "watch of hashes")
	})

	t.Run("many at once make one pair", func(t *testing.T) {
		k, h := open(t)
		var mu sync.Mutex
		seen := map[access.Keys]bool{}
		var wg sync.WaitGroup
		for range 12 {
			wg.Go(func() {
				made, err := k.EnsureKeys(t.Context(), fraud)
				if err != nil {
					t.Error(err)
				}
				mu.Lock()
				defer mu.Unlock()
				seen[made] = true
			})
		}
		wg.Wait()
		if len(seen) != 1 {
			t.Fatalf("%d pairs of keys were given out, want 1", len(seen))
		}
		for made := range seen {
			opens(t, h, fraud, map[string]bool{made.Primary: true, made.Secondary: true})
		}
	})
}
