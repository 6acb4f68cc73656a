// Package api serves the API: what workflows do with endpoints from outside the cluster, without a lasting
// secret. A job of GitHub Actions exchanges its OIDC token, once, for a session, and acts by that on the
// endpoints that the server's policy and the endpoint's own list of repositories let it.
//
// It reads and writes endpoints and claims journal entries, as is all that a role which the internet reaches may do:
// no keys, no logs. pkg/api/client is the other side, pkg/api/wire what both say; docs/api.md is for users.
package api

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/distribution/reference"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/uuid"
	"github.com/gorilla/mux"

	"github.com/sluice-dev/sluice/pkg/access"
	"github.com/sluice-dev/sluice/pkg/access/oidc"
	"github.com/sluice-dev/sluice/pkg/access/policy"
	"github.com/sluice-dev/sluice/pkg/api/wire"
	"github.com/sluice-dev/sluice/pkg/cluster"
	"github.com/sluice-dev/sluice/rollout"
)

// Tokens are checked by an oidc.Verifier.
type Tokens interface {
	Verify(ctx context.Context, raw string) (oidc.Token, error)
	Audience() string
}

// Journal is what remembers the tokens that were used, over restarts and between servers.
type Journal interface {
	Claim(ctx context.Context, e cluster.Entry) (cluster.Entry, bool, error)
	Finish(ctx context.Context, name string, state cluster.EntryState, reason rollout.Reason, result string) error
}

// Options of New. All but the last three are required.
type Options struct {
	Store   cluster.Store
	Journal Journal
	Tokens  Tokens
	Policy  *Policy
	// SessionKey signs sessions: 32 random bytes or more, the same in each server behind one address. Without it
	// each process makes one of its own up: its sessions end with it, and clients begin new ones.
	SessionKey []byte
	Logger     *slog.Logger
	// Now is time.Now unless set.
	Now func() time.Time
}

// Bounds of the server. What comes from without a session has its own, so that nobody's flood of
// bad tokens keeps sessions out, and one address cannot take all of it. Nobody's body is waited for
// before it is known whose it is.
const (
	maxTokenRequests   = 64
	maxAddressTokens   = 48
	bodyTimeout        = 3 * time.Second
	maxRequests        = 256
	maxRepositoryCalls = 64
	requestTimeout     = 15 * time.Second
	waitStep           = 100 * time.Millisecond
)

type api struct {
	o        Options
	log      *slog.Logger
	sessions *sessions
	exchange *crowd[string]
	calls    *crowd[int64]
}

