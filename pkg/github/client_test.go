package github_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sluice-dev/sluice/pkg/chatops"
	"github.com/sluice-dev/sluice/pkg/github"
	"github.com/sluice-dev/sluice/pkg/github/githubtest"
)

var repo = chatops.Repository{ID: 7, Owner: "acme", Name: "fraud-model"}

func fake(t *testing.T) *githubtest.Server {
	t.Helper()
	gh := githubtest.New(t)
	gh.AddRepository(repo.ID, repo.Owner, repo.Name)
	gh.AddPullRequest("acme/fraud-model", githubtest.PullRequest{Number: 41, Head: strings.Repeat("c", 40)})
	return gh
}

func client(t *testing.T, gh *githubtest.Server) *github.Client {
	t.Helper()
	c, err := github.NewClient(github.ClientOptions{BaseURL: gh.URL, Token: githubtest.Token})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestPermissions(t *testing.T) {
	gh := fake(t)
	c := client(t, gh)
	for role, want := range map[string]chatops.Permission{
		"admin": chatops.PermissionAdmin, "maintain": chatops.PermissionMaintain, "write": chatops.PermissionWrite,
		"triage": chatops.PermissionTriage, "read": chatops.PermissionRead, "none": chatops.PermissionNone,
		"custom:maintain": chatops.PermissionMaintain, "custom:write": chatops.PermissionWrite,
		"custom:triage": chatops.PermissionTriage, "custom:read": chatops.PermissionRead,
	} {
		login := "u-" + strings.ReplaceAll(role, ":", "-")
		gh.SetPermission("acme/fraud-model", login, role)
		got, err := c.Permission(t.Context(), repo, login, gh.AccountID(login))
		if err != nil || got != want {
			t.Errorf("%s: %q, %v; want %q", role, got, err, want)
		}
		wantMay := slices.Contains([]string{"admin", "maintain", "write", "custom:maintain", "custom:write"}, role)
		if got.AtLeast(chatops.PermissionWrite) != wantMay {
			t.Errorf("%s is write or better: %v", role, !wantMay)
		}
		if _, err := c.Permission(t.Context(), repo, login, 1); err == nil {
			t.Errorf("%s: another account's login was taken for it", role)
		}
	}
	if _, err := c.Permission(t.Context(), repo, "nobody", 5); err == nil {
		t.Error("an unknown user has a permission")
	}
}

// TestRoleNamedLikeABetterOne: a custom role may have any name; its base counts, and no more than GitHub sums it up to.
func TestRoleNamedLikeABetterOne(t *testing.T) {
	gh := fake(t)
	for body, want := range map[string]chatops.Permission{
		`{"permission":"read","role_name":"admin","user":{"id":5,"role_name":"admin"}}`:                                                              chatops.PermissionRead,
		`{"permission":"read","role_name":"maintain","user":{"id":5,"role_name":"maintain"}}`:                                                        chatops.PermissionRead,
		`{"permission":"read","user":{"id":5,"role_name":"x","permissions":{"admin":true,"maintain":true,"push":true,"triage":true,"pull":true}}}`:   chatops.PermissionTriage,
		`{"permission":"write","user":{"id":5,"role_name":"x","permissions":{"admin":true,"maintain":false,"push":true,"triage":true,"pull":true}}}`: chatops.PermissionWrite,
		`{"permission":"write","user":{"id":5,"role_name":"x","permissions":{"maintain":true,"push":false,"triage":true,"pull":true}}}`:              chatops.PermissionWrite,
		`{"permission":"none","user":{"id":5,"role_name":"x","permissions":{"maintain":true,"push":true,"triage":true,"pull":true}}}`:                chatops.PermissionNone,
		`{"permission":"write","user":{"id":5,"role_name":"x"}}`:                                                                                     chatops.PermissionWrite,
		`{"permission":"read","user":{"id":5,"role_name":"read","permissions":{"triage":true,"pull":true}}}`:                                         chatops.PermissionRead,
		`{"user":{"id":5,"role_name":"maintain"}}`:                                                                                                   chatops.PermissionMaintain,
		`{"user":{"id":5}}`:                      chatops.PermissionNone,
		`{"permission":"owner","user":{"id":5}}`: "owner",
	} {
		gh.ClearFaults()
		gh.AddFault(githubtest.Fault{Status: 200, Body: body})
		got, err := client(t, gh).Permission(t.Context(), repo, "x", 5)
		if err != nil || got != want {
			t.Errorf("%s: %q, %v; want %q", body, got, err, want)
		}
	}
}

func TestDirectory(t *testing.T) {
	gh := fake(t)
	c := client(t, gh)
	gh.AddTeamMember("acme", "ml-leads", "lea")
	for login, want := range map[string]bool{"lea": true, "alice": false} {
		if got, err := c.TeamMember(t.Context(), repo, "ml-leads", login); err != nil || got != want {
			t.Errorf("%s in the team: %v, %v", login, got, err)
		}
	}
	gh.SetFile("acme/fraud-model", "main", ".github/sluice.yaml", "a: b\n")
	gh.SetFile("acme/fraud-model", "main", "empty", "")
	gh.SetFile("acme/fraud-model", "main", "large", strings.Repeat("x", chatops.MaxPermissions+1))
	file := func(path string) string {
		b, err := c.File(t.Context(), repo, "main", path)
		switch {
		case err != nil:
			return "error"
		case b == nil:
			return "none"
		}
		return string(b)
	}
	for path, want := range map[string]string{".github/sluice.yaml": "a: b\n", "empty": "", "large": "error", "not/there": "none"} {
		if got := file(path); got != want {
			t.Errorf("%s: %q, want %q", path, got, want)
		}
	}
	// What may not be read looks like what is not there, until the branch is asked for.
	gh.AddFault(githubtest.Fault{Path: "/contents/", Status: http.StatusNotFound})
	if got := file(".github/sluice.yaml"); got != "error" {
		t.Errorf("without the right to read: %q", got)
	}
	gh.ClearFaults()
	gh.AddFault(githubtest.Fault{Status: http.StatusForbidden})
	if got := file(".github/sluice.yaml"); got != "error" {
		t.Errorf("refused: %q", got)
	}
	if is, err := c.TeamMember(t.Context(), repo, "ml-leads", "lea"); err == nil || is {
		t.Errorf("refused: member %v, %v", is, err)
	}
}

func TestPullRequests(t *testing.T) {
	gh := fake(t)
	c := client(t, gh)
	gh.AddFault(githubtest.Fault{Path: "/pulls/41", Status: 404, Times: 1}) // quite new
	want := chatops.PullRequest{RepositoryID: 7, HeadRepositoryID: 7, Head: strings.Repeat("c", 40), Base: "main", Default: "main"}
	if got, err := c.PullRequest(t.Context(), repo, 41); err != nil || got != want {
		t.Errorf("got %+v, %v; want %+v", got, err, want)
	}
	gh.EditPullRequest("acme/fraud-model", 41, func(pr *githubtest.PullRequest) { pr.HeadRepository = 99 })
	if got, err := c.PullRequest(t.Context(), repo, 41); err != nil || got.HeadRepositoryID != 99 {
		t.Errorf("a fork: %+v, %v", got, err)
	}
	gh.EditPullRequest("acme/fraud-model", 41, func(pr *githubtest.PullRequest) { pr.HeadRepository = -1 })
	if got, err := c.PullRequest(t.Context(), repo, 41); err != nil || got.HeadRepositoryID != 0 {
		t.Errorf("a deleted fork: %+v, %v", got, err)
	}
	began := len(gh.Calls())
	if _, err := c.PullRequest(t.Context(), repo, 999); err == nil {
		t.Error("a pull request that is not there was read")
	} else if n := len(gh.Calls()) - began; n != 3 {
		t.Errorf("asked %d times for what is not there, want 3", n)
	}
}

// TestHeadMoves: each reading says what the head is then.
func TestHeadMoves(t *testing.T) {
	gh := fake(t)
	c := client(t, gh)
	a, b := strings.Repeat("a", 40), strings.Repeat("b", 40)
	gh.EditPullRequest("acme/fraud-model", 41, func(pr *githubtest.PullRequest) { pr.Then = []string{a, b} })
	for _, want := range []string{strings.Repeat("c", 40), a, b, b} {
		if got, err := c.PullRequest(t.Context(), repo, 41); err != nil || got.Head != want {
			t.Errorf("head %.7s, %v; want %.7s", got.Head, err, want)
		}
	}
}

func TestQuestionsAreAskedAgain(t *testing.T) {
	gh := fake(t)
	c := client(t, gh)
	gh.SetPermission("acme/fraud-model", "alice", "write")
	gh.AddFault(githubtest.Fault{Path: "/permission", Status: 502, Times: 2})
	if got, err := c.Permission(t.Context(), repo, "alice", gh.AccountID("alice")); err != nil || got != chatops.PermissionWrite {
		t.Errorf("got %q, %v", got, err)
	}
	gh.AddFault(githubtest.Fault{Path: "/permission", Status: 500})
	_, err := c.Permission(t.Context(), repo, "alice", gh.AccountID("alice"))
	var temporary chatops.Temporary
	if !errors.As(err, &temporary) || !temporary.Temporary() {
		t.Errorf("500: %v, want a temporary error", err)
	}
	// Answers are not repeated here: the first may have arrived.
	gh.ClearFaults()
	gh.AddFault(githubtest.Fault{Method: http.MethodPost, Status: 502, Times: 1, After: true})
	if err := c.Reply(t.Context(), repo, 41, "hello"); !errors.As(err, &temporary) || !temporary.Temporary() {
		t.Errorf("a lost answer: %v, want a temporary error", err)
	}
	if n := len(gh.Comments("acme/fraud-model", 41)); n != 1 {
		t.Errorf("%d comments", n)
	}
	gh.ClearFaults()
	gh.AddFault(githubtest.Fault{Method: http.MethodPost, Status: 422})
	if err := c.Reply(t.Context(), repo, 41, "hello"); !errors.As(err, &temporary) || temporary.Temporary() {
		t.Errorf("422: %v, want an error that lasts", err)
	}
}

// TestSecondaryLimits are waited out, and the whole body is sent again.
func TestSecondaryLimits(t *testing.T) {
	for _, status := range []int{http.StatusForbidden, http.StatusTooManyRequests} {
		t.Run(fmt.Sprint(status), func(t *testing.T) {
			t.Parallel()
			gh := fake(t)
			f := githubtest.SecondaryLimit(status, 1)
			f.Times = 1
			gh.AddFault(f)
			began := time.Now()
			if err := client(t, gh).Reply(t.Context(), repo, 41, "hello"); err != nil {
				t.Fatal(err)
			}
			if d := time.Since(began); d < 900*time.Millisecond {
				t.Errorf("sent again after %s, want a second", d)
			}
			if got := gh.Comments("acme/fraud-model", 41); len(got) != 1 || got[0].Body != "hello" {
				t.Errorf("comments %v", got)
			}
		})
	}
	t.Run("too long to wait for", func(t *testing.T) {
		t.Parallel()
		gh := fake(t)
		gh.AddFault(githubtest.SecondaryLimit(http.StatusTooManyRequests, 3600))
		began := time.Now()
		err := client(t, gh).Reply(t.Context(), repo, 41, "hello")
		var temporary chatops.Temporary
		if !errors.As(err, &temporary) || !temporary.Temporary() || time.Since(began) > 10*time.Second {
			t.Errorf("after %s: %v, want a temporary error soon", time.Since(began), err)
		}
	})
	t.Run("the caller stops waiting", func(t *testing.T) {
		t.Parallel()
		gh := fake(t)
		gh.AddFault(githubtest.SecondaryLimit(http.StatusForbidden, 30))
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		defer cancel()
		began := time.Now()
		if err := client(t, gh).Reply(ctx, repo, 41, "hello"); err == nil || time.Since(began) > 10*time.Second {
			t.Errorf("after %s: %v", time.Since(began), err)
		}
	})
}

func TestReactions(t *testing.T) {
	gh := fake(t)
	c := client(t, gh)
	for _, r := range []chatops.Reaction{chatops.ReactionSeen, chatops.ReactionDone, chatops.ReactionRefused, chatops.ReactionDone} {
		if err := c.React(t.Context(), repo, 9, r); err != nil {
			t.Errorf("%s: %v", r, err)
		}
	}
	if got := gh.Reactions("acme/fraud-model", 9); !slices.Equal(got, []string{"-1", "eyes", "rocket"}) {
		t.Errorf("reactions %v", got)
	}
}

func appKey(t *testing.T) []byte {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)})
}

