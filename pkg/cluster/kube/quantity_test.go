package kube_test

import (
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/sluice-dev/sluice/rollout"
)

// TestQuantities: the domain, which knows no Kubernetes, takes a quantity if Kubernetes does and it
// has a digit: a lone "." or "+Mi" is 0 to Kubernetes.
func TestQuantities(t *testing.T) {
	numbers := []string{"", "0", "1", "+1", "-1", "1.", ".5", "1.5", ".", "+", "01", "1.2.3", "1e", "0x1", "１", "1_0", "1000000000000000000000"}
	suffixes := []string{"", "n", "u", "m", "k", "K", "M", "G", "T", "P", "E", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei", "ki", "mi", "B", "MB", "e3", "E3", "e-3", "e+3", "e1.5", "e", " ", " Mi", "Mi "}
	for _, n := range numbers {
		for _, suffix := range suffixes {
			text := n + suffix
			if text == "" {
				continue // no request at all
			}
			q, err := resource.ParseQuantity(text)
			theirs := err == nil && q.Sign() >= 0 && text[0] != '-' && strings.ContainsAny(n, "0123456789")
			errs := rollout.ValidateSettings("v", rollout.Settings{Resources: &rollout.Resources{CPU: text}})
			if ours := len(errs) == 0; ours != theirs {
				t.Errorf("%q: Kubernetes says %v (%v), the domain %v", text, theirs, err, ours)
			}
		}
	}
}
