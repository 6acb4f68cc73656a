package rollout

// Reason is a stable code for why something was done, refused or waits. One list
// serves every surface; docs/reasons.md is generated from it.
type Reason string

// The reasons; ReasonText explains each.
const (
	// Refusals of a spec or a request.
	ReasonInvalid         Reason = "invalid"
	ReasonUnknownField    Reason = "unknown_field"
	ReasonNotSupportedYet Reason = "not_supported_yet"
	ReasonVersionExists   Reason = "version_exists"
	ReasonUnknownVersion  Reason = "unknown_version"
	ReasonUnknownEndpoint Reason = "unknown_endpoint"
	ReasonTooManyVersions Reason = "too_many_versions"
	ReasonPercentInvalid  Reason = "percent_invalid"
	ReasonPercentSum      Reason = "percent_sum"
	ReasonTwoControls     Reason = "two_controls"
	ReasonTwoDefaults     Reason = "two_defaults"
	ReasonTwoStandbys     Reason = "two_standbys"
	ReasonNotTreatment    Reason = "not_treatment"
	ReasonNoStandby       Reason = "no_standby"
	ReasonNoControl       Reason = "no_control"
	ReasonLastVersion     Reason = "last_version"
	ReasonNewDefault      Reason = "new_default_needed"
	ReasonJudgementRuns   Reason = "judgement_running"
	ReasonLocked          Reason = "locked"
	ReasonHeld            Reason = "held"
	ReasonChangesFull     Reason = "changes_full"
	ReasonNotEnoughReady  Reason = "not_enough_ready"
	ReasonConflict        Reason = "conflict"
	ReasonNotBound        Reason = "not_bound"
	ReasonDenied          Reason = "denied"
	ReasonTooOld          Reason = "too_old"
	ReasonVersionChanged  Reason = "version_changed"
	ReasonSecretFile      Reason = "secret_file"
	ReasonUnsafeFile      Reason = "unsafe_file"
	ReasonTooManyModels   Reason = "too_many_models"
	ReasonInternal        Reason = "internal"

	// Why the strategy moved or waits.
	ReasonStepComplete  Reason = "step_complete"
	ReasonStepStarted   Reason = "step_started"
	ReasonStepRunning   Reason = "step_running"
	ReasonNotWorse      Reason = "not_worse"
	ReasonBounded       Reason = "bounded"
	ReasonWorse         Reason = "worse"
	ReasonNoGate        Reason = "no_gate"
	ReasonUndecided     Reason = "undecided"
	ReasonUnknown       Reason = "evidence_unavailable"
	ReasonNoShare       Reason = "no_share"
	ReasonQueued        Reason = "queued"
	ReasonCapacity      Reason = "waiting_for_capacity"
	ReasonDeadline      Reason = "deadline"
	ReasonRetainExpired Reason = "retain_expired"
	ReasonForeignEdit   Reason = "foreign_edit"
	ReasonRequested     Reason = "requested"
	ReasonSuperseded    Reason = "superseded"
	ReasonNoChange      Reason = "no_change"

	// The state of replicas.
	ReasonStarting      Reason = "replicas_starting"
	ReasonInitFailed    Reason = "init_failed"
	ReasonCrashed       Reason = "replica_crashed"
	ReasonImageMissing  Reason = "image_missing"
	ReasonProbeFailed   Reason = "probe_failed"
	ReasonSmokeFailed   Reason = "smoke_test_failed"
	ReasonReadyTimeout  Reason = "not_ready_in_time"
	ReasonFallback      Reason = "share_fell_back"
	ReasonNothingServes Reason = "nothing_serves"

	// A router's answers.
	ReasonUnauthorized    Reason = "unauthorized"
	ReasonBodyTooLarge    Reason = "body_too_large"
	ReasonScriptError     Reason = "script_error"
	ReasonReplicaFailed   Reason = "replica_failed"
	ReasonQueueTimeout    Reason = "queue_timeout"
	ReasonQueueFull       Reason = "queue_full"
	ReasonNoReadyReplicas Reason = "no_ready_replicas"
	ReasonScoringTimeout  Reason = "scoring_timeout"
	ReasonClientGone      Reason = "client_gone"
	ReasonBusy            Reason = "busy"
)
