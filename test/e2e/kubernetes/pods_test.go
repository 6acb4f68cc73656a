package kubernetes

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sluice-dev/sluice/pkg/cluster/kube"
	"github.com/sluice-dev/sluice/pkg/cluster/kube/v1alpha1"
	"github.com/sluice-dev/sluice/pkg/control"
	"github.com/sluice-dev/sluice/rollout"
)

// deployment of an endpoint's only version.
func (in *installation) deployment(t *testing.T, endpoint string) *appsv1.Deployment {
	t.Helper()
	var list appsv1.DeploymentList
	if err := in.client.List(t.Context(), &list, client.InNamespace(models), client.MatchingLabels{kube.LabelEndpoint: endpoint}); err != nil || len(list.Items) != 1 {
		t.Fatalf("%d deployments of %s, %v", len(list.Items), endpoint, err)
	}
	return &list.Items[0]
}

// pods of an endpoint that do not end.
func (in *installation) pods(t *testing.T, endpoint string) []corev1.Pod {
	t.Helper()
	var list corev1.PodList
	if err := in.client.List(t.Context(), &list, client.InNamespace(models), client.MatchingLabels{kube.LabelEndpoint: endpoint}); err != nil {
		t.Fatal(err)
	}
	return slices.DeleteFunc(list.Items, func(p corev1.Pod) bool { return p.DeletionTimestamp != nil })
}

// condition waits until an endpoint's condition is as wanted.
func (in *installation) condition(t *testing.T, endpoint, kind, status string) rollout.Condition {
	t.Helper()
	var out rollout.Condition
	eventually(t, time.Minute, kind+" of "+endpoint+" is "+status, func() error {
		conditions := in.endpoint(t, endpoint).Status.Conditions
		i := slices.IndexFunc(conditions, func(c rollout.Condition) bool { return c.Type == kind })
		if i < 0 || conditions[i].Status != status {
			return fmt.Errorf("conditions are %+v", conditions)
		}
		out = conditions[i]
		return nil
	})
	return out
}

// told waits for an event at an endpoint.
func (in *installation) told(t *testing.T, endpoint, reason string) {
	t.Helper()
	eventually(t, 20*time.Second, "event "+reason, func() error {
		var events corev1.EventList
		if err := in.client.List(t.Context(), &events, client.InNamespace(models)); err != nil {
			return err
		}
		var seen []string
		for _, e := range events.Items {
			if e.InvolvedObject.Kind == "ModelEndpoint" && e.InvolvedObject.Name == endpoint {
				if strings.Contains(e.Reason, reason) {
					t.Logf("event %s: %s", e.Reason, e.Message)
					return nil
				}
				seen = append(seen, e.Reason)
			}
		}
		return fmt.Errorf("its events are %v", seen)
	})
}

// stays checks for a while that an endpoint's Deployment asks for n replicas.
func (in *installation) stays(t *testing.T, endpoint string, n int32) {
	t.Helper()
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		if now := *in.deployment(t, endpoint).Spec.Replicas; now != n {
			t.Fatalf("%s was scaled to %d, and had to stay at %d", endpoint, now, n)
		}
	}
}

// becomes waits until so many replicas are ready.
func (in *installation) becomes(t *testing.T, endpoint string, n int32) {
	t.Helper()
	eventually(t, 2*time.Minute, fmt.Sprintf("%d replicas of %s", n, endpoint), func() error {
		if len(in.endpoint(t, endpoint).Status.Versions) == 0 {
			return errors.New("the control role has not seen it yet")
		}
		if d := in.deployment(t, endpoint); *d.Spec.Replicas != n || d.Status.ReadyReplicas != n {
			return fmt.Errorf("%d asked for, %d ready", *d.Spec.Replicas, d.Status.ReadyReplicas)
		}
		return nil
	})
}

