// Package routercmd is the router as a program: flags and environment to options, and
// what stands behind the ports on this machine. The command router and a hidden
// subcommand of sluice share it. The autoscaler runs in the same process.
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

Routes scoring requests to the versions of endpoints, and scales their replicas. Scoring:
  /api/v1/service/ENDPOINT/score               in the router's namespace
  /api/v1/endpoint/NAMESPACE/ENDPOINT/score
Metrics, health and reports are on the admin address only. Each flag can be set by
SLUICE_<NAME> too: SLUICE_ROUTER_ADDRESS sets --router-address.

Flags:
`

// config is what flags and environment say.
type config struct {
	address     string
	listenFD    int
	admin       string
	adminFD     int
	lifelineFD  int
	state       string
	namespace   string
	grace       time.Duration
	connections int
	autoscale   bool
	verbose     bool
}

func newFlags(c *config, out io.Writer) *flag.FlagSet {
	f := flag.NewFlagSet("router", flag.ContinueOnError)
	f.SetOutput(out)
	f.StringVar(&c.address, "router-address", "127.0.0.1:8080", "address for scoring requests")
	f.IntVar(&c.listenFD, "listen-fd", -1, "serve scoring requests on the listening socket inherited as this descriptor")
	f.StringVar(&c.admin, "admin-address", "127.0.0.1:9090", "address for metrics, health and reports")
	f.IntVar(&c.adminFD, "admin-listen-fd", -1, "serve those on the listening socket inherited as this descriptor")
	f.IntVar(&c.lifelineFD, "lifeline-fd", -1, "stop at end of file on this descriptor")
	f.StringVar(&c.state, "state", "", "state directory (default $XDG_STATE_HOME/sluice)")
	f.StringVar(&c.namespace, "namespace", "default", "namespace that the short path resolves in")
	f.DurationVar(&c.grace, "grace", 12*time.Second, "how long requests in flight may take at the end")
	f.IntVar(&c.connections, "max-connections", 16<<10, "how many client connections at a time; more wait")
	f.BoolVar(&c.autoscale, "autoscale", true, "run the autoscaler")
	f.BoolVar(&c.verbose, "verbose", false, "log more")
	return f
}

// Main is the router as a program: it reads flags (args without the program's
// name) and environment (as os.Environ), runs until ctx ends and returns the exit
// code: 0 stopped, 1 failed, 2 usage. The log goes to stderr; stdout gets the help only.
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
	if c.lifelineFD >= 0 {
		var stop context.CancelFunc
		ctx, stop = context.WithCancel(ctx)
		defer stop()
		go follow(ctx, inherited(c.lifelineFD, "lifeline"), stop)
	}
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
		name := "SLUICE_" + strings.ToUpper(strings.ReplaceAll(fl.Name, "-", "_"))
		if value := vars[name]; value != "" && !given[fl.Name] {
			if err := f.Set(fl.Name, value); err != nil && failed == nil {
				failed = fmt.Errorf("%s: %w", name, err)
			}
		}
	})
	if failed != nil {
		return c, failed
	}
	if c.connections < 1 {
		return c, fmt.Errorf("--max-connections is %d; use a number above 0", c.connections)
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

// run wires the router with the state directory and the supervisor's fleets.
func run(ctx context.Context, c config, log *slog.Logger) (err error) {
	store, err := local.NewStore(c.state, log)
	if err != nil {
		return err
	}
	hashes, err := local.NewKeyHashes(c.state, log)
	if err != nil {
		return err
	}
	fleets := local.Dial(local.FleetSocket(c.state), log)
	defer func() { err = errors.Join(err, fleets.Close()) }()

	ln, err := listener(c.listenFD, c.address)
	if err != nil {
		return err
	}
	admin, err := listener(c.adminFD, c.admin)
	if err != nil {
		return errors.Join(err, ln.Close())
	}
	o := router.Options{
		Listener: ln, AdminListener: admin, Namespace: c.namespace,
		Reader: store, Fleets: fleets, KeyHashes: hashes, Logger: log,
		ShutdownTimeout: c.grace, MaxConnections: c.connections,
	}
	if c.autoscale {
		o.Background = append(o.Background, func(ctx context.Context, r *router.Router) error {
			return autoscale.Run(ctx, autoscale.Options{
				Endpoints: store, Fleets: fleets, Scaler: fleets, Routers: only{r}, Logger: log,
			})
		})
	}
	return router.Run(ctx, o)
}

// only is the one router of this machine.
type only struct{ telemetry.Reporter }

// Reports implements autoscale.Routers.
func (o only) Reports(ctx context.Context) ([]telemetry.Report, error) {
	r, err := o.Report(ctx)
	if err != nil {
		return nil, err
	}
	return []telemetry.Report{r}, nil
}

func listener(fd int, address string) (net.Listener, error) {
	if fd < 0 {
		l, err := net.Listen("tcp", address)
		if err != nil {
			return nil, fmt.Errorf("listen on %s: %w", address, err)
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

// follow calls stop when the file ends: whoever holds its other end is gone.
func follow(ctx context.Context, lifeline *os.File, stop func()) {
	var b [64]byte
	for ctx.Err() == nil {
		_, err := lifeline.Read(b[:])
		// Another process with the same pipe may have made it non-blocking.
		if errors.Is(err, syscall.EAGAIN) {
			time.Sleep(50 * time.Millisecond)
			continue
		}
		if err != nil {
			stop()
			return
		}
	}
}
