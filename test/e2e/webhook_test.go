package e2e

import (
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sluice-dev/sluice/pkg/github/githubtest"
	"github.com/sluice-dev/sluice/rollout"
)

// TestCommentsOnPullRequests: the running system takes signed deliveries, asks GitHub who
// may, acts on its endpoint and answers; what may not be done is not.
func TestCommentsOnPullRequests(t *testing.T) {
	const secret, repo, head = "a secret of the webhook", "acme/fraud", "1f2e3d4c5b6a79880123456789abcdef01234567"
	gh := githubtest.New(t)
	gh.AddRepository(4242, "acme", "fraud")
	gh.SetPermission(repo, "maya", "write")
	gh.SetPermission(repo, "rick", "read")
	gh.AddPullRequest(repo, githubtest.PullRequest{Number: 7, Head: head, State: "open"})
	s := start(t, "SLUICE_WEBHOOK_SECRET="+secret, "SLUICE_GITHUB_TOKEN="+githubtest.Token, "SLUICE_GITHUB_API_URL="+gh.URL+"/")

	s.must("deploy", "--version", "base", "--repository-id", "4242", project(t, "fraud", "base", quick, ""))
	s.must("deploy", "--repository-id", "4242", "--pull-request", "7", "--commit", head, project(t, "fraud", "pr", quick, ""))
	const treatment = "pr-7-1f2e3d4"
	s.must("wait", "fraud", treatment, "--for=ready")
	// GitHub's times are whole seconds: a comment counts as written after the treatment only in a later one.
	time.Sleep(1100 * time.Millisecond)

	id := int64(100)
	comment := func(author, body string) (string, *http.Request) {
		id++
		c := gh.Comment(id, repo, 7, author, body, time.Time{})
		guid := fmt.Sprintf("00000000-0000-4000-8000-%012d", id)
		return guid, githubtest.Delivery("http://"+s.at.API+"/webhooks/github", secret, "issue_comment", guid, githubtest.CommentEvent(c))
	}
	post := func(r *http.Request) int {
		t.Helper()
		resp, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		return resp.StatusCode
	}
	// The report on the pull request is a comment, too.
	answers := func() []githubtest.Comment {
		return slices.DeleteFunc(gh.Comments(repo, 7), func(c githubtest.Comment) bool { return !strings.Contains(c.Body, "<!-- sluice:c-") })
	}
	replies := 0
	reply := func(contains string) {
		t.Helper()
		replies++
		eventually(t, 15*time.Second, "a reply that says "+contains, func() error {
			all := answers()
			if len(all) < replies {
				return fmt.Errorf("%d replies", len(all))
			}
			if text := all[replies-1].Body; !strings.Contains(text, contains) {
				return fmt.Errorf("the reply is %q", text)
			}
			return nil
		})
	}

	// Without the right signature nothing is taken.
	_, forged := comment("maya", "/traffic 50")
	forged.Header.Set("X-Hub-Signature-256", "sha256="+strings.Repeat("0", 64))
	if code := post(forged); code < 400 {
		t.Fatalf("a forged delivery got %d", code)
	}

	_, r := comment("maya", "Looks good to me.\n\n/traffic 20")
	if code := post(r); code/100 != 2 {
		t.Fatalf("a good delivery got %d", code)
	}
	reply("20")
	e := s.endpoint("fraud")
	if got := e.Spec.Version(treatment); got.TrafficPercentile != 20*rollout.OnePercent {
		t.Fatalf("%s claims %s after /traffic 20", treatment, got.TrafficPercentile)
	}
	if last := e.Spec.Changes[len(e.Spec.Changes)-1]; !strings.HasPrefix(last.ID, "c-102-") || !strings.Contains(last.Actor, "maya") {
		t.Errorf("the record says %+v, want the comment's id and its author", last)
	}

	// Read permission is not enough.
	_, r = comment("rick", "/promote")
	post(r)
	reply("denied")
	if s.endpoint("fraud").Spec.Version(treatment).Type != rollout.Treatment {
		t.Fatal("someone with read permission promoted")
	}

	// Delivered twice, done once.
	_, r = comment("maya", "/promote")
	body, _ := io.ReadAll(r.Body)
	for range 2 {
		again := r.Clone(t.Context())
		again.Body = io.NopCloser(strings.NewReader(string(body)))
		if code := post(again); code/100 != 2 {
			t.Fatalf("delivery of /promote got %d", code)
		}
	}
	reply(treatment)
	eventually(t, 10*time.Second, "promoted", func() error {
		if v := s.endpoint("fraud").Spec.Version(treatment); v.Type != rollout.Control {
			return fmt.Errorf("it is %q", v.Type)
		}
		return nil
	})
	_, r = comment("maya", "/rollback")
	post(r)
	reply("base")
	e = s.endpoint("fraud")
	if v := e.Spec.Version("base"); v.Type != rollout.Control || e.Spec.Default().Name != "base" {
		t.Errorf("after /rollback base is %q and %s the default", v.Type, e.Spec.Default().Name)
	}
	if n := len(answers()); n != replies {
		t.Errorf("%d replies to %d commands", n, replies)
	}
}
