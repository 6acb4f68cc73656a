package router

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sluice-dev/sluice/pkg/access"
	"github.com/sluice-dev/sluice/pkg/cluster"
	"github.com/sluice-dev/sluice/pkg/telemetry"
	"github.com/sluice-dev/sluice/rollout"
	"github.com/sluice-dev/sluice/rollout/verdict"
)

func TestTargets(t *testing.T) {
	for _, x := range []struct {
		uri, want string // want: namespace name path query, or empty
	}{
		{"/api/v1/service/fraud/score", "models fraud /score "},
		{"/api/v1/service/fraud/score?a=b&c=%2F", "models fraud /score ?a=b&c=%2F"},
		{"/api/v1/endpoint/other/fraud/score", "other fraud /score "},
		{"/api/v1/service/fraud/swagger.json", "models fraud /swagger.json "},
		{"/api/v1/service/fraud/v2/models/m%20n/infer", "models fraud /v2/models/m%20n/infer "},
		{"/api/v1/service/fraud/", "models fraud / "},
		{"/api/v1/service/fraud//x", "models fraud //x "},
		{"/api/v1/service/fraud/a.b/..c/...", "models fraud /a.b/..c/... "},
		{"http://host/api/v1/service/fraud/score", "models fraud /score "},
		{"/api/v1/service/fraud", ""},
		{"/api/v1/service/", ""},
		{"/api/v1/service//score", ""},
		{"/api/v1/endpoint/models", ""},
		{"/api/v1/endpoint//fraud/score", "" + " fraud /score "},
		{"/", ""},
		{"*", ""},
		{"", ""},
		{"/api/v2/service/fraud/score", ""},
		{"/api/v1/service/fraud/../../../admin", ""},
		{"/api/v1/service/fraud/a/./b", ""},
		{"/api/v1/service/fraud/a/%2E%2e/b", ""},
		{"/api/v1/service/fraud/a/.%2e", ""},
		{"/api/v1/service/fraud/..;x/b", ""},
		{"/api/v1/service/fraud/a%2f..%2fb", ""},
		{"/api/v1/service/fraud/a%5C..%5Cb", ""},
		{`/api/v1/service/fraud/a\..\b`, ""},
		{"/api/v1/service/fraud/score?x=/../", "models fraud /score ?x=/../"},
	} {
		got := ""
		if tg, ok := parseTarget(x.uri, "models"); ok {
			got = fmt.Sprintf("%s %s %s %s", tg.key.Namespace, tg.key.Name, tg.path, tg.query)
		}
		if got != x.want {
			t.Errorf("%q: got %q, want %q", x.uri, got, x.want)
		}
	}
}

func TestScore(t *testing.T) {
	var last atomic.Pointer[http.Request]
	h, g := one(t, func(w http.ResponseWriter, r *http.Request) {
		last.Store(r)
		echo(w, r)
	})
	for _, path := range []string{scoreURL, "/api/v1/endpoint/models/fraud/score"} {
		a := h.do("POST", path+"?q=1", `{"x":1}`, "Content-Type", "application/json")
		if a.status != 200 || a.body != `{"x":1}` || a.header.Get("Sluice-Version") != "a" {
			t.Errorf("%s: %+v", path, a)
		}
		if r := last.Load(); r.Method != "POST" || r.RequestURI != "/score?q=1" || r.ContentLength != 7 {
			t.Errorf("the replica got %s %s, length %d", r.Method, r.RequestURI, r.ContentLength)
		}
	}
	if a := h.do("GET", scoreURL+"?x=1", ""); a.status != 200 {
		t.Errorf("GET: %+v", a)
	}
	if r := last.Load(); r.Method != "GET" || r.ContentLength != 0 || r.Header["Content-Length"] != nil {
		t.Errorf("the replica got %s, length %d", r.Method, r.ContentLength)
	}
	if a := h.do("PUT", "/api/v1/service/fraud/v2/models/m%20n?x=%2f", "y"); a.status != 200 || a.body != "y" {
		t.Errorf("sub-path: %+v", a)
	}
	if r := last.Load(); r.Method != "PUT" || r.RequestURI != "/v2/models/m%20n?x=%2f" {
		t.Errorf("the replica got %s %s", r.Method, r.RequestURI)
	}
	if a := h.do("GET", "/api/v1/service/fraud/swagger.json", ""); a.status != 200 || last.Load().RequestURI != "/swagger.json" {
		t.Errorf("swagger: %+v", a)
	}
	if a := h.do("HEAD", "/api/v1/service/fraud/x", ""); a.status != 200 || a.body != "" {
		t.Errorf("HEAD: %+v", a)
	}
	if n := g.served.Load(); n != 6 {
		t.Errorf("%d requests at the replica", n)
	}
	for _, x := range []struct {
		method, path string
		status       int
		code         string
	}{
		{"POST", "/api/v1/service/other/score", 404, "unknown_endpoint"},
		{"POST", "/api/v1/endpoint/other/fraud/score", 404, "unknown_endpoint"},
		{"GET", "/", 404, "unknown_endpoint"},
		{"GET", "/metrics", 404, "unknown_endpoint"},
		{"GET", "/api/v1/service/fraud/../x", 404, "unknown_endpoint"},
		{"DELETE", scoreURL, 405, "invalid"},
		{"TRACE", "/api/v1/service/fraud/x", 405, "invalid"},
	} {
		r := h.request(x.method, "/", nil)
		r.URL.Opaque = "//" + h.addr + x.path // as it is
		a, err := h.try(r)
		if err != nil {
			t.Fatal(err)
		}
		if a.status != x.status || a.code() != x.code {
			t.Errorf("%s %s: %d %s, want %d %s", x.method, x.path, a.status, a.body, x.status, x.code)
		}
		if x.status == 405 && a.header.Get("Allow") == "" {
			t.Errorf("%s %s: no Allow", x.method, x.path)
		}
	}
}

func TestHeaderHygiene(t *testing.T) {
	var got http.Header
	h, _ := one(t, func(w http.ResponseWriter, r *http.Request) {
		got = r.Header.Clone()
		got.Set("Host", r.Host)
		w.Header()["Sluice-Version"] = []string{"forged"}
		w.Header()["Sluice-Secret"] = []string{"x"}
		w.Header()["X-Request-Id"] = []string{"forged"}
		w.Header()["X-Ms-Request-Id"] = []string{"forged"}
		w.Header()["Connection"] = []string{"X-Hop"}
		w.Header()["X-Hop"] = []string{"1"}
		w.Header()["Proxy-Authenticate"] = []string{"Basic"}
		w.Header()["X-Model"] = []string{"kept", "twice"}
		w.WriteHeader(http.StatusAccepted)
		_, _ = io.WriteString(w, "<html>")
	})
	r := h.request("POST", scoreURL, strings.NewReader("{}"),
		"Connection", "X-Drop, X-Forwarded-Proto", "X-Drop", "1", "Te", "trailers", "Proxy-Authorization", "Basic eA==",
		"Upgrade", "websocket", "Sluice-Refused", "busy", "Sluice-Version", "a", "Sluice-Fleet", "x/y/z", "azureml-model-deployment", "a",
		"X-Forwarded-For", "10.0.0.1", "X-Forwarded-Proto", "https", "X-Request-Id", "abc-123", "X-Keep", "1", "Cookie", "k=v")
	r.Host = "models.example:8443"
	a, err := h.try(r)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"X-Drop": "", "Te": "", "Proxy-Authorization": "", "Upgrade": "", "Connection": "", "Authorization": "",
		"Sluice-Refused": "", "Sluice-Version": "", "Sluice-Fleet": fraud.String() + "/a", "Azureml-Model-Deployment": "",
		"X-Forwarded-For": "10.0.0.1, 127.0.0.1", "X-Forwarded-Proto": "http", "X-Request-Id": "abc-123", "X-Ms-Request-Id": "abc-123",
		"X-Keep": "1", "Cookie": "k=v", "Host": "models.example:8443", "Content-Length": "2",
	} {
		if v := strings.Join(got[name], "|"); v != want {
			t.Errorf("the replica got %s: %q, want %q", name, v, want)
		}
	}
	for name, want := range map[string]string{
		"Sluice-Version": "a", "Sluice-Secret": "", "X-Request-Id": "abc-123", "X-Ms-Request-Id": "abc-123",
		"X-Hop": "", "Proxy-Authenticate": "", "X-Model": "kept|twice",
	} {
		if v := strings.Join(a.header[name], "|"); v != want {
			t.Errorf("the client got %s: %q, want %q", name, v, want)
		}
	}
	if a.status != http.StatusAccepted || a.body != "<html>" {
		t.Errorf("%+v", a)
	}
	// Ids that cannot stand in a log line are replaced.
	for _, bad := range []string{"", "a b", `"`, strings.Repeat("x", 101), "[x]"} {
		a := h.score("{}", "X-Request-Id", bad)
		id := a.header.Get("X-Request-Id")
		if id == bad || len(id) != 36 || id != got.Get("X-Request-Id") {
			t.Errorf("%q became %q", bad, id)
		}
	}
	// A replica without a content type keeps none.
	h2, _ := one(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header()["Content-Type"] = nil
		_, _ = io.WriteString(w, "<html>")
	})
	if a := h2.score("{}"); len(a.header["Content-Type"]) != 0 {
		t.Errorf("a content type was guessed: %v", a.header)
	}
}

