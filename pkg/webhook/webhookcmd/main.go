// Package webhookcmd is the control plane as a program: flags and environment to
// options, and what stands behind the ports on this machine or in a cluster. The
// command webhook and a hidden subcommand of sluice share it.
package webhookcmd

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"os"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/sluice-dev/sluice/pkg/access/oidc"
	"github.com/sluice-dev/sluice/pkg/api"
	"github.com/sluice-dev/sluice/pkg/chatops"
	"github.com/sluice-dev/sluice/pkg/cluster"
	"github.com/sluice-dev/sluice/pkg/cluster/local"
	"github.com/sluice-dev/sluice/pkg/github"
	"github.com/sluice-dev/sluice/pkg/page"
	"github.com/sluice-dev/sluice/pkg/page/login"
	"github.com/sluice-dev/sluice/pkg/process"
	"github.com/sluice-dev/sluice/pkg/report"
	"github.com/sluice-dev/sluice/pkg/webhook"
	"github.com/sluice-dev/sluice/rollout"
)

// Exit codes.
const (
	exitOK     = 0
	exitFailed = 1
	exitUsage  = 2
)

const usage = `Usage: webhook [flags]

Runs the control plane: role github takes GitHub's webhooks at /webhooks/github, or fetches them with
--intake=poll, and carries out the commands in comments on pull requests and reports there, role api serves the API, role
control reconciles. Each flag can be set by SLUICE_<NAME> too: SLUICE_GITHUB_API_URL
sets --github-api-url.

Secrets come from the environment or from files, never from flags:
  SLUICE_WEBHOOK_SECRET   the webhook's secret; several, one per line, while it is rotated; not for --intake=poll
  SLUICE_GITHUB_TOKEN     a token for GitHub's API, unless an App is used
  SLUICE_API_SESSION_KEY  what sessions of the API and of the page are made with, where several servers share them, and
                          addresses of pictures, which need it
  SLUICE_PAGE_LOGIN_CLIENT_SECRET  what the page proves itself with to the issuer that people log in at

The API is off without --api-policy and --api-audience. So is the page of the endpoints, which role api serves
at /, without --page. People can log in to it, and do there what a policy permits them, with --page-login-issuer
and the flags beside it.

Flags:
`

// config is what flags and environment say.
type config struct {
	roles      string
	listen     string
	listenFD   int
	lifelineFD int
	target     process.Target
	kube       process.Kubernetes
	state      string
	namespace  string
	grace      time.Duration
	memory     int64
	verbose    bool

	secretFile string
	apiURL     string
	tokenFile  string
	appID      int64
	appKeyFile string
	pause      time.Duration

	intake         string
	hook           string
	redeliverEvery time.Duration

	permissions string
	publicURL   string
	onMerge     string
	prefixOnly  bool
	reports     bool
	reportEvery time.Duration

	// For role api.
	apiPolicy, apiAudience, apiIssuer, apiSessionKeyFile string
	page                                                 string
	login                                                loginConfig

	// For the control role.
	routerAdmin string
	scoringURL  string
	admin       string
	health      string
	gateImage   string

	env []string
}

