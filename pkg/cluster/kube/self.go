package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sluice-dev/sluice/pkg/autoscale/self"
)

// ContainerRouter is the container of a router pod that is resized.
const ContainerRouter = "router"

// SelfPods are the installation's own router pods and their Deployment, for scaling them.
type SelfPods struct {
	c          *Cluster
	deployment string
	// cache of its own: only the leader follows these, and the Cluster's leaves the system's pods
	// and Deployments out, which other roles have no right to.
	cache cache.Cache
}

var (
	_ self.Pods   = (*SelfPods)(nil)
	_ self.Scaler = (*SelfPods)(nil)
)

// SelfPods of the Deployment of that name in the system's namespace, followed until ctx ends. It
// returns once they have been read for the first time.
func (c *Cluster) SelfPods(ctx context.Context, deployment string) (*SelfPods, error) {
	system := map[string]cache.Config{c.options.SystemNamespace: {}}
	watched, err := cache.New(c.config, cache.Options{
		Scheme: c.client.Scheme(), DefaultNamespaces: system, SyncPeriod: durationOf(10 * time.Hour),
		ByObject: map[client.Object]cache.ByObject{
			&corev1.Pod{}: {Label: labels.SelectorFromSet(labels.Set{LabelPart: PartRouter})},
			// Its name is all that the right to it is bound to.
			&appsv1.Deployment{}: {Field: fields.OneTermEqualSelector("metadata.name", deployment)},
		},
		DefaultTransform: cache.TransformStripManagedFields(), DefaultWatchErrorHandler: watchFailed(c.log),
	})
	if err != nil {
		return nil, fmt.Errorf("follow routers: %w", err)
	}
	for _, kind := range []client.Object{&corev1.Pod{}, &appsv1.Deployment{}} {
		if _, err := watched.GetInformer(ctx, kind, cache.BlockUntilSynced(false)); err != nil {
			return nil, fmt.Errorf("follow routers: watch %T: %w", kind, err)
		}
	}
	ended := make(chan error, 1)
	go func() { ended <- watched.Start(ctx) }()
	if !watched.WaitForCacheSync(ctx) {
		select {
		case err := <-ended:
			return nil, fmt.Errorf("follow routers: %w", errors.Join(err, ctx.Err()))
		default:
			return nil, fmt.Errorf("follow routers: %w", ctx.Err())
		}
	}
	return &SelfPods{c: c, deployment: deployment, cache: watched}, nil
}

// Pods implements self.Pods from what the watches have.
func (p *SelfPods) Pods(ctx context.Context) ([]self.Pod, int, error) {
	var d appsv1.Deployment
	if err := p.cache.Get(ctx, client.ObjectKey{Namespace: p.c.options.SystemNamespace, Name: p.deployment}, &d); err != nil {
		return nil, 0, fmt.Errorf("get deployment %s: %w", p.deployment, err)
	}
	of, err := metav1.LabelSelectorAsSelector(d.Spec.Selector)
	if err != nil {
		return nil, 0, fmt.Errorf("read selector of deployment %s: %w", p.deployment, err)
	}
	var list corev1.PodList
	if err := p.cache.List(ctx, &list, client.MatchingLabelsSelector{Selector: of}, client.UnsafeDisableDeepCopy); err != nil {
		return nil, 0, fmt.Errorf("list pods of deployment %s: %w", p.deployment, err)
	}
	var out []self.Pod
	for i := range list.Items {
		q := &list.Items[i]
		if q.DeletionTimestamp != nil || q.Status.Phase == corev1.PodFailed || q.Status.Phase == corev1.PodSucceeded {
			continue
		}
		out = append(out, selfPod(q))
	}
	desired := 1
	if d.Spec.Replicas != nil {
		desired = int(*d.Spec.Replicas)
	}
	return out, desired, nil
}

// container of a router pod; nil if it has none of that name.
func container(p *corev1.Pod) *corev1.Container {
	for i := range p.Spec.Containers {
		if c := &p.Spec.Containers[i]; c.Name == ContainerRouter {
			return c
		}
	}
	return nil
}

// cpuOf resources: the limit, or the request if there is none.
func cpuOf(limits, requests corev1.ResourceList) self.Milli {
	if q, has := limits[corev1.ResourceCPU]; has {
		return self.Milli(q.MilliValue())
	}
	q := requests[corev1.ResourceCPU]
	return self.Milli(q.MilliValue())
}

