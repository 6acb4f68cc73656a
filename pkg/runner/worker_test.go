//go:build unix

package runner

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestScriptContract(t *testing.T) {
	t.Parallel()
	model := t.TempDir()
	r := launch(t, Options{Arguments: []string{"--threshold", "0.7", "a b", ""}, ModelDir: model,
		Env: append(os.Environ(), "SLUICE_RUNNER_ENTRY_SCRIPT=x", "AML_APP_ROOT=wrong")}).ready()

	t.Run("context", func(t *testing.T) {
		dir, err := filepath.Abs("testdata")
		if err != nil {
			t.Fatal(err)
		}
		var got struct {
			Argv, Path  []string
			Cwd, Module string
			Env         map[string]string
			Main        bool
			PID         int
			Inits       []int
		}
		r.ask("context", nil).into(t, &got)
		want := got
		want.Argv = []string{filepath.Join(dir, "score.py"), "--threshold", "0.7", "a b", ""}
		want.Cwd, want.Module, want.Main, want.Inits = dir, "score", true, []int{got.PID}
		want.Env = map[string]string{"AZUREML_MODEL_DIR": model, "AML_APP_ROOT": dir, "AZUREML_ENTRY_SCRIPT": "score.py"}
		want.Path = append([]string{dir}, got.Path[1:]...)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
	})

	for _, c := range []struct{ name, body, want string }{
		{"a body is text", `nothing "special"`, `{"text": "nothing \"special\""}`},
		{"an empty body is empty text", "", `{"text": ""}`},
		{"UTF-8 is decoded", "é☃", `{"text": "\u00e9\u2603"}`},
		{"other bytes come as bytes", "a\xff\x00", `{"bytes": [97, 255, 0]}`},
		{"str is quoted", `{"do":"return","what":"str"}`, `"a \"text\""`},
		{"None is an empty object", `{"do":"return","what":"none"}`, `{}`},
		{"arrays become lists", `{"do":"return","what":"array"}`, `[1, 2.5]`},
		{"inside too", `{"do":"return","what":"nested"}`, `{"a": [1, 2.5]}`},
		{"escaped", `{"do":"return","what":"unicode"}`, `"\u00e9"`},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := r.score(c.body, "x-request-id", "id-1", "x-ms-client-request-id", "client-1", "TraceId", "trace-1")
			if a.status != 200 || a.body != c.want || a.header.Get("Content-Type") != "application/json" {
				t.Errorf("%d %s %v, want %s", a.status, a.body, a.header, c.want)
			}
			for name, want := range map[string]string{"x-request-id": "id-1", "x-ms-client-request-id": "client-1",
				"x-ms-request-id": "client-1", "TraceId": "trace-1", "x-ms-run-function-failed": "False"} {
				if got := a.header.Get(name); got != want {
					t.Errorf("%s is %q, want %q", name, got, want)
				}
			}
			if ms := a.header.Get("x-ms-run-fn-exec-ms"); !regexp.MustCompile(`^\d+\.\d{3}$`).MatchString(ms) {
				t.Errorf("x-ms-run-fn-exec-ms is %q", ms)
			}
		})
	}

	t.Run("query", func(t *testing.T) {
		a := r.get("/score?a=1&b=%5B1,2%5D&c=x%20y&d=null&e=1&e=z&f=")
		if want := `{"echo": {"a": 1, "b": [1, 2], "c": "x y", "d": null, "e": [1, "z"], "f": ""}}`; a.body != want {
			t.Errorf("got %s, want %s", a.body, want)
		}
	})

	t.Run("headers", func(t *testing.T) {
		req := r.request("POST", "/score", strings.NewReader(`{"do":"headers"}`), "X-One", "1")
		req.Header["X-Two"] = []string{"2", "zwei"}
		req.Host = "models.example"
		var got map[string]string
		r.do(req).into(t, &got)
		for name, want := range map[string]string{"X-One": "1", "X-Two": "2, zwei", "Host": "models.example", "Content-Length": "16"} {
			if got[name] != want {
				t.Errorf("%s is %q, want %q in %v", name, got[name], want, got)
			}
		}
	})

	t.Run("many headers", func(t *testing.T) {
		long := strings.Repeat("x", 3000)
		req := r.request("POST", "/score", strings.NewReader(`{"do":"headers"}`))
		for i := range 20 {
			req.Header.Set(fmt.Sprintf("X-Long-%d", i), long)
		}
		var got map[string]string
		r.do(req).into(t, &got)
		for i := range 20 {
			if got[fmt.Sprintf("X-Long-%d", i)] != long {
				t.Errorf("header %d is %q", i, got[fmt.Sprintf("X-Long-%d", i)])
			}
		}
		if a := r.score("{}", "X-Too-Long", strings.Repeat("x", 100_000)); a.status != 431 {
			t.Errorf("got %+v", a)
		}
	})

	t.Run("own response", func(t *testing.T) {
		headers := map[string]any{"Content-Type": "image/png", "X-Own": "1", "Sluice-Refused": "busy", "Connection": "close", "Content-Length": "77"}
		a := r.ask("respond", map[string]any{"body": "bytes", "status": 418, "headers": headers})
		if a.status != 418 || a.body != "bytes" || a.header.Get("Content-Type") != "image/png" || a.header.Get("X-Own") != "1" {
			t.Errorf("got %+v", a)
		}
		if a.header.Get("Sluice-Refused") != "" || a.header.Get("x-ms-run-function-failed") != "False" {
			t.Errorf("headers %v", a.header)
		}
		a = r.ask("respond", map[string]any{"body": "", "status": 500, "headers": map[string]any{}})
		if a.status != 500 || a.header.Get("x-ms-run-function-failed") != "True" {
			t.Errorf("got %+v", a)
		}
		if a = r.ask("respond", map[string]any{"body": "", "status": 99, "headers": map[string]any{}}); a.status != 502 {
			t.Errorf("status 99 became %+v", a)
		}
	})

	t.Run("paths and methods", func(t *testing.T) {
		r.ready()
		for _, c := range []struct {
			method, path string
			status       int
		}{
			{"GET", "/", 200}, {"HEAD", "/", 200}, {"POST", "/", 404}, {"GET", "/swagger.json", 404}, {"POST", "/score/", 404},
			{"PUT", "/score", 405}, {"DELETE", "/score", 405}, {"OPTIONS", "/score", 200},
		} {
			a := r.do(r.request(c.method, c.path, nil))
			if a.status != c.status || a.status >= 400 && a.code() != "invalid" {
				t.Errorf("%s %s: %d %s, want %d", c.method, c.path, a.status, a.body, c.status)
			}
		}
	})
}

