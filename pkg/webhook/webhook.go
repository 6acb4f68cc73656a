// Package webhook is the control plane as a process: the intake of GitHub's
// webhooks with the commands they bring, the API, and the control role, each if
// its role is asked for.
package webhook

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/gorilla/mux"
	"golang.org/x/net/netutil"
	"golang.org/x/sync/errgroup"

	"github.com/sluice-dev/sluice/pkg/chatops"
	"github.com/sluice-dev/sluice/pkg/cluster"
	"github.com/sluice-dev/sluice/pkg/github"
	"github.com/sluice-dev/sluice/pkg/report"
	"github.com/sluice-dev/sluice/rollout"
)

// Role is a part of the control plane.
type Role string

// The roles.
const (
	// RoleGitHub takes GitHub's webhooks, carries out the commands in comments, and reports on pull requests.
	RoleGitHub Role = "github"
	// RoleAPI serves the API.
	RoleAPI Role = "api"
	// RoleControl reconciles; it listens to nobody.
	RoleControl Role = "control"
)

// ParseRoles reads a comma-separated list.
func ParseRoles(list string) ([]Role, error) {
	var out []Role
	for word := range strings.SplitSeq(list, ",") {
		r := Role(strings.TrimSpace(word))
		switch {
		case r != RoleGitHub && r != RoleAPI && r != RoleControl:
			return nil, &rollout.Error{Reason: rollout.ReasonInvalid, Field: "roles", Message: fmt.Sprintf("%q is not a role", r), Hint: "use github, api, control or several of them with commas between"}
		case !slices.Contains(out, r):
			out = append(out, r)
		}
	}
	return out, nil
}

// Intake is the way by which GitHub's events come in.
type Intake string

// The ways.
const (
	// IntakePush has GitHub deliver them to /webhooks/github; what did not arrive is asked for again.
	IntakePush Intake = "push"
	// IntakePoll fetches them from GitHub's record of the App's deliveries.
	IntakePoll Intake = "poll"
)

// ParseIntake reads one of the two.
func ParseIntake(text string) (Intake, error) {
	switch i := Intake(text); i {
	case IntakePush, IntakePoll:
		return i, nil
	default:
		return "", &rollout.Error{Reason: rollout.ReasonInvalid, Field: "intake", Message: fmt.Sprintf("%q is no way for events to come in", text), Hint: "use push, or poll where GitHub cannot reach this address"}
	}
}

// DeliveryLog is GitHub's record of what it delivered; *github.HookLog is.
type DeliveryLog interface {
	github.RedeliveryLog
	github.PollLog
}

// Options of Run.
type Options struct {
	Roles []Role
	// Listener serves the roles github and api; Run closes it. Nil with role control alone.
	Listener net.Listener
	// Store and Journal, for role github.
	Store   cluster.Store
	Journal cluster.Journal
	// Intake of events, for role github; IntakePush unless set.
	Intake Intake
	// Secrets of the webhook, for IntakePush: each is accepted, so that they can be rotated.
	Secrets [][]byte
	// Deliveries is GitHub's record of them. IntakePoll needs it; with IntakePush and without it, what did
	// not arrive is not asked for again.
	Deliveries DeliveryLog
	// PollEvery and RedeliverEvery are the times between two looks at it; those of package github unless set.
	PollEvery, RedeliverEvery time.Duration
	// GitHub is the API that permissions are asked of, for role github.
	GitHub chatops.GitHub
	// Commands are further options of commands, for role github: PrefixOnly, OnMerge, Patience, Permissions and Directory.
	Commands chatops.Options
	// Reports show on pull requests what becomes of their versions, for role github, if their GitHub is set.
	// Of them GitHub, Every, Gap and Pictures count.
	Reports report.Config
	// API serves what is neither a webhook nor health, for role api (pkg/api). Without it those paths are 404.
	API http.Handler
	// Ending, if set, is called when the server begins to end: it ends answers that would go on for ever.
	Ending func()
	// Control is the control role; it runs until its context ends.
	Control func(context.Context) error
	Logger  *slog.Logger
	// Grace is how long requests and commands under way may take at the end; 10 s unless set.
	Grace time.Duration
}

// Timeouts and bounds of the server. GitHub waits 10 s for its answer. Only deliveries, which prove themselves by their body, and the
// API's jobs, once they are known, have readTimeout for it; whoever else sends slowly has otherTimeout.
const (
	readHeaderTimeout = 3 * time.Second
	readTimeout       = 15 * time.Second
	otherTimeout      = 3 * time.Second
	writeTimeout      = 20 * time.Second
	idleTimeout       = 60 * time.Second
	maxHeaderBytes    = 64 << 10
	maxConnections    = 2048
	maxOfAddress      = 1024
	readyTimeout      = 2 * time.Second
)

