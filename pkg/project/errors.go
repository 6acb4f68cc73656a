package project

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/sluice-dev/sluice/rollout"
)

// maxReported bounds how many mistakes one error lists.
const maxReported = 20

// Error is a refusal with the place in a file that caused it.
type Error struct {
	// File as it was named to Load or Parse.
	File string
	// Line and Column count from 1; 0 means the file as a whole.
	Line, Column int
	// Refusal is the rule that was broken and the way out.
	Refusal *rollout.Error
}

func (e *Error) Error() string { return e.Place() + ": " + e.Refusal.Error() }

// Place is where the mistake is: FILE, FILE:LINE or FILE:LINE:COLUMN.
func (e *Error) Place() string {
	var b strings.Builder
	b.WriteString(e.File)
	if e.Line > 0 {
		fmt.Fprintf(&b, ":%d", e.Line)
		if e.Column > 0 {
			fmt.Fprintf(&b, ":%d", e.Column)
		}
	}
	return b.String()
}

// Unwrap gives the *rollout.Error.
func (e *Error) Unwrap() error { return e.Refusal }

// Errors lists the positioned mistakes in err's tree, in the order in which they
// were joined.
func Errors(err error) []*Error {
	switch x := err.(type) { //nolint:errorlint // the tree itself is walked
	case nil:
		return nil
	case *Error:
		return []*Error{x}
	case interface{ Unwrap() []error }:
		var out []*Error
		for _, e := range x.Unwrap() {
			out = append(out, Errors(e)...)
		}
		return out
	}
	return Errors(errors.Unwrap(err))
}

// joinPositioned sorts by file and place and joins; what is over the limit is counted.
func joinPositioned(errs []*Error) error {
	slices.SortStableFunc(errs, func(a, b *Error) int {
		if a.File != b.File {
			return strings.Compare(a.File, b.File)
		}
		if a.Line != b.Line {
			return a.Line - b.Line
		}
		return a.Column - b.Column
	})
	out := make([]error, 0, min(len(errs), maxReported+1))
	for i, e := range errs {
		if i == maxReported {
			out = append(out, fmt.Errorf("… and %d more", len(errs)-maxReported))
			break
		}
		out = append(out, e)
	}
	return errors.Join(out...)
}

func refuse(reason rollout.Reason, field, hint, format string, args ...any) *rollout.Error {
	return &rollout.Error{Reason: reason, Field: field, Message: fmt.Sprintf(format, args...), Hint: hint}
}
