// Package act runs GitHub workflows for real, by nektos/act and a Docker engine, and gives tests what
// GitHub would show: outputs, job summaries, annotations, logs. See the README beside it.
package act

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

const (
	// ProgramVariable is a variable with the path of act.
	ProgramVariable = "SLUICE_TEST_ACT"
	// BuilderVariable is a variable with the address of a buildkitd.
	BuilderVariable = "BUILDKIT_HOST"

	// defaultTimeout is that of a run.
	defaultTimeout = 10 * time.Minute
)

// Options say what is run, and for which event.
type Options struct {
	// Repository is the directory of the work tree that the workflow is for. It has to be a git repository: see
	// Repository.
	Repository string
	// Workflow is its file below the repository; default all in .github/workflows that are for the event.
	Workflow string
	// Job is the only one to run, with those it needs.
	Job string
	// Event is the event's name: pull_request, push, …
	Event string
	// Payload becomes the event's JSON. What it says of the repository and the sender also becomes GITHUB_REPOSITORY,
	// GITHUB_REPOSITORY_ID, GITHUB_REPOSITORY_OWNER_ID, GITHUB_ACTOR and GITHUB_ACTOR_ID, which act leaves out or to its flags.
	Payload any
	// Actions are directories that stand for what workflows use: "sluice-dev/sluice@v1" → directory. actions/checkout
	// is act's own, and needs none.
	Actions map[string]string
	// Secrets, Variables and Inputs are the contexts secrets, vars and inputs. The secret GITHUB_TOKEN is "token" by default.
	Secrets, Variables, Inputs map[string]string
	// Env is every step's environment; GITHUB_API_URL, GITHUB_RUN_ID and the like take the place of act's.
	Env map[string]string
	// Mounts are files and directories of this machine, as HOST:CONTAINER, in the job's container and in those of
	// actions. The engine's socket is there already, at /var/run/docker.sock.
	Mounts []string
	// Builder gives them the buildkitd that the test has, by its socket and BUILDKIT_HOST.
	Builder bool
	// Image is that of ubuntu-latest; default Runner.
	Image string
	// Timeout ends the run; default 10 minutes.
	Timeout time.Duration
}

// Result is what became of it.
type Result struct {
	// ExitCode is act's: 0 if every job succeeded.
	ExitCode int
	// Steps are the steps that ran, in order. Skipped ones are not among them.
	Steps []Step
	// Log is all that was said, with masks applied, a line with its job and step each.
	Log string
	// Images are those of actions that ran and have a Dockerfile, by their tags.
	Images []string
	Took   time.Duration
}

// Step is one stage of a step that ran.
type Step struct {
	Job string
	// ID is the step's id, or its index from 0. Steps inside a composite action have that one's before: outer/inner.
	ID string
	// Stage is Main, Pre or Post.
	Stage, Name string
	// Outcome is success or failure.
	Outcome string
	Outputs map[string]string
	// Summary is what it wrote to GITHUB_STEP_SUMMARY. Masks are not applied to it, nor to outputs.
	Summary     string
	Annotations []Annotation
	// Log is what it printed, less the commands.
	Log  string
	Took time.Duration
}

// Annotation is a workflow command of these levels: error, warning, notice.
type Annotation struct {
	Level, Message string
	// Properties are file, line, title, …
	Properties map[string]string
}

// Step is the main stage of the step of an id; one without outcome if it did not run.
func (r Result) Step(id string) Step {
	for _, s := range r.Steps {
		if s.ID == id && s.Stage == "Main" {
			return s
		}
	}
	return Step{}
}

// Summary is the job summary: those of all steps.
func (r Result) Summary() string {
	var b strings.Builder
	for _, s := range r.Steps {
		b.WriteString(s.Summary)
	}
	return b.String()
}

// one at a time: act names containers after workflow and job, and images after the action.
var one sync.Mutex

