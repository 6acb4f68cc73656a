package chatops

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"log/slog"
	"maps"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/sluice-dev/sluice/pkg/cluster"
	"github.com/sluice-dev/sluice/rollout"
)

// MaxAge of a comment: journal entries are kept as long, so that an older one
// could be carried out a second time.
const MaxAge = 35 * 24 * time.Hour

// ErrBusy is Accept's answer when the queue is full or the service ends: nothing
// was recorded, and the sender should try again.
var ErrBusy = errors.New("too many commands wait")

// Options of a Service. Store, Journal and GitHub must be set.
type Options struct {
	Store   cluster.Store
	Journal Journal
	GitHub  GitHub
	Logger  *slog.Logger
	// PrefixOnly leaves commands without /sluice before them to other bots.
	PrefixOnly bool
	// OnMerge is MergeNothing unless set.
	OnMerge OnMerge
	// Patience is how long a merge waits for replicas that can carry all traffic; 15 min unless set.
	Patience time.Duration
	// Permissions per command; without them each needs the role write. Directory is asked where they name teams or a file.
	Permissions *Permissions
	Directory   Directory
	// Overlap is how long another process that took up the same command, as when one takes over from the other, is let
	// answer it; 20 s unless set.
	Overlap time.Duration
	// Sweep is how often the journal is looked through for what no process sees through, and how long that is let do it; 1 min unless set.
	Sweep time.Duration
	// Renew has the check run of a commit written once more after a press of one of its buttons was refused: GitHub does not say
	// when a button was pressed, so that until then a second press cannot be told from the first told of again.
	Renew func(repository int64, commit string, endpoint rollout.Key)
	// Now is time.Now unless set.
	Now func() time.Time
	// Queue bounds the comments that are accepted and not carried out yet; 4096 unless set.
	Queue int
	// Grace is how long commands under way and replies may take once Run is told to end; 10 s unless set.
	Grace time.Duration
}

// The bounds that are nobody's to set.
const (
	lanes = 8
	// urgent is how many comments with a rollback are carried out at once beside the lanes.
	urgent = 32
	// authorise bounds what is asked of GitHub before a command; apply, the writing of its effect.
	authoriseTimeout = 15 * time.Second
	applyTimeout     = 30 * time.Second
	finishTimeout    = 10 * time.Second
	// answerWithin bounds how long after a command a missing reply is made up for.
	answerWithin = time.Hour
)

// Service carries out commands. Accept records them; Run does them.
//
// Comments on one pull request are carried out in the order in which they came;
// one with a rollback goes past the others, because a rollback waits for no
// other command.
type Service struct {
	o   Options
	log *slog.Logger
	out *outbox

	recovered chan struct{} // closed when pending entries of an earlier run are queued
	slots     chan struct{} // one per accepted comment
	reading   chan struct{} // one per comment that is being read
	lane      [lanes]*queue
	urgent    chan struct{} // one per urgent job

	mu       sync.Mutex
	flying   map[string]bool // entries queued or being carried out
	answered map[string]bool // entries that this process replies to, or has looked for a reply to
	refused  map[stranger]*refusals
	closed   bool
	jobs     sync.WaitGroup
	work     context.Context // ends the grace after Run was told to end
	stop     context.CancelFunc
}

// New is a service that does nothing before Run.
func New(o Options) *Service {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Queue == 0 {
		o.Queue = 4096
	}
	if o.Grace == 0 {
		o.Grace = 10 * time.Second
	}
	if o.OnMerge == "" {
		o.OnMerge = MergeNothing
	}
	if o.Patience == 0 {
		o.Patience = 15 * time.Minute
	}
	if o.Overlap == 0 {
		o.Overlap = 20 * time.Second
	}
	if o.Sweep == 0 {
		o.Sweep = time.Minute
	}
	if o.Directory == nil {
		o.Directory = silent{}
	}
	s := &Service{
		o: o, log: o.Logger, out: newOutbox(o.GitHub, o.Logger, o.Overlap),
		recovered: make(chan struct{}), slots: make(chan struct{}, o.Queue), reading: make(chan struct{}, max(2, runtime.GOMAXPROCS(0))), urgent: make(chan struct{}, urgent),
		flying: map[string]bool{}, answered: map[string]bool{}, refused: map[stranger]*refusals{},
	}
	for i := range s.lane {
		s.lane[i] = newQueue()
	}
	s.work, s.stop = context.WithCancel(context.Background())
	return s
}

