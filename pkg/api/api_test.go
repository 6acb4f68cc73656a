package api_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/sluice-dev/sluice/pkg/access/oidc"
	"github.com/sluice-dev/sluice/pkg/access/oidc/oidctest"
	"github.com/sluice-dev/sluice/pkg/api"
	"github.com/sluice-dev/sluice/pkg/api/apitest"
	"github.com/sluice-dev/sluice/pkg/api/wire"
	"github.com/sluice-dev/sluice/pkg/cluster"
	"github.com/sluice-dev/sluice/pkg/cluster/clustertest"
	"github.com/sluice-dev/sluice/pkg/cluster/memory"
	"github.com/sluice-dev/sluice/rollout"
)

const audience = "https://sluice.example"

// The rules have one repository that may do all on main, whose pull requests may only deploy, and one that may only look.
const policy = `
apiVersion: sluice.dev/v1alpha1
kind: APIPolicy
rules:
  - repositoryId: 74
    repositoryOwnerId: 65
    events: [push, workflow_dispatch]
    refs: [refs/heads/main, "refs/tags/v*"]
    environments: []
    namespaces: [models]
    endpoints: ["*"]
    commands: [deploy, update, traffic, promote, rollback, retire, prepare, hold, resume, lock, unlock, delete, delete-endpoint]
    allow: [create, force]
    images: ["registry.example/*"]
  - repositoryId: 74
    repositoryOwnerId: 65
    events: [pull_request]
    namespaces: [models]
    endpoints: [fraud, risk]
    commands: [deploy]
    maxPercent: 10
  - repositoryId: 74
    repositoryOwnerId: 65
    events: [schedule]
    environments: [production]
    namespaces: [models]
    endpoints: [fraud]
    commands: [promote]
    jobWorkflowRefs: ["octo-org/octo-automation/.github/workflows/oidc.yml@*"]
  - repositoryId: 74
    repositoryOwnerId: 65
    events: [release]
    namespaces: [models]
    endpoints: [fraud]
    commands: [update]
    maxPercent: 50
  - repositoryId: 74
    repositoryOwnerId: 65
    events: [push]
    environments: [strategy]
    namespaces: [models]
    endpoints: [fraud]
    commands: [deploy]
    allow: [strategy]
  - repositoryId: 75
    repositoryOwnerId: 65
    events: [push]
    namespaces: [models]
    endpoints: [fraud]
    commands: [read, promote]
`

type world struct {
	t       *testing.T
	issuer  *oidctest.Issuer
	store   *memory.Store
	journal *memory.Journal
	handler http.Handler
	log     *logged
}

// logged is what the server wrote to its log.
type logged struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func newWorld(t *testing.T, change ...func(*api.Options)) *world {
	t.Helper()
	return newWorldWith(t, oidctest.New(t), change...)
}

func newWorldWith(t *testing.T, issuer *oidctest.Issuer, change ...func(*api.Options)) *world {
	t.Helper()
	w := &world{t: t, issuer: issuer, store: memory.NewStore(), journal: memory.NewJournal(), log: &logged{}}
	w.handler = w.server(change...)
	return w
}

// server on the world's store and journal.
func (w *world) server(change ...func(*api.Options)) http.Handler {
	w.t.Helper()
	v, err := oidc.New(oidc.Config{Issuer: w.issuer.URL, Audience: audience})
	if err != nil {
		w.t.Fatal(err)
	}
	p, err := api.ParsePolicy([]byte(policy))
	if err != nil {
		w.t.Fatal(err)
	}
	o := api.Options{Store: w.store, Journal: w.journal, Tokens: v, Policy: p, Logger: slog.New(slog.NewJSONHandler(w.log, &slog.HandlerOptions{Level: slog.LevelDebug}))}
	for _, c := range change {
		c(&o)
	}
	h, err := api.New(o)
	if err != nil {
		w.t.Fatal(err)
	}
	return apitest.Checked(w.t, h)
}

// reply to a request.
type reply struct {
	code   int
	header http.Header
	body   []byte
}

func (r reply) reason() rollout.Reason {
	var e wire.Error
	_ = json.Unmarshal(r.body, &e) // no error's body has no reason
	return e.Reason
}

func (w *world) do(h http.Handler, method, path, token, body string, header ...string) reply {
	w.t.Helper()
	r := httptest.NewRequest(method, path, strings.NewReader(body))
	if body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	rec := httptest.NewRecorder()
	h.ServeHTTP(rec, r)
	return reply{rec.Code, rec.Header(), rec.Body.Bytes()}
}

// claims of the issuer's usual job, some of them otherwise.
func (w *world) claims(pairs ...any) jwt.MapClaims {
	c := w.issuer.Claims(audience)
	for i := 0; i+1 < len(pairs); i += 2 {
		c[pairs[i].(string)] = pairs[i+1]
	}
	return c
}

// session of a job with those claims.
func (w *world) session(pairs ...any) string {
	w.t.Helper()
	r := w.do(w.handler, http.MethodPost, wire.TokenPath, w.issuer.Sign(w.claims(pairs...)), "")
	var t wire.Token
	if err := json.Unmarshal(r.body, &t); err != nil || r.code != http.StatusOK || t.AccessToken == "" {
		w.t.Fatalf("session: %d %s", r.code, r.body)
	}
	return t.AccessToken
}

func (w *world) want(what string, r reply, code int, reason rollout.Reason) {
	w.t.Helper()
	if r.code != code || r.reason() != reason {
		w.t.Errorf("%s: %d %s, want %d %s", what, r.code, r.body, code, reason)
	}
}

var fraud = rollout.Key{Namespace: "models", Name: "fraud"}

// add a version to an endpoint bound to repository 74, and to 75 if it is fraud.
func (w *world) add(key rollout.Key, version string, digit byte, repository int64) {
	w.t.Helper()
	w.addFrom(key, version, digit, rollout.Source{RepositoryID: repository})
}

func (w *world) addFrom(key rollout.Key, version string, digit byte, source rollout.Source) {
	w.t.Helper()
	_, _, err := cluster.Edit(w.t.Context(), w.store, key, rollout.Request{ID: "set-up-" + version, Actor: "test", At: time.Now()}, func(*rollout.Endpoint) (rollout.Op, error) {
		return rollout.Deploy{Repositories: []int64{74}, Version: rollout.Version{Name: version, Image: clustertest.Image(digit), Source: source}}, nil
	})
	if err != nil {
		w.t.Fatal(err)
	}
}

func deployBody(version string, digit byte, more string) string {
	return fmt.Sprintf(`{"version": {"name": %q, "image": %q%s}}`, version, clustertest.Image(digit), more)
}

