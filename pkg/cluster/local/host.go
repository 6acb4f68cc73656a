package local

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/sluice-dev/sluice/pkg/cluster"
	"github.com/sluice-dev/sluice/pkg/cluster/internal/roll"
	"github.com/sluice-dev/sluice/pkg/cluster/internal/watch"
	"github.com/sluice-dev/sluice/rollout"
)

// HostOptions of NewHost. The zero value of a field means its default.
type HostOptions struct {
	// Dir is the state directory.
	Dir string
	// RunnerCommand begins the command line of every replica; flags and arguments of
	// pkg/runner follow.
	RunnerCommand []string
	// Launcher makes versions ready to run; default: the projects in Dir's archives.
	Launcher Launcher
	Logger   *slog.Logger
	// Env of which replicas get a few harmless variables; default the process's own.
	Env []string
	// MaxReplicas of all fleets together; default 256. More than that wait.
	MaxReplicas int

	// RestartMin and RestartMax bound the pause before a process is started again, which
	// doubles each time; default 200 ms and 10 s, both ± 25 %. The first restart of a replica that
	// had been ready comes at once. RestartReset (1 min) of health forgets what was before.
	RestartMin, RestartMax, RestartReset time.Duration
	// PollStarting and PollReady are how often health is asked for; default 25 ms, which
	// grows to 100 ms, and 500 ms.
	PollStarting, PollReady time.Duration
	// Propagation is the time between a replica's being seen to terminate and its being
	// told to, so that routers stop sending to it first; default 100 ms.
	Propagation time.Duration
	// DrainMargin comes on top of the scoring timeout before a draining replica is killed; default 10 s.
	DrainMargin time.Duration
	// LogBytes is the size of each half of a replica's log; default 8 MiB.
	LogBytes int64
}

func (o HostOptions) complete() (HostOptions, error) {
	if o.Dir == "" || len(o.RunnerCommand) == 0 || o.Logger == nil {
		return o, errors.New("a host needs a state directory, a runner command and a logger")
	}
	dir, err := filepath.Abs(o.Dir) // replicas have working directories of their own
	if err != nil {
		return o, err
	}
	o.Dir = dir
	if o.Env == nil {
		o.Env = os.Environ()
	}
	if o.MaxReplicas == 0 {
		o.MaxReplicas = 256
	}
	if o.LogBytes == 0 {
		o.LogBytes = 8 << 20
	}
	for _, d := range []struct {
		to  *time.Duration
		def time.Duration
	}{
		{&o.RestartMin, 200 * time.Millisecond}, {&o.RestartMax, 10 * time.Second}, {&o.RestartReset, time.Minute},
		{&o.PollStarting, 25 * time.Millisecond}, {&o.PollReady, 500 * time.Millisecond},
		{&o.Propagation, 100 * time.Millisecond}, {&o.DrainMargin, 10 * time.Second},
	} {
		if *d.to == 0 {
			*d.to = d.def
		}
	}
	if o.Launcher == nil {
		a, err := NewArchives(o.Dir, o.Logger)
		if err != nil {
			return o, err
		}
		o.Launcher = ProjectLauncher{Archives: a}
	}
	return o, nil
}

// Host runs replicas as child processes on loopback ports: the fleet of one machine.
// It lives in the supervisor; others reach it through Serve and Dial. All that it starts ends
// with it, by Close, by a crash or by kill -9. Desired counts are in its memory only: after a
// new start fleets are applied and scaled anew.
type Host struct {
	logs   *Logs
	opts   HostOptions
	log    *slog.Logger
	run    string // names this host in the marks of its processes
	unlock func() error
	spawn  *spawner
	bell   watch.Bell
	wg     sync.WaitGroup
	// ctx ends when what is still alive is to be killed at once.
	ctx  context.Context //nolint:containedctx // lives as long as the host
	kill context.CancelFunc

	mu     sync.Mutex
	fleets map[cluster.FleetKey]*fleet
	live   int    // replicas whose goroutine runs
	starts uint64 // processes started
	seq    uint64 // changes of the state
	closed bool
}

var _ cluster.Fleet = (*Host)(nil)

type fleet struct {
	spec     cluster.FleetSpec
	desired  int
	deleted  bool
	replicas []*replica
	// unable is why replicas of the present revision cannot be started; unableUntil spares
	// the many replicas of a fleet finding out each for itself.
	unable      *rollout.Error
	unableUntil time.Time
	// waits says that there are too many replicas on this host already.
	waits bool
}

