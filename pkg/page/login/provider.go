package login

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"golang.org/x/oauth2"
	"golang.org/x/sync/singleflight"

	"github.com/sluice-dev/sluice/pkg/access"
)

// Bounds of what is asked of the issuer.
const (
	askTimeout = 5 * time.Second
	// keepProvider is how long what the issuer says of itself, and its keys, are trusted before they are asked for again.
	keepProvider = time.Hour
	// askAgain is how long it is not asked after it failed.
	askAgain  = 2 * time.Second
	maxAnswer = 1 << 20
)

// provider is the issuer. It is asked for what it says of itself (OpenID Connect Discovery 1.0) when somebody logs in, not before: one that
// cannot be reached keeps no server from starting.
type provider struct {
	issuer string
	client *http.Client
	now    func() time.Time
	group  singleflight.Group

	mu     sync.Mutex
	found  *discovered
	until  time.Time
	failed error
	again  time.Time
}

// discovered is what the issuer says of itself.
type discovered struct {
	authorize, token string
	// basic says that clients prove themselves in the header, else in the body.
	basic bool
	keys  oidc.KeySet
}

// endpoint for a client with a secret or without. How it proves itself is said, not tried out: a code may be good for one try.
func (d *discovered) endpoint(secret bool) oauth2.Endpoint {
	style := oauth2.AuthStyleInParams
	if secret && d.basic {
		style = oauth2.AuthStyleInHeader
	}
	return oauth2.Endpoint{AuthURL: d.authorize, TokenURL: d.token, AuthStyle: style}
}

func newProvider(issuer string, client *http.Client, now func() time.Time) *provider {
	var c http.Client
	if client != nil {
		c = *client
	}
	if c.Timeout == 0 {
		c.Timeout = askTimeout
	}
	base := c.Transport
	if base == nil {
		base = http.DefaultTransport
	}
	c.Transport = bounded{base}
	// Codes and the client's secret go where the issuer said, not further.
	c.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return &provider{issuer: issuer, client: &c, now: now}
}

// context by which the libraries reach the issuer.
func (p *provider) context(ctx context.Context) context.Context {
	return oidc.ClientContext(ctx, p.client)
}

// discover what the issuer says of itself, at most once at a time.
func (p *provider) discover(ctx context.Context) (*discovered, error) {
	p.mu.Lock()
	found, until, failed, again := p.found, p.until, p.failed, p.again
	p.mu.Unlock()
	now := p.now()
	switch {
	case found != nil && now.Before(until):
		return found, nil
	case failed != nil && now.Before(again):
		return nil, failed
	}
	asked := p.group.DoChan("", func() (any, error) {
		d, err := p.ask()
		p.mu.Lock()
		defer p.mu.Unlock()
		if err != nil {
			p.found, p.failed, p.again = nil, err, p.now().Add(askAgain)
			return nil, err
		}
		p.found, p.failed, p.until = d, nil, p.now().Add(keepProvider)
		return d, nil
	})
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case r := <-asked:
		if r.Err != nil {
			return nil, r.Err
		}
		return r.Val.(*discovered), nil
	}
}

func (p *provider) ask() (*discovered, error) {
	ctx, cancel := context.WithTimeout(p.context(context.Background()), askTimeout)
	defer cancel()
	found, err := oidc.NewProvider(ctx, p.issuer)
	if err != nil {
		return nil, err
	}
	var document struct {
		Keys      string   `json:"jwks_uri"`
		Authorize string   `json:"authorization_endpoint"`
		Token     string   `json:"token_endpoint"`
		Methods   []string `json:"token_endpoint_auth_methods_supported"`
	}
	if err := found.Claims(&document); err != nil {
		return nil, err
	}
	// An address with a query is one that some issuers have; no secret goes there but by the browser.
	for name, address := range map[string]string{"jwks_uri": document.Keys, "authorization_endpoint": withoutQuery(document.Authorize), "token_endpoint": withoutQuery(document.Token)} {
		if err := access.Secure(address); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
	}
	// Without a list it is the header (OpenID Connect Discovery section 3).
	basic := len(document.Methods) == 0 || slices.Contains(document.Methods, "client_secret_basic")
	return &discovered{authorize: document.Authorize, token: document.Token, basic: basic, keys: oidc.NewRemoteKeySet(p.context(context.Background()), document.Keys)}, nil
}

// bounded answers.
type bounded struct{ base http.RoundTripper }

// RoundTrip implements http.RoundTripper.
func (b bounded) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := b.base.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	resp.Body = &limited{Reader: io.LimitReader(resp.Body, maxAnswer+1), body: resp.Body}
	return resp, nil
}

type limited struct {
	io.Reader
	body io.Closer
	n    int
}

// Read implements io.Reader.
func (l *limited) Read(b []byte) (int, error) {
	n, err := l.Reader.Read(b)
	if l.n += n; l.n > maxAnswer {
		return n, errors.New("the issuer answers with too much")
	}
	return n, err
}

// Close implements io.Closer.
func (l *limited) Close() error { return l.body.Close() }

func withoutQuery(address string) string {
	u, err := url.Parse(address)
	if err != nil {
		return address
	}
	u.RawQuery = ""
	return u.String()
}
