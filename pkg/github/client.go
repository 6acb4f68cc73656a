package github

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/bradleyfalzon/ghinstallation/v2"
	"github.com/gofri/go-github-ratelimit/v2/github_ratelimit/github_secondary_ratelimit"
	"github.com/google/go-github/v62/github"

	"github.com/sluice-dev/sluice/pkg/access"
	"github.com/sluice-dev/sluice/pkg/chatops"
)

// DefaultBaseURL is the API of github.com.
const DefaultBaseURL = "https://api.github.com/"

// WritePause is what GitHub asks for between two writing requests.
const WritePause = time.Second

// Bounds of the client.
const (
	attempts        = 3
	firstWait       = 200 * time.Millisecond
	readTimeout     = 10 * time.Second // one question, all attempts
	writeTimeout    = 80 * time.Second // one answer, with a rate limit waited out
	longestSleep    = 65 * time.Second // of the secondary rate limit; GitHub usually says 60 s
	maxInstallation = 256
)

// ClientOptions say how to reach the API, and as whom: with a token, or as a
// GitHub App.
type ClientOptions struct {
	// BaseURL is DefaultBaseURL unless set; https://HOST/api/v3/ for GitHub Enterprise Server. Plain http is
	// for the loopback interface only, because tokens go over it.
	BaseURL string
	// Token is a personal access token or the like.
	Token string
	// AppID and AppKey, the App's private key in PEM, go together.
	AppID  int64
	AppKey []byte
	// Pause between two writing requests, which go one at a time; none unless set. GitHub asks for WritePause.
	Pause time.Duration
	// Transport below authentication and rate limits; one with timeouts unless set.
	Transport http.RoundTripper
	Logger    *slog.Logger
}

// Client is the part of GitHub's API that commands use. Safe for concurrent use.
type Client struct {
	base   *url.URL
	o      ClientOptions
	log    *slog.Logger
	token  *github.Client // with a token
	mu     sync.Mutex
	byInst map[int64]*github.Client // as an App
	app    *github.Client           // as the App itself, outside its installations
	pacer  *pacer
	me     self
	repos  map[int64]known
	listed time.Time // when the App's repositories were listed last
}

var (
	_ chatops.GitHub    = (*Client)(nil)
	_ chatops.Directory = (*Client)(nil)
)

