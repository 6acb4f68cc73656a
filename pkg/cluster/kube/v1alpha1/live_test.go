package v1alpha1_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/yaml"

	"github.com/sluice-dev/sluice/pkg/cluster/kube/v1alpha1"
)

// kubeconfigVariable names the kubeconfig of a cluster that the tests may write to.
const kubeconfigVariable = "SLUICE_TEST_KUBECONFIG"

// live is a namespace of a real API server, and the endpoint "fraud" in it.
type live struct {
	client    dynamic.Interface
	endpoints dynamic.ResourceInterface
	namespace string
	config    *rest.Config
	warnings  *warnings
}

type warnings struct {
	mu    sync.Mutex
	lines []string
}

func (w *warnings) HandleWarningHeader(_ int, _, text string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.lines = append(w.lines, text)
}

func (w *warnings) take() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := strings.Join(w.lines, "\n")
	w.lines = nil
	return out
}

func resource(name string) schema.GroupVersionResource {
	return v1alpha1.GroupVersion().WithResource(name)
}

func newLive(t *testing.T) *live {
	t.Helper()
	path := os.Getenv(kubeconfigVariable)
	if path == "" {
		t.Skipf("set %s to the kubeconfig of a cluster to test against a real API server; TestRefused and its like checked the same with the API server's packages", kubeconfigVariable)
	}
	config, err := clientcmd.BuildConfigFromFlags("", path)
	if err != nil {
		t.Fatal(err)
	}
	config.QPS, config.Burst = 200, 400
	l := &live{config: config, warnings: &warnings{}}
	config.WarningHandler = l.warnings
	if l.client, err = dynamic.NewForConfig(config); err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	crds := l.client.Resource(schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"})
	files, err := filepath.Glob(filepath.Join(definitions, "*.yaml"))
	if err != nil || len(files) != 2 {
		t.Fatalf("definitions %v (%v)", files, err)
	}
	for _, file := range files {
		raw, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		crd := object2(t, string(raw))
		if _, err := crds.Apply(ctx, crd.GetName(), crd, metav1.ApplyOptions{FieldManager: "test", Force: true}); err != nil {
			t.Fatalf("install %s: %v", crd.GetName(), err)
		}
		within(t, crd.GetName()+" established", func() error {
			got, err := crds.Get(ctx, crd.GetName(), metav1.GetOptions{})
			if err != nil {
				return err
			}
			raw, err := json.Marshal(got.Object["status"])
			if err == nil && !strings.Contains(string(raw), `"status":"True","type":"Established"`) {
				err = fmt.Errorf("status %s", raw)
			}
			return err
		})
	}
	namespaces := l.client.Resource(schema.GroupVersionResource{Version: "v1", Resource: "namespaces"})
	ns, err := namespaces.Create(ctx, object2(t, "apiVersion: v1\nkind: Namespace\nmetadata: {generateName: sluice-definitions-}"), metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	l.namespace = ns.GetName()
	t.Cleanup(func() {
		// The test's own context has ended.
		if err := namespaces.Delete(context.Background(), l.namespace, metav1.DeleteOptions{}); err != nil {
			t.Errorf("delete namespace: %v", err)
		}
	})
	l.endpoints = l.client.Resource(resource("modelendpoints")).Namespace(l.namespace)
	within(t, "endpoints are served", func() error {
		_, err := l.endpoints.List(ctx, metav1.ListOptions{})
		return err
	})
	return l
}

func within(t *testing.T, what string, ok func() error) {
	t.Helper()
	var err error
	for range 300 {
		if err = ok(); err == nil {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	t.Fatalf("not in 30 s: %s: %v", what, err)
}

func (l *live) object(t *testing.T, text string) *unstructured.Unstructured {
	u := object2(t, text)
	u.SetNamespace(l.namespace)
	return u
}

func (l *live) create(t *testing.T, name, text string) (*unstructured.Unstructured, error) {
	return l.endpoints.Create(t.Context(), l.object(t, endpointYAML(name, text)), metav1.CreateOptions{FieldValidation: "Strict"})
}

func (l *live) apply(t *testing.T, manager string, obj map[string]any) error {
	u := &unstructured.Unstructured{Object: obj}
	u.SetNamespace(l.namespace)
	_, err := l.endpoints.Apply(t.Context(), u.GetName(), u, metav1.ApplyOptions{FieldManager: manager})
	return err
}

func (l *live) update(t *testing.T, manager string, obj map[string]any) error {
	_, err := l.endpoints.Update(t.Context(), &unstructured.Unstructured{Object: obj}, metav1.UpdateOptions{FieldManager: manager, FieldValidation: "Strict"})
	return err
}

func (l *live) get(t *testing.T) map[string]any {
	u, err := l.endpoints.Get(t.Context(), "fraud", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	u.SetManagedFields(nil)
	return u.Object
}

// TestLive runs against a real API server.
func TestLive(t *testing.T) {
	l := newLive(t)
	t.Run("refused", func(t *testing.T) {
		for i, tc := range refused {
			if _, err := l.create(t, fmt.Sprintf("bad-%d", i), tc.object); !apierrors.IsInvalid(err) || !strings.Contains(err.Error(), tc.words) {
				t.Errorf("%s: %v, want %q", tc.name, err, tc.words)
			}
		}
		for _, name := range []string{"2fraud", strings.Repeat("a", 33), "fraud.v2"} {
			if _, err := l.create(t, name, one("")); !apierrors.IsInvalid(err) || !strings.Contains(err.Error(), "metadata.name: not a name for an endpoint; use 1 to 32") {
				t.Errorf("name %s: %v", name, err)
			}
		}
	})
	t.Run("accepted", func(t *testing.T) {
		for i, tc := range accepted {
			got, err := l.create(t, fmt.Sprintf("good-%d", i), tc.object)
			if err != nil {
				t.Errorf("%s: %v", tc.name, err)
				continue
			}
			// What is stored is readable, and says the same.
			var stored, sent v1alpha1.ModelEndpoint
			raw, _ := json.Marshal(got)
			if err := json.Unmarshal(raw, &stored); err != nil {
				t.Errorf("%s: %v", tc.name, err)
			}
			if err := yaml.Unmarshal([]byte(endpointYAML("x", tc.object)), &sent); err != nil {
				t.Error(err)
			}
			if diff := cmp.Diff(sent.Spec, stored.Spec); diff != "" {
				t.Errorf("%s: stored something else: %s", tc.name, diff)
			}
		}
	})
	t.Run("unknown fields", func(t *testing.T) {
		text := endpointYAML("unknown", one(", colour: red")+"\nsize: 3")
		_, err := l.endpoints.Create(t.Context(), l.object(t, text), metav1.CreateOptions{FieldValidation: "Strict"})
		if !apierrors.IsBadRequest(err) || !strings.Contains(err.Error(), `unknown field "spec.size"`) || !strings.Contains(err.Error(), `unknown field "spec.versions[0].colour"`) {
			t.Errorf("strict: %v", err)
		}
		// Without strictness (kubectl's old default) the write warns and the field is gone, not stored and ignored.
		l.warnings.take()
		got, err := l.endpoints.Create(t.Context(), l.object(t, text), metav1.CreateOptions{FieldValidation: "Warn"})
		if err != nil {
			t.Fatal(err)
		}
		if w := l.warnings.take(); !strings.Contains(w, `unknown field "spec.size"`) {
			t.Errorf("warned %q", w)
		}
		if raw, _ := json.Marshal(got.Object["spec"]); strings.Contains(string(raw), "colour") || strings.Contains(string(raw), "size") {
			t.Errorf("stored %s", raw)
		}
	})
	t.Run("apply from Git beside the engine", func(t *testing.T) { gitOps(t, l) })
	t.Run("status and spec apart", l.subresource)
	t.Run("columns", l.columns)
	t.Run("journal", l.journal)
}

func (l *live) subresource(t *testing.T) {
	ctx := t.Context()
	u := l.object(t, endpointYAML("apart", one("")))
	u.Object["status"] = map[string]any{"demand": "9"}
	got, err := l.endpoints.Create(ctx, u, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if got.Object["status"] != nil {
		t.Errorf("created with a status: %v", got.Object["status"])
	}
	set := func(u *unstructured.Unstructured, demand, mode string) *unstructured.Unstructured {
		u = u.DeepCopy()
		u.Object["status"] = map[string]any{"demand": demand}
		u.Object["spec"].(map[string]any)["auth"] = map[string]any{"mode": mode}
		return u
	}
	is := func(u *unstructured.Unstructured, demand, mode any, generation int64) {
		t.Helper()
		d, _, _ := unstructured.NestedFieldNoCopy(u.Object, "status", "demand")
		m, _, _ := unstructured.NestedFieldNoCopy(u.Object, "spec", "auth", "mode")
		if d != demand || m != mode || u.GetGeneration() != generation {
			t.Errorf("status %v, spec %v, generation %d; want %v, %v, %d", d, m, u.GetGeneration(), demand, mode, generation)
		}
	}
	if got, err = l.endpoints.UpdateStatus(ctx, set(got, "1", "none"), metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	is(got, "1", nil, 1)
	if got, err = l.endpoints.Update(ctx, set(got, "2", "none"), metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	is(got, "1", "none", 2)
}

// table is what kubectl shows: the cells of each object by column, wide ones too.
func (l *live) table(t *testing.T, plural string) map[string]map[string]any {
	t.Helper()
	client, err := rest.HTTPClientFor(l.config)
	if err != nil {
		t.Fatal(err)
	}
	url := strings.TrimSuffix(l.config.Host, "/") + "/apis/sluice.dev/v1alpha1/namespaces/" + l.namespace + "/" + plural
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Accept", "application/json;as=Table;v=v1;g=meta.k8s.io")
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var table metav1.Table
	if err := json.NewDecoder(resp.Body).Decode(&table); err != nil || table.Kind != "Table" {
		t.Fatalf("read table: %v (%s)", err, resp.Status)
	}
	out := map[string]map[string]any{}
	for _, row := range table.Rows {
		cells := map[string]any{}
		for i, c := range table.ColumnDefinitions {
			cells[c.Name] = row.Cells[i]
		}
		out[fmt.Sprint(row.Cells[0])] = cells
	}
	return out
}

func (l *live) columns(t *testing.T) {
	ctx := t.Context()
	got, err := l.create(t, "columns", two(", type: control", ", type: treatment, trafficPercentile: 12.5")+
		"\n- {name: c, image: r/c"+digest+", type: treatment, trafficPercentile: 5}\n- {name: d, image: r/d"+digest+", type: standby}\nhold: {reason: freeze}\nlock: {reason: audit}")
	if err != nil {
		t.Fatal(err)
	}
	got.Object["status"] = object(t, "{scoringUri: 'https://score.example/models/columns', summary: {treatments: 'b,c', shares: '12.5,5', ready: 3/4, reason: step_running}}")
	if _, err := l.endpoints.UpdateStatus(ctx, got, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := l.create(t, "empty", one("")); err != nil {
		t.Fatal(err)
	}
	rows := l.table(t, "modelendpoints")
	want := map[string]any{
		"Name": "columns", "Control": "a", "Treatments": "b,c", "Share": "12.5,5", "Ready": "3/4", "Reason": "step_running",
		"Standby": "d", "Hold": "freeze", "Lock": "audit", "Scoring URI": "https://score.example/models/columns",
	}
	row := rows["columns"]
	if age, ok := row["Age"].(string); !ok || age == "" {
		t.Errorf("age %v", row["Age"])
	}
	delete(row, "Age")
	if diff := cmp.Diff(want, row); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	for column, cell := range rows["empty"] {
		if column != "Name" && column != "Age" && cell != nil {
			t.Errorf("%s of an endpoint without status or control is %v", column, cell)
		}
	}
}

const entryYAML = `
apiVersion: sluice.dev/v1alpha1
kind: JournalEntry
metadata: {name: c-1734-1}
spec: {endpoint: {namespace: models, name: fraud}, command: /promote pr-42, actor: ann, origin: {comment: "1734"}, at: "2026-11-23T10:00:00.000000Z"}
`

func (l *live) journal(t *testing.T) {
	ctx := t.Context()
	entries := l.client.Resource(resource("journalentries")).Namespace(l.namespace)
	for name, tc := range refusedEntries {
		if _, err := entries.Create(ctx, l.object(t, strings.Replace(entryYAML, tc.old, tc.new, 1)), metav1.CreateOptions{}); !apierrors.IsInvalid(err) || !strings.Contains(err.Error(), tc.words) {
			t.Errorf("%s: %v, want %q", name, err, tc.words)
		}
	}
	got, err := entries.Create(ctx, l.object(t, entryYAML), metav1.CreateOptions{FieldValidation: "Strict"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := entries.Create(ctx, l.object(t, entryYAML), metav1.CreateOptions{}); !apierrors.IsAlreadyExists(err) {
		t.Errorf("claimed twice: %v", err)
	}
	got.Object["status"] = map[string]any{"state": "done", "result": strings.Repeat("x", 100_000)}
	done, err := entries.UpdateStatus(ctx, got, metav1.UpdateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	changed := done.DeepCopy()
	changed.Object["spec"].(map[string]any)["command"] = "/rollback"
	if _, err := entries.Update(ctx, changed, metav1.UpdateOptions{}); !apierrors.IsInvalid(err) || !strings.Contains(err.Error(), "the command of a journal entry never changes; record another entry [conflict]") {
		t.Errorf("another command under the same name: %v", err)
	}
	// Marking it is no change of the command.
	done.SetLabels(map[string]string{"kept": "yes"})
	if _, err := entries.Update(ctx, done, metav1.UpdateOptions{}); err != nil {
		t.Error(err)
	}
	row := l.table(t, "journalentries")["c-1734-1"]
	if row["Endpoint"] != "fraud" || row["Command"] != "/promote pr-42" || row["Actor"] != "ann" || row["State"] != "done" {
		t.Errorf("row %v", row)
	}
}
