package report

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sluice-dev/sluice/rollout"
)

const (
	// rampCells is how wide the bar of 100 per cent is.
	rampCells = 20
	// rampRows of a strategy's steps are drawn at most; those around the present one.
	rampRows = 12
)

// bar of a share in Unicode blocks, an eighth of a cell exact; a share above 0 is never invisible.
func bar(p rollout.Percent) string {
	eighths := int((int64(p)*rampCells*8 + int64(rollout.Full)/2) / int64(rollout.Full))
	if p > 0 {
		eighths = max(eighths, 1)
	}
	out := strings.Repeat("█", eighths/8)
	if part := eighths % 8; part > 0 {
		out += string([]rune("▏▎▍▌▋▊▉")[part-1])
	}
	return out
}

// step of a ramp as it is drawn.
type step struct {
	// mark: ✓ done, ▶ the present one, ‖ where it stands still, ✗ where it ended, else a space.
	mark, note string
	percent    rollout.Percent
}

// stepsOf the strategy with what became of each; before and after are how many are left out there. None without a strategy.
func stepsOf(e *rollout.Endpoint, v *rollout.Version, s standing) (rows []step, before, after int) {
	if e.Spec.Strategy == nil || s.state == StateReplaced {
		return nil, 0, 0
	}
	steps := e.Spec.Strategy.Resolved().Steps
	at := reached(e, v)
	if s.state != StatePromoted && at > 0 && !slices.ContainsFunc(steps, func(st rollout.Step) bool { return st.Percent == at }) {
		// A share that a person set, or a deploy gave.
		i := slices.IndexFunc(steps, func(st rollout.Step) bool { return st.Percent > at })
		if i < 0 {
			i = len(steps)
		}
		steps = slices.Insert(slices.Clone(steps), i, rollout.Step{Percent: at})
	}
	present := 0
	for i, st := range steps {
		r := step{mark: " ", percent: st.Percent}
		switch {
		case s.state == StatePromoted || st.Percent < at:
			r.mark = "✓"
		case st.Percent == at && at > 0:
			present = i
			r.mark, r.note = "▶", progress(e, v, st)
			switch s.state {
			case StateWorse, StateRolledBack, StateClosed, StateFailed:
				r.mark, r.note = "✗", string(s.state)
			case StateHeld, StateWaiting, StateUnknown:
				r.mark = "‖"
			}
		}
		rows = append(rows, r)
	}
	if len(rows) == 0 || rows[len(rows)-1].percent < rollout.Full {
		last := step{mark: " ", percent: rollout.Full, note: "promotion"}
		if s.state == StatePromoted {
			last.mark, present = "✓", len(rows)
		}
		rows = append(rows, last)
	}
	all := len(rows)
	if all > rampRows {
		before = max(0, min(present-rampRows/2, all-rampRows))
		rows = rows[before : before+rampRows]
	}
	return rows, before, all - before - len(rows)
}

// ramp draws the steps in text.
func ramp(rows []step, before, after int) string {
	if len(rows) == 0 {
		return ""
	}
	wide := 0
	for _, r := range rows {
		wide = max(wide, len(r.percent.String()))
	}
	var b strings.Builder
	b.WriteString("```text\n")
	if before > 0 {
		fmt.Fprintf(&b, "… %d steps before\n", before)
	}
	for _, r := range rows {
		line := fmt.Sprintf("%s %*s %%  %s", r.mark, wide, r.percent, bar(r.percent))
		if r.note != "" {
			line += strings.Repeat(" ", rampCells-len([]rune(bar(r.percent)))+2) + r.note
		}
		b.WriteString(strings.TrimRight(line, " ") + "\n")
	}
	if after > 0 {
		fmt.Fprintf(&b, "… %d steps after\n", after)
	}
	b.WriteString("```\n")
	return b.String()
}

// progress of the present step.
func progress(e *rollout.Endpoint, v *rollout.Version, step rollout.Step) string {
	r, ev := e.Status.Rollout, evidenceOf(e, v.Name)
	if r == nil || r.Treatment != v.Name || r.StepPercent != step.Percent {
		return ""
	}
	var parts []string
	if ev != nil && step.MinRequests != nil {
		n, _ := strconv.ParseInt(ev.Requests, 10, 64)
		before, _ := strconv.ParseInt(r.StepRequests, 10, 64)
		parts = append(parts, fmt.Sprintf("%s of %s requests", group(max(n-before, 0)), group(*step.MinRequests)))
	}
	if !r.StepStarted.IsZero() {
		text := "since " + r.StepStarted.UTC().Format("15:04 UTC")
		if step.MinDuration > 0 {
			text = fmt.Sprintf("until %s at least", r.StepStarted.Add(time.Duration(step.MinDuration)).UTC().Format("15:04 UTC"))
		}
		parts = append(parts, text)
	}
	return strings.Join(parts, ", ")
}

// group writes an integer with commas between thousands.
func group(n int64) string {
	s := strconv.FormatInt(n, 10)
	for i := len(s) - 3; i > 0 && s[i-1] != '-'; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}
