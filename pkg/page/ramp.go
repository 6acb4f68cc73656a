package page

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sluice-dev/sluice/rollout"
)

// shares of the versions as far as they follow from the record.
type shares map[string]rollout.Percent

// moment is a change and the shares after it.
type moment struct {
	change rollout.Change
	shares shares
}

// record of an endpoint, oldest first: the history, and what the control role has yet to copy there.
func record(e *rollout.Endpoint) []rollout.Change {
	out := slices.Clone(e.Status.History)
	for _, c := range e.Spec.Changes {
		if !slices.ContainsFunc(out, func(h rollout.Change) bool { return h.ID == c.ID }) {
			out = append(out, c)
		}
	}
	slices.SortStableFunc(out, func(a, b rollout.Change) int { return a.At.Compare(b.At) })
	return out
}

// ledger follows who claims what through the record. An edit from outside leaves nothing known; so does the
// beginning of a record whose older part is gone.
type ledger struct {
	spec    *rollout.Spec
	claims  shares
	def     string
	control string
	standby string
}

// replay the record.
func replay(e *rollout.Endpoint, changes []rollout.Change) []moment {
	l := &ledger{spec: &e.Spec, claims: shares{}}
	if len(changes) < rollout.MaxHistory && len(changes) > 0 {
		// Nothing is missing: the first version that was deployed was control and default.
		if f := strings.Fields(changes[0].Action); len(f) == 2 && f[0] == "deploy" {
			l.def, l.control = f[1], f[1]
		}
	} else if !slices.ContainsFunc(changes, movesDefault) {
		if d := e.Spec.Default(); d != nil {
			l.def = d.Name
		}
	}
	var out []moment
	for _, c := range changes {
		l.apply(c)
		out = append(out, moment{c, l.shares()})
	}
	if n := len(out); n > 0 {
		// The last one is known.
		out[n-1].shares = shares{}
		for _, s := range e.Spec.Shares() {
			out[n-1].shares[s.Name] = s.Percent
		}
	}
	return out
}

func movesDefault(c rollout.Change) bool {
	f := strings.Fields(c.Action)
	return len(f) > 0 && (f[0] == "promote" || f[0] == "rollback" || f[0] == "edit" || f[0] == "delete" || f[0] == "update" && slices.Contains(f, "default"))
}

func (l *ledger) apply(c rollout.Change) {
	f := strings.Fields(c.Action)
	if len(f) == 0 {
		return
	}
	v := ""
	if len(f) > 1 {
		v = strings.TrimSuffix(f[1], ",")
	}
	switch f[0] {
	case "deploy":
		l.claims[v] = 0
	case "traffic":
		if len(f) == 3 {
			l.claim(v, f[2])
		}
	case "update":
		for i, word := range f {
			switch {
			case word == "percent" && i+1 < len(f):
				l.claim(v, f[i+1])
			case word == "default":
				l.def = v
			case word == "type" && i+1 < len(f) && f[i+1] == string(rollout.Control):
				l.control = v
			}
		}
	case "promote":
		l.zero()
		l.standby, l.control, l.def = l.control, v, v
		l.claims[v] = 0
	case "rollback":
		if v != l.control {
			l.claims[v] = 0
			break
		}
		l.zero()
		l.control, l.def, l.standby = l.standby, l.standby, ""
	case "retire":
		l.claims[v] = 0
	case "delete":
		delete(l.claims, v)
		if len(f) == 5 { // delete V, new default W
			l.def = f[4]
		} else if v == l.def {
			l.def = ""
		}
	case "edit":
		*l = ledger{spec: l.spec, claims: shares{}}
	}
	// A write may take versions out beside what it says: a deploy retires the pull request's earlier treatment.
	for i := range l.spec.Versions {
		if w := &l.spec.Versions[i]; !w.RetiredAt.IsZero() && w.RetiredAt.Equal(c.At) {
			l.claims[w.Name] = 0
		}
	}
}

func (l *ledger) claim(v, percent string) {
	if p, err := rollout.ParsePercent(percent); err == nil {
		l.claims[v] = p
	}
}

func (l *ledger) zero() {
	for v := range l.claims {
		l.claims[v] = 0
	}
}

// shares: claims, and for the default, if it is known, what is left.
func (l *ledger) shares() shares {
	out, rest := shares{}, rollout.Full
	for v, p := range l.claims {
		out[v] = p
		rest -= p
	}
	if l.def != "" {
		out[l.def] += max(rest, 0)
	}
	return out
}

// rampView is the picture of how the shares moved: lines in per cent of its width and height.
type rampView struct {
	// Of is the version whose way it is.
	Of string
	// Label says in words what the picture shows.
	Label      string
	Start, End time.Time
	Running    bool
	Lines      []line
	Steps      []string // heights of the strategy's steps
	Points     []point
	Versions   []keyed
}

type line struct{ X1, Y1, X2, Y2, Class string }

// level says whether the line leads there at one height.
func (l line) level(class, x, y string) bool {
	return l.Class == class && l.X2 == x && l.Y1 == y && l.Y2 == y
}

// keyed is a version and the class of its colour.
type keyed struct{ Name, Class string }

// point is a change that moved the version.
type point struct {
	N        int
	X, Y     string
	Class    string
	At       time.Time
	Share    string
	Action   string
	Reason   rollout.Reason
	Evidence string
	Bad      bool
}

