package api

import (
	"fmt"
	"os"
	"slices"
	"strings"

	"sigs.k8s.io/yaml"

	"github.com/sluice-dev/sluice/pkg/access/oidc"
	"github.com/sluice-dev/sluice/pkg/cluster"
	"github.com/sluice-dev/sluice/rollout"
)

// PolicyKind is the kind of a policy's file; its apiVersion is rollout.APIVersion.
const PolicyKind = "APIPolicy"

// Command is what a rule can permit.
type Command string

// The commands. Deploy is what a deploy does with a version of its own, of the same pull request or else of the same
// commit or run, that has had no part in traffic yet: add it, prepare replicas, give it its first part, or retire it.
// The others are the transitions of the same name, on any version of the endpoint.
const (
	CommandRead           Command = "read"
	CommandDeploy         Command = "deploy"
	CommandUpdate         Command = "update"
	CommandShift          Command = "traffic"
	CommandPromote        Command = "promote"
	CommandRollback       Command = "rollback"
	CommandRetire         Command = "retire"
	CommandPrepare        Command = "prepare"
	CommandHold           Command = "hold"
	CommandResume         Command = "resume"
	CommandLock           Command = "lock"
	CommandUnlock         Command = "unlock"
	CommandDelete         Command = "delete"
	CommandDeleteEndpoint Command = "delete-endpoint"
)

// Commands that there are.
func Commands() []Command { return slices.Clone(commands) }

var commands = []Command{
	CommandRead, CommandDeploy, CommandUpdate, CommandShift, CommandPromote, CommandRollback, CommandRetire, CommandPrepare,
	CommandHold, CommandResume, CommandLock, CommandUnlock, CommandDelete, CommandDeleteEndpoint,
}

// Extra is what commands do only if a rule says so.
type Extra string

// The extras.
const (
	// ExtraCreate makes endpoints by their first deploy, whose version has all traffic; they are bound to the deploy's repository.
	ExtraCreate Extra = "create"
	// ExtraStrategy gives an endpoint that exists another strategy, which is what moves all of its treatments.
	ExtraStrategy Extra = "strategy"
	// ExtraTemplate sets a version's pod template, and so what its pods may mount and run as.
	ExtraTemplate Extra = "template"
	// ExtraSecrets sets environment variables from Secrets of the endpoint's namespace.
	ExtraSecrets Extra = "secrets"
	// ExtraForce skips the check that ready replicas can carry a share.
	ExtraForce Extra = "force"
)

// Extras that there are.
func Extras() []Extra { return slices.Clone(extras) }

var extras = []Extra{ExtraCreate, ExtraStrategy, ExtraTemplate, ExtraSecrets, ExtraForce}

// Policy says which jobs may do what. What no rule permits is refused.
type Policy struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	Rules      []Rule `json:"rules"`
}

// Rule permits some jobs of one repository some commands. All that it names must fit. The claim sub is
// never looked at.
type Rule struct {
	// RepositoryID and RepositoryOwnerID are GitHub's numbers, which, unlike names, nobody can take over. Both are required.
	RepositoryID      int64 `json:"repositoryId"`
	RepositoryOwnerID int64 `json:"repositoryOwnerId"`
	// Events that start the workflow; required. Events such as pull_request_target, by which
	// strangers can start workflows that have the base's rights, are permitted by being named, like any other.
	Events []string `json:"events"`
	// Environments of the job; empty: any, or none.
	Environments []string `json:"environments,omitempty"`
	// Refs such as refs/heads/main; one that ends in * means all that begin so. Empty: any.
	Refs []string `json:"refs,omitempty"`
	// JobWorkflowRefs are files with the job, OWNER/NAME/.github/workflows/FILE@REF, or beginnings with *. Empty: any.
	JobWorkflowRefs []string `json:"jobWorkflowRefs,omitempty"`
	// Namespaces and Endpoints that it may act on; required; * means all.
	Namespaces []string `json:"namespaces"`
	Endpoints  []string `json:"endpoints"`
	// Commands; required. Each of them permits read as well.
	Commands []Command `json:"commands"`
	// Allow has the extras.
	Allow []Extra `json:"allow,omitempty"`
	// Images that may be deployed, or beginnings with *, such as registry.example/models/*, that name the registry whole. Empty: any.
	Images []string `json:"images,omitempty"`
	// MaxPercent that deploy, update, traffic and prepare may ask for. Absent: 100. What the endpoint's strategy makes of
	// it later is the endpoint's; so below 100 a rule cannot allow create or strategy.
	MaxPercent *rollout.Percent `json:"maxPercent,omitempty"`
}

// maxPolicy bounds a policy's file, in bytes.
const maxPolicy = 1 << 20

