package page

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/html"
	"golang.org/x/time/rate"

	"github.com/sluice-dev/sluice/pkg/cluster/memory"
	"github.com/sluice-dev/sluice/rollout"
)

var began = time.Date(2026, 11, 26, 9, 0, 0, 0, time.UTC)

// of a store, at the time of the story.
func of(t *testing.T, store *memory.Store, mode Mode) *Page {
	t.Helper()
	p, err := prepare(Options{Store: store, Mode: mode, Next: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "next") }), Now: func() time.Time { return began }})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func ask(h http.Handler, path string, edit ...func(*http.Request)) *httptest.ResponseRecorder {
	r := httptest.NewRequest(http.MethodGet, path, nil)
	for _, e := range edit {
		e(r)
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

// texts of a page, without markup, and every element with its attributes.
func read(t *testing.T, w *httptest.ResponseRecorder) (*html.Node, string) {
	t.Helper()
	root, err := html.Parse(w.Body)
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for n := range root.Descendants() {
		if n.Type == html.TextNode {
			b.WriteString(n.Data + " ")
		}
	}
	return root, strings.Join(strings.Fields(b.String()), " ")
}

func attribute(n *html.Node, name string) string {
	for _, a := range n.Attr {
		if a.Key == name {
			return a.Val
		}
	}
	return ""
}

func TestPaths(t *testing.T) {
	p := of(t, tell(t, began), ModeAnyone)
	for _, tc := range []struct {
		path, kind string
		code       int
		says       []string
	}{
		{"/", "text/html", 200, []string{"Endpoints", "models/ fraud", "rolling out", "pr-42-3f9c2ab 50 %", "nothing serves", "locked"}},
		{"/endpoints/models/fraud", "text/html", 200, []string{
			"pr-42-3f9c2ab is at step 3 of 3: 4261 of 5000 requests at 50 per cent.", "1,204", "3 0.25 %", "48.3 ms", "over 60 s", "13 of 7,381 requests to pr-42-3f9c2ab were bad, and 97 of 51,304 to the control",
			"not worse", "step_complete", "github:bob@acme/fraud#41", "likelihood ratio", "Steps of 1, 10, 50 %, then all.", "https://models.example/api/v1/endpoint/models/fraud/score",
		}},
		{"/endpoints/models/churn", "text/html", 200, []string{"Nothing is being rolled out.", "rollback pr-7-0a1b2c3", "17 of 41 requests bad", "There is no treatment to judge."}},
		{"/endpoints/speech/transcribe", "text/html", 200, []string{"no version has a ready replica", "KeyError: 'THRESHOLD'", "No strategy: people move the shares."}},
		{"/endpoints/models/pricing-with-a-rather-long-name", "text/html", 200, []string{"No strategy moves the treatments; people do.", "Nothing is judged.", "Locked by github:carol@acme/pricing#7. audit until Friday", "62.5 %"}},
		{"/endpoints/models/nothing", "text/html", 404, []string{"There is no endpoint of this name."}},
		{"/endpoints/MODELS/%3Cscript%3E", "text/html", 404, []string{"There is no endpoint of this name."}},
		{"/?page=99999999999999999999", "text/html", 200, []string{"models/ fraud"}},
		{"/?page=-3", "text/html", 200, []string{"models/ fraud"}},
		{"/assets/page.css", "text/plain", 404, nil},
		{"/assets/../page.go", "", 301, nil},
		{embeddedAssets.addresses["page.js"], "text/javascript", 200, nil},
		{embeddedAssets.addresses["page.css"], "text/css", 200, nil},
		{embeddedAssets.addresses["icon.svg"], "image/svg+xml", 200, nil},
		{"/apis/sluice/v1/openapi.json", "", 200, []string{"next"}},
		{"/webhooks/github", "", 200, []string{"next"}},
	} {
		w := ask(p, tc.path)
		if w.Code != tc.code || !strings.HasPrefix(w.Header().Get("Content-Type"), tc.kind) {
			t.Errorf("%s: %d %s", tc.path, w.Code, w.Header().Get("Content-Type"))
		}
		_, text := read(t, w)
		for _, says := range tc.says {
			if !strings.Contains(text, says) {
				t.Errorf("%s does not say %q:\n%s", tc.path, says, text)
			}
		}
	}
}

// TestStrict: the policy, and that the page keeps to it: nothing inline, nothing from elsewhere.
func TestStrict(t *testing.T) {
	p := of(t, tell(t, began), ModeAnyone)
	for _, path := range []string{"/", "/endpoints/models/fraud", "/endpoints/models/nothing", embeddedAssets.addresses["page.js"], "/assets/x", EventsPath + "?endpoint=x"} {
		w := ask(p, path)
		for name, want := range map[string]string{
			"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "X-Frame-Options": "DENY", "Cross-Origin-Resource-Policy": "same-origin", "Set-Cookie": "", "Access-Control-Allow-Origin": "",
		} {
			if got := w.Header().Get(name); got != want {
				t.Errorf("%s: %s %q, want %q", path, name, got, want)
			}
		}
		csp := w.Header().Get("Content-Security-Policy")
		for _, want := range []string{"default-src 'none'", "script-src 'self'", "style-src 'self'", "frame-ancestors 'none'", "base-uri 'none'", "form-action 'none'", "trusted-types 'none'"} {
			if !strings.Contains(csp, want) {
				t.Errorf("%s: the policy lacks %s: %s", path, want, csp)
			}
		}
		if strings.Contains(csp, "unsafe") || strings.Contains(csp, "http") || strings.Contains(csp, "*") {
			t.Errorf("%s: %s", path, csp)
		}
		if !strings.HasPrefix(w.Header().Get("Content-Type"), "text/html") {
			continue
		}
		root, _ := read(t, w)
		for n := range root.Descendants() {
			if n.Type != html.ElementNode {
				continue
			}
			if (n.Data == "script" && attribute(n, "src") == "") || n.Data == "style" || n.Data == "form" || n.Data == "iframe" {
				t.Errorf("%s: <%s> inline", path, n.Data)
			}
			for _, a := range n.Attr {
				if a.Key == "style" || strings.HasPrefix(a.Key, "on") {
					t.Errorf("%s: <%s %s=%q>", path, n.Data, a.Key, a.Val)
				}
				if (a.Key == "src" || a.Key == "href") && !strings.HasPrefix(a.Val, "/") && !strings.HasPrefix(a.Val, "#") {
					t.Errorf("%s: <%s %s=%q> leads elsewhere", path, n.Data, a.Key, a.Val)
				}
			}
		}
	}
}

// TestHostile: whatever comes from outside is text, wherever it stands.
func TestHostile(t *testing.T) {
	const evil = `"><script>alert(1)</script><img src=x onerror=alert(2)>'</title></svg></pre>{{.}}` + "\u202e\x00"
	store := memory.NewStore()
	s := &story{t: t, store: store, now: began}
	s.begin("models", "evil")
	s.deploy(30, "sha-0000001", 1, 0, &rollout.Strategy{})
	s.deploy(20, "pr-1-0000002", 2, 1, nil)
	s.treatment(19, "pr-1-0000002")
	s.at(18, evil, rollout.Reason(evil), evil, rollout.Shift{Version: "pr-1-0000002", Percent: rollout.OnePercent})
	s.at(17, evil, "", evil, rollout.Lock{Reason: evil})
	s.at(16, evil, "", evil, rollout.Hold{Reason: evil})
	s.e.Status.Rollout = &rollout.RolloutStatus{Treatment: "pr-1-0000002", Reason: rollout.Reason(evil), Message: evil, Evidence: []rollout.EvidenceStatus{
		{Treatment: evil, Verdict: evil, Requests: evil, Bad: evil, ControlRequests: evil, ControlBad: evil, LogEvidenceWorse: evil, LogEvidenceFine: "NaN", BadUpperBound: evil},
		{Treatment: "pr-1-0000002", LogEvidenceWorse: "+Inf", LogEvidenceFine: "-1e400", BadUpperBound: "NaN"},
	}}
	s.e.Status.Traffic = &rollout.TrafficStatus{At: began, Seconds: 60, Versions: []rollout.VersionTraffic{{Name: "sha-0000001", Requests: -5, Failed: 9, P50: evil, P99: evil}}}
	s.e.Status.History = append(s.e.Status.History, rollout.Change{ID: "x", Actor: evil, Action: "traffic " + evil + " 10", At: began.Add(-time.Minute)}, rollout.Change{ID: "y", Action: evil, At: began}, rollout.Change{ID: "z"})
	s.settle(func(string) (int, int) { return 0, 1 })
	e, err := store.Get(t.Context(), s.e.Key())
	if err != nil {
		t.Fatal(err)
	}
	e.Status.ScoringURI = "javascript:" + evil
	e.Status.Conditions[0].Message, e.Status.Conditions[0].Reason = evil, rollout.Reason(evil)
	e.Status.Versions[0].Message, e.Status.Versions[0].Reason, e.Status.Versions[0].State = evil, rollout.Reason(evil), rollout.VersionState(evil)
	if _, err := store.UpdateStatus(t.Context(), e); err != nil {
		t.Fatal(err)
	}
	p := of(t, store, ModeAnyone)
	plain := of(t, tell(t, began), ModeAnyone)
	elements := map[string]bool{}
	for _, path := range []string{"/", "/endpoints/models/fraud", "/endpoints/speech/transcribe", "/endpoints/models/churn", "/endpoints/models/pricing-with-a-rather-long-name"} {
		root, _ := read(t, ask(plain, path))
		for n := range root.Descendants() {
			elements[n.Data+attribute(n, "src")] = elements[n.Data] || n.Type == html.ElementNode
		}
	}
	for _, path := range []string{"/", "/endpoints/models/evil"} {
		w := ask(p, path)
		if w.Code != http.StatusOK {
			t.Fatalf("%s: %d", path, w.Code)
		}
		root, text := read(t, w)
		for n := range root.Descendants() {
			if n.Type != html.ElementNode {
				continue
			}
			if !elements[n.Data+attribute(n, "src")] {
				t.Errorf("%s: an element that no other page has: <%s> %v", path, n.Data, n.Attr)
			}
			for _, a := range n.Attr {
				if strings.HasPrefix(a.Key, "on") || a.Key == "style" || strings.Contains(a.Val, "javascript:") {
					t.Errorf("%s: <%s %s=%q>", path, n.Data, a.Key, a.Val)
				}
				if (a.Key == "width" || a.Key == "x" || a.Key == "cx" || a.Key == "y1") && !regexp.MustCompile(`^[0-9.]+%?$`).MatchString(a.Val) {
					t.Errorf("%s: <%s %s=%q>", path, n.Data, a.Key, a.Val)
				}
			}
		}
		if path != "/" && strings.Count(text, "<script>alert(1)</script>") < 8 {
			t.Errorf("it is not shown as what it is: %s", text)
		}
	}
}

func TestModes(t *testing.T) {
	from := func(addr, host string, headers ...string) func(*http.Request) {
		return func(r *http.Request) {
			r.RemoteAddr, r.Host = addr, host
			for _, h := range headers {
				r.Header.Set(h, "x")
			}
		}
	}
	store := tell(t, began)
	loopback, anyone := of(t, store, ModeLoopback), of(t, store, ModeAnyone)
	for _, tc := range []struct {
		name string
		edit func(*http.Request)
		code int
	}{
		{"this machine", from("127.0.0.1:9", "127.0.0.1:8081"), 200},
		{"its name", from("127.0.0.1:9", "localhost:8081"), 200},
		{"IPv6", from("[::1]:9", "[::1]:8081"), 200},
		{"IPv6 without a port", from("[::1]:9", "[::1]"), 200},
		{"IPv4 in IPv6", from("[::ffff:127.0.0.1]:9", "localhost"), 200},
		{"another machine", from("192.0.2.7:9", "127.0.0.1:8081"), 403},
		{"a name that points here", from("127.0.0.1:9", "evil.example:8081"), 403},
		{"a name like this machine's", from("127.0.0.1:9", "localhost.evil.example"), 403},
		{"no name", from("127.0.0.1:9", ""), 403},
		{"a proxy on this machine", from("127.0.0.1:9", "127.0.0.1:8081", "X-Forwarded-For"), 403},
		{"another proxy", from("127.0.0.1:9", "127.0.0.1:8081", "Forwarded"), 403},
		{"no address", from("@", "localhost"), 403},
	} {
		for _, path := range []string{"/", "/endpoints/models/fraud", "/assets/x", EventsPath + "?endpoint=x"} {
			w := ask(loopback, path, tc.edit)
			if (w.Code == 403) != (tc.code == 403) {
				t.Errorf("%s: %s: %d, want %d", tc.name, path, w.Code, tc.code)
			}
			if tc.code == 403 && strings.Contains(w.Body.String(), "fraud") {
				t.Errorf("%s: %s says %s", tc.name, path, w.Body)
			}
		}
		if w := ask(anyone, "/", tc.edit); w.Code != 200 {
			t.Errorf("%s: anyone: %d", tc.name, w.Code)
		}
		if w := ask(loopback, "/apis/sluice/v1/namespaces", tc.edit); w.Body.String() != "next" {
			t.Errorf("%s: the API: %d", tc.name, w.Code)
		}
	}
	for _, s := range []string{"", "off", "true", "Anyone", "loopback "} {
		if m, err := ParseMode(s); err == nil {
			t.Errorf("%q is mode %s", s, m)
		}
	}
	if _, err := New(t.Context(), Options{Store: store, Mode: ModeNone}); err == nil {
		t.Error("a page for nobody was made")
	}
}

// TestStoreGone: no page is made up.
func TestStoreGone(t *testing.T) {
	store := tell(t, began)
	p := of(t, store, ModeAnyone)
	store.SetFailure(errors.New("secret internals"))
	for _, path := range []string{"/", "/endpoints/models/fraud"} {
		w := ask(p, path)
		if w.Code != 503 || w.Header().Get("Retry-After") == "" || strings.Contains(w.Body.String(), "secret") {
			t.Errorf("%s: %d %s", path, w.Code, w.Body)
		}
	}
}

func TestManyEndpoints(t *testing.T) {
	store := memory.NewStore()
	for i := range perPage + 20 {
		s := &story{t: t, store: store, now: began}
		s.begin("models", fmt.Sprintf("e-%03d", i))
		s.deploy(30, "sha-0000001", 1, 0, nil)
		s.settle(func(string) (int, int) { return 1, 1 })
	}
	p := of(t, store, ModeAnyone)
	for path, want := range map[string]int{"/": perPage, "/?page=2": 20, "/?page=3": 20} {
		root, text := read(t, ask(p, path))
		rows := 0
		for n := range root.Descendants() {
			if n.Data == "tr" && n.Parent.Data == "tbody" {
				rows++
			}
		}
		if rows != want || !strings.Contains(text, "of 120 endpoints") {
			t.Errorf("%s: %d rows, want %d", path, rows, want)
		}
	}
}

// serveEvents with a server whose deadlines are shorter than the streams last.
func serveEvents(t *testing.T, store *memory.Store, edit func(*Page)) (*Page, *httptest.Server) {
	t.Helper()
	p := of(t, store, ModeAnyone)
	p.t = timing{beat: 40 * time.Millisecond, pace: time.Millisecond, write: 2 * time.Second, life: time.Hour}
	if edit != nil {
		edit(p)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		p.hub.run(ctx, store, p.o.Logger)
	}()
	srv := httptest.NewUnstartedServer(p)
	srv.Config.ConnContext = func(ctx context.Context, c net.Conn) context.Context {
		_ = c.(*net.TCPConn).SetWriteBuffer(4096)
		return ctx
	}
	srv.Config.ReadTimeout, srv.Config.WriteTimeout = 100*time.Millisecond, 100*time.Millisecond
	srv.Start()
	t.Cleanup(func() {
		p.Close()
		srv.Close()
		stop()
		<-done
	})
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if p.hub.following() {
			return p, srv
		}
	}
	t.Fatal("nothing follows the store")
	return nil, nil
}

type event struct{ kind, id, data string }

// listen to events; the channel is closed when the stream ends.
func listen(t *testing.T, url string, headers map[string]string) (<-chan event, *http.Response) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	for k, v := range headers {
		r.Header.Set(k, v)
	}
	r.Close = true // the server closes idle connections soon
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { resp.Body.Close() })
	out := make(chan event, 256)
	go func() {
		defer close(out)
		var e event
		for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
			name, value, _ := strings.Cut(lines.Text(), ": ")
			switch name {
			case "event":
				e.kind = value
			case "id":
				e.id = value
			case "data":
				e.data = value
			case "":
				if e.kind != "" {
					out <- e
				}
				e = event{}
			}
		}
	}()
	return out, resp
}

