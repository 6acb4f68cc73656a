package kube

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"time"
)

// The patience of a dialer.
const (
	dialAgain    = 500 * time.Millisecond
	dialPatience = 10 * time.Minute
)

// dialer is rest.Config's Dial.
type dialer func(ctx context.Context, network, address string) (net.Conn, error)

// patient goes on dialing while nobody answers, once it is to wait. The cache's watches begin again ever more rarely after they failed, up to a minute apart, which
// an API server's return does not change: what they hold would be as old as that. So they do not fail, but wait here.
func patient(next dialer, wait func() bool, log *slog.Logger) dialer {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		began := time.Now()
		for {
			conn, err := next(ctx, network, address)
			switch {
			case err == nil:
				return conn, nil
			case !wait() || ctx.Err() != nil || time.Since(began) > dialPatience:
				return nil, fmt.Errorf("dial the API server for %s: %w", time.Since(began).Round(time.Second), err)
			}
			log.DebugContext(ctx, "the API server cannot be reached, and is dialed again", "address", address, "for", time.Since(began), "error", err)
			select {
			case <-time.After(dialAgain):
			case <-ctx.Done():
			}
		}
	}
}
