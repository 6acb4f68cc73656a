package github

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"mime"
	"net/http"
	"regexp"
	"strings"
	"time"

	"github.com/google/go-github/v62/github"
	"golang.org/x/sync/semaphore"

	"github.com/sluice-dev/sluice/pkg/chatops"
	"github.com/sluice-dev/sluice/pkg/cluster"
	"github.com/sluice-dev/sluice/pkg/report"
	"github.com/sluice-dev/sluice/rollout"
)

// Bounds of the intake.
const (
	// MaxBody of a delivery in bytes: GitHub sends none that is larger.
	MaxBody = 25 << 20
	// Bodies up to smallBody share one allowance and larger ones another, so that no one can keep
	// comments out with bodies that are allowed to be large. Beyond it the answer is 503.
	smallBody = 1 << 20
	maxHeld   = 128 << 20
	heldUnit  = 32 << 10
	// ackTimeout: GitHub waits 10 s for an answer.
	ackTimeout = 8 * time.Second
)

// Commands takes what people do on pull requests; *chatops.Service does. Each
// returns once what it was handed is durably recorded; chatops.ErrBusy means that it is not.
type Commands interface {
	Accept(ctx context.Context, c chatops.Comment) (chatops.Receipt, error)
	AcceptButton(ctx context.Context, b chatops.Button) (chatops.Receipt, error)
	AcceptClosed(ctx context.Context, c chatops.Closed) (chatops.Receipt, error)
}

// Intake is the handler of POST /webhooks/github. It checks that a delivery is
// GitHub's, passes on comments with commands, buttons of check runs, and pull
// requests that are closed, and answers:
//
//	200 a ping, or what is all known already
//	202 recorded; or a delivery that asks for nothing here
//	400 a body or headers that GitHub would not send
//	401 no valid signature
//	413 a body of more than 25 MB
//	415 a content type other than JSON
//	500 the journal failed: deliver again
//	503 too many wait: deliver again
//
// GitHub does not deliver again by itself.
type Intake struct {
	secrets  [][]byte
	commands Commands
	log      *slog.Logger
	small    *semaphore.Weighted
	large    *semaphore.Weighted

	// OnRepository, if set before the first request, is told where a repository is, as a signed delivery has it.
	OnRepository func(chatops.Repository)
	// OnTouched, if set before the first request, is told of a pull request where somebody edited or deleted a report.
	OnTouched func(repository int64, number int)
}

// NewIntake refuses to be without a secret: anyone could then command.
func NewIntake(secrets [][]byte, commands Commands, log *slog.Logger) (*Intake, error) {
	var kept [][]byte
	for _, s := range secrets {
		if len(s) > 0 {
			kept = append(kept, s)
		}
	}
	if len(kept) == 0 {
		return nil, &rollout.Error{
			Reason: rollout.ReasonInvalid, Field: "webhook-secret",
			Message: "the webhook has no secret, and without one anybody could command",
			Hint:    "set SLUICE_WEBHOOK_SECRET, or name a file of secrets, one per line, with --webhook-secret-file",
		}
	}
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Intake{secrets: kept, commands: commands, log: log, small: semaphore.NewWeighted(maxHeld), large: semaphore.NewWeighted(maxHeld)}, nil
}

// answer is the body of each response: what became of the delivery.
type answer struct {
	Status     string         `json:"status"`
	Reason     rollout.Reason `json:"reasonCode,omitempty"`
	Message    string         `json:"message,omitempty"`
	Commands   int            `json:"commands,omitempty"`
	Duplicates int            `json:"duplicates,omitempty"`
}

func (in *Intake) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	code, a := in.handle(w, r)
	if code >= 400 {
		// Nothing of an unsigned request goes into the log but where it came from.
		in.log.WarnContext(r.Context(), "delivery refused", "code", code, "message", a.Message, "remote", r.RemoteAddr)
	}
	w.Header().Set("Content-Type", "application/json")
	if code == http.StatusServiceUnavailable {
		w.Header().Set("Retry-After", "5")
	}
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(a) // the client is gone: nothing to tell it
}

func refusal(code int, format string, args ...any) (int, answer) {
	reason := rollout.ReasonInvalid
	switch code {
	case http.StatusUnauthorized:
		reason = rollout.ReasonUnauthorized
	case http.StatusRequestEntityTooLarge:
		reason = rollout.ReasonBodyTooLarge
	case http.StatusServiceUnavailable:
		reason = rollout.ReasonBusy
	case http.StatusInternalServerError:
		reason = rollout.ReasonInternal
	}
	return code, answer{Status: "refused", Reason: reason, Message: fmt.Sprintf(format, args...)}
}

func ignored(format string, args ...any) (int, answer) {
	return http.StatusAccepted, answer{Status: "ignored", Message: fmt.Sprintf(format, args...)}
}

