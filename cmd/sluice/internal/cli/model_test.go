package cli

import (
	"encoding/json"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/registry"
)

func TestModelPush(t *testing.T) {
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	server := httptest.NewServer(registry.New())
	defer server.Close()
	host := strings.TrimPrefix(server.URL, "http://")
	file := filepath.Join(t.TempDir(), "weights.bin")
	if err := os.WriteFile(file, []byte("w"), 0o644); err != nil {
		t.Fatal(err)
	}
	code, out, errs := runCLI(t, "model", "push", file, "oci://"+host+"/models/fraud:3")
	if code != 0 || !strings.Contains(out, `uri: "oci://`+host+"/models/fraud@sha256:") || strings.Contains(out, "already") {
		t.Fatalf("%d: %s%s", code, out, errs)
	}
	code, out, errs = runCLI(t, "model", "push", file, "oci://"+host+"/models/fraud:3", "-o", "json")
	var pushed struct {
		Ref   string
		Known bool
	}
	if err := json.Unmarshal([]byte(out), &pushed); code != 0 || err != nil || !pushed.Known || !strings.HasPrefix(pushed.Ref, host) {
		t.Errorf("%d: %s%s (%v)", code, out, errs, err)
	}
	for _, ref := range []string{"oci://bob:s3cret@" + host + "/models/fraud:3", "https://bob:s3cret@" + host + "/m:1"} {
		if code, _, errs := runCLI(t, "model", "push", file, ref); code == 0 || strings.Contains(errs, "s3cret") {
			t.Errorf("%s: %d %s", ref, code, errs)
		}
	}
	for _, args := range [][]string{{file, host + "/models/fraud:3"}, {file}, {}} {
		if code, _, errs := runCLI(t, append([]string{"model", "push"}, args...)...); code != exitUsage || errs == "" {
			t.Errorf("%q: %d %s", args, code, errs)
		}
	}
	if code, _, errs := runCLI(t, "model", "push", filepath.Join(t.TempDir(), "none"), "oci://"+host+"/m:1"); code == 0 || !strings.Contains(errs, "name a file or directory") {
		t.Errorf("%d %s", code, errs)
	}
}