// job is what one comment asks for.
type job struct {
	comment   Comment
	tasks     []task
	recovered bool
	slot      bool // gives one back to Service.slots
}

// task is one line of a comment.
type task struct {
	name string
	text string
	line Line
	at   time.Time
	// doubt says that another process may be at it, too.
	doubt bool
}

// Receipt says what Accept made of a comment.
type Receipt struct {
	// Commands recorded by this call; Duplicates were known already.
	Commands   int
	Duplicates int
	// Refused, if set, is why none was looked at.
	Refused rollout.Reason
}

// EntryName is the journal's name of a line of a comment.
func EntryName(comment int64, line int) string { return fmt.Sprintf("c-%d-%d", comment, line) }

// ButtonName is the journal's name of a button, by the digest of what told of it.
func ButtonName(digest string) string { return "d-" + strings.ToLower(digest) }

// Accept records the commands of a comment. When it returns without an error
// they are durable and will be carried out, by this process or the next. ErrBusy
// means that nothing was recorded; another error that the journal failed, and
// that the sender should deliver the comment again: what was recorded is done
// once all the same.
func (s *Service) Accept(ctx context.Context, c Comment) (Receipt, error) {
	select {
	case s.reading <- struct{}{}: // a hostile comment takes a second and some MiB
	case <-ctx.Done():
		return Receipt{}, ErrBusy
	}
	lines := parse(c.Body, !s.o.PrefixOnly)
	<-s.reading
	if len(lines) == 0 {
		return Receipt{}, nil
	}
	if s.quiet(c) {
		s.log.InfoContext(ctx, "comment passed over: its author has no role, and was refused too often a moment ago", "comment", c.ID, "author", c.Author, "repository", c.Repository.ID)
		return Receipt{Refused: rollout.ReasonDenied}, nil
	}
	if s.o.Now().Sub(c.CreatedAt) > MaxAge {
		s.log.WarnContext(ctx, "command refused", "comment", c.ID, "repository", c.Repository.ID, "reason", rollout.ReasonTooOld, "created", c.CreatedAt)
		return Receipt{Refused: rollout.ReasonTooOld}, nil
	}
	var tasks []task
	for _, l := range lines {
		tasks = append(tasks, task{name: EntryName(c.ID, l.Number), text: l.Text, line: l, at: s.o.Now().UTC()})
	}
	return s.record(ctx, c, tasks)
}

// AcceptButton records the command of a button as Accept does that of a comment.
func (s *Service) AcceptButton(ctx context.Context, b Button) (Receipt, error) {
	if !b.Action.button() {
		return Receipt{}, nil
	}
	if !b.Shown.IsZero() && s.o.Now().Sub(b.Shown) > MaxAge { // the journal does not know any more whether it was pressed
		s.log.WarnContext(ctx, "command refused", "button", b.Digest, "repository", b.Repository.ID, "reason", rollout.ReasonTooOld, "shown", b.Shown)
		return Receipt{Refused: rollout.ReasonTooOld}, nil
	}
	l, _ := ParseLine("/" + string(b.Action))
	c := Comment{
		Repository: b.Repository, PullRequest: b.PullRequest, Author: b.Sender, AuthorID: b.SenderID, CreatedAt: s.o.Now().UTC(),
		head: b.Head, endpoint: b.Endpoint,
	}
	return s.record(ctx, c, []task{{name: ButtonName(b.Digest), text: l.Text, line: l, at: s.o.Now().UTC()}})
}

// ready waits until what an earlier run left is queued, and takes a slot.
func (s *Service) ready(ctx context.Context) error {
	select {
	case <-s.recovered:
	case <-ctx.Done():
		return fmt.Errorf("wait for the journal: %w", ctx.Err())
	}
	if s.ended() {
		return ErrBusy
	}
	select {
	case s.slots <- struct{}{}:
		return nil
	default:
		return ErrBusy
	}
}

