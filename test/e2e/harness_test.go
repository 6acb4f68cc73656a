// Package e2e drives the real programs, as a user's scripts would: the sluice
// binary, its child processes, real Python replicas.
package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/sluice-dev/sluice/pkg/telemetry"
	"github.com/sluice-dev/sluice/rollout"
)

// binary is sluice, built once.
var binary string

func TestMain(m *testing.M) {
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "sluice-e2e-")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		binary = filepath.Join(dir, "sluice")
		cmd := exec.Command("go", "build", "-o", binary, "github.com/sluice-dev/sluice/cmd/sluice")
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "build sluice: %v\n%s", err, out)
			return 1
		}
		return m.Run()
	}())
}

// scale is 1 in `make test`, more in `make bench`: SLUICE_E2E_SCALE.
func scale() int {
	if n, err := strconv.Atoi(os.Getenv("SLUICE_E2E_SCALE")); err == nil && n > 0 {
		return n
	}
	return 1
}

// system is a running `sluice up`.
type system struct {
	t     *testing.T
	state string
	cmd   *exec.Cmd
	log   *logFile
	at    struct{ Router, API, Admin string }
	env   []string
	ended chan struct{}
}

type logFile struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logFile) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logFile) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func start(t *testing.T, env ...string) *system {
	t.Helper()
	s := &system{t: t, state: t.TempDir(), log: &logFile{}, env: env, ended: make(chan struct{})}
	s.cmd = exec.Command(binary, "up", "--state", s.state, "--router-address", "127.0.0.1:0", "--api-address", "127.0.0.1:0", "--admin-address", "127.0.0.1:0")
	s.cmd.Env = append(os.Environ(), env...)
	s.cmd.Stdout, s.cmd.Stderr = s.log, s.log
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		_ = s.cmd.Wait()
		close(s.ended)
	}()
	t.Cleanup(func() {
		if t.Failed() || os.Getenv("SLUICE_E2E_LOG") != "" {
			out := s.log.String()
			t.Logf("sluice up wrote:\n%s", out[max(0, len(out)-20000):])
		}
		s.end()
		s.nothingLeft()
	})
	eventually(t, 20*time.Second, "the system's addresses", func() error {
		b, err := os.ReadFile(filepath.Join(s.state, "run", "addresses.json"))
		if err != nil {
			return err
		}
		return json.Unmarshal(b, &s.at)
	})
	eventually(t, 20*time.Second, "the router is ready", func() error {
		resp, err := http.Get("http://" + s.at.Admin + "/readyz")
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("readyz: %s", resp.Status)
		}
		return nil
	})
	return s
}

// end stops the system as Ctrl-C does.
func (s *system) end() {
	s.t.Helper()
	_ = s.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-s.ended:
	case <-time.After(60 * time.Second):
		_ = s.cmd.Process.Kill()
		<-s.ended
		s.t.Error("sluice up did not end within a minute of SIGTERM")
	}
}

// nothingLeft looks for processes of this system: their environment or arguments name the state directory.
func (s *system) nothingLeft() {
	s.t.Helper()
	eventually(s.t, 10*time.Second, "no process is left behind", func() error {
		if left := processes(s.state, ""); len(left) > 0 {
			return fmt.Errorf("left: %v", left)
		}
		return nil
	})
}

type process struct {
	pid  int
	args string
}

// processes whose arguments or environment have the state directory, and whose arguments have word.
func processes(state, word string) []process {
	var out []process
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, d := range dirs {
		pid, _ := strconv.Atoi(filepath.Base(d))
		if pid == os.Getpid() {
			continue
		}
		args, err := os.ReadFile(filepath.Join(d, "cmdline"))
		if err != nil || len(args) == 0 {
			continue
		}
		env, _ := os.ReadFile(filepath.Join(d, "environ"))
		line := string(bytes.ReplaceAll(args, []byte{0}, []byte{' '}))
		if (bytes.Contains(args, []byte(state)) || bytes.Contains(env, []byte(state))) && strings.Contains(line, word) {
			out = append(out, process{pid, line})
		}
	}
	return out
}

// sluice runs the command line against the system.
func (s *system) sluice(args ...string) (string, error) {
	cmd := exec.Command(binary, append([]string{"--state", s.state}, args...)...)
	cmd.Env = append(os.Environ(), s.env...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("sluice %s: %w: %s", strings.Join(args, " "), err, errs.String())
	}
	return out.String(), nil
}

func (s *system) must(args ...string) string {
	s.t.Helper()
	out, err := s.sluice(args...)
	if err != nil {
		s.t.Fatal(err)
	}
	return out
}

func (s *system) endpoint(name string) *rollout.Endpoint {
	s.t.Helper()
	var e rollout.Endpoint
	if err := json.Unmarshal([]byte(s.must("status", name, "-o", "json")), &e); err != nil {
		s.t.Fatal(err)
	}
	return &e
}

func (s *system) key(name string) string {
	s.t.Helper()
	var k struct{ Primary string }
	if err := json.Unmarshal([]byte(s.must("keys", "get", name, "-o", "json")), &k); err != nil {
		s.t.Fatal(err)
	}
	return k.Primary
}

func (s *system) url(name string) string {
	return "http://" + s.at.Router + "/api/v1/service/" + name + "/score"
}

