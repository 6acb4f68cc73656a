package kubernetes

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sluice-dev/sluice/pkg/cluster/kube/v1alpha1"
)

// TestZUninstall is the last, by its file's name, since it ends the installation: what the chart leaves is what docs/kubernetes.md says stays, and what
// an endpoint leaves is nothing.
func TestZUninstall(t *testing.T) {
	in := install(t)
	in.remove(t, "last")
	in.must(t, "deploy", project(t, "last", "one", ""), "--version", "one")
	cmd := exec.Command(os.Getenv("HELM"), "uninstall", "sluice", "--namespace", system, "--wait", "--timeout", "3m")
	cmd.Env = append(os.Environ(), "KUBECONFIG="+in.kubeconfig)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("helm uninstall: %v\n%s", err, out)
	}
	left := func(ns string) []string {
		var out []string
		for _, list := range []client.ObjectList{
			&appsv1.DeploymentList{}, &appsv1.ReplicaSetList{}, &corev1.PodList{}, &corev1.ServiceList{}, &corev1.ServiceAccountList{}, &corev1.SecretList{}, &corev1.ConfigMapList{},
			&rbacv1.RoleList{}, &rbacv1.RoleBindingList{}, &networkingv1.NetworkPolicyList{}, &policyv1.PodDisruptionBudgetList{}, &coordinationv1.LeaseList{},
			&v1alpha1.ModelEndpointList{}, &v1alpha1.JournalEntryList{},
		} {
			if err := in.client.List(t.Context(), list, client.InNamespace(ns)); err != nil {
				t.Fatal(err)
			}
			items, err := meta.ExtractList(list)
			if err != nil {
				t.Fatal(err)
			}
			for _, i := range items {
				o := i.(client.Object)
				what := strings.TrimPrefix(fmt.Sprintf("%T", o), "*") + " " + o.GetName()
				if what != "v1.ServiceAccount default" && what != "v1.ConfigMap kube-root-ca.crt" { // every namespace has them
					out = append(out, what)
				}
			}
		}
		slices.Sort(out)
		return out
	}
	want := []string{"v1.Lease sluice-autoscaler", "v1.Lease sluice-control", "v1.Secret sluice-key-hashes"}
	eventually(t, time.Minute, "what stays in the system's namespace", func() error {
		if got := left(system); !slices.Equal(got, want) {
			return fmt.Errorf("it is %v, want %v", got, want)
		}
		return nil
	})
	t.Logf("left by the chart: %v; the endpoint's: %v", want, left(models))
	for _, what := range []string{"Deployment last-one-", "Service last-one-", "Secret last-keys", "ModelEndpoint last"} {
		if !slices.ContainsFunc(left(models), func(s string) bool { return strings.Contains(s, what) }) {
			t.Errorf("%s is gone: endpoints must outlive an installation", what)
		}
	}
	if err := in.client.DeleteAllOf(context.WithoutCancel(t.Context()), &v1alpha1.ModelEndpoint{}, client.InNamespace(models)); err != nil {
		t.Fatal(err)
	}
	eventually(t, 2*time.Minute, "nothing of the endpoint is left", func() error {
		if got := left(models); len(got) > 0 {
			return fmt.Errorf("left: %v", got)
		}
		return nil
	})
}
