package github

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"regexp"
	"strings"
	"time"

	"github.com/sluice-dev/sluice/pkg/chatops"
	"github.com/sluice-dev/sluice/pkg/cluster"
	"github.com/sluice-dev/sluice/pkg/report"
	"github.com/sluice-dev/sluice/rollout"
)

// Bounds of what one event may ask for.
const (
	// ackTimeout: GitHub waits 10 s for an answer.
	ackTimeout = 8 * time.Second
	// maxNamed is how many repositories of an event about an installation are learnt.
	maxNamed = 1000
	// maxPulls of a workflow run are looked at.
	maxPulls = 10
)

// Commands takes what people do on pull requests; *chatops.Service does. Each
// returns once what it was handed is durably recorded; chatops.ErrBusy means that it is not.
type Commands interface {
	Accept(ctx context.Context, c chatops.Comment) (chatops.Receipt, error)
	AcceptButton(ctx context.Context, b chatops.Button) (chatops.Receipt, error)
	AcceptClosed(ctx context.Context, c chatops.Closed) (chatops.Receipt, error)
}

// Self says who Sluice is on GitHub; *Client does. It must answer at once.
type Self interface {
	// IsSelf says whether an account of that login, type and id is ours. An account that is not known yet
	// has not written anything since the start.
	IsSelf(login, kind string, id int64) bool
	// IsApp says whether the App of that id is ours.
	IsApp(id int64) bool
}

// Events takes GitHub's events, by whatever way they came: Intake is handed them,
// Poller fetches them. It passes on comments with commands, buttons of check runs
// and pull requests that are closed; tells of pull requests on which something
// happened, and of where repositories are. The functions, if set, are set before
// the first event; they must return at once.
type Events struct {
	commands Commands
	log      *slog.Logger

	// Self, if set, says who we are; else nothing on GitHub is taken for ours.
	Self Self
	// OnRepository is told where a repository is.
	OnRepository func(chatops.Repository)
	// OnInstallation is told that an installation of the App is gone, suspended or has other rights than before.
	OnInstallation func(installation int64)
	// OnTouched is told of a pull request where somebody else edited or deleted a report of ours.
	OnTouched func(repository int64, number int)
	// OnRerun is told of a check run of ours, by its commit and endpoint, that somebody wants to run again: GitHub waits
	// until it is written anew. Whoever may write to the repository can bring this about as often as they like.
	OnRerun func(repository int64, commit string, endpoint rollout.Key)
	// OnActivity is told of a pull request that was opened or pushed to, or where a workflow or a deployment
	// came to an end. Without a number it is about the pull requests of the commit. Anyone who may open
	// pull requests can bring this about as often as they like.
	OnActivity func(repository int64, number int, commit string)
}

// NewEvents passes on to commands.
func NewEvents(commands Commands, log *slog.Logger) *Events {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Events{commands: commands, log: log}
}

// weight of an event.
type weight int

const (
	// nothing is asked for.
	nothing weight = iota
	// tells of something that is found out otherwise too, later.
	tells
	// commands: lost if nobody takes it.
	commands
)

// weigh an event by its name and action.
func weigh(event, action string) weight {
	switch event {
	case "issue_comment":
		switch action {
		case "created":
			return commands
		case "edited", "deleted":
			return tells
		}
	case "check_run":
		switch action {
		case "requested_action", "rerequested":
			return commands
		}
	case "pull_request":
		switch action {
		case "closed":
			return commands
		case "opened", "synchronize", "reopened":
			return tells
		}
	case "workflow_run":
		if action == "completed" {
			return tells
		}
	case "deployment_status", "push", "installation", "installation_repositories":
		return tells
	}
	return nothing
}

// Answer says what became of a delivery; it is the body of each response.
type Answer struct {
	Status     string         `json:"status"`
	Reason     rollout.Reason `json:"reasonCode,omitempty"`
	Message    string         `json:"message,omitempty"`
	Commands   int            `json:"commands,omitempty"`
	Duplicates int            `json:"duplicates,omitempty"`
}

