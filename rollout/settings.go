package rollout

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strconv"
	"time"
)

// The defaults of settings: Azure ML's for AKS deployments.
const (
	DefaultScoringTimeoutMs  = 60_000
	DefaultMaxQueueWaitMs    = 500
	DefaultSlots             = 1
	DefaultMinReplicas       = 1
	DefaultMaxReplicas       = 10
	DefaultTargetUtilization = 70
	DefaultRefreshSeconds    = 1
)

// The defaults of a strategy.
const (
	DefaultAlpha         = 0.01
	DefaultBeta          = 0.05
	DefaultR0            = 1.0
	DefaultR1            = 2.0
	DefaultMaxBadPercent = 1.0
	DefaultMinRequests   = 100
	DefaultDeadline      = 24 * time.Hour
	DefaultRetainFor     = 24 * time.Hour
)

// MarshalJSON writes a literal as a string and a reference as {secret, key}.
func (v EnvValue) MarshalJSON() ([]byte, error) {
	if v.Secret == "" && v.Key == "" {
		return json.Marshal(v.Value)
	}
	return json.Marshal(envReference{v.Secret, v.Key})
}

type envReference struct {
	Secret string `json:"secret"`
	Key    string `json:"key"`
}

// UnmarshalJSON reads what MarshalJSON writes; numbers and booleans are refused,
// as in Kubernetes, because YAML would change how they are spelled.
func (v *EnvValue) UnmarshalJSON(b []byte) error {
	if len(b) > 0 && b[0] == '{' {
		dec := json.NewDecoder(bytes.NewReader(b))
		dec.DisallowUnknownFields()
		var ref envReference
		if err := dec.Decode(&ref); err != nil {
			return err
		}
		if ref.Secret == "" || ref.Key == "" {
			return errors.New("a reference needs both secret and key")
		}
		*v = EnvValue{Secret: ref.Secret, Key: ref.Key}
		return nil
	}
	var s string
	if err := json.Unmarshal(b, &s); err != nil {
		return fmt.Errorf("%s is not a string: put it in quotes", b)
	}
	*v = EnvValue{Value: s}
	return nil
}

// Slots of each replica.
func (s Settings) Slots() int {
	if s.Concurrency == nil || s.Concurrency.MaxConcurrentRequests == 0 {
		return DefaultSlots
	}
	return s.Concurrency.MaxConcurrentRequests
}

// QueueWait is how long a request may wait for a slot.
func (s Settings) QueueWait() time.Duration {
	if s.Concurrency == nil || s.Concurrency.MaxQueueWaitMs == 0 {
		return DefaultMaxQueueWaitMs * time.Millisecond
	}
	return time.Duration(s.Concurrency.MaxQueueWaitMs) * time.Millisecond
}

// ScoringTimeout bounds one scoring call at a replica.
func (s Settings) ScoringTimeout() time.Duration {
	if s.ScoringTimeoutMs == 0 {
		return DefaultScoringTimeoutMs * time.Millisecond
	}
	return time.Duration(s.ScoringTimeoutMs) * time.Millisecond
}

// Scale is the resolved scaling of a version: a fixed count, or bounds and an aim.
type Scale struct {
	// Fixed is the replica count when autoscaling is off, else -1.
	Fixed int
	Min   int
	Max   int
	// Target share of busy slots, between 0 and 1.
	Target  float64
	Refresh time.Duration
}

// Scale resolves replicas and autoscale with their defaults.
func (s Settings) Scale() Scale {
	out := Scale{
		Fixed: -1, Min: DefaultMinReplicas, Max: DefaultMaxReplicas,
		Target: DefaultTargetUtilization / 100.0, Refresh: DefaultRefreshSeconds * time.Second,
	}
	if s.Replicas != nil {
		out.Fixed = *s.Replicas
		return out
	}
	a := s.Autoscale
	if a == nil {
		return out
	}
	if a.MinReplicas != nil {
		out.Min = *a.MinReplicas
	}
	out.Max = max(out.Max, out.Min)
	if a.MaxReplicas != nil {
		out.Max = *a.MaxReplicas
	}
	if a.TargetUtilization != 0 {
		out.Target = float64(a.TargetUtilization) / 100
	}
	if a.RefreshPeriodSeconds != 0 {
		out.Refresh = time.Duration(a.RefreshPeriodSeconds) * time.Second
	}
	return out
}

