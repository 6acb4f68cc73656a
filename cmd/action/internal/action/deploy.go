package action

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/sluice-dev/sluice/pkg/cluster"
	"github.com/sluice-dev/sluice/pkg/deploy"
	"github.com/sluice-dev/sluice/pkg/image"
	"github.com/sluice-dev/sluice/pkg/image/build"
	"github.com/sluice-dev/sluice/pkg/image/environment"
	"github.com/sluice-dev/sluice/pkg/process"
	"github.com/sluice-dev/sluice/pkg/project"
	"github.com/sluice-dev/sluice/rollout"
)

// client speaks to registries.
func (r *run) client() image.Client {
	return image.Client{Insecure: r.in.lists["insecure-registry"], Keychain: r.keychain(), Progress: r.progress}
}

// shipper makes and pushes images.
func (r *run) shipper() (image.Shipper, error) {
	s := image.Shipper{
		Client: r.client(), Registry: r.in.text["registry"], PullRegistry: r.in.text["pull-registry"], GlobalRegistry: r.in.text["global-registry"],
		Endpoint: r.in.text["endpoint"], BaseImage: r.in.text["base-image"], Platform: r.in.text["platform"], Rebuild: r.in.is("rebuild"),
		RunnerImage: r.in.text["runner-image"], Source: r.from.source(), SourceURL: r.from.url, Stage: r.stage, Manifest: r.given,
		Builder: build.Builder{Address: r.in.text["builder"], Keychain: r.keychain(), Progress: r.progress}, CacheDir: image.DefaultCacheDir(),
		ModelQuery: func(model string) string { return process.Getenv(r.env, project.ModelQueryVariable(model)) },
	}
	if s.RunnerImage == "" {
		file, err := bundledRunner()
		if err != nil {
			return image.Shipper{}, err
		}
		s.RunnerFile = file
	}
	if s.Registry == "" {
		return image.Shipper{}, invalid("registry", "name the registry that the cluster pulls from, such as ghcr.io/OWNER/models", "images have nowhere to go")
	}
	return s, nil
}

// bundledRunner is the runner that came with this program: it stands beside it.
func bundledRunner() (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("find runner: %w", err)
	}
	file := filepath.Join(filepath.Dir(self), "runner")
	if _, err := os.Stat(file); err != nil {
		return "", invalid("runner-image", "name Sluice's runner image, or keep the program runner beside this one", "there is no runner at %s", file)
	}
	return file, nil
}

// trusted refuses to let what is checked out into a registry or a cluster where it may not be what the event is about.
func (r *run) trusted() error {
	switch {
	case r.from.fork:
	case r.from.event == "pull_request_target":
		return invalid("command", "run it on: pull_request, which checks out what it names", "pull_request_target checks out the branch that the pull request is for: that would go out under the name of the pull request's commit")
	case r.from.untrusted && r.from.elsewhere:
		return &rollout.Error{
			Reason: rollout.ReasonDenied, Field: "command", Message: fmt.Sprintf("what is checked out is not, or not for sure, the commit that %s is about: with this event it may be anybody's code, and the workflow has secrets", r.from.event),
			Hint: "deploy on: pull_request or push, and let comments act on what is deployed",
		}
	}
	return nil
}

// withoutSecrets tells whose workflows have none, or must not use them, and says so.
func (r *run) withoutSecrets() bool {
	switch {
	case r.from.dependabot:
		r.warn("Dependabot's workflows have no secrets: the project is packaged and checked, and goes nowhere.")
	case r.from.fork:
		r.warn("Pull request %d comes from a fork: its code is packaged and checked, and not deployed, because it is not trusted with the registry's and the cluster's credentials. Once a maintainer has merged it, or pushed its branch to this repository, the workflow deploys it.", r.from.pullRequest)
	default:
		return false
	}
	r.r.set("reason-code", string(rollout.ReasonFork))
	return true
}