func deployStrategy(version string, digit byte, strategy string) string {
	return `{"strategy": ` + strategy + `, ` + deployBody(version, digit, "")[1:]
}

const sha = "1f2e3d4c5b6a79881726354453627180f0e0d0c0"

// pull is a job that a pull request started.
func pull(number int) []any {
	return []any{"event_name", "pull_request", "ref", fmt.Sprintf("refs/pull/%d/merge", number), "sha", strings.Repeat("e", 40), "run_id", "2002"}
}

// TestTokens has a line for each token that is refused, and for what is not.
func TestTokens(t *testing.T) {
	w := newWorld(t)
	other := oidctest.New(t)
	at := func(d time.Duration) int64 { return time.Now().Add(d).Unix() }
	foreign := oidctest.NewKey(t)
	for _, tc := range []struct {
		name, token string
		code        int
		reason      rollout.Reason
	}{
		{"a push to main", w.issuer.Sign(w.claims()), 200, ""},
		{"a tag", w.issuer.Sign(w.claims("ref", "refs/tags/v1.2")), 200, ""},
		{"a pull request", w.issuer.Sign(w.claims(pull(41)...)), 200, ""},
		{"a job with the environment", w.issuer.Sign(w.claims("event_name", "schedule", "environment", "production")), 200, ""},

		{"no token", "", 401, rollout.ReasonTokenInvalid},
		{"another audience", w.issuer.Sign(w.claims("aud", "https://github.com/octo-org")), 401, rollout.ReasonTokenInvalid},
		{"stale", w.issuer.Sign(w.claims("iat", at(-20*time.Minute))), 401, rollout.ReasonTokenStale},
		{"from the future", w.issuer.Sign(w.claims("iat", at(5*time.Minute))), 401, rollout.ReasonTokenStale},
		{"expired", w.issuer.Sign(w.claims("exp", at(-time.Second))), 401, rollout.ReasonTokenStale},
		{"no algorithm", w.issuer.SignWith(jwt.SigningMethodNone, "", jwt.UnsafeAllowNoneSignatureType, w.claims()), 401, rollout.ReasonTokenInvalid},
		{"the public key as a secret", w.issuer.SignWith(jwt.SigningMethodHS256, "", w.issuer.PublicPEM(), w.claims()), 401, rollout.ReasonTokenInvalid},
		{"an unknown key", w.issuer.SignWith(jwt.SigningMethodRS256, "made-up", foreign, w.claims()), 401, rollout.ReasonTokenInvalid},
		{"another issuer", other.Sign(other.Claims(audience)), 401, rollout.ReasonTokenInvalid},
		{"no jti", w.issuer.Sign(w.claims("jti", "")), 401, rollout.ReasonTokenInvalid},
		{"no repository id", w.issuer.Sign(w.claims("repository_id", "")), 401, rollout.ReasonTokenInvalid},

		{"another repository", w.issuer.Sign(w.claims("repository_id", "99")), 403, rollout.ReasonDenied},
		{"another repository under the same name and sub", w.issuer.Sign(w.claims("repository_id", "99", "repository_owner_id", "98")), 403, rollout.ReasonDenied},
		{"a repository that another owner has now", w.issuer.Sign(w.claims("repository_owner_id", "66")), 403, rollout.ReasonDenied},
		{"pull_request_target", w.issuer.Sign(w.claims("event_name", "pull_request_target")), 403, rollout.ReasonDenied},
		{"issue_comment", w.issuer.Sign(w.claims("event_name", "issue_comment")), 403, rollout.ReasonDenied},
		{"workflow_run", w.issuer.Sign(w.claims("event_name", "workflow_run")), 403, rollout.ReasonDenied},
		{"another branch", w.issuer.Sign(w.claims("ref", "refs/heads/mine")), 403, rollout.ReasonDenied},
		{"a branch whose name begins so", w.issuer.Sign(w.claims("ref", "refs/heads/main2")), 403, rollout.ReasonDenied},
		{"no environment", w.issuer.Sign(w.claims("event_name", "schedule")), 403, rollout.ReasonDenied},
		{"another environment", w.issuer.Sign(w.claims("event_name", "schedule", "environment", "staging")), 403, rollout.ReasonDenied},
		{"another workflow", w.issuer.Sign(w.claims("event_name", "schedule", "environment", "production", "job_workflow_ref", "octo-org/octo-repo/.github/workflows/mine.yml@refs/heads/main")), 403, rollout.ReasonDenied},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := w.do(w.handler, http.MethodPost, wire.TokenPath, tc.token, "")
			if r.code != tc.code || r.reason() != tc.reason {
				t.Fatalf("%d %s, want %d %s", r.code, r.body, tc.code, tc.reason)
			}
			if got := r.header.Get("WWW-Authenticate"); (got != "") != (r.code == 401) {
				t.Errorf("WWW-Authenticate %q", got)
			}
			if r.code != 200 && tc.token != "" {
				for part := range strings.SplitSeq(tc.token, ".") {
					if len(part) > 0 && (bytes.Contains(r.body, []byte(part)) || strings.Contains(w.log.String(), part)) {
						t.Errorf("a part of the token is told or logged")
					}
				}
			}
		})
	}
	// What strangers may have is the same for all of them: nothing tells a repository that has rules from one that has none.
	a := w.do(w.handler, http.MethodPost, wire.TokenPath, w.issuer.Sign(w.claims("repository_owner_id", "66")), "")
	b := w.do(w.handler, http.MethodPost, wire.TokenPath, w.issuer.Sign(w.claims("repository_id", "99", "repository_owner_id", "66")), "")
	if string(a.body) != strings.ReplaceAll(string(b.body), "99", "74") {
		t.Errorf("another owner is told %s, a stranger %s", a.body, b.body)
	}
	entries, err := w.journal.Entries(t.Context())
	if err != nil || len(entries) != 4 {
		t.Errorf("%d tokens are recorded, want the 4 good ones: %v", len(entries), err)
	}
}