// ReadPolicy reads a policy's file.
func ReadPolicy(path string) (*Policy, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("read the API's policy: %w", err)
	}
	if info.Size() > maxPolicy {
		return nil, policyError("", "split it over several servers", "%s has more than %d bytes", path, maxPolicy)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read the API's policy: %w", err)
	}
	return ParsePolicy(b)
}

func policyError(field, hint, format string, args ...any) *rollout.Error {
	return &rollout.Error{Reason: rollout.ReasonInvalid, Field: strings.TrimSuffix("api-policy."+field, "."), Message: fmt.Sprintf(format, args...), Hint: hint}
}

// ParsePolicy reads a policy strictly: an unknown key, a missing condition or an empty list of rules is an error.
func ParsePolicy(b []byte) (*Policy, error) {
	var p Policy
	if err := yaml.UnmarshalStrict(b, &p); err != nil {
		return nil, policyError("", "docs/api.md shows one", "the policy cannot be read: %v", err)
	}
	if p.APIVersion != rollout.APIVersion || p.Kind != PolicyKind {
		return nil, policyError("", fmt.Sprintf("begin it with apiVersion: %s and kind: %s", rollout.APIVersion, PolicyKind), "%s/%s is not a policy of the API", p.APIVersion, p.Kind)
	}
	if len(p.Rules) == 0 {
		return nil, policyError("rules", "permit a repository, or leave the API off", "there is no rule, so nobody may do anything")
	}
	var errs []*rollout.Error
	for i := range p.Rules {
		errs = append(errs, p.Rules[i].validate(fmt.Sprintf("rules[%d].", i))...)
	}
	if err := rollout.Joined(errs); err != nil {
		return nil, err
	}
	return &p, nil
}

func (r *Rule) validate(at string) (errs []*rollout.Error) {
	add := func(field, hint, format string, args ...any) {
		errs = append(errs, policyError(at+field, hint, format, args...))
	}
	if r.RepositoryID <= 0 {
		add("repositoryId", "give the number that `gh api repos/OWNER/NAME --jq .id` prints", "a rule needs the id of a repository")
	}
	if r.RepositoryOwnerID <= 0 {
		add("repositoryOwnerId", "give the number that `gh api repos/OWNER/NAME --jq .owner.id` prints", "a rule needs the id of the repository's owner")
	}
	lists := []struct {
		name     string
		list     []string
		required bool
		pattern  string // "*" alone, "prefix" with * at the end, "path" with * after a / at least, or ""
	}{
		{"events", r.Events, true, ""},
		{"environments", r.Environments, false, ""},
		{"refs", r.Refs, false, "prefix"},
		{"jobWorkflowRefs", r.JobWorkflowRefs, false, "prefix"},
		{"images", r.Images, false, "path"},
		{"namespaces", r.Namespaces, true, "*"},
		{"endpoints", r.Endpoints, true, "*"},
	}
	for _, l := range lists {
		if l.required && len(l.list) == 0 {
			add(l.name, "list at least one", "a rule needs %s", l.name)
		}
		for i, s := range l.list {
			stars := strings.Count(s, "*")
			ok := s != "" && s == strings.TrimSpace(s)
			switch l.pattern {
			case "prefix":
				ok = ok && (stars == 0 || stars == 1 && strings.HasSuffix(s, "*"))
			case "path": // registry.example* has registry.example.evil.example
				ok = ok && (stars == 0 || stars == 1 && strings.HasSuffix(s, "*") && strings.Contains(s, "/"))
			case "*":
				ok = ok && (stars == 0 || s == "*")
			default:
				ok = ok && stars == 0
			}
			if !ok {
				add(fmt.Sprintf("%s[%d]", l.name, i), "write the value as it is; docs/api.md says where * may stand", "%q cannot be meant", s)
			}
		}
	}
	for i, ns := range r.Namespaces {
		if ns != "*" && cluster.ValidateNamespace("", ns) != nil {
			add(fmt.Sprintf("namespaces[%d]", i), "name it as Kubernetes does, or *", "%q is not a name for a namespace", ns)
		}
	}
	for i, e := range r.Endpoints {
		if e != "*" && rollout.ValidateName("", "an endpoint", e) != nil {
			add(fmt.Sprintf("endpoints[%d]", i), "name an endpoint, or *", "%q is not a name for an endpoint", e)
		}
	}
	if len(r.Commands) == 0 {
		add("commands", "list at least one", "a rule needs commands")
	}
	for i, c := range r.Commands {
		if !slices.Contains(commands, c) {
			add(fmt.Sprintf("commands[%d]", i), fmt.Sprintf("use some of %v", commands), "there is no command %q", c)
		}
	}
	for i, x := range r.Allow {
		if !slices.Contains(extras, x) {
			add(fmt.Sprintf("allow[%d]", i), fmt.Sprintf("use some of %v", extras), "there is nothing called %q to allow", x)
		}
	}
	switch p := r.MaxPercent; {
	case p == nil || *p == rollout.Full:
	case *p < 0 || *p > rollout.Full:
		add("maxPercent", "use a number from 0 to 100", "%s is not a share", *p)
	default:
		for _, x := range []struct {
			extra Extra
			why   string
		}{
			{ExtraCreate, "an endpoint's first version has all traffic"},
			{ExtraStrategy, "a strategy says how far treatments go, and may promote them"},
		} {
			if slices.Contains(r.Allow, x.extra) {
				add("maxPercent", fmt.Sprintf("leave maxPercent out, or allow %q in a rule of its own", x.extra), "%s per cent cannot bound what %q allows: %s", *p, x.extra, x.why)
			}
		}
	}
	return errs
}

