package action

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	yaml "go.yaml.in/yaml/v3"
)

var update = flag.Bool("update", false, "write docs/action.md and action/composite/action.yml anew")

const root = "../../../../"

// metadata is an action.yml, in its order.
type metadata struct {
	Inputs  yaml.Node
	Outputs yaml.Node
}

func readMetadata(t *testing.T) metadata {
	t.Helper()
	raw, err := os.ReadFile(root + "action.yml")
	if err != nil {
		t.Fatal(err)
	}
	var m metadata
	if err := yaml.Unmarshal(raw, &m); err != nil {
		t.Fatal(err)
	}
	return m
}

// each goes through a mapping of mappings.
func each(t *testing.T, n yaml.Node, f func(name string, fields map[string]string)) {
	t.Helper()
	for i := 0; i+1 < len(n.Content); i += 2 {
		fields := map[string]string{}
		if err := n.Content[i+1].Decode(&fields); err != nil {
			t.Fatal(err)
		}
		f(n.Content[i].Value, fields)
	}
}

// compare a file with what it is to be, or write it.
func compare(t *testing.T, path string, want []byte) {
	t.Helper()
	if *update {
		if err := os.WriteFile(root+path, want, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	got, err := os.ReadFile(root + path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("%s is not what action.yml says; run `make generate`: %s", path, diff)
	}
}

// TestReference holds the tables of docs/action.md to action.yml.
func TestReference(t *testing.T) {
	m := readMetadata(t)
	var inputs, outputs bytes.Buffer
	inputs.WriteString("| input | default | |\n| --- | --- | --- |\n")
	each(t, m.Inputs, func(name string, f map[string]string) {
		value := ""
		if f["default"] != "" {
			value = "`" + f["default"] + "`"
		}
		fmt.Fprintf(&inputs, "| `%s` | %s | %s |\n", name, value, strings.ReplaceAll(f["description"], "|", `\|`))
	})
	outputs.WriteString("| output | |\n| --- | --- |\n")
	each(t, m.Outputs, func(name string, f map[string]string) {
		fmt.Fprintf(&outputs, "| `%s` | %s |\n", name, strings.ReplaceAll(f["description"], "|", `\|`))
	})
	doc, err := os.ReadFile(root + "docs/action.md")
	if err != nil {
		t.Fatal(err)
	}
	for name, table := range map[string]string{"inputs": inputs.String(), "outputs": outputs.String()} {
		part := regexp.MustCompile(`(?s)(<!-- ` + name + `: generated from action.yml -->\n).*?(<!-- end of ` + name + ` -->)`)
		if !part.Match(doc) {
			t.Fatalf("docs/action.md has no place for the %s", name)
		}
		doc = part.ReplaceAll(doc, []byte("${1}"+strings.ReplaceAll(table, "$", "$$")+"${2}"))
	}
	compare(t, "docs/action.md", doc)
}

// TestComposite holds the composite action to action.yml.
func TestComposite(t *testing.T) {
	m := readMetadata(t)
	var b bytes.Buffer
	b.WriteString(`# Made from action.yml by ` + "`make generate`" + `.
name: Sluice (composite)
author: The Sluice authors
description: Sluice's Action as a program on the runner itself, for runners without Docker, kubeconfigs that log in by a program, and tests that are scripts

inputs:
`)
	enc := func(n yaml.Node) string {
		var out bytes.Buffer
		e := yaml.NewEncoder(&out)
		e.SetIndent(2)
		if err := e.Encode(&n); err != nil {
			t.Fatal(err)
		}
		return "  " + strings.ReplaceAll(strings.TrimRight(out.String(), "\n"), "\n", "\n  ") + "\n"
	}
	b.WriteString(enc(m.Inputs))
	b.WriteString("\noutputs:\n")
	each(t, m.Outputs, func(name string, f map[string]string) {
		fmt.Fprintf(&b, "  %s:\n    description: %q\n    value: ${{ steps.sluice.outputs.%s }}\n", name, f["description"], name)
	})
	b.WriteString(`
runs:
  using: composite
  steps:
    - id: sluice
      shell: bash
      # Not as arguments, of which everybody on the machine could read the secrets.
      env:
        SLUICE_ACTION_INPUTS: ${{ toJSON(inputs) }}
      # In the shell's place: what cancels the job ends the program itself.
      run: exec "$GITHUB_ACTION_PATH/run.sh"
`)
	compare(t, "action/composite/action.yml", b.Bytes())
}
