package v1alpha1_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/sluice-dev/sluice/pkg/cluster/kube/v1alpha1"
	"github.com/sluice-dev/sluice/rollout"
)

// TestAgreement: the API server accepts exactly the specs that rollout.Spec.Validate accepts, and the changes
// that rollout.ValidateUpdate accepts. 2,000 specs and about 1,000 changes are drawn at each run, most of them near a bound.
func TestAgreement(t *testing.T) {
	s := newServer(t, "modelendpoints")
	var valid, invalid, changes, refusedChanges int
	rapid.Check(t, func(rt *rapid.T) {
		var last *rollout.Spec
		for i := range 20 {
			spec := drawSpec(rt)
			domain := rollout.AsErrors(spec.Validate())
			server := s.create(t, wire(t, object1("fraud", spec)))
			if (len(domain) == 0) != (len(server) == 0) {
				rt.Fatalf("rollout says %v\nthe API server says %v\nof %v", domain, server, wire(t, spec))
			}
			if len(domain) > 0 {
				invalid++
			} else {
				valid++
			}
			// A change from the last valid spec to this one, or to one much like itself.
			if last != nil && i%2 == 1 {
				next := spec
				if rapid.Bool().Draw(rt, "near") {
					next = mutate(rt, last)
				}
				domain := append(rollout.AsErrors(next.Validate()), rollout.AsErrors(rollout.ValidateUpdate(last, next))...)
				server := s.update(t, wire(t, object1("fraud", next)), wire(t, object1("fraud", last)))
				if (len(domain) == 0) != (len(server) == 0) {
					rt.Fatalf("rollout says %v\nthe API server says %v\nof a change from %v\nto %v", domain, server, wire(t, last), wire(t, next))
				}
				changes++
				if len(domain) > 0 {
					refusedChanges++
				}
			}
			if len(domain) == 0 {
				last = spec
			}
		}
	})
	t.Logf("%d valid and %d invalid specs; %d changes, %d of them refused", valid, invalid, changes, refusedChanges)
	if total := valid + invalid; total >= 2000 && (valid < total/5 || invalid < total/5 || refusedChanges < changes/10) {
		t.Error("too lopsided to say much")
	}
}

func object1(name string, spec *rollout.Spec) *v1alpha1.ModelEndpoint {
	return &v1alpha1.ModelEndpoint{
		TypeMeta:   metav1.TypeMeta{APIVersion: rollout.APIVersion, Kind: rollout.Kind},
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default"},
		Spec:       *spec,
	}
}

// mutate changes one thing of a copy.
func mutate(t *rapid.T, s *rollout.Spec) *rollout.Spec {
	e := (&rollout.Endpoint{Spec: *s}).Clone()
	v := &e.Spec.Versions[rapid.IntRange(0, len(s.Versions)-1).Draw(t, "which")]
	switch rapid.IntRange(0, 6).Draw(t, "what") {
	case 0:
		v.Image = "other/image" + digest
	case 1:
		v.Source.Commit = rapid.SampledFrom([]string{"", "c1", "c2"}).Draw(t, "commit")
	case 2:
		v.Source.RepositoryID = rapid.SampledFrom([]int64{0, 7, 8}).Draw(t, "repository")
	case 3:
		v.Name += "x"
	case 4:
		v.TrafficPercentile = rollout.Percent(rapid.IntRange(-1, 100_001).Draw(t, "percent"))
	case 5:
		v.Source.RunID, v.Description = 5, "another"
	case 6:
		slices.Reverse(e.Spec.Versions)
	}
	return &e.Spec
}

// odd draws usual values mostly, and now and then one of the others.
func odd[T any](t *rapid.T, label string, usual []T, others ...T) T {
	if rapid.IntRange(0, 99).Draw(t, label+"?") == 37 { // rapid likes small numbers
		return rapid.SampledFrom(others).Draw(t, label)
	}
	return rapid.SampledFrom(usual).Draw(t, label)
}

func maybe[T any](t *rapid.T, label string, draw func() T) *T {
	if rapid.IntRange(0, 3).Draw(t, label+"?") != 0 {
		return nil
	}
	v := draw()
	return &v
}

