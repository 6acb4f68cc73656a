package kube

import (
	"encoding/json"
	"errors"
	"regexp"
	"strconv"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/sluice-dev/sluice/rollout"
)

var (
	// ruled is the message of one of our rules: "RULE; WAY OUT [reason]".
	ruled = regexp.MustCompile(`(?s)^(.*?); (.*) \[([a-z_]+)\]$`)
	// unread names the fields that strict decoding found nowhere, or twice.
	unread = regexp.MustCompile(`(unknown|duplicate) field "([^"]+)"`)
)

// refusal turns the API server's refusal of an object into the domain's: one *rollout.Error per cause, with
// the reason, rule and way out of the rule that was broken. Any other error, nil too, comes back as it is.
func refusal(err error) error {
	var status apierrors.APIStatus
	if !errors.As(err, &status) {
		return err
	}
	var out []error
	switch s := status.Status(); {
	case apierrors.IsInvalid(err) && s.Details != nil:
		for _, c := range s.Details.Causes {
			// The rules that were not looked at are no rule that was broken.
			if !strings.Contains(c.Message, "some validation rules were not checked") {
				out = append(out, ofCause(c))
			}
		}
	case apierrors.IsBadRequest(err):
		for _, m := range unread.FindAllStringSubmatch(s.Message, -1) {
			out = append(out, &rollout.Error{
				Reason: rollout.ReasonUnknownField, Field: m[2], Message: "this is an " + m[1] + " field",
				Hint: "see `kubectl explain mep.spec` for the fields that there are",
			})
		}
	}
	if len(out) == 0 {
		return err
	}
	return errors.Join(out...)
}

func ofCause(c metav1.StatusCause) *rollout.Error {
	e := &rollout.Error{Reason: rollout.ReasonInvalid, Field: c.Field, Message: detail(c.Message)}
	if e.Field == "<nil>" {
		e.Field = ""
	}
	if m := ruled.FindStringSubmatch(e.Message); m != nil {
		e.Message, e.Hint, e.Reason = m[1], m[2], rollout.Reason(m[3])
		if e.Field == "" {
			// A rule over the whole object names the field itself.
			if field, rule, ok := strings.Cut(e.Message, ": "); ok && !strings.Contains(field, " ") {
				e.Field, e.Message = field, rule
			}
		}
		return e
	}
	if e.Field == "" {
		if quoted, err := strconv.QuotedPrefix(e.Message); err == nil {
			e.Field, _ = strconv.Unquote(quoted)
			e.Message = strings.TrimSpace(e.Message[len(quoted):])
		}
	}
	// The schema's own checks know no way out.
	if strings.Contains(e.Field, ".environmentVariables.") {
		// The schema says "a string or an object" in a roundabout way.
		e.Message, e.Hint = "neither text nor a whole reference", "put the value in quotes, or write {secret: NAME, key: KEY}"
		return e
	}
	switch c.Type {
	case metav1.CauseTypeFieldValueDuplicate:
		e.Reason, e.Hint = rollout.ReasonVersionExists, "give each version a name of its own"
		if !strings.HasPrefix(e.Field, "spec.versions") {
			e.Reason, e.Hint = rollout.ReasonInvalid, "leave one of them out"
		}
	case metav1.CauseTypeFieldValueNotSupported:
		e.Hint = "use one of the supported values"
	case metav1.CauseTypeFieldValueRequired:
		e.Hint = "give it"
	case tooMany:
		e.Hint = "leave some out"
		if e.Field == "spec.versions" {
			e.Reason, e.Hint = rollout.ReasonTooManyVersions, "delete one with `sluice delete ENDPOINT VERSION`"
		}
	default:
		e.Hint = "correct it; `kubectl explain mep.spec` says what may stand there"
	}
	return e
}

// tooMany is field.ErrorTypeTooMany, for which the API has no constant.
const tooMany metav1.CauseType = "FieldValueTooMany"

// detail is the message without "Invalid value: VALUE: " before it.
func detail(message string) string {
	rest, ok := strings.CutPrefix(message, "Invalid value: ")
	if !ok {
		return message
	}
	end := strings.Index(rest, ": ")
	if quoted, err := strconv.QuotedPrefix(rest); err == nil {
		end = len(quoted)
	} else if strings.HasPrefix(rest, "{") || strings.HasPrefix(rest, "[") {
		var value json.RawMessage
		d := json.NewDecoder(strings.NewReader(rest))
		if d.Decode(&value) == nil {
			end = int(d.InputOffset())
		}
	}
	if end >= 0 {
		if d, ok := strings.CutPrefix(rest[end:], ": "); ok {
			return d
		}
	}
	return message
}
