// Package rollout is the domain of Sluice: endpoints, their versions, the shares
// of traffic these claim, and the transitions that move traffic. It is pure: no
// files, no network, no clock of its own.
//
// The +kubebuilder comments of its types become the schema and the rules of the Kubernetes object
// (`make generate`). A rule says what Spec.Validate says, as "RULE; WAY OUT [reason]"; a test holds
// both to the same verdicts.
package rollout

import "time"

// APIVersion and Kind of the one object.
const (
	APIVersion = "sluice.dev/v1alpha1"
	Kind       = "ModelEndpoint"
)

// Limits that the invariants enforce.
const (
	MaxVersions = 6
	MaxNameLen  = 32
	MaxChanges  = 20
	MaxHistory  = 50
	MaxSteps    = 50
)

// Endpoint is a stable scoring address with one to six versions behind it. The
// Kubernetes object wraps Spec and Status; locally it is one YAML file.
type Endpoint struct {
	APIVersion string   `json:"apiVersion"`
	Kind       string   `json:"kind"`
	Metadata   Metadata `json:"metadata"`
	Spec       Spec     `json:"spec"`
	Status     Status   `json:"status,omitzero"`
}

// Metadata names an endpoint and its stored revision.
type Metadata struct {
	Name      string `json:"name"`
	Namespace string `json:"namespace"`
	// UID tells an endpoint from a later one of the same name.
	UID string `json:"uid,omitempty"`
	// ResourceVersion changes with every write, Generation with every write of the spec.
	ResourceVersion   string    `json:"resourceVersion,omitempty"`
	Generation        int64     `json:"generation,omitempty"`
	CreationTimestamp time.Time `json:"creationTimestamp,omitzero"`
	// Editor is who, beside Sluice, wrote shift fields last, where the backend knows. It is not stored.
	Editor string `json:"-"`
}

// Key is the namespace and name of an endpoint.
type Key struct{ Namespace, Name string }

func (k Key) String() string { return k.Namespace + "/" + k.Name }

// Key of e.
func (e *Endpoint) Key() Key { return Key{e.Metadata.Namespace, e.Metadata.Name} }

// Spec is what people and the engine ask for.
type Spec struct {
	// Repositories are GitHub repository ids whose workflows and comments may act on the endpoint.
	// +kubebuilder:validation:MaxItems=256
	// +listType=set
	Repositories []int64 `json:"repositories,omitempty"`
	// Changes are the newest changes of shift fields, oldest first, at most MaxChanges.
	// One writer at a time replaces the list as a whole: it is a record, not settings.
	// +kubebuilder:validation:MaxItems=20
	// +listType=atomic
	Changes []Change `json:"changes,omitempty"`
	// Hold, if present, stops advancing and promoting, never the automatic rollback.
	Hold *Mark `json:"hold,omitempty"`
	// Lock, if present, refuses all but Rollback, Hold and Unlock.
	Lock *Mark `json:"lock,omitempty"`
	// Auth says how scoring requests prove that they may; absent means by key.
	Auth *Auth `json:"auth,omitempty"`
	// Telemetry of the endpoint.
	Telemetry *Telemetry `json:"telemetry,omitempty"`
	// Versions behind the endpoint, one to six. A manifest that is applied again and again leaves out
	// trafficPercentile, type and isDefault of versions that exist: those belong to the rollout.
	// The bound on items only bounds the cost of the rules; the rule on size says the way out.
	// +kubebuilder:validation:MaxItems=16
	// +listType=map
	// +listMapKey=name
	// +kubebuilder:validation:XValidation:rule="self.size() >= 1",message="an endpoint needs at least one version; deploy one with `sluice deploy` [invalid]"
	// +kubebuilder:validation:XValidation:rule="self.size() <= 6",message="an endpoint has at most 6 versions; delete one with `sluice delete ENDPOINT VERSION` [too_many_versions]"
	// +kubebuilder:validation:XValidation:rule="self.filter(v, has(v.type) && v.type == 'control').size() <= 1",message="more than one version is the control; give the role with `sluice update ENDPOINT VERSION --control`, which moves it [two_controls]"
	// +kubebuilder:validation:XValidation:rule="self.filter(v, has(v.type) && v.type == 'standby').size() <= 1",message="more than one version is the standby; leave the type of one of them out [two_standbys]"
	// +kubebuilder:validation:XValidation:rule="self.filter(v, has(v.isDefault) && v.isDefault).size() <= 1",message="more than one version is the default; make one default with `sluice update ENDPOINT VERSION --default`, which moves it [two_defaults]"
	// +kubebuilder:validation:XValidation:rule="self.map(v, has(v.trafficPercentile) && v.trafficPercentile >= 0.0 && v.trafficPercentile <= 100.0 ? int(v.trafficPercentile * 1000.0 + 0.5) : 0).sum() <= 100000",message="the claims add up to more than 100 per cent; lower a claim first; what no version claims goes to the default [percent_sum]"
	Versions []Version `json:"versions"`
	// Strategy that moves treatments up in steps; absent means that people do.
	Strategy *Strategy `json:"strategy,omitempty"`
}

