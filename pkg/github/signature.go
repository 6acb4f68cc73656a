// Package github is Sluice's side of GitHub: the intake of webhooks and the
// client of its API.
package github

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"iter"
	"slices"
	"strings"
)

// SignatureHeader has the HMAC-SHA256 of a delivery's body. GitHub also sends
// X-Hub-Signature with SHA-1, which is never looked at.
const SignatureHeader = "X-Hub-Signature-256"

const signaturePrefix = "sha256="

// Sign is the value of SignatureHeader for a body, as GitHub makes it
// (docs.github.com, "Validating webhook deliveries").
func Sign(secret, body []byte) string {
	return signaturePrefix + hex.EncodeToString(sum(secret, slices.Values([][]byte{body})))
}

// Verify says whether header is the signature of body under one of the secrets.
// An empty secret matches nothing. The time it takes does not depend on which
// secret matches, nor on how much of a wrong signature is right.
func Verify(secrets [][]byte, header string, body []byte) bool {
	return verify(secrets, header, slices.Values([][]byte{body}))
}

// verify a body that comes in parts.
func verify(secrets [][]byte, header string, body iter.Seq[[]byte]) bool {
	digits, ok := strings.CutPrefix(header, signaturePrefix)
	if !ok {
		return false
	}
	got, err := hex.DecodeString(digits)
	if err != nil || len(got) != sha256.Size {
		return false
	}
	match := false
	for _, secret := range secrets {
		if len(secret) == 0 {
			continue
		}
		equal := hmac.Equal(got, sum(secret, body))
		match = match || equal
	}
	return match
}

func sum(secret []byte, body iter.Seq[[]byte]) []byte {
	mac := hmac.New(sha256.New, secret)
	for part := range body {
		mac.Write(part)
	}
	return mac.Sum(nil)
}
