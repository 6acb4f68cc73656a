package page

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sluice-dev/sluice/rollout"
)

// part is a version's piece of the bar of shares.
type part struct {
	Name, Class string
	Percent     rollout.Percent
	X, Width    string
}

// state of an endpoint in a word or two, and the class of its colour.
type state struct{ Word, Class string }

type row struct {
	Namespace, Name string
	Control         string
	Treatments      []part
	Parts           []part
	Label           string
	Ready           string
	State           state
}

type listView struct {
	Rows           []row
	Total          int
	Pages          int
	Previous, Next int
	From, To       int
}

func viewList(all []*rollout.Endpoint, page int) *listView {
	pages := max((len(all)+perPage-1)/perPage, 1)
	page = min(page, pages)
	from := (page - 1) * perPage
	shown := all[from:min(from+perPage, len(all))]
	v := &listView{Total: len(all), Pages: pages, From: from + 1, To: from + len(shown)}
	if page > 1 {
		v.Previous = page - 1
	}
	if page < pages {
		v.Next = page + 1
	}
	for _, e := range shown {
		r := row{Namespace: e.Metadata.Namespace, Name: e.Metadata.Name, State: stateOf(e)}
		if c := e.Spec.ByRole(rollout.Control); c != nil {
			r.Control = c.Name
		}
		shares := sharesNow(e)
		for i := range e.Spec.Versions {
			if t := &e.Spec.Versions[i]; t.Type == rollout.Treatment {
				r.Treatments = append(r.Treatments, part{Name: t.Name, Percent: shares[t.Name]})
			}
		}
		r.Parts, r.Label = bar(e, shares, classes(e))
		ready, of := 0, 0
		for _, s := range e.Status.Versions {
			ready, of = ready+s.ReadyReplicas, of+s.Replicas
		}
		r.Ready = fmt.Sprintf("%d of %d", ready, of)
		v.Rows = append(v.Rows, r)
	}
	return v
}

// sharesNow are those that routers apply where the status is of this spec, fallbacks included, else what the spec says.
func sharesNow(e *rollout.Endpoint) map[string]rollout.Percent {
	out := map[string]rollout.Percent{}
	for _, s := range e.Spec.Shares() {
		out[s.Name] = s.Percent
	}
	if e.Status.ObservedGeneration == e.Metadata.Generation {
		for _, s := range e.Status.Versions {
			out[s.Name] = s.EffectivePercent
		}
	}
	return out
}

// classes gives each version of the endpoint a colour by its role; treatments have four among them, in order.
func classes(e *rollout.Endpoint) func(string) string {
	of, n := map[string]string{}, 0
	for i := range e.Spec.Versions {
		switch v := &e.Spec.Versions[i]; v.Type {
		case rollout.Control:
			of[v.Name] = "k-control"
		case rollout.Standby:
			of[v.Name] = "k-standby"
		case rollout.Treatment:
			of[v.Name] = fmt.Sprintf("k-treatment%d", n%4+1)
			n++
		default:
			of[v.Name] = "k-other"
		}
	}
	return func(name string) string { return cmp.Or(of[name], "k-other") }
}

func bar(e *rollout.Endpoint, shares map[string]rollout.Percent, class func(string) string) ([]part, string) {
	var parts []part
	var words []string
	at := 0.0
	for i := range e.Spec.Versions {
		name := e.Spec.Versions[i].Name
		p := shares[name]
		if p <= 0 {
			continue
		}
		w := 100 * p.Fraction()
		parts = append(parts, part{Name: name, Class: class(name), Percent: p, X: percent(at), Width: percent(w)})
		words = append(words, name+" "+p.String()+" per cent")
		at += w
	}
	return parts, "Shares: " + cmp.Or(strings.Join(words, ", "), "none")
}

func stateOf(e *rollout.Endpoint) state {
	for _, c := range e.Status.Conditions {
		if (c.Type == "Ready") != (c.Status == "True") {
			return state{strings.ReplaceAll(string(c.Reason), "_", " "), "bad"}
		}
	}
	failed := false
	for _, v := range e.Status.Versions {
		failed = failed || v.State == rollout.StateFailed
	}
	switch {
	case failed:
		return state{"a version fails", "bad"}
	case e.Spec.Lock != nil:
		return state{"locked", "warn"}
	case e.Spec.Hold != nil:
		return state{"held", "warn"}
	case e.Status.Rollout != nil && e.Status.Rollout.Treatment != "":
		return state{"rolling out", "busy"}
	case len(e.Status.Versions) == 0:
		return state{"not seen yet", "warn"}
	}
	return state{"serving", "good"}
}

type versionView struct {
	Name, Class, Role string
	Default           bool
	Share, Claim      string
	Width             string
	Planned           string
	Ready             string
	State             state
	Reason            rollout.Reason
	Message           string
	Image, Commit     string
	PullRequest       int
	Created           time.Time
	Traffic           *trafficView
}

