package githubtest

import (
	"encoding/base64"
	"net/http"
	"path"
	"strings"

	"github.com/gorilla/mux"
)

// DefaultBranch of each repository.
const DefaultBranch = "main"

// SetFile puts a file onto a branch of the repository.
func (s *Server) SetFile(repo, branch, file, content string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.repo(repo).files[branch+":"+file] = content
}

// AddTeamMember of a team of an organisation, by its slug.
func (s *Server) AddTeamMember(org, slug, login string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.teams[org+"/"+slug+"/"+login] = true
	s.account(login)
}

func (s *Server) directory(r *mux.Router) {
	r.HandleFunc("/repos/{owner}/{repo}/contents/{path:.*}", s.getContents).Methods(http.MethodGet)
	r.HandleFunc("/orgs/{org}/teams/{slug}/memberships/{login}", s.getMembership).Methods(http.MethodGet)
}

func (s *Server) getContents(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	repo := s.of(w, r)
	if repo == nil {
		return
	}
	branch := strings.TrimPrefix(r.URL.Query().Get("ref"), "refs/heads/")
	if branch == "" {
		branch = DefaultBranch
	}
	file := mux.Vars(r)["path"]
	if file == "" {
		answer(w, http.StatusOK, []any{})
		return
	}
	content, ok := repo.files[branch+":"+file]
	if !ok {
		fail(w, http.StatusNotFound, "Not Found")
		return
	}
	at := s.URL + "/repos/" + repo.owner + "/" + repo.name + "/contents/" + file
	answer(w, http.StatusOK, map[string]any{
		"type": "file", "encoding": "base64", "size": len(content), "name": path.Base(file), "path": file, "sha": strings.Repeat("d", 40),
		"content": base64.StdEncoding.EncodeToString([]byte(content)), "url": at, "git_url": at, "html_url": at, "download_url": at,
		"_links": map[string]any{"git": at, "self": at, "html": at},
	})
}

func (s *Server) getMembership(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	v := mux.Vars(r)
	if !s.teams[v["org"]+"/"+v["slug"]+"/"+v["login"]] {
		fail(w, http.StatusNotFound, "Not Found")
		return
	}
	at := s.URL + "/orgs/" + v["org"] + "/teams/" + v["slug"] + "/memberships/" + v["login"]
	answer(w, http.StatusOK, map[string]any{"url": at, "role": "member", "state": "active"})
}
