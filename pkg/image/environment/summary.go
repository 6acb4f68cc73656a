package environment

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Summary is what went into a hash, to be kept and compared with a later one.
type Summary struct {
	// Format of the canonical form; hashes of different ones cannot be compared.
	Format int `json:"format"`
	// Hash in lower-case hex.
	Hash     string `json:"hash"`
	Platform string `json:"platform"`
	// BuildNeeded is false if the base image alone is the environment.
	BuildNeeded bool    `json:"buildNeeded"`
	Inputs      []Input `json:"inputs"`
	// Unpinned are packages that are not fixed to one version.
	Unpinned []string `json:"unpinned,omitempty"`
}

// Input is one thing that went into a hash.
type Input struct {
	// Kind and Name tell inputs apart: "base", "platform", "dockerfile", "steps", "images", "context",
	// "micromamba", "conda", "requirements", "package-files".
	Kind string `json:"kind"`
	Name string `json:"name"`
	// Digest, sha256:HEX: of an image its own, else of what counts of the input.
	Digest string `json:"digest"`
	// Description for people, in one line.
	Description string `json:"description"`
	// Items that the input consists of, in their order.
	Items []Item `json:"items,omitempty"`
}

// Item is a package, a step or a file.
type Item struct {
	// Name that it keeps when it changes: a package's, a file's path. Text is all of it that counts.
	Name string `json:"name"`
	Text string `json:"text"`
}

// Summary of the definition.
func (d *Definition) Summary() Summary {
	return Summary{Format: Format, Hash: d.Hash(), Platform: d.platform, BuildNeeded: d.Needed(), Inputs: d.Inputs(), Unpinned: d.Unpinned()}
}

// Inputs lists what went into the hash.
func (d *Definition) Inputs() []Input {
	out := []Input{{
		Kind: "platform", Name: "platform", Digest: digestOfBytes([]byte(d.platform)), Description: d.platform, Items: []Item{{"platform", d.platform}},
	}}
	if f := d.dockerfile; f != nil {
		out = append(out, Input{Kind: "dockerfile", Name: "Dockerfile", Digest: digestOfBytes([]byte(f.text)), Description: f.path, Items: lineItems(f.text)})
	} else {
		out = append(out, Input{
			Kind: "base", Name: "base image", Digest: d.base.Digest, Description: d.baseRef + " is " + d.base.Digest + " now",
			Items: []Item{{"base", d.baseRef + " (" + d.base.Digest + ")"}},
		})
	}
	if len(d.steps) > 0 {
		in := Input{Kind: "steps", Name: "docker steps", Description: count(len(d.steps), "step"), Digest: digestOf(d.stepRecords())}
		for _, s := range d.steps {
			in.Items = append(in.Items, Item{Text: s})
		}
		out = append(out, in)
	}
	if len(d.images) > 0 {
		in := Input{Kind: "images", Name: "further images", Description: count(len(d.images), "image"), Digest: digestOf(d.imageRecords())}
		for _, i := range d.images {
			in.Items = append(in.Items, Item{i.Reference, i.Reference + " (" + i.Digest + ")"})
		}
		out = append(out, in)
	}
	out = appendFiles(out, "context", "copied files", "file", d.context)
	if c := d.conda; c != nil {
		out = append(out, Input{
			Kind: "micromamba", Name: "micromamba", Digest: digestOfBytes([]byte(d.micromamba)), Description: d.micromamba,
			Items: []Item{{"micromamba", d.micromamba}},
		})
		in := Input{Kind: "conda", Name: c.path, Digest: digestOf(c.records()), Description: count(len(c.packages), "Conda package") + " from " + count(len(c.channels), "channel")}
		for _, s := range c.channels {
			in.Items = append(in.Items, Item{"channel " + s, "channel " + s})
		}
		for _, p := range c.packages {
			name, _ := splitConda(p.spec)
			in.Items = append(in.Items, Item{name, p.spec})
		}
		for _, r := range c.records() {
			if r.kind == "conda-key" {
				in.Items = append(in.Items, Item{r.fields[0], r.fields[0] + ": " + r.fields[1]})
			}
		}
		out = append(out, in)
	}
	out = d.appendPip(out)
	return appendFiles(out, "package-files", "files of packages", "package-file", d.packages)
}

