//go:build unix

package sbom_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sluice-dev/sluice/pkg/image/sbom"
	"github.com/sluice-dev/sluice/rollout"
)

// program that the script is, in a directory of its own.
func program(t *testing.T, script string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), sbom.Program)
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+script+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestFind(t *testing.T) {
	beside, onPath := program(t, "true"), program(t, "true")
	t.Setenv("PATH", filepath.Dir(onPath))
	if got, err := sbom.Find(filepath.Join(filepath.Dir(beside), "sluice")); err != nil || got != beside {
		t.Errorf("found %s (%v), want the one beside", got, err)
	}
	if got, err := sbom.Find(filepath.Join(t.TempDir(), "sluice")); err != nil || got != onPath {
		t.Errorf("found %s (%v), want the one on the PATH", got, err)
	}
	t.Setenv("PATH", t.TempDir())
	if _, err := sbom.Find(""); rollout.ReasonOf(err) != rollout.ReasonSBOMFailed || !strings.Contains(err.Error(), "make sbom") {
		t.Errorf("found none: %v", err)
	}
}

func TestMake(t *testing.T) {
	got, err := sbom.Make(t.Context(), program(t, `echo "{\"args\": \"$*\"}"`), "host/x@sha256:1", []string{"a:1", "b:2"})
	if err != nil || strings.TrimSpace(string(got)) != `{"args": "--insecure a:1 --insecure b:2 host/x@sha256:1"}` {
		t.Errorf("%s, %v", got, err)
	}
	for script, says := range map[string]string{"echo oh no >&2; exit 1": "oh no", "echo half": "no JSON"} {
		if _, err := sbom.Make(t.Context(), program(t, script), "host/x@sha256:1", nil); rollout.ReasonOf(err) != rollout.ReasonSBOMFailed || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v", script, err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	mark := filepath.Join(t.TempDir(), "tidy")
	_, err = sbom.Make(ctx, program(t, "trap 'touch "+mark+"; exit 1' INT; while :; do sleep 0.02; done"), "x", nil)
	if _, serr := os.Stat(mark); !errors.Is(err, context.DeadlineExceeded) || serr != nil {
		t.Errorf("interrupted: %v, and it could not tidy up: %v", err, serr)
	}
}
