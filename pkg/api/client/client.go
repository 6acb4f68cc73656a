// Package client changes endpoints through the API of a control plane: the other side of pkg/api, as a
// cluster.Editor. It links no server, no Kubernetes and no OpenID Connect library.
package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/sluice-dev/sluice/pkg/access"
	"github.com/sluice-dev/sluice/pkg/api/wire"
	"github.com/sluice-dev/sluice/pkg/cluster"
	"github.com/sluice-dev/sluice/rollout"
)

// Options of New.
type Options struct {
	// URL of the server, such as https://sluice.example. Plain http is for loopback only.
	URL string
	// Token gives a new OIDC token, made for the audience that the server wants, each time it is
	// called: every token is taken once.
	Token func(context.Context) (string, error)
	// HTTP sends requests; one with a timeout of 30 s unless set. Redirects are not followed.
	HTTP *http.Client
	// UserAgent, such as sluice-action/1.2.3.
	UserAgent string
	// Pause before a request is tried again, which doubles with each try; 200 ms unless set.
	Pause  time.Duration
	Logger *slog.Logger
}

// Bounds of the client.
const (
	// tries of one request, against servers that are away for a moment, and of one edit against others.
	tries      = 7
	editTries  = 20
	firstPause = 200 * time.Millisecond
	lastPause  = 5 * time.Second
	// longestRetryAfter is how long a server may ask to be left alone.
	longestRetryAfter = 30 * time.Second
	maxAnswer         = 8 << 20
	// pollWait is how long a Get that comes soon after another waits for a change; soon is within pollWithin.
	pollWait   = 2 * time.Second
	pollWithin = 3 * time.Second
	// renewBefore a session's end another one is begun.
	renewBefore = time.Minute
)

// Client of one server. Safe for concurrent use.
type Client struct {
	o    Options
	base string
	http *http.Client
	log  *slog.Logger

	// exchange is held while a session is begun; mu guards what follows.
	exchange sync.Mutex
	mu       sync.Mutex
	session  string
	until    time.Time
	seen     map[rollout.Key]seen
}

// seen is what a Get gave last.
type seen struct {
	at       time.Time
	endpoint *rollout.Endpoint
}

var _ cluster.Editor = (*Client)(nil)

// New asks the server nothing yet.
func New(o Options) (*Client, error) {
	if err := access.Secure(o.URL); err != nil {
		return nil, &rollout.Error{Reason: rollout.ReasonInvalid, Field: "server", Message: fmt.Sprintf("this is not the address of a server: %v", err), Hint: "give it as https://HOST"}
	}
	if o.Token == nil {
		return nil, errors.New("make a client of the API: it needs tokens")
	}
	if o.Pause == 0 {
		o.Pause = firstPause
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	c := http.Client{Timeout: 30 * time.Second}
	if o.HTTP != nil {
		c = *o.HTTP
	}
	c.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse } // a token is for one server
	return &Client{o: o, base: strings.TrimSuffix(strings.TrimRight(o.URL, "/"), wire.Root), http: &c, log: o.Logger, seen: map[rollout.Key]seen{}}, nil
}

// Get implements cluster.Editor. One that comes soon after another, as of someone who waits for
// something, takes until there is news, but not longer than pollWait.
func (c *Client) Get(ctx context.Context, key rollout.Key) (*rollout.Endpoint, error) {
	c.mu.Lock()
	last := c.seen[key]
	c.mu.Unlock()
	path, header := wire.Endpoint(key), http.Header{}
	if last.endpoint != nil && time.Since(last.at) < pollWithin {
		path += fmt.Sprintf("?wait=%d", int(pollWait/time.Second))
		header.Set("If-None-Match", wire.Tag(last.endpoint.Metadata))
	}
	a, err := c.call(ctx, request{method: http.MethodGet, path: path, header: header})
	if err != nil {
		return nil, fmt.Errorf("get endpoint %s: %w", key, err)
	}
	var e *rollout.Endpoint
	switch {
	case a.code == http.StatusNotModified && last.endpoint != nil:
		e = last.endpoint
	case a.code == http.StatusNotFound && rollout.ReasonOf(a.err()) == rollout.ReasonUnknownEndpoint:
		return nil, fmt.Errorf("get endpoint %s: %w", key, cluster.ErrNotFound)
	default:
		e = new(rollout.Endpoint)
		if err := a.into(e); err != nil {
			return nil, fmt.Errorf("get endpoint %s: %w", key, err)
		}
	}
	c.mu.Lock()
	c.seen[key] = seen{at: time.Now(), endpoint: e}
	c.mu.Unlock()
	return e.Clone(), nil
}

