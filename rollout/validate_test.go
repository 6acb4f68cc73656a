package rollout_test

import (
	"encoding/json"
	"math"
	"strconv"
	"strings"
	"testing"

	"github.com/sluice-dev/sluice/rollout"
)

func spec(mutate func(*rollout.Spec)) *rollout.Spec {
	a, b := version("a", 1), version("b", 2)
	a.Type = rollout.Control
	s := &rollout.Spec{Versions: []rollout.Version{a, b}}
	mutate(s)
	return s
}

func TestInvariants(t *testing.T) {
	for _, tc := range []struct {
		name, field string
		reason      rollout.Reason
		mutate      func(*rollout.Spec)
	}{
		{"seventh version", "spec.versions", rollout.ReasonTooManyVersions, func(s *rollout.Spec) {
			for i, n := range []string{"c", "d", "e", "f", "g"} {
				s.Versions = append(s.Versions, version(n, i+3))
			}
		}},
		{"no version", "spec.versions", rollout.ReasonInvalid, func(s *rollout.Spec) { s.Versions = nil }},
		{"two controls", "spec.versions[b].type", rollout.ReasonTwoControls, func(s *rollout.Spec) { s.Versions[1].Type = rollout.Control }},
		{"two defaults", "spec.versions[b].isDefault", rollout.ReasonTwoDefaults, func(s *rollout.Spec) {
			s.Versions[0].IsDefault, s.Versions[1].IsDefault = true, true
		}},
		{"60+50", "spec.versions[*].trafficPercentile", rollout.ReasonPercentSum, func(s *rollout.Spec) {
			s.Versions[0].TrafficPercentile, s.Versions[1].TrafficPercentile = *pct("60"), *pct("50")
		}},
		{"-1", "spec.versions[a].trafficPercentile", rollout.ReasonPercentInvalid, func(s *rollout.Spec) {
			s.Versions[0].TrafficPercentile = -rollout.OnePercent
		}},
		{"name", "spec.versions[Bad_Name].name", rollout.ReasonInvalid, func(s *rollout.Spec) { s.Versions[1].Name = "Bad_Name" }},
		{"same name", "spec.versions[a].name", rollout.ReasonVersionExists, func(s *rollout.Spec) { s.Versions[1].Name = "a" }},
		{"image by tag", "spec.versions[b].image", rollout.ReasonInvalid, func(s *rollout.Spec) { s.Versions[1].Image = "fraud:latest" }},
		{"token auth", "spec.auth.mode", rollout.ReasonNotSupportedYet, func(s *rollout.Spec) { s.Auth = &rollout.Auth{Mode: rollout.AuthToken} }},
		{"min over max", "spec.versions[b].autoscale.minReplicas", rollout.ReasonInvalid, func(s *rollout.Spec) {
			five, two := 5, 2
			s.Versions[1].Autoscale = &rollout.Autoscale{MinReplicas: &five, MaxReplicas: &two}
		}},
		{"fixed and autoscale", "spec.versions[b].replicas", rollout.ReasonInvalid, func(s *rollout.Spec) {
			n := 2
			s.Versions[1].Replicas, s.Versions[1].Autoscale = &n, &rollout.Autoscale{}
		}},
		{"steps down", "spec.strategy.steps[1].percent", rollout.ReasonInvalid, func(s *rollout.Spec) {
			s.Strategy = &rollout.Strategy{Steps: []rollout.Step{{Percent: 5000}, {Percent: 1000}}}
		}},
		{"51 steps", "spec.strategy.steps", rollout.ReasonInvalid, func(s *rollout.Spec) {
			s.Strategy = &rollout.Strategy{}
			for i := range rollout.MaxSteps + 1 {
				s.Strategy.Steps = append(s.Strategy.Steps, rollout.Step{Percent: rollout.Percent(i + 1)})
			}
		}},
		{"planned over 100", "spec.versions[b].plannedPercentile", rollout.ReasonPercentInvalid, func(s *rollout.Spec) {
			s.Versions[1].PlannedPercentile = rollout.Full + 1
		}},
		{"r1 under r0", "spec.strategy.r1", rollout.ReasonInvalid, func(s *rollout.Spec) { s.Strategy = &rollout.Strategy{R0: 3} }},
		{"alpha NaN", "spec.strategy.alpha", rollout.ReasonInvalid, func(s *rollout.Spec) { s.Strategy = &rollout.Strategy{Alpha: math.NaN()} }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			errs := rollout.AsErrors(spec(tc.mutate).Validate())
			if len(errs) != 1 {
				t.Fatalf("%d errors (%v), want exactly one", len(errs), errs)
			}
			if e := errs[0]; e.Reason != tc.reason || e.Field != tc.field || e.Hint == "" || e.Message == "" {
				t.Errorf("got %#v\nwant reason %s at %s, with a rule and a way out", e, tc.reason, tc.field)
			}
		})
	}
	if err := spec(func(*rollout.Spec) {}).Validate(); err != nil {
		t.Errorf("a valid spec: %v", err)
	}
}

