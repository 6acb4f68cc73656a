package report

import (
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/sluice-dev/sluice/pkg/markdown"
	"github.com/sluice-dev/sluice/rollout"
)

// MaxComment in bytes: GitHub takes 65,536 characters.
const MaxComment = 60_000

// maxChanges of the record are shown.
const maxChanges = 8

// Mark is the state that a comment carries invisibly: by its endpoint a comment
// is found again, by Sent is known whether what is shown beside it is up to date.
type Mark struct {
	Namespace string `json:"namespace"`
	Endpoint  string `json:"endpoint"`
	State     State  `json:"state"`
	Version   string `json:"version"`
	Commit    string `json:"commit,omitempty"`
	// Sent is a digest of the checks and deployments that were sent before the comment was written.
	Sent string `json:"sent,omitempty"`
	// Check is its name, where it is not sluice/ENDPOINT.
	Check string `json:"check,omitempty"`
}

// Key of the endpoint.
func (m Mark) Key() rollout.Key { return rollout.Key{Namespace: m.Namespace, Name: m.Endpoint} }

const (
	markBegin = "<!-- sluice:report "
	markEnd   = " -->"
)

// String is the invisible last line. encoding/json writes < and > as escapes, so nothing ends it early.
func (m Mark) String() string {
	b, err := json.Marshal(m)
	if err != nil { // strings always marshal
		panic(err)
	}
	return markBegin + string(b) + markEnd
}

// MarkOf reads the mark at the end of a comment.
func MarkOf(body string) (Mark, bool) {
	body = strings.TrimRight(strings.ReplaceAll(body, "\r\n", "\n"), "\n ")
	i := strings.LastIndex(body, markBegin)
	if i < 0 || i > 0 && body[i-1] != '\n' || !strings.HasSuffix(body, markEnd) {
		return Mark{}, false
	}
	var m Mark
	if err := json.Unmarshal([]byte(body[i+len(markBegin):len(body)-len(markEnd)]), &m); err != nil {
		return Mark{}, false
	}
	return m, m.Endpoint != ""
}

// Options of what is rendered.
type Options struct {
	// Buttons says that the check run has them: GitHub lets only Apps.
	Buttons bool
	// Check is the check's name, where it is not sluice/ENDPOINT.
	Check string
	// Prefix says that commands need `/sluice` before them.
	Prefix bool
	// OnMerge says what a merge does, in words; empty says nothing of it.
	OnMerge string
	// Permissions says that commands need more or less than the role write.
	Permissions bool
	// Pictures, if set, are linked besides the ramp in text.
	Pictures *Pictures
}

func (o Options) checkName(e *rollout.Endpoint) string {
	if o.Check != "" {
		return o.Check
	}
	return "sluice/" + e.Metadata.Name
}

var icons = map[State]string{
	StateJoined: "⏳", StateFailed: "❌", StateRunning: "▶️", StateHeld: "⏸️", StateWaiting: "⏳", StateUnknown: "❔", StateWorse: "❌",
	StateRolledBack: "↩️", StatePromoted: "✅", StateClosed: "↩️", StateReplaced: "⏭️", StateRemoved: "🗑️",
}

// Comment on the pull request about the endpoint, in Markdown. Sent goes into
// its mark. No line of it begins with a slash. It is empty if the pull request has no version there.
func Comment(e *rollout.Endpoint, p PullRequest, o Options, sent string) string {
	versions := p.versions(e)
	if len(versions) == 0 {
		return ""
	}
	v := versions[0]
	s := standingOf(e, v)
	var b strings.Builder
	fmt.Fprintf(&b, "### %s %s: %s %s\n\n", icons[s.state], markdown.Code(e.Key().String()), markdown.Code(v.Name), markdown.Escape(title(s)))
	fmt.Fprintf(&b, "**%s** (%s)", strings.ToUpper(string(s.state[:1]))+string(s.state[1:]), markdown.Code(string(s.reason)))
	switch {
	case s.state == StateFailed && s.message != "":
		fmt.Fprintf(&b, ": %s\n\n%s", markdown.Escape(textOf(s.reason)), markdown.Fence(s.message))
	case s.message != "":
		fmt.Fprintf(&b, ": %s.\n", markdown.Prose(strings.TrimSuffix(s.message, ".")))
	case textOf(s.reason) != "":
		fmt.Fprintf(&b, ": %s\n", markdown.Prose(textOf(s.reason)))
	default:
		b.WriteString(".\n")
	}
	if s.change != nil {
		fmt.Fprintf(&b, "\n%s at %s by %s.\n", markdown.Code(s.change.Action), s.change.At.UTC().Format("2006-01-02 15:04 UTC"), markdown.Escape(s.change.Actor))
	}
	b.WriteString("\n" + shares(e, p, s))
	if text := verdictOn(e, v, s); text != "" {
		word, rest, _ := strings.Cut(text, ": ")
		fmt.Fprintf(&b, "\n**Verdict: %s.** %s.\n", markdown.Escape(word), markdown.Prose(strings.TrimSuffix(rest, ".")))
	}
	if text := ramp(stepsOf(e, v, s)); text != "" {
		if o.Pictures.on() { // else none needs to be drawn
			fmt.Fprintf(&b, "\n[![its steps](%s)](%[1]s)\n", o.Pictures.Address(e.Key(), p, Picture(e, p)))
		}
		b.WriteString("\n" + text)
	}
	if text := next(e, v, s); text != "" {
		fmt.Fprintf(&b, "\n**Next:** %s.\n", markdown.Prose(o.commands(text)))
	}
	b.WriteString("\n" + o.buttons(e, s))
	if text := record(e, versions, s); text != "" {
		b.WriteString("\n" + text)
	}
	m := Mark{Namespace: e.Metadata.Namespace, Endpoint: e.Metadata.Name, State: s.state, Version: v.Name, Commit: v.Source.Commit, Sent: sent, Check: o.Check}
	return markdown.Bound(b.String(), MaxComment) + "\n" + m.String() + "\n"
}

