package rollout_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/sluice-dev/sluice/rollout"
)

var start = time.Date(2026, 11, 23, 10, 0, 0, 0, time.UTC)

func image(n int) string { return fmt.Sprintf("local/fraud@sha256:%064x", n) }

func version(name string, n int) rollout.Version {
	return rollout.Version{Name: name, Image: image(n), Source: rollout.Source{RepositoryID: 7, Commit: fmt.Sprintf("%040x", n)}}
}

func endpoint() *rollout.Endpoint {
	return &rollout.Endpoint{
		APIVersion: rollout.APIVersion, Kind: rollout.Kind,
		Metadata: rollout.Metadata{Name: "fraud", Namespace: "models"},
	}
}

type driver struct {
	t *testing.T
	e *rollout.Endpoint
	n int
}

func (d *driver) try(actor string, op rollout.Op) (rollout.Outcome, error) {
	d.n++
	next, out, err := rollout.Apply(d.e, rollout.Request{ID: fmt.Sprintf("c-%d", d.n), Actor: actor, At: start.Add(time.Duration(d.n) * time.Minute)}, op)
	if err == nil {
		d.e = next
		rollout.RecordHistory(&d.e.Status, d.e.Spec.Changes)
	}
	return out, err
}

func (d *driver) do(op rollout.Op) rollout.Outcome {
	d.t.Helper()
	out, err := d.try("alice", op)
	if err != nil {
		d.t.Fatalf("%s: %v", op, err)
	}
	return out
}

func (d *driver) refused(op rollout.Op, want rollout.Reason) *rollout.Error {
	d.t.Helper()
	_, err := d.try("alice", op)
	for _, e := range rollout.AsErrors(err) {
		if e.Reason == want {
			if e.Field == "" || e.Hint == "" || e.Message == "" {
				d.t.Errorf("%s: refusal lacks field, rule or way out: %#v", op, e)
			}
			return e
		}
	}
	d.t.Fatalf("%s: got %v, want a refusal with reason %s", op, err, want)
	return nil
}

// ready says of each version how many replicas are ready.
func (d *driver) ready(n int, names ...string) {
	d.e.Status.Versions = nil
	for _, name := range names {
		d.e.Status.Versions = append(d.e.Status.Versions, rollout.VersionStatus{Name: name, Replicas: n, ReadyReplicas: n})
	}
}

// line is the endpoint in one line: "A control default 20=100, B treatment 10=10".
func (d *driver) line() string {
	var out []string
	for _, sh := range d.e.Spec.Shares() {
		v := d.e.Spec.Version(sh.Name)
		s := v.Name
		if v.Type != rollout.Untyped {
			s += " " + string(v.Type)
		}
		if d.e.Spec.Default() == v {
			s += " default"
		}
		out = append(out, fmt.Sprintf("%s %s=%s", s, v.TrafficPercentile, sh.Percent))
	}
	return strings.Join(out, ", ")
}

func (d *driver) want(line string) {
	d.t.Helper()
	if got := d.line(); got != line {
		d.t.Fatalf("got  %s\nwant %s", got, line)
	}
}

func pct(s string) *rollout.Percent {
	p, err := rollout.ParsePercent(s)
	if err != nil {
		panic(err)
	}
	return &p
}

func role(r rollout.Role) *rollout.Role { return &r }

// TestMissionExample walks through the worked example of controlled rollout that
// Azure ML's documentation gives, step by step.
func TestMissionExample(t *testing.T) {
	d := &driver{t: t, e: endpoint()}
	d.do(rollout.Deploy{Version: version("a", 1)})
	d.want("a control default 0=100")
	d.do(rollout.Update{Version: "a", Percent: pct("20")})
	d.want("a control default 20=100")
	d.do(rollout.Deploy{Version: version("b", 2)})
	d.want("a control default 20=100, b 0=0")
	d.do(rollout.Update{Version: "b", Type: role(rollout.Treatment), Percent: pct("10")})
	d.want("a control default 20=90, b treatment 10=10")
	d.do(rollout.Update{Version: "b", Percent: pct("40"), Default: true})
	d.want("a control 20=20, b treatment default 40=80")
	d.do(rollout.Update{Version: "b", Type: role(rollout.Control)})
	d.want("a 20=20, b control default 40=80")
	d.do(rollout.Delete{Version: "b"})
	d.want("a control default 20=100")
}

