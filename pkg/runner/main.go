package runner

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"
)

// EnvPrefix begins the variables that set flags: SLUICE_RUNNER_SCORE_PATH sets
// -score-path. They are not passed on to what the runner starts.
const EnvPrefix = "SLUICE_RUNNER_"

// Also read where the flag and its own variable are absent: Azure ML's names.
var knownAs = map[string]string{
	"project-dir":      "AML_APP_ROOT",
	"entry-script":     "AZUREML_ENTRY_SCRIPT",
	"source-directory": "AZUREML_SOURCE_DIRECTORY",
	"model-dir":        "AZUREML_MODEL_DIR",
}

const usage = `Usage: runner [flags] [--] [argument...]

Serves GET / (health) and GET|POST /score. With -entry-script the arguments are the
script's, with -command they are the command of a custom server. Each flag can be set
by SLUICE_RUNNER_<NAME> too, the arguments by SLUICE_RUNNER_ARGS (a JSON list); PORT is
the port to listen on, SCORING_TIMEOUT_MS the scoring timeout.

Exit codes: 0 drained, 1 failed, 2 usage, 3 the script or server did not come up; a
custom server that ends by itself gives its own code.

Flags:
`

// Main is the runner as a program: it reads flags (args without the program's name)
// and environment, runs until ctx ends and returns the exit code. The log goes to
// stderr; stdout gets the help only.
func Main(ctx context.Context, args, env []string, stdout, stderr io.Writer) int {
	o, level, err := parse(args, env, stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
		flags, _ := newFlags(&Options{}, stdout)
		_, _ = io.WriteString(stdout, usage)
		flags.PrintDefaults()
		return 0
	case err != nil:
		_, _ = fmt.Fprintf(stderr, "runner: %v\n", err)
		return 2
	}
	o.Logger = slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: level}))
	o.Output = stderr
	o.reap = os.Getpid() == 1
	if o.isWorker() && !slices.ContainsFunc(env, func(kv string) bool { return strings.HasPrefix(kv, "GOMAXPROCS=") }) {
		// One thread of Go keeps more requests going than one Python process can answer,
		// and saves the wake-ups between threads: a quarter of the gate's CPU time.
		defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	}
	err = Run(ctx, o)
	if err != nil {
		o.Logger.Error("runner failed", "err", err, "code", ExitCode(err))
	}
	return ExitCode(err)
}

// settings are flags that are not an option as they stand.
type settings struct {
	port       int
	listenFD   int
	lifelineFD int
	command    bool
	verbose    bool
}

func newFlags(o *Options, out io.Writer) (*flag.FlagSet, *settings) {
	s := &settings{}
	f := flag.NewFlagSet("runner", flag.ContinueOnError)
	f.SetOutput(out)
	f.StringVar(&o.Listen, "listen", "", "address to serve on (default all interfaces, -port)")
	f.IntVar(&s.port, "port", DefaultPort, "port to serve on; also $PORT")
	f.IntVar(&s.listenFD, "listen-fd", -1, "serve on the listening socket inherited as this descriptor")
	f.StringVar(&o.ProjectDir, "project-dir", "", "the model's project (default the current directory)")
	f.StringVar(&o.EntryScript, "entry-script", "", "Python script with init() and run()")
	f.StringVar(&o.SourceDirectory, "source-directory", "", "directory within the project to put on sys.path")
	f.StringVar((*string)(&o.Mode), "mode", string(ModeServe), "serve: call init() and run(); script: run the script, which serves on $PORT itself")
	f.StringVar(&o.Python, "python", "python3", "interpreter")
	f.StringVar(&o.ModelDir, "model-dir", "", "becomes AZUREML_MODEL_DIR")
	f.BoolVar(&s.command, "command", false, "the arguments are the command of a custom server")
	f.StringVar(&o.Upstream, "upstream", "", "host:port of a custom server that runs elsewhere")
	f.IntVar(&o.Server.Port, "server-port", 0, "port of the custom server (default: a free one, in its $PORT)")
	f.StringVar(&o.Server.ScorePath, "score-path", "", "what /score becomes at the custom server (default /score)")
	f.StringVar(&o.Server.HealthPath, "health-path", "", "health path of the custom server (default: it accepts a connection)")
	f.StringVar(&o.Fleet, "fleet", "", "NAMESPACE/ENDPOINT/VERSION to serve requests for (default any)")
	f.IntVar(&o.MaxConcurrentRequests, "max-concurrent-requests", 1, "slots")
	f.DurationVar(&o.ScoringTimeout, "scoring-timeout", DefaultScoringTimeout, "longest time for an answer")
	f.DurationVar(&o.InitTimeout, "init-timeout", DefaultInitTimeout, "longest time to become ready")
	f.DurationVar(&o.DrainTimeout, "drain-timeout", 0, "longest time to drain (default -scoring-timeout + 5s)")
	f.DurationVar(&o.DrainLinger, "drain-linger", DefaultDrainLinger, "shortest time to go on refusing while draining; negative: none")
	f.IntVar(&s.lifelineFD, "lifeline-fd", -1, "end at once at end of file on this descriptor")
	f.BoolVar(&s.verbose, "verbose", false, "log more")
	return f, s
}

