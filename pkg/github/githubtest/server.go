// Package githubtest is a GitHub for tests: a server that keeps repositories,
// pull requests, permissions, comments and reactions, fails on demand, and checks
// every request and answer against GitHub's published OpenAPI description where
// that is at hand; and the deliveries that GitHub would send.
package githubtest

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/mux"

	"github.com/sluice-dev/sluice/pkg/chatops"
)

// Token that the server accepts, besides those of the App's installations.
const Token = "token-for-tests"

// Server is a GitHub. Its methods are safe for concurrent use.
type Server struct {
	*httptest.Server
	t        testing.TB
	contract *contract

	mu       sync.Mutex
	repos    map[string]*repository // by owner/name
	accounts map[string]int64       // by login, in lower case
	faults   []*Fault
	calls    []Call
	nextID   int64
	tokens   map[string]bool // of installations
	hook     hook
	echo     bool
	teams    map[string]bool // org/slug/login
}

type repository struct {
	id          int64
	owner, name string
	public      bool
	permission  map[string]string // role by login
	pulls       map[int]*PullRequest
	comments    map[int][]Comment
	reactions   map[int64][]string
	checks      []*CheckRun
	statuses    []CommitStatus
	deployments []*Deployment
	files       map[string]string // by branch:path
}

// PullRequest of the fake; edit it with Server.EditPullRequest.
type PullRequest struct {
	Number int
	Head   string
	// HeadRepository is another repository's id for a fork; 0 means the same repository, -1 that it is gone.
	HeadRepository int64
	State          string
	Merged         bool
	// Then are the heads that it has from the second reading on, one after the other: somebody pushes all the time.
	Then []string
	// Base is the branch that it asks to be merged into; main unless set, which is the default branch.
	Base string
}

// Comment that was posted.
type Comment struct {
	ID     int64
	Body   string
	Author string
}

// Call that arrived.
type Call struct{ Method, Path string }

func (c Call) String() string { return c.Method + " " + c.Path }

// Fault makes calls fail. Method and Path, a part of it, choose which; empty is any.
type Fault struct {
	Method, Path string
	// Times it strikes; 0 is always, until ClearFaults.
	Times  int
	Status int
	Header map[string]string
	Body   string
	// After makes the call take effect before it fails, as when an answer is lost.
	After bool
	// Delay the answer.
	Delay time.Duration

	struck int
}

// SecondaryLimit is GitHub's answer to too many writes: 403 or 429, with the seconds to wait.
func SecondaryLimit(status, seconds int) Fault {
	return Fault{
		Status: status, Header: map[string]string{"Retry-After": strconv.Itoa(seconds)},
		Body: `{"message":"You have exceeded a secondary rate limit. Please wait a few minutes before you try again.","documentation_url":"https://docs.github.com/rest/overview/rate-limits-for-the-rest-api#about-secondary-rate-limits"}`,
	}
}

// New starts a server on a loopback address that ends with the test.
func New(t testing.TB) *Server {
	t.Helper()
	s := newServer(t)
	s.Start()
	t.Cleanup(s.Close)
	return s
}

func newServer(t testing.TB) *Server {
	t.Helper()
	s := &Server{
		t: t, contract: openContract(t), repos: map[string]*repository{}, accounts: map[string]int64{},
		nextID: 1000, tokens: map[string]bool{Token: true}, teams: map[string]bool{},
	}
	s.hook.ctx, s.hook.stop = context.WithCancel(context.Background())
	t.Cleanup(s.hook.end) // after Close, when nothing more is asked for
	r := mux.NewRouter()
	r.HandleFunc("/app/installations/{id}/access_tokens", s.installationToken).Methods(http.MethodPost)
	r.HandleFunc("/repos/{owner}/{repo}/collaborators/{login}/permission", s.getPermission).Methods(http.MethodGet)
	r.HandleFunc("/repos/{owner}/{repo}/pulls/{number}", s.getPullRequest).Methods(http.MethodGet)
	r.HandleFunc("/repos/{owner}/{repo}/issues/{number}/comments", s.createComment).Methods(http.MethodPost)
	s.directory(r)
	s.reports(r)
	s.hooks(r)
	r.HandleFunc("/repos/{owner}/{repo}/issues/comments/{id}/reactions", s.createReaction).Methods(http.MethodPost)
	r.NotFoundHandler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		t.Errorf("GitHub was asked for %s %s, which the fake does not know", r.Method, r.URL.Path)
		fail(w, http.StatusNotFound, "Not Found")
	})
	s.Server = httptest.NewUnstartedServer(s.gate(r))
	return s
}

// AddRepository adds a repository, or changes its id.
func (s *Server) AddRepository(id int64, owner, name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.repos[owner+"/"+name] = &repository{
		id: id, owner: owner, name: name, permission: map[string]string{}, pulls: map[int]*PullRequest{},
		comments: map[int][]Comment{}, reactions: map[int64][]string{}, files: map[string]string{},
	}
}

