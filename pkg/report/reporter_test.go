package report_test

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-dev/sluice/pkg/cluster"
	"github.com/sluice-dev/sluice/pkg/cluster/memory"
	"github.com/sluice-dev/sluice/pkg/github"
	"github.com/sluice-dev/sluice/pkg/github/githubtest"
	"github.com/sluice-dev/sluice/pkg/report"
	"github.com/sluice-dev/sluice/rollout"
)

const repoName = "acme/fraud-model"

// world is a GitHub, a store, a journal and a reporter that may be restarted.
type world struct {
	t       *testing.T
	gh      *githubtest.Server
	store   *memory.Store
	journal *memory.Journal
	o       github.ClientOptions
	c       report.Config
	r       *report.Reporter
	stop    func()
}

var appKey = sync.OnceValue(func() []byte {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)})
})

func newWorld(t *testing.T, app bool) *world {
	t.Helper()
	w := &world{t: t, gh: githubtest.New(t), store: memory.NewStore(), journal: memory.NewJournal(), stop: func() {}}
	w.gh.AddRepository(repoID, "acme", "fraud-model")
	w.gh.AddPullRequest(repoName, githubtest.PullRequest{Number: pull, Head: commit(2)})
	w.o = github.ClientOptions{BaseURL: w.gh.URL, Token: githubtest.Token}
	if app {
		w.o = github.ClientOptions{BaseURL: w.gh.URL, AppID: githubtest.AppID, AppKey: appKey()}
	}
	w.c = report.Config{Every: 60 * time.Millisecond, Gap: time.Millisecond, Settle: time.Millisecond, Overlap: 100 * time.Millisecond, OnMerge: "promotes it"}
	t.Cleanup(func() { w.stop() })
	return w
}

func (w *world) start() {
	w.t.Helper()
	w.o.Logger = slog.New(slog.NewTextHandler(w.t.Output(), nil))
	client, err := github.NewClient(w.o)
	if err != nil {
		w.t.Fatal(err)
	}
	c := w.c
	c.Journal, c.GitHub, c.Logger = w.journal, client, w.o.Logger
	if c.Store == nil {
		c.Store = w.store
	}
	r := report.NewReporter(c)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	w.r = r
	w.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			w.t.Errorf("run: %v", err)
		}
	})
}

// put the endpoint as it is in that life.
func (w *world) put(l *life) {
	w.t.Helper()
	have, err := w.store.Get(w.t.Context(), l.e.Key())
	if err != nil {
		have, err = w.store.Create(w.t.Context(), l.e)
	} else {
		next := have.Clone()
		next.Spec = l.e.Spec
		have, err = w.store.Update(w.t.Context(), next)
	}
	if err == nil {
		have.Status = l.e.Status
		_, err = w.store.UpdateStatus(w.t.Context(), have)
	}
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) until(what string, ok func() bool) {
	w.t.Helper()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		if ok() {
			return
		}
	}
	w.t.Fatalf("not within 20 s: %s; the comments are %+v", what, w.gh.Comments(repoName, pull))
}

// shows waits for the endpoint's comment to have the state.
func (w *world) shows(key rollout.Key, state report.State, version string) githubtest.Comment {
	w.t.Helper()
	var out githubtest.Comment
	w.until(fmt.Sprintf("%s shows %s of %s", key, state, version), func() bool {
		for _, c := range w.gh.Comments(repoName, pull) {
			if m, ok := report.MarkOf(c.Body); ok && m.Key() == key && m.State == state && m.Version == version {
				out = c
				return true
			}
		}
		return false
	})
	return out
}

// settled waits until the process itself knows where its comment is.
func (w *world) settled() {
	w.t.Helper()
	w.until("the comment's place is on record", func() bool {
		all, err := w.journal.Entries(w.t.Context())
		return err == nil && len(all) == 1 && all[0].State == cluster.EntryDone && all[0].Result != ""
	})
}

func (w *world) checks() []string {
	var out []string
	for _, c := range w.gh.CheckRuns(repoName) {
		out = append(out, strings.TrimSpace(fmt.Sprintf("%s %s %s %s %v %v", c.Name, c.External[strings.LastIndex(c.External, "/")+1:], c.Status, c.Conclusion, c.Actions, c.Annotations)))
	}
	return out
}

