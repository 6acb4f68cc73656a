package environment

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	"github.com/moby/buildkit/frontend/dockerfile/shell"
)

// lastStep is put behind a step to see whether the step ends where its text does. Its own end is a
// line that is no continuation.
const lastStep = "STOPSIGNAL sluice-end-of-step"

// unknownValue stands for a variable whose value only the build knows. No text has it.
const unknownValue = "\x00"

var (
	commitPattern = regexp.MustCompile(`^(?:[0-9a-f]{40}|[0-9a-f]{64})$`)
	scpPattern    = regexp.MustCompile(`^[A-Za-z0-9_.-]+@[A-Za-z0-9.-]+:`)
)

// unixLines makes line ends LF alone.
func unixLines(s string) string { return strings.ReplaceAll(s, "\r\n", "\n") }

// loadStep reads one of the manifest's docker steps and what it copies.
func (l *loader) loadStep(ctx context.Context, at place, text string) error {
	const hint = "write it as a line of a Dockerfile, such as `RUN apt-get update && apt-get install -y libgomp1`"
	text = unixLines(text)
	if strings.ContainsRune(text, 0) {
		return at.invalid("remove it", "holds a NUL character")
	}
	// Behind another line, so that a directive (# escape=…) is the comment that it will be in the image's Dockerfile.
	whole := "FROM scratch\n" + text + "\n" + lastStep + "\n"
	parsed, err := parser.Parse(strings.NewReader(whole))
	if err != nil {
		return at.invalid(hint, "is not a docker step: %v", cleaned(err))
	}
	nodes := parsed.AST.Children
	if last := nodes[len(nodes)-1]; last.Original != lastStep || last.StartLine != last.EndLine {
		return at.invalid("remove the backslash at its end, or write what follows it", "does not end where its text ends")
	}
	stages, _, err := instructions.Parse(parsed.AST, nil)
	if err != nil {
		return at.invalid(hint, "is not a docker step: %v", cleaned(err))
	}
	if len(stages) > 1 {
		return at.invalid("use environment.dockerfile for a build of several stages", "has a FROM, but steps go on from the base image")
	}
	commands := stages[0].Commands
	if len(commands) == 1 {
		return at.invalid(hint, "has no instruction")
	}
	r := references{loader: l, field: at.field, escape: parsed.EscapeToken}
	for _, c := range commands[:len(commands)-1] {
		if err := r.command(ctx, at, c); err != nil {
			return err
		}
	}
	for _, n := range nodes {
		if err := checkInstruction(at, n); err != nil {
			return err
		}
	}
	l.steps = append(l.steps, text)
	return nil
}

// loadDockerfile reads the project's own Dockerfile and its build context, the whole project.
func (l *loader) loadDockerfile(ctx context.Context, name string) error {
	at := place{field: fieldDockerfile}
	clean, err := at.local(name)
	if err != nil {
		return err
	}
	data, err := l.t.read(at, clean)
	if err != nil {
		return err
	}
	l.dockerfile = &ownDockerfile{path: clean, text: unixLines(string(data))}
	if err := l.t.readIgnore(clean+".dockerignore", ".dockerignore"); err != nil {
		return err
	}
	inFile := func(line int) place { return place{file: clean, line: line} }
	parsed, err := parser.Parse(strings.NewReader(l.dockerfile.text))
	if err != nil {
		return inFile(lineOf(err)).invalid("", "is not a Dockerfile: %v", cleaned(err))
	}
	stages, args, err := instructions.Parse(parsed.AST, nil)
	if err != nil {
		return inFile(lineOf(err)).invalid("", "is not a Dockerfile: %v", cleaned(err))
	}
	if len(stages) == 0 {
		return inFile(0).invalid("begin it with `FROM IMAGE`", "has no FROM")
	}
	r := references{loader: l, field: fieldDockerfile, escape: parsed.EscapeToken, own: true}
	if err := r.syntax(ctx); err != nil {
		return err
	}
	r.globals(args)
	for _, n := range parsed.AST.Children {
		if err := checkInstruction(inFile(n.StartLine), n); err != nil {
			return err
		}
	}
	for _, s := range stages {
		if err := r.stage(ctx, inFile(startLine(s.Location)), s); err != nil {
			return err
		}
		for _, c := range s.Commands {
			if err := r.command(ctx, inFile(startLine(c.Location())), c); err != nil {
				return err
			}
		}
	}
	_, err = l.t.add(ctx, l.context, at, ".", nil)
	return err
}

