// Package chart tests charts/sluice with the Helm that users have.
package chart

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/yaml"

	"github.com/sluice-dev/sluice/pkg/api"
	"github.com/sluice-dev/sluice/pkg/chatops"
	"github.com/sluice-dev/sluice/pkg/cluster"
	"github.com/sluice-dev/sluice/pkg/cluster/kube"
	"github.com/sluice-dev/sluice/pkg/page/login"
	"github.com/sluice-dev/sluice/pkg/router/routercmd"
	"github.com/sluice-dev/sluice/pkg/webhook/webhookcmd"
	"github.com/sluice-dev/sluice/rollout"
)

const (
	chartDir  = "../../charts/sluice"
	document  = "../../docs/kubernetes.md"
	release   = "sluice"
	namespace = "sluice-system"
)

// helm's program: $HELM, which must be there then, or what `make helm` made, or the machine's.
func helm(t *testing.T) string {
	t.Helper()
	if path := os.Getenv("HELM"); path != "" {
		if _, err := os.Stat(path); err != nil {
			t.Fatalf("$HELM: %v", err)
		}
		return path
	}
	if path, err := filepath.Abs("../../.cache/bin/helm"); err == nil {
		if _, err := os.Stat(path); err == nil {
			return path
		}
	}
	path, err := exec.LookPath("helm")
	if err != nil {
		t.Skip("needs Helm: `make chart` builds it, and so does `make test`")
	}
	return path
}

// run helm without anything of the user's; stdout and stderr.
func run(t *testing.T, args ...string) (string, string, error) {
	t.Helper()
	home := t.TempDir()
	cmd := exec.Command(helm(t), args...)
	cmd.Env = []string{"HOME=" + home, "PATH=" + os.Getenv("PATH"), "KUBECONFIG=" + filepath.Join(home, "none")}
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	return stdout.String(), stderr.String(), err
}

func template(t *testing.T, file string, more ...string) string {
	t.Helper()
	out, stderr, err := run(t, append([]string{"template", release, chartDir, "--namespace", namespace, "-f", file}, more...)...)
	if err != nil {
		t.Fatalf("helm template -f %s: %v\n%s", file, err, stderr)
	}
	return out
}

