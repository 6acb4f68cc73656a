package project

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-dev/sluice/rollout"
)

func TestVersionName(t *testing.T) {
	const commit, digest = "1f2e3d4c5b6a79881f2e3d4c5b6a79881f2e3d4c", "sha256:abcdef0123456789abcdef0123456789abcdef0123456789abcdef0123456789"
	for _, c := range []struct {
		source Source
		digest string
		want   string // "" for a refusal
	}{
		{Source{Commit: commit, PullRequest: 42}, digest, "pr-42-1f2e3d4"},
		{Source{Commit: commit, PullRequest: 42, Dirty: true}, digest, "pr-42-1f2e3d4"},
		{Source{Commit: commit}, digest, "sha-1f2e3d4"},
		{Source{Commit: commit}, "", "sha-1f2e3d4"},
		{Source{Commit: commit, Dirty: true}, digest, "src-abcdef0"},
		{Source{}, digest, "src-abcdef0"},
		{Source{Dirty: true}, digest, "src-abcdef0"},
		{Source{PullRequest: 42}, digest, ""},
		{Source{PullRequest: -1, Commit: commit}, digest, ""},
		{Source{Commit: "HEAD"}, digest, ""},
		{Source{Commit: "1f2e"}, digest, ""},
		{Source{}, "", ""},
		{Source{}, "abcdef0123", ""},
		{Source{Commit: commit, PullRequest: 9223372036854775807}, digest, "pr-9223372036854775807-1f2e3d4"},
	} {
		got, err := VersionName(c.source, c.digest)
		if c.want == "" {
			if rollout.ReasonOf(err) != rollout.ReasonInvalid || err == nil {
				t.Errorf("%+v: %q, %v", c.source, got, err)
			}
			continue
		}
		if err != nil || got != c.want {
			t.Errorf("%+v: %q, %v, want %q", c.source, got, err, c.want)
		}
	}
}

// git runs git without anyone's configuration.
func git(t testing.TB, dir string, args ...string) string {
	t.Helper()
	c := exec.Command("git", append([]string{"-c", "user.name=T", "-c", "user.email=t@example.com", "-c", "init.defaultBranch=main", "-c", "protocol.file.allow=always", "-C", dir}, args...)...)
	c.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_SYSTEM=/dev/null")
	out, err := c.CombinedOutput()
	if err != nil {
		t.Fatalf("git %v: %v: %s", args, err, out)
	}
	return strings.TrimSpace(string(out))
}

