// Package oidc checks the OpenID Connect tokens that GitHub gives to the jobs of
// workflows: who issued them, for whom, when, and what they say of the job. Whether a token was
// used before, and what its job may do, is for the caller.
//
// Sources: RFC 7519 (claims), OpenID Connect Core 1.0 section 3.1.3.7 (checks) and 10.1.1 (rotation of
// keys), GitHub's "OpenID Connect reference" (which claims there are). The claim sub is not
// looked at: its form differs between repositories and can be customised.
//
// The package links an OpenID Connect library and stands apart so that what only needs keys does not.
package oidc

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"golang.org/x/sync/singleflight"

	"github.com/sluice-dev/sluice/pkg/access"
	"github.com/sluice-dev/sluice/rollout"
)

// DefaultIssuer is github.com's; GitHub Enterprise Server has https://HOST/_services/token.
const DefaultIssuer = "https://token.actions.githubusercontent.com"

// Defaults and bounds.
const (
	DefaultMaxAge = 10 * time.Minute
	DefaultSkew   = time.Minute
	// maxToken bounds a token, in bytes; GitHub's have about 2 KB.
	maxToken = 16 << 10
	// keepKeys is how long keys that the issuer published are trusted before they are asked for again.
	keepKeys = time.Hour
	// askTimeout is how long the issuer may take.
	askTimeout = 5 * time.Second
)

// algorithm that tokens are signed with: GitHub's only one. Neither "none" nor a symmetric one, which
// would make a secret of the published key, is ever taken.
const algorithm = oidc.RS256

// Config of a Verifier.
type Config struct {
	// Issuer of the tokens; DefaultIssuer unless set. It must be https, but on loopback.
	Issuer string
	// Audience that tokens must be made for, and for nobody else. Required: the issuer's default
	// audience is the same for every service.
	Audience string
	// MaxAge since a token was issued, DefaultMaxAge unless set. GitHub's are valid for hours.
	MaxAge time.Duration
	// Skew is how far the issuer's clock may be ahead, DefaultSkew unless set.
	Skew time.Duration
	// RefetchAfter is how long at least the issuer's keys are not asked for again, so that tokens with made-up
	// key ids cost it nothing; 10 s unless set.
	RefetchAfter time.Duration
	// Client reaches the issuer.
	Client *http.Client
	// Now is time.Now unless set.
	Now func() time.Time
}

// Identity is what a token says of the job that has it.
type Identity struct {
	// Repository is OWNER/NAME, which can change hands; the ids cannot.
	Repository        string `json:"repository"`
	RepositoryID      int64  `json:"repository_id,string"`
	RepositoryOwnerID int64  `json:"repository_owner_id,string"`
	// Event that started the workflow: push, pull_request, …
	Event string `json:"event_name"`
	// Environment of the job, empty without one.
	Environment string `json:"environment,omitempty"`
	// Ref such as refs/heads/main or refs/pull/41/merge.
	Ref string `json:"ref,omitempty"`
	// SHA is the commit of the workflow's run; on pull requests that of the trial merge.
	SHA        string `json:"sha"`
	RunID      int64  `json:"run_id,string"`
	RunAttempt int    `json:"run_attempt,string"`
	Actor      string `json:"actor"`
	// JobWorkflowRef is OWNER/NAME/.github/workflows/FILE@REF of the file that has the job.
	JobWorkflowRef string `json:"job_workflow_ref,omitempty"`
}

// Token that was found good.
type Token struct {
	Identity
	// ID is unique among the issuer's tokens (jti).
	ID       string
	Issuer   string
	IssuedAt time.Time
	Expiry   time.Time
}

// Verifier checks tokens of one issuer. Safe for concurrent use.
type Verifier struct {
	c     Config
	group singleflight.Group

	mu    sync.Mutex
	keys  *oidc.RemoteKeySet
	until time.Time
}

