// Package oidctest has an issuer of OIDC tokens as GitHub Actions has one, on this machine, for tests: discovery,
// keys, and tokens with the claims of GitHub's reference; and a provider that people log in at.
package oidctest

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"maps"
	"math/big"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/google/uuid"
)

// Issuer of tokens. Safe for concurrent use.
type Issuer struct {
	// URL is its name (iss).
	URL string
	// KeyRequests counts how often its keys were asked for.
	KeyRequests atomic.Int32

	t      testing.TB
	routes *http.ServeMux
	mu     sync.Mutex
	keys   []key
	down   bool
	// more stands in its discovery document.
	more map[string]any
}

type key struct {
	id      string
	private *rsa.PrivateKey
}

// New issuer with one key; it ends with the test.
func New(t testing.TB) *Issuer {
	t.Helper()
	mux := http.NewServeMux()
	i := &Issuer{t: t, routes: mux}
	mux.HandleFunc("GET /.well-known/openid-configuration", func(w http.ResponseWriter, _ *http.Request) {
		document := map[string]any{
			"issuer": i.URL, "jwks_uri": i.URL + "/.well-known/jwks", "response_types_supported": []string{"id_token"},
			"subject_types_supported": []string{"public", "pairwise"}, "id_token_signing_alg_values_supported": []string{"RS256"},
		}
		i.mu.Lock()
		maps.Copy(document, i.more)
		i.mu.Unlock()
		i.answer(w, document)
	})
	mux.HandleFunc("GET /.well-known/jwks", func(w http.ResponseWriter, _ *http.Request) {
		i.KeyRequests.Add(1)
		i.mu.Lock()
		var keys []map[string]string
		for _, k := range i.keys {
			p := k.private.PublicKey
			keys = append(keys, map[string]string{
				"kty": "RSA", "use": "sig", "alg": "RS256", "kid": k.id,
				"n": base64.RawURLEncoding.EncodeToString(p.N.Bytes()), "e": base64.RawURLEncoding.EncodeToString(big.NewInt(int64(p.E)).Bytes()),
			})
		}
		i.mu.Unlock()
		i.answer(w, map[string]any{"keys": keys})
	})
	s := httptest.NewServer(mux)
	t.Cleanup(s.Close)
	i.URL = s.URL
	i.Rotate()
	return i
}

func (i *Issuer) answer(w http.ResponseWriter, body any) {
	i.mu.Lock()
	down := i.down
	i.mu.Unlock()
	if down {
		http.Error(w, "down", http.StatusServiceUnavailable)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(body) // the client is gone: nothing to tell it
}

// SetDown makes the issuer answer 503.
func (i *Issuer) SetDown(down bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.down = down
}

// Rotate signs with a new key from now on, and publishes it alone.
func (i *Issuer) Rotate() {
	i.t.Helper()
	i.mu.Lock()
	defer i.mu.Unlock()
	i.keys = []key{{id: uuid.NewString(), private: NewKey(i.t)}}
}

// NewKey that the issuer does not know.
func NewKey(t testing.TB) *rsa.PrivateKey {
	t.Helper()
	k, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// Claims of a job of repository 74 (octo-org/octo-repo) of owner 65 that a push to main started, for an audience. Their names and
// forms are those of GitHub's reference.
func (i *Issuer) Claims(audience string) jwt.MapClaims {
	now := time.Now()
	return jwt.MapClaims{
		"iss": i.URL, "aud": audience, "jti": uuid.NewString(), "sub": "repo:octo-org/octo-repo:ref:refs/heads/main",
		"iat": now.Unix(), "nbf": now.Add(-10 * time.Minute).Unix(), "exp": now.Add(6 * time.Hour).Unix(),
		"ref": "refs/heads/main", "ref_type": "branch", "ref_protected": "true", "sha": "1f2e3d4c5b6a79881726354453627180f0e0d0c0",
		"repository": "octo-org/octo-repo", "repository_id": "74", "repository_owner": "octo-org", "repository_owner_id": "65", "repository_visibility": "private",
		"run_id": "1001", "run_number": "10", "run_attempt": "2", "runner_environment": "github-hosted",
		"actor": "octocat", "actor_id": "12", "workflow": "deploy", "head_ref": "", "base_ref": "", "event_name": "push",
		"workflow_ref":     "octo-org/octo-repo/.github/workflows/deploy.yml@refs/heads/main",
		"workflow_sha":     "1f2e3d4c5b6a79881726354453627180f0e0d0c0",
		"job_workflow_ref": "octo-org/octo-automation/.github/workflows/oidc.yml@refs/heads/main",
		"job_workflow_sha": "1f2e3d4c5b6a79881726354453627180f0e0d0c0",
	}
}

// Sign claims with the issuer's key.
func (i *Issuer) Sign(claims jwt.MapClaims) string {
	i.t.Helper()
	i.mu.Lock()
	k := i.keys[len(i.keys)-1]
	i.mu.Unlock()
	return i.SignWith(jwt.SigningMethodRS256, k.id, k.private, claims)
}

// SignWith any method and key, under the issuer's key id if id is empty.
func (i *Issuer) SignWith(method jwt.SigningMethod, id string, with any, claims jwt.MapClaims) string {
	i.t.Helper()
	if id == "" {
		id = i.KeyID()
	}
	token := jwt.NewWithClaims(method, claims)
	token.Header["kid"] = id
	s, err := token.SignedString(with)
	if err != nil {
		i.t.Error(fmt.Errorf("sign token: %w", err))
	}
	return s
}

// KeyID of the issuer's key.
func (i *Issuer) KeyID() string {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.keys[len(i.keys)-1].id
}

// PublicPEM is the issuer's public key, as one who takes it for a secret may have it.
func (i *Issuer) PublicPEM() []byte {
	i.t.Helper()
	i.mu.Lock()
	defer i.mu.Unlock()
	der, err := x509.MarshalPKIXPublicKey(&i.keys[len(i.keys)-1].private.PublicKey)
	if err != nil {
		i.t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
}
