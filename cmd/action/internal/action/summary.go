package action

import (
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/sluice-dev/sluice/pkg/deploy"
	"github.com/sluice-dev/sluice/rollout"
)

// summary is what the job's summary shows.
type summary struct {
	endpoint, version string
	// result is one sentence.
	result        string
	before, after []part
	planned       bool
	ship          *deploy.Shipment
	// why the environment was built.
	why      []string
	notes    []string
	failures []string
	timings  []timing
	began    time.Time
	total    time.Duration
}

type timing struct {
	what string
	took time.Duration
}

// begin a stage, which ends the one before.
func (s *summary) begin(what string, now time.Time) {
	s.endStage(now)
	s.timings, s.began = append(s.timings, timing{what: what}), now
}

func (s *summary) endStage(now time.Time) {
	if n := len(s.timings); n > 0 && s.timings[n-1].took == 0 {
		s.timings[n-1].took = now.Sub(s.began)
	}
}

// took ends the last stage.
func (s *summary) took(total time.Duration) {
	s.endStage(time.Now())
	s.total = total
}

func (s *summary) failed(err error) {
	for _, e := range rollout.AsErrors(err) {
		s.failures = append(s.failures, sentence(e)+" ("+string(e.Reason)+")")
	}
	if len(s.failures) == 0 {
		s.failures = []string{err.Error()}
	}
}

// cell is text as Markdown shows it, in one line of a table: whatever it holds, it is no markup.
func cell(s string) string {
	var b strings.Builder
	for _, c := range s {
		switch {
		case c == '\n' || c == '\r':
			b.WriteString(" ")
		case strings.ContainsRune("\\`*_{}[]()#+!|~<>&@", c):
			fmt.Fprintf(&b, "&#%d;", c)
		default:
			b.WriteRune(c)
		}
	}
	return b.String()
}

// code is text in Markdown's form for code, between more backticks than it has.
func code(s string) string {
	fence := "`"
	for strings.Contains(s, fence) {
		fence += "`"
	}
	return fence + strings.ReplaceAll(strings.ReplaceAll(s, "\n", " "), "|", "\\|") + fence
}

// markdown is all of it; empty if nothing is to be said.
func (s *summary) markdown() string {
	var b strings.Builder
	p := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	title := "### Sluice"
	if s.endpoint != "" {
		title += ": " + cell(s.endpoint)
	}
	if s.version != "" {
		title += " / " + cell(s.version)
	}
	p("%s\n", title)
	for _, f := range s.failures {
		p("❌ %s\n", cell(f))
	}
	if s.result != "" && len(s.failures) == 0 {
		mark := "✅"
		if s.planned {
			mark = "📝"
		}
		p("%s %s\n", mark, cell(s.result))
	}
	for _, n := range s.notes {
		p("⚠️ %s\n", cell(n))
	}
	s.shares(p)
	if ship := s.ship; ship != nil {
		p("| image | |")
		p("| --- | --- |")
		p("| image | %s |", code(ship.Image))
		p("| files | %d, %s |", ship.Files, size(ship.Bytes))
		p("| sent | %s |", s.sent())
		if env := ship.Environment; env.Hash != "" {
			p("| environment | %s: %s |", code(env.Hash[:12]), environmentWords[env.Source])
			for _, w := range s.why {
				p("| | %s |", cell(w))
			}
			for _, u := range env.Unpinned {
				p("| | %s is not fixed to one version |", cell(u))
			}
		}
		p("")
	}
	if len(s.timings) > 0 {
		p("| stage | seconds |")
		p("| --- | ---: |")
		for _, t := range s.timings {
			p("| %s | %.1f |", t.what, t.took.Seconds())
		}
		p("| all | %.1f |\n", s.total.Seconds())
	}
	return b.String()
}

func (s *summary) sent() string {
	if s.ship.Known {
		return "nothing: the registry has the image"
	}
	return size(s.ship.Sent) + " to the registry"
}

// environmentWords say how an environment came to be there.
var environmentWords = map[deploy.EnvironmentSource]string{
	deploy.EnvironmentBase:      "the base image is all of it",
	deploy.EnvironmentWorkspace: "found in the workspace registry",
	deploy.EnvironmentGlobal:    "copied from the global registry",
	deploy.EnvironmentBuilt:     "built",
}

// shares is the table of versions before and after.
func (s *summary) shares(p func(string, ...any)) {
	if len(s.before) == 0 && len(s.after) == 0 {
		return
	}
	now := "after"
	if s.planned {
		now = "would be"
	}
	p("| version | role | before | %s | |", now)
	p("| --- | --- | ---: | ---: | --- |")
	was := map[string]part{}
	for _, v := range s.before {
		was[v.Version] = v
	}
	row := func(v part, before, after string, bar string) {
		role := v.Type
		if v.Default {
			role = strings.TrimSpace(role + " default")
		}
		p("| %s | %s | %s | %s | %s |", cell(v.Version), role, before, after, bar)
	}
	for _, v := range s.after {
		before := "–"
		if w, ok := was[v.Version]; ok {
			before = w.Percent.String() + " %"
			delete(was, v.Version)
		}
		row(v, before, v.Percent.String()+" %", bar(v.Percent, 20))
	}
	for _, v := range s.before {
		if _, gone := was[v.Version]; gone {
			after := "gone"
			if len(s.after) == 0 {
				after = "?"
			}
			row(v, v.Percent.String()+" %", after, "")
		}
	}
	p("")
}

// bar draws a share.
func bar(p rollout.Percent, cells int) string {
	n := int(p) * cells / int(rollout.Full)
	if p > 0 && n == 0 {
		n = 1
	}
	return strings.Repeat("█", n) + strings.Repeat("░", cells-n)
}

// size in the unit that people read.
func size(n int64) string {
	switch {
	case n < 10<<10:
		return fmt.Sprintf("%d bytes", n)
	case n < 10<<20:
		return fmt.Sprintf("%d KiB", n>>10)
	default:
		return fmt.Sprintf("%d MiB", n>>20)
	}
}

// shareTable is the shares for the log.
func shareTable(parts []part) string {
	width := len("VERSION")
	for _, v := range parts {
		width = max(width, utf8.RuneCountInString(v.Version))
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%-*s  %-9s  %7s\n", width, "VERSION", "ROLE", "GETS")
	for _, v := range parts {
		role := v.Type
		if role == "" {
			role = "-"
		}
		line := fmt.Sprintf("%-*s  %-9s  %6s%%  %s", width, v.Version, role, v.Percent, bar(v.Percent, 20))
		if v.Default {
			line += "  default"
		}
		b.WriteString(line + "\n")
	}
	return b.String()
}
