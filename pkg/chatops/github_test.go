package chatops_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/sluice-dev/sluice/pkg/chatops"
	"github.com/sluice-dev/sluice/pkg/cluster"
	"github.com/sluice-dev/sluice/pkg/github/githubtest"
	"github.com/sluice-dev/sluice/rollout"
)

func (w *world) button(delivery, sender string, verb chatops.Verb, head string) chatops.Button {
	return chatops.Button{
		Digest: delivery, Repository: chatops.Repository{ID: repoID, Owner: "acme", Name: "fraud-model"},
		Sender: sender, SenderID: w.gh.AccountID(sender), Action: verb, Head: head, Endpoint: fraud,
	}
}

// After a refused press the check run is written once more, so that the next press is another one.
func TestPressedAgain(t *testing.T) {
	t.Parallel()
	renewed := make(chan string, 9)
	w := newWorld(t, func(w *world) {
		w.options.Renew = func(repository int64, commit string, endpoint rollout.Key) {
			renewed <- fmt.Sprint(repository, commit, endpoint)
		}
	})
	w.gh.AddFault(githubtest.Fault{Path: "/permission", Status: 500, Times: 3})
	wantEnd(t, w.press("one", "alice", chatops.Promote, commit(2)), cluster.EntryRefused, rollout.ReasonDenied)
	select {
	case got := <-renewed:
		if want := fmt.Sprint(int64(repoID), commit(2), fraud); got != want {
			t.Errorf("renewed %s, want %s", got, want)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("not renewed")
	}
	w.gh.ClearFaults()
	wantEnd(t, w.press("two", "alice", chatops.Promote, commit(2)), cluster.EntryDone, rollout.ReasonRequested)
	time.Sleep(100 * time.Millisecond)
	if n := len(renewed); n != 0 {
		t.Errorf("renewed %d times after what was done", n)
	}
}

// press a button and wait for its end.
func (w *world) press(delivery, sender string, verb chatops.Verb, head string) cluster.Entry {
	w.t.Helper()
	if _, err := w.service.AcceptButton(w.t.Context(), w.button(delivery, sender, verb, head)); err != nil {
		w.t.Fatal(err)
	}
	return w.finished("d-" + delivery)
}

func TestButtons(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	wantEnd(t, w.press("one", "alice", chatops.Hold, commit(2)), cluster.EntryDone, rollout.ReasonRequested)
	if h := w.endpoint().Spec.Hold; h == nil || h.Actor != "github:alice" {
		t.Errorf("hold = %+v", h)
	}
	wantEnd(t, w.press("two", "alice", chatops.Resume, commit(2)), cluster.EntryDone, rollout.ReasonRequested)
	wantEnd(t, w.press("three", "max", chatops.Promote, commit(2)), cluster.EntryDone, rollout.ReasonRequested)
	w.wantShares(control + " standby 0, " + treated + " control 100")
	// Delivered again: nothing.
	r, err := w.service.AcceptButton(t.Context(), w.button("two", "alice", chatops.Resume, commit(2)))
	if err != nil || r.Commands != 0 || r.Duplicates != 1 {
		t.Errorf("again: %+v, %v", r, err)
	}
	wantEnd(t, w.press("four", "max", chatops.Rollback, commit(2)), cluster.EntryDone, rollout.ReasonRequested)
	w.wantShares(control + " control 100, " + treated + "  0")
	changes := w.endpoint().Spec.Changes
	if last := changes[len(changes)-1]; last.ID != "d-four" || !strings.Contains(last.Message, "button at commit 000000000000") {
		t.Errorf("the record has %+v", last)
	}
	// What it did is told by the check run; only refusals are told in a comment.
	if got := w.gh.Comments(repoName, pull); len(got) != 0 {
		t.Errorf("comments: %+v", got)
	}
	for _, verb := range []chatops.Verb{chatops.Traffic, chatops.Status, chatops.Lock, "nonsense", "promote now"} {
		if r, err := w.service.AcceptButton(t.Context(), w.button("none", "alice", verb, commit(2))); err != nil || r != (chatops.Receipt{}) {
			t.Errorf("a button %q: %+v, %v", verb, r, err)
		}
	}
}

func TestButtonsOfThoseWhoMayNot(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for i, login := range []string{"rita", "tri", "fake"} {
		wantEnd(t, w.press("no-"+login, login, []chatops.Verb{chatops.Promote, chatops.Rollback, chatops.Hold}[i], commit(2)), cluster.EntryRefused, rollout.ReasonDenied)
		wantIn(t, w.reply("d-no-"+login), "(`denied`)")
	}
	w.gh.AddFault(githubtest.Fault{Path: "/permission", Status: 500})
	wantEnd(t, w.press("down", "alice", chatops.Promote, commit(2)), cluster.EntryRefused, rollout.ReasonDenied)
	w.wantShares(untouched)
	if w.endpoint().Spec.Hold != nil {
		t.Error("held")
	}
}

// TestButtonsAreBoundToTheirCommit: pressed at an old commit, or at another endpoint's, they do nothing.
func TestButtonsAreBoundToTheirCommit(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	wantEnd(t, w.press("other", "alice", chatops.Promote, commit(9)), cluster.EntryRefused, rollout.ReasonVersionChanged)
	b := w.button("elsewhere", "alice", chatops.Promote, commit(2))
	b.Endpoint.Name = "spam"
	if _, err := w.service.AcceptButton(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	wantEnd(t, w.finished("d-elsewhere"), cluster.EntryRefused, rollout.ReasonVersionChanged)

	// A push: the newest commit has the buttons that work.
	w.change("push", "ci", rollout.Deploy{Version: version("pr-41-7777777", 7, pull)})
	role := rollout.Treatment
	w.change("ready", "ci", rollout.Update{Version: "pr-41-7777777", Type: &role})
	for i, verb := range []chatops.Verb{chatops.Promote, chatops.Rollback, chatops.Hold} {
		name := "old-" + string(verb)
		wantEnd(t, w.press(name, "alice", verb, commit(2)), cluster.EntryRefused, rollout.ReasonVersionChanged)
		if i == 0 {
			wantIn(t, w.reply("d-"+name), "(`version_changed`)", "newest commit")
		}
	}
	if w.endpoint().Spec.Hold != nil {
		t.Error("held")
	}
	wantEnd(t, w.press("new", "alice", chatops.Rollback, commit(7)), cluster.EntryDone, rollout.ReasonRequested)
}

func TestButtonIsCarriedOutAfterACrash(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.gh.AddFault(githubtest.Fault{Path: "/permission", Delay: 30 * time.Second, Times: 1})
	w.options.Grace = time.Millisecond
	w.stop()
	w.start()
	if _, err := w.service.AcceptButton(t.Context(), w.button("late", "alice", chatops.Promote, commit(2))); err != nil {
		t.Fatal(err)
	}
	w.until("the question is asked", func() bool { return w.gh.CountCalls(http.MethodGet, "/permission") > 0 })
	w.stop()
	if e := w.entry("d-late"); e.State != cluster.EntryPending {
		t.Fatalf("it ended: %+v", e)
	}
	w.start()
	wantEnd(t, w.finished("d-late"), cluster.EntryDone, rollout.ReasonRequested)
	w.wantShares(control + " standby 0, " + treated + " control 100")
}

func (w *world) closed(merged bool, head string) chatops.Closed {
	w.gh.EditPullRequest(repoName, pull, func(pr *githubtest.PullRequest) { pr.State, pr.Merged = "closed", merged })
	return chatops.Closed{
		Repository:  chatops.Repository{ID: repoID, Owner: "acme", Name: "fraud-model"},
		PullRequest: pull, Head: head, Merged: merged, By: "alice", At: time.Now().Truncate(time.Second),
	}
}

func (w *world) close(c chatops.Closed) chatops.Receipt {
	w.t.Helper()
	r, err := w.service.AcceptClosed(w.t.Context(), c)
	if err != nil {
		w.t.Fatal(err)
	}
	return r
}

func name(action, head string) string { return chatops.ClosedName(repoID, pull, action, head) }

func TestClosedWithoutAMerge(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	other := rollout.Key{Namespace: "models", Name: "spam"}
	w.addEndpoint(other, pull)
	c := w.closed(false, commit(5)) // whatever its head was
	w.close(c)
	wantEnd(t, w.finished(name("closed", commit(5))), cluster.EntryDone, rollout.ReasonRequested)
	w.wantShares(control + " control 100, " + treated + "  0")
	e, err := w.memory.Get(t.Context(), other)
	if err != nil || e.Spec.Version(treated).Type != rollout.Untyped {
		t.Errorf("the other endpoint: %+v, %v", e.Spec.Version(treated), err)
	}
	changes := w.endpoint().Spec.Changes
	if last := changes[len(changes)-1]; last.Reason != rollout.ReasonClosed || last.Actor != "github:alice" {
		t.Errorf("the record has %+v", last)
	}
	if r := w.close(c); r.Commands != 0 || r.Duplicates != 1 {
		t.Errorf("delivered again: %+v", r)
	}
	// Reopened, made a treatment again, closed again at the same head.
	role := rollout.Treatment
	w.change("again", "ci", rollout.Update{Version: treated, Type: &role})
	c.At = c.At.Add(time.Minute)
	if r := w.close(c); r.Commands != 1 {
		t.Errorf("closed again: %+v", r)
	}
	w.until("it is out again", func() bool { return w.endpoint().Spec.Version(treated).Type == rollout.Untyped })
}

// TestClosedBeforeItsFirstPart: what has joined and is no treatment yet never becomes one.
func TestClosedBeforeItsFirstPart(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.change("push", "ci", rollout.Deploy{Version: version("pr-41-7777777", 7, pull)})
	w.close(w.closed(false, commit(7)))
	wantEnd(t, w.finished(name("closed", commit(7))), cluster.EntryDone, rollout.ReasonRequested)
	if v := w.endpoint().Spec.Version("pr-41-7777777"); v.RetiredAt.IsZero() {
		t.Errorf("it is still on its way: %+v", v)
	}
}

// TestReopenedInTheMeantime: a close that was delivered late does nothing to what is open.
func TestReopenedInTheMeantime(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := w.closed(false, commit(2))
	w.gh.EditPullRequest(repoName, pull, func(pr *githubtest.PullRequest) { pr.State = "open" })
	w.close(c)
	wantEnd(t, w.finished(name("closed", commit(2))), cluster.EntryRefused, rollout.ReasonSuperseded)
	w.wantShares(untouched)
}

func TestMergePromotes(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(w *world) { w.options.OnMerge = chatops.MergePromotes })
	w.close(w.closed(true, commit(2)))
	wantEnd(t, w.finished(name("merged", commit(2))), cluster.EntryDone, rollout.ReasonRequested)
	w.wantShares(control + " standby 0, " + treated + " control 100")
	changes := w.endpoint().Spec.Changes
	if last := changes[len(changes)-1]; last.Reason != rollout.ReasonMerged || last.Action != "promote "+treated {
		t.Errorf("the record has %+v", last)
	}
}

// TestMergeOfAnotherCommit: what was merged was never tested.
func TestMergeOfAnotherCommit(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(w *world) { w.options.OnMerge = chatops.MergePromotes })
	w.close(w.closed(true, commit(9)))
	wantEnd(t, w.finished(name("merged", commit(9))), cluster.EntryRefused, rollout.ReasonVersionChanged)
	w.wantShares(untouched)
	wantIn(t, w.reply(name("merged", commit(9))), "(`version_changed`)", "nothing was promoted")
}