func TestPromoteAndBack(t *testing.T) {
	d := &driver{t: t, e: endpoint()}
	d.do(rollout.Deploy{Version: version("a", 1)})
	d.do(rollout.Deploy{Version: version("b", 2)})
	d.refused(rollout.Promote{Version: "b"}, rollout.ReasonNotTreatment)
	d.do(rollout.Update{Version: "b", Type: role(rollout.Treatment), Percent: pct("10")})
	d.refused(rollout.Promote{Version: "b"}, rollout.ReasonNotEnoughReady)
	d.ready(2, "a", "b")
	d.do(rollout.Promote{Version: "b"})
	d.want("a standby 0=0, b control default 0=100")
	if a := d.e.Spec.Version("a"); a.StandbyReplicas != 2 || a.StandbySince.IsZero() {
		t.Errorf("standby keeps size %d since %v, want 2 and a time", a.StandbyReplicas, a.StandbySince)
	}
	d.do(rollout.Rollback{Version: "b"})
	d.want("a control default 0=100, b 0=0")
	if d.e.Spec.Version("b").RetiredAt.IsZero() {
		t.Error("the version rolled back is not marked as retired")
	}
	d.refused(rollout.Rollback{Version: "a"}, rollout.ReasonNoStandby)

	// A second promotion retires the older standby.
	d.do(rollout.Deploy{Version: version("c", 3)})
	d.do(rollout.Update{Version: "c", Type: role(rollout.Treatment)})
	d.do(rollout.Deploy{Version: version("e", 5)})
	d.do(rollout.Update{Version: "e", Type: role(rollout.Treatment)})
	d.ready(1, "a", "b", "c", "e")
	d.do(rollout.Promote{Version: "c"})
	d.do(rollout.Promote{Version: "e"})
	d.want("a 0=0, b 0=0, c standby 0=0, e control default 0=100")
}

func TestRollbackOfDefaultTreatmentGoesToControl(t *testing.T) {
	d := &driver{t: t, e: endpoint()}
	d.do(rollout.Deploy{Version: version("a", 1)})
	d.do(rollout.Deploy{Version: version("b", 2)})
	d.do(rollout.Update{Version: "b", Type: role(rollout.Treatment), Percent: pct("10"), Default: true})
	d.want("a control 0=0, b treatment default 10=100")
	d.do(rollout.Rollback{Version: "b"})
	d.want("a control default 0=100, b 0=0")
}

func TestShiftHoldsAndResumeEndsIt(t *testing.T) {
	d := &driver{t: t, e: endpoint()}
	d.do(rollout.Deploy{Version: version("a", 1)})
	d.do(rollout.Deploy{Version: version("b", 2), Strategy: &rollout.Strategy{}})
	d.do(rollout.Update{Version: "b", Type: role(rollout.Treatment)})
	d.ready(1, "a", "b")
	if _, err := d.try(rollout.Engine, rollout.Shift{Version: "b", Percent: *pct("1")}); err != nil || d.e.Spec.Hold != nil {
		t.Fatalf("the engine's shift: %v, hold %v; want none", err, d.e.Spec.Hold)
	}
	d.do(rollout.Shift{Version: "b", Percent: *pct("20.125")})
	d.want("a control default 0=79.875, b treatment 20.125=20.125")
	if d.e.Spec.Hold == nil || d.e.Spec.Hold.Actor != "alice" {
		t.Fatalf("hold = %v, want one by alice", d.e.Spec.Hold)
	}
	d.do(rollout.Resume{})
	if d.e.Spec.Hold != nil {
		t.Fatal("still held after Resume")
	}
	if out := d.do(rollout.Resume{}); out.Changed {
		t.Fatal("a second Resume changed something")
	}
}

