package routercmd

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/sluice-dev/sluice/pkg/autoscale/self"
	"github.com/sluice-dev/sluice/pkg/cluster/kube"
	"github.com/sluice-dev/sluice/pkg/process"
)

// selfConfig is what the flags say of the router's scaling by itself.
type selfConfig struct {
	on         bool
	deployment string
	settings   self.Settings
}

func (c *selfConfig) flags(f *flag.FlagSet) {
	s := &c.settings
	*s = self.Defaults()
	f.BoolVar(&c.on, "self-scale", false, "with --target kubernetes: give the routers more CPU, then more pods, when they are slow, and take both back")
	f.StringVar(&c.deployment, "self-deployment", "", "the routers' own Deployment, in the system's namespace; required with --self-scale")
	f.DurationVar(&s.P99, "self-p99", s.P99, "p99 of the routing time (what a router adds to a request, without queue and replica) above which routers are slow")
	f.DurationVar(&s.Over, "self-over", s.Over, "how long the p99 has to be above before the routers get more")
	f.Var((*milli)(&s.CPUStep), "self-cpu-step", "CPU that one step gives to each router pod or takes from it")
	f.Var((*milli)(&s.CPUMin), "self-cpu-min", "least CPU of a router pod: what its Deployment starts it with (the limit, or the request without a limit)")
	f.Var((*milli)(&s.CPUMax), "self-cpu-max", "most CPU of a router pod; from there on there are more pods. Less than the least means pods alone")
	f.Var((*percent)(&s.CPULow), "self-cpu-low", "part of the pods' CPU below which its use is low, such as 30%")
	f.DurationVar(&s.Calm, "self-calm", s.Calm, "how long the use has to be low, with a p99 of at most half of --self-p99, before something is taken back")
	f.IntVar(&s.PodsMin, "self-pods-min", s.PodsMin, "fewest router pods")
	f.IntVar(&s.PodsMax, "self-pods-max", s.PodsMax, "most router pods")
	f.DurationVar(&s.Patience, "self-patience", s.Patience, "how long CPU or a pod may wait for room in the cluster before it is taken back")
	f.DurationVar(&s.Backoff, "self-backoff", s.Backoff, "how long what there was no room for is not asked for again")
}

func (c *selfConfig) check(target process.Target) error {
	if !c.on {
		return nil
	}
	if target != process.TargetKubernetes {
		return errors.New("--self-scale needs --target kubernetes: on one machine there is one router")
	}
	if c.deployment == "" {
		return errors.New("--self-scale needs --self-deployment, the name of the routers' Deployment")
	}
	// Whoever gives the Deployment more than this does not want routers that do not start.
	c.settings.CPUMax = max(c.settings.CPUMax, c.settings.CPUMin)
	if err := c.settings.Validate(); err != nil {
		return fmt.Errorf("--self-…: %w", err)
	}
	return nil
}

// newSteps counts what the leader did.
func newSteps() *prometheus.CounterVec {
	steps := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "sluice_router_self_scale_total", Help: "Steps by which the routers were scaled, by the router that led (full: more was needed, and nothing could grow).",
	}, []string{"action"})
	for _, k := range self.Kinds() {
		steps.WithLabelValues(string(k)) // a counter that is not there cannot be seen to rise
	}
	return steps
}

// retrySelf is how long a failed start of the scaling waits.
const retrySelf = 15 * time.Second

// run scales the routers until ctx ends. It fails nothing else: routers route, whatever their number.
func (c selfConfig) run(ctx context.Context, k *kube.Cluster, reports self.Reports, steps *prometheus.CounterVec, log *slog.Logger) error {
	for ctx.Err() == nil {
		if err := c.attempt(ctx, k, reports, steps, log); err != nil && ctx.Err() == nil {
			log.Error("the routers are not scaled; it is tried again", "in", retrySelf, "error", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(retrySelf):
		}
	}
	return nil
}

func (c selfConfig) attempt(ctx context.Context, k *kube.Cluster, reports self.Reports, steps *prometheus.CounterVec, log *slog.Logger) error {
	ctx, stop := context.WithCancel(ctx) // ends the watches
	defer stop()
	pods, err := k.SelfPods(ctx, c.deployment)
	if err != nil {
		return err
	}
	return self.Run(ctx, self.Options{
		Settings: c.settings, Reports: reports, Pods: pods, Scaler: pods, Logger: log,
		Stepped: func(k self.Kind) { steps.WithLabelValues(string(k)).Inc() },
	})
}

// milli is a flag for an amount of CPU as Kubernetes writes it: 2, 500m, 0.5.
type milli self.Milli

func (m *milli) String() string { return self.Milli(*m).String() }

// Set implements flag.Value.
func (m *milli) Set(s string) error {
	q, err := resource.ParseQuantity(s)
	if err != nil || q.Sign() <= 0 {
		return fmt.Errorf("%q is no amount of CPU: use 2 or 500m", s)
	}
	*m = milli(q.MilliValue())
	return nil
}

// percent is a flag for a fraction written as 30%.
type percent float64

func (p *percent) String() string { return strconv.FormatFloat(100*float64(*p), 'f', -1, 64) + "%" }

// Set implements flag.Value.
func (p *percent) Set(s string) error {
	number, has := strings.CutSuffix(s, "%")
	v, err := strconv.ParseFloat(number, 64)
	if err != nil || !has {
		return fmt.Errorf("%q is no percentage: use 30%%", s)
	}
	*p = percent(v / 100)
	return nil
}
