package project

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/sluice-dev/sluice/rollout"
)

// Bounds of a manifest. An alias counts as often as it is used.
const (
	maxNodes = 50_000
	maxDepth = 64
)

type position struct{ line, column int }

// decoder fills Go values from YAML nodes as encoding/json would by their tags, but
// strictly, with places, and without stopping at the first mistake.
type decoder struct {
	file  string
	nodes int
	// at holds the place of each field by its path: that of the key, or of the
	// element in a list.
	at map[string]position
	// suspect holds the fields that have a mistake already, and those that a
	// misspelt key probably meant, so that they are not called missing as well.
	suspect map[string]bool
	// null holds the fields that are there without a value; nullable says that they are as if they were not there.
	null     map[string]bool
	nullable bool
	// lenient takes whole numbers as JSON may have them, 1.0 and 1e4.
	lenient bool
	// root is the type of the document. elsewhere has hints for keys that it does not have.
	root      reflect.Type
	elsewhere map[string]string
	// begin says how a file that is empty is to begin.
	begin string
	errs  []*Error
}

// decodeManifest decodes data. The manifest is nil if nothing could be decoded; it
// is only to be used by others if there are no errors.
func decodeManifest(file string, data []byte) (*Manifest, *decoder) {
	var m Manifest
	d := newDecoder(file, reflect.TypeFor[Manifest]())
	d.begin = "begin it with `apiVersion: " + rollout.APIVersion + "` and `kind: " + Kind + "`"
	if !d.decode(data, reflect.ValueOf(&m).Elem()) {
		return nil, d
	}
	return &m, d
}

func newDecoder(file string, root reflect.Type) *decoder {
	return &decoder{file: file, root: root, at: map[string]position{"": {}}, suspect: map[string]bool{}, null: map[string]bool{}}
}

// decode fills v, and tells whether data holds keys and values at all.
func (d *decoder) decode(data []byte, v reflect.Value) bool {
	root := d.document(data)
	if root == nil {
		return false
	}
	d.at[""] = position{root.Line, root.Column}
	d.value(root, v, "", 0)
	return root.Kind == yaml.MappingNode
}

// document parses the one document of data.
func (d *decoder) document(data []byte) *yaml.Node {
	whole := func(line int, hint, format string, args ...any) *yaml.Node {
		d.errs = append(d.errs, &Error{File: d.file, Line: line, Refusal: refuse(rollout.ReasonInvalid, "", hint, format, args...)})
		return nil
	}
	if len(data) > MaxManifestSize {
		return whole(0, "list data in files of their own", "is larger than %d bytes", MaxManifestSize)
	}
	dec := yaml.NewDecoder(bytes.NewReader(data))
	var doc yaml.Node
	err := dec.Decode(&doc)
	if errors.Is(err, io.EOF) {
		return whole(0, d.begin, "is empty")
	}
	if err != nil {
		line, message := YAMLError(err)
		return whole(line, "", "is not YAML: %s", message)
	}
	if doc.Kind != yaml.DocumentNode || len(doc.Content) != 1 || isNull(doc.Content[0]) {
		return whole(0, d.begin, "is empty")
	}
	var second yaml.Node
	switch err := dec.Decode(&second); {
	case errors.Is(err, io.EOF):
	case err != nil:
		line, message := YAMLError(err)
		return whole(line, "", "is not YAML: %s", message)
	default:
		return whole(second.Line, "keep one document, without a further `---`", "holds several documents")
	}
	return doc.Content[0]
}

var yamlLine = regexp.MustCompile(`^(?:yaml: )?(?:line (\d+): )?(?s:(.*))$`)

// YAMLError takes the line, from 1, out of an error of go.yaml.in/yaml/v3; 0 if it names none.
func YAMLError(err error) (line int, message string) {
	parts := yamlLine.FindStringSubmatch(err.Error())
	if parts == nil {
		return 0, err.Error()
	}
	line, _ = strconv.Atoi(parts[1])
	message = parts[2]
	// The library counts lines from 1 in its scanner's errors, but from 0 in its
	// parser's, which are these.
	for _, begin := range []string{
		"did not find expected key", "did not find expected node content", "did not find expected '-' indicator",
		"did not find expected ','", "did not find expected <", "found undefined tag handle", "found duplicate %", "found incompatible YAML",
	} {
		if strings.HasPrefix(message, begin) {
			line++
		}
	}
	return line, message
}

