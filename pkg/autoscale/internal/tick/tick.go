// Package tick is the loop of what looks again and again.
package tick

import (
	"context"
	"log/slog"
	"time"
)

// Every calls once each period until ctx ends. Its errors are logged as failed and the next tick tries
// again: nothing that fails for a while ends the loop.
func Every(ctx context.Context, period time.Duration, log *slog.Logger, failed string, once func(ctx context.Context, now time.Time) error) {
	tick := time.NewTicker(period)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			if err := once(ctx, now); err != nil && ctx.Err() == nil {
				log.Warn(failed, "error", err)
			}
		}
	}
}
