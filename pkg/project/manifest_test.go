package project

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-dev/sluice/rollout"
)

const head = "apiVersion: sluice.dev/v1alpha1\nkind: Project\nendpoint: fraud\n"

const script = "scoring: {entryScript: score.py}\n"

// fullManifest has every field that is supported.
const fullManifest = `apiVersion: sluice.dev/v1alpha1
kind: Project
endpoint: fraud
models:
  - {name: fraud, version: "3", path: model/}
  - name: labels
    version: "1"
    path: data/labels.csv
environment:
  variables: {OMP_NUM_THREADS: "1"}
scoring:
  entryScript: score.py
  sourceDirectory: src
  arguments: ["--threshold", "0.7"]
  mode: serve
include: [certs/ca.pem, "**/keep.log"]
test: {request: samples/one.json, expect: {status: 200, contains: fraud}}
version:
  autoscale: {enabled: true, minReplicas: 1, maxReplicas: 4, targetUtilization: 70, refreshPeriodSeconds: 1}
  concurrency: {maxConcurrentRequests: 2, maxQueueWaitMs: 500}
  scoringTimeoutMs: 60000
  livenessProbe: {initialDelaySeconds: 310, periodSeconds: 10, timeoutSeconds: 2, successThreshold: 1, failureThreshold: 3}
  environmentVariables: {THRESHOLD: "0.7"}
  dataCollection: {enabled: false}
strategy:
  steps: [{percent: 1, minRequests: 200}, {percent: 10}, {percent: 50.125, minDuration: 10m}]
  gate: verdict
  alpha: 0.01
  beta: 5e-2
  r0: 1
  r1: 2.0
  maxBadPercent: 1
  deadline: 24h
  onDeadline: hold
  retainFor: 1h30m
`

func ptr[T any](v T) *T { return &v }

func TestParseFull(t *testing.T) {
	got, err := Parse("sluice.yaml", []byte(fullManifest))
	if err != nil {
		t.Fatal(err)
	}
	want := &Manifest{
		APIVersion: "sluice.dev/v1alpha1", Kind: "Project", Endpoint: "fraud",
		Models:      []Model{{Name: "fraud", Version: "3", Path: "model/"}, {Name: "labels", Version: "1", Path: "data/labels.csv"}},
		Environment: Environment{Variables: map[string]string{"OMP_NUM_THREADS": "1"}},
		Scoring:     Scoring{EntryScript: "score.py", SourceDirectory: "src", Arguments: []string{"--threshold", "0.7"}, Mode: ModeServe},
		Include:     []string{"certs/ca.pem", "**/keep.log"},
		Test:        &Test{Request: "samples/one.json", Expect: Expect{Status: 200, Contains: "fraud"}},
		Version: rollout.Settings{
			Autoscale:            &rollout.Autoscale{Enabled: ptr(true), MinReplicas: ptr(1), MaxReplicas: ptr(4), TargetUtilization: 70, RefreshPeriodSeconds: 1},
			Concurrency:          &rollout.Concurrency{MaxConcurrentRequests: 2, MaxQueueWaitMs: 500},
			ScoringTimeoutMs:     60000,
			LivenessProbe:        &rollout.Probe{InitialDelaySeconds: 310, PeriodSeconds: 10, TimeoutSeconds: 2, SuccessThreshold: 1, FailureThreshold: 3},
			EnvironmentVariables: map[string]rollout.EnvValue{"THRESHOLD": {Value: "0.7"}},
			DataCollection:       &rollout.DataCollection{},
		},
		Strategy: &rollout.Strategy{
			Steps: []rollout.Step{
				{Percent: 1000, MinRequests: ptr(int64(200))}, {Percent: 10_000},
				{Percent: 50_125, MinDuration: rollout.Duration(600e9)},
			},
			Gate: rollout.GateVerdict, Alpha: 0.01, Beta: 0.05, R0: 1, R1: 2, MaxBadPercent: ptr(1.0),
			Deadline: ptr(rollout.Duration(24 * 3600e9)), OnDeadline: rollout.DeadlineHold, RetainFor: ptr(rollout.Duration(5400e9)),
		},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	again, err := got.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	reread, err := Parse("sluice.yaml", again)
	if err != nil {
		t.Fatalf("%v in\n%s", err, again)
	}
	if d := cmp.Diff(got, reread); d != "" {
		t.Error(d)
	}
	if got.Settings().Server != nil {
		t.Error("an entry script that Sluice serves has no server of its own")
	}
}

func TestSettingsServer(t *testing.T) {
	for _, c := range []struct {
		name, scoring string
		want          *rollout.Server
	}{
		{"command", `{command: [tritonserver, --model-repository=/m], server: {port: 8000, scorePath: /v2/infer, healthPath: /ready}}`,
			&rollout.Server{Command: []string{"tritonserver", "--model-repository=/m"}, Port: 8000, ScorePath: "/v2/infer", HealthPath: "/ready"}},
		{"command without server", `{command: [./serve]}`, &rollout.Server{Command: []string{"./serve"}}},
		{"script", `{entryScript: app.py, mode: script, server: {port: 9}}`, &rollout.Server{Port: 9}},
		{"script without server", `{entryScript: app.py, mode: script}`, &rollout.Server{}},
		{"serve", `{entryScript: app.py}`, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			m, err := Parse("sluice.yaml", []byte(head+"version: {scoringTimeoutMs: 5}\nscoring: "+c.scoring))
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(rollout.Settings{ScoringTimeoutMs: 5, Server: c.want}, m.Settings()); d != "" {
				t.Error(d)
			}
			if m.Version.Server != nil {
				t.Error("Settings changed the manifest")
			}
		})
	}
}