func (w *world) deployments() []string {
	var out []string
	for _, d := range w.gh.Deployments(repoName) {
		out = append(out, fmt.Sprintf("%s %.4s %s", d.Environment, d.SHA[36:], strings.Join(d.States, ",")))
	}
	return out
}

func want[T any](t *testing.T, what string, got, want T) {
	t.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", what, diff)
	}
}

const ten = 10 * rollout.OnePercent

func TestLifeOfAPullRequest(t *testing.T) {
	t.Parallel()
	w := newWorld(t, true)
	w.start()
	l := newLife(t, fraud).joined()
	w.put(l)
	first := w.shows(fraud, report.StateJoined, treated)
	if first.Author != githubtest.AppLogin {
		t.Errorf("written by %s", first.Author)
	}
	want(t, "checks", w.checks(), []string{"sluice/fraud " + treated + " in_progress  [] []"})

	role := rollout.Treatment
	l.ready(treated, 2).do("ci", rollout.ReasonRequested, "", rollout.Update{Version: treated, Type: &role}).
		do(rollout.Engine, rollout.ReasonStepStarted, "", rollout.Shift{Version: treated, Percent: ten}).rollout(1, ten, rollout.ReasonStepRunning, "60 of 100 requests", "undecided")
	w.put(l)
	if c := w.shows(fraud, report.StateRunning, treated); c.ID != first.ID {
		t.Error("a second comment")
	}
	want(t, "checks", w.checks(), []string{"sluice/fraud " + treated + " completed neutral [promote rollback hold] []"})

	l.do("github:alice", rollout.ReasonRequested, "", rollout.Hold{Reason: "lunch"})
	w.put(l)
	w.shows(fraud, report.StateHeld, treated)
	want(t, "checks", w.checks(), []string{"sluice/fraud " + treated + " completed action_required [promote rollback resume] []"})

	l.do(rollout.Engine, rollout.ReasonWorse, worse, rollout.Rollback{Version: treated})
	w.put(l)
	w.shows(fraud, report.StateWorse, treated)
	want(t, "checks", w.checks(), []string{"sluice/fraud " + treated + " completed failure [] []"})
	want(t, "deployments", w.deployments(), []string{"models/fraud 0002 queued,in_progress,in_progress,failure"})
	want(t, "comments", len(w.gh.Comments(repoName, pull)), 1)

	// State first, the comment last.
	var order []string
	for _, c := range w.gh.Calls() {
		if c.Method == http.MethodGet || strings.Contains(c.Path, "access_tokens") {
			continue
		}
		order = append(order, c.Method+" "+strings.Join(strings.Split(c.Path, "/")[4:5], "/"))
	}
	want(t, "order", order[:4], []string{"POST check-runs", "POST deployments", "POST deployments", "POST issues"})
	want(t, "order", order[4:7], []string{"PATCH check-runs", "POST deployments", "PATCH issues"})
}

func TestFailureIsAnnotatedOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t, true)
	w.put(&life{t: t, e: lives(t)["failed"]})
	w.start()
	w.shows(fraud, report.StateFailed, treated)
	want(t, "checks", w.checks(), []string{"sluice/fraud " + treated + " completed failure [] [score.py:7]"})
	e := lives(t)["failed"]
	e.Status.Versions[1].Reason = rollout.ReasonCrashed
	w.put(&life{t: t, e: e})
	w.until("the check says how it fails now", func() bool { return strings.Contains(w.gh.CheckRuns(repoName)[0].Title, "replica_crashed") })
	want(t, "checks", w.checks(), []string{"sluice/fraud " + treated + " completed failure [] [score.py:7]"})
}

func TestWithATokenStatusesAreWritten(t *testing.T) {
	t.Parallel()
	w := newWorld(t, false)
	w.start()
	l := newLife(t, fraud).treatment(ten).rollout(1, ten, rollout.ReasonStepRunning, "60 of 100 requests", "undecided")
	w.put(l)
	if c := w.shows(fraud, report.StateRunning, treated); c.Author != githubtest.Robot || strings.Contains(c.Body, "has buttons") {
		t.Errorf("written by %s:\n%s", c.Author, c.Body)
	}
	w.stop()
	// The numbers change while nobody looks: the comment does too, the status does not.
	l.e.Status.Rollout.Evidence[0].Requests = "1190"
	w.put(l)
	w.start()
	w.until("the numbers", func() bool { return strings.Contains(w.gh.Comments(repoName, pull)[0].Body, "1,190") })
	want(t, "statuses", w.gh.Statuses(repoName), []githubtest.CommitStatus{{SHA: commit(2), Context: "sluice/fraud", State: "pending", Description: treated + " gets 10 %"}})
	if n := w.gh.CountCalls(http.MethodGet, "/statuses"); n != 1 {
		t.Errorf("statuses were looked for %d times; the mark says that they are right", n)
	}
	l.do("github:alice", rollout.ReasonRequested, "", rollout.Promote{Version: treated})
	w.put(l)
	w.shows(fraud, report.StatePromoted, treated)
	got := w.gh.Statuses(repoName)
	want(t, "last status", got[len(got)-1], githubtest.CommitStatus{SHA: commit(2), Context: "sluice/fraud", State: "success", Description: treated + " promoted: it is the control"})
	want(t, "checks", len(w.checks()), 0)
}

