// Package login lets people log in to the page by OpenID Connect, knows who they are from then on, and what the
// page's policy permits them. It stores nothing: what it has to remember goes sealed into cookies.
//
// Sources: OpenID Connect Core 1.0 sections 3.1 (authorization code flow) and 3.1.3.7 (checks of the ID token), RFC 7636 (PKCE), RFC 9207
// (which issuer answers), RFC 9700 (best practice), RFC 6265bis (cookies).
package login

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/coreos/go-oidc/v3/oidc"
	"golang.org/x/oauth2"
	"golang.org/x/time/rate"

	"github.com/sluice-dev/sluice/pkg/access"
	"github.com/sluice-dev/sluice/pkg/access/policy"
	"github.com/sluice-dev/sluice/rollout"
)

// Paths of the login, on the page's server.
const (
	Path         = "/login"
	CallbackPath = "/login/callback"
	LogoutPath   = "/logout"
)

// Bounds.
const (
	// Life of a session. Whoever is taken out of a group keeps what it permitted until then at the latest.
	Life = 8 * time.Hour
	// attemptLife is how long somebody may take at the issuer.
	attemptLife = 10 * time.Minute
	// noteLife is how long a note waits to be read.
	noteLife = time.Minute
	// minKey of the servers' key, in bytes: as long as what is derived from it.
	minKey = 32
	// skew is how far the issuer's clock may be ahead.
	skew = time.Minute
	// Of what an answer by way of a browser has, in bytes.
	maxQuery = 8 << 10
	maxState = 128
	maxCode  = 4 << 10
	maxToken = 64 << 10
	// maxSubject of the issuer's names for people (OpenID Connect Core section 2).
	maxSubject = 255
	maxEmail   = 254
	maxName    = 64
	// maxGroups of a person; who has more cannot log in.
	maxGroups = 2000
	// Logins, of everybody together, so that nobody makes this server a burden to the issuer.
	loginsPerSecond = 5
	loginsAtOnce    = 20
)

// Config of a Login. Issuer, ClientID, URL and Policy are required.
type Config struct {
	// Issuer that people log in at; https, but on loopback.
	Issuer   string
	ClientID string
	// ClientSecret, if the issuer gave one.
	ClientSecret string
	// URL is the page's public address, without a path; https, but on loopback.
	URL string
	// Scopes that are asked for beside openid; profile and email unless set.
	Scopes []string
	Policy *Policy
	// Key that cookies' keys are derived from: 32 random bytes or more, the same in each server behind one address. Without it
	// each process makes one of its own up, and logins end with it.
	Key []byte
	// Client reaches the issuer.
	Client *http.Client
	Logger *slog.Logger
	// Now is time.Now unless set.
	Now func() time.Time
}

// Login of people. Safe for concurrent use.
type Login struct {
	c                       Config
	url                     *url.URL
	provider                *provider
	cookies                 cookies
	sessions, attempts, own seal
	forms                   []byte
	rate                    *rate.Limiter
}

func invalid(field, hint, format string, args ...any) *rollout.Error {
	return &rollout.Error{Reason: rollout.ReasonInvalid, Field: "page-login-" + field, Message: fmt.Sprintf(format, args...), Hint: hint}
}

