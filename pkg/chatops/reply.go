package chatops

import (
	"fmt"
	"slices"
	"strings"

	"github.com/sluice-dev/sluice/pkg/cluster"
	"github.com/sluice-dev/sluice/pkg/markdown"
	"github.com/sluice-dev/sluice/rollout"
)

const (
	// maxReply in bytes: GitHub takes comments of 65,536 characters.
	maxReply = 60_000
	// maxShown endpoints in a reply.
	maxShown = 5
)

// outcome is how a command ended.
type outcome struct {
	state  cluster.EntryState
	reason rollout.Reason
	// message says it in a sentence; refusals say it in errs.
	message string
	errs    []*rollout.Error
	// endpoints as they are now, for the tables; version is the one acted on.
	endpoints []*rollout.Endpoint
	version   string
	// block is Markdown that comes before the tables.
	block string
	// silent says that there is no reply: its author is a stranger.
	silent bool
}

// unanswered begins the result of what gets no reply.
const unanswered = "not answered: "

func done(reason rollout.Reason, message string, endpoints ...*rollout.Endpoint) outcome {
	return outcome{state: cluster.EntryDone, reason: reason, message: message, endpoints: endpoints}
}

// refused is err as an outcome. What is no refusal of ours is not shown to
// people, because it may name hosts and paths.
func refused(err error, endpoints ...*rollout.Endpoint) outcome {
	errs := rollout.AsErrors(err)
	if len(errs) == 0 {
		errs = []*rollout.Error{refuse(rollout.ReasonInternal, "", "see `/status` for what is so now, and the log of the webhook service for why; then try again", "something failed inside Sluice before the command was seen through")}
	}
	return outcome{state: cluster.EntryRefused, reason: errs[0].Reason, errs: errs, endpoints: endpoints}
}

// result is o in one line, for the journal.
func (o outcome) result() string {
	if len(o.errs) == 0 {
		return o.message
	}
	var all []string
	for _, e := range o.errs {
		all = append(all, e.Error())
	}
	text := markdown.Cut(strings.Join(all, "; "), markdown.MaxProse)
	if o.silent {
		text = unanswered + text
	}
	return text
}

// marker is the invisible last line of a reply, by which it can be found again.
func marker(name string) string { return "<!-- sluice:" + name + " -->" }

// markerOf a reply.
func markerOf(body string) string {
	return strings.TrimSpace(body[max(strings.LastIndex(body, "<!-- sluice:"), 0):])
}

// render is the reply to a command in Markdown. No line of it begins with a
// slash, so that it is never itself a command.
func render(name, text string, c Comment, o outcome) string {
	var b strings.Builder
	b.WriteString(markdown.Code(markdown.Cut(text, maxLine)))
	switch {
	case o.state == cluster.EntryRefused && len(o.errs) == 1:
		fmt.Fprintf(&b, " **refused** (%s): %s.", markdown.Code(string(o.reason)), markdown.Prose(strings.TrimSuffix(o.errs[0].Message, ".")))
		if h := o.errs[0].Hint; h != "" {
			fmt.Fprintf(&b, "\n\n**Way out:** %s.", markdown.Prose(strings.TrimSuffix(h, ".")))
		}
	case o.state == cluster.EntryRefused:
		b.WriteString(" **refused**:\n")
		for _, e := range o.errs {
			fmt.Fprintf(&b, "\n* %s: %s.", markdown.Code(string(e.Reason)), markdown.Prose(strings.TrimSuffix(e.Message, ".")))
			if e.Hint != "" {
				fmt.Fprintf(&b, " **Way out:** %s.", markdown.Prose(strings.TrimSuffix(e.Hint, ".")))
			}
		}
	case o.reason == rollout.ReasonNoChange:
		fmt.Fprintf(&b, " **changed nothing** (%s): %s.", markdown.Code(string(o.reason)), markdown.Prose(o.message))
	default:
		fmt.Fprintf(&b, " **done** (%s): %s.", markdown.Code(string(o.reason)), markdown.Prose(o.message))
	}
	b.WriteString("\n")
	if o.block != "" {
		b.WriteString("\n" + o.block)
	}
	for i, e := range o.endpoints {
		if i == maxShown {
			fmt.Fprintf(&b, "\n… and %d more: name one, such as %s.\n", len(o.endpoints)-i, markdown.Code("/status "+e.Key().String()))
			break
		}
		b.WriteString("\n" + endpointTable(e, c))
	}
	return markdown.Bound(b.String(), maxReply) + "\n" + marker(name) + "\n"
}

// endpointTable shows who gets what at an endpoint, and what stands in the way of its strategy.
func endpointTable(e *rollout.Endpoint, c Comment) string {
	shares := map[string]rollout.Percent{}
	for _, s := range e.Spec.Shares() {
		shares[s.Name] = s.Percent
	}
	var rows [][]string
	for i := range e.Spec.Versions {
		v := &e.Spec.Versions[i]
		var role []string
		if v.Type != rollout.Untyped {
			role = append(role, string(v.Type))
		}
		if e.Spec.Default() == v {
			role = append(role, "default")
		}
		if fromPullRequest(v, c) {
			role = append(role, "this pull request")
		}
		st := e.Status.Version(v.Name)
		ready := fmt.Sprintf("%d of %d", st.ReadyReplicas, st.Replicas)
		if st.State != "" && st.State != rollout.StateReady {
			ready += ", " + string(st.State)
		}
		if st.Reason != "" {
			ready += " (" + markdown.Code(string(st.Reason)) + ")"
		}
		rows = append(rows, []string{markdown.Code(v.Name), strings.Join(role, ", "), v.TrafficPercentile.String() + " %", shares[v.Name].String() + " %", ready})
	}
	var b strings.Builder
	fmt.Fprintf(&b, "**Endpoint** %s\n\n", markdown.Code(e.Key().String()))
	b.WriteString(markdown.Table([]string{"version", "role", "claims", "gets", "replicas ready"}, map[int]bool{2: true, 3: true}, rows))
	note := func(what, text string) {
		if text != "" {
			fmt.Fprintf(&b, "\n%s %s.\n", what, markdown.Prose(strings.TrimSuffix(text, ".")))
		}
	}
	if l := e.Spec.Lock; l != nil {
		note("**Locked** by", l.Actor+because(l.Reason))
	}
	if h := e.Spec.Hold; h != nil {
		note("**Held** by", h.Actor+because(h.Reason))
	}
	if r := e.Status.Rollout; r != nil && r.Treatment != "" && e.Spec.Version(r.Treatment) != nil && r.Reason != "" {
		what := "**Strategy** on " + markdown.Code(r.Treatment) + ": " + markdown.Code(string(r.Reason))
		if r.Message == "" {
			fmt.Fprintf(&b, "\n%s.\n", what)
		}
		note(what+":", r.Message)
	}
	return b.String()
}

func because(reason string) string {
	if reason == "" {
		return ""
	}
	return ": " + reason
}

// fromPullRequest says whether the version was deployed from the comment's pull request.
func fromPullRequest(v *rollout.Version, c Comment) bool {
	return v.Source.PullRequest == c.PullRequest && v.Source.RepositoryID == c.Repository.ID && c.PullRequest != 0
}

// bound endpoints are those that the repository may act on.
func boundTo(all []*rollout.Endpoint, repository int64) []*rollout.Endpoint {
	var out []*rollout.Endpoint
	for _, e := range all {
		if repository != 0 && slices.Contains(e.Spec.Repositories, repository) {
			out = append(out, e)
		}
	}
	return out
}
