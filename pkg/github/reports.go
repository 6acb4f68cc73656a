package github

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"maps"
	"net/http"
	"strings"
	"time"

	"github.com/google/go-github/v62/github"

	"github.com/sluice-dev/sluice/pkg/chatops"
	"github.com/sluice-dev/sluice/pkg/report"
	"github.com/sluice-dev/sluice/rollout"
)

var (
	_ report.GitHub = (*Client)(nil)
	_ Self          = (*Client)(nil)
)

// Bounds of what is looked through.
const (
	perPage  = 100
	maxPages = 50
	// listEvery bounds how often the App's repositories are listed for one that is not known.
	listEvery = time.Minute
	// keepRepository is how long a repository's name is taken for right.
	keepRepository  = time.Hour
	maxRepositories = 10_000
)

// task tells Sluice's deployments from those of workflows.
const task = "sluice"

// App says whether the client acts as a GitHub App, which alone may write check runs.
func (c *Client) App() bool { return c.token == nil }

// IsApp implements Self.
func (c *Client) IsApp(id int64) bool { return c.App() && id == c.o.AppID }

type known struct {
	repo  chatops.Repository
	until time.Time
}

// Learn where a repository is, as a signed delivery said.
func (c *Client) Learn(r chatops.Repository) {
	if r.ID <= 0 || c.App() && r.Installation <= 0 {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.repos[r.ID]; !ok && len(c.repos) >= maxRepositories {
		clear(c.repos) // they are found again
	}
	c.repos[r.ID] = known{r, time.Now().Add(keepRepository)}
}

// Forget an installation of the App: it is gone, suspended, or has other rights or repositories than before.
func (c *Client) Forget(installation int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.byInst, installation)
	maps.DeleteFunc(c.repos, func(_ int64, k known) bool { return k.repo.Installation == installation })
}

func (c *Client) remembered(id int64) (chatops.Repository, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	k, ok := c.repos[id]
	return k.repo, ok && time.Now().Before(k.until)
}

// Repository finds owner, name and installation of a repository by its id.
func (c *Client) Repository(ctx context.Context, id int64) (chatops.Repository, error) {
	if r, ok := c.remembered(id); ok {
		return r, nil
	}
	if !c.App() {
		var r *github.Repository
		err := c.call(ctx, fmt.Sprintf("read repository %d", id), true, func(ctx context.Context) (resp *github.Response, err error) {
			r, resp, err = c.token.Repositories.GetByID(ctx, id)
			return resp, err
		})
		if err != nil {
			return chatops.Repository{}, err
		}
		c.Learn(chatops.Repository{ID: id, Owner: r.GetOwner().GetLogin(), Name: r.GetName()})
	} else if err := c.list(ctx); err != nil {
		return chatops.Repository{}, err
	}
	r, ok := c.remembered(id)
	if !ok {
		return chatops.Repository{}, &apiError{op: "find repository", err: fmt.Errorf("repository %d is in no installation of the App", id)}
	}
	return r, nil
}

// list the repositories of all installations of the App.
func (c *Client) list(ctx context.Context) error {
	c.mu.Lock()
	early := time.Since(c.listed) < listEvery
	if !early {
		c.listed = time.Now()
	}
	c.mu.Unlock()
	if early {
		return nil
	}
	for in, err := range items(ctx, c, "list installations", func(ctx context.Context, o github.ListOptions) ([]*github.Installation, *github.Response, error) {
		return c.app.Apps.ListInstallations(ctx, &o)
	}) {
		if err != nil {
			return err
		}
		if in.SuspendedAt != nil {
			continue
		}
		if err := c.listInstallation(ctx, in.GetID()); err != nil {
			c.log.WarnContext(ctx, "repositories of an installation cannot be listed", "installation", in.GetID(), "error", err)
		}
	}
	return nil
}

