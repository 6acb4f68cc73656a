package v1alpha1_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/managedfields"
	"k8s.io/apimachinery/pkg/util/managedfields/managedfieldstest"
	"k8s.io/kube-openapi/pkg/validation/spec"

	"github.com/sluice-dev/sluice/pkg/cluster/kube/v1alpha1"
	"github.com/sluice-dev/sluice/rollout"
)

// api is an API server as two managers of one endpoint meet it.
type api interface {
	// apply by server-side apply without force.
	apply(t *testing.T, manager string, obj map[string]any) error
	get(t *testing.T) map[string]any
	// update replaces the object as a whole.
	update(t *testing.T, manager string, obj map[string]any) error
}

// offline is an API server's field manager and its checks, without the server.
type offline struct {
	*server
	fields managedfieldstest.TestFieldManager
	stored map[string]any
}

func newOffline(t *testing.T) *offline {
	t.Helper()
	s := newServer(t, "modelendpoints")
	gvk := v1alpha1.GroupVersion().WithKind(rollout.Kind)
	schema := s.structural.ToKubeOpenAPI()
	schema.AddExtension("x-kubernetes-group-version-kind", []any{map[string]any{"group": gvk.Group, "version": gvk.Version, "kind": gvk.Kind}})
	converter, err := managedfields.NewTypeConverter(map[string]*spec.Schema{rollout.Kind: schema}, false)
	if err != nil {
		t.Fatal(err)
	}
	return &offline{server: s, fields: managedfieldstest.NewTestFieldManager(converter, gvk)}
}

func (o *offline) check(t *testing.T) error {
	obj := o.get(t)
	errs := o.create(t, obj)
	if o.stored != nil {
		errs = o.server.update(t, obj, o.stored)
	}
	if err := errs.ToAggregate(); err != nil {
		return err
	}
	o.stored = obj
	return nil
}

func (o *offline) apply(t *testing.T, manager string, obj map[string]any) error {
	if err := o.fields.Apply(&unstructured.Unstructured{Object: obj}, manager, false); err != nil {
		return err
	}
	return o.check(t)
}

func (o *offline) update(t *testing.T, manager string, obj map[string]any) error {
	if err := o.fields.Update(&unstructured.Unstructured{Object: obj}, manager); err != nil {
		return err
	}
	return o.check(t)
}

func (o *offline) get(t *testing.T) map[string]any {
	raw, err := json.Marshal(o.fields.Live())
	if err != nil {
		t.Fatal(err)
	}
	obj := decode(t, raw)
	// Field managers keep the record there; it is not the object's.
	delete(obj["metadata"].(map[string]any), "managedFields")
	return obj
}

func TestApplyOffline(t *testing.T) { gitOps(t, newOffline(t)) }

// manifest is what stands in Git: no type, no default, no share.
func manifest(note string, more ...string) string {
	return endpointYAML("fraud", one(", description: "+note+", source: {repositoryId: 7, commit: c1}, tags: {team: risk}, autoscale: {minReplicas: 2}")+
		"\n- {name: b, image: r/b"+digest+", environmentVariables: {THREADS: \"1\"}}"+strings.Join(more, "")+
		"\nrepositories: [7]\nstrategy: {steps: [{percent: 1}, {percent: 50, minDuration: 10m}], deadline: 24h}")
}

