package router

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sluice-dev/sluice/pkg/access"
	"github.com/sluice-dev/sluice/pkg/cluster"
	"github.com/sluice-dev/sluice/pkg/cluster/memory"
	"github.com/sluice-dev/sluice/pkg/telemetry"
	"github.com/sluice-dev/sluice/rollout"
)

var fraud = rollout.Key{Namespace: "models", Name: "fraud"}

const digest = "@sha256:0000000000000000000000000000000000000000000000000000000000000000"

// fleets are what a test says they are.
type fleets struct {
	mu      sync.Mutex
	states  map[cluster.FleetKey]cluster.FleetState
	failure error
	bells   []chan struct{}
}

func (f *fleets) Fleets(context.Context) ([]cluster.FleetState, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.failure != nil {
		return nil, f.failure
	}
	var out []cluster.FleetState
	for _, s := range f.states {
		s.Replicas = slices.Clone(s.Replicas)
		out = append(out, s)
	}
	return out, nil
}

func (f *fleets) WatchFleets(ctx context.Context) (<-chan struct{}, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	ch := make(chan struct{}, 1)
	ch <- struct{}{}
	f.bells = append(f.bells, ch)
	context.AfterFunc(ctx, func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.bells = slices.DeleteFunc(f.bells, func(c chan struct{}) bool { return c == ch })
		close(ch)
	})
	return ch, nil
}

func (f *fleets) change(edit func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	edit()
	for _, ch := range f.bells {
		select {
		case ch <- struct{}{}:
		default:
		}
	}
}

// set the replicas of a version of fraud, all ready, at these addresses.
func (f *fleets) set(version string, addresses ...string) {
	f.change(func() {
		key := cluster.FleetKey{Endpoint: fraud, Version: version}
		s := cluster.FleetState{Key: key, Desired: len(addresses)}
		for _, a := range addresses {
			s.Replicas = append(s.Replicas, cluster.Replica{Name: version + "-" + a, Address: a, State: cluster.ReplicaReady})
		}
		f.states[key] = s
	})
}

func (f *fleets) state(version string, state cluster.ReplicaState) {
	f.change(func() {
		key := cluster.FleetKey{Endpoint: fraud, Version: version}
		s := f.states[key]
		s.Replicas = slices.Clone(s.Replicas)
		for i := range s.Replicas {
			s.Replicas[i].State = state
		}
		f.states[key] = s
	})
}

type harness struct {
	t      testing.TB
	store  *memory.Store
	fleets *fleets
	keys   *memory.Keys
	key    string
	router *Router
	addr   string
	url    string
	admin  string
	client *http.Client
	logs   *logBuffer
	stop   func() error
}

// logBuffer keeps what was logged.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func version(name string, role rollout.Role, claim rollout.Percent) rollout.Version {
	return rollout.Version{Name: name, Type: role, TrafficPercentile: claim, Image: name + digest}
}

func start(t testing.TB, edit func(*Options), versions ...rollout.Version) *harness {
	t.Helper()
	h := &harness{
		t: t, store: memory.NewStore(), keys: memory.NewKeys(), logs: &logBuffer{},
		fleets: &fleets{states: map[cluster.FleetKey]cluster.FleetState{}},
		client: &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{DisableCompression: true, ExpectContinueTimeout: 10 * time.Second, MaxIdleConnsPerHost: 64}},
	}
	keys, err := h.keys.EnsureKeys(t.Context(), fraud)
	if err != nil {
		t.Fatal(err)
	}
	h.key = keys.Primary
	if len(versions) > 0 {
		h.create(fraud, versions...)
	}
	ln, admin := listenLoopback(t), listenLoopback(t)
	o := Options{
		Listener: ln, AdminListener: admin, Namespace: "models",
		Reader: h.store, Fleets: h.fleets, KeyHashes: h.keys, Logger: slog.New(slog.NewTextHandler(h.logs, nil)),
		ShutdownTimeout: 5 * time.Second,
	}
	if edit != nil {
		edit(&o)
	}
	if h.router, err = New(o); err != nil {
		t.Fatal(err)
	}
	h.addr = ln.Addr().String()
	h.url, h.admin = "http://"+h.addr, "http://"+admin.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- h.router.Run(ctx) }()
	h.stop = sync.OnceValue(func() error {
		cancel()
		return <-ended
	})
	t.Cleanup(func() {
		h.client.CloseIdleConnections()
		if err := h.stop(); err != nil {
			t.Errorf("router ended: %v", err)
		}
		if t.Failed() {
			t.Log(h.logs.String())
		}
	})
	return h
}

func listenLoopback(t testing.TB) net.Listener {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return ln
}

func (h *harness) create(key rollout.Key, versions ...rollout.Version) {
	h.t.Helper()
	_, err := h.store.Create(context.Background(), &rollout.Endpoint{
		APIVersion: rollout.APIVersion, Kind: rollout.Kind,
		Metadata: rollout.Metadata{Namespace: key.Namespace, Name: key.Name},
		Spec:     rollout.Spec{Versions: versions},
	})
	if err != nil {
		h.t.Fatal(err)
	}
}

// edit the endpoint's spec.
func (h *harness) edit(change func(*rollout.Spec)) {
	h.t.Helper()
	e, err := h.store.Get(context.Background(), fraud)
	if err == nil {
		change(&e.Spec)
		_, err = h.store.Update(context.Background(), e)
	}
	if err != nil {
		h.t.Fatal(err)
	}
}

// eventually waits until ok.
func (h *harness) eventually(what string, ok func() bool) {
	h.t.Helper()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(2 * time.Millisecond) {
		if ok() {
			return
		}
		if time.Now().After(end) {
			h.t.Fatalf("never: %s", what)
		}
	}
}

