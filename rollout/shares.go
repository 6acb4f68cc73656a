package rollout

// Share is a version's part of the endpoint's traffic.
type Share struct {
	Name    string
	Percent Percent
	// Fallback is the part that came from versions without ready replicas.
	Fallback Percent
}

// Shares are the effective shares, in the order of the versions: each version's
// claim, and for the default also what no version claims. They sum to exactly 100.
func (s *Spec) Shares() []Share {
	return s.SharesWith(func(string) bool { return true })
}

// SharesWith are the shares when only the versions for which serves is true can
// take traffic: what belongs to another goes to the control, then to the
// default. When neither serves, it stays where it is, so that requests wait
// there. They sum to exactly 100.
func (s *Spec) SharesWith(serves func(name string) bool) []Share {
	out := make([]Share, len(s.Versions))
	rest := Full
	def, control := -1, -1
	for i := range s.Versions {
		v := &s.Versions[i]
		out[i] = Share{Name: v.Name, Percent: v.TrafficPercentile}
		rest -= v.TrafficPercentile
		if v == s.Default() {
			def = i
		}
		if v.Type == Control {
			control = i
		}
	}
	if def < 0 {
		return out
	}
	out[def].Percent += rest
	var to int
	switch {
	case control >= 0 && serves(out[control].Name):
		to = control
	case serves(out[def].Name):
		to = def
	default:
		return out
	}
	for i := range out {
		if i == to || out[i].Percent == 0 || serves(out[i].Name) {
			continue
		}
		out[to].Percent += out[i].Percent
		out[to].Fallback += out[i].Percent
		out[i].Percent = 0
	}
	return out
}

// Effective share of one version.
func (s *Spec) Effective(name string) Percent {
	for _, sh := range s.Shares() {
		if sh.Name == name {
			return sh.Percent
		}
	}
	return 0
}
