package githubtest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
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
	if c.Repository.Installation != 0 {
		event["installation"] = map[string]any{"id": c.Repository.Installation, "node_id": "INST"}
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