func (c *Client) listInstallation(ctx context.Context, id int64) error {
	gh, err := c.For(id)
	if err != nil {
		return err
	}
	for r, err := range items(ctx, c, "list repositories", func(ctx context.Context, o github.ListOptions) ([]*github.Repository, *github.Response, error) {
		all, resp, err := gh.Apps.ListRepos(ctx, &o)
		if err != nil {
			return nil, resp, err
		}
		return all.Repositories, resp, nil
	}) {
		if err != nil {
			return err
		}
		c.Learn(chatops.Repository{ID: r.GetID(), Owner: r.GetOwner().GetLogin(), Name: r.GetName(), Installation: id})
	}
	return nil
}

// items of a list that GitHub gives in pages, as they are asked for; an error ends it.
func items[T any](ctx context.Context, c *Client, op string, fetch func(ctx context.Context, o github.ListOptions) ([]T, *github.Response, error)) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		for page := 1; page > 0 && page <= maxPages; {
			var all []T
			next := 0
			err := c.call(ctx, op, true, func(ctx context.Context) (resp *github.Response, err error) {
				all, resp, err = fetch(ctx, github.ListOptions{Page: page, PerPage: perPage})
				if resp != nil {
					next = resp.NextPage
				}
				return resp, err
			})
			if err != nil {
				var none T
				yield(none, err)
				return
			}
			for _, x := range all {
				if !yield(x, nil) {
					return
				}
			}
			page = next
		}
	}
}

// self is who the client writes as, asked once.
type self struct {
	login string // of an App's bot
	id    int64  // of a token's user
}

func (s self) is(u *github.User) bool { return s.account(u.GetLogin(), u.GetType(), u.GetID()) }

func (s self) account(login, kind string, id int64) bool {
	if s.login != "" {
		return strings.EqualFold(login, s.login) && kind == "Bot"
	}
	return s.id != 0 && id == s.id
}

// IsSelf implements Self with what GitHub said before the first report was written; it does not ask.
func (c *Client) IsSelf(login, kind string, id int64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.me.account(login, kind, id)
}

func (c *Client) whoami(ctx context.Context) (self, error) {
	c.mu.Lock()
	me := c.me
	c.mu.Unlock()
	if me != (self{}) {
		return me, nil
	}
	err := c.call(ctx, "ask who this is", true, func(ctx context.Context) (*github.Response, error) {
		if c.App() {
			app, resp, err := c.app.Apps.Get(ctx, "")
			if err == nil && app.GetSlug() != "" {
				me.login = app.GetSlug() + "[bot]"
			}
			return resp, err
		}
		u, resp, err := c.token.Users.Get(ctx, "")
		me.id = u.GetID()
		return resp, err
	})
	if err != nil {
		return self{}, err
	}
	if me == (self{}) {
		return self{}, &apiError{op: "ask who this is", err: errors.New("GitHub does not say")}
	}
	c.mu.Lock()
	c.me = me
	c.mu.Unlock()
	return me, nil
}

// FindComment is the comment of ours on the pull request that is marked as the
// endpoint's: the one with that id if it is one, else the oldest; further ones,
// which a lost answer may have left, are deleted.
func (c *Client) FindComment(ctx context.Context, repo chatops.Repository, number int, id int64, key rollout.Key) (report.Found, error) {
	me, err := c.whoami(ctx)
	if err != nil {
		return report.Found{}, err
	}
	gh, err := c.For(repo.Installation)
	if err != nil {
		return report.Found{}, err
	}
	ours := func(x *github.IssueComment) bool {
		m, ok := report.MarkOf(x.GetBody())
		return ok && m.Key() == key && me.is(x.GetUser())
	}
	if id > 0 {
		var x *github.IssueComment
		err := c.call(ctx, fmt.Sprintf("read comment %d", id), true, func(ctx context.Context) (resp *github.Response, err error) {
			x, resp, err = gh.Issues.GetComment(ctx, repo.Owner, repo.Name, id)
			return resp, err
		})
		switch {
		case isStatus(err, http.StatusNotFound): // somebody deleted it
		case err != nil:
			return report.Found{}, err
		case me.is(x.GetUser()) && strings.HasSuffix(x.GetIssueURL(), fmt.Sprintf("/issues/%d", number)):
			return report.Found{ID: id, Body: x.GetBody()}, nil // its mark may have been edited away
		}
	}
	var found report.Found
	for x, err := range items(ctx, c, fmt.Sprintf("list comments of pull request %d", number), func(ctx context.Context, o github.ListOptions) ([]*github.IssueComment, *github.Response, error) {
		return gh.Issues.ListComments(ctx, repo.Owner, repo.Name, number, &github.IssueListCommentsOptions{ListOptions: o})
	}) {
		switch {
		case err != nil:
			return report.Found{}, err
		case !ours(x):
		case found.ID == 0:
			found = report.Found{ID: x.GetID(), Body: x.GetBody()}
		default:
			c.log.InfoContext(ctx, "a second comment about an endpoint is deleted", "comment", x.GetID(), "endpoint", key.String())
			if err := c.call(ctx, fmt.Sprintf("delete comment %d", x.GetID()), false, func(ctx context.Context) (*github.Response, error) {
				return gh.Issues.DeleteComment(ctx, repo.Owner, repo.Name, x.GetID())
			}); err != nil && !isStatus(err, http.StatusNotFound) {
				return report.Found{}, err
			}
		}
	}
	return found, nil
}

