package local

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"
	yamlnode "go.yaml.in/yaml/v3"
	"sigs.k8s.io/yaml"

	"github.com/sluice-dev/sluice/pkg/cluster"
	"github.com/sluice-dev/sluice/rollout"
)

// maxEndpointFile bounds an endpoint's file. Six versions, 20 changes, 50 entries
// of history and the evidence need well under 200 KiB.
const maxEndpointFile = 4 << 20

// FileError is a mistake in a file that people may edit, with its place.
type FileError struct {
	Path string
	// Line counts from 1; 0 is the file as a whole.
	Line int
	// Err is a *rollout.Error where a rule was broken.
	Err error
}

func (e *FileError) Error() string {
	if e.Line == 0 {
		return e.Path + ": " + e.Err.Error()
	}
	return e.Path + ":" + strconv.Itoa(e.Line) + ": " + e.Err.Error()
}

// Unwrap gives the rule that was broken.
func (e *FileError) Unwrap() error { return e.Err }

// The head of a file that Sluice wrote. The check line tells, in any process and
// after any restart, whether people edited the file since, and what they may not change.
const (
	headNote  = "# Kept by Sluice. What you change in the spec by hand counts as soon as the file is saved;\n# a mistake is refused and logged, and what was there before stays in force.\n"
	headCheck = "# sluice-check: "
)

// check is the check line. Hashes are the first 8 bytes of a SHA-256 in hexadecimal.
type check struct {
	// Body is over everything below the line.
	Body string `json:"body"`
	// Spec is over the spec as written, Versions over what never changes of each version.
	Spec     string            `json:"spec"`
	Versions map[string]string `json:"versions,omitempty"`
}

// stored is what a file holds.
type stored struct {
	// endpoint as readers get it. Its resource version is counter-hash: the counter that the
	// last write stored, and a hash of the file's bytes. So an edit by hand changes the resource
	// version too, although nobody counts it up.
	endpoint *rollout.Endpoint
	counter  int64
}

// writtenBySluice says whether nobody touched the file since Sluice wrote it.
func writtenBySluice(data []byte) bool {
	c, body, ok := splitCheck(data)
	return ok && c.Body == hash8(body)
}

func splitCheck(data []byte) (check, []byte, bool) {
	rest := data
	for bytes.HasPrefix(rest, []byte("#")) {
		line, after, _ := bytes.Cut(rest, []byte("\n"))
		rest = after
		text, found := bytes.CutPrefix(line, []byte(headCheck))
		if !found {
			continue
		}
		var c check
		if err := json.Unmarshal(text, &c); err != nil {
			return check{}, nil, false
		}
		return c, rest, true
	}
	return check{}, nil, false
}

// encodeEndpoint is the file that holds e under that counter.
func encodeEndpoint(e *rollout.Endpoint, counter int64) ([]byte, error) {
	out := *e
	out.Metadata.ResourceVersion = strconv.FormatInt(counter, 10)
	j, err := json.Marshal(&out)
	if err != nil {
		return nil, err
	}
	body, err := yaml.JSONToYAML(escapeUnprintable(j))
	if err != nil {
		return nil, err
	}
	c := check{Body: hash8(body), Spec: specHash(&e.Spec), Versions: map[string]string{}}
	for i := range e.Spec.Versions {
		v := &e.Spec.Versions[i]
		c.Versions[v.Name] = identityHash(v)
	}
	line, err := json.Marshal(c)
	if err != nil {
		return nil, err
	}
	data := slices.Concat([]byte(headNote), []byte(headCheck), line, []byte("\n"), body)
	if len(data) > maxEndpointFile {
		return nil, fmt.Errorf("the endpoint has %d bytes as YAML, more than %d", len(data), maxEndpointFile)
	}
	return data, nil
}

// escapeUnprintable writes as \uXXXX what JSON may hold as it is and a YAML reader
// refuses (YAML 1.2 section 5.1): status messages quote what models print.
func escapeUnprintable(j []byte) []byte {
	printable := func(r rune) bool {
		// U+0085 is printable, and a line break to YAML readers.
		return r < 0x7f || r >= 0xa0 && r < 0xd800 || r >= 0xe000 && r < 0xfeff || r > 0xfeff && r < 0xfffe || r >= 0x10000
	}
	var out []byte
	done := 0
	for i := 0; i < len(j); {
		r, n := utf8.DecodeRune(j[i:])
		if !printable(r) {
			out = append(out, j[done:i]...)
			out = fmt.Appendf(out, `\u%04x`, r)
			done = i + n
		}
		i += n
	}
	if out == nil {
		return j
	}
	return append(out, j[done:]...)
}