// New is the API as a handler for all paths below wire.Root.
func New(o Options) (http.Handler, error) {
	if o.Store == nil || o.Journal == nil || o.Tokens == nil || o.Policy == nil {
		return nil, errors.New("make the API: it needs store, journal, tokens and policy")
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	s, err := newSessions(o.SessionKey, o.Tokens.Audience(), o.Now)
	if err != nil {
		return nil, err
	}
	a := &api{o: o, log: o.Logger, sessions: s, exchange: newCrowd[string](maxTokenRequests, maxAddressTokens), calls: newCrowd[int64](maxRequests, maxRepositoryCalls)}
	r := mux.NewRouter()
	r.NotFoundHandler = a.handler("", func(*call) error {
		return &status{http.StatusNotFound, invalid("path", wire.Document+" lists what there is", "there is nothing at this path")}
	})
	r.MethodNotAllowedHandler = a.handler("", func(*call) error {
		return &status{http.StatusMethodNotAllowed, invalid("method", wire.Document+" lists what there is", "the method is not for this path")}
	})
	r.HandleFunc(wire.Document, document).Methods(http.MethodGet, http.MethodHead)
	r.Handle(wire.TokenPath, a.handler("token", a.token)).Methods(http.MethodPost)
	const (
		list     = wire.Root + "/namespaces/{namespace}/endpoints"
		endpoint = list + "/{endpoint:[^/:]+}"
		versions = endpoint + "/versions"
		version  = versions + "/{version:[^/:]+}"
	)
	for _, route := range []struct {
		method, path string
		command      Command
		do           func(*call) error
	}{
		{http.MethodGet, list, CommandRead, a.list},
		{http.MethodGet, endpoint, CommandRead, a.get},
		{http.MethodDelete, endpoint, CommandDeleteEndpoint, a.deleteEndpoint},
		{http.MethodPost, endpoint + ":hold", CommandHold, a.mark(func(reason string) rollout.Op { return rollout.Hold{Reason: reason} })},
		{http.MethodPost, endpoint + ":resume", CommandResume, a.simple(func(string) rollout.Op { return rollout.Resume{} })},
		{http.MethodPost, endpoint + ":lock", CommandLock, a.mark(func(reason string) rollout.Op { return rollout.Lock{Reason: reason} })},
		{http.MethodPost, endpoint + ":unlock", CommandUnlock, a.simple(func(string) rollout.Op { return rollout.Unlock{} })},
		{http.MethodPost, versions, CommandDeploy, a.deploy},
		{http.MethodPatch, version, CommandUpdate, a.update},
		{http.MethodDelete, version, CommandDelete, a.deleteVersion},
		{http.MethodPost, version + ":promote", CommandPromote, a.simple(func(v string) rollout.Op { return rollout.Promote{Version: v} })},
		{http.MethodPost, version + ":rollback", CommandRollback, a.simple(func(v string) rollout.Op { return rollout.Rollback{Version: v} })},
		{http.MethodPost, version + ":retire", CommandRetire, a.simple(func(v string) rollout.Op { return rollout.Retire{Version: v} })},
		{http.MethodPost, version + ":shift", CommandShift, a.share(func(v string, p rollout.Percent) rollout.Op { return rollout.Shift{Version: v, Percent: p} })},
		{http.MethodPost, version + ":prepare", CommandPrepare, a.share(func(v string, p rollout.Percent) rollout.Op { return rollout.Prepare{Version: v, Percent: p} })},
	} {
		r.Handle(route.path, a.handler(route.command, a.authenticated(route.do))).Methods(route.method)
	}
	return r, nil
}

// Off is what answers where the API is not switched on: nothing is permitted by default.
func Off() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != wire.Root && !strings.HasPrefix(r.URL.Path, wire.Root+"/") {
			unread(w, r)
			writeError(w, &status{http.StatusNotFound, invalid("path", "webhooks are taken at /webhooks/github", "there is nothing at this path")})
			return
		}
		unread(w, r)
		writeError(w, &status{http.StatusNotFound, denied("", "give the server a policy (--api-policy) and an audience (--api-audience); docs/api.md says how", "the API is switched off")})
	})
}

// unread ends the connection with the answer to a request with a body, which the server would otherwise wait for.
func unread(w http.ResponseWriter, r *http.Request) {
	if r.ContentLength != 0 {
		w.Header().Set("Connection", "close")
		_ = http.NewResponseController(w).SetReadDeadline(time.Now()) // what has no deadlines is no connection
	}
}

// call is one request and what is to be said of it in the log.
type call struct {
	w       http.ResponseWriter
	r       *http.Request
	command Command
	id      *oidc.Identity
	key     rollout.Key
	version string
	// change is its idempotency key as it is recorded; result is what came of it.
	change, result string
	// admitted says that a rule is for the job.
	admitted bool
	// deadline sets until when the client may take to send the rest of its request; nil if there is none.
	deadline func(time.Time)
}

// patience with the client, for what it has yet to send.
func (c *call) patience(d time.Duration) {
	if c.deadline != nil {
		c.deadline(time.Now().Add(d))
	}
}

// actor is whom the record names: GitHub's user, for whom the run of a workflow acts.
func (c *call) actor() string {
	return fmt.Sprintf("github:%s@%s#%d", c.id.Actor, c.id.Repository, c.id.RunID)
}

// handler answers with an error as JSON, and writes each decision to the log. Reads that succeed are there with debug only.
func (a *api) handler(command Command, do func(*call) error) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), requestTimeout)
		defer cancel()
		vars := mux.Vars(r)
		c := &call{
			w: w, r: r.WithContext(ctx), command: command, version: vars["version"],
			key: rollout.Key{Namespace: vars["namespace"], Name: vars["endpoint"]},
		}
		// Without a body there is nothing to wait for, and a deadline would end the request's context.
		if r.ContentLength != 0 {
			c.deadline = func(t time.Time) { _ = http.NewResponseController(w).SetReadDeadline(t) } // what has no deadlines is no connection
		}
		c.patience(bodyTimeout)
		w.Header().Set("Cache-Control", "no-store")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		r.Body = http.MaxBytesReader(w, r.Body, wire.MaxBody)
		c.r.Body = r.Body
		err := do(c)
		a.audit(ctx, c, err)
		if err != nil {
			if !c.admitted {
				unread(w, r)
			}
			writeError(w, err)
		}
	})
}

