package azureml

import "github.com/sluice-dev/sluice/rollout"

// Kind of a file.
type Kind string

// The kinds of files.
const (
	Deployment  Kind = "deploymentconfig.json"
	Inference   Kind = "inferenceconfig.json"
	Environment Kind = "azureml_environment.json"
)

// The compute types that are read.
const (
	computeAKS      = "aks"
	computeEndpoint = "aksendpoint"
	computeLocal    = "local"
	computeACI      = "aci"
)

// Field of one of Azure ML's files, and what becomes of it.
type Field struct {
	File Kind
	// Path of keys, with dots.
	Path string
	// To is the manifest's field, or the flag of `sluice deploy`, that it becomes; empty if it becomes none.
	To string
	// Types are the compute types whose deployments have it; empty is all.
	Types []string
	// SDK is its name in the Python SDK, where that is another: people write it into files, where Azure ML ignored it.
	SDK string
	// Note says how it becomes To, or why a value that is accepted becomes nothing.
	Note string
	// Same are values that ask for what is so anyway; they are accepted, and become nothing. So is a null, and, for a field that
	// is refused, an empty list or text.
	Same []any
	// Reason, if not empty, says that all other values are refused: Why and what to do.
	Reason   rollout.Reason
	Why, Way string
}

// notYet are fields whose counterparts in Sluice are not built.
const notYet = rollout.ReasonNotSupportedYet

var (
	onAKS      = []string{computeAKS, computeEndpoint}
	onEndpoint = []string{computeEndpoint}
)

const (
	noTLS       = "TLS is a matter of the cluster's ingress, for all endpoints, and Azure ML ignored this for aks"
	noTLSWay    = "remove it; put a certificate on the ingress or load balancer in front of the router"
	onlyACI     = "is for Azure Container Instances, and Azure ML ignored it for aks"
	secretWay   = "remove it, and take the key out of the repository's history if it is in use; Sluice makes keys itself: `sluice keys get ENDPOINT`, `sluice keys regenerate ENDPOINT`"
	secretWhy   = "a key in a file is in the repository's history for all to read"
	loginWay    = "remove it; credentials are read from where `docker login` keeps them"
	loginWhy    = "a credential in a file is in the repository's history for all to read"
	notInFile   = "Azure ML never read this from the file"
	noSpark     = "versions run Python, not Spark"
	noSparkWay  = "serve the model without Spark, or by a server of your own (scoring.command in sluice.yaml)"
	noR         = "versions run Python, or a server of your own, not Azure ML's R"
	noRWay      = "install R with environment.dockerSteps and run a server of your own (scoring.command in sluice.yaml)"
	noDatabrick = "there is no Databricks cluster that libraries could be installed on"
	condaWay    = "remove it; name packages in the Conda definition"
	gpuWay      = "name a base image that has CUDA (baseImage, or environment.docker.baseImage), and set gpuCores in deploymentconfig.json"
	gpuWhy      = "Azure ML chose a base image of its own for it"
	runFlagsWay = "remove it; pods are patched by version.template in sluice.yaml"
)