func newFlags(c *config, out io.Writer) *flag.FlagSet {
	f := flag.NewFlagSet("webhook", flag.ContinueOnError)
	f.SetOutput(out)
	f.StringVar(&c.roles, "roles", "github,api", "what to run: github, api, control, with commas between")
	f.StringVar(&c.listen, "listen", "127.0.0.1:8081", "address to serve on")
	f.IntVar(&c.listenFD, "listen-fd", -1, "serve on the listening socket inherited as this descriptor")
	f.IntVar(&c.lifelineFD, "lifeline-fd", -1, "stop at end of file on this descriptor")
	c.target.Flag(f)
	c.kube.Flags(f)
	f.StringVar(&c.state, "state", "", "state directory, with --target local (default $XDG_STATE_HOME/sluice)")
	f.StringVar(&c.namespace, "namespace", "default", "namespace of the endpoints")
	f.DurationVar(&c.grace, "grace", 4*time.Second, "how long requests and commands under way may take at the end")
	f.Int64Var(&c.memory, "memory-limit", 0, "bytes of memory that this process may have, such as its container's limit: garbage is collected in time for it; 0 for no limit")
	f.BoolVar(&c.verbose, "verbose", false, "log more")
	f.StringVar(&c.intake, "intake", string(webhook.IntakePush), "how GitHub's events come in: push, to /webhooks/github, or poll, which fetches a GitHub App's deliveries and needs no way in")
	f.DurationVar(&c.redeliverEvery, "github-redeliver-every", 3*time.Minute, "how often GitHub is asked what it could not deliver, to have it delivered again; 0 for never")
	f.StringVar(&c.hook, "github-hook", "", "OWNER/REPOSITORY/ID of the webhook whose deliveries are looked after, with a token; an App looks after its own")
	f.StringVar(&c.secretFile, "webhook-secret-file", "", "file with the webhook's secrets, one per line")
	f.StringVar(&c.apiURL, "github-api-url", github.DefaultBaseURL, "GitHub's API; https://HOST/api/v3/ for GitHub Enterprise Server")
	f.StringVar(&c.tokenFile, "github-token-file", "", "file with a token for GitHub's API")
	f.Int64Var(&c.appID, "github-app-id", 0, "id of the GitHub App to act as, instead of a token")
	f.StringVar(&c.appKeyFile, "github-app-key-file", "", "file with the App's private key in PEM")
	f.DurationVar(&c.pause, "github-write-pause", github.WritePause, "time between two writing requests to GitHub's API, which go one at a time; less than 1s only for a server of your own")
	f.StringVar(&c.permissions, "github-permissions", "", "file that says which role or team each command needs; without it each needs the role write")
	f.StringVar(&c.publicURL, "public-url", "", "address by which GitHub reaches this server, such as https://sluice.example: reports then link pictures of the steps, which GitHub fetches at /pictures/; needs a key of sessions")
	f.StringVar(&c.onMerge, "github-on-merge", string(chatops.MergeNothing), "what the merge of a pull request does to its treatment: promote, continue (judging, and say so) or nothing")
	f.BoolVar(&c.prefixOnly, "github-prefix-only", false, "heed only commands with /sluice before them, such as /sluice promote: other bots may own the bare words")
	f.BoolVar(&c.reports, "github-reports", true, "show on pull requests what becomes of their versions: a comment, a check run or commit status, a deployment")
	f.DurationVar(&c.reportEvery, "github-report-every", 30*time.Second, "how long a report stays as it is while only its numbers change")
	f.StringVar(&c.apiPolicy, "api-policy", "", "file that says which workflows may do what, for role api; without it the API is off")
	f.StringVar(&c.apiAudience, "api-audience", "", "audience that workflows' OIDC tokens must be made for, such as this server's address; for role api")
	f.StringVar(&c.apiIssuer, "api-issuer", oidc.DefaultIssuer, "issuer of the OIDC tokens; https://HOST/_services/token for GitHub Enterprise Server")
	f.StringVar(&c.apiSessionKeyFile, "api-session-key-file", "", "file with what sessions of the API and of the page, and addresses of pictures, are made with, 32 random bytes or more; for sessions one is made up unless given")
	f.StringVar(&c.page, "page", string(page.ModeNone), "who may read the page of the endpoints, for role api: none, loopback (on this machine only), anyone who reaches it, or login (who has logged in)")
	c.login.flags(f)
	f.StringVar(&c.routerAdmin, "router-admin", "http://127.0.0.1:9090", "admin address of the router, for role control with --target local; in a cluster the routers are found")
	f.StringVar(&c.admin, "admin-address", "0", "address for metrics, for role control with --target kubernetes; 0 for none")
	f.StringVar(&c.health, "health-address", "0", "address for /healthz and /readyz, for role control with --target kubernetes; 0 for none")
	f.StringVar(&c.gateImage, "gate-image", "", "image with the runner, for versions whose image is a server of its own, for role control with --target kubernetes")
	f.StringVar(&c.scoringURL, "scoring-url", "http://127.0.0.1:8080", "address that clients score at, for role control")
	return f
}

