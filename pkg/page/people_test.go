package page

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"golang.org/x/net/html"

	"github.com/sluice-dev/sluice/pkg/access/oidc/oidctest"
	"github.com/sluice-dev/sluice/pkg/cluster"
	"github.com/sluice-dev/sluice/pkg/cluster/memory"
	"github.com/sluice-dev/sluice/pkg/page/login"
	"github.com/sluice-dev/sluice/rollout"
)

const pagePolicy = `
apiVersion: sluice.dev/v1alpha1
kind: PagePolicy
rules:
  - groups: [oncall]
    namespaces: [models]
    endpoints: [fraud]
    commands: [promote, rollback, traffic, hold, resume, lock, unlock]
  - groups: [staff]
    namespaces: [models]
    endpoints: [churn]
    commands: [read]
  - emails: [grace@example.com]
    namespaces: [models]
    endpoints: ["*"]
    commands: [hold]
`

// lines is a log that may be written while it is read.
type lines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// house is a page with a login, its issuer and a browser.
type house struct {
	t      *testing.T
	store  *memory.Store
	issuer *oidctest.Provider
	login  *login.Login
	page   *Page
	url    string
	client *http.Client
	log    lines
	mu     sync.Mutex
	ahead  time.Duration
}

func (h *house) now() time.Time {
	h.mu.Lock()
	defer h.mu.Unlock()
	return time.Now().Add(h.ahead)
}

func (h *house) wait(d time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ahead += d
}

func open(t *testing.T, mode Mode, edit ...func(*Options)) *house {
	t.Helper()
	h := &house{t: t, store: tell(t, time.Now()), issuer: oidctest.NewProvider(t)}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { h.page.ServeHTTP(w, r) }))
	t.Cleanup(server.Close)
	h.url = server.URL
	h.issuer.Register(h.url + login.CallbackPath)
	policy, err := login.ParsePolicy([]byte(pagePolicy))
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.NewTextHandler(&h.log, nil))
	if h.login, err = login.New(login.Config{Issuer: h.issuer.URL, ClientID: h.issuer.ClientID, ClientSecret: h.issuer.ClientSecret, URL: h.url, Policy: policy, Logger: log, Now: h.now}); err != nil {
		t.Fatal(err)
	}
	o := Options{Store: h.store, Editor: cluster.Editing(h.store), Mode: mode, Login: h.login, Logger: log, Now: h.now}
	for _, e := range edit {
		e(&o)
	}
	if h.page, err = prepare(o); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	go h.page.hub.run(ctx, h.store, slog.New(slog.DiscardHandler))
	h.fresh()
	return h
}

// fresh is another browser.
func (h *house) fresh() *http.Client {
	jar, err := cookiejar.New(nil)
	if err != nil {
		h.t.Fatal(err)
	}
	was := h.client
	h.client = &http.Client{Jar: jar, Timeout: 20 * time.Second}
	return was
}

type reply struct {
	*http.Response
	root *html.Node
	text string
	raw  string
}

func (h *house) do(r *http.Request) reply {
	h.t.Helper()
	resp, err := h.client.Do(r)
	if err != nil {
		h.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		h.t.Fatal(err)
	}
	root, text := read(h.t, &httptest.ResponseRecorder{Body: bytes.NewBuffer(bytes.Clone(b))})
	return reply{resp, root, text, string(b)}
}

func (h *house) get(path string) reply {
	h.t.Helper()
	r, err := http.NewRequestWithContext(h.t.Context(), http.MethodGet, h.url+path, nil)
	if err != nil {
		h.t.Fatal(err)
	}
	return h.do(r)
}

// logIn as Ada, unless the issuer was told of somebody else.
func (h *house) logIn() reply {
	h.t.Helper()
	r := h.get("/login?to=/endpoints/models/fraud")
	if r.StatusCode != http.StatusOK || r.Request.URL.Path != "/endpoints/models/fraud" || !strings.Contains(r.text, "Log out") {
		h.t.Fatalf("after the login: %d at %s: %s", r.StatusCode, r.Request.URL, r.text)
	}
	return r
}

