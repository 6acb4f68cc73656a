// Package rollout is the domain of Sluice: endpoints, their versions, the shares
// of traffic these claim, and the transitions that move traffic. It is pure: no
// files, no network, no clock of its own.
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
}

// Key is the namespace and name of an endpoint.
type Key struct{ Namespace, Name string }

func (k Key) String() string { return k.Namespace + "/" + k.Name }

// Key of e.
func (e *Endpoint) Key() Key { return Key{e.Metadata.Namespace, e.Metadata.Name} }

// Spec is what people and the engine ask for.
type Spec struct {
	// Repositories are GitHub repository ids whose workflows and comments may act on the endpoint.
	Repositories []int64 `json:"repositories,omitempty"`
	// Changes are the newest changes of shift fields, oldest first, at most MaxChanges.
	Changes []Change `json:"changes,omitempty"`
	// Hold, if present, stops advancing and promoting, never the automatic rollback.
	Hold *Mark `json:"hold,omitempty"`
	// Lock, if present, refuses all but Rollback, Hold and Unlock.
	Lock      *Mark      `json:"lock,omitempty"`
	Auth      *Auth      `json:"auth,omitempty"`
	Telemetry *Telemetry `json:"telemetry,omitempty"`
	Versions  []Version  `json:"versions"`
	Strategy  *Strategy  `json:"strategy,omitempty"`
}

// Mark is a hold or a lock: why, and who.
type Mark struct {
	Reason string `json:"reason,omitempty"`
	Actor  string `json:"actor,omitempty"`
}

// Change is one entry of the record: who changed what, why, on which evidence.
type Change struct {
	// ID makes a change idempotent: one that is known already does nothing.
	ID    string `json:"id"`
	Actor string `json:"actor"`
	// Action is what was done, in one line: "promote pr-42-3f9c2ab".
	Action   string    `json:"action"`
	Reason   Reason    `json:"reason"`
	Message  string    `json:"message,omitempty"`
	Evidence string    `json:"evidence,omitempty"`
	At       time.Time `json:"at"`
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
	Mode AuthMode `json:"mode,omitempty"`
}

// Telemetry of an endpoint.
type Telemetry struct {
	ApplicationInsights *ApplicationInsights `json:"applicationInsights,omitempty"`
}

