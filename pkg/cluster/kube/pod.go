package kube

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
	kjson "sigs.k8s.io/json"

	"github.com/sluice-dev/sluice/pkg/cluster"
	"github.com/sluice-dev/sluice/rollout"
)

// The container that runs a version, and the gate's port.
const (
	// DefaultPort is the gate's, in every pod.
	DefaultPort = 5001
	portName    = "score"
	// containerModel runs the version's image. Its first process is the runner, unless containerGate stands before it.
	containerModel = "model"
	containerGate  = "gate"
)

const (
	// drainLinger is how long a pod that ends still serves as before, so that every router
	// has learnt of it: watches take milliseconds, a busy API server may take seconds.
	drainLinger = 3 * time.Second
	// drainMargin is what the grace period has beyond the longest request.
	drainMargin = 10 * time.Second
	// readyPeriod is how often a pod is asked whether it is ready: the least that Kubernetes has.
	readyPeriod = 1
	// userID is who replicas run as, unless a template says otherwise.
	userID = 65532
)

// The defaults of the liveness probe are Azure ML's.
const (
	probeInitialDelay = 310
	probePeriod       = 10
	probeTimeout      = 2
	probeSuccess      = 1
	probeFailure      = 3
)

// DefaultGPUResource is what `gpu` counts unless gpuResource names another.
const DefaultGPUResource = "nvidia.com/gpu"

// PodTemplate is the pod that a replica of the version is: pure, the same for the same
// input, so that going back to earlier settings goes back to the pods that have them. gateImage is
// the image with the runner, for a version whose image is a server of its own. Errors are
// *rollout.Error values.
func PodTemplate(spec cluster.FleetSpec, gateImage string) (corev1.PodTemplateSpec, error) {
	s := spec.Settings
	labels := childLabels(spec.Key)
	labels[LabelRevision] = spec.Revision
	no, yes, user := false, true, int64(userID)
	grace := seconds(drainLinger + s.ScoringTimeout() + drainMargin)
	confined := func() *corev1.SecurityContext {
		return &corev1.SecurityContext{
			AllowPrivilegeEscalation: &no, RunAsNonRoot: &yes, RunAsUser: &user,
			Capabilities:   &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
			SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
		}
	}
	if errs := rollout.ValidateVariables("spec.versions["+spec.Key.Version+"]", s); len(errs) > 0 {
		return corev1.PodTemplateSpec{}, rollout.Joined(errs)
	}
	resources, err := requirements(s.Resources)
	if err != nil {
		return corev1.PodTemplateSpec{}, err
	}
	model := corev1.Container{
		Name: containerModel, Image: spec.Image, SecurityContext: confined(), Resources: resources,
		Env:                      append(variables(s.EnvironmentVariables), corev1.EnvVar{Name: "SLUICE_VERSION", Value: spec.Key.Version}),
		TerminationMessagePolicy: corev1.TerminationMessageFallbackToLogsOnError,
	}
	gate := &model
	containers := []corev1.Container{model}
	if own := s.Server; own != nil && own.Port != 0 && len(own.Command) == 0 {
		// The image is a server of its own and has no runner: the gate stands beside it.
		if gateImage == "" {
			return corev1.PodTemplateSpec{}, &rollout.Error{
				Reason: rollout.ReasonInvalid, Field: "server", Message: "no image with the gate is known to this installation",
				Hint: "give the control role --gate-image, or name the server's command so that the gate in the version's own image starts it",
			}
		}
		containers = append(containers, corev1.Container{
			Name: containerGate, Image: gateImage, SecurityContext: confined(),
			Args: []string{"--upstream=127.0.0.1:" + strconv.Itoa(own.Port)},
			Resources: corev1.ResourceRequirements{
				Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("50m"), corev1.ResourceMemory: resource.MustParse("32Mi")},
			},
			TerminationMessagePolicy: corev1.TerminationMessageFallbackToLogsOnError,
		})
		gate = &containers[1]
		gate.SecurityContext.ReadOnlyRootFilesystem = &yes
	} else {
		gate = &containers[0]
		if own != nil && len(own.Command) > 0 {
			gate.Args = []string{"--command", "--"}
			for _, arg := range own.Command {
				gate.Args = append(gate.Args, literal(arg))
			}
		}
	}
	flag := func(name, value string) {
		if value != "" {
			gate.Env = append(gate.Env, corev1.EnvVar{Name: "SLUICE_RUNNER_" + name, Value: value})
		}
	}
	flag("FLEET", spec.Key.String())
	flag("PORT", strconv.Itoa(DefaultPort))
	flag("MAX_CONCURRENT_REQUESTS", strconv.Itoa(s.Slots()))
	flag("SCORING_TIMEOUT", s.ScoringTimeout().String())
	if own := s.Server; own != nil {
		if gate.Name == containerModel && own.Port != 0 {
			flag("SERVER_PORT", strconv.Itoa(own.Port))
		}
		flag("SCORE_PATH", own.ScorePath)
		flag("HEALTH_PATH", own.HealthPath)
	}
	gate.Ports = []corev1.ContainerPort{{Name: portName, ContainerPort: DefaultPort, Protocol: corev1.ProtocolTCP}}
	gate.ReadinessProbe = &corev1.Probe{
		ProbeHandler:  healthy(),
		PeriodSeconds: readyPeriod, TimeoutSeconds: probeTimeout, SuccessThreshold: 1, FailureThreshold: probeFailure,
	}
	gate.LivenessProbe = liveness(s.LivenessProbe)
	gate.Lifecycle = pause(drainLinger)

	template := corev1.PodTemplateSpec{
		ObjectMeta: metav1.ObjectMeta{Labels: labels},
		Spec: corev1.PodSpec{
			Containers: containers, TerminationGracePeriodSeconds: &grace,
			// A model has no business with the API server.
			AutomountServiceAccountToken: &no, EnableServiceLinks: &no,
			TopologySpreadConstraints: []corev1.TopologySpreadConstraint{{
				MaxSkew: 1, TopologyKey: corev1.LabelHostname, WhenUnsatisfiable: corev1.ScheduleAnyway,
				LabelSelector: &metav1.LabelSelector{MatchLabels: childLabels(spec.Key)},
			}},
		},
	}
	if s.Template != nil {
		if template, err = patched(template, s.Template); err != nil {
			return corev1.PodTemplateSpec{}, err
		}
	}
	if gate.Name == containerGate {
		serverFirst(&template.Spec)
	}
	return template, nil
}

