package githubtest

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/gorilla/mux"
)

// Names under which writers appear: an App's installation, and who the token belongs to.
const (
	AppID    = 123
	AppSlug  = "sluice"
	AppLogin = AppSlug + "[bot]"
	Robot    = "sluice-robot"
	// Installation of the App, which has every repository.
	Installation = 77
)

// CheckRun of the fake.
type CheckRun struct {
	ID                                 int64
	Name, External, Head               string
	Status, Conclusion, Title, Summary string
	Actions                            []string // identifiers
	Annotations                        []string // PATH:LINE
	// Updates since it was made, and when it was completed as the last of them said.
	Updates   int
	Completed string
}

// CommitStatus of the fake.
type CommitStatus struct{ SHA, Context, State, Description string }

// Deployment of the fake; States are oldest first.
type Deployment struct {
	ID                        int64
	SHA, Environment, Payload string
	States                    []string
	descriptions              []string
}

// CheckRuns of the repository, oldest first.
func (s *Server) CheckRuns(repo string) []CheckRun {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []CheckRun
	for _, c := range s.repo(repo).checks {
		out = append(out, *c)
	}
	return out
}

// Statuses of commits, oldest first.
func (s *Server) Statuses(repo string) []CommitStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.repo(repo).statuses)
}

// Deployments of the repository, oldest first.
func (s *Server) Deployments(repo string) []Deployment {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []Deployment
	for _, d := range s.repo(repo).deployments {
		x := *d
		x.States = slices.Clone(d.States)
		out = append(out, x)
	}
	return out
}

// AddComment as somebody would by hand, and return its id.
func (s *Server) AddComment(repo string, number int, author, body string) int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.nextID++
	r := s.repo(repo)
	r.comments[number] = append(r.comments[number], Comment{ID: s.nextID, Body: body, Author: author})
	return s.nextID
}

// EditComment as somebody with the right would by hand; an empty body deletes it.
func (s *Server) EditComment(repo string, id int64, body string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.repo(repo)
	number, i := r.comment(id)
	switch {
	case i < 0:
		s.t.Errorf("the fake has no comment %d", id)
	case body == "":
		r.comments[number] = slices.Delete(r.comments[number], i, i+1)
	default:
		r.comments[number][i].Body = body
	}
}

func (r *repository) comment(id int64) (number, index int) {
	for n, all := range r.comments {
		if i := slices.IndexFunc(all, func(c Comment) bool { return c.ID == id }); i >= 0 {
			return n, i
		}
	}
	return 0, -1
}

func (s *Server) reports(r *mux.Router) {
	const repo = "/repos/{owner}/{repo}"
	r.HandleFunc("/app", s.getApp).Methods(http.MethodGet)
	r.HandleFunc("/app/installations", s.listInstallations).Methods(http.MethodGet)
	r.HandleFunc("/installation/repositories", s.listRepositories).Methods(http.MethodGet)
	r.HandleFunc("/user", s.getUser).Methods(http.MethodGet)
	r.HandleFunc("/repositories/{id}", s.getRepository).Methods(http.MethodGet)
	r.HandleFunc(repo+"/issues/{number}/comments", s.listComments).Methods(http.MethodGet)
	r.HandleFunc(repo+"/issues/comments/{id}", s.oneComment).Methods(http.MethodGet, http.MethodPatch, http.MethodDelete)
	r.HandleFunc(repo+"/check-runs", s.writeCheck).Methods(http.MethodPost)
	r.HandleFunc(repo+"/check-runs/{id}", s.writeCheck).Methods(http.MethodPatch)
	r.HandleFunc(repo+"/check-runs/{id}", s.getCheck).Methods(http.MethodGet)
	r.HandleFunc(repo+"/commits/{ref}/check-runs", s.listChecks).Methods(http.MethodGet)
	r.HandleFunc(repo+"/commits/{ref}/statuses", s.listStatuses).Methods(http.MethodGet)
	r.HandleFunc(repo+"/statuses/{sha}", s.createStatus).Methods(http.MethodPost)
	r.HandleFunc(repo+"/deployments", s.listDeployments).Methods(http.MethodGet)
	r.HandleFunc(repo+"/deployments", s.createDeployment).Methods(http.MethodPost)
	r.HandleFunc(repo+"/deployments/{id}/statuses", s.listDeploymentStatuses).Methods(http.MethodGet)
	r.HandleFunc(repo+"/deployments/{id}/statuses", s.createDeploymentStatus).Methods(http.MethodPost)
}