func drawSpec(t *rapid.T) *rollout.Spec {
	s := &rollout.Spec{}
	n := odd(t, "versions", []int{1, 2, 3, 4, 5, 6}, 0, 7, 8, 17)
	left := 100_000
	for i := range n {
		v := rollout.Version{
			Name:              odd(t, "name", []string{fmt.Sprintf("v%d", i), fmt.Sprintf("pr-%d", i)}, "v0", "", "A", "a-", "1a", "a.b", "a\n", strings.Repeat("n", 32), strings.Repeat("n", 33)),
			Type:              odd(t, "type", []rollout.Role{"", "", rollout.Treatment}, rollout.Control, rollout.Standby, "canary"),
			IsDefault:         odd(t, "default", []bool{false}, true),
			PlannedPercentile: odd(t, "planned", []rollout.Percent{0, 1, 99_999}, -1, 100_001),
			Image: odd(t, "image", []string{"r.example/a" + digest, "a" + digest}, "", "a", "a:tag", "a"+digest[:60], "a"+strings.ToUpper(digest), "a b"+digest, "a"+digest+"0",
				"@sha256:"+digest, "a\v"+digest, "a\u00a0"+digest, "a"+digest+"\n"),
			Source: rollout.Source{
				RepositoryID: odd(t, "repository", []int64{0, 7}, 8), Commit: odd(t, "commit", []string{"", "c1"}, "c2"), PullRequest: odd(t, "pull request", []int{0, 5}, 6),
			},
			CreatedAt:   time.Unix(int64(rapid.IntRange(0, 2_000_000_000).Draw(t, "created")), int64(rapid.IntRange(0, 1).Draw(t, "nano"))).UTC(),
			Description: odd(t, "description", []string{""}, "ä ; [x]"),
			Settings:    drawSettings(t),
		}
		switch {
		case i == 0 && n > 1:
			v.Type = odd(t, "first", []rollout.Role{rollout.Control}, rollout.Untyped)
		case i == 1:
			v.Type = odd(t, "second", []rollout.Role{rollout.Standby, rollout.Untyped}, rollout.Control)
		}
		// Claims that add up to just about 100.
		p := rapid.IntRange(0, left).Draw(t, "percent")
		if i == n-1 && rapid.Bool().Draw(t, "all") {
			p = left
		}
		left -= p
		v.TrafficPercentile = odd(t, "claim", []rollout.Percent{rollout.Percent(p)}, rollout.Percent(p+1), -1, 100_001, 100_000)
		s.Versions = append(s.Versions, v)
	}
	s.Auth = maybe(t, "auth", func() rollout.Auth {
		return rollout.Auth{Mode: odd(t, "mode", []rollout.AuthMode{"", rollout.AuthKey, rollout.AuthNone}, rollout.AuthToken, "open")}
	})
	s.Hold = maybe(t, "hold", func() rollout.Mark { return rollout.Mark{Reason: "x"} })
	s.Telemetry = maybe(t, "telemetry", func() rollout.Telemetry {
		return rollout.Telemetry{ApplicationInsights: &rollout.ApplicationInsights{Enabled: odd(t, "insights", []bool{false}, true)}}
	})
	for i := range odd(t, "changes", []int{0, 1, 20}, 21) {
		s.Changes = append(s.Changes, rollout.Change{ID: fmt.Sprint(i), At: time.Unix(int64(i), 0).UTC()})
	}
	s.Strategy = maybe(t, "strategy", func() rollout.Strategy { return drawStrategy(t) })
	return s
}

