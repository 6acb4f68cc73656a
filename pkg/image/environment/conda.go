package environment

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"path"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/sluice-dev/sluice/pkg/project"
)

// maxYAMLDepth is how deep values of a Conda definition may nest.
const maxYAMLDepth = 32

// condaFile is a Conda definition. What its pip list says stands in the definition's pip.
type condaFile struct {
	path     string // from the project's root, without links
	channels []string
	packages []condaPackage
	// others are further keys with their values in canonical JSON.
	others map[string]string
}

// condaPackage is an entry of dependencies.
type condaPackage struct {
	at   place
	spec string
}

func (c *condaFile) records() []record {
	var out []record
	for _, s := range c.channels {
		out = append(out, record{"channel", []string{s}})
	}
	for _, p := range c.packages {
		out = append(out, record{"package", []string{p.spec}})
	}
	for _, key := range slices.Sorted(maps.Keys(c.others)) {
		out = append(out, record{"conda-key", []string{key, c.others[key]}})
	}
	return out
}

// loadConda reads the project's Conda definition.
func (l *loader) loadConda(ctx context.Context, name string) error {
	at := place{field: fieldConda}
	p, err := at.local(name)
	if err != nil {
		return err
	}
	file := p
	data, given := l.given[p]
	if !given {
		to, err := l.t.resolve(at, p)
		if err != nil {
			return err
		}
		if data, err = l.t.readResolved(at, p, to); err != nil {
			return err
		}
		file = to.path
	}
	l.sources = append(l.sources, source{file, data})
	l.conda = &condaFile{path: file, others: map[string]string{}}
	r := condaReader{loader: l, file: p, pip: l.pipReader(fieldConda, path.Dir(file))}
	r.pip.open = []string{file}
	root, err := r.document(data)
	if err != nil {
		return err
	}
	return r.definition(ctx, root)
}

// CheckConda refuses a Conda definition as Load does, but for what other files of the project say that it names: they may not be
// there yet. name is the definition's, for refusals.
func CheckConda(name string, data []byte) error {
	l := loader{Definition: &Definition{given: map[string][]byte{name: data}, packages: fileSet{}}}
	return l.loadConda(context.Background(), name)
}

// condaReader reads a Conda definition strictly: what readers of YAML may understand differently is
// refused.
type condaReader struct {
	*loader
	file string
	pip  *pipReader
}

func (r *condaReader) at(line int) place { return place{file: r.file, line: line, field: fieldConda} }

// document parses the one document of data.
func (r *condaReader) document(data []byte) (*yaml.Node, error) {
	const hint = "see `conda env export` for how it is written"
	broken := func(err error) error {
		line, message := project.YAMLError(err)
		return r.at(line).invalid(hint, "is not YAML: %s", message)
	}
	dec := yaml.NewDecoder(bytes.NewReader(data))
	var doc, second yaml.Node
	switch err := dec.Decode(&doc); {
	case errors.Is(err, io.EOF):
		return nil, r.at(0).invalid("name channels and dependencies", "is empty")
	case err != nil:
		return nil, broken(err)
	}
	switch err := dec.Decode(&second); {
	case errors.Is(err, io.EOF):
	case err != nil:
		return nil, broken(err)
	default:
		return nil, r.at(second.Line).invalid("keep one document, without a further `---`", "holds several documents")
	}
	root := doc.Content[0]
	if root.Kind != yaml.MappingNode {
		return nil, r.at(root.Line).invalid("name channels and dependencies", "is no Conda definition: keys and values belong here")
	}
	return root, r.plain(root, 0)
}

