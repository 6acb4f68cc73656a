package github_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"runtime"
	"runtime/metrics"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/sluice-dev/sluice/pkg/chatops"
	"github.com/sluice-dev/sluice/pkg/github"
	"github.com/sluice-dev/sluice/pkg/github/githubtest"
	"github.com/sluice-dev/sluice/pkg/report"
	"github.com/sluice-dev/sluice/rollout"
)

const secret = "a secret for tests"

// commands records what it is handed.
type commands struct {
	mu      sync.Mutex
	got     []chatops.Comment
	buttons []chatops.Button
	closed  []chatops.Closed
	receipt chatops.Receipt
	err     error
	block   chan struct{}
	began   chan struct{} // if set, told of each comment
}

func (c *commands) Accept(ctx context.Context, comment chatops.Comment) (chatops.Receipt, error) {
	c.mu.Lock()
	c.got = append(c.got, comment)
	c.mu.Unlock()
	if c.began != nil {
		c.began <- struct{}{}
	}
	if c.block != nil {
		select {
		case <-c.block:
		case <-ctx.Done():
			return chatops.Receipt{}, ctx.Err()
		}
	}
	return c.receipt, c.err
}

func (c *commands) AcceptButton(_ context.Context, b chatops.Button) (chatops.Receipt, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.buttons = append(c.buttons, b)
	return c.receipt, c.err
}

func (c *commands) AcceptClosed(_ context.Context, x chatops.Closed) (chatops.Receipt, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = append(c.closed, x)
	return c.receipt, c.err
}

func intake(t testing.TB, c *commands, secrets ...string) (http.Handler, *bytes.Buffer) {
	t.Helper()
	var all [][]byte
	for _, s := range append(secrets, secret) {
		all = append(all, []byte(s))
	}
	var log bytes.Buffer
	in, err := github.NewIntake(all, github.NewEvents(c, slog.New(slog.NewTextHandler(&log, nil))))
	if err != nil {
		t.Fatal(err)
	}
	return in, &log
}

func post(h http.Handler, r *http.Request) *httptest.ResponseRecorder {
	rec := httptest.NewRecorder()
	h.ServeHTTP(rec, r)
	return rec
}

func delivery(event string, body []byte, edit ...func(*http.Request)) *http.Request {
	r := githubtest.Delivery("http://sluice.example/webhooks/github", secret, event, "11111111-2222-3333-4444-555555555555", body)
	for _, f := range edit {
		f(r)
	}
	return r
}

func header(name, value string) func(*http.Request) {
	return func(r *http.Request) { r.Header.Set(name, value) }
}

func without(name string) func(*http.Request) { return func(r *http.Request) { r.Header.Del(name) } }

func comment() chatops.Comment {
	return chatops.Comment{
		ID: 492700400, PullRequest: 41, Author: "alice", AuthorID: 77, Body: "/promote", CreatedAt: time.Date(2026, 11, 23, 10, 0, 0, 0, time.UTC),
		Repository: chatops.Repository{ID: 186853002, Owner: "acme", Name: "fraud-model", Installation: 12},
	}
}

