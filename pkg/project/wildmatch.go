package project

import "strings"

// The results of matching a part, as git's wildmatch.c has them: "to ** " and "all"
// say that trying longer texts for the stars before cannot help.
type wild int8

const (
	wildUnknown wild = iota // in the memo: not tried yet
	wildMatch
	wildNoMatch
	wildAbortAll
	wildAbortToStarStar
)

// wildmatch tells whether text matches pattern as in git (wildmatch.c, which came
// from rsync): * ? [set] and \ as in fnmatch(3); with pathname, * and ? stop at a
// slash and ** as a whole component does not. Bytes are compared, case counts.
func wildmatch(pattern, text string, pathname bool) bool {
	m := wildMatcher{pattern: pattern, text: text, pathname: pathname}
	return m.match(0, 0) == wildMatch
}

// memoAfter is how many calls one match may take before results are remembered:
// what git does in exponential time for a few patterns is then done in polynomial time.
const memoAfter = 512

type wildMatcher struct {
	pattern, text string
	pathname      bool
	calls         int
	memo          map[[2]int]wild
}

// match matches the pattern from p with the text from t.
func (m *wildMatcher) match(p, t int) wild {
	if m.calls++; m.calls < memoAfter {
		return m.try(p, t)
	}
	if m.memo == nil {
		m.memo = map[[2]int]wild{}
	}
	key := [2]int{p, t}
	if r := m.memo[key]; r != wildUnknown {
		return r
	}
	r := m.try(p, t)
	m.memo[key] = r
	return r
}

// byteAt is the byte at i, and 0 at the end, as in a C string.
func byteAt(s string, i int) byte {
	if i < len(s) {
		return s[i]
	}
	return 0
}

// globSpecial are the characters with a meaning of their own.
const globSpecial = `*?[\`

func isGlobSpecial(c byte) bool { return c == '*' || c == '?' || c == '[' || c == '\\' }

func (m *wildMatcher) try(p, t int) wild {
	pat, text := m.pattern, m.text
	for ; p < len(pat); p, t = p+1, t+1 {
		pc, tc := pat[p], byteAt(text, t)
		if tc == 0 && pc != '*' {
			return wildAbortAll
		}
		switch pc {
		case '\\':
			// The next byte is meant literally; a backslash at the end matches nothing.
			p++
			if byteAt(pat, p) != tc {
				return wildNoMatch
			}
		case '?':
			if m.pathname && tc == '/' {
				return wildNoMatch
			}
		case '*':
			if r, done := m.star(&p, &t); done {
				return r
			}
		case '[':
			end, in, ok := matchSet(pat, p, tc)
			if !ok {
				return wildAbortAll
			}
			if !in || m.pathname && tc == '/' {
				return wildNoMatch
			}
			p = end
		default:
			if tc != pc {
				return wildNoMatch
			}
		}
	}
	if t < len(text) {
		return wildNoMatch
	}
	return wildMatch
}

// star matches the stars at *p. Not done means: matching goes on behind *p and *t.
func (m *wildMatcher) star(pp, tt *int) (result wild, done bool) {
	pat, text := m.pattern, m.text
	p, t := *pp, *tt
	first := p
	p++
	matchSlash := !m.pathname
	if byteAt(pat, p) == '*' {
		for byteAt(pat, p) == '*' {
			p++
		}
		if m.pathname && (first == 0 || pat[first-1] == '/') &&
			(p == len(pat) || pat[p] == '/' || pat[p] == '\\' && byteAt(pat, p+1) == '/') {
			// ** is a whole component. Before a slash it may also stand for nothing.
			if byteAt(pat, p) == '/' && m.match(p+1, t) == wildMatch {
				return wildMatch, true
			}
			matchSlash = true
		}
	}
	if p == len(pat) {
		if !matchSlash && strings.IndexByte(text[t:], '/') >= 0 {
			return wildNoMatch, true
		}
		return wildMatch, true
	}
	if !matchSlash && pat[p] == '/' {
		// One star before a slash takes the rest of this component.
		slash := strings.IndexByte(text[t:], '/')
		if slash < 0 {
			return wildNoMatch, true
		}
		*pp, *tt = p, t+slash
		return 0, false
	}
	for t < len(text) {
		if !isGlobSpecial(pat[p]) {
			// Skip to the next place where the literal behind the stars can begin.
			for t < len(text) && (matchSlash || text[t] != '/') && text[t] != pat[p] {
				t++
			}
			if byteAt(text, t) != pat[p] {
				return wildNoMatch, true
			}
		}
		if r := m.match(p, t); r != wildNoMatch {
			if !matchSlash || r != wildAbortToStarStar {
				return r, true
			}
		} else if !matchSlash && text[t] == '/' {
			return wildAbortToStarStar, true
		}
		t++
	}
	return wildAbortAll, true
}

// matchSet tells whether c is in the set that begins with the bracket at p, and
// where the set's closing bracket is; not ok if the set is malformed.
func matchSet(pat string, p int, c byte) (end int, in, ok bool) {
	p++
	negated := byteAt(pat, p) == '!' || byteAt(pat, p) == '^'
	if negated {
		p++
	}
	var previous byte
	pc := byteAt(pat, p)
	for {
		switch {
		case pc == 0:
			return 0, false, false
		case pc == '\\':
			p++
			if pc = byteAt(pat, p); pc == 0 {
				return 0, false, false
			}
			in = in || c == pc
		case pc == '-' && previous != 0 && byteAt(pat, p+1) != 0 && pat[p+1] != ']':
			p++
			if pc = pat[p]; pc == '\\' {
				p++
				if pc = byteAt(pat, p); pc == 0 {
					return 0, false, false
				}
			}
			in = in || previous <= c && c <= pc
			pc = 0 // a range's end begins no other range
		case pc == '[' && byteAt(pat, p+1) == ':':
			name := p + 2
			closing := strings.IndexByte(pat[name:], ']')
			if closing < 0 {
				return 0, false, false
			}
			closing += name
			if closing == name || pat[closing-1] != ':' {
				// No ":]": the bracket is a member like any other.
				in = in || c == '['
				break
			}
			member, known := inClass(pat[name:closing-1], c)
			if !known {
				return 0, false, false
			}
			in = in || member
			p, pc = closing, 0
		default:
			in = in || c == pc
		}
		previous = pc
		p++
		if pc = byteAt(pat, p); pc == ']' {
			return p, in != negated, true
		}
	}
}

// inClass tells whether c is in the named class of ASCII characters.
func inClass(name string, c byte) (member, known bool) {
	lower, upper, digit := 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9'
	graph := '!' <= c && c <= '~'
	switch name {
	case "alnum":
		return lower || upper || digit, true
	case "alpha":
		return lower || upper, true
	case "blank":
		return c == ' ' || c == '\t', true
	case "cntrl":
		return c < ' ' || c == 0x7f, true
	case "digit":
		return digit, true
	case "graph":
		return graph, true
	case "lower":
		return lower, true
	case "print":
		return graph || c == ' ', true
	case "punct":
		return graph && !lower && !upper && !digit, true
	case "space":
		return c == ' ' || '\t' <= c && c <= '\r', true
	case "upper":
		return upper, true
	case "xdigit":
		return digit || 'a' <= c && c <= 'f' || 'A' <= c && c <= 'F', true
	}
	return false, false
}
