package autoscale

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"time"

	"github.com/sluice-dev/sluice/pkg/autoscale/internal/tick"
	"github.com/sluice-dev/sluice/pkg/cluster"
	"github.com/sluice-dev/sluice/pkg/telemetry"
	"github.com/sluice-dev/sluice/rollout"
)

// Tick is how often needs are looked at.
const Tick = time.Second

// Routers gives every router's report; an error means that at least one is
// missing, and the reports that are there come with it.
type Routers interface {
	Reports(ctx context.Context) ([]telemetry.Report, error)
}

// Options of Run.
type Options struct {
	Endpoints cluster.Reader
	Fleets    cluster.FleetReader
	Scaler    cluster.Scaler
	Routers   Routers
	Logger    *slog.Logger
	// Desired, if set, is told of every decision, for metrics.
	Desired func(key cluster.FleetKey, replicas int)
}

// Run scales until ctx ends, once each Tick. Errors of one tick are logged and
// the next one tries again: nothing that fails for a while ends it.
func Run(ctx context.Context, o Options) error {
	tick.Every(ctx, Tick, o.Logger, "autoscaling tick failed", newLoop(o).once)
	return nil
}

type loop struct {
	Options
	meter    Meter
	memories map[cluster.FleetKey]*Memory
	periods  map[cluster.FleetKey]time.Time // when a version with a longer refresh period is next due
}

func newLoop(o Options) *loop {
	return &loop{Options: o, memories: map[cluster.FleetKey]*Memory{}, periods: map[cluster.FleetKey]time.Time{}}
}

// once is one tick: reports, demands, decisions, scales.
func (l *loop) once(ctx context.Context, now time.Time) error {
	ctx, cancel := context.WithTimeout(ctx, 5*Tick)
	defer cancel()
	endpoints, err := l.Endpoints.List(ctx)
	if err != nil {
		return fmt.Errorf("list endpoints: %w", err)
	}
	fleets, err := l.Fleets.Fleets(ctx)
	if err != nil {
		return fmt.Errorf("list fleets: %w", err)
	}
	reports, missing := l.Routers.Reports(ctx)
	if missing != nil {
		l.Logger.Debug("a router's report is missing: nothing is taken away", "error", missing)
	}
	loads, whole := l.meter.Loads(reports)
	complete := whole && missing == nil

	byKey := map[cluster.FleetKey]*cluster.FleetState{}
	for i := range fleets {
		byKey[fleets[i].Key] = &fleets[i]
	}
	var errs []error
	alive := map[cluster.FleetKey]bool{}
	for _, e := range endpoints {
		demands, total := Demands(e, loads)
		for i := range e.Spec.Versions {
			v := &e.Spec.Versions[i]
			key := cluster.FleetKey{Endpoint: e.Key(), Version: v.Name}
			alive[key] = true
			fleet := byKey[key]
			if fleet == nil || fleet.ScaledBy != "" || now.Before(l.periods[key]) {
				continue // two that scale would fight
			}
			want := l.decide(now, e, v, key, fleet.Desired, max(demands[i], total*planned(e, v.Name)), complete)
			if l.Desired != nil {
				l.Desired(key, want)
			}
			if want > fleet.Desired && fleet.Full() != "" {
				continue // what was asked for last found no node yet
			}
			if want == fleet.Desired {
				continue
			}
			if err := l.Scaler.Scale(ctx, key, want); err != nil && !errors.Is(err, cluster.ErrNotFound) {
				errs = append(errs, fmt.Errorf("scale %s to %d: %w", key, want, err))
				continue
			}
			l.Logger.Info("scaled", "endpoint", e.Key().String(), "version", v.Name, "from", fleet.Desired, "to", want,
				"demand", round(demands[i]), "endpointDemand", round(total))
		}
	}
	for key := range l.memories {
		if !alive[key] {
			delete(l.memories, key)
			delete(l.periods, key)
		}
	}
	return errors.Join(errs...)
}

