package kube

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

func TestPatientDialer(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	refused := &net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}
	synctest.Test(t, func(t *testing.T) {
		waits := func() bool { return true }
		began := time.Now()
		up := began.Add(3 * time.Minute)
		here, there := net.Pipe()
		defer here.Close()
		defer there.Close()
		next := func(context.Context, string, string) (net.Conn, error) {
			if time.Now().Before(up) {
				return nil, refused
			}
			return here, nil
		}
		conn, err := patient(next, waits, log)(t.Context(), "tcp", "10.0.0.1:443")
		if err != nil || conn != here || time.Since(up) > time.Second {
			t.Errorf("%v, %v, %s after it is up", conn, err, time.Since(up))
		}

		// At the start somebody waits to be told.
		up = time.Now().Add(time.Hour)
		began = time.Now()
		if _, err := patient(next, func() bool { return false }, log)(t.Context(), "tcp", "10.0.0.1:443"); !errors.Is(err, syscall.ECONNREFUSED) || time.Since(began) > time.Second {
			t.Errorf("%v after %s", err, time.Since(began))
		}

		// Not for ever, and not once it is not asked for any more.
		up = time.Now().Add(time.Hour)
		began = time.Now()
		if _, err := patient(next, waits, log)(t.Context(), "tcp", "10.0.0.1:443"); !errors.Is(err, syscall.ECONNREFUSED) || time.Since(began) < dialPatience {
			t.Errorf("%v after %s", err, time.Since(began))
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		began = time.Now()
		if _, err := patient(next, waits, log)(ctx, "tcp", "10.0.0.1:443"); err == nil || time.Since(began) > 61*time.Second {
			t.Errorf("%v after %s", err, time.Since(began))
		}
	})
}
