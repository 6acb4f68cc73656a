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
		conn, err := patient(next, log)(t.Context(), "tcp", "10.0.0.1:443")
		if err != nil || conn != here || time.Since(up) > time.Second {
			t.Errorf("%v, %v, %s after it is up", conn, err, time.Since(up))
		}

		// Not for ever, and not once it is not asked for any more.
		up = time.Now().Add(time.Hour)
		began = time.Now()
		if _, err := patient(next, log)(t.Context(), "tcp", "10.0.0.1:443"); !errors.Is(err, syscall.ECONNREFUSED) || time.Since(began) < dialPatience {
			t.Errorf("%v after %s", err, time.Since(began))
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		began = time.Now()
		if _, err := patient(next, log)(ctx, "tcp", "10.0.0.1:443"); err == nil || time.Since(began) > 61*time.Second {
			t.Errorf("%v after %s", err, time.Since(began))
		}
	})
}