// form of a page by the id of its button.
func form(t *testing.T, r reply, id string) url.Values {
	t.Helper()
	for n := range r.root.Descendants() {
		if n.Data != "form" {
			continue
		}
		values, found := url.Values{}, false
		for c := range n.Descendants() {
			if c.Data == "input" {
				values.Set(attribute(c, "name"), attribute(c, "value"))
			}
			found = found || c.Data == "button" && attribute(c, "id") == id
		}
		if found {
			if attribute(n, "method") != "post" || !strings.HasPrefix(attribute(n, "action"), "/endpoints/") {
				t.Errorf("form %v", n.Attr)
			}
			return values
		}
	}
	t.Fatalf("there is no button %s: %s", id, r.text)
	return nil
}

func buttons(r reply) (out []string) {
	for n := range r.root.Descendants() {
		if id := attribute(n, "id"); n.Data == "button" && id != "" {
			out = append(out, strings.TrimPrefix(id, "do-"))
		}
	}
	return out
}

func (h *house) post(path string, values url.Values, edit ...func(*http.Request)) reply {
	h.t.Helper()
	r, err := http.NewRequestWithContext(h.t.Context(), http.MethodPost, h.url+path, strings.NewReader(values.Encode()))
	if err != nil {
		h.t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	r.Header.Set("Origin", h.url)
	r.Header.Set("Sec-Fetch-Site", "same-origin")
	for _, e := range edit {
		e(r)
	}
	return h.do(r)
}

func (h *house) endpoint(key rollout.Key) *rollout.Endpoint {
	h.t.Helper()
	e, err := h.store.Get(h.t.Context(), key)
	if err != nil {
		h.t.Fatal(err)
	}
	return e
}

func (h *house) edit(id, actor string, op rollout.Op) {
	h.t.Helper()
	if _, _, err := cluster.Edit(h.t.Context(), h.store, fraud, rollout.Request{ID: id, Actor: actor, At: time.Now(), Force: true}, func(*rollout.Endpoint) (rollout.Op, error) { return op, nil }); err != nil {
		h.t.Fatal(err)
	}
}

const treatment = "pr-42-3f9c2ab"

// TestWithoutALogin: who has not logged in reads as before, and changes nothing; or, with ModeLogin, reads nothing.
func TestWithoutALogin(t *testing.T) {
	h := open(t, ModeAnyone)
	r := h.get("/endpoints/models/fraud")
	if r.StatusCode != 200 || len(buttons(r)) > 0 || !strings.Contains(r.text, "Log in") || !strings.Contains(r.text, "Read only without a login.") || len(r.Cookies()) > 0 {
		t.Errorf("%d, buttons %q, cookies %v: %s", r.StatusCode, buttons(r), r.Cookies(), r.text)
	}
	before := h.endpoint(fraud)
	if r := h.post("/endpoints/models/fraud", url.Values{"command": {"promote"}, "version": {treatment}}); r.StatusCode != 403 || !strings.Contains(r.text, "You have not logged in") {
		t.Errorf("%d: %s", r.StatusCode, r.text)
	}
	if after := h.endpoint(fraud); after.Metadata.ResourceVersion != before.Metadata.ResourceVersion {
		t.Error("it was changed")
	}

	h = open(t, ModeLogin)
	for _, path := range []string{"/", "/?page=2", "/endpoints/models/fraud", "/endpoints/models/nothing", "/endpoints/MODELS/x"} {
		r := h.get(path)
		if r.StatusCode != 403 || !strings.Contains(r.text, "shown to those who have logged in") || strings.Contains(r.raw, treatment) || strings.Contains(r.raw, "churn") {
			t.Errorf("%s: %d: %s", path, r.StatusCode, r.text)
		}
		if want := "/login?to=" + url.QueryEscape(returnPath(strings.Split(path, "?")[0])); !strings.Contains(r.raw, `href="`+want+`"`) {
			t.Errorf("%s leads not to %s: %s", path, want, r.raw)
		}
	}
	if r := h.get(EventsPath); r.StatusCode != 403 {
		t.Errorf("events: %d", r.StatusCode)
	}
	if r := h.get(embeddedAssets.addresses["page.css"]); r.StatusCode != 200 {
		t.Errorf("the style sheet: %d", r.StatusCode)
	}
	if _, err := New(t.Context(), Options{Store: h.store, Mode: ModeLogin}); err == nil {
		t.Error("a page for who has logged in was made, and nobody can")
	}
}

// TestSeesItsOwn: with ModeLogin people see what the policy lets them, and of the rest not even that it is there.
func TestSeesItsOwn(t *testing.T) {
	h := open(t, ModeLogin)
	h.logIn()
	list := h.get("/")
	if !strings.Contains(list.text, "models/ fraud") || !strings.Contains(list.text, "models/ churn") || strings.Contains(list.text, "ranking") || strings.Contains(list.text, "speech") {
		t.Errorf("the list: %s", list.text)
	}
	hidden, missing := h.get("/endpoints/models/ranking"), h.get("/endpoints/models/rankings")
	if hidden.StatusCode != 404 || missing.StatusCode != 404 || strings.ReplaceAll(hidden.text, "ranking", "") != strings.ReplaceAll(missing.text, "rankings", "") {
		t.Errorf("hidden: %s\nmissing: %s", hidden.text, missing.text)
	}
	if r := h.get("/endpoints/models/churn"); r.StatusCode != 200 || len(buttons(r)) > 0 {
		t.Errorf("churn: %d, %q", r.StatusCode, buttons(r))
	}
	// Events too: nothing is told of an endpoint that is not theirs.
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, h.url+EventsPath+"?since="+settled(t, h.page), nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := h.client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != 200 {
		t.Fatalf("events: %s", resp.Status)
	}
	ranking := rollout.Key{Namespace: "models", Name: "ranking"}
	shift(t, h.store, ranking, "r-1", rollout.Hold{Reason: "secret"})
	time.Sleep(3 * h.page.t.pace)
	shift(t, h.store, fraud, "f-1", rollout.Hold{Reason: "x"})
	b := make([]byte, 4096)
	var heard strings.Builder
	for !strings.Contains(heard.String(), "models/fraud") {
		n, err := resp.Body.Read(b)
		if err != nil {
			t.Fatalf("%v after %s", err, heard.String())
		}
		heard.Write(b[:n])
	}
	if strings.Contains(heard.String(), "ranking") {
		t.Errorf("heard %s", heard.String())
	}
	// When the session is over, so is the page.
	h.wait(login.Life + time.Minute)
	if r := h.get("/endpoints/models/fraud"); r.StatusCode != 403 || strings.Contains(r.raw, treatment) {
		t.Errorf("after the session: %d", r.StatusCode)
	}
}

// TestEventsEndWithTheSession: nobody hears more than their session lasts.
func TestEventsEndWithTheSession(t *testing.T) {
	h := open(t, ModeLogin)
	h.logIn()
	h.wait(login.Life - 2*time.Second) // the session ends at a whole second
	began := time.Now()
	r := h.get(EventsPath)
	if took := time.Since(began); r.StatusCode != 200 || took > 10*time.Second {
		t.Errorf("%d, after %s", r.StatusCode, took)
	}
}

// TestCommands: what each button does, who the record says it was, and what the page says then.
func TestCommands(t *testing.T) {
	h := open(t, ModeAnyone)
	page := h.logIn()
	if got := strings.Join(buttons(page), " "); got != "promote-"+treatment+" rollback-"+treatment+" traffic-"+treatment+" hold lock" {
		t.Errorf("buttons %s", got)
	}
	press := func(id string, edit func(url.Values), says string) reply {
		t.Helper()
		f := form(t, h.get("/endpoints/models/fraud"), "do-"+id)
		if edit != nil {
			edit(f)
		}
		r := h.post("/endpoints/models/fraud", f)
		if r.StatusCode != 200 || r.Request.Method != http.MethodGet || r.Request.URL.String() != h.url+"/endpoints/models/fraud" || !strings.Contains(r.text, says) {
			t.Errorf("%s: %d at %s, want %q: %s", id, r.StatusCode, r.Request.URL, says, r.text)
		}
		if again := h.get("/endpoints/models/fraud"); strings.Contains(again.raw, `id="note"`) {
			t.Errorf("%s: the note is told twice", id)
		}
		return r
	}
	set := func(name, value string) func(url.Values) { return func(v url.Values) { v.Set(name, value) } }
	r := press("hold", set("reason", "<b>lunch</b>"), "held: nothing advances or is promoted")
	if e := h.endpoint(fraud); e.Spec.Hold == nil || e.Spec.Hold.Actor != "oidc:ada@example.com" || e.Spec.Hold.Reason != "<b>lunch</b>" {
		t.Errorf("hold %+v", e.Spec.Hold)
	}
	if strings.Contains(r.raw, "<b>lunch") {
		t.Error("a reason is markup")
	}
	press("resume", nil, "resumed")
	press("lock", set("reason", "audit"), "locked: only rollback")
	if got := strings.Join(buttons(h.get("/endpoints/models/fraud")), " "); got != "rollback-"+treatment+" hold unlock" {
		t.Errorf("buttons while locked: %s", got)
	}
	press("unlock", nil, "unlocked")
	press("traffic-"+treatment, set("percent", " 12.5 % "), "claims 12.5 per cent; advancing is held until Resume")
	if v := h.endpoint(fraud).Spec.Version(treatment); v.TrafficPercentile != 12500 {
		t.Errorf("claim %s", v.TrafficPercentile)
	}
	for _, percent := range []string{"", "x", "101", "-1", "NaN", "0.0001"} {
		press("traffic-"+treatment, set("percent", percent), "percent_invalid")
	}
	press("resume", nil, "resumed")
	press("hold", set("reason", strings.Repeat("x", 201)), "invalid")
	press("hold", set("reason", "a\u202eb"), "invalid")
	press("promote-"+treatment, nil, treatment+" is control and default, with all traffic")
	e := h.endpoint(fraud)
	if c := e.Spec.ByRole(rollout.Control); c == nil || c.Name != treatment {
		t.Errorf("control %+v", c)
	}
	last := e.Spec.Changes[len(e.Spec.Changes)-1]
	if last.Actor != "oidc:ada@example.com" || last.Action != "promote "+treatment || last.Reason != rollout.ReasonRequested || !strings.HasPrefix(last.ID, "page-") {
		t.Errorf("record %+v", last)
	}
	press("rollback-"+treatment, nil, "is control and default again")
	log := h.log.String()
	for _, want := range []string{
		"msg=command name=page-", "command=promote actor=oidc:ada@example.com endpoint=models/fraud version=" + treatment + " state=done", "state=refused reason=percent_invalid", "command=hold",
	} {
		if !strings.Contains(log, want) {
			t.Errorf("the log lacks %q:\n%s", want, log)
		}
	}
}

// TestOnce: a button that is pressed twice, or again later, does what it did and no more.
func TestOnce(t *testing.T) {
	h := open(t, ModeAnyone)
	f := form(t, h.logIn(), "do-hold")
	f.Set("reason", "lunch")
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() { h.post("/endpoints/models/fraud", f) })
	}
	wg.Wait()
	count := func() (n int) {
		for _, c := range h.endpoint(fraud).Spec.Changes {
			if c.Action == "hold" && c.Actor == "oidc:ada@example.com" {
				n++
			}
		}
		return n
	}
	if count() != 1 {
		t.Errorf("%d holds", count())
	}
	h.edit("bob", "cli:bob", rollout.Resume{})
	if r := h.post("/endpoints/models/fraud", f); !strings.Contains(r.text, "already done") {
		t.Errorf("later: %s", r.text)
	}
	if e := h.endpoint(fraud); e.Spec.Hold != nil || count() != 1 {
		t.Errorf("hold %+v of %d", e.Spec.Hold, count())
	}
	// Another reason, or another page, is another press.
	again := form(t, h.get("/endpoints/models/fraud"), "do-hold")
	again.Set("reason", "lunch")
	h.post("/endpoints/models/fraud", again)
	if count() != 2 {
		t.Errorf("%d holds", count())
	}
}

