package control

import (
	"errors"
	"sync"

	"github.com/sluice-dev/sluice/pkg/cluster"
	"github.com/sluice-dev/sluice/rollout"
)

// refusals are what the cluster would not do for an endpoint, by version ("" for its keys), with the reason: a
// template that touches what is Sluice's, a quota, a name that something else has. The status tells of them,
// and they are tried again at the next look like everything else: no error that is to be retried sooner and sooner.
type refusals struct {
	mu    sync.Mutex
	known map[rollout.Key]map[string]*rollout.Error
	dirty map[rollout.Key]bool
}

// note what became of an attempt. Refusals are kept, other errors given back.
func (r *refusals) note(key rollout.Key, version string, err error) error {
	var refused *rollout.Error
	if !errors.Is(err, cluster.ErrConflict) {
		errors.As(err, &refused)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	was := r.known[key][version]
	switch {
	case refused != nil:
		if r.known == nil {
			r.known, r.dirty = map[rollout.Key]map[string]*rollout.Error{}, map[rollout.Key]bool{}
		}
		if r.known[key] == nil {
			r.known[key] = map[string]*rollout.Error{}
		}
		r.known[key][version] = refused
		if was == nil || *was != *refused {
			r.dirty[key] = true
		}
		return nil
	case err == nil && was != nil:
		delete(r.known[key], version)
		r.dirty[key] = true
	}
	return err
}

// of a version, or nil.
func (r *refusals) of(key rollout.Key, version string) *rollout.Error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.known[key][version]
}

// changed says whether anything did since it was asked last.
func (r *refusals) changed(key rollout.Key) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	was := r.dirty[key]
	delete(r.dirty, key)
	return was
}

// keep forgets versions that are not wanted any more.
func (r *refusals) keep(key rollout.Key, wanted map[string]bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for version := range r.known[key] {
		if version != "" && !wanted[version] {
			delete(r.known[key], version)
		}
	}
}

func (r *refusals) forget(key rollout.Key) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.known, key)
	delete(r.dirty, key)
}
