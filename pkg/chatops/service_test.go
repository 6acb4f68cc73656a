package chatops_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-dev/sluice/pkg/chatops"
	"github.com/sluice-dev/sluice/pkg/cluster"
	"github.com/sluice-dev/sluice/pkg/cluster/memory"
	"github.com/sluice-dev/sluice/pkg/github"
	"github.com/sluice-dev/sluice/pkg/github/githubtest"
	"github.com/sluice-dev/sluice/rollout"
)

const (
	repoID   = 123456789
	repoName = "acme/fraud-model"
	pull     = 41
	control  = "sha-1f2e3d4"
	treated  = "pr-41-3f9c2ab"
)

var fraud = rollout.Key{Namespace: "models", Name: "fraud"}

// world is a GitHub, a store with one endpoint under test, a journal, and a service that may be restarted.
type world struct {
	t       *testing.T
	gh      *githubtest.Server
	store   cluster.Store
	memory  *memory.Store
	journal *memory.Journal
	client  *github.Client
	options chatops.Options
	service *chatops.Service
	stop    func()
}

func newWorld(t *testing.T, edit ...func(*world)) *world {
	t.Helper()
	w := &world{t: t, gh: githubtest.New(t), memory: memory.NewStore(), journal: memory.NewJournal()}
	w.store = w.memory
	w.gh.AddRepository(repoID, "acme", "fraud-model")
	w.gh.AddPullRequest(repoName, githubtest.PullRequest{Number: pull, Head: commit(2)})
	for login, role := range map[string]string{"alice": "write", "max": "maintain", "root": "admin", "tri": "triage", "rita": "read", "dep": "custom:write", "fake": "custom:read"} {
		w.gh.SetPermission(repoName, login, role)
	}
	var err error
	if w.client, err = github.NewClient(github.ClientOptions{BaseURL: w.gh.URL, Token: githubtest.Token}); err != nil {
		t.Fatal(err)
	}
	w.addEndpoint(fraud, pull)
	for _, f := range edit {
		f(w)
	}
	w.start()
	return w
}

func commit(n int) string { return fmt.Sprintf("%040x", n) }

// addEndpoint with a control and a treatment of the pull request that claims 10, both with two ready replicas.
func (w *world) addEndpoint(key rollout.Key, number int) {
	w.t.Helper()
	e := &rollout.Endpoint{APIVersion: rollout.APIVersion, Kind: rollout.Kind, Metadata: rollout.Metadata{Namespace: key.Namespace, Name: key.Name}}
	long := time.Now().Add(-time.Hour)
	ten, role := 10*rollout.OnePercent, rollout.Treatment
	for i, op := range []rollout.Op{
		rollout.Deploy{Version: version(control, 1, 0), Repositories: []int64{repoID}},
		rollout.Deploy{Version: version(treated, 2, number)},
		rollout.Update{Version: treated, Type: &role, Percent: &ten},
	} {
		var err error
		if e, _, err = rollout.Apply(e, rollout.Request{ID: fmt.Sprintf("set-up-%d", i), Actor: "test", At: long}, op); err != nil {
			w.t.Fatal(err)
		}
	}
	e, err := w.memory.Create(w.t.Context(), e)
	if err != nil {
		w.t.Fatal(err)
	}
	for _, name := range []string{control, treated} {
		e.Status.Versions = append(e.Status.Versions, rollout.VersionStatus{Name: name, State: rollout.StateReady, Replicas: 2, ReadyReplicas: 2})
	}
	if _, err := w.memory.UpdateStatus(w.t.Context(), e); err != nil {
		w.t.Fatal(err)
	}
}

func version(name string, n, number int) rollout.Version {
	return rollout.Version{
		Name: name, Image: fmt.Sprintf("registry.example/fraud@sha256:%064x", n),
		Source: rollout.Source{RepositoryID: repoID, PullRequest: number, Commit: commit(n)},
	}
}

// change the endpoint by other means than comments.
func (w *world) change(id, actor string, op rollout.Op) {
	w.t.Helper()
	req := rollout.Request{ID: id, Actor: actor, At: time.Now(), Force: true}
	if _, _, err := cluster.Edit(w.t.Context(), w.memory, fraud, req, func(*rollout.Endpoint) (rollout.Op, error) { return op, nil }); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) start() {
	w.t.Helper()
	o := w.options
	o.Store, o.Journal, o.GitHub = w.store, w.journal, chatops.GitHub(w.client)
	if w.options.GitHub != nil {
		o.GitHub = w.options.GitHub
	}
	if w.options.Journal != nil {
		o.Journal = w.options.Journal
	}
	if o.Overlap == 0 {
		o.Overlap = 300 * time.Millisecond
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.NewTextHandler(w.t.Output(), nil))
	}
	ctx, cancel := context.WithCancel(context.Background())
	s := chatops.New(o)
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	w.service = s
	w.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			w.t.Errorf("run: %v", err)
		}
	})
	w.t.Cleanup(func() { w.stop() })
}

func (w *world) comment(id int64, author, body string) chatops.Comment {
	return w.gh.Comment(id, repoName, pull, author, body, time.Time{})
}

func (w *world) accept(c chatops.Comment) chatops.Receipt {
	w.t.Helper()
	r, err := w.service.Accept(w.t.Context(), c)
	if err != nil {
		w.t.Fatalf("accept: %v", err)
	}
	return r
}

// until polls.
func (w *world) until(what string, ok func() bool) {
	w.t.Helper()
	for end := time.Now().Add(15 * time.Second); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		if ok() {
			return
		}
	}
	w.t.Fatalf("not within 15 s: %s", what)
}