func TestTokenIsTakenOnce(t *testing.T) {
	w := newWorld(t)
	token := w.issuer.Sign(w.claims())
	w.want("first", w.do(w.handler, http.MethodPost, wire.TokenPath, token, ""), 200, "")
	w.want("again", w.do(w.handler, http.MethodPost, wire.TokenPath, token, ""), 401, rollout.ReasonTokenReplayed)
	// A server beside it, and one after a restart, know it too.
	w.want("elsewhere", w.do(w.server(), http.MethodPost, wire.TokenPath, token, ""), 401, rollout.ReasonTokenReplayed)
	// Of many at once, one wins.
	token = w.issuer.Sign(w.claims())
	var won, lost int
	var mu sync.Mutex
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			r := w.do(w.handler, http.MethodPost, wire.TokenPath, token, "")
			mu.Lock()
			defer mu.Unlock()
			switch {
			case r.code == 200:
				won++
			case r.reason() == rollout.ReasonTokenReplayed:
				lost++
			}
		})
	}
	wg.Wait()
	if won != 1 || lost != 15 {
		t.Errorf("%d won, %d lost", won, lost)
	}
	entries, _ := w.journal.Entries(t.Context())
	for _, e := range entries {
		if !strings.HasPrefix(e.Name, "t-") || e.State != cluster.EntryDone || e.Actor != "github:octocat@octo-org/octo-repo#1001" {
			t.Errorf("recorded %+v", e)
		}
	}
	// Where it cannot be recorded it is not taken.
	w.journal.SetFailure(errors.New("no journal"))
	w.want("without a journal", w.do(w.handler, http.MethodPost, wire.TokenPath, w.issuer.Sign(w.claims()), ""), 503, rollout.ReasonUnavailable)
}

func TestIssuerIsSilent(t *testing.T) {
	w := newWorld(t)
	w.issuer.SetDown(true)
	r := w.do(w.handler, http.MethodPost, wire.TokenPath, w.issuer.Sign(w.claims()), "")
	w.want("down", r, 503, rollout.ReasonUnavailable)
	if r.header.Get("Retry-After") == "" {
		t.Error("no Retry-After")
	}
}

