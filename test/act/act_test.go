package act

import (
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestRead reads lines as act 0.2.89 wrote them.
func TestRead(t *testing.T) {
	log := strings.Join([]string{
		`{"level":"info","msg":"Using docker host 'unix:///run/d.sock'"}`,
		`{"job":"CI/deploy","jobID":"deploy","level":"info","msg":"⭐ Run Set up job","step":"Set up job","stepid":["--setup-job"]}`,
		`{"jobID":"deploy","level":"info","msg":"matched","stage":"Pre","step":"o/a@v1","stepID":["a"]}`,
		`{"jobID":"deploy","level":"info","msg":"⭐ Run Main o/a@v1","stage":"Main","step":"o/a@v1","stepID":["a"]}`,
		`{"jobID":"deploy","level":"info","msg":"  🐳  docker create image=act-o-a-v1-dockeraction:latest platform= entrypoint=[]","stage":"Main","step":"o/a@v1","stepID":["a"]}`,
		`{"jobID":"deploy","level":"info","msg":"key ***\n","raw_output":true,"stage":"Main","step":"o/a@v1","stepID":["a"]}`,
		`{"arg":"bad key","command":"error","jobID":"deploy","kvPairs":{"file":"sluice.yaml","line":"3"},"level":"error","msg":"  ❗  ::error…","stage":"Main","step":"o/a@v1","stepID":["a"]}`,
		`{"executionTime":1195052967,"jobID":"deploy","level":"info","msg":"  ❌  Failure - Main o/a@v1","stage":"Main","step":"o/a@v1","stepID":["a"],"stepResult":"failure"}`,
		`{"arg":"one\ntwo","command":"set-output","jobID":"deploy","level":"info","msg":"  ⚙  ::set-output:: v=one\ntwo","name":"v","stage":"Main","step":"o/a@v1","stepID":["a"]}`,
		`{"command":"summary","content":"# Sum\n","jobID":"deploy","level":"info","msg":"  ⚙  Summary - # Sum\n","stage":"Main","step":"o/a@v1","stepID":["a"]}`,
		`{"executionTime":5,"jobID":"deploy","level":"info","msg":"  ✅  Success","stage":"Main","step":"inner","stepID":["b","say"],"stepResult":"success"}`,
		`Error: Job 'deploy' failed`,
	}, "\n") + "\n"
	r := read([]byte(log))
	want := []Step{
		{
			Job: "deploy", ID: "a", Stage: "Main", Name: "o/a@v1", Outcome: "failure", Outputs: map[string]string{"v": "one\ntwo"}, Summary: "# Sum\n",
			Annotations: []Annotation{{Level: "error", Message: "bad key", Properties: map[string]string{"file": "sluice.yaml", "line": "3"}}},
			Log:         "key ***\n", Took: 1195052967 * time.Nanosecond,
		},
		{Job: "deploy", ID: "b/say", Stage: "Main", Name: "inner", Outcome: "success", Outputs: map[string]string{}, Took: 5},
	}
	if !reflect.DeepEqual(r.Steps, want) {
		t.Errorf("read %+v, want %+v", r.Steps, want)
	}
	if r.Summary() != "# Sum\n" || r.Step("a").Outcome != "failure" || r.Step("none").Outcome != "" {
		t.Errorf("read %+v", r)
	}
	if !slices.Equal(r.Images, []string{tagOf("o/a@v1")}) {
		t.Errorf("the images are %q, want %q", r.Images, tagOf("o/a@v1"))
	}
	if !strings.HasSuffix(r.Log, "Error: Job 'deploy' failed\n") || !strings.Contains(r.Log, "[deploy/o/a@v1] key ***\n") {
		t.Errorf("the log is %q", r.Log)
	}
}

// TestArguments: secrets are in no argument, values of several lines are kept, and the payload's facts are there unless the options say otherwise.
func TestArguments(t *testing.T) {
	dir := t.TempDir()
	o := Options{
		Repository: ".", Event: "push", Secrets: map[string]string{"KEY": "hush\nhush"}, Env: map[string]string{"GITHUB_REPOSITORY_ID": "9"},
		Payload: map[string]any{"repository": map[string]any{"id": 7, "full_name": "o/r"}, "sender": map[string]any{"login": "someone"}},
	}
	args, err := o.arguments(dir)
	if err != nil {
		t.Fatal(err)
	}
	if line := strings.Join(args, " "); strings.Contains(line, "hush") || !strings.Contains(line, "--actor someone") || !slices.Contains(args, "--rebuild") {
		t.Errorf("the arguments are %q", args)
	}
	for name, want := range map[string]map[string]string{
		"secrets.yaml": {"GITHUB_TOKEN": "token", "KEY": "hush\nhush"},
		"env.yaml":     {"GITHUB_REPOSITORY": "o/r", "GITHUB_REPOSITORY_ID": "9"},
	} {
		text, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		var is map[string]string
		if err := json.Unmarshal(text, &is); err != nil || !reflect.DeepEqual(is, want) {
			t.Errorf("%s is %s, %v, want %v", name, text, err, want)
		}
	}
}
