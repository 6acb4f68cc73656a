package project

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-dev/sluice/rollout"
)

const simple = head + script

// list is the listing in lines, as `sluice package --list` prints it.
func list(t testing.TB, dir string) []string {
	t.Helper()
	l := mustPlan(t, dir)
	var out []string
	for e, err := range l.Entries(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, e.String())
	}
	return out
}

func mustPlan(t testing.TB, dir string) *Listing {
	t.Helper()
	m, err := Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	l, err := Plan(context.Background(), dir, m)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestListing(t *testing.T) {
	dir := files(t, t.TempDir(), map[string]string{
		"sluice.yaml": head + script + "models: [{name: fraud, version: \"3\", path: model/}]\n" +
			"include: [.env, \"logs/keep-*.log\", vendor]\ntest: {request: samples/one.json}\n",
		".gitignore":           "*.log\n/model\nsamples/\nvendor/\nsluice.yaml\nbuild/\n!build/important\n# comment\n.venv\n",
		"score.py":             "import x",
		"run.sh":               "#!/bin/sh",
		"debug.log":            "x",
		".env":                 "SECRET=1",
		".git/config":          "x",
		"sub/.git":             "gitdir: elsewhere",
		"sub/a.py":             "x",
		"sub/.gitignore":       "/a.log\n!debug.log\ntmp/\n",
		"sub/debug.log":        "kept",
		"sub/a.log":            "x",
		"sub/tmp/deep/x":       "x",
		"model/w.bin":          "weights",
		"model/train.log":      "x",
		"model/.gitignore":     "w.bin",
		"samples/one.json":     "{}",
		"samples/two.json":     "{}",
		"logs/keep-1.log":      "x",
		"logs/other.log":       "x",
		"vendor/lib/a.py":      "x",
		"vendor/lib/b.log":     "x",
		"build/important":      "cannot come back: its directory is left out",
		".venv/bin/python":     "->/usr/bin/python3",
		"empty/":               "",
		".sluice/state":        "x",
		"link":                 "->sub/a.py",
		"sub/up":               "->../score.py",
		"ab":                   "x",
		"ab.c":                 "x",
		"sub/dangling":         "->nothing/here",
		"odd\nname":            "x",
		".env.example":         "shared",
		"samples/link-to-self": "->.",
	})
	// Names that sort differently beside a directory than by themselves.
	files(t, dir, map[string]string{"cd/x": "x", "cd-e": "x", "cd.e": "x"})
	want := []string{
		`ship   .env  (include[0] .env)`,
		`ship   .env.example`,
		`leave  .git/  (never ships)`,
		`ship   .gitignore`,
		`leave  .sluice/  (never ships)`,
		`leave  .venv/  (.gitignore:9: .venv)`,
		`ship   ab`,
		`ship   ab.c`,
		`leave  build/  (.gitignore:6: build/)`,
		`ship   cd-e`,
		`ship   cd.e`,
		`ship   cd/x`,
		`leave  debug.log  (.gitignore:1: *.log)`,
		`ship   link -> sub/a.py`,
		`ship   logs/keep-1.log  (include[1] logs/keep-*.log, in spite of .gitignore:1: *.log)`,
		`leave  logs/other.log  (.gitignore:1: *.log)`,
		`ship   model/.gitignore  (models[0] fraud, in spite of .gitignore:2: /model)`,
		`ship   model/train.log  (models[0] fraud, in spite of .gitignore:2: /model)`,
		`ship   model/w.bin  (models[0] fraud, in spite of .gitignore:2: /model)`,
		`ship   "odd\nname"`,
		`ship   run.sh`,
		`leave  samples/link-to-self  (.gitignore:3: samples/)`,
		`ship   samples/one.json  (test.request, in spite of .gitignore:3: samples/)`,
		`leave  samples/two.json  (.gitignore:3: samples/)`,
		`ship   score.py`,
		`ship   sluice.yaml  (the manifest, in spite of .gitignore:5: sluice.yaml)`,
		`leave  sub/.git  (never ships)`,
		`ship   sub/.gitignore`,
		`leave  sub/a.log  (sub/.gitignore:1: /a.log)`,
		`ship   sub/a.py`,
		`ship   sub/dangling -> nothing/here`,
		`ship   sub/debug.log`,
		`leave  sub/tmp/  (sub/.gitignore:3: tmp/)`,
		`ship   sub/up -> ../score.py`,
		`ship   vendor/lib/a.py  (include[2] vendor, in spite of .gitignore:4: vendor/)`,
		`ship   vendor/lib/b.log  (include[2] vendor, in spite of .gitignore:4: vendor/)`,
	}
	got := list(t, dir)
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	l := mustPlan(t, dir)
	if err := l.Err(); err != nil {
		t.Error(err)
	}
	ships, leaves, links := 0, 0, 0
	for _, s := range want {
		switch {
		case strings.HasPrefix(s, "leave"):
			leaves++
		case strings.Contains(s, " -> "):
			links++
		default:
			ships++
		}
	}
	if l.Files != ships || l.Links != links || l.Left != leaves || l.Layout != 0 || l.ModelDir != "model" {
		t.Errorf("counted %+v, want %d files, %d links, %d left", l, ships, links, leaves)
	}
}

func TestAmlignoreRules(t *testing.T) {
	dir := files(t, t.TempDir(), map[string]string{
		"sluice.yaml": simple, "score.py": "x", "a.log": "x", "b.tmp": "x", "sub/c.log": "x", "sub/d.tmp": "x", "sub/e.md": "x",
		".gitignore": "*.log\n", "sub/.gitignore": "e.md\n", ".amlignore": "*.tmp\n.*ignore\n", "sub/.amlignore": "!d.tmp\n",
	})
	want := []string{
		`leave  .amlignore  (.amlignore:2: .*ignore)`, `leave  .gitignore  (.amlignore:2: .*ignore)`,
		`ship   a.log`, `leave  b.tmp  (.amlignore:1: *.tmp)`, `ship   score.py`, `ship   sluice.yaml`,
		`leave  sub/.amlignore  (.amlignore:2: .*ignore)`, `leave  sub/.gitignore  (.amlignore:2: .*ignore)`,
		`ship   sub/c.log`, `ship   sub/d.tmp`, `ship   sub/e.md`,
	}
	if d := cmp.Diff(want, list(t, dir)); d != "" {
		t.Error(d)
	}
	// Without one at the root, .amlignore means nothing anywhere.
	if err := os.Remove(filepath.Join(dir, ".amlignore")); err != nil {
		t.Fatal(err)
	}
	want = []string{
		`ship   .gitignore`, `leave  a.log  (.gitignore:1: *.log)`, `ship   b.tmp`, `ship   score.py`, `ship   sluice.yaml`,
		`ship   sub/.amlignore`, `ship   sub/.gitignore`, `leave  sub/c.log  (.gitignore:1: *.log)`, `ship   sub/d.tmp`, `leave  sub/e.md  (sub/.gitignore:1: e.md)`,
	}
	if d := cmp.Diff(want, list(t, dir)); d != "" {
		t.Error(d)
	}
}

// TestAmlignoreLikeGit runs a few trees of the comparison with git under the other name.
func TestAmlignoreLikeGit(t *testing.T) {
	dir := files(t, t.TempDir(), map[string]string{"sluice.yaml": simple, "score.py": "x", ".amlignore": "a/**/b\n!**/keep\n", "a/x/b": "1", "a/b": "1", "a/x/y/b": "1", "a/c": "1"})
	want := []string{
		`ship   .amlignore`, `leave  a/b  (.amlignore:1: a/**/b)`, `ship   a/c`, `leave  a/x/b  (.amlignore:1: a/**/b)`,
		`leave  a/x/y/b  (.amlignore:1: a/**/b)`, `ship   score.py`, `ship   sluice.yaml`,
	}
	if d := cmp.Diff(want, list(t, dir)); d != "" {
		t.Error(d)
	}
}

func TestIncludePatterns(t *testing.T) {
	for _, c := range []struct {
		pattern   string
		yes, no   []string
		below     []string // directories, not named themselves, in which it must be looked for
		notBelow  []string
		covers    []string
		notCovers []string
	}{
		{pattern: ".env", yes: []string{".env"}, no: []string{"a/.env"}, notBelow: []string{"a", ".env"}, covers: []string{".env/x"}, notCovers: []string{"a/.env"}},
		{pattern: "**/.env", yes: []string{".env", "a/.env", "a/b/.env"}, no: []string{"a.env"}, below: []string{"a", "a/b"}},
		{pattern: "certs/*.pem", yes: []string{"certs/a.pem"}, no: []string{"certs/x/a.pem", "a.pem"}, below: []string{"certs"}, notBelow: []string{"certs/a.pem", "cert", "certs/x", "a"}},
		{pattern: "data/**", yes: []string{"data/a", "data/b/c"}, no: []string{"data"}, below: []string{"data", "data/b"}, notBelow: []string{"b"}},
		{pattern: "vendor/", covers: []string{"vendor/a", "vendor/b/c"}, notCovers: []string{"vendor", "a/vendor/b"}, notBelow: []string{"vendor"}},
		{pattern: "a/[bc]/d", yes: []string{"a/b/d"}, no: []string{"a/x/d"}, below: []string{"a", "a/b"}, notBelow: []string{"b"}},
		{pattern: "./x", yes: []string{"x"}},
	} {
		l := &Listing{manifest: &Manifest{Include: []string{c.pattern}}, forced: map[string]*Rule{}}
		tr, err := openTree(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		if err := l.prepare(tr); err != nil {
			t.Fatal(err)
		}
		tr.close()
		inc := &l.include[0]
		check := func(what string, f func(string) bool, paths []string, want bool) {
			for _, p := range paths {
				if f(p) != want {
					t.Errorf("%s %s %q: %v", c.pattern, what, p, !want)
				}
			}
		}
		check("matches", inc.matches, c.yes, true)
		check("matches", inc.matches, c.no, false)
		check("may match below", inc.mayMatchBelow, c.below, true)
		check("may match below", inc.mayMatchBelow, c.notBelow, false)
		check("covers", inc.covers, c.covers, true)
		check("covers", inc.covers, c.notCovers, false)
	}
}

func TestSecrets(t *testing.T) {
	secret := []string{
		".env", "a/.env", ".env.production", ".ENV", "server.pem", "a/b/Server.PEM", "id_rsa", "id_ed25519", "id_anything", "tls.key", "a.p12", "a.pfx", "x.ppk",
		"a.jks", "a.keystore", ".netrc", "_netrc", ".pypirc", ".git-credentials", ".htpasswd", ".dockercfg", ".docker/config.json", "home/.aws/credentials", ".kube/config", "kubeconfig",
	}
	harmless := []string{".env.example", ".env.sample", ".env.template", ".env.dist", "env", ".envrc", "pem", "a.pem.txt", "grid_search.py", "config.json", "aws/credentials", "key.txt", "environment.yml"}
	content := map[string]string{"sluice.yaml": simple, "score.py": "x"}
	for _, p := range append(secret, harmless...) {
		if !strings.EqualFold(p, ".env") || p == ".env" { // on file systems that ignore case
			content[p] = "x"
		}
		_, got := looksSecret(p)
		if want := !slices.Contains(harmless, p); got != want {
			t.Errorf("%s looks secret: %v", p, got)
		}
	}
	dir := files(t, t.TempDir(), content)
	l := mustPlan(t, dir)
	err := l.Err()
	if rollout.ReasonOf(err) != rollout.ReasonSecretFile {
		t.Fatalf("%v", err)
	}
	if !strings.Contains(err.Error(), ".env looks like a secret (.env) (secret_file); keep it out with .gitignore, or name it under include if it is meant to ship") {
		t.Errorf("%v", err)
	}
	if !strings.Contains(err.Error(), "… and ") {
		t.Errorf("more than 20 refusals, but none is left out: %v", err)
	}
	for e, err := range l.Entries(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		if want := slices.Contains(secret, e.Path); (e.Action == Refuse) != want {
			t.Errorf("%s, want refused %v", e, want)
		}
	}
	if _, err := Write(t.Context(), failWriter{}, l); rollout.ReasonOf(err) != rollout.ReasonSecretFile {
		t.Errorf("Write: %v", err)
	}
	// A secret that is ignored stays out without a word, one in a model is refused, and include allows both.
	dir = files(t, t.TempDir(), map[string]string{
		"sluice.yaml": simple + "models: [{name: m, version: \"1\", path: m}]\n", "score.py": "x", ".env": "x", "m/a.pem": "x", ".gitignore": ".env\n",
	})
	if err := mustPlan(t, dir).Err(); err == nil || strings.Contains(err.Error(), ".env ") || !strings.Contains(err.Error(), "m/a.pem looks") {
		t.Errorf("%v", err)
	}
	files(t, dir, map[string]string{"sluice.yaml": simple + "models: [{name: m, version: \"1\", path: m}]\ninclude: [\"**/*.pem\"]\n"})
	if err := mustPlan(t, dir).Err(); err != nil {
		t.Error(err)
	}
}

type failWriter struct{}

func (failWriter) Write([]byte) (int, error) { return 0, errors.New("the disk is full") }

func TestRefusedLinks(t *testing.T) {
	outside := t.TempDir()
	for _, c := range []struct {
		name    string
		content map[string]string
		want    string // "" if it ships
	}{
		{"absolute", map[string]string{"x": "->/etc/passwd"}, "x is a symbolic link to /etc/passwd, which leaves the project: the symbolic link x leads to /etc/passwd"},
		{"absolute into the project", map[string]string{"x": "->{dir}/score.py"}, "which leaves the project"},
		{"upwards", map[string]string{"a/x": "->../../" + filepath.Base(outside)}, "a/x is a symbolic link to ../../" + filepath.Base(outside) + ", which leaves the project"},
		{"upwards and back", map[string]string{"x": "->../{base}/score.py"}, "which leaves the project"},
		{"upwards to nothing", map[string]string{"x": "->../nothing"}, "which leaves the project"},
		{"through another link", map[string]string{"deep/er/y": "x", "j": "->deep/er", "a/x": "->../j/../../.."}, "a/x is a symbolic link to ../j/../../.., which leaves the project"},
		{"whose name looks inside", map[string]string{"j": "->.", "a/x": "->../j/../score.py"}, "a/x is a symbolic link to ../j/../score.py, which leaves the project"},
		{"through one that leaves", map[string]string{"j": "->..", "x": "->j/y"}, "x is a symbolic link to j/y, which leaves the project"},
		{"through what does not exist", map[string]string{"x": "->nothing/../score.py"}, "x is a symbolic link to nothing/../score.py, which leads through nothing, which does not exist"},
		{"a circle", map[string]string{"x": "->y", "y": "->x"}, "x is a symbolic link to y, which leads through too many symbolic links"},
		{"to itself", map[string]string{"x": "->x"}, "too many symbolic links"},
		{"that grows", map[string]string{"x": "->x/x/x/x/x/x/x/x/x/x"}, "too many symbolic links"},
		{"into git", map[string]string{"x": "->.git/HEAD", ".git/HEAD": "x"}, "x is a symbolic link to .git/HEAD, which never ships"},
		{"to what stays out", map[string]string{"x": "->data/big", "data/big": "x", ".gitignore": "data/\n"}, "x is a symbolic link to data/big, which stays out by .gitignore:1: data/"},
		{"to what a nested rule leaves out", map[string]string{"x": "->d/e/f", "d/e/f": "x", "d/.gitignore": "f\n"}, "x is a symbolic link to d/e/f, which stays out by d/.gitignore:1: f"},
		{"not UTF-8", map[string]string{"x": "->\xff"}, "x is a symbolic link to a name that is not UTF-8"},

		{"to what include brings back", map[string]string{"x": "->data/big", "data/big": "x", ".gitignore": "data/\n", "sluice.yaml": simple + "include: [data/big]\n"}, ""},
		{"ignored itself", map[string]string{"x": "->/etc/passwd", ".gitignore": "x\n"}, ""},
		{"inside", map[string]string{"a/x": "->../b/y", "b/y": "x"}, ""},
		{"to a directory", map[string]string{"x": "->b", "b/y": "x"}, ""},
		{"to the root", map[string]string{"b/x": "->.."}, ""},
		{"dangling", map[string]string{"x": "->b/y"}, ""},
		{"through links", map[string]string{"x": "->j/y", "j": "->k", "k": "->b", "b/y": "x"}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			content := map[string]string{"sluice.yaml": simple, "score.py": "x"}
			for p, s := range c.content {
				content[p] = strings.NewReplacer("{dir}", dir, "{base}", filepath.Base(dir)).Replace(s)
			}
			files(t, dir, content)
			err := mustPlan(t, dir).Err()
			if c.want == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if rollout.ReasonOf(err) != rollout.ReasonUnsafeFile || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %s", err, c.want)
			}
		})
	}
}