func drawSettings(t *rapid.T) rollout.Settings {
	var s rollout.Settings
	few := func(label string, most int) func() int {
		return func() int { return odd(t, label, []int{1, 2, most}, 0, -1, most+1) }
	}
	s.Autoscale = maybe(t, "autoscale", func() rollout.Autoscale {
		a := rollout.Autoscale{
			Enabled:              maybe(t, "enabled", func() bool { return odd(t, "on", []bool{true}, false) }),
			MinReplicas:          maybe(t, "min", func() int { return odd(t, "minimum", []int{1, 2, 5}, 0, -1, 6, 11, 1000, 1001) }),
			MaxReplicas:          maybe(t, "max", func() int { return odd(t, "maximum", []int{5, 10, 1000}, 0, -1, 1, 4, 1001) }),
			TargetUtilization:    odd(t, "target", []int{0, 1, 70, 100}, -1, 101),
			RefreshPeriodSeconds: odd(t, "refresh", []int{0, 1, 86400}, -1, 86401),
		}
		return a
	})
	if s.Autoscale == nil || rapid.IntRange(0, 9).Draw(t, "both") == 0 {
		s.Replicas = maybe(t, "replicas", func() int { return odd(t, "count", []int{0, 1, 1000}, -1, 1001) })
	}
	s.Concurrency = maybe(t, "concurrency", func() rollout.Concurrency {
		return rollout.Concurrency{MaxConcurrentRequests: few("slots", 512)(), MaxQueueWaitMs: few("patience", 86_400_000)()}
	})
	s.ScoringTimeoutMs = odd(t, "timeout", []int{0, 1, 86_400_000}, -1, 86_400_001)
	s.LivenessProbe = maybe(t, "probe", func() rollout.Probe {
		p := func(label string) int { return odd(t, label, []int{0, 1, 100}, -1) }
		return rollout.Probe{InitialDelaySeconds: p("delay"), PeriodSeconds: p("period"), TimeoutSeconds: p("timeout"), SuccessThreshold: p("success"), FailureThreshold: p("failure")}
	})
	s.Server = maybe(t, "server", func() rollout.Server {
		path := func(label string) string { return odd(t, label, []string{"", "/", "/score"}, "score", " /") }
		return rollout.Server{Port: few("port", 65535)(), ScorePath: path("score"), HealthPath: path("health"), Command: []string{"x"}}
	})
	s.EnvironmentVariables = *orZero(maybe(t, "environment", func() map[string]rollout.EnvValue {
		return map[string]rollout.EnvValue{"A": {Value: odd(t, "value", []string{"", "1", "true", "null"}, "{}")}, "_b": {
			Secret: odd(t, "secret", []string{"s", "a.b-c", "0"}, "", "S", "a..b", "-a", "a_b", strings.Repeat("s", 254)),
			Key:    odd(t, "key", []string{"k", ".k", "A_b-1.pem"}, "", ".", "..k", "a/b", "k\n", strings.Repeat("k", 254)),
		}}
	}))
	s.Resources = maybe(t, "resources", func() rollout.Resources {
		quantity := func(label string) string {
			return odd(t, label, []string{"", "1", "500m", "1.5Gi", ".5", "+1e3"}, "-1", "1GB", "one", "1 ", "1\n", ".", "1e100", strings.Repeat("1", 65))
		}
		return rollout.Resources{
			CPU: quantity("cpu"), Memory: quantity("memory"), CPULimit: quantity("cpu limit"), MemoryLimit: quantity("memory limit"),
			GPU:         odd(t, "gpus", []int{0, 1, 1_000_000}, -1, 1_000_001),
			GPUResource: odd(t, "gpu", []string{"", "nvidia.com/gpu"}, "gpu", "/gpu", "a/", "nvidia.com/gpu\n", "A/b", strings.Repeat("a", 316)+"/b"),
			Extended:    map[string]int64{"vendor.example/fpga": odd(t, "fpgas", []int64{0, 1, 1_000_000}, -1, 1_000_001)},
		}
	})
	s.DataCollection = maybe(t, "collection", func() rollout.DataCollection {
		return rollout.DataCollection{Enabled: odd(t, "collect", []bool{false}, true)}
	})
	s.Template = *orZero(maybe(t, "template", func() map[string]any { return map[string]any{"spec": map[string]any{"x": 1.5}} }))
	return s
}

// orZero is p, or a pointer to the zero value.
func orZero[T any](p *T) *T {
	if p == nil {
		return new(T)
	}
	return p
}

func drawStrategy(t *rapid.T) rollout.Strategy {
	rate := func(label string) float64 {
		return odd(t, label, []float64{0, 0.01, 0.5, 1e-9}, -0.1, 0.50001, 9e-10, 1e300)
	}
	ratio := func(label string, usual ...float64) float64 {
		return odd(t, label, usual, -1, 0.999, 1, 1.5, 2, 1000, 1000.5)
	}
	duration := func(label string, others ...time.Duration) func() rollout.Duration {
		return func() rollout.Duration {
			return rollout.Duration(odd(t, label, []time.Duration{1, 1500 * time.Microsecond, time.Hour, 90*time.Minute + 1234567, 1 << 62}, others...))
		}
	}
	s := rollout.Strategy{
		Gate:          odd(t, "gate", []rollout.GateMode{"", rollout.GateVerdict, rollout.GateNone}, "manual"),
		OnDeadline:    odd(t, "on deadline", []rollout.OnDeadline{"", rollout.DeadlineHold, rollout.DeadlineRollback}, "promote"),
		Alpha:         rate("alpha"),
		Beta:          rate("beta"),
		R0:            ratio("r0", 0, 1, 1.2),
		R1:            ratio("r1", 0, 2, 3),
		MaxBadPercent: maybe(t, "bad", func() float64 { return odd(t, "bad percent", []float64{0.001, 1, 100}, 0, -1, 100.1) }),
		Deadline:      maybe(t, "deadline", duration("deadline is", 0, -1, -time.Hour)),
		RetainFor:     maybe(t, "retain", duration("retain is", 0, -1, -time.Hour)),
	}
	at := 0
	for range odd(t, "steps", []int{0, 1, 3, 50}, 51) {
		at += odd(t, "up", []int{1, 1000}, 0, -1, 200_000)
		s.Steps = append(s.Steps, rollout.Step{
			Percent:     rollout.Percent(at),
			MinRequests: maybe(t, "requests", func() int64 { return odd(t, "least", []int64{0, 1, 1 << 40}, -1) }),
			MinDuration: odd(t, "duration", []rollout.Duration{0, rollout.Duration(time.Second)}, -1),
		})
	}
	return s
}
