// Package deploy is the pipeline from a project to a version that takes traffic:
// package, ship, join the endpoint at 0, become ready, pass the smoke test, get
// its part. The command line, the Action and the API share it.
package deploy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/sluice-dev/sluice/pkg/access"
	"github.com/sluice-dev/sluice/pkg/cluster"
	"github.com/sluice-dev/sluice/pkg/image/environment"
	"github.com/sluice-dev/sluice/rollout"
)

// Shipment is a project made into an image.
type Shipment struct {
	// Endpoint that the project names.
	Endpoint string
	// Image by digest, as the fleets reach it; Pushed is its name as it is reached from here, empty where it is in no registry.
	Image    string
	Pushed   string
	Settings rollout.Settings
	Strategy *rollout.Strategy
	// Test is the smoke test, or nil.
	Test *Test
	// Files and Bytes that the archive holds; Known says that it was there already.
	Files int
	Bytes int64
	Known bool
	// Name is the version's name by the naming rules.
	Name   string
	Source rollout.Source
	// Environment that the image stands on; zero on this machine, where replicas are processes.
	Environment Environment
	// Sent is how many bytes went to registries.
	Sent int64
}

// EnvironmentSource says where the image of an environment came from.
type EnvironmentSource string

// The sources.
const (
	// EnvironmentBase: the base image alone is the environment.
	EnvironmentBase EnvironmentSource = "base"
	// EnvironmentWorkspace and EnvironmentGlobal: it was found in that registry.
	EnvironmentWorkspace EnvironmentSource = "workspace"
	EnvironmentGlobal    EnvironmentSource = "global"
	// EnvironmentBuilt: it was built now.
	EnvironmentBuilt EnvironmentSource = "built"
)

// Environment is what a version's image stands on.
type Environment struct {
	Source EnvironmentSource
	// Summary says what went into its hash.
	environment.Summary
}

// Stage is a part of a deploy that takes its time.
type Stage string

// The stages, in their order. Those of the image are the shipper's.
const (
	StagePackage     Stage = "package"
	StageEnvironment Stage = "environment"
	StageImage       Stage = "image"
	StagePush        Stage = "push"
	StageAdmit       Stage = "admit"
	StageJoin        Stage = "join"
	StageReady       Stage = "ready"
	StageTest        Stage = "test"
	StageShare       Stage = "share"
)

// Test is a request and what its answer must be.
type Test struct {
	Body   []byte
	Status int
	// Contains, if not empty, must occur in the answer.
	Contains string
}

// Shipper makes a project's directory into an image that the fleets can run.
type Shipper interface {
	Ship(ctx context.Context, dir string) (Shipment, error)
}

// Keys reads the keys of endpoints; cluster.Keys is one.
type Keys interface {
	Keys(ctx context.Context, key rollout.Key) (access.Keys, error)
}

// Scored is a version as a test reaches it: requests to URL that name it in the header Sluice-Version are its own.
type Scored struct {
	Endpoint rollout.Key
	Version  string
	URL      string
	// Key to authorise with, or empty.
	Key string
}

// Progress is told what happens, one line a step.
type Progress func(format string, args ...any)

// Options of Run.
type Options struct {
	Dir       string
	Namespace string
	// Endpoint and Version override the project's and the naming rules' names.
	Endpoint, Version string
	// Source says where the commit comes from; fields that are set override what the shipper found.
	Source       rollout.Source
	Repositories []int64
	// Percent to claim once ready; with a strategy it is the first step.
	Percent *rollout.Percent
	// Type of a version that is not the first: treatment unless given.
	Type        *rollout.Role
	Description string
	Default     bool
	Actor       string
	// Router, if not empty, is the router's address as it is reached from here, for the smoke test: the
	// endpoint's own may be one that only a cluster's pods know.
	Router string
	// Script, if not nil, looks at the version once it is ready and has passed its smoke test; its error is that test's failure.
	Script func(context.Context, Scored) error
	// Timeout for becoming ready; 0 does not wait, and leaves the version untyped at 0 unless it is the first.
	Timeout time.Duration

	Shipper Shipper
	// Admit, if not nil, is asked once the image is there and before the version joins; its error ends the deploy.
	Admit     func(context.Context, Shipment) error
	Endpoints cluster.Editor
	Keys      Keys
	Logs      cluster.LogReader
	Client    *http.Client
	Progress  Progress
	// Stage, if not nil, is told when one begins.
	Stage  func(Stage)
	Logger *slog.Logger
}

