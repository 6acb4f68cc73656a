package chatops_test

import (
	"context"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sluice-dev/sluice/pkg/chatops"
	"github.com/sluice-dev/sluice/pkg/cluster"
	"github.com/sluice-dev/sluice/pkg/github/githubtest"
	"github.com/sluice-dev/sluice/rollout"
)

// second is another process on what the world stores.
func (w *world) second(o chatops.Options) (s *chatops.Service, stop func()) {
	w.t.Helper()
	o.Store, o.Journal, o.GitHub, o.Directory = w.store, w.journal, w.client, w.client
	if o.Overlap == 0 {
		o.Overlap = 300 * time.Millisecond
	}
	s = chatops.New(o)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			w.t.Error(err)
		}
	})
	w.t.Cleanup(stop)
	return s, stop
}

// What a process took and ended before it saw it through, its successor takes up, which ran already.
func TestLeftBehindAtATakeover(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(w *world) { w.options.Grace = 10 * time.Millisecond })
	w.second(chatops.Options{Sweep: 200 * time.Millisecond})
	w.gh.AddFault(githubtest.Fault{Path: "/max/permission", Delay: 10 * time.Second, Times: 1})
	w.accept(w.comment(1, "max", "/status"))
	w.until("the first waits for GitHub", func() bool { return w.gh.CountCalls(http.MethodGet, "/max/permission") > 0 })
	w.accept(w.comment(2, "alice", "/hold"))
	w.stop()
	if e := w.entry("c-2-1"); e.State != cluster.EntryPending {
		t.Fatalf("nothing was left behind: %+v", e)
	}
	wantEnd(t, w.finished("c-1-1"), cluster.EntryDone, rollout.ReasonRequested)
	wantEnd(t, w.finished("c-2-1"), cluster.EntryDone, rollout.ReasonRequested)
	w.reply("c-2-1")
	time.Sleep(time.Second) // some sweeps
	if n := len(w.gh.Comments(repoName, pull)); n != 2 {
		t.Errorf("%d replies", n)
	}
}

// A command that was recorded, and told of again much later by GitHub, does not undo what was done meanwhile.
func TestPendingCommandToldOfAgain(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(w *world) { w.options.Grace = 10 * time.Millisecond })
	other, _ := w.second(chatops.Options{Sweep: time.Hour})
	if _, err := other.Accept(t.Context(), w.comment(9, "max", "/help")); err != nil { // it has begun, and found nothing
		t.Fatal(err)
	}
	w.finished("c-9-1")
	w.gh.AddFault(githubtest.Fault{Path: "/alice/permission", Delay: 10 * time.Second, Times: 1})
	c := w.comment(1, "alice", "/traffic 80")
	w.accept(c)
	w.until("it waits for GitHub", func() bool { return w.gh.CountCalls(http.MethodGet, "/alice/permission") > 0 })
	w.stop()
	w.change("cli", "ops", rollout.Shift{Version: treated, Percent: 3 * rollout.OnePercent})
	if _, err := other.Accept(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	wantEnd(t, w.finished("c-1-1"), cluster.EntryRefused, rollout.ReasonSuperseded)
	w.wantShares(control + " control 97, " + treated + " treatment 3")
}

// However a command comes to wait, it is late once it waited for long.
func TestLateByWaiting(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	var ahead time.Duration
	w := newWorld(t, func(w *world) {
		w.options.Now = func() time.Time {
			mu.Lock()
			defer mu.Unlock()
			return time.Now().Add(ahead)
		}
	})
	w.gh.AddFault(githubtest.Fault{Path: "/permission", Delay: time.Second, Times: 1})
	w.accept(w.comment(1, "alice", "/resume"))
	w.until("it waits for GitHub", func() bool { return w.gh.CountCalls(http.MethodGet, "/permission") > 0 })
	w.change("cli", "ops", rollout.Hold{Reason: "an incident"})
	mu.Lock()
	ahead = 3 * time.Minute
	mu.Unlock()
	wantEnd(t, w.finished("c-1-1"), cluster.EntryRefused, rollout.ReasonSuperseded)
	if w.endpoint().Spec.Hold == nil {
		t.Error("the hold is gone")
	}
}

