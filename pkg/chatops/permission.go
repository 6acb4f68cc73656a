package chatops

import (
	"context"
	"errors"
	"fmt"
	"path"
	"regexp"
	"slices"
	"strings"

	"github.com/sluice-dev/sluice/pkg/access/policy"
	"github.com/sluice-dev/sluice/rollout"
)

// PermissionsKind is the kind of a file of permissions; its apiVersion is rollout.APIVersion.
const PermissionsKind = "CommandPermissions"

// MaxPermissions bounds a repository's file of permissions, in bytes.
const MaxPermissions = 64 << 10

// maxTeams of a rule: each is a question to GitHub.
const maxTeams = 10

// Permissions say who may give which command. The server's count always. If they name a file of the repository, what
// that file says on the pull request's base branch and on the default branch counts besides, so that a repository can
// ask for more and never for less: whoever may push could otherwise make a branch that asks for nothing.
type Permissions struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	// Default is for commands that are not named; absent: the role write.
	Default *CommandRule `json:"default,omitempty"`
	// Commands by their verbs.
	Commands map[Verb]CommandRule `json:"commands,omitempty"`
	// RepositoryFile is the path of the repository's own permissions, such as .github/sluice.yaml; empty: none is read.
	// Only the server's permissions may have it.
	RepositoryFile string `json:"repositoryFile,omitempty"`
}

// CommandRule is whom a command is for: everybody with the role or a better one, and the members of the teams.
type CommandRule struct {
	Role Permission `json:"role,omitempty"`
	// Teams are slugs of teams of the organisation that owns the repository; members of their child teams count.
	Teams []string `json:"teams,omitempty"`
}

// DefaultRule is what a command needs unless permissions say otherwise.
func DefaultRule() CommandRule { return CommandRule{Role: PermissionWrite} }

var slugPattern = regexp.MustCompile(`^[a-z0-9][-_.a-z0-9]{0,99}$`)

// permissionsFile is the kind of file that permissions are in.
var permissionsFile = policy.Kind{Name: PermissionsKind, Flag: "github-permissions", Of: "commands", Document: "docs/github.md"}

// ReadPermissions reads the server's file.
func ReadPermissions(file string) (*Permissions, error) {
	b, err := permissionsFile.Read(file)
	if err != nil {
		return nil, err
	}
	return ParsePermissions(b)
}

// ParsePermissions reads permissions strictly: an unknown key, verb or role, or a rule for nobody, is an error.
func ParsePermissions(b []byte) (*Permissions, error) {
	var p Permissions
	if err := permissionsFile.Decode(b, &p); err != nil {
		return nil, err
	}
	if err := permissionsFile.Check(p.APIVersion, p.Kind); err != nil {
		return nil, err
	}
	var errs []*rollout.Error
	add := func(field, hint, format string, args ...any) {
		errs = append(errs, permissionsFile.Error(field, hint, format, args...))
	}
	rule := func(at string, r CommandRule, shows bool) {
		switch {
		case r.Role == "" && len(r.Teams) == 0:
			add(at, "give it a role, teams, or both", "it is for nobody")
		case r.Role == PermissionRead && !shows:
			add(at+".role", "use triage, write, maintain or admin", "everybody may read a public repository")
		case r.Role != "" && !r.Role.AtLeast(PermissionRead):
			add(at+".role", "use triage, write, maintain or admin", "%q is no role that permits anything", r.Role)
		}
		if len(r.Teams) > maxTeams {
			add(at+".teams", "make a team that has them as child teams", "there are %d teams, and %d may be", len(r.Teams), maxTeams)
		}
		for i, t := range r.Teams {
			if !slugPattern.MatchString(t) {
				add(fmt.Sprintf("%s.teams[%d]", at, i), "give the last part of the team's address, such as ml-leads", "%q is not the slug of a team", t)
			}
		}
	}
	if p.Default != nil {
		rule("default", *p.Default, false)
	}
	for _, c := range commands {
		if r, ok := p.Commands[c.verb]; ok {
			rule("commands."+string(c.verb), r, c.verb.shows())
		}
	}
	for v := range p.Commands {
		if !verbs[string(v)] {
			add("commands."+string(v), "use "+strings.Join(verbNames(), ", "), "%q is not a command", v)
		}
	}
	if f := p.RepositoryFile; f != "" && (path.Clean(f) != f || path.IsAbs(f) || f == ".." || strings.HasPrefix(f, "../") || len(f) > 200 || strings.ContainsAny(f, "\\\x00?#%")) {
		add("repositoryFile", "give a path from the repository's root, such as .github/sluice.yaml", "%q is not a path in a repository", f)
	}
	slices.SortFunc(errs, func(a, b *rollout.Error) int { return strings.Compare(a.Field, b.Field) })
	if err := rollout.Joined(errs); err != nil {
		return nil, err
	}
	return &p, nil
}

func verbNames() (out []string) {
	for _, c := range commands {
		out = append(out, string(c.verb))
	}
	return out
}

// Rule of a command; of nil permissions it is DefaultRule.
func (p *Permissions) Rule(v Verb) CommandRule {
	if p != nil {
		if r, ok := p.Commands[v]; ok {
			return r
		}
		if p.Default != nil {
			return *p.Default
		}
	}
	return DefaultRule()
}