// Mark is a hold or a lock: why, and who.
type Mark struct {
	// Reason in a few words.
	Reason string `json:"reason,omitempty"`
	// Actor who set it.
	Actor string `json:"actor,omitempty"`
}

// Change is one entry of the record: who changed what, why, on which evidence.
type Change struct {
	// ID makes a change idempotent: one that is known already does nothing.
	ID string `json:"id"`
	// Actor who made it.
	Actor string `json:"actor"`
	// Action is what was done, in one line: "promote pr-42-3f9c2ab".
	Action string `json:"action"`
	// Reason code: the rule that fired, or that it was asked for.
	Reason Reason `json:"reason"`
	// Message explains the reason.
	Message string `json:"message,omitempty"`
	// Evidence that it rests on.
	Evidence string `json:"evidence,omitempty"`
	// At is when it was made.
	// +kubebuilder:validation:Schemaless
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:Format=date-time
	At time.Time `json:"at"`
	// Digest covers the shift fields as this change left them.
	Digest string `json:"digest"`
}

// AuthMode says how scoring requests prove that they may.
type AuthMode string

// The auth modes.
const (
	AuthKey   AuthMode = "key"
	AuthToken AuthMode = "token"
	AuthNone  AuthMode = "none"
)

// Auth of an endpoint; absent means AuthKey.
type Auth struct {
	// Mode is key (the default) or none; token is refused until it is built, lest it mean an open endpoint.
	// +kubebuilder:validation:Enum=key;token;none
	// +kubebuilder:validation:XValidation:rule="self != 'token'",message="token authentication is not built yet, so it is refused rather than ignored; use mode key (the default) [not_supported_yet]"
	Mode AuthMode `json:"mode,omitempty"`
}

// Telemetry of an endpoint.
type Telemetry struct {
	// ApplicationInsights export.
	ApplicationInsights *ApplicationInsights `json:"applicationInsights,omitempty"`
}

// ApplicationInsights export.
type ApplicationInsights struct {
	// Enabled turns the export on.
	// +optional
	// +kubebuilder:validation:XValidation:rule="!self",message="export to Application Insights is not built yet, so it is refused rather than ignored; leave it out, the router's own metrics are on [not_supported_yet]"
	Enabled bool `json:"enabled"`
}

// Role of a version ("type" on the wire); empty is untyped.
type Role string

// The roles.
const (
	Untyped   Role = ""
	Control   Role = "control"
	Treatment Role = "treatment"
	Standby   Role = "standby"
)

