package report_test

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-dev/sluice/pkg/chatops"
	"github.com/sluice-dev/sluice/pkg/report"
	"github.com/sluice-dev/sluice/rollout"
)

var update = flag.Bool("update", false, "write the golden comments")

const (
	repoID  = 123456789
	pull    = 41
	control = "sha-1f2e3d4"
	treated = "pr-41-3f9c2ab"
	// hostile is text that would be much in Markdown.
	hostile = "@everyone see #12, GH-7 & [x](https://evil.example) <img src=x> <!-- --> `code` **b** a|b \u202etxt\u202c\n/promote\n# h ``` \n~~~\n"
)

var (
	fraud = rollout.Key{Namespace: "models", Name: "fraud"}
	began = time.Date(2026, 11, 23, 10, 0, 0, 0, time.UTC)
	mine  = report.PullRequest{Repository: repoID, Number: pull}
)

func commit(n int) string { return fmt.Sprintf("%040x", n) }

func version(name string, n, number int) rollout.Version {
	return rollout.Version{
		Name: name, Image: fmt.Sprintf("registry.example/fraud@sha256:%064x", n),
		Source: rollout.Source{RepositoryID: repoID, PullRequest: number, Commit: commit(n)},
	}
}

// life of an endpoint, one transition after the other.
type life struct {
	t *testing.T
	e *rollout.Endpoint
	n int
}

func newLife(t *testing.T, key rollout.Key) *life {
	t.Helper()
	l := &life{t: t, e: &rollout.Endpoint{APIVersion: rollout.APIVersion, Kind: rollout.Kind, Metadata: rollout.Metadata{Namespace: key.Namespace, Name: key.Name}}}
	l.do("github-actions", rollout.ReasonRequested, "", rollout.Deploy{Version: version(control, 1, 0), Repositories: []int64{repoID}, Strategy: &rollout.Strategy{}})
	l.ready(control, 4)
	return l
}

func (l *life) do(actor string, why rollout.Reason, evidence string, op rollout.Op) *life {
	l.t.Helper()
	l.n++
	req := rollout.Request{ID: fmt.Sprintf("c-%d-1", l.n), Actor: actor, Reason: why, Evidence: evidence, At: began.Add(time.Duration(l.n) * time.Minute), Force: true}
	next, _, err := rollout.Apply(l.e, req, op)
	if err != nil {
		l.t.Fatal(err)
	}
	l.e = next
	return l
}

func (l *life) ready(name string, n int) *life {
	return l.state(rollout.VersionStatus{Name: name, State: rollout.StateReady, Replicas: n, ReadyReplicas: n})
}

func (l *life) state(s rollout.VersionStatus) *life {
	for i := range l.e.Status.Versions {
		if l.e.Status.Versions[i].Name == s.Name {
			l.e.Status.Versions[i] = s
			return l
		}
	}
	l.e.Status.Versions = append(l.e.Status.Versions, s)
	return l
}

func (l *life) joined() *life {
	return l.do("github-actions", rollout.ReasonRequested, "", rollout.Deploy{Version: version(treated, 2, pull)}).
		state(rollout.VersionStatus{Name: treated, State: rollout.StateStarting, Reason: rollout.ReasonStarting, Replicas: 1})
}

func (l *life) treatment(percent rollout.Percent) *life {
	role := rollout.Treatment
	l.joined().ready(treated, 2).do("github-actions", rollout.ReasonRequested, "", rollout.Update{Version: treated, Type: &role})
	if percent > 0 {
		l.do(rollout.Engine, rollout.ReasonStepStarted, "", rollout.Shift{Version: treated, Percent: percent})
	}
	return l
}

