package self

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/sluice-dev/sluice/pkg/autoscale/internal/tick"
	"github.com/sluice-dev/sluice/pkg/telemetry"
)

// Tick is how often the routers are looked at.
const Tick = 5 * time.Second

// fewRequests are too few for a p99 to be one.
const fewRequests = 100

// Reports of every router; an error means that at least one is missing, and the reports
// that are there come with it.
type Reports interface {
	Reports(ctx context.Context) ([]telemetry.Report, error)
}

// Pods are the routers' own.
type Pods interface {
	// Pods that do not end, and how many were asked for.
	Pods(ctx context.Context) (pods []Pod, desired int, err error)
	// Resize a pod's CPU from one amount to another, without a restart. ErrRefused: the cluster will not have it.
	Resize(ctx context.Context, r Resize) error
}

// Scaler sets how many pods there are. ErrRefused: the cluster will not have it.
type Scaler interface {
	Scale(ctx context.Context, replicas int) error
}

// ErrRefused is for what will not be had for a while, such as by a quota or in a cluster that
// cannot resize pods.
var ErrRefused = errors.New("the cluster refused")

// Options of Run.
type Options struct {
	Settings Settings
	Reports  Reports
	Pods     Pods
	Scaler   Scaler
	Logger   *slog.Logger
	// Stepped, if set, is told of every step, for metrics.
	Stepped func(Kind)
}

// Run scales until ctx ends, once each Tick. Errors of one tick are logged and
// the next one tries again.
func Run(ctx context.Context, o Options) error {
	if err := o.Settings.Validate(); err != nil {
		return fmt.Errorf("scale routers: %w", err)
	}
	l := loop{Options: o}
	tick.Every(ctx, Tick, o.Logger, "scaling the routers failed", l.once)
	return nil
}

type loop struct {
	Options
	memory Memory
	last   map[string]telemetry.Report // by epoch
}

// once is one tick: figures, decision, step.
func (l *loop) once(ctx context.Context, now time.Time) error {
	ctx, cancel := context.WithTimeout(ctx, 2*Tick)
	defer cancel()
	pods, desired, err := l.Pods.Pods(ctx)
	if err != nil {
		return fmt.Errorf("list router pods: %w", err)
	}
	in := Input{Now: now, Pods: pods, Desired: desired}
	reports, missing := l.Reports.Reports(ctx)
	whole := l.measure(&in, reports)
	in.Complete = whole && missing == nil && len(reports) >= len(pods)
	if !in.Complete {
		l.Logger.Debug("a router's report is missing: the routers stay as they are", "reports", len(reports), "pods", len(pods), "error", missing)
	}
	a := l.memory.Decide(l.Settings, in)
	if a.Kind == Hold {
		return nil
	}
	return l.step(ctx, now, in, a)
}

// measure turns cumulative reports into figures. False means that a router is new or had
// nothing new to say.
func (l *loop) measure(in *Input, reports []telemetry.Report) bool {
	whole := true
	seen := map[string]telemetry.Report{}
	used := 0.0
	for _, r := range reports {
		was, known := l.last[r.Epoch]
		if known && r.Elapsed <= was.Elapsed {
			seen[r.Epoch], whole = was, false // an old report once more
			continue
		}
		seen[r.Epoch] = r
		if r.Router.Routed >= fewRequests {
			in.P99 = max(in.P99, r.Router.P99())
		}
		if !known {
			whole = false
			continue
		}
		used += max(0, r.Router.CPUSeconds-was.Router.CPUSeconds) / (r.Elapsed - was.Elapsed).Seconds()
	}
	l.last = seen
	in.Used = Milli(1000 * used)
	return whole
}

// step does what was decided, and says so with the figure.
func (l *loop) step(ctx context.Context, now time.Time, in Input, a Action) error {
	var errs []error
	done := a.Kind == Full
	refused := func(err error) {
		if errors.Is(err, ErrRefused) {
			l.memory.Blocked(l.Settings, a.Kind, now)
		}
		errs = append(errs, err)
	}
	for _, r := range a.Resizes {
		if err := l.Pods.Resize(ctx, r); err != nil {
			refused(fmt.Errorf("resize pod %s to %v (%s): %w", r.Pod, r.To, a.Figure, err))
			continue
		}
		done = true
		l.Logger.Info("router pod resized", "action", string(a.Kind), "pod", r.Pod, "from", r.From.String(), "to", r.To.String(), "because", a.Figure)
	}
	if a.Replicas > 0 {
		if err := l.Scaler.Scale(ctx, a.Replicas); err != nil {
			refused(fmt.Errorf("scale routers to %d (%s): %w", a.Replicas, a.Figure, err))
		} else {
			done = true
			l.Logger.Info("routers scaled", "action", string(a.Kind), "from", in.Desired, "to", a.Replicas, "because", a.Figure)
		}
	}
	if a.Kind == Full {
		l.Logger.Warn("the routers are short of CPU and may not grow: they have the most that is allowed, or the cluster has no room", "because", a.Figure)
	}
	if done && l.Stepped != nil {
		l.Stepped(a.Kind)
	}
	return errors.Join(errs...)
}
