package report

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sluice-dev/sluice/pkg/chatops"
	"github.com/sluice-dev/sluice/pkg/cluster"
	"github.com/sluice-dev/sluice/pkg/markdown"
	"github.com/sluice-dev/sluice/rollout"
)

// maxRefusals is how often GitHub may refuse to show the end of a report before it is left: it may be a list of its that failed.
const maxRefusals = 5

// maxRecalled bounds the places that a start takes from the journal, newest first.
const maxRecalled = 1000

// lostBy is why a pull request has nothing to be reported at the endpoint, which is nil if it is gone itself.
func lostBy(e *rollout.Endpoint, p PullRequest) rollout.Reason {
	switch {
	case e == nil:
		return rollout.ReasonUnknownEndpoint
	case len(p.versions(e)) > 0:
		return rollout.ReasonNotBound
	default:
		return rollout.ReasonUnknownVersion
	}
}

// removed is the standing of a version that is not reported on any more, for one of lostBy's reasons.
func removed(why rollout.Reason) standing {
	s := standing{state: StateRemoved, reason: why, message: "the version was deleted"}
	switch why {
	case rollout.ReasonUnknownEndpoint:
		s.message = "the endpoint was deleted, and its versions with it"
	case rollout.ReasonNotBound:
		s.message = "the repository is not bound to the endpoint any more; what becomes of the version is not shown here"
	}
	return s
}

// Removed is the last comment on a version that is not reported on any more, in Markdown: the reason is unknown_version,
// unknown_endpoint or not_bound. The mark is that of the comment before.
func Removed(was Mark, why rollout.Reason) string {
	s := removed(why)
	var b strings.Builder
	fmt.Fprintf(&b, "### %s %s: %s %s\n\n", icons[s.state], markdown.Code(was.Key().String()), markdown.Code(was.Version), markdown.Escape(title(s)))
	fmt.Fprintf(&b, "**Removed** (%s): %s.\n", markdown.Code(string(why)), markdown.Prose(s.message))
	if icons[was.State] != "" { // people can edit marks
		fmt.Fprintf(&b, "\nThe last that was shown of it: %s.\n", was.State)
	}
	switch why {
	case rollout.ReasonNotBound:
		fmt.Fprintf(&b, "\n**Next:** %s.\n", markdown.Prose("whoever has the command line binds it again with `sluice update ENDPOINT --bind-repository ID`"))
	default:
		b.WriteString("\n**Next:** push, to deploy another version.\n")
	}
	was.State, was.Sent = s.state, ""
	return markdown.Bound(b.String(), MaxComment) + "\n" + was.String() + "\n"
}

// last is what is shown of a version that is not reported on any more; false if what is shown is the end of its story already.
func (p piece) last(why rollout.Reason) (piece, bool) {
	if p.state.over() && p.state != StatePromoted {
		return piece{}, false
	}
	s, c := removed(why), conclusions[StateRemoved]
	p.check.Actions, p.check.Annotations = nil, nil
	p.check.Title = markdown.Cut(p.version+" "+title(s), maxTitle)
	p.check.Summary = fmt.Sprintf("%s at %s: **%s** (%s): %s.\n", markdown.Code(p.version), markdown.Code(p.deployment.Environment), s.state, markdown.Code(string(why)), markdown.Prose(s.message))
	if p.state != StatePromoted { // that it was promoted stays true
		p.check.Conclusion, p.check.Status = c.check, c.status
	}
	p.deployment.State, p.deployment.Description = c.deployment, markdown.Cut(markdown.Plain(p.version+" "+title(s)), maxDescription-1)
	p.state = s.state
	return p, true
}

// pieceOf what a mark says of its version, as far as it can be trusted: whoever may write to the repository can edit it, so that
// it may end things, and passes no check.
func pieceOf(m Mark) []piece {
	if !sha.MatchString(m.Commit) || m.Version == "" {
		return nil
	}
	key := m.Key().String()
	p := piece{version: m.Version, state: m.State, deployment: Deployment{Environment: key, Commit: m.Commit, Version: m.Version}}
	if m.State != StatePromoted {
		p.check = Check{Name: "sluice/" + m.Endpoint, External: key + "/" + m.Version, Head: m.Commit}
		if m.Check == "sluice/"+key {
			p.check.Name = m.Check
		}
	}
	return []piece{p}
}

// lose notes which of the versions that were shown are not among all any more.
func (r *Reporter) lose(s *slot, shown, all []piece, why rollout.Reason) {
	for _, p := range shown {
		if slices.ContainsFunc(all, func(x piece) bool { return x.version == p.version }) {
			continue
		}
		if p, ok := p.last(why); ok {
			// A commit has one status, which is another version's now.
			if !r.o.GitHub.App() && slices.ContainsFunc(all, func(x piece) bool { return x.check.Head == p.check.Head }) {
				p.check = Check{}
			}
			s.lost[p.version] = p
		}
	}
	for _, p := range all { // it is back
		delete(s.lost, p.version)
	}
}

// show notes that GitHub gets those pieces now: it may have new ones of them, whatever the answer.
func (s *slot) show(all []piece) {
	for _, p := range all {
		if !slices.ContainsFunc(s.shown, func(x piece) bool { return x.version == p.version }) {
			s.shown = append(slices.Clip(s.shown), p)
		}
	}
}