// podMonitor is as much of the Prometheus operator's kind as the chart uses.
type podMonitor struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`
	Spec              struct {
		Selector            metav1.LabelSelector `json:"selector"`
		PodMetricsEndpoints []struct {
			Port     string `json:"port"`
			Path     string `json:"path"`
			Interval string `json:"interval"`
		} `json:"podMetricsEndpoints"`
	} `json:"spec"`
}

func (p *podMonitor) DeepCopyObject() runtime.Object { c := *p; return &c }

// object is what the chart renders, decoded strictly.
type object interface {
	metav1.Object
	runtime.Object
}

func decode(t *testing.T, manifest string) []object {
	t.Helper()
	scheme := runtime.NewScheme()
	if err := errors.Join(clientgoscheme.AddToScheme(scheme), apiextensionsv1.AddToScheme(scheme)); err != nil {
		t.Fatal(err)
	}
	scheme.AddKnownTypeWithName(schema.GroupVersionKind{Group: "monitoring.coreos.com", Version: "v1", Kind: "PodMonitor"}, &podMonitor{})
	var out []object
	seen := map[string]bool{}
	for _, doc := range regexp.MustCompile(`(?m)^---$`).Split(manifest, -1) {
		var head metav1.TypeMeta
		if err := yaml.Unmarshal([]byte(doc), &head); err != nil {
			t.Fatalf("%v:\n%s", err, doc)
		}
		if head.Kind == "" {
			continue // comments alone
		}
		made, err := scheme.New(head.GroupVersionKind())
		if err != nil {
			t.Fatal(err)
		}
		if err := yaml.UnmarshalStrict([]byte(doc), made); err != nil {
			t.Fatalf("%s: %v\n%s", head.Kind, err, doc)
		}
		o := made.(object)
		id := fmt.Sprintf("%s %s/%s", head.Kind, o.GetNamespace(), o.GetName())
		if seen[id] {
			t.Errorf("%s is there twice", id)
		}
		seen[id] = true
		out = append(out, o)
	}
	return out
}

func of[T object](all []object) []T {
	var out []T
	for _, o := range all {
		if x, is := o.(T); is {
			out = append(out, x)
		}
	}
	return out
}

func named[T object](t *testing.T, all []object, name string) T {
	t.Helper()
	i := slices.IndexFunc(of[T](all), func(o T) bool { return o.GetName() == name })
	if i < 0 {
		t.Fatalf("there is no %T %s", *new(T), name)
	}
	return of[T](all)[i]
}

// cases are the files of values, by name.
func cases(t *testing.T) map[string]string {
	t.Helper()
	files, err := filepath.Glob("testdata/*.yaml")
	if err != nil || len(files) < 6 {
		t.Fatalf("files of values: %v, %v", files, err)
	}
	out := map[string]string{}
	for _, f := range files {
		out[strings.TrimSuffix(filepath.Base(f), ".yaml")] = f
	}
	return out
}

func TestLint(t *testing.T) {
	for name, file := range cases(t) {
		if out, stderr, err := run(t, "lint", "--strict", chartDir, "--namespace", namespace, "-f", file); err != nil {
			t.Errorf("%s: %v\n%s%s", name, err, out, stderr)
		}
	}
	if out, stderr, err := run(t, "lint", "--strict", chartDir); err != nil {
		t.Errorf("without values: %v\n%s%s", err, out, stderr)
	}
}

// TestRendered holds every set of values to what all must keep.
func TestRendered(t *testing.T) {
	objects, pods, rules := 0, 0, 0
	for name, file := range cases(t) {
		t.Run(name, func(t *testing.T) {
			all := decode(t, template(t, file))
			objects += len(all)
			accounts := map[string]bool{}
			for _, a := range of[*corev1.ServiceAccount](all) {
				accounts[a.Name] = true
			}
			for _, o := range all {
				if _, is := o.(*apiextensionsv1.CustomResourceDefinition); is {
					if o.GetAnnotations()["helm.sh/resource-policy"] != "keep" {
						t.Errorf("definition %s goes with the chart, and with it everybody's endpoints", o.GetName())
					}
					continue
				}
				l := o.GetLabels()
				if l["app.kubernetes.io/managed-by"] != "Helm" || l["app.kubernetes.io/instance"] != release || l["app.kubernetes.io/component"] == "" {
					t.Errorf("%T %s: labels %v", o, o.GetName(), l)
				}
			}
			owned := of[*appsv1.Deployment](all)
			for _, d := range owned {
				pods++
				restricted(t, d.Name, d.Spec.Template.Spec)
				if !accounts[d.Spec.Template.Spec.ServiceAccountName] {
					t.Errorf("%s: there is no service account %q", d.Name, d.Spec.Template.Spec.ServiceAccountName)
				}
				matches(t, d.Name, d.Spec.Selector, d.Spec.Template.Labels)
				for _, c := range d.Spec.Template.Spec.Containers {
					programTakes(t, d.Name, c)
				}
			}
			for _, s := range of[*corev1.Service](all) {
				leads(t, s, owned)
			}
			for _, b := range of[*policyv1.PodDisruptionBudget](all) {
				matches(t, b.Name, b.Spec.Selector, named[*appsv1.Deployment](t, all, b.Name).Spec.Template.Labels)
			}
			for _, r := range allRules(all) {
				rules++
				leastRights(t, r)
			}
			bound(t, all, accounts)
			for _, p := range of[*networkingv1.NetworkPolicy](all) {
				if p.Labels["app.kubernetes.io/component"] != "versions" {
					d := named[*appsv1.Deployment](t, all, p.Name)
					matches(t, p.Name, &p.Spec.PodSelector, d.Spec.Template.Labels)
				}
			}
		})
	}
	t.Logf("%d objects, %d pods and %d rules", objects, pods, rules)
}

// restricted is the Pod Security Standard of that name, and a root that cannot be written to.
func restricted(t *testing.T, name string, p corev1.PodSpec) {
	t.Helper()
	is := func(b *bool, want bool) bool { return b != nil && *b == want }
	if p.HostNetwork || p.HostPID || p.HostIPC {
		t.Errorf("%s: is in the host's namespaces", name)
	}
	if s := p.SecurityContext; s == nil || !is(s.RunAsNonRoot, true) || s.SeccompProfile == nil || s.SeccompProfile.Type != corev1.SeccompProfileTypeRuntimeDefault {
		t.Errorf("%s: pod security %+v", name, s)
	}
	for _, v := range p.Volumes {
		if v.Secret == nil && v.EmptyDir == nil && v.ConfigMap == nil {
			t.Errorf("%s: volume %s", name, v.Name)
		}
	}
	if p.EnableServiceLinks == nil || *p.EnableServiceLinks {
		t.Errorf("%s: variables of Services may set flags", name)
	}
	for _, c := range slices.Concat(p.InitContainers, p.Containers) {
		s := c.SecurityContext
		if s == nil || !is(s.RunAsNonRoot, true) || !is(s.AllowPrivilegeEscalation, false) || !is(s.ReadOnlyRootFilesystem, true) ||
			s.Capabilities == nil || !slices.Equal(s.Capabilities.Drop, []corev1.Capability{"ALL"}) || len(s.Capabilities.Add) > 0 ||
			s.SeccompProfile == nil || s.SeccompProfile.Type != corev1.SeccompProfileTypeRuntimeDefault || is(s.Privileged, true) {
			t.Errorf("%s: container %s: %+v", name, c.Name, s)
		}
		for _, r := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory} {
			if q := c.Resources.Requests[r]; q.IsZero() {
				t.Errorf("%s: container %s requests no %s", name, c.Name, r)
			}
		}
		if c.Resources.Limits.Memory().IsZero() {
			t.Errorf("%s: container %s has no limit of memory", name, c.Name)
		}
		for _, p := range []*corev1.Probe{c.StartupProbe, c.LivenessProbe, c.ReadinessProbe} {
			if p == nil || p.HTTPGet == nil || portOf(c, p.HTTPGet.Port.String()) == 0 {
				t.Errorf("%s: container %s: a probe is missing or leads nowhere: %+v", name, c.Name, p)
			}
		}
		if c.ReadinessProbe.HTTPGet.Path != "/readyz" || c.LivenessProbe.HTTPGet.Path != "/healthz" {
			t.Errorf("%s: container %s: probes %s and %s", name, c.Name, c.ReadinessProbe.HTTPGet.Path, c.LivenessProbe.HTTPGet.Path)
		}
	}
}

// portOf a container by name or number; 0 if it has none.
func portOf(c corev1.Container, port string) int32 {
	for _, p := range c.Ports {
		if p.Name == port || strconv.Itoa(int(p.ContainerPort)) == port {
			return p.ContainerPort
		}
	}
	return 0
}

func matches(t *testing.T, name string, s *metav1.LabelSelector, l map[string]string) {
	t.Helper()
	selector, err := metav1.LabelSelectorAsSelector(s)
	if err != nil || selector.Empty() || !selector.Matches(labels.Set(l)) {
		t.Errorf("%s: %v does not select %v (%v)", name, s, l, err)
	}
}

// programTakes says whether the program understands its flags.
func programTakes(t *testing.T, name string, c corev1.Container) {
	t.Helper()
	program := webhookcmd.Main
	if c.Name == "router" {
		program = routercmd.Main
	}
	var env []string
	for _, e := range c.Env {
		env = append(env, e.Name+"="+e.Value)
	}
	var stdout, stderr bytes.Buffer
	// Asked for help last, it has read all before.
	if code := program(context.Background(), append(slices.Clone(c.Args), "--help"), env, &stdout, &stderr); code != 0 {
		t.Errorf("%s: %s", name, stderr.String())
	}
	for _, a := range c.Args {
		flag, value, _ := strings.Cut(a, "=")
		if strings.HasSuffix(flag, "address") || flag == "--listen" {
			if port := strings.TrimPrefix(value, ":"); portOf(c, port) == 0 {
				t.Errorf("%s: %s is no port of the container", name, a)
			}
		}
		if strings.HasSuffix(flag, "-file") && !slices.ContainsFunc(c.VolumeMounts, func(m corev1.VolumeMount) bool { return strings.HasPrefix(value, m.MountPath+"/") && m.ReadOnly }) {
			t.Errorf("%s: nothing is mounted at %s", name, value)
		}
	}
}

// leads checks that a Service selects pods of exactly one Deployment and that its ports are theirs.
func leads(t *testing.T, s *corev1.Service, owned []*appsv1.Deployment) {
	t.Helper()
	selected := 0
	for _, d := range owned {
		if !labels.SelectorFromSet(s.Spec.Selector).Matches(labels.Set(d.Spec.Template.Labels)) {
			continue
		}
		selected++
		if strings.HasSuffix(d.Name, "-control") {
			t.Errorf("service %s leads to the control role", s.Name)
		}
		for _, p := range s.Spec.Ports {
			if portOf(d.Spec.Template.Spec.Containers[0], p.TargetPort.String()) == 0 {
				t.Errorf("service %s: port %s leads nowhere", s.Name, p.Name)
			}
		}
	}
	if selected != 1 {
		t.Errorf("service %s selects the pods of %d deployments", s.Name, selected)
	}
	// Control and autoscaler take the first port of every slice with the label.
	if admin := strings.HasSuffix(s.Name, "-admin"); admin != (s.Labels[kube.LabelPart] == kube.PartRouter) ||
		admin && (s.Spec.ClusterIP != corev1.ClusterIPNone || len(s.Spec.Ports) != 1 || s.Spec.PublishNotReadyAddresses) {
		t.Errorf("service %s: %v, %+v", s.Name, s.Labels, s.Spec)
	}
}

// rule is a rule of a role, with where it holds.
type rule struct {
	role, where string
	rbacv1.PolicyRule
}

func allRules(all []object) []rule {
	var out []rule
	add := func(o metav1.Object, where string, rules []rbacv1.PolicyRule) {
		for _, r := range rules {
			out = append(out, rule{o.GetLabels()["app.kubernetes.io/component"], where, r})
		}
	}
	for _, r := range of[*rbacv1.Role](all) {
		where := "endpoints"
		if strings.HasSuffix(r.Name, "-system") {
			where = "system"
		}
		add(r, where, r.Rules)
	}
	for _, r := range of[*rbacv1.ClusterRole](all) {
		add(r, "endpoints", r.Rules)
	}
	return out
}

func leastRights(t *testing.T, r rule) {
	t.Helper()
	for _, list := range [][]string{r.APIGroups, r.Resources, r.Verbs} {
		if len(list) == 0 || slices.Contains(list, "*") {
			t.Errorf("%+v: has a wildcard, or says nothing", r)
		}
	}
	for _, verb := range r.Verbs {
		if slices.Contains([]string{"escalate", "bind", "impersonate", "deletecollection"}, verb) {
			t.Errorf("%+v: verb %s", r, verb)
		}
	}
	if len(r.NonResourceURLs) > 0 || r.APIGroups[0] == rbacv1.GroupName || slices.Contains(r.Resources, "pods/exec") {
		t.Errorf("%+v: is not for Sluice", r)
	}
	if !slices.Contains(r.Resources, "secrets") {
		return
	}
	switch {
	case r.role == "control" && r.where == "endpoints":
	case r.role == "control" && slices.Equal(r.Verbs, []string{"create"}): // names cannot bind what is created
	case r.role != "webhook" && slices.Equal(r.ResourceNames, []string{kube.HashesName}):
	default:
		t.Errorf("%+v: reads secrets", r)
	}
}

// bound checks that each binding leads from a role of the same name to a service account that is there.
func bound(t *testing.T, all []object, accounts map[string]bool) {
	t.Helper()
	roles := map[string]bool{}
	for _, r := range of[*rbacv1.Role](all) {
		roles["Role "+r.Namespace+"/"+r.Name] = true
	}
	for _, r := range of[*rbacv1.ClusterRole](all) {
		roles["ClusterRole /"+r.Name] = true
	}
	check := func(namespace, name string, ref rbacv1.RoleRef, subjects []rbacv1.Subject) {
		id := ref.Kind + " " + namespace + "/" + ref.Name
		if ref.Name != name || !roles[id] || len(subjects) != 1 || subjects[0].Kind != "ServiceAccount" || !accounts[subjects[0].Name] || subjects[0].Namespace != "sluice-system" {
			t.Errorf("binding %s/%s: %+v to %+v", namespace, name, ref, subjects)
		}
		delete(roles, id)
	}
	for _, b := range of[*rbacv1.RoleBinding](all) {
		check(b.Namespace, b.Name, b.RoleRef, b.Subjects)
	}
	for _, b := range of[*rbacv1.ClusterRoleBinding](all) {
		check("", b.Name, b.RoleRef, b.Subjects)
	}
	for r := range roles {
		t.Errorf("%s is bound to nobody", r)
	}
}

// TestDefaults: what comes out without values of one's own.
func TestDefaults(t *testing.T) {
	all := decode(t, template(t, "testdata/defaults.yaml"))
	var have []string
	for _, o := range all {
		have = append(have, fmt.Sprintf("%s %s", o.GetObjectKind().GroupVersionKind().Kind, o.GetName()))
		if ns := o.GetNamespace(); ns != namespace && ns != "" {
			t.Errorf("%s is in namespace %s", o.GetName(), ns)
		}
	}
	slices.Sort(have)
	want := []string{
		"CustomResourceDefinition journalentries.sluice.dev", "CustomResourceDefinition modelendpoints.sluice.dev",
		"Deployment sluice-control", "Deployment sluice-router",
		"NetworkPolicy sluice-control", "NetworkPolicy sluice-router", "NetworkPolicy sluice-versions",
		"PodDisruptionBudget sluice-router",
		"Role sluice-control", "Role sluice-control-system", "Role sluice-router", "Role sluice-router-system",
		"RoleBinding sluice-control", "RoleBinding sluice-control-system", "RoleBinding sluice-router", "RoleBinding sluice-router-system",
		"Service sluice-router", "Service sluice-router-admin",
		"ServiceAccount sluice-control", "ServiceAccount sluice-router",
	}
	if !slices.Equal(have, want) {
		t.Errorf("have %q\nwant %q", have, want)
	}
	router := named[*appsv1.Deployment](t, all, "sluice-router")
	pod := router.Spec.Template
	c := pod.Spec.Containers[0]
	if *router.Spec.Replicas != 2 || router.Spec.Strategy.RollingUpdate.MaxUnavailable.IntValue() != 0 || len(pod.Spec.TopologySpreadConstraints) != 2 {
		t.Errorf("router: %+v", router.Spec)
	}
	// 5 s of new requests, four times as long for connections, 60 s for the longest request, and its time in the queue.
	if *pod.Spec.TerminationGracePeriodSeconds != 105 || c.Lifecycle.PreStop.Sleep.Seconds != 5 || !slices.Contains(c.Args, "--grace=70s") {
		t.Errorf("router ends: %d s, %+v, %v", *pod.Spec.TerminationGracePeriodSeconds, c.Lifecycle.PreStop.Sleep, c.Args)
	}
	if c.Image != "registry.example/sluice/router:dev" || pod.Annotations["prometheus.io/port"] != "9090" {
		t.Errorf("router: %s, %v", c.Image, pod.Annotations)
	}
	control := named[*appsv1.Deployment](t, all, "sluice-control").Spec.Template.Spec.Containers[0]
	for _, flag := range []string{
		"--roles=control", "--watch-namespaces=sluice-system", "--system-namespace=sluice-system", "--namespace=sluice-system",
		"--scoring-url=http://sluice-router.sluice-system.svc", "--gate-image=registry.example/sluice/runner:dev",
	} {
		if !slices.Contains(control.Args, flag) {
			t.Errorf("control: %q lacks %s", control.Args, flag)
		}
	}
}

// TestValues: what values other than the defaults do.
func TestValues(t *testing.T) {
	t.Run("dev-test", func(t *testing.T) {
		all := decode(t, template(t, "testdata/dev-test.yaml"))
		for _, d := range of[*appsv1.Deployment](all) {
			if *d.Spec.Replicas != 1 {
				t.Errorf("%s: %d pods", d.Name, *d.Spec.Replicas)
			}
		}
		if n := len(of[*policyv1.PodDisruptionBudget](all)); n != 0 {
			t.Errorf("%d budgets for one pod", n)
		}
		s := named[*corev1.Service](t, all, "sluice-router")
		if s.Spec.Type != corev1.ServiceTypeNodePort || s.Spec.Ports[0].NodePort != 30080 {
			t.Errorf("service %+v", s.Spec)
		}
		c := named[*appsv1.Deployment](t, all, "sluice-router").Spec.Template.Spec.Containers[0]
		if c.Image != "localhost:5000/router:v1" || !slices.Contains(c.Args, "--watch-namespaces=models,more-models") || !slices.Contains(c.Args, "--namespace=models") {
			t.Errorf("%s %q", c.Image, c.Args)
		}
		var where []string
		for _, r := range of[*rbacv1.Role](all) {
			where = append(where, r.Namespace+"/"+r.Name)
		}
		slices.Sort(where)
		want := []string{"models/sluice-control", "models/sluice-router", "more-models/sluice-control", "more-models/sluice-router", "sluice-system/sluice-control-system", "sluice-system/sluice-router-system"}
		if !slices.Equal(where, want) {
			t.Errorf("roles %q, want %q", where, want)
		}
	})
	t.Run("cluster-wide", func(t *testing.T) {
		all := decode(t, template(t, "testdata/cluster-wide.yaml"))
		if n := len(of[*rbacv1.ClusterRole](all)); n != 3 {
			t.Errorf("%d cluster roles, want one for each of router, control and webhook", n)
		}
		if n := len(of[*apiextensionsv1.CustomResourceDefinition](all)); n != 0 {
			t.Errorf("%d definitions that somebody else installs", n)
		}
		for _, d := range of[*appsv1.Deployment](all) {
			c := d.Spec.Template.Spec.Containers[0]
			if !strings.Contains(c.Image, "@sha256:") || d.Spec.Template.Spec.ImagePullSecrets[0].Name != "registry" || d.Labels["team"] != "ml" {
				t.Errorf("%s: %s, %v, %v", d.Name, c.Image, d.Spec.Template.Spec.ImagePullSecrets, d.Labels)
			}
			if slices.ContainsFunc(c.Args, func(a string) bool { return strings.HasPrefix(a, "--watch-namespaces") }) {
				t.Errorf("%s: %q", d.Name, c.Args)
			}
		}
		r := named[*appsv1.Deployment](t, all, "gates-router").Spec.Template.Spec
		if *r.TerminationGracePeriodSeconds != 420 || !slices.Contains(r.Containers[0].Args, "--grace=310s") {
			t.Errorf("router ends: %d, %q", *r.TerminationGracePeriodSeconds, r.Containers[0].Args)
		}
		s := named[*corev1.Service](t, all, "gates-router").Spec
		if s.Type != corev1.ServiceTypeLoadBalancer || *s.LoadBalancerClass != "cloud.example/nlb" || s.ExternalTrafficPolicy != corev1.ServiceExternalTrafficPolicyLocal || len(s.LoadBalancerSourceRanges) != 1 {
			t.Errorf("service %+v", s)
		}
		if c := named[*appsv1.Deployment](t, all, "gates-control").Spec.Template.Spec.Containers[0]; !slices.Contains(c.Args, "--scoring-url=http://gates-router.sluice-system.svc:8443") {
			t.Errorf("control %q", c.Args)
		}
		if p := named[*networkingv1.NetworkPolicy](t, all, "gates-versions"); p.Namespace != "models" {
			t.Errorf("versions are guarded in %s", p.Namespace)
		}
	})
	t.Run("github", func(t *testing.T) {
		all := decode(t, template(t, "testdata/github.yaml"))
		pod := named[*appsv1.Deployment](t, all, "sluice-webhook").Spec.Template.Spec
		c := pod.Containers[0]
		for _, flag := range []string{"--roles=github,api", "--github-app-id=123456789", "--github-app-key-file=/etc/sluice/github/private-key.pem", "--github-api-url=https://github.example/api/v3/", "--github-on-merge=nothing", "--github-reports=true", "--intake=push", "--public-url=https://sluice.example"} {
			if !slices.Contains(c.Args, flag) {
				t.Errorf("%q lacks %s", c.Args, flag)
			}
		}
		if r := c.Env[0].ValueFrom.SecretKeyRef; c.Env[0].Name != "SLUICE_WEBHOOK_SECRET" || r.Name != "hook" || r.Key != "secret" {
			t.Errorf("%+v", c.Env)
		}
		app := slices.IndexFunc(pod.Volumes, func(v corev1.Volume) bool { return v.Name == "github" })
		if v := pod.Volumes[max(app, 0)].Secret; v == nil || v.SecretName != "app" || v.Items[0].Key != "pem" || v.Items[0].Path != "private-key.pem" {
			t.Errorf("%+v", v)
		}
		in := of[*networkingv1.Ingress](all)
		if len(in) != 1 || len(in[0].Spec.Rules[0].HTTP.Paths) != 3 || in[0].Spec.Rules[0].HTTP.Paths[0].Path != "/webhooks/github" || in[0].Spec.Rules[0].HTTP.Paths[1].Path != "/pictures" || in[0].Spec.Rules[0].HTTP.Paths[0].Backend.Service.Name != "sluice-webhook" {
			t.Errorf("ingress %+v", in)
		}
		hooked := named[*appsv1.Deployment](t, all, "sluice-webhook").Spec.Template
		if !slices.ContainsFunc(hooked.Spec.Volumes, func(v corev1.Volume) bool {
			return v.ConfigMap != nil && v.ConfigMap.Name == "authorities" && v.ConfigMap.Items[0].Key == "ghes.pem"
		}) ||
			!slices.ContainsFunc(hooked.Spec.Containers[0].VolumeMounts, func(m corev1.VolumeMount) bool { return m.Name == "ca" && m.MountPath == "/etc/sluice/ca" }) ||
			!slices.Contains(hooked.Spec.Containers[0].Env, corev1.EnvVar{Name: "SSL_CERT_DIR", Value: "/etc/sluice/ca"}) {
			t.Errorf("the authorities are not given to the program: %+v", hooked.Spec)
		}
		config := named[*corev1.ConfigMap](t, all, "sluice-webhook-github")
		p, err := chatops.ParsePermissions([]byte(config.Data["permissions.yaml"]))
		if err != nil || p.Rule(chatops.Promote).Role != chatops.PermissionMaintain || p.Rule(chatops.Promote).Teams[0] != "ml-leads" || p.RepositoryFile != ".github/sluice.yaml" {
			t.Errorf("permissions %+v, %v", p, err)
		}
		other := decode(t, template(t, "testdata/github.yaml", "--set", "github.permissions.commands.promote.role=admin"))
		was, is := hooked.Annotations["sluice.dev/github-permissions"], named[*appsv1.Deployment](t, other, "sluice-webhook").Spec.Template.Annotations["sluice.dev/github-permissions"]
		if was == "" || was == is {
			t.Errorf("other permissions, the same pod: %q", was)
		}
		if !slices.ContainsFunc(hooked.Spec.Volumes, func(v corev1.Volume) bool { return v.ConfigMap != nil && v.ConfigMap.Name == config.Name }) ||
			!slices.Contains(hooked.Spec.Containers[0].Args, "--github-permissions=/etc/sluice/permissions/permissions.yaml") {
			t.Errorf("permissions are not given to the program: %+v", hooked.Spec)
		}
	})
	t.Run("memory of the webhook", func(t *testing.T) {
		limited := func(sets ...string) bool {
			c := named[*appsv1.Deployment](t, decode(t, template(t, "testdata/api.yaml", sets...)), "sluice-webhook").Spec.Template.Spec.Containers[0]
			return slices.ContainsFunc(c.Env, func(e corev1.EnvVar) bool {
				return e.Name == "SLUICE_MEMORY_LIMIT" && e.ValueFrom.ResourceFieldRef.Resource == "limits.memory"
			})
		}
		if !limited() || limited("--set", "webhook.resources.limits.memory=null") || limited("--set", "webhook.resources.limits=null") {
			t.Error("the program knows its limit only by it: without one there is none to tell")
		}
	})
	t.Run("github's pictures", func(t *testing.T) {
		// Without the API and the page, too, and however events come in.
		all := decode(t, template(t, "testdata/defaults.yaml", "--set", "github.enabled=true,github.intake=poll,github.app.id=5,github.app.privateKey.name=k,github.publicURL=https://a.example,api.sessionKey.name=session,webhook.ingress.enabled=true,webhook.ingress.host=a.example"))
		pod := named[*appsv1.Deployment](t, all, "sluice-webhook").Spec.Template.Spec
		if c := pod.Containers[0]; !slices.Contains(c.Args, "--public-url=https://a.example") || !slices.Contains(c.Args, "--api-session-key-file=/etc/sluice/session/key") ||
			!slices.ContainsFunc(c.VolumeMounts, func(m corev1.VolumeMount) bool { return m.Name == "session" && m.MountPath == "/etc/sluice/session" }) ||
			!slices.ContainsFunc(pod.Volumes, func(v corev1.Volume) bool { return v.Secret != nil && v.Secret.SecretName == "session" }) {
			t.Errorf("%+v", pod)
		}
		if in := of[*networkingv1.Ingress](all); len(in) != 1 || len(in[0].Spec.Rules[0].HTTP.Paths) != 1 || in[0].Spec.Rules[0].HTTP.Paths[0].Path != "/pictures" {
			t.Errorf("ingress %+v", in)
		}
	})
	t.Run("github polled", func(t *testing.T) {
		all := decode(t, template(t, "testdata/github.yaml", "--set", "github.intake=poll,github.webhookSecret.name=,github.publicURL=,webhook.ca.configMap="))
		c := named[*appsv1.Deployment](t, all, "sluice-webhook").Spec.Template.Spec.Containers[0]
		if !slices.Contains(c.Args, "--intake=poll") || slices.ContainsFunc(c.Env, func(e corev1.EnvVar) bool { return e.Name == "SLUICE_WEBHOOK_SECRET" }) {
			t.Errorf("%q, %+v", c.Args, c.Env)
		}
		if in := of[*networkingv1.Ingress](all); len(in) != 1 || len(in[0].Spec.Rules[0].HTTP.Paths) != 1 || in[0].Spec.Rules[0].HTTP.Paths[0].Path != "/apis/sluice/v1" {
			t.Errorf("there is a way in for webhooks: %+v", in)
		}
	})
	t.Run("github's hook", func(t *testing.T) {
		all := decode(t, template(t, "testdata/defaults.yaml", "--set", "github.enabled=true,github.webhookSecret.name=s,github.token.name=t,github.hook=acme/fraud/5"))
		if c := named[*appsv1.Deployment](t, all, "sluice-webhook").Spec.Template.Spec.Containers[0]; !slices.Contains(c.Args, "--github-hook=acme/fraud/5") {
			t.Errorf("%q", c.Args)
		}
	})
	t.Run("api", func(t *testing.T) {
		all := decode(t, template(t, "testdata/api.yaml"))
		pod := named[*appsv1.Deployment](t, all, "sluice-webhook").Spec.Template
		c := pod.Spec.Containers[0]
		for _, flag := range []string{
			"--roles=api", "--api-policy=/etc/sluice/api/policy.yaml", "--api-audience=https://sluice.example", "--api-issuer=https://github.example/_services/token",
			"--api-session-key-file=/etc/sluice/session/key",
		} {
			if !slices.Contains(c.Args, flag) {
				t.Errorf("%q lacks %s", c.Args, flag)
			}
		}
		if len(c.Env) != 1 || strings.Contains(strings.Join(c.Args, " "), "github-") || len(pod.Spec.Volumes) != 2 || len(c.VolumeMounts) != 2 {
			t.Errorf("something of GitHub's webhook is there: %+v", c)
		}
		config := named[*corev1.ConfigMap](t, all, "sluice-webhook-api")
		p, err := api.ParsePolicy([]byte(config.Data["policy.yaml"]))
		if err != nil || len(p.Rules) != 1 {
			t.Fatalf("policy %+v, %v", p, err)
		}
		// The chart's schema knows the words that the program knows.
		b, err := os.ReadFile(filepath.Join(chartDir, "values.schema.json"))
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range api.Commands() {
			if !bytes.Contains(b, []byte(`"`+c+`"`)) {
				t.Errorf("the schema has no command %s", c)
			}
		}
		for _, x := range api.Extras() {
			if !bytes.Contains(b, []byte(`"`+x+`"`)) {
				t.Errorf("the schema has no extra %s", x)
			}
		}
		if r := p.Rules[0]; r.RepositoryID != 1234567890123 || *r.MaxPercent != 12500 || r.Refs[1] != "refs/tags/v*" || r.Allow[0] != api.ExtraSecrets {
			t.Errorf("rule %+v", r)
		}
		if pod.Spec.Volumes[0].ConfigMap.Name != config.Name || c.VolumeMounts[0].MountPath != "/etc/sluice/api" {
			t.Errorf("policy at %+v", c.VolumeMounts)
		}
		if s := pod.Spec.Volumes[1].Secret; s.SecretName != "session" || s.Items[0].Path != "key" {
			t.Errorf("session key %+v", s)
		}
		// Another policy means another pod.
		other := decode(t, template(t, "testdata/api.yaml", "--set", "api.policy.rules[0].repositoryId=7"))
		was, is := pod.Annotations["sluice.dev/api-policy"], named[*appsv1.Deployment](t, other, "sluice-webhook").Spec.Template.Annotations["sluice.dev/api-policy"]
		if was == "" || was == is || pod.Annotations["a.example/b"] != "c" {
			t.Errorf("annotations %v, then %s", pod.Annotations, is)
		}
		if in := of[*networkingv1.Ingress](all); len(in) != 1 || len(in[0].Spec.Rules[0].HTTP.Paths) != 1 || in[0].Spec.Rules[0].HTTP.Paths[0].Path != "/apis/sluice/v1" {
			t.Errorf("ingress %+v", in)
		}
		// Endpoints are made and deleted only where the policy lets somebody do it.
		for id := range rights(allRules(all)) {
			if strings.HasSuffix(id, "] create") && strings.HasPrefix(id, "webhook in endpoints") || strings.HasPrefix(id, "webhook") && strings.Contains(id, "delete") {
				t.Errorf("has the right %s", id)
			}
		}
		if off := decode(t, template(t, "testdata/network.yaml")); slices.ContainsFunc(of[*corev1.ConfigMap](off), func(c *corev1.ConfigMap) bool { return c.Name == config.Name }) || strings.Contains(fmt.Sprint(named[*appsv1.Deployment](t, off, "sluice-webhook").Spec.Template), "api-policy") {
			t.Error("without the API something of it is there")
		}
	})
	t.Run("page", func(t *testing.T) {
		all := decode(t, template(t, "testdata/page.yaml"))
		pod := named[*appsv1.Deployment](t, all, "sluice-webhook").Spec.Template.Spec
		c := pod.Containers[0]
		if !slices.Contains(c.Args, "--roles=api") || !slices.Contains(c.Args, "--page=anyone") || len(c.Env) != 1 || len(pod.Volumes) > 0 {
			t.Errorf("webhook %+v", c)
		}
		var paths []string
		for _, p := range of[*networkingv1.Ingress](all)[0].Spec.Rules[0].HTTP.Paths {
			paths = append(paths, fmt.Sprint(p.Path, " ", *p.PathType))
		}
		if want := []string{"/ Exact", "/apis/sluice/v1/events Exact", "/assets Prefix", "/endpoints Prefix"}; !slices.Equal(paths, want) {
			t.Errorf("the ingress leads %q, want %q", paths, want)
		}
		// The page alone changes nothing.
		for id := range rights(allRules(all)) {
			if strings.HasPrefix(id, "webhook ") && id != "webhook in endpoints: modelendpoints.sluice.dev [] get, list, watch" {
				t.Errorf("has the right %s", id)
			}
		}
		// Only whoever is said may read, and the internet only where that is said as well.
		for _, values := range []string{"github", "api"} {
			all := decode(t, template(t, "testdata/"+values+".yaml"))
			if args := named[*appsv1.Deployment](t, all, "sluice-webhook").Spec.Template.Spec.Containers[0].Args; strings.Contains(strings.Join(args, " "), "--page") {
				t.Errorf("%s: %q", values, args)
			}
			all = decode(t, template(t, "testdata/"+values+".yaml", "--set", "page.readers=loopback"))
			if args := named[*appsv1.Deployment](t, all, "sluice-webhook").Spec.Template.Spec.Containers[0].Args; !slices.Contains(args, "--page=loopback") {
				t.Errorf("%s: %q", values, args)
			}
			for _, in := range of[*networkingv1.Ingress](all) {
				for _, p := range in.Spec.Rules[0].HTTP.Paths {
					if p.Path != "/webhooks/github" && p.Path != "/apis/sluice/v1" && p.Path != "/pictures" {
						t.Errorf("%s: the ingress leads to %s", values, p.Path)
					}
				}
			}
		}
	})
	t.Run("login", func(t *testing.T) {
		all := decode(t, template(t, "testdata/login.yaml"))
		pod := named[*appsv1.Deployment](t, all, "sluice-webhook").Spec.Template
		c := pod.Spec.Containers[0]
		for _, flag := range []string{
			"--page=login", "--page-login-issuer=https://login.example/realms/staff", "--page-login-client-id=sluice page", "--page-login-client-secret-file=/etc/sluice/login/client-secret",
			"--page-login-url=https://sluice.example", "--page-login-policy=/etc/sluice/page/policy.yaml", "--page-login-scopes=email,groups", "--api-session-key-file=/etc/sluice/session/key",
		} {
			if !slices.Contains(c.Args, flag) {
				t.Errorf("%q lacks %s", c.Args, flag)
			}
		}
		config := named[*corev1.ConfigMap](t, all, "sluice-webhook-page")
		p, err := login.ParsePolicy([]byte(config.Data["policy.yaml"]))
		if err != nil || len(p.Rules) != 2 || p.GroupsClaim != "roles" || p.Rules[0].Emails[0] != "*@example.com" || !p.Rules[1].Everyone {
			t.Fatalf("policy %+v, %v", p, err)
		}
		// The chart's schema knows the words that the program knows, and no others.
		b, err := os.ReadFile(filepath.Join(chartDir, "values.schema.json"))
		if err != nil {
			t.Fatal(err)
		}
		var words []string
		for _, c := range login.Commands() {
			words = append(words, strconv.Quote(string(c)))
		}
		if list := "[" + strings.Join(words, ", ") + "]"; !bytes.Contains(b, []byte(list)) {
			t.Errorf("the schema does not list %s", list)
		}
		var volumes []string
		for _, v := range pod.Spec.Volumes {
			if v.Secret != nil {
				volumes = append(volumes, v.Name+" "+v.Secret.SecretName+" "+v.Secret.Items[0].Key+" "+v.Secret.Items[0].Path)
			} else {
				volumes = append(volumes, v.Name+" "+v.ConfigMap.Name)
			}
		}
		if want := []string{"session session session-key key", "page sluice-webhook-page", "login page secret client-secret"}; !slices.Equal(volumes, want) {
			t.Errorf("volumes %q, want %q", volumes, want)
		}
		other := decode(t, template(t, "testdata/login.yaml", "--set", "page.login.policy.rules[0].commands={read}", "--set", "page.login.policy.rules[0].namespaces={models}", "--set", "page.login.policy.rules[0].endpoints={fraud}", "--set", "page.login.policy.rules[0].everyone=true"))
		was, is := pod.Annotations["sluice.dev/page-policy"], named[*appsv1.Deployment](t, other, "sluice-webhook").Spec.Template.Annotations["sluice.dev/page-policy"]
		if was == "" || was == is || pod.Annotations["a.example/b"] != "c" {
			t.Errorf("annotations %v, then %s", pod.Annotations, is)
		}
		// Endpoints are changed only where the policy lets somebody do it, and nothing else is there to change.
		for _, tc := range []struct {
			of    []object
			right string
		}{{all, "get, list, watch, patch"}, {other, "get, list, watch"}} {
			var has []string
			for id := range rights(allRules(tc.of)) {
				if strings.HasPrefix(id, "webhook ") {
					has = append(has, id)
				}
			}
			if want := []string{"webhook in endpoints: modelendpoints.sluice.dev [] " + tc.right}; !slices.Equal(has, want) {
				t.Errorf("rights %q, want %q", has, want)
			}
		}
		var paths []string
		for _, p := range of[*networkingv1.Ingress](all)[0].Spec.Rules[0].HTTP.Paths {
			paths = append(paths, fmt.Sprint(p.Path, " ", *p.PathType))
		}
		if want := []string{"/ Exact", "/apis/sluice/v1/events Exact", "/assets Prefix", "/endpoints Prefix", "/login Prefix", "/logout Exact"}; !slices.Equal(paths, want) {
			t.Errorf("the ingress leads %q, want %q", paths, want)
		}
	})
	t.Run("monitor", func(t *testing.T) {
		all := decode(t, template(t, "testdata/monitor.yaml"))
		if n := len(of[*networkingv1.NetworkPolicy](all)); n != 0 {
			t.Errorf("%d network policies", n)
		}
		for _, m := range of[*podMonitor](all) {
			d := named[*appsv1.Deployment](t, all, m.Name)
			matches(t, m.Name, &m.Spec.Selector, d.Spec.Template.Labels)
			if portOf(d.Spec.Template.Spec.Containers[0], m.Spec.PodMetricsEndpoints[0].Port) == 0 || m.Labels["release"] != "prometheus" {
				t.Errorf("monitor %+v", m)
			}
		}
		if n := len(of[*podMonitor](all)); n != 2 {
			t.Errorf("%d monitors", n)
		}
		p := named[*appsv1.Deployment](t, all, "sluice-router").Spec.Template
		if p.Annotations["prometheus.io/scrape"] != "" || p.Annotations["a.example/b"] != "c" || p.Labels["team"] != "ml" || p.Spec.PriorityClassName != "system-cluster-critical" ||
			p.Spec.NodeSelector["pool"] != "edge" || len(p.Spec.Tolerations) != 1 || p.Spec.Affinity.NodeAffinity == nil || p.Spec.Containers[0].Resources.Limits.Memory().String() != "2Gi" {
			t.Errorf("router %+v", p)
		}
		if _, has := p.Spec.Containers[0].Resources.Limits[corev1.ResourceCPU]; has {
			t.Error("null does not take a limit away")
		}
	})
}

// TestSelfScale: with clusterPurpose production the routers scale themselves, with rights to nothing but their own
// Deployment; else there is neither the flag nor the right.
// TestNotes: what is said after the installation names the events that docs/github.md does.
func TestNotes(t *testing.T) {
	// Helm renders notes on a cluster only, so that they are made an object here.
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(chartDir)); err != nil {
		t.Fatal(err)
	}
	at := filepath.Join(dir, "templates", "NOTES.txt")
	notes, err := os.ReadFile(at)
	if err != nil {
		t.Fatal(err)
	}
	object := `{{ define "notes" }}` + string(notes) + "{{ end }}kind: Notes\nnotes: |\n{{ include \"notes\" . | indent 2 }}\n"
	if err := os.WriteFile(filepath.Join(dir, "templates", "notes.yaml"), []byte(object), 0o600); err != nil {
		t.Fatal(err)
	}
	for file, want := range map[string]string{
		"github.yaml":       `events "Issue comment", "Pull request" and "Check run") lead to https://sluice.example/webhooks/github`,
		"cluster-wide.yaml": `events "Issue comment", "Pull request") lead to /webhooks/github at`, // a token gets no buttons
	} {
		out, stderr, err := run(t, "template", release, dir, "--namespace", namespace, "-f", "testdata/"+file, "--show-only", "templates/notes.yaml")
		if err != nil || !strings.Contains(out, want) || !strings.Contains(out, "content type application/json") {
			t.Errorf("%s: %v %s, want %s in\n%s", file, err, stderr, want, out)
		}
	}
}