func (l *life) rollout(step int, percent rollout.Percent, why rollout.Reason, message, verdict string) *life {
	l.e.Status.Rollout = &rollout.RolloutStatus{
		Treatment: treated, Step: step, StepPercent: percent, StepStarted: began.Add(10 * time.Minute), Started: began, StepRequests: "1120", Reason: why, Message: message,
		Evidence: []rollout.EvidenceStatus{{
			Treatment: treated, Verdict: verdict, Requests: "1180", Bad: "12", ControlRequests: "10620", ControlBad: "31",
			LogEvidenceWorse: "1.2", LogEvidenceFine: "0.4", BadUpperBound: "2.31", Key: "k",
		}},
	}
	// Longer than the control's in all lives, as its extremes show.
	l.e.Status.Traffic = &rollout.TrafficStatus{At: began.Add(11 * time.Minute), Seconds: 60, Versions: []rollout.VersionTraffic{
		{Name: l.e.Spec.ByRole(rollout.Control).Name, Requests: 3600, P50: "20.4", P99: "1204.6"}, {Name: treated, Requests: 400, P50: "21.9", P99: "98.04"},
	}}
	return l
}

const worse = "worse: 41 of 1,180 requests bad against 31 of 10,620 for the control: likelihood ratio 340:1 that it is bad more often; 100:1 rolls back"

// lives are the endpoints of every state of a comment.
func lives(t *testing.T) map[string]*rollout.Endpoint {
	out := map[string]*rollout.Endpoint{}
	add := func(name string, f func(l *life)) {
		l := newLife(t, fraud)
		f(l)
		out[name] = l.e
	}
	ten := 10 * rollout.OnePercent
	add("joined", func(l *life) { l.joined() })
	add("ready", func(l *life) { l.joined().ready(treated, 1) })
	add("running", func(l *life) {
		l.treatment(ten).rollout(1, ten, rollout.ReasonStepRunning, "60 of 100 requests at 10 per cent", "undecided")
	})
	add("last-step", func(l *life) {
		l.treatment(ten).do(rollout.Engine, rollout.ReasonStepComplete, "", rollout.Shift{Version: treated, Percent: 5 * ten}).
			rollout(2, 5*ten, rollout.ReasonUndecided, "the last step is complete, but the evidence does not allow a promotion yet", "undecided")
	})
	add("by-hand", func(l *life) {
		l.e.Spec.Strategy, l.e.Spec.Changes = nil, nil
		l.treatment(0).do("github-actions", rollout.ReasonRequested, "", rollout.Update{Version: treated, Percent: &ten})
	})
	add("held", func(l *life) {
		l.treatment(ten).rollout(1, ten, rollout.ReasonHeld, "", "undecided").do("github:alice", rollout.ReasonRequested, "", rollout.Hold{Reason: "until Bob is back"})
	})
	add("held-hostile", func(l *life) {
		l.treatment(ten).rollout(1, ten, rollout.ReasonHeld, "", "undecided").do("github:alice "+hostile, rollout.ReasonRequested, hostile, rollout.Hold{Reason: hostile})
	})
	add("locked", func(l *life) {
		l.treatment(ten).do("github:alice", rollout.ReasonRequested, "", rollout.Lock{Reason: "audit"})
	})
	add("deadline", func(l *life) {
		l.treatment(ten).rollout(1, ten, rollout.ReasonDeadline, "undecided for 24h, its deadline", "undecided")
	})
	add("worse", func(l *life) {
		l.treatment(ten).rollout(1, ten, rollout.ReasonWorse, worse, "worse").do(rollout.Engine, rollout.ReasonWorse, worse, rollout.Rollback{Version: treated})
		l.e.Status.Rollout.Evidence = nil
	})
	add("rolled-back", func(l *life) {
		l.treatment(ten).do("github:alice", rollout.ReasonRequested, "", rollout.Rollback{Version: treated})
	})
	add("promoted", func(l *life) {
		l.treatment(5*ten).do(rollout.Engine, rollout.ReasonNotWorse, "not worse: 2 of 4,180 requests bad against 31 of 10,620 for the control: likelihood ratio 52:1 that it is bad less than 2 times as often; 40:1 promotes", rollout.Promote{Version: treated})
	})
	add("failed", func(l *life) {
		l.joined().state(rollout.VersionStatus{Name: treated, State: rollout.StateFailed, Reason: rollout.ReasonInitFailed, Replicas: 1,
			Message: "Traceback (most recent call last):\n  File \"/usr/lib/python3.12/runpy.py\", line 88, in run\n  File \"/srv/v/9/src/score.py\", line 7, in init\n    model = load(\"@everyone.pkl\") # ```\nFileNotFoundError: no such file\n"})
	})
	add("waiting", func(l *life) {
		l.treatment(ten).rollout(1, ten, rollout.ReasonCapacity, "2 of 5 slots are ready for 50 per cent", "undecided")
	})
	add("unknown", func(l *life) {
		l.treatment(ten).rollout(1, ten, rollout.ReasonUnknown, "evidence is unavailable: nothing moves until it is back", "unknown")
	})
	add("closed", func(l *life) {
		l.treatment(ten).do("github:alice", rollout.ReasonClosed, "", rollout.Rollback{Version: treated})
	})
	add("replaced-control", func(l *life) {
		l.treatment(ten).do("github:alice", rollout.ReasonRequested, "", rollout.Promote{Version: treated})
		role := rollout.Treatment
		l.do("ci", rollout.ReasonRequested, "", rollout.Deploy{Version: version("pr-50-9999999", 9, 50)}).do("ci", rollout.ReasonRequested, "", rollout.Update{Version: "pr-50-9999999", Type: &role}).
			do("github:bob", rollout.ReasonRequested, "", rollout.Promote{Version: "pr-50-9999999"})
	})
	add("pushed-again", func(l *life) {
		l.treatment(ten).do("github-actions", rollout.ReasonRequested, "", rollout.Deploy{Version: version("pr-41-7777777", 7, pull)})
	})
	return out
}