// fail records a mistake at a node.
func (d *decoder) fail(n *yaml.Node, reason rollout.Reason, field, hint, format string, args ...any) {
	d.suspect[field] = true
	if len(field) > 200 { // only in values that are nested for no purpose
		field = strings.ToValidUTF8(field[:200], "") + "…"
	}
	d.errs = append(d.errs, &Error{File: d.file, Line: n.Line, Column: n.Column, Refusal: refuse(reason, field, hint, format, args...)})
}

// report records a mistake found after decoding, unless its field has one already.
func (d *decoder) report(e *rollout.Error) {
	if d.suspect[e.Field] {
		return
	}
	if e.Field == "scoring" && (d.suspect["scoring.entryScript"] || d.suspect["scoring.command"]) {
		return
	}
	p, ok := d.at[e.Field]
	for f := e.Field; !ok; p, ok = d.at[f] {
		f = ParentField(f)
	}
	d.errs = append(d.errs, &Error{File: d.file, Line: p.line, Column: p.column, Refusal: e})
}

// ParentField cuts the last key or index off a path of fields: version.autoscale of
// version.autoscale.enabled. It is empty for a field at the top.
func ParentField(f string) string {
	if strings.HasSuffix(f, "]") {
		if i := strings.LastIndexByte(f, '['); i >= 0 {
			return f[:i]
		}
	}
	return f[:max(strings.LastIndexByte(f, '.'), 0)]
}

func child(field, key string) string {
	if field == "" {
		return key
	}
	return field + "." + key
}

func isNull(n *yaml.Node) bool {
	return n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null"
}

// enter bounds the walk and follows aliases. False means: go no further here.
func (d *decoder) enter(n *yaml.Node, field string, depth int) (*yaml.Node, bool) {
	const hint = "write it out in fewer or flatter values"
	if d.nodes > maxNodes {
		return nil, false // said already
	}
	if d.nodes++; d.nodes > maxNodes {
		d.fail(n, rollout.ReasonInvalid, field, hint, "the file has more than %d values, aliases counted as often as they are used", maxNodes)
		return nil, false
	}
	if depth > maxDepth {
		d.fail(n, rollout.ReasonInvalid, field, hint, "values nest deeper than %d", maxDepth)
		return nil, false
	}
	if n.Kind == yaml.AliasNode {
		return d.enter(n.Alias, field, depth+1)
	}
	if n.Style&yaml.TaggedStyle != 0 {
		d.fail(n, rollout.ReasonInvalid, field, "leave the tag out", "the tag %s is not allowed", n.Tag)
		return nil, false
	}
	return n, true
}

var unmarshaler = reflect.TypeFor[json.Unmarshaler]()

// value decodes n into v, which can be set.
func (d *decoder) value(n *yaml.Node, v reflect.Value, field string, depth int) {
	n, ok := d.enter(n, field, depth)
	if !ok {
		return
	}
	t := v.Type()
	if isNull(n) {
		switch t.Kind() {
		case reflect.Pointer, reflect.Map, reflect.Slice, reflect.Struct, reflect.Interface:
			return // as if the key were not there
		}
		d.fail(n, rollout.ReasonInvalid, field, "give it a value, or remove it", "has no value")
		return
	}
	if t.Kind() == reflect.Pointer {
		elem := reflect.New(t.Elem())
		d.value(n, elem.Elem(), field, depth)
		v.Set(elem)
		return
	}
	if t == reflect.TypeFor[rollout.EnvValue]() && n.Kind == yaml.MappingNode {
		// Its own decoder would refuse an unknown key, but without place and suggestion.
		var ref struct {
			Secret string `json:"secret"`
			Key    string `json:"key"`
		}
		before := len(d.errs)
		d.structure(n, reflect.ValueOf(&ref).Elem(), field, depth)
		if len(d.errs) > before {
			return
		}
	}
	if v.Addr().Type().Implements(unmarshaler) {
		raw, ok := d.json(n, field, depth)
		if !ok {
			return
		}
		if err := v.Addr().Interface().(json.Unmarshaler).UnmarshalJSON(raw); err != nil {
			d.fail(n, rollout.ReasonInvalid, field, "", "%v", err)
		}
		return
	}
	switch t.Kind() {
	case reflect.Struct:
		if d.kind(n, yaml.MappingNode, field) {
			d.structure(n, v, field, depth)
		}
	case reflect.Map:
		if d.kind(n, yaml.MappingNode, field) {
			d.mapping(n, v, field, depth)
		}
	case reflect.Slice:
		if d.kind(n, yaml.SequenceNode, field) {
			d.sequence(n, v, field, depth)
		}
	case reflect.Interface:
		raw, ok := d.json(n, field, depth)
		if !ok {
			return
		}
		var x any
		if err := json.Unmarshal(raw, &x); err != nil {
			d.fail(n, rollout.ReasonInvalid, field, "", "%v", err)
			return
		}
		v.Set(reflect.ValueOf(x))
	default:
		d.scalar(n, v, field)
	}
}

