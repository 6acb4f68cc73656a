package cli

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

var update = flag.Bool("update", false, "write generated documentation")

// TestCommandReference keeps docs/cli.md true to the commands.
func TestCommandReference(t *testing.T) {
	a := &app{io: IO{Env: []string{"HOME=~"}}}
	var b bytes.Buffer
	b.WriteString("# The command line\n\nGenerated from the commands (`make generate`).\n\n")
	root := a.root()
	b.WriteString("Flags of every command:\n\n")
	flags(&b, root.PersistentFlags())
	b.WriteString("\nExit codes: 0 ok · 1 failed · 2 usage · 3 not found · 4 refused by a rule · 5 denied · 6 conflict · 7 not ready in time.\nWith `-o json` an error is `{\"reasonCode\",\"field\",\"message\",\"hint\"}`; [the reasons](reasons.md).\n")
	for _, c := range root.Commands() {
		command(&b, c)
	}
	path := filepath.Join("..", "..", "..", "..", "docs", "cli.md")
	if *update {
		if err := os.WriteFile(path, b.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	have, err := os.ReadFile(path)
	if err != nil || !bytes.Equal(have, b.Bytes()) {
		t.Errorf("docs/cli.md is not what the commands say (%v): run `make generate`", err)
	}
}

func command(b *bytes.Buffer, c *cobra.Command) {
	if c.Hidden || c.Name() == "help" || c.Name() == "completion" {
		return
	}
	if c.HasSubCommands() {
		for _, s := range c.Commands() {
			command(b, s)
		}
		return
	}
	fmt.Fprintf(b, "\n## `%s`\n\n", strings.TrimSuffix(c.UseLine(), " [flags]"))
	text := c.Long
	if text == "" {
		text = c.Short + "."
	}
	fmt.Fprintf(b, "%s\n", text)
	if c.LocalNonPersistentFlags().HasAvailableFlags() {
		b.WriteString("\n")
		flags(b, c.LocalNonPersistentFlags())
	}
}

func flags(b *bytes.Buffer, f *pflag.FlagSet) {
	b.WriteString("| flag | default | meaning |\n| --- | --- | --- |\n")
	f.VisitAll(func(f *pflag.Flag) {
		if f.Name == "help" {
			return
		}
		name := "`--" + f.Name + "`"
		if f.Shorthand != "" {
			name += ", `-" + f.Shorthand + "`"
		}
		def := f.DefValue
		if def != "" && def != "[]" && def != "0" && def != "false" {
			def = "`" + def + "`"
		} else {
			def = ""
		}
		fmt.Fprintf(b, "| %s | %s | %s |\n", name, def, f.Usage)
	})
}
