package report_test

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-dev/sluice/pkg/report"
	"github.com/sluice-dev/sluice/rollout"
)

func TestGoldenPictures(t *testing.T) {
	for name, e := range lives(t) {
		got := report.Picture(e, mine)
		path := filepath.Join("testdata", "pictures", name+".svg")
		if *update && got != "" {
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(path)
		if err != nil && got != "" {
			t.Fatal(err)
		}
		if diff := cmp.Diff(string(want), got); diff != "" {
			t.Errorf("%s (-want +got); if the new one is right, run the test with -update:\n%s", name, diff)
		}
		for d := xml.NewDecoder(strings.NewReader(got)); ; {
			if _, err := d.Token(); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				t.Fatalf("%s is no XML: %v", name, err)
			}
		}
		if strings.Contains(got, "evil") {
			t.Errorf("%s has what people wrote:\n%s", name, got)
		}
	}
}

type endpoints map[rollout.Key]*rollout.Endpoint

func (s endpoints) Get(_ context.Context, key rollout.Key) (*rollout.Endpoint, error) {
	if e := s[key]; e != nil {
		return e, nil
	}
	return nil, errors.New("there is none")
}

// pictures under a key of the servers'.
func pictures(key string) *report.Pictures {
	p, err := report.NewPictures("https://sluice.example/", []byte(key))
	if err != nil {
		panic(err)
	}
	return p
}

// TestPicturesNeedAKey of the servers', which signs no address itself; without one there are none.
func TestPicturesNeedAKey(t *testing.T) {
	for _, key := range []string{"", "a secret that somebody chose"} {
		_, err := report.NewPictures("https://sluice.example", []byte(key))
		var e *rollout.Error
		if !errors.As(err, &e) || e.Field != "api-session-key" || !strings.Contains(e.Hint, "SLUICE_API_SESSION_KEY") || key != "" && strings.Contains(err.Error(), key) {
			t.Errorf("%q: %v", key, err)
		}
	}
	e := lives(t)["running"]
	plain := report.Comment(e, mine, report.Options{}, "")
	for _, none := range []*report.Pictures{nil, {}} {
		if got := report.Comment(e, mine, report.Options{Pictures: none}, ""); got != plain {
			t.Errorf("%+v: %s", none, got)
		}
	}
	// What anybody can sign is not shown.
	signed := func(key []byte) string {
		m := hmac.New(sha256.New, key)
		fmt.Fprintf(m, "sluice picture\x00models\x00fraud\x00%d\x00%d", mine.Repository, mine.Number)
		return fmt.Sprintf("/pictures/models/fraud/%d/%d/%x.svg", mine.Repository, mine.Number, m.Sum(nil)[:16])
	}
	key := strings.Repeat("k", 32)
	for of, tc := range map[string]struct {
		p  *report.Pictures
		by []byte
	}{"the zero value": {&report.Pictures{}, nil}, "the servers' key": {pictures(key), []byte(key)}} {
		w := httptest.NewRecorder()
		if tc.p.Handler(endpoints{fraud: e}).ServeHTTP(w, httptest.NewRequest(http.MethodGet, signed(tc.by), nil)); w.Code != http.StatusNotFound {
			t.Errorf("%s: %d", of, w.Code)
		}
	}
}

func TestPicturesAreForWhoeverHasTheComment(t *testing.T) {
	all := lives(t)
	key := strings.Repeat("k", 32)
	mines, stranger := pictures(key), pictures(strings.Repeat("g", 32))
	h := mines.Handler(endpoints{fraud: all["running"]})
	get := func(method, address string) *httptest.ResponseRecorder {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(method, strings.TrimPrefix(address, "https://sluice.example"), nil))
		return w
	}
	picture := report.Picture(all["running"], mine)
	at := mines.Address(fraud, mine, picture)
	for _, address := range []string{at, pictures(key).Address(fraud, mine, picture), mines.Address(fraud, mine, "older")} {
		w := get(http.MethodGet, address)
		if w.Code != http.StatusOK || w.Body.String() != picture || w.Header().Get("Content-Type") != "image/svg+xml" || !strings.Contains(w.Header().Get("Content-Security-Policy"), "default-src 'none'") {
			t.Errorf("%s: %d %v", address, w.Code, w.Header())
		}
	}
	if report.Picture(all["worse"], mine) == picture || mines.Address(fraud, mine, "a") == mines.Address(fraud, mine, "b") {
		t.Error("another picture has the same address, by which GitHub keeps it")
	}
	none := mine
	none.Number++
	for _, address := range []string{
		stranger.Address(fraud, mine, picture), mines.Address(fraud, none, picture), mines.Address(rollout.Key{Namespace: "models", Name: "gone"}, mine, picture),
		strings.Replace(at, "/41/", "/42/", 1), strings.Replace(at, ".svg", ".png", 1), "https://sluice.example/pictures/", strings.Replace(at, "/41/", "/99999999999999999999/", 1),
	} {
		if w := get(http.MethodGet, address); w.Code != http.StatusNotFound {
			t.Errorf("%s: %d", address, w.Code)
		}
	}
	if w := get(http.MethodPost, at); w.Code == http.StatusOK {
		t.Error("a picture is posted to")
	}
}