// commands writes them with the prefix where bare ones are off.
func (o Options) commands(text string) string {
	if !o.Prefix {
		return text
	}
	return strings.ReplaceAll(text, "`/", "`/sluice ")
}

func textOf(r rollout.Reason) string {
	for _, known := range rollout.Reasons() {
		if known.Reason == r {
			return known.Text
		}
	}
	return ""
}

// shares is the table of the endpoint's versions: the pull request's, and until that is over those with a part in traffic.
func shares(e *rollout.Endpoint, p PullRequest, s standing) string {
	var own *rollout.EvidenceStatus // what the control is counted beside
	for _, v := range p.versions(e) {
		if own = evidenceOf(e, v.Name); own != nil {
			break
		}
	}
	var rows [][]string
	for i := range e.Spec.Versions {
		v := &e.Spec.Versions[i]
		mine := v.Source.RepositoryID == p.Repository && v.Source.PullRequest == p.Number
		if !mine && (s.over() || !e.Spec.Active(v)) {
			continue
		}
		var role []string
		if v.Type != rollout.Untyped {
			role = append(role, string(v.Type))
		}
		if e.Spec.Default() == v {
			role = append(role, "default")
		}
		if mine {
			role = append(role, "this pull request")
		}
		requests, bad := "", ""
		if ev := evidenceOf(e, v.Name); ev != nil {
			requests, bad = ev.Requests, ev.Bad
		} else if own != nil && v.Type == rollout.Control {
			requests, bad = own.ControlRequests, own.ControlBad
		}
		st := e.Status.Version(v.Name)
		ready := fmt.Sprintf("%d of %d", st.ReadyReplicas, st.Replicas)
		if st.State != "" && st.State != rollout.StateReady {
			ready += ", " + string(st.State)
		}
		n, r, pc := counts(requests, bad)
		took := ""
		if !s.over() {
			took = latency(e, v)
		}
		rows = append(rows, []string{markdown.Code(v.Name), strings.Join(role, ", "), e.Spec.Effective(v.Name).String() + " %", n, r, pc, took, ready})
	}
	head, right := []string{"version", "role", "gets", "requests", "errors", "error rate", "p50 / p99", "replicas ready"}, map[int]bool{2: true, 3: true, 4: true, 5: true, 6: true}
	measured := slices.ContainsFunc(rows, func(r []string) bool { return r[6] != "" })
	// What nobody has is no column: those in the middle may be empty.
	for i := 6; i >= 3; i-- {
		if !slices.ContainsFunc(rows, func(r []string) bool { return r[i] != "" }) {
			head = slices.Delete(head, i, i+1)
			for n := range rows {
				rows[n] = slices.Delete(rows[n], i, i+1)
			}
			delete(right, len(head)-1)
		}
	}
	out := markdown.Table(head, right, rows)
	if own != nil {
		out += "\nRequests and errors are those that were judged since " + markdown.Code(own.Treatment) + " began: pinned and refused ones do not count.\n"
	}
	if t := e.Status.Traffic; t != nil && measured {
		out += fmt.Sprintf("\nDurations are those of the 10 s until %s, at the router where they were longest; in brackets against the control.\n", t.At.UTC().Format("15:04 UTC"))
	}
	return out
}

// latency of a version: its median and 99th percentile as routers measured them last, and for others than the control how much that is
// beside the control's.
func latency(e *rollout.Endpoint, v *rollout.Version) string {
	own, ok := durations(e, v.Name)
	if !ok {
		return ""
	}
	text := fmt.Sprintf("%s / %s ms", significant(own[0]), significant(own[1]))
	control := e.Spec.ByRole(rollout.Control)
	if control == nil || control.Name == v.Name {
		return text
	}
	if beside, ok := durations(e, control.Name); ok && beside[0] > 0 && beside[1] > 0 {
		text += fmt.Sprintf(" (%+.0f / %+.0f %%)", 100*(own[0]/beside[0]-1), 100*(own[1]/beside[1]-1))
	}
	return text
}