// PutComment edits the comment, or adds one if id is 0. report.ErrGone: there is no such comment any more.
func (c *Client) PutComment(ctx context.Context, repo chatops.Repository, number int, id int64, body string) (int64, error) {
	gh, err := c.For(repo.Installation)
	if err != nil {
		return 0, err
	}
	var x *github.IssueComment
	err = c.call(ctx, fmt.Sprintf("write the comment on pull request %d", number), false, func(ctx context.Context) (resp *github.Response, err error) {
		if id == 0 {
			x, resp, err = gh.Issues.CreateComment(ctx, repo.Owner, repo.Name, number, &github.IssueComment{Body: &body})
		} else {
			x, resp, err = gh.Issues.EditComment(ctx, repo.Owner, repo.Name, id, &github.IssueComment{Body: &body})
		}
		return resp, err
	})
	if id != 0 && isStatus(err, http.StatusNotFound) {
		return 0, fmt.Errorf("%w: %w", report.ErrGone, err)
	}
	return x.GetID(), err
}

// The bodies of check runs: go-github's leave out an empty list of actions, which would keep the old buttons.
type checkBody struct {
	Name        string        `json:"name"`
	HeadSHA     string        `json:"head_sha,omitempty"`
	ExternalID  string        `json:"external_id"`
	Status      string        `json:"status"`
	Conclusion  string        `json:"conclusion,omitempty"`
	CompletedAt string        `json:"completed_at,omitempty"`
	Output      checkOutput   `json:"output"`
	Actions     []checkAction `json:"actions"`
}

type checkOutput struct {
	Title       string            `json:"title"`
	Summary     string            `json:"summary"`
	Annotations []checkAnnotation `json:"annotations,omitempty"`
}

type checkAnnotation struct {
	Path    string `json:"path"`
	Start   int    `json:"start_line"`
	End     int    `json:"end_line"`
	Level   string `json:"annotation_level"`
	Title   string `json:"title"`
	Message string `json:"message"`
}

type checkAction struct {
	Label       string `json:"label"`
	Description string `json:"description"`
	Identifier  string `json:"identifier"`
}