func TestIntakeChecksDeliveries(t *testing.T) {
	body := githubtest.CommentEvent(comment())
	for _, tc := range []struct {
		name string
		r    *http.Request
		want int
	}{
		{"a comment", delivery("issue_comment", body), 202},
		{"a content type with a charset", delivery("issue_comment", body, header("Content-Type", "application/json; charset=utf-8")), 202},
		{"rotated secret", delivery("issue_comment", body, header(github.SignatureHeader, github.Sign([]byte("old"), body))), 202},
		{"ping", delivery("ping", []byte(`{"zen":"x","hook_id":1}`)), 200},
		{"an event of another kind", delivery("star", []byte(`{}`)), 202},
		{"an unknown event", delivery("made_up", []byte(`[1]`)), 202},
		{"unsigned", delivery("issue_comment", body, without(github.SignatureHeader)), 401},
		{"an unsigned ping", delivery("ping", []byte(`{}`), without(github.SignatureHeader)), 401},
		{"signed wrongly", delivery("issue_comment", body, header(github.SignatureHeader, github.Sign([]byte("guess"), body))), 401},
		{"signed with nothing", delivery("issue_comment", body, header(github.SignatureHeader, github.Sign(nil, body))), 401},
		{"SHA-1 only", delivery("issue_comment", body, without(github.SignatureHeader), header("X-Hub-Signature", sha1Signature(secret, string(body)))), 401},
		{"SHA-1 in the place of SHA-256", delivery("issue_comment", body, header(github.SignatureHeader, sha1Signature(secret, string(body)))), 401},
		{"two signatures", delivery("issue_comment", body, func(r *http.Request) { r.Header.Add(github.SignatureHeader, "sha256=00") }), 401},
		{"a body that was changed", delivery("issue_comment", body, func(r *http.Request) {
			r.Body = io.NopCloser(bytes.NewReader(bytes.Replace(body, []byte("/promote"), []byte("/traffic"), 1)))
		}), 401},
		{"a form", delivery("issue_comment", body, header("Content-Type", "application/x-www-form-urlencoded")), 415},
		{"no content type", delivery("issue_comment", body, without("Content-Type")), 415},
		{"no event", delivery("", body), 400},
		{"no body", delivery("issue_comment", nil), 400},
		{"no JSON", delivery("issue_comment", []byte("{")), 400},
		{"JSON of another shape", delivery("issue_comment", []byte(`{"action":7}`)), 400},
		{"GET", func() *http.Request { r := delivery("ping", []byte("{}")); r.Method = http.MethodGet; return r }(), 405},
		{"too large, as it says itself", delivery("issue_comment", []byte("{}"), func(r *http.Request) { r.ContentLength = github.MaxBody + 1 }), 413},
		{"too large, which it does not say", delivery("issue_comment", []byte("{}"), func(r *http.Request) {
			r.ContentLength, r.Body = -1, io.NopCloser(io.LimitReader(spaces{}, github.MaxBody+1))
		}), 413},
		{"a body that breaks off", delivery("issue_comment", []byte("{}"), func(r *http.Request) {
			r.Body = io.NopCloser(io.MultiReader(strings.NewReader("{"), broken{}))
		}), 400},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := &commands{receipt: chatops.Receipt{Commands: 1}}
			h, log := intake(t, c, "old")
			rec := post(h, tc.r)
			if rec.Code != tc.want {
				t.Errorf("answered %d %s, want %d", rec.Code, rec.Body, tc.want)
			}
			var a struct{ Status, ReasonCode, Message string }
			if err := json.Unmarshal(rec.Body.Bytes(), &a); err != nil || a.Status == "" || rec.Code >= 400 && (a.ReasonCode == "" || a.Message == "") {
				t.Errorf("answer %s (%v) lacks status, reason or message", rec.Body, err)
			}
			if rec.Code >= 400 && len(c.got) > 0 {
				t.Error("refused, and passed on all the same")
			}
			if strings.Contains(log.String(), secret) || strings.Contains(rec.Body.String(), secret) {
				t.Error("the secret shows")
			}
		})
	}
}

type spaces struct{}

func (spaces) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = ' '
	}
	return len(p), nil
}

type broken struct{}

func (broken) Read([]byte) (int, error) { return 0, errors.New("connection reset") }

func TestIntakeWithoutSecret(t *testing.T) {
	for _, secrets := range [][][]byte{nil, {}, {nil}, {[]byte("")}} {
		_, err := github.NewIntake(secrets, github.NewEvents(&commands{}, nil))
		var e *rollout.Error
		if !errors.As(err, &e) || e.Hint == "" || !strings.Contains(e.Message, "secret") {
			t.Errorf("%q: %v, want a refusal with a way out", secrets, err)
		}
	}
}

func TestIntakePassesComments(t *testing.T) {
	c := &commands{receipt: chatops.Receipt{Commands: 1}}
	h, _ := intake(t, c)
	want := comment()
	if rec := post(h, delivery("issue_comment", githubtest.CommentEvent(want))); rec.Code != 202 {
		t.Fatalf("answered %d %s", rec.Code, rec.Body)
	}
	if diff := cmp.Diff([]chatops.Comment{want}, c.got, cmpopts.IgnoreUnexported(chatops.Comment{})); diff != "" {
		t.Errorf("passed on (-want +got):\n%s", diff)
	}

	// On a merged one the commands' own rules decide.
	merged := func(e map[string]any) {
		issue := e["issue"].(map[string]any)
		issue["state"] = "closed"
		issue["pull_request"].(map[string]any)["merged_at"] = "2026-11-23T10:00:00Z"
	}
	if rec := post(h, delivery("issue_comment", githubtest.CommentEvent(want, merged))); rec.Code != 202 || len(c.got) != 2 || !c.got[1].Closed {
		t.Errorf("answered %d %s, passed on %+v", rec.Code, rec.Body, c.got)
	}
}