// TestReplaced: a command is for what its page showed.
func TestReplaced(t *testing.T) {
	treats := rollout.Treatment
	deploy := func(h *house, name string) {
		h.edit("d-"+name, "github:alice", rollout.Deploy{Version: rollout.Version{Name: name, Image: image(9), Source: rollout.Source{RepositoryID: 74, PullRequest: 43}}})
	}
	for _, tc := range []struct {
		name, button string
		meanwhile    func(*house)
		done         bool
	}{
		{"the treatment was rolled back", "promote-" + treatment, func(h *house) { h.edit("x", "github:bob", rollout.Rollback{Version: treatment}) }, false},
		{"the treatment was promoted", "rollback-" + treatment, func(h *house) { h.edit("x", rollout.Engine, rollout.Promote{Version: treatment}) }, false},
		{"the treatment was promoted, before a hold", "hold", func(h *house) { h.edit("x", rollout.Engine, rollout.Promote{Version: treatment}) }, false},
		{"the treatment was replaced", "lock", func(h *house) {
			h.edit("x", "github:bob", rollout.Retire{Version: treatment})
			deploy(h, "pr-42-0000009")
			h.edit("y", "github:bob", rollout.Update{Version: "pr-42-0000009", Type: &treats})
		}, false},
		{"the treatment was deployed again with other settings", "promote-" + treatment, func(h *house) {
			h.edit("x", "cli:bob", rollout.Update{Version: treatment, Settings: &rollout.Settings{ScoringTimeoutMs: 777}})
		}, false},
		{"the strategy went on by a step", "promote-" + treatment, func(h *house) {
			h.edit("x", rollout.Engine, rollout.Shift{Version: treatment, Percent: 60 * rollout.OnePercent})
		}, true},
		{"another version joined without a part", "hold", func(h *house) { deploy(h, "pr-43-0000009") }, true},
	} {
		h := open(t, ModeAnyone)
		f := form(t, h.logIn(), "do-"+tc.button)
		tc.meanwhile(h)
		before := h.endpoint(fraud)
		r := h.post("/endpoints/models/fraud", f)
		after := h.endpoint(fraud)
		if changed := after.Metadata.Generation != before.Metadata.Generation; changed != tc.done || strings.Contains(r.text, "version_changed") == tc.done {
			t.Errorf("%s: changed %v: %s", tc.name, changed, r.text)
		}
	}
	// A hold that another has taken the place of is not ended.
	h := open(t, ModeAnyone)
	h.logIn()
	h.edit("a", "cli:bob", rollout.Hold{Reason: "one"})
	f := form(t, h.get("/endpoints/models/fraud"), "do-resume")
	h.edit("b", "cli:carol", rollout.Hold{Reason: "two"})
	if r := h.post("/endpoints/models/fraud", f); !strings.Contains(r.text, "version_changed") || h.endpoint(fraud).Spec.Hold == nil {
		t.Errorf("resume: %s", r.text)
	}
}