// Main is the control plane as a program: it reads flags (args without the
// program's name) and environment (as os.Environ), runs until ctx ends and
// returns the exit code: 0 stopped, 1 failed, 2 usage. The log goes to stderr;
// stdout gets the help only.
func Main(ctx context.Context, args, env []string, stdout, stderr io.Writer) int {
	c, err := parse(args, env)
	if errors.Is(err, flag.ErrHelp) {
		_, _ = io.WriteString(stdout, usage)
		newFlags(&config{}, stdout).PrintDefaults()
		return exitOK
	}
	if err != nil {
		_, _ = fmt.Fprintf(stderr, "webhook: %v\n", err)
		return exitUsage
	}
	level := slog.LevelInfo
	if c.verbose {
		level = slog.LevelDebug
	}
	log := slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: level}))
	if limit := c.heap(); limit > 0 {
		debug.SetMemoryLimit(limit)
	}
	ctx, stop := process.WithLifeline(ctx, c.lifelineFD)
	defer stop()
	if err := run(ctx, c, log); err != nil {
		_, _ = fmt.Fprintf(stderr, "webhook: %v\n", err)
		if refusal := new(rollout.Error); errors.As(err, &refusal) && refusal.Reason != rollout.ReasonUnavailable {
			return exitUsage
		}
		return exitFailed
	}
	return exitOK
}

func parse(args, env []string) (config, error) {
	c := config{env: env}
	if err := process.Parse(newFlags(&c, io.Discard), args, env, "SLUICE_"); err != nil {
		return c, err
	}
	var err error
	if c.state == "" && c.target == process.TargetLocal {
		c.state, err = process.StateDir(env)
	}
	return c, err
}

// heap is what Go may use of the memory limit: four fifths, because the kernel counts what Go does not, such as the program itself and
// buffers of connections. 0: nothing is to be set; GOMEMLIMIT, which Go reads itself, goes first.
func (c config) heap() int64 {
	if c.memory <= 0 || process.Getenv(c.env, "GOMEMLIMIT") != "" {
		return 0
	}
	return c.memory / 5 * 4
}

// run wires what the roles need.
func run(ctx context.Context, c config, log *slog.Logger) error {
	roles, err := webhook.ParseRoles(c.roles)
	if err != nil {
		return err
	}
	show, err := page.ParseMode(c.page)
	if err != nil {
		return err
	}
	o := webhook.Options{Roles: roles, Logger: log, Grace: c.grace}
	if slices.Contains(roles, webhook.RoleGitHub) {
		client, err := c.events(&o, log)
		if err != nil {
			return err
		}
		o.GitHub, o.Reports.Every, o.Commands.PrefixOnly = client, c.reportEvery, c.prefixOnly
		if o.Commands.OnMerge, err = chatops.ParseOnMerge(c.onMerge); err != nil {
			return err
		}
		if c.permissions != "" {
			if o.Commands.Permissions, err = chatops.ReadPermissions(c.permissions); err != nil {
				return err
			}
		}
		o.Commands.Directory = client
		pictures, err := c.pictures()
		if err != nil {
			return err
		}
		if c.reports {
			o.Reports.GitHub, o.Reports.Pictures = client, pictures
		}
	}
	var people *login.Login
	if slices.Contains(roles, webhook.RoleAPI) {
		if people, err = c.people(show, log); err != nil {
			return err
		}
	}
	serveAPI := apiOff
	if slices.Contains(roles, webhook.RoleAPI) && c.apiPolicy != "" {
		if serveAPI, err = c.api(); err != nil {
			return err
		}
	}
	wire := wireLocal
	if c.target == process.TargetKubernetes {
		wire = wireKubernetes
	}
	if err := wire(ctx, c, &o, log); err != nil {
		return err
	}
	if slices.Contains(roles, webhook.RoleAPI) {
		if o.API, err = serveAPI(&o, log); err != nil {
			return err
		}
		if show != page.ModeNone {
			po := page.Options{Store: o.Store, Mode: show, Next: o.API, Logger: log}
			if people != nil {
				po.Login, po.Editor = people, cluster.Editing(o.Store)
			}
			p, err := page.New(ctx, po)
			if err != nil {
				return err
			}
			o.API, o.Ending = p, p.Close
			log.Info("the page is on", "mode", show)
		}
	}
	if slices.Contains(roles, webhook.RoleGitHub) || slices.Contains(roles, webhook.RoleAPI) {
		if o.Listener, err = process.Listener(c.listenFD, c.listen); err != nil {
			return err
		}
	}
	return webhook.Run(ctx, o)
}

