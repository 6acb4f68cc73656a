// Package apitest holds the API's handler to its OpenAPI document in tests.
package apitest

import (
	"bytes"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers"
	"github.com/getkin/kin-openapi/routers/gorillamux"

	"github.com/sluice-dev/sluice/pkg/api"
)

// document is read once per process: tests have many handlers.
var document = sync.OnceValues(func() (routers.Router, error) {
	doc, err := openapi3.NewLoader().LoadFromData(api.OpenAPI())
	if err != nil {
		return nil, err
	}
	return gorillamux.NewRouter(doc)
})

// Checked is h; the test fails where h takes what the document refuses, or answers otherwise than it says.
func Checked(t testing.TB, h http.Handler) http.Handler {
	t.Helper()
	router, err := document()
	if err != nil {
		t.Fatal(err)
	}
	options := &openapi3filter.Options{AuthenticationFunc: openapi3filter.NoopAuthenticationFunc, IncludeResponseStatus: true}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return // the client went away
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
		rec := httptest.NewRecorder()
		h.ServeHTTP(rec, r)
		copied := r.Clone(r.Context())
		copied.Body = io.NopCloser(bytes.NewReader(body))
		route, params, err := router.FindRoute(copied)
		if err != nil {
			if rec.Code < http.StatusBadRequest {
				t.Errorf("%s %s is not in the document (%v), and answered with %d", r.Method, r.URL, err, rec.Code)
			}
		} else {
			in := &openapi3filter.RequestValidationInput{Request: copied, PathParams: params, Route: route, Options: options}
			if err := openapi3filter.ValidateRequest(r.Context(), in); err != nil && rec.Code < http.StatusBadRequest && r.Context().Err() == nil {
				t.Errorf("%s %s is not what the document says, and answered with %d: %v\n%s", r.Method, r.URL, rec.Code, err, body)
			}
			if err := openapi3filter.ValidateResponse(r.Context(), &openapi3filter.ResponseValidationInput{
				RequestValidationInput: in, Status: rec.Code, Header: rec.Header(), Body: io.NopCloser(bytes.NewReader(rec.Body.Bytes())), Options: options,
			}); err != nil {
				t.Errorf("the answer %d to %s %s is not what the document says: %v\n%s", rec.Code, r.Method, r.URL, err, rec.Body)
			}
		}
		maps.Copy(w.Header(), rec.Header())
		w.WriteHeader(rec.Code)
		_, _ = w.Write(rec.Body.Bytes()) // the client is gone: nothing to tell it
	})
}