// serverFirst makes a server that has the gate beside it a sidecar of the gate in Kubernetes' sense, an init container that is
// always restarted (Kubernetes 1.29): it starts before the gate, after the template's own init containers, and is
// ended once the gate has drained, however long or short that takes.
func serverFirst(spec *corev1.PodSpec) {
	i := slices.IndexFunc(spec.Containers, func(c corev1.Container) bool { return c.Name == containerModel })
	always := corev1.ContainerRestartPolicyAlways
	server := spec.Containers[i]
	server.RestartPolicy = &always
	spec.Containers = slices.Delete(spec.Containers, i, i+1)
	spec.InitContainers = append(spec.InitContainers, server)
}

// renderer is a hash of what pods are made of beside a version's own settings: the gate's image and this release's way to
// make them, by two examples.
func renderer(gateImage string) string {
	sum := sha256.New()
	for _, server := range []*rollout.Server{nil, {Port: 8000, HealthPath: "/up", ScorePath: "/score"}} {
		t, err := PodTemplate(cluster.FleetSpec{
			Key: cluster.FleetKey{Endpoint: rollout.Key{Namespace: "a", Name: "b"}, Version: "c"}, Image: "d",
			Settings: rollout.Settings{Server: server, EnvironmentVariables: map[string]rollout.EnvValue{"E": {Value: "$f"}}},
		}, gateImage)
		if err == nil {
			err = json.NewEncoder(sum).Encode(t)
		}
		if err != nil {
			return "unknown: " + err.Error() // every fleet is then applied at each look, which a test would see
		}
	}
	return hex.EncodeToString(sum.Sum(nil)[:8])
}

func healthy() corev1.ProbeHandler {
	return corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/", Port: intstr.FromString(portName)}}
}

func liveness(p *rollout.Probe) *corev1.Probe {
	if p == nil {
		p = &rollout.Probe{}
	}
	or := func(v, otherwise int) int32 {
		if v == 0 {
			v = otherwise
		}
		return int32(min(v, math.MaxInt32)) // what was stored before there was a bound
	}
	return &corev1.Probe{
		ProbeHandler:        healthy(),
		InitialDelaySeconds: or(p.InitialDelaySeconds, probeInitialDelay), PeriodSeconds: or(p.PeriodSeconds, probePeriod),
		TimeoutSeconds: or(p.TimeoutSeconds, probeTimeout), SuccessThreshold: or(p.SuccessThreshold, probeSuccess), FailureThreshold: or(p.FailureThreshold, probeFailure),
	}
}

