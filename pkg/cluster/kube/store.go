package kube

import (
	"context"
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"sync"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/resourceversion"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sluice-dev/sluice/pkg/cluster"
	"github.com/sluice-dev/sluice/pkg/cluster/internal/watch"
	"github.com/sluice-dev/sluice/pkg/cluster/kube/v1alpha1"
	"github.com/sluice-dev/sluice/rollout"
)

// Store keeps endpoints as ModelEndpoint objects. Reads come from the watch and see
// this process's own writes at once; writes are patches that name the resource version which they
// were made from, so that a lost race is a conflict and labels, annotations and owners of others
// stay as they are.
type Store struct {
	c   *Cluster
	hub watch.Keys

	mu sync.Mutex
	// written are this process's writes that the watch has not brought yet.
	written map[rollout.Key]write
}

// write is what this process wrote last; a nil object is a deletion.
type write struct {
	object *v1alpha1.ModelEndpoint
	uid    types.UID
}

var _ cluster.Store = (*Store)(nil)

// Store of the cluster's endpoints.
func (c *Cluster) Store(ctx context.Context) (*Store, error) {
	s := &Store{c: c, written: map[rollout.Key]write{}}
	err := c.inform(ctx, &v1alpha1.ModelEndpoint{}, func(o client.Object, gone bool) {
		key := rollout.Key{Namespace: o.GetNamespace(), Name: o.GetName()}
		s.caughtUp(key, o, gone)
		s.hub.Changed(key)
	})
	if err != nil {
		return nil, err
	}
	return s, nil
}

// caughtUp forgets a write that the watch has brought, or passed.
func (s *Store) caughtUp(key rollout.Key, seen client.Object, gone bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	w, ok := s.written[key]
	if !ok {
		return
	}
	if (gone && w.uid == seen.GetUID()) || (!gone && !w.after(seen)) {
		delete(s.written, key)
	}
}

// after says whether the write came after what the watch has.
func (w write) after(seen client.Object) bool {
	if w.object == nil {
		return w.uid == seen.GetUID() // a deletion: the watch still has it
	}
	order, err := resourceversion.CompareResourceVersion(w.object.ResourceVersion, seen.GetResourceVersion())
	return err == nil && order > 0
}

// current is what is known of an endpoint: from the watch, or newer, from this process's own write.
func (s *Store) current(key rollout.Key, watched *v1alpha1.ModelEndpoint) *v1alpha1.ModelEndpoint {
	s.mu.Lock()
	defer s.mu.Unlock()
	w, ok := s.written[key]
	switch {
	case !ok:
		return watched
	case watched == nil && w.object != nil:
		return w.object
	case watched == nil:
		return nil
	case w.after(watched):
		return w.object
	}
	return watched
}

func (s *Store) wrote(key rollout.Key, o *v1alpha1.ModelEndpoint, uid types.UID) {
	s.mu.Lock()
	s.written[key] = write{o, uid}
	s.mu.Unlock()
	s.hub.Changed(key)
}

// forget a write to what is not there any more.
func (s *Store) forget(key rollout.Key) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.written, key)
}

// live asks the API server, and remembers what it says for as long as the watch is behind.
func (s *Store) live(ctx context.Context, key rollout.Key, m *v1alpha1.ModelEndpoint) error {
	err := s.c.client.Get(ctx, client.ObjectKey{Namespace: key.Namespace, Name: key.Name}, m)
	if apierrors.IsNotFound(err) {
		s.forget(key)
	}
	if err != nil {
		return err
	}
	watched, err := s.watched(ctx, key)
	if now := s.current(key, watched); err == nil && (now == nil || now.ResourceVersion != m.ResourceVersion) {
		s.wrote(key, m, m.UID)
	}
	return nil
}

// watched is the watch's object; nil if there is none.
func (s *Store) watched(ctx context.Context, key rollout.Key) (*v1alpha1.ModelEndpoint, error) {
	var m v1alpha1.ModelEndpoint
	err := s.c.cache.Get(ctx, client.ObjectKey{Namespace: key.Namespace, Name: key.Name}, &m, client.UnsafeDisableDeepCopy)
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return &m, nil
}