func next(t *testing.T, events <-chan event, kind string) event {
	t.Helper()
	for after := time.After(10 * time.Second); ; {
		select {
		case e, ok := <-events:
			if !ok {
				t.Fatalf("the stream ended before %q", kind)
			}
			if e.kind == kind {
				return e
			}
		case <-after:
			t.Fatalf("no %q within 10 s", kind)
		}
	}
}

// shift changes an endpoint in the store.
func shift(t *testing.T, store *memory.Store, key rollout.Key, id string, op rollout.Op) {
	t.Helper()
	e, err := store.Get(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	next, _, err := rollout.Apply(e, rollout.Request{ID: id, Actor: "test", At: time.Now(), Force: true}, op)
	if err != nil {
		t.Fatal(err)
	}
	next.Spec.Changes = next.Spec.Changes[max(0, len(next.Spec.Changes)-5):] // nothing moves them to the history here
	if _, err := store.Update(t.Context(), next); err != nil {
		t.Fatal(err)
	}
}

var fraud, churn = rollout.Key{Namespace: "models", Name: "fraud"}, rollout.Key{Namespace: "models", Name: "churn"}

func settled(t *testing.T, p *Page) string {
	t.Helper()
	last := ""
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(30 * time.Millisecond) {
		now := p.hub.position()
		if now == last {
			return now
		}
		last = now
	}
	t.Fatal("the hub does not come to rest")
	return ""
}

func TestEvents(t *testing.T) {
	store := tell(t, began)
	p, srv := serveEvents(t, store, nil)
	position := settled(t, p)
	all, resp := listen(t, srv.URL+EventsPath+"?since="+position, nil)
	if k := resp.Header.Get("Content-Type"); k != "text/event-stream" || resp.Header.Get("X-Accel-Buffering") != "no" || !strings.Contains(resp.Header.Get("Cache-Control"), "no-transform") {
		t.Errorf("headers %v", resp.Header)
	}
	one, _ := listen(t, srv.URL+EventsPath+"?endpoint=models/churn&since="+position, nil)
	if e := next(t, all, "beat"); e.id != position {
		t.Errorf("a beat at %s, want %s", e.id, position)
	}
	shift(t, store, fraud, "a", rollout.Hold{})
	e := next(t, all, "change")
	if e.data != `{"endpoints":["models/fraud"]}` {
		t.Errorf("told of %s", e.data)
	}
	// It also goes on after the server's deadlines, and who asks for one endpoint hears of that alone.
	time.Sleep(250 * time.Millisecond)
	shift(t, store, churn, "b", rollout.Hold{})
	if f := next(t, all, "change"); f.data != `{"endpoints":["models/churn"]}` {
		t.Errorf("told of %s", f.data)
	}
	if f := next(t, one, "change"); f.data != `{"endpoints":["models/churn"]}` {
		t.Errorf("who asked for churn is told of %s", f.data)
	}
	// Who comes back gets what it has missed, once; who was never there, or before a restart, takes everything.
	back, _ := listen(t, srv.URL+EventsPath, map[string]string{"Last-Event-ID": e.id})
	if f := next(t, back, "change"); f.data != `{"endpoints":["models/churn"]}` {
		t.Errorf("who comes back is told of %s", f.data)
	}
	for _, id := range []string{"", "x", "0-0", "00000000-99", strings.Split(e.id, "-")[0] + "-999999", "-", strings.Repeat("9", 5000)} {
		fresh, _ := listen(t, srv.URL+EventsPath, map[string]string{"Last-Event-ID": id})
		if f := next(t, fresh, "change"); f.data != `{"all":true}` {
			t.Errorf("%.20q: told of %s", id, f.data)
		}
	}
	// A deleted endpoint is a change, too.
	if err := store.Delete(t.Context(), churn, ""); err != nil {
		t.Fatal(err)
	}
	next(t, one, "change")
	p.Close()
	for range all { // it ends
	}
}

// TestBurst: changes that come faster than a client takes them are one event for each endpoint, and the last is not lost.
func TestBurst(t *testing.T) {
	store := tell(t, began)
	p, srv := serveEvents(t, store, func(p *Page) { p.t.pace = 100 * time.Millisecond })
	events, _ := listen(t, srv.URL+EventsPath+"?since="+settled(t, p), nil)
	for i := range 200 {
		if i%2 == 0 {
			shift(t, store, fraud, fmt.Sprint(i), rollout.Hold{})
		} else {
			shift(t, store, fraud, fmt.Sprint(i), rollout.Resume{})
		}
	}
	last := settled(t, p)
	n := 0
	for {
		e := next(t, events, "change")
		n++
		if e.id == last {
			break
		}
	}
	if n > 20 {
		t.Errorf("%d events for one endpoint in a moment", n)
	}
}

func TestEventLimits(t *testing.T) {
	store := tell(t, began)
	p, srv := serveEvents(t, store, func(p *Page) { p.hub.most = 2 })
	first, _ := listen(t, srv.URL+EventsPath, nil)
	_, second := listen(t, srv.URL+EventsPath, nil)
	next(t, first, "change")
	if _, third := listen(t, srv.URL+EventsPath, nil); third.StatusCode != 503 || third.Header.Get("Retry-After") == "" {
		t.Errorf("a third: %s", third.Status)
	}
	if w := ask(p, EventsPath, func(r *http.Request) { r.Method = http.MethodHead }); w.Body.String() != "next" {
		t.Errorf("HEAD of events: %d", w.Code)
	}
	if w := ask(p, "/"); w.Code != 200 {
		t.Errorf("the page is %d while nobody more may listen", w.Code)
	}
	second.Body.Close()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("whoever left keeps the place")
		}
		if _, again := listen(t, srv.URL+EventsPath, nil); again.StatusCode == 200 {
			break
		}
	}
	for header, code := range map[string]int{"cross-site": 403, "same-site": 403} {
		if _, r := listen(t, srv.URL+EventsPath, map[string]string{"Sec-Fetch-Site": header}); r.StatusCode != code {
			t.Errorf("%s: %s", header, r.Status)
		}
	}
	for _, endpoint := range []string{"x", "models/", "models/../x", "models/Fraud", "a/b/c", "models/" + strings.Repeat("x", 3000)} {
		if w := ask(p, EventsPath+"?endpoint="+endpoint); w.Code != 400 {
			t.Errorf("%.20s: %d", endpoint, w.Code)
		}
	}
}

