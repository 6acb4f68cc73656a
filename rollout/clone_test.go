package rollout_test

import (
	"reflect"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-dev/sluice/rollout"
)

// fill sets every field that can be set, so that a field which Clone forgets to copy deeply is seen.
func fill(v reflect.Value, depth int) {
	switch v.Kind() {
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem(), depth+1)
	case reflect.Struct:
		if v.Type() == reflect.TypeFor[time.Time]() {
			v.Set(reflect.ValueOf(time.Unix(1, 0)))
			return
		}
		for i := range v.NumField() {
			fill(v.Field(i), depth+1)
		}
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		for i := range 2 {
			fill(v.Index(i), depth+1)
		}
	case reflect.Map:
		v.Set(reflect.MakeMap(v.Type()))
		if v.Type().Elem().Kind() == reflect.Interface {
			v.SetMapIndex(reflect.ValueOf("k"), reflect.ValueOf([]any{map[string]any{"deep": 1.0}}))
			return
		}
		x := reflect.New(v.Type().Elem()).Elem()
		fill(x, depth+1)
		v.SetMapIndex(reflect.ValueOf("k"), x)
	case reflect.String:
		v.SetString("x")
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Float64:
		v.SetFloat(1)
	case reflect.Int, reflect.Int32, reflect.Int64:
		v.SetInt(1)
	}
}

// shared lists pointers, slices and maps that two values have in common.
func shared(t *testing.T, path string, a, b reflect.Value) {
	t.Helper()
	switch a.Kind() {
	case reflect.Pointer, reflect.Map, reflect.Slice:
		if a.Pointer() == b.Pointer() && a.Pointer() != 0 {
			t.Errorf("%s is shared", path)
		}
	}
	switch a.Kind() {
	case reflect.Interface:
		shared(t, path, a.Elem(), b.Elem())
	case reflect.Pointer:
		shared(t, path, a.Elem(), b.Elem())
	case reflect.Struct:
		if a.Type() == reflect.TypeFor[time.Time]() {
			return
		}
		for i := range a.NumField() {
			shared(t, path+"."+a.Type().Field(i).Name, a.Field(i), b.Field(i))
		}
	case reflect.Slice:
		for i := range a.Len() {
			shared(t, path+"[]", a.Index(i), b.Index(i))
		}
	case reflect.Map:
		for _, k := range a.MapKeys() {
			shared(t, path+"{}", a.MapIndex(k), b.MapIndex(k))
		}
	}
}

func TestCloneSharesNothing(t *testing.T) {
	var e rollout.Endpoint
	fill(reflect.ValueOf(&e).Elem(), 0)
	c := e.Clone()
	if diff := cmp.Diff(&e, c); diff != "" {
		t.Errorf("the copy differs: %s", diff)
	}
	shared(t, "endpoint", reflect.ValueOf(e), reflect.ValueOf(*c))
}