// Resolved probe with the defaults filled in.
func (p *Probe) Resolved() Probe {
	out := Probe{InitialDelaySeconds: 310, PeriodSeconds: 10, TimeoutSeconds: 2, SuccessThreshold: 1, FailureThreshold: 3}
	if p == nil {
		return out
	}
	for _, f := range []struct{ to, from *int }{
		{&out.InitialDelaySeconds, &p.InitialDelaySeconds},
		{&out.PeriodSeconds, &p.PeriodSeconds},
		{&out.TimeoutSeconds, &p.TimeoutSeconds},
		{&out.SuccessThreshold, &p.SuccessThreshold},
		{&out.FailureThreshold, &p.FailureThreshold},
	} {
		if *f.from != 0 {
			*f.to = *f.from
		}
	}
	return out
}

// Revision is a hash of all that replaces a version's replicas when it changes:
// everything but names, roles, shares, replica counts and free text.
func (v *Version) Revision() string {
	s := v.Settings
	s.Autoscale, s.Replicas = nil, nil
	// The queue's patience is the router's business and replaces nothing.
	s.Concurrency = &Concurrency{MaxConcurrentRequests: s.Slots()}
	b, err := json.Marshal(struct {
		Image    string
		Settings Settings
	}{v.Image, s})
	if err != nil { // only a template that no JSON decoder can produce
		panic(err)
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:8])
}

// Version of that name, or nil. The pointer is into the spec.
func (s *Spec) Version(name string) *Version {
	for i := range s.Versions {
		if s.Versions[i].Name == name {
			return &s.Versions[i]
		}
	}
	return nil
}

// ByRole is the first version of that role, or nil.
func (s *Spec) ByRole(r Role) *Version {
	for i := range s.Versions {
		if s.Versions[i].Type == r {
			return &s.Versions[i]
		}
	}
	return nil
}

// Default is the version that gets the traffic no version claims: the one that
// says so, else the control, else the first; nil without versions.
func (s *Spec) Default() *Version {
	for i := range s.Versions {
		if s.Versions[i].IsDefault {
			return &s.Versions[i]
		}
	}
	if c := s.ByRole(Control); c != nil {
		return c
	}
	if len(s.Versions) > 0 {
		return &s.Versions[0]
	}
	return nil
}

// Active says whether the version has a part in traffic: a role, a claim or the default.
func (s *Spec) Active(v *Version) bool {
	return v.Type != Untyped || v.TrafficPercentile > 0 || s.Default() == v
}

// Version is that version's status, or the zero value.
func (s *Status) Version(name string) VersionStatus {
	for _, v := range s.Versions {
		if v.Name == name {
			return v
		}
	}
	return VersionStatus{Name: name}
}

// AuthMode of the endpoint with its default.
func (s *Spec) AuthMode() AuthMode {
	if s.Auth == nil || s.Auth.Mode == "" {
		return AuthKey
	}
	return s.Auth.Mode
}

// Resolved strategy with the defaults filled in.
func (s Strategy) Resolved() Strategy {
	if len(s.Steps) == 0 {
		s.Steps = []Step{{Percent: OnePercent}, {Percent: 10 * OnePercent}, {Percent: 50 * OnePercent}}
	} else {
		s.Steps = append([]Step(nil), s.Steps...)
	}
	for i := range s.Steps {
		if s.Steps[i].MinRequests == nil {
			n := int64(DefaultMinRequests)
			s.Steps[i].MinRequests = &n
		}
	}
	if s.Gate == "" {
		s.Gate = GateVerdict
	}
	if s.OnDeadline == "" {
		s.OnDeadline = DeadlineHold
	}
	for _, f := range []struct {
		to  *float64
		def float64
	}{{&s.Alpha, DefaultAlpha}, {&s.Beta, DefaultBeta}, {&s.R0, DefaultR0}, {&s.R1, DefaultR1}} {
		if *f.to == 0 {
			*f.to = f.def
		}
	}
	if s.MaxBadPercent == nil {
		m := DefaultMaxBadPercent
		s.MaxBadPercent = &m
	}
	if s.Deadline == nil {
		d := Duration(DefaultDeadline)
		s.Deadline = &d
	}
	if s.RetainFor == nil {
		d := Duration(DefaultRetainFor)
		s.RetainFor = &d
	}
	return s
}

// DemandSlots is the endpoint's present demand as a number; 0 when unknown.
func (s *Status) DemandSlots() float64 {
	f, err := strconv.ParseFloat(s.Demand, 64)
	if err != nil || math.IsNaN(f) || math.IsInf(f, 0) || f < 0 {
		return 0
	}
	return f
}

// ceil forgives rounding below a millionth, so that 3.0000001 slots are 3.
func ceil(f float64) int { return int(math.Ceil(f - 1e-6)) }
