//go:build unix

package runner

import (
	"context"
	"os"
	"os/signal"
	"syscall"
	"testing"
)

// TestMain makes the test binary a runner when asked to, for tests that need one as a
// process of its own.
func TestMain(m *testing.M) {
	if os.Getenv("RUNNER_TEST_AS_MAIN") == "1" {
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
		defer stop()
		os.Exit(Main(ctx, os.Args[1:], os.Environ(), os.Stdout, os.Stderr))
	}
	if err := os.Setenv("PYTHONDONTWRITEBYTECODE", "1"); err != nil { // keep testdata as it is
		panic(err)
	}
	os.Exit(m.Run())
}
