package kube

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sluice-dev/sluice/pkg/access"
	"github.com/sluice-dev/sluice/pkg/cluster"
	"github.com/sluice-dev/sluice/pkg/cluster/internal/watch"
	"github.com/sluice-dev/sluice/rollout"
)

// HashesName is the one Secret that routers read, in the system's namespace: the SHA-256
// hashes of every endpoint's keys.
const HashesName = "sluice-key-hashes"

// The entries of an endpoint's Secret.
const (
	keyPrimary   = "primary"
	keySecondary = "secondary"
)

// Keys keeps each endpoint's keys in a Secret beside it, ENDPOINT-keys, which ends
// with the endpoint.
type Keys struct {
	c *Cluster
	// watched: EnsureKeys may trust the watch instead of asking.
	watched bool

	mu sync.Mutex
	// wrote are this process's own writes: the watch counts again once it has brought them.
	wrote map[rollout.Key]keysWrite
}

type keysWrite struct {
	resourceVersion string    // of what was written, or "" for a deletion …
	uid             types.UID // … of this one
}

var _ cluster.Keys = (*Keys)(nil)

// Keys of the endpoints; every call asks the API server.
func (c *Cluster) Keys() *Keys { return &Keys{c: c, wrote: map[rollout.Key]keysWrite{}} }

// WatchedKeys follows the Secrets, for the control role, which makes sure of every
// endpoint's keys all the time. The cluster must be made with Options.Secrets = SecretsOfKeys.
func (c *Cluster) WatchedKeys(ctx context.Context) (*Keys, error) {
	k := c.Keys()
	k.watched = true
	return k, c.inform(ctx, &corev1.Secret{}, func(client.Object, bool) {})
}

func keysOf(s *corev1.Secret) access.Keys {
	// Whoever edits one by hand leaves a newline at its end, which no client sends.
	text := func(name string) string { return strings.TrimSpace(string(s.Data[name])) }
	return access.Keys{Primary: text(keyPrimary), Secondary: text(keySecondary)}
}

func objectKey(key rollout.Key) client.ObjectKey {
	return client.ObjectKey{Namespace: key.Namespace, Name: keysName(key.Name)}
}

// get asks the API server.
func (k *Keys) get(ctx context.Context, key rollout.Key) (*corev1.Secret, error) {
	var s corev1.Secret
	if err := k.c.client.Get(ctx, objectKey(key), &s); err != nil {
		return nil, err
	}
	if s.Labels[LabelPart] != PartKeys || s.Labels[LabelEndpoint] != key.Name {
		return nil, &rollout.Error{
			Reason: rollout.ReasonInvalid, Field: "keys", Message: fmt.Sprintf("secret %s/%s is not one of Sluice's", s.Namespace, s.Name),
			Hint: "give that secret another name: this one is the endpoint's",
		}
	}
	return &s, nil
}

// Keys implements cluster.Keys.
func (k *Keys) Keys(ctx context.Context, key rollout.Key) (access.Keys, error) {
	if err := cluster.ValidateKey(key); err != nil {
		return access.Keys{}, fmt.Errorf("get keys of %s: %w: %w", key, cluster.ErrNotFound, err)
	}
	s, err := k.get(ctx, key)
	if err != nil {
		return access.Keys{}, fmt.Errorf("get keys of %s: %w", key, sorted(err))
	}
	return keysOf(s), nil
}

// known are the keys that the watch has, if it may be trusted.
func (k *Keys) known(ctx context.Context, key rollout.Key) (access.Keys, bool) {
	if !k.watched {
		return access.Keys{}, false
	}
	var s corev1.Secret
	if err := k.c.cache.Get(ctx, objectKey(key), &s, client.UnsafeDisableDeepCopy); err != nil || s.Labels[LabelPart] != PartKeys || s.DeletionTimestamp != nil {
		return access.Keys{}, false
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if w, ok := k.wrote[key]; ok {
		if w.resourceVersion == "" && w.uid == s.UID || w.resourceVersion != "" && newer(w.resourceVersion, s.ResourceVersion) {
			return access.Keys{}, false
		}
		delete(k.wrote, key)
	}
	out := keysOf(&s)
	return out, len(out.Hashes()) > 0
}

func (k *Keys) note(key rollout.Key, w keysWrite) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.wrote[key] = w
}

