package cli

import (
	"context"
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestRegistry: it says where it is, serves until it is interrupted, and keeps to this machine.
func TestRegistry(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	state := t.TempDir()
	out, errs := &watchedBuffer{text: "}"}, &watchedBuffer{}
	said := make(chan struct{})
	out.seen = func() { close(said) }
	ended := make(chan int, 1)
	go func() {
		ended <- Main(ctx, []string{"registry", "--listen", "127.0.0.1:0", "-o", "json"}, IO{In: strings.NewReader(""), Out: out, Err: errs, Env: []string{"SLUICE_STATE=" + state}})
	}()
	select {
	case <-said:
	case code := <-ended:
		t.Fatalf("exit code %d: %s", code, errs)
	}
	var at struct{ Address, Dir string }
	if err := json.Unmarshal([]byte(out.String()), &at); err != nil {
		t.Fatal(err)
	}
	resp, err := http.Get("http://" + at.Address + "/v2/")
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Error(resp, err)
	}
	if _, err := os.Stat(at.Dir); err != nil || at.Dir != filepath.Join(state, "registry") {
		t.Errorf("images are in %s (%v)", at.Dir, err)
	}
	if code, _, errs := runCLI(t, "registry", "--listen", "127.0.0.1:0", "--dir", at.Dir); code != exitConflict || !strings.Contains(errs, "another process") {
		t.Errorf("a second one: %d, %s", code, errs)
	}
	if code, _, errs := runCLI(t, "registry", "--listen", "0.0.0.0:0"); code != exitRefused || !strings.Contains(errs, "--anywhere") {
		t.Errorf("on all addresses: %d, %s", code, errs)
	}
	cancel()
	if code := <-ended; code != exitOK {
		t.Errorf("exit code %d after the interrupt: %s", code, errs)
	}
}
