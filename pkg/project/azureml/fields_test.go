package azureml_test

import (
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/sluice-dev/sluice/pkg/project"
	"github.com/sluice-dev/sluice/pkg/project/azureml"
)

// one is a value of a field and what becomes of it: "field=JSON" of the manifest, "flags=…" of the deploy, "out: …" for
// nothing, with the note, or "error: …".
type one struct{ value, want string }

// perField has at least one value for each field. Other fields that a value needs stand beside it, after a comma.
var perField = map[azureml.Kind]map[string][]one{
	azureml.Deployment: {
		"computeType": {
			{`"aks"`, "flags=--target kubernetes"}, {`"AKS"`, "flags=--target kubernetes"}, {`"aksendpoint"`, "flags=--target kubernetes"}, {`"AksEndpoint"`, "flags=--target kubernetes"}, {`"local"`, "flags=--target local"},
			{`"aci"`, "error: 1:2: computeType: Azure Container Instances are no target"}, {`"ACI"`, "error: computeType: Azure Container Instances are no target"},
			{`"batch"`, `error: computeType: "batch" is not known`}, {`null`, "error: computeType: is missing"}, {`3`, "error: computeType: text belongs here"},
		},
		"autoScaler.autoscaleEnabled": {
			{`true`, "version.autoscale.enabled=true"}, {`false`, "error: autoScaler.autoscaleEnabled: the autoscaler is off, and no fixed number of replicas is given"},
			{`false}, "numReplicas": 3, "x": {`, "error: unknown key \"x\""}, {`"yes"`, "error: true or false belongs here"},
		},
		"autoScaler.minReplicas": {
			{`2, "autoscaleEnabled": true`, "version.autoscale.minReplicas=2"}, {`2`, "error: autoScaler.minReplicas: is given, but the autoscaler is not turned on"},
			{`2, "autoscaleEnabled": false`, "error: autoScaler.minReplicas: is given, but"}, {`0, "autoscaleEnabled": true`, "error: autoScaler.minReplicas: 0 is not above 0"},
			{`3, "maxReplicas": 2, "autoscaleEnabled": true`, "error: minReplicas 3 is more than maxReplicas 2"},
		},
		"autoScaler.maxReplicas":            {{`4, "autoscaleEnabled": true`, "version.autoscale.maxReplicas=4"}, {`4`, "error: autoScaler.maxReplicas: is given, but"}, {`5000, "autoscaleEnabled": true`, "error: version.autoscale.maxReplicas: 5000 is more than"}},
		"autoScaler.refreshPeriodInSeconds": {{`5, "autoscaleEnabled": true`, "version.autoscale.refreshPeriodSeconds=5"}, {`5`, "error: autoScaler.refreshPeriodInSeconds: is given, but"}, {`-5, "autoscaleEnabled": true`, "error: -5 is not above 0"}},
		"autoScaler.targetUtilization":      {{`80, "autoscaleEnabled": true`, "version.autoscale.targetUtilization=80"}, {`80`, "error: autoScaler.targetUtilization: is given, but"}, {`101, "autoscaleEnabled": true`, "error: 101 is not between 1 and 100"}},
		"numReplicas": {
			{`3`, "version.replicas=3"}, {`3, "autoScaler": {"autoscaleEnabled": false}`, "version.replicas=3"}, {`3.0`, "version.replicas=3"}, {`1e2`, "version.replicas=100"}, {`3e-1`, "error: a whole number belongs here"}, {`1e300`, "error: a whole number belongs here"}, {`0.0`, "error: numReplicas: 0 is not above 0"}, {`0`, "error: numReplicas: 0 is not above 0"},
			{`3, "autoScaler": {"autoscaleEnabled": true}`, "error: numReplicas: a fixed number of replicas excludes the autoscaler"}, {`2.5`, "error: a whole number belongs here"},
		},
		"dataCollection.storageEnabled":  {{`true`, "error: (not_supported_yet)"}, {`false`, "out: nothing is collected"}},
		"dataCollection.eventHubEnabled": {{`true`, "error: (not_supported_yet)"}, {`false`, "out: nothing is collected"}},
		"authEnabled":                    {{`true`, "out: endpoints ask for a key anyway"}, {`false`, "error: authEnabled: a deploy cannot turn authentication off yet (not_supported_yet)"}},
		"tokenAuthEnabled": {
			{`false`, "out: endpoints ask for a key anyway"}, {`true`, "error: tokenAuthEnabled: token authentication is not built yet (not_supported_yet)"},
			{`true, "authEnabled": true`, "error: tokenAuthEnabled: keys (authEnabled) and tokens exclude each other"},
		},
		"containerResourceRequirements.cpu": {
			{`0.5`, `version.resources.cpu="500m"`}, {`2`, `version.resources.cpu="2"`}, {`0.1`, `version.resources.cpu="100m"`}, {`0.0001`, `version.resources.cpu="1m"`}, {`0`, "error: 0 is not above 0"},
			{`1e9`, "error: more than any machine has"}, {`2, "cpuLimit": 1`, "error: containerResourceRequirements.cpuLimit: 1 is less than cpu, 2"},
		},
		"containerResourceRequirements.memoryInGB":      {{`0.5`, `version.resources.memory="512Mi"`}, {`1.0`, `version.resources.memory="1Gi"`}, {`0.2`, `version.resources.memory="205Mi"`}, {`-1`, "error: -1 is not above 0"}, {`"1"`, "error: a number belongs here"}},
		"containerResourceRequirements.cpuLimit":        {{`1`, `version.resources.cpuLimit="1"`}, {`0.05`, "error: 0.05 is less than cpu, 0.1, which is reserved"}},
		"containerResourceRequirements.memoryInGBLimit": {{`2`, `version.resources.memoryLimit="2Gi"`}, {`1, "memoryInGB": 2`, "error: containerResourceRequirements.memoryInGBLimit: 1 is less than memoryInGB, 2"}},
		"containerResourceRequirements.gpu":             {{`1`, "error: write it as `gpuCores`"}},
		"containerResourceRequirements.fpga":            {{`2`, "error: version.resources.extended"}},
		"gpuCores":                                      {{`1`, "version.resources.gpu=1"}, {`1.0`, "version.resources.gpu=1"}, {`0.0`, "out: replicas have none"}, {`0`, "out: replicas have none"}, {`-1`, "error: gpuCores: -1 is not a number of GPUs"}},
		"appInsightsEnabled":                            {{`true`, "error: appInsightsEnabled: export to Application Insights is not built yet (not_supported_yet)"}, {`false`, "out: nothing is sent"}},
		"scoringTimeoutMs":                              {{`5000`, "version.scoringTimeoutMs=5000"}, {`1e4`, "version.scoringTimeoutMs=10000"}, {`5E+3`, "version.scoringTimeoutMs=5000"}, {`0`, "error: scoringTimeoutMs: 0 is not"}, {`90000000000`, "error: a whole number belongs here|is more than"}},
		"maxConcurrentRequestsPerContainer":             {{`2`, "version.concurrency.maxConcurrentRequests=2"}, {`0`, "error: 0 is not above 0"}, {`10000`, "error: version.concurrency.maxConcurrentRequests: 10000 is more than"}},
		"maxQueueWaitMs":                                {{`700`, "version.concurrency.maxQueueWaitMs=700"}, {`0`, "error: maxQueueWaitMs: 0 is not above 0"}},
		"keys.primaryKey":                               {{`"hush"`, "error: keys.primaryKey: a key in a file"}, {`null`, ""}},
		"keys.secondaryKey":                             {{`"hush"`, "error: a secondary key without a primary one"}, {`"hush", "primaryKey": "hush"`, "error: keys.secondaryKey: a key in a file"}},
		"livenessProbeRequirements.initialDelaySeconds": {{`20`, "version.livenessProbe.initialDelaySeconds=20"}, {`0`, "error: 0 is not above 0"}},
		"livenessProbeRequirements.periodSeconds":       {{`20`, "version.livenessProbe.periodSeconds=20"}, {`4294967306`, "error: version.livenessProbe.periodSeconds: 4294967306 is more than 86400"}, {`0`, "error: 0 is not above 0"}},
		"livenessProbeRequirements.timeoutSeconds":      {{`20`, "version.livenessProbe.timeoutSeconds=20"}, {`0`, "error: 0 is not above 0"}},
		"livenessProbeRequirements.successThreshold":    {{`1`, "version.livenessProbe.successThreshold=1"}, {`2`, "error: livenessProbeRequirements.successThreshold: 2 is not 1, and Kubernetes allows"}, {`null`, ""}, {`0`, "error: 0 is not above 0"}},
		"livenessProbeRequirements.failureThreshold":    {{`5`, "version.livenessProbe.failureThreshold=5"}, {`0`, "error: 0 is not above 0"}},
		"namespace":         {{`"models"`, "flags=--target kubernetes --namespace models"}, {`"-models"`, "error: is not the name of a namespace"}},
		"computeTargetName": {{`"myaks"`, "flags=--target kubernetes --context myaks"}, {`"myaks", "computeType": "aksendpoint"`, "error: is for computeType aks, and Azure ML ignored it for aksendpoint"}},
		"versionName":       {{`"blue", "computeType": "aksendpoint"`, "flags=--target kubernetes --version blue"}, {`"Blue", "computeType": "aksendpoint"`, `error: "Blue" is not a name`}, {`"blue"`, "error: versionName: is for computeType aksendpoint, and Azure ML ignored it for aks"}},
		"trafficPercentile": {
			{`20, "computeType": "aksendpoint"`, "flags=--target kubernetes --percent 20"}, {`0.5, "computeType": "aksendpoint"`, "flags=--target kubernetes --percent 0.5"}, {`0, "computeType": "aksendpoint"`, "flags=--target kubernetes --percent 0"},
			{`101, "computeType": "aksendpoint"`, "error: (percent_invalid)"}, {`-1, "computeType": "aksendpoint"`, "error: (percent_invalid)"}, {`0.0005, "computeType": "aksendpoint"`, "error: (percent_invalid)"}, {`20`, "error: is for computeType aksendpoint"},
		},
		"port":           {{`6789, "computeType": "local"`, "error: the address of an endpoint is the router's"}, {`6789`, "error: port: is for computeType local, and Azure ML ignored it for aks"}},
		"location":       {{`"westus"`, "error: location: is for Azure Container Instances"}},
		"sslEnabled":     {{`true`, "error: sslEnabled: TLS is a matter of the cluster's ingress"}, {`false`, "error: sslEnabled: TLS is"}},
		"sslCertificate": {{`"c.pem"`, "error: sslCertificate: TLS is"}},
		"sslKey":         {{`"k.pem"`, "error: sslKey: TLS is"}},
		"cname":          {{`"x.example"`, "error: cname: TLS is"}},
		"dnsNameLabel":   {{`"x"`, "error: dnsNameLabel: is for Azure Container Instances"}},
		"vaultBaseUrl":   {{`"x"`, "error: vaultBaseUrl: is for Azure"}},
		"keyName":        {{`"x"`, "error: keyName: is for Azure"}},
		"keyVersion":     {{`"x"`, "error: keyVersion: is for Azure"}},
		"vnetName":       {{`"x"`, "error: vnetName: is for Azure"}},
		"subnetName":     {{`"x"`, "error: subnetName: is for Azure"}},
		"tags":           {{`{"a": "b"}`, "error: tags: Azure ML never read this from the file, but from --tag"}},
		"properties":     {{`{"a": "b"}`, "error: properties: Azure ML never read this"}},
		"description":    {{`"x"`, "error: give it as `sluice deploy --description`"}},
		"overwrite":      {{`false`, "out: a version never changes anyway"}, {`true`, "error: a version never changes"}},
		"isDefault":      {{`false`, "out: only if it is told to"}, {`true`, "error: give it as `sluice deploy --default`"}},
		"type":           {{`"Control"`, "error: give it as `sluice deploy --type`"}},
	},
	azureml.Inference: {
		"entryScript":     {{`"src/score.py"`, `scoring.entryScript="src/score.py"`}, {`""`, "error: entryScript: is missing"}, {`"../score.py"`, "error: 1:2: scoring.entryScript: \"../score.py\" leaves the project"}},
		"sourceDirectory": {{`"./src/"`, `scoring.sourceDirectory="src"`}, {`"."`, "out: it is the project's root"}, {`"/src"`, "error: scoring.sourceDirectory: \"/src\" is an absolute path"}},
		"runtime":         {{`"python"`, "out: an entry script is Python"}, {`"spark-py"`, "error: runtime: only `python` is served"}, {`"python-slim"`, "error: runtime: only `python`"}},
		"condaFile": {{`"env.yml"`, `environment.conda="env.yml"`}, {`"env.yml", "sourceDirectory": "src"`, `environment.conda="src/env.yml"`}, {`"../env.yml", "sourceDirectory": "src"`, `environment.conda="env.yml"`},
			{`"../env.yml"`, "error: condaFile: \"../env.yml\" leaves the project"}, {`"../../env.yml", "sourceDirectory": "src"`, "error: leaves the project"}, {`"/env.yml"`, "error: condaFile: \"/env.yml\" is an absolute path"}, {`"C:\\env.yml"`, "error: holds a backslash"}, {`""`, ""}},
		"extraDockerfileSteps": {{`"steps"`, `environment.dockerSteps=["RUN one \\\n  two","ENV A=b"]`}, {`"none"`, "error: extraDockerfileSteps: none cannot be read"}, {`"../steps"`, `error: "../steps" leaves the project`}, {`"from"`, "error: has a FROM in line 2"}, {`"copy"`, `environment.dockerSteps=["COPY a b"]`}, {`"copy", "sourceDirectory": "src"`, "error: line 1 copies files by paths from the source directory"}},
		"enableGpu":            {{`false`, "out: the base image decides"}, {`true`, "error: enableGpu: Azure ML chose a base image of its own"}, {`true, "baseImage": "cuda:12"`, "out: the base image decides"}},
		"cudaVersion":          {{`"10.0"`, "error: cudaVersion: Azure ML chose"}, {`"10.0", "baseImage": "cuda:12"`, "out: the base image decides"}},
		"baseImage": {
			{`"python:3.12"`, `environment.baseImage="python:3.12"`}, {`"bob:hush@r.example/p:1"`, "error: baseImage: the name of an image has credentials in it"}, {`"hush@r.example:5000/p:1"`, "error: baseImage: the name of an image has credentials"},
			{`"https://r.example/p:1"`, "error: baseImage: \"https://r.example/p:1\" is not the name"}, {`"R.example/P:1"`, "error: baseImage: \"R.example/P:1\" is not"}, {`"p:1:2"`, "error: baseImage: \"p:1:2\" is not"}, {`" p:1 "`, "error: baseImage: \" p:1 \" is not"},
			{`"https://bob:hush@r.example/p:1"`, "error: credentials"}, {`"bob:hu/hush@r.example/p@sha256:1"`, "error: credentials"},
		},
		"baseImageRegistry": {
			{`"r.example", "baseImage": "a/b:1"`, `environment.baseImage="r.example/a/b:1"`}, {`{"address": "r.example/"}, "baseImage": "r.example/a:1"`, `environment.baseImage="r.example/a:1"`}, {`"r.example"`, "error: baseImageRegistry: names the registry of a base image, but there is no base image"},
			{`"bob:hush@r.example", "baseImage": "a"`, "error: baseImageRegistry: the name of an image has credentials in it"}, {`"https://r.example/", "baseImage": "a"`, "error: baseImageRegistry: \"https://r.example/a\" is not"},
			{`{"address": "bob:hush@r.example"}, "baseImage": "a"`, "error: baseImageRegistry: the name of an image has credentials"}, {`["bob:hush@r.example"], "baseImage": "a"`, "error: baseImageRegistry: an address"},
			{`{"address": "r.example", "username": "u", "password": "hush"}, "baseImage": "a"`, "error: baseImageRegistry.password: a credential in a file"}, {`{"host": "r"}, "baseImage": "a"`, `error: unknown key "host"`}, {`3`, "error: an address, or an object with one, belongs here"},
		},
		"description": {{`"night"`, "flags=--description night"}},
		"schemaFile":  {{`"schema.json"`, "error: schemaFile: a schema of an endpoint's input from a file is not built yet (not_supported_yet)"}, {`""`, "out: it is empty"}},
	},
	azureml.Environment: {
		"name":                                      {{`"mine", "python": {}`, "out: known by the hash of its content"}, {`"mine"`, "error: name: has no more than a name"}, {`"AzureML-Minimal", "python": {}`, "error: name: names that begin with AzureML"}, {`"Microsoft1"`, "error: names that begin with Microsoft"}},
		"version":                                   {{`"3"`, "out: known by the hash"}, {`3`, "out: known by the hash"}},
		"assetId":                                   {{`"x"`, "out: known by the hash"}},
		"environmentVariables":                      {{`{"A": "b"}`, `environment.variables={"A":"b"}`}, {`{"A": 1}`, "error: text belongs here, not 1, a number"}, {`{"PORT": "1"}`, "error: environment.variables[PORT]: Sluice sets PORT itself"}},
		"docker.enabled":                            {{`true`, "out: versions run in containers"}, {`false`, "out: versions run in containers"}, {`"x"`, "error: docker.enabled: true or false"}},
		"docker.baseImage":                          {{`"python:3.12"`, `environment.baseImage="python:3.12"`}, {`"bob:hush@r.example/a"`, "error: docker.baseImage: the name of an image has credentials"}, {`"a", "baseDockerfile": "FROM b"`, "error: docker.baseDockerfile: a base image and a Dockerfile for one exclude"}},
		"docker.baseDockerfile":                     {{`"FROM a:1\nRUN b\n"`, `environment.baseImage="a:1"`}, {`"FROM a:1\nRUN b\nRUN c"`, `environment.dockerSteps=["RUN b","RUN c"]`}, {`"Dockerfile"`, `environment.baseImage="d:1"`}, {`"FROM a AS b\nRUN c"`, "error: is no FROM with an image alone"}, {`"FROM bob:hush@r.example/a AS b"`, "error: is no FROM"}, {`"FROM bob:hush@r.example/a"`, "error: docker.baseDockerfile: the name of an image has credentials"}, {`"FROM a\nFROM b"`, "error: has a FROM in line 2"}, {`"RUN a"`, "error: begins with RUN"}, {`"FROM $A"`, "error: is no FROM with an image"}},
		"docker.baseImageRegistry.address":          {{`"r.example"}, "baseImage": "a:1", "platform": {`, `environment.baseImage="r.example/a:1"`}, {`"r.example"`, "error: docker.baseImageRegistry.address: names the registry of a base image, but"}, {`"bob:hush@r.example"}, "baseImage": "a:1", "platform": {`, "error: docker.baseImageRegistry.address: the name of an image has credentials"}},
		"docker.baseImageRegistry.username":         {{`"u"`, "error: docker.baseImageRegistry.username: a credential in a file"}, {`null`, ""}},
		"docker.baseImageRegistry.password":         {{`"hush"`, "error: docker.baseImageRegistry.password: a credential in a file"}},
		"docker.baseImageRegistry.registryIdentity": {{`{"x": 1}`, "error: registries know no identities"}},
		"docker.sharedVolumes":                      {{`true`, "out: training"}, {`false`, "out: training"}, {`1`, "error: docker.sharedVolumes"}},
		"docker.shmSize":                            {{`"2g"`, "out: the scaffold's default"}, {`"8g"`, "error: docker.shmSize: the size of /dev/shm"}},
		"docker.arguments":                          {{`[]`, "out: it is empty"}, {`["--ipc=host"]`, "error: docker.arguments: there is no `docker run`"}},
		"docker.gpuSupport":                         {{`false`, "out: the base image decides"}, {`true`, "error: docker.gpuSupport: Azure ML chose"}, {`true, "baseImage": "cuda:12"`, "out: the base image decides"}},
		"docker.buildContext":                       {{`{"x": 1}`, "error: docker.buildContext"}},
		"docker.platform.os":                        {{`"Linux"`, "out: images are for Linux"}, {`"Windows"`, "error: docker.platform.os: images are for Linux"}},
		"docker.platform.architecture":              {{`"amd64"`, "out: the default of --platform"}, {`"arm64"`, "error: docker.platform.architecture: the platform is the deploy's"}},
		"python.userManagedDependencies":            {{`true, "condaDependencies": {"dependencies": ["x"]}`, "out: the base image has the packages"}, {`false, "condaDependenciesFile": "c.yml"`, `environment.conda="c.yml"`}},
		"python.interpreterPath":                    {{`"python"`, "out: python3 that comes first"}, {`"/opt/python"`, "error: python.interpreterPath: versions run"}},
		"python.condaDependenciesFile":              {{`"c.yml"`, `environment.conda="c.yml"`}, {`"../c.yml"`, "error: python.condaDependenciesFile: \"../c.yml\" leaves the project"}, {`"/c.yml"`, "error: is an absolute path"}, {`"c.yml", "condaDependencies": {"dependencies": ["x"]}`, "error: python.condaDependenciesFile: a file and python.condaDependencies exclude each other"}},
		"python.condaDependencies": {{`{"dependencies": ["python=3.12", {"pip": ["a"]}], "channels": ["c"], "name": "n"}`, `environment.conda="sluice-conda.yml"`}, {`"c.yml"`, "error: python.condaDependencies: keys and values belong here"}, {`{}`, "error: python.condaDependencies: names no dependencies"},
			{`{"dependencies": [3.6]}`, "error: python.condaDependencies: a dependency must be text"}, {`{"dependencies": [{"pip": ["-r r.txt", "./p"]}]}`, `environment.conda="sluice-conda.yml"`},
			{`{"dependencies": [{"pip": ["x @ https://u:hush@h.example/x.whl"]}]}`, "error: python.condaDependencies: the address of h.example has credentials in it"}, {`{"dependencies": [{"pip": ["-i ./simple"]}]}`, "error: python.condaDependencies: --index-url ./simple is no address"}},
		"python.baseCondaEnvironment": {{`"base"`, "error: python.baseCondaEnvironment"}, {`null`, ""}},
		"spark.repositories":          {{`["x"]`, "out: without packages"}},
		"spark.packages":              {{`[{"group": "g"}]`, "error: spark.packages: versions run Python, not Spark"}, {`[]`, "out: it is empty"}},
		"spark.precachePackages":      {{`true`, "out: without packages"}, {`3`, "error: spark.precachePackages"}},
		"r.rVersion":                  {{`"3.5.2"`, "error: r.rVersion"}},
		"r.snapshotDate":              {{`"x"`, "error: r.snapshotDate"}},
		"r.cranPackages":              {{`["x"]`, "error: r.cranPackages"}},
		"r.gitHubPackages":            {{`["x"]`, "error: r.gitHubPackages"}},
		"r.bioConductorPackages":      {{`["x"]`, "error: r.bioConductorPackages"}},
		"r.customUrlPackages":         {{`["x"]`, "error: r.customUrlPackages"}},
		"r.rscriptPath":               {{`"x"`, "error: r.rscriptPath"}},
		"r.userManaged":               {{`true`, "error: r.userManaged"}, {`false`, "out: there is no R"}},
		"databricks.mavenLibraries":   {{`["x"]`, "error: databricks.mavenLibraries"}, {`[]`, "out: it is empty"}},
		"databricks.pypiLibraries":    {{`["x"]`, "error: databricks.pypiLibraries"}},
		"databricks.rcranLibraries":   {{`["x"]`, "error: databricks.rcranLibraries"}},
		"databricks.jarLibraries":     {{`["x"]`, "error: databricks.jarLibraries"}},
		"databricks.eggLibraries":     {{`["x"]`, "error: databricks.eggLibraries"}},
		"inferencingStackVersion":     {{`"latest"`, "out: Sluice's own server"}, {`"1.0"`, "error: inferencingStackVersion: Azure ML knew only"}},
	},
}

