package action

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/uuid"

	"github.com/sluice-dev/sluice/pkg/cluster"
	"github.com/sluice-dev/sluice/pkg/deploy"
	"github.com/sluice-dev/sluice/pkg/project"
	"github.com/sluice-dev/sluice/rollout"
)

// endpointName is the input's, or the manifest's.
func (r *run) endpointName() (string, error) {
	if name := r.in.text["endpoint"]; name != "" {
		return name, nil
	}
	m, err := project.Load(r.dir, r.given)
	if err != nil {
		if _, positioned := errors.AsType[*project.Error](err); positioned {
			return "", err
		}
		return "", invalid("endpoint", "name it, or check the repository with its manifest out before this step", "it is not said which endpoint is meant: %v", err)
	}
	return m.Endpoint, nil
}

// read reaches the endpoint that is meant.
func (r *run) read(ctx context.Context) (*system, *rollout.Endpoint, error) {
	endpoint, err := r.endpointName()
	if err != nil {
		return nil, nil, err
	}
	r.r.set("endpoint", endpoint)
	r.summary.endpoint = endpoint
	sys, err := r.reach(ctx)
	if err != nil {
		return nil, nil, err
	}
	key := sys.key(endpoint)
	e, err := sys.endpoints.Get(ctx, key)
	if errors.Is(err, cluster.ErrNotFound) {
		return nil, nil, cluster.UnknownEndpoint(key)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("read endpoint %s: %w", key, err)
	}
	return sys, e, nil
}

// statusOf are the outputs' words for what a command has done.
var statusOf = map[string]string{
	commandUpdate: statusUpdated, commandPromote: statusPromoted, commandRollback: statusRolledBack, commandTraffic: statusShifted, commandDelete: statusDeleted,
}

// change carries out a transition.
func (r *run) change(ctx context.Context, command string) error {
	if r.from.fork || r.from.dependabot {
		// Nothing of it was deployed, and its workflow has no secrets, or must not use them.
		r.r.set("status", statusUnchanged)
		r.r.set("reason-code", string(rollout.ReasonFork))
		r.warn("Pull request %d comes from a fork, or from Dependabot: its workflow has deployed nothing, and changes nothing.", r.from.pullRequest)
		return nil
	}
	sys, e, err := r.read(ctx)
	if command == commandDelete && rollout.ReasonOf(err) == rollout.ReasonUnknownEndpoint {
		r.r.set("status", statusUnchanged)
		r.summary.result = "there is no endpoint " + r.summary.endpoint + ": nothing is to be deleted"
		r.r.say("%s", r.summary.result)
		return nil
	}
	if err != nil {
		return err
	}
	endpoint := e.Metadata.Name
	r.summary.before = parts(&e.Spec)
	version, err := r.versionOf(e, command)
	if err != nil {
		return err
	}
	r.r.set("version", version)
	r.summary.version = version
	if v := e.Spec.Version(version); v != nil {
		r.r.set("image", v.Image)
	}
	nothing := func(why string) error {
		r.r.set("status", statusUnchanged)
		r.summary.result = why
		r.r.say("%s", why)
		r.after(ctx, sys, endpoint)
		return nil
	}
	if version == "" {
		return nothing("this pull request, or commit, has no version there: nothing is to be done")
	}
	if command == commandDelete && r.in.text["version"] == "" {
		// A pull request that is closed is cleaned up: what serves is never cleaned up by that.
		if v := e.Spec.Version(version); v != nil && (v.Type == rollout.Control || e.Spec.Default() == v) {
			r.warn("%s is the endpoint's control or default: it goes on serving. To delete it, name it with the input version, or delete the endpoint with `sluice delete %s`.", version, endpoint)
			return nothing(version + " goes on serving")
		}
	}
	var op rollout.Op
	var room *rollout.Percent
	full := rollout.Full
	switch command {
	case commandUpdate:
		op = rollout.Update{Version: version, Type: r.in.role, Percent: r.in.percent, Default: r.in.is("is-default")}
	case commandPromote:
		op, room = rollout.Promote{Version: version}, &full
	case commandRollback:
		op = rollout.Rollback{Version: version}
	case commandTraffic:
		op, room = rollout.Shift{Version: version, Percent: *r.in.percent}, r.in.percent
	case commandDelete:
		op = rollout.Delete{Version: version, NewDefault: r.in.text["new-default"]}
	}
	out, err := r.apply(ctx, sys, e, op, room)
	if err != nil {
		return err
	}
	if command == commandDelete && r.in.text["version"] == "" && !r.in.is("dry-run") {
		if err := r.deleteOthers(ctx, sys, e, version); err != nil {
			return err
		}
	}
	status := statusOf[command]
	switch {
	case r.in.is("dry-run"):
		status = statusPlanned
	case !out.Changed:
		status = statusUnchanged
	}
	r.r.set("status", status)
	r.summary.result = out.Message
	r.r.say("%s: %s", endpoint, out.Message)
	if !r.in.is("dry-run") {
		r.after(ctx, sys, endpoint)
	}
	return nil
}

