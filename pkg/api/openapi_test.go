package api_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"math"
	"os"
	"strings"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
	"sigs.k8s.io/yaml"

	"github.com/sluice-dev/sluice/pkg/api"
)

var update = flag.Bool("update", false, "write the OpenAPI document")

const definitions = "../../charts/sluice/files/crds/sluice.dev_modelendpoints.yaml"

type object = map[string]any

// at is what stands under keys, one inside the other.
func at(t *testing.T, o object, keys ...string) object {
	t.Helper()
	for _, k := range keys {
		next, ok := o[k].(object)
		if !ok {
			t.Fatalf("there is no %s in %v", k, keys)
		}
		o = next
	}
	return o
}

func readYAML(t *testing.T, path string) object {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var o object
	if err := yaml.Unmarshal(b, &o); err != nil {
		t.Fatal(err)
	}
	return o
}

// plain drops what only Kubernetes' API server reads, and bounds that are those of the number's type.
func plain(node any) {
	switch n := node.(type) {
	case []any:
		for _, v := range n {
			plain(v)
		}
	case object:
		for k, v := range n {
			if f, ok := v.(float64); strings.HasPrefix(k, "x-") || ok && math.Abs(f) >= 1<<62 && (k == "minimum" || k == "maximum") {
				delete(n, k)
				continue
			}
			plain(v)
		}
	}
}

// TestOpenAPI keeps the document true to openapi.yaml and to the definition of the endpoint.
func TestOpenAPI(t *testing.T) {
	doc := readYAML(t, "openapi.yaml")
	crd := readYAML(t, definitions)
	versions := at(t, crd, "spec")["versions"].([]any)
	endpoint := at(t, versions[0].(object), "schema", "openAPIV3Schema")
	plain(endpoint)
	schemas := at(t, doc, "components", "schemas")
	ref := func(name string) object { return object{"$ref": "#/components/schemas/" + name} }
	spec := at(t, endpoint, "properties", "spec")
	version := at(t, spec, "properties", "versions", "items")
	fields := at(t, version, "properties")
	at(t, fields, "environmentVariables")["additionalProperties"] = ref("EnvironmentVariable")
	at(t, fields, "template")["additionalProperties"] = true
	settings, joins := object{}, object{}
	for name, schema := range fields {
		switch name {
		case "type", "isDefault", "createdAt", "retiredAt", "standbySince", "standbyReplicas", "trafficPercentile", "plannedPercentile": // the endpoint's to say
		case "name", "image", "source", "description", "tags", "properties":
			joins[name] = schema
		default:
			joins[name], settings[name] = schema, schema
		}
	}
	schemas["NewVersion"] = object{"type": "object", "additionalProperties": false, "required": []any{"name", "image"}, "properties": joins}
	schemas["Settings"] = object{"type": "object", "additionalProperties": false, "properties": settings}
	schemas["Version"] = version
	schemas["Strategy"] = at(t, spec, "properties")["strategy"]
	schemas["Spec"] = spec
	schemas["Status"] = at(t, endpoint, "properties", "status")
	at(t, spec, "properties", "versions")["items"] = ref("Version")
	at(t, spec, "properties")["strategy"] = ref("Strategy")
	for _, name := range []string{"Version", "Spec", "Status", "Strategy"} {
		schemas[name].(object)["additionalProperties"] = false
	}
	schemas["Endpoint"] = object{
		"type": "object", "additionalProperties": false, "required": []any{"apiVersion", "kind", "metadata", "spec"},
		"properties": object{"apiVersion": object{"type": "string"}, "kind": object{"type": "string"}, "metadata": ref("Metadata"), "spec": ref("Spec"), "status": ref("Status")},
	}
	made, err := json.MarshalIndent(doc, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	made = append(made, '\n')
	if *update {
		if err := os.WriteFile("openapi.json", made, 0o644); err != nil {
			t.Fatal(err)
		}
	} else if !bytes.Equal(made, api.OpenAPI()) {
		t.Error("openapi.json is not what openapi.yaml and the definitions say: run `make generate`")
	}
	loaded, err := openapi3.NewLoader().LoadFromData(made)
	if err != nil {
		t.Fatal(err)
	}
	if err := loaded.Validate(t.Context()); err != nil {
		t.Error(err)
	}
}
