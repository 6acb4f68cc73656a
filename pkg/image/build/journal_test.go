package build

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/docker/cli/cli/config/types"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/moby/buildkit/client"
	"github.com/opencontainers/go-digest"
	fstypes "github.com/tonistiigi/fsutil/types"

	"github.com/sluice-dev/sluice/rollout"
)

// told is a journal with what it wrote and said.
type told struct {
	*journal
	log   bytes.Buffer
	lines []string
}

func newTold() *told {
	t := &told{}
	t.journal = newJournal(&t.log, func(format string, args ...any) { t.lines = append(t.lines, fmt.Sprintf(format, args...)) })
	return t
}

// done is a step that has ended after a second and a half.
func done(name, failure string) *client.Vertex {
	began := time.Unix(1000, 0)
	ended := began.Add(1500 * time.Millisecond)
	return &client.Vertex{Digest: digest.FromString(name), Name: name, Started: &began, Completed: &ended, Error: failure}
}

func TestJournalTellsOneLineAStep(t *testing.T) {
	j := newTold()
	cached := done("[1/3] FROM base", "")
	cached.Cached = true
	j.note(&client.SolveStatus{Vertexes: []*client.Vertex{
		done("[internal] load build definition", ""), cached, done("[2/3] COPY . /", ""), done("[2/3] COPY . /", ""),
		done("importing cache manifest from r/c:1", "r/c:1: not found"), done("[4/4] RUN other", "context canceled"),
		done("[3/3] RUN false", "process did not complete successfully: exit code: 1"),
	}})
	want := []string{"[1/3] FROM base: cached", "[2/3] COPY . /: 1.5 s", "importing cache manifest from r/c:1: there is none yet", "[3/3] RUN false: failed after 1.5 s"}
	if diff := cmp.Diff(want, j.lines); diff != "" {
		t.Error(diff)
	}
	if s := j.failed(""); s == nil || s.name != "[3/3] RUN false" {
		t.Errorf("the step that failed is %+v", s)
	}
	if s := j.failed(digest.FromString("[2/3] COPY . /")); s == nil || s.name != "[2/3] COPY . /" {
		t.Errorf("the step with a digest is %+v", s)
	}
}

func TestJournalTellsOfWhatTakesLong(t *testing.T) {
	j := newTold()
	export, work := done("exporting to image", ""), done("[2/2] RUN work", "")
	work.Completed = nil
	j.note(&client.SolveStatus{Vertexes: []*client.Vertex{export, work}})
	began := time.Unix(1000, 0)
	push := client.VertexStatus{ID: "pushing layer x", Vertex: export.Digest, Started: &began, Current: 3 << 20, Total: 9 << 20}
	j.note(&client.SolveStatus{Statuses: []*client.VertexStatus{&push, {ID: "pushing layers", Vertex: export.Digest}}})
	j.lines = nil
	j.tick(work.Started.Add(sayEvery - time.Second))
	if len(j.lines) > 0 {
		t.Errorf("too early it says %q", j.lines)
	}
	j.tick(time.Now().Add(sayEvery))
	if len(j.lines) != 3 || !strings.HasPrefix(j.lines[0], "[2/2] RUN work: running for ") ||
		j.lines[1] != "exporting to image: pushing layer x: 3 of 9 MB" || j.lines[2] != "exporting to image: pushing layers" {
		t.Errorf("it says %q", j.lines)
	}
	ended := began.Add(2 * time.Second)
	push.Completed = &ended
	j.note(&client.SolveStatus{Statuses: []*client.VertexStatus{&push}})
	j.lines = nil
	j.tick(time.Now().Add(2 * sayEvery))
	if slices.ContainsFunc(j.lines, func(l string) bool { return strings.Contains(l, "layer x") }) || len(j.lines) != 2 {
		t.Errorf("later it says %q", j.lines)
	}
	if !strings.Contains(j.log.String(), "pushing layer x: done, 2.0 s\n") {
		t.Errorf("the log is %s", &j.log)
	}
}

func TestJournalKeepsWholeLog(t *testing.T) {
	j := newTold()
	v := done("[2/2] RUN work", "")
	running := *v
	running.Completed = nil
	j.note(&client.SolveStatus{Vertexes: []*client.Vertex{&running}})
	out := func(stream int, text string) {
		j.note(&client.SolveStatus{Logs: []*client.VertexLog{{Vertex: v.Digest, Stream: stream, Data: []byte(text)}}})
	}
	out(1, "be")
	out(2, "warn\n")
	out(1, "gin\n10%\r50%\rdone\r\n\x1b[31mred\x1b[0m\n")
	for i := range 100 {
		out(1, fmt.Sprintf("line %d\n", i))
	}
	out(1, "no end")
	j.note(&client.SolveStatus{Vertexes: []*client.Vertex{v}})
	for _, want := range []string{"#1 [2/2] RUN work\n", "#1 begin\n", "#1 warn\n", "#1 line 0\n", "#1 line 99\n", "#1 no end\n", "#1 DONE 1.5 s\n"} {
		if !strings.Contains(j.log.String(), want) {
			t.Errorf("the log lacks %q", want)
		}
	}
	tail := j.order[0].quote()
	if len(tail) != keptLines || tail[keptLines-1] != "no end" || tail[0] != "warn" || tail[1] != "line 82" {
		t.Errorf("the end is %q", tail)
	}
}