func (in *Intake) handle(w http.ResponseWriter, r *http.Request) (int, answer) {
	if r.Method != http.MethodPost {
		w.Header().Set("Allow", http.MethodPost)
		return refusal(http.StatusMethodNotAllowed, "deliveries are posted")
	}
	if t, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || t != "application/json" {
		return refusal(http.StatusUnsupportedMediaType, "set the webhook's content type to application/json")
	}
	signatures := r.Header.Values(SignatureHeader)
	if len(signatures) != 1 {
		return refusal(http.StatusUnauthorized, "a delivery needs one %s header", SignatureHeader)
	}
	event := r.Header.Get(github.EventTypeHeader)
	if event == "" {
		return refusal(http.StatusBadRequest, "a delivery needs an %s header", github.EventTypeHeader)
	}
	body, code, a := in.read(w, r)
	if body == nil {
		return code, a
	}
	if !Verify(in.secrets, signatures[0], body) {
		return refusal(http.StatusUnauthorized, "the signature is not that of this body under the webhook's secret")
	}
	switch event {
	case "ping":
		return http.StatusOK, answer{Status: "pong"}
	case "issue_comment":
		return in.comment(r, body)
	case "check_run":
		return in.checkRun(r, body)
	case "pull_request":
		return in.pullRequest(r, body)
	default:
		return ignored("events of this kind ask for nothing here")
	}
}

// errHeld says that too many bytes are being read at once.
var errHeld = errors.New("too many deliveries at once")

// metered takes room from an allowance for what arrives, not for what is announced.
type metered struct {
	r     io.Reader
	allow *semaphore.Weighted
	held  int64
	used  int64
}

func (m *metered) Read(p []byte) (int, error) {
	if m.used >= m.held {
		if !m.allow.TryAcquire(heldUnit) {
			return 0, errHeld
		}
		m.held += heldUnit
	}
	n, err := m.r.Read(p[:min(int64(len(p)), m.held-m.used)])
	m.used += int64(n)
	return n, err
}

func (m *metered) release() { m.allow.Release(m.held) }

// read returns nil and the answer if there is no body to go on with.
func (in *Intake) read(w http.ResponseWriter, r *http.Request) ([]byte, int, answer) {
	allow := in.large
	if r.ContentLength >= 0 && r.ContentLength <= smallBody {
		allow = in.small
	}
	m := &metered{r: http.MaxBytesReader(w, r.Body, MaxBody), allow: allow}
	defer m.release()
	var body []byte
	var err error
	if r.ContentLength > MaxBody {
		err = &http.MaxBytesError{Limit: MaxBody}
	} else {
		body, err = io.ReadAll(m)
	}
	var tooLarge *http.MaxBytesError
	code, a := 0, answer{}
	switch {
	case errors.As(err, &tooLarge):
		code, a = refusal(http.StatusRequestEntityTooLarge, "a delivery has at most %d bytes", MaxBody)
	case errors.Is(err, errHeld):
		code, a = refusal(http.StatusServiceUnavailable, "%v", errHeld)
	case err != nil || len(body) == 0:
		code, a = refusal(http.StatusBadRequest, "the body did not arrive")
	}
	if code != 0 {
		return nil, code, a
	}
	return body, 0, answer{}
}

// What GitHub lets accounts and repositories be called; names go into paths of its API.
var (
	loginPattern      = regexp.MustCompile(`^[A-Za-z0-9](?:[-_A-Za-z0-9]{0,98}[A-Za-z0-9_])?$`)
	repositoryPattern = regexp.MustCompile(`^[-_.A-Za-z0-9]{1,100}$`)
)

func (in *Intake) comment(r *http.Request, body []byte) (int, answer) {
	var e github.IssueCommentEvent
	if err := json.Unmarshal(body, &e); err != nil {
		return refusal(http.StatusBadRequest, "the body is not an issue_comment event")
	}
	in.learn(e.GetRepo().GetID(), e.GetRepo().GetOwner().GetLogin(), e.GetRepo().GetName(), e.GetInstallation().GetID())
	if touched(&e) && in.OnTouched != nil {
		in.OnTouched(e.GetRepo().GetID(), e.GetIssue().GetNumber())
		return http.StatusAccepted, answer{Status: "seen", Message: "a report is looked at again"}
	}
	c, why := commentOf(&e)
	if why != "" {
		return ignored("%s", why)
	}
	return in.record(r, "comment", c.Repository, func(ctx context.Context) (chatops.Receipt, error) { return in.commands.Accept(ctx, c) })
}

