package oidctest

import (
	"crypto/sha256"
	"encoding/base64"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/google/uuid"
)

// Provider is an issuer that people log in at by the authorization code flow (OpenID Connect Core 1.0 section 3.1): it asks nobody
// anything and lets the one in that it is told of. It is strict about what a client sends, PKCE by S256 included.
type Provider struct {
	*Issuer
	// ClientID and ClientSecret of its one client, which proves itself in the header.
	ClientID, ClientSecret string

	redirect string
	person   jwt.MapClaims
	token    func(jwt.MapClaims) string
	codes    map[string]url.Values
	logins   int
}

// NewProvider whose client may have answers at one address; it ends with the test. Ada is the one who logs in.
func NewProvider(t testing.TB) *Provider {
	t.Helper()
	p := &Provider{Issuer: New(t), ClientID: "sluice page", ClientSecret: "hush:" + uuid.NewString(), codes: map[string]url.Values{}}
	p.person = jwt.MapClaims{"sub": "u-1815", "name": "Ada Lovelace", "email": "ada@example.com", "email_verified": true, "groups": []string{"staff", "oncall"}}
	p.more = map[string]any{
		"authorization_endpoint": p.URL + "/authorize", "token_endpoint": p.URL + "/token", "response_types_supported": []string{"code"},
		"code_challenge_methods_supported": []string{"S256"}, "token_endpoint_auth_methods_supported": []string{"client_secret_basic"},
		"authorization_response_iss_parameter_supported": true,
	}
	p.routes.HandleFunc("GET /authorize", p.authorize)
	p.routes.HandleFunc("POST /token", p.exchange)
	return p
}

// Register the address that answers may go to.
func (p *Provider) Register(redirect string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.redirect = redirect
}

// LogIn as another person from now on: claims beside those of each token.
func (p *Provider) LogIn(claims jwt.MapClaims) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.person = claims
}

// Issue tokens as token makes them of the right claims; nil: the right ones.
func (p *Provider) Issue(token func(jwt.MapClaims) string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.token = token
}

// Logins that were asked for so far.
func (p *Provider) Logins() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.logins
}

func (p *Provider) authorize(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.logins++
	if q.Get("client_id") != p.ClientID || q.Get("redirect_uri") != p.redirect {
		http.Error(w, "unknown client or redirect_uri", http.StatusBadRequest) // nothing is sent to an address that is not registered
		return
	}
	answer := url.Values{"state": {q.Get("state")}, "iss": {p.URL}}
	scopes := strings.Fields(q.Get("scope"))
	switch {
	case q.Get("response_type") != "code" || q.Get("state") == "" || q.Get("nonce") == "" || !slices.Contains(scopes, "openid"):
		answer.Set("error", "invalid_request")
	case q.Get("code_challenge_method") != "S256" || len(q.Get("code_challenge")) != base64.RawURLEncoding.EncodedLen(sha256.Size):
		answer.Set("error", "invalid_request")
		answer.Set("error_description", "PKCE by S256 is required")
	default:
		code := uuid.NewString()
		p.codes[code] = q
		answer.Set("code", code)
	}
	http.Redirect(w, r, p.redirect+"?"+answer.Encode(), http.StatusFound)
}

func (p *Provider) exchange(w http.ResponseWriter, r *http.Request) {
	refuse := func(code int, what string) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(code)
		_, _ = w.Write([]byte(`{"error": "` + what + `"}`))
	}
	p.mu.Lock()
	client, secret, _ := r.BasicAuth()
	asked, known := p.codes[r.PostFormValue("code")]
	delete(p.codes, r.PostFormValue("code")) // it is good once
	person, token, down := maps.Clone(p.person), p.token, p.down
	p.mu.Unlock()
	challenge := sha256.Sum256([]byte(r.PostFormValue("code_verifier")))
	id, idErr := url.QueryUnescape(client)
	pass, passErr := url.QueryUnescape(secret)
	switch {
	case down:
		refuse(http.StatusServiceUnavailable, "temporarily_unavailable")
		return
	case idErr != nil || passErr != nil || id != p.ClientID || pass != p.ClientSecret:
		refuse(http.StatusUnauthorized, "invalid_client")
		return
	case r.PostFormValue("grant_type") != "authorization_code":
		refuse(http.StatusBadRequest, "unsupported_grant_type")
		return
	case !known || r.PostFormValue("redirect_uri") != asked.Get("redirect_uri") || base64.RawURLEncoding.EncodeToString(challenge[:]) != asked.Get("code_challenge"):
		refuse(http.StatusBadRequest, "invalid_grant")
		return
	}
	now := time.Now()
	claims := jwt.MapClaims{"iss": p.URL, "aud": p.ClientID, "iat": now.Unix(), "exp": now.Add(5 * time.Minute).Unix(), "nonce": asked.Get("nonce")}
	maps.Copy(claims, person)
	if token == nil {
		token = p.Sign
	}
	p.answer(w, map[string]any{"access_token": uuid.NewString(), "token_type": "Bearer", "expires_in": 300, "id_token": token(claims)})
}
