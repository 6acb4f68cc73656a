package report

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"path"
	"regexp"
	"strconv"
	"strings"

	"github.com/sluice-dev/sluice/pkg/markdown"
	"github.com/sluice-dev/sluice/rollout"
)

// GitHub's limits of what a check's button says, in characters, and of descriptions.
const (
	maxLabel       = 20
	maxDescription = 140
	maxTitle       = 120
)

// Action is a button of a check run: label and identifier of at most 20 characters, description of at most 40.
type Action struct{ Label, Description, Identifier string }

// The identifiers of buttons are the verbs of the commands that they stand for.
var (
	actionPromote  = Action{"Promote", "All traffic to this version", "promote"}
	actionRollback = Action{"Roll back", "No traffic to this version any more", "rollback"}
	actionHold     = Action{"Hold", "No advance and no promotion for now", "hold"}
	actionResume   = Action{"Resume", "Go on with the rollout", "resume"}
)

// actionsFor a version in that state; GitHub takes three at most.
func actionsFor(s standing) []Action {
	switch s.state {
	case StateRunning, StateWaiting, StateUnknown:
		return []Action{actionPromote, actionRollback, actionHold}
	case StateHeld:
		if s.reason == rollout.ReasonLocked {
			return []Action{actionRollback}
		}
		return []Action{actionPromote, actionRollback, actionResume}
	case StatePromoted:
		return []Action{actionRollback}
	default:
		return nil
	}
}

// Annotation of a file, for a failure.
type Annotation struct {
	Path           string
	Line           int
	Title, Message string
}

// Check is the check run of a version on its commit; without an App, its commit status.
type Check struct {
	// ID of the check run, 0 if it is not known.
	ID       int64 `json:"-"`
	Name     string
	External string
	Head     string
	// Conclusion is empty while it is in progress. Buttons show on completed runs only, so one under way
	// is neutral, and action_required where a person must act.
	Conclusion  string
	Title       string
	Summary     string `json:"-"` // what changes all the time is no reason to write
	Actions     []Action
	Annotations []Annotation `json:"-"`
	// Status is pending, success, failure or error, for a commit status.
	Status string
}

// Deployment of a version to the endpoint as GitHub's environment.
type Deployment struct {
	ID          int64 `json:"-"`
	Environment string
	Commit      string
	// Version is the payload by which a deployment is told from others of the same commit.
	Version     string
	State       string
	Description string
}

// piece is what is shown of one version.
type piece struct {
	version    string
	state      State
	check      Check
	deployment Deployment
}

// pieces of the pull request's versions that have a commit, newest first.
func pieces(e *rollout.Endpoint, p PullRequest, o Options) []piece {
	var out []piece
	for _, v := range p.versions(e) {
		if !sha.MatchString(v.Source.Commit) {
			continue
		}
		s := standingOf(e, v)
		c := conclusions[s.state]
		check := Check{
			Name: o.checkName(e), External: e.Key().String() + "/" + v.Name, Head: v.Source.Commit, Conclusion: c.check, Status: c.status,
			Title: markdown.Cut(v.Name+" "+title(s), maxTitle), Actions: actionsFor(s), Summary: summaryOf(e, v, s),
		}
		if s.state == StateFailed {
			check.Annotations = []Annotation{annotate(v, s)}
		}
		out = append(out, piece{version: v.Name, state: s.state, check: check, deployment: Deployment{
			Environment: e.Key().String(), Commit: v.Source.Commit, Version: v.Name, State: c.deployment,
			Description: markdown.Cut(markdown.Plain(v.Name+" "+title(s)), maxDescription-1),
		}})
	}
	return out
}

var sha = regexp.MustCompile(`^[0-9a-f]{40}([0-9a-f]{24})?$`)

// conclusions of each state for GitHub's three ways to say it.
var conclusions = map[State]struct{ check, status, deployment string }{
	StateJoined:     {"", "pending", "queued"},
	StateFailed:     {"failure", "error", "failure"},
	StateRunning:    {"neutral", "pending", "in_progress"},
	StateHeld:       {"action_required", "pending", "in_progress"},
	StateWaiting:    {"neutral", "pending", "in_progress"},
	StateUnknown:    {"neutral", "pending", "in_progress"},
	StateWorse:      {"failure", "failure", "failure"},
	StateRolledBack: {"cancelled", "failure", "inactive"},
	StatePromoted:   {"success", "success", "success"},
	StateClosed:     {"cancelled", "failure", "inactive"},
	StateReplaced:   {"neutral", "success", "inactive"},
	StateRemoved:    {"cancelled", "failure", "inactive"},
}

func summaryOf(e *rollout.Endpoint, v *rollout.Version, s standing) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s at %s: **%s** (%s)", markdown.Code(v.Name), markdown.Code(e.Key().String()), s.state, markdown.Code(string(s.reason)))
	if s.message != "" && s.state != StateFailed {
		b.WriteString(": " + markdown.Prose(strings.TrimSuffix(s.message, ".")))
	}
	b.WriteString(".\n")
	if s.state == StateFailed && s.message != "" {
		b.WriteString("\n" + markdown.Fence(s.message))
	}
	if text := verdictOn(e, v, s); text != "" {
		fmt.Fprintf(&b, "\n%s.\n", markdown.Prose(strings.TrimSuffix(text, ".")))
	}
	if text := ramp(stepsOf(e, v, s)); text != "" {
		b.WriteString("\n" + text)
	}
	if text := next(e, v, s); text != "" {
		fmt.Fprintf(&b, "\n**Next:** %s.\n", markdown.Prose(text))
	}
	return markdown.Bound(b.String(), MaxComment)
}

// frame of a Python traceback.
var frame = regexp.MustCompile(`File "([^"]+\.py)", line ([0-9]{1,6})`)

// manifest is where a failure is shown that names no line of the project.
const manifest = "sluice.yaml"

// annotate a failure at the last line of the project that its traceback names.
func annotate(v *rollout.Version, s standing) Annotation {
	a := Annotation{Path: manifest, Line: 1, Title: markdown.Plain(v.Name + " does not start: " + string(s.reason)), Message: s.message}
	if a.Message == "" {
		a.Message = textOf(s.reason)
	}
	for _, m := range frame.FindAllStringSubmatch(s.message, -1) {
		file := path.Clean(m[1])
		if strings.Contains(file, "site-packages/") || strings.Contains(file, "dist-packages/") || strings.Contains(file, "/lib/python") {
			continue
		}
		line, err := strconv.Atoi(m[2])
		if err != nil || line < 1 {
			continue
		}
		// A replica has the project in a folder of its own; the file's name is what both sides share.
		if path.IsAbs(file) || strings.HasPrefix(file, "..") {
			file = path.Base(file)
		}
		a.Path, a.Line = file, line
	}
	return a
}

// digest of all pieces: what was sent.
func digest(v any) string {
	b, err := json.Marshal(v)
	if err != nil { // strings and numbers always marshal
		panic(err)
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:8])
}

// same things are sent once.
func (p piece) digest() string {
	return digest(struct {
		Version    string
		Check      Check
		Deployment Deployment
	}{p.version, p.check, p.deployment})
}

func digestOf(all []piece) string {
	var out []string
	for _, p := range all {
		out = append(out, p.digest())
	}
	return digest(out)
}
