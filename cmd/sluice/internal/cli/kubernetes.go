package cli

import (
	"context"
	"fmt"
	"io"

	"github.com/sluice-dev/sluice/pkg/cluster"
	"github.com/sluice-dev/sluice/pkg/cluster/kube"
	"github.com/sluice-dev/sluice/pkg/deploy"
	"github.com/sluice-dev/sluice/pkg/project"
)

// openKubernetes reaches a cluster as kubectl does.
func (a *app) openKubernetes(ctx context.Context) (*system, error) {
	k, err := a.follow()
	if err != nil {
		return nil, err
	}
	store, err := k.Store(ctx)
	if err != nil {
		return nil, err
	}
	if err := k.Start(ctx); err != nil {
		return nil, err
	}
	return &system{
		Store: store, Keys: k.Keys(), Logs: podLogs{a},
		Shipper: func(src project.Source, progress deploy.Progress) deploy.Shipper {
			return a.imageShipper(src, progress)
		},
	}, nil
}

// follow the namespace that the command is about.
func (a *app) follow() (*kube.Cluster, error) {
	return kube.Open(kube.OpenOptions{
		Kubeconfig: a.kubecfg, Context: a.kubeCtx, Namespaces: []string{a.namespace}, SystemNamespace: a.namespace, Logger: a.log,
	})
}

// podLogs follows pods only when logs are asked for: few commands need the right to see them.
type podLogs struct{ a *app }

// Logs implements cluster.LogReader.
func (p podLogs) Logs(ctx context.Context, key cluster.FleetKey, o cluster.LogOptions) (io.ReadCloser, error) {
	k, err := p.a.follow()
	if err != nil {
		return nil, err
	}
	fleets, err := k.Fleets(ctx)
	if err != nil {
		return nil, fmt.Errorf("read logs of %s: %w", key, err)
	}
	if err := k.Start(ctx); err != nil {
		return nil, err
	}
	return fleets.Logs(ctx, key, o)
}
