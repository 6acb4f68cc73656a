//go:build unix

package runner

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// behind launches a gate before a handler in this process.
func behind(t *testing.T, o Options, h http.HandlerFunc) *runnerUnderTest {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	o.Upstream = s.Listener.Addr().String()
	return launch(t, o).ready()
}

// serverAnswer is what testdata/server.py says.
type serverAnswer struct {
	Path, Cwd, Body string
	Argv            []string
	Env, Headers    map[string]string
	PID             int
}

func TestScriptMode(t *testing.T) {
	t.Parallel()
	dir, err := filepath.Abs("testdata")
	if err != nil {
		t.Fatal(err)
	}
	r := launch(t, Options{EntryScript: "server.py", Mode: ModeScript, Arguments: []string{"--a", "b c"}, ModelDir: "/models", SourceDirectory: "lib",
		Env: append(os.Environ(), "PORT=5001")}).ready()
	var got serverAnswer
	r.get("/anything?x=1").into(t, &got)
	if diff := cmp.Diff([]string{"--a", "b c"}, got.Argv); diff != "" || got.Path != "/anything?x=1" || got.Cwd != dir {
		t.Errorf("%s in %+v", diff, got)
	}
	for name, want := range map[string]string{"AZUREML_MODEL_DIR": "/models", "AML_APP_ROOT": dir, "AZUREML_ENTRY_SCRIPT": "server.py",
		"PYTHONUNBUFFERED": "1", "PYTHONPATH": filepath.Join(dir, "lib")} {
		if got.Env[name] != want {
			t.Errorf("%s is %q, want %q", name, got.Env[name], want)
		}
	}
	if got.Env["PORT"] == "5001" {
		t.Error("the script got the gate's own PORT")
	}
	r.score(`{"a": 1}`).into(t, &got)
	if got.Path != "/score" || got.Body != `{"a": 1}` {
		t.Errorf("got %+v", got)
	}
	r.out.waitFor(t, "server starts\n")
	pid := got.PID
	r.stop()
	if r.err != nil || running(pid) {
		t.Errorf("stopped with %v, server running: %v", r.err, running(pid))
	}
}

func TestCommand(t *testing.T) {
	t.Parallel()
	port := freePort(t)
	r := launch(t, Options{Command: []string{"python3", "server.py", "x"}, Server: Server{Port: port, ScorePath: "/v1/predict", HealthPath: "/ok"}}).ready()
	a := r.score("{}", "x-request-id", "mine", "X-Forwarded-For", "10.0.0.1", "Authorization", "Bearer x", "Connection", "X-Hop", "X-Hop", "1")
	var got serverAnswer
	a.into(t, &got)
	if got.Path != "/v1/predict" {
		t.Errorf("/score became %s", got.Path)
	}
	for name, want := range map[string]string{"X-Request-Id": "mine", "X-Forwarded-For": "10.0.0.1", "Authorization": "Bearer x", "Host": r.addr, "X-Hop": ""} {
		if got.Headers[name] != want {
			t.Errorf("%s is %q, want %q", name, got.Headers[name], want)
		}
	}
	if a.header.Get("Sluice-Refused") != "" || a.header.Get("x-request-id") != "mine" {
		t.Errorf("headers %v", a.header)
	}
	r.get("/score?q=1").into(t, &got)
	if got.Path != "/v1/predict?q=1" || got.Env["PORT"] != strconv.Itoa(port) {
		t.Errorf("got %s, port %s", got.Path, got.Env["PORT"])
	}
	if a := r.get("/ok"); a.status != 200 || a.body != `"well"` {
		t.Errorf("health path: %+v", a)
	}
	if a := r.get("/"); a.body != "Healthy" {
		t.Errorf("health: %+v", a)
	}

	// Its end is the runner's, with its code.
	if a := r.get("/exit"); a.status != 502 || a.code() != "replica_failed" || a.header.Get("Sluice-Reason") != "replica_failed" {
		t.Errorf("got %+v", a)
	}
	<-r.done
	if ExitCode(r.err) != 9 {
		t.Errorf("ended with %v", r.err)
	}
	r.out.waitFor(t, "server exits\n")
}

