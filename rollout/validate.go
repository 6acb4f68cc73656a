package rollout

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"regexp"
	"slices"
	"strings"
)

var (
	namePattern  = regexp.MustCompile(`^[a-z]([-a-z0-9]*[a-z0-9])?$`)
	imagePattern = regexp.MustCompile(`^[^@\s]+@sha256:[0-9a-f]{64}$`)
	envPattern   = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)
)

// Kubernetes' own rules for what a version hands to it, so that a slip is refused where
// it is written and not when a replica is to start.
var (
	// quantityPattern is a resource.Quantity that is not negative; the exponent is kept short, since
	// Kubernetes caps what is larger without a word.
	quantityPattern = regexp.MustCompile(`^\+?([0-9]+(\.[0-9]*)?|\.[0-9]+)([KMGTPE]i|[numkMGTPE]|[eE][-+]?[0-9]{1,2})?$`)
	// secretPattern is a DNS subdomain (RFC 1123), secretKeyPattern a key of a Secret.
	secretPattern    = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$`)
	secretKeyPattern = regexp.MustCompile(`^\.?[-_a-zA-Z0-9][-._a-zA-Z0-9]*$`)
	// devicePattern is an extended resource: a domain, a slash and a name. (A rule of the Kubernetes object
	// on names of a map would cost more than the API server allows, so these are checked here alone.)
	devicePattern = regexp.MustCompile(`^[a-z0-9]([-a-z0-9.]*[a-z0-9])?/[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$`)
)

// Upper bounds: beyond them a number is a slip of the finger.
const (
	maxReplicas = 1000
	maxSlots    = 512
	maxMillis   = 24 * 60 * 60 * 1000
	maxDevices  = 1_000_000
	maxMisses   = 1000
	maxExtended = 64
	// maxQuantityLen and maxObjectName are how long a quantity, and a Secret's name or key, may be.
	maxQuantityLen = 64
	maxObjectName  = 253
	maxDeviceName  = 317
)

// ValidateName checks an endpoint's or version's name; what is "endpoint" or "version".
func ValidateName(field, what, name string) error {
	if len(name) > MaxNameLen || !namePattern.MatchString(name) {
		return refuse(ReasonInvalid, field,
			"use 1 to 32 lower-case letters, digits and hyphens, beginning with a letter and not ending with a hyphen",
			"%q is not a name for %s", name, what)
	}
	return nil
}

// ValidatePercent reads a share from text and refuses it with field, rule and way out.
func ValidatePercent(field, text string) (Percent, error) {
	p, err := ParsePercent(text)
	if err != nil {
		return 0, refuse(ReasonPercentInvalid, field, "write a number from 0 to 100 with at most three decimals, such as 12.5", "%v", err)
	}
	return p, nil
}

// Validate checks every invariant of a spec. The error joins one *Error per
// breach, each naming the field, the rule and the way out.
func (s *Spec) Validate() error {
	var errs []error
	add := func(e *Error) { errs = append(errs, e) }
	if len(s.Versions) < 1 {
		add(refuse(ReasonInvalid, "spec.versions", "deploy one with `sluice deploy`", "an endpoint needs at least one version"))
	}
	if n := len(s.Versions); n > MaxVersions {
		add(refuse(ReasonTooManyVersions, "spec.versions", "delete one with `sluice delete ENDPOINT VERSION`",
			"%d versions, but an endpoint has at most %d", n, MaxVersions))
	}
	if n := len(s.Changes); n > MaxChanges {
		add(refuse(ReasonInvalid, "spec.changes", "remove the oldest", "%d changes, but at most %d are kept", n, MaxChanges))
	}
	var sum int64
	seen := map[string]int{}
	one := map[string]string{}
	onlyOne := func(what, field, name string, reason Reason, hint string) {
		if first, dup := one[what]; dup {
			add(refuse(reason, field, hint, "%s is a second %s: %s is one already", name, what, first))
			return
		}
		one[what] = name
	}
	for i := range s.Versions {
		v := &s.Versions[i]
		f := fmt.Sprintf("spec.versions[%d]", i)
		if v.Name != "" {
			f = fmt.Sprintf("spec.versions[%s]", v.Name)
		}
		if err := ValidateName(f+".name", "a version", v.Name); err != nil {
			errs = append(errs, err)
		}
		if first, dup := seen[v.Name]; dup {
			add(refuse(ReasonVersionExists, f+".name", "give each version a name of its own", "version %q stands twice, first at place %d", v.Name, first+1))
		} else {
			seen[v.Name] = i
		}
		switch v.Type {
		case Untyped, Treatment:
		case Control:
			onlyOne("control", f+".type", v.Name, ReasonTwoControls, "give the role with `sluice update ENDPOINT VERSION --control`, which moves it")
		case Standby:
			onlyOne("standby", f+".type", v.Name, ReasonTwoStandbys, "leave the type of one of them out")
		default:
			add(refuse(ReasonInvalid, f+".type", "use control, treatment or standby, or leave it out", "%q is not a type of version", v.Type))
		}
		if v.IsDefault {
			onlyOne("default", f+".isDefault", v.Name, ReasonTwoDefaults, "make one default with `sluice update ENDPOINT VERSION --default`, which moves it")
		}
		if v.TrafficPercentile < 0 || v.TrafficPercentile > Full {
			add(refuse(ReasonPercentInvalid, f+".trafficPercentile", "use a number from 0 to 100", "%s is not between 0 and 100", v.TrafficPercentile))
		}
		if v.PlannedPercentile < 0 || v.PlannedPercentile > Full {
			add(refuse(ReasonPercentInvalid, f+".plannedPercentile", "use a number from 0 to 100", "%s is not between 0 and 100", v.PlannedPercentile))
		}
		sum += int64(v.TrafficPercentile)
		if !imagePattern.MatchString(v.Image) {
			add(refuse(ReasonInvalid, f+".image", "name the image by digest: NAME@sha256:HEX", "%q is not an image by digest", v.Image))
		}
		for _, e := range validateSettings(f, v.Settings) {
			add(e)
		}
	}
	if sum > int64(Full) {
		add(refuse(ReasonPercentSum, "spec.versions[*].trafficPercentile",
			"lower a claim first; what no version claims goes to the default",
			"the claims add up to %s per cent (%s), but at most 100 can be claimed", Percent(min(sum, math.MaxInt32)), s.claims()))
	}
	switch s.AuthMode() {
	case AuthKey, AuthNone:
	case AuthToken:
		add(notYet("spec.auth.mode", "token authentication", "use mode key (the default)"))
	default:
		add(refuse(ReasonInvalid, "spec.auth.mode", "use key, token or none", "%q is not an auth mode", s.Auth.Mode))
	}
	if t := s.Telemetry; t != nil && t.ApplicationInsights != nil && t.ApplicationInsights.Enabled {
		add(notYet("spec.telemetry.applicationInsights", "export to Application Insights", "leave it out; the router's own metrics are on"))
	}
	if s.Strategy != nil {
		for _, e := range ValidateStrategy("spec.strategy", *s.Strategy) {
			add(e)
		}
	}
	return errors.Join(errs...)
}

func (s *Spec) claims() string {
	var parts []string
	for i := range s.Versions {
		if p := s.Versions[i].TrafficPercentile; p != 0 {
			parts = append(parts, fmt.Sprintf("%s %s", s.Versions[i].Name, p))
		}
	}
	return strings.Join(parts, ", ")
}

func notYet(field, what, way string) *Error {
	return refuse(ReasonNotSupportedYet, field, way, "%s is not built yet, so it is refused rather than ignored", what)
}

// VariablePrefix begins the names of variables that are Sluice's own.
const VariablePrefix = "SLUICE_"

// ValidateSettings checks the changeable part of a version as it is asked for; field is its path. Other
// than Spec.Validate it also checks the names of variables, see ValidateVariables, and how far a probe's numbers may go.
func ValidateSettings(field string, s Settings) []*Error {
	return append(validateSettings(field, s), validateAsked(field, s)...)
}

// validateAsked checks what is no invariant of the object, but asked of whoever writes settings anew: objects that were stored
// before a rule was made go on.
func validateAsked(field string, s Settings) []*Error {
	errs := ValidateVariables(field, s)
	p := s.LivenessProbe
	if p == nil {
		return errs
	}
	for _, n := range []struct {
		name      string
		is, limit int
	}{
		{"initialDelaySeconds", p.InitialDelaySeconds, maxMillis / 1000}, {"periodSeconds", p.PeriodSeconds, maxMillis / 1000},
		{"timeoutSeconds", p.TimeoutSeconds, maxMillis / 1000}, {"failureThreshold", p.FailureThreshold, maxMisses},
	} {
		if n.is > n.limit {
			errs = append(errs, refuse(ReasonInvalid, field+".livenessProbe."+n.name, fmt.Sprintf("use %d at most", n.limit), "%d is more than %d", n.is, n.limit))
		}
	}
	if p.SuccessThreshold > 1 {
		errs = append(errs, refuse(ReasonInvalid, field+".livenessProbe.successThreshold", "use 1, or leave it out",
			"%d is not 1, and Kubernetes allows a liveness probe no other", p.SuccessThreshold))
	}
	return errs
}

// ValidateVariables checks the names of variables. They are no invariant of the object, since the API server of
// Kubernetes has no way to check the keys of a map: whoever starts replicas looks once more.
func ValidateVariables(field string, s Settings) []*Error {
	var errs []*Error
	for _, name := range slices.Sorted(maps.Keys(s.EnvironmentVariables)) {
		f := fmt.Sprintf("%s.environmentVariables[%s]", field, name)
		switch {
		case !envPattern.MatchString(name):
			errs = append(errs, refuse(ReasonInvalid, f, "use letters, digits and underscores, not beginning with a digit", "%q is not the name of a variable", name))
		case strings.HasPrefix(name, VariablePrefix):
			errs = append(errs, refuse(ReasonInvalid, f, "give it another name", "names that begin with %s are Sluice's own", VariablePrefix))
		}
	}
	return errs
}

func validateSettings(field string, s Settings) []*Error {
	var errs []*Error
	add := func(reason Reason, f, hint, format string, args ...any) {
		errs = append(errs, refuse(reason, field+"."+f, hint, format, args...))
	}
	atLeast := func(f string, v, least int) {
		if v != 0 && v < least {
			add(ReasonInvalid, f, fmt.Sprintf("use %d or more, or leave it out", least), "%d is less than %d", v, least)
		}
	}
	atMost := func(f string, v, most int) {
		if v > most {
			add(ReasonInvalid, f, fmt.Sprintf("use %d or less", most), "%d is more than %d", v, most)
		}
	}
	if s.Resources != nil {
		errs = append(errs, validateResources(field+".resources", *s.Resources)...)
	}
	if s.DataCollection != nil && s.DataCollection.Enabled {
		errs = append(errs, notYet(field+".dataCollection", "collecting model data", "leave it out"))
	}
	if r := s.Replicas; r != nil {
		atMost("replicas", *r, maxReplicas)
		if *r < 0 {
			add(ReasonInvalid, "replicas", "use 0 or more", "%d replicas", *r)
		}
		if s.Autoscale != nil && (s.Autoscale.Enabled == nil || *s.Autoscale.Enabled) {
			add(ReasonInvalid, "replicas", "leave out replicas or autoscale", "a fixed number of replicas excludes autoscale")
		}
	}
	if a := s.Autoscale; a != nil {
		sc := Settings{Autoscale: a}.Scale()
		if a.MinReplicas != nil && *a.MinReplicas < 1 {
			add(ReasonInvalid, "autoscale.minReplicas", "use 1 or more", "%d is less than 1", *a.MinReplicas)
		}
		if a.MaxReplicas != nil && *a.MaxReplicas < 1 {
			add(ReasonInvalid, "autoscale.maxReplicas", "use 1 or more", "%d is less than 1", *a.MaxReplicas)
		}
		if a.Enabled != nil && !*a.Enabled && s.Replicas == nil {
			add(ReasonInvalid, "autoscale.enabled", "set replicas, or leave enabled out", "autoscale is off and no fixed number of replicas is given")
		}
		atMost("autoscale.maxReplicas", sc.Max, maxReplicas)
		atMost("autoscale.refreshPeriodSeconds", a.RefreshPeriodSeconds, maxMillis/1000)
		if sc.Min > sc.Max {
			add(ReasonInvalid, "autoscale.minReplicas", "raise maxReplicas or lower minReplicas", "minReplicas %d is more than maxReplicas %d", sc.Min, sc.Max)
		}
		if a.TargetUtilization < 0 || a.TargetUtilization > 100 {
			add(ReasonInvalid, "autoscale.targetUtilization", "use per cent from 1 to 100; 70 is the default", "%d is not between 1 and 100", a.TargetUtilization)
		}
		atLeast("autoscale.refreshPeriodSeconds", a.RefreshPeriodSeconds, 1)
	}
	if c := s.Concurrency; c != nil {
		atLeast("concurrency.maxConcurrentRequests", c.MaxConcurrentRequests, 1)
		atLeast("concurrency.maxQueueWaitMs", c.MaxQueueWaitMs, 1)
		atMost("concurrency.maxConcurrentRequests", c.MaxConcurrentRequests, maxSlots)
		atMost("concurrency.maxQueueWaitMs", c.MaxQueueWaitMs, maxMillis)
	}
	atMost("scoringTimeoutMs", s.ScoringTimeoutMs, maxMillis)
	atLeast("scoringTimeoutMs", s.ScoringTimeoutMs, 1)
	if p := s.LivenessProbe; p != nil {
		atLeast("livenessProbe.initialDelaySeconds", p.InitialDelaySeconds, 1)
		atLeast("livenessProbe.periodSeconds", p.PeriodSeconds, 1)
		atLeast("livenessProbe.timeoutSeconds", p.TimeoutSeconds, 1)
		atLeast("livenessProbe.successThreshold", p.SuccessThreshold, 1)
		atLeast("livenessProbe.failureThreshold", p.FailureThreshold, 1)
	}
	if sv := s.Server; sv != nil {
		if sv.Port < 0 || sv.Port > 65535 {
			add(ReasonInvalid, "server.port", "use a port from 1 to 65535", "%d is not a port", sv.Port)
		}
		for f, p := range map[string]string{"server.scorePath": sv.ScorePath, "server.healthPath": sv.HealthPath} {
			if p != "" && !strings.HasPrefix(p, "/") {
				add(ReasonInvalid, f, "begin it with /", "%q is not a path", p)
			}
		}
	}
	for name, v := range s.EnvironmentVariables {
		f := fmt.Sprintf("environmentVariables[%s]", name)
		switch {
		case v.Secret == "" && v.Key == "":
		case len(v.Secret) > maxObjectName || !secretPattern.MatchString(v.Secret):
			add(ReasonInvalid, f+".secret", "use lower-case letters, digits, hyphens and dots, as Kubernetes does", "%q is not the name of a secret", v.Secret)
		case len(v.Key) > maxObjectName || !secretKeyPattern.MatchString(v.Key):
			add(ReasonInvalid, f+".key", "use letters, digits, hyphens, underscores and dots, as Kubernetes does", "%q is not a key of a secret", v.Key)
		case v.Value != "":
			add(ReasonInvalid, f, "keep one of them", "a variable has a value or comes from a secret, not both")
		}
	}
	return errs
}

// validateResources checks how quantities and devices are written; whether a cluster has them is
// for the cluster to say.
func validateResources(field string, r Resources) []*Error {
	var errs []*Error
	add := func(f, hint, format string, args ...any) {
		errs = append(errs, refuse(ReasonInvalid, field+"."+f, hint, format, args...))
	}
	for _, q := range []struct{ field, value string }{
		{"cpu", r.CPU}, {"memory", r.Memory}, {"cpuLimit", r.CPULimit}, {"memoryLimit", r.MemoryLimit},
	} {
		if q.value != "" && (len(q.value) > maxQuantityLen || !quantityPattern.MatchString(q.value)) {
			add(q.field, `write it as Kubernetes does: "500m" or "2" for cpu, "512Mi" or "4Gi" for memory`, "%q is not a quantity", q.value)
		}
	}
	const device = "write it as Kubernetes does, with its domain, such as nvidia.com/gpu"
	if r.GPU < 0 || r.GPU > maxDevices {
		add("gpu", "use a number of devices, or leave it out", "%d is not a number of devices", r.GPU)
	}
	isDevice := func(name string) bool { return len(name) <= maxDeviceName && devicePattern.MatchString(name) }
	if r.GPUResource != "" && !isDevice(r.GPUResource) {
		add("gpuResource", device, "%q is not the name of a resource", r.GPUResource)
	}
	if n := len(r.Extended); n > maxExtended {
		add("extended", "leave out what the model does not need", "%d resources, but at most %d can be named", n, maxExtended)
	}
	for _, name := range slices.Sorted(maps.Keys(r.Extended)) {
		f := fmt.Sprintf("extended[%s]", name)
		if !isDevice(name) {
			add(f, device, "%q is not the name of a resource", name)
		}
		if n := r.Extended[name]; n < 0 || n > maxDevices {
			add(f, "use a number of devices, or leave it out", "%d is not a number of devices", n)
		}
	}
	return errs
}

// ValidateStrategy checks a strategy; field is its path.
func ValidateStrategy(field string, s Strategy) []*Error {
	var errs []*Error
	add := func(f, hint, format string, args ...any) {
		errs = append(errs, refuse(ReasonInvalid, field+"."+f, hint, format, args...))
	}
	if n := len(s.Steps); n > MaxSteps {
		add("steps", "leave some out", "%d steps, but at most %d", n, MaxSteps)
	}
	last := Zero
	for i, st := range s.Steps {
		f := fmt.Sprintf("steps[%d]", i)
		if st.Percent <= 0 || st.Percent > Full {
			add(f+".percent", "use a number above 0 and up to 100", "%s is not above 0 and up to 100", st.Percent)
		} else if st.Percent <= last {
			add(f+".percent", "order the steps upwards", "%s is not above the step before it (%s)", st.Percent, last)
		}
		last = st.Percent
		if st.MinRequests != nil && *st.MinRequests < 0 {
			add(f+".minRequests", "use 0 or more", "%d is negative", *st.MinRequests)
		}
		if st.MinDuration < 0 {
			add(f+".minDuration", "use 0s or more", "%s is negative", st.MinDuration)
		}
	}
	if s.Gate != "" && s.Gate != GateVerdict && s.Gate != GateNone {
		add("gate", "use verdict or none", "%q is not a gate", s.Gate)
	}
	if s.OnDeadline != "" && s.OnDeadline != DeadlineHold && s.OnDeadline != DeadlineRollback {
		add("onDeadline", "use hold or rollback", "%q is not an action", s.OnDeadline)
	}
	inside := func(f string, v, lo, hi float64) {
		if v != 0 && !(v >= lo && v <= hi) {
			add(f, fmt.Sprintf("use a number from %g to %g", lo, hi), "%g is not between %g and %g", v, lo, hi)
		}
	}
	inside("alpha", s.Alpha, 1e-9, 0.5)
	inside("beta", s.Beta, 1e-9, 0.5)
	inside("r0", s.R0, 1, 1000)
	inside("r1", s.R1, 1, 1000)
	if r := s.Resolved(); r.R1 <= r.R0 {
		add("r1", "use a ratio above r0; the defaults are r0 1 and r1 2", "r1 %g is not above r0 %g", r.R1, r.R0)
	}
	if m := s.MaxBadPercent; m != nil && !(*m > 0 && *m <= 100) {
		add("maxBadPercent", "use per cent above 0 and up to 100; 1 is the default", "%g is not above 0 and up to 100", *m)
	}
	if d := s.Deadline; d != nil && *d <= 0 {
		add("deadline", `use a duration such as "24h"`, "%s is not above zero", *d)
	}
	if d := s.RetainFor; d != nil && *d < 0 {
		add("retainFor", `use a duration such as "24h", or "0s" for no standby`, "%s is negative", *d)
	}
	return errs
}

// ValidateUpdate checks that no version of next changes what never changes under
// a name in old: its image, and the repository and commit that it came from.
func ValidateUpdate(old, next *Spec) error {
	var errs []error
	for i := range next.Versions {
		v := &next.Versions[i]
		was := old.Version(v.Name)
		if was == nil {
			continue
		}
		f := fmt.Sprintf("spec.versions[%s]", v.Name)
		hint := "deploy it as a version with a new name"
		if was.Image != v.Image {
			errs = append(errs, refuse(ReasonVersionExists, f+".image", hint, "the image of a version never changes: it is %s", was.Image))
		}
		if was.Source.RepositoryID != v.Source.RepositoryID {
			errs = append(errs, refuse(ReasonVersionExists, f+".source.repositoryId", hint, "the repository of a version never changes: it is %d", was.Source.RepositoryID))
		}
		if was.Source.Commit != v.Source.Commit {
			errs = append(errs, refuse(ReasonVersionExists, f+".source.commit", hint, "the commit of a version never changes: it is %q", was.Source.Commit))
		}
	}
	return errors.Join(errs...)
}
