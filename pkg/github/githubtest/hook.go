package githubtest

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/gorilla/mux"

	"github.com/sluice-dev/sluice/pkg/chatops"
)

// HookID of the one webhook that each repository has; its deliveries are the App's.
const HookID = 1

// Real ids of deliveries are beyond what a float64 holds exactly.
const firstDelivery = 170_000_000_000_000_001

// deliveryTimeout is how long GitHub waits for an answer.
const deliveryTimeout = 10 * time.Second

// Attempt to deliver an event.
type Attempt struct {
	ID            int64
	GUID          string
	At            time.Time
	Redelivery    bool
	Code          int // of the answer; 0 without one
	Event, Action string
	Body          []byte

	installation, repository int64
}

// hook is where deliveries go, and what became of them.
type hook struct {
	ctx      context.Context
	stop     context.CancelFunc
	sending  sync.WaitGroup
	url      string
	secret   string
	attempts []Attempt // oldest first
	guids    int
}

func (h *hook) end() {
	h.stop()
	h.sending.Wait()
}

// SetHook says where deliveries go from now on, and what they are signed with. Without a url nobody is there.
func (s *Server) SetHook(url, secret string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hook.url, s.hook.secret = url, secret
}

// Deliver an event as GitHub does: once, whatever comes of it.
func (s *Server) Deliver(event string, body []byte) Attempt {
	return s.attempt(s.event(event, body))
}

// Miss an event: GitHub had that answer (0: none) and the service never saw it; edit changes the record.
func (s *Server) Miss(code int, event string, body []byte, edit ...func(*Attempt)) Attempt {
	a := s.event(event, body)
	a.Code = code
	for _, f := range edit {
		f(&a)
	}
	return s.record(a)
}

// Redeliver an event as somebody does by hand at GitHub: the same GUID, another id.
func (s *Server) Redeliver(a Attempt) Attempt {
	a.Redelivery, a.At = true, time.Now()
	return s.attempt(a)
}

// Attempts so far, oldest first.
func (s *Server) Attempts() []Attempt {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.hook.attempts)
}

// Echo makes the webhook tell of comments that come by the API from now on, too, as GitHub does.
func (s *Server) Echo() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.echo = true
}

// tellOf what a request did to a comment.
func (s *Server) tellOf(r *http.Request, action string, repo *repository, number int, c Comment, edit ...func(event map[string]any)) {
	if !s.echo {
		return
	}
	at := chatops.Repository{ID: repo.id, Owner: repo.owner, Name: repo.name}
	if isApp(r) {
		at.Installation = Installation
	}
	body := CommentEvent(chatops.Comment{ID: c.ID, Repository: at, PullRequest: number, Author: c.Author, AuthorID: s.account(c.Author), Body: c.Body, CreatedAt: time.Now()},
		append(edit, func(e map[string]any) {
			e["action"], e["sender"] = action, user(s.URL, s.writer(r), s.account(s.writer(r)))
		})...)
	s.hook.sending.Go(func() { s.Deliver("issue_comment", body) })
}

