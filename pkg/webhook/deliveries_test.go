package webhook_test

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sluice-dev/sluice/pkg/chatops"
	"github.com/sluice-dev/sluice/pkg/cluster"
	"github.com/sluice-dev/sluice/pkg/cluster/memory"
	"github.com/sluice-dev/sluice/pkg/github"
	"github.com/sluice-dev/sluice/pkg/github/githubtest"
	"github.com/sluice-dev/sluice/pkg/webhook"
	"github.com/sluice-dev/sluice/rollout"
)

const (
	model = "acme/fraud"
	soon  = 20 * time.Millisecond
	// later leaves time to say where a service is.
	later = 300 * time.Millisecond
)

// appClient speaks to the fake as its App.
func appClient(gh *githubtest.Server) (*github.Client, error) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return nil, err
	}
	return github.NewClient(github.ClientOptions{
		BaseURL: gh.URL, AppID: githubtest.AppID, AppKey: pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)}),
	})
}

// asApp is full with an App, whose record of deliveries is looked at all the time.
func asApp(t *testing.T, intake webhook.Intake) (webhook.Options, *githubtest.Server, *memory.Store) {
	t.Helper()
	o, gh, store := full(t)
	c, err := appClient(gh)
	if err != nil {
		t.Fatal(err)
	}
	l, err := c.HookLog(github.Hook{})
	if err != nil {
		t.Fatal(err)
	}
	o.GitHub, o.Deliveries, o.Intake, o.RedeliverEvery, o.PollEvery = c, l, intake, later, soon
	if intake == webhook.IntakePoll {
		o.Secrets = nil // nobody comes in
	}
	return o, gh, store
}

func said(gh *githubtest.Server, id int64, body string) []byte {
	return saidAt(gh, id, body, time.Time{})
}

func saidAt(gh *githubtest.Server, id int64, body string, at time.Time) []byte {
	c := gh.Comment(id, model, 41, "alice", body, at)
	c.Repository.Installation = githubtest.Installation
	return githubtest.CommentEvent(c)
}

