package action

import (
	"os"
	"path/filepath"

	"github.com/sluice-dev/sluice/pkg/project"
	"github.com/sluice-dev/sluice/pkg/project/azureml"
	"github.com/sluice-dev/sluice/pkg/project/azureml/files"
	"github.com/sluice-dev/sluice/rollout"
)

// manifest finds the one that is not the directory's sluice.yaml: a file of another name, or one that is made of Azure ML's
// files.
func (r *run) manifest() error {
	if c := r.in.text["config"]; c != "" {
		path, err := r.path("config", c)
		if err != nil {
			return err
		}
		name := filepath.Base(path)
		if name == project.ManifestName {
			return nil
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return invalid("config", "name a manifest of the workspace", "there is no file %s", c)
		}
		r.given = &project.Given{Files: map[string][]byte{project.ManifestName: text}, Sources: []string{name}, Instead: true}
		r.r.renamed = map[string]string{project.ManifestName: name}
		return nil
	}
	if r.in.text["inference-config"] == "" {
		return nil
	}
	n := files.Names{}
	for name, to := range map[string]*string{"inference-config": &n.Inference, "deployment-config": &n.Deployment, "environment-file": &n.Environment} {
		if r.in.text[name] == "" {
			continue
		}
		path, err := r.path(name, r.in.text[name])
		if err != nil {
			return err
		}
		*to = path
	}
	o := azureml.Options{Endpoint: r.in.text["endpoint"], LeaveOut: r.in.lists["leave-out"]}
	for _, text := range r.in.lists["models"] {
		m, ok := azureml.ParseModel(text)
		if !ok {
			return invalid("models", "write it as fraud:3=model/", "%q is not NAME[:VERSION]=PATH", text)
		}
		o.Models = append(o.Models, m)
	}
	if o.Endpoint == "" {
		return invalid("endpoint", "name it", "Azure ML's files do not say which endpoint is meant")
	}
	made, given, err := files.Read(r.dir, n, o)
	if err != nil {
		return err
	}
	r.given = given
	return r.azure(made)
}

// azure takes over what deploymentconfig.json says of the deploy, where no input says it.
func (r *run) azure(made *azureml.Converted) error {
	d := made.Deploy
	if d.Target() == "local" {
		return invalid("deployment-config", "use computeType aks or aksendpoint, or leave it out", "it deploys to the machine that it runs on (computeType local), where nobody would find it")
	}
	for input, value := range map[string]string{"namespace": d.Namespace, "version": d.Version, "description": d.Description, "context": d.ComputeTarget} {
		if r.in.text[input] != "" || value == "" || (input == "context" && r.in.text["target"] == targetServer) {
			continue
		}
		if input == "version" && r.from.versionName() != "" {
			// A file in the repository names the same version for every commit, of which only the first could be deployed.
			r.warn("versionName %s of deployment-config is not used: versions are named by their commits here. The input version names one otherwise.", value)
			continue
		}
		if input == "version" {
			if err := rollout.ValidateName("versionName", "a version", value); err != nil {
				return err
			}
		}
		r.in.text[input] = value
		r.r.say("%s: %s (from deployment-config)", input, value)
	}
	if r.in.percent == nil && d.Percent != nil && r.in.text["command"] == commandDeploy {
		if r.in.role != nil && *r.in.role == rollout.Untyped && *d.Percent > 0 {
			return invalid("type", "use type: treatment, or leave trafficPercentile out of deployment-config", "a version without a role that takes traffic is judged by nobody")
		}
		r.in.percent = d.Percent
		r.r.say("traffic-percentile: %s (from deployment-config)", d.Percent)
	}
	for _, c := range made.Changes {
		if c.Note != "" {
			r.r.say("%s: %s", c.Field, c.Note)
		}
	}
	return nil
}
