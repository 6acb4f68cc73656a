package memory

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/sluice-dev/sluice/pkg/cluster"
	"github.com/sluice-dev/sluice/rollout"
)

// Journal keeps commands in memory.
type Journal struct {
	mu      sync.Mutex
	entries []cluster.Entry
	failure error
}

var _ cluster.Journal = (*Journal)(nil)

// NewJournal is empty.
func NewJournal() *Journal { return &Journal{} }

// SetFailure makes every call fail with err until it is set to nil.
func (j *Journal) SetFailure(err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.failure = err
}

// Claim implements cluster.Journal.
func (j *Journal) Claim(_ context.Context, e cluster.Entry) (cluster.Entry, bool, error) {
	if e.Name == "" {
		return cluster.Entry{}, false, errors.New("claim entry: it has no name")
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.failure != nil {
		return cluster.Entry{}, false, fmt.Errorf("claim entry %s: %w", e.Name, j.failure)
	}
	if i := j.find(e.Name); i >= 0 {
		return copyEntry(j.entries[i]), false, nil
	}
	e = copyEntry(e)
	e.State, e.Reason, e.Result = cluster.EntryPending, "", ""
	if e.At.IsZero() {
		e.At = time.Now()
	}
	e.At = e.At.UTC().Round(0)
	j.entries = append(j.entries, e)
	return copyEntry(e), true, nil
}

// Finish implements cluster.Journal.
func (j *Journal) Finish(_ context.Context, name string, state cluster.EntryState, reason rollout.Reason, result string) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.failure != nil {
		return fmt.Errorf("finish entry %s: %w", name, j.failure)
	}
	i := j.find(name)
	if i < 0 {
		return fmt.Errorf("finish entry %s: %w", name, cluster.ErrNotFound)
	}
	j.entries[i].State, j.entries[i].Reason, j.entries[i].Result = state, reason, result
	return nil
}

// Entries implements cluster.Journal.
func (j *Journal) Entries(context.Context) ([]cluster.Entry, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.failure != nil {
		return nil, fmt.Errorf("list entries: %w", j.failure)
	}
	out := make([]cluster.Entry, 0, len(j.entries))
	for _, e := range j.entries {
		out = append(out, copyEntry(e))
	}
	slices.SortStableFunc(out, func(a, b cluster.Entry) int { return a.At.Compare(b.At) })
	return out, nil
}

// Prune implements cluster.Journal.
func (j *Journal) Prune(_ context.Context, before time.Time) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.failure != nil {
		return fmt.Errorf("prune entries: %w", j.failure)
	}
	j.entries = slices.DeleteFunc(j.entries, func(e cluster.Entry) bool { return e.At.Before(before) })
	return nil
}

func (j *Journal) find(name string) int {
	return slices.IndexFunc(j.entries, func(e cluster.Entry) bool { return e.Name == name })
}

func copyEntry(e cluster.Entry) cluster.Entry {
	e.Origin = maps.Clone(e.Origin)
	return e
}
