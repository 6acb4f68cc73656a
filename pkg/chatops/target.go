package chatops

import (
	"slices"
	"strings"

	"github.com/sluice-dev/sluice/rollout"
)

// target is what a command acts on.
type target struct {
	endpoint *rollout.Endpoint
	version  *rollout.Version
	// reason of a hold, less the endpoint's name.
	reason string
}

// resolve finds what a command from the pull request means among the endpoints
// bound to its repository. A pull request speaks of its own versions only: of
// the treatment, else of what it became. Where that leaves several, the command
// must name one; a version that joined after the comment was written is not
// what its author saw.
func resolve(bound []*rollout.Endpoint, l Line, c Comment) (target, error) {
	if len(bound) == 0 {
		return target{}, notBound(c.Repository.ID)
	}
	if c.head != "" {
		if bound = slices.DeleteFunc(slices.Clone(bound), func(e *rollout.Endpoint) bool { return e.Key() != c.endpoint }); len(bound) == 0 {
			return target{}, buttonStale(c)
		}
	}
	t := target{reason: l.Reason}
	if l.Verb.reasoned() {
		word, rest, _ := strings.Cut(l.Reason, " ")
		if key, name, ok := strings.Cut(word, "="); ok && strings.EqualFold(key, "endpoint") {
			l.Names, l.Sole, t.reason = []string{name}, "endpoint", rest
		}
	}
	candidates, names, err := choose(bound, l, c)
	if err != nil {
		return target{}, err
	}
	if l.Verb.reasoned() && l.Sole == "" && len(candidates) > 1 {
		word, rest, _ := strings.Cut(l.Reason, " ")
		if named := called(candidates, word); len(named) > 0 {
			candidates, t.reason = named, rest
		}
	}
	switch len(candidates) {
	case 0:
		return target{}, refuse(rollout.ReasonUnknownVersion, "version", "deploy it from this pull request first, or wait until the deployment ends",
			"no version of pull request %d is deployed to %s", c.PullRequest, keys(bound))
	case 1:
		t.endpoint = candidates[0]
	default:
		return target{}, refuse(rollout.ReasonInvalid, "endpoint", "name one: `/"+string(l.Verb)+example(l, candidates)+"`",
			"pull request %d has versions at several endpoints: %s", c.PullRequest, keys(candidates))
	}

	own := ownVersions(t.endpoint, c)
	if c.head != "" {
		// A button stands at a commit, and means the version that was made of it.
		own = slices.DeleteFunc(own, func(v *rollout.Version) bool { return v.Source.Commit != c.head })
		if len(own) != 1 {
			return target{}, buttonStale(c)
		}
	}
	if l.Verb.whole() {
		return t, nil
	}
	if len(names) > 0 {
		all := allVersions(t.endpoint, c)
		own = slices.DeleteFunc(slices.Clone(all), func(v *rollout.Version) bool { return v.Name != names[0] })
		if len(own) == 0 {
			return target{}, refuse(rollout.ReasonUnknownVersion, "version", "the pull request's versions are: "+versionNames(all),
				"pull request %d has no version called %q at %s", c.PullRequest, names[0], t.endpoint.Key())
		}
	}
	if len(own) > 1 {
		return target{}, refuse(rollout.ReasonInvalid, "version", "name one: `/"+string(l.Verb)+exampleVersion(l, own[0])+"`",
			"pull request %d has several treatments at %s: %s", c.PullRequest, t.endpoint.Key(), versionNames(own))
	}
	t.version = own[0]
	if c.head == "" && t.version.CreatedAt.After(c.CreatedAt) {
		return target{}, refuse(rollout.ReasonVersionChanged, "version", "look at `/status` and write the command again, if it is still meant",
			"%s was deployed after the comment was written, so its author saw another version; nothing was done", t.version.Name)
	}
	if l.Verb == Traffic && t.version.Type != rollout.Treatment {
		return target{}, refuse(rollout.ReasonNotTreatment, "version", "see `/status` for what it is; a new push deploys a new treatment",
			"%s is no treatment, and a comment sets the traffic of treatments only", t.version.Name)
	}
	return t, nil
}

// buttonStale is the refusal of a button whose commit's version is not the pull request's any more.
func buttonStale(c Comment) *rollout.Error {
	return refuse(rollout.ReasonVersionChanged, "check_run.head_sha", "use the buttons of the pull request's newest commit, or write a comment",
		"the button is of commit %.7s, and the version made of it was replaced or is not deployed any more; nothing was done", c.head)
}