func (r *run) deploy(ctx context.Context) error {
	if r.from.closed {
		return invalid("command", "run it on: pull_request, types [opened, synchronize, reopened]; use promote or delete when one is closed", "pull request %d is closed: there is nothing to deploy", r.from.pullRequest)
	}
	if err := r.trusted(); err != nil {
		return err
	}
	if r.withoutSecrets() {
		return r.check(ctx, statusChecked)
	}
	if r.in.is("dry-run") {
		return r.plan(ctx)
	}
	// What is wrong with these shows before anything is built.
	shipper, err := r.shipper()
	if err != nil {
		return err
	}
	script, err := r.script()
	if err != nil {
		return err
	}
	if _, err := project.Load(r.dir, r.given); err != nil {
		return err
	}
	sys, err := r.reach(ctx)
	if err != nil {
		return err
	}
	o := deploy.Options{
		Dir: r.dir, Namespace: sys.namespace, Endpoint: r.in.text["endpoint"], Version: r.version(), Percent: r.in.percent, Type: r.in.role,
		Description: r.in.text["description"], Default: r.in.is("is-default"), Actor: r.actor(), Router: r.in.text["router-url"],
		Source:    rollout.Source{RepositoryID: r.from.repositoryID, PullRequest: r.from.pullRequest, Commit: r.from.commit, RunID: r.from.runID},
		Endpoints: sys.endpoints, Keys: sys.keys, Logs: sys.logs, Progress: r.progress, Stage: r.stage, Logger: r.log, Script: script,
	}
	if r.in.is("wait") {
		o.Timeout = r.in.wait
	}
	k := keeping{Shipper: shipper, after: func(s deploy.Shipment) { r.shipped(ctx, sys, s) }}
	o.Shipper = k
	res, err := deploy.Run(ctx, o)
	r.r.endGroup()
	if res.Version != "" {
		r.r.set("version", res.Version)
		r.r.set("scoring-uri", res.ScoringURI)
		r.runs(res)
	}
	status := statusDeployed
	if !res.Changed {
		status = statusUnchanged
	}
	if err == nil {
		r.r.set("status", status)
		r.summary.result = res.Message
		if status == statusUnchanged && r.in.percent != nil {
			if e, err := sys.endpoints.Get(ctx, res.Endpoint); err == nil {
				if v := e.Spec.Version(res.Version); v != nil && v.TrafficPercentile != *r.in.percent {
					r.warn("%s has had its part already, and claims %s %% now; the command traffic gives it another share than that.", v.Name, v.TrafficPercentile)
				}
			}
		}
	}
	if res.Version != "" {
		// Shares as they are now, also after a failure.
		r.after(ctx, sys, res.Endpoint.Name)
	}
	return err
}

// runs says which image the endpoint has under the version's name: the same commit may have been shipped with another content before.
func (r *run) runs(res deploy.Result) {
	if r.summary.ship == nil || res.Image == "" || res.Image == r.summary.ship.Image {
		return
	}
	r.warn("%s runs as %s already, and not as what was shipped now (%s): the same commit was deployed with another content, and versions never change. To deploy this one, give it a name of its own with the input version.", res.Version, res.Image, r.summary.ship.Image)
	r.r.set("image", res.Image)
	_, digest, _ := strings.Cut(res.Image, "@")
	r.r.set("digest", digest)
	r.summary.ship.Image = res.Image
}

// keeping tells of what was shipped before the version joins.
type keeping struct {
	image.Shipper
	after func(deploy.Shipment)
}

// Ship implements deploy.Shipper.
func (k keeping) Ship(ctx context.Context, dir string) (deploy.Shipment, error) {
	s, err := k.Shipper.Ship(ctx, dir)
	if err == nil {
		k.after(s)
	}
	return s, err
}

// shipped says in outputs and summary what the image is, and why its environment was built.
func (r *run) shipped(ctx context.Context, sys *system, s deploy.Shipment) {
	s = r.image(s)
	endpoint := cmp.Or(r.in.text["endpoint"], s.Endpoint)
	r.r.set("endpoint", endpoint)
	r.summary.endpoint, r.summary.version = endpoint, s.Name
	before, err := sys.endpoints.Get(ctx, sys.key(endpoint))
	if err != nil {
		return // it is new, or the deploy will say what is wrong
	}
	r.summary.before = parts(&before.Spec)
	if s.Environment.Source == deploy.EnvironmentBuilt {
		r.summary.why = r.whyBuilt(ctx, before, s)
	}
}

