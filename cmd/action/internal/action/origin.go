package action

import (
	"cmp"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"github.com/sethvargo/go-githubactions"

	"github.com/sluice-dev/sluice/pkg/project"
	"github.com/sluice-dev/sluice/rollout"
)

// origin is what a workflow run says of itself: the event, the commit, and the pull request, if there is one.
type origin struct {
	// onGitHub is false when the program was started by hand.
	onGitHub     bool
	event        string
	actor        string
	repository   string
	repositoryID int64
	// url of the repository.
	url       string
	workspace string
	runID     int64
	// commit that a version is made from: a pull request's head, not what is checked out to test its merge.
	commit string
	// elsewhere: what is checked out is not the event's commit, or it cannot be told what is.
	elsewhere   bool
	pullRequest int
	// closed and merged are the pull request's.
	closed, merged bool
	// untrusted events run with the repository's secrets whoever caused them, and what they check out may be anybody's.
	untrusted bool
	// dependabot's workflows have no secrets.
	dependabot bool
	// fork: the pull request's head is in another repository, so that its workflow has no secrets, or must not use them.
	fork bool
}

// pullRequestEvents bring a pull request whose head the workflow is about.
var pullRequestEvents = map[string]bool{"pull_request": true, "pull_request_target": true, "pull_request_review": true, "pull_request_review_comment": true}

// payload is the part of an event that is looked at (GitHub, "Webhook events and payloads", pull_request).
type payload struct {
	PullRequest *struct {
		Number int    `json:"number"`
		State  string `json:"state"`
		Merged bool   `json:"merged"`
		Head   struct {
			SHA  string      `json:"sha"`
			Repo *repository `json:"repo"`
		} `json:"head"`
		Base struct {
			Repo *repository `json:"repo"`
		} `json:"base"`
	} `json:"pull_request"`
	Repository *repository `json:"repository"`
}

type repository struct {
	ID int64 `json:"id"`
}

// withSecrets are events whose workflows have secrets although somebody without rights may have caused them.
var withSecrets = map[string]bool{"pull_request_target": true, "issue_comment": true, "workflow_run": true, "pull_request_review": true, "pull_request_review_comment": true, "issues": true, "discussion": true, "discussion_comment": true}

// checkedOut is the commit that the HEAD of a directory's work tree names, or "" if that cannot be told: there is no git program in
// a container. The work tree is the innermost one in the workspace: a job may check out several.
func checkedOut(workspace, dir string) string {
	for {
		if _, err := os.Lstat(filepath.Join(dir, ".git")); err == nil {
			return headOf(filepath.Join(dir, ".git"))
		}
		rel, err := filepath.Rel(workspace, dir)
		if err != nil || !filepath.IsLocal(rel) || rel == "." {
			return ""
		}
		dir = filepath.Dir(dir)
	}
}

func headOf(git string) string {
	read := func(name string) string {
		b, err := os.ReadFile(filepath.Join(git, filepath.FromSlash(name)))
		if err != nil || len(b) > 1<<20 {
			return ""
		}
		return strings.TrimSpace(string(b))
	}
	head := read("HEAD")
	ref, symbolic := strings.CutPrefix(head, "ref: ")
	if symbolic {
		if !filepath.IsLocal(filepath.FromSlash(ref)) {
			return ""
		}
		if head = read(ref); head == "" {
			for line := range strings.SplitSeq(read("packed-refs"), "\n") {
				if commit, name, ok := strings.Cut(line, " "); ok && name == ref {
					head = commit
				}
			}
		}
	}
	if !commitForm.MatchString(head) {
		return ""
	}
	return head
}

var commitForm = regexp.MustCompile(`^[0-9a-f]{40,64}$`)

// findOrigin reads where a run comes from. Outside GitHub it is empty.
func findOrigin(a *githubactions.Action) (origin, error) {
	gh, err := a.Context()
	if err != nil {
		return origin{}, &rollout.Error{Reason: rollout.ReasonInvalid, Message: fmt.Sprintf("the workflow's variables cannot be read: %v", err), Hint: "start the step from a workflow, or unset the GITHUB_ variables to try it by hand"}
	}
	o := origin{
		onGitHub: gh.Actions, event: gh.EventName, actor: gh.Actor, repository: gh.Repository, workspace: gh.Workspace, runID: gh.RunID, commit: gh.SHA,
	}
	if !o.onGitHub {
		return origin{}, nil
	}
	if gh.Repository != "" {
		o.url = gh.ServerURL + "/" + gh.Repository
	}
	if id := a.Getenv("GITHUB_REPOSITORY_ID"); id != "" {
		if o.repositoryID, err = strconv.ParseInt(id, 10, 64); err != nil {
			return origin{}, invalid("GITHUB_REPOSITORY_ID", "leave GitHub's variables as the runner sets them", "%q is not the id of a repository", id)
		}
	}
	// The library gives the event as maps; its numbers are floats there.
	var event payload
	raw, err := json.Marshal(gh.Event)
	if err == nil {
		err = json.Unmarshal(raw, &event)
	}
	if err != nil {
		return origin{}, invalid("GITHUB_EVENT_PATH", "leave GitHub's variables as the runner sets them", "the event cannot be read: %v", err)
	}
	if o.repositoryID == 0 && event.Repository != nil {
		o.repositoryID = event.Repository.ID
	}
	pr := event.PullRequest
	o.untrusted = withSecrets[o.event]
	switch {
	case !pullRequestEvents[o.event]:
		return o, nil
	case pr == nil || pr.Number <= 0 || pr.Head.SHA == "":
		return origin{}, invalid("GITHUB_EVENT_PATH", "leave GitHub's variables as the runner sets them", "the event %s brings no pull request", o.event)
	}
	base := o.repositoryID
	if pr.Base.Repo != nil {
		base = cmp.Or(pr.Base.Repo.ID, base)
	}
	o.pullRequest, o.commit = pr.Number, pr.Head.SHA
	o.dependabot = o.actor == "dependabot[bot]" && o.event != "pull_request_target"
	o.closed, o.merged = pr.State == "closed", pr.Merged
	// A fork that is gone has no repository any more.
	o.fork = pr.Head.Repo == nil || pr.Head.Repo.ID == 0 || pr.Head.Repo.ID != base
	return o, nil
}

// found takes note of the commit that is checked out, "" if that cannot be told. A pull request's is the one that its event names:
// what is checked out then may be a trial of its merge.
func (o *origin) found(head string) {
	switch {
	case !o.onGitHub || pullRequestEvents[o.event]:
	case o.untrusted:
		o.elsewhere = head == "" || head != o.commit
	case head != "":
		o.commit = head // such as a workflow that is told what to deploy
	}
}

// source of a version that is deployed from here.
func (o origin) source() project.Source {
	return project.Source{Commit: o.commit, PullRequest: o.pullRequest}
}

// versionName is the name of the version that this commit makes, or "" if no commit is known.
func (o origin) versionName() string {
	if o.commit == "" {
		return ""
	}
	name, err := project.VersionName(o.source(), "")
	if err != nil {
		return ""
	}
	return name
}
