package image_test

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/sluice-dev/sluice/pkg/image"
	"github.com/sluice-dev/sluice/rollout"
)

// modelProject is a project whose models are those of text.
func modelProject(t *testing.T, models string, more ...string) string {
	t.Helper()
	return write(t, t.TempDir(), append([]string{"sluice.yaml", `apiVersion: sluice.dev/v1alpha1
kind: Project
endpoint: fraud
models: [` + models + `]
scoring: {entryScript: score.py}
`, "score.py", "pass"}, more...)...)
}

// unpack gives the paths of an image's own layers, above the base's, and what is there, the upper layers over the lower ones.
func unpack(t *testing.T, img v1.Image) map[string]entry {
	t.Helper()
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]entry{}
	for _, l := range layers[1:] {
		for name, e := range entries(t, l) {
			out[name] = e
		}
	}
	return out
}

// TestModelsOfRegistries: pushed once, they are in images of any registry, under the name that the project gives them.
func TestModelsOfRegistries(t *testing.T) {
	t.Parallel()
	r, other := newRegistry(t), newRegistry(t)
	s := r.small(t)
	dir := write(t, t.TempDir(), "config.json", `{"a": 1}`, "deep/tokens.txt", "a b c", "run.sh", "true")
	weights(t, filepath.Join(dir, "weights.safetensors"), 65*unit, 1)
	if err := os.Chmod(filepath.Join(dir, "run.sh"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, to := range []*testRegistry{r, other} {
		pushed, err := s.PushModel(t.Context(), dir, to.host+"/library/fraud:3", "")
		if err != nil {
			t.Fatal(err)
		}
		if pushed.Known || pushed.Files != 4 || !strings.HasPrefix(pushed.Ref, to.host+"/library/fraud@sha256:") || to.tags(t, "library/fraud")[0] != "3" {
			t.Errorf("pushed %+v", pushed)
		}
		if again, err := s.PushModel(t.Context(), dir, to.host+"/library/fraud:3", t.TempDir()); err != nil || !again.Known || again.Ref != pushed.Ref {
			t.Errorf("again: %+v, %v", again, err)
		}
		to.since()
	}
	var images []string
	for _, from := range []*testRegistry{r, other} {
		out := ship(t, s, modelProject(t, `{name: scorer, version: "7", uri: "oci://`+from.host+`/library/fraud:3"}`))
		images = append(images, strings.Split(out.Image, "@")[1])
		got := unpack(t, r.image(t, out.Image))
		base := "var/azureml-app/.sluice/models/scorer/7/"
		for name, text := range map[string]string{"config.json": `{"a": 1}`, "deep/tokens.txt": "a b c", "run.sh": "true"} {
			link := got[base+name]
			if link.typ != '2' || !strings.HasPrefix(link.to, "/sluice/models/") || got[link.to[1:]].text != text {
				t.Errorf("%s leads to %+v, where %+v is", name, link, got[strings.TrimPrefix(link.to, "/")])
			}
			if name == "run.sh" && got[link.to[1:]].mode != 0o755 {
				t.Errorf("run.sh has the mode %o", got[link.to[1:]].mode)
			}
		}
		config, err := r.image(t, out.Image).ConfigFile()
		if err != nil {
			t.Fatal(err)
		}
		if want := "AZUREML_MODEL_DIR=/var/azureml-app/.sluice/models/scorer/7"; !strings.Contains(strings.Join(config.Config.Env, " "), want) {
			t.Errorf("variables %q, want %s", config.Config.Env, want)
		}
		// The digest of the set is that of the same files in the project.
		in := write(t, t.TempDir(), "m/config.json", `{"a": 1}`, "m/deep/tokens.txt", "a b c", "m/run.sh", "true", "score.py", "pass", "sluice.yaml", `apiVersion: sluice.dev/v1alpha1
kind: Project
endpoint: fraud
models: [{name: scorer, version: "7", path: m}]
scoring: {entryScript: score.py}
`)
		weights(t, filepath.Join(in, "m/weights.safetensors"), 65*unit, 1)
		same, err := r.image(t, ship(t, s, in).Image).ConfigFile()
		if err != nil {
			t.Fatal(err)
		}
		if a, b := config.Config.Labels["dev.sluice.models"], same.Config.Labels["dev.sluice.models"]; a != b || a == "" {
			t.Errorf("the models' digests differ: %s and %s", a, b)
		}
	}
	// Only where the uri points to differs, in the project's manifest.
	if images[0] == images[1] {
		t.Error("images of different manifests are the same")
	}
}

// TestModelsAreMounted: where the registry is the same, no byte of a model passes here.
func TestModelsAreMounted(t *testing.T) {
	t.Parallel()
	var sentBytes, readBytes atomic.Int64
	r := newRegistry(t)
	counting := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if from := req.URL.Query().Get("mount"); from != "" && req.Method == http.MethodPost {
			w.Header().Set("Location", "/v2/x/blobs/"+from) // this registry has one store for all repositories
			w.WriteHeader(http.StatusCreated)
			return
		}
		if req.Method == http.MethodPatch || req.Method == http.MethodPut {
			sentBytes.Add(max(req.ContentLength, 0))
		}
		// The registry's one store would answer for every repository.
		if req.Method == http.MethodHead && strings.Contains(req.URL.Path, "/models/fraud/blobs/") {
			w.WriteHeader(http.StatusNotFound)
			return
		}
		r.handler.ServeHTTP(countBytes{w, &readBytes}, req)
	}))
	defer counting.Close()
	s := r.small(t)
	host := strings.TrimPrefix(counting.URL, "http://")
	dir := t.TempDir()
	weights(t, filepath.Join(dir, "w.bin"), 30*mib, 1)
	if _, err := s.PushModel(t.Context(), dir, host+"/library/fraud:3", ""); err != nil {
		t.Fatal(err)
	}
	s.Registry = host + "/models"
	sentBytes.Store(0)
	readBytes.Store(0)
	ship(t, s, modelProject(t, `{name: a, version: "1", uri: "oci://`+host+`/library/fraud:3"}`))
	if s, r := sentBytes.Load(), readBytes.Load(); s > 20*mib || r > unit {
		t.Errorf("%d bytes were sent and %d read for a model that is there", s, r)
	}
}