// record claims the tasks' entries, and queues those that are new or pending.
func (s *Service) record(ctx context.Context, c Comment, tasks []task) (Receipt, error) {
	if err := s.ready(ctx); err != nil {
		return Receipt{}, err
	}
	var receipt Receipt
	var failed error
	j := job{comment: c, slot: true}
	j.comment.Body = "" // its commands are all that is kept
	for _, t := range tasks {
		if !s.take(t.name) {
			receipt.Duplicates++
			continue
		}
		stored, fresh, err := s.o.Journal.Claim(ctx, entryOf(t, c))
		switch {
		case err != nil:
			s.drop(t.name)
			failed = errors.Join(failed, fmt.Errorf("record command %s: %w", t.name, err))
			continue
		case fresh:
			receipt.Commands++
		case stored.State == cluster.EntryPending:
			// Recorded by a delivery that failed half-way: it is as good as new. Or another process is at it.
			t.at, t.doubt = stored.At, true
			receipt.Duplicates++
		default:
			s.drop(t.name)
			receipt.Duplicates++
			continue
		}
		j.tasks = append(j.tasks, t)
	}
	if len(j.tasks) == 0 {
		<-s.slots
		return receipt, failed
	}
	if !s.enqueue(j) && failed == nil {
		// Recorded, but this process ends: the next one carries it out.
		s.log.InfoContext(ctx, "command left to the next start", "comment", c.ID)
	}
	return receipt, failed
}

// take marks an entry as being worked on; false if it is already.
func (s *Service) take(name string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.flying[name] {
		return false
	}
	s.flying[name] = true
	return true
}

func (s *Service) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
}

func (s *Service) ended() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closed
}

func (s *Service) drop(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.flying, name)
}

// enqueue hands a job to its lane; false when the service ends.
func (s *Service) enqueue(j job) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	if !j.recovered && j.comment.ID != 0 {
		s.out.react(j.comment, ReactionSeen)
	}
	for _, t := range j.tasks {
		if t.line.Verb == Rollback {
			s.jobs.Go(func() {
				select {
				case s.urgent <- struct{}{}:
					defer func() { <-s.urgent }()
					s.do(j)
				case <-s.work.Done():
				}
			})
			return true
		}
	}
	h := fnv.New32a()
	_, _ = fmt.Fprintf(h, "%d/%d", j.comment.Repository.ID, j.comment.PullRequest)
	s.lane[h.Sum32()%lanes].put(j)
	return true
}

// Run queues what an earlier run left pending, then carries out commands until
// ctx ends. Commands under way and their replies then have the grace to end;
// what is still queued stays pending in the journal. Run is called once.
func (s *Service) Run(ctx context.Context) error {
	defer s.stop()
	if err := s.takeUp(ctx, s.o.Now()); err != nil {
		s.end()
		close(s.recovered)
		return err
	}
	close(s.recovered)
	var watches sync.WaitGroup
	watches.Go(func() { s.sweep(ctx) })
	watches.Go(func() { s.watchRejected(ctx) })

	outCtx, outStop := context.WithCancel(context.WithoutCancel(ctx))
	defer outStop()
	var out sync.WaitGroup
	out.Go(func() { s.out.run(outCtx) })
	for _, q := range s.lane {
		s.jobs.Go(func() {
			for {
				j, ok := q.take(ctx)
				if !ok {
					return
				}
				s.do(j)
			}
		})
	}
	<-ctx.Done()

	grace := time.AfterFunc(s.o.Grace, s.stop)
	defer grace.Stop()
	s.end()
	watches.Wait()
	s.jobs.Wait()
	s.out.drain(s.work)
	outStop()
	out.Wait()
	return nil
}

// sweep takes up, again and again, what nobody else sees through: commands that a process took which has ended since, as when
// one takes over from another, and their answers.
func (s *Service) sweep(ctx context.Context) {
	for pause(ctx, s.o.Sweep) {
		if err := s.takeUp(ctx, s.o.Now().Add(-s.o.Sweep)); err != nil && ctx.Err() == nil {
			s.log.WarnContext(ctx, "the journal cannot be looked through", "error", err)
		}
	}
}

// takeUp queues what was recorded before then and is at nobody's here, oldest first, and answers what may be unanswered.
func (s *Service) takeUp(ctx context.Context, before time.Time) error {
	entries, err := s.o.Journal.Entries(ctx)
	if err != nil {
		return fmt.Errorf("read journal: %w", err)
	}
	s.forget(entries)
	for _, j := range s.leftOver(ctx, slices.DeleteFunc(entries, func(e cluster.Entry) bool { return e.At.After(before) })) {
		if !s.enqueue(j) {
			for _, t := range j.tasks {
				s.drop(t.name)
			}
		}
	}
	return nil
}

// forget which commands were answered, where it does not matter any more.
func (s *Service) forget(entries []cluster.Entry) {
	s.mu.Lock()
	defer s.mu.Unlock()
	known := map[string]bool{}
	for _, e := range entries {
		if s.answered[e.Name] && s.o.Now().Sub(e.At) <= answerWithin {
			known[e.Name] = true
		}
	}
	s.answered = known
}