// A merge into a branch of one's own promotes nothing, whatever one may do there.
func TestMergeIntoAnotherBranch(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(w *world) { w.options.OnMerge = chatops.MergePromotes })
	c := w.closed(true, commit(2))
	w.gh.EditPullRequest(repoName, pull, func(p *githubtest.PullRequest) { p.Base = "alices-own" })
	w.close(c)
	wantEnd(t, w.finished(name("merged", commit(2))), cluster.EntryRefused, rollout.ReasonDenied)
	wantIn(t, w.reply(name("merged", commit(2))), "alices-own", "default branch")
	w.wantShares(untouched)
}

// A hold ends a merge that waits for replicas.
func TestHoldWhileAMergeWaits(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(w *world) { w.options.OnMerge = chatops.MergePromotes })
	w.mergeWaits()
	c := w.comment(5, "alice", "/hold latency looks bad")
	c.Closed = true
	w.accept(c)
	wantEnd(t, w.finished("c-5-1"), cluster.EntryDone, rollout.ReasonRequested)
	w.status(enough)
	wantEnd(t, w.finished(name("merged", commit(2))), cluster.EntryRefused, rollout.ReasonSuperseded)
	w.wantShares(untouched)
}

// A version that appears after its pull request was closed is taken out, when GitHub says so at last.
func TestDeployedAfterTheClose(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(w *world) {
		w.options.Directory = w.client
		w.gh.AddPullRequest(repoName, githubtest.PullRequest{Number: 42, Head: commit(7)})
		w.gh.AddPullRequest(repoName, githubtest.PullRequest{Number: 43, Head: commit(8)})
	})
	w.gh.EditPullRequest(repoName, 42, func(p *githubtest.PullRequest) { p.State = "closed" })
	w.gh.AddFault(githubtest.Fault{Path: "/pulls/42", Status: 500, Times: 3})
	role, five := rollout.Treatment, 5*rollout.OnePercent
	w.change("open", "ci", rollout.Deploy{Version: version("pr-43-0000008", 8, 43)})
	w.change("late", "ci", rollout.Deploy{Version: version("pr-42-0000007", 7, 42)})
	w.change("join", "ci", rollout.Update{Version: "pr-42-0000007", Type: &role, Percent: &five})
	w.until("it is taken out", func() bool {
		v := w.endpoint().Spec.Version("pr-42-0000007")
		return v.Type == rollout.Untyped && v.TrafficPercentile == 0 && !v.RetiredAt.IsZero()
	})
	w.until("the open one was asked about", func() bool { return w.gh.CountCalls(http.MethodGet, "/pulls/43") > 0 })
	e := w.endpoint()
	if v := e.Spec.Version("pr-43-0000008"); !v.RetiredAt.IsZero() {
		t.Error("so is that of an open one")
	}
	if c := e.Spec.Changes[len(e.Spec.Changes)-1]; c.Reason != rollout.ReasonClosed {
		t.Errorf("the record says %+v", c)
	}
}

// Who has no role in a public repository is reacted to and not replied to, also not after a restart.
func TestStrangersGetNoReply(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(w *world) { w.gh.SetPublic(repoName) })
	w.gh.AccountID("nobody")
	for i, login := range []string{"rita", "nobody"} {
		w.accept(w.comment(int64(i+1), login, "/promote\n/status\n/sluice promoet"))
		e := w.finished(chatops.EntryName(int64(i+1), 3))
		wantEnd(t, e, cluster.EntryRefused, rollout.ReasonDenied)
		w.until("a reaction", func() bool { return strings.Contains(strings.Join(w.gh.Reactions(repoName, int64(i+1)), " "), "-1") })
	}
	w.run(9, "tri", "/promote") // who has a role is told
	w.stop()
	w.start()
	w.run(10, "alice", "/status")
	time.Sleep(500 * time.Millisecond)
	if n := len(w.gh.Comments(repoName, pull)); n != 2 {
		t.Errorf("%d replies, want those to tri and alice", n)
	}
	w.wantShares(untouched)
}