type countBytes struct {
	http.ResponseWriter
	n *atomic.Int64
}

func (c countBytes) Write(p []byte) (int, error) {
	c.n.Add(int64(len(p)))
	return c.ResponseWriter.Write(p)
}

func TestModelsThatAreNone(t *testing.T) {
	r := newRegistry(t)
	s := r.small(t)
	base := r.base(t)
	for uri, want := range map[string]rollout.Reason{
		"oci://" + base:                        rollout.ReasonModelMissing, // an index
		"oci://" + r.host + "/base:arm":        rollout.ReasonModelMissing, // an image
		"oci://" + r.host + "/nothing:1":       rollout.ReasonModelMissing,
		"oci://127.0.0.1:1/library/fraud:3":    rollout.ReasonRegistryUnreachable,
		"oci://" + r.host + "/library/FRAUD:3": rollout.ReasonInvalid,
	} {
		_, err := s.Ship(t.Context(), modelProject(t, `{name: a, version: "1", uri: "`+uri+`"}`))
		if rollout.ReasonOf(err) != want || !strings.Contains(err.Error(), "models[0].uri") {
			t.Errorf("%s: %v, want %s", uri, err, want)
		}
	}
	if tags := r.tags(t, "models/fraud"); len(tags) > 0 {
		t.Errorf("tags %q", tags)
	}
	// What cannot be pushed as a model.
	link := write(t, t.TempDir(), "a", "b")
	if err := os.Symlink("a", filepath.Join(link, "l")); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		dir, ref string
		want     rollout.Reason
		says     string
	}{
		"a link":      {link, r.host + "/m:1", rollout.ReasonUnsafeFile, "l is no regular file"},
		"nothing":     {t.TempDir(), r.host + "/m:1", rollout.ReasonInvalid, "holds no files"},
		"not there":   {filepath.Join(link, "x"), r.host + "/m:1", rollout.ReasonInvalid, "cannot be read"},
		"no tag":      {link, r.host + "/m", rollout.ReasonInvalid, "is not a place to push to"},
		"unreachable": {filepath.Join(link, "a"), "127.0.0.1:1/m:1", rollout.ReasonRegistryUnreachable, "127.0.0.1:1"},
	} {
		_, err := s.PushModel(t.Context(), c.dir, c.ref, "")
		if rollout.ReasonOf(err) != c.want || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v, want %s and %q", name, err, c.want, c.says)
		}
	}
}

