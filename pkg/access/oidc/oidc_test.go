package oidc_test

import (
	"context"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/sluice-dev/sluice/pkg/access/oidc"
	"github.com/sluice-dev/sluice/pkg/access/oidc/oidctest"
	"github.com/sluice-dev/sluice/rollout"
)

const audience = "https://sluice.example"

func verifier(t *testing.T, c oidc.Config) *oidc.Verifier {
	t.Helper()
	if c.Audience == "" {
		c.Audience = audience
	}
	v, err := oidc.New(c)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestVerify(t *testing.T) {
	i := oidctest.New(t)
	v := verifier(t, oidc.Config{Issuer: i.URL})
	got, err := v.Verify(t.Context(), i.Sign(i.Claims(audience)))
	if err != nil {
		t.Fatal(err)
	}
	want := oidc.Identity{
		Repository: "octo-org/octo-repo", RepositoryID: 74, RepositoryOwnerID: 65, Event: "push", Ref: "refs/heads/main",
		SHA: "1f2e3d4c5b6a79881726354453627180f0e0d0c0", RunID: 1001, RunAttempt: 2, Actor: "octocat",
		JobWorkflowRef: "octo-org/octo-automation/.github/workflows/oidc.yml@refs/heads/main",
	}
	if got.Identity != want || got.ID == "" || got.Issuer != i.URL || time.Since(got.IssuedAt) > time.Minute {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

// TestRefused has one line for each way in which a token is not good.
func TestRefused(t *testing.T) {
	i, other := oidctest.New(t), oidctest.New(t)
	v := verifier(t, oidc.Config{Issuer: i.URL})
	with := func(name string, value any) jwt.MapClaims {
		c := i.Claims(audience)
		if c[name] = value; value == nil {
			delete(c, name)
		}
		return c
	}
	at := func(d time.Duration) int64 { return time.Now().Add(d).Unix() }
	foreign := oidctest.NewKey(t)
	tampered := strings.Split(i.Sign(i.Claims(audience)), ".")
	tampered[1] = strings.Split(i.Sign(with("repository_id", "75")), ".")[1]
	for _, tc := range []struct {
		name, token string
		reason      rollout.Reason
	}{
		{"no token", "", rollout.ReasonTokenInvalid},
		{"no JWT", "secret-words", rollout.ReasonTokenInvalid},
		{"too long", strings.Repeat("a", 20<<10), rollout.ReasonTokenInvalid},
		{"another audience", i.Sign(with("aud", "https://github.com/octo-org")), rollout.ReasonTokenInvalid},
		{"several audiences", i.Sign(with("aud", []string{audience, "https://other.example"})), rollout.ReasonTokenInvalid},
		{"no audience", i.Sign(with("aud", nil)), rollout.ReasonTokenInvalid},
		{"another issuer's name", i.Sign(with("iss", "https://evil.example")), rollout.ReasonTokenInvalid},
		{"another issuer", other.Sign(other.Claims(audience)), rollout.ReasonTokenInvalid},
		{"another issuer under this one's name", other.Sign(with("iss", i.URL)), rollout.ReasonTokenInvalid},
		{"no algorithm", i.SignWith(jwt.SigningMethodNone, "", jwt.UnsafeAllowNoneSignatureType, i.Claims(audience)), rollout.ReasonTokenInvalid},
		{"the public key as a secret", i.SignWith(jwt.SigningMethodHS256, "", i.PublicPEM(), i.Claims(audience)), rollout.ReasonTokenInvalid},
		{"another RSA method", i.SignWith(jwt.SigningMethodRS512, "", foreign, i.Claims(audience)), rollout.ReasonTokenInvalid},
		{"an unknown key", i.SignWith(jwt.SigningMethodRS256, "made-up", foreign, i.Claims(audience)), rollout.ReasonTokenInvalid},
		{"another key under a known id", i.SignWith(jwt.SigningMethodRS256, "", foreign, i.Claims(audience)), rollout.ReasonTokenInvalid},
		{"other claims under the signature", strings.Join(tampered, "."), rollout.ReasonTokenInvalid},
		{"no signature", strings.Join(tampered[:2], ".") + ".", rollout.ReasonTokenInvalid},
		{"stale", i.Sign(with("iat", at(-11*time.Minute))), rollout.ReasonTokenStale},
		{"from the future", i.Sign(with("iat", at(2*time.Minute))), rollout.ReasonTokenStale},
		{"expired", i.Sign(with("exp", at(-time.Minute))), rollout.ReasonTokenStale},
		{"no expiry", i.Sign(with("exp", nil)), rollout.ReasonTokenStale},
		{"not yet", i.Sign(with("nbf", at(time.Hour))), rollout.ReasonTokenInvalid},
		{"no iat", i.Sign(with("iat", nil)), rollout.ReasonTokenInvalid},
		{"no jti", i.Sign(with("jti", nil)), rollout.ReasonTokenInvalid},
		{"no repository", i.Sign(with("repository_id", nil)), rollout.ReasonTokenInvalid},
		{"a repository that is no number", i.Sign(with("repository_id", "octo")), rollout.ReasonTokenInvalid},
		{"repository 0", i.Sign(with("repository_id", "0")), rollout.ReasonTokenInvalid},
		{"no owner", i.Sign(with("repository_owner_id", nil)), rollout.ReasonTokenInvalid},
		{"no event", i.Sign(with("event_name", nil)), rollout.ReasonTokenInvalid},
		{"no run", i.Sign(with("run_id", nil)), rollout.ReasonTokenInvalid},
		{"no actor", i.Sign(with("actor", "")), rollout.ReasonTokenInvalid},
		{"no commit", i.Sign(with("sha", nil)), rollout.ReasonTokenInvalid},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := v.Verify(t.Context(), tc.token)
			if rollout.ReasonOf(err) != tc.reason {
				t.Fatalf("error %v, want reason %s", err, tc.reason)
			}
			if len(tc.token) > 4 && strings.Contains(err.Error(), tc.token[:min(len(tc.token), 12)]) {
				t.Errorf("the error quotes the token: %v", err)
			}
		})
	}
	for _, ok := range []struct {
		name   string
		claims jwt.MapClaims
	}{
		{"nine minutes old", with("iat", at(-9*time.Minute))},
		{"half a minute ahead", with("iat", at(30*time.Second))},
		{"another form of sub", with("sub", "repo:octo-org@65/octo-repo@74:environment:a%3Ab")},
	} {
		if _, err := v.Verify(t.Context(), i.Sign(ok.claims)); err != nil {
			t.Errorf("%s: %v", ok.name, err)
		}
	}
}

func TestRotation(t *testing.T) {
	i := oidctest.New(t)
	var mu sync.Mutex
	now := time.Now()
	v := verifier(t, oidc.Config{Issuer: i.URL, RefetchAfter: time.Minute, Now: func() time.Time { mu.Lock(); defer mu.Unlock(); return now }})
	old := i.Sign(i.Claims(audience))
	if _, err := v.Verify(t.Context(), old); err != nil {
		t.Fatal(err)
	}
	// Made-up key ids do not make the server ask again and again.
	before, foreign := i.KeyRequests.Load(), oidctest.NewKey(t)
	for range 20 {
		_, err := v.Verify(t.Context(), i.SignWith(jwt.SigningMethodRS256, "made-up", foreign, i.Claims(audience)))
		if rollout.ReasonOf(err) != rollout.ReasonTokenInvalid {
			t.Fatal(err)
		}
	}
	if n := i.KeyRequests.Load() - before; n != 0 {
		t.Errorf("made-up keys were asked for %d times", n)
	}
	i.Rotate()
	mu.Lock()
	now = now.Add(time.Minute)
	mu.Unlock()
	claims := i.Claims(audience)
	if _, err := v.Verify(t.Context(), i.Sign(claims)); err != nil {
		t.Errorf("the new key: %v", err)
	}
	// The key set keeps the new keys a moment after it has answered with them.
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
		_, err := v.Verify(t.Context(), old)
		if rollout.ReasonOf(err) == rollout.ReasonTokenInvalid {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("a withdrawn key: %v", err)
		}
	}
}