// version is the input's, or the one by the run's commit: workflows make files that git does not have, and the same commit is
// to have the same name all the same. Empty by hand, where the shipper finds the name.
func (r *run) version() string {
	return cmp.Or(r.in.text["version"], r.from.versionName())
}

// image sets the outputs about an image, and gives the shipment with the name that its version gets.
func (r *run) image(s deploy.Shipment) deploy.Shipment {
	r.r.set("image", s.Image)
	if _, digest, ok := strings.Cut(s.Image, "@"); ok {
		r.r.set("digest", digest)
	}
	r.r.set("environment-hash", s.Environment.Hash)
	r.r.set("environment-source", string(s.Environment.Source))
	s.Name = cmp.Or(r.version(), s.Name)
	r.r.set("version", s.Name)
	r.summary.ship = &s
	return s
}

// whyBuilt compares the environment with that of the endpoint's control, or of its default.
func (r *run) whyBuilt(ctx context.Context, before *rollout.Endpoint, s deploy.Shipment) []string {
	v := before.Spec.ByRole(rollout.Control)
	if v == nil {
		v = before.Spec.Default()
	}
	if v == nil {
		return nil
	}
	if r.in.is("rebuild") {
		return []string{"the input rebuild asks for it"}
	}
	_, digest, ok := strings.Cut(v.Image, "@")
	repo, _, pushed := strings.Cut(s.Pushed, "@")
	if !ok || !pushed {
		return nil
	}
	platform, err := v1.ParsePlatform(s.Environment.Platform)
	if err != nil {
		return nil
	}
	found, err := r.client().Find(ctx, "image", repo+"@"+digest, *platform)
	if err != nil {
		return []string{"what " + v.Name + " stands on cannot be read"}
	}
	was, ok := image.InputsOf(found.Image)
	if !ok {
		return []string{v.Name + " does not say what it stands on"}
	}
	var out []string
	for _, c := range environment.Explain(was, s.Environment.Summary) {
		out = append(out, c.String())
	}
	if len(out) == 0 {
		out = []string{"it is that of " + v.Name + ", but its image is gone from the registries"}
	} else {
		for i := range out {
			out[i] = "since " + v.Name + ": " + out[i]
		}
	}
	return out
}

// after shows the endpoint's shares as they are now.
func (r *run) after(ctx context.Context, sys *system, endpoint string) {
	if ctx.Err() != nil {
		var cancel func()
		ctx, cancel = context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
	}
	e, err := sys.endpoints.Get(ctx, sys.key(endpoint))
	if err != nil {
		r.r.say("the endpoint's shares cannot be read: %v", err)
		return
	}
	r.summary.after = parts(&e.Spec)
	r.r.set("traffic", compactJSON(r.summary.after))
	if e.Status.ScoringURI != "" {
		r.r.set("scoring-uri", e.Status.ScoringURI)
	}
	r.r.say("%s", shareTable(r.summary.after))
}

// script is the test's program, or nil.
func (r *run) script() (func(context.Context, deploy.Scored) error, error) {
	name := r.in.text["test-script"]
	if name == "" {
		return nil, nil
	}
	path, err := r.path("test-script", name)
	if err != nil {
		return nil, err
	}
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return nil, invalid("test-script", "name a file of the workspace", "there is no file %s", name)
	case !info.Mode().IsRegular() || info.Mode().Perm()&0o111 == 0:
		return nil, invalid("test-script", "make it executable: git update-index --chmod=+x "+name, "%s is not a program", name)
	}
	if missing := missingInterpreter(path); missing != "" {
		return nil, invalid("test-script", "use sluice-dev/sluice/action/composite, which runs on the runner itself, or a static program", "%s needs %s, which is not here", name, missing)
	}
	return func(ctx context.Context, at deploy.Scored) error {
		ctx, cancel := context.WithTimeout(ctx, r.in.wait)
		defer cancel()
		c := exec.CommandContext(ctx, path)
		c.Dir = r.dir
		// With all that it started.
		c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		c.Cancel = func() error { return syscall.Kill(-c.Process.Pid, syscall.SIGKILL) }
		c.Env = append(scriptEnv(r.env), "SLUICE_SCORING_URI="+at.URL, "SLUICE_NAMESPACE="+at.Endpoint.Namespace, "SLUICE_ENDPOINT="+at.Endpoint.Name, "SLUICE_VERSION="+at.Version, "SLUICE_KEY="+at.Key)
		c.WaitDelay = time.Second
		r.r.mask(at.Key)
		out := &sayer{r: r.r, left: 1 << 20}
		c.Stdout, c.Stderr = out, out
		err := c.Run()
		out.flush()
		// Children that it left would go on writing.
		if c.Process != nil {
			_ = syscall.Kill(-c.Process.Pid, syscall.SIGKILL)
		}
		switch {
		case errors.Is(ctx.Err(), context.DeadlineExceeded):
			return fmt.Errorf("it did not end within %s", r.in.wait)
		case errors.Is(err, exec.ErrWaitDelay):
			return nil // it succeeded, and what it left has ended now
		}
		return err
	}, nil
}

