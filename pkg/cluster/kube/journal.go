package kube

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sluice-dev/sluice/pkg/cluster"
	"github.com/sluice-dev/sluice/pkg/cluster/kube/v1alpha1"
	"github.com/sluice-dev/sluice/rollout"
)

// Journal keeps commands as JournalEntry objects in the system's namespace. An object's
// name can be created once: that is the claim.
type Journal struct{ c *Cluster }

var _ cluster.Journal = (*Journal)(nil)

// Journal of the installation. Its reads ask the API server, not a cache: an answer
// must not be older than a claim.
func (c *Cluster) Journal() *Journal { return &Journal{c} }

// journalTries bounds how often a lost race for an entry's status is tried again.
const journalTries = 10

// Claim implements cluster.Journal.
func (j *Journal) Claim(ctx context.Context, e cluster.Entry) (cluster.Entry, bool, error) {
	if e.Name == "" {
		return cluster.Entry{}, false, errors.New("claim entry: it has no name")
	}
	if e.At.IsZero() {
		e.At = time.Now()
	}
	o := &v1alpha1.JournalEntry{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: j.c.options.SystemNamespace, Name: e.Name, Labels: map[string]string{LabelManagedBy: ManagedBy},
		},
		Spec: v1alpha1.JournalSpec{
			Endpoint: v1alpha1.JournalEndpoint{Namespace: e.Endpoint.Namespace, Name: e.Endpoint.Name},
			Command:  e.Command, Actor: e.Actor, Origin: maps.Clone(e.Origin), At: e.At.UTC().Round(0),
		},
	}
	err := j.c.client.Create(ctx, o)
	if apierrors.IsAlreadyExists(err) {
		var have v1alpha1.JournalEntry
		if err := j.c.client.Get(ctx, client.ObjectKeyFromObject(o), &have); err != nil {
			return cluster.Entry{}, false, fmt.Errorf("claim entry %s: %w", e.Name, sorted(err))
		}
		return entryOf(&have), false, nil
	}
	if err != nil {
		return cluster.Entry{}, false, fmt.Errorf("claim entry %s: %w", e.Name, sorted(err))
	}
	return entryOf(o), true, nil
}

func entryOf(o *v1alpha1.JournalEntry) cluster.Entry {
	e := cluster.Entry{
		Name: o.Name, Endpoint: rollout.Key{Namespace: o.Spec.Endpoint.Namespace, Name: o.Spec.Endpoint.Name},
		Command: o.Spec.Command, Actor: o.Spec.Actor, Origin: maps.Clone(o.Spec.Origin), At: o.Spec.At.UTC(),
		State: cluster.EntryState(o.Status.State), Reason: o.Status.Reason, Result: o.Status.Result,
	}
	if e.State == "" {
		e.State = cluster.EntryPending
	}
	return e
}

// Finish implements cluster.Journal.
func (j *Journal) Finish(ctx context.Context, name string, state cluster.EntryState, reason rollout.Reason, result string) error {
	for try := 0; ; try++ {
		var o v1alpha1.JournalEntry
		err := j.c.client.Get(ctx, client.ObjectKey{Namespace: j.c.options.SystemNamespace, Name: name}, &o)
		if err == nil {
			o.Status = v1alpha1.JournalStatus{State: string(state), Reason: reason, Result: result}
			err = j.c.client.Status().Update(ctx, &o)
		}
		if err == nil {
			return nil
		}
		if !apierrors.IsConflict(err) || try == journalTries {
			return fmt.Errorf("finish entry %s: %w", name, sorted(err))
		}
	}
}

// Entries implements cluster.Journal.
func (j *Journal) Entries(ctx context.Context) ([]cluster.Entry, error) {
	var list v1alpha1.JournalEntryList
	if err := j.c.client.List(ctx, &list, client.InNamespace(j.c.options.SystemNamespace)); err != nil {
		return nil, fmt.Errorf("list entries: %w", sorted(err))
	}
	out := make([]cluster.Entry, 0, len(list.Items))
	for i := range list.Items {
		out = append(out, entryOf(&list.Items[i]))
	}
	slices.SortStableFunc(out, func(a, b cluster.Entry) int {
		if c := a.At.Compare(b.At); c != 0 {
			return c
		}
		return strings.Compare(a.Name, b.Name)
	})
	return out, nil
}

// Prune implements cluster.Journal.
func (j *Journal) Prune(ctx context.Context, before time.Time) error {
	all, err := j.Entries(ctx)
	if err != nil {
		return fmt.Errorf("prune journal: %w", err)
	}
	for _, e := range all {
		if !e.At.Before(before) {
			break
		}
		o := &v1alpha1.JournalEntry{ObjectMeta: metav1.ObjectMeta{Namespace: j.c.options.SystemNamespace, Name: e.Name}}
		if err := j.c.client.Delete(ctx, o); client.IgnoreNotFound(err) != nil {
			return fmt.Errorf("prune journal: %w", sorted(err))
		}
	}
	return nil
}
