package github_test

import (
	"errors"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sluice-dev/sluice/pkg/chatops"
	"github.com/sluice-dev/sluice/pkg/github"
	"github.com/sluice-dev/sluice/pkg/github/githubtest"
	"github.com/sluice-dev/sluice/pkg/report"
	"github.com/sluice-dev/sluice/rollout"
)

// clock notes when each request was made.
type clock struct {
	mu     sync.Mutex
	writes []time.Time
	most   int
	now    int
}

func (c *clock) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Method == http.MethodGet {
		return http.DefaultTransport.RoundTrip(r)
	}
	c.mu.Lock()
	c.writes = append(c.writes, time.Now())
	c.now++
	c.most = max(c.most, c.now)
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		c.now--
		c.mu.Unlock()
	}()
	return http.DefaultTransport.RoundTrip(r)
}

// TestWritesArePaced: one at a time with the pause between, however many ask; questions do not wait.
func TestWritesArePaced(t *testing.T) {
	gh := fake(t)
	const pause = 100 * time.Millisecond
	times := &clock{}
	c, err := github.NewClient(github.ClientOptions{BaseURL: gh.URL, Token: githubtest.Token, Pause: pause, Transport: times})
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for i := range 6 {
		wg.Go(func() {
			var err error
			if i%2 == 0 {
				err = c.Reply(t.Context(), repo, 41, "hello")
			} else {
				err = c.React(t.Context(), repo, int64(i), chatops.ReactionSeen)
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
	began := time.Now()
	if _, err := c.PullRequest(t.Context(), repo, 41); err != nil {
		t.Error(err)
	}
	if took := time.Since(began); took > 4*pause {
		t.Errorf("a question waited %s", took)
	}
	wg.Wait()
	if len(times.writes) != 6 || times.most != 1 {
		t.Errorf("%d writes, %d at once", len(times.writes), times.most)
	}
	for i := 1; i < len(times.writes); i++ {
		if d := times.writes[i].Sub(times.writes[i-1]); d < pause-5*time.Millisecond {
			t.Errorf("write %d came %s after the one before", i, d)
		}
	}
}

func asApp(t *testing.T, gh *githubtest.Server) *github.Client {
	t.Helper()
	c, err := github.NewClient(github.ClientOptions{BaseURL: gh.URL, AppID: githubtest.AppID, AppKey: appKey(t)})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestRepositoriesAreFound(t *testing.T) {
	gh := fake(t)
	for id := range int64(150) { // two pages
		gh.AddRepository(1000+id, "acme", "r-"+strings.Repeat("x", int(id)%40+1)+"-"+string(rune('a'+id%26)))
	}
	for name, c := range map[string]*github.Client{"token": client(t, gh), "App": asApp(t, gh)} {
		want := repo
		if name == "App" {
			want.Installation = githubtest.Installation
		}
		if got, err := c.Repository(t.Context(), repo.ID); err != nil || got != want {
			t.Errorf("%s: got %+v, %v; want %+v", name, got, err, want)
		}
		n := len(gh.Calls())
		if got, err := c.Repository(t.Context(), repo.ID); err != nil || got != want || len(gh.Calls()) != n {
			t.Errorf("%s: asked again: %+v, %v", name, got, err)
		}
		var temporary chatops.Temporary
		if _, err := c.Repository(t.Context(), 5); !errors.As(err, &temporary) || temporary.Temporary() {
			t.Errorf("%s: a repository that is not there: %v", name, err)
		}
		moved := chatops.Repository{ID: 5, Owner: "acme", Name: "new", Installation: 9}
		c.Learn(moved)
		if got, err := c.Repository(t.Context(), 5); err != nil || got != moved && name == "App" || got.Name != "new" {
			t.Errorf("%s: a delivery's word: %+v, %v", name, got, err)
		}
	}
}

// TestChecksLoseTheirButtons: an update without buttons takes the old ones away.
func TestChecksLoseTheirButtons(t *testing.T) {
	gh := fake(t)
	c := asApp(t, gh)
	at := repo
	at.Installation = githubtest.Installation
	k := report.Check{
		Name: "sluice/fraud", External: "models/fraud/v", Head: strings.Repeat("c", 40), Conclusion: "neutral", Title: "gets 10 %", Summary: "s",
		Actions: []report.Action{{Label: "Promote", Description: "d", Identifier: "promote"}},
	}
	first, err := c.PutCheck(t.Context(), at, k)
	if err != nil {
		t.Fatal(err)
	}
	k.Actions, k.Conclusion, k.Title = nil, "", "waits"
	second, err := c.PutCheck(t.Context(), at, k) // found again, not made again
	if err != nil || second != first {
		t.Errorf("got %d after %d, %v", second, first, err)
	}
	got := gh.CheckRuns("acme/fraud-model")
	if len(got) != 1 || len(got[0].Actions) != 0 || got[0].Status != "in_progress" || got[0].Conclusion != "" {
		t.Errorf("got %+v", got)
	}
	k.External = "staging/fraud/v"
	if other, err := c.PutCheck(t.Context(), at, k); err != nil || other == first {
		t.Errorf("another endpoint's check is %d, %v", other, err)
	}
	if _, err := client(t, gh).PutCheck(t.Context(), repo, k); err == nil {
		t.Error("a token wrote a check run")
	}
}

// TestStatusesAreWrittenOnChange: GitHub takes 1,000 of a context per commit.
func TestStatusesAreWrittenOnChange(t *testing.T) {
	gh := fake(t)
	c := client(t, gh)
	k := report.Check{Name: "sluice/fraud", Head: strings.Repeat("c", 40), Title: "gets 10 %", Status: "pending"}
	other := k
	other.Name = "sluice/spam"
	for range 3 {
		for _, x := range []report.Check{k, other} {
			if err := c.PutStatus(t.Context(), repo, x); err != nil {
				t.Fatal(err)
			}
		}
	}
	k.Status = "success"
	if err := c.PutStatus(t.Context(), repo, k); err != nil {
		t.Fatal(err)
	}
	var states []string
	for _, s := range gh.Statuses("acme/fraud-model") {
		states = append(states, s.Context+" "+s.State)
	}
	if want := []string{"sluice/fraud pending", "sluice/spam pending", "sluice/fraud success"}; !slices.Equal(states, want) {
		t.Errorf("got %v", states)
	}
}

func TestDeploymentsAreMadeOnce(t *testing.T) {
	gh := fake(t)
	c := client(t, gh)
	d := report.Deployment{Environment: "models/fraud", Commit: strings.Repeat("c", 40), Version: "v", State: "inactive", Description: "over"}
	if id, err := c.PutDeployment(t.Context(), repo, d); err != nil || id != 0 || len(gh.Deployments("acme/fraud-model")) != 0 {
		t.Errorf("what is over was deployed: %d, %v", id, err)
	}
	for _, state := range []string{"queued", "queued", "in_progress", "success"} {
		d.State, d.Description = state, state
		if _, err := c.PutDeployment(t.Context(), repo, d); err != nil {
			t.Fatal(err)
		}
	}
	d.Version = "w" // the same commit again
	if _, err := c.PutDeployment(t.Context(), repo, d); err != nil {
		t.Fatal(err)
	}
	got := gh.Deployments("acme/fraud-model")
	if len(got) != 2 || !slices.Equal(got[0].States, []string{"queued", "in_progress", "success"}) {
		t.Errorf("got %+v", got)
	}
}

// TestDeploymentsThatGitHubRefuses: a conflict or what it does not take lasts, a limit and a failure of its own pass; another try makes one deployment.
func TestDeploymentsThatGitHubRefuses(t *testing.T) {
	for status, lasts := range map[int]bool{409: true, 422: true, 403: true, 500: false, 502: false} {
		gh := fake(t)
		c := client(t, gh)
		d := report.Deployment{Environment: "models/fraud", Commit: strings.Repeat("c", 40), Version: "v", State: "queued", Description: "queued"}
		gh.AddFault(githubtest.Fault{Method: http.MethodPost, Path: "/deployments", Status: status, Times: 1, After: status == 502})
		var temporary chatops.Temporary
		if _, err := c.PutDeployment(t.Context(), repo, d); !errors.As(err, &temporary) || temporary.Temporary() == lasts {
			t.Errorf("%d: %v, want an error that lasts: %v", status, err, lasts)
		}
		if _, err := c.PutDeployment(t.Context(), repo, d); err != nil {
			t.Errorf("after %d: %v", status, err)
		}
		if got := gh.Deployments("acme/fraud-model"); len(got) != 1 || !slices.Equal(got[0].States, []string{"queued"}) {
			t.Errorf("after %d: %+v", status, got)
		}
	}
}

func TestCommentsOfOthersAreLeftAlone(t *testing.T) {
	gh := fake(t)
	c := client(t, gh)
	key := rollout.Key{Namespace: "models", Name: "fraud"}
	body := "x\n" + report.Mark{Namespace: "models", Endpoint: "fraud"}.String()
	gh.AddComment("acme/fraud-model", 41, "mallory", body)
	gh.AddComment("acme/fraud-model", 41, githubtest.AppLogin, body)
	mallory := gh.Comments("acme/fraud-model", 41)[0].ID
	for _, id := range []int64{0, mallory, 99} {
		if got, err := c.FindComment(t.Context(), repo, 41, id, key); err != nil || got.ID != 0 {
			t.Errorf("found %+v, %v", got, err)
		}
	}
	id, err := c.PutComment(t.Context(), repo, 41, 0, body)
	if err != nil {
		t.Fatal(err)
	}
	for _, thought := range []int64{0, id, mallory, 99} {
		if got, err := c.FindComment(t.Context(), repo, 41, thought, key); err != nil || got.ID != id || got.Body != body {
			t.Errorf("found %+v, %v", got, err)
		}
	}
	if got, err := c.FindComment(t.Context(), repo, 41, 0, rollout.Key{Namespace: "models", Name: "spam"}); err != nil || got.ID != 0 {
		t.Errorf("another endpoint's: %+v, %v", got, err)
	}
	gh.EditComment("acme/fraud-model", id, "")
	if _, err := c.PutComment(t.Context(), repo, 41, id, "y"); !errors.Is(err, report.ErrGone) {
		t.Errorf("edited what is gone: %v", err)
	}
}
