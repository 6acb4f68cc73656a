package router

import (
	"net/http"
	"strconv"
	"time"

	"github.com/sluice-dev/sluice/rollout"
)

// failure is an answer that the router makes itself.
type failure struct {
	status     int
	reason     rollout.Reason
	message    string
	retryAfter time.Duration
	// close the client's connection after it: its body was not read.
	close bool
	allow string
}

// statusOf a refusal's reason.
func statusOf(reason rollout.Reason) int {
	switch reason {
	case rollout.ReasonUnauthorized:
		return http.StatusUnauthorized
	case rollout.ReasonUnknownEndpoint, rollout.ReasonUnknownVersion:
		return http.StatusNotFound
	case rollout.ReasonBodyTooLarge:
		return http.StatusRequestEntityTooLarge
	case rollout.ReasonBodyTooSlow:
		return http.StatusRequestTimeout
	case rollout.ReasonQueueFull, rollout.ReasonQueueTimeout, rollout.ReasonNoReadyReplicas:
		return http.StatusServiceUnavailable
	case rollout.ReasonScoringTimeout:
		return http.StatusGatewayTimeout
	case rollout.ReasonReplicaFailed, rollout.ReasonScriptError:
		return http.StatusBadGateway
	case rollout.ReasonInvalid:
		return http.StatusBadRequest
	}
	return http.StatusInternalServerError
}

func messageOf(reason rollout.Reason) string {
	switch reason {
	case rollout.ReasonUnauthorized:
		return "send the endpoint's key as Authorization: Bearer KEY"
	case rollout.ReasonUnknownEndpoint:
		return "there is no such endpoint"
	case rollout.ReasonUnknownVersion:
		return "the endpoint has no version of that name"
	case rollout.ReasonBodyTooLarge:
		return "the body is larger than 100 MB"
	case rollout.ReasonBodyTooSlow:
		return "the body came too slowly"
	case rollout.ReasonQueueFull:
		return "the version's queue is full"
	case rollout.ReasonQueueTimeout:
		return "no slot came free in time"
	case rollout.ReasonNoReadyReplicas:
		return "no replica is ready"
	case rollout.ReasonScoringTimeout:
		return "the replica did not answer in time"
	case rollout.ReasonReplicaFailed:
		return "the replica was lost before it had answered; it may have run the request"
	}
	return "the request cannot be served"
}

func fail(reason rollout.Reason) *failure {
	return &failure{status: statusOf(reason), reason: reason, message: messageOf(reason)}
}

var jsonType = []string{"application/json"}

// write the answer. Message and reason are the router's own words and need no
// quoting; the id has been through requestID.
func (f *failure) write(w http.ResponseWriter, id string) {
	h := w.Header()
	h["Content-Type"] = jsonType
	h["Cache-Control"] = []string{"no-store"}
	if f.reason == rollout.ReasonUnauthorized {
		h["Www-Authenticate"] = []string{`Bearer realm="sluice"`}
	}
	if f.retryAfter > 0 {
		h["Retry-After"] = []string{strconv.Itoa(int((f.retryAfter + time.Second - 1) / time.Second))}
	}
	if f.close {
		h["Connection"] = []string{"close"}
	}
	if f.allow != "" {
		h["Allow"] = []string{f.allow}
	}
	b := make([]byte, 0, 256)
	b = append(b, `{"error":{"code":"`...)
	b = append(b, f.reason...)
	b = append(b, `","message":"`...)
	b = append(b, f.message...)
	b = append(b, `","requestId":"`...)
	b = append(b, id...)
	b = append(b, "\"}}\n"...)
	h["Content-Length"] = []string{strconv.Itoa(len(b))}
	w.WriteHeader(f.status)
	_, _ = w.Write(b)
}
