package report_test

import (
	"context"
	"encoding/xml"
	"errors"
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

func TestPicturesAreForWhoeverHasTheComment(t *testing.T) {
	all := lives(t)
	pictures := &report.Pictures{URL: "https://sluice.example", Keys: [][]byte{[]byte("new"), []byte("old")}}
	older := &report.Pictures{URL: "https://sluice.example", Keys: [][]byte{[]byte("old")}}
	stranger := &report.Pictures{URL: "https://sluice.example", Keys: [][]byte{[]byte("guessed")}}
	h := pictures.Handler(endpoints{fraud: all["running"]})
	get := func(method, address string) *httptest.ResponseRecorder {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(method, strings.TrimPrefix(address, "https://sluice.example"), nil))
		return w
	}
	picture := report.Picture(all["running"], mine)
	at := pictures.Address(fraud, mine, picture)
	for _, address := range []string{at, older.Address(fraud, mine, picture), pictures.Address(fraud, mine, "older")} {
		w := get(http.MethodGet, address)
		if w.Code != http.StatusOK || w.Body.String() != picture || w.Header().Get("Content-Type") != "image/svg+xml" || !strings.Contains(w.Header().Get("Content-Security-Policy"), "default-src 'none'") {
			t.Errorf("%s: %d %v", address, w.Code, w.Header())
		}
	}
	if report.Picture(all["worse"], mine) == picture || pictures.Address(fraud, mine, "a") == pictures.Address(fraud, mine, "b") {
		t.Error("another picture has the same address, by which GitHub keeps it")
	}
	none := mine
	none.Number++
	for _, address := range []string{
		stranger.Address(fraud, mine, picture), pictures.Address(fraud, none, picture), pictures.Address(rollout.Key{Namespace: "models", Name: "gone"}, mine, picture),
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
