package action

import (
	"net/url"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"

	"github.com/sluice-dev/sluice/pkg/process"
)

// githubRegistry is GitHub's, whose users log in with the workflow's token.
const githubRegistry = "ghcr.io"

// keychain has the credentials of registries: those that the inputs give, those of the runner's Docker
// configuration, and for GitHub's own registry the workflow's token.
type keychain struct {
	registry, user, password string
	// githubHost is the registry of the GitHub that the workflow runs on.
	githubHost, actor, token string
	rest                     authn.Keychain
}

// Resolve implements authn.Keychain.
func (k keychain) Resolve(r authn.Resource) (authn.Authenticator, error) {
	host := r.RegistryStr()
	if k.user != "" && host == k.registry {
		return &authn.Basic{Username: k.user, Password: k.password}, nil
	}
	auth, err := k.rest.Resolve(r)
	if (err != nil || auth == authn.Anonymous) && k.token != "" && host == k.githubHost {
		return &authn.Basic{Username: k.actor, Password: k.token}, nil
	}
	return auth, err
}

func (r *run) keychain() keychain {
	host := ""
	// As the library calls it: docker.io, and what names no host, is index.docker.io.
	if repo, err := name.NewRepository(strings.TrimSuffix(r.in.text["registry"], "/") + "/x"); err == nil {
		host = repo.RegistryStr()
	}
	k := keychain{
		registry: host, user: r.in.text["registry-username"], password: r.in.text["registry-password"],
		githubHost: githubRegistry, actor: r.from.actor, token: r.in.text["github-token"], rest: authn.DefaultKeychain,
	}
	// GitHub Enterprise Server's is containers.HOST.
	if u, err := url.Parse(process.Getenv(r.env, "GITHUB_SERVER_URL")); err == nil && u.Host != "" && u.Host != "github.com" {
		k.githubHost = "containers." + u.Host
	}
	return k
}