func TestGit(t *testing.T) {
	if _, err := exec.LookPath("git"); err != nil {
		t.Skip("needs git")
	}
	t.Setenv("GIT_CONFIG_GLOBAL", "/dev/null")
	t.Setenv("GIT_CONFIG_SYSTEM", "/dev/null")
	models := simple + "models: [{name: m, version: \"1\", path: m}]\n"
	// Each gets a clean repository with a sub-directory that is a project too.
	for _, c := range []struct {
		name    string
		change  func(t *testing.T, dir string)
		project string
		want    string // clean, dirty, none, no commit
	}{
		{"clean", nil, "", "clean"},
		{"clean below", nil, "sub", "clean"},
		{"changed", func(t *testing.T, dir string) { files(t, dir, map[string]string{"score.py": "y"}) }, "", "dirty"},
		{"staged", func(t *testing.T, dir string) {
			files(t, dir, map[string]string{"score.py": "y"})
			git(t, dir, "add", ".")
		}, "", "dirty"},
		{"removed", func(t *testing.T, dir string) { _ = os.Remove(filepath.Join(dir, "keep")) }, "", "dirty"},
		{"mode", func(t *testing.T, dir string) { _ = os.Chmod(filepath.Join(dir, "score.py"), 0o755) }, "", "dirty"},
		{"untracked", func(t *testing.T, dir string) { files(t, dir, map[string]string{"new": "x"}) }, "", "dirty"},
		{"changed above", func(t *testing.T, dir string) { files(t, dir, map[string]string{"score.py": "y"}) }, "sub", "clean"},
		{"ignored", func(t *testing.T, dir string) { files(t, dir, map[string]string{"a.log": "x"}) }, "", "clean"},
		{"ignored by git, but ships", func(t *testing.T, dir string) {
			files(t, dir, map[string]string{"m/w.bin": "x", ".gitignore": "m\n", "sluice.yaml": models})
			git(t, dir, "add", ".gitignore", "sluice.yaml")
			git(t, dir, "commit", "-qm", "2")
		}, "", "dirty"},
		{"ignored by git, ships, and tracked", func(t *testing.T, dir string) {
			files(t, dir, map[string]string{"m/w.bin": "x", ".gitignore": "m\n", "sluice.yaml": models})
			git(t, dir, "add", "-f", ".gitignore", "sluice.yaml", "m")
			git(t, dir, "commit", "-qm", "2")
		}, "", "clean"},
		{"ignored by git, but not by .amlignore", func(t *testing.T, dir string) {
			files(t, dir, map[string]string{"a.log": "x", ".amlignore": "nothing\n"})
			git(t, dir, "add", ".amlignore")
			git(t, dir, "commit", "-qm", "2")
		}, "", "dirty"},
		{"project that is ignored as a whole", func(t *testing.T, dir string) {
			files(t, dir, map[string]string{"x.log/sluice.yaml": simple, "x.log/score.py": "x"})
		}, "x.log", "dirty"},
		{"project in a repository of its own without commits", func(t *testing.T, dir string) {
			files(t, dir, map[string]string{"own/sluice.yaml": simple, "own/score.py": "x"})
			git(t, filepath.Join(dir, "own"), "init", "-q")
		}, "own", "no commit"},
		{"submodule", func(t *testing.T, dir string) {
			other := files(t, t.TempDir(), map[string]string{"a": "x", ".gitignore": "b\n"})
			git(t, other, "init", "-q")
			git(t, other, "add", ".")
			git(t, other, "commit", "-qm", "1")
			git(t, dir, "submodule", "--quiet", "add", other, "mod")
			git(t, dir, "commit", "-qm", "2")
		}, "", "clean"},
		{"changed submodule", func(t *testing.T, dir string) {
			other := files(t, t.TempDir(), map[string]string{"a": "x"})
			git(t, other, "init", "-q")
			git(t, other, "add", ".")
			git(t, other, "commit", "-qm", "1")
			git(t, dir, "submodule", "--quiet", "add", other, "mod")
			git(t, dir, "commit", "-qm", "2")
			files(t, dir, map[string]string{"mod/a": "y"})
		}, "", "dirty"},
		{"no repository", func(t *testing.T, dir string) { _ = os.RemoveAll(filepath.Join(dir, ".git")) }, "", "none"},
		{"another's environment", func(t *testing.T, dir string) {
			t.Setenv("GIT_DIR", t.TempDir())
			t.Setenv("GIT_INDEX_FILE", "/nowhere")
		}, "", "clean"},
		{"configuration that runs programs", func(t *testing.T, dir string) {
			hook := files(t, t.TempDir(), map[string]string{"hook": "#!/bin/sh\ntouch " + dir + "/ran\n"})
			git(t, dir, "config", "core.fsmonitor", filepath.Join(hook, "hook"))
		}, "", "clean"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := files(t, t.TempDir(), map[string]string{
				"sluice.yaml": simple, "score.py": "x", "keep": "x", ".gitignore": "*.log\n", "sub/sluice.yaml": simple, "sub/score.py": "x", "link": "->keep",
			})
			git(t, dir, "init", "-q")
			git(t, dir, "add", ".")
			git(t, dir, "commit", "-qm", "1")
			if c.change != nil {
				c.change(t, dir)
			}
			l := mustPlan(t, filepath.Join(dir, c.project))
			got, err := Git(t.Context(), l)
			if err != nil {
				t.Fatal(err)
			}
			want := Source{Dirty: c.want == "dirty" || c.want == "no commit"}
			if c.want == "clean" || c.want == "dirty" {
				old := os.Getenv("GIT_DIR")
				if old != "" {
					_ = os.Unsetenv("GIT_DIR")
					_ = os.Unsetenv("GIT_INDEX_FILE")
				}
				want.Commit = git(t, dir, "rev-parse", "HEAD")
			}
			if d := cmp.Diff(want, got); d != "" {
				t.Error(d)
			}
			if _, err := os.Stat(filepath.Join(dir, "ran")); err == nil {
				t.Error("a program of the repository's configuration ran")
			}
		})
	}
	t.Run("no git program", func(t *testing.T) {
		dir := files(t, t.TempDir(), map[string]string{"sluice.yaml": simple, "score.py": "x"})
		t.Setenv("PATH", t.TempDir())
		if got, err := Git(t.Context(), mustPlan(t, dir)); err != nil || got != (Source{}) {
			t.Errorf("%+v, %v", got, err)
		}
	})
	t.Run("broken repository", func(t *testing.T) {
		dir := files(t, t.TempDir(), map[string]string{"sluice.yaml": simple, "score.py": "x", ".git/HEAD": "x"})
		if got, err := Git(t.Context(), mustPlan(t, dir)); err == nil {
			t.Errorf("%+v", got)
		}
	})
	t.Run("another user's repository", func(t *testing.T) {
		if os.Getuid() != 0 {
			t.Skip("needs root to make one")
		}
		t.Setenv("SUDO_UID", "")
		dir := files(t, t.TempDir(), map[string]string{"sluice.yaml": simple, "score.py": "x"})
		git(t, dir, "init", "-q")
		for _, p := range []string{dir, filepath.Join(dir, ".git")} {
			if err := os.Chown(p, 1234, 1234); err != nil {
				t.Fatal(err)
			}
		}
		got, err := Git(t.Context(), mustPlan(t, dir))
		if rollout.ReasonOf(err) != rollout.ReasonDenied || !strings.Contains(err.Error(), "safe.directory "+dir) {
			t.Errorf("%+v, %v", got, err)
		}
	})
	t.Run("cancelled", func(t *testing.T) {
		dir := files(t, t.TempDir(), map[string]string{"sluice.yaml": simple, "score.py": "x"})
		l := mustPlan(t, dir)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := Git(ctx, l); !errors.Is(err, context.Canceled) {
			t.Errorf("%v", err)
		}
	})
}