// TestNotMeant: forms that nobody who may has sent by the page.
func TestNotMeant(t *testing.T) {
	h := open(t, ModeAnyone)
	h.logIn()
	other := h.fresh()
	mine := form(t, h.logIn(), "do-promote-"+treatment)
	theirs := form(t, func() reply {
		me := h.client
		h.client = other
		defer func() { h.client = me }()
		return h.get("/endpoints/models/fraud")
	}(), "do-promote-"+treatment)
	if mine.Get("token") == theirs.Get("token") {
		t.Fatal("two sessions have one token")
	}
	with := func(name, value string) url.Values {
		out := url.Values{}
		for k, v := range mine {
			out[k] = v
		}
		out.Set(name, value)
		return out
	}
	header := func(name, value string) func(*http.Request) {
		return func(r *http.Request) { r.Header.Set(name, value) }
	}
	before := h.endpoint(fraud)
	for _, tc := range []struct {
		name, path string
		form       url.Values
		edit       func(*http.Request)
		code       int
		says       string
	}{
		{"another session's token", "", theirs, nil, 403, "of another session"},
		{"no token", "", with("token", ""), nil, 403, "of another session"},
		{"another site", "", mine, func(r *http.Request) {
			r.Header.Set("Origin", "https://evil.example")
			r.Header.Set("Sec-Fetch-Site", "cross-site")
		}, 403, "another site"},
		{"another site, in an old browser", "", mine, func(r *http.Request) {
			r.Header.Set("Origin", "https://evil.example")
			r.Header.Del("Sec-Fetch-Site")
		}, 403, "does not come from the page"},
		{"no origin", "", mine, func(r *http.Request) { r.Header.Del("Origin") }, 403, "does not come from the page"},
		{"another kind of body", "", mine, header("Content-Type", "text/plain"), 400, "no form of the page"},
		{"a large body", "", with("reason", strings.Repeat("x", 9000)), nil, 400, "more than 8192 bytes"},
		{"in the address", "?" + mine.Encode(), url.Values{}, nil, 403, "of another session"},
		{"an endpoint that cannot be", "/../../models/FRAUD", mine, nil, 400, "no endpoint"},
		{"a forged cookie", "", mine, header("Cookie", "sluice-session=x"), 403, "of another session"},
	} {
		path := "/endpoints/models/fraud" + tc.path
		if strings.HasPrefix(tc.path, "/..") {
			path = "/endpoints/models/FRAUD"
		}
		var edits []func(*http.Request)
		if tc.edit != nil {
			edits = append(edits, tc.edit)
		}
		if tc.name == "a forged cookie" {
			was := h.fresh()
			r := h.post(path, tc.form, edits...)
			h.client = was
			if r.StatusCode != 403 || !strings.Contains(r.text, "You have not logged in") {
				t.Errorf("%s: %d: %s", tc.name, r.StatusCode, r.text)
			}
			continue
		}
		if r := h.post(path, tc.form, edits...); r.StatusCode != tc.code || !strings.Contains(r.text, tc.says) {
			t.Errorf("%s: %d, want %d %q: %s", tc.name, r.StatusCode, tc.code, tc.says, r.text)
		}
	}
	// What the page has understood, and refuses.
	for _, tc := range []struct {
		name, path string
		form       url.Values
		says       string
	}{
		{"a command that is none", "/endpoints/models/fraud", with("command", "delete"), "no such command"},
		{"reading is no command", "/endpoints/models/fraud", with("command", "read"), "no such command"},
		{"a version that is no name", "/endpoints/models/fraud", with("version", "../x"), "no version&#39;s name"},
		{"a version where none belongs", "/endpoints/models/fraud", with("command", "hold"), "not for a version"},
		{"another version", "/endpoints/models/fraud", with("version", "sha-0000001"), "version_changed"},
		{"another command with what was seen", "/endpoints/models/fraud", func() url.Values {
			v := with("command", "hold")
			v.Set("version", "")
			return v
		}(), "version_changed"},
		{"a made-up view", "/endpoints/models/fraud", with("seen", strings.Repeat("0", 24)), "version_changed"},
		{"a made-up press", "/endpoints/models/fraud", with("at", strings.Repeat("9", 21)), "no form of the page"},
		{"an endpoint that is only read", "/endpoints/models/churn", mine, "nothing permits oidc:ada@example.com the command promote on endpoint models/churn (denied)"},
		{"an endpoint that is another's", "/endpoints/models/ranking", mine, "(denied)"},
		{"an endpoint that is not there", "/endpoints/models/nothing", mine, "(denied)"},
	} {
		r := h.post(tc.path, tc.form)
		if r.Request.Method != http.MethodGet || !strings.Contains(r.raw, tc.says) && tc.path != "/endpoints/models/nothing" {
			t.Errorf("%s: %d, want %q: %s", tc.name, r.StatusCode, tc.says, r.text)
		}
	}
	if after := h.endpoint(fraud); after.Metadata.Generation != before.Metadata.Generation {
		t.Errorf("it was changed: %+v", after.Spec.Changes[len(after.Spec.Changes)-1])
	}
	// The form itself is good, once its session is not over.
	h.wait(login.Life + time.Minute)
	if r := h.post("/endpoints/models/fraud", mine); r.StatusCode != 403 || !strings.Contains(r.text, "You have not logged in") {
		t.Errorf("after the session: %d: %s", r.StatusCode, r.text)
	}
	h.wait(-login.Life - time.Minute)
	if r := h.post("/endpoints/models/fraud", mine); !strings.Contains(r.text, "is control and default") {
		t.Errorf("the form itself: %s", r.text)
	}

	// Who may do some of it has the buttons for that.
	h = open(t, ModeLogin)
	h.issuer.LogIn(jwt.MapClaims{"sub": "u-2", "email": "grace@example.com", "email_verified": true})
	r := h.logIn()
	if got := strings.Join(buttons(r), " "); got != "hold lock" && got != "hold" {
		t.Errorf("buttons %s", got)
	}
	f := form(t, r, "do-hold")
	f.Set("command", "lock")
	if r := h.post("/endpoints/models/fraud", f); !strings.Contains(r.text, "the command lock on endpoint models/fraud (denied)") || h.endpoint(fraud).Spec.Lock != nil {
		t.Errorf("lock: %s", r.text)
	}
	if !strings.Contains(h.log.String(), "command=lock actor=oidc:grace@example.com endpoint=models/fraud version=\"\" state=refused reason=denied") {
		t.Errorf("the log is\n%s", h.log.String())
	}
}