// lostPieces in the order of their versions.
func (s *slot) lostPieces() []piece {
	var out []piece
	for _, p := range s.lost {
		out = append(out, p)
	}
	slices.SortFunc(out, func(a, b piece) int { return strings.Compare(a.version, b.version) })
	return out
}

// others are the endpoint's places but those.
func (r *Reporter) others(key rollout.Key, but []PullRequest) []place {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []place
	for at := range r.slots {
		if at.key == key && !slices.Contains(but, at.PullRequest) {
			out = append(out, at)
		}
	}
	return out
}

func (r *Reporter) forget(at place) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.slots, at)
}

// sure says whether an endpoint that is not listed is gone. One that cannot be read is not listed either.
func (r *Reporter) sure(ctx context.Context, key rollout.Key) bool {
	_, err := r.o.Store.Get(ctx, key)
	if err != nil && !errors.Is(err, cluster.ErrNotFound) {
		r.log.WarnContext(ctx, "whether an endpoint is gone is not known: its reports stay as they are", "endpoint", key.String(), "error", err)
	}
	return errors.Is(err, cluster.ErrNotFound)
}

// end shows for the last time, and says when to look again; 0: nothing is left to be shown, and the place is forgotten.
func (r *Reporter) end(ctx context.Context, at place, s *slot, why rollout.Reason) (time.Duration, error) {
	wait, err := r.showEnd(ctx, at, s, why)
	var t chatops.Temporary
	switch {
	case ctx.Err() != nil:
		return 0, ctx.Err()
	case err != nil && (!errors.As(err, &t) || t.Temporary()):
		return 0, err
	case err != nil && s.refusals < maxRefusals:
		s.refusals++
		return refusedWait, nil
	case err != nil: // such as a repository that is gone, too
		r.log.WarnContext(ctx, "the end of a version cannot be shown", "endpoint", at.key.String(), "repository", at.Repository, "pullRequest", at.Number, "error", err)
	case wait > 0:
		return wait, nil
	}
	r.forget(at)
	return 0, nil
}

func (r *Reporter) showEnd(ctx context.Context, at place, s *slot, why rollout.Reason) (time.Duration, error) {
	repo, err := r.o.GitHub.Repository(ctx, at.Repository)
	if err != nil {
		return 0, err
	}
	if !r.isLoaded(s) {
		if err := r.load(ctx, at, s, repo); err != nil {
			return 0, err
		}
	}
	m, ok := MarkOf(s.body)
	ok = ok && s.comment != 0 && m.Key() == at.key
	if ok {
		r.lose(s, pieceOf(m), nil, why)
	}
	r.lose(s, s.shown, nil, why) // it knows more than a mark
	open := ok && (!m.State.over() || m.State == StatePromoted)
	if !open && len(s.lost) == 0 {
		r.told(ctx, at, s, why)
		return 0, nil
	}
	if !s.edited.IsZero() {
		if wait := time.Until(s.edited.Add(r.gap(s, true))); wait > 0 {
			return wait, nil
		}
	}
	s.edited = time.Now()
	s.changes++
	if _, err := r.send(ctx, repo, s, s.lostPieces()); err != nil {
		return 0, err
	}
	if open {
		if err := r.comment(ctx, at, s, repo, Removed(m, why)); err != nil {
			return 0, err
		}
	}
	r.told(ctx, at, s, why)
	return 0, nil
}

// told notes that the place needs no look at the next start.
func (r *Reporter) told(ctx context.Context, at place, s *slot, why rollout.Reason) {
	if err := r.o.Journal.Finish(ctx, at.name(), cluster.EntryDone, why, strconv.FormatInt(s.comment, 10)); err != nil {
		// Then the next start finds out by the comment.
		r.log.WarnContext(ctx, "the end of a report cannot be recorded", "endpoint", at.key.String(), "comment", s.comment, "error", err)
	}
}

// recall the places that are on record: what they show may have gone while nobody looked. It tries until the journal answers.
func (r *Reporter) recall(ctx context.Context) {
	for wait := firstWait; ; wait = min(2*wait, longestWait) {
		all, err := r.o.Journal.Entries(ctx)
		if err == nil {
			r.remind(all)
			return
		}
		r.log.WarnContext(ctx, "reports that were written before cannot be listed", "again", wait, "error", err)
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return
		}
	}
}

// remind of the places in entries, which are oldest first.
func (r *Reporter) remind(entries []cluster.Entry) {
	n := 0
	for _, e := range slices.Backward(entries) {
		at, ok := placeOf(e)
		if !ok || e.Reason != "" { // told
			continue
		}
		if n++; n > maxRecalled {
			return
		}
		r.slot(at)
		r.schedule(at.key, r.o.Settle)
	}
}

// placeOf the entry that records where a comment is.
func placeOf(e cluster.Entry) (place, bool) {
	at := place{key: e.Endpoint}
	if _, err := fmt.Sscanf(e.Name, "r-%d-%d.", &at.Repository, &at.Number); err != nil {
		return place{}, false
	}
	return at, at.Repository > 0 && at.Number > 0 && at.name() == e.Name
}