// SetPublic lets everybody read the repository; repositories are private else.
func (s *Server) SetPublic(repo string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.repo(repo).public = true
}

// SetPermission gives a user a role ("admin", "maintain", "write", "triage",
// "read", "none", or "custom:BASE" for a custom role), making the account if need be.
func (s *Server) SetPermission(repo, login, role string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.repo(repo).permission[login] = role
	s.account(login)
}

// AccountID of a login, made if need be.
func (s *Server) AccountID(login string) int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.account(login)
}

// SetAccount gives a login to another account.
func (s *Server) SetAccount(login string, id int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.accounts[strings.ToLower(login)] = id
}

func (s *Server) account(login string) int64 {
	key := strings.ToLower(login)
	if s.accounts[key] == 0 {
		s.nextID++
		s.accounts[key] = s.nextID
	}
	return s.accounts[key]
}

func (s *Server) repo(name string) *repository {
	r := s.repos[name]
	if r == nil {
		s.t.Fatalf("the fake GitHub has no repository %s", name)
	}
	return r
}

// AddPullRequest to the repository owner/name; open unless it says otherwise.
func (s *Server) AddPullRequest(repo string, pr PullRequest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if pr.State == "" {
		pr.State = "open"
	}
	if pr.Head == "" {
		pr.Head = strings.Repeat("a", 40)
	}
	s.repo(repo).pulls[pr.Number] = &pr
}

// EditPullRequest changes a pull request, such as its head between two calls.
func (s *Server) EditPullRequest(repo string, number int, edit func(*PullRequest)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	edit(s.repo(repo).pulls[number])
}

// Comments that were posted to a pull request, oldest first.
func (s *Server) Comments(repo string, number int) []Comment {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.repo(repo).comments[number])
}

// Reactions to a comment, sorted.
func (s *Server) Reactions(repo string, comment int64) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Sorted(slices.Values(s.repo(repo).reactions[comment]))
}

// AddFault makes calls fail from now on; the first that fits strikes.
func (s *Server) AddFault(f Fault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults = append(s.faults, &f)
}

// ClearFaults ends all faults.
func (s *Server) ClearFaults() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults = nil
}

// Calls that arrived, faulty ones too.
func (s *Server) Calls() []Call {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.calls)
}

// CountCalls of that method whose path has that part.
func (s *Server) CountCalls(method, part string) int {
	n := 0
	for _, c := range s.Calls() {
		if c.Method == method && strings.Contains(c.Path, part) {
			n++
		}
	}
	return n
}

func (s *Server) strike(r *http.Request) *Fault {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls = append(s.calls, Call{r.Method, r.URL.Path})
	for _, f := range s.faults {
		if (f.Method == "" || f.Method == r.Method) && strings.Contains(r.URL.Path, f.Path) && (f.Times == 0 || f.struck < f.Times) {
			f.struck++
			out := *f
			return &out
		}
	}
	return nil
}

// gate checks the contract, authenticates and lets faults strike.
func (s *Server) gate(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return // the client went away
		}
		if int64(len(body)) != max(r.ContentLength, 0) {
			s.t.Errorf("%s %s: %d of %d bytes of the body arrived", r.Method, r.URL.Path, len(body), r.ContentLength)
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
		f := s.strike(r)
		if f != nil && f.Delay > 0 {
			select {
			case <-time.After(f.Delay):
			case <-r.Context().Done():
				return
			}
		}
		s.contract.request(s.t, r, body)
		if f != nil && f.Status != 0 && !f.After {
			answerFault(w, f)
			return
		}
		if !strings.HasSuffix(r.URL.Path, "/access_tokens") && !s.authenticated(r) {
			fail(w, http.StatusUnauthorized, "Bad credentials")
			return
		}
		rec := httptest.NewRecorder()
		next.ServeHTTP(rec, r)
		s.contract.response(s.t, r, rec)
		if f != nil && f.Status != 0 {
			answerFault(w, f)
			return
		}
		maps.Copy(w.Header(), rec.Header())
		w.WriteHeader(rec.Code)
		_, _ = w.Write(rec.Body.Bytes()) // the client went away
	})
}

func answerFault(w http.ResponseWriter, f *Fault) {
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	for k, v := range f.Header {
		w.Header().Set(k, v)
	}
	w.WriteHeader(f.Status)
	body := f.Body
	if body == "" {
		body = `{"message":"made to fail","documentation_url":"https://docs.github.com/rest"}`
	}
	_, _ = io.WriteString(w, body) // the client went away
}

func (s *Server) authenticated(r *http.Request) bool {
	_, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	s.mu.Lock()
	defer s.mu.Unlock()
	if strings.HasPrefix(r.URL.Path, "/app") { // the App itself, not one of its installations
		return isJWT(token)
	}
	return s.tokens[token]
}

func fail(w http.ResponseWriter, code int, message string) {
	answer(w, code, map[string]any{"message": message, "documentation_url": "https://docs.github.com/rest"})
}

