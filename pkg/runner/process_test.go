//go:build unix

package runner

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// A program is a runner as a process of its own.
type program struct {
	runnerUnderTest
	cmd  *exec.Cmd
	code int // valid after done
}

// execute starts the runner with a listening socket on descriptor 3 and, if given,
// more files after it.
func execute(t *testing.T, env []string, files []*os.File, args ...string) *program {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	file, err := ln.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	p := &program{runnerUnderTest: runnerUnderTest{t: t, addr: ln.Addr().String(), dir: t.TempDir(), out: &output{}, done: make(chan struct{})}}
	p.cmd = exec.Command(os.Args[0], append([]string{"-listen-fd", "3", "-project-dir", "testdata", "-drain-linger", "10ms"}, args...)...)
	p.cmd.Env = append(append(os.Environ(), "RUNNER_TEST_AS_MAIN=1"), env...)
	p.cmd.ExtraFiles = append([]*os.File{file}, files...)
	p.cmd.Stdout, p.cmd.Stderr = p.out, p.out
	p.cmd.WaitDelay = 5 * time.Second
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_ = ln.Close()
	_ = file.Close()
	go func() {
		defer close(p.done)
		p.err = p.cmd.Wait()
		p.code = p.cmd.ProcessState.ExitCode()
	}()
	p.cancel = func() { _ = p.cmd.Process.Kill() }
	t.Cleanup(func() {
		p.stop()
		if t.Failed() {
			t.Logf("output of the runner:\n%s", p.out)
		}
	})
	return p
}

func (p *program) signal(sig os.Signal) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(sig); err != nil {
		p.t.Fatal(err)
	}
}

func (p *program) exit() int {
	p.t.Helper()
	select {
	case <-p.done:
	case <-time.After(20 * time.Second):
		p.t.Fatal("does not end")
	}
	return p.code
}

