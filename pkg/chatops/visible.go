package chatops

import (
	"iter"
	"maps"
	"regexp"
	"slices"
	"strings"
)

// What begins or ends a block in GitHub Flavored Markdown (github.github.com/gfm,
// sections 4.1 to 4.6, 5.1 and 5.2), as far as it matters for where a command can
// stand, without the white space before it.
var (
	listMarker = regexp.MustCompile(`^(?:[-+*]|[0-9]{1,9}[.)])(?:[ \t]|$)`)
	// sureItem begins an item below a paragraph, too: other markers would be text there.
	sureItem  = regexp.MustCompile(`^(?:[-+*]|1[.)])[ \t]+[^ \t]`)
	fenceOpen = regexp.MustCompile("^(?:(`{3,})[^`]*|(~{3,}).*)$")
	heading   = regexp.MustCompile(`^#{1,6}(?:[ \t]|$)`)
	// ruler is a thematic break, or makes a heading of the lines above it, as underline may.
	underline = regexp.MustCompile(`^=+[ \t]*$`)
	ruler     = regexp.MustCompile(`^(?:-{2,}[ \t]*|(?:-[ \t]*){3,}|(?:\*[ \t]*){3,}|(?:_[ \t]*){3,})$`)
	// htmlBlocks end with the line that has until, or before a blank one. The last
	// may be none: it needs a whole tag, and no paragraph above it.
	htmlBlocks = []htmlBlock{
		{regexp.MustCompile(`(?i)^<(?:pre|script|style)(?:[ \t>]|$)`), regexp.MustCompile(`(?i)</(?:pre|script|style)>`)},
		{regexp.MustCompile(`^<!--`), regexp.MustCompile(`-->`)},
		{regexp.MustCompile(`^<\?`), regexp.MustCompile(`\?>`)},
		{regexp.MustCompile(`^<!\[CDATA\[`), regexp.MustCompile(`\]\]>`)},
		{regexp.MustCompile(`^<![A-Z]`), regexp.MustCompile(`>`)},
		{regexp.MustCompile(`(?i)^</?(?:address|article|aside|base|basefont|blockquote|body|caption|center|col|colgroup|dd|details|dialog|dir|div|dl|dt|` +
			`fieldset|figcaption|figure|footer|form|frame|frameset|h[1-6]|head|header|hr|html|iframe|legend|li|link|main|menu|menuitem|nav|noframes|ol|` +
			`optgroup|option|p|param|section|summary|table|tbody|td|tfoot|th|thead|title|tr|track|ul)(?:[ \t>]|/>|$)`), nil},
		{regexp.MustCompile(`^(?:</?[A-Za-z][-A-Za-z0-9]*(?:[ \t/>]|$)|<!)`), nil},
	}
	// quoting are the tags around what is shown as code, quoted or struck out, or not at all.
	quoting = regexp.MustCompile(`(?i)^<(?:(` + quotingTags + `)[ \t\n/>]|/(` + quotingTags + `)[ \t\n]*>)`)
	// wholeTag is one as section 6.10 has it, on one line.
	wholeTag = regexp.MustCompile(`^<(?:[A-Za-z][-A-Za-z0-9]*(?:[ \t]+[A-Za-z_:][-A-Za-z0-9:._]*(?:[ \t]*=[ \t]*(?:[^ \t"'=<>` + "`" + `]+|'[^']*'|"[^"]*"))?)*[ \t]*/?|/[A-Za-z][-A-Za-z0-9]*[ \t]*)>`)
	// ownBlock are the tags whose blocks section 4.6 names, or versions of it.
	ownBlock = regexp.MustCompile(`(?i)^</?(?:pre|script|style|textarea)[ \t/>]`)
	// plainTag are those that GitHub shows as text (section 6.11).
	plainTag = regexp.MustCompile(`^(?:script|style|textarea)$`)
	// placeholder is a tag that a browser closes with the paragraph it is in, and
	// does not open again in the next, as it does with code, s, strike and tt.
	placeholder = regexp.MustCompile(`(?i)^<(?:del|kbd|q|samp|var)>`)
	// reopened are those others, and the comment, which do not end with a quote either.
	reopened = regexp.MustCompile(`^(?:code|s|strike|tt|!--)$`)
	// unsettling are the tags in a paragraph that end it for a browser, or keep its end from ending others.
	unsettling = regexp.MustCompile(`(?i)</?(?:address|applet|article|aside|base|basefont|blockquote|body|button|caption|center|col|colgroup|dd|details|dialog|dir|div|dl|dt|` +
		`fieldset|figcaption|figure|footer|form|frame|frameset|h[1-6]|head|header|hgroup|hr|html|iframe|legend|li|link|listing|main|marquee|math|menu|menuitem|` +
		`nav|noembed|noframes|noscript|object|ol|optgroup|option|p|param|plaintext|pre|script|search|section|select|style|summary|svg|table|tbody|td|template|` +
		`textarea|tfoot|th|thead|title|tr|track|ul|xmp)(?:[ \t\n/>]|$)`)
)

