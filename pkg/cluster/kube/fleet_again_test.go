package kube_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sluice-dev/sluice/pkg/cluster"
	"github.com/sluice-dev/sluice/pkg/cluster/clustertest"
	"github.com/sluice-dev/sluice/pkg/cluster/kube"
	"github.com/sluice-dev/sluice/rollout"
)

// TestFleetIsMadeAgain: whatever of a fleet is gone, or was made by another release, shows as a fleet that is not as it was
// asked for, so that it is applied again; pods that drain do not pass for a fleet.
func TestFleetIsMadeAgain(t *testing.T) {
	l := newLive(t)
	l.clear(t)
	t.Cleanup(func() { l.clear(t) })
	open := func(gate string) *kube.Fleets {
		c, start := l.open(t, kube.SecretsNone)
		f, err := c.Fleets(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		f.GateImage = gate
		start()
		return f
	}
	f := open(clustertest.Image('f'))
	key := cluster.FleetKey{Endpoint: rollout.Key{Namespace: "models", Name: "again"}, Version: "v1"}
	spec := cluster.FleetSpec{Key: key, Revision: "r1", Image: clustertest.Image('a'), Settings: rollout.Settings{
		// It finds no node: what is looked at is not its pods.
		Template: map[string]any{"spec": map[string]any{"nodeSelector": map[string]any{"example.com/none": "none"}}},
	}}
	revision := func(f *kube.Fleets, want string) {
		t.Helper()
		l.until(t, 30*time.Second, "revision "+want, func() error {
			all, err := f.Fleets(t.Context())
			if err != nil {
				return err
			}
			if len(all) != 1 || all[0].Revision != want {
				return fmt.Errorf("fleets are %+v", all)
			}
			return nil
		})
	}
	if err := f.Apply(t.Context(), spec); err != nil {
		t.Fatal(err)
	}
	revision(f, "r1")

	// Another release's gate: another fleet, until it has been applied.
	next := open(clustertest.Image('e'))
	revision(next, "")
	if err := next.Apply(t.Context(), spec); err != nil {
		t.Fatal(err)
	}
	revision(next, "r1")

	// The Service goes, and its EndpointSlice with it.
	time.Sleep(10 * time.Second) // a new Service may be without for that long
	var services corev1.ServiceList
	if err := l.client.List(t.Context(), &services, client.InNamespace("models"), client.MatchingLabels{kube.LabelEndpoint: "again"}); err != nil || len(services.Items) != 1 {
		t.Fatalf("%d services, %v", len(services.Items), err)
	}
	if err := l.client.Delete(t.Context(), &services.Items[0]); err != nil {
		t.Fatal(err)
	}
	revision(next, "")
	if err := next.Apply(t.Context(), spec); err != nil {
		t.Fatal(err)
	}
	revision(next, "r1")

	// The Deployment goes; while its pod is still there, there is no fleet of that revision.
	hold(t, l, "again")
	if err := l.client.DeleteAllOf(t.Context(), &appsv1.Deployment{}, client.InNamespace("models"), client.PropagationPolicy("Background")); err != nil {
		t.Fatal(err)
	}
	revision(next, "")
	if err := next.Delete(t.Context(), key); err != nil {
		t.Errorf("deleting what drains: %v", err)
	}
	if err := next.Apply(t.Context(), spec); err != nil {
		t.Fatal(err)
	}
	revision(next, "r1")
	release(t, l, "again")
}

const finalizer = "example.com/hold"

// hold keeps the pods of an endpoint there when they are deleted.
func hold(t *testing.T, l *live, endpoint string) {
	t.Helper()
	l.until(t, 20*time.Second, "a pod", func() error {
		return eachPod(t.Context(), l, endpoint, func(p *corev1.Pod) { p.Finalizers = []string{finalizer} })
	})
}

func release(t *testing.T, l *live, endpoint string) {
	t.Helper()
	l.until(t, 20*time.Second, "pods let go", func() error {
		return eachPod(context.WithoutCancel(t.Context()), l, endpoint, func(p *corev1.Pod) { p.Finalizers = nil })
	})
}

func eachPod(ctx context.Context, l *live, endpoint string, change func(*corev1.Pod)) error {
	var pods corev1.PodList
	if err := l.client.List(ctx, &pods, client.InNamespace("models"), client.MatchingLabels{kube.LabelEndpoint: endpoint}); err != nil {
		return err
	}
	if len(pods.Items) == 0 {
		return errors.New("there is none")
	}
	for i := range pods.Items {
		change(&pods.Items[i])
		if err := l.client.Update(ctx, &pods.Items[i]); err != nil {
			return err
		}
	}
	return nil
}
