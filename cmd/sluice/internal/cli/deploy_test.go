package cli

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// watchedBuffer calls seen, once, when a text has been written.
type watchedBuffer struct {
	mu   sync.Mutex
	b    bytes.Buffer
	text string
	seen func()
}

func (w *watchedBuffer) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	n, err := w.b.Write(p)
	if w.seen != nil && strings.Contains(w.b.String(), w.text) {
		w.seen()
		w.seen = nil
	}
	return n, err
}

func (w *watchedBuffer) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.b.String()
}

// TestInterruptedDeploySaysWhatIsLeft: what a signal does to the context ends a waiting deploy
// with an exit code other than 0, and says what to type.
func TestInterruptedDeploySaysWhatIsLeft(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"sluice.yaml": "apiVersion: sluice.dev/v1alpha1\nkind: Project\nendpoint: echo\nscoring: {entryScript: score.py}\n",
		"score.py":    "def init(): pass\ndef run(data): return data\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	env := []string{"HOME=" + t.TempDir(), "SLUICE_STATE=" + t.TempDir()}
	run := func(ctx context.Context, out *watchedBuffer, args ...string) int {
		return Main(ctx, args, IO{In: strings.NewReader(""), Out: out, Err: out, Env: env})
	}
	out := &watchedBuffer{}
	if code := run(t.Context(), out, "deploy", dir, "--version", "a", "--timeout", "0"); code != exitOK {
		t.Fatalf("exit code %d: %s", code, out)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	out = &watchedBuffer{text: "waiting for b", seen: cancel}
	if code := run(ctx, out, "deploy", dir, "--version", "b"); code != exitFailed {
		t.Errorf("exit code %d, want %d", code, exitFailed)
	}
	if s := out.String(); !strings.Contains(s, "b is left untyped at 0 per cent") || !strings.Contains(s, "`sluice delete echo b`") {
		t.Errorf("it says %q, want what is left and what to type", s)
	}
	out = &watchedBuffer{}
	if code := run(t.Context(), out, "delete", "echo", "b"); code != exitOK {
		t.Errorf("deleting what is left: exit code %d: %s", code, out)
	}
}
