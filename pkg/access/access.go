// Package access makes and checks the keys of endpoints.
package access

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"log/slog"
	"strings"
)

// Keys of an endpoint. Both open it, so that one can be replaced while clients
// move to the other. They never print: String and LogValue hide them.
type Keys struct {
	Primary   string `json:"primary"`
	Secondary string `json:"secondary"`
}

// NewKeys makes two keys of 256 random bits each.
func NewKeys() Keys { return Keys{Primary: newKey(), Secondary: newKey()} }

func newKey() string {
	var b [32]byte
	rand.Read(b[:]) // never fails: crypto/rand crashes the program instead
	return base64.RawURLEncoding.EncodeToString(b[:])
}

// Regenerate replaces one key; which is "primary" or "secondary".
func (k Keys) Regenerate(which string) (Keys, error) {
	switch which {
	case "primary":
		k.Primary = newKey()
	case "secondary":
		k.Secondary = newKey()
	default:
		return Keys{}, fmt.Errorf("regenerate key %q: use primary or secondary", which)
	}
	return k, nil
}

func (Keys) String() string { return "[hidden]" }

// GoString hides the keys from %#v too.
func (Keys) GoString() string { return "[hidden]" }

// LogValue hides the keys from logs.
func (Keys) LogValue() slog.Value { return slog.StringValue("[hidden]") }

// Hashes of both keys.
func (k Keys) Hashes() []Hash {
	var out []Hash
	for _, s := range []string{k.Primary, k.Secondary} {
		if s != "" {
			out = append(out, HashOf(s))
		}
	}
	return out
}

// Hash is the SHA-256 of a key: 256 random bits need no salt and no slow hash.
type Hash [sha256.Size]byte

// HashOf a key.
func HashOf(key string) Hash { return sha256.Sum256([]byte(key)) }

// MarshalText writes hexadecimal.
func (h Hash) MarshalText() ([]byte, error) { return []byte(hex.EncodeToString(h[:])), nil }

// UnmarshalText reads hexadecimal.
func (h *Hash) UnmarshalText(b []byte) error {
	if len(b) != hex.EncodedLen(len(h)) {
		return fmt.Errorf("parse key hash: %d characters are not a SHA-256", len(b))
	}
	if _, err := hex.Decode(h[:], b); err != nil {
		return fmt.Errorf("parse key hash: %w", err)
	}
	return nil
}

// Allows says whether key is one of those hashed. Its time does not depend on
// which one matches, nor on how much of it does.
func Allows(hashes []Hash, key string) bool {
	got, ok := HashOf(key), 0
	for i := range hashes {
		ok |= subtle.ConstantTimeCompare(got[:], hashes[i][:])
	}
	return ok == 1
}

// Bearer is the key in an Authorization header (RFC 6750 section 2.1), or "".
func Bearer(header string) string {
	scheme, key, found := strings.Cut(header, " ")
	if !found || !strings.EqualFold(scheme, "Bearer") {
		return ""
	}
	return strings.TrimSpace(key)
}
