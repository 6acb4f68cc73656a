package azureml

import "encoding/json"

// deployment is deploymentconfig.json. What Convert refuses whatever its type is an any.
type deployment struct {
	ComputeType string `json:"computeType"`
	AutoScaler  struct {
		AutoscaleEnabled       *bool `json:"autoscaleEnabled"`
		MinReplicas            *int  `json:"minReplicas"`
		MaxReplicas            *int  `json:"maxReplicas"`
		RefreshPeriodInSeconds *int  `json:"refreshPeriodInSeconds"`
		TargetUtilization      *int  `json:"targetUtilization"`
	} `json:"autoScaler"`
	NumReplicas    *int `json:"numReplicas"`
	DataCollection struct {
		StorageEnabled  *bool `json:"storageEnabled"`
		EventHubEnabled *bool `json:"eventHubEnabled"`
	} `json:"dataCollection"`
	AuthEnabled                   *bool `json:"authEnabled"`
	TokenAuthEnabled              *bool `json:"tokenAuthEnabled"`
	ContainerResourceRequirements struct {
		CPU             *float64 `json:"cpu"`
		MemoryInGB      *float64 `json:"memoryInGB"`
		CPULimit        *float64 `json:"cpuLimit"`
		MemoryInGBLimit *float64 `json:"memoryInGBLimit"`
		GPU             any      `json:"gpu"`
		FPGA            any      `json:"fpga"`
	} `json:"containerResourceRequirements"`
	GPUCores                          *int  `json:"gpuCores"`
	AppInsightsEnabled                *bool `json:"appInsightsEnabled"`
	ScoringTimeoutMs                  *int  `json:"scoringTimeoutMs"`
	MaxConcurrentRequestsPerContainer *int  `json:"maxConcurrentRequestsPerContainer"`
	MaxQueueWaitMs                    *int  `json:"maxQueueWaitMs"`
	Keys                              struct {
		PrimaryKey   any `json:"primaryKey"`
		SecondaryKey any `json:"secondaryKey"`
	} `json:"keys"`
	LivenessProbeRequirements struct {
		PeriodSeconds       *int `json:"periodSeconds"`
		InitialDelaySeconds *int `json:"initialDelaySeconds"`
		TimeoutSeconds      *int `json:"timeoutSeconds"`
		SuccessThreshold    *int `json:"successThreshold"`
		FailureThreshold    *int `json:"failureThreshold"`
	} `json:"livenessProbeRequirements"`
	Namespace         string   `json:"namespace"`
	ComputeTargetName string   `json:"computeTargetName"`
	VersionName       string   `json:"versionName"`
	TrafficPercentile *float64 `json:"trafficPercentile"`
	Port              any      `json:"port"`

	// What only ACI had.
	Location       any `json:"location"`
	SSLEnabled     any `json:"sslEnabled"`
	SSLCertificate any `json:"sslCertificate"`
	SSLKey         any `json:"sslKey"`
	Cname          any `json:"cname"`
	DNSNameLabel   any `json:"dnsNameLabel"`
	VaultBaseURL   any `json:"vaultBaseUrl"`
	KeyName        any `json:"keyName"`
	KeyVersion     any `json:"keyVersion"`
	VnetName       any `json:"vnetName"`
	SubnetName     any `json:"subnetName"`

	// What was given to the CLI or the service, never read from the file.
	Tags        any `json:"tags"`
	Properties  any `json:"properties"`
	Description any `json:"description"`
	Overwrite   any `json:"overwrite"`
	IsDefault   any `json:"isDefault"`
	Type        any `json:"type"`
}

// inference is inferenceconfig.json, with what its older form had.
type inference struct {
	EntryScript     string       `json:"entryScript"`
	SourceDirectory string       `json:"sourceDirectory"`
	Environment     *environment `json:"environment"`

	Runtime              string `json:"runtime"`
	CondaFile            string `json:"condaFile"`
	ExtraDockerfileSteps string `json:"extraDockerfileSteps"`
	EnableGPU            *bool  `json:"enableGpu"`
	CudaVersion          any    `json:"cudaVersion"`
	BaseImage            string `json:"baseImage"`
	BaseImageRegistry    any    `json:"baseImageRegistry"`
	Description          string `json:"description"`
	SchemaFile           any    `json:"schemaFile"`
}

// environment is azureml_environment.json, and what inferenceconfig.json has under that name.
type environment struct {
	Name                 any               `json:"name"`
	Version              any               `json:"version"`
	AssetID              any               `json:"assetId"`
	EnvironmentVariables map[string]string `json:"environmentVariables"`
	Docker               struct {
		Enabled           any    `json:"enabled"`
		BaseImage         string `json:"baseImage"`
		BaseDockerfile    string `json:"baseDockerfile"`
		BaseImageRegistry struct {
			Address          string `json:"address"`
			Username         any    `json:"username"`
			Password         any    `json:"password"`
			RegistryIdentity any    `json:"registryIdentity"`
		} `json:"baseImageRegistry"`
		SharedVolumes any `json:"sharedVolumes"`
		ShmSize       any `json:"shmSize"`
		Arguments     any `json:"arguments"`
		GPUSupport    any `json:"gpuSupport"`
		BuildContext  any `json:"buildContext"`
		Platform      struct {
			OS           any `json:"os"`
			Architecture any `json:"architecture"`
		} `json:"platform"`
	} `json:"docker"`
	Python struct {
		UserManagedDependencies *bool           `json:"userManagedDependencies"`
		InterpreterPath         any             `json:"interpreterPath"`
		CondaDependenciesFile   string          `json:"condaDependenciesFile"`
		CondaDependencies       json.RawMessage `json:"condaDependencies"`
		BaseCondaEnvironment    any             `json:"baseCondaEnvironment"`
	} `json:"python"`
	Spark struct {
		Repositories     any `json:"repositories"`
		Packages         any `json:"packages"`
		PrecachePackages any `json:"precachePackages"`
	} `json:"spark"`
	R struct {
		RVersion             any `json:"rVersion"`
		SnapshotDate         any `json:"snapshotDate"`
		CranPackages         any `json:"cranPackages"`
		GitHubPackages       any `json:"gitHubPackages"`
		BioConductorPackages any `json:"bioConductorPackages"`
		CustomURLPackages    any `json:"customUrlPackages"`
		RscriptPath          any `json:"rscriptPath"`
		UserManaged          any `json:"userManaged"`
	} `json:"r"`
	Databricks struct {
		MavenLibraries any `json:"mavenLibraries"`
		PypiLibraries  any `json:"pypiLibraries"`
		RcranLibraries any `json:"rcranLibraries"`
		JarLibraries   any `json:"jarLibraries"`
		EggLibraries   any `json:"eggLibraries"`
	} `json:"databricks"`
	InferencingStackVersion any `json:"inferencingStackVersion"`
}