// TestLogout: and who may make it happen.
func TestLogout(t *testing.T) {
	h := open(t, ModeLogin)
	page := h.logIn()
	token := form(t, page, "do-hold").Get("token")
	if r := h.post("/logout", url.Values{"token": {"x"}}); r.StatusCode != 403 {
		t.Errorf("with another token: %d", r.StatusCode)
	}
	if r := h.post("/logout", url.Values{"token": {token}}, func(r *http.Request) { r.Header.Set("Sec-Fetch-Site", "cross-site") }); r.StatusCode != 403 {
		t.Errorf("from another site: %d", r.StatusCode)
	}
	if r := h.get("/logout"); r.StatusCode != 404 && r.StatusCode != 405 {
		t.Errorf("by a link: %d", r.StatusCode)
	}
	if r := h.get("/"); !strings.Contains(r.text, "Log out") {
		t.Fatal("it was ended")
	}
	if r := h.post("/logout", url.Values{"token": {token}}); r.StatusCode != 403 || r.Request.URL.Path != "/" || !strings.Contains(r.text, "Log in") {
		t.Errorf("%d at %s: %s", r.StatusCode, r.Request.URL, r.text)
	}
	if u, _ := url.Parse(h.url); len(h.client.Jar.Cookies(u)) > 0 {
		t.Errorf("cookies %v", h.client.Jar.Cookies(u))
	}
	if r := h.post("/logout", url.Values{}); r.Request.URL.Path != "/" {
		t.Errorf("again: %s", r.Request.URL)
	}
}

