package project

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/sluice-dev/sluice/rollout"
)

// reservedDir at the project's root is Sluice's own.
const reservedDir = ".sluice"

// Bounds of a project.
const (
	// MaxFiles is how many files and links one archive may hold, the models' layout not counted.
	MaxFiles = 1_000_000
	// maxDirDepth is how deep directories may nest; each open level costs a file descriptor.
	maxDirDepth = 200
)

// Action is what becomes of a path.
type Action string

// The actions.
const (
	Ship   Action = "ship"
	Leave  Action = "leave"  // stays out by a rule
	Refuse Action = "refuse" // may not ship and may not be left out silently
)

// Type of what an archive can hold.
type Type string

// The types.
const (
	TypeFile  Type = "file"
	TypeLink  Type = "link"  // a symbolic link
	TypeDir   Type = "dir"   // left out or refused as a whole
	TypeOther Type = "other" // a device, a socket, …
)

// Entry is one path of a project and what becomes of it.
type Entry struct {
	// Path from the project's root, with slashes.
	Path   string `json:"path"`
	Type   Type   `json:"type"`
	Action Action `json:"action"`
	// Size in bytes of a file.
	Size       int64 `json:"size,omitempty"`
	Executable bool  `json:"executable,omitempty"`
	// Target of a link that may ship, as the link has it.
	Target string `json:"target,omitempty"`
	// Rule that left it out, or that it ships in spite of.
	Rule *Rule `json:"rule,omitempty"`
	// Because names what made it ship in spite of Rule, or what generated it.
	Because *Rule `json:"because,omitempty"`
	// Refusal of an entry that is refused.
	Refusal *rollout.Error `json:"refusal,omitempty"`
}

// String is the entry in one line for people.
func (e *Entry) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%-6s %s", e.Action, printable(e.Path))
	switch {
	case e.Type == TypeDir:
		b.WriteByte('/')
	case e.Target != "":
		fmt.Fprintf(&b, " -> %s", printable(e.Target))
	}
	switch {
	case e.Refusal != nil:
		fmt.Fprintf(&b, "  (%s)", e.Refusal.Message)
	case e.Because != nil && e.Rule != nil:
		fmt.Fprintf(&b, "  (%s, in spite of %s)", e.Because, e.Rule)
	case e.Because != nil:
		fmt.Fprintf(&b, "  (%s)", e.Because)
	case e.Rule != nil:
		fmt.Fprintf(&b, "  (%s)", e.Rule)
	}
	return b.String()
}

// printable is s, in quotes if it could disturb a terminal or be misread.
func printable(s string) string {
	for _, r := range s {
		if r == utf8.RuneError || !unicode.IsPrint(r) {
			return strconv.Quote(s)
		}
	}
	return s
}

// includePattern is one of the manifest's include.
type includePattern struct {
	glob  string
	parts []string // of glob
	dirs  bool     // ends with a slash: names only directories
	rule  *Rule
}

// Listing is what of a project ships and what does not. It holds no list of the
// paths, which may be millions, but walks the files anew each time.
type Listing struct {
	// Files and Links that ship, and Bytes in these files. The links that lay out
	// models are counted in Layout.
	Files, Links, Layout int
	Bytes                int64
	// Left counts what stays out; a directory counts once.
	Left int
	// ModelDir is what the variable AZUREML_MODEL_DIR must name, relative to the
	// project's root and with slashes; empty without models.
	ModelDir string

	dir      string
	manifest *Manifest
	forced   map[string]*Rule // paths that ship, with all below them, even if ignored
	include  []includePattern
	models   []modelPlace
	rules    string // name of the files with rules
	// nested are directories with a .git of their own.
	nested []string
	// skip are files that never ship: the archive itself, if it is written into the project,
	// and what it replaces there.
	skip []fs.FileInfo
	// given holds files that ship and are not in the directory; it may be nil.
	given    *Given
	refusals []*rollout.Error
	refused  int
}

// modelPlace is where a model's files are.
type modelPlace struct {
	index int
	model Model
	// path as declared and place where it leads, both cleaned.
	path, place string
	isFile      bool
}