func TestSelfScale(t *testing.T) {
	all := decode(t, template(t, "testdata/defaults.yaml"))
	d := named[*appsv1.Deployment](t, all, "sluice-router")
	c := d.Spec.Template.Spec.Containers[0]
	for _, flag := range []string{"--self-scale", "--self-deployment=sluice-router", "--self-p99=5ms", "--self-cpu-min=2", "--self-cpu-max=4", "--self-cpu-low=30%", "--self-pods-min=2", "--self-pods-max=10"} {
		if !slices.Contains(c.Args, flag) {
			t.Errorf("%q lacks %s", c.Args, flag)
		}
	}
	// The label is what pods are found by, the container's name what is resized, and no resize is a restart.
	if d.Spec.Template.Labels[kube.LabelPart] != kube.PartRouter || c.Name != kube.ContainerRouter || len(c.ResizePolicy) != 1 || c.ResizePolicy[0].RestartPolicy != corev1.NotRequired {
		t.Errorf("%v, %s, %v", d.Spec.Template.Labels, c.Name, c.ResizePolicy)
	}
	if _, has := d.Spec.Selector.MatchLabels[kube.LabelPart]; has {
		t.Error("a selector cannot change in an upgrade")
	}
	off := func(t *testing.T, manifest string) {
		t.Helper()
		all := decode(t, manifest)
		c := named[*appsv1.Deployment](t, all, "sluice-router").Spec.Template.Spec.Containers[0]
		if strings.Contains(strings.Join(c.Args, " "), "--self") || len(c.ResizePolicy) > 0 {
			t.Errorf("%q, %v", c.Args, c.ResizePolicy)
		}
		for id := range rights(allRules(all)) {
			if strings.HasPrefix(id, "router in system: pods") || strings.HasPrefix(id, "router in system: deployments") {
				t.Errorf("has the right %s", id)
			}
		}
	}
	off(t, template(t, "testdata/dev-test.yaml"))
	off(t, template(t, "testdata/defaults.yaml", "--set", "router.selfScale.enabled=false"))
	// Without a limit the request counts, and the most pods are never fewer than the fewest.
	all = decode(t, template(t, "testdata/defaults.yaml", "--set", "router.resources.limits.cpu=null,router.replicas=20"))
	if args := named[*appsv1.Deployment](t, all, "sluice-router").Spec.Template.Spec.Containers[0].Args; !slices.Contains(args, "--self-cpu-min=250m") || !slices.Contains(args, "--self-pods-max=20") {
		t.Errorf("%q", args)
	}
}