// TestWhatClustersUnderstand: settings that only a cluster carries out are checked for their form here.
func TestWhatClustersUnderstand(t *testing.T) {
	resources := func(r rollout.Resources) rollout.Settings { return rollout.Settings{Resources: &r} }
	probe := func(p rollout.Probe) rollout.Settings { return rollout.Settings{LivenessProbe: &p} }
	secret := func(name, key string) rollout.Settings {
		return rollout.Settings{EnvironmentVariables: map[string]rollout.EnvValue{"TOKEN": {Secret: name, Key: key}}}
	}
	for _, good := range []rollout.Settings{
		resources(rollout.Resources{}),
		resources(rollout.Resources{CPU: "500m", Memory: "1Gi", CPULimit: "2", MemoryLimit: "1.5e9", GPU: 1, GPUResource: "nvidia.com/gpu", Extended: map[string]int64{"vendor.example/fpga": 2}}),
		resources(rollout.Resources{CPU: ".5", Memory: "128974848", CPULimit: "+1.", MemoryLimit: "1E3"}),
		secret("credentials", "token"), secret("a.b-c", ".dockerconfigjson"), secret("0", "A_b-1.pem"),
		probe(rollout.Probe{}), probe(rollout.Probe{InitialDelaySeconds: 86_400, PeriodSeconds: 86_400, TimeoutSeconds: 86_400, SuccessThreshold: 1, FailureThreshold: 1000}),
		{Template: map[string]any{"spec": map[string]any{"nodeSelector": map[string]any{"pool": "gpu"}}}},
	} {
		if errs := rollout.ValidateSettings("version", good); len(errs) > 0 {
			t.Errorf("%+v is refused: %v", good, errs)
		}
	}
	long := strings.Repeat("a", 254)
	many := map[string]int64{}
	for i := range 65 {
		many["vendor.example/d"+strconv.Itoa(i)] = 1
	}
	for field, bad := range map[string][]rollout.Settings{
		"version.resources.cpu": {
			resources(rollout.Resources{CPU: "one"}), resources(rollout.Resources{CPU: "-1"}), resources(rollout.Resources{CPU: "1 "}), resources(rollout.Resources{CPU: "500M i"}),
			resources(rollout.Resources{CPU: "."}), resources(rollout.Resources{CPU: "1e1000000"}), resources(rollout.Resources{CPU: strings.Repeat("1", 65)}),
		},
		"version.resources.memory":                   {resources(rollout.Resources{Memory: "1GB"}), resources(rollout.Resources{Memory: "1gi"}), resources(rollout.Resources{Memory: "1Ki i"})},
		"version.resources.cpuLimit":                 {resources(rollout.Resources{CPULimit: "1mm"})},
		"version.resources.memoryLimit":              {resources(rollout.Resources{MemoryLimit: "0x10"})},
		"version.resources.gpu":                      {resources(rollout.Resources{GPU: -1})},
		"version.resources.gpuResource":              {resources(rollout.Resources{GPU: 1, GPUResource: "gpu"}), resources(rollout.Resources{GPUResource: "nvidia.com/"})},
		"version.resources.extended":                 {resources(rollout.Resources{Extended: many})},
		"version.resources.extended[fpga]":           {resources(rollout.Resources{Extended: map[string]int64{"fpga": 1}})},
		"version.resources.extended[a.b/c]":          {resources(rollout.Resources{Extended: map[string]int64{"a.b/c": -1}})},
		"version.livenessProbe.initialDelaySeconds":  {probe(rollout.Probe{InitialDelaySeconds: 86_401}), probe(rollout.Probe{InitialDelaySeconds: 1 << 32})},
		"version.livenessProbe.periodSeconds":        {probe(rollout.Probe{PeriodSeconds: 86_401}), probe(rollout.Probe{PeriodSeconds: math.MaxInt32 + 1})},
		"version.livenessProbe.timeoutSeconds":       {probe(rollout.Probe{TimeoutSeconds: 86_401})},
		"version.livenessProbe.successThreshold":     {probe(rollout.Probe{SuccessThreshold: 2}), probe(rollout.Probe{SuccessThreshold: -1})},
		"version.livenessProbe.failureThreshold":     {probe(rollout.Probe{FailureThreshold: 1001})},
		"version.environmentVariables[TOKEN].secret": {secret("Bad", "k"), secret("", "k"), secret("a_b", "k"), secret("a..b", "k"), secret(long, "k")},
		"version.environmentVariables[TOKEN].key":    {secret("s", ""), secret("s", "a b"), secret("s", ".."), secret("s", "..data"), secret("s", "a/b"), secret("s", long)},
		"version.environmentVariables[TOKEN]":        {{EnvironmentVariables: map[string]rollout.EnvValue{"TOKEN": {Value: "v", Secret: "s", Key: "k"}}}},
	} {
		for _, s := range bad {
			errs := rollout.ValidateSettings("version", s)
			if len(errs) != 1 || errs[0].Field != field || errs[0].Reason != rollout.ReasonInvalid || errs[0].Hint == "" {
				t.Errorf("%s: %v, want one refusal of it", field, errs)
			}
		}
	}
}

