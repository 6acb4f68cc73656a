package act

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// Repository copies a directory and makes it a git repository with one commit, on branch main, whose origin is a GitHub
// repository, OWNER/NAME. It gives its directory.
func Repository(t *testing.T, from, fullName string) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
	git(t, dir, "init", "--quiet", "--initial-branch=main")
	git(t, dir, "remote", "add", "origin", "https://github.com/"+fullName+".git")
	Commit(t, dir)
	return dir
}

// Commit commits all there is in a repository. It gives the commit, which is GITHUB_SHA for all events but those whose payload
// says otherwise to act: a push that says it deletes nothing, a deployment, pull_request_target.
func Commit(t *testing.T, dir string) string {
	t.Helper()
	git(t, dir, "add", "--all")
	git(t, dir, "-c", "user.name=octocat", "-c", "user.email=octocat@example.com", "-c", "commit.gpgsign=false",
		"commit", "--quiet", "--allow-empty", "--message", "Change")
	return git(t, dir, "rev-parse", "HEAD")
}

func git(t *testing.T, dir string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "git", args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_SYSTEM=/dev/null")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("git %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

// Action puts an action together as its release would be: its action.yml, a Dockerfile and the .dockerignore beside that, and a
// program for dist/action, unless that is empty. It gives the directory, for Options.Actions.
func Action(t *testing.T, definition, dockerfile, binary string) string {
	t.Helper()
	dir := t.TempDir()
	files := map[string]string{
		definition: "action.yml", dockerfile: "Dockerfile", filepath.Join(filepath.Dir(dockerfile), ".dockerignore"): ".dockerignore",
	}
	if binary != "" {
		files[binary] = program
	}
	for from, to := range files {
		text, err := os.ReadFile(from)
		if err != nil {
			t.Fatal(err)
		}
		to = filepath.Join(dir, to)
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			t.Fatal(err)
		}
		mode := os.FileMode(0o644)
		if from == binary {
			mode = 0o755
		}
		if err := os.WriteFile(to, text, mode); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}