func (a *api) audit(ctx context.Context, c *call, err error) {
	if c.command == "" {
		return // nothing was asked for that there is
	}
	level := slog.LevelInfo
	attrs := []slog.Attr{slog.String("command", string(c.command))}
	if err == nil && c.command == CommandRead {
		level = slog.LevelDebug
	}
	if c.id != nil {
		attrs = append(attrs, slog.String("actor", c.actor()), slog.Int64("repositoryId", c.id.RepositoryID), slog.String("event", c.id.Event),
			slog.String("ref", c.id.Ref), slog.String("environment", c.id.Environment), slog.Int("attempt", c.id.RunAttempt))
	}
	if c.key.Namespace != "" {
		attrs = append(attrs, slog.String("namespace", c.key.Namespace), slog.String("endpoint", c.key.Name))
	}
	if c.version != "" {
		attrs = append(attrs, slog.String("version", c.version))
	}
	if c.change != "" {
		attrs = append(attrs, slog.String("change", c.change))
	}
	if err != nil {
		code, body := answerTo(err)
		attrs = append(attrs, slog.Int("status", code), slog.String("reason", string(body.Reason)), slog.String("error", err.Error()))
		if code >= http.StatusInternalServerError {
			level = slog.LevelError
		}
		a.log.LogAttrs(ctx, level, "api refused", attrs...)
		return
	}
	a.log.LogAttrs(ctx, level, "api", append(attrs, slog.String("result", c.result))...)
}

// authenticated is for what needs a session.
func (a *api) authenticated(do func(*call) error) func(*call) error {
	return func(c *call) error {
		raw := access.Bearer(c.r.Header.Get("Authorization"))
		if raw == "" {
			return &rollout.Error{Reason: rollout.ReasonUnauthorized, Field: "Authorization", Message: "there is no session", Hint: "exchange an OIDC token for one at " + wire.TokenPath + " and send it as `Authorization: Bearer TOKEN`"}
		}
		id, err := a.sessions.open(raw)
		if err != nil {
			return err
		}
		c.id = id
		// Asked again each time: a rule that is gone ends what it permitted.
		if err := a.o.Policy.Admit(id); err != nil {
			return err
		}
		c.admitted = true
		c.patience(requestTimeout)
		if !a.calls.enter(id.RepositoryID) {
			return busy()
		}
		defer a.calls.leave(id.RepositoryID)
		if err := cluster.ValidateNamespace("namespace", c.key.Namespace); err != nil {
			return &status{http.StatusBadRequest, err}
		}
		if c.key.Name != "" {
			if err := cluster.ValidateKey(c.key); err != nil {
				return &status{http.StatusBadRequest, err}
			}
		}
		if c.version != "" {
			if err := rollout.ValidateName("version", "a version", c.version); err != nil {
				return &status{http.StatusBadRequest, err}
			}
		}
		return do(c)
	}
}

func busy() error {
	return &rollout.Error{Reason: rollout.ReasonTooManyRequests, Message: "there are too many requests at a time", Hint: "try again in a moment"}
}

// token exchanges an OIDC token for a session. The token is claimed only once a rule is for its job, so
// that strangers, who can have tokens for any audience, write nothing; nor is a body of theirs read.
func (a *api) token(c *call) error {
	t, err := a.verify(c)
	if err != nil {
		return err
	}
	c.id = &t.Identity
	if err := a.o.Policy.Admit(&t.Identity); err != nil {
		return err
	}
	c.admitted = true
	if !a.calls.enter(t.RepositoryID) {
		return busy()
	}
	defer a.calls.leave(t.RepositoryID)
	c.patience(bodyTimeout)
	var req wire.TokenRequest
	if err := readBody(c.r, &req); err != nil {
		return err
	}
	c.patience(requestTimeout)
	ttl := MaxSession
	if req.TTLSeconds != 0 {
		ttl = time.Duration(req.TTLSeconds) * time.Second
		if req.TTLSeconds < 0 || req.TTLSeconds > int(MaxSession/time.Second) || ttl < minSession {
			return &status{http.StatusBadRequest, invalid("ttlSeconds", "leave it out for the longest", "a session lasts %d to %d seconds", int(minSession/time.Second), int(MaxSession/time.Second))}
		}
	}
	if err := a.once(c, t); err != nil {
		return err
	}
	session, err := a.sessions.issue(t, a.o.Tokens.Audience(), ttl)
	if err != nil {
		return fmt.Errorf("sign session: %w", err)
	}
	c.result = "session for " + ttl.String()
	writeJSON(c.w, http.StatusOK, wire.Token{AccessToken: session, TokenType: "Bearer", ExpiresIn: int(ttl / time.Second)})
	return nil
}