// gitOps: a manifest is applied again and again while the engine, which writes whole objects, moves
// traffic. Neither may conflict with the other or reset what is the other's.
func gitOps(t *testing.T, a api) {
	t.Helper()
	git := func(text string) error { return a.apply(t, "flux", object(t, text)) }
	read := func() *v1alpha1.ModelEndpoint {
		raw, err := json.Marshal(a.get(t))
		if err != nil {
			t.Fatal(err)
		}
		m := &v1alpha1.ModelEndpoint{}
		if err := json.Unmarshal(raw, m); err != nil {
			t.Fatal(err)
		}
		return m
	}
	engine := func(id string, op rollout.Op) {
		t.Helper()
		m := read()
		next, _, err := rollout.Apply(m.Endpoint(), rollout.Request{ID: id, Actor: rollout.Engine, At: time.Unix(1_800_000_000, 0).UTC(), Force: true}, op)
		if err != nil {
			t.Fatalf("%s: %v", op, err)
		}
		// The control role would move them into the history.
		next.Spec.Changes = next.Spec.Changes[max(0, len(next.Spec.Changes)-5):]
		m.Spec = next.Spec
		if err := a.update(t, "sluice-control", wire(t, m)); err != nil {
			t.Fatalf("%s: %v", op, err)
		}
	}
	if err := git(manifest("first")); err != nil {
		t.Fatal(err)
	}
	treatment := rollout.Treatment
	control := rollout.Control
	engine("control", rollout.Update{Version: "a", Type: &control, Default: true})
	engine("treatment", rollout.Update{Version: "b", Type: &treatment})
	const rounds = 60
	for i := range rounds {
		percent := rollout.Percent(1 + i*1537)
		engine(fmt.Sprint("shift-", i), rollout.Update{Version: "b", Percent: &percent})
		before := read()
		note := fmt.Sprint("note-", i/10) // every tenth round Git changes something of its own
		if err := git(manifest(note)); err != nil {
			t.Fatalf("round %d: %v", i, err)
		}
		after := read()
		if after.Spec.Version("a").Description != note {
			t.Fatalf("round %d: the manifest's text did not arrive: %+v", i, after.Spec)
		}
		before.Spec.Version("a").Description = note
		if diff := cmp.Diff(before.Spec, after.Spec); diff != "" {
			t.Fatalf("round %d: applying the manifest changed what is not its own: %s", i, diff)
		}
		if after.Spec.Hold != nil || after.Spec.ForeignEdit() {
			t.Fatalf("round %d: the manifest counts as an edit of traffic: %+v", i, after.Spec)
		}
		if b := after.Spec.Version("b"); b.TrafficPercentile != percent || b.Type != treatment || !after.Spec.Version("a").IsDefault {
			t.Fatalf("round %d: reset: %+v", i, after.Spec.Versions)
		}
	}
	// Both again after a promotion and back.
	engine("promote", rollout.Promote{Version: "b"})
	if err := git(manifest("promoted")); err != nil {
		t.Fatal(err)
	}
	if s := read().Spec; s.Version("b").Type != rollout.Control || s.Version("a").Type != rollout.Standby || s.Default().Name != "b" {
		t.Fatalf("the manifest undid the promotion: %+v", s.Versions)
	}
	engine("rollback", rollout.Rollback{Version: "b"})

	// What the rules refuse leaves all as it was.
	was := a.get(t)
	for name, tc := range map[string]struct{ text, words string }{
		"image under an old name": {strings.Replace(manifest("promoted"), "r/b@", "r/other@", 1), "the image of a version never changes: it is r/b" + digest},
		"seventh version":         {manifest("promoted", extra(5)...), "an endpoint has at most 6 versions; delete one"},
		"a second control":        {strings.Replace(manifest("promoted"), "name: b,", "name: b, type: control,", 1), "[two_controls]"},
	} {
		o, isOffline := a.(*offline)
		var kept managedfieldstest.TestFieldManager
		if isOffline {
			kept = o.fields
			o.fields = copyOf(t, o)
		}
		if err := git(tc.text); err == nil || !strings.Contains(err.Error(), tc.words) {
			t.Errorf("%s: %v, want %q", name, err, tc.words)
		}
		if isOffline {
			o.fields = kept
		}
		if diff := cmp.Diff(was, a.get(t)); diff != "" {
			t.Errorf("%s: something changed: %s", name, diff)
		}
	}
	// A new version may join by the manifest.
	if err := git(manifest("joined", extra(4)...)); err != nil {
		t.Error(err)
	}
}

func extra(n int) []string {
	var out []string
	for i := range n {
		out = append(out, fmt.Sprintf("\n- {name: x%d, image: r/x%d%s}", i, i, digest))
	}
	return out
}

// copyOf is a field manager with the same object and owners, for a write that will be refused.
func copyOf(t *testing.T, o *offline) managedfieldstest.TestFieldManager {
	n := newOffline(t)
	live := o.fields.Live().DeepCopyObject().(*unstructured.Unstructured)
	if err := n.fields.Apply(object2(t, manifest("promoted")), "flux", true); err != nil {
		t.Fatal(err)
	}
	live.SetManagedFields(nil)
	if err := n.fields.Update(live, "sluice-control"); err != nil {
		t.Fatal(err)
	}
	return n.fields
}

func object2(t *testing.T, text string) *unstructured.Unstructured {
	return &unstructured.Unstructured{Object: object(t, text)}
}