// TestIntakeTakesOldLogins: some end in a hyphen, which no new one may.
func TestIntakeTakesOldLogins(t *testing.T) {
	for login, want := range map[string]int{"alice-": 1, "a": 1, "ann_acme": 1, "-alice": 0, "alice/": 0, strings.Repeat("a", 101): 0} {
		c := &commands{receipt: chatops.Receipt{Commands: 1}}
		h, _ := intake(t, c)
		by := comment()
		by.Author = login
		if rec := post(h, delivery("issue_comment", githubtest.CommentEvent(by))); rec.Code != 202 || len(c.got) != want {
			t.Errorf("%s: answered %d %s, passed on %v", login, rec.Code, rec.Body, c.got)
		}
	}
}

func TestIntakeIgnores(t *testing.T) {
	at := func(path string, value any) func(map[string]any) {
		return func(e map[string]any) {
			keys := strings.Split(path, ".")
			for _, k := range keys[:len(keys)-1] {
				e = e[k].(map[string]any)
			}
			if value == nil {
				delete(e, keys[len(keys)-1])
			} else {
				e[keys[len(keys)-1]] = value
			}
		}
	}
	bot := map[string]any{"login": "dependabot[bot]", "id": 5, "type": "Bot"}
	someone := map[string]any{"login": "mallory", "id": 6, "type": "User"}
	for name, edits := range map[string][]func(map[string]any){
		"edited":                     {at("action", "edited")},
		"deleted":                    {at("action", "deleted")},
		"on an issue":                {at("issue.pull_request", nil)},
		"on a closed pull request":   {at("issue.state", "closed")},
		"from a bot":                 {at("comment.user", bot), at("sender", bot)},
		"from a user called a bot":   {at("comment.user", map[string]any{"login": "x[bot]", "id": 5, "type": "User"}), at("sender", map[string]any{"login": "x[bot]", "id": 5, "type": "User"})},
		"sent by a bot":              {at("sender", bot)},
		"sent by someone else":       {at("sender", someone)},
		"of an account without name": {at("comment.user", map[string]any{"id": 77, "type": "User"}), at("sender", map[string]any{"id": 77, "type": "User"})},
		"with a path for a login":    {at("comment.user", map[string]any{"login": "../../x", "id": 77, "type": "User"}), at("sender", map[string]any{"login": "../../x", "id": 77, "type": "User"})},
		"with a path for a name":     {at("repository.name", "a/b")},
		"with a path for an owner":   {at("repository.owner.login", "a/../b")},
		"without a repository":       {at("repository", nil)},
		"without a comment":          {at("comment", nil)},
		"without an issue":           {at("issue", nil)},
		"without a sender":           {at("sender", nil)},
		"without an author":          {at("comment.user", nil)},
		"without a comment's id":     {at("comment.id", nil)},
		"without a repository's id":  {at("repository.id", nil)},
		"without a time":             {at("comment.created_at", nil)},
	} {
		t.Run(name, func(t *testing.T) {
			c := &commands{}
			h, _ := intake(t, c)
			rec := post(h, delivery("issue_comment", githubtest.CommentEvent(comment(), edits...)))
			if rec.Code != 202 || !strings.Contains(rec.Body.String(), `"ignored"`) || len(c.got) != 0 {
				t.Errorf("answered %d %s, passed on %v", rec.Code, rec.Body, c.got)
			}
		})
	}
}

func TestIntakeAnswers(t *testing.T) {
	for _, tc := range []struct {
		name    string
		receipt chatops.Receipt
		err     error
		code    int
		status  string
	}{
		{"no command", chatops.Receipt{}, nil, 202, "ignored"},
		{"recorded", chatops.Receipt{Commands: 2, Duplicates: 1}, nil, 202, "recorded"},
		{"known", chatops.Receipt{Duplicates: 2}, nil, 200, "known"},
		{"too old", chatops.Receipt{Refused: rollout.ReasonTooOld}, nil, 202, "ignored"},
		{"busy", chatops.Receipt{}, chatops.ErrBusy, 503, "refused"},
		{"journal broken", chatops.Receipt{Commands: 1}, errors.New("disk full at /var/lib"), 500, "refused"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			h, _ := intake(t, &commands{receipt: tc.receipt, err: tc.err})
			rec := post(h, delivery("issue_comment", githubtest.CommentEvent(comment())))
			if rec.Code != tc.code || !strings.Contains(rec.Body.String(), `"status":"`+tc.status+`"`) || strings.Contains(rec.Body.String(), "/var") {
				t.Errorf("answered %d %s, want %d %s", rec.Code, rec.Body, tc.code, tc.status)
			}
			if (rec.Code == 503) != (rec.Header().Get("Retry-After") != "") {
				t.Errorf("Retry-After %q with %d", rec.Header().Get("Retry-After"), rec.Code)
			}
		})
	}
}

