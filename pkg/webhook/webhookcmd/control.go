package webhookcmd

import (
	"context"
	"log/slog"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/sluice-dev/sluice/pkg/cluster"
	"github.com/sluice-dev/sluice/pkg/cluster/local"
	"github.com/sluice-dev/sluice/pkg/control"
	"github.com/sluice-dev/sluice/pkg/telemetry"
	"github.com/sluice-dev/sluice/pkg/webhook"
	"github.com/sluice-dev/sluice/rollout"
)

// runControl is the control role on this machine, until ctx ends. The options
// have the store and the journal.
func runControl(ctx context.Context, c config, o webhook.Options, log *slog.Logger) error {
	keys, err := local.NewKeys(c.state, log)
	if err != nil {
		return err
	}
	fleets := local.Dial(local.FleetSocket(c.state), log)
	defer func() { _ = fleets.Close() }()
	archives, err := local.NewArchives(c.state, log)
	if err != nil {
		return err
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	wg.Go(func() { collect(ctx, o.Store, archives, log) })
	return control.Run(ctx, control.Options{
		Store: o.Store, Fleets: fleets, Keys: keys, Journal: o.Journal, Logger: log,
		Routers:    telemetry.Reporters{telemetry.NewHTTPReporter(c.routerAdmin)},
		ScoringURI: c.scoringURI,
	})
}

// scoringURI is where clients score at an endpoint.
func (c config) scoringURI(k rollout.Key) string {
	base := strings.TrimRight(c.scoringURL, "/")
	if k.Namespace == c.namespace { // the router's short path
		return base + "/api/v1/service/" + url.PathEscape(k.Name) + "/score"
	}
	return base + "/api/v1/endpoint/" + url.PathEscape(k.Namespace) + "/" + url.PathEscape(k.Name) + "/score"
}

// Archives that no version names any more are removed after keepArchives.
const (
	collectEvery = 10 * time.Minute
	keepArchives = time.Hour
)

// collect removes archives that nothing uses, until ctx ends.
func collect(ctx context.Context, store cluster.Reader, archives *local.Archives, log *slog.Logger) {
	tick := time.NewTicker(collectEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		endpoints, err := store.List(ctx)
		if err != nil {
			log.Warn("listing endpoints failed; no archive is removed", "error", err)
			continue
		}
		if p, ok := store.(interface{ Problems() map[rollout.Key]error }); ok && len(p.Problems()) > 0 {
			continue // what a file that cannot be read names is not known
		}
		var images []string
		for _, e := range endpoints {
			for i := range e.Spec.Versions {
				images = append(images, e.Spec.Versions[i].Image)
			}
		}
		gone, err := archives.Collect(ctx, images, keepArchives)
		if err != nil && ctx.Err() == nil {
			log.Warn("removing archives failed", "error", err)
		}
		if len(gone) > 0 {
			log.Info("removed archives that no version uses", "digests", gone)
		}
	}
}