func TestCommandFailures(t *testing.T) {
	t.Parallel()
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = taken.Close() })
	for name, c := range map[string]struct {
		o    Options
		code int
		want string
	}{
		"ends at once":   {Options{Command: []string{"python3", "server.py", "fail"}}, ExitInit, "before it was ready (exit status 4)"},
		"never listens":  {Options{Command: []string{"python3", "server.py", "never"}, InitTimeout: time.Second}, ExitInit, "not well within 1s"},
		"never well":     {Options{Command: []string{"python3", "server.py"}, Server: Server{HealthPath: "/hang"}, InitTimeout: time.Second, healthPeriod: 100 * time.Millisecond}, ExitInit, "not well within 1s"},
		"no such file":   {Options{Command: []string{"./server-of-nobody"}}, ExitInit, "no such file"},
		"not in PATH":    {Options{Command: []string{"server-of-nobody"}}, ExitInit, "executable file not found"},
		"port taken":     {Options{Command: []string{"python3", "server.py"}, Server: Server{Port: taken.Addr().(*net.TCPAddr).Port}}, ExitInit, "address already in use"},
		"script missing": {Options{Mode: ModeScript, EntryScript: "nobody.py"}, ExitInit, "nobody.py"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := launch(t, c.o)
			<-r.done
			if ExitCode(r.err) != c.code || !strings.Contains(r.err.Error(), c.want) {
				t.Errorf("ended with %v (code %d), want %q (%d)", r.err, ExitCode(r.err), c.want, c.code)
			}
		})
	}
	t.Run("the gate's own port", func(t *testing.T) {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		err = Run(t.Context(), Options{Listener: ln, Command: []string{"x"}, Server: Server{Port: ln.Addr().(*net.TCPAddr).Port}})
		if ExitCode(err) != 2 {
			t.Errorf("got %v", err)
		}
	})
}

func TestFrontSlots(t *testing.T) {
	t.Parallel()
	for _, slots := range []int{1, 4} {
		t.Run(fmt.Sprint(slots), func(t *testing.T) {
			enter, leave := make(chan string, slots), make(chan bool)
			r := behind(t, Options{MaxConcurrentRequests: slots, Server: Server{HealthPath: "/well"}}, func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path == "/well" {
					return
				}
				enter <- r.URL.Path
				<-leave
				_, _ = io.Copy(w, r.Body)
			})
			var held []*wire
			for range slots {
				w := r.wire("POST /any HTTP/1.1\nHost: x\nContent-Length: 3\nExpect: 100-continue\n\n")
				if line := w.line() + w.line(); line != "HTTP/1.1 100 Continue" {
					t.Fatal(line)
				}
				<-enter
				held = append(held, w)
			}
			w := r.wire("POST /score HTTP/1.1\nHost: x\nContent-Length: 3\nExpect: 100-continue\n\n")
			if a := w.response(); a.status != 503 || a.header.Get("Sluice-Refused") != "busy" {
				t.Errorf("got %+v", a)
			}
			if a := r.get("/well"); a.status != 200 {
				t.Errorf("the health path needs a slot: %+v", a)
			}
			if a := r.get("/"); a.status != 200 || a.header.Get("Sluice-In-Flight") != fmt.Sprint(slots) {
				t.Errorf("health: %+v", a)
			}
			close(leave)
			for _, w := range held {
				w.send("abc")
				if a := w.response(); a.body != "abc" {
					t.Errorf("got %+v", a)
				}
			}
		})
	}
}