// TestReturn: a login leads back to an endpoint's page or to the first, and nowhere else.
func TestReturn(t *testing.T) {
	for path, want := range map[string]string{
		"":                                   "/",
		"/":                                  "/",
		"/endpoints/models/fraud":            "/endpoints/models/fraud",
		"//evil.example":                     "/",
		"//evil.example/endpoints/a/b":       "/",
		"https://evil.example":               "/",
		"https:evil.example":                 "/",
		"/\\evil.example":                    "/",
		"/endpoints//evil.example":           "/",
		"/endpoints/models/fraud/../..//e.x": "/",
		"/endpoints/models/fraud?x=1":        "/",
		"/endpoints/models/fraud\r\nX: y":    "/",
		"/endpoints/MODELS/fraud":            "/",
		"javascript:alert(1)":                "/",
		"/logout":                            "/",
		strings.Repeat("/endpoints/a/b", 99): "/",
	} {
		if got := returnPath(path); got != want {
			t.Errorf("%q leads to %q, want %q", path, got, want)
		}
	}
	h := open(t, ModeAnyone)
	if r := h.get("/login?to=" + url.QueryEscape("//evil.example/x")); r.Request.URL.String() != h.url+"/" || !strings.Contains(r.text, "Log out") {
		t.Errorf("it leads to %s", r.Request.URL)
	}
	if r := h.get("/login/callback?state=x&code=y"); r.StatusCode != 400 || !strings.Contains(r.text, "has begun no login") {
		t.Errorf("%d: %s", r.StatusCode, r.text)
	}
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, h.url+"/login", nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Sec-Fetch-Dest", "image")
	if r := h.do(r); r.StatusCode != 403 || len(r.Cookies()) > 0 {
		t.Errorf("in a picture: %d", r.StatusCode)
	}
}