// advertise has every node offer n of a resource; 0 takes it back.
func (in *installation) advertise(t *testing.T, resource string, n int) {
	t.Helper()
	ctx := context.WithoutCancel(t.Context())
	var nodes corev1.NodeList
	if err := in.client.List(ctx, &nodes); err != nil {
		t.Fatal(err)
	}
	path := strings.ReplaceAll(resource, "/", "~1")
	for i := range nodes.Items {
		op := "add"
		if n == 0 {
			op = "remove"
		}
		patch := fmt.Sprintf(`[{"op":"%[1]s","path":"/status/capacity/%[2]s","value":"%[3]d"},{"op":"%[1]s","path":"/status/allocatable/%[2]s","value":"%[3]d"}]`, op, path, n)
		if err := in.client.Status().Patch(ctx, &nodes.Items[i], client.RawPatch(types.JSONPatchType, []byte(patch))); err != nil {
			t.Fatal(err)
		}
	}
}

// TestGPUsAndFullCluster: replicas get GPUs, a cluster that has no more is not asked for more, and once it has
// the growth goes on.
func TestGPUsAndFullCluster(t *testing.T) {
	in := install(t)
	in.remove(t, "gpus")
	t.Cleanup(func() { in.remove(t, "gpus") })
	in.advertise(t, kube.DefaultGPUResource, 2)
	t.Cleanup(func() { in.advertise(t, kube.DefaultGPUResource, 0) })
	dir := project(t, "gpus", "one", "")
	edit(t, dir, "memory: 32Mi", "memory: 32Mi, gpu: 1")
	in.must(t, "deploy", dir, "--version", "one")
	for _, p := range in.pods(t, "gpus") {
		if q := p.Spec.Containers[0].Resources.Limits[kube.DefaultGPUResource]; q.Value() != 1 {
			t.Errorf("pod %s has limits %v", p.Name, p.Spec.Containers[0].Resources.Limits)
		}
	}
	in.must(t, "update", "gpus", "one", "--replicas", "3")
	c := in.condition(t, "gpus", control.ConditionClusterFull, "True")
	t.Logf("%s: %s", c.Reason, c.Message)
	if !strings.Contains(c.Message, "gpu") {
		t.Errorf("the condition does not say what is short: %s", c.Message)
	}
	in.told(t, "gpus", control.ConditionClusterFull)
	in.must(t, "update", "gpus", "one", "--replicas", "5")
	in.stays(t, "gpus", 3)
	if n := in.endpoint(t, "gpus").Status.Version("one").ReadyReplicas; n != 2 {
		t.Errorf("%d replicas are ready on two GPUs", n)
	}
	in.advertise(t, kube.DefaultGPUResource, 8)
	in.becomes(t, "gpus", 5)
	in.condition(t, "gpus", control.ConditionClusterFull, "False")
}

// TestHorizontalPodAutoscaler: what one of these scales Sluice leaves alone, and says so, until it is gone.
func TestHorizontalPodAutoscaler(t *testing.T) {
	in := install(t)
	in.remove(t, "hpa")
	t.Cleanup(func() { in.remove(t, "hpa") })
	in.must(t, "deploy", project(t, "hpa", "one", ""), "--version", "one")
	d := in.deployment(t, "hpa")
	one, use := int32(1), int32(80)
	hpa := &autoscalingv2.HorizontalPodAutoscaler{
		ObjectMeta: metav1.ObjectMeta{Namespace: models, Name: "theirs"},
		Spec: autoscalingv2.HorizontalPodAutoscalerSpec{
			ScaleTargetRef: autoscalingv2.CrossVersionObjectReference{APIVersion: "apps/v1", Kind: "Deployment", Name: d.Name}, MinReplicas: &one, MaxReplicas: 3,
			Metrics: []autoscalingv2.MetricSpec{{Type: autoscalingv2.ResourceMetricSourceType, Resource: &autoscalingv2.ResourceMetricSource{
				Name: corev1.ResourceCPU, Target: autoscalingv2.MetricTarget{Type: autoscalingv2.UtilizationMetricType, AverageUtilization: &use},
			}}},
		},
	}
	_ = in.client.Delete(t.Context(), hpa.DeepCopy())
	if err := in.client.Create(t.Context(), hpa); err != nil {
		t.Fatal(err)
	}
	if c := in.condition(t, "hpa", control.ConditionScaledByOther, "True"); !strings.Contains(c.Message, "HorizontalPodAutoscaler theirs") {
		t.Errorf("the condition does not name it: %s", c.Message)
	}
	in.told(t, "hpa", control.ConditionScaledByOther)
	in.must(t, "update", "hpa", "one", "--replicas", "2")
	in.stays(t, "hpa", 1)
	if err := in.client.Delete(t.Context(), hpa); err != nil {
		t.Fatal(err)
	}
	in.becomes(t, "hpa", 2)
	in.condition(t, "hpa", control.ConditionScaledByOther, "False")
}