// TestNetworkPolicies: who reaches what.
func TestNetworkPolicies(t *testing.T) {
	all := decode(t, template(t, "testdata/network.yaml"))
	policies := of[*networkingv1.NetworkPolicy](all)
	if len(policies) != 5 { // router, control, webhook, and the versions in two namespaces
		t.Fatalf("%d policies", len(policies))
	}
	// ports that a policy lets in, with the number of peers that may; 0 means anyone.
	ingress := func(p *networkingv1.NetworkPolicy) map[int]int {
		out := map[int]int{}
		for _, r := range p.Spec.Ingress {
			for _, port := range r.Ports {
				out[port.Port.IntValue()] = len(r.From)
			}
		}
		return out
	}
	for name, want := range map[string]map[int]int{
		"sluice-router": {8080: 1, 9090: 3}, "sluice-control": {9090: 1}, "sluice-webhook": {8081: 1}, "sluice-versions": {kube.DefaultPort: 1},
	} {
		p := named[*networkingv1.NetworkPolicy](t, all, name)
		if have := ingress(p); !maps.Equal(have, want) {
			t.Errorf("%s lets in %v, want %v", name, have, want)
		}
		if len(p.Spec.PolicyTypes) != 2 || len(p.Spec.Egress) == 0 {
			t.Errorf("%s: %v, %v", name, p.Spec.PolicyTypes, p.Spec.Egress)
		}
	}
	versions := named[*networkingv1.NetworkPolicy](t, all, "sluice-versions")
	from := versions.Spec.Ingress[0].From[0]
	router := named[*appsv1.Deployment](t, all, "sluice-router").Spec.Template
	matches(t, "versions let in", from.PodSelector, router.Labels)
	if from.NamespaceSelector == nil || from.NamespaceSelector.MatchLabels[corev1.LabelMetadataName] != namespace {
		t.Errorf("versions let in %+v", from)
	}
	if versions.Spec.PodSelector.MatchLabels[kube.LabelPart] != kube.PartFleet {
		t.Errorf("versions are %+v", versions.Spec.PodSelector)
	}

	// Without values, control is reached by nobody and scoring by anyone.
	all = decode(t, template(t, "testdata/defaults.yaml"))
	if p := named[*networkingv1.NetworkPolicy](t, all, "sluice-control"); len(p.Spec.Ingress) != 0 || !slices.Equal(p.Spec.PolicyTypes, []networkingv1.PolicyType{networkingv1.PolicyTypeIngress}) {
		t.Errorf("control: %+v", p.Spec)
	}
	if have := ingress(named[*networkingv1.NetworkPolicy](t, all, "sluice-router")); !maps.Equal(have, map[int]int{8080: 0, 9090: 2}) {
		t.Errorf("router lets in %v", have)
	}
}