func TestFrontPassesWhatCame(t *testing.T) {
	t.Parallel()
	r := behind(t, Options{}, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Trailer", "X-Sum")
		w.Header().Add("Set-Cookie", "a=1")
		w.Header().Add("Set-Cookie", "b=2")
		w.WriteHeader(http.StatusTeapot)
		b, _ := io.ReadAll(r.Body)
		_, _ = fmt.Fprintf(w, "%s %s %s %s", r.Method, r.RequestURI, r.Host, b)
		w.Header().Set("X-Sum", "7")
		_ = r.Trailer
	})
	req := r.request("PATCH", "/a%2Fb/../c//d?x=1;y&%zz", strings.NewReader("body"))
	req.Host = "models.example"
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	if want := "PATCH /a%2Fb/../c//d?x=1;y&%zz models.example body"; err != nil || string(b) != want || resp.StatusCode != http.StatusTeapot {
		t.Errorf("%d %q %v, want %q", resp.StatusCode, b, err, want)
	}
	if diff := cmp.Diff([]string{"a=1", "b=2"}, resp.Header["Set-Cookie"]); diff != "" || resp.Trailer.Get("X-Sum") != "7" {
		t.Errorf("%s, trailer %v", diff, resp.Trailer)
	}
}

// An address is used again: a request for another version's replica is refused before anything runs.
func TestStrayRequests(t *testing.T) {
	t.Parallel()
	served := 0
	r := behind(t, Options{Fleet: "models/fraud/v1"}, func(http.ResponseWriter, *http.Request) { served++ })
	for fleet, want := range map[string]int{"models/fraud/v1": 200, "": 200, "models/fraud/v2": 503, "models/other/v1": 503} {
		req := r.request("POST", "/score", strings.NewReader("{}"))
		if fleet != "" {
			req.Header.Set("Sluice-Fleet", fleet)
		}
		resp, err := http.DefaultTransport.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if refused := resp.Header.Get("Sluice-Refused"); resp.StatusCode != want || (refused == "stray") != (want == 503) {
			t.Errorf("for %q: %d, refused %q", fleet, resp.StatusCode, refused)
		}
	}
	if served != 2 {
		t.Errorf("%d requests were served, want 2", served)
	}
}

// Bytes flow both ways as they come, before either side has ended.
func TestFrontStreams(t *testing.T) {
	t.Parallel()
	r := behind(t, Options{}, func(w http.ResponseWriter, r *http.Request) {
		rc := http.NewResponseController(w)
		if err := rc.EnableFullDuplex(); err != nil {
			t.Error(err)
		}
		w.WriteHeader(http.StatusOK)
		_ = rc.Flush()
		in := bufio.NewReader(r.Body)
		for {
			line, err := in.ReadString('\n')
			if err != nil {
				return
			}
			_, _ = io.WriteString(w, "got "+line)
			_ = rc.Flush()
		}
	})
	body, send := io.Pipe()
	resp, err := http.DefaultTransport.RoundTrip(r.request("POST", "/score", body))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	in := bufio.NewReader(resp.Body)
	for i := range 3 {
		if _, err := fmt.Fprintf(send, "line %d\n", i); err != nil {
			t.Fatal(err)
		}
		if line, err := in.ReadString('\n'); err != nil || line != fmt.Sprintf("got line %d\n", i) {
			t.Fatalf("%q, %v", line, err)
		}
	}
	_ = send.Close()
	if rest, err := io.ReadAll(in); err != nil || len(rest) > 0 {
		t.Errorf("%q, %v", rest, err)
	}
}

func TestFrontTunnels(t *testing.T) {
	t.Parallel()
	r := behind(t, Options{ScoringTimeout: 50 * time.Millisecond}, func(w http.ResponseWriter, r *http.Request) {
		conn, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer func() { _ = conn.Close() }()
		_, _ = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
		_, _ = io.Copy(conn, rw)
	})
	w := r.wire("GET /ws HTTP/1.1\nHost: x\nConnection: Upgrade\nUpgrade: echo\n\n")
	if line := w.line(); line != "HTTP/1.1 101 Switching Protocols" {
		t.Fatal(line)
	}
	for w.line() != "" {
	}
	time.Sleep(100 * time.Millisecond) // longer than the scoring timeout, which a tunnel has not
	w.send("hello\n")
	if line := w.line(); line != "hello" {
		t.Error(line)
	}
	if a := r.get("/x"); a.header.Get("Sluice-Refused") != "busy" {
		t.Errorf("a tunnel has no slot: %+v", a)
	}
	_ = w.conn.Close()
	eventually(t, "slot free", func() bool { return r.get("/").header.Get("Sluice-In-Flight") == "0" })
}

