package webhookcmd

import (
	"context"
	"log/slog"
	"slices"
	"time"

	"github.com/sluice-dev/sluice/pkg/cluster/kube"
	"github.com/sluice-dev/sluice/pkg/control"
	"github.com/sluice-dev/sluice/pkg/webhook"
)

// leaseControl is held by the control role that reconciles.
const leaseControl = "sluice-control"

// controlWorkers reconcile at a time.
const controlWorkers = 4

// wireKubernetes follows a cluster. The roles github and api, which the internet reaches, see
// endpoints and the journal and nothing else.
func wireKubernetes(ctx context.Context, c config, o *webhook.Options, log *slog.Logger) error {
	leads := slices.Contains(o.Roles, webhook.RoleControl)
	open := kube.OpenOptions{
		Kubeconfig: c.kube.Kubeconfig, Context: c.kube.Context, Namespaces: c.kube.List(), SystemNamespace: c.kube.System, Patient: true, Logger: log,
	}
	if leads {
		open.Secrets = kube.SecretsOfKeys
	}
	k, err := kube.Open(open)
	if err != nil {
		return err
	}
	if o.Store, err = k.Store(ctx); err != nil {
		return err
	}
	o.Journal = k.Journal()
	if !leads {
		return k.Start(ctx)
	}
	fleets, err := k.Fleets(ctx)
	if err != nil {
		return err
	}
	fleets.GateImage = c.gateImage
	keys, err := k.WatchedKeys(ctx)
	if err != nil {
		return err
	}
	routers, err := k.Routers(ctx)
	if err != nil {
		return err
	}
	tell, silence, err := k.Events()
	if err != nil {
		return err
	}
	r := control.NewReconciler(control.Options{
		Tell: tell, Store: o.Store, Fleets: fleets, Keys: keys, Journal: o.Journal, Logger: log, Routers: routers, ScoringURI: c.scoringURI,
	})
	o.Control = func(ctx context.Context) error {
		defer silence()
		return k.RunController(ctx, kube.ControllerOptions{
			Reconciler: r, PollEvery: control.PollEvidence, Lease: leaseControl, Workers: controlWorkers,
			MetricsAddress: c.admin, HealthAddress: c.health,
			AsLeader: []func(context.Context) error{
				func(ctx context.Context) error { return keys.Publish(ctx, log) },
				func(ctx context.Context) error { return prune(ctx, r) },
			},
		})
	}
	return nil
}

// prune the journal every hour, until ctx ends.
func prune(ctx context.Context, r *control.Reconciler) error {
	tick := time.NewTicker(time.Hour)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case now := <-tick.C:
			r.Prune(ctx, now)
		}
	}
}
