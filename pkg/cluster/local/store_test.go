package local_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-dev/sluice/pkg/cluster"
	"github.com/sluice-dev/sluice/pkg/cluster/clustertest"
	"github.com/sluice-dev/sluice/pkg/cluster/local"
	"github.com/sluice-dev/sluice/rollout"
)

var fraud = rollout.Key{Namespace: "models", Name: "fraud"}

func TestStore(t *testing.T) {
	t.Parallel()
	clustertest.Store(t, func(t *testing.T) cluster.Store { return newStore(t, t.TempDir()) })
}

// alternating hands each call to the next of several stores, as if each came from
// another process.
type alternating struct {
	stores []*local.Store
	n      atomic.Uint32
}

func (a *alternating) next() *local.Store { return a.stores[int(a.n.Add(1))%len(a.stores)] }

func (a *alternating) Get(ctx context.Context, k rollout.Key) (*rollout.Endpoint, error) {
	return a.next().Get(ctx, k)
}
func (a *alternating) List(ctx context.Context) ([]*rollout.Endpoint, error) {
	return a.next().List(ctx)
}
func (a *alternating) Watch(ctx context.Context) (<-chan rollout.Key, error) {
	return a.next().Watch(ctx)
}
func (a *alternating) Create(ctx context.Context, e *rollout.Endpoint) (*rollout.Endpoint, error) {
	return a.next().Create(ctx, e)
}
func (a *alternating) Update(ctx context.Context, e *rollout.Endpoint) (*rollout.Endpoint, error) {
	return a.next().Update(ctx, e)
}
func (a *alternating) UpdateStatus(ctx context.Context, e *rollout.Endpoint) (*rollout.Endpoint, error) {
	return a.next().UpdateStatus(ctx, e)
}
func (a *alternating) Delete(ctx context.Context, k rollout.Key, rv string) error {
	return a.next().Delete(ctx, k, rv)
}

func TestStoreSharedDirectory(t *testing.T) {
	t.Parallel()
	clustertest.Store(t, func(t *testing.T) cluster.Store {
		dir := t.TempDir()
		return &alternating{stores: []*local.Store{newStore(t, dir), newStore(t, dir), newStore(t, dir)}}
	})
}

func TestStoreLosesNoUpdateOfManyProcesses(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := newStore(t, dir)
	if _, err := s.Create(t.Context(), clustertest.Endpoint("models", "fraud")); err != nil {
		t.Fatal(err)
	}
	const processes, each = 5, 12
	var wait []func() error
	for p := range processes {
		cmd := process(t, "append", dir, fmt.Sprint(1+p*each), fmt.Sprint(each))
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		wait = append(wait, cmd.Wait)
	}
	for _, w := range wait {
		if err := w(); err != nil {
			t.Error(err)
		}
	}
	e, err := s.Get(t.Context(), fraud)
	if err != nil {
		t.Fatal(err)
	}
	got := slices.Sorted(slices.Values(e.Spec.Repositories))
	if n := len(slices.Compact(got)); n != processes*each || len(e.Spec.Repositories) != n {
		t.Errorf("%d different of %d updates are there, %d in all", n, processes*each, len(e.Spec.Repositories))
	}
	if e.Metadata.Generation != 1+processes*each {
		t.Errorf("generation %d, want %d", e.Metadata.Generation, 1+processes*each)
	}
}

func TestStoreSurvivesKilledWriters(t *testing.T) {
	dir := t.TempDir()
	s := newStore(t, dir)
	if _, err := s.Create(t.Context(), clustertest.Endpoint("models", "fraud")); err != nil {
		t.Fatal(err)
	}
	for i := range 8 {
		cmd := process(t, "writing", dir)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(3*i) * time.Millisecond) // somewhere within a write
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait()
		fresh := newStore(t, dir)
		if _, err := fresh.Get(t.Context(), fraud); err != nil {
			t.Fatalf("after a writer was killed: %v", err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		if err := clustertest.Append(ctx, fresh, fraud, int64(i)); err != nil {
			t.Fatalf("write after a writer was killed: %v", err)
		}
		cancel()
	}
}

// file is the YAML file of models/fraud in a new store.
func file(t *testing.T) (dir, path string, s *local.Store, e *rollout.Endpoint) {
	t.Helper()
	dir = t.TempDir()
	s = newStore(t, dir)
	e = clustertest.Endpoint("models", "fraud")
	v := e.Spec.Versions[0]
	v.Name, v.Type, v.IsDefault, v.Image = "v2", rollout.Treatment, false, clustertest.Image('b')
	e.Spec.Versions = append(e.Spec.Versions, v)
	e, err := s.Create(t.Context(), e)
	if err != nil {
		t.Fatal(err)
	}
	return dir, filepath.Join(dir, "endpoints", "models", "fraud.yaml"), s, e
}

// edit replaces text in a file in place, as simple editors do.
func edit(t *testing.T, path, from, to string) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(data), from) {
		t.Fatalf("%s has no %q:\n%s", path, from, data)
	}
	if err := os.WriteFile(path, []byte(strings.Replace(string(data), from, to, 1)), 0o600); err != nil {
		t.Fatal(err)
	}
}