// tag begins one, or an autolink, which has no lines.
var tag = regexp.MustCompile(`^<[A-Za-z/!?]`)

type htmlBlock struct{ begin, until *regexp.Regexp }

// maxNested are the lists in lists that are followed on one line.
const maxNested = 16

const quotingTags = `blockquote|code|del|kbd|pre|q|s|samp|script|strike|style|textarea|tt|var`

// plainLines are the lines of a comment, numbered from 1, that are neither in
// code nor in a quote nor in HTML: those that their readers see as plain text.
// Where Markdown would need more context to be sure, such as a fence inside a
// list that ends without it, the line is left out.
func plainLines(body string) iter.Seq2[int, string] {
	body = strings.ReplaceAll(body, "\r\n", "\n")
	lines := strings.Split(strings.ReplaceAll(body, "\r", "\n"), "\n")
	hidden := make([]bool, len(lines))

	var (
		fence     string         // what closes the open fence
		html      bool           // an HTML block is open
		until     *regexp.Regexp // what closes it, if not a blank line
		sure      bool           // it is one to its end, so that nothing else begins in it
		column    int            // where the fence or the HTML block was opened
		lazy      bool           // the line above is text in a quote, which the next line may continue
		listed    bool           // there was a list, which may go on
		lost      bool           // whether the rest is code depends on what is not looked at
		open      = tags{}
		outer     tags      // what was open before the quote that goes on
		blank     = true    // the line above is blank, or there is none
		item      *listItem // the one that the open paragraph began, if that is certain
		paragraph = -1      // where the open paragraph or HTML block begins
	)
	end := func(i int) {
		if paragraph >= 0 {
			open.hide(lines[paragraph:i], hidden[paragraph:i], html)
			paragraph, html = -1, false
		}
		item = nil
	}
	leave := func() {
		if outer != nil {
			open.leave(outer)
			outer = nil
		}
	}
	// doubt says whether it matters that the open paragraph may go on at line i or
	// not, for what is code or HTML, and hides what is in question so far.
	doubt := func(i int) bool {
		matters := false
		for j := paragraph; j >= 0 && j < i && !html; j++ {
			hidden[j] = hidden[j] || matters
			matters = matters || strings.ContainsAny(lines[j], "`<")
		}
		return matters
	}
	// begin opens a paragraph, unless its first line may be code and that matters.
	begin := func(i int, coded bool) {
		if paragraph = i; coded && strings.ContainsAny(lines[i], "`<[\\") {
			end(i + 1)
			lazy = true
		}
	}
	for i, line := range lines {
		first, text := indentation(line, 0)
		if hidden[i] = lost || fence != ""; lost {
			continue
		}
		if fence != "" {
			t := strings.TrimRight(text, " \t")
			closes := len(t) >= len(fence) && strings.Trim(t, fence[:1]) == ""
			switch inList := listed && column > 0; {
			case inList && t != "" && first < column, inList && closes && first > max(column, 3):
				lost = true // where the list's text begins says whether the fence goes on
			case closes && (inList || first <= 3):
				fence = ""
			}
			blank = false
			continue
		}
		if blank && first == 0 && text != "" {
			open.endParagraph() // outside of all lists
		}
		above := blank
		blank = false
		at, items := first, 0
		certain := first <= 3 && sureItem.MatchString(text)
		coded := first > 3 && paragraph < 0 // the text may be code
		for first <= 3 || listed {
			m := strings.TrimRight(listMarker.FindString(text), " \t")
			if m == "" || items == maxNested || ruler.MatchString(text) {
				break
			}
			items, listed = items+1, true
			marked := at + len(m)
			at, text = indentation(text[len(m):], marked)
			coded = coded || at-marked > 4
		}
		next := item.next(first, line, at, items)       // an item below that of the open paragraph
		breaks := first <= 3 && (items == 0 || certain) // a paragraph, whatever it is in
		indented := at > 3 && !listed                   // code or a paragraph's text, whatever it looks like
		opens := fenceOpen.FindStringSubmatch(text)
		block := -1
		if !indented {
			block = slices.IndexFunc(htmlBlocks, func(b htmlBlock) bool { return b.begin.MatchString(text) })
		}
		alone := false // on its line is a tag, which is a block above which no paragraph is
		if t := wholeTag.FindString(text); t != "" && block == len(htmlBlocks)-1 && !ownBlock.MatchString(t) {
			if alone = strings.Trim(text[len(t):], " \t") == ""; !alone && strings.TrimSpace(text[len(t):]) != "" {
				block = -1 // a paragraph's text
			}
		}
		if !lazy && !strings.HasPrefix(text, ">") {
			leave()
		}
		switch {
		case items == maxNested:
			doubt(i)
			hidden[i], lost = true, true
		case html && (until != nil || text != "" || items > 0):
			hidden[i] = true
			lost = !sure && (opens != nil || block >= 0 && htmlBlocks[block].until != nil || listed && until != nil && text != "" && first < column)
			if until != nil && until.MatchString(line) {
				end(i + 1)
			}
		case text == "" && items == 0:
			end(i)
			leave()
			if lazy, blank = false, true; !listed {
				open.endParagraph()
			}
		case strings.HasPrefix(text, ">"):
			inner := strings.TrimLeft(text, "> \t")
			lazy = !breaks && (doubt(i) || lazy) || inner != ""
			end(i)
			hidden[i] = true
			if outer == nil {
				outer = maps.Clone(open)
			}
			open.hide(lines[i:i+1], hidden[i:i+1], strings.HasPrefix(inner, "<"))
		case opens != nil && !indented:
			// What begins no item below a paragraph begins no fence either: what closes it does.
			lost = items > 0 && !certain && i > 0 && strings.Trim(lines[i-1], " \t") != ""
			lazy = !breaks && (doubt(i) || lazy)
			end(i)
			hidden[i] = true
			fence, column = opens[1]+opens[2], at
		case block >= 0:
			breaks = breaks && (block < len(htmlBlocks)-1 || alone && above && items == 0)
			lazy = !breaks && (doubt(i) || lazy)
			end(i)
			hidden[i] = true
			paragraph, html, until, column = i, true, htmlBlocks[block].until, at
			sure = breaks && (at == 0 || !listed)
			if until != nil && until.MatchString(text) {
				end(i + 1)
			}
		case breaks && (ruler.MatchString(text) || heading.MatchString(text)):
			end(i)
			open.hide(lines[i:i+1], hidden[i:i+1], false)
			lazy = lazy && !heading.MatchString(text)
		case certain, next != nil && !lazy && !heading.MatchString(text) && !underline.MatchString(text) && !ruler.MatchString(text):
			end(i)
			lazy = false
			begin(i, coded)
			if item = next; item == nil {
				item = newItem(first, line, at, items)
			}
		case lazy:
			hidden[i] = true
			open.hide(lines[i:i+1], hidden[i:i+1], false)
		case paragraph >= 0 && !indented && (items > 0 || ruler.MatchString(text) || underline.MatchString(text) || heading.MatchString(text)):
			// An item, a heading or more of the text, by what the list is like.
			lazy = listed && doubt(i)
			end(i)
			begin(i, coded)
		case paragraph < 0 && !indented:
			begin(i, coded)
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

// indentation is the column where the text begins that follows column at, and the text.
func indentation(line string, at int) (int, string) {
	text := strings.TrimLeft(line, " \t")
	for _, c := range line[:len(line)-len(text)] {
		if at++; c == '\t' {
			at = (at + 3) / 4 * 4
		}
	}
	return at, text
}

// listItem is one with text after its marker, on one line.
type listItem struct {
	kind       byte // its bullet, or what follows its number
	from, text int  // the columns from which an item beside it may begin, and where its text does
}

// newItem is the item that a line begins from column first on, whose text is at
// that other column; nil if there are several or the text is code.
func newItem(first int, line string, at, items int) *listItem {
	m := strings.TrimRight(listMarker.FindString(strings.TrimLeft(line, " \t")), " \t")
	if after := at - first - len(m); items != 1 || after < 1 || after > 4 {
		return nil
	}
	return &listItem{kind: m[len(m)-1], text: at}
}

// next is the item that a line begins where l's paragraph is open, if it is certain:
// beside l if it is of the same kind, or in it if it may begin below a paragraph.
func (l *listItem) next(first int, line string, at, items int) *listItem {
	if l == nil {
		return nil
	}
	text := strings.TrimLeft(line, " \t")
	n := newItem(first, line, at, items)
	switch {
	case n == nil || strings.Trim(text[len(listMarker.FindString(text)):], " \t") == "":
		return nil
	case first >= l.text && first <= l.text+3 && sureItem.MatchString(text):
		n.from = l.text
	case first < l.text && first >= l.from && first <= l.from+3 && n.kind == l.kind:
		n.from = l.from
	default:
		return nil
	}
	return n
}

// endsBelow marks the names of the tags that end with their paragraph.
const endsBelow = "paragraph's "

// endParagraph forgets what ends with a paragraph.
func (t tags) endParagraph() {
	maps.DeleteFunc(t, func(name string, _ int) bool { return strings.HasPrefix(name, endsBelow) })
}

// leave forgets what was opened in a quote and ends with it, given what was open before.
func (t tags) leave(outer tags) {
	for name, n := range t {
		if before := outer[name]; reopened.MatchString(name) || n <= before {
			continue
		} else if before > 0 {
			t[name] = before
		} else {
			delete(t, name)
		}
	}
}

// tags counts the quoting ones that are open: they go on to their ends, over blank lines and all.
type tags map[string]int

// hide marks the lines of a paragraph that begin inside a code span, a tag, an HTML
// comment, a link's address (sections 6.3, 6.6 and 6.10) or quoting tags opened on a line above. In an
// HTML block backticks and backslashes are nothing special.
func (t tags) hide(lines []string, hidden []bool, html bool) {
	hidden[0] = hidden[0] || len(t) > 0
	text := strings.Join(lines, "\n")
	i, line, shown := 0, 0, 0 // before shown are a tag's attributes or where a link leads
	stop := -1                // the next end of a tag or a line
	skip := func(to int, inside bool) {
		for ; i < min(to, len(text)); i++ {
			if text[i] == '\n' {
				line++
				hidden[line] = hidden[line] || inside || i < shown || len(t) > 0
			}
		}
	}
	lastTitle := strings.LastIndexAny(text, "\"')")
	settled := !html && !unsettling.MatchString(text)
	runs, lastComment, lastTag := closers(text), strings.LastIndex(text, "-->"), strings.LastIndexByte(text, '>')
	for i < len(text) {
		switch {
		case text[i] == '\\' && !html:
			skip(i+2, false)
		case text[i] == '`' && !html:
			n := run(text, i)
			if e, ok := runs.after(n, i+n); ok {
				skip(e+n, true)
			} else {
				skip(i+n, false)
			}
		case strings.HasPrefix(text[i:], "<!--") && i+2 <= lastComment: // <!--> and <!---> are whole
			skip(i+2+strings.Index(text[i+2:], "-->")+len("-->"), true)
		case strings.HasPrefix(text[i:], "<!--") && html:
			t["!--"]++ // no text ends it
			skip(len(text), true)
		case text[i] == '<' && i < lastTag:
			if m := quoting.FindStringSubmatch(text[i:]); m == nil {
			} else if name := strings.ToLower(m[1]); name != "" {
				if settled && placeholder.MatchString(text[i:]) {
					name = endsBelow + name
				}
				if html || !plainTag.MatchString(name) {
					t[name]++
				}
			} else {
				name = strings.ToLower(m[2])
				if t[endsBelow+name] > 0 { // the last one opened
					name = endsBelow + name
				}
				if t[name] > 1 {
					t[name]--
				} else {
					delete(t, name)
				}
			}
			if stop < i {
				stop = i + strings.IndexAny(text[i:], ">\n")
			}
			if !html && text[stop] == '\n' && tag.MatchString(text[i:]) {
				shown = max(shown, lastTag) // whichever ends it: attributes may have others
			}
			skip(i+1, false)
		case strings.HasPrefix(text[i:], "]("):
			shown = max(shown, i+strings.IndexByte(text[i:], ')'))
			skip(i+1, false)
		case strings.HasPrefix(text[i:], "]:"):
			shown = max(shown, lastTitle) // a title may have lines
			if strings.HasPrefix(text[i:], "]:\n") {
				shown = max(shown, i+len("]:\n"))
			}
			skip(i+1, false)
		default:
			skip(i+1, false)
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
