package chatops

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/sluice-dev/sluice/pkg/cluster"
	"github.com/sluice-dev/sluice/rollout"
)

// Waits of what follows a closed pull request.
const (
	askAgain     = 5 * time.Second // what GitHub did not say
	prepareAgain = 2 * time.Second // whether enough replicas are ready
)

func (c Closed) action() string {
	if c.Merged {
		return "merged"
	}
	return "closed"
}

// ClosedName is the journal's name of a merge or a close.
func ClosedName(repository int64, number int, action, head string) string {
	return fmt.Sprintf("m-%d-%d-%s-%s", repository, number, action, head)
}

const originAt = "at"

// AcceptClosed records that a pull request was closed, where that does something,
// and returns as Accept does. Who closed or merged it was allowed to by GitHub, so nothing more is asked of
// them; whether it is so still, and what was merged, is asked of GitHub before anything is done.
func (s *Service) AcceptClosed(ctx context.Context, c Closed) (Receipt, error) {
	switch {
	case c.Merged && s.o.OnMerge == MergeNothing:
		return Receipt{}, nil
	case s.o.Now().Sub(c.At) > MaxAge:
		return Receipt{Refused: rollout.ReasonTooOld}, nil
	}
	if err := s.ready(ctx); err != nil {
		return Receipt{}, err
	}
	name := ClosedName(c.Repository.ID, c.PullRequest, c.action(), c.Head)
	receipt, err := s.recordClosed(ctx, name, c)
	if err == nil && receipt.again {
		// The same head was closed before, reopened, and closed again.
		receipt, err = s.recordClosed(ctx, name+"-"+strconv.FormatInt(c.At.Unix(), 10), c)
	}
	if receipt.Commands == 0 || err != nil {
		<-s.slots
	}
	return receipt.Receipt, err
}

type closedReceipt struct {
	Receipt
	again bool
}

func (s *Service) recordClosed(ctx context.Context, name string, c Closed) (out closedReceipt, err error) {
	if !s.take(name) {
		out.Duplicates++
		return out, nil
	}
	e := s.closedEntry(name, c)
	stored, fresh, err := s.o.Journal.Claim(ctx, e)
	if err != nil {
		s.drop(name)
		return out, fmt.Errorf("record %s: %w", name, err)
	}
	if !fresh && stored.State != cluster.EntryPending {
		s.drop(name)
		out.Duplicates++
		out.again = stored.Origin[originAt] != e.Origin[originAt]
		return out, nil
	}
	out.Commands++
	s.enqueueClosed(name, c, stored.At, true, !fresh)
	return out, nil
}

func (s *Service) closedEntry(name string, c Closed) cluster.Entry {
	return cluster.Entry{
		Name: name, Command: c.action(), Actor: "github:" + c.By, At: s.o.Now().UTC(), State: cluster.EntryPending,
		Origin: map[string]string{
			originRepositoryID: strconv.FormatInt(c.Repository.ID, 10), originOwner: c.Repository.Owner, originRepository: c.Repository.Name,
			originInstallation: strconv.FormatInt(c.Repository.Installation, 10), originPullRequest: strconv.Itoa(c.PullRequest),
			originHead: c.Head, originAt: c.At.UTC().Format(time.RFC3339),
		},
	}
}

// closedEnded says that another process has seen it through.
func (s *Service) closedEnded(ctx context.Context, name string, c Closed) bool {
	_, ended := s.seenThrough(ctx, s.closedEntry(name, c))
	return ended
}

// enqueueClosed does it beside the lanes: it may wait for replicas. It does nothing when the service ends:
// the entry is pending.
func (s *Service) enqueueClosed(name string, c Closed, at time.Time, slot, doubt bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		if slot {
			<-s.slots
		}
		return
	}
	s.jobs.Go(func() {
		if slot {
			defer func() { <-s.slots }()
		}
		defer s.drop(name)
		s.doClosed(s.work, name, c, at, doubt)
	})
}

// closedOf reads back what recordClosed wrote.
func closedOf(e cluster.Entry) (Closed, error) {
	var errs []error
	number := originNumber(e, &errs)
	at, err := time.Parse(time.RFC3339, e.Origin[originAt])
	errs = append(errs, err)
	by, _ := strings.CutPrefix(e.Actor, "github:")
	return Closed{
		Repository:  Repository{ID: number(originRepositoryID), Owner: e.Origin[originOwner], Name: e.Origin[originRepository], Installation: number(originInstallation)},
		PullRequest: int(number(originPullRequest)), Head: e.Origin[originHead], Merged: e.Command == Closed{Merged: true}.action(), By: by, At: at,
	}, errors.Join(errs...)
}