// trafficView is what routers measured of a version's requests lately.
type trafficView struct {
	Requests, Failed, FailedPercent, P50, P99 string
}

type banner struct {
	Class, Title, Text string
}

// gauge is how far evidence is on its way to a decision.
type gauge struct {
	Label, Says, Width, Class string
}

type evidenceView struct {
	Treatment, Class string
	Verdict          string
	VerdictClass     string
	Sentence         string
	Gauges           []gauge
}

type changeView struct {
	At            time.Time
	Actor, Action string
	Reason        rollout.Reason
	Why           string
	Evidence      string
}

type endpointView struct {
	Namespace, Name string
	State           state
	URI             string
	Banners         []banner
	News            string
	Parts           []part
	Label           string
	Versions        []versionView
	// Measured is when the traffic was; zero where it is not known. Seconds is what the counts are over.
	Measured time.Time
	Seconds  int
	Ramp     *rampView
	Evidence []evidenceView
	// Unjudged says why there is no evidence, Strategy what judges.
	Unjudged, Strategy string
	Changes            []changeView
}

func viewEndpoint(e *rollout.Endpoint, now time.Time) *endpointView {
	class, shares := classes(e), sharesNow(e)
	v := &endpointView{Namespace: e.Metadata.Namespace, Name: e.Metadata.Name, State: stateOf(e), URI: e.Status.ScoringURI}
	v.Banners = banners(e)
	v.News = news(e)
	v.Parts, v.Label = bar(e, shares, class)
	for i := range e.Spec.Versions {
		v.Versions = append(v.Versions, viewVersion(e, &e.Spec.Versions[i], shares, class))
	}
	if t := e.Status.Traffic; t != nil && t.Seconds > 0 {
		v.Measured, v.Seconds = t.At, t.Seconds
		for i := range v.Versions {
			v.Versions[i].Traffic = viewTraffic(t, v.Versions[i].Name)
		}
	}
	changes := record(e)
	v.Ramp = ramp(e, changes, class, now)
	v.Strategy, v.Unjudged = strategy(e), "There is no treatment to judge."
	if e.Spec.ByRole(rollout.Treatment) != nil {
		v.Unjudged = "Nothing is judged yet."
		if e.Spec.Strategy == nil {
			v.Unjudged = "Nothing is judged."
		}
	}
	if r := e.Status.Rollout; r != nil && e.Spec.Strategy != nil {
		for _, ev := range r.Evidence {
			v.Evidence = append(v.Evidence, viewEvidence(e, ev, class(ev.Treatment)))
		}
	}
	texts := map[rollout.Reason]string{}
	for _, r := range rollout.Reasons() {
		texts[r.Reason] = r.Text
	}
	for _, c := range slices.Backward(changes) {
		v.Changes = append(v.Changes, changeView{At: c.At, Actor: c.Actor, Action: c.Action, Reason: c.Reason, Why: cmp.Or(c.Message, texts[c.Reason]), Evidence: c.Evidence})
	}
	return v
}

func banners(e *rollout.Endpoint) []banner {
	var out []banner
	for _, c := range e.Status.Conditions {
		if (c.Type == "Ready") != (c.Status == "True") {
			out = append(out, banner{"bad", strings.ReplaceAll(string(c.Reason), "_", " "), c.Message})
		}
	}
	if l := e.Spec.Lock; l != nil {
		out = append(out, banner{"warn", "Locked by " + cmp.Or(l.Actor, "somebody"), cmp.Or(l.Reason, "No reason was given.")})
	}
	if h := e.Spec.Hold; h != nil {
		out = append(out, banner{"warn", "Held by " + cmp.Or(h.Actor, "somebody"), cmp.Or(h.Reason, "No reason was given.")})
	}
	return out
}

// news is where the strategy stands, in a sentence.
func news(e *rollout.Endpoint) string {
	r := e.Status.Rollout
	if r == nil || r.Treatment == "" {
		if e.Spec.Strategy == nil && e.Spec.ByRole(rollout.Treatment) != nil {
			return "No strategy moves the treatments; people do."
		}
		return "Nothing is being rolled out."
	}
	where := r.Treatment
	if e.Spec.Strategy != nil && r.Step >= 0 {
		if n := len(e.Spec.Strategy.Resolved().Steps); r.Step < n {
			where += fmt.Sprintf(" is at step %d of %d", r.Step+1, n)
		}
	}
	return where + ": " + cmp.Or(r.Message, strings.ReplaceAll(string(r.Reason), "_", " ")) + "."
}

func strategy(e *rollout.Endpoint) string {
	if e.Spec.Strategy == nil {
		return "No strategy: people move the shares."
	}
	s := e.Spec.Strategy.Resolved()
	var steps []string
	for _, st := range s.Steps {
		steps = append(steps, st.Percent.String())
	}
	text := "Steps of " + strings.Join(steps, ", ") + " %, then all."
	if s.Gate == rollout.GateNone {
		return text + " Nothing is judged: requests and time alone move it on."
	}
	return text + fmt.Sprintf(" A treatment that is not worse is rolled back with a probability of at most %s; one %s times as bad is promoted with at most %s.",
		short(s.Alpha), short(s.R1), short(s.Beta))
}

