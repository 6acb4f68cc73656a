// Package control makes what runs be what endpoints ask for: fleets, keys,
// status and the strategy. One level-triggered Reconcile looks at the present
// state, does what is missing, and says when to look again. It knows only ports.
package control

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
	"k8s.io/client-go/util/workqueue"

	"github.com/sluice-dev/sluice/pkg/cluster"
	"github.com/sluice-dev/sluice/rollout"
)

// Timing of the control role.
const (
	// PollEvidence is how often routers are asked; with it a verdict acts within a second of its evidence.
	PollEvidence = 200 * time.Millisecond
	// DrainRetired is how long a retired version keeps its replicas.
	DrainRetired = time.Minute
	// resync bounds how long anything that no watch told of stays unseen.
	resync = 10 * time.Second
	// journalFor is longer than GitHub redelivers.
	journalFor = 35 * 24 * time.Hour
	workers    = 4
)

// Fleets is what the control role may do with replicas: everything but scaling.
type Fleets interface {
	cluster.FleetWriter
	cluster.FleetReader
}

// Options of Run and NewReconciler.
type Options struct {
	Store  cluster.Store
	Fleets Fleets
	Keys   cluster.Keys
	// Journal is pruned if set.
	Journal cluster.Journal
	Routers Routers
	// Tell, if set, is told of each condition whose status is another one than before.
	Tell func(e *rollout.Endpoint, c rollout.Condition)
	// ScoringURI gives the address that clients score at.
	ScoringURI func(rollout.Key) string
	Logger     *slog.Logger
}

// Run reconciles every endpoint until ctx ends.
func Run(ctx context.Context, o Options) error {
	r := NewReconciler(o)
	endpoints, err := o.Store.Watch(ctx)
	if err != nil {
		return fmt.Errorf("watch endpoints: %w", err)
	}
	fleets, err := o.Fleets.WatchFleets(ctx)
	if err != nil {
		return fmt.Errorf("watch fleets: %w", err)
	}
	queue := workqueue.NewTypedRateLimitingQueue(workqueue.NewTypedItemExponentialFailureRateLimiter[rollout.Key](20*time.Millisecond, 5*time.Second))
	var wg sync.WaitGroup
	defer wg.Wait()
	defer queue.ShutDown()
	for range workers {
		wg.Go(func() { r.work(ctx, queue) })
	}
	wg.Go(func() {
		poll := time.NewTicker(PollEvidence)
		defer poll.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-poll.C:
				for _, key := range r.Poll(ctx) {
					queue.Add(key)
				}
			}
		}
	})
	everything := func() {
		list, err := o.Store.List(ctx)
		if err != nil {
			o.Logger.Warn("listing endpoints failed", "error", err)
			return
		}
		for _, e := range list {
			queue.Add(e.Key())
		}
		// Fleets whose endpoint is gone are cleaned up under its key.
		states, err := o.Fleets.Fleets(ctx)
		if err != nil {
			return
		}
		for _, f := range states {
			queue.Add(f.Key.Endpoint)
		}
	}
	again := time.NewTicker(resync)
	defer again.Stop()
	hourly := time.NewTicker(time.Hour)
	defer hourly.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case key, ok := <-endpoints:
			if !ok {
				return ended(ctx, "the watch of endpoints")
			}
			queue.Add(key)
		case _, ok := <-fleets:
			if !ok {
				return ended(ctx, "the watch of fleets")
			}
			everything()
		case <-again.C:
			everything()
		case now := <-hourly.C:
			r.Prune(ctx, now)
		}
	}
}

func ended(ctx context.Context, what string) error {
	if ctx.Err() != nil {
		return nil
	}
	return errors.New(what + " ended")
}

func (r *Reconciler) work(ctx context.Context, queue workqueue.TypedRateLimitingInterface[rollout.Key]) {
	for {
		key, done := queue.Get()
		if done {
			return
		}
		after, err := r.Reconcile(ctx, key)
		switch {
		case ctx.Err() != nil:
		case errors.Is(err, cluster.ErrConflict):
			queue.AddRateLimited(key) // someone else wrote: look at what
		case err != nil:
			r.Logger.Error("reconciling failed", "endpoint", key.String(), "error", err)
			queue.AddRateLimited(key)
		default:
			queue.Forget(key)
			if after > 0 {
				queue.AddAfter(key, after)
			}
		}
		queue.Done(key)
	}
}