func TestSessions(t *testing.T) {
	now := time.Now()
	key := bytes.Repeat([]byte("k"), 32)
	set := func(o *api.Options) { o.SessionKey, o.Now = key, func() time.Time { return now } }
	w := newWorld(t, set)
	w.add(fraud, "v1", 'a', 74)
	path := wire.Endpoint(fraud)
	session := w.session()
	w.want("a session", w.do(w.handler, http.MethodGet, path, session, ""), 200, "")
	w.want("the same key elsewhere", w.do(w.server(set), http.MethodGet, path, session, ""), 200, "")
	w.want("another key", w.do(w.server(), http.MethodGet, path, session, ""), 401, rollout.ReasonTokenInvalid)
	r := w.do(w.handler, http.MethodGet, path, "", "")
	w.want("none", r, 401, rollout.ReasonUnauthorized)
	if got := r.header.Get("WWW-Authenticate"); got != `Bearer realm="sluice"` {
		t.Errorf("challenge %q", got)
	}
	w.want("another scheme", w.do(w.handler, http.MethodGet, path, "", "", "Authorization", "Basic "+session), 401, rollout.ReasonUnauthorized)
	w.want("an OIDC token instead", w.do(w.handler, http.MethodGet, path, w.issuer.Sign(w.claims()), ""), 401, rollout.ReasonTokenInvalid)
	w.want("a session instead of an OIDC token", w.do(w.handler, http.MethodPost, wire.TokenPath, session, ""), 401, rollout.ReasonTokenInvalid)
	parts := strings.Split(session, ".")
	w.want("no signature", w.do(w.handler, http.MethodGet, path, parts[0]+"."+parts[1]+".", ""), 401, rollout.ReasonTokenInvalid)
	forge := func(method jwt.SigningMethod, with any, change func(jwt.MapClaims)) string {
		c := jwt.MapClaims{}
		if _, _, err := jwt.NewParser().ParseUnverified(session, c); err != nil {
			t.Fatal(err)
		}
		change(c)
		s, err := jwt.NewWithClaims(method, c).SignedString(with)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	same := func(jwt.MapClaims) {}
	w.want("signed alike", w.do(w.handler, http.MethodGet, path, forge(jwt.SigningMethodHS256, key, same), ""), 200, "")
	for name, s := range map[string]string{
		"no algorithm":            forge(jwt.SigningMethodNone, jwt.UnsafeAllowNoneSignatureType, same),
		"another algorithm":       forge(jwt.SigningMethodHS512, key, same),
		"a key that is guessed":   forge(jwt.SigningMethodHS256, []byte("guessed"), same),
		"no end":                  forge(jwt.SigningMethodHS256, key, func(c jwt.MapClaims) { delete(c, "exp") }),
		"another server's":        forge(jwt.SigningMethodHS256, key, func(c jwt.MapClaims) { c["aud"] = "https://other.example" }),
		"something else by a key": forge(jwt.SigningMethodHS256, key, func(c jwt.MapClaims) { c["iss"] = "webhook" }),
	} {
		w.want(name, w.do(w.handler, http.MethodGet, path, s, ""), 401, rollout.ReasonTokenInvalid)
	}
	for _, bad := range []string{`{"ttlSeconds": 59}`, `{"ttlSeconds": -1}`, `{"ttlSeconds": 3601}`, `{"ttlSeconds": 99999999999999}`, `{"ttl": 60}`, `[`} {
		if r := w.do(w.handler, http.MethodPost, wire.TokenPath, w.issuer.Sign(w.claims()), bad); r.code != 400 {
			t.Errorf("%s: %d %s", bad, r.code, r.body)
		}
	}
	r = w.do(w.handler, http.MethodPost, wire.TokenPath, w.issuer.Sign(w.claims()), `{"ttlSeconds": 120}`)
	var short wire.Token
	if err := json.Unmarshal(r.body, &short); err != nil || short.ExpiresIn != 120 {
		t.Fatalf("%s, %v", r.body, err)
	}
	now = now.Add(2*time.Minute + time.Second)
	w.want("a short one later", w.do(w.handler, http.MethodGet, path, short.AccessToken, ""), 401, rollout.ReasonTokenStale)
	w.want("a long one later", w.do(w.handler, http.MethodGet, path, session, ""), 200, "")
	now = now.Add(time.Hour)
	w.want("an hour later", w.do(w.handler, http.MethodGet, path, session, ""), 401, rollout.ReasonTokenStale)
	if log := w.log.String(); strings.Contains(log, session) || strings.Contains(log, parts[2]) || strings.Contains(log, string(key)) {
		t.Error("a session or the key is in the log")
	}
	if _, err := api.New(api.Options{Store: w.store, Journal: w.journal, Tokens: noTokens{}, Policy: &api.Policy{}, SessionKey: []byte("short")}); rollout.ReasonOf(err) != rollout.ReasonInvalid {
		t.Errorf("a short key: %v", err)
	}
}

type noTokens struct{ api.Tokens }

func (noTokens) Audience() string { return audience }

// TestRuleIsTakenAway: what a session may do is asked of the policy each time.
func TestRuleIsTakenAway(t *testing.T) {
	key := bytes.Repeat([]byte("k"), 32)
	set := func(o *api.Options) { o.SessionKey = key }
	w := newWorld(t, set)
	w.add(fraud, "v1", 'a', 74)
	session := w.session()
	stricter := w.server(set, func(o *api.Options) { o.Policy.Rules = o.Policy.Rules[1:] })
	w.want("before", w.do(w.handler, http.MethodGet, wire.Endpoint(fraud), session, ""), 200, "")
	w.want("after", w.do(stricter, http.MethodGet, wire.Endpoint(fraud), session, ""), 403, rollout.ReasonDenied)
}

// TestPermitted has a line for each command that is permitted or not.
func TestPermitted(t *testing.T) {
	main, request, scheduled, released, other := []any{}, pull(41), []any{"event_name", "schedule", "environment", "production"}, []any{"event_name", "release"}, []any{"repository_id", "75"}
	tagged := []any{"ref", "refs/tags/v1.2", "event_name", "push", "environment", "strategy"}
	other404 := wire.Endpoint(rollout.Key{Namespace: "models", Name: "missing"})
	elsewhere := wire.Endpoint(rollout.Key{Namespace: "other", Name: "fraud"})
	unbound := wire.Endpoint(rollout.Key{Namespace: "models", Name: "risk"})
	path := wire.Endpoint(fraud)
	pulled, another := path+"/versions/pulled", path+"/versions/another"
	mine, theirs, serving := path+"/versions/mine", path+"/versions/theirs", path+"/versions/v1"
	issuer := oidctest.New(t)
	for _, tc := range []struct {
		name, method, path string
		job                []any
		body               string
		code               int
		reason             rollout.Reason
	}{
		{"read", "GET", path, main, "", 200, ""},
		{"read, by a rule without read", "GET", path, request, "", 200, ""},
		{"read what is not bound", "GET", unbound, main, "", 403, rollout.ReasonNotBound},
		{"read in another namespace", "GET", elsewhere, main, "", 403, rollout.ReasonDenied},
		{"read another endpoint", "GET", unbound, scheduled, "", 403, rollout.ReasonDenied},
		{"read what is not there", "GET", other404, main, "", 404, rollout.ReasonUnknownEndpoint},
		{"read what is not there, and not permitted", "GET", other404, request, "", 403, rollout.ReasonDenied},
		{"a repository that the endpoint does not have", "GET", path, other, "", 403, rollout.ReasonNotBound},
		{"its command", "POST", serving + ":promote", other, "", 403, rollout.ReasonNotBound},

		{"deploy", "POST", path + "/versions", main, deployBody("new", 'e', ""), 200, ""},
		{"deploy from a pull request", "POST", path + "/versions", request, deployBody("new", 'e', ""), 200, ""},
		{"deploy without the command", "POST", path + "/versions", scheduled, deployBody("new", 'e', ""), 403, rollout.ReasonDenied},
		{"make an endpoint", "POST", other404 + "/versions", main, deployBody("new", 'e', ""), 200, ""},
		{"make an endpoint without the right", "POST", wire.Endpoint(rollout.Key{Namespace: "models", Name: "risk2"}) + "/versions", request, deployBody("new", 'e', ""), 403, rollout.ReasonDenied},
		{"join what is not bound", "POST", unbound + "/versions", main, deployBody("new", 'e', ""), 403, rollout.ReasonNotBound},
		{"bind one's own", "POST", other404 + "/versions", main, `{"repositories": [74], ` + deployBody("new", 'e', "")[1:], 200, ""},
		{"bind another", "POST", other404 + "/versions", main, `{"repositories": [75], ` + deployBody("new", 'e', "")[1:], 403, rollout.ReasonDenied},
		{"an image from elsewhere", "POST", path + "/versions", main, strings.Replace(deployBody("new", 'e', ""), "registry.example", "evil.example", 1), 403, rollout.ReasonDenied},
		{"an image by tag", "POST", path + "/versions", main, `{"version": {"name": "new", "image": "registry.example/model:latest"}}`, 422, rollout.ReasonInvalid},
		{"another repository's source", "POST", path + "/versions", main, deployBody("new", 'e', `, "source": {"repositoryId": 75}`), 403, rollout.ReasonDenied},
		{"another run", "POST", path + "/versions", main, deployBody("new", 'e', `, "source": {"runId": 7}`), 403, rollout.ReasonDenied},
		{"another commit", "POST", path + "/versions", main, deployBody("new", 'e', `, "source": {"commit": "`+strings.Repeat("f", 40)+`"}`), 403, rollout.ReasonDenied},
		{"the commit", "POST", path + "/versions", main, deployBody("new", 'e', `, "source": {"commit": "`+sha+`", "repositoryId": 74, "runId": 1001}`), 200, ""},
		{"a pull request's head", "POST", path + "/versions", request, deployBody("new", 'e', `, "source": {"commit": "`+strings.Repeat("f", 40)+`", "pullRequest": 41}`), 200, ""},
		{"another pull request", "POST", path + "/versions", request, deployBody("new", 'e', `, "source": {"pullRequest": 42}`), 403, rollout.ReasonDenied},
		{"a template", "POST", path + "/versions", main, deployBody("new", 'e', `, "template": {"spec": {"serviceAccountName": "admin"}}`), 403, rollout.ReasonDenied},
		{"a Secret", "POST", path + "/versions", main, deployBody("new", 'e', `, "environmentVariables": {"A": {"secret": "s", "key": "k"}}`), 403, rollout.ReasonDenied},
		{"a variable", "POST", path + "/versions", main, deployBody("new", 'e', `, "environmentVariables": {"A": "b"}`), 200, ""},
		{"a pull request that it is not of", "POST", path + "/versions", main, deployBody("new", 'e', `, "source": {"pullRequest": 41}`), 403, rollout.ReasonDenied},
		{"an image that leads elsewhere", "POST", path + "/versions", main, strings.Replace(deployBody("new", 'e', ""), "registry.example/", "registry.example/models/../../evil.example/", 1), 422, rollout.ReasonInvalid},
		{"an image without a name", "POST", path + "/versions", main, strings.Replace(deployBody("new", 'e', ""), "registry.example/model", "registry.example/", 1), 422, rollout.ReasonInvalid},
		{"an image with an empty part", "POST", path + "/versions", main, strings.Replace(deployBody("new", 'e', ""), "registry.example/", "registry.example//", 1), 422, rollout.ReasonInvalid},
		{"an image without a registry", "POST", path + "/versions", main, strings.Replace(deployBody("new", 'e', ""), "registry.example/", "", 1), 422, rollout.ReasonInvalid},
		{"a strategy", "POST", path + "/versions", request, deployStrategy("new", 'e', `{"gate": "none", "steps": [{"percent": 10}]}`), 403, rollout.ReasonDenied},
		{"a strategy, on main", "POST", path + "/versions", main, deployStrategy("new", 'e', `{"gate": "none", "steps": [{"percent": 10}]}`), 403, rollout.ReasonDenied},
		{"a strategy, with the right", "POST", path + "/versions", tagged, deployStrategy("new", 'e', `{"gate": "none", "steps": [{"percent": 10}]}`), 200, ""},
		{"a strategy of what is made", "POST", other404 + "/versions", main, deployStrategy("new", 'e', `{"steps": [{"percent": 10}]}`), 200, ""},
		{"a role of its own", "POST", path + "/versions", main, deployBody("new", 'e', `, "type": "control"`), 400, rollout.ReasonUnknownField},
		{"a share of its own", "POST", path + "/versions", main, deployBody("new", 'e', `, "trafficPercentile": 100`), 400, rollout.ReasonUnknownField},

		{"a deploy's first part", "PATCH", pulled, request, `{"type": "treatment", "percent": 10}`, 200, ""},
		{"more than it may", "PATCH", pulled, request, `{"type": "treatment", "percent": 10.001}`, 403, rollout.ReasonDenied},
		{"more, on main", "PATCH", mine, main, `{"type": "treatment", "percent": 60}`, 200, ""},
		{"as the control", "PATCH", pulled, request, `{"type": "control"}`, 403, rollout.ReasonDenied},
		{"as the default", "PATCH", pulled, request, `{"default": true}`, 403, rollout.ReasonDenied},
		{"with settings", "PATCH", pulled, request, `{"settings": {"replicas": 100}}`, 403, rollout.ReasonDenied},
		{"with a template, on main", "PATCH", mine, main, `{"settings": {"template": {"spec": {}}}}`, 403, rollout.ReasonDenied},
		{"what no pull request deployed", "PATCH", mine, request, `{"type": "treatment", "percent": 10}`, 403, rollout.ReasonDenied},
		{"what another pull request deployed", "PATCH", another, request, `{"type": "treatment", "percent": 10}`, 403, rollout.ReasonDenied},
		{"prepare another pull request's", "POST", another + ":prepare", request, `{"percent": 1}`, 403, rollout.ReasonDenied},
		{"give up another pull request's", "POST", another + ":retire", request, "", 403, rollout.ReasonDenied},
		{"what serves", "PATCH", serving, request, `{"percent": 0}`, 403, rollout.ReasonDenied},
		{"what another repository deployed", "PATCH", theirs, request, `{"type": "treatment"}`, 403, rollout.ReasonDenied},
		{"up to a bound", "PATCH", mine, released, `{"type": "treatment", "percent": 50}`, 200, ""},
		{"beyond it, as the default", "PATCH", mine, released, `{"default": true}`, 403, rollout.ReasonDenied},
		{"beyond it, as the control", "PATCH", mine, released, `{"type": "control"}`, 403, rollout.ReasonDenied},
		{"as the default, on main", "PATCH", mine, main, `{"type": "control", "default": true}`, 200, ""},
		{"prepare", "POST", pulled + ":prepare", request, `{"percent": 10}`, 200, ""},
		{"prepare for more", "POST", pulled + ":prepare", request, `{"percent": 20}`, 403, rollout.ReasonDenied},
		{"prepare another's", "POST", theirs + ":prepare", request, `{"percent": 1}`, 403, rollout.ReasonDenied},
		{"give up", "POST", pulled + ":retire", request, `{"reasonCode": "init_failed", "message": "Traceback"}`, 200, ""},
		{"give up another's", "POST", theirs + ":retire", request, "", 403, rollout.ReasonDenied},
		{"give up what serves", "POST", serving + ":retire", request, "", 403, rollout.ReasonDenied},
		{"shift", "POST", mine + ":shift", request, `{"percent": 1}`, 403, rollout.ReasonDenied},
		{"promote", "POST", mine + ":promote", request, "", 403, rollout.ReasonDenied},
		{"roll back", "POST", mine + ":rollback", request, "", 403, rollout.ReasonDenied},
		{"hold", "POST", path + ":hold", request, "", 403, rollout.ReasonDenied},
		{"lock", "POST", path + ":lock", request, "", 403, rollout.ReasonDenied},
		{"delete a version", "DELETE", mine, request, "", 403, rollout.ReasonDenied},
		{"delete the endpoint", "DELETE", path, request, "", 403, rollout.ReasonDenied},

		{"hold, on main", "POST", path + ":hold", main, `{"reason": "a moment"}`, 200, ""},
		{"not ready, on main", "POST", mine + ":shift", main, `{"percent": 1}`, 422, rollout.ReasonNotEnoughReady},
		{"forced, on main", "POST", mine + ":shift", main, `{"percent": 1, "force": true}`, 200, ""},
		{"forced without the right", "POST", mine + ":promote", scheduled, `{"force": true}`, 403, rollout.ReasonDenied},
		{"what cannot be promoted", "POST", mine + ":promote", scheduled, "", 422, rollout.ReasonNotTreatment},
		{"what is not there", "POST", path + "/versions/v9:promote", scheduled, "", 404, rollout.ReasonUnknownVersion},
		{"delete, on main", "DELETE", mine, main, "", 200, ""},
		{"delete the default, on main", "DELETE", serving + "?newDefault=mine", main, "", 200, ""},
		{"delete the endpoint, on main", "DELETE", path, main, "", 204, ""},
		{"delete what is not bound", "DELETE", unbound, main, "", 403, rollout.ReasonNotBound},
		{"a transition of nothing", "POST", other404 + ":hold", main, "", 404, rollout.ReasonUnknownEndpoint},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorldWith(t, issuer)
			w.add(fraud, "v1", 'a', 74)
			w.add(fraud, "mine", 'b', 74)
			w.add(fraud, "theirs", 'c', 75)
			w.addFrom(fraud, "pulled", 'd', rollout.Source{RepositoryID: 74, PullRequest: 41})
			w.addFrom(fraud, "another", 'd', rollout.Source{RepositoryID: 74, PullRequest: 42})
			risk := clustertest.Endpoint("models", "risk")
			risk.Spec.Repositories = []int64{99}
			if _, err := w.store.Create(t.Context(), risk); err != nil {
				t.Fatal(err)
			}
			before, _ := w.store.List(t.Context())
			r := w.do(w.handler, tc.method, tc.path, w.session(tc.job...), tc.body)
			if r.code != tc.code || r.reason() != tc.reason {
				t.Fatalf("%d %s, want %d %s", r.code, r.body, tc.code, tc.reason)
			}
			after, _ := w.store.List(t.Context())
			same := slices.EqualFunc(before, after, func(a, b *rollout.Endpoint) bool { return a.Metadata == b.Metadata })
			if changes := tc.method != "GET" && tc.code < 300; same == changes {
				t.Errorf("the store was changed: %t, want %t", !same, changes)
			}
			if !strings.Contains(w.log.String(), `"actor":"github:octocat@octo-org/octo-repo#`) {
				t.Errorf("the log does not say who: %s", w.log)
			}
		})
	}
}