func parse(args, env []string, stderr io.Writer) (Options, slog.Level, error) {
	var o Options
	level := slog.LevelInfo
	vars := map[string]string{}
	for _, kv := range env {
		name, value, _ := strings.Cut(kv, "=")
		vars[name] = value
	}
	f, s := newFlags(&o, io.Discard)
	if err := f.Parse(args); err != nil {
		return o, level, err
	}
	given := map[string]bool{}
	f.Visit(func(fl *flag.Flag) { given[fl.Name] = true })
	var failed error
	f.VisitAll(func(fl *flag.Flag) {
		name := EnvPrefix + strings.ToUpper(strings.ReplaceAll(fl.Name, "-", "_"))
		value, ok := vars[name]
		if !ok && knownAs[fl.Name] != "" {
			name = knownAs[fl.Name]
			value, ok = vars[name]
		}
		if given[fl.Name] || !ok || value == "" {
			return
		}
		if err := f.Set(fl.Name, value); err != nil && failed == nil {
			failed = fmt.Errorf("%s: %q: %w", name, value, err)
		}
		given[fl.Name] = true
	})
	if failed != nil {
		return o, level, failed
	}
	// An image may name an entry script by Azure ML's variable and still be started with
	// a command: the flag wins.
	rest := f.Args()
	if value, ok := vars[EnvPrefix+"ARGS"]; ok && len(rest) == 0 {
		if err := json.Unmarshal([]byte(value), &rest); err != nil {
			return o, level, fmt.Errorf("%sARGS must be a JSON list of strings: %w", EnvPrefix, err)
		}
	}
	if s.command {
		o.Command, o.EntryScript = rest, ""
		if len(rest) == 0 {
			return o, level, errors.New("-command needs the command after the flags")
		}
	} else {
		o.Arguments = rest
	}
	if o.Upstream != "" {
		o.EntryScript = ""
	}
	if value, ok := vars["SCORING_TIMEOUT_MS"]; ok && !given["scoring-timeout"] {
		ms, err := strconv.ParseInt(value, 10, 32)
		if err != nil || ms <= 0 {
			return o, level, fmt.Errorf("SCORING_TIMEOUT_MS must be a positive number, not %q", value)
		}
		o.ScoringTimeout = time.Duration(ms) * time.Millisecond
	}
	if value, ok := vars["PORT"]; ok && !given["port"] && value != "" {
		port, err := strconv.Atoi(value)
		if err != nil || port < 0 || port > 65535 {
			return o, level, fmt.Errorf("PORT must be a port, not %q", value)
		}
		s.port = port
	}
	if o.Listen == "" {
		o.Listen = net.JoinHostPort("", strconv.Itoa(s.port))
	}
	if s.verbose {
		level = slog.LevelDebug
	}
	o.Env = env
	if s.lifelineFD >= 0 {
		o.Lifeline = inherited(s.lifelineFD, "lifeline")
	}
	if s.listenFD >= 0 {
		file := inherited(s.listenFD, "listener")
		ln, err := net.FileListener(file)
		_ = file.Close()
		if err != nil {
			return o, level, fmt.Errorf("take over descriptor %d: %w", s.listenFD, err)
		}
		o.Listener = ln
	}
	return o, level, nil
}
