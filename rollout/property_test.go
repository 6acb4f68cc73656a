package rollout_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/sluice-dev/sluice/rollout"
)

// TestRandomTransitions draws sequences of transitions, foreign edits and lost
// statuses, and checks what must hold whatever happens.
func TestRandomTransitions(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		e, _, err := rollout.Apply(endpoint(), rollout.Request{ID: "first", Actor: "alice", At: start}, rollout.Deploy{Version: version("a", 0)})
		if err != nil {
			t.Fatal(err)
		}
		now := start
		names := []string{"a", "b", "c", "d", "e", "f", "g", "h"}
		name := rapid.SampledFrom(names)
		percent := rapid.Custom(func(t *rapid.T) rollout.Percent { return rollout.Percent(rapid.IntRange(0, 100000).Draw(t, "milli")) })
		op := rapid.Custom(func(t *rapid.T) rollout.Op {
			v := name.Draw(t, "version")
			switch rapid.IntRange(0, 12).Draw(t, "op") {
			case 0, 1:
				i := rapid.IntRange(0, len(names)-1).Draw(t, "new")
				d := rollout.Deploy{Version: version(names[i], i)}
				d.Version.Source.PullRequest = rapid.IntRange(0, 2).Draw(t, "pr")
				if rapid.Bool().Draw(t, "strategy") {
					d.Strategy = &rollout.Strategy{}
				}
				return d
			case 2, 3:
				u := rollout.Update{Version: v, Default: rapid.Bool().Draw(t, "default")}
				if rapid.Bool().Draw(t, "has percent") {
					p := percent.Draw(t, "percent")
					u.Percent = &p
				}
				if rapid.Bool().Draw(t, "has type") {
					r := rapid.SampledFrom([]rollout.Role{rollout.Untyped, rollout.Control, rollout.Treatment}).Draw(t, "type")
					u.Type = &r
				}
				return u
			case 4:
				return rollout.Shift{Version: v, Percent: percent.Draw(t, "percent")}
			case 5:
				return rollout.Promote{Version: v}
			case 6:
				return rollout.Rollback{Version: v}
			case 7:
				return rollout.Retire{Version: v}
			case 8:
				return rollout.Delete{Version: v, NewDefault: rapid.SampledFrom(append(names, "")).Draw(t, "new default")}
			case 9:
				return rapid.SampledFrom([]rollout.Op{rollout.Hold{Reason: "x"}, rollout.Resume{}}).Draw(t, "hold")
			case 10:
				n := rapid.Int64Range(-1, 2).Draw(t, "repository")
				return rapid.SampledFrom([]rollout.Op{rollout.Bind{Repository: n}, rollout.Unbind{Repository: n}}).Draw(t, "binding")
			default:
				return rapid.SampledFrom([]rollout.Op{rollout.Lock{}, rollout.Unlock{}}).Draw(t, "lock")
			}
		})
		for i := range rapid.IntRange(1, 40).Draw(t, "length") {
			now = now.Add(time.Second)
			e.Status.Versions = nil
			for _, v := range e.Spec.Versions {
				e.Status.Versions = append(e.Status.Versions, rollout.VersionStatus{Name: v.Name, ReadyReplicas: rapid.IntRange(0, 2).Draw(t, "ready")})
			}
			req := rollout.Request{
				ID: fmt.Sprint("id-", i), Actor: rapid.SampledFrom([]string{"alice", rollout.Engine}).Draw(t, "actor"), At: now,
				Force: rapid.Bool().Draw(t, "force"),
			}
			o := op.Draw(t, "transition")
			was := e.Clone()
			next, out, err := rollout.Apply(e, req, o)
			if diff := cmp.Diff(was, e); diff != "" {
				t.Fatalf("%s changed its input: %s", o, diff)
			}
			if err != nil {
				for _, e := range rollout.AsErrors(err) {
					if e.Reason == "" || e.Message == "" || e.Hint == "" || e.Field == "" {
						t.Fatalf("%s: refusal lacks reason, field, rule or way out: %#v", o, e)
					}
				}
				if len(rollout.AsErrors(err)) == 0 {
					t.Fatalf("%s: untyped error %v", o, err)
				}
				continue
			}
			check(t, o, next)
			// Once more with the same id: nothing happens.
			if out.Changed {
				again, o2, err := rollout.Apply(next, req, o)
				if err != nil || o2.Changed || cmp.Diff(next, again) != "" {
					t.Fatalf("%s with the same id again: %+v, %v", o, o2, err)
				}
			} else if cmp.Diff(e, next) != "" {
				t.Fatalf("%s says that nothing changed, but it did: %s", o, cmp.Diff(e, next))
			}
			e = next
			if rapid.Bool().Draw(t, "history") {
				rollout.RecordHistory(&e.Status, e.Spec.Changes)
			}
		}
	})
}

func check(t *rapid.T, o rollout.Op, e *rollout.Endpoint) {
	if err := e.Spec.Validate(); err != nil {
		t.Fatalf("after %s: %v", o, err)
	}
	for _, alive := range []func(string) bool{
		func(string) bool { return true }, func(string) bool { return false }, func(n string) bool { return n < "c" }, func(n string) bool { return n >= "c" },
	} {
		var sum rollout.Percent
		for _, sh := range e.Spec.SharesWith(alive) {
			if sh.Percent < 0 {
				t.Fatalf("after %s: %s gets %s", o, sh.Name, sh.Percent)
			}
			sum += sh.Percent
		}
		if sum != rollout.Full {
			t.Fatalf("after %s: shares add up to %s", o, sum)
		}
	}
	defaults := 0
	for i := range e.Spec.Versions {
		v := &e.Spec.Versions[i]
		if e.Spec.Default() == v {
			defaults++
		}
		if e.Spec.Active(v) && !v.RetiredAt.IsZero() {
			t.Fatalf("after %s: %s is active and marked as retired", o, v.Name)
		}
	}
	if defaults != 1 {
		t.Fatalf("after %s: %d effective defaults", o, defaults)
	}
	if n := len(e.Spec.Changes); n > 0 && e.Spec.Changes[n-1].Digest != rollout.ShiftDigest(&e.Spec) {
		t.Fatalf("after %s: the newest digest does not fit the spec", o)
	}
}
