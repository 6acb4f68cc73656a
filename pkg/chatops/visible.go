package chatops

import (
	"bytes"
	"iter"
	"regexp"
	"sort"
	"strings"

	"github.com/yuin/goldmark"
	"github.com/yuin/goldmark/ast"
	"github.com/yuin/goldmark/extension"
	"github.com/yuin/goldmark/text"
)

// reader reads comments as GitHub does (github.github.com/gfm).
var reader = goldmark.New(goldmark.WithExtensions(extension.GFM)).Parser()

// Bounds on what a comment may have, over which the rest of it is left out.
const (
	maxNested = 64
	maxTags   = 500
)

// plainLines are the lines of a comment, numbered from 1, that are neither in
// code nor in a quote nor in HTML: those that begin with what their readers see as plain text.
func plainLines(body string) iter.Seq2[int, string] {
	body = strings.ReplaceAll(body, "\r\n", "\n")
	body = strings.ReplaceAll(body, "\r", "\n")
	if !hasCommand(body) { // most have none, and need no reading
		return func(func(int, string) bool) {}
	}
	source := []byte(body)
	v := visible{source: source, plain: map[int]bool{}, open: []scope{{quote: true}}}
	for i := range source {
		if i == 0 || source[i-1] == '\n' {
			v.starts = append(v.starts, i)
		}
	}
	v.read()
	return func(yield func(int, string) bool) {
		for i, start := range v.starts {
			line, _, _ := bytes.Cut(source[start:], []byte("\n"))
			if v.plain[i] && !yield(i+1, string(line)) {
				return
			}
		}
	}
}

// hasCommand says whether any line is a command, wherever it stands.
func hasCommand(body string) bool {
	for line := range strings.SplitSeq(body, "\n") {
		if _, ok := ParseLine(line); ok {
			return true
		}
	}
	return false
}

// visible finds the lines that begin with plain text.
type visible struct {
	source []byte
	starts []int // of lines
	plain  map[int]bool
	// open are the tags that are, by what ends them at the latest: the whole comment, the quotes, items and paragraphs that the text is in.
	open []scope
	tags int  // so far
	lost bool // too much: the rest is not looked at
	// settled says that all tags of the paragraph are of phrases, so that its end ends those that are open.
	settled bool
}

// scope is a part of a comment at whose end tags are closed.
type scope struct {
	quote bool
	tags  map[string]int
}

// read finds them. What the library cannot read, and panics at, has none.
func (v *visible) read() {
	defer func() {
		if recover() != nil {
			clear(v.plain)
		}
	}()
	_ = ast.Walk(reader.Parse(text.NewReader(v.source)), func(n ast.Node, entering bool) (ast.WalkStatus, error) {
		switch n := n.(type) {
		case *ast.Blockquote, *ast.ListItem, *ast.Paragraph:
			if !entering {
				v.open = v.open[:len(v.open)-1]
				break
			}
			_, quote := n.(*ast.Blockquote)
			v.open = append(v.open, scope{quote: quote})
			v.lost = v.lost || len(v.open) > maxNested
			_, paragraph := n.(*ast.Paragraph)
			v.settled = paragraph && onlyPhrases(n, v.source)
		case *ast.TextBlock:
			if entering {
				v.settled = onlyPhrases(n, v.source)
			}
		case *ast.HTMLBlock:
			if entering {
				html := n.Lines().Value(v.source)
				if n.HasClosure() {
					html = append(bytes.Clone(html), n.ClosureLine.Value(v.source)...)
				}
				v.html(html, false)
			}
		case *ast.RawHTML:
			if entering {
				v.html(n.Segments.Value(v.source), true)
			}
		case *ast.Text:
			if entering && isPlain(n) && !v.lost && !v.hidden() {
				v.begins(n.Segment.Start)
			}
		}
		return ast.WalkContinue, nil
	})
}

// isPlain says whether text is in nothing but paragraphs, lists, headings and emphasis.
func isPlain(n ast.Node) bool {
	for n = n.Parent(); n != nil; n = n.Parent() {
		switch n.Kind() {
		case ast.KindDocument, ast.KindList, ast.KindListItem, ast.KindParagraph, ast.KindTextBlock, ast.KindHeading, ast.KindEmphasis:
		default:
			return false
		}
	}
	return true
}