// checkInstruction refuses secrets in an instruction: the image's history has it.
func checkInstruction(at place, n *parser.Node) error {
	if err := checkSecrets(at, n.Original); err != nil {
		return err
	}
	for _, h := range n.Heredocs {
		if err := checkSecrets(at, h.Content); err != nil {
			return err
		}
	}
	return nil
}

// syntax finds the image that reads the Dockerfile (`# syntax=IMAGE`): what its instructions do depends on it.
func (r *references) syntax(ctx context.Context) error {
	ref, _, _, found := parser.DetectSyntax([]byte(r.dockerfile.text))
	if !found || pinned(ref) {
		return nil
	}
	return r.named(ctx, r.field, ref)
}

func startLine(r []parser.Range) int {
	if len(r) == 0 {
		return 0
	}
	return r[0].Start.Line
}

// lineOf is the line that BuildKit's error is about, 0 if it does not say.
func lineOf(err error) int {
	var located *parser.LocationError
	if errors.As(err, &located) && len(located.Locations) > 0 {
		return startLine(located.Locations[0])
	}
	return 0
}

var parseErrorPrefix = regexp.MustCompile(`^dockerfile parse error on line \d+: `)

// cleaned is the parser's message without the line, which counts lines of ours as well.
func cleaned(err error) string { return parseErrorPrefix.ReplaceAllString(err.Error(), "") }

// references finds what the instructions of one step or Dockerfile refer to.
type references struct {
	*loader
	field  string
	escape rune
	// own says that it is the project's Dockerfile, whose whole context counts.
	own bool
	// stages that stand before, by name in lower case.
	stages []string
	env    []string // global arguments, NAME=VALUE
}

// buildArgs are the variables that a Dockerfile's words may have.
type buildArgs struct {
	known []string // NAME=VALUE; the last one counts
	// others gives variables that are not known: whether the build has them.
	others func(name string) bool
}

// Get implements shell.EnvGetter.
func (b buildArgs) Get(name string) (string, bool) {
	for _, kv := range slices.Backward(b.known) {
		if is, value, _ := strings.Cut(kv, "="); is == name {
			return value, true
		}
	}
	if b.others(name) {
		return unknownValue, true
	}
	return "", false
}

// Keys implements shell.EnvGetter.
func (b buildArgs) Keys() []string {
	var out []string
	for _, kv := range b.known {
		name, _, _ := strings.Cut(kv, "=")
		out = append(out, name)
	}
	return out
}

// expand gives a word of an instruction as BuildKit reads it, without quotes. Its variables can come from the base
// image, so all of them are unknownValue.
func (r *references) expand(word string) (string, error) {
	out, _, err := shell.NewLex(r.escape).ProcessWord(word, buildArgs{others: func(string) bool { return true }})
	return out, err
}

// spelt stands for a variable by its name.
type spelt struct{}

// Get implements shell.EnvGetter.
func (spelt) Get(name string) (string, bool) { return "$" + name, true }

// Keys implements shell.EnvGetter.
func (spelt) Keys() []string { return nil }

// spell gives a source for messages: as expand does, but with its variables' names, and without credentials.
func (r *references) spell(word string) string {
	if out, _, err := shell.NewLex(r.escape).ProcessWord(word, spelt{}); err == nil {
		word = out
	}
	return shown(withoutUser(word))
}

