package github_test

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/sluice-dev/sluice/pkg/chatops"
	"github.com/sluice-dev/sluice/pkg/github"
	"github.com/sluice-dev/sluice/pkg/github/githubtest"
	"github.com/sluice-dev/sluice/rollout"
)

func app(t *testing.T, gh *githubtest.Server) *github.Client {
	t.Helper()
	c, err := github.NewClient(github.ClientOptions{BaseURL: gh.URL, AppID: githubtest.AppID, AppKey: appKey(t)})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// TestHookLog reads the App's record and, with a token, that of a repository's hook.
func TestHookLog(t *testing.T) {
	for name, open := range map[string]func(*githubtest.Server) (*github.HookLog, error){
		"App": func(gh *githubtest.Server) (*github.HookLog, error) { return app(t, gh).HookLog(github.Hook{}) },
		"token": func(gh *githubtest.Server) (*github.HookLog, error) {
			h, err := github.ParseHook("acme/fraud-model/1")
			if err != nil {
				return nil, err
			}
			return client(t, gh).HookLog(h)
		},
	} {
		t.Run(name, func(t *testing.T) {
			gh := fake(t)
			l, err := open(gh)
			if err != nil {
				t.Fatal(err)
			}
			if page, next, err := l.List(t.Context(), ""); err != nil || len(page) != 0 || next != "" {
				t.Errorf("an empty record: %v, %q, %v", page, next, err)
			}
			var want []githubtest.Attempt
			for i := range 250 {
				want = append(want, gh.Miss(i%2*502, "star", []byte(`{"action":"created","repository":{"id":7},"installation":{"id":3}}`)))
			}
			gh.AddFault(githubtest.Fault{Path: "deliveries", Status: 404, Times: 1}) // GitHub is eventually consistent
			var got []github.Delivery
			sizes, cursor := "", ""
			for {
				page, next, err := l.List(t.Context(), cursor)
				if err != nil {
					t.Fatal(err)
				}
				got = append(got, page...)
				sizes += fmt.Sprint(len(page), " ")
				if cursor = next; next == "" {
					break
				}
			}
			if sizes != "100 100 50 " {
				t.Fatalf("pages of %s", sizes)
			}
			for i, d := range got {
				w := want[len(want)-1-i]
				if d.ID != w.ID || d.GUID != w.GUID || d.Event != "star" || d.Action != "created" || d.StatusCode != w.Code || d.RepositoryID != 7 || d.DeliveredAt.Sub(w.At).Abs() > time.Millisecond {
					t.Fatalf("delivery %d is %+v, want %+v", i, d, w)
				}
			}
			body, err := l.Payload(t.Context(), want[3].ID)
			if err != nil || string(body) != string(want[3].Body) {
				t.Errorf("payload %s, %v", body, err)
			}
			if _, err := l.Payload(t.Context(), 5); err == nil {
				t.Error("a payload of no delivery")
			}
			gh.SetHook("", "")
			if err := l.Redeliver(t.Context(), want[3].ID); err != nil {
				t.Errorf("redeliver: %v", err)
			}
			eventually(t, "it is delivered again", func() bool {
				all := gh.Attempts()
				last := all[len(all)-1]
				return len(all) == 251 && last.GUID == want[3].GUID && last.ID != want[3].ID && last.Redelivery && last.Code == 502
			})
		})
	}
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(15 * time.Second); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("not within 15 s: %s", what)
}

func TestHookLogIsRefused(t *testing.T) {
	gh := fake(t)
	hook := github.Hook{Owner: "acme", Name: "fraud-model", ID: 1}
	for name, open := range map[string]func() (*github.HookLog, error){
		"a token without a hook": func() (*github.HookLog, error) { return client(t, gh).HookLog(github.Hook{}) },
		"an App with one":        func() (*github.HookLog, error) { return app(t, gh).HookLog(hook) },
	} {
		var e *rollout.Error
		if _, err := open(); !errors.As(err, &e) || e.Hint == "" {
			t.Errorf("%s: %v, want a refusal with a way out", name, err)
		}
	}
	for _, bad := range []string{"acme/fraud-model", "acme/fraud-model/", "acme/fraud-model/x", "acme/fraud-model/0", "acme/../1", "a/b/c/1", "acme/fraud model/1", "//1"} {
		if h, err := github.ParseHook(bad); err == nil {
			t.Errorf("%q is %+v", bad, h)
		}
	}
	if h, err := github.ParseHook(""); err != nil || h != (github.Hook{}) {
		t.Errorf("the App's: %+v, %v", h, err)
	}
	// An installation's token may not see the App's record.
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, gh.URL+"/app/hook/deliveries", nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+githubtest.Token)
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusUnauthorized {
		t.Errorf("a token sees the App's deliveries: %d", resp.StatusCode)
	}
}