func TestApp(t *testing.T) {
	gh := fake(t)
	gh.SetPermission("acme/fraud-model", "alice", "write")
	c, err := github.NewClient(github.ClientOptions{BaseURL: gh.URL + "/", AppID: 3, AppKey: appKey(t)})
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for i := range 8 { // two installations, used at once
		wg.Go(func() {
			r := repo
			r.Installation = int64(1 + i%2)
			if _, err := c.Permission(t.Context(), r, "alice", gh.AccountID("alice")); err != nil {
				t.Errorf("installation %d: %v", r.Installation, err)
			}
		})
	}
	wg.Wait()
	if n := gh.CountCalls("POST", "/app/installations/"); n != 2 {
		t.Errorf("%d tokens were fetched for two installations", n)
	}
	if _, err := c.Permission(t.Context(), repo, "alice", 5); err == nil || !strings.Contains(err.Error(), "installation") {
		t.Errorf("without an installation: %v", err)
	}
}

func TestClientOptions(t *testing.T) {
	for name, o := range map[string]github.ClientOptions{
		"nobody":                      {},
		"token and App":               {Token: "x", AppID: 1, AppKey: []byte("k")},
		"an App without key":          {AppID: 1},
		"a key without App":           {AppKey: []byte("k")},
		"a key that is none":          {AppID: 1, AppKey: []byte("hush-hush")},
		"http elsewhere":              {Token: "hush-hush", BaseURL: "http://github.example/"},
		"no host":                     {Token: "hush-hush", BaseURL: "https:///x"},
		"another scheme":              {Token: "hush-hush", BaseURL: "file:///etc"},
		"a password in the address":   {Token: "hush-hush", BaseURL: "https://u:hush-hush@github.example/"},
		"a query in the address":      {Token: "hush-hush", BaseURL: "https://github.example/?x"},
		"an address that is not one":  {Token: "hush-hush", BaseURL: "http://[::1"},
		"loopback in a longer name":   {Token: "hush-hush", BaseURL: "http://localhost.evil.example"},
		"loopback as a user":          {Token: "hush-hush", BaseURL: "http://127.0.0.1@evil.example"},
		"an address of another range": {Token: "hush-hush", BaseURL: "http://128.0.0.1"},
	} {
		if _, err := github.NewClient(o); err == nil || strings.Contains(err.Error(), "hush-hush") {
			t.Errorf("%s: %v, want an error without secrets", name, err)
		}
	}
	for _, base := range []string{"", "https://ghe.example/api/v3", "http://localhost:8080", "http://[::1]:80/", "http://127.0.0.2"} {
		if _, err := github.NewClient(github.ClientOptions{Token: "x", BaseURL: base}); err != nil {
			t.Errorf("%q: %v", base, err)
		}
	}
}