func TestQuotedLinesAreForTerminals(t *testing.T) {
	j := newTold()
	s := &step{part: map[int][]byte{}}
	j.output(s, 1, []byte("10%\r50%\rdone\r\n\x1b[31mred\x1b[0m\n\n"+strings.Repeat("ä", 1000)+"\n"))
	if want := []string{"done", "[31mred[0m", strings.Repeat("ä", maxLine/2) + "…"}; !slices.Equal(s.quote(), want) {
		t.Errorf("quoted is %q", s.quote())
	}
}

// An error is quoted though standard output, which a program may write only as it ends, goes on after it.
func TestErrorsAreQuotedBeforeOutput(t *testing.T) {
	j := newTold()
	s := &step{part: map[int][]byte{}}
	for i := range 15 {
		j.output(s, stderr, fmt.Appendf(nil, "error %d\n", i))
	}
	for i := range 50 {
		j.output(s, 1, fmt.Appendf(nil, "line %d\n", i))
	}
	var want []string
	for i := range keptErrors {
		want = append(want, fmt.Sprintf("error %d", 15-keptErrors+i))
	}
	for i := range keptLines - keptErrors {
		want = append(want, fmt.Sprintf("line %d", 50-keptLines+keptErrors+i))
	}
	if diff := cmp.Diff(want, s.quote()); diff != "" {
		t.Error(diff)
	}
}

// explain is what a failed build says.
func explain(failed *client.Vertex, output string, err error) *rollout.Error {
	j := newTold()
	if failed != nil {
		running := *failed
		running.Completed = nil
		j.note(&client.SolveStatus{Vertexes: []*client.Vertex{&running}})
		j.note(&client.SolveStatus{Logs: []*client.VertexLog{{Vertex: failed.Digest, Data: []byte(output)}}})
		j.note(&client.SolveStatus{Vertexes: []*client.Vertex{failed}})
	}
	tag, _ := name.NewTag("r.example/env:1")
	x := explanation{
		err: err, ctx: context.Background(), journal: j.journal, builder: "BuildKit", log: "/log",
		request: Request{Target: tag, Platform: v1.Platform{OS: "linux", Architecture: "arm64"}},
	}
	var e *rollout.Error
	if !errors.As(x.error(), &e) {
		return &rollout.Error{}
	}
	return e
}

func TestFailuresAreExplained(t *testing.T) {
	const metadata, export = "[internal] load metadata for r.example/base:1", "exporting to image"
	for _, c := range []struct {
		step, failure, output string
		reason                rollout.Reason
		says                  string
	}{
		{"[2/3] RUN make", `process "/bin/sh -c make" did not complete successfully: exit code: 2`, "no rule\n", rollout.ReasonBuildFailed, "step \"[2/3] RUN make\": exit code 2; its output ends with\n  | no rule\n"},
		{"[2/3] COPY x /", `failed to calculate checksum of ref a::b: "/x": not found`, "", rollout.ReasonBuildFailed, `"/x": not found`},
		{"[2/3] RUN apt-get", "exit code: 100", "E: Failed to fetch  404  Not Found\n", rollout.ReasonBuildFailed, "404  Not Found"},
		{"[2/3] RUN big", "exit code: 1", "write: No space left on device\n", rollout.ReasonDiskFull, "RUN big"},
		{metadata, "r.example/base:1: not found", "", rollout.ReasonBaseImageMissing, "r.example/base:1"},
		{metadata, "pull access denied, repository does not exist or may require authorization", "", rollout.ReasonRegistryDenied, "r.example/base:1"},
		{metadata, `failed to do request: Head "https://r.example/v2/": dial tcp: lookup r.example: no such host`, "", rollout.ReasonRegistryUnreachable, "no such host"},
		{metadata, "no match for platform in manifest: not found", "", rollout.ReasonWrongPlatform, "linux/arm64"},
		{export, "failed to push r.example/env:1: unexpected status from POST request to https://r.example/v2/: 401 Unauthorized", "", rollout.ReasonRegistryDenied, "r.example"},
		{export, "failed to push r.example/env:1: unexpected status from PUT request to https://r.example/v2/: 400 Bad Request", "", rollout.ReasonRegistryRefused, "r.example"},
		{export, "failed to push r.example/env:1: unexpected status from PUT request to https://r.example/v2/: 500 Internal Server Error", "", rollout.ReasonRegistryUnreachable, "r.example"},
		{export, "failed to write: no space left on device", "", rollout.ReasonDiskFull, "the builder"},
	} {
		e := explain(done(c.step, c.failure), c.output, fmt.Errorf("failed to solve: %s", c.failure))
		if e.Reason != c.reason || !strings.Contains(e.Message, c.says) || !strings.Contains(e.Message, "/log") || e.Hint == "" {
			t.Errorf("%s: %s: is %+v", c.step, c.failure, e)
		}
	}
}