// files serves a file over TLS, which the default transport trusts until the test ends.
func files(t *testing.T, h http.HandlerFunc) string {
	t.Helper()
	server := httptest.NewTLSServer(h)
	t.Cleanup(server.Close)
	transport := http.DefaultTransport.(*http.Transport)
	was := transport.TLSClientConfig
	trusted := server.Client().Transport.(*http.Transport).TLSClientConfig.Clone()
	transport.TLSClientConfig = &tls.Config{RootCAs: trusted.RootCAs, MinVersion: tls.VersionTLS12}
	t.Cleanup(func() { transport.TLSClientConfig = was })
	return server.URL
}

// TestModelsOfServers: fetched once, whole whatever breaks on the way, and only what was meant.
func TestModelsOfServers(t *testing.T) {
	t.Parallel()
	var content bytes.Buffer
	dir := t.TempDir()
	weights(t, filepath.Join(dir, "w"), 9*unit, 1)
	data, err := os.ReadFile(filepath.Join(dir, "w"))
	if err != nil {
		t.Fatal(err)
	}
	content.Write(data)
	var gets, broken atomic.Int64
	url := files(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/a/weights.bin":
			gets.Add(1)
			if r.URL.RawQuery != "versionId=1&sig=s3cret" {
				t.Errorf("asked with %q", r.URL.RawQuery)
			}
			w.Header().Set("ETag", `"1"`)
			if broken.Add(-1) >= 0 {
				w.Header().Set("Content-Length", fmt.Sprint(len(data)))
				_, _ = w.Write(data[:4*unit])
				panic(http.ErrAbortHandler)
			}
			http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(data))
		case "/busy":
			w.WriteHeader(http.StatusServiceUnavailable)
		case "/denied":
			w.WriteHeader(http.StatusForbidden)
		case "/plain":
			http.Redirect(w, r, "http://127.0.0.1:1/x?sig=s3cret", http.StatusFound)
		default:
			http.NotFound(w, r)
		}
	})
	r := newRegistry(t)
	s := r.small(t)
	s.CacheDir = t.TempDir()
	s.ModelQuery = func(model string) string { return map[string]string{"a": "sig=s3cret"}[model] }
	good := sum(content.String())
	broken.Store(1)
	dirOf := func() string {
		return modelProject(t, `{name: a, version: "1", uri: "`+url+`/a/weights.bin?versionId=1", sha256: `+good+`}, {name: b, version: "2", path: b.txt}`, "b.txt", "b")
	}
	out := ship(t, s, dirOf())
	got := unpack(t, r.image(t, out.Image))
	link := got["var/azureml-app/.sluice/models/a/1/weights.bin"]
	if link.typ != '2' || got[link.to[1:]].typ != '0' || got["var/azureml-app/.sluice/models/b/2/b.txt"].to != "../../../../b.txt" {
		t.Errorf("%+v leads to %+v", link, got[strings.TrimPrefix(link.to, "/")])
	}
	for name, e := range got {
		if strings.Contains(e.text, "s3cret") {
			t.Errorf("%s in the image has the signature", name)
		}
	}
	if gets.Load() != 2 {
		t.Errorf("fetched in %d requests, want one that broke and one for the rest", gets.Load())
	}
	// Once it is known and in the registry nothing is fetched.
	if again := ship(t, s, dirOf()); again.Image != out.Image || !again.Known || gets.Load() != 2 {
		t.Errorf("again: %+v, %d requests", again, gets.Load())
	}
	for path, c := range map[string]struct {
		sum  string
		want rollout.Reason
	}{
		"/a/weights.bin": {strings.Repeat("0a", 32), rollout.ReasonModelMismatch},
		"/nothing":       {good, rollout.ReasonModelMissing},
		"/denied":        {good, rollout.ReasonModelUnreachable},
		"/plain":         {good, rollout.ReasonModelUnreachable},
	} {
		_, err := s.Ship(t.Context(), modelProject(t, `{name: a, version: "1", uri: "`+url+path+`?versionId=1", sha256: `+c.sum+`}`))
		if rollout.ReasonOf(err) != c.want || !strings.Contains(err.Error(), "models[0].") || strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%s: %v, want %s", path, err, c.want)
		}
		if left, err := os.ReadDir(s.TempDir); err != nil || len(left) > 0 {
			t.Errorf("%s: %d files are left (%v)", path, len(left), err)
		}
	}
}

