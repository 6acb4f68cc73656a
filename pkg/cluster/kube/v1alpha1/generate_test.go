package v1alpha1_test

import (
	"bytes"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"sigs.k8s.io/yaml"
)

var update = flag.Bool("update", false, "write the generated definitions")

// generator makes definitions from the types. Its version fits the API machinery in go.mod; `go run` with a version
// leaves go.mod without what only the generator needs.
const generator = "sigs.k8s.io/controller-tools/cmd/controller-gen@v0.20.1"

// definitions is where the chart finds them.
const definitions = "../../../../charts/sluice/files/crds"

const header = "# Generated from the types in rollout and pkg/cluster/kube/v1alpha1: change those and run `make generate`.\n"

// TestDefinitions keeps the CustomResourceDefinitions true to the types.
func TestDefinitions(t *testing.T) {
	if out, err := exec.Command("go", "run", generator, "--version").CombinedOutput(); err != nil {
		t.Skipf("no generator (%v), so nothing says whether the definitions are up to date:\n%s", err, out)
	}
	dir := t.TempDir()
	if out, err := exec.Command("go", "run", generator, "crd:allowDangerousTypes=true", "paths=.", "output:crd:dir="+dir).CombinedOutput(); err != nil {
		t.Fatalf("generate definitions: %v\n%s", err, out)
	}
	made, err := filepath.Glob(filepath.Join(dir, "*.yaml"))
	if err != nil || len(made) != 2 {
		t.Fatalf("made %v (%v), want the definitions of two kinds", made, err)
	}
	for _, file := range made {
		raw, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var tree map[string]any
		if err := yaml.Unmarshal(raw, &tree); err != nil {
			t.Fatal(err)
		}
		tighten("", tree)
		out, err := yaml.Marshal(tree)
		if err != nil {
			t.Fatal(err)
		}
		out = append([]byte(header), out...)
		path := filepath.Join(definitions, filepath.Base(file))
		if *update {
			if err := os.WriteFile(path, out, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if have, err := os.ReadFile(path); err != nil || !bytes.Equal(have, out) {
			t.Errorf("%s is not what the types say (%v): run `make generate`", path, err)
		}
	}
}

// tighten says what markers cannot. Whatever the API server stores must be readable as the Go type: a
// client that lists endpoints fails as a whole on one it cannot read.
func tighten(name string, node any) {
	switch node := node.(type) {
	case []any:
		for _, v := range node {
			tighten("", v)
		}
	case map[string]any:
		for k, v := range node {
			tighten(k, v)
		}
		switch {
		case node["type"] == "integer":
			// 1e30 is an integer to JSON schema. The API server keeps an int64 exactly; bounds are
			// floating-point numbers to it, and this one is exact as such.
			const most = 1 << 62
			if node["minimum"] == nil {
				node["minimum"] = -most
			}
			if node["maximum"] == nil {
				node["maximum"] = most
			}
		case name == "extended" && node["additionalProperties"] != nil:
			count := node["additionalProperties"].(map[string]any)
			count["minimum"], count["maximum"] = 0, 1_000_000
		case node["format"] == "date-time":
			// The format alone also takes what Go does not read, such as +0100.
			node["pattern"] = `^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,9})?(Z|[-+][0-9]{2}:[0-9]{2})$`
		case name == "environmentVariables" && node["additionalProperties"] != nil:
			node["maxProperties"] = 1024
			node["additionalProperties"] = envValue()
		}
	}
}

// envValue is a string or {secret, key}. A structural schema has no such union, so the type stays open
// and the keywords of each other type contradict themselves: no number, list or boolean meets them.
func envValue() map[string]any {
	// The same patterns as in the domain's validation.
	part := func(pattern string) map[string]any {
		return map[string]any{"type": "string", "minLength": 1, "maxLength": 253, "pattern": pattern}
	}
	return map[string]any{
		"description":                          "A literal value in quotes, or a reference {secret, key}.",
		"x-kubernetes-preserve-unknown-fields": true,
		"maxLength":                            131072,
		"properties": map[string]any{
			"secret": part(`^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$`),
			"key":    part(`^\.?[-_a-zA-Z0-9][-._a-zA-Z0-9]*$`),
		},
		"required":      []any{"key", "secret"},
		"maxProperties": 2,
		"minimum":       1, "maximum": 0,
		"minItems": 1, "maxItems": 0,
		"not": map[string]any{"enum": []any{true, false}},
	}
}