// TestRefused: slips in values are errors that name them.
func TestRefused(t *testing.T) {
	for _, tc := range []struct{ set, says string }{
		{"routre.replicas=3", "routre"},
		{"router.replica=3", "replica"},
		{"router.replicas=many", "replicas"},
		{"router.replicas=0", "replicas"},
		{"router.service.type=Loadbalancer", "type"},
		{"router.service.prot=80", "prot"},
		{"clusterPurpose=prod", "clusterPurpose"},
		{"image.digests.router=sha256:12", "router"},
		{"image.registry=https://registry.example", "registry"},
		{"image.registry=", "image.registry is not set"},
		{"control.scoringURL=models.example", "scoringURL"},
		{"networkPolicy.egress.dns.form=x", "form"},
		{"networkPolicy.versions.namespaces={models}", "clusterWide"},
		{"namespaces={Models}", "namespaces"},
		{"clusterWide=true,namespaces={models}", "exclude each other"},
		{"github.enabled=true", "github.webhookSecret.name"},
		{"github.enabled=true,github.webhookSecret.name=s", "github.token.name"},
		{"github.enabled=true,github.webhookSecret.name=s,github.app.id=5", "github.app.privateKey.name"},
		{"github.enabled=true,github.webhookSecret.name=s,github.token.name=t,github.app.id=5", "exclude each other"},
		{"github.enabled=true,github.webhookSecret.name=s,github.token.name=t,webhook.ingress.enabled=true", "webhook.ingress.host"},
		{"github.enabled=true,github.webhookSecret.name=s,github.token.name=t,github.publicURL=https://a.example", "set api.sessionKey.name"},
		{"github.intake=pull", "intake"},
		{"github.hook=acme/fraud", "hook"},
		{"github.enabled=true,github.intake=poll", "github.token.name"},
		{"github.enabled=true,github.intake=poll,github.token.name=t", "is for an App"},
		{"github.enabled=true,github.webhookSecret.name=s,github.app.id=5,github.app.privateKey.name=k,github.hook=acme/fraud/5", "github.hook is for github.token"},
		{"github.enabled=true,github.intake=poll,github.app.id=5,github.app.privateKey.name=k,webhook.ingress.enabled=true,webhook.ingress.host=a.example", "nowhere"},
		{"router.selfScale.p99=5", "p99"},
		{"router.selfScale.cpu.low=0.3", "low"},
		{"router.selfScale.cpu.step=half", "step"},
		{"router.selfScale.replicas=3", "replicas"},
		{"router.resources.limits.cpu=null,router.resources.requests.cpu=null", "selfScale"},
		{"github.token.value=hush", "value"},
		{"api.enabled=true", "api.policy.rules is not set"},
		{"api.policy.rules[0].repositoryId=74", "repositoryOwnerId"},
		{"api.policy.rules[0].sub=x", "sub"},
		{"api.policy.rules[0].repositoryId=74,api.policy.rules[0].repositoryOwnerId=65,api.policy.rules[0].events={push},api.policy.rules[0].namespaces={models},api.policy.rules[0].endpoints={fraud},api.policy.rules[0].commands={deploy},api.policy.rules[0].allow={create},api.policy.rules[0].maxPercent=10", "allow"},
		{"api.issuer=http://github.example", "issuer"},
		{"github.permissions.commands.deploy.role=write", "deploy"},
		{"github.permissions.default.role=owner", "role"},
		{"api.sessionKey.value=hush", "value"},
		{"page.readers=everyone", "readers"},
		{"page.reader=anyone", "reader"},
		{"page.readers=loopback,page.ingress=true", "page.readers anyone"},
		{"page.readers=login", "set page.login.issuer"},
		{"page.login.issuer=https://login.example", "set page.readers"},
		{"page.readers=login,page.login.issuer=http://login.example", "issuer"},
		{"page.readers=login,page.login.issuer=https://login.example", "page.login.url is not set"},
		{"page.readers=login,page.login.issuer=https://login.example,page.login.url=http://sluice.example", "url"},
		{"page.readers=login,page.login.issuer=https://login.example,page.login.url=https://sluice.example", "page.login.policy.rules is not set"},
		{"page.login.policy.rules[0].commands={deploy}", "commands"},
		{"page.login.policy.rules[0].commands={read},page.login.policy.rules[0].namespaces={models},page.login.policy.rules[0].endpoints={fraud}", "groups"},
		{"page.login.clientSecret.value=hush", "value"},
		{"page.readers=anyone,webhook.ingress.enabled=true,webhook.ingress.host=a.example", "nowhere"},
		{"metrics.podMonitor.interval=fast", "interval"},
		{"crds.instal=false", "instal"},
	} {
		out, stderr, err := run(t, "template", release, chartDir, "--namespace", namespace, "-f", "testdata/defaults.yaml", "--set", tc.set)
		if err == nil || !strings.Contains(stderr, tc.says) || out != "" {
			t.Errorf("%s: %v, want a refusal that says %q:\n%s", tc.set, err, tc.says, stderr)
		}
	}
	// As a part of a chart around it, it gets Helm's global values.
	template(t, "testdata/defaults.yaml", "--set", "global.registry=x")
}

