package image_test

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-containerregistry/pkg/v1/validate"

	"github.com/sluice-dev/sluice/rollout"
)

// sessions is a registry's part that takes blobs in pieces and says how much it has (OCI distribution specification);
// what is whole goes to the registry behind it. hurt may answer a request instead, and says so.
type sessions struct {
	inner http.Handler
	hurt  func(s *sessions, w http.ResponseWriter, r *http.Request) bool

	mu      sync.Mutex
	open    map[string]*bytes.Buffer
	n       int
	patches int
	// received bytes of pieces, whole or not.
	received int64
	keep     bool // what came of a piece that broke
	// answer to a piece that made what is there grow, if not the usual one.
	answer func(w http.ResponseWriter, was, is int)
}

func (s *sessions) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if s.hurt != nil && s.hurt(s, w, r) {
		return
	}
	s.serve(w, r)
}

func (s *sessions) serve(w http.ResponseWriter, r *http.Request) {
	repo, id, ok := strings.Cut(r.URL.Path, "/blobs/uploads/")
	if !ok || id == "" && (r.URL.Query().Has("mount") || r.URL.Query().Has("digest")) {
		s.inner.ServeHTTP(w, r)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	at := func(status int) {
		w.Header().Set("Location", repo+"/blobs/uploads/"+id)
		if n := s.open[id].Len(); n > 0 {
			w.Header().Set("Range", fmt.Sprintf("0-%d", n-1))
		}
		w.WriteHeader(status)
	}
	if r.Method == http.MethodPost {
		s.n++
		id = fmt.Sprint(s.n)
		s.open[id] = &bytes.Buffer{}
		at(http.StatusAccepted)
		return
	}
	b := s.open[id]
	if b == nil {
		http.Error(w, `{"errors":[{"code":"BLOB_UPLOAD_UNKNOWN","message":"gone"}]}`, http.StatusNotFound)
		return
	}
	switch r.Method {
	case http.MethodGet:
		at(http.StatusNoContent)
	case http.MethodPatch:
		s.patches++
		var first, last int64
		if r.Header.Get("Content-Range") != "" {
			if _, err := fmt.Sscanf(r.Header.Get("Content-Range"), "%d-%d", &first, &last); err != nil || first != int64(b.Len()) || r.ContentLength != last-first+1 {
				w.WriteHeader(http.StatusRequestedRangeNotSatisfiable)
				return
			}
		}
		was := b.Len()
		n, err := io.Copy(b, r.Body)
		s.received += n
		if err != nil && !s.keep {
			b.Truncate(was)
		}
		if s.answer != nil {
			w.Header().Set("Location", repo+"/blobs/uploads/"+id)
			s.answer(w, was, b.Len())
			return
		}
		at(http.StatusAccepted)
	case http.MethodPut:
		_, _ = io.Copy(b, r.Body)
		delete(s.open, id)
		put := httptest.NewRequestWithContext(r.Context(), http.MethodPost, repo+"/blobs/uploads/?digest="+r.URL.Query().Get("digest"), b)
		s.inner.ServeHTTP(w, put)
	}
}

// cut breaks the connection behind n bytes of the request's body. The rest never reaches the handler.
func cut(next http.Handler, r *http.Request, n int64) {
	r.Body = io.NopCloser(io.MultiReader(io.LimitReader(r.Body, n), broken{}))
	next.ServeHTTP(httptest.NewRecorder(), r)
	panic(http.ErrAbortHandler)
}

type broken struct{}

func (broken) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

// TestLargeLayersGoOn: whatever breaks on the way, the image arrives, and what was there is not sent again.
func TestLargeLayersGoOn(t *testing.T) {
	t.Parallel()
	dir := project(t)
	const size = 70 * unit
	weights(t, filepath.Join(dir, "model/a.bin"), size, 1)
	nth := func(method string, n int, then func(*sessions, http.ResponseWriter, *http.Request)) func(*sessions, http.ResponseWriter, *http.Request) bool {
		var mu sync.Mutex
		seen := 0
		return func(s *sessions, w http.ResponseWriter, r *http.Request) bool {
			_, id, ok := strings.Cut(r.URL.Path, "/blobs/uploads/")
			if !ok || id == "" || r.Method != method {
				return false
			}
			mu.Lock()
			seen++
			now := seen == n
			mu.Unlock()
			if now {
				then(s, w, r)
			}
			return now
		}
	}
	status := func(code int, header ...string) func(*sessions, http.ResponseWriter, *http.Request) {
		return func(_ *sessions, w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			for i := 0; i < len(header); i += 2 {
				w.Header().Set(header[i], header[i+1])
			}
			w.WriteHeader(code)
		}
	}
	cutAt := func(n int64) func(*sessions, http.ResponseWriter, *http.Request) {
		return func(s *sessions, w http.ResponseWriter, r *http.Request) {
			cut(http.HandlerFunc(s.serve), r, n)
		}
	}
	for name, c := range map[string]struct {
		hurt    func(*sessions, http.ResponseWriter, *http.Request) bool
		keep    bool
		answer  func(w http.ResponseWriter, was, is int)
		extra   int64 // bytes sent beyond the layer's, at most
		patches int   // at least
	}{
		"nothing breaks":               {extra: unit, patches: 5},
		"cut in a piece":               {hurt: nth("PATCH", 3, cutAt(5*unit)), extra: 6 * unit, patches: 6},
		"cut, and what came is kept":   {hurt: nth("PATCH", 2, cutAt(5*unit)), keep: true, extra: unit, patches: 6},
		"unavailable":                  {hurt: nth("PATCH", 2, status(503)), extra: unit, patches: 5},
		"too many requests":            {hurt: nth("PATCH", 4, status(429, "Retry-After", "1")), extra: unit, patches: 5},
		"bad gateway at the end":       {hurt: nth("PUT", 1, status(502)), extra: unit, patches: 5},
		"the session is gone":          {hurt: nth("PATCH", 3, status(404)), extra: unit, patches: 5},
		"201 to pieces":                {answer: func(w http.ResponseWriter, _, _ int) { w.WriteHeader(201) }, extra: unit, patches: 5},
		"says the first piece's range": {answer: func(w http.ResponseWriter, _, _ int) { w.Header().Set("Range", "0-524287"); w.WriteHeader(202) }, extra: unit, patches: 5},
		"says the last piece's range": {answer: func(w http.ResponseWriter, was, is int) {
			w.Header().Set("Range", fmt.Sprintf("%d-%d", was, is-1))
			w.WriteHeader(202)
		}, extra: unit, patches: 5},
		"says the last piece's length": {answer: func(w http.ResponseWriter, was, is int) {
			w.Header().Set("Range", fmt.Sprintf("0-%d", is-was-1))
			w.WriteHeader(202)
		}, extra: unit, patches: 5},
		"the session goes mute": {hurt: func() func(*sessions, http.ResponseWriter, *http.Request) bool {
			ends := nth("PATCH", 3, status(500))
			var mu sync.Mutex
			mute := false
			return func(s *sessions, w http.ResponseWriter, r *http.Request) bool {
				mu.Lock()
				defer mu.Unlock()
				if mute && strings.HasSuffix(r.URL.Path, "/uploads/1") {
					w.WriteHeader(http.StatusInternalServerError)
					return true
				}
				ended := ends(s, w, r)
				mute = mute || ended
				return ended
			}
		}(), extra: 20 * unit, patches: 5},
		"the session makes no sense": {hurt: func() func(*sessions, http.ResponseWriter, *http.Request) bool {
			ends := nth("PATCH", 3, status(500))
			return func(s *sessions, w http.ResponseWriter, r *http.Request) bool {
				if r.Method == http.MethodGet && strings.HasSuffix(r.URL.Path, "/uploads/1") {
					w.Header().Set("Range", "0-99999999999")
					w.WriteHeader(http.StatusNoContent)
					return true
				}
				return ends(s, w, r)
			}
		}(), extra: 20 * unit, patches: 5},
		"the session leads nowhere": {hurt: nth("PATCH", 2, status(202, "Location", "http://127.0.0.1:1/nowhere")), extra: 20 * unit, patches: 5},
		"no second piece": {hurt: func(s *sessions, w http.ResponseWriter, r *http.Request) bool {
			if r.Method == http.MethodPatch && r.Header.Get("Content-Range") != "" && !strings.HasPrefix(r.Header.Get("Content-Range"), "0-") {
				_, _ = io.Copy(io.Discard, r.Body)
				w.WriteHeader(http.StatusMethodNotAllowed)
				return true
			}
			return false
		}, extra: 20 * unit, patches: 1},
		"no pieces, but whole in a PUT": {hurt: func(s *sessions, w http.ResponseWriter, r *http.Request) bool {
			if r.Method == http.MethodPatch && r.Header.Get("Content-Range") != "" {
				_, _ = io.Copy(io.Discard, r.Body)
				w.WriteHeader(http.StatusMethodNotAllowed)
				return true
			}
			return false
		}, extra: unit, patches: 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRegistry(t)
			s := &sessions{inner: r.handler, hurt: c.hurt, open: map[string]*bytes.Buffer{}, keep: c.keep, answer: c.answer}
			server := httptest.NewServer(s)
			defer server.Close()
			sh := r.small(t)
			host := strings.TrimPrefix(server.URL, "http://")
			sh.Registry = host + "/models"
			var said []string
			sh.Progress = func(format string, args ...any) { said = append(said, fmt.Sprintf(format, args...)) }
			out := ship(t, sh, dir)
			if err := validate.Image(r.image(t, strings.Replace(out.Image, host, r.host, 1)), validate.Fast); err != nil {
				t.Errorf("the image is not what it says: %v", err)
			}
			// Small layers are sent whole, the runner's among them.
			if s.received < size || s.received > size+20*mib+c.extra || s.patches < c.patches {
				t.Errorf("%d MiB came in %d pieces, said %q", s.received/unit, s.patches, said)
			}
			if text := strings.Join(said, " "); strings.Contains(text, "/blobs/uploads/") {
				t.Errorf("a session's address is told, by which anybody may write to it: %s", text)
			}
		})
	}
}