// Version is one deployed model, code and environment. Image and source never
// change under a name; settings may, and replace its replicas.
//
// +kubebuilder:validation:XValidation:rule="!(has(self.replicas) && has(self.autoscale) && (!has(self.autoscale.enabled) || self.autoscale.enabled))",fieldPath=".replicas",message="a fixed number of replicas excludes autoscale; leave out replicas or autoscale [invalid]"
// +kubebuilder:validation:XValidation:rule="!(has(self.autoscale) && has(self.autoscale.enabled) && !self.autoscale.enabled && !has(self.replicas))",fieldPath=".autoscale.enabled",message="autoscale is off and no fixed number of replicas is given; set replicas, or leave enabled out [invalid]"
// +kubebuilder:validation:XValidation:rule="(has(self.source) && has(self.source.repositoryId) ? self.source.repositoryId : 0) == (has(oldSelf.source) && has(oldSelf.source.repositoryId) ? oldSelf.source.repositoryId : 0)",fieldPath=".source.repositoryId",message="the repository of a version never changes; deploy it as a version with a new name [version_exists]"
// +kubebuilder:validation:XValidation:rule="(has(self.source) && has(self.source.commit) ? self.source.commit : \"\") == (has(oldSelf.source) && has(oldSelf.source.commit) ? oldSelf.source.commit : \"\")",fieldPath=".source.commit",messageExpression="'the commit of a version never changes: it is ' + (has(oldSelf.source) && has(oldSelf.source.commit) ? oldSelf.source.commit : 'not given') + '; deploy it as a version with a new name [version_exists]'",message="the commit of a version never changes; deploy it as a version with a new name [version_exists]"
type Version struct {
	// Name of the version, unique in the endpoint.
	// +kubebuilder:validation:MaxLength=253
	// +kubebuilder:validation:XValidation:rule="self.size() <= 32 && self.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')",message="not a name for a version; use 1 to 32 lower-case letters, digits and hyphens, beginning with a letter and not ending with a hyphen [invalid]"
	Name string `json:"name"`
	// Type is the role: control, treatment, standby, or absent.
	// +kubebuilder:validation:Enum=control;treatment;standby
	Type Role `json:"type,omitempty"`
	// IsDefault gives the version what no version claims; at most one says so. None: the control, else the first.
	IsDefault bool `json:"isDefault,omitempty"`
	// CreatedAt is when the version was deployed.
	// +kubebuilder:validation:Schemaless
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:Format=date-time
	// +optional
	CreatedAt time.Time `json:"createdAt,omitzero"`
	// RetiredAt is when the version lost its last part in traffic; its fleet is deleted a minute later.
	// +kubebuilder:validation:Schemaless
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:Format=date-time
	// +optional
	RetiredAt time.Time `json:"retiredAt,omitzero"`
	// StandbySince is when a promotion made the version the standby.
	// +kubebuilder:validation:Schemaless
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:Format=date-time
	// +optional
	StandbySince time.Time `json:"standbySince,omitzero"`
	// StandbyReplicas are the version's ready replicas at that moment.
	StandbyReplicas int `json:"standbyReplicas,omitempty"`
	// TrafficPercentile is the claimed share; what no version claims goes to the default.
	// +optional
	TrafficPercentile Percent `json:"trafficPercentile"`
	// PlannedPercentile is a share to prepare replicas for before it is claimed; the next change of the claim ends it.
	PlannedPercentile Percent `json:"plannedPercentile,omitempty"`
	// Image by digest: NAME@sha256:HEX.
	// +kubebuilder:validation:MaxLength=1024
	// +kubebuilder:validation:XValidation:rule=`self.matches(r'^[^@\s]+@sha256:[0-9a-f]{64}$')`,message="not an image by digest; name the image by digest: NAME@sha256:HEX [invalid]"
	// +kubebuilder:validation:XValidation:rule="self == oldSelf",messageExpression="'the image of a version never changes: it is ' + oldSelf + '; deploy it as a version with a new name [version_exists]'",message="the image of a version never changes; deploy it as a version with a new name [version_exists]"
	Image string `json:"image"`
	// Source says where the version came from.
	// +optional
	Source Source `json:"source,omitzero"`
	// Description for people.
	Description string `json:"description,omitempty"`
	// Tags are free text.
	Tags map[string]string `json:"tags,omitempty"`
	// Properties are free text.
	Properties map[string]string `json:"properties,omitempty"`
	Settings   `json:",inline"`
}