// TestParseMistakes has one manifest per mistake; the wanted lines are the whole
// error, so that no mistake causes a second message.
func TestParseMistakes(t *testing.T) {
	ok := head + script
	for _, c := range []struct{ name, in, want string }{
		{"empty", "", "m.yaml: is empty (invalid); begin it with `apiVersion: sluice.dev/v1alpha1` and `kind: Project`"},
		{"only comments", "# nothing\n---\n# at all\n", "m.yaml: is empty (invalid); begin it with `apiVersion: sluice.dev/v1alpha1` and `kind: Project`"},
		{"null", "~\n", "m.yaml: is empty (invalid); begin it with `apiVersion: sluice.dev/v1alpha1` and `kind: Project`"},
		{"two documents", ok + "---\n" + ok, "m.yaml:5: holds several documents (invalid); keep one document, without a further `---`"},
		{"not a mapping", "- a\n", "m.yaml:1:1: keys and values belong here, not a list (invalid); write `key: value` pairs, indented, below it"},
		{"syntax", head + "scoring: {entryScript: score.py\n", "m.yaml:4: is not YAML: did not find expected ',' or '}' (invalid)"},
		{"tab", head + "scoring:\n\tentryScript: score.py\n", "m.yaml:5: is not YAML: found character that cannot start any token (invalid)"},
		{"not UTF-8", "a: \xff\n", "m.yaml: is not YAML: invalid leading UTF-8 octet (invalid)"},

		{"misspelt at the top", strings.Replace(ok, "endpoint", "endpont", 1), `m.yaml:3:1: endpont: unknown key "endpont" (unknown_field); did you mean "endpoint"?`},
		{"misspelt in scoring", head + "scoring:\n  entryscript: score.py\n", `m.yaml:5:3: scoring.entryscript: unknown key "entryscript" (unknown_field); did you mean "entryScript"?`},
		{"misspelt deep in version", ok + "version:\n  autoscale:\n    minReplica: 1\n", `m.yaml:7:5: version.autoscale.minReplica: unknown key "minReplica" (unknown_field); did you mean "minReplicas"?`},
		{"misspelt in a list", ok + "strategy:\n  steps:\n    - percent: 1\n      minRequest: 3\n", `m.yaml:8:7: strategy.steps[0].minRequest: unknown key "minRequest" (unknown_field); did you mean "minRequests"?`},
		{"swapped letters", ok + "tset: {request: a}\n", `m.yaml:5:1: tset: unknown key "tset" (unknown_field); did you mean "test"?`},
		{"in the wrong place", ok + "minReplicas: 2\n", `m.yaml:5:1: minReplicas: unknown key "minReplicas" (unknown_field); it belongs to version.autoscale.minReplicas`},
		{"like nothing", ok + "frobnication: 2\n", `m.yaml:5:1: frobnication: unknown key "frobnication" (unknown_field); the nearest known key is "apiVersion"; known here are apiVersion, kind, endpoint, models, environment, scoring, include, test, version, strategy`},
		{"unknown in a secret", ok + "version: {environmentVariables: {A: {secret: s, kee: k}}}\n", `m.yaml:5:49: version.environmentVariables[A].kee: unknown key "kee" (unknown_field); did you mean "key"?`},

		{"duplicate", ok + "endpoint: other\n", `m.yaml:5:1: endpoint: the key stands twice, first in line 3 (invalid); keep one of them`},
		{"duplicate in a map", ok + "environment: {variables: {A: \"1\", A: \"2\"}}\n", `m.yaml:5:35: environment.variables.A: the key stands twice, first in line 5 (invalid); keep one of them`},
		{"key is no text", ok + "1: 2\n", `m.yaml:5:1: a key must be text, not 1, a number (invalid); put the key in quotes if it is meant`},
		{"merge key", "x: &x {kind: Project}\n" + strings.Replace(ok, "kind: Project", "<<: *x", 1),
			"m.yaml:1:1: x: unknown key \"x\" (unknown_field); the nearest known key is \"kind\"; known here are apiVersion, kind, endpoint, models, environment, scoring, include, test, version, strategy\n" +
				"m.yaml:1:1: kind: is missing (invalid); write `kind: Project`\nm.yaml:3:1: <<: merge keys are not allowed (invalid); write the keys out"},
		{"tag", head + "scoring: !script {entryScript: a.py}\n", `m.yaml:4:10: scoring: the tag !script is not allowed (invalid); leave the tag out`},

		{"number for text", ok + "models: [{name: a, version: 3, path: m}]\n", `m.yaml:5:29: models[0].version: text belongs here, not 3, a number (invalid); put it in quotes: "3"`},
		{"date for text", ok + "models: [{name: a, version: 2026-11-23, path: m}]\n", `m.yaml:5:29: models[0].version: text belongs here, not 2026-11-23, a date (invalid); put it in quotes: "2026-11-23"`},
		{"truth for text", ok + "environment: {variables: {A: true}}\n", `m.yaml:5:30: environment.variables[A]: text belongs here, not true, a truth value (invalid); put it in quotes: "true"`},
		{"list for text", head + "scoring: {entryScript: [a.py]}\n", `m.yaml:4:24: scoring.entryScript: text belongs here, not a list (invalid)`},
		{"text for a number", ok + "version: {scoringTimeoutMs: fast}\n", `m.yaml:5:29: version.scoringTimeoutMs: a whole number belongs here, not "fast", text (invalid); write it with decimal digits only and without quotes`},
		{"quotes around a number", ok + "version: {replicas: \"2\"}\n", `m.yaml:5:21: version.replicas: a whole number belongs here, not "2", text (invalid); write it with decimal digits only and without quotes`},
		{"fraction for a whole number", ok + "version: {replicas: 1.5}\n", `m.yaml:5:21: version.replicas: a whole number belongs here, not 1.5, a number (invalid); write it with decimal digits only and without quotes`},
		{"octal", ok + "version: {replicas: 010}\n", `m.yaml:5:21: version.replicas: a whole number belongs here, not 010, a number (invalid); write it with decimal digits only and without quotes`},
		{"too large", ok + "version: {replicas: 99999999999999999999}\n", `m.yaml:5:21: version.replicas: a whole number belongs here, not 99999999999999999999, a number (invalid); write it with decimal digits only and without quotes`},
		{"infinite", ok + "strategy: {alpha: .inf}\n", `m.yaml:5:19: strategy.alpha: a number belongs here, not .inf, a number (invalid); write it in decimal, such as 0.01, and without quotes`},
		{"NaN share", ok + "strategy: {steps: [{percent: .nan}]}\n", `m.yaml:5:30: strategy.steps[0].percent: .nan is not a decimal number (invalid); write it in decimal, or put it in quotes if it is text`},
		{"too fine a share", ok + "strategy: {steps: [{percent: 10.0001}]}\n", `m.yaml:5:30: strategy.steps[0].percent: "10.0001" has more than three decimals (invalid)`},
		{"share in quotes", ok + "strategy: {steps: [{percent: \"10\"}]}\n", `m.yaml:5:30: strategy.steps[0].percent: "10" is not a number (write it without quotes) (invalid)`},
		{"duration without a unit", ok + "strategy: {deadline: 10}\n", `m.yaml:5:22: strategy.deadline: 10 is not a duration: write a string such as "10m" (invalid)`},
		{"word for a truth", ok + "version: {autoscale: {enabled: yes}}\n", `m.yaml:5:32: version.autoscale.enabled: true or false belongs here, not "yes", text (invalid); write true or false without quotes`},
		{"text for a list", ok + "include: .env\n", `m.yaml:5:10: include: a list belongs here, not ".env", text (invalid); write it as a list: [one, two]`},
		{"text for keys", head + "scoring: score.py\n", "m.yaml:4:10: scoring: keys and values belong here, not \"score.py\", text (invalid); write `key: value` pairs, indented, below it"},
		{"number as a variable", ok + "version: {environmentVariables: {A: 1}}\n", `m.yaml:5:37: version.environmentVariables[A]: 1 is not a string: put it in quotes (invalid)`},
		{"no value", "apiVersion: sluice.dev/v1alpha1\nkind: Project\nendpoint:\n" + script, `m.yaml:3:10: endpoint: has no value (invalid); give it a value, or remove it`},
		{"no value in a list", ok + "include:\n  - \n", `m.yaml:6:4: include[0]: has no value (invalid); give it a value, or remove it`},
		{"the port", ok + "environment: {variables: {PORT: \"80\"}}\n", `m.yaml:5:27: environment.variables[PORT]: Sluice sets PORT itself (invalid); remove it; a server of your own listens on the port in it, or on scoring.server.port`},
		{"zero for not given", ok + "version: {concurrency: {maxQueueWaitMs: 0}}\n", `m.yaml:5:41: version.concurrency.maxQueueWaitMs: 0 is not a value that it can have (invalid); use 1 for practically no waiting, or leave it out for the default of 500`},
		{"zero of a timeout", ok + "version: {scoringTimeoutMs: -0}\n", `m.yaml:5:29: version.scoringTimeoutMs: 0 is not a value that it can have (invalid); use 1 or more, or leave it out for the default of 60000`},
		{"zero of a probe", ok + "version: {livenessProbe: {periodSeconds: 0}}\n", `m.yaml:5:42: version.livenessProbe.periodSeconds: 0 is not a value that it can have (invalid); use 1 or more, or leave it out for the default of 10`},
		{"zero of a strategy", ok + "strategy: {alpha: 0.0}\n", `m.yaml:5:19: strategy.alpha: 0 is not a value that it can have (invalid); use a number from 1e-09 to 0.5, or leave it out for the default of 0.01`},
		{"zero of a ratio", ok + "strategy: {r0: 5, r1: 0}\n", `m.yaml:5:23: strategy.r1: 0 is not a value that it can have (invalid); use a number from 1 to 1000, or leave it out for the default of 2`},

		{"NUL", head + "scoring: {entryScript: \"a\\0.py\"}\n", `m.yaml:4:24: scoring.entryScript: holds a NUL character (invalid); remove it`},

		{"no apiVersion", "kind: Project\nendpoint: fraud\n" + script, "m.yaml:1:1: apiVersion: is missing (invalid); write `apiVersion: sluice.dev/v1alpha1`"},
		{"another kind", strings.Replace(ok, "kind: Project", "kind: Deployment", 1), "m.yaml:2:1: kind: \"Deployment\" is not known (invalid); write `kind: Project`"},
		{"endpoint's name", strings.Replace(ok, "fraud", "Fraud", 1), `m.yaml:3:1: endpoint: "Fraud" is not a name for an endpoint (invalid); use 1 to 32 lower-case letters, digits and hyphens, beginning with a letter and not ending with a hyphen`},
		{"no scoring", head, "m.yaml:1:1: scoring: needs an entryScript or a command (invalid); write `entryScript: score.py`, or `command: [...]` for a server of your own"},
		{"script and command", head + "scoring: {entryScript: a.py, command: [b]}\n", `m.yaml:4:30: scoring.command: an entryScript and a command exclude each other (invalid); keep one of them`},
		{"server for a script", head + "scoring: {entryScript: a.py, server: {port: 80}}\n", "m.yaml:4:30: scoring.server: Sluice's own server runs an entryScript, so there is no other to describe (invalid); remove it, or use command or `mode: script`"},
		{"mode", head + "scoring: {entryScript: a.py, mode: batch}\n", `m.yaml:4:30: scoring.mode: "batch" is not a mode (invalid); use serve (the default) or script`},
		{"arguments of a command", head + "scoring: {command: [a], arguments: [b]}\n", `m.yaml:4:25: scoring.arguments: a command has its arguments in itself (invalid); append them to command`},
		{"port", head + "scoring: {command: [a], server: {port: 70000}}\n", `m.yaml:4:34: scoring.server.port: 70000 is not a port (invalid); use a port from 1 to 65535`},
		{"server in version", ok + "version: {server: {port: 80}}\n", `m.yaml:5:11: version.server: in a manifest the server stands under scoring (invalid); write it as scoring.command and scoring.server`},
		{"model twice", ok + "models: [{name: a, version: \"1\", path: m}, {name: a, version: \"1\", path: n}]\n", `m.yaml:5:44: models[1]: model a version 1 stands twice, first as models[0] (invalid); give it another version, or remove one of them`},
		{"model without version", ok + "models: [{name: a, path: m}]\n", "m.yaml:5:10: models[0].version: is missing (invalid); write `version: \"3\"`"},
		{"model's name", ok + "models: [{name: a/b, version: \"1\", path: m}]\n", `m.yaml:5:11: models[0].name: "a/b" is not a model's name or version (invalid); use 1 to 255 letters, digits, hyphens, dots and underscores, beginning with a letter or digit`},
		{"model without path", ok + "models: [{name: a, version: \"1\"}]\n", `m.yaml:5:10: models[0].path: is missing (invalid); name the model's file or directory in the project, or give a uri`},
		{"path outside", ok + "models: [{name: a, version: \"1\", path: a/../../b}]\n", `m.yaml:5:34: models[0].path: "a/../../b" leaves the project (invalid); name something inside the project, relative to its root, such as model/`},
		{"absolute path", ok + "test: {request: /etc/passwd}\n", `m.yaml:5:8: test.request: "/etc/passwd" is an absolute path (invalid); name something inside the project, relative to its root, such as model/`},
		{"whole project as a model", ok + "models: [{name: a, version: \"1\", path: ./}]\n", `m.yaml:5:34: models[0].path: the whole project cannot be a model (invalid); keep the model in a file or directory of its own`},
		{"git as a model", ok + "models: [{name: a, version: \"1\", path: sub/.git/x}]\n", `m.yaml:5:34: models[0].path: "sub/.git/x" is in a place that never ships (invalid); name something else`},
		{"include excludes", ok + "include: ['!a']\n", `m.yaml:5:11: include[0]: include cannot exclude (invalid); leave the pattern out; use .amlignore or .gitignore to keep a file out`},
		{"status", ok + "test: {request: a, expect: {status: 99}}\n", `m.yaml:5:29: test.expect.status: 99 is not the status of an answer (invalid); use a status from 200 to 599; 200 is the default`},
		{"variable's name", ok + "environment: {variables: {1A: x}}\n", `m.yaml:5:27: environment.variables[1A]: "1A" is not the name of a variable (invalid); use letters, digits and underscores, not beginning with a digit`},
		{"reserved variable", ok + "version: {environmentVariables: {AZUREML_MODEL_DIR: x}}\n", `m.yaml:5:34: version.environmentVariables[AZUREML_MODEL_DIR]: Sluice sets AZUREML_MODEL_DIR itself (invalid); remove it; the folder it names follows from models`},
		{"rollout's rules for settings", ok + "version:\n  replicas: 2\n  autoscale: {enabled: true}\n", `m.yaml:6:3: version.replicas: a fixed number of replicas excludes autoscale (invalid); leave out replicas or autoscale`},
		{"rollout's rules for strategies", ok + "strategy:\n  steps:\n    - percent: 10\n    - percent: 5\n", `m.yaml:8:7: strategy.steps[1].percent: 5 is not above the step before it (10) (invalid); order the steps upwards`},
	} {
		t.Run(c.name, func(t *testing.T) {
			m, err := Parse("m.yaml", []byte(c.in))
			if err == nil {
				t.Fatalf("accepted as %+v", m)
			}
			if got := err.Error(); got != c.want {
				t.Errorf("got\n%s\nwant\n%s", got, c.want)
			}
			for _, e := range Errors(err) {
				var r *rollout.Error
				if !errors.As(e, &r) || r.Reason == "" || e.File != "m.yaml" {
					t.Errorf("%#v is no refusal with a place", e)
				}
			}
		})
	}
}