// answering marks a command's reply as being given by this process; false if it was already.
func (s *Service) answering(name string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.answered[name] {
		return false
	}
	s.answered[name] = true
	return true
}

// leftOver are the jobs of pending entries that are not at work here.
func (s *Service) leftOver(ctx context.Context, entries []cluster.Entry) []job {
	var out []job
	at := map[int64]int{}
	for _, e := range entries {
		if e.State != cluster.EntryPending {
			s.answerAgain(e)
			continue
		}
		if strings.HasPrefix(e.Name, "m-") {
			c, err := closedOf(e)
			if err != nil {
				s.log.ErrorContext(ctx, "pending entry cannot be read", "name", e.Name, "error", err)
				s.finish(ctx, e.Name, refused(refuse(rollout.ReasonInvalid, "journal", "use the command line", "its record cannot be read")))
			} else if s.take(e.Name) {
				s.enqueueClosed(e.Name, c, e.At, false, true)
			}
			continue
		}
		button := strings.HasPrefix(e.Name, "d-")
		if !button && !strings.HasPrefix(e.Name, "c-") {
			continue
		}
		t, c, err := commandOf(e)
		if err != nil {
			s.log.ErrorContext(ctx, "pending command cannot be read", "name", e.Name, "error", err)
			s.finish(ctx, e.Name, refused(refuse(rollout.ReasonInvalid, "journal", "write the command again", "its record cannot be read")))
			continue
		}
		if !s.take(t.name) {
			continue
		}
		i, known := at[c.ID]
		if !known || button {
			i = len(out)
			at[c.ID] = i
			out = append(out, job{comment: c, recovered: true})
		}
		out[i].tasks = append(out[i].tasks, t)
		s.log.InfoContext(ctx, "pending command taken up", "name", e.Name, "recorded", e.At)
	}
	return out
}

// answerAgain replies to a command that an earlier run finished a short while ago, unless that run did:
// it may have ended in between.
func (s *Service) answerAgain(e cluster.Entry) {
	if !strings.HasPrefix(e.Name, "c-") || s.o.Now().Sub(e.At) > answerWithin || strings.HasPrefix(e.Result, unanswered) || !s.answering(e.Name) {
		return
	}
	_, c, err := commandOf(e)
	if err != nil {
		return
	}
	o := outcome{state: e.State, reason: e.Reason, message: e.Result}
	if e.State == cluster.EntryRefused {
		o.errs = []*rollout.Error{{Reason: e.Reason, Message: e.Result}}
	}
	s.out.replyOnce(c, render(e.Name, e.Command, c, o))
}

// do carries out a comment's commands one after the other. Reactions are the comment's, each given once.
func (s *Service) do(j job) {
	if j.slot {
		defer func() { <-s.slots }()
	}
	ask := &authority{}
	var reactions []Reaction
	for _, t := range j.tasks {
		if s.work.Err() == nil {
			if r := s.command(s.work, j, t, ask); r != "" && j.comment.ID != 0 && !slices.Contains(reactions, r) {
				reactions = append(reactions, r)
				s.out.react(j.comment, r)
			}
		}
		s.drop(t.name)
	}
}

// errEnded says that another process has seen the command through.
var errEnded = errors.New("the command has ended already")

// doubtful says that another process may be at the command, too: it was once, or it takes up by its sweep what waits here.
func (s *Service) doubtful(j job, t task) bool {
	return j.recovered || t.doubt || s.waitedLong(t.at)
}

// waitedLong says that another process's sweep may have come by since.
func (s *Service) waitedLong(since time.Time) bool { return s.o.Now().Sub(since) >= s.o.Sweep/2 }

// seenThrough is a command's entry, and whether some process has seen it through. Of one that cannot be read it is not known, so not.
func (s *Service) seenThrough(ctx context.Context, e cluster.Entry) (cluster.Entry, bool) {
	stored, _, err := s.o.Journal.Claim(ctx, e)
	return stored, err == nil && stored.State != cluster.EntryPending
}