// Settings are a version's changeable parts, shared with the manifest.
type Settings struct {
	// Resources of each replica.
	Resources *Resources `json:"resources,omitempty"`
	// Autoscale bounds and aims the number of replicas.
	Autoscale *Autoscale `json:"autoscale,omitempty"`
	// Replicas is a fixed number of them instead of autoscale.
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=1000
	Replicas *int `json:"replicas,omitempty"`
	// Concurrency of each replica.
	Concurrency *Concurrency `json:"concurrency,omitempty"`
	// ScoringTimeoutMs in milliseconds; 0 means DefaultScoringTimeoutMs.
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=86400000
	ScoringTimeoutMs int `json:"scoringTimeoutMs,omitempty"`
	// LivenessProbe of each replica.
	LivenessProbe *Probe `json:"livenessProbe,omitempty"`
	// Server behind the gate; absent means the runner's own.
	Server *Server `json:"server,omitempty"`
	// EnvironmentVariables by name: a literal value, or {secret, key}.
	EnvironmentVariables map[string]EnvValue `json:"environmentVariables,omitempty"`
	// DataCollection of requests and predictions.
	DataCollection *DataCollection `json:"dataCollection,omitempty"`
	// Template is a strategic-merge pod patch.
	// +kubebuilder:validation:Schemaless
	// +kubebuilder:validation:Type=object
	// +kubebuilder:pruning:PreserveUnknownFields
	Template map[string]any `json:"template,omitempty"`
}

// Source says where a version came from.
type Source struct {
	// RepositoryID is GitHub's number of the repository.
	RepositoryID int64 `json:"repositoryId,omitempty"`
	// PullRequest that deployed it.
	PullRequest int `json:"pullRequest,omitempty"`
	// Commit that it was made from.
	// +kubebuilder:validation:MaxLength=128
	Commit string `json:"commit,omitempty"`
	// RunID of the workflow.
	RunID int64 `json:"runId,omitempty"`
}

// Resources of a replica, as Kubernetes quantities.
type Resources struct {
	// CPU that is reserved.
	// +kubebuilder:validation:MaxLength=64
	// +kubebuilder:validation:XValidation:rule="self == '' || self.matches(r'^\\+?([0-9]+(\\.[0-9]*)?|\\.[0-9]+)([KMGTPE]i|[numkMGTPE]|[eE][-+]?[0-9]{1,2})?$')",message="not a quantity; write it as Kubernetes does: '500m' or '2' for cpu, '512Mi' or '4Gi' for memory [invalid]"
	CPU string `json:"cpu,omitempty"`
	// Memory that is reserved.
	// +kubebuilder:validation:MaxLength=64
	// +kubebuilder:validation:XValidation:rule="self == '' || self.matches(r'^\\+?([0-9]+(\\.[0-9]*)?|\\.[0-9]+)([KMGTPE]i|[numkMGTPE]|[eE][-+]?[0-9]{1,2})?$')",message="not a quantity; write it as Kubernetes does: '500m' or '2' for cpu, '512Mi' or '4Gi' for memory [invalid]"
	Memory string `json:"memory,omitempty"`
	// CPULimit is the most it may use.
	// +kubebuilder:validation:MaxLength=64
	// +kubebuilder:validation:XValidation:rule="self == '' || self.matches(r'^\\+?([0-9]+(\\.[0-9]*)?|\\.[0-9]+)([KMGTPE]i|[numkMGTPE]|[eE][-+]?[0-9]{1,2})?$')",message="not a quantity; write it as Kubernetes does: '500m' or '2' for cpu, '512Mi' or '4Gi' for memory [invalid]"
	CPULimit string `json:"cpuLimit,omitempty"`
	// MemoryLimit is the most it may use.
	// +kubebuilder:validation:MaxLength=64
	// +kubebuilder:validation:XValidation:rule="self == '' || self.matches(r'^\\+?([0-9]+(\\.[0-9]*)?|\\.[0-9]+)([KMGTPE]i|[numkMGTPE]|[eE][-+]?[0-9]{1,2})?$')",message="not a quantity; write it as Kubernetes does: '500m' or '2' for cpu, '512Mi' or '4Gi' for memory [invalid]"
	MemoryLimit string `json:"memoryLimit,omitempty"`
	// GPU count.
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=1000000
	GPU int `json:"gpu,omitempty"`
	// GPUResource is the name that GPUs are counted under.
	// +kubebuilder:validation:MaxLength=317
	// +kubebuilder:validation:XValidation:rule="self == '' || self.matches(r'^[a-z0-9]([-a-z0-9.]*[a-z0-9])?/[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$')",message="not the name of a resource; write it as Kubernetes does, with its domain, such as nvidia.com/gpu [invalid]"
	GPUResource string `json:"gpuResource,omitempty"`
	// Extended resources by name.
	// +kubebuilder:validation:MaxProperties=64
	Extended map[string]int64 `json:"extended,omitempty"`
}

