package client_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sluice-dev/sluice/pkg/api/client"
	"github.com/sluice-dev/sluice/pkg/api/wire"
	"github.com/sluice-dev/sluice/pkg/cluster"
	"github.com/sluice-dev/sluice/pkg/cluster/clustertest"
	"github.com/sluice-dev/sluice/rollout"
)

var fraud = rollout.Key{Namespace: "models", Name: "fraud"}

func hold(*rollout.Endpoint) (rollout.Op, error) { return rollout.Hold{Reason: "a moment"}, nil }

func request(id string) rollout.Request { return rollout.Request{ID: id} }

// endpoint in the world's store, of the job's repository.
func (w *world) endpoint() {
	w.t.Helper()
	e := clustertest.Endpoint(fraud.Namespace, fraud.Name)
	e.Spec.Repositories = []int64{74}
	if _, err := w.store.Create(w.t.Context(), e); err != nil {
		w.t.Fatal(err)
	}
}

// faulty is a handler before another: it may answer by itself, or cut the connection before or after the other has answered.
type faulty struct {
	next http.Handler
	mu   sync.Mutex
	do   func(w http.ResponseWriter, r *http.Request) (done bool)
}

func (f *faulty) set(do func(http.ResponseWriter, *http.Request) bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.do = do
}

func (f *faulty) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	do := f.do
	f.mu.Unlock()
	if do == nil || !do(w, r) {
		f.next.ServeHTTP(w, r)
	}
}

func TestAnswerIsLost(t *testing.T) {
	w := newWorld(t, everything)
	w.endpoint()
	f := &faulty{next: w.handler}
	c := w.client(f)
	var lost atomic.Int32
	f.set(func(_ http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodGet || r.URL.Path == wire.TokenPath || lost.Add(1) > 2 {
			return false
		}
		w.handler.ServeHTTP(httptest.NewRecorder(), r) // it is carried out, and nobody hears of it
		panic(http.ErrAbortHandler)
	})
	e, out, err := c.Edit(t.Context(), fraud, request("one"), hold)
	if err != nil || !out.Changed || !out.Applied || e.Spec.Hold == nil {
		t.Fatalf("%+v, %v", out, err)
	}
	if n := len(e.Spec.Changes); n != 1 {
		t.Errorf("%d changes are recorded, want 1: it was sent three times", n)
	}
	lost.Store(0)
	if err := c.Delete(t.Context(), fraud, ""); err != nil {
		t.Errorf("delete: %v", err)
	}
	lost.Store(2)
	if err := c.Delete(t.Context(), fraud, ""); !errors.Is(err, cluster.ErrNotFound) {
		t.Errorf("delete once more: %v", err)
	}
}

func TestServerIsAwayForAMoment(t *testing.T) {
	for _, code := range []int{429, 500, 502, 503, 504} {
		t.Run(fmt.Sprint(code), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, everything)
			w.endpoint()
			f := &faulty{next: w.handler}
			c := w.client(f)
			var n atomic.Int32
			f.set(func(w http.ResponseWriter, _ *http.Request) bool { // every other request
				if n.Add(1)%2 == 0 {
					return false
				}
				w.WriteHeader(code)
				return true
			})
			if _, out, err := c.Edit(t.Context(), fraud, request("one"), hold); err != nil || !out.Changed {
				t.Errorf("%+v, %v", out, err)
			}
		})
	}
}

func TestServerStaysAway(t *testing.T) {
	w := newWorld(t, everything)
	f := &faulty{next: w.handler}
	c := w.client(f)
	var n atomic.Int32
	f.set(func(w http.ResponseWriter, _ *http.Request) bool {
		n.Add(1)
		w.WriteHeader(http.StatusBadGateway)
		_, _ = w.Write([]byte("<html>"))
		return true
	})
	_, err := c.Get(t.Context(), fraud)
	if rollout.ReasonOf(err) != rollout.ReasonUnavailable || n.Load() != 7 {
		t.Errorf("%d requests: %v", n.Load(), err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := c.Get(ctx, fraud); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
}

// TestNotOurs: what answers is no API.
func TestNotOurs(t *testing.T) {
	w := newWorld(t, everything)
	f := &faulty{next: w.handler}
	c := w.client(f)
	var elsewhere atomic.Int32
	other := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { elsewhere.Add(1) }))
	defer other.Close()
	for name, do := range map[string]func(http.ResponseWriter, *http.Request) bool{
		"404": func(w http.ResponseWriter, r *http.Request) bool { http.NotFound(w, r); return true },
		"a redirect": func(w http.ResponseWriter, r *http.Request) bool {
			http.Redirect(w, r, other.URL, http.StatusTemporaryRedirect)
			return true
		},
	} {
		f.set(do)
		if _, err := c.Get(t.Context(), fraud); rollout.ReasonOf(err) != rollout.ReasonUnavailable || errors.Is(err, cluster.ErrNotFound) {
			t.Errorf("%s: %v", name, err)
		}
	}
	f.set(func(w http.ResponseWriter, _ *http.Request) bool { _, _ = w.Write([]byte("<html>")); return true })
	if _, err := c.Get(t.Context(), fraud); err == nil {
		t.Error("a page was taken for an answer")
	}
	if elsewhere.Load() != 0 {
		t.Error("a token went elsewhere")
	}
}

