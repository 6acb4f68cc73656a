// Package cluster_test runs the whole of `cluster` on this machine.
package cluster_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sluice-dev/sluice/test/cluster/internal/node"
	"github.com/sluice-dev/sluice/test/cluster/internal/preflight"
	"github.com/sluice-dev/sluice/test/cluster/internal/supervisor"
)

// cluster is one that a test has to itself.
type cluster struct {
	t             *testing.T
	ctx           context.Context
	program, dir  string
	kubectlBinary string
}

func newCluster(t *testing.T) *cluster {
	t.Helper()
	if err := preflight.Possible(); err != nil {
		t.Skipf("no cluster on this machine: %v", err)
	}
	ctx := t.Context()
	if deadline, ok := t.Deadline(); ok {
		var cancel context.CancelFunc
		// Leaves time to clean up, and to say what took so long.
		ctx, cancel = context.WithDeadline(ctx, deadline.Add(-30*time.Second))
		t.Cleanup(cancel)
	}
	temporary := t.TempDir()
	c := &cluster{t: t, ctx: ctx, program: filepath.Join(temporary, "cluster"), dir: filepath.Join(temporary, "state")}
	if out, err := exec.CommandContext(ctx, "go", "build", "-o", c.program, "./cmd/cluster").CombinedOutput(); err != nil {
		t.Fatalf("build cluster: %v\n%s", err, out)
	}
	t.Cleanup(func() {
		if t.Failed() {
			c.printLogs()
		}
		if out, err := exec.Command(c.program, "--dir", c.dir, "down").CombinedOutput(); err != nil {
			t.Errorf("cluster down: %v\n%s", err, out)
		}
	})
	// Before anything is looked at, since packages leave files that are none of the cluster's.
	for _, install := range []func(context.Context, io.Writer) error{preflight.Cluster, preflight.Images} {
		if err := install(ctx, t.Output()); err != nil {
			t.Fatal(err)
		}
	}
	built, err := c.try(c.program, "build")
	if err != nil {
		if ctx.Err() != nil {
			t.Fatal("compiling Kubernetes takes longer than this test may; run `go run ./cmd/cluster build` once before, or give -timeout 30m")
		}
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(built), "\n")
	c.kubectlBinary = lines[len(lines)-1]
	return c
}

func (c *cluster) try(name string, args ...string) (string, error) {
	cmd := exec.CommandContext(c.ctx, name, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("%s %s: %w\n%s%s", filepath.Base(name), strings.Join(args, " "), err, stdout.String(), stderr.String())
	}
	return stdout.String(), nil
}

// run runs the tool under test.
func (c *cluster) run(args ...string) string {
	c.t.Helper()
	out, err := c.try(c.program, append([]string{"--dir", c.dir}, args...)...)
	if err != nil {
		c.t.Fatal(err)
	}
	return out
}

func (c *cluster) tryKubectl(args ...string) (string, error) {
	return c.try(c.kubectlBinary, append([]string{"kubectl", "--kubeconfig", filepath.Join(c.dir, "kubeconfig")}, args...)...)
}

func (c *cluster) kubectl(args ...string) string {
	c.t.Helper()
	out, err := c.tryKubectl(args...)
	if err != nil {
		c.t.Fatal(err)
	}
	return out
}

type status struct {
	Components []struct {
		Name     string
		PID      int
		Held     bool
		Ready    bool
		Restarts int
	}
	Forwards []struct{ Name, Host, Target string }
}

func (c *cluster) status() status {
	c.t.Helper()
	var s status
	if err := json.Unmarshal([]byte(c.run("status", "--json")), &s); err != nil {
		c.t.Fatal(err)
	}
	return s
}

// timed logs how long a step took: what this prints is what the README quotes.
func (c *cluster) timed(what string, step func()) {
	c.t.Helper()
	began := time.Now()
	step()
	c.t.Logf("%-46s %5.1f s", what, time.Since(began).Seconds())
}

