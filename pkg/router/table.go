package router

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sluice-dev/sluice/pkg/access"
	"github.com/sluice-dev/sluice/pkg/cluster"
	"github.com/sluice-dev/sluice/pkg/router/dispatch"
	"github.com/sluice-dev/sluice/pkg/telemetry"
	"github.com/sluice-dev/sluice/rollout"
)

// A table is where requests go. It never changes; a new one takes its place.
type table struct {
	routes map[rollout.Key]*route
}

// A route is one endpoint's entry. What is in flight, slots and queues live in
// its dispatch endpoint, which outlives the route.
type route struct {
	key      rollout.Key
	uid      string
	auth     rollout.AuthMode
	hashes   []access.Hash
	endpoint *dispatch.Endpoint
	meters   map[string]*telemetry.Version // "" for requests that got as far as no version
}

// The sources of a table.
const (
	sourceEndpoints = "endpoints"
	sourceFleets    = "fleets"
	sourceKeys      = "keys"
)

const (
	// coalesce is how long a change waits for company before the table is rebuilt.
	coalesce = 3 * time.Millisecond
	// resync reads everything again, in case a watch lost something.
	resync = 30 * time.Second
	// loadTimeout bounds one read of a source.
	loadTimeout = 5 * time.Second
	minRetry    = 100 * time.Millisecond
	maxRetry    = 2 * time.Second
)

// A builder reads the sources and makes tables of them. A source that cannot be read
// leaves everything as it was.
type builder struct {
	log       *slog.Logger
	scheduler *dispatch.Scheduler
	recorder  *telemetry.Recorder
	table     *atomic.Pointer[table]

	wake  chan struct{}
	ready chan struct{} // closed with the first table

	mu        sync.Mutex
	endpoints map[rollout.Key]*rollout.Endpoint
	fleets    map[rollout.Key]map[string]*cluster.FleetState
	hashes    map[rollout.Key][]access.Hash
	dirty     map[rollout.Key]bool
	up        map[string]bool // by source: the last read was good
	failing   map[string]bool // the last read was not
	loaded    map[string]bool // there was a good one

	// Only build uses these.
	good    map[rollout.Key]*rollout.Endpoint
	invalid map[rollout.Key]string // the resource version that was complained about
}

func newBuilder(log *slog.Logger, s *dispatch.Scheduler, r *telemetry.Recorder, t *atomic.Pointer[table]) *builder {
	return &builder{
		log: log, scheduler: s, recorder: r, table: t,
		wake: make(chan struct{}, 1), ready: make(chan struct{}),
		endpoints: map[rollout.Key]*rollout.Endpoint{}, fleets: map[rollout.Key]map[string]*cluster.FleetState{},
		hashes: map[rollout.Key][]access.Hash{}, dirty: map[rollout.Key]bool{},
		up:      map[string]bool{sourceEndpoints: false, sourceFleets: false, sourceKeys: false},
		failing: map[string]bool{}, loaded: map[string]bool{}, good: map[rollout.Key]*rollout.Endpoint{}, invalid: map[rollout.Key]string{},
	}
}

// run reads the sources and rebuilds the table until ctx ends.
func (b *builder) run(ctx context.Context, endpoints cluster.Reader, fleets cluster.FleetReader, keys cluster.KeyHashes) {
	var wg sync.WaitGroup
	wg.Go(func() {
		follow(ctx, b, sourceEndpoints, endpoints.Watch, func(ctx context.Context, changed []rollout.Key) error {
			return b.loadEndpoints(ctx, endpoints, changed)
		})
	})
	wg.Go(func() {
		follow(ctx, b, sourceFleets, fleets.WatchFleets, func(ctx context.Context, _ []struct{}) error {
			return b.loadFleets(ctx, fleets)
		})
	})
	wg.Go(func() {
		follow(ctx, b, sourceKeys, keys.WatchKeyHashes, func(ctx context.Context, _ []struct{}) error {
			return b.loadKeys(ctx, keys)
		})
	})
	wg.Go(func() {
		forget := time.NewTicker(time.Minute)
		defer forget.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-forget.C:
				b.retain()
			case <-b.wake:
				select {
				case <-ctx.Done():
					return
				case <-time.After(coalesce):
				}
				b.build()
			}
		}
	})
	wg.Wait()
}

