package chatops

import (
	"fmt"
	"strings"

	"github.com/sluice-dev/sluice/pkg/markdown"
	"github.com/sluice-dev/sluice/rollout"
)

// help lists the commands.
func (s *Service) help() outcome {
	before := ""
	if s.o.PrefixOnly {
		before = "/" + prefix + " "
	}
	var rows [][]string
	for _, c := range commands {
		use := c.usage
		if before != "" {
			use = before + use[1:]
		}
		row := []string{markdown.Code(use), markdown.Prose(c.does)}
		if s.o.Permissions != nil {
			row = append(row, markdown.Prose(s.o.Permissions.Rule(c.verb).String()))
		}
		rows = append(rows, row)
	}
	head := []string{"comment", "does"}
	if s.o.Permissions != nil {
		head = append(head, "needs")
	}
	o := done(rollout.ReasonRequested, "one command a line, at most five in a comment, outside code, quotes, tables and HTML; `/sluice` may stand before each, and `endpoint=` and `version=` before names")
	o.block = markdown.Table(head, nil, rows)
	if s.o.Permissions != nil && s.o.Permissions.RepositoryFile != "" {
		o.block += fmt.Sprintf("\n%s of the base branch and of the default branch may ask for more.\n", markdown.Code(s.o.Permissions.RepositoryFile))
	}
	if text := s.merge(); text != "" {
		o.block += "\n" + text + "\n"
	}
	return o
}

// merge says what a merge does.
func (s *Service) merge() string {
	const closing = " Closing it without a merge takes its treatment out of traffic."
	switch s.o.OnMerge {
	case MergePromotes:
		return "A merge of the pull request promotes the treatment made of its last commit." + closing
	case MergeContinues:
		return "A merge of the pull request changes no traffic: its treatment is judged on." + closing
	default:
		return "A merge of the pull request does nothing here." + closing
	}
}

// plan says what each command would do now, by doing it to a copy.
func (s *Service) plan(all []*rollout.Endpoint, l Line, c Comment) outcome {
	bound := boundTo(all, c.Repository.ID)
	shown, _, err := choose(bound, l, c)
	if err != nil {
		return refused(err)
	}
	if len(shown) == 0 {
		return done(rollout.ReasonRequested, fmt.Sprintf("pull request %d has no version at any endpoint yet, so no command would do anything", c.PullRequest))
	}
	var b strings.Builder
	for i, e := range shown[:min(len(shown), maxShown)] {
		if i > 0 {
			b.WriteString("\n")
		}
		fmt.Fprintf(&b, "**%s**", markdown.Code(e.Key().String()))
		if st := e.Spec.Strategy; st != nil && e.Spec.ByRole(rollout.Treatment) != nil {
			var steps []string
			for _, step := range st.Resolved().Steps {
				steps = append(steps, step.Percent.String())
			}
			fmt.Fprintf(&b, ": without a command the strategy goes through %s %%, then promotes", strings.Join(steps, ", "))
		}
		b.WriteString("\n\n")
		var rows [][]string
		for _, v := range []Verb{Promote, Rollback, Hold, Resume, Lock, Unlock} {
			would, gets := s.dryRun(e, v, c)
			rows = append(rows, []string{markdown.Code("/" + string(v)), would, gets})
		}
		b.WriteString(markdown.Table([]string{"comment", "would do", "then"}, nil, rows))
	}
	b.WriteString("\n" + s.merge() + "\n")
	o := done(rollout.ReasonRequested, "nothing was done; this is what would be, as things are now", shown...)
	o.block = b.String()
	return o
}

// dryRun is what a verb would do to the endpoint, and who would get what, both in Markdown.
func (s *Service) dryRun(e *rollout.Endpoint, v Verb, c Comment) (would, gets string) {
	no := func(err error) (string, string) {
		o := refused(err)
		return fmt.Sprintf("nothing: %s (%s)", markdown.Prose(strings.TrimSuffix(inComment(o.errs[0].Message), ".")), markdown.Code(string(o.reason))), ""
	}
	l := Line{Verb: v}
	aim, err := resolve([]*rollout.Endpoint{e}, l, c)
	if err != nil {
		return no(err)
	}
	next, out, err := rollout.Apply(e, rollout.Request{ID: "plan", Actor: actor(c), At: s.o.Now().UTC()}, operation(l, aim))
	if err != nil {
		return no(err)
	}
	if out.Changed {
		var parts []string
		for _, sh := range next.Spec.Shares() {
			if sh.Percent > 0 {
				parts = append(parts, fmt.Sprintf("%s %s %%", markdown.Code(sh.Name), sh.Percent))
			}
		}
		gets = strings.Join(parts, ", ")
	}
	return markdown.Prose(inComment(out.Message)), gets
}