func refusal(code int, format string, args ...any) (int, Answer) {
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
	return code, Answer{Status: "refused", Reason: reason, Message: fmt.Sprintf(format, args...)}
}

func ignored(format string, args ...any) (int, Answer) {
	return http.StatusAccepted, Answer{Status: "ignored", Message: fmt.Sprintf(format, args...)}
}

// Handle takes one event. That it is GitHub's is the caller's to know. It returns once what the event asks for is durable:
//
//	200 a ping, or what is all known already
//	202 recorded; or an event that asks for nothing here
//	400 not an event of that name
//	500 the journal failed: hand it over again
//	503 too many wait: hand it over again
func (ev *Events) Handle(ctx context.Context, event, delivery string, body []byte) (int, Answer) {
	switch event {
	case "ping":
		return http.StatusOK, Answer{Status: "pong"}
	case "issue_comment":
		return ev.comment(ctx, delivery, body)
	case "check_run":
		return ev.checkRun(ctx, delivery, body)
	case "pull_request":
		return ev.pullRequest(ctx, delivery, body)
	case "workflow_run", "deployment_status", "push":
		return ev.activity(event, body)
	case "installation", "installation_repositories":
		return ev.installation(event, body)
	default:
		return ignored("events of this kind ask for nothing here")
	}
}

// What GitHub lets accounts and repositories be called; names go into paths of its API.
// Old accounts may end in a hyphen.
var (
	loginPattern      = regexp.MustCompile(`^[A-Za-z0-9][-_A-Za-z0-9]{0,99}$`)
	repositoryPattern = regexp.MustCompile(`^[-_.A-Za-z0-9]{1,100}$`)
)

// repositoryName says whether GitHub lets a repository be called that; a path of dots it does not.
func repositoryName(s string) bool {
	return repositoryPattern.MatchString(s) && strings.Trim(s, ".") != ""
}

// The parts of events. go-github's types are not used, because they fail on some of GitHub's times.
type (
	account struct {
		Login, Type string
		ID          int64
	}
	place struct {
		ID    int64
		Name  string
		Owner struct{ Login string }
	}
)

func (p place) at(installation int64) chatops.Repository {
	return chatops.Repository{ID: p.ID, Owner: p.Owner.Login, Name: p.Name, Installation: installation}
}

// named says whether the repository has a name that GitHub would give.
func (p place) named() bool {
	return p.ID > 0 && loginPattern.MatchString(p.Owner.Login) && repositoryName(p.Name)
}

// commentEvent is what is read of issue_comment events.
type commentEvent struct {
	Action string
	Issue  struct {
		Number      int
		State       string
		PullRequest *struct {
			MergedAt *time.Time `json:"merged_at"`
		} `json:"pull_request"`
	}
	Comment struct {
		ID        int64
		Body      string
		User      account
		CreatedAt time.Time `json:"created_at"`
	}
	Changes struct {
		Body struct{ From string }
	}
	Repository   place
	Installation struct{ ID int64 }
	Sender       account
}

func (ev *Events) comment(ctx context.Context, delivery string, body []byte) (int, Answer) {
	var e commentEvent
	if err := json.Unmarshal(body, &e); err != nil {
		return refusal(http.StatusBadRequest, "the body is not an issue_comment event")
	}
	ev.learn(e.Repository, e.Installation.ID)
	if ev.OnTouched != nil && ev.touched(&e) {
		ev.OnTouched(e.Repository.ID, e.Issue.Number)
		return http.StatusAccepted, Answer{Status: "seen", Message: "a report is looked at again"}
	}
	c, why := e.comment()
	if why != "" {
		return ignored("%s", why)
	}
	return ev.record(ctx, delivery, "comment", c.Repository, func(ctx context.Context) (chatops.Receipt, error) { return ev.commands.Accept(ctx, c) })
}

