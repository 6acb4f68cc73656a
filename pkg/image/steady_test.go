package image_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sluice-dev/sluice/pkg/image"
	"github.com/sluice-dev/sluice/rollout"
)

// halving breaks off answers behind their half.
type halving struct {
	inner http.Handler
	// part of the path whose answers break off, and how often each does.
	part  string
	times int
	// whole ignores ranges, as registries may.
	whole bool

	mu     sync.Mutex
	seen   map[string]int
	ranges int
}

func (b *halving) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet || !strings.Contains(r.URL.Path, b.part) {
		b.inner.ServeHTTP(w, r)
		return
	}
	ranged := r.Header.Get("Range")
	if b.whole {
		r.Header.Del("Range")
	} else if from := strings.TrimSuffix(strings.TrimPrefix(ranged, "bytes="), "-"); from != "" {
		// The registry behind it knows no range without an end.
		n, err := strconv.Atoi(from)
		if err != nil {
			http.Error(w, ranged, http.StatusBadRequest)
			return
		}
		b.mu.Lock()
		b.ranges++
		b.mu.Unlock()
		r.Header.Del("Range")
		answer := httptest.NewRecorder()
		b.inner.ServeHTTP(answer, r)
		body := answer.Body.Bytes()
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", n, len(body)-1, len(body)))
		w.WriteHeader(http.StatusPartialContent)
		_, _ = w.Write(body[n:])
		return
	}
	b.mu.Lock()
	b.seen[r.URL.Path]++
	breaks := b.seen[r.URL.Path] <= b.times
	b.mu.Unlock()
	if !breaks {
		b.inner.ServeHTTP(w, r)
		return
	}
	answer := httptest.NewRecorder()
	b.inner.ServeHTTP(answer, r)
	body := answer.Body.Bytes()
	for name, values := range answer.Header() {
		w.Header()[name] = values
	}
	w.Header().Set("Content-Length", fmt.Sprint(len(body)))
	w.WriteHeader(answer.Code)
	_, _ = w.Write(body[:len(body)/2])
	_ = http.NewResponseController(w).Flush()
	panic(http.ErrAbortHandler)
}

// TestAnswersBreakOff: what is read from a registry goes on where it broke off, whatever it is; what never comes is an error that
// names the registry and what was read, and what for.
func TestAnswersBreakOff(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		part  string
		times int
		whole bool
		fails string
	}{
		"blobs":           {part: "/blobs/", times: 2},
		"blobs, whole":    {part: "/blobs/", times: 2, whole: true},
		"manifests":       {part: "/manifests/", times: 1},
		"blobs, always":   {part: "/blobs/", times: 1000, whole: true, fails: "/models/words/blobs/sha256:"},
		"manifest, never": {part: "/manifests/", times: 1000, whole: true, fails: "/models/words/manifests/1"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRegistry(t)
			s := r.small(t)
			file := filepath.Join(t.TempDir(), "words.bin")
			weights(t, file, 2*mib, 1)
			if _, err := s.PushModel(t.Context(), file, r.host+"/models/words:1", ""); err != nil {
				t.Fatal(err)
			}
			h := &halving{inner: r.handler, part: c.part, times: c.times, whole: c.whole, seen: map[string]int{}}
			server := httptest.NewServer(h)
			defer server.Close()
			server.Config.ErrorLog = nil
			host := strings.TrimPrefix(server.URL, "http://")
			if c.fails == "" {
				s.BaseImage = strings.Replace(s.BaseImage, r.host, host, 1)
			}
			dir := modelProject(t, `{name: words, version: "1", uri: "oci://`+host+`/models/words:1"}`)
			out := filepath.Join(t.TempDir(), "out")
			err := func() error {
				l, err := image.OpenLayout(out)
				if err != nil {
					return err
				}
				m, err := s.Make(t.Context(), dir, nil)
				if err == nil {
					defer m.Close()
					err = m.AddTo(t.Context(), l)
				}
				return l.Close(err)
			}()
			if c.fails != "" {
				refused(t, err, rollout.ReasonRegistryUnreachable, host, c.fails, "breaks off after", "try again")
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			refs(t, out)
			if (h.ranges > 0) == c.whole {
				t.Errorf("%d answers were gone on with", h.ranges)
			}
		})
	}
}

// patient asks for patience, each path and method a number of times, and counts those who have none.
type patient struct {
	inner http.Handler
	times int
	after time.Duration

	mu    sync.Mutex
	seen  map[string]int
	until map[string]time.Time
	early []string
}

func (p *patient) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	what := r.Method + " " + r.URL.Path
	if i := strings.Index(what, "/uploads/"); i >= 0 {
		what = what[:i+len("/uploads/")] // each session has another
	}
	p.mu.Lock()
	if time.Now().Before(p.until[what]) && p.times > 1 {
		p.early = append(p.early, what)
	}
	p.seen[what]++
	busy := p.seen[what] <= p.times && r.URL.Path != "/v2/"
	if busy {
		p.until[what] = time.Now().Add(p.after * 9 / 10)
	}
	p.mu.Unlock()
	if busy {
		w.Header().Set("Retry-After", fmt.Sprint(int(p.after.Seconds())))
		w.WriteHeader(http.StatusTooManyRequests)
		return
	}
	p.inner.ServeHTTP(w, r)
}

// TestPatience: whatever a registry asks for is waited, and what stays busy is an error.
func TestPatience(t *testing.T) {
	t.Parallel()
	for _, always := range []bool{false, true} {
		t.Run(fmt.Sprint(always), func(t *testing.T) {
			t.Parallel()
			r := newRegistry(t)
			s := r.small(t)
			ref := s.BaseImage
			p := &patient{inner: r.handler, times: 1, after: time.Second, seen: map[string]int{}, until: map[string]time.Time{}}
			if always {
				p.times, p.after = 1000, time.Second
			}
			server := httptest.NewServer(p)
			defer server.Close()
			host := strings.TrimPrefix(server.URL, "http://")
			s.BaseImage, s.Registry = strings.Replace(ref, r.host, host, 1), host+"/models"
			began := time.Now()
			_, err := s.Ship(t.Context(), project(t))
			if always {
				refused(t, err, rollout.ReasonRegistryUnreachable, host, "429")
				if n := p.seen["GET /v2/base/manifests/1"]; n != 5 {
					t.Errorf("it was asked %d times", n)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if took := time.Since(began); took < 3*time.Second {
				t.Errorf("it took %s: several requests in turn were to wait a second each", took)
			}
			if len(p.seen) < 6 {
				t.Errorf("only %v was asked", p.seen)
			}
		})
	}
}