// Result of a deploy.
type Result struct {
	Endpoint rollout.Key
	Version  string
	Image    string
	// Changed is false when the same version ran already.
	Changed    bool
	First      bool
	ScoringURI string
	Message    string
}

// Run carries out a deploy. A version that does not become ready in time, or
// fails its smoke test, is left untyped at 0 and the error says why, with the
// last lines that its replica wrote; only a first version, which nothing else
// could stand in for, keeps its part.
//
// When ctx ends, the version stays as it is (as it does when the process is killed): the error
// has reason interrupted and says what is left, and the same deploy again, of the same
// repository and commit under the same name, goes on from there.
func Run(ctx context.Context, o Options) (Result, error) {
	if o.Progress == nil {
		o.Progress = func(string, ...any) {}
	}
	if o.Stage == nil {
		o.Stage = func(Stage) {}
	}
	if _, err := reached("", o.Router); err != nil {
		return Result{}, err
	}
	ship, err := o.Shipper.Ship(ctx, o.Dir)
	if err != nil {
		return Result{}, err
	}
	d := &deployment{Options: o, ship: ship, id: "deploy-" + uuid.NewString()}
	if o.Endpoint != "" {
		d.ship.Endpoint = o.Endpoint
	}
	if o.Version != "" {
		d.ship.Name = o.Version
	}
	if err := errors.Join(rollout.ValidateName("endpoint", "an endpoint", d.ship.Endpoint), rollout.ValidateName("version", "a version", d.ship.Name)); err != nil {
		return Result{}, err
	}
	d.key = rollout.Key{Namespace: o.Namespace, Name: d.ship.Endpoint}
	known := "new"
	if ship.Known {
		known = "known already"
	}
	o.Progress("packaged %d files, %d bytes (%s): %s", ship.Files, ship.Bytes, known, ship.Image)
	if o.Admit != nil {
		o.Stage(StageAdmit)
		if err := o.Admit(ctx, d.ship); err != nil {
			return Result{}, err
		}
	}
	res, err := d.run(ctx)
	if err == nil && d.unbound != "" {
		res.Message += "; " + d.unbound
	}
	return res, err
}

type deployment struct {
	Options
	ship Shipment
	key  rollout.Key
	id   string
	// prepared says that replicas are being made ready for a share.
	prepared bool
	// unbound says that the repository may not act on the endpoint, if it may not.
	unbound string
}