// List the namespace's endpoints that the job may see.
func (c *Client) List(ctx context.Context, namespace string) ([]*rollout.Endpoint, error) {
	a, err := c.call(ctx, request{method: http.MethodGet, path: wire.Endpoints(namespace)})
	var l wire.List
	if err == nil {
		err = a.into(&l)
	}
	if err != nil {
		return nil, fmt.Errorf("list endpoints of %s: %w", namespace, err)
	}
	return l.Items, nil
}

// Edit implements cluster.Editor. Who makes the change, and when, is for the server to say: of req it
// takes ID, Reason, Message and Force.
func (c *Client) Edit(ctx context.Context, key rollout.Key, req rollout.Request, change func(*rollout.Endpoint) (rollout.Op, error)) (*rollout.Endpoint, rollout.Outcome, error) {
	fail := func(err error) (*rollout.Endpoint, rollout.Outcome, error) { return nil, rollout.Outcome{}, err }
	if req.ID == "" {
		return fail(&rollout.Error{Reason: rollout.ReasonInvalid, Field: "id", Message: "a change without id cannot be made idempotent", Hint: "give the change an id"})
	}
	var last error
	resent := false
	for try := range editTries {
		if err := pause(ctx, time.Duration(try)*c.o.Pause/10); err != nil {
			return fail(err)
		}
		e, err := c.fresh(ctx, key)
		missing := errors.Is(err, cluster.ErrNotFound)
		if missing {
			e = &rollout.Endpoint{APIVersion: rollout.APIVersion, Kind: rollout.Kind, Metadata: rollout.Metadata{Namespace: key.Namespace, Name: key.Name}}
		} else if err != nil {
			return fail(fmt.Errorf("read endpoint %s: %w", key, err))
		}
		op, err := change(e)
		if err != nil {
			return fail(err)
		}
		if _, deploy := op.(rollout.Deploy); missing && !deploy {
			return fail(cluster.UnknownEndpoint(key))
		}
		r, err := encode(key, req, op)
		if err != nil {
			return fail(err)
		}
		r.header = http.Header{wire.IdempotencyKey: {req.ID}}
		if missing {
			r.header.Set("If-None-Match", "*")
		} else {
			r.header.Set("If-Match", wire.Tag(e.Metadata))
		}
		a, err := c.call(ctx, r)
		if err != nil {
			return fail(fmt.Errorf("write endpoint %s: %w", key, err))
		}
		resent = resent || a.resent
		var result wire.Result
		err = a.into(&result)
		switch {
		case err == nil && result.Endpoint == nil:
			return fail(fmt.Errorf("write endpoint %s: the server's answer has no endpoint", key))
		case err == nil:
			out := rollout.Outcome{Changed: result.Outcome.Changed, Applied: result.Outcome.Applied, Message: result.Outcome.Message}
			if result.Outcome.Known && resent { // the answer to what this very call did was lost
				out = rollout.Outcome{Changed: true, Applied: true, Message: op.String() + ": done"}
			}
			return result.Endpoint, out, nil
		case a.code != http.StatusPreconditionFailed && a.code != http.StatusConflict:
			return fail(err)
		}
		last = err
	}
	return fail(&rollout.Error{
		Reason: rollout.ReasonConflict, Field: "endpoint", Message: fmt.Sprintf("%s was changed by others %d times in a row: %v", key, editTries, last), Hint: "try again",
	})
}

// fresh is a Get that does not wait.
func (c *Client) fresh(ctx context.Context, key rollout.Key) (*rollout.Endpoint, error) {
	c.mu.Lock()
	delete(c.seen, key)
	c.mu.Unlock()
	return c.Get(ctx, key)
}

// Delete implements cluster.Editor.
func (c *Client) Delete(ctx context.Context, key rollout.Key, resourceVersion string) error {
	path := wire.Endpoint(key)
	if resourceVersion != "" {
		path += "?resourceVersion=" + url.QueryEscape(resourceVersion)
	}
	a, err := c.call(ctx, request{method: http.MethodDelete, path: path})
	switch {
	case err != nil:
	case a.code == http.StatusNotFound && a.resent: // by the try whose answer was lost
	case a.code == http.StatusNotFound:
		err = cluster.ErrNotFound
	case a.code == http.StatusPreconditionFailed:
		err = cluster.ErrConflict
	case a.code/100 != 2:
		err = a.err()
	}
	if err != nil {
		return fmt.Errorf("delete endpoint %s: %w", key, err)
	}
	return nil
}

