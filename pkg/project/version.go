package project

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/sluice-dev/sluice/rollout"
)

// Source is where the content of a project comes from.
type Source struct {
	// Commit is the full id of the commit that is checked out (or, on a pull request,
	// of its head); empty outside git.
	Commit string `json:"commit,omitempty"`
	// PullRequest number, 0 if none.
	PullRequest int `json:"pullRequest,omitempty"`
	// Dirty: what ships may differ from the commit.
	Dirty bool `json:"dirty,omitempty"`
}

// NamedByArchive tells whether VersionName needs the archive's digest.
func (s Source) NamedByArchive() bool { return s.PullRequest == 0 && (s.Commit == "" || s.Dirty) }

var (
	commitPattern = regexp.MustCompile(`^[0-9a-f]{7,64}$`)
	digestPattern = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)
)

// VersionName names the version made from an archive: pr-<number>-<7 hex of the
// commit> on a pull request, sha-<7 hex of the commit> from a clean checkout, else
// src-<7 hex of the archive's digest>. A pull request's name does not look at Dirty:
// its commit is the one that was reviewed, and workflows generate files.
func VersionName(s Source, digest string) (string, error) {
	if s.PullRequest < 0 {
		return "", refuse(rollout.ReasonInvalid, "pullRequest", "give a pull request's number", "%d is not the number of a pull request", s.PullRequest)
	}
	if s.Commit != "" && !commitPattern.MatchString(s.Commit) {
		return "", refuse(rollout.ReasonInvalid, "commit", "give the commit's full id", "%q is not the id of a commit", s.Commit)
	}
	var name string
	switch {
	case s.PullRequest > 0 && s.Commit == "":
		return "", refuse(rollout.ReasonInvalid, "commit", "give the pull request's head commit", "a pull request's version needs its commit")
	case s.PullRequest > 0:
		name = fmt.Sprintf("pr-%d-%s", s.PullRequest, s.Commit[:7])
	case !s.NamedByArchive():
		name = "sha-" + s.Commit[:7]
	case !digestPattern.MatchString(digest):
		return "", refuse(rollout.ReasonInvalid, "digest", "", "%q is not a SHA-256 digest", digest)
	default:
		name = "src-" + strings.TrimPrefix(digest, "sha256:")[:7]
	}
	return name, rollout.ValidateName("version", "a version", name)
}

// Git asks the git on this machine which commit the project in l was checked out
// from, and whether anything that ships differs from it: changed or untracked files,
// or files that git ignores but that ship. Outside a repository, or without a git
// program, the Source is empty.
func Git(ctx context.Context, l *Listing) (Source, error) {
	bin, err := exec.LookPath("git")
	if err != nil {
		return Source{}, nil // no git: a directory like any other
	}
	g := gitRepo{bin: bin, dir: l.dir}
	// All at once: each is a program that has to start. What they say holds only for a repository with a commit.
	asking, cancel := context.WithCancel(ctx)
	defer cancel()
	type answer struct {
		yes bool
		err error
	}
	ask := func(f func(context.Context, *Listing) (bool, error)) chan answer {
		out := make(chan answer, 1)
		go func() {
			yes, err := f(asking, l)
			out <- answer{yes, err}
		}()
		return out
	}
	changed, untracked := ask(g.changed), ask(g.shipsUntracked)
	defer func() {
		cancel()
		<-changed
		<-untracked
	}()
	head, err := g.run(ctx, nil, "rev-parse", "--verify", "--quiet", "HEAD^{commit}")
	if ctx.Err() != nil {
		return Source{}, err
	}
	if err != nil {
		if !g.inside() {
			return Source{}, nil
		}
		var said *gitError
		if errors.As(err, &said) && said.code == 1 && said.stderr == "" {
			return Source{Dirty: true}, nil // a repository without a commit
		}
		if errors.As(err, &said) && strings.Contains(said.stderr, "dubious ownership") {
			return Source{}, refuse(rollout.ReasonDenied, "", "if you trust it, run `git config --global --add safe.directory "+l.dir+"`",
				"%s is another user's repository, and git says nothing about these unless told to", l.dir)
		}
		return Source{}, err
	}
	s := Source{Commit: strings.TrimSpace(string(head))}
	if !commitPattern.MatchString(s.Commit) {
		return Source{}, fmt.Errorf("ask git for the commit: it said %q", s.Commit)
	}
	for _, asked := range []chan answer{changed, untracked} {
		a := <-asked
		asked <- a // for the end
		if a.err != nil {
			return Source{}, a.err
		}
		s.Dirty = s.Dirty || a.yes
	}
	return s, nil
}

// gitRepo runs git in a directory.
type gitRepo struct{ bin, dir string }

type gitError struct {
	args   string
	code   int
	stderr string
}

func (e *gitError) Error() string {
	s := fmt.Sprintf("git %s: exit status %d", e.args, e.code)
	if e.stderr != "" {
		s += ": " + e.stderr
	}
	return s
}