func TestParseAllMistakesAtOnce(t *testing.T) {
	_, err := Parse("sluice.yaml", []byte("apiVersion: v1\nkind: Project\nendpont: fraud\nscoring:\n  entryScript: 3\nversion:\n  replicas: -1\n  scoringTimeoutMs: soon\nenvironment:\n  conda: [conda.yml]\n"))
	var lines []int
	for _, e := range Errors(err) {
		lines = append(lines, e.Line)
	}
	if d := cmp.Diff([]int{1, 3, 5, 7, 8, 10}, lines); d != "" {
		t.Errorf("%s\n%v", d, err)
	}
}

func TestParseListsAtMostTwenty(t *testing.T) {
	var b strings.Builder
	b.WriteString(head + script)
	for i := range 50 {
		fmt.Fprintf(&b, "unknown%d: 1\n", i)
	}
	_, err := Parse("sluice.yaml", []byte(b.String()))
	if n := len(Errors(err)); n != 20 {
		t.Errorf("%d mistakes listed", n)
	}
	if !strings.HasSuffix(err.Error(), "\n… and 30 more") {
		t.Errorf("the end is missing: %v", err)
	}
}

// TestParseNotSupportedYet: a setting whose behaviour comes later is refused in its place.
func TestParseNotSupportedYet(t *testing.T) {
	_, err := Parse("sluice.yaml", []byte(head+script+"version: {dataCollection: {enabled: true}}\n"))
	errs := Errors(err)
	if len(errs) != 1 {
		t.Fatalf("want one error: %v", err)
	}
	if e := errs[0]; e.Refusal.Reason != rollout.ReasonNotSupportedYet || e.Refusal.Field != "version.dataCollection" || e.Refusal.Hint == "" || e.Line != 5 {
		t.Errorf("%+v: %+v", e, e.Refusal)
	}
}