func TestKeys(t *testing.T) {
	h, g := one(t, echo)
	keys := newKey(h)
	for _, x := range []struct {
		name   string
		header []string
		status int
	}{
		{"primary", []string{"Bearer " + keys.Primary}, 200},
		{"secondary", []string{"bearer " + keys.Secondary}, 200},
		{"none", nil, 401},
		{"empty", []string{""}, 401},
		{"no key", []string{"Bearer "}, 401},
		{"wrong", []string{"Bearer " + keys.Primary + "x"}, 401},
		{"prefix", []string{"Bearer " + keys.Primary[:20]}, 401},
		{"bare", []string{keys.Primary}, 401},
		{"basic", []string{"Basic " + keys.Primary}, 401},
		{"the hash", []string{"Bearer " + hashText(keys.Primary)}, 401},
		{"two", []string{"Bearer " + keys.Primary, "Bearer x"}, 401},
	} {
		r := h.request("POST", scoreURL, strings.NewReader("{}"))
		r.Header["Authorization"] = x.header
		a, err := h.try(r)
		if err != nil {
			t.Fatal(err)
		}
		if a.status != x.status {
			t.Errorf("%s: %d, want %d", x.name, a.status, x.status)
		}
		if x.status == 401 && (a.code() != "unauthorized" || !strings.HasPrefix(a.header.Get("Www-Authenticate"), "Bearer")) {
			t.Errorf("%s: %+v", x.name, a)
		}
	}
	if n := g.served.Load(); n != 2 {
		t.Errorf("%d requests at the replica", n)
	}
	// A pin tells nothing to who has no key.
	r := h.request("POST", scoreURL, nil, "Sluice-Version", "nope")
	r.Header.Del("Authorization")
	if a, err := h.try(r); err != nil || a.status != 401 {
		t.Errorf("pin without a key: %+v, %v", a, err)
	}
	// A regenerated key replaces the old one.
	next, err := keys.Regenerate("primary")
	if err != nil {
		t.Fatal(err)
	}
	if err := h.keys.PutKeys(t.Context(), fraud, next); err != nil {
		t.Fatal(err)
	}
	h.eventually("the new key opens", func() bool { return h.score("{}", "Authorization", "Bearer "+next.Primary).status == 200 })
	if a := h.score("{}", "Authorization", "Bearer "+keys.Primary); a.status != 401 {
		t.Errorf("the old key: %d", a.status)
	}
	// Open only if asked for.
	h.edit(func(s *rollout.Spec) { s.Auth = &rollout.Auth{Mode: rollout.AuthNone} })
	h.eventually("open", func() bool { return h.score("{}", "Authorization", "").status == 200 })
	if strings.Contains(h.logs.String(), keys.Primary) {
		t.Error("a key was logged")
	}
}

func hashText(key string) string {
	x := sha256.Sum256([]byte(key))
	return hex.EncodeToString(x[:])
}

// A mode that is not built must never be an open door, whatever the object was before.
func TestTokenModeIsNeverOpen(t *testing.T) {
	for _, mode := range []rollout.AuthMode{rollout.AuthToken, "other"} {
		r := &route{auth: mode, hashes: []access.Hash{access.HashOf("k")}}
		if r.admits(http.Header{"Authorization": {"Bearer k"}}) || r.admits(http.Header{}) {
			t.Errorf("mode %q admits", mode)
		}
	}
	b := newBuilder(newDiscard(), nil, telemetry.NewRecorder(), nil)
	open := &rollout.Endpoint{Metadata: rollout.Metadata{Namespace: "models", Name: "fraud", ResourceVersion: "1"}}
	open.Spec = rollout.Spec{Auth: &rollout.Auth{Mode: rollout.AuthNone}, Versions: []rollout.Version{version("a", rollout.Control, 0)}}
	b.scheduler = newScheduler()
	was := b.route(fraud, nil, change{endpoint: open})
	if was == nil || was.auth != rollout.AuthNone {
		t.Fatalf("got %+v", was)
	}
	token := open.Clone()
	token.Metadata.ResourceVersion = "2"
	token.Spec.Auth.Mode = rollout.AuthToken
	if now := b.route(fraud, was, change{endpoint: token}); now == nil || now.auth != rollout.AuthToken || now.admits(http.Header{}) {
		t.Errorf("token mode after an open one: %+v", now)
	}
	broken := open.Clone()
	broken.Metadata.ResourceVersion = "3"
	broken.Spec.Versions[0].TrafficPercentile = -1
	keyed := open.Clone()
	keyed.Spec.Auth = nil
	was = b.route(fraud, was, change{endpoint: keyed})
	if now := b.route(fraud, was, change{endpoint: broken}); now == nil || now.auth != rollout.AuthKey {
		t.Errorf("an invalid object opened the endpoint: %+v", now)
	}
}

func TestPinning(t *testing.T) {
	a, b := version("a", rollout.Control, 0), version("b", rollout.Treatment, 0)
	h := start(t, nil, a, b)
	h.edit(func(s *rollout.Spec) { s.Strategy = &rollout.Strategy{} })
	ga, gb := newGate(t, 1, says("a")), newGate(t, 1, says("b"))
	h.fleets.set("a", ga.addr())
	h.fleets.set("b", gb.addr())
	h.serving(map[string]int{"a": 1, "b": 1})
	for range 20 {
		if x := h.score("{}"); x.body != "a" || x.header.Get("Sluice-Version") != "a" {
			t.Fatalf("%+v", x)
		}
	}
	for _, name := range []string{"Sluice-Version", "azureml-model-deployment"} {
		if x := h.score("{}", name, "b"); x.body != "b" || x.header.Get("Sluice-Version") != "b" {
			t.Errorf("%s: %+v", name, x)
		}
		if x := h.score("{}", name, "nope"); x.status != 404 || x.code() != "unknown_version" {
			t.Errorf("%s: %+v", name, x)
		}
	}
	if x := h.score("{}", "Sluice-Version", "a", "azureml-model-deployment", "b"); x.status != 400 {
		t.Errorf("two pins: %+v", x)
	}
	if x := h.score("{}", "Sluice-Version", "b", "azureml-model-deployment", "b"); x.status != 200 {
		t.Errorf("the same pin twice: %+v", x)
	}
	ev := h.evidence("b")
	if n := ev.Requests(verdict.Treatment) + ev.Requests(verdict.Control); n != 0 {
		t.Errorf("%d requests are evidence, though the treatment has no share and the rest was pinned", n)
	}
}

// evidence as reported over the admin port.
func (h *harness) evidence(treatment string) verdict.Evidence {
	h.t.Helper()
	report, err := telemetry.NewHTTPReporter(h.admin).Report(context.Background())
	if err != nil {
		h.t.Fatal(err)
	}
	for _, x := range report.Evidence {
		if x.Treatment == treatment {
			ev, err := verdict.Restore(x.Saved)
			if err != nil {
				h.t.Fatal(err)
			}
			return ev
		}
	}
	h.t.Fatalf("no evidence of %s", treatment)
	return verdict.Evidence{}
}