// deleteOthers removes what else the pull request has deployed, but for what serves.
func (r *run) deleteOthers(ctx context.Context, sys *system, e *rollout.Endpoint, deleted string) error {
	for _, v := range r.mine(e) {
		if v.Name == deleted || v.Type == rollout.Control || e.Spec.Default() == v {
			continue
		}
		req := rollout.Request{ID: "action-" + uuid.NewString(), Actor: r.actor(), At: time.Now().UTC()}
		_, out, err := sys.endpoints.Edit(ctx, e.Key(), req, func(*rollout.Endpoint) (rollout.Op, error) { return rollout.Delete{Version: v.Name}, nil })
		switch {
		case rollout.ReasonOf(err) == rollout.ReasonUnknownVersion: // it is gone already
		case err != nil:
			return err
		default:
			r.r.say("%s: %s", e.Metadata.Name, out.Message)
		}
	}
	return nil
}

// mine are the versions of this run's pull request.
func (r *run) mine(e *rollout.Endpoint) []*rollout.Version {
	var out []*rollout.Version
	for i := range e.Spec.Versions {
		v := &e.Spec.Versions[i]
		if r.from.pullRequest != 0 && v.Source.PullRequest == r.from.pullRequest && v.Source.RepositoryID == r.from.repositoryID {
			out = append(out, v)
		}
	}
	return out
}

// apply a transition, after replicas for its share are ready if it waits for these.
func (r *run) apply(ctx context.Context, sys *system, e *rollout.Endpoint, op rollout.Op, room *rollout.Percent) (rollout.Outcome, error) {
	req := rollout.Request{ID: "action-" + uuid.NewString(), Actor: r.actor(), At: time.Now().UTC(), Force: r.in.is("force")}
	// What has happened already, such as in an earlier attempt of the workflow, is no failure.
	if p, ok := op.(rollout.Promote); ok {
		if v := e.Spec.Version(p.Version); v != nil && v.Type == rollout.Control && e.Spec.Default() == v {
			return rollout.Outcome{Message: p.Version + " is control and default already"}, nil
		}
	}
	if r.in.is("dry-run") {
		req.Force = true
		next, out, err := rollout.Apply(e, req, op)
		if err != nil {
			return out, err
		}
		r.summary.after, r.summary.planned = parts(&next.Spec), true
		r.r.set("traffic", compactJSON(r.summary.after))
		out.Message = "nothing was done; it would be: " + out.Message
		return out, nil
	}
	if room == nil || !r.in.is("wait") || r.in.is("force") {
		_, out, err := sys.endpoints.Edit(ctx, e.Key(), req, func(*rollout.Endpoint) (rollout.Op, error) { return op, nil })
		return out, err
	}
	return deploy.WithRoom(ctx, deploy.Room{
		Endpoints: sys.endpoints, Key: e.Key(), Request: req, Op: op, Version: r.summary.version, Percent: *room, Timeout: r.in.wait, Progress: r.progress,
	})
}

// versionOf is the version that a command is about: the input's, or the one that this pull request or commit has
// made. A pull request whose last push was not deployed may be rolled back or cleaned up by what it has; promoting that would
// promote another commit than the one that is merged. Empty is a version that is gone, or was never there, where there is
// nothing to clean up.
func (r *run) versionOf(e *rollout.Endpoint, command string) (string, error) {
	if v := r.in.text["version"]; v != "" {
		return v, nil
	}
	name := r.from.versionName()
	if name == "" {
		return "", invalid("version", "name it", "it is not said which version is meant, and no commit is known")
	}
	if e.Spec.Version(name) != nil || (r.from.pullRequest == 0 && command != commandDelete) {
		return name, nil
	}
	mine := r.mine(e)
	cleaning := command == commandRollback || command == commandDelete
	switch {
	case len(mine) == 0 && cleaning:
		return "", nil
	case len(mine) == 0:
		return name, nil // the transition says that it is not there
	}
	newest := slices.MaxFunc(mine, func(a, b *rollout.Version) int { return a.CreatedAt.Compare(b.CreatedAt) })
	if cleaning {
		return newest.Name, nil
	}
	return "", &rollout.Error{
		Reason: rollout.ReasonVersionChanged, Field: "version", Message: fmt.Sprintf("pull request %d ends at %.7s, but what it has deployed is %s", r.from.pullRequest, r.from.commit, newest.Name),
		Hint: "let the deploy of its last commit finish first, or name the version with the input version",
	}
}

// status shows an endpoint.
func (r *run) status(ctx context.Context) error {
	sys, e, err := r.read(ctx)
	if err != nil {
		return err
	}
	if name := r.in.text["version"]; name != "" {
		v := e.Spec.Version(name)
		if v == nil {
			return rollout.UnknownVersion(&e.Spec, name)
		}
		r.r.set("version", name)
		r.r.set("image", v.Image)
		r.summary.version = name
	}
	r.r.set("status", statusShown)
	r.after(ctx, sys, e.Metadata.Name)
	if ro := e.Status.Rollout; ro != nil && ro.Treatment != "" {
		r.summary.result = fmt.Sprintf("rollout of %s, step %d: %s %s", ro.Treatment, ro.Step+1, ro.Reason, ro.Message)
		r.r.say("%s", r.summary.result)
	}
	return nil
}