// plain refuses, anywhere below n, what makes one text mean different things.
func (r *condaReader) plain(n *yaml.Node, depth int) error {
	at := r.at(n.Line)
	switch {
	case depth > maxYAMLDepth:
		return at.invalid("flatten it", "values nest deeper than %d", maxYAMLDepth)
	case n.Kind == yaml.AliasNode:
		return at.invalid("write the values out", "the alias *%s is not allowed", n.Value)
	case n.Style&yaml.TaggedStyle != 0:
		return at.invalid("leave the tag out", "the tag %s is not allowed", n.Tag)
	case n.Kind == yaml.MappingNode:
		seen := map[string]int{}
		for i := 0; i+1 < len(n.Content); i += 2 {
			k := n.Content[i]
			switch {
			case k.Kind == yaml.ScalarNode && k.ShortTag() == "!!merge":
				return r.at(k.Line).invalid("write the keys out", "merge keys are not allowed")
			case k.Kind != yaml.ScalarNode || k.ShortTag() != "!!str":
				return r.at(k.Line).invalid("put the key in quotes if it is meant", "a key must be text")
			}
			if line, twice := seen[k.Value]; twice {
				return r.at(k.Line).invalid("keep one of them", "the key %s stands twice, first in line %d", shown(k.Value), line)
			}
			seen[k.Value] = k.Line
		}
	}
	for _, c := range n.Content {
		if err := r.plain(c, depth+1); err != nil {
			return err
		}
	}
	return nil
}

// definition reads the keys of the document.
func (r *condaReader) definition(ctx context.Context, root *yaml.Node) error {
	dependencies := false
	for i := 0; i+1 < len(root.Content); i += 2 {
		key, value := root.Content[i], root.Content[i+1]
		var err error
		switch key.Value {
		case "name", "prefix": // where it is called what on somebody's machine
		case "channels":
			err = r.channels(value)
		case "dependencies":
			dependencies = true
			err = r.dependencies(ctx, value)
		default:
			text := canonicalYAML(value)
			if err = checkSecrets(r.at(value.Line), text); err == nil && condaAddressToken.MatchString(text) {
				err = r.at(value.Line).invalid("use a channel that needs none", "the address of a channel has credentials in it")
			}
			r.conda.others[key.Value] = text
		}
		if err != nil {
			return err
		}
	}
	if !dependencies {
		return r.at(root.Line).invalid("list the packages under `dependencies:`", "names no dependencies")
	}
	return nil
}

// text gives a scalar that must be text.
func (r *condaReader) text(n *yaml.Node, what string) (string, error) {
	if n.Kind != yaml.ScalarNode || n.ShortTag() != "!!str" || strings.TrimSpace(n.Value) == "" {
		return "", r.at(n.Line).invalid("write it as text, in quotes if it looks like a number", "%s must be text", what)
	}
	if strings.ContainsAny(n.Value, "\n\r\x00") {
		return "", r.at(n.Line).invalid("write it in one line", "%s has several lines", what)
	}
	s := strings.TrimSpace(n.Value)
	if strings.Contains(s, "$") {
		return "", r.at(n.Line).invalid("write its value out", "%s has a variable, whose value is not in the project", what)
	}
	return s, nil
}

func (r *condaReader) list(n *yaml.Node, what string) error {
	if n.Kind != yaml.SequenceNode {
		return r.at(n.Line).invalid("write it as a list, each entry behind `- `", "%s must be a list", what)
	}
	return nil
}

func (r *condaReader) channels(n *yaml.Node) error {
	if err := r.list(n, "channels"); err != nil {
		return err
	}
	for _, c := range n.Content {
		s, err := r.text(c, "a channel")
		if err != nil {
			return err
		}
		if strings.Contains(s, "://") || strings.HasPrefix(s, "file:") {
			err = checkURL(r.at(c.Line), s)
		} else if strings.HasPrefix(s, ".") || strings.HasPrefix(s, "/") || strings.HasPrefix(s, "~") {
			err = r.at(c.Line).invalid("name a channel by name or address", "%s: a channel on a disk is not in the build", s)
		} else if condaToken.MatchString("/"+s+"/") || strings.Contains(s, "@") {
			err = r.at(c.Line).invalid("use a channel that needs none", "a channel has credentials in it")
		}
		if err != nil {
			return err
		}
		r.conda.channels = append(r.conda.channels, s)
	}
	return nil
}