// silent stands in for a missing Directory: what needs one is refused.
type silent struct{}

var errSilent = errors.New("there is nobody to ask")

func (silent) TeamMember(context.Context, Repository, string, string) (bool, error) {
	return false, errSilent
}

func (silent) Repository(context.Context, int64) (Repository, error) { return Repository{}, errSilent }

func (silent) File(context.Context, Repository, string, string) ([]byte, error) {
	return nil, errSilent
}

// String says whom the rule is for: "the role write, maintain or admin".
func (r CommandRule) String() string {
	var parts []string
	if r.Role != "" {
		var roles []string
		for _, p := range []Permission{PermissionRead, PermissionTriage, PermissionWrite, PermissionMaintain, PermissionAdmin} {
			if p.AtLeast(r.Role) {
				roles = append(roles, string(p))
			}
		}
		last := len(roles) - 1
		text := roles[last]
		if last > 0 {
			text = strings.Join(roles[:last], ", ") + " or " + text
		}
		parts = append(parts, "the role "+text)
	}
	for _, t := range r.Teams {
		parts = append(parts, "a place in the team "+t)
	}
	return strings.Join(parts, ", or ")
}

// permit fails with a refusal unless each rule for the verb is met. What GitHub says is asked once per comment.
func (a *authority) permit(ctx context.Context, s *Service, c Comment, v Verb) error {
	if !verbs[string(v)] {
		v = Help // nothing will be done, and who may not even ask for help is told nothing
	}
	if err := a.meets(ctx, s, c, v, s.o.Permissions.Rule(v), ""); err != nil {
		return err
	}
	if s.o.Permissions == nil || s.o.Permissions.RepositoryFile == "" {
		return nil
	}
	if !a.looked {
		a.looked = true
		a.own, a.ownErr = s.repositoryPermissions(ctx, c, a.pull)
	}
	if a.ownErr != nil {
		return a.ownErr
	}
	for _, own := range a.own {
		if err := a.meets(ctx, s, c, v, own.Rule(v), fmt.Sprintf(", as %s of the branch %s says", s.o.Permissions.RepositoryFile, own.branch)); err != nil {
			return err
		}
	}
	return nil
}

// ownPermissions are those that a repository keeps on a branch.
type ownPermissions struct {
	*Permissions
	branch string
}

// repositoryPermissions reads what the base branch and the default branch say.
func (s *Service) repositoryPermissions(ctx context.Context, c Comment, pull PullRequest) ([]ownPermissions, error) {
	file := s.o.Permissions.RepositoryFile
	if pull.Base == "" || pull.Default == "" {
		return nil, refuse(rollout.ReasonDenied, "permission", whenAsked, "GitHub did not say which branch pull request %d is for, so nothing was done", c.PullRequest)
	}
	branches := []string{pull.Base}
	if pull.Default != pull.Base {
		branches = append(branches, pull.Default)
	}
	var out []ownPermissions
	for _, branch := range branches {
		b, err := s.o.Directory.File(ctx, c.Repository, branch, file)
		if err != nil {
			s.log.WarnContext(ctx, "the repository's permissions cannot be asked", "comment", c.ID, "repository", c.Repository.ID, "branch", branch, "error", err)
			return nil, refuse(rollout.ReasonDenied, "permission", whenAsked, "GitHub did not say what %s of the branch %s permits, so nothing was done", file, branch)
		}
		if b == nil {
			continue
		}
		p, err := ParsePermissions(b)
		if err == nil && p.RepositoryFile != "" {
			err = refuse(rollout.ReasonInvalid, "github-permissions.repositoryFile", "leave it out", "only the server's permissions may name a file")
		}
		if err != nil {
			s.log.WarnContext(ctx, "the repository's permissions cannot be read", "comment", c.ID, "repository", c.Repository.ID, "branch", branch, "error", err)
			return nil, refuse(rollout.ReasonDenied, "permission", "mend the file on that branch; until then use `sluice` on the command line",
				"%s of the branch %s is wrong, so nothing was done: %v", file, branch, err)
		}
		out = append(out, ownPermissions{p, branch})
	}
	return out, nil
}

// meets asks for teams only if the role does not do.
func (a *authority) meets(ctx context.Context, s *Service, c Comment, v Verb, r CommandRule, source string) error {
	if r.Role != "" && a.permission.AtLeast(r.Role) {
		return nil
	}
	for _, t := range r.Teams {
		is, asked := a.teams[t]
		if !asked {
			var err error
			if is, err = s.o.Directory.TeamMember(ctx, c.Repository, t, c.Author); err != nil {
				s.log.WarnContext(ctx, "membership cannot be asked", "comment", c.ID, "actor", actor(c), "repository", c.Repository.ID, "team", t, "error", err)
				return refuse(rollout.ReasonDenied, "permission", whenAsked,
					"GitHub did not say whether %s is a member of the team %s of %s, so nothing was done", c.Author, t, c.Repository.Owner)
			}
			if a.teams == nil {
				a.teams = map[string]bool{}
			}
			a.teams[t] = is
		}
		if is {
			return nil
		}
	}
	return refuse(rollout.ReasonDenied, "permission", fmt.Sprintf("ask someone with %s", r),
		"%s has the role %s in %s, and `/%s` needs %s%s", c.Author, a.permission, c.Repository, v, r, source)
}
