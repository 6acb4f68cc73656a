package rollout

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"
)

// Every number that encoding/json leaves out at zero has a rule, unless a zero means zero (or, of a
// port, one that is found).
func TestZeroRulesAreComplete(t *testing.T) {
	meansZero := map[string]bool{"resources.gpu": true, "server.port": true, "minDuration": true}
	found := map[string]bool{}
	var walk func(field string, typ reflect.Type)
	walk = func(field string, typ reflect.Type) {
		for f := range typ.Fields() {
			name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
			if field != "" {
				name = field + "." + name
			}
			ft := f.Type
			if ft.Kind() == reflect.Pointer {
				ft = ft.Elem()
			}
			switch ft.Kind() {
			case reflect.Struct:
				walk(name, ft)
			case reflect.Int, reflect.Int64, reflect.Float64:
				if f.Type.Kind() == reflect.Pointer || !strings.Contains(options, "omitempty") || meansZero[name] {
					continue
				}
				found[name] = true
				if e := ExplicitZero("spec." + name); e == nil || e.Field != "spec."+name {
					t.Errorf("%s: %v, want a refusal", name, e)
				}
			}
		}
	}
	walk("", reflect.TypeFor[Settings]())
	walk("strategy", reflect.TypeFor[Strategy]())
	if n := len(zeroRules()); len(found) != n {
		t.Errorf("%d fields have %d rules: %v", len(found), n, found)
	}
}

func TestExplicitZeros(t *testing.T) {
	var written any
	if err := json.Unmarshal([]byte(`{"versions": [
		{"name": "a", "scoringTimeoutMs": 0, "replicas": 0, "concurrency": {"maxQueueWaitMS": 0, "maxConcurrentRequests": 2}},
		{"name": "b", "template": {"livenessProbe": {"periodSeconds": 0}}, "trafficPercentile": 0}],
		"strategy": {"alpha": 0.0, "steps": [{"percent": 1, "minRequests": 0}]}}`), &written); err != nil {
		t.Fatal(err)
	}
	var fields []string
	for _, e := range ExplicitZeros("spec", written) {
		fields = append(fields, e.Field)
	}
	want := []string{"spec.strategy.alpha", "spec.versions[a].concurrency.maxQueueWaitMS", "spec.versions[a].scoringTimeoutMs"}
	if !reflect.DeepEqual(fields, want) {
		t.Errorf("got %v, want %v", fields, want)
	}
}