// TestTenPerCent: what a job that may only deploy, at 10 per cent at most, can get for its pull request, by whatever it sends.
func TestTenPerCent(t *testing.T) {
	w := newWorld(t)
	w.addFrom(fraud, "v1", 'a', rollout.Source{RepositoryID: 74, Commit: sha})
	strategy := &rollout.Strategy{Steps: []rollout.Step{{Percent: 5 * rollout.OnePercent}}}
	edit := func(id string, op rollout.Op) {
		t.Helper()
		if _, _, err := cluster.Edit(t.Context(), w.store, fraud, rollout.Request{ID: id, Actor: "test", At: time.Now(), Force: true}, func(*rollout.Endpoint) (rollout.Op, error) { return op, nil }); err != nil {
			t.Fatal(err)
		}
	}
	edit("strategy", rollout.Deploy{Strategy: strategy, Version: rollout.Version{Name: "v2", Image: clustertest.Image('b'), Source: rollout.Source{RepositoryID: 74, PullRequest: 41, Commit: strings.Repeat("2", 40)}}})
	edit("v2-in", rollout.Update{Version: "v2", Type: ptr(rollout.Treatment), Percent: ptr(10 * rollout.OnePercent)})
	edit("v2-out", rollout.Rollback{Version: "v2"})
	edit("v2-again", rollout.Prepare{Version: "v2", Percent: rollout.OnePercent}) // a maintainer looks at it: its replicas are back
	session := w.session(pull(41)...)
	path := wire.Endpoint(fraud)
	spec := func() *rollout.Spec {
		t.Helper()
		e, err := w.store.Get(t.Context(), fraud)
		if err != nil {
			t.Fatal(err)
		}
		return &e.Spec
	}
	digest := rollout.ShiftDigest(spec())
	for name, more := range map[string]string{
		"no gate": `{"gate": "none", "steps": [{"percent": 10}]}`, "other steps": `{"steps": [{"percent": 100}]}`, "another alpha": `{"steps": [{"percent": 5}], "alpha": 0.4}`,
	} {
		r := w.do(w.handler, http.MethodPost, path+"/versions", session, deployStrategy("v3", 'c', more))
		w.want(name, r, 403, rollout.ReasonDenied)
		if !bytes.Contains(r.body, []byte(`allow \"strategy\"`)) {
			t.Errorf("%s: it does not say what to allow: %s", name, r.body)
		}
	}
	w.want("what was rolled back", w.do(w.handler, http.MethodPatch, path+"/versions/v2", session, `{"type": "treatment", "percent": 10}`), 403, rollout.ReasonDenied)
	w.want("replicas for what was rolled back", w.do(w.handler, http.MethodPost, path+"/versions/v2:prepare", session, `{"percent": 10}`), 403, rollout.ReasonDenied)
	if rollout.ShiftDigest(spec()) != digest || spec().Version("v3") != nil {
		t.Errorf("the endpoint was changed: %+v", spec())
	}
	// The endpoint's own strategy, in other words, changes none of them.
	w.want("the same strategy", w.do(w.handler, http.MethodPost, path+"/versions", session, deployStrategy("v3", 'c', `{"gate": "verdict", "steps": [{"percent": 5}]}`)), 200, "")
	w.want("no strategy", w.do(w.handler, http.MethodPost, path+"/versions", session, deployBody("v4", 'd', "")), 200, "")
	if got := spec().Strategy; got.Gate != "" || len(got.Steps) != 1 || rollout.ShiftDigest(spec()) != digest {
		t.Errorf("the strategy is %+v", got)
	}
	w.want("a first part", w.do(w.handler, http.MethodPatch, path+"/versions/v3", session, `{"type": "treatment", "percent": 10}`), 200, "")
	w.want("another ten", w.do(w.handler, http.MethodPatch, path+"/versions/v4", session, `{"type": "treatment", "percent": 10}`), 403, rollout.ReasonDenied)
	w.want("another ten, untyped", w.do(w.handler, http.MethodPatch, path+"/versions/v4", session, `{"percent": 10}`), 403, rollout.ReasonDenied)
	w.want("another pull request's ten", w.do(w.handler, http.MethodPatch, path+"/versions/v3", w.session(pull(42)...), `{"percent": 10}`), 403, rollout.ReasonDenied)
	// A push that says it is pull request 41 would retire its treatment.
	w.want("a push for a pull request", w.do(w.handler, http.MethodPost, path+"/versions", w.session(), deployBody("v5", 'e', `, "source": {"pullRequest": 41}`)), 403, rollout.ReasonDenied)
	if v := spec().Version("v3"); v.Type != rollout.Treatment || v.TrafficPercentile != 10*rollout.OnePercent || spec().Effective("v1") != 90*rollout.OnePercent {
		t.Errorf("%+v", spec().Versions)
	}
}