func (d *deployment) run(ctx context.Context) (Result, error) {
	d.Stage(StageJoin)
	e, out, first, err := d.join(ctx)
	if err != nil {
		return Result{}, err
	}
	d.Progress("%s", out.Message)
	if d.unbound != "" {
		d.Progress("%s (`sluice update %s --bind-repository ID` binds one)", d.unbound, d.key.Name)
	}
	res := Result{Endpoint: d.key, Version: d.ship.Name, Image: e.Spec.Version(d.ship.Name).Image, Changed: out.Changed, First: first, Message: out.Message, ScoringURI: e.Status.ScoringURI}
	if v := e.Spec.Version(d.ship.Name); !out.Changed {
		rolledBack := failedBefore(e, v.Name)
		switch {
		case !v.RetiredAt.IsZero():
			return res, rolledBack
		case v.Type == rollout.Untyped && rollout.ReasonOf(rolledBack) == rollout.ReasonRolledBack:
			return res, rolledBack
		case v.Type != rollout.Untyped && d.Timeout > 0:
			e, err := d.ready(ctx) // it has had its part already, but does it serve?
			if err == nil && first {
				err = d.test(ctx, e) // it got its part before its test, which an interrupt may have left out
			}
			if err != nil && ctx.Err() != nil {
				return res, d.interrupted(v.Type, first)
			}
			return res, err
		case v.Type != rollout.Untyped:
			return res, nil
		}
	}
	if d.Timeout == 0 {
		return res, nil
	}
	e, err = d.ready(ctx)
	if err == nil {
		res.ScoringURI = e.Status.ScoringURI
		err = d.test(ctx, e)
	}
	if err == nil && !first {
		d.Stage(StageShare)
		err = d.room(ctx)
	}
	switch {
	case err != nil && ctx.Err() != nil:
		return res, d.interrupted(rollout.Untyped, first)
	case err != nil:
		return res, d.giveUp(err, first)
	case first:
		return res, nil
	}
	msg, err := d.enter(ctx)
	switch {
	case err != nil && ctx.Err() != nil:
		return res, d.interrupted(rollout.Untyped, first)
	case rollout.ReasonOf(err) == rollout.ReasonSuperseded:
		return res, d.giveUp(err, first)
	case err != nil:
		return res, err
	}
	d.Progress("%s", msg)
	res.Message, res.Changed = msg, true
	return res, nil
}

// interrupted says what is left when ctx ends. It does not retire the version, as giveUp does:
// nothing is wrong with it, and a deploy that is repeated goes on with it.
func (d *deployment) interrupted(role rollout.Role, first bool) error {
	if d.prepared {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if _, _, err := d.Endpoints.Edit(ctx, d.key, d.request(d.id+"-unprepare"), func(*rollout.Endpoint) (rollout.Op, error) {
			return rollout.Prepare{Version: d.ship.Name}, nil
		}); err != nil {
			d.Progress("the replicas that were added for its share stay: %v", err)
		}
	}
	err := &rollout.Error{Reason: rollout.ReasonInterrupted, Field: "version"}
	name, again := d.ship.Name, "deploy the same again to go on from here"
	switch {
	case first:
		err.Message = fmt.Sprintf("%s stays control and default, because it is the only version", name)
		err.Hint = fmt.Sprintf("%s, or remove all with `sluice delete %s`", again, d.key.Name)
	case role != rollout.Untyped:
		err.Message = fmt.Sprintf("%s keeps the part that it has, but was not seen to be ready", name)
		err.Hint = fmt.Sprintf("look at `sluice status %s`", d.key.Name)
	default:
		err.Message = fmt.Sprintf("%s is left untyped at 0 per cent, and its replicas run on", name)
		err.Hint = fmt.Sprintf("%s, or remove it with `sluice delete %s %s`", again, d.key.Name, name)
	}
	return err
}

// join adds the version to its endpoint, which it makes if there is none.
func (d *deployment) join(ctx context.Context) (*rollout.Endpoint, rollout.Outcome, bool, error) {
	src := d.ship.Source
	if d.Source.RepositoryID != 0 {
		src.RepositoryID = d.Source.RepositoryID
	}
	if d.Source.PullRequest != 0 {
		src.PullRequest = d.Source.PullRequest
	}
	if d.Source.Commit != "" {
		src.Commit = d.Source.Commit
	}
	if d.Source.RunID != 0 {
		src.RunID = d.Source.RunID
	}
	repos := d.Repositories
	if src.RepositoryID != 0 {
		repos = append(repos, src.RepositoryID)
	}
	op := rollout.Deploy{
		Version: rollout.Version{
			Name: d.ship.Name, Image: d.ship.Image, Source: src, Description: d.Description, Settings: d.ship.Settings,
		},
		Strategy: d.ship.Strategy,
	}
	first := false
	e, out, err := d.Endpoints.Edit(ctx, d.key, d.request(d.id), func(e *rollout.Endpoint) (rollout.Op, error) {
		first = len(e.Spec.Versions) == 0 || (len(e.Spec.Versions) == 1 && e.Spec.Versions[0].Name == d.ship.Name)
		// Only a new endpoint is bound by its deploy: later on, who may act on it is not for a workflow to say.
		op.Repositories = nil
		if e.Metadata.UID == "" {
			op.Repositories = repos
		}
		return op, nil
	})
	if err == nil && src.RepositoryID != 0 && !slices.Contains(e.Spec.Repositories, src.RepositoryID) {
		d.unbound = fmt.Sprintf("repository %d is not bound to endpoint %s: its comments may not act on it", src.RepositoryID, d.key.Name)
	}
	return e, out, first, err
}