// Get implements cluster.Reader.
func (s *Store) Get(ctx context.Context, key rollout.Key) (*rollout.Endpoint, error) {
	if err := cluster.ValidateKey(key); err != nil {
		return nil, fmt.Errorf("get endpoint %s: %w: %w", key, cluster.ErrNotFound, err)
	}
	m, err := s.watched(ctx, key)
	if err != nil {
		return nil, fmt.Errorf("get endpoint %s: %w", key, err)
	}
	if m = s.current(key, m); m == nil {
		return nil, fmt.Errorf("get endpoint %s: %w", key, cluster.ErrNotFound)
	}
	return m.Endpoint(), nil
}

// List implements cluster.Reader.
func (s *Store) List(ctx context.Context) ([]*rollout.Endpoint, error) {
	var list v1alpha1.ModelEndpointList
	if err := s.c.cache.List(ctx, &list, client.UnsafeDisableDeepCopy); err != nil {
		return nil, fmt.Errorf("list endpoints: %w", err)
	}
	found := map[rollout.Key]*v1alpha1.ModelEndpoint{}
	for i := range list.Items {
		m := &list.Items[i]
		found[rollout.Key{Namespace: m.Namespace, Name: m.Name}] = m
	}
	s.mu.Lock()
	for key := range s.written {
		if _, there := found[key]; !there {
			found[key] = nil
		}
	}
	s.mu.Unlock()
	out := make([]*rollout.Endpoint, 0, len(found))
	for key, m := range found {
		if m = s.current(key, m); m != nil {
			out = append(out, m.Endpoint())
		}
	}
	slices.SortFunc(out, func(a, b *rollout.Endpoint) int { return cluster.CompareKeys(a.Key(), b.Key()) })
	return out, nil
}

// Watch implements cluster.Reader.
func (s *Store) Watch(ctx context.Context) (<-chan rollout.Key, error) {
	c, err := s.hub.Listen(ctx, func() ([]rollout.Key, error) {
		all, err := s.List(ctx)
		if err != nil {
			return nil, err
		}
		keys := make([]rollout.Key, len(all))
		for i, e := range all {
			keys[i] = e.Key()
		}
		return keys, nil
	})
	if err != nil {
		return nil, fmt.Errorf("watch endpoints: %w", err)
	}
	return c, nil
}

// Create implements cluster.Writer.
func (s *Store) Create(ctx context.Context, e *rollout.Endpoint) (*rollout.Endpoint, error) {
	key := e.Key()
	if err := cluster.ValidateEndpoint(e); err != nil {
		return nil, fmt.Errorf("create endpoint %s: %w", key, err)
	}
	m := &v1alpha1.ModelEndpoint{ObjectMeta: metav1.ObjectMeta{Namespace: key.Namespace, Name: key.Name}, Spec: e.Spec}
	if err := s.c.client.Create(ctx, m); err != nil {
		return nil, fmt.Errorf("create endpoint %s: %w", key, sorted(err))
	}
	s.wrote(key, m, m.UID)
	return m.Endpoint(), nil
}

// Update implements cluster.Writer.
func (s *Store) Update(ctx context.Context, e *rollout.Endpoint) (*rollout.Endpoint, error) {
	if err := e.Spec.Validate(); err != nil {
		return nil, fmt.Errorf("update endpoint %s: %w", e.Key(), err)
	}
	return s.patch(ctx, "update", e, func(have *v1alpha1.ModelEndpoint) ([]patchStep, error) {
		// The API server holds versions to their image by itself; here the words are the domain's.
		if err := rollout.ValidateUpdate(&have.Spec, &e.Spec); err != nil {
			return nil, err
		}
		return difference("/spec", have.Spec, e.Spec)
	}, func(m client.Object, p client.Patch) error { return s.c.client.Patch(ctx, m, p) })
}

// UpdateStatus implements cluster.Writer.
func (s *Store) UpdateStatus(ctx context.Context, e *rollout.Endpoint) (*rollout.Endpoint, error) {
	return s.patch(ctx, "update status of", e, func(have *v1alpha1.ModelEndpoint) ([]patchStep, error) {
		if _, err := json.Marshal(e.Status); err != nil {
			return nil, err
		}
		// Until there is one, the object has no status at all to put a field into.
		if reflect.ValueOf(have.Status).IsZero() {
			return []patchStep{{Op: "add", Path: "/status", Value: e.Status}}, nil
		}
		return difference("/status", have.Status, e.Status)
	}, func(m client.Object, p client.Patch) error { return s.c.client.Status().Patch(ctx, m, p) })
}