func ptr[T any](v T) *T { return &v }

// TestSlowBodies: connections that never send the body that they announce keep no one else's token from being exchanged, and are not kept.
func TestSlowBodies(t *testing.T) {
	w := newWorld(t)
	v, err := oidc.New(oidc.Config{Issuer: w.issuer.URL, Audience: audience})
	if err != nil {
		t.Fatal(err)
	}
	p, err := api.ParsePolicy([]byte(policy))
	if err != nil {
		t.Fatal(err)
	}
	h, err := api.New(api.Options{Store: w.store, Journal: w.journal, Tokens: v, Policy: p})
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(h)
	defer server.Close()
	began := time.Now()
	slow := func(token, path string) net.Conn {
		t.Helper()
		c, err := net.Dial("tcp", server.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		fmt.Fprintf(c, "POST %s HTTP/1.1\r\nHost: sluice.example\r\nAuthorization: Bearer %s\r\nContent-Length: 100\r\n\r\n", path, token)
		return c
	}
	answer := func(c net.Conn) string {
		_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
		b, err := io.ReadAll(c)
		if err != nil {
			t.Error(err)
		}
		line, _, _ := strings.Cut(string(b), "\r\n")
		return line
	}
	w.add(fraud, "v1", 'a', 74)
	known := slow(func() string {
		var s wire.Token
		r := w.do(h, http.MethodPost, wire.TokenPath, w.issuer.Sign(w.claims()), "")
		if err := json.Unmarshal(r.body, &s); err != nil {
			t.Fatal(err)
		}
		return s.AccessToken
	}(), wire.Endpoint(fraud)+":hold")
	var conns []net.Conn
	for range 200 {
		conns = append(conns, slow("", wire.TokenPath))
	}
	conns = append(conns, slow("x.y.z", wire.TokenPath), slow(w.issuer.Sign(w.claims("repository_id", "99")), wire.TokenPath), slow("", wire.Endpoint(fraud)+":hold"))
	resp, err := http.DefaultClient.Do(func() *http.Request {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, server.URL+wire.TokenPath, http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Authorization", "Bearer "+w.issuer.Sign(w.claims()))
		return r
	}())
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Errorf("a good token beside them: %s", resp.Status)
	}
	for i, c := range conns {
		if got := answer(c); !strings.Contains(got, " 401 ") && !strings.Contains(got, " 403 ") && !strings.Contains(got, " 429 ") {
			t.Errorf("%d: %q", i, got)
		}
	}
	if took := time.Since(began); took > 2500*time.Millisecond {
		t.Errorf("strangers' bodies were waited for: %s", took)
	}
	// One whose token is good has a moment for its body.
	began = time.Now()
	if got := answer(slow(w.issuer.Sign(w.claims()), wire.TokenPath)); !strings.Contains(got, " 400 ") || time.Since(began) > 6*time.Second {
		t.Errorf("%q after %s", got, time.Since(began))
	}
	// One with a session has longer.
	fmt.Fprintf(known, "%-100s", `{"reason": "on a slow line"}`)
	line := make([]byte, 15)
	if _, err := io.ReadFull(known, line); err != nil || string(line) != "HTTP/1.1 200 OK" {
		t.Errorf("%q, %v", line, err)
	}
}