// New asks the issuer nothing yet.
func New(c Config) (*Login, error) {
	if err := access.Secure(c.Issuer); err != nil {
		return nil, invalid("issuer", "give it as https://HOST, as its tokens say (iss)", "%q is not an issuer: %v", c.Issuer, err)
	}
	if strings.TrimSpace(c.ClientID) == "" {
		return nil, invalid("client-id", "register the page at the issuer, and give the id that it gets there", "no client id is given")
	}
	u, err := url.Parse(c.URL)
	if insecure := access.Secure(c.URL); insecure != nil || err != nil || u.Path != "" && u.Path != "/" {
		if insecure == nil {
			insecure = errors.New("it has a path")
		}
		return nil, invalid("url", "give the address by which people reach the page, such as https://sluice.example", "%q is not the page's address: %v", c.URL, insecure)
	}
	if c.Policy == nil {
		return nil, invalid("policy", "name a file; docs/page.md shows one", "no policy is given, so that a login would permit nothing")
	}
	switch {
	case len(c.Key) == 0:
		c.Key = make([]byte, minKey)
		rand.Read(c.Key) // never fails: crypto/rand crashes the program instead
	case len(c.Key) < minKey:
		return nil, &rollout.Error{Reason: rollout.ReasonInvalid, Field: "api-session-key", Message: fmt.Sprintf("the key of sessions has %d bytes", len(c.Key)), Hint: fmt.Sprintf("give %d random bytes or more, such as of `openssl rand -hex 32`", minKey)}
	}
	if c.Scopes == nil {
		c.Scopes = []string{"profile", "email"}
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	l := &Login{
		c: c, url: &url.URL{Scheme: u.Scheme, Host: strings.ToLower(u.Host)}, provider: newProvider(c.Issuer, c.Client, c.Now), cookies: cookies{secure: u.Scheme == "https"},
		rate: rate.NewLimiter(loginsPerSecond, loginsAtOnce),
	}
	// What another issuer said, or to another client, counts no more.
	scope := strings.Join([]string{c.Issuer, c.ClientID, l.url.String()}, "\x00")
	var errs [4]error
	l.sessions, errs[0] = newSeal(c.Key, "session", scope)
	l.attempts, errs[1] = newSeal(c.Key, "attempt", scope)
	l.own, errs[2] = newSeal(c.Key, "note", scope)
	l.forms, errs[3] = derive(c.Key, "form", scope)
	return l, errors.Join(errs[:]...)
}

// attempt is what has to be remembered between the way to the issuer and the way back.
type attempt struct {
	State    string `json:"state"`
	Nonce    string `json:"nonce"`
	Verifier string `json:"verifier"`
	To       string `json:"to"`
}

// session is what a cookie says of who has logged in.
type session struct {
	ID string `json:"id"`
	// Name to show.
	Name string `json:"name,omitempty"`
	identity
}

func refuse(reason rollout.Reason, hint, format string, args ...any) *rollout.Error {
	return &rollout.Error{Reason: reason, Field: "login", Message: fmt.Sprintf(format, args...), Hint: hint}
}

func (l *Login) config(d *discovered) *oauth2.Config {
	return &oauth2.Config{
		ClientID: l.c.ClientID, ClientSecret: l.c.ClientSecret, Endpoint: d.endpoint(l.c.ClientSecret != ""), RedirectURL: l.url.String() + CallbackPath,
		Scopes: append([]string{oidc.ScopeOpenID}, l.c.Scopes...),
	}
}

const tryAgain = "try again in a moment"

// discover the issuer, or say that it is silent.
func (l *Login) discover(ctx context.Context) (*discovered, error) {
	d, err := l.provider.discover(ctx)
	if err != nil {
		return nil, fmt.Errorf("ask %s what it is: %w", l.c.Issuer, errors.Join(refuse(rollout.ReasonUnavailable, tryAgain, "the issuer of logins does not answer, so that nobody can log in"), err))
	}
	return d, nil
}

// Begin a login that comes back to a path of the page: the address to send the browser to. The error is a *rollout.Error,
// unavailable, if the issuer does not answer. Before the answer nothing is asked of the issuer but what it is, at most once at a time.
func (l *Login) Begin(w http.ResponseWriter, r *http.Request, to string) (string, error) {
	if host := r.Host; host != l.url.Host && access.Loopback(hostname(host)) && access.Loopback(l.url.Hostname()) {
		// This machine under another of its names: the answer would come back to where the cookie is not.
		return l.url.String() + Path + "?" + url.Values{"to": {to}}.Encode(), nil
	}
	d, err := l.discover(r.Context())
	if err != nil {
		return "", err
	}
	a := attempt{State: random(), Nonce: random(), Verifier: oauth2.GenerateVerifier(), To: to}
	sealed, err := l.attempts.close(a, l.c.Now().Add(attemptLife))
	if err != nil {
		return "", err
	}
	l.cookies.set(w, "login", sealed, attemptLife)
	return l.config(d).AuthCodeURL(a.State, oidc.Nonce(a.Nonce), oauth2.S256ChallengeOption(a.Verifier)), nil
}

func hostname(host string) string {
	u := url.URL{Host: host}
	return u.Hostname()
}

// Finish a login: the request is the issuer's answer by way of the browser. It returns the path that Begin was told. Errors are
// *rollout.Error: token_invalid where the answer is none to this browser's attempt or the token is not good, denied where the issuer or the
// policy says no, unavailable, too_many_requests. None quotes a code or token.
func (l *Login) Finish(w http.ResponseWriter, r *http.Request) (string, error) {
	id, to, err := l.finish(w, r)
	attrs := []any{"issuer", l.c.Issuer}
	if id.Subject != "" {
		attrs = append(attrs, "actor", id.actor(), "groups", id.Groups)
	}
	if err != nil {
		l.c.Logger.WarnContext(r.Context(), "login refused", append(attrs, "reason", rollout.ReasonOf(err), "error", err)...)
		return "", err
	}
	l.c.Logger.InfoContext(r.Context(), "login", attrs...)
	return to, nil
}

func (l *Login) finish(w http.ResponseWriter, r *http.Request) (id identity, to string, err error) {
	const again = "log in again"
	var a attempt
	_, opened := l.attempts.open(l.cookies.get(r, "login"), l.c.Now(), &a)
	l.cookies.set(w, "login", "", 0) // an attempt has one answer
	if len(r.URL.RawQuery) > maxQuery {
		return id, "", refuse(rollout.ReasonTokenInvalid, again, "the answer has more than %d bytes", maxQuery)
	}
	q := r.URL.Query()
	state, code := q.Get("state"), q.Get("code")
	switch {
	case opened != nil:
		return id, "", refuse(rollout.ReasonTokenInvalid, again+"; cookies have to be on", "this browser has begun no login within %s", attemptLife)
	case len(state) > maxState || !same(a.State, state) || len(q["state"]) != 1:
		return id, "", refuse(rollout.ReasonTokenInvalid, again, "the answer is not to the login that this browser began last")
	case q.Has("iss") && q.Get("iss") != l.c.Issuer:
		return id, "", refuse(rollout.ReasonTokenInvalid, again, "another issuer answers")
	case q.Has("error"):
		return id, "", refuse(rollout.ReasonDenied, again, "the issuer says no: %s", clean(q.Get("error")+" "+q.Get("error_description"), 200))
	case code == "" || len(code) > maxCode || len(q["code"]) != 1:
		return id, "", refuse(rollout.ReasonTokenInvalid, again, "the answer has no code")
	case !l.rate.AllowN(l.c.Now(), 1):
		return id, "", refuse(rollout.ReasonTooManyRequests, tryAgain, "too many people log in at a time")
	}
	d, err := l.discover(r.Context())
	if err != nil {
		return id, "", err
	}
	ctx, cancel := context.WithTimeout(l.provider.context(r.Context()), 2*askTimeout)
	defer cancel()
	token, err := l.config(d).Exchange(ctx, code, oauth2.VerifierOption(a.Verifier))
	if said := new(oauth2.RetrieveError); errors.As(err, &said) && said.Response != nil && said.Response.StatusCode < http.StatusInternalServerError {
		// What it says may quote what it was sent; its code is one of a few words (RFC 6749 section 5.2).
		return id, "", refuse(rollout.ReasonTokenInvalid, again, "the issuer gives nothing for the code: %s", clean(said.ErrorCode, 60))
	}
	if err != nil {
		return id, "", fmt.Errorf("exchange code: %w", errors.Join(refuse(rollout.ReasonUnavailable, tryAgain, "the issuer of logins does not answer, so that nobody can log in"), unquoted(err)))
	}
	raw, _ := token.Extra("id_token").(string)
	if raw == "" || len(raw) > maxToken {
		return id, "", refuse(rollout.ReasonTokenInvalid, "let the issuer give an ID token to this client", "the issuer gives no ID token, or a very long one")
	}
	s, err := l.check(ctx, d, raw, a.Nonce)
	id = s.identity
	if err != nil {
		return id, "", err
	}
	if !l.c.Policy.admits(id) {
		return id, "", refuse(rollout.ReasonDenied, "have the page's policy permit it", "nothing permits %s anything here", id.actor())
	}
	s.ID = random()
	sealed, err := l.sessions.close(s, l.c.Now().Add(Life))
	if err != nil {
		return id, "", err
	}
	if len(sealed) > maxCookie {
		return id, "", refuse(rollout.ReasonDenied, "have the page's policy name fewer of the person's groups", "what the policy asks of %s does not fit into a cookie", id.actor())
	}
	l.cookies.set(w, "session", sealed, Life)
	return id, a.To, nil
}

// unquoted is an error without the address that it may quote.
func unquoted(err error) error {
	if u := new(url.Error); errors.As(err, &u) {
		return u.Err
	}
	return errors.New("the answer is none that OAuth has")
}

// algorithms that ID tokens may be signed with: never none, never a symmetric one, which would make a token of the client's secret.
func algorithms() []string {
	return []string{oidc.RS256, oidc.RS384, oidc.RS512, oidc.ES256, oidc.ES384, oidc.ES512, oidc.PS256, oidc.PS384, oidc.PS512, oidc.EdDSA}
}

// check an ID token (OpenID Connect Core section 3.1.3.7): signature, iss, aud, exp and nbf by the library, the others here.
func (l *Login) check(ctx context.Context, d *discovered, raw, nonce string) (session, error) {
	const hint = "log in again"
	bad := func(format string, args ...any) (session, error) {
		return session{}, refuse(rollout.ReasonTokenInvalid, hint, format, args...)
	}
	checked, err := oidc.NewVerifier(l.c.Issuer, d.keys, &oidc.Config{ClientID: l.c.ClientID, SupportedSigningAlgs: algorithms(), Now: l.c.Now}).Verify(ctx, raw)
	if unreached := new(url.Error); errors.As(err, &unreached) {
		return session{}, fmt.Errorf("ask %s for its keys: %w", l.c.Issuer, errors.Join(refuse(rollout.ReasonUnavailable, tryAgain, "the issuer of logins does not give its keys, so that nobody can log in"), unreached))
	}
	if err != nil {
		return bad("the ID token is not good: %.300s", strings.TrimPrefix(err.Error(), "oidc: "))
	}
	var claims struct {
		Party    string          `json:"azp"`
		Email    string          `json:"email"`
		Verified json.RawMessage `json:"email_verified"`
		Name     string          `json:"name"`
		User     string          `json:"preferred_username"`
	}
	all := map[string]json.RawMessage{}
	if err := errors.Join(checked.Claims(&claims), checked.Claims(&all)); err != nil {
		return bad("the ID token's claims are not those of OpenID Connect")
	}
	switch {
	case !same(checked.Nonce, nonce):
		return bad("the ID token is not for this login")
	case claims.Party != "" && claims.Party != l.c.ClientID, len(checked.Audience) > 1 && claims.Party == "":
		return bad("the ID token was made for another client")
	case checked.IssuedAt.Unix() <= 0 || checked.IssuedAt.After(l.c.Now().Add(skew)):
		return bad("the ID token was issued in the future, or it does not say when")
	case checked.Subject == "" || len(checked.Subject) > maxSubject || clean(checked.Subject, maxSubject) != checked.Subject:
		return bad("the ID token's subject is none")
	}
	groups, err := texts(all[l.c.Policy.GroupsClaim])
	if err != nil || len(groups) > maxGroups {
		return bad("the claim %s is no list of at most %d texts", l.c.Policy.GroupsClaim, maxGroups)
	}
	s := session{Name: clean(claims.Name, maxName), identity: identity{Subject: checked.Subject, Groups: l.c.Policy.relevant(groups)}}
	if s.Name == "" {
		s.Name = clean(claims.User, maxName)
	}
	// Some issuers write it as text.
	verified := slices.Contains([]string{`true`, `"true"`}, string(claims.Verified))
	if e := claims.Email; verified && len(e) <= maxEmail && clean(e, maxEmail) == e && !strings.ContainsAny(e, " \t") && strings.Count(e, "@") == 1 {
		s.Email = e
	}
	return s, nil
}

// texts of a claim that is a list of texts, one text, or not there.
func texts(raw json.RawMessage) ([]string, error) {
	if len(raw) == 0 || string(raw) == "null" {
		return nil, nil
	}
	var one string
	if json.Unmarshal(raw, &one) == nil {
		return []string{one}, nil
	}
	var many []string
	err := json.Unmarshal(raw, &many)
	return many, err
}

// clean text of strangers: nothing that is not shown, nothing that turns other text around, and not much of it.
func clean(s string, most int) string {
	s = strings.Map(func(r rune) rune {
		if r == unicode.ReplacementChar || !unicode.IsPrint(r) {
			return -1
		}
		return r
	}, strings.ToValidUTF8(s, ""))
	if s = strings.TrimSpace(s); len(s) > most {
		s = strings.ToValidUTF8(s[:most], "")
	}
	return s
}

// actor is whom the record names: the email that the issuer has verified, else its own name for the person. A name that people
// choose themselves would let one pass for another; and nobody who logs in here is the engine, or somebody of GitHub.
func (id identity) actor() string {
	if id.Email != "" {
		return "oidc:" + id.Email
	}
	return "oidc:sub=" + id.Subject
}

// End the session of this browser. There is no list of sessions: a cookie that was copied before works on until its time is over.
func (l *Login) End(w http.ResponseWriter) {
	l.cookies.set(w, "session", "", 0)
	l.cookies.set(w, "note", "", 0)
}

// URL is the page's public address, as browsers write it in Origin.
func (l *Login) URL() string { return l.url.String() }

// Person who has logged in and asks; nil if nobody has, or no rule is for them any more.
func (l *Login) Person(r *http.Request) *Person {
	var s session
	until, err := l.sessions.open(l.cookies.get(r, "session"), l.c.Now(), &s)
	if err != nil || s.ID == "" || s.Subject == "" || !l.c.Policy.admits(s.identity) {
		return nil
	}
	return &Person{login: l, session: s, until: until}
}

// Person who has logged in.
type Person struct {
	login   *Login
	session session
	until   time.Time
}

// Actor is the person as the record has them.
func (p *Person) Actor() string { return p.session.actor() }

// Name of the person, to show: text of strangers.
func (p *Person) Name() string {
	for _, s := range []string{p.session.Name, p.session.Email} {
		if s != "" {
			return s
		}
	}
	return p.session.Subject
}

// Until when the session lasts.
func (p *Person) Until() time.Time { return p.until }

// Permits says whether the policy permits the person a command on an endpoint.
func (p *Person) Permits(key rollout.Key, c policy.Command) bool {
	return p.login.c.Policy.permits(p.session.identity, key, c)
}

// Mark of a text that is the same for this session and another for any other, 43 characters of base64url. It
// cannot be guessed.
func (p *Person) Mark(text string) string {
	return mac(p.login.forms, p.session.ID+"\x00"+text)
}

// Token that forms of this session carry, so that no other site can send one.
func (p *Person) Token() string { return p.Mark("token") }

// Sent says whether a form was sent by the page itself, in this session: why not, or nil. Errors are *rollout.Error: denied.
func (p *Person) Sent(r *http.Request, token string) error {
	const hint = "load the page again, and press the button there"
	if site := r.Header.Get("Sec-Fetch-Site"); site != "" && site != "same-origin" {
		return refuse(rollout.ReasonDenied, hint, "the form comes from another site")
	}
	// Browsers send it with each form; what is no browser can.
	if r.Header.Get("Origin") != p.login.URL() {
		return refuse(rollout.ReasonDenied, hint+" at "+p.login.URL(), "the form does not come from the page")
	}
	if !same(p.Token(), token) {
		return refuse(rollout.ReasonDenied, hint, "the form is of another session")
	}
	return nil
}

// Note for the person's next look at a path.
type Note struct {
	Session string `json:"session"`
	Path    string `json:"path"`
	Bad     bool   `json:"bad,omitempty"`
	Text    string `json:"text"`
}

// Leave a note, which nobody else can have written.
func (p *Person) Leave(w http.ResponseWriter, path, text string, bad bool) {
	if len(text) > maxCookie/4 {
		text = strings.ToValidUTF8(text[:maxCookie/4], "") + " …"
	}
	if sealed, err := p.login.own.close(Note{p.session.ID, path, bad, text}, p.login.c.Now().Add(noteLife)); err == nil && len(sealed) <= maxCookie {
		p.login.cookies.set(w, "note", sealed, noteLife)
	}
}

// Take the note for the path, if there is one: it is gone then.
func (p *Person) Take(w http.ResponseWriter, r *http.Request) *Note {
	var n Note
	if _, err := p.login.own.open(p.login.cookies.get(r, "note"), p.login.c.Now(), &n); err != nil || n.Session != p.session.ID || n.Path != r.URL.Path {
		return nil
	}
	p.login.cookies.set(w, "note", "", 0)
	return &n
}