// What each way to fail is to the client, and to the books.
func TestFailures(t *testing.T) {
	read := func(br *bufio.Reader) *http.Request {
		r, err := http.ReadRequest(br)
		if err != nil {
			return nil
		}
		_, _ = io.Copy(io.Discard, r.Body)
		return r
	}
	reply := func(c net.Conn, text string) { _, _ = io.WriteString(c, strings.ReplaceAll(text, "\n", "\r\n")) }
	for _, x := range []struct {
		name    string
		serve   func(c net.Conn, br *bufio.Reader)
		timeout int
		status  int // 0: the client's connection is cut
		code    string
		bad     int64
		failed  int64
	}{
		{name: "script error from the gate", serve: func(c net.Conn, br *bufio.Reader) {
			read(br)
			reply(c, "HTTP/1.1 502 Bad Gateway\nSluice-Reason: script_error\nContent-Length: 33\n\n{\"error\":{\"code\":\"script_error\"}}")
		}, status: 502, code: "script_error", bad: 1, failed: 1},
		{name: "the model's own 500", serve: func(c net.Conn, br *bufio.Reader) {
			read(br)
			reply(c, "HTTP/1.1 500 Internal Server Error\nContent-Length: 21\n\n{\"error\":{\"code\":\"x\"}}"[:len("HTTP/1.1 500 Internal Server Error\nContent-Length: 21\n\n")+21])
		}, status: 502, code: "", bad: 1, failed: 1},
		{name: "the model's own 422", serve: func(c net.Conn, br *bufio.Reader) {
			read(br)
			reply(c, "HTTP/1.1 422 Unprocessable Entity\nContent-Length: 0\n\n")
		}, status: 422, failed: 1},
		{name: "the model's own 503", serve: func(c net.Conn, br *bufio.Reader) {
			read(br)
			reply(c, "HTTP/1.1 503 Service Unavailable\nContent-Length: 0\n\n")
		}, status: 503, bad: 1, failed: 1},
		{name: "timeout said by the gate", serve: func(c net.Conn, br *bufio.Reader) {
			read(br)
			reply(c, "HTTP/1.1 504 Gateway Timeout\nSluice-Reason: scoring_timeout\nContent-Length: 36\n\n{\"error\":{\"code\":\"scoring_timeout\"}}")
		}, status: 504, code: "scoring_timeout", bad: 1, failed: 1},
		{name: "no answer in time", timeout: 50, serve: func(c net.Conn, br *bufio.Reader) {
			read(br)
			_, _ = br.ReadByte() // until the router closes
		}, status: 504, code: "scoring_timeout", bad: 1, failed: 1},
		{name: "lost after the request", serve: func(c net.Conn, br *bufio.Reader) {
			read(br)
			slam(c)
		}, status: 502, code: "replica_failed", bad: 1, failed: 1},
		{name: "lost in the head of the answer", serve: func(c net.Conn, br *bufio.Reader) {
			read(br)
			reply(c, "HTTP/1.1 200 OK\nContent-")
		}, status: 502, code: "replica_failed", bad: 1, failed: 1},
		{name: "lost in a short body", serve: func(c net.Conn, br *bufio.Reader) {
			read(br)
			reply(c, "HTTP/1.1 200 OK\nContent-Length: 100\n\nhalf")
		}, status: 502, code: "replica_failed", bad: 1, failed: 1},
		{name: "lost in a long body", serve: func(c net.Conn, br *bufio.Reader) {
			read(br)
			reply(c, "HTTP/1.1 200 OK\nContent-Length: 1000000\n\nhalf")
		}, status: 0, bad: 1, failed: 1},
		{name: "lost in chunks", serve: func(c net.Conn, br *bufio.Reader) {
			read(br)
			reply(c, "HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\n4\nhalf\n")
		}, status: 0, bad: 1, failed: 1},
		{name: "stuck in chunks", timeout: 50, serve: func(c net.Conn, br *bufio.Reader) {
			read(br)
			reply(c, "HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\n4\nhalf\n")
			_, _ = br.ReadByte()
		}, status: 0, bad: 1, failed: 1},
		{name: "no HTTP", serve: func(c net.Conn, br *bufio.Reader) {
			read(br)
			reply(c, "hello\n\n")
		}, status: 502, code: "replica_failed", bad: 1, failed: 1},
		{name: "an endless head", serve: func(c net.Conn, br *bufio.Reader) {
			read(br)
			reply(c, "HTTP/1.1 200 OK\n")
			for range 20_000 {
				if _, err := io.WriteString(c, "X-Filler: 0123456789012345678901234567890123456789\r\n"); err != nil {
					return
				}
			}
		}, status: 502, code: "replica_failed", bad: 1, failed: 1},
		{name: "two lengths", serve: func(c net.Conn, br *bufio.Reader) {
			read(br)
			reply(c, "HTTP/1.1 200 OK\nContent-Length: 2\nContent-Length: 3\n\nabc")
		}, status: 502, code: "replica_failed", bad: 1, failed: 1},
		{name: "protocols switched", serve: func(c net.Conn, br *bufio.Reader) {
			read(br)
			reply(c, "HTTP/1.1 101 Switching Protocols\nUpgrade: x\n\n")
		}, status: 502, code: "replica_failed", bad: 1, failed: 1},
		{name: "hints before the answer", serve: func(c net.Conn, br *bufio.Reader) {
			read(br)
			reply(c, "HTTP/1.1 103 Early Hints\nLink: x\n\nHTTP/1.1 200 OK\nContent-Length: 2\n\nok")
		}, status: 200},
		{name: "an answer that ends with the connection", serve: func(c net.Conn, br *bufio.Reader) {
			read(br)
			reply(c, "HTTP/1.0 200 OK\n\nok")
		}, status: 200},
	} {
		t.Run(x.name, func(t *testing.T) {
			a, b := version("a", rollout.Control, 0), version("b", rollout.Treatment, 50_000)
			a.ScoringTimeoutMs, b.ScoringTimeoutMs = x.timeout, x.timeout
			h := start(t, nil, a, b)
			h.edit(func(s *rollout.Spec) { s.Strategy = &rollout.Strategy{} })
			addr := rawReplica(t, x.serve)
			h.fleets.set("a", addr)
			h.fleets.set("b", addr)
			h.serving(map[string]int{"a": 1, "b": 1})
			got, err := h.try(h.request("POST", scoreURL, strings.NewReader("{}")))
			switch {
			case x.status == 0:
				if err == nil {
					t.Errorf("got %+v, want a cut", got)
				} else if strings.Contains(got.body, "error") {
					t.Errorf("something was appended: %q", got.body)
				}
			case err != nil:
				t.Fatal(err)
			case got.status != x.status || x.code != "" && got.code() != x.code:
				t.Errorf("got %d %s, want %d %s", got.status, got.body, x.status, x.code)
			}
			h.eventually("it is counted", func() bool { return h.stats("a").Requests+h.stats("b").Requests == 1 })
			va, vb := h.stats("a"), h.stats("b")
			if n := va.Bad + vb.Bad; n != x.bad {
				t.Errorf("%d bad events, want %d", n, x.bad)
			}
			if n := va.Failed + vb.Failed; n != x.failed {
				t.Errorf("%d failed, want %d", n, x.failed)
			}
			ev := h.evidence("b")
			if n := ev.Bad(verdict.Treatment) + ev.Bad(verdict.Control); n != x.bad {
				t.Errorf("%d bad events in evidence, want %d", n, x.bad)
			}
			if n := ev.Requests(verdict.Treatment) + ev.Requests(verdict.Control); n != 1 {
				t.Errorf("%d requests in evidence, want 1", n)
			}
			if va.InFlight+vb.InFlight != 0 {
				t.Error("a slot was not given back")
			}
		})
	}
}

func newOne(t *testing.T, serve func(n int, c net.Conn, br *bufio.Reader), edit ...func(*rollout.Version)) (*harness, *atomic.Int64) {
	t.Helper()
	v := version("a", rollout.Control, 0)
	for _, e := range edit {
		e(&v)
	}
	h := start(t, nil, v)
	var conns atomic.Int64
	h.fleets.set("a", rawReplica(t, func(c net.Conn, br *bufio.Reader) { serve(int(conns.Add(1)), c, br) }))
	h.serving(map[string]int{"a": 1})
	return h, &conns
}

const okReply = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

// A request that the model may have run is never sent again; not an idempotent one
// either: nothing makes a model's run idempotent.
func TestNeverSentAgain(t *testing.T) {
	for _, x := range []struct{ method, body, header, value string }{
		{"POST", "{}", "", ""}, {"GET", "", "", ""}, {"POST", "{}", "Idempotency-Key", "k"}, {"PUT", "x", "", ""},
	} {
		t.Run(x.method+x.header, func(t *testing.T) {
			var runs atomic.Int64
			h, _ := newOne(t, func(_ int, c net.Conn, br *bufio.Reader) {
				for {
					r, err := http.ReadRequest(br)
					if err != nil {
						return
					}
					_, _ = io.Copy(io.Discard, r.Body)
					// The first on each connection is answered, the next finds a connection in use before.
					if n := runs.Add(1); n == 2 {
						slam(c)
						return
					}
					_, _ = io.WriteString(c, okReply)
				}
			})
			path := "/api/v1/service/fraud/x"
			send := func() answer {
				if x.header == "" {
					return h.do(x.method, path, x.body)
				}
				return h.do(x.method, path, x.body, x.header, x.value)
			}
			if a := send(); a.status != 200 {
				t.Fatalf("%+v", a)
			}
			if a := send(); a.status != 502 || a.code() != "replica_failed" {
				t.Errorf("%+v", a)
			}
			if n := runs.Load(); n != 2 {
				t.Errorf("it ran %d times", n)
			}
			if a := send(); a.status != 200 {
				t.Errorf("afterwards: %+v", a)
			}
		})
	}
}

