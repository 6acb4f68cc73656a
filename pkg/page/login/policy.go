package login

import (
	"fmt"
	"slices"
	"strings"

	"github.com/sluice-dev/sluice/pkg/access/policy"
	"github.com/sluice-dev/sluice/rollout"
)

// PolicyKind is the kind of a policy's file; its apiVersion is rollout.APIVersion.
const PolicyKind = "PagePolicy"

// Commands that a rule can permit.
func Commands() []policy.Command {
	return []policy.Command{
		policy.CommandRead, policy.CommandShift, policy.CommandPromote, policy.CommandRollback,
		policy.CommandHold, policy.CommandResume, policy.CommandLock, policy.CommandUnlock,
	}
}

// Policy says which people may do what. What no rule permits is refused.
type Policy struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	// GroupsClaim is the claim that has a person's groups: "groups" unless set.
	GroupsClaim string `json:"groupsClaim,omitempty"`
	Rules       []Rule `json:"rules"`
}

// Rule permits some people some commands. Of groups, emails and subjects, each that it has must fit, by one of its values.
type Rule struct {
	// Groups, by name.
	Groups []string `json:"groups,omitempty"`
	// Emails that the issuer says it has verified, or *@DOMAIN. They are held against each other as they are written.
	Emails []string `json:"emails,omitempty"`
	// Subjects are the issuer's own names for people (sub), which it gives to nobody else.
	Subjects []string `json:"subjects,omitempty"`
	// Everyone is whoever the issuer lets log in; alone.
	Everyone bool `json:"everyone,omitempty"`
	// Namespaces and Endpoints that they may act on; required; * means all.
	Namespaces []string `json:"namespaces"`
	Endpoints  []string `json:"endpoints"`
	// Commands; required. Each of them permits read as well.
	Commands []policy.Command `json:"commands"`
}

func kind() policy.Kind {
	return policy.Kind{Name: PolicyKind, Flag: "page-login-policy", Of: "the page", Document: "docs/page.md"}
}

// ReadPolicy reads a policy's file.
func ReadPolicy(path string) (*Policy, error) {
	b, err := kind().Read(path)
	if err != nil {
		return nil, err
	}
	return ParsePolicy(b)
}

// ParsePolicy reads a policy strictly: an unknown key, a rule that says nothing of whom it is for, or an empty list of rules is an error.
func ParsePolicy(b []byte) (*Policy, error) {
	k := kind()
	p := Policy{GroupsClaim: "groups"}
	if err := k.Decode(b, &p); err != nil {
		return nil, err
	}
	if err := k.Check(p.APIVersion, p.Kind); err != nil {
		return nil, err
	}
	if len(p.Rules) == 0 {
		return nil, k.Error("rules", "permit somebody something, or leave the login off", "there is no rule, so a login would permit nothing")
	}
	var errs []*rollout.Error
	if p.GroupsClaim == "" || p.GroupsClaim != strings.TrimSpace(p.GroupsClaim) {
		errs = append(errs, k.Error("groupsClaim", "name the claim that has the groups, or leave it out", "%q is not the name of a claim", p.GroupsClaim))
	}
	for i := range p.Rules {
		errs = append(errs, p.Rules[i].validate(k, fmt.Sprintf("rules[%d].", i))...)
	}
	if err := rollout.Joined(errs); err != nil {
		return nil, err
	}
	return &p, nil
}

func (r *Rule) validate(k policy.Kind, at string) (errs []*rollout.Error) {
	named := len(r.Groups) > 0 || len(r.Emails) > 0 || len(r.Subjects) > 0
	switch {
	case !named && !r.Everyone:
		errs = append(errs, k.Error(strings.TrimSuffix(at, "."), "list groups, emails or subjects, or say everyone: true", "the rule does not say whom it is for"))
	case named && r.Everyone:
		errs = append(errs, k.Error(at+"everyone", "leave one of them out", "the rule is for everyone and for some alone"))
	}
	errs = append(errs, k.Lists(at,
		policy.List{Name: "groups", Values: r.Groups},
		policy.List{Name: "emails", Values: r.Emails, Pattern: policy.PatternDomain},
		policy.List{Name: "subjects", Values: r.Subjects},
		policy.List{Name: "namespaces", Values: r.Namespaces, Required: true, Pattern: policy.PatternAll},
		policy.List{Name: "endpoints", Values: r.Endpoints, Required: true, Pattern: policy.PatternAll},
	)...)
	errs = append(errs, k.Names(at, r.Namespaces, r.Endpoints)...)
	return append(errs, k.Commands(at, r.Commands, Commands())...)
}

// ChangesAnything says whether a rule permits more than to read.
func (p *Policy) ChangesAnything() bool {
	return slices.ContainsFunc(p.Rules, func(r Rule) bool {
		return slices.ContainsFunc(r.Commands, func(c policy.Command) bool { return c != policy.CommandRead })
	})
}

// identity is what rules look at of a person, and what a session keeps of them.
type identity struct {
	Subject string `json:"sub"`
	// Email that the issuer has verified, or empty.
	Email string `json:"email,omitempty"`
	// Groups that some rule names; of others nothing is kept.
	Groups []string `json:"groups,omitempty"`
}

// relevant are those of a person's groups that some rule names.
func (p *Policy) relevant(groups []string) (out []string) {
	for i := range p.Rules {
		for _, g := range p.Rules[i].Groups {
			if slices.Contains(groups, g) && !slices.Contains(out, g) {
				out = append(out, g)
			}
		}
	}
	return out
}

// admits says whether a rule is for the person.
func (r *Rule) admits(id identity) bool {
	if len(r.Groups) > 0 && !slices.ContainsFunc(r.Groups, func(g string) bool { return slices.Contains(id.Groups, g) }) {
		return false
	}
	if len(r.Emails) > 0 && !slices.ContainsFunc(r.Emails, func(e string) bool { return mailFits(e, id.Email) }) {
		return false
	}
	if len(r.Subjects) > 0 && !slices.Contains(r.Subjects, id.Subject) {
		return false
	}
	return true
}

// mailFits says whether an email is the one meant, or of the domain meant. What has several @ is of no domain.
func mailFits(want, email string) bool {
	if domain, any := strings.CutPrefix(want, "*@"); any {
		name, of, _ := strings.Cut(email, "@")
		return name != "" && of == domain
	}
	return email != "" && email == want
}

// admits says whether any rule is for the person.
func (p *Policy) admits(id identity) bool {
	return slices.ContainsFunc(p.Rules, func(r Rule) bool { return r.admits(id) })
}

// permits says whether one rule permits the person a command on an endpoint.
func (p *Policy) permits(id identity, key rollout.Key, c policy.Command) bool {
	return slices.ContainsFunc(p.Rules, func(r Rule) bool {
		return r.admits(id) && policy.Fits(r.Namespaces, key.Namespace) && policy.Fits(r.Endpoints, key.Name) &&
			(c == policy.CommandRead || slices.Contains(r.Commands, c))
	})
}