// writer is who a request's token belongs to.
func (s *Server) writer(r *http.Request) string {
	if isApp(r) {
		return AppLogin
	}
	return Robot
}

func isApp(r *http.Request) bool {
	_, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	return strings.HasPrefix(token, "ghs_") || isJWT(token)
}

func isJWT(token string) bool { return strings.Count(token, ".") == 2 }

// page cuts a list as GitHub does, and says where the next page is.
func page[T any](w http.ResponseWriter, r *http.Request, all []T) []T {
	q := r.URL.Query()
	n, size := 1, 30
	if v, err := strconv.Atoi(q.Get("page")); err == nil {
		n = v
	}
	if v, err := strconv.Atoi(q.Get("per_page")); err == nil {
		size = v
	}
	from := min((n-1)*size, len(all))
	to := min(from+size, len(all))
	if to < len(all) {
		q.Set("page", strconv.Itoa(n+1))
		w.Header().Set("Link", fmt.Sprintf("<http://%s%s?%s>; rel=\"next\"", r.Host, r.URL.Path, q.Encode()))
	}
	return all[from:to]
}

func appObject(base string) map[string]any {
	return map[string]any{
		"id": AppID, "slug": AppSlug, "node_id": "A_1", "owner": user(base, "acme", 7), "name": "Sluice", "description": nil, "external_url": base, "html_url": base,
		"created_at": past, "updated_at": past, "permissions": map[string]string{"checks": "write"}, "events": []string{"check_run"},
	}
}

func (s *Server) getApp(w http.ResponseWriter, _ *http.Request) {
	answer(w, http.StatusOK, appObject(s.URL))
}

func (s *Server) listInstallations(w http.ResponseWriter, r *http.Request) {
	at := fmt.Sprintf("%s/app/installations/%d", s.URL, Installation)
	account := user(s.URL, "acme", 7)
	account["name"], account["slug"], account["created_at"], account["updated_at"] = "Acme", "acme", past, past
	answer(w, http.StatusOK, page(w, r, []any{map[string]any{
		"id": Installation, "account": account, "repository_selection": "all", "access_tokens_url": at + "/access_tokens", "repositories_url": s.URL + "/installation/repositories",
		"html_url": at, "app_id": AppID, "target_id": 7, "target_type": "Organization", "permissions": map[string]string{}, "events": []string{}, "created_at": past, "updated_at": past,
		"single_file_name": nil, "app_slug": AppSlug, "suspended_by": nil, "suspended_at": nil,
	}}))
}

func (s *Server) listRepositories(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := []any{}
	for _, x := range slices.SortedFunc(maps.Values(s.repos), func(a, b *repository) int { return cmp.Compare(a.id, b.id) }) {
		all = append(all, repositoryObject(s.URL, x.id, x.owner, x.name, s.account(x.owner)))
	}
	answer(w, http.StatusOK, map[string]any{"total_count": len(all), "repositories": page(w, r, all)})
}

func (s *Server) getUser(w http.ResponseWriter, _ *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	u := user(s.URL, Robot, s.account(Robot))
	for _, name := range strings.Fields("name company blog location email hireable bio twitter_username") {
		u[name] = nil
	}
	for _, name := range strings.Fields("public_repos public_gists followers following") {
		u[name] = 0
	}
	u["created_at"], u["updated_at"], u["user_view_type"] = past, past, "public"
	answer(w, http.StatusOK, u)
}

func (s *Server) getRepository(w http.ResponseWriter, r *http.Request) {
	w.Header().Set(offContract, "the description has no repositories by id")
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, x := range s.repos {
		if strconv.FormatInt(x.id, 10) == mux.Vars(r)["id"] {
			answer(w, http.StatusOK, repositoryObject(s.URL, x.id, x.owner, x.name, s.account(x.owner)))
			return
		}
	}
	fail(w, http.StatusNotFound, "Not Found")
}

