package runner

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/sluice-dev/sluice/rollout"
)

// Mode says how the entry script is run.
type Mode string

const (
	// ModeServe imports the entry script and calls its init() and run(). The default.
	ModeServe Mode = "serve"
	// ModeScript runs the entry script literally; it must be a server of its own.
	ModeScript Mode = "script"
)

// ExitInit is the exit code, as in Azure ML, for every failure to come up: script
// missing, import error, no init() or run(), exception in init(), a server that never
// became ready.
const ExitInit = 3

// Defaults and bounds of [Options].
const (
	DefaultPort           = 5001
	DefaultScoringTimeout = time.Minute
	DefaultInitTimeout    = 5 * time.Minute
	DefaultDrainLinger    = time.Second
	// MaxBodyBytes is what a request may carry, as in Azure ML (100m in its nginx).
	MaxBodyBytes = 100 << 20
	// MaxWorkerSlots bounds the slots of a Python worker: each is a thread and a socket.
	MaxWorkerSlots = 512
)

// Server describes the server behind the gate when it is not the runner's own.
type Server struct {
	// Port on loopback on which it will listen. 0: the gate picks a free one and hands
	// it over in the environment variable PORT.
	Port int
	// ScorePath is what /score becomes; default /score.
	ScorePath string
	// HealthPath answers GET with 2xx or 3xx when the server is well. Empty: accepting a
	// connection is enough.
	HealthPath string
}

// Options of [Run]. The zero value of a field means its default.
type Options struct {
	// Listener to serve on, or Listen, its address; default port 5001 on all interfaces.
	Listener net.Listener
	Listen   string

	// ProjectDir holds the model's project and is the working directory of what runs;
	// default the current directory.
	ProjectDir string
	// EntryScript is relative to SourceDirectory, else to ProjectDir.
	EntryScript string
	// SourceDirectory, relative to ProjectDir, is put on sys.path.
	SourceDirectory string
	// Arguments of the entry script, sys.argv[1:].
	Arguments []string
	Mode      Mode
	// Python is the interpreter; default python3.
	Python string
	// ModelDir becomes AZUREML_MODEL_DIR if set.
	ModelDir string

	// Command starts a custom server instead of the entry script.
	Command []string
	// Upstream, host:port, is a custom server that someone else runs, such as another
	// container of the pod. Neither EntryScript nor Command may be given with it.
	Upstream string
	Server   Server

	// Fleet, NAMESPACE/ENDPOINT/VERSION, is whose requests this replica serves: one that says in Sluice-Fleet that it is
	// for another is refused, since addresses are used again. Default any.
	Fleet string
	// MaxConcurrentRequests is the number of slots; default 1.
	MaxConcurrentRequests int
	ScoringTimeout        time.Duration
	// InitTimeout bounds init(), or the time until a custom server is well.
	InitTimeout time.Duration
	// DrainTimeout bounds the end once ctx is cancelled; default ScoringTimeout + 5 s.
	// Requests still in flight then are cut off.
	DrainTimeout time.Duration
	// DrainLinger is how long, at least, new requests are still answered (with refusals)
	// while draining, so that routers learn of it in time; default 1 s, < 0 none.
	DrainLinger time.Duration
	// MaxBodyBytes of a request; default [MaxBodyBytes].
	MaxBodyBytes int64

	// Env is the environment of what runs behind the gate; nil is the process's own.
	Env []string
	// Logger gets the gate's own log; nil discards it.
	Logger *slog.Logger
	// Output gets what the worker or custom server writes, stdout and stderr together;
	// an *os.File is handed to it directly. Default os.Stderr.
	Output io.Writer
	// Lifeline ends everything at once, without draining, when it reports EOF: whoever
	// owns this replica and holds the other end is gone. Run closes it.
	Lifeline io.ReadCloser

	// How long a client may pause within a request or an answer before it counts as gone.
	stall time.Duration
	// Pause before a worker that died early is started again: first and longest.
	backoff, maxBackoff time.Duration
	// How often a custom server's health is asked for.
	healthPeriod time.Duration
	// Reap children that are not ours: as the first process of a container.
	reap bool
}