// describe says in a reader's words what a node is.
func describe(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "keys and values"
	case yaml.SequenceNode:
		return "a list"
	}
	shown := n.Value
	if len(shown) > 40 {
		shown = strings.ToValidUTF8(shown[:40], "") + "…"
	}
	switch n.ShortTag() {
	case "!!int", "!!float":
		return shown + ", a number"
	case "!!bool":
		return shown + ", a truth value"
	case "!!timestamp":
		return shown + ", a date"
	}
	return fmt.Sprintf("%q, text", shown)
}

// kind checks that n is a mapping or a list where one is wanted.
func (d *decoder) kind(n *yaml.Node, want yaml.Kind, field string) bool {
	if n.Kind == want {
		return true
	}
	wanted, hint := "keys and values belong", "write `key: value` pairs, indented, below it"
	if want == yaml.SequenceNode {
		wanted, hint = "a list belongs", "write it as a list: [one, two]"
	}
	d.fail(n, rollout.ReasonInvalid, field, hint, "%s here, not %s", wanted, describe(n))
	return false
}

// keyOf reads a mapping's key and refuses duplicates.
func (d *decoder) keyOf(k *yaml.Node, seen map[string]int, field string) (string, bool) {
	k, ok := d.enter(k, field, 0)
	if !ok {
		return "", false
	}
	if k.Kind == yaml.ScalarNode && k.ShortTag() == "!!merge" {
		d.fail(k, rollout.ReasonInvalid, child(field, k.Value), "write the keys out", "merge keys are not allowed")
		return "", false
	}
	if k.Kind != yaml.ScalarNode || k.ShortTag() != "!!str" {
		d.fail(k, rollout.ReasonInvalid, field, "put the key in quotes if it is meant", "a key must be text, not %s", describe(k))
		return "", false
	}
	if line, dup := seen[k.Value]; dup {
		d.fail(k, rollout.ReasonInvalid, child(field, k.Value), "keep one of them", "the key stands twice, first in line %d", line)
		return "", false
	}
	seen[k.Value] = k.Line
	return k.Value, true
}

// place remembers where a field stands.
func (d *decoder) place(field string, n *yaml.Node) {
	d.at[field] = position{n.Line, n.Column}
}

func (d *decoder) structure(n *yaml.Node, v reflect.Value, field string, depth int) {
	known := fieldsOf(v.Type())
	seen := map[string]int{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, ok := d.keyOf(n.Content[i], seen, field)
		if !ok {
			continue
		}
		at := slices.IndexFunc(known, func(f jsonField) bool { return f.name == key })
		if at < 0 {
			d.unknown(n.Content[i], key, known, field)
			continue
		}
		f := child(field, key)
		d.place(f, n.Content[i])
		if isNull(n.Content[i+1]) {
			if d.null[f] = true; d.nullable {
				continue
			}
		}
		d.value(n.Content[i+1], v.FieldByIndex(known[at].index), f, depth+1)
	}
}

// unknown reports a key that the type does not have, with the nearest that it has.
func (d *decoder) unknown(k *yaml.Node, key string, known []jsonField, field string) {
	names := make([]string, len(known))
	for i, f := range known {
		names[i] = f.name
	}
	near, distance := nearest(key, names)
	hint := fmt.Sprintf("did you mean %q?", near)
	if other, known := d.elsewhere[key]; known {
		hint, near = other, ""
	} else if distance > 1 {
		if elsewhere := d.knownElsewhere(key); elsewhere != "" {
			hint = fmt.Sprintf("it belongs to %s", elsewhere)
			near = ""
		} else if distance > max(2, len(key)/2) {
			hint = fmt.Sprintf("the nearest known key is %q; known here are %s", near, strings.Join(names, ", "))
			near = ""
		}
	}
	shown := key
	if len(shown) > 64 {
		shown = strings.ToValidUTF8(shown[:64], "") + "…"
	}
	d.fail(k, rollout.ReasonUnknownField, child(field, shown), hint, "unknown key %q", shown)
	if near != "" {
		d.suspect[child(field, near)] = true
	}
}