// status of the endpoint is edited.
func (w *world) status(edit func(*rollout.Status)) {
	w.t.Helper()
	e := w.endpoint()
	edit(&e.Status)
	if _, err := w.memory.UpdateStatus(w.t.Context(), e); err != nil {
		w.t.Fatal(err)
	}
}

// enough replicas are ready for all traffic.
func enough(s *rollout.Status) {
	for i := range s.Versions {
		s.Versions[i].ReadyReplicas, s.Versions[i].Replicas = 20, 20
	}
}

// mergeWaits merges under a demand that the ready replicas cannot carry.
func (w *world) mergeWaits() {
	w.t.Helper()
	w.status(func(s *rollout.Status) { s.Demand = "7.5" })
	w.close(w.closed(true, commit(2)))
	w.until("replicas are asked for", func() bool { return w.endpoint().Spec.Version(treated).PlannedPercentile == rollout.Full })
}

func TestMergeWaitsForReplicas(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(w *world) { w.options.OnMerge = chatops.MergePromotes })
	w.mergeWaits()
	w.wantShares(untouched)
	// A crash while it waits changes nothing.
	w.options.Grace = time.Millisecond
	w.stop()
	w.start()
	w.status(enough)
	wantEnd(t, w.finished(name("merged", commit(2))), cluster.EntryDone, rollout.ReasonRequested)
	w.wantShares(control + " standby 0, " + treated + " control 100")
}

