package kubernetes

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// helm upgrades the installation with further values.
func (in *installation) helm(t *testing.T, set ...string) {
	t.Helper()
	args := []string{"upgrade", "sluice", "../../../charts/sluice", "--namespace", system, "--reuse-values", "--wait", "--timeout", "3m"}
	for _, s := range set {
		args = append(args, "--set", s)
	}
	cmd := exec.Command(os.Getenv("HELM"), args...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+in.kubeconfig)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("helm upgrade: %v\n%s", err, out)
	}
}

// TestRouterScalesItself: under rising load a router pod gets more CPU without a restart, then there
// is a second pod; when the load is over both are taken back.
func TestRouterScalesItself(t *testing.T) {
	in := install(t)
	in.remove(t, "busy")
	t.Cleanup(func() { in.remove(t, "busy") })
	in.must(t, "deploy", project(t, "busy", "one", ""), "--version", "one")
	key := in.key(t, "busy")
	in.helm(t, "router.replicas=1", "router.resources.requests.cpu=50m", "router.resources.limits.cpu=50m",
		"router.selfScale.p99=5ms", "router.selfScale.over=5s", "router.selfScale.calm=20s", "router.selfScale.cpu.step=50m", "router.selfScale.cpu.max=100m", "router.selfScale.maxReplicas=2")
	t.Cleanup(func() {
		in.helm(t, "router.replicas=2", "router.resources.requests.cpu=100m", "router.resources.limits.cpu=2", "router.selfScale.p99=5ms", "router.selfScale.over=15s", "router.selfScale.calm=2m", "router.selfScale.cpu.step=500m", "router.selfScale.cpu.max=4", "router.selfScale.maxReplicas=10")
	})
	var first corev1.Pod
	eventually(t, time.Minute, "one router", func() error {
		pods := in.routers(t)
		if len(pods) != 1 {
			return fmt.Errorf("%d routers", len(pods))
		}
		first = pods[0]
		return nil
	})
	limit := func() string {
		var p corev1.Pod
		if err := in.client.Get(t.Context(), client.ObjectKeyFromObject(&first), &p); err != nil {
			t.Fatal(err)
		}
		if len(p.Status.ContainerStatuses) == 0 || p.Status.ContainerStatuses[0].Resources == nil {
			return "unknown"
		}
		if n := p.Status.ContainerStatuses[0].RestartCount; n != 0 {
			t.Fatalf("the router was restarted %d times", n)
		}
		return p.Status.ContainerStatuses[0].Resources.Limits.Cpu().String()
	}
	replicas := func() int32 {
		var d appsv1.Deployment
		if err := in.client.Get(t.Context(), client.ObjectKey{Namespace: system, Name: "sluice-router"}, &d); err != nil {
			t.Fatal(err)
		}
		return *d.Spec.Replicas
	}
	became := func(within time.Duration, what, cpu string, pods int32) {
		t.Helper()
		began := time.Now()
		eventually(t, within, what, func() error {
			if l, n := limit(), replicas(); l != cpu || n != pods {
				return fmt.Errorf("limit %s, %d pods", l, n)
			}
			return nil
		})
		t.Logf("%s after %s", what, time.Since(began).Round(time.Second))
	}
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer stop()
	// So little CPU that the routers are what is short, however much else this machine does.
	for range 8 {
		wg.Go(func() {
			c := &http.Client{Timeout: 20 * time.Second}
			for ctx.Err() == nil {
				_, _, _, _ = score(ctx, c, "busy", key, []byte(`{"n": 1}`))
			}
		})
	}
	became(90*time.Second, "more CPU in place", "100m", 1)
	became(90*time.Second, "a second pod", "100m", 2)
	stop()
	wg.Wait()
	became(3*time.Minute, "CPU and pod are taken back", "50m", 1)
	out, err := exec.Command("kubectl", "--kubeconfig", in.kubeconfig, "-n", system, "logs", "-l", "app.kubernetes.io/component=router", "--tail=-1").Output()
	if err == nil {
		for line := range strings.SplitSeq(string(out), "\n") {
			if strings.Contains(line, "self") || strings.Contains(line, "p99") {
				t.Log(line)
			}
		}
	}
}
