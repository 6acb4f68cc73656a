package project

import (
	"reflect"

	"github.com/sluice-dev/sluice/rollout"
)

// Document is a file in YAML or JSON that was decoded as strictly as a manifest: an unknown key, one that
// stands twice, or a value of another type is an error with its place and the nearest known key. A field that
// is null is as if it were not there, and a whole number may have a point or an exponent, as JSON's may: 1.0, 1e4.
type Document struct {
	d    *decoder
	read bool
}

// Decode fills into, a pointer to a struct with JSON tags, from data; file names it in errors. elsewhere has hints for keys that
// people may write although the struct has no such field; begin says how the file is to begin, if it is empty. What into holds is only to be used if there are no errors.
func Decode(file string, data []byte, into any, elsewhere map[string]string, begin string) *Document {
	v := reflect.ValueOf(into).Elem()
	d := newDecoder(file, v.Type())
	d.elsewhere, d.begin, d.nullable, d.lenient = elsewhere, begin, true, true
	read := d.decode(data, v)
	if !read && len(d.errs) == 0 {
		d.errs = append(d.errs, &Error{File: file, Refusal: refuse(rollout.ReasonInvalid, "", begin, "holds no keys and values")})
	}
	return &Document{d, read}
}

// Read says whether the file holds keys and values, so that it makes sense to say which are missing.
func (d *Document) Read() bool { return d.read }

// Has tells whether a field, a path of keys with dots, is there and has a value that is not null.
func (d *Document) Has(field string) bool {
	_, there := d.d.at[field]
	return there && !d.d.null[field]
}

// Place of a field, or of the nearest above it that is there.
func (d *Document) Place(field string) Place {
	p, ok := d.d.at[field]
	for !ok && field != "" {
		field = ParentField(field)
		p, ok = d.d.at[field]
	}
	return Place{File: d.d.file, Line: p.line, Column: p.column}
}

// Refuse records a mistake, at the place of its field, unless the field has one already.
func (d *Document) Refuse(e *rollout.Error) { d.d.report(e) }

// Errors are the mistakes that were found.
func (d *Document) Errors() []*Error { return d.d.errs }

// JoinErrors joins mistakes in the order of files and places, one *Error each and at most 20 of them; nil if there are none.
func JoinErrors(errs []*Error) error {
	if len(errs) == 0 {
		return nil
	}
	return joinPositioned(errs)
}
