package action

import (
	"context"

	"github.com/sluice-dev/sluice/rollout"
)

// reachServer reaches the webhook service.
func (r *run) reachServer(context.Context) (*system, error) {
	return nil, &rollout.Error{Reason: rollout.ReasonNotSupportedYet, Field: "server", Message: "deploys by the webhook service are not built yet", Hint: "use a kubeconfig"}
}
