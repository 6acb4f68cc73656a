package local_test

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/sluice-dev/sluice/pkg/cluster"
	"github.com/sluice-dev/sluice/pkg/cluster/clustertest"
	"github.com/sluice-dev/sluice/pkg/cluster/local"
	"github.com/sluice-dev/sluice/rollout"
)

// roleRunner stands in for the runner and its model: it speaks the same flags, health
// check, exit codes and signals, and misbehaves as its last argument says.
func roleRunner(args []string) error {
	f := flag.NewFlagSet("runner", flag.ContinueOnError)
	listenFD, lifelineFD := f.Int("listen-fd", -1, ""), f.Int("lifeline-fd", -1, "")
	if err := f.Parse(args); err != nil {
		return err
	}
	behaviour := f.Arg(0)
	lifeline := os.NewFile(uintptr(*lifelineFD), "lifeline")
	go func() {
		_, _ = io.Copy(io.Discard, lifeline)
		os.Exit(9)
	}()
	if behaviour == "fails" {
		fmt.Println("Traceback (most recent call last):\n  File \"score.py\", line 3, in init\nValueError: no model")
		os.Exit(3)
	}
	ln, err := net.FileListener(os.NewFile(uintptr(*listenFD), "listener"))
	if err != nil {
		return err
	}
	var unready, hang, slow atomic.Bool
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, r *http.Request) {
		switch {
		case hang.Load():
			<-r.Context().Done()
		case slow.Load() || behaviour == "never":
			w.WriteHeader(http.StatusServiceUnavailable)
		case unready.Load():
			w.WriteHeader(http.StatusServiceUnavailable)
			fmt.Fprint(w, `{"error":{"code":"probe_failed","message":"the worker died"}}`)
		}
	})
	mux.HandleFunc("/score", func(w http.ResponseWriter, r *http.Request) {
		ms, _ := strconv.Atoi(r.URL.Query().Get("ms"))
		time.Sleep(time.Duration(ms) * time.Millisecond)
		fmt.Fprint(w, "scored")
	})
	mux.HandleFunc("/crash", func(http.ResponseWriter, *http.Request) {
		fmt.Fprintln(os.Stderr, "about to crash")
		os.Exit(7)
	})
	mux.HandleFunc("/unready", func(_ http.ResponseWriter, r *http.Request) { unready.Store(r.URL.Query().Get("off") == "") })
	mux.HandleFunc("/hang", func(http.ResponseWriter, *http.Request) { hang.Store(true) })
	mux.HandleFunc("/env", func(w http.ResponseWriter, _ *http.Request) { _ = json.NewEncoder(w).Encode(os.Environ()) })
	mux.HandleFunc("/pid", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, os.Getpid()) })
	mux.HandleFunc("/print", func(_ http.ResponseWriter, r *http.Request) { fmt.Println(r.URL.Query().Get("line")) })

	if behaviour == "leaves" { // children behind, one in a session of its own
		exe, err := os.Executable()
		if err != nil {
			return err
		}
		for _, attr := range []*syscall.SysProcAttr{nil, {Setsid: true}} {
			cmd := exec.Command(exe)
			cmd.Env = append(os.Environ(), roleVar+"=sleeper")
			cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
			cmd.SysProcAttr = attr
			if err := cmd.Start(); err != nil {
				return err
			}
		}
	}
	if behaviour == "late" {
		slow.Store(true)
		time.AfterFunc(400*time.Millisecond, func() { slow.Store(false) })
		time.Sleep(200 * time.Millisecond)
	}
	fmt.Println("fake runner ready")
	server := &http.Server{Handler: mux}
	term := make(chan os.Signal, 1)
	signal.Notify(term, syscall.SIGTERM)
	go func() {
		<-term
		if behaviour == "stubborn" {
			fmt.Println("asked to end, and will not")
			return
		}
		fmt.Println("draining")
		_ = server.Shutdown(context.Background())
		os.Exit(0)
	}()
	if err := server.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	select {} // Shutdown waits for what is in flight and exits
}

func roleSleeper([]string) error {
	signal.Ignore(syscall.SIGTERM, syscall.SIGHUP)
	time.Sleep(10 * time.Minute) // bounds what a broken test leaves behind
	return nil
}

// images of the fake runner, by behaviour.
var images = map[string]string{
	"works": clustertest.Image('a'), "works too": clustertest.Image('b'), "fails": clustertest.Image('c'), "missing": clustertest.Image('d'),
	"leaves": clustertest.Image('e'), "stubborn": clustertest.Image('f'), "late": clustertest.Image('0'), "never": clustertest.Image('1'),
}