// doClosed carries it out at every endpoint that has versions of the pull request.
func (s *Service) doClosed(ctx context.Context, name string, c Closed, at time.Time, doubt bool) {
	as := Comment{Repository: c.Repository, PullRequest: c.PullRequest, Author: c.By, CreatedAt: c.At}
	o, err := s.carryOutClosed(ctx, name, c, as, at)
	if errors.Is(err, errEnded) {
		s.log.InfoContext(ctx, "what a closed pull request asks for was seen through by another process", "name", name)
		return
	}
	if err != nil {
		s.log.WarnContext(ctx, "what a closed pull request asks for is left to the next start", "name", name, "error", err)
		return
	}
	if doubt = doubt || s.waitedLong(at); doubt && o.state == cluster.EntryRefused && s.closedEnded(ctx, name, c) {
		return // the first end holds
	}
	s.finish(ctx, name, o)
	s.log.InfoContext(ctx, "pull request closed", "name", name, "actor", actor(as), "repository", c.Repository.ID, "pullRequest", c.PullRequest,
		"merged", c.Merged, "state", o.state, "reason", o.reason, "result", o.result())
	if o.state == cluster.EntryRefused && o.reason != rollout.ReasonNotBound || c.Merged && s.o.OnMerge == MergeContinues && len(o.endpoints) > 0 {
		s.replyTo(as, render(name, "merge", as, o), doubt)
	}
}

func (s *Service) carryOutClosed(ctx context.Context, name string, c Closed, as Comment, at time.Time) (outcome, error) {
	endpoints, err := s.listUntil(ctx)
	if err != nil {
		return outcome{}, err
	}
	var ours []*rollout.Endpoint
	for _, e := range boundTo(endpoints, c.Repository.ID) {
		if len(allVersions(e, as)) > 0 {
			ours = append(ours, e)
		}
	}
	if len(ours) == 0 {
		return done(rollout.ReasonNoChange, fmt.Sprintf("pull request %d has no version at any endpoint", c.PullRequest)), nil
	}
	if err := s.stillClosed(ctx, c, at); err != nil {
		if ctx.Err() != nil {
			return outcome{}, err
		}
		return refused(err, ours...), nil
	}
	if c.Merged && s.o.OnMerge == MergeContinues {
		return done(rollout.ReasonNoChange, "the pull request is merged; its treatment is judged on", ours...), nil
	}
	errs := make([]error, len(ours))
	told := make([]string, len(ours))
	var all sync.WaitGroup
	for i, e := range ours { // side by side: each may wait for its replicas
		all.Go(func() {
			stored, message, err := s.endAt(ctx, e.Key(), name, c, as, at)
			if errs[i] = err; err == nil {
				told[i], ours[i] = e.Key().String()+": "+message, stored
			}
		})
	}
	all.Wait()
	if ctx.Err() != nil {
		return outcome{}, ctx.Err()
	}
	if err := errors.Join(errs...); errors.Is(err, errEnded) {
		return outcome{}, errEnded
	} else if err != nil {
		return refused(err, ours...), nil
	}
	return done(rollout.ReasonRequested, strings.Join(told, "; "), ours...), nil
}

// stillClosed asks GitHub, again and again while it does not answer, whether the pull request is what its event said.
func (s *Service) stillClosed(ctx context.Context, c Closed, since time.Time) error {
	for {
		limited, cancel := context.WithTimeout(ctx, authoriseTimeout)
		pull, err := s.o.GitHub.PullRequest(limited, c.Repository, c.PullRequest)
		cancel()
		var t Temporary
		switch {
		case err == nil && (pull.RepositoryID != c.Repository.ID || pull.HeadRepositoryID != 0 && pull.HeadRepositoryID != c.Repository.ID):
			return refuse(rollout.ReasonNotBound, "repository", "use `sluice` on the command line", "pull request %d does not come from a branch of this repository", c.PullRequest)
		case err == nil && (!pull.Closed || pull.Merged != c.Merged):
			return refuse(rollout.ReasonSuperseded, "pullRequest", "nothing needs to be done", "pull request %d is open again", c.PullRequest)
		case err == nil && c.Merged && s.o.OnMerge == MergePromotes && (pull.Base == "" || pull.Base != pull.Default):
			// Who may merge into other branches is nobody's concern: whoever may push can make one of their own.
			return refuse(rollout.ReasonDenied, "pull_request.base", "promote with `sluice promote` what should be, or merge into the default branch a pull request of its own", "pull request %d was merged into %s, and only merges into the default branch promote", c.PullRequest, branchName(pull.Base))
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return ctx.Err()
		case !errors.As(err, &t) || !t.Temporary() || s.o.Now().Sub(since) > s.o.Patience:
			s.log.WarnContext(ctx, "pull request cannot be read", "repository", c.Repository.ID, "pullRequest", c.PullRequest, "error", err)
			return refuse(rollout.ReasonDenied, "pullRequest", "use the commands, or `sluice` on the command line", "GitHub did not say whether pull request %d is closed, so nothing was done", c.PullRequest)
		}
		if !pause(ctx, askAgain) {
			return ctx.Err()
		}
	}
}

