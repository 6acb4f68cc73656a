//go:build unix

package local_test

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sluice-dev/sluice/pkg/cluster/clustertest"
	"github.com/sluice-dev/sluice/pkg/cluster/local"
	"github.com/sluice-dev/sluice/rollout"
)

// TestRollbackOverADirectory: whatever lies in the file's place, a spec can be written over it.
func TestRollbackOverADirectory(t *testing.T) {
	dir := t.TempDir()
	e, err := newStore(t, dir).Create(t.Context(), clustertest.Endpoint("models", "fraud"))
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "endpoints", "models", "fraud.yaml")
	if err := errors.Join(os.Remove(path), os.Mkdir(path, 0o700), os.WriteFile(filepath.Join(path, "mine"), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	e.Spec.Hold = &rollout.Mark{Reason: "looks wrong"}
	if _, err := newStore(t, dir).Update(t.Context(), e); err != nil {
		t.Fatalf("update over a directory: %v", err)
	}
	if _, err := os.Stat(filepath.Join(path+".rejected", "mine")); err != nil {
		t.Errorf("what lay there is not kept: %v", err)
	}
	if got, err := newStore(t, dir).Get(t.Context(), e.Key()); err != nil || got.Spec.Hold == nil {
		t.Errorf("got %+v, %v; want the hold", got, err)
	}
}

// TestSpecialEndpointFiles: what is no regular file is refused by name and holds nobody up.
func TestSpecialEndpointFiles(t *testing.T) {
	dir := t.TempDir()
	folder := filepath.Join(dir, "endpoints", "models")
	s := newStore(t, dir)
	if _, err := s.Create(t.Context(), clustertest.Endpoint("models", "fraud")); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(filepath.Join(folder, "pipe.yaml"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(folder, "folder.yaml"), 0o700); err != nil {
		t.Fatal(err)
	}
	for name, target := range map[string]string{"link": "fraud.yaml", "tube": "pipe.yaml", "null": "/dev/null"} {
		if err := os.Symlink(target, filepath.Join(folder, name+".yaml")); err != nil {
			t.Fatal(err)
		}
	}
	// A socket's path is short, so it is bound from inside its directory.
	t.Chdir(folder)
	ln, err := net.Listen("unix", "socket.yaml")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()

	done := make(chan error, 1)
	go func() {
		all, err := s.List(t.Context())
		if err == nil && len(all) != 1 {
			err = errors.New("the endpoint beside them is not listed alone")
		}
		done <- err
	}()
	select {
	case err := <-done:
		if err != nil {
			t.Fatal(err)
		}
	case <-time.After(5 * time.Second):
		// Whoever writes lets the reader go.
		if f, err := os.OpenFile("pipe.yaml", os.O_RDWR, 0); err == nil {
			defer f.Close()
		}
		t.Fatal("a named pipe among the endpoints holds up List")
	}
	for name, want := range map[string]string{
		"pipe": "a named pipe", "tube": "a named pipe", "folder": "a directory", "socket": "a socket", "null": "a device",
	} {
		_, err := s.Get(t.Context(), rollout.Key{Namespace: "models", Name: name})
		var file *local.FileError
		if !errors.As(err, &file) || rollout.ReasonOf(err) != rollout.ReasonInvalid ||
			!strings.Contains(err.Error(), name+".yaml") || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "regular file in its place") {
			t.Errorf("%s: got %v, want a refusal that names it as %s", name, err, want)
		}
	}
	// A link to a regular file is read: this one is refused only for the name inside.
	if _, err := s.Get(t.Context(), rollout.Key{Namespace: "models", Name: "link"}); err == nil || strings.Contains(err.Error(), "regular file") {
		t.Errorf("link: got %v, want it read", err)
	}
	if _, err := s.Get(t.Context(), fraud); err != nil {
		t.Errorf("the endpoint beside them: %v", err)
	}
}