func answer(w http.ResponseWriter, code int, v any) {
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(v) // the client went away
}

// of finds the repository that a path names; nil after answering 404.
func (s *Server) of(w http.ResponseWriter, r *http.Request) *repository {
	v := mux.Vars(r)
	repo := s.repos[v["owner"]+"/"+v["repo"]]
	if repo == nil {
		fail(w, http.StatusNotFound, "Not Found")
	}
	return repo
}

func (s *Server) installationToken(w http.ResponseWriter, r *http.Request) {
	// A JWT has three parts; that its signature is right is ghinstallation's business.
	if strings.Count(r.Header.Get("Authorization"), ".") != 2 {
		fail(w, http.StatusUnauthorized, "A JSON web token could not be decoded")
		return
	}
	s.mu.Lock()
	s.nextID++
	token := fmt.Sprintf("ghs_%s_%d", mux.Vars(r)["id"], s.nextID)
	s.tokens[token] = true
	s.mu.Unlock()
	answer(w, http.StatusCreated, map[string]any{"token": token, "expires_at": time.Now().Add(time.Hour).UTC().Format(time.RFC3339)})
}

func (s *Server) getPermission(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	repo := s.of(w, r)
	if repo == nil {
		return
	}
	login := mux.Vars(r)["login"]
	if s.accounts[strings.ToLower(login)] == 0 {
		fail(w, http.StatusNotFound, "Not Found")
		return
	}
	role, custom := strings.CutPrefix(repo.permission[login], "custom:")
	built := role
	base := map[string]string{"": "none", "maintain": "write", "triage": "read"}[role]
	if base == "" {
		base = role
	}
	if custom {
		role = "deployers"
	}
	if role == "" {
		role = base
	}
	u := user(s.URL, login, s.account(login))
	u["role_name"] = role
	u["permissions"] = map[string]bool{
		"admin": base == "admin", "maintain": base == "admin" || built == "maintain", "push": base == "admin" || base == "write",
		"triage": base != "none" && (base != "read" || built == "triage"), "pull": base != "none",
	}
	answer(w, http.StatusOK, map[string]any{"permission": base, "role_name": role, "user": u})
}

func (s *Server) getPullRequest(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	repo := s.of(w, r)
	if repo == nil {
		return
	}
	number, _ := strconv.Atoi(mux.Vars(r)["number"])
	pr := repo.pulls[number]
	if pr == nil {
		fail(w, http.StatusNotFound, "Not Found")
		return
	}
	if pr.HeadRepository < 0 {
		w.Header().Set(offContract, "the description has no deleted forks")
	}
	answer(w, http.StatusOK, s.pullRequest(repo, pr))
	if len(pr.Then) > 0 {
		pr.Head, pr.Then = pr.Then[0], pr.Then[1:]
	}
}

// maxComment is how many characters GitHub takes.
const maxComment = 65536

func (s *Server) createComment(w http.ResponseWriter, r *http.Request) {
	var in struct{ Body string }
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
	number, _ := strconv.Atoi(mux.Vars(r)["number"])
	if repo.pulls[number] == nil {
		fail(w, http.StatusNotFound, "Not Found")
		return
	}
	if in.Body == "" || len([]rune(in.Body)) > maxComment {
		s.t.Errorf("a comment of %d characters was posted", len([]rune(in.Body)))
		fail(w, http.StatusUnprocessableEntity, "Validation Failed")
		return
	}
	s.nextID++
	c := Comment{ID: s.nextID, Body: in.Body, Author: s.writer(r)}
	repo.comments[number] = append(repo.comments[number], c)
	s.tellOf(r, "created", repo, number, c)
	answer(w, http.StatusCreated, s.commentObject(repo, number, c))
}

func (s *Server) createReaction(w http.ResponseWriter, r *http.Request) {
	var in struct{ Content string }
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
	id, _ := strconv.ParseInt(mux.Vars(r)["id"], 10, 64)
	code := http.StatusCreated
	if slices.Contains(repo.reactions[id], in.Content) {
		code = http.StatusOK
	} else {
		repo.reactions[id] = append(repo.reactions[id], in.Content)
	}
	s.nextID++
	answer(w, code, map[string]any{
		"id": s.nextID, "node_id": "REA_" + strconv.FormatInt(s.nextID, 10), "content": in.Content, "user": user(s.URL, "sluice[bot]", 1),
		"created_at": time.Now().UTC().Format(time.RFC3339),
	})
}

// Comment is a comment on a pull request of the fake, written now unless created says otherwise.
func (s *Server) Comment(id int64, repo string, number int, author, body string, created time.Time) chatops.Comment {
	if created.IsZero() {
		created = time.Now()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.repo(repo)
	return chatops.Comment{
		ID: id, Repository: chatops.Repository{ID: r.id, Owner: r.owner, Name: r.name}, PullRequest: number,
		Author: author, AuthorID: s.account(author), Body: body, CreatedAt: created.UTC().Truncate(time.Second),
	}
}
