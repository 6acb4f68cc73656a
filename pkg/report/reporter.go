package report

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/sluice-dev/sluice/pkg/chatops"
	"github.com/sluice-dev/sluice/pkg/cluster"
	"github.com/sluice-dev/sluice/rollout"
)

// ErrGone says that the comment to be edited is not there any more.
var ErrGone = errors.New("the comment is gone")

// Found is a comment on GitHub; its ID is 0 if there is none.
type Found struct {
	ID   int64
	Body string
}

// GitHub is the API as far as reports need it. What is put is looked for before
// it is made, so that putting it again after a lost answer makes no second one.
// Implementations bound each call in time and say with chatops.Temporary which
// failures may pass.
type GitHub interface {
	// App says whether check runs, with their buttons, may be written; else commit statuses are.
	App() bool
	// Repository finds where a repository is by its id.
	Repository(ctx context.Context, id int64) (chatops.Repository, error)
	// FindComment of ours that is marked as the endpoint's. The id is where it is thought to be, or 0.
	FindComment(ctx context.Context, repo chatops.Repository, number int, id int64, key rollout.Key) (Found, error)
	// PutComment edits the comment of that id, else ErrGone, or adds one if it is 0.
	PutComment(ctx context.Context, repo chatops.Repository, number int, id int64, body string) (int64, error)
	PutCheck(ctx context.Context, repo chatops.Repository, c Check) (int64, error)
	PutStatus(ctx context.Context, repo chatops.Repository, c Check) error
	PutDeployment(ctx context.Context, repo chatops.Repository, d Deployment) (int64, error)
}

// Journal is what reports need of cluster.Journal: where a comment is outlives the process.
type Journal interface {
	Claim(ctx context.Context, e cluster.Entry) (cluster.Entry, bool, error)
	Finish(ctx context.Context, name string, state cluster.EntryState, reason rollout.Reason, result string) error
	Entries(ctx context.Context) ([]cluster.Entry, error)
}

// Config of a Reporter. Store, Journal and GitHub must be set.
type Config struct {
	Store   cluster.Reader
	Journal Journal
	GitHub  GitHub
	Logger  *slog.Logger
	// Every is how long a comment stays as it is while only numbers change; 30 s unless set. With many
	// reports it is longer, so that GitHub's limit of 500 an hour is kept.
	Every time.Duration
	// Gap is how long a comment stays as it is at least; 3 s unless set, and 20 or 200 times as long after
	// as many changes of state: a commit takes 1,000 statuses.
	Gap time.Duration
	// Settle is how long changes are waited for that come together; 500 ms unless set.
	Settle time.Duration
	// Overlap is how long another process that began to write a comment is let finish; 15 s unless set.
	Overlap time.Duration
	// Prefix, OnMerge, Permissions and Pictures are those of Options.
	Prefix      bool
	OnMerge     string
	Permissions bool
	Pictures    *Pictures
}

const (
	// many reports share GitHub's limit: each adds a part of Every to the time between two edits of numbers.
	many = 3
	// firstWait after a failure doubles up to longestWait; what GitHub refuses for good is tried again after refusedWait.
	firstWait   = 2 * time.Second
	longestWait = 2 * time.Minute
	refusedWait = 10 * time.Minute
	// maxRenewals bounds those that wait for the next look.
	maxRenewals = 1000
)

// Reporter shows endpoints on their pull requests. It looks at what is, not at
// what happened: whatever it missed, the next look makes up for. For each pull
// request it writes first the checks, then the deployments, then the comment.
type Reporter struct {
	o   Config
	log *slog.Logger

	mu    sync.Mutex
	due   map[rollout.Key]time.Time
	wake  chan struct{}
	slots map[place]*slot
	renew map[renewal]bool
}

// renewal of a check is asked for.
type renewal struct {
	key        rollout.Key
	repository int64
	commit     string
}

// place is one comment.
type place struct {
	key rollout.Key
	PullRequest
}

func (p place) name() string {
	return fmt.Sprintf("r-%d-%d.%s.%s", p.Repository, p.Number, p.key.Namespace, p.key.Name)
}

