// Package cluster has the ports through which Sluice meets what it runs on: the
// store of endpoints, the fleets of replicas, the journal of commands and the
// keys. Backends stand in folders of their own (local: this machine; memory:
// tests) and pass one conformance suite, clustertest.
package cluster

import (
	"context"
	"errors"
	"io"
	"time"

	"github.com/sluice-dev/sluice/pkg/access"
	"github.com/sluice-dev/sluice/rollout"
)

// Errors that every backend wraps.
var (
	// ErrNotFound: no such endpoint, fleet, entry or keys.
	ErrNotFound = errors.New("not found")
	// ErrConflict: the resource version is not the stored one; read and try again.
	ErrConflict = errors.New("conflict")
	// ErrExists: there is one under that name already.
	ErrExists = errors.New("already exists")
)

// Reader reads endpoints. Safe for concurrent use; what it returns is the caller's own.
type Reader interface {
	// Get fails with ErrNotFound.
	Get(ctx context.Context, key rollout.Key) (*rollout.Endpoint, error)
	// List is sorted by namespace, then name.
	List(ctx context.Context) ([]*rollout.Endpoint, error)
	// Watch sends the key of each endpoint that is there, then of each that changes
	// or goes. Bursts are merged: after the last write of an endpoint its key comes
	// at least once more. The channel is closed when ctx ends.
	Watch(ctx context.Context) (<-chan rollout.Key, error)
}

// Writer changes endpoints under optimistic concurrency.
type Writer interface {
	// Create stores a new endpoint and returns it with UID, generation 1 and resource
	// version; ErrExists if the name is taken. Names and spec must be valid, else *rollout.Error
	// values. Its status is not looked at: a new endpoint has none.
	Create(ctx context.Context, e *rollout.Endpoint) (*rollout.Endpoint, error)
	// Update stores the spec of e (its status is not looked at) if e's resource version is
	// the stored one, else ErrConflict; ErrNotFound if it is gone. An invalid spec, or one
	// that changes what never changes, is refused with *rollout.Error values and nothing is stored.
	// It returns what is stored now. A spec that differs in nothing keeps resource version and generation.
	Update(ctx context.Context, e *rollout.Endpoint) (*rollout.Endpoint, error)
	// UpdateStatus stores the status of e (its spec is not looked at) in the same way; the generation stays.
	UpdateStatus(ctx context.Context, e *rollout.Endpoint) (*rollout.Endpoint, error)
	// Delete removes the endpoint; ErrNotFound if there is none. An empty resource version matches any.
	Delete(ctx context.Context, key rollout.Key, resourceVersion string) error
}

// Store is both.
type Store interface {
	Reader
	Writer
}

// FleetKey names the replicas of one version.
type FleetKey struct {
	Endpoint rollout.Key
	Version  string
}

func (k FleetKey) String() string { return k.Endpoint.String() + "/" + k.Version }

// FleetSpec is what the replicas of a version are to be. It has no count: only
// the autoscaler sets that.
type FleetSpec struct {
	Key FleetKey
	// Revision changes when replicas must be replaced (rollout.Version.Revision).
	Revision string
	// Image by digest: NAME@sha256:HEX.
	Image    string
	Settings rollout.Settings
}

// ReplicaState is where a replica stands in its life.
type ReplicaState string

// The states of a replica.
const (
	// ReplicaStarting: not ready yet for the first time, or again after a restart.
	ReplicaStarting ReplicaState = "starting"
	ReplicaReady    ReplicaState = "ready"
	// ReplicaUnready: was ready, and its health check fails now; it may still answer.
	ReplicaUnready ReplicaState = "unready"
	// ReplicaTerminating: finishes what it has; gets nothing new.
	ReplicaTerminating ReplicaState = "terminating"
	// ReplicaFailed: its process ended and the next start waits.
	ReplicaFailed ReplicaState = "failed"
)

// Replica is one running container or process of a version.
type Replica struct {
	Name     string       `json:"name"`
	Revision string       `json:"revision"`
	State    ReplicaState `json:"state"`
	// Address is host:port of its gate; empty while it has none.
	Address  string `json:"address,omitempty"`
	Restarts int    `json:"restarts,omitempty"`
	// Reason and Message explain starting, unready and failed.
	Reason  rollout.Reason `json:"reason,omitempty"`
	Message string         `json:"message,omitempty"`
	// ReadySince is zero unless ready.
	ReadySince time.Time `json:"readySince,omitzero"`
}

// FleetState is what is known of a version's replicas.
type FleetState struct {
	Key FleetKey `json:"key"`
	// Revision that was applied last.
	Revision string `json:"revision"`
	// Desired replicas, as scaled last.
	Desired  int       `json:"desired"`
	Replicas []Replica `json:"replicas"`
	// ScaledBy names what else sets the count, such as "HorizontalPodAutoscaler fraud"; Sluice
	// then leaves it alone.
	ScaledBy string `json:"scaledBy,omitempty"`
	// Reason and Message explain why the fleet as a whole cannot run, such as a missing image.
	Reason  rollout.Reason `json:"reason,omitempty"`
	Message string         `json:"message,omitempty"`
}