// heldSince is the newest change since then by which a person holds the endpoint.
func heldSince(e *rollout.Endpoint, since time.Time) *rollout.Change {
	if e.Spec.Hold == nil {
		return nil
	}
	for i := range slices.Backward(e.Spec.Changes) {
		verb, _, _ := strings.Cut(e.Spec.Changes[i].Action, " ")
		if ch := &e.Spec.Changes[i]; ch.At.After(since) && ch.Actor != rollout.Engine && (verb == string(Hold) || verb == string(Traffic)) {
			return ch
		}
	}
	return nil
}

func branchName(name string) string {
	if name == "" {
		return "a branch that GitHub did not name"
	}
	return "the branch " + name
}

func pause(ctx context.Context, d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-ctx.Done():
		return false
	}
}

// endAt does at one endpoint what the close asks for.
func (s *Service) endAt(ctx context.Context, key rollout.Key, name string, c Closed, as Comment, at time.Time) (*rollout.Endpoint, string, error) {
	if c.Merged {
		return s.promoteMerged(ctx, key, name, c, as, at)
	}
	var stored *rollout.Endpoint
	message := "nothing of it is left there"
	for range rollout.MaxVersions {
		e, op, target, err := s.editClosed(ctx, key, name, rollout.ReasonClosed, as, func(e *rollout.Endpoint) (rollout.Op, string, error) {
			for _, v := range allVersions(e, as) {
				switch {
				case v.Type == rollout.Treatment:
					return rollout.Rollback{Version: v.Name}, v.Name, nil
				case v.Type == rollout.Untyped && v.RetiredAt.IsZero() && e.Spec.Default() != v:
					return rollout.Retire{Version: v.Name}, v.Name, nil
				}
			}
			return nil, "", errNothing
		})
		switch {
		case errors.Is(err, errNothing):
			if stored == nil {
				stored = e
			}
			return stored, message, nil
		case err != nil:
			return nil, "", err
		}
		stored, message = e, op+" ("+target+" is out of traffic)"
	}
	return stored, message, nil
}

// errNothing says that nothing is left to do.
var errNothing = errors.New("nothing to do")

// promoteMerged promotes the treatment that was made of the merged commit, once its replicas can carry all traffic.
// A hold that was set since the merge ends that. What was prepared for a promotion that does not come is not kept up.
func (s *Service) promoteMerged(ctx context.Context, key rollout.Key, name string, c Closed, as Comment, at time.Time) (stored *rollout.Endpoint, did string, err error) {
	defer func() {
		if err != nil && !errors.Is(err, errEnded) && ctx.Err() == nil {
			s.unprepare(ctx, key, name, as)
		}
	}()
	find := func(e *rollout.Endpoint) (*rollout.Version, error) {
		if ch := heldSince(e, at); ch != nil {
			return nil, refuse(rollout.ReasonSuperseded, "spec.hold", "promote with `sluice promote` what should be",
				"%s held %s after the merge (`%s`); nothing was promoted", ch.Actor, key, ch.Action)
		}
		own := ownVersions(e, as)
		i := slices.IndexFunc(own, func(v *rollout.Version) bool { return v.Source.Commit == c.Head })
		if i < 0 {
			return nil, refuse(rollout.ReasonVersionChanged, "pull_request.head.sha", "promote with `sluice promote` what should be",
				"%s has no treatment of commit %.7s, which was merged; nothing was promoted", key, c.Head)
		}
		return own[i], nil
	}
	began := at
	for first := true; ; first = false {
		if s.waitedLong(at) && s.closedEnded(ctx, name, c) {
			return nil, "", errEnded
		}
		e, op, _, err := s.editClosed(ctx, key, name, rollout.ReasonMerged, as, func(e *rollout.Endpoint) (rollout.Op, string, error) {
			v, err := find(e)
			if err != nil {
				return nil, "", err
			}
			return rollout.Promote{Version: v.Name}, v.Name, nil
		})
		if first && rollout.ReasonOf(err) == rollout.ReasonNotEnoughReady && !s.prepared(ctx, key, name, as) {
			began = s.o.Now() // nobody was there until now
		}
		if rollout.ReasonOf(err) != rollout.ReasonNotEnoughReady || s.o.Now().Sub(began) > s.o.Patience {
			return e, op, err
		}
		// It cannot be asked for again, so it is waited for.
		_, _, _, err = s.editClosed(ctx, key, name+preparing, rollout.ReasonMerged, as, func(e *rollout.Endpoint) (rollout.Op, string, error) {
			v, err := find(e)
			if err != nil {
				return nil, "", err
			}
			return rollout.Prepare{Version: v.Name, Percent: rollout.Full}, v.Name, nil
		})
		if err != nil {
			return nil, "", err
		}
		if !pause(ctx, prepareAgain) {
			return nil, "", ctx.Err()
		}
	}
}

