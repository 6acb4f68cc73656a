package local_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sluice-dev/sluice/pkg/cluster"
	"github.com/sluice-dev/sluice/pkg/cluster/clustertest"
	"github.com/sluice-dev/sluice/pkg/cluster/local"
	"github.com/sluice-dev/sluice/rollout"
)

var v1 = cluster.FleetKey{Endpoint: fraud, Version: "v1"}

func world(open func(t *testing.T) cluster.Fleet) clustertest.FleetWorld {
	return clustertest.FleetWorld{
		Open: open, Works: images["works"], WorksToo: images["works too"], Writes: "fake runner ready",
		Fails: images["fails"], Missing: images["missing"], Wait: 10 * time.Second, Answers: true,
	}
}

func TestHost(t *testing.T) {
	t.Parallel()
	clustertest.Fleet(t, world(func(t *testing.T) cluster.Fleet { return newHost(t) }))
	eventually(t, 5*time.Second, "no zombies", func() error {
		if z := zombies(t); len(z) > 0 {
			return fmt.Errorf("%v", z)
		}
		return nil
	})
}

func TestClient(t *testing.T) {
	t.Parallel()
	clustertest.Fleet(t, world(func(t *testing.T) cluster.Fleet {
		dir := shortDir(t)
		h := newHost(t)
		ln, err := local.ListenFleet(dir)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		served := make(chan error, 1)
		go func() { served <- local.Serve(ctx, ln, h) }()
		c := local.Dial(local.FleetSocket(dir), discard())
		t.Cleanup(func() {
			_ = c.Close()
			cancel()
			if err := <-served; err != nil {
				t.Error(err)
			}
		})
		return c
	}))
}

// shortDir has a path that a socket's may begin with; those of t.TempDir can be too long.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "sl")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func apply(t *testing.T, f cluster.Fleet, behaviour string, s rollout.Settings) {
	t.Helper()
	spec := cluster.FleetSpec{Key: v1, Image: images[behaviour], Revision: behaviour, Settings: s}
	if err := f.Apply(t.Context(), spec); err != nil {
		t.Fatal(err)
	}
}

