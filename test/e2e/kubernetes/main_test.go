// Package kubernetes drives Sluice on a real cluster, installed by its own chart from images that
// the repository builds: as a user's scripts would, by the sluice command and by HTTP. It dials
// Services and pods, so it runs where these are reached (`cluster exec` on the test cluster).
package kubernetes

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sluice-dev/sluice/pkg/cluster/kube"
	"github.com/sluice-dev/sluice/pkg/cluster/kube/v1alpha1"
	"github.com/sluice-dev/sluice/rollout"
)

const (
	system    = "sluice-system"
	models    = "e2e-models"
	imageTag  = "e2e"
	routerURL = "http://sluice-router." + system + ".svc.cluster.local"
)

// installation is Sluice in the cluster, installed once for all tests.
type installation struct {
	kubeconfig string
	// push is the registry by which images are pushed, pull what nodes call it.
	push, pull string
	binary     string
	client     client.Client
}

var once struct {
	sync.Once
	in  *installation
	err error
}

// install gives the installation, or skips the test where there is no cluster.
func install(t *testing.T) *installation {
	t.Helper()
	for _, name := range []string{"SLUICE_TEST_KUBECONFIG", "SLUICE_TEST_REGISTRY", "HELM"} {
		if os.Getenv(name) == "" {
			t.Skipf("needs a cluster: %s is not set; `make cluster-e2e` does all of it", name)
		}
	}
	once.Do(func() { once.in, once.err = setUp() })
	if once.err != nil {
		t.Fatal(once.err)
	}
	return once.in
}

func setUp() (*installation, error) {
	in := &installation{kubeconfig: os.Getenv("SLUICE_TEST_KUBECONFIG"), push: os.Getenv("SLUICE_TEST_REGISTRY"), pull: os.Getenv("SLUICE_TEST_PULL_REGISTRY")}
	if in.pull == "" {
		in.pull = in.push
	}
	root, err := filepath.Abs("../../..")
	if err != nil {
		return nil, err
	}
	run := func(name string, args ...string) error {
		cmd := exec.Command(name, args...)
		cmd.Dir, cmd.Env = root, append(os.Environ(), "CGO_ENABLED=0", "KUBECONFIG="+in.kubeconfig)
		out, err := cmd.CombinedOutput()
		if err != nil {
			return fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, out)
		}
		return nil
	}
	in.binary = os.Getenv("SLUICE_TEST_BINARY")
	if in.binary == "" {
		in.binary = filepath.Join(os.TempDir(), fmt.Sprintf("sluice-e2e-%d", os.Getpid()))
		if err := run("go", "build", "-trimpath", "-o", in.binary, "./cmd/sluice"); err != nil {
			return nil, err
		}
	}
	if err := run("go", "run", "./build/images", "--push", in.push+"/sluice", "--tag", imageTag, "--platform", "linux/amd64", "--programs", "router,webhook,runner"); err != nil {
		return nil, err
	}
	config, _, err := kube.Config(in.kubeconfig, "")
	if err != nil {
		return nil, err
	}
	scheme := runtime.NewScheme()
	if err := errors.Join(clientgoscheme.AddToScheme(scheme), v1alpha1.AddToScheme(scheme)); err != nil {
		return nil, err
	}
	if in.client, err = client.New(config, client.Options{Scheme: scheme}); err != nil {
		return nil, err
	}
	for _, ns := range []string{system, models} {
		n := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: ns, Labels: map[string]string{"pod-security.kubernetes.io/enforce": "restricted"}}}
		if err := in.client.Create(context.Background(), n); err != nil && !apierrors.IsAlreadyExists(err) {
			return nil, fmt.Errorf("make namespace %s: %w", ns, err)
		}
	}
	return in, run(os.Getenv("HELM"), "upgrade", "--install", "sluice", "charts/sluice", "--namespace", system, "--wait", "--timeout", "3m",
		"--take-ownership", "--set", "image.registry="+in.pull+"/sluice,image.tag="+imageTag+",image.pullPolicy=Always,namespaces={"+models+"}",
		// The tag is the same each time: the annotations make pods of the images just pushed.
		"--set", fmt.Sprintf("router.resources.requests.cpu=100m,control.scoringURL=%s,router.podAnnotations.run=r%[2]d,control.podAnnotations.run=r%[2]d", routerURL, time.Now().Unix()))
}

