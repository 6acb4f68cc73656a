// Package routercmd is the router as a program: flags and environment to options,
// and what stands behind the ports on this machine. The command router and a
// hidden subcommand of sluice share it.
package routercmd

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/sluice-dev/sluice/pkg/autoscale"
	"github.com/sluice-dev/sluice/pkg/cluster/local"
	"github.com/sluice-dev/sluice/pkg/router"
	"github.com/sluice-dev/sluice/pkg/telemetry"
)

// Exit codes.
const (
	exitOK     = 0
	exitFailed = 1
	exitUsage  = 2
)

const usage = `Usage: router [flags]

Routes scoring requests to the replicas of endpoints' versions and scales them.
Each flag can be set by SLUICE_ROUTER_<NAME> too: SLUICE_ROUTER_LISTEN sets --listen.

Flags:
`

type config struct {
	listen, adminListen     string
	listenFD, adminListenFD int
	lifelineFD              int
	state                   string
	namespace               string
	drain                   time.Duration
	verbose                 bool
}

func newFlags(c *config, out io.Writer) *flag.FlagSet {
	f := flag.NewFlagSet("router", flag.ContinueOnError)
	f.SetOutput(out)
	f.StringVar(&c.listen, "listen", "127.0.0.1:8080", "address for scoring requests")
	f.StringVar(&c.adminListen, "admin-listen", "127.0.0.1:9090", "address for metrics, health and reports")
	f.IntVar(&c.listenFD, "listen-fd", -1, "serve scoring on the listening socket inherited as this descriptor")
	f.IntVar(&c.adminListenFD, "admin-listen-fd", -1, "serve metrics on the listening socket inherited as this descriptor")
	f.IntVar(&c.lifelineFD, "lifeline-fd", -1, "stop at end of file on this descriptor")
	f.StringVar(&c.state, "state", "", "state directory (default $XDG_STATE_HOME/sluice)")
	f.StringVar(&c.namespace, "namespace", "default", "namespace that the short path resolves in")
	f.DurationVar(&c.drain, "drain-timeout", 12*time.Second, "how long requests in flight are waited for at the end")
	f.BoolVar(&c.verbose, "verbose", false, "log more")
	return f
}

// Main is the router as a program: it reads flags (args without the program's name)
// and environment (as os.Environ), runs until ctx ends and returns the exit code:
// 0 drained, 1 failed, 2 usage. The log goes to stderr; stdout gets the help only.
func Main(ctx context.Context, args, env []string, stdout, stderr io.Writer) int {
	c, err := parse(args, env)
	if errors.Is(err, flag.ErrHelp) {
		_, _ = io.WriteString(stdout, usage)
		newFlags(&config{}, stdout).PrintDefaults()
		return exitOK
	}
	if err != nil {
		_, _ = fmt.Fprintf(stderr, "router: %v\n", err)
		return exitUsage
	}
	level := slog.LevelInfo
	if c.verbose {
		level = slog.LevelDebug
	}
	log := slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: level}))
	if err := run(ctx, c, log); err != nil {
		_, _ = fmt.Fprintf(stderr, "router: %v\n", err)
		return exitFailed
	}
	return exitOK
}

func parse(args, env []string) (config, error) {
	var c config
	vars := map[string]string{}
	for _, kv := range env {
		name, value, _ := strings.Cut(kv, "=")
		vars[name] = value
	}
	f := newFlags(&c, io.Discard)
	if err := f.Parse(args); err != nil {
		return c, err
	}
	if f.NArg() > 0 {
		return c, fmt.Errorf("unexpected argument %q", f.Arg(0))
	}
	given := map[string]bool{}
	f.Visit(func(fl *flag.Flag) { given[fl.Name] = true })
	var failed error
	f.VisitAll(func(fl *flag.Flag) {
		name := "SLUICE_ROUTER_" + strings.ToUpper(strings.ReplaceAll(fl.Name, "-", "_"))
		if value := vars[name]; value != "" && !given[fl.Name] {
			if err := f.Set(fl.Name, value); err != nil && failed == nil {
				failed = fmt.Errorf("%s: %w", name, err)
			}
		}
	})
	if failed != nil {
		return c, failed
	}
	if c.state == "" {
		base := vars["XDG_STATE_HOME"]
		if base == "" && vars["HOME"] != "" {
			base = filepath.Join(vars["HOME"], ".local", "state")
		}
		if base == "" {
			return c, errors.New("there is no home directory: name the state directory with --state")
		}
		c.state = filepath.Join(base, "sluice")
	}
	return c, nil
}

// run wires the router and the autoscaler to what is on this machine.
func run(ctx context.Context, c config, log *slog.Logger) error {
	if c.lifelineFD >= 0 {
		// When the owner is gone nothing that this process serves is left: it ends at once.
		go func() {
			follow(inherited(c.lifelineFD, "lifeline"))
			os.Exit(exitFailed)
		}()
	}
	store, err := local.NewStore(c.state, log)
	if err != nil {
		return err
	}
	hashes, err := local.NewKeyHashes(c.state, log)
	if err != nil {
		return err
	}
	fleets := local.Dial(local.FleetSocket(c.state), log)
	defer func() { _ = fleets.Close() }()
	scoring, err := listener(c.listenFD, c.listen)
	if err != nil {
		return err
	}
	admin, err := listener(c.adminListenFD, c.adminListen)
	if err != nil {
		return errors.Join(err, scoring.Close())
	}
	return router.Run(ctx, router.Options{
		Listener: scoring, AdminListener: admin, Namespace: c.namespace, Reader: store, Fleets: fleets, KeyHashes: hashes, Logger: log,
		ShutdownTimeout: c.drain,
		Background: []func(context.Context, *router.Router) error{
			func(ctx context.Context, r *router.Router) error {
				// One router on one machine: its own report is all of them.
				return autoscale.Run(ctx, autoscale.Options{Endpoints: store, Fleets: fleets, Scaler: fleets, Routers: telemetry.Reporters{r}, Logger: log})
			},
		},
	})
}

func listener(fd int, addr string) (net.Listener, error) {
	if fd < 0 {
		l, err := net.Listen("tcp", addr)
		if err != nil {
			return nil, fmt.Errorf("listen on %s: %w", addr, err)
		}
		return l, nil
	}
	file := inherited(fd, "listener")
	l, err := net.FileListener(file)
	_ = file.Close() // the listener has its own descriptor
	if err != nil {
		return nil, fmt.Errorf("take over descriptor %d: %w", fd, err)
	}
	return l, nil
}

// inherited is a descriptor that the parent process passed on.
func inherited(fd int, name string) *os.File {
	syscall.CloseOnExec(fd)
	return os.NewFile(uintptr(fd), name)
}

// follow returns when the file ends: whoever holds its other end is gone.
func follow(lifeline *os.File) {
	var b [64]byte
	for {
		_, err := lifeline.Read(b[:])
		// Another process with the same pipe may have made it non-blocking.
		if errors.Is(err, syscall.EAGAIN) {
			time.Sleep(50 * time.Millisecond)
			continue
		}
		if err != nil {
			return
		}
	}
}