// maxMoments are drawn at most; the newest.
const maxMoments = 40

// ramp is the way of the treatment that the strategy runs on, else of the version that moved last. Nil where
// nothing has moved.
func ramp(e *rollout.Endpoint, changes []rollout.Change, class func(string) string, now time.Time) *rampView {
	moments := replay(e, changes)
	of, running := "", false
	if r := e.Status.Rollout; r != nil && r.Treatment != "" {
		of, running = r.Treatment, true
	} else {
		for _, m := range slices.Backward(moments) {
			f := strings.Fields(m.change.Action)
			if len(f) > 1 && (f[0] == "traffic" || f[0] == "promote" || f[0] == "rollback" || f[0] == "update" && slices.Contains(f, "percent")) {
				of = f[1]
				break
			}
		}
	}
	if of == "" {
		return nil
	}
	about := func(c rollout.Change) bool {
		f := strings.Fields(c.Action)
		return len(f) > 1 && f[1] == of
	}
	first, last := -1, -1
	for i, m := range moments {
		if !about(m.change) {
			continue
		}
		if last = i; first < 0 || strings.HasPrefix(m.change.Action, "deploy ") {
			first = i
		}
	}
	if first < 0 {
		return nil
	}
	first = max(first, len(moments)-maxMoments)
	end := now
	if !running {
		span := moments[last].change.At.Sub(moments[first].change.At)
		if until := moments[last].change.At.Add(max(span/5, time.Minute)); until.Before(now) {
			end = until
		}
	}
	moments = slices.DeleteFunc(slices.Clone(moments[first:]), func(m moment) bool { return m.change.At.After(end) })
	if len(moments) == 0 {
		return nil
	}
	inner := class
	class = func(name string) string {
		if k := inner(name); name != of || k != "k-other" {
			return k
		}
		return "k-treatment1" // it was one
	}
	v := &rampView{Of: of, Start: moments[0].change.At, End: end, Running: running}
	v.draw(moments, class)
	v.mark(moments, about, class(of))
	if running && e.Spec.Strategy != nil {
		for _, s := range e.Spec.Strategy.Resolved().Steps {
			v.Steps = append(v.Steps, v.y(s.Percent))
		}
	}
	return v
}

func (v *rampView) x(t time.Time) string {
	span := v.End.Sub(v.Start)
	if span <= 0 {
		return "0%"
	}
	return percent(100 * float64(t.Sub(v.Start)) / float64(span))
}

func (v *rampView) y(p rollout.Percent) string { return percent(100 - 100*p.Fraction()) }

func percent(f float64) string {
	return strconv.FormatFloat(min(max(f, 0), 100), 'f', 2, 64) + "%"
}

// draw a line for each version that had a part.
func (v *rampView) draw(moments []moment, class func(string) string) {
	var versions []string
	for _, m := range moments {
		for name, p := range m.shares {
			if (p > 0 || name == v.Of) && !slices.Contains(versions, name) {
				versions = append(versions, name)
			}
		}
	}
	slices.SortFunc(versions, func(a, b string) int {
		if (a == v.Of) != (b == v.Of) { // on top of the others
			if a == v.Of {
				return 1
			}
			return -1
		}
		return strings.Compare(a, b)
	})
	for _, name := range versions {
		k := class(name)
		v.Versions = append(v.Versions, keyed{name, k})
		for i, m := range moments {
			p, known := m.shares[name]
			if !known {
				continue
			}
			until := v.End
			if i+1 < len(moments) {
				until = moments[i+1].change.At
			}
			if n := len(v.Lines); n > 0 && v.Lines[n-1].level(k, v.x(m.change.At), v.y(p)) {
				v.Lines[n-1].X2 = v.x(until) // goes on
			} else {
				v.Lines = append(v.Lines, line{v.x(m.change.At), v.y(p), v.x(until), v.y(p), k})
			}
			if i+1 < len(moments) {
				if next, known := moments[i+1].shares[name]; known && next != p {
					v.Lines = append(v.Lines, line{v.x(until), v.y(p), v.x(until), v.y(next), k})
				}
			}
		}
	}
}

// mark the changes that moved the version, or that were about it.
func (v *rampView) mark(moments []moment, about func(rollout.Change) bool, class string) {
	var words []string
	was, knew := rollout.Percent(0), false
	for _, m := range moments {
		p, known := m.shares[v.Of]
		moved := known && knew && p != was
		if known {
			was, knew = p, true
		}
		if !moved && (!about(m.change) || strings.HasPrefix(m.change.Action, "prepare ")) {
			continue
		}
		pt := point{
			N: len(v.Points) + 1, X: v.x(m.change.At), Y: v.y(p), Class: class, At: m.change.At, Action: m.change.Action,
			Reason: m.change.Reason, Evidence: m.change.Evidence, Bad: strings.HasPrefix(m.change.Action, "rollback "),
		}
		if known {
			pt.Share = p.String() + " %"
			words = append(words, fmt.Sprintf("%s from %s", pt.Share, clock(pt.At)))
		}
		v.Points = append(v.Points, pt)
	}
	v.Label = "Share of " + v.Of + " over time: " + strings.Join(words, ", ")
}
