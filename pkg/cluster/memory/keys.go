package memory

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"github.com/sluice-dev/sluice/pkg/access"
	"github.com/sluice-dev/sluice/pkg/cluster"
	"github.com/sluice-dev/sluice/pkg/cluster/internal/watch"
	"github.com/sluice-dev/sluice/rollout"
)

// Keys holds keys and their hashes in memory.
type Keys struct {
	mu      sync.Mutex
	keys    map[rollout.Key]access.Keys
	failure error
	bell    watch.Bell
}

var (
	_ cluster.Keys      = (*Keys)(nil)
	_ cluster.KeyHashes = (*Keys)(nil)
)

// NewKeys is empty.
func NewKeys() *Keys { return &Keys{keys: map[rollout.Key]access.Keys{}} }

// SetFailure makes every call fail with err until it is set to nil.
func (k *Keys) SetFailure(err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.failure = err
}

// Keys implements cluster.Keys.
func (k *Keys) Keys(_ context.Context, key rollout.Key) (access.Keys, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.failure != nil {
		return access.Keys{}, fmt.Errorf("get keys of %s: %w", key, k.failure)
	}
	out, there := k.keys[key]
	if !there {
		return access.Keys{}, fmt.Errorf("get keys of %s: %w", key, cluster.ErrNotFound)
	}
	return out, nil
}

// EnsureKeys implements cluster.Keys.
func (k *Keys) EnsureKeys(_ context.Context, key rollout.Key) (access.Keys, error) {
	if err := cluster.ValidateKey(key); err != nil {
		return access.Keys{}, fmt.Errorf("ensure keys of %s: %w", key, err)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.failure != nil {
		return access.Keys{}, fmt.Errorf("ensure keys of %s: %w", key, k.failure)
	}
	if out, there := k.keys[key]; there {
		return out, nil
	}
	out := access.NewKeys()
	k.keys[key] = out
	k.bell.Ring()
	return out, nil
}

// PutKeys implements cluster.Keys.
func (k *Keys) PutKeys(_ context.Context, key rollout.Key, keys access.Keys) error {
	if err := cluster.ValidateKeys(key, keys); err != nil {
		return fmt.Errorf("put keys of %s: %w", key, err)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.failure != nil {
		return fmt.Errorf("put keys of %s: %w", key, k.failure)
	}
	if was, there := k.keys[key]; there && was == keys {
		return nil
	}
	k.keys[key] = keys
	k.bell.Ring()
	return nil
}

// DeleteKeys implements cluster.Keys.
func (k *Keys) DeleteKeys(_ context.Context, key rollout.Key) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.failure != nil {
		return fmt.Errorf("delete keys of %s: %w", key, k.failure)
	}
	if _, there := k.keys[key]; there {
		delete(k.keys, key)
		k.bell.Ring()
	}
	return nil
}

// KeyHashes implements cluster.KeyHashes.
func (k *Keys) KeyHashes(context.Context) (map[rollout.Key][]access.Hash, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.failure != nil {
		return nil, fmt.Errorf("get key hashes: %w", k.failure)
	}
	out := make(map[rollout.Key][]access.Hash, len(k.keys))
	for key, v := range k.keys {
		out[key] = slices.Clone(v.Hashes())
	}
	return out, nil
}

// WatchKeyHashes implements cluster.KeyHashes.
func (k *Keys) WatchKeyHashes(ctx context.Context) (<-chan struct{}, error) {
	return k.bell.Listen(ctx), nil
}