func TestSourceDirectory(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for name, text := range map[string]string{
		"src/main.py": "import helper, shared\ndef init(): pass\ndef run(data): return [helper.NAME, shared.NAME, __name__]\n",
		"src/json.py": "raise ImportError('shadows')\n", "src/helper.py": "NAME = 'in source'\n", "shared.py": "NAME = 'in project'\n",
	} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	r := launch(t, Options{ProjectDir: dir, SourceDirectory: "src", EntryScript: "main.py"}).ready()
	if a := r.score("{}"); a.body != `["in source", "in project", "main"]` {
		t.Errorf("got %s", a.body)
	}
}

// Scripts that take the headers in other places, or not at all, or are decorated.
func TestSignatures(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ script, body, want string }{
		"headers first":   {"def run(request_headers, data): return [data, request_headers['X-A']]", "x", `["x", "1"]`},
		"keyword only":    {"def run(*, data, request_headers): return [data, request_headers['X-A']]", "x", `["x", "1"]`},
		"default":         {"def run(data=None): return data", "x", `"x"`},
		"many":            {"def run(*args, **kwargs): return [args, kwargs]", "x", `[["x"], {}]`},
		"callable object": {"class R:\n def __call__(self, data): return data\nrun = R()", "x", `"x"`},
		"wrapped": {"import functools\ndef deco(f):\n @functools.wraps(f)\n def g(*a, **k): return f(*a, **k)\n return g\n" +
			"@deco\ndef run(data, request_headers): return [data, request_headers['X-A']]", "x", `["x", "1"]`},
		"schema":         {schemaStub + "@input_schema\ndef run(a, b=2): return [a, b]", `{"a": 1, "other": 3}`, `[1, 2]`},
		"schema headers": {schemaStub + "@input_schema\ndef run(a, request_headers): return [a, request_headers['X-A']]", `{"a": 1}`, `[1, "1"]`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := launch(t, Options{ProjectDir: script(t, "def init(): pass\n"+c.script+"\n")}).ready()
			if a := r.score(c.body, "X-A", "1"); a.body != c.want {
				t.Errorf("got %s, want %s", a.body, c.want)
			}
			if strings.HasPrefix(name, "schema") {
				for _, bad := range []string{"[1]", "no JSON \"\x01", `{"b": 1}`} {
					if a := r.score(bad); a.status != 400 || a.code() != "invalid" {
						t.Errorf("%s: %d %s", bad, a.status, a.body)
					}
				}
			}
		})
	}
}