func (d *decoder) mapping(n *yaml.Node, v reflect.Value, field string, depth int) {
	if len(n.Content) == 0 {
		return
	}
	out := reflect.MakeMap(v.Type())
	seen := map[string]int{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, ok := d.keyOf(n.Content[i], seen, field)
		if !ok {
			continue
		}
		f := field + "[" + key + "]"
		d.place(f, n.Content[i])
		elem := reflect.New(v.Type().Elem()).Elem()
		d.value(n.Content[i+1], elem, f, depth+1)
		out.SetMapIndex(reflect.ValueOf(key).Convert(v.Type().Key()), elem)
	}
	v.Set(out)
}

func (d *decoder) sequence(n *yaml.Node, v reflect.Value, field string, depth int) {
	if len(n.Content) == 0 {
		return
	}
	// Lists can be no longer than the document, so this is bounded.
	out := reflect.MakeSlice(v.Type(), len(n.Content), len(n.Content))
	for i, c := range n.Content {
		f := fmt.Sprintf("%s[%d]", field, i)
		d.place(f, c)
		if isNull(c) {
			d.fail(c, rollout.ReasonInvalid, f, "give it a value, or remove it", "has no value")
			continue
		}
		d.value(c, out.Index(i), f, depth+1)
	}
	v.Set(out)
}

// decimal is a whole number as JSON has it: YAML's 0x1f, 0o17, 017 and 1_000 are
// refused because readers disagree on what they mean.
var decimal = regexp.MustCompile(`^[-+]?(?:0|[1-9][0-9]*)$`)

func (d *decoder) scalar(n *yaml.Node, v reflect.Value, field string) {
	wrong := func(want, hint string) {
		d.fail(n, rollout.ReasonInvalid, field, hint, "%s belongs here, not %s", want, describe(n))
	}
	tag := n.ShortTag()
	if n.Kind != yaml.ScalarNode {
		tag = ""
	}
	switch v.Kind() {
	case reflect.String:
		if tag != "!!str" {
			hint := ""
			if tag != "" {
				hint = fmt.Sprintf("put it in quotes: %q", n.Value)
			}
			wrong("text", hint)
			return
		}
		if !d.text(n, field) {
			return
		}
		v.SetString(n.Value)
	case reflect.Bool:
		if tag != "!!bool" {
			wrong("true or false", "write true or false without quotes")
			return
		}
		v.SetBool(strings.EqualFold(n.Value, "true"))
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		text := n.Value
		if tag == "!!float" && d.lenient {
			if whole, ok := wholeNumber(n); ok {
				tag, text = "!!int", whole
			}
		}
		if tag != "!!int" || !decimal.MatchString(text) {
			wrong("a whole number", "write it with decimal digits only and without quotes")
			return
		}
		i, err := strconv.ParseInt(text, 10, v.Type().Bits())
		if err != nil {
			wrong("a whole number", "use a smaller one")
			return
		}
		v.SetInt(i)
		d.zero(n, i == 0, field)
	case reflect.Float32, reflect.Float64:
		raw, ok := number(n)
		if !ok {
			wrong("a number", "write it in decimal, such as 0.01, and without quotes")
			return
		}
		f, err := strconv.ParseFloat(raw, 64)
		if err != nil {
			wrong("a number", "use one that is not as large")
			return
		}
		v.SetFloat(f)
		d.zero(n, f == 0, field)
	default:
		// A field of a kind that no manifest type has; a test guards it.
		d.fail(n, rollout.ReasonInternal, field, "", "cannot be decoded into %s", v.Type())
	}
}

// wholeNumber is a number with a point or an exponent, such as 1.0 or 1e4, as a whole one, if it is one that floats have exactly.
func wholeNumber(n *yaml.Node) (string, bool) {
	raw, ok := number(n)
	if !ok {
		return "", false
	}
	f, err := strconv.ParseFloat(raw, 64)
	if err != nil || f != math.Trunc(f) || math.Abs(f) > 1<<53 {
		return "", false
	}
	return strconv.FormatInt(int64(f), 10), true
}

// zero refuses a zero that would be taken for a field that is left out.
func (d *decoder) zero(n *yaml.Node, is bool, field string) {
	if !is {
		return
	}
	if e := rollout.ExplicitZero(field); e != nil {
		d.fail(n, e.Reason, field, e.Hint, "%s", e.Message)
	}
}