// TestSessionEnds: a server that was restarted knows no session of before, and another one is begun.
func TestSessionEnds(t *testing.T) {
	w := newWorld(t, everything)
	w.endpoint()
	f := &faulty{next: w.handler}
	s := httptest.NewServer(f)
	defer s.Close()
	tokens := 0
	c, err := client.New(client.Options{URL: s.URL + "/", Pause: 5 * time.Millisecond, Token: func(ctx context.Context) (string, error) { tokens++; return w.token(ctx) }})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		if _, _, err := c.Edit(t.Context(), fraud, request(fmt.Sprint("a", i)), hold); err != nil {
			t.Fatal(err)
		}
	}
	if tokens != 1 {
		t.Errorf("%d tokens for three edits, want 1", tokens)
	}
	f.next = w.restart()
	if _, out, err := c.Edit(t.Context(), fraud, request("b"), func(*rollout.Endpoint) (rollout.Op, error) { return rollout.Resume{}, nil }); err != nil || !out.Changed || tokens != 2 {
		t.Errorf("after a restart: %+v, %v, %d tokens", out, err, tokens)
	}
	// One that knows none at all is asked twice, not for ever.
	f.set(func(rw http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path == wire.TokenPath {
			return false
		}
		rw.Header().Set("Content-Type", "application/json")
		rw.WriteHeader(401)
		_, _ = rw.Write([]byte(`{"reasonCode": "token_invalid", "message": "no"}`))
		return true
	})
	if _, err := c.Get(t.Context(), fraud); rollout.ReasonOf(err) != rollout.ReasonTokenInvalid || tokens != 3 {
		t.Errorf("%v, %d tokens", err, tokens)
	}
}

func TestRefusedTokens(t *testing.T) {
	w := newWorld(t, everything)
	s := httptest.NewServer(w.handler)
	defer s.Close()
	stale := w.issuer.Claims(audience)
	stale["iat"] = time.Now().Add(-time.Hour).Unix()
	other := w.issuer.Claims("https://other.example")
	used, _ := w.token(t.Context())
	own := errors.New("no permission to ask for tokens")
	for _, tc := range []struct {
		name   string
		token  func() (string, error)
		reason rollout.Reason
	}{
		{"stale", func() (string, error) { return w.issuer.Sign(stale), nil }, rollout.ReasonTokenStale},
		{"another audience", func() (string, error) { return w.issuer.Sign(other), nil }, rollout.ReasonTokenInvalid},
		{"used", func() (string, error) { return used, nil }, rollout.ReasonTokenReplayed},
		{"none", func() (string, error) { return "", own }, rollout.ReasonInternal},
	} {
		calls := 0
		fresh := func() *client.Client {
			c, err := client.New(client.Options{URL: s.URL, Pause: 5 * time.Millisecond, Token: func(context.Context) (string, error) { calls++; return tc.token() }})
			if err != nil {
				t.Fatal(err)
			}
			return c
		}
		if tc.name == "used" {
			if _, err := fresh().Get(t.Context(), fraud); !errors.Is(err, cluster.ErrNotFound) {
				t.Fatal(err)
			}
			calls = 0
		}
		_, err := fresh().Get(t.Context(), fraud)
		if rollout.ReasonOf(err) != tc.reason || calls != 1 {
			t.Errorf("%s: %v after %d tokens", tc.name, err, calls)
		}
		if tc.name == "none" && !errors.Is(err, own) {
			t.Errorf("%v", err)
		}
		if err != nil && strings.Contains(err.Error(), "eyJ") {
			t.Errorf("%s: the error has a token: %v", tc.name, err)
		}
	}
}

func TestOptions(t *testing.T) {
	token := func(context.Context) (string, error) { return "", nil }
	for _, url := range []string{"", "sluice.example", "http://sluice.example", "https://a:b@sluice.example", "ftp://sluice.example", "https://sluice.example?x=1"} {
		if _, err := client.New(client.Options{URL: url, Token: token}); rollout.ReasonOf(err) != rollout.ReasonInvalid {
			t.Errorf("%q: %v", url, err)
		}
	}
	if _, err := client.New(client.Options{URL: "https://sluice.example"}); err == nil {
		t.Error("a client without tokens")
	}
}

// TestOnlyWhatIsOffered: who may act on an endpoint is not changed from outside.
func TestOnlyWhatIsOffered(t *testing.T) {
	w := newWorld(t, everything)
	w.endpoint()
	c := w.client(w.handler)
	for _, op := range []rollout.Op{rollout.SetAuth{Mode: rollout.AuthNone}, rollout.Bind{Repository: 9}, rollout.Unbind{Repository: 74}} {
		if _, _, err := c.Edit(t.Context(), fraud, request(op.String()), func(*rollout.Endpoint) (rollout.Op, error) { return op, nil }); rollout.ReasonOf(err) != rollout.ReasonDenied {
			t.Errorf("%s: %v", op, err)
		}
	}
	if _, _, err := c.Edit(t.Context(), fraud, rollout.Request{ID: "a", Evidence: "12 of 3"}, hold); rollout.ReasonOf(err) != rollout.ReasonInvalid {
		t.Errorf("evidence: %v", err)
	}
	// A message that is too long is cut, whole characters at a time.
	e, _, err := c.Edit(t.Context(), fraud, rollout.Request{ID: "b", Message: strings.Repeat("ü", 4000)}, hold)
	if err != nil {
		t.Fatal(err)
	}
	if m := e.Spec.Changes[0].Message; len(m) > wire.MaxMessage || !strings.HasSuffix(m, "ü …") {
		t.Errorf("message of %d bytes, ending %q", len(m), m[len(m)-8:])
	}
}

func TestList(t *testing.T) {
	w := newWorld(t, everything)
	w.endpoint()
	got, err := w.client(w.handler).List(t.Context(), "models")
	if err != nil || len(got) != 1 || got[0].Key() != fraud {
		t.Errorf("%v, %v", got, err)
	}
}
