package kube

import (
	"context"
	"fmt"
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
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

// Fleets are the versions' replicas as pods of a Deployment each.
type Fleets struct {
	// GateImage has the runner, for versions whose image is a server of its own.
	GateImage string

	c    *Cluster
	bell watch.Bell

	once     sync.Once
	rendered string

	mu sync.Mutex
	// states is what was seen last; nil when an event has made it old.
	states []cluster.FleetState
	// stale counts events, so that a look that overlapped with one is not kept.
	stale int
	// scaled are this process's own writes that the watch has not brought yet.
	scaled map[cluster.FleetKey]scaledTo
	// gone are the Deployments that this process deleted and the watch still has.
	gone map[types.UID]bool
}

// sliceGrace is how long Kubernetes may take to make the EndpointSlice of a new Service.
const sliceGrace = 10 * time.Second

// renderer tells releases of Sluice apart that make different pods of the same version.
func (f *Fleets) renderer() string {
	f.once.Do(func() { f.rendered = renderer(f.GateImage) })
	return f.rendered
}

type scaledTo struct {
	replicas        int
	resourceVersion string
}

var _ cluster.Fleet = (*Fleets)(nil)

// Fleets of the cluster's versions.
func (c *Cluster) Fleets(ctx context.Context) (*Fleets, error) {
	f := &Fleets{c: c, scaled: map[cluster.FleetKey]scaledTo{}, gone: map[types.UID]bool{}}
	for _, kind := range []client.Object{&appsv1.Deployment{}, &corev1.Pod{}, &discoveryv1.EndpointSlice{}} {
		if err := c.inform(ctx, kind, f.saw); err != nil {
			return nil, err
		}
	}
	// Owners are only looked at.
	if err := c.inform(ctx, &v1alpha1.ModelEndpoint{}, func(client.Object, bool) {}); err != nil {
		return nil, err
	}
	// Anybody may make one of these for a Deployment of ours.
	err := c.inform(ctx, &autoscalingv2.HorizontalPodAutoscaler{}, func(client.Object, bool) { f.changed(func() {}) })
	return f, err
}

// saw is told of every event.
func (f *Fleets) saw(o client.Object, gone bool) {
	key, ours := fleetKey(o.GetNamespace(), o.GetLabels())
	if !ours {
		return
	}
	f.mu.Lock()
	f.states = nil
	f.stale++
	if d, is := o.(*appsv1.Deployment); is {
		if gone {
			delete(f.gone, d.UID)
		}
		if s, ok := f.scaled[key]; ok && (gone || !newer(s.resourceVersion, d.ResourceVersion)) {
			delete(f.scaled, key)
		}
	}
	f.mu.Unlock()
	f.bell.Ring()
}

// changed says that the state is another one, by this process's own doing.
func (f *Fleets) changed(note func()) {
	f.mu.Lock()
	note()
	f.states = nil
	f.stale++
	f.mu.Unlock()
	f.bell.Ring()
}

// WatchFleets implements cluster.FleetReader.
func (f *Fleets) WatchFleets(ctx context.Context) (<-chan struct{}, error) {
	return f.bell.Listen(ctx), nil
}

// Fleets implements cluster.FleetReader. It asks no server: what the watches have is put together.
func (f *Fleets) Fleets(ctx context.Context) ([]cluster.FleetState, error) {
	f.mu.Lock()
	states, stale := f.states, f.stale
	f.mu.Unlock()
	if states == nil {
		var err error
		if states, err = f.look(ctx); err != nil {
			return nil, fmt.Errorf("list fleets: %w", err)
		}
		f.mu.Lock()
		if f.stale == stale {
			f.states = states
		}
		f.mu.Unlock()
	}
	out := slices.Clone(states)
	for i := range out {
		out[i].Replicas = slices.Clone(out[i].Replicas)
	}
	return out, nil
}

// look puts the state of every fleet together.
func (f *Fleets) look(ctx context.Context) ([]cluster.FleetState, error) {
	var deployments appsv1.DeploymentList
	var pods corev1.PodList
	var endpoints discoveryv1.EndpointSliceList
	var autoscalers autoscalingv2.HorizontalPodAutoscalerList
	var owners v1alpha1.ModelEndpointList
	for _, list := range []client.ObjectList{&deployments, &pods, &endpoints, &autoscalers, &owners} {
		if err := f.c.cache.List(ctx, list, client.UnsafeDisableDeepCopy); err != nil {
			return nil, err
		}
	}
	scaledBy := map[types.NamespacedName]string{}
	for i := range autoscalers.Items {
		h := &autoscalers.Items[i]
		if t := h.Spec.ScaleTargetRef; t.Kind == "Deployment" && h.DeletionTimestamp == nil {
			scaledBy[types.NamespacedName{Namespace: h.Namespace, Name: t.Name}] = "HorizontalPodAutoscaler " + h.Name
		}
	}
	uids := map[rollout.Key]types.UID{}
	for i := range owners.Items {
		uids[rollout.Key{Namespace: owners.Items[i].Namespace, Name: owners.Items[i].Name}] = owners.Items[i].UID
	}
	addresses, sliced := map[types.NamespacedName]address{}, map[cluster.FleetKey]bool{}
	for i := range endpoints.Items {
		s := &endpoints.Items[i]
		if key, ours := fleetKey(s.Namespace, s.Labels); ours {
			sliced[key] = true
		}
		for j := range s.Endpoints {
			name, a := addressOf(s, &s.Endpoints[j])
			if have, twice := addresses[name]; name.Name == "" || twice && !have.terminating && a.terminating {
				continue // a pod that moves between slices stands in both for a moment
			}
			addresses[name] = a
		}
	}
	f.mu.Lock()
	scaled, gone := maps.Clone(f.scaled), maps.Clone(f.gone)
	f.mu.Unlock()

	found, orphans, revisions := map[cluster.FleetKey]*cluster.FleetState{}, map[cluster.FleetKey]bool{}, map[cluster.FleetKey]string{}
	for i := range deployments.Items {
		d := &deployments.Items[i]
		key, ours := fleetKey(d.Namespace, d.Labels)
		if !ours || d.DeletionTimestamp != nil || gone[d.UID] {
			continue
		}
		s := &cluster.FleetState{Key: key, Revision: d.Annotations[LabelRevision], Desired: 1, ScaledBy: scaledBy[types.NamespacedName{Namespace: d.Namespace, Name: d.Name}]}
		if d.Spec.Replicas != nil {
			s.Desired = int(*d.Spec.Replicas)
		}
		if w, ok := scaled[key]; ok && newer(w.resourceVersion, d.ResourceVersion) {
			s.Desired = w.replicas
		}
		if owner := metav1.GetControllerOf(d); !sliced[key] && time.Since(d.CreationTimestamp.Time) > sliceGrace ||
			owner != nil && uids[key.Endpoint] != "" && owner.UID != uids[key.Endpoint] ||
			f.GateImage != "" && d.Annotations[annotationRenderer] != f.renderer() {
			// Its Service is gone, it is an earlier endpoint's of that name, or another release of
			// Sluice made it: it is not as it would be made now.
			s.Revision = ""
		}
		for _, c := range d.Status.Conditions {
			if c.Type == appsv1.DeploymentReplicaFailure && c.Status == corev1.ConditionTrue {
				// Such as a quota or an admission policy: there is no pod that could say so.
				s.Reason, s.Message = rollout.ReasonPodsRefused, c.Message
			}
		}
		found[key], revisions[key] = s, d.Annotations[LabelRevision]
	}
	for i := range pods.Items {
		p := &pods.Items[i]
		key, ours := fleetKey(p.Namespace, p.Labels)
		if !ours || p.Status.Phase == corev1.PodFailed || p.Status.Phase == corev1.PodSucceeded {
			continue // evicted or finished: the Deployment makes another
		}
		s := found[key]
		if s == nil {
			// Its Deployment is gone, and it is about to be. A version that is wanted needs another one.
			s = &cluster.FleetState{Key: key}
			found[key], orphans[key] = s, true
		}
		a, listed := addresses[types.NamespacedName{Namespace: p.Namespace, Name: p.Name}]
		r, imageMissing := replicaOf(p, a, listed)
		if orphans[key] {
			r.State, r.Reason, r.Message, r.ReadySince = cluster.ReplicaTerminating, "", "", time.Time{}
		}
		if imageMissing != "" && r.Revision == revisions[key] {
			s.Reason, s.Message = rollout.ReasonImageMissing, imageMissing
		}
		s.Replicas = append(s.Replicas, r)
	}
	out := make([]cluster.FleetState, 0, len(found))
	for _, s := range found {
		slices.SortFunc(s.Replicas, func(a, b cluster.Replica) int { return strings.Compare(a.Name, b.Name) })
		out = append(out, *s)
	}
	slices.SortFunc(out, func(a, b cluster.FleetState) int { return cluster.CompareFleetKeys(a.Key, b.Key) })
	return out, nil
}

// address is where a pod serves, as its EndpointSlice says.
type address struct {
	hostPort                    string
	ready, serving, terminating bool
}

func addressOf(s *discoveryv1.EndpointSlice, e *discoveryv1.Endpoint) (types.NamespacedName, address) {
	if e.TargetRef == nil || e.TargetRef.Kind != "Pod" || len(e.Addresses) == 0 {
		return types.NamespacedName{}, address{}
	}
	port := DefaultPort
	for _, p := range s.Ports {
		if p.Port != nil && p.Name != nil && *p.Name == portName {
			port = int(*p.Port)
		}
	}
	is := func(b *bool, absent bool) bool {
		if b == nil {
			return absent
		}
		return *b
	}
	a := address{
		hostPort: net.JoinHostPort(e.Addresses[0], strconv.Itoa(port)),
		// Absent conditions mean what discovery/v1 says: unknown counts as ready and serving.
		ready: is(e.Conditions.Ready, true), serving: is(e.Conditions.Serving, true), terminating: is(e.Conditions.Terminating, false),
	}
	return types.NamespacedName{Namespace: s.Namespace, Name: e.TargetRef.Name}, a
}

// replicaOf is a pod as a replica; imageMissing says why its image cannot be had.
func replicaOf(p *corev1.Pod, a address, listed bool) (r cluster.Replica, imageMissing string) {
	r = cluster.Replica{Name: p.Name, Revision: p.Labels[LabelRevision], State: cluster.ReplicaStarting, Reason: rollout.ReasonStarting}
	if listed {
		r.Address = a.hostPort
	}
	var last *corev1.ContainerStateTerminated
	var waiting *corev1.ContainerStateWaiting
	var started time.Time
	idle := func(w *corev1.ContainerStateWaiting) bool {
		return w == nil || w.Reason == "ContainerCreating" || w.Reason == "PodInitializing"
	}
	// Init containers too: the template's own, and a server with the gate before it.
	for _, c := range slices.Concat(p.Status.InitContainerStatuses, p.Status.ContainerStatuses) {
		if t := c.State.Terminated; t != nil && t.ExitCode == 0 && slices.ContainsFunc(p.Status.InitContainerStatuses, func(i corev1.ContainerStatus) bool { return i.Name == c.Name }) {
			continue // an init container that has done its work
		}
		r.Restarts = max(r.Restarts, int(c.RestartCount))
		switch {
		case c.State.Terminated != nil:
			last = c.State.Terminated
		case c.State.Waiting != nil:
			if idle(waiting) {
				waiting = c.State.Waiting
			}
			if c.LastTerminationState.Terminated != nil {
				last = c.LastTerminationState.Terminated
			}
		case c.State.Running != nil && c.State.Running.StartedAt.After(started):
			started = c.State.Running.StartedAt.Time
			if last == nil && c.LastTerminationState.Terminated != nil {
				r.Message = terminated(c.LastTerminationState.Terminated)
			}
		}
	}
	if p.DeletionTimestamp != nil || listed && a.terminating {
		r.State, r.Reason, r.Message = cluster.ReplicaTerminating, "", ""
		return r, ""
	}
	if waiting != nil && imageTrouble(waiting.Reason) {
		return r, waiting.Reason + ": " + waiting.Message
	}
	if last != nil {
		r.State, r.Reason, r.Message = cluster.ReplicaFailed, rollout.ReasonCrashed, terminated(last)
		if last.ExitCode == exitInit {
			r.Reason = rollout.ReasonInitFailed
		}
		return r, ""
	}
	if !idle(waiting) {
		// Such as CreateContainerConfigError: a secret that is not there.
		r.State, r.Reason, r.Message = cluster.ReplicaFailed, rollout.ReasonCrashed, waiting.Reason+": "+waiting.Message
		return r, ""
	}
	for _, c := range p.Status.Conditions {
		switch {
		case c.Type == corev1.PodScheduled && c.Status == corev1.ConditionFalse && c.Reason == corev1.PodReasonUnschedulable:
			r.Reason, r.Message = rollout.ReasonClusterFull, c.Message
		case c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue && listed:
			r.State, r.Reason, r.Message, r.ReadySince = cluster.ReplicaReady, "", "", c.LastTransitionTime.UTC()
		case c.Type == corev1.PodReady && !started.IsZero() && c.LastTransitionTime.After(started):
			// It changed after the start: it was ready, and is not any more.
			r.State, r.Reason, r.Message = cluster.ReplicaUnready, rollout.ReasonProbeFailed, c.Message
		}
	}
	if r.State == cluster.ReplicaReady && !a.ready && !a.serving {
		// The slice is a moment behind the pod, or says what its node's silence means.
		r.State, r.Reason, r.ReadySince = cluster.ReplicaUnready, rollout.ReasonProbeFailed, time.Time{}
	}
	return r, ""
}

// exitInit is the runner's exit code for a script or server that did not come up.
const exitInit = 3

func terminated(t *corev1.ContainerStateTerminated) string {
	if m := strings.TrimSpace(t.Message); m != "" {
		return m
	}
	if t.Signal != 0 {
		return fmt.Sprintf("ended by signal %d (%s)", t.Signal, t.Reason)
	}
	return fmt.Sprintf("exit code %d (%s)", t.ExitCode, t.Reason)
}

func imageTrouble(reason string) bool {
	switch reason {
	case "ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "ImageInspectError", "RegistryUnavailable":
		return true
	}
	return false
}

// Scale implements cluster.Scaler, by the Deployment's scale.
func (f *Fleets) Scale(ctx context.Context, key cluster.FleetKey, replicas int) error {
	if err := cluster.ValidateReplicas(replicas); err != nil {
		return err
	}
	d := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Namespace: key.Endpoint.Namespace, Name: childName(key)}}
	scale := &autoscalingv1.Scale{Spec: autoscalingv1.ScaleSpec{Replicas: int32(replicas)}}
	if err := f.c.client.SubResource("scale").Update(ctx, d, client.WithSubResourceBody(scale)); err != nil {
		return fmt.Errorf("scale %s: %w", key, sorted(err))
	}
	f.changed(func() { f.scaled[key] = scaledTo{replicas, scale.ResourceVersion} })
	return nil
}