// Plan decides what of the project in dir ships. It walks the whole tree once, opens
// each file that ships to see that it can be read, and reads only rules. An error
// says that the tree could not be walked; what may not ship is in Err.
// A Given manifest, of which m must be, ships as the project's sluice.yaml.
func Plan(ctx context.Context, dir string, m *Manifest, opts ...Option) (*Listing, error) {
	return plan(ctx, dir, m, nil, optionsOf(opts).given)
}

func plan(ctx context.Context, dir string, m *Manifest, skip []fs.FileInfo, given *Given) (*Listing, error) {
	t, err := openTree(dir)
	if err != nil {
		return nil, err
	}
	defer t.close()
	l := &Listing{dir: t.dir, manifest: m, skip: skip, given: given, forced: map[string]*Rule{ManifestName: {Built: "the manifest"}}}
	if l.rules, err = rulesName(t.root); err != nil {
		return nil, err
	}
	if err := l.prepare(t); err != nil {
		return nil, err
	}
	if err := l.survey(ctx, t); err != nil {
		return nil, err
	}
	return l, nil
}

// Err joins a *rollout.Error for each path that may not ship, at most 20, and is nil
// if the project can be archived.
func (l *Listing) Err() error {
	errs := make([]error, 0, len(l.refusals)+1)
	for _, e := range l.refusals {
		errs = append(errs, e)
	}
	if more := l.refused - len(l.refusals); more > 0 {
		errs = append(errs, fmt.Errorf("… and %d more", more))
	}
	return errors.Join(errs...)
}

func (l *Listing) refuse(e *rollout.Error) {
	l.refused++
	if len(l.refusals) < maxReported {
		l.refusals = append(l.refusals, e)
	}
}

// Entries walks the project in the order of the archive: each path once, a directory
// that stays out as a whole once and nothing below it, then the links that lay out
// the models. An error ends it.
func (l *Listing) Entries(ctx context.Context) iter.Seq2[*Entry, error] {
	return func(yield func(*Entry, error) bool) {
		err := l.walkAll(ctx, walkOptions{probe: true}, func(it *item) error {
			if !yield(&it.Entry, nil) {
				return fs.SkipAll
			}
			return nil
		})
		if err != nil && !errors.Is(err, fs.SkipAll) {
			yield(nil, err)
		}
	}
}

// prepare works out what ships whatever the rules say.
func (l *Listing) prepare(t *tree) error {
	m := l.manifest
	force := func(p string, rule *Rule) (resolution, error) {
		r, err := t.resolve(path.Clean(p))
		if err != nil || r.problem != "" || r.info == nil {
			return r, err
		}
		for _, p := range append(r.links, r.path) {
			if l.forced[p] == nil {
				l.forced[p] = rule
			}
		}
		return r, nil
	}
	if m.Test != nil {
		if _, err := force(m.Test.Request, &Rule{Built: "test.request"}); err != nil {
			return err
		}
	}
	for i, model := range m.Models {
		if model.Path == "" {
			continue // it comes from elsewhere
		}
		field := fmt.Sprintf("models[%d].path", i)
		r, err := force(model.Path, &Rule{Built: fmt.Sprintf("models[%d] %s", i, model.Name)})
		if err != nil {
			return err
		}
		if r.problem != "" || r.info == nil {
			l.refuse(refuse(rollout.ReasonInvalid, field, "correct the path", "%s does not exist in the project", model.Path))
			continue
		}
		l.models = append(l.models, modelPlace{
			index: i, model: model, path: path.Clean(model.Path), place: r.path, isFile: r.info.Mode().IsRegular(),
		})
	}
	for i, p := range m.Include {
		glob := path.Clean(p)
		l.include = append(l.include, includePattern{
			glob: glob, parts: strings.Split(glob, "/"),
			dirs: strings.HasSuffix(p, "/"),
			rule: &Rule{Built: fmt.Sprintf("include[%d] %s", i, p)},
		})
	}
	slices.SortFunc(l.models, func(a, b modelPlace) int {
		return strings.Compare(a.model.Name+"\x00"+a.model.Version, b.model.Name+"\x00"+b.model.Version)
	})
	switch {
	case len(m.Models) == 0:
	case len(m.Models) > 1:
		l.ModelDir = layoutDir
	case len(l.models) == 0 || l.models[0].isFile:
		l.ModelDir = LayoutPath(m.Models[0])
	default:
		l.ModelDir = l.models[0].path
	}
	return nil
}