// TestIntakeBoundsMemory: bodies take room until they are handled, and then no more is given;
// large ones take none from small ones.
func TestIntakeBoundsMemory(t *testing.T) {
	c := &commands{block: make(chan struct{}), began: make(chan struct{}, 1)}
	in, err := github.NewIntake([][]byte{[]byte(secret)}, github.NewEvents(c, nil))
	if err != nil {
		t.Fatal(err)
	}
	github.SetAllowances(in, 128<<10)
	const large = 2 << 20
	var wg sync.WaitGroup
	begun := make(chan struct{}, 64)
	release := make(chan struct{})
	for range 128 << 10 / github.ChunkSize { // each is given a chunk and asks for more only when it is full
		wg.Go(func() {
			r := delivery("star", []byte("{}"))
			r.ContentLength, r.Body = large, io.NopCloser(&waiting{begun: begun, release: release})
			if rec := post(in, r); rec.Code != 400 {
				t.Errorf("a body that breaks off: %d", rec.Code)
			}
		})
	}
	for range 128 << 10 / github.ChunkSize {
		<-begun
	}
	another := func() int {
		r := delivery("star", []byte("{}"))
		r.ContentLength = large
		return post(in, r).Code
	}
	if code := another(); code != 503 {
		t.Errorf("one large body more: %d, want 503", code)
	}
	if rec := post(in, delivery("star", []byte("{}"))); rec.Code != 202 {
		t.Errorf("a small one: %d, want 202", rec.Code)
	}
	close(release)
	wg.Wait()
	if code := another(); code != 202 {
		t.Errorf("after they ended: %d, want 202", code)
	}
	// One that needs more than there is left is not read to its end.
	body := bytes.Repeat([]byte(" "), 200<<10)
	if rec := post(in, delivery("star", body)); rec.Code != 503 {
		t.Errorf("a body larger than the allowance: %d, want 503", rec.Code)
	}
	if rec := post(in, delivery("star", body[:100<<10])); rec.Code != 202 {
		t.Errorf("a body within the allowance: %d, want 202", rec.Code)
	}

	// One that is still being handled is still held.
	wg.Go(func() {
		if rec := post(in, delivery("issue_comment", append(githubtest.CommentEvent(comment()), body[:100<<10]...))); rec.Code != 202 {
			t.Errorf("a comment that is recorded slowly: %d, want 202", rec.Code)
		}
	})
	<-c.began
	if rec := post(in, delivery("star", body[:100<<10])); rec.Code != 503 {
		t.Errorf("a body beside one that is handled: %d, want 503", rec.Code)
	}
	close(c.block)
	wg.Wait()
	if rec := post(in, delivery("star", body[:100<<10])); rec.Code != 202 {
		t.Errorf("after it: %d, want 202", rec.Code)
	}
}

// TestIntakeUnderForgedBodies: whoever has no secret cannot have more memory used than there is, by however many bodies at once.
func TestIntakeUnderForgedBodies(t *testing.T) {
	in, _ := intake(t, &commands{})
	server := httptest.NewServer(in)
	defer server.Close()
	client := &http.Client{Transport: &http.Transport{MaxConnsPerHost: 0, MaxIdleConnsPerHost: 200, WriteBufferSize: 64 << 10}}
	defer client.CloseIdleConnections()
	heap := func() int64 {
		s := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}}
		metrics.Read(s)
		return int64(s[0].Value.Uint64())
	}
	runtime.GC()
	before, peak := heap(), int64(0)
	var mu sync.Mutex
	codes := map[int]int{}
	var wg sync.WaitGroup
	const rounds = 3
	send := func(size int64) {
		for range rounds {
			r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, server.URL, io.LimitReader(spaces{}, size))
			if err != nil {
				t.Error(err)
				return
			}
			r.ContentLength = size
			r.Header.Set("Content-Type", "application/json")
			r.Header.Set("X-GitHub-Event", "push")
			r.Header.Set(github.SignatureHeader, "sha256="+strings.Repeat("00", 32))
			resp, err := client.Do(r)
			if err != nil {
				continue // refused before all of it was sent
			}
			_ = resp.Body.Close()
			mu.Lock()
			codes[resp.StatusCode]++
			mu.Unlock()
		}
	}
	for range 8 {
		wg.Go(func() { send(24 << 20) })
	}
	for range 130 {
		wg.Go(func() { send(1 << 20) })
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		wg.Wait()
	}()
	for tick := time.NewTicker(time.Millisecond); ; {
		select {
		case <-ended:
			tick.Stop()
			t.Logf("8 senders of 24 MiB and 130 of 1 MiB, %d times each: at most %d MiB of heap, %d MiB before; answers %v", rounds, peak>>20, before>>20, codes)
			if peak > 150<<20 {
				t.Errorf("%d MiB of heap were used", peak>>20)
			}
			if codes[401] == 0 {
				t.Error("none arrived")
			}
			return
		case <-tick.C:
			peak = max(peak, heap())
		}
	}
}

