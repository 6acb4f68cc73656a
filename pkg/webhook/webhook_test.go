package webhook_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sluice-dev/sluice/pkg/chatops"
	"github.com/sluice-dev/sluice/pkg/cluster"
	"github.com/sluice-dev/sluice/pkg/cluster/memory"
	"github.com/sluice-dev/sluice/pkg/github"
	"github.com/sluice-dev/sluice/pkg/github/githubtest"
	"github.com/sluice-dev/sluice/pkg/report"
	"github.com/sluice-dev/sluice/pkg/webhook"
	"github.com/sluice-dev/sluice/rollout"
)

const secret = "a secret for tests"

type running struct {
	url  string
	stop func() error
}

func run(t *testing.T, o webhook.Options) running {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	o.Listener = l
	o.Logger = slog.New(slog.NewTextHandler(t.Output(), nil))
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- webhook.Run(ctx, o) }()
	stop := sync.OnceValue(func() error {
		cancel()
		select {
		case err := <-done:
			return err
		case <-time.After(20 * time.Second):
			return errors.New("did not stop")
		}
	})
	t.Cleanup(func() { _ = stop() })
	return running{"http://" + l.Addr().String(), stop}
}

func get(t *testing.T, url string) (int, string) {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

func full(t *testing.T) (webhook.Options, *githubtest.Server, *memory.Store) {
	t.Helper()
	gh := githubtest.New(t)
	gh.AddRepository(7, "acme", "fraud")
	gh.AddPullRequest("acme/fraud", githubtest.PullRequest{Number: 41})
	gh.SetPermission("acme/fraud", "alice", "write")
	c, err := github.NewClient(github.ClientOptions{BaseURL: gh.URL, Token: githubtest.Token})
	if err != nil {
		t.Fatal(err)
	}
	store := memory.NewStore()
	e := &rollout.Endpoint{Metadata: rollout.Metadata{Namespace: "models", Name: "fraud"}}
	e, _, err = rollout.Apply(e, rollout.Request{ID: "set-up", At: time.Now().Add(-time.Hour)}, rollout.Deploy{
		Repositories: []int64{7},
		Version: rollout.Version{Name: "pr-41-0000001", Image: fmt.Sprintf("r.example/f@sha256:%064x", 1),
			Source: rollout.Source{RepositoryID: 7, PullRequest: 41, Commit: fmt.Sprintf("%040x", 1)}},
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := store.Create(t.Context(), e); err != nil {
		t.Fatal(err)
	}
	return webhook.Options{
		Roles: []webhook.Role{webhook.RoleGitHub, webhook.RoleAPI}, Store: store, Journal: memory.NewJournal(),
		Secrets: [][]byte{[]byte(secret)}, GitHub: c, Commands: chatops.Options{Overlap: 300 * time.Millisecond},
	}, gh, store
}

func deliver(t *testing.T, url string, c chatops.Comment) int {
	t.Helper()
	resp, err := http.DefaultClient.Do(githubtest.Delivery(url+"/webhooks/github", secret, "issue_comment", "guid", githubtest.CommentEvent(c)))
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	return resp.StatusCode
}

func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(15 * time.Second); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("not within 15 s: %s", what)
}

func TestFromDeliveryToReply(t *testing.T) {
	o, gh, store := full(t)
	r := run(t, o)
	c := gh.Comment(1, "acme/fraud", 41, "alice", "/hold please", time.Time{})
	if code := deliver(t, r.url, c); code != http.StatusAccepted {
		t.Fatalf("answered %d", code)
	}
	until(t, "a reply", func() bool { return len(gh.Comments("acme/fraud", 41)) == 1 })
	e, err := store.Get(t.Context(), rollout.Key{Namespace: "models", Name: "fraud"})
	if err != nil || e.Spec.Hold == nil || e.Spec.Hold.Reason != "please" {
		t.Errorf("hold %+v, %v", e.Spec.Hold, err)
	}
	if code := deliver(t, r.url, c); code != http.StatusOK {
		t.Errorf("again: answered %d, want 200", code)
	}
	if err := r.stop(); err != nil {
		t.Errorf("stop: %v", err)
	}
}

func TestPaths(t *testing.T) {
	o, _, store := full(t)
	r := run(t, o)
	until(t, "ready", func() bool { code, _ := get(t, r.url+"/readyz"); return code == 200 })
	if code, _ := get(t, r.url+"/healthz"); code != 200 {
		t.Errorf("healthz %d", code)
	}
	for path, want := range map[string]int{"/": 404, "/apis/sluice/v1/namespaces": 404, "/webhooks": 404, "/webhooks/github": 405, "/webhooks/github/x": 404} {
		code, body := get(t, r.url+path)
		var e rollout.Error
		if err := json.Unmarshal([]byte(body), &e); code != want || err != nil || e.Reason == "" || e.Message == "" || e.Hint == "" {
			t.Errorf("%s: %d %s, want %d and a refusal in JSON", path, code, body, want)
		}
	}
	store.SetFailure(errors.New("gone"))
	if code, body := get(t, r.url+"/readyz"); code != 503 || strings.Contains(body, "gone") {
		t.Errorf("readyz without a store: %d %s", code, body)
	}
	if code, _ := get(t, r.url+"/healthz"); code != 200 {
		t.Errorf("healthz without a store: %d", code)
	}
}

func TestAPIHandler(t *testing.T) {
	o, _, _ := full(t)
	o.API = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/panic" {
			panic("oh")
		}
		_, _ = io.WriteString(w, "api "+r.URL.Path)
	})
	r := run(t, o)
	if code, body := get(t, r.url+"/apis/sluice/v1/x"); code != 200 || body != "api /apis/sluice/v1/x" {
		t.Errorf("%d %s", code, body)
	}
	if code, body := get(t, r.url+"/panic"); code != 500 || !strings.Contains(body, "internal") {
		t.Errorf("a panic: %d %s", code, body)
	}
	if code, _ := get(t, r.url+"/healthz"); code != 200 {
		t.Errorf("healthz after a panic: %d", code)
	}
}

