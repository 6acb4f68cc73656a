package github_test

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha1"
	"encoding/hex"
	"slices"
	"strings"
	"testing"

	"github.com/sluice-dev/sluice/pkg/github"
)

// The example of GitHub's documentation, "Validating webhook deliveries".
const (
	documentedSecret    = "It's a Secret to Everybody"
	documentedBody      = "Hello, World!"
	documentedSignature = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"
)

func sha1Signature(secret, body string) string {
	m := hmac.New(sha1.New, []byte(secret))
	m.Write([]byte(body))
	return "sha1=" + hex.EncodeToString(m.Sum(nil))
}

func TestVerify(t *testing.T) {
	if got := github.Sign([]byte(documentedSecret), []byte(documentedBody)); got != documentedSignature {
		t.Fatalf("Sign = %s, GitHub documents %s", got, documentedSignature)
	}
	good := func(secret string) string { return github.Sign([]byte(secret), []byte(documentedBody)) }
	digits := strings.TrimPrefix(documentedSignature, "sha256=")
	for _, tc := range []struct {
		name    string
		secrets []string
		header  string
		want    bool
	}{
		{"documented", []string{documentedSecret}, documentedSignature, true},
		{"rotated: the old one", []string{"new", "old"}, good("old"), true},
		{"rotated: the new one", []string{"new", "old"}, good("new"), true},
		{"retired", []string{"new"}, good("old"), false},
		{"another body", []string{documentedSecret}, github.Sign([]byte(documentedSecret), []byte("Hello")), false},
		{"no secret", nil, documentedSignature, false},
		{"an empty secret", []string{""}, good(""), false},
		{"an empty secret beside a good one", []string{"", documentedSecret}, good(""), false},
		{"none", []string{documentedSecret}, "", false},
		{"SHA-1", []string{documentedSecret}, sha1Signature(documentedSecret, documentedBody), false},
		{"SHA-1 as SHA-256", []string{documentedSecret}, "sha256=" + strings.TrimPrefix(sha1Signature(documentedSecret, documentedBody), "sha1="), false},
		{"SHA-256 as SHA-1", []string{documentedSecret}, "sha1=" + digits, false},
		{"no prefix", []string{documentedSecret}, digits, false},
		{"cut", []string{documentedSecret}, documentedSignature[:40], false},
		{"longer", []string{documentedSecret}, documentedSignature + "00", false},
		{"not hexadecimal", []string{documentedSecret}, "sha256=" + strings.Repeat("z", 64), false},
		{"one digit off", []string{documentedSecret}, documentedSignature[:len(documentedSignature)-1] + "8", false},
		{"space before", []string{documentedSecret}, " " + documentedSignature, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var secrets [][]byte
			for _, s := range tc.secrets {
				secrets = append(secrets, []byte(s))
			}
			if got := github.Verify(secrets, tc.header, []byte(documentedBody)); got != tc.want {
				t.Errorf("got %v, want %v", got, tc.want)
			}
		})
	}
}

func FuzzSignature(f *testing.F) {
	f.Add([]byte(documentedSecret), documentedSignature, []byte(documentedBody))
	f.Add([]byte(""), "", []byte(""))
	f.Add([]byte("x"), "sha256=", []byte("{}"))
	f.Add([]byte("x"), sha1Signature("x", "{}"), []byte("{}"))
	f.Add([]byte("x"), strings.ToUpper(documentedSignature), []byte(documentedBody))
	f.Fuzz(func(t *testing.T, secret []byte, header string, body []byte) {
		right := github.Sign(secret, body)
		secrets := [][]byte{[]byte("another"), secret}
		if got := github.Verify([][]byte{secret}, header, body); got && (len(secret) == 0 || !strings.EqualFold(header, right) || !strings.HasPrefix(header, "sha256=")) {
			t.Fatalf("%q passes as the signature of %q under %q", header, body, secret)
		}
		if got := github.Verify(secrets, right, body); got != (len(secret) > 0) {
			t.Fatalf("the right signature of %q under %q: %v", body, secret, got)
		}
		for _, other := range [][]byte{append(slices.Clone(body), 0), bytes.TrimSuffix(body, body[max(0, len(body)-1):])} {
			if !bytes.Equal(other, body) && github.Verify(secrets, right, other) {
				t.Fatalf("the signature of %q passes for %q", body, other)
			}
		}
	})
}