// TestBaseImage: what is no name of an image is refused, and credentials in one are not told.
func TestBaseImage(t *testing.T) {
	for ref, want := range map[string]string{
		"python:3.12-slim": "", "localhost:5000/a/b": "", "R.example/p@sha256:" + strings.Repeat("0a", 32): "", "p:1@sha256:" + strings.Repeat("0a", 32): "",
		"p:1:2": "is not the name of an image", " p:1 ": "is not the name of an image", "R.example/P:1": "is not the name of an image", "https://r.example/p:1": "has // in it",
		"bob:s3cret@r.example/p": "has credentials in it", "s3cret@r.example:5000/p": "has credentials in it", "https://bob:s3cret@r.example/p": "has credentials in it", "bob:s3/cret@r.example/p@sha256:1": "has credentials in it",
	} {
		_, err := Parse("sluice.yaml", []byte(head+script+"environment: {baseImage: '"+ref+"'}\n"))
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), "sluice.yaml:5:15: environment.baseImage: ") || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "s3") || rollout.ReasonOf(err) != rollout.ReasonInvalid) {
			t.Errorf("%q: %v, want %q", ref, err, want)
		}
	}
}

// TestModelsFromElsewhere: what is wrong with an address is said without quoting it.
func TestModelsFromElsewhere(t *testing.T) {
	sum := strings.Repeat("0a", 32)
	for text, want := range map[string]string{
		"uri: 'oci://registry.example/models/fraud:3'":                                      "",
		"uri: 'oci://registry.example/models/fraud@sha256:" + sum + "'":                     "",
		"uri: 'https://files.example/a/weights.bin?versionId=s&download=1', sha256: " + sum: "",
		"uri: 'https://files.example/a/weights.bin?sig=s3cret', sha256: " + sum:             "SLUICE_MODEL_QUERY_",
		"uri: 'https://files.example/a/weights.bin?x=s3cret', sha256: " + sum:               "models[0].uri: has a query that may be a signature",
		"uri: 'https://files.example/a/weights.bin?sig=s3cret'":                             "models[0].sha256: is missing or no SHA-256",
		"uri: 'https://files.example/w', sha256: abc":                                       "models[0].sha256: is missing or no SHA-256",
		"uri: 'https://files.example/', sha256: " + sum:                                     "models[0].uri: names no file",
		"uri: 'https://u:s3cret@files.example/w', sha256: " + sum:                           "models[0].uri: has credentials in it",
		"uri: 'http://files.example/w', sha256: " + sum:                                     "models[0].uri: http:// is not supported",
		"uri: 's3://bucket/w'":                              "models[0].uri: s3:// is not supported",
		"uri: 'weights.bin'":                                "models[0].uri: is no address",
		"uri: 'oci://registry.example/'":                    "models[0].uri: names no model",
		"uri: 'oci://registry.example/m:1', sha256: " + sum: "models[0].sha256: is for a uri of https://",
		"path: m, sha256: " + sum:                           "models[0].sha256: is for a uri of https://",
		"path: m, uri: 'oci://registry.example/m:1'":        "models[0].path: a model has a path or a uri, not both",
	} {
		_, err := Parse("sluice.yaml", []byte(head+script+"models: [{name: a, version: \"1\", "+text+"}]\n"))
		switch {
		case want == "" && err != nil, want != "" && (err == nil || !strings.Contains(err.Error(), want)):
			t.Errorf("%s: %v, want %q", text, err, want)
		case err != nil && strings.Contains(err.Error(), "s3cret"):
			t.Errorf("%s: %v tells the secret", text, err)
		}
	}
}