// Count of replicas in that state.
func (f *FleetState) Count(state ReplicaState) int {
	n := 0
	for i := range f.Replicas {
		if f.Replicas[i].State == state {
			n++
		}
	}
	return n
}

// Full says why the cluster has no room for a replica that was asked for; empty if it has.
func (f *FleetState) Full() string {
	for i := range f.Replicas {
		if r := &f.Replicas[i]; r.State == ReplicaStarting && r.Reason == rollout.ReasonClusterFull {
			return r.Message
		}
	}
	return ""
}

// FleetWriter makes and ends fleets; the control role has it.
type FleetWriter interface {
	// Apply makes the version's fleet be as spec. A new fleet has one replica. A changed revision
	// replaces replicas one by one, each old one drained after a new one is ready. It does not wait for any of that.
	Apply(ctx context.Context, spec FleetSpec) error
	// Delete drains and removes the fleet; one that is gone already is no error. It does not wait:
	// the fleet is seen with Desired 0 until its last replica is gone. Apply in that time makes it anew.
	Delete(ctx context.Context, key FleetKey) error
}

// Scaler sets replica counts; only the autoscaler has it.
type Scaler interface {
	// Scale fails with ErrNotFound if there is no such fleet, and refuses a negative count.
	Scale(ctx context.Context, key FleetKey, replicas int) error
}

// FleetReader sees all fleets.
type FleetReader interface {
	// Fleets is a snapshot sorted by key.
	Fleets(ctx context.Context) ([]FleetState, error)
	// WatchFleets sends at once and whenever something changed; bursts are merged. Closed when ctx ends.
	WatchFleets(ctx context.Context) (<-chan struct{}, error)
}

// LogOptions choose what of a version's logs is read.
type LogOptions struct {
	Follow bool
	// Tail is how many last lines of each replica to begin with; 0 means all that is kept.
	Tail int
}

// LogReader reads what replicas wrote.
type LogReader interface {
	// Logs fails with ErrNotFound for a version that never had replicas. Each line begins with the
	// replica's name and a space. While following, replicas that come later are read too; the
	// reader ends when ctx ends or it is closed.
	Logs(ctx context.Context, key FleetKey, o LogOptions) (io.ReadCloser, error)
}

// Fleet is all of it.
type Fleet interface {
	FleetWriter
	Scaler
	FleetReader
	LogReader
}

// EntryState is where a command stands.
type EntryState string

// The states of a journal entry.
const (
	EntryPending EntryState = "pending"
	EntryDone    EntryState = "done"
	EntryRefused EntryState = "refused"
)

// Entry is a command that came from outside, recorded before it is carried out.
type Entry struct {
	// Name is made from the command's origin (c-<comment id>-<line>, …), so that claiming it is atomic.
	Name     string      `json:"name"`
	Endpoint rollout.Key `json:"endpoint"`
	// Command as written, Actor who wrote it, Origin where a reply goes (free form for the intake).
	Command string            `json:"command"`
	Actor   string            `json:"actor"`
	Origin  map[string]string `json:"origin,omitempty"`
	At      time.Time         `json:"at"`
	State   EntryState        `json:"state"`
	// Reason and Result say how it ended.
	Reason rollout.Reason `json:"reason,omitempty"`
	Result string         `json:"result,omitempty"`
}

// Journal records commands durably; an entry that Claim returned true for is on disk.
type Journal interface {
	// Claim records the entry as pending, whatever its state, and sets At if it is zero. False means
	// that the name is taken: the stored entry is returned.
	Claim(ctx context.Context, e Entry) (Entry, bool, error)
	// Finish sets state, reason and result of an entry; ErrNotFound if there is none.
	Finish(ctx context.Context, name string, state EntryState, reason rollout.Reason, result string) error
	// Entries are all kept ones, oldest first.
	Entries(ctx context.Context) ([]Entry, error)
	// Prune removes entries from before that moment, pending ones too.
	Prune(ctx context.Context, before time.Time) error
}

// Keys holds each endpoint's keys.
type Keys interface {
	// Keys fails with ErrNotFound before EnsureKeys.
	Keys(ctx context.Context, key rollout.Key) (access.Keys, error)
	// EnsureKeys makes keys if there are none.
	EnsureKeys(ctx context.Context, key rollout.Key) (access.Keys, error)
	// PutKeys replaces them, or sets them where there are none; two empty keys are refused.
	PutKeys(ctx context.Context, key rollout.Key, k access.Keys) error
	// DeleteKeys of an endpoint that is gone; without keys there is nothing to do and no error.
	DeleteKeys(ctx context.Context, key rollout.Key) error
}

// KeyHashes is all that routers may know of keys.
type KeyHashes interface {
	// KeyHashes by endpoint.
	KeyHashes(ctx context.Context) (map[rollout.Key][]access.Hash, error)
	// WatchKeyHashes sends at once and after each change; closed when ctx ends.
	WatchKeyHashes(ctx context.Context) (<-chan struct{}, error)
}