// Autoscale bounds and aims the number of replicas. Absent fields mean the defaults.
//
// +kubebuilder:validation:XValidation:rule="!has(self.maxReplicas) || (has(self.minReplicas) ? self.minReplicas : 1) <= self.maxReplicas",fieldPath=".minReplicas",message="minReplicas is more than maxReplicas; raise maxReplicas or lower minReplicas [invalid]"
type Autoscale struct {
	// Enabled is the default; false needs a fixed number of replicas.
	Enabled *bool `json:"enabled,omitempty"`
	// MinReplicas, default 1.
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=1000
	MinReplicas *int `json:"minReplicas,omitempty"`
	// MaxReplicas, default 10, or MinReplicas if that is more.
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=1000
	MaxReplicas *int `json:"maxReplicas,omitempty"`
	// TargetUtilization in per cent of slots, default 70.
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=100
	TargetUtilization int `json:"targetUtilization,omitempty"`
	// RefreshPeriodSeconds, default 1.
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=86400
	RefreshPeriodSeconds int `json:"refreshPeriodSeconds,omitempty"`
}

// Concurrency of one replica and patience of its queue.
type Concurrency struct {
	// MaxConcurrentRequests are the slots of a replica, default 1.
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=512
	MaxConcurrentRequests int `json:"maxConcurrentRequests,omitempty"`
	// MaxQueueWaitMs in milliseconds, default 500.
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=86400000
	MaxQueueWaitMs int `json:"maxQueueWaitMs,omitempty"`
}

// Probe of liveness, as Kubernetes has it, with Azure ML's defaults.
type Probe struct {
	// InitialDelaySeconds, default 310.
	// +kubebuilder:validation:Minimum=1
	InitialDelaySeconds int `json:"initialDelaySeconds,omitempty"`
	// PeriodSeconds, default 10.
	// +kubebuilder:validation:Minimum=1
	PeriodSeconds int `json:"periodSeconds,omitempty"`
	// TimeoutSeconds, default 2.
	// +kubebuilder:validation:Minimum=1
	TimeoutSeconds int `json:"timeoutSeconds,omitempty"`
	// SuccessThreshold, default 1.
	// +kubebuilder:validation:Minimum=1
	SuccessThreshold int `json:"successThreshold,omitempty"`
	// FailureThreshold, default 3.
	// +kubebuilder:validation:Minimum=1
	FailureThreshold int `json:"failureThreshold,omitempty"`
}

// Server describes a custom server behind the gate; absent means the runner's own.
type Server struct {
	// Command that starts it.
	// +listType=atomic
	Command []string `json:"command,omitempty"`
	// Port it listens on.
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=65535
	Port int `json:"port,omitempty"`
	// ScorePath takes scoring requests.
	// +kubebuilder:validation:MaxLength=2048
	// +kubebuilder:validation:XValidation:rule="self == '' || self.startsWith('/')",message="not a path; begin it with / [invalid]"
	ScorePath string `json:"scorePath,omitempty"`
	// HealthPath answers 200 when the server is ready.
	// +kubebuilder:validation:MaxLength=2048
	// +kubebuilder:validation:XValidation:rule="self == '' || self.startsWith('/')",message="not a path; begin it with / [invalid]"
	HealthPath string `json:"healthPath,omitempty"`
}

// EnvValue is a literal value or a reference to a key of a secret. On the wire a
// literal is a plain string.
//
// +kubebuilder:validation:Type=object
type EnvValue struct {
	Value  string
	Secret string
	Key    string
}