// TestSlowClient: one that does not read is dropped, and holds up nobody.
func TestSlowClient(t *testing.T) {
	store := tell(t, began)
	p, srv := serveEvents(t, store, func(p *Page) { p.t.write, p.t.beat = 100*time.Millisecond, 20*time.Microsecond })
	conn, err := net.Dial("tcp", srv.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.(*net.TCPConn).SetReadBuffer(1024)
	_, _ = io.WriteString(conn, "GET "+EventsPath+" HTTP/1.1\r\nHost: x\r\n\r\n")
	count := func() int {
		p.hub.mu.Lock()
		defer p.hub.mu.Unlock()
		return len(p.hub.clients)
	}
	wait := func(what string, ok func() bool) {
		t.Helper()
		for end := time.Now().Add(60 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatal(what)
			}
		}
	}
	wait("it never came", func() bool { return count() == 1 })
	wait("it was not dropped", func() bool { return count() == 0 })
}

// TestWatchEnds: after a watch that ended, everyone takes everything again.
func TestPositions(t *testing.T) {
	h := newHub(2)
	h.restart(true)
	at := h.position()
	h.touch(fraud)
	h.touch(churn)
	h.touch(fraud)
	if keys, all, _ := h.since(at, rollout.Key{}); all || len(keys) != 2 {
		t.Errorf("%v %v", keys, all)
	}
	h.restart(true)
	if _, all, _ := h.since(at, rollout.Key{}); !all {
		t.Error("a position of before the restart still counts")
	}
	at = h.position()
	for i := range maxNamed + 1 {
		h.touch(rollout.Key{Namespace: "n", Name: fmt.Sprint(i)})
	}
	if keys, all, _ := h.since(at, rollout.Key{}); !all || keys != nil {
		t.Errorf("%d names, all %v", len(keys), all)
	}
	for i := range maxKnown + 1 {
		h.touch(rollout.Key{Namespace: "n", Name: fmt.Sprint(i)})
	}
	if n := len(h.changed); n > maxKnown {
		t.Errorf("%d endpoints are remembered", n)
	}
}