// expandGlobal gives a word of FROM, whose variables are arguments with defaults and what BuildKit says of
// platforms; that of the builder's own is not known.
func (r *references) expandGlobal(word string) (string, error) {
	out, _, err := shell.NewLex(r.escape).ProcessWord(word, buildArgs{known: r.env, others: func(name string) bool {
		return slices.Contains([]string{"BUILDPLATFORM", "BUILDOS", "BUILDARCH", "BUILDVARIANT"}, name)
	}})
	return out, err
}

// globals are the arguments that stand before the first FROM, with their defaults.
func (r *references) globals(args []instructions.ArgCommand) {
	parts := strings.SplitN(r.platform, "/", 3)
	r.env = append(r.env, "TARGETPLATFORM="+r.platform, "TARGETOS="+parts[0], "TARGETARCH="+parts[1])
	variant := ""
	if len(parts) > 2 {
		variant = parts[2]
	}
	r.env = append(r.env, "TARGETVARIANT="+variant)
	for _, a := range args {
		for _, kv := range a.Args {
			if kv.Value == nil {
				continue
			}
			if v, err := r.expandGlobal(*kv.Value); err == nil {
				r.env = append(r.env, kv.Key+"="+v)
			}
		}
	}
}

// stage finds the image that a stage begins with.
func (r *references) stage(ctx context.Context, at place, s instructions.Stage) error {
	defer func() { r.stages = append(r.stages, strings.ToLower(s.Name)) }()
	ref, err := r.expandGlobal(s.BaseName)
	if err != nil {
		return at.invalid("", "FROM %s cannot be read: %v", s.BaseName, err)
	}
	if ref == "" || strings.Contains(ref, unknownValue) {
		return at.invalid("give its ARG a default before the first FROM, or write the image out", "FROM %s: which image it is, is not known before the build", s.BaseName)
	}
	if ref == "scratch" || slices.Contains(r.stages, strings.ToLower(ref)) || pinned(ref) {
		return nil
	}
	if s.Platform != "" {
		platform, err := r.expandGlobal(s.Platform)
		if err != nil {
			return at.invalid("", "--platform=%s cannot be read: %v", s.Platform, err)
		}
		if normal, err := normalPlatform(platform); err != nil || normal != r.platform {
			return at.invalid("write the image as NAME@sha256:…", "FROM %s is for another platform, so what it names is not looked up", s.BaseName)
		}
	}
	return r.named(ctx, r.field, ref)
}

func pinned(ref string) bool {
	_, digest, found := strings.Cut(ref, "@")
	return found && digestPattern.MatchString(digest)
}

// from finds the image that --from names, if it is no stage.
func (r *references) from(ctx context.Context, at place, name string) error {
	if strings.ContainsAny(name, "$") {
		return at.invalid("write the stage or image out", "--from=%s: which image it is, is not known before the build", name)
	}
	if _, err := strconv.Atoi(name); err == nil {
		if r.own {
			return nil
		}
		return at.invalid("name an image", "--from=%s names a stage, but steps have none before them", name)
	}
	if strings.EqualFold(name, micromambaStage) && !r.own {
		return at.invalid("name an image", "--from=%s is a name of Sluice's own", name)
	}
	if name == "scratch" || slices.Contains(r.stages, strings.ToLower(name)) || pinned(name) {
		return nil
	}
	return r.named(ctx, r.field, name)
}

// command finds what one instruction refers to.
func (r *references) command(ctx context.Context, at place, c instructions.Command) error {
	switch c := c.(type) {
	case *instructions.AddCommand:
		return r.sources(ctx, at, "ADD", c.SourcePaths, c.Checksum)
	case *instructions.CopyCommand:
		if c.From != "" {
			return r.from(ctx, at, c.From)
		}
		sources := c.SourcePaths
		if c.Parents && !r.own {
			sources = wholeTrees(sources)
		}
		return r.sources(ctx, at, "COPY", sources, "")
	case *instructions.RunCommand:
		return r.mounts(ctx, at, c)
	case *instructions.OnbuildCommand:
		return r.trigger(ctx, at, c)
	}
	return nil
}