// pause before the end: Kubernetes sends the signal only after it.
func pause(d time.Duration) *corev1.Lifecycle {
	return &corev1.Lifecycle{PreStop: &corev1.LifecycleHandler{Sleep: &corev1.SleepAction{Seconds: seconds(d)}}}
}

func intOrString(n int) *intstr.IntOrString {
	v := intstr.FromInt32(int32(n))
	return &v
}

// literal is what Kubernetes makes s of: it expands $(NAME) and takes $$ for a dollar, but what people
// write is what their program gets.
func literal(s string) string { return strings.ReplaceAll(s, "$", "$$") }

func variables(vars map[string]rollout.EnvValue) []corev1.EnvVar {
	var out []corev1.EnvVar
	for name, v := range vars {
		if v.Secret != "" {
			out = append(out, corev1.EnvVar{Name: name, ValueFrom: &corev1.EnvVarSource{SecretKeyRef: &corev1.SecretKeySelector{
				LocalObjectReference: corev1.LocalObjectReference{Name: v.Secret}, Key: v.Key,
			}}})
			continue
		}
		out = append(out, corev1.EnvVar{Name: name, Value: literal(v.Value)})
	}
	slices.SortFunc(out, func(a, b corev1.EnvVar) int { return strings.Compare(a.Name, b.Name) })
	return out
}

func requirements(r *rollout.Resources) (corev1.ResourceRequirements, error) {
	var out corev1.ResourceRequirements
	if r == nil {
		return out, nil
	}
	var failed error
	put := func(list *corev1.ResourceList, name corev1.ResourceName, field, value string) {
		if value == "" {
			return
		}
		q, err := resource.ParseQuantity(value)
		if err != nil || q.Sign() < 0 {
			failed = &rollout.Error{
				Reason: rollout.ReasonInvalid, Field: "resources." + field, Message: fmt.Sprintf("%q is not a quantity", value),
				Hint: `write it as Kubernetes does: "500m" or "2" for cpu, "512Mi" or "4Gi" for memory`,
			}
			return
		}
		if *list == nil {
			*list = corev1.ResourceList{}
		}
		(*list)[name] = q
	}
	put(&out.Requests, corev1.ResourceCPU, "cpu", r.CPU)
	put(&out.Requests, corev1.ResourceMemory, "memory", r.Memory)
	put(&out.Limits, corev1.ResourceCPU, "cpuLimit", r.CPULimit)
	put(&out.Limits, corev1.ResourceMemory, "memoryLimit", r.MemoryLimit)
	extended := map[string]int64{}
	for name, n := range r.Extended {
		extended[name] = n
	}
	if r.GPU > 0 {
		name := r.GPUResource
		if name == "" {
			name = DefaultGPUResource
		}
		extended[name] = int64(r.GPU)
	}
	for name, n := range extended {
		// Extended resources cannot be overcommitted: requests and limits are one.
		put(&out.Requests, corev1.ResourceName(name), "extended", strconv.FormatInt(n, 10))
		put(&out.Limits, corev1.ResourceName(name), "extended", strconv.FormatInt(n, 10))
	}
	return out, failed
}

