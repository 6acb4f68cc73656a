// Package workflows holds the project's workflows, the examples and those in the documentation to what GitHub accepts
// (actionlint), and to the inputs and outputs that the Action has.
package workflows

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

const root = "../../"

// A block of YAML in Markdown.
var block = regexp.MustCompile("(?ms)^```ya?ml\n(.*?)^```$")

// complete makes a workflow of a part of one: of a job's steps, or of its body.
func complete(yaml string) (string, bool) {
	job := "name: part\non: push\njobs:\n  part:\n    runs-on: ubuntu-latest\n"
	switch {
	case strings.Contains(yaml, "\njobs:\n"):
		return yaml, true
	case strings.HasPrefix(yaml, "      - "):
		return job + "    steps:\n" + yaml, true
	case strings.HasPrefix(yaml, "    ") && strings.Contains(yaml, "\n    steps:\n"):
		return job + yaml, true
	}
	return "", false // something else, such as a manifest
}

func TestWorkflows(t *testing.T) {
	actionlint := os.Getenv("SLUICE_TEST_ACTIONLINT")
	if actionlint == "" {
		t.Skip("needs actionlint: run `make workflows`")
	}
	dir := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		// As in this repository, so that inputs and outputs are looked up in its action.yml.
		text = strings.ReplaceAll(text, "uses: sluice-dev/sluice/action/composite@v1", "uses: ./action/composite")
		text = strings.ReplaceAll(text, "uses: sluice-dev/sluice@v1", "uses: ./")
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	read := func(name string) string {
		t.Helper()
		raw, err := os.ReadFile(root + name)
		if err != nil {
			t.Fatal(err)
		}
		return string(raw)
	}
	for _, name := range []string{"action.yml", "action/composite/action.yml"} {
		write(name, read(name))
	}
	write("Dockerfile", "FROM scratch\n")
	count := func(pattern string, least int) []string {
		t.Helper()
		files, err := filepath.Glob(root + pattern)
		if err != nil || len(files) < least {
			t.Fatalf("%d files %s, want %d or more (%v)", len(files), pattern, least, err)
		}
		for i := range files {
			files[i] = strings.TrimPrefix(files[i], root)
		}
		return files
	}
	for _, name := range count(".github/workflows/*.yml", 2) {
		write(name, read(name))
	}
	for _, name := range count(".github/examples/*.yml", 4) {
		text := read(name)
		if !strings.Contains(text, "sluice-dev/sluice@v1") {
			t.Errorf("%s does not use the Action", name)
		}
		write(".github/workflows/example-"+filepath.Base(name), text)
	}
	inDocs := 0
	for _, name := range append(count("docs/*.md", 5), "README.md") {
		for n, m := range block.FindAllStringSubmatch(read(name), -1) {
			if text, is := complete(m[1]); is {
				inDocs++
				write(".github/workflows/"+strings.TrimSuffix(filepath.Base(name), ".md")+"-"+string(rune('a'+n))+".yml", text)
			}
		}
	}
	if inDocs < 3 {
		t.Errorf("%d workflows in the documentation", inDocs)
	}
	files, err := filepath.Glob(dir + "/.github/workflows/*.yml")
	if err != nil {
		t.Fatal(err)
	}
	// A repository, of which local actions are a part.
	if out, err := exec.Command("git", "init", "-q", dir).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	lint := func(files ...string) (string, error) {
		c := exec.Command(actionlint, append([]string{"-shellcheck=", "-pyflakes=", "-no-color"}, files...)...)
		c.Dir = dir
		out, err := c.CombinedOutput()
		return string(out), err
	}
	if out, err := lint(files...); err != nil {
		t.Errorf("actionlint: %v\n%s", err, out)
	}
	t.Logf("%d workflows, of which %d in the documentation", len(files), inDocs)
	// It would say so.
	for _, wrong := range []string{"        with: {trafficc-percentile: 10}\n", "        with: {registry: \"${{ steps.sluice.outputs.verson }}\"}\n"} {
		write(".github/workflows/wrong.yml", "name: wrong\non: push\njobs:\n  j:\n    runs-on: ubuntu-latest\n    steps:\n      - uses: ./\n        id: sluice\n      - uses: ./\n"+wrong)
		if out, err := lint(filepath.Join(dir, ".github/workflows/wrong.yml")); err == nil {
			t.Errorf("nothing is wrong with %s: %s", wrong, out)
		}
	}
}
