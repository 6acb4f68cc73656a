package kube

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/sluice-dev/sluice/rollout"
)

// TestRefusal makes the errors as the API server does, from its own list of field errors.
func TestRefusal(t *testing.T) {
	spec := field.NewPath("spec")
	version := spec.Child("versions").Index(1)
	for _, tc := range []struct {
		name string
		err  *field.Error
		want *rollout.Error
	}{
		{"rule of a list", field.Invalid(spec.Child("versions"), []any{map[string]any{"name": "a: b"}},
			"more than one version is the control; give the role with `sluice update ENDPOINT VERSION --control`, which moves it [two_controls]"),
			&rollout.Error{Reason: rollout.ReasonTwoControls, Field: "spec.versions", Message: "more than one version is the control",
				Hint: "give the role with `sluice update ENDPOINT VERSION --control`, which moves it"}},
		{"hint with a semicolon", field.Invalid(spec.Child("versions"), "array", "the claims add up to more than 100 per cent; lower a claim first; what no version claims goes to the default [percent_sum]"),
			&rollout.Error{Reason: rollout.ReasonPercentSum, Field: "spec.versions", Message: "the claims add up to more than 100 per cent", Hint: "lower a claim first; what no version claims goes to the default"}},
		{"number", field.Invalid(version.Child("trafficPercentile"), 33.3333, "not a share; write a number from 0 to 100 with at most three decimals, such as 12.5 [percent_invalid]"),
			&rollout.Error{Reason: rollout.ReasonPercentInvalid, Field: "spec.versions[1].trafficPercentile", Message: "not a share", Hint: "write a number from 0 to 100 with at most three decimals, such as 12.5"}},
		{"text with quotes and a colon", field.Invalid(version.Child("image"), `a": b; c [invalid]`, "the image of a version never changes: it is r/a@sha256:00; deploy it as a version with a new name [version_exists]"),
			&rollout.Error{Reason: rollout.ReasonVersionExists, Field: "spec.versions[1].image", Message: "the image of a version never changes: it is r/a@sha256:00", Hint: "deploy it as a version with a new name"}},
		{"object as a whole", field.Invalid(nil, "object", "metadata.name: not a name for an endpoint; use 1 to 32 lower-case letters [invalid]"),
			&rollout.Error{Reason: rollout.ReasonInvalid, Field: "metadata.name", Message: "not a name for an endpoint", Hint: "use 1 to 32 lower-case letters"}},
		{"seventeenth version", field.TooMany(spec.Child("versions"), 17, 16),
			&rollout.Error{Reason: rollout.ReasonTooManyVersions, Field: "spec.versions", Message: "Too many: 17: must have at most 16 items", Hint: "delete one with `sluice delete ENDPOINT VERSION`"}},
		{"name twice", field.Duplicate(version, map[string]any{"name": "a"}),
			&rollout.Error{Reason: rollout.ReasonVersionExists, Field: "spec.versions[1]", Message: `Duplicate value: {"name":"a"}`, Hint: "give each version a name of its own"}},
		{"enumeration", field.NotSupported(version.Child("type"), "canary", []string{"control", "treatment"}),
			&rollout.Error{Reason: rollout.ReasonInvalid, Field: "spec.versions[1].type", Message: `Unsupported value: "canary": supported values: "control", "treatment"`, Hint: "use one of the supported values"}},
		{"required", field.Required(version.Child("image"), ""),
			&rollout.Error{Reason: rollout.ReasonInvalid, Field: "spec.versions[1].image", Message: "Required value", Hint: "give it"}},
		{"bound", field.Invalid(version.Child("replicas"), int64(-1), "spec.versions[1].replicas in body should be greater than or equal to 0"),
			&rollout.Error{Reason: rollout.ReasonInvalid, Field: "spec.versions[1].replicas", Message: "spec.versions[1].replicas in body should be greater than or equal to 0", Hint: "correct it; `kubectl explain mep.spec` says what may stand there"}},
		{"variable that is no text", field.Invalid(version.Child("environmentVariables", "THREADS"), int64(5), "spec.versions[1].environmentVariables.THREADS in body should be less than or equal to 0"),
			&rollout.Error{Reason: rollout.ReasonInvalid, Field: "spec.versions[1].environmentVariables.THREADS", Message: "neither text nor a whole reference", Hint: "put the value in quotes, or write {secret: NAME, key: KEY}"}},
		{"variable that is true", field.Invalid(nil, "", `"spec.versions[1].environmentVariables.FAST" must not validate the schema (not)`),
			&rollout.Error{Reason: rollout.ReasonInvalid, Field: "spec.versions[1].environmentVariables.FAST", Message: "neither text nor a whole reference", Hint: "put the value in quotes, or write {secret: NAME, key: KEY}"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			skipped := field.Invalid(nil, nil, "some validation rules were not checked because the object was invalid; correct the existing errors to complete validation")
			invalid := apierrors.NewInvalid(schema.GroupKind{Group: "sluice.dev", Kind: "ModelEndpoint"}, "fraud", field.ErrorList{tc.err, skipped})
			err := refusal(fmt.Errorf("update endpoint: %w", invalid))
			if diff := cmp.Diff([]*rollout.Error{tc.want}, rollout.AsErrors(err)); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
			var one *rollout.Error
			if !errors.As(err, &one) || rollout.ReasonOf(err) != tc.want.Reason {
				t.Errorf("%v is no *rollout.Error", err)
			}
		})
	}
}

func TestRefusalOfUnknownFields(t *testing.T) {
	err := refusal(apierrors.NewBadRequest(`strict decoding error: unknown field "spec.colour", unknown field "spec.versions[0].size"`))
	got := rollout.AsErrors(err)
	if len(got) != 2 || got[0].Reason != rollout.ReasonUnknownField || got[0].Field != "spec.colour" || got[1].Field != "spec.versions[0].size" || got[0].Hint == "" {
		t.Errorf("got %v", err)
	}
}

func TestRefusalLeavesOtherErrors(t *testing.T) {
	gr := schema.GroupResource{Group: "sluice.dev", Resource: "modelendpoints"}
	for _, err := range []error{nil, context.Canceled, apierrors.NewConflict(gr, "fraud", errors.New("changed")), apierrors.NewNotFound(gr, "fraud"), apierrors.NewBadRequest("no")} {
		if got := refusal(err); !errors.Is(got, err) {
			t.Errorf("%v became %v", err, got)
		}
	}
}
