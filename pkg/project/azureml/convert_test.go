package azureml_test

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-dev/sluice/pkg/image/environment"
	"github.com/sluice-dev/sluice/pkg/project"
	"github.com/sluice-dev/sluice/pkg/project/azureml"
	"github.com/sluice-dev/sluice/rollout"
)

var update = flag.Bool("update", false, "write golden files and generated documentation")

func load(t testing.TB, dir, name string) *azureml.File {
	t.Helper()
	if name == "" {
		return nil
	}
	data, err := os.ReadFile(filepath.Join("testdata", dir, name))
	if err != nil {
		t.Fatal(err)
	}
	return &azureml.File{Name: name, Data: data}
}

// TestSamples converts files like those of other people's projects, key for key, to golden files.
func TestSamples(t *testing.T) {
	for _, s := range []struct {
		dir, ic, dc, env string
		// refused are the fields that are refused, in the order of the places; with them left out it converts.
		refused []string
		// edit is a change of the files that is needed as well, beside what is left out.
		edit func(string) string
	}{
		// The article's own files.
		{dir: "article", ic: "inferenceconfig.json", dc: "deploymentconfig.json", refused: []string{"dataCollection.storageEnabled"}},
		// azure-cli-extensions #1175: the older form, and a key that Azure ML ignored.
		{dir: "legacy", ic: "inferconfig.json", dc: "deployconfig.json", refused: []string{"enableAppInsights"}, edit: func(s string) string { return strings.Replace(s, "  \"enableAppInsights\": true,\n", "", 1) }},
		// microsoft/MLOpsPython: YAML, empty keys, a registered environment, TLS settings of ACI.
		{dir: "yaml", ic: "inference_config.yml", dc: "deployment_config_aks.yml", refused: []string{"appInsightsEnabled", "sslEnabled", "environment"}, edit: func(s string) string { return strings.Replace(s, "environment: forecast\n", "", 1) }},
		// The scaffold of az ml environment, beside a plain inferenceconfig.json.
		{dir: "scaffold", ic: "inferenceconfig.json", dc: "deploymentconfig.json", env: "azureml_environment.json"},
		// The controlled rollout: a version with its share.
		{dir: "rollout", ic: "inferenceconfig.json", dc: "deploymentconfig.json"},
	} {
		t.Run(s.dir, func(t *testing.T) {
			o := azureml.Options{Endpoint: "fraud", ReadFile: func(name string) ([]byte, error) { return os.ReadFile(filepath.Join("testdata", s.dir, name)) }}
			in := azureml.Input{Inference: load(t, s.dir, s.ic), Deployment: load(t, s.dir, s.dc), Environment: load(t, s.dir, s.env)}
			c, err := azureml.Convert(in, o)
			var refused []string
			for _, e := range project.Errors(err) {
				refused = append(refused, e.Refusal.Field)
				if e.Line == 0 {
					t.Errorf("%v has no line", e)
				}
			}
			if d := cmp.Diff(s.refused, refused); d != "" {
				t.Fatalf("refused (-want +got):\n%s%v", d, err)
			}
			golden(t, s.dir, "errors.txt", errorText(err))
			if err != nil {
				for _, f := range s.refused {
					if s.edit == nil || !strings.HasPrefix(f, "env") && !strings.HasPrefix(f, "enable") {
						o.LeaveOut = append(o.LeaveOut, f)
					}
				}
				if s.edit != nil {
					in.Inference.Data, in.Deployment.Data = []byte(s.edit(string(in.Inference.Data))), []byte(s.edit(string(in.Deployment.Data)))
				}
				if c, err = azureml.Convert(in, o); err != nil {
					t.Fatal(err)
				}
			}
			for name, text := range c.Files {
				golden(t, s.dir, name, text)
			}
			var changes bytes.Buffer
			for _, ch := range c.Changes {
				changes.WriteString((&project.Error{File: ch.Place.File, Line: ch.Place.Line}).Place() + ": " + ch.String() + "\n")
			}
			changes.WriteString("sluice deploy " + strings.Join(c.Deploy.Flags(), " ") + "\n")
			golden(t, s.dir, "changes.txt", changes.Bytes())
			accepted(t, c)
		})
	}
}

