package rollout_test

import (
	"bytes"
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/sluice-dev/sluice/rollout"
)

var update = flag.Bool("update", false, "write generated documentation")

// TestReasonsReference keeps docs/reasons.md true to the code, and the list complete.
func TestReasonsReference(t *testing.T) {
	listed := map[string]bool{}
	var doc bytes.Buffer
	doc.WriteString("# Reasons\n\nThe codes that the command line, replies, history and metrics give, generated from `rollout.Reasons`\n(`make generate`).\n\n| code | meaning |\n| --- | --- |\n")
	for _, r := range rollout.Reasons() {
		if listed[string(r.Reason)] {
			t.Errorf("%s is listed twice", r.Reason)
		}
		listed[string(r.Reason)] = true
		fmt.Fprintf(&doc, "| `%s` | %s |\n", r.Reason, r.Text)
	}
	file, err := parser.ParseFile(token.NewFileSet(), "reason.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	ast.Inspect(file, func(n ast.Node) bool {
		if v, ok := n.(*ast.ValueSpec); ok && len(v.Values) == 1 {
			code, err := strconv.Unquote(v.Values[0].(*ast.BasicLit).Value)
			if err != nil {
				t.Fatal(err)
			}
			if !listed[code] {
				t.Errorf("%s (%s) is missing from Reasons", v.Names[0], code)
			}
		}
		return true
	})
	path := filepath.Join("..", "docs", "reasons.md")
	if *update {
		if err := os.WriteFile(path, doc.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	have, err := os.ReadFile(path)
	if err != nil || !bytes.Equal(have, doc.Bytes()) {
		t.Errorf("docs/reasons.md is not what the code says (%v): run `make generate`", err)
	}
}