// claim sets v2's share by hand.
func claim(t *testing.T, path string, from, to int) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	i := strings.Index(string(data), "name: v2")
	if i < 0 {
		t.Fatalf("no v2 in %s", data)
	}
	tail := strings.Replace(string(data[i:]), fmt.Sprintf("trafficPercentile: %d", from), fmt.Sprintf("trafficPercentile: %d", to), 1)
	if err := os.WriteFile(path, append(data[:i:i], tail...), 0o600); err != nil {
		t.Fatal(err)
	}
}

func share(t *testing.T, s *local.Store) rollout.Percent {
	t.Helper()
	e, err := s.Get(t.Context(), fraud)
	if err != nil {
		t.Fatal(err)
	}
	return e.Spec.Version("v2").TrafficPercentile
}

func TestHandEdit(t *testing.T) {
	t.Parallel()
	_, path, s, e := file(t)
	claim(t, path, 0, 10)
	var got *rollout.Endpoint
	eventually(t, 2*time.Second, "the edit in force", func() (err error) {
		if got, err = s.Get(t.Context(), fraud); err == nil && got.Spec.Version("v2").TrafficPercentile != 10*rollout.OnePercent {
			err = errors.New("it is not")
		}
		return err
	})
	if got.Metadata.ResourceVersion == e.Metadata.ResourceVersion {
		t.Error("an edit by hand kept the resource version")
	}
	if got.Metadata.Generation != e.Metadata.Generation+1 {
		t.Errorf("generation %d after an edit of the spec by hand, want %d", got.Metadata.Generation, e.Metadata.Generation+1)
	}
	if got.Metadata.UID != e.Metadata.UID {
		t.Error("an edit by hand changed the UID")
	}
	e.Spec.Repositories = []int64{1}
	if _, err := s.Update(t.Context(), e); !errors.Is(err, cluster.ErrConflict) {
		t.Errorf("update from before the edit: %v, want a conflict", err)
	}
	got.Status.Demand = "1"
	after, err := s.UpdateStatus(t.Context(), got)
	if err != nil {
		t.Fatal(err)
	}
	if after.Metadata.Generation != got.Metadata.Generation {
		t.Errorf("generation %d after the status was written, want %d", after.Metadata.Generation, got.Metadata.Generation)
	}
	if after.Spec.Version("v2").TrafficPercentile != 10*rollout.OnePercent {
		t.Error("the write of the status undid the edit")
	}
	claim(t, path, 10, 20)
	eventually(t, 2*time.Second, "the second edit in force", func() error {
		if p := share(t, s); p != 20*rollout.OnePercent {
			return fmt.Errorf("share is %s", p)
		}
		return nil
	})
	if g, err := s.Get(t.Context(), fraud); err != nil || g.Metadata.Generation != after.Metadata.Generation+1 {
		t.Errorf("generation %d after the second edit, want %d", g.Metadata.Generation, after.Metadata.Generation+1)
	}
}

// A comment or another order of lines is no change of the spec.
func TestHandEditOfNothing(t *testing.T) {
	_, path, s, e := file(t)
	edit(t, path, "metadata:", "# about it\nmetadata:")
	var got *rollout.Endpoint
	eventually(t, 2*time.Second, "the edit noticed", func() (err error) {
		if got, err = s.Get(t.Context(), fraud); err == nil && got.Metadata.ResourceVersion == e.Metadata.ResourceVersion {
			err = errors.New("it is not")
		}
		return err
	})
	if got.Metadata.Generation != e.Metadata.Generation {
		t.Errorf("generation %d, want %d as before", got.Metadata.Generation, e.Metadata.Generation)
	}
}

