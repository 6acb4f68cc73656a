package kube

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/go-logr/logr"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/util/workqueue"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/config"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/healthz"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"

	"github.com/sluice-dev/sluice/pkg/cluster"
	"github.com/sluice-dev/sluice/pkg/cluster/kube/v1alpha1"
	"github.com/sluice-dev/sluice/rollout"
)

// conflictPause lets the watch bring what somebody else wrote.
const conflictPause = 20 * time.Millisecond

// Reconciler is what a Controller drives: pkg/control's.
type Reconciler interface {
	Reconcile(ctx context.Context, key rollout.Key) (time.Duration, error)
	// Poll is called every PollEvery, by the leader; the keys it returns are reconciled.
	Poll(ctx context.Context) []rollout.Key
}

// ControllerOptions of RunController.
type ControllerOptions struct {
	Reconciler Reconciler
	PollEvery  time.Duration
	// Lease is the name that the leader holds in the system's namespace.
	Lease string
	// MetricsAddress serves /metrics, HealthAddress /healthz and /readyz; "0" for none.
	MetricsAddress, HealthAddress string
	// Workers reconcile at a time, never one endpoint twice.
	Workers int
	// AsLeader run beside it while this process leads.
	AsLeader []func(context.Context) error
}

// RunController starts the cluster's watches and, while this process leads,
// reconciles each endpoint whenever it or something of it changes. It runs until ctx
// ends, and fails when the lease is lost, so that the process starts afresh.
func (c *Cluster) RunController(ctx context.Context, o ControllerOptions) error {
	log := logr.FromSlogHandler(c.log.Handler())
	once := true // the process has one manager; names of controllers are unique for metrics' sake alone
	lease, renew, retry := leaseDuration, renewDeadline, retryPeriod
	m, err := ctrl.NewManager(c.config, manager.Options{
		Scheme: c.client.Scheme(), Logger: log,
		NewCache:       func(*rest.Config, cache.Options) (cache.Cache, error) { return c.cache, nil },
		LeaderElection: true, LeaderElectionID: o.Lease, LeaderElectionNamespace: c.options.SystemNamespace,
		LeaderElectionReleaseOnCancel: true, LeaseDuration: &lease, RenewDeadline: &renew, RetryPeriod: &retry,
		Metrics: metricsserver.Options{BindAddress: o.MetricsAddress}, HealthProbeBindAddress: o.HealthAddress,
		Controller: config.Controller{SkipNameValidation: &once},
	})
	if err != nil {
		return fmt.Errorf("make manager: %w", err)
	}
	r := reconcile.Func(func(ctx context.Context, q reconcile.Request) (reconcile.Result, error) {
		after, err := o.Reconciler.Reconcile(ctx, rollout.Key{Namespace: q.Namespace, Name: q.Name})
		if errors.Is(err, cluster.ErrConflict) { // someone else wrote: look at what
			return reconcile.Result{RequeueAfter: conflictPause}, nil
		}
		return reconcile.Result{RequeueAfter: after}, err
	})
	ctl, err := controller.New("endpoint", m, controller.Options{
		Reconciler: r, MaxConcurrentReconciles: max(1, o.Workers),
		RateLimiter: workqueue.NewTypedItemExponentialFailureRateLimiter[reconcile.Request](20*time.Millisecond, 5*time.Second),
	})
	if err != nil {
		return fmt.Errorf("make controller: %w", err)
	}
	sources := []source.Source{source.Kind[client.Object](c.cache, &v1alpha1.ModelEndpoint{}, &handler.EnqueueRequestForObject{})}
	toEndpoint := handler.EnqueueRequestsFromMapFunc(func(_ context.Context, o client.Object) []reconcile.Request {
		key, ok := fleetKey(o.GetNamespace(), o.GetLabels())
		if !ok {
			return nil
		}
		return []reconcile.Request{{NamespacedName: client.ObjectKey{Namespace: key.Endpoint.Namespace, Name: key.Endpoint.Name}}}
	})
	for _, kind := range []client.Object{&appsv1.Deployment{}, &corev1.Pod{}, &discoveryv1.EndpointSlice{}} {
		sources = append(sources, source.Kind[client.Object](c.cache, kind, toEndpoint))
	}
	if c.options.Secrets == SecretsOfKeys {
		// Keys that somebody deletes are made again at once.
		sources = append(sources, source.Kind[client.Object](c.cache, &corev1.Secret{}, handler.EnqueueRequestsFromMapFunc(func(_ context.Context, o client.Object) []reconcile.Request {
			return []reconcile.Request{{NamespacedName: client.ObjectKey{Namespace: o.GetNamespace(), Name: o.GetLabels()[LabelEndpoint]}}}
		})))
	}
	evidence := make(chan event.TypedGenericEvent[client.Object], 256)
	sources = append(sources, source.Channel(evidence, &handler.EnqueueRequestForObject{}))
	for _, s := range sources {
		if err := ctl.Watch(s); err != nil {
			return fmt.Errorf("watch: %w", err)
		}
	}
	poll := manager.RunnableFunc(func(ctx context.Context) error {
		tick := time.NewTicker(o.PollEvery)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return nil
			case <-tick.C:
			}
			for _, key := range o.Reconciler.Poll(ctx) {
				e := &v1alpha1.ModelEndpoint{}
				e.Namespace, e.Name = key.Namespace, key.Name
				select {
				case evidence <- event.TypedGenericEvent[client.Object]{Object: e}:
				case <-ctx.Done():
					return nil
				}
			}
		}
	})
	runnables := []manager.Runnable{poll}
	for _, fn := range o.AsLeader {
		runnables = append(runnables, manager.RunnableFunc(fn))
	}
	for _, run := range runnables { // funcs need to lead, unless they say otherwise
		if err := m.Add(run); err != nil {
			return fmt.Errorf("add to manager: %w", err)
		}
	}
	synced := func(q *http.Request) error {
		if !c.cache.WaitForCacheSync(q.Context()) {
			return errors.New("the cluster has not been read yet")
		}
		return nil
	}
	for _, err := range []error{m.AddHealthzCheck("ping", healthz.Ping), m.AddReadyzCheck("watches", synced)} {
		if err != nil {
			return fmt.Errorf("add health check: %w", err)
		}
	}
	if err := m.Start(ctx); err != nil && ctx.Err() == nil {
		return fmt.Errorf("run controller: %w", err)
	}
	return nil
}
