package github_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sluice-dev/sluice/pkg/github"
)

// handled notes what a Poller hands over, and answers.
type handled struct {
	mu   sync.Mutex
	got  []string
	code func(guid string, n int) int
}

func (h *handled) handle(_ context.Context, event, delivery string, body []byte) (int, github.Answer) {
	h.mu.Lock()
	h.got = append(h.got, delivery)
	n := 0
	for _, guid := range h.got {
		if guid == delivery {
			n++
		}
	}
	code := h.code
	h.mu.Unlock()
	if !strings.HasSuffix(string(body), "body of "+delivery) {
		panic(fmt.Sprintf("%s of %s has the body %q", event, delivery, body))
	}
	if code == nil {
		return http.StatusAccepted, github.Answer{}
	}
	return code(delivery, n), github.Answer{}
}

func (h *handled) taken() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.got)
}

func poll(t *testing.T, log github.PollLog, h *handled) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if err := github.NewPoller(github.PollerOptions{Log: log, Handle: h.handle}).Run(ctx); err != nil {
			t.Error(err)
		}
	}()
	return func() {
		cancel()
		<-ended
	}
}

func wantTaken(t *testing.T, h *handled, want ...string) {
	t.Helper()
	synctest.Wait()
	if got := h.taken(); !slices.Equal(got, want) {
		t.Errorf("took %q, want %q", got, want)
	}
}

func TestPollerTakesWhatCame(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		now := time.Now()
		r, h := &record{}, &handled{}
		r.add("too-old", "issue_comment", "created", 0, now.Add(-73*time.Hour))
		r.add("while-away", "issue_comment", "created", 0, now.Add(-70*time.Hour))
		r.add("taken-before", "issue_comment", "created", 202, now.Add(-69*time.Hour)) // its journal knows it
		r.add("an-old-button", "check_run", "requested_action", 0, now.Add(-2*time.Hour))
		r.add("opened-before", "pull_request", "opened", 0, now.Add(-time.Hour))
		r.add("another-check", "check_run", "created", 0, now.Add(-time.Minute))
		r.add("second", "issue_comment", "created", 502, now.Add(-time.Second))
		r.add("first", "issue_comment", "created", 502, now.Add(-2*time.Second)) // listed out of order
		stop := poll(t, r, h)
		defer stop()
		wantTaken(t, h, "while-away", "taken-before", "first", "second")

		r.add("closed", "pull_request", "closed", 0, time.Now())
		r.add("opened", "pull_request", "opened", 0, time.Now())
		r.add("starred", "star", "created", 0, time.Now())
		r.add("first", "issue_comment", "created", 502, time.Now()) // delivered again by hand
		time.Sleep(10 * time.Second)
		wantTaken(t, h, "while-away", "taken-before", "first", "second", "closed", "opened")
		time.Sleep(time.Hour)
		wantTaken(t, h, "while-away", "taken-before", "first", "second", "closed", "opened")

		// One that is listed late is not missed.
		r.add("late", "issue_comment", "created", 0, time.Now().Add(-5*time.Minute))
		time.Sleep(10 * time.Second)
		wantTaken(t, h, "while-away", "taken-before", "first", "second", "closed", "opened", "late")
		if n := len(r.reads); n != 7 {
			t.Errorf("%d payloads were read", n)
		}
		if n := r.listed(); n > 400 {
			t.Errorf("%d pages were read", n)
		}
	})
}

// TestPollerTriesAgain: what could not be recorded is not lost, and stays in order within its repository.
func TestPollerTriesAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &record{}
		h := &handled{code: func(guid string, n int) int {
			if guid == "one" && n < 3 {
				return http.StatusServiceUnavailable
			}
			return http.StatusAccepted
		}}
		now := time.Now()
		r.add("one", "issue_comment", "created", 0, now.Add(-3*time.Second))
		r.add("two", "issue_comment", "created", 0, now.Add(-2*time.Second))
		r.add("elsewhere", "issue_comment", "created", 0, now.Add(-time.Second))
		r.all[2].RepositoryID = 8
		stop := poll(t, r, h)
		defer stop()
		wantTaken(t, h, "one", "elsewhere")
		time.Sleep(10 * time.Second)
		wantTaken(t, h, "one", "elsewhere", "one")
		time.Sleep(10 * time.Second)
		wantTaken(t, h, "one", "elsewhere", "one", "one", "two")
		time.Sleep(time.Hour)
		wantTaken(t, h, "one", "elsewhere", "one", "one", "two")
	})
}

// TestPollerGoesOn past what always fails, panics, or is gone.
func TestPollerGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &record{bodies: map[int64]string{1: "poison"}, deny: map[string]error{"gone": status(404)}}
		h := &handled{}
		r.add("poison", "issue_comment", "created", 0, time.Now().Add(-4*time.Second))
		r.add("gone", "issue_comment", "created", 0, time.Now().Add(-3*time.Second))
		r.add("good", "issue_comment", "created", 0, time.Now().Add(-2*time.Second))
		stop := poll(t, r, h)
		time.Sleep(5 * time.Minute)
		synctest.Wait()
		got := h.taken()
		i := slices.Index(got, "good")
		if i < 5 || i > 10 || slices.Contains(got, "gone") {
			t.Errorf("took %q", got)
		}
		r.mu.Lock()
		reads := slices.Clone(r.reads)
		r.mu.Unlock()
		if n := len(slices.DeleteFunc(reads, func(id int64) bool { return id != 2 })); n != 1 {
			t.Errorf("what is gone was asked for %d times", n)
		}
		time.Sleep(80 * time.Hour)
		was := len(h.taken())
		time.Sleep(time.Hour)
		stop()
		if n := len(h.taken()) - was; n != 0 {
			t.Errorf("what is older than GitHub keeps it is tried %d times more", n)
		}
	})
}

