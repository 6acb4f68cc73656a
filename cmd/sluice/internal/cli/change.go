package cli

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/sluice-dev/sluice/pkg/cluster"
	"github.com/sluice-dev/sluice/pkg/project"
	"github.com/sluice-dev/sluice/rollout"
)

// change is a transition asked for on the command line.
type change struct {
	endpoint string
	version  string
	op       rollout.Op
	force    bool
}

func (a *app) change(ctx context.Context, ch change) error {
	sys, err := a.open(ctx)
	if err != nil {
		return err
	}
	out, err := a.apply(ctx, sys, ch)
	if err != nil {
		return err
	}
	return a.printChange(ch, out)
}

func (a *app) printChange(ch change, out rollout.Outcome) error {
	return a.printDone(done{Endpoint: ch.endpoint, Version: ch.version, Changed: out.Changed, Message: ch.endpoint + ": " + out.Message})
}

// foreign names who edits endpoints outside Sluice; the API server of a cluster knows by itself.
func (a *app) foreign() string {
	if a.target == "kubernetes" {
		return ""
	}
	return "file"
}

func (a *app) apply(ctx context.Context, sys *system, ch change) (rollout.Outcome, error) {
	if err := rollout.ValidateName("endpoint", "an endpoint", ch.endpoint); err != nil {
		return rollout.Outcome{}, err
	}
	_, out, err := cluster.Edit(ctx, sys.Store, a.key(ch.endpoint), rollout.Request{
		ID: "cli-" + uuid.NewString(), Actor: a.actor(), At: time.Now().UTC(), Force: ch.force, ForeignActor: a.foreign(),
	}, func(*rollout.Endpoint) (rollout.Op, error) { return ch.op, nil })
	return out, err
}

// share flags of commands that need ready slots.
type share struct {
	force   bool
	wait    bool
	timeout time.Duration
}

func (s *share) flags(c *cobra.Command) {
	c.Flags().BoolVar(&s.force, "force", false, "even if too few slots are ready for the share")
	c.Flags().BoolVar(&s.wait, "wait", false, "prepare replicas for the share first and wait for them")
	c.Flags().DurationVar(&s.timeout, "timeout", 5*time.Minute, "how long to wait")
}

// withRoom applies ch, with --wait after replicas for the share are ready.
func (a *app) withRoom(ctx context.Context, ch change, s share, percent rollout.Percent) error {
	ch.force = s.force
	if !s.wait {
		return a.change(ctx, ch)
	}
	if err := notNegative("--timeout", s.timeout); err != nil {
		return err
	}
	sys, err := a.open(ctx)
	if err != nil {
		return err
	}
	if _, err := a.apply(ctx, sys, change{endpoint: ch.endpoint, version: ch.version, op: rollout.Prepare{Version: ch.version, Percent: percent}}); err != nil {
		return err
	}
	_, _ = fmt.Fprintf(a.io.Err, "preparing replicas of %s for %s %%\n", ch.version, percent)
	var out rollout.Outcome
	err = a.until(ctx, sys, ch.endpoint, s.timeout, func(e *rollout.Endpoint) (bool, string, error) {
		v := e.Spec.Version(ch.version)
		if v == nil {
			return false, "", rollout.UnknownVersion(&e.Spec, ch.version)
		}
		have, need := rollout.Slots(v, &e.Status, percent)
		text := fmt.Sprintf("%s has %d of %d slots ready", ch.version, have, need)
		if have < need {
			return false, text, nil
		}
		var err error
		out, err = a.apply(ctx, sys, ch)
		if rollout.ReasonOf(err) == rollout.ReasonNotEnoughReady {
			return false, text, nil // the demand or the replicas changed in between
		}
		return err == nil, text, err
	})
	if err != nil {
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		if _, uerr := a.apply(undo, sys, change{endpoint: ch.endpoint, version: ch.version, op: rollout.Prepare{Version: ch.version}}); uerr != nil {
			return errors.Join(err, fmt.Errorf("stop preparing: %w", uerr))
		}
		return err
	}
	return a.printChange(ch, out)
}