// TestRestFor: GitHub is left alone for as long as it says.
func TestRestFor(t *testing.T) {
	now := time.Now()
	for name, tc := range map[string]struct {
		fault githubtest.Fault
		want  time.Duration
	}{
		"429 with a wait":          {githubtest.SecondaryLimit(429, 7200), 2 * time.Hour},
		"403 with a wait":          {githubtest.SecondaryLimit(403, 7200), 2 * time.Hour},
		"a short wait":             {githubtest.SecondaryLimit(429, 90), 90 * time.Second},
		"the hour's limit":         {githubtest.Fault{Status: 403, Header: map[string]string{"X-RateLimit-Remaining": "0", "X-RateLimit-Limit": "5000", "X-RateLimit-Reset": fmt.Sprint(now.Add(30 * time.Minute).Unix())}}, 30 * time.Minute},
		"the hour's limit, 429":    {githubtest.Fault{Status: 429, Header: map[string]string{"X-RateLimit-Remaining": "0", "X-RateLimit-Limit": "5000", "X-RateLimit-Reset": fmt.Sprint(now.Add(30 * time.Minute).Unix())}}, 30 * time.Minute},
		"forbidden":                {githubtest.Fault{Status: 403}, time.Minute},
		"unauthorized":             {githubtest.Fault{Status: 401}, time.Minute},
		"something else":           {githubtest.Fault{Status: 500}, 0},
		"a wait that is no number": {githubtest.Fault{Status: 429, Header: map[string]string{"Retry-After": "soon"}}, time.Minute},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			gh := fake(t)
			l, err := app(t, gh).HookLog(github.Hook{})
			if err != nil {
				t.Fatal(err)
			}
			gh.AddFault(tc.fault)
			_, _, err = l.List(t.Context(), "")
			if err == nil {
				t.Fatal("no error")
			}
			if got := github.RestFor(err, now); tc.want == 0 && got != 0 || (got-tc.want).Abs() > 5*time.Second {
				t.Errorf("%v: rest for %s, want %s", err, got, tc.want)
			}
		})
	}
}

// TestForget: an installation that is gone gets a new token when it is back.
func TestForget(t *testing.T) {
	gh := fake(t)
	gh.SetPermission("acme/fraud-model", "alice", "write")
	c := app(t, gh)
	r := repo
	r.Installation = githubtest.Installation
	ask := func() {
		t.Helper()
		if _, err := c.Permission(t.Context(), r, "alice", gh.AccountID("alice")); err != nil {
			t.Fatal(err)
		}
	}
	c.Learn(r)
	ask()
	ask()
	if n := gh.CountCalls("POST", "/access_tokens"); n != 1 {
		t.Fatalf("%d tokens", n)
	}
	c.Forget(5)
	ask()
	if n := gh.CountCalls("POST", "/access_tokens"); n != 1 {
		t.Fatalf("another installation was forgotten, and there are %d tokens", n)
	}
	if _, err := c.Repository(t.Context(), r.ID); err != nil || gh.CountCalls("GET", "/app/installations") != 0 {
		t.Errorf("what was learnt is asked for: %v", err)
	}
	c.Forget(githubtest.Installation)
	ask()
	if n := gh.CountCalls("POST", "/access_tokens"); n != 2 {
		t.Errorf("%d tokens, want another one", n)
	}
	if _, err := c.Repository(t.Context(), r.ID); err != nil || gh.CountCalls("GET", "/app/installations") != 1 {
		t.Errorf("what was forgotten is not asked for: %v", err)
	}
}

// robot is the account that a token belongs to.
type robot int64

func (r robot) IsSelf(_, _ string, id int64) bool { return id == int64(r) }

func (robot) IsApp(int64) bool { return false }