// TestRecorded: who made a change is who the token says, and its id is no one else's.
func TestRecorded(t *testing.T) {
	w := newWorld(t)
	w.add(fraud, "v1", 'a', 74)
	job := pull(41)
	session := w.session(job...)
	body := deployBody("pr-41-fffffff", 'e', `, "source": {"commit": "`+strings.Repeat("f", 40)+`"}`)
	r := w.do(w.handler, http.MethodPost, wire.Versions(fraud), session, body, wire.IdempotencyKey, "c-17-1")
	w.want("deploy", r, 200, "")
	e, err := w.store.Get(t.Context(), fraud)
	if err != nil {
		t.Fatal(err)
	}
	want := rollout.Source{RepositoryID: 74, PullRequest: 41, Commit: strings.Repeat("f", 40), RunID: 2002}
	if got := e.Spec.Version("pr-41-fffffff").Source; got != want {
		t.Errorf("source %+v, want %+v", got, want)
	}
	last := e.Spec.Changes[len(e.Spec.Changes)-1]
	if last.ID != "api-74-c-17-1" || last.Actor != "github:octocat@octo-org/octo-repo#2002" || last.Reason != rollout.ReasonRequested || time.Since(last.At) > time.Minute {
		t.Errorf("recorded %+v", last)
	}
	if r.header.Get("ETag") != wire.Tag(e.Metadata) {
		t.Errorf("ETag %s", r.header.Get("ETag"))
	}
	// Again under the same key, though with a tag that is not true any more: nothing.
	r = w.do(w.handler, http.MethodPost, wire.Versions(fraud), session, body, wire.IdempotencyKey, "c-17-1", "If-Match", `"another.1.1"`)
	var result wire.Result
	if err := json.Unmarshal(r.body, &result); err != nil || result.Outcome.Changed || !result.Outcome.Known {
		t.Errorf("again: %s, %v", r.body, err)
	}
	for name, body := range map[string]string{
		"a reason that is the engine's": `{"reasonCode": "not_worse"}`, "a reason that is none": `{"reasonCode": "because"}`, "a long message": `{"message": "` + strings.Repeat("x", 5000) + `"}`,
	} {
		r := w.do(w.handler, http.MethodPost, wire.Version(fraud, "pr-41-fffffff")+":retire", session, body)
		w.want(name, r, 400, rollout.ReasonInvalid)
	}
	w.want("a key that is none", w.do(w.handler, http.MethodPost, wire.Version(fraud, "pr-41-fffffff")+":retire", session, "", wire.IdempotencyKey, "a b"), 400, rollout.ReasonInvalid)
}

func TestPreconditions(t *testing.T) {
	w := newWorld(t)
	w.add(fraud, "v1", 'a', 74)
	session := w.session()
	path := wire.Endpoint(fraud)
	first := w.do(w.handler, http.MethodGet, path, session, "")
	tag := first.header.Get("ETag")
	e, _ := w.store.Get(t.Context(), fraud)
	e.Status.ScoringURI = "http://router.example"
	if _, err := w.store.UpdateStatus(t.Context(), e); err != nil {
		t.Fatal(err)
	}
	r := w.do(w.handler, http.MethodGet, path, session, "", "If-None-Match", tag)
	w.want("the status is news", r, 200, "")
	r = w.do(w.handler, http.MethodGet, path, session, "", "If-None-Match", r.header.Get("ETag"))
	w.want("no news", r, 304, "")
	w.want("the status alone has changed", w.do(w.handler, http.MethodPost, path+":hold", session, `{"reason": "one"}`, "If-Match", tag), 200, "")
	w.want("the spec has changed", w.do(w.handler, http.MethodPost, path+":hold", session, `{"reason": "two"}`, "If-Match", tag), 412, rollout.ReasonConflict)
	w.want("a tag that is none", w.do(w.handler, http.MethodPost, path+":hold", session, `{"reason": "two"}`, "If-Match", `"1"`), 412, rollout.ReasonConflict)
	w.want("any", w.do(w.handler, http.MethodPost, path+":hold", session, `{"reason": "two"}`, "If-Match", "*"), 200, "")
	w.want("only if there is none", w.do(w.handler, http.MethodPost, path+"/versions", session, deployBody("v2", 'b', ""), "If-None-Match", "*"), 412, rollout.ReasonConflict)
	w.want("delete what was", w.do(w.handler, http.MethodDelete, path, session, "", "If-Match", tag), 412, rollout.ReasonConflict)
	w.want("delete what was", w.do(w.handler, http.MethodDelete, path+"?resourceVersion=0", session, ""), 412, rollout.ReasonConflict)
	w.want("lock", w.do(w.handler, http.MethodPost, path+":lock", session, ""), 200, "")
	w.want("delete what is locked", w.do(w.handler, http.MethodDelete, path, session, ""), 422, rollout.ReasonLocked)
	w.want("wait for longer than may be", w.do(w.handler, http.MethodGet, path+"?wait=11", session, ""), 400, rollout.ReasonInvalid)
	// A wait ends with the news.
	now := w.do(w.handler, http.MethodGet, path, session, "").header.Get("ETag")
	go func() {
		time.Sleep(50 * time.Millisecond)
		w.do(w.handler, http.MethodPost, path+":unlock", session, "")
	}()
	began := time.Now()
	w.want("wait", w.do(w.handler, http.MethodGet, path+"?wait=10", session, "", "If-None-Match", now), 200, "")
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("the news took %s", took)
	}
}

