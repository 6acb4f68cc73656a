package login

import (
	"strings"
	"testing"

	"github.com/sluice-dev/sluice/rollout"
)

func TestPolicy(t *testing.T) {
	if p := parse(t, rules); p.GroupsClaim != "groups" || len(p.Rules) != 3 || !p.ChangesAnything() {
		t.Errorf("policy %+v", p)
	}
	read := parse(t, "{apiVersion: sluice.dev/v1alpha1, kind: PagePolicy, groupsClaim: roles, rules: [{everyone: true, namespaces: ['*'], endpoints: ['*'], commands: [read]}]}")
	if read.ChangesAnything() || read.GroupsClaim != "roles" || !read.permits(identity{Subject: "x"}, fraud, "read") || read.permits(identity{Subject: "x"}, fraud, "hold") {
		t.Errorf("policy %+v", read)
	}
	for _, tc := range []struct{ name, old, new, says string }{
		{"no YAML", "rules:", "rules: [", "page-login-policy: the policy cannot be read"},
		{"an unknown key", "groups:", "teams:", "teams"},
		{"a key twice", "    commands: [hold]", "    commands: [hold]\n    commands: [read]", "commands"},
		{"another kind", "PagePolicy", "APIPolicy", "is not a policy of the page"},
		{"no rules", rules[strings.Index(rules, "rules:"):], "rules: []", "page-login-policy.rules: there is no rule"},
		{"nobody", "  - groups: [oncall]\n    namespaces", "  - namespaces", "page-login-policy.rules[0]: the rule does not say whom it is for"},
		{"everyone and some", "  - groups: [oncall]", "  - groups: [oncall]\n    everyone: true", "rules[0].everyone"},
		{"an empty group", "[oncall]", "['']", "rules[0].groups[0]"},
		{"a pattern for groups", "[oncall]", "['on*']", "rules[0].groups[0]"},
		{"a pattern for subjects", "[u-9]", "['*']", "rules[2].subjects[0]"},
		{"every email", `"*@example.com"`, `"*"`, "rules[1].emails[0]"},
		{"a part of a domain", `"*@example.com"`, `"*example.com"`, "rules[1].emails[0]"},
		{"no domain", `"*@example.com"`, `"*@"`, "rules[1].emails[0]"},
		{"a namespace that is none", "namespaces: [models]\n    endpoints: [fraud]", "namespaces: [Models]\n    endpoints: [fraud]", "rules[1].namespaces[0]"},
		{"no endpoints", "    endpoints: [fraud]\n", "", "rules[1].endpoints"},
		{"no commands", "[promote, rollback]", "[]", "rules[0].commands"},
		{"a command that the page has not", "[promote, rollback]", "[deploy]", "rules[0].commands[0]"},
		{"no groups' claim", "kind: PagePolicy", "kind: PagePolicy\ngroupsClaim: ''", "groupsClaim"},
	} {
		text := strings.Replace(rules, tc.old, tc.new, 1)
		if text == rules {
			t.Fatalf("%s changes nothing", tc.name)
		}
		if _, err := ParsePolicy([]byte(text)); rollout.ReasonOf(err) != rollout.ReasonInvalid || !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%s: %v, want %q", tc.name, err, tc.says)
		}
	}
}

func TestEmails(t *testing.T) {
	for _, tc := range []struct {
		want, email string
		fits        bool
	}{
		{"ada@example.com", "ada@example.com", true},
		{"ada@example.com", "Ada@example.com", false},
		{"ada@example.com", "", false},
		{"*@example.com", "ada@example.com", true},
		{"*@example.com", "@example.com", false},
		{"*@example.com", "ada@sub.example.com", false},
		{"*@example.com", "ada@example.com.evil.example", false},
		{"*@example.com", "ada@evil.example@example.com", false},
		{"*@example.com", "*@example.com", true},
		{"*@example.com", "", false},
	} {
		if got := mailFits(tc.want, tc.email); got != tc.fits {
			t.Errorf("%s, %s: %v", tc.want, tc.email, got)
		}
	}
}
