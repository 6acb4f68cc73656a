// Package action is the GitHub Action: inputs become options of the deploy pipeline or a transition, and what came of it
// becomes outputs, annotations and the job's summary. docs/action.md is its reference.
package action

import (
	"context"
	"encoding/base64"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"time"

	"github.com/sethvargo/go-githubactions"

	"github.com/sluice-dev/sluice/pkg/deploy"
	"github.com/sluice-dev/sluice/pkg/process"
	"github.com/sluice-dev/sluice/pkg/project"
	"github.com/sluice-dev/sluice/rollout"
)

// Statuses, in the output of that name.
const (
	statusDeployed   = "deployed"
	statusUnchanged  = "unchanged"
	statusChecked    = "checked"
	statusPlanned    = "planned"
	statusPackaged   = "packaged"
	statusUpdated    = "updated"
	statusPromoted   = "promoted"
	statusRolledBack = "rolled-back"
	statusShifted    = "shifted"
	statusDeleted    = "deleted"
	statusShown      = "shown"
	statusFailed     = "failed"
)

// Exit codes.
const (
	exitOK     = 0
	exitFailed = 1
	exitUsage  = 2
)

// revision that was compiled, where the linker is told (-X); else git's, as the compiler has recorded it.
var revision string

func revisionOf() string {
	if revision != "" {
		return revision
	}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" {
				return s.Value
			}
		}
	}
	return "unknown"
}

// run is one run of the Action.
type run struct {
	in   *inputs
	from origin
	r    *report
	env  []string
	// root is what paths are relative to: the workspace, or by hand the working directory. dir is the project's.
	root, dir string
	// given is the manifest, if it is not the directory's sluice.yaml.
	given   *project.Given
	log     *slog.Logger
	summary summary
	// reach the endpoints; tests stand in for it.
	reach func(context.Context) (*system, error)
	clean []func()
}

// Main runs the Action and returns its exit code: 0 if what was asked for was done, or was so already.
func Main(ctx context.Context, args, env []string, stdout, stderr io.Writer) (code int) {
	return start(ctx, args, env, stdout, stderr, (*run).reachTarget)
}

// start is Main with another way to the endpoints.
func start(ctx context.Context, args, env []string, stdout, stderr io.Writer, reach func(*run, context.Context) (*system, error)) (code int) {
	a := githubactions.New(githubactions.WithWriter(stdout), githubactions.WithGetenv(func(name string) string { return process.Getenv(env, name) }))
	r := &report{gh: a, out: stdout, outputs: map[string]string{}, onGitHub: process.Getenv(env, "GITHUB_ACTIONS") == "true"}
	defer func() {
		// The library panics where it cannot write, and nobody reads a log that ends in a trace.
		if p := recover(); p != nil {
			_, _ = fmt.Fprintf(stderr, "::error title=Sluice: internal::%s\n", harmless(fmt.Sprint(p)))
			_, _ = stderr.Write(debug.Stack())
			code = exitFailed
		}
	}()
	if !r.onGitHub && len(args) == 0 {
		_, _ = fmt.Fprintln(stderr, "Error: this is a step of a GitHub workflow (uses: sluice-dev/sluice@v1); to try it by hand, give its inputs as flags: see --help, and docs/action.md")
		return exitUsage
	}
	in, err := parse(args, env, stderr)
	if errors.Is(err, flag.ErrHelp) {
		return exitOK
	}
	run := &run{in: in, r: r, env: env, log: slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))}
	run.reach = func(ctx context.Context) (*system, error) { return reach(run, ctx) }
	if in != nil {
		run.maskSecrets()
	}
	// Also after a mistake in the inputs, which is annotated in the workspace.
	from, e := findOrigin(a)
	run.from = from
	if err == nil {
		err = e
	}
	if err == nil && r.onGitHub {
		// Before anything is done whose outcome could not be told.
		err = appendable(a, "GITHUB_OUTPUT")
	}
	if err == nil {
		err = run.place()
	}
	if err == nil {
		err = run.manifest()
	}
	began := time.Now()
	r.say("Sluice's Action, revision %s", revisionOf())
	if err == nil {
		err = run.do(ctx)
	}
	for i := len(run.clean) - 1; i >= 0; i-- {
		run.clean[i]()
	}
	if err != nil {
		r.set("status", statusFailed)
		reason := rollout.ReasonOf(err)
		if ctx.Err() != nil && reason == rollout.ReasonInternal {
			reason = rollout.ReasonInterrupted
		}
		r.set("reason-code", string(reason))
		r.failed(err, run.root, run.dir)
		run.summary.failed(err)
	}
	run.summary.took(time.Since(began))
	if e := r.finish(run.summary.markdown()); e != nil {
		if err == nil || e.Error() != err.Error() { // which was told
			r.annotate(map[string]string{"title": "Sluice: " + string(rollout.ReasonInternal)}, e.Error())
		}
		return exitFailed
	}
	if err != nil {
		return exitFailed
	}
	return exitOK
}