// events says how GitHub's events come in, and gives the client to answer with.
func (c config) events(o *webhook.Options, log *slog.Logger) (*github.Client, error) {
	var err error
	if o.Intake, err = webhook.ParseIntake(c.intake); err != nil {
		return nil, err
	}
	hook, err := github.ParseHook(c.hook)
	if err != nil {
		return nil, err
	}
	if o.Intake == webhook.IntakePush {
		if o.Secrets, err = c.secrets(); err != nil {
			return nil, err
		}
		// Said before anything is opened: without a secret anybody could command.
		if _, err := github.NewIntake(o.Secrets, nil); err != nil {
			return nil, err
		}
	}
	client, err := c.client(log)
	if err != nil {
		return nil, err
	}
	switch {
	case o.Intake == webhook.IntakePoll && !client.App():
		return nil, &rollout.Error{Reason: rollout.ReasonInvalid, Field: "intake", Message: "GitHub tells a token nothing of the events of all its repositories: only an App's deliveries can be fetched",
			Hint: "act as a GitHub App with --github-app-id and --github-app-key-file, or use --intake=push"}
	case o.Intake == webhook.IntakePush && (c.redeliverEvery <= 0 || !client.App() && c.hook == ""):
		log.Info("deliveries that do not arrive are not asked for again", "way", "a GitHub App, or with a token --github-hook, and --github-redeliver-every")
		return client, nil
	}
	l, err := client.HookLog(hook)
	if err != nil {
		return nil, err
	}
	o.Deliveries, o.RedeliverEvery = l, c.redeliverEvery
	return client, nil
}

// wireLocal is the state directory.
func wireLocal(_ context.Context, c config, o *webhook.Options, log *slog.Logger) (err error) {
	if o.Store, err = local.NewStore(c.state, log); err != nil {
		return err
	}
	if o.Journal, err = local.NewJournal(c.state, log); err != nil {
		return err
	}
	if slices.Contains(o.Roles, webhook.RoleControl) {
		o.Control = func(ctx context.Context) error { return runControl(ctx, c, *o, log) }
	}
	return nil
}

// pictures in reports; none without an address by which GitHub fetches them.
func (c config) pictures() (*report.Pictures, error) {
	if c.publicURL == "" {
		return nil, nil
	}
	u, err := url.Parse(c.publicURL)
	if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || strings.ContainsAny(c.publicURL, " ()[]<>\"\\") {
		return nil, &rollout.Error{Reason: rollout.ReasonInvalid, Field: "public-url", Message: "the public address must be an https URL", Hint: "give it as GitHub reaches it, such as https://sluice.example"}
	}
	key, err := c.sessionKey()
	if err != nil {
		return nil, err
	}
	return report.NewPictures(c.publicURL, key)
}