// TestTokenStaysAtGitHub: a redirect to elsewhere is not followed with the token.
func TestTokenStaysAtGitHub(t *testing.T) {
	var mu sync.Mutex
	var leaked []string
	evil := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		mu.Lock()
		leaked = append(leaked, r.Header.Get("Authorization"))
		mu.Unlock()
	}))
	defer evil.Close()
	gh := fake(t)
	for _, status := range []int{301, 302, 307, 308} {
		gh.ClearFaults()
		gh.AddFault(githubtest.Fault{Status: status, Header: map[string]string{"Location": evil.URL + "/x"}})
		var log bytes.Buffer
		c, err := github.NewClient(github.ClientOptions{BaseURL: gh.URL, Token: githubtest.Token, Logger: slog.New(slog.NewTextHandler(&log, nil))})
		if err != nil {
			t.Fatal(err)
		}
		_, err = c.Permission(t.Context(), repo, "alice", 1)
		if err == nil {
			t.Errorf("%d: answered from elsewhere", status)
		}
		if err := c.Reply(t.Context(), repo, 41, "x"); err == nil {
			t.Errorf("%d: posted elsewhere", status)
		}
		if strings.Contains(fmt.Sprint(err)+log.String(), githubtest.Token) {
			t.Error("the token shows")
		}
	}
	if len(leaked) > 0 {
		t.Errorf("another host was asked, with %q", leaked)
	}
}