// DataCollection of requests and predictions.
type DataCollection struct {
	// Enabled turns it on.
	// +optional
	// +kubebuilder:validation:XValidation:rule="!self",message="collecting model data is not built yet, so it is refused rather than ignored; leave it out [not_supported_yet]"
	Enabled bool `json:"enabled"`
}

// GateMode says what a step needs to end.
type GateMode string

// The gates.
const (
	GateVerdict GateMode = "verdict"
	GateNone    GateMode = "none"
)

// OnDeadline says what happens to a treatment still undecided at its deadline.
type OnDeadline string

// What to do at the deadline.
const (
	DeadlineHold     OnDeadline = "hold"
	DeadlineRollback OnDeadline = "rollback"
)

// Strategy moves a treatment up in steps while evidence allows.
//
// +kubebuilder:validation:XValidation:rule="(has(self.r1) && self.r1 != 0.0 ? self.r1 : 2.0) > (has(self.r0) && self.r0 != 0.0 ? self.r0 : 1.0)",fieldPath=".r1",message="r1 is not above r0; use a ratio above r0; the defaults are r0 1 and r1 2 [invalid]"
type Strategy struct {
	// Steps upwards; none means 1, 10 and 50 per cent. They are one plan, replaced as a whole.
	// +kubebuilder:validation:MaxItems=50
	// +listType=atomic
	// +kubebuilder:validation:XValidation:rule="self.map(s, s.percent).isSorted() && self.all(s, self.exists_one(t, t.percent == s.percent))",message="a step is not above the step before it; order the steps upwards [invalid]"
	Steps []Step `json:"steps,omitempty"`
	// Gate is verdict (the default), or none: advance and promote on requests and time alone.
	// +kubebuilder:validation:Enum=verdict;none
	Gate GateMode `json:"gate,omitempty"`
	// Alpha bounds P(ever rolling back a treatment that is not worse); default 0.01.
	// +kubebuilder:validation:XValidation:rule="self >= 1e-9 && self <= 0.5",message="not between 1e-09 and 0.5; use a number from 1e-09 to 0.5 [invalid]"
	Alpha float64 `json:"alpha,omitempty"`
	// Beta bounds P(ever promoting one ≥ R1 times worse and bad more often than MaxBadPercent); default 0.05.
	// +kubebuilder:validation:XValidation:rule="self >= 1e-9 && self <= 0.5",message="not between 1e-09 and 0.5; use a number from 1e-09 to 0.5 [invalid]"
	Beta float64 `json:"beta,omitempty"`
	// R0 is the tolerated ratio of bad rates; default 1.
	// +kubebuilder:validation:XValidation:rule="self >= 1.0 && self <= 1000.0",message="not between 1 and 1000; use a number from 1 to 1000 [invalid]"
	R0 float64 `json:"r0,omitempty"`
	// R1 is the ratio to be excluded before promotion; default 2.
	// +kubebuilder:validation:XValidation:rule="self >= 1.0 && self <= 1000.0",message="not between 1 and 1000; use a number from 1 to 1000 [invalid]"
	R1 float64 `json:"r1,omitempty"`
	// MaxBadPercent is a rate of bad requests so low that a treatment below it may be promoted; default 1.
	// +kubebuilder:validation:XValidation:rule="self > 0.0 && self <= 100.0",message="not above 0 and up to 100; use per cent above 0 and up to 100; 1 is the default [invalid]"
	MaxBadPercent *float64 `json:"maxBadPercent,omitempty"`
	// Deadline of a treatment, such as 24h (the default).
	// +kubebuilder:validation:XValidation:rule="self.matches('^[-+]?(0|(([0-9]+([.][0-9]*)?|[.][0-9]+)(ns|us|µs|μs|ms|s|m|h))+)$') && duration(self) > duration('0s')",message="not a duration above zero; use a duration such as '24h' [invalid]"
	Deadline *Duration `json:"deadline,omitempty"`
	// OnDeadline is hold (the default) or rollback.
	// +kubebuilder:validation:Enum=hold;rollback
	OnDeadline OnDeadline `json:"onDeadline,omitempty"`
	// RetainFor is how long the standby stays, such as 24h (the default).
	// +kubebuilder:validation:XValidation:rule="self.matches('^[-+]?(0|(([0-9]+([.][0-9]*)?|[.][0-9]+)(ns|us|µs|μs|ms|s|m|h))+)$') && duration(self) >= duration('0s')",message="not a duration, or a negative one; use a duration such as '24h', or '0s' for no standby [invalid]"
	RetainFor *Duration `json:"retainFor,omitempty"`
}