// record hands something on and says what became of it.
func (in *Intake) record(r *http.Request, what string, repo chatops.Repository, accept func(context.Context) (chatops.Receipt, error)) (int, answer) {
	ctx, cancel := context.WithTimeout(r.Context(), ackTimeout)
	defer cancel()
	receipt, err := accept(ctx)
	log := in.log.With("delivery", r.Header.Get(github.DeliveryIDHeader), "what", what, "repository", repo.ID)
	switch {
	case errors.Is(err, chatops.ErrBusy):
		log.WarnContext(ctx, "delivery refused: busy")
		return refusal(http.StatusServiceUnavailable, "too many commands wait; deliver this again")
	case err != nil:
		log.ErrorContext(ctx, "delivery not recorded", "error", err)
		return refusal(http.StatusInternalServerError, "the commands could not be recorded; deliver this again")
	case receipt.Refused != "":
		code, a := ignored("the %s is refused", what)
		a.Reason = receipt.Refused
		return code, a
	case receipt.Commands == 0 && receipt.Duplicates == 0:
		return ignored("the %s has no command", what)
	case receipt.Commands == 0:
		return http.StatusOK, answer{Status: "known", Duplicates: receipt.Duplicates}
	}
	log.InfoContext(ctx, "commands recorded", "commands", receipt.Commands, "duplicates", receipt.Duplicates)
	return http.StatusAccepted, answer{Status: "recorded", Commands: receipt.Commands, Duplicates: receipt.Duplicates}
}

// learn where a repository is.
func (in *Intake) learn(id int64, owner, name string, installation int64) {
	if in.OnRepository != nil && id > 0 && loginPattern.MatchString(owner) && repositoryPattern.MatchString(name) {
		in.OnRepository(chatops.Repository{ID: id, Owner: owner, Name: name, Installation: installation})
	}
}

// touched says whether somebody edited or deleted one of our reports.
func touched(e *github.IssueCommentEvent) bool {
	if e.GetAction() != "edited" && e.GetAction() != "deleted" || e.GetSender().GetType() == "Bot" {
		return false
	}
	was := e.GetChanges().GetBody().GetFrom()
	if was == "" {
		was = e.GetComment().GetBody()
	}
	_, ok := report.MarkOf(was)
	return ok
}

// pullEvent is what is read of events about check runs and pull requests. go-github's types
// are not used, because they fail on some of GitHub's times.
type pullEvent struct {
	Action          string
	RequestedAction struct{ Identifier string } `json:"requested_action"`
	CheckRun        struct {
		Head         string `json:"head_sha"`
		External     string `json:"external_id"`
		PullRequests []struct {
			Number int
			Base   struct{ Repo struct{ ID int64 } }
		} `json:"pull_requests"`
	} `json:"check_run"`
	PullRequest struct {
		Number   int
		Merged   bool
		ClosedAt time.Time `json:"closed_at"`
		Head     struct {
			SHA  string
			Repo struct{ ID int64 }
		}
	} `json:"pull_request"`
	Repository struct {
		ID    int64
		Name  string
		Owner struct{ Login string }
	}
	Installation struct{ ID int64 }
	Sender       struct {
		Login, Type string
		ID          int64
	}
}

func (e *pullEvent) repo() chatops.Repository {
	return chatops.Repository{ID: e.Repository.ID, Owner: e.Repository.Owner.Login, Name: e.Repository.Name, Installation: e.Installation.ID}
}

// named says whether repository and sender have names that GitHub would give; a sender may be a bot.
func (e *pullEvent) named() bool {
	return e.Repository.ID > 0 && loginPattern.MatchString(e.Repository.Owner.Login) && repositoryPattern.MatchString(e.Repository.Name) &&
		e.Sender.ID > 0 && loginPattern.MatchString(strings.TrimSuffix(e.Sender.Login, "[bot]"))
}

var (
	commitPattern   = regexp.MustCompile(`^[0-9a-f]{40}(?:[0-9a-f]{24})?$`)
	deliveryPattern = regexp.MustCompile(`^[0-9A-Za-z][-0-9A-Za-z]{0,62}[0-9A-Za-z]$`)
)

