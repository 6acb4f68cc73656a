//go:build unix

package cli

import (
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// azureProject has Azure ML's files, with an inline Conda definition if asked, and no sluice.yaml.
func azureProject(t *testing.T, inference, deployment string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{
		"src/score.py": "def init(): pass\ndef run(data): return data\n", "model/w": "1",
		"inferenceconfig.json": inference, "deploymentconfig.json": deployment,
	} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

const (
	plainInference = `{"entryScript": "score.py", "sourceDirectory": "src"}`
	condaInference = `{"entryScript": "score.py", "sourceDirectory": "src", "environment": {"python": {"condaDependencies": {"dependencies": ["python=3.12"]}}}}`
	aksDeployment  = `{"computeType": "aks", "numReplicas": 2}`
)

func TestAzureArgs(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{"deploy -ic a -dc b", "deploy --inference-config a --deployment-config b"},
		{"deploy -ic=a dir -dc=b", "deploy --inference-config=a dir --deployment-config=b"},
		{"package -dc b -ic a -o x", "package --deployment-config b --inference-config a -o x"},
		{"environment hash . -ic a", "environment hash . --inference-config a"},
		{"--target local convert -ic a", "--target local convert --inference-config a"},
		{"-n models deploy -ic a", "-n models deploy --inference-config a"},
		{"deploy -- -ic a", "deploy -- -ic a"},
		{"deploy --description -ic -dc b", "deploy --description -ic --deployment-config b"},
		{"deploy -n -dc -ic a", "deploy -n -dc --inference-config a"},
		{"deploy -ic -dc", "deploy --inference-config -dc"},
		{"deploy --default -ic a", "deploy --default --inference-config a"},
		{"status -ic a", "status -ic a"},
		{"deploy -ico a", "deploy -ico a"},
		{"nonsense -ic a", "nonsense -ic a"},
	} {
		a := &app{}
		if got := strings.Join(azureArgs(a.root(), strings.Fields(c.in)), " "); got != c.want {
			t.Errorf("%s became %s, want %s", c.in, got, c.want)
		}
	}
}

// TestAzureFilesAreTheirManifest: the archive is that of the sluice.yaml that convert makes, and so is the environment.
func TestAzureFilesAreTheirManifest(t *testing.T) {
	const digest = "sha256:1111111111111111111111111111111111111111111111111111111111111111"
	dir := azureProject(t, condaInference, aksDeployment)
	files := []string{"-ic", filepath.Join(dir, "inferenceconfig.json"), "-dc", filepath.Join(dir, "deploymentconfig.json")}
	said := func(args ...string) map[string]any {
		t.Helper()
		code, out, errs := runCLI(t, append(args, "-o", "json")...)
		var said map[string]any
		if err := json.Unmarshal([]byte(out), &said); code != 0 || err != nil {
			t.Fatalf("%v: exit code %d: %s%s", args, code, out, errs)
		}
		return said
	}
	more := []string{"--endpoint", "echo", "--model", "m:2=model"}
	packed := said(append(append([]string{"package", dir}, files...), more...)...)
	hash := said(append([]string{"environment", "hash", dir, "--base-image", "b", "--base-digest", digest}, files...)...)
	if code, out, errs := runCLI(t, append(append([]string{"package", dir, "--list"}, files...), more...)...); code != 0 || !strings.Contains(out, "ship   sluice-conda.yml\nship   sluice.yaml\nship   src/score.py\n") {
		t.Errorf("exit code %d: %s%s", code, out, errs)
	}
	converted := said(append([]string{"convert", dir}, more...)...)
	if got, want := converted["written"], []any{filepath.Join(dir, "sluice-conda.yml"), filepath.Join(dir, "sluice.yaml")}; cmp.Diff(want, got) != "" {
		t.Errorf("written %v", got)
	}
	if got := converted["deploy"]; cmp.Diff([]any{"sluice", "deploy", "--target", "kubernetes", dir}, got) != "" {
		t.Errorf("deploy by %v", got)
	}
	if d := cmp.Diff(said("package", dir), packed); d != "" {
		t.Errorf("packaged with sluice.yaml (-) and without (+):\n%s", d)
	}
	if d := cmp.Diff(said("environment", "hash", dir, "--base-image", "b", "--base-digest", digest), hash); d != "" {
		t.Errorf("environment with sluice.yaml (-) and without (+):\n%s", d)
	}
	if code, _, errs := runCLI(t, append(append([]string{"package", dir}, files...), more...)...); code != exitRefused || !strings.Contains(errs, "sluice.yaml: is there already") {
		t.Errorf("both: exit code %d: %s", code, errs)
	}
}

func TestAzureFilesToImage(t *testing.T) {
	host := imageRegistry(t)
	t.Setenv("HOME", t.TempDir())
	dir := azureProject(t, plainInference, aksDeployment)
	image := func(args ...string) string {
		t.Helper()
		args = append([]string{"package", dir, "--format", "tarball", "-o", os.DevNull, "-o", "json", "--base-image", host + "/base:1", "--runner-image", host + "/runner:1"}, args...)
		code, out, errs := runCLI(t, args...)
		var said struct{ Digest, Version string }
		if err := json.Unmarshal([]byte(out), &said); code != 0 || err != nil {
			t.Fatalf("exit code %d: %s%s", code, out, errs)
		}
		return said.Version + " " + said.Digest
	}
	more := []string{"--endpoint", "echo", "--model", "m=model"}
	without := image(append([]string{"-ic", filepath.Join(dir, "inferenceconfig.json"), "-dc", filepath.Join(dir, "deploymentconfig.json")}, more...)...)
	if code, _, errs := runCLI(t, append([]string{"convert", dir}, more...)...); code != 0 {
		t.Fatal(errs)
	}
	if with := image(); with != without {
		t.Errorf("with sluice.yaml %s, without %s", with, without)
	}
}

// TestDeployOfAzureFiles to this machine, and what stands over what.
func TestDeployOfAzureFiles(t *testing.T) {
	dir := azureProject(t, plainInference, `{"computeType": "local"}`)
	ic, dc := filepath.Join(dir, "inferenceconfig.json"), filepath.Join(dir, "deploymentconfig.json")
	files := []string{"deploy", dir, "-ic", ic, "-dc", dc, "--endpoint", "echo", "--model", "m=model", "--timeout", "0"}
	if code, out, errs := runCLI(t, append(files, "-o", "json")...); code != 0 || !strings.Contains(out, `"endpoint": "echo"`) || !strings.Contains(errs, "deploymentconfig.json: --target local") {
		t.Errorf("exit code %d: %s%s", code, out, errs)
	}
	rollout := `{"computeType": "aksendpoint", "versionName": "blue", "trafficPercentile": 10, "namespace": "azureml-ws"}`
	if err := os.WriteFile(dc, []byte(rollout), 0o600); err != nil {
		t.Fatal(err)
	}
	code, _, errs := runCLI(t, append(files, "--target", "local")...)
	for _, want := range []string{"--namespace azureml-ws", "--version blue", "--percent 10", "deploymentconfig.json: version.resources: limiting the resources", "(not_supported_yet)"} {
		if code != exitRefused || !strings.Contains(errs, want) {
			t.Errorf("exit code %d, no %q in %s", code, want, errs)
		}
	}
	if strings.Contains(errs, "--target kubernetes") {
		t.Errorf("the file stands over the flag: %s", errs)
	}
	code, _, errs = runCLI(t, append(files, "--kubeconfig", filepath.Join(dir, "none"))...)
	if code == 0 || !strings.Contains(errs, "deploymentconfig.json: --target kubernetes") {
		t.Errorf("exit code %d: %s", code, errs)
	}
}

func TestMisuseOfAzureFiles(t *testing.T) {
	dir := azureProject(t, plainInference, aksDeployment)
	ic := filepath.Join(dir, "inferenceconfig.json")
	empty := t.TempDir()
	for _, c := range []struct {
		args string
		code int
		want string
	}{
		{"deploy DIR -dc DIR/deploymentconfig.json", exitUsage, "--deployment-config goes with --inference-config"},
		{"deploy DIR --model m=model", exitUsage, "--model goes with --inference-config"},
		{"package DIR --endpoint e", exitUsage, "--endpoint goes with --inference-config"},
		{"package DIR -ic IC", exitRefused, "inferenceconfig.json: endpoint: the files do not name the endpoint"},
		{"package DIR", exitRefused, "give -ic FILE and -dc FILE"},
		{"package DIR -ic DIR/none.json", exitRefused, "DIR/none.json: cannot be read: no such file"},
		{"package DIR -ic DIR", exitRefused, "cannot be read: it is no regular file"},
		{"package DIR -ic IC --endpoint e --model m", exitUsage, `--model "m" is not NAME[:VERSION]=PATH`},
		{"package DIR -ic IC --endpoint e --model m:=x", exitUsage, "is not NAME[:VERSION]=PATH"},
		{"package DIR -ic IC --endpoint e --model m=gone", exitRefused, "--model: models[0].path: gone does not exist"},
		{"package DIR -ic IC --endpoint e --leave-out x", exitRefused, "is no field that would be refused"},
		{"package -ic", exitUsage, "flag needs an argument"},
		{"convert EMPTY", exitUsage, "there is no inferenceconfig.json in"},
		{"convert DIR -ic IC", exitRefused, "give --endpoint NAME"},
	} {
		args := strings.Fields(strings.NewReplacer("DIR", dir, "IC", ic, "EMPTY", empty).Replace(c.args))
		code, _, errs := runCLI(t, args...)
		if want := strings.ReplaceAll(c.want, "DIR", dir); code != c.code || !strings.Contains(errs, want) {
			t.Errorf("%s: exit code %d, want %d; %s, want %q", c.args, code, c.code, errs, want)
		}
	}
}

// TestConvertKeepsFiles: nothing that exists is written over, and then nothing is written at all.
func TestConvertKeepsFiles(t *testing.T) {
	dir := azureProject(t, condaInference, aksDeployment)
	manifest := filepath.Join(dir, "sluice.yaml")
	if err := os.WriteFile(manifest, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	convert := []string{"convert", dir, "--endpoint", "echo"}
	if code, _, errs := runCLI(t, convert...); code != exitRefused || !strings.Contains(errs, "sluice.yaml exists already") {
		t.Errorf("exit code %d: %s", code, errs)
	}
	left, err := os.ReadDir(dir)
	if err != nil || slices.ContainsFunc(left, func(e os.DirEntry) bool {
		return strings.Contains(e.Name(), "conda") || strings.HasPrefix(e.Name(), ".sluice")
	}) {
		t.Errorf("%v, %v: something was written", left, err)
	}
	if data, err := os.ReadFile(manifest); err != nil || string(data) != "mine" {
		t.Errorf("%q, %v", data, err)
	}
	for _, args := range [][]string{append(convert, "--force"), convert} { // the second time it is the same
		code, out, errs := runCLI(t, args...)
		for _, want := range []string{"inferenceconfig.json:1: entryScript is now scoring.entryScript: score.py", "written " + manifest, "deploy it with: sluice deploy --target kubernetes", "The files name no models"} {
			if code != 0 || !strings.Contains(out, want) {
				t.Errorf("exit code %d, no %q in %s%s", code, want, out, errs)
			}
		}
	}
	other := filepath.Join(t.TempDir(), "other.yaml")
	if code, _, errs := runCLI(t, append(convert, "-o", other)...); code != 0 {
		t.Error(errs)
	}
	one, err := os.ReadFile(manifest)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(other)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if two, err := io.ReadAll(f); err != nil || string(one) != string(two) {
		t.Errorf("%v: %s, want %s", err, two, one)
	}
	t.Chdir(dir)
	code, out, errs := runCLI(t, "convert", "--endpoint", "echo", "-o", "-")
	if code != 0 || out != string(one) || !strings.Contains(errs, "entryScript is now scoring.entryScript") {
		t.Errorf("exit code %d: %s%s", code, out, errs)
	}
	if _, err := os.Lstat("-"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a file -: %v", err)
	}
}
