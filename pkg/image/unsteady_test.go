package image_test

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/validate"

	"github.com/sluice-dev/sluice/rollout"
)

// unsteady answers the first request of each method and kind of path by failing, or all of them.
type unsteady struct {
	inner http.Handler
	fail  func(http.ResponseWriter)
	all   bool

	mu   sync.Mutex
	seen map[string]bool
}

func (u *unsteady) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	kind := r.Method
	for _, part := range []string{"/blobs/uploads/", "/blobs/", "/manifests/"} {
		if strings.Contains(r.URL.Path, part) {
			kind += part
			break
		}
	}
	u.mu.Lock()
	fails := u.all || !u.seen[kind]
	u.seen[kind] = true
	u.mu.Unlock()
	if fails && (r.URL.Path != "/v2/" || !u.all) {
		_, _ = io.Copy(io.Discard, r.Body)
		u.fail(w)
		return
	}
	u.inner.ServeHTTP(w, r)
}

// TestUnsteadyRegistries: what fails once is tried again, whatever it is; what goes on failing is an error that names the
// registry, and leaves no tag.
func TestUnsteadyRegistries(t *testing.T) {
	t.Parallel()
	status := func(code int) func(http.ResponseWriter) {
		return func(w http.ResponseWriter) { w.WriteHeader(code) }
	}
	for what, fail := range map[string]func(http.ResponseWriter){
		"503": status(503), "500": status(500), "429": status(429), "502": status(502),
		"cut": func(http.ResponseWriter) { panic(http.ErrAbortHandler) },
	} {
		for _, all := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, always %v", what, all), func(t *testing.T) {
				t.Parallel()
				r := newRegistry(t)
				s := r.small(t)
				u := &unsteady{inner: r.handler, fail: fail, all: all, seen: map[string]bool{}}
				server := httptest.NewServer(u)
				defer server.Close()
				server.Config.ErrorLog = nil
				host := strings.TrimPrefix(server.URL, "http://")
				s.Registry = host + "/models"
				if !all {
					s.BaseImage = strings.Replace(s.BaseImage, r.host, host, 1) // is read through it, too
				}
				dir := project(t)
				weights(t, filepath.Join(dir, "model/a.bin"), 65*unit, 1)
				out, err := s.Ship(t.Context(), dir)
				if all {
					if rollout.ReasonOf(err) != rollout.ReasonRegistryUnreachable || !strings.Contains(err.Error(), host) {
						t.Errorf("%v, want registry_unreachable", err)
					}
					if tags := r.tags(t, "models/fraud"); len(tags) > 0 {
						t.Errorf("tags %q", tags)
					}
					return
				}
				if err != nil {
					t.Fatal(err)
				}
				ref, err := name.NewDigest(strings.Replace(out.Image, host, r.host, 1))
				if err != nil {
					t.Fatal(err)
				}
				img, err := remote.Image(ref)
				if err != nil {
					t.Fatal(err)
				}
				if err := validate.Image(img, validate.Fast); err != nil {
					t.Error(err)
				}
				if tags := r.tags(t, "models/fraud"); len(tags) != 1 {
					t.Errorf("tags %q", tags)
				}
				if len(u.seen) < 6 {
					t.Errorf("only %v was asked", u.seen)
				}
			})
		}
	}
}
