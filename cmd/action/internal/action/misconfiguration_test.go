package action

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Every mistake gives one annotation that says what is wrong and what to do, and fails the step.
func TestMisconfigurations(t *testing.T) {
	exec := `apiVersion: v1
kind: Config
current-context: c
contexts: [{name: c, context: {cluster: c, user: u}}]
clusters: [{name: c, cluster: {server: "https://127.0.0.1:1"}}]
users: [{name: u, user: {exec: {apiVersion: client.authentication.k8s.io/v1, command: kubelogin-that-is-not-here, interactiveMode: Never}}}]
`
	plain := strings.Replace(exec, "exec: {apiVersion: client.authentication.k8s.io/v1, command: kubelogin-that-is-not-here, interactiveMode: Never}", "token: verysecrettoken", 1)
	for _, c := range []struct {
		name   string
		event  event
		inputs []string
		// files of the workspace, PATH CONTENT …
		files []string
		env   []string
		want  string
	}{
		{name: "unknown input", inputs: with("trafficc-percentile", "10"), want: `title=Sluice%3A unknown_field::trafficc-percentile: there is no such input; did you mean traffic-percentile?`},
		{name: "underscore for hyphen", inputs: with("is_default", "true"), want: "is_default: there is no such input; did you mean is-default?"},
		{name: "unknown command", inputs: with("command", "depoly"), want: `"depoly" is not a command; did you mean deploy? use deploy, update,`},
		{name: "percentile in words", inputs: with("traffic-percentile", "a tenth"), want: "traffic-percentile: "},
		{name: "percentile over 100", inputs: with("traffic-percentile", "101"), want: "write a number from 0 to 100"},
		{name: "percentile of the wrong command", inputs: with("command", "promote", "traffic-percentile", "10"), want: "traffic-percentile has no meaning for the command promote; leave it out, or use the command deploy or update or traffic"},
		{name: "traffic without a percentile", inputs: with("command", "traffic"), want: "the command traffic needs it; give the share"},
		{name: "update of nothing", inputs: with("command", "update"), want: "update is asked to change nothing; give traffic-percentile, type or is-default"},
		{name: "type", inputs: with("type", "canary"), want: `"canary" is not a role that can be given; use treatment, control or none`},
		{name: "type none with traffic", inputs: with("type", "none", "traffic-percentile", "5"), want: "judged by nobody"},
		{name: "boolean", inputs: with("is-default", "maybe"), want: `"maybe" is neither true nor false; write true or false`},
		{name: "duration without a unit", inputs: with("timeout", "600"), want: `timeout: "600" is not a duration; write it with its unit`},
		{name: "negative duration", inputs: with("timeout", "-5m"), want: "set wait: false"},
		{name: "endpoint's name", inputs: with("endpoint", "Fraud_Model"), want: "endpoint: "},
		{name: "version's name", inputs: with("version", "v1.2"), want: "version: "},
		{name: "namespace", inputs: with("namespace", "Models"), want: "namespace: "},
		{name: "config and directory", inputs: with("config", "sluice.yaml", "directory", "model"), want: "config and directory both say where the project is"},
		{name: "config and inference-config", inputs: with("config", "sluice.yaml", "inference-config", "ic.json"), want: "use config, or inference-config with deployment-config"},
		{name: "deployment-config alone", inputs: with("deployment-config", "dc.json"), want: "inference-config: deployment-config says how to run"},
		{name: "Azure ML's files without an endpoint", inputs: with("inference-config", "ic.json"), files: []string{"ic.json", `{"entryScript": "score.py"}`}, want: "endpoint: Azure ML's files do not say which endpoint is meant"},
		{name: "mistake in an inferenceconfig", inputs: with("inference-config", "conf/ic.json", "endpoint", "fraud"), files: []string{"conf/ic.json", "{\n  \"entryScrpt\": \"score.py\"\n}\n"}, want: "file=conf/ic.json,line=2"},
		{name: "computeType aci", inputs: with("inference-config", "ic.json", "deployment-config", "dc.json", "endpoint", "fraud"), files: []string{"ic.json", `{"entryScript": "score.py"}`, "dc.json", `{"computeType": "aci"}`}, want: "file=dc.json"},
		{name: "computeType local", inputs: with("inference-config", "ic.json", "deployment-config", "dc.json", "endpoint", "fraud"), files: []string{"ic.json", `{"entryScript": "score.py"}`, "dc.json", `{"computeType": "local"}`}, want: "local"},
		{name: "models without inference-config", inputs: with("models", "fraud:3=model/"), want: "models goes with inference-config; leave it out, or name inference-config"},
		{name: "models in another form", inputs: with("inference-config", "ic.json", "endpoint", "fraud", "models", "model/"), files: []string{"ic.json", `{"entryScript": "score.py"}`}, want: `"model/" is not NAME[:VERSION]=PATH`},
		{name: "no such config", inputs: with("config", "staging.yaml"), want: "there is no file staging.yaml"},
		{name: "mistake in another manifest", inputs: with("config", "conf/staging.yaml"), files: []string{"conf/staging.yaml", "apiVersion: sluice.dev/v1alpha1\nkind: Projekt\nendpoint: fraud\nscoring: {entryScript: score.py}\n", "conf/score.py", ""}, want: "file=conf/staging.yaml,line=2"},
		{name: "no such directory", inputs: with("directory", "models/fraud"), want: "there is no directory models/fraud in the workspace; check the repository out"},
		{name: "directory outside", inputs: with("directory", "../other"), want: "leads out of the workspace"},
		{name: "no manifest", inputs: with("directory", "model"), want: "sluice.yaml"},
		{name: "mistake in the manifest", files: []string{"sluice.yaml", strings.Replace(manifest, "endpoint: fraud", "endpont: fraud", 1)}, want: `::error col=1,file=sluice.yaml,line=3,title=Sluice%3A unknown_field::endpont: unknown key "endpont"; did you mean "endpoint"?`},
		{name: "mistake in a manifest below", inputs: with("directory", "teams/a"), files: []string{"teams/a/sluice.yaml", strings.Replace(manifest, "entryScript: score.py", "entryScript: 7", 1), "teams/a/one.json", "{}", "teams/a/model/w", "w"}, want: "file=teams/a/sluice.yaml,line=6"},
		{name: "no script", files: []string{"sluice.yaml", strings.Replace(manifest, "score.py", "skore.py", 1)}, want: "skore.py"},
		{name: "secret in the project", files: []string{"id_rsa", "key"}, want: "id_rsa"},
		{name: "mistake in the requirements", files: []string{"sluice.yaml", manifest + "environment: {requirements: requirements.txt}\n", "requirements.txt", "numpy==1.26\n--no-such-option\n"}, want: "requirements.txt"},
		{name: "no registry", inputs: with("registry", ""), want: "registry: images have nowhere to go; name the registry that the cluster pulls from"},
		{name: "registry with a scheme", inputs: with("registry", "https://ghcr.io/team"), want: "registry: "},
		{name: "half of the credentials", inputs: with("registry-username", "me"), want: "give registry-username and registry-password, or neither"},
		{name: "no base image", inputs: with("base-image", ""), want: "base image"},
		{name: "base image that is not there", inputs: with("base-image", "REGISTRY/lib/python:3.99"), want: "base_image_missing"},
		{name: "platform", inputs: with("platform", "windows"), want: `"windows" is not a platform`},
		{name: "target", inputs: with("target", "aks"), want: `"aks" is no way to reach a cluster; use kubeconfig or server`},
		{name: "server and kubeconfig", inputs: with("server", "https://sluice.example", "context", "c"), want: "context has no meaning with a server"},
		{name: "target server without one", inputs: with("target", "server"), want: "target server needs it"},
		{name: "server in plain HTTP", inputs: with("server", "http://sluice.example"), want: "a token would cross the network in plain text; write https://"},
		{name: "server without a scheme", inputs: with("server", "sluice.example"), want: `"sluice.example" is not the address of a server`},
		{name: "no right to a token", inputs: with("server", "https://127.0.0.1:1"), want: "id-token: write"},
		{name: "audience without a server", inputs: with("server-audience", "x"), want: "server-audience has no meaning with a kubeconfig"},
		{name: "kubeconfig is no file", inputs: with("kubeconfig", "kube/config"), want: "there is no file kube/config in the workspace"},
		{name: "kubeconfig is no kubeconfig", inputs: with("kubeconfig", "apiVersion: v1\nkind: [\n"), want: "it cannot be read"},
		{name: "kubeconfig out of the container", env: []string{"KUBECONFIG=/home/runner/work/_temp/kubeconfig_1"}, want: "KUBECONFIG names /home/runner/work/_temp/kubeconfig_1, which is not there; use sluice-dev/sluice/action/composite"},
		{name: "API server that is not there", inputs: with("kubeconfig", plain), want: "title=Sluice%3A unavailable::the cluster's API server https://127.0.0.1:1 cannot be reached: "},
		{name: "API server that is none", inputs: with("kubeconfig", strings.Replace(plain, "https://127.0.0.1:1", "http://REGISTRY", 1)), want: "is no API server of Kubernetes"},
		{name: "certificate that is none", inputs: with("kubeconfig", strings.Replace(plain, "token: verysecrettoken", "client-certificate-data: Zm9v, client-key-data: YmFy", 1)), want: "kubeconfig: it cannot be used: "},
		{name: "deploymentconfig that is none", inputs: with("inference-config", "ic.json", "deployment-config", "dc.json", "endpoint", "fraud"), files: []string{"ic.json", `{"entryScript": "score.py"}`, "dc.json", `[1]`}, want: "file=dc.json"},
		{name: "deploymentconfig that is empty", inputs: with("inference-config", "ic.json", "deployment-config", "dc.json", "endpoint", "fraud"), files: []string{"ic.json", `{"entryScript": "score.py"}`, "dc.json", ""}, want: "file=dc.json"},
		{name: "inferenceconfig that is broken", inputs: with("inference-config", "ic.json", "endpoint", "fraud"), files: []string{"ic.json", `{"entryScript": `}, want: "file=ic.json"},
		{name: "no such context", inputs: with("kubeconfig", plain, "context", "prod"), want: `the kubeconfig has no context "prod"`},
		{name: "kubeconfig with a program", inputs: with("kubeconfig", exec), want: `logs in by the program "kubelogin-that-is-not-here", which is not here; use sluice-dev/sluice/action/composite`},
		{name: "new-default without delete", inputs: with("new-default", "a"), want: "new-default has no meaning for the command deploy"},
		{name: "closed pull request", event: pullRequest(3, 'a').closed(false), want: "pull request 3 is closed: there is nothing to deploy"},
		{name: "event without a pull request", event: event{name: "pull_request", commit: strings.Repeat("a", 40)}, want: "the event pull_request brings no pull request"},
		{name: "test script that is not there", inputs: with("test-script", "check.sh"), want: "there is no file check.sh"},
		{name: "test script that is no program", inputs: with("test-script", "score.py"), want: "git update-index --chmod=+x score.py"},
		{name: "test script without its interpreter", inputs: with("test-script", "bin/check"), files: []string{"bin/check", "#!/opt/none/python3\n"}, want: "bin/check needs /opt/none/python3, which is not here"},
		{name: "mixed up inputs of promote", inputs: with("command", "promote", "is-default", "true"), want: "is-default has no meaning for the command promote"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			w.write(c.files...)
			if _, err := os.Stat(filepath.Join(w.workspace, "bin/check")); err == nil {
				if err := os.Chmod(filepath.Join(w.workspace, "bin/check"), 0o755); err != nil {
					t.Fatal(err)
				}
			}
			for i := range c.inputs {
				c.inputs[i] = strings.ReplaceAll(c.inputs[i], "REGISTRY", w.registry)
			}
			e := c.event
			if e.name == "" {
				e = push('a')
			}
			out := w.step(e, c.inputs, c.env...)
			if out.code == 0 || out.outputs["status"] != statusFailed || out.outputs["reason-code"] == "" || out.outputs["reason-code"] == "internal" {
				t.Errorf("exit code %d, outputs %v", out.code, out.outputs)
			}
			if len(out.annotationLines) != 1 || !strings.Contains(out.annotationLines[0], c.want) {
				t.Errorf("annotations %q, want %q", out.annotationLines, c.want)
			}
			if out.stderr != "" {
				t.Errorf("standard error: %s", out.stderr)
			}
			if !strings.Contains(out.summary, "❌") {
				t.Errorf("summary %q", out.summary)
			}
			if strings.Contains(strings.ReplaceAll(out.log, "::add-mask::verysecrettoken", ""), "verysecrettoken") {
				t.Error("the log has the kubeconfig's token")
			}
			if _, err := w.store.Get(t.Context(), models); err == nil {
				t.Error("an endpoint was made")
			}
		})
	}
}
