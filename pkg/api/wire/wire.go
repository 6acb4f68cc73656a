// Package wire has what server and client of the API say to each other: paths, headers and JSON bodies.
// It links neither of them. The OpenAPI document describes the same; a test holds both together.
package wire

import (
	"fmt"
	"net/url"
	"strings"

	"github.com/sluice-dev/sluice/rollout"
)

// Root of the API's paths, where Document and TokenPath stand.
const (
	Root      = "/apis/sluice/v1"
	Document  = Root + "/openapi.json"
	TokenPath = Root + "/token"
)

// IdempotencyKey is the header with rollout.Request.ID: a change that is sent again under the same key is
// carried out once. Beside it there are ETag, If-Match and If-None-Match (RFC 9110 section 13.1).
const IdempotencyKey = "Idempotency-Key"

// Bounds that client and server share.
const (
	// MaxBody of a request, in bytes.
	MaxBody = 1 << 20
	// MaxMessage of a Note, in bytes.
	MaxMessage = 4 << 10
	// MaxWaitSeconds that a read may wait for a change (the query parameter wait).
	MaxWaitSeconds = 10
)

// Endpoints is the path of a namespace's endpoints.
func Endpoints(namespace string) string {
	return Root + "/namespaces/" + url.PathEscape(namespace) + "/endpoints"
}

// Endpoint is the path of one.
func Endpoint(key rollout.Key) string {
	return Endpoints(key.Namespace) + "/" + url.PathEscape(key.Name)
}

// Versions is the path of an endpoint's versions.
func Versions(key rollout.Key) string { return Endpoint(key) + "/versions" }

// Version is the path of one.
func Version(key rollout.Key, version string) string {
	return Versions(key) + "/" + url.PathEscape(version)
}

// Tag of an endpoint, as ETag has it. Changes of the status give it another one; yet If-Match compares what
// comes before the last dot, the endpoint's UID and generation, since a status that is written each second must not refuse
// the changes of those who are far away.
func Tag(m rollout.Metadata) string {
	return fmt.Sprintf(`"%s.%d.%s"`, m.UID, m.Generation, m.ResourceVersion)
}

// SameSpec says whether two tags are of the same spec of the same endpoint.
func SameSpec(a, b string) bool {
	i, j := strings.LastIndexByte(a, '.'), strings.LastIndexByte(b, '.')
	return i > 0 && j > 0 && a[:i] == b[:j]
}

// TokenRequest is the body of a request for a session; it may be empty.
type TokenRequest struct {
	// TTLSeconds that the session is to last; the longest one unless set.
	TTLSeconds int `json:"ttlSeconds,omitempty"`
}

// Token of a session, in the form of RFC 6749 section 5.1.
type Token struct {
	AccessToken string `json:"access_token"`
	TokenType   string `json:"token_type"`
	// ExpiresIn so many seconds.
	ExpiresIn int `json:"expires_in"`
}

// Note says why a change is made.
type Note struct {
	// ReasonCode is requested unless set; else why a deploy gave its version up.
	ReasonCode rollout.Reason `json:"reasonCode,omitempty"`
	// Message explains it, in at most MaxMessage bytes.
	Message string `json:"message,omitempty"`
	// Force skips the check that ready replicas can carry a share.
	Force bool `json:"force,omitempty"`
}

// NewVersion is a version as it joins: without a part in traffic, which the endpoint gives it.
type NewVersion struct {
	Name             string            `json:"name"`
	Image            string            `json:"image"`
	Source           rollout.Source    `json:"source,omitzero"`
	Description      string            `json:"description,omitempty"`
	Tags             map[string]string `json:"tags,omitempty"`
	Properties       map[string]string `json:"properties,omitempty"`
	rollout.Settings `json:",inline"`
}

// Deploy is rollout.Deploy.
type Deploy struct {
	Version  NewVersion        `json:"version"`
	Strategy *rollout.Strategy `json:"strategy,omitempty"`
	// Repositories to bind a new endpoint to: none, or the token's own.
	Repositories []int64 `json:"repositories,omitempty"`
	Note         `json:",inline"`
}

// Untyped is how Update's type says that a version has none.
const Untyped = "none"

// Update is rollout.Update.
type Update struct {
	Percent *rollout.Percent `json:"percent,omitempty"`
	Default bool             `json:"default,omitempty"`
	// Type is control, treatment or none.
	Type     string            `json:"type,omitempty"`
	Settings *rollout.Settings `json:"settings,omitempty"`
	Note     `json:",inline"`
}

// Share is the body of a shift and of a preparation.
type Share struct {
	Percent *rollout.Percent `json:"percent"`
	Note    `json:",inline"`
}

// Mark is the body of a hold and of a lock.
type Mark struct {
	// Reason in a few words.
	Reason string `json:"reason,omitempty"`
	Note   `json:",inline"`
}

// Outcome is rollout.Outcome.
type Outcome struct {
	Changed bool   `json:"changed"`
	Applied bool   `json:"applied"`
	Message string `json:"message"`
	// Known says that the change of this idempotency key was made before.
	Known bool `json:"known,omitempty"`
}

// Result of a change.
type Result struct {
	Endpoint *rollout.Endpoint `json:"endpoint"`
	Outcome  Outcome           `json:"outcome"`
}

// List of endpoints.
type List struct {
	Items []*rollout.Endpoint `json:"items"`
}

// Error is the answer to what was refused or failed: the first rule that was broken, and the others.
type Error struct {
	rollout.Error `json:",inline"`
	More          []*rollout.Error `json:"more,omitempty"`
}