func TestPlanRefusals(t *testing.T) {
	for _, c := range []struct {
		name    string
		content map[string]string
		want    string
		reason  rollout.Reason
	}{
		{"include names nothing", map[string]string{"sluice.yaml": simple + "include: [score.py, certs/]\n"}, "include: include[1] certs/ names nothing that can ship", rollout.ReasonInvalid},
		{"empty model", map[string]string{"sluice.yaml": simple + "models: [{name: m, version: \"1\", path: m}]\n", "m/sub/": ""}, "models[0].path: m holds no files", rollout.ReasonInvalid},
		{"ignored script", map[string]string{".gitignore": "*.py\n"}, "scoring.entryScript: score.py stays out by .gitignore:1: *.py", rollout.ReasonInvalid},
		{"name that is not UTF-8", map[string]string{"a\xff": "x"}, `"a\xff" its name is not UTF-8`, rollout.ReasonUnsafeFile},
		{"long pattern", map[string]string{".gitignore": "ok\n" + strings.Repeat("a", 5000)}, ".gitignore: line 2 is longer than 4096 bytes", rollout.ReasonInvalid},
	} {
		t.Run(c.name, func(t *testing.T) {
			content := map[string]string{"sluice.yaml": simple, "score.py": "x"}
			for p, s := range c.content {
				content[p] = s
			}
			dir := files(t, t.TempDir(), content)
			m, err := Load(dir)
			if err != nil {
				t.Fatal(err)
			}
			l, err := Plan(t.Context(), dir, m)
			if err == nil {
				err = l.Err()
			}
			if err == nil || !strings.Contains(err.Error(), c.want) || rollout.ReasonOf(err) != c.reason {
				t.Errorf("got %v, want %s (%s)", err, c.want, c.reason)
			}
		})
	}
	t.Run("deep directories", func(t *testing.T) {
		dir := files(t, t.TempDir(), map[string]string{"sluice.yaml": simple, "score.py": "x", strings.Repeat("d/", 230) + "x": "x"})
		if err := mustPlan(t, dir).Err(); rollout.ReasonOf(err) != rollout.ReasonUnsafeFile || !strings.Contains(err.Error(), "nest deeper than 200") {
			t.Errorf("%v", err)
		}
	})
	t.Run("rules that are a link", func(t *testing.T) {
		// git does not follow it, so neither do we.
		dir := files(t, t.TempDir(), map[string]string{"sluice.yaml": simple, "score.py": "x", "rules": "*.log\n", ".gitignore": "->rules", "a.log": "x"})
		if got := list(t, dir); !slices.Contains(got, "ship   a.log") {
			t.Errorf("%q", got)
		}
	})
}

