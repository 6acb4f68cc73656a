package chatops

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"time"

	"github.com/sluice-dev/sluice/pkg/cluster"
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

// question is when a version's pull request is asked about next; never again once the time is zero.
type question struct {
	at   time.Time
	wait time.Duration
}

// Waits between questions about one pull request: the first, and at most while GitHub is away, and where it may never show it.
const (
	firstQuestion = askAgain
	whileAway     = time.Minute
	lastQuestion  = time.Hour
)

// watchRejected asks GitHub about the pull request of each version that appears, until it answers: it may have been closed while the
// version was made, and the event of that found nothing to end.
func (s *Service) watchRejected(ctx context.Context) {
	if _, nobody := s.o.Directory.(silent); nobody {
		return
	}
	known := map[aspirant]*question{}
	for {
		s.watchAspirants(ctx, known)
		if !pause(ctx, askAgain) {
			return
		}
	}
}

// watchAspirants does it until the store's watch ends.
func (s *Service) watchAspirants(ctx context.Context, known map[aspirant]*question) {
	watching, end := context.WithCancel(ctx)
	defer end()
	keys, err := s.o.Store.Watch(watching)
	if err != nil {
		if ctx.Err() == nil {
			s.log.WarnContext(ctx, "versions of closed pull requests are not looked for now", "error", err)
		}
		return
	}
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
		for a, q := range known {
			now := s.o.Now()
			if q.at.IsZero() || now.Before(q.at) {
				continue
			}
			err := s.reject(ctx, a)
			if err == nil {
				q.at = time.Time{}
				continue
			}
			var t Temporary
			passes := errors.As(err, &t) && t.Temporary() || errors.Is(err, context.DeadlineExceeded)
			longest := lastQuestion
			if passes {
				longest = whileAway
			}
			if q.wait = min(max(2*q.wait, firstQuestion), longest); q.wait >= time.Minute && ctx.Err() == nil {
				s.log.WarnContext(ctx, "the pull request of a version cannot be asked about", "endpoint", a.endpoint.String(), "version", a.version,
					"repository", a.repository, "pullRequest", a.number, "again", q.wait, "error", err)
			}
			q.at = now.Add(q.wait)
			if passes {
				break // GitHub does not answer: the others later
			}
		}
	}
}

// aspirants of an endpoint that are not known yet are added, and those that it has no more are forgotten.
func (s *Service) aspirants(ctx context.Context, key rollout.Key, known map[aspirant]*question) {
	here := map[aspirant]bool{}
	e, err := s.o.Store.Get(ctx, key)
	if err != nil && !errors.Is(err, cluster.ErrNotFound) {
		return // nothing is known
	}
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
			known[a] = &question{at: s.o.Now()}
		}
	}
}

// reject ends the version if its pull request was closed without a merge; an error says that GitHub or the journal did not say.
func (s *Service) reject(ctx context.Context, a aspirant) error {
	limited, cancel := context.WithTimeout(ctx, authoriseTimeout)
	defer cancel()
	repo, err := s.o.Directory.Repository(limited, a.repository)
	if err != nil {
		return fmt.Errorf("find repository: %w", err)
	}
	pull, err := s.o.GitHub.PullRequest(limited, repo, a.number)
	if err != nil {
		return fmt.Errorf("read pull request: %w", err)
	}
	if !pull.Closed || pull.Merged || pull.RepositoryID != a.repository {
		return nil
	}
	// Who closed it GitHub's event said, and that is over: the ghost is its own stand-in for nobody it knows.
	c := Closed{Repository: repo, PullRequest: a.number, Head: pull.Head, By: "ghost", At: s.o.Now().UTC().Truncate(time.Second)}
	if err := s.ready(limited); err != nil {
		return err
	}
	h := fnv.New64a()
	_, _ = fmt.Fprintf(h, "%s/%s", a.endpoint, a.version) // a hash takes all
	name := ClosedName(a.repository, a.number, c.action(), c.Head) + fmt.Sprintf("-%x", h.Sum64())
	receipt, err := s.recordClosed(limited, name, c)
	if receipt.Commands == 0 || err != nil {
		<-s.slots
	}
	return err
}
