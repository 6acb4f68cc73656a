package environment

import (
	"cmp"
	"context"
	"errors"
	"io/fs"
	"net/url"
	"path"
	"regexp"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/sluice-dev/sluice/rollout"
)

// maxRequirementFiles bounds how many files one definition names.
const maxRequirementFiles = 1000

// pipKind is what a line of requirements is.
type pipKind string

const (
	pipRequirement pipKind = "requirement"
	pipEditable    pipKind = "editable"
	pipConstraint  pipKind = "constraint"
	pipOption      pipKind = "option"
)

// pipLine is a line of requirements that counts; lines of files that it names stand in its place.
type pipLine struct {
	at   place
	kind pipKind
	// text with the white space that counts. Of an option NAME or NAME=VALUE, NAME its long one.
	text string
	// local is the path of a package in the project, "" if it is none.
	local string
	// with are the options of this requirement alone, as text.
	with []string
}

func (l pipLine) records() []record {
	out := []record{{string(l.kind), []string{l.text}}}
	for _, w := range l.with {
		out = append(out, record{"with", []string{w}})
	}
	return out
}

// pipFlag is an option that a requirements file may have (pip 25, reference "Requirements File Format").
type pipFlag struct {
	long string
	// value says that it has one.
	value bool
	// each says that it belongs to one requirement.
	each bool
}

// pipFlags by every name that pip gives them.
func pipFlags() map[string]pipFlag {
	out := map[string]pipFlag{}
	for _, f := range []struct {
		pipFlag
		also []string
	}{
		{pipFlag{long: "--index-url", value: true}, []string{"-i", "--pypi-url"}},
		{pipFlag{long: "--extra-index-url", value: true}, nil},
		{pipFlag{long: "--no-index"}, nil},
		{pipFlag{long: "--constraint", value: true}, []string{"-c"}},
		{pipFlag{long: "--requirement", value: true}, []string{"-r"}},
		{pipFlag{long: "--editable", value: true}, []string{"-e"}},
		{pipFlag{long: "--find-links", value: true}, []string{"-f"}},
		{pipFlag{long: "--no-binary", value: true}, nil},
		{pipFlag{long: "--only-binary", value: true}, nil},
		{pipFlag{long: "--prefer-binary"}, nil},
		{pipFlag{long: "--require-hashes"}, nil},
		{pipFlag{long: "--pre"}, nil},
		{pipFlag{long: "--trusted-host", value: true}, nil},
		{pipFlag{long: "--use-feature", value: true}, nil},
		{pipFlag{long: "--hash", value: true, each: true}, nil},
		{pipFlag{long: "--global-option", value: true, each: true}, nil},
		{pipFlag{long: "--config-settings", value: true, each: true}, []string{"-C", "--config-setting"}},
	} {
		out[f.long] = f.pipFlag
		for _, name := range f.also {
			out[name] = f.pipFlag
		}
	}
	return out
}

// pipReader reads requirements as pip does, and what they name.
type pipReader struct {
	*loader
	flags map[string]pipFlag
	field string
	// cwd is the directory that pip runs in, from the project's root: local packages are named from there.
	cwd string
	// open are the files being read, outermost first; files how many there were.
	open  []string
	files int
}

func (l *loader) pipReader(field, cwd string) *pipReader {
	return &pipReader{loader: l, flags: pipFlags(), field: field, cwd: cwd}
}

// loadRequirements reads the project's requirements file.
func (l *loader) loadRequirements(ctx context.Context, name string) error {
	at := place{field: fieldRequirements}
	p, err := at.local(name)
	if err != nil {
		return err
	}
	if err := l.pipReader(fieldRequirements, ".").file(ctx, at, p, pipRequirement); err != nil {
		return err
	}
	if len(l.pip) == 0 {
		l.sources, l.sourceLinks, l.packages = nil, nil, fileSet{} // as if there were none
		return nil
	}
	l.requirements = p
	return nil
}