// Connections that the replica closed while idle cost nothing: nothing was sent on them.
func TestIdleConnectionsThatClosed(t *testing.T) {
	closed := make(chan struct{})
	h, conns := newOne(t, func(_ int, c net.Conn, br *bufio.Reader) {
		if r, err := http.ReadRequest(br); err == nil {
			_, _ = io.Copy(io.Discard, r.Body)
			_, _ = io.WriteString(c, okReply)
			_ = c.Close()
			closed <- struct{}{}
		}
	})
	for range 50 {
		if a := h.score("{}"); a.status != 200 {
			t.Fatalf("%+v", a)
		}
		<-closed
	}
	if n := conns.Load(); n != 50 {
		t.Errorf("%d connections", n)
	}
}

func TestUnreachableGoesElsewhere(t *testing.T) {
	h := start(t, nil, version("a", rollout.Control, 0))
	ln := listenLoopback(t)
	dead := ln.Addr().String()
	_ = ln.Close()
	g := newGate(t, 1, echo)
	h.fleets.set("a", dead, g.addr())
	h.serving(map[string]int{"a": 2})
	for range 20 {
		if a := h.score("x"); a.status != 200 || a.body != "x" {
			t.Fatalf("%+v", a)
		}
	}
	if v := h.stats("a"); v.Bad != 0 || v.Failed != 0 || v.Requests != 20 {
		t.Errorf("%+v", v)
	}
	// Alone and dead: waited for, then no_ready_replicas.
	h.fleets.set("a")
	h.serving(map[string]int{"a": 0})
	h.fleets.set("a", dead)
	h.serving(map[string]int{"a": 1})
	began := time.Now()
	a := h.score("x")
	if a.status != 503 || a.code() != "no_ready_replicas" || a.header.Get("Retry-After") == "" || time.Since(began) < 450*time.Millisecond {
		t.Errorf("%+v after %v", a, time.Since(began))
	}
	if v := h.stats("a"); v.Bad != 0 || v.Refused != 1 {
		t.Errorf("%+v", v)
	}
}

func (h *harness) fleetSize() int {
	if f := h.router.builder.fleet(fraud, "a"); f != nil {
		return len(f.Replicas)
	}
	return 0
}

func TestRefusals(t *testing.T) {
	var refuse atomic.Bool
	refuse.Store(true)
	var asked, bytes atomic.Int64
	h, _ := one(t, func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		if refuse.Load() {
			w.Header().Set("Sluice-Refused", "busy")
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		n, _ := io.Copy(io.Discard, r.Body)
		bytes.Add(n)
		_, _ = io.WriteString(w, "ok")
	})
	a := h.score("{}")
	if a.status != 503 || a.code() != "queue_timeout" {
		t.Errorf("%+v", a)
	}
	if n := asked.Load(); n < 5 || n > 800 {
		t.Errorf("asked %d times in 500 ms", n)
	}
	if v := h.stats("a"); v.Bad != 0 || v.Refused != 1 || v.Requests != 1 {
		t.Errorf("%+v", v)
	}
	// Large and small ones get through when it admits again, the large one without sending its body in vain.
	for _, size := range []int{1000, keptBody, keptBody + 1, 1 << 20} {
		for _, chunked := range []bool{false, true} {
			refuse.Store(true)
			before := bytes.Load()
			time.AfterFunc(50*time.Millisecond, func() { refuse.Store(false) })
			var body io.Reader = strings.NewReader(strings.Repeat("x", size))
			if chunked {
				body = io.MultiReader(body)
			}
			a, err := h.try(h.request("POST", scoreURL, body))
			if err != nil || a.status != 200 {
				t.Errorf("%d bytes, chunked %v: %+v, %v", size, chunked, a, err)
			}
			if n := bytes.Load() - before; n != int64(size) {
				t.Errorf("%d bytes, chunked %v: the replica read %d", size, chunked, n)
			}
		}
	}
}

func TestSlotsAreNeverExceeded(t *testing.T) {
	v := version("a", rollout.Control, 0)
	v.Concurrency = &rollout.Concurrency{MaxConcurrentRequests: 2, MaxQueueWaitMs: 10_000}
	h := start(t, nil, v)
	var gates []*gate
	var addrs []string
	for range 3 {
		g := newGate(t, 2, func(w http.ResponseWriter, r *http.Request) {
			time.Sleep(time.Duration(1+rand.IntN(3)) * time.Millisecond)
			echo(w, r)
		})
		gates = append(gates, g)
		addrs = append(addrs, g.addr())
	}
	h.fleets.set("a", addrs...)
	h.serving(map[string]int{"a": 3})
	var wg sync.WaitGroup
	for i := range 32 {
		wg.Go(func() {
			for j := range 20 {
				text := fmt.Sprintf("%d-%d", i, j)
				if a := h.score(text); a.status != 200 || a.body != text {
					t.Errorf("%+v", a)
				}
			}
		})
	}
	wg.Wait()
	for i, g := range gates {
		if g.most.Load() > 2 || g.refused.Load() > 0 || g.served.Load() < 100 {
			t.Errorf("gate %d: at most %d in flight, %d refused, %d served", i, g.most.Load(), g.refused.Load(), g.served.Load())
		}
	}
	if s := h.stats("a"); s.ServiceSeconds < 0.001 || s.QueuedSeconds == 0 || s.Requests != 640 {
		t.Errorf("%+v", s)
	}
}

func TestClientGone(t *testing.T) {
	t.Run("in flight", func(t *testing.T) {
		arrived, cancelled := make(chan struct{}), make(chan struct{})
		h, _ := one(t, func(_ http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			close(arrived)
			<-r.Context().Done()
			close(cancelled)
		})
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() {
			_, err := h.try(h.request("POST", scoreURL, strings.NewReader("{}")).WithContext(ctx))
			done <- err
		}()
		<-arrived
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
		select {
		case <-cancelled:
		case <-time.After(5 * time.Second):
			t.Error("the replica was not told")
		}
		h.eventually("the slot is free", func() bool { return h.stats("a").InFlight == 0 })
		if v := h.stats("a"); v.Bad != 0 || v.Requests != 0 {
			t.Errorf("%+v", v)
		}
	})
	t.Run("queued", func(t *testing.T) {
		release := make(chan struct{})
		h, g := one(t, func(w http.ResponseWriter, r *http.Request) { <-release; echo(w, r) }, func(v *rollout.Version) {
			v.Concurrency = &rollout.Concurrency{MaxQueueWaitMs: 60_000}
		})
		first := make(chan answer)
		go func() { a, _ := h.try(h.request("POST", scoreURL, strings.NewReader("1"))); first <- a }()
		h.eventually("one is in flight", func() bool { return h.stats("a").InFlight == 1 })
		ctx, cancel := context.WithCancel(t.Context())
		go func() { _, _ = h.try(h.request("POST", scoreURL, strings.NewReader("2")).WithContext(ctx)) }()
		h.eventually("one waits", func() bool { return h.stats("a").Queued == 1 })
		cancel()
		h.eventually("it left the queue", func() bool { return h.stats("a").Queued == 0 })
		close(release)
		if a := <-first; a.status != 200 {
			t.Errorf("%+v", a)
		}
		if n := g.served.Load(); n != 1 {
			t.Errorf("%d requests at the replica", n)
		}
	})
	t.Run("in the middle of its body", func(t *testing.T) {
		h, g := one(t, echo)
		c, err := net.Dial("tcp", h.addr)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = fmt.Fprintf(c, "POST %s HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nContent-Length: 1000000\r\n\r\nhalf", scoreURL, h.key)
		h.eventually("it has a slot", func() bool { return h.stats("a").InFlight == 1 })
		_ = c.Close()
		h.eventually("the slot is free", func() bool { return h.stats("a").InFlight == 0 })
		h.eventually("the replica is told", func() bool { return g.inFlight.Load() == 0 })
		if v := h.stats("a"); v.Bad != 0 || v.Requests != 0 {
			t.Errorf("%+v", v)
		}
	})
}