func TestBadRequests(t *testing.T) {
	w := newWorld(t)
	w.add(fraud, "v1", 'a', 74)
	session := w.session()
	path := wire.Endpoint(fraud)
	for _, tc := range []struct {
		name, method, path, body string
		code                     int
		reason                   rollout.Reason
	}{
		{"no JSON", "POST", path + ":hold", `{`, 400, rollout.ReasonInvalid},
		{"an unknown key", "POST", path + ":hold", `{"reasn": "x"}`, 400, rollout.ReasonUnknownField},
		{"a key in other letters", "POST", path + ":hold", `{"Reason": "x"}`, 400, rollout.ReasonUnknownField},
		{"a key twice", "POST", path + ":hold", `{"reason": "x", "reason": "y"}`, 400, rollout.ReasonInvalid},
		{"two bodies", "POST", path + ":hold", `{} {}`, 400, rollout.ReasonInvalid},
		{"an actor", "POST", path + ":hold", `{"actor": "sluice"}`, 400, rollout.ReasonUnknownField},
		{"no percent", "POST", path + "/versions/v1:shift", `{}`, 400, rollout.ReasonInvalid},
		{"too much", "POST", path + "/versions/v1:shift", `{"percent": 101}`, 400, rollout.ReasonInvalid},
		{"a type that is none", "PATCH", path + "/versions/v1", `{"type": "master"}`, 400, rollout.ReasonInvalid},
		{"too large", "POST", path + ":hold", `{"reason": "` + strings.Repeat("x", 2<<20) + `"}`, 413, rollout.ReasonBodyTooLarge},
		{"a name that is none", "GET", wire.Root + "/namespaces/models/endpoints/Fraud", "", 400, rollout.ReasonInvalid},
		{"a namespace that is none", "GET", wire.Root + "/namespaces/Models/endpoints/fraud", "", 400, rollout.ReasonInvalid},
		{"a version that is none", "POST", path + "/versions/V1:promote", "", 400, rollout.ReasonInvalid},
		{"an action that is none", "POST", path + "/versions/v1:explode", "", 404, rollout.ReasonInvalid},
		{"a path that is none", "GET", wire.Root + "/keys", "", 404, rollout.ReasonInvalid},
		{"keys", "GET", path + "/keys", "", 404, rollout.ReasonInvalid},
		{"logs", "GET", path + "/versions/v1/logs", "", 404, rollout.ReasonInvalid},
		{"a method that is none", "PUT", path, "", 405, rollout.ReasonInvalid},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := w.do(w.handler, tc.method, tc.path, session, tc.body)
			if r.code != tc.code || r.reason() != tc.reason {
				t.Errorf("%d %.300s, want %d %s", r.code, r.body, tc.code, tc.reason)
			}
		})
	}
	w.want("without a session nothing is said of what there is", w.do(w.handler, http.MethodGet, wire.Root+"/namespaces/Models/endpoints/fraud", "", ""), 401, rollout.ReasonUnauthorized)
}

func TestList(t *testing.T) {
	w := newWorld(t)
	w.add(fraud, "v1", 'a', 74)
	w.add(rollout.Key{Namespace: "other", Name: "fraud"}, "v1", 'a', 74)
	risk := clustertest.Endpoint("models", "risk")
	if _, err := w.store.Create(t.Context(), risk); err != nil {
		t.Fatal(err)
	}
	names := func(namespace string, job ...any) string {
		r := w.do(w.handler, http.MethodGet, wire.Endpoints(namespace), w.session(job...), "")
		var l wire.List
		if err := json.Unmarshal(r.body, &l); err != nil || r.code != 200 {
			t.Fatalf("%d %s", r.code, r.body)
		}
		var out []string
		for _, e := range l.Items {
			out = append(out, e.Key().String())
		}
		return strings.Join(out, " ")
	}
	if got := names("models"); got != "models/fraud" {
		t.Errorf("the job sees %q", got)
	}
	if got := names("other") + names("models", "repository_id", "75"); got != "" {
		t.Errorf("what is not permitted, or not bound, is listed: %q", got)
	}
}

// TestStoreIsAway: what fails behind the API is 503, and not told.
func TestStoreIsAway(t *testing.T) {
	w := newWorld(t)
	w.add(fraud, "v1", 'a', 74)
	session := w.session()
	w.store.SetFailure(errors.New("dial tcp 10.0.0.1: refused"))
	for _, r := range []reply{
		w.do(w.handler, http.MethodGet, wire.Endpoint(fraud), session, ""),
		w.do(w.handler, http.MethodGet, wire.Endpoints("models"), session, ""),
		w.do(w.handler, http.MethodPost, wire.Endpoint(fraud)+":hold", session, ""),
		w.do(w.handler, http.MethodDelete, wire.Endpoint(fraud), session, ""),
	} {
		w.want("away", r, 503, rollout.ReasonUnavailable)
		if bytes.Contains(r.body, []byte("10.0.0.1")) {
			t.Errorf("the answer tells what is inside: %s", r.body)
		}
	}
	if !strings.Contains(w.log.String(), "10.0.0.1") {
		t.Error("the log does not say why")
	}
}

// TestCrowd: too many requests at a time are refused at once, those of one repository before they reach the others'.
func TestCrowd(t *testing.T) {
	w := newWorld(t)
	w.add(fraud, "v1", 'a', 74)
	session := w.session()
	r := w.do(w.handler, http.MethodGet, wire.Endpoint(fraud), session, "")
	tag := r.header.Get("ETag")
	var refused, served int
	var mu sync.Mutex
	var wg sync.WaitGroup
	for range 80 {
		wg.Go(func() {
			r := w.do(w.handler, http.MethodGet, wire.Endpoint(fraud)+"?wait=2", session, "", "If-None-Match", tag)
			mu.Lock()
			defer mu.Unlock()
			switch r.code {
			case 304:
				served++
			case 429:
				refused++
			}
		})
	}
	wg.Wait()
	if served != 64 || refused != 16 {
		t.Errorf("%d served, %d refused", served, refused)
	}
	w.want("afterwards", w.do(w.handler, http.MethodGet, wire.Endpoint(fraud), session, ""), 200, "")
}

func TestDocumentIsServed(t *testing.T) {
	w := newWorld(t)
	s := httptest.NewServer(w.handler)
	defer s.Close()
	resp, err := http.Get(s.URL + wire.Document)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if b, err := io.ReadAll(resp.Body); err != nil || !bytes.Equal(b, api.OpenAPI()) || resp.Header.Get("Content-Type") != "application/json" {
		t.Errorf("%d bytes, %v", len(b), err)
	}
}
