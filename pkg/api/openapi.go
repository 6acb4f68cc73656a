package api

import (
	_ "embed"
	"net/http"
)

//go:embed openapi.json
var openAPI []byte

// OpenAPI is the document that describes the API (OpenAPI 3.0.3), made from openapi.yaml and the
// definitions of the endpoint by `make generate`.
func OpenAPI() []byte { return openAPI }

func document(w http.ResponseWriter, r *http.Request) {
	unread(w, r)
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	_, _ = w.Write(openAPI) // the client is gone: nothing to tell it
}