// guillotine ends a process at its n-th writing request, before or after GitHub carried it out.
type guillotine struct {
	next  http.RoundTripper
	mu    sync.Mutex
	left  int
	after bool
	fell  chan struct{}
}

func (g *guillotine) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Method == http.MethodGet || strings.Contains(r.URL.Path, "access_tokens") {
		return g.next.RoundTrip(r)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.left--
	switch {
	case g.left > 0:
		return g.next.RoundTrip(r)
	case g.left == 0:
		if g.after {
			if resp, err := g.next.RoundTrip(r); err == nil {
				resp.Body.Close()
			}
		}
		close(g.fell)
	}
	return nil, errors.New("the process is dead")
}

// TestKilledBetweenSteps: whichever request is the last of a process, the next one
// makes up for it, and nothing is there twice.
func TestKilledBetweenSteps(t *testing.T) {
	t.Parallel()
	for _, app := range []bool{true, false} {
		for _, after := range []bool{false, true} {
			for n := 1; n <= 4; n++ {
				t.Run(fmt.Sprintf("app %v, request %d, after it %v", app, n, after), func(t *testing.T) {
					t.Parallel()
					w := newWorld(t, app)
					g := &guillotine{next: http.DefaultTransport, left: n, after: after, fell: make(chan struct{})}
					w.o.Transport = g
					w.put(newLife(t, fraud).treatment(ten).rollout(1, ten, rollout.ReasonStepRunning, "60 of 100 requests", "undecided"))
					w.start()
					select {
					case <-g.fell:
					case <-time.After(20 * time.Second):
						t.Fatal("fewer requests than that")
					}
					w.stop()
					w.o.Transport = http.DefaultTransport
					w.start()
					w.shows(fraud, report.StateRunning, treated)
					w.until("all of it", func() bool { return slices.Equal(w.deployments(), []string{"models/fraud 0002 in_progress"}) })
					w.settled()
					want(t, "comments", len(w.gh.Comments(repoName, pull)), 1)
					if app {
						want(t, "checks", w.checks(), []string{"sluice/fraud " + treated + " completed neutral [promote rollback hold] []"})
					} else {
						want(t, "statuses", len(w.gh.Statuses(repoName)), 1)
					}
				})
			}
		}
	}
}

// TestWithoutTheJournal: entries are pruned; the mark is enough.
func TestWithoutTheJournal(t *testing.T) {
	t.Parallel()
	w := newWorld(t, true)
	l := newLife(t, fraud).treatment(ten).rollout(1, ten, rollout.ReasonStepRunning, "60 of 100 requests", "undecided")
	w.put(l)
	w.start()
	id := w.shows(fraud, report.StateRunning, treated).ID
	w.stop()
	for i := range 250 { // it stands on the first of several pages
		w.gh.AddComment(repoName, pull, "bob", fmt.Sprintf("comment %d", i))
	}
	w.journal = memory.NewJournal()
	l.do("github:alice", rollout.ReasonRequested, "", rollout.Hold{})
	w.put(l)
	w.start()
	if c := w.shows(fraud, report.StateHeld, treated); c.ID != id {
		t.Error("another comment was written")
	}
}

