package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"runtime/debug"
	"time"

	"github.com/spf13/cobra"

	"github.com/sluice-dev/sluice/pkg/access"
	"github.com/sluice-dev/sluice/pkg/autoscale"
	"github.com/sluice-dev/sluice/pkg/cluster"
	"github.com/sluice-dev/sluice/rollout"
)

func (a *app) replicasCmd() *cobra.Command {
	var (
		rps         float64
		latency     time.Duration
		target      int
		concurrency int
	)
	c := &cobra.Command{
		Use:   "replicas --rps R --latency D",
		Short: "Say how many replicas a load needs",
		Long:  "ceil(requests per second × seconds per request ÷ target utilisation ÷ slots per replica)",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			switch {
			case !(rps >= 0 && rps <= 1e9):
				return misuse("--rps", "use a number from 0 to 1e9", "--rps %g is out of range", rps)
			case latency <= 0:
				return misuse("--latency", "use a duration above zero, such as 100ms", "--latency %s is out of range", latency)
			case target < 1 || target > 100:
				return misuse("--target", "use per cent from 1 to 100", "--target %d is out of range", target)
			case concurrency < 1:
				return misuse("--concurrency", "use 1 or more", "--concurrency %d is out of range", concurrency)
			}
			n := autoscale.Replicas(rps, latency, float64(target)/100, concurrency)
			return a.print(map[string]int{"replicas": n}, func(w io.Writer) { _, _ = fmt.Fprintln(w, n) })
		},
	}
	f := c.Flags()
	f.Float64Var(&rps, "rps", 0, "requests per second")
	f.DurationVar(&latency, "latency", 0, "time that a request takes at a replica")
	f.IntVar(&target, "target", rollout.DefaultTargetUtilization, "target utilisation in per cent")
	f.IntVar(&concurrency, "concurrency", rollout.DefaultSlots, "requests that one replica may have at once")
	_ = c.MarkFlagRequired("rps")
	_ = c.MarkFlagRequired("latency")
	return c
}

func (a *app) waitCmd() *cobra.Command {
	var (
		what    string
		timeout time.Duration
	)
	c := &cobra.Command{
		Use:   "wait ENDPOINT [VERSION] --for=ready|promoted|rolled-back",
		Short: "Wait until a version is ready, promoted or rolled back",
		Args:  cobra.RangeArgs(1, 2),
		RunE: func(c *cobra.Command, args []string) error {
			if what != "ready" && what != "promoted" && what != "rolled-back" {
				return misuse("--for", "use ready, promoted or rolled-back", "--for %q is not known", what)
			}
			if what != "ready" && len(args) < 2 {
				return misuse("--for", "name it after the ENDPOINT", "--for=%s needs a VERSION", what)
			}
			sys, err := a.open(c.Context())
			if err != nil {
				return err
			}
			err = a.until(c.Context(), sys, args[0], timeout, func(e *rollout.Endpoint) (bool, string, error) {
				if len(args) == 1 {
					v := e.Spec.Default()
					return e.Status.Version(v.Name).ReadyReplicas > 0, v.Name + " is not ready", nil
				}
				return reached(e, args[1], what)
			})
			if err != nil {
				return err
			}
			subject := args[len(args)-1]
			return a.printDone(done{Endpoint: args[0], Message: fmt.Sprintf("%s is %s", subject, what)})
		},
	}
	c.Flags().StringVar(&what, "for", "ready", "ready, promoted or rolled-back")
	c.Flags().DurationVar(&timeout, "timeout", 10*time.Minute, "how long to wait; 0 looks once")
	return c
}

// reached says whether a version is where the caller waits for it to be, or can never get there.
func reached(e *rollout.Endpoint, version, what string) (bool, string, error) {
	v := e.Spec.Version(version)
	if v == nil {
		return false, "", rollout.UnknownVersion(&e.Spec, version)
	}
	st := e.Status.Version(version)
	never := func(how string) error {
		return &rollout.Error{Reason: rollout.ReasonInvalid, Field: "--for", Message: fmt.Sprintf("%s will not be %s: it is %s", version, what, how), Hint: "look at `sluice status " + e.Metadata.Name + "`"}
	}
	switch what {
	case "ready":
		if !v.RetiredAt.IsZero() {
			return false, "", never("retired")
		}
		return st.ReadyReplicas > 0, fmt.Sprintf("%s: %s %s", version, st.State, st.Reason), nil
	case "promoted":
		if !v.RetiredAt.IsZero() {
			return false, "", never("rolled back")
		}
		return v.Type == rollout.Control, progress(e, v), nil
	default:
		if v.Type == rollout.Control {
			return false, "", never("the control")
		}
		return !v.RetiredAt.IsZero(), progress(e, v), nil
	}
}