// stats of a version as the router reports it.
func (h *harness) stats(version string) telemetry.VersionReport {
	h.t.Helper()
	report, err := h.router.Report(context.Background())
	if err != nil {
		h.t.Fatal(err)
	}
	for _, v := range report.Versions {
		if v.Endpoint == fraud && v.Version == version {
			return v
		}
	}
	return telemetry.VersionReport{}
}

// serving waits until the table has these numbers of replicas that can take requests.
func (h *harness) serving(want map[string]int) {
	h.t.Helper()
	h.eventually(fmt.Sprintf("serving %v", want), func() bool {
		t := h.router.table.Load()
		if t == nil || t.routes[fraud] == nil {
			return false
		}
		got := map[string]int{}
		for _, s := range t.routes[fraud].endpoint.Stats() {
			got[s.Version] = s.Serving
		}
		for name, n := range want {
			if got[name] != n {
				return false
			}
		}
		return true
	})
}

type answer struct {
	status  int
	header  http.Header
	body    string
	trailer http.Header
}

// code of an error answer.
func (a answer) code() string {
	var e struct {
		Error struct{ Code, Message, RequestID string }
	}
	if err := json.Unmarshal([]byte(a.body), &e); err != nil {
		return "not an error: " + a.body
	}
	return e.Error.Code
}

const scoreURL = "/api/v1/service/fraud/score"

func (h *harness) request(method, path string, body io.Reader, header ...string) *http.Request {
	h.t.Helper()
	r, err := http.NewRequestWithContext(h.t.Context(), method, h.url+path, body)
	if err != nil {
		h.t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+h.key)
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	return r
}

func (h *harness) try(r *http.Request) (answer, error) {
	resp, err := h.client.Do(r)
	if err != nil {
		return answer{}, err
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	return answer{resp.StatusCode, resp.Header, string(b), resp.Trailer}, err
}

func (h *harness) do(method, path, body string, header ...string) answer {
	h.t.Helper()
	a, err := h.try(h.request(method, path, strings.NewReader(body), header...))
	if err != nil {
		h.t.Fatalf("%s %s: %v", method, path, err)
	}
	return a
}

func (h *harness) score(body string, header ...string) answer {
	h.t.Helper()
	return h.do("POST", scoreURL, body, header...)
}

// gate is a replica: it admits so many at a time and refuses more, as the runner's does.
type gate struct {
	*httptest.Server
	slots    int64
	inFlight atomic.Int64
	served   atomic.Int64
	refused  atomic.Int64
	most     atomic.Int64
}

func newGate(t testing.TB, slots int, h http.HandlerFunc) *gate {
	g := &gate{slots: int64(slots)}
	g.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n := g.inFlight.Add(1)
		defer g.inFlight.Add(-1)
		if n > g.slots {
			g.refused.Add(1)
			w.Header().Set("Sluice-Refused", "busy")
			http.Error(w, `{"error":{"code":"busy"}}`, http.StatusServiceUnavailable)
			return
		}
		for {
			m := g.most.Load()
			if n <= m || g.most.CompareAndSwap(m, n) {
				break
			}
		}
		g.served.Add(1)
		h(w, r)
	}))
	t.Cleanup(func() {
		g.CloseClientConnections()
		g.Close()
	})
	return g
}

func (g *gate) addr() string { return g.Listener.Addr().String() }

// echo answers with the body.
func echo(w http.ResponseWriter, r *http.Request) {
	b, err := io.ReadAll(r.Body)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(b)
}

// says answers with a text.
func says(text string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		_, _ = io.WriteString(w, text)
	}
}

// rawReplica runs one function per connection.
func rawReplica(t testing.TB, serve func(c net.Conn, br *bufio.Reader)) string {
	ln := listenLoopback(t)
	var wg sync.WaitGroup
	var mu sync.Mutex
	var conns []net.Conn
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			conns = append(conns, c)
			mu.Unlock()
			wg.Go(func() {
				defer func() { _ = c.Close() }()
				serve(c, bufio.NewReader(c))
			})
		}
	})
	t.Cleanup(func() {
		_ = ln.Close()
		mu.Lock()
		for _, c := range conns {
			_ = c.Close()
		}
		mu.Unlock()
		wg.Wait()
	})
	return ln.Addr().String()
}

// slam closes a connection with a reset.
func slam(c net.Conn) {
	_ = c.(*net.TCPConn).SetLinger(0)
	_ = c.Close()
}

// raw sends text to the router and returns all that comes back until it closes, or a second passed.
func (h *harness) raw(text string) string {
	h.t.Helper()
	c, err := net.Dial("tcp", h.addr)
	if err != nil {
		h.t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(time.Second))
	if _, err := io.WriteString(c, text); err != nil && !errors.Is(err, net.ErrClosed) {
		h.t.Logf("write: %v", err)
	}
	b, _ := io.ReadAll(c)
	return string(b)
}

func one(t testing.TB, handler http.HandlerFunc, edit ...func(*rollout.Version)) (*harness, *gate) {
	t.Helper()
	v := version("a", rollout.Control, 0)
	for _, e := range edit {
		e(&v)
	}
	h := start(t, nil, v)
	g := newGate(t, v.Slots(), handler)
	h.fleets.set("a", g.addr())
	h.serving(map[string]int{"a": 1})
	return h, g
}

func newKey(h *harness) access.Keys {
	h.t.Helper()
	k, err := h.keys.Keys(context.Background(), fraud)
	if err != nil {
		h.t.Fatal(err)
	}
	return k
}
