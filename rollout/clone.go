package rollout

import (
	"maps"
	"slices"
)

// Clone is a deep copy: nothing of it is shared with e.
func (e *Endpoint) Clone() *Endpoint {
	out := *e
	out.Spec = e.Spec.clone()
	out.Status = e.Status.clone()
	return &out
}

func (s *Spec) clone() Spec {
	out := *s
	out.Repositories = slices.Clone(s.Repositories)
	out.Changes = slices.Clone(s.Changes)
	out.Hold, out.Lock, out.Auth = pointer(s.Hold), pointer(s.Lock), pointer(s.Auth)
	if s.Telemetry != nil {
		out.Telemetry = &Telemetry{ApplicationInsights: pointer(s.Telemetry.ApplicationInsights)}
	}
	out.Versions = slices.Clone(s.Versions)
	for i := range out.Versions {
		v := &out.Versions[i]
		v.Tags, v.Properties, v.Settings = maps.Clone(v.Tags), maps.Clone(v.Properties), v.Settings.clone()
	}
	if s.Strategy != nil {
		st := s.Strategy.clone()
		out.Strategy = &st
	}
	return out
}

func (s Settings) clone() Settings {
	if s.Resources != nil {
		s.Resources = pointer(s.Resources)
		s.Resources.Extended = maps.Clone(s.Resources.Extended)
	}
	if s.Autoscale != nil {
		a := *s.Autoscale
		a.Enabled, a.MinReplicas, a.MaxReplicas = pointer(a.Enabled), pointer(a.MinReplicas), pointer(a.MaxReplicas)
		s.Autoscale = &a
	}
	s.Replicas, s.Concurrency, s.LivenessProbe, s.DataCollection = pointer(s.Replicas), pointer(s.Concurrency), pointer(s.LivenessProbe), pointer(s.DataCollection)
	if s.Server != nil {
		s.Server = pointer(s.Server)
		s.Server.Command = slices.Clone(s.Server.Command)
	}
	s.EnvironmentVariables = maps.Clone(s.EnvironmentVariables)
	if s.Template != nil {
		s.Template = tree(s.Template).(map[string]any)
	}
	return s
}

func (s Strategy) clone() Strategy {
	s.Steps = slices.Clone(s.Steps)
	for i := range s.Steps {
		s.Steps[i].MinRequests = pointer(s.Steps[i].MinRequests)
	}
	s.MaxBadPercent, s.Deadline, s.RetainFor = pointer(s.MaxBadPercent), pointer(s.Deadline), pointer(s.RetainFor)
	return s
}

func (s *Status) clone() Status {
	out := *s
	out.Versions, out.History, out.Conditions = slices.Clone(s.Versions), slices.Clone(s.History), slices.Clone(s.Conditions)
	out.Summary = pointer(s.Summary)
	if s.Traffic != nil {
		out.Traffic = pointer(s.Traffic)
		out.Traffic.Versions = slices.Clone(s.Traffic.Versions)
	}
	if s.Rollout != nil {
		out.Rollout = pointer(s.Rollout)
		out.Rollout.Evidence = slices.Clone(s.Rollout.Evidence)
	}
	return out
}

// pointer copies what p points to, if it points to anything.
func pointer[T any](p *T) *T {
	if p == nil {
		return nil
	}
	v := *p
	return &v
}

// tree copies what a JSON decoder made.
func tree(v any) any {
	switch v := v.(type) {
	case map[string]any:
		out := make(map[string]any, len(v))
		for k, x := range v {
			out[k] = tree(x)
		}
		return out
	case []any:
		out := make([]any, len(v))
		for i, x := range v {
			out[i] = tree(x)
		}
		return out
	default:
		return v
	}
}
