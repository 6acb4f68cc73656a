package kube

import (
	"context"
	"fmt"
	"math"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/apiutil"

	"github.com/sluice-dev/sluice/pkg/cluster"
	"github.com/sluice-dev/sluice/pkg/cluster/kube/v1alpha1"
)

// Apply implements cluster.FleetWriter by server-side apply of a Deployment without a
// replica count (a new one gets 1 from the API server), a headless Service whose EndpointSlices
// say where the replicas serve, and a PodDisruptionBudget.
func (f *Fleets) Apply(ctx context.Context, spec cluster.FleetSpec) error {
	if err := cluster.ValidateFleetKey(spec.Key); err != nil {
		return fmt.Errorf("apply fleet %s: %w", spec.Key, err)
	}
	template, err := PodTemplate(spec, f.GateImage)
	if err != nil {
		return fmt.Errorf("apply fleet %s: %w", spec.Key, err)
	}
	owners, err := f.owners(ctx, spec.Key)
	if err != nil {
		return fmt.Errorf("apply fleet %s: %w", spec.Key, err)
	}
	meta := func() metav1.ObjectMeta {
		return metav1.ObjectMeta{
			Namespace: spec.Key.Endpoint.Namespace, Name: childName(spec.Key), Labels: childLabels(spec.Key), OwnerReferences: owners,
		}
	}
	// The Service first: a pod that is ready before it is in a slice would serve nobody.
	service := &corev1.Service{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Service"}, ObjectMeta: meta(),
		Spec: corev1.ServiceSpec{
			ClusterIP: corev1.ClusterIPNone, Selector: childLabels(spec.Key),
			Ports: []corev1.ServicePort{{Name: portName, Port: DefaultPort, Protocol: corev1.ProtocolTCP}},
		},
	}
	one, always := int32(1), policyv1.AlwaysAllow
	budget := &policyv1.PodDisruptionBudget{
		TypeMeta: metav1.TypeMeta{APIVersion: "policy/v1", Kind: "PodDisruptionBudget"}, ObjectMeta: meta(),
		Spec: policyv1.PodDisruptionBudgetSpec{
			// One at a time, so that a node can always be drained, also of a version with one replica, and of
			// one that does not get ready, which without the policy would hold the node up for ever.
			MaxUnavailable: intOrString(1), UnhealthyPodEvictionPolicy: &always, Selector: &metav1.LabelSelector{MatchLabels: childLabels(spec.Key)},
		},
	}
	deployment := &appsv1.Deployment{
		TypeMeta: metav1.TypeMeta{APIVersion: "apps/v1", Kind: "Deployment"}, ObjectMeta: meta(),
		Spec: appsv1.DeploymentSpec{
			Selector: &metav1.LabelSelector{MatchLabels: childLabels(spec.Key)}, Template: template, RevisionHistoryLimit: &one,
			Strategy: appsv1.DeploymentStrategy{
				Type:          appsv1.RollingUpdateDeploymentStrategyType,
				RollingUpdate: &appsv1.RollingUpdateDeployment{MaxUnavailable: intOrString(0), MaxSurge: intOrString(1)},
			},
		},
	}
	deployment.Annotations = map[string]string{LabelRevision: spec.Revision, annotationRenderer: f.renderer()}
	for _, o := range []client.Object{service, budget, deployment} {
		if err := f.c.apply(ctx, o); err != nil {
			return fmt.Errorf("apply fleet %s: %w", spec.Key, sorted(err))
		}
	}
	f.changed(func() {})
	return nil
}

// siblings are the objects beside the Deployment.
func siblings(meta metav1.ObjectMeta) []client.Object {
	return []client.Object{&corev1.Service{ObjectMeta: meta}, &policyv1.PodDisruptionBudget{ObjectMeta: meta}}
}

// owners make Kubernetes' garbage collector end what a deleted endpoint leaves, even with no
// control role there. A fleet without an endpoint has none.
func (f *Fleets) owners(ctx context.Context, key cluster.FleetKey) ([]metav1.OwnerReference, error) {
	uid, err := f.c.endpointUID(ctx, key.Endpoint.Namespace, key.Endpoint.Name)
	if err != nil || uid == "" {
		return nil, err
	}
	return []metav1.OwnerReference{ownerOf(key.Endpoint.Name, uid)}, nil
}

func ownerOf(endpoint string, uid types.UID) metav1.OwnerReference {
	yes := true
	gv := v1alpha1.GroupVersion()
	return metav1.OwnerReference{APIVersion: gv.String(), Kind: "ModelEndpoint", Name: endpoint, UID: uid, Controller: &yes}
}

// endpointUID of an endpoint, or "" if there is none.
func (c *Cluster) endpointUID(ctx context.Context, namespace, name string) (types.UID, error) {
	var m metav1.PartialObjectMetadata
	m.SetGroupVersionKind(v1alpha1.GroupVersion().WithKind("ModelEndpoint"))
	err := c.client.Get(ctx, client.ObjectKey{Namespace: namespace, Name: name}, &m)
	if apierrors.IsNotFound(err) {
		return "", nil
	}
	return m.UID, err
}

// apply o by server-side apply, and take over the fields that another manager has.
func (c *Cluster) apply(ctx context.Context, o client.Object) error {
	gvk, err := apiutil.GVKForObject(o, c.client.Scheme())
	if err != nil {
		return err
	}
	content, err := runtime.DefaultUnstructuredConverter.ToUnstructured(o)
	if err != nil {
		return err
	}
	// What a Go struct cannot leave out would be applied as well.
	delete(content, "status")
	u := &unstructured.Unstructured{Object: prune(content).(map[string]any)}
	u.SetGroupVersionKind(gvk)
	return c.client.Apply(ctx, client.ApplyConfigurationFromUnstructured(u), client.ForceOwnership)
}

// prune leaves out nulls and empty objects, which say nothing.
func prune(v any) any {
	switch v := v.(type) {
	case map[string]any:
		for k, x := range v {
			x = prune(x)
			if m, is := x.(map[string]any); x == nil || is && len(m) == 0 && k != "emptyDir" && k != "securityContext" {
				delete(v, k)
				continue
			}
			v[k] = x
		}
	case []any:
		for i := range v {
			v[i] = prune(v[i])
		}
	}
	return v
}

// seconds rounds up.
func seconds(d time.Duration) int64 { return int64(math.Ceil(d.Seconds())) }