func progress(e *rollout.Endpoint, v *rollout.Version) string {
	s := fmt.Sprintf("%s claims %s %%", v.Name, v.TrafficPercentile)
	if r := e.Status.Rollout; r != nil && r.Treatment == v.Name {
		s += fmt.Sprintf(" (%s)", r.Reason)
	}
	return s
}

func (a *app) logsCmd() *cobra.Command {
	var o cluster.LogOptions
	c := &cobra.Command{
		Use:   "logs ENDPOINT [VERSION]",
		Short: "Show what replicas wrote",
		Args:  cobra.RangeArgs(1, 2),
		RunE: func(c *cobra.Command, args []string) error {
			sys, err := a.open(c.Context())
			if err != nil {
				return err
			}
			key := cluster.FleetKey{Endpoint: a.key(args[0])}
			e, err := getEndpoint(c.Context(), sys.Store, key.Endpoint)
			if err != nil {
				return err
			}
			if len(args) == 2 {
				key.Version = args[1]
			} else {
				key.Version = e.Spec.Default().Name
			}
			r, err := sys.Logs.Logs(c.Context(), key, o)
			if errors.Is(err, cluster.ErrNotFound) && e.Spec.Version(key.Version) == nil {
				return rollout.UnknownVersion(&e.Spec, key.Version)
			}
			if err != nil {
				return err
			}
			defer func() { _ = r.Close() }()
			_, err = io.Copy(a.io.Out, r)
			if c.Context().Err() != nil {
				return nil // following ends with the interrupt
			}
			return err
		},
	}
	c.Flags().BoolVarP(&o.Follow, "follow", "f", false, "go on as more is written")
	c.Flags().IntVar(&o.Tail, "tail", 0, "begin with the last N lines of each replica (0: all)")
	return c
}

// endpointKeys are the keys of an endpoint that is there, made if it has none yet.
func (a *app) endpointKeys(ctx context.Context, endpoint string) (*system, access.Keys, error) {
	sys, err := a.open(ctx)
	if err != nil {
		return nil, access.Keys{}, err
	}
	if _, err := getEndpoint(ctx, sys.Store, a.key(endpoint)); err != nil {
		return nil, access.Keys{}, err
	}
	k, err := sys.Keys.EnsureKeys(ctx, a.key(endpoint))
	return sys, k, err
}

func (a *app) keysCmd() *cobra.Command {
	c := &cobra.Command{
		Use: "keys", Short: "Show or replace an endpoint's keys",
		// cobra would show the help for a command that it does not know, and succeed.
		Args: func(c *cobra.Command, args []string) error {
			if len(args) > 0 {
				return misuse("", fmt.Sprintf("see `%s --help`", c.CommandPath()), "unknown command %q for %q", args[0], c.CommandPath())
			}
			return nil
		},
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(&cobra.Command{
		Use: "get ENDPOINT", Short: "Show both keys", Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			_, k, err := a.endpointKeys(c.Context(), args[0])
			if err != nil {
				return err
			}
			return a.print(struct {
				Primary   string `json:"primary"`
				Secondary string `json:"secondary"`
			}{k.Primary, k.Secondary}, func(w io.Writer) {
				t := table{}
				t.add("primary", k.Primary)
				t.add("secondary", k.Secondary)
				t.write(w)
			})
		},
	})
	var which string
	re := &cobra.Command{
		Use: "regenerate ENDPOINT", Short: "Replace one key; the other goes on working", Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			sys, k, err := a.endpointKeys(c.Context(), args[0])
			if err != nil {
				return err
			}
			if k, err = k.Regenerate(which); err != nil {
				return misuse("--key", "", "%s", err)
			}
			if err := sys.Keys.PutKeys(c.Context(), a.key(args[0]), k); err != nil {
				return err
			}
			return a.printDone(done{Endpoint: args[0], Changed: true, Message: fmt.Sprintf("%s: the %s key is new; read it with `sluice keys get %s`", args[0], which, args[0])})
		},
	}
	re.Flags().StringVar(&which, "key", "primary", "primary or secondary")
	c.AddCommand(re)
	return c
}

func (a *app) versionCmd() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Show the version of this program", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			v, rev := "unknown", ""
			if info, ok := debug.ReadBuildInfo(); ok {
				v = info.Main.Version
				for _, s := range info.Settings {
					if s.Key == "vcs.revision" {
						rev = s.Value
					}
				}
			}
			return a.print(map[string]string{"version": v, "revision": rev, "go": runtime.Version()}, func(w io.Writer) {
				_, _ = fmt.Fprintf(w, "sluice %s %s (%s)\n", v, rev, runtime.Version())
			})
		},
	}
}