func (s *system) report(ctx context.Context) (telemetry.Report, error) {
	return telemetry.NewHTTPReporter("http://" + s.at.Admin).Report(ctx)
}

// project writes a model repository and returns its directory. The script's
// answer to {"n": N} is {"n": N, "version": tag}.
func project(t *testing.T, endpoint, tag, settings, extra string) string {
	t.Helper()
	dir := t.TempDir()
	script := `import json, os, sys, time
TAG = ` + strconv.Quote(tag) + `
def init():
    pass
def run(data):
    d = json.loads(data)
` + indent(extra) + `
    return {"n": d["n"], "version": TAG}
`
	write(t, filepath.Join(dir, "score.py"), script)
	write(t, filepath.Join(dir, "sluice.yaml"), `apiVersion: sluice.dev/v1alpha1
kind: Project
endpoint: `+endpoint+`
scoring: {entryScript: score.py}
`+settings)
	return dir
}

func indent(s string) string {
	if s == "" {
		return ""
	}
	return "    " + strings.ReplaceAll(strings.TrimSpace(s), "\n", "\n    ")
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func eventually(t *testing.T, within time.Duration, what string, f func() error) {
	t.Helper()
	deadline := time.Now().Add(within)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("not within %s: %s: %v", within, what, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// answer is one response as a client saw it.
type answer struct {
	status  int
	version string
	reason  string
	err     error
	took    time.Duration
	at      time.Time
}

func (a answer) ok() bool { return a.err == nil && a.status == http.StatusOK }

func (a answer) String() string {
	return fmt.Sprintf("status %d from %q after %s (%s): %v", a.status, a.version, a.took.Round(time.Millisecond), a.reason, a.err)
}

// client sends scoring requests and checks that answers belong to them.
type client struct {
	url, key string
	http     *http.Client
	n        atomic.Int64
}

func newClient(url, key string) *client {
	return &client{url: url, key: key, http: &http.Client{Timeout: 90 * time.Second, Transport: &http.Transport{MaxIdleConns: 2000, MaxIdleConnsPerHost: 2000, IdleConnTimeout: time.Minute}}}
}

func (c *client) send(ctx context.Context) answer {
	n := c.n.Add(1)
	began := time.Now()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.url, strings.NewReader(fmt.Sprintf(`{"n": %d}`, n)))
	if err != nil {
		return answer{err: err, at: began}
	}
	req.Header.Set("Authorization", "Bearer "+c.key)
	req.Header.Set("Content-Type", "application/json")
	resp, err := c.http.Do(req)
	if err != nil {
		return answer{err: err, took: time.Since(began), at: began}
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	a := answer{status: resp.StatusCode, version: resp.Header.Get("Sluice-Version"), err: err, took: time.Since(began), at: began}
	if a.err != nil {
		return a
	}
	if a.status != http.StatusOK {
		a.reason = string(bytes.TrimSpace(body))
		return a
	}
	var got struct {
		N       int64
		Version string
	}
	if err := json.Unmarshal(body, &got); err != nil || got.N != n {
		a.err = fmt.Errorf("request %d was answered %q (%w)", n, body, err)
	}
	return a
}

// open sends requests at a constant rate, each when it is due, until stop is called.
func (c *client) open(rate float64) (stop func() []answer) {
	ctx, cancel := context.WithCancel(context.Background())
	var mu sync.Mutex
	var all []answer
	var wg sync.WaitGroup
	done := make(chan struct{})
	go func() {
		defer close(done)
		began := time.Now()
		for i := 0; ctx.Err() == nil; i++ {
			due := began.Add(time.Duration(float64(i) / rate * float64(time.Second)))
			if d := time.Until(due); d > 0 {
				time.Sleep(d)
			}
			wg.Go(func() {
				a := c.send(context.Background())
				mu.Lock()
				all = append(all, a)
				mu.Unlock()
			})
		}
	}()
	return func() []answer {
		cancel()
		<-done
		wg.Wait()
		return all
	}
}

// closed keeps n requests in flight until stop is called.
func (c *client) closed(n int) (stop func() []answer) {
	ctx, cancel := context.WithCancel(context.Background())
	var mu sync.Mutex
	var all []answer
	var wg sync.WaitGroup
	for range n {
		wg.Go(func() {
			for ctx.Err() == nil {
				a := c.send(context.Background())
				mu.Lock()
				all = append(all, a)
				mu.Unlock()
			}
		})
	}
	return func() []answer {
		cancel()
		wg.Wait()
		return all
	}
}

func failures(all []answer) []answer {
	var out []answer
	for _, a := range all {
		if !a.ok() {
			out = append(out, a)
		}
	}
	return out
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// metric is the value of a version's gauge in Prometheus' text format, -1 if it is not there.
func metric(r io.Reader, name, endpoint, version string) int {
	b, err := io.ReadAll(r)
	if err != nil {
		return -1
	}
	for line := range strings.Lines(string(b)) {
		if strings.HasPrefix(line, name+"{") && strings.Contains(line, `endpoint="`+endpoint+`"`) && strings.Contains(line, `version="`+version+`"`) {
			f, err := strconv.ParseFloat(strings.TrimSpace(line[strings.LastIndexByte(line, ' '):]), 64)
			if err == nil {
				return int(f)
			}
		}
	}
	return -1
}