// Run serves the roles until ctx ends or one of them fails, then stops them in
// the reverse order of their start: first nothing new is taken in, then commands
// under way and their replies end, then the control role.
func Run(ctx context.Context, o Options) (err error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Grace == 0 {
		o.Grace = 10 * time.Second
	}
	has := func(r Role) bool { return slices.Contains(o.Roles, r) }
	serves := has(RoleGitHub) || has(RoleAPI)
	defer func() {
		if o.Listener != nil {
			_ = o.Listener.Close() // the server may have closed it
		}
	}()
	switch {
	case len(o.Roles) == 0:
		return errors.New("run the control plane: no role is given")
	case serves && o.Listener == nil:
		return errors.New("run the control plane: roles github and api need a listener")
	case has(RoleGitHub) && (o.Store == nil || o.Journal == nil || o.GitHub == nil):
		return errors.New("run the control plane: role github needs the store, the journal and GitHub's API")
	case has(RoleGitHub) && o.Intake == IntakePoll && o.Deliveries == nil:
		return errors.New("run the control plane: polling needs GitHub's record of deliveries")
	case has(RoleControl) && o.Control == nil:
		return errors.New("run the control plane: role control is not wired")
	}

	group, failed := errgroup.WithContext(context.WithoutCancel(ctx))
	// Each part stops when it is told to, in turn, not when ctx ends.
	var stops []func()
	start := func(name string, run func(context.Context) error) {
		own, cancel := context.WithCancel(context.WithoutCancel(ctx))
		ended := make(chan struct{})
		group.Go(func() error {
			defer close(ended)
			if err := run(own); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			if own.Err() == nil {
				return fmt.Errorf("%s ended by itself", name)
			}
			return nil
		})
		stops = append(stops, func() {
			cancel()
			<-ended
			o.Logger.Info("stopped", "part", name)
		})
	}
	router := mux.NewRouter()
	router.NotFoundHandler = http.HandlerFunc(notFound)
	router.MethodNotAllowedHandler = http.HandlerFunc(notAllowed)
	health := &health{store: o.Store}

	var intake *github.Intake // with IntakePush
	var events *github.Events
	var commands *chatops.Service
	var reports *report.Reporter
	if has(RoleGitHub) {
		c := o.Commands
		c.Store, c.Journal, c.GitHub, c.Logger, c.Grace = o.Store, o.Journal, o.GitHub, o.Logger, o.Grace
		if rc := o.Reports; rc.GitHub != nil {
			rc.Store, rc.Journal, rc.Logger = o.Store, o.Journal, o.Logger
			rc.Prefix, rc.OnMerge = c.PrefixOnly, report.OnMergeText(string(c.OnMerge))
			rc.Permissions = c.Permissions != nil
			if rc.Pictures != nil {
				router.PathPrefix(report.PicturePath).Handler(rc.Pictures.Handler(o.Store))
			}
			reports = report.NewReporter(rc)
			c.Renew = reports.Renew
		}
		commands = chatops.New(c)
		events = github.NewEvents(commands, o.Logger)
		if o.Intake != IntakePoll {
			if intake, err = github.NewIntake(o.Secrets, events); err != nil {
				return err
			}
		}
		if l, ok := o.GitHub.(interface {
			Learn(r chatops.Repository)
			Forget(installation int64)
		}); ok {
			events.OnRepository, events.OnInstallation = l.Learn, l.Forget
		}
		if reports != nil {
			events.OnTouched, events.OnActivity, events.OnRerun = reports.Look, reports.Notice, reports.Renew
			if me, ok := o.Reports.GitHub.(github.Self); ok {
				events.Self = me
			}
		}
	}

	if has(RoleControl) {
		start("control", o.Control)
	}
	if has(RoleGitHub) {
		if reports != nil {
			start("reports", reports.Run)
		}
		start("commands", commands.Run)
		if intake != nil {
			router.Handle(deliveries, intake).Methods(http.MethodPost)
		}
	}
	if serves {
		router.HandleFunc("/healthz", health.live).Methods(http.MethodGet, http.MethodHead)
		router.HandleFunc("/readyz", health.ready).Methods(http.MethodGet, http.MethodHead)
		if has(RoleAPI) && o.API != nil {
			router.PathPrefix("/").Handler(o.API)
		}
		start("server", func(own context.Context) error { return serve(own, o, router) })
		if has(RoleGitHub) {
			switch {
			case o.Intake == IntakePoll:
				start("polling", github.NewPoller(github.PollerOptions{Log: o.Deliveries, Handle: events.Handle, Every: o.PollEvery, Logger: o.Logger}).Run)
			case o.Deliveries != nil:
				start("redelivery", github.NewRedeliverer(github.RedelivererOptions{Log: o.Deliveries, Every: o.RedeliverEvery, Logger: o.Logger}).Run)
			}
		}
		o.Logger.Info("serving", "roles", o.Roles, "address", o.Listener.Addr().String())
	}

	select {
	case <-ctx.Done():
	case <-failed.Done():
	}
	health.stopping.Store(true)
	for _, stop := range slices.Backward(stops) {
		stop()
	}
	return group.Wait()
}

