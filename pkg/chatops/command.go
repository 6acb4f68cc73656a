package chatops

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/sluice-dev/sluice/pkg/cluster"
	"github.com/sluice-dev/sluice/rollout"
)

// carryOut does one command and says how it ended. An error means that the
// process ends before it came to an end.
func (s *Service) carryOut(ctx context.Context, j *job, t task, ask *authority) (outcome, error) {
	c := j.comment
	limited, cancel := context.WithTimeout(ctx, applyTimeout)
	defer cancel()
	all, err := s.listUntil(limited)
	if err != nil {
		return s.gaveUp(ctx, t, err)
	}
	if o, ok := alreadyDone(all, t.name); ok {
		return o, nil
	}
	if len(boundTo(all, c.Repository.ID)) == 0 {
		o := refused(notBound(c.Repository.ID))
		_ = ask.check(ctx, s, c, t.line.Verb) // whoever it is, nothing can be done
		o.silent = ask.stranger()
		return o, nil
	}
	if c.head != "" {
		// The check run's external id names the endpoint, its commit the version, the version the pull request.
		number := pullRequestOf(boundTo(all, c.Repository.ID), c)
		if number == 0 { // the reply goes where GitHub said that the commit belongs, if it did
			return refused(buttonStale(c)), nil
		}
		j.comment.PullRequest = number
		c = j.comment
	}
	if err := ask.check(ctx, s, c, t.line.Verb); err != nil {
		if s.work.Err() != nil {
			return outcome{}, err
		}
		o := refused(err)
		o.silent = ask.stranger()
		return o, nil
	}
	if t.line.Err != nil {
		return refused(t.line.Err), nil
	}
	if c.head == "" && ask.pull.Closed && !ask.pull.Merged && !t.line.Verb.afterMerge() {
		return refused(refuse(rollout.ReasonDenied, "pullRequest", "reopen it, or use `sluice` on the command line", "pull request %d was closed without a merge before the comment was heeded", c.PullRequest)), nil
	}
	if c.Closed && !t.line.Verb.afterMerge() {
		return refused(refuse(rollout.ReasonDenied, "pullRequest", fmt.Sprintf("use `sluice %s` on the command line", t.line.Verb),
			"pull request %d is merged, where only `/rollback`, `/hold`, `/status`, `/plan` and `/help` work", c.PullRequest)), nil
	}
	switch t.line.Verb {
	case Status:
		return s.status(all, t.line, c, ask.pull), nil
	case Plan:
		return s.plan(all, t.line, c), nil
	case Help:
		return s.help(), nil
	}
	return s.apply(ctx, *j, t)
}

// pullRequestOf the version that a button stands at; 0 without one.
func pullRequestOf(bound []*rollout.Endpoint, c Comment) int {
	for _, e := range bound {
		for i := range e.Spec.Versions {
			if v := &e.Spec.Versions[i]; e.Key() == c.endpoint && v.Source.RepositoryID == c.Repository.ID && v.Source.Commit == c.head {
				return v.Source.PullRequest
			}
		}
	}
	return 0
}

// where a command came from, for the record.
func (c Comment) where() string {
	if c.head != "" {
		return fmt.Sprintf("by a button at commit %.12s, pull request %d of repository %d", c.head, c.PullRequest, c.Repository.ID)
	}
	return fmt.Sprintf("in comment %d %s", c.ID, c.onPullRequest())
}

func (c Comment) onPullRequest() string {
	return fmt.Sprintf("on pull request %d of repository %d", c.PullRequest, c.Repository.ID)
}

func notBound(repository int64) *rollout.Error {
	return refuse(rollout.ReasonNotBound, "spec.repositories",
		fmt.Sprintf("someone with the command line binds one with `sluice update ENDPOINT --bind-repository %d`; only a new endpoint is bound by its first deploy", repository),
		"no endpoint is bound to this repository")
}

// errKnown says that the command is in the endpoint's record.
var errKnown = errors.New("the command is done already")

