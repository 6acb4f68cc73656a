//go:build unix

package cli

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/sluice-dev/sluice/pkg/cluster"
	"github.com/sluice-dev/sluice/pkg/cluster/memory"
	"github.com/sluice-dev/sluice/pkg/deploy"
	"github.com/sluice-dev/sluice/pkg/project"
	"github.com/sluice-dev/sluice/rollout"
)

func TestScan(t *testing.T) {
	host := imageRegistry(t)
	tag, err := name.NewTag(host + "/base:1")
	if err != nil {
		t.Fatal(err)
	}
	d, err := remote.Head(tag)
	if err != nil {
		t.Fatal(err)
	}
	fixed := tag.Digest(d.Digest.String()).Name()
	code, out, errs := runCLI(t, "scan", tag.Name(), "--", "sh", "-c", `echo "$1 $SLUICE_IMAGE"`, "x", "{image}")
	if code != exitOK || out != fixed+" "+fixed+"\n" || !strings.Contains(errs, "sh does not object to "+fixed) {
		t.Errorf("%d, %q, %q", code, out, errs)
	}
	for ref, says := range map[string]string{host + "/nothing:1": "base_image_missing", "Not an image": "is not the name of an image", "bob:s3cret@" + host + "/base:1": "has credentials in it"} {
		if code, out, errs := runCLI(t, "scan", ref, "--", "sh", "-c", "echo seen"); code != exitRefused || out != "" || !strings.Contains(errs, says) || strings.Contains(errs, "s3cret") {
			t.Errorf("%s: %d, %q, %q", ref, code, out, errs)
		}
	}
	if code, out, errs = runCLI(t, "-o", "json", "scan", fixed, "--", "sh", "-c", "echo CVE; exit 3"); code != exitFailed || out != "CVE\n" || !strings.Contains(errs, `"reasonCode":"scan_failed"`) || !strings.Contains(errs, "exit code 3") {
		t.Errorf("%d, %q, %q", code, out, errs)
	}
	if code, _, errs = runCLI(t, "scan", fixed, "--", "no-such-scanner", "{image}"); code != exitFailed || !strings.Contains(errs, "no_scanner") || !strings.Contains(errs, "install it") {
		t.Errorf("%d, %q", code, errs)
	}
	for _, args := range [][]string{{"scan"}, {"scan", "x"}, {"scan", "x", "sh"}, {"scan", "x", "--"}, {"scan", "x", "y", "--", "sh"}} {
		if code, _, errs := runCLI(t, args...); code != exitUsage {
			t.Errorf("%v: %d, %s", args, code, errs)
		}
	}
	if code, _, errs := runCLI(t, "deploy", tree(t), "--scan", "true"); code != exitUsage || !strings.Contains(errs, "--target kubernetes") {
		t.Errorf("on this machine: %d, %s", code, errs)
	}
}

// TestScanVariable: a scanner that only the environment names is for images, and keeps no deploy from this machine.
func TestScanVariable(t *testing.T) {
	a := &app{target: "local"}
	if admit, err := a.admit(admission{scanner: "true"}); err != nil || admit != nil {
		t.Errorf("the variable: %v", err)
	}
	if _, err := a.admit(admission{scanner: "true", asked: true}); exitCode(err) != exitUsage {
		t.Errorf("the flag: %v", err)
	}
}

// clusterApp deploys to a store in memory, with images in a registry.
func clusterApp(t *testing.T) (a *app, store cluster.Store, out *bytes.Buffer) {
	t.Helper()
	host := imageRegistry(t)
	t.Setenv("HOME", t.TempDir())
	m := memory.NewStore()
	out = &bytes.Buffer{}
	a = &app{io: IO{Out: out, Err: out, Env: os.Environ()}, target: "kubernetes", namespace: "models", output: "table", log: slog.New(slog.DiscardHandler)}
	a.images = registryFlags{registry: host + "/models", pullRegistry: "nodes-only:5000", baseImage: host + "/base:1", runnerImage: host + "/runner:1"}
	a.open = func(context.Context) (*system, error) {
		return &system{Store: m, Keys: memory.NewKeys(), Shipper: func(src project.Source, p deploy.Progress) deploy.Shipper { return a.imageShipper(src, p) }}, nil
	}
	return a, m, out
}

// TestDeployScans: the scanner sees the image where it is reached from here, and an objection keeps the version out.
func TestDeployScans(t *testing.T) {
	a, store, out := clusterApp(t)
	dir := imageProject(t)
	err := a.deploy(t.Context(), deploy.Options{Dir: dir}, admission{scanner: "sh -c 'echo CVE-1 in $1; exit 7' x {image}"})
	if rollout.ReasonOf(err) != rollout.ReasonScanFailed || exitCode(err) != exitFailed || !strings.Contains(err.Error(), "exit code 7") {
		t.Errorf("got %v", err)
	}
	_, seen, found := strings.Cut(out.String(), "CVE-1 in ")
	seen, _, _ = strings.Cut(seen, "\n")
	ref, perr := name.NewDigest(seen)
	if !found || perr != nil || !strings.HasPrefix(seen, a.images.registry+"/echo@") {
		t.Fatalf("it scanned %q (%v)", seen, perr)
	}
	if _, err := remote.Head(ref); err != nil {
		t.Errorf("what it scanned is not there: %v", err)
	}
	key := rollout.Key{Namespace: "models", Name: "echo"}
	if e, err := store.Get(t.Context(), key); !errors.Is(err, cluster.ErrNotFound) {
		t.Errorf("the endpoint is %+v (%v), want none", e, err)
	}
	if err := a.deploy(t.Context(), deploy.Options{Dir: dir}, admission{scanner: "true"}); err != nil {
		t.Fatal(err)
	}
	if e, err := store.Get(t.Context(), key); err != nil || len(e.Spec.Versions) != 1 || !strings.HasPrefix(e.Spec.Versions[0].Image, "nodes-only:5000/models/echo@") {
		t.Errorf("the endpoint is %+v (%v)", e, err)
	}
}