// serve until own ends, then let requests under way end.
func serve(own context.Context, o Options, handler http.Handler) error {
	server := &http.Server{
		Handler:           hasty(recovered(handler, o.Logger)),
		ReadHeaderTimeout: readHeaderTimeout,
		ReadTimeout:       readTimeout,
		WriteTimeout:      writeTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
		ErrorLog:          slog.NewLogLogger(o.Logger.Handler(), slog.LevelDebug),
	}
	if o.Ending != nil {
		server.RegisterOnShutdown(o.Ending)
	}
	served := make(chan error, 1)
	go func() {
		served <- server.Serve(netutil.LimitListener(newSharing(o.Listener, maxOfAddress), maxConnections))
	}()
	select {
	case err := <-served:
		return err
	case <-own.Done():
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(own), o.Grace)
	defer cancel()
	if err := server.Shutdown(ctx); err != nil {
		o.Logger.Warn("requests were cut off", "error", err)
		_ = server.Close() // it says what Shutdown said
	}
	if err := <-served; !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// deliveries is where GitHub's come in.
const deliveries = "/webhooks/github"

// hasty waits for no body that is not a delivery's: who needs more time gives it, once the sender is known.
func hasty(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ContentLength != 0 && (r.URL.Path != deliveries || r.Method != http.MethodPost) {
			_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(otherTimeout)) // a connection has deadlines
		}
		next.ServeHTTP(w, r)
	})
}

// recovered answers 500 when a handler panics, and logs where.
func recovered(next http.Handler, log *slog.Logger) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer func() {
			p := recover()
			if p == nil {
				return
			}
			if err, ok := p.(error); ok && errors.Is(err, http.ErrAbortHandler) {
				panic(p)
			}
			log.ErrorContext(r.Context(), "handler panicked", "path", r.URL.Path, "panic", fmt.Sprint(p))
			refuse(w, http.StatusInternalServerError, &rollout.Error{Reason: rollout.ReasonInternal, Message: "something failed inside Sluice", Hint: "look at the log"})
		}()
		next.ServeHTTP(w, r)
	})
}

func notFound(w http.ResponseWriter, _ *http.Request) {
	refuse(w, http.StatusNotFound, &rollout.Error{Reason: rollout.ReasonInvalid, Field: "path", Message: "there is nothing at this path", Hint: "webhooks are taken at /webhooks/github"})
}

func notAllowed(w http.ResponseWriter, _ *http.Request) {
	refuse(w, http.StatusMethodNotAllowed, &rollout.Error{Reason: rollout.ReasonInvalid, Field: "method", Message: "the method is not for this path", Hint: "post to /webhooks/github; get the others"})
}

func refuse(w http.ResponseWriter, code int, e *rollout.Error) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(e) // the client is gone: nothing to tell it
}

// health answers probes.
type health struct {
	store    cluster.Reader
	stopping atomic.Bool
}

func (h *health) live(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok\n") }

// ready says whether deliveries can be taken: not at the end, and not without the store.
func (h *health) ready(w http.ResponseWriter, r *http.Request) {
	if h.stopping.Load() {
		http.Error(w, "stopping", http.StatusServiceUnavailable)
		return
	}
	if h.store != nil {
		ctx, cancel := context.WithTimeout(r.Context(), readyTimeout)
		defer cancel()
		if _, err := h.store.List(ctx); err != nil {
			http.Error(w, "the store of endpoints does not answer", http.StatusServiceUnavailable)
			return
		}
	}
	_, _ = io.WriteString(w, "ok\n")
}