// nested is JSON for a value at a path of keys.
func nested(path, value string) string {
	keys := strings.Split(path, ".")
	out := value
	for i, key := range slices.Backward(keys) {
		out = fmt.Sprintf("%q: %s", key, out)
		if i > 0 {
			out = "{" + out + "}"
		}
	}
	return out
}

var testFiles = map[string]string{
	"steps": "# first\nRUN one \\\n  two\n\nENV A=b\n", "from": "RUN a\nFROM b\n", "copy": "COPY a b\n", "src/copy": "COPY a b\n", "Dockerfile": "FROM d:1\r\nRUN e\r\n",
}

func readTestFile(name string) ([]byte, error) {
	if text, ok := testFiles[name]; ok {
		return []byte(text), nil
	}
	return nil, fmt.Errorf("no such file")
}

// TestEveryField converts each field alone and checks what becomes of it.
func TestEveryField(t *testing.T) {
	for _, f := range azureml.Fields() {
		rows := perField[f.File][f.Path]
		if len(rows) == 0 {
			t.Errorf("%s %s has no test", f.File, f.Path)
		}
		for _, row := range rows {
			prefixes := []string{""}
			if f.File == azureml.Environment {
				prefixes = []string{"", "environment."}
			}
			for _, prefix := range prefixes {
				t.Run(string(f.File)+"/"+prefix+f.Path+"/"+row.value, func(t *testing.T) { testField(t, f, prefix, row) })
			}
		}
	}
	for kind, rows := range perField {
		for path := range rows {
			if !slices.ContainsFunc(azureml.Fields(), func(f azureml.Field) bool { return f.File == kind && f.Path == path }) {
				t.Errorf("%s %s is tested and not in the table", kind, path)
			}
		}
	}
}