// TestPollerPastWhatCannotBeRead: a delivery that GitHub does not give out holds back its repository for a while, and nobody else.
func TestPollerPastWhatCannotBeRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, h := &record{deny: map[string]error{"broken": status(500)}}, &handled{}
		now := time.Now()
		r.add("broken", "issue_comment", "created", 0, now.Add(-4*time.Second))
		r.add("behind", "issue_comment", "created", 0, now.Add(-3*time.Second))
		r.add("elsewhere", "issue_comment", "created", 0, now.Add(-2*time.Second))
		r.all[2].RepositoryID = 8
		stop := poll(t, r, h)
		defer stop()
		wantTaken(t, h, "elsewhere")
		time.Sleep(time.Minute)
		wantTaken(t, h, "elsewhere")
		time.Sleep(10 * time.Minute)
		wantTaken(t, h, "elsewhere", "behind")
		time.Sleep(80 * time.Hour)
		tries := 0
		for _, id := range r.read() {
			if id == 1 {
				tries++
			}
		}
		if tries < 50 || tries > 100 {
			t.Errorf("it was tried %d times in three days", tries)
		}
	})
	// Read at last, it comes before what waited for it.
	synctest.Test(t, func(t *testing.T) {
		r, h := &record{deny: map[string]error{"broken": errors.New("connection reset")}}, &handled{}
		r.add("broken", "issue_comment", "created", 0, time.Now().Add(-4*time.Second))
		r.add("behind", "issue_comment", "created", 0, time.Now().Add(-3*time.Second))
		stop := poll(t, r, h)
		defer stop()
		time.Sleep(time.Second)
		r.setDeny(nil)
		time.Sleep(10 * time.Second)
		wantTaken(t, h, "broken", "behind")
	})
	// However many there are.
	synctest.Test(t, func(t *testing.T) {
		r, h := &record{deny: map[string]error{}}, &handled{}
		for i := range 60 {
			guid := fmt.Sprint("broken-", i)
			r.add(guid, "issue_comment", "created", 0, time.Now().Add(time.Duration(i-100)*time.Second))
			r.all[i].RepositoryID = int64(100 + i)
			r.deny[guid] = status(502)
		}
		r.add("good", "issue_comment", "created", 0, time.Now())
		stop := poll(t, r, h)
		defer stop()
		time.Sleep(time.Second)
		if n := len(r.read()); n != 3 {
			t.Errorf("%d were tried in a row", n)
		}
		time.Sleep(5 * time.Minute)
		wantTaken(t, h, "good")
	})
	// A refusal is of no delivery in particular.
	synctest.Test(t, func(t *testing.T) {
		r, h := &record{deny: map[string]error{"a": status(403, "Retry-After", "1800")}}, &handled{}
		r.add("a", "issue_comment", "created", 0, time.Now().Add(-time.Second))
		r.add("b", "issue_comment", "created", 0, time.Now())
		r.all[1].RepositoryID = 8
		stop := poll(t, r, h)
		defer stop()
		time.Sleep(29 * time.Minute)
		if n := len(r.read()); n != 1 {
			t.Errorf("asked %d times", n)
		}
		r.setDeny(nil)
		time.Sleep(2 * time.Minute)
		wantTaken(t, h, "a", "b")
	})
}

// TestPollerFetchesNoPush: whoever may push makes them as large as they like.
func TestPollerFetchesNoPush(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, h := &record{}, &handled{}
		stop := poll(t, r, h)
		defer stop()
		synctest.Wait()
		r.add("push", "push", "", 0, time.Now())
		r.add("run", "workflow_run", "completed", 0, time.Now())
		time.Sleep(time.Minute)
		wantTaken(t, h, "run")
		if n := len(r.read()); n != 1 {
			t.Errorf("%d were read", n)
		}
	})
}

func TestPollerLeavesGitHubAlone(t *testing.T) {
	for name, tc := range map[string]struct {
		err  error
		wait time.Duration
	}{
		"429 with a wait": {status(429, "Retry-After", "1800"), 30 * time.Minute},
		"403 with a wait": {status(403, "Retry-After", "1800"), 30 * time.Minute},
		"403":             {status(403), time.Minute},
		"broken":          {status(502), 10 * time.Second},
		"no answer":       {errors.New("no route to host"), 10 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r, h := &record{fail: tc.err}, &handled{}
				r.add("a", "issue_comment", "created", 0, time.Now())
				stop := poll(t, r, h)
				defer stop()
				synctest.Wait()
				was := r.listed()
				time.Sleep(tc.wait - time.Second)
				synctest.Wait()
				if n := r.listed() - was; n != 0 {
					t.Errorf("asked %d times within %s", n, tc.wait)
				}
				r.setFail(nil)
				time.Sleep(2 * time.Second)
				wantTaken(t, h, "a")
			})
		})
	}
	// Ever less often while it stays so.
	synctest.Test(t, func(t *testing.T) {
		r, h := &record{fail: status(502)}, &handled{}
		stop := poll(t, r, h)
		defer stop()
		time.Sleep(time.Hour)
		if n := r.listed(); n < 10 || n > 25 {
			t.Errorf("asked %d times in an hour without an answer", n)
		}
	})
}

// TestPollerManyAtOnce: more than a round takes, in order and once each.
func TestPollerManyAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, h := &record{}, &handled{}
		var want []string
		for i := range 250 {
			guid := fmt.Sprintf("m-%03d", i)
			r.add(guid, "issue_comment", "created", 0, time.Now().Add(time.Duration(i-300)*time.Second))
			want = append(want, guid)
		}
		stop := poll(t, r, h)
		defer stop()
		time.Sleep(time.Second)
		wantTaken(t, h, want...)
	})
}
