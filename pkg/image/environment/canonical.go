package environment

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"strconv"
)

// Format is the number in the first line of the canonical form.
const Format = 1

// record is a line of the canonical form.
type record struct {
	kind   string
	fields []string
}

// encode writes records in the canonical form, without its first line.
func encode(b *bytes.Buffer, records []record) {
	for _, r := range records {
		b.WriteString(r.kind)
		for _, f := range r.fields {
			b.WriteByte(' ')
			b.WriteString(strconv.Itoa(len(f)))
			b.WriteByte(':')
			b.WriteString(f)
		}
		b.WriteByte('\n')
	}
}

// Canonical is the canonical form of the definition, as the package's documentation has it.
func (d *Definition) Canonical() []byte {
	var b bytes.Buffer
	b.WriteString("sluice-environment " + strconv.Itoa(Format) + "\n")
	encode(&b, d.records())
	return b.Bytes()
}

// Hash is the SHA-256 of Canonical in lower-case hex.
func (d *Definition) Hash() string {
	sum := sha256.Sum256(d.Canonical())
	return hex.EncodeToString(sum[:])
}

// records of the whole definition, in their order.
func (d *Definition) records() []record {
	out := []record{{"platform", []string{d.platform}}}
	if d.dockerfile != nil {
		out = append(out, record{"dockerfile", []string{d.dockerfile.text}})
	} else {
		out = append(out, record{"base", []string{d.base.Digest}})
	}
	out = append(out, d.stepRecords()...)
	out = append(out, d.imageRecords()...)
	for _, e := range d.context.sorted() {
		out = append(out, e.record("file"))
	}
	if c := d.conda; c != nil {
		out = append(out, record{"micromamba", []string{d.micromamba}})
		out = append(out, c.records()...)
	}
	for _, l := range d.pip {
		out = append(out, l.records()...)
	}
	for _, e := range d.packages.sorted() {
		out = append(out, e.record("package-file"))
	}
	return out
}

func (d *Definition) stepRecords() []record {
	var out []record
	for _, s := range d.steps {
		out = append(out, record{"step", []string{s}})
	}
	return out
}

func (d *Definition) imageRecords() []record {
	var out []record
	for _, i := range d.images {
		out = append(out, record{"image", []string{i.Reference, i.Digest}})
	}
	return out
}

func (e entry) record(kind string) record {
	return record{kind, []string{e.path, string(e.mode), e.value}}
}

// digestOf is the SHA-256 of records, with the algorithm's name before it.
func digestOf(records []record) string {
	var b bytes.Buffer
	encode(&b, records)
	return digestOfBytes(b.Bytes())
}

func digestOfBytes(b []byte) string {
	sum := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(sum[:])
}