// verify the token of a request, with few others at a time.
func (a *api) verify(c *call) (oidc.Token, error) {
	raw := access.Bearer(c.r.Header.Get("Authorization"))
	address, _, err := net.SplitHostPort(c.r.RemoteAddr)
	if err != nil {
		address = c.r.RemoteAddr
	}
	if !a.exchange.enter(address) {
		return oidc.Token{}, busy()
	}
	defer a.exchange.leave(address)
	return a.o.Tokens.Verify(c.r.Context(), raw)
}

// once refuses a token that was used before. The journal keeps entries for weeks and tokens are good for minutes.
func (a *api) once(c *call, t oidc.Token) error {
	sum := sha256.Sum256([]byte(t.Issuer + "\x00" + t.ID))
	name := "t-" + hex.EncodeToString(sum[:20])
	_, won, err := a.o.Journal.Claim(c.r.Context(), cluster.Entry{Name: name, Command: "api token", Actor: c.actor(), At: a.o.Now().UTC()})
	if err != nil {
		return fmt.Errorf("claim token: %w", err)
	}
	if !won {
		return &rollout.Error{Reason: rollout.ReasonTokenReplayed, Field: "token", Message: "the token was used before", Hint: "ask for a new token each time"}
	}
	// An entry that stays pending is claimed all the same.
	if err := a.o.Journal.Finish(c.r.Context(), name, cluster.EntryDone, rollout.ReasonRequested, "session"); err != nil {
		a.log.WarnContext(c.r.Context(), "journal entry of a token stays pending", "name", name, "error", err)
	}
	return nil
}

// bound refuses what is not for the repository to see.
func bound(id *oidc.Identity, e *rollout.Endpoint) error {
	if slices.Contains(e.Spec.Repositories, id.RepositoryID) {
		return nil
	}
	return &rollout.Error{
		Reason: rollout.ReasonNotBound, Field: "spec.repositories", Message: fmt.Sprintf("repository %d is not bound to endpoint %s", id.RepositoryID, e.Key()),
		Hint: fmt.Sprintf("bind it with `sluice update %s --bind-repository %d`, by someone with access to the cluster", e.Metadata.Name, id.RepositoryID),
	}
}

func (a *api) list(c *call) error {
	all, err := a.o.Store.List(c.r.Context())
	if err != nil {
		return err
	}
	out := wire.List{Items: []*rollout.Endpoint{}}
	for _, e := range all {
		if e.Metadata.Namespace == c.key.Namespace && a.o.Policy.permit(c.id, e.Key(), []Command{CommandRead}, nil) == nil && bound(c.id, e) == nil {
			out.Items = append(out.Items, e)
		}
	}
	c.result = fmt.Sprintf("%d endpoints", len(out.Items))
	writeJSON(c.w, http.StatusOK, out)
	return nil
}

// read an endpoint that the job may see.
func (a *api) read(c *call, command Command) (*rollout.Endpoint, error) {
	if err := a.o.Policy.permit(c.id, c.key, []Command{command}, nil); err != nil {
		return nil, err
	}
	e, err := a.o.Store.Get(c.r.Context(), c.key)
	if errors.Is(err, cluster.ErrNotFound) {
		return nil, cluster.UnknownEndpoint(c.key)
	}
	if err != nil {
		return nil, err
	}
	return e, bound(c.id, e)
}

// get an endpoint; with If-None-Match and ?wait, once it is another than the client has.
func (a *api) get(c *call) error {
	have := c.r.Header.Get("If-None-Match")
	wait := 0
	if s := c.r.URL.Query().Get("wait"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil || n < 0 || n > wire.MaxWaitSeconds {
			return &status{http.StatusBadRequest, invalid("wait", "leave it out to be answered at once", "wait is a number of seconds from 0 to %d", wire.MaxWaitSeconds)}
		}
		wait = n
	}
	e, err := a.read(c, CommandRead)
	for end := time.Now().Add(time.Duration(wait) * time.Second); err == nil && wire.Tag(e.Metadata) == have && time.Now().Before(end); {
		select {
		case <-c.r.Context().Done():
			return c.r.Context().Err()
		case <-time.After(waitStep):
		}
		e, err = a.read(c, CommandRead)
	}
	if err != nil {
		return err
	}
	c.w.Header().Set("ETag", wire.Tag(e.Metadata))
	if wire.Tag(e.Metadata) == have {
		c.w.WriteHeader(http.StatusNotModified)
		return nil
	}
	writeJSON(c.w, http.StatusOK, e)
	return nil
}