// command carries out one, and is how to react to its comment.
func (s *Service) command(ctx context.Context, j job, t task, ask *authority) Reaction {
	if s.doubtful(j, t) {
		// What another process said of it holds.
		if stored, ended := s.seenThrough(ctx, entryOf(t, j.comment)); ended {
			s.answerAgain(stored)
			return ""
		}
	}
	o, err := s.carryOut(ctx, &j, t, ask)
	c := j.comment
	if err != nil && !errors.Is(err, errEnded) { // this process ends, and the next one looks again
		s.log.WarnContext(ctx, "command left to the next start", "name", t.name, "error", err)
		return ""
	}
	doubt := s.doubtful(j, t)
	if doubt {
		// The first end holds, but for an effect: that is told as what it is.
		effect := false
		if all, err := s.list(ctx); err == nil {
			var known outcome
			if known, effect = alreadyDone(all, t.name); effect && o.state != cluster.EntryDone {
				o = known
			}
		}
		if stored, ended := s.seenThrough(ctx, entryOf(t, j.comment)); ended && (stored.State == cluster.EntryDone || !effect) {
			s.answerAgain(stored)
			return ""
		}
	}
	if err != nil { // the journal said so a moment ago, and does not say anything now
		s.log.WarnContext(ctx, "command left to the next start", "name", t.name, "error", err)
		return ""
	}
	s.finish(ctx, t.name, o)
	if o.silent {
		s.refuse(c)
	}
	attrs := []any{"name", t.name, "command", t.text, "actor", actor(c), "repository", c.Repository.ID, "pullRequest", c.PullRequest,
		"state", o.state, "reason", o.reason, "result", o.result(), "recovered", j.recovered}
	if len(o.endpoints) == 1 {
		attrs = append(attrs, "endpoint", o.endpoints[0].Key().String(), "version", o.version)
	}
	s.log.InfoContext(ctx, "command", attrs...)

	if c.head != "" { // of a button, the check run and the comment tell what it did
		if o.state == cluster.EntryRefused {
			s.replyTo(c, render(t.name, t.text, c, o), doubt)
			if s.o.Renew != nil {
				s.o.Renew(c.Repository.ID, c.head, c.endpoint)
			}
		}
		return ""
	}
	if !o.silent && s.answering(t.name) {
		s.replyTo(c, render(t.name, t.text, c, o), doubt)
	}
	if o.state == cluster.EntryRefused {
		return ReactionRefused
	}
	return ReactionDone
}

// stranger is somebody without a role in a public repository.
type stranger struct{ repository, author int64 }

// refusals of a stranger's comments: since when, how many, and the last one.
type refusals struct {
	since time.Time
	n     int
	last  int64
}

// Bounds on what strangers can have us do: so many comments each in that time, and how many are remembered. A team's member may be
// taken for a stranger by what they may not do, and has tries left for what they may.
const (
	quietFor     = time.Minute
	quietAfter   = 3
	maxStrangers = 10_000
)

// refuse remembers that a stranger was.
func (s *Service) refuse(c Comment) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.o.Now()
	if len(s.refused) >= maxStrangers {
		maps.DeleteFunc(s.refused, func(_ stranger, r *refusals) bool { return now.Sub(r.since) >= quietFor })
	}
	who := stranger{c.Repository.ID, c.AuthorID}
	r := s.refused[who]
	switch {
	case r == nil && len(s.refused) >= maxStrangers:
		return
	case r == nil || now.Sub(r.since) >= quietFor:
		r = &refusals{since: now}
		s.refused[who] = r
	case r.last == c.ID: // another line of it
		return
	}
	r.n, r.last = r.n+1, c.ID
}

// quiet says that the comment's author was refused as a stranger too often a moment ago.
func (s *Service) quiet(c Comment) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.refused[stranger{c.Repository.ID, c.AuthorID}]
	return r != nil && r.n >= quietAfter && s.o.Now().Sub(r.since) < quietFor
}

// replyTo a pull request, if it is known which. In doubt somebody else may have answered.
func (s *Service) replyTo(c Comment, body string, doubt bool) {
	switch {
	case c.PullRequest <= 0:
	case doubt:
		s.out.replyOnce(c, body)
	default:
		s.out.reply(c, body)
	}
}

// finish is tried for a while: an entry that stays pending is looked at again at
// the next start, which changes nothing but answers a second time.
func (s *Service) finish(ctx context.Context, name string, o outcome) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), finishTimeout)
	defer cancel()
	err := retry(ctx, func() (bool, error) {
		err := s.o.Journal.Finish(ctx, name, o.state, o.reason, o.result())
		return err != nil && !errors.Is(err, cluster.ErrNotFound), err
	})
	if err != nil {
		s.log.ErrorContext(ctx, "command cannot be marked as finished", "name", name, "state", o.state, "error", err)
	}
}