// wholeTrees gives instead of sources of COPY --parents with ** in them, which there stands for any number of directories, what
// they choose from: all below.
func wholeTrees(sources []string) []string {
	out := slices.Clone(sources)
	for i, src := range out {
		parts := strings.Split(src, "/")
		if at := slices.IndexFunc(parts, func(p string) bool { return strings.Contains(p, "**") }); at >= 0 {
			out[i] = cmp.Or(strings.Join(parts[:at], "/"), ".")
		}
	}
	return out
}

// trigger finds what an instruction refers to that runs in stages which begin with this one. Only those of the project's own
// Dockerfile do: nothing is built on an environment that has steps.
func (r *references) trigger(ctx context.Context, at place, c *instructions.OnbuildCommand) error {
	if !r.own {
		return nil
	}
	parsed, err := parser.Parse(strings.NewReader(c.Expression))
	if err != nil || len(parsed.AST.Children) != 1 {
		return at.invalid("write one instruction behind ONBUILD", "ONBUILD %s cannot be read", c.Expression)
	}
	command, err := instructions.ParseCommand(parsed.AST.Children[0])
	if err != nil {
		return at.invalid("write one instruction behind ONBUILD", "ONBUILD cannot be read: %v", cleaned(err))
	}
	return r.command(ctx, at, command)
}

// mounts finds what RUN --mount=type=bind reads.
func (r *references) mounts(ctx context.Context, at place, c *instructions.RunCommand) error {
	if len(instructions.GetMounts(c)) == 0 {
		return nil
	}
	if err := c.Expand(r.expand); err != nil {
		return at.invalid("write it without variables", "RUN --mount cannot be read: %v", err)
	}
	for _, m := range instructions.GetMounts(c) {
		if m.From != "" {
			if err := r.from(ctx, at, m.From); err != nil {
				return err
			}
			continue
		}
		if m.Type != instructions.MountTypeBind || r.own {
			continue
		}
		if strings.Contains(m.Source, unknownValue) {
			return at.invalid("write the path out", "RUN --mount: a source with a variable is not known before the build")
		}
		if err := r.copied(ctx, at, []string{cmp.Or(m.Source, ".")}, "RUN --mount"); err != nil {
			return err
		}
	}
	return nil
}

// sources finds what ADD or COPY reads from the build context, and refuses what is not known by content.
func (r *references) sources(ctx context.Context, at place, instruction string, words []string, checksum string) error {
	var local []string
	for _, word := range words {
		src, err := r.expand(word)
		if err != nil {
			return at.invalid("", "%s %s cannot be read: %v", instruction, r.spell(word), err)
		}
		switch kind := remoteKind(src); {
		case kind != "" && instruction == "COPY":
			return at.invalid("use ADD --checksum=…", "COPY %s: COPY reads no %s", r.spell(word), kind)
		case kind == "address" && !digestPattern.MatchString(checksum):
			return at.invalid("add --checksum=sha256:… with the file's SHA-256, or keep the file in the project and COPY it",
				"ADD %s: its content is not known, so it cannot count", r.spell(word))
		case kind == "git repository" && !commitPattern.MatchString(checksum):
			return at.invalid("add --checksum= with the full hash of the commit, or keep the files in the project and COPY them",
				"ADD %s: its content is not known, so it cannot count", r.spell(word))
		case kind != "":
			// They would be in the image's history. One with a variable in it may be none yet.
			if u, err := url.Parse(src); err == nil && u.User != nil {
				if err := checkURL(at, src); err != nil {
					return err
				}
			}
		case !r.own && strings.Contains(src, unknownValue):
			return at.invalid("write the path out", "%s %s: a source with a variable is not known before the build", instruction, r.spell(word))
		case instruction == "ADD" && mayBecomeRemote(src):
			return at.invalid("write it out, or begin it with ./ if it is a file of the project", "ADD %s: a source with a variable may be an address, whose content is not known", r.spell(word))
		case !r.own:
			local = append(local, src)
		}
	}
	if len(local) == 0 {
		return nil
	}
	return r.copied(ctx, at, local, instruction)
}

