//go:build bench

package e2e

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// cpu seconds that a process has used (proc(5), fields 14 and 15 of stat, in ticks of 10 ms).
func cpu(t *testing.T, pid int) float64 {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	u, _ := strconv.ParseFloat(f[11], 64)
	s, _ := strconv.ParseFloat(f[12], 64)
	return (u + s) / 100
}

// pss is the proportional memory of processes in MiB: what is shared counts once.
func pss(pids []int) float64 {
	sum := 0.0
	for _, pid := range pids {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(b)) {
			if strings.HasPrefix(line, "Pss:") {
				kb, _ := strconv.ParseFloat(strings.Fields(line)[1], 64)
				sum += kb / 1024
			}
		}
	}
	return sum
}

func quantile(all []answer, q float64) time.Duration {
	took := make([]time.Duration, 0, len(all))
	for _, a := range all {
		took = append(took, a.took)
	}
	sort.Slice(took, func(i, j int) bool { return took[i] < took[j] })
	return took[min(len(took)-1, int(q*float64(len(took))))]
}

// TestBenchRouter compares a request through the router with one sent to a replica directly.
func TestBenchRouter(t *testing.T) {
	s := start(t)
	const settings = "version: {replicas: 1, concurrency: {maxConcurrentRequests: 64}}\n"
	s.must("deploy", "--version", "v", project(t, "echo", "v", settings, ""))
	s.must("wait", "echo", "v", "--for=ready")
	ps := processes(s.state, up("runner"))
	router := processes(s.state, up("router"))[0].pid
	port := listening(t, ps[0].pid)
	direct := newClient(fmt.Sprintf("http://127.0.0.1:%d/score", port), "")
	through := newClient(s.url("echo"), s.key("echo"))
	const rate, seconds, rounds = 300, 5, 6
	var d, r []answer
	var cpuUsed float64
	for range rounds { // interleaved, so that the machine's mood hits both alike
		stop := direct.open(rate)
		time.Sleep(seconds * time.Second)
		d = append(d, stop()...)
		before := cpu(t, router)
		stop = through.open(rate)
		time.Sleep(seconds * time.Second)
		r = append(r, stop()...)
		cpuUsed += cpu(t, router) - before
	}
	if n := len(failures(d)) + len(failures(r)); n > 0 {
		t.Fatalf("%d requests failed: %v %v", n, failures(d), failures(r))
	}
	t.Logf("open loop, %d requests/s, %d requests each way:", rate, len(d))
	for _, q := range []float64{0.5, 0.99} {
		a, b := quantile(d, q), quantile(r, q)
		t.Logf("  p%-3g direct %-10s router %-10s added %-10s ratio %.2f", q*100, a, b, b-a, float64(b)/float64(a))
	}
	t.Logf("  router CPU %.0f µs per request", cpuUsed/float64(len(r))*1e6)
}

// listening is the TCP port that a process listens on.
func listening(t *testing.T, pid int) int {
	t.Helper()
	inodes := map[string]bool{}
	fds, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	for _, fd := range fds {
		if l, err := os.Readlink(fd); err == nil && strings.HasPrefix(l, "socket:[") {
			inodes[strings.Trim(l, "socket:[]")] = true
		}
	}
	for _, file := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
		b, _ := os.ReadFile(file)
		for line := range strings.Lines(string(b)) {
			f := strings.Fields(line)
			if len(f) > 9 && f[3] == "0A" && inodes[f[9]] {
				p, _ := strconv.ParseInt(f[1][strings.LastIndexByte(f[1], ':')+1:], 16, 32)
				return int(p)
			}
		}
	}
	t.Fatalf("process %d listens nowhere", pid)
	return 0
}

// TestBenchRunner compares the runner with gunicorn and Flask on the same script:
// one request at a time, and four threads.
func TestBenchRunner(t *testing.T) {
	gunicorn, err := exec.LookPath("gunicorn")
	if err != nil {
		t.Fatal("gunicorn is missing: apt-get install gunicorn python3-flask")
	}
	dir := project(t, "echo", "v", "", "")
	write(t, filepath.Join(dir, "flaskapp.py"), `from flask import Flask, request
import score
app = Flask(__name__)
score.init()
@app.get("/")
def health():
    return "Healthy"
@app.post("/score")
def run():
    return score.run(request.get_data(as_text=True))
`)
	python := "/usr/bin/python3" // Debian's, which has Debian's Flask
	for _, threads := range []int{1, 4} {
		servers := []struct {
			name string
			argv func(port int) []string
		}{
			{"runner", func(port int) []string {
				return []string{binary, up("runner"), "--python", python, "--listen", fmt.Sprintf("127.0.0.1:%d", port), "--project-dir", dir, "--entry-script", "score.py", "--max-concurrent-requests", fmt.Sprint(threads)}
			}},
			{"gunicorn", func(port int) []string {
				argv := []string{gunicorn, "--chdir", dir, "--bind", fmt.Sprintf("127.0.0.1:%d", port), "--workers", "1", "--keep-alive", "60"}
				// gthread keeps connections alive, as the runner does; sync does not.
				return append(argv, "--worker-class", "gthread", "--threads", fmt.Sprint(threads), "flaskapp:app")
			}},
		}
		rate := map[string][]float64{}
		memory := map[string]float64{}
		for range 3 {
			for _, sv := range servers {
				r, m := serve(t, sv.argv(freePort(t)), threads)
				rate[sv.name] = append(rate[sv.name], r)
				memory[sv.name] = m
			}
		}
		med := func(x []float64) float64 { sort.Float64s(x); return x[len(x)/2] }
		t.Logf("%d at once: runner %.0f requests/s, gunicorn + Flask %.0f, ratio %.2f; memory %.1f MiB against %.1f, ratio %.2f", threads,
			med(rate["runner"]), med(rate["gunicorn"]), med(rate["runner"])/med(rate["gunicorn"]), memory["runner"], memory["gunicorn"], memory["runner"]/memory["gunicorn"])
	}
}