// checkRun takes a button of one of our check runs.
func (in *Intake) checkRun(r *http.Request, body []byte) (int, answer) {
	// Which event it is decides what else it must have.
	var kind struct{ Action string }
	if err := json.Unmarshal(body, &kind); err != nil {
		return refusal(http.StatusBadRequest, "the body is not a check_run event")
	}
	if kind.Action != "requested_action" {
		return ignored("only buttons of check runs are acted on")
	}
	var e pullEvent
	if err := json.Unmarshal(body, &e); err != nil {
		return refusal(http.StatusBadRequest, "the body is not a check_run event")
	}
	in.learn(e.Repository.ID, e.Repository.Owner.Login, e.Repository.Name, e.Installation.ID)
	parts := strings.Split(e.CheckRun.External, "/")
	delivery := r.Header.Get(github.DeliveryIDHeader)
	switch {
	case len(parts) != 3 || cluster.ValidateKey(rollout.Key{Namespace: parts[0], Name: parts[1]}) != nil:
		return ignored("the check run is not Sluice's")
	case e.Sender.Type != "User" || !e.named():
		return ignored("only people's buttons are acted on")
	case !commitPattern.MatchString(e.CheckRun.Head) || !deliveryPattern.MatchString(delivery):
		return ignored("the event lacks the commit or the delivery's id")
	}
	b := chatops.Button{
		Delivery: delivery, Repository: e.repo(), Sender: e.Sender.Login, SenderID: e.Sender.ID, Head: e.CheckRun.Head,
		Action: chatops.Verb(e.RequestedAction.Identifier), Endpoint: rollout.Key{Namespace: parts[0], Name: parts[1]},
	}
	for _, p := range e.CheckRun.PullRequests {
		if p.Base.Repo.ID == b.Repository.ID {
			b.PullRequest = p.Number
		}
	}
	return in.record(r, "button", b.Repository, func(ctx context.Context) (chatops.Receipt, error) { return in.commands.AcceptButton(ctx, b) })
}

// pullRequest takes the end of a pull request.
func (in *Intake) pullRequest(r *http.Request, body []byte) (int, answer) {
	var e pullEvent
	if err := json.Unmarshal(body, &e); err != nil {
		return refusal(http.StatusBadRequest, "the body is not a pull_request event")
	}
	in.learn(e.Repository.ID, e.Repository.Owner.Login, e.Repository.Name, e.Installation.ID)
	switch p := e.PullRequest; {
	case e.Action != "closed":
		return ignored("only the end of pull requests is acted on")
	case p.Number <= 0 || p.ClosedAt.IsZero() || !commitPattern.MatchString(p.Head.SHA) || !e.named():
		return ignored("the event lacks the pull request, its head, the repository or the sender")
	case p.Head.Repo.ID != 0 && p.Head.Repo.ID != e.Repository.ID:
		return ignored("the pull request comes from another repository")
	}
	c := chatops.Closed{
		Repository: e.repo(), PullRequest: e.PullRequest.Number, Head: e.PullRequest.Head.SHA, Merged: e.PullRequest.Merged,
		By: e.Sender.Login, At: e.PullRequest.ClosedAt.UTC(),
	}
	return in.record(r, "closed pull request", c.Repository, func(ctx context.Context) (chatops.Receipt, error) { return in.commands.AcceptClosed(ctx, c) })
}

// commentOf is the comment that an event brings, or why it is none to act on:
// only people's own comments on open or merged pull requests are, as they were created.
func commentOf(e *github.IssueCommentEvent) (chatops.Comment, string) {
	issue, comment, repo, sender := e.GetIssue(), e.GetComment(), e.GetRepo(), e.GetSender()
	author := comment.GetUser()
	switch {
	case e.GetAction() != "created":
		return chatops.Comment{}, "only new comments are acted on"
	case issue == nil || comment == nil || repo == nil || sender == nil || author == nil:
		return chatops.Comment{}, "the event lacks the issue, the comment, the repository or the sender"
	case !issue.IsPullRequest():
		return chatops.Comment{}, "the comment is not on a pull request"
	case issue.GetState() != "open" && issue.GetPullRequestLinks().MergedAt == nil:
		return chatops.Comment{}, "the pull request is closed without a merge"
	case sender.GetType() != "User" || author.GetType() != "User" || strings.HasSuffix(author.GetLogin(), "[bot]"):
		return chatops.Comment{}, "only people's comments are acted on"
	case author.GetID() != sender.GetID() || author.GetLogin() != sender.GetLogin():
		return chatops.Comment{}, "the comment is not its sender's own"
	case comment.GetID() <= 0 || repo.GetID() <= 0 || issue.GetNumber() <= 0 || author.GetID() <= 0 || comment.GetCreatedAt().IsZero():
		return chatops.Comment{}, "the event lacks an id or the comment's time"
	case !loginPattern.MatchString(author.GetLogin()) || !loginPattern.MatchString(repo.GetOwner().GetLogin()) || !repositoryPattern.MatchString(repo.GetName()):
		return chatops.Comment{}, "the event has a name that GitHub would not give"
	}
	return chatops.Comment{
		ID:          comment.GetID(),
		PullRequest: issue.GetNumber(),
		Author:      author.GetLogin(),
		AuthorID:    author.GetID(),
		Body:        comment.GetBody(),
		CreatedAt:   comment.GetCreatedAt().UTC(),
		Closed:      issue.GetState() != "open",
		Repository: chatops.Repository{
			ID: repo.GetID(), Owner: repo.GetOwner().GetLogin(), Name: repo.GetName(), Installation: e.GetInstallation().GetID(),
		},
	}, ""
}
