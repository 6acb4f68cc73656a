package cli

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// tree makes a project that can be packaged.
func tree(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{
		"sluice.yaml": "apiVersion: sluice.dev/v1alpha1\nkind: Project\nendpoint: echo\nscoring: {entryScript: score.py}\n",
		"score.py":    "def init(): pass\ndef run(data): return data\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// runCLI runs the command line and returns its exit code and what it printed.
func runCLI(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	code = Main(t.Context(), args, IO{In: strings.NewReader(""), Out: &out, Err: &errs, Env: []string{"HOME=" + t.TempDir(), "SLUICE_STATE=" + t.TempDir()}})
	return code, out.String(), errs.String()
}

// A zero that would be taken for a flag that is not given is refused, with the way out.
func TestUpdateRefusesZeros(t *testing.T) {
	for flag, way := range map[string]string{
		"--slots": "use 1 or more", "--queue-wait-ms": "use 1 for practically no waiting", "--scoring-timeout-ms": "use 1 or more",
		"--target-utilization": "from 1 to 100",
	} {
		if code, _, errs := runCLI(t, "update", "e", "v", flag, "0"); code != exitUsage || !strings.Contains(errs, flag+" 0") || !strings.Contains(errs, way) {
			t.Errorf("%s: exit code %d, %s", flag, code, errs)
		}
	}
}

func TestUpdateBindsRepositories(t *testing.T) {
	dir := tree(t)
	env := []string{"HOME=" + t.TempDir(), "SLUICE_STATE=" + t.TempDir()}
	run := func(want int, says string, args ...string) {
		t.Helper()
		var out bytes.Buffer
		code := Main(t.Context(), args, IO{In: strings.NewReader(""), Out: &out, Err: &out, Env: env})
		if code != want || !strings.Contains(out.String(), says) {
			t.Errorf("%v: exit code %d, want %d and %q:\n%s", args, code, want, says, &out)
		}
	}
	run(exitOK, "", "deploy", dir, "--version", "a", "--timeout", "0", "--repository-id", "7")
	const unbound = "repository 8 is not bound to endpoint echo: its comments may not act on it"
	run(exitOK, unbound, "deploy", dir, "--version", "b", "--timeout", "0", "--repository-id", "8")
	run(exitOK, `at 0 per cent; `+unbound+`"`, "deploy", dir, "--version", "c", "--timeout", "0", "--repository-id", "8", "-o", "json")
	run(exitOK, "repository 8 is bound", "update", "echo", "--bind-repository", "8")
	run(exitOK, "bound already", "update", "echo", "--bind-repository", "8")
	run(exitOK, "not bound any more", "update", "echo", "--unbind-repository", "7")
	run(exitUsage, "needs a VERSION", "update", "echo")
	run(exitUsage, "needs a VERSION", "update", "echo", "--percent", "3")
	run(exitUsage, "leave VERSION and its flags out", "update", "echo", "--percent", "3", "--bind-repository", "9")
	run(exitUsage, "leave VERSION and its flags out", "update", "echo", "a", "--bind-repository", "9")
	run(exitUsage, "two changes", "update", "echo", "--bind-repository", "9", "--unbind-repository", "8")
	run(exitRefused, "not the id of a repository", "update", "echo", "--bind-repository", "0")
	run(exitUsage, "Sluice sets PORT itself", "update", "echo", "a", "--env", "PORT=80")
	run(exitUsage, `--type "bogus" is not known; use control, treatment or none`, "update", "echo", "a", "--type", "bogus")
	run(exitRefused, "cannot be given by hand", "update", "echo", "a", "--type", "standby")
}
