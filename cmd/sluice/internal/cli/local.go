package cli

import (
	"errors"
	"fmt"

	"github.com/sluice-dev/sluice/pkg/cluster/local"
)

// openLocal reaches the system on this machine: its files need nobody running.
func (a *app) openLocal() (*system, error) {
	if a.state == "" {
		return nil, usageError{errors.New("there is no home directory: name the state directory with --state")}
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
	return &system{Store: store, Keys: keys, Archives: archives, Logs: local.NewLogs(a.state), Problems: store.Problems}, nil
}
