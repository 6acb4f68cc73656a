package memory

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/sluice-dev/sluice/pkg/cluster"
	"github.com/sluice-dev/sluice/pkg/cluster/internal/roll"
	"github.com/sluice-dev/sluice/pkg/cluster/internal/watch"
	"github.com/sluice-dev/sluice/rollout"
)

// Behaviour is how the replicas of an image behave.
type Behaviour struct {
	// ReadyAfter is the time from a replica's start to ready; 0 is at once.
	ReadyAfter time.Duration
	// DrainFor is the time that a replica stays terminating; 0 is at once gone.
	DrainFor time.Duration
	// Fail, if set, makes replicas end failed instead of ready, with this reason and message.
	Fail    rollout.Reason
	Message string
	// Missing makes the fleet unable to start replicas at all (image_missing).
	Missing bool
	// Refuse, if set, makes Apply fail.
	Refuse *rollout.Error
	// Address of a new replica; nil gives each a port of its own on 127.0.0.1, where nothing listens.
	Address func(cluster.Replica) string
}

// Fleet runs replicas that exist only as states. Timers move them; there are no goroutines.
type Fleet struct {
	mu       sync.Mutex
	fleets   map[cluster.FleetKey]*fleet
	logs     map[cluster.FleetKey]*logs
	images   map[string]Behaviour
	standard Behaviour
	failure  error
	started  int
	scales   []ScaleCall
	bell     watch.Bell
}

// ScaleCall is one accepted call of Scale.
type ScaleCall struct {
	Key      cluster.FleetKey
	Replicas int
	At       time.Time
}

type fleet struct {
	spec     cluster.FleetSpec
	desired  int
	deleted  bool
	replicas []*replica
}

type replica struct {
	cluster.Replica
	// timer makes the replica's next move; epoch outdates moves that were planned before a test set the state.
	timer *time.Timer
	epoch int
	drain time.Duration
}

var _ cluster.Fleet = (*Fleet)(nil)

// NewFleet is empty; images behave as standard unless SetImage says otherwise.
func NewFleet(standard Behaviour) *Fleet {
	return &Fleet{
		fleets: map[cluster.FleetKey]*fleet{}, logs: map[cluster.FleetKey]*logs{},
		images: map[string]Behaviour{}, standard: standard,
	}
}

// SetImage says how replicas of an image behave that start from now on.
func (f *Fleet) SetImage(image string, b Behaviour) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.images[image] = b
	for _, fl := range f.fleets {
		f.settle(fl)
	}
	f.bell.Ring()
}

// SetFailure makes every call fail with err until it is set to nil. Replicas live on.
func (f *Fleet) SetFailure(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.failure = err
}

// SetReplica changes one replica as edit says; what was planned for it is dropped.
// It panics if there is no such replica: a mistake in the test.
func (f *Fleet) SetReplica(key cluster.FleetKey, name string, edit func(*cluster.Replica)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	fl, r := f.mustFind(key, name)
	r.stop()
	edit(&r.Replica)
	f.settle(fl)
	f.bell.Ring()
}

// SetAll changes every replica of a fleet as SetReplica does.
func (f *Fleet) SetAll(key cluster.FleetKey, edit func(*cluster.Replica)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	fl := f.fleets[key]
	if fl == nil {
		panic(fmt.Sprintf("memory: no fleet %s", key))
	}
	for _, r := range fl.replicas {
		r.stop()
		edit(&r.Replica)
	}
	f.settle(fl)
	f.bell.Ring()
}

// Crash ends a replica's process: failed, and starting again after the delay.
func (f *Fleet) Crash(key cluster.FleetKey, name string, restartAfter time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	fl, r := f.mustFind(key, name)
	r.stop()
	r.State, r.Reason, r.Message, r.ReadySince = cluster.ReplicaFailed, rollout.ReasonCrashed, "crashed by the test", time.Time{}
	f.later(fl, r, restartAfter, func() {
		r.Restarts++
		f.begin(fl, r)
	})
	f.settle(fl)
	f.bell.Ring()
}

// Scales are the accepted calls of Scale, oldest first.
func (f *Fleet) Scales() []ScaleCall {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.scales)
}

// Spec that was applied last.
func (f *Fleet) Spec(key cluster.FleetKey) (cluster.FleetSpec, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	fl := f.fleets[key]
	if fl == nil || fl.deleted {
		return cluster.FleetSpec{}, false
	}
	return fl.spec, true
}

func (f *Fleet) mustFind(key cluster.FleetKey, name string) (*fleet, *replica) {
	if fl := f.fleets[key]; fl != nil {
		for _, r := range fl.replicas {
			if r.Name == name {
				return fl, r
			}
		}
	}
	panic(fmt.Sprintf("memory: no replica %s of %s", name, key))
}