// appendPip adds an input for each file that has requirements, by the order of its first one.
func (d *Definition) appendPip(out []Input) []Input {
	var files []string
	lines := map[string][]pipLine{}
	if d.requirements != "" {
		files = append(files, d.requirements) // even if it has none
	}
	for _, l := range d.pip {
		if !slices.Contains(files, l.at.file) {
			files = append(files, l.at.file)
		}
		lines[l.at.file] = append(lines[l.at.file], l)
	}
	for _, f := range files {
		in := Input{Kind: "requirements", Name: f, Description: count(len(lines[f]), "line")}
		var records []record
		for _, l := range lines[f] {
			records = append(records, l.records()...)
			in.Items = append(in.Items, Item{l.name(), strings.Join(append([]string{l.shown()}, l.with...), " ")})
		}
		in.Digest = digestOf(records)
		out = append(out, in)
	}
	return out
}

func appendFiles(out []Input, kind, name, recordKind string, set fileSet) []Input {
	if len(set) == 0 {
		return out
	}
	in := Input{Kind: kind, Name: name, Description: count(len(set), "file")}
	var records []record
	for _, e := range set.sorted() {
		records = append(records, e.record(recordKind))
		in.Items = append(in.Items, Item{e.path, string(e.mode) + " " + e.value})
	}
	in.Digest = digestOf(records)
	return append(out, in)
}

func lineItems(text string) []Item {
	var out []Item
	for line := range strings.Lines(text) {
		out = append(out, Item{Text: strings.TrimRight(line, "\n")})
	}
	return out
}

func count(n int, what string) string {
	if n != 1 {
		what += "s"
	}
	return strconv.Itoa(n) + " " + what
}

// name that the line keeps when it changes.
func (l pipLine) name() string {
	switch {
	case l.local != "":
		return l.text
	case l.kind == pipOption:
		name, _, _ := strings.Cut(l.text, "=")
		return name
	}
	if n := requirementName.FindString(l.text); n != "" && !strings.Contains(n, "://") {
		return string(l.kind) + " " + pipName(n)
	}
	return l.text
}

// shown is the line as its file has it.
func (l pipLine) shown() string {
	switch l.kind {
	case pipEditable:
		return "-e " + l.text
	case pipConstraint:
		return "constraint " + l.text
	}
	return l.text
}

// Change is a difference between the inputs of two hashes.
type Change struct {
	// Kind and Name are the input's.
	Kind string `json:"kind"`
	Name string `json:"name"`
	// Text says what changed of it.
	Text string `json:"text"`
}

// String is NAME: TEXT.
func (c Change) String() string { return c.Name + ": " + c.Text }

// Explain says which inputs differ between an earlier hash and a later one; none do if the hashes are
// the same. A hash of another format is said to differ as a whole.
func Explain(earlier, now Summary) []Change {
	if earlier.Format != now.Format {
		return []Change{{"format", "format", fmt.Sprintf("hashes were made by format %d, now by %d", earlier.Format, now.Format)}}
	}
	if earlier.Hash == now.Hash {
		return nil
	}
	var out []Change
	for _, was := range earlier.Inputs {
		is := inputOf(now, was)
		if is == nil {
			out = append(out, Change{was.Kind, was.Name, "removed"})
			continue
		}
		out = append(out, compareInputs(was, *is)...)
	}
	for _, is := range now.Inputs {
		if inputOf(earlier, is) == nil {
			out = append(out, Change{is.Kind, is.Name, "added"})
		}
	}
	if len(out) == 0 {
		out = append(out, reordered(now))
	}
	return out
}

// reordered is what differs between two hashes of inputs that are alike: the lines of files that stand in one another's.
func reordered(now Summary) Change {
	var files []string
	for _, in := range now.Inputs {
		if in.Kind == "requirements" {
			files = append(files, in.Name)
		}
	}
	if len(files) == 0 {
		return Change{"order", "inputs", "another order"}
	}
	return Change{"requirements", strings.Join(files, ", "), "another order: what stands behind -r or -c comes earlier or later among the other lines"}
}

func inputOf(s Summary, like Input) *Input {
	for i, in := range s.Inputs {
		if in.Kind == like.Kind && in.Name == like.Name {
			return &s.Inputs[i]
		}
	}
	return nil
}

func compareInputs(was, is Input) []Change {
	if was.Digest == is.Digest {
		return nil
	}
	old, now := without(was.Items, is.Items), without(is.Items, was.Items)
	var out []Change
	add := func(format string, args ...any) {
		out = append(out, Change{is.Kind, is.Name, fmt.Sprintf(format, args...)})
	}
	for _, o := range old {
		i := slices.IndexFunc(now, func(n Item) bool { return n.Name == o.Name })
		switch {
		case i < 0:
			add("removed %s", o.shown(is.Kind))
			continue
		case isFiles(is.Kind):
			add("%s changed", o.Name)
		default:
			add("%s → %s", o.Text, now[i].Text)
		}
		now = slices.Delete(slices.Clone(now), i, i+1)
	}
	for _, n := range now {
		add("added %s", n.shown(is.Kind))
	}
	if len(out) == 0 {
		add("another order")
	}
	return out
}

