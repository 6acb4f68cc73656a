package chatops

import (
	"iter"
	"regexp"
	"strings"
)

// What begins or ends a block in GitHub Flavored Markdown (github.github.com/gfm,
// sections 4.4 to 4.6, 5.1 and 5.2), as far as it matters for where a command can stand.
var (
	fenceOpen = regexp.MustCompile("^ {0,3}(?:(`{3,})[^`]*|(~{3,}).*)$")
	listItem  = regexp.MustCompile(`^ {0,3}(?:[-+*]|[0-9]{1,9}[.)])(?:[ \t]|$)`)
	heading   = regexp.MustCompile(`^ {0,3}#{1,6}(?:[ \t]|$)`)
	rawHTML   = regexp.MustCompile(`(?i)^ {0,3}<(pre|script|style|textarea)(?:[ \t>]|$)`)
)

// plainLines are the lines of a comment, numbered from 1, that are neither in
// code nor in a quote nor in an HTML comment: those that their readers see as
// plain text. Where Markdown would need more context to be sure, such as a
// fence inside a list that ends without it, the line is left out.
func plainLines(body string) iter.Seq2[int, string] {
	body = strings.ReplaceAll(body, "\r\n", "\n")
	lines := strings.Split(strings.ReplaceAll(body, "\r", "\n"), "\n")
	hidden := make([]bool, len(lines))

	var (
		fence     string // what closes the open fence
		until     string // what closes the open HTML block
		lazy      bool   // the line above is text in a quote, which the next line may continue
		paragraph = -1   // where the open paragraph begins
	)
	end := func(i int) {
		if paragraph >= 0 {
			hideInline(lines[paragraph:i], hidden[paragraph:i])
			paragraph = -1
		}
	}
	for i, line := range lines {
		text := strings.TrimLeft(line, " \t")
		switch {
		case fence != "":
			hidden[i] = true
			t := strings.TrimLeft(line, " ")
			indent := len(line) - len(t)
			if t = strings.TrimRight(t, " \t"); indent <= 3 && len(t) >= len(fence) && strings.Trim(t, fence[:1]) == "" {
				fence = ""
			}
		case until != "":
			hidden[i] = true
			if strings.Contains(strings.ToLower(line), until) {
				until = ""
			}
		case text == "":
			end(i)
			lazy = false
		case strings.HasPrefix(text, ">"):
			end(i)
			hidden[i] = true
			inner := strings.TrimLeft(text, "> \t")
			lazy = inner != "" && !fenceOpen.MatchString(inner) && !heading.MatchString(inner)
		case fenceOpen.MatchString(line):
			end(i)
			hidden[i], lazy = true, false
			m := fenceOpen.FindStringSubmatch(line)
			fence = m[1] + m[2]
		case rawHTML.MatchString(line):
			end(i)
			hidden[i], lazy = true, false
			tag := "</" + strings.ToLower(rawHTML.FindStringSubmatch(line)[1]) + ">"
			if !strings.Contains(strings.ToLower(line), tag) {
				until = tag
			}
		case strings.HasPrefix(text, "<!--"):
			end(i)
			hidden[i], lazy = true, false
			if !strings.Contains(text[len("<!--"):], "-->") {
				until = "-->"
			}
		case listItem.MatchString(line) || heading.MatchString(line):
			end(i)
			paragraph, lazy = i, false
		case lazy:
			hidden[i] = true
		case paragraph < 0:
			paragraph = i
		}
	}
	end(len(lines))

	return func(yield func(int, string) bool) {
		for i, line := range lines {
			if !hidden[i] && !yield(i+1, line) {
				return
			}
		}
	}
}

// hideInline marks the lines of a paragraph that begin inside a code span or an
// HTML comment opened on a line above (sections 6.3 and 6.10).
func hideInline(lines []string, hidden []bool) {
	text := strings.Join(lines, "\n")
	if len(lines) < 2 || !strings.Contains(text, "`") && !strings.Contains(text, "<!--") {
		return
	}
	line, at := 0, 0
	hide := func(from, to int) { // the lines whose start lies in text[from:to]
		line += strings.Count(text[at:from], "\n")
		for range strings.Count(text[from:to], "\n") {
			line++
			hidden[line] = true
		}
		at = to
	}
	runs, comments := closers(text), true
	for i := 0; i < len(text); {
		switch {
		case text[i] == '\\':
			i += 2
		case text[i] == '`':
			n := run(text, i)
			if e, ok := runs.after(n, i+n); ok {
				hide(i, e)
				i = e + n
			} else {
				i += n
			}
		case comments && strings.HasPrefix(text[i:], "<!--"):
			e := strings.Index(text[i+len("<!--"):], "-->")
			if e < 0 {
				comments = false // none further on can end either
				i++
				continue
			}
			e += i + len("<!--")
			hide(i, e)
			i = e + len("-->")
		default:
			i++
		}
	}
}

// run is the number of backticks from i on.
func run(text string, i int) int {
	n := 0
	for i+n < len(text) && text[i+n] == '`' {
		n++
	}
	return n
}

// backticks are the places of runs of backticks, by length, so that a hostile
// comment with very many of them takes no longer than its length.
type backticks map[int][]int

func closers(text string) backticks {
	out := backticks{}
	for i := 0; i < len(text); {
		if n := run(text, i); n > 0 {
			out[n] = append(out[n], i)
			i += n
		} else {
			i++
		}
	}
	return out
}

// after is the first run of that length at or after i. Calls have i growing.
func (b backticks) after(n, i int) (int, bool) {
	for len(b[n]) > 0 && b[n][0] < i {
		b[n] = b[n][1:]
	}
	if len(b[n]) == 0 {
		return 0, false
	}
	return b[n][0], true
}