// EnsureKeys implements cluster.Keys.
func (k *Keys) EnsureKeys(ctx context.Context, key rollout.Key) (access.Keys, error) {
	if err := cluster.ValidateKey(key); err != nil {
		return access.Keys{}, fmt.Errorf("ensure keys of %s: %w", key, err)
	}
	if have, ok := k.known(ctx, key); ok {
		return have, nil
	}
	s, err := k.get(ctx, key)
	if apierrors.IsNotFound(err) {
		if s, err = k.secret(ctx, key, access.NewKeys()); err == nil {
			err = k.c.client.Create(ctx, s)
		}
		if apierrors.IsAlreadyExists(err) { // someone else was first
			s, err = k.get(ctx, key)
		} else if err == nil {
			k.note(key, keysWrite{resourceVersion: s.ResourceVersion})
		}
	}
	if err != nil {
		return access.Keys{}, fmt.Errorf("ensure keys of %s: %w", key, sorted(err))
	}
	out := keysOf(s)
	if len(out.Hashes()) == 0 {
		return access.Keys{}, fmt.Errorf("ensure keys of %s: %w", key, &rollout.Error{
			Reason: rollout.ReasonInvalid, Field: "keys", Message: fmt.Sprintf("secret %s/%s has no key in it", s.Namespace, s.Name),
			Hint: "make new ones with `sluice keys regenerate`, or delete the secret, and it is made again",
		})
	}
	return out, nil
}

// secret that holds the keys of an endpoint.
func (k *Keys) secret(ctx context.Context, key rollout.Key, keys access.Keys) (*corev1.Secret, error) {
	uid, err := k.c.endpointUID(ctx, key.Namespace, key.Name)
	if err != nil {
		return nil, err
	}
	s := &corev1.Secret{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Secret"},
		ObjectMeta: metav1.ObjectMeta{
			Namespace: key.Namespace, Name: keysName(key.Name),
			Labels: map[string]string{LabelManagedBy: ManagedBy, LabelEndpoint: key.Name, LabelPart: PartKeys},
		},
		Type: corev1.SecretTypeOpaque,
		Data: map[string][]byte{keyPrimary: []byte(keys.Primary), keySecondary: []byte(keys.Secondary)},
	}
	if uid != "" {
		s.OwnerReferences = []metav1.OwnerReference{ownerOf(key.Name, uid)}
	}
	return s, nil
}

// PutKeys implements cluster.Keys.
func (k *Keys) PutKeys(ctx context.Context, key rollout.Key, keys access.Keys) error {
	if err := cluster.ValidateKeys(key, keys); err != nil {
		return fmt.Errorf("put keys of %s: %w", key, err)
	}
	have, err := k.get(ctx, key)
	switch {
	case apierrors.IsNotFound(err):
		var s *corev1.Secret
		if s, err = k.secret(ctx, key, keys); err == nil {
			err = k.c.client.Create(ctx, s)
			have = s
		}
	case err == nil:
		if keysOf(have) == keys {
			return nil
		}
		have.Data = map[string][]byte{keyPrimary: []byte(keys.Primary), keySecondary: []byte(keys.Secondary)}
		err = k.c.client.Update(ctx, have)
	}
	if err != nil {
		return fmt.Errorf("put keys of %s: %w", key, sorted(err))
	}
	k.note(key, keysWrite{resourceVersion: have.ResourceVersion})
	return nil
}

// DeleteKeys implements cluster.Keys.
func (k *Keys) DeleteKeys(ctx context.Context, key rollout.Key) error {
	if err := cluster.ValidateKey(key); err != nil {
		return nil // there can be none
	}
	have, err := k.get(ctx, key)
	if err == nil {
		uid := have.UID
		if err = k.c.client.Delete(ctx, have, client.Preconditions{UID: &uid}); err == nil {
			k.note(key, keysWrite{uid: uid})
		}
	}
	if refused := new(rollout.Error); errors.As(err, &refused) {
		return nil // a secret of somebody else
	}
	if client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("delete keys of %s: %w", key, sorted(err))
	}
	return nil
}

// publishEvery bounds how long a Secret of hashes that somebody deleted or changed stays so.
const publishEvery = 30 * time.Second

