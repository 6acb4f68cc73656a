package webhookcmd

import (
	"context"
	"log/slog"

	"github.com/sluice-dev/sluice/pkg/webhook"
	"github.com/sluice-dev/sluice/rollout"
)

// runControl is the control role on this machine, until ctx ends. The options
// have the store and the journal.
func runControl(_ context.Context, _ config, _ webhook.Options, _ *slog.Logger) error {
	return &rollout.Error{Reason: rollout.ReasonNotSupportedYet, Field: "roles", Message: "the control role is not wired into this program", Hint: "leave control out of --roles"}
}