// Step of a strategy.
type Step struct {
	// Percent of traffic that the treatment gets.
	// +kubebuilder:validation:XValidation:rule="self > 0.0",message="not above 0 and up to 100; use a number above 0 and up to 100 [invalid]"
	Percent Percent `json:"percent"`
	// MinRequests of the treatment before the step may end, default 100.
	// +kubebuilder:validation:Minimum=0
	MinRequests *int64 `json:"minRequests,omitempty"`
	// MinDuration before the step may end.
	// +kubebuilder:validation:XValidation:rule="self.matches('^[-+]?(0|(([0-9]+([.][0-9]*)?|[.][0-9]+)(ns|us|µs|μs|ms|s|m|h))+)$') && duration(self) >= duration('0s')",message="not a duration, or a negative one; use 0s or more, such as '10m' [invalid]"
	MinDuration Duration `json:"minDuration,omitempty"`
}

// Status is what the control role reports.
type Status struct {
	// ObservedGeneration of the spec that the status is about.
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
	// Summary is the endpoint in one line.
	Summary *Summary `json:"summary,omitempty"`
	// Versions as they are.
	// +kubebuilder:validation:MaxItems=16
	// +listType=atomic
	Versions []VersionStatus `json:"versions,omitempty"`
	// Rollout is where the strategy stands.
	Rollout *RolloutStatus `json:"rollout,omitempty"`
	// History is the record of changes that outlives spec.changes, newest last, at most MaxHistory.
	// +listType=atomic
	History []Change `json:"history,omitempty"`
	// Conditions say whether the endpoint serves.
	// +listType=map
	// +listMapKey=type
	Conditions []Condition `json:"conditions,omitempty"`
	// ScoringURI is where requests go.
	ScoringURI string `json:"scoringUri,omitempty"`
	// Demand is how many slots the endpoint's traffic wants at present, a decimal number.
	Demand string `json:"demand,omitempty"`
	// Traffic is what routers measured lately, written a few times a minute at the most.
	Traffic *TrafficStatus `json:"traffic,omitempty"`
}

// TrafficStatus is what routers measured lately. It is for people: nothing is decided by it.
type TrafficStatus struct {
	// At is when it was measured.
	// +kubebuilder:validation:Schemaless
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:Format=date-time
	At time.Time `json:"at"`
	// Seconds up to then that the counts are over.
	Seconds int `json:"seconds"`
	// Versions that had requests.
	// +kubebuilder:validation:MaxItems=16
	// +listType=atomic
	Versions []VersionTraffic `json:"versions,omitempty"`
}

// VersionTraffic is one version's.
type VersionTraffic struct {
	// Name of the version.
	Name string `json:"name"`
	// Requests that got an answer or were refused.
	Requests int64 `json:"requests"`
	// Failed of them, with status 400 or above or cut off.
	Failed int64 `json:"failed"`
	// P50 of the durations over the last 10 s in milliseconds, at the router where it was longest; absent without requests.
	P50 string `json:"p50Milliseconds,omitempty"`
	// P99 in the same way.
	P99 string `json:"p99Milliseconds,omitempty"`
}

// Summary is the endpoint in one line of a table. What the spec says alone, such as
// the control, is read from there.
type Summary struct {
	// Treatments by name, oldest first, with commas between.
	Treatments string `json:"treatments,omitempty"`
	// Shares that the treatments get, in per cent and in the same order.
	Shares string `json:"shares,omitempty"`
	// Ready replicas of all that there are, over the versions with a part in traffic: "3/4".
	Ready string `json:"ready,omitempty"`
	// Reason of the most urgent news; absent when all is well.
	Reason Reason `json:"reason,omitempty"`
}

