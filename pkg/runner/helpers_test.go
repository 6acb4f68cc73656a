//go:build unix

package runner

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// eventually polls until ok, for at most 20 s.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("not in time: %s", what)
}

func waitHealthy(t testing.TB, addr string) {
	t.Helper()
	eventually(t, "healthy", func() bool {
		resp, err := http.Get("http://" + addr + "/")
		if err != nil {
			return false
		}
		_ = resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	})
}

// children are the pids of the direct children of a process.
func children(pid int) []int {
	tasks, _ := os.ReadDir("/proc/" + strconv.Itoa(pid) + "/task")
	var found []int
	for _, task := range tasks {
		list, _ := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/task/" + task.Name() + "/children")
		for _, f := range strings.Fields(string(list)) {
			if child, err := strconv.Atoi(f); err == nil {
				found = append(found, child)
			}
		}
	}
	return found
}

// running says whether a process exists and is more than a zombie.
func running(pid int) bool {
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil { // gone, or a system without /proc
		return runtime.GOOS != "linux" && syscall.Kill(pid, 0) == nil
	}
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	return fields[0] != "Z" && fields[0] != "X"
}

// output collects what a runner writes.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

func (o *output) waitFor(t testing.TB, text string) {
	t.Helper()
	eventually(t, "output "+strconv.Quote(text), func() bool { return strings.Contains(o.String(), text) })
}

// A runnerUnderTest is a Run in this process.
type runnerUnderTest struct {
	t      testing.TB
	addr   string
	dir    string
	out    *output
	cancel context.CancelFunc
	done   chan struct{}
	err    error // valid after done
}

// launch runs o, with testdata as the project, until the test ends.
func launch(t testing.TB, o Options) *runnerUnderTest {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &runnerUnderTest{t: t, addr: ln.Addr().String(), dir: t.TempDir(), out: &output{}, done: make(chan struct{})}
	o.Listener = ln
	if o.ProjectDir == "" {
		o.ProjectDir = "testdata"
	}
	if o.EntryScript == "" && len(o.Command) == 0 && o.Upstream == "" {
		o.EntryScript = "score.py"
	}
	setDefault(&o.DrainLinger, -1)
	setDefault(&o.backoff, time.Millisecond)
	o.Output = r.out
	o.Logger = slog.New(slog.NewTextHandler(r.out, nil))
	ctx, cancel := context.WithCancel(context.Background())
	r.cancel = cancel
	go func() {
		defer close(r.done)
		r.err = Run(ctx, o)
	}()
	t.Cleanup(func() {
		r.stop()
		if t.Failed() {
			t.Logf("output of the runner:\n%s", r.out)
		}
	})
	return r
}

func (r *runnerUnderTest) stop() {
	r.cancel()
	<-r.done
}

func (r *runnerUnderTest) ready() *runnerUnderTest {
	r.t.Helper()
	eventually(r.t, "healthy", func() bool {
		select {
		case <-r.done:
			r.t.Fatalf("ended before it was ready: %v\n%s", r.err, r.out)
		default:
		}
		return r.get("/").status == 200
	})
	return r
}

// path is a file in a directory of the test.
func (r *runnerUnderTest) path(name string) string { return filepath.Join(r.dir, name) }

func (r *runnerUnderTest) touch(name string) {
	r.t.Helper()
	if err := os.WriteFile(r.path(name), nil, 0o600); err != nil {
		r.t.Fatal(err)
	}
}

func (r *runnerUnderTest) awaitFile(name string) {
	r.t.Helper()
	eventually(r.t, "file "+name, func() bool { _, err := os.Stat(r.path(name)); return err == nil })
}

type reply struct {
	status int
	header http.Header
	body   string
	err    error
	close  bool // "Connection: close", which net/http takes out of the header
}

// code is the code of the error the reply carries.
func (a reply) code() string {
	var e struct {
		Error struct{ Code, Message, RequestID string }
	}
	_ = json.Unmarshal([]byte(a.body), &e)
	return e.Error.Code
}

func (a reply) into(t testing.TB, v any) {
	t.Helper()
	if a.status != 200 {
		t.Fatalf("status %d, error %v, body %s", a.status, a.err, a.body)
	}
	if err := json.Unmarshal([]byte(a.body), v); err != nil {
		t.Fatalf("%v in %s", err, a.body)
	}
}

func (r *runnerUnderTest) do(req *http.Request) reply {
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		return reply{err: err}
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	return reply{resp.StatusCode, resp.Header, string(b), err, resp.Close}
}

func (r *runnerUnderTest) request(method, path string, body io.Reader, headers ...string) *http.Request {
	req, err := http.NewRequest(method, "http://"+r.addr+path, body)
	if err != nil {
		r.t.Fatal(err)
	}
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	return req
}

func (r *runnerUnderTest) get(path string, headers ...string) reply {
	return r.do(r.request("GET", path, nil, headers...))
}

func (r *runnerUnderTest) score(body string, headers ...string) reply {
	return r.do(r.request("POST", "/score", strings.NewReader(body), headers...))
}

// ask scores a request to testdata/score.py.
func (r *runnerUnderTest) ask(do string, fields map[string]any, headers ...string) reply {
	if fields == nil {
		fields = map[string]any{}
	}
	fields["do"] = do
	b, err := json.Marshal(fields)
	if err != nil {
		r.t.Fatal(err)
	}
	return r.score(string(b), headers...)
}

// async asks in the background.
func (r *runnerUnderTest) async(do string, fields map[string]any, headers ...string) <-chan reply {
	done := make(chan reply, 1)
	go func() { done <- r.ask(do, fields, headers...) }()
	return done
}

// pid of the worker.
func (r *runnerUnderTest) pid() int {
	r.t.Helper()
	var v struct{ PID int }
	r.ask("context", nil).into(r.t, &v)
	return v.PID
}

// A wire is a bare connection, for what http.Client does not let one see.
type wire struct {
	t    testing.TB
	conn net.Conn
	in   *bufio.Reader
}

func (r *runnerUnderTest) wire(request string) *wire {
	r.t.Helper()
	conn, err := net.Dial("tcp", r.addr)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _ = conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
	w := &wire{r.t, conn, bufio.NewReader(conn)}
	w.send(request)
	return w
}

func (w *wire) send(text string) {
	w.t.Helper()
	if _, err := io.WriteString(w.conn, strings.ReplaceAll(text, "\n", "\r\n")); err != nil {
		w.t.Fatal(err)
	}
}

// line is the next line, without its end.
func (w *wire) line() string {
	w.t.Helper()
	line, err := w.in.ReadString('\n')
	if err != nil {
		w.t.Fatalf("read line: %v", err)
	}
	return strings.TrimSpace(line)
}

func (w *wire) response() reply {
	w.t.Helper()
	resp, err := http.ReadResponse(w.in, nil)
	if err != nil {
		w.t.Fatalf("read response: %v", err)
	}
	b, err := io.ReadAll(resp.Body)
	return reply{resp.StatusCode, resp.Header, string(b), err, resp.Close}
}

// script makes a project of one script.
func script(t testing.TB, text string) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "score.py"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}