// sayer says what is written to it line by line, up to a bound.
type sayer struct {
	r       *report
	pending []byte
	left    int
}

func (s *sayer) Write(p []byte) (int, error) {
	n := len(p)
	if len(p) > s.left {
		p = p[:s.left]
	}
	s.left -= len(p)
	s.pending = append(s.pending, p...)
	for {
		line, rest, ok := bytes.Cut(s.pending, []byte("\n"))
		if !ok {
			return n, nil
		}
		s.r.say("%s", line)
		s.pending = rest
	}
}

func (s *sayer) flush() {
	if len(s.pending) > 0 {
		s.r.say("%s", s.pending)
	}
}

// scriptEnv leaves out the inputs, of which some are secrets, and what would let the script speak for the step.
func scriptEnv(env []string) []string {
	var out []string
	for _, kv := range env {
		name, _, _ := strings.Cut(kv, "=")
		switch {
		case strings.HasPrefix(name, "INPUT_"), name == compositeInputs, strings.HasPrefix(name, "ACTIONS_"), name == "GITHUB_OUTPUT", name == "GITHUB_STEP_SUMMARY", name == "GITHUB_ENV", name == "GITHUB_PATH", name == "GITHUB_STATE":
		default:
			out = append(out, kv)
		}
	}
	return out
}

// missingInterpreter is the program that a script names in its first line, if it is not here.
func missingInterpreter(path string) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer func() { _ = f.Close() }()
	first, _ := bufio.NewReader(io.LimitReader(f, 4096)).ReadString('\n')
	line, ok := strings.CutPrefix(strings.TrimSpace(first), "#!")
	words := strings.Fields(line)
	if !ok || len(words) == 0 {
		return ""
	}
	if _, err := os.Stat(words[0]); err != nil {
		return words[0]
	}
	return ""
}

// check packages the project and looks at its environment, and reaches no cluster.
func (r *run) check(ctx context.Context, status string) error {
	r.stage(deploy.StagePackage)
	res, err := project.Package(ctx, r.dir, io.Discard, nil, r.given)
	if err != nil {
		return err
	}
	name, err := project.VersionName(deploy.SourceOf(res, r.from.source()), res.Digest)
	if err != nil {
		return err
	}
	name = cmp.Or(r.version(), name)
	endpoint := cmp.Or(r.in.text["endpoint"], res.Manifest.Endpoint)
	r.r.set("endpoint", endpoint)
	r.r.set("version", name)
	r.r.set("status", status)
	r.summary.endpoint, r.summary.version = endpoint, name
	r.r.say("%s would be %s: %d files, %d bytes", endpoint, name, res.Files, res.Size)

	r.stage(deploy.StageEnvironment)
	platform, err := environment.ParsePlatform(r.in.text["platform"])
	if err != nil {
		return invalid("platform", "write it as linux/amd64 or linux/arm64", "%q is not a platform", r.in.text["platform"])
	}
	env := res.Manifest.Environment
	if env.Dockerfile == "" && env.BaseImage == "" {
		env.BaseImage = r.in.text["base-image"]
	}
	client := r.client()
	d, err := environment.Load(ctx, r.dir, env, environment.Options{Platform: platform.String(), Files: r.given.Contents(), Resolve: func(ctx context.Context, field, ref string) (environment.Image, error) {
		img, _, err := client.Resolve(ctx, field, ref, *platform)
		return img, err
	}})
	switch rollout.ReasonOf(err) {
	case rollout.ReasonRegistryUnreachable, rollout.ReasonRegistryDenied, rollout.ReasonRegistryRefused:
		r.warn("The environment is not checked, because its base image cannot be read here: %v", err)
		r.r.endGroup()
		return nil
	}
	if err != nil {
		return err
	}
	r.r.set("environment-hash", d.Hash())
	r.r.say("environment %s", d.Hash())
	r.summary.result = fmt.Sprintf("%d files, %d bytes; environment %s", res.Files, res.Size, d.Hash()[:12])
	r.r.endGroup()
	return nil
}

