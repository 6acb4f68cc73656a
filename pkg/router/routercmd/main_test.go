package routercmd

import (
	"bytes"
	"context"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sluice-dev/sluice/pkg/autoscale/self"
	"github.com/sluice-dev/sluice/pkg/cluster/local"
	"github.com/sluice-dev/sluice/pkg/process"
	"github.com/sluice-dev/sluice/pkg/telemetry"
	"github.com/sluice-dev/sluice/rollout"
)

func TestParse(t *testing.T) {
	c, err := parse([]string{"--namespace", "models", "--listen-fd=3"}, []string{
		"SLUICE_NAMESPACE=other", "SLUICE_ROUTER_ADDRESS=127.0.0.1:1234", "SLUICE_AUTOSCALE=false", "HOME=/home/x", "SLUICE_GRACE=3s",
	})
	if err != nil {
		t.Fatal(err)
	}
	want := config{
		address: "127.0.0.1:1234", listenFD: 3, admin: "127.0.0.1:9090", adminFD: -1, lifelineFD: -1,
		state: "/home/x/.local/state/sluice", namespace: "models", grace: 3 * time.Second, connections: 16 << 10,
		target: process.TargetLocal, self: selfConfig{settings: self.Defaults()},
	}
	if c != want {
		t.Errorf("got %+v, want %+v", c, want)
	}
	if c, err := parse(nil, []string{"XDG_STATE_HOME=/x"}); err != nil || c.state != "/x/sluice" || !c.autoscale {
		t.Errorf("%+v, %v", c, err)
	}
	for _, bad := range [][]string{{"--nope"}, {"extra"}, {"--max-connections=0"}, {"--grace=soon"}} {
		if _, err := parse(bad, []string{"HOME=/home/x"}); err == nil {
			t.Errorf("%v was accepted", bad)
		}
	}
	if _, err := parse(nil, []string{"HOME=/x", "SLUICE_GRACE=soon"}); err == nil || !strings.Contains(err.Error(), "SLUICE_GRACE") {
		t.Errorf("got %v", err)
	}
	if _, err := parse(nil, nil); err == nil {
		t.Error("no state directory, and no complaint")
	}
}

func TestParseSelf(t *testing.T) {
	in := []string{"--target=kubernetes", "--self-scale", "--self-deployment=router"}
	c, err := parse(append(in, "--self-cpu-step=0.5", "--self-cpu-min=250m", "--self-cpu-max=3", "--self-cpu-low=12.5%", "--self-pods-max=4", "--self-calm=1m"), nil)
	want := self.Defaults()
	want.CPUStep, want.CPUMin, want.CPUMax, want.CPULow, want.PodsMax, want.Calm = 500, 250, 3000, 0.125, 4, time.Minute
	if err != nil || c.self != (selfConfig{on: true, deployment: "router", settings: want}) {
		t.Errorf("%+v, %v", c.self, err)
	}
	for _, bad := range [][]string{
		{"--self-scale", "--self-deployment=router", "--state=/x"}, {"--target=kubernetes", "--self-scale"},
		append(in, "--self-cpu-step=-1"), append(in, "--self-cpu-low=0.3"), append(in, "--self-pods-min=0"),
	} {
		if _, err := parse(bad, nil); err == nil {
			t.Errorf("%v was accepted", bad)
		}
	}
}

// TestLargeRouters: a Deployment whose pods begin with more than the most is scaled in pods alone.
func TestLargeRouters(t *testing.T) {
	c, err := parse([]string{"--target=kubernetes", "--self-scale", "--self-deployment=router", "--self-cpu-min=8"}, nil)
	if err != nil || c.self.settings.CPUMax != 8000 {
		t.Errorf("%+v, %v", c.self, err)
	}
}

func TestUsage(t *testing.T) {
	var out, errs bytes.Buffer
	if code := Main(t.Context(), []string{"--help"}, nil, &out, &errs); code != exitOK || !strings.Contains(out.String(), "lifeline-fd") || errs.Len() > 0 {
		t.Errorf("exit code %d, %q, %q", code, out.String(), errs.String())
	}
	if code := Main(t.Context(), []string{"--nope"}, nil, &out, &errs); code != exitUsage || !strings.Contains(errs.String(), "nope") {
		t.Errorf("exit code %d, %q", code, errs.String())
	}
	file := t.TempDir() + "/file"
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if code := Main(t.Context(), []string{"--state", file}, nil, &out, &errs); code != exitFailed {
		t.Errorf("a file as the state directory: exit code %d", code)
	}
}

