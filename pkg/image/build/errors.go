package build

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"

	"github.com/moby/buildkit/solver/errdefs"
	"github.com/opencontainers/go-digest"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/sluice-dev/sluice/rollout"
)

// The fields that refusals name.
const (
	fieldTarget      = "registry"
	fieldBase        = "environment.baseImage"
	fieldDockerfile  = "environment.dockerfile"
	fieldEnvironment = "environment"
	fieldPlatform    = "platform"
	fieldBuilder     = "builder"
)

func refuse(reason rollout.Reason, field, hint, format string, args ...any) *rollout.Error {
	return &rollout.Error{Reason: reason, Field: field, Message: fmt.Sprintf(format, args...), Hint: hint}
}

// noBuilder says that a builder cannot be reached.
func noBuilder(which string, err error) error {
	return refuse(rollout.ReasonNoBuilder, fieldBuilder,
		"start a Docker engine, or a buildkitd and set BUILDKIT_HOST to its address, such as unix:///run/buildkit/buildkitd.sock", "%s cannot be reached: %v", which, err)
}

// What texts of BuildKit, containerd and the engine say of registries. Their errors arrive from another process,
// where most of their types are lost.
var (
	saysDenied  = regexp.MustCompile(`(?i)\b40[13]\b|unauthorized|forbidden|denied|insufficient_scope|authorization failed|authentication required|no basic auth credentials|missing username or secret|failed to find supported auth scheme`)
	saysMissing = regexp.MustCompile(`(?i)\bnot found|\b404\b|manifest unknown|name unknown`)
	saysPlain   = regexp.MustCompile(`(?i)HTTP response to HTTPS client|x509: |tls: `)
	saysRefused = regexp.MustCompile(`(?i)unexpected status.*: 4(?:0[05-79]|[13-9]\d)\b`)
	saysNoSpace = regexp.MustCompile(`(?i)no space left on device|disk quota exceeded`)
	saysExit    = regexp.MustCompile(`exit code: (\d+)`)
)

// explanation is what there is to tell a failed build from.
type explanation struct {
	err          error
	ctx          context.Context
	journal      *journal
	request      Request
	builder, log string
	// text is all that the builder says of it, failed the step that it says it of, if any.
	text   string
	failed *step
}

// error says what became of the build, and where its log is.
func (x explanation) error() error {
	if x.ctx.Err() != nil {
		e := refuse(rollout.ReasonInterrupted, fieldEnvironment, "start it again: what was built is in the builder's cache",
			"the build was ended before it was done; its log is %s", x.log)
		return fmt.Errorf("%w (%w)", e, x.ctx.Err())
	}
	var known *rollout.Error
	if errors.As(x.err, &known) {
		return x.err
	}
	var at *errdefs.VertexError
	which := digest.Digest("")
	if errors.As(x.err, &at) {
		which = digest.Digest(at.Digest)
	}
	x.failed = x.journal.failed(which)
	x.text = x.err.Error()
	if x.failed != nil {
		x.text += "\n" + x.failed.err
	}
	e := x.refusal()
	if len(x.tail()) > 0 {
		e.Message += "; its output ends with\n  | " + strings.Join(x.tail(), "\n  | ") + "\n"
	} else {
		e.Message += "; "
	}
	e.Message += "its log is " + x.log
	return e
}

func (x explanation) tail() []string {
	if x.failed == nil {
		return nil
	}
	return x.failed.quote()
}

func (x explanation) is(prefixes ...string) bool {
	for _, p := range prefixes {
		if x.failed != nil && strings.HasPrefix(x.failed.name, p) {
			return true
		}
	}
	return false
}

// cause is what failed in one line, without how BuildKit came to it.
func (x explanation) cause() string {
	text := x.err.Error()
	if x.failed != nil && x.failed.err != "" {
		text = x.failed.err
	}
	text = strings.TrimPrefix(text, "failed to solve: ")
	text = strings.TrimPrefix(text, "rpc error: code = Unknown desc = ")
	first, _, _ := strings.Cut(text, "\n")
	return first
}