func (w *world) entry(name string) cluster.Entry {
	w.t.Helper()
	all, err := w.journal.Entries(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	for _, e := range all {
		if e.Name == name {
			return e
		}
	}
	return cluster.Entry{}
}

// finished waits for an entry to end.
func (w *world) finished(name string) cluster.Entry {
	w.t.Helper()
	var e cluster.Entry
	w.until(name+" ends", func() bool {
		e = w.entry(name)
		return e.State == cluster.EntryDone || e.State == cluster.EntryRefused
	})
	return e
}

// reply waits for the reply to an entry.
func (w *world) reply(name string) string {
	w.t.Helper()
	var body string
	w.until("a reply to "+name, func() bool {
		for _, c := range w.gh.Comments(repoName, pull) {
			if strings.Contains(c.Body, "<!-- sluice:"+name+" -->") {
				body = c.Body
			}
		}
		return body != ""
	})
	return body
}

// run a comment with one command and wait for its end and its reply.
func (w *world) run(id int64, author, body string) (cluster.Entry, string) {
	w.t.Helper()
	w.accept(w.comment(id, author, body))
	name := chatops.EntryName(id, 1)
	return w.finished(name), w.reply(name)
}

func (w *world) endpoint() *rollout.Endpoint {
	w.t.Helper()
	e, err := w.memory.Get(w.t.Context(), fraud)
	if err != nil {
		w.t.Fatal(err)
	}
	return e
}

// shares in one line: "sha-1f2e3d4 control 90, pr-41-3f9c2ab treatment 10".
func (w *world) shares() string {
	w.t.Helper()
	e := w.endpoint()
	var out []string
	for _, s := range e.Spec.Shares() {
		out = append(out, fmt.Sprintf("%s %s %s", s.Name, e.Spec.Version(s.Name).Type, s.Percent))
	}
	return strings.Join(out, ", ")
}

// changes made by comments, by id.
func (w *world) changes() []string {
	out := []string{}
	for _, c := range w.endpoint().Spec.Changes {
		if strings.HasPrefix(c.ID, "c-") {
			out = append(out, c.ID+" "+c.Action)
		}
	}
	return out
}

const untouched = control + " control 90, " + treated + " treatment 10"

func (w *world) wantShares(want string) {
	w.t.Helper()
	if got := w.shares(); got != want {
		w.t.Errorf("shares: got  %s\nwant %s", got, want)
	}
}

func wantEnd(t *testing.T, e cluster.Entry, state cluster.EntryState, reason rollout.Reason) {
	t.Helper()
	if e.State != state || e.Reason != reason {
		t.Errorf("%s %q ended %s (%s): %s; want %s (%s)", e.Name, e.Command, e.State, e.Reason, e.Result, state, reason)
	}
}

func wantIn(t *testing.T, text string, parts ...string) {
	t.Helper()
	for _, p := range parts {
		if !strings.Contains(text, p) {
			t.Errorf("%q is not in:\n%s", p, text)
		}
	}
}

func TestTraffic(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	e, reply := w.run(1, "alice", "/traffic 20.5")
	wantEnd(t, e, cluster.EntryDone, rollout.ReasonRequested)
	w.wantShares(control + " control 79.5, " + treated + " treatment 20.5")
	wantIn(t, reply, "`/traffic 20.5` **done** (`requested`)", "`"+treated+"`", "79.5 %", "/resume")
	ch := w.endpoint().Spec.Changes
	last := ch[len(ch)-1]
	if last.ID != "c-1-1" || last.Actor != "github:alice" || last.Reason != rollout.ReasonRequested || !strings.Contains(last.Message, "comment 1 on pull request 41") {
		t.Errorf("the record has %+v", last)
	}
	w.until("reactions", func() bool {
		return slices.Equal(w.gh.Reactions(repoName, 1), []string{"eyes", "rocket"})
	})
	e, reply = w.run(2, "alice", "/traffic 20.5")
	wantEnd(t, e, cluster.EntryDone, rollout.ReasonNoChange)
	wantIn(t, reply, "**changed nothing**")
}

func TestPromoteAndRollback(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	e, reply := w.run(1, "max", "/promote")
	wantEnd(t, e, cluster.EntryDone, rollout.ReasonRequested)
	w.wantShares(control + " standby 0, " + treated + " control 100")
	wantIn(t, reply, "control, default, this pull request")

	// The pull request's version is the control now: rolled back to its standby.
	e, _ = w.run(2, "dep", "/rollback")
	wantEnd(t, e, cluster.EntryDone, rollout.ReasonRequested)
	w.wantShares(control + " control 100, " + treated + "  0")

	e, reply = w.run(3, "root", "/promote")
	wantEnd(t, e, cluster.EntryRefused, rollout.ReasonNotTreatment)
	wantIn(t, reply, "**refused** (`not_treatment`)", "**Way out:**")
	w.until("the refusal's reaction", func() bool { return slices.Contains(w.gh.Reactions(repoName, 3), "-1") })
	e, _ = w.run(4, "root", "/traffic 5")
	wantEnd(t, e, cluster.EntryRefused, rollout.ReasonNotTreatment)
}

func TestHoldResumeStatus(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	e, reply := w.run(1, "alice", "/hold until @bob is back")
	wantEnd(t, e, cluster.EntryDone, rollout.ReasonRequested)
	if h := w.endpoint().Spec.Hold; h == nil || h.Reason != "until @bob is back" || h.Actor != "github:alice" {
		t.Errorf("hold = %+v", h)
	}
	wantIn(t, reply, "**Held** by github:&#8203;alice: until @&#8203;bob is back")
	before := w.endpoint().Metadata.ResourceVersion
	e, reply = w.run(2, "alice", "/status")
	wantEnd(t, e, cluster.EntryDone, rollout.ReasonRequested)
	wantIn(t, reply, "**Endpoint** `models/fraud`", "| version", "10 %", "2 of 2", "deployed as "+strings.ReplaceAll(treated, "_", `\_`))
	if now := w.endpoint().Metadata.ResourceVersion; now != before {
		t.Errorf("status wrote: %s → %s", before, now)
	}
	w.gh.EditPullRequest(repoName, pull, func(pr *githubtest.PullRequest) { pr.Head = strings.Repeat("9", 40) })
	_, reply = w.run(3, "alice", "/status")
	wantIn(t, reply, "its present head 9999999 is not deployed")
	e, _ = w.run(4, "alice", "/resume")
	wantEnd(t, e, cluster.EntryDone, rollout.ReasonRequested)
	if w.endpoint().Spec.Hold != nil {
		t.Error("still held")
	}
}

func TestNotEnoughReadyPassesThrough(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	e := w.endpoint()
	e.Status.Demand = "7.5"
	if _, err := w.memory.UpdateStatus(t.Context(), e); err != nil {
		t.Fatal(err)
	}
	end, reply := w.run(1, "alice", "/promote")
	wantEnd(t, end, cluster.EntryRefused, rollout.ReasonNotEnoughReady)
	wantIn(t, reply, "2 ready slots", "needs 9")
	w.wantShares(untouched)
	// A rollback never checks.
	end, _ = w.run(2, "alice", "/rollback")
	wantEnd(t, end, cluster.EntryDone, rollout.ReasonRequested)
}

func TestWhoMay(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.gh.AccountID("nobody")
	for i, login := range []string{"rita", "tri", "fake", "nobody"} {
		for j, command := range []string{"/rollback", "/status", "/traffic nonsense"} {
			e, reply := w.run(int64(10*i+j+1), login, command)
			wantEnd(t, e, cluster.EntryRefused, rollout.ReasonDenied)
			wantIn(t, reply, "(`denied`)", "write, maintain or admin")
			if strings.Contains(reply, control) {
				t.Errorf("%s was told about versions:\n%s", login, reply)
			}
		}
	}
	w.wantShares(untouched)
}

func TestGitHubDoesNotSay(t *testing.T) {
	t.Parallel()
	for name, f := range map[string]githubtest.Fault{
		"permission: 500":              {Path: "/permission", Status: 500},
		"permission: 404":              {Path: "/permission", Status: 404},
		"permission: 403":              {Path: "/permission", Status: 403},
		"permission: not JSON":         {Path: "/permission", Status: 200, Body: "<html>"},
		"permission: an empty answer":  {Path: "/permission", Status: 200, Body: "{}"},
		"permission: no account in it": {Path: "/permission", Status: 200, Body: `{"permission":"admin","role_name":"admin","user":null}`},
		"pull request: 500":            {Path: "/pulls/", Status: 500},
		"pull request: not JSON":       {Path: "/pulls/", Status: 200, Body: "<html>"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.gh.AddFault(f)
			e, reply := w.run(1, "alice", "/promote")
			wantEnd(t, e, cluster.EntryRefused, rollout.ReasonDenied)
			wantIn(t, reply, "did not say", "command line")
			w.wantShares(untouched)
			// It stays refused when GitHub is back: the author was told so.
			w.gh.ClearFaults()
			if r := w.accept(w.comment(1, "alice", "/promote")); r.Duplicates != 1 || r.Commands != 0 {
				t.Errorf("again: %+v", r)
			}
			w.wantShares(untouched)
		})
	}
}