func TestPackage(t *testing.T) {
	dir := files(t, t.TempDir(), map[string]string{
		"sluice.yaml": simple + "models: [{name: m, version: \"1\", path: m.pkl}]\n", "score.py": "x", "m.pkl": "x", "link": "->m.pkl",
	})
	var b bytes.Buffer
	got, err := Package(t.Context(), dir, &b, nil)
	if err != nil {
		t.Fatal(err)
	}
	want, a := archive(t, dir)
	if !bytes.Equal(b.Bytes(), want) || got.Archive != a || got.Files != 4 {
		t.Errorf("%+v, want %+v", got.Archive, a)
	}
	if got.Manifest.Endpoint != "fraud" || got.ModelDir != ".sluice/models/m/1" || got.Source != (Source{}) || got.Version != "src-"+a.Digest[7:14] {
		t.Errorf("%+v", got)
	}
	// Into its own directory, again and again, it is the same; in a clean checkout the
	// archive does not make it dirty.
	if _, err := exec.LookPath("git"); err == nil {
		git(t, dir, "init", "-q")
		git(t, dir, "add", ".")
		git(t, dir, "commit", "-qm", "1")
	}
	for range 2 {
		out, err := os.Create(filepath.Join(dir, "project.tar"))
		if err != nil {
			t.Fatal(err)
		}
		got, err := Package(t.Context(), dir, out, nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := out.Close(); err != nil {
			t.Fatal(err)
		}
		if got.Archive != a {
			t.Errorf("%+v, want %+v", got.Archive, a)
		}
		if got.Source.Commit != "" && !regexp.MustCompile(`^sha-[0-9a-f]{7}$`).MatchString(got.Version) {
			t.Errorf("%+v: %s", got.Source, got.Version)
		}
	}
	if _, err := Package(t.Context(), t.TempDir(), &b, nil); rollout.ReasonOf(err) != rollout.ReasonInvalid {
		t.Errorf("no project: %v", err)
	}
	if _, err := Package(t.Context(), dir, failWriter{}, nil); err == nil || !strings.Contains(err.Error(), "the disk is full") {
		t.Errorf("%v", err)
	}
}