// schemaStub stands in for the inference-schema package.
const schemaStub = `
import sys, types
m = types.ModuleType("inference_schema.schema_util")
m.is_schema_decorated = lambda f: getattr(f, "_decorated", False)
sys.modules["inference_schema.schema_util"] = m
def input_schema(f):
    f._decorated = True
    return f
`

func TestScriptErrors(t *testing.T) {
	t.Parallel()
	r := launch(t, Options{}).ready()
	pid := r.pid()
	for _, do := range []string{"raise", "exit", "set", "unknown"} {
		a := r.ask(do, nil, "x-request-id", "req-"+do)
		if a.status != 502 || a.code() != "script_error" || a.header.Get("Sluice-Reason") != "script_error" ||
			a.header.Get("x-ms-run-function-failed") != "True" || a.header.Get("x-request-id") != "req-"+do {
			t.Errorf("%s: %d %v %s", do, a.status, a.header, a.body)
		}
		if strings.Contains(a.body, "bad") {
			t.Errorf("the exception's text went to the client: %s", a.body)
		}
	}
	if again := r.pid(); again != pid {
		t.Errorf("the worker was replaced: %d, %d", pid, again)
	}
	for _, line := range []string{
		"[req-raise] Traceback (most recent call last):", `[req-raise]     raise ValueError("bad\nthing "`,
		"[req-raise] ValueError: bad\n[req-raise] thing \n", "[req-exit] SystemExit: 5",
		"[req-set] TypeError: run() returned what JSON cannot hold: an object of type set is not JSON serializable",
	} {
		r.out.waitFor(t, line)
	}
	if strings.Contains(r.out.String(), "sluice worker") {
		t.Errorf("tracebacks show the worker's own frames:\n%s", r.out)
	}
}

func TestOutputIsTagged(t *testing.T) {
	t.Parallel()
	r := launch(t, Options{MaxConcurrentRequests: 4}).ready()
	replies := make([]<-chan reply, 4)
	for i := range replies {
		replies[i] = r.async("print", map[string]any{"n": i}, "x-request-id", fmt.Sprintf("r%d", i))
	}
	for i, c := range replies {
		if a := <-c; a.status != 200 {
			t.Fatalf("request %d: %+v", i, a)
		}
	}
	r.ask("print much", nil, "x-request-id", "much")
	r.out.waitFor(t, "[init] init prints\n")
	for i := range replies {
		for _, text := range []string{"to stdout %d", "to stderr %d"} {
			r.out.waitFor(t, fmt.Sprintf("[r%d] "+text+"\n", i, i))
		}
		r.out.waitFor(t, fmt.Sprintf("[r%d] unfinished\n", i))
	}
	r.out.waitFor(t, "[-] from a thread\n")
	r.out.waitFor(t, "\nfrom below\n")
	r.out.waitFor(t, "[much] "+strings.Repeat("x", 40000-2*16384)+"end\n")
	for line := range strings.Lines(r.out.String()) {
		if len(line) > 16384+len("[much] \n") {
			t.Errorf("a line of %d bytes", len(line))
		}
	}
}

