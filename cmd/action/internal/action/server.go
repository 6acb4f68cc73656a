package action

import (
	"cmp"
	"context"
	"fmt"
	"strings"

	"github.com/sluice-dev/sluice/pkg/api/client"
	"github.com/sluice-dev/sluice/pkg/process"
	"github.com/sluice-dev/sluice/rollout"
)

// reachServer reaches the webhook service's API, by the token that GitHub makes for this job.
func (r *run) reachServer(context.Context) (*system, error) {
	server := strings.TrimRight(r.in.text["server"], "/")
	audience := cmp.Or(r.in.text["server-audience"], server)
	if process.Getenv(r.env, "ACTIONS_ID_TOKEN_REQUEST_URL") == "" || process.Getenv(r.env, "ACTIONS_ID_TOKEN_REQUEST_TOKEN") == "" {
		return nil, &rollout.Error{
			Reason: rollout.ReasonDenied, Field: "server", Message: "GitHub makes no token for this job, by which it would prove who it is to the server",
			Hint: "give the job `permissions: {id-token: write}`; workflows of pull requests from forks cannot have it",
		}
	}
	c, err := client.New(client.Options{URL: server, UserAgent: "sluice-action", Logger: r.log, Token: func(ctx context.Context) (string, error) {
		token, err := r.r.gh.GetIDToken(ctx, audience)
		if err != nil {
			return "", fmt.Errorf("ask GitHub for a token: %w", err)
		}
		r.r.mask(token)
		return token, nil
	}})
	if err != nil {
		return nil, err
	}
	return &system{endpoints: c, keys: ownKey(r.in.text["endpoint-key"]), namespace: cmp.Or(r.in.text["namespace"], "default")}, nil
}
