// Package routercmd is the router as a program: flags and environment to options, and
// what stands behind the ports on this machine or in a cluster. The command router and a
// hidden subcommand of sluice share it. The autoscaler runs in the same process.
package routercmd

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/sluice-dev/sluice/pkg/autoscale"
	"github.com/sluice-dev/sluice/pkg/cluster"
	"github.com/sluice-dev/sluice/pkg/cluster/kube"
	"github.com/sluice-dev/sluice/pkg/cluster/local"
	"github.com/sluice-dev/sluice/pkg/process"
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
	target      process.Target
	state       string
	namespace   string
	kube        process.Kubernetes
	grace       time.Duration
	drain       time.Duration
	connections int
	autoscale   bool
	self        selfConfig
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
	c.target.Flag(f)
	c.kube.Flags(f)
	f.StringVar(&c.state, "state", "", "state directory, with --target local (default $XDG_STATE_HOME/sluice)")
	f.StringVar(&c.namespace, "namespace", "default", "namespace that the short path resolves in")
	f.DurationVar(&c.grace, "grace", 12*time.Second, "how long requests in flight may take at the end")
	f.DurationVar(&c.drain, "drain", 0, "how long requests are still taken at the end, before --grace begins; each closes its connection")
	f.IntVar(&c.connections, "max-connections", 16<<10, "how many client connections at a time; more wait")
	f.BoolVar(&c.autoscale, "autoscale", true, "run the autoscaler")
	c.self.flags(f)
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
	ctx, stop := process.WithLifeline(ctx, c.lifelineFD)
	defer stop()
	if err := run(ctx, c, log); err != nil {
		_, _ = fmt.Fprintf(stderr, "router: %v\n", err)
		return exitFailed
	}
	return exitOK
}

func parse(args, env []string) (config, error) {
	var c config
	if err := process.Parse(newFlags(&c, io.Discard), args, env, "SLUICE_"); err != nil {
		return c, err
	}
	if c.connections < 1 {
		return c, fmt.Errorf("--max-connections is %d; use a number above 0", c.connections)
	}
	if err := c.self.check(c.target); err != nil {
		return c, err
	}
	var err error
	if c.state == "" && c.target == process.TargetLocal {
		c.state, err = process.StateDir(env)
	}
	return c, err
}

// ports are what the router stands on, and what goes on beside it.
type ports struct {
	endpoints cluster.Reader
	fleets    cluster.FleetReader
	hashes    cluster.KeyHashes
	// scale runs the autoscaler, and what scales the routers themselves, until ctx ends.
	scale func(context.Context, *router.Router) error
	// counts are its metrics.
	counts []prometheus.Collector
	close  func() error
}

func run(ctx context.Context, c config, log *slog.Logger) (err error) {
	open := openLocal
	if c.target == process.TargetKubernetes {
		open = openKubernetes
	}
	p, err := open(ctx, c, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.close()) }()

	ln, err := process.Listener(c.listenFD, c.address)
	if err != nil {
		return err
	}
	admin, err := process.Listener(c.adminFD, c.admin)
	if err != nil {
		return errors.Join(err, ln.Close())
	}
	o := router.Options{
		Listener: ln, AdminListener: admin, Namespace: c.namespace,
		Reader: p.endpoints, Fleets: p.fleets, KeyHashes: p.hashes, Logger: log,
		DrainTime: c.drain, ShutdownTimeout: c.grace, MaxConnections: c.connections,
	}
	if c.autoscale || c.self.on {
		o.Background, o.Collectors = append(o.Background, p.scale), p.counts
	}
	return router.Run(ctx, o)
}

// openLocal is the state directory and the supervisor's fleets.
func openLocal(_ context.Context, c config, log *slog.Logger) (ports, error) {
	store, err := local.NewStore(c.state, log)
	if err != nil {
		return ports{}, err
	}
	hashes, err := local.NewKeyHashes(c.state, log)
	if err != nil {
		return ports{}, err
	}
	fleets := local.Dial(local.FleetSocket(c.state), log)
	return ports{
		endpoints: store, fleets: fleets, hashes: hashes, close: fleets.Close,
		scale: func(ctx context.Context, r *router.Router) error {
			return autoscale.Run(ctx, autoscale.Options{
				Endpoints: store, Fleets: fleets, Scaler: fleets, Routers: telemetry.Reporters{r}, Logger: log,
			})
		},
	}, nil
}

// leaseAutoscaler is held by the router whose autoscaler works.
const leaseAutoscaler = "sluice-autoscaler"

// openKubernetes follows a cluster. Reads come from watches: what they brought last stays when
// the API server is gone.
func openKubernetes(ctx context.Context, c config, log *slog.Logger) (ports, error) {
	k, err := kube.Open(kube.OpenOptions{
		Kubeconfig: c.kube.Kubeconfig, Context: c.kube.Context, Namespaces: c.kube.List(), SystemNamespace: c.kube.System,
		Secrets: kube.SecretsOfHashes, Patient: true, Logger: log,
	})
	if err != nil {
		return ports{}, err
	}
	store, err := k.Store(ctx)
	if err != nil {
		return ports{}, err
	}
	fleets, err := k.Fleets(ctx)
	if err != nil {
		return ports{}, err
	}
	hashes, err := k.Hashes(ctx)
	if err != nil {
		return ports{}, err
	}
	routers, err := k.Routers(ctx)
	if err != nil {
		return ports{}, err
	}
	if err := k.Start(ctx); err != nil {
		return ports{}, err
	}
	var tasks []func(context.Context) error
	if c.autoscale {
		tasks = append(tasks, func(ctx context.Context) error {
			return autoscale.Run(ctx, autoscale.Options{Endpoints: store, Fleets: fleets, Scaler: fleets, Routers: routers, Logger: log})
		})
	}
	var counts []prometheus.Collector
	if c.self.on {
		steps := newSteps()
		counts = append(counts, steps)
		tasks = append(tasks, func(ctx context.Context) error { return c.self.run(ctx, k, routers, steps, log) })
	}
	return ports{
		endpoints: store, fleets: fleets, hashes: hashes, counts: counts, close: func() error { return nil },
		scale: func(ctx context.Context, _ *router.Router) error {
			// One lease for both: who sums the demand knows all routers' reports anyway.
			return k.Lead(ctx, leaseAutoscaler, func(ctx context.Context) error { return together(ctx, tasks) })
		},
	}, nil
}

// together runs tasks until ctx ends or one of them fails, which ends the others.
func together(ctx context.Context, tasks []func(context.Context) error) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, task := range tasks {
		g.Go(func() error { return task(ctx) })
	}
	return g.Wait()
}
