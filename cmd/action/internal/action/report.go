package action

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"unicode"

	"github.com/sethvargo/go-githubactions"

	"github.com/sluice-dev/sluice/pkg/project"
	"github.com/sluice-dev/sluice/rollout"
)

// report is what a run tells: lines and groups in the log, annotations, outputs and the job's summary.
type report struct {
	gh       *githubactions.Action
	onGitHub bool
	out      io.Writer
	open     bool
	// renamed are files by other names than errors call them.
	renamed map[string]string
	outputs map[string]string
}

// endsLine are what runners, or what draws their logs, may take for the end of a line.
var endsLine = strings.NewReplacer("\r\n", "\n", "\r", "\n", "\v", "\n", "\f", "\n", "\u0085", "\n", "\u2028", "\n", "\u2029", "\n")

// harmless takes from text of others what a runner would do as the workflow's command: a line that begins with ::, whatever
// white space stands before it (runners trim all of Unicode's), and, in the older form, ##[ anywhere.
func harmless(s string) string {
	lines := strings.Split(endsLine.Replace(s), "\n")
	for i, line := range lines {
		rest := strings.TrimLeftFunc(line, func(c rune) bool { return unicode.IsSpace(c) || unicode.Is(unicode.Cf, c) || unicode.IsControl(c) })
		if strings.HasPrefix(rest, "::") {
			line = line[:len(line)-len(rest)] + `\` + rest
		}
		lines[i] = strings.ReplaceAll(line, "##[", "## [")
	}
	return strings.Join(lines, "\n")
}

// say writes lines.
func (r *report) say(format string, args ...any) {
	_, _ = fmt.Fprintln(r.out, harmless(strings.TrimRight(fmt.Sprintf(format, args...), "\n")))
}

// group begins a part of the log that folds, and ends the one before.
func (r *report) group(title string) {
	r.endGroup()
	if r.onGitHub {
		r.gh.Group(title)
	} else {
		r.say("== %s", title)
	}
	r.open = true
}

func (r *report) endGroup() {
	if r.open && r.onGitHub {
		r.gh.EndGroup()
	}
	r.open = false
}

// mask hides a secret in the log from now on, also where it is a line of several.
func (r *report) mask(secret string) {
	if !r.onGitHub {
		return
	}
	for line := range strings.SplitSeq(secret, "\n") {
		if line = strings.TrimSpace(line); len(line) >= 4 {
			r.gh.AddMask(line)
		}
	}
}

func (r *report) set(name, value string) { r.outputs[name] = value }

// delimiter of the library for values in GitHub's files. It is always the same: a value with it on a line of its own
// would end there, and what follows would be outputs of their own.
const delimiter = "_GitHubActionsFileCommandDelimeter_"

// finish writes outputs and summary. Outside GitHub outputs are lines, and there is no summary.
func (r *report) finish(summary string) error {
	r.endGroup()
	var errs []error
	if r.onGitHub {
		errs = append(errs, appendable(r.gh, "GITHUB_OUTPUT"))
	}
	for _, name := range outputNames {
		value := r.outputs[name]
		switch {
		case strings.Contains(value, delimiter):
			errs = append(errs, fmt.Errorf("write output %s: its value holds the mark that ends values", name))
		case !r.onGitHub && value != "":
			r.say("%s=%s", name, value)
		case r.onGitHub && errs[0] == nil:
			errs[0] = written("GITHUB_OUTPUT", func() { r.gh.SetOutput(name, value) })
		}
	}
	if !r.onGitHub || summary == "" {
		return errors.Join(errs...)
	}
	// A summary is for reading: a runner without one is none to fail for.
	if err := appendable(r.gh, "GITHUB_STEP_SUMMARY"); err != nil {
		r.say("there is no job summary: %v", err)
		return errors.Join(errs...)
	}
	if err := written("GITHUB_STEP_SUMMARY", func() { r.gh.AddStepSummary(bounded(summary)) }); err != nil {
		r.say("there is no job summary: %v", err)
	}
	return errors.Join(errs...)
}

// written is the failure of the library's writing to one of the runner's files, of which it panics.
func written(variable string, write func()) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("write to the workflow by %s: %v", variable, p)
		}
	}()
	write()
	return nil
}

// maxSummary is below GitHub's 1 MiB a step, over which nothing is shown.
const maxSummary = 1000 << 10

func bounded(summary string) string {
	if len(summary) <= maxSummary {
		return summary
	}
	return strings.ToValidUTF8(summary[:maxSummary], "") + "\n\n… cut: the step's log has all of it.\n"
}

// appendable tells whether a file of the runner's can be written; the library panics if not.
func appendable(gh *githubactions.Action, variable string) error {
	path := gh.Getenv(variable)
	if path == "" {
		return fmt.Errorf("write to the workflow: %s is not set", variable)
	}
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("write to the workflow by %s: %w", variable, err)
	}
	return f.Close()
}

// maxAnnotations is how many errors of a step GitHub shows.
const maxAnnotations = 10

// failed writes an annotation for each mistake, at its place in a file if it has one. dir is that which places are relative
// to, workspace that which GitHub's are.
func (r *report) failed(err error, workspace, dir string) {
	r.endGroup()
	places := map[*rollout.Error]*project.Error{}
	for _, e := range project.Errors(err) {
		places[e.Refusal] = e
	}
	refusals := rollout.AsErrors(err)
	if len(refusals) == 0 {
		r.annotate(nil, err.Error())
		return
	}
	for i, e := range refusals {
		if i == maxAnnotations-1 && len(refusals) > maxAnnotations {
			r.annotate(nil, fmt.Sprintf("… and %d more: the step's summary has all", len(refusals)-i))
			return
		}
		fields := map[string]string{"title": title(e)}
		if at := places[e]; at != nil && !strings.HasPrefix(at.File, "--") { // which is an input's
			fields["file"] = inWorkspace(workspace, dir, cmp.Or(r.renamed[at.File], at.File))
			if at.Line > 0 {
				fields["line"] = strconv.Itoa(at.Line)
			}
			if at.Column > 0 {
				fields["col"] = strconv.Itoa(at.Column)
			}
		}
		r.annotate(fields, sentence(e))
	}
}

func title(e *rollout.Error) string { return "Sluice: " + string(e.Reason) }

// sentence is a refusal for people: where, what, and the way out.
func sentence(e *rollout.Error) string {
	var b strings.Builder
	if e.Field != "" {
		b.WriteString(e.Field + ": ")
	}
	b.WriteString(e.Message)
	if e.Hint != "" {
		b.WriteString("; " + e.Hint)
	}
	return b.String()
}

func (r *report) annotate(fields map[string]string, message string) {
	if !r.onGitHub {
		where := ""
		if fields["file"] != "" {
			where = fields["file"] + ":" + cmp.Or(fields["line"], "1") + ": "
		}
		r.say("error: %s%s", where, message)
		return
	}
	r.gh.WithFieldsMap(fields).Errorf("%s", message)
}

// inWorkspace is a file's path as GitHub knows it.
func inWorkspace(workspace, dir, file string) string {
	if !filepath.IsAbs(file) {
		file = filepath.Join(dir, file)
	}
	if rel, err := filepath.Rel(workspace, file); err == nil && filepath.IsLocal(rel) {
		return filepath.ToSlash(rel)
	}
	return filepath.ToSlash(file)
}

// outputNames are action.yml's.
var outputNames = []string{
	"endpoint", "version", "image", "digest", "environment-hash", "environment-source", "scoring-uri", "traffic", "status", "reason-code",
}

// part of an endpoint's traffic, in the output "traffic".
type part struct {
	Version string          `json:"version"`
	Type    string          `json:"type"`
	Default bool            `json:"default"`
	Claim   rollout.Percent `json:"claim"`
	Percent rollout.Percent `json:"percent"`
}

// parts are an endpoint's shares as its spec has them.
func parts(s *rollout.Spec) []part {
	out := []part{}
	for _, share := range s.Shares() {
		v := s.Version(share.Name)
		out = append(out, part{v.Name, string(v.Type), s.Default() == v, v.TrafficPercentile, share.Percent})
	}
	return out
}

func compactJSON(v any) string {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return ""
	}
	return strings.TrimSpace(b.String())
}
