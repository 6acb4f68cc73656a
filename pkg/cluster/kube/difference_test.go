package kube

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	jsonpatch "gopkg.in/evanphx/json-patch.v4"

	"github.com/sluice-dev/sluice/rollout"
)

// TestDifference: the patch fits what is stored, in whatever spelling, makes the new spec of it and
// leaves what does not change as it was spelled.
func TestDifference(t *testing.T) {
	const stored = `{"spec": {
		"versions": [
			{"name": "a", "image": "r/a@sha256:00", "tags": {"x/y~z": "1", "0": "old"}, "createdAt": "2026-11-23T10:00:00.500000+01:00"},
			{"name": "b", "image": "r/b@sha256:00", "isDefault": false, "server": {"command": ["x", "y"]}}],
		"strategy": {"deadline": "60m", "alpha": 1e-2, "steps": [{"percent": 1.0, "minDuration": "120s"}]}}}`
	var was struct{ Spec rollout.Spec }
	if err := json.Unmarshal([]byte(stored), &was); err != nil {
		t.Fatal(err)
	}
	clone := func() *rollout.Spec { return &(&rollout.Endpoint{Spec: was.Spec}).Clone().Spec }
	for name, tc := range map[string]struct {
		change func(*rollout.Spec)
		want   string
	}{
		"nothing": {func(*rollout.Spec) {}, `[]`},
		"shares and a hold": {func(s *rollout.Spec) {
			s.Versions[1].TrafficPercentile, s.Versions[1].Type, s.Hold = 12_500, rollout.Treatment, &rollout.Mark{Reason: "look"}
		}, `[{"op":"add","path":"/spec/hold","value":{"reason":"look"}},{"op":"add","path":"/spec/versions/1/trafficPercentile","value":12.5},{"op":"add","path":"/spec/versions/1/type","value":"treatment"}]`},
		"keys with slashes, numbers and lists": {func(s *rollout.Spec) {
			s.Versions[0].Tags = map[string]string{"x/y~z": "2", "0": "new"}
			s.Versions[1].Server.Command[1] = "z"
			s.Strategy.Steps[0].Percent = 2000
		}, ""},
		"a strategy that goes": {func(s *rollout.Spec) { s.Strategy = nil }, `[{"op":"remove","path":"/spec/strategy"}]`},
		"a version more": {func(s *rollout.Spec) {
			s.Versions = append(s.Versions, rollout.Version{Name: "c", Image: "r/c@sha256:00", CreatedAt: time.Unix(1, 0).UTC()})
		}, ""},
		"a version less": {func(s *rollout.Spec) { s.Versions = s.Versions[1:] }, ""},
	} {
		t.Run(name, func(t *testing.T) {
			next := clone()
			tc.change(next)
			ops, err := difference("/spec", was.Spec, *next)
			if err != nil {
				t.Fatal(err)
			}
			raw, err := json.Marshal(append([]patchStep{}, ops...))
			if err != nil {
				t.Fatal(err)
			}
			if tc.want != "" && string(raw) != tc.want {
				t.Errorf("patch %s\nwant  %s", raw, tc.want)
			}
			patch, err := jsonpatch.DecodePatch(raw)
			if err != nil {
				t.Fatal(err)
			}
			out, err := patch.Apply([]byte(stored))
			if err != nil {
				t.Fatalf("%s: %v", raw, err)
			}
			var got struct{ Spec rollout.Spec }
			if err := json.Unmarshal(out, &got); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(*next, got.Spec); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}