// server is somebody's own, which knows nothing of Sluice and serves one request at a time.
const server = `
import json, os, signal, threading, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
busy = threading.Lock()
class Handler(BaseHTTPRequestHandler):
    disable_nagle_algorithm = True
    protocol_version = "HTTP/1.1"
    def answer(self, status, body):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def do_GET(self):
        self.answer(200 if self.path == "/up" else 404, b"")
    def do_POST(self):
        d = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path != "/predict" or not busy.acquire(blocking=False):
            return self.answer(500, b"two at a time, or " + self.path.encode())
        try:
            time.sleep(0.02)
        finally:
            busy.release()
        self.answer(200, json.dumps({"n": d["n"], "from": "own"}).encode())
    def log_message(self, *_):
        pass
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
ThreadingHTTPServer(("127.0.0.1", 8000), Handler).serve_forever()
`

// TestServerOfItsOwn: an image as it came from elsewhere gets the gate beside it, which makes two routers
// safe for its one slot; the version's template is merged; new settings lose no request.
func TestServerOfItsOwn(t *testing.T) {
	in := install(t)
	in.remove(t, "own")
	t.Cleanup(func() { in.remove(t, "own") })
	// Somebody's image: a base image and another command.
	base, err := name.ParseReference(in.push+"/base/python:3", name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	image, err := remote.Image(base)
	if err != nil {
		t.Fatal(err)
	}
	config, err := image.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	config = config.DeepCopy()
	config.Config.Entrypoint, config.Config.Cmd = []string{"python3", "-u", "-c", server}, nil
	if image, err = mutate.ConfigFile(image, config); err != nil {
		t.Fatal(err)
	}
	to, err := name.ParseReference(in.push+"/models/own:1", name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(to, image); err != nil {
		t.Fatal(err)
	}
	digest, err := image.Digest()
	if err != nil {
		t.Fatal(err)
	}
	two := 2
	m := &v1alpha1.ModelEndpoint{ObjectMeta: metav1.ObjectMeta{Namespace: models, Name: "own"}, Spec: rollout.Spec{Versions: []rollout.Version{{
		Name: "one", Type: rollout.Control, IsDefault: true, Image: in.pull + "/models/own@" + digest.String(),
		Settings: rollout.Settings{
			Replicas: &two, Resources: &rollout.Resources{CPU: "50m", Memory: "32Mi"},
			Server: &rollout.Server{Port: 8000, ScorePath: "/predict", HealthPath: "/up"},
			Template: map[string]any{
				"metadata": map[string]any{"annotations": map[string]any{"example.com/team": "fraud"}},
				"spec": map[string]any{
					"nodeSelector": map[string]any{"kubernetes.io/os": "linux"},
					"tolerations":  []any{map[string]any{"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}},
					"volumes":      []any{map[string]any{"name": "scratch", "emptyDir": map[string]any{}}},
					"containers":   []any{map[string]any{"name": "model", "volumeMounts": []any{map[string]any{"name": "scratch", "mountPath": "/scratch"}}}},
				},
			},
		},
	}}}}
	if err := in.client.Create(t.Context(), m, &client.CreateOptions{FieldValidation: metav1.FieldValidationStrict, FieldManager: "e2e"}); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	in.becomes(t, "own", 2)
	t.Logf("two replicas serve %s after the object was made", time.Since(began).Round(100*time.Millisecond))
	for _, p := range in.pods(t, "own") {
		if len(p.Spec.Containers) != 1 || p.Spec.Containers[0].Name != "gate" || len(p.Spec.InitContainers) != 1 || p.Spec.InitContainers[0].Name != "model" {
			t.Fatalf("pod %s has containers %+v, %+v", p.Name, p.Spec.InitContainers, p.Spec.Containers)
		}
		if m := p.Spec.InitContainers[0].VolumeMounts; len(m) != 1 || m[0].MountPath != "/scratch" || p.Annotations["example.com/team"] != "fraud" || p.Spec.NodeSelector["kubernetes.io/os"] != "linux" || !slices.ContainsFunc(p.Spec.Tolerations, func(x corev1.Toleration) bool { return x.Key == "gpu" }) {
			t.Errorf("pod %s is not as the template says: %v %v %+v", p.Name, p.Annotations, p.Spec.NodeSelector, p.Spec.Tolerations)
		}
	}
	key := in.key(t, "own")
	began = time.Now()
	l := stream(t, "own", key, 40) // two slots of 20 ms carry 100
	time.Sleep(5 * time.Second)
	t.Logf("%5.1f s: new settings; %d requests failed before", time.Since(began).Seconds(), l.failed.Load())
	in.must(t, "update", "own", "one", "--env", "X=1")
	eventually(t, 2*time.Minute, "the new pods serve", func() error {
		e := in.endpoint(t, "own")
		st := e.Status.Version("one")
		if e.Status.ObservedGeneration < e.Metadata.Generation || st.OutdatedReplicas > 0 || st.ReadyReplicas != 2 || st.Replicas != 2 {
			return fmt.Errorf("status is %+v", st)
		}
		return nil
	})
	t.Logf("%5.1f s: only new pods serve", time.Since(began).Seconds())
	time.Sleep(8 * time.Second)
	l.stop()
	t.Logf("%d requests through two routers, %d failed: %v", l.sent.Load(), l.failed.Load(), l.kinds)
	if l.failed.Load() != 0 {
		t.Errorf("%d requests failed between %.1f s and %.1f s: %v, the first: %s", l.failed.Load(), l.failedAt.Sub(began).Seconds(), l.last.Sub(began).Seconds(), l.kinds, l.first)
	}

	// What is Sluice's is refused, with the way out, and what serves goes on.
	var now v1alpha1.ModelEndpoint
	if err := in.client.Get(t.Context(), client.ObjectKey{Namespace: models, Name: "own"}, &now); err != nil {
		t.Fatal(err)
	}
	patch := `[{"op":"add","path":"/spec/versions/0/template/spec/containers/0/image","value":"another"}]`
	if err := in.client.Patch(t.Context(), &now, client.RawPatch(types.JSONPatchType, []byte(patch))); err != nil {
		t.Fatal(err)
	}
	eventually(t, 20*time.Second, "the status says which rule the template breaks", func() error {
		st := in.endpoint(t, "own").Status.Version("one")
		if st.Reason != rollout.ReasonInvalid || !strings.Contains(st.Message, "template.spec.containers[model].image") {
			return fmt.Errorf("status is %+v", st)
		}
		t.Logf("%s: %s", st.Reason, st.Message)
		return nil
	})
	if status, _, answer, err := score(t.Context(), http.DefaultClient, "own", key, []byte(`{"n": 7}`)); err != nil || status != http.StatusOK {
		t.Errorf("what serves went on with %d %s %v", status, answer, err)
	}
	// The server ends when its gate has drained: nothing holds a GPU for longer than requests need.
	began = time.Now()
	in.remove(t, "own")
	took := time.Since(began)
	t.Logf("its pods were gone after %s", took.Round(100*time.Millisecond))
	if took > 30*time.Second {
		t.Errorf("idle pods took %s to end", took)
	}
}
