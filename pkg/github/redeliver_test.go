package github_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	gogithub "github.com/google/go-github/v62/github"

	"github.com/sluice-dev/sluice/pkg/github"
)

// record is a GitHub's record of deliveries without the network, for tests on time of their own.
type record struct {
	mu    sync.Mutex
	all   []github.Delivery
	size  int // of a page; 100 unless set
	lists int
	asked []string // GUIDs
	reads []int64
	fail  error
	deny  map[string]error // of Redeliver by GUID
	// answer is the code of what is delivered again, 0 for none.
	answer int
	bodies map[int64]string
}

func (r *record) add(guid, event, action string, code int, at time.Time) github.Delivery {
	r.mu.Lock()
	defer r.mu.Unlock()
	d := github.Delivery{ID: int64(len(r.all) + 1), GUID: guid, Event: event, Action: action, StatusCode: code, DeliveredAt: at, RepositoryID: 7}
	r.all = append(r.all, d)
	return d
}

func (r *record) List(_ context.Context, cursor string) ([]github.Delivery, string, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lists++
	if r.fail != nil {
		return nil, "", r.fail
	}
	before := int64(len(r.all) + 1)
	if cursor != "" {
		before, _ = strconv.ParseInt(cursor, 10, 64)
	}
	var page []github.Delivery
	for _, d := range slices.Backward(r.all) {
		if d.ID < before {
			if len(page) == cmp.Or(r.size, 100) {
				return page, fmt.Sprint(before), nil
			}
			page = append(page, d)
			before = d.ID
		}
	}
	return page, "", nil
}

func (r *record) Redeliver(_ context.Context, id int64) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	d := r.all[id-1]
	r.asked = append(r.asked, d.GUID)
	if err := r.deny[d.GUID]; err != nil {
		return err
	}
	d.ID, d.Redelivery, d.DeliveredAt, d.StatusCode = int64(len(r.all)+1), true, time.Now(), r.answer
	r.all = append(r.all, d)
	return nil
}

func (r *record) Payload(_ context.Context, id int64) ([]byte, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.reads = append(r.reads, id)
	if r.fail != nil {
		return nil, r.fail
	}
	d := r.all[id-1]
	if err := r.deny[d.GUID]; err != nil {
		return nil, err
	}
	return []byte(cmp.Or(r.bodies[id], fmt.Sprint("body of ", d.GUID))), nil
}

func (r *record) askedFor() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.asked)
}

func (r *record) read() []int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.reads)
}

func (r *record) setDeny(deny map[string]error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.deny = deny
}

func (r *record) setFail(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.fail = err
}

func (r *record) listed() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.lists
}

// status is an error as GitHub's API gives it.
func status(code int, header ...string) error {
	h := http.Header{}
	for i := 0; i+1 < len(header); i += 2 {
		h.Set(header[i], header[i+1])
	}
	r, err := http.NewRequest(http.MethodGet, "https://github.example", nil)
	if err != nil {
		panic(err)
	}
	return &gogithub.ErrorResponse{Response: &http.Response{StatusCode: code, Header: h, Request: r}, Message: "made to fail"}
}

func redeliver(t *testing.T, log github.RedeliveryLog) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if err := github.NewRedeliverer(github.RedelivererOptions{Log: log}).Run(ctx); err != nil {
			t.Error(err)
		}
	}()
	return func() {
		cancel()
		<-ended
	}
}