// slot is what is known of a place on GitHub.
type slot struct {
	loaded  bool // comment and body are GitHub's
	claimed bool // by this process
	comment int64
	body    string
	// written is the body that this process wrote last: another one is somebody else's.
	written string
	sent    string
	pieces  map[string]sentPiece
	edited  time.Time
	changes int
	wait    time.Duration
	// refused says that something failed for good, and is tried again late.
	refused bool
	// refusals of its end.
	refusals int
	// commits of the versions that it shows.
	commits []string
	// shown are the pieces that GitHub has, lost those of versions that are not reported on any more and of which that is to be shown.
	shown []piece
	lost  map[string]piece
	// renew are the versions whose checks are to be written though nothing changed.
	renew map[string]bool
	// recheck is when to look again because of Notice, if that is to be; noticed, when that was done last.
	recheck, noticed time.Time
}

type sentPiece struct {
	digest            string
	check, deployment int64
}

// NewReporter does nothing before Run.
func NewReporter(o Config) *Reporter {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Every == 0 {
		o.Every = 30 * time.Second
	}
	if o.Overlap == 0 {
		o.Overlap = 15 * time.Second
	}
	if o.Gap == 0 {
		o.Gap = 3 * time.Second
	}
	if o.Settle == 0 {
		o.Settle = 500 * time.Millisecond
	}
	return &Reporter{o: o, log: o.Logger, due: map[rollout.Key]time.Time{}, wake: make(chan struct{}, 1), slots: map[place]*slot{}, renew: map[renewal]bool{}}
}

// Look again at what a pull request shows: somebody may have changed it there. It is bounded as Notice is, so that
// no echo of what the reporter does makes it do more.
func (r *Reporter) Look(repository int64, number int) { r.Notice(repository, number, "") }

// Notice that something happened on a pull request, or without a number on those of a commit. It makes the
// reporter look again at what it shows there, but for each comment no more often than Every, however often it is called.
func (r *Reporter) Notice(repository int64, number int, commit string) {
	now := time.Now()
	r.mu.Lock()
	for p, s := range r.slots {
		if p.Repository != repository || !(number > 0 && p.Number == number || number <= 0 && slices.Contains(s.commits, commit)) || !s.recheck.IsZero() {
			continue
		}
		s.recheck = now
		if next := s.noticed.Add(r.o.Every); next.After(now) {
			s.recheck = next
		}
		if was, ok := r.due[p.key]; !ok || s.recheck.Before(was) {
			r.due[p.key] = s.recheck
		}
	}
	r.mu.Unlock()
	r.tell()
}

// Renew makes the next look write the check run of a commit once more, though it says what it said before. GitHub waits for
// that when somebody has it run again. And of the press of a button GitHub says no time: two presses are told apart by when
// the check run was completed, so that one that was refused can be repeated only after this. It is written no sooner than a change of
// state would be. Without an App there is no check run, and nothing is done. It returns at once.
func (r *Reporter) Renew(repository int64, commit string, endpoint rollout.Key) {
	if !r.o.GitHub.App() {
		return
	}
	r.mu.Lock()
	if len(r.renew) < maxRenewals {
		r.renew[renewal{endpoint, repository, commit}] = true
	}
	r.mu.Unlock()
	r.schedule(endpoint, 0)
}

// renewals of the endpoint that were asked for, which are taken by that. What none of its places has is dropped.
func (r *Reporter) renewals(key rollout.Key) []renewal {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []renewal
	for n := range r.renew {
		if n.key == key {
			out = append(out, n)
			delete(r.renew, n)
		}
	}
	return out
}

// rechecked takes note of a place's commits, and says whether Notice is waiting, and how long for.
func (r *Reporter) rechecked(s *slot, commits []string) (wait time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	s.commits = commits
	if s.recheck.IsZero() {
		return 0
	}
	now := time.Now()
	if wait = s.recheck.Sub(now); wait > 0 {
		return wait
	}
	s.recheck, s.noticed, s.loaded = time.Time{}, now, false
	return 0
}

func (r *Reporter) tell() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// schedule a look at the endpoint, unless one is due earlier.
func (r *Reporter) schedule(key rollout.Key, in time.Duration) {
	r.mu.Lock()
	at := time.Now().Add(in)
	if was, ok := r.due[key]; !ok || at.Before(was) {
		r.due[key] = at
	}
	r.mu.Unlock()
	r.tell()
}