// NewClient fails when it is not plain where GitHub is or as whom to speak.
func NewClient(o ClientOptions) (*Client, error) {
	if o.BaseURL == "" {
		o.BaseURL = DefaultBaseURL
	}
	base, err := url.Parse(strings.TrimSuffix(o.BaseURL, "/") + "/")
	if err != nil || base.Host == "" || base.User != nil || base.RawQuery != "" || base.Scheme != "https" && base.Scheme != "http" {
		return nil, fmt.Errorf("the address of GitHub's API must be an https URL such as %s", DefaultBaseURL)
	}
	if base.Scheme == "http" && !access.Loopback(base.Hostname()) {
		return nil, fmt.Errorf("the address of GitHub's API must begin with https: tokens are sent to %s", base.Host)
	}
	app := o.AppID != 0 || len(o.AppKey) > 0
	switch {
	case app && o.Token != "":
		return nil, errors.New("give a token for GitHub or an App's id and key, not both")
	case app && (o.AppID <= 0 || len(o.AppKey) == 0):
		return nil, errors.New("a GitHub App needs both its id and its private key")
	case !app && o.Token == "":
		return nil, errors.New("GitHub's API needs a token, or an App's id and private key")
	}
	if o.Transport == nil {
		o.Transport = &http.Transport{
			Proxy:                 http.ProxyFromEnvironment,
			DialContext:           (&net.Dialer{Timeout: 5 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
			ForceAttemptHTTP2:     true,
			MaxIdleConnsPerHost:   16,
			MaxConnsPerHost:       64, // GitHub bears 100 at once
			IdleConnTimeout:       time.Minute,
			TLSHandshakeTimeout:   5 * time.Second,
			ResponseHeaderTimeout: readTimeout,
		}
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	c := &Client{base: base, o: o, log: o.Logger, byInst: map[int64]*github.Client{}, pacer: newPacer(o.Pause), repos: map[int64]known{}}
	if app {
		// The key is looked at now rather than at the first command.
		tr, err := ghinstallation.NewAppsTransport(o.Transport, o.AppID, o.AppKey)
		if err != nil {
			return nil, errors.New("the GitHub App's private key cannot be read: it must be PEM as GitHub gives it")
		}
		c.app = c.client(tr)
	} else {
		c.token = c.client(bearer{token: o.Token, next: o.Transport})
	}
	return c, nil
}

// client stacks, outermost first: secondary rate limits, the rewinding of bodies, the pause between writes, authentication.
func (c *Client) client(authenticated http.RoundTripper) *github.Client {
	limited := github_secondary_ratelimit.New(rewinder{paced{c.pacer, authenticated}},
		github_secondary_ratelimit.WithSingleSleepLimit(longestSleep, nil),
		github_secondary_ratelimit.WithLimitDetectedCallback(func(cc *github_secondary_ratelimit.CallbackContext) {
			c.log.Warn("GitHub limits the rate: waiting", "until", cc.ResetTime)
		}))
	gh := github.NewClient(&http.Client{
		Transport: limited,
		// Authentication is added below, so to whatever is redirected to: that must be GitHub again.
		CheckRedirect: func(r *http.Request, via []*http.Request) error {
			if r.URL.Scheme != c.base.Scheme || r.URL.Host != c.base.Host || len(via) > 3 {
				return http.ErrUseLastResponse
			}
			return nil
		},
	})
	gh.BaseURL, gh.UploadURL = c.base, c.base
	gh.UserAgent = "sluice"
	return gh
}

// For is the API client that acts in an installation of the App; with a token there is only one.
func (c *Client) For(installation int64) (*github.Client, error) {
	if c.token != nil {
		return c.token, nil
	}
	if installation <= 0 {
		return nil, errors.New("the delivery names no installation of the App: let the App send it, not a webhook of the repository")
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if gh := c.byInst[installation]; gh != nil {
		return gh, nil
	}
	if len(c.byInst) >= maxInstallation {
		clear(c.byInst) // they are made anew, for the price of a token each
	}
	// Not from a shared AppsTransport: installations write to it.
	tr, err := ghinstallation.New(c.o.Transport, c.o.AppID, installation, c.o.AppKey)
	if err != nil {
		return nil, fmt.Errorf("make transport of installation %d: %w", installation, err)
	}
	tr.BaseURL = strings.TrimSuffix(c.base.String(), "/")
	tr.InstallationTokenOptions = &github.InstallationTokenOptions{} // without, it sends null where GitHub documents an object
	gh := c.client(tr)
	c.byInst[installation] = gh
	return gh, nil
}

// bearer authenticates with a token.
type bearer struct {
	token string
	next  http.RoundTripper
}

func (b bearer) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set("Authorization", "Bearer "+b.token)
	return b.next.RoundTrip(r)
}

// rewinder gives each try of a request its body from the beginning: the rate
// limiter sends the same request again after its wait, and go-github-ratelimit
// v2.0.2 leaves the body where the first try ended.
type rewinder struct{ next http.RoundTripper }

func (w rewinder) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.GetBody == nil {
		return w.next.RoundTrip(r)
	}
	body, err := r.GetBody()
	if err != nil {
		return nil, fmt.Errorf("rewind body: %w", err)
	}
	// The original is ours to close (http.RoundTripper); what stands in for it is closed below.
	if r.Body != nil {
		_ = r.Body.Close()
	}
	r = r.Clone(r.Context())
	r.Body = body
	return w.next.RoundTrip(r)
}

// apiError is a failed call.
type apiError struct {
	op        string
	err       error
	temporary bool
}

func (e *apiError) Error() string { return e.op + ": " + e.err.Error() }
func (e *apiError) Unwrap() error { return e.err }

// Temporary says whether the same call may work later.
func (e *apiError) Temporary() bool { return e.temporary }

// call tries f again on what passes by itself: a 404 of what is quite new, and,
// for questions, anything that happened on the way or inside GitHub.
func (c *Client) call(ctx context.Context, op string, question bool, f func(ctx context.Context) (*github.Response, error)) error {
	timeout := writeTimeout
	if question {
		timeout = readTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	wait := firstWait
	for try := 1; ; try++ {
		resp, err := f(ctx)
		if err == nil {
			return nil
		}
		code := 0
		if resp != nil && resp.Response != nil {
			code = resp.StatusCode
		}
		var limit *github.RateLimitError
		var abuse *github.AbuseRateLimitError
		limited := code == http.StatusTooManyRequests || errors.As(err, &limit) || errors.As(err, &abuse)
		broken := code == 0 || code >= 500
		again := code == http.StatusNotFound || broken && question && !limited
		if again && try < attempts {
			select {
			case <-time.After(wait/2 + rand.N(wait)):
				wait *= 4
				continue
			case <-ctx.Done():
			}
		}
		return &apiError{op: op, err: err, temporary: broken || limited}
	}
}

// Permission asks what the account may do in the repository.
func (c *Client) Permission(ctx context.Context, repo chatops.Repository, login string, id int64) (chatops.Permission, error) {
	gh, err := c.For(repo.Installation)
	if err != nil {
		return "", err
	}
	var level *github.RepositoryPermissionLevel
	err = c.call(ctx, "ask for the permission of "+login, true, func(ctx context.Context) (resp *github.Response, err error) {
		level, resp, err = gh.Repositories.GetPermissionLevel(ctx, repo.Owner, repo.Name, login)
		return resp, err
	})
	if err != nil {
		return "", err
	}
	if got := level.GetUser().GetID(); got != id {
		return "", fmt.Errorf("ask for the permission of %s: the login belongs to account %d now, the comment to %d", login, got, id)
	}
	return permissionOf(level.GetPermission(), level.GetUser().GetRoleName(), level.GetUser().GetPermissions()), nil
}

// permissionOf combines the base role with the finer one: base is admin, write,
// read or none, and says write for maintain, read for triage. A custom role could
// be called anything: what it is built on is the highest of what it can. Neither
// makes more of base than that. Only where base is missing does the finer one stand alone.
func permissionOf(base, role string, can map[string]bool) chatops.Permission {
	b, r := chatops.Permission(base), chatops.Permission(role)
	switch r {
	case chatops.PermissionAdmin, chatops.PermissionMaintain, chatops.PermissionWrite, chatops.PermissionTriage, chatops.PermissionRead, chatops.PermissionNone, "":
	default:
		switch {
		case b == chatops.PermissionWrite && can["push"] && can["maintain"]:
			return chatops.PermissionMaintain
		case b == chatops.PermissionRead && can["pull"] && can["triage"]:
			return chatops.PermissionTriage
		}
	}
	switch {
	case base == "" && role == "":
		return chatops.PermissionNone
	case base == "":
		return r
	case b == chatops.PermissionWrite && r == chatops.PermissionMaintain, b == chatops.PermissionRead && r == chatops.PermissionTriage:
		return r
	default:
		return b
	}
}

// PullRequest reads it as it is now.
func (c *Client) PullRequest(ctx context.Context, repo chatops.Repository, number int) (chatops.PullRequest, error) {
	gh, err := c.For(repo.Installation)
	if err != nil {
		return chatops.PullRequest{}, err
	}
	var pr *github.PullRequest
	err = c.call(ctx, fmt.Sprintf("read pull request %d", number), true, func(ctx context.Context) (resp *github.Response, err error) {
		pr, resp, err = gh.PullRequests.Get(ctx, repo.Owner, repo.Name, number)
		return resp, err
	})
	if err != nil {
		return chatops.PullRequest{}, err
	}
	return chatops.PullRequest{
		RepositoryID:     pr.GetBase().GetRepo().GetID(),
		HeadRepositoryID: pr.GetHead().GetRepo().GetID(),
		Head:             pr.GetHead().GetSHA(),
		Base:             pr.GetBase().GetRef(),
		Default:          pr.GetBase().GetRepo().GetDefaultBranch(),
		Closed:           pr.GetState() == "closed",
		Public:           !pr.GetBase().GetRepo().GetPrivate(),
		Merged:           pr.GetMerged(),
	}, nil
}

// TeamMember asks for the membership by REST's "teams/{slug}/memberships", which counts those of child teams. It says
// the same of a team that is not there, or not for the App to see, as of one without the user.
func (c *Client) TeamMember(ctx context.Context, repo chatops.Repository, team, login string) (bool, error) {
	gh, err := c.For(repo.Installation)
	if err != nil {
		return false, err
	}
	member := false
	err = c.call(ctx, fmt.Sprintf("ask whether %s is in the team %s", login, team), true, func(ctx context.Context) (*github.Response, error) {
		m, resp, err := gh.Teams.GetTeamMembershipBySlug(ctx, repo.Owner, team, login)
		if err != nil && resp != nil && resp.Response != nil && resp.StatusCode == http.StatusNotFound {
			return resp, nil
		}
		member = err == nil && m.GetState() == "active"
		return resp, err
	})
	return member, err
}

// File reads a file of a branch. It is in the answer whole: GitHub leaves out what has more than 1 MiB.
func (c *Client) File(ctx context.Context, repo chatops.Repository, branch, path string) ([]byte, error) {
	gh, err := c.For(repo.Installation)
	if err != nil {
		return nil, err
	}
	op := fmt.Sprintf("read %s of the branch %s", path, branch)
	var file *github.RepositoryContent
	missing := false
	err = c.call(ctx, op, true, func(ctx context.Context) (*github.Response, error) {
		f, _, resp, err := gh.Repositories.GetContents(ctx, repo.Owner, repo.Name, path, &github.RepositoryContentGetOptions{Ref: "refs/heads/" + branch})
		if err != nil && resp != nil && resp.Response != nil && resp.StatusCode == http.StatusNotFound {
			missing = true
			return resp, nil
		}
		file = f
		return resp, err
	})
	switch {
	case err != nil:
		return nil, err
	case missing:
		// Of what may not be read GitHub may say the same. The branch tells the two apart.
		return nil, c.call(ctx, "read the branch "+branch, true, func(ctx context.Context) (*github.Response, error) {
			_, _, resp, err := gh.Repositories.GetContents(ctx, repo.Owner, repo.Name, "", &github.RepositoryContentGetOptions{Ref: "refs/heads/" + branch})
			return resp, err
		})
	case file.GetType() != "file" || file.GetSize() > chatops.MaxPermissions:
		return nil, fmt.Errorf("%s: it is no file of at most %d bytes", op, chatops.MaxPermissions)
	}
	text, err := file.GetContent()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", op, err)
	}
	return append([]byte{}, text...), nil // not nil, also if empty
}

// Reply adds a comment.
func (c *Client) Reply(ctx context.Context, repo chatops.Repository, number int, body string) error {
	gh, err := c.For(repo.Installation)
	if err != nil {
		return err
	}
	return c.call(ctx, fmt.Sprintf("comment on pull request %d", number), false, func(ctx context.Context) (*github.Response, error) {
		_, resp, err := gh.Issues.CreateComment(ctx, repo.Owner, repo.Name, number, &github.IssueComment{Body: &body})
		return resp, err
	})
}

// Replied says whether a comment of ours ends with the marker.
func (c *Client) Replied(ctx context.Context, repo chatops.Repository, number int, marker string, since time.Time) (bool, error) {
	me, err := c.whoami(ctx)
	if err != nil {
		return false, err
	}
	gh, err := c.For(repo.Installation)
	if err != nil {
		return false, err
	}
	for x, err := range items(ctx, c, fmt.Sprintf("list comments of pull request %d", number), func(ctx context.Context, o github.ListOptions) ([]*github.IssueComment, *github.Response, error) {
		return gh.Issues.ListComments(ctx, repo.Owner, repo.Name, number, &github.IssueListCommentsOptions{Since: &since, ListOptions: o})
	}) {
		if err != nil {
			return false, err
		}
		if me.is(x.GetUser()) && strings.HasSuffix(strings.TrimRight(strings.ReplaceAll(x.GetBody(), "\r\n", "\n"), "\n"), "\n"+marker) {
			return true, nil
		}
	}
	return false, nil
}

// React adds a reaction to a comment.
func (c *Client) React(ctx context.Context, repo chatops.Repository, comment int64, r chatops.Reaction) error {
	gh, err := c.For(repo.Installation)
	if err != nil {
		return err
	}
	return c.call(ctx, fmt.Sprintf("react to comment %d", comment), false, func(ctx context.Context) (*github.Response, error) {
		_, resp, err := gh.Reactions.CreateIssueCommentReaction(ctx, repo.Owner, repo.Name, comment, string(r))
		return resp, err
	})
}
