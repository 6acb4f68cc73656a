// Package clustertest has one conformance suite per port of pkg/cluster. Every
// backend runs them, fakes included, so that code tested against a fake meets the
// same behaviour in production.
package clustertest

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/sluice-dev/sluice/rollout"
)

// patience bounds the waits of the suites; nothing waits that long when all is well.
const patience = 15 * time.Second

// Image is a name by digest, as specs want it; which digest does not matter to stores.
func Image(hexDigit byte) string {
	b := make([]byte, 64)
	for i := range b {
		b[i] = hexDigit
	}
	return "registry.example/model@sha256:" + string(b)
}

// Endpoint is a valid one with a single version, as Deploy would leave it.
func Endpoint(namespace, name string) *rollout.Endpoint {
	return &rollout.Endpoint{
		APIVersion: rollout.APIVersion, Kind: rollout.Kind,
		Metadata: rollout.Metadata{Namespace: namespace, Name: name},
		Spec: rollout.Spec{Versions: []rollout.Version{{
			Name: "v1", Type: rollout.Control, IsDefault: true, Image: Image('a'),
			CreatedAt: time.Date(2026, 11, 23, 10, 0, 0, 0, time.UTC),
		}}},
	}
}

// eventually polls until done says nil, and fails with its last error.
func eventually(t *testing.T, what string, done func() error) {
	t.Helper()
	eventuallyWithin(t, patience, what, done)
}

func eventuallyWithin(t *testing.T, limit time.Duration, what string, done func() error) {
	t.Helper()
	deadline := time.Now().Add(limit)
	for {
		err := done()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %s: %v", what, limit, err)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// receive waits for the next value of c.
func receive[T any](t *testing.T, c <-chan T, what string) T {
	t.Helper()
	select {
	case v, open := <-c:
		if !open {
			t.Fatalf("%s: the channel is closed", what)
		}
		return v
	case <-time.After(patience):
		t.Fatalf("%s: nothing came within %s", what, patience)
	}
	panic("unreachable")
}

// closes waits until c is closed.
func closes[T any](t *testing.T, c <-chan T, what string) {
	t.Helper()
	limit := time.After(patience)
	for {
		select {
		case _, open := <-c:
			if !open {
				return
			}
		case <-limit:
			t.Fatalf("%s: the channel is still open %s after its context ended", what, patience)
		}
	}
}

// wantRefusal checks that err carries *rollout.Error values, one of them with the reason.
func wantRefusal(t *testing.T, err error, reason rollout.Reason) {
	t.Helper()
	var e *rollout.Error
	if !errors.As(err, &e) {
		t.Fatalf("err = %v, want a *rollout.Error with reason %s", err, reason)
	}
	for _, e := range rollout.AsErrors(err) {
		if e.Reason == reason {
			return
		}
	}
	t.Fatalf("err = %v, want reason %s", err, reason)
}

func wantIs(t *testing.T, err, target error, doing string) {
	t.Helper()
	if !errors.Is(err, target) {
		t.Fatalf("%s: err = %v, want %v", doing, err, target)
	}
}

func must[T any](t *testing.T) func(v T, err error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// scoped is a context that a test ends itself, and that ends with the test at the latest.
func scoped(t *testing.T) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	return ctx, cancel
}