func (s *Server) commentObject(repo *repository, number int, c Comment) map[string]any {
	url := fmt.Sprintf("%s/repos/%s/%s", s.URL, repo.owner, repo.name)
	now := time.Now().UTC().Format(time.RFC3339)
	id := int64(1)
	if c.Author != AppLogin {
		id = s.account(c.Author)
	}
	return map[string]any{
		"id": c.ID, "node_id": "IC_" + strconv.FormatInt(c.ID, 10), "body": c.Body, "user": user(s.URL, c.Author, id),
		"url": fmt.Sprintf("%s/issues/comments/%d", url, c.ID), "issue_url": fmt.Sprintf("%s/issues/%d", url, number),
		"html_url":   fmt.Sprintf("%s/pull/%d#issuecomment-%d", url, number, c.ID),
		"created_at": now, "updated_at": now, "author_association": "NONE",
	}
}

func (s *Server) listComments(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	repo := s.of(w, r)
	if repo == nil {
		return
	}
	number, _ := strconv.Atoi(mux.Vars(r)["number"])
	if repo.pulls[number] == nil {
		fail(w, http.StatusNotFound, "Not Found")
		return
	}
	all := []any{}
	for _, c := range repo.comments[number] {
		all = append(all, s.commentObject(repo, number, c))
	}
	answer(w, http.StatusOK, page(w, r, all))
}

func (s *Server) oneComment(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	repo := s.of(w, r)
	if repo == nil {
		return
	}
	id, _ := strconv.ParseInt(mux.Vars(r)["id"], 10, 64)
	number, i := repo.comment(id)
	if i < 0 {
		if r.Method != http.MethodGet {
			w.Header().Set(offContract, "the description has no 404 here")
		}
		fail(w, http.StatusNotFound, "Not Found")
		return
	}
	c := &repo.comments[number][i]
	switch r.Method {
	case http.MethodDelete:
		s.tellOf(r, "deleted", repo, number, *c)
		repo.comments[number] = slices.Delete(repo.comments[number], i, i+1)
		w.WriteHeader(http.StatusNoContent)
		return
	case http.MethodPatch:
		var in struct{ Body string }
		if err := json.NewDecoder(r.Body).Decode(&in); err != nil || in.Body == "" || len([]rune(in.Body)) > maxComment {
			s.t.Errorf("a comment was edited to %d characters: %v", len([]rune(in.Body)), err)
			fail(w, http.StatusUnprocessableEntity, "Validation Failed")
			return
		}
		if c.Author != s.writer(r) {
			s.t.Errorf("%s edits a comment of %s", s.writer(r), c.Author)
		}
		was := c.Body
		c.Body = in.Body
		s.tellOf(r, "edited", repo, number, *c, func(e map[string]any) { e["changes"] = map[string]any{"body": map[string]any{"from": was}} })
	}
	answer(w, http.StatusOK, s.commentObject(repo, number, *c))
}

// Requeue a check run as GitHub does when somebody wants it to run again.
func (s *Server) Requeue(repo string, id int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.repo(repo).checks {
		if c.ID == id {
			c.Status, c.Conclusion = "queued", ""
		}
	}
}

func (s *Server) checkObject(repo *repository, c *CheckRun) map[string]any {
	at := fmt.Sprintf("%s/repos/%s/%s/check-runs/%d", s.URL, repo.owner, repo.name, c.ID)
	out := map[string]any{
		"id": c.ID, "node_id": "CR_" + strconv.FormatInt(c.ID, 10), "head_sha": c.Head, "name": c.Name, "url": at, "html_url": at, "details_url": at,
		"status": c.Status, "conclusion": nil, "started_at": past, "completed_at": nil, "external_id": c.External, "check_suite": map[string]any{"id": 5},
		"output": map[string]any{"title": c.Title, "summary": c.Summary, "text": nil, "annotations_count": len(c.Annotations), "annotations_url": at + "/annotations"},
		"app":    appObject(s.URL), "pull_requests": []any{},
	}
	if c.Conclusion != "" {
		out["conclusion"], out["completed_at"] = c.Conclusion, past
	}
	return out
}