func TestLimits(t *testing.T) {
	t.Parallel()
	for _, code := range []int{403, 429} {
		for _, path := range []string{"/check-runs", "/deployments", "/comments"} {
			t.Run(fmt.Sprintf("%d at %s", code, path), func(t *testing.T) {
				t.Parallel()
				w := newWorld(t, true)
				f := githubtest.SecondaryLimit(code, 1)
				f.Method, f.Path, f.Times = http.MethodPost, path, 1
				w.gh.AddFault(f)
				w.put(newLife(t, fraud).joined())
				began := time.Now()
				w.start()
				w.shows(fraud, report.StateJoined, treated)
				if took := time.Since(began); took < 900*time.Millisecond {
					t.Errorf("Retry-After was not waited for: %s", took)
				}
				want(t, "comments", len(w.gh.Comments(repoName, pull)), 1)
				want(t, "checks", len(w.checks()), 1)
				want(t, "deployments", w.deployments(), []string{"models/fraud 0002 queued"})
			})
		}
	}
}

func TestFaultsThatPass(t *testing.T) {
	t.Parallel()
	for name, f := range map[string]githubtest.Fault{
		"404 of a fresh pull request": {Method: http.MethodPost, Path: "/comments", Status: 404, Times: 2},
		"404 of a fresh commit":       {Method: http.MethodPost, Path: "/check-runs", Status: 404, Times: 1},
		"500 of the list":             {Method: http.MethodGet, Path: "/comments", Status: 500, Times: 4},
		"502 after the comment":       {Method: http.MethodPost, Path: "/comments", Status: 502, After: true, Times: 1},
		"502 after the deployment":    {Method: http.MethodPost, Path: "/deployments", Status: 502, After: true, Times: 1},
		"502 after the check":         {Method: http.MethodPost, Path: "/check-runs", Status: 502, After: true, Times: 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, true)
			w.gh.AddFault(f)
			w.put(newLife(t, fraud).joined())
			w.start()
			w.shows(fraud, report.StateJoined, treated)
			w.settled()
			want(t, "comments", len(w.gh.Comments(repoName, pull)), 1)
			want(t, "checks", len(w.checks()), 1)
			want(t, "deployments", w.deployments(), []string{"models/fraud 0002 queued"})
		})
	}
}

// TestARefusedPartKeepsNothingElse: without the permission for deployments there still is a comment.
func TestARefusedPartKeepsNothingElse(t *testing.T) {
	t.Parallel()
	w := newWorld(t, true)
	w.gh.AddFault(githubtest.Fault{Path: "/deployments", Status: 403, Body: `{"message":"Resource not accessible by integration"}`})
	l := newLife(t, fraud).joined()
	w.put(l)
	w.start()
	w.shows(fraud, report.StateJoined, treated)
	l.state(rollout.VersionStatus{Name: treated, State: rollout.StateFailed, Reason: rollout.ReasonImageMissing, Message: "no image"})
	w.put(l)
	w.shows(fraud, report.StateFailed, treated)
	want(t, "checks", w.checks(), []string{"sluice/fraud " + treated + " completed failure [] [sluice.yaml:1]"})
}

func TestPeopleTouchTheComment(t *testing.T) {
	t.Parallel()
	w := newWorld(t, true)
	l := newLife(t, fraud).treatment(ten).rollout(1, ten, rollout.ReasonStepRunning, "60 of 100 requests", "undecided")
	w.put(l)
	w.start()
	c := w.shows(fraud, report.StateRunning, treated)

	// Edited, even without its mark: written anew when it is looked at.
	w.gh.EditComment(repoName, c.ID, "I know better")
	w.r.Look(repoID, pull)
	if again := w.shows(fraud, report.StateRunning, treated); again.ID != c.ID || again.Body != c.Body {
		t.Errorf("the comment became %d:\n%s", again.ID, again.Body)
	}
	// Deleted: there is another at the next change, or when it is looked at.
	w.gh.EditComment(repoName, c.ID, "")
	w.r.Look(repoID, pull)
	if again := w.shows(fraud, report.StateRunning, treated); again.ID == c.ID {
		t.Error("it came back from the dead")
	} else {
		w.gh.EditComment(repoName, again.ID, "")
	}
	l.do("github:alice", rollout.ReasonRequested, "", rollout.Hold{})
	w.put(l)
	last := w.shows(fraud, report.StateHeld, treated)
	want(t, "comments", len(w.gh.Comments(repoName, pull)), 1)

	// A stranger's comment with the same mark is not ours; a second one of ours goes.
	w.stop()
	w.journal = memory.NewJournal()
	stranger := w.gh.AddComment(repoName, pull, "mallory", last.Body)
	w.gh.AddComment(repoName, pull, githubtest.AppLogin, last.Body)
	l.do("github:alice", rollout.ReasonRequested, "", rollout.Resume{})
	w.put(l)
	w.start()
	if again := w.shows(fraud, report.StateRunning, treated); again.ID != last.ID {
		t.Errorf("comment %d shows it, not %d", again.ID, last.ID)
	}
	w.until("the second is gone", func() bool { return len(w.gh.Comments(repoName, pull)) == 2 })
	if kept := w.gh.Comments(repoName, pull)[1]; kept.ID != stranger || kept.Body != last.Body {
		t.Errorf("the stranger's comment was touched: %+v", kept)
	}
}