// TestRightsAreDocumented: the table in the documentation and the roles are one.
func TestRightsAreDocumented(t *testing.T) {
	text, err := os.ReadFile(document)
	if err != nil {
		t.Fatal(err)
	}
	row := regexp.MustCompile("(?m)^\\| (router|control|webhook) \\| (endpoints|system) \\| `([^`]+)`(?: named `([^`]+)`)? \\| ([a-z, ]+) \\| (.+) \\|$")
	documented := map[string]bool{}
	for _, m := range row.FindAllStringSubmatch(string(text), -1) {
		if len(m[6]) < 20 {
			t.Errorf("%s: the reason is %q", m[0], m[6])
		}
		documented[fmt.Sprintf("%s in %s: %s [%s] %s", m[1], m[2], m[3], m[4], m[5])] = true
	}
	rendered := rights(allRules(decode(t, template(t, "testdata/github.yaml"))))
	for id := range rendered {
		if !documented[id] {
			t.Errorf("docs/kubernetes.md does not have: %s", id)
		}
	}
	for id := range documented {
		if !rendered[id] {
			t.Errorf("docs/kubernetes.md has what no role has: %s", id)
		}
	}
	wide := map[string]bool{}
	for id := range rights(allRules(decode(t, template(t, "testdata/cluster-wide.yaml")))) {
		wide[strings.ReplaceAll(id, "gates-router", "sluice-router")] = true // as it is called there
	}
	if !maps.Equal(wide, rendered) {
		t.Errorf("cluster-wide has other rights: %v", wide)
	}
	t.Logf("%d rights, each with its reason", len(rendered))
}