// waiting gives one byte and then nothing until it breaks off.
type waiting struct {
	begun   chan<- struct{}
	release <-chan struct{}
	given   bool
}

func (w *waiting) Read(p []byte) (int, error) {
	if !w.given {
		w.given = true
		p[0] = ' '
		return 1, nil
	}
	w.begun <- struct{}{}
	<-w.release
	return 0, io.ErrUnexpectedEOF
}

// TestExamples sends every example that GitHub's octokit publishes, signed.
func TestExamples(t *testing.T) {
	var examples map[string][]json.RawMessage
	githubtest.Schema(t, "examples.json", &examples)
	n := 0
	for event, bodies := range examples {
		for i, body := range bodies {
			n++
			c := &commands{}
			h, _ := intake(t, c)
			rec := post(h, delivery(event, body))
			if rec.Code/100 != 2 {
				t.Errorf("%s %d: answered %d %s", event, i, rec.Code, rec.Body)
			}
			if len(c.got)+len(c.buttons) > 0 { // all nine issue_comment examples are on issues, and no check run is Sluice's
				t.Errorf("%s %d: acted on %+v %+v", event, i, c.got, c.buttons)
			}
			if action := actionOf(body); len(c.closed) > 0 && (event != "pull_request" || action != "closed") {
				t.Errorf("%s %d, %s: acted on %+v", event, i, action, c.closed)
			}
		}
	}
	if n != 329 {
		t.Errorf("%d examples, want the 329 that are published", n)
	}

	// The same comments, as if on a pull request.
	acted := 0
	for i, body := range examples["issue_comment"] {
		var e map[string]any
		if err := json.Unmarshal(body, &e); err != nil {
			t.Fatal(err)
		}
		e["issue"].(map[string]any)["pull_request"] = map[string]any{"url": "https://api.github.com/repos/x/y/pulls/1"}
		e["comment"].(map[string]any)["body"] = "/status"
		b, err := json.Marshal(e)
		if err != nil {
			t.Fatal(err)
		}
		c := &commands{receipt: chatops.Receipt{Commands: 1}}
		h, _ := intake(t, c)
		rec := post(h, delivery("issue_comment", b))
		if rec.Code != 202 {
			t.Errorf("issue_comment %d on a pull request: %d %s", i, rec.Code, rec.Body)
		}
		if want := e["action"] == "created"; (len(c.got) == 1) != want {
			t.Errorf("issue_comment %d, %v: acted on %v", i, e["action"], c.got)
		}
		acted += len(c.got)
	}
	if acted != 5 {
		t.Errorf("acted on %d comments, want the 5 that were created", acted)
	}
}

func actionOf(body []byte) string {
	var e struct{ Action string }
	_ = json.Unmarshal(body, &e) // an event without one
	return e.Action
}

// TestEventsAreGitHubs holds the deliveries that tests make against GitHub's schema.
func TestEventsAreGitHubs(t *testing.T) {
	var schema any
	githubtest.Schema(t, "webhooks.schema.json", &schema)
	compiler := jsonschema.NewCompiler()
	if err := compiler.AddResource("webhooks.json", schema); err != nil {
		t.Fatal(err)
	}
	for name, body := range map[string][]byte{
		"issue_comment$created":      githubtest.CommentEvent(comment()),
		"check_run$requested_action": githubtest.ButtonEvent(button(), "models/fraud/pr-41-3f9c2ab"),
		"check_run$rerequested":      githubtest.ButtonEvent(button(), "models/fraud/pr-41-3f9c2ab", githubtest.Rerequested),
		"pull_request$closed":        githubtest.ClosedEvent(closed(true)),
	} {
		compiled, err := compiler.Compile("webhooks.json#/definitions/" + name)
		if err != nil {
			t.Fatal(err)
		}
		var event any
		if err := json.Unmarshal(body, &event); err != nil {
			t.Fatal(err)
		}
		if err := compiled.Validate(event); err != nil {
			t.Errorf("GitHub would not send this %s: %v", name, err)
		}
	}
}