// sluice runs the command line against the cluster and gives what it says on standard output.
func (in *installation) sluice(args ...string) (string, error) {
	out, _, err := in.command(args...)
	return out, err
}

// sluiceBoth is as sluice, with what it tells on the way.
func (in *installation) sluiceBoth(args ...string) (string, error) {
	out, errs, err := in.command(args...)
	return errs + out, err
}

func (in *installation) command(args ...string) (stdout, stderr string, err error) {
	cmd := exec.Command(in.binary, append([]string{"--target", "kubernetes", "--kubeconfig", in.kubeconfig, "--namespace", models}, args...)...)
	cmd.Env = append(os.Environ(), "SLUICE_REGISTRY="+in.push+"/models", "SLUICE_PULL_REGISTRY="+in.pull, "SLUICE_BASE_IMAGE="+in.push+"/base/python:3", "SLUICE_RUNNER_IMAGE="+in.push+"/sluice/runner:"+imageTag)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return out.String(), errs.String(), fmt.Errorf("sluice %s: %w: %s", strings.Join(args, " "), err, errs.String())
	}
	return out.String(), errs.String(), nil
}

func (in *installation) must(t *testing.T, args ...string) string {
	t.Helper()
	out, err := in.sluice(args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func (in *installation) endpoint(t *testing.T, name string) *rollout.Endpoint {
	t.Helper()
	var m v1alpha1.ModelEndpoint
	if err := in.client.Get(t.Context(), client.ObjectKey{Namespace: models, Name: name}, &m); err != nil {
		t.Fatal(err)
	}
	return m.Endpoint()
}

// remove an endpoint and wait for the end of its pods.
func (in *installation) remove(t *testing.T, name string) {
	t.Helper()
	ctx := context.WithoutCancel(t.Context())
	err := in.client.Delete(ctx, &v1alpha1.ModelEndpoint{ObjectMeta: metav1.ObjectMeta{Namespace: models, Name: name}})
	if client.IgnoreNotFound(err) != nil {
		t.Fatal(err)
	}
	eventually(t, 3*time.Minute, "pods of "+name+" are gone", func() error {
		var pods corev1.PodList
		if err := in.client.List(ctx, &pods, client.InNamespace(models), client.MatchingLabels{kube.LabelEndpoint: name}); err != nil {
			return err
		}
		if len(pods.Items) > 0 {
			return fmt.Errorf("%d are left", len(pods.Items))
		}
		return nil
	})
}

func eventually(t *testing.T, within time.Duration, what string, f func() error) {
	t.Helper()
	for deadline := time.Now().Add(within); ; time.Sleep(50 * time.Millisecond) {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("not within %s: %s: %v", within, what, err)
		}
	}
}

// score sends one request through the router's Service.
func score(ctx context.Context, c *http.Client, endpoint, key string, body []byte) (status int, version string, answer []byte, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, routerURL+"/api/v1/endpoint/"+models+"/"+endpoint+"/score", bytes.NewReader(body))
	if err != nil {
		return 0, "", nil, err
	}
	req.Header.Set("Authorization", "Bearer "+key)
	req.Header.Set("Content-Type", "application/json")
	resp, err := c.Do(req)
	if err != nil {
		return 0, "", nil, err
	}
	defer resp.Body.Close()
	answer, err = io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	return resp.StatusCode, resp.Header.Get("Sluice-Version"), answer, err
}

// key of an endpoint, by the command line.
func (in *installation) key(t *testing.T, endpoint string) string {
	t.Helper()
	var k struct{ Primary string }
	if err := json.Unmarshal([]byte(in.must(t, "keys", "get", endpoint, "-o", "json")), &k); err != nil {
		t.Fatal(err)
	}
	return k.Primary
}