// file reads a file of requirements or constraints.
func (r *pipReader) file(ctx context.Context, at place, p string, kind pipKind) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if r.t == nil {
		return nil
	}
	to, err := r.t.resolve(at, p)
	if err != nil {
		return err
	}
	if i := slices.Index(r.open, to.path); i >= 0 {
		return at.invalid("take one of the -r or -c out", "%s names itself, by way of %s", to.path, strings.Join(append(slices.Clone(r.open[i:]), to.path), " → "))
	}
	if r.files++; r.files > maxRequirementFiles {
		return at.invalid("put their lines into fewer files", "more than %d files are named", maxRequirementFiles)
	}
	data, err := r.t.readResolved(at, p, to)
	if err != nil {
		return err
	}
	r.sourceLinks = append(r.sourceLinks, to.links...)
	if !slices.ContainsFunc(r.sources, func(s source) bool { return s.path == to.path }) {
		r.sources = append(r.sources, source{to.path, data})
	}
	r.open = append(r.open, to.path)
	defer func() { r.open = r.open[:len(r.open)-1] }()
	lines, err := pipLines(place{file: p, field: r.field}, string(data))
	if err != nil {
		return err
	}
	for _, line := range lines {
		if err := r.line(ctx, line.at, line.text, dirOf(p), kind); err != nil {
			return err
		}
	}
	return nil
}

// dirOf is the directory of a path, as a prefix. It is not cleaned: what .. means depends on links.
func dirOf(p string) string { return p[:strings.LastIndexByte(p, '/')+1] }

// numbered is a logical line and where it begins.
type numbered struct {
	at   place
	text string
}

// comment is pip's: at the line's beginning or behind white space, also that of other scripts (Python's \s).
var comment = regexp.MustCompile(`(^|[\t\x{85}\p{Z}]+)#.*$`)