// TestKept: a page is made once for many who ask, again when what it shows has changed, and its position says how old it is.
func TestKept(t *testing.T) {
	store := tell(t, began)
	p, _ := serveEvents(t, store, nil)
	var now atomic.Int64
	p.o.Now = func() time.Time { return began.Add(time.Duration(now.Load())) }
	settled(t, p)
	page := func() string { t.Helper(); return ask(p, "/endpoints/models/fraud").Body.String() }
	first := page()
	now.Store(int64(time.Second))
	if page() != first {
		t.Error("nothing has changed, and it is made again")
	}
	before := p.hub.position()
	shift(t, store, churn, "a", rollout.Hold{})
	for p.hub.position() == before {
		time.Sleep(time.Millisecond)
	}
	if page() != first {
		t.Error("another endpoint has changed, and it is made again")
	}
	before = p.hub.position()
	shift(t, store, fraud, "b", rollout.Hold{Reason: "a test"})
	for p.hub.position() == before {
		time.Sleep(time.Millisecond)
	}
	now.Store(int64(least / 2)) // as if it had just been made
	if old := page(); old != first || strings.Contains(old, p.hub.position()) {
		t.Error("it is made again at once, or says that it is newer than it is")
	}
	now.Store(int64(time.Second))
	if new := page(); !strings.Contains(new, "a test") || !strings.Contains(new, `data-position="`+p.hub.position()+`"`) {
		t.Errorf("it is not made again, or without its position: %s", new)
	}
	if err := store.Delete(t.Context(), fraud, ""); err != nil {
		t.Fatal(err)
	}
	now.Store(int64(2 * time.Second))
	for end := time.Now().Add(10 * time.Second); ask(p, "/endpoints/models/fraud").Code != 404; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("what is deleted is shown")
		}
	}
	// Many who ask for many pages wait, and do not wear the server out.
	limited := of(t, store, ModeAnyone)
	limited.rate = rate.NewLimiter(rate.Every(time.Hour), 3)
	codes := map[int]int{}
	for i := range 10 {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Millisecond)
		codes[ask(limited, "/?page="+strconv.Itoa(i+1), func(r *http.Request) { *r = *r.WithContext(ctx) }).Code]++
		cancel()
	}
	if codes[200] != 3 || codes[503] != 7 {
		t.Errorf("%v", codes)
	}
}

