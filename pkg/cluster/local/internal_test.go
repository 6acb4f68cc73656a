package local

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/sluice-dev/sluice/rollout"
)

// Whatever text people, models and GitHub put into an endpoint, its file reads back the same.
func TestEndpointFileRoundTrip(t *testing.T) {
	key := rollout.Key{Namespace: "models", Name: "fraud"}
	rapid.Check(t, func(t *rapid.T) {
		text := rapid.String()
		e := &rollout.Endpoint{
			APIVersion: rollout.APIVersion, Kind: rollout.Kind,
			Metadata: rollout.Metadata{
				Name: key.Name, Namespace: key.Namespace, UID: "u", Generation: rapid.Int64Range(1, 1<<60).Draw(t, "generation"),
				CreationTimestamp: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC),
			},
			Spec: rollout.Spec{
				Repositories: rapid.SliceOf(rapid.Int64()).Draw(t, "repositories"),
				Hold:         &rollout.Mark{Reason: text.Draw(t, "hold")},
				Versions: []rollout.Version{{
					Name: "v1", Image: "x@sha256:0123456789012345678901234567890123456789012345678901234567890123",
					TrafficPercentile: rollout.Percent(rapid.IntRange(0, 100_000).Draw(t, "claim")),
					Description:       text.Draw(t, "description"), Tags: map[string]string{text.Draw(t, "tag"): text.Draw(t, "value")},
				}},
			},
			Status: rollout.Status{Versions: []rollout.VersionStatus{{Name: "v1", Message: text.Draw(t, "message")}}},
		}
		if len(e.Spec.Repositories) == 0 {
			e.Spec.Repositories = nil
		}
		counter := rapid.Int64Range(0, 1<<60).Draw(t, "counter")
		data, err := encodeEndpoint(e, counter)
		if err != nil {
			t.Fatal(err)
		}
		if !writtenBySluice(data) {
			t.Fatal("the check line does not hold")
		}
		st, err := decodeEndpoint("x.yaml", key, data, time.Now())
		if err != nil {
			t.Fatalf("%v\n%s", err, data)
		}
		if st.counter != counter {
			t.Fatalf("counter %d, want %d", st.counter, counter)
		}
		got := st.endpoint
		got.Metadata.ResourceVersion = ""
		if diff := cmp.Diff(e.Clone(), got); diff != "" {
			t.Fatalf("(-written +read):\n%s\n%s", diff, data)
		}
	})
}

// Nothing that a file may hold makes the reader panic, and what it takes is valid.
func FuzzEndpointFile(f *testing.F) {
	key := rollout.Key{Namespace: "models", Name: "fraud"}
	f.Add([]byte("spec:\n  versions:\n  - {name: v1, image: 'x@sha256:0123456789012345678901234567890123456789012345678901234567890123'}\n"))
	f.Add([]byte("# sluice-check: {\"body\":\"\"}\nspec: {versions: [{name: a}, 3]}\n"))
	f.Add([]byte("a: &a [*a]"))
	f.Add([]byte("spec: {hold: {reason: 3}}"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > 4096 {
			return
		}
		st, err := decodeEndpoint("x.yaml", key, data, time.Unix(0, 0))
		if (st == nil) == (err == nil) {
			t.Fatalf("%v, %v", st, err)
		}
		if err == nil {
			if err := st.endpoint.Spec.Validate(); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// Without the kernel's help changes are noticed by looking.
func TestPokerWithoutNotifications(t *testing.T) {
	dir := t.TempDir()
	p := &poker{added: map[string]bool{}, log: slog.New(slog.DiscardHandler), poll: 5 * time.Millisecond}
	p.add(dir)
	ctx, cancel := context.WithCancel(t.Context())
	seen := make(chan struct{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		p.run(ctx, func(map[string]bool) time.Duration {
			if _, err := os.Stat(filepath.Join(dir, "new")); err == nil {
				select {
				case <-seen:
				default:
					close(seen)
				}
			}
			return 0
		})
	}()
	if err := os.WriteFile(filepath.Join(dir, "new"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	select {
	case <-seen:
	case <-time.After(5 * time.Second):
		t.Error("a new file was not seen")
	}
	cancel()
	<-done
}

// A store whose watch gets no notifications at all still tells of every change.
func TestStoreWatchByPolling(t *testing.T) {
	s, err := NewStore(t.TempDir(), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	p := &poker{added: map[string]bool{}, log: s.log, poll: 10 * time.Millisecond}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	c, err := s.hub.Listen(ctx, s.keys)
	if err != nil {
		t.Fatal(err)
	}
	go p.run(ctx, func(changed map[string]bool) time.Duration { return s.lookAll(ctx, p, changed) })
	dir := filepath.Join(s.root, "models")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	image := "x@sha256:0123456789012345678901234567890123456789012345678901234567890123"
	for i, text := range []string{"v1", "v2", ""} {
		path := filepath.Join(dir, "fraud.yaml")
		if text == "" {
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
		} else if err := os.WriteFile(path, []byte("spec: {versions: [{name: "+text+", image: '"+image+"'}]}\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		select {
		case k := <-c:
			if k.Name != "fraud" {
				t.Errorf("told of %s", k)
			}
		case <-time.After(5 * time.Second):
			t.Fatalf("change %d was not told", i)
		}
	}
}

// An endpoint that goes before anybody looked at it is told all the same.
func TestWatchTellsOfWhatItNeverSaw(t *testing.T) {
	dir := t.TempDir()
	writer, err := NewStore(dir, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	image := "x@sha256:0123456789012345678901234567890123456789012345678901234567890123"
	e, err := writer.Create(t.Context(), &rollout.Endpoint{
		Metadata: rollout.Metadata{Namespace: "models", Name: "fraud"},
		Spec:     rollout.Spec{Versions: []rollout.Version{{Name: "v1", Image: image}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	s, err := NewStore(dir, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	s.watchers = 1 // as if another Watch looked already: this one starts nothing
	s.stop = func() {}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	c, err := s.Watch(ctx)
	if err != nil {
		t.Fatal(err)
	}
	<-c
	if err := writer.Delete(t.Context(), e.Key(), ""); err != nil {
		t.Fatal(err)
	}
	s.lookAll(ctx, &poker{added: map[string]bool{}, log: s.log, poll: time.Second}, nil)
	select {
	case key := <-c:
		if key != e.Key() {
			t.Errorf("told of %s", key)
		}
	case <-time.After(5 * time.Second):
		t.Error("the end was not told")
	}
}