// TestNotice: what happened on a pull request makes the reporter look, by its number or a commit, and however often that is, seldom.
func TestNotice(t *testing.T) {
	t.Parallel()
	w := newWorld(t, true)
	w.c.Every = 300 * time.Millisecond
	w.put(newLife(t, fraud).treatment(ten).rollout(1, ten, rollout.ReasonStepRunning, "60 of 100 requests", "undecided"))
	w.start()
	c := w.shows(fraud, report.StateRunning, treated)
	w.settled()
	for _, notice := range []func(){
		func() { w.r.Notice(repoID, pull, "") },
		func() { w.r.Notice(repoID, 0, commit(2)) },
	} {
		w.gh.EditComment(repoName, c.ID, "I know better")
		notice()
		w.until("the comment is as it was", func() bool { return w.gh.Comments(repoName, pull)[0].Body == c.Body })
	}
	w.settled()
	looks := func() int { return w.gh.CountCalls(http.MethodGet, "/issues/comments/") }
	was := looks()
	w.r.Notice(repoID, pull+1, "")
	w.r.Notice(repoID+1, pull, "")
	w.r.Notice(repoID, 0, commit(9))
	w.r.Notice(repoID, 0, "")
	w.gh.EditComment(repoName, c.ID, "I know better")
	w.r.Notice(repoID, pull, "")
	w.until("the comment is as it was", func() bool { return w.gh.Comments(repoName, pull)[0].Body == c.Body })
	if n := looks() - was; n != 1 {
		t.Errorf("%d looks, want only that for the pull request's own notice", n)
	}
	was = looks()
	began := time.Now()
	for time.Since(began) < time.Second {
		w.r.Notice(repoID, pull, "")
		time.Sleep(time.Millisecond)
	}
	most := 2 + int(time.Since(began)/w.c.Every)
	if n := looks() - was; n < 1 || n > most {
		t.Errorf("%d looks in a second of notices, want 1 to %d", n, most)
	}
}

// TestEchoes: whatever makes it look, such as GitHub's word of its own edits, it edits no more often than it may.
func TestEchoes(t *testing.T) {
	t.Parallel()
	w := newWorld(t, false)
	w.c.Every, w.c.Gap = 400*time.Millisecond, 100*time.Millisecond
	l := newLife(t, fraud).treatment(ten).rollout(1, ten, rollout.ReasonStepRunning, "60 of 100 requests", "undecided")
	w.put(l)
	w.start()
	w.shows(fraud, report.StateRunning, treated)
	w.settled()
	edits := func() int { return w.gh.CountCalls(http.MethodPatch, "/issues/comments/") }
	was, began := edits(), time.Now()
	for n := 0; time.Since(began) < 2*time.Second; n++ {
		l.e.Status.Rollout.Evidence[0].Requests = fmt.Sprint(1190 + n)
		w.put(l)
		w.r.Look(repoID, pull)
		time.Sleep(10 * time.Millisecond)
	}
	if n, most := edits()-was, 1+int(time.Since(began)/w.c.Every); n < 2 || n > most {
		t.Errorf("%d edits in %s, want 2 to %d", n, time.Since(began), most)
	}
	// Who deletes it again and again gets another as seldom as that.
	made := func() int { return w.gh.CountCalls(http.MethodPost, "/comments") }
	was, began = made(), time.Now()
	for time.Since(began) < 2*time.Second {
		for _, c := range w.gh.Comments(repoName, pull) {
			w.gh.EditComment(repoName, c.ID, "")
		}
		w.r.Look(repoID, pull)
		time.Sleep(10 * time.Millisecond)
	}
	if n, most := made()-was, 1+int(time.Since(began)/w.c.Every); n > most {
		t.Errorf("%d more comments in %s, want at most %d", n, time.Since(began), most)
	}
	w.until("there is another", func() bool { return len(w.gh.Comments(repoName, pull)) == 1 })
}