func (d *deployment) request(id string) rollout.Request {
	return rollout.Request{ID: id, Actor: d.Actor, Reason: rollout.ReasonRequested, At: time.Now().UTC()}
}

// enter gives the version its part.
func (d *deployment) enter(ctx context.Context) (string, error) {
	role := rollout.Treatment
	if d.Type != nil {
		role = *d.Type
	}
	var instead string
	_, out, err := d.Endpoints.Edit(ctx, d.key, d.request(d.id+"-enter"), func(e *rollout.Endpoint) (rollout.Op, error) {
		instead = ""
		if newer := superseded(&e.Spec, d.ship.Name); newer != "" {
			return nil, &rollout.Error{
				Reason: rollout.ReasonSuperseded, Field: "version", Message: fmt.Sprintf("%s came after %s from the same pull request", newer, d.ship.Name), Hint: "nothing is to be done: the newer one takes its place",
			}
		}
		if dead := nobodyServes(e); dead != "" && d.Type == nil {
			instead = dead
			control := rollout.Control
			return rollout.Update{Version: d.ship.Name, Type: &control, Default: true}, nil
		}
		return rollout.Update{Version: d.ship.Name, Type: &role, Percent: d.Percent, Default: d.Default}, nil
	})
	if err != nil {
		return "", fmt.Errorf("give %s its part: %w", d.ship.Name, err)
	}
	if instead != "" {
		return fmt.Sprintf("%s; it takes the place of %s, which serves nobody", out.Message, instead), nil
	}
	return out.Message, nil
}

// nobodyServes is the default of an endpoint whose first version came to nothing: it is control and default, no other version
// has a part, and none of its replicas is ready for a reason that does not pass by itself. There is nothing to compare a
// treatment with then, and the share that is not the treatment's would be lost.
func nobodyServes(e *rollout.Endpoint) string {
	def := e.Spec.Default()
	if def == nil || def.Type != rollout.Control {
		return ""
	}
	for i := range e.Spec.Versions {
		if v := &e.Spec.Versions[i]; v != def && e.Spec.Active(v) {
			return ""
		}
	}
	for _, s := range e.Status.Versions {
		if s.Name != def.Name || s.ReadyReplicas > 0 {
			continue
		}
		switch s.Reason {
		case rollout.ReasonInitFailed, rollout.ReasonImageMissing, rollout.ReasonCrashed, rollout.ReasonProbeFailed, rollout.ReasonPodsRefused:
			return def.Name
		}
	}
	return ""
}