// VersionState is a version's readiness in one word.
type VersionState string

// The states.
const (
	StateStarting VersionState = "starting"
	StateReady    VersionState = "ready"
	StateFailed   VersionState = "failed"
	StateRetired  VersionState = "retired"
)

// VersionStatus is what is known of one version.
type VersionStatus struct {
	// Name of the version.
	Name string `json:"name"`
	// State is starting, ready, failed or retired.
	State VersionState `json:"state,omitempty"`
	// Reason code for the state.
	Reason Reason `json:"reason,omitempty"`
	// Message explains the reason.
	Message string `json:"message,omitempty"`
	// Replicas that there are.
	Replicas int `json:"replicas"`
	// ReadyReplicas of them.
	ReadyReplicas int `json:"readyReplicas"`
	// OutdatedReplicas serve although settings that replace replicas have changed since they started.
	OutdatedReplicas int `json:"outdatedReplicas,omitempty"`
	// EffectivePercent is the share that the version gets.
	EffectivePercent Percent `json:"effectivePercent"`
	// PlannedPercent is the share that replicas are prepared for.
	PlannedPercent Percent `json:"plannedPercent"`
}

// RolloutStatus is where the strategy stands.
type RolloutStatus struct {
	// Treatment the strategy runs on.
	Treatment string `json:"treatment,omitempty"`
	// Step is its index in the steps.
	Step int `json:"step"`
	// StepPercent is the claim at which the step began.
	StepPercent Percent `json:"stepPercent,omitempty"`
	// StepStarted is when the step began.
	// +kubebuilder:validation:Schemaless
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:Format=date-time
	// +optional
	StepStarted time.Time `json:"stepStarted,omitzero"`
	// StepRequests are the treatment's requests at that moment.
	StepRequests string `json:"stepRequests,omitempty"`
	// Started is when the treatment did.
	// +kubebuilder:validation:Schemaless
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:Format=date-time
	// +optional
	Started time.Time `json:"started,omitzero"`
	// Reason says why it does not move, or the rule that moved it last.
	Reason Reason `json:"reason,omitempty"`
	// Message explains the reason.
	Message string `json:"message,omitempty"`
	// Evidence per treatment, numbers as strings.
	// +listType=atomic
	Evidence []EvidenceStatus `json:"evidence,omitempty"`
}

// EvidenceStatus is one treatment's evidence for people, and Saved the exact state.
type EvidenceStatus struct {
	// Treatment it is about.
	Treatment string `json:"treatment"`
	// Key of what is compared: a changed one starts afresh.
	Key string `json:"key"`
	// Verdict is worse, not worse, undecided or unknown.
	Verdict string `json:"verdict"`
	// Requests of the treatment that were judged.
	Requests string `json:"requests"`
	// Bad ones of them.
	Bad string `json:"bad"`
	// ControlRequests that were judged.
	ControlRequests string `json:"controlRequests"`
	// ControlBad ones of them.
	ControlBad string `json:"controlBad"`
	// LogEvidenceWorse is the logarithm of the evidence that the treatment is worse.
	LogEvidenceWorse string `json:"logEvidenceWorse"`
	// LogEvidenceFine is the logarithm of the evidence that it is not.
	LogEvidenceFine string `json:"logEvidenceNotWorse"`
	// BadUpperBound on the treatment's rate of bad requests, in per cent.
	BadUpperBound string `json:"badUpperBoundPercent"`
	// Saved is the exact state.
	Saved string `json:"saved,omitempty"`
}

// Condition as Kubernetes has it.
type Condition struct {
	// Type of the condition.
	Type string `json:"type"`
	// Status is True, False or Unknown.
	Status string `json:"status"`
	// Reason code.
	Reason Reason `json:"reason"`
	// Message explains the reason.
	Message string `json:"message,omitempty"`
	// LastTransitionTime is when the status last changed.
	// +kubebuilder:validation:Schemaless
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:Format=date-time
	// +optional
	LastTransitionTime time.Time `json:"lastTransitionTime,omitzero"`
	// ObservedGeneration of the spec that it is about.
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
}