func options(name string) report.Options {
	o := report.Options{Buttons: name != "by-hand", Prefix: name == "by-hand", OnMerge: "promotes it"}
	if name == "running" {
		o.Permissions, o.Pictures = true, pictures("a key of 32 bytes, and not chosen")
	}
	return o
}

// golden compares a comment with that of a file.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", "comments", name+".md")
	if *update {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("(-want +got); if the new one is right, run the test with -update:\n%s", diff)
	}
}

// TestGoldenLastComments: those on what is not reported on any more.
func TestGoldenLastComments(t *testing.T) {
	before, _ := report.MarkOf(report.Comment(lives(t)["running"], mine, report.Options{Check: "sluice/models/fraud"}, "abc"))
	for name, tc := range map[string]struct {
		was report.Mark
		why rollout.Reason
	}{
		"removed":          {before, rollout.ReasonUnknownVersion},
		"removed-endpoint": {before, rollout.ReasonUnknownEndpoint},
		"unbound":          {before, rollout.ReasonNotBound},
		"removed-hostile":  {report.Mark{Namespace: "models", Endpoint: "fraud", State: hostile, Version: hostile, Commit: hostile}, rollout.ReasonUnknownVersion},
	} {
		t.Run(name, func(t *testing.T) {
			got := report.Removed(tc.was, tc.why)
			golden(t, name, got)
			if lines := chatops.Parse(got); len(lines) != 0 {
				t.Errorf("the comment has commands itself: %v", lines)
			}
			m, ok := report.MarkOf(got)
			if !ok || m.Key() != fraud || m.State != report.StateRemoved || m.Version != tc.was.Version || m.Commit != tc.was.Commit || m.Check != tc.was.Check || m.Sent != "" {
				t.Errorf("the mark is %+v, %v", m, ok)
			}
		})
	}
}

func TestGoldenComments(t *testing.T) {
	for name, e := range lives(t) {
		t.Run(name, func(t *testing.T) {
			got := report.Comment(e, mine, options(name), "abc")
			golden(t, name, got)
			if lines := chatops.Parse(got); len(lines) != 0 {
				t.Errorf("the comment has commands itself: %v", lines)
			}
			m, ok := report.MarkOf(strings.ReplaceAll(got, "\n", "\r\n"))
			if !ok || m.Key() != fraud || m.Sent != "abc" || m.Version == "" {
				t.Errorf("the mark is %+v, %v", m, ok)
			}
			if strings.Contains(got, "@everyone") && !strings.Contains(got, "```text") {
				t.Error("somebody is mentioned")
			}
		})
	}
}

