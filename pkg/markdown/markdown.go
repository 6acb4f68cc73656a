// Package markdown makes text fit for GitHub's Markdown: names, reasons and
// messages that come from outside stand as themselves, whatever is in them.
package markdown

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// breaker is an invisible character that keeps GitHub from making a mention, a
// reference or a link of what stands around it. A backslash does not: GitHub
// looks for those in the rendered text.
const breaker = "&#8203;"

// Plain makes text fit for one line: control and invisible formatting
// characters, which could reorder or hide what is read, become spaces or go.
func Plain(text string) string {
	var b strings.Builder
	for _, r := range strings.ToValidUTF8(text, "\uFFFD") {
		switch {
		case unicode.IsSpace(r) || unicode.IsControl(r):
			b.WriteByte(' ')
		case unicode.Is(unicode.Cf, r):
		default:
			b.WriteRune(r)
		}
	}
	return strings.Join(strings.Fields(b.String()), " ")
}

// Escape makes text stand in Markdown as itself: no emphasis, link, HTML, table
// cell, mention or reference comes of it.
func Escape(text string) string {
	text = Plain(text)
	var b strings.Builder
	for i, r := range text {
		switch r {
		case '&':
			b.WriteString("&amp;")
		case '<':
			b.WriteString("&lt;")
		case '>':
			b.WriteString("&gt;")
		case '@':
			b.WriteString("@" + breaker)
		case '#':
			b.WriteString(`\#` + breaker)
		case '|': // a backslash would be taken for the cell's
			b.WriteString("&#124;")
		case '\\', '`', '*', '_', '{', '}', '[', ']', '~', '!', '$':
			b.WriteByte('\\')
			b.WriteRune(r)
		case ':': // http://, mailto:x and :emoji:
			b.WriteByte(':')
			if i+1 < len(text) && text[i+1] != ' ' {
				b.WriteString(breaker)
			}
		case '.', '-': // www., GH-1; sentences end with a stop, which needs nothing
			if next, _ := utf8.DecodeRuneInString(text[i+1:]); i > 0 && (unicode.IsLetter(next) || unicode.IsDigit(next)) && linkish(text[:i], r) {
				b.WriteString(breaker)
			}
			b.WriteRune(r)
		default:
			b.WriteRune(r)
		}
	}
	return b.String()
}

// linkish says whether before, followed by that character, begins what GitHub makes a link of.
func linkish(before string, r rune) bool {
	suffix := "gh"
	if r == '.' {
		suffix = "www"
	}
	return len(before) >= len(suffix) && strings.EqualFold(before[len(before)-len(suffix):], suffix)
}

// Code makes a code span of text, whatever backticks it has. Nothing in a code
// span is a mention, a reference or a link.
func Code(text string) string {
	text = Plain(text)
	if text == "" {
		return ""
	}
	fence := "`"
	for strings.Contains(text, fence) {
		fence += "`"
	}
	if strings.HasPrefix(text, "`") || strings.HasSuffix(text, "`") {
		text = " " + text + " "
	}
	return fence + text + fence
}

// Prose is a message for people, which may have code spans of single backticks:
// those stay, all else is escaped. Longer messages are cut.
func Prose(text string) string {
	parts := strings.Split(Cut(Plain(text), MaxProse), "`")
	if len(parts)%2 == 0 { // one without its twin is no code span
		last := len(parts) - 1
		parts[last-1] += "`" + parts[last]
		parts = parts[:last]
	}
	for i, p := range parts {
		if i%2 == 1 {
			parts[i] = Code(p)
		} else {
			lead, tail := "", ""
			if p != "" && p[0] == ' ' {
				lead = " "
			}
			if len(p) > 1 && p[len(p)-1] == ' ' {
				tail = " "
			}
			parts[i] = lead + Escape(p) + tail
		}
	}
	return strings.Join(parts, "")
}

// MaxProse in runes.
const MaxProse = 600

// Table is a Markdown table whose source is aligned too. Columns named in right
// are aligned to the right. Cells are Markdown already.
func Table(head []string, right map[int]bool, rows [][]string) string {
	cell := func(s string) string { return strings.ReplaceAll(s, "|", `\|`) }
	width := make([]int, len(head))
	all := append([][]string{head}, rows...)
	for _, row := range all {
		for i := range row {
			row[i] = cell(row[i])
			width[i] = max(width[i], utf8.RuneCountInString(row[i]), 3)
		}
	}
	var b strings.Builder
	line := func(row []string) {
		for i, c := range row {
			pad := strings.Repeat(" ", width[i]-utf8.RuneCountInString(c))
			if right[i] {
				c = pad + c
			} else {
				c += pad
			}
			fmt.Fprintf(&b, "| %s ", c)
		}
		b.WriteString("|\n")
	}
	line(head)
	for i := range head {
		rule := strings.Repeat("-", width[i])
		if right[i] {
			rule = rule[1:] + ":"
		}
		fmt.Fprintf(&b, "| %s ", rule)
	}
	b.WriteString("|\n")
	for _, row := range rows {
		line(row)
	}
	return b.String()
}

// Cut shortens text to at most n runes.
func Cut(text string, n int) string {
	count := 0
	for i := range text {
		if count == n {
			return strings.TrimSpace(text[:i]) + "…"
		}
		count++
	}
	return text
}

// Bound cuts text at the end of a line, at n bytes.
func Bound(text string, n int) string {
	if len(text) <= n {
		return text
	}
	if i := strings.LastIndexByte(text[:n], '\n'); i >= 0 {
		n = i
	}
	return text[:n] + "\n\n… cut here: it was too long.\n"
}

// Fence makes a code block of text, keeping its lines. Nothing in one is a mention, a link or
// markup, and no run of backticks in it ends it.
func Fence(text string) string {
	fence := "```"
	for strings.Contains(text, fence) {
		fence += "`"
	}
	var b strings.Builder
	for _, r := range strings.TrimRight(strings.ToValidUTF8(text, "\uFFFD"), "\r\n\t ") {
		switch {
		case r == '\n' || r == '\t':
			b.WriteRune(r)
		case unicode.IsControl(r) || unicode.Is(unicode.Cf, r):
		default:
			b.WriteRune(r)
		}
	}
	return fence + "text\n" + b.String() + "\n" + fence + "\n"
}
