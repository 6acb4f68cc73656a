package cluster

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/sluice-dev/sluice/rollout"
)

// editTries bounds how often a lost race is tried again.
const editTries = 20

// Editor changes endpoints by transitions only: a Store that is reached directly (see Editing), or a
// control plane's API. Safe for concurrent use.
type Editor interface {
	// Get fails with ErrNotFound.
	Get(ctx context.Context, key rollout.Key) (*rollout.Endpoint, error)
	// Edit is the function of that name. change may be called several times.
	Edit(ctx context.Context, key rollout.Key, req rollout.Request, change func(*rollout.Endpoint) (rollout.Op, error)) (*rollout.Endpoint, rollout.Outcome, error)
	// Delete is that of Writer.
	Delete(ctx context.Context, key rollout.Key, resourceVersion string) error
}

// Editing makes a store an Editor.
func Editing(s Store) Editor { return editor{s} }

type editor struct{ Store }

// Edit implements Editor.
func (e editor) Edit(ctx context.Context, key rollout.Key, req rollout.Request, change func(*rollout.Endpoint) (rollout.Op, error)) (*rollout.Endpoint, rollout.Outcome, error) {
	return Edit(ctx, e.Store, key, req, change)
}

// Edit reads an endpoint, applies the transition that change makes of it, and
// writes it with its resource version; a lost race begins again from the read. An
// endpoint that is not there is handed to change empty, and created by its first
// Deploy. The endpoint returned has the status as read.
func Edit(ctx context.Context, store Store, key rollout.Key, req rollout.Request, change func(*rollout.Endpoint) (rollout.Op, error)) (*rollout.Endpoint, rollout.Outcome, error) {
	var last error
	for try := range editTries {
		if try > 0 {
			select {
			case <-ctx.Done():
				return nil, rollout.Outcome{}, ctx.Err()
			case <-time.After(time.Duration(try) * 5 * time.Millisecond):
			}
		}
		e, err := store.Get(ctx, key)
		missing := errors.Is(err, ErrNotFound)
		if missing {
			e = &rollout.Endpoint{APIVersion: rollout.APIVersion, Kind: rollout.Kind, Metadata: rollout.Metadata{Namespace: key.Namespace, Name: key.Name}}
		} else if err != nil {
			return nil, rollout.Outcome{}, fmt.Errorf("read endpoint %s: %w", key, err)
		}
		op, err := change(e)
		if err != nil {
			return nil, rollout.Outcome{}, err
		}
		if _, deploy := op.(rollout.Deploy); missing && !deploy {
			return nil, rollout.Outcome{}, UnknownEndpoint(key)
		}
		next, out, err := rollout.Apply(e, req, op)
		if err != nil {
			return nil, out, err
		}
		if !out.Changed {
			return e, out, nil
		}
		var stored *rollout.Endpoint
		if missing {
			stored, err = store.Create(ctx, next)
		} else {
			stored, err = store.Update(ctx, next)
		}
		if err == nil {
			return stored, out, nil
		}
		if !errors.Is(err, ErrConflict) && !errors.Is(err, ErrExists) && !errors.Is(err, ErrNotFound) {
			return nil, rollout.Outcome{}, fmt.Errorf("write endpoint %s: %w", key, err)
		}
		last = err
	}
	return nil, rollout.Outcome{}, &rollout.Error{
		Reason: rollout.ReasonConflict, Field: "endpoint", Message: fmt.Sprintf("%s was changed by others %d times in a row: %v", key, editTries, last), Hint: "try again",
	}
}

// UnknownEndpoint is the refusal of a key that no endpoint has.
func UnknownEndpoint(key rollout.Key) *rollout.Error {
	return &rollout.Error{
		Reason: rollout.ReasonUnknownEndpoint, Field: "endpoint", Message: fmt.Sprintf("namespace %s has no endpoint %q", key.Namespace, key.Name),
		Hint: "`sluice status` lists them; `sluice deploy` makes one",
	}
}