func (r *condaReader) dependencies(ctx context.Context, n *yaml.Node) error {
	if err := r.list(n, "dependencies"); err != nil {
		return err
	}
	pip := 0
	for _, c := range n.Content {
		if c.Kind == yaml.MappingNode {
			if len(c.Content) != 2 || c.Content[0].Value != "pip" {
				return r.at(c.Line).invalid("write `- pip:` and a list below it", "the only keys among dependencies can be pip")
			}
			if pip > 0 {
				return r.at(c.Line).invalid("make them one", "there are two lists of pip, the first in line %d", pip)
			}
			pip = c.Line
			if err := r.pipList(ctx, c.Content[1]); err != nil {
				return err
			}
			continue
		}
		s, err := r.text(c, "a dependency")
		if err != nil {
			return err
		}
		at := r.at(c.Line)
		channel, _, _ := strings.Cut(s, "::")
		switch {
		case channel != s && strings.Contains(channel, "@"):
			return at.invalid("use a channel that needs none", "a channel has credentials in it")
		case strings.Contains(s, "://") || strings.HasPrefix(s, "file:"):
			if err := checkURL(at, s); err != nil {
				return err
			}
		case strings.HasPrefix(s, ".") || strings.HasPrefix(s, "/") || strings.HasPrefix(s, "~"):
			return at.invalid("name a package of a channel, or a wheel under `pip:`", "%s: a package file of Conda in the project is not installed", s)
		default:
			s = tighten(s)
		}
		r.conda.packages = append(r.conda.packages, condaPackage{at, s})
	}
	return nil
}

// pipList reads what conda gives pip as a requirements file beside its own.
func (r *condaReader) pipList(ctx context.Context, n *yaml.Node) error {
	if err := r.list(n, "pip"); err != nil {
		return err
	}
	for _, c := range n.Content {
		at := r.at(c.Line)
		if c.Kind != yaml.ScalarNode || c.ShortTag() != "!!str" || strings.TrimSpace(c.Value) == "" {
			return at.invalid("write it as text, in quotes if it looks like a number", "a requirement must be text")
		}
		lines, err := pipLines(at, c.Value)
		if err != nil {
			return err
		}
		if len(lines) > 1 {
			return at.invalid("make each an entry of its own", "a requirement has several lines")
		}
		for _, line := range lines {
			if err := r.pip.line(ctx, at, line.text, dirOf(r.conda.path), pipRequirement); err != nil {
				return err
			}
		}
	}
	return nil
}

// canonicalYAML writes a value in one way: JSON with sorted keys and without white space, except
// that scalars other than text stand as they were written.
func canonicalYAML(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		values := map[string]string{}
		for i := 0; i+1 < len(n.Content); i += 2 {
			values[n.Content[i].Value] = canonicalYAML(n.Content[i+1])
		}
		var parts []string
		for _, key := range slices.Sorted(maps.Keys(values)) {
			parts = append(parts, jsonString(key)+":"+values[key])
		}
		return "{" + strings.Join(parts, ",") + "}"
	case yaml.SequenceNode:
		parts := make([]string, len(n.Content))
		for i, c := range n.Content {
			parts[i] = canonicalYAML(c)
		}
		return "[" + strings.Join(parts, ",") + "]"
	}
	switch n.ShortTag() {
	case "!!str":
		return jsonString(n.Value)
	case "!!null":
		return "null"
	}
	return n.Value
}

// jsonString is text, or a list of texts, in JSON with no more escapes than it needs.
func jsonString[T string | []string](v T) string {
	var b strings.Builder
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	_ = enc.Encode(v) // strings can always be encoded, and a Builder takes all
	return strings.TrimSuffix(b.String(), "\n")
}