func button() chatops.Button {
	return chatops.Button{
		Digest: "11111111", Repository: chatops.Repository{ID: 7, Owner: "acme", Name: "fraud-model", Installation: 3}, PullRequest: 41,
		Sender: "alice", SenderID: 77, Action: chatops.Promote, Head: strings.Repeat("c", 40), Endpoint: rollout.Key{Namespace: "models", Name: "fraud"},
	}
}

func closed(merged bool) chatops.Closed {
	return chatops.Closed{
		Repository: chatops.Repository{ID: 7, Owner: "acme", Name: "fraud-model", Installation: 3}, PullRequest: 41, Head: strings.Repeat("c", 40),
		Merged: merged, By: "alice", At: time.Date(2026, 11, 23, 10, 0, 0, 0, time.UTC),
	}
}

func TestIntakePassesButtonsAndClosedPullRequests(t *testing.T) {
	c := &commands{receipt: chatops.Receipt{Commands: 1}}
	h, _ := intake(t, c)
	var learnt []chatops.Repository
	h.(*github.Intake).OnRepository = func(r chatops.Repository) { learnt = append(learnt, r) }
	for _, r := range []*http.Request{
		delivery("check_run", githubtest.ButtonEvent(button(), "models/fraud/pr-41-3f9c2ab")),
		delivery("pull_request", githubtest.ClosedEvent(closed(true))),
		delivery("pull_request", githubtest.ClosedEvent(closed(false))),
	} {
		if rec := post(h, r); rec.Code != 202 || !strings.Contains(rec.Body.String(), `"recorded"`) {
			t.Errorf("answered %d %s", rec.Code, rec.Body)
		}
	}
	// Its name is made of what is signed, whatever the delivery calls itself.
	if len(c.buttons) != 1 {
		t.Fatalf("%d buttons", len(c.buttons))
	}
	if got := &c.buttons[0]; len(got.Digest) != 40 || time.Since(got.Shown) > time.Minute {
		t.Errorf("digest %q, shown %s", got.Digest, got.Shown)
	} else {
		got.Digest, got.Shown = button().Digest, button().Shown
	}
	if diff := cmp.Diff([]chatops.Button{button()}, c.buttons); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]chatops.Closed{closed(true), closed(false)}, c.closed); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if len(learnt) != 3 || learnt[0] != button().Repository {
		t.Errorf("learnt %v", learnt)
	}
	for _, code := range []int{503, 500} {
		c.err = map[int]error{503: chatops.ErrBusy, 500: errors.New("disk")}[code]
		if rec := post(h, delivery("check_run", githubtest.ButtonEvent(button(), "models/fraud/v"))); rec.Code != code {
			t.Errorf("answered %d, want %d", rec.Code, code)
		}
	}
}

func TestIntakeIgnoresOtherChecksAndPullRequests(t *testing.T) {
	set := func(path string, value any) func(map[string]any) {
		return func(e map[string]any) {
			keys := strings.Split(path, ".")
			for _, k := range keys[:len(keys)-1] {
				e = e[k].(map[string]any)
			}
			e[keys[len(keys)-1]] = value
		}
	}
	const ours = "models/fraud/v"
	for name, r := range map[string]*http.Request{
		"created":               delivery("check_run", githubtest.ButtonEvent(button(), ours, set("action", "created"))),
		"another's check":       delivery("check_run", githubtest.ButtonEvent(button(), "lint")),
		"a path in its id":      delivery("check_run", githubtest.ButtonEvent(button(), "../fraud/v")),
		"a bot":                 delivery("check_run", githubtest.ButtonEvent(button(), ours, set("sender", map[string]any{"login": "x[bot]", "id": 5, "type": "Bot"}))),
		"no commit":             delivery("check_run", githubtest.ButtonEvent(button(), ours, set("check_run.head_sha", "main"))),
		"no delivery":           delivery("check_run", githubtest.ButtonEvent(button(), ours), without("X-GitHub-Delivery")),
		"a path for a delivery": delivery("check_run", githubtest.ButtonEvent(button(), ours), header("X-GitHub-Delivery", "../../x")),
		"a path for an owner":   delivery("check_run", githubtest.ButtonEvent(button(), ours, set("repository.owner.login", "a/b"))),
		"of a fork":             delivery("pull_request", githubtest.ClosedEvent(closed(true), set("pull_request.head.repo", map[string]any{"id": 99}))),
		"without a head":        delivery("pull_request", githubtest.ClosedEvent(closed(true), set("pull_request.head.sha", "x"))),
		"without a time":        delivery("pull_request", githubtest.ClosedEvent(closed(true), set("pull_request.closed_at", nil))),
	} {
		c := &commands{}
		h, _ := intake(t, c)
		if rec := post(h, r); rec.Code != 202 || !strings.Contains(rec.Body.String(), `"ignored"`) || len(c.buttons)+len(c.closed) != 0 {
			t.Errorf("%s: answered %d %s, passed on %v %v", name, rec.Code, rec.Body, c.buttons, c.closed)
		}
	}
}