// apply finds what the command means and does it. It is found again on what is
// then replaced, so nothing can change between the two.
func (s *Service) apply(ctx context.Context, j job, t task) (outcome, error) {
	c := j.comment
	limited, cancel := context.WithTimeout(ctx, applyTimeout)
	defer cancel()
	var o outcome
	err := retry(limited, func() (again bool, err error) {
		all, err := s.list(limited)
		if err != nil {
			return true, err
		}
		// A write that seemed to fail may have arrived.
		if known, ok := alreadyDone(all, t.name); ok {
			o = known
			return false, nil
		}
		aim, err := resolve(boundTo(all, c.Repository.ID), t.line, c)
		if err != nil {
			o = refused(err)
			return false, nil
		}
		stored, out, err := cluster.Edit(limited, s.o.Store, aim.endpoint.Key(), rollout.Request{
			ID: t.name, Actor: actor(c), Reason: rollout.ReasonRequested, At: s.o.Now().UTC(),
			Message: t.text + " " + c.where(),
		}, func(e *rollout.Endpoint) (rollout.Op, error) {
			if e.Known(t.name) { // another process did it since the endpoints were listed
				return nil, errKnown
			}
			now, err := resolve(boundTo([]*rollout.Endpoint{e}, c.Repository.ID), t.line, c)
			if err != nil {
				return nil, err
			}
			if s.doubtful(j, t) {
				if _, ended := s.seenThrough(limited, entryOf(t, c)); ended {
					return nil, errEnded
				}
			}
			if by, why := overtakenBy(e, j, t, nameOf(now.version), s.o.Now()); by != nil {
				return nil, refuse(rollout.ReasonSuperseded, "spec.changes", "write the command again, if it is still meant",
					"%s, and meanwhile %s did `%s`", why, by.Actor, by.Action)
			}
			aim.endpoint, aim.version = e, now.version
			return operation(t.line, aim), nil
		})
		switch {
		case errors.Is(err, errEnded):
			return false, err
		case err != nil && (len(rollout.AsErrors(err)) == 0 || rollout.ReasonOf(err) == rollout.ReasonConflict):
			return true, err
		case err != nil:
			o = refused(err, aim.endpoint)
			for i, e := range o.errs {
				told := *e
				if told.Hint = inComment(e.Hint); told.Hint != e.Hint {
					o.errs[i] = &told
				}
				if e.Reason == rollout.ReasonNotEnoughReady { // the way out is the command line's
					told.Hint = fmt.Sprintf("write it again when more replicas are ready, or use `sluice %s` on the command line with `--wait` or `--force`", t.line.Verb)
					o.errs[i] = &told
				}
			}
		case !out.Changed:
			o = done(rollout.ReasonNoChange, inComment(out.Message), stored)
		default:
			o = done(rollout.ReasonRequested, inComment(out.Message), stored)
		}
		if aim.version != nil {
			o.version = aim.version.Name
		}
		return false, nil
	})
	if errors.Is(err, errEnded) {
		return outcome{}, err
	}
	if err != nil {
		return s.gaveUp(ctx, t, err)
	}
	return o, nil
}

// inComment says in a comment's words what a message says in the command line's.
func inComment(message string) string {
	return strings.NewReplacer("`sluice resume ENDPOINT`", "`/resume`", "`sluice unlock ENDPOINT`", "`/unlock`").Replace(message)
}

// nameOf a version, "" of none.
func nameOf(v *rollout.Version) string {
	if v == nil {
		return ""
	}
	return v.Name
}

// lateAfter is how long after it was written a comment is late, wherever it was in the meantime.
const lateAfter = 2 * time.Minute

// staleAfter is how long after it was written a rollback is no longer meant, if its version was promoted since.
const staleAfter = time.Hour

// overtakenBy is a change that was meant later than the command and came before it, and why it could. A rollback
// is meant whenever it comes, but for one of yesterday that would take out what was promoted since.
func overtakenBy(e *rollout.Endpoint, j job, t task, version string, now time.Time) (*rollout.Change, string) {
	if t.line.Verb == Rollback {
		if now.Sub(j.comment.CreatedAt) > staleAfter {
			for _, ch := range slices.Concat(e.Status.History, e.Spec.Changes) {
				if ch.At.After(j.comment.CreatedAt) && ch.Action == (rollout.Promote{Version: version}).String() {
					return &ch, "the comment arrived late"
				}
			}
		}
		return nil, ""
	}
	if j.recovered || t.doubt {
		if by := overtaken(e, t.at, j.comment.head != ""); by != nil {
			return by, "the service stopped before it was carried out"
		}
	}
	if j.comment.head != "" { // when a button was pressed, GitHub does not say
		if now.Sub(t.at) > lateAfter {
			return overtaken(e, t.at, true), "it waited for long"
		}
		return nil, ""
	}
	late := now.Sub(j.comment.CreatedAt) > lateAfter
	for _, ch := range slices.Concat(e.Status.History, e.Spec.Changes) {
		id := commentOf(ch.ID)
		switch {
		case ch.Actor == rollout.Engine:
		case id > j.comment.ID && (late || strings.HasSuffix(ch.Message, j.comment.onPullRequest())):
			return &ch, "GitHub delivered a later comment before this one"
		case id == 0 && late && ch.At.After(j.comment.CreatedAt):
			return &ch, "the comment arrived late"
		}
	}
	return nil, ""
}