// NewHost starts a host, which has the state directory for itself, and ends what an
// earlier one left alive.
func NewHost(o HostOptions) (*Host, error) {
	if !canHost {
		return nil, &rollout.Error{
			Reason: rollout.ReasonNotSupportedYet, Message: "replicas cannot run on this system",
			Hint: "use Linux or macOS, or Kubernetes with --target kubernetes",
		}
	}
	o, err := o.complete()
	if err != nil {
		return nil, fmt.Errorf("start host: %w", err)
	}
	unlock, err := lockFor(o.Dir, "host")
	if err != nil {
		return nil, fmt.Errorf("start host: %w", err)
	}
	h := &Host{
		logs: NewLogs(o.Dir), opts: o, log: o.Logger, run: strings.ToLower(rand.Text()), unlock: unlock,
		fleets: map[cluster.FleetKey]*fleet{},
	}
	if err := h.takeOver(); err != nil {
		return nil, errors.Join(fmt.Errorf("start host: %w", err), unlock())
	}
	if h.spawn, err = newSpawner(); err != nil {
		return nil, errors.Join(fmt.Errorf("start host: %w", err), unlock())
	}
	h.ctx, h.kill = context.WithCancel(context.Background())
	h.wg.Go(h.tidy)
	return h, nil
}

// takeOver kills what is left of the host before and leaves its own name for the next.
func (h *Host) takeOver() error {
	path := filepath.Join(h.opts.Dir, "locks", "host-run")
	if before, _, err := readBounded(path, 128); err == nil {
		if run := strings.TrimSpace(string(before)); run != "" {
			if err := sweep(run + "/"); err != nil {
				h.log.Error("end what an earlier host left behind", "err", err)
			}
		}
	}
	return writeAtomic(path, []byte(h.run+"\n"))
}

// tidy removes old logs now and then.
func (h *Host) tidy() {
	for {
		err := pruneLogs(h.logs.root, func(path string) bool {
			h.mu.Lock()
			defer h.mu.Unlock()
			for _, f := range h.fleets {
				for _, r := range f.replicas {
					if r.logPath == path {
						return true
					}
				}
			}
			return false
		})
		if err != nil {
			h.log.Warn("remove old logs", "err", err)
		}
		select {
		case <-h.ctx.Done():
			return
		case <-time.After(10 * time.Minute):
		}
	}
}

var errClosed = errors.New("the host of replicas is closed")

// Apply implements cluster.FleetWriter.
func (h *Host) Apply(_ context.Context, spec cluster.FleetSpec) error {
	if err := cluster.ValidateFleetKey(spec.Key); err != nil {
		return fmt.Errorf("apply fleet %s: %w", spec.Key, err)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return fmt.Errorf("apply fleet %s: %w", spec.Key, errClosed)
	}
	f := h.fleets[spec.Key]
	switch {
	case f == nil:
		f = &fleet{desired: 1}
		h.fleets[spec.Key] = f
	case f.deleted:
		f.deleted, f.desired = false, 1
	case f.spec.Revision == spec.Revision:
		f.spec = spec
		return nil
	}
	if f.spec.Revision != spec.Revision {
		f.unable, f.unableUntil = nil, time.Time{}
	}
	f.spec = spec
	h.settle(f)
	h.changed()
	return nil
}

// Delete implements cluster.FleetWriter.
func (h *Host) Delete(_ context.Context, key cluster.FleetKey) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if f := h.fleets[key]; f != nil && !f.deleted {
		f.deleted, f.desired = true, 0
		h.settle(f)
		h.changed()
	}
	return nil
}

// Scale implements cluster.Scaler.
func (h *Host) Scale(_ context.Context, key cluster.FleetKey, replicas int) error {
	if err := cluster.ValidateReplicas(replicas); err != nil {
		return fmt.Errorf("scale fleet %s: %w", key, err)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return fmt.Errorf("scale fleet %s: %w", key, errClosed)
	}
	f := h.fleets[key]
	if f == nil || f.deleted {
		return fmt.Errorf("scale fleet %s: %w", key, cluster.ErrNotFound)
	}
	if f.desired != replicas {
		f.desired = replicas
		h.settle(f)
		h.changed()
	}
	return nil
}

// Fleets implements cluster.FleetReader.
func (h *Host) Fleets(context.Context) ([]cluster.FleetState, error) {
	_, out := h.snapshot()
	return out, nil
}