// TestSlowRequests: who sends neither a delivery nor, to the API, a token is not waited for.
func TestSlowRequests(t *testing.T) {
	o, _, _ := full(t)
	o.API = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusNotFound) })
	r := run(t, o)
	var wg sync.WaitGroup
	for _, head := range []string{
		"POST /apis/sluice/v1/token HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n",
		"PUT /webhooks/github HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
		"GET /healthz HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n",
		"GET /healthz HTTP/1.1\r\nHost:",
	} {
		wg.Go(func() {
			c, err := net.Dial("tcp", strings.TrimPrefix(r.url, "http://"))
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			began := time.Now()
			_, _ = io.WriteString(c, head)
			_ = c.SetReadDeadline(began.Add(10 * time.Second))
			if _, err := io.ReadAll(c); err != nil {
				t.Errorf("%q is waited for after %s: %v", head, time.Since(began), err)
			}
		})
	}
	wg.Wait()
}

func TestRefusesToStart(t *testing.T) {
	good, _, _ := full(t)
	for name, edit := range map[string]func(*webhook.Options){
		"no secret":       func(o *webhook.Options) { o.Secrets = nil },
		"an empty secret": func(o *webhook.Options) { o.Secrets = [][]byte{{}} },
		"no role":         func(o *webhook.Options) { o.Roles = nil },
		"no store":        func(o *webhook.Options) { o.Store = nil },
		"no journal":      func(o *webhook.Options) { o.Journal = nil },
		"no GitHub":       func(o *webhook.Options) { o.GitHub = nil },
		"no control":      func(o *webhook.Options) { o.Roles = append(slices.Clone(o.Roles), webhook.RoleControl) },
		"no listener":     func(o *webhook.Options) { _ = o.Listener.Close(); o.Listener = nil },
	} {
		t.Run(name, func(t *testing.T) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			o := good
			o.Listener = l
			edit(&o)
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			defer cancel()
			if err := webhook.Run(ctx, o); err == nil || ctx.Err() != nil {
				t.Fatalf("it ran: %v", err)
			} else if strings.Contains(name, "secret") && !strings.Contains(err.Error(), "secret") {
				t.Errorf("the error does not say what is missing: %v", err)
			}
			if c, err := net.Dial("tcp", l.Addr().String()); err == nil {
				_ = c.Close()
				t.Error("the listener is still open")
			}
		})
	}
}