func fleet(t *testing.T, f cluster.FleetReader) cluster.FleetState {
	t.Helper()
	fs, err := f.Fleets(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range fs {
		if s.Key == v1 {
			return s
		}
	}
	return cluster.FleetState{}
}

// first waits until the fleet's first replica is as check says.
func first(t *testing.T, f cluster.FleetReader, what string, check func(cluster.Replica) bool) cluster.Replica {
	t.Helper()
	var out cluster.Replica
	eventually(t, 30*time.Second, what, func() error {
		s := fleet(t, f)
		if len(s.Replicas) == 0 || !check(s.Replicas[0]) {
			return fmt.Errorf("fleet is %+v", s)
		}
		out = s.Replicas[0]
		return nil
	})
	return out
}

func isReady(r cluster.Replica) bool { return r.State == cluster.ReplicaReady }

func get(t *testing.T, r cluster.Replica, path string) (string, error) {
	t.Helper()
	c := http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := c.Get("http://" + r.Address + path)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return string(b), err
}

func mustGet(t *testing.T, r cluster.Replica, path string) string {
	t.Helper()
	s, err := get(t, r, path)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestHostRestartsWhatCrashes(t *testing.T) {
	t.Parallel()
	// Long enough for a failed replica to be seen.
	h := newHost(t, func(o *local.HostOptions) { o.RestartMin, o.RestartMax = 700*time.Millisecond, 700*time.Millisecond })
	apply(t, h, "works", rollout.Settings{})
	r := first(t, h, "ready", isReady)
	begin := time.Now()
	_, _ = get(t, r, "/crash")
	again := first(t, h, "ready after a crash", func(r cluster.Replica) bool { return isReady(r) && r.Restarts == 1 })
	t.Logf("crash to ready again: %s", time.Since(begin).Round(time.Millisecond))
	if again.Name != r.Name || again.Address == r.Address {
		t.Errorf("restarted as %+v, was %+v; want the same name on another port", again, r)
	}
	if again.Reason != "" || again.Message != "" {
		t.Errorf("ready again and says %s %q", again.Reason, again.Message)
	}
	if _, err := get(t, r, "/"); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("the dead process's port: %v, want connection refused", err)
	}
	_, _ = get(t, again, "/crash")
	failed := first(t, h, "failed", func(r cluster.Replica) bool { return r.State == cluster.ReplicaFailed })
	if failed.Reason != rollout.ReasonCrashed || !strings.Contains(failed.Message, "exit status 7") || !strings.Contains(failed.Message, "about to crash") {
		t.Errorf("failed with %s %q; want replica_crashed, the exit status and its last words", failed.Reason, failed.Message)
	}
	if failed.Address != "" {
		t.Error("a failed replica has an address")
	}
	pid, err := strconv.Atoi(mustGet(t, first(t, h, "ready", func(r cluster.Replica) bool { return isReady(r) && r.Restarts == 2 }), "/pid"))
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	first(t, h, "ready after kill -9", func(r cluster.Replica) bool { return isReady(r) && r.Restarts == 3 })
}

func TestHostInitFailureBacksOff(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	apply(t, h, "fails", rollout.Settings{})
	begin := time.Now()
	r := first(t, h, "5 restarts", func(r cluster.Replica) bool { return r.Restarts >= 5 && r.Message != "" })
	took := time.Since(begin)
	// 20, 40, 80, 160 and 200 ms, each at least 75 %.
	if least := 375 * time.Millisecond; took < least {
		t.Errorf("5 restarts within %s, want at least %s", took, least)
	}
	if r.Reason != rollout.ReasonInitFailed || !strings.Contains(r.Message, "ValueError: no model") {
		t.Errorf("reason %s, message %q; want init_failed and the traceback", r.Reason, r.Message)
	}
}

func TestHostUnreadyAndBack(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	apply(t, h, "works", rollout.Settings{})
	r := first(t, h, "ready", isReady)
	mustGet(t, r, "/unready")
	u := first(t, h, "unready", func(r cluster.Replica) bool { return r.State == cluster.ReplicaUnready })
	if u.Address != r.Address || !u.ReadySince.IsZero() || u.Message != "the worker died" {
		t.Errorf("unready: %+v", u)
	}
	mustGet(t, r, "/unready?off=1")
	back := first(t, h, "ready again", isReady)
	if back.Restarts != 0 || !back.ReadySince.After(r.ReadySince) {
		t.Errorf("ready again: %+v, was %+v", back, r)
	}
}

func TestHostLivenessProbe(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	apply(t, h, "works", rollout.Settings{LivenessProbe: &rollout.Probe{InitialDelaySeconds: 1, PeriodSeconds: 1, TimeoutSeconds: 2, FailureThreshold: 3}})
	r := first(t, h, "ready", isReady)
	// The delay counts from the process's start: one that a busy machine starts slowly may have been
	// restarted before it was ready.
	before := r.Restarts
	time.Sleep(2200 * time.Millisecond) // past the initial delay, probed while healthy
	if now := fleet(t, h).Replicas[0]; now.Restarts != before || !isReady(now) {
		t.Fatalf("a healthy replica was restarted: %+v, was %+v", now, r)
	}
	begin := time.Now()
	mustGet(t, r, "/hang")
	u := first(t, h, "unready", func(r cluster.Replica) bool { return r.State == cluster.ReplicaUnready || r.Restarts > before })
	if u.State == cluster.ReplicaUnready && u.Reason != rollout.ReasonProbeFailed {
		t.Errorf("unready with %s", u.Reason)
	}
	first(t, h, "restarted", func(r cluster.Replica) bool { return isReady(r) && r.Restarts > before })
	if took := time.Since(begin); took < 4*time.Second {
		t.Errorf("restarted after %s, before three probes of two seconds each could fail", took)
	}
}

// Without a failing probe nothing is restarted, however long it is unready.
func TestHostUnreadyIsNotDead(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	apply(t, h, "never", rollout.Settings{})
	first(t, h, "starting", func(r cluster.Replica) bool { return r.State == cluster.ReplicaStarting && r.Address != "" })
	time.Sleep(500 * time.Millisecond)
	if r := fleet(t, h).Replicas[0]; r.State != cluster.ReplicaStarting || r.Restarts != 0 || r.Reason != rollout.ReasonStarting {
		t.Errorf("a replica that takes its time: %+v", r)
	}
	begin := time.Now()
	if err := h.Delete(t.Context(), v1); err != nil {
		t.Fatal(err)
	}
	eventually(t, 5*time.Second, "gone", func() error {
		if s := fleet(t, h); s.Key == v1 {
			return fmt.Errorf("fleet is %+v", s)
		}
		return nil
	})
	if took := time.Since(begin); took > 2*time.Second {
		t.Errorf("one that never was ready took %s to end", took)
	}
}

// A connection that comes before the process accepts waits and is answered.
func TestHostPortTakesConnectionsAtOnce(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	apply(t, h, "late", rollout.Settings{})
	r := first(t, h, "an address", func(r cluster.Replica) bool { return r.Address != "" })
	if r.State == cluster.ReplicaReady {
		t.Skip("ready already")
	}
	if s := mustGet(t, r, "/score"); s != "scored" {
		t.Errorf("answer %q", s)
	}
}

func TestHostDrains(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	apply(t, h, "works", rollout.Settings{ScoringTimeoutMs: 5000})
	r := first(t, h, "ready", isReady)
	answer := make(chan error, 1)
	go func() {
		s, err := get(t, r, "/score?ms=1200")
		if err == nil && s != "scored" {
			err = fmt.Errorf("answer %q", s)
		}
		answer <- err
	}()
	time.Sleep(100 * time.Millisecond)
	if err := h.Scale(t.Context(), v1, 0); err != nil {
		t.Fatal(err)
	}
	if now := fleet(t, h).Replicas[0]; now.State != cluster.ReplicaTerminating || now.Address != r.Address {
		t.Errorf("right after Scale: %+v, want terminating", now)
	}
	// Until routers know, it answers as ever.
	if s := mustGet(t, r, "/score"); s != "scored" {
		t.Errorf("answer while terminating: %q", s)
	}
	if err := <-answer; err != nil {
		t.Errorf("the request in flight: %v", err)
	}
	eventually(t, 5*time.Second, "gone", func() error {
		if s := fleet(t, h); len(s.Replicas) > 0 {
			return fmt.Errorf("fleet is %+v", s)
		}
		return nil
	})
}

func TestHostKillsWhatWillNotEnd(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	apply(t, h, "stubborn", rollout.Settings{ScoringTimeoutMs: 300})
	first(t, h, "ready", isReady)
	begin := time.Now()
	if err := h.Scale(t.Context(), v1, 0); err != nil {
		t.Fatal(err)
	}
	eventually(t, 10*time.Second, "gone", func() error {
		if s := fleet(t, h); len(s.Replicas) > 0 {
			return fmt.Errorf("fleet is %+v", s)
		}
		return nil
	})
	// 200 ms to be seen, 300 ms scoring timeout, 500 ms margin.
	if took := time.Since(begin); took < time.Second {
		t.Errorf("killed after %s, within its time", took)
	}
}

func TestHostGivesNoSecretsAway(t *testing.T) {
	t.Parallel()
	h := newHost(t, func(o *local.HostOptions) {
		o.Env = append(os.Environ(), "SLUICE_WEBHOOK_SECRET=s1", "GITHUB_TOKEN=s2", "AWS_SECRET_ACCESS_KEY=s3", "PYTHONWARNINGS=ignore", "LC_ALL=C", "HOME=/home/x")
	})
	apply(t, h, "works", rollout.Settings{})
	var env []string
	if err := json.Unmarshal([]byte(mustGet(t, first(t, h, "ready", isReady), "/env")), &env); err != nil {
		t.Fatal(err)
	}
	for _, kv := range env {
		name, _, _ := strings.Cut(kv, "=")
		if name != "SLUICE_REPLICA" && (strings.HasPrefix(name, "SLUICE_") || strings.HasPrefix(name, "GITHUB_") || strings.HasPrefix(name, "AWS_")) {
			t.Errorf("replicas see %s", name)
		}
	}
	for _, want := range []string{"PYTHONWARNINGS=ignore", "LC_ALL=C", "HOME=/home/x", "MODEL_VARIABLE=from the version"} {
		if !slices.Contains(env, want) {
			t.Errorf("replicas do not see %s: %q", want, env)
		}
	}
}

func TestHostLimitsReplicas(t *testing.T) {
	t.Parallel()
	h := newHost(t, func(o *local.HostOptions) { o.MaxReplicas = 2 })
	apply(t, h, "works", rollout.Settings{})
	if err := h.Scale(t.Context(), v1, 1000); err != nil {
		t.Fatal(err)
	}
	eventually(t, 10*time.Second, "two replicas and a reason", func() error {
		s := fleet(t, h)
		if s.Count(cluster.ReplicaReady) != 2 || s.Reason != rollout.ReasonCapacity || s.Desired != 1000 {
			return fmt.Errorf("fleet is %+v", s)
		}
		if len(s.Replicas) > 2 {
			t.Fatalf("%d replicas, limit 2", len(s.Replicas))
		}
		return nil
	})
	other := cluster.FleetKey{Endpoint: fraud, Version: "v2"}
	if err := h.Apply(t.Context(), cluster.FleetSpec{Key: other, Image: images["works"], Revision: "r"}); err != nil {
		t.Fatal(err)
	}
	if err := h.Scale(t.Context(), v1, 1); err != nil {
		t.Fatal(err)
	}
	eventually(t, 10*time.Second, "room for the other fleet", func() error {
		fs, err := h.Fleets(t.Context())
		if err != nil {
			return err
		}
		for _, s := range fs {
			if s.Count(cluster.ReplicaReady) != 1 || s.Reason != "" {
				return fmt.Errorf("fleets are %+v", fs)
			}
		}
		return nil
	})
}

func TestHostCloseLeavesNothing(t *testing.T) {
	o, err := hostOptions(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	h, err := local.NewHost(o)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := local.NewHost(o); !errors.Is(err, local.ErrLocked) {
		t.Errorf("a second host of the directory: %v, want ErrLocked", err)
	}
	apply(t, h, "leaves", rollout.Settings{})
	if err := h.Scale(t.Context(), v1, 2); err != nil {
		t.Fatal(err)
	}
	eventually(t, 10*time.Second, "2 replicas with 2 children each", func() error {
		s := fleet(t, h)
		if n := len(marked(t, o.Dir)); n != 6 || s.Count(cluster.ReplicaReady) != 2 {
			return fmt.Errorf("%d processes, fleet is %+v", n, s)
		}
		return nil
	})
	// A replica that ends takes with it what it left, even what left its session.
	if err := h.Scale(t.Context(), v1, 1); err != nil {
		t.Fatal(err)
	}
	eventually(t, 10*time.Second, "3 processes", func() error {
		if m := marked(t, o.Dir); len(m) != 3 {
			return fmt.Errorf("processes: %v", m)
		}
		return nil
	})
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := h.Close(ctx); err != nil {
		t.Error(err)
	}
	if m := marked(t, o.Dir); len(m) > 0 {
		t.Errorf("after Close: %v", m)
	}
	if z := zombies(t); len(z) > 0 {
		t.Errorf("zombies after Close: %v", z)
	}
	if err := h.Apply(t.Context(), cluster.FleetSpec{Key: v1, Image: images["works"], Revision: "r"}); err == nil {
		t.Error("a closed host takes a fleet")
	}
	if err := h.Close(ctx); err != nil {
		t.Errorf("close twice: %v", err)
	}
	eventually(t, 5*time.Second, "no goroutine of the host", func() error {
		for _, f := range []string{"local.(*replica)", "local.(*spawner)", "local.newSpawner", "local.(*Host)", "local.(*monitor)"} {
			if s := stacks(); strings.Contains(s, f) {
				return fmt.Errorf("%s runs:\n%s", f, s)
			}
		}
		return nil
	})
}

func TestHostCloseIsBounded(t *testing.T) {
	t.Parallel()
	o, err := hostOptions(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	h, err := local.NewHost(o)
	if err != nil {
		t.Fatal(err)
	}
	apply(t, h, "stubborn", rollout.Settings{})
	first(t, h, "ready", isReady)
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	begin := time.Now()
	err = h.Close(ctx)
	if took := time.Since(begin); took > 5*time.Second {
		t.Errorf("Close took %s", took)
	}
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("close: %v, want the deadline's error", err)
	}
	if m := marked(t, o.Dir); len(m) > 0 {
		t.Errorf("after Close: %v", m)
	}
}

// supervisor starts a process with a host and waits until it serves.
func supervisor(t *testing.T, dir, behaviour string, replicas int) (*exec.Cmd, io.Closer) {
	t.Helper()
	cmd := process(t, "host", dir, behaviour, strconv.Itoa(replicas))
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "serving\n" {
		t.Fatalf("supervisor said %q, %v", line, err)
	}
	return cmd, in
}

func TestKillMinusNineOfTheSupervisor(t *testing.T) {
	dir := shortDir(t)
	cmd, _ := supervisor(t, dir, "works", 3)
	if n := len(marked(t, dir)); n != 3 {
		t.Fatalf("%d replicas, want 3", n)
	}
	begin := time.Now()
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	eventually(t, 5*time.Second, "no replicas after kill -9 of their owner", func() error {
		if m := marked(t, dir); len(m) > 0 {
			return fmt.Errorf("processes: %v", m)
		}
		return nil
	})
	t.Logf("kill -9 of the supervisor to no replica: %s", time.Since(begin).Round(time.Millisecond))
	_ = cmd.Wait()
	// The next one finds lock and socket free.
	cmd, in := supervisor(t, dir, "works", 1)
	_ = in.Close()
	if err := cmd.Wait(); err != nil {
		t.Errorf("supervisor after a killed one: %v", err)
	}
	if m := marked(t, dir); len(m) > 0 {
		t.Errorf("after an orderly end: %v", m)
	}
}

// Killed while it starts replicas, at whatever moment, it leaves none either.
func TestKillMinusNineWhileStarting(t *testing.T) {
	dir := shortDir(t)
	for i := range 6 {
		cmd := process(t, "host", dir, "works", "6")
		if _, err := cmd.StdinPipe(); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		eventually(t, 10*time.Second, "a first replica", func() error {
			if _, err := os.Stat(filepath.Join(dir, "locks", "host-run")); err != nil {
				return err
			}
			if len(marked(t, dir)) == 0 {
				return errors.New("there is none")
			}
			return nil
		})
		time.Sleep(time.Duration(i) * 2 * time.Millisecond)
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait()
		eventually(t, 5*time.Second, "no replicas", func() error {
			if m := marked(t, dir); len(m) > 0 {
				return fmt.Errorf("processes: %v", m)
			}
			return nil
		})
	}
}

// What outlives even that, because a model moved it out of its session, ends when the
// next host starts; and nothing else does.
func TestLeftoversOfAKilledSupervisor(t *testing.T) {
	dir := shortDir(t)
	cmd, _ := supervisor(t, dir, "leaves", 1)
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	var left map[int]string
	eventually(t, 5*time.Second, "the child in its own session alone", func() error {
		if left = marked(t, dir); len(left) > 2 || len(left) == 0 {
			return fmt.Errorf("processes: %v", left)
		}
		return nil
	})
	foreign := process(t, "sleeper")
	foreign.Env = append(foreign.Env, "SLUICE_REPLICA=anotherhostsrun/1/v1-abcde", "X=SLUICE_REPLICA=")
	if err := foreign.Start(); err != nil {
		t.Fatal(err)
	}
	o, err := hostOptions(dir)
	if err != nil {
		t.Fatal(err)
	}
	h, err := local.NewHost(o)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = h.Close(t.Context()) }()
	for pid := range left {
		if err := syscall.Kill(pid, 0); err == nil && !isZombie(pid) {
			t.Errorf("process %d of the killed supervisor lives on", pid)
		}
	}
	if err := foreign.Process.Signal(syscall.Signal(0)); err != nil || isZombie(foreign.Process.Pid) {
		t.Errorf("a foreign process was ended: %v", err)
	}
}

// isZombie: ended, and only its parent (init, or what stands in for it) has not noticed.
func isZombie(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && strings.HasPrefix(strings.TrimSpace(string(b[strings.LastIndexByte(string(b), ')')+1:])), "Z")
}

func TestClientOutlivesTheSupervisor(t *testing.T) {
	dir := shortDir(t)
	c := local.Dial(local.FleetSocket(dir), discard())
	defer func() { _ = c.Close() }()
	if _, err := c.Fleets(t.Context()); err == nil {
		t.Fatal("fleets without a supervisor ever")
	}
	if err := c.Scale(t.Context(), v1, 1); err == nil || errors.Is(err, cluster.ErrNotFound) {
		t.Errorf("scale without a supervisor: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	changes, err := c.WatchFleets(ctx)
	if err != nil {
		t.Fatal(err)
	}
	cmd, _ := supervisor(t, dir, "works", 2)
	eventually(t, 5*time.Second, "the fleet", func() error {
		fs, err := c.Fleets(t.Context())
		if err != nil || len(fs) != 1 || fs[0].Count(cluster.ReplicaReady) != 2 {
			return fmt.Errorf("fleets are %+v, %w", fs, err)
		}
		return nil
	})
	before := fleet(t, c)
	for _, r := range before.Replicas {
		if s := mustGet(t, r, "/score"); s != "scored" {
			t.Errorf("answer %q", s)
		}
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	eventually(t, 5*time.Second, "the loss noticed", func() error {
		if c.Connected() {
			return errors.New("still connected")
		}
		return nil
	})
	after := fleet(t, c)
	if fmt.Sprint(after) != fmt.Sprint(before) {
		t.Errorf("without the supervisor the fleet is %+v, was %+v", after, before)
	}
	if err := c.Scale(t.Context(), v1, 1); err == nil {
		t.Error("scale succeeded without a supervisor")
	}
	for len(changes) > 0 {
		<-changes
	}
	_, in := supervisor(t, dir, "works", 1)
	defer in.Close()
	eventually(t, 5*time.Second, "the new supervisor's fleet", func() error {
		s := fleet(t, c)
		if len(s.Replicas) != 1 || s.Count(cluster.ReplicaReady) != 1 || s.Replicas[0].Name == before.Replicas[0].Name {
			return fmt.Errorf("fleet is %+v", s)
		}
		return nil
	})
	select {
	case <-changes:
	case <-time.After(5 * time.Second):
		t.Error("the watch told nothing of the new supervisor")
	}
}

// The time from a change at the host to a client's having it.
func TestClientLatency(t *testing.T) {
	dir := shortDir(t)
	h := newHost(t)
	ln, err := local.ListenFleet(dir)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	served := make(chan error, 1)
	go func() { served <- local.Serve(ctx, ln, h) }()
	c := local.Dial(local.FleetSocket(dir), discard())
	defer func() { _ = c.Close() }()
	apply(t, c, "works", rollout.Settings{})
	changes, err := c.WatchFleets(ctx)
	if err != nil {
		t.Fatal(err)
	}
	key := cluster.FleetKey{Endpoint: fraud, Version: "v2"}
	if err := h.Apply(ctx, cluster.FleetSpec{Key: key, Image: images["missing"], Revision: "r"}); err != nil {
		t.Fatal(err)
	}
	var all []time.Duration
	for i := range 50 {
		want := 1 + i%2
		begin := time.Now()
		if err := h.Scale(ctx, key, want); err != nil {
			t.Fatal(err)
		}
		for seen := i == 0; !seen; {
			select {
			case <-changes:
			case <-time.After(5 * time.Second):
				t.Fatal("no change came within 5s")
			}
			fs, err := c.Fleets(ctx)
			if err != nil {
				t.Fatal(err)
			}
			seen = slices.ContainsFunc(fs, func(s cluster.FleetState) bool { return s.Key == key && s.Desired == want })
		}
		all = append(all, time.Since(begin))
		// What a client itself changed, it sees at once.
		if i%10 == 0 {
			if err := c.Scale(ctx, v1, i%3); err != nil {
				t.Fatal(err)
			}
			if s := fleet(t, c); s.Desired != i%3 {
				t.Errorf("right after Scale to %d the client sees %d", i%3, s.Desired)
			}
		}
	}
	slices.Sort(all)
	t.Logf("change at the host to the client: median %s, worst %s", all[25], all[49])
	if all[25] > 50*time.Millisecond {
		t.Errorf("median %s, want a few milliseconds", all[25])
	}
	cancel()
	if err := <-served; err != nil {
		t.Error(err)
	}
}

func TestFleetSocketIsClosedToOthers(t *testing.T) {
	dir := shortDir(t)
	if err := os.MkdirAll(filepath.Dir(local.FleetSocket(dir)), 0o755); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second replaces what a supervisor before it left
		ln, err := local.ListenFleet(dir)
		if err != nil {
			t.Fatal(err)
		}
		ln.(*net.UnixListener).SetUnlinkOnClose(false)
		defer ln.Close()
	}
	for path, want := range map[string]os.FileMode{local.FleetSocket(dir): 0o600, filepath.Dir(local.FleetSocket(dir)): 0o700} {
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: mode %v, %v; want %v", path, info.Mode(), err, want)
		}
	}
	_, err := local.ListenFleet(filepath.Join(dir, strings.Repeat("x", 100)))
	if rollout.ReasonOf(err) != rollout.ReasonInvalid || !strings.Contains(err.Error(), "shorter") {
		t.Errorf("a path that is too long: %v", err)
	}
}

func TestHostNeedsItsOptions(t *testing.T) {
	if _, err := local.NewHost(local.HostOptions{Dir: t.TempDir(), Logger: slog.New(slog.DiscardHandler)}); err == nil {
		t.Error("a host without a runner command")
	}
}