// patched merges a version's template, a strategic-merge patch of a pod template
// (metadata and spec), and refuses one that touches what Sluice owns.
func patched(ours corev1.PodTemplateSpec, template map[string]any) (corev1.PodTemplateSpec, error) {
	refuse := func(field, message, hint string) error {
		return &rollout.Error{Reason: rollout.ReasonInvalid, Field: strings.TrimSuffix("template."+field, "."), Message: message, Hint: hint}
	}
	patch, err := json.Marshal(template)
	if err != nil {
		return ours, refuse("", err.Error(), "write it as a part of a pod template")
	}
	// Unknown and mistyped fields are errors, as everywhere.
	var probe corev1.PodTemplateSpec
	unknown, err := kjson.UnmarshalStrict(withoutDirectives(patch), &probe)
	if err != nil {
		return ours, refuse("", err.Error(), "write it as a part of a pod template: metadata and spec")
	}
	if len(unknown) > 0 {
		return ours, refuse("", unknown[0].Error(), "write it as a part of a pod template: metadata and spec")
	}
	base, err := json.Marshal(ours)
	if err != nil {
		return ours, fmt.Errorf("encode pod template: %w", err)
	}
	merged, err := strategicpatch.StrategicMergePatch(base, patch, corev1.PodTemplateSpec{})
	if err != nil {
		return ours, refuse("", err.Error(), "write it as a strategic-merge patch of a pod template")
	}
	var out corev1.PodTemplateSpec
	if err := json.Unmarshal(merged, &out); err != nil {
		return ours, refuse("", err.Error(), "write it as a part of a pod template: metadata and spec")
	}
	for name, value := range ours.Labels {
		if out.Labels[name] != value {
			return ours, refuse("metadata.labels["+name+"]", "Sluice finds replicas by this label", "leave it out")
		}
	}
	if *ours.Spec.TerminationGracePeriodSeconds > deref(out.Spec.TerminationGracePeriodSeconds) {
		return ours, refuse("spec.terminationGracePeriodSeconds", fmt.Sprintf("%d s is less than requests may take (%d s)", deref(out.Spec.TerminationGracePeriodSeconds), *ours.Spec.TerminationGracePeriodSeconds),
			"leave it out, or give more; it follows scoringTimeoutMs")
	}
	if out.Spec.HostNetwork {
		return ours, refuse("spec.hostNetwork", "replicas on the host's network would collide on the gate's port", "leave it out")
	}
	if out.Spec.RestartPolicy != "" && out.Spec.RestartPolicy != corev1.RestartPolicyAlways {
		return ours, refuse("spec.restartPolicy", "a replica is always restarted", "leave it out")
	}
	for i := range ours.Spec.Containers {
		was := &ours.Spec.Containers[i]
		j := slices.IndexFunc(out.Spec.Containers, func(c corev1.Container) bool { return c.Name == was.Name })
		if j < 0 {
			return ours, refuse("spec.containers", "container "+was.Name+" is Sluice's and was removed", "leave it in")
		}
		now := &out.Spec.Containers[j]
		for _, f := range []struct {
			name     string
			was, now any
			way      string
		}{
			{"image", was.Image, now.Image, "deploy a new version"},
			{"command", was.Command, now.Command, "use server.command"},
			{"args", was.Args, now.Args, "use server.command"},
			{"ports", was.Ports, now.Ports, "leave it out; the gate serves on its own port"},
			{"env", was.Env, now.Env, "use environmentVariables"},
			{"resources", was.Resources, now.Resources, "use resources"},
			{"livenessProbe", was.LivenessProbe, now.LivenessProbe, "use livenessProbe of the version"},
			{"readinessProbe", was.ReadinessProbe, now.ReadinessProbe, "leave it out"},
			{"lifecycle", was.Lifecycle, now.Lifecycle, "leave it out; the gate drains by itself"},
		} {
			if f.name == "livenessProbe" && was.LivenessProbe == nil {
				continue // a server with the gate beside it: the gate's probe restarts the gate alone
			}
			if !same(f.was, f.now) {
				return ours, refuse(fmt.Sprintf("spec.containers[%s].%s", was.Name, f.name), "the field is Sluice's", f.way)
			}
		}
	}
	return out, nil
}

func same(a, b any) bool {
	x, errX := json.Marshal(a)
	y, errY := json.Marshal(b)
	return errX == nil && errY == nil && string(x) == string(y) || reflect.DeepEqual(a, b)
}

// withoutDirectives drops the directives of strategic-merge patches, which are no fields.
func withoutDirectives(patch []byte) []byte {
	var v any
	if json.Unmarshal(patch, &v) != nil {
		return patch
	}
	var drop func(any)
	drop = func(v any) {
		switch v := v.(type) {
		case map[string]any:
			for k, x := range v {
				if strings.HasPrefix(k, "$") {
					delete(v, k)
					continue
				}
				drop(x)
			}
		case []any:
			for _, x := range v {
				drop(x)
			}
		}
	}
	drop(v)
	out, err := json.Marshal(v)
	if err != nil {
		return patch
	}
	return out
}

func deref(n *int64) int64 {
	if n == nil {
		return 0
	}
	return *n
}
