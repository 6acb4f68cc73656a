package api

import (
	"fmt"
	"slices"

	"github.com/sluice-dev/sluice/pkg/access/oidc"
	"github.com/sluice-dev/sluice/pkg/access/policy"
	"github.com/sluice-dev/sluice/rollout"
)

// PolicyKind is the kind of a policy's file; its apiVersion is rollout.APIVersion.
const PolicyKind = "APIPolicy"

// Command is what a rule can permit.
type Command = policy.Command

// The commands, all of those that there are.
const (
	CommandRead           = policy.CommandRead
	CommandDeploy         = policy.CommandDeploy
	CommandUpdate         = policy.CommandUpdate
	CommandShift          = policy.CommandShift
	CommandPromote        = policy.CommandPromote
	CommandRollback       = policy.CommandRollback
	CommandRetire         = policy.CommandRetire
	CommandPrepare        = policy.CommandPrepare
	CommandHold           = policy.CommandHold
	CommandResume         = policy.CommandResume
	CommandLock           = policy.CommandLock
	CommandUnlock         = policy.CommandUnlock
	CommandDelete         = policy.CommandDelete
	CommandDeleteEndpoint = policy.CommandDeleteEndpoint
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

var kind = policy.Kind{Name: PolicyKind, Flag: "api-policy", Of: "the API", Document: "docs/api.md"}

// ReadPolicy reads a policy's file.
func ReadPolicy(path string) (*Policy, error) {
	b, err := kind.Read(path)
	if err != nil {
		return nil, err
	}
	return ParsePolicy(b)
}

// ParsePolicy reads a policy strictly: an unknown key, a missing condition or an empty list of rules is an error.
func ParsePolicy(b []byte) (*Policy, error) {
	var p Policy
	if err := kind.Decode(b, &p); err != nil {
		return nil, err
	}
	if err := kind.Check(p.APIVersion, p.Kind); err != nil {
		return nil, err
	}
	if len(p.Rules) == 0 {
		return nil, kind.Error("rules", "permit a repository, or leave the API off", "there is no rule, so nobody may do anything")
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
		errs = append(errs, kind.Error(at+field, hint, format, args...))
	}
	if r.RepositoryID <= 0 {
		add("repositoryId", "give the number that `gh api repos/OWNER/NAME --jq .id` prints", "a rule needs the id of a repository")
	}
	if r.RepositoryOwnerID <= 0 {
		add("repositoryOwnerId", "give the number that `gh api repos/OWNER/NAME --jq .owner.id` prints", "a rule needs the id of the repository's owner")
	}
	errs = append(errs, kind.Lists(at,
		policy.List{Name: "events", Values: r.Events, Required: true},
		policy.List{Name: "environments", Values: r.Environments},
		policy.List{Name: "refs", Values: r.Refs, Pattern: policy.PatternPrefix},
		policy.List{Name: "jobWorkflowRefs", Values: r.JobWorkflowRefs, Pattern: policy.PatternPrefix},
		policy.List{Name: "images", Values: r.Images, Pattern: policy.PatternPath},
		policy.List{Name: "namespaces", Values: r.Namespaces, Required: true, Pattern: policy.PatternAll},
		policy.List{Name: "endpoints", Values: r.Endpoints, Required: true, Pattern: policy.PatternAll},
	)...)
	errs = append(errs, kind.Names(at, r.Namespaces, r.Endpoints)...)
	errs = append(errs, kind.Commands(at, r.Commands, commands)...)
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
	case !policy.Fits(r.Refs, id.Ref):
		return denied("ref", hint, "workflows on %q may not do this", id.Ref)
	case !policy.Fits(r.JobWorkflowRefs, id.JobWorkflowRef):
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
		if !policy.Fits(r.Namespaces, key.Namespace) || !policy.Fits(r.Endpoints, key.Name) {
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