// eventually fails the test when check still says why not after a minute.
func (c *cluster) eventually(what string, check func() error) {
	c.t.Helper()
	deadline := time.Now().Add(time.Minute)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) || c.ctx.Err() != nil {
			c.t.Fatalf("%s: %v", what, err)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

func (c *cluster) printLogs() {
	logs, err := filepath.Glob(filepath.Join(c.dir, "log", "*.log"))
	if err != nil {
		return
	}
	for _, log := range logs {
		body, err := os.ReadFile(log)
		if err != nil {
			continue
		}
		lines := strings.Split(strings.TrimSpace(string(body)), "\n")
		c.t.Logf("end of %s:\n%s", filepath.Base(log), strings.Join(lines[max(0, len(lines)-20):], "\n"))
	}
}

func TestCluster(t *testing.T) {
	c := newCluster(t)
	before := takeResidue(t, c.dir)

	c.timed("up", func() { t.Log(c.run("up", "--forward", "0:30080")) })
	c.timed("up again", func() {
		if out := c.run("up"); !strings.Contains(out, "running already") {
			t.Errorf("up on a running cluster says %q", out)
		}
	})
	c.timed("images", func() { t.Log(c.run("images", "base/busybox:1")) })
	if out := c.run("images", "base/busybox:1"); !strings.Contains(out, "is there") {
		t.Errorf("images again says %q", out)
	}
	c.timed("a Deployment ready, image pull included", func() {
		c.kubectl("apply", "-f", "testdata/web.yaml")
		c.kubectl("rollout", "status", "deployment/web", "--timeout=60s")
	})
	address := strings.TrimSpace(c.kubectl("get", "service", "web", "-o", "jsonpath={.spec.clusterIP}"))
	for _, url := range []string{"http://" + address, "http://web.default.svc.cluster.local", "http://127.0.0.1:30080"} {
		c.eventually("GET "+url+" inside", func() error {
			_, err := c.try(c.program, "--dir", c.dir, "exec", "--", os.Args[0], expectFlag, url, "hello\n")
			return err
		})
	}
	var nodePort string
	for _, f := range c.status().Forwards {
		if strings.HasSuffix(f.Target, ":30080") {
			nodePort = "http://" + f.Host
		}
	}
	c.eventually("GET the NodePort from the host", func() error { return expect(nodePort, "hello\n") })

	if logs := c.kubectl("logs", "deployment/web"); logs != "serving\n" {
		t.Errorf("kubectl logs gives %q", logs)
	}
	if out := c.kubectl("exec", "deployment/web", "--", "wget", "-q", "-O-", "http://web"); out != "hello\n" {
		t.Errorf("a pod gets %q from its own Service by name", out)
	}
	if out, err := c.try(c.program, "--dir", c.dir, "exec", "--", c.kubectlBinary, "kubectl", "auth", "can-i", "*", "*"); err != nil {
		t.Errorf("kubectl inside, with the KUBECONFIG that exec sets: %v %s", err, out)
	}
	t.Run("reach", func(t *testing.T) { testReach(t, c) })
	t.Run("resize in place", func(t *testing.T) { testResize(t, c) })
	t.Run("kill and start the API server", func(t *testing.T) { testAPIServer(t, c, nodePort) })
	t.Run("restart what dies", func(t *testing.T) { testRestart(t, c) })
	if !testing.Short() {
		t.Run("Python image", func(t *testing.T) { testPython(t, c) })
	}

	own := c.processes()
	if len(own) < 10 {
		t.Errorf("the cluster has %d processes, so that they were not found", len(own))
	}
	c.timed("down", func() { c.run("down") })
	for pid, began := range own {
		if line, is := process(pid); is != "" && is == began {
			t.Errorf("process %d outlived the cluster: %s", pid, line)
		}
	}
	if _, err := os.Stat(c.dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the directory is still there: %v", err)
	}
	after := takeResidue(t, c.dir)
	for kind := range after {
		for _, thing := range after[kind] {
			if !slices.Contains(before[kind], thing) {
				t.Errorf("down left behind, of the %s: %s", kind, thing)
			}
		}
	}
	for _, setting := range before["kernel settings"] {
		if !slices.Contains(after["kernel settings"], setting) {
			t.Errorf("a kernel setting was %s and is not any more", setting)
		}
	}
}

// testReach has a pod call a server on the host's loopback.
func testReach(t *testing.T, c *cluster) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "host") }))
	defer server.Close()
	_, port, err := net.SplitHostPort(server.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	inside := strings.TrimSpace(c.run("forward", "--reach", "8099:"+port))
	if out := c.kubectl("exec", "deployment/web", "--", "wget", "-q", "-O-", "http://"+inside); out != "host\n" {
		t.Errorf("a pod gets %q from the host", out)
	}
}

