package chart

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/restmapper"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/sluice-dev/sluice/pkg/cluster/kube"
	"github.com/sluice-dev/sluice/pkg/cluster/kube/v1alpha1"
	"github.com/sluice-dev/sluice/pkg/github/githubtest"
	"github.com/sluice-dev/sluice/pkg/router/routercmd"
	"github.com/sluice-dev/sluice/pkg/webhook/webhookcmd"
	"github.com/sluice-dev/sluice/rollout"
)

// live is a real cluster with two namespaces of the test's own, in which only restricted pods may be.
type live struct {
	config         *rest.Config
	client         *kubernetes.Clientset
	dynamic        *dynamic.DynamicClient
	mapper         *restmapper.DeferredDiscoveryRESTMapper
	system, models string

	mu       sync.Mutex
	warnings []string
}

// HandleWarningHeaderWithContext implements rest.WarningHandlerWithContext.
func (l *live) HandleWarningHeaderWithContext(_ context.Context, _ int, _, text string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.warnings = append(l.warnings, text)
}

func newLive(t *testing.T) *live {
	t.Helper()
	path := os.Getenv("SLUICE_TEST_KUBECONFIG")
	if path == "" {
		t.Skip("needs a cluster: `make cluster-up`, then SLUICE_TEST_KUBECONFIG=.cache/cluster/kubeconfig")
	}
	config, _, err := kube.Config(path, "")
	if err != nil {
		t.Fatal(err)
	}
	l := &live{config: config}
	config.QPS, config.Burst, config.WarningHandlerWithContext = 100, 200, l
	if l.client, err = kubernetes.NewForConfig(config); err != nil {
		t.Fatal(err)
	}
	if l.dynamic, err = dynamic.NewForConfig(config); err != nil {
		t.Fatal(err)
	}
	l.mapper = restmapper.NewDeferredDiscoveryRESTMapper(memory.NewMemCacheClient(discovery.NewDiscoveryClient(l.client.RESTClient())))
	suffix := strings.ToLower(rand.Text()[:6])
	for ns, name := range map[*string]string{&l.system: "system", &l.models: "models"} {
		*ns = "chart-test-" + suffix + "-" + name
		levels := map[string]string{}
		for _, mode := range []string{"enforce", "warn", "audit"} {
			levels["pod-security.kubernetes.io/"+mode] = "restricted"
		}
		if _, err := l.client.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: *ns, Labels: levels}}, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = l.client.CoreV1().Namespaces().Delete(context.Background(), *ns, metav1.DeleteOptions{}) })
	}
	return l
}

// rendered are the objects of the chart for the test's namespaces.
func (l *live) rendered(t *testing.T, file string, more ...string) []object {
	t.Helper()
	args := append([]string{"template", release, chartDir, "--namespace", l.system, "-f", file}, more...)
	if file != "testdata/cluster-wide.yaml" {
		args = append(args, "--set", "namespaces={"+l.models+"}")
	} else {
		args = append(args, "--set", "networkPolicy.versions.namespaces={"+l.models+"}")
	}
	out, stderr, err := run(t, args...)
	if err != nil {
		t.Fatalf("%v\n%s", err, stderr)
	}
	return decode(t, out)
}

// apply from the server's side, strictly.
func (l *live) apply(ctx context.Context, o object, dry bool) error {
	content, err := runtime.DefaultUnstructuredConverter.ToUnstructured(o)
	if err != nil {
		return err
	}
	delete(content, "status")
	u := &unstructured.Unstructured{Object: content}
	unstructured.RemoveNestedField(content, "metadata", "creationTimestamp")
	gvk := o.GetObjectKind().GroupVersionKind()
	m, err := l.mapper.RESTMapping(gvk.GroupKind(), gvk.Version)
	if err != nil {
		return err
	}
	var to dynamic.ResourceInterface = l.dynamic.Resource(m.Resource)
	if o.GetNamespace() != "" {
		to = l.dynamic.Resource(m.Resource).Namespace(o.GetNamespace())
	}
	options := metav1.PatchOptions{FieldManager: "chart-test", FieldValidation: metav1.FieldValidationStrict, Force: new(bool)}
	*options.Force = true
	if dry {
		options.DryRun = []string{metav1.DryRunAll}
	}
	data, err := u.MarshalJSON()
	if err != nil {
		return err
	}
	_, err = to.Patch(ctx, o.GetName(), "application/apply-patch+yaml", data, options)
	return err
}

