// Package chatops carries out commands that people write as comments on pull
// requests: it parses them, asks whether their author may, applies the rollout
// transition and answers. It knows GitHub, endpoints and the journal only
// through the small interfaces below.
//
// A comment may hold several commands, one per line, up to MaxCommands. Each
// line is a command of its own: it has its own journal entry, is carried out
// after the one above it whatever became of that one, and gets its own reply.
//
// What makes a command happen exactly once is its name, c-<comment id>-<line>:
// the journal lets one claim it, and the endpoint's record knows it as the id of
// the change. A command that was claimed and not finished, because the process
// ended in between, is carried out at the next start, and the record tells
// whether its effect is there already.
package chatops

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/sluice-dev/sluice/pkg/cluster"
	"github.com/sluice-dev/sluice/rollout"
)

// Repository is a repository on GitHub. ID is what endpoints are bound to: owner
// and name can change hands. Installation is the GitHub App's there, 0 with a token.
type Repository struct {
	ID           int64
	Owner        string
	Name         string
	Installation int64
}

func (r Repository) String() string { return r.Owner + "/" + r.Name }

// Comment on a pull request, as it was when it was created.
type Comment struct {
	ID          int64
	Repository  Repository
	PullRequest int
	// Author is a login, AuthorID the account behind it: logins can change hands too.
	Author    string
	AuthorID  int64
	Body      string
	CreatedAt time.Time
	// Closed says that the pull request was closed then. If it was merged, some commands still work.
	Closed bool

	// A button instead of a comment, whose ID is 0: the commit and the endpoint that it belongs to.
	head     string
	endpoint rollout.Key
}

// Button that somebody pressed at a check run of Sluice.
type Button struct {
	// Digest of the signed body that told of it, in hex: the delivery's GUID is not signed, so that it could be told of again
	// under another. A press on a check run that changed in between has another body.
	Digest string
	// Shown is when the check run was completed as the presser saw it; zero if GitHub did not say.
	Shown      time.Time
	Repository Repository
	// PullRequest of the commit, 0 if GitHub did not say.
	PullRequest int
	// Sender is a login, SenderID the account behind it.
	Sender   string
	SenderID int64
	// Action is the verb.
	Action Verb
	// Head is the check run's commit, Endpoint what it is about.
	Head     string
	Endpoint rollout.Key
}

// Closed pull request, merged or not.
type Closed struct {
	Repository  Repository
	PullRequest int
	// Head is the commit at the tip of its branch when it was closed.
	Head   string
	Merged bool
	// By is the login of who closed it.
	By string
	At time.Time
}

// OnMerge says what the merge of a pull request does to its treatment.
type OnMerge string

// What a merge may do.
const (
	// MergePromotes the treatment that was made of the merged commit, as soon as enough of its replicas are ready.
	MergePromotes OnMerge = "promote"
	// MergeContinues leaves the treatment to its strategy, and says so.
	MergeContinues OnMerge = "continue"
	// MergeNothing ignores merges.
	MergeNothing OnMerge = "nothing"
)

// ParseOnMerge reads one of the three.
func ParseOnMerge(text string) (OnMerge, error) {
	switch o := OnMerge(text); o {
	case MergePromotes, MergeContinues, MergeNothing:
		return o, nil
	default:
		return "", refuse(rollout.ReasonInvalid, "on-merge", "use promote, continue or nothing", "%q is nothing that a merge can do", text)
	}
}

// Permission is a role in a repository, as GitHub names them. Custom roles have
// other names.
type Permission string

// The roles, weakest first.
const (
	PermissionNone     Permission = "none"
	PermissionRead     Permission = "read"
	PermissionTriage   Permission = "triage"
	PermissionWrite    Permission = "write"
	PermissionMaintain Permission = "maintain"
	PermissionAdmin    Permission = "admin"
)

// rank orders the roles; what is none of them is below all.
func (p Permission) rank() int {
	return slices.Index([]Permission{PermissionNone, PermissionRead, PermissionTriage, PermissionWrite, PermissionMaintain, PermissionAdmin}, p)
}

// AtLeast says whether the role is that one or better.
func (p Permission) AtLeast(least Permission) bool {
	return least.rank() >= 0 && p.rank() >= least.rank()
}

// PullRequest is what a command needs to know of one.
type PullRequest struct {
	// RepositoryID is where it asks to be merged; HeadRepositoryID where its branch lives, 0 if that is gone.
	RepositoryID     int64
	HeadRepositoryID int64
	// Head is the commit at the tip of its branch.
	Head string
	// Base is the branch that it asks to be merged into, Default the repository's default branch.
	Base, Default string
	// Closed, and if so whether by a merge.
	Closed, Merged bool
	// Public says that everybody may read its repository.
	Public bool
}

// Reaction to a comment, as GitHub names them.
type Reaction string

// The reactions: seen, done, refused.
const (
	ReactionSeen    Reaction = "eyes"
	ReactionDone    Reaction = "rocket"
	ReactionRefused Reaction = "-1"
)

// GitHub is the API as far as commands need it. Implementations bound each call
// in time and say with Temporary which failures may pass.
type GitHub interface {
	// Permission of a user in the repository. An error means that GitHub did not say, or that the login is
	// no longer that account's; a user without any role is PermissionNone.
	Permission(ctx context.Context, repo Repository, login string, id int64) (Permission, error)
	// PullRequest as it is now.
	PullRequest(ctx context.Context, repo Repository, number int) (PullRequest, error)
	// Reply adds a comment in Markdown to the pull request.
	Reply(ctx context.Context, repo Repository, number int, body string) error
	// Replied says whether a comment of ours on the pull request, written since then, ends with the marker.
	Replied(ctx context.Context, repo Repository, number int, marker string, since time.Time) (bool, error)
	// React to a comment; repeating it changes nothing.
	React(ctx context.Context, repo Repository, comment int64, r Reaction) error
}

// Directory is what permissions by team and those that a repository keeps are asked of, and where repositories are.
type Directory interface {
	// TeamMember says whether the user is a member of the team, by its slug, of the organisation that owns the
	// repository. A team that GitHub does not show has no members.
	TeamMember(ctx context.Context, repo Repository, team, login string) (bool, error)
	// File of a branch of the repository, up to MaxPermissions bytes; nil if the branch has none of that path.
	File(ctx context.Context, repo Repository, branch, path string) ([]byte, error)
	// Repository finds where a repository is by its id.
	Repository(ctx context.Context, id int64) (Repository, error)
}

// Journal is what commands need of cluster.Journal.
type Journal interface {
	Claim(ctx context.Context, e cluster.Entry) (cluster.Entry, bool, error)
	Finish(ctx context.Context, name string, state cluster.EntryState, reason rollout.Reason, result string) error
	Entries(ctx context.Context) ([]cluster.Entry, error)
}

func refuse(reason rollout.Reason, field, hint, format string, args ...any) *rollout.Error {
	return &rollout.Error{Reason: reason, Field: field, Message: fmt.Sprintf(format, args...), Hint: hint}
}