// pipLines splits a file into its logical lines: continuations are joined, comments and empty lines go
// (pip, req_file.py: join_lines, ignore_comments).
func pipLines(at place, text string) ([]numbered, error) {
	text = strings.TrimPrefix(text, "\ufeff")
	text = strings.ReplaceAll(unixLines(text), "\r", "\n")
	if !utf8.ValidString(text) {
		return nil, at.invalid("save it as UTF-8", "is not UTF-8")
	}
	var out []numbered
	var parts []string
	first := 0
	flush := func() error {
		if parts == nil {
			return nil
		}
		line := strings.TrimSpace(comment.ReplaceAllString(strings.Join(parts, ""), ""))
		parts = nil
		at.line = first
		if strings.HasSuffix(line, `\`) {
			return at.invalid("put nothing behind it", "a backslash goes on in the next line only as the last character")
		}
		if line != "" {
			out = append(out, numbered{at, line})
		}
		return nil
	}
	for i, line := range strings.Split(text, "\n") {
		at.line = i + 1
		if c := strings.IndexFunc(line, func(r rune) bool { return r != '\t' && unicode.IsControl(r) || r == '\u2028' || r == '\u2029' }); c >= 0 {
			return nil, at.invalid("remove it", "holds a control character")
		}
		if parts == nil {
			first = i + 1
		}
		isComment := strings.HasPrefix(strings.TrimLeftFunc(line, unicode.IsSpace), "#")
		if isComment {
			line = " " + line // so that it is one even behind what it continues
		}
		if !isComment && strings.HasSuffix(line, `\`) {
			parts = append(parts, strings.Trim(line, `\`))
			continue
		}
		parts = append(parts, line)
		if err := flush(); err != nil {
			return nil, err
		}
	}
	return out, flush()
}

var pipVariable = regexp.MustCompile(`\$\{[A-Z0-9_]+\}`)

// line reads one logical line; dir is the directory of the file that has it.
func (r *pipReader) line(ctx context.Context, at place, text, dir string, kind pipKind) error {
	if v := pipVariable.FindString(text); v != "" {
		return at.invalid("write its value out; credentials belong into a mirror or proxy that needs none", "the value of %s is not in the project, so it cannot count", v)
	}
	isOption := func(w string) bool { return strings.HasPrefix(w, "-") }
	words := strings.Split(text, " ") // not Fields: white space counts in an option's quotation marks
	n := slices.IndexFunc(words, isOption)
	if n < 0 {
		n = len(words)
	}
	plain := strings.Fields(strings.Join(words[:n], " "))
	if i := slices.IndexFunc(plain, isOption); i >= 0 {
		return at.invalid("write a space before it", "pip reads no option behind a tabulator: %s", plain[i])
	}
	requirement := strings.Join(plain, " ")
	options, err := splitOptions(at, strings.Join(words[n:], " "))
	if err != nil {
		return err
	}
	var with []string
	var own []option
	for i := 0; i < len(options); i++ {
		o, used, err := r.option(at, options[i:])
		if err != nil {
			return err
		}
		i += used - 1
		if o.each {
			if err := checkSecrets(at, o.value); err != nil {
				return err
			}
			with = append(with, o.String())
		} else {
			own = append(own, o)
		}
	}
	if requirement != "" {
		if len(own) > 0 {
			return at.invalid("write it on a line of its own", "%s is no option of a single requirement", own[0].long)
		}
		return r.requirement(ctx, at, requirement, kind, with)
	}
	for _, o := range own {
		switch o.long {
		case "--requirement", "--constraint", "--editable":
			if len(own) > 1 || len(with) > 0 && o.long != "--editable" {
				return at.invalid("write each on a line of its own", "%s stands with other options", o.long)
			}
		}
		switch o.long {
		case "--requirement", "--constraint":
			if strings.Contains(o.value, "://") || strings.HasPrefix(o.value, "file:") {
				return at.invalid("put the file into the project", "%s %s: its content is not known, so it cannot count", o.long, withoutUser(o.value))
			}
			next := pipRequirement // as in pip, in constraints too
			if o.long == "--constraint" {
				next = pipConstraint
			}
			if path.IsAbs(o.value) {
				return at.refuse(rollout.ReasonUnsafeFile, "keep what the environment needs inside the project", "%s leaves the project", shown(o.value))
			}
			return r.file(ctx, at, dir+o.value, next)
		case "--editable":
			return r.editable(ctx, at, o.value, with)
		}
		if len(with) > 0 {
			return at.invalid("write it behind a requirement", "%s stands without a requirement", with[0])
		}
		if err := r.global(ctx, at, o, dir); err != nil {
			return err
		}
	}
	if len(own) == 0 {
		return at.invalid("write it behind a requirement", "%s stands without a requirement", with[0])
	}
	return nil
}

// option is one with its value.
type option struct {
	pipFlag
	value string
}

// String is NAME or NAME=VALUE.
func (o option) String() string {
	if !o.pipFlag.value {
		return o.long
	}
	return o.long + "=" + o.value
}

// option reads the first of the words, and the next if it is its value.
func (r *pipReader) option(at place, words []string) (option, int, error) {
	name, value, has := strings.Cut(words[0], "=")
	if !strings.HasPrefix(words[0], "--") && len(words[0]) > 2 {
		// -rFILE
		name, value, has = words[0][:2], words[0][2:], true
	}
	f, known := r.flags[name]
	switch {
	case !known && !strings.HasPrefix(name, "-"):
		return option{}, 0, at.invalid("write one requirement a line, its options behind it", "%q stands behind an option", shown(name))
	case !known:
		return option{}, 0, at.invalid("use options that pip knows in requirements files, in full", "the option %s is not known", shown(name))
	case !f.value && has:
		return option{}, 0, at.invalid("write it without a value", "the option %s has no value", name)
	case !f.value:
		return option{f, ""}, 1, nil
	case has && value != "":
		return option{f, value}, 1, nil
	case has || len(words) < 2:
		return option{}, 0, at.invalid("give it one", "the option %s has no value", name)
	}
	return option{f, words[1]}, 2, nil
}

// splitOptions splits as a POSIX shell does, which pip's shlex follows.
func splitOptions(at place, s string) ([]string, error) {
	var out []string
	var word strings.Builder
	in, quote := false, rune(0)
	runes := []rune(s)
	for i := 0; i < len(runes); i++ {
		c := runes[i]
		switch {
		case quote == '\'' && c != '\'', quote == '"' && c != '"' && c != '\\':
			word.WriteRune(c)
		case quote != 0 && c == quote:
			quote = 0
		case c == '\\':
			if i+1 == len(runes) {
				return nil, at.invalid("remove it", "ends in a backslash")
			}
			i++
			if quote == '"' && runes[i] != '"' && runes[i] != '\\' {
				word.WriteRune('\\')
			}
			word.WriteRune(runes[i])
			in = true
		case c == '\'' || c == '"':
			quote, in = c, true
		case c == ' ' || c == '\t':
			if in {
				out = append(out, word.String())
				word.Reset()
				in = false
			}
		default:
			word.WriteRune(c)
			in = true
		}
	}
	if quote != 0 {
		return nil, at.invalid("close it", "a quotation mark is not closed")
	}
	if in {
		out = append(out, word.String())
	}
	return out, nil
}

// global notes an option of the whole installation.
func (r *pipReader) global(ctx context.Context, at place, o option, dir string) error {
	switch o.long {
	case "--index-url", "--extra-index-url":
		if err := checkWeb(at, o); err != nil {
			return err
		}
	case "--find-links":
		if strings.Contains(o.value, "://") || strings.HasPrefix(o.value, "file:") {
			if err := checkWeb(at, o); err != nil {
				return err
			}
			break
		}
		if path.IsAbs(o.value) {
			return at.refuse(rollout.ReasonUnsafeFile, "keep what the environment needs inside the project", "%s leaves the project", shown(o.value))
		}
		// As in pip: from the file's directory if it is there, else from where pip runs.
		for _, from := range []string{dir, r.cwd + "/"} {
			n, err := r.local(ctx, at, from+o.value)
			if errors.Is(err, fs.ErrNotExist) && from == dir {
				continue
			}
			if err != nil {
				return err
			}
			if n == 0 {
				return at.invalid("add the packages, or take out of .dockerignore what keeps them out", "%s holds no files", shown(o.value))
			}
			o.value = "./" + path.Clean(from+o.value) // from the project's root, wherever it is written
			break
		}
	}
	if err := checkSecrets(at, o.value); err != nil {
		return err
	}
	r.pip = append(r.pip, pipLine{at: at, kind: pipOption, text: o.String()})
	return nil
}

// local counts what a path in the project leads to. p must not be absolute.
func (r *pipReader) local(ctx context.Context, at place, p string) (int, error) {
	if r.t == nil {
		return 1, nil
	}
	p = strings.TrimPrefix(p, "./")
	if p == "" {
		p = "."
	}
	to, err := r.t.resolve(at, p)
	if err != nil {
		return 0, err
	}
	if !to.info.Mode().IsRegular() {
		return r.t.add(ctx, r.packages, at, p, func(name string) bool { return name == "__pycache__" })
	}
	// A file that is named counts whatever .dockerignore says.
	e, err := r.t.file(ctx, at, to.path, to.info)
	if err != nil {
		return 0, err
	}
	r.packages[e.path] = e
	for _, link := range to.links {
		r.packages[link.path] = link
	}
	return 1, nil
}

// archive is the end of a name by which pip takes it for a file.
var archive = regexp.MustCompile(`(?i)\.(?:whl|zip|tar|tgz|tbz|txz|tlz|tar\.(?:gz|bz2|xz|lz|lzma))$`)

// extras are [NAME,…] behind a path.
var extras = regexp.MustCompile(`^(.*?)\s*(\[[^\]]*\])$`)

// splitLocal takes a requirement apart that is a path: path, extras, and "; MARKER". ok is false if it
// is none.
func splitLocal(s string) (p, extra, marker string, ok bool) {
	p, marker, _ = strings.Cut(s, ";")
	p = strings.TrimSpace(p)
	if m := extras.FindStringSubmatch(p); m != nil {
		p, extra = m[1], strings.Join(strings.Fields(m[2]), "")
	}
	if strings.Contains(p, "://") || strings.Contains(p, " @") || strings.ContainsAny(p, "<>=!~") && !strings.Contains(p, "/") {
		return "", "", "", false
	}
	return p, extra, strings.Join(strings.Fields(marker), " "), strings.Contains(p, "/") || strings.HasPrefix(p, ".") || archive.MatchString(p)
}

// localPackage counts a package of the project and returns the text for it.
func (r *pipReader) localPackage(ctx context.Context, at place, p, extra, marker string) (text string, err error) {
	if path.IsAbs(p) || strings.HasPrefix(p, "~") {
		return "", at.refuse(rollout.ReasonUnsafeFile, "keep what the environment needs inside the project", "%s leaves the project", shown(p))
	}
	n, err := r.local(ctx, at, r.cwd+"/"+p)
	if errors.Is(err, fs.ErrNotExist) {
		return "", missing{at.invalid("write its path from "+shownDir(r.cwd)+", where pip runs", "there is no %s in %s", shown(p), shownDir(r.cwd))}
	}
	if err != nil {
		return "", err
	}
	if n == 0 {
		return "", at.invalid("add its files, or take out of .dockerignore what keeps them out", "%s holds no files", shown(p))
	}
	if text = path.Clean(p); text != "." && !strings.HasPrefix(text, "../") {
		text = "./" + text
	}
	text += extra
	if marker != "" {
		// Else, with white space before it, it would be read as an option or a comment.
		if !markerStart.MatchString(marker) {
			return "", at.invalid("write it as ./PATH ; python_version >= '3.9'", "what stands behind ; is no condition")
		}
		text += " ; " + marker
	}
	return text, nil
}

func shownDir(p string) string {
	if p == "." {
		return "the project's root"
	}
	return shown(p)
}

// requirement notes a package.
func (r *pipReader) requirement(ctx context.Context, at place, s string, kind pipKind, with []string) error {
	l := pipLine{at: at, kind: kind, with: with}
	if p, extra, marker, ok := splitLocal(s); ok {
		if kind == pipConstraint {
			return at.invalid("give the package's name and version", "a constraint cannot be a path")
		}
		text, err := r.localPackage(ctx, at, p, extra, marker)
		if err != nil {
			return err
		}
		l.text, l.local = text, p
	} else {
		text, err := normalRequirement(at, s)
		if err != nil {
			return err
		}
		l.text = text
	}
	r.pip = append(r.pip, l)
	return nil
}

// editable notes a package that is installed as a link to its source.
func (r *pipReader) editable(ctx context.Context, at place, value string, with []string) error {
	l := pipLine{at: at, kind: pipEditable, with: with}
	if strings.Contains(value, "://") {
		if err := checkURL(at, value); err != nil {
			return err
		}
		l.text = value
	} else {
		p, extra, marker, _ := splitLocal(value)
		text, err := r.localPackage(ctx, at, cmp.Or(p, value), extra, marker)
		if err != nil {
			return err
		}
		l.text, l.local = text, p
	}
	r.pip = append(r.pip, l)
	return nil
}

// requirementName begins a requirement (PEP 508).
var requirementName = regexp.MustCompile(`^[A-Za-z0-9](?:[-._A-Za-z0-9]*[A-Za-z0-9])?`)

// markerStart begins an environment marker (PEP 508).
var markerStart = regexp.MustCompile(`^[A-Za-z_'"(]`)

// addressStart begins an address (RFC 3986, section 3.1).
var addressStart = regexp.MustCompile(`^[A-Za-z][-+.A-Za-z0-9]*://`)

// normalRequirement writes a requirement with the white space that counts: one space between words,
// none beside what ends words anyway.
func normalRequirement(at place, s string) (string, error) {
	const hint = "write it as NAME==VERSION, NAME @ URL, or ./PATH"
	if strings.Contains(s, "://") || strings.Contains(s, "@") {
		// White space may end an address, so all of it counts.
		s = strings.Join(strings.Fields(s), " ")
		name, address, named := strings.Cut(s, "@")
		if named && requirementName.MatchString(name) && !strings.Contains(name, "://") {
			s = strings.TrimSpace(name) + " @ " + strings.TrimSpace(address)
			address = strings.TrimSpace(address)
		} else {
			address = s
		}
		// Else "a@#https://" would be written with white space before what is a comment then.
		if !addressStart.MatchString(address) {
			return "", at.invalid(hint, "%s: what should be an address is none", shown(withoutUser(s)))
		}
		return s, checkURL(at, strings.Fields(address)[0])
	}
	if !requirementName.MatchString(s) {
		return "", at.invalid(hint, "%s is not a requirement", shown(s))
	}
	return tighten(s), nil
}

// tighten takes white space away that does not separate words: all beside operators, commas,
// semicolons and brackets, and all but one space elsewhere. What is in quotation marks stays.
func tighten(s string) string {
	var b strings.Builder
	var last rune
	space, quote := false, rune(0)
	const binds = "<>=!~,;()[]|"
	for _, c := range s {
		switch {
		case quote != 0:
			b.WriteRune(c)
			if c == quote {
				quote = 0
			}
			last = c
			continue
		case c == ' ' || c == '\t':
			space = true
			continue
		}
		if space && last != 0 && !strings.ContainsRune(binds, last) && !strings.ContainsRune(binds, c) {
			b.WriteByte(' ')
		}
		space = false
		if c == '\'' || c == '"' {
			quote = c
		}
		b.WriteRune(c)
		last = c
	}
	return b.String()
}

// withoutUser is an address without what may be credentials: a user, and a query, by which it may be signed.
func withoutUser(s string) string {
	s, _, signed := strings.Cut(s, "?")
	if signed {
		s += "?…"
	}
	scheme, rest, isURL := strings.Cut(s, "://")
	if !isURL {
		scheme, rest = "", s
	}
	host, tail, path := strings.Cut(rest, "/")
	if i := strings.LastIndexByte(host, '@'); i >= 0 && (isURL || strings.Contains(host[:i], ":")) {
		host = "…@" + host[i+1:]
	}
	if path {
		host += "/" + tail
	}
	if isURL {
		return scheme + "://" + host
	}
	return host
}

// condaToken is one in a channel's path, condaAddressToken in an address anywhere in a text.
var (
	condaToken        = regexp.MustCompile(`/t/[^/]+/`)
	condaAddressToken = regexp.MustCompile(`://[^\s"?#]*/t/[^/\s"]+/`)
)

// checkURL refuses an address with credentials, which would be in the image for all to read, and one
// whose content lies on the builder's disk.
func checkURL(at place, s string) error {
	u, err := url.Parse(strings.TrimPrefix(s, "git+"))
	if err != nil {
		return at.invalid("write it as https://HOST/PATH", "an address cannot be read")
	}
	if strings.HasSuffix(u.Scheme, "file") {
		return at.refuse(rollout.ReasonUnsafeFile, "keep the files in the project and name them by a path from there", "%s leaves the project", shown(s))
	}
	_, password := u.User.Password()
	if strings.Contains(u.Opaque, "@") { // USER:PASSWORD@HOST, of which the scheme was forgotten
		return at.invalid("write it as https://HOST/PATH, and use an index or mirror that needs no credentials", "an address has no scheme, and credentials in it")
	}
	if u.User != nil && (password || !strings.HasSuffix(u.Scheme, "ssh")) || condaToken.MatchString(u.Path) {
		return at.credentials(u.Host)
	}
	return checkSecrets(at, s)
}

// checkWeb refuses an option's value that is no address on the web: pip takes it for a path then, whose content does not count.
func checkWeb(at place, o option) error {
	if err := checkURL(at, o.value); err != nil {
		return err
	}
	if u, err := url.Parse(o.value); err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return at.invalid("write it as https://HOST/PATH; for packages in the project use --find-links DIRECTORY",
			"%s %s is no address on the web, so its content is not known and cannot count", o.long, shown(withoutUser(o.value)))
	}
	return nil
}