func short(f float64) string { return strconv.FormatFloat(f, 'g', -1, 64) }

var stateClass = map[rollout.VersionState]string{
	rollout.StateReady: "good", rollout.StateStarting: "busy", rollout.StateFailed: "bad", rollout.StateRetired: "off",
}

func viewVersion(e *rollout.Endpoint, v *rollout.Version, shares map[string]rollout.Percent, class func(string) string) versionView {
	st := e.Status.Version(v.Name)
	out := versionView{
		Name: v.Name, Class: class(v.Name), Role: cmp.Or(string(v.Type), "–"), Default: e.Spec.Default() == v,
		Share: shares[v.Name].String(), Claim: v.TrafficPercentile.String(), Width: percent(100 * shares[v.Name].Fraction()),
		Ready: fmt.Sprintf("%d of %d", st.ReadyReplicas, st.Replicas), State: state{cmp.Or(string(st.State), "unknown"), cmp.Or(stateClass[st.State], "off")},
		Reason: st.Reason, Message: st.Message, Image: v.Image, Commit: v.Source.Commit, PullRequest: v.Source.PullRequest, Created: v.CreatedAt,
	}
	if st.PlannedPercent > shares[v.Name] {
		out.Planned = st.PlannedPercent.String()
	}
	return out
}

func viewTraffic(t *rollout.TrafficStatus, name string) *trafficView {
	i := slices.IndexFunc(t.Versions, func(v rollout.VersionTraffic) bool { return v.Name == name })
	if i < 0 {
		return nil
	}
	m := t.Versions[i]
	out := &trafficView{Requests: number(m.Requests), Failed: number(m.Failed), P50: "–", P99: "–"}
	if m.Failed > 0 && m.Requests > 0 {
		out.FailedPercent = rounded(100 * float64(m.Failed) / float64(m.Requests))
	}
	if m.P50 != "" {
		out.P50 = m.P50 + " ms"
	}
	if m.P99 != "" {
		out.P99 = m.P99 + " ms"
	}
	return out
}

func viewEvidence(e *rollout.Endpoint, ev rollout.EvidenceStatus, class string) evidenceView {
	s := e.Spec.Strategy.Resolved()
	out := evidenceView{Treatment: ev.Treatment, Class: class, Verdict: ev.Verdict, VerdictClass: "busy"}
	switch rollout.Verdict(ev.Verdict) {
	case rollout.VerdictWorse:
		out.VerdictClass = "bad"
	case rollout.VerdictNotWorse:
		out.VerdictClass = "good"
	case rollout.VerdictUnknown:
		out.VerdictClass = "warn"
	}
	out.Sentence = fmt.Sprintf("%s of %s requests to %s were bad, and %s of %s to the control.",
		digits(ev.Bad), digits(ev.Requests), ev.Treatment, digits(ev.ControlBad), digits(ev.ControlRequests))
	if f, err := strconv.ParseFloat(ev.BadUpperBound, 64); err == nil && !math.IsNaN(f) {
		out.Sentence += fmt.Sprintf(" Its rate of bad requests is at most %s %%", rounded(f))
		if s.Gate == rollout.GateVerdict {
			out.Sentence += fmt.Sprintf("; below %s %% it may be promoted, too", short(*s.MaxBadPercent))
		}
		out.Sentence += "."
	}
	if s.Gate == rollout.GateNone {
		return out
	}
	add := func(label, text string, at float64, class string) {
		f, err := strconv.ParseFloat(text, 64)
		if err != nil || math.IsNaN(f) || at <= 0 {
			return
		}
		share := min(max(100*f/at, 0), 100)
		out.Gauges = append(out.Gauges, gauge{Label: label, Says: fmt.Sprintf("%.0f %%", math.Floor(share)), Width: percent(share), Class: class})
	}
	add("Evidence that it is worse, of what a rollback takes", ev.LogEvidenceWorse, -math.Log(s.Alpha), "g-bad")
	add("Evidence that it is not worse, of what a promotion takes", ev.LogEvidenceFine, -math.Log(s.Beta/2), "g-good")
	return out
}

// rounded to what a person reads: two digits below ten, none above.
func rounded(f float64) string {
	switch {
	case f >= 10:
		return strconv.FormatFloat(f, 'f', 0, 64)
	case f >= 1:
		return strconv.FormatFloat(f, 'f', 1, 64)
	}
	return strconv.FormatFloat(f, 'g', 2, 64)
}

// digits of a whole number in groups of three; anything else as it is.
func digits(s string) string {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		return s
	}
	return number(n)
}

func number(n int64) string {
	s := strconv.FormatInt(n, 10)
	for i := len(s) - 3; i > 0 && s[i-1] != '-'; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// clock is a time for people, in UTC.
func clock(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05 UTC") }
