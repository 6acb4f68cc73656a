package cli

import (
	"bytes"
	"context"
	"strings"
	"testing"
	"time"
)

// TestUpRefuses: what could never work is said at once, not by a control plane that ends again and again.
func TestUpRefuses(t *testing.T) {
	for _, tc := range []struct{ page, says string }{
		{"everyone", "use none, loopback, anyone or login"},
		{"login", "SLUICE_PAGE_LOGIN_ISSUER"},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		var out bytes.Buffer
		code := Main(ctx, []string{"up", "--page=" + tc.page, "--router-address=127.0.0.1:0", "--api-address=127.0.0.1:0", "--admin-address=127.0.0.1:0"},
			IO{In: strings.NewReader(""), Out: &out, Err: &out, Env: []string{"HOME=" + t.TempDir(), "SLUICE_STATE=" + t.TempDir()}})
		if code == 0 || ctx.Err() != nil || !strings.Contains(out.String(), tc.says) {
			t.Errorf("--page=%s: code %d: %s", tc.page, code, out.String())
		}
	}
}