func testResize(t *testing.T, c *cluster) {
	pod := strings.TrimSpace(c.kubectl("get", "pods", "-l", "app=web", "-o", "name"))
	quota := func() string {
		return strings.TrimSpace(c.kubectl("exec", pod, "--", "sh", "-c",
			"cat /sys/fs/cgroup/cpu/cpu.cfs_quota_us 2>/dev/null || cut -d' ' -f1 /sys/fs/cgroup/cpu.max"))
	}
	if is := quota(); is != "20000" {
		t.Fatalf("before, the quota is %q", is)
	}
	c.timed("resize of a pod's CPU, in place", func() {
		c.kubectl("patch", pod, "--subresource", "resize", "-p",
			`{"spec":{"containers":[{"name":"web","resources":{"requests":{"cpu":"300m"},"limits":{"cpu":"600m"}}}]}}`)
		c.eventually("the new quota", func() error {
			if is := quota(); is != "60000" {
				return fmt.Errorf("the quota is %q", is)
			}
			return nil
		})
	})
	if n := c.kubectl("get", pod, "-o", "jsonpath={.status.containerStatuses[0].restartCount}"); n != "0" {
		t.Errorf("the container restarted %s times", n)
	}
}

func testAPIServer(t *testing.T, c *cluster, nodePort string) {
	c.run("kill", "kube-apiserver")
	if _, err := c.tryKubectl("get", "nodes", "--request-timeout=2s"); err == nil {
		t.Error("the API server answers after it was killed")
	}
	// Longer than the delay of a restart: it has to stay down.
	time.Sleep(2 * time.Second)
	for _, one := range c.status().Components {
		if one.Name == "kube-apiserver" && (one.PID != 0 || !one.Held) {
			t.Errorf("after kill it is %+v", one)
		}
	}
	if err := expect(nodePort, "hello\n"); err != nil {
		t.Errorf("pods do not answer without the API server: %v", err)
	}
	c.timed("start of the API server until it is ready", func() { c.run("start", "kube-apiserver") })
	c.timed("a second replica ready after that", func() {
		c.kubectl("scale", "deployment/web", "--replicas=2")
		c.kubectl("rollout", "status", "deployment/web", "--timeout=60s")
	})
}

// testRestart kills a component behind the supervisor's back.
func testRestart(t *testing.T, c *cluster) {
	killed := false
	for _, pid := range processes(t) {
		line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if err == nil && bytes.HasPrefix(line, []byte("kube-scheduler\x00")) && bytes.Contains(line, []byte(c.dir)) {
			if err := unix.Kill(pid, unix.SIGKILL); err != nil {
				t.Fatal(err)
			}
			killed = true
		}
	}
	if !killed {
		t.Fatal("there is no kube-scheduler")
	}
	c.eventually("the restart", func() error {
		for _, one := range c.status().Components {
			if one.Name == "kube-scheduler" && one.Restarts == 1 && one.Ready {
				return nil
			}
		}
		return errors.New("it did not restart")
	})
}

func testPython(t *testing.T, c *cluster) {
	c.timed("images, all of them", func() { t.Log(c.run("images")) })
	c.timed("a Python pod to its end", func() {
		c.kubectl("run", "python", "--image=localhost:5000/base/python:3", "--restart=Never", "--",
			"python3", "-c", "import ssl, sys; print(sys.version_info.major, ssl.create_default_context().cert_store_stats()['x509_ca'] > 50)")
		c.kubectl("wait", "pod/python", "--for=jsonpath={.status.phase}=Succeeded", "--timeout=60s")
	})
	if out := c.kubectl("logs", "python"); out != "3 True\n" {
		t.Errorf("Python prints %q", out)
	}
}