// commentOf is the comment that a change was made by; 0 if it was none.
func commentOf(change string) int64 {
	rest, ok := strings.CutPrefix(change, "c-")
	if !ok {
		return 0
	}
	number, _, _ := strings.Cut(rest, "-")
	id, err := strconv.ParseInt(number, 10, 64)
	if err != nil {
		return 0
	}
	return id
}

// overtaken is the newest change that a person made since the command was recorded, by other means than comments unless those
// count too. Comments stay in order by themselves, and the engine decides on what it finds.
func overtaken(e *rollout.Endpoint, since time.Time, comments bool) *rollout.Change {
	for i := len(e.Spec.Changes) - 1; i >= 0; i-- {
		ch := &e.Spec.Changes[i]
		if ch.At.After(since) && ch.Actor != rollout.Engine && (comments || !fromGitHub(ch.ID)) {
			return ch
		}
	}
	return nil
}

// gaveUp is the outcome of a command that the store or other writers kept from its effect.
func (s *Service) gaveUp(ctx context.Context, t task, err error) (outcome, error) {
	if s.work.Err() != nil {
		return outcome{}, err
	}
	s.log.ErrorContext(ctx, "command given up", "name", t.name, "error", err)
	return refused(err), nil
}

// fromGitHub says whether the id of a change is a comment's, a button's or a merge's.
func fromGitHub(id string) bool {
	return strings.HasPrefix(id, "c-") || strings.HasPrefix(id, "d-") || strings.HasPrefix(id, "m-")
}

func (s *Service) list(ctx context.Context) ([]*rollout.Endpoint, error) {
	all, err := s.o.Store.List(ctx)
	if err != nil {
		return nil, fmt.Errorf("list endpoints: %w", err)
	}
	return all, nil
}

// listUntil lists the endpoints, again and again until ctx ends.
func (s *Service) listUntil(ctx context.Context) (all []*rollout.Endpoint, err error) {
	err = retry(ctx, func() (bool, error) {
		all, err = s.list(ctx)
		return err != nil, err
	})
	return all, err
}

// alreadyDone finds the command in an endpoint's record.
func alreadyDone(all []*rollout.Endpoint, name string) (outcome, bool) {
	for _, e := range all {
		if !e.Known(name) {
			continue
		}
		o := done(rollout.ReasonRequested, "it is in the endpoint's record", e)
		for _, ch := range slices.Concat(e.Status.History, e.Spec.Changes) {
			if ch.ID == name {
				o.message = ch.Action + ", as the endpoint's record has it"
				if _, version, ok := strings.Cut(ch.Action, " "); ok {
					o.version, _, _ = strings.Cut(version, " ")
				}
			}
		}
		return o, true
	}
	return outcome{}, false
}

// status shows the named endpoint, else those with versions of the pull request, else all that are bound.
func (s *Service) status(all []*rollout.Endpoint, l Line, c Comment, pull PullRequest) outcome {
	bound := boundTo(all, c.Repository.ID)
	shown, _, err := choose(bound, l, c)
	if err != nil {
		return refused(err)
	}
	message := fmt.Sprintf("pull request %d has no version at any endpoint yet", c.PullRequest)
	if len(shown) == 0 {
		return done(rollout.ReasonRequested, message, bound...)
	}
	var deployed []string
	current := false
	for _, e := range shown {
		for _, v := range allVersions(e, c) {
			deployed = append(deployed, v.Name)
			current = current || v.Source.Commit == pull.Head
		}
	}
	if len(deployed) > 0 {
		message = fmt.Sprintf("pull request %d is deployed as %s", c.PullRequest, strings.Join(deployed, ", "))
		if !current && pull.Head != "" {
			message += fmt.Sprintf("; its present head %.7s is not deployed", pull.Head)
		}
	}
	return done(rollout.ReasonRequested, message, shown...)
}

