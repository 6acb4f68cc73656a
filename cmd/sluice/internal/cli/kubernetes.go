package cli

import (
	"context"

	"github.com/sluice-dev/sluice/pkg/cluster/kube"
	"github.com/sluice-dev/sluice/pkg/deploy"
	"github.com/sluice-dev/sluice/pkg/project"
)

// openKubernetes reaches a cluster as kubectl does.
func (a *app) openKubernetes(ctx context.Context) (*system, error) {
	k, err := kube.OpenClient(ctx, kube.OpenOptions{
		Kubeconfig: a.kubecfg, Context: a.kubeCtx, Namespaces: []string{a.namespace}, SystemNamespace: a.namespace, Logger: a.log,
	})
	if err != nil {
		return nil, err
	}
	return &system{
		Store: k.Store, Keys: k.Keys, Logs: k.Logs,
		Shipper: func(src project.Source, progress deploy.Progress) deploy.Shipper {
			return a.imageShipper(src, progress)
		},
	}, nil
}