// failedBefore is the error of an earlier deploy of that version, if that is why it is retired, or says that it was
// rolled back: the same again does not let it in again.
func failedBefore(e *rollout.Endpoint, name string) error {
	var last rollout.Change
	for _, c := range append(append([]rollout.Change{}, e.Status.History...), e.Spec.Changes...) {
		if c.Action == (rollout.Retire{Version: name}).String() || c.Action == (rollout.Rollback{Version: name}).String() {
			last = c
		}
	}
	if last.Action == (rollout.Rollback{Version: name}).String() {
		why := string(last.Reason)
		if last.Evidence != "" {
			why += ": " + last.Evidence
		}
		return &rollout.Error{
			Reason: rollout.ReasonRolledBack, Field: "version", Message: fmt.Sprintf("%s was rolled back by %s (%s)", name, last.Actor, why),
			Hint: "deploy what mends it as a new version, or give this one a role with `sluice update`",
		}
	}
	switch last.Reason {
	case rollout.ReasonInitFailed, rollout.ReasonCrashed, rollout.ReasonImageMissing, rollout.ReasonProbeFailed, rollout.ReasonSmokeFailed, rollout.ReasonReadyTimeout,
		rollout.ReasonNotEnoughReady, rollout.ReasonInternal:
		return &rollout.Error{
			Reason: last.Reason, Field: "version", Message: fmt.Sprintf("%s failed when it was deployed and is retired: %s", name, last.Message),
			Hint: "mend it and deploy it as a new version, or delete this one and deploy again",
		}
	}
	return nil
}