type fakeLauncher struct{ dir string }

func (l fakeLauncher) Prepare(_ context.Context, spec cluster.FleetSpec) (local.Launch, error) {
	for behaviour, image := range images {
		switch {
		case image != spec.Image:
		case behaviour == "missing":
			return local.Launch{}, &rollout.Error{Reason: rollout.ReasonImageMissing, Message: "there is no such archive"}
		default:
			return local.Launch{Dir: l.dir, Args: []string{behaviour}, Env: []string{roleVar + "=runner", quickExit, "MODEL_VARIABLE=from the version"}}, nil
		}
	}
	return local.Launch{}, fmt.Errorf("no image %s", spec.Image)
}

func hostOptions(dir string) (local.HostOptions, error) {
	exe, err := os.Executable()
	return local.HostOptions{
		Dir: dir, RunnerCommand: []string{exe}, Launcher: fakeLauncher{dir}, Logger: discard(),
		PollStarting: 5 * time.Millisecond, PollReady: 20 * time.Millisecond, Propagation: 200 * time.Millisecond,
		RestartMin: 20 * time.Millisecond, RestartMax: 200 * time.Millisecond, DrainMargin: 500 * time.Millisecond,
	}, err
}

func newHost(t *testing.T, edit ...func(*local.HostOptions)) *local.Host {
	t.Helper()
	o, err := hostOptions(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range edit {
		e(&o)
	}
	h, err := local.NewHost(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		_ = h.Close(ctx)
		if left := marked(t, o.Dir); len(left) > 0 {
			t.Errorf("left behind: %v", left)
		}
	})
	return h
}

// marked are the processes that carry the mark of the last host of that directory.
func marked(t *testing.T, dir string) map[int]string {
	t.Helper()
	run, err := os.ReadFile(filepath.Join(dir, "locks", "host-run"))
	if err != nil {
		t.Fatal(err)
	}
	return withEnv(t, "SLUICE_REPLICA="+strings.TrimSpace(string(run))+"/")
}

func withEnv(t *testing.T, prefix string) map[int]string {
	t.Helper()
	out := map[int]string{}
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range dirs {
		env, err := os.ReadFile(d + "/environ")
		if err != nil {
			continue
		}
		for _, kv := range strings.Split(string(env), "\x00") {
			if strings.HasPrefix(kv, prefix) {
				pid, _ := strconv.Atoi(filepath.Base(d))
				cmd, _ := os.ReadFile(d + "/cmdline")
				out[pid] = strings.ReplaceAll(string(cmd), "\x00", " ")
			}
		}
	}
	return out
}

// zombies are the ended children of this process that nobody has waited for.
func zombies(t *testing.T) (out []string) {
	t.Helper()
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range stats {
		b, err := os.ReadFile(s)
		if err != nil {
			continue
		}
		f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
		if len(f) > 1 && f[0] == "Z" && f[1] == strconv.Itoa(os.Getpid()) {
			out = append(out, string(b))
		}
	}
	return out
}

// roleHost is a supervisor: args are the state directory, a behaviour and a number of replicas.
func roleHost(args []string) error {
	unlock, err := local.Lock(args[0])
	if err != nil {
		return err
	}
	defer func() { _ = unlock() }()
	o, err := hostOptions(args[0])
	if err != nil {
		return err
	}
	o.Logger = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError}))
	h, err := local.NewHost(o)
	if err != nil {
		return err
	}
	ln, err := local.ListenFleet(args[0])
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	served := make(chan error, 1)
	go func() { served <- local.Serve(ctx, ln, h) }()
	if err := h.Apply(ctx, cluster.FleetSpec{Key: v1, Image: images[args[1]], Revision: "r1"}); err != nil {
		return err
	}
	n, err := strconv.Atoi(args[2])
	if err != nil {
		return err
	}
	if err := h.Scale(ctx, v1, n); err != nil {
		return err
	}
	for {
		fs, err := h.Fleets(ctx)
		if err != nil {
			return err
		}
		if fs[0].Count(cluster.ReplicaReady) == n {
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	fmt.Println("serving")
	_, _ = io.Copy(io.Discard, os.Stdin) // until the test closes it
	closeCtx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if err := h.Close(closeCtx); err != nil {
		return err
	}
	stop()
	return <-served
}