func isFiles(kind string) bool { return kind == "context" || kind == "package-files" }

func (i Item) shown(kind string) string {
	if isFiles(kind) {
		return i.Name
	}
	return i.Text
}

// without gives the items of a that b does not have, each counted as often as it stands.
func without(a, b []Item) []Item {
	left := map[Item]int{}
	for _, i := range b {
		left[i]++
	}
	var out []Item
	for _, i := range a {
		if left[i]--; left[i] < 0 {
			out = append(out, i)
		}
	}
	return out
}

// Unpinned are the packages that are not fixed to one version, as FILE:LINE: SPEC, in their order. Today's
// build and tomorrow's may install different ones under the same hash. Constraints pin as well. What
// docker steps install is not looked at.
func (d *Definition) Unpinned() []string {
	var out []string
	if d.conda != nil {
		for _, p := range d.conda.packages {
			if !condaPinned(p.spec) {
				out = append(out, p.at.String()+": "+p.spec)
			}
		}
	}
	constrained := map[string]bool{}
	for _, l := range d.pip {
		if l.kind == pipConstraint && l.pinned() {
			constrained[pipName(requirementName.FindString(l.text))] = true
		}
	}
	for _, l := range d.pip {
		if l.kind != pipRequirement && l.kind != pipEditable || l.pinned() {
			continue
		}
		if l.kind == pipRequirement && !strings.Contains(l.text, "://") && constrained[pipName(requirementName.FindString(l.text))] {
			continue
		}
		out = append(out, l.at.String()+": "+l.shown())
	}
	return out
}

// pipName is a package's name as indexes compare it (PEP 503).
func pipName(s string) string {
	return strings.Join(strings.FieldsFunc(strings.ToLower(s), func(r rune) bool { return r == '-' || r == '_' || r == '.' }), "-")
}

var (
	// repositoryScheme begins the address of a repository (pip, "VCS Support").
	repositoryScheme = regexp.MustCompile(`(?:^|[ @])(?:git|hg|svn|bzr)\+[a-z+]+://`)
	// fragmentHash is the hash of an archive in its address.
	fragmentHash = regexp.MustCompile(`#(?:.*&)?(?:sha256=[0-9a-f]{64}|sha384=[0-9a-f]{96}|sha512=[0-9a-f]{128})(?:$|[& ;])`)
	// condaHash is that of a package in its address (conda, "explicit" specifications).
	condaHash = regexp.MustCompile(`#(?:[0-9a-f]{32}|(?:sha256:)?[0-9a-f]{64})$`)
)

// pinned says whether a line names one version: by ==, by hash, by an address with a hash (of a repository: with the
// commit's full one), or as a package of the project.
func (l pipLine) pinned() bool {
	if l.local != "" || slices.ContainsFunc(l.with, func(w string) bool { return strings.HasPrefix(w, "--hash=") }) {
		return true
	}
	if _, address, isURL := strings.Cut(l.text, "://"); isURL {
		if !repositoryScheme.MatchString(l.text) && l.kind != pipEditable {
			return fragmentHash.MatchString(l.text)
		}
		address, _, _ = strings.Cut(address, "#")
		address = strings.TrimSpace(strings.SplitN(address, " ", 2)[0])
		return commitPattern.MatchString(address[strings.LastIndexByte(address, '@')+1:])
	}
	spec, _, _ := strings.Cut(l.text, ";")
	_, version, exact := strings.Cut(spec, "==")
	return exact && !strings.ContainsAny(version, "*")
}

// splitConda takes a spec apart: [CHANNEL::]NAME and what stands behind it.
func splitConda(spec string) (name, rest string) {
	if i := strings.LastIndex(spec, "::"); i >= 0 {
		spec = spec[i+2:]
	}
	if i := strings.IndexAny(spec, " =<>!~["); i > 0 {
		return spec[:i], spec[i:]
	}
	return spec, ""
}

// condaPinned says whether a spec names one version: NAME==VERSION, NAME VERSION or NAME=VERSION=BUILD without a
// wildcard, or an address with a hash. NAME=VERSION is any that begins so (conda, "Package match specifications").
func condaPinned(spec string) bool {
	if strings.Contains(spec, "://") && !strings.Contains(spec, "::") {
		return condaHash.MatchString(spec)
	}
	_, rest := splitConda(spec)
	if strings.Trim(rest, "= ") == "" || strings.ContainsAny(rest, "<>!~|,*[") {
		return false
	}
	version, fuzzy := strings.CutPrefix(rest, "=")
	return !fuzzy || strings.HasPrefix(version, "=") || strings.ContainsAny(version, "= ")
}
