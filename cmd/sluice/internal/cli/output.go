package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode/utf8"

	"sigs.k8s.io/yaml"

	"github.com/sluice-dev/sluice/pkg/project"
	"github.com/sluice-dev/sluice/rollout"
)

// print writes v as the output flag says; table draws it for people.
func (a *app) print(v any, table func(io.Writer)) error {
	switch a.output {
	case "json":
		enc := json.NewEncoder(a.io.Out)
		enc.SetIndent("", "  ")
		return enc.Encode(v)
	case "yaml":
		b, err := yaml.Marshal(v)
		if err != nil {
			return err
		}
		_, err = a.io.Out.Write(b)
		return err
	default:
		table(a.io.Out)
		return nil
	}
}

// done is the result of a command that changed something.
type done struct {
	Endpoint string `json:"endpoint"`
	Version  string `json:"version,omitempty"`
	Changed  bool   `json:"changed"`
	Message  string `json:"message"`
}

func (a *app) printDone(d done) error {
	return a.print(d, func(w io.Writer) { _, _ = fmt.Fprintln(w, d.Message) })
}

// printError writes an error: with -o json one object a refusal, else a sentence each.
// A place in a file is part of the message.
func (a *app) printError(err error) {
	refusals := rollout.AsErrors(err)
	if a.output == "json" {
		enc := json.NewEncoder(a.io.Err)
		enc.SetEscapeHTML(false)
		var usage usageError
		switch {
		case errors.As(err, &usage):
			refusals = []*rollout.Error{{Reason: rollout.ReasonInvalid, Field: usage.field, Message: usage.message, Hint: usage.hint}}
		case len(refusals) == 0:
			refusals = []*rollout.Error{{Reason: rollout.ReasonInternal, Message: err.Error()}}
		}
		places := map[*rollout.Error]string{}
		for _, e := range project.Errors(err) {
			places[e.Refusal] = e.Place() + ": "
		}
		for _, e := range refusals {
			placed := *e
			placed.Message = places[e] + e.Message
			_ = enc.Encode(&placed)
		}
		return
	}
	_, _ = fmt.Fprintf(a.io.Err, "Error: %v\n", err)
}

// table is rows of cells, lined up by the widest of each column.
type table struct {
	rows [][]string
}

func (t *table) add(cells ...string) { t.rows = append(t.rows, cells) }

func (t *table) write(w io.Writer) {
	var width []int
	for _, r := range t.rows {
		for i, c := range r {
			if i == len(width) {
				width = append(width, 0)
			}
			width[i] = max(width[i], utf8.RuneCountInString(c))
		}
	}
	for _, r := range t.rows {
		var b strings.Builder
		for i, c := range r {
			b.WriteString(c)
			if i < len(r)-1 {
				b.WriteString(strings.Repeat(" ", width[i]-utf8.RuneCountInString(c)+2))
			}
		}
		_, _ = fmt.Fprintln(w, strings.TrimRight(b.String(), " "))
	}
}

// bar draws a share of traffic in eighths of a block.
func bar(p rollout.Percent, cells int) string {
	eighths := int(p) * cells * 8 / int(rollout.Full)
	if p > 0 && eighths == 0 {
		eighths = 1
	}
	s := strings.Repeat("█", eighths/8)
	if r := eighths % 8; r > 0 {
		s += string([]rune("▏▎▍▌▋▊▉")[r-1])
	}
	return s + strings.Repeat("░", max(0, cells-utf8.RuneCountInString(s)))
}

// ago is a moment as its age.
func ago(t, now time.Time) string {
	if t.IsZero() {
		return "-"
	}
	switch d := now.Sub(t); {
	case d < time.Minute:
		return fmt.Sprintf("%ds", max(0, int(d.Seconds())))
	case d < time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	default:
		return fmt.Sprintf("%dd", int(d.Hours()/24))
	}
}