// TestRenew: a check is written once more though it says the same, for the commit that was asked for and no other, and no
// more often than changes of state are.
func TestRenew(t *testing.T) {
	t.Parallel()
	w := newWorld(t, true)
	w.c.Gap = 400 * time.Millisecond
	other := rollout.Key{Namespace: "models", Name: "spam"}
	w.put(newLife(t, fraud).treatment(ten).rollout(1, ten, rollout.ReasonStepRunning, "60 of 100 requests", "undecided"))
	w.put(newLife(t, other).joined())
	w.start()
	comment := w.shows(fraud, report.StateRunning, treated)
	w.shows(other, report.StateJoined, treated)
	check := func(name string) githubtest.CheckRun {
		all := w.gh.CheckRuns(repoName)
		return all[slices.IndexFunc(all, func(c githubtest.CheckRun) bool { return c.Name == name })]
	}
	first, spam := check("sluice/fraud"), check("sluice/spam")
	w.until("the clock's second is another", func() bool { return time.Now().UTC().Format(time.RFC3339) != first.Completed })
	w.gh.Requeue(repoName, first.ID)
	w.r.Renew(repoID, commit(2), fraud)
	w.until("the check is as it was", func() bool { return check("sluice/fraud").Status == "completed" })
	if got := check("sluice/fraud"); got.ID != first.ID || got.Conclusion != first.Conclusion || got.Completed == first.Completed || !slices.Equal(got.Actions, first.Actions) {
		t.Errorf("the check is %+v, and was %+v", got, first)
	}
	was, began := check("sluice/fraud").Updates, time.Now()
	for time.Since(began) < time.Second {
		w.r.Renew(repoID, commit(2), fraud)
		w.r.Renew(repoID+1, commit(2), other)
		w.r.Renew(repoID, commit(9), other)
		w.r.Renew(repoID, commit(2), rollout.Key{Namespace: "models", Name: "nobody"})
		time.Sleep(time.Millisecond)
	}
	if n, most := check("sluice/fraud").Updates-was, 1+int(time.Since(began)/w.c.Gap); n < 1 || n > most {
		t.Errorf("written %d times in %s, want 1 to %d", n, time.Since(began), most)
	}
	want(t, "another endpoint's check", check("sluice/spam"), spam)
	want(t, "the comment", w.gh.Comments(repoName, pull)[0].Body, comment.Body)
	want(t, "deployments", w.deployments(), []string{"models/fraud 0002 in_progress", "models/spam 0002 queued"})

	// Asked for while a process begins, it is done when that knows the pull request.
	w.stop()
	w.gh.Requeue(repoName, first.ID)
	w.start()
	w.r.Renew(repoID, commit(2), fraud)
	w.until("the check is as it was", func() bool { return check("sluice/fraud").Status == "completed" })
}

func TestTwoEndpointsOnOnePullRequest(t *testing.T) {
	t.Parallel()
	w := newWorld(t, true)
	other, twin := rollout.Key{Namespace: "models", Name: "spam"}, rollout.Key{Namespace: "staging", Name: "fraud"}
	for _, key := range []rollout.Key{fraud, other, twin} {
		w.put(newLife(t, key).joined())
	}
	w.start()
	for _, key := range []rollout.Key{fraud, other, twin} {
		w.shows(key, report.StateJoined, treated)
	}
	want(t, "comments", len(w.gh.Comments(repoName, pull)), 3)
	var names []string
	for _, c := range w.gh.CheckRuns(repoName) {
		names = append(names, c.Name)
	}
	slices.Sort(names)
	want(t, "checks", names, []string{"sluice/models/fraud", "sluice/spam", "sluice/staging/fraud"})
}

func TestThePullRequestMoves(t *testing.T) {
	t.Parallel()
	w := newWorld(t, true)
	l := newLife(t, fraud).treatment(ten).rollout(1, ten, rollout.ReasonStepRunning, "60 of 100 requests", "undecided")
	w.put(l)
	w.start()
	c := w.shows(fraud, report.StateRunning, treated)
	w.gh.EditPullRequest(repoName, pull, func(pr *githubtest.PullRequest) { pr.Head = commit(7) })
	l.do("ci", rollout.ReasonRequested, "", rollout.Deploy{Version: version("pr-41-7777777", 7, pull)})
	w.put(l)
	if again := w.shows(fraud, report.StateJoined, "pr-41-7777777"); again.ID != c.ID {
		t.Error("a second comment")
	}
	want(t, "checks", w.checks(), []string{
		"sluice/fraud " + treated + " completed neutral [] []",
		"sluice/fraud pr-41-7777777 in_progress  [] []",
	})
	want(t, "deployments", w.deployments(), []string{"models/fraud 0002 in_progress,inactive", "models/fraud 0007 queued"})
}