// What takes long at one process, because GitHub is slow or others are before it, another one takes up. What that said holds, and is said once.
func TestTakenUpWhileAtIt(t *testing.T) {
	t.Parallel()
	for _, text := range []string{"/promote", "/hold", "/status"} {
		t.Run(text, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, func(w *world) { w.options.Sweep = 200 * time.Millisecond })
			w.gh.AddFault(githubtest.Fault{Path: "/max/permission", Delay: 2 * time.Second, Times: 1})
			w.accept(w.comment(1, "max", text))
			w.until("the first asks", func() bool { return w.gh.CountCalls(http.MethodGet, "/max/permission") > 0 })
			w.gh.AddFault(githubtest.Fault{Path: "/max/permission", Status: 500})
			w.second(chatops.Options{Sweep: 200 * time.Millisecond})
			wantEnd(t, w.finished("c-1-1"), cluster.EntryRefused, rollout.ReasonDenied)
			w.gh.ClearFaults()
			time.Sleep(4 * time.Second) // the first has its answer, and both have replied
			wantEnd(t, w.entry("c-1-1"), cluster.EntryRefused, rollout.ReasonDenied)
			w.wantShares(untouched)
			if w.endpoint().Spec.Hold != nil {
				t.Error("it was done after it was refused")
			}
			if n := len(w.gh.Comments(repoName, pull)); n != 1 {
				t.Errorf("%d replies", n)
			}
		})
	}
}

// Both do it: it takes effect once, and is answered once.
func TestDoneByBoth(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(w *world) { w.options.Sweep = 200 * time.Millisecond })
	w.second(chatops.Options{Sweep: 200 * time.Millisecond})
	w.gh.AddFault(githubtest.Fault{Path: "/max/permission", Delay: 2 * time.Second, Times: 1})
	w.accept(w.comment(1, "max", "/hold"))
	wantEnd(t, w.finished("c-1-1"), cluster.EntryDone, rollout.ReasonRequested)
	time.Sleep(4 * time.Second)
	if n := len(w.gh.Comments(repoName, pull)); n != 1 {
		t.Errorf("%d replies", n)
	}
	n := 0
	for _, c := range w.endpoint().Spec.Changes {
		if c.ID == "c-1-1" {
			n++
		}
	}
	if n != 1 {
		t.Errorf("%d changes in the record", n)
	}
}

// What a merge asked for is given back when it is given up.
func TestPreparedForAMergeThatIsGivenUp(t *testing.T) {
	t.Parallel()
	for why, op := range map[rollout.Reason]rollout.Op{rollout.ReasonSuperseded: rollout.Hold{Reason: "latency"}, rollout.ReasonLocked: rollout.Lock{}} {
		w := newWorld(t, func(w *world) { w.options.OnMerge = chatops.MergePromotes })
		w.mergeWaits()
		if p := w.endpoint().Spec.Version(treated).PlannedPercentile; p != rollout.Full {
			t.Fatalf("prepared for %s", p)
		}
		w.change("cli", "ops", op)
		wantEnd(t, w.finished(name("merged", commit(2))), cluster.EntryRefused, why)
		if p := w.endpoint().Spec.Version(treated).PlannedPercentile; p != 0 {
			t.Errorf("%s: still prepared for %s", why, p)
		}
	}
}

// Endpoints do not wait for each other, and a restart does not begin the patience anew.
func TestMergesWaitSideBySide(t *testing.T) {
	t.Parallel()
	other := rollout.Key{Namespace: "models", Name: "aaa-first"}
	w := newWorld(t, func(w *world) {
		w.options.OnMerge = chatops.MergePromotes
		w.options.Patience = 6 * time.Second
		w.addEndpoint(other, pull)
	})
	began := time.Now()
	e, err := w.memory.Get(t.Context(), other)
	if err != nil {
		t.Fatal(err)
	}
	e.Status.Demand = "7.5"
	if _, err := w.memory.UpdateStatus(t.Context(), e); err != nil {
		t.Fatal(err)
	}
	w.close(w.closed(true, commit(2)))
	w.until("the one that is ready is promoted", func() bool { return w.endpoint().Spec.Version(treated).Type == rollout.Control })
	if e := w.entry(name("merged", commit(2))); e.State != cluster.EntryPending {
		t.Fatalf("the other did not wait: %+v", e)
	}
	time.Sleep(3 * time.Second)
	w.stop()
	w.start()
	wantEnd(t, w.finished(name("merged", commit(2))), cluster.EntryRefused, rollout.ReasonNotEnoughReady)
	if took := time.Since(began); took > 11*time.Second {
		t.Errorf("given up after %s", took)
	}
	if e, err = w.memory.Get(t.Context(), other); err != nil {
		t.Fatal(err)
	}
	if v := e.Spec.Version(treated); v.PlannedPercentile != 0 {
		t.Errorf("still prepared for %s by an earlier run", v.PlannedPercentile)
	}
}