// Run reports until ctx ends.
func (r *Reporter) Run(ctx context.Context) error {
	keys, err := r.o.Store.Watch(ctx)
	if err != nil {
		return fmt.Errorf("watch endpoints: %w", err)
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		for key := range keys {
			r.schedule(key, r.o.Settle)
		}
	})
	wg.Go(func() { r.recall(ctx) })
	for {
		key, wait, ok := r.next()
		if !ok {
			var timer <-chan time.Time
			if wait > 0 {
				timer = time.After(wait)
			}
			select {
			case <-r.wake:
			case <-timer:
			case <-ctx.Done():
				return nil
			}
			continue
		}
		if again := r.endpoint(ctx, key); again > 0 {
			r.schedule(key, again)
		}
		if ctx.Err() != nil {
			return nil
		}
	}
}

// next takes the endpoint that is due longest, or says how long until one is; 0: none is waited for.
func (r *Reporter) next() (rollout.Key, time.Duration, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var first rollout.Key
	var at time.Time
	for k, t := range r.due {
		if at.IsZero() || t.Before(at) {
			first, at = k, t
		}
	}
	if at.IsZero() {
		return rollout.Key{}, 0, false
	}
	if wait := time.Until(at); wait > 0 {
		return rollout.Key{}, wait, false
	}
	delete(r.due, first)
	return first, 0, true
}

// endpoint shows one endpoint on all its pull requests, and says when to look again; 0: when it changes.
func (r *Reporter) endpoint(ctx context.Context, key rollout.Key) time.Duration {
	all, err := r.o.Store.List(ctx)
	if err != nil {
		r.log.WarnContext(ctx, "endpoints cannot be listed for reports", "error", err)
		return longestWait
	}
	i := slices.IndexFunc(all, func(e *rollout.Endpoint) bool { return e.Key() == key })
	var e *rollout.Endpoint
	var pulls []PullRequest
	if i >= 0 {
		e = all[i]
		pulls = PullRequests(e)
	} else if len(r.others(key, nil)) > 0 && !r.sure(ctx, key) {
		return longestWait
	}
	renewals := r.renewals(key)
	var again time.Duration
	sooner := func(wait time.Duration) {
		if wait > 0 && (again == 0 || wait < again) {
			again = wait
		}
	}
	for _, p := range pulls {
		at := place{key, p}
		s := r.slot(at)
		sooner(r.rechecked(s, commitsOf(e, p)))
		for _, v := range p.versions(e) {
			if slices.Contains(renewals, renewal{key, p.Repository, v.Source.Commit}) {
				s.renew[v.Name] = true
			}
		}
		wait, err := r.show(ctx, at, s, e, r.options(all, e))
		switch {
		case ctx.Err() != nil:
			return 0
		case err != nil:
			wait = r.failed(ctx, at, s, err)
		case wait == 0:
			s.wait = 0
		}
		sooner(wait)
	}
	for _, at := range r.others(key, pulls) {
		s := r.slot(at)
		wait, err := r.end(ctx, at, s, lostBy(e, at.PullRequest))
		switch {
		case ctx.Err() != nil:
			return 0
		case err != nil:
			wait = r.failed(ctx, at, s, err)
		}
		sooner(wait)
	}
	return again
}

// commitsOf the endpoint's versions of the pull request.
func commitsOf(e *rollout.Endpoint, p PullRequest) []string {
	var out []string
	for _, v := range p.versions(e) {
		out = append(out, v.Source.Commit)
	}
	return out
}

func (r *Reporter) failed(ctx context.Context, at place, s *slot, err error) time.Duration {
	var t chatops.Temporary
	if errors.As(err, &t) && !t.Temporary() {
		s.wait = refusedWait
	} else {
		s.wait = min(max(2*s.wait, firstWait), longestWait)
	}
	r.log.WarnContext(ctx, "report not taken by GitHub", "endpoint", at.key.String(), "repository", at.Repository, "pullRequest", at.Number, "again", s.wait, "error", err)
	return s.wait
}

func (r *Reporter) slot(at place) *slot {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.slots[at]
	if s == nil {
		s = &slot{pieces: map[string]sentPiece{}, lost: map[string]piece{}, renew: map[string]bool{}}
		r.slots[at] = s
	}
	return s
}

