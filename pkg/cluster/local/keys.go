package local

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/sluice-dev/sluice/pkg/access"
	"github.com/sluice-dev/sluice/pkg/cluster"
	"github.com/sluice-dev/sluice/pkg/cluster/internal/watch"
	"github.com/sluice-dev/sluice/rollout"
)

const (
	maxKeyFile    = 64 << 10
	maxHashesFile = 16 << 20
)

// Keys keeps each endpoint's keys in a file of its own that only this user can
// read, and the hashes of all in one file for routers.
type Keys struct {
	hashes *KeyHashes
	root   string
	lock   *pathLock
	log    *slog.Logger
}

var (
	_ cluster.Keys      = (*Keys)(nil)
	_ cluster.KeyHashes = (*Keys)(nil)
	_ cluster.KeyHashes = (*KeyHashes)(nil)
)

// NewKeys uses, and makes if need be, the keys of a state directory.
func NewKeys(dir string, log *slog.Logger) (*Keys, error) {
	hashes, err := NewKeyHashes(dir, log)
	if err != nil {
		return nil, err
	}
	root := filepath.Join(dir, "keys")
	if err := makeDir(root); err != nil {
		return nil, fmt.Errorf("open keys: %w", err)
	}
	lock, err := newDirLock(dir, "keys")
	if err != nil {
		return nil, fmt.Errorf("open keys: %w", err)
	}
	return &Keys{hashes: hashes, root: root, lock: lock, log: log}, nil
}

func (k *Keys) path(key rollout.Key) string {
	return filepath.Join(k.root, key.Namespace, key.Name+".json")
}

// Keys implements cluster.Keys.
func (k *Keys) Keys(_ context.Context, key rollout.Key) (access.Keys, error) {
	if err := cluster.ValidateKey(key); err != nil {
		return access.Keys{}, fmt.Errorf("get keys of %s: %w: %w", key, cluster.ErrNotFound, err)
	}
	out, err := k.read(key)
	if err != nil {
		return access.Keys{}, fmt.Errorf("get keys of %s: %w", key, err)
	}
	return out, nil
}

// EnsureKeys implements cluster.Keys. It also mends the hashes if a crash came
// between the writing of keys and of their hashes.
func (k *Keys) EnsureKeys(ctx context.Context, key rollout.Key) (access.Keys, error) {
	if err := cluster.ValidateKey(key); err != nil {
		return access.Keys{}, fmt.Errorf("ensure keys of %s: %w", key, err)
	}
	if out, err := k.read(key); err == nil && k.published(key, out) {
		return out, nil
	}
	var out access.Keys
	err := k.lock.with(ctx, func() (err error) {
		out, err = k.read(key)
		if errors.Is(err, cluster.ErrNotFound) {
			out = access.NewKeys()
			err = k.write(key, out)
		}
		if err != nil {
			return err
		}
		return k.publish(key, &out)
	})
	if err != nil {
		return access.Keys{}, fmt.Errorf("ensure keys of %s: %w", key, err)
	}
	return out, nil
}

// PutKeys implements cluster.Keys.
func (k *Keys) PutKeys(ctx context.Context, key rollout.Key, keys access.Keys) error {
	if err := cluster.ValidateKeys(key, keys); err != nil {
		return fmt.Errorf("put keys of %s: %w", key, err)
	}
	err := k.lock.with(ctx, func() error {
		if err := k.write(key, keys); err != nil {
			return err
		}
		return k.publish(key, &keys)
	})
	if err != nil {
		return fmt.Errorf("put keys of %s: %w", key, err)
	}
	return nil
}

// DeleteKeys implements cluster.Keys.
func (k *Keys) DeleteKeys(ctx context.Context, key rollout.Key) error {
	if cluster.ValidateKey(key) != nil {
		return nil // there can be none
	}
	err := k.lock.with(ctx, func() error {
		// The hashes first: after a crash in between, nothing is open that should not be.
		if err := k.publish(key, nil); err != nil {
			return err
		}
		if err := os.Remove(k.path(key)); err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			return err
		}
		return syncDir(filepath.Dir(k.path(key)))
	})
	if err != nil {
		return fmt.Errorf("delete keys of %s: %w", key, err)
	}
	return nil
}