// Of a stranger's comments in a minute, three are recorded, with one reaction of each kind.
func TestStrangersCost(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(w *world) { w.gh.SetPublic(repoName) })
	w.gh.AccountID("nobody")
	for id := range int64(3) {
		w.accept(w.comment(id+1, "nobody", strings.Repeat("/status\n", 6)))
		w.finished(chatops.EntryName(id+1, 6))
	}
	for i := range 20 {
		if r := w.accept(w.comment(int64(i+4), "nobody", strings.Repeat("/status\n", 6))); r.Commands != 0 {
			t.Fatalf("recorded %+v", r)
		}
	}
	w.run(50, "alice", "/status") // others are heard
	all, err := w.journal.Entries(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if n := w.gh.CountCalls(http.MethodPost, "/comments/1/reactions"); len(all) != 19 || n != 2 {
		t.Errorf("%d entries, %d reactions", len(all), n)
	}
}

// counting says how often it is asked where a repository is.
type counting struct {
	chatops.Directory
	asked *atomic.Int32
}

func (c counting) Repository(ctx context.Context, id int64) (chatops.Repository, error) {
	c.asked.Add(1)
	return c.Directory.Repository(ctx, id)
}

// A version whose pull request GitHub does not show is asked about less and less.
func TestUnknownPullRequest(t *testing.T) {
	t.Parallel()
	var asked atomic.Int32
	w := newWorld(t, func(w *world) { w.options.Directory = counting{w.client, &asked} })
	role, five := rollout.Treatment, 5*rollout.OnePercent
	w.change("a", "ci", rollout.Deploy{Version: version("pr-999-0000007", 7, 999)})
	w.change("b", "ci", rollout.Update{Version: "pr-999-0000007", Type: &role, Percent: &five})
	w.until("that of the other is asked about", func() bool { return w.gh.CountCalls(http.MethodGet, "/pulls/41") > 0 })
	time.Sleep(23 * time.Second) // asked at once, after 5 s and after 10 s more
	if n := asked.Load() - 1; n < 2 || n > 3 {
		t.Errorf("asked %d times", n)
	}
}

// A button of a version that is gone is answered where it was pressed.
func TestButtonOfADeletedVersion(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.change("gone", "ops", rollout.Delete{Version: treated})
	b := w.button("x", "alice", chatops.Promote, commit(2))
	b.PullRequest = pull
	if _, err := w.service.AcceptButton(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	wantEnd(t, w.finished("d-x"), cluster.EntryRefused, rollout.ReasonVersionChanged)
	w.reply("d-x")
}

// A rollback of long ago does not take out what was promoted since.
func TestOldRollback(t *testing.T) {
	t.Parallel()
	var ahead atomic.Int64
	w := newWorld(t, func(w *world) {
		w.options.Now = func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
	})
	early, late := w.comment(1, "alice", "/rollback"), w.comment(2, "alice", "/rollback")
	w.change("cli", "ops", rollout.Promote{Version: treated})
	ahead.Store(int64(2 * time.Hour))
	w.accept(late)
	wantEnd(t, w.finished("c-2-1"), cluster.EntryRefused, rollout.ReasonSuperseded)
	if v := w.endpoint().Spec.Version(treated); v.Type != rollout.Control {
		t.Errorf("it is %s", v.Type)
	}
	ahead.Store(int64(30 * time.Minute)) // an outage
	w.accept(early)
	wantEnd(t, w.finished("c-1-1"), cluster.EntryDone, rollout.ReasonRequested)
}
