package azureml

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"strconv"
	"unicode/utf16"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"

	"github.com/sluice-dev/sluice/pkg/project"
)

// head of a sluice.yaml that was made.
const head = "# Made from Azure ML's configuration files; docs/azureml.md says what became of what.\n"

// Marshal writes a manifest for people: keys in the order of the documentation, the same bytes for the same manifest.
func Marshal(m *project.Manifest) ([]byte, error) {
	raw, err := json.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("write manifest: %w", err)
	}
	text, err := ordered(raw)
	if err != nil {
		return nil, fmt.Errorf("write manifest: %w", err)
	}
	return append([]byte(head), text...), nil
}

// ordered writes JSON as YAML with its keys in their order.
func ordered(raw []byte) ([]byte, error) {
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.UseNumber()
	n, err := node(dec)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	enc := yaml.NewEncoder(&b)
	enc.SetIndent(2)
	if err := enc.Encode(n); err != nil {
		return nil, err
	}
	return b.Bytes(), enc.Close()
}

// node reads the next value.
func node(dec *json.Decoder) (*yaml.Node, error) {
	t, err := dec.Token()
	if err != nil {
		return nil, err
	}
	switch x := t.(type) {
	case json.Delim:
		n := &yaml.Node{Kind: yaml.SequenceNode}
		if x == '{' {
			n.Kind = yaml.MappingNode
		}
		for dec.More() {
			c, err := node(dec) // a key is a value as well
			if err != nil {
				return nil, err
			}
			n.Content = append(n.Content, c)
		}
		if len(n.Content) == 0 {
			n.Style = yaml.FlowStyle
		}
		_, err := dec.Token()
		return n, err
	case string:
		n := &yaml.Node{}
		n.SetString(x)
		if !plain(x) {
			n.Style = yaml.DoubleQuotedStyle
		}
		return n, nil
	case json.Number:
		tag := "!!float"
		if _, err := x.Int64(); err == nil {
			tag = "!!int"
		}
		return &yaml.Node{Kind: yaml.ScalarNode, Tag: tag, Value: x.String()}, nil
	case bool:
		return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!bool", Value: strconv.FormatBool(x)}, nil
	}
	return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!null", Value: "null"}, nil
}

// plain tells whether a text may be written as the library sees fit. A block of several lines keeps its text only if that is
// printable and begins and ends with none of what blocks are ended by.
func plain(s string) bool {
	for _, r := range s {
		if r != '\n' && (r < ' ' || r == utf8.RuneError || r == 0x7f || r == 0x85 || r == 0xa0 || r == 0x2028 || r == 0x2029 || r == 0xfeff) {
			return false
		}
	}
	return len(s) == 0 || s[0] != ' ' && s[0] != '\n'
}

// nearly forgives what floating point adds to a decimal.
const nearly = 1e-6

// cores is a quantity of CPU.
func cores(n float64) string {
	milli := max(int64(math.Ceil(n*1000-nearly)), 1)
	if milli%1000 == 0 {
		return strconv.FormatInt(milli/1000, 10)
	}
	return strconv.FormatInt(milli, 10) + "m"
}

// gibibytes is a quantity of memory, rounded up to whole mebibytes.
func gibibytes(n float64) string {
	mebi := max(int64(math.Ceil(n*1024-nearly)), 1)
	if mebi%1024 == 0 {
		return strconv.FormatInt(mebi/1024, 10) + "Gi"
	}
	return strconv.FormatInt(mebi, 10) + "Mi"
}

// surrogates reads two escapes, \uD83D\uDE00, that are one character.
func surrogates(text []byte) (rune, bool) {
	if len(text) < 12 || text[1] != 'u' || text[6] != '\\' || text[7] != 'u' {
		return 0, false
	}
	high, err1 := strconv.ParseUint(string(text[2:6]), 16, 16)
	low, err2 := strconv.ParseUint(string(text[8:12]), 16, 16)
	if err1 != nil || err2 != nil {
		return 0, false
	}
	r := utf16.DecodeRune(rune(high), rune(low))
	return r, r != utf8.RuneError
}