// TestLiveAccepts: a real API server takes all that the chart renders, without a warning.
func TestLiveAccepts(t *testing.T) {
	l := newLive(t)
	n := 0
	for name, file := range cases(t) {
		for _, o := range l.rendered(t, file) {
			if _, is := o.(*podMonitor); is {
				continue // the operator's kind; its form is checked when it is decoded
			}
			if err := l.apply(t.Context(), o, true); err != nil {
				t.Errorf("%s: %T %s: %v", name, o, o.GetName(), err)
			}
			n++
		}
	}
	for _, w := range l.warnings {
		t.Errorf("the API server warns: %s", w)
	}
	t.Logf("%d objects accepted", n)
}

// account is a kubeconfig of a service account's token.
func (l *live) account(t *testing.T, name string) string {
	t.Helper()
	token, err := l.client.CoreV1().ServiceAccounts(l.system).CreateToken(t.Context(), name, &authenticationv1.TokenRequest{}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	c := clientcmdapi.NewConfig()
	ca := l.config.CAData
	if len(ca) == 0 && l.config.CAFile != "" {
		if ca, err = os.ReadFile(l.config.CAFile); err != nil {
			t.Fatal(err)
		}
	}
	c.Clusters["c"] = &clientcmdapi.Cluster{Server: l.config.Host, CertificateAuthorityData: ca, TLSServerName: l.config.ServerName}
	c.AuthInfos["c"] = &clientcmdapi.AuthInfo{Token: token.Status.Token}
	c.Contexts["c"] = &clientcmdapi.Context{Cluster: "c", AuthInfo: "c", Namespace: l.system}
	c.CurrentContext = "c"
	path := filepath.Join(t.TempDir(), "kubeconfig")
	if err := clientcmd.WriteToFile(*c, path); err != nil {
		t.Fatal(err)
	}
	return path
}

// output collects a program's log.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

func free(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ln.Close() }()
	return ln.Addr().String()
}

func until(t *testing.T, what string, done func() error) {
	t.Helper()
	for deadline := time.Now().Add(90 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		err := done()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: %v", what, err)
		}
	}
}