// snapshot is the state and its number, which grows with every change.
func (h *Host) snapshot() (uint64, []cluster.FleetState) {
	h.mu.Lock()
	defer h.mu.Unlock()
	out := make([]cluster.FleetState, 0, len(h.fleets))
	for key, f := range h.fleets {
		s := cluster.FleetState{Key: key, Revision: f.spec.Revision, Desired: f.desired, Replicas: make([]cluster.Replica, 0, len(f.replicas))}
		for _, r := range f.replicas {
			s.Replicas = append(s.Replicas, r.state)
		}
		switch {
		case f.unable != nil:
			s.Reason, s.Message = f.unable.Reason, f.unable.Message
		case f.waits:
			s.Reason, s.Message = rollout.ReasonCapacity, fmt.Sprintf("this machine runs %d replicas, its limit", h.opts.MaxReplicas)
		}
		out = append(out, s)
	}
	slices.SortFunc(out, func(a, b cluster.FleetState) int { return cluster.CompareFleetKeys(a.Key, b.Key) })
	return h.seq, out
}

// WatchFleets implements cluster.FleetReader.
func (h *Host) WatchFleets(ctx context.Context) (<-chan struct{}, error) {
	return h.bell.Listen(ctx), nil
}

// Logs implements cluster.LogReader.
func (h *Host) Logs(ctx context.Context, key cluster.FleetKey, o cluster.LogOptions) (io.ReadCloser, error) {
	return h.logs.Logs(ctx, key, o)
}

// changed tells everyone; it needs h.mu.
func (h *Host) changed() {
	h.seq++
	h.bell.Ring()
}

// settle starts and ends replicas as the plan says; it needs h.mu.
func (h *Host) settle(f *fleet) {
	states := make([]cluster.Replica, len(f.replicas))
	for i, r := range f.replicas {
		states[i] = r.state
	}
	start, end := roll.Plan(f.desired, f.spec.Revision, states)
	for _, name := range end {
		for _, r := range f.replicas {
			if r.state.Name == name {
				r.end()
			}
		}
	}
	room := max(0, h.opts.MaxReplicas-h.live)
	f.waits = start > room
	for range min(start, room) {
		h.startReplica(f)
	}
	if f.deleted && len(f.replicas) == 0 {
		delete(h.fleets, f.spec.Key)
	}
}

// Close drains all replicas and returns when nothing is left of them. When ctx ends
// they are killed; the error then wraps ctx's.
func (h *Host) Close(ctx context.Context) error {
	h.mu.Lock()
	if h.closed {
		h.mu.Unlock()
		return nil
	}
	h.closed = true
	for _, f := range h.fleets {
		f.deleted, f.desired = true, 0
		h.settle(f)
	}
	h.changed()
	waiting := h.live
	h.mu.Unlock()

	drained := make(chan struct{})
	go func() {
		defer close(drained)
		for range h.bell.Listen(h.ctx) {
			h.mu.Lock()
			n := h.live
			h.mu.Unlock()
			if n == 0 {
				return
			}
		}
	}()
	var err error
	select {
	case <-drained:
	case <-ctx.Done():
		h.mu.Lock()
		n := h.live
		h.mu.Unlock()
		err = fmt.Errorf("drain replicas: %d of %d were killed: %w", n, waiting, ctx.Err())
	}
	h.kill()
	h.wg.Wait()
	<-drained
	return errors.Join(err, sweep(h.run+"/"), h.spawn.close(), h.unlock())
}

// prepare asks the launcher, or repeats its refusal for a while.
func (h *Host) prepare(ctx context.Context, f *fleet, spec cluster.FleetSpec) (Launch, error) {
	h.mu.Lock()
	current := f.spec.Revision == spec.Revision
	if current && f.unable != nil && time.Now().Before(f.unableUntil) {
		defer h.mu.Unlock()
		return Launch{}, f.unable
	}
	h.mu.Unlock()
	launch, err := h.opts.Launcher.Prepare(ctx, spec)
	if ctx.Err() != nil {
		return Launch{}, ctx.Err()
	}
	var refusal *rollout.Error
	if err != nil {
		refusal = &rollout.Error{Reason: rollout.ReasonImageMissing, Message: err.Error()}
		if r := rollout.ReasonOf(err); r != rollout.ReasonInternal {
			refusal.Reason = r
		}
		h.log.Error("version cannot be run", "fleet", spec.Key.String(), "err", err)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if f.spec.Revision == spec.Revision {
		f.unable, f.unableUntil = refusal, time.Now().Add(2*time.Second)
	}
	if refusal != nil {
		return Launch{}, refusal
	}
	return launch, nil
}