// options of an endpoint: where another of its name reports to the same repository, the check's name has the namespace.
func (r *Reporter) options(all []*rollout.Endpoint, e *rollout.Endpoint) Options {
	o := Options{Buttons: r.o.GitHub.App(), Prefix: r.o.Prefix, OnMerge: r.o.OnMerge, Permissions: r.o.Permissions, Pictures: r.o.Pictures}
	for _, x := range all {
		if x.Metadata.Name == e.Metadata.Name && x.Key() != e.Key() && slices.ContainsFunc(x.Spec.Repositories, func(id int64) bool { return slices.Contains(e.Spec.Repositories, id) }) {
			o.Check = "sluice/" + e.Key().String()
		}
	}
	return o
}

// gap is how long a comment stays as it is.
func (r *Reporter) gap(s *slot, changed bool) time.Duration {
	if !changed {
		r.mu.Lock()
		n := len(r.slots)
		r.mu.Unlock()
		return max(r.o.Every, time.Duration(n)*r.o.Every/many)
	}
	for _, n := range []int{200, 20} {
		if s.changes >= n {
			return time.Duration(n) * r.o.Gap
		}
	}
	return r.o.Gap
}

// show makes the pull request show the endpoint as it is, and says when to look again.
func (r *Reporter) show(ctx context.Context, at place, s *slot, e *rollout.Endpoint, o Options) (time.Duration, error) {
	all := pieces(e, at.PullRequest, o)
	sent := digestOf(all)
	body := Comment(e, at.PullRequest, o, sent)
	r.lose(s, s.shown, all, rollout.ReasonUnknownVersion)
	if r.isLoaded(s) && body == s.body && !s.refused && len(s.renew)+len(s.lost) == 0 {
		return 0, nil
	}
	repo, err := r.o.GitHub.Repository(ctx, at.Repository)
	if err != nil {
		return 0, err
	}
	if !r.isLoaded(s) {
		if err := r.load(ctx, at, s, repo); err != nil {
			return 0, err
		}
		if s.comment != 0 && s.body == body {
			s.sent, s.written, s.shown, s.refused = sent, body, all, false
			if len(s.renew)+len(s.lost) == 0 {
				return 0, nil
			}
		}
		if m, ok := MarkOf(s.body); s.comment != 0 && ok && m.Key() == at.key {
			r.lose(s, pieceOf(m), all, rollout.ReasonUnknownVersion)
			if m.Sent == sent {
				s.sent, s.shown = sent, all
			}
		}
	}
	// Looking costs little; whatever made it look, it writes no sooner than it may.
	if wait := r.rest(s, sent); wait > 0 {
		return wait, nil
	}
	s.edited = time.Now()
	refused := false
	if s.sent != sent || s.refused || len(s.renew)+len(s.lost) > 0 {
		s.changes++
		s.show(all)
		if refused, err = r.send(ctx, repo, s, append(s.lostPieces(), all...)); err != nil {
			return 0, err
		}
		s.shown = all
		clear(s.renew)
		clear(s.lost)
	}
	if err := r.comment(ctx, at, s, repo, body); err != nil {
		return 0, err
	}
	s.sent, s.refused = sent, refused
	if refused {
		return refusedWait, nil
	}
	return 0, nil
}

// rest is how long the comment is still to stay as it is. What somebody changed there is made good as soon as a change of state is shown.
func (r *Reporter) rest(s *slot, sent string) time.Duration {
	if s.edited.IsZero() {
		return 0
	}
	return time.Until(s.edited.Add(r.gap(s, sent != s.sent || s.body != s.written || len(s.renew)+len(s.lost) > 0)))
}

func (r *Reporter) isLoaded(s *slot) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return s.loaded
}

func (r *Reporter) setLoaded(s *slot, is bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	s.loaded = is
}

// load finds the comment: where the journal says it is, else by its mark.
func (r *Reporter) load(ctx context.Context, at place, s *slot, repo chatops.Repository) error {
	if s.comment == 0 {
		entry, fresh, err := r.o.Journal.Claim(ctx, cluster.Entry{Name: at.name(), Endpoint: at.key, Command: "report", Actor: rollout.Engine})
		if err != nil {
			return fmt.Errorf("record the comment's place: %w", err)
		}
		s.comment, _ = strconv.ParseInt(entry.Result, 10, 64)
		if entry.Reason != "" { // the end was told, and it goes on
			r.remember(ctx, at, s.comment)
		}
		s.claimed = s.claimed || fresh
		if s.comment == 0 && !s.claimed {
			if wait := time.Until(entry.At.Add(r.o.Overlap)); wait > 0 && wait <= r.o.Overlap {
				return &waiting{wait}
			}
			s.claimed = true
		}
	}
	// What somebody changes from here on is seen by the next look.
	r.setLoaded(s, true)
	found, err := r.o.GitHub.FindComment(ctx, repo, at.Number, s.comment, at.key)
	if err != nil {
		r.setLoaded(s, false)
		return err
	}
	if found.ID != 0 && found.ID != s.comment {
		r.remember(ctx, at, found.ID)
	}
	s.comment, s.body = found.ID, found.Body
	return nil
}