func (a *api) deleteEndpoint(c *call) error {
	e, err := a.read(c, CommandDeleteEndpoint)
	if err != nil {
		return err
	}
	if l := e.Spec.Lock; l != nil {
		return &rollout.Error{Reason: rollout.ReasonLocked, Field: "spec.lock", Message: "the endpoint is locked by " + l.Actor, Hint: "unlock it first"}
	}
	if err := precondition(c.r, e, true); err != nil {
		return err
	}
	// The status may have changed since, or not: with resourceVersion, as Kubernetes has it, it may not.
	version := c.r.URL.Query().Get("resourceVersion")
	if version == "" && c.r.Header.Get("If-Match") != "" {
		version = e.Metadata.ResourceVersion
	}
	switch err := a.o.Store.Delete(c.r.Context(), c.key, version); {
	case errors.Is(err, cluster.ErrConflict):
		return changedMeanwhile(c.key)
	case errors.Is(err, cluster.ErrNotFound):
		return cluster.UnknownEndpoint(c.key)
	case err != nil:
		return err
	}
	c.result = "deleted"
	c.w.WriteHeader(http.StatusNoContent)
	return nil
}

func changedMeanwhile(key rollout.Key) error {
	return &status{http.StatusPreconditionFailed, &rollout.Error{
		Reason: rollout.ReasonConflict, Field: "If-Match", Message: fmt.Sprintf("%s is not as it was read", key), Hint: "read it and try again",
	}}
}

// precondition of RFC 9110 section 13.1, for an endpoint that is there or not.
func precondition(r *http.Request, e *rollout.Endpoint, there bool) error {
	if want := r.Header.Get("If-Match"); want != "" && (!there || want != "*" && !wire.SameSpec(want, wire.Tag(e.Metadata))) {
		return changedMeanwhile(e.Key())
	}
	if r.Header.Get("If-None-Match") == "*" && there {
		return changedMeanwhile(e.Key())
	}
	return nil
}

// keys that changes are idempotent by.
var changeID = regexp.MustCompile(`^[A-Za-z0-9._-]{1,100}$`)

// reasons that a workflow may give: that it was asked to, or how a version failed. What the engine says is the engine's to say.
var reasons = []rollout.Reason{
	"", rollout.ReasonRequested, rollout.ReasonInterrupted, rollout.ReasonSuperseded, rollout.ReasonInitFailed, rollout.ReasonCrashed, rollout.ReasonImageMissing,
	rollout.ReasonProbeFailed, rollout.ReasonSmokeFailed, rollout.ReasonReadyTimeout, rollout.ReasonNotEnoughReady, rollout.ReasonInternal,
	rollout.ReasonClusterFull, rollout.ReasonPodsRefused,
}

// request is who changes what and why. Its id has the repository's in it: nobody can use up that of
// someone else's change, or of a comment's.
func (c *call) request(note wire.Note, now time.Time) (rollout.Request, error) {
	key := c.r.Header.Get(wire.IdempotencyKey)
	if key == "" {
		key = uuid.NewString()
	}
	switch {
	case !changeID.MatchString(key):
		return rollout.Request{}, invalid(wire.IdempotencyKey, "use a UUID", "it has 1 to 100 letters, digits, dots, hyphens and underscores")
	case !slices.Contains(reasons, note.ReasonCode):
		return rollout.Request{}, invalid("reasonCode", "leave it out", "%q is not for a workflow to give", note.ReasonCode)
	case len(note.Message) > wire.MaxMessage:
		return rollout.Request{}, invalid("message", "say less", "it has more than %d bytes", wire.MaxMessage)
	}
	c.change = fmt.Sprintf("api-%d-%s", c.id.RepositoryID, key)
	return rollout.Request{ID: c.change, Actor: c.actor(), Reason: note.ReasonCode, Message: note.Message, At: now.UTC(), Force: note.Force}, nil
}

