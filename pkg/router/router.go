// Package router is the data path: it lets requests in, has pkg/router/dispatch choose
// version and replica, moves the bytes, and measures.
//
// It needs nothing but its last good table: with the store, the fleets or the keys
// out of reach it serves on with what it knew last.
package router

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/sluice-dev/sluice/pkg/cluster"
	"github.com/sluice-dev/sluice/pkg/router/dispatch"
	"github.com/sluice-dev/sluice/pkg/router/upstream"
	"github.com/sluice-dev/sluice/pkg/telemetry"
	"github.com/sluice-dev/sluice/rollout"
)

// Options of a router.
type Options struct {
	// Listener or else Addr for scoring requests; AdminListener or else AdminAddr for
	// metrics, health and reports. The router closes them.
	Listener      net.Listener
	Addr          string
	AdminListener net.Listener
	AdminAddr     string
	// Namespace that the short path resolves in.
	Namespace string

	Reader    cluster.Reader
	Fleets    cluster.FleetReader
	KeyHashes cluster.KeyHashes
	Logger    *slog.Logger

	// Background tasks run beside the router, from before the first request until after
	// the last; one that ends with an error ends the router.
	Background []func(ctx context.Context, r *Router) error

	// DrainTime is how long, once ctx has ended, new requests are still served as before, each with
	// its connection closed after the answer: clients that keep connections open then go to another router.
	// While some are left, which are idle, it lasts up to four times as long: a request that is sent into a connection just as it is
	// closed is lost, and the longer one has been idle the less likely that is. 0 is none.
	DrainTime time.Duration

	// Collectors of what the background tasks count, for /metrics.
	Collectors []prometheus.Collector

	// ShutdownTimeout bounds how long requests in flight are waited for at the end; 0 means 30 s.
	ShutdownTimeout time.Duration
	// StartTimeout is how long connections wait in the listener for the first table; then
	// they are told that nothing is ready. 0 means 5 s.
	StartTimeout time.Duration
	// MaxConnections from clients at a time; more wait. 0 means 16,384.
	MaxConnections int
	// MaxQueue is how many requests may wait for one version; 0 means dispatch.DefaultMaxQueue.
	MaxQueue int

	// uploads and downloads are always the defaults outside of tests.
	uploads   uploads
	downloads downloads
}

// Limits against clients that are slow or many.
const (
	headerTimeout   = 10 * time.Second
	clientIdle      = 2 * time.Minute
	maxHeaderBytes  = 64 << 10
	sweepPeriod     = 15 * time.Second
	defaultShutdown = 30 * time.Second
	defaultStart    = 5 * time.Second
	defaultMaxConns = 16 << 10
)

// Router routes. It is the telemetry.Reporter and the telemetry.Source of its process.
type Router struct {
	buffers
	namespace string
	log       *slog.Logger
	opts      Options
	epoch     string
	scheduler *dispatch.Scheduler
	recorder  *telemetry.Recorder
	builder   *builder
	table     atomic.Pointer[table]
	unknown   *telemetry.Version
	exchanges sync.Pool
	draining  atomic.Bool
	// connections from clients that are open.
	connections atomic.Int64

	mu       sync.Mutex
	replicas map[*upstream.Replica]struct{}
}

// New router that has no table yet; Run gives it one.
func New(o Options) (*Router, error) {
	if o.Reader == nil || o.Fleets == nil || o.KeyHashes == nil {
		return nil, errors.New("make router: it needs a reader of endpoints, of fleets and of key hashes")
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.ShutdownTimeout <= 0 {
		o.ShutdownTimeout = defaultShutdown
	}
	if o.StartTimeout <= 0 {
		o.StartTimeout = defaultStart
	}
	if o.MaxConnections <= 0 {
		o.MaxConnections = defaultMaxConns
	}
	if o.uploads == (uploads{}) {
		o.uploads = defaultUploads()
	}
	if o.downloads == (downloads{}) {
		o.downloads = defaultDownloads()
	}
	rt := &Router{
		namespace: o.Namespace, opts: o, epoch: rand.Text(),
		recorder: telemetry.NewRecorder(), replicas: map[*upstream.Replica]struct{}{},
	}
	rt.log = slog.New(newThrottle(o.Logger.Handler(), maxWarnings))
	rt.scheduler = dispatch.New(dispatch.Options{Open: rt.open, MaxQueue: o.MaxQueue})
	rt.unknown = rt.recorder.Version(telemetry.VersionKey{})
	rt.builder = newBuilder(o.Logger, rt.scheduler, rt.recorder, &rt.table)
	return rt, nil
}

// Run makes a router and runs it until ctx ends.
func Run(ctx context.Context, o Options) error {
	rt, err := New(o)
	if err != nil {
		return err
	}
	return rt.Run(ctx)
}

// open the connections to a replica.
func (rt *Router) open(address string) dispatch.Backend {
	u := upstream.New(address, func(u *upstream.Replica) {
		rt.mu.Lock()
		defer rt.mu.Unlock()
		delete(rt.replicas, u)
	})
	rt.mu.Lock()
	defer rt.mu.Unlock()
	rt.replicas[u] = struct{}{}
	return u
}

// sweep idle connections now and then.
func (rt *Router) sweep(ctx context.Context) {
	tick := time.NewTicker(sweepPeriod)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		rt.mu.Lock()
		all := make([]*upstream.Replica, 0, len(rt.replicas))
		for u := range rt.replicas {
			all = append(all, u)
		}
		rt.mu.Unlock()
		for _, u := range all {
			u.Sweep()
		}
	}
}