// PutCheck writes the check run of a version: the one with the id, else the one
// that is found by name and external id on the commit, else a new one.
func (c *Client) PutCheck(ctx context.Context, repo chatops.Repository, k report.Check) (int64, error) {
	gh, err := c.For(repo.Installation)
	if err != nil {
		return 0, err
	}
	id, annotated := k.ID, false
	switch {
	case id == 0:
		if id, annotated, err = c.findCheck(ctx, gh, repo, k); err != nil {
			return 0, err
		}
	case len(k.Annotations) > 0: // they are added at each update
		var run *github.CheckRun
		if err := c.call(ctx, fmt.Sprintf("read check run %d", id), true, func(ctx context.Context) (resp *github.Response, err error) {
			run, resp, err = gh.Checks.GetCheckRun(ctx, repo.Owner, repo.Name, id)
			return resp, err
		}); err != nil {
			return 0, err
		}
		annotated = run.GetOutput().GetAnnotationsCount() > 0
	}
	body := checkBody{
		Name: k.Name, ExternalID: k.External, Status: "in_progress", Actions: []checkAction{},
		Output: checkOutput{Title: k.Title, Summary: k.Summary},
	}
	if k.Conclusion != "" {
		body.Status, body.Conclusion, body.CompletedAt = "completed", k.Conclusion, time.Now().UTC().Format(time.RFC3339)
	}
	for _, a := range k.Actions {
		body.Actions = append(body.Actions, checkAction(a))
	}
	for _, a := range k.Annotations {
		if !annotated {
			body.Output.Annotations = append(body.Output.Annotations, checkAnnotation{Path: a.Path, Start: a.Line, End: a.Line, Level: "failure", Title: a.Title, Message: a.Message})
		}
	}
	method, path := http.MethodPatch, fmt.Sprintf("repos/%s/%s/check-runs/%d", repo.Owner, repo.Name, id)
	if id == 0 {
		method, path = http.MethodPost, fmt.Sprintf("repos/%s/%s/check-runs", repo.Owner, repo.Name)
		body.HeadSHA = k.Head
	}
	var out github.CheckRun
	err = c.call(ctx, "write check run "+k.Name, false, func(ctx context.Context) (*github.Response, error) {
		req, err := gh.NewRequest(method, path, body)
		if err != nil {
			return nil, err
		}
		return gh.Do(ctx, req, &out)
	})
	return out.GetID(), err
}

func (c *Client) findCheck(ctx context.Context, gh *github.Client, repo chatops.Repository, k report.Check) (id int64, annotated bool, err error) {
	for r, err := range items(ctx, c, "list check runs", func(ctx context.Context, o github.ListOptions) ([]*github.CheckRun, *github.Response, error) {
		all, resp, err := gh.Checks.ListCheckRunsForRef(ctx, repo.Owner, repo.Name, k.Head, &github.ListCheckRunsOptions{CheckName: &k.Name, Filter: github.String("all"), AppID: &c.o.AppID, ListOptions: o})
		if err != nil {
			return nil, resp, err
		}
		return all.CheckRuns, resp, nil
	}) {
		if err != nil {
			return 0, false, err
		}
		if r.GetExternalID() == k.External && r.GetApp().GetID() == c.o.AppID {
			return r.GetID(), r.GetOutput().GetAnnotationsCount() > 0, nil
		}
	}
	return 0, false, nil
}

// PutStatus writes the commit status of a version, unless the newest of its context says the same:
// a commit takes 1,000 per context.
func (c *Client) PutStatus(ctx context.Context, repo chatops.Repository, k report.Check) error {
	gh, err := c.For(repo.Installation)
	if err != nil {
		return err
	}
	// Newest first.
	for was, err := range items(ctx, c, "list commit statuses", func(ctx context.Context, o github.ListOptions) ([]*github.RepoStatus, *github.Response, error) {
		return gh.Repositories.ListStatuses(ctx, repo.Owner, repo.Name, k.Head, &o)
	}) {
		if err != nil {
			return err
		}
		if was.GetContext() == k.Name {
			if was.GetState() == k.Status && was.GetDescription() == k.Title {
				return nil
			}
			break
		}
	}
	return c.call(ctx, "write commit status "+k.Name, false, func(ctx context.Context) (*github.Response, error) {
		_, resp, err := gh.Repositories.CreateStatus(ctx, repo.Owner, repo.Name, k.Head, &github.RepoStatus{State: &k.Status, Context: &k.Name, Description: &k.Title})
		return resp, err
	})
}

// payload of a deployment.
type payload struct {
	Sluice string `json:"sluice"` // the version
}