func TestBodies(t *testing.T) {
	sum := func(w http.ResponseWriter, r *http.Request) {
		x := sha256.New()
		n, err := io.Copy(x, r.Body)
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		_, _ = fmt.Fprintf(w, "%d %x", n, x.Sum(nil))
	}
	h, _ := one(t, sum)
	data := make([]byte, 3<<20)
	for i := range data {
		data[i] = byte(rand.Uint32())
	}
	for _, size := range []int{0, 1, 4095, 4096, 4097, keptBody - 1, keptBody, keptBody + 1, 200_000, len(data)} {
		for _, chunked := range []bool{false, true} {
			for _, expect := range []bool{false, true} {
				var body io.Reader = bytes.NewReader(data[:size])
				if chunked {
					body = io.MultiReader(body)
				}
				r := h.request("POST", scoreURL, body)
				if expect {
					r.Header.Set("Expect", "100-continue")
				}
				a, err := h.try(r)
				want := fmt.Sprintf("%d %x", size, sha256.Sum256(data[:size]))
				if err != nil || a.status != 200 || a.body != want {
					t.Errorf("%d bytes, chunked %v, expect %v: %+v, %v", size, chunked, expect, a, err)
				}
			}
		}
	}
	// Large answers pass unharmed, too.
	h2, _ := one(t, echo)
	for _, size := range []int{smallAnswer, smallAnswer + 1, len(data)} {
		a, err := h2.try(h2.request("POST", scoreURL, bytes.NewReader(data[:size])))
		if err != nil || a.body != string(data[:size]) {
			t.Errorf("%d bytes back: %d, %v", size, len(a.body), err)
		}
	}
}

// zeros is an endless body.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func TestBodyLimit(t *testing.T) {
	var got atomic.Int64
	h, g := one(t, func(w http.ResponseWriter, r *http.Request) {
		n, _ := io.Copy(io.Discard, r.Body)
		got.Add(n)
		_, _ = io.WriteString(w, "ok")
	})
	// Said beforehand: nothing is read, and no slot taken.
	r := h.request("POST", scoreURL, io.LimitReader(zeros{}, maxBody+1), "Expect", "100-continue")
	r.ContentLength = maxBody + 1
	a, err := h.try(r)
	if err != nil || a.status != 413 || a.code() != "body_too_large" || g.served.Load() != 0 {
		t.Errorf("said: %+v, %v, %d served", a, err, g.served.Load())
	}
	// A client that does not wait to be asked gets to read it, too.
	r = h.request("POST", scoreURL, io.LimitReader(zeros{}, maxBody+1))
	r.ContentLength = maxBody + 1
	a, err = h.try(r)
	if err != nil || a.status != 413 || g.served.Load() != 0 {
		t.Errorf("said without waiting: %+v, %v, %d served", a, err, g.served.Load())
	}
	// Not said: cut off in the middle.
	a, err = h.try(h.request("POST", scoreURL, io.LimitReader(zeros{}, maxBody+1)))
	if err != nil || a.status != 413 || a.code() != "body_too_large" {
		t.Errorf("chunked: %+v, %v", a, err)
	}
	if v := h.stats("a"); v.Bad != 0 {
		t.Errorf("%+v", v)
	}
	h.eventually("the replica noticed", func() bool { return g.inFlight.Load() == 0 })
	got.Store(0)
	a, err = h.try(h.request("POST", scoreURL, io.LimitReader(zeros{}, maxBody)))
	if err != nil || a.status != 200 || got.Load() != maxBody {
		t.Errorf("just fits: %+v, %v, %d bytes", a, err, got.Load())
	}
}

// A client that begs for a 100-continue sends its body only once it has a slot.
func TestContinueOnlyWithASlot(t *testing.T) {
	release := make(chan struct{})
	var once sync.Once
	h, _ := one(t, func(w http.ResponseWriter, r *http.Request) { <-release; echo(w, r) }, func(v *rollout.Version) {
		v.Concurrency = &rollout.Concurrency{MaxQueueWaitMs: 20_000}
	})
	t.Cleanup(func() { once.Do(func() { close(release) }) })
	go func() { _, _ = h.try(h.request("POST", scoreURL, strings.NewReader("1"))) }()
	h.eventually("one is in flight", func() bool { return h.stats("a").InFlight == 1 })
	for i, framing := range []string{"Content-Length: 5", "Content-Length: 100000", "Transfer-Encoding: chunked"} {
		c, err := net.Dial("tcp", h.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = c.Close() }()
		_, _ = fmt.Fprintf(c, "POST %s HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nExpect: 100-continue\r\n%s\r\n\r\n", scoreURL, h.key, framing)
		h.eventually("it waits", func() bool { return h.stats("a").Queued == int64(i+1) })
		_ = c.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
		if n, err := c.Read(make([]byte, 100)); n > 0 || err == nil {
			t.Errorf("%s: asked for the body while it waits", framing)
		}
		// net/http does not see who leaves before the body was read: noticed with the slot.
		_ = c.Close()
	}
	once.Do(func() { close(release) })
	h.eventually("those who left are gone", func() bool { return h.stats("a").Queued == 0 && h.stats("a").InFlight == 0 })
	c, err := net.Dial("tcp", h.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	_, _ = fmt.Fprintf(c, "POST %s HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n", scoreURL, h.key)
	br := bufio.NewReader(c)
	if line, _ := br.ReadString('\n'); line != "HTTP/1.1 100 Continue\r\n" {
		t.Fatalf("got %q", line)
	}
	_, _ = br.ReadString('\n')
	_, _ = io.WriteString(c, "hello")
	resp, err := http.ReadResponse(br, nil)
	if err != nil || resp.StatusCode != 200 {
		t.Fatalf("got %v, %v", resp, err)
	}
	if b, _ := io.ReadAll(resp.Body); string(b) != "hello" {
		t.Errorf("got %q", b)
	}
	// One that gets no slot is not asked at all.
	h.edit(func(s *rollout.Spec) {
		s.Versions[0].Concurrency.MaxQueueWaitMs = 10
		s.Versions = append(s.Versions, version("z", rollout.Untyped, 0))
	})
	h.eventually("the patience is less", func() bool { return h.stats("z").Version == "z" })
	h.fleets.set("a")
	h.serving(map[string]int{"a": 0})
	h.eventually("refused without a 100", func() bool {
		text := h.raw(fmt.Sprintf("POST %s HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n", scoreURL, h.key))
		return strings.HasPrefix(text, "HTTP/1.1 503 ")
	})
}

// An answer that comes before the body's end ends the upload.
func TestEarlyAnswer(t *testing.T) {
	h, conns := newOne(t, func(_ int, c net.Conn, br *bufio.Reader) {
		for {
			r, err := http.ReadRequest(br)
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, "HTTP/1.1 100 Continue\r\n\r\n")
			_, _ = io.CopyN(io.Discard, r.Body, 1000)
			_, _ = io.WriteString(c, "HTTP/1.1 422 Unprocessable Entity\r\nContent-Length: 3\r\n\r\nno!")
			_, _ = br.ReadByte()
		}
	})
	pr, pw := io.Pipe()
	go func() { _, _ = pw.Write(make([]byte, 100_000)) }() // and never more
	defer func() { _ = pw.Close() }()
	r := h.request("POST", scoreURL, pr)
	r.ContentLength = 1 << 20
	a, err := h.try(r)
	if err != nil || a.status != 422 || a.body != "no!" {
		t.Errorf("%+v, %v", a, err)
	}
	h.eventually("the slot is free", func() bool { return h.stats("a").InFlight == 0 })
	if n := conns.Load(); n != 1 {
		t.Errorf("%d connections", n)
	}
}

func TestStreaming(t *testing.T) {
	next := make(chan string)
	h, _ := one(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		w.Header().Set("Trailer", "X-Tokens, Sluice-Hidden")
		w.WriteHeader(200)
		w.(http.Flusher).Flush()
		for s := range next {
			_, _ = io.WriteString(w, s)
			w.(http.Flusher).Flush()
		}
		w.Header().Set("X-Tokens", "3")
		w.Header().Set("Sluice-Hidden", "x")
	})
	resp, err := h.client.Do(h.request("POST", scoreURL, strings.NewReader("{}")))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != 200 || resp.ContentLength != -1 {
		t.Errorf("%v", resp)
	}
	buf := make([]byte, 100)
	for _, s := range []string{"data: one\n\n", "data: two\n\n", "data: three\n\n"} {
		next <- s
		n, err := resp.Body.Read(buf) // each piece arrives before the next one is made
		if err != nil || string(buf[:n]) != s {
			t.Fatalf("got %q, %v", buf[:n], err)
		}
		if h.stats("a").InFlight != 1 {
			t.Error("the slot was given back before the end")
		}
	}
	close(next)
	if n, err := resp.Body.Read(buf); n != 0 || err != io.EOF {
		t.Errorf("got %d, %v", n, err)
	}
	if resp.Trailer.Get("X-Tokens") != "3" || resp.Trailer.Get("Sluice-Hidden") != "" {
		t.Errorf("trailers: %v", resp.Trailer)
	}
	h.eventually("the slot is free", func() bool { return h.stats("a").InFlight == 0 })
}