// Publish keeps the Secret of hashes as the endpoints' keys are, until ctx ends. One
// process does it: the control role's leader, after Start.
func (k *Keys) Publish(ctx context.Context, log *slog.Logger) error {
	var bell watch.Bell
	if err := k.c.inform(ctx, &corev1.Secret{}, func(client.Object, bool) { bell.Ring() }); err != nil {
		return err
	}
	heard := bell.Listen(ctx)
	retry := time.NewTimer(0)
	defer retry.Stop()
	// Nothing tells of the Secret of hashes itself, since the right to watch all Secrets of the installation
	// would be too much: now and then it is looked at.
	again := time.NewTicker(publishEvery)
	defer again.Stop()
	for failed := false; ; {
		select {
		case <-ctx.Done():
			return nil
		case _, open := <-heard:
			if !open {
				return nil
			}
		case <-retry.C:
		case <-again.C:
		}
		if err := k.publish(ctx); err != nil && ctx.Err() == nil {
			if !failed {
				log.Warn("publishing the hashes of keys failed; routers go on with those they have", "error", err)
			}
			failed = true
			retry.Reset(time.Second)
			continue
		}
		failed = false
	}
}

func (k *Keys) publish(ctx context.Context) error {
	var list corev1.SecretList
	if err := k.c.cache.List(ctx, &list, client.MatchingLabels{LabelPart: PartKeys}, client.UnsafeDisableDeepCopy); err != nil {
		return fmt.Errorf("list keys: %w", err)
	}
	data := map[string][]byte{}
	for i := range list.Items {
		s := &list.Items[i]
		endpoint := s.Labels[LabelEndpoint]
		if s.Name != keysName(endpoint) {
			continue
		}
		b, err := json.Marshal(keysOf(s).Hashes())
		if err != nil {
			return fmt.Errorf("encode hashes: %w", err)
		}
		data[s.Namespace+"."+endpoint] = b
	}
	meta := metav1.ObjectMeta{Namespace: k.c.options.SystemNamespace, Name: HashesName, Labels: map[string]string{LabelManagedBy: ManagedBy}}
	var have corev1.Secret
	err := k.c.client.Get(ctx, client.ObjectKey{Namespace: meta.Namespace, Name: meta.Name}, &have)
	switch {
	case apierrors.IsNotFound(err):
		err = k.c.client.Create(ctx, &corev1.Secret{ObjectMeta: meta, Type: corev1.SecretTypeOpaque, Data: data})
	case err == nil && !equalData(have.Data, data):
		have.Data = data
		err = k.c.client.Update(ctx, &have)
	}
	if err != nil {
		return fmt.Errorf("write secret %s: %w", HashesName, err)
	}
	return nil
}

func equalData(a, b map[string][]byte) bool {
	if len(a) != len(b) {
		return false
	}
	for name, v := range a {
		if !bytes.Equal(v, b[name]) {
			return false
		}
	}
	return true
}

// Hashes reads the Secret of hashes, and no other.
type Hashes struct {
	c    *Cluster
	bell watch.Bell

	mu   sync.Mutex
	last *corev1.Secret
}

var _ cluster.KeyHashes = (*Hashes)(nil)

// Hashes of all keys. The cluster must be made with Options.Secrets = SecretsOfHashes.
func (c *Cluster) Hashes(ctx context.Context) (*Hashes, error) {
	h := &Hashes{c: c}
	return h, c.inform(ctx, &corev1.Secret{}, func(client.Object, bool) { h.bell.Ring() })
}

// KeyHashes implements cluster.KeyHashes. An entry that cannot be read lets nobody through. A
// Secret that is deleted closes nothing: the control role is about to write it again, and what was read last holds until then.
func (h *Hashes) KeyHashes(ctx context.Context) (map[rollout.Key][]access.Hash, error) {
	s := &corev1.Secret{}
	err := h.c.cache.Get(ctx, client.ObjectKey{Namespace: h.c.options.SystemNamespace, Name: HashesName}, s)
	h.mu.Lock()
	switch {
	case err == nil:
		h.last = s
	case apierrors.IsNotFound(err) && h.last != nil:
		s, err = h.last, nil
	case apierrors.IsNotFound(err):
		err = nil // and s is empty
	}
	h.mu.Unlock()
	if err != nil {
		return nil, fmt.Errorf("get key hashes: %w", err)
	}
	out := map[rollout.Key][]access.Hash{}
	for name, b := range s.Data {
		namespace, endpoint, ok := strings.Cut(name, ".")
		var hashes []access.Hash
		if !ok || json.Unmarshal(b, &hashes) != nil {
			continue
		}
		out[rollout.Key{Namespace: namespace, Name: endpoint}] = hashes
	}
	return out, nil
}

// WatchKeyHashes implements cluster.KeyHashes.
func (h *Hashes) WatchKeyHashes(ctx context.Context) (<-chan struct{}, error) {
	return h.bell.Listen(ctx), nil
}