func TestFrontTimeout(t *testing.T) {
	t.Parallel()
	var hung, cancelled atomic.Int32
	r := behind(t, Options{ScoringTimeout: 200 * time.Millisecond}, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/score":
			_, _ = io.Copy(io.Discard, r.Body)
			hung.Add(1)
			<-r.Context().Done()
			cancelled.Add(1)
		case "/half":
			w.Header().Set("Content-Length", "100")
			_, _ = io.WriteString(w, "half")
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done()
		case "/upload":
			_, _ = io.Copy(w, r.Body)
		}
	})
	if a := r.score("{}"); a.status != 504 || a.code() != "scoring_timeout" || a.header.Get("Sluice-Reason") != "scoring_timeout" {
		t.Errorf("got %+v", a)
	}
	eventually(t, "server told", func() bool { return cancelled.Load() == hung.Load() && hung.Load() == 1 })
	if a := r.get("/half"); a.status != 200 || a.err == nil || a.body != "half" {
		t.Errorf("an answer cut short must not look whole: %+v", a)
	}
	// The clock starts at the end of the request, however slowly that arrives.
	w := r.wire("POST /upload HTTP/1.1\nHost: x\nContent-Length: 4\n\n")
	for range 4 {
		time.Sleep(100 * time.Millisecond)
		w.send("x")
	}
	if a := w.response(); a.body != "xxxx" {
		t.Errorf("got %+v", a)
	}
}

func TestFrontBodies(t *testing.T) {
	t.Parallel()
	r := behind(t, Options{MaxBodyBytes: 1 << 20, stall: 300 * time.Millisecond}, func(w http.ResponseWriter, r *http.Request) {
		n, _ := io.Copy(io.Discard, r.Body)
		_, _ = fmt.Fprint(w, n)
	})
	body := strings.Repeat("x", 1<<20)
	for _, reader := range []io.Reader{strings.NewReader(body), io.MultiReader(strings.NewReader(body))} {
		if a := r.do(r.request("POST", "/score", reader)); a.body != fmt.Sprint(1<<20) {
			t.Errorf("got %+v", a)
		}
	}
	if a := r.do(r.request("POST", "/score", strings.NewReader(body+"x"))); a.err == nil && a.status != 413 {
		t.Errorf("got %+v", a)
	}
	w := r.wire("POST /score HTTP/1.1\nHost: x\nTransfer-Encoding: chunked\n\n")
	w.send(fmt.Sprintf("%x\n%sx\n", len(body)+1, body))
	if a := w.response(); a.status != 413 || a.code() != "body_too_large" {
		t.Errorf("got %+v", a)
	}
	w = r.wire("POST /score HTTP/1.1\nHost: x\nContent-Length: 10\n\nabc")
	if a := w.response(); a.status != 408 || a.code() != "client_gone" {
		t.Errorf("got %+v", a)
	}
	// A client that goes away frees its slot.
	w = r.wire("POST /score HTTP/1.1\nHost: x\nContent-Length: 10\n\nabc")
	eventually(t, "in flight", func() bool { return r.get("/").header.Get("Sluice-In-Flight") == "1" })
	_ = w.conn.Close()
	eventually(t, "slot free", func() bool { return r.score("{}").status == 200 })
}