// begins marks the line that begins with the text from at on, if one does.
func (v *visible) begins(at int) {
	line := sort.SearchInts(v.starts, at+1) - 1
	if line >= 0 && len(bytes.Trim(v.source[v.starts[line]:at], " \t")) == 0 {
		v.plain[line] = true
	}
}

var (
	// anyTag is a tag, a comment whether it ends or not, or the beginning of a tag that hides and has no end.
	anyTag = regexp.MustCompile(`(?is)<!--(?:-?>|.*?(?:-->|\z))|<(/?)([a-z][-a-z0-9]*)((?:[\s/](?:"[^"]*"|'[^']*'|[^"'>])*)?)>|<(` + hiding + `)(?:[\s/>]|\z)`)
	// hides is a tag around what is shown as code, quoted or struck out, or not at all. Others that do so GitHub shows as text, such
	// as script (section 6.11).
	hides = regexp.MustCompile(`^(?:` + hiding + `)$`)
	// reopened are those that a browser opens again in the next paragraph when it has closed them with theirs (HTML standard,
	// "reconstruct the active formatting elements"), and the comment.
	reopened = regexp.MustCompile(`^(?:code|s|strike|tt|!--)$`)
	// phrase is a tag that ends with its paragraph, and does not end that.
	phrase = regexp.MustCompile(`^(?:a|abbr|b|br|cite|code|del|dfn|em|i|img|ins|kbd|mark|q|s|samp|small|span|strike|strong|sub|sup|tt|u|var|wbr|script|style|textarea)$`)
)

const hiding = `blockquote|code|del|kbd|pre|q|s|samp|strike|tt|var`

// onlyPhrases says whether the tags in a block's text are all of phrases.
func onlyPhrases(block ast.Node, source []byte) bool {
	for n := block.FirstChild(); n != nil; n = n.NextSibling() {
		raw, ok := n.(*ast.RawHTML)
		if !ok {
			continue
		}
		if m := anyTag.FindSubmatch(raw.Segments.Value(source)); m != nil && len(m[2]) > 0 && !phrase.Match(bytes.ToLower(m[2])) {
			return false
		}
	}
	return true
}

// html counts the hiding tags of an HTML block, or of one tag within text.
func (v *visible) html(html []byte, inline bool) {
	if v.tags += bytes.Count(html, []byte("<")); v.tags > maxTags {
		v.lost = true
	}
	if v.lost {
		return
	}
	for _, m := range anyTag.FindAllSubmatch(html, -1) {
		name := strings.ToLower(string(m[2]) + string(m[4]))
		switch {
		case name == "" && !bytes.HasSuffix(m[0], []byte("->")):
			v.begin("!--", false)
		case name == "" || !hides.MatchString(name):
		case len(m[1]) > 0:
			v.end(name)
		default:
			v.begin(name, inline && v.settled && len(bytes.TrimSpace(m[3])) == 0)
		}
	}
}

// begin opens a tag. It ends with its paragraph or item if it is a phrase's, else with its quote.
func (v *visible) begin(name string, phrases bool) {
	i := len(v.open) - 1
	switch {
	case reopened.MatchString(name):
		i = 0
	case !phrases || !phrase.MatchString(name):
		for !v.open[i].quote {
			i--
		}
	}
	if v.open[i].tags == nil {
		v.open[i].tags = map[string]int{}
	}
	v.open[i].tags[name]++
}

// end closes the tag of that name that was opened last.
func (v *visible) end(name string) {
	for i := len(v.open) - 1; i >= 0; i-- {
		tags := v.open[i].tags
		if tags[name] == 0 {
			continue
		}
		if tags[name]--; tags[name] == 0 {
			delete(tags, name)
		}
		return
	}
}

// hidden says whether any is open.
func (v *visible) hidden() bool {
	for _, s := range v.open {
		if len(s.tags) > 0 {
			return true
		}
	}
	return false
}