func TestLockRefusesAllButTheWayBack(t *testing.T) {
	d := &driver{t: t, e: endpoint()}
	d.do(rollout.Deploy{Version: version("a", 1)})
	d.do(rollout.Deploy{Version: version("b", 2)})
	d.do(rollout.Update{Version: "b", Type: role(rollout.Treatment), Percent: pct("10")})
	d.ready(9, "a", "b")
	d.do(rollout.Lock{Reason: "audit"})
	for _, op := range []rollout.Op{
		rollout.Deploy{Version: version("c", 3)}, rollout.Promote{Version: "b"}, rollout.Shift{Version: "b", Percent: 1},
		rollout.Update{Version: "b", Default: true}, rollout.Delete{Version: "b"}, rollout.Resume{}, rollout.Retire{Version: "b"},
	} {
		d.refused(op, rollout.ReasonLocked)
	}
	if _, err := d.try(rollout.Engine, rollout.Shift{Version: "b", Percent: 1}); rollout.ReasonOf(err) != rollout.ReasonLocked {
		t.Errorf("the engine's advance: %v, want locked", err)
	}
	d.do(rollout.Hold{Reason: "wait"})
	d.do(rollout.Rollback{Version: "b"})
	d.want("a control default 0=100, b 0=0")
	d.do(rollout.Unlock{})
}

func TestDeployAgainAndSuperseded(t *testing.T) {
	d := &driver{t: t, e: endpoint()}
	d.do(rollout.Deploy{Version: version("a", 1)})
	if out := d.do(rollout.Deploy{Version: version("a", 1)}); out.Changed || !strings.Contains(out.Message, image(1)) {
		t.Errorf("deploying again: %+v, want no change and the digest that runs", out)
	}
	d.refused(rollout.Deploy{Version: version("a", 9)}, rollout.ReasonVersionExists)

	pr := func(name string, n int) rollout.Version {
		v := version(name, n)
		v.Source.PullRequest = 41
		return v
	}
	d.do(rollout.Deploy{Version: pr("pr-41-0000002", 2)})
	d.do(rollout.Update{Version: "pr-41-0000002", Type: role(rollout.Treatment), Percent: pct("5")})
	d.do(rollout.Deploy{Version: pr("pr-41-0000003", 3)})
	d.want("a control default 0=100, pr-41-0000002 0=0, pr-41-0000003 0=0")
}

func TestSeventhVersion(t *testing.T) {
	d := &driver{t: t, e: endpoint()}
	for i, n := range []string{"a", "b", "c", "d", "e", "f"} {
		d.do(rollout.Deploy{Version: version(n, i+1)})
	}
	// b is the oldest without a part in traffic: it makes room.
	d.do(rollout.Deploy{Version: version("g", 7)})
	if d.e.Spec.Version("b") != nil || len(d.e.Spec.Versions) != 6 {
		t.Fatalf("got %s, want b evicted", d.line())
	}
	for _, n := range []string{"c", "d", "e", "f", "g"} {
		d.do(rollout.Update{Version: n, Type: role(rollout.Treatment)})
	}
	e := d.refused(rollout.Deploy{Version: version("h", 8)}, rollout.ReasonTooManyVersions)
	for _, n := range []string{"a (control", "c (treatment", "g (treatment"} {
		if !strings.Contains(e.Message, n) {
			t.Errorf("the refusal does not list %q: %s", n, e.Message)
		}
	}
}

func TestDelete(t *testing.T) {
	d := &driver{t: t, e: endpoint()}
	d.do(rollout.Deploy{Version: version("a", 1)})
	if e := d.refused(rollout.Delete{Version: "a"}, rollout.ReasonLastVersion); !strings.Contains(e.Hint, "sluice delete") {
		t.Errorf("hint %q does not say how to delete the endpoint", e.Hint)
	}
	d.do(rollout.Deploy{Version: version("b", 2)})
	d.do(rollout.Deploy{Version: version("c", 3)})
	d.refused(rollout.Delete{Version: "zzz"}, rollout.ReasonUnknownVersion)
	d.refused(rollout.Delete{Version: "a"}, rollout.ReasonNewDefault)
	d.refused(rollout.Delete{Version: "a", NewDefault: "a"}, rollout.ReasonNewDefault)
	d.do(rollout.Delete{Version: "a", NewDefault: "c"})
	d.want("b 0=0, c control default 0=100")
	d.do(rollout.Deploy{Version: version("d", 4), Strategy: &rollout.Strategy{}})
	d.do(rollout.Update{Version: "d", Type: role(rollout.Treatment), Percent: pct("5")})
	d.refused(rollout.Delete{Version: "c", NewDefault: "b"}, rollout.ReasonJudgementRuns)
}