// change carries out a transition. asked are the commands of which one must be permitted; check is asked for each
// rule that does, with the endpoint as it is, which is empty if there is none.
func (a *api) change(c *call, note wire.Note, asked []Command, op rollout.Op, check func(*Rule, Command, *rollout.Endpoint) error) error {
	req, err := c.request(note, a.o.Now())
	if err != nil {
		return &status{http.StatusBadRequest, err}
	}
	known := false
	e, out, err := cluster.Edit(c.r.Context(), a.o.Store, c.key, req, func(e *rollout.Endpoint) (rollout.Op, error) {
		there := e.Metadata.UID != ""
		if known = there && e.Known(req.ID); known { // sent again: what it found then is not what it finds now
			return op, errors.Join(a.o.Policy.permit(c.id, c.key, []Command{CommandRead}, nil), bound(c.id, e))
		}
		err := a.o.Policy.permit(c.id, c.key, asked, func(r *Rule, command Command) error {
			if note.Force {
				if err := r.allows(ExtraForce, "force", "to do it without ready replicas"); err != nil {
					return err
				}
			}
			if check == nil {
				return nil
			}
			return check(r, command, e)
		})
		if err != nil {
			return nil, err
		}
		deploy, joins := op.(rollout.Deploy)
		switch {
		case !there && !joins:
			return nil, cluster.UnknownEndpoint(c.key)
		case there:
			if err := bound(c.id, e); err != nil {
				return nil, err
			}
		}
		if err := precondition(c.r, e, there); err != nil {
			return nil, err
		}
		if joins {
			if there && sameStrategy(deploy.Strategy, e.Spec.Strategy) {
				deploy.Strategy = nil // nor is its wording changed
			}
			deploy.Repositories = nil
			if !there {
				deploy.Repositories = []int64{c.id.RepositoryID}
			}
			return deploy, nil
		}
		return op, nil
	})
	if err != nil {
		return err
	}
	c.result = out.Message
	c.w.Header().Set("ETag", wire.Tag(e.Metadata))
	writeJSON(c.w, http.StatusOK, wire.Result{Endpoint: e, Outcome: wire.Outcome{Changed: out.Changed, Applied: out.Applied, Message: out.Message, Known: known}})
	return nil
}

func (a *api) deploy(c *call) error {
	var b wire.Deploy
	if err := readBody(c.r, &b); err != nil {
		return err
	}
	c.version = b.Version.Name
	source, err := sourceOf(c.id, b.Version.Source)
	if err != nil {
		return err
	}
	for _, id := range b.Repositories {
		if id != c.id.RepositoryID {
			return denied("repositories", "bind others with `sluice update ENDPOINT --bind-repository ID`", "an endpoint that a workflow makes is bound to its own repository alone")
		}
	}
	v := b.Version
	op := rollout.Deploy{Strategy: b.Strategy, Version: rollout.Version{
		Name: v.Name, Image: v.Image, Source: source, Description: v.Description, Tags: v.Tags, Properties: v.Properties, Settings: v.Settings,
	}}
	return a.change(c, b.Note, []Command{CommandDeploy}, op, func(r *Rule, _ Command, e *rollout.Endpoint) error {
		if err := r.image(v.Image); err != nil {
			return err
		}
		if e.Metadata.UID == "" {
			if err := r.allows(ExtraCreate, "endpoint", "to make an endpoint, and there is none of that name"); err != nil {
				return err
			}
		} else if !sameStrategy(b.Strategy, e.Spec.Strategy) && !slices.Contains(r.Allow, ExtraStrategy) {
			return denied("strategy", fmt.Sprintf("give the project the endpoint's own strategy or none, or have the server's policy allow %q", ExtraStrategy),
				"the deploy's strategy is another than the endpoint's, which moves all of its treatments, and nothing permits this job to change that")
		}
		return r.settings(&v.Settings)
	})
}

// image that a rule lets a job deploy. Patterns are held against the name as it is written, so it must be one that every reader
// reads alike: with its registry, and without parts such as .. or none at all.
func (r *Rule) image(image string) error {
	if len(r.Images) == 0 {
		return nil
	}
	_, err := name.NewDigest(image, name.StrictValidation)
	if err == nil {
		_, err = reference.Parse(image)
	}
	if err != nil {
		return invalid("version.image", "name it as REGISTRY/NAME@sha256:HEX", "%.300q is not an image by digest: %v", image, err)
	}
	if !policy.Fits(r.Images, image) {
		return denied("version.image", "push it where the server's policy permits", "nothing permits this job to deploy the image %s", image)
	}
	return nil
}

// sameStrategy says whether a deploy's strategy leaves the endpoint's as it is: there is none, or it says the same.
func sameStrategy(deploy, endpoint *rollout.Strategy) bool {
	if deploy == nil || endpoint == nil {
		return deploy == nil
	}
	return reflect.DeepEqual(deploy.Resolved(), endpoint.Resolved())
}

// settings that need an extra.
func (r *Rule) settings(s *rollout.Settings) error {
	if s == nil {
		return nil
	}
	if len(s.Template) > 0 {
		if err := r.allows(ExtraTemplate, "template", "to set the pods' template"); err != nil {
			return err
		}
	}
	for name, v := range s.EnvironmentVariables {
		if v.Secret != "" {
			if err := r.allows(ExtraSecrets, "environmentVariables."+name, "to use Secrets"); err != nil {
				return err
			}
		}
	}
	return nil
}