// TestLoadForAnotherTarget: what only some targets carry out is part of a manifest, and a target's
// own check refuses it with its place.
func TestLoadForAnotherTarget(t *testing.T) {
	const yaml = `environment: {baseImage: 'python:3.12-slim'}
version:
  resources: {cpu: "1", memory: 1Gi, gpu: 1, extended: {vendor.example/fpga: 2}}
  template: {spec: {nodeSelector: {a: b}, n: 1, list: [1, 2.5, true, null]}}
  environmentVariables: {TOKEN: {secret: s, key: k}}
`
	dir := t.TempDir()
	for name, text := range map[string]string{ManifestName: head + script + yaml, "score.py": "pass\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	m, err := Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	if m.Environment.BaseImage != "python:3.12-slim" || m.Version.Resources.Extended["vendor.example/fpga"] != 2 || m.Version.EnvironmentVariables["TOKEN"].Secret != "s" || m.Version.Template["spec"] == nil {
		t.Errorf("read %+v", m)
	}
	_, err = Load(dir, Check(func(m *Manifest) []*rollout.Error {
		return []*rollout.Error{refuse(rollout.ReasonNotSupportedYet, "version.resources", "h", "no %s here", m.Version.Resources.CPU)}
	}))
	if errs := Errors(err); len(errs) != 1 || errs[0].File != ManifestName || errs[0].Line != 7 || errs[0].Refusal.Message != "no 1 here" {
		t.Errorf("%v, want one refusal at line 7", err)
	}
}