func TestGitHubRecovers(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.gh.AddFault(githubtest.Fault{Path: "/permission", Status: 502, Times: 2})
	w.gh.AddFault(githubtest.Fault{Path: "/pulls/", Status: 404, Times: 1})
	w.gh.AddFault(githubtest.Fault{Method: "POST", Path: "/issues/41/comments", Status: 500, Times: 1})
	e, _ := w.run(1, "alice", "/traffic 20")
	wantEnd(t, e, cluster.EntryDone, rollout.ReasonRequested)
	if n := len(w.gh.Comments(repoName, pull)); n != 1 {
		t.Errorf("%d replies", n)
	}
}

func TestLoginOfAnotherAccount(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := w.comment(1, "alice", "/promote")
	w.gh.SetAccount("alice", 99) // renamed, and the login taken by someone else
	w.accept(c)
	wantEnd(t, w.finished("c-1-1"), cluster.EntryRefused, rollout.ReasonDenied)
	w.wantShares(untouched)
}

func TestNotBound(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.gh.AddRepository(5, "mallory", "fraud-model")
	w.gh.AddPullRequest("mallory/fraud-model", githubtest.PullRequest{Number: pull})
	w.gh.SetPermission("mallory/fraud-model", "mallory", "admin")
	for i, body := range []string{"/promote", "/status", "/rollback models/fraud " + treated} {
		c := w.gh.Comment(int64(i+1), "mallory/fraud-model", pull, "mallory", body, time.Time{})
		w.accept(c)
		wantEnd(t, w.finished(chatops.EntryName(c.ID, 1)), cluster.EntryRefused, rollout.ReasonNotBound)
	}
	w.until("replies", func() bool { return len(w.gh.Comments("mallory/fraud-model", pull)) == 3 })
	for _, c := range w.gh.Comments("mallory/fraud-model", pull) {
		if strings.Contains(c.Body, control) {
			t.Errorf("a stranger was told about versions:\n%s", c.Body)
		}
	}
	w.wantShares(untouched)
}

func TestForkAndMovedRepository(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.gh.EditPullRequest(repoName, pull, func(pr *githubtest.PullRequest) { pr.HeadRepository = 777 })
	e, reply := w.run(1, "alice", "/promote")
	wantEnd(t, e, cluster.EntryRefused, rollout.ReasonNotBound)
	wantIn(t, reply, "another repository")
	w.gh.EditPullRequest(repoName, pull, func(pr *githubtest.PullRequest) { pr.HeadRepository = -1 })
	e, _ = w.run(2, "alice", "/promote")
	wantEnd(t, e, cluster.EntryRefused, rollout.ReasonNotBound)

	// The name was taken by another repository after the comment was written.
	c := w.comment(3, "alice", "/promote")
	w.gh.AddRepository(888, "acme", "fraud-model")
	w.gh.AddPullRequest(repoName, githubtest.PullRequest{Number: pull})
	w.gh.SetPermission(repoName, "alice", "admin")
	w.accept(c)
	wantEnd(t, w.finished("c-3-1"), cluster.EntryRefused, rollout.ReasonNotBound)
	w.wantShares(untouched)
}

func TestVersionChanged(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	seen := w.comment(1, "alice", "/promote")
	seen.CreatedAt = time.Now().Add(-time.Minute)
	next := "pr-41-0000003"
	role := rollout.Treatment
	w.change("push", "ci", rollout.Deploy{Version: version(next, 3, pull)})
	w.change("ready", rollout.Engine, rollout.Update{Version: next, Type: &role})
	before := w.shares()
	w.accept(seen)
	wantEnd(t, w.finished("c-1-1"), cluster.EntryRefused, rollout.ReasonVersionChanged)
	wantIn(t, w.reply("c-1-1"), "after the comment was written")
	w.wantShares(before)

	// Whoever names the version that was retired is told what it is.
	old := w.comment(2, "alice", "/traffic 5 "+treated)
	w.accept(old)
	wantEnd(t, w.finished("c-2-1"), cluster.EntryRefused, rollout.ReasonNotTreatment)
}