// TestIntakeTells: events that command nothing say where something happened and where repositories are.
func TestIntakeTells(t *testing.T) {
	at := `"repository":{"id":7,"name":"fraud-model","owner":{"login":"acme"}},"installation":{"id":3},"sender":{"login":"alice","id":77,"type":"User"}`
	const commit = "cccccccccccccccccccccccccccccccccccccccc"
	run := func(pulls string) string {
		return `"workflow_run":{"head_sha":"` + commit + `","pull_requests":[` + pulls + `]}`
	}
	ours, others := `{"number":41,"base":{"repo":{"id":7}}}`, `{"number":9,"base":{"repo":{"id":8}}}`
	pull := func(action, head string) string {
		return `{"action":"` + action + `","pull_request":{"number":41,"head":{"sha":"` + commit + `","repo":{"id":` + head + `}}},` + at + `}`
	}
	for name, tc := range map[string]struct {
		event, body string
		want        string // what was told
	}{
		"opened":                           {"pull_request", pull("opened", "7"), "learn 7; active 7 41 ; "},
		"pushed to":                        {"pull_request", pull("synchronize", "7"), "learn 7; active 7 41 ; "},
		"reopened":                         {"pull_request", pull("reopened", "7"), "learn 7; active 7 41 ; "},
		"labelled":                         {"pull_request", pull("labeled", "7"), "learn 7; "},
		"pushed to in a fork":              {"pull_request", pull("synchronize", "99"), "learn 7; "},
		"a workflow that ended":            {"workflow_run", `{"action":"completed",` + run(others+","+ours) + `,` + at + `}`, "learn 7; active 7 41 ; "},
		"a workflow of a commit":           {"workflow_run", `{"action":"completed",` + run("") + `,` + at + `}`, "learn 7; active 7 0 " + commit + "; "},
		"a workflow that began":            {"workflow_run", `{"action":"requested",` + run(ours) + `,` + at + `}`, "learn 7; "},
		"a workflow without itself":        {"workflow_run", `{"action":"completed",` + at + `}`, "learn 7; "},
		"a workflow with many":             {"workflow_run", `{"action":"completed",` + run(strings.Repeat(ours+",", 99)+ours) + `,` + at + `}`, "learn 7; " + strings.Repeat("active 7 41 ; ", 10)},
		"a deployment by a workflow":       {"deployment_status", `{"deployment":{"sha":"` + commit + `","task":"deploy"},"workflow_run":{"pull_requests":[` + ours + `]},` + at + `}`, "learn 7; active 7 41 ; "},
		"a deployment by an API":           {"deployment_status", `{"deployment":{"sha":"` + commit + `","task":"deploy"},"workflow_run":null,` + at + `}`, "learn 7; active 7 0 " + commit + "; "},
		"a deployment of ours by a person": {"deployment_status", `{"deployment":{"sha":"` + commit + `","task":"sluice"},` + at + `}`, "learn 7; active 7 0 " + commit + "; "},
		"our own deployment":               {"deployment_status", `{"deployment":{"sha":"` + commit + `","task":"sluice"},` + strings.Replace(at, `"User"`, `"Bot"`, 1) + `}`, "learn 7; "},
		"our own deployment, with a token": {"deployment_status", `{"deployment":{"sha":"` + commit + `","task":"sluice"},` + strings.Replace(at, `77`, `78`, 1) + `}`, "learn 7; "},
		"a deployment of no commit":        {"deployment_status", `{"deployment":{"sha":"../x","task":"deploy"},` + at + `}`, "learn 7; "},
		"a push":                           {"push", `{"ref":"refs/heads/main",` + at + `}`, "learn 7; "},
		"a push from a strange place":      {"push", `{"repository":{"id":7,"name":"a/b","owner":{"login":"acme"}}}`, ""},
		"installed":                        {"installation", `{"action":"created","installation":{"id":3},"repositories":[{"id":7,"full_name":"acme/fraud-model"},{"id":8,"full_name":"acme/x/y"},{"id":9}]}`, "learn 7; "},
		"uninstalled":                      {"installation", `{"action":"deleted","installation":{"id":3},"repositories":[{"id":7,"full_name":"acme/fraud-model"}]}`, "gone 3; "},
		"suspended":                        {"installation", `{"action":"suspend","installation":{"id":3}}`, "gone 3; "},
		"more rights":                      {"installation", `{"action":"new_permissions_accepted","installation":{"id":3}}`, "gone 3; "},
		"no installation":                  {"installation", `{"action":"deleted"}`, ""},
		"another repository":               {"installation_repositories", `{"action":"added","installation":{"id":3},"repositories_added":[{"id":7,"full_name":"acme/fraud-model"}],"repositories_removed":[]}`, "learn 7; "},
		"one repository less":              {"installation_repositories", `{"action":"removed","installation":{"id":3},"repositories_removed":[{"id":7,"full_name":"acme/fraud-model"}]}`, "gone 3; "},
		"another event":                    {"star", `{"action":"created",` + at + `}`, ""},
	} {
		t.Run(name, func(t *testing.T) {
			c := &commands{}
			h, _ := intake(t, c)
			in := h.(*github.Intake)
			told := ""
			in.Self = robot(78)
			in.OnRepository = func(r chatops.Repository) {
				if r != (chatops.Repository{ID: 7, Owner: "acme", Name: "fraud-model", Installation: 3}) {
					t.Errorf("learnt %+v", r)
				}
				told += fmt.Sprintf("learn %d; ", r.ID)
			}
			in.OnInstallation = func(id int64) { told += fmt.Sprintf("gone %d; ", id) }
			in.OnActivity = func(id int64, number int, commit string) {
				told += fmt.Sprintf("active %d %d %s; ", id, number, commit)
			}
			rec := post(h, delivery(tc.event, []byte(tc.body)))
			if rec.Code != 202 || told != tc.want || len(c.got)+len(c.buttons)+len(c.closed) > 0 {
				t.Errorf("answered %d %s; told %q, want %q", rec.Code, rec.Body, told, tc.want)
			}
		})
	}
	for _, event := range []string{"pull_request", "workflow_run", "deployment_status", "push", "installation", "installation_repositories"} {
		h, _ := intake(t, &commands{})
		if rec := post(h, delivery(event, []byte(`[1]`))); rec.Code != 400 {
			t.Errorf("%s of another shape: %d", event, rec.Code)
		}
		if rec := post(h, delivery(event, []byte(`{}`))); rec.Code != 202 {
			t.Errorf("%s without anything: %d", event, rec.Code)
		}
	}
}