// room waits until ready slots can carry the percentile that the deploy asks for.
func (d *deployment) room(ctx context.Context) error {
	if d.Percent == nil || *d.Percent <= 0 {
		return nil
	}
	// Not a deadline of the context: what the store says when one passes is no answer to whether there is room.
	late := time.After(d.Timeout)
	for {
		e, err := d.Endpoints.Get(ctx, d.key)
		if err != nil {
			return fmt.Errorf("read endpoint %s: %w", d.key, err)
		}
		v := e.Spec.Version(d.ship.Name)
		if v == nil {
			return rollout.UnknownVersion(&e.Spec, d.ship.Name)
		}
		have, need := rollout.Slots(v, &e.Status, *d.Percent)
		if have >= need {
			return nil
		}
		if !d.prepared {
			d.Progress("preparing %d slots for %s per cent (%d are ready)", need, *d.Percent, have)
			if _, _, err := d.Endpoints.Edit(ctx, d.key, d.request(d.id+"-prepare"), func(*rollout.Endpoint) (rollout.Op, error) {
				return rollout.Prepare{Version: d.ship.Name, Percent: *d.Percent}, nil
			}); err != nil {
				return err
			}
			d.prepared = true
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for room: %w", ctx.Err())
		case <-late:
			return &rollout.Error{
				Reason: rollout.ReasonNotEnoughReady, Field: "--percent", Message: fmt.Sprintf("%s has %d ready slots after %s, but %s per cent of the present demand needs %d", v.Name, have, d.Timeout, *d.Percent, need),
				Hint: "begin with a smaller share, or allow more replicas",
			}
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// superseded is a later version of the same pull request, if there is one: a push
// that was overtaken while it became ready must not become a treatment after all.
func superseded(s *rollout.Spec, name string) string {
	mine := s.Version(name)
	if mine == nil || mine.Source.PullRequest == 0 {
		return ""
	}
	for i := range s.Versions {
		v := &s.Versions[i]
		if v.Source.PullRequest == mine.Source.PullRequest && v.Source.RepositoryID == mine.Source.RepositoryID && v.CreatedAt.After(mine.CreatedAt) {
			return v.Name
		}
	}
	return ""
}

// ready waits until a replica of the version is ready.
func (d *deployment) ready(ctx context.Context) (*rollout.Endpoint, error) {
	d.Stage(StageReady)
	d.Progress("waiting for %s to be ready (at most %s)", d.ship.Name, d.Timeout)
	ctx, cancel := context.WithTimeout(ctx, d.Timeout)
	defer cancel()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	last := rollout.VersionStatus{Reason: rollout.ReasonStarting, Message: "nothing reports on it: is the control role running? (`sluice up`)"}
	for {
		e, err := d.Endpoints.Get(ctx, d.key)
		if err == nil {
			if e.Spec.Version(d.ship.Name) == nil {
				return nil, rollout.UnknownVersion(&e.Spec, d.ship.Name)
			}
			for _, s := range e.Status.Versions {
				if s.Name == d.ship.Name {
					last = s
				}
			}
			if last.ReadyReplicas > 0 {
				d.Progress("%s is ready", d.ship.Name)
				return e, nil
			}
			if last.Reason == rollout.ReasonInitFailed || last.Reason == rollout.ReasonImageMissing {
				return nil, d.notReady(last) // it will not get better by waiting
			}
		}
		select {
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.DeadlineExceeded) {
				return nil, d.notReady(last)
			}
			return nil, ctx.Err()
		case <-tick.C:
		}
	}
}

func (d *deployment) notReady(s rollout.VersionStatus) error {
	reason := s.Reason
	if reason == "" || reason == rollout.ReasonStarting {
		reason = rollout.ReasonReadyTimeout
	}
	msg := fmt.Sprintf("%s did not become ready", d.ship.Name)
	if reason == rollout.ReasonReadyTimeout {
		msg += fmt.Sprintf(" within %s", d.Timeout)
	}
	if s.Message != "" {
		msg += ": " + s.Message
	}
	return &rollout.Error{Reason: reason, Field: "version", Message: msg, Hint: fmt.Sprintf("read `sluice logs %s %s`, mend it and deploy again", d.key.Name, d.ship.Name)}
}

// test sends the smoke test to the version, and only to it; then the script has its say.
func (d *deployment) test(ctx context.Context, e *rollout.Endpoint) error {
	if d.ship.Test == nil && d.Script == nil {
		return nil
	}
	d.Stage(StageTest)
	at := Scored{Endpoint: d.key, Version: d.ship.Name}
	if e.Status.ScoringURI == "" {
		return d.smokeFailed("the endpoint has no address to send the smoke test to")
	}
	var err error
	if at.URL, err = reached(e.Status.ScoringURI, d.Router); err != nil {
		return err
	}
	if e.Spec.AuthMode() == rollout.AuthKey {
		keys, err := d.Keys.Keys(ctx, d.key)
		if err != nil {
			return d.smokeFailed("the endpoint's key cannot be read: %v", err)
		}
		at.Key = keys.Primary
	}
	if t := d.ship.Test; t != nil {
		if err := d.score(ctx, t, at); err != nil {
			return err
		}
	}
	if d.Script == nil {
		return nil
	}
	if err := d.Script(ctx, at); err != nil {
		if ctx.Err() != nil {
			return fmt.Errorf("run the test's script: %w", ctx.Err())
		}
		return d.smokeFailed("the test's script failed: %v", err)
	}
	d.Progress("the test's script passed")
	return nil
}

func (d *deployment) smokeFailed(format string, args ...any) *rollout.Error {
	return &rollout.Error{Reason: rollout.ReasonSmokeFailed, Field: "test", Message: fmt.Sprintf(format, args...), Hint: fmt.Sprintf("read `sluice logs %s %s`", d.key.Name, d.ship.Name)}
}

// score is the manifest's smoke test.
func (d *deployment) score(ctx context.Context, t *Test, at Scored) error {
	client := d.Client
	if client == nil {
		client = &http.Client{Timeout: 2 * time.Minute}
	}
	var status int
	var body []byte
	// The router learns of a new replica and of new keys a moment after the status: its own
	// refusals are tried again for a while, an answer of the version never is.
	deadline := time.Now().Add(10 * time.Second)
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, at.URL, bytes.NewReader(t.Body))
		if err != nil {
			return d.smokeFailed("the smoke test cannot be sent: %v", err)
		}
		req.Header.Set("Content-Type", "application/json")
		req.Header.Set("Sluice-Version", d.ship.Name)
		if at.Key != "" {
			req.Header.Set("Authorization", "Bearer "+at.Key)
		}
		resp, err := client.Do(req)
		retry := err != nil
		if err == nil {
			status = resp.StatusCode
			body, err = io.ReadAll(io.LimitReader(resp.Body, 1<<20))
			_ = resp.Body.Close()
			retry = status != t.Status && (status == http.StatusServiceUnavailable || status == http.StatusNotFound || status == http.StatusUnauthorized)
		}
		if !retry && err == nil {
			break
		}
		if time.Now().After(deadline) || ctx.Err() != nil {
			if err != nil {
				out := d.smokeFailed("the smoke test got no answer: %v", err)
				var unreached *net.OpError
				if errors.As(err, &unreached) && unreached.Op == "dial" {
					out.Hint = "make the router's address known to this machine with --router-url (such as http://127.0.0.1:8080 while `kubectl port-forward` leads there), or have the control role announce one that clients reach (its --scoring-url)"
				}
				return out
			}
			break
		}
		select {
		case <-ctx.Done():
		case <-time.After(100 * time.Millisecond):
		}
	}
	if status != t.Status {
		return d.smokeFailed("the smoke test expects status %d and got %d: %.2000s", t.Status, status, bytes.TrimSpace(body))
	}
	if !bytes.Contains(body, []byte(t.Contains)) {
		return d.smokeFailed("the smoke test expects an answer with %q and got: %.2000s", t.Contains, bytes.TrimSpace(body))
	}
	d.Progress("the smoke test passed: status %d", status)
	return nil
}