// fits says whether s is one of a list in which a * at the end stands for any rest. An empty list has all.
func fits(list []string, s string) bool {
	return len(list) == 0 || slices.ContainsFunc(list, func(p string) bool {
		prefix, open := strings.CutSuffix(p, "*")
		return p == s || open && strings.HasPrefix(s, prefix)
	})
}

func denied(field, hint, format string, args ...any) *rollout.Error {
	return &rollout.Error{Reason: rollout.ReasonDenied, Field: field, Message: fmt.Sprintf(format, args...), Hint: hint}
}

// admits says why a rule, which is for id's repository, is not for its job, or nil.
func (r *Rule) admits(id *oidc.Identity) *rollout.Error {
	const hint = "run the job where the server's policy permits it, or have the policy changed"
	switch {
	case !slices.Contains(r.Events, id.Event):
		return denied("event_name", hint, "workflows of repository %d that were started by %s may not do this", id.RepositoryID, id.Event)
	case len(r.Environments) > 0 && id.Environment == "":
		return denied("environment", hint, "the job has no environment, and must have one")
	case len(r.Environments) > 0 && !slices.Contains(r.Environments, id.Environment):
		return denied("environment", hint, "jobs with the environment %q may not do this", id.Environment)
	case !fits(r.Refs, id.Ref):
		return denied("ref", hint, "workflows on %q may not do this", id.Ref)
	case !fits(r.JobWorkflowRefs, id.JobWorkflowRef):
		return denied("job_workflow_ref", hint, "jobs of %q may not do this", id.JobWorkflowRef)
	}
	return nil
}

// rules that are for the job, else why there are none: what is said of rules is said to their own
// repository alone.
func (p *Policy) rules(id *oidc.Identity) ([]*Rule, error) {
	var out []*Rule
	why := denied("repository_id", "have the server's policy permit it: repositoryId and repositoryOwnerId are the numbers to name", "nothing permits repository %d of owner %d anything", id.RepositoryID, id.RepositoryOwnerID)
	for i := range p.Rules {
		r := &p.Rules[i]
		if r.RepositoryID != id.RepositoryID || r.RepositoryOwnerID != id.RepositoryOwnerID {
			continue
		}
		if no := r.admits(id); no != nil {
			why = no
			continue
		}
		out = append(out, r)
	}
	if len(out) == 0 {
		return nil, why
	}
	return out, nil
}

// Admit refuses jobs that no rule is for.
func (p *Policy) Admit(id *oidc.Identity) error {
	_, err := p.rules(id)
	return err
}

// permit says whether one rule permits the job one of the commands on an endpoint; more, if it is not nil, has the last word on
// that rule and command.
func (p *Policy) permit(id *oidc.Identity, key rollout.Key, asked []Command, more func(*Rule, Command) error) error {
	rules, err := p.rules(id)
	if err != nil {
		return err
	}
	var why error = denied("endpoint", "have the server's policy permit it", "nothing permits %s on endpoint %s to this job", asked[0], key)
	for _, r := range rules {
		if !fits(r.Namespaces, key.Namespace) || !fits(r.Endpoints, key.Name) {
			continue
		}
		for _, c := range asked {
			if c != CommandRead && !slices.Contains(r.Commands, c) {
				continue
			}
			if more == nil {
				return nil
			}
			if err = more(r, c); err == nil {
				return nil
			}
			why = err
		}
	}
	return why
}

// allows an extra, or says that it does not.
func (r *Rule) allows(x Extra, field, what string) error {
	if slices.Contains(r.Allow, x) {
		return nil
	}
	return denied(field, fmt.Sprintf("have the server's policy allow %q, or leave it out", x), "nothing permits this job %s", what)
}
