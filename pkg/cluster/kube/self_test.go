package kube

import (
	"errors"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/sluice-dev/sluice/pkg/autoscale/self"
)

func cpu(s string) corev1.ResourceList {
	if s == "" {
		return nil
	}
	return corev1.ResourceList{corev1.ResourceCPU: resource.MustParse(s), corev1.ResourceMemory: resource.MustParse("1Gi")}
}

func routerPod(limit, request string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "r"},
		Spec: corev1.PodSpec{Containers: []corev1.Container{
			{Name: "mesh", Resources: corev1.ResourceRequirements{Limits: cpu("7")}},
			{Name: ContainerRouter, Resources: corev1.ResourceRequirements{Limits: cpu(limit), Requests: cpu(request)}},
		}},
	}
}

func TestResizePatch(t *testing.T) {
	for _, tc := range []struct {
		limit, request string
		to             self.Milli
		want           string
	}{
		{"2", "250m", 2500, `{"limits":{"cpu":"2500m"},"requests":{"cpu":"750m"}}`},
		{"2500m", "750m", 2000, `{"limits":{"cpu":"2"},"requests":{"cpu":"250m"}}`},
		{"", "250m", 1250, `{"requests":{"cpu":"1250m"}}`},
		{"2", "250m", 1000, `{"limits":{"cpu":"1"},"requests":{"cpu":"1m"}}`},
	} {
		have, err := resizePatch(routerPod(tc.limit, tc.request), tc.to)
		want := `{"spec":{"containers":[{"name":"router","resources":` + tc.want + `}]}}`
		if err != nil || string(have) != want {
			t.Errorf("%q %q to %v: %s, %v, want %s", tc.limit, tc.request, tc.to, have, err, want)
		}
	}
	if _, err := resizePatch(routerPod("", ""), 1000); err == nil {
		t.Error("nothing was resized")
	}
}

func TestSelfPod(t *testing.T) {
	ready := corev1.PodCondition{Type: corev1.PodReady, Status: corev1.ConditionTrue}
	status := func(limit string) []corev1.ContainerStatus {
		return []corev1.ContainerStatus{{Name: "mesh", Resources: &corev1.ResourceRequirements{Limits: cpu("7")}},
			{Name: ContainerRouter, AllocatedResources: cpu("250m"), Resources: &corev1.ResourceRequirements{Limits: cpu(limit), Requests: cpu("249m")}}}
	}
	for name, tc := range map[string]struct {
		limit  string
		status corev1.PodStatus
		want   self.Pod
	}{
		"done":     {"2", corev1.PodStatus{ContainerStatuses: status("2"), Conditions: []corev1.PodCondition{ready}}, self.Pod{CPU: 2000, Has: 2000, Ready: true}},
		"requests": {"", corev1.PodStatus{ContainerStatuses: status(""), Conditions: []corev1.PodCondition{ready}}, self.Pod{CPU: 250, Has: 250, Ready: true}},
		"old":      {"2", corev1.PodStatus{Conditions: []corev1.PodCondition{ready}}, self.Pod{CPU: 2000, Has: 2000, Ready: true}},
		"unseen":   {"3", corev1.PodStatus{ContainerStatuses: status("2"), Conditions: []corev1.PodCondition{ready}}, self.Pod{CPU: 3000, Has: 2000, Ready: true, Resize: self.PendingInProgress}},
		"deferred": {"3", corev1.PodStatus{ContainerStatuses: status("2"), Conditions: []corev1.PodCondition{ready,
			{Type: corev1.PodResizePending, Status: corev1.ConditionTrue, Reason: corev1.PodReasonDeferred}}}, self.Pod{CPU: 3000, Has: 2000, Ready: true, Resize: self.PendingDeferred}},
		"infeasible": {"3", corev1.PodStatus{ContainerStatuses: status("2"), Conditions: []corev1.PodCondition{ready,
			{Type: corev1.PodResizePending, Status: corev1.ConditionTrue, Reason: corev1.PodReasonInfeasible},
			{Type: corev1.PodResizeInProgress, Status: corev1.ConditionTrue}}}, self.Pod{CPU: 3000, Has: 2000, Ready: true, Resize: self.PendingInfeasible}},
		"unschedulable": {"2", corev1.PodStatus{Conditions: []corev1.PodCondition{
			{Type: corev1.PodScheduled, Status: corev1.ConditionFalse, Reason: corev1.PodReasonUnschedulable, Message: "0/1 nodes"}}}, self.Pod{CPU: 2000, Has: 2000, Unschedulable: "0/1 nodes"}},
	} {
		p := routerPod(tc.limit, "250m")
		p.Status = tc.status
		tc.want.Name = "r"
		if have := selfPod(p); have != tc.want {
			t.Errorf("%s: %+v, want %+v", name, have, tc.want)
		}
	}
	if have := selfPod(&corev1.Pod{Status: corev1.PodStatus{Conditions: []corev1.PodCondition{ready}}}); have.Ready {
		t.Errorf("a pod without a router: %+v", have)
	}
}

func TestSelfRefusal(t *testing.T) {
	pods := schema.GroupResource{Resource: "pods"}
	for err, want := range map[error]bool{
		apierrors.NewForbidden(pods, "r", errors.New("exceeded quota")):                 true,
		apierrors.NewGenericServerResponse(404, "patch", pods, "r", "no such", 0, true): true, // no in-place resize there
		apierrors.NewNotFound(pods, "r"):                                                false,
		apierrors.NewConflict(pods, "r", errors.New("again")):                           false,
		apierrors.NewServiceUnavailable("later"):                                        false,
	} {
		if have := errors.Is(selfRefusal(err), self.ErrRefused); have != want {
			t.Errorf("%v: %v, want %v", err, have, want)
		}
	}
	if selfRefusal(nil) != nil {
		t.Error("an error of nothing")
	}
}