// TestLiveRights runs router, control and webhook with the service accounts of the chart and nothing more, through
// the life of an endpoint: what they may suffices.
func TestLiveRights(t *testing.T) {
	l := newLive(t)
	ctx := t.Context()
	gh := githubtest.New(t)
	gh.AddRepository(7, "acme", "fraud")
	gh.AddPullRequest("acme/fraud", githubtest.PullRequest{Number: 41})
	gh.SetPermission("acme/fraud", "alice", "write")
	const secret = "a secret for tests"

	all := l.rendered(t, "testdata/github.yaml")
	for _, o := range all {
		switch o.(type) {
		case *apiextensionsv1.CustomResourceDefinition, *corev1.ServiceAccount, *rbacv1.Role, *rbacv1.RoleBinding:
		default:
			continue
		}
		if err := l.apply(ctx, o, false); err != nil {
			t.Fatal(err)
		}
	}

	// The programs, with the flags of the chart but for their addresses.
	type program struct {
		name  string
		main  func(context.Context, []string, []string, *output) int
		flags []string
		env   []string
	}
	policy := filepath.Join(t.TempDir(), "policy.yaml")
	if err := os.WriteFile(policy, []byte(named[*corev1.ConfigMap](t, all, "sluice-webhook-api").Data["policy.yaml"]), 0o600); err != nil {
		t.Fatal(err)
	}
	permissions := filepath.Join(t.TempDir(), "permissions.yaml")
	if err := os.WriteFile(permissions, []byte(named[*corev1.ConfigMap](t, all, "sluice-webhook-github").Data["permissions.yaml"]), 0o600); err != nil {
		t.Fatal(err)
	}
	hook := free(t)
	health, admin := free(t), free(t)
	programs := []program{
		{"router", func(ctx context.Context, args, env []string, out *output) int {
			return routercmd.Main(ctx, args, env, out, out)
		}, []string{"--router-address=" + free(t), "--admin-address=" + admin, "--grace=1s"}, nil},
		{"control", func(ctx context.Context, args, env []string, out *output) int {
			return webhookcmd.Main(ctx, args, env, out, out)
		}, []string{"--admin-address=" + free(t), "--health-address=" + health}, nil},
		{"webhook", func(ctx context.Context, args, env []string, out *output) int {
			return webhookcmd.Main(ctx, args, env, out, out)
		}, []string{"--listen=" + hook, "--github-api-url=" + gh.URL, "--github-app-id=0", "--github-app-key-file=", "--api-session-key-file=", "--api-policy=" + policy, "--github-permissions=" + permissions, "--grace=1s"}, []string{"SLUICE_WEBHOOK_SECRET=" + secret, "SLUICE_GITHUB_TOKEN=" + githubtest.Token, "SLUICE_API_SESSION_KEY=" + strings.Repeat("test", 8)}},
	}
	logs := map[string]*output{}
	running, stop := context.WithCancel(ctx)
	var wg sync.WaitGroup
	for _, p := range programs {
		out := &output{}
		logs[p.name] = out
		// The last of a flag given twice counts.
		args := slices.Concat(named[*appsv1.Deployment](t, all, "sluice-"+p.name).Spec.Template.Spec.Containers[0].Args, p.flags,
			[]string{"--kubeconfig=" + l.account(t, "sluice-"+p.name), "--verbose"})
		wg.Go(func() {
			if code := p.main(running, args, p.env, out); code != 0 {
				t.Errorf("%s: exit code %d", p.name, code)
			}
		})
	}
	end := sync.OnceFunc(func() { stop(); wg.Wait() })
	defer func() {
		end()
		for name, out := range logs {
			text := out.String()
			for line := range strings.Lines(text) {
				if strings.Contains(strings.ToLower(line), "forbidden") || strings.Contains(line, "cannot ") && strings.Contains(line, "resource") {
					t.Errorf("%s: %s", name, line)
				}
			}
			if t.Failed() {
				t.Logf("%s:\n%s", name, text[max(0, len(text)-6000):])
			}
		}
	}()
	get := func(url string) error {
		resp, err := http.Get(url)
		if err != nil {
			return err
		}
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return errors.New(resp.Status)
		}
		return nil
	}
	for _, url := range []string{"http://" + admin + "/readyz", "http://" + admin + "/metrics", "http://" + health + "/readyz", "http://" + health + "/healthz", "http://" + hook + "/readyz"} {
		until(t, url, func() error { return get(url) })
	}

	endpoints := l.dynamic.Resource(v1alpha1.GroupVersion().WithResource("modelendpoints")).Namespace(l.models)
	replicas := 2
	made, err := runtime.DefaultUnstructuredConverter.ToUnstructured(&v1alpha1.ModelEndpoint{
		TypeMeta: metav1.TypeMeta{APIVersion: rollout.APIVersion, Kind: rollout.Kind}, ObjectMeta: metav1.ObjectMeta{Namespace: l.models, Name: "fraud"},
		Spec: rollout.Spec{Repositories: []int64{7}, Versions: []rollout.Version{{
			Name: "pr-41-0000001", Image: "localhost:5000/none@sha256:" + strings.Repeat("0", 64), Source: rollout.Source{RepositoryID: 7, PullRequest: 41},
			Settings: rollout.Settings{Replicas: &replicas},
		}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	delete(made, "status")
	if _, err := endpoints.Create(ctx, &unstructured.Unstructured{Object: made}, metav1.CreateOptions{FieldValidation: metav1.FieldValidationStrict}); err != nil {
		t.Fatal(err)
	}
	fleet := metav1.ListOptions{LabelSelector: kube.LabelEndpoint + "=fraud"}
	until(t, "fleet, scaled by the router, of pods that the namespace admits", func() error {
		d, err := l.client.AppsV1().Deployments(l.models).List(ctx, fleet)
		if err != nil {
			return err
		}
		pods, err := l.client.CoreV1().Pods(l.models).List(ctx, fleet)
		if err != nil {
			return err
		}
		if len(d.Items) != 1 || *d.Items[0].Spec.Replicas != int32(replicas) || len(pods.Items) != replicas {
			return fmt.Errorf("%d deployments, %d pods", len(d.Items), len(pods.Items))
		}
		return nil
	})
	until(t, "keys, their hashes and leases", func() error {
		_, err := l.client.CoreV1().Secrets(l.models).Get(ctx, "fraud-keys", metav1.GetOptions{})
		hashes, other := l.client.CoreV1().Secrets(l.system).Get(ctx, kube.HashesName, metav1.GetOptions{})
		if err = errors.Join(err, other); err == nil && len(hashes.Data) != 1 {
			err = fmt.Errorf("%d hashes", len(hashes.Data))
		}
		for _, lease := range []string{"sluice-control", "sluice-autoscaler"} {
			_, other := l.client.CoordinationV1().Leases(l.system).Get(ctx, lease, metav1.GetOptions{})
			err = errors.Join(err, other)
		}
		return err
	})
	until(t, "status with the address to score at", func() error {
		e, err := endpoints.Get(ctx, "fraud", metav1.GetOptions{})
		if err != nil {
			return err
		}
		want := "http://sluice-router." + l.system + ".svc/api/v1/service/fraud/score"
		if have, _, _ := unstructured.NestedString(e.Object, "status", "scoringUri"); have != want {
			return fmt.Errorf("scoringUri %q, want %q", have, want)
		}
		return nil
	})
	for ns, field := range map[string]string{l.models: "involvedObject.name=fraud", l.system: "involvedObject.name=sluice-control"} {
		until(t, "event of "+field, func() error {
			events, err := l.client.CoreV1().Events(ns).List(ctx, metav1.ListOptions{FieldSelector: field})
			if err == nil && len(events.Items) == 0 {
				err = errors.New("none")
			}
			return err
		})
	}
	comment := gh.Comment(100, "acme/fraud", 41, "alice", "/hold for a test", time.Time{})
	until(t, "delivery", func() error {
		resp, err := http.DefaultClient.Do(githubtest.Delivery("http://"+hook+"/webhooks/github", secret, "issue_comment", "guid", githubtest.CommentEvent(comment)))
		if err == nil {
			body, _ := io.ReadAll(resp.Body)
			_ = resp.Body.Close()
			if resp.StatusCode/100 != 2 {
				err = fmt.Errorf("%s: %s", resp.Status, body)
			}
		}
		return err
	})
	until(t, "command carried out and recorded", func() error {
		e, err := endpoints.Get(ctx, "fraud", metav1.GetOptions{})
		if err != nil {
			return err
		}
		if _, held, _ := unstructured.NestedMap(e.Object, "spec", "hold"); !held {
			return errors.New("not held")
		}
		// What reports are done has entries of its own.
		entry, err := l.dynamic.Resource(v1alpha1.GroupVersion().WithResource("journalentries")).Namespace(l.system).Get(ctx, fmt.Sprintf("c-%d-1", comment.ID), metav1.GetOptions{})
		if err != nil {
			return err
		}
		if state, _, _ := unstructured.NestedString(entry.Object, "status", "state"); state != "done" {
			return fmt.Errorf("state %q", state)
		}
		return nil
	})
	// Settings change, and the endpoint goes.
	patch := `[{"op": "add", "path": "/spec/versions/0/scoringTimeoutMs", "value": 30000}]`
	if _, err := endpoints.Patch(ctx, "fraud", "application/json-patch+json", []byte(patch), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	until(t, "changed fleet", func() error {
		d, err := l.client.AppsV1().Deployments(l.models).List(ctx, fleet)
		if err != nil {
			return err
		}
		if len(d.Items) != 1 {
			return fmt.Errorf("%d deployments", len(d.Items))
		}
		if grace := *d.Items[0].Spec.Template.Spec.TerminationGracePeriodSeconds; grace != 43 {
			return fmt.Errorf("grace period %d", grace)
		}
		return nil
	})
	if err := endpoints.Delete(ctx, "fraud", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	until(t, "end of the fleet", func() error {
		d, err := l.client.AppsV1().Deployments(l.models).List(ctx, fleet)
		s, other := l.client.CoreV1().Services(l.models).List(ctx, fleet)
		if err = errors.Join(err, other); err != nil {
			return err
		}
		if len(d.Items)+len(s.Items) > 0 {
			return fmt.Errorf("%d deployments, %d services", len(d.Items), len(s.Items))
		}
		return nil
	})
	time.Sleep(500 * time.Millisecond) // what comes of it is in the logs
	end()
}