// Run runs what o says. A workflow that fails is a result; what keeps act from running one, and an image that is not of the
// program in an action's dist, ends the test. It skips the test where act or an engine are not to be had.
func Run(t *testing.T, o Options) Result {
	t.Helper()
	e := available(t)
	one.Lock()
	defer one.Unlock()
	if err := e.prepare(t); err != nil {
		t.Fatal(err)
	}
	r, err := e.run(t.Context(), t.TempDir(), o)
	if err != nil {
		t.Fatalf("%v; it said:\n%s", err, r.Log)
	}
	if err := e.fresh(t.Context(), o.Actions, r.Images); err != nil {
		t.Fatal(err)
	}
	return r
}

func (e *engine) run(ctx context.Context, dir string, o Options) (Result, error) {
	args, err := o.arguments(dir)
	if err != nil {
		return Result{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, cmp.Or(o.Timeout, defaultTimeout))
	defer cancel()
	cmd := exec.CommandContext(ctx, e.program, args...)
	cmd.Dir = o.Repository
	// Nothing of the person's who runs the test: act reads settings, tokens and registries' passwords from there.
	cmd.Env = []string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + dir, "XDG_CONFIG_HOME=" + dir, "XDG_CACHE_HOME=" + dir,
		"DOCKER_HOST=" + e.host, "CLICOLOR=0",
	}
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = time.Minute
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	began := time.Now()
	err = cmd.Run()
	r := read(out.Bytes())
	r.ExitCode, r.Took = cmd.ProcessState.ExitCode(), time.Since(began)
	var ended *exec.ExitError
	switch {
	case ctx.Err() != nil:
		return r, fmt.Errorf("run act: %w after %s", ctx.Err(), r.Took.Round(time.Second))
	case errors.As(err, &ended) && len(r.Steps) > 0:
		return r, nil
	case err != nil:
		return r, fmt.Errorf("run act: %w", err)
	case len(r.Steps) == 0:
		return r, errors.New("run act: no step ran")
	}
	return r, nil
}

// arguments are act's; it writes what they name into dir.
func (o Options) arguments(dir string) ([]string, error) {
	if o.Event == "" || o.Repository == "" {
		return nil, errors.New("run act: the options need an event and a repository")
	}
	args := []string{
		o.Event, "--json", "--rm", "--pull=false", "--action-offline-mode", "--no-cache-server", "--strict",
		// It would take the image of an earlier run otherwise.
		"--rebuild",
		"--network", "host", "--platform", "ubuntu-latest=" + cmp.Or(o.Image, Runner),
		"--workflows", filepath.Join(".github", "workflows"),
	}
	if o.Workflow != "" {
		args[len(args)-1] = o.Workflow
	}
	if o.Job != "" {
		args = append(args, "--job", o.Job)
	}
	write := func(flag, name string, value any) error {
		text, err := json.Marshal(value)
		if err != nil {
			return fmt.Errorf("encode %s: %w", name, err)
		}
		args = append(args, flag, filepath.Join(dir, name))
		return os.WriteFile(filepath.Join(dir, name), text, 0o600)
	}
	// JSON is YAML too, and holds values of several lines, which act's other format does not.
	secrets := map[string]string{"GITHUB_TOKEN": "token"}
	maps.Copy(secrets, o.Secrets)
	env, actor := o.facts()
	maps.Copy(env, o.Env)
	mounts := o.Mounts
	if o.Builder {
		host := os.Getenv(BuilderVariable)
		socket, is := strings.CutPrefix(host, "unix://")
		if !is {
			return nil, fmt.Errorf("give builder: %s is %q, and no unix socket", BuilderVariable, host)
		}
		env[BuilderVariable] = host
		mounts = append(slices.Clip(mounts), socket+":"+socket)
	}
	// It would be act's own name, whatever the environment says.
	args = append(args, "--actor", cmp.Or(o.Env["GITHUB_ACTOR"], actor, "octocat"))
	payload := o.Payload
	if payload == nil {
		payload = map[string]any{}
	}
	err := errors.Join(
		write("--eventpath", "event.json", payload),
		write("--secret-file", "secrets.yaml", secrets),
		write("--var-file", "variables.yaml", o.Variables),
		write("--input-file", "inputs.yaml", o.Inputs),
		write("--env-file", "env.yaml", env),
	)
	if err != nil {
		return nil, fmt.Errorf("write options: %w", err)
	}
	for _, name := range slices.Sorted(maps.Keys(o.Actions)) {
		args = append(args, "--local-repository", name+"="+o.Actions[name])
	}
	if len(mounts) > 0 {
		args = append(args, "--container-options", "--volume "+strings.Join(mounts, " --volume "))
	}
	return args, nil
}