func TestMergeDoesNothingUnlessConfigured(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	if r := w.close(w.closed(true, commit(2))); r != (chatops.Receipt{}) {
		t.Errorf("recorded: %+v", r)
	}
	w.stop()
	w.options.OnMerge = chatops.MergeContinues
	w.start()
	w.close(w.closed(true, commit(2)))
	wantEnd(t, w.finished(name("merged", commit(2))), cluster.EntryDone, rollout.ReasonNoChange)
	wantIn(t, w.reply(name("merged", commit(2))), "judged on")
	w.wantShares(untouched)
}

func TestCommandsOnClosedPullRequests(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.gh.EditPullRequest(repoName, pull, func(pr *githubtest.PullRequest) { pr.State, pr.Merged = "closed", true })
	on := func(id int64, body string) chatops.Receipt {
		c := w.comment(id, "alice", body)
		c.Closed = true
		return w.accept(c)
	}
	for i, body := range []string{"/promote", "/traffic 20", "/resume", "/lock", "/unlock"} {
		on(int64(10+i), body)
		at := chatops.EntryName(int64(10+i), 1)
		wantEnd(t, w.finished(at), cluster.EntryRefused, rollout.ReasonDenied)
		wantIn(t, w.reply(at), "is merged", "`sluice "+strings.Fields(body[1:])[0]+"`")
	}
	w.wantShares(untouched)
	for i, body := range []string{"/status", "/hold", "/plan", "/help", "/rollback"} {
		on(int64(20+i), body)
		wantEnd(t, w.finished(chatops.EntryName(int64(20+i), 1)), cluster.EntryDone, rollout.ReasonRequested)
	}
	w.wantShares(control + " control 100, " + treated + "  0")
	w.gh.EditPullRequest(repoName, pull, func(pr *githubtest.PullRequest) { pr.Merged = false })
	on(30, "/rollback")
	wantEnd(t, w.finished("c-30-1"), cluster.EntryRefused, rollout.ReasonDenied)
}