// TestNumbersAreCoalesced: however often the evidence grows, the comment is edited once in a while.
func TestNumbersAreCoalesced(t *testing.T) {
	t.Parallel()
	w := newWorld(t, false)
	w.c.Every = 500 * time.Millisecond
	l := newLife(t, fraud).treatment(ten).rollout(1, ten, rollout.ReasonStepRunning, "60 of 100 requests", "undecided")
	w.put(l)
	w.start()
	w.shows(fraud, report.StateRunning, treated)
	began := time.Now()
	for i := range 200 {
		l.e.Status.Rollout.Evidence[0].Requests = fmt.Sprint(2000 + i)
		w.put(l)
		time.Sleep(5 * time.Millisecond)
	}
	w.until("the last number", func() bool {
		return strings.Contains(w.gh.Comments(repoName, pull)[0].Body, "| 2,199 |") || strings.Contains(w.gh.Comments(repoName, pull)[0].Body, "2,199")
	})
	most := int(time.Since(began)/w.c.Every) + 1
	if n := w.gh.CountCalls(http.MethodPatch, "/comments/"); n > most {
		t.Errorf("edited %d times in %s", n, time.Since(began))
	}
	// A change of state does not wait.
	l.do("github:alice", rollout.ReasonRequested, "", rollout.Hold{})
	began = time.Now()
	w.put(l)
	w.shows(fraud, report.StateHeld, treated)
	if took := time.Since(began); took > 400*time.Millisecond {
		t.Errorf("a change of state waited %s", took)
	}
}

func TestNothingForStrangers(t *testing.T) {
	t.Parallel()
	w := newWorld(t, false)
	l := newLife(t, fraud).joined()
	l.e.Spec.Repositories = nil
	w.put(l)
	w.put(newLife(t, rollout.Key{Namespace: "models", Name: "seen"}).joined())
	w.start()
	w.shows(rollout.Key{Namespace: "models", Name: "seen"}, report.StateJoined, treated)
	want(t, "comments", len(w.gh.Comments(repoName, pull)), 1)
}

// TestTwoProcesses: while one takes over from another, both report; there is one comment all the same.
func TestTwoProcesses(t *testing.T) {
	t.Parallel()
	w := newWorld(t, true)
	w.c.Overlap = 2 * time.Second
	w.put(newLife(t, fraud).joined())
	w.gh.AddFault(githubtest.Fault{Method: http.MethodPost, Path: "/comments", Delay: 200 * time.Millisecond, Times: 1})
	w.start()
	first := w.stop
	w.start()
	t.Cleanup(first)
	w.shows(fraud, report.StateJoined, treated)
	time.Sleep(3 * w.c.Overlap / 2)
	want(t, "comments", len(w.gh.Comments(repoName, pull)), 1)
	want(t, "deployments", len(w.gh.Deployments(repoName)), 1)
}

// TestWhatIsOverIsLeftAlone: later rollouts of other pull requests are no news for this one.
func TestWhatIsOverIsLeftAlone(t *testing.T) {
	for name, end := range map[string]rollout.Op{"rolled back": rollout.Rollback{Version: treated}, "promoted": rollout.Promote{Version: treated}} {
		l := newLife(t, fraud).treatment(ten).do("github:alice", rollout.ReasonRequested, "", end).ready(treated, 0)
		before := report.Comment(l.e, mine, report.Options{}, "")
		role := rollout.Treatment
		l.do("ci", rollout.ReasonRequested, "", rollout.Deploy{Version: version("pr-50-9999999", 9, 50)}).ready("pr-50-9999999", 2).
			do("ci", rollout.ReasonRequested, "", rollout.Update{Version: "pr-50-9999999", Type: &role}).do("github:bob", rollout.ReasonRequested, "", rollout.Hold{Reason: "lunch"})
		if after := report.Comment(l.e, mine, report.Options{}, ""); after != before {
			t.Errorf("%s: %s", name, cmp.Diff(before, after))
		}
	}
}
