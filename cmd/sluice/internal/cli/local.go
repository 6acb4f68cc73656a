package cli

import (
	"context"
	"fmt"

	"github.com/sluice-dev/sluice/pkg/cluster/local"
	"github.com/sluice-dev/sluice/pkg/deploy"
	"github.com/sluice-dev/sluice/pkg/project"
)

// openLocal reaches the system on this machine: its files need nobody running.
func (a *app) openLocal(context.Context) (*system, error) {
	if a.state == "" {
		return nil, misuse("--state", "name the state directory with --state", "there is no home directory")
	}
	store, err := local.NewStore(a.state, a.log)
	if err != nil {
		return nil, fmt.Errorf("open endpoints: %w", err)
	}
	keys, err := local.NewKeys(a.state, a.log)
	if err != nil {
		return nil, fmt.Errorf("open keys: %w", err)
	}
	archives, err := local.NewArchives(a.state, a.log)
	if err != nil {
		return nil, fmt.Errorf("open archives: %w", err)
	}
	return &system{
		Store: store, Keys: keys, Logs: local.NewLogs(a.state), Problems: store.Problems,
		Shipper: func(src project.Source, _ deploy.Progress) deploy.Shipper {
			return shipper{archives: archives, source: src, manifest: a.manifest}
		},
	}, nil
}