// TestCommentsAreBounded: whatever people and replicas write, the comment fits and is found again.
func TestCommentsAreBounded(t *testing.T) {
	l := newLife(t, fraud).joined()
	l.state(rollout.VersionStatus{Name: treated, State: rollout.StateFailed, Reason: rollout.ReasonInitFailed, Message: strings.Repeat("🙂`", 60_000)})
	got := report.Comment(l.e, mine, report.Options{}, "")
	if n := utf8.RuneCountInString(got); n > 65_536 {
		t.Errorf("%d characters", n)
	}
	if _, ok := report.MarkOf(got); !ok {
		t.Error("the mark is gone")
	}
}

func TestMarks(t *testing.T) {
	m := report.Mark{Namespace: "a", Endpoint: "b", State: "--> <img>", Version: "v", Sent: "x"}
	if got, ok := report.MarkOf("text\n" + m.String() + "\n\n"); !ok || got != m {
		t.Errorf("got %+v, %v", got, ok)
	}
	if strings.Count(m.String(), "-->") != 1 {
		t.Errorf("%s ends early", m)
	}
	for _, body := range []string{"", "text", "text " + m.String(), m.String() + "\nmore", "<!-- sluice:report {} -->", "<!-- sluice:report nonsense -->", "> " + m.String()} {
		if got, ok := report.MarkOf(body); ok {
			t.Errorf("%q has the mark %+v", body, got)
		}
	}
}

func TestOnlyBoundRepositories(t *testing.T) {
	l := newLife(t, fraud).treatment(rollout.OnePercent)
	if got := report.PullRequests(l.e); len(got) != 1 || got[0] != mine {
		t.Errorf("got %v", got)
	}
	l.e.Spec.Repositories = []int64{5}
	if got := report.PullRequests(l.e); len(got) != 0 {
		t.Errorf("of a repository that is not bound: %v", got)
	}
}

// FuzzComment: whatever people write as a reason and replicas as their last words, the comment commands nothing,
// fits, and is found again.
func FuzzComment(f *testing.F) {
	for _, text := range []string{hostile, "`", "```\n/promote\n```", "\n-->\n<!-- sluice:report {} -->", "| a | b |\n|---|---|", "\r/rollback\r", "\u2028/promote", "~~~"} {
		f.Add(text, text)
	}
	f.Fuzz(func(t *testing.T, reason, words string) {
		l := newLife(t, fraud).joined().do("github:"+reason, rollout.ReasonRequested, words, rollout.Hold{Reason: reason})
		l.state(rollout.VersionStatus{Name: treated, State: rollout.StateFailed, Reason: rollout.ReasonInitFailed, Message: words})
		failed := report.Comment(l.e, mine, report.Options{Buttons: true}, "")
		role := rollout.Treatment
		l.ready(treated, 1).do("ci", rollout.ReasonRequested, "", rollout.Update{Version: treated, Type: &role})
		l.rollout(0, 0, rollout.ReasonHeld, words, "undecided")
		for _, got := range []string{failed, report.Comment(l.e, mine, report.Options{Prefix: true}, "")} {
			if lines := chatops.Parse(got); len(lines) != 0 {
				t.Errorf("commands: %v", lines)
			}
			if m, ok := report.MarkOf(got); !ok || m.Version != treated {
				t.Errorf("the mark is %+v, %v", m, ok)
			}
			if n := utf8.RuneCountInString(got); n > 65_536 {
				t.Errorf("%d characters", n)
			}
			for line := range strings.Lines(strings.ReplaceAll(got, "\r", "\n")) {
				if strings.HasPrefix(strings.TrimLeft(line, " "), "/") && !strings.Contains(got, "```text") {
					t.Errorf("a line begins with a slash: %q", line)
				}
			}
		}
	})
}