// Run serves until ctx ends, then lets requests in flight end, within bounds. It
// returns nil after that, and an error if it could not serve or a background task failed.
func (rt *Router) Run(ctx context.Context) (err error) {
	o := &rt.opts
	ln, err := listen(o.Listener, o.Addr)
	if err != nil {
		return fmt.Errorf("run router: %w", err)
	}
	defer func() { _ = ln.Close() }()
	adminLn, err := listen(o.AdminListener, o.AdminAddr)
	if err != nil {
		return fmt.Errorf("run router: admin: %w", err)
	}
	defer func() { _ = adminLn.Close() }()

	// What serving rests on ends after it, in the reverse order of its start.
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	base := context.WithoutCancel(ctx)
	var stops []func()
	defer func() {
		for _, stop := range slices.Backward(stops) {
			stop()
		}
	}()
	run := func(f func(context.Context)) {
		own, stop := context.WithCancel(base)
		var wg sync.WaitGroup
		wg.Go(func() { f(own) })
		stops = append(stops, func() { stop(); wg.Wait() })
	}
	admin := rt.server(rt.admin())
	run(func(context.Context) {
		if err := admin.Serve(adminLn); !errors.Is(err, http.ErrServerClosed) {
			cancel(fmt.Errorf("serve admin: %w", err))
		}
	})
	stops = append(stops, func() { _ = admin.Close() })
	run(rt.recorder.Run)
	run(rt.sweep)
	run(func(ctx context.Context) { rt.builder.run(ctx, o.Reader, o.Fleets, o.KeyHashes) })
	for _, task := range o.Background {
		run(func(ctx context.Context) {
			if err := task(ctx, rt); err != nil && ctx.Err() == nil {
				cancel(fmt.Errorf("background task: %w", err))
			}
		})
	}

	// New connections wait in the listener for the first table.
	select {
	case <-ctx.Done():
	case <-rt.builder.ready:
	case <-time.After(o.StartTimeout):
		rt.log.Warn("no table yet; answering that nothing is ready")
	}
	data := rt.server(rt)
	data.ConnState = func(_ net.Conn, s http.ConnState) {
		switch s {
		case http.StateNew:
			rt.connections.Add(1)
		case http.StateClosed, http.StateHijacked:
			rt.connections.Add(-1)
		case http.StateActive, http.StateIdle:
		}
	}
	run(func(context.Context) {
		if err := data.Serve(limit(ln, o.MaxConnections)); !errors.Is(err, http.ErrServerClosed) {
			cancel(fmt.Errorf("serve: %w", err))
		}
	})
	rt.log.Info("router serves", "address", ln.Addr().String(), "admin", adminLn.Addr().String(), "epoch", rt.epoch)
	<-ctx.Done()

	rt.draining.Store(true)
	if errors.Is(context.Cause(ctx), context.Canceled) { // not after a failure
		time.Sleep(o.DrainTime)
		for end := time.Now().Add(3 * o.DrainTime); rt.connections.Load() > 0 && time.Now().Before(end); {
			time.Sleep(o.DrainTime / 50)
		}
	}
	bounded, done := context.WithTimeout(base, o.ShutdownTimeout)
	defer done()
	if err := data.Shutdown(bounded); err != nil {
		rt.log.Warn("requests in flight did not end in time and are cut off", "error", err)
		_ = data.Close()
	}
	if cause := context.Cause(ctx); !errors.Is(cause, context.Canceled) && !errors.Is(cause, context.DeadlineExceeded) {
		return fmt.Errorf("run router: %w", cause)
	}
	return nil
}

func listen(ln net.Listener, addr string) (net.Listener, error) {
	if ln != nil {
		return ln, nil
	}
	return net.Listen("tcp", addr)
}

func (rt *Router) server(h http.Handler) *http.Server {
	return &http.Server{
		Handler:           h,
		ReadHeaderTimeout: headerTimeout,
		IdleTimeout:       clientIdle,
		MaxHeaderBytes:    maxHeaderBytes,
		ErrorLog:          slog.NewLogLogger(rt.log.Handler(), slog.LevelDebug),
		// OPTIONS * is no business of a router.
		DisableGeneralOptionsHandler: true,
	}
}