// actor is how the record names a comment's author. The prefix keeps a login
// from being taken for the engine or for someone on the command line.
func actor(c Comment) string { return "github:" + c.Author }

// The keys of an entry's origin.
const (
	originComment      = "comment"
	originCreated      = "created"
	originAuthorID     = "authorId"
	originRepositoryID = "repositoryId"
	originOwner        = "owner"
	originRepository   = "repository"
	originPullRequest  = "pullRequest"
	originInstallation = "installation"
	originClosed       = "closed"
	originHead         = "head"
)

func entryOf(t task, c Comment) cluster.Entry {
	e := cluster.Entry{
		Name: t.name, Endpoint: c.endpoint, Command: t.text, Actor: actor(c), At: t.at, State: cluster.EntryPending,
		Origin: map[string]string{
			originComment:      strconv.FormatInt(c.ID, 10),
			originCreated:      c.CreatedAt.UTC().Format(time.RFC3339Nano),
			originAuthorID:     strconv.FormatInt(c.AuthorID, 10),
			originRepositoryID: strconv.FormatInt(c.Repository.ID, 10),
			originOwner:        c.Repository.Owner,
			originRepository:   c.Repository.Name,
			originPullRequest:  strconv.Itoa(c.PullRequest),
			originInstallation: strconv.FormatInt(c.Repository.Installation, 10),
		},
	}
	if c.Closed {
		e.Origin[originClosed] = "true"
	}
	if c.head != "" {
		e.Origin[originHead] = c.head
	}
	return e
}

// originNumber reads a number of an entry's origin; what is none goes into errs.
func originNumber(e cluster.Entry, errs *[]error) func(key string) int64 {
	return func(key string) int64 {
		n, err := strconv.ParseInt(e.Origin[key], 10, 64)
		if err != nil {
			*errs = append(*errs, fmt.Errorf("origin %s %q is no number", key, e.Origin[key]))
		}
		return n
	}
}

// commandOf reads back what entryOf wrote.
func commandOf(e cluster.Entry) (task, Comment, error) {
	var errs []error
	number := originNumber(e, &errs)
	created, err := time.Parse(time.RFC3339Nano, e.Origin[originCreated])
	if err != nil {
		errs = append(errs, fmt.Errorf("origin %s %q is no time", originCreated, e.Origin[originCreated]))
	}
	author, ok := strings.CutPrefix(e.Actor, "github:")
	if !ok {
		errs = append(errs, fmt.Errorf("actor %q is not from GitHub", e.Actor))
	}
	c := Comment{
		ID: number(originComment), PullRequest: int(number(originPullRequest)), Author: author, AuthorID: number(originAuthorID), CreatedAt: created,
		Closed: e.Origin[originClosed] != "", head: e.Origin[originHead], endpoint: e.Endpoint,
		Repository: Repository{ID: number(originRepositoryID), Owner: e.Origin[originOwner], Name: e.Origin[originRepository], Installation: number(originInstallation)},
	}
	l, ok := ParseLine(e.Command)
	if !ok {
		l = Line{Text: e.Command, Err: refuse(rollout.ReasonInvalid, "comment", "write it again, as one of those that `/help` lists",
			"it is no command that can be carried out")}
	}
	return task{name: e.Name, text: e.Command, line: l, at: e.At}, c, errors.Join(errs...)
}

// queue is a lane's jobs, first in, first out. Its length is bounded by who puts:
// Accept has Service.slots, and recovered jobs the journal's size.
type queue struct {
	mu   sync.Mutex
	jobs []job
	wake chan struct{}
}

func newQueue() *queue { return &queue{wake: make(chan struct{}, 1)} }

func (q *queue) put(j job) {
	q.mu.Lock()
	q.jobs = append(q.jobs, j)
	q.mu.Unlock()
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// take waits for a job; false once ctx ended, whatever is left.
func (q *queue) take(ctx context.Context) (job, bool) {
	for {
		if ctx.Err() != nil {
			return job{}, false
		}
		q.mu.Lock()
		if len(q.jobs) > 0 {
			j := q.jobs[0]
			q.jobs[0] = job{}
			q.jobs = q.jobs[1:]
			q.mu.Unlock()
			return j, true
		}
		q.mu.Unlock()
		select {
		case <-q.wake:
		case <-ctx.Done():
		}
	}
}