// comment that the event brings, or why it is none to act on:
// only people's own comments on open or merged pull requests are, as they were created.
func (e *commentEvent) comment() (chatops.Comment, string) {
	issue, comment, author, sender := &e.Issue, &e.Comment, &e.Comment.User, &e.Sender
	switch {
	case e.Action != "created":
		return chatops.Comment{}, "only new comments are acted on"
	case issue.PullRequest == nil:
		return chatops.Comment{}, "the comment is not on a pull request"
	case issue.State != "open" && issue.PullRequest.MergedAt == nil:
		return chatops.Comment{}, "the pull request is closed without a merge"
	case sender.Type != "User" || author.Type != "User" || strings.HasSuffix(author.Login, "[bot]"):
		return chatops.Comment{}, "only people's comments are acted on"
	case author.ID != sender.ID || author.Login != sender.Login:
		return chatops.Comment{}, "the comment is not its sender's own"
	case comment.ID <= 0 || e.Repository.ID <= 0 || issue.Number <= 0 || author.ID <= 0 || comment.CreatedAt.IsZero():
		return chatops.Comment{}, "the event lacks an id or the comment's time"
	case !loginPattern.MatchString(author.Login) || !e.Repository.named():
		return chatops.Comment{}, "the event has a name that GitHub would not give"
	}
	return chatops.Comment{
		ID:          comment.ID,
		PullRequest: issue.Number,
		Author:      author.Login,
		AuthorID:    author.ID,
		Body:        comment.Body,
		CreatedAt:   comment.CreatedAt.UTC(),
		Closed:      issue.State != "open",
		Repository:  e.Repository.at(e.Installation.ID),
	}, ""
}

// ours says whether the account is our own.
func (ev *Events) ours(a account) bool {
	return ev.Self != nil && ev.Self.IsSelf(a.Login, a.Type, a.ID)
}

// touched says whether somebody else edited or deleted one of our reports. GitHub tells of our own edits too, and a
// token's are a user's; and a comment that only looks like a report is anybody's.
func (ev *Events) touched(e *commentEvent) bool {
	if e.Action != "edited" && e.Action != "deleted" || e.Sender.Type == "Bot" || ev.ours(e.Sender) || !ev.ours(e.Comment.User) {
		return false
	}
	was := e.Changes.Body.From
	if was == "" {
		was = e.Comment.Body
	}
	_, ok := report.MarkOf(was)
	return ok
}

// record hands something on and says what became of it.
func (ev *Events) record(ctx context.Context, delivery, what string, repo chatops.Repository, accept func(context.Context) (chatops.Receipt, error)) (int, Answer) {
	ctx, cancel := context.WithTimeout(ctx, ackTimeout)
	defer cancel()
	receipt, err := accept(ctx)
	log := ev.log.With("delivery", delivery, "what", what, "repository", repo.ID)
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
		return http.StatusOK, Answer{Status: "known", Duplicates: receipt.Duplicates}
	}
	log.InfoContext(ctx, "commands recorded", "commands", receipt.Commands, "duplicates", receipt.Duplicates)
	return http.StatusAccepted, Answer{Status: "recorded", Commands: receipt.Commands, Duplicates: receipt.Duplicates}
}

// learn where a repository is.
func (ev *Events) learn(p place, installation int64) {
	if ev.OnRepository != nil && p.named() {
		ev.OnRepository(p.at(installation))
	}
}

// active tells of a pull request.
func (ev *Events) active(repository int64, number int, commit string) {
	if ev.OnActivity != nil && repository > 0 && (number > 0 || commitPattern.MatchString(commit)) {
		ev.OnActivity(repository, number, commit)
	}
}

