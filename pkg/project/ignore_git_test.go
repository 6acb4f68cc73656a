package project

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// The alphabet of the random trees: names and parts of patterns that meet often and
// hold what gitignore(5) treats specially.
var (
	randomNames = []string{
		"a", "b", "c", "ab", "abc", "ba", "aa", "A", "B1", "a.b", ".a", ".ab", "a b", "a ", "b  ", "#a", "!a", "[a]", "a]", "-", "a-b",
		`a\b`, `\`, "**", "*a", "a?", "foo", "foo.log", "bar.log", "build", "ä", "\xff", "a^", "0", "9z", "x\ty", "_",
	}
	randomPieces = []string{
		"a", "b", "c", "ab", "A", ".", "foo", "log", "build", "ä", "*", "*", "*", "**", "***", "?", "?", "[ab]", "[!a]", "[^b]", "[a-c]", "[]a]",
		"[!]]", "[a-", "[", "]", "[[:alpha:]]", "[[:digit:][:upper:]]", "[[:nope:]]", "[[:]", "[[:space:]b]", "[a\\]]", "[\\a-c]", "[c-a]", "[--a]",
		"[a-\\c]", "[[:punct:]]", "[[:alnum:]]", "[[:blank:]]", "[[:cntrl:]]", "[[:graph:]]", "[[:lower:]]", "[[:print:]]", "[![:xdigit:]]", "[[:xdigit:]-z]", "[[:^alpha:]]", "[*]", "[/]", "[a/b]", "[!/]", "\\a", "\\*", "\\?", "\\[", "\\\\", "\\ ", " ", "\\", "#", "!", "-", "\t", "\xff", "0",
	}
)

type randomTree struct {
	dirs, files []string
	rules       map[string]string // the path of a file with rules → its content
}

func pick[T any](r *rand.Rand, s []T) T { return s[r.IntN(len(s))] }

// randomPattern makes one line of a file with rules.
func randomPattern(r *rand.Rand, paths []string) string {
	var b strings.Builder
	if r.IntN(4) == 0 {
		b.WriteByte('!')
	}
	switch r.IntN(10) {
	case 0: // a path that exists, or its end
		p := pick(r, paths)
		parts := strings.Split(p, "/")
		b.WriteString(strings.Join(parts[r.IntN(len(parts)):], "/"))
	case 1: // a name that may exist
		b.WriteString(pick(r, randomNames))
	case 2: // a path with one component replaced
		parts := strings.Split(pick(r, paths), "/")
		parts[r.IntN(len(parts))] = pick(r, []string{"**", "*", "?", "***", "a*", "*b", "**a", "a**", "[a-z]*"})
		b.WriteString(strings.Join(parts, "/"))
	default:
		if r.IntN(4) == 0 {
			b.WriteByte('/')
		}
		for i := range 1 + r.IntN(3) {
			if i > 0 {
				b.WriteByte('/')
			}
			if r.IntN(5) == 0 {
				b.WriteString("**")
				continue
			}
			for range 1 + r.IntN(3) {
				b.WriteString(pick(r, randomPieces))
			}
		}
	}
	if r.IntN(4) == 0 {
		b.WriteByte('/')
	}
	switch r.IntN(16) {
	case 0:
		b.WriteString("  ")
	case 1:
		b.WriteString("\\ ")
	case 2:
		b.WriteString("\r")
	case 3:
		b.WriteString(" \\")
	}
	return b.String()
}

func newRandomTree(r *rand.Rand, rules string) randomTree {
	t := randomTree{dirs: []string{""}, rules: map[string]string{}}
	seen := map[string]bool{}
	name := func(dir string) (string, bool) {
		p := joinPath(dir, pick(r, randomNames))
		if seen[p] {
			return "", false
		}
		seen[p] = true
		return p, true
	}
	for range 4 + r.IntN(12) {
		dir := pick(r, t.dirs)
		if strings.Count(dir, "/") > 3 {
			continue
		}
		if p, ok := name(dir); ok {
			t.dirs = append(t.dirs, p)
		}
	}
	for range 10 + r.IntN(30) {
		if p, ok := name(pick(r, t.dirs)); ok {
			t.files = append(t.files, p)
		}
	}
	paths := slices.Concat(t.dirs[1:], t.files)
	for i, dir := range t.dirs {
		if i > 0 && r.IntN(3) > 0 {
			continue
		}
		var lines []string
		for range 1 + r.IntN(6) {
			switch r.IntN(20) {
			case 0:
				lines = append(lines, "# a comment")
			case 1:
				lines = append(lines, "")
			default:
				lines = append(lines, randomPattern(r, paths))
			}
		}
		content := strings.Join(lines, "\n")
		if r.IntN(3) > 0 {
			content += "\n"
		}
		if r.IntN(20) == 0 {
			content = "\xef\xbb\xbf" + content
		}
		t.rules[joinPath(dir, rules)] = content
	}
	return t
}

func (rt randomTree) write(t testing.TB, dir string) {
	t.Helper()
	for _, d := range rt.dirs[1:] {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range rt.files {
		if err := os.WriteFile(filepath.Join(dir, f), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for p, content := range rt.rules {
		if err := os.WriteFile(filepath.Join(dir, p), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	// What `git init` makes, as far as git needs it.
	for _, d := range []string{".git/objects", ".git/refs"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, ".git/HEAD"), []byte("ref: refs/heads/main\n"), 0o644); err != nil {
		t.Fatal(err)
	}
}

// gitSays is what git check-ignore -v says of a path: "" or the rule, which may be a negative one.
func gitSays(t testing.TB, dir string, paths []string) map[string]string {
	t.Helper()
	c := exec.Command("git", "-c", "core.excludesFile=/dev/null", "-C", dir, "check-ignore", "-z", "-v", "-n", "--no-index", "--stdin")
	c.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_SYSTEM=/dev/null", "LC_ALL=C")
	c.Stdin = strings.NewReader(strings.Join(paths, "\x00") + "\x00")
	var stderr bytes.Buffer
	c.Stderr = &stderr
	out, err := c.Output()
	var exit *exec.ExitError
	if err != nil && (!errors.As(err, &exit) || exit.ExitCode() != 1) {
		t.Fatalf("git check-ignore: %v: %s", err, stderr.String())
	}
	said := map[string]string{}
	fields := strings.Split(string(out), "\x00")
	for i := 0; i+3 < len(fields); i += 4 {
		said[fields[i+3]] = ""
		if fields[i] != "" {
			said[fields[i+3]] = fmt.Sprintf("%s:%s: %s", fields[i], fields[i+1], fields[i+2])
		}
	}
	return said
}

// weSay is the same from this package's rules: as git does, from the root down, until a
// directory is excluded.
func weSay(t testing.TB, tr *tree, rules, p string) string {
	t.Helper()
	var stack *ignoreStack
	parts := strings.Split(p, "/")
	for i, name := range parts {
		dir, err := tr.root.OpenRoot(path.Join(append([]string{"."}, parts[:i]...)...))
		if err != nil {
			t.Fatal(err)
		}
		if stack, err = stack.push(dir, strings.Join(parts[:i], "/"), rules); err != nil {
			t.Fatal(err)
		}
		info, err := dir.Lstat(name)
		if err != nil {
			t.Fatal(err)
		}
		_ = dir.Close()
		f, pattern := stack.match(strings.Join(parts[:i+1], "/"), name, info.IsDir())
		last := i == len(parts)-1
		if pattern != nil && (last || !pattern.negative) {
			return fmt.Sprintf("%s:%d: %s", f.path, pattern.line, pattern.text)
		}
	}
	return ""
}

// TestIgnoreLikeGit compares every path of random trees with git check-ignore: the
// rule that decides, the listing of the walk, and the question about one path.
func TestIgnoreLikeGit(t *testing.T) {
	if _, err := exec.LookPath("git"); err != nil {
		t.Skip("needs git to compare with")
	}
	trees := 120
	if s := os.Getenv("SLUICE_TEST_TREES"); s != "" {
		var err error
		if trees, err = strconv.Atoi(s); err != nil {
			t.Fatal(err)
		}
	}
	seed := uint64(1)
	if s := os.Getenv("SLUICE_TEST_SEED"); s != "" {
		var err error
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	base := t.TempDir()
	compared, ignored, negative := 0, 0, 0
	for i := range trees {
		r := rand.New(rand.NewPCG(seed, uint64(i)))
		rt := newRandomTree(r, gitIgnore)
		dir := filepath.Join(base, strconv.Itoa(i))
		rt.write(t, dir)
		paths := slices.Concat(rt.dirs[1:], rt.files)
		said := gitSays(t, dir, paths)
		tr, err := openTree(dir)
		if err != nil {
			t.Fatal(err)
		}
		l := &Listing{dir: dir, manifest: &Manifest{}, rules: gitIgnore}
		listed := map[string]*Entry{}
		for e, err := range l.Entries(context.Background()) {
			if err != nil {
				t.Fatal(err)
			}
			listed[e.Path] = e
		}
		for _, p := range paths {
			git, ok := said[p]
			if !ok {
				t.Fatalf("tree %d: git said nothing about %q", i, p)
			}
			compared++
			isNegative := git != "" && strings.HasPrefix(git[strings.Index(git, ": ")+2:], "!")
			if isNegative {
				negative++
			}
			// git prints a pattern's text with the trailing spaces and the return cut off, as we keep it.
			if we := weSay(t, tr, gitIgnore, p); we != git {
				t.Errorf("tree %d (seed %d): %q: git says %q, this package %q; rules %q", i, seed, p, git, we, rt.rules)
			}
			wantOut := git != "" && !isNegative
			if wantOut {
				ignored++
			}
			rule, err := l.leftOut(tr, p)
			if err != nil {
				t.Fatal(err)
			}
			if (rule != nil) != wantOut {
				t.Errorf("tree %d: %q stays out: %v, but git says %q", i, p, rule, git)
			}
			// A path that stays out is listed, or the highest directory above it that does.
			e := listed[p]
			for up := p; e == nil && up != "."; up = path.Dir(up) {
				e = listed[up]
			}
			isDir := slices.Contains(rt.dirs, p)
			if isDir && listed[p] == nil && !wantOut {
				continue // a directory that ships is not an entry
			}
			if e == nil || (e.Action == Leave) != wantOut {
				t.Errorf("tree %d: %q is listed as %v, but git says %q", i, p, e, git)
			}
		}
		tr.close()
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
		if t.Failed() {
			return
		}
	}
	t.Logf("%d trees, %d paths compared, %d of them ignored, %d kept by a negative pattern", trees, compared, ignored, negative)
	if ignored*20 < compared || negative*200 < compared {
		t.Errorf("the trees test too little: of %d paths %d were ignored and %d kept by a negative pattern", compared, ignored, negative)
	}
}
