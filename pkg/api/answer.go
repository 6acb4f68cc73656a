package api

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"

	kjson "sigs.k8s.io/json"

	"github.com/sluice-dev/sluice/pkg/api/wire"
	"github.com/sluice-dev/sluice/rollout"
)

func invalid(field, hint, format string, args ...any) *rollout.Error {
	return &rollout.Error{Reason: rollout.ReasonInvalid, Field: field, Message: fmt.Sprintf(format, args...), Hint: hint}
}

// status is an error with a code other than its reason's.
type status struct {
	code int
	err  error
}

func (s *status) Error() string { return s.err.Error() }
func (s *status) Unwrap() error { return s.err }

// codes of reasons; a refusal by any other rule is 422.
var codes = map[rollout.Reason]int{
	rollout.ReasonUnauthorized:    http.StatusUnauthorized,
	rollout.ReasonTokenInvalid:    http.StatusUnauthorized,
	rollout.ReasonTokenStale:      http.StatusUnauthorized,
	rollout.ReasonTokenReplayed:   http.StatusUnauthorized,
	rollout.ReasonDenied:          http.StatusForbidden,
	rollout.ReasonNotBound:        http.StatusForbidden,
	rollout.ReasonUnknownEndpoint: http.StatusNotFound,
	rollout.ReasonUnknownVersion:  http.StatusNotFound,
	rollout.ReasonConflict:        http.StatusConflict,
	rollout.ReasonBodyTooLarge:    http.StatusRequestEntityTooLarge,
	rollout.ReasonTooManyRequests: http.StatusTooManyRequests,
	rollout.ReasonInternal:        http.StatusInternalServerError,
	rollout.ReasonUnavailable:     http.StatusServiceUnavailable,
}

// answerTo an error. What is no refusal failed behind the API: the log has it, the client does not.
func answerTo(err error) (int, wire.Error) {
	all := rollout.AsErrors(err)
	if len(all) == 0 {
		return http.StatusServiceUnavailable, wire.Error{Error: rollout.Error{
			Reason: rollout.ReasonUnavailable, Message: "what the answer depends on does not answer", Hint: "try again; the server's log has more",
		}}
	}
	code, ok := codes[all[0].Reason]
	if !ok {
		code = http.StatusUnprocessableEntity
	}
	if s := new(status); errors.As(err, &s) {
		code = s.code
	}
	return code, wire.Error{Error: *all[0], More: all[1:]}
}

func writeError(w http.ResponseWriter, err error) {
	code, body := answerTo(err)
	switch code {
	case http.StatusUnauthorized: // RFC 6750 section 3
		challenge := `Bearer realm="sluice"`
		if body.Reason != rollout.ReasonUnauthorized {
			challenge += `, error="invalid_token"`
		}
		w.Header().Set("WWW-Authenticate", challenge)
	case http.StatusTooManyRequests, http.StatusServiceUnavailable:
		w.Header().Set("Retry-After", "1")
	}
	writeJSON(w, code, body)
}

func writeJSON(w http.ResponseWriter, code int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(body) // the client is gone: nothing to tell it
}

// readBody strictly: an unknown key, or one that is there twice, is an error. No body is an empty one.
func readBody(r *http.Request, into any) error {
	b, err := io.ReadAll(r.Body)
	if tooLarge := new(http.MaxBytesError); errors.As(err, &tooLarge) {
		return &rollout.Error{Reason: rollout.ReasonBodyTooLarge, Field: "body", Message: fmt.Sprintf("the body has more than %d bytes", tooLarge.Limit), Hint: "send less"}
	}
	if err != nil {
		return &status{http.StatusBadRequest, invalid("body", "send it again", "the body ended early")}
	}
	if len(b) == 0 {
		return nil
	}
	strict, err := kjson.UnmarshalStrict(b, into)
	if err != nil {
		return &status{http.StatusBadRequest, invalid("body", wire.Document+" says what it may be", "the body cannot be read: %v", err)}
	}
	if len(strict) > 0 {
		reason := rollout.ReasonInvalid
		if strings.Contains(strict[0].Error(), "unknown field") {
			reason = rollout.ReasonUnknownField
		}
		return &status{http.StatusBadRequest, &rollout.Error{Reason: reason, Field: "body", Message: "the body cannot be read: " + strict[0].Error(), Hint: wire.Document + " says what it may be"}}
	}
	return nil
}

// crowd bounds requests at a time, over all and of each repository or address.
type crowd[K comparable] struct {
	mu   sync.Mutex
	of   map[K]int
	all  int
	most int
	each int
}

func newCrowd[K comparable](most, each int) *crowd[K] {
	return &crowd[K]{of: map[K]int{}, most: most, each: each}
}

func (c *crowd[K]) enter(of K) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.all >= c.most || c.of[of] >= c.each {
		return false
	}
	c.all++
	c.of[of]++
	return true
}

func (c *crowd[K]) leave(of K) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.all--
	if c.of[of]--; c.of[of] == 0 {
		delete(c.of, of)
	}
}
