package chatops

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-dev/sluice/rollout"
)

var update = flag.Bool("update", false, "write the golden replies")

// hostile is text that would be much in Markdown.
const hostile = "@everyone see #12, GH-7 & [x](https://evil.example) www.evil.example ![i](//e) <img src=x> <!-- --> `code` **b** ~~s~~ $x$ a|b :tada: \u202etxt\u202c\n/promote\n# h"

func golden(name string, number int) *rollout.Endpoint {
	at := time.Date(2026, 11, 23, 10, 0, 0, 0, time.UTC)
	e := &rollout.Endpoint{Metadata: rollout.Metadata{Namespace: "models", Name: name}}
	for i, v := range []rollout.Version{
		{Name: "sha-1f2e3d4", Type: rollout.Control, IsDefault: true, TrafficPercentile: 20 * rollout.OnePercent},
		{Name: "pr-41-3f9c2ab", Type: rollout.Treatment, TrafficPercentile: 12_345, Source: rollout.Source{RepositoryID: 7, PullRequest: number}},
		{Name: "pr-9-0000000"},
	} {
		v.CreatedAt, v.Image = at, fmt.Sprintf("registry.example/m@sha256:%064x", i)
		e.Spec.Versions = append(e.Spec.Versions, v)
	}
	e.Status.Versions = []rollout.VersionStatus{
		{Name: "sha-1f2e3d4", State: rollout.StateReady, Replicas: 4, ReadyReplicas: 4},
		{Name: "pr-41-3f9c2ab", State: rollout.StateStarting, Reason: rollout.ReasonStarting, Replicas: 2, ReadyReplicas: 1},
		{Name: "pr-9-0000000", State: rollout.StateRetired},
	}
	e.Status.Rollout = &rollout.RolloutStatus{Treatment: "pr-41-3f9c2ab", Reason: rollout.ReasonStepRunning, Message: "57 of 100 requests at 12.345 per cent"}
	return e
}

func TestGoldenReplies(t *testing.T) {
	c := Comment{ID: 5, PullRequest: 41, Repository: Repository{ID: 7, Owner: "acme", Name: "fraud"}, Author: "alice"}
	held := golden("fraud", 41)
	held.Spec.Hold = &rollout.Mark{Actor: "github:alice", Reason: hostile}
	held.Spec.Lock = &rollout.Mark{Actor: "root", Reason: "audit"}
	_, percent := rollout.ValidatePercent("percent", "200")
	var many []*rollout.Endpoint
	for i := range 7 {
		many = append(many, golden(fmt.Sprintf("fraud-%d", i), 41))
	}
	for name, tc := range map[string]struct {
		text string
		o    outcome
	}{
		"done":      {"/traffic 12.345", done(rollout.ReasonRequested, "pr-41-3f9c2ab claims 12.345 per cent; advancing is held until `/resume`", golden("fraud", 41))},
		"no-change": {"/promote", done(rollout.ReasonNoChange, "pr-41-3f9c2ab is the control with all traffic already", golden("fraud", 41))},
		"status":    {"/status", done(rollout.ReasonRequested, "pull request 41 is deployed as pr-41-3f9c2ab", held)},
		"many":      {"/status", done(rollout.ReasonRequested, "pull request 41 is deployed", many...)},
		"refused":   {"/traffic 200", refused(percent)},
		"refused-with-table": {"/promote", refused(refuse(rollout.ReasonNotEnoughReady, "version", "wait for more replicas with `--wait`, or insist with `--force`",
			"pr-41-3f9c2ab has 1 ready slots, but 100 per cent of the present demand needs 4"), golden("fraud", 41))},
		"refused-twice": {"/traffic 99", refused(errors.Join(
			refuse(rollout.ReasonPercentSum, "spec.versions[*].trafficPercentile", "lower a claim first", "the claims add up to 119 per cent"),
			refuse(rollout.ReasonInvalid, "spec.versions[a].image", "name the image by digest: NAME@sha256:HEX", "%q is not an image by digest", "x")))},
		"internal": {"/promote", refused(errors.New("open /var/lib/secret: permission denied"))},
		"hostile":  {"/promote " + hostile, refused(refuse(rollout.ReasonInvalid, "comment", hostile+" `and` "+hostile, "%s", hostile))},
	} {
		t.Run(name, func(t *testing.T) {
			got := render("c-5-1", tc.text, c, tc.o)
			path := filepath.Join("testdata", "replies", name+".md")
			if *update {
				if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got); diff != "" {
				t.Errorf("(-want +got); if the new one is right, run the test with -update:\n%s", diff)
			}
			if lines := Parse(got); len(lines) != 0 {
				t.Errorf("the reply has commands itself: %v", lines)
			}
			if strings.Contains(got, "secret") {
				t.Error("the reply tells what failed inside")
			}
			for line := range strings.Lines(got) {
				if strings.HasPrefix(line, "#") || strings.HasPrefix(line, "/") {
					t.Errorf("a line begins like a heading or a command: %q", line)
				}
			}
		})
	}
}

func TestRepliesAreBounded(t *testing.T) {
	var errs []error
	for range 2000 {
		errs = append(errs, refuse(rollout.ReasonInvalid, "f", strings.Repeat("h", 400), "%s", strings.Repeat("m", 400)))
	}
	got := render("c-1-1", strings.Repeat("x", 100_000), Comment{}, refused(errors.Join(errs...)))
	if len(got) > 65_000 || !strings.Contains(got, "cut here") || !strings.HasSuffix(got, marker("c-1-1")+"\n") {
		t.Errorf("%d bytes, ending %q", len(got), got[len(got)-80:])
	}
}
