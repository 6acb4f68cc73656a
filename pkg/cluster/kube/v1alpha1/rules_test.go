package v1alpha1_test

import (
	"fmt"
	"regexp"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/util/validation/field"
	"sigs.k8s.io/yaml"

	"github.com/sluice-dev/sluice/rollout"
)

func TestRefused(t *testing.T) {
	s := newServer(t, "modelendpoints")
	for _, tc := range refused {
		t.Run(tc.name, func(t *testing.T) {
			want(t, s.create(t, object(t, endpointYAML("fraud", tc.object))), tc.field, tc.words)
			// A change from a good object to this one is refused as well.
			if !strings.Contains(tc.object, "name: a, image: r/a") {
				return
			}
			want(t, s.update(t, object(t, endpointYAML("fraud", tc.object)), object(t, endpointYAML("fraud", one("")))), tc.field, tc.words)
		})
	}
}

// want is a refusal at that field in those words, and no rule that failed to run.
func want(t *testing.T, errs field.ErrorList, path, words string) {
	t.Helper()
	found := false
	for _, err := range errs {
		found = found || err.Field == path && strings.Contains(err.Error(), words)
		if strings.Contains(err.Error(), "evaluat") || strings.Contains(err.Error(), "no such") {
			t.Errorf("a rule failed to run: %v", err)
		}
	}
	if !found {
		t.Errorf("refused with %v,\nwant %q at %s", errs, words, path)
	}
}