// decodeEndpoint reads and checks a file. modified gives a file that Sluice did not
// write its creation time. Errors are *FileError, possibly joined.
func decodeEndpoint(path string, key rollout.Key, data []byte, modified time.Time) (*stored, error) {
	fail := func(line int, err error) error { return &FileError{Path: path, Line: line, Err: err} }
	invalid := func(err error) error {
		return &rollout.Error{Reason: rollout.ReasonInvalid, Message: err.Error(), Hint: "correct the file"}
	}
	if len(bytes.TrimSpace(data)) == 0 {
		return nil, fail(0, &rollout.Error{Reason: rollout.ReasonInvalid, Message: "the file is empty", Hint: "to delete an endpoint use `sluice delete ENDPOINT`"})
	}
	var doc yamlnode.Node
	if err := yamlnode.Unmarshal(data, &doc); err != nil {
		return nil, fail(lineIn(err), invalid(trimYAML(err)))
	}
	e := new(rollout.Endpoint)
	if err := yaml.UnmarshalStrict(data, e); err != nil {
		line := lineIn(err)
		if line == 0 {
			line = culprit(&doc, err)
		}
		return nil, fail(line, invalid(trimYAML(err)))
	}

	if e.Metadata.Namespace == "" {
		e.Metadata.Namespace = key.Namespace
	}
	if e.Metadata.Name == "" {
		e.Metadata.Name = key.Name
	}
	if e.Key() != key {
		return nil, fail(lineOf(&doc, "metadata"), &rollout.Error{
			Reason: rollout.ReasonInvalid, Field: "metadata", Message: fmt.Sprintf("the file of %s holds %s", key, e.Key()),
			Hint: "call the file NAMESPACE/NAME.yaml",
		})
	}
	c, _, checked := splitCheck(data)
	var errs []error
	if err := errors.Join(cluster.ValidateEndpoint(e), validateSpec(&e.Spec)); err != nil {
		for _, rule := range rollout.AsErrors(err) {
			errs = append(errs, fail(lineOf(&doc, rule.Field), rule))
		}
		if len(errs) == 0 {
			return nil, fail(0, err)
		}
	}
	for _, rule := range explicitZeros(data) {
		errs = append(errs, fail(lineOf(&doc, rule.Field), rule))
	}
	for i := range e.Spec.Versions {
		v := &e.Spec.Versions[i]
		if was, there := c.Versions[v.Name]; there && was != identityHash(v) {
			field := fmt.Sprintf("spec.versions[%s]", v.Name)
			errs = append(errs, fail(lineOf(&doc, field), &rollout.Error{
				Reason: rollout.ReasonVersionExists, Field: field, Message: "image, source.repositoryId or source.commit was edited, and a version never changes",
				Hint: "deploy it as a version with a new name",
			}))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}

	m := &e.Metadata
	e.APIVersion, e.Kind = rollout.APIVersion, rollout.Kind
	// A file that people made has no identity until its first write: its time of change stands in.
	if m.UID == "" {
		m.UID = uuid.NewSHA1(uuid.NameSpaceURL, fmt.Appendf(nil, "%s@%d", key, modified.UnixNano())).String()
	}
	if m.CreationTimestamp.IsZero() {
		m.CreationTimestamp = modified.UTC().Truncate(time.Second)
	}
	m.Generation = max(m.Generation, 1)
	if checked && c.Spec != specHash(&e.Spec) {
		m.Generation++
	}
	counterText, _, _ := strings.Cut(m.ResourceVersion, "-")
	counter, err := strconv.ParseInt(counterText, 10, 64)
	if err != nil || counter < 0 {
		counter = 0
	}
	sum := sha256.Sum256(data)
	m.ResourceVersion = fmt.Sprintf("%d-%x", counter, sum[:6])
	return &stored{endpoint: e, counter: counter}, nil
}

// explicitZeros looks for them in what was written, which the endpoint does not tell any more.
func explicitZeros(data []byte) []*rollout.Error {
	var written struct {
		Spec any `json:"spec"`
	}
	if err := yaml.Unmarshal(data, &written); err != nil {
		return nil // it has been decoded before
	}
	return rollout.ExplicitZeros("spec", written.Spec)
}

func specHash(s *rollout.Spec) string {
	b, err := json.Marshal(s)
	if err != nil {
		return "" // such as a share that cannot be: matches nothing
	}
	return hash8(b)
}

// identityHash is over what never changes under a version's name.
func identityHash(v *rollout.Version) string {
	return hash8(fmt.Appendf(nil, "%q %d %q", v.Image, v.Source.RepositoryID, v.Source.Commit))
}

func hash8(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:8])
}

