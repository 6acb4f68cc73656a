package project

import (
	"path"
	"slices"
	"strings"
)

// secretNames are patterns of the names of files that are likely to be secrets, for
// path.Match on the name in lower case. A pattern with a slash is compared with the
// last components of the path.
var secretNames = []string{
	".env", ".env.*", "*.pem", "id_*", // the contract's own
	"*.key", "*.p12", "*.pfx", "*.ppk", "*.jks", "*.keystore",
	".netrc", "_netrc", ".pypirc", ".git-credentials", ".htpasswd",
	".dockercfg", ".docker/config.json", ".aws/credentials", ".kube/config", "kubeconfig",
}

// harmlessNames look like secrets, but are templates that are meant to be shared.
var harmlessNames = []string{".env.example", ".env.sample", ".env.template", ".env.dist"}

// looksSecret gives the pattern by which a path is likely to be a secret.
func looksSecret(p string) (pattern string, ok bool) {
	p = strings.ToLower(p)
	name := path.Base(p)
	if slices.Contains(harmlessNames, name) {
		return "", false
	}
	for _, pattern := range secretNames {
		what := name
		if strings.Contains(pattern, "/") {
			what = path.Base(path.Dir(p)) + "/" + name
		}
		if hit, err := path.Match(pattern, what); err == nil && hit {
			return pattern, true
		}
	}
	return "", false
}