// until watches an endpoint until the condition holds; the text says how far it is. It looks
// at least once: without time to wait, that is the answer.
func (a *app) until(ctx context.Context, sys *system, endpoint string, timeout time.Duration, holds func(*rollout.Endpoint) (bool, string, error)) error {
	if err := notNegative("--timeout", timeout); err != nil {
		return err
	}
	// The time is for waiting only: a look that has begun is not cut off.
	waiting, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	changes, err := sys.Store.Watch(waiting)
	if err != nil && (waiting.Err() == nil || ctx.Err() != nil) {
		return err
	}
	if err != nil {
		gone := make(chan rollout.Key)
		close(gone)
		changes = gone
	}
	last := ""
	for {
		e, err := getEndpoint(ctx, sys.Store, a.key(endpoint))
		if err != nil {
			return err
		}
		ok, text, err := holds(e)
		if err != nil || ok {
			return err
		}
		if text != last {
			_, _ = fmt.Fprintln(a.io.Err, text)
			last = text
		}
		for other := true; other; {
			key, open := <-changes
			if !open {
				if err := ctx.Err(); err != nil {
					return err
				}
				return &rollout.Error{Reason: rollout.ReasonReadyTimeout, Field: "--timeout", Message: fmt.Sprintf("not within %s: %s", timeout, last), Hint: "look at `sluice status " + endpoint + "`"}
			}
			other = key != a.key(endpoint)
		}
	}
}

func (a *app) trafficCmd() *cobra.Command {
	var s share
	c := &cobra.Command{
		Use:   "traffic ENDPOINT VERSION PERCENT",
		Short: "Set the share of traffic that a version claims, and hold its rollout",
		Args:  cobra.ExactArgs(3),
		RunE: func(c *cobra.Command, args []string) error {
			p, err := rollout.ValidatePercent("trafficPercentile", args[2])
			if err != nil {
				return err
			}
			return a.withRoom(c.Context(), change{endpoint: args[0], version: args[1], op: rollout.Shift{Version: args[1], Percent: p}}, s, p)
		},
	}
	s.flags(c)
	usage := c.FlagErrorFunc()
	c.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		// A negative percentage looks like a flag: it is refused for what it is.
		if i := strings.LastIndex(err.Error(), " in -"); i >= 0 {
			if _, perr := rollout.ValidatePercent("trafficPercentile", err.Error()[i+4:]); perr != nil && strings.Contains("0123456789.", err.Error()[i+5:i+6]) {
				return perr
			}
		}
		return usage(c, err)
	})
	return c
}

func (a *app) promoteCmd() *cobra.Command {
	var s share
	c := &cobra.Command{
		Use:   "promote ENDPOINT VERSION",
		Short: "Make a treatment the control and default, with all traffic",
		Args:  cobra.ExactArgs(2),
		RunE: func(c *cobra.Command, args []string) error {
			return a.withRoom(c.Context(), change{endpoint: args[0], version: args[1], op: rollout.Promote{Version: args[1]}}, s, rollout.Full)
		},
	}
	s.flags(c)
	return c
}

func (a *app) rollbackCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "rollback ENDPOINT VERSION",
		Short: "Take a treatment out of traffic, or go from a promoted control back to its standby",
		Args:  cobra.ExactArgs(2),
		RunE: func(c *cobra.Command, args []string) error {
			return a.change(c.Context(), change{endpoint: args[0], version: args[1], op: rollout.Rollback{Version: args[1]}})
		},
	}
}

// roleHint names the types that can be given by hand.
const roleHint = "use control, treatment or none"