func TestRoles(t *testing.T) {
	got, err := webhook.ParseRoles("github, api,control,api")
	if err != nil || !slices.Equal(got, []webhook.Role{webhook.RoleGitHub, webhook.RoleAPI, webhook.RoleControl}) {
		t.Errorf("%v, %v", got, err)
	}
	for _, bad := range []string{"", "admin", "github,,api"} {
		if _, err := webhook.ParseRoles(bad); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
}

// TestStopsInOrder: the server first, the control role last.
func TestStopsInOrder(t *testing.T) {
	o, gh, _ := full(t)
	var mu sync.Mutex
	var order []string
	note := func(s string) {
		mu.Lock()
		order = append(order, s)
		mu.Unlock()
	}
	begun := make(chan struct{})
	o.Roles = append(o.Roles, webhook.RoleControl)
	o.Control = func(ctx context.Context) error {
		<-ctx.Done()
		note("control")
		return nil
	}
	o.API = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		close(begun)
		time.Sleep(200 * time.Millisecond) // a request under way
		note("request")
		_, _ = io.WriteString(w, "done")
	})
	gh.AddFault(githubtest.Fault{Path: "/permission", Delay: 400 * time.Millisecond})
	r := run(t, o)
	c := gh.Comment(1, "acme/fraud", 41, "alice", "/hold", time.Time{})
	if code := deliver(t, r.url, c); code != http.StatusAccepted {
		t.Fatalf("answered %d", code)
	}
	answered := make(chan string, 1)
	go func() {
		_, body := get(t, r.url+"/slow")
		answered <- body
	}()
	<-begun
	if err := r.stop(); err != nil {
		t.Errorf("stop: %v", err)
	}
	if body := <-answered; body != "done" {
		t.Errorf("the request under way was answered %q", body)
	}
	// The command under way was seen through, its reply included, before the control role ended.
	if n := len(gh.Comments("acme/fraud", 41)); n != 1 {
		t.Errorf("%d replies at the end", n)
	}
	if !slices.Equal(order, []string{"request", "control"}) {
		t.Errorf("order %v", order)
	}
}

func TestPartThatFailsEndsAll(t *testing.T) {
	o, _, _ := full(t)
	o.Roles = append(o.Roles, webhook.RoleControl)
	o.Control = func(context.Context) error { return errors.New("no fleets") }
	r := run(t, o)
	until(t, "the server ends", func() bool {
		c, err := net.Dial("tcp", strings.TrimPrefix(r.url, "http://"))
		if err == nil {
			_ = c.Close()
		}
		return err != nil
	})
	if err := r.stop(); err == nil || !strings.Contains(err.Error(), "control: no fleets") {
		t.Errorf("run: %v", err)
	}
}

func TestControlAlone(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	ran := make(chan struct{})
	done := make(chan error, 1)
	go func() {
		done <- webhook.Run(ctx, webhook.Options{Roles: []webhook.Role{webhook.RoleControl}, Control: func(ctx context.Context) error {
			close(ran)
			<-ctx.Done()
			return nil
		}})
	}()
	<-ran
	cancel()
	if err := <-done; err != nil {
		t.Errorf("run: %v", err)
	}
}

// TestOwnEditsWithAToken: GitHub tells of the report's own edits too, and with a token as a user's; they cause no others.
func TestOwnEditsWithAToken(t *testing.T) {
	o, gh, store := full(t)
	o.Reports = report.Config{GitHub: o.GitHub.(*github.Client), Every: 300 * time.Millisecond, Gap: time.Millisecond}
	r := run(t, o)
	gh.SetHook(r.url+"/webhooks/github", secret)
	gh.Echo()
	edits := func() int { return gh.CountCalls(http.MethodPatch, "/issues/comments/") }
	looks := func() int { return gh.CountCalls(http.MethodGet, "/issues/comments/") }
	until(t, "the report", func() bool { return len(gh.Comments("acme/fraud", 41)) == 1 })
	began := time.Now()
	for n := 1; time.Since(began) < 2*time.Second; n++ { // the numbers move all the time
		e, err := store.Get(t.Context(), rollout.Key{Namespace: "models", Name: "fraud"})
		if err != nil {
			t.Fatal(err)
		}
		e.Status.Versions = []rollout.VersionStatus{{Name: e.Spec.Versions[0].Name, State: rollout.StateReady, Replicas: n, ReadyReplicas: n}}
		if _, err := store.UpdateStatus(t.Context(), e); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Millisecond)
	}
	if n, most := edits(), 2+int(time.Since(began)/o.Reports.Every); n < 2 || n > most {
		t.Errorf("%d edits in %s, want 2 to %d", n, time.Since(began), most)
	}
	if n := looks(); n > 0 {
		t.Errorf("looked %d times at what it wrote itself", n)
	}
	until(t, "word of the edits", func() bool {
		n := 0
		for _, a := range gh.Attempts() {
			if a.Code == http.StatusAccepted && a.Action == "edited" {
				n++
			}
		}
		return n == edits()
	})
	if err := r.stop(); err != nil {
		t.Errorf("stop: %v", err)
	}
}