// TestDecoderKnowsAllKinds fails when a type of the manifest gets a field of a kind that
// the decoder cannot fill.
func TestDecoderKnowsAllKinds(t *testing.T) {
	var visit func(typ reflect.Type, path string)
	visit = func(typ reflect.Type, path string) {
		if reflect.PointerTo(typ).Implements(unmarshaler) {
			return
		}
		switch typ.Kind() {
		case reflect.Pointer, reflect.Slice, reflect.Map:
			visit(typ.Elem(), path)
		case reflect.Struct:
			for _, f := range fieldsOf(typ) {
				visit(f.typ, path+"."+f.name)
			}
		case reflect.String, reflect.Bool, reflect.Int, reflect.Int32, reflect.Int64, reflect.Float64, reflect.Interface:
		default:
			t.Errorf("%s: %s", path, typ)
		}
	}
	visit(reflect.TypeFor[Manifest](), "")
}

func TestParseAliases(t *testing.T) {
	m, err := Parse("sluice.yaml", []byte(head+"scoring:\n  entryScript: score.py\n  arguments: &args [a, b]\ninclude: *args\n"))
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]string{"a", "b"}, m.Include); d != "" {
		t.Error(d)
	}
	var bomb strings.Builder
	bomb.WriteString(head + script + "version:\n  template:\n    a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n")
	for i := 1; i < 12; i++ {
		fmt.Fprintf(&bomb, "    a%d: &a%d [%s]\n", i, i, strings.TrimSuffix(strings.Repeat(fmt.Sprintf("*a%d, ", i-1), 10), ", "))
	}
	for name, in := range map[string]string{
		"bomb":   bomb.String(),
		"circle": head + script + "version:\n  template: &x\n    a: *x\n    b: *x\n",
		"deep":   head + script + "version: {template: {a: " + strings.Repeat("[", 200) + strings.Repeat("]", 200) + "}}\n",
	} {
		_, err := Parse("sluice.yaml", []byte(in))
		if !(strings.Contains(err.Error(), "more than 50000 values") || strings.Contains(err.Error(), "nest deeper than 64")) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := Parse("sluice.yaml", []byte(head+script+strings.Repeat("#", MaxManifestSize))); err == nil || !strings.Contains(err.Error(), "larger than") {
		t.Errorf("a large manifest: %v", err)
	}
}

func TestParseModelLimit(t *testing.T) {
	in := func(n int) []byte {
		var b strings.Builder
		b.WriteString(head + script + "models:\n")
		for i := range n {
			fmt.Fprintf(&b, "  - {name: m%d, version: \"1\", path: m/%d}\n", i, i)
		}
		return []byte(b.String())
	}
	if _, err := Parse("sluice.yaml", in(1000)); err != nil {
		t.Errorf("1,000 models: %v", err)
	}
	_, err := Parse("sluice.yaml", in(1001))
	if rollout.ReasonOf(err) != rollout.ReasonTooManyModels || Errors(err)[0].Line != 5 {
		t.Errorf("1,001 models: %v", err)
	}
}