func errorText(err error) []byte {
	if err == nil {
		return nil
	}
	return []byte(err.Error() + "\n")
}

func golden(t *testing.T, dir, name string, got []byte) {
	t.Helper()
	file := filepath.Join("testdata", dir, "golden", name)
	if *update && len(got) > 0 {
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil && len(got) > 0 {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), string(got)); d != "" {
		t.Errorf("%s (-want +got; -update writes it):\n%s", file, d)
	}
}

// accepted holds what was made against the project's own decoder: a round trip.
func accepted(t testing.TB, c *azureml.Converted) {
	t.Helper()
	text := c.Files[project.ManifestName]
	m, err := project.Parse(project.ManifestName, text)
	if err != nil {
		t.Fatalf("the manifest that was made is refused: %v\n%s", err, text)
	}
	again, err := azureml.Marshal(m)
	if err != nil || !bytes.Equal(again, text) {
		t.Fatalf("%v\nwritten once:\n%s\nread and written again:\n%s", err, text, again)
	}
	if d := cmp.Diff(c.Manifest, m); d != "" {
		t.Fatalf("written and read again (-was +is):\n%s", d)
	}
}

// TestMistakes are those of a file as a whole, and of files together.
func TestMistakes(t *testing.T) {
	const ic, dc = `{"entryScript": "score.py"}`, `{"computeType": "aks"}`
	for _, m := range []struct{ name, ic, dc, env, want string }{
		{"empty", "", dc, "", `ic.json: is empty (invalid); begin it with {"entryScript": "score.py"}`},
		{"a list", "[]", dc, "", "ic.json:1:1: "},
		{"no JSON", "{\n\"entryScript\": }\n", dc, "", "ic.json:2"},
		{"a comment", "{\n// the script\n\"entryScript\": \"score.py\"}", dc, "", "ic.json:2: JSON has no comments, but a comment begins in this line (invalid); remove it"},
		{"a comment after a value", ic, "{\"computeType\": \"aks\",\n\"numReplicas\": 3, // three\n\"namespace\": \"a\"}", "", "dc.json:2: JSON has no comments"},
		{"a comment at the end", ic, "{\"computeType\": \"aks\"}\n/* the end */", "", "dc.json:2: JSON has no comments"},
		{"a comment at the beginning", "// mine\n" + ic, dc, "", "ic.json:1: JSON has no comments"},
		{"no comment, but a mistake", `{"entryScript": "a//b.py", "description": "\\\" // \\\\", "x": 1}`, dc, "", `unknown key "x"`},
		{"unknown key", "{\n \"entryScipt\": \"score.py\"}", dc, "", `ic.json:2:2: entryScipt: unknown key "entryScipt" (unknown_field); did you mean "entryScript"?`},
		{"a key of the REST API", ic, `{"computeType": "aks", "aadAuthEnabled": true}`, "", "write it as tokenAuthEnabled; this is its name in the REST API"},
		{"a key of a sluice.yaml", ic, `{"computeType": "aks", "apiVersion": "x"}`, "", `apiVersion: unknown key "apiVersion" (unknown_field); remove it; keys of a sluice.yaml are none`},
		{"a key of the SDK", `{"entry_script": "score.py"}`, dc, "", "write it as entryScript; this is its name in the Python SDK, and Azure ML ignored it in files"},
		{"a key of the SDK", ic, `{"computeType": "aks", "auth_enabled": true}`, "", "write it as authEnabled; "},
		{"a key at the wrong place", ic, `{"computeType": "aks", "minReplicas": 1}`, "", "it belongs to autoScaler.minReplicas"},
		{"ignored by Azure ML", ic, `{"computeType": "aks", "enableAppInsights": true}`, "", "write it as appInsightsEnabled; Azure ML ignored this"},
		{"twice", ic, `{"computeType": "aks", "numReplicas": 1, "numReplicas": 2}`, "", "the key stands twice"},
		{"another file's key", ic, `{"computeType": "aks", "entryScript": "score.py"}`, "", `unknown key "entryScript"`},
		{"local has a port alone", ic, `{"computeType": "local", "authEnabled": true}`, "", "authEnabled: is for computeType aks and aksendpoint, and Azure ML ignored it for local"},
		{"older and newer form", `{"entryScript": "s.py", "condaFile": "c.yml", "environment": {"python": {}}}`, dc, "", "condaFile: is of the older form, and excludes environment"},
		{"two environments", `{"entryScript": "s.py", "environment": {"python": {}}}`, dc, `{"python": {}}`, "environment: describes the environment, and so does env.json"},
		{"older form and a file", `{"entryScript": "s.py", "condaFile": "c.yml"}`, dc, `{"python": {}}`, "condaFile: describes the environment, and so does env.json"},
		{"registered", `{"entryScript": "s.py", "environment": "mine"}`, dc, "", "an environment that is registered in a workspace cannot be looked up"},
		{"several", `{"entryScript": "s.py", "x": 1}`, `{"computeType": "aks", "appInsightsEnabled": true, "numReplicas": 0}`, "", "dc.json:1:24: appInsightsEnabled"},
	} {
		t.Run(m.name, func(t *testing.T) {
			in := azureml.Input{Inference: &azureml.File{Name: "ic.json", Data: []byte(m.ic)}, Deployment: &azureml.File{Name: "dc.json", Data: []byte(m.dc)}}
			if m.env != "" {
				in.Environment = &azureml.File{Name: "env.json", Data: []byte(m.env)}
			}
			_, err := azureml.Convert(in, azureml.Options{Endpoint: "fraud"})
			if err == nil || !strings.Contains(err.Error(), m.want) {
				t.Errorf("%v, want %q", err, m.want)
			}
			if m.name == "several" && len(project.Errors(err)) != 3 {
				t.Errorf("%v, want three mistakes at once", err)
			}
		})
	}
}