// share that a rule lets a job ask for.
func (r *Rule) share(p *rollout.Percent) error {
	if p != nil && r.MaxPercent != nil && *p > *r.MaxPercent {
		return denied("percent", "ask for less, or promote it", "this job may ask for %s per cent at most", *r.MaxPercent)
	}
	return nil
}

// pullRef is the ref of a workflow that a pull request started.
var pullRef = regexp.MustCompile(`^refs/pull/([1-9][0-9]{0,9})/(merge|head)$`)

// pullRequest that started the job's workflow, as its ref has it; 0 for any other job. pull_request_target has the base's ref.
func pullRequest(id *oidc.Identity) int {
	m := pullRef.FindStringSubmatch(id.Ref)
	if m == nil || !strings.HasPrefix(id.Event, "pull_request") {
		return 0
	}
	n, err := strconv.Atoi(m[1])
	if err != nil {
		return 0
	}
	return n
}

// sourceOf a version is what the token says, where it says it. On pull requests its commit is that of a trial merge: the
// head is for the job to say. No other job can speak for a pull request, whose treatment a new version replaces.
func sourceOf(id *oidc.Identity, s rollout.Source) (rollout.Source, error) {
	mismatch := func(field, format string, args ...any) error {
		return denied("version.source."+field, "leave it out, or deploy what the workflow runs on", format, args...)
	}
	if s.RepositoryID != 0 && s.RepositoryID != id.RepositoryID {
		return s, mismatch("repositoryId", "the token is of repository %d", id.RepositoryID)
	}
	if s.RunID != 0 && s.RunID != id.RunID {
		return s, mismatch("runId", "the token is of run %d", id.RunID)
	}
	switch pull := pullRequest(id); {
	case pull != 0:
		if s.PullRequest != 0 && s.PullRequest != pull {
			return s, mismatch("pullRequest", "the token is of pull request %d", pull)
		}
		s.PullRequest = pull
	case s.PullRequest != 0:
		return s, mismatch("pullRequest", "the token is of no pull request: %s on %q", id.Event, id.Ref)
	case !strings.HasPrefix(id.Event, "pull_request") && s.Commit != "" && s.Commit != id.SHA:
		return s, mismatch("commit", "the token is of commit %.40s", id.SHA)
	}
	s.RepositoryID, s.RunID = id.RepositoryID, id.RunID
	return s, nil
}

// its says whether a version is the job's own: of its pull request, or, of a job that none started, of its commit or run.
func its(id *oidc.Identity, v *rollout.Version) bool {
	s := v.Source
	if s.RepositoryID != id.RepositoryID {
		return false
	}
	if pull := pullRequest(id); pull != 0 || s.PullRequest != 0 {
		return s.PullRequest == pull
	}
	return s.RunID == id.RunID || s.Commit != "" && s.Commit == id.SHA
}

// own lets a deploy, without the command for it, act on a version of its own that has no part in traffic.
func own(id *oidc.Identity, e *rollout.Endpoint, version string) error {
	const hint = "have the server's policy permit more than deploy"
	v := e.Spec.Version(version)
	switch {
	case v == nil:
		return nil // the transition says so
	case v.Source.RepositoryID != id.RepositoryID:
		return denied("version", hint, "%s is not of this repository, and this job may only deploy", version)
	case !its(id, v):
		return denied("version", hint, "%s is not of this job's pull request, commit or run, and this job may only deploy", version)
	case e.Spec.Active(v):
		return denied("version", hint, "%s has a part in traffic, and this job may only deploy", version)
	}
	return nil
}

// fresh lets a deploy give a version its first part, or replicas for one: not what was in traffic and was taken out of it, and not beside
// another of the job's own, with which it would have more than it may ask for.
func fresh(id *oidc.Identity, e *rollout.Endpoint, version string) error {
	v := e.Spec.Version(version)
	if v == nil {
		return nil // the transition says so
	}
	out := func(c rollout.Change) bool {
		return !c.At.Before(v.CreatedAt) && (c.Action == rollout.Rollback{Version: version}.String() || c.Action == rollout.Retire{Version: version}.String())
	}
	if !v.RetiredAt.IsZero() || slices.ContainsFunc(e.Spec.Changes, out) || slices.ContainsFunc(e.Status.History, out) {
		return denied("version", "deploy it as a new version, or have the server's policy permit more than deploy", "%s was retired or rolled back, and this job may only deploy", version)
	}
	for i := range e.Spec.Versions {
		o := &e.Spec.Versions[i]
		if o.Name != version && its(id, o) && (o.Type == rollout.Treatment || o.Type == rollout.Untyped && o.TrafficPercentile > 0) {
			return denied("version", "retire that one, or have the server's policy permit more than deploy", "%s, of the same pull request or commit, has a part in traffic already, and this job may only deploy one at a time", o.Name)
		}
	}
	return nil
}

