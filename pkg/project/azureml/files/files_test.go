package files_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/sluice-dev/sluice/pkg/project"
	"github.com/sluice-dev/sluice/pkg/project/azureml"
	"github.com/sluice-dev/sluice/pkg/project/azureml/files"
)

func write(t *testing.T, dir string, texts map[string]string) {
	t.Helper()
	for name, text := range texts {
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func TestRead(t *testing.T) {
	base := t.TempDir()
	dir := filepath.Join(base, "repo")
	write(t, dir, map[string]string{
		"conf/ic.json": `{"entryScript": "score.py"}`, "score.py": "x", "env/azureml_environment.json": `{"python": {"condaDependenciesFile": "c.yml"}, "docker": {"baseDockerfile": "Dockerfile"}}`,
		"env/c.yml": "dependencies: [x]", "env/Dockerfile": "FROM a:1\nRUN b\n", "legacy.json": `{"entryScript": "score.py", "extraDockerfileSteps": "link"}`,
	})
	write(t, base, map[string]string{"dc.json": `{"computeType": "local"}`, "steps": "RUN secret"})
	if err := os.Symlink("../steps", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	o := azureml.Options{Endpoint: "fraud"}
	made, given, err := files.Read(dir, files.Names{Base: dir, Inference: "conf/ic.json", Environment: "env/azureml_environment.json"}, o)
	if err != nil {
		t.Fatal(err)
	}
	if e := made.Manifest.Environment; e.Conda != "env/c.yml" || e.BaseImage != "a:1" || !slices.Equal(e.DockerSteps, []string{"RUN b"}) {
		t.Errorf("%+v", e)
	}
	if want := []string{"conf/ic.json", "env/azureml_environment.json", "env/Dockerfile"}; given.Beside || !slices.Equal(given.Sources, want) {
		t.Errorf("made of %v, %t, want %v alone", given.Sources, given.Beside, want)
	}
	if _, err := project.Load(dir, given); err != nil {
		t.Error(err)
	}
	inference := filepath.Join(dir, "conf", "ic.json")
	for name, n := range map[string]files.Names{"outside": {Inference: inference, Deployment: filepath.Join(base, "dc.json")}} {
		if _, given, err := files.Read(dir, n, o); err != nil || !given.Beside {
			t.Errorf("%s: %v: a file beside the project is no part of a commit", name, err)
		}
	}
	for _, more := range []azureml.Options{{Endpoint: "fraud", Models: []project.Model{{Name: "m", Version: "1", Path: "score.py"}}}, {Endpoint: "fraud", LeaveOut: []string{"sslEnabled"}}} {
		if _, given, err := files.Read(dir, files.Names{Inference: inference}, more); err != nil || !given.Beside {
			t.Errorf("%+v: %v: options are no part of a commit", more, err)
		}
	}
	large := filepath.Join(base, "large")
	write(t, base, map[string]string{"large": strings.Repeat(" ", project.MaxManifestSize+1)})
	for _, c := range []struct {
		n    files.Names
		want string
	}{
		{files.Names{Inference: inference + "x"}, "conf/ic.jsonx: cannot be read: no such file"},
		{files.Names{Inference: dir}, "cannot be read: it is no regular file"},
		{files.Names{Inference: large}, "cannot be read: it is larger than 1048576 bytes"},
		{files.Names{Inference: filepath.Join(dir, "legacy.json")}, "legacy.json:1:29: extraDockerfileSteps: link cannot be read: "},
		{files.Names{}, "inferenceconfig.json: is needed"},
	} {
		if _, _, err := files.Read(dir, c.n, o); err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%+v: %v, want %q", c.n, err, c.want)
		}
	}
	if _, _, err := files.Read(filepath.Join(base, "none"), files.Names{Inference: inference}, o); err == nil {
		t.Error("a project that is not there is read")
	}
}

func TestFind(t *testing.T) {
	dir := t.TempDir()
	if n := files.Find(dir); n != (files.Names{}) {
		t.Errorf("%+v", n)
	}
	write(t, dir, map[string]string{"inferenceconfig.yml": "", "inferenceconfig.yaml": "", "deploymentconfig.yaml": "", "deploymentconfig.json/x": "", "azureml_environment.json": ""})
	if n, want := files.Find(dir), (files.Names{
		Inference: filepath.Join(dir, "inferenceconfig.yml"), Deployment: filepath.Join(dir, "deploymentconfig.yaml"), Environment: filepath.Join(dir, "azureml_environment.json"),
	}); n != want {
		t.Errorf("%+v, want %+v", n, want)
	}
}