// follow keeps one source loaded: all of it at first and now and then, what changed
// as its watch says. What could not be loaded is tried again after a pause, or when
// the watch has news.
func follow[T any](ctx context.Context, b *builder, source string, watch func(context.Context) (<-chan T, error), load func(context.Context, []T) error) {
	retry := minRetry
	for ctx.Err() == nil {
		watching, stop := context.WithCancel(ctx)
		ch, err := watch(watching)
		if err != nil {
			b.noted(source, err)
		} else {
			followOne(ctx, b, source, ch, load, &retry)
		}
		stop()
		sleep(ctx, retry) // the watch failed or ended
		retry = min(2*retry, maxRetry)
	}
}

// followOne follows one watch to its end.
func followOne[T any](ctx context.Context, b *builder, source string, ch <-chan T, load func(context.Context, []T) error, retry *time.Duration) {
	again := time.NewTicker(resync)
	defer again.Stop()
	failed := false
	for changed := []T(nil); ; {
		loading, done := context.WithTimeout(ctx, loadTimeout)
		err := load(loading, changed)
		done()
		if ctx.Err() != nil {
			return
		}
		b.noted(source, err)
		if failed = err != nil; failed {
			*retry = min(2**retry, maxRetry)
		} else {
			*retry = minRetry
		}

		var pause <-chan time.Time
		if failed {
			pause = time.After(*retry)
		}
		select {
		case <-ctx.Done():
			return
		case <-again.C:
			changed = nil
		case <-pause:
			changed = nil
		case v, ok := <-ch:
			if !ok {
				return
			}
			changed = append(changed[:0], v)
			for more := true; more; {
				select {
				case v, ok := <-ch:
					if !ok {
						return
					}
					changed = append(changed, v)
				default:
					more = false
				}
			}
			if failed { // what failed before is to be loaded, too
				changed = nil
				sleep(ctx, minRetry/10)
			}
		}
	}
}