// A slow reader of a long answer uses up no scoring time, and a slot is free before a
// slow reader of a short one has read it.
func TestSlowReaders(t *testing.T) {
	h, _ := one(t, func(w http.ResponseWriter, r *http.Request) {
		_, _ = w.Write(bytes.Repeat([]byte("x"), 8<<20))
	}, func(v *rollout.Version) { v.ScoringTimeoutMs = 500 })
	resp, err := h.client.Do(h.request("POST", scoreURL, strings.NewReader("{}")))
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(2 * time.Second) // longer than timeout and grace, with socket buffers full
	n, err := io.Copy(io.Discard, resp.Body)
	_ = resp.Body.Close()
	if err != nil || n != 8<<20 {
		t.Errorf("%d bytes, %v", n, err)
	}
	if v := h.stats("a"); v.Bad != 0 {
		t.Errorf("%+v", v)
	}
}

func TestFallbackAndUnready(t *testing.T) {
	h := start(t, nil, version("a", rollout.Control, 0), version("b", rollout.Treatment, 99_000))
	ga, gb := newGate(t, 1, says("a")), newGate(t, 1, says("b"))
	h.fleets.set("a", ga.addr())
	h.serving(map[string]int{"a": 1, "b": 0})
	for range 20 {
		if x := h.score("{}"); x.body != "a" {
			t.Fatalf("%+v", x)
		}
	}
	if n := h.stats("a").AppliedPercent; n != rollout.Full {
		t.Errorf("the control has %v", n)
	}
	h.fleets.set("b", gb.addr())
	h.serving(map[string]int{"a": 1, "b": 1})
	// All of b fail their health checks at once but still answer: kept.
	h.fleets.state("b", cluster.ReplicaUnready)
	h.eventually("the table knows", func() bool { return h.router.builder.fleet(fraud, "b").Count(cluster.ReplicaUnready) == 1 })
	got := 0
	for range 20 {
		if h.score("{}").body == "b" {
			got++
		}
	}
	if got < 15 {
		t.Errorf("b got %d of 20", got)
	}
	text := h.metrics()
	for _, want := range []string{
		`sluice_fallback_requests_total{endpoint="fraud",namespace="models",version="a"}`,
		`sluice_share_percent{endpoint="fraud",namespace="models",version="b"} 99`,
		`sluice_replicas{endpoint="fraud",namespace="models",state="unready",version="b"} 1`,
		`sluice_requests_total{code="200",endpoint="fraud",namespace="models",reason="",version="a"}`,
		`sluice_source_up{source="fleets"} 1`,
		"go_goroutines", "process_cpu_seconds_total",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("metrics lack %s", want)
		}
	}
	// Gone for good: its share is the control's, without one failure.
	gb.CloseClientConnections()
	gb.Close()
	for range 50 {
		if x := h.score("{}"); x.status != 200 {
			t.Fatalf("%+v", x)
		}
	}
}

