// Package policy has what the files have in common that say who may do what: how strictly they are read, the
// commands that they permit, and what the names and patterns in them may be. Who "who" is, is for each kind of file.
package policy

import (
	"fmt"
	"os"
	"slices"
	"strings"

	"sigs.k8s.io/yaml"

	"github.com/sluice-dev/sluice/pkg/cluster"
	"github.com/sluice-dev/sluice/rollout"
)

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

// maxFile bounds a file, in bytes.
const maxFile = 1 << 20

// Kind of file. Its apiVersion is rollout.APIVersion.
type Kind struct {
	// Name is the kind that stands in it.
	Name string
	// Flag that names the file; errors' fields begin with it.
	Flag string
	// Of whom it is the policy: "the API".
	Of string
	// Document shows one.
	Document string
}

// Read a file of the kind. Errors are *rollout.Error where the file is there.
func (k Kind) Read(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("read the policy of %s: %w", k.Of, err)
	}
	if info.Size() > maxFile {
		return nil, k.Error("", "split it over several servers", "%s has more than %d bytes", path, maxFile)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read the policy of %s: %w", k.Of, err)
	}
	return b, nil
}

// Error at a field of the file; at the file itself if field is empty.
func (k Kind) Error(field, hint, format string, args ...any) *rollout.Error {
	return &rollout.Error{Reason: rollout.ReasonInvalid, Field: strings.TrimSuffix(k.Flag+"."+field, "."), Message: fmt.Sprintf(format, args...), Hint: hint}
}

// Decode YAML strictly: a key that is not known, or there twice, is an error.
func (k Kind) Decode(b []byte, into any) error {
	if err := yaml.UnmarshalStrict(b, into); err != nil {
		return k.Error("", k.Document+" shows one", "the policy cannot be read: %v", err)
	}
	return nil
}

// Check what a file says that it is.
func (k Kind) Check(apiVersion, kind string) error {
	if apiVersion != rollout.APIVersion || kind != k.Name {
		return k.Error("", fmt.Sprintf("begin it with apiVersion: %s and kind: %s", rollout.APIVersion, k.Name), "%s/%s is not a policy of %s", apiVersion, kind, k.Of)
	}
	return nil
}

// Pattern says where * may stand in a list's values, for any text.
type Pattern int

// The patterns.
const (
	// PatternNone: nowhere.
	PatternNone Pattern = iota
	// PatternAll: alone.
	PatternAll
	// PatternPrefix: at the end.
	PatternPrefix
	// PatternPath: at the end, after a / at least; registry.example* has registry.example.evil.example.
	PatternPath
	// PatternDomain: at the beginning, before an @: *@example.com.
	PatternDomain
)

// List of a rule.
type List struct {
	Name     string
	Values   []string
	Required bool
	Pattern  Pattern
}

// Lists of the rule at a field, and what is wrong with them.
func (k Kind) Lists(at string, lists ...List) (errs []*rollout.Error) {
	for _, l := range lists {
		if l.Required && len(l.Values) == 0 {
			errs = append(errs, k.Error(at+l.Name, "list at least one", "a rule needs %s", l.Name))
		}
		for i, s := range l.Values {
			if !l.Pattern.takes(s) {
				errs = append(errs, k.Error(fmt.Sprintf("%s%s[%d]", at, l.Name, i), "write the value as it is; "+k.Document+" says where * may stand", "%q cannot be meant", s))
			}
		}
	}
	return errs
}

func (p Pattern) takes(s string) bool {
	if s == "" || s != strings.TrimSpace(s) {
		return false
	}
	stars := strings.Count(s, "*")
	if stars == 0 {
		return true
	}
	switch p {
	case PatternAll:
		return s == "*"
	case PatternPrefix:
		return stars == 1 && strings.HasSuffix(s, "*")
	case PatternPath:
		return stars == 1 && strings.HasSuffix(s, "*") && strings.Contains(s, "/")
	case PatternDomain:
		return stars == 1 && strings.HasPrefix(s, "*@") && strings.Count(s, "@") == 1 && len(s) > len("*@")
	}
	return false
}

// Names of namespaces and endpoints of the rule at a field, each a name or *, and what is wrong with them.
func (k Kind) Names(at string, namespaces, endpoints []string) (errs []*rollout.Error) {
	for i, ns := range namespaces {
		if ns != "*" && cluster.ValidateNamespace("", ns) != nil {
			errs = append(errs, k.Error(fmt.Sprintf("%snamespaces[%d]", at, i), "name it as Kubernetes does, or *", "%q is not a name for a namespace", ns))
		}
	}
	for i, e := range endpoints {
		if e != "*" && rollout.ValidateName("", "an endpoint", e) != nil {
			errs = append(errs, k.Error(fmt.Sprintf("%sendpoints[%d]", at, i), "name an endpoint, or *", "%q is not a name for an endpoint", e))
		}
	}
	return errs
}

// Commands of the rule at a field, out of those that there are, and what is wrong with them.
func (k Kind) Commands(at string, commands, known []Command) (errs []*rollout.Error) {
	if len(commands) == 0 {
		errs = append(errs, k.Error(at+"commands", "list at least one", "a rule needs commands"))
	}
	for i, c := range commands {
		if !slices.Contains(known, c) {
			errs = append(errs, k.Error(fmt.Sprintf("%scommands[%d]", at, i), fmt.Sprintf("use some of %v", known), "there is no command %q", c))
		}
	}
	return errs
}

// Fits says whether s is one of a list in which a * at the end stands for any rest. An empty list has all.
func Fits(list []string, s string) bool {
	return len(list) == 0 || slices.ContainsFunc(list, func(p string) bool {
		prefix, open := strings.CutSuffix(p, "*")
		return p == s || open && strings.HasPrefix(s, prefix)
	})
}