// Delete implements cluster.FleetWriter.
func (f *Fleets) Delete(ctx context.Context, key cluster.FleetKey) error {
	if err := cluster.ValidateFleetKey(key); err != nil {
		return fmt.Errorf("delete fleet %s: %w", key, err)
	}
	meta := metav1.ObjectMeta{Namespace: key.Endpoint.Namespace, Name: childName(key)}
	background := client.PropagationPolicy(metav1.DeletePropagationBackground)
	d := &appsv1.Deployment{}
	err := f.c.cache.Get(ctx, client.ObjectKey{Namespace: meta.Namespace, Name: meta.Name}, d)
	if apierrors.IsNotFound(err) {
		return nil // it was the last to go, and pods that drain are nobody's business
	}
	if err != nil {
		return fmt.Errorf("delete fleet %s: %w", key, sorted(err))
	}
	// The Deployment last: as long as it is there somebody tries again.
	for _, o := range siblings(meta) {
		if err := f.c.client.Delete(ctx, o, background); client.IgnoreNotFound(err) != nil {
			return fmt.Errorf("delete fleet %s: %w", key, sorted(err))
		}
	}
	uid := d.UID
	err = f.c.client.Delete(ctx, &appsv1.Deployment{ObjectMeta: meta}, background, client.Preconditions{UID: &uid})
	if client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("delete fleet %s: %w", key, sorted(err))
	}
	f.changed(func() { f.gone[uid] = true; delete(f.scaled, key) })
	return nil
}

// newer says whether resource version a came after b.
func newer(a, b string) bool {
	order, err := resourceversion.CompareResourceVersion(a, b)
	return err == nil && order > 0
}
