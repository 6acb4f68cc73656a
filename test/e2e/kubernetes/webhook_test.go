package kubernetes

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sluice-dev/sluice/pkg/chatops"
	"github.com/sluice-dev/sluice/pkg/cluster/kube/v1alpha1"
	"github.com/sluice-dev/sluice/pkg/github/githubtest"
	"github.com/sluice-dev/sluice/rollout"
)

const (
	hookSecret = "a secret of the webhook"
	hookURL    = "http://sluice-webhook." + system + ".svc.cluster.local/webhooks/github"
	repository = "acme/fraud"
)

// githubFor gives the installation a GitHub on the node's address, and the chart's webhook service to it.
func githubFor(t *testing.T, in *installation) *githubtest.Server {
	t.Helper()
	var nodes corev1.NodeList
	if err := in.client.List(t.Context(), &nodes); err != nil {
		t.Fatal(err)
	}
	var host net.IP
	for _, a := range nodes.Items[0].Status.Addresses {
		if a.Type == corev1.NodeInternalIP {
			host = net.ParseIP(a.Address)
		}
	}
	gh, authority := githubtest.NewTLS(t, host)
	gh.AddRepository(4242, "acme", "fraud")
	gh.SetPermission(repository, "maya", "write")
	gh.SetPermission(repository, "rick", "read")
	objects := []client.Object{
		&corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: system, Name: "hook"}, StringData: map[string]string{"webhook-secret": hookSecret, "token": githubtest.Token}},
		&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: system, Name: "github-ca"}, Data: map[string]string{"ca.crt": string(authority)}},
	}
	for _, o := range objects {
		_ = in.client.Delete(t.Context(), o) // of an earlier run
		o.SetResourceVersion("")
		if err := in.client.Create(t.Context(), o); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = in.client.Delete(context.Background(), o) })
	}
	in.helm(t, "github.enabled=true", "github.apiURL="+gh.URL+"/", "github.webhookSecret.name=hook", "github.token.name=hook", "github.onMerge=promote",
		"webhook.ca.configMap=github-ca", fmt.Sprintf("webhook.podAnnotations.run=r%d", time.Now().UnixNano()))
	t.Cleanup(func() {
		in.helm(t, "github.enabled=false", "webhook.ca.configMap=")
		if err := in.client.DeleteAllOf(context.Background(), &v1alpha1.JournalEntry{}, client.InNamespace(system)); err != nil {
			t.Error(err)
		}
	})
	return gh
}

// deliver an event until it is taken, as the reconciler of deliveries does.
func deliver(t *testing.T, event string, body []byte) {
	t.Helper()
	guid := fmt.Sprintf("00000000-0000-4000-8000-%012d", time.Now().UnixNano()%1e12)
	eventually(t, 30*time.Second, "a delivery of "+event, func() error {
		resp, err := http.DefaultClient.Do(githubtest.Delivery(hookURL, hookSecret, event, guid, body))
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if text, _ := io.ReadAll(resp.Body); resp.StatusCode/100 != 2 {
			return fmt.Errorf("%s: %s", resp.Status, text)
		}
		return nil
	})
}

// pullEvent is what GitHub sends of a pull request.
func pullEvent(action string, number int, head string) []byte {
	c := chatops.Closed{Repository: chatops.Repository{ID: 4242, Owner: "acme", Name: "fraud"}, PullRequest: number, Head: head, Merged: action == "merged", By: "maya", At: time.Now()}
	return githubtest.ClosedEvent(c, func(e map[string]any) {
		if action == "opened" {
			pr := e["pull_request"].(map[string]any)
			e["action"], pr["state"], pr["closed_at"], pr["merged"] = "opened", "open", nil, false
		}
	})
}

// shown is the report on a pull request.
func shown(gh *githubtest.Server, number int) string {
	for _, c := range gh.Comments(repository, number) {
		if !strings.Contains(c.Body, "<!-- sluice:c-") {
			return c.Body
		}
	}
	return ""
}

func shows(t *testing.T, gh *githubtest.Server, number int, within time.Duration, parts ...string) string {
	t.Helper()
	var text string
	eventually(t, within, fmt.Sprintf("pull request %d shows %q", number, parts), func() error {
		text = shown(gh, number)
		for _, p := range parts {
			if !strings.Contains(text, p) {
				return fmt.Errorf("%q is not in:\n%s", p, text)
			}
		}
		return nil
	})
	return text
}

