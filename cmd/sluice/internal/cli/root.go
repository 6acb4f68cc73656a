// Package cli is the sluice command line: flags become options, options a
// function that works on ports.
package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os/user"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/sluice-dev/sluice/pkg/cluster"
	"github.com/sluice-dev/sluice/pkg/cluster/kube"
	"github.com/sluice-dev/sluice/pkg/deploy"
	"github.com/sluice-dev/sluice/pkg/process"
	"github.com/sluice-dev/sluice/pkg/project"
	"github.com/sluice-dev/sluice/rollout"
)

// Exit codes.
const (
	exitOK       = 0
	exitFailed   = 1
	exitUsage    = 2
	exitNotFound = 3
	exitRefused  = 4
	exitDenied   = 5
	exitConflict = 6
	exitNotReady = 7
)

// IO is what a process has: tests give their own.
type IO struct {
	In       io.Reader
	Out, Err io.Writer
	Env      []string
}

// Getenv looks a variable up.
func (i IO) Getenv(name string) string { return process.Getenv(i.Env, name) }

// app is what every command shares: the global flags, and how to reach the system.
type app struct {
	io        IO
	target    string
	namespace string
	kubeCtx   string
	kubecfg   string
	output    string
	verbose   bool
	state     string

	log *slog.Logger
	// open reaches the system; nothing is opened before a command needs it.
	open func(context.Context) (*system, error)
	// images says where versions' images go, for a deploy to a cluster.
	images registryFlags
	// azure names Azure ML's configuration files; manifest is what they were made into, or nil.
	azure    azureFlags
	manifest *project.Given
}

// system is where endpoints are kept and run.
type system struct {
	Store cluster.Store
	Keys  cluster.Keys
	Logs  cluster.LogReader
	// Shipper makes a project into what fleets run.
	Shipper func(project.Source, deploy.Progress) deploy.Shipper
	// Problems are endpoints whose stored form cannot be used, as far as List has met them; may be nil.
	Problems func() map[rollout.Key]error
}

// usageError is a mistake in how the command was typed.
type usageError struct {
	// field is the flag, if it is about one; message says what is wrong, hint what to type.
	field, message, hint string
}

func (e usageError) Error() string {
	if e.hint == "" {
		return e.message
	}
	return e.message + "; " + e.hint
}

func misuse(field, hint, format string, args ...any) error {
	return usageError{field: field, message: fmt.Sprintf(format, args...), hint: hint}
}

// Main runs the command line and returns its exit code.
func Main(ctx context.Context, args []string, stdio IO) int {
	a := &app{io: stdio}
	a.open = a.openLocal
	if len(args) > 0 {
		if run, ok := internalCommands[args[0]]; ok {
			return run(ctx, args[1:], stdio)
		}
	}
	root := a.root()
	root.SetArgs(azureArgs(root, args))
	root.SetIn(stdio.In)
	root.SetOut(stdio.Out)
	root.SetErr(stdio.Err)
	c, err := root.ExecuteContextC(ctx)
	if err == nil {
		return exitOK
	}
	err = interrupted(ctx, ownComplaint(c, err))
	code := exitCode(err)
	if code == exitUsage {
		// The mistake may stand before the flag that says how to print it.
		a.output = cmp.Or(formatOf(args), a.output)
	}
	a.printError(err)
	return code
}

// interrupted is err, or what is to be said of it if it is that somebody ended the command.
func interrupted(ctx context.Context, err error) error {
	if ctx.Err() == nil || !errors.Is(err, context.Canceled) || len(rollout.AsErrors(err)) > 0 {
		return err
	}
	while := strings.TrimSuffix(strings.TrimSuffix(err.Error(), context.Canceled.Error()), ": ")
	if while == "" {
		while = "run the command"
	}
	return &rollout.Error{Reason: rollout.ReasonInterrupted, Message: "the command was interrupted: " + while, Hint: "start it again"}
}