// KeyHashes implements cluster.KeyHashes.
func (k *Keys) KeyHashes(ctx context.Context) (map[rollout.Key][]access.Hash, error) {
	return k.hashes.KeyHashes(ctx)
}

// WatchKeyHashes implements cluster.KeyHashes.
func (k *Keys) WatchKeyHashes(ctx context.Context) (<-chan struct{}, error) {
	return k.hashes.WatchKeyHashes(ctx)
}

func (k *Keys) read(key rollout.Key) (access.Keys, error) {
	data, info, err := readBounded(k.path(key), maxKeyFile)
	if errors.Is(err, fs.ErrNotExist) {
		return access.Keys{}, cluster.ErrNotFound
	}
	if err != nil {
		return access.Keys{}, err
	}
	if info.Mode().Perm()&0o077 != 0 {
		k.log.Warn("keys can be read by other users: closing them", "file", k.path(key), "mode", info.Mode().Perm().String())
		if err := os.Chmod(k.path(key), fileMode); err != nil {
			return access.Keys{}, err
		}
	}
	var out access.Keys
	if err := json.Unmarshal(data, &out); err != nil || len(out.Hashes()) == 0 {
		// The cause would quote the file: keys do not belong into errors.
		return access.Keys{}, fmt.Errorf("%s holds no keys: put new ones with `sluice keys regenerate ENDPOINT`", k.path(key))
	}
	return out, nil
}

func (k *Keys) write(key rollout.Key, keys access.Keys) error {
	dir := filepath.Dir(k.path(key))
	if err := makeDir(dir); err != nil {
		return err
	}
	removeStaleTemps(dir)
	data, err := json.Marshal(keys)
	if err != nil {
		return err
	}
	if err := writeAtomic(k.path(key), append(data, '\n')); err != nil {
		return err
	}
	return syncDir(k.root)
}

func (k *Keys) published(key rollout.Key, keys access.Keys) bool {
	m, err := k.hashes.readHashes()
	return err == nil && slices.Equal(m[key], keys.Hashes())
}

// publish sets the hashes of one endpoint, or removes them if keys is nil. It needs the lock.
func (k *Keys) publish(key rollout.Key, keys *access.Keys) error {
	m, err := k.hashes.readHashes()
	_, missing := os.Lstat(k.hashes.file)
	if err != nil {
		k.log.Error("key hashes cannot be read: making them anew", "err", err)
	}
	anew := err != nil || missing != nil
	if anew {
		if m, err = k.rebuild(); err != nil { // the keys are the truth
			return err
		}
	}
	was, there := m[key]
	switch {
	case keys == nil && there:
		delete(m, key)
	case keys != nil && !(there && slices.Equal(was, keys.Hashes())):
		m[key] = keys.Hashes()
	case !anew:
		return nil
	}
	file := hashesFile{Endpoints: map[string][]string{}}
	for k, hashes := range m {
		texts := []string{}
		for _, h := range hashes {
			texts = append(texts, hex.EncodeToString(h[:]))
		}
		file.Endpoints[k.String()] = texts
	}
	data, err := json.MarshalIndent(file, "", " ")
	if err != nil {
		return err
	}
	if err := writeAtomic(k.hashes.file, append(data, '\n')); err != nil {
		return err
	}
	k.hashes.bell.Ring()
	return nil
}

func (k *Keys) rebuild() (map[rollout.Key][]access.Hash, error) {
	out := map[rollout.Key][]access.Hash{}
	spaces, err := os.ReadDir(k.root)
	if err != nil {
		return nil, err
	}
	for _, ns := range spaces {
		files, err := os.ReadDir(filepath.Join(k.root, ns.Name()))
		if err != nil {
			continue
		}
		for _, f := range files {
			name, is := strings.CutSuffix(f.Name(), ".json")
			key := rollout.Key{Namespace: ns.Name(), Name: name}
			if !is || cluster.ValidateKey(key) != nil {
				continue
			}
			keys, err := k.read(key)
			if err != nil {
				k.log.Error("keys cannot be read", "endpoint", key.String(), "err", err)
				continue
			}
			out[key] = keys.Hashes()
		}
	}
	return out, nil
}