// remoteKind says whether ADD would fetch a source, and what it is then: "address" or "git repository".
func remoteKind(src string) string {
	scheme, rest, isURL := strings.Cut(src, "://")
	switch {
	case !isURL && scpPattern.MatchString(src):
		return "git repository"
	case !isURL:
		return ""
	case scheme == "git" || scheme == "ssh":
		return "git repository"
	}
	p, fragment, _ := strings.Cut(rest, "#")
	p, query, _ := strings.Cut(p, "?")
	if strings.HasSuffix(p, ".git") || (fragment != "" || query != "") && strings.Contains(p, ".git") {
		return "git repository"
	}
	return "address"
}

// remoteBegins are the beginnings of sources that BuildKit fetches.
var remoteBegins = []string{"http://", "https://", "git://", "ssh://", "git@", "github.com/"}

// mayBecomeRemote says of a source that is local as it stands whether a variable could make it a remote one: where it may stand for
// what such a source begins with, or between a user and a host. That a variable holds all of these itself is left to who writes such a Dockerfile.
func mayBecomeRemote(src string) bool {
	before, after, variable := strings.Cut(src, unknownValue)
	first, _, slash := strings.Cut(before, "/")
	switch {
	case !variable:
		return false
	case slices.ContainsFunc(remoteBegins, func(begin string) bool { return strings.HasPrefix(begin, before) }):
		return true
	case strings.ContainsAny(first, ":@"):
		return true
	}
	return !slash && (strings.Contains(after, "@") || strings.Contains(after, "://"))
}

// copied adds what sources name in the build context. At least one of them must name something; one
// without wildcards always.
func (r *references) copied(ctx context.Context, at place, sources []string, instruction string) error {
	total := 0
	for _, src := range sources {
		p := strings.TrimLeft(src, "/")
		if p == "" {
			p = "."
		}
		if strings.Contains(p, `\`) {
			return at.invalid("rename the file, or COPY its directory", "%s %s: a backslash in a source is not read alike everywhere", instruction, shown(src))
		}
		p, ok := localPath(p)
		if !ok {
			return at.invalid("keep it in the project and write its path from there", "%s %s leaves the project, which is the build context", instruction, shown(src))
		}
		paths, wild := []string{p}, strings.ContainsAny(p, `*?[`)
		if wild {
			var err error
			if paths, err = r.t.glob(at, p); err != nil {
				return err
			}
		}
		for _, p := range paths {
			n, err := r.t.add(ctx, r.context, at, p, nil)
			if wild && errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err != nil {
				return err
			}
			if n == 0 && !wild {
				why := "holds no files"
				if out, err := r.t.out(p); err == nil && out {
					why = "stays out of the build context by " + cmp.Or(r.t.ignoreFile, "its name")
				}
				return at.invalid("add files to it, or take the pattern out that keeps them out", "%s %s: %s %s", instruction, shown(src), shown(path.Clean(p)), why)
			}
			total += n
		}
	}
	if total == 0 {
		return at.invalid("check the pattern, and that no .dockerignore keeps the files out", "%s %s: there are no such files in the project", instruction, strings.Join(sources, " "))
	}
	return nil
}

// Dockerfile is what the image is built with: made from the definition, or the project's own as it is
// but for line ends. The same definition gives the same bytes; so does another one of the same hash, but for the
// names of files, and for which program installs Conda packages if that came to be known.
func (d *Definition) Dockerfile() []byte {
	if d.dockerfile != nil {
		return []byte(d.dockerfile.text)
	}
	var b bytes.Buffer
	tool := d.condaTool()
	if tool == toolBrought {
		fmt.Fprintf(&b, "FROM %s AS %s\n", d.micromamba, micromambaStage)
	}
	name, _, _ := strings.Cut(d.baseRef, "@")
	fmt.Fprintf(&b, "FROM %s@%s\nUSER root\n", name, d.base.Digest)
	for _, s := range d.steps {
		b.WriteString(strings.TrimRight(s, "\n"))
		b.WriteByte('\n')
	}
	d.installPackages(&b, tool)
	return b.Bytes()
}
