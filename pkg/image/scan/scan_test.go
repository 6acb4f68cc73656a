//go:build unix

package scan_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sluice-dev/sluice/pkg/image/scan"
	"github.com/sluice-dev/sluice/rollout"
)

const img = "registry.example/models/fraud@sha256:11"

func run(ctx context.Context, args ...string) (out, errs string, err error) {
	var o, e bytes.Buffer
	err = scan.Command(args).Run(ctx, img, scan.Streams{Out: &o, Err: &e, Env: os.Environ()})
	return o.String(), e.String(), err
}

func TestTheScannerIsToldTheImage(t *testing.T) {
	out, errs, err := run(t.Context(), "sh", "-c", `echo "$1 $SLUICE_IMAGE"; echo heard >&2`, "x", "--image={image}")
	if err != nil || out != "--image="+img+" "+img+"\n" || errs != "heard\n" {
		t.Errorf("%q, %q, %v", out, errs, err)
	}
}

func TestWhatItObjectsTo(t *testing.T) {
	for script, c := range map[string]struct {
		reason rollout.Reason
		says   string
	}{
		"echo CVE-1; exit 7": {rollout.ReasonScanFailed, "the scanner sh ended with exit code 7 for " + img},
		"kill -9 $$":         {rollout.ReasonScanFailed, "did not finish"},
	} {
		_, _, err := run(t.Context(), "sh", "-c", script)
		if rollout.ReasonOf(err) != c.reason || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", script, err)
		}
	}
	var refusal *rollout.Error
	if _, _, err := run(t.Context(), "no-such-scanner"); !errors.As(err, &refusal) || refusal.Reason != rollout.ReasonNoScanner || !strings.Contains(refusal.Message, "no-such-scanner") || refusal.Hint == "" {
		t.Errorf("no scanner: %v", err)
	}
}

func TestInterrupt(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	began := time.Now()
	_, errs, err := run(ctx, "sh", "-c", "trap 'echo ends >&2; exit 1' INT; while :; do sleep 0.02; done")
	if !errors.Is(err, context.DeadlineExceeded) || errs != "ends\n" || time.Since(began) > 4*time.Second {
		t.Errorf("after %s: %v, and it says %q", time.Since(began), err, errs)
	}
}

func TestParse(t *testing.T) {
	c, err := scan.Parse("--scan", `trivy image --severity 'HIGH, CRITICAL' {image}`)
	if err != nil || !slices.Equal(c, []string{"trivy", "image", "--severity", "HIGH, CRITICAL", "{image}"}) {
		t.Errorf("%q, %v", c, err)
	}
	for _, line := range []string{"", "  ", "trivy 'x"} {
		if _, err := scan.Parse("--scan", line); rollout.ReasonOf(err) != rollout.ReasonInvalid {
			t.Errorf("%q: %v", line, err)
		}
	}
}