func TestOptions(t *testing.T) {
	in := azureml.Input{Inference: &azureml.File{Name: "ic.json", Data: []byte("{\t\"entryScript\": \"score.py\",\n\t\"description\": \"a\\/b \\ud83d\\ude00 \\\"c\\\"\\td\"}")}}
	c, err := azureml.Convert(in, azureml.Options{Endpoint: "fraud", Models: []project.Model{{Name: "m", Version: "1", Path: "model"}}})
	if err != nil {
		t.Fatal(err)
	}
	if want := "a/b 😀 \"c\"\td"; c.Deploy.Description != want || len(c.Manifest.Models) != 1 || c.Deploy.Target() != "" {
		t.Errorf("%+v", c)
	}
	for _, o := range []struct {
		o    azureml.Options
		in   azureml.Input
		want string
	}{
		{azureml.Options{}, in, "ic.json: endpoint: the files do not name the endpoint (invalid); give --endpoint NAME"},
		{azureml.Options{Endpoint: "Fraud"}, in, "--endpoint: endpoint: "},
		{azureml.Options{Endpoint: "fraud", Models: []project.Model{{Name: "m", Version: "1", Path: "../m"}}}, in, "--model: models[0].path: "},
		{azureml.Options{Endpoint: "fraud", LeaveOut: []string{"entryScript"}}, in, `--leave-out: "entryScript" is no field that would be refused`},
		{azureml.Options{Endpoint: "fraud"}, azureml.Input{}, "inferenceconfig.json: is needed"},
	} {
		if _, err := azureml.Convert(o.in, o.o); err == nil || !strings.Contains(err.Error(), o.want) {
			t.Errorf("%v, want %q", err, o.want)
		}
	}
	// The values of the deploy, too, know the file and the line that they came from.
	c, err = azureml.Convert(azureml.Input{
		Inference:  &azureml.File{Name: "ic.json", Data: []byte("{\"entryScript\": \"score.py\",\n\"description\": \"d\"}")},
		Deployment: &azureml.File{Name: "dc.json", Data: []byte("{\"computeType\": \"aksendpoint\",\n\"namespace\": \"models\",\n\"versionName\": \"v1\",\n\"trafficPercentile\": 10}")},
	}, azureml.Options{Endpoint: "fraud"})
	if err != nil {
		t.Fatal(err)
	}
	for flag, want := range map[string]project.Place{
		"--target": {File: "dc.json", Line: 1, Column: 2}, "--namespace": {File: "dc.json", Line: 2, Column: 1}, "--version": {File: "dc.json", Line: 3, Column: 1},
		"--percent": {File: "dc.json", Line: 4, Column: 1}, "--description": {File: "ic.json", Line: 2, Column: 1},
	} {
		if got := c.Origin(flag); got != want || !slices.Contains(c.Deploy.Flags(), flag) {
			t.Errorf("%s comes from %v, want %v: %v", flag, got, want, c.Deploy.Flags())
		}
	}
	var nothing azureml.Deploy
	if len(nothing.Flags()) != 0 {
		t.Errorf("%v", nothing.Flags())
	}
	if _, err := azureml.Convert(azureml.Input{Inference: in.Inference, Deployment: &azureml.File{Name: "dc.json", Data: []byte(`{"computeType": "aks", "keys": {"primaryKey": "hush"}}`)}},
		azureml.Options{Endpoint: "fraud", LeaveOut: []string{"keys.primaryKey"}}); err != nil {
		t.Errorf("left out: %v", err)
	}
}

