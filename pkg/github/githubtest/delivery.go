package githubtest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"time"

	"github.com/sluice-dev/sluice/pkg/chatops"
	"github.com/sluice-dev/sluice/pkg/github"
)

// CommentEvent is the issue_comment event that GitHub sends for a new comment on
// an open pull request; edit changes it before it is encoded.
func CommentEvent(c chatops.Comment, edit ...func(event map[string]any)) []byte {
	const base = "https://api.github.example"
	author := user(base, c.Author, c.AuthorID)
	at := fmt.Sprintf("%s/repos/%s/%s", base, c.Repository.Owner, c.Repository.Name)
	issueAt := fmt.Sprintf("%s/issues/%d", at, c.PullRequest)
	created := c.CreatedAt.UTC().Format(time.RFC3339)
	issue := map[string]any{
		"id": int64(c.PullRequest) + 1_000_000, "node_id": "I_" + strconv.Itoa(c.PullRequest), "number": c.PullRequest, "title": "A better model",
		"url": issueAt, "user": author, "labels": []any{}, "state": "open", "locked": false, "assignee": nil, "assignees": []any{},
		"milestone": nil, "comments": 1, "created_at": past, "updated_at": created, "closed_at": nil, "author_association": "MEMBER",
		"active_lock_reason": nil, "body": nil, "reactions": reactions(issueAt),
		"pull_request": map[string]any{
			"url": fmt.Sprintf("%s/pulls/%d", at, c.PullRequest), "html_url": fmt.Sprintf("%s/pull/%d", at, c.PullRequest),
			"diff_url": fmt.Sprintf("%s/pull/%d.diff", at, c.PullRequest), "patch_url": fmt.Sprintf("%s/pull/%d.patch", at, c.PullRequest),
		},
	}
	urls(issue, issueAt, "repository labels comments events html")
	commentAt := fmt.Sprintf("%s/issues/comments/%d", at, c.ID)
	repo := repositoryObject(base, c.Repository.ID, c.Repository.Owner, c.Repository.Name, 7)
	event := map[string]any{
		"action": "created", "issue": issue, "repository": repo, "sender": author,
		"comment": map[string]any{
			"id": c.ID, "node_id": "IC_" + strconv.FormatInt(c.ID, 10), "url": commentAt, "html_url": commentAt, "issue_url": issueAt,
			"user": author, "created_at": created, "updated_at": created, "author_association": "MEMBER", "body": c.Body,
			"performed_via_github_app": nil, "reactions": reactions(commentAt),
		},
	}
	return encode(event, c.Repository, edit)
}

// ButtonEvent is the check_run event that GitHub sends when somebody presses a button of a check run.
func ButtonEvent(b chatops.Button, external string, edit ...func(event map[string]any)) []byte {
	const base = "https://api.github.example"
	at := fmt.Sprintf("%s/repos/%s/%s", base, b.Repository.Owner, b.Repository.Name)
	repo := repositoryObject(base, b.Repository.ID, b.Repository.Owner, b.Repository.Name, 7)
	app := appObject(base)
	pulls := []any{}
	if b.PullRequest > 0 {
		branch := map[string]any{"ref": "better", "sha": b.Head, "repo": map[string]any{"id": b.Repository.ID, "url": at, "name": b.Repository.Name}}
		pulls = append(pulls, map[string]any{"url": fmt.Sprintf("%s/pulls/%d", at, b.PullRequest), "id": b.PullRequest + 1_000_000, "number": b.PullRequest, "head": branch, "base": branch})
	}
	event := map[string]any{
		"action": "requested_action", "requested_action": map[string]any{"identifier": string(b.Action)}, "repository": repo, "sender": user(base, b.Sender, b.SenderID),
		"check_run": map[string]any{
			"id": 4, "node_id": "CR_4", "head_sha": b.Head, "external_id": external, "url": at + "/check-runs/4", "html_url": at + "/runs/4", "details_url": at, "status": "completed",
			"conclusion": "neutral", "started_at": past, "completed_at": time.Now().UTC().Format(time.RFC3339), "name": "sluice/" + b.Endpoint.Name, "app": app, "pull_requests": pulls,
			"output": map[string]any{"title": "gets 10 %", "summary": "", "text": nil, "annotations_count": 0, "annotations_url": at + "/annotations"},
			"check_suite": map[string]any{
				"id": 5, "node_id": "CS_5", "head_branch": "better", "head_sha": b.Head, "status": "completed", "conclusion": "neutral", "url": at + "/check-suites/5",
				"before": b.Head, "after": b.Head, "pull_requests": pulls, "app": app, "created_at": past, "updated_at": past,
			},
		},
	}
	return encode(event, b.Repository, edit)
}

// Rerequested makes a ButtonEvent the one that GitHub sends when somebody wants the check to run again.
func Rerequested(event map[string]any) {
	event["action"] = "rerequested"
	delete(event, "requested_action")
}

// ClosedEvent is the pull_request event that GitHub sends when a pull request is merged or closed.
func ClosedEvent(c chatops.Closed, edit ...func(event map[string]any)) []byte {
	const base = "https://api.github.example"
	by := user(base, c.By, 3)
	s := &Server{Server: &httptest.Server{URL: base}, accounts: map[string]int64{}}
	repo := &repository{id: c.Repository.ID, owner: c.Repository.Owner, name: c.Repository.Name}
	pr := s.pullRequest(repo, &PullRequest{Number: c.PullRequest, Head: c.Head, State: "closed", Merged: c.Merged})
	at := c.At.UTC().Format(time.RFC3339)
	pr["closed_at"] = at
	pr["requested_reviewers"], pr["requested_teams"], pr["assignees"] = []any{}, []any{}, []any{}
	if c.Merged {
		pr["merged_at"], pr["merged_by"], pr["merge_commit_sha"] = at, by, strings.Repeat("e", 40)
	}
	event := map[string]any{
		"action": "closed", "number": c.PullRequest, "pull_request": pr, "sender": by,
		"repository": repositoryObject(base, c.Repository.ID, c.Repository.Owner, c.Repository.Name, 7),
	}
	return encode(event, c.Repository, edit)
}

func encode(event map[string]any, repo chatops.Repository, edit []func(map[string]any)) []byte {
	if repo.Installation != 0 {
		event["installation"] = map[string]any{"id": repo.Installation, "node_id": "INST"}
	}
	for _, f := range edit {
		f(event)
	}
	b, err := json.Marshal(event)
	if err != nil {
		panic(err) // maps of plain values always encode
	}
	return b
}

func reactions(at string) map[string]any {
	out := map[string]any{"url": at + "/reactions", "total_count": 0}
	for name := range strings.FieldsSeq("+1 -1 laugh hooray confused heart rocket eyes") {
		out[name] = 0
	}
	return out
}

// Delivery is the signed request that GitHub makes of an event.
func Delivery(url, secret, event, guid string, body []byte) *http.Request {
	r, err := http.NewRequest(http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		panic(err) // the address is a test's own
	}
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("User-Agent", "GitHub-Hookshot/5a1b2c3")
	r.Header.Set("X-GitHub-Event", event)
	r.Header.Set("X-GitHub-Delivery", guid)
	r.Header.Set("X-GitHub-Hook-ID", "1")
	r.Header.Set(github.SignatureHeader, github.Sign([]byte(secret), body))
	return r
}