// TestIssuerGone: the page goes on, and says why nobody can log in.
func TestIssuerGone(t *testing.T) {
	h := open(t, ModeAnyone)
	h.issuer.SetDown(true)
	if r := h.get("/login"); r.StatusCode != 503 || r.Header.Get("Retry-After") == "" || !strings.Contains(r.text, "the issuer of logins does not answer") || !strings.Contains(r.text, "unavailable") {
		t.Errorf("%d: %s", r.StatusCode, r.text)
	}
	if r := h.get("/endpoints/models/fraud"); r.StatusCode != 200 {
		t.Errorf("the page: %d", r.StatusCode)
	}
	if !strings.Contains(h.log.String(), "login not begun") {
		t.Errorf("the log is\n%s", h.log.String())
	}
}

// TestStrictWithALogin: forms go to the page itself alone, and what an issuer says is text.
func TestStrictWithALogin(t *testing.T) {
	h := open(t, ModeAnyone)
	const evil = `"><script>alert(1)</script><img src=x onerror=alert(2)>`
	h.issuer.LogIn(jwt.MapClaims{"sub": evil, "name": evil + "\u202e", "preferred_username": evil, "email": "a@b.example", "email_verified": false, "groups": []string{"oncall", evil}})
	r := h.logIn()
	if r.Header.Get("Referrer-Policy") != "same-origin" || !strings.Contains(r.Header.Get("Content-Security-Policy"), "; form-action 'self'") || strings.Contains(r.Header.Get("Content-Security-Policy"), "unsafe") {
		t.Errorf("headers %v", r.Header)
	}
	if !strings.Contains(r.text, "oidc:sub="+evil) || strings.Contains(r.raw, "\u202e") {
		t.Errorf("the page: %s", r.text)
	}
	for n := range r.root.Descendants() {
		if n.Type != html.ElementNode {
			continue
		}
		if n.Data == "img" || n.Data == "script" && attribute(n, "src") == "" || n.Data == "form" && !strings.HasPrefix(attribute(n, "action"), "/") {
			t.Errorf("<%s %v>", n.Data, n.Attr)
		}
		for _, a := range n.Attr {
			if a.Key == "style" || strings.HasPrefix(a.Key, "on") {
				t.Errorf("<%s %s=%q>", n.Data, a.Key, a.Val)
			}
		}
	}
	f := form(t, r, "do-promote-"+treatment)
	if r := h.post("/endpoints/models/fraud", f); !strings.Contains(r.text, "is control and default") || strings.Contains(r.raw, "<img") {
		t.Errorf("promoted: %s", r.text)
	}
	// What is made for somebody is not shown to others.
	h.fresh()
	if r := h.get("/endpoints/models/fraud"); strings.Contains(r.raw, "token") || strings.Contains(r.raw, "Log out") {
		t.Errorf("a stranger sees %s", r.text)
	}
	// A script that takes the page again leaves the note to who is about to look.
	h.logIn()
	f = form(t, h.get("/endpoints/models/fraud"), "do-hold")
	f.Set("reason", "x")
	h.client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	if r := h.post("/endpoints/models/fraud", f); r.StatusCode != 303 || r.Header.Get("Location") != "/endpoints/models/fraud" {
		t.Errorf("%d to %s", r.StatusCode, r.Header.Get("Location"))
	}
	script, err := http.NewRequestWithContext(t.Context(), http.MethodGet, h.url+"/endpoints/models/fraud", nil)
	if err != nil {
		t.Fatal(err)
	}
	script.Header.Set("Sec-Fetch-Mode", "same-origin")
	if r := h.do(script); strings.Contains(r.raw, `id="note"`) {
		t.Error("a script took the note")
	}
	if r := h.get("/endpoints/models/fraud"); !strings.Contains(r.raw, `id="note"`) {
		t.Error("the note is gone")
	}
	if r := h.get("/endpoints/models/fraud?note=promoted"); strings.Contains(r.raw, `id="note"`) {
		t.Error("a note is told twice, or comes from the address")
	}
	// Forms stay the same while nothing changes, so that a page that follows changes does not exchange them.
	one, two := h.get("/endpoints/models/fraud"), h.get("/endpoints/models/fraud")
	if fmt.Sprint(form(t, one, "do-resume")) != fmt.Sprint(form(t, two, "do-resume")) {
		t.Error("the same form is another one each time")
	}
}