// TestLifeOfPullRequests: signed events of two pull requests' lives. A good model is opened, deployed, given a fifth of the
// traffic by a comment, judged, merged and thereby promoted; a bad one is rolled back, and its pull request says why.
func TestLifeOfPullRequests(t *testing.T) {
	in := install(t)
	const endpoint, good, bad = "reviewed", "1f2e3d4c5b6a79880123456789abcdef01234567", "2e3d4c5b6a79880123456789abcdef0123456789"
	in.remove(t, endpoint)
	t.Cleanup(func() { in.remove(t, endpoint) })
	gh := githubFor(t, in)
	t.Cleanup(func() {
		if t.Failed() {
			out, err := exec.Command("kubectl", "--kubeconfig", in.kubeconfig, "-n", system, "logs", "deployment/sluice-webhook", "--tail=60").CombinedOutput()
			t.Logf("the webhook service: %v\n%s", err, out)
		}
	})
	in.must(t, "deploy", project(t, endpoint, "one", ""), "--version", "base", "--repository-id", "4242")
	l := stream(t, endpoint, in.key(t, endpoint), 60)

	comment := func(id int64, number int, author, body string) {
		t.Helper()
		deliver(t, "issue_comment", githubtest.CommentEvent(gh.Comment(id, repository, number, author, body, time.Time{})))
	}
	reply := func(id int64, number int, part string) {
		t.Helper()
		eventually(t, 30*time.Second, "a reply that says "+part, func() error {
			for _, c := range gh.Comments(repository, number) {
				if strings.Contains(c.Body, fmt.Sprintf("<!-- sluice:c-%d-", id)) {
					if !strings.Contains(c.Body, part) {
						return fmt.Errorf("it says %s", c.Body)
					}
					return nil
				}
			}
			return fmt.Errorf("none")
		})
	}

	// Opened: the Action deploys, and the treatment gets its first share.
	gh.AddPullRequest(repository, githubtest.PullRequest{Number: 41, Head: good})
	deliver(t, "pull_request", pullEvent("opened", 41, good))
	in.must(t, "deploy", project(t, endpoint, "two", "    # better\n"), "--repository-id", "4242", "--pull-request", "41", "--commit", good)
	const treatment = "pr-41-1f2e3d4"
	began := time.Now()
	shows(t, gh, 41, 30*time.Second, treatment)
	t.Logf("the report is there %s after the deploy", time.Since(began).Round(100*time.Millisecond))
	time.Sleep(1100 * time.Millisecond) // GitHub's times are whole seconds

	id := time.Now().UnixMilli() // the journal remembers those of earlier runs
	comment(id, 41, "rick", "/traffic 50")
	reply(id, 41, "denied")
	comment(id+1, 41, "maya", "Looks good.\n\n/traffic 20")
	reply(id+1, 41, "claims 20")
	if v := in.endpoint(t, endpoint).Spec.Version(treatment); v.TrafficPercentile != 20*rollout.OnePercent {
		t.Fatalf("it claims %s", v.TrafficPercentile)
	}
	shows(t, gh, 41, 30*time.Second, "20 %")

	// The verdict: evidence that it is no worse, while the comment holds it at its share.
	began = time.Now()
	var verdict string
	eventually(t, 4*time.Minute, "a verdict while it is held", func() error {
		e := in.endpoint(t, endpoint)
		if e.Spec.Hold == nil || e.Spec.Version(treatment).TrafficPercentile != 20*rollout.OnePercent {
			t.Fatalf("hold %+v, version %+v", e.Spec.Hold, e.Spec.Version(treatment))
		}
		_, after, _ := strings.Cut(shown(gh, 41), "**Verdict: ")
		if verdict, _, _ = strings.Cut(after, "\n"); verdict == "" || strings.HasPrefix(verdict, "undecided") {
			return fmt.Errorf("%q", verdict)
		}
		return nil
	})
	t.Logf("%s after the comment the verdict is %s", time.Since(began).Round(100*time.Millisecond), verdict)
	if strings.HasPrefix(verdict, "worse") {
		t.Error("a good model is judged worse")
	}

	// Merged: promoted.
	gh.EditPullRequest(repository, 41, func(p *githubtest.PullRequest) { p.State, p.Merged = "closed", true })
	began = time.Now()
	deliver(t, "pull_request", pullEvent("merged", 41, good))
	eventually(t, 3*time.Minute, "promoted by the merge", func() error {
		e := in.endpoint(t, endpoint)
		if v := e.Spec.Version(treatment); v == nil || v.Type != rollout.Control {
			return fmt.Errorf("%+v, %+v", v, e.Status.Rollout)
		}
		return nil
	})
	t.Logf("promoted %s after the merge", time.Since(began).Round(100*time.Millisecond))
	last := in.endpoint(t, endpoint).Spec.Changes
	if c := last[len(last)-1]; !strings.Contains(c.Actor, "maya") {
		t.Errorf("the record says %+v, want who merged", c)
	}
	shows(t, gh, 41, 30*time.Second, "promoted")

	// A bad model: rolled back, and the comment says why.
	gh.AddPullRequest(repository, githubtest.PullRequest{Number: 42, Head: bad})
	deliver(t, "pull_request", pullEvent("opened", 42, bad))
	in.must(t, "deploy", project(t, endpoint, "three", "    if d[\"n\"] % 3 == 0 and d[\"n\"] > 0:\n        raise ValueError(\"broken\")\n"), "--repository-id", "4242", "--pull-request", "42", "--commit", bad)
	began = time.Now()
	const worse = "pr-42-2e3d4c5"
	eventually(t, 3*time.Minute, "rolled back", func() error {
		if v := in.endpoint(t, endpoint).Spec.Version(worse); v != nil && (v.Type != rollout.Untyped || v.RetiredAt.IsZero()) {
			return fmt.Errorf("it is %q at %s", v.Type, v.TrafficPercentile)
		}
		return nil
	})
	t.Logf("rolled back %s after its deploy", time.Since(began).Round(100*time.Millisecond))
	text := shows(t, gh, 42, 30*time.Second, worse, "rolled back", "worse")
	t.Logf("the pull request shows\n%s", text)
	state := ""
	for _, s := range gh.Statuses(repository) {
		if s.SHA == bad {
			state = s.State
		}
	}
	if state != "failure" {
		t.Errorf("the status of the bad commit is %q", state)
	}
	l.stop()
	t.Logf("%d requests, %d bad answers, %d failed; by version %v", l.sent.Load(), l.bad.Load(), l.failed.Load(), l.versions)
	if l.failed.Load() != 0 {
		t.Errorf("%d requests failed: %v, the first: %s", l.failed.Load(), l.kinds, l.first)
	}
}