// TestLargeLayersGiveUp: what stays broken is an error, and the next time it works.
func TestLargeLayersGiveUp(t *testing.T) {
	t.Parallel()
	dir := project(t)
	weights(t, filepath.Join(dir, "model/a.bin"), 65*unit, 1)
	for name, c := range map[string]struct {
		status int
		want   rollout.Reason
		tries  int
	}{
		"unavailable":  {503, rollout.ReasonRegistryUnreachable, 7},
		"denied":       {403, rollout.ReasonRegistryDenied, 1},
		"not allowed":  {401, rollout.ReasonRegistryDenied, 1},
		"refused":      {413, rollout.ReasonRegistryRefused, 1},
		"disk is full": {507, rollout.ReasonRegistryUnreachable, 7},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRegistry(t)
			broken := true
			tries := 0
			s := &sessions{inner: r.handler, open: map[string]*bytes.Buffer{}, hurt: func(_ *sessions, w http.ResponseWriter, r *http.Request) bool {
				if r.Method == http.MethodPatch && broken {
					tries++
					_, _ = io.Copy(io.Discard, r.Body)
					http.Error(w, `{"errors":[{"code":"X","message":"no room for it"}]}`, c.status)
					return true
				}
				return false
			}}
			server := httptest.NewServer(s)
			defer server.Close()
			sh := r.small(t)
			sh.Registry = strings.TrimPrefix(server.URL, "http://") + "/models"
			_, err := sh.Ship(t.Context(), dir)
			if rollout.ReasonOf(err) != c.want || err == nil || !strings.Contains(err.Error(), "no room for it") {
				t.Errorf("%v, want %s and what the registry said", err, c.want)
			}
			if c.status == 507 && err != nil && !strings.Contains(err.Error(), "its disk is full") {
				t.Errorf("%v does not say what to do", err)
			}
			if tries != c.tries {
				t.Errorf("%d tries, want %d", tries, c.tries)
			}
			if got := r.tags(t, "models/fraud"); len(got) > 0 {
				t.Errorf("tags %q name what is not there", got)
			}
			broken = false
			ship(t, sh, dir)
		})
	}
}