// TestIntakeTellsOfReruns: of our own App's check runs only, and it commands nothing.
func TestIntakeTellsOfReruns(t *testing.T) {
	run := func(e map[string]any) map[string]any { return e["check_run"].(map[string]any) }
	app, ours := asApp(t, fake(t)), "models/fraud/pr-41-3f9c2ab"
	for name, tc := range map[string]struct {
		self     github.Self
		external string
		edit     func(map[string]any)
		want     int
	}{
		"ours":              {app, ours, func(map[string]any) {}, 1},
		"by a bot":          {app, ours, func(e map[string]any) { e["sender"] = map[string]any{"login": "x[bot]", "id": 5, "type": "Bot"} }, 1},
		"another App's":     {app, ours, func(e map[string]any) { run(e)["app"] = map[string]any{"id": githubtest.AppID + 1} }, 0},
		"nobody's":          {app, ours, func(e map[string]any) { run(e)["app"] = nil }, 0},
		"another check":     {app, "lint", func(map[string]any) {}, 0},
		"of no commit":      {app, ours, func(e map[string]any) { run(e)["head_sha"] = "main" }, 0},
		"with a token":      {client(t, fake(t)), ours, func(e map[string]any) { run(e)["app"] = map[string]any{"id": 0} }, 0},
		"as nobody we know": {nil, ours, func(map[string]any) {}, 0},
	} {
		c := &commands{}
		h, _ := intake(t, c)
		in, n := h.(*github.Intake), 0
		in.Self = tc.self
		in.OnRerun = func(repository int64, commit string, endpoint rollout.Key) {
			if n++; repository != button().Repository.ID || commit != button().Head || endpoint != button().Endpoint {
				t.Errorf("%s: told of %d, %s, %s", name, repository, commit, endpoint)
			}
		}
		rec := post(h, delivery("check_run", githubtest.ButtonEvent(button(), tc.external, githubtest.Rerequested, tc.edit)))
		if rec.Code != 202 || n != tc.want || len(c.buttons) > 0 {
			t.Errorf("%s: answered %d %s, told %d times, passed on %v", name, rec.Code, rec.Body, n, c.buttons)
		}
	}
}

// TestIntakeSeesWhoTouchesReports: a report of ours that somebody else edited or deleted is looked at again; our own
// edits, which GitHub tells of as well, and what others write in the form of a report are not.
func TestIntakeSeesWhoTouchesReports(t *testing.T) {
	body := "a report\n" + report.Mark{Namespace: "models", Endpoint: "fraud"}.String()
	gh := fake(t)
	person := func(login string) map[string]any {
		return map[string]any{"login": login, "id": gh.AccountID(login), "type": "User"}
	}
	bot := func(login string) map[string]any { return map[string]any{"login": login, "id": 5, "type": "Bot"} }
	alice := person("alice")
	for as, self := range map[string]struct {
		client *github.Client
		who    map[string]any
	}{
		"App": {asApp(t, gh), bot(githubtest.AppLogin)}, "token": {client(t, gh), person(githubtest.Robot)},
	} {
		at := repo
		if as == "App" {
			at.Installation = githubtest.Installation
		}
		if self.client.IsSelf("", "", 0) || self.client.IsSelf(self.who["login"].(string), "User", 0) {
			t.Errorf("%s: anybody is ourselves before GitHub was asked", as)
		}
		if _, err := self.client.FindComment(t.Context(), at, 41, 0, rollout.Key{Namespace: "models", Name: "fraud"}); err != nil { // it knows who it is then
			t.Fatal(err)
		}
		for name, tc := range map[string]struct {
			action         string
			author, sender map[string]any
			body, from     string
			want           int
		}{
			"edited by somebody":                 {"edited", self.who, alice, body, "", 1},
			"deleted by somebody":                {"deleted", self.who, alice, body, "", 1},
			"its mark edited away":               {"edited", self.who, alice, "mine", body, 1},
			"edited by ourselves":                {"edited", self.who, self.who, body, body, 0},
			"deleted by ourselves":               {"deleted", self.who, self.who, body, "", 0},
			"edited by another bot":              {"edited", self.who, bot("lint[bot]"), body, "", 0},
			"another comment of ours":            {"edited", self.who, alice, "mine", "", 0},
			"somebody's own in the same form":    {"edited", alice, alice, body, "", 0},
			"somebody's own, deleted by another": {"deleted", alice, person("bob"), body, "", 0},
			"one that is called as we are":       {"edited", map[string]any{"login": githubtest.Robot, "id": 6, "type": "User"}, alice, body, "", 0},
			"an App's user that is called so":    {"edited", map[string]any{"login": githubtest.AppLogin, "id": 6, "type": "User"}, alice, body, "", 0},
		} {
			h, _ := intake(t, &commands{})
			in, n := h.(*github.Intake), 0
			in.Self = self.client
			in.OnTouched = func(repository int64, number int) {
				if n++; repository != comment().Repository.ID || number != comment().PullRequest {
					t.Errorf("%s, %s: told of %d, %d", as, name, repository, number)
				}
			}
			x := comment()
			x.Body = tc.body
			rec := post(h, delivery("issue_comment", githubtest.CommentEvent(x, func(e map[string]any) {
				e["action"], e["sender"] = tc.action, tc.sender
				e["comment"].(map[string]any)["user"] = tc.author
				if tc.from != "" {
					e["changes"] = map[string]any{"body": map[string]any{"from": tc.from}}
				}
			})))
			if rec.Code != 202 || n != tc.want {
				t.Errorf("%s, %s: answered %d %s, told %d times", as, name, rec.Code, rec.Body, n)
			}
		}
	}
}

