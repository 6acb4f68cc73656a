package environment

import (
	"regexp"
	"strings"

	"github.com/sluice-dev/sluice/pkg/project"
)

// anyAddress is one anywhere in a text: scheme, authority, path and query (RFC 3986), up to what no address has unescaped.
var anyAddress = regexp.MustCompile("([A-Za-z][-+.A-Za-z0-9]*)://([^\\s/?#'\"<>`\\\\]*)([^\\s?#'\"<>`\\\\]*)(?:\\?([^\\s#'\"<>`\\\\]*))?")

// checkSecrets refuses a text with an address in it that has credentials, or a query that is likely to let its reader in:
// they would be in the image for all to read. A variable in their place is none, since the build has no value for it that
// Sluice knows.
func checkSecrets(at place, text string) error {
	for _, m := range anyAddress.FindAllStringSubmatch(text, -1) {
		scheme, authority, query := strings.ToLower(m[1]), m[2], m[4]
		if i := strings.LastIndexByte(authority, '@'); i >= 0 {
			name, password, has := strings.Cut(authority[:i], ":")
			secret := password
			if !has && strings.Contains(scheme, "http") {
				secret = name // a token
			}
			if secret != "" && !strings.HasPrefix(secret, "$") {
				return at.credentials(authority[i+1:])
			}
			authority = authority[i+1:]
		}
		if name := project.SecretParameter(query); name != "" {
			return at.invalid("use an address that needs none from where images are built, or keep the file in the project; it would be in the image for all to read",
				"the address of %s has a secret in its query, %s", shown(authority), shown(name))
		}
	}
	return nil
}

// credentials refuses those in an address of a host.
func (p place) credentials(host string) error {
	return p.invalid("use an index or mirror that needs none from where images are built; they would be in a layer of the image",
		"the address of %s has credentials in it", shown(host))
}
