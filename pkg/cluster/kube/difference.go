package kube

import (
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"
)

// patchStep is one step of a JSON patch (RFC 6902).
type patchStep struct {
	Op    string `json:"op"`
	Path  string `json:"path"`
	Value any    `json:"value,omitempty"`
}

// MarshalJSON keeps values that look empty; a removal has none.
func (o patchStep) MarshalJSON() ([]byte, error) {
	m := map[string]any{"op": o.Op, "path": o.Path}
	if o.Op != "remove" {
		m["value"] = o.Value
	}
	return json.Marshal(m)
}

// difference is the patch at path that makes next of have, and nothing more. Writing a whole spec would also
// respell what others wrote (a deadline of 60m becomes 1h), and with it take the field from its manager: the
// next server-side apply from Git would conflict. Both must be of the same Go type, as have was read, so that
// they differ only in what they mean.
func difference(path string, have, next any) ([]patchStep, error) {
	from, err := generic(have)
	if err != nil {
		return nil, err
	}
	to, err := generic(next)
	if err != nil {
		return nil, err
	}
	return differ(nil, path, from, to), nil
}

func generic(v any) (any, error) {
	raw, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("encode object: %w", err)
	}
	var out any
	d := json.NewDecoder(strings.NewReader(string(raw)))
	d.UseNumber()
	if err := d.Decode(&out); err != nil {
		return nil, fmt.Errorf("decode object: %w", err)
	}
	return out, nil
}

func differ(ops []patchStep, path string, from, to any) []patchStep {
	if reflect.DeepEqual(from, to) {
		return ops
	}
	switch to := to.(type) {
	case map[string]any:
		from, ok := from.(map[string]any)
		if !ok {
			break
		}
		for _, k := range slices.Sorted(maps.Keys(from)) {
			if _, stays := to[k]; !stays {
				ops = append(ops, patchStep{Op: "remove", Path: path + "/" + escape(k)})
			}
		}
		for _, k := range slices.Sorted(maps.Keys(to)) {
			p := path + "/" + escape(k)
			if was, ok := from[k]; ok {
				ops = differ(ops, p, was, to[k])
			} else {
				ops = append(ops, patchStep{Op: "add", Path: p, Value: to[k]})
			}
		}
		return ops
	case []any:
		from, ok := from.([]any)
		if !ok || !aligned(from, to) {
			break
		}
		for i := range to {
			ops = differ(ops, path+"/"+strconv.Itoa(i), from[i], to[i])
		}
		return ops
	}
	// "add" also replaces, and what Go writes as zero may be absent from what is stored.
	op := "add"
	if _, inList := strconv.Atoi(path[strings.LastIndex(path, "/")+1:]); inList == nil {
		op = "replace" // "add" would insert
	}
	return append(ops, patchStep{Op: op, Path: path, Value: to})
}

// aligned says whether elements stand for the same things place by place: as many, and under the same names.
func aligned(from, to []any) bool {
	name := func(v any) any {
		m, _ := v.(map[string]any)
		return m["name"]
	}
	return slices.EqualFunc(from, to, func(a, b any) bool { return name(a) == name(b) })
}

func escape(key string) string {
	return strings.NewReplacer("~", "~0", "/", "~1").Replace(key)
}