func TestSIGTERMDrains(t *testing.T) {
	t.Parallel()
	p := execute(t, []string{"AZUREML_ENTRY_SCRIPT=score.py", "SLUICE_RUNNER_MAX_CONCURRENT_REQUESTS=2", `SLUICE_RUNNER_ARGS=["--from","environment"]`}, nil)
	p.ready()
	var got struct {
		Argv []string
		PID  int
	}
	p.ask("context", nil).into(t, &got)
	if strings.Join(got.Argv[1:], " ") != "--from environment" {
		t.Errorf("argv %q", got.Argv)
	}
	waiting := p.async("wait", map[string]any{"path": p.path("go")}, "x-request-id", "last")
	p.awaitFile("go.in")
	p.signal(syscall.SIGTERM)
	eventually(t, "draining", func() bool { return p.get("/").code() == "draining" })
	p.touch("go")
	if a := <-waiting; a.body != `"waited"` {
		t.Errorf("got %+v", a)
	}
	if code := p.exit(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	if running(got.PID) {
		t.Error("the worker is still there")
	}
}

// kill -9 of the gate leaves nothing: not the worker, not in the middle of a request,
// not what the script had started.
func TestKillLeavesNothing(t *testing.T) {
	t.Parallel()
	if !kernelGuards {
		t.Skip("needs Linux; TestWorkerWatchesTheGate covers what other systems have")
	}
	t.Run("worker", func(t *testing.T) {
		t.Parallel()
		p := execute(t, nil, nil, "-entry-script", "score.py", "-max-concurrent-requests", "2")
		p.ready()
		var pids []int
		p.ask("children", nil).into(t, &pids)
		if len(pids) != 3 {
			t.Fatalf("pids %v", pids)
		}
		_ = p.async("hang", map[string]any{"path": p.path("in")})
		p.awaitFile("in")
		p.killed(pids)
	})
	t.Run("worker starting", func(t *testing.T) {
		t.Parallel()
		p := execute(t, []string{"TEST_INIT_WAITS_FOR=/does/not/exist"}, nil, "-entry-script", "score.py")
		p.out.waitFor(t, "init prints")
		p.killed(children(p.cmd.Process.Pid))
	})
	t.Run("command", func(t *testing.T) {
		t.Parallel()
		// A shell that stays between the gate and the server.
		p := execute(t, nil, nil, "-command", "--", "sh", "-c", "python3 server.py & wait")
		p.ready()
		var got serverAnswer
		p.get("/x").into(t, &got)
		p.killed(append(children(p.cmd.Process.Pid), got.PID))
	})
	t.Run("script", func(t *testing.T) {
		t.Parallel()
		p := execute(t, nil, nil, "-mode", "script", "-entry-script", "server.py")
		p.ready()
		var got serverAnswer
		p.get("/x").into(t, &got)
		p.killed([]int{got.PID})
	})
}

func (p *program) killed(pids []int) {
	p.t.Helper()
	if len(pids) == 0 {
		p.t.Fatal("nothing to watch")
	}
	for _, pid := range pids {
		if !running(pid) {
			p.t.Fatalf("process %d does not run", pid)
		}
	}
	p.signal(syscall.SIGKILL)
	p.exit()
	for _, pid := range pids {
		eventually(p.t, fmt.Sprintf("process %d gone", pid), func() bool { return !running(pid) })
	}
}

// An end of the worker takes along what its script had started.
func TestReplacedWorkerTakesItsChildrenAlong(t *testing.T) {
	t.Parallel()
	r := launch(t, Options{}).ready()
	var pids []int
	r.ask("children", nil).into(t, &pids)
	r.ask("die", nil)
	for _, pid := range pids {
		eventually(t, "gone", func() bool { return !running(pid) })
	}
}

func TestExitCodes(t *testing.T) {
	t.Parallel()
	broken := script(t, "def init():\n    raise RuntimeError('no model here')\ndef run(data): pass\n")
	for name, c := range map[string]struct {
		args []string
		code int
		want []string
	}{
		"init failure":    {[]string{"-project-dir", broken, "-entry-script", "score.py"}, 3, []string{"[init] Traceback (most recent call last):", "[init] RuntimeError: no model here", "level=ERROR"}},
		"script missing":  {[]string{"-entry-script", "nobody.py"}, 3, []string{"nobody.py"}},
		"command's own":   {[]string{"-command", "--", "python3", "server.py", "fail"}, 3, []string{"server starts"}},
		"nothing to run":  {nil, 2, []string{"there is nothing to run"}},
		"unknown flag":    {[]string{"-nonsense"}, 2, []string{"nonsense"}},
		"command missing": {[]string{"-command"}, 2, []string{"-command needs"}},
		"port taken":      {[]string{"-listen-fd", "-1", "-listen", "127.0.0.1:99999", "-entry-script", "score.py"}, 1, []string{"listen"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := execute(t, nil, nil, c.args...)
			if code := p.exit(); code != c.code {
				t.Errorf("exit code %d, want %d", code, c.code)
			}
			for _, want := range c.want {
				if !strings.Contains(p.out.String(), want) {
					t.Errorf("output lacks %q", want)
				}
			}
		})
	}
}

func TestLifelineDescriptor(t *testing.T) {
	t.Parallel()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	p := execute(t, nil, []*os.File{r}, "-entry-script", "score.py", "-lifeline-fd", "4", "-drain-linger", "1m")
	_ = r.Close()
	p.ready()
	pid := p.pid()
	_ = w.Close()
	if code := p.exit(); code != 1 {
		t.Errorf("exit code %d", code)
	}
	if running(pid) {
		t.Error("the worker is still there")
	}
}

func TestParse(t *testing.T) {
	t.Parallel()
	env := []string{"PORT=7001", "SCORING_TIMEOUT_MS=1500", "AZUREML_MODEL_DIR=/m", "AML_APP_ROOT=/p", "AZUREML_ENTRY_SCRIPT=a.py", "AZUREML_SOURCE_DIRECTORY=s",
		"SLUICE_RUNNER_PYTHON=py", "SLUICE_RUNNER_INIT_TIMEOUT=7s", "SLUICE_RUNNER_MODEL_DIR=/own"}
	o, _, err := parse([]string{"-entry-script", "b.py", "--", "-x", "y"}, env, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	got := fmt.Sprint(o.Listen, o.ScoringTimeout, o.ModelDir, o.ProjectDir, o.EntryScript, o.SourceDirectory, o.Python, o.InitTimeout, o.Arguments)
	if want := fmt.Sprint(":7001", 1500*time.Millisecond, "/own", "/p", "b.py", "s", "py", 7*time.Second, []string{"-x", "y"}); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if o, _, err = parse([]string{"-command", "serve", "--port", "1"}, env, io.Discard); err != nil || o.EntryScript != "" || len(o.Command) != 3 {
		t.Errorf("%+v, %v", o, err)
	}
	for _, bad := range []string{"PORT=x", "PORT=70000", "SCORING_TIMEOUT_MS=0", "SLUICE_RUNNER_INIT_TIMEOUT=1", "SLUICE_RUNNER_ARGS=x"} {
		if _, _, err := parse(nil, []string{bad}, io.Discard); err == nil {
			t.Errorf("%s is accepted", bad)
		}
	}
	var out output
	if code := Main(t.Context(), []string{"-h"}, nil, &out, io.Discard); code != 0 || !strings.Contains(out.String(), "-scoring-timeout") {
		t.Errorf("%d %s", code, out.String())
	}
}

// The error body is JSON whatever the message holds.
func TestErrorBody(t *testing.T) {
	t.Parallel()
	for _, message := range []string{"plain", `"quoted" \ back`, "line\nbreak\x00", "é☃\xff"} {
		w := newRecorder()
		writeError(w, 418, "code", message, "id")
		var got struct {
			Error struct{ Code, Message, RequestID string }
		}
		if err := json.Unmarshal(w.body, &got); err != nil {
			t.Errorf("%q: %v in %s", message, err, w.body)
		}
		if got.Error.Code != "code" || got.Error.RequestID != "id" || got.Error.Message != strings.ToValidUTF8(message, "\ufffd") {
			t.Errorf("%q became %+v", message, got)
		}
	}
}

type recorder struct {
	header http.Header
	body   []byte
}

func newRecorder() *recorder                    { return &recorder{header: http.Header{}} }
func (r *recorder) Header() http.Header         { return r.header }
func (r *recorder) WriteHeader(int)             {}
func (r *recorder) Write(p []byte) (int, error) { r.body = append(r.body, p...); return len(p), nil }

// Without the kernel's help (other systems than Linux) the worker watches for the
// gate's end itself.
func TestWorkerWatchesTheGate(t *testing.T) {
	t.Parallel()
	source := filepath.Join(t.TempDir(), "worker.py")
	if err := os.WriteFile(source, []byte(workerSource), 0o600); err != nil {
		t.Fatal(err)
	}
	code, err := os.Open(source)
	if err != nil {
		t.Fatal(err)
	}
	guardChild, guard, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	lane, theirs, err := socketPair()
	if err != nil {
		t.Fatal(err)
	}
	dir, err := filepath.Abs("testdata")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("python3", "-c", boot, "1", "1", filepath.Join(dir, "score.py"))
	cmd.ExtraFiles = []*os.File{guardChild, code, theirs}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for _, f := range cmd.ExtraFiles {
		_ = f.Close()
	}
	l := newLane(lane)
	if a, err := l.receive(); err != nil || a.kind != kindReady || a.status != 1 {
		t.Fatalf("%+v, %v", a, err)
	}
	r, err := http.NewRequest(http.MethodPost, "/score", strings.NewReader(`{"do":"children"}`))
	if err != nil {
		t.Fatal(err)
	}
	if err := l.send(r, "id", false, r.Body, time.Minute); err != nil {
		t.Fatal(err)
	}
	a, err := l.receive()
	if err != nil {
		t.Fatal(err)
	}
	var pids []int
	if err := json.Unmarshal(a.payload, &pids); err != nil {
		t.Fatal(err)
	}
	_ = guard.Close()
	_ = cmd.Wait()
	for _, pid := range pids {
		eventually(t, "gone", func() bool { return !running(pid) })
	}
}