// takesEndpoint says whether the command's one name is an endpoint's.
func (l Line) takesEndpoint() bool {
	return l.Verb == Status || l.Verb == Plan || l.Verb.whole()
}

// choose narrows the endpoints down to those that the command's names and the
// pull request's versions leave, and returns the names that are no endpoint's.
func choose(bound []*rollout.Endpoint, l Line, c Comment) ([]*rollout.Endpoint, []string, error) {
	names := l.Names
	if len(names) > 0 && l.Sole != "version" {
		if named := called(bound, names[0]); len(named) > 0 {
			// Being named, it need not have a version of the pull request for what concerns the whole endpoint.
			if l.takesEndpoint() {
				return named, names[1:], nil
			}
			bound, names = named, names[1:]
		} else if len(names) == 2 || strings.Contains(names[0], "/") || l.Sole == "endpoint" || l.takesEndpoint() {
			// Whether it exists elsewhere is none of this repository's business.
			return nil, nil, refuse(rollout.ReasonUnknownEndpoint, "endpoint", "the endpoints that this repository may act on are: "+keys(bound),
				"this repository may act on no endpoint called %q", names[0])
		}
	}
	var out []*rollout.Endpoint
	for _, e := range bound {
		if len(allVersions(e, c)) > 0 {
			out = append(out, e)
		}
	}
	if len(names) > 1 {
		return nil, nil, refuse(rollout.ReasonInvalid, "comment", "write `"+usage[l.Verb]+"`", "%q is one name too many", names[1])
	}
	return out, names, nil
}

// ownVersions are the pull request's treatments at the endpoint; without any,
// the one version of it that has most to do with traffic, or the newest.
func ownVersions(e *rollout.Endpoint, c Comment) []*rollout.Version {
	var treatments []*rollout.Version
	var best *rollout.Version
	rank := func(v *rollout.Version) int {
		return slices.Index([]rollout.Role{rollout.Untyped, rollout.Standby, rollout.Control}, v.Type)
	}
	for _, v := range allVersions(e, c) {
		if v.Type == rollout.Treatment {
			treatments = append(treatments, v)
		} else if best == nil || rank(v) > rank(best) || rank(v) == rank(best) && v.CreatedAt.After(best.CreatedAt) {
			best = v
		}
	}
	if len(treatments) == 0 && best != nil {
		return []*rollout.Version{best}
	}
	return treatments
}

// allVersions are the endpoint's versions that came from the pull request.
func allVersions(e *rollout.Endpoint, c Comment) []*rollout.Version {
	var out []*rollout.Version
	for i := range e.Spec.Versions {
		if v := &e.Spec.Versions[i]; fromPullRequest(v, c) {
			out = append(out, v)
		}
	}
	return out
}

// called are the endpoints of that name, or namespace/name.
func called(endpoints []*rollout.Endpoint, name string) []*rollout.Endpoint {
	var out []*rollout.Endpoint
	for _, e := range endpoints {
		if e.Metadata.Name == name || e.Key().String() == name {
			out = append(out, e)
		}
	}
	return out
}

func keys(endpoints []*rollout.Endpoint) string {
	var out []string
	for i, e := range endpoints {
		if i == 10 {
			out = append(out, "…")
			break
		}
		out = append(out, e.Key().String())
	}
	return strings.Join(out, ", ")
}

func versionNames(versions []*rollout.Version) string {
	var out []string
	for _, v := range versions {
		out = append(out, v.Name)
	}
	return strings.Join(out, ", ")
}

// example is a command's arguments with an endpoint named.
func example(l Line, endpoints []*rollout.Endpoint) string {
	name := endpoints[0].Metadata.Name
	if len(called(endpoints, name)) > 1 {
		name = endpoints[0].Key().String()
	}
	return percentArg(l) + " " + name
}

func exampleVersion(l Line, v *rollout.Version) string { return percentArg(l) + " " + v.Name }

func percentArg(l Line) string {
	if l.Verb == Traffic {
		return " " + l.Percent.String()
	}
	return ""
}

// operation is the transition that a command asks for.
func operation(l Line, t target) rollout.Op {
	switch l.Verb {
	case Promote:
		return rollout.Promote{Version: t.version.Name}
	case Rollback:
		return rollout.Rollback{Version: t.version.Name}
	case Traffic:
		return rollout.Shift{Version: t.version.Name, Percent: l.Percent}
	case Hold:
		return rollout.Hold{Reason: t.reason}
	case Resume:
		return rollout.Resume{}
	case Lock:
		return rollout.Lock{Reason: t.reason}
	case Unlock:
		return rollout.Unlock{}
	default:
		return nil
	}
}