// Fields are all fields of the three files, in the order of the documentation.
func Fields() []Field {
	d := func(path, to string) Field { return Field{File: Deployment, Path: path, To: to, Types: onAKS} }
	i := func(path, to string) Field { return Field{File: Inference, Path: path, To: to} }
	e := func(path, to string) Field { return Field{File: Environment, Path: path, To: to} }
	sdk := func(f Field, name string) Field { f.SDK = name; return f }
	note := func(f Field, note string) Field { f.Note = note; return f }
	on := func(f Field, types ...string) Field { f.Types = types; return f }
	same := func(f Field, note string, values ...any) Field { f.Note, f.Same = note, values; return f }
	refused := func(f Field, reason rollout.Reason, why, way string) Field {
		f.Reason, f.Why, f.Way = reason, why, way
		return f
	}
	const invalid, unknown, secret = rollout.ReasonInvalid, rollout.ReasonUnknownField, rollout.ReasonSecretFile

	fields := []Field{
		note(on(d("computeType", "--target")), "`aks` and `aksendpoint`: kubernetes; `local`: local; `aci` is refused: Sluice deploys to Kubernetes or to one machine"),
		sdk(note(d("autoScaler.autoscaleEnabled", "version.autoscale.enabled"), "without it, as in Azure ML, the autoscaler is on unless `numReplicas` is given, and no other field of `autoScaler` may be given"), "autoscale_enabled"),
		sdk(d("autoScaler.minReplicas", "version.autoscale.minReplicas"), "autoscale_min_replicas"),
		sdk(d("autoScaler.maxReplicas", "version.autoscale.maxReplicas"), "autoscale_max_replicas"),
		sdk(d("autoScaler.refreshPeriodInSeconds", "version.autoscale.refreshPeriodSeconds"), "autoscale_refresh_seconds"),
		sdk(d("autoScaler.targetUtilization", "version.autoscale.targetUtilization"), "autoscale_target_utilization"),
		sdk(d("numReplicas", "version.replicas"), "num_replicas"),
		sdk(refused(same(d("dataCollection.storageEnabled", ""), "nothing is collected", false), notYet, "collecting model data is not built yet", "remove it"), "collect_model_data"),
		refused(same(d("dataCollection.eventHubEnabled", ""), "nothing is collected", false), notYet, "collecting model data is not built yet", "remove it"),
		sdk(refused(same(d("authEnabled", ""), "endpoints ask for a key anyway", true), notYet, "a deploy cannot turn authentication off yet", "remove it; on Kubernetes set `spec.auth.mode: none` in the ModelEndpoint itself"), "auth_enabled"),
		sdk(refused(same(d("tokenAuthEnabled", ""), "endpoints ask for a key anyway", false), notYet, "token authentication is not built yet", "remove it; endpoints ask for a key: `sluice keys get ENDPOINT`"), "token_auth_enabled"),
		sdk(note(d("containerResourceRequirements.cpu", "version.resources.cpu"), "0.1 becomes `100m`; without it Azure ML's default, 0.1, is written out"), "cpu_cores"),
		sdk(note(d("containerResourceRequirements.memoryInGB", "version.resources.memory"), "GB are taken as GiB: 0.5 becomes `512Mi`; without it Azure ML's default, 0.5, is written out"), "memory_gb"),
		sdk(d("containerResourceRequirements.cpuLimit", "version.resources.cpuLimit"), "cpu_cores_limit"),
		sdk(note(d("containerResourceRequirements.memoryInGBLimit", "version.resources.memoryLimit"), "GB are taken as GiB"), "memory_gb_limit"),
		refused(d("containerResourceRequirements.gpu", ""), unknown, "Azure ML read the number of GPUs from `gpuCores` alone, and ignored this", "write it as `gpuCores` at the top of the file"),
		refused(d("containerResourceRequirements.fpga", ""), invalid, "what an FPGA is called depends on the cluster, and Azure ML ignored this", "name it under version.resources.extended in sluice.yaml, such as {vendor.example/fpga: 2}"),
		sdk(note(d("gpuCores", "version.resources.gpu"), "whole GPUs for each replica; 0 is none"), "gpu_cores"),
		sdk(refused(same(d("appInsightsEnabled", ""), "nothing is sent", false), notYet, "export to Application Insights is not built yet", "remove it; the router's own metrics are on"), "enable_app_insights"),
		sdk(d("scoringTimeoutMs", "version.scoringTimeoutMs"), "scoring_timeout_ms"),
		sdk(note(d("maxConcurrentRequestsPerContainer", "version.concurrency.maxConcurrentRequests"), "the slots of a replica"), "replica_max_concurrent_requests"),
		sdk(d("maxQueueWaitMs", "version.concurrency.maxQueueWaitMs"), "max_request_wait_time"),
		sdk(refused(d("keys.primaryKey", ""), secret, secretWhy, secretWay), "primary_key"),
		sdk(refused(d("keys.secondaryKey", ""), secret, secretWhy, secretWay), "secondary_key"),
		sdk(d("livenessProbeRequirements.initialDelaySeconds", "version.livenessProbe.initialDelaySeconds"), "initial_delay_seconds"),
		sdk(d("livenessProbeRequirements.periodSeconds", "version.livenessProbe.periodSeconds"), "period_seconds"),
		sdk(d("livenessProbeRequirements.timeoutSeconds", "version.livenessProbe.timeoutSeconds"), "timeout_seconds"),
		sdk(note(d("livenessProbeRequirements.successThreshold", "version.livenessProbe.successThreshold"), "1 alone: Kubernetes allows a liveness probe no other"), "success_threshold"),
		sdk(d("livenessProbeRequirements.failureThreshold", "version.livenessProbe.failureThreshold"), "failure_threshold"),
		d("namespace", "--namespace"),
		sdk(on(note(d("computeTargetName", "--context"), "the context of the kubeconfig that has this name"), computeAKS), "compute_target_name"),
		sdk(on(d("versionName", "--version"), onEndpoint...), "version_name"),
		sdk(on(note(d("trafficPercentile", "--percent"), "at most three decimals; with a strategy it is the first step"), onEndpoint...), "traffic_percentile"),
		refused(on(d("port", ""), computeLocal), invalid, "the address of an endpoint is the router's, one for all", "remove it; `sluice up --help` names the router's address"),

		refused(on(d("location", "")), invalid, onlyACI, "remove it"),
		refused(on(d("sslEnabled", "")), invalid, noTLS, noTLSWay),
		refused(on(d("sslCertificate", "")), invalid, noTLS, noTLSWay),
		refused(on(d("sslKey", "")), invalid, noTLS, noTLSWay),
		refused(on(d("cname", "")), invalid, noTLS, noTLSWay),
		refused(on(d("dnsNameLabel", "")), invalid, onlyACI, "remove it"),
		refused(on(d("vaultBaseUrl", "")), invalid, onlyACI, "remove it"),
		refused(on(d("keyName", "")), invalid, onlyACI, "remove it"),
		refused(on(d("keyVersion", "")), invalid, onlyACI, "remove it"),
		refused(on(d("vnetName", "")), invalid, onlyACI, "remove it"),
		refused(on(d("subnetName", "")), invalid, onlyACI, "remove it"),
		refused(on(d("tags", "")), invalid, notInFile+", but from --tag; versions get no tags from a deploy yet", "remove it, or write it into `sluice deploy --description`"),
		refused(on(d("properties", "")), invalid, notInFile+", but from --property; versions get no properties from a deploy yet", "remove it, or write it into `sluice deploy --description`"),
		refused(on(d("description", "")), invalid, notInFile+", but from --description", "give it as `sluice deploy --description`"),
		refused(same(on(d("overwrite", "")), "a version never changes anyway", false), invalid, notInFile+", but from --overwrite", "remove it; a version never changes, and a new one joins beside it"),
		refused(same(on(d("isDefault", "")), "a deploy makes its version the default only if it is told to, or if it is the first", false), invalid, notInFile+", but from create_version", "give it as `sluice deploy --default`"),
		refused(on(d("type", "")), invalid, notInFile+", but from create_version", "give it as `sluice deploy --type`"),

		sdk(i("entryScript", "scoring.entryScript"), "entry_script"),
		sdk(note(i("sourceDirectory", "scoring.sourceDirectory"), "relative to the project's root, DIR; other paths in the file are relative to it. What ships is the whole project, less what is ignored"), "source_directory"),
		refused(same(i("runtime", ""), "an entry script is Python", "python"), invalid, "only `python` is served", "remove it; a server of another kind is named by scoring.command in sluice.yaml"),
		sdk(i("condaFile", "environment.conda"), "conda_file"),
		sdk(note(i("extraDockerfileSteps", "environment.dockerSteps"), "the file's instructions are copied into the manifest"), "extra_docker_file_steps"),
		sdk(refused(same(i("enableGpu", ""), "the base image decides; so does `true` beside `baseImage`", false), invalid, gpuWhy, gpuWay), "enable_gpu"),
		sdk(refused(note(i("cudaVersion", ""), "beside `baseImage` it becomes nothing: the base image decides"), invalid, gpuWhy, gpuWay), "cuda_version"),
		sdk(i("baseImage", "environment.baseImage"), "base_image"),
		sdk(note(i("baseImageRegistry", "environment.baseImage"), "an address, or an object with `address`; it comes before the image's name. `username` and `password` are refused"), "base_image_registry"),
		i("description", "--description"),
		sdk(refused(i("schemaFile", ""), notYet, "a schema of an endpoint's input from a file is not built yet", "remove it; the script's run() may check its input"), "schema_file"),

		same(e("name", ""), "an environment is known by the hash of its content"),
		same(e("version", ""), "an environment is known by the hash of its content"),
		same(e("assetId", ""), "an environment is known by the hash of its content"),
		sdk(e("environmentVariables", "environment.variables"), "environment_variables"),
		refused(same(e("docker.enabled", ""), "versions run in containers on Kubernetes, and as processes on one machine", true, false), invalid, "true or false belongs here", "remove it"),
		sdk(e("docker.baseImage", "environment.baseImage"), ""),
		note(e("docker.baseDockerfile", "environment.dockerSteps"), "its text, or its path: a FROM becomes `environment.baseImage`, what follows it the steps. One with several stages is refused: name it as `environment.dockerfile` in a sluice.yaml"),
		note(e("docker.baseImageRegistry.address", "environment.baseImage"), "it comes before the image's name"),
		refused(e("docker.baseImageRegistry.username", ""), secret, loginWhy, loginWay),
		refused(e("docker.baseImageRegistry.password", ""), secret, loginWhy, loginWay),
		refused(e("docker.baseImageRegistry.registryIdentity", ""), invalid, "registries know no identities of Azure's here", loginWay),
		refused(same(e("docker.sharedVolumes", ""), "it is about training on the own machine", true, false), invalid, "true or false belongs here", "remove it"),
		refused(same(e("docker.shmSize", ""), "the scaffold's default, which Azure ML did not apply to AKS", "2g"), invalid, "the size of /dev/shm is set by the pod", "remove it; mount an emptyDir of medium Memory at /dev/shm with version.template in sluice.yaml"),
		refused(e("docker.arguments", ""), invalid, "there is no `docker run` that it could be given to", runFlagsWay),
		refused(same(e("docker.gpuSupport", ""), "the base image decides; so does `true` beside `baseImage`", false), invalid, gpuWhy, gpuWay),
		refused(e("docker.buildContext", ""), invalid, "the build context is the project", "name the Dockerfile as environment.dockerfile in sluice.yaml"),
		refused(same(e("docker.platform.os", ""), "images are for Linux", "Linux", "linux"), invalid, "images are for Linux", "remove it"),
		refused(same(e("docker.platform.architecture", ""), "the default of --platform", "amd64"), invalid, "the platform is the deploy's", "remove it, and give --platform linux/ARCHITECTURE"),
		note(e("python.userManagedDependencies", ""), "true: the base image has the packages, and a Conda definition is left out, as in Azure ML; false: the definition counts"),
		refused(same(e("python.interpreterPath", ""), "versions run the python3 that comes first in PATH", "python", "python3"), invalid, "versions run the python3 that comes first in PATH", "put it first in PATH with environment.dockerSteps, `ENV PATH=…`"),
		note(e("python.condaDependenciesFile", "environment.conda"), "relative to the source directory; in azureml_environment.json to that file's directory"),
		note(e("python.condaDependencies", "environment.conda"), "becomes a file of its own, `"+CondaName+"`"),
		refused(e("python.baseCondaEnvironment", ""), invalid, "Conda packages are installed into an environment of their own", condaWay),
		same(e("spark.repositories", ""), "without packages it has no effect"),
		refused(e("spark.packages", ""), invalid, noSpark, noSparkWay),
		refused(same(e("spark.precachePackages", ""), "without packages it has no effect", true, false), invalid, "true or false belongs here", "remove it"),
	}
	for _, key := range []string{"rVersion", "snapshotDate", "cranPackages", "gitHubPackages", "bioConductorPackages", "customUrlPackages", "rscriptPath"} {
		fields = append(fields, refused(e("r."+key, ""), invalid, noR, noRWay))
	}
	fields = append(fields, refused(same(e("r.userManaged", ""), "there is no R", false), invalid, noR, noRWay))
	for _, key := range []string{"mavenLibraries", "pypiLibraries", "rcranLibraries", "jarLibraries", "eggLibraries"} {
		fields = append(fields, refused(e("databricks."+key, ""), invalid, noDatabrick, condaWay))
	}
	return append(fields, refused(same(e("inferencingStackVersion", ""), "Sluice's own server is added to every image", "latest"), invalid, "Azure ML knew only \"latest\"", "remove it; Sluice's own server is added to every image"))
}
