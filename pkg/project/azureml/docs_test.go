package azureml_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sluice-dev/sluice/pkg/project/azureml"
)

// TestDocumentation keeps the tables in docs/azureml.md true to the code.
func TestDocumentation(t *testing.T) {
	const begin, end = "<!-- fields of %s, made by `make generate` -->\n", "<!-- end -->"
	path := filepath.Join("..", "..", "..", "docs", "azureml.md")
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	doc := string(raw)
	for _, kind := range []azureml.Kind{azureml.Inference, azureml.Deployment, azureml.Environment} {
		from := fmt.Sprintf(begin, kind)
		before, rest, found := strings.Cut(doc, from)
		_, after, ended := strings.Cut(rest, end)
		if !found || !ended {
			t.Fatalf("%s has no place for the fields of %s", path, kind)
		}
		doc = before + from + table(kind) + end + after
	}
	if *update {
		if err := os.WriteFile(path, []byte(doc), 0o644); err != nil {
			t.Fatal(err)
		}
	} else if doc != string(raw) {
		t.Errorf("docs/azureml.md is not what the code says: run `make generate`")
	}
}

func table(kind azureml.Kind) string {
	var b strings.Builder
	b.WriteString("| field | becomes | |\n| --- | --- | --- |\n")
	for _, f := range azureml.Fields() {
		if f.File != kind {
			continue
		}
		to, text := "`"+f.To+"`", f.Note
		switch {
		case f.To == "" && f.Reason == "":
			to = "nothing"
		case f.Reason != "":
			to = "refused, `" + string(f.Reason) + "`"
			text = f.Why + ": " + f.Way
			if f.Same != nil {
				var same []string
				for _, v := range f.Same {
					same = append(same, fmt.Sprintf("`%v`", v))
				}
				to = strings.Join(same, ", ") + ": nothing; else " + to
				text = f.Note + ". Else: " + text
			} else if f.Note != "" {
				text += ". " + strings.ToUpper(f.Note[:1]) + f.Note[1:]
			}
		}
		if kind == azureml.Deployment && len(f.Types) == 1 {
			text = strings.TrimSuffix("`"+f.Types[0]+"` only; "+text, "; ")
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s |\n", f.Path, to, strings.ReplaceAll(text, "|", "\\|"))
	}
	return b.String()
}