// Apply implements cluster.FleetWriter.
func (f *Fleet) Apply(_ context.Context, spec cluster.FleetSpec) error {
	if err := cluster.ValidateFleetKey(spec.Key); err != nil {
		return fmt.Errorf("apply fleet %s: %w", spec.Key, err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.failure != nil {
		return fmt.Errorf("apply fleet %s: %w", spec.Key, f.failure)
	}
	if b := f.behaviour(&fleet{spec: spec}); b.Refuse != nil {
		return fmt.Errorf("apply fleet %s: %w", spec.Key, b.Refuse)
	}
	fl := f.fleets[spec.Key]
	switch {
	case fl == nil:
		fl = &fleet{desired: 1}
		f.fleets[spec.Key] = fl
	case fl.deleted:
		fl.deleted, fl.desired = false, 1
	}
	fl.spec = spec
	f.settle(fl)
	f.bell.Ring()
	return nil
}

// Delete implements cluster.FleetWriter.
func (f *Fleet) Delete(_ context.Context, key cluster.FleetKey) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.failure != nil {
		return fmt.Errorf("delete fleet %s: %w", key, f.failure)
	}
	if fl := f.fleets[key]; fl != nil {
		fl.deleted, fl.desired = true, 0
		f.settle(fl)
		f.bell.Ring()
	}
	return nil
}

// Scale implements cluster.Scaler.
func (f *Fleet) Scale(_ context.Context, key cluster.FleetKey, replicas int) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.failure != nil {
		return fmt.Errorf("scale fleet %s: %w", key, f.failure)
	}
	fl := f.fleets[key]
	if fl == nil || fl.deleted {
		return fmt.Errorf("scale fleet %s: %w", key, cluster.ErrNotFound)
	}
	if err := cluster.ValidateReplicas(replicas); err != nil {
		return fmt.Errorf("scale fleet %s: %w", key, err)
	}
	f.scales = append(f.scales, ScaleCall{key, replicas, time.Now()})
	if fl.desired != replicas {
		fl.desired = replicas
		f.settle(fl)
		f.bell.Ring()
	}
	return nil
}

// Fleets implements cluster.FleetReader.
func (f *Fleet) Fleets(context.Context) ([]cluster.FleetState, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.failure != nil {
		return nil, fmt.Errorf("list fleets: %w", f.failure)
	}
	out := make([]cluster.FleetState, 0, len(f.fleets))
	for k, fl := range f.fleets {
		s := cluster.FleetState{Key: k, Revision: fl.spec.Revision, Desired: fl.desired, Replicas: []cluster.Replica{}}
		for _, r := range fl.replicas {
			s.Replicas = append(s.Replicas, r.Replica)
		}
		if f.behaviour(fl).Missing {
			s.Reason, s.Message = rollout.ReasonImageMissing, "image "+fl.spec.Image+" is missing"
		}
		out = append(out, s)
	}
	slices.SortFunc(out, func(a, b cluster.FleetState) int { return cluster.CompareFleetKeys(a.Key, b.Key) })
	return out, nil
}

// WatchFleets implements cluster.FleetReader.
func (f *Fleet) WatchFleets(ctx context.Context) (<-chan struct{}, error) {
	return f.bell.Listen(ctx), nil
}

func (f *Fleet) behaviour(fl *fleet) Behaviour {
	if b, set := f.images[fl.spec.Image]; set {
		return b
	}
	return f.standard
}

// settle starts and ends replicas until the plan asks for nothing more.
func (f *Fleet) settle(fl *fleet) {
	for {
		states := make([]cluster.Replica, len(fl.replicas))
		for i, r := range fl.replicas {
			states[i] = r.Replica
		}
		start, end := roll.Plan(fl.desired, fl.spec.Revision, states)
		if f.behaviour(fl).Missing {
			start = 0
		}
		if start == 0 && len(end) == 0 {
			break
		}
		for _, name := range end {
			_, r := f.mustFind(fl.spec.Key, name)
			f.drain(fl, r)
		}
		for range start {
			f.start(fl)
		}
	}
	if fl.deleted && len(fl.replicas) == 0 {
		delete(f.fleets, fl.spec.Key)
	}
}

func (f *Fleet) start(fl *fleet) {
	f.started++
	b := f.behaviour(fl)
	r := &replica{Replica: cluster.Replica{Name: fmt.Sprintf("%s-%05d", fl.spec.Key.Version, f.started), Revision: fl.spec.Revision}, drain: b.DrainFor}
	if b.Address != nil {
		r.Address = b.Address(r.Replica)
	} else {
		r.Address = fmt.Sprintf("127.0.0.1:%d", 10_000+f.started%50_000)
	}
	fl.replicas = append(fl.replicas, r)
	f.log(fl.spec.Key).add(r.Name, "started")
	f.begin(fl, r)
}