func TestRedelivererAsksForWhatWasMissed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		now := time.Now()
		r := &record{answer: 202, size: 3}
		before := func(d time.Duration) time.Time { return now.Add(-d) }
		r.add("too-old", "issue_comment", "created", 502, before(73*time.Hour))
		r.add("down", "issue_comment", "created", 502, before(70*time.Hour))
		r.add("taken", "issue_comment", "created", 202, before(69*time.Hour))
		r.add("known", "issue_comment", "created", 200, before(69*time.Hour))
		r.add("an-old-button", "check_run", "requested_action", 502, before(2*time.Hour))
		r.add("later-taken", "issue_comment", "created", 502, before(90*time.Minute))
		r.add("no-answer", "pull_request", "closed", 0, before(80*time.Minute))
		r.add("later-taken", "issue_comment", "created", 202, before(70*time.Minute))
		r.add("a-button", "check_run", "requested_action", 503, before(50*time.Minute))
		r.add("edited", "issue_comment", "edited", 502, before(40*time.Minute))
		r.add("opened", "pull_request", "opened", 502, before(40*time.Minute))
		r.add("pushed", "push", "", 502, before(40*time.Minute))
		r.add("starred", "star", "created", 502, before(40*time.Minute))
		r.add("unreadable", "issue_comment", "created", 400, before(30*time.Minute))
		r.add("too-large", "issue_comment", "created", 413, before(30*time.Minute))
		r.add("badly-signed", "issue_comment", "created", 401, before(30*time.Minute))
		r.add("busy", "issue_comment", "created", 503, before(20*time.Minute))
		stop := redeliver(t, r)
		defer stop()
		time.Sleep(31 * time.Second)
		synctest.Wait()
		want := []string{"down", "no-answer", "a-button", "busy"} // oldest first
		if got := r.askedFor(); !slices.Equal(got, want) {
			t.Fatalf("asked for %q, want %q", got, want)
		}
		// What was refused for the secret is asked for once more after an hour, all else never again.
		time.Sleep(time.Hour)
		synctest.Wait()
		if got := r.askedFor(); !slices.Equal(got, append(want, "badly-signed")) {
			t.Errorf("later: asked for %q", got)
		}
	})
}

// TestRedelivererTiresOut: what never arrives is asked for ever less often, and then no more.
func TestRedelivererTiresOut(t *testing.T) {
	for code, tc := range map[int]struct {
		times int
		least time.Duration // from first to last
	}{
		502: {10, 24 * time.Hour}, 0: {10, 24 * time.Hour}, 500: {10, 24 * time.Hour}, 429: {10, 24 * time.Hour},
		401: {3, 3 * time.Hour}, 415: {3, 3 * time.Hour}, 404: {3, 3 * time.Hour}, 400: {0, 0}, 413: {0, 0},
	} {
		t.Run(fmt.Sprint(code), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := &record{answer: code}
				r.add("a", "issue_comment", "created", code, time.Now())
				stop := redeliver(t, r)
				var first, last time.Time
				for n, end := 0, time.Now().Add(80*time.Hour); time.Now().Before(end); time.Sleep(time.Minute) {
					if got := len(r.askedFor()); got > n {
						if n = got; first.IsZero() {
							first = time.Now()
						}
						last = time.Now()
					}
				}
				stop()
				if got := len(r.askedFor()); got != tc.times || last.Sub(first) < tc.least {
					t.Errorf("asked %d times in %s, want %d in %s or more", got, last.Sub(first), tc.times, tc.least)
				}
				// Another process counts what GitHub lists, and begins nothing anew.
				stop = redeliver(t, r)
				time.Sleep(time.Hour)
				stop()
				if got := len(r.askedFor()); got != tc.times {
					t.Errorf("asked %d times after another start", got)
				}
			})
		})
	}
}

// TestRedelivererPastWhatFails: a delivery that GitHub does not take the question for keeps no other waiting.
func TestRedelivererPastWhatFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &record{answer: 202, deny: map[string]error{}}
		for i := range 5 {
			guid := fmt.Sprint("broken-", i)
			r.add(guid, "issue_comment", "created", 502, time.Now().Add(time.Duration(i-100)*time.Second))
			r.deny[guid] = status(500)
		}
		r.add("good", "issue_comment", "created", 502, time.Now())
		stop := redeliver(t, r)
		defer stop()
		time.Sleep(31 * time.Second)
		if got := r.askedFor(); len(got) != 3 {
			t.Errorf("asked for %q in a row", got)
		}
		time.Sleep(10 * time.Minute)
		if got := r.askedFor(); !slices.Contains(got, "good") {
			t.Errorf("asked for %q", got)
		}
		// What it was refused for is no attempt of the delivery's.
		time.Sleep(2 * time.Hour)
		r.setDeny(nil)
		time.Sleep(2 * time.Hour)
		for i := range 5 {
			if got := r.askedFor(); !slices.Contains(got[max(0, len(got)-5):], fmt.Sprint("broken-", i)) {
				t.Errorf("asked for %q", got)
			}
		}
	})
}

