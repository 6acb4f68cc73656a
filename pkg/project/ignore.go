package project

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"github.com/sluice-dev/sluice/rollout"
)

// Names of files with ignore rules. If the project's root has the first, it rules in
// all directories and the second means nothing.
const (
	amlIgnore = ".amlignore"
	gitIgnore = ".gitignore"
)

// Bounds of a file with ignore rules.
const (
	maxIgnoreFile = 1 << 20
	maxIgnoreLine = 4096
)

// ignorePattern is one line of a file with ignore rules, taken apart as git does
// (dir.c, parse_path_pattern).
type ignorePattern struct {
	line int
	text string // as written, less trailing spaces
	glob string // less the leading ! and the trailing slash
	// literal is the length of the part before the first special character.
	literal  int
	negative bool // begins with !: what matches stays
	dirOnly  bool // ends with a slash
	nameOnly bool // holds no other slash: compared with the last component
	suffix   bool // a star and then only literals
}

// ignoreFile is one file with ignore rules.
type ignoreFile struct {
	path     string // from the project's root
	base     string // directory that the patterns are relative to, with a slash at the end; "" for the root
	patterns []ignorePattern
}

// parseIgnore takes the content of a file with ignore rules apart, in git's way
// (dir.c, add_patterns_from_buffer).
func parseIgnore(path string, data []byte) (*ignoreFile, error) {
	f := &ignoreFile{path: path, base: path[:strings.LastIndexByte(path, '/')+1]}
	data = bytes.TrimPrefix(data, []byte("\xef\xbb\xbf"))
	for n := 1; len(data) > 0; n++ {
		var row []byte
		row, data, _ = bytes.Cut(data, []byte{'\n'})
		if len(row) == 0 || row[0] == '#' {
			continue
		}
		row = bytes.TrimSuffix(row, []byte{'\r'})
		row, _, _ = bytes.Cut(row, []byte{0})
		text := trimTrailingSpaces(string(row))
		if text == "" {
			continue
		}
		if len(text) > maxIgnoreLine {
			return nil, fmt.Errorf("read ignore rules: %w", refuse(rollout.ReasonInvalid, path, "write shorter patterns",
				"line %d is longer than %d bytes", n, maxIgnoreLine))
		}
		p := ignorePattern{line: n, text: text}
		glob := text
		if glob[0] == '!' {
			p.negative = true
			glob = glob[1:]
		}
		special := strings.IndexAny(glob, globSpecial)
		// Before the slash at the end is cut off, as git has it.
		p.suffix = strings.HasPrefix(glob, "*") && !strings.ContainsAny(glob[1:], globSpecial)
		if strings.HasSuffix(glob, "/") {
			p.dirOnly = true
			glob = glob[:len(glob)-1]
		}
		p.glob, p.literal = glob, len(glob)
		if special >= 0 {
			p.literal = min(special, len(glob))
		}
		p.nameOnly = strings.IndexByte(glob, '/') < 0
		f.patterns = append(f.patterns, p)
	}
	return f, nil
}

// trimTrailingSpaces removes spaces at the end unless a backslash precedes them.
func trimTrailingSpaces(s string) string {
	last := -1
	for i := 0; i < len(s); i++ {
		switch s[i] {
		case ' ':
			if last < 0 {
				last = i
			}
		case '\\':
			if i++; i == len(s) {
				return s
			}
			last = -1
		default:
			last = -1
		}
	}
	if last >= 0 {
		return s[:last]
	}
	return s
}

// matches tells whether the pattern of a file with this base matches path, whose
// last component is name.
func (p *ignorePattern) matches(base, path, name string, isDir bool) bool {
	if p.dirOnly && !isDir {
		return false
	}
	glob, literal := p.glob, p.literal
	if p.nameOnly {
		switch {
		case literal == len(glob):
			return name == glob
		case p.suffix:
			return strings.HasSuffix(name, glob[1:])
		}
		return wildmatch(glob, name, false)
	}
	if glob[0] == '/' {
		glob = glob[1:]
		literal--
	}
	if len(path) <= len(base) || path[:len(base)] != base {
		return false
	}
	rest := path[len(base):]
	// git compares the literal part first and gives only what follows to wildmatch,
	// for which a ** then stands at the beginning. So does this.
	if literal > 0 {
		if literal > len(rest) || rest[:literal] != glob[:literal] {
			return false
		}
		glob, rest = glob[literal:], rest[literal:]
		if glob == "" && rest == "" {
			return true
		}
	}
	return wildmatch(glob, rest, true)
}