// facts are the variables that GitHub has from the payload, and who caused the event.
func (o Options) facts() (env map[string]string, actor string) {
	text, err := json.Marshal(o.Payload)
	if err != nil {
		return map[string]string{}, "" // arguments says so
	}
	var p struct {
		Repository struct {
			ID       json.Number `json:"id"`
			FullName string      `json:"full_name"`
			Owner    struct {
				ID json.Number `json:"id"`
			} `json:"owner"`
		} `json:"repository"`
		Sender struct {
			ID    json.Number `json:"id"`
			Login string      `json:"login"`
		} `json:"sender"`
	}
	_ = json.Unmarshal(text, &p) // a payload may be anything
	env = map[string]string{
		"GITHUB_REPOSITORY": p.Repository.FullName, "GITHUB_REPOSITORY_ID": p.Repository.ID.String(),
		"GITHUB_REPOSITORY_OWNER_ID": p.Repository.Owner.ID.String(), "GITHUB_ACTOR_ID": p.Sender.ID.String(),
	}
	maps.DeleteFunc(env, func(_, value string) bool { return value == "" })
	return env, p.Sender.Login
}

// line is one of act's log (pkg/runner, logger.go, command.go and step.go).
type line struct {
	Msg           string            `json:"msg"`
	Level         string            `json:"level"`
	JobID         string            `json:"jobID"`
	Step          string            `json:"step"`
	StepID        []string          `json:"stepID"`
	Stage         string            `json:"stage"`
	Raw           bool              `json:"raw_output"`
	Command       string            `json:"command"`
	Name          string            `json:"name"`
	Arg           string            `json:"arg"`
	Content       string            `json:"content"`
	KVPairs       map[string]string `json:"kvPairs"`
	StepResult    string            `json:"stepResult"`
	ExecutionTime time.Duration     `json:"executionTime"`
}

// used finds an image that act makes of an action, built in this run or before.
var used = regexp.MustCompile(`docker create image=(act-\S+-dockeraction:latest) `)

// read reads act's log.
func read(log []byte) Result {
	var r Result
	var all strings.Builder
	steps := map[string]*Step{}
	var order []*Step
	texts := map[*Step]*strings.Builder{}
	for text := range strings.Lines(string(log)) {
		var l line
		if json.Unmarshal([]byte(text), &l) != nil {
			all.WriteString(text)
			continue
		}
		message := strings.TrimRight(l.Msg, "\r\n")
		fmt.Fprintf(&all, "[%s/%s] %s\n", l.JobID, l.Step, message)
		if m := used.FindStringSubmatch(l.Msg); m != nil && !slices.Contains(r.Images, m[1]) {
			r.Images = append(r.Images, m[1])
		}
		if len(l.StepID) == 0 {
			continue
		}
		id := strings.Join(l.StepID, "/")
		key := l.JobID + "\n" + id + "\n" + l.Stage
		s := steps[key]
		if s == nil {
			s = &Step{Job: l.JobID, ID: id, Stage: l.Stage, Name: l.Step, Outputs: map[string]string{}}
			steps[key], texts[s] = s, &strings.Builder{}
			order = append(order, s)
		}
		switch {
		case l.StepResult != "":
			s.Outcome, s.Took = l.StepResult, l.ExecutionTime
		case l.Raw:
			texts[s].WriteString(message + "\n")
		case l.Command == "set-output":
			s.Outputs[l.Name] = l.Arg
		case l.Command == "summary":
			s.Summary += l.Content
		case l.Command == "error", l.Command == "warning", l.Command == "notice":
			s.Annotations = append(s.Annotations, Annotation{Level: l.Command, Message: l.Arg, Properties: l.KVPairs})
		}
	}
	for _, s := range order {
		// Some are only looked at, and not run.
		if s.Outcome != "" {
			s.Log = texts[s].String()
			r.Steps = append(r.Steps, *s)
		}
	}
	r.Log = all.String()
	return r
}