// PutDeployment makes the version's deployment if there is none, and gives it the state unless it has it.
func (c *Client) PutDeployment(ctx context.Context, repo chatops.Repository, d report.Deployment) (int64, error) {
	gh, err := c.For(repo.Installation)
	if err != nil {
		return 0, err
	}
	id := d.ID
	if id == 0 {
		if id, err = c.findDeployment(ctx, gh, repo, d); err != nil {
			return 0, err
		}
	}
	if id == 0 && d.State == "inactive" {
		return 0, nil // what is over needs none
	}
	if id == 0 {
		var made *github.Deployment
		if err := c.call(ctx, "make deployment", false, func(ctx context.Context) (resp *github.Response, err error) {
			made, resp, err = gh.Repositories.CreateDeployment(ctx, repo.Owner, repo.Name, &github.DeploymentRequest{
				Ref: &d.Commit, Task: github.String(task), Environment: &d.Environment, Description: github.String(d.Version), Payload: payload{d.Version},
				// Left out, GitHub merges the base branch into the ref, and waits for every check.
				AutoMerge: github.Bool(false), RequiredContexts: &[]string{},
			})
			if err == nil && made.GetSHA() != d.Commit {
				err = fmt.Errorf("GitHub deployed %.12s, not %.12s", made.GetSHA(), d.Commit)
			}
			return resp, err
		}); err != nil {
			return 0, err
		}
		id = made.GetID()
	} else {
		var all []*github.DeploymentStatus // newest first
		if err := c.call(ctx, "list deployment statuses", true, func(ctx context.Context) (resp *github.Response, err error) {
			all, resp, err = gh.Repositories.ListDeploymentStatuses(ctx, repo.Owner, repo.Name, id, &github.ListOptions{PerPage: 1})
			return resp, err
		}); err != nil {
			return id, err
		}
		if len(all) > 0 && all[0].GetState() == d.State && all[0].GetDescription() == d.Description {
			return id, nil
		}
	}
	return id, c.call(ctx, "write deployment status", false, func(ctx context.Context) (*github.Response, error) {
		_, resp, err := gh.Repositories.CreateDeploymentStatus(ctx, repo.Owner, repo.Name, id, &github.DeploymentStatusRequest{
			State: &d.State, Description: &d.Description, AutoInactive: github.Bool(false),
		})
		return resp, err
	})
}

func (c *Client) findDeployment(ctx context.Context, gh *github.Client, repo chatops.Repository, d report.Deployment) (int64, error) {
	for x, err := range items(ctx, c, "list deployments", func(ctx context.Context, o github.ListOptions) ([]*github.Deployment, *github.Response, error) {
		return gh.Repositories.ListDeployments(ctx, repo.Owner, repo.Name, &github.DeploymentsListOptions{SHA: d.Commit, Environment: d.Environment, Task: task, ListOptions: o})
	}) {
		if err != nil {
			return 0, err
		}
		raw := x.Payload
		var text string
		if json.Unmarshal(raw, &text) == nil { // GitHub gives back a string where one was sent
			raw = json.RawMessage(text)
		}
		var p payload
		if json.Unmarshal(raw, &p) == nil && p.Sluice == d.Version {
			return x.GetID(), nil
		}
	}
	return 0, nil
}

// isStatus says whether GitHub answered with that code.
func isStatus(err error, code int) bool {
	var r *github.ErrorResponse
	return errors.As(err, &r) && r.Response != nil && r.Response.StatusCode == code
}

// pacer lets one writing request through at a time, and waits between them, as GitHub asks
// (docs.github.com/rest/using-the-rest-api/best-practices-for-using-the-rest-api).
type pacer struct {
	turn  chan struct{}
	pause time.Duration
	last  time.Time
}

func newPacer(pause time.Duration) *pacer { return &pacer{turn: make(chan struct{}, 1), pause: pause} }

type paced struct {
	pacer *pacer
	next  http.RoundTripper
}

func (p paced) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Method == http.MethodGet || r.Method == http.MethodHead || p.pacer.pause <= 0 {
		return p.next.RoundTrip(r)
	}
	select {
	case p.pacer.turn <- struct{}{}:
	case <-r.Context().Done():
		return nil, r.Context().Err()
	}
	defer func() {
		p.pacer.last = time.Now()
		<-p.pacer.turn
	}()
	select {
	case <-time.After(time.Until(p.pacer.last.Add(p.pacer.pause))):
	case <-r.Context().Done():
		return nil, r.Context().Err()
	}
	return p.next.RoundTrip(r)
}
