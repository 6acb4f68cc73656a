package access_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/sluice-dev/sluice/pkg/access"
)

func TestKeys(t *testing.T) {
	k, other := access.NewKeys(), access.NewKeys()
	if k.Primary == k.Secondary || k.Primary == other.Primary || len(k.Primary) != 43 {
		t.Fatal("keys are not 256 random bits each")
	}
	h := k.Hashes()
	for _, good := range []string{k.Primary, k.Secondary} {
		if !access.Allows(h, good) {
			t.Error("a key does not open its endpoint")
		}
	}
	for _, bad := range []string{"", other.Primary, k.Primary[1:], k.Primary + "=", strings.ToLower(k.Primary)} {
		if access.Allows(h, bad) {
			t.Errorf("%d characters that are no key open the endpoint", len(bad))
		}
	}
	if access.Allows(nil, k.Primary) || access.Allows(access.Keys{}.Hashes(), "") {
		t.Error("an endpoint without keys is open")
	}
	next, err := k.Regenerate("secondary")
	if err != nil || next.Primary != k.Primary || next.Secondary == k.Secondary {
		t.Errorf("regenerate: %v", err)
	}
	if _, err := k.Regenerate("third"); err == nil {
		t.Error("a third key was regenerated")
	}
}

func TestKeysNeverPrint(t *testing.T) {
	k := access.NewKeys()
	var log bytes.Buffer
	slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "keys", k, "pointer", &k)
	text := log.String() + fmt.Sprint(k) + fmt.Sprintf("%v %+v %#v %s %q", k, k, k, k, k)
	if strings.Contains(text, k.Primary) || strings.Contains(text, k.Secondary) {
		t.Errorf("a key was printed: %s", text)
	}
}

func TestHashText(t *testing.T) {
	h := access.HashOf("key")
	b, err := json.Marshal(h)
	if err != nil {
		t.Fatal(err)
	}
	var back access.Hash
	if err := json.Unmarshal(b, &back); err != nil || back != h {
		t.Errorf("%s came back as %v (%v)", b, back, err)
	}
	for _, bad := range []string{"", "ab", strings.Repeat("a", 66), strings.Repeat("a", 128), strings.Repeat("z", 64)} {
		if err := back.UnmarshalText([]byte(bad)); err == nil {
			t.Errorf("%d characters were accepted", len(bad))
		}
	}
}

func TestBearer(t *testing.T) {
	for header, want := range map[string]string{
		"Bearer abc": "abc", "bearer abc": "abc", "BEARER  abc ": "abc", "abc": "", "Basic abc": "", "": "", "Bearer": "", "Bearer ": "",
	} {
		if got := access.Bearer(header); got != want {
			t.Errorf("%q: %q, want %q", header, got, want)
		}
	}
}