func (s *Server) writeCheck(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	repo := s.of(w, r)
	if repo == nil {
		return
	}
	if !isApp(r) {
		w.Header().Set(offContract, "the description has no 403 here")
		fail(w, http.StatusForbidden, "You must authenticate via a GitHub App.")
		return
	}
	var in struct {
		Name       string
		Head       string `json:"head_sha"`
		External   string `json:"external_id"`
		Status     string
		Conclusion string
		Completed  string `json:"completed_at"`
		Output     struct {
			Title, Summary string
			Annotations    []struct {
				Path string
				Line int `json:"start_line"`
			}
		}
		Actions *[]struct{ Label, Description, Identifier string }
	}
	if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
		fail(w, http.StatusBadRequest, "Problems parsing JSON")
		return
	}
	code := http.StatusOK
	var c *CheckRun
	if id, _ := strconv.ParseInt(mux.Vars(r)["id"], 10, 64); id != 0 {
		i := slices.IndexFunc(repo.checks, func(c *CheckRun) bool { return c.ID == id })
		if i < 0 {
			fail(w, http.StatusNotFound, "Not Found")
			return
		}
		c = repo.checks[i]
		c.Updates++
	} else {
		s.nextID++
		code = http.StatusCreated
		c = &CheckRun{ID: s.nextID, Head: in.Head}
		repo.checks = append(repo.checks, c)
	}
	c.Completed = in.Completed
	c.Name, c.External, c.Status, c.Conclusion, c.Title, c.Summary = in.Name, in.External, in.Status, in.Conclusion, in.Output.Title, in.Output.Summary
	if c.Conclusion != "" {
		c.Status = "completed"
	}
	if in.Actions != nil {
		c.Actions = nil
		for _, a := range *in.Actions {
			c.Actions = append(c.Actions, a.Identifier)
		}
	}
	for _, a := range in.Output.Annotations {
		c.Annotations = append(c.Annotations, fmt.Sprintf("%s:%d", a.Path, a.Line))
	}
	answer(w, code, s.checkObject(repo, c))
}

func (s *Server) getCheck(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	repo := s.of(w, r)
	if repo == nil {
		return
	}
	for _, c := range repo.checks {
		if strconv.FormatInt(c.ID, 10) == mux.Vars(r)["id"] {
			answer(w, http.StatusOK, s.checkObject(repo, c))
			return
		}
	}
	fail(w, http.StatusNotFound, "Not Found")
}

func (s *Server) listChecks(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	repo := s.of(w, r)
	if repo == nil {
		return
	}
	all := []any{}
	for _, c := range repo.checks {
		if name := r.URL.Query().Get("check_name"); c.Head == mux.Vars(r)["ref"] && (name == "" || name == c.Name) {
			all = append(all, s.checkObject(repo, c))
		}
	}
	answer(w, http.StatusOK, map[string]any{"total_count": len(all), "check_runs": page(w, r, all)})
}

func (s *Server) statusObject(repo *repository, c CommitStatus) map[string]any {
	s.nextID++
	return map[string]any{
		"url": fmt.Sprintf("%s/repos/%s/%s/statuses/%s", s.URL, repo.owner, repo.name, c.SHA), "avatar_url": nil, "id": s.nextID, "node_id": "S", "state": c.State,
		"description": c.Description, "target_url": nil, "context": c.Context, "created_at": past, "updated_at": past, "creator": user(s.URL, Robot, s.account(Robot)),
	}
}

func (s *Server) listStatuses(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	repo := s.of(w, r)
	if repo == nil {
		return
	}
	all := []any{}
	for _, c := range slices.Backward(repo.statuses) {
		if c.SHA == mux.Vars(r)["ref"] {
			all = append(all, s.statusObject(repo, c))
		}
	}
	answer(w, http.StatusOK, page(w, r, all))
}

func (s *Server) createStatus(w http.ResponseWriter, r *http.Request) {
	var in CommitStatus
	if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
		fail(w, http.StatusBadRequest, "Problems parsing JSON")
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	repo := s.of(w, r)
	if repo == nil {
		return
	}
	if n := len([]rune(in.Description)); n > 140 {
		s.t.Errorf("a commit status has a description of %d characters", n)
	}
	in.SHA = mux.Vars(r)["sha"]
	repo.statuses = append(repo.statuses, in)
	answer(w, http.StatusCreated, s.statusObject(repo, in))
}

