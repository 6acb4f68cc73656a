package page

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sluice-dev/sluice/pkg/cluster/memory"
	"github.com/sluice-dev/sluice/rollout"
)

func words(s shares) string {
	var out []string
	for name, p := range s {
		if p > 0 {
			out = append(out, name+" "+p.String())
		}
	}
	slices.Sort(out)
	return strings.Join(out, ", ")
}

// TestReplay: what follows from the record is what the shares were at the time.
func TestReplay(t *testing.T) {
	for _, tc := range []struct {
		name string
		do   []rollout.Op
	}{
		{"a ramp", []rollout.Op{rollout.Shift{Version: "b", Percent: 1000}, rollout.Shift{Version: "b", Percent: 12500}, rollout.Promote{Version: "b"}}},
		{"a rollback", []rollout.Op{rollout.Shift{Version: "b", Percent: 1000}, rollout.Rollback{Version: "b"}, rollout.Hold{}}},
		{"back to the standby", []rollout.Op{rollout.Promote{Version: "b"}, rollout.Hold{}, rollout.Rollback{Version: "b"}, rollout.Shift{Version: "c", Percent: 30_000}}},
		{"two treatments", []rollout.Op{rollout.Shift{Version: "b", Percent: 10_000}, rollout.Shift{Version: "c", Percent: 20_000}, rollout.Promote{Version: "c"}, rollout.Shift{Version: "b", Percent: 5000}, rollout.Retire{Version: "b"}}},
		{"another default", []rollout.Op{rollout.Shift{Version: "b", Percent: 10_000}, rollout.Update{Version: "b", Default: true}, rollout.Shift{Version: "a", Percent: 40_000}, rollout.Shift{Version: "c", Percent: 1}}},
		{"a delete", []rollout.Op{rollout.Shift{Version: "b", Percent: 10_000}, rollout.Delete{Version: "b"}, rollout.Shift{Version: "c", Percent: 3000}}},
		{"a claim of an update", []rollout.Op{rollout.Update{Version: "b", Percent: new(rollout.Percent(7000))}, rollout.Prepare{Version: "b", Percent: 50_000}, rollout.Lock{}, rollout.Unlock{}}},
		{"a deploy that retires", []rollout.Op{
			rollout.Deploy{Version: rollout.Version{Name: "pr-9-0000001", Image: image(9), Source: rollout.Source{RepositoryID: 7, PullRequest: 9}}},
			rollout.Update{Version: "pr-9-0000001", Type: new(rollout.Treatment), Percent: new(rollout.Percent(9000))},
			rollout.Deploy{Version: rollout.Version{Name: "pr-9-0000002", Image: image(10), Source: rollout.Source{RepositoryID: 7, PullRequest: 9}}},
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := &story{t: t, store: memory.NewStore(), now: began}
			s.begin("models", "fraud")
			for i, name := range []string{"a", "b", "c"} {
				s.deploy(float64(60-i), name, i+1, 0, nil)
				if i > 0 {
					s.treatment(50, name)
				}
			}
			want := make([]string, 0, 20)
			sharesOf := func() string {
				now := shares{}
				for _, sh := range s.e.Spec.Shares() {
					now[sh.Name] = sh.Percent
				}
				return words(now)
			}
			n := len(record(s.e))
			for i, op := range tc.do {
				s.at(float64(40-i), "alice", "", "", op)
				want = append(want, sharesOf())
			}
			got := replay(s.e, record(s.e))[n:]
			if len(got) != len(want) {
				t.Fatalf("%d moments, want %d", len(got), len(want))
			}
			for i := range got {
				if words(got[i].shares) != want[i] {
					t.Errorf("after %q: %s, want %s", got[i].change.Action, words(got[i].shares), want[i])
				}
			}
		})
	}
}

// TestReplayUnknown: what does not follow from the record is not made up.
func TestReplayUnknown(t *testing.T) {
	at := func(i int, action string) rollout.Change {
		return rollout.Change{ID: fmt.Sprint(i, action), Action: action, At: began.Add(time.Duration(i) * time.Minute)}
	}
	e := &rollout.Endpoint{Spec: rollout.Spec{Versions: []rollout.Version{{Name: "b", Type: rollout.Control, IsDefault: true}, {Name: "c", TrafficPercentile: 5000}}}}
	changes := []rollout.Change{at(0, "hold")}
	for i := 1; i < rollout.MaxHistory-4; i++ {
		changes = append(changes, at(i, "resume"))
	}
	changes = append(changes, at(60, "traffic b 10"), at(61, "promote b"), at(62, "edit"), at(63, "traffic c 5"))
	if len(changes) != rollout.MaxHistory {
		t.Fatal(len(changes))
	}
	got := replay(e, changes)
	for i, want := range map[int]string{0: "", 46: "b 10", 47: "b 100", 48: "", 49: "b 95, c 5"} {
		if is := words(got[i].shares); is != want {
			t.Errorf("after %q: %q, want %q", got[i].change.Action, is, want)
		}
	}
}

// TestRamp: a golden picture of one rollback.
func TestRamp(t *testing.T) {
	store := tell(t, began)
	e, err := store.Get(t.Context(), churn)
	if err != nil {
		t.Fatal(err)
	}
	v := ramp(e, record(e), classes(e), began)
	var b strings.Builder
	fmt.Fprintf(&b, "%s, %s to %s, running %t\n", v.Of, clock(v.Start), clock(v.End), v.Running)
	for _, l := range v.Lines {
		fmt.Fprintf(&b, "%s %s,%s %s,%s\n", l.Class, l.X1, l.Y1, l.X2, l.Y2)
	}
	for _, p := range v.Points {
		fmt.Fprintf(&b, "%d. %s,%s %s %s %s %t\n", p.N, p.X, p.Y, p.Share, p.Action, p.Reason, p.Bad)
	}
	const want = `pr-7-0a1b2c3, 2026-11-26 02:20:00 UTC to 2026-11-26 02:32:00 UTC, running false
k-control 0.00%,0.00% 25.00%,0.00%
k-control 25.00%,0.00% 25.00%,1.00%
k-control 25.00%,1.00% 83.33%,1.00%
k-control 83.33%,1.00% 83.33%,0.00%
k-control 83.33%,0.00% 100.00%,0.00%
k-treatment1 0.00%,100.00% 25.00%,100.00%
k-treatment1 25.00%,100.00% 25.00%,99.00%
k-treatment1 25.00%,99.00% 83.33%,99.00%
k-treatment1 83.33%,99.00% 83.33%,100.00%
k-treatment1 83.33%,100.00% 100.00%,100.00%
1. 0.00%,100.00% 0 % deploy pr-7-0a1b2c3 requested false
2. 16.67%,100.00% 0 % update pr-7-0a1b2c3 type treatment requested false
3. 25.00%,99.00% 1 % traffic pr-7-0a1b2c3 1 step_started false
4. 83.33%,100.00% 0 % rollback pr-7-0a1b2c3 worse true
`
	if b.String() != want {
		t.Errorf("is\n%s\nwant\n%s", b.String(), want)
	}
	if want := "Share of pr-7-0a1b2c3 over time: 0 % from 2026-11-26 02:20:00 UTC, 0 % from"; !strings.HasPrefix(v.Label, want) {
		t.Errorf("in words: %s", v.Label)
	}
	e, err = store.Get(t.Context(), rollout.Key{Namespace: "speech", Name: "transcribe"})
	if err != nil {
		t.Fatal(err)
	}
	if v := ramp(e, record(e), classes(e), began); v != nil {
		t.Errorf("nothing has moved, and still %+v", v)
	}
}