// An editor that writes in place, slowly, is never seen half done, even if the half
// would be valid; nor is one that moves the file away first.
func TestEditorsInTheAct(t *testing.T) {
	_, path, s, _ := file(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	changes, err := s.Watch(ctx)
	if err != nil {
		t.Fatal(err)
	}
	seen := make(chan rollout.Percent, 1000)
	go func() {
		defer close(seen)
		for ctx.Err() == nil {
			e, err := s.Get(context.Background(), fraud)
			if err != nil {
				t.Errorf("while a file was edited: %v", err)
				return
			}
			if n := len(e.Spec.Versions); n != 2 {
				t.Errorf("while a file was edited: %d of 2 versions", n)
				return
			}
			select {
			case seen <- e.Spec.Version("v2").TrafficPercentile:
			default:
			}
			select {
			case <-changes:
			case <-time.After(time.Millisecond):
			}
		}
	}()
	for i := range 3 {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		text := strings.Replace(string(data), "name: v2", "name: v2\n    description: x", 1)
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_TRUNC, 0)
		if err != nil {
			t.Fatal(err)
		}
		cut := strings.LastIndex(text, "  - createdAt") // all but the second version
		if cut < 0 {
			t.Fatalf("no second version in:\n%s", text)
		}
		for _, part := range []string{text[:cut], text[cut:]} {
			time.Sleep(15 * time.Millisecond)
			if _, err := f.WriteString(part); err != nil {
				t.Fatal(err)
			}
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		// As vim does with backupcopy=no: away, then a new file.
		if err := os.Rename(path, path+"~"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(20 * time.Millisecond)
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		claim(t, path, i, i+1)
		eventually(t, 3*time.Second, "the edit in force", func() error {
			if p := share(t, s); p != rollout.Percent(i+1)*rollout.OnePercent {
				return fmt.Errorf("share is %s", p)
			}
			return nil
		})
	}
	cancel()
	for range seen {
	}
}

func TestInvalidEdit(t *testing.T) {
	t.Parallel()
	dir, path, _, e := file(t)
	var log recorder
	s, err := local.NewStore(dir, log.logger())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Create(t.Context(), clustertest.Endpoint("models", "other")); err != nil {
		t.Fatal(err)
	}
	if _, err := s.List(t.Context()); err != nil {
		t.Fatal(err)
	}
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	claim(t, path, 0, 140)
	broken, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	line := 0
	for i, l := range strings.Split(string(broken), "\n") {
		if strings.Contains(l, "trafficPercentile: 140") {
			line = i + 1
		}
	}
	place := fmt.Sprintf("%s:%d:", path, line)

	// This process goes on with what was there, and says what is wrong.
	eventually(t, 2*time.Second, "the problem", func() error {
		got, err := s.Get(t.Context(), fraud)
		if err != nil {
			t.Fatalf("get with a broken file: %v", err)
		}
		if diff := cmp.Diff(e, got); diff != "" {
			t.Fatalf("get with a broken file (-before +after):\n%s", diff)
		}
		p := s.Problems()[fraud]
		if p == nil {
			return errors.New("there is none")
		}
		if !strings.Contains(p.Error(), place) {
			t.Errorf("problem %q does not name %s", p, place)
		}
		return nil
	})
	for range 20 {
		if l, err := s.List(t.Context()); err != nil || len(l) != 2 {
			t.Fatalf("list with a broken file: %d endpoints, %v", len(l), err)
		}
	}
	if n := strings.Count(log.String(), place); n != 1 {
		t.Errorf("the mistake was logged %d times, want once:\n%s", n, log.String())
	}
	if len(s.Problems()) != 1 {
		t.Errorf("problems: %v", s.Problems())
	}

	// A process that starts now goes on with what Sluice wrote last, and says where the mistake is.
	var freshLog recorder
	fresh, err := local.NewStore(dir, freshLog.logger())
	if err != nil {
		t.Fatal(err)
	}
	got, err := fresh.Get(t.Context(), fraud)
	if err != nil {
		t.Fatalf("fresh get with a broken file: %v", err)
	}
	if diff := cmp.Diff(e, got); diff != "" {
		t.Errorf("fresh get with a broken file (-written last +got):\n%s", diff)
	}
	if l, err := fresh.List(t.Context()); err != nil || len(l) != 2 {
		t.Errorf("fresh list: %d endpoints, %v; want both", len(l), err)
	}
	if p := fresh.Problems()[fraud]; p == nil || !strings.Contains(p.Error(), place) {
		t.Errorf("fresh problem %v does not name %s", p, place)
	}
	if !strings.Contains(freshLog.String(), place) || !strings.Contains(freshLog.String(), "stays in force") {
		t.Errorf("fresh log does not name %s and what is in force:\n%s", place, freshLog.String())
	}

	// The status is not written over an edit but kept in memory; the spec is, and the edit is kept.
	stale := e.Clone()
	for i := range 3 {
		e.Status.Demand = fmt.Sprint(i)
		if e, err = s.UpdateStatus(t.Context(), e); err != nil {
			t.Fatalf("update of the status with a broken file: %v", err)
		}
		if got, err := s.Get(t.Context(), fraud); err != nil || !cmp.Equal(e, got) {
			t.Errorf("after an update of the status with a broken file: %v\n%s", err, cmp.Diff(e, got))
		}
	}
	if now, err := os.ReadFile(path); err != nil || string(now) != string(broken) {
		t.Errorf("a status was written over the edit: %v", err)
	}
	stale.Status.Demand = "x"
	if _, err := s.UpdateStatus(t.Context(), stale); !errors.Is(err, cluster.ErrConflict) {
		t.Errorf("update of an old status with a broken file: %v, want a conflict", err)
	}
	e.Spec.Hold = &rollout.Mark{Reason: "rolled back"}
	now, err := s.Update(t.Context(), e)
	if err != nil {
		t.Fatalf("update of the spec with a broken file: %v", err)
	}
	if kept, err := os.ReadFile(path + ".rejected"); err != nil || string(kept) != string(broken) {
		t.Errorf("the refused edit was not kept: %v", err)
	}
	if got, err := fresh.Get(t.Context(), fraud); err != nil || !cmp.Equal(got, now) || got.Status.Demand != "2" {
		t.Errorf("after the spec was written: %v\n%s", err, cmp.Diff(now, got))
	}
	if len(s.Problems()) != 0 {
		t.Errorf("problems after the spec was written: %v", s.Problems())
	}

	// Broken and mended by hand.
	if err := os.WriteFile(path, []byte("spec: [\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	eventually(t, 2*time.Second, "the problem", func() error {
		if _, err := s.Get(t.Context(), fraud); err != nil {
			t.Fatal(err)
		}
		if s.Problems()[fraud] == nil {
			return errors.New("there is none")
		}
		return nil
	})
	if err := os.WriteFile(path, good, 0o600); err != nil {
		t.Fatal(err)
	}
	eventually(t, 2*time.Second, "the mended file", func() error {
		got, err := s.Get(t.Context(), fraud)
		if err != nil {
			t.Fatal(err)
		}
		if got.Spec.Hold != nil || len(s.Problems()) != 0 {
			return fmt.Errorf("hold %v, problems %v", got.Spec.Hold, s.Problems())
		}
		return nil
	})
}

// A rollback through a process that never saw good content is written over the mistake, and the
// copy goes with its endpoint.
func TestFreshProcessWritesOverAMistake(t *testing.T) {
	t.Parallel()
	dir, path, _, e := file(t)
	breakFile := func() {
		t.Helper()
		if err := os.WriteFile(path, []byte("spec: }"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	breakFile()
	s := newStore(t, dir)
	got, err := s.Get(t.Context(), fraud)
	if err != nil {
		t.Fatal(err)
	}
	got.Spec.Hold = &rollout.Mark{Reason: "looks wrong", Actor: "ada"}
	if got, err = s.Update(t.Context(), got); err != nil {
		t.Fatalf("update over the mistake: %v", err)
	}
	if got.Metadata.UID != e.Metadata.UID || got.Metadata.Generation != e.Metadata.Generation+1 {
		t.Errorf("uid %s generation %d, want those of the endpoint that was there: %s, %d", got.Metadata.UID, got.Metadata.Generation, e.Metadata.UID, e.Metadata.Generation+1)
	}
	if kept, err := os.ReadFile(path + ".rejected"); err != nil || string(kept) != "spec: }" {
		t.Errorf("the refused text: %q, %v", kept, err)
	}
	again, err := newStore(t, dir).Get(t.Context(), fraud)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(got, again); diff != "" {
		t.Errorf("what was written (-want +got):\n%s", diff)
	}

	// A copy that somebody edited is not what Sluice wrote.
	copied := filepath.Join(dir, "lastgood", "models", "fraud.yaml")
	data, err := os.ReadFile(copied)
	if err != nil {
		t.Fatal(err)
	}
	breakFile()
	if err := os.WriteFile(copied, append(data, "# mine\n"...), 0o600); err != nil {
		t.Fatal(err)
	}
	var fe *local.FileError
	if _, err := newStore(t, dir).Get(t.Context(), fraud); !errors.As(err, &fe) {
		t.Errorf("with an edited copy: %v, want the mistake", err)
	}

	// What comes later under that name is another endpoint.
	if err := s.Delete(t.Context(), fraud, ""); err != nil {
		t.Fatal(err)
	}
	breakFile()
	if _, err := newStore(t, dir).Get(t.Context(), fraud); !errors.As(err, &fe) {
		t.Errorf("after a deletion: %v, want the mistake", err)
	}
}

func TestMistakesNameTheirLine(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ from, to, line, says string }{
		"syntax":           {"spec:", "spec: }", "spec: }", ""},
		"unknown field":    {"    name: v2", "    name: v2\n    trafficPercent: 5", "trafficPercent: 5", "trafficPercent"},
		"wrong type":       {"isDefault: true", "isDefault: 3", "isDefault: 3", "bool"},
		"a share too high": {"trafficPercentile: 0", "trafficPercentile: 100.5", "trafficPercentile: 100.5", "100.5"},
		"four decimals":    {"trafficPercentile: 0", "trafficPercentile: 1.0001", "trafficPercentile: 1.0001", "three decimals"},
		"two controls":     {"type: treatment", "type: control", "type: control", "two_controls"},
		"a key twice":      {"    name: v2", "    name: v2\n    name: v3", "name: v3", "already"},
		"an image":         {"image: registry.example/model@sha256:" + strings.Repeat("b", 64), "image: model:latest", "image: model:latest", "by digest"},
		"another image":    {strings.Repeat("b", 64), strings.Repeat("e", 64), "  - createdAt", "version_exists"},
		"resources":        {"    name: v2", "    name: v2\n    resources: {cpu: \"1\"}", "resources:", "not_supported_yet"},
		"a pod's template": {"    name: v2", "    name: v2\n    template: {spec: {}}", "template:", "not_supported_yet"},
		"a secret":         {"    name: v2", "    name: v2\n    environmentVariables: {TOKEN: {secret: s, key: k}}", "TOKEN", "not_supported_yet"},
		"name of another":  {"name: fraud", "name: fraudster", "metadata:", "holds models/fraudster"},
		"a zero":           {"    name: v2", "    name: v2\n    scoringTimeoutMs: 0", "scoringTimeoutMs: 0", "default of 60000"},
		"not an endpoint":  {"kind: ModelEndpoint", "kind: Service", "kind: Service", "kind"},
	} {
		t.Run(name, func(t *testing.T) {
			dir, path, _, _ := file(t)
			data, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			i := strings.LastIndex(string(data), c.from)
			if i < 0 {
				t.Fatalf("no %q in:\n%s", c.from, data)
			}
			text := string(data[:i]) + c.to + string(data[i+len(c.from):])
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			want := map[int]bool{}
			for n, l := range strings.Split(text, "\n") {
				if strings.Contains(l, c.line) {
					want[n+1] = true
				}
			}
			if err := os.RemoveAll(filepath.Join(dir, "lastgood")); err != nil {
				t.Fatal(err)
			}
			_, err = newStore(t, dir).Get(t.Context(), fraud)
			var fe *local.FileError
			if !errors.As(err, &fe) {
				t.Fatalf("err = %v, want a *FileError", err)
			}
			// A parser may notice a slip of syntax a line off.
			if !want[fe.Line] && !(name == "syntax" && (want[fe.Line-1] || want[fe.Line+1])) {
				t.Errorf("line %d is named, want one of %v: %v\n%s", fe.Line, want, err, text)
			}
			if !strings.Contains(err.Error(), c.says) {
				t.Errorf("err = %v, does not say %q", err, c.says)
			}
			if len(rollout.AsErrors(err)) == 0 {
				t.Errorf("err = %v carries no *rollout.Error", err)
			}
		})
	}
}

// TestWhatOneMachineDoesNot is neither created nor written.
func TestWhatOneMachineDoesNot(t *testing.T) {
	t.Parallel()
	for field, set := range map[string]func(*rollout.Version){
		"resources": func(v *rollout.Version) { v.Resources = &rollout.Resources{CPU: "1"} },
		"template":  func(v *rollout.Version) { v.Template = map[string]any{"spec": map[string]any{}} },
		"environmentVariables[TOKEN]": func(v *rollout.Version) {
			v.EnvironmentVariables = map[string]rollout.EnvValue{"TOKEN": {Secret: "s", Key: "k"}}
		},
	} {
		refused := func(err error, version string) {
			t.Helper()
			errs := rollout.AsErrors(err)
			if len(errs) != 1 || errs[0].Reason != rollout.ReasonNotSupportedYet || errs[0].Field != "spec.versions["+version+"]."+field || errs[0].Hint == "" {
				t.Errorf("%s: %v, want one refusal", field, err)
			}
		}
		_, _, s, e := file(t)
		set(&e.Spec.Versions[1])
		_, err := s.Update(t.Context(), e)
		refused(err, "v2")
		now, err := s.Get(t.Context(), fraud)
		if err != nil || now.Metadata.ResourceVersion != e.Metadata.ResourceVersion {
			t.Errorf("%s: something was written: %v", field, err)
		}
		other := clustertest.Endpoint("models", "other")
		set(&other.Spec.Versions[0])
		_, err = s.Create(t.Context(), other)
		refused(err, other.Spec.Versions[0].Name)
	}
}

func TestHandMadeFile(t *testing.T) {
	dir := t.TempDir()
	s := newStore(t, dir)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	changes, err := s.Watch(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(dir, "endpoints", "models"), 0o700); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "endpoints", "models", "fraud.yaml")
	text := "spec:\n  versions:\n  - {name: v1, image: " + clustertest.Image('a') + ", trafficPercentile: 12.5}\n"
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	select {
	case k := <-changes:
		if k != fraud {
			t.Fatalf("watch told of %s", k)
		}
	case <-time.After(5 * time.Second):
		t.Fatal("watch did not tell of a file in a new namespace")
	}
	e, err := s.Get(t.Context(), fraud)
	if err != nil {
		t.Fatal(err)
	}
	m := e.Metadata
	if m.UID == "" || m.Generation != 1 || m.ResourceVersion == "" || m.CreationTimestamp.IsZero() || e.Kind != rollout.Kind {
		t.Errorf("a file made by hand has metadata %+v, kind %q", m, e.Kind)
	}
	if again, err := newStore(t, dir).Get(t.Context(), fraud); err != nil || !cmp.Equal(e, again) {
		t.Errorf("another process sees something else: %v\n%s", err, cmp.Diff(e, again))
	}
	e.Status.Demand = "1"
	after, err := s.UpdateStatus(t.Context(), e)
	if err != nil {
		t.Fatal(err)
	}
	if after.Metadata.UID != m.UID || after.Metadata.Generation != 1 || !after.Metadata.CreationTimestamp.Equal(m.CreationTimestamp) {
		t.Errorf("the first write changed metadata from %+v to %+v", m, after.Metadata)
	}
	for len(changes) > 0 {
		<-changes
	}
	// Removed by hand it is gone, though not at once: it may be about to come back.
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	if _, err := s.Get(t.Context(), fraud); err != nil {
		t.Errorf("get right after the removal: %v", err)
	}
	if l, err := s.List(t.Context()); err != nil || len(l) != 1 {
		t.Errorf("list right after the removal: %v, %v", l, err)
	}
	for {
		select {
		case <-changes:
		case <-time.After(5 * time.Second):
			t.Fatal("watch did not tell of the removal")
		}
		if _, err := s.Get(t.Context(), fraud); errors.Is(err, cluster.ErrNotFound) {
			break
		}
	}
	if took := time.Since(begin); took < 500*time.Millisecond {
		t.Errorf("gone after %s", took)
	}
}

// What the store removed is gone at once, in every process.
func TestDeleteIsSeenAtOnce(t *testing.T) {
	dir, _, s, e := file(t)
	other := newStore(t, dir)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	changes, err := other.Watch(ctx)
	if err != nil {
		t.Fatal(err)
	}
	<-changes
	for range 3 {
		begin := time.Now()
		if err := s.Delete(t.Context(), fraud, ""); err != nil {
			t.Fatal(err)
		}
		if _, err := other.Get(t.Context(), fraud); !errors.Is(err, cluster.ErrNotFound) {
			t.Errorf("get right after Delete in another store: %v", err)
		}
		for limit := time.After(5 * time.Second); ; {
			select {
			case <-changes:
			case <-limit:
				t.Fatal("watch did not tell of a deletion")
			}
			if _, err := other.Get(t.Context(), fraud); errors.Is(err, cluster.ErrNotFound) {
				break
			}
		}
		if took := time.Since(begin); took > 700*time.Millisecond {
			t.Errorf("Delete to event took %s", took)
		}
		if e, err = s.Create(t.Context(), e); err != nil {
			t.Fatal(err)
		}
		if _, err := other.Get(t.Context(), fraud); err != nil {
			t.Errorf("get right after Create in another store: %v", err)
		}
	}
}

func TestForeignFilesAreLeftAlone(t *testing.T) {
	dir, path, s, _ := file(t)
	for _, name := range []string{"models/README.md", "models/.tmp-fraud.yaml-123", "models/UPPER.yaml", "models/fraud.yaml~", "models/fraud.yaml.swp", "stray.yaml", "not_a_namespace/x.yaml"} {
		p := filepath.Join(dir, "endpoints", name)
		if err := os.MkdirAll(filepath.Dir(p), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte("}{"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if l, err := s.List(t.Context()); err != nil || len(l) != 1 {
		t.Errorf("list: %d endpoints, %v; want one", len(l), err)
	}
	if len(s.Problems()) != 0 {
		t.Errorf("problems with files that are none of the store's: %v", s.Problems())
	}
	if err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if p == path && info.Mode().Perm() != 0o600 || d.IsDir() && p != dir && info.Mode().Perm() != 0o700 {
			t.Errorf("%s has mode %s", p, info.Mode())
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

// The time from a write to the event of a watcher that has its own store, as another
// process would: by the store, and by hand.
func TestWatchLatency(t *testing.T) {
	dir, path, writer, _ := file(t)
	reader := newStore(t, dir)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	changes, err := reader.Watch(ctx)
	if err != nil {
		t.Fatal(err)
	}
	next := func(want rollout.Percent, begin time.Time) time.Duration {
		t.Helper()
		limit := time.After(5 * time.Second)
		for {
			select {
			case <-changes:
				if share(t, reader) == want {
					return time.Since(begin)
				}
			case <-limit:
				t.Fatal("no event within 5s")
			}
		}
	}
	measure := func(n int, write func(i int)) (median, worst time.Duration) {
		var all []time.Duration
		for i := range n {
			begin := time.Now()
			write(i)
			all = append(all, next(rollout.Percent(i+1)*rollout.OnePercent, begin))
		}
		slices.Sort(all)
		return all[len(all)/2], all[len(all)-1]
	}
	byStore, worstByStore := measure(20, func(i int) {
		e, err := writer.Get(t.Context(), fraud)
		if err != nil {
			t.Fatal(err)
		}
		e.Spec.Version("v2").TrafficPercentile = rollout.Percent(i+1) * rollout.OnePercent
		if _, err := writer.Update(t.Context(), e); err != nil {
			t.Fatal(err)
		}
	})
	claim(t, path, 20, 0)
	next(0, time.Now())
	byHand, worstByHand := measure(8, func(i int) { claim(t, path, i, i+1) })
	t.Logf("write to event: by the store median %s, worst %s (with the write and its fsyncs); by hand median %s, worst %s (50ms of them to come to rest)",
		byStore, worstByStore, byHand, worstByHand)
	if byStore > 150*time.Millisecond || byHand > 200*time.Millisecond {
		t.Errorf("median write to event: by the store %s, by hand %s; want under 150ms and 200ms", byStore, byHand)
	}
}

func TestWatchEndsItsGoroutine(t *testing.T) {
	_, _, s, _ := file(t)
	for range 3 {
		ctx, cancel := context.WithCancel(t.Context())
		a, err := s.Watch(ctx)
		if err != nil {
			t.Fatal(err)
		}
		<-a
		cancel()
		for range a {
		}
	}
	eventually(t, 3*time.Second, "no goroutine of the watch", func() error {
		if n := strings.Count(stacks(), "local.(*poker).run"); n > 0 {
			return fmt.Errorf("%d run", n)
		}
		return nil
	})
}
