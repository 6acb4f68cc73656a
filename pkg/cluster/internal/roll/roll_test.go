package roll

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-dev/sluice/pkg/cluster"
)

func replicas(words ...string) []cluster.Replica {
	var out []cluster.Replica
	for i, w := range words {
		var rev, state string
		fmt.Sscanf(w, "%s %s", &rev, &state)
		out = append(out, cluster.Replica{Name: fmt.Sprint("r", i), Revision: rev, State: cluster.ReplicaState(state)})
	}
	return out
}

func TestPlan(t *testing.T) {
	for name, c := range map[string]struct {
		desired int
		have    []cluster.Replica
		start   int
		end     []string
	}{
		"first":                              {1, nil, 1, nil},
		"up":                                 {3, replicas("b ready"), 2, nil},
		"terminating does not count":         {1, replicas("b terminating"), 1, nil},
		"down: starting first":               {1, replicas("b starting", "b ready", "b ready"), 0, []string{"r0", "r2"}},
		"down: failed before starting":       {2, replicas("b failed", "b starting", "b ready"), 0, []string{"r0"}},
		"down: unready before ready":         {1, replicas("b unready", "b ready"), 0, []string{"r0"}},
		"down: newest of equals":             {1, replicas("b ready", "b ready", "b ready"), 0, []string{"r2", "r1"}},
		"to zero":                            {0, replicas("b ready", "a ready"), 0, []string{"r0", "r1"}},
		"replace begins with one more":       {2, replicas("a ready", "a ready"), 1, nil},
		"replace waits":                      {2, replicas("a ready", "a ready", "b starting"), 0, nil},
		"replace ends one old":               {2, replicas("a ready", "a ready", "b ready"), 1, []string{"r1"}},
		"replace goes on":                    {2, replicas("a ready", "a terminating", "b ready"), 1, nil},
		"replace ends the last old":          {2, replicas("a ready", "b ready", "b ready"), 0, []string{"r0"}},
		"an unready old one may still serve": {1, replicas("a unready", "b starting"), 0, nil},
		"an old one that starts ends":        {1, replicas("a starting"), 1, []string{"r0"}},
		"an old one that failed ends":        {1, replicas("a failed"), 1, []string{"r0"}},
		"new ones fail: old ones stay":       {2, replicas("a ready", "a ready", "b failed"), 0, nil},
		"back to the old revision":           {2, replicas("b ready", "b ready", "a failed"), 0, []string{"r2"}},
		"two revisions behind":               {1, replicas("x ready", "a ready", "b ready"), 0, []string{"r1", "r0"}},
		"scaled down while replacing":        {1, replicas("a ready", "a ready", "b starting"), 0, []string{"r1"}},
	} {
		t.Run(name, func(t *testing.T) {
			start, end := Plan(c.desired, "b", c.have)
			if start != c.start || !slices.Equal(end, c.end) {
				t.Errorf("start %d, end %v; want start %d, end %v", start, end, c.start, c.end)
			}
		})
	}
}

// Whatever happens to replicas, following the plan reaches the goal, never drops
// below what served before by its own doing, and never exceeds the surge.
func TestPlanConverges(t *testing.T) {
	for seed := range uint64(300) {
		rng := rand.New(rand.NewPCG(seed, 1))
		var rs []cluster.Replica
		desired, n := rng.IntN(5), 0
		states := []cluster.ReplicaState{cluster.ReplicaStarting, cluster.ReplicaReady, cluster.ReplicaUnready, cluster.ReplicaFailed}
		for range rng.IntN(8) {
			n++
			rs = append(rs, cluster.Replica{Name: fmt.Sprint("r", n), Revision: string(rune('a' + rng.IntN(3))), State: states[rng.IntN(4)]})
		}
		initial := len(rs)
		for range 200 {
			ready := func() (k int) {
				for _, r := range rs {
					if r.State == cluster.ReplicaReady {
						k++
					}
				}
				return k
			}
			before := ready()
			start, end := Plan(desired, "c", rs)
			rs = slices.DeleteFunc(rs, func(r cluster.Replica) bool { return slices.Contains(end, r.Name) })
			if after := ready(); after < min(before, desired) {
				t.Fatalf("seed %d: ended ready replicas: %d of %d left for %d desired", seed, after, before, desired)
			}
			for range start {
				n++
				rs = append(rs, cluster.Replica{Name: fmt.Sprint("r", n), Revision: "c", State: cluster.ReplicaStarting})
			}
			if len(rs) > max(initial, desired+1) {
				t.Fatalf("seed %d: %d replicas for %d desired", seed, len(rs), desired)
			}
			if start == 0 && len(end) == 0 && len(rs) > 0 {
				i := rng.IntN(len(rs))
				if rs[i].Revision == "c" {
					rs[i].State = cluster.ReplicaReady
				}
			}
		}
		var want []string
		for range desired {
			want = append(want, "c")
		}
		var got []string
		for _, r := range rs {
			got = append(got, r.Revision)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatalf("seed %d: did not converge (-want +got):\n%s", seed, diff)
		}
	}
}