// TestModelsOfOneContent: models of one project do not change one another.
func TestModelsOfOneContent(t *testing.T) {
	r := newRegistry(t)
	s := r.small(t)
	var uris []string
	for i, mode := range []os.FileMode{0o755, 0o644} {
		dir := write(t, t.TempDir(), "run.sh", "true")
		if err := os.Chmod(filepath.Join(dir, "run.sh"), mode); err != nil {
			t.Fatal(err)
		}
		pushed, err := s.PushModel(t.Context(), dir, fmt.Sprintf("%s/library/m:%d", r.host, i), "")
		if err != nil {
			t.Fatal(err)
		}
		uris = append(uris, "oci://"+pushed.Ref)
	}
	got := unpack(t, r.image(t, ship(t, s, modelProject(t, `{name: a, version: "1", uri: "`+uris[0]+`"}, {name: b, version: "1", uri: "`+uris[1]+`"}`)).Image))
	for name, mode := range map[string]int64{"a": 0o755, "b": 0o644} {
		link := got["var/azureml-app/.sluice/models/"+name+"/1/run.sh"]
		if is := got[strings.TrimPrefix(link.to, "/")]; is.mode != mode || is.text != "true" {
			t.Errorf("%s leads to %+v, want mode %o", name, is, mode)
		}
	}
}

// TestModelNames: a link to a single file is the file, and names that are read otherwise elsewhere are refused.
func TestModelNames(t *testing.T) {
	r := newRegistry(t)
	s := r.small(t)
	dir := write(t, t.TempDir(), "blobs/0a1b", "content", "snapshot/x", "")
	if err := os.Symlink("../blobs/0a1b", filepath.Join(dir, "snapshot/model.bin")); err != nil {
		t.Fatal(err)
	}
	pushed, err := s.PushModel(t.Context(), filepath.Join(dir, "snapshot/model.bin"), r.host+"/library/m:1", "")
	if err != nil || pushed.Digest != image.SetDigest(map[string]string{"model.bin": sum("content")}) {
		t.Errorf("%+v, %v", pushed, err)
	}
	for _, name := range []string{"a\xff.bin", "a\nb"} {
		_, err := s.PushModel(t.Context(), write(t, t.TempDir(), name, "x"), r.host+"/library/m:2", "")
		if rollout.ReasonOf(err) != rollout.ReasonUnsafeFile {
			t.Errorf("%q: %v", name, err)
		}
	}
}

// TestTooManyLayers: more than nodes can stack are refused before anything is sent.
func TestTooManyLayers(t *testing.T) {
	r := newRegistry(t)
	s := r.small(t)
	pushed, err := s.PushModel(t.Context(), write(t, t.TempDir(), "a", "b"), r.host+"/library/m:1", "")
	if err != nil {
		t.Fatal(err)
	}
	r.since()
	var models []string
	for i := range 120 {
		models = append(models, fmt.Sprintf(`{name: m%d, version: "1", uri: "oci://%s"}`, i, pushed.Ref))
	}
	_, err = s.Ship(t.Context(), modelProject(t, strings.Join(models, ", ")))
	if rollout.ReasonOf(err) != rollout.ReasonTooManyModels || !strings.Contains(err.Error(), "120 of models with a uri") {
		t.Errorf("%v, want too_many_models", err)
	}
	if sent := r.since(); len(sent) > 0 {
		t.Errorf("sent %q", sent)
	}
}