func (h *harness) metrics() string {
	h.t.Helper()
	resp, err := http.Get(h.admin + "/metrics")
	if err != nil {
		h.t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != 200 {
		h.t.Fatalf("metrics: %v, %v", resp.Status, err)
	}
	return string(b)
}

func status(t testing.TB, url string) int {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	return resp.StatusCode
}

func TestAdminPort(t *testing.T) {
	h, _ := one(t, echo)
	for path, want := range map[string]int{
		"/healthz": 200, "/readyz": 200, "/metrics": 200, telemetry.ReportPath: 200,
		telemetry.QueryPath + "?namespace=models&endpoint=fraud&version=a&window=1m": 200,
		telemetry.QueryPath: 400, "/": 404, scoreURL: 404,
	} {
		if got := status(t, h.admin+path); got != want {
			t.Errorf("%s: %d, want %d", path, got, want)
		}
	}
	h.score("{}")
	source := telemetry.NewHTTPSource(h.admin)
	var source2 telemetry.Source = h.router
	for _, s := range []telemetry.Source{source, source2} {
		h.eventually("the request is counted", func() bool {
			got, err := s.Query(t.Context(), fraud, "a", time.Minute)
			return err == nil && got[telemetry.MetricCount].Value == 1 && got[telemetry.MetricDuration].Value > 0
		})
	}
	for _, r := range []telemetry.Reporter{h.router, telemetry.NewHTTPReporter(h.admin)} {
		report, err := r.Report(t.Context())
		if err != nil || report.Epoch == "" || len(report.Versions) != 1 || report.Versions[0].InFlightSeconds <= 0 || report.Versions[0].AppliedPercent != rollout.Full {
			t.Errorf("%+v, %v", report, err)
		}
	}
	// Nothing of the admin port on the scoring port.
	for _, path := range []string{"/healthz", "/readyz", "/metrics", telemetry.ReportPath} {
		if got := status(t, h.url+path); got != 404 {
			t.Errorf("%s on the scoring port: %d", path, got)
		}
	}
}

// Without a table nothing is ready; with one, sources may all fail and requests go on.
func TestLastGoodTable(t *testing.T) {
	var h *harness
	down := errors.New("store is down")
	h = start(t, func(o *Options) {
		o.StartTimeout = 50 * time.Millisecond
		h0 := o.Reader.(interface{ SetFailure(error) })
		h0.SetFailure(down)
	}, version("a", rollout.Control, 0))
	h.eventually("it answers", func() bool { a, err := h.try(h.request("GET", scoreURL, nil)); return err == nil && a.status == 503 })
	if got := status(t, h.admin+"/readyz"); got != 503 {
		t.Errorf("readyz without a table: %d", got)
	}
	if a := h.score("{}"); a.code() != "no_ready_replicas" || a.header.Get("Retry-After") == "" {
		t.Errorf("%+v", a)
	}
	g := newGate(t, 1, says("a"))
	h.fleets.set("a", g.addr())
	h.store.SetFailure(nil)
	h.serving(map[string]int{"a": 1})
	if got := status(t, h.admin+"/readyz"); got != 200 {
		t.Errorf("readyz: %d", got)
	}
	h.store.SetFailure(down)
	h.keys.SetFailure(down)
	h.fleets.change(func() { h.fleets.failure = down })
	h.eventually("it noticed", func() bool { return !h.router.Sources()[sourceFleets] })
	for range 10 {
		if a := h.score("{}"); a.status != 200 {
			t.Fatalf("%+v", a)
		}
	}
	if got := status(t, h.admin+"/readyz"); got != 200 {
		t.Errorf("readyz with its sources down: %d", got)
	}
	h.store.SetFailure(nil)
	h.keys.SetFailure(nil)
	h.fleets.change(func() { h.fleets.failure = nil })
	h.edit(func(s *rollout.Spec) { s.Versions = append(s.Versions, version("b", rollout.Treatment, 100_000)) })
	gb := newGate(t, 1, says("b"))
	h.fleets.set("b", gb.addr())
	h.eventually("it caught up", func() bool { return h.score("{}").body == "b" })
}

func TestEndpointsComeAndGo(t *testing.T) {
	h, g := one(t, says("a"))
	if err := h.store.Delete(t.Context(), fraud, ""); err != nil {
		t.Fatal(err)
	}
	h.eventually("it is gone", func() bool { return h.score("{}").code() == "unknown_endpoint" })
	h.create(fraud, version("a", rollout.Control, 0))
	h.eventually("it is back", func() bool { return h.score("{}").status == 200 })
	if g.served.Load() == 0 {
		t.Error("nothing served")
	}
}

// Requests go on without one failure while everything about the endpoint changes, and
// edits take effect quickly.
func TestChangesUnderLoad(t *testing.T) {
	a := version("a", rollout.Control, 0)
	a.Concurrency = &rollout.Concurrency{MaxConcurrentRequests: 4, MaxQueueWaitMs: 5000}
	b := version("b", rollout.Treatment, 30_000)
	b.Concurrency = a.Concurrency
	h := start(t, nil, a, b)
	addrs := map[string][]string{}
	for _, name := range []string{"a", "b"} {
		for range 3 {
			g := newGate(t, 4, func(w http.ResponseWriter, r *http.Request) {
				time.Sleep(time.Millisecond)
				w.Header().Set("X-Served-By", name)
				echo(w, r)
			})
			addrs[name] = append(addrs[name], g.addr())
		}
		h.fleets.set(name, addrs[name]...)
	}
	h.serving(map[string]int{"a": 3, "b": 3})
	stop := make(chan struct{})
	var wg sync.WaitGroup
	var sent atomic.Int64
	for i := range 8 {
		wg.Go(func() {
			for j := 0; ; j++ {
				select {
				case <-stop:
					return
				default:
				}
				text := fmt.Sprintf("%d-%d", i, j)
				x, err := h.try(h.request("POST", scoreURL, strings.NewReader(text)))
				if err != nil || x.status != 200 || x.body != text || x.header.Get("X-Served-By") != x.header.Get("Sluice-Version") {
					t.Errorf("request %s: %+v, %v", text, x, err)
					return
				}
				sent.Add(1)
			}
		})
	}
	var effects []time.Duration
	for i := range 40 {
		switch i % 4 {
		case 0:
			share := rollout.Percent(1000 * (1 + i))
			edited := time.Now()
			h.edit(func(s *rollout.Spec) { s.Versions[1].TrafficPercentile = share })
			for h.stats("b").AppliedPercent != share {
				time.Sleep(200 * time.Microsecond)
			}
			effects = append(effects, time.Since(edited))
		case 1:
			h.fleets.set("a", addrs["a"][i%3:]...)
			h.eventually("scaled", func() bool { return h.fleetSize() == 3-i%3 })
		case 2:
			h.fleets.state("b", []cluster.ReplicaState{cluster.ReplicaTerminating, cluster.ReplicaUnready}[i/4%2])
			time.Sleep(10 * time.Millisecond)
			h.fleets.set("b", addrs["b"]...)
		case 3:
			h.edit(func(s *rollout.Spec) { s.Versions = s.Versions[:1] })
			h.eventually("deleted", func() bool { return h.stats("b").Version == "" })
			h.edit(func(s *rollout.Spec) { s.Versions = append(s.Versions, b) })
		}
		time.Sleep(10 * time.Millisecond)
	}
	close(stop)
	wg.Wait()
	slices.Sort(effects)
	t.Logf("%d requests; edits took effect in %v at the median, %v at most", sent.Load(), effects[len(effects)/2], effects[len(effects)-1])
	if most := effects[len(effects)-1]; most > time.Second {
		t.Errorf("an edit took effect after %v", most)
	}
	if sent.Load() < 100 {
		t.Errorf("only %d requests", sent.Load())
	}
}

func TestShutdownLetsRequestsEnd(t *testing.T) {
	arrived, release := make(chan struct{}), make(chan struct{})
	h, _ := one(t, func(w http.ResponseWriter, r *http.Request) {
		close(arrived)
		<-release
		echo(w, r)
	})
	got := make(chan answer)
	go func() {
		a, err := h.try(h.request("POST", scoreURL, strings.NewReader("x")))
		if err != nil {
			t.Error(err)
		}
		got <- a
	}()
	<-arrived
	ended := make(chan error)
	go func() { ended <- h.stop() }()
	h.eventually("no new connections", func() bool {
		c, err := net.Dial("tcp", h.addr)
		if err == nil {
			_ = c.Close()
		}
		return err != nil
	})
	close(release)
	if a := <-got; a.status != 200 || a.body != "x" {
		t.Errorf("%+v", a)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// While it drains a router still serves, and closes each connection after its answer.
func TestDrainServesAndClosesConnections(t *testing.T) {
	h := start(t, func(o *Options) { o.DrainTime = 500 * time.Millisecond }, version("a", rollout.Control, 0))
	g := newGate(t, 1, echo)
	h.fleets.set("a", g.addr())
	h.serving(map[string]int{"a": 1})
	send := func() (*http.Response, error) {
		resp, err := h.client.Do(h.request("POST", scoreURL, strings.NewReader("x")))
		if err == nil {
			_, _ = io.Copy(io.Discard, resp.Body)
			_ = resp.Body.Close()
		}
		return resp, err
	}
	if resp, err := send(); err != nil || resp.StatusCode != 200 || resp.Close {
		t.Fatalf("before: %+v, %v; want a connection that stays", resp, err)
	}
	began, ended := time.Now(), make(chan error, 1)
	go func() { ended <- h.stop() }()
	served := 0
	h.eventually("draining", func() bool { return h.router.draining.Load() })
	for time.Since(began) < 300*time.Millisecond {
		resp, err := send()
		if err != nil || resp.StatusCode != 200 || !resp.Close {
			t.Fatalf("while draining: %+v, %v; want an answer that closes its connection", resp, err)
		}
		served++
	}
	if err := <-ended; err != nil || time.Since(began) < 500*time.Millisecond || served == 0 {
		t.Errorf("ended after %s with %v, %d served", time.Since(began), err, served)
	}
}

// A connection that nobody used while the router drained is not closed at once: it may just be about to be used.
func TestDrainWaitsForIdleConnections(t *testing.T) {
	h := start(t, func(o *Options) { o.DrainTime = 500 * time.Millisecond }, version("a", rollout.Control, 0))
	g := newGate(t, 1, echo)
	h.fleets.set("a", g.addr())
	h.serving(map[string]int{"a": 1})
	ask := func() (answer, error) { return h.try(h.request("POST", scoreURL, strings.NewReader("x"))) }
	if a, err := ask(); err != nil || a.status != 200 {
		t.Fatalf("%+v, %v", a, err)
	}
	ended := make(chan error, 1)
	began := time.Now()
	go func() { ended <- h.stop() }()
	time.Sleep(900 * time.Millisecond)
	if h.router.connections.Load() == 0 {
		t.Fatal("no connection is open")
	}
	if a, err := ask(); err != nil || a.status != 200 {
		t.Errorf("late in the drain: %+v, %v", a, err)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if d := time.Since(began); d > 1900*time.Millisecond {
		t.Errorf("ended after %s, with no connection open since about 900 ms", d)
	}
}

func TestShutdownIsBounded(t *testing.T) {
	release := make(chan struct{})
	defer close(release)
	v := version("a", rollout.Control, 0)
	var background atomic.Bool
	h := start(t, func(o *Options) {
		o.ShutdownTimeout = 100 * time.Millisecond
		o.Background = append(o.Background, func(ctx context.Context, r *Router) error {
			if _, err := r.Report(ctx); err != nil {
				t.Error(err)
			}
			<-ctx.Done()
			background.Store(true)
			return nil
		})
	}, v)
	g := newGate(t, 1, func(http.ResponseWriter, *http.Request) { <-release })
	h.fleets.set("a", g.addr())
	h.serving(map[string]int{"a": 1})
	go func() { _, _ = h.try(h.request("POST", scoreURL, strings.NewReader("x"))) }()
	h.eventually("one is in flight", func() bool { return h.stats("a").InFlight == 1 })
	began := time.Now()
	if err := h.stop(); err != nil {
		t.Error(err)
	}
	if d := time.Since(began); d > 3*time.Second {
		t.Errorf("took %v", d)
	}
	if !background.Load() {
		t.Error("the background task did not end")
	}
}

func TestBackgroundErrorEndsTheRouter(t *testing.T) {
	ln, admin := listenLoopback(t), listenLoopback(t)
	h := &harness{t: t}
	_ = h
	broken := errors.New("broken")
	base := start(t, nil)
	err := Run(t.Context(), Options{
		Listener: ln, AdminListener: admin, Reader: base.store, Fleets: base.fleets, KeyHashes: base.keys,
		Background: []func(context.Context, *Router) error{func(context.Context, *Router) error { return broken }},
	})
	if !errors.Is(err, broken) {
		t.Errorf("got %v", err)
	}
	if _, err := New(Options{}); err == nil {
		t.Error("a router without sources")
	}
}

// What is ambiguous is refused, or arrives with one meaning.
func TestMalformedRequests(t *testing.T) {
	var seen []string
	var mu sync.Mutex
	h, _ := one(t, func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		mu.Lock()
		seen = append(seen, r.Method+" "+r.RequestURI+" "+string(b)+" "+strings.Join(r.TransferEncoding, ",")+" "+r.Header.Get("Content-Length"))
		mu.Unlock()
		_, _ = io.WriteString(w, "ok")
	})
	auth := "Host: x\r\nAuthorization: Bearer " + h.key + "\r\n"
	line := "POST " + scoreURL + " HTTP/1.1\r\n"
	for _, x := range []struct {
		name, text string
		want       int // 0: closed without an answer
	}{
		{"two lengths", line + auth + "Content-Length: 2\r\nContent-Length: 3\r\n\r\nabc", 400},
		{"a length with a sign", line + auth + "Content-Length: +2\r\n\r\nab", 400},
		{"a negative length", line + auth + "Content-Length: -2\r\n\r\nab", 400},
		{"a list of lengths", line + auth + "Content-Length: 2, 2\r\n\r\nab", 400},
		{"an unknown coding", line + auth + "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501},
		{"a coding behind a tab", line + auth + "Transfer-Encoding:\tx\r\n\r\n0\r\n\r\n", 501},
		{"two codings", line + auth + "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n", 501},
		{"a space before the colon", line + auth + "Content-Length : 2\r\n\r\nab", 400},
		{"a folded line", line + auth + "X-A: 1\r\n\tX-B: 2\r\nContent-Length : 0\r\n\r\n", 400},
		{"no host", line + "Content-Length: 0\r\n\r\n", 400},
		{"two hosts", line + auth + "Host: y\r\nContent-Length: 0\r\n\r\n", 400},
		{"a control character", line + auth + "X-A: a\x00b\r\nContent-Length: 0\r\n\r\n", 400},
		{"a bare return", line + auth + "X-A: a\rX-B: b\r\nContent-Length: 0\r\n\r\n", 400},
		{"a name that is none", line + auth + "X(A): 1\r\nContent-Length: 0\r\n\r\n", 400},
		{"HTTP/2 in words", "POST " + scoreURL + " HTTP/2.0\r\n" + auth + "\r\n", 505},
		{"HTTP/0.9", "GET " + scoreURL + "\r\n\r\n", 400},
		{"a broken chunk", line + auth + "Transfer-Encoding: chunked\r\n\r\nzz\r\nab\r\n0\r\n\r\n", 400},
		{"a chunk that is too long", line + auth + "Transfer-Encoding: chunked\r\n\r\n1\r\nab\r\n0\r\n\r\n", 400},
		{"a length of 17 digits of chunk", line + auth + "Transfer-Encoding: chunked\r\n\r\n00000000000000001\r\na\r\n0\r\n\r\n", 400},
		{"an unknown expectation", line + auth + "Expect: cake\r\nContent-Length: 0\r\n\r\n", 417},
		{"too much head", line + auth + "X-A: " + strings.Repeat("a", maxHeaderBytes+8<<10) + "\r\n\r\n", 431},
		{"connect", "CONNECT x:443 HTTP/1.1\r\n" + auth + "\r\n", 404},
	} {
		text := h.raw(x.text)
		got := 0
		_, _ = fmt.Sscanf(text, "HTTP/1.1 %d", &got)
		if got != x.want {
			t.Errorf("%s: %q, want %d", x.name, text, x.want)
		}
		if n := strings.Count(text, "HTTP/1.1 "); n > 1 {
			t.Errorf("%s: %d answers: %q", x.name, n, text)
		}
	}
	mu.Lock()
	if len(seen) != 0 {
		t.Errorf("the replica saw %q", seen)
	}
	mu.Unlock()
	// net/http takes these two; they must arrive with one meaning.
	h.raw(line + auth + "Connection: close\r\nContent-Length: 7\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n")
	h.raw(line + auth + "Connection: close\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nab")
	h.raw(line + auth + "Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n2;ext=\"x\"\r\nab\r\n0\r\nX-Trailer: 1\r\n\r\n")
	mu.Lock()
	defer mu.Unlock()
	if len(seen) != 3 {
		t.Errorf("the replica saw %q", seen)
	}
	for _, s := range seen {
		if s != "POST /score ab  2" {
			t.Errorf("the replica saw %q", s)
		}
	}
}

// Slow clients are bounded by headerTimeout and bodyStall; connections by MaxConnections.
func TestConnectionsAreBounded(t *testing.T) {
	h := start(t, func(o *Options) { o.MaxConnections = 2 }, version("a", rollout.Control, 0))
	g := newGate(t, 1, says("a"))
	h.fleets.set("a", g.addr())
	h.serving(map[string]int{"a": 1})
	var held []net.Conn
	for range 2 {
		c, err := net.Dial("tcp", h.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = c.Close() }()
		_, _ = fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: x\r\n\r\n", scoreURL)
		if _, err := bufio.NewReader(c).ReadString('\n'); err != nil {
			t.Fatal(err)
		}
		held = append(held, c)
	}
	third, err := net.Dial("tcp", h.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = third.Close() }()
	_, _ = fmt.Fprintf(third, "GET %s HTTP/1.1\r\nHost: x\r\n\r\n", scoreURL)
	_ = third.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	if _, err := third.Read(make([]byte, 1)); err == nil {
		t.Error("a third connection was served")
	}
	_ = held[0].Close()
	_ = third.SetReadDeadline(time.Now().Add(5 * time.Second))
	if _, err := third.Read(make([]byte, 1)); err != nil {
		t.Errorf("it was not served in its turn: %v", err)
	}
}

// A stop by Sluice is no bad event; a crash is one.
func TestStopsAreNotJudged(t *testing.T) {
	arrived, release := make(chan struct{}, 1), make(chan struct{})
	h, g := one(t, func(http.ResponseWriter, *http.Request) {
		arrived <- struct{}{}
		<-release
		panic(http.ErrAbortHandler)
	})
	defer g.CloseClientConnections()
	got := make(chan answer)
	go func() { a, _ := h.try(h.request("POST", scoreURL, strings.NewReader("x"))); got <- a }()
	<-arrived
	h.fleets.state("a", cluster.ReplicaTerminating)
	h.serving(map[string]int{"a": 0})
	close(release)
	if a := <-got; a.status != 502 || a.code() != "replica_failed" {
		t.Errorf("%+v", a)
	}
	h.eventually("it is counted", func() bool { return h.stats("a").Requests == 1 })
	if v := h.stats("a"); v.Bad != 0 || v.Failed != 1 {
		t.Errorf("%+v", v)
	}
}

func TestPipeliningKeepsOrder(t *testing.T) {
	h, _ := one(t, echo)
	var b strings.Builder
	for i := range 5 {
		end := ""
		if i == 4 {
			end = "Connection: close\r\n"
		}
		fmt.Fprintf(&b, "POST %s HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\n%sContent-Length: 2\r\n\r\n#%d", scoreURL, h.key, end, i)
	}
	text := h.raw(b.String())
	at := -1
	for i := range 5 {
		n := strings.Index(text, fmt.Sprintf("\r\n\r\n#%d", i))
		if n <= at {
			t.Fatalf("answer %d at %d after %d in %q", i, n, at, text)
		}
		at = n
	}
}

// TestRoutingTime: what the router adds is neither its clients' time nor the replicas', nor that in the queue.
func TestRoutingTime(t *testing.T) {
	h, _ := one(t, func(w http.ResponseWriter, r *http.Request) {
		time.Sleep(100 * time.Millisecond)
		if r.Method == http.MethodGet { // an answer that is passed on in parts
			for range 2 {
				fmt.Fprint(w, "part")
				w.(http.Flusher).Flush()
				time.Sleep(50 * time.Millisecond)
			}
			return
		}
		echo(w, r)
	})
	var wg sync.WaitGroup
	for range 3 { // they wait for each other where there are fewer slots
		wg.Go(func() { h.score("{}") })
	}
	wg.Go(func() { h.do("GET", scoreURL, "") })
	wg.Go(func() {
		r, w := io.Pipe()
		go func() {
			for range 3 {
				fmt.Fprint(w, "slow")
				time.Sleep(50 * time.Millisecond)
			}
			w.Close()
		}()
		if _, err := h.try(h.request("POST", scoreURL, r)); err != nil {
			t.Error(err)
		}
	})
	h.do("POST", "/api/v1/service/other/score", "{}") // not routed at all
	wg.Wait()
	h.eventually("all are counted", func() bool {
		report, err := h.router.Report(t.Context())
		return err == nil && report.Router.Routed == 5
	})
	report, err := h.router.Report(t.Context())
	if err != nil || report.Router.RoutingP99Seconds <= 0 || report.Router.RoutingP99Seconds > 0.04 || report.Router.Procs < 1 || report.Router.CPUSeconds <= 0 {
		t.Errorf("%+v, %v", report.Router, err)
	}
}