func (x explanation) refusal() *rollout.Error {
	target := x.request.Target
	switch {
	case saysNoSpace.MatchString(x.text) || saysNoSpace.MatchString(strings.Join(x.tail(), "\n")):
		return refuse(rollout.ReasonDiskFull, fieldBuilder, "free some where "+x.builder+" keeps its data, such as by `docker builder prune` or `buildctl prune`",
			"the builder has no disk space left%s: %s", x.where(), x.cause())
	case x.failed == nil && status.Code(x.err) == codes.Unavailable:
		return refuse(rollout.ReasonNoBuilder, fieldBuilder, "see whether it runs, and try again", "%s went away during the build: %s", x.builder, x.cause())
	case x.is(stepMetadata, stepSyntax):
		return x.pulling()
	case x.is(stepExport) || strings.Contains(x.text, "failed to push"):
		return x.pushing(target.Name(), target.RegistryStr())
	}
	hint := "correct the step; the log has all of its output"
	if x.failed == nil {
		hint = "correct the Dockerfile"
	}
	how := x.cause()
	if code := saysExit.FindStringSubmatch(how); code != nil {
		how = "exit code " + code[1]
	}
	return refuse(rollout.ReasonBuildFailed, fieldEnvironment, hint, "the image cannot be built%s: %s", x.where(), how)
}

// where names the step that failed, and its line.
func (x explanation) where() string {
	var out string
	if x.failed != nil {
		out = fmt.Sprintf(": step %q", x.failed.name)
	}
	for _, s := range errdefs.Sources(x.err) {
		if s.Info == nil || len(s.Ranges) == 0 || s.Ranges[0].Start == nil {
			continue
		}
		return fmt.Sprintf("%s, line %d of %s", out, s.Ranges[0].Start.Line, s.Info.Filename)
	}
	return out
}

func (x explanation) pulling() *rollout.Error {
	name := strings.TrimPrefix(strings.TrimPrefix(x.failed.name, stepMetadata), stepSyntax)
	host := "its registry"
	switch {
	case strings.Contains(x.text, "no match for platform"):
		return refuse(rollout.ReasonWrongPlatform, fieldPlatform, "use an image for it, or ask for a platform that the image is for", "%s has nothing for %s", name, x.request.Platform.String())
	case saysDenied.MatchString(x.text):
		return refuse(rollout.ReasonRegistryDenied, fieldBase, "log in to the registry with `docker login` (or the like: its credential store is read); some registries say this of images that are not there",
			"%s does not allow to read %s: %s", host, name, x.cause())
	case saysMissing.MatchString(x.text):
		return refuse(rollout.ReasonBaseImageMissing, fieldBase, "check its name and tag", "%s does not have %s: %s", host, name, x.cause())
	}
	return refuse(rollout.ReasonRegistryUnreachable, fieldBase, x.reach(), "%s cannot be read from %s: %s", name, host, x.cause())
}

func (x explanation) pushing(name, host string) *rollout.Error {
	switch {
	case saysDenied.MatchString(x.text):
		return refuse(rollout.ReasonRegistryDenied, fieldTarget, fmt.Sprintf("log in with `docker login %s` (or the like: its credential store is read), and check that the account may do it", host),
			"push %s: %s does not allow it: %s", name, host, x.cause())
	case saysRefused.MatchString(x.text) || saysMissing.MatchString(x.text):
		return refuse(rollout.ReasonRegistryRefused, fieldTarget, "the registry's own message says what it wants", "push %s: %s refuses it: %s", name, host, x.cause())
	}
	return refuse(rollout.ReasonRegistryUnreachable, fieldTarget, x.reach(), "push %s: %s cannot be reached, or fails: %s", name, host, x.cause())
}

func (x explanation) reach() string {
	if saysPlain.MatchString(x.text) {
		return "check its certificate; a registry that speaks plain HTTP has to be named as insecure, and one of base images in the builder's own settings"
	}
	return "check the address, and that the builder can reach it; then try again"
}