// match finds the last pattern that matches path.
func (f *ignoreFile) match(path, name string, isDir bool) *ignorePattern {
	for i := len(f.patterns) - 1; i >= 0; i-- {
		if f.patterns[i].matches(f.base, path, name, isDir) {
			return &f.patterns[i]
		}
	}
	return nil
}

// ignoreStack holds the files with rules from the root down to a directory. Nil is
// an empty one.
type ignoreStack struct {
	file   *ignoreFile
	parent *ignoreStack
}

// match finds the pattern that decides about path: the last one that matches in the
// deepest file that has one. It does not look at the directories above path.
func (s *ignoreStack) match(path, name string, isDir bool) (*ignoreFile, *ignorePattern) {
	for ; s != nil; s = s.parent {
		if p := s.file.match(path, name, isDir); p != nil {
			return s.file, p
		}
	}
	return nil, nil
}

// rule gives the rule that keeps path out, if there is one.
func (s *ignoreStack) rule(path, name string, isDir bool) *Rule {
	f, p := s.match(path, name, isDir)
	if p == nil || p.negative {
		return nil
	}
	return &Rule{File: f.path, Line: p.line, Pattern: p.text}
}

// push reads the rules of a directory, whose path is at, and puts them on the stack.
// Like git, it takes no rules from what is not a file, links included.
func (s *ignoreStack) push(dir *os.Root, at, ruleName string) (*ignoreStack, error) {
	info, err := dir.Lstat(ruleName)
	if err != nil || !info.Mode().IsRegular() {
		if err == nil || isMissing(err) {
			return s, nil
		}
		return nil, fmt.Errorf("read ignore rules: %w", err)
	}
	full := joinPath(at, ruleName)
	data, err := readSmall(dir, ruleName, full)
	if err != nil {
		return nil, err
	}
	f, err := parseIgnore(full, data)
	if err != nil {
		return nil, err
	}
	if len(f.patterns) == 0 {
		return s, nil
	}
	return &ignoreStack{file: f, parent: s}, nil
}

func readSmall(dir *os.Root, name, full string) ([]byte, error) {
	f, err := openFile(dir, name)
	if err != nil {
		return nil, fmt.Errorf("read ignore rules: %w", refuse(rollout.ReasonUnsafeFile, full, "make it readable", "cannot be read: %v", cause(err)))
	}
	defer func() { _ = f.Close() }()
	data, err := io.ReadAll(io.LimitReader(f, maxIgnoreFile+1))
	if err != nil {
		return nil, fmt.Errorf("read ignore rules: %w", err)
	}
	if len(data) > maxIgnoreFile {
		return nil, fmt.Errorf("read ignore rules: %w", refuse(rollout.ReasonInvalid, full, "write fewer patterns", "is larger than %d bytes", maxIgnoreFile))
	}
	return data, nil
}

// rulesName decides which files hold the rules.
func rulesName(root *os.Root) (string, error) {
	info, err := root.Lstat(amlIgnore)
	if err == nil && info.Mode().IsRegular() {
		return amlIgnore, nil
	}
	if err == nil || isMissing(err) {
		return gitIgnore, nil
	}
	return "", fmt.Errorf("read ignore rules: %w", err)
}

// Rule is what decided that something ships or stays out.
type Rule struct {
	// File and Line of an ignore rule, and its text.
	File    string `json:"file,omitempty"`
	Line    int    `json:"line,omitempty"`
	Pattern string `json:"pattern,omitempty"`
	// Built names a rule that no file holds: "never ships", "models[0] fraud", "include[1] .env".
	Built string `json:"built,omitempty"`
}

// String is the rule in one line: ".gitignore:3: *.log".
func (r Rule) String() string {
	if r.Built != "" {
		return r.Built
	}
	return fmt.Sprintf("%s:%d: %s", printable(r.File), r.Line, printable(r.Pattern))
}

func isMissing(err error) bool { return errors.Is(err, fs.ErrNotExist) }
