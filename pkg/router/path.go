package router

import (
	"strings"

	"github.com/sluice-dev/sluice/rollout"
)

// The prefixes of an endpoint's address.
const (
	shortPrefix = "/api/v1/service/"
	longPrefix  = "/api/v1/endpoint/"
	scorePath   = "/score"
)

// target is where a request wants to go.
type target struct {
	key rollout.Key
	// path below the endpoint's address, as the client wrote it, beginning with a slash; query
	// with its question mark, or empty.
	path, query string
}

// parseTarget reads a request target. It works on the raw text, so that the path goes
// to the replica as it came. Dot segments are refused: what resolves
// them along the way would see another path than the one that was checked here.
func parseTarget(uri, namespace string) (target, bool) {
	if uri == "" {
		return target{}, false
	}
	if uri[0] != '/' { // absolute form, as proxies get it
		_, rest, ok := strings.Cut(uri, "://")
		slash := strings.IndexByte(rest, '/')
		if !ok || slash < 0 {
			return target{}, false
		}
		uri = rest[slash:]
	}
	t := target{path: uri}
	if i := strings.IndexByte(uri, '?'); i >= 0 {
		t.path, t.query = uri[:i], uri[i:]
	}
	rest, ok := strings.CutPrefix(t.path, shortPrefix)
	if ok {
		t.key.Namespace = namespace
	} else {
		if rest, ok = strings.CutPrefix(t.path, longPrefix); !ok {
			return target{}, false
		}
		if t.key.Namespace, rest, ok = strings.Cut(rest, "/"); !ok {
			return target{}, false
		}
	}
	slash := strings.IndexByte(rest, '/')
	if slash <= 0 {
		return target{}, false
	}
	t.key.Name, t.path = rest[:slash], rest[slash:]
	return t, !dotted(t.path)
}

// dotted says whether a path has a segment "." or "..", with dots encoded or not, or
// a backslash, which some servers take for a slash.
func dotted(path string) bool {
	if path == scorePath || !strings.ContainsAny(path, ".%\\") {
		return false
	}
	if strings.ContainsRune(path, '\\') {
		return true
	}
	for segment := range strings.SplitSeq(path, "/") {
		segment = strings.ReplaceAll(strings.ToLower(segment), "%2e", ".")
		// A path parameter hides dots from some servers.
		segment, _, _ = strings.Cut(segment, ";")
		if segment == "." || segment == ".." {
			return true
		}
		for part := range strings.SplitSeq(strings.ReplaceAll(segment, "%5c", "%2f"), "%2f") {
			if part == "." || part == ".." {
				return true
			}
		}
	}
	return false
}

// allowed methods of the scoring path.
const scoreMethods = "GET, POST"

// allows says whether the router passes on that method.
func (t *target) allows(method string) (allow string, ok bool) {
	switch method {
	case "GET", "POST":
		return "", true
	case "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS":
		if t.path != scorePath {
			return "", true
		}
	}
	if t.path == scorePath {
		return scoreMethods, false
	}
	return "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS", false
}
