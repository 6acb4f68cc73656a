package build

import (
	"context"
	"fmt"

	"github.com/docker/cli/cli/config/types"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/session/auth/authprovider"
)

// newCredentials answers a builder that is asked for credentials by a registry. Where the registry takes tokens they
// are fetched here, and the builder never gets more than those.
func newCredentials(keys authn.Keychain) session.Attachable {
	return authprovider.NewDockerAuthProvider(authprovider.DockerAuthProviderConfig{
		AuthConfigProvider: func(_ context.Context, host string, _ []string, _ authprovider.ExpireCachedAuthCheck) (types.AuthConfig, error) {
			return resolve(keys, host)
		},
	})
}

// resolve finds what a keychain has for a registry's host.
func resolve(keys authn.Keychain, host string) (types.AuthConfig, error) {
	if host == authprovider.DockerHubRegistryHost {
		host = name.DefaultRegistry
	}
	reg, err := name.NewRegistry(host)
	if err != nil {
		return types.AuthConfig{}, fmt.Errorf("read registry's name: %w", err)
	}
	found, err := keys.Resolve(reg)
	if err != nil {
		return types.AuthConfig{}, fmt.Errorf("find credentials for %s: %w", host, err)
	}
	has, err := found.Authorization()
	if err != nil {
		return types.AuthConfig{}, fmt.Errorf("find credentials for %s: %w", host, err)
	}
	return types.AuthConfig{
		Username: has.Username, Password: has.Password, Auth: has.Auth,
		IdentityToken: has.IdentityToken, RegistryToken: has.RegistryToken, ServerAddress: host,
	}, nil
}