// Reconciler holds what one look needs from the one before: evidence.
type Reconciler struct {
	Options
	evidence *evidence
	refusals refusals
	now      func() time.Time
}

// NewReconciler makes one; Run is the usual way in.
func NewReconciler(o Options) *Reconciler {
	return &Reconciler{Options: o, evidence: newEvidence(o.Routers), now: time.Now}
}

// Poll asks the routers once for their evidence and returns the endpoints whose
// evidence grew: they are to be reconciled. Whoever drives Reconcile calls it every PollEvidence.
func (r *Reconciler) Poll(ctx context.Context) []rollout.Key { return r.evidence.poll(ctx) }

// Prune removes journal entries that nothing can repeat any more. Call it now and then.
func (r *Reconciler) Prune(ctx context.Context, now time.Time) {
	if r.Journal == nil {
		return
	}
	if err := r.Journal.Prune(ctx, now.Add(-journalFor)); err != nil {
		r.Logger.Warn("pruning the journal failed", "error", err)
	}
}

// Reconcile brings one endpoint up to what its spec asks for, as far as is
// possible now, and says when to look again at the latest (0: on the next event).
// It is safe to call at any time, for any key, again and again.
//
// A decided rollback is written before anything else: it waits for no fleet,
// status or key.
func (r *Reconciler) Reconcile(ctx context.Context, key rollout.Key) (time.Duration, error) {
	e, err := r.Store.Get(ctx, key)
	if errors.Is(err, cluster.ErrNotFound) {
		return 0, r.remove(ctx, key)
	}
	if err != nil {
		return 0, fmt.Errorf("get endpoint: %w", err)
	}
	fleets, fleetsErr := r.fleetsOf(ctx, key)
	now := r.now()

	r.evidence.restore(e)
	if e, err = r.makeRoom(ctx, e); err != nil {
		return 0, err
	}
	// An op that is refused must not keep the rest from being done.
	var refused error
	plan, moved := rollout.Plan{}, false
	// One engine step can make the next one due at once (a rollback, then another
	// treatment's turn); more than a few in one look would be a loop.
	for range rollout.MaxVersions {
		r.observe(e, fleets, now)
		plan = rollout.Next(e, rollout.View{Now: now, Judgements: r.evidence.judge(e, now)})
		if plan.Op == nil {
			break
		}
		next, err := r.apply(ctx, e, plan, now)
		if len(rollout.AsErrors(err)) > 0 && !errors.Is(err, cluster.ErrConflict) {
			refused = err
			plan.Op = nil
			break
		}
		if err != nil {
			return 0, err
		}
		e, moved = next, true
	}
	if fleetsErr != nil {
		// Without sight of the fleets nothing can be said of replicas: the last status stays.
		return 0, fmt.Errorf("read fleets: %w", fleetsErr)
	}
	// What cannot be done for one version, or for the keys, keeps nothing else from being done, the
	// status least of all: it says why.
	keysErr := r.keys(ctx, e)
	due, fleetErr := r.fleets(ctx, e, fleets, now)
	if r.refusals.changed(key) {
		r.observe(e, fleets, now)
		due = append(due, time.Second)
	}
	if err := errors.Join(r.report(ctx, e, fleets, plan, moved, now), keysErr, fleetErr); err != nil {
		return 0, err
	}
	if t := e.Spec.ByRole(rollout.Treatment); t != nil && e.Spec.Strategy != nil {
		due = append(due, PollEvidence)
	}
	due = append(due, resync)
	return slices.Min(due), refused
}

// makeRoom moves changes into the history before the list of changes is full: only
// there may they leave it, and a full list refuses all but a rollback.
func (r *Reconciler) makeRoom(ctx context.Context, e *rollout.Endpoint) (*rollout.Endpoint, error) {
	if len(e.Spec.Changes) < rollout.MaxChanges-rollout.MaxVersions {
		return e, nil
	}
	next := e.Clone()
	if !rollout.RecordHistory(&next.Status, next.Spec.Changes) {
		return e, nil
	}
	stored, err := r.Store.UpdateStatus(ctx, next)
	if err != nil {
		return nil, fmt.Errorf("store history: %w", err)
	}
	return stored, nil
}