func TestRedelivererReadsLittle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &record{answer: 202}
		for i := range 1000 {
			r.add(fmt.Sprint("old-", i), "issue_comment", "created", 202, time.Now().Add(-time.Duration(2000-i)*time.Minute))
		}
		stop := redeliver(t, r)
		defer stop()
		time.Sleep(31 * time.Second)
		synctest.Wait()
		if n := r.listed(); n != 11 && n != 10 {
			t.Errorf("the first look read %d pages, want all ten", n)
		}
		was := r.listed()
		time.Sleep(31 * time.Minute)
		synctest.Wait()
		if n := r.listed() - was; n != 10 {
			t.Errorf("ten looks read %d pages, want a page each", n)
		}
		r.add("new", "issue_comment", "created", 502, time.Now())
		time.Sleep(4 * time.Minute)
		if got := r.askedFor(); !slices.Equal(got, []string{"new"}) {
			t.Errorf("asked for %q", got)
		}
	})
}

// TestRedelivererIsBounded: pages, requests a round, and what GitHub refuses for one delivery.
func TestRedelivererIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &record{answer: 202, size: 1}
		for i := range 150 {
			r.add(fmt.Sprintf("m-%03d", i), "issue_comment", "created", 502, time.Now().Add(-time.Duration(200-i)*time.Second))
		}
		r.deny = map[string]error{"m-060": status(422), "m-061": status(404)}
		stop := redeliver(t, r)
		defer stop()
		time.Sleep(31 * time.Second)
		synctest.Wait()
		if n := r.listed(); n != 100 {
			t.Errorf("read %d pages, want at most 100", n)
		}
		if got := r.askedFor(); len(got) != 32 || got[0] != "m-050" { // two refused for good
			t.Errorf("asked for %d in the first round, from %s", len(got), got[0])
		}
		r.mu.Lock()
		r.size = 100
		r.mu.Unlock()
		time.Sleep(5 * time.Minute)
		synctest.Wait()
		got := r.askedFor()
		seen := map[string]bool{}
		for _, guid := range got {
			seen[guid] = true
		}
		if len(got) != 150 || len(seen) != 150 {
			t.Errorf("asked %d times for %d deliveries, want once for each of 150", len(got), len(seen))
		}
	})
}

// TestRedelivererLeavesGitHubAlone while it refuses, and as long as it says.
func TestRedelivererLeavesGitHubAlone(t *testing.T) {
	for name, tc := range map[string]struct {
		err  error
		wait time.Duration
	}{
		"429 with a wait": {status(429, "Retry-After", "3600"), time.Hour},
		"403 with a wait": {status(403, "Retry-After", "3600"), time.Hour},
		"broken":          {status(500), 3 * time.Minute},
		"no answer":       {errors.New("connection refused"), 3 * time.Minute},
	} {
		for what, path := range map[string]func(*record, error){
			"listing":      func(r *record, err error) { r.setFail(err) },
			"redelivering": func(r *record, err error) { r.deny = map[string]error{"a": err} },
		} {
			t.Run(name+" "+what, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					r := &record{answer: 202}
					r.add("a", "issue_comment", "created", 502, time.Now())
					path(r, tc.err)
					stop := redeliver(t, r)
					defer stop()
					time.Sleep(31 * time.Second)
					synctest.Wait()
					calls := func() int { return r.listed() + len(r.askedFor()) }
					was := calls()
					time.Sleep(tc.wait - 2*time.Second)
					synctest.Wait()
					if n := calls() - was; n != 0 {
						t.Errorf("asked %d times within %s", n, tc.wait)
					}
					r.mu.Lock()
					r.fail, r.deny, r.asked = nil, nil, nil
					r.mu.Unlock()
					time.Sleep(4 * time.Second)
					synctest.Wait()
					if got := r.askedFor(); !slices.Equal(got, []string{"a"}) {
						t.Errorf("afterwards: asked for %q", got)
					}
				})
			})
		}
	}
}