func TestEntriesStops(t *testing.T) {
	content := map[string]string{"sluice.yaml": simple, "score.py": "x"}
	for i := range 50 {
		content[fmt.Sprintf("d%d/f", i)] = "x"
	}
	l := mustPlan(t, files(t, t.TempDir(), content))
	n := 0
	for _, err := range l.Entries(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		if n++; n == 10 {
			break
		}
	}
	if n != 10 {
		t.Errorf("%d entries", n)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var last error
	n = 0
	for _, err := range l.Entries(ctx) {
		last = err
		if n++; n == 10 {
			cancel()
		}
	}
	if !errors.Is(last, context.Canceled) || n != 11 {
		t.Errorf("after cancelling: %d entries, %v", n, last)
	}
	if _, err := Plan(ctx, l.dir, l.manifest); !errors.Is(err, context.Canceled) {
		t.Errorf("Plan: %v", err)
	}
}

// TestOrder: entries come in the order of their paths' bytes, not of names by directory.
func TestOrder(t *testing.T) {
	content := map[string]string{"sluice.yaml": simple, "score.py": "x"}
	for _, p := range []string{"a/x", "a-b", "a.b", "a0", "aa", "a/.x", "a b/c", "a\x01", "Z", "ä/x", "ä-"} {
		content[p] = "x"
	}
	l := mustPlan(t, files(t, t.TempDir(), content))
	last, n := "", 0
	for e, err := range l.Entries(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		if e.Path <= last {
			t.Errorf("%q comes after %q", e.Path, last)
		}
		last = e.Path
		n++
	}
	if n != len(content) {
		t.Errorf("%d entries of %d", n, len(content))
	}
}

// TestReadNames: a directory that is read in several passes gives the same names as in one.
func TestReadNames(t *testing.T) {
	dir := t.TempDir()
	want := []dirName{}
	for i := range 200 {
		d := dirName{[]byte(fmt.Sprintf("%s%d", strings.Repeat("a", i*37%200), i)), i%7 == 0}
		want = append(want, d)
		if err := os.Mkdir(filepath.Join(dir, string(d.name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if !d.isDir {
			if err := errors.Join(os.Remove(filepath.Join(dir, string(d.name))), os.WriteFile(filepath.Join(dir, string(d.name)), nil, 0o644)); err != nil {
				t.Fatal(err)
			}
		}
	}
	slices.SortFunc(want, dirName.compare)
	tr, err := openTree(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer tr.close()
	for _, atOnce := range []int{1, 2, 7, 99, 100, 101, 1000} {
		var got []dirName
		var behind *dirName
		for more := true; more; {
			var n *nameList
			if n, more, err = readNames(tr.root, behind, atOnce); err != nil {
				t.Fatal(err)
			}
			if n.len() > 2*atOnce || more && n.len() < atOnce {
				t.Errorf("%d at once: %d", atOnce, n.len())
			}
			for i := range n.len() {
				got = append(got, n.at(i))
			}
			if more {
				behind = &got[len(got)-1]
			}
		}
		if d := cmp.Diff(want, got, cmp.AllowUnexported(dirName{})); d != "" {
			t.Errorf("%d at once: %s", atOnce, d)
		}
	}
}

// TestWildmatchTerminates: patterns that take a backtracking matcher ages are decided at once.
func TestWildmatchTerminates(t *testing.T) {
	text := strings.Repeat("a/", 60) + "c"
	for _, c := range []struct {
		pattern string
		want    bool
	}{
		{strings.Repeat("**/a/", 20) + "b", false},
		{strings.Repeat("**/*a*/", 20) + "b", false},
		{strings.Repeat("**/", 40) + "b", false},
		{strings.Repeat("**/a/", 20) + "**/c", true},
		{strings.Repeat("**/[a]/", 20) + "**/c", true},
	} {
		if got := wildmatch(c.pattern, text, true); got != c.want {
			t.Errorf("%s: %v", c.pattern, got)
		}
	}
	if wildmatch(strings.Repeat("*a", 50)+"b", strings.Repeat("a", 200), false) {
		t.Error("no b, but a match")
	}
}
