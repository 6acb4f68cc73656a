// Package roll decides which replicas of a fleet to start and which to end. It
// is pure; the backends that run replicas themselves share it.
package roll

import (
	"slices"

	"github.com/sluice-dev/sluice/pkg/cluster"
)

// Plan says how many replicas of the revision to start now and which to end, so
// that the fleet comes nearer to desired replicas of that revision. Call it again
// whenever a replica changes its state.
//
// Replicas stand oldest first. Those that terminate do not count. A revision is
// replaced with a surge of one: at most desired+1 replicas at once, and each old
// one that may serve ends only after a new one is ready; old ones that cannot
// serve end at once. When there are too many of the revision, those that do not serve
// end first, then the newest.
func Plan(desired int, revision string, replicas []cluster.Replica) (start int, end []string) {
	var current, old []cluster.Replica
	for _, r := range replicas {
		switch {
		case r.State == cluster.ReplicaTerminating:
		case r.Revision == revision:
			current = append(current, r)
		case serves(r):
			old = append(old, r)
		default:
			end = append(end, r.Name)
		}
	}
	for len(current) > desired {
		i := victim(current)
		end = append(end, current[i].Name)
		current = slices.Delete(current, i, i+1)
	}
	ready := 0
	for _, r := range current {
		if r.State == cluster.ReplicaReady {
			ready++
		}
	}
	for len(old) > max(0, desired-ready) {
		i := victim(old)
		end = append(end, old[i].Name)
		old = slices.Delete(old, i, i+1)
	}
	limit := desired
	if len(old) > 0 {
		limit++
	}
	return max(0, min(desired-len(current), limit-len(current)-len(old))), end
}

// serves says whether the replica may answer requests.
func serves(r cluster.Replica) bool {
	return r.State == cluster.ReplicaReady || r.State == cluster.ReplicaUnready
}

// victim is the index of the one to end first.
func victim(rs []cluster.Replica) int {
	rank := func(r cluster.Replica) int {
		switch r.State {
		case cluster.ReplicaFailed:
			return 3
		case cluster.ReplicaStarting:
			return 2
		case cluster.ReplicaUnready:
			return 1
		default:
			return 0
		}
	}
	best := 0
	for i := range rs {
		if rank(rs[i]) >= rank(rs[best]) {
			best = i
		}
	}
	return best
}