func TestFileModesDoNotCount(t *testing.T) {
	for mode, want := range map[os.FileMode]os.FileMode{
		0o600: 0o644, 0o664: 0o644, 0o700: 0o755, 0o755 | os.ModeSetuid: 0o755,
		os.ModeDir | 0o700: os.ModeDir | 0o755, os.ModeSymlink | 0o755: os.ModeSymlink | 0o777,
	} {
		s := fstypes.Stat{Mode: uint32(mode), Uid: 1, Gid: 2, ModTime: 3}
		plain(&s)
		if os.FileMode(s.Mode) != want || s.Uid != 0 || s.Gid != 0 || s.ModTime != 0 {
			t.Errorf("%v becomes %v of %d:%d at %d", mode, os.FileMode(s.Mode), s.Uid, s.Gid, s.ModTime)
		}
	}
}

// keys is a keychain of one registry.
type keys map[string]authn.AuthConfig

func (k keys) Resolve(r authn.Resource) (authn.Authenticator, error) {
	return authn.FromConfig(k[r.RegistryStr()]), nil
}

func TestCredentialsAreOfTheHost(t *testing.T) {
	k := keys{"index.docker.io": {Username: "hub", Password: "a"}, "r.example:5000": {RegistryToken: "b"}}
	for host, want := range map[string]types.AuthConfig{
		"registry-1.docker.io": {Username: "hub", Password: "a", ServerAddress: "index.docker.io"},
		"r.example:5000":       {RegistryToken: "b", ServerAddress: "r.example:5000"},
		"other.example":        {ServerAddress: "other.example"},
	} {
		got, err := resolve(k, host)
		if err != nil {
			t.Fatal(err)
		}
		got.Auth = "" // the same once more
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: %s", host, diff)
		}
	}
}

func TestEngineTellsDigestOfPush(t *testing.T) {
	tag, err := name.NewTag("r.example/env:1")
	if err != nil {
		t.Fatal(err)
	}
	sum := "sha256:" + strings.Repeat("ab", 32)
	j := newTold()
	got, err := j.pushed(&step{}, strings.NewReader(`{"status":"Pushing","id":"x"}
{"status":"Pushed","id":"x"}
{"progressDetail":{},"aux":{"Tag":"1","Digest":"`+sum+`","Size":528}}`), tag)
	if err != nil || got.String() != sum {
		t.Errorf("is %v, %v", got, err)
	}
	if _, err := j.pushed(&step{}, strings.NewReader(`{"errorDetail":{"message":"denied"},"error":"denied: no"}`), tag); err == nil || !strings.Contains(err.Error(), "denied: no") {
		t.Errorf("a refusal is %v", err)
	}
	if _, err := j.pushed(&step{}, strings.NewReader(`{"status":"Pushed"}`), tag); err == nil {
		t.Error("an answer without a digest is none")
	}
}

func TestNoBuilder(t *testing.T) {
	for _, b := range []Builder{{Address: "unix:///nowhere/buildkitd.sock"}, {Address: "nonsense"}, {}} {
		t.Setenv(HostVariable, "")
		t.Setenv("DOCKER_HOST", "unix:///nowhere/docker.sock")
		dir := t.TempDir()
		if err := os.WriteFile(dir+"/Dockerfile", []byte("FROM scratch\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		tag, err := name.NewTag("r.example/env:1")
		if err != nil {
			t.Fatal(err)
		}
		b.LogDir = t.TempDir()
		_, err = b.Build(t.Context(), Request{ContextDir: dir, Dockerfile: "Dockerfile", Target: tag})
		if rollout.ReasonOf(err) != rollout.ReasonNoBuilder || !strings.Contains(err.Error(), "BUILDKIT_HOST") {
			t.Errorf("%q: %v", b.Address, err)
		}
		if left, err := os.ReadDir(b.LogDir); err != nil || len(left) > 0 {
			t.Errorf("a build that never began leaves %v, %v", left, err)
		}
	}
}

func TestWrongRequests(t *testing.T) {
	tag, err := name.NewTag("r.example/env:1")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.WriteFile(dir+"/Dockerfile", []byte("FROM scratch\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for what, r := range map[string]Request{
		"a Dockerfile that is not there": {ContextDir: dir, Dockerfile: "other", Target: tag},
		"a Dockerfile elsewhere":         {ContextDir: dir, Dockerfile: "../Dockerfile", Target: tag},
		"no target":                      {ContextDir: dir, Dockerfile: "Dockerfile"},
	} {
		if _, err := (Builder{LogDir: dir}).Build(t.Context(), r); rollout.ReasonOf(err) != rollout.ReasonInvalid {
			t.Errorf("%s: %v", what, err)
		}
	}
}