func (a *app) updateCmd() *cobra.Command {
	var (
		percent, role                                     string
		isDefault, control                                bool
		replicas, minR, maxR, target, slots, wait, timeMs int
		env                                               []string
		bind, unbind                                      int64
	)
	c := &cobra.Command{
		Use:   "update ENDPOINT [VERSION]",
		Short: "Change a version's claim, role or settings, or which repositories may act on an endpoint",
		Long: `Change a version's claim, role or settings.

Without VERSION, --bind-repository lets the comments of a GitHub repository act on the endpoint,
and --unbind-repository ends that. "gh api repos/OWNER/NAME --jq .id" prints a repository's id.`,
		Args: cobra.RangeArgs(1, 2),
		RunE: func(c *cobra.Command, args []string) error {
			set := c.Flags().Changed
			if len(args) == 1 || set("bind-repository") || set("unbind-repository") {
				op, err := binding(c.Flags(), args, bind, unbind)
				if err != nil {
					return err
				}
				return a.change(c.Context(), change{endpoint: args[0], op: op})
			}
			op := rollout.Update{Version: args[1], Default: isDefault}
			if set("percent") {
				p, err := rollout.ValidatePercent("--percent", percent)
				if err != nil {
					return err
				}
				op.Percent = &p
			}
			// The same in the domain as a setting that is not given.
			for _, f := range []struct {
				name  string
				value int
				use   string
			}{
				{"target-utilization", target, "use per cent from 1 to 100"}, {"slots", slots, "use 1 or more"},
				{"queue-wait-ms", wait, "use 1 for practically no waiting"}, {"scoring-timeout-ms", timeMs, "use 1 or more"},
			} {
				if set(f.name) && f.value == 0 {
					return misuse("--"+f.name, f.use+", or leave it out to change nothing about it", "--%s 0 is not a value that it can have", f.name)
				}
			}
			if control && set("type") {
				return misuse("--control", "use one of them", "--control and --type say the same")
			}
			if control {
				role = string(rollout.Control)
			}
			switch role {
			case "":
				if set("type") {
					return misuse("--type", roleHint, "--type is empty")
				}
			case "control", "treatment":
				r := rollout.Role(role)
				op.Type = &r
			case "none":
				r := rollout.Untyped
				op.Type = &r
			case string(rollout.Standby):
				r := rollout.Standby
				op.Type = &r // the transition says why not
			default:
				return misuse("--type", roleHint, "--type %q is not known", role)
			}
			sys, err := a.open(c.Context())
			if err != nil {
				return err
			}
			// Settings change field by field: what is not named stays as it is.
			_, out, err := cluster.Edit(c.Context(), sys.Store, a.key(args[0]), rollout.Request{
				ID: "cli-" + uuid.NewString(), Actor: a.actor(), At: time.Now().UTC(), ForeignActor: a.foreign(),
			}, func(e *rollout.Endpoint) (rollout.Op, error) {
				v := e.Spec.Version(args[1])
				if v == nil {
					return op, nil // the transition says what is wrong
				}
				s := rollout.Settings{}
				if set("replicas") {
					s.Replicas = &replicas
				}
				if set("min-replicas") || set("max-replicas") || set("target-utilization") {
					as := rollout.Autoscale{}
					if v.Autoscale != nil {
						as = *v.Autoscale
					}
					if set("min-replicas") {
						as.MinReplicas = &minR
					}
					if set("max-replicas") {
						as.MaxReplicas = &maxR
					}
					if set("target-utilization") {
						as.TargetUtilization = target
					}
					s.Autoscale = &as
				}
				if s.Replicas != nil && s.Autoscale != nil {
					return nil, misuse("--replicas", "leave one of them out", "--replicas fixes the number; the autoscaling flags do not go with it")
				}
				if set("slots") || set("queue-wait-ms") {
					cc := rollout.Concurrency{}
					if v.Concurrency != nil {
						cc = *v.Concurrency
					}
					if set("slots") {
						cc.MaxConcurrentRequests = slots
					}
					if set("queue-wait-ms") {
						cc.MaxQueueWaitMs = wait
					}
					s.Concurrency = &cc
				}
				if set("scoring-timeout-ms") {
					s.ScoringTimeoutMs = timeMs
				}
				if len(env) > 0 {
					s.EnvironmentVariables = map[string]rollout.EnvValue{}
					for k, x := range v.EnvironmentVariables {
						s.EnvironmentVariables[k] = x
					}
					for _, kv := range env {
						k, x, ok := strings.Cut(kv, "=")
						if !ok {
							return nil, misuse("--env", "write NAME=VALUE", "--env %q has no =", kv)
						}
						if hint, reserved := project.Reserved(k); reserved {
							return nil, misuse("--env", hint, "Sluice sets %s itself", k)
						}
						s.EnvironmentVariables[k] = rollout.EnvValue{Value: x}
					}
				}
				o := op
				if !reflect.DeepEqual(s, rollout.Settings{}) {
					o.Settings = &s
				}
				return o, nil
			})
			if err != nil {
				return err
			}
			return a.printDone(done{Endpoint: args[0], Version: args[1], Changed: out.Changed, Message: args[0] + ": " + out.Message})
		},
	}
	f := c.Flags()
	f.StringVar(&percent, "percent", "", "share of traffic to claim, 0 to 100")
	f.BoolVar(&isDefault, "default", false, "make it the default, which gets what no version claims")
	f.BoolVar(&control, "control", false, "make it the control that treatments are compared with")
	f.StringVar(&role, "type", "", "role: control, treatment or none")
	f.IntVar(&replicas, "replicas", 0, "fixed number of replicas instead of autoscaling")
	f.IntVar(&minR, "min-replicas", 0, "fewest replicas")
	f.IntVar(&maxR, "max-replicas", 0, "most replicas")
	f.IntVar(&target, "target-utilization", 0, "per cent of slots to keep busy")
	f.IntVar(&slots, "slots", 0, "requests that one replica may have at once (replaces the replicas)")
	f.IntVar(&wait, "queue-wait-ms", 0, "how long a request may wait for a slot, in milliseconds")
	f.IntVar(&timeMs, "scoring-timeout-ms", 0, "how long scoring may take, in milliseconds (replaces the replicas)")
	f.Int64Var(&bind, "bind-repository", 0, "id of a GitHub repository whose comments may act on the endpoint; without VERSION")
	f.Int64Var(&unbind, "unbind-repository", 0, "id of a GitHub repository whose comments may not act on it any more; without VERSION")
	f.StringArrayVar(&env, "env", nil, "NAME=VALUE for the replicas (replaces the replicas); can be repeated")
	return c
}

