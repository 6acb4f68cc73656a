// Package memory has the ports of pkg/cluster in memory, for tests. It uses no
// files, sockets or lasting goroutines, so that it works inside testing/synctest bubbles.
package memory

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/sluice-dev/sluice/pkg/cluster"
	"github.com/sluice-dev/sluice/pkg/cluster/internal/watch"
	"github.com/sluice-dev/sluice/rollout"
)

// Store keeps endpoints in memory.
type Store struct {
	mu        sync.Mutex
	endpoints map[rollout.Key]*rollout.Endpoint
	version   int64
	failure   error
	hub       watch.Keys
}

var _ cluster.Store = (*Store)(nil)

// NewStore is empty.
func NewStore() *Store { return &Store{endpoints: map[rollout.Key]*rollout.Endpoint{}} }

// SetFailure makes every call fail with err until it is set to nil: a store that
// is not there. Watches that run go on.
func (s *Store) SetFailure(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.failure = err
}

// Get implements cluster.Reader.
func (s *Store) Get(ctx context.Context, key rollout.Key) (*rollout.Endpoint, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e, err := s.find(ctx, "get", key)
	if err != nil {
		return nil, err
	}
	return e.Clone(), nil
}

// List implements cluster.Reader.
func (s *Store) List(ctx context.Context) ([]*rollout.Endpoint, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.usable(ctx, "list endpoints"); err != nil {
		return nil, err
	}
	var out []*rollout.Endpoint
	for _, k := range s.keys() {
		out = append(out, s.endpoints[k].Clone())
	}
	return out, nil
}

// Watch implements cluster.Reader.
func (s *Store) Watch(ctx context.Context) (<-chan rollout.Key, error) {
	return s.hub.Listen(ctx, func() ([]rollout.Key, error) {
		s.mu.Lock()
		defer s.mu.Unlock()
		if err := s.usable(ctx, "watch endpoints"); err != nil {
			return nil, err
		}
		return s.keys(), nil
	})
}

// Create implements cluster.Writer.
func (s *Store) Create(ctx context.Context, e *rollout.Endpoint) (*rollout.Endpoint, error) {
	if err := cluster.ValidateEndpoint(e); err != nil {
		return nil, fmt.Errorf("create endpoint %s: %w", e.Key(), err)
	}
	next := &rollout.Endpoint{APIVersion: rollout.APIVersion, Kind: rollout.Kind}
	if err := copyJSON(&next.Spec, e.Spec); err != nil {
		return nil, fmt.Errorf("create endpoint %s: %w", e.Key(), err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.usable(ctx, "create endpoint"); err != nil {
		return nil, err
	}
	if _, there := s.endpoints[e.Key()]; there {
		return nil, fmt.Errorf("create endpoint %s: %w", e.Key(), cluster.ErrExists)
	}
	next.Metadata = rollout.Metadata{
		Name: e.Metadata.Name, Namespace: e.Metadata.Namespace,
		UID: uuid.NewString(), Generation: 1, CreationTimestamp: time.Now().UTC().Truncate(time.Second),
	}
	return s.put(next), nil
}

// Update implements cluster.Writer.
func (s *Store) Update(ctx context.Context, e *rollout.Endpoint) (*rollout.Endpoint, error) {
	return s.change(ctx, "update", e, func(stored *rollout.Endpoint) (bool, error) {
		if err := e.Spec.Validate(); err != nil {
			return false, err
		}
		if err := rollout.ValidateUpdate(&stored.Spec, &e.Spec); err != nil {
			return false, err
		}
		if sameJSON(stored.Spec, e.Spec) {
			return false, nil
		}
		stored.Metadata.Generation++
		return true, copyJSON(&stored.Spec, e.Spec)
	})
}

// UpdateStatus implements cluster.Writer.
func (s *Store) UpdateStatus(ctx context.Context, e *rollout.Endpoint) (*rollout.Endpoint, error) {
	return s.change(ctx, "update status of", e, func(stored *rollout.Endpoint) (bool, error) {
		if sameJSON(stored.Status, e.Status) {
			return false, nil
		}
		return true, copyJSON(&stored.Status, e.Status)
	})
}

// Delete implements cluster.Writer.
func (s *Store) Delete(ctx context.Context, key rollout.Key, resourceVersion string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	stored, err := s.find(ctx, "delete", key)
	if err != nil {
		return err
	}
	if resourceVersion != "" && resourceVersion != stored.Metadata.ResourceVersion {
		return fmt.Errorf("delete endpoint %s: %w", key, cluster.ErrConflict)
	}
	delete(s.endpoints, key)
	s.hub.Changed(key)
	return nil
}

func (s *Store) change(ctx context.Context, verb string, e *rollout.Endpoint, apply func(stored *rollout.Endpoint) (bool, error)) (*rollout.Endpoint, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	stored, err := s.find(ctx, verb, e.Key())
	if err != nil {
		return nil, err
	}
	if e.Metadata.ResourceVersion != stored.Metadata.ResourceVersion {
		return nil, fmt.Errorf("%s endpoint %s: resource version %q is not %q: %w", verb, e.Key(),
			e.Metadata.ResourceVersion, stored.Metadata.ResourceVersion, cluster.ErrConflict)
	}
	stored = stored.Clone()
	changed, err := apply(stored)
	if err != nil {
		return nil, fmt.Errorf("%s endpoint %s: %w", verb, e.Key(), err)
	}
	if !changed {
		return stored, nil
	}
	return s.put(stored), nil
}

// put stores e under the next resource version and returns a copy.
func (s *Store) put(e *rollout.Endpoint) *rollout.Endpoint {
	s.version++
	e.Metadata.ResourceVersion = strconv.FormatInt(s.version, 10)
	s.endpoints[e.Key()] = e
	s.hub.Changed(e.Key())
	return e.Clone()
}

func (s *Store) find(ctx context.Context, verb string, key rollout.Key) (*rollout.Endpoint, error) {
	if err := s.usable(ctx, verb+" endpoint"); err != nil {
		return nil, err
	}
	e, there := s.endpoints[key]
	if !there {
		return nil, fmt.Errorf("%s endpoint %s: %w", verb, key, cluster.ErrNotFound)
	}
	return e, nil
}

func (s *Store) usable(ctx context.Context, doing string) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("%s: %w", doing, err)
	}
	if s.failure != nil {
		return fmt.Errorf("%s: %w", doing, s.failure)
	}
	return nil
}

func (s *Store) keys() []rollout.Key {
	out := make([]rollout.Key, 0, len(s.endpoints))
	for k := range s.endpoints {
		out = append(out, k)
	}
	slices.SortFunc(out, cluster.CompareKeys)
	return out
}

func sameJSON(a, b any) bool {
	x, errX := json.Marshal(a)
	y, errY := json.Marshal(b)
	return errX == nil && errY == nil && bytes.Equal(x, y)
}

// copyJSON makes to a deep copy of from. It fails, where Endpoint.Clone panics, on
// what has no JSON form, such as a share above 100 per cent in a status.
func copyJSON[T any](to *T, from T) error {
	b, err := json.Marshal(from)
	if err != nil {
		return err
	}
	var zero T
	*to = zero
	return json.Unmarshal(b, to)
}