// inherit gives a descriptor of its own, as a child process gets it.
func inherit(t *testing.T, f interface{ Fd() uintptr }) string {
	t.Helper()
	fd, err := syscall.Dup(int(f.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	return strconv.Itoa(fd)
}

func socket(t *testing.T) (addr, fd string) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ln.Close() })
	f, err := ln.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	return ln.Addr().String(), inherit(t, f)
}

// The program with inherited sockets, a state directory and a supervisor without replicas.
func TestMainServesAndFollowsItsLifeline(t *testing.T) {
	dir, log := t.TempDir(), slog.New(slog.DiscardHandler)
	store, err := local.NewStore(dir, log)
	if err != nil {
		t.Fatal(err)
	}
	fraud := rollout.Key{Namespace: "models", Name: "fraud"}
	_, err = store.Create(t.Context(), &rollout.Endpoint{
		APIVersion: rollout.APIVersion, Kind: rollout.Kind, Metadata: rollout.Metadata{Namespace: fraud.Namespace, Name: fraud.Name},
		Spec: rollout.Spec{Versions: []rollout.Version{{Name: "a", Type: rollout.Control, Image: "a@sha256:" + strings.Repeat("0", 64)}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	allKeys, err := local.NewKeys(dir, log)
	if err != nil {
		t.Fatal(err)
	}
	keys, err := allKeys.EnsureKeys(t.Context(), fraud)
	if err != nil {
		t.Fatal(err)
	}
	host, err := local.NewHost(local.HostOptions{Dir: dir, RunnerCommand: []string{"false"}, Logger: log})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = host.Close(context.Background()) }()
	fleetSocket, err := local.ListenFleet(dir)
	if err != nil {
		t.Fatal(err)
	}
	serving, stopServing := context.WithCancel(context.Background())
	served := make(chan struct{})
	go func() { defer close(served); _ = local.Serve(serving, fleetSocket, host) }()
	defer func() { stopServing(); <-served }()

	lifeline, holder, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _, _ = lifeline.Close(), holder.Close() }()
	addr, fd := socket(t)
	admin, adminFD := socket(t)
	var logs bytes.Buffer
	code := make(chan int, 1)
	go func() {
		code <- Main(context.Background(), []string{
			"--listen-fd=" + fd, "--admin-listen-fd=" + adminFD, "--lifeline-fd=" + inherit(t, lifeline), "--state", dir, "--namespace=models",
		}, nil, &bytes.Buffer{}, &logs)
	}()
	get := func(url, key string) int {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
		if err != nil {
			t.Fatal(err)
		}
		if key != "" {
			r.Header.Set("Authorization", "Bearer "+key)
		}
		r.Close = true
		resp, err := http.DefaultClient.Do(r)
		if err != nil {
			return 0
		}
		_ = resp.Body.Close()
		return resp.StatusCode
	}
	for end := time.Now().Add(15 * time.Second); get("http://"+admin+"/readyz", "") != 200; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			_ = holder.Close()
			t.Fatalf("never ready; exit code %d, log %s", <-code, logs.String())
		}
	}
	url := "http://" + addr + "/api/v1/service/fraud/score"
	if got := get(url, ""); got != 401 {
		t.Errorf("without a key: %d", got)
	}
	if got := get(url, keys.Primary); got != 503 {
		t.Errorf("without replicas: %d", got)
	}
	report, err := telemetry.NewHTTPReporter("http://" + admin).Report(t.Context())
	if err != nil || len(report.Versions) != 1 || report.Versions[0].Endpoint != fraud || report.Versions[0].Refused != 1 {
		t.Errorf("%+v, %v", report, err)
	}
	_ = holder.Close()
	select {
	case got := <-code:
		if got != exitOK {
			t.Errorf("exit code %d, log %s", got, logs.String())
		}
	case <-time.After(15 * time.Second):
		t.Fatal("it lives on without its supervisor")
	}
	if strings.Contains(logs.String(), keys.Primary) {
		t.Error("a key was logged")
	}
}