// plan says what a deploy would do.
func (r *run) plan(ctx context.Context) error {
	// What a deploy would fail for before it does anything.
	if _, err := r.shipper(); err != nil {
		return err
	}
	if _, err := r.script(); err != nil {
		return err
	}
	if err := r.check(ctx, statusPlanned); err != nil {
		return err
	}
	m, err := project.Load(r.dir, r.given)
	if err != nil {
		return err
	}
	sys, err := r.reach(ctx)
	if err != nil {
		return err
	}
	key := sys.key(r.summary.endpoint)
	e, err := sys.endpoints.Get(ctx, key)
	if errors.Is(err, cluster.ErrNotFound) {
		e, err = &rollout.Endpoint{APIVersion: rollout.APIVersion, Kind: rollout.Kind, Metadata: rollout.Metadata{Namespace: key.Namespace, Name: key.Name}}, nil
	}
	if err != nil {
		return fmt.Errorf("read endpoint %s: %w", key, err)
	}
	r.summary.before = parts(&e.Spec)
	// The image is not known before it is made; a digest of zeros stands for it.
	version := rollout.Version{
		Name: r.summary.version, Image: "planned@sha256:" + strings.Repeat("0", 64), Settings: m.Settings(),
		Source: rollout.Source{RepositoryID: r.from.repositoryID, PullRequest: r.from.pullRequest, Commit: r.from.commit},
	}
	if was := e.Spec.Version(version.Name); was != nil {
		version.Image = was.Image
	}
	next, out, err := rollout.Apply(e, rollout.Request{ID: "plan", Actor: r.actor(), At: time.Now().UTC()}, rollout.Deploy{Version: version, Strategy: m.Strategy})
	if err != nil {
		return err
	}
	messages := []string{out.Message}
	if len(e.Spec.Versions) > 0 && out.Changed {
		role := rollout.Treatment
		if r.in.role != nil {
			role = *r.in.role
		}
		next, out, err = rollout.Apply(next, rollout.Request{ID: "plan-enter", Actor: r.actor(), At: time.Now().UTC(), Force: true}, rollout.Update{Version: version.Name, Type: &role, Percent: r.in.percent, Default: r.in.is("is-default")})
		if err != nil {
			return err
		}
		messages = append(messages, out.Message)
	}
	r.summary.after, r.summary.planned = parts(&next.Spec), true
	r.summary.result = "nothing was done; a deploy would: " + strings.Join(messages, "; ")
	r.r.say("%s", r.summary.result)
	r.r.say("%s", shareTable(r.summary.after))
	r.r.set("traffic", compactJSON(r.summary.after))
	return nil
}

// packageOnly checks the project, and with a registry makes and pushes its image; it deploys nothing.
func (r *run) packageOnly(ctx context.Context) error {
	if r.withoutSecrets() || r.in.text["registry"] == "" || r.in.is("dry-run") {
		return r.check(ctx, statusChecked)
	}
	if err := r.trusted(); err != nil {
		return err
	}
	shipper, err := r.shipper()
	if err != nil {
		return err
	}
	s, err := shipper.Ship(ctx, r.dir)
	if err != nil {
		return err
	}
	s = r.image(s)
	endpoint := cmp.Or(r.in.text["endpoint"], s.Endpoint)
	r.r.set("endpoint", endpoint)
	r.r.set("status", statusPackaged)
	r.summary.endpoint, r.summary.version, r.summary.result = endpoint, s.Name, "the image is in its registry; nothing was deployed"
	r.r.say("%s", s.Image)
	r.r.endGroup()
	return nil
}