func testField(t *testing.T, f azureml.Field, prefix string, row one) {
	text := nested(f.Path, row.value)
	in := azureml.Input{Inference: &azureml.File{Name: "ic.json", Data: []byte(`{"entryScript": "score.py"}`)}}
	file := "dc.json"
	switch {
	case f.File == azureml.Deployment:
		if f.Path != "computeType" && !strings.Contains(text, "computeType") {
			text += `, "computeType": "aks"`
		}
		in.Deployment = &azureml.File{Name: file, Data: []byte("{" + text + "}")}
	case f.File == azureml.Inference:
		file = "ic.json"
		if f.Path != "entryScript" {
			text += `, "entryScript": "score.py"`
		}
		in.Inference = &azureml.File{Name: file, Data: []byte("{" + text + "}")}
	case prefix == "":
		file = "env.json"
		in.Environment = &azureml.File{Name: file, Data: []byte("{" + text + "}")}
	default:
		file = "ic.json"
		in.Inference.Data = []byte(`{"entryScript": "score.py", "environment": {` + text + "}}")
	}
	c, err := azureml.Convert(in, azureml.Options{Endpoint: "fraud", ReadFile: readTestFile})
	if want, ok := strings.CutPrefix(row.want, "error: "); ok {
		one, other, _ := strings.Cut(want, "|")
		if strings.HasPrefix(one, "1:2: ") {
			one = file + ":" + one
		}
		if err == nil || !strings.Contains(err.Error(), one) && (other == "" || !strings.Contains(err.Error(), other)) {
			t.Fatalf("%s: %v, want %q", text, err, want)
		}
		if strings.Contains(err.Error(), "hush") {
			t.Errorf("%v shows a secret", err)
		}
		for _, e := range project.Errors(err) {
			if e.Line != 1 || e.File != file {
				t.Errorf("%v has no place in %s", e, file)
			}
		}
		return
	}
	if err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	said := slices.IndexFunc(c.Changes, func(c azureml.Change) bool { return c.Field == prefix+f.Path })
	if row.want == "" {
		return
	}
	if said < 0 && f.Path != "python.userManagedDependencies" {
		t.Fatalf("%s: nothing is said: %v", text, c.Changes)
	}
	switch note, out := strings.CutPrefix(row.want, "out: "); {
	case out:
		if c.Changes[said].Became != "" || !strings.Contains(c.Changes[said].String(), note) {
			t.Errorf("%s: %v, want %q", text, c.Changes[said], note)
		}
		return
	case strings.HasPrefix(row.want, "flags="):
		if got := "flags=" + strings.Join(c.Deploy.Flags(), " "); got != row.want {
			t.Errorf("%s: %s, want %s", text, got, row.want)
		}
	default:
		field, want, _ := strings.Cut(row.want, "=")
		if got := fieldOf(t, c.Manifest, field); got != want {
			t.Errorf("%s: %s is %s, want %s", text, field, got, want)
		}
		if p := c.Origin(field); p.File != file || p.Line != 1 {
			t.Errorf("%s: %s comes from %v, want %s:1", text, field, p, file)
		}
	}
	if f.To != "" && c.Changes[said].Became != f.To && f.Path != "docker.baseDockerfile" {
		t.Errorf("%s became %s, and the table says %s", f.Path, c.Changes[said].Became, f.To)
	}
}