// apply carries out the plan's op as the engine and stores it.
func (r *Reconciler) apply(ctx context.Context, e *rollout.Endpoint, plan rollout.Plan, now time.Time) (*rollout.Endpoint, error) {
	next, out, err := rollout.Apply(e, rollout.Request{
		ID: "engine-" + uuid.NewString(), Actor: rollout.Engine, Reason: plan.Why, Message: plan.Rollout.Message, Evidence: plan.Evidence, At: now.UTC(),
	}, plan.Op)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", plan.Op, err)
	}
	status := next.Status
	stored, err := r.Store.Update(ctx, next)
	if err != nil {
		return nil, fmt.Errorf("store %s: %w", plan.Op, err)
	}
	stored.Status = status
	// The audit: every decision leaves a line, whatever becomes of the object.
	r.Logger.Info("decided", "endpoint", e.Key().String(), "action", plan.Op.String(), "applied", out.Applied, "reason", string(plan.Why), "evidence", plan.Evidence, "outcome", out.Message)
	return stored, nil
}

func (r *Reconciler) fleetsOf(ctx context.Context, key rollout.Key) (map[string]cluster.FleetState, error) {
	all, err := r.Fleets.Fleets(ctx)
	if err != nil {
		return nil, err
	}
	out := map[string]cluster.FleetState{}
	for _, f := range all {
		if f.Key.Endpoint == key {
			out[f.Key.Version] = f
		}
	}
	return out, nil
}

// remove cleans up after an endpoint that is gone.
func (r *Reconciler) remove(ctx context.Context, key rollout.Key) error {
	r.evidence.forget(key)
	r.refusals.forget(key)
	fleets, err := r.fleetsOf(ctx, key)
	if err != nil {
		return fmt.Errorf("read fleets: %w", err)
	}
	var errs []error
	for version := range fleets {
		if err := r.Fleets.Delete(ctx, cluster.FleetKey{Endpoint: key, Version: version}); err != nil {
			errs = append(errs, fmt.Errorf("delete fleet of %s: %w", version, err))
		}
	}
	if err := r.Keys.DeleteKeys(ctx, key); err != nil && !errors.Is(err, cluster.ErrNotFound) {
		errs = append(errs, fmt.Errorf("delete keys: %w", err))
	}
	return errors.Join(errs...)
}

func (r *Reconciler) keys(ctx context.Context, e *rollout.Endpoint) error {
	if e.Spec.AuthMode() != rollout.AuthKey {
		return nil
	}
	_, err := r.Keys.EnsureKeys(ctx, e.Key())
	if err = r.refusals.note(e.Key(), "", err); err != nil {
		return fmt.Errorf("make keys: %w", err)
	}
	return nil
}

// fleets applies and deletes what is not as it should be, and returns when the
// next retired version is due.
func (r *Reconciler) fleets(ctx context.Context, e *rollout.Endpoint, have map[string]cluster.FleetState, now time.Time) ([]time.Duration, error) {
	var due []time.Duration
	var errs []error
	wanted := map[string]bool{}
	for i := range e.Spec.Versions {
		v := &e.Spec.Versions[i]
		if !v.RetiredAt.IsZero() {
			left := v.RetiredAt.Add(DrainRetired).Sub(now)
			if left <= 0 {
				continue
			}
			due = append(due, left)
		}
		wanted[v.Name] = true
		if f, ok := have[v.Name]; ok && f.Revision == v.Revision() {
			_ = r.refusals.note(e.Key(), v.Name, nil)
			continue
		}
		err := r.Fleets.Apply(ctx, cluster.FleetSpec{
			Key: cluster.FleetKey{Endpoint: e.Key(), Version: v.Name}, Revision: v.Revision(), Image: v.Image, Settings: v.Settings,
		})
		if err = r.refusals.note(e.Key(), v.Name, err); err != nil {
			errs = append(errs, fmt.Errorf("apply fleet of %s: %w", v.Name, err))
		}
	}
	r.refusals.keep(e.Key(), wanted)
	for version := range have {
		if wanted[version] {
			continue
		}
		if err := r.Fleets.Delete(ctx, cluster.FleetKey{Endpoint: e.Key(), Version: version}); err != nil {
			errs = append(errs, fmt.Errorf("delete fleet of %s: %w", version, err))
		}
	}
	return due, errors.Join(errs...)
}

// ending keeps messages in the status short: a traceback says most at its end.
func ending(s string, most int) string {
	s = strings.TrimSpace(s)
	if len(s) > most {
		s = "…" + strings.ToValidUTF8(s[len(s)-most:], "")
	}
	return s
}