// TestLifeOfAPullRequest: signed events of a pull request's life, as an App.
func TestLifeOfAPullRequest(t *testing.T) {
	const name, treated = "acme/fraud", "pr-42-0000002"
	for end, merged := range map[string]bool{"merged": true, "closed": false} {
		t.Run(end, func(t *testing.T) {
			o, gh, store := full(t)
			c, err := appClient(gh)
			if err != nil {
				t.Fatal(err)
			}
			o.GitHub, o.Commands.OnMerge = c, chatops.MergePromotes
			o.Reports = report.Config{GitHub: c, Every: 50 * time.Millisecond, Gap: time.Millisecond}
			gh.AddPullRequest(name, githubtest.PullRequest{Number: 42, Head: fmt.Sprintf("%040x", 2)})
			r := run(t, o)
			at := rollout.Key{Namespace: "models", Name: "fraud"}
			edit := func(id string, op rollout.Op) {
				t.Helper()
				if _, _, err := cluster.Edit(t.Context(), store, at, rollout.Request{ID: id, Actor: "ci", At: time.Now().Add(-time.Minute), Force: true}, func(*rollout.Endpoint) (rollout.Op, error) { return op, nil }); err != nil {
					t.Fatal(err)
				}
			}
			shows := func(text string) {
				t.Helper()
				until(t, "the comment says "+text, func() bool {
					all := gh.Comments(name, 42)
					return len(all) > 0 && strings.Contains(all[0].Body, text)
				})
			}
			check := func() string {
				var out string
				for _, k := range gh.CheckRuns(name) {
					if k.Head == fmt.Sprintf("%040x", 2) {
						out += k.Name + " " + k.Conclusion
					}
				}
				return out
			}
			send := func(event, guid string, body []byte) {
				t.Helper()
				resp, err := http.DefaultClient.Do(githubtest.Delivery(r.url+"/webhooks/github", secret, event, guid, body))
				if err != nil {
					t.Fatal(err)
				}
				_ = resp.Body.Close()
				if resp.StatusCode != http.StatusAccepted {
					t.Fatalf("%s: answered %d", event, resp.StatusCode)
				}
			}

			edit("deploy", rollout.Deploy{Version: rollout.Version{Name: treated, Image: fmt.Sprintf("r.example/f@sha256:%064x", 2), Source: rollout.Source{RepositoryID: 7, PullRequest: 42, Commit: fmt.Sprintf("%040x", 2)}}})
			shows("joined: no traffic yet")
			e, err := store.Get(t.Context(), at)
			if err != nil {
				t.Fatal(err)
			}
			for i := range e.Spec.Versions {
				e.Status.Versions = append(e.Status.Versions, rollout.VersionStatus{Name: e.Spec.Versions[i].Name, State: rollout.StateReady, Replicas: 2, ReadyReplicas: 2})
			}
			if _, err := store.UpdateStatus(t.Context(), e); err != nil {
				t.Fatal(err)
			}
			role := rollout.Treatment
			edit("treatment", rollout.Update{Version: treated, Type: &role})

			said := gh.Comment(1, name, 42, "alice", "/traffic 20", time.Time{})
			said.Repository.Installation = githubtest.Installation
			send("issue_comment", "guid-1", githubtest.CommentEvent(said))
			shows("held at 20 %")
			until(t, "the check", func() bool { return check() == "sluice/fraud action_required" })

			pressed := chatops.Button{Repository: said.Repository, Sender: "alice", SenderID: gh.AccountID("alice"), Action: chatops.Resume, Head: fmt.Sprintf("%040x", 2)}
			send("check_run", "guid-2", githubtest.ButtonEvent(pressed, "models/fraud/"+treated))
			shows("gets 20 %")

			for _, k := range gh.CheckRuns(name) {
				gh.Requeue(name, k.ID)
			}
			if got := check(); got != "sluice/fraud " {
				t.Errorf("the check is %q", got)
			}
			send("check_run", "guid-4", githubtest.ButtonEvent(pressed, "models/fraud/"+treated, githubtest.Rerequested))
			until(t, "the check, run again", func() bool { return check() == "sluice/fraud neutral" })

			gh.EditPullRequest(name, 42, func(pr *githubtest.PullRequest) { pr.State, pr.Merged = "closed", merged })
			send("pull_request", "guid-3", githubtest.ClosedEvent(chatops.Closed{Repository: said.Repository, PullRequest: 42, Head: fmt.Sprintf("%040x", 2), Merged: merged, By: "alice", At: time.Now()}))
			want, conclusion := "promoted: it is the control", "sluice/fraud success"
			if !merged {
				want, conclusion = "taken out: pull request closed", "sluice/fraud cancelled"
			}
			shows(want)
			if got := check(); got != conclusion {
				t.Errorf("the check is %s, want %s", got, conclusion)
			}
			if n := len(gh.Comments(name, 42)); n != 2 { // the report, and the reply to the comment
				t.Errorf("%d comments", n)
			}
			if err := r.stop(); err != nil {
				t.Errorf("stop: %v", err)
			}
		})
	}
}