// ExitError is an error of [Run] that ends the process with a code of its own.
type ExitError struct {
	Code int
	Err  error
}

func (e *ExitError) Error() string { return e.Err.Error() }

// Unwrap gives the cause.
func (e *ExitError) Unwrap() error { return e.Err }

// ExitCode is the code with which a process whose [Run] returned err ends: 0 for nil,
// 2 for options that cannot be, [ExitInit] for a failure before readiness, the code of
// the custom server if that ended by itself (128 + signal number if killed), else 1.
func ExitCode(err error) int {
	var exit *ExitError
	var refused *rollout.Error
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		return exit.Code
	case errors.As(err, &refused):
		return 2
	default:
		return 1
	}
}

func invalid(field, hint, format string, args ...any) error {
	return &rollout.Error{Reason: rollout.ReasonInvalid, Field: field, Message: fmt.Sprintf(format, args...), Hint: hint}
}

// complete checks the options and fills in defaults.
func (o Options) complete() (Options, error) {
	setDefault(&o.Mode, ModeServe)
	setDefault(&o.Python, "python3")
	setDefault(&o.MaxConcurrentRequests, 1)
	setDefault(&o.ScoringTimeout, DefaultScoringTimeout)
	setDefault(&o.InitTimeout, DefaultInitTimeout)
	setDefault(&o.DrainTimeout, o.ScoringTimeout+5*time.Second)
	setDefault(&o.DrainLinger, DefaultDrainLinger)
	setDefault(&o.MaxBodyBytes, MaxBodyBytes)
	setDefault(&o.Server.ScorePath, "/score")
	setDefault(&o.Listen, fmt.Sprintf(":%d", DefaultPort))
	setDefault(&o.stall, 30*time.Second)
	setDefault(&o.backoff, 100*time.Millisecond)
	setDefault(&o.maxBackoff, 10*time.Second)
	setDefault(&o.healthPeriod, 2*time.Second)
	if o.Output == nil {
		o.Output = os.Stderr
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Env == nil {
		o.Env = os.Environ()
	}

	given := 0
	for _, is := range []bool{o.EntryScript != "", len(o.Command) > 0, o.Upstream != ""} {
		if is {
			given++
		}
	}
	switch {
	case given == 0:
		return o, invalid("scoring", "name an entry script, a command or an upstream address", "there is nothing to run")
	case given > 1:
		return o, invalid("scoring", "keep one of them", "entry script, command and upstream address exclude each other")
	case o.Mode != ModeServe && o.Mode != ModeScript:
		return o, invalid("scoring.mode", "use serve or script", "unknown mode %q", o.Mode)
	case o.Mode == ModeScript && o.EntryScript == "":
		return o, invalid("scoring.mode", "name an entry script", "mode script needs an entry script")
	case o.MaxConcurrentRequests < 0 || o.isWorker() && o.MaxConcurrentRequests > MaxWorkerSlots:
		return o, invalid("concurrency.maxConcurrentRequests", fmt.Sprintf("use 1 to %d", MaxWorkerSlots), "%d slots are not possible", o.MaxConcurrentRequests)
	case o.ScoringTimeout < 0 || o.InitTimeout < 0 || o.DrainTimeout < 0 || o.MaxBodyBytes < 0:
		return o, invalid("scoringTimeoutMs", "use positive limits", "timeouts and limits must not be negative")
	case o.Server.Port < 0 || o.Server.Port > 65535:
		return o, invalid("server.port", "use 1 to 65535", "%d is not a port", o.Server.Port)
	case !strings.HasPrefix(o.Server.ScorePath, "/"):
		return o, invalid("server.scorePath", "begin it with /", "%q is not a path", o.Server.ScorePath)
	case o.Server.HealthPath != "" && !strings.HasPrefix(o.Server.HealthPath, "/"):
		return o, invalid("server.healthPath", "begin it with /", "%q is not a path", o.Server.HealthPath)
	case o.SourceDirectory != "" && !filepath.IsLocal(o.SourceDirectory):
		return o, invalid("scoring.sourceDirectory", "name a directory within the project", "%q leaves the project", o.SourceDirectory)
	}
	if o.Upstream != "" {
		if _, _, err := net.SplitHostPort(o.Upstream); err != nil {
			return o, invalid("upstream", "give host:port", "%q is not an address", o.Upstream)
		}
	}
	if runtime.GOOS == "windows" && o.Upstream == "" {
		return o, &rollout.Error{Reason: rollout.ReasonNotSupportedYet, Message: "the runner starts processes on Unix systems only", Hint: "use a Linux container or WSL"}
	}

	dir, err := filepath.Abs(o.ProjectDir)
	if err != nil {
		return o, fmt.Errorf("resolve project directory: %w", err)
	}
	o.ProjectDir = dir
	if o.ModelDir != "" {
		if o.ModelDir, err = filepath.Abs(o.ModelDir); err != nil {
			return o, fmt.Errorf("resolve model directory: %w", err)
		}
	}
	return o, nil
}

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// isWorker says whether the runner's own scoring server runs, as opposed to a server
// behind a port.
func (o *Options) isWorker() bool { return o.EntryScript != "" && o.Mode == ModeServe }

// entryScript is the absolute path of the entry script.
func (o *Options) entryScript() (string, error) {
	if filepath.IsAbs(o.EntryScript) {
		return o.EntryScript, statFile(o.EntryScript)
	}
	inSource := filepath.Join(o.ProjectDir, o.SourceDirectory, o.EntryScript)
	err := statFile(inSource)
	if err != nil && o.SourceDirectory != "" {
		if inProject := filepath.Join(o.ProjectDir, o.EntryScript); statFile(inProject) == nil {
			return inProject, nil
		}
	}
	return inSource, err
}

func statFile(path string) error {
	info, err := os.Stat(path)
	if err == nil && info.IsDir() {
		err = fmt.Errorf("%s is a directory", path)
	}
	return err
}

// childEnv is the environment of what runs behind the gate. Settings of the gate
// itself are left out.
func (o *Options) childEnv(set ...string) []string {
	if o.ModelDir != "" {
		set = append(set, "AZUREML_MODEL_DIR="+o.ModelDir)
	}
	set = append(set, "AML_APP_ROOT="+o.ProjectDir)
	if o.EntryScript != "" {
		set = append(set, "AZUREML_ENTRY_SCRIPT="+o.EntryScript)
	}
	if o.SourceDirectory != "" {
		set = append(set, "AZUREML_SOURCE_DIRECTORY="+o.SourceDirectory)
	}
	env := slices.DeleteFunc(slices.Clone(o.Env), func(kv string) bool {
		name, _, _ := strings.Cut(kv, "=")
		return strings.HasPrefix(name, EnvPrefix) || slices.ContainsFunc(set, func(s string) bool {
			return strings.HasPrefix(s, name+"=")
		})
	})
	return append(env, set...)
}

// lookPath finds an executable by the PATH of the child's environment.
func (o *Options) lookPath(name string) (string, error) {
	if strings.ContainsRune(name, filepath.Separator) {
		if !filepath.IsAbs(name) {
			name = filepath.Join(o.ProjectDir, name)
		}
		return exec.LookPath(name)
	}
	for _, kv := range o.Env {
		if path, ok := strings.CutPrefix(kv, "PATH="); ok {
			for _, dir := range filepath.SplitList(path) {
				if !filepath.IsAbs(dir) {
					continue // a relative PATH entry would run what the project brought
				}
				if found, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
					return found, nil
				}
			}
			return "", &exec.Error{Name: name, Err: exec.ErrNotFound}
		}
	}
	return exec.LookPath(name)
}