// encode a transition.
func encode(key rollout.Key, req rollout.Request, op rollout.Op) (request, error) {
	if req.Evidence != "" {
		return request{}, &rollout.Error{Reason: rollout.ReasonInvalid, Field: "evidence", Message: "evidence is for the control role to give", Hint: "say it in the message"}
	}
	note := wire.Note{ReasonCode: req.Reason, Message: req.Message, Force: req.Force}
	if len(note.Message) > wire.MaxMessage {
		note.Message = strings.ToValidUTF8(note.Message[:wire.MaxMessage-4], "") + " …"
	}
	post := func(path string, body any) (request, error) {
		return request{method: http.MethodPost, path: path, body: body}, nil
	}
	switch op := op.(type) {
	case rollout.Deploy:
		v := op.Version
		return post(wire.Versions(key), wire.Deploy{Strategy: op.Strategy, Repositories: op.Repositories, Note: note, Version: wire.NewVersion{
			Name: v.Name, Image: v.Image, Source: v.Source, Description: v.Description, Tags: v.Tags, Properties: v.Properties, Settings: v.Settings,
		}})
	case rollout.Update:
		b := wire.Update{Percent: op.Percent, Default: op.Default, Settings: op.Settings, Note: note}
		switch {
		case op.Type == nil:
		case *op.Type == rollout.Untyped:
			b.Type = wire.Untyped
		default:
			b.Type = string(*op.Type)
		}
		return request{method: http.MethodPatch, path: wire.Version(key, op.Version), body: b}, nil
	case rollout.Shift:
		return post(wire.Version(key, op.Version)+":shift", wire.Share{Percent: &op.Percent, Note: note})
	case rollout.Prepare:
		return post(wire.Version(key, op.Version)+":prepare", wire.Share{Percent: &op.Percent, Note: note})
	case rollout.Promote:
		return post(wire.Version(key, op.Version)+":promote", note)
	case rollout.Rollback:
		return post(wire.Version(key, op.Version)+":rollback", note)
	case rollout.Retire:
		return post(wire.Version(key, op.Version)+":retire", note)
	case rollout.Hold:
		return post(wire.Endpoint(key)+":hold", wire.Mark{Reason: op.Reason, Note: note})
	case rollout.Resume:
		return post(wire.Endpoint(key)+":resume", note)
	case rollout.Lock:
		return post(wire.Endpoint(key)+":lock", wire.Mark{Reason: op.Reason, Note: note})
	case rollout.Unlock:
		return post(wire.Endpoint(key)+":unlock", note)
	case rollout.Delete:
		q := url.Values{}
		for name, value := range map[string]string{"newDefault": op.NewDefault, "message": note.Message} {
			if value != "" {
				q.Set(name, value)
			}
		}
		path := wire.Version(key, op.Version)
		if len(q) > 0 {
			path += "?" + q.Encode()
		}
		return request{method: http.MethodDelete, path: path}, nil
	}
	return request{}, &rollout.Error{
		Reason: rollout.ReasonDenied, Field: "command", Message: fmt.Sprintf("the API does not carry out: %s", op), Hint: "do it with access to the cluster: who may act on an endpoint, and how its clients prove who they are, is not for workflows to say",
	}
}

type request struct {
	method, path string
	header       http.Header
	body         any
}

// answer of the server, whatever its code.
type answer struct {
	code   int
	header http.Header
	body   []byte
	// resent says that an earlier try of the same request may have been carried out.
	resent bool
}

// into reads what was asked for, or gives the error that came instead.
func (a *answer) into(v any) error {
	if a.code/100 != 2 {
		return a.err()
	}
	if err := json.Unmarshal(a.body, v); err != nil {
		return fmt.Errorf("read the server's answer: %w", err)
	}
	return nil
}

// err is the answer as *rollout.Error values; one that is not the API's, such as that of a proxy, is named by its code.
func (a *answer) err() error {
	var e wire.Error
	if err := json.Unmarshal(a.body, &e); err != nil || e.Reason == "" {
		return &rollout.Error{
			Reason: rollout.ReasonUnavailable, Field: "server", Message: fmt.Sprintf("the server answers %d %s, and not as Sluice's API does", a.code, http.StatusText(a.code)),
			Hint: "check the server's address, and that its API is switched on (docs/api.md)",
		}
	}
	return rollout.Joined(append([]*rollout.Error{&e.Error}, e.More...))
}