// reached is the endpoint's address with the router's as it is reached from here.
func reached(scoringURI, router string) (string, error) {
	if router == "" {
		return scoringURI, nil
	}
	at, err := url.Parse(router)
	if err != nil || at.Host == "" || at.Scheme != "http" && at.Scheme != "https" {
		return "", &rollout.Error{Reason: rollout.ReasonInvalid, Field: "--router-url", Message: fmt.Sprintf("%q is not the address of a router", router), Hint: "write http://HOST:PORT or https://HOST:PORT"}
	}
	uri, err := url.Parse(scoringURI)
	if err != nil {
		return "", fmt.Errorf("parse scoring address: %w", err)
	}
	return at.JoinPath(uri.EscapedPath()).String(), nil
}

// unsaid are the lines that a refusal does not quote already, as that of a failed init() does.
func unsaid(lines string, cause error) string {
	said := map[string]bool{}
	for _, e := range rollout.AsErrors(cause) {
		for l := range strings.SplitSeq(e.Message, "\n") {
			said[strings.TrimSpace(l)] = true
		}
	}
	var left []string
	for _, l := range strings.Split(strings.TrimRight(lines, "\n"), "\n") {
		if t := strings.TrimSpace(l); !said[t] {
			left = append(left, l)
		}
	}
	return strings.Trim(strings.Join(left, "\n"), "\n")
}

// giveUp leaves the version without a part and adds what its replicas wrote last.
func (d *deployment) giveUp(cause error, first bool) error {
	// The caller's context may end meanwhile: cleaning up has its own.
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	var lines string
	if d.Logs != nil {
		if r, err := d.Logs.Logs(ctx, cluster.FleetKey{Endpoint: d.key, Version: d.ship.Name}, cluster.LogOptions{Tail: 15}); err == nil {
			b, _ := io.ReadAll(io.LimitReader(r, 16<<10))
			_ = r.Close()
			lines = string(b)
		}
	}
	if first {
		d.Progress("%s stays: it is the first version, and nothing else could serve", d.ship.Name)
	} else {
		req := d.request(d.id + "-give-up")
		req.Reason, req.Message = rollout.ReasonOf(cause), cause.Error()
		if _, _, err := d.Endpoints.Edit(ctx, d.key, req, func(*rollout.Endpoint) (rollout.Op, error) {
			return rollout.Retire{Version: d.ship.Name}, nil
		}); err != nil {
			cause = errors.Join(cause, fmt.Errorf("retire %s: %w", d.ship.Name, err))
		} else {
			d.Progress("%s is left untyped at 0 per cent", d.ship.Name)
		}
	}
	if lines = unsaid(lines, cause); lines != "" {
		d.Progress("its last lines:\n%s", lines)
	}
	return cause
}