// ApplicationInsights export.
type ApplicationInsights struct {
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
type Version struct {
	Name      string    `json:"name"`
	Type      Role      `json:"type,omitempty"`
	IsDefault bool      `json:"isDefault,omitempty"`
	CreatedAt time.Time `json:"createdAt,omitzero"`
	// RetiredAt is when the version lost its last part in traffic; its fleet is deleted a minute later.
	RetiredAt time.Time `json:"retiredAt,omitzero"`
	// StandbySince is when a promotion made the version the standby; StandbyReplicas its ready replicas then.
	StandbySince    time.Time `json:"standbySince,omitzero"`
	StandbyReplicas int       `json:"standbyReplicas,omitempty"`
	// TrafficPercentile is the claimed share; what no version claims goes to the default.
	TrafficPercentile Percent `json:"trafficPercentile"`
	// PlannedPercentile is a share to prepare replicas for before it is claimed; the next change of the claim ends it.
	PlannedPercentile Percent `json:"plannedPercentile,omitempty"`
	// Image by digest: NAME@sha256:HEX.
	Image       string            `json:"image"`
	Source      Source            `json:"source,omitzero"`
	Description string            `json:"description,omitempty"`
	Tags        map[string]string `json:"tags,omitempty"`
	Properties  map[string]string `json:"properties,omitempty"`
	Settings    `json:",inline"`
}

// Settings are a version's changeable parts, shared with the manifest.
type Settings struct {
	Resources   *Resources   `json:"resources,omitempty"`
	Autoscale   *Autoscale   `json:"autoscale,omitempty"`
	Replicas    *int         `json:"replicas,omitempty"`
	Concurrency *Concurrency `json:"concurrency,omitempty"`
	// ScoringTimeoutMs in milliseconds; 0 means DefaultScoringTimeoutMs.
	ScoringTimeoutMs     int                 `json:"scoringTimeoutMs,omitempty"`
	LivenessProbe        *Probe              `json:"livenessProbe,omitempty"`
	Server               *Server             `json:"server,omitempty"`
	EnvironmentVariables map[string]EnvValue `json:"environmentVariables,omitempty"`
	DataCollection       *DataCollection     `json:"dataCollection,omitempty"`
	// Template is a strategic-merge pod patch.
	Template map[string]any `json:"template,omitempty"`
}

// Source says where a version came from.
type Source struct {
	RepositoryID int64  `json:"repositoryId,omitempty"`
	PullRequest  int    `json:"pullRequest,omitempty"`
	Commit       string `json:"commit,omitempty"`
	RunID        int64  `json:"runId,omitempty"`
}

// Resources of a replica, as Kubernetes quantities.
type Resources struct {
	CPU         string           `json:"cpu,omitempty"`
	Memory      string           `json:"memory,omitempty"`
	CPULimit    string           `json:"cpuLimit,omitempty"`
	MemoryLimit string           `json:"memoryLimit,omitempty"`
	GPU         int              `json:"gpu,omitempty"`
	GPUResource string           `json:"gpuResource,omitempty"`
	Extended    map[string]int64 `json:"extended,omitempty"`
}

// Autoscale bounds and aims the number of replicas. Absent fields mean the defaults.
type Autoscale struct {
	Enabled              *bool `json:"enabled,omitempty"`
	MinReplicas          *int  `json:"minReplicas,omitempty"`
	MaxReplicas          *int  `json:"maxReplicas,omitempty"`
	TargetUtilization    int   `json:"targetUtilization,omitempty"`    // per cent of slots, default 70
	RefreshPeriodSeconds int   `json:"refreshPeriodSeconds,omitempty"` // default 1
}

// Concurrency of one replica and patience of its queue.
type Concurrency struct {
	MaxConcurrentRequests int `json:"maxConcurrentRequests,omitempty"` // slots, default 1
	MaxQueueWaitMs        int `json:"maxQueueWaitMs,omitempty"`        // milliseconds, default 500
}

// Probe of liveness, as Kubernetes has it, with Azure ML's defaults.
type Probe struct {
	InitialDelaySeconds int `json:"initialDelaySeconds,omitempty"` // default 310
	PeriodSeconds       int `json:"periodSeconds,omitempty"`       // default 10
	TimeoutSeconds      int `json:"timeoutSeconds,omitempty"`      // default 2
	SuccessThreshold    int `json:"successThreshold,omitempty"`    // default 1
	FailureThreshold    int `json:"failureThreshold,omitempty"`    // default 3
}

// Server describes a custom server behind the gate; absent means the runner's own.
type Server struct {
	Command    []string `json:"command,omitempty"`
	Port       int      `json:"port,omitempty"`
	ScorePath  string   `json:"scorePath,omitempty"`
	HealthPath string   `json:"healthPath,omitempty"`
}

// EnvValue is a literal value or a reference to a key of a secret. On the wire a
// literal is a plain string.
type EnvValue struct {
	Value  string
	Secret string
	Key    string
}

// DataCollection of requests and predictions.
type DataCollection struct {
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
type Strategy struct {
	Steps []Step   `json:"steps,omitempty"`
	Gate  GateMode `json:"gate,omitempty"`
	// Alpha bounds P(ever rolling back a treatment that is not worse).
	Alpha float64 `json:"alpha,omitempty"`
	// Beta bounds P(ever promoting one ≥ R1 times worse and bad more often than MaxBadPercent).
	Beta          float64    `json:"beta,omitempty"`
	R0            float64    `json:"r0,omitempty"`
	R1            float64    `json:"r1,omitempty"`
	MaxBadPercent *float64   `json:"maxBadPercent,omitempty"`
	Deadline      *Duration  `json:"deadline,omitempty"`
	OnDeadline    OnDeadline `json:"onDeadline,omitempty"`
	RetainFor     *Duration  `json:"retainFor,omitempty"`
}

// Step of a strategy. Zero MinRequests means the default of 100.
type Step struct {
	Percent     Percent  `json:"percent"`
	MinRequests *int64   `json:"minRequests,omitempty"`
	MinDuration Duration `json:"minDuration,omitempty"`
}

// Status is what the control role reports.
type Status struct {
	ObservedGeneration int64           `json:"observedGeneration,omitempty"`
	Versions           []VersionStatus `json:"versions,omitempty"`
	Rollout            *RolloutStatus  `json:"rollout,omitempty"`
	// History is the record of changes that outlives spec.changes, newest last, at most MaxHistory.
	History    []Change    `json:"history,omitempty"`
	Conditions []Condition `json:"conditions,omitempty"`
	ScoringURI string      `json:"scoringUri,omitempty"`
	// Demand is how many slots the endpoint's traffic wants at present, a decimal number.
	Demand string `json:"demand,omitempty"`
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
	Name          string       `json:"name"`
	State         VersionState `json:"state,omitempty"`
	Reason        Reason       `json:"reason,omitempty"`
	Message       string       `json:"message,omitempty"`
	Replicas      int          `json:"replicas"`
	ReadyReplicas int          `json:"readyReplicas"`
	// OutdatedReplicas serve although settings that replace replicas have changed since they started.
	OutdatedReplicas int     `json:"outdatedReplicas,omitempty"`
	EffectivePercent Percent `json:"effectivePercent"`
	PlannedPercent   Percent `json:"plannedPercent"`
}

// RolloutStatus is where the strategy stands.
type RolloutStatus struct {
	// Treatment the strategy runs on; Step is its index in the steps.
	Treatment string `json:"treatment,omitempty"`
	Step      int    `json:"step"`
	// StepPercent is the claim at which the step began.
	StepPercent Percent `json:"stepPercent,omitempty"`
	// StepStarted and StepRequests are when the step began and the treatment's requests at that moment.
	StepStarted  time.Time `json:"stepStarted,omitzero"`
	StepRequests string    `json:"stepRequests,omitempty"`
	Started      time.Time `json:"started,omitzero"`
	// Reason says why it does not move, or the rule that moved it last.
	Reason  Reason `json:"reason,omitempty"`
	Message string `json:"message,omitempty"`
	// Evidence per treatment, numbers as strings.
	Evidence []EvidenceStatus `json:"evidence,omitempty"`
}

// EvidenceStatus is one treatment's evidence for people, and Saved the exact state.
type EvidenceStatus struct {
	Treatment        string `json:"treatment"`
	Key              string `json:"key"`
	Verdict          string `json:"verdict"`
	Requests         string `json:"requests"`
	Bad              string `json:"bad"`
	ControlRequests  string `json:"controlRequests"`
	ControlBad       string `json:"controlBad"`
	LogEvidenceWorse string `json:"logEvidenceWorse"`
	LogEvidenceFine  string `json:"logEvidenceNotWorse"`
	BadUpperBound    string `json:"badUpperBoundPercent"`
	Saved            string `json:"saved,omitempty"`
}

// Condition as Kubernetes has it.
type Condition struct {
	Type               string    `json:"type"`
	Status             string    `json:"status"`
	Reason             Reason    `json:"reason"`
	Message            string    `json:"message,omitempty"`
	LastTransitionTime time.Time `json:"lastTransitionTime,omitzero"`
	ObservedGeneration int64     `json:"observedGeneration,omitempty"`
}