func TestReasonsThatChooseTheEndpoint(t *testing.T) {
	other := rollout.Key{Namespace: "models", Name: "fraud-eu"}
	w := newWorld(t, func(w *world) { w.addEndpoint(other, pull) })
	e, reply := w.run(1, "alice", "/hold endpoint=nowhere looks odd")
	wantEnd(t, e, cluster.EntryRefused, rollout.ReasonUnknownEndpoint)
	wantIn(t, reply, "models/fraud, models/fraud-eu")
	e, _ = w.run(2, "alice", "/hold Endpoint=fraud-eu looks odd")
	wantEnd(t, e, cluster.EntryDone, rollout.ReasonRequested)
	e, _ = w.run(3, "alice", "/lock endpoint=models/fraud-eu")
	wantEnd(t, e, cluster.EntryDone, rollout.ReasonRequested)
	got, err := w.memory.Get(t.Context(), other)
	if err != nil || got.Spec.Hold == nil || got.Spec.Hold.Reason != "looks odd" || got.Spec.Lock == nil || got.Spec.Lock.Reason != "" {
		t.Errorf("hold and lock of the other endpoint: %+v, %+v, %v", got.Spec.Hold, got.Spec.Lock, err)
	}
}

func TestWhichEndpointAndVersion(t *testing.T) {
	t.Parallel()
	other := rollout.Key{Namespace: "models", Name: "fraud-eu"}
	elsewhere := rollout.Key{Namespace: "lab", Name: "fraud"}
	w := newWorld(t, func(w *world) {
		w.addEndpoint(other, pull)
		w.addEndpoint(elsewhere, 77)
	})
	e, reply := w.run(1, "alice", "/traffic 20")
	wantEnd(t, e, cluster.EntryRefused, rollout.ReasonInvalid)
	wantIn(t, reply, "models/fraud, models/fraud-eu", "`/traffic 20 fraud`")
	w.wantShares(untouched)

	e, _ = w.run(2, "alice", "/traffic 20 fraud")
	wantEnd(t, e, cluster.EntryDone, rollout.ReasonRequested)
	w.wantShares(control + " control 80, " + treated + " treatment 20")
	e, _ = w.run(3, "alice", "/traffic 30 models/fraud "+treated)
	wantEnd(t, e, cluster.EntryDone, rollout.ReasonRequested)
	w.wantShares(control + " control 70, " + treated + " treatment 30")
	e, _ = w.run(4, "alice", "/hold fraud-eu looks odd")
	wantEnd(t, e, cluster.EntryDone, rollout.ReasonRequested)
	if got, err := w.memory.Get(t.Context(), other); err != nil || got.Spec.Hold == nil || got.Spec.Hold.Reason != "looks odd" {
		t.Errorf("hold of the other endpoint: %+v, %v", got.Spec.Hold, err)
	}

	for i, tc := range []struct {
		command string
		want    rollout.Reason
	}{
		{"/promote nowhere " + treated, rollout.ReasonUnknownEndpoint},
		{"/promote fraud sha-none", rollout.ReasonUnknownVersion},
		{"/promote fraud " + control, rollout.ReasonUnknownVersion}, // not of this pull request
		{"/promote lab/fraud", rollout.ReasonUnknownVersion},        // of another one
		{"/promote endpoint=" + treated, rollout.ReasonUnknownEndpoint},
		{"/promote version=fraud", rollout.ReasonInvalid}, // which endpoint's?
		{"/promote endpoint=fraud version=fraud", rollout.ReasonUnknownVersion},
		{"/status nowhere", rollout.ReasonUnknownEndpoint},
		{"/promote fraud fraud-eu", rollout.ReasonUnknownVersion},
	} {
		e, _ := w.run(int64(10+i), "alice", tc.command)
		wantEnd(t, e, cluster.EntryRefused, tc.want)
	}
	_, reply = w.run(30, "alice", "/status")
	wantIn(t, reply, "`models/fraud`", "`models/fraud-eu`")
	if strings.Contains(reply, "`lab/fraud`") {
		t.Errorf("another pull request's endpoint is shown:\n%s", reply)
	}
	_, reply = w.run(31, "alice", "/status lab/fraud")
	wantIn(t, reply, "`lab/fraud`")
}

func TestNothingDeployedYet(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.gh.AddPullRequest(repoName, githubtest.PullRequest{Number: 50})
	for i, command := range []string{"/promote", "/hold", "/resume", "/traffic 1"} {
		c := w.gh.Comment(int64(i+1), repoName, 50, "alice", command, time.Time{})
		w.accept(c)
		wantEnd(t, w.finished(chatops.EntryName(c.ID, 1)), cluster.EntryRefused, rollout.ReasonUnknownVersion)
	}
	c := w.gh.Comment(9, repoName, 50, "alice", "/status", time.Time{})
	w.accept(c)
	wantEnd(t, w.finished("c-9-1"), cluster.EntryDone, rollout.ReasonRequested)
}

func TestTwoCommandsInOneComment(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	r := w.accept(w.comment(1, "alice", "/traffic 20\nand then\n/traffic 200\n/status\n/traffic 30"))
	if diff := cmp.Diff(chatops.Receipt{Commands: 4}, r); diff != "" {
		t.Errorf("receipt (-want +got):\n%s", diff)
	}
	wantEnd(t, w.finished("c-1-1"), cluster.EntryDone, rollout.ReasonRequested)
	wantEnd(t, w.finished("c-1-3"), cluster.EntryRefused, rollout.ReasonPercentInvalid)
	wantEnd(t, w.finished("c-1-4"), cluster.EntryDone, rollout.ReasonRequested)
	wantEnd(t, w.finished("c-1-5"), cluster.EntryDone, rollout.ReasonRequested)
	if diff := cmp.Diff([]string{"c-1-1 traffic " + treated + " 20", "c-1-5 traffic " + treated + " 30"}, w.changes()); diff != "" {
		t.Errorf("changes (-want +got):\n%s", diff)
	}
	for _, name := range []string{"c-1-1", "c-1-3", "c-1-4", "c-1-5"} {
		w.reply(name)
	}
	if n := w.gh.CountCalls("GET", "/permission"); n != 1 {
		t.Errorf("the permission was asked %d times for one comment", n)
	}
}

