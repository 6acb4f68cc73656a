package rollout

import (
	"errors"
	"fmt"
	"strings"
)

// Error is a refusal: which rule, at which field, and the way out. It serves the
// command line, the Action, the API, replies, history and metrics alike.
type Error struct {
	Reason  Reason `json:"reasonCode"`
	Field   string `json:"field,omitempty"`
	Message string `json:"message"`
	Hint    string `json:"hint,omitempty"`
}

func (e *Error) Error() string {
	var b strings.Builder
	if e.Field != "" {
		fmt.Fprintf(&b, "%s: ", e.Field)
	}
	fmt.Fprintf(&b, "%s (%s)", e.Message, e.Reason)
	if e.Hint != "" {
		fmt.Fprintf(&b, "; %s", e.Hint)
	}
	return b.String()
}

// ReasonOf is the reason of the first *Error in err's tree, or ReasonInternal.
func ReasonOf(err error) Reason {
	var e *Error
	if errors.As(err, &e) {
		return e.Reason
	}
	return ReasonInternal
}

func refuse(reason Reason, field, hint, format string, args ...any) *Error {
	return &Error{Reason: reason, Field: field, Message: fmt.Sprintf(format, args...), Hint: hint}
}

// Joined is one error of several, nil without any.
func Joined(errs []*Error) error {
	var out []error
	for _, e := range errs {
		out = append(out, e)
	}
	return errors.Join(out...)
}