// TestManyListeners: as many as may listen hear of a change soon, and cost little.
func TestManyListeners(t *testing.T) {
	store := tell(t, began)
	p, srv := serveEvents(t, store, func(p *Page) { p.t.beat = time.Minute })
	position := settled(t, p)
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	var all []<-chan event
	for range maxListeners {
		events, resp := listen(t, srv.URL+EventsPath+"?since="+position, nil)
		if resp.StatusCode != http.StatusOK {
			t.Fatal(resp.Status)
		}
		all = append(all, events)
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	start := time.Now()
	shift(t, store, fraud, "a", rollout.Hold{})
	for _, events := range all {
		next(t, events, "change")
	}
	took, each := time.Since(start), int64(after.HeapAlloc+after.StackInuse-before.HeapAlloc-before.StackInuse)/maxListeners
	t.Logf("%d listeners heard of a change within %s; each, with its client here, holds %d KiB", maxListeners, took, each>>10)
	if took > 5*time.Second || each > 256<<10 {
		t.Errorf("too slow, or too large")
	}
}

func BenchmarkPage(b *testing.B) {
	store := memory.NewStore()
	for i := range perPage {
		e := &rollout.Endpoint{Metadata: rollout.Metadata{Namespace: "models", Name: fmt.Sprintf("e-%03d", i)}}
		e, _, err := rollout.Apply(e, rollout.Request{ID: "a", Actor: "x", At: began}, rollout.Deploy{Version: rollout.Version{Name: "a", Image: image(1)}})
		if err != nil {
			b.Fatal(err)
		}
		for j := range rollout.MaxHistory {
			e.Status.History = append(e.Status.History, rollout.Change{ID: fmt.Sprint(j), Actor: "x", Action: fmt.Sprintf("traffic a %d", j), Reason: rollout.ReasonStepComplete, Evidence: strings.Repeat("evidence ", 20), At: began.Add(time.Duration(j) * time.Minute)})
		}
		st := e.Status
		if e, err = store.Create(b.Context(), e); err != nil {
			b.Fatal(err)
		}
		e.Status = st
		if _, err := store.UpdateStatus(b.Context(), e); err != nil {
			b.Fatal(err)
		}
	}
	for name, path := range map[string]string{"list": "/", "endpoint": "/endpoints/models/e-000"} {
		b.Run(name, func(b *testing.B) {
			p, err := prepare(Options{Store: store, Mode: ModeAnyone})
			if err != nil {
				b.Fatal(err)
			}
			p.rate.SetLimit(rate.Inf)
			n := 0
			for b.Loop() {
				clear(p.kept)
				w := ask(p, path)
				if n = w.Body.Len(); w.Code != http.StatusOK {
					b.Fatal(w.Code)
				}
			}
			b.ReportMetric(float64(n), "bytes/page")
		})
	}
}