func (a *api) update(c *call) error {
	var b wire.Update
	if err := readBody(c.r, &b); err != nil {
		return err
	}
	op := rollout.Update{Version: c.version, Percent: b.Percent, Default: b.Default, Settings: b.Settings}
	switch role := rollout.Role(b.Type); role {
	case "":
	case rollout.Control, rollout.Treatment, rollout.Standby:
		op.Type = &role
	case wire.Untyped:
		none := rollout.Untyped
		op.Type = &none
	default:
		return &status{http.StatusBadRequest, invalid("type", "use control, treatment or none", "%q is not a version's type", b.Type)}
	}
	return a.change(c, b.Note, []Command{CommandUpdate, CommandDeploy}, op, func(r *Rule, command Command, e *rollout.Endpoint) error {
		if err := errors.Join(r.share(b.Percent), r.settings(b.Settings)); err != nil {
			return err
		}
		if r.MaxPercent != nil && *r.MaxPercent < rollout.Full && (b.Default || op.Type != nil && *op.Type == rollout.Control) {
			return denied("version", "promote it instead, if the policy permits that", "this job may ask for %s per cent at most, and as default or control a version may get all", *r.MaxPercent)
		}
		if command == CommandUpdate {
			return nil
		}
		if b.Default || b.Settings != nil || op.Type != nil && *op.Type != rollout.Treatment && *op.Type != rollout.Untyped {
			return denied("version", "have the server's policy permit update", "this job may only deploy: a version's first part is that of a treatment")
		}
		return cmp.Or(own(c.id, e, c.version), fresh(c.id, e, c.version))
	})
}

// simple is a transition of a version or endpoint that says all by its name.
func (a *api) simple(op func(version string) rollout.Op) func(*call) error {
	return func(c *call) error {
		var b wire.Note
		if err := readBody(c.r, &b); err != nil {
			return err
		}
		asked := []Command{c.command}
		if c.command == CommandRetire {
			asked = append(asked, CommandDeploy)
		}
		return a.change(c, b, asked, op(c.version), c.onlyOwn)
	}
}

// onlyOwn limits deploy, where it stands in for another command.
func (c *call) onlyOwn(_ *Rule, command Command, e *rollout.Endpoint) error {
	if command != CommandDeploy {
		return nil
	}
	return own(c.id, e, c.version)
}

func (a *api) mark(op func(reason string) rollout.Op) func(*call) error {
	return func(c *call) error {
		var b wire.Mark
		if err := readBody(c.r, &b); err != nil {
			return err
		}
		if len(b.Reason) > wire.MaxMessage {
			return &status{http.StatusBadRequest, invalid("reason", "say less", "it has more than %d bytes", wire.MaxMessage)}
		}
		return a.change(c, b.Note, []Command{c.command}, op(b.Reason), nil)
	}
}

func (a *api) share(op func(version string, p rollout.Percent) rollout.Op) func(*call) error {
	return func(c *call) error {
		var b wire.Share
		if err := readBody(c.r, &b); err != nil {
			return err
		}
		if b.Percent == nil {
			return &status{http.StatusBadRequest, invalid("percent", "give a number from 0 to 100", "there is no percent")}
		}
		asked := []Command{c.command}
		if c.command == CommandPrepare {
			asked = append(asked, CommandDeploy)
		}
		return a.change(c, b.Note, asked, op(c.version, *b.Percent), func(r *Rule, command Command, e *rollout.Endpoint) error {
			if err := cmp.Or(r.share(b.Percent), c.onlyOwn(r, command, e)); err != nil || command != CommandDeploy || *b.Percent == 0 {
				return err
			}
			return fresh(c.id, e, c.version)
		})
	}
}

func (a *api) deleteVersion(c *call) error {
	q := c.r.URL.Query()
	return a.change(c, wire.Note{Message: q.Get("message")}, []Command{CommandDelete}, rollout.Delete{Version: c.version, NewDefault: q.Get("newDefault")}, nil)
}