// Demands of an endpoint's versions, in their order, and their sum, in slots.
func Demands(e *rollout.Endpoint, loads map[cluster.FleetKey]Load) (each []float64, total float64) {
	each = make([]float64, len(e.Spec.Versions))
	for i := range e.Spec.Versions {
		v := &e.Spec.Versions[i]
		load := loads[cluster.FleetKey{Endpoint: e.Key(), Version: v.Name}]
		load.QueueWaitSeconds = v.QueueWait().Seconds()
		each[i] = load.Demand()
		total += each[i]
	}
	return each, total
}

func (l *loop) decide(now time.Time, e *rollout.Endpoint, v *rollout.Version, key cluster.FleetKey, have int, demand float64, complete bool) int {
	m := l.memories[key]
	if m == nil {
		m = &Memory{}
		l.memories[key] = m
	}
	s := v.Scale()
	// Half a tick of slack, or ticker jitter would make every second look be skipped.
	l.periods[key] = now.Add(s.Refresh - Tick/2)
	in := Input{Now: now, Have: have, Fixed: s.Fixed, Min: s.Min, Max: s.Max, Complete: complete,
		Need: Need(demand, v.Slots(), s.Target), Least: Need(demand/(1+tolerance), v.Slots(), s.Target),
	}
	if v.Type == rollout.Standby {
		in.Floor = v.StandbyReplicas
	}
	return m.Decide(in)
}

// planned is the share of the endpoint's traffic to prepare for, as a fraction.
func planned(e *rollout.Endpoint, version string) float64 {
	p := e.Spec.Effective(version)
	if st := e.Status.Version(version); e.Status.ObservedGeneration == e.Metadata.Generation {
		p = max(p, st.PlannedPercent)
	}
	return p.Fraction()
}

func round(f float64) float64 { return math.Round(f*100) / 100 }

// Meter turns routers' cumulative reports into loads over the time between two looks.
type Meter struct {
	last map[string]telemetry.Report // by epoch
}

// Loads are the means per version since the look before. False means that a
// router is new or had nothing new to say.
func (m *Meter) Loads(reports []telemetry.Report) (map[cluster.FleetKey]Load, bool) {
	out := map[cluster.FleetKey]Load{}
	weights := map[cluster.FleetKey]float64{}
	seen := map[string]telemetry.Report{}
	whole := true
	for _, r := range reports {
		was, known := m.last[r.Epoch]
		if known && r.Elapsed <= was.Elapsed {
			seen[r.Epoch] = was // nothing new: an old report once more
			whole = false
			continue
		}
		seen[r.Epoch] = r
		if !known {
			whole = false
		}
		seconds := (r.Elapsed - was.Elapsed).Seconds()
		before := map[cluster.FleetKey]telemetry.VersionReport{}
		for _, v := range was.Versions {
			before[cluster.FleetKey{Endpoint: v.Endpoint, Version: v.Version}] = v
		}
		for _, v := range r.Versions {
			key := cluster.FleetKey{Endpoint: v.Endpoint, Version: v.Version}
			load := out[key]
			load.QueuedNow += float64(v.Queued)
			if !known {
				// The means since the router's start say little of now.
				load.InFlight += float64(v.InFlight)
				load.Queued += float64(v.Queued)
				load.ArrivalsPerSecond = -1
			} else {
				b := before[key]
				load.InFlight += positive(v.InFlightSeconds-b.InFlightSeconds) / seconds
				load.Queued += positive(v.QueuedSeconds-b.QueuedSeconds) / seconds
				load.RefusedPerSecond += positive(float64(v.Refused-b.Refused)) / seconds
				if load.ArrivalsPerSecond >= 0 {
					came := v.Requests + v.InFlight + v.Queued - b.Requests - b.InFlight - b.Queued
					load.ArrivalsPerSecond += positive(float64(came)) / seconds
				}
			}
			if v.ServiceSeconds > 0 {
				// Routers' means weigh by their requests.
				w := max(1, float64(v.Requests-before[key].Requests))
				load.ServiceSeconds = (load.ServiceSeconds*weights[key] + v.ServiceSeconds*w) / (weights[key] + w)
				weights[key] += w
			}
			out[key] = load
		}
	}
	m.last = seen
	return out, whole
}

func positive(f float64) float64 { return max(f, 0) }