func TestNames(t *testing.T) {
	s := newServer(t, "modelendpoints")
	for name, ok := range map[string]bool{
		"a": true, "fraud-2": true, strings.Repeat("a", 32): true,
		strings.Repeat("a", 33): false, "2fraud": false, "fraud-": false, "fraud.v2": false,
	} {
		errs := s.create(t, object(t, endpointYAML(name, one(""))))
		if ok {
			for _, err := range errs {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		if len(errs) != 1 || !strings.Contains(errs[0].Error(), "metadata.name: not a name for an endpoint; use 1 to 32") {
			t.Errorf("%s: refused with %v", name, errs)
		}
	}
}

func TestAccepted(t *testing.T) {
	s := newServer(t, "modelendpoints")
	for _, tc := range accepted {
		t.Run(tc.name, func(t *testing.T) {
			obj := object(t, endpointYAML("fraud", tc.object))
			for _, err := range s.create(t, obj) {
				t.Error(err)
			}
			for _, err := range s.update(t, obj, object(t, endpointYAML("fraud", versions(1)))) {
				t.Errorf("as a change: %v", err)
			}
			var e rollout.Endpoint
			if err := yaml.Unmarshal([]byte(endpointYAML("fraud", tc.object)), &e); err != nil {
				t.Errorf("stored, but clients cannot read it: %v", err)
			}
		})
	}
}

func TestNeverChanges(t *testing.T) {
	s := newServer(t, "modelendpoints")
	was := object(t, endpointYAML("fraud", two(", source: {repositoryId: 7, commit: c0ffee}", "")))
	for _, tc := range []struct{ name, spec, field, words string }{
		{"image", strings.Replace(two(", source: {repositoryId: 7, commit: c0ffee}", ""), "r/b@", "r/other@", 1), "spec.versions[1].image",
			"the image of a version never changes: it is r/b" + digest + "; deploy it as a version with a new name [version_exists]"},
		{"repository", two(", source: {repositoryId: 8, commit: c0ffee}", ""), "spec.versions[0].source.repositoryId", "the repository of a version never changes; deploy it as a version with a new name [version_exists]"},
		{"commit", two(", source: {repositoryId: 7, commit: decaf}", ""), "spec.versions[0].source.commit", "it is c0ffee; deploy"},
		{"source left out", two("", ""), "spec.versions[0].source.commit", "it is c0ffee; deploy"},
		{"source that was not given", two(", source: {repositoryId: 7, commit: c0ffee}", ", source: {commit: decaf}"), "spec.versions[1].source.commit", "it is not given; deploy"},
		{"image of a version that moved in the list", "versions:\n- {name: b, image: r/other" + digest + "}\n- {name: a, image: r/a" + digest + ", source: {repositoryId: 7, commit: c0ffee}}", "spec.versions[0].image", "it is r/b"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			want(t, s.update(t, object(t, endpointYAML("fraud", tc.spec)), was), tc.field, tc.words)
		})
	}
	for name, spec := range map[string]string{
		"settings":    two(", source: {repositoryId: 7, commit: c0ffee, runId: 5, pullRequest: 3}, replicas: 3, description: x", ", scoringTimeoutMs: 5"),
		"no version":  versions(1),
		"new version": two(", source: {repositoryId: 7, commit: c0ffee}", "") + "\n- {name: c, image: r/c" + digest + ", source: {commit: d}}",
	} {
		for _, err := range s.update(t, object(t, endpointYAML("fraud", spec)), was) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestRatcheting: what is stored already may stay, but no change of it slips through.
func TestRatcheting(t *testing.T) {
	s := newServer(t, "modelendpoints")
	// As if stored under older rules: two controls, an image by tag, claims of 150.
	bad := "versions:\n- {name: a, image: 'r/a:tag', type: control, trafficPercentile: 100}\n- {name: b, image: r/b" + digest + ", type: control, trafficPercentile: 50}"
	was := object(t, endpointYAML("fraud", bad))
	for _, err := range s.update(t, object(t, endpointYAML("fraud", bad+"\nhold: {reason: look}")), was) {
		t.Errorf("a hold was refused for what was there before: %v", err)
	}
	still := strings.Replace(bad, "trafficPercentile: 50", "trafficPercentile: 60", 1)
	errs := s.update(t, object(t, endpointYAML("fraud", still)), was)
	want(t, errs, "spec.versions", "[two_controls]")
	want(t, errs, "spec.versions", "[percent_sum]")
	for _, err := range errs {
		if strings.HasSuffix(err.Field, ".image") {
			t.Errorf("the image, which did not change, is refused: %v", err)
		}
	}
	mended := strings.Replace(strings.Replace(bad, "trafficPercentile: 50", "trafficPercentile: 0", 1), digest+", type: control", digest, 1)
	for _, err := range s.update(t, object(t, endpointYAML("fraud", mended)), was) {
		t.Errorf("mending all but the image was refused: %v", err)
	}
}

var message = regexp.MustCompile(`^[^;]+; .+ \[[a-z_]+\]$`)

// TestMessages: each rule says what is broken, the way out and a reason that clients know.
func TestMessages(t *testing.T) {
	known := map[string]bool{}
	for _, r := range rollout.Reasons() {
		known[string(r.Reason)] = true
	}
	rules := 0
	var walk func(node any)
	walk = func(node any) {
		switch node := node.(type) {
		case []any:
			for _, v := range node {
				walk(v)
			}
		case map[string]any:
			if rule, ok := node["rule"].(string); ok {
				rules++
				m, _ := node["message"].(string)
				if !message.MatchString(m) || !known[m[strings.LastIndex(m, "[")+1:len(m)-1]] {
					t.Errorf("rule %s says %q, want RULE; WAY OUT [reason]", rule, m)
				}
			}
			for _, v := range node {
				walk(v)
			}
		}
	}
	for _, plural := range []string{"modelendpoints", "journalentries"} {
		walk(wire(t, definition(t, plural)))
	}
	if rules < 25 {
		t.Errorf("%d rules", rules)
	}
}

// refusedEntries are changes of a good journal entry that make it a bad one.
var refusedEntries = map[string]struct{ old, new, words string }{
	"no command":        {"command: /promote pr-42, ", "", "spec.command: Required value"},
	"endless command":   {"/promote pr-42", strings.Repeat("x", 65_537), "may not be more than 65536"},
	"name":              {"name: fraud}", "name: Fraud}", "should match"},
	"namespace":         {"namespace: models", "namespace: ''", "spec.endpoint.namespace"},
	"time without zone": {"00.000000Z", "00", "should match"},
	"much of origin":    {`{comment: "1734"}`, "{" + manyKeys() + "}", "must have at most 32 items"},
}

func manyKeys() string {
	var b strings.Builder
	for i := range 33 {
		fmt.Fprintf(&b, "k%d: x, ", i)
	}
	return b.String()
}

func TestJournalEntries(t *testing.T) {
	s := newServer(t, "journalentries")
	good := object(t, entryYAML)
	for _, err := range s.create(t, good) {
		t.Error(err)
	}
	for name, tc := range refusedEntries {
		bad := object(t, strings.Replace(entryYAML, tc.old, tc.new, 1))
		if err := s.create(t, bad).ToAggregate(); err == nil || !strings.Contains(err.Error(), tc.words) {
			t.Errorf("%s: %v, want %q", name, err, tc.words)
		}
	}
	want(t, s.update(t, object(t, strings.Replace(entryYAML, "/promote", "/rollback", 1)), good), "spec", "the command of a journal entry never changes; record another entry [conflict]")
	want(t, s.update(t, object(t, strings.Replace(entryYAML, `"1734"`, `"1735"`, 1)), good), "spec", "[conflict]")
	done := object(t, entryYAML)
	done["status"] = map[string]any{"state": "done"}
	for _, err := range s.update(t, done, good) {
		t.Error(err)
	}
}
