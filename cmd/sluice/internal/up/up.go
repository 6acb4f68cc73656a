// Package up runs the whole system on one machine: a small supervisor that owns
// the replicas and the listening sockets, and the router and the control plane as
// its children. Killing a child leaves replicas and sockets alone, so that new
// connections wait until it is back; killing the supervisor ends everything.
package up

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/sluice-dev/sluice/pkg/cluster/local"
)

// Options of Run.
type Options struct {
	// State is the directory with everything that outlives the process.
	State string
	// Addresses to listen on.
	Router, API, Admin string
	Namespace          string
	// Exe is the sluice binary: it runs children and replicas.
	Exe string
	// Env that children inherit.
	Env []string
	// GitHub says that a webhook secret is configured, or that events are polled for.
	GitHub bool
	// Page says who may read the page at the API's address, as --page of the control plane.
	Page string
	// Out gets the children's logs.
	Out    io.Writer
	Logger *slog.Logger
	// Ready, if set, is called once everything was started.
	Ready func(Addresses)
}

// Addresses where the system listens.
type Addresses struct {
	Router string `json:"router"`
	API    string `json:"api"`
	Admin  string `json:"admin"`
}

// The names under which the binary runs its parts.
const (
	RouterCommand  = "internal-router"
	ControlCommand = "internal-webhook"
	RunnerCommand  = "internal-runner"
)

const (
	routerDrain  = 15 * time.Second
	controlDrain = 5 * time.Second
)

// Run starts everything and returns when ctx has ended and everything else, too.
// What was started is ended in reverse order, also when a later start fails.
func Run(ctx context.Context, o Options) (err error) {
	var cleanups []func()
	defer func() {
		for i := len(cleanups) - 1; i >= 0; i-- {
			cleanups[i]()
		}
	}()
	later := func(f func()) { cleanups = append(cleanups, f) }

	if err := os.MkdirAll(o.State, 0o700); err != nil {
		return fmt.Errorf("make state directory: %w", err)
	}
	unlock, err := local.Lock(o.State)
	if err != nil {
		return err
	}
	later(func() { _ = unlock() })

	sockets := map[string]*os.File{}
	var at Addresses
	for _, s := range []struct {
		name, addr string
		got        *string
	}{{"router", o.Router, &at.Router}, {"api", o.API, &at.API}, {"admin", o.Admin, &at.Admin}} {
		f, addr, err := listen(s.addr)
		if err != nil {
			return fmt.Errorf("listen for the %s on %s: %w (another address: --%s-address)", s.name, s.addr, err, s.name)
		}
		sockets[s.name], *s.got = f, addr
		later(func() { _ = f.Close() })
	}

	// Children read the lifeline; it ends with this process, however that ends.
	lifeline, holder, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("make lifeline: %w", err)
	}
	later(func() { _, _ = lifeline.Close(), holder.Close() })

	host, err := local.NewHost(local.HostOptions{Dir: o.State, RunnerCommand: []string{o.Exe, RunnerCommand}, Env: o.Env, Logger: o.Logger})
	if err != nil {
		return fmt.Errorf("start the host of replicas: %w", err)
	}
	later(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		if err := host.Close(ctx); err != nil {
			o.Logger.Warn("replicas did not end in time", "error", err)
		}
	})
	socket := local.FleetSocket(o.State)
	var wg sync.WaitGroup
	serveCtx, stopServing := context.WithCancel(context.Background())
	fleetListener, err := local.ListenFleet(o.State)
	if err != nil {
		stopServing()
		return fmt.Errorf("listen on %s: %w", socket, err)
	}
	wg.Go(func() {
		if err := local.Serve(serveCtx, fleetListener, host); err != nil && serveCtx.Err() == nil {
			o.Logger.Error("serving the fleets failed", "error", err)
		}
	})
	threadCtx, stopThread := context.WithCancel(context.Background())
	start := starter(threadCtx, &wg)
	later(func() {
		stopServing()
		stopThread()
		wg.Wait()
	})

	common := []string{"--state", o.State, "--namespace", o.Namespace}
	router := &child{
		name: "router", drain: routerDrain, env: withoutSecrets(o.Env), out: o.Out, log: o.Logger, start: start,
		argv:  append([]string{o.Exe, RouterCommand, "--listen-fd=3", "--admin-listen-fd=4", "--lifeline-fd=5"}, common...),
		files: []*os.File{sockets["router"], sockets["admin"], lifeline},
	}
	roles := "api,control"
	if o.GitHub {
		roles = "github,api,control"
	}
	control := &child{
		name: "control", drain: controlDrain, env: o.Env, out: o.Out, log: o.Logger, start: start,
		argv: append([]string{o.Exe, ControlCommand, "--roles=" + roles, "--listen-fd=3", "--lifeline-fd=4",
			"--page=" + o.Page, "--router-admin=http://" + at.Admin, "--scoring-url=http://" + at.Router}, common...),
		files: []*os.File{sockets["api"], lifeline},
	}
	// In reverse order: the control plane ends first, then the router, which still has the replicas.
	for _, c := range []*child{router, control} {
		childCtx, stop := context.WithCancel(context.Background())
		done := make(chan struct{})
		go func() {
			defer close(done)
			c.run(childCtx)
		}()
		later(func() {
			stop()
			<-done
		})
	}
	if o.Ready != nil {
		o.Ready(at)
	}
	<-ctx.Done()
	if errors.Is(context.Cause(ctx), context.Canceled) {
		return nil
	}
	return context.Cause(ctx)
}

// withoutSecrets is the environment without what only the control plane may know.
func withoutSecrets(env []string) []string {
	return slices.DeleteFunc(slices.Clone(env), func(kv string) bool {
		name, _, _ := strings.Cut(kv, "=")
		return name == "SLUICE_WEBHOOK_SECRET" || name == "SLUICE_GITHUB_TOKEN" || name == "SLUICE_API_SESSION_KEY" || name == "SLUICE_PAGE_LOGIN_CLIENT_SECRET"
	})
}

// listen opens the socket that this process keeps, and the address it got.
func listen(addr string) (*os.File, string, error) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, "", err
	}
	defer func() { _ = l.Close() }()
	f, err := l.(*net.TCPListener).File()
	if err != nil {
		return nil, "", err
	}
	got := l.Addr().String()
	// "[::]" and "0.0.0.0" are no addresses to connect to.
	if host, port, err := net.SplitHostPort(got); err == nil && (strings.Trim(host, ":") == "" || host == "0.0.0.0") {
		got = net.JoinHostPort("127.0.0.1", port)
	}
	return f, got, nil
}
