package kube

import (
	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// What the watches keep in memory of an object is what is read of it: no
// variables of models, no managed fields.

func trimMeta(m *metav1.ObjectMeta) {
	m.ManagedFields = nil
	var kept map[string]string
	for _, name := range []string{LabelRevision, annotationRenderer} {
		if v, has := m.Annotations[name]; has {
			if kept == nil {
				kept = map[string]string{}
			}
			kept[name] = v
		}
	}
	m.Annotations = kept
}

func trimDeployment(v any) (any, error) {
	if d, ok := v.(*appsv1.Deployment); ok {
		trimMeta(&d.ObjectMeta)
		d.Spec = appsv1.DeploymentSpec{Replicas: d.Spec.Replicas}
	}
	return v, nil
}

func trimPod(v any) (any, error) {
	if p, ok := v.(*corev1.Pod); ok {
		trimMeta(&p.ObjectMeta)
		p.Spec = corev1.PodSpec{NodeName: p.Spec.NodeName}
		p.Status = corev1.PodStatus{
			Phase: p.Status.Phase, Conditions: p.Status.Conditions, PodIP: p.Status.PodIP,
			InitContainerStatuses: p.Status.InitContainerStatuses, ContainerStatuses: p.Status.ContainerStatuses, StartTime: p.Status.StartTime,
		}
	}
	return v, nil
}

func trimAutoscaler(v any) (any, error) {
	if h, ok := v.(*autoscalingv2.HorizontalPodAutoscaler); ok {
		trimMeta(&h.ObjectMeta)
		h.Spec = autoscalingv2.HorizontalPodAutoscalerSpec{ScaleTargetRef: h.Spec.ScaleTargetRef}
		h.Status = autoscalingv2.HorizontalPodAutoscalerStatus{}
	}
	return v, nil
}

func trimSlice(v any) (any, error) {
	if s, ok := v.(*discoveryv1.EndpointSlice); ok {
		trimMeta(&s.ObjectMeta)
	}
	return v, nil
}