// preparing ends the names of changes that ask for a merge's replicas.
const preparing = "-prepare"

// prepared says whether replicas were asked for already, by whatever process.
func (s *Service) prepared(ctx context.Context, key rollout.Key, name string, as Comment) bool {
	e, err := s.o.Store.Get(ctx, key)
	return err == nil && slices.ContainsFunc(allVersions(e, as), func(v *rollout.Version) bool { return e.Known(name + preparing + "-" + v.Name) })
}

// unprepare gives back the replicas that a merge asked for, by whatever process.
func (s *Service) unprepare(ctx context.Context, key rollout.Key, name string, as Comment) {
	_, _, _, err := s.editClosed(ctx, key, name+"-unprepare", rollout.ReasonMerged, as, func(e *rollout.Endpoint) (rollout.Op, string, error) {
		for _, v := range allVersions(e, as) {
			if v.PlannedPercentile == rollout.Full && e.Known(name+preparing+"-"+v.Name) {
				return rollout.Prepare{Version: v.Name}, v.Name, nil
			}
		}
		return nil, "", errNothing
	})
	if err != nil && !errors.Is(err, errNothing) {
		s.log.WarnContext(ctx, "replicas stay prepared for a merge that was given up", "endpoint", key.String(), "error", err)
	}
}

// editClosed writes one transition, tried again while the store fails. The id of the change is the name with the version.
func (s *Service) editClosed(ctx context.Context, key rollout.Key, name string, why rollout.Reason, as Comment, change func(*rollout.Endpoint) (rollout.Op, string, error)) (stored *rollout.Endpoint, did, target string, err error) {
	err = retry(ctx, func() (bool, error) {
		limited, cancel := context.WithTimeout(ctx, applyTimeout)
		defer cancel()
		e, err := s.o.Store.Get(limited, key)
		if err != nil {
			return !errors.Is(err, cluster.ErrNotFound), err
		}
		op, version, err := change(e)
		if err != nil {
			stored = e
			return false, err
		}
		target, did = version, op.String()
		stored, _, err = cluster.Edit(limited, s.o.Store, key, rollout.Request{
			ID: name + "-" + version, Actor: actor(as), Reason: why, At: s.o.Now().UTC(),
			Message: fmt.Sprintf("pull request %d of repository %d was %s", as.PullRequest, as.Repository.ID, map[bool]string{true: "merged", false: "closed without a merge"}[why == rollout.ReasonMerged]),
		}, func(e *rollout.Endpoint) (rollout.Op, error) {
			if len(boundTo([]*rollout.Endpoint{e}, as.Repository.ID)) == 0 {
				return nil, notBound(as.Repository.ID)
			}
			op, now, err := change(e)
			if err == nil && now != version {
				err = refuse(rollout.ReasonConflict, "version", "nothing needs to be done", "%s became %s", version, now)
			}
			return op, err
		})
		if err == nil || errors.Is(err, errNothing) {
			return false, err
		}
		return len(rollout.AsErrors(err)) == 0 || rollout.ReasonOf(err) == rollout.ReasonConflict, err
	})
	return stored, did, target, err
}