func (s *Server) deploymentObject(repo *repository, d *Deployment) map[string]any {
	at := fmt.Sprintf("%s/repos/%s/%s/deployments/%d", s.URL, repo.owner, repo.name, d.ID)
	return map[string]any{
		"id": d.ID, "node_id": "D", "sha": d.SHA, "ref": d.SHA, "task": "sluice", "environment": d.Environment, "creator": user(s.URL, Robot, s.account(Robot)),
		"payload": json.RawMessage(d.Payload), "description": nil, "statuses_url": at + "/statuses", "repository_url": at, "url": at, "created_at": past, "updated_at": past,
	}
}

func (s *Server) listDeployments(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	repo := s.of(w, r)
	if repo == nil {
		return
	}
	q, all := r.URL.Query(), []any{}
	for _, d := range slices.Backward(repo.deployments) {
		if (q.Get("sha") == "" || q.Get("sha") == d.SHA) && (q.Get("environment") == "" || q.Get("environment") == d.Environment) {
			all = append(all, s.deploymentObject(repo, d))
		}
	}
	answer(w, http.StatusOK, page(w, r, all))
}

func (s *Server) createDeployment(w http.ResponseWriter, r *http.Request) {
	var in struct {
		Ref, Environment string
		AutoMerge        *bool     `json:"auto_merge"`
		Contexts         *[]string `json:"required_contexts"`
		Payload          json.RawMessage
	}
	if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
		fail(w, http.StatusBadRequest, "Problems parsing JSON")
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	repo := s.of(w, r)
	if repo == nil {
		return
	}
	if in.AutoMerge == nil || *in.AutoMerge || in.Contexts == nil || len(*in.Contexts) > 0 {
		s.t.Error("a deployment would merge the base branch into the ref, or wait for checks")
	}
	s.nextID++
	d := &Deployment{ID: s.nextID, SHA: in.Ref, Environment: in.Environment, Payload: string(in.Payload)}
	repo.deployments = append(repo.deployments, d)
	answer(w, http.StatusCreated, s.deploymentObject(repo, d))
}

func (s *Server) deployment(w http.ResponseWriter, r *http.Request) (*repository, *Deployment) {
	repo := s.of(w, r)
	if repo == nil {
		return nil, nil
	}
	for _, d := range repo.deployments {
		if strconv.FormatInt(d.ID, 10) == mux.Vars(r)["id"] {
			return repo, d
		}
	}
	fail(w, http.StatusNotFound, "Not Found")
	return nil, nil
}

func (s *Server) deploymentStatusObject(repo *repository, d *Deployment, i int) map[string]any {
	at := fmt.Sprintf("%s/repos/%s/%s/deployments/%d", s.URL, repo.owner, repo.name, d.ID)
	return map[string]any{
		"id": int64(i) + 1, "node_id": "DS", "state": d.States[i], "creator": user(s.URL, Robot, s.account(Robot)), "description": d.descriptions[i],
		"deployment_url": at, "target_url": "", "repository_url": at, "url": at, "created_at": past, "updated_at": past,
	}
}

func (s *Server) listDeploymentStatuses(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	repo, d := s.deployment(w, r)
	if d == nil {
		return
	}
	all := []any{}
	for i := range slices.Backward(d.States) {
		all = append(all, s.deploymentStatusObject(repo, d, i))
	}
	answer(w, http.StatusOK, page(w, r, all))
}

func (s *Server) createDeploymentStatus(w http.ResponseWriter, r *http.Request) {
	var in struct{ State, Description string }
	if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
		fail(w, http.StatusBadRequest, "Problems parsing JSON")
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	repo, d := s.deployment(w, r)
	if d == nil {
		return
	}
	if n := len([]rune(in.Description)); n > 140 {
		s.t.Errorf("a deployment status has a description of %d characters", n)
	}
	d.States, d.descriptions = append(d.States, in.State), append(d.descriptions, in.Description)
	answer(w, http.StatusCreated, s.deploymentStatusObject(repo, d, len(d.States)-1))
}