func TestRedelivery(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := w.comment(1, "alice", "/traffic 20\n/status")
	w.accept(c)
	w.finished("c-1-2")
	w.reply("c-1-1")
	w.reply("c-1-2")
	w.change("cli", "ops", rollout.Shift{Version: treated, Percent: rollout.OnePercent})
	want := w.shares()
	for range 3 {
		if r := w.accept(c); r.Commands != 0 || r.Duplicates != 2 {
			t.Errorf("again: %+v", r)
		}
	}
	w.stop()
	w.start()
	if r := w.accept(c); r.Commands != 0 || r.Duplicates != 2 {
		t.Errorf("again after a restart: %+v", r)
	}
	w.run(2, "alice", "/status") // whatever a redelivery had queued would be done by now
	w.wantShares(want)
	if n := len(w.gh.Comments(repoName, pull)); n != 3 {
		t.Errorf("%d replies, want 3", n)
	}
}

// TestSameCommentAtOnce: an App's webhook and a repository's bring the same comment.
func TestSameCommentAtOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := w.comment(1, "alice", "/traffic 20")
	var wg sync.WaitGroup
	var mu sync.Mutex
	recorded := 0
	for range 16 {
		wg.Go(func() {
			r, err := w.service.Accept(t.Context(), c)
			mu.Lock()
			defer mu.Unlock()
			recorded += r.Commands
			if err != nil {
				t.Errorf("accept: %v", err)
			}
		})
	}
	wg.Wait()
	w.finished("c-1-1")
	w.reply("c-1-1")
	w.run(2, "alice", "/status")
	if recorded != 1 || len(w.changes()) != 1 || len(w.gh.Comments(repoName, pull)) != 2 {
		t.Errorf("recorded %d times, changes %v, %d replies; want 1, 1 and 2", recorded, w.changes(), len(w.gh.Comments(repoName, pull)))
	}
}

func TestTooOld(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := w.gh.Comment(1, repoName, pull, "alice", "/promote", time.Now().Add(-chatops.MaxAge-time.Minute))
	if r := w.accept(c); r.Refused != rollout.ReasonTooOld {
		t.Errorf("receipt %+v", r)
	}
	if e := w.entry("c-1-1"); e.Name != "" {
		t.Errorf("recorded: %+v", e)
	}
	w.wantShares(untouched)
}

// TestCrashBeforeEffect ends the service between the claim and the effect.
func TestCrashBeforeEffect(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(w *world) { w.options.Grace = time.Millisecond })
	w.gh.AddFault(githubtest.Fault{Path: "/permission", Delay: time.Minute})
	w.accept(w.comment(1, "alice", "/traffic 20\n/traffic nonsense"))
	w.until("the permission is asked", func() bool { return w.gh.CountCalls("GET", "/permission") > 0 })
	w.stop()
	if e := w.entry("c-1-1"); e.State != cluster.EntryPending {
		t.Fatalf("after the crash: %+v", e)
	}
	w.wantShares(untouched)
	w.gh.ClearFaults()
	w.start()
	wantEnd(t, w.finished("c-1-1"), cluster.EntryDone, rollout.ReasonRequested)
	wantEnd(t, w.finished("c-1-2"), cluster.EntryRefused, rollout.ReasonPercentInvalid)
	w.reply("c-1-1")
	w.reply("c-1-2")
	w.stop()
	w.start()
	w.run(2, "alice", "/status")
	if diff := cmp.Diff([]string{"c-1-1 traffic " + treated + " 20"}, w.changes()); diff != "" {
		t.Errorf("changes (-want +got):\n%s", diff)
	}
	if n := len(w.gh.Comments(repoName, pull)); n != 3 {
		t.Errorf("%d replies, want 3", n)
	}
}

// TestCrashAfterEffect leaves an entry pending whose change is in the record.
func TestCrashAfterEffect(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(w *world) { w.options.Grace = time.Millisecond })
	w.gh.AddFault(githubtest.Fault{Path: "/permission", Delay: time.Minute})
	w.accept(w.comment(1, "alice", "/traffic 20"))
	w.until("the permission is asked", func() bool { return w.gh.CountCalls("GET", "/permission") > 0 })
	w.stop()
	w.gh.ClearFaults()
	w.change("c-1-1", "github:alice", rollout.Shift{Version: treated, Percent: 20 * rollout.OnePercent})
	w.change("cli", "ops", rollout.Shift{Version: treated, Percent: 3 * rollout.OnePercent})
	w.start()
	wantEnd(t, w.finished("c-1-1"), cluster.EntryDone, rollout.ReasonRequested)
	wantIn(t, w.reply("c-1-1"), "as the endpoint's record has it")
	w.wantShares(control + " control 97, " + treated + " treatment 3")
}

// TestLateComments: GitHub may deliver a comment long after it was written, or after a later one. It undoes nothing that was meant after it.
func TestLateComments(t *testing.T) {
	t.Parallel()
	shift := rollout.Shift{Version: treated, Percent: 3 * rollout.OnePercent}
	for name, tc := range map[string]struct {
		id     int64
		ago    time.Duration
		body   string
		change string // the id of what was done after it was written
		actor  string
		want   rollout.Reason
	}{
		"late, and nothing happened":                    {id: 5, ago: 10 * time.Minute, body: "/traffic 20", want: rollout.ReasonRequested},
		"late, and someone shifted":                     {id: 5, ago: 10 * time.Minute, body: "/traffic 20", change: "cli", actor: "ops", want: rollout.ReasonSuperseded},
		"late, and a button was pressed":                {id: 5, ago: 10 * time.Minute, body: "/hold", change: "d-1", actor: "github:bob", want: rollout.ReasonSuperseded},
		"late, after a later comment":                   {id: 5, ago: 10 * time.Minute, body: "/traffic 20", change: "c-6-1", actor: "github:bob", want: rollout.ReasonSuperseded},
		"late, after an earlier comment":                {id: 5, ago: 10 * time.Minute, body: "/traffic 20", change: "c-4-1", actor: "github:bob", want: rollout.ReasonRequested},
		"late, and the engine went on":                  {id: 5, ago: 10 * time.Minute, body: "/traffic 20", change: "step-1", actor: rollout.Engine, want: rollout.ReasonRequested},
		"late, but a rollback":                          {id: 5, ago: 10 * time.Minute, body: "/rollback", change: "cli", actor: "ops", want: rollout.ReasonRequested},
		"at once, though someone shifts":                {id: 5, ago: 5 * time.Second, body: "/traffic 20", change: "cli", actor: "ops", want: rollout.ReasonRequested},
		"at once, after a later one elsewhere":          {id: 5, ago: 5 * time.Second, body: "/traffic 20", change: "c-6-1", actor: "github:bob", want: rollout.ReasonRequested},
		"late, after what is no comment's id by itself": {id: 5, ago: 10 * time.Minute, body: "/traffic 20", change: "c-x", actor: "ops", want: rollout.ReasonSuperseded},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			if tc.change != "" {
				w.change(tc.change, tc.actor, shift)
			}
			w.accept(w.gh.Comment(tc.id, repoName, pull, "alice", tc.body, time.Now().Add(-tc.ago)))
			state := cluster.EntryDone
			if tc.want == rollout.ReasonSuperseded {
				state = cluster.EntryRefused
			}
			wantEnd(t, w.finished("c-5-1"), state, tc.want)
		})
	}
}