// fieldOf is a field of the manifest in JSON.
func fieldOf(t *testing.T, m *project.Manifest, field string) string {
	t.Helper()
	raw, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range strings.Split(field, ".") {
		var in map[string]json.RawMessage
		if err := json.Unmarshal(raw, &in); err != nil {
			t.Fatalf("%s: %v", field, err)
		}
		raw = in[key]
	}
	return string(raw)
}

// TestTableIsWhole holds the table against the types that the files are decoded into.
func TestTableIsWhole(t *testing.T) {
	for kind, typ := range azureml.Types() {
		var paths []string
		var walk func(typ reflect.Type, path string)
		walk = func(typ reflect.Type, path string) {
			for _, f := range reflect.VisibleFields(typ) {
				p := strings.TrimPrefix(path+"."+f.Tag.Get("json"), ".")
				switch {
				case f.Type.Kind() == reflect.Struct:
					walk(f.Type, p)
				case f.Type.Kind() == reflect.Pointer && f.Type.Elem().Kind() == reflect.Struct: // an environment
				default:
					paths = append(paths, p)
				}
			}
		}
		walk(typ, "")
		var rows []string
		for _, f := range azureml.Fields() {
			if f.File == kind {
				rows = append(rows, f.Path)
			}
		}
		slices.Sort(paths)
		slices.Sort(rows)
		if !slices.Equal(paths, rows) {
			t.Errorf("%s: decoded are\n%s, and in the table\n%s", kind, strings.Join(paths, " "), strings.Join(rows, " "))
		}
	}
}