// FuzzConvert: whatever converts is what the project's own decoder accepts, and nothing panics.
func FuzzConvert(f *testing.F) {
	for _, dir := range []string{"article", "legacy", "yaml", "scaffold", "rollout"} {
		files, err := filepath.Glob(filepath.Join("testdata", dir, "*.*"))
		if err != nil {
			f.Fatal(err)
		}
		in := map[string]string{}
		for _, file := range files {
			data, err := os.ReadFile(file)
			if err != nil {
				f.Fatal(err)
			}
			for _, kind := range []string{"infer", "deploy", "environment"} {
				if strings.Contains(filepath.Base(file), kind) {
					in[kind] = string(data)
				}
			}
		}
		f.Add(in["infer"], in["deploy"], in["environment"], "RUN a\n", dir == "article")
	}
	f.Add(`{"entryScript": "s", "environment": {"docker": {"baseDockerfile": "FROM a\nRUN <<E\nx\nE\n"}, "environmentVariables": {"A": "\u0085 \n"}}}`, "", "", "", true)
	f.Fuzz(func(t *testing.T, ic, dc, env, steps string, leaveOut bool) {
		in := azureml.Input{Inference: &azureml.File{Name: "ic", Data: []byte(ic)}}
		if dc != "" {
			in.Deployment = &azureml.File{Name: "dc", Data: []byte(dc)}
		}
		if env != "" {
			in.Environment = &azureml.File{Name: "env", Data: []byte(env), Dir: "env"}
		}
		o := azureml.Options{Endpoint: "fraud", ReadFile: func(string) ([]byte, error) { return []byte(steps), nil }}
		if leaveOut {
			for _, row := range azureml.Fields() {
				if row.Reason != "" {
					o.LeaveOut = append(o.LeaveOut, row.Path)
				}
			}
		}
		c, err := azureml.Convert(in, o)
		if err != nil {
			if len(project.Errors(err)) == 0 || len(rollout.AsErrors(err)) == 0 {
				t.Fatalf("%v has no reason and place", err)
			}
			return
		}
		accepted(t, c)
		if text, ok := c.Files[azureml.CondaName]; ok {
			if err := environment.CheckConda(azureml.CondaName, text); err != nil {
				t.Fatalf("the Conda definition that was made is refused: %v\n%s", err, text)
			}
		}
	})
}
