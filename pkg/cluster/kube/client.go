package kube

import (
	"context"
	"fmt"
	"io"

	"github.com/sluice-dev/sluice/pkg/cluster"
)

// Client is what commands that come and go need of a cluster.
type Client struct {
	Store cluster.Store
	Keys  cluster.Keys
	Logs  cluster.LogReader
}

// OpenClient reaches the endpoints of the options' namespaces, until ctx ends. Pods are followed only when logs are asked for:
// few commands need the right to see them.
func OpenClient(ctx context.Context, o OpenOptions) (*Client, error) {
	k, err := Open(o)
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
	return &Client{Store: store, Keys: k.Keys(), Logs: podLogs{o}}, nil
}

type podLogs struct{ o OpenOptions }

// Logs implements cluster.LogReader.
func (p podLogs) Logs(ctx context.Context, key cluster.FleetKey, o cluster.LogOptions) (io.ReadCloser, error) {
	k, err := Open(p.o)
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