// expectFlag makes this program a client that expects of a URL what its arguments say: something to
// run inside that is on every machine.
const expectFlag = "expect"

func TestMain(m *testing.M) {
	if len(os.Args) == 4 && os.Args[1] == expectFlag {
		if err := expect(os.Args[2], os.Args[3]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

func expect(url, want string) error {
	client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	response, err := client.Get(url)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return err
	}
	if string(body) != want {
		return fmt.Errorf("GET %s: %s, %q", url, response.Status, body)
	}
	return nil
}

// takeResidue lists, by kind, what a cluster could leave on the machine.
func takeResidue(t *testing.T, dir string) map[string][]string {
	t.Helper()
	all := map[string][]string{}
	note := func(kind, format string, args ...any) { all[kind] = append(all[kind], fmt.Sprintf(format, args...)) }

	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		note("mounts", "%s", line)
	}
	interfaces, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range interfaces {
		note("network interfaces", "%s", i.Name)
	}
	rules, err := exec.Command("iptables-save").Output()
	if err == nil { // else iptables is not installed yet, and there are none
		for line := range strings.Lines(string(rules)) {
			if !strings.HasPrefix(line, "#") {
				line, _, _ = strings.Cut(line, "[") // counters
				note("iptables rules", "%s", line)
			}
		}
	}
	err = filepath.WalkDir("/sys/fs/cgroup", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return nil // a group of somebody else's that has just gone
		}
		// Other clusters may come and go meanwhile, below groups of their own.
		if d.IsDir() && strings.Contains(path, (node.Node{Dir: dir}).Cgroup()) {
			note("cgroups", "%s", path)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{
		"/etc/cni", "/etc/kubernetes", "/opt/cni", "/opt/containerd", "/run/containerd", "/run/netns", "/run/xtables.lock",
		"/usr/libexec/kubernetes", "/var/lib/cni", "/var/lib/containerd", "/var/lib/kubelet", "/var/log/containers", "/var/log/pods",
	} {
		if _, err := os.Lstat(path); err == nil {
			note("files", "%s", path)
		}
	}
	for _, name := range []string{
		"vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops", "kernel/keys/root_maxkeys",
		"kernel/keys/root_maxbytes", "net/ipv4/ip_forward", "net/netfilter/nf_conntrack_max",
	} {
		if value, err := os.ReadFile(filepath.Join("/proc/sys", name)); err == nil {
			note("kernel settings", "%s = %s", name, bytes.TrimSpace(value))
		}
	}
	return all
}

// processes are those below the supervisor, containers' included, with the time of their start, which
// tells each from a later one of its number.
func (c *cluster) processes() map[int]string {
	c.t.Helper()
	top, err := supervisor.NewClient(c.dir).PID()
	if err != nil {
		c.t.Fatal(err)
	}
	parents := map[int]int{}
	for _, pid := range processes(c.t) {
		if fields := stat(pid); fields != nil {
			parents[pid], _ = strconv.Atoi(fields[1])
		}
	}
	own := map[int]string{}
	for pid := range parents {
		for at := pid; at > 1; at = parents[at] {
			if at == top {
				if _, began := process(pid); began != "" {
					own[pid] = began
				}
				break
			}
		}
	}
	return own
}

// process is a process's command line and the time of its start, or nothing if there is none. One that
// has ended and only waits for its parent to take note, here the host's first process, is none.
func process(pid int) (line, began string) {
	fields := stat(pid)
	if fields == nil || fields[0] == "Z" {
		return "", ""
	}
	body, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		return "", ""
	}
	return string(bytes.ReplaceAll(body, []byte{0}, []byte{' '})), fields[19]
}

// stat is what /proc says after a process's name, beginning with its state.
func stat(pid int) []string {
	body, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return nil
	}
	return strings.Fields(string(body[bytes.LastIndexByte(body, ')')+1:]))
}

func processes(t *testing.T) []int {
	t.Helper()
	entries, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	var all []int
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil {
			all = append(all, pid)
		}
	}
	return all
}