var (
	yamlLine  = regexp.MustCompile(`\bline (\d+)\b`)
	yamlPlace = regexp.MustCompile(`^line \d+: `)
)

// lineIn is the line that a YAML error names, or 0.
func lineIn(err error) int {
	m := yamlLine.FindStringSubmatch(err.Error())
	if m == nil {
		return 0
	}
	n, _ := strconv.Atoi(m[1])
	return n
}

func trimYAML(err error) error {
	s := err.Error()
	for _, p := range []string{"error unmarshaling JSON: while decoding JSON: ", "error converting YAML to JSON: ", "yaml: ", "json: "} {
		s = strings.TrimPrefix(s, p)
	}
	return errors.New(yamlPlace.ReplaceAllString(s, ""))
}

// lineOf is the line of a field such as "spec.versions[v1].image", or of the
// nearest thing above it that the document has.
func lineOf(doc *yamlnode.Node, field string) int {
	n := root(doc)
	if n == nil {
		return 0
	}
	line := n.Line
	for _, step := range fieldSteps.FindAllString(field, -1) {
		var next *yamlnode.Node
		name := strings.Trim(step, "[]")
		switch n.Kind {
		case yamlnode.MappingNode:
			for i := 0; i+1 < len(n.Content); i += 2 {
				if n.Content[i].Value == name {
					line, next = n.Content[i].Line, n.Content[i+1]
				}
			}
		case yamlnode.SequenceNode:
			for i, item := range n.Content {
				if strconv.Itoa(i) == name || mapValue(item, "name") == name {
					line, next = item.Line, item
				}
			}
		}
		if next == nil {
			break
		}
		n = next
	}
	return line
}

var fieldSteps = regexp.MustCompile(`[^.\[\]]+|\[[^\]]*\]`)

func root(doc *yamlnode.Node) *yamlnode.Node {
	if doc.Kind != yamlnode.DocumentNode || len(doc.Content) == 0 {
		return nil
	}
	return doc.Content[0]
}

func mapValue(n *yamlnode.Node, name string) string {
	if n.Kind == yamlnode.MappingNode {
		for i := 0; i+1 < len(n.Content); i += 2 {
			if n.Content[i].Value == name {
				return n.Content[i+1].Value
			}
		}
	}
	return ""
}

// culprit is the line of what makes the document fail to decode with that error,
// which does not say where: the innermost node without which the error is another. It costs
// one decoding per node on the way, for a file that somebody has just mistyped.
func culprit(doc *yamlnode.Node, cause error) int {
	budget := 2000
	blames := func() bool {
		if budget--; budget < 0 {
			return false
		}
		text, err := yamlnode.Marshal(doc)
		if err != nil {
			return false
		}
		err = yaml.UnmarshalStrict(text, new(rollout.Endpoint))
		return err == nil || err.Error() != cause.Error()
	}
	var descend func(n *yamlnode.Node) int
	descend = func(n *yamlnode.Node) int {
		step := 1
		if n.Kind == yamlnode.MappingNode {
			step = 2
		}
		all := n.Content
		for i := 0; i+step <= len(all); i += step {
			n.Content = slices.Concat(all[:i], all[i+step:])
			to := blames()
			n.Content = all
			if !to {
				continue
			}
			if line := descend(all[i+step-1]); line != 0 {
				return line
			}
			return all[i].Line
		}
		return 0
	}
	if n := root(doc); n != nil {
		return descend(n)
	}
	return 0
}