func TestForeignEdit(t *testing.T) {
	d := &driver{t: t, e: endpoint()}
	d.do(rollout.Deploy{Version: version("a", 1)})
	d.do(rollout.Deploy{Version: version("b", 2), Strategy: &rollout.Strategy{}})
	d.do(rollout.Update{Version: "b", Type: role(rollout.Treatment), Percent: pct("10")})
	d.ready(1, "a", "b")

	// A field that shifts nothing is no foreign edit.
	d.e.Spec.Version("b").Description = "by hand"
	d.e.Spec.Versions = append(d.e.Spec.Versions, version("added-by-git", 3))
	d.do(rollout.Hold{})
	d.do(rollout.Resume{})

	d.e.Spec.Version("b").TrafficPercentile = *pct("30")
	out, err := d.try(rollout.Engine, rollout.Shift{Version: "b", Percent: *pct("50")})
	if err != nil || !out.Changed || out.Applied {
		t.Fatalf("engine: %+v, %v; want the foreign edit recorded and nothing applied", out, err)
	}
	if got := d.e.Spec.Version("b").TrafficPercentile; got != *pct("30") || d.e.Spec.Hold == nil {
		t.Fatalf("b claims %s, hold %v; want 30 and a hold", got, d.e.Spec.Hold)
	}
	if last := d.e.Spec.Changes[len(d.e.Spec.Changes)-1]; last.Reason != rollout.ReasonForeignEdit {
		t.Fatalf("newest change is %+v, want the foreign edit", last)
	}
	// A person's command records it too, and goes on.
	d.e.Spec.Version("b").TrafficPercentile = *pct("31")
	d.do(rollout.Rollback{Version: "b"})
	if n := len(d.e.Spec.Changes); d.e.Spec.Changes[n-2].Reason != rollout.ReasonForeignEdit || d.e.Spec.Changes[n-1].Action != "rollback b" {
		t.Fatalf("changes end with %+v", d.e.Spec.Changes[n-2:])
	}
}

func TestFullListOfChanges(t *testing.T) {
	d := &driver{t: t, e: endpoint()}
	d.do(rollout.Deploy{Version: version("a", 1)})
	d.do(rollout.Deploy{Version: version("b", 2)})
	d.do(rollout.Update{Version: "b", Type: role(rollout.Treatment), Percent: pct("10")})
	d.ready(1, "a", "b")
	for i := 0; i < 30; i++ { // the history takes what leaves
		d.do(rollout.Shift{Version: "b", Percent: rollout.Percent(i + 1)})
	}
	if n := len(d.e.Spec.Changes); n != rollout.MaxChanges {
		t.Fatalf("%d changes, want %d", n, rollout.MaxChanges)
	}
	d.e.Status.History = nil // the control role is away: nothing may leave the list
	d.refused(rollout.Shift{Version: "b", Percent: 77}, rollout.ReasonChangesFull)
	d.do(rollout.Rollback{Version: "b"})
	if n := len(d.e.Spec.Changes); n != rollout.MaxChanges || d.e.Spec.Changes[n-1].Action != "rollback b" {
		t.Fatalf("%d changes, the newest %+v", n, d.e.Spec.Changes[n-1])
	}
}

func TestBindings(t *testing.T) {
	d := &driver{t: t, e: endpoint()}
	d.do(rollout.Deploy{Version: version("a", 1), Repositories: []int64{7}})
	digest := rollout.ShiftDigest(&d.e.Spec)
	if out := d.do(rollout.Bind{Repository: 7}); out.Changed {
		t.Errorf("bound twice: %+v", out)
	}
	d.do(rollout.Bind{Repository: 8})
	if last := d.e.Spec.Changes[len(d.e.Spec.Changes)-1]; fmt.Sprint(d.e.Spec.Repositories) != "[7 8]" || last.Action != "bind repository 8" || last.Digest != digest {
		t.Errorf("bound to %v, recorded as %+v; want both, and no shift", d.e.Spec.Repositories, last)
	}
	d.do(rollout.Unbind{Repository: 7})
	if out := d.do(rollout.Unbind{Repository: 7}); out.Changed || fmt.Sprint(d.e.Spec.Repositories) != "[8]" {
		t.Errorf("bound to %v, %+v", d.e.Spec.Repositories, out)
	}
	d.refused(rollout.Bind{Repository: -1}, rollout.ReasonInvalid)
	d.do(rollout.Lock{})
	d.refused(rollout.Bind{Repository: 9}, rollout.ReasonLocked)
}