func FuzzIntake(f *testing.F) {
	f.Add("issue_comment", githubtest.CommentEvent(comment()))
	f.Add("check_run", githubtest.ButtonEvent(button(), "models/fraud/v"))
	f.Add("pull_request", githubtest.ClosedEvent(closed(true)))
	f.Add("ping", []byte(`{}`))
	if os.Getenv(githubtest.SchemasVariable) != "" {
		var examples map[string][]json.RawMessage
		githubtest.Schema(f, "examples.json", &examples)
		for event, bodies := range examples {
			if strings.HasPrefix(event, "issue") || event == "check_run" || event == "pull_request" {
				f.Add(event, []byte(bodies[0]))
			}
		}
	}
	f.Fuzz(func(t *testing.T, event string, body []byte) {
		c := &commands{receipt: chatops.Receipt{Commands: 1}}
		h, _ := intake(t, c)
		rec := post(h, delivery(event, body))
		if rec.Code >= 500 {
			t.Fatalf("answered %d", rec.Code)
		}
		for _, got := range c.got {
			if got.ID <= 0 || got.Repository.ID <= 0 || got.PullRequest <= 0 || got.AuthorID <= 0 || strings.ContainsAny(got.Author+got.Repository.Owner+got.Repository.Name, "/?#%") {
				t.Fatalf("passed on %+v", got)
			}
		}
		for _, b := range c.buttons {
			if b.Repository.ID <= 0 || b.SenderID <= 0 || len(b.Head) < 40 || strings.ContainsAny(b.Sender+b.Repository.Owner+b.Repository.Name+b.Digest, "/?#%") {
				t.Fatalf("passed on %+v", b)
			}
		}
		for _, x := range c.closed {
			if x.Repository.ID <= 0 || x.PullRequest <= 0 || len(x.Head) < 40 || x.At.IsZero() || strings.ContainsAny(x.By+x.Repository.Owner+x.Repository.Name, "/?#%") {
				t.Fatalf("passed on %+v", x)
			}
		}
		if len(c.got) > 0 && event != "issue_comment" || len(c.buttons) > 0 && event != "check_run" || len(c.closed) > 0 && event != "pull_request" {
			t.Fatalf("acted on a %s", event)
		}
	})
}

// A button's name is made of the signed body: told of again under another GUID, it is the same.
func TestButtonUnderAnotherGUID(t *testing.T) {
	c := &commands{receipt: chatops.Receipt{Commands: 1}}
	h, _ := intake(t, c)
	body := githubtest.ButtonEvent(button(), "models/fraud/v")
	for _, guid := range []string{"11111111-2222-3333-4444-555555555555", "99999999-2222-3333-4444-555555555555"} {
		r := delivery("check_run", body)
		r.Header.Set("X-GitHub-Delivery", guid)
		if rec := post(h, r); rec.Code != 202 {
			t.Fatalf("answered %d %s", rec.Code, rec.Body)
		}
	}
	if len(c.buttons) != 2 || c.buttons[0].Digest != c.buttons[1].Digest {
		t.Errorf("%+v", c.buttons)
	}
}