// authority is what GitHub says of a comment's author, asked once per comment.
type authority struct {
	asked      bool
	err        error
	permission Permission
	pull       PullRequest

	teams  map[string]bool
	looked bool
	own    []ownPermissions
	ownErr error
}

// stranger says that the author has no role of their own in a repository that everybody may read. They get a reaction and no
// reply, so that nobody can have us write as often as they like.
func (a *authority) stranger() bool {
	return a.asked && a.err == nil && a.pull.Public && !a.permission.AtLeast(PermissionTriage)
}

// check fails with a refusal unless GitHub says, now, that the author may give the
// command in the repository, that this is the repository the endpoints are bound to,
// and that the pull request's branch is not a stranger's.
func (a *authority) check(ctx context.Context, s *Service, c Comment, v Verb) error {
	if !a.asked {
		a.asked = true
		a.permission, a.pull, a.err = s.authorise(ctx, c)
	}
	if a.err != nil {
		return a.err
	}
	ctx, cancel := context.WithTimeout(ctx, authoriseTimeout)
	defer cancel()
	if err := a.permit(ctx, s, c, v); err != nil {
		return err
	}
	return origin(c, a.pull)
}

// whenAsked is the way out where GitHub did not say who may do what.
const whenAsked = "try again when GitHub's API works; until then use `sluice` on the command line"

func (s *Service) authorise(ctx context.Context, c Comment) (Permission, PullRequest, error) {
	ctx, cancel := context.WithTimeout(ctx, authoriseTimeout)
	defer cancel()
	var (
		wg         sync.WaitGroup
		permission Permission
		pull       PullRequest
		permErr    error
		pullErr    error
	)
	wg.Go(func() {
		permission, permErr = s.o.GitHub.Permission(ctx, c.Repository, c.Author, c.AuthorID)
	})
	wg.Go(func() {
		pull, pullErr = s.o.GitHub.PullRequest(ctx, c.Repository, c.PullRequest)
	})
	wg.Wait()
	if permErr != nil {
		s.log.WarnContext(ctx, "permission cannot be asked", "comment", c.ID, "actor", actor(c), "repository", c.Repository.ID, "error", permErr)
		return "", pull, refuse(rollout.ReasonDenied, "permission", whenAsked, "GitHub did not say what %s may do in %s, so nothing was done", c.Author, c.Repository)
	}
	if pullErr != nil {
		s.log.WarnContext(ctx, "pull request cannot be read", "comment", c.ID, "repository", c.Repository.ID, "pullRequest", c.PullRequest, "error", pullErr)
		return permission, pull, refuse(rollout.ReasonDenied, "pullRequest", whenAsked, "GitHub did not say where pull request %d comes from, so nothing was done", c.PullRequest)
	}
	return permission, pull, nil
}

// origin refuses pull requests of other repositories, and those that were closed without a merge.
func origin(c Comment, pull PullRequest) error {
	switch {
	case pull.RepositoryID != c.Repository.ID:
		return refuse(rollout.ReasonNotBound, "repository", "write the command again in the repository's present place",
			"%s is another repository than when the comment was written", c.Repository)
	case pull.HeadRepositoryID != c.Repository.ID:
		return refuse(rollout.ReasonNotBound, "pullRequest", "push the branch to the repository itself; `sluice` on the command line works all the same",
			"the branch of pull request %d lives in another repository, and commands work on a repository's own branches only", c.PullRequest)
	case c.Closed && !pull.Merged:
		return refuse(rollout.ReasonDenied, "pullRequest", "reopen it, or use `sluice` on the command line", "pull request %d was closed without a merge, and commands work on open and merged ones", c.PullRequest)
	}
	return nil
}

// retry calls f until it says that another try makes no sense, or ctx ends; waits
// grow from 5 ms to 500 ms and are jittered, so that writers in conflict part.
func retry(ctx context.Context, f func() (again bool, err error)) error {
	wait := 5 * time.Millisecond
	for {
		again, err := f()
		if !again {
			return err
		}
		if ctx.Err() != nil {
			return errors.Join(err, ctx.Err())
		}
		select {
		case <-time.After(wait/2 + rand.N(wait)):
		case <-ctx.Done():
			return errors.Join(err, ctx.Err())
		}
		wait = min(2*wait, 500*time.Millisecond)
	}
}