// TestSourceBreaks: where a model comes from may break, too, and is not taken for where it goes to.
func TestSourceBreaks(t *testing.T) {
	t.Parallel()
	from, to := newRegistry(t), newRegistry(t)
	s := to.small(t)
	dir := t.TempDir()
	weights(t, filepath.Join(dir, "w.bin"), 65*unit, 1)
	if _, err := s.PushModel(t.Context(), dir, from.host+"/library/m:1", ""); err != nil {
		t.Fatal(err)
	}
	var cuts atomic.Int64
	cuts.Store(1)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/") && cuts.Load() > 0 {
			rec := httptest.NewRecorder()
			from.handler.ServeHTTP(rec, r)
			if rec.Body.Len() > 30*unit {
				cuts.Add(-1)
				w.Header().Set("Content-Length", fmt.Sprint(rec.Body.Len()))
				_, _ = w.Write(rec.Body.Bytes()[:30*unit])
				panic(http.ErrAbortHandler)
			}
			_, _ = w.Write(rec.Body.Bytes())
			return
		}
		from.handler.ServeHTTP(w, r)
	}))
	defer server.Close()
	host := strings.TrimPrefix(server.URL, "http://")
	project := modelProject(t, `{name: a, version: "1", uri: "oci://`+host+`/library/m:1"}`)
	ship(t, s, project)
	if cuts.Load() != 0 {
		t.Error("nothing broke")
	}
	again := newRegistry(t)
	s = again.small(t)
	cuts.Store(1000)
	_, err := s.Ship(t.Context(), project)
	if err == nil || !strings.Contains(err.Error(), "breaks off after") || !strings.Contains(err.Error(), "library/m/blobs/") || strings.Contains(err.Error(), "cannot be reached") {
		t.Errorf("%v, want an error of reading", err)
	}
}

// TestModelTag: a model that nobody finds by its tag is not pushed.
func TestModelTag(t *testing.T) {
	r := newRegistry(t)
	s := r.small(t)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if req.Method == http.MethodPut && strings.HasSuffix(req.URL.Path, "/manifests/1") {
			http.Error(w, `{"errors":[{"code":"DENIED","message":"tags stay"}]}`, http.StatusForbidden)
			return
		}
		r.handler.ServeHTTP(w, req)
	}))
	defer server.Close()
	host := strings.TrimPrefix(server.URL, "http://")
	_, err := s.PushModel(t.Context(), write(t, t.TempDir(), "w.bin", "w"), host+"/models/m:1", "")
	refused(t, err, rollout.ReasonRegistryDenied, "tag "+host+"/models/m:1", "tags stay")
	// A version is used by its digest.
	s.Registry = host + "/models"
	ship(t, s, project(t))
}

// TestCredentialsInNames: they are refused, and not told.
func TestCredentialsInNames(t *testing.T) {
	const ref = "bob:s3cret@registry.example/m:1"
	c := image.Client{}
	for what, f := range map[string]func() error{
		"push model": func() error { _, err := c.PushModel(t.Context(), t.TempDir(), ref, ""); return err },
		"find":       func() error { _, err := c.Find(t.Context(), "x", ref, v1.Platform{}); return err },
		"repository": func() error { _, err := c.Repository("bob:s3cret@registry.example/m"); return err },
		"token":      func() error { _, err := c.Repository("s3cret@registry.example/m"); return err },
		"a port": func() error {
			_, err := c.Find(t.Context(), "x", "s3cret@registry.example:5000/M", v1.Platform{})
			return err
		},
		"a scheme": func() error { _, err := c.Repository("https://bob:s3cret@registry.example/M"); return err },
		"attach":   func() error { _, _, err := c.Attach(t.Context(), ref, "x", nil); return err },
		"resolve":  func() error { _, err := c.Resolved(t.Context(), "x", ref); return err },
	} {
		err := f()
		refused(t, err, rollout.ReasonInvalid, "has credentials in it", "docker login")
		if err != nil && strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// TestUntrustedServers: asking again would not help, and it is said why.
func TestUntrustedServers(t *testing.T) {
	server := httptest.NewTLSServer(http.NotFoundHandler())
	defer server.Close()
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	r := newRegistry(t)
	began := time.Now()
	_, err := r.small(t).Ship(t.Context(), modelProject(t, `{name: a, version: "1", uri: "`+server.URL+`/w.bin", sha256: `+strings.Repeat("0a", 32)+`}`))
	refused(t, err, rollout.ReasonModelUnreachable, "certificate", "not trusted", "SSL_CERT_FILE")
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("it took %s", took)
	}
}