// TestCommentsOutOfOrder: of two on one pull request that come in the wrong order, the later one counts.
func TestCommentsOutOfOrder(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	e, _ := w.run(2, "alice", "/traffic 5")
	wantEnd(t, e, cluster.EntryDone, rollout.ReasonRequested)
	e, reply := w.run(1, "alice", "/traffic 90")
	wantEnd(t, e, cluster.EntryRefused, rollout.ReasonSuperseded)
	wantIn(t, reply, "a later comment")
	w.wantShares(control + " control 95, " + treated + " treatment 5")
	e, _ = w.run(3, "alice", "/traffic 7")
	wantEnd(t, e, cluster.EntryDone, rollout.ReasonRequested)
}

// TestClosedMeanwhile: a comment that is heeded after its pull request was closed may only make things safer.
func TestClosedMeanwhile(t *testing.T) {
	t.Parallel()
	for body, want := range map[string]rollout.Reason{"/traffic 20": rollout.ReasonDenied, "/promote": rollout.ReasonDenied, "/resume": rollout.ReasonDenied, "/rollback": rollout.ReasonRequested, "/hold": rollout.ReasonRequested} {
		t.Run(body, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.gh.EditPullRequest(repoName, pull, func(pr *githubtest.PullRequest) { pr.State = "closed" })
			e, _ := w.run(1, "alice", body)
			if e.Reason != want {
				t.Errorf("ended %s (%s): %s, want %s", e.State, e.Reason, e.Result, want)
			}
		})
	}
}

// TestOvertakenWhileDown: what someone did meanwhile is not undone by an older comment, but a rollback is still carried out.
func TestOvertakenWhileDown(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(w *world) { w.options.Grace = time.Millisecond })
	w.gh.AddFault(githubtest.Fault{Path: "/permission", Delay: time.Minute})
	w.accept(w.comment(1, "alice", "/traffic 80"))
	w.until("the permission is asked", func() bool { return w.gh.CountCalls("GET", "/permission") > 0 })
	w.accept(w.comment(2, "alice", "/rollback"))
	w.stop()
	w.gh.ClearFaults()
	w.change("cli", "ops", rollout.Shift{Version: treated, Percent: 3 * rollout.OnePercent})
	w.start()
	wantEnd(t, w.finished("c-2-1"), cluster.EntryDone, rollout.ReasonRequested)
	// Whether it comes before or after the rollback, it has no effect.
	if e := w.finished("c-1-1"); e.State != cluster.EntryRefused || e.Reason != rollout.ReasonSuperseded && e.Reason != rollout.ReasonNotTreatment {
		t.Errorf("the older command ended %s (%s)", e.State, e.Reason)
	}
	w.wantShares(control + " control 100, " + treated + "  0")
}

func TestUnreadableEntry(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(w *world) {
		if _, _, err := w.journal.Claim(t.Context(), cluster.Entry{Name: "c-1-1", Command: "/promote", Actor: "mallory", At: time.Now()}); err != nil {
			t.Fatal(err)
		}
		if _, _, err := w.journal.Claim(t.Context(), cluster.Entry{Name: "x-other", Command: "button", At: time.Now()}); err != nil {
			t.Fatal(err)
		}
	})
	wantEnd(t, w.finished("c-1-1"), cluster.EntryRefused, rollout.ReasonInvalid)
	if e := w.entry("x-other"); e.State != cluster.EntryPending {
		t.Errorf("another intake's entry was touched: %+v", e)
	}
	w.wantShares(untouched)
}

func TestJournalFails(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.run(9, "alice", "/status")
	w.journal.SetFailure(errors.New("disk full"))
	if _, err := w.service.Accept(t.Context(), w.comment(1, "alice", "/promote")); err == nil || errors.Is(err, chatops.ErrBusy) {
		t.Errorf("accept without a journal: %v", err)
	}
	w.journal.SetFailure(nil)
	w.wantShares(untouched)
	// The same delivery again, as GitHub's page offers it.
	e, _ := w.run(1, "alice", "/promote")
	wantEnd(t, e, cluster.EntryDone, rollout.ReasonRequested)
}

func TestJournalUnreadableAtStart(t *testing.T) {
	t.Parallel()
	journal := memory.NewJournal()
	journal.SetFailure(errors.New("disk gone"))
	s := chatops.New(chatops.Options{Store: memory.NewStore(), Journal: journal})
	if err := s.Run(t.Context()); err == nil {
		t.Error("the service runs without knowing what is pending")
	}
	if _, err := s.Accept(t.Context(), chatops.Comment{Body: "/status", CreatedAt: time.Now()}); !errors.Is(err, chatops.ErrBusy) {
		t.Errorf("accept: %v, want busy", err)
	}
}

// halfJournal fails to claim some names for a while.
type halfJournal struct {
	*memory.Journal
	mu   sync.Mutex
	fail string
}

func (j *halfJournal) Claim(ctx context.Context, e cluster.Entry) (cluster.Entry, bool, error) {
	j.mu.Lock()
	fails := e.Name == j.fail
	j.mu.Unlock()
	if fails {
		return cluster.Entry{}, false, errors.New("disk full")
	}
	return j.Journal.Claim(ctx, e)
}