// ownComplaint makes cobra's own complaints, for which it has no types, usage errors.
func ownComplaint(c *cobra.Command, err error) error {
	var usage usageError
	if errors.As(err, &usage) {
		return err
	}
	message, rest, _ := strings.Cut(err.Error(), "\n")
	switch {
	case strings.HasPrefix(message, "unknown command"):
		hint := fmt.Sprintf("see `%s --help`", c.CommandPath())
		if _, near, found := strings.Cut(rest, "Did you mean this?"); found {
			hint = fmt.Sprintf("did you mean `%s`?", strings.Join(strings.Fields(near), "` or `"))
		}
		return misuse("", hint, "%s", message)
	case strings.HasPrefix(message, "required flag(s)"):
		return misuse("", fmt.Sprintf("see `%s --help`", c.CommandPath()), "%s", message)
	}
	return err
}

// formatOf is the last output format that the arguments name, whatever else is wrong with them.
func formatOf(args []string) string {
	format := ""
	for i, arg := range args {
		if arg == "--" {
			break
		}
		value := ""
		switch {
		case (arg == "-o" || arg == "--output") && i+1 < len(args):
			value = args[i+1]
		case strings.HasPrefix(arg, "--output="):
			value = strings.TrimPrefix(arg, "--output=")
		case strings.HasPrefix(arg, "-o"):
			value = strings.TrimPrefix(arg[2:], "=")
		}
		if isFormat(value) {
			format = value
		}
	}
	return format
}

func isFormat(s string) bool { return s == "table" || s == "json" || s == "yaml" }

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "sluice",
		Short: "Put models behind endpoints and let new versions in by evidence",
		Long: `Sluice deploys a model repository as a version behind an endpoint, lets new versions
in as treatments with a measured share of real traffic, and promotes them or rolls them
back by the evidence.

Begin with "sluice demo", or "sluice up" in one terminal and "sluice deploy DIR" in another.`,
		SilenceUsage:  true,
		SilenceErrors: true,
		PersistentPreRunE: func(c *cobra.Command, args []string) error {
			if err := a.readAzure(c, args); err != nil {
				return err
			}
			return a.prepare()
		},
	}
	f := root.PersistentFlags()
	f.StringVar(&a.target, "target", cmp.Or(a.io.Getenv("SLUICE_TARGET"), "local"), "where endpoints live: local or kubernetes ($SLUICE_TARGET)")
	f.StringVarP(&a.namespace, "namespace", "n", a.io.Getenv("SLUICE_NAMESPACE"), "namespace of the endpoints (default: \"default\", or the context's)")
	f.StringVar(&a.kubeCtx, "context", "", "context of the kubeconfig (target kubernetes)")
	f.StringVar(&a.kubecfg, "kubeconfig", "", "path of the kubeconfig (target kubernetes)")
	f.StringVarP(&a.output, "output", "o", "table", "output: table, json or yaml")
	f.BoolVar(&a.verbose, "verbose", false, "log what is done")
	f.StringVar(&a.state, "state", a.defaultState(), "state directory of the system on this machine ($SLUICE_STATE)")
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return misuse(flagOf(err), fmt.Sprintf("try `%s --help`", c.CommandPath()), "%s", err)
	})
	root.AddCommand(
		a.deployCmd(), a.statusCmd(), a.trafficCmd(), a.promoteCmd(), a.rollbackCmd(), a.updateCmd(), a.deleteCmd(), a.waitCmd(), a.logsCmd(),
		a.keysCmd(), a.replicasCmd(), a.holdCmd(), a.resumeCmd(), a.lockCmd(), a.unlockCmd(), a.packageCmd(), a.convertCmd(), a.environmentCmd(), a.modelCmd(), a.scanCmd(), a.sbomCmd(), a.registryCmd(),
		a.upCmd(), a.demoCmd(), a.versionCmd(),
	)
	for _, c := range root.Commands() {
		wrapArgs(c)
	}
	return root
}

// flagOf is the flag that could not be parsed, or "".
func flagOf(err error) string {
	var unknown *pflag.NotExistError
	var missing *pflag.ValueRequiredError
	var invalid *pflag.InvalidValueError
	switch {
	case errors.As(err, &unknown):
		if unknown.GetSpecifiedShortnames() != "" {
			return "-" + unknown.GetSpecifiedName()
		}
		return "--" + unknown.GetSpecifiedName()
	case errors.As(err, &missing):
		return "--" + missing.GetFlag().Name
	case errors.As(err, &invalid):
		return "--" + invalid.GetFlag().Name
	}
	return ""
}