// begin sets a replica starting, and ready or failed after the image's time.
func (f *Fleet) begin(fl *fleet, r *replica) {
	b := f.behaviour(fl)
	r.State, r.Reason, r.Message, r.ReadySince = cluster.ReplicaStarting, rollout.ReasonStarting, "", time.Time{}
	f.later(fl, r, b.ReadyAfter, func() {
		if b.Fail != "" {
			r.State, r.Reason, r.Message = cluster.ReplicaFailed, b.Fail, b.Message
			f.log(fl.spec.Key).add(r.Name, b.Message)
			return
		}
		r.State, r.Reason, r.Message, r.ReadySince = cluster.ReplicaReady, "", "", time.Now()
	})
}

func (f *Fleet) drain(fl *fleet, r *replica) {
	r.stop()
	r.State, r.Reason, r.Message, r.ReadySince = cluster.ReplicaTerminating, "", "", time.Time{}
	f.later(fl, r, r.drain, func() {
		fl.replicas = slices.DeleteFunc(fl.replicas, func(x *replica) bool { return x == r })
	})
}

// later makes the replica's next move after the delay, at once if it is 0. It
// runs under the lock and settles the fleet after the move.
func (f *Fleet) later(fl *fleet, r *replica, after time.Duration, move func()) {
	if after <= 0 {
		move()
		return
	}
	r.epoch++
	epoch := r.epoch
	r.timer = time.AfterFunc(after, func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		if r.epoch != epoch {
			return
		}
		move()
		f.settle(fl)
		f.bell.Ring()
	})
}

func (r *replica) stop() {
	r.epoch++
	if r.timer != nil {
		r.timer.Stop()
		r.timer = nil
	}
}

// WriteLog adds a line to what a replica wrote; the replica need not exist.
func (f *Fleet) WriteLog(key cluster.FleetKey, replica, line string) {
	f.mu.Lock()
	l := f.log(key)
	f.mu.Unlock()
	l.add(replica, line)
}

func (f *Fleet) log(key cluster.FleetKey) *logs {
	l := f.logs[key]
	if l == nil {
		l = &logs{}
		f.logs[key] = l
	}
	return l
}

// Logs implements cluster.LogReader.
func (f *Fleet) Logs(ctx context.Context, key cluster.FleetKey, o cluster.LogOptions) (io.ReadCloser, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.failure != nil {
		return nil, fmt.Errorf("read logs of %s: %w", key, f.failure)
	}
	l := f.logs[key]
	if l == nil {
		return nil, fmt.Errorf("read logs of %s: %w", key, cluster.ErrNotFound)
	}
	return l.open(ctx, o), nil
}

type logLine struct{ replica, text string }

type logs struct {
	mu    sync.Mutex
	lines []logLine
	bell  watch.Bell
}

func (l *logs) add(replica, text string) {
	l.mu.Lock()
	l.lines = append(l.lines, logLine{replica, strings.TrimRight(text, "\n")})
	l.mu.Unlock()
	l.bell.Ring()
}

func (l *logs) open(ctx context.Context, o cluster.LogOptions) io.ReadCloser {
	ctx, cancel := context.WithCancel(ctx)
	r := &logReader{logs: l, bell: l.bell.Listen(ctx), follow: o.Follow, cancel: cancel}
	l.mu.Lock()
	defer l.mu.Unlock()
	kept := map[string]int{}
	var tail []logLine
	for i := len(l.lines) - 1; i >= 0; i-- {
		line := l.lines[i]
		if kept[line.replica]++; o.Tail > 0 && kept[line.replica] > o.Tail {
			continue
		}
		tail = append(tail, line)
	}
	slices.Reverse(tail)
	for _, line := range tail {
		r.print(line)
	}
	r.next = len(l.lines)
	return r
}

// logReader is used by one goroutine, as every io.Reader; Close may come from another.
type logReader struct {
	logs   *logs
	bell   <-chan struct{}
	follow bool
	cancel context.CancelFunc
	buf    bytes.Buffer
	next   int
}

func (r *logReader) print(line logLine) { fmt.Fprintf(&r.buf, "%s %s\n", line.replica, line.text) }

func (r *logReader) Read(p []byte) (int, error) {
	for {
		if r.buf.Len() > 0 {
			return r.buf.Read(p)
		}
		if !r.follow {
			return 0, io.EOF
		}
		if _, open := <-r.bell; !open {
			return 0, io.EOF
		}
		r.logs.mu.Lock()
		for ; r.next < len(r.logs.lines); r.next++ {
			r.print(r.logs.lines[r.next])
		}
		r.logs.mu.Unlock()
	}
}

func (r *logReader) Close() error {
	r.cancel()
	return nil
}