// survey walks once to count and to find all that is refused.
func (l *Listing) survey(ctx context.Context, t *tree) error {
	unused := make([]*includePattern, len(l.include))
	for i := range l.include {
		unused[i] = &l.include[i]
	}
	empty := map[string]bool{}
	for i := range l.models {
		empty[l.models[i].place] = true
	}
	err := l.walkTree(ctx, t, walkOptions{probe: true}, func(it *item) error {
		switch it.Action {
		case Leave:
			l.Left++
			if path.Base(it.Path) == ".git" && it.Path != ".git" {
				l.nested = append(l.nested, path.Dir(it.Path)+"/")
			}
		case Refuse:
			l.refuse(it.Refusal)
		case Ship:
			if it.Type == TypeLink {
				l.Links++
			} else {
				l.Files++
				l.Bytes += it.Size
			}
			if l.Files+l.Links > MaxFiles {
				return refuse(rollout.ReasonInvalid, "", "keep data that the model does not need out with "+l.rules,
					"more than %d files would ship", MaxFiles)
			}
			unused = slices.DeleteFunc(unused, func(inc *includePattern) bool { return inc.covers(it.Path) })
		}
		if it.Action != Leave {
			for p := it.Path; len(empty) > 0 && p != "."; p = path.Dir(p) {
				delete(empty, p)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, inc := range unused {
		l.refuse(refuse(rollout.ReasonInvalid, "include", "correct the pattern, or remove it; it is anchored at the project's root, and **/ before it means any directory",
			"%s names nothing that can ship", inc.rule))
	}
	for i := range l.models {
		if m := &l.models[i]; empty[m.place] {
			l.refuse(refuse(rollout.ReasonInvalid, fmt.Sprintf("models[%d].path", m.index), "put the model there, or correct the path",
				"%s holds no files", m.model.Path))
		}
	}
	if s := l.manifest.Scoring.EntryScript; s != "" {
		rule, err := l.leftOut(t, l.manifest.entryPath())
		if err != nil {
			return err
		}
		if rule != nil {
			l.refuse(refuse(rollout.ReasonInvalid, "scoring.entryScript", "change the rule, or name the script under include",
				"%s stays out by %s", l.manifest.entryPath(), rule))
		}
	}
	return l.walkLayout(ctx, t, func(*item) error { l.Layout++; return nil })
}

// skipped tells whether a file is one of those that never ship.
func (l *Listing) skipped(info fs.FileInfo) bool {
	return slices.ContainsFunc(l.skip, func(s fs.FileInfo) bool { return os.SameFile(s, info) })
}

// within tells whether p is place or below it; everything but "" is below "".
func within(p, place string) bool {
	if place == "" {
		return p != ""
	}
	return p == place || strings.HasPrefix(p, place) && p[len(place)] == '/'
}

// forcedBy gives what makes p ship in spite of rules: what the manifest names first,
// then include.
func (l *Listing) forcedBy(p string, isDir bool) (*Rule, *includePattern) {
	named := l.forced[p]
	for i := range l.include {
		inc := &l.include[i]
		if (isDir || !inc.dirs) && inc.matches(p) {
			if named == nil {
				named = inc.rule
			}
			return named, inc
		}
	}
	return named, nil
}

// matches tells whether the pattern names p itself.
func (inc *includePattern) matches(p string) bool {
	return wildmatch(inc.glob, p, true)
}

// covers tells whether the pattern names p or a directory above it.
func (inc *includePattern) covers(p string) bool {
	for i := 0; i < len(p); i++ {
		if p[i] == '/' && inc.matches(p[:i]) {
			return true
		}
	}
	return !inc.dirs && inc.matches(p)
}

// mayMatchBelow tells whether the pattern may name something below the directory p.
// It may err on the side of yes, which costs only a look.
func (inc *includePattern) mayMatchBelow(p string) bool {
	dirs := strings.Split(p, "/")
	for i, part := range inc.parts {
		if i == len(dirs) {
			return true
		}
		if strings.Contains(part, "**") || strings.ContainsAny(part, `[\`) {
			return true
		}
		if !wildmatch(part, dirs[i], true) {
			return false
		}
	}
	return false
}

// mayForceBelow tells whether something below the directory p may ship in spite of rules.
func (l *Listing) mayForceBelow(p string) bool {
	for f := range l.forced {
		if within(f, p) {
			return true
		}
	}
	for i := range l.include {
		if l.include[i].mayMatchBelow(p) {
			return true
		}
	}
	return false
}

// item is an entry on the way, with the open directory that it is in.
type item struct {
	Entry
	dir     *os.Root // nil for a link of the layout, and for what is given
	given   []byte   // the content of a file that is given; nil for others
	info    fs.FileInfo
	include *includePattern // that names it or a directory above it
}

// place in the tree during a walk.
type walkDir struct {
	path  string // "" for the root
	root  *os.Root
	rules *ignoreStack
	// out is the rule that leaves this directory out; it is walked only for what
	// ships in spite of it.
	out *Rule
	// because makes all below ship in spite of rules.
	because *Rule
	include *includePattern
	depth   int
}

// walkAll walks the project and then the layout of its models.
func (l *Listing) walkAll(ctx context.Context, o walkOptions, fn func(*item) error) error {
	t, err := openTree(l.dir)
	if err != nil {
		return err
	}
	defer t.close()
	if err := l.walkTree(ctx, t, o, fn); err != nil {
		return err
	}
	return l.walkLayout(ctx, t, fn)
}

// walkOptions of one walk.
type walkOptions struct {
	// only walks no further than to what is at that path and below it.
	only string
	// probe opens files to see that they can be read.
	probe bool
}

// walkTree walks the project in the order of its paths' bytes.
func (l *Listing) walkTree(ctx context.Context, t *tree, o walkOptions, fn func(*item) error) error {
	w := walker{l: l, t: t, ctx: ctx, walkOptions: o, fn: fn}
	if l.given == nil || o.only != "" { // nothing that is walked alone is given
		return w.directory(walkDir{root: t.root})
	}
	return l.given.among(fn, func(fn func(*item) error) error {
		w.fn = fn
		return w.directory(walkDir{root: t.root})
	})
}

// isLayout tells whether it is one of the links that lay out the models.
func (it *item) isLayout() bool { return it.dir == nil && it.given == nil }

type walker struct {
	walkOptions
	l   *Listing
	t   *tree
	ctx context.Context // lives as long as one walk
	fn  func(*item) error
}

func (w *walker) directory(d walkDir) error {
	if err := w.ctx.Err(); err != nil {
		return err
	}
	if d.out == nil && d.because == nil {
		rules, err := d.rules.push(d.root, d.path, w.l.rules)
		if err != nil {
			return err
		}
		d.rules = rules
	}
	if d.path != w.only && within(w.only, d.path) {
		next, _, _ := strings.Cut(strings.TrimPrefix(w.only[len(d.path):], "/"), "/")
		return w.entry(d, next)
	}
	var behind *dirName
	for {
		names, more, err := readNames(d.root, behind, namesAtOnce)
		if err != nil {
			return fmt.Errorf("list %s: %w", displayDir(d.path), err)
		}
		for i := range names.len() {
			if err := w.entry(d, string(names.at(i).name)); err != nil {
				return err
			}
		}
		if !more {
			return nil
		}
		last := names.at(names.len() - 1)
		behind = &dirName{slices.Clone(last.name), last.isDir}
	}
}

// entry decides about one name in a directory.
func (w *walker) entry(d walkDir, name string) error {
	if err := w.ctx.Err(); err != nil {
		return err
	}
	full := joinPath(d.path, name)
	info, err := d.root.Lstat(name)
	if isMissing(err) {
		return nil // removed since the directory was read
	}
	it := &item{dir: d.root, info: info, Entry: Entry{Path: full, Action: Ship, Type: TypeOther}}
	if err != nil {
		if !errors.Is(err, fs.ErrPermission) {
			return fmt.Errorf("look at %s: %w", printable(full), err)
		}
		return w.refused(it, rollout.ReasonUnsafeFile, "make it readable, or keep it out with "+w.l.rules, "cannot be read: %v", cause(err))
	}
	isDir := info.IsDir()
	switch mode := info.Mode(); {
	case isDir:
		it.Type = TypeDir
	case mode.IsRegular():
		it.Type, it.Size, it.Executable = TypeFile, info.Size(), mode.Perm()&0o100 != 0
	case mode&fs.ModeSymlink != 0:
		it.Type = TypeLink
	}
	if strings.EqualFold(name, ".git") || d.path == "" && strings.EqualFold(name, reservedDir) {
		it.Action, it.Rule = Leave, &Rule{Built: "never ships"}
		return w.fn(it)
	}
	if w.l.skipped(info) {
		if full == w.l.manifest.entryPath() || w.l.forced[full] != nil {
			// It would be left out, and then written over.
			return w.refused(it, rollout.ReasonInvalid, "write the archive to another file", "is a part of the project, and where its archive is to be written")
		}
		it.Action, it.Rule = Leave, &Rule{Built: "the archive itself"}
		return w.fn(it)
	}
	it.Because, it.include = d.because, d.include
	if by, inc := w.l.forcedBy(full, isDir); it.include == nil {
		it.include = inc
		if it.Because == nil {
			it.Because = by
		}
	}
	if it.Rule = d.out; it.Rule == nil {
		it.Rule = d.rules.rule(full, name, isDir)
	}
	if isDir {
		return w.subdirectory(d, it, name)
	}
	if it.Rule != nil && it.Because == nil {
		it.Action = Leave
		return w.fn(it)
	}
	if it.Rule == nil && it.include == nil {
		it.Because = nil // it ships anyway
	}
	return w.shipped(it, name)
}

func (w *walker) subdirectory(d walkDir, it *item, name string) error {
	if it.Rule != nil && it.Because == nil && !w.l.mayForceBelow(it.Path) {
		it.Action = Leave
		return w.fn(it)
	}
	if d.depth >= maxDirDepth {
		return w.refused(it, rollout.ReasonUnsafeFile, "flatten it, or keep it out with "+w.l.rules, "directories nest deeper than %d", maxDirDepth)
	}
	sub, err := d.root.OpenRoot(name)
	if err == nil {
		// Reading may be forbidden where entering is not.
		var f *os.File
		if f, err = sub.Open("."); err == nil {
			err = f.Close()
		} else {
			_ = sub.Close()
		}
	}
	switch {
	case errors.Is(err, fs.ErrPermission):
		if it.Rule != nil && it.Because == nil {
			it.Action = Leave // it would have stayed out, and nothing that ships was found in it
			return w.fn(it)
		}
		return w.refused(it, rollout.ReasonUnsafeFile, "make it readable, or keep it out with "+w.l.rules, "cannot be read: %v", cause(err))
	case isMissing(err):
		return nil
	case err != nil:
		return fmt.Errorf("open %s: %w", printable(it.Path), err)
	}
	defer func() { _ = sub.Close() }()
	return w.directory(walkDir{
		path: it.Path, root: sub, rules: d.rules, depth: d.depth + 1,
		out: it.Rule, because: it.Because, include: it.include,
	})
}

// shipped checks that something which is to ship may.
func (w *walker) shipped(it *item, name string) error {
	keepOut := "keep it out with " + w.l.rules
	if !utf8.ValidString(it.Path) {
		return w.refused(it, rollout.ReasonUnsafeFile, "rename it, or "+keepOut, "its name is not UTF-8")
	}
	switch it.Type {
	case TypeFile:
		if pattern, secret := looksSecret(it.Path); secret && it.include == nil {
			return w.refused(it, rollout.ReasonSecretFile, keepOut+", or name it under include if it is meant to ship",
				"looks like a secret (%s)", pattern)
		}
		if !w.probe {
			break
		}
		f, err := openFile(it.dir, name)
		if isMissing(err) {
			return nil
		}
		if err != nil {
			return w.refused(it, rollout.ReasonUnsafeFile, "make it readable, or "+keepOut, "cannot be read: %v", cause(err))
		}
		if err := f.Close(); err != nil {
			return fmt.Errorf("look at %s: %w", it.Path, err)
		}
	case TypeLink:
		return w.link(it, name)
	default:
		return w.refused(it, rollout.ReasonUnsafeFile, "remove it, or "+keepOut, "is %s, which cannot ship", kindName(it.info.Mode()))
	}
	return w.fn(it)
}

// link checks that a symbolic link leads to something that ships, or nowhere.
func (w *walker) link(it *item, name string) error {
	hint := "replace it by what it leads to, or keep it out with " + w.l.rules
	target, err := it.dir.Readlink(name)
	if err != nil {
		if isMissing(err) {
			return nil
		}
		return fmt.Errorf("look at %s: %w", it.Path, err)
	}
	it.Target = target
	if !utf8.ValidString(target) {
		return w.refused(it, rollout.ReasonUnsafeFile, hint, "is a symbolic link to a name that is not UTF-8")
	}
	r, err := w.t.resolve(it.Path)
	if err != nil {
		return err
	}
	if r.problem != "" {
		return w.refused(it, rollout.ReasonUnsafeFile, hint, "is a symbolic link to %s, which %s", printable(target), r.problem)
	}
	if neverShips(r.path) {
		return w.refused(it, rollout.ReasonUnsafeFile, hint, "is a symbolic link to %s, which never ships", printable(target))
	}
	if r.info != nil && w.l.skipped(r.info) {
		it.Action, it.Rule = Leave, &Rule{Built: "leads to the archive itself"}
		return w.fn(it)
	}
	// A link on the way to what the manifest names needs no more than that, which ships.
	if r.info != nil && r.path != "." && w.l.forced[it.Path] == nil {
		rule, err := w.l.leftOut(w.t, r.path)
		if err != nil {
			return err
		}
		if rule != nil {
			return w.refused(it, rollout.ReasonUnsafeFile, hint+", or name what it leads to under include",
				"is a symbolic link to %s, which stays out by %s", printable(target), rule)
		}
	}
	return w.fn(it)
}

// refused reports an entry that may not ship.
func (w *walker) refused(it *item, reason rollout.Reason, hint, format string, args ...any) error {
	it.Action = Refuse
	it.Refusal = refuse(reason, "", hint, "%s "+format, append([]any{printable(it.Path)}, args...)...)
	return w.fn(it)
}

// leftOut gives the rule by which a path that exists stays out, nil if it ships. The
// path leads through no links.
func (l *Listing) leftOut(t *tree, p string) (*Rule, error) {
	if neverShips(p) {
		return &Rule{Built: "never ships"}, nil
	}
	var rules *ignoreStack
	var out *Rule
	parts := strings.Split(p, "/")
	dir, err := t.root.OpenRoot(".")
	if err != nil {
		return nil, fmt.Errorf("look at %s: %w", p, err)
	}
	defer func() { _ = dir.Close() }()
	for i, name := range parts {
		full := path.Join(parts[:i+1]...)
		info, err := dir.Lstat(name)
		if err != nil {
			if isMissing(err) {
				return nil, nil
			}
			return nil, fmt.Errorf("look at %s: %w", p, err)
		}
		if by, _ := l.forcedBy(full, info.IsDir()); by != nil {
			return nil, nil
		}
		if out == nil {
			if rules, err = rules.push(dir, strings.Join(parts[:i], "/"), l.rules); err != nil {
				return nil, err
			}
			out = rules.rule(full, name, info.IsDir())
		}
		if i == len(parts)-1 || !info.IsDir() {
			break
		}
		sub, err := dir.OpenRoot(name)
		if err != nil {
			return nil, fmt.Errorf("look at %s: %w", p, err)
		}
		_ = dir.Close()
		dir = sub
	}
	return out, nil
}

func joinPath(dir, name string) string {
	if dir == "" {
		return name
	}
	return dir + "/" + name
}

func displayDir(p string) string {
	if p == "" {
		return "the project's root"
	}
	return printable(p)
}

// cause is the system's own words in an error about a path.
func cause(err error) error {
	var p *fs.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	return err
}

// namesAtOnce is how many of a directory's names are kept in memory, at most twice;
// a directory with more is read several times.
const namesAtOnce = 1 << 17

// dirName is a name as it sorts among those of a directory: by its path's bytes, where
// a slash follows a directory's name.
type dirName struct {
	name  []byte
	isDir bool
}

func (a dirName) compare(b dirName) int { return compareNames(a.name, b.name, a.isDir, b.isDir) }

// nameList holds names in little memory: each as two bytes, which hold its length and
// whether it is a directory's, and its own bytes, in blocks.
type nameList struct {
	blocks [][]byte
	refs   []uint32 // the names' blocks and offsets
}

const (
	nameBlock  = 1 << 16
	nameIsDir  = 0x80
	maxNameLen = 0x7fff
)

func (n *nameList) add(d dirName) error {
	last := len(n.blocks) - 1
	if last < 0 || len(n.blocks[last])+2+len(d.name) > nameBlock {
		if last++; last >= nameBlock || len(d.name) > maxNameLen {
			return errors.New("too many names")
		}
		n.blocks = append(n.blocks, nil)
	}
	n.refs = append(n.refs, uint32(last)<<16|uint32(len(n.blocks[last])))
	high := byte(len(d.name) >> 8)
	if d.isDir {
		high |= nameIsDir
	}
	n.blocks[last] = append(append(n.blocks[last], byte(len(d.name)), high), d.name...)
	return nil
}

func (n *nameList) len() int { return len(n.refs) }

func (n *nameList) at(i int) dirName { return n.get(n.refs[i]) }

func (n *nameList) get(ref uint32) dirName {
	b := n.blocks[ref>>16][ref&(nameBlock-1):]
	length := int(b[0]) | int(b[1]&^nameIsDir)<<8
	return dirName{b[2 : 2+length : 2+length], b[1]&nameIsDir != 0}
}

func (n *nameList) sort() {
	slices.SortFunc(n.refs, func(a, b uint32) int { return n.get(a).compare(n.get(b)) })
}

// first is a list of the k first names.
func (n *nameList) first(k int) (*nameList, error) {
	n.sort()
	out := &nameList{refs: make([]uint32, 0, 2*k)}
	for i := range k {
		if err := out.add(n.at(i)); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// readNames lists, sorted, the names in a directory that come behind one, nil for all.
// If there are more than twice atOnce it lists only the first of them, at least atOnce.
func readNames(dir *os.Root, behind *dirName, atOnce int) (names *nameList, more bool, err error) {
	f, err := dir.Open(".")
	if err != nil {
		return nil, false, err
	}
	defer func() { _ = f.Close() }()
	n := &nameList{}
	var upTo *dirName
	for {
		batch, err := f.ReadDir(1024)
		for _, e := range batch {
			d := dirName{[]byte(e.Name()), e.IsDir()}
			if behind != nil && d.compare(*behind) <= 0 || upTo != nil && d.compare(*upTo) > 0 {
				continue
			}
			if err := n.add(d); err != nil {
				return nil, false, err
			}
			if n.len() == 2*atOnce {
				kept, err := n.first(atOnce)
				if err != nil {
					return nil, false, err
				}
				n = kept
				last := n.at(atOnce - 1)
				upTo = &dirName{slices.Clone(last.name), last.isDir}
			}
		}
		if errors.Is(err, io.EOF) {
			n.sort()
			return n, upTo != nil, nil
		}
		if err != nil {
			return nil, false, err
		}
	}
}

// compareNames compares names in one directory as their paths would compare.
func compareNames(a, b []byte, aDir, bDir bool) int {
	short := min(len(a), len(b))
	for i := range short {
		if a[i] != b[i] {
			return int(a[i]) - int(b[i])
		}
	}
	next := func(s []byte, dir bool) int {
		if len(s) > short {
			return int(s[short])
		}
		if dir {
			return '/'
		}
		return -1
	}
	return next(a, aDir) - next(b, bDir)
}