// KeyHashes reads the hashes of all endpoints' keys. If the file turns unreadable or
// vanishes, it goes on with what it read last: routers must not lock everyone out
// because of it.
type KeyHashes struct {
	file string
	log  *slog.Logger
	bell watch.Bell

	mu      sync.Mutex
	digest  string
	last    map[rollout.Key][]access.Hash
	problem string
	// watchers are the live calls of WatchKeyHashes.
	watchers int
	stop     context.CancelFunc
}

type hashesFile struct {
	// Endpoints by NAMESPACE/NAME; hashes in hexadecimal.
	Endpoints map[string][]string `json:"endpoints"`
}

// NewKeyHashes reads the key hashes of a state directory.
func NewKeyHashes(dir string, log *slog.Logger) (*KeyHashes, error) {
	if err := makeDir(dir); err != nil {
		return nil, fmt.Errorf("open key hashes: %w", err)
	}
	return &KeyHashes{file: filepath.Join(dir, "keyhashes.json"), log: log}, nil
}

// KeyHashes implements cluster.KeyHashes.
func (h *KeyHashes) KeyHashes(context.Context) (map[rollout.Key][]access.Hash, error) {
	m, err := h.readHashes()
	h.mu.Lock()
	defer h.mu.Unlock()
	if err != nil {
		if h.last == nil {
			return nil, fmt.Errorf("get key hashes: %w", err)
		}
		if h.problem != err.Error() {
			h.problem = err.Error()
			h.log.Error("key hashes cannot be read: the last good ones stay in force", "err", err)
		}
		return cloneHashes(h.last), nil
	}
	h.last, h.problem = m, ""
	return cloneHashes(m), nil
}

var errHashesGone = errors.New("the file of key hashes is gone")

// readHashes reads the file as it is now. One that is not there yet is empty; one
// that was there before is an error, because Sluice never removes it.
func (h *KeyHashes) readHashes() (map[rollout.Key][]access.Hash, error) {
	data, _, err := readBounded(h.file, maxHashesFile)
	if errors.Is(err, fs.ErrNotExist) {
		h.mu.Lock()
		defer h.mu.Unlock()
		if len(h.last) > 0 {
			return nil, errHashesGone
		}
		return map[rollout.Key][]access.Hash{}, nil
	}
	if err != nil {
		return nil, err
	}
	var f hashesFile
	if err := json.Unmarshal(data, &f); err != nil {
		return nil, fmt.Errorf("read %s: %w", h.file, err)
	}
	out := make(map[rollout.Key][]access.Hash, len(f.Endpoints))
	for k, texts := range f.Endpoints {
		ns, name, _ := strings.Cut(k, "/")
		hashes := make([]access.Hash, len(texts))
		for i, text := range texts {
			if len(text) != 2*len(hashes[i]) {
				return nil, fmt.Errorf("read %s: a hash of %s has %d characters", h.file, k, len(text))
			}
			if err := hashes[i].UnmarshalText([]byte(text)); err != nil {
				return nil, fmt.Errorf("read %s: %w", h.file, err)
			}
		}
		out[rollout.Key{Namespace: ns, Name: name}] = hashes
	}
	return out, nil
}

func cloneHashes(m map[rollout.Key][]access.Hash) map[rollout.Key][]access.Hash {
	out := make(map[rollout.Key][]access.Hash, len(m))
	for k, v := range m {
		out[k] = slices.Clone(v)
	}
	return out
}

// WatchKeyHashes implements cluster.KeyHashes.
func (h *KeyHashes) WatchKeyHashes(ctx context.Context) (<-chan struct{}, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("watch key hashes: %w", err)
	}
	c := h.bell.Listen(ctx)
	h.mu.Lock()
	defer h.mu.Unlock()
	h.watchers++
	context.AfterFunc(ctx, func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		if h.watchers--; h.watchers == 0 {
			h.stop()
		}
	})
	if h.watchers > 1 {
		return c, nil
	}
	lookCtx, stop := context.WithCancel(context.WithoutCancel(ctx))
	h.stop = stop
	p := newPoker(h.log)
	p.add(filepath.Dir(h.file))
	go p.run(lookCtx, func(map[string]bool) time.Duration {
		digest := "none"
		if data, _, err := readBounded(h.file, maxHashesFile); err == nil {
			digest = digestOf(data)
		}
		h.mu.Lock()
		changed := digest != h.digest
		h.digest = digest
		h.mu.Unlock()
		if changed {
			h.bell.Ring()
		}
		return 0
	})
	return c, nil
}