// admin serves metrics, health and reports.
func (rt *Router) admin() http.Handler {
	registry := prometheus.NewRegistry()
	registry.MustRegister(
		telemetry.NewCollector(rt.recorder, rt),
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	)
	registry.MustRegister(rt.opts.Collectors...)
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{MaxRequestsInFlight: 4}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("ok\n")) })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		switch {
		case rt.draining.Load():
			http.Error(w, "shutting down", http.StatusServiceUnavailable)
		case rt.table.Load() == nil:
			http.Error(w, "no table yet", http.StatusServiceUnavailable)
		default:
			_, _ = w.Write([]byte("ok\n"))
		}
	})
	mux.Handle("GET "+telemetry.ReportPath, telemetry.ReportHandler(rt))
	mux.Handle("GET "+telemetry.QueryPath, telemetry.QueryHandler(rt))
	return mux
}

// meter of a version of a route.
func (rt *Router) meter(r *route, version string) *telemetry.Version {
	if r == nil {
		return rt.unknown
	}
	if m := r.meters[version]; m != nil {
		return m
	}
	// The version joined after the request had found its route.
	return rt.recorder.Version(telemetry.VersionKey{Endpoint: r.key, Version: version})
}

// routes in the order of their keys.
func (rt *Router) routes() []*route {
	t := rt.table.Load()
	if t == nil {
		return nil
	}
	out := make([]*route, 0, len(t.routes))
	for _, r := range t.routes {
		out = append(out, r)
	}
	slices.SortFunc(out, func(a, b *route) int { return strings.Compare(a.key.String(), b.key.String()) })
	return out
}

// Report implements telemetry.Reporter.
func (rt *Router) Report(context.Context) (telemetry.Report, error) {
	out := telemetry.Report{
		Epoch: rt.epoch, Elapsed: rt.recorder.Elapsed(), Router: rt.recorder.Router(),
		Versions: []telemetry.VersionReport{}, Evidence: []telemetry.EvidenceReport{},
	}
	for _, r := range rt.routes() {
		for _, s := range r.endpoint.Stats() {
			v := telemetry.VersionReport{
				Endpoint: r.key, Version: s.Version,
				InFlightSeconds: s.InFlightSeconds, QueuedSeconds: s.QueuedSeconds,
				InFlight: s.InFlight, Queued: s.Queued,
				Refused: s.Refused, ServiceSeconds: s.Service.Seconds(), AppliedPercent: s.Applied,
			}
			m := rt.meter(r, s.Version)
			v.Requests, v.Failed, v.Bad = m.Requests()
			v.P50Seconds, v.P99Seconds = m.Recent()
			out.Versions = append(out.Versions, v)
		}
		for _, e := range r.endpoint.Evidence() {
			out.Evidence = append(out.Evidence, telemetry.EvidenceReport{Endpoint: r.key, Treatment: e.Treatment, Key: e.Key, Saved: e.Saved})
		}
	}
	return out, nil
}

// Query implements telemetry.Source.
func (rt *Router) Query(ctx context.Context, endpoint rollout.Key, version string, window time.Duration) (map[string]telemetry.Sample, error) {
	return rt.recorder.Query(ctx, endpoint, version, window)
}

// Gauges implements telemetry.Live.
func (rt *Router) Gauges() []telemetry.Gauges {
	var out []telemetry.Gauges
	for _, r := range rt.routes() {
		for _, s := range r.endpoint.Stats() {
			g := telemetry.Gauges{
				VersionKey: telemetry.VersionKey{Endpoint: r.key, Version: s.Version},
				InFlight:   s.InFlight, Queued: s.Queued, Share: s.Applied,
				Fallbacks: s.Fallbacks, Refusals: s.GateRefusals, Desired: -1,
			}
			if f := rt.builder.fleet(r.key, s.Version); f != nil {
				g.Desired = f.Desired
				g.Replicas = map[string]int{}
				for _, state := range []cluster.ReplicaState{
					cluster.ReplicaStarting, cluster.ReplicaReady, cluster.ReplicaUnready, cluster.ReplicaTerminating, cluster.ReplicaFailed,
				} {
					g.Replicas[string(state)] = f.Count(state)
				}
			}
			out = append(out, g)
		}
	}
	return out
}

// LogEvidence implements telemetry.Live.
func (rt *Router) LogEvidence() []telemetry.LogEvidence {
	var out []telemetry.LogEvidence
	for _, r := range rt.routes() {
		for _, e := range r.endpoint.Evidence() {
			for _, x := range []struct {
				test  rollout.Reason
				value float64
			}{{rollout.ReasonWorse, e.LogWorse}, {rollout.ReasonNotWorse, e.LogNotWorse}, {rollout.ReasonBounded, e.LogBounded}} {
				out = append(out, telemetry.LogEvidence{Endpoint: r.key, Treatment: e.Treatment, Test: string(x.test), Value: x.value})
			}
		}
	}
	return out
}

// Sources implements telemetry.Live.
func (rt *Router) Sources() map[string]bool { return rt.builder.sources() }
