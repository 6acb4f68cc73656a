package githubtest

import (
	"cmp"
	"fmt"
	"strconv"
	"strings"
	"time"
)

var past = time.Date(2026, 11, 1, 9, 0, 0, 0, time.UTC).Format(time.RFC3339)

// urls are the links of an object: GitHub's objects have very many, all required.
func urls(to map[string]any, base string, names string) {
	for name := range strings.FieldsSeq(names) {
		to[name+"_url"] = base + "/" + name
	}
}

func user(base, login string, id int64) map[string]any {
	kind := "User"
	if strings.HasSuffix(login, "[bot]") {
		kind = "Bot"
	}
	out := map[string]any{
		"login": login, "id": id, "node_id": "U_" + strconv.FormatInt(id, 10), "gravatar_id": "", "type": kind, "site_admin": false,
		"url": base + "/users/" + login,
	}
	urls(out, base+"/users/"+login, "avatar events followers following gists html organizations received_events repos starred subscriptions")
	return out
}

func repositoryObject(base string, id int64, owner, name string, ownerID int64) map[string]any {
	at := fmt.Sprintf("%s/repos/%s/%s", base, owner, name)
	out := map[string]any{
		"id": id, "node_id": "R_" + strconv.FormatInt(id, 10), "name": name, "full_name": owner + "/" + name, "owner": user(base, owner, ownerID),
		"private": true, "fork": false, "description": nil, "url": at, "default_branch": DefaultBranch, "homepage": nil, "language": nil,
		"archived": false, "disabled": false, "mirror_url": nil, "license": nil, "pushed_at": past, "created_at": past, "updated_at": past,
		"has_downloads": true, "has_issues": true, "has_projects": true, "has_wiki": true, "has_pages": false, "has_discussions": false,
		"topics": []string{}, "visibility": "private", "size": 1, "allow_forking": true, "is_template": false, "web_commit_signoff_required": false,
		"custom_properties": map[string]any{},
	}
	for _, n := range []string{"forks", "forks_count", "open_issues", "open_issues_count", "stargazers_count", "watchers", "watchers_count"} {
		out[n] = 0
	}
	urls(out, at, `archive assignees blobs branches collaborators comments commits compare contents contributors deployments downloads
		events forks git_commits git_refs git_tags hooks html issue_comment issue_events issues keys labels languages merges milestones
		notifications pulls releases stargazers statuses subscribers subscription tags teams trees clone git ssh svn`)
	return out
}

func (s *Server) pullRequest(repo *repository, pr *PullRequest) map[string]any {
	at := fmt.Sprintf("%s/repos/%s/%s/pulls/%d", s.URL, repo.owner, repo.name, pr.Number)
	owner := s.account(repo.owner)
	branch := func(ref, sha string, object any) map[string]any {
		return map[string]any{"label": repo.owner + ":" + ref, "ref": ref, "sha": sha, "user": user(s.URL, repo.owner, owner), "repo": object}
	}
	base := repositoryObject(s.URL, repo.id, repo.owner, repo.name, owner)
	if repo.public {
		base["private"], base["visibility"] = false, "public"
	}
	var head any = base
	switch {
	case pr.HeadRepository < 0:
		head = nil
	case pr.HeadRepository > 0 && pr.HeadRepository != repo.id:
		head = repositoryObject(s.URL, pr.HeadRepository, "stranger", repo.name, s.account("stranger"))
	}
	out := map[string]any{
		"id": repo.id*1000 + int64(pr.Number), "node_id": "PR_" + strconv.Itoa(pr.Number), "number": pr.Number, "state": pr.State, "merged": pr.Merged,
		"title": "A better model", "body": nil, "locked": false, "draft": false, "url": at, "user": user(s.URL, repo.owner, owner),
		"base": branch(cmp.Or(pr.Base, DefaultBranch), strings.Repeat("b", 40), base), "head": branch("better", pr.Head, head),
		"assignee": nil, "labels": []any{}, "milestone": nil, "auto_merge": nil, "active_lock_reason": nil, "merged_by": nil,
		"merge_commit_sha": nil, "merged_at": nil, "closed_at": nil, "created_at": past, "updated_at": past, "author_association": "OWNER",
		"additions": 1, "deletions": 1, "changed_files": 1, "commits": 1, "comments": 0, "review_comments": 0,
		"mergeable": true, "rebaseable": true, "mergeable_state": "clean", "maintainer_can_modify": false,
	}
	if pr.State == "closed" {
		out["closed_at"] = past
	}
	links := map[string]any{}
	for name := range strings.FieldsSeq("comments commits statuses html issue review_comments review_comment self") {
		links[name] = map[string]any{"href": at + "/" + name}
	}
	out["_links"] = links
	urls(out, at, "comments commits diff html issue patch review_comment review_comments statuses")
	return out
}