// maskSecrets hides them before anything else is said.
func (r *run) maskSecrets() {
	for _, i := range table {
		if i.secret && i.name != "kubeconfig" && r.in.text[i.name] != "" {
			r.r.mask(r.in.text[i.name])
		}
	}
	for _, kv := range r.env {
		if name, value, _ := strings.Cut(kv, "="); strings.HasPrefix(name, project.ModelQueryVariable("")) {
			r.r.mask(value)
		}
	}
	k := r.in.text["kubeconfig"]
	// As secrets often are, in base64.
	if decoded, err := base64.StdEncoding.DecodeString(strings.Join(strings.Fields(k), "")); err == nil && isKubeconfig(string(decoded)) {
		r.r.mask(k)
		k = string(decoded)
		r.in.text["kubeconfig"] = k
	}
	if isKubeconfig(k) {
		r.maskKubeconfig([]byte(k))
	}
}

func (r *run) maskKubeconfig(text []byte) {
	for _, secret := range kubeconfigSecrets(text) {
		r.r.mask(secret)
	}
}

// place finds the project.
func (r *run) place() error {
	r.root = r.from.workspace
	if r.root == "" {
		wd, err := os.Getwd()
		if err != nil {
			return fmt.Errorf("find working directory: %w", err)
		}
		r.root = wd
	}
	at, field := r.in.text["directory"], "directory"
	if c := r.in.text["config"]; c != "" {
		at, field = filepath.Dir(c), "config"
	}
	dir, err := r.path(field, at)
	if err != nil {
		return err
	}
	if info, err := os.Stat(dir); err != nil || !info.IsDir() {
		hint := "check the repository out before this step (uses: actions/checkout), and name a directory in it"
		return invalid(field, hint, "there is no directory %s in the workspace", filepath.ToSlash(at))
	}
	r.dir = dir
	r.from.found(checkedOut(r.root, dir))
	return nil
}

// path is a file of the workspace. By hand any will do.
func (r *run) path(field, p string) (string, error) {
	if r.from.onGitHub && filepath.IsAbs(p) {
		if rel, err := filepath.Rel(r.root, p); err == nil && filepath.IsLocal(rel) {
			p = rel
		}
	}
	if r.from.onGitHub && !filepath.IsLocal(p) {
		return "", invalid(field, "name it by its path from the repository's root", "%q leads out of the workspace", p)
	}
	if !filepath.IsAbs(p) {
		p = filepath.Join(r.root, p)
	}
	if !r.from.onGitHub {
		return filepath.Clean(p), nil
	}
	// A link of the repository's may lead to what is not its author's.
	root, err := filepath.EvalSymlinks(r.root)
	if err != nil {
		return "", fmt.Errorf("find workspace: %w", err)
	}
	real, err := filepath.EvalSymlinks(p)
	if err != nil {
		return p, nil //nolint:nilerr // who opens it says that it is not there
	}
	if rel, err := filepath.Rel(root, real); err != nil || !filepath.IsLocal(rel) {
		return "", invalid(field, "name a file of the repository", "%q is a link that leads out of the workspace", filepath.Base(p))
	}
	return p, nil
}

// do carries out the command.
func (r *run) do(ctx context.Context) error {
	command := r.in.text["command"]
	switch command {
	case commandDeploy:
		return r.deploy(ctx)
	case commandPackage:
		return r.packageOnly(ctx)
	case commandStatus:
		return r.status(ctx)
	}
	return r.change(ctx, command)
}

// actor is who the record says has done it.
func (r *run) actor() string {
	switch {
	case !r.from.onGitHub:
		return "action"
	case r.from.repository == "":
		return "github:" + r.from.actor
	}
	return fmt.Sprintf("github:%s (%s)", r.from.actor, r.from.repository)
}

// Titles of a deploy's stages.
var stageTitles = map[deploy.Stage]string{
	deploy.StagePackage: "Package the project", deploy.StageEnvironment: "Find or build the environment", deploy.StageImage: "Make the image",
	deploy.StagePush: "Push the image", deploy.StageAdmit: "Check the image", deploy.StageJoin: "Join the endpoint", deploy.StageReady: "Wait until it is ready",
	deploy.StageTest: "Smoke test", deploy.StageShare: "Take its share of traffic",
}

// stage begins one: a group in the log, a line in the summary.
func (r *run) stage(s deploy.Stage) {
	r.summary.begin(stageTitles[s], time.Now())
	r.r.group(stageTitles[s])
}

// warn tells of something that is no failure.
func (r *run) warn(format string, args ...any) {
	message := fmt.Sprintf(format, args...)
	if r.r.onGitHub {
		r.r.gh.WithFieldsMap(map[string]string{"title": "Sluice"}).Warningf("%s", message)
	} else {
		r.r.say("warning: %s", message)
	}
	r.summary.notes = append(r.summary.notes, message)
}

// progress is a line of a stage. Those that warn are annotations too.
func (r *run) progress(format string, args ...any) {
	line := fmt.Sprintf(format, args...)
	if rest, ok := strings.CutPrefix(line, "warning: "); ok {
		r.warn("%s", rest)
		return
	}
	r.r.say("%s", line)
}