// binding is what update means without a version.
func binding(f *pflag.FlagSet, args []string, bind, unbind int64) (rollout.Op, error) {
	const field = "--bind-repository"
	ofVersion := false
	for _, name := range []string{"percent", "default", "control", "type", "replicas", "min-replicas", "max-replicas", "target-utilization", "slots", "queue-wait-ms", "scoring-timeout-ms", "env"} {
		ofVersion = ofVersion || f.Changed(name)
	}
	switch toBind, toUnbind := f.Changed("bind-repository"), f.Changed("unbind-repository"); {
	case !toBind && !toUnbind:
		return nil, misuse("", "name the version, or use --bind-repository or --unbind-repository", "update needs a VERSION")
	case toBind && toUnbind:
		return nil, misuse(field, "use one after the other", "--bind-repository and --unbind-repository are two changes")
	case len(args) == 2 || ofVersion:
		return nil, misuse(field, "leave VERSION and its flags out", "a repository is bound to the whole endpoint")
	case toBind:
		return rollout.Bind{Repository: bind}, nil
	default:
		return rollout.Unbind{Repository: unbind}, nil
	}
}

func (a *app) deleteCmd() *cobra.Command {
	var newDefault string
	c := &cobra.Command{
		Use:   "delete ENDPOINT [VERSION]",
		Short: "Delete a version, or an endpoint with all its versions",
		Args:  cobra.RangeArgs(1, 2),
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) == 2 {
				return a.change(c.Context(), change{endpoint: args[0], version: args[1], op: rollout.Delete{Version: args[1], NewDefault: newDefault}})
			}
			if newDefault != "" {
				return misuse("--new-default", "name the version to delete, or leave it out", "--new-default goes with a VERSION")
			}
			sys, err := a.open(c.Context())
			if err != nil {
				return err
			}
			e, err := getEndpoint(c.Context(), sys.Store, a.key(args[0]))
			if err != nil {
				return err
			}
			if l := e.Spec.Lock; l != nil {
				return &rollout.Error{Reason: rollout.ReasonLocked, Field: "spec.lock", Message: "the endpoint is locked by " + l.Actor, Hint: "unlock it first with `sluice unlock " + args[0] + "`"}
			}
			if err := sys.Store.Delete(c.Context(), a.key(args[0]), e.Metadata.ResourceVersion); err != nil {
				return err
			}
			return a.printDone(done{Endpoint: args[0], Changed: true, Message: args[0] + " is deleted, with its versions and keys"})
		},
	}
	c.Flags().StringVar(&newDefault, "new-default", "", "which version becomes the default")
	return c
}

func (a *app) holdCmd() *cobra.Command {
	var reason string
	c := &cobra.Command{
		Use: "hold ENDPOINT", Short: "Stop advancing and promoting; the automatic rollback stays on", Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return a.change(c.Context(), change{endpoint: args[0], op: rollout.Hold{Reason: reason}})
		},
	}
	c.Flags().StringVar(&reason, "reason", "", "why")
	return c
}

func (a *app) resumeCmd() *cobra.Command {
	return &cobra.Command{
		Use: "resume ENDPOINT", Short: "End a hold", Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return a.change(c.Context(), change{endpoint: args[0], op: rollout.Resume{}})
		},
	}
}

func (a *app) lockCmd() *cobra.Command {
	var reason string
	c := &cobra.Command{
		Use: "lock ENDPOINT", Short: "Refuse all changes but rollback, hold and unlock", Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return a.change(c.Context(), change{endpoint: args[0], op: rollout.Lock{Reason: reason}})
		},
	}
	c.Flags().StringVar(&reason, "reason", "", "why")
	return c
}

func (a *app) unlockCmd() *cobra.Command {
	return &cobra.Command{
		Use: "unlock ENDPOINT", Short: "End a lock", Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return a.change(c.Context(), change{endpoint: args[0], op: rollout.Unlock{}})
		},
	}
}

// notNegative refuses a duration below zero.
func notNegative(flag string, d time.Duration) error {
	if d < 0 {
		return misuse(flag, "use 0 or more", "%s %s is below zero", flag, d)
	}
	return nil
}