func TestJournalFailsHalfWay(t *testing.T) {
	t.Parallel()
	half := &halfJournal{fail: "c-1-2"}
	w := newWorld(t, func(w *world) {
		half.Journal = w.journal
		w.options.Journal = half
	})
	c := w.comment(1, "alice", "/traffic 20\n/traffic 30")
	if r, err := w.service.Accept(t.Context(), c); err == nil || r.Commands != 1 {
		t.Fatalf("accept: %+v, %v; want one recorded and an error", r, err)
	}
	wantEnd(t, w.finished("c-1-1"), cluster.EntryDone, rollout.ReasonRequested)
	half.mu.Lock()
	half.fail = ""
	half.mu.Unlock()
	if r := w.accept(c); r.Commands != 1 || r.Duplicates != 1 {
		t.Errorf("again: %+v", r)
	}
	wantEnd(t, w.finished("c-1-2"), cluster.EntryDone, rollout.ReasonRequested)
	if n := len(w.changes()); n != 2 {
		t.Errorf("changes %v", w.changes())
	}
}

func TestBusy(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(w *world) { w.options.Queue = 2 })
	w.gh.AddFault(githubtest.Fault{Path: "/permission", Delay: 5 * time.Second})
	w.accept(w.comment(1, "alice", "/traffic 20"))
	w.accept(w.comment(2, "alice", "/traffic 21"))
	if _, err := w.service.Accept(t.Context(), w.comment(3, "alice", "/traffic 22")); !errors.Is(err, chatops.ErrBusy) {
		t.Fatalf("a third comment: %v, want busy", err)
	}
	if e := w.entry("c-3-1"); e.Name != "" {
		t.Errorf("refused, and still recorded: %+v", e)
	}
	// Comments without commands take no room.
	if r := w.accept(w.comment(4, "alice", "thanks")); r != (chatops.Receipt{}) {
		t.Errorf("no command: %+v", r)
	}
	w.gh.ClearFaults()
	w.finished("c-1-1")
	w.finished("c-2-1")
	e, _ := w.run(3, "alice", "/traffic 22")
	wantEnd(t, e, cluster.EntryDone, rollout.ReasonRequested)
}

// rivalStore lets someone else write before each of the first updates.
type rivalStore struct {
	*memory.Store
	mu     sync.Mutex
	rivals int
	err    error // answered once, after the write has arrived
}

func (s *rivalStore) Update(ctx context.Context, e *rollout.Endpoint) (*rollout.Endpoint, error) {
	s.mu.Lock()
	rival := s.rivals > 0
	if rival {
		s.rivals--
	}
	lost := s.err
	s.err = nil
	n := s.rivals
	s.mu.Unlock()
	if rival {
		other, err := s.Get(ctx, e.Key())
		if err != nil {
			return nil, err
		}
		other.Spec.Version(control).Description = fmt.Sprintf("edited %d", n)
		if _, err := s.Store.Update(ctx, other); err != nil {
			return nil, err
		}
	}
	out, err := s.Store.Update(ctx, e)
	if err == nil && lost != nil {
		return nil, lost
	}
	return out, err
}

func TestConflictIsTriedAgain(t *testing.T) {
	t.Parallel()
	rival := &rivalStore{rivals: 30} // more than cluster.Edit tries
	w := newWorld(t, func(w *world) {
		rival.Store = w.memory
		w.store = rival
	})
	e, _ := w.run(1, "alice", "/traffic 20")
	wantEnd(t, e, cluster.EntryDone, rollout.ReasonRequested)
	if d := w.endpoint().Spec.Version(control).Description; d != "edited 0" {
		t.Errorf("the other's edits are lost: description %q", d)
	}
	if len(w.changes()) != 1 {
		t.Errorf("changes %v", w.changes())
	}
	w.wantShares(control + " control 80, " + treated + " treatment 20")
}

// TestLostAnswer: the write arrives and the store's answer does not.
func TestLostAnswer(t *testing.T) {
	t.Parallel()
	rival := &rivalStore{err: errors.New("connection reset")}
	w := newWorld(t, func(w *world) {
		rival.Store = w.memory
		w.store = rival
	})
	e, _ := w.run(1, "alice", "/traffic 20")
	wantEnd(t, e, cluster.EntryDone, rollout.ReasonRequested)
	if len(w.changes()) != 1 {
		t.Errorf("changes %v", w.changes())
	}
}

func TestRollbackPassesTheQueue(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.gh.AddFault(githubtest.Fault{Path: "/max/permission", Delay: 3 * time.Second})
	w.accept(w.comment(1, "max", "/traffic 90"))
	w.accept(w.comment(2, "alice", "/hold"))
	w.accept(w.comment(3, "alice", "/rollback"))
	wantEnd(t, w.finished("c-3-1"), cluster.EntryDone, rollout.ReasonRequested)
	if e := w.entry("c-1-1"); e.State != cluster.EntryPending {
		t.Fatalf("the command before it ended already (%s): nothing was shown", e.Reason)
	}
	// What was asked before the rollback does not bring the version back.
	wantEnd(t, w.finished("c-1-1"), cluster.EntryRefused, rollout.ReasonNotTreatment)
	w.wantShares(control + " control 100, " + treated + "  0")
}

func TestCommentsStayInOrder(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.gh.AddFault(githubtest.Fault{Path: "/max/permission", Delay: 300 * time.Millisecond})
	w.accept(w.comment(1, "max", "/traffic 90"))
	w.accept(w.comment(2, "alice", "/traffic 5"))
	w.finished("c-1-1")
	w.finished("c-2-1")
	w.wantShares(control + " control 95, " + treated + " treatment 5")
	if diff := cmp.Diff([]string{"c-1-1 traffic " + treated + " 90", "c-2-1 traffic " + treated + " 5"}, w.changes()); diff != "" {
		t.Errorf("changes (-want +got):\n%s", diff)
	}
}

func TestManyAtOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	const n = 16 // the record keeps 20 changes until the control role moves them
	for i := range n {
		w.gh.AddPullRequest(repoName, githubtest.PullRequest{Number: 100 + i})
	}
	e := w.endpoint()
	for i := range 4 {
		v := version(fmt.Sprintf("pr-%d-0000000", 100+i), 10+i, 100+i)
		v.Type, v.CreatedAt = rollout.Treatment, time.Now().Add(-time.Hour)
		e.Spec.Versions = append(e.Spec.Versions, v)
		e.Status.Versions = append(e.Status.Versions, rollout.VersionStatus{Name: v.Name, ReadyReplicas: 1, Replicas: 1})
	}
	e.Spec.Changes[len(e.Spec.Changes)-1].Digest = rollout.ShiftDigest(&e.Spec)
	status := e.Status
	e, err := w.memory.Update(t.Context(), e)
	if err != nil {
		t.Fatal(err)
	}
	e.Status = status
	if _, err := w.memory.UpdateStatus(t.Context(), e); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for pr := range 4 { // those of one pull request come one after the other
		wg.Go(func() {
			for i := pr; i < n; i += 4 {
				c := w.gh.Comment(int64(1000+i), repoName, 100+pr, "alice", fmt.Sprintf("/traffic 1.%03d", i+1), time.Time{})
				if _, err := w.service.Accept(t.Context(), c); err != nil {
					t.Errorf("accept: %v", err)
				}
			}
		})
	}
	wg.Wait()
	for i := range n {
		wantEnd(t, w.finished(chatops.EntryName(int64(1000+i), 1)), cluster.EntryDone, rollout.ReasonRequested)
	}
	if got := len(w.changes()); got != n {
		t.Errorf("%d changes, want %d", got, n)
	}
}

func TestRateLimitedReply(t *testing.T) {
	t.Parallel()
	for _, status := range []int{403, 429} {
		t.Run(fmt.Sprint(status), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			f := githubtest.SecondaryLimit(status, 1)
			f.Method, f.Path, f.Times = "POST", "/issues/41/comments", 1
			w.gh.AddFault(f)
			began := time.Now()
			e, reply := w.run(1, "alice", "/traffic 20")
			wantEnd(t, e, cluster.EntryDone, rollout.ReasonRequested)
			wantIn(t, reply, "**done**")
			if d := time.Since(began); d < 900*time.Millisecond {
				t.Errorf("the reply came after %s: Retry-After was not honoured", d)
			}
			if n := len(w.gh.Comments(repoName, pull)); n != 1 {
				t.Errorf("%d replies", n)
			}
		})
	}
}

// Two people want opposite things at once, and two processes that share what is stored are at it: one of the two orders happens, each command
// ends once and is answered once, and what was to be rolled back has no traffic afterwards.
func TestOppositeCommandsAtOnce(t *testing.T) {
	for round := range 8 {
		t.Run(fmt.Sprint(round), func(t *testing.T) {
			t.Parallel()
			const overlap = 2 * time.Second // longer than a busy machine takes to answer
			w := newWorld(t, func(w *world) { w.options.Overlap = overlap })
			other, stop := w.second(chatops.Options{Overlap: overlap})
			var wg sync.WaitGroup
			at := time.Now()
			// Both processes are told of both, as those are that fetch deliveries.
			for _, s := range []*chatops.Service{w.service, other} {
				for id, text := range map[int64]string{1: "/promote", 2: "/rollback"} {
					c := w.gh.Comment(id, repoName, pull, map[int64]string{1: "alice", 2: "max"}[id], text, at)
					wg.Go(func() {
						if r, err := s.Accept(t.Context(), c); err != nil || r.Commands+r.Duplicates != 1 {
							t.Errorf("accept: %+v, %v", r, err)
						}
					})
				}
			}
			wg.Wait()
			promoted, back := w.finished("c-1-1"), w.finished("c-2-1")
			w.reply("c-1-1")
			w.reply("c-2-1")
			time.Sleep(overlap + 500*time.Millisecond) // for answers too many
			stop()
			w.stop()
			wantEnd(t, back, cluster.EntryDone, rollout.ReasonRequested)
			var order []string
			for _, c := range w.changes() {
				order = append(order, c[:5])
			}
			switch got := fmt.Sprint(promoted.State, order); got {
			case "done[c-1-1 c-2-1]", "refused[c-2-1]":
				t.Log(got)
			default:
				t.Fatalf("promotion %s (%s), record %v", promoted.State, promoted.Reason, order)
			}
			for _, s := range w.endpoint().Spec.Shares() {
				if s.Name == treated && s.Percent != 0 || s.Name == control && s.Percent != rollout.Full {
					t.Errorf("%s gets %s", s.Name, s.Percent)
				}
			}
			if n := len(w.gh.Comments(repoName, pull)); n != 2 {
				t.Errorf("%d replies", n)
			}
		})
	}
}

// Each decision leaves a line of the log, the refused ones too, with who, what, and why.
func TestEveryDecisionIsLogged(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	var log strings.Builder
	w := newWorld(t, func(w *world) {
		w.options.Logger = slog.New(slog.NewTextHandler(writer(func(p []byte) (int, error) {
			mu.Lock()
			defer mu.Unlock()
			return log.Write(p)
		}), nil))
	})
	w.run(1, "alice", "/traffic 20")
	w.run(2, "rita", "/promote")
	w.run(3, "alice", "/traffic 20")
	w.run(4, "alice", "/sluice promoet")
	w.gh.AddFault(githubtest.Fault{Path: "/permission", Status: 500})
	w.run(5, "alice", "/rollback")
	mu.Lock()
	defer mu.Unlock()
	for name, want := range map[string][]string{
		"c-1-1": {`command="/traffic 20"`, "actor=github:alice", "state=done", "reason=requested", "endpoint=models/fraud", "version=" + treated},
		"c-2-1": {"command=/promote", "actor=github:rita", "state=refused", "reason=denied"},
		"c-3-1": {"state=done", "reason=no_change"},
		"c-4-1": {"state=refused", "reason=invalid"},
		"c-5-1": {"state=refused", "reason=denied"},
	} {
		var line string
		for l := range strings.Lines(log.String()) {
			if strings.Contains(l, "msg=command name="+name+" ") {
				line += l
			}
		}
		if strings.Count(line, "\n") != 1 {
			t.Errorf("%s has these lines:\n%s", name, line)
		}
		wantIn(t, line, want...)
		wantIn(t, line, "repository=123456789", "pullRequest=41")
	}
}

type writer func([]byte) (int, error)

func (w writer) Write(p []byte) (int, error) { return w(p) }
