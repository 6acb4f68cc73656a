package githubtest

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers"
	"github.com/getkin/kin-openapi/routers/gorillamux"
)

// SchemasVariable names the directory that test/tools/github-schemas.sh fills.
const SchemasVariable = "SLUICE_GITHUB_SCHEMAS"

// Schema reads a file of what GitHub publishes. Without SchemasVariable the test
// is skipped; with it, a missing or broken file fails the test.
func Schema(t testing.TB, name string, into any) {
	t.Helper()
	dir := os.Getenv(SchemasVariable)
	if dir == "" {
		t.Skipf("GitHub's published schemas are not here: run test/tools/github-schemas.sh DIR and set %s=DIR, or run `make test`", SchemasVariable)
	}
	b, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		t.Fatalf("%s is set, but: %v", SchemasVariable, err)
	}
	if err := json.Unmarshal(b, into); err != nil {
		t.Fatalf("%s is set, but %s cannot be read: %v", SchemasVariable, name, err)
	}
}

// contract is GitHub's OpenAPI description; nil where it is not at hand.
type contract struct{ router routers.Router }

// loaded once per process: each test has a server.
var loadContract = sync.OnceValues(func() (*contract, error) {
	dir := os.Getenv(SchemasVariable)
	if dir == "" {
		return nil, nil
	}
	doc, err := openapi3.NewLoader().LoadFromFile(filepath.Join(dir, "openapi.json"))
	if err != nil {
		return nil, err
	}
	doc.Servers = nil
	// GitHub says of this parameter that it has several segments, by an extension that the router does not know.
	const contents = "/repos/{owner}/{repo}/contents/{path"
	if item := doc.Paths.Value(contents + "}"); item != nil {
		doc.Paths.Delete(contents + "}")
		doc.Paths.Set(contents+":.*}", item)
	}
	router, err := gorillamux.NewRouter(doc)
	if err != nil {
		return nil, err
	}
	return &contract{router}, nil
})

func openContract(t testing.TB) *contract {
	t.Helper()
	c, err := loadContract()
	if err != nil {
		t.Fatalf("%s is set, but GitHub's OpenAPI description cannot be used: %v", SchemasVariable, err)
	}
	return c
}

func (c *contract) input(r *http.Request, body []byte) (*openapi3filter.RequestValidationInput, error) {
	copied := r.Clone(r.Context())
	copied.Body = io.NopCloser(bytes.NewReader(body))
	route, params, err := c.router.FindRoute(copied)
	if err != nil {
		return nil, err
	}
	return &openapi3filter.RequestValidationInput{
		Request: copied, PathParams: params, Route: route,
		Options: &openapi3filter.Options{AuthenticationFunc: openapi3filter.NoopAuthenticationFunc, IncludeResponseStatus: true},
	}, nil
}

// undescribed says whether GitHub has a path that its description does not: repositories by their ids, and the root
// of a repository's files, of which it says "if you omit the path".
func undescribed(r *http.Request) bool {
	return strings.HasPrefix(r.URL.Path, "/repositories/") || strings.HasSuffix(r.URL.Path, "/contents/")
}

// request fails the test if GitHub would not understand it.
func (c *contract) request(t testing.TB, r *http.Request, body []byte) {
	if c == nil || undescribed(r) {
		return
	}
	in, err := c.input(r, body)
	if err == nil {
		err = openapi3filter.ValidateRequest(r.Context(), in)
	}
	if err != nil && !errors.Is(err, r.Context().Err()) {
		t.Errorf("%s %s is not what GitHub's API takes: %v", r.Method, r.URL.Path, err)
	}
}

// offContract marks an answer that GitHub gives although its description does not have it.
const offContract = "X-Off-Contract"

// response fails the test if GitHub would not answer so.
func (c *contract) response(t testing.TB, r *http.Request, rec *httptest.ResponseRecorder) {
	if c == nil || rec.Header().Get(offContract) != "" || undescribed(r) {
		return
	}
	in, err := c.input(r, nil)
	if err == nil {
		err = openapi3filter.ValidateResponse(r.Context(), &openapi3filter.ResponseValidationInput{
			RequestValidationInput: in, Status: rec.Code, Header: rec.Header(),
			Body: io.NopCloser(bytes.NewReader(rec.Body.Bytes())), Options: in.Options,
		})
	}
	if err != nil {
		t.Errorf("the fake's answer %d to %s %s is not what GitHub's API gives: %v", rec.Code, r.Method, r.URL.Path, err)
	}
}
