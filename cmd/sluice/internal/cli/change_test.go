package cli

import (
	"bytes"
	"strings"
	"testing"
)

// runCLI runs the command line and returns its exit code and what it printed.
func runCLI(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	code = Main(t.Context(), args, IO{In: strings.NewReader(""), Out: &out, Err: &errs, Env: []string{"HOME=" + t.TempDir(), "SLUICE_STATE=" + t.TempDir()}})
	return code, out.String(), errs.String()
}

// A zero that would be taken for a flag that is not given is refused, with the way out.
func TestUpdateRefusesZeros(t *testing.T) {
	for flag, way := range map[string]string{
		"--slots": "use 1 or more", "--queue-wait-ms": "use 1 for practically no waiting", "--scoring-timeout-ms": "use 1 or more",
		"--target-utilization": "from 1 to 100",
	} {
		if code, _, errs := runCLI(t, "update", "e", "v", flag, "0"); code != exitUsage || !strings.Contains(errs, flag+" 0") || !strings.Contains(errs, way) {
			t.Errorf("%s: exit code %d, %s", flag, code, errs)
		}
	}
}