// inside tells whether the directory or one above it has a .git.
func (g gitRepo) inside() bool {
	for dir := g.dir; ; dir = filepath.Dir(dir) {
		if _, err := os.Lstat(filepath.Join(dir, ".git")); err == nil {
			return true
		}
		if dir == filepath.Dir(dir) {
			return false
		}
	}
}

func (g gitRepo) command(ctx context.Context, args ...string) *exec.Cmd {
	// A repository's configuration must not start programs, nor another's be used.
	c := exec.CommandContext(ctx, g.bin, append([]string{"-c", "core.fsmonitor=false", "-C", g.dir}, args...)...)
	c.Env = []string{"LC_ALL=C", "GIT_OPTIONAL_LOCKS=0", "GIT_TERMINAL_PROMPT=0"}
	for _, v := range os.Environ() {
		switch name, _, _ := strings.Cut(v, "="); name {
		case "GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX", "GIT_OBJECT_DIRECTORY", "GIT_NAMESPACE",
			"GIT_COMMON_DIR", "GIT_LITERAL_PATHSPECS", "GIT_GLOB_PATHSPECS", "GIT_NOGLOB_PATHSPECS", "GIT_ICASE_PATHSPECS",
			"LC_ALL", "GIT_OPTIONAL_LOCKS", "GIT_TERMINAL_PROMPT":
		default:
			c.Env = append(c.Env, v)
		}
	}
	return c
}

func (g gitRepo) run(ctx context.Context, stdin io.Reader, args ...string) ([]byte, error) {
	c := g.command(ctx, args...)
	var out, stderr bounded
	c.Stdin, c.Stdout, c.Stderr = stdin, &out, &stderr
	err := c.Run()
	if ctx.Err() != nil {
		return nil, fmt.Errorf("ask git: %w", ctx.Err())
	}
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return out.Bytes(), &gitError{args: strings.Join(args, " "), code: exit.ExitCode(), stderr: strings.TrimSpace(stderr.String())}
	}
	if err != nil {
		return nil, fmt.Errorf("ask git: %w", err)
	}
	return out.Bytes(), nil
}

// bounded keeps the first 64 KiB that are written to it.
type bounded struct{ bytes.Buffer }

func (b *bounded) Write(p []byte) (int, error) {
	if room := 64<<10 - b.Len(); room > 0 {
		b.Buffer.Write(p[:min(room, len(p))])
	}
	return len(p), nil
}

// changed tells whether git sees changed or untracked files, apart from the archive
// that is being written and what it replaces.
func (g gitRepo) changed(ctx context.Context, l *Listing) (bool, error) {
	status, err := g.run(ctx, nil, "status", "--porcelain", "-z", "--untracked-files=normal", "--", ".")
	if err != nil || len(status) == 0 {
		return false, err
	}
	entries := strings.Split(strings.TrimSuffix(string(status), "\x00"), "\x00")
	if len(entries) > len(l.skip) {
		return true, nil
	}
	top, err := g.run(ctx, nil, "rev-parse", "--show-toplevel")
	if err != nil {
		return false, err
	}
	for _, e := range entries {
		name, untracked := strings.CutPrefix(e, "?? ")
		info, err := os.Lstat(filepath.Join(strings.TrimSuffix(string(top), "\n"), name))
		if !untracked || err != nil || !l.skipped(info) {
			return true, nil
		}
	}
	return false, nil
}

// shipsUntracked tells whether a file ships that git ignores and does not track, or
// whether the manifest itself, or what it was made from, is not tracked. The repository must be clean otherwise.
func (g gitRepo) shipsUntracked(ctx context.Context, l *Listing) (bool, error) {
	sources := []string{ManifestName}
	if l.given != nil {
		if sources = l.given.Sources; l.given.Beside {
			return true, nil
		}
	}
	for _, name := range sources {
		tracked, err := g.run(ctx, nil, "ls-files", "-z", "--", ":(literal)"+name)
		if err != nil {
			return false, err
		}
		if len(tracked) == 0 {
			return true, nil // the whole directory is ignored, or in a repository of its own
		}
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	pr, pw := io.Pipe()
	walked := make(chan error, 1)
	go func() {
		err := l.walkAll(ctx, walkOptions{}, func(it *item) error {
			if it.Action != Ship || it.dir == nil || l.inNested(it.Path) {
				return nil
			}
			_, err := io.WriteString(pw, it.Path+"\x00")
			return err
		})
		pw.CloseWithError(err)
		walked <- err
	}()
	// check-ignore names the paths that are ignored and not tracked: any is one too many.
	out, err := g.run(ctx, pr, "check-ignore", "-z", "--stdin")
	_ = pr.Close()
	if walkErr := <-walked; walkErr != nil && !errors.Is(walkErr, io.ErrClosedPipe) {
		return false, walkErr
	}
	var said *gitError
	if errors.As(err, &said) && said.code == 1 {
		return false, nil // none is
	}
	return len(out) > 0, err
}

// inNested tells whether a path is in a repository of its own below the project's,
// such as a submodule, whose files only git's status knows about.
func (l *Listing) inNested(p string) bool {
	for _, dir := range l.nested {
		if strings.HasPrefix(p, dir) {
			return true
		}
	}
	return false
}