func selfPod(p *corev1.Pod) self.Pod {
	out := self.Pod{Name: p.Name}
	c := container(p)
	if c == nil {
		return out // somebody else's: never ready, so that nothing is done
	}
	out.CPU = cpuOf(c.Resources.Limits, c.Resources.Requests)
	out.Has = out.CPU
	for i := range p.Status.ContainerStatuses {
		s := &p.Status.ContainerStatuses[i]
		if s.Name != ContainerRouter || s.Resources == nil {
			continue // not started, or a kubelet that cannot resize
		}
		requests := s.AllocatedResources // what the kubelet says of requests is read back from the cgroup's weight, and rounded
		if requests == nil {
			requests = s.Resources.Requests
		}
		if has := cpuOf(s.Resources.Limits, requests); has > 0 {
			out.Has = has
		}
	}
	for _, x := range p.Status.Conditions {
		switch {
		case x.Type == corev1.PodReady:
			out.Ready = x.Status == corev1.ConditionTrue
		case x.Type == corev1.PodScheduled && x.Status == corev1.ConditionFalse && x.Reason == corev1.PodReasonUnschedulable:
			out.Unschedulable = x.Message
		case x.Type == corev1.PodResizeInProgress && x.Status == corev1.ConditionTrue && out.Resize == self.PendingNone:
			out.Resize = self.PendingInProgress
		case x.Type == corev1.PodResizePending && x.Status == corev1.ConditionTrue:
			out.Resize = self.PendingDeferred
			if x.Reason == corev1.PodReasonInfeasible {
				out.Resize = self.PendingInfeasible
			}
		}
	}
	if out.Resize == self.PendingNone && out.Has != out.CPU {
		out.Resize = self.PendingInProgress // the kubelet has not seen it yet
	}
	return out
}

// Resize implements self.Pods, by the pod's subresource resize.
func (p *SelfPods) Resize(ctx context.Context, r self.Resize) error {
	var pod corev1.Pod
	key := client.ObjectKey{Namespace: p.c.options.SystemNamespace, Name: r.Pod}
	if err := p.cache.Get(ctx, key, &pod); err != nil {
		return fmt.Errorf("get pod %s: %w", r.Pod, err)
	}
	patch, err := resizePatch(&pod, r.To)
	if err != nil {
		return fmt.Errorf("resize pod %s: %w", r.Pod, err)
	}
	err = p.c.client.SubResource("resize").Patch(ctx, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: key.Namespace, Name: key.Name}},
		client.RawPatch(types.StrategicMergePatchType, patch))
	return selfRefusal(err)
}

// resizePatch gives the router's container another amount of CPU. What is added or taken is so in
// the request and the limit alike: an added step is CPU that the node really has, and the way back ends where
// it began. Both can only be changed, not made or taken away, and never pass from one quality of service to another.
func resizePatch(p *corev1.Pod, to self.Milli) ([]byte, error) {
	c := container(p)
	if c == nil || cpuOf(c.Resources.Limits, c.Resources.Requests) == 0 {
		return nil, fmt.Errorf("it has no container %s with a limit or request of CPU", ContainerRouter)
	}
	by := int64(to - cpuOf(c.Resources.Limits, c.Resources.Requests))
	change := func(l corev1.ResourceList) map[string]string {
		q, has := l[corev1.ResourceCPU]
		if !has {
			return nil
		}
		return map[string]string{string(corev1.ResourceCPU): resource.NewMilliQuantity(max(1, q.MilliValue()+by), resource.DecimalSI).String()}
	}
	resources := map[string]any{}
	if m := change(c.Resources.Limits); m != nil {
		resources["limits"] = m
	}
	if m := change(c.Resources.Requests); m != nil {
		resources["requests"] = m
	}
	return json.Marshal(map[string]any{"spec": map[string]any{"containers": []any{map[string]any{"name": ContainerRouter, "resources": resources}}}})
}

// Scale implements self.Scaler.
func (p *SelfPods) Scale(ctx context.Context, replicas int) error {
	d := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Namespace: p.c.options.SystemNamespace, Name: p.deployment}}
	scale := &autoscalingv1.Scale{Spec: autoscalingv1.ScaleSpec{Replicas: int32(replicas)}}
	return selfRefusal(p.c.client.SubResource("scale").Update(ctx, d, client.WithSubResourceBody(scale)))
}

// selfRefusal tells what the cluster will not have from what may work the next time.
func selfRefusal(err error) error {
	switch {
	case err == nil:
		return nil
	case apierrors.IsNotFound(err) && strings.Contains(err.Error(), "the server could not find the requested resource"),
		apierrors.IsForbidden(err), apierrors.IsInvalid(err), apierrors.IsMethodNotSupported(err), apierrors.IsBadRequest(err):
		// A version without in-place resize; a quota, a range of limits or a policy; a node or pod that cannot.
		return fmt.Errorf("%w: %w", self.ErrRefused, err)
	}
	return err
}
