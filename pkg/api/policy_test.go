package api_test

import (
	"bytes"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"github.com/sluice-dev/sluice/pkg/api"
	"github.com/sluice-dev/sluice/rollout"
)

func TestParsePolicy(t *testing.T) {
	const good = `apiVersion: sluice.dev/v1alpha1
kind: APIPolicy
rules:
  - repositoryId: 74
    repositoryOwnerId: 65
    events: [push]
    refs: [refs/heads/main, "refs/tags/*"]
    namespaces: [models]
    endpoints: ["*"]
    commands: [deploy]
    maxPercent: 12.5
`
	p, err := api.ParsePolicy([]byte(good))
	if err != nil || len(p.Rules) != 1 || *p.Rules[0].MaxPercent != 12500 {
		t.Fatalf("%+v, %v", p, err)
	}
	for _, tc := range []struct{ name, from, to, says string }{
		{"empty", good, "", "policy of the API"},
		{"no YAML", good, "{", "cannot be read"},
		{"another kind", "APIPolicy", "Policy", "policy of the API"},
		{"another version", "v1alpha1", "v1", "policy of the API"},
		{"no rules", good[strings.Index(good, "rules"):], "rules: []", "nobody"},
		{"an unknown key", "events:", "subs: [x]\n    events:", "subs"},
		{"sub", "events:", "sub: x\n    events:", "sub"},
		{"a key twice", "events: [push]", "events: [push]\n    events: [push]", "events"},
		{"no repository", "repositoryId: 74", "repositoryId: 0", "rules[0].repositoryId"},
		{"no owner", "    repositoryOwnerId: 65\n", "", "rules[0].repositoryOwnerId"},
		{"no events", "[push]", "[]", "rules[0].events"},
		{"any event", "[push]", `["*"]`, "rules[0].events[0]"},
		{"some events", "[push]", `["pull*"]`, "rules[0].events[0]"},
		{"a star inside", `"refs/tags/*"`, `"refs/*/v1"`, "rules[0].refs[1]"},
		{"an empty ref", `"refs/tags/*"`, `""`, "rules[0].refs[1]"},
		{"no namespaces", "[models]", "[]", "rules[0].namespaces"},
		{"some namespaces", "[models]", `["mod*"]`, "rules[0].namespaces[0]"},
		{"a namespace that is none", "[models]", "[Models]", "rules[0].namespaces[0]"},
		{"no endpoints", `["*"]`, "[]", "rules[0].endpoints"},
		{"an endpoint that is none", `["*"]`, "[Fraud]", "rules[0].endpoints[0]"},
		{"no commands", "[deploy]", "[]", "rules[0].commands"},
		{"an unknown command", "[deploy]", "[deploi]", "deploi"},
		{"an unknown extra", "maxPercent: 12.5", "allow: [everything]", "everything"},
		{"making endpoints below all traffic", "maxPercent: 12.5", "allow: [create]\n    maxPercent: 12.5", "first version has all traffic"},
		{"any strategy below all traffic", "maxPercent: 12.5", "allow: [strategy]\n    maxPercent: 12.5", "may promote them"},
		{"images of registries that begin so", "maxPercent: 12.5", `images: ["registry.example*"]`, "rules[0].images[0]"},
		{"too much", "maxPercent: 12.5", "maxPercent: 112", "112"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			changed := strings.Replace(good, tc.from, tc.to, 1)
			if changed == good {
				t.Fatal("nothing is changed")
			}
			_, err := api.ParsePolicy([]byte(changed))
			if rollout.ReasonOf(err) != rollout.ReasonInvalid || !strings.Contains(err.Error(), tc.says) {
				t.Errorf("error %v, want one with %q", err, tc.says)
			}
		})
	}
	if _, err := api.ParsePolicy([]byte(strings.Replace(good, "maxPercent: 12.5", "allow: [create, strategy]\n    maxPercent: 100", 1))); err != nil {
		t.Errorf("all traffic: %v", err)
	}
	path := filepath.Join(t.TempDir(), "policy.yaml")
	if _, err := api.ReadPolicy(path); err == nil {
		t.Error("a file that is not there was read")
	}
	if err := os.WriteFile(path, []byte(good), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := api.ReadPolicy(path); err != nil {
		t.Error(err)
	}
}

// TestDocumentedPolicy: the example is one that is taken, and all that there is is documented.
func TestDocumentedPolicy(t *testing.T) {
	text, err := os.ReadFile("../../docs/api.md")
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile("(?s)```yaml\n(apiVersion: sluice.dev.*?)```").FindSubmatch(text)
	if m == nil {
		t.Fatal("there is no example")
	}
	if p, err := api.ParsePolicy(m[1]); err != nil || len(p.Rules) != 2 {
		t.Errorf("%+v, %v", p, err)
	}
	var words []string
	for _, c := range api.Commands() {
		words = append(words, string(c))
	}
	for _, x := range api.Extras() {
		words = append(words, string(x))
	}
	rule := reflect.TypeFor[api.Rule]()
	for i := range rule.NumField() {
		name, _, _ := strings.Cut(rule.Field(i).Tag.Get("json"), ",")
		words = append(words, name)
	}
	for _, w := range words {
		if !bytes.Contains(text, []byte("`"+w+"`")) {
			t.Errorf("docs/api.md does not have %s", w)
		}
	}
}
