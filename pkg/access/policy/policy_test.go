package policy

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sluice-dev/sluice/rollout"
)

func kind() Kind {
	return Kind{Name: "TestPolicy", Flag: "test-policy", Of: "the test", Document: "docs/test.md"}
}

func TestPatterns(t *testing.T) {
	for _, tc := range []struct {
		pattern Pattern
		yes, no []string
	}{
		{PatternNone, []string{"a", "a b"}, []string{"", " a", "a ", "*", "a*"}},
		{PatternAll, []string{"*", "a"}, []string{"", "**", "a*", "*a"}},
		{PatternPrefix, []string{"*", "a*", "a"}, []string{"", "*a", "a*b", "a**"}},
		{PatternPath, []string{"r.example/*", "r.example/a*", "a"}, []string{"*", "r.example*", "*/a", "r/**"}},
		{PatternDomain, []string{"*@a.example", "a@a.example"}, []string{"*", "*@", "*a@b", "a@*", "*@a@b", "*@*"}},
	} {
		for _, s := range tc.yes {
			if errs := kind().Lists("rules[0].", List{Name: "of", Values: []string{s}, Pattern: tc.pattern}); len(errs) > 0 {
				t.Errorf("pattern %d: %v", tc.pattern, errs)
			}
		}
		for _, s := range tc.no {
			errs := kind().Lists("rules[0].", List{Name: "of", Values: []string{"a", s}, Pattern: tc.pattern})
			if len(errs) != 1 || errs[0].Field != "test-policy.rules[0].of[1]" {
				t.Errorf("pattern %d takes %q: %v", tc.pattern, s, errs)
			}
		}
	}
	if errs := kind().Lists("", List{Name: "of", Required: true}); len(errs) != 1 || errs[0].Field != "test-policy.of" {
		t.Errorf("an empty list: %v", errs)
	}
}

func TestFits(t *testing.T) {
	for _, tc := range []struct {
		list string
		s    string
		fits bool
	}{{"", "x", true}, {"*", "x", true}, {"a,b", "b", true}, {"a,b", "c", false}, {"refs/tags/v*", "refs/tags/v1", true}, {"refs/tags/v*", "refs/tags/w", false}, {"a", "", false}} {
		var list []string
		if tc.list != "" {
			list = strings.Split(tc.list, ",")
		}
		if Fits(list, tc.s) != tc.fits {
			t.Errorf("%q, %q", tc.list, tc.s)
		}
	}
}

func TestRead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "policy")
	if err := os.WriteFile(path, make([]byte, maxFile+1), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := kind().Read(path); rollout.ReasonOf(err) != rollout.ReasonInvalid || !strings.HasPrefix(err.Error(), "test-policy: ") {
		t.Errorf("a large file: %v", err)
	}
	if _, err := kind().Read(path + "x"); err == nil || !strings.Contains(err.Error(), "read the policy of the test") {
		t.Errorf("no file: %v", err)
	}
	var into struct {
		A string `json:"a"`
	}
	for _, text := range []string{"a: b\na: c", "b: c", "a: ["} {
		if err := kind().Decode([]byte(text), &into); rollout.ReasonOf(err) != rollout.ReasonInvalid {
			t.Errorf("%q: %v", text, err)
		}
	}
	if kind().Check(rollout.APIVersion, "TestPolicy") != nil || kind().Check(rollout.APIVersion, "APIPolicy") == nil || kind().Check("v1", "TestPolicy") == nil {
		t.Error("kinds are not told apart")
	}
}