// pullEvent is what is read of events about check runs and pull requests.
type pullEvent struct {
	Action          string
	RequestedAction struct{ Identifier string } `json:"requested_action"`
	CheckRun        struct {
		Head         string `json:"head_sha"`
		External     string `json:"external_id"`
		Completed    string `json:"completed_at"`
		App          struct{ ID int64 }
		PullRequests pullsOfIt `json:"pull_requests"`
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
	Repository   place
	Installation struct{ ID int64 }
	Sender       account
}

// pullsOfIt are the pull requests of a commit, which may be other repositories' too.
type pullsOfIt []struct {
	Number int
	Base   struct{ Repo struct{ ID int64 } }
}

// named says whether repository and sender have names that GitHub would give; a sender may be a bot.
func (e *pullEvent) named() bool {
	return e.Repository.named() && e.Sender.ID > 0 && loginPattern.MatchString(strings.TrimSuffix(e.Sender.Login, "[bot]"))
}

var (
	commitPattern   = regexp.MustCompile(`^[0-9a-f]{40}(?:[0-9a-f]{24})?$`)
	deliveryPattern = regexp.MustCompile(`^[0-9A-Za-z][-0-9A-Za-z]{0,62}[0-9A-Za-z]$`)
)

// checkRun takes a button of one of our check runs, and the wish to run one again.
func (ev *Events) checkRun(ctx context.Context, delivery string, body []byte) (int, Answer) {
	// Which event it is decides what else it must have.
	var kind struct{ Action string }
	if err := json.Unmarshal(body, &kind); err != nil {
		return refusal(http.StatusBadRequest, "the body is not a check_run event")
	}
	if kind.Action != "requested_action" && kind.Action != "rerequested" {
		return ignored("only buttons of check runs are acted on")
	}
	var e pullEvent
	if err := json.Unmarshal(body, &e); err != nil {
		return refusal(http.StatusBadRequest, "the body is not a check_run event")
	}
	ev.learn(e.Repository, e.Installation.ID)
	parts := strings.Split(e.CheckRun.External, "/")
	switch {
	case len(parts) != 3 || cluster.ValidateKey(rollout.Key{Namespace: parts[0], Name: parts[1]}) != nil:
		return ignored("the check run is not Sluice's")
	case e.Action == "rerequested":
		return ev.rerun(&e, rollout.Key{Namespace: parts[0], Name: parts[1]})
	case e.Sender.Type != "User" || !e.named():
		return ignored("only people's buttons are acted on")
	case !commitPattern.MatchString(e.CheckRun.Head) || !deliveryPattern.MatchString(delivery):
		return ignored("the event lacks the commit or the delivery's id")
	}
	digest := sha256.Sum256(body)
	shown, _ := time.Parse(time.RFC3339, e.CheckRun.Completed) // GitHub has had other forms: then it is not known
	b := chatops.Button{
		Digest: hex.EncodeToString(digest[:20]), Shown: shown, Repository: e.Repository.at(e.Installation.ID), Sender: e.Sender.Login, SenderID: e.Sender.ID, Head: e.CheckRun.Head,
		Action: chatops.Verb(e.RequestedAction.Identifier), Endpoint: rollout.Key{Namespace: parts[0], Name: parts[1]},
	}
	for _, p := range e.CheckRun.PullRequests {
		if p.Base.Repo.ID == b.Repository.ID {
			b.PullRequest = p.Number
		}
	}
	return ev.record(ctx, delivery, "button", b.Repository, func(ctx context.Context) (chatops.Receipt, error) { return ev.commands.AcceptButton(ctx, b) })
}

// rerun takes the wish to run a check of that endpoint again. GitHub tells only its App; another's external id may look like ours.
func (ev *Events) rerun(e *pullEvent, endpoint rollout.Key) (int, Answer) {
	if ev.OnRerun == nil || ev.Self == nil || !ev.Self.IsApp(e.CheckRun.App.ID) || e.Repository.ID <= 0 || !commitPattern.MatchString(e.CheckRun.Head) {
		return ignored("the check run is not Sluice's, or lacks its commit")
	}
	ev.OnRerun(e.Repository.ID, e.CheckRun.Head, endpoint)
	return http.StatusAccepted, Answer{Status: "seen", Message: "the check is written anew"}
}

// pullRequest takes the end of a pull request, and tells of new commits of one.
func (ev *Events) pullRequest(ctx context.Context, delivery string, body []byte) (int, Answer) {
	var e pullEvent
	if err := json.Unmarshal(body, &e); err != nil {
		return refusal(http.StatusBadRequest, "the body is not a pull_request event")
	}
	ev.learn(e.Repository, e.Installation.ID)
	p := &e.PullRequest
	if p.Head.Repo.ID != 0 && p.Head.Repo.ID != e.Repository.ID {
		return ignored("the pull request comes from another repository")
	}
	switch e.Action {
	case "closed":
	case "opened", "synchronize", "reopened":
		ev.active(e.Repository.ID, p.Number, "")
		return seen()
	default:
		return ignored("of this action nothing follows")
	}
	if p.Number <= 0 || p.ClosedAt.IsZero() || !commitPattern.MatchString(p.Head.SHA) || !e.named() {
		return ignored("the event lacks the pull request, its head, the repository or the sender")
	}
	c := chatops.Closed{
		Repository: e.Repository.at(e.Installation.ID), PullRequest: p.Number, Head: p.Head.SHA, Merged: p.Merged,
		By: e.Sender.Login, At: p.ClosedAt.UTC(),
	}
	return ev.record(ctx, delivery, "closed pull request", c.Repository, func(ctx context.Context) (chatops.Receipt, error) { return ev.commands.AcceptClosed(ctx, c) })
}

func seen() (int, Answer) {
	return http.StatusAccepted, Answer{Status: "seen", Message: "what is shown there is looked at again"}
}

// activity takes what workflows and pushes tell of.
func (ev *Events) activity(event string, body []byte) (int, Answer) {
	var e struct {
		Action      string
		WorkflowRun *struct { // of deployment_status too, if a workflow made it
			Head         string    `json:"head_sha"`
			PullRequests pullsOfIt `json:"pull_requests"`
		} `json:"workflow_run"`
		Deployment struct {
			SHA, Task string
		}
		Repository   place
		Installation struct{ ID int64 }
		Sender       account
	}
	if err := json.Unmarshal(body, &e); err != nil {
		return refusal(http.StatusBadRequest, "the body is not a %s event", event)
	}
	ev.learn(e.Repository, e.Installation.ID)
	switch {
	case event == "push":
		return ignored("of a push, only where the repository is is of use")
	case event == "workflow_run" && (e.Action != "completed" || e.WorkflowRun == nil):
		return ignored("only workflow runs that ended are looked at")
	case event == "deployment_status" && e.Deployment.Task == task && (e.Sender.Type == "Bot" || ev.ours(e.Sender)):
		return ignored("the deployment is Sluice's own")
	}
	told := 0
	if e.WorkflowRun != nil {
		for _, p := range e.WorkflowRun.PullRequests {
			if p.Base.Repo.ID == e.Repository.ID && p.Number > 0 && told < maxPulls {
				ev.active(e.Repository.ID, p.Number, "")
				told++
			}
		}
	}
	if told == 0 { // GitHub names none for a run of another event, and not for what an API made
		commit := e.Deployment.SHA
		if event == "workflow_run" {
			commit = e.WorkflowRun.Head
		}
		ev.active(e.Repository.ID, 0, commit)
	}
	return seen()
}

// installation takes where the App was installed, and where no more.
func (ev *Events) installation(event string, body []byte) (int, Answer) {
	type named struct {
		ID       int64
		FullName string `json:"full_name"`
	}
	var e struct {
		Action       string
		Installation struct{ ID int64 }
		Repositories []named
		Added        []named `json:"repositories_added"`
		Removed      []named `json:"repositories_removed"`
	}
	if err := json.Unmarshal(body, &e); err != nil {
		return refusal(http.StatusBadRequest, "the body is not an %s event", event)
	}
	if e.Installation.ID <= 0 {
		return ignored("the event names no installation")
	}
	// A token that was given before has the rights of before, and repositories that left may be anywhere.
	if (event == "installation" && e.Action != "created" || len(e.Removed) > 0) && ev.OnInstallation != nil {
		ev.OnInstallation(e.Installation.ID)
	}
	if event == "installation" && (e.Action == "deleted" || e.Action == "suspend") {
		return http.StatusAccepted, Answer{Status: "seen", Message: "the installation is forgotten"}
	}
	all := append(e.Repositories, e.Added...)
	for _, r := range all[:min(len(all), maxNamed)] {
		owner, name, _ := strings.Cut(r.FullName, "/")
		p := place{ID: r.ID, Name: name}
		p.Owner.Login = owner
		ev.learn(p, e.Installation.ID)
	}
	return http.StatusAccepted, Answer{Status: "seen", Message: "where repositories are is known"}
}