func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// serve runs a server, loads it with n clients and gives requests per second and MiB.
func serve(t *testing.T, argv []string, n int) (perSecond, mib float64) {
	t.Helper()
	var port string
	for _, a := range argv {
		if i := strings.LastIndex(a, "127.0.0.1:"); i >= 0 {
			port = a[i+len("127.0.0.1:"):]
		}
	}
	cmd := exec.Command(argv[0], argv[1:]...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM)
		time.AfterFunc(5*time.Second, func() { _ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) })
		_ = cmd.Wait()
	}()
	base := "http://127.0.0.1:" + port
	eventually(t, 20*time.Second, argv[0]+" answers", func() error {
		resp, err := http.Get(base + "/")
		if err != nil {
			return err
		}
		resp.Body.Close()
		if resp.StatusCode != 200 {
			return errors.New(resp.Status + out.String())
		}
		return nil
	})
	c := newClient(base+"/score", "")
	stop := c.closed(n)
	time.Sleep(time.Second)
	stop()
	stop = c.closed(n)
	began := time.Now()
	time.Sleep(5 * time.Second)
	all := stop()
	took := time.Since(began).Seconds()
	if bad := failures(all); len(bad) > len(all)/100 {
		t.Fatalf("%s: %d of %d failed: %v", argv[0], len(bad), len(all), bad[0])
	}
	var pids []int
	for _, d := range descendants(cmd.Process.Pid) {
		pids = append(pids, d)
	}
	return float64(len(all)) / took, pss(pids)
}

func descendants(pid int) []int {
	out := []int{pid}
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, f := range tasks {
		b, _ := os.ReadFile(f)
		for _, c := range strings.Fields(string(b)) {
			n, _ := strconv.Atoi(c)
			out = append(out, descendants(n)...)
		}
	}
	return out
}

// TestBenchArchive compares packaging with sha256sum over the same files.
func TestBenchArchive(t *testing.T) {
	dir := project(t, "big", "v", "models: [{name: m, version: \"1\", path: model/}]\n", "")
	if err := os.Mkdir(filepath.Join(dir, "model"), 0o755); err != nil {
		t.Fatal(err)
	}
	const files, size = 16, 64 << 20
	block := make([]byte, size)
	for i := range files {
		_, _ = rand.Read(block[:1<<20])
		if err := os.WriteFile(filepath.Join(dir, "model", fmt.Sprintf("part-%02d.bin", i)), block, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	run := func(name string, args ...string) time.Duration {
		t.Helper()
		began := time.Now()
		if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", name, err, out)
		}
		return time.Since(began)
	}
	best := func(f func() time.Duration) time.Duration {
		d := f()
		for range 4 {
			d = min(d, f())
		}
		return d
	}
	sum := best(func() time.Duration { return run("sh", "-c", "cat "+dir+"/model/* | sha256sum") })
	ours := best(func() time.Duration { return run(binary, "package", dir) })
	rate := func(d time.Duration) float64 { return float64(files*size) / d.Seconds() / (1 << 20) }
	t.Logf("%d MiB: sluice package %.0f MiB/s, sha256sum %.0f MiB/s, ratio %.2f", files*size>>20, rate(ours), rate(sum), float64(sum)/float64(ours))

	// Memory stays flat over 10 GiB, most of them holes: reading and hashing do not know.
	for i := range 10 {
		f, err := os.Create(filepath.Join(dir, "model", fmt.Sprintf("huge-%02d.bin", i)))
		if err != nil {
			t.Fatal(err)
		}
		if err := f.Truncate(1 << 30); err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
	cmd := exec.Command(binary, "package", dir)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	// From /proc: the peak that wait(2) tells includes this test's own memory, which the child shares until it executes.
	var peak int
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	for running := true; running; {
		select {
		case err := <-ended:
			if err != nil {
				t.Fatal(err)
			}
			running = false
		case <-time.After(20 * time.Millisecond):
			peak = max(peak, highWater(cmd.Process.Pid))
		}
	}
	t.Logf("11 GiB packaged with a peak of %d MiB resident, in %s", peak, cmd.ProcessState.UserTime().Round(time.Second))
	if peak == 0 || peak > 64 {
		t.Errorf("peak of %d MiB, want at most 64", peak)
	}
}

// highWater is the most memory that a process has had resident, in MiB; 0 if it is gone.
func highWater(pid int) int {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(b), "VmHWM:")
	var kib int
	_, _ = fmt.Sscan(rest, &kib)
	return kib >> 10
}

// TestBenchCapacity prints what one version's replicas and the router give together.
func TestBenchCapacity(t *testing.T) {
	s := start(t)
	s.must("deploy", "--version", "v", project(t, "echo", "v", "version: {replicas: 4, concurrency: {maxQueueWaitMs: 5000}}\n", ""))
	eventually(t, 20*time.Second, "four replicas", func() error {
		if n := s.endpoint("echo").Status.Version("v").ReadyReplicas; n < 4 {
			return fmt.Errorf("%d ready", n)
		}
		return nil
	})
	c := newClient(s.url("echo"), s.key("echo"))
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	var wg sync.WaitGroup
	stop := c.closed(16)
	wg.Go(func() { <-ctx.Done() })
	wg.Wait()
	all := stop()
	t.Logf("four one-slot replicas, 16 clients: %.0f requests/s, p50 %s, p99 %s, %d failures", float64(len(all))/10, quantile(all, 0.5), quantile(all, 0.99), len(failures(all)))
}
