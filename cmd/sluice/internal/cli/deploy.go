package cli

import (
	"cmp"
	"context"
	"io"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/sluice-dev/sluice/pkg/cluster"
	"github.com/sluice-dev/sluice/pkg/cluster/local"
	"github.com/sluice-dev/sluice/pkg/deploy"
	"github.com/sluice-dev/sluice/pkg/project"
	"github.com/sluice-dev/sluice/rollout"
)

// archiveStore keeps a project's archive for the fleets of this machine.
type archiveStore interface {
	// Write stores what write writes, once, under its digest ("sha256:HEX"), and says whether it was there.
	Write(ctx context.Context, write func(io.Writer) error) (digest string, known bool, err error)
}

// shipper makes archives; on this machine an image is an archive's digest.
type shipper struct {
	archives archiveStore
	source   project.Source
	// manifest stands for the project's sluice.yaml; nil is its own.
	manifest *project.Given
}

// Ship implements deploy.Shipper.
func (s shipper) Ship(ctx context.Context, dir string) (deploy.Shipment, error) {
	var res project.Result
	digest, known, err := s.archives.Write(ctx, func(w io.Writer) error {
		var err error
		res, err = project.Package(ctx, dir, w, nil, project.Check(local.CheckProject), s.manifest)
		return err
	})
	if err != nil {
		return deploy.Shipment{}, err
	}
	out, err := deploy.NewShipment(dir, res, s.source)
	if err != nil {
		return deploy.Shipment{}, err
	}
	out.Image, out.Known = "local/"+out.Endpoint+"@"+digest, known
	return out, nil
}

func (a *app) deployCmd() *cobra.Command {
	var (
		o               deploy.Options
		percent, role   string
		commit          string
		pr              int
		repository, run int64
		checks          admission
	)
	c := &cobra.Command{
		Use:   "deploy [DIR]",
		Short: "Package a project and add it to its endpoint as a version",
		Long: `Package a project and add it to its endpoint as a version. The first version becomes
control and default; a later one joins at 0 per cent, and once it is ready and its smoke
test has passed it becomes a treatment.

A deploy that is interrupted says what it leaves; one that is killed leaves the same: the
version untyped at 0 per cent, with replicas that run on until it is deleted ("sluice delete
ENDPOINT VERSION") or makes room for a seventh version. The same deploy again goes on from there.

Azure ML's configuration files can stand for a sluice.yaml ("-ic inferenceconfig.json -dc deploymentconfig.json --endpoint NAME
--model NAME=PATH"): docs/azureml.md. What deploymentconfig.json says of the target, the namespace, the version's name and
its share holds unless a flag or variable says otherwise.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			o.Dir = "."
			if len(args) > 0 {
				o.Dir = args[0]
			}
			if percent != "" {
				p, err := rollout.ValidatePercent("--percent", percent)
				if err != nil {
					return err
				}
				o.Percent = &p
			}
			switch role {
			case "treatment", "control":
				r := rollout.Role(role)
				o.Type = &r
			case "none":
				r := rollout.Untyped
				o.Type = &r
			default:
				return misuse("--type", roleHint, "--type %q is not known", role)
			}
			if pr < 0 {
				return misuse("--pull-request", "give its number", "--pull-request %d is none", pr)
			}
			checks.asked = c.Flags().Changed("scan")
			o.Source = rollout.Source{RepositoryID: repository, PullRequest: pr, Commit: commit, RunID: run}
			return a.deploy(c.Context(), o, checks)
		},
	}
	f := c.Flags()
	f.StringVar(&o.Endpoint, flagEndpoint, "", "endpoint to join instead of the manifest's")
	f.StringVar(&o.Version, "version", "", "name of the version instead of the one by the commit")
	f.StringVar(&percent, "percent", "", "share of traffic to begin with, 0 to 100")
	f.StringVar(&role, "type", "treatment", "role once ready: control, treatment or none")
	f.BoolVar(&o.Default, "default", false, "make it the default once ready")
	f.StringVar(&o.Description, "description", "", "free text, kept with the version")
	f.StringVar(&commit, "commit", "", "commit that it is made from (default: git's)")
	f.IntVar(&pr, "pull-request", 0, "number of the pull request that it comes from")
	f.Int64Var(&repository, "repository-id", envInt(a.io.Getenv("GITHUB_REPOSITORY_ID")), "GitHub repository id that it comes from; a new endpoint is bound to it")
	f.Int64Var(&run, "run-id", envInt(a.io.Getenv("GITHUB_RUN_ID")), "workflow run that deploys it")
	env := func(name string) string { return a.io.Getenv("SLUICE_" + name) }
	a.azureFlagSet(f)
	a.imageFlags(f)
	f.StringVar(&a.images.pullRegistry, "pull-registry", env("PULL_REGISTRY"), "HOST[:PORT] by which nodes reach that registry, if it is another ($SLUICE_PULL_REGISTRY)")
	f.BoolVar(&checks.sbom, "sbom", false, "attach a bill of materials to the pushed image (target kubernetes)")
	f.StringVar(&checks.scanner, "scan", env("SCAN"), "command of a scanner that looks at the pushed image, {image} in it; the version joins only if it ends with 0 (target kubernetes; $SLUICE_SCAN)")
	f.StringVar(&o.Router, "router-url", env("ROUTER_URL"), "router's address for the smoke test, if the endpoint's is not reached from here ($SLUICE_ROUTER_URL)")
	f.DurationVar(&o.Timeout, "timeout", 5*time.Minute, "how long it may take to become ready; 0 does not wait and gives it no part")
	return c
}

func envInt(s string) int64 {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		return 0
	}
	return n
}

func (a *app) deploy(ctx context.Context, o deploy.Options, checks admission) error {
	admit, err := a.admit(checks)
	if err != nil {
		return err
	}
	o.Admit = admit
	sys, err := a.open(ctx)
	if err != nil {
		return err
	}
	if err := notNegative("--timeout", o.Timeout); err != nil {
		return err
	}
	o.Namespace, o.Actor, o.Logger = a.namespace, a.actor(), a.log
	o.Progress = a.progress
	o.Shipper = sys.Shipper(project.Source{PullRequest: o.Source.PullRequest, Commit: o.Source.Commit}, o.Progress)
	o.Endpoints, o.Keys, o.Logs = cluster.Editing(sys.Store), sys.Keys, sys.Logs
	res, err := deploy.Run(ctx, o)
	if err != nil {
		return err
	}
	return a.print(struct {
		Endpoint   string `json:"endpoint"`
		Version    string `json:"version"`
		Image      string `json:"image"`
		Changed    bool   `json:"changed"`
		ScoringURI string `json:"scoringUri"`
		Message    string `json:"message"`
	}{res.Endpoint.Name, res.Version, res.Image, res.Changed, res.ScoringURI, res.Message}, func(w io.Writer) {
		t := table{}
		t.add("endpoint", res.Endpoint.String())
		t.add("version", res.Version)
		t.add("image", res.Image)
		t.add("scoring", cmp.Or(res.ScoringURI, "(known once `sluice up` runs)"))
		t.add("result", res.Message)
		t.write(w)
	})
}