// patch writes what change makes of the object, if its resource version is still that of e:
// the API server refuses, as a conflict, a patch whose result has another one.
func (s *Store) patch(ctx context.Context, verb string, e *rollout.Endpoint, change func(have *v1alpha1.ModelEndpoint) ([]patchStep, error), send func(client.Object, client.Patch) error) (*rollout.Endpoint, error) {
	key := e.Key()
	fail := func(err error) (*rollout.Endpoint, error) {
		return nil, fmt.Errorf("%s endpoint %s: %w", verb, key, err)
	}
	if err := cluster.ValidateKey(key); err != nil {
		return fail(fmt.Errorf("%w: %w", cluster.ErrNotFound, err))
	}
	have, err := s.watched(ctx, key)
	if err != nil {
		return fail(err)
	}
	if have = s.current(key, have); have == nil || have.ResourceVersion != e.Metadata.ResourceVersion {
		// The watch is behind, or e is: the API server knows which.
		have = &v1alpha1.ModelEndpoint{}
		if err := s.live(ctx, key, have); err != nil {
			return fail(sorted(err))
		}
	}
	if have.ResourceVersion != e.Metadata.ResourceVersion || e.Metadata.UID != "" && string(have.UID) != e.Metadata.UID {
		return fail(fmt.Errorf("resource version %q is not %q: %w", e.Metadata.ResourceVersion, have.ResourceVersion, cluster.ErrConflict))
	}
	ops, err := change(have)
	if err != nil {
		return fail(err)
	}
	if len(ops) == 0 {
		return have.Endpoint(), nil
	}
	ops = append([]patchStep{{Op: "replace", Path: "/metadata/resourceVersion", Value: have.ResourceVersion}, {Op: "replace", Path: "/metadata/uid", Value: have.UID}}, ops...)
	data, err := json.Marshal(ops)
	if err != nil {
		return fail(err)
	}
	m := &v1alpha1.ModelEndpoint{ObjectMeta: metav1.ObjectMeta{Namespace: key.Namespace, Name: key.Name}}
	if err := send(m, client.RawPatch(types.JSONPatchType, data)); err != nil {
		if apierrors.IsConflict(err) {
			// The watch is behind: whoever tries again must not read the same from it.
			_ = s.live(ctx, key, &v1alpha1.ModelEndpoint{})
		}
		if apierrors.IsNotFound(err) {
			s.forget(key)
		}
		return fail(sorted(err))
	}
	s.wrote(key, m, m.UID)
	return m.Endpoint(), nil
}

// Delete implements cluster.Writer.
func (s *Store) Delete(ctx context.Context, key rollout.Key, resourceVersion string) error {
	if err := cluster.ValidateKey(key); err != nil {
		return fmt.Errorf("delete endpoint %s: %w: %w", key, cluster.ErrNotFound, err)
	}
	m, err := s.watched(ctx, key)
	if err != nil {
		return fmt.Errorf("delete endpoint %s: %w", key, err)
	}
	if m = s.current(key, m); m == nil {
		return fmt.Errorf("delete endpoint %s: %w", key, cluster.ErrNotFound)
	}
	// What was seen last is what is deleted, not a later endpoint of that name.
	uid := m.UID
	pre := metav1.Preconditions{UID: &uid}
	if resourceVersion != "" {
		pre.ResourceVersion = &resourceVersion
	}
	o := &v1alpha1.ModelEndpoint{ObjectMeta: metav1.ObjectMeta{Namespace: key.Namespace, Name: key.Name}}
	if err := s.c.client.Delete(ctx, o, client.Preconditions(pre)); err != nil {
		return fmt.Errorf("delete endpoint %s: %w", key, sorted(err))
	}
	s.wrote(key, nil, uid)
	return nil
}

// sorted gives an API error the meaning that callers of the ports look for.
func sorted(err error) error {
	switch {
	case err == nil:
		return nil
	case apierrors.IsNotFound(err):
		return fmt.Errorf("%w: %w", cluster.ErrNotFound, err)
	case apierrors.IsAlreadyExists(err):
		return fmt.Errorf("%w: %w", cluster.ErrExists, err)
	case apierrors.IsConflict(err):
		return fmt.Errorf("%w: %w", cluster.ErrConflict, err)
	case apierrors.IsInvalid(err), apierrors.IsBadRequest(err):
		return refusal(err)
	case apierrors.IsForbidden(err), apierrors.IsUnauthorized(err):
		return &rollout.Error{
			Reason: rollout.ReasonDenied, Message: "the cluster refuses it: " + err.Error(),
			Hint: "ask whoever runs the cluster for the rights that docs/kubernetes.md lists, or use another context",
		}
	}
	return err
}