func (s *Server) event(event string, body []byte) Attempt {
	var e struct {
		Action                   string
		Installation, Repository struct{ ID int64 }
	}
	if err := json.Unmarshal(body, &e); err != nil {
		s.t.Errorf("the event %s to be delivered is none: %v", event, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hook.guids++
	return Attempt{
		GUID: fmt.Sprintf("%08x-0b5e-11ef-8d7c-0123456789ab", s.hook.guids), At: time.Now(), Event: event, Action: e.Action, Body: body,
		installation: e.Installation.ID, repository: e.Repository.ID,
	}
}

func (s *Server) record(a Attempt) Attempt {
	s.mu.Lock()
	defer s.mu.Unlock()
	a.ID = firstDelivery + 2*int64(len(s.hook.attempts))
	s.hook.attempts = append(s.hook.attempts, a)
	return a
}

// attempt sends it and records the answer.
func (s *Server) attempt(a Attempt) Attempt {
	s.mu.Lock()
	url, secret := s.hook.url, s.hook.secret
	s.mu.Unlock()
	a.Code = http.StatusBadGateway // failed to connect
	if url != "" {
		ctx, cancel := context.WithTimeout(s.hook.ctx, deliveryTimeout)
		defer cancel()
		resp, err := http.DefaultClient.Do(Delivery(url, secret, a.Event, a.GUID, a.Body).WithContext(ctx))
		if err == nil {
			_, _ = io.Copy(io.Discard, resp.Body)
			_ = resp.Body.Close()
			a.Code = resp.StatusCode
		}
	}
	return s.record(a)
}

func (s *Server) hooks(r *mux.Router) {
	for _, at := range []string{"/app/hook/deliveries", fmt.Sprintf("/repos/{owner}/{repo}/hooks/%d/deliveries", HookID)} {
		r.HandleFunc(at, s.listDeliveries).Methods(http.MethodGet)
		r.HandleFunc(at+"/{id}", s.getDelivery).Methods(http.MethodGet)
		r.HandleFunc(at+"/{id}/attempts", s.redeliver).Methods(http.MethodPost)
	}
}

func (a *Attempt) object() map[string]any {
	null := func(v int64) any {
		if v == 0 {
			return nil
		}
		return v
	}
	out := map[string]any{
		"id": a.ID, "guid": a.GUID, "delivered_at": a.At.UTC().Format("2006-01-02T15:04:05.000Z"), "redelivery": a.Redelivery, "duration": 0.27,
		"status": cmp.Or(http.StatusText(a.Code), "timed out"), "status_code": a.Code, "event": a.Event, "action": nil,
		"installation_id": null(a.installation), "repository_id": null(a.repository), "throttled_at": nil,
	}
	if a.Action != "" {
		out["action"] = a.Action
	}
	return out
}

// listDeliveries gives them newest first, in pages that a cursor leads through.
func (s *Server) listDeliveries(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	size, err := strconv.Atoi(q.Get("per_page"))
	if err != nil || size <= 0 || size > 100 {
		size = 30
	}
	before := int64(1<<63 - 1)
	if c := q.Get("cursor"); c != "" {
		if before, err = strconv.ParseInt(strings.TrimPrefix(c, "v1_"), 10, 64); err != nil {
			fail(w, http.StatusUnprocessableEntity, "Invalid cursor")
			return
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	all := []any{}
	for _, a := range slices.Backward(s.hook.attempts) {
		if a.ID >= before {
			continue
		}
		if len(all) == size {
			q.Set("cursor", fmt.Sprintf("v1_%d", before))
			w.Header().Set("Link", fmt.Sprintf("<http://%s%s?%s>; rel=\"next\"", r.Host, r.URL.Path, q.Encode()))
			break
		}
		all = append(all, a.object())
		before = a.ID
	}
	answer(w, http.StatusOK, all)
}

// find the attempt that a path names; false after answering 404.
func (s *Server) find(w http.ResponseWriter, r *http.Request) (Attempt, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, a := range s.hook.attempts {
		if strconv.FormatInt(a.ID, 10) == mux.Vars(r)["id"] {
			return a, true
		}
	}
	w.Header().Set(offContract, "the description has no 404 here")
	fail(w, http.StatusNotFound, "Not Found")
	return Attempt{}, false
}

func (s *Server) getDelivery(w http.ResponseWriter, r *http.Request) {
	a, ok := s.find(w, r)
	if !ok {
		return
	}
	out := a.object()
	sent := Delivery("http://sluice.example", "", a.Event, a.GUID, a.Body)
	headers := map[string]string{}
	for name := range sent.Header {
		headers[name] = sent.Header.Get(name)
	}
	out["url"] = "http://sluice.example"
	out["request"] = map[string]any{"headers": headers, "payload": json.RawMessage(a.Body)}
	out["response"] = map[string]any{"headers": map[string]string{}, "payload": ""}
	answer(w, http.StatusOK, out)
}

// redeliver answers at once, and delivers later.
func (s *Server) redeliver(w http.ResponseWriter, r *http.Request) {
	a, ok := s.find(w, r)
	if !ok {
		return
	}
	s.hook.sending.Go(func() { s.Redeliver(a) })
	answer(w, http.StatusAccepted, map[string]any{})
}