// TestWithdrawn: a key that the issuer no longer publishes is not trusted for ever, though nothing with another key id comes.
func TestWithdrawn(t *testing.T) {
	i := oidctest.New(t)
	now := time.Now()
	v := verifier(t, oidc.Config{Issuer: i.URL, MaxAge: 3 * time.Hour, Now: func() time.Time { return now }})
	old := i.Sign(i.Claims(audience))
	if _, err := v.Verify(t.Context(), old); err != nil {
		t.Fatal(err)
	}
	i.Rotate()
	now = now.Add(2 * time.Hour)
	if _, err := v.Verify(t.Context(), old); rollout.ReasonOf(err) != rollout.ReasonTokenInvalid {
		t.Errorf("error %v", err)
	}
}

func TestSilentIssuer(t *testing.T) {
	i := oidctest.New(t)
	v := verifier(t, oidc.Config{Issuer: i.URL})
	i.SetDown(true)
	if _, err := v.Verify(t.Context(), i.Sign(i.Claims(audience))); rollout.ReasonOf(err) != rollout.ReasonUnavailable {
		t.Errorf("down from the start: %v", err)
	}
	i.SetDown(false)
	if _, err := v.Verify(t.Context(), i.Sign(i.Claims(audience))); err != nil {
		t.Errorf("up again: %v", err)
	}
	// What its keys have signed is still known to be good; what they have not may be a newer key's.
	i.SetDown(true)
	if _, err := v.Verify(t.Context(), i.Sign(i.Claims(audience))); err != nil {
		t.Errorf("with keys that are known: %v", err)
	}
	v = verifier(t, oidc.Config{Issuer: i.URL, RefetchAfter: time.Nanosecond})
	i.SetDown(false)
	if _, err := v.Verify(t.Context(), i.Sign(i.Claims(audience))); err != nil {
		t.Fatal(err)
	}
	i.SetDown(true)
	if _, err := v.Verify(t.Context(), i.SignWith(jwt.SigningMethodRS256, "new", oidctest.NewKey(t), i.Claims(audience))); rollout.ReasonOf(err) != rollout.ReasonUnavailable {
		t.Errorf("an unknown key while it is down: %v", err)
	}

	l, err := net.Listen("tcp", "127.0.0.1:0") // takes connections and says nothing
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	v = verifier(t, oidc.Config{Issuer: "http://" + l.Addr().String(), Client: &http.Client{Timeout: 200 * time.Millisecond}})
	if _, err := v.Verify(t.Context(), i.Sign(i.Claims(audience))); rollout.ReasonOf(err) != rollout.ReasonUnavailable {
		t.Errorf("an issuer that says nothing: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := v.Verify(ctx, i.Sign(i.Claims(audience))); rollout.ReasonOf(err) != rollout.ReasonUnavailable {
		t.Errorf("a client that went away: %v", err)
	}
}

func TestConfig(t *testing.T) {
	for _, c := range []oidc.Config{
		{}, {Audience: " "}, {Audience: audience, Issuer: "http://github.example"}, {Audience: audience, Issuer: "https://a:b@github.example"}, {Audience: audience, Issuer: "github.com"},
	} {
		if _, err := oidc.New(c); rollout.ReasonOf(err) != rollout.ReasonInvalid {
			t.Errorf("%+v: %v", c, err)
		}
	}
	if _, err := oidc.New(oidc.Config{Audience: audience}); err != nil {
		t.Error(err)
	}
}