func TestLockPlanHelp(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(w *world) { w.options.OnMerge = chatops.MergePromotes })
	before := w.endpoint().Metadata.ResourceVersion
	e, reply := w.run(1, "alice", "/sluice plan")
	wantEnd(t, e, cluster.EntryDone, rollout.ReasonRequested)
	wantIn(t, reply, "nothing was done", "| `/promote`", "`"+treated+"` 100 %", "is rolled back: it gets no traffic", "nothing is held", "A merge of the pull request promotes")
	e, reply = w.run(2, "alice", "/help")
	wantEnd(t, e, cluster.EntryDone, rollout.ReasonRequested)
	wantIn(t, reply, "`/traffic PERCENT [ENDPOINT] [VERSION]`", "`/lock [REASON]`")
	if now := w.endpoint().Metadata.ResourceVersion; now != before {
		t.Error("something was written")
	}
	e, _ = w.run(3, "alice", "/lock an audit")
	wantEnd(t, e, cluster.EntryDone, rollout.ReasonRequested)
	if l := w.endpoint().Spec.Lock; l == nil || l.Reason != "an audit" || l.Actor != "github:alice" {
		t.Errorf("lock = %+v", l)
	}
	e, reply = w.run(4, "alice", "/promote")
	wantEnd(t, e, cluster.EntryRefused, rollout.ReasonLocked)
	wantIn(t, reply, "`/unlock`")
	e, reply = w.run(5, "alice", "/plan")
	wantEnd(t, e, cluster.EntryDone, rollout.ReasonRequested)
	wantIn(t, reply, "(`locked`)")
	e, _ = w.run(6, "alice", "/unlock")
	wantEnd(t, e, cluster.EntryDone, rollout.ReasonRequested)
	e, _ = w.run(7, "alice", "/promote")
	wantEnd(t, e, cluster.EntryDone, rollout.ReasonRequested)
	e, reply = w.run(8, "alice", "/sluice rolback")
	wantEnd(t, e, cluster.EntryRefused, rollout.ReasonInvalid)
	wantIn(t, reply, "did you mean `/sluice rollback`?")
}

func TestBareCommandsSwitchedOff(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(w *world) { w.options.PrefixOnly = true })
	if r := w.accept(w.comment(1, "alice", "/rollback")); r != (chatops.Receipt{}) {
		t.Errorf("taken: %+v", r)
	}
	w.accept(w.comment(2, "alice", "/sluice rollback"))
	wantEnd(t, w.finished("c-2-1"), cluster.EntryDone, rollout.ReasonRequested)
}

// TestOneReplyEach: an answer that was lost is not given twice, and one that a crash kept back is given.
func TestOneReplyEach(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.gh.AddFault(githubtest.Fault{Method: http.MethodPost, Path: "41/comments", Status: 502, After: true, Times: 1})
	w.run(1, "alice", "/hold")
	w.until("it was looked for", func() bool { return w.gh.CountCalls(http.MethodGet, "/comments") > 0 })
	time.Sleep(50 * time.Millisecond)

	w.gh.AddFault(githubtest.Fault{Method: http.MethodPost, Path: "41/comments", Status: 502})
	w.options.Grace = time.Millisecond
	w.accept(w.comment(2, "alice", "/resume"))
	w.finished("c-2-1")
	w.until("the reply fails", func() bool { return w.gh.CountCalls(http.MethodPost, "41/comments") >= 2 })
	w.stop()
	if n := len(w.gh.Comments(repoName, pull)); n != 1 {
		t.Errorf("%d comments before the crash", n)
	}
	w.gh.ClearFaults()
	w.start()
	wantIn(t, w.reply("c-2-1"), "`/resume` **done** (`requested`)")
	w.stop()
	w.start()
	w.until("all were looked for", func() bool { return w.gh.CountCalls(http.MethodGet, "41/comments") >= 5 })
	time.Sleep(50 * time.Millisecond)
	if n := len(w.gh.Comments(repoName, pull)); n != 2 {
		t.Errorf("%d comments, want one for each command", n)
	}
}