// files makes a project; a name that ends in a slash is a directory, a content that
// begins with "->" a symbolic link, one that begins with "#!" executable.
func files(t testing.TB, dir string, content map[string]string) string {
	t.Helper()
	for name, c := range content {
		p := filepath.Join(dir, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		var err error
		switch target, link := strings.CutPrefix(c, "->"); {
		case strings.HasSuffix(name, "/"):
			err = os.MkdirAll(p, 0o755)
		case link:
			err = os.Symlink(target, p)
		case strings.HasPrefix(c, "#!"):
			if err = os.WriteFile(p, []byte(c), 0o600); err == nil {
				err = os.Chmod(p, 0o755)
			}
		default:
			err = os.WriteFile(p, []byte(c), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestLoad(t *testing.T) {
	full := map[string]string{
		"sluice.yaml": fullManifest, "src/score.py": "x", "model/w.bin": "x", "data/labels.csv": "x", "samples/one.json": "{}",
	}
	dir := files(t, t.TempDir(), full)
	m, err := Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := Parse(ManifestName, []byte(fullManifest))
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(parsed, m); d != "" {
		t.Error(d)
	}

	outside := t.TempDir()
	base := filepath.Base(outside)
	for _, c := range []struct {
		name   string
		change map[string]string // "" removes
		want   string            // in the error, with {dir} for the project
		reason rollout.Reason
	}{
		{"no script", map[string]string{"src/score.py": ""}, "sluice.yaml:12:3: scoring.entryScript: src/score.py does not exist in {dir}", rollout.ReasonInvalid},
		{"script at the root", map[string]string{"src/score.py": "", "score.py": "x"}, "scoring.entryScript: src/score.py does not exist", rollout.ReasonInvalid},
		{"script is a directory", map[string]string{"src/score.py/": "dir"}, "scoring.entryScript: src/score.py is a directory, not a file", rollout.ReasonInvalid},
		{"no model", map[string]string{"model/w.bin": "", "model": ""}, "sluice.yaml:5:33: models[0].path: model/ does not exist", rollout.ReasonInvalid},
		{"no request", map[string]string{"samples/one.json": ""}, "sluice.yaml:17:8: test.request: samples/one.json does not exist", rollout.ReasonInvalid},
		{"model outside", map[string]string{"model/w.bin": "", "model": "->../" + base}, "models[0].path: model/ leaves the project", rollout.ReasonUnsafeFile},
		{"model far outside", map[string]string{"model/w.bin": "", "model": "->/etc"}, "models[0].path: model/ leaves the project: the symbolic link model leads to /etc", rollout.ReasonUnsafeFile},
		{"model in git", map[string]string{"model/w.bin": "", "model": "->.git/lfs", ".git/lfs/w.bin": "x"}, "models[0].path: model/ leads to .git/lfs, which never ships", rollout.ReasonUnsafeFile},
		{"a circle", map[string]string{"samples/one.json": "->two.json", "samples/two.json": "->one.json"}, "test.request: samples/one.json leads through too many symbolic links", rollout.ReasonUnsafeFile},
		{"no manifest", map[string]string{"sluice.yaml": ""}, "sluice.yaml: there is no sluice.yaml in {dir}", rollout.ReasonInvalid},
		{"another name", map[string]string{"sluice.yaml": "", "sluice.yml": fullManifest}, "rename sluice.yml to sluice.yaml", rollout.ReasonInvalid},
		{"Azure ML's", map[string]string{"sluice.yaml": "", "inferenceconfig.json": "{}"}, "give -ic FILE and -dc FILE", rollout.ReasonInvalid},
		{"manifest outside", map[string]string{"sluice.yaml": "->/etc/hostname"}, "sluice.yaml: cannot be read", rollout.ReasonUnsafeFile},
		{"manifest is a directory", map[string]string{"sluice.yaml/": "dir"}, "sluice.yaml: is a directory, not a file", rollout.ReasonUnsafeFile},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := files(t, t.TempDir(), full)
			for name, content := range c.change {
				if err := os.RemoveAll(filepath.Join(dir, name)); err != nil {
					t.Fatal(err)
				}
				if content != "" {
					files(t, dir, map[string]string{name: content})
				}
			}
			_, err := Load(dir)
			want := strings.ReplaceAll(c.want, "{dir}", dir)
			if err == nil || !strings.Contains(err.Error(), want) || rollout.ReasonOf(err) != c.reason {
				t.Errorf("got %v, want %s (%s)", err, want, c.reason)
			}
		})
	}
	t.Run("links inside are fine", func(t *testing.T) {
		dir := files(t, t.TempDir(), full)
		for from, to := range map[string]string{"model": "weights", "src": "lib/code"} {
			if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, to)), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.Rename(filepath.Join(dir, from), filepath.Join(dir, to)); err != nil {
				t.Fatal(err)
			}
			if err := os.Symlink(to, filepath.Join(dir, from)); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := Load(dir); err != nil {
			t.Error(err)
		}
	})
	if _, err := Load(filepath.Join(dir, "missing")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a missing directory: %v", err)
	}
}

func TestValidateWithoutPlace(t *testing.T) {
	err := (&Manifest{APIVersion: rollout.APIVersion, Kind: Kind, Endpoint: "fraud"}).Validate()
	if err == nil || err.Error() != "sluice.yaml: scoring: needs an entryScript or a command (invalid); write `entryScript: score.py`, or `command: [...]` for a server of your own" {
		t.Errorf("%v", err)
	}
	if err := (&Manifest{APIVersion: rollout.APIVersion, Kind: Kind, Endpoint: "fraud", Scoring: Scoring{EntryScript: "a.py"}}).Validate(); err != nil {
		t.Error(err)
	}
}

func TestEditDistance(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want int
	}{
		{"", "", 0},
		{"", "abc", 3},
		{"abc", "", 3},
		{"endpoint", "endpont", 1},
		{"test", "tset", 1},
		{"kitten", "sitting", 3},
		{"ca", "abc", 3}, // restricted: no edits inside a swap
		{strings.Repeat("a", 100), "b", 64},
	} {
		if got := editDistance(c.a, c.b); got != c.want {
			t.Errorf("%q, %q: %d, want %d", c.a, c.b, got, c.want)
		}
	}
}

// FuzzManifest: no input makes Parse panic, an error always names its place or file,
// and what is accepted reads back equal from what Marshal writes.
func FuzzManifest(f *testing.F) {
	for _, seed := range []string{
		fullManifest, head + script, head, "", "a: [", "&a [*a]", "x: &x {y: *x}\n", "a: !!binary aGk=\n", "? {a: b}\n: c\n", "--- \n...\n---\n",
		head + "scoring: {command: [a, b], server: {port: 1, scorePath: /s, healthPath: /h}}\n",
		head + "scoring: {entryScript: a.py, mode: script, server: {port: 0}}\ninclude: ['[', '\\', '**']\n",
		head + script + "version: {replicas: 0, environmentVariables: {A: '', B: \"\\t\\n\\x85\"}, livenessProbe: {}, autoscale: {}}\nstrategy: {}\n",
		head + script + "strategy: {alpha: 1e-5, steps: [{percent: 0.001, minRequests: 0, minDuration: 1ns}], retainFor: 0s, maxBadPercent: +.5}\n",
		head + script + "version: {template: {a: [1, ~, {b: .5}]}, resources: {extended: {a: 9223372036854775807}}}\n",
		head + script + "models:\n  - &m {name: a, version: '1', path: a}\n  - {name: b, version: 0x1, path: \"\\u00e4\"}\n  - *m\n",
		"apiVersion: sluice.dev/v1alpha1\r\nkind: Project\r\nendpoint: &e fraud\r\nscoring: {entryScript: *e}\r\n", "\xef\xbb\xbf" + head + script,
		"endpoint: 2026-11-23\nkind: 010\nversion: {replicas: 1_0}\ninclude: ~\ntest:\n", "\xff\xfe\x00a", "a: \"\\ud800\"\n", "<<: [*a]\n",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := Parse("sluice.yaml", data)
		if err != nil {
			if m != nil {
				t.Error("both a manifest and an error")
			}
			errs := Errors(err)
			if len(errs) == 0 || len(errs) > maxReported {
				t.Errorf("%d mistakes in %v", len(errs), err)
			}
			for _, e := range errs {
				if e.File != "sluice.yaml" || e.Line < 0 || e.Refusal.Reason == "" || e.Refusal.Message == "" || e.Refusal.Reason == rollout.ReasonInternal {
					t.Errorf("%#v: %#v", e, e.Refusal)
				}
			}
			return
		}
		out, err := m.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		again, err := Parse("sluice.yaml", out)
		if err != nil {
			t.Fatalf("%v in\n%s", err, out)
		}
		if d := cmp.Diff(m, again); d != "" {
			t.Errorf("%s\n%s", d, out)
		}
	})
}

// What only looks at the environment gets it without the files that it has nothing to do with.
func TestLoadEnvironment(t *testing.T) {
	dir := files(t, t.TempDir(), map[string]string{ManifestName: "apiVersion: sluice.dev/v1alpha1\nkind: Project\nendpoint: e\n" +
		"scoring: {entryScript: not-there.py}\nenvironment: {baseImage: 'a:1', conda: c.yml}\n"})
	env, err := LoadEnvironment(dir)
	if err != nil || env.BaseImage != "a:1" || env.Conda != "c.yml" {
		t.Errorf("%+v, %v", env, err)
	}
	if _, err := Load(dir); err == nil || !strings.Contains(err.Error(), "not-there.py") {
		t.Errorf("Load takes it: %v", err)
	}
	for text, says := range map[string]string{
		"environment: {conda: 1}\n":                       "sluice.yaml:1:22: environment.conda",
		"environment: {condo: c}\n":                       "unknown key",
		"models: [{name: a, version: b, uri: oci://x}]\n": "names no model in a registry",
	} {
		if _, err := LoadEnvironment(files(t, t.TempDir(), map[string]string{ManifestName: text})); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v, want %s", text, err, says)
		}
	}
}
