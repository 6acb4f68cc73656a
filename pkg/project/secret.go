package project

import (
	"path"
	"slices"
	"strings"
	"unicode"
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

// secretEnds are how names of parameters end that are likely to be secrets, secretWords whole words of such names.
var (
	secretEnds  = []string{"token", "signature", "password", "passwd", "secret", "credential", "credentials", "apikey", "accesskey", "accesskeyid", "keyid"}
	secretWords = []string{"key", "sig", "sas", "pwd", "pass", "auth", "jwt"}
)

// SecretParameter is the name of the first parameter in an address's query whose value is likely to be a secret, such as a
// signature; empty if there is none. A value that is a variable ($NAME) is none.
func SecretParameter(query string) string {
	for pair := range strings.FieldsFuncSeq(query, func(r rune) bool { return r == '&' || r == ';' }) {
		name, value, _ := strings.Cut(pair, "=")
		if value == "" || strings.HasPrefix(value, "$") {
			continue
		}
		lower := strings.ToLower(name)
		for word := range strings.FieldsFuncSeq(lower, func(r rune) bool { return !unicode.IsLetter(r) && !unicode.IsDigit(r) }) {
			if slices.Contains(secretWords, word) || slices.ContainsFunc(secretEnds, func(end string) bool { return strings.HasSuffix(word, end) }) {
				return name
			}
		}
	}
	return ""
}

// harmlessParameters say which file an address means, and let nobody in.
var harmlessParameters = []string{"alt", "dl", "download", "export", "generation", "id", "raw", "ref", "rev", "revision", "version", "versionId"}

// harmlessQuery tells whether all of a query may be read by everybody who has an image.
func harmlessQuery(query string) bool {
	for pair := range strings.FieldsFuncSeq(query, func(r rune) bool { return r == '&' || r == ';' }) {
		if name, _, _ := strings.Cut(pair, "="); !slices.Contains(harmlessParameters, name) {
			return false
		}
	}
	return true
}

// ModelQueryVariable is the environment variable of whoever deploys that has the query of a model's address, such as a
// signature: manifests are part of images.
func ModelQueryVariable(model string) string {
	return "SLUICE_MODEL_QUERY_" + strings.Map(func(r rune) rune {
		if r < unicode.MaxASCII && (unicode.IsLetter(r) || unicode.IsDigit(r)) {
			return unicode.ToUpper(r)
		}
		return '_'
	}, model)
}