// text refuses what no argument, path or variable can hold.
func (d *decoder) text(n *yaml.Node, field string) bool {
	if strings.ContainsRune(n.Value, 0) {
		d.fail(n, rollout.ReasonInvalid, field, "remove it", "holds a NUL character")
		return false
	}
	return true
}

// number is a YAML number as JSON writes it; infinities and NaN are not numbers.
func number(n *yaml.Node) (string, bool) {
	if n.Kind != yaml.ScalarNode {
		return "", false
	}
	switch n.ShortTag() {
	case "!!int":
		return strings.TrimPrefix(n.Value, "+"), decimal.MatchString(n.Value)
	case "!!float":
		raw := strings.TrimPrefix(n.Value, "+")
		if strings.HasPrefix(raw, ".") {
			raw = "0" + raw
		}
		// As written, since a detour over a float could add or lose decimals.
		return raw, json.Valid([]byte(raw))
	}
	return "", false
}

// json gives a node as JSON for types that decode themselves.
func (d *decoder) json(n *yaml.Node, field string, depth int) ([]byte, bool) {
	switch n.Kind {
	case yaml.MappingNode:
		out := []byte{'{'}
		seen := map[string]int{}
		for i := 0; i+1 < len(n.Content); i += 2 {
			key, ok := d.keyOf(n.Content[i], seen, field)
			if !ok {
				return nil, false
			}
			c, ok := d.enter(n.Content[i+1], child(field, key), depth+1)
			if !ok {
				return nil, false
			}
			raw, ok := d.json(c, child(field, key), depth+1)
			if !ok {
				return nil, false
			}
			if i > 0 {
				out = append(out, ',')
			}
			k, err := json.Marshal(key)
			if err != nil {
				return nil, false
			}
			out = append(append(append(out, k...), ':'), raw...)
		}
		return append(out, '}'), true
	case yaml.SequenceNode:
		out := []byte{'['}
		for i, c := range n.Content {
			f := fmt.Sprintf("%s[%d]", field, i)
			c, ok := d.enter(c, f, depth+1)
			if !ok {
				return nil, false
			}
			raw, ok := d.json(c, f, depth+1)
			if !ok {
				return nil, false
			}
			if i > 0 {
				out = append(out, ',')
			}
			out = append(out, raw...)
		}
		return append(out, ']'), true
	}
	switch n.ShortTag() {
	case "!!null":
		return []byte("null"), true
	case "!!bool":
		return []byte(strings.ToLower(n.Value)), true
	case "!!int", "!!float":
		raw, ok := number(n)
		if !ok {
			d.fail(n, rollout.ReasonInvalid, field, "write it in decimal, or put it in quotes if it is text", "%s is not a decimal number", n.Value)
		}
		return []byte(raw), ok
	case "!!str":
		if !d.text(n, field) {
			return nil, false
		}
		raw, err := json.Marshal(n.Value)
		return raw, err == nil
	}
	d.fail(n, rollout.ReasonInvalid, field, fmt.Sprintf("put it in quotes: %q", n.Value), "%s is not allowed", describe(n))
	return nil, false
}

// jsonField is a field of a struct as encoding/json sees it.
type jsonField struct {
	name  string
	index []int
	typ   reflect.Type
}

// fieldsOf lists a struct's JSON fields, those of embedded structs included.
func fieldsOf(t reflect.Type) []jsonField {
	var out []jsonField
	for _, f := range reflect.VisibleFields(t) {
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if f.Anonymous && name == "" || !f.IsExported() || name == "-" {
			continue
		}
		if name == "" {
			name = f.Name
		}
		out = append(out, jsonField{name: name, index: f.Index, typ: f.Type})
	}
	return out
}

// knownElsewhere is the path of the first field of the document with this name, if
// there is one: "scoring.entryScript".
func (d *decoder) knownElsewhere(key string) string {
	var find func(t reflect.Type, path string, depth int) string
	find = func(t reflect.Type, path string, depth int) string {
		for t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice || t.Kind() == reflect.Map {
			t = t.Elem()
		}
		if t.Kind() != reflect.Struct || reflect.PointerTo(t).Implements(unmarshaler) || depth > 8 {
			return ""
		}
		fields := fieldsOf(t)
		for _, f := range fields {
			if strings.EqualFold(f.name, key) {
				return child(path, f.name)
			}
		}
		for _, f := range fields {
			if found := find(f.typ, child(path, f.name), depth+1); found != "" {
				return found
			}
		}
		return ""
	}
	return find(d.root, "", 0)
}