// call sends a request in a session, and again while the server is away or busy: what it does is done once by
// its idempotency key. A session that the server does not know is replaced once.
func (c *Client) call(ctx context.Context, r request) (*answer, error) {
	renewed, resent := false, false
	return c.persist(ctx, func() (*answer, error) {
		for {
			session, err := c.open(ctx)
			if err != nil {
				return nil, final{err}
			}
			a, err := c.send(ctx, r, session)
			if err != nil {
				resent = true
				return nil, err
			}
			a.resent = resent
			resent = resent || a.code >= http.StatusInternalServerError
			if a.code != http.StatusUnauthorized || renewed {
				return a, nil
			}
			renewed = true
			c.drop(session)
		}
	})
}

// final is an error that trying again does not mend.
type final struct{ error }

func (f final) Unwrap() error { return f.error }

// persist tries again after connections that fail, 429 and 5xx, with pauses that grow.
func (c *Client) persist(ctx context.Context, try func() (*answer, error)) (*answer, error) {
	for n := 0; ; n++ {
		a, err := try()
		if f := (final{}); errors.As(err, &f) {
			return nil, f.error
		}
		if err == nil && a.code != http.StatusTooManyRequests && a.code < http.StatusInternalServerError {
			return a, nil
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if n+1 >= tries {
			if err == nil {
				err = a.err()
			} else {
				err = errors.Join(&rollout.Error{Reason: rollout.ReasonUnavailable, Field: "server", Message: "the server cannot be reached", Hint: "check its address and that it runs"}, err)
			}
			return nil, fmt.Errorf("after %d tries: %w", tries, err)
		}
		wait := min(c.o.Pause<<n, lastPause)
		wait = wait/2 + rand.N(wait) // apart from others that wait for the same
		if a != nil {
			if s, bad := strconv.Atoi(a.header.Get("Retry-After")); bad == nil && s > 0 {
				wait = max(wait, min(time.Duration(s)*time.Second, longestRetryAfter))
			}
			c.log.DebugContext(ctx, "the API is tried again", "status", a.code, "in", wait)
		} else {
			c.log.DebugContext(ctx, "the API is tried again", "error", err, "in", wait)
		}
		if err := pause(ctx, wait); err != nil {
			return nil, err
		}
	}
}

func pause(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// open the session that there is, or begin one.
func (c *Client) open(ctx context.Context) (string, error) {
	c.exchange.Lock()
	defer c.exchange.Unlock()
	c.mu.Lock()
	session, until := c.session, c.until
	c.mu.Unlock()
	if session != "" && time.Until(until) > renewBefore {
		return session, nil
	}
	a, err := c.persist(ctx, func() (*answer, error) {
		token, err := c.o.Token(ctx) // a new one for each try: the server may have taken the last
		if err != nil {
			return nil, final{fmt.Errorf("get an OIDC token: %w", err)}
		}
		return c.send(ctx, request{method: http.MethodPost, path: wire.TokenPath}, token)
	})
	if err != nil {
		return "", fmt.Errorf("begin a session: %w", err)
	}
	var t wire.Token
	if err := a.into(&t); err != nil {
		return "", fmt.Errorf("begin a session: %w", err)
	}
	if t.AccessToken == "" {
		return "", errors.New("begin a session: the server's answer has no token")
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.session, c.until = t.AccessToken, time.Now().Add(time.Duration(t.ExpiresIn)*time.Second)
	return t.AccessToken, nil
}

// drop a session that the server does not know.
func (c *Client) drop(session string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.session == session {
		c.session = ""
	}
}

// send one request once.
func (c *Client) send(ctx context.Context, r request, token string) (*answer, error) {
	var body io.Reader
	if r.body != nil {
		b, err := json.Marshal(r.body)
		if err != nil {
			return nil, final{fmt.Errorf("write request: %w", err)}
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, r.method, c.base+r.path, body)
	if err != nil {
		return nil, final{fmt.Errorf("make request: %w", err)}
	}
	for name, values := range r.header {
		req.Header[http.CanonicalHeaderKey(name)] = values
	}
	req.Header.Set("Authorization", "Bearer "+token)
	req.Header.Set("Accept", "application/json")
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if c.o.UserAgent != "" {
		req.Header.Set("User-Agent", c.o.UserAgent)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }() // only read
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err != nil {
		return nil, fmt.Errorf("read answer: %w", err)
	}
	if len(b) > maxAnswer {
		return nil, final{fmt.Errorf("the server's answer has more than %d bytes", maxAnswer)}
	}
	return &answer{code: resp.StatusCode, header: resp.Header, body: b}, nil
}
