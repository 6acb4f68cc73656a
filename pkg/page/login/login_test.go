package login

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/sluice-dev/sluice/pkg/access/oidc/oidctest"
	"github.com/sluice-dev/sluice/pkg/access/policy"
	"github.com/sluice-dev/sluice/rollout"
)

const rules = `
apiVersion: sluice.dev/v1alpha1
kind: PagePolicy
rules:
  - groups: [oncall]
    namespaces: [models]
    endpoints: ["*"]
    commands: [promote, rollback]
  - emails: ["*@example.com"]
    namespaces: [models]
    endpoints: [fraud]
    commands: [read]
  - subjects: [u-9]
    emails: [grace@example.org]
    namespaces: ["*"]
    endpoints: ["*"]
    commands: [hold]
`

var fraud, churn, elsewhere = rollout.Key{Namespace: "models", Name: "fraud"}, rollout.Key{Namespace: "models", Name: "churn"}, rollout.Key{Namespace: "speech", Name: "fraud"}

func parse(t *testing.T, text string) *Policy {
	t.Helper()
	p, err := ParsePolicy([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// world is a server with the login alone, its issuer, and a browser.
type world struct {
	t      *testing.T
	issuer *oidctest.Provider
	login  *Login
	server *httptest.Server
	client *http.Client
	log    bytes.Buffer
	// clock is how far the server's is ahead.
	clock time.Duration
}

var ourKey = bytes.Repeat([]byte("k"), 32)

func (w *world) config() Config {
	return Config{
		Issuer: w.issuer.URL, ClientID: w.issuer.ClientID, ClientSecret: w.issuer.ClientSecret, URL: w.server.URL, Policy: parse(w.t, rules), Key: ourKey,
		Logger: slog.New(slog.NewTextHandler(&w.log, nil)), Now: func() time.Time { return time.Now().Add(w.clock) },
	}
}

func newWorld(t *testing.T, edit func(*Config)) *world {
	t.Helper()
	w := &world{t: t, issuer: oidctest.NewProvider(t)}
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+Path, func(rw http.ResponseWriter, r *http.Request) {
		address, err := w.login.Begin(rw, r, "/endpoints/models/fraud")
		if err != nil {
			http.Error(rw, err.Error(), http.StatusServiceUnavailable)
			return
		}
		http.Redirect(rw, r, address, http.StatusFound)
	})
	mux.HandleFunc("GET "+CallbackPath, func(rw http.ResponseWriter, r *http.Request) {
		to, err := w.login.Finish(rw, r)
		if err != nil {
			http.Error(rw, err.Error(), http.StatusForbidden)
			return
		}
		fmt.Fprint(rw, "to ", to)
	})
	w.server = httptest.NewServer(mux)
	t.Cleanup(w.server.Close)
	w.issuer.Register(w.server.URL + CallbackPath)
	c := w.config()
	if edit != nil {
		edit(&c)
	}
	var err error
	if w.login, err = New(c); err != nil {
		t.Fatal(err)
	}
	w.forget()
	return w
}

// forget is another browser.
func (w *world) forget() {
	jar, err := cookiejar.New(nil)
	if err != nil {
		w.t.Fatal(err)
	}
	w.client = &http.Client{Jar: jar, Timeout: 20 * time.Second}
}

// get an address, by way of all redirects but those to the callback, if stop says so.
func (w *world) get(address string, stop bool) (string, *http.Response) {
	w.t.Helper()
	client := *w.client
	client.CheckRedirect = func(r *http.Request, _ []*http.Request) error {
		if stop && r.URL.Path == CallbackPath {
			return http.ErrUseLastResponse
		}
		return nil
	}
	r, err := http.NewRequestWithContext(w.t.Context(), http.MethodGet, address, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	resp, err := client.Do(r)
	if err != nil {
		w.t.Fatal(err)
	}
	defer resp.Body.Close()
	var b bytes.Buffer
	if _, err := b.ReadFrom(resp.Body); err != nil {
		w.t.Fatal(err)
	}
	return b.String(), resp
}

func (w *world) logIn() string {
	w.t.Helper()
	text, _ := w.get(w.server.URL+Path, false)
	return text
}

// answer of the issuer, on its way to the server.
func (w *world) answer() *url.URL {
	w.t.Helper()
	_, resp := w.get(w.server.URL+Path, true)
	u, err := resp.Location()
	if err != nil {
		w.t.Fatal(err)
	}
	return u
}

// request with the browser's cookies.
func (w *world) request() *http.Request {
	r := httptest.NewRequest(http.MethodGet, w.server.URL+"/", nil)
	u, _ := url.Parse(w.server.URL)
	for _, c := range w.client.Jar.Cookies(u) {
		r.AddCookie(c)
	}
	return r
}

func (w *world) person() *Person { return w.login.Person(w.request()) }

// refused checks that the answer says why and that nobody is logged in.
func (w *world) refused(name, text, says string) {
	w.t.Helper()
	if !strings.Contains(text, says) || strings.HasPrefix(text, "to ") {
		w.t.Errorf("%s: the server says %q, want %q", name, text, says)
	}
	if p := w.person(); p != nil {
		w.t.Errorf("%s: %s is logged in", name, p.Actor())
	}
}

func TestLogin(t *testing.T) {
	w := newWorld(t, nil)
	if p := w.person(); p != nil {
		t.Fatalf("%s is logged in before", p.Actor())
	}
	if text := w.logIn(); text != "to /endpoints/models/fraud" {
		t.Fatal(text)
	}
	p := w.person()
	if p == nil || p.Actor() != "oidc:ada@example.com" || p.Name() != "Ada Lovelace" {
		t.Fatalf("person %+v", p)
	}
	for _, tc := range []struct {
		key     rollout.Key
		command policy.Command
		may     bool
	}{
		{fraud, policy.CommandPromote, true},
		{churn, policy.CommandPromote, true},
		{churn, policy.CommandRead, true},
		{fraud, policy.CommandHold, false},
		{elsewhere, policy.CommandPromote, false},
		{elsewhere, policy.CommandRead, false},
	} {
		if got := p.Permits(tc.key, tc.command); got != tc.may {
			t.Errorf("%s on %s: %v", tc.command, tc.key, got)
		}
	}
	if left := time.Until(p.Until()); left > Life || left < Life-time.Minute {
		t.Errorf("the session lasts %s", left)
	}
	for _, c := range w.request().Cookies() {
		if strings.Contains(c.Name, "login") {
			t.Errorf("the attempt is remembered: %s", c.Name)
		}
		if raw, _ := base64.RawURLEncoding.DecodeString(c.Value); bytes.Contains(raw, []byte("ada")) || bytes.Contains(raw, []byte("oncall")) {
			t.Errorf("the cookie can be read: %s", raw)
		}
	}
	// Only groups that some rule names are kept.
	if p.session.Groups[0] != "oncall" || len(p.session.Groups) != 1 {
		t.Errorf("groups %q", p.session.Groups)
	}
	if log := w.log.String(); !strings.Contains(log, "actor=oidc:ada@example.com") || strings.Contains(log, "hush") {
		t.Errorf("the log is\n%s", log)
	}
	// Its time ends.
	w.clock = Life + time.Second
	if p := w.person(); p != nil {
		t.Errorf("%s is logged in after %s", p.Actor(), w.clock)
	}
}

// TestCookies: what they may be used for.
func TestCookies(t *testing.T) {
	w := newWorld(t, nil)
	for address, secure := range map[string]bool{"https://sluice.example": true, w.server.URL: false} {
		c := w.config()
		c.URL = address
		l, err := New(c)
		if err != nil {
			t.Fatal(err)
		}
		rec := httptest.NewRecorder()
		if _, err := l.Begin(rec, httptest.NewRequest(http.MethodGet, address+"/login", nil), "/"); err != nil {
			t.Fatal(err)
		}
		set := rec.Result().Cookies()
		if len(set) != 1 {
			t.Fatalf("cookies %v", set)
		}
		if got := set[0]; !got.HttpOnly || got.Secure != secure || got.SameSite != http.SameSiteLaxMode || got.Path != "/" || got.Domain != "" || strings.HasPrefix(got.Name, "__Host-") != secure || got.MaxAge != 600 {
			t.Errorf("%s: cookie %+v", address, got)
		}
	}
}

// TestAnswers: what comes back by way of a browser is believed only if it is the issuer's answer to this browser's login.
func TestAnswers(t *testing.T) {
	with := func(name, value string) func(*world, *url.URL) {
		return func(_ *world, u *url.URL) {
			q := u.Query()
			q.Set(name, value)
			u.RawQuery = q.Encode()
		}
	}
	for _, tc := range []struct {
		name string
		edit func(*world, *url.URL)
		says string
	}{
		{"another state", with("state", "x"), "not to the login that this browser began"},
		{"no state", with("state", ""), "not to the login that this browser began"},
		{"a long state", with("state", strings.Repeat("x", 4000)), "not to the login that this browser began"},
		{"another issuer", with("iss", "https://evil.example"), "another issuer answers"},
		{"a code that is none", with("code", "x"), "invalid_grant"},
		{"a long code", with("code", strings.Repeat("x", 5000)), "no code"},
		{"too much", with("more", strings.Repeat("x", 9000)), "more than 8192 bytes"},
		{"a refusal", with("error", "access_denied\x1b[31m<script>"), "the issuer says no: access_denied[31m<script>"},
		{"two states", func(_ *world, u *url.URL) { u.RawQuery += "&state=x" }, "not to the login"},
		{"two codes", func(_ *world, u *url.URL) { u.RawQuery += "&code=x" }, "no code"},
		{"another browser, without the verifier", func(w *world, _ *url.URL) { w.forget() }, "this browser has begun no login"},
		{"another login was begun since", func(w *world, _ *url.URL) { w.answer() }, "not to the login that this browser began"},
		{"too late", func(w *world, _ *url.URL) { w.clock = attemptLife + time.Second }, "this browser has begun no login within 10m"},
		{"a session's cookie for the attempt's", func(w *world, _ *url.URL) {
			sealed, err := w.login.sessions.close(session{ID: "x"}, time.Now().Add(time.Hour))
			if err != nil {
				w.t.Fatal(err)
			}
			u, _ := url.Parse(w.server.URL)
			w.client.Jar.SetCookies(u, []*http.Cookie{{Name: "sluice-login", Value: sealed, Path: "/"}})
		}, "this browser has begun no login"},
	} {
		w := newWorld(t, nil)
		u := w.answer()
		tc.edit(w, u)
		text, _ := w.get(u.String(), false)
		w.refused(tc.name, text, tc.says)
		if strings.Contains(w.log.String(), u.Query().Get("code")) && len(u.Query().Get("code")) > 10 {
			t.Errorf("%s: the log has the code: %s", tc.name, w.log.String())
		}
	}
	// A code is good once, also for who kept the cookie.
	w := newWorld(t, nil)
	u := w.answer()
	kept := w.request().Cookies()
	if text, _ := w.get(u.String(), false); !strings.HasPrefix(text, "to ") {
		t.Fatal(text)
	}
	text, _ := w.get(u.String(), false)
	if !strings.Contains(text, "has begun no login") {
		t.Errorf("the answer again: %s", text)
	}
	w.forget()
	server, _ := url.Parse(w.server.URL)
	w.client.Jar.SetCookies(server, kept)
	text, _ = w.get(u.String(), false)
	w.refused("a replayed code", text, "invalid_grant")
}

// TestTokens: what is asked of an ID token.
func TestTokens(t *testing.T) {
	set := func(name string, value any) func(*world, jwt.MapClaims) string {
		return func(w *world, c jwt.MapClaims) string {
			if c[name] = value; value == nil {
				delete(c, name)
			}
			return w.issuer.Sign(c)
		}
	}
	for _, tc := range []struct {
		name string
		make func(*world, jwt.MapClaims) string
		says string
	}{
		{"another nonce", set("nonce", "x"), "not for this login"},
		{"no nonce", set("nonce", nil), "not for this login"},
		{"another audience", set("aud", "other"), "not good"},
		{"several audiences and no party", set("aud", []string{"sluice page", "other"}), "another client"},
		{"another party", set("azp", "other"), "another client"},
		{"expired", set("exp", time.Now().Add(-time.Minute).Unix()), "not good"},
		{"no expiry", set("exp", nil), "not good"},
		{"of the future", set("iat", time.Now().Add(time.Hour).Unix()), "in the future"},
		{"without a time", set("iat", nil), "in the future"},
		{"another issuer", set("iss", "https://evil.example"), "not good"},
		{"no subject", set("sub", nil), "subject is none"},
		{"a long subject", set("sub", strings.Repeat("x", 256)), "subject is none"},
		{"a subject with a line's end", set("sub", "x\ny"), "subject is none"},
		{"a subject that turns text around", set("sub", "x\u202ey"), "subject is none"},
		{"groups that are none", set("groups", map[string]any{"a": 1}), "no list of at most"},
		{"too many groups", set("groups", make([]string, 2001)), "no list of at most"},
		{"alg none", func(w *world, c jwt.MapClaims) string {
			return w.issuer.SignWith(jwt.SigningMethodNone, "", jwt.UnsafeAllowNoneSignatureType, c)
		}, "not good"},
		{"signed with the client's secret", func(w *world, c jwt.MapClaims) string {
			return w.issuer.SignWith(jwt.SigningMethodHS256, "", []byte(w.issuer.ClientSecret), c)
		}, "not good"},
		{"signed with the public key", func(w *world, c jwt.MapClaims) string {
			return w.issuer.SignWith(jwt.SigningMethodHS256, "", w.issuer.PublicPEM(), c)
		}, "not good"},
		{"another key", func(w *world, c jwt.MapClaims) string {
			return w.issuer.SignWith(jwt.SigningMethodRS256, "", oidctest.NewKey(w.t), c)
		}, "not good"},
		{"no token", func(*world, jwt.MapClaims) string { return "" }, "no ID token"},
		{"a long token", func(*world, jwt.MapClaims) string { return strings.Repeat("x", maxToken+1) }, "no ID token"},
		{"nobody whom a rule is for", func(w *world, c jwt.MapClaims) string {
			c["email"], c["groups"] = "eve@evil.example", []string{"staff"}
			return w.issuer.Sign(c)
		}, "nothing permits oidc:eve@evil.example anything"},
		{"an email that is not verified", func(w *world, c jwt.MapClaims) string {
			c["email_verified"], c["groups"] = false, nil
			return w.issuer.Sign(c)
		}, "nothing permits oidc:sub=u-1815 anything"},
		{"an email of which nothing is said", func(w *world, c jwt.MapClaims) string {
			delete(c, "email_verified")
			c["groups"] = nil
			return w.issuer.Sign(c)
		}, "nothing permits oidc:sub=u-1815 anything"},
		{"an email of two domains", func(w *world, c jwt.MapClaims) string {
			c["email"], c["groups"] = "eve@evil.example@example.com", nil
			return w.issuer.Sign(c)
		}, "nothing permits oidc:sub=u-1815 anything"},
		{"the subject alone, where the rule asks for an email too", func(w *world, c jwt.MapClaims) string {
			c["sub"], c["email_verified"], c["groups"] = "u-9", false, nil
			return w.issuer.Sign(c)
		}, "nothing permits oidc:sub=u-9 anything"},
	} {
		w := newWorld(t, nil)
		w.issuer.Issue(func(c jwt.MapClaims) string { return tc.make(w, c) })
		w.refused(tc.name, w.logIn(), tc.says)
	}

	for _, tc := range []struct {
		name  string
		make  func(*world, jwt.MapClaims) string
		actor string
	}{
		{"verified, as text", set("email_verified", "true"), "oidc:ada@example.com"},
		{"not verified: the name is no email", set("email_verified", false), "oidc:sub=u-1815"},
		{"one group, as text", set("groups", "oncall"), "oidc:ada@example.com"},
		{"a subject that looks like a user of GitHub", func(w *world, c jwt.MapClaims) string {
			c["sub"], c["email"], c["preferred_username"] = "github:alice", nil, "sluice"
			return w.issuer.Sign(c)
		}, "oidc:sub=github:alice"},
		{"one of several audiences", func(w *world, c jwt.MapClaims) string {
			c["aud"], c["azp"] = []string{"sluice page", "other"}, "sluice page"
			return w.issuer.Sign(c)
		}, "oidc:ada@example.com"},
	} {
		w := newWorld(t, nil)
		w.issuer.Issue(func(c jwt.MapClaims) string { return tc.make(w, c) })
		text := w.logIn()
		if p := w.person(); p == nil || p.Actor() != tc.actor {
			t.Errorf("%s: %s: %+v", tc.name, text, p)
		}
	}
}

// TestForged: a session is believed from its own server alone.
func TestForged(t *testing.T) {
	w := newWorld(t, nil)
	w.logIn()
	var good string
	for _, c := range w.request().Cookies() {
		good = c.Value
	}
	ask := func(l *Login, values ...string) *Person {
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		for _, v := range values {
			r.AddCookie(&http.Cookie{Name: "sluice-session", Value: v})
		}
		return l.Person(r)
	}
	if ask(w.login, good) == nil {
		t.Fatal("the session itself is not known")
	}
	raw, err := base64.RawURLEncoding.DecodeString(good)
	if err != nil {
		t.Fatal(err)
	}
	for i := range raw {
		changed := bytes.Clone(raw)
		changed[i] ^= 1
		if p := ask(w.login, base64.RawURLEncoding.EncodeToString(changed)); p != nil {
			t.Fatalf("with byte %d changed it is %s", i, p.Actor())
		}
	}
	attempt, err := w.login.attempts.close(session{ID: "x", identity: identity{Subject: "u-1815", Groups: []string{"oncall"}}}, time.Now().Add(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	for _, value := range []string{"", "x", good[1:], good + "A", attempt, base64.RawURLEncoding.EncodeToString([]byte(`{"until":9999999999,"value":{"id":"x","sub":"u-1815","groups":["oncall"]}}`)), strings.Repeat("A", 5000)} {
		if p := ask(w.login, value); p != nil {
			t.Errorf("%.20q is %s", value, p.Actor())
		}
	}
	if p := ask(w.login, good, "x"); p != nil {
		t.Error("of two cookies one was believed")
	}
	for name, edit := range map[string]func(*Config){
		"another key":     func(c *Config) { c.Key = bytes.Repeat([]byte("x"), 32) },
		"a key of itself": func(c *Config) { c.Key = nil },
		"another issuer":  func(c *Config) { c.Issuer = "https://login.example" },
		"another client":  func(c *Config) { c.ClientID = "other" },
		"another address": func(c *Config) { c.URL = "http://localhost:1" },
		"no such rule": func(c *Config) {
			c.Policy = parse(t, strings.NewReplacer("oncall", "others", "example.com", "example.net").Replace(rules))
		},
	} {
		c := w.config()
		edit(&c)
		other, err := New(c)
		if err != nil {
			t.Fatal(err)
		}
		if p := ask(other, good); p != nil {
			t.Errorf("%s: it is %s", name, p.Actor())
		}
	}
	// A second server with the same key knows it, and the tokens of its forms.
	twin, err := New(w.config())
	if err != nil {
		t.Fatal(err)
	}
	if p := ask(twin, good); p == nil || p.Token() != ask(w.login, good).Token() {
		t.Error("a second server does not know the session")
	}
}

func TestForms(t *testing.T) {
	w := newWorld(t, nil)
	w.logIn()
	ada := w.person()
	w.forget()
	w.logIn()
	again := w.person()
	if ada.Token() == again.Token() || ada.Mark("x") == ada.Mark("y") || ada.Mark("token") != ada.Token() {
		t.Error("tokens are not each session's own")
	}
	for _, tc := range []struct {
		name, origin, site, token string
		good                      bool
	}{
		{"the page's", w.server.URL, "same-origin", ada.Token(), true},
		{"an old browser's", w.server.URL, "", ada.Token(), true},
		{"another site's", "https://evil.example", "cross-site", ada.Token(), false},
		{"another site's that hides it", "null", "cross-site", ada.Token(), false},
		{"a neighbour's", w.server.URL, "same-site", ada.Token(), false},
		{"without an origin", "", "same-origin", ada.Token(), false},
		{"another port's", "http://127.0.0.1:1", "same-origin", ada.Token(), false},
		{"another session's", w.server.URL, "same-origin", again.Token(), false},
		{"without a token", w.server.URL, "same-origin", "", false},
	} {
		r := httptest.NewRequest(http.MethodPost, "/", nil)
		if tc.origin != "" {
			r.Header.Set("Origin", tc.origin)
		}
		if tc.site != "" {
			r.Header.Set("Sec-Fetch-Site", tc.site)
		}
		if err := ada.Sent(r, tc.token); (err == nil) != tc.good || err != nil && rollout.ReasonOf(err) != rollout.ReasonDenied {
			t.Errorf("%s: %v", tc.name, err)
		}
	}
}

func TestNotes(t *testing.T) {
	w := newWorld(t, nil)
	w.logIn()
	ada := w.person()
	left := httptest.NewRecorder()
	ada.Leave(left, "/endpoints/models/fraud", strings.Repeat("ü", 5000), true)
	c := left.Result().Cookies()[0]
	if len(c.String()) > 4096 {
		t.Errorf("the cookie has %d bytes", len(c.String()))
	}
	take := func(p *Person, path string, c *http.Cookie) (*Note, string) {
		r := httptest.NewRequest(http.MethodGet, path, nil)
		r.AddCookie(c)
		rec := httptest.NewRecorder()
		return p.Take(rec, r), rec.Header().Get("Set-Cookie")
	}
	if n, gone := take(ada, "/endpoints/models/fraud", c); n == nil || !n.Bad || !strings.HasSuffix(n.Text, "ü …") || !strings.Contains(gone, "Max-Age=0") {
		t.Errorf("note %+v, then %s", n, gone)
	}
	if n, _ := take(ada, "/endpoints/models/churn", c); n != nil {
		t.Error("it is told elsewhere")
	}
	w.forget()
	w.logIn()
	if n, _ := take(w.person(), "/endpoints/models/fraud", c); n != nil {
		t.Error("it is told to another session")
	}
	if n, _ := take(ada, "/endpoints/models/fraud", &http.Cookie{Name: c.Name, Value: "promoted"}); n != nil {
		t.Error("a forged one is told")
	}
	w.clock = noteLife + time.Second
	if n, _ := take(ada, "/endpoints/models/fraud", c); n != nil {
		t.Error("an old one is told")
	}
}

// TestIssuerGone: nobody logs in, who has stays, and it is tried again by itself.
func TestIssuerGone(t *testing.T) {
	w := newWorld(t, nil)
	w.issuer.SetDown(true)
	w.refused("before", w.logIn(), "does not answer")
	asked := w.issuer.Logins()
	w.issuer.SetDown(false)
	w.refused("right after", w.logIn(), "does not answer") // it is left alone for a moment
	w.clock = askAgain + time.Second
	if text := w.logIn(); !strings.HasPrefix(text, "to ") {
		t.Fatalf("then: %s", text)
	}
	if asked != 0 {
		t.Errorf("%d logins reached an issuer that was down", asked)
	}
	w.issuer.SetDown(true)
	if w.person() == nil {
		t.Error("the session ended with the issuer")
	}
	w.forget()
	w.refused("while the issuer is known but down", w.logIn(), "does not answer")
	// One that never answers holds nobody up for long.
	hangs := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }))
	defer hangs.Close()
	c := w.config()
	c.Issuer, c.Client = hangs.URL, &http.Client{Timeout: 50 * time.Millisecond}
	l, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	_, err = l.Begin(httptest.NewRecorder(), httptest.NewRequestWithContext(ctx, http.MethodGet, w.server.URL+"/login", nil), "/")
	if rollout.ReasonOf(err) != rollout.ReasonUnavailable || ctx.Err() != nil {
		t.Errorf("%v, %v", err, ctx.Err())
	}
}

// TestMany: logins are counted, so that this server is no burden to the issuer.
func TestMany(t *testing.T) {
	w := newWorld(t, nil)
	w.clock = time.Nanosecond
	frozen := time.Now()
	w.login.c.Now = func() time.Time { return frozen }
	refused := 0
	for range loginsAtOnce + 3 {
		text := w.logIn()
		if strings.Contains(text, "too many people") {
			refused++
		} else if !strings.HasPrefix(text, "to ") {
			t.Fatal(text)
		}
	}
	if refused != 3 {
		t.Errorf("%d were refused, want 3", refused)
	}
}

func TestWrongClient(t *testing.T) {
	w := newWorld(t, func(c *Config) { c.ClientSecret = "wrong" })
	w.refused("another secret", w.logIn(), "invalid_client")
	w = newWorld(t, nil)
	w.issuer.Register("https://elsewhere.example/login/callback")
	w.refused("another redirect URI", w.logIn(), "unknown client or redirect_uri")
	// What is asked for: a code, PKCE by S256, and an answer at the one address.
	r := httptest.NewRecorder()
	address, err := w.login.Begin(r, httptest.NewRequest(http.MethodGet, w.server.URL+"/login", nil), "/")
	if err != nil {
		t.Fatal(err)
	}
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	var a attempt
	if _, err := w.login.attempts.open(r.Result().Cookies()[0].Value, time.Now(), &a); err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256([]byte(a.Verifier))
	q := u.Query()
	for name, want := range map[string]string{
		"response_type": "code", "client_id": "sluice page", "scope": "openid profile email", "redirect_uri": w.server.URL + "/login/callback", "state": a.State, "nonce": a.Nonce,
		"code_challenge_method": "S256", "code_challenge": base64.RawURLEncoding.EncodeToString(sum[:]),
	} {
		if q.Get(name) != want {
			t.Errorf("%s is %q, want %q", name, q.Get(name), want)
		}
	}
	if len(a.State) < 26 || len(a.Nonce) < 26 || a.State == a.Nonce || strings.Contains(address, a.Verifier) {
		t.Errorf("attempt %+v at %s", a, address)
	}
	// Under another name of this machine the login begins at the right one.
	other := strings.Replace(w.server.URL, "127.0.0.1", "localhost", 1)
	if address, err := w.login.Begin(httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, other+"/login", nil), "/"); err != nil || address != w.server.URL+"/login?to=%2F" {
		t.Errorf("from %s it leads to %s, %v", other, address, err)
	}
}

// TestCookieBounds: what does not fit into a cookie is refused, not cut.
func TestCookieBounds(t *testing.T) {
	var groups []string
	for range 100 {
		groups = append(groups, rand.Text()+rand.Text())
	}
	w := newWorld(t, func(c *Config) {
		c.Policy = parse(t, strings.ReplaceAll(rules, "[oncall]", "["+strings.Join(groups, ", ")+"]"))
	})
	w.issuer.LogIn(jwt.MapClaims{"sub": "u-1", "groups": groups})
	w.refused("a hundred groups", w.logIn(), "does not fit into a cookie")
	w.issuer.LogIn(jwt.MapClaims{"sub": "u-1", "groups": groups[:20]})
	if text := w.logIn(); !strings.HasPrefix(text, "to ") {
		t.Error(text)
	}
}

func TestConfig(t *testing.T) {
	good := Config{Issuer: "https://login.example", ClientID: "sluice", URL: "https://sluice.example", Policy: &Policy{}}
	if _, err := New(good); err != nil {
		t.Fatal(err)
	}
	for field, edit := range map[string]func(*Config){
		"page-login-issuer":    func(c *Config) { c.Issuer = "http://login.example" },
		"page-login-client-id": func(c *Config) { c.ClientID = " " },
		"page-login-url":       func(c *Config) { c.URL = "http://sluice.example" },
		"page-login-url ":      func(c *Config) { c.URL = "https://sluice.example/page" },
		"page-login-url  ":     func(c *Config) { c.URL = "" },
		"page-login-policy":    func(c *Config) { c.Policy = nil },
		"api-session-key":      func(c *Config) { c.Key = []byte("short") },
	} {
		c := good
		edit(&c)
		if _, err := New(c); rollout.ReasonOf(err) != rollout.ReasonInvalid || !strings.HasPrefix(err.Error(), strings.TrimSpace(field)+":") {
			t.Errorf("%s: %v", field, err)
		}
	}
}