// wrapArgs makes a wrong number of arguments a usage error that says what to type.
func wrapArgs(c *cobra.Command) {
	for _, sub := range c.Commands() {
		wrapArgs(sub)
	}
	check := c.Args
	if check == nil {
		return
	}
	c.Args = func(c *cobra.Command, args []string) error {
		if err := check(c, args); err != nil {
			var usage usageError
			if errors.As(err, &usage) {
				return err
			}
			return misuse("", fmt.Sprintf("try `%s`", c.UseLine()), "%s", err)
		}
		return nil
	}
}

func (a *app) prepare() error {
	switch a.target {
	case "local":
		a.namespace = cmp.Or(a.namespace, "default")
	case "kubernetes":
		a.open = a.openKubernetes
		if a.namespace == "" {
			_, ns, err := kube.Config(a.kubecfg, a.kubeCtx)
			if err != nil {
				return err
			}
			a.namespace = ns
		}
	default:
		return misuse("--target", "use local or kubernetes", "--target %q is not known", a.target)
	}
	if a.target == "local" && (a.kubeCtx != "" || a.kubecfg != "") {
		return misuse("--context", "leave them out: this machine is the target", "--context and --kubeconfig go with --target kubernetes")
	}
	if !isFormat(a.output) {
		return misuse("--output", "use table, json or yaml", "--output %q is not known", a.output)
	}
	if err := cluster.ValidateNamespace("--namespace", a.namespace); err != nil {
		return err
	}
	level := slog.LevelWarn
	if a.verbose {
		level = slog.LevelDebug
	}
	a.log = slog.New(slog.NewTextHandler(a.io.Err, &slog.HandlerOptions{Level: level}))
	return nil
}

func (a *app) defaultState() string {
	if s := a.io.Getenv("SLUICE_STATE"); s != "" {
		return s
	}
	dir, err := process.StateDir(a.io.Env)
	if err != nil {
		return "" // the commands that need one say so
	}
	return dir
}

func (a *app) key(endpoint string) rollout.Key {
	return rollout.Key{Namespace: a.namespace, Name: endpoint}
}

// actor is who the record says has done it.
func (a *app) actor() string {
	if u, err := user.Current(); err == nil {
		return "cli:" + u.Username
	}
	return "cli"
}

func exitCode(err error) int {
	var usage usageError
	if errors.As(err, &usage) {
		return exitUsage
	}
	if errors.Is(err, cluster.ErrNotFound) {
		return exitNotFound
	}
	refusals := rollout.AsErrors(err)
	if len(refusals) == 0 {
		return exitFailed
	}
	switch refusals[0].Reason {
	case rollout.ReasonUnknownEndpoint, rollout.ReasonUnknownVersion:
		return exitNotFound
	case rollout.ReasonDenied, rollout.ReasonUnauthorized, rollout.ReasonNotBound, rollout.ReasonRegistryDenied,
		rollout.ReasonTokenInvalid, rollout.ReasonTokenStale, rollout.ReasonTokenReplayed:
		return exitDenied
	case rollout.ReasonConflict:
		return exitConflict
	case rollout.ReasonReadyTimeout:
		return exitNotReady
	case rollout.ReasonInternal, rollout.ReasonInitFailed, rollout.ReasonCrashed, rollout.ReasonImageMissing, rollout.ReasonProbeFailed, rollout.ReasonSmokeFailed,
		rollout.ReasonInterrupted, rollout.ReasonRegistryUnreachable, rollout.ReasonBuildFailed, rollout.ReasonNoBuilder, rollout.ReasonDiskFull, rollout.ReasonModelUnreachable,
		rollout.ReasonScanFailed, rollout.ReasonNoScanner, rollout.ReasonSBOMFailed, rollout.ReasonUnavailable, rollout.ReasonTooManyRequests:
		return exitFailed
	default:
		return exitRefused
	}
}