func TestPercent(t *testing.T) {
	for in, want := range map[string]rollout.Percent{"0": 0, "100": rollout.Full, "12.5": 12500, "0.001": 1, "1e1": 10000, "33.333": 33333, "10.0": 10000, " 7% ": 7000} {
		if got, err := rollout.ParsePercent(in); err != nil || got != want {
			t.Errorf("ParsePercent(%q) = %v, %v; want %d", in, got, err, want)
		}
	}
	for in, want := range map[string]string{
		"-1": "between 0 and 100", "NaN": "not a number", "10.0001": "three decimals", "100.001": "between 0 and 100", "Inf": "not a number",
		"": "not a number", "ten": "not a number", "1e999999999": "between 0 and 100", "1e-400": "three decimals", "0x10": "not a number", "1_0": "not a number", "1e-999999999": "three decimals",
	} {
		_, err := rollout.ValidatePercent("trafficPercentile", in)
		errs := rollout.AsErrors(err)
		if len(errs) != 1 || errs[0].Reason != rollout.ReasonPercentInvalid || errs[0].Field != "trafficPercentile" || errs[0].Hint == "" || !strings.Contains(errs[0].Message, want) {
			t.Errorf("%q: %v, want one refusal that says %q", in, err, want)
		}
	}
	for _, p := range []rollout.Percent{0, 1, 10, 999, 1000, 12340, 99999, 100000} {
		b, err := json.Marshal(p)
		if err != nil {
			t.Fatal(err)
		}
		var back rollout.Percent
		if err := json.Unmarshal(b, &back); err != nil || back != p {
			t.Errorf("%d went through %s and came back as %d (%v)", p, b, back, err)
		}
	}
	var p rollout.Percent
	if err := json.Unmarshal([]byte(`"10"`), &p); err == nil {
		t.Error("a percentage in quotes was accepted")
	}
}

func TestSharesWithFallback(t *testing.T) {
	s := spec(func(s *rollout.Spec) {
		c := version("c", 3)
		c.Type, c.TrafficPercentile = rollout.Treatment, *pct("30")
		s.Versions[1].IsDefault = true
		s.Versions[0].TrafficPercentile = *pct("20")
		s.Versions = append(s.Versions, c)
	})
	for _, tc := range []struct {
		up   string
		want [3]string
	}{
		{"abc", [3]string{"20", "50", "30"}},
		{"ab", [3]string{"50", "50", "0"}},
		{"bc", [3]string{"0", "70", "30"}}, // the control is out: to the default
		{"ac", [3]string{"70", "0", "30"}},
		{"a", [3]string{"100", "0", "0"}},
		{"c", [3]string{"20", "50", "30"}}, // neither control nor default: requests wait where they belong
		{"", [3]string{"20", "50", "30"}},
	} {
		got := s.SharesWith(func(n string) bool { return strings.Contains(tc.up, n) })
		for i := range got {
			if got[i].Percent.String() != tc.want[i] {
				t.Errorf("with %q up: %v, want %v", tc.up, got, tc.want)
				break
			}
		}
	}
}

func TestRevision(t *testing.T) {
	a := version("a", 1)
	was := a.Revision()
	n := 4
	a.Replicas, a.TrafficPercentile, a.Type, a.Description = &n, 5, rollout.Control, "x"
	a.Concurrency = &rollout.Concurrency{MaxQueueWaitMs: 900}
	if a.Revision() != was {
		t.Error("replicas, share, type, text and queue patience changed the revision")
	}
	a.Concurrency.MaxConcurrentRequests = 2
	if a.Revision() == was {
		t.Error("another number of slots left the revision as it was")
	}
}