// waiting is for another process that has begun.
type waiting struct{ d time.Duration }

func (w *waiting) Error() string {
	return fmt.Sprintf("another process is about to write the comment; looked at again in %s", w.d)
}
func (w *waiting) Temporary() bool { return true }

func (r *Reporter) remember(ctx context.Context, at place, id int64) {
	if err := r.o.Journal.Finish(ctx, at.name(), cluster.EntryDone, "", strconv.FormatInt(id, 10)); err != nil {
		// Then it is found by its mark.
		r.log.WarnContext(ctx, "the place of a comment cannot be recorded", "endpoint", at.key.String(), "comment", id, "error", err)
	}
}

// send the checks and deployments that are not as they were sent. What GitHub
// refuses for good, such as for a missing permission, keeps nothing else from being sent.
func (r *Reporter) send(ctx context.Context, repo chatops.Repository, s *slot, all []piece) (refused bool, err error) {
	kept := map[string]sentPiece{}
	for _, p := range all {
		was := s.pieces[p.version]
		if was.digest == p.digest() && !s.renew[p.version] {
			kept[p.version] = was
			continue
		}
		ok := true
		try := func(what string, err error) error {
			var t chatops.Temporary
			if err == nil {
				return nil
			}
			if !errors.As(err, &t) || t.Temporary() {
				return err
			}
			ok, refused = false, true
			r.log.WarnContext(ctx, "GitHub refuses part of a report", "part", what, "repository", repo.String(), "version", p.version, "error", err)
			return nil
		}
		p.check.ID, p.deployment.ID = was.check, was.deployment
		now := was
		now.digest = ""
		switch {
		case p.check.Name == "": // it stays as it is
		case r.o.GitHub.App():
			id, err := r.o.GitHub.PutCheck(ctx, repo, p.check)
			if err == nil {
				now.check = id
			} else {
				now.check = 0 // looked for anew
			}
			if err = try("check run", err); err != nil {
				return refused, err
			}
		default:
			if err := try("commit status", r.o.GitHub.PutStatus(ctx, repo, p.check)); err != nil {
				return refused, err
			}
		}
		s.pieces[p.version] = now
		id, err := r.o.GitHub.PutDeployment(ctx, repo, p.deployment)
		now.deployment = 0
		if err == nil {
			now.deployment = id
		}
		if err = try("deployment", err); err != nil {
			s.pieces[p.version] = now
			return refused, err
		}
		if ok {
			now.digest = p.digest()
		}
		s.pieces[p.version] = now
		kept[p.version] = now
	}
	s.pieces = kept
	return refused, nil
}

// comment writes the comment, which comes last.
func (r *Reporter) comment(ctx context.Context, at place, s *slot, repo chatops.Repository, body string) error {
	if s.body == body && s.comment != 0 {
		return nil
	}
	id, err := r.o.GitHub.PutComment(ctx, repo, at.Number, s.comment, body)
	if errors.Is(err, ErrGone) {
		r.log.InfoContext(ctx, "the comment was deleted; another is written", "endpoint", at.key.String(), "pullRequest", at.Number, "comment", s.comment)
		s.comment, s.claimed = 0, true
		if err := r.load(ctx, at, s, repo); err != nil {
			return err
		}
		id, err = r.o.GitHub.PutComment(ctx, repo, at.Number, s.comment, body)
	}
	if err != nil {
		r.setLoaded(s, false) // it may have been written all the same
		return err
	}
	if id != s.comment {
		r.remember(ctx, at, id)
	}
	s.comment, s.body, s.written = id, body, body
	return nil
}

// OnMergeText says in a comment what a merge does; empty for nothing.
func OnMergeText(policy string) string {
	switch strings.ToLower(policy) {
	case "promote":
		return "promotes it"
	case "continue":
		return "lets it be judged on, and changes no traffic"
	default:
		return ""
	}
}
