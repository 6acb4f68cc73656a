package chatops

import (
	"context"
	"fmt"
	"hash/fnv"
	"time"

	"github.com/sluice-dev/sluice/rollout"
)

// maxRejected bounds the versions that are asked about at a time.
const maxRejected = 10_000

// aspirant is a version of a pull request that has not been promoted.
type aspirant struct {
	endpoint   rollout.Key
	version    string
	repository int64
	number     int
}

// watchRejected asks GitHub about the pull request of each version that appears, once: it may have been closed while the version was made,
// and the event of that found nothing to end.
func (s *Service) watchRejected(ctx context.Context) {
	if _, nobody := s.o.Directory.(silent); nobody {
		return
	}
	keys, err := s.o.Store.Watch(ctx)
	if err != nil {
		if ctx.Err() == nil {
			s.log.ErrorContext(ctx, "versions of closed pull requests are not looked for", "error", err)
		}
		return
	}
	known := map[aspirant]bool{} // to whether its pull request is still to be asked about
	again := time.NewTicker(askAgain)
	defer again.Stop()
	for {
		select {
		case key, ok := <-keys:
			if !ok {
				return
			}
			s.aspirants(ctx, key, known)
		case <-again.C:
		case <-ctx.Done():
			return
		}
		for a, open := range known {
			if !open {
				continue
			}
			if !s.reject(ctx, a) {
				break // GitHub does not answer: later
			}
			known[a] = false
		}
	}
}

// aspirants of an endpoint that are not known yet are added, and those that it has no more are forgotten.
func (s *Service) aspirants(ctx context.Context, key rollout.Key, known map[aspirant]bool) {
	here := map[aspirant]bool{}
	e, err := s.o.Store.Get(ctx, key)
	if err == nil {
		for i := range e.Spec.Versions {
			v := &e.Spec.Versions[i]
			a := aspirant{key, v.Name, v.Source.RepositoryID, v.Source.PullRequest}
			live := v.Type == rollout.Treatment || v.Type == rollout.Untyped && v.RetiredAt.IsZero() && e.Spec.Default() != v
			if a.number > 0 && live && len(boundTo([]*rollout.Endpoint{e}, a.repository)) > 0 {
				here[a] = true
			}
		}
	}
	for a := range known {
		if a.endpoint == key && !here[a] {
			delete(known, a)
		}
	}
	for a := range here {
		if _, ok := known[a]; !ok && len(known) < maxRejected {
			known[a] = true
		}
	}
}

// reject ends the version if its pull request was closed without a merge; false if GitHub or the journal did not say.
func (s *Service) reject(ctx context.Context, a aspirant) bool {
	limited, cancel := context.WithTimeout(ctx, authoriseTimeout)
	defer cancel()
	repo, err := s.o.Directory.Repository(limited, a.repository)
	var pull PullRequest
	if err == nil {
		pull, err = s.o.GitHub.PullRequest(limited, repo, a.number)
	}
	switch {
	case err != nil:
		s.log.DebugContext(ctx, "the pull request of a version cannot be asked about", "endpoint", a.endpoint.String(), "version", a.version, "pullRequest", a.number, "error", err)
		return false
	case !pull.Closed || pull.Merged || pull.RepositoryID != a.repository:
		return true
	}
	// Who closed it GitHub's event said, and that is over: the ghost is its own stand-in for nobody it knows.
	c := Closed{Repository: repo, PullRequest: a.number, Head: pull.Head, By: "ghost", At: s.o.Now().UTC().Truncate(time.Second)}
	if err := s.ready(limited); err != nil {
		return false
	}
	h := fnv.New64a()
	_, _ = fmt.Fprintf(h, "%s/%s", a.endpoint, a.version) // a hash takes all
	name := ClosedName(a.repository, a.number, c.action(), c.Head) + fmt.Sprintf("-%x", h.Sum64())
	receipt, err := s.recordClosed(limited, name, c)
	if receipt.Commands == 0 || err != nil {
		<-s.slots
	}
	return err == nil
}
