package registry

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/olareg/olareg/types"
)

// maxManifest is the largest manifest that is taken, olareg's own limit.
const maxManifest = 8 << 20

// turns stands before olareg. Requests take turns while they look repositories up, but not while bytes flow: olareg
// (0.1.2) reads without its lock whether a repository exists, which another request may be making just then.
type turns struct {
	images http.Handler
	dir    string
	mu     sync.Mutex
}

// ServeHTTP implements http.Handler.
func (t *turns) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	upload := strings.Contains(r.URL.Path, "/blobs/uploads/")
	if !upload && r.Body != nil {
		// A manifest is looked at once it is there.
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxManifest))
		if err != nil {
			w.WriteHeader(http.StatusRequestEntityTooLarge)
			return
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
	}
	t.mu.Lock()
	end := sync.OnceFunc(t.mu.Unlock)
	defer end()
	if upload {
		t.mount(r)
		if r.Body != nil {
			r.Body = &body{r.Body, end}
		}
	}
	a := &answer{ResponseWriter: w, begin: end, upload: upload}
	defer a.flush()
	t.images.ServeHTTP(a, r)
}

// mount links a blob of another repository into the one of the request, if that asks for it: olareg, which finds it there,
// would copy it. What cannot be linked is uploaded instead, and olareg not asked: it would take a name that
// leads out of the directory.
func (t *turns) mount(r *http.Request) {
	q := r.URL.Query()
	if r.Method != http.MethodPost || !q.Has("mount") {
		return
	}
	to := strings.TrimSuffix(strings.TrimPrefix(path.Clean(r.URL.Path), "/v2/"), "/blobs/uploads")
	if !t.link(q.Get("mount"), q.Get("from"), to) {
		q.Del("mount")
	}
	q.Del("from")
	r.URL.RawQuery = q.Encode()
}

func (t *turns) link(blob, from, to string) bool {
	digest, err := v1.NewHash(blob)
	if err != nil || !repository(from) || !repository(to) {
		return false
	}
	in := func(repo string) string {
		return filepath.Join(t.dir, filepath.FromSlash(repo), "blobs", digest.Algorithm, digest.Hex)
	}
	if info, err := os.Stat(in(from)); err != nil || !info.Mode().IsRegular() {
		return false
	}
	if err := os.MkdirAll(filepath.Dir(in(to)), 0o755); err != nil { //nolint:gosec // as olareg does
		return false
	}
	if err := os.Link(in(from), in(to)); err != nil && !errors.Is(err, fs.ErrExist) {
		return false
	}
	// It is new here, and not to be taken for one that nobody wants.
	now := time.Now()
	return os.Chtimes(in(to), now, now) == nil
}

// repositoryName is what the specification calls a <name>.
var repositoryName = regexp.MustCompile(`^[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*$`)

// repository says whether a name is one, and leads to no place that olareg has for something else.
func repository(name string) bool {
	return repositoryName.MatchString(name) && !strings.Contains("/"+name+"/", "/blobs/")
}

// body of an upload: another request has its turn once bytes are waited for.
type body struct {
	io.ReadCloser
	begin func()
}

func (b *body) Read(p []byte) (int, error) {
	b.begin()
	return b.ReadCloser.Read(p)
}

// answer of olareg's: another request has its turn once it is being sent. To an upload, that the session is not
// known is a 404, as the specification has it, where olareg says 400: by the one a client knows to begin again, by
// the other that it has done something wrong.
type answer struct {
	http.ResponseWriter
	begin       func()
	upload      bool
	held        bytes.Buffer
	bad, headed bool
}

// WriteHeader implements http.ResponseWriter.
func (a *answer) WriteHeader(status int) {
	a.begin()
	if a.headed {
		return // a blob that comes whole is answered twice
	}
	a.headed = true
	if a.bad = a.upload && status == http.StatusBadRequest; !a.bad {
		a.ResponseWriter.WriteHeader(status)
	}
}

// Write implements http.ResponseWriter.
func (a *answer) Write(p []byte) (int, error) {
	a.begin()
	if a.bad {
		return a.held.Write(p)
	}
	a.headed = true
	return a.ResponseWriter.Write(p)
}

// ReadFrom implements io.ReaderFrom, by which files are sent without a copy of them.
func (a *answer) ReadFrom(r io.Reader) (int64, error) {
	a.begin()
	if a.bad {
		return a.held.ReadFrom(r)
	}
	a.headed = true
	return io.Copy(a.ResponseWriter, r)
}

func (a *answer) flush() {
	if !a.bad {
		return
	}
	var said types.ErrorResp
	status := http.StatusBadRequest
	if err := json.Unmarshal(a.held.Bytes(), &said); err == nil && len(said.Errors) > 0 && said.Errors[0].Code == types.ErrInfoBlobUploadUnknown("").Code {
		status = http.StatusNotFound
	}
	a.ResponseWriter.WriteHeader(status)
	_, _ = a.ResponseWriter.Write(a.held.Bytes())
}