// durations that routers measured last: p50 and p99 in milliseconds.
func durations(e *rollout.Endpoint, version string) (out [2]float64, ok bool) {
	t := e.Status.Traffic
	if t == nil {
		return out, false
	}
	i := slices.IndexFunc(t.Versions, func(v rollout.VersionTraffic) bool { return v.Name == version })
	if i < 0 {
		return out, false
	}
	for n, text := range []string{t.Versions[i].P50, t.Versions[i].P99} {
		f, err := strconv.ParseFloat(text, 64)
		if err != nil || math.IsInf(f, 0) || !(f >= 0) {
			return out, false
		}
		out[n] = f
	}
	return out, true
}

// significant writes three digits of a number, more where it is 1,000 or above.
func significant(f float64) string {
	if f >= 100 {
		return group(int64(math.Round(f)))
	}
	return strconv.FormatFloat(f, 'g', 3, 64)
}

func counts(requests, bad string) (n, failed, rate string) {
	r, err := strconv.ParseInt(requests, 10, 64)
	if err != nil {
		return "", "", ""
	}
	f, err := strconv.ParseInt(bad, 10, 64)
	if err != nil {
		return group(r), "", ""
	}
	if r > 0 {
		rate = strconv.FormatFloat(100*float64(f)/float64(r), 'g', 3, 64) + " %"
	}
	return group(r), group(f), rate
}

// buttons says what can be done, by whom, and where.
func (o Options) buttons(e *rollout.Endpoint, s standing) string {
	var b strings.Builder
	b.WriteString("<details><summary>Buttons and commands</summary>\n\n")
	if actions := actionsFor(s); o.Buttons && len(actions) > 0 {
		fmt.Fprintf(&b, "The check %s of this commit has buttons; they act on this commit's version only:\n\n", markdown.Code(o.checkName(e)))
		for _, a := range actions {
			fmt.Fprintf(&b, "* **%s**: %s\n", a.Label, a.Description)
		}
		b.WriteString("\n")
	}
	needs := "Both need write permission."
	if o.Permissions {
		needs = "Who may do what is in the answer to `/help`."
	}
	b.WriteString("Or write a comment of one line. " + o.commands(needs) + "\n\n")
	var rows [][]string
	for _, c := range [][2]string{
		{"/promote", "all traffic to this version"}, {"/rollback", "no traffic to it; goes back to the standby after a promotion"},
		{"/traffic PERCENT", "that share, and a hold"}, {"/hold [REASON]", "no advance and no promotion; the automatic rollback stays on"},
		{"/resume", "ends a hold"}, {"/plan", "what each of these would do now"}, {"/status", "this, as a reply"}, {"/help", "all commands"},
	} {
		name := c[0]
		if o.Prefix {
			name = "/sluice " + name[1:]
		}
		rows = append(rows, []string{markdown.Code(name), c[1]})
	}
	b.WriteString(markdown.Table([]string{"comment", "does"}, nil, rows))
	if o.OnMerge != "" {
		fmt.Fprintf(&b, "\nA merge %s; closing without a merge takes the version out of traffic.\n", o.OnMerge)
	}
	b.WriteString("\n</details>\n")
	return b.String()
}

// record is what happened to the pull request's versions, newest first, and until that is over to the endpoint.
func record(e *rollout.Endpoint, versions []*rollout.Version, s standing) string {
	var all []*rollout.Change
	seen := map[string]bool{}
	for _, list := range [][]rollout.Change{e.Spec.Changes, e.Status.History} {
		for i := range slices.Backward(list) {
			c := &list[i]
			about := slices.ContainsFunc(versions, func(v *rollout.Version) bool { return slices.Contains(strings.Fields(c.Action), v.Name) })
			if !about && (s.over() || !slices.Contains([]string{"hold", "resume", "lock", "unlock", "edit"}, c.Action)) || c.At.Before(versions[len(versions)-1].CreatedAt) || seen[c.ID] {
				continue
			}
			seen[c.ID] = true
			all = append(all, c)
		}
	}
	if len(all) == 0 {
		return ""
	}
	slices.SortStableFunc(all, func(a, b *rollout.Change) int { return b.At.Compare(a.At) })
	var rows [][]string
	for _, c := range all[:min(len(all), maxChanges)] {
		rows = append(rows, []string{c.At.UTC().Format("01-02 15:04"), markdown.Code(c.Action), markdown.Escape(c.Actor), markdown.Code(string(c.Reason))})
	}
	return "<details><summary>What happened</summary>\n\n" + markdown.Table([]string{"UTC", "change", "by", "why"}, nil, rows) + "\n</details>\n"
}