func TestRequestIDIsMadeUp(t *testing.T) {
	t.Parallel()
	r := launch(t, Options{}).ready()
	form := regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`)
	seen := map[string]bool{}
	for _, given := range []string{"", "a\"b", `a\b`, "a]b", "a b", strings.Repeat("x", 101)} {
		a := r.score("{}", "x-request-id", given)
		id := a.header.Get("x-request-id")
		if !form.MatchString(id) || seen[id] {
			t.Errorf("%q became %q", given, id)
		}
		seen[id] = true
	}
}

func TestRefusesBeyondSlots(t *testing.T) {
	t.Parallel()
	for _, slots := range []int{1, 4} {
		t.Run(fmt.Sprint(slots), func(t *testing.T) {
			r := launch(t, Options{MaxConcurrentRequests: slots}).ready()
			// Admission comes before the body: a granted request gets its 100, and the
			// slot is taken from then on.
			held := make([]*wire, slots)
			for i := range held {
				held[i] = r.wire("POST /score HTTP/1.1\nHost: x\nContent-Length: 3\nExpect: 100-continue\n\n")
				if line := held[i].line(); line != "HTTP/1.1 100 Continue" {
					t.Fatalf("slot %d: %q", i, line)
				}
				if line := held[i].line(); line != "" {
					t.Fatalf("slot %d: %q", i, line)
				}
			}
			for range 3 {
				w := r.wire("POST /score HTTP/1.1\nHost: x\nContent-Length: 3\nExpect: 100-continue\nx-request-id: mine\n\n")
				a := w.response() // without a 100 first
				if a.status != 503 || a.code() != "busy" || a.header.Get("Sluice-Refused") != "busy" || a.header.Get("x-request-id") != "mine" {
					t.Fatalf("got %+v", a)
				}
			}
			if a := r.score("{}"); a.status != 503 || a.header.Get("Sluice-Refused") != "busy" {
				t.Errorf("got %+v", a)
			}
			h := r.get("/")
			if h.status != 200 || h.header.Get("Sluice-In-Flight") != fmt.Sprint(slots) || h.header.Get("Sluice-Slots") != fmt.Sprint(slots) {
				t.Errorf("health of a busy replica: %+v", h)
			}
			for _, w := range held {
				w.send("abc")
			}
			for _, w := range held {
				if a := w.response(); a.status != 200 || a.body != `{"text": "abc"}` {
					t.Errorf("got %+v", a)
				}
			}
			if a := r.score("{}"); a.status != 200 {
				t.Errorf("a free slot is refused: %+v", a)
			}
		})
	}
}

// run() itself runs in as many requests as there are slots.
func TestSlotsRunAtOnce(t *testing.T) {
	t.Parallel()
	r := launch(t, Options{MaxConcurrentRequests: 4}).ready()
	var waiting []<-chan reply
	for i := range 4 {
		waiting = append(waiting, r.async("wait", map[string]any{"path": r.path(fmt.Sprint(i))}))
	}
	for i := range 4 {
		r.awaitFile(fmt.Sprintf("%d.in", i)) // all four are in run()
	}
	for i := range 4 {
		r.touch(fmt.Sprint(i))
	}
	for _, c := range waiting {
		if a := <-c; a.body != `"waited"` {
			t.Errorf("got %+v", a)
		}
	}
}

// Whoever has read an answer to its end finds the slot free, however long it was.
func TestSlotIsFreeAtTheEndOfTheAnswer(t *testing.T) {
	t.Parallel()
	r := launch(t, Options{}).ready()
	for _, size := range []int{10, 1024, 1025, 2048, 2049, 5000, 65536, 65537, 300_000} {
		body := fmt.Sprintf(`{"do":"big","n":%d}`, size)
		request := fmt.Sprintf("POST /score HTTP/1.1\nHost: x\nContent-Length: %d\n\n", len(body))
		a, b := r.wire(request+body), r.wire("")
		for i := range 30 {
			if got := a.response(); got.status != 200 || len(got.body) != size {
				t.Fatalf("size %d, request %d: %d %v, %d bytes", size, i, got.status, got.header, len(got.body))
			}
			a, b = b, a
			a.send(request + body)
		}
		a.response()
	}
}

func TestLargeBodies(t *testing.T) {
	t.Parallel()
	r := launch(t, Options{MaxBodyBytes: 3 << 20}).ready()
	for _, size := range []int{pieceBytes - 30, pieceBytes - 26, pieceBytes - 25, pieceBytes - 24, pieceBytes, 2 * pieceBytes, 3 << 20} {
		text := strings.Repeat("é", size/2) + strings.Repeat("x", size%2)
		for _, chunked := range []bool{false, true} {
			req := r.request("POST", "/score", strings.NewReader(text), "x-request-id", "a")
			if chunked {
				req = r.request("POST", "/score", io.MultiReader(strings.NewReader(text)))
			}
			var got struct{ Text string }
			r.do(req).into(t, &got)
			if got.Text != text {
				t.Errorf("%d bytes (chunked %v) became %d", size, chunked, len(got.Text))
			}
		}
	}
	raw := bytes.Repeat([]byte{0xff}, 200_000)
	var got struct{ Bytes []int }
	r.score(string(raw)).into(t, &got)
	if len(got.Bytes) != len(raw) {
		t.Errorf("%d bytes became %d", len(raw), len(got.Bytes))
	}

	pid := r.pid()
	tooMuch := strings.Repeat("x", 3<<20+1)
	if a := r.score(tooMuch); a.err == nil && (a.status != 413 || a.code() != "body_too_large") {
		t.Errorf("too long a body: %+v", a)
	}
	// Refused by its length alone, before a slot or a byte of the body.
	w := r.wire(fmt.Sprintf("POST /score HTTP/1.1\nHost: x\nContent-Length: %d\nExpect: 100-continue\n\n", len(tooMuch)))
	if a := w.response(); a.status != 413 || !a.close {
		t.Errorf("got %+v", a)
	}
	w = r.wire("POST /score HTTP/1.1\nHost: x\nTransfer-Encoding: chunked\n\n")
	w.send(fmt.Sprintf("%x\n%s\n", len(tooMuch), tooMuch))
	if a := w.response(); a.status != 413 || a.code() != "body_too_large" {
		t.Errorf("got %+v", a)
	}
	if again := r.pid(); again != pid {
		t.Error("the worker was replaced over a body that was too long")
	}
}

// Clients that fail in the middle cost no worker and no slot.
func TestClientsThatGoAway(t *testing.T) {
	t.Parallel()
	r := launch(t, Options{stall: 300 * time.Millisecond}).ready()
	pid := r.pid()
	part := strings.Repeat("x", 100_000)
	for _, c := range []struct {
		name, request string
		stay          bool
	}{
		{"short body", "POST /score HTTP/1.1\nHost: x\nContent-Length: 10\n\nabc", false},
		{"long body", "POST /score HTTP/1.1\nHost: x\nContent-Length: 500000\n\n" + part, false},
		{"chunked body", "POST /score HTTP/1.1\nHost: x\nTransfer-Encoding: chunked\n\n186a0\n" + part + "\n", false},
		{"stalled short body", "POST /score HTTP/1.1\nHost: x\nContent-Length: 10\n\nabc", true},
		{"stalled long body", "POST /score HTTP/1.1\nHost: x\nContent-Length: 500000\n\n" + part, true},
		{"long answer not read", "POST /score HTTP/1.1\nHost: x\nContent-Length: 27\n\n" + `{"do":"big", "n": 30000000}`, false},
	} {
		w := r.wire(c.request)
		if c.stay {
			if a := w.response(); a.status != 408 || a.code() != "client_gone" {
				t.Errorf("%s: %+v", c.name, a)
			}
		} else {
			if c.name == "long answer not read" {
				w.line()
			}
			_ = w.conn.Close()
		}
		eventually(t, "slot free after "+c.name, func() bool { return r.score("{}").status == 200 })
	}
	if again := r.pid(); again != pid {
		t.Error("the worker was replaced")
	}
}

// The slot of a request whose client has gone stays taken while run() runs.
func TestAbandonedRequestKeepsItsSlot(t *testing.T) {
	t.Parallel()
	r := launch(t, Options{}).ready()
	body := fmt.Sprintf(`{"do":"wait","path":%q}`, r.path("go"))
	w := r.wire(fmt.Sprintf("POST /score HTTP/1.1\nHost: x\nContent-Length: %d\n\n%s", len(body), body))
	r.awaitFile("go.in")
	_ = w.conn.Close()
	for range 20 {
		if a := r.score("{}"); a.header.Get("Sluice-Refused") != "busy" {
			t.Fatalf("got %+v", a)
		}
	}
	r.touch("go")
	eventually(t, "slot free", func() bool { return r.score("{}").status == 200 })
}

func TestWorkerDies(t *testing.T) {
	t.Parallel()
	r := launch(t, Options{MaxConcurrentRequests: 2}).ready()
	for _, how := range []string{"killed", "exits"} {
		pid := r.pid()
		other := r.async("wait", map[string]any{"path": r.path(how)}, "x-request-id", "other")
		r.awaitFile(how + ".in")
		var a reply
		if how == "killed" {
			victim := r.async("hang", map[string]any{"path": r.path("hangs")})
			r.awaitFile("hangs")
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			a = <-victim
		} else {
			a = r.ask("die", nil)
		}
		for _, a := range []reply{a, <-other} {
			if a.status != 502 || a.code() != "replica_failed" || a.header.Get("Sluice-Reason") != "replica_failed" {
				t.Errorf("%s: %+v", how, a)
			}
		}
		r.ready()
		if again := r.pid(); again == pid {
			t.Errorf("%s: still pid %d", how, pid)
		}
	}
	r.out.waitFor(t, "signal: killed")
	r.out.waitFor(t, "exit status 7")
}

// Death with nothing in flight: nobody notices but the health check.
func TestIdleWorkerDies(t *testing.T) {
	t.Parallel()
	gate := filepath.Join(t.TempDir(), "gate")
	if err := os.WriteFile(gate, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	r := launch(t, Options{Env: append(os.Environ(), "TEST_INIT_WAITS_FOR="+gate)}).ready()
	pid := r.pid()
	if err := os.Remove(gate); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "unready", func() bool { return r.get("/").status == 503 })
	if a := r.get("/"); a.code() != "replicas_starting" || a.header.Get("Sluice-State") != "starting" {
		t.Errorf("health: %+v", a)
	}
	if a := r.score("{}"); a.status != 503 || a.header.Get("Sluice-Refused") != "starting" || a.code() != "replicas_starting" {
		t.Errorf("score: %+v", a)
	}
	if err := os.WriteFile(gate, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	r.ready()
}

// A worker that dies after each start is not started again at full speed.
func TestRestartsPause(t *testing.T) {
	t.Parallel()
	r := launch(t, Options{backoff: 100 * time.Millisecond, maxBackoff: 2 * time.Second})
	began := time.Now()
	for range 4 {
		if a := r.ready().ask("die", nil); a.status != 502 {
			t.Errorf("got %+v", a)
		}
	}
	r.ready()
	if took, least := time.Since(began), (100+200+400)*time.Millisecond; took < least {
		t.Errorf("five starts within %v, want pauses of at least %v", took, least)
	}
	begin := time.Now()
	r.stop()
	if r.err != nil || time.Since(begin) > 10*time.Second {
		t.Errorf("stopped with %v after %v", r.err, time.Since(begin))
	}
}

func TestScoringTimeout(t *testing.T) {
	t.Parallel()
	r := launch(t, Options{MaxConcurrentRequests: 2, ScoringTimeout: 400 * time.Millisecond}).ready()
	pid := r.pid()
	slow := r.async("hang", map[string]any{"path": r.path("in")}, "x-request-id", "slow")
	r.awaitFile("in")
	a := <-slow
	if a.status != 504 || a.code() != "scoring_timeout" || a.header.Get("Sluice-Reason") != "scoring_timeout" {
		t.Errorf("got %+v", a)
	}
	eventually(t, "the old worker is gone", func() bool { return !running(pid) })
	r.ready()
	if again := r.pid(); again == pid {
		t.Error("the worker was not replaced")
	}
	r.out.waitFor(t, "request slow exceeded the scoring timeout")
	r.out.waitFor(t, "score.py\", line") // the stack it hung in
}

func TestInitFailures(t *testing.T) {
	t.Parallel()
	const ok = "def init(): pass\ndef run(data): pass\n"
	for name, c := range map[string]struct {
		script string
		o      Options
		want   string // in the error
		log    string // in the output
	}{
		"raises":       {script: "def init():\n  raise RuntimeError('no model')\ndef run(data): pass", want: "RuntimeError: no model", log: "[init]   File \"DIR/score.py\", line 2, in init"},
		"import error": {script: "import does_not_exist\n" + ok, want: "No module named 'does_not_exist'", log: "[init] ModuleNotFoundError"},
		"syntax error": {script: "def init(:\n", want: "SyntaxError", log: "[init]     def init(:"},
		"no run":       {script: "def init(): pass", want: "has no function run()", log: "[init] AttributeError"},
		"no init":      {script: "def run(data): pass", want: "has no function init()", log: "[init] AttributeError"},
		"exits":        {script: "import sys\nsys.exit(0)", want: "SystemExit: 0", log: "[init] SystemExit"},
		"dies":         {script: "import os\ndef init(): os._exit(7)\ndef run(data): pass", want: "exit status 7"},
		"coroutine":    {script: "def init(): pass\nasync def run(data): pass", want: "coroutine"},
		"no parameter": {script: "def init(): pass\ndef run(): pass", want: "needs to accept an argument"},
		"only headers": {script: "def init(): pass\ndef run(request_headers): pass", want: "needs to accept an argument"},
		"rawhttp": {script: "import sys, types\nm = types.ModuleType('azureml.contrib.services.aml_request')\nm._rawHttpRequested = True\n" +
			"sys.modules[m.__name__] = m\n" + ok, want: "@rawhttp"},
		"hangs":         {script: "import time\ndef init(): time.sleep(1000)\ndef run(data): pass", o: Options{InitTimeout: 12 * time.Second}, want: "did not return within 12s", log: "score.py\", line 2"},
		"no script":     {script: ok, o: Options{EntryScript: "other.py"}, want: "other.py: no such file"},
		"no Python":     {script: ok, o: Options{Python: "python-of-nobody"}, want: "python-of-nobody"},
		"bad Python":    {script: ok, o: Options{Python: "/bin/false"}, want: "ended before init() returned"},
		"not a project": {script: ok, o: Options{ProjectDir: "/does/not/exist"}, want: "no such file"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := script(t, c.script)
			if c.o.ProjectDir == "" {
				c.o.ProjectDir = dir
			}
			model := t.TempDir()
			if err := os.WriteFile(filepath.Join(model, "model.bin"), nil, 0o600); err != nil {
				t.Fatal(err)
			}
			c.o.ModelDir = model
			r := launch(t, c.o)
			<-r.done
			if ExitCode(r.err) != ExitInit || !strings.Contains(r.err.Error(), c.want) {
				t.Errorf("error %v with code %d, want %q with 3", r.err, ExitCode(r.err), c.want)
			}
			if log := strings.ReplaceAll(c.log, "DIR", dir); !strings.Contains(r.out.String(), log) {
				t.Errorf("log lacks %q:\n%s", log, r.out)
			}
			if strings.HasPrefix(c.log, "[init]") && !strings.Contains(r.out.String(), "[init]   model.bin\n") {
				t.Errorf("log does not list the model directory:\n%s", r.out)
			}
		})
	}
}

func TestInitFailsOnRestart(t *testing.T) {
	t.Parallel()
	dir := script(t, "import os\ndef init():\n  if os.path.exists('once'): raise RuntimeError('not again')\n  open('once', 'w').close()\n"+
		"def run(data): os._exit(1)\n")
	r := launch(t, Options{ProjectDir: dir}).ready()
	if a := r.score("{}"); a.status != 502 {
		t.Errorf("got %+v", a)
	}
	<-r.done
	if ExitCode(r.err) != ExitInit || !strings.Contains(r.err.Error(), "not again") {
		t.Errorf("got %v", r.err)
	}
}

func TestStartingThenStopped(t *testing.T) {
	t.Parallel()
	r := launch(t, Options{Env: append(os.Environ(), "TEST_INIT_WAITS_FOR=/does/not/exist"), DrainLinger: time.Minute})
	r.out.waitFor(t, "init prints")
	if a := r.get("/"); a.status != 503 || a.code() != "replicas_starting" {
		t.Errorf("got %+v", a)
	}
	began := time.Now()
	r.stop()
	if r.err != nil || time.Since(began) > 10*time.Second {
		t.Errorf("got %v after %v", r.err, time.Since(began))
	}
}

func TestDrain(t *testing.T) {
	t.Parallel()
	r := launch(t, Options{MaxConcurrentRequests: 2, DrainLinger: 50 * time.Millisecond}).ready()
	pid := r.pid()
	kept := r.wire("") // an idle connection from before
	waiting := r.async("wait", map[string]any{"path": r.path("go")})
	r.awaitFile("go.in")
	r.cancel()
	eventually(t, "draining", func() bool { return r.get("/").code() == "draining" })
	if a := r.get("/"); !a.close || a.header.Get("Sluice-State") != "draining" {
		t.Errorf("health %+v", a)
	}
	kept.send("POST /score HTTP/1.1\nHost: x\nContent-Length: 2\n\n{}")
	for _, a := range []reply{kept.response(), r.score("{}")} {
		if a.status != 503 || a.header.Get("Sluice-Refused") != "draining" || a.code() != "draining" || !a.close {
			t.Errorf("got %+v", a)
		}
	}
	select {
	case <-r.done:
		t.Fatal("ended with a request in flight")
	default:
	}
	r.touch("go")
	if a := <-waiting; a.body != `"waited"` || !a.close {
		t.Errorf("got %+v", a)
	}
	<-r.done
	if r.err != nil {
		t.Errorf("ended with %v", r.err)
	}
	if running(pid) {
		t.Error("the worker is still there")
	}
	if a := r.get("/"); a.err == nil {
		t.Errorf("still answers: %+v", a)
	}
}

func TestDrainIsBounded(t *testing.T) {
	t.Parallel()
	r := launch(t, Options{DrainTimeout: 300 * time.Millisecond}).ready()
	pid := r.pid()
	waiting := r.async("hang", map[string]any{"path": r.path("in")})
	r.awaitFile("in")
	began := time.Now()
	r.stop()
	if took := time.Since(began); r.err != nil || took < 300*time.Millisecond || took > 5*time.Second {
		t.Errorf("ended with %v after %v", r.err, took)
	}
	if a := <-waiting; a.status == 200 {
		t.Errorf("got %+v", a)
	}
	if running(pid) {
		t.Error("the worker is still there")
	}
}

// A script's exit handlers run when it is drained.
func TestExitHandlersRun(t *testing.T) {
	t.Parallel()
	for _, slots := range []int{1, 3} {
		dir := script(t, "import atexit\natexit.register(lambda: print('bye', flush=True))\ndef init(): pass\ndef run(data): pass\n")
		r := launch(t, Options{ProjectDir: dir, MaxConcurrentRequests: slots}).ready()
		r.stop()
		if !strings.Contains(r.out.String(), "bye\n") {
			t.Errorf("%d slots: no exit handler in\n%s", slots, r.out)
		}
	}
}

func TestLifeline(t *testing.T) {
	t.Parallel()
	ours, theirs := io.Pipe()
	r := launch(t, Options{Lifeline: ours, DrainLinger: time.Minute}).ready()
	pid := r.pid()
	_ = r.async("hang", map[string]any{"path": r.path("in")})
	r.awaitFile("in")
	_ = theirs.Close()
	<-r.done
	if ExitCode(r.err) != 1 {
		t.Errorf("got %v", r.err)
	}
	if running(pid) {
		t.Error("the worker is still there")
	}
}

// Not parallel: it counts what the whole process has.
func TestLeavesNothingInTheProcess(t *testing.T) {
	descriptors := func() int {
		entries, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			return 0
		}
		return len(entries)
	}
	cycle := func() {
		ours, theirs := io.Pipe()
		r := launch(t, Options{MaxConcurrentRequests: 3, Lifeline: ours}).ready()
		for range 3 {
			r.ask("die", nil)
			r.ready()
		}
		r.stop()
		_ = theirs.Close()
		r = launch(t, Options{Command: []string{"python3", "server.py"}, Server: Server{HealthPath: "/ok"}}).ready()
		r.score("{}")
		r.stop()
	}
	cycle() // what is there once and for all: the poller, the log's buffers
	goroutines, files := runtime.NumGoroutine(), descriptors()
	cycle()
	eventually(t, "goroutines ended", func() bool { return runtime.NumGoroutine() <= goroutines })
	eventually(t, "files closed", func() bool { return descriptors() <= files })
}

func TestOptionsRefused(t *testing.T) {
	t.Parallel()
	for field, o := range map[string]Options{
		"scoring":                           {},
		"scoring.mode":                      {EntryScript: "a.py", Mode: "both"},
		"concurrency.maxConcurrentRequests": {EntryScript: "a.py", MaxConcurrentRequests: MaxWorkerSlots + 1},
		"server.port":                       {Command: []string{"x"}, Server: Server{Port: 70000}},
		"server.scorePath":                  {Command: []string{"x"}, Server: Server{ScorePath: "score"}},
		"server.healthPath":                 {Command: []string{"x"}, Server: Server{HealthPath: "health"}},
		"scoring.sourceDirectory":           {EntryScript: "a.py", SourceDirectory: "../other"},
		"upstream":                          {Upstream: "localhost"},
	} {
		err := Run(t.Context(), o)
		if ExitCode(err) != 2 || !strings.HasPrefix(err.Error(), field+": ") {
			t.Errorf("%s: %v", field, err)
		}
	}
	err := Run(t.Context(), Options{EntryScript: "a.py", Command: []string{"x"}})
	if ExitCode(err) != 2 {
		t.Errorf("got %v", err)
	}
	if code := ExitCode(errors.New("any")); code != 1 {
		t.Errorf("got %d", code)
	}
}