func TestFrontSlotIsFreeAtTheEndOfTheAnswer(t *testing.T) {
	t.Parallel()
	r := behind(t, Options{}, func(w http.ResponseWriter, r *http.Request) {
		n, _ := strconv.Atoi(r.URL.Query().Get("n"))
		if r.URL.Query().Get("chunked") == "" {
			w.Header().Set("Content-Length", strconv.Itoa(n))
		}
		_, _ = w.Write(make([]byte, n))
	})
	for _, path := range []string{"/a?n=0", "/a?n=0&chunked=1", "/a?n=10", "/a?n=3000", "/a?n=300000", "/a?n=10&chunked=1", "/a?n=3000&chunked=1", "/a?n=300000&chunked=1"} {
		request := "GET " + path + " HTTP/1.1\nHost: x\n\n"
		a, b := r.wire(request), r.wire("")
		for i := range 30 {
			if got := a.response(); got.status != 200 {
				t.Fatalf("%s, request %d: %+v", path, i, got)
			}
			a, b = b, a
			a.send(request)
		}
		a.response()
	}
}

// A server that stops being well is taken out and comes back; one that is merely busy
// stays in.
func TestFrontHealth(t *testing.T) {
	t.Parallel()
	var ill, deaf atomic.Bool
	busy, free := make(chan bool), make(chan bool)
	r := behind(t, Options{healthPeriod: 30 * time.Millisecond, Server: Server{HealthPath: "/well"}}, func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path == "/work":
			busy <- true
			<-free
		case ill.Load():
			w.WriteHeader(http.StatusInternalServerError)
		case deaf.Load():
			<-r.Context().Done()
		}
	})
	ill.Store(true)
	eventually(t, "unhealthy", func() bool { return r.get("/").status == 503 })
	if a := r.get("/"); a.code() != "probe_failed" || a.header.Get("Sluice-State") != "unhealthy" {
		t.Errorf("got %+v", a)
	}
	if a := r.score("{}"); a.status != 503 || a.header.Get("Sluice-Refused") != "unhealthy" {
		t.Errorf("got %+v", a)
	}
	ill.Store(false)
	r.ready()

	done := make(chan reply, 1)
	go func() { done <- r.get("/work") }()
	<-busy
	deaf.Store(true)
	time.Sleep(300 * time.Millisecond) // ten periods
	if a := r.get("/"); a.status != 200 {
		t.Errorf("busy counts as ill: %+v", a)
	}
	deaf.Store(false)
	free <- true
	if a := <-done; a.status != 200 {
		t.Errorf("got %+v", a)
	}
}

// A gate without a process of its own waits for the server and outlives its restarts.
func TestFrontWaitsForUpstream(t *testing.T) {
	t.Parallel()
	addr := net.JoinHostPort("127.0.0.1", strconv.Itoa(freePort(t)))
	r := launch(t, Options{Upstream: addr, healthPeriod: 30 * time.Millisecond})
	for range 2 {
		eventually(t, "unready", func() bool { return r.get("/").status == 503 })
		ln, err := net.Listen("tcp", addr)
		if err != nil {
			t.Skip("someone took the port:", err)
		}
		s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, r.URL.Path) })}
		go func() { _ = s.Serve(ln) }()
		r.ready()
		if a := r.score("{}"); a.body != "/score" {
			t.Errorf("got %+v", a)
		}
		_ = s.Close()
	}
}

func TestFrontDrain(t *testing.T) {
	t.Parallel()
	in, out := make(chan bool), make(chan bool)
	r := behind(t, Options{MaxConcurrentRequests: 2}, func(w http.ResponseWriter, r *http.Request) {
		in <- true
		<-out
		_ = json.NewEncoder(w).Encode("done")
	})
	done := make(chan reply, 1)
	go func() { done <- r.score("{}") }()
	<-in
	r.cancel()
	eventually(t, "draining", func() bool { return r.get("/").code() == "draining" })
	if a := r.score("{}"); a.header.Get("Sluice-Refused") != "draining" || !a.close {
		t.Errorf("got %+v", a)
	}
	out <- true
	if a := <-done; a.status != 200 || !a.close {
		t.Errorf("got %+v", a)
	}
	<-r.done
	if r.err != nil {
		t.Error(r.err)
	}
}

func freePort(t *testing.T) int {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ln.Close() }()
	return ln.Addr().(*net.TCPAddr).Port
}
