package api

import (
	"crypto/rand"
	"errors"
	"fmt"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/sluice-dev/sluice/pkg/access/oidc"
	"github.com/sluice-dev/sluice/rollout"
)

// Bounds of sessions.
const (
	// MaxSession is the longest that one lasts.
	MaxSession = time.Hour
	minSession = time.Minute
	// minKey of the key that sessions are signed with, in bytes: as long as the hash (RFC 7518 section 3.2).
	minKey = 32
	// sessionIssuer keeps sessions apart from anything else that may be signed with the key.
	sessionIssuer = "sluice-api-session"
)

// sessions signs what it was told of a job, and believes its own signature (HMAC-SHA-256) later. Nothing is
// stored, so that any server with the key understands them; without a given key, one made up
// lasts as long as the process.
type sessions struct {
	key    []byte
	parser *jwt.Parser
	now    func() time.Time
}

type sessionClaims struct {
	jwt.RegisteredClaims
	oidc.Identity
}

func newSessions(key []byte, audience string, now func() time.Time) (*sessions, error) {
	switch {
	case len(key) == 0:
		key = make([]byte, minKey)
		rand.Read(key) // never fails: crypto/rand crashes the program instead
	case len(key) < minKey:
		return nil, &rollout.Error{Reason: rollout.ReasonInvalid, Field: "api-session-key", Message: fmt.Sprintf("the key of sessions has %d bytes", len(key)), Hint: fmt.Sprintf("give %d random bytes or more, such as of `openssl rand -hex 32`", minKey)}
	}
	return &sessions{key: key, now: now, parser: jwt.NewParser(
		jwt.WithValidMethods([]string{jwt.SigningMethodHS256.Alg()}), jwt.WithIssuer(sessionIssuer), jwt.WithAudience(audience),
		jwt.WithExpirationRequired(), jwt.WithTimeFunc(now),
	)}, nil
}

func (s *sessions) issue(t oidc.Token, audience string, ttl time.Duration) (string, error) {
	now := s.now()
	return jwt.NewWithClaims(jwt.SigningMethodHS256, sessionClaims{
		RegisteredClaims: jwt.RegisteredClaims{
			Issuer: sessionIssuer, Audience: jwt.ClaimStrings{audience}, IssuedAt: jwt.NewNumericDate(now), ExpiresAt: jwt.NewNumericDate(now.Add(ttl)),
		},
		Identity: t.Identity,
	}).SignedString(s.key)
}

// open a session's token. The error is a *rollout.Error that does not quote it.
func (s *sessions) open(raw string) (*oidc.Identity, error) {
	var c sessionClaims
	_, err := s.parser.ParseWithClaims(raw, &c, func(*jwt.Token) (any, error) { return s.key, nil })
	const hint = "exchange a new OIDC token for a session, at .../token"
	switch {
	case errors.Is(err, jwt.ErrTokenExpired) && !errors.Is(err, jwt.ErrTokenSignatureInvalid):
		return nil, &rollout.Error{Reason: rollout.ReasonTokenStale, Field: "token", Message: "the session has ended", Hint: hint}
	case err != nil:
		return nil, &rollout.Error{Reason: rollout.ReasonTokenInvalid, Field: "token", Message: "this is not the token of a session with this server", Hint: hint}
	}
	return &c.Identity, nil
}