func apiOff(_ *webhook.Options, log *slog.Logger) (http.Handler, error) {
	log.Info("the API is off: no policy is given")
	return api.Off(), nil
}

// api reads what the API needs before anything is opened, and makes it once there is a store.
func (c config) api() (func(*webhook.Options, *slog.Logger) (http.Handler, error), error) {
	policy, err := api.ReadPolicy(c.apiPolicy)
	if err != nil {
		return nil, err
	}
	tokens, err := oidc.New(oidc.Config{Issuer: c.apiIssuer, Audience: c.apiAudience})
	if err != nil {
		return nil, err
	}
	key, err := c.sessionKey()
	if err != nil {
		return nil, err
	}
	return func(o *webhook.Options, log *slog.Logger) (http.Handler, error) {
		log.Info("the API is on", "rules", len(policy.Rules), "issuer", c.apiIssuer, "audience", c.apiAudience)
		return api.New(api.Options{Store: o.Store, Journal: o.Journal, Tokens: tokens, Policy: policy, SessionKey: key, Logger: log})
	}, nil
}

// sessionKey of all servers behind one address, from the file or the environment; empty if none is given.
func (c config) sessionKey() ([]byte, error) {
	key := []byte(strings.TrimSpace(process.Getenv(c.env, "SLUICE_API_SESSION_KEY")))
	if c.apiSessionKeyFile == "" {
		return key, nil
	}
	key, err := readSecret(c.apiSessionKeyFile)
	if err != nil {
		return nil, fmt.Errorf("read the key of sessions: %w", err)
	}
	if len(key) == 0 {
		return nil, &rollout.Error{Reason: rollout.ReasonInvalid, Field: "api-session-key-file", Message: c.apiSessionKeyFile + " is empty", Hint: "write 32 random bytes or more into it"}
	}
	return key, nil
}

// secrets of the webhook, from the environment and the file.
func (c config) secrets() ([][]byte, error) {
	all := []byte(process.Getenv(c.env, "SLUICE_WEBHOOK_SECRET"))
	if c.secretFile != "" {
		b, err := readSecret(c.secretFile)
		if err != nil {
			return nil, fmt.Errorf("read the webhook's secrets: %w", err)
		}
		all = append(append(all, '\n'), b...)
	}
	var out [][]byte
	for line := range bytes.Lines(all) {
		if line = bytes.TrimSpace(line); len(line) > 0 {
			out = append(out, line)
		}
	}
	return out, nil
}

func (c config) client(log *slog.Logger) (*github.Client, error) {
	o := github.ClientOptions{BaseURL: c.apiURL, Token: strings.TrimSpace(process.Getenv(c.env, "SLUICE_GITHUB_TOKEN")), AppID: c.appID, Pause: c.pause, Logger: log}
	if c.tokenFile != "" {
		b, err := readSecret(c.tokenFile)
		if err != nil {
			return nil, fmt.Errorf("read the token for GitHub: %w", err)
		}
		o.Token = string(bytes.TrimSpace(b))
	}
	if c.appKeyFile != "" {
		b, err := readSecret(c.appKeyFile)
		if err != nil {
			return nil, fmt.Errorf("read the App's private key: %w", err)
		}
		o.AppKey = b
	}
	client, err := github.NewClient(o)
	if err != nil {
		return nil, &rollout.Error{Reason: rollout.ReasonInvalid, Field: "github", Message: err.Error(),
			Hint: "set SLUICE_GITHUB_TOKEN, name a file with --github-token-file, or give --github-app-id and --github-app-key-file"}
	}
	return client, nil
}

// maxSecret bounds what is read from a file of secrets, in bytes.
const maxSecret = 1 << 20

func readSecret(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // only read
	b, err := io.ReadAll(io.LimitReader(f, maxSecret+1))
	if err == nil && len(b) > maxSecret {
		err = fmt.Errorf("%s has more than %d bytes", path, maxSecret)
	}
	return b, err
}