func sleep(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// noted remembers whether a source can be read, and logs when that changes.
func (b *builder) noted(source string, err error) {
	b.mu.Lock()
	was := b.failing[source]
	b.failing[source] = err != nil
	b.up[source] = err == nil
	if err == nil {
		b.loaded[source] = true
	}
	b.mu.Unlock()
	switch {
	case err != nil && !was:
		b.log.Warn("source cannot be read; serving on with what is known", "source", source, "error", err)
	case err == nil && was:
		b.log.Info("source can be read again", "source", source)
	}
	if err == nil {
		b.ring()
	}
}

func (b *builder) ring() {
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

func (b *builder) loadEndpoints(ctx context.Context, from cluster.Reader, changed []rollout.Key) error {
	if changed == nil {
		list, err := from.List(ctx)
		if err != nil {
			return err
		}
		now := make(map[rollout.Key]*rollout.Endpoint, len(list))
		for _, e := range list {
			now[e.Key()] = e
		}
		b.mu.Lock()
		defer b.mu.Unlock()
		for key := range b.endpoints {
			if now[key] == nil {
				b.put(key, nil)
			}
		}
		for key, e := range now {
			b.put(key, e)
		}
		return nil
	}
	seen := map[rollout.Key]bool{}
	for _, key := range changed {
		if seen[key] {
			continue
		}
		seen[key] = true
		e, err := from.Get(ctx, key)
		if errors.Is(err, cluster.ErrNotFound) {
			e, err = nil, nil
		}
		if err != nil {
			return err
		}
		b.mu.Lock()
		b.put(key, e)
		b.mu.Unlock()
	}
	return nil
}

// put an endpoint as read, or nil for one that is gone.
func (b *builder) put(key rollout.Key, e *rollout.Endpoint) {
	was := b.endpoints[key]
	switch {
	case e == nil && was == nil:
		return
	case e == nil:
		delete(b.endpoints, key)
	case was != nil && was.Metadata.UID == e.Metadata.UID && e.Metadata.Generation != 0 && was.Metadata.Generation == e.Metadata.Generation:
		return // only its status changed
	default:
		b.endpoints[key] = e
	}
	b.dirty[key] = true
}

func (b *builder) loadFleets(ctx context.Context, from cluster.FleetReader) error {
	list, err := from.Fleets(ctx)
	if err != nil {
		return err
	}
	now := map[rollout.Key]map[string]*cluster.FleetState{}
	for i := range list {
		f := &list[i]
		if now[f.Key.Endpoint] == nil {
			now[f.Key.Endpoint] = map[string]*cluster.FleetState{}
		}
		now[f.Key.Endpoint][f.Key.Version] = f
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	markChanged(b.dirty, b.fleets, now, func(x, y map[string]*cluster.FleetState) bool { return reflect.DeepEqual(x, y) })
	b.fleets = now
	return nil
}

func (b *builder) loadKeys(ctx context.Context, from cluster.KeyHashes) error {
	now, err := from.KeyHashes(ctx)
	if err != nil {
		return err
	}
	now = maps.Clone(now)
	b.mu.Lock()
	defer b.mu.Unlock()
	markChanged(b.dirty, b.hashes, now, slices.Equal)
	b.hashes = now
	return nil
}

// markChanged marks the endpoints about which something is different.
func markChanged[V any](dirty map[rollout.Key]bool, was, now map[rollout.Key]V, equal func(V, V) bool) {
	for key, v := range now {
		if old, had := was[key]; !had || !equal(old, v) {
			dirty[key] = true
		}
	}
	for key := range was {
		if _, has := now[key]; !has {
			dirty[key] = true
		}
	}
}

// change is what build does with one endpoint.
type change struct {
	endpoint *rollout.Endpoint // nil: gone
	fleets   map[string]*cluster.FleetState
	hashes   []access.Hash
}

// build makes the next table from what changed.
func (b *builder) build() {
	b.mu.Lock()
	if len(b.loaded) < len(b.up) || len(b.dirty) == 0 && b.table.Load() != nil {
		b.mu.Unlock()
		return
	}
	changes := make(map[rollout.Key]change, len(b.dirty))
	for key := range b.dirty {
		changes[key] = change{b.endpoints[key], b.fleets[key], b.hashes[key]}
	}
	clear(b.dirty)
	b.mu.Unlock()

	was := b.table.Load()
	next := &table{routes: map[rollout.Key]*route{}}
	if was != nil {
		maps.Copy(next.routes, was.routes)
	}
	var ended []*dispatch.Endpoint
	for key, c := range changes {
		old := next.routes[key]
		r := b.route(key, old, c)
		if old != nil && (r == nil || r.endpoint != old.endpoint) {
			ended = append(ended, old.endpoint)
		}
		if r == nil {
			delete(next.routes, key)
			continue
		}
		next.routes[key] = r
	}
	b.table.Store(next)
	for _, e := range ended {
		e.Close() // after the swap: who still finds it is told that it is unknown
	}
	b.retain()
	if was == nil {
		b.log.Info("first table is loaded", "endpoints", len(next.routes))
		close(b.ready)
	}
}

// route for an endpoint, or nil if there is none: it is gone, or it has never been valid.
func (b *builder) route(key rollout.Key, old *route, c change) *route {
	e := c.endpoint
	if e == nil {
		delete(b.good, key)
		delete(b.invalid, key)
		return nil
	}
	auth := e.Spec.AuthMode()
	if err := cluster.ValidateEndpoint(e); err != nil {
		if b.invalid[key] != e.Metadata.ResourceVersion || old == nil {
			b.log.Error("endpoint is invalid; keeping its last valid state", "endpoint", key.String(), "resourceVersion", e.Metadata.ResourceVersion, "error", err)
		}
		b.invalid[key] = e.Metadata.ResourceVersion
		last := b.good[key]
		if last == nil {
			return nil
		}
		// What closes the endpoint holds at once, what would open it does not.
		if auth == rollout.AuthNone {
			auth = last.Spec.AuthMode()
		}
		e = last
	} else {
		delete(b.invalid, key)
		b.good[key] = e
	}
	r := &route{key: key, uid: e.Metadata.UID, auth: auth, hashes: c.hashes, meters: map[string]*telemetry.Version{}}
	if old != nil && old.uid == r.uid {
		r.endpoint = old.endpoint
	} else {
		r.endpoint = b.scheduler.Endpoint()
	}
	r.endpoint.Apply(dispatch.Config{Spec: &e.Spec, Fleets: c.fleets})
	r.meters[""] = b.recorder.Version(telemetry.VersionKey{Endpoint: key})
	for i := range e.Spec.Versions {
		name := e.Spec.Versions[i].Name
		r.meters[name] = b.recorder.Version(telemetry.VersionKey{Endpoint: key, Version: name})
	}
	return r
}

// retain tells the recorder which versions there are.
func (b *builder) retain() {
	live := map[telemetry.VersionKey]bool{{}: true}
	if t := b.table.Load(); t != nil {
		for key, r := range t.routes {
			for name := range r.meters {
				live[telemetry.VersionKey{Endpoint: key, Version: name}] = true
			}
		}
	}
	b.recorder.Retain(live)
}

// sources and whether each could be read the last time.
func (b *builder) sources() map[string]bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return maps.Clone(b.up)
}

// fleet of a version as read last; nil if there is none.
func (b *builder) fleet(key rollout.Key, version string) *cluster.FleetState {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.fleets[key][version]
}
