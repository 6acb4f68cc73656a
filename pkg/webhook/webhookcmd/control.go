package webhookcmd

import (
	"context"
	"log/slog"
	"net/url"
	"strings"

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
	base := strings.TrimRight(c.scoringURL, "/")
	return control.Run(ctx, control.Options{
		Store: o.Store, Fleets: fleets, Keys: keys, Journal: o.Journal, Logger: log,
		Routers: telemetry.Reporters{telemetry.NewHTTPReporter(c.routerAdmin)},
		ScoringURI: func(k rollout.Key) string {
			if k.Namespace == c.namespace { // the router's short path
				return base + "/api/v1/service/" + url.PathEscape(k.Name) + "/score"
			}
			return base + "/api/v1/endpoint/" + url.PathEscape(k.Namespace) + "/" + url.PathEscape(k.Name) + "/score"
		},
	})
}