// TestDocumentedEndpoint: the example is one that Sluice takes.
func TestDocumentedEndpoint(t *testing.T) {
	text, err := os.ReadFile(document)
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile("(?s)```yaml\n(apiVersion: sluice.dev.*?)```").FindSubmatch(text)
	if m == nil {
		t.Fatal("there is no example of an endpoint")
	}
	var e rollout.Endpoint
	if err := yaml.UnmarshalStrict(m[1], &e); err != nil {
		t.Fatal(err)
	}
	if err := cluster.ValidateEndpoint(&e); err != nil {
		t.Error(err)
	}
}

// rights in words: each resource of each rule.
func rights(rules []rule) map[string]bool {
	out := map[string]bool{}
	for _, r := range rules {
		for _, group := range r.APIGroups {
			for _, resource := range r.Resources {
				name, sub, has := strings.Cut(resource, "/")
				if group != "" {
					name += "." + group
				}
				if has {
					name += "/" + sub
				}
				out[fmt.Sprintf("%s in %s: %s [%s] %s", r.role, r.where, name, strings.Join(r.ResourceNames, ", "), strings.Join(r.Verbs, ", "))] = true
			}
		}
	}
	return out
}

// TestValuesAreDocumented: each value is described by the schema, and each of the schema has a default.
func TestValuesAreDocumented(t *testing.T) {
	read := func(name string) map[string]any {
		b, err := os.ReadFile(filepath.Join(chartDir, name))
		if err != nil {
			t.Fatal(err)
		}
		var v map[string]any
		if err := yaml.UnmarshalStrict(b, &v); err != nil {
			t.Fatal(err)
		}
		return v
	}
	var walk func(path string, s, v map[string]any)
	walk = func(path string, s, v map[string]any) {
		props, _ := s["properties"].(map[string]any)
		if props == nil {
			return
		}
		if s["additionalProperties"] != false {
			t.Errorf("%s: a slip would not be noticed", path)
		}
		for k, p := range props {
			have, ok := v[k]
			if !ok && path+k != "global" {
				t.Errorf("values.yaml has no %s", path+k)
				continue
			}
			if m, is := have.(map[string]any); is {
				walk(path+k+".", p.(map[string]any), m)
			}
		}
	}
	walk("", read("values.schema.json"), read("values.yaml"))
}