func endpoint(t *testing.T, store cluster.Reader) *rollout.Endpoint {
	t.Helper()
	e, err := store.Get(t.Context(), rollout.Key{Namespace: "models", Name: "fraud"})
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func replies(gh *githubtest.Server) int { return len(gh.Comments(model, 41)) }

// settled waits until the record of deliveries was looked at a few times more.
func settled(t *testing.T, gh *githubtest.Server) {
	t.Helper()
	const path = "/app/hook/deliveries"
	was := gh.CountCalls(http.MethodGet, path)
	until(t, "the record is looked at again", func() bool { return gh.CountCalls(http.MethodGet, path) >= was+3 })
}

func entries(t *testing.T, j cluster.Journal) (names []string) {
	t.Helper()
	all, err := j.Entries(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range all {
		names = append(names, e.Name+" "+string(e.State))
	}
	slices.Sort(names)
	return names
}

// TestMissedDeliveries: what GitHub delivered while nobody was there is carried out, once, in order, and what was taken is left alone.
func TestMissedDeliveries(t *testing.T) {
	o, gh, store := asApp(t, webhook.IntakePush)
	gh.SetHook("", secret)
	if a := gh.Deliver("issue_comment", said(gh, 1, "/hold one")); a.Code != http.StatusBadGateway {
		t.Fatalf("nobody was there, and answered %d", a.Code)
	}
	gh.Miss(0, "issue_comment", said(gh, 2, "/hold two"))
	gh.Miss(502, "star", []byte(`{"action":"created"}`))
	gh.Miss(401, "issue_comment", said(gh, 3, "/lock"))
	gh.Miss(202, "issue_comment", said(gh, 4, "/lock"))

	// The first answer is lost: GitHub times out although the delivery was recorded.
	r := run(t, o)
	gh.SetHook(r.url+"/webhooks/github", secret)
	until(t, "two replies", func() bool { return replies(gh) == 2 })
	gh.Miss(504, "issue_comment", said(gh, 1, "/hold one"))
	until(t, "it is asked for", func() bool { return gh.CountCalls(http.MethodPost, "/attempts") == 3 })
	until(t, "it is answered as known", func() bool {
		all := gh.Attempts()
		return all[len(all)-1].Redelivery && all[len(all)-1].Code == http.StatusOK
	})
	settled(t, gh)
	if n := gh.CountCalls(http.MethodPost, "/attempts"); n != 3 || replies(gh) != 2 {
		t.Errorf("asked %d times, %d replies", n, replies(gh))
	}
	e := endpoint(t, store)
	if e.Spec.Lock != nil || e.Spec.Hold == nil || e.Spec.Hold.Reason != "two" || len(e.Spec.Changes)+len(e.Status.History) > 4 {
		t.Errorf("lock %v, hold %v, changes %v", e.Spec.Lock, e.Spec.Hold, e.Spec.Changes)
	}
	// The two that are asked for at once may come in either order: then the first is superseded.
	if got := entries(t, o.Journal); !slices.Equal(got, []string{"c-1-1 done", "c-2-1 done"}) && !slices.Equal(got, []string{"c-1-1 refused", "c-2-1 done"}) {
		t.Errorf("journal %q", got)
	}
	// By hand at GitHub: the same GUID, another delivery.
	if a := gh.Redeliver(gh.Attempts()[0]); a.Code != http.StatusOK {
		t.Errorf("delivered again by hand: %d", a.Code)
	}
	if err := r.stop(); err != nil {
		t.Errorf("stop: %v", err)
	}
	if replies(gh) != 2 {
		t.Errorf("%d replies", replies(gh))
	}
}

// TestJournalFailsAtFirst: a delivery that was answered 500 comes again, however it came.
func TestJournalFailsAtFirst(t *testing.T) {
	for _, way := range []webhook.Intake{webhook.IntakePush, webhook.IntakePoll} {
		t.Run(string(way), func(t *testing.T) {
			o, gh, store := asApp(t, way)
			o.RedeliverEvery = 3 * time.Second // the first failure is seen before it is made up for
			journal := o.Journal.(*memory.Journal)
			r := run(t, o)
			until(t, "ready", func() bool { code, _ := get(t, r.url+"/readyz"); return code == 200 })
			if way == webhook.IntakePush {
				gh.SetHook(r.url+"/webhooks/github", secret)
			}
			journal.SetFailure(errors.New("disk full"))
			a := gh.Deliver("issue_comment", said(gh, 1, "/hold please"))
			want := map[webhook.Intake]int{webhook.IntakePush: http.StatusInternalServerError, webhook.IntakePoll: http.StatusBadGateway}[way]
			if a.Code != want {
				t.Fatalf("answered %d, want %d", a.Code, want)
			}
			if way == webhook.IntakePoll {
				until(t, "it is fetched twice", func() bool { return gh.CountCalls(http.MethodGet, fmt.Sprint("/deliveries/", a.ID)) >= 2 })
			}
			journal.SetFailure(nil)
			until(t, "a reply", func() bool { return replies(gh) == 1 })
			if e := endpoint(t, store); e.Spec.Hold == nil || e.Spec.Hold.Reason != "please" {
				t.Errorf("hold %+v", e.Spec.Hold)
			}
			if err := r.stop(); err != nil {
				t.Errorf("stop: %v", err)
			}
			if got := entries(t, o.Journal); !slices.Equal(got, []string{"c-1-1 done"}) || replies(gh) != 1 {
				t.Errorf("journal %q, %d replies", got, replies(gh))
			}
		})
	}
}

// TestPolling: from a comment to a reply, while nothing can come in; refused meanwhile, it goes on.
func TestPolling(t *testing.T) {
	o, gh, store := asApp(t, webhook.IntakePoll)
	gh.SetHook("", "")
	gh.Deliver("issue_comment", said(gh, 1, "/hold before"))
	r := run(t, o)
	until(t, "a reply to what came before the start", func() bool { return replies(gh) == 1 })
	if resp, err := http.Post(r.url+"/webhooks/github", "application/json", strings.NewReader("{}")); err != nil || resp.StatusCode != http.StatusNotFound {
		t.Errorf("the way in is open: %v %v", resp, err)
	} else {
		_ = resp.Body.Close()
	}
	limited := githubtest.SecondaryLimit(http.StatusTooManyRequests, 1)
	limited.Path, limited.Times = "/app/hook", 1
	gh.AddFault(limited)
	gh.AddFault(githubtest.Fault{Path: "/app/hook/deliveries/", Status: 404, Times: 1}) // quite new
	a := gh.Deliver("issue_comment", said(gh, 2, "/resume"))
	until(t, "a second reply", func() bool { return replies(gh) == 2 })
	if e := endpoint(t, store); e.Spec.Hold != nil {
		t.Errorf("hold %+v", e.Spec.Hold)
	}
	gh.Redeliver(a) // still nobody there
	gh.Deliver("push", []byte(`{"repository":{"id":7,"name":"fraud","owner":{"login":"acme"}},"installation":{"id":77}}`))
	settled(t, gh)
	if n := gh.CountCalls(http.MethodPost, "/attempts"); n != 0 || replies(gh) != 2 {
		t.Errorf("asked for %d again, %d replies", n, replies(gh))
	}
	if err := r.stop(); err != nil {
		t.Errorf("stop: %v", err)
	}
}

// TestPollingBySeveral: two services that poll, and one that begins anew on the same journal, do all once.
func TestPollingBySeveral(t *testing.T) {
	o, gh, store := asApp(t, webhook.IntakePoll)
	first, second := run(t, o), run(t, o)
	const n = 12
	for i := range n {
		gh.Deliver("issue_comment", said(gh, int64(i+1), fmt.Sprintf("/hold reason %d", i+1)))
	}
	until(t, "every reply", func() bool { return replies(gh) >= n })
	for _, r := range []running{first, second} {
		if err := r.stop(); err != nil {
			t.Errorf("stop: %v", err)
		}
	}
	// The next start reads all of it again.
	third := run(t, o)
	settled(t, gh)
	if err := third.stop(); err != nil {
		t.Errorf("stop: %v", err)
	}
	got := entries(t, o.Journal)
	if len(got) != n || slices.ContainsFunc(got, func(s string) bool { return !strings.HasSuffix(s, " done") }) {
		t.Errorf("journal %q", got)
	}
	// Each answers what it carried out; both may have found one unfinished, and then both answer.
	changes := map[string]int{}
	e := endpoint(t, store)
	for _, ch := range slices.Concat(e.Spec.Changes, e.Status.History) {
		changes[ch.ID]++
	}
	for id, k := range changes {
		if k > 1 && strings.HasPrefix(id, "c-") {
			t.Errorf("%s took effect %d times", id, k)
		}
	}
}

// TestStopsInTheMiddle: a service that ends while a command is recorded and not done leaves it to the next.
func TestStopsInTheMiddle(t *testing.T) {
	for _, way := range []webhook.Intake{webhook.IntakePush, webhook.IntakePoll} {
		t.Run(string(way), func(t *testing.T) {
			o, gh, store := asApp(t, way)
			o.Grace = 50 * time.Millisecond
			gh.AddFault(githubtest.Fault{Path: "/permission", Delay: 10 * time.Second})
			r := run(t, o)
			if way == webhook.IntakePush {
				gh.SetHook(r.url+"/webhooks/github", secret)
			}
			gh.Deliver("issue_comment", said(gh, 1, "/hold please"))
			until(t, "permission is asked", func() bool { return gh.CountCalls(http.MethodGet, "/permission") > 0 })
			if err := r.stop(); err != nil {
				t.Errorf("stop: %v", err)
			}
			if got := entries(t, o.Journal); !slices.Equal(got, []string{"c-1-1 pending"}) || replies(gh) != 0 {
				t.Fatalf("journal %q, %d replies", got, replies(gh))
			}
			gh.ClearFaults()
			gh.SetHook("", "")
			missed := gh.Deliver("issue_comment", said(gh, 2, "/lock"))
			r = run(t, o)
			if way == webhook.IntakePush {
				gh.SetHook(r.url+"/webhooks/github", secret)
			}
			until(t, "two replies", func() bool { return replies(gh) == 2 })
			settled(t, gh)
			if err := r.stop(); err != nil {
				t.Errorf("stop: %v", err)
			}
			if got := entries(t, o.Journal); !slices.Equal(got, []string{"c-1-1 done", "c-2-1 done"}) || replies(gh) != 2 {
				t.Errorf("journal %q, %d replies", got, replies(gh))
			}
			if e := endpoint(t, store); e.Spec.Hold == nil || e.Spec.Lock == nil || missed.Code != http.StatusBadGateway {
				t.Errorf("hold %v, lock %v", e.Spec.Hold, e.Spec.Lock)
			}
		})
	}
}

// TestReorderedDeliveries: what comes late does not undo what came after it.
func TestReorderedDeliveries(t *testing.T) {
	t.Run("the second comment before the first", func(t *testing.T) {
		o, gh, store := asApp(t, webhook.IntakePush)
		r := run(t, o)
		gh.SetHook(r.url+"/webhooks/github", secret)
		now := time.Now()
		first, second := saidAt(gh, 2, "/hold for a while", now.Add(-3*time.Second)), saidAt(gh, 3, "/resume", now.Add(-time.Second))
		gh.Deliver("issue_comment", saidAt(gh, 1, "/hold", now.Add(-4*time.Second)))
		until(t, "a reply", func() bool { return replies(gh) == 1 })
		gh.Deliver("issue_comment", second)
		until(t, "two replies", func() bool { return replies(gh) == 2 })
		gh.Deliver("issue_comment", first)
		until(t, "three replies", func() bool { return replies(gh) == 3 })
		e := endpoint(t, store)
		if last := gh.Comments(model, 41)[2].Body; e.Spec.Hold != nil || !strings.Contains(last, "`superseded`") {
			t.Errorf("hold %+v; answered %s", e.Spec.Hold, last)
		}
	})
	t.Run("the close before the comment", func(t *testing.T) {
		o, gh, store := asApp(t, webhook.IntakePush)
		r := run(t, o)
		gh.SetHook(r.url+"/webhooks/github", secret)
		comment := said(gh, 1, "/lock")
		gh.EditPullRequest(model, 41, func(pr *githubtest.PullRequest) { pr.State = "closed" })
		closed := chatops.Closed{
			Repository:  chatops.Repository{ID: 7, Owner: "acme", Name: "fraud", Installation: githubtest.Installation},
			PullRequest: 41, Head: strings.Repeat("a", 40), By: "alice", At: time.Now(),
		}
		gh.Deliver("pull_request", githubtest.ClosedEvent(closed))
		until(t, "the close is done", func() bool {
			got := entries(t, o.Journal)
			return len(got) == 1 && strings.HasSuffix(got[0], " done")
		})
		gh.Deliver("issue_comment", comment)
		until(t, "a reply", func() bool { return replies(gh) == 1 })
		e := endpoint(t, store)
		if said := gh.Comments(model, 41)[0].Body; e.Spec.Lock != nil || !strings.Contains(said, "closed without a merge") {
			t.Errorf("lock %v; answered %s", e.Spec.Lock, said)
		}
	})
}