// New asks the issuer nothing yet: one that cannot be reached keeps no server from starting.
func New(c Config) (*Verifier, error) {
	if c.Issuer == "" {
		c.Issuer = DefaultIssuer
	}
	if err := access.Secure(c.Issuer); err != nil {
		return nil, &rollout.Error{Reason: rollout.ReasonInvalid, Field: "issuer", Message: fmt.Sprintf("%q is not an issuer: %v", c.Issuer, err), Hint: "give it as https://HOST, as its tokens say (iss)"}
	}
	if strings.TrimSpace(c.Audience) == "" {
		return nil, &rollout.Error{Reason: rollout.ReasonInvalid, Field: "audience", Message: "no audience is given, so that a token made for any service would do", Hint: "give this server's own address, such as https://sluice.example"}
	}
	if c.MaxAge == 0 {
		c.MaxAge = DefaultMaxAge
	}
	if c.Skew == 0 {
		c.Skew = DefaultSkew
	}
	if c.RefetchAfter == 0 {
		c.RefetchAfter = 10 * time.Second
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	return &Verifier{c: c}, nil
}

// Audience that tokens must be made for.
func (v *Verifier) Audience() string { return v.c.Audience }

func refuse(reason rollout.Reason, hint, format string, args ...any) *rollout.Error {
	return &rollout.Error{Reason: reason, Field: "token", Message: fmt.Sprintf(format, args...), Hint: hint}
}

// Verify a token as it stands in an Authorization header. Errors are *rollout.Error: token_invalid, token_stale,
// or unavailable if the issuer does not give its keys. None quotes the token.
func (v *Verifier) Verify(ctx context.Context, raw string) (Token, error) {
	if raw == "" || len(raw) > maxToken {
		return Token{}, refuse(rollout.ReasonTokenInvalid, "send GitHub's OIDC token as `Authorization: Bearer TOKEN`", "there is no token, or it has more than %d bytes", maxToken)
	}
	seen := &heard{verifier: v}
	// The parts that depend on the clock are checked below, against the same one.
	checked, err := oidc.NewVerifier(v.c.Issuer, seen, &oidc.Config{
		ClientID: v.c.Audience, SupportedSigningAlgs: []string{algorithm}, Now: v.c.Now,
	}).Verify(ctx, raw)
	if expired := new(oidc.TokenExpiredError); errors.As(err, &expired) {
		return Token{}, refuse(rollout.ReasonTokenStale, "ask for a new token", "the token has expired")
	}
	switch {
	case seen.silent != nil:
		return Token{}, fmt.Errorf("ask %s for its keys: %w", v.c.Issuer, errors.Join(refuse(rollout.ReasonUnavailable, "try again in a moment", "the issuer of tokens does not give its keys, so that none can be checked"), seen.silent))
	case err != nil:
		return Token{}, refuse(rollout.ReasonTokenInvalid, fmt.Sprintf("ask for one with the audience %s, from %s", v.c.Audience, v.c.Issuer), "the token is not good: %.300s", strings.TrimPrefix(err.Error(), "oidc: "))
	case len(checked.Audience) != 1:
		return Token{}, refuse(rollout.ReasonTokenInvalid, "ask for one with the audience "+v.c.Audience, "the token is for others too")
	}
	var extra struct {
		ID string `json:"jti"`
	}
	t := Token{Issuer: checked.Issuer, IssuedAt: checked.IssuedAt, Expiry: checked.Expiry}
	if err := errors.Join(checked.Claims(&t.Identity), checked.Claims(&extra)); err != nil {
		return Token{}, refuse(rollout.ReasonTokenInvalid, "use a token of GitHub Actions", "the token's claims are not those of GitHub Actions")
	}
	t.ID = extra.ID
	if missing := t.missing(); len(missing) > 0 {
		return Token{}, refuse(rollout.ReasonTokenInvalid, "use a token of GitHub Actions", "the token lacks %s", strings.Join(missing, ", "))
	}
	now := v.c.Now()
	switch age := now.Sub(t.IssuedAt); {
	case age > v.c.MaxAge:
		return Token{}, refuse(rollout.ReasonTokenStale, "ask for a new token right before it is used", "the token was issued %s ago, and at most %s are allowed", age.Round(time.Second), v.c.MaxAge)
	case age < -v.c.Skew:
		return Token{}, refuse(rollout.ReasonTokenStale, "set the server's clock", "the token was issued %s in the future", (-age).Round(time.Second))
	}
	return t, nil
}

// missing claims that everything rests on.
func (t *Token) missing() (out []string) {
	for _, c := range []struct {
		name string
		is   bool
	}{
		{"jti", t.ID != ""}, {"iat", t.IssuedAt.Unix() > 0}, {"repository", t.Repository != ""}, {"repository_id", t.RepositoryID > 0},
		{"repository_owner_id", t.RepositoryOwnerID > 0}, {"event_name", t.Event != ""}, {"sha", t.SHA != ""}, {"run_id", t.RunID > 0}, {"actor", t.Actor != ""},
	} {
		if !c.is {
			out = append(out, c.name)
		}
	}
	return out
}

// heard checks one token's signature and keeps apart, which go-oidc's errors do not, a wrong one from an issuer that is silent.
type heard struct {
	verifier *Verifier
	silent   error
}

// VerifySignature implements oidc.KeySet.
func (h *heard) VerifySignature(ctx context.Context, jwt string) ([]byte, error) {
	keys, err := h.verifier.keySet(ctx)
	if err != nil {
		h.silent = err
		return nil, err
	}
	payload, err := keys.VerifySignature(ctx, jwt)
	if unreached := new(url.Error); errors.As(err, &unreached) || ctx.Err() != nil && err != nil {
		h.silent = err
	}
	return payload, err
}

// keySet is what the issuer's discovery document leads to, found out again after keepKeys so that a key that
// was withdrawn is not trusted for ever.
func (v *Verifier) keySet(ctx context.Context) (*oidc.RemoteKeySet, error) {
	v.mu.Lock()
	keys, until := v.keys, v.until
	v.mu.Unlock()
	if keys != nil && v.c.Now().Before(until) {
		return keys, nil
	}
	found := v.group.DoChan("", func() (any, error) {
		client := v.client()
		ctx, cancel := context.WithTimeout(oidc.ClientContext(context.Background(), client), askTimeout)
		defer cancel()
		provider, err := oidc.NewProvider(ctx, v.c.Issuer)
		if err != nil {
			return nil, err
		}
		var document struct {
			Keys string `json:"jwks_uri"`
		}
		if err := provider.Claims(&document); err != nil {
			return nil, err
		}
		if err := access.Secure(document.Keys); err != nil {
			return nil, fmt.Errorf("jwks_uri: %w", err)
		}
		keys := oidc.NewRemoteKeySet(oidc.ClientContext(context.Background(), client), document.Keys)
		v.mu.Lock()
		defer v.mu.Unlock()
		v.keys, v.until = keys, v.c.Now().Add(keepKeys)
		return keys, nil
	})
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case r := <-found:
		if r.Err != nil {
			return nil, r.Err
		}
		return r.Val.(*oidc.RemoteKeySet), nil
	}
}

func (v *Verifier) client() *http.Client {
	var c http.Client
	if v.c.Client != nil {
		c = *v.c.Client
	}
	if c.Timeout == 0 {
		c.Timeout = askTimeout
	}
	base := c.Transport
	if base == nil {
		base = http.DefaultTransport
	}
	c.Transport = &sparing{base: base, every: v.c.RefetchAfter, now: v.c.Now, kept: map[string]answer{}}
	c.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return &c
}
