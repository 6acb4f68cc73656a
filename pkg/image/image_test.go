package image_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/authn"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/google/go-containerregistry/pkg/v1/validate"

	"github.com/sluice-dev/sluice/pkg/deploy"
	"github.com/sluice-dev/sluice/pkg/image"
	projects "github.com/sluice-dev/sluice/pkg/project"
	"github.com/sluice-dev/sluice/rollout"
)

func ship(t *testing.T, s image.Shipper, dir string) deploy.Shipment {
	t.Helper()
	out, err := s.Ship(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(s.TempDir); err != nil || len(left) > 0 {
		t.Errorf("%d files are left behind (%v)", len(left), err)
	}
	return out
}

func TestSameDigestOfTheSameProject(t *testing.T) {
	r := newRegistry(t)
	s := r.shipper(t)
	one := ship(t, s, project(t))
	if one.Sent == 0 || one.Environment.Source != deploy.EnvironmentBase {
		t.Errorf("%d bytes were sent, the environment is %q", one.Sent, one.Environment.Source)
	}
	if one.Known || one.Name[:4] != "src-" || one.Endpoint != "fraud" || !strings.HasPrefix(one.Image, r.host+"/models/fraud@sha256:") {
		t.Errorf("shipped %+v", one)
	}
	if len(r.since()) == 0 {
		t.Error("nothing was sent")
	}
	// Another place, another order, other times, other modes.
	dir := write(t, filepath.Join(t.TempDir(), "elsewhere"), "src/lib/util.py", "pass", "src/score.py", "pass", "model/more/index", "i", "model/weights.bin", "w", "sluice.yaml", manifest)
	if err := os.Chtimes(filepath.Join(dir, "src", "score.py"), time.Unix(1, 0), time.Unix(1e9, 0)); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(dir, "src", "score.py"), 0o600); err != nil {
		t.Fatal(err)
	}
	two := ship(t, s, dir)
	if two.Sent != 0 {
		t.Errorf("%d bytes were sent again", two.Sent)
	}
	if two.Image != one.Image || !two.Known || two.Name != one.Name {
		t.Errorf("the same project gave\n%+v, then\n%+v", one, two)
	}
	if sent := r.since(); len(sent) > 0 {
		t.Errorf("%v was sent again", sent)
	}
	img := r.image(t, one.Image)
	// Fast, since the slow one takes every layer to be compressed.
	if err := validate.Image(img, validate.Fast); err != nil {
		t.Errorf("the image is not what it says: %v", err)
	}
	// The bytes of a release do not depend on the test's base: those of our own layers are fixed.
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, l := range layers {
		d, err := l.Digest()
		if err != nil {
			t.Fatal(err)
		}
		diffID, err := l.DiffID()
		if err != nil {
			t.Fatal(err)
		}
		for want, open := range map[v1.Hash]func() (io.ReadCloser, error){d: l.Compressed, diffID: l.Uncompressed} {
			r, err := open()
			if err != nil {
				t.Fatal(err)
			}
			if is, _, err := v1.SHA256(r); err != nil || is != want {
				t.Errorf("a layer has the digest %s, not %s (%v)", is, want, err)
			}
			r.Close()
		}
		got = append(got, d.String())
	}
	got = got[2:]
	want := []string{
		"sha256:7f2a4493527054dfac15c5fb17de6850bc760df28518d96c1a4493e19a885912",
		"sha256:1e87b4d7d566a04e3b4b94fa0e045dcec0b7b24cc9f3f5d730c47269d779657b",
	}
	if !slices.Equal(got, want) {
		t.Errorf("layers are %q, want %q; if that is meant, every image changes with the next release", got, want)
	}
}

func TestOnlyWhatChangedMoves(t *testing.T) {
	r := newRegistry(t)
	s := r.shipper(t)
	dir := project(t)
	ship(t, s, dir)
	// Base (mounted or sent once), runner, model, project and configuration.
	if sent := r.since(); len(sent) > 5 || len(sent) < 4 {
		t.Errorf("%d blobs were sent at first", len(sent))
	}
	write(t, dir, "src/score.py", "pass # better")
	now := ship(t, s, dir)
	layers, err := r.image(t, now.Image).Layers()
	if err != nil {
		t.Fatal(err)
	}
	last, err := layers[len(layers)-1].Digest()
	if err != nil {
		t.Fatal(err)
	}
	config, err := r.image(t, now.Image).ConfigName()
	if err != nil {
		t.Fatal(err)
	}
	want := []string{last.String(), config.String()}
	sent := r.since()
	slices.Sort(want)
	slices.Sort(sent)
	if !slices.Equal(sent, want) {
		t.Errorf("sent %v, want the last layer and the configuration %v", sent, want)
	}
}

func TestLayers(t *testing.T) {
	r := newRegistry(t)
	s := r.shipper(t)
	dir := write(t, t.TempDir(), "sluice.yaml", `apiVersion: sluice.dev/v1alpha1
kind: Project
endpoint: fraud
models: [{name: small, version: "1", path: small.bin}, {name: large, version: "2", path: data/large}]
scoring: {entryScript: score.py}
`, "small.bin", "s", "data/large/a", "a", "data/large/b/c", "c", "data/other", "o", "score.py", "pass", "run.sh", "true")
	if err := os.Chmod(filepath.Join(dir, "run.sh"), 0o755); err != nil {
		t.Fatal(err)
	}
	img := r.image(t, ship(t, s, dir).Image)
	m, err := img.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	var media []types.MediaType
	for _, l := range m.Layers {
		media = append(media, l.MediaType)
	}
	if diff := cmp.Diff([]types.MediaType{types.OCILayer, types.OCILayer, types.OCILayer, types.OCILayer}, media); diff != "" || m.MediaType != types.OCIManifestSchema1 || m.Config.MediaType != types.OCIConfigJSON {
		t.Errorf("manifest %s with %s: %s", m.MediaType, m.Config.MediaType, diff)
	}
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	dirs := func(names ...string) map[string]entry {
		out := map[string]entry{}
		for _, n := range names {
			out[n] = entry{typ: '5', mode: 0o755}
		}
		return out
	}
	file := func(text string) entry { return entry{'0', 0o644, "", text} }
	link := func(to string) entry { return entry{'2', 0o777, to, ""} }
	with := func(m map[string]entry, more map[string]entry) map[string]entry {
		for k, v := range more {
			m[k] = v
		}
		return m
	}
	const app = "var/azureml-app/"
	if got := entries(t, layers[1]); got["sluice/runner"].mode != 0o755 || got["sluice/"].typ != '5' || len(got) != 2 {
		t.Errorf("runner's layer: %v", got)
	}
	if diff := cmp.Diff(with(dirs(app, app+"data/", app+"data/large/", app+"data/large/b/"), map[string]entry{
		app + "data/large/a": file("a"), app + "data/large/b/c": file("c"), app + "small.bin": file("s"),
	}), entries(t, layers[2]), cmp.AllowUnexported(entry{})); diff != "" {
		t.Errorf("models' layer: %s", diff)
	}
	got := entries(t, layers[3])
	layout := app + ".sluice/models/"
	for name, to := range map[string]string{
		"small/1/small.bin": "../../../../small.bin", "large/2/a": "../../../../data/large/a", "large/2/b/c": "../../../../../data/large/b/c",
	} {
		if got[layout+name] != link(to) {
			t.Errorf("project's layer: %s is %v", name, got[layout+name])
		}
	}
	if got[app+"sluice.yaml"].text == "" || got[app+"data/other"] != file("o") || got[app+"run.sh"].mode != 0o755 || got[app+"data/large/a"] != (entry{}) {
		t.Errorf("project's layer: %v", got)
	}
	config, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Contains(config.Config.Env, "AZUREML_MODEL_DIR=/var/azureml-app/.sluice/models") {
		t.Errorf("variables are %q", config.Config.Env)
	}
}

func TestConfiguration(t *testing.T) {
	r := newRegistry(t)
	s := r.shipper(t)
	s.SourceURL, s.Source = "https://github.example/team/fraud", projects.Source{PullRequest: 7, Commit: strings.Repeat("ab", 20)}
	out := ship(t, s, project(t))
	if out.Name != "pr-7-abababa" || out.Source != (rollout.Source{PullRequest: 7, Commit: s.Source.Commit}) {
		t.Errorf("shipped %+v", out)
	}
	img := r.image(t, out.Image)
	config, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	base, err := s.Find(t.Context(), "base", s.BaseImage, v1.Platform{OS: "linux", Architecture: runtime.GOARCH})
	if err != nil {
		t.Fatal(err)
	}
	labels := config.Config.Labels
	environment := labels["dev.sluice.environment"]
	delete(labels, "dev.sluice.environment")
	if len(environment) != 64 {
		t.Errorf("the environment's label is %q", environment)
	}
	if was, ok := image.InputsOf(img); !ok || was.Hash != environment || len(was.Inputs) == 0 || !reflect.DeepEqual(was, out.Environment.Summary) {
		t.Errorf("the image says of its environment %+v, the deploy %+v", was, out.Environment)
	}
	delete(labels, "dev.sluice.environment.inputs")
	if diff := cmp.Diff(v1.Config{
		Entrypoint: []string{"/sluice/runner"},
		Cmd:        []string{"--entry-script=score.py", "--mode=serve", "--", "--threshold", "0.7"},
		Env: []string{
			"PATH=/opt/bin:/usr/bin", "LANG=C", "HOME=/tmp", "OMP_NUM_THREADS=1",
			"SLUICE_RUNNER_PROJECT_DIR=/var/azureml-app", "AZUREML_MODEL_DIR=/var/azureml-app/model", "SLUICE_RUNNER_SOURCE_DIRECTORY=src",
		},
		User: "65532:65532", WorkingDir: "/var/azureml-app", ExposedPorts: map[string]struct{}{"5001/tcp": {}},
		Labels: map[string]string{
			"maintainer": "someone", "org.opencontainers.image.source": s.SourceURL, "org.opencontainers.image.revision": s.Source.Commit,
			"dev.sluice.models":                  image.SetDigest(map[string]string{"fraud/3/weights.bin": sum("w"), "fraud/3/more/index": sum("i")}),
			"org.opencontainers.image.base.name": s.BaseImage, "org.opencontainers.image.base.digest": base.Digest.String(),
		},
	}, config.Config); diff != "" {
		t.Error(diff)
	}
	if !config.Created.IsZero() || config.OS != "linux" || config.Architecture != runtime.GOARCH || config.Author != "" {
		t.Errorf("configuration %+v", config)
	}
	var history []string
	for _, h := range config.History {
		history = append(history, h.CreatedBy+"|"+h.Comment)
	}
	if diff := cmp.Diff([]string{"base|", "ENV|", "sluice|runner", "sluice|models", "sluice|project"}, history); diff != "" {
		t.Error(diff)
	}
	m, err := img.Manifest()
	if err != nil || m.Annotations["org.opencontainers.image.base.digest"] != base.Digest.String() {
		t.Errorf("annotations %v (%v)", m.Annotations, err)
	}
}

// TestServersOfTheirOwn: what a pod says of the server must not be drowned by the image, and what it does
// not say must be in there.
func TestServersOfTheirOwn(t *testing.T) {
	r := newRegistry(t)
	s := r.shipper(t)
	for scoring, want := range map[string]struct {
		cmd, env []string
		server   *rollout.Server
	}{
		`{command: ["./server", "-x"], server: {port: 9000, scorePath: /predict, healthPath: /ok}}`: {
			[]string{"--command", "--", "./server", "-x"},
			[]string{"SLUICE_RUNNER_SERVER_PORT=9000", "SLUICE_RUNNER_SCORE_PATH=/predict", "SLUICE_RUNNER_HEALTH_PATH=/ok", "AZUREML_MODEL_DIR=/var/azureml-app/model"},
			&rollout.Server{Command: []string{"./server", "-x"}, Port: 9000, ScorePath: "/predict", HealthPath: "/ok"},
		},
		`{entryScript: app.py, mode: script, arguments: ["a"], server: {port: 8000, scorePath: /p}}`: {
			[]string{"--entry-script=app.py", "--mode=script", "--", "a"},
			[]string{"SLUICE_RUNNER_SERVER_PORT=8000", "SLUICE_RUNNER_SCORE_PATH=/p"},
			&rollout.Server{ScorePath: "/p"},
		},
	} {
		text := strings.Replace(manifest, manifest[strings.Index(manifest, "scoring:"):], "scoring: "+scoring+"\n", 1)
		out := ship(t, s, write(t, t.TempDir(), "sluice.yaml", text, "model/m", "m", "app.py", "pass"))
		config, err := r.image(t, out.Image).ConfigFile()
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want.cmd, config.Config.Cmd) + cmp.Diff(want.server, out.Settings.Server); diff != "" {
			t.Errorf("%s: %s", scoring, diff)
		}
		for _, kv := range want.env {
			if !slices.Contains(config.Config.Env, kv) {
				t.Errorf("%s: no %s in %q", scoring, kv, config.Config.Env)
			}
		}
	}
}

func TestPlatformsAndPullRegistry(t *testing.T) {
	r := newRegistry(t)
	s := r.shipper(t)
	s.PullRegistry = "localhost:5000"
	out := ship(t, s, project(t))
	_, digest, _ := strings.Cut(out.Image, "@")
	if out.Image != "localhost:5000/models/fraud@"+digest {
		t.Errorf("nodes are to pull %s", out.Image)
	}
	config, err := r.image(t, r.host+"/models/fraud@"+digest).ConfigFile()
	if err != nil || config.Architecture != runtime.GOARCH {
		t.Errorf("without --platform: %s, want that of the runner (%v)", config.Architecture, err)
	}
	// By the runner's image, whose layer becomes the version's, and by the endpoint's other name.
	index, err := image.Index(image.Program{Name: "runner", File: s.RunnerFile})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.PushIndex(t.Context(), index, r.host+"/sluice/runner:1"); err != nil {
		t.Fatal(err)
	}
	r.since()
	s.RunnerFile, s.RunnerImage, s.PullRegistry, s.Endpoint, s.Platform = "", r.host+"/sluice/runner:1", "", "other", "linux/"+runtime.GOARCH
	again := ship(t, s, project(t))
	if again.Image != r.host+"/models/other@"+digest {
		t.Errorf("with the runner's image: %s, want the digest %s", again.Image, digest)
	}
	// By another name of the architecture.
	s.Platform = "linux/" + strings.NewReplacer("amd64", "x86_64", "arm64", "aarch64").Replace(runtime.GOARCH)
	if named := ship(t, s, project(t)); named.Image != again.Image {
		t.Errorf("for %s: %s, want %s", s.Platform, named.Image, again.Image)
	}
}

// get is the first refusal of an error.
func get(err error) rollout.Error {
	if errs := rollout.AsErrors(err); len(errs) > 0 {
		return *errs[0]
	}
	return rollout.Error{Message: fmt.Sprint(err)}
}

func TestRefusals(t *testing.T) {
	t.Parallel()
	r := newRegistry(t)
	good := r.shipper(t)
	good.Platform = "linux/amd64"
	if runtime.GOARCH != "amd64" {
		t.Skip("the table is for a runner of amd64")
	}
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	gone := free.Addr().String()
	free.Close()
	answering := func(code int) string {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			if req.URL.Path == "/v2/" {
				return
			}
			w.WriteHeader(code)
			fmt.Fprint(w, `{"errors":[{"code":"X","message":"told so"}]}`)
		}))
		t.Cleanup(s.Close)
		return strings.TrimPrefix(s.URL, "http://")
	}
	closed, forbids, teapot := answering(401), answering(403), answering(418)
	script := filepath.Join(t.TempDir(), "runner")
	if err := os.WriteFile(script, []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		set    func(*image.Shipper)
		reason rollout.Reason
		field  string
		says   string
	}{
		"no registry":            {func(s *image.Shipper) { s.Registry = "" }, rollout.ReasonInvalid, "registry", "need a registry"},
		"no name":                {func(s *image.Shipper) { s.Registry = "Upper Case" }, rollout.ReasonInvalid, "registry", "not the name of a repository"},
		"unreachable":            {func(s *image.Shipper) { s.Registry = gone }, rollout.ReasonRegistryUnreachable, "registry", "cannot be reached"},
		"unauthorized":           {func(s *image.Shipper) { s.Registry = closed }, rollout.ReasonRegistryDenied, "registry", "does not allow it"},
		"forbidden":              {func(s *image.Shipper) { s.Registry = forbids }, rollout.ReasonRegistryDenied, "registry", "does not allow it"},
		"refused":                {func(s *image.Shipper) { s.Registry = teapot }, rollout.ReasonRegistryRefused, "registry", "refuses it"},
		"base unreachable":       {func(s *image.Shipper) { s.BaseImage = gone + "/base:1" }, rollout.ReasonRegistryUnreachable, "environment.baseImage", "cannot be reached"},
		"base unauthorized":      {func(s *image.Shipper) { s.BaseImage = closed + "/base:1" }, rollout.ReasonRegistryDenied, "environment.baseImage", "told so"},
		"no such tag":            {func(s *image.Shipper) { s.BaseImage = r.host + "/base:2" }, rollout.ReasonBaseImageMissing, "environment.baseImage", "does not have it"},
		"no such repository":     {func(s *image.Shipper) { s.BaseImage = r.host + "/nothing:1" }, rollout.ReasonBaseImageMissing, "environment.baseImage", "does not have it"},
		"no reference":           {func(s *image.Shipper) { s.BaseImage = "Python 3" }, rollout.ReasonInvalid, "environment.baseImage", "not the name of an image"},
		"no base":                {func(s *image.Shipper) { s.BaseImage = "" }, rollout.ReasonInvalid, "environment.baseImage", "no base image"},
		"base of another":        {func(s *image.Shipper) { s.BaseImage = r.host + "/base:arm" }, rollout.ReasonWrongPlatform, "environment.baseImage", "linux/arm64, not for linux/amd64"},
		"runner of another":      {func(s *image.Shipper) { s.Platform = "linux/arm64" }, rollout.ReasonWrongPlatform, "runner", "is for linux/amd64"},
		"index without":          {func(s *image.Shipper) { s.Platform, s.RunnerFile, s.RunnerImage = "linux/s390x", "", r.host+"/base:1" }, rollout.ReasonWrongPlatform, "runner", "linux/amd64, linux/arm64/v8, not for linux/s390x"},
		"another runner's image": {func(s *image.Shipper) { s.RunnerFile, s.RunnerImage = "", r.host+"/base:1" }, rollout.ReasonInvalid, "runner", "not Sluice's runner"},
		"no runner":              {func(s *image.Shipper) { s.RunnerFile = "" }, rollout.ReasonInvalid, "runner", "need the runner"},
		"no program":             {func(s *image.Shipper) { s.RunnerFile = script }, rollout.ReasonInvalid, "runner", "no Linux program"},
		"windows":                {func(s *image.Shipper) { s.Platform = "windows/amd64" }, rollout.ReasonInvalid, "platform", "not a platform"},
		"a path to pull from":    {func(s *image.Shipper) { s.PullRegistry = "localhost:5000/x" }, rollout.ReasonInvalid, "pullRegistry", "not the address"},
	} {
		t.Run(name, func(t *testing.T) {
			s := good
			c.set(&s)
			_, err := s.Ship(t.Context(), project(t))
			e := get(err)
			if e.Reason != c.reason || e.Field != c.field || e.Hint == "" || !strings.Contains(e.Message, c.says) {
				t.Errorf("%v (%q), want %s at %s that says %q", err, e.Reason, c.reason, c.field, c.says)
			}
			if left, err := os.ReadDir(s.TempDir); err != nil || len(left) > 0 {
				t.Errorf("%d files are left behind (%v)", len(left), err)
			}
		})
	}
	_, err = good.Ship(t.Context(), write(t, project(t), "src/.wh.gone", ""))
	if e := get(err); e.Reason != rollout.ReasonUnsafeFile || !strings.Contains(e.Message, ".wh.gone") {
		t.Errorf("a file that would remove another: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := good.Ship(ctx, project(t)); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

func TestCredentialsAndPlainHTTP(t *testing.T) {
	inner := newRegistry(t)
	s := inner.shipper(t)
	closed := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if name, password, ok := req.BasicAuth(); !ok || name != "robot" || password != "secret" {
			w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		req.Host = inner.host
		(&httputil.ReverseProxy{Rewrite: func(p *httputil.ProxyRequest) { p.SetURL(&url.URL{Scheme: "http", Host: inner.host}) }}).ServeHTTP(w, req)
	}))
	defer closed.Close()
	s.Registry = strings.TrimPrefix(closed.URL, "http://") + "/models"
	if _, err := s.Ship(t.Context(), project(t)); get(err).Reason != rollout.ReasonRegistryDenied || !strings.Contains(get(err).Hint, "docker login "+strings.TrimPrefix(closed.URL, "http://")) {
		t.Errorf("without credentials: %v", err)
	}
	s.Keychain = keychain{}
	if out := ship(t, s, project(t)); !strings.HasPrefix(out.Image, s.Registry) {
		t.Errorf("shipped %+v", out)
	}

	for _, c := range []struct {
		insecure []string
		repo     string
		scheme   string
	}{
		{nil, "registry.example:5000/a", "https"}, {[]string{"registry.example:5000"}, "registry.example:5000/a", "http"},
		{[]string{"registry.example"}, "registry.example:5000/a", "https"}, {nil, "localhost:5000/a", "http"}, {nil, "127.0.0.1:1/a", "http"},
	} {
		repo, err := image.Client{Insecure: c.insecure}.Repository(c.repo)
		if err != nil || repo.Scheme() != c.scheme {
			t.Errorf("%s with %q: %s (%v), want %s", c.repo, c.insecure, repo.Scheme(), err, c.scheme)
		}
	}
}

type keychain struct{}

func (keychain) Resolve(authn.Resource) (authn.Authenticator, error) {
	return &authn.Basic{Username: "robot", Password: "secret"}, nil
}

// TestItServes unpacks an image as a container's file system and starts what it says, with this
// machine's Python and its paths below that directory.
func TestItServes(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("python3"); err != nil {
		t.Skip("no python3")
	}
	r := newRegistry(t)
	s := r.shipper(t)
	out := ship(t, s, filepath.Join("..", "..", "testdata", "breast-cancer"))
	img := r.image(t, out.Image)
	config, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	root := t.TempDir()
	for _, l := range layers[1:] { // the base has nothing that runs
		r, err := l.Uncompressed()
		if err != nil {
			t.Fatal(err)
		}
		c := exec.Command("tar", "-x", "-C", root)
		c.Stdin = r
		if msg, err := c.CombinedOutput(); err != nil {
			t.Fatalf("unpack: %v: %s", err, msg)
		}
		r.Close()
	}
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := free.Addr().String()
	free.Close()
	c := exec.Command(filepath.Join(root, config.Config.Entrypoint[0]), config.Config.Cmd...)
	c.Dir = filepath.Join(root, config.Config.WorkingDir)
	for _, kv := range config.Config.Env {
		if name, value, _ := strings.Cut(kv, "="); name != "PATH" {
			c.Env = append(c.Env, name+"="+strings.Replace(value, image.ProjectDir, filepath.Join(root, image.ProjectDir), 1))
		}
	}
	c.Env = append(c.Env, "PATH="+os.Getenv("PATH"), "SLUICE_RUNNER_LISTEN="+address, "PYTHONDONTWRITEBYTECODE=1")
	var log bytes.Buffer
	c.Stdout, c.Stderr = &log, &log
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- c.Wait() }()
	defer func() {
		_ = c.Process.Signal(os.Interrupt)
		if err := <-ended; err != nil {
			t.Errorf("the runner ended with %v:\n%s", err, log.String())
		}
	}()
	deadline := time.Now().Add(time.Minute)
	for {
		resp, err := http.Post("http://"+address+"/score", "application/json", bytes.NewReader(out.Test.Body))
		if err == nil {
			body, _ := io.ReadAll(resp.Body)
			resp.Body.Close()
			if resp.StatusCode == out.Test.Status {
				t.Logf("it answers %s", body)
				return
			}
			err = fmt.Errorf("%d: %s", resp.StatusCode, body)
		}
		if time.Now().After(deadline) {
			t.Fatalf("it does not serve: %v", err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// TestMemoryIsFlat ships a model of 2 GiB to a registry that keeps nothing of it.
func TestMemoryIsFlat(t *testing.T) {
	if raceDetector {
		t.Skip("make image-e2e runs it without the race detector, with which it takes minutes")
	}
	if testing.Short() {
		t.Skip("reads and writes several GiB")
	}
	const size, bound = 2 << 30, 96 << 20
	r := newRegistry(t)
	s := r.shipper(t)
	var received atomic.Int64
	sink := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		n, _ := io.Copy(io.Discard, req.Body)
		switch req.Method {
		case http.MethodHead:
			w.WriteHeader(http.StatusNotFound)
		case http.MethodGet:
		case http.MethodPost:
			w.Header().Set("Location", req.URL.Path+"1")
			w.WriteHeader(http.StatusAccepted)
		case http.MethodPatch:
			received.Add(n)
			w.Header().Set("Location", req.URL.Path)
			w.WriteHeader(http.StatusAccepted)
		default:
			w.WriteHeader(http.StatusCreated)
		}
	}))
	defer sink.Close()
	s.Registry = strings.TrimPrefix(sink.URL, "http://")
	dir := project(t)
	weights(t, filepath.Join(dir, "model", "weights.bin"), 2*mib, 1) // by which it is judged not to shrink; the rest is a hole
	if err := os.Truncate(filepath.Join(dir, "model", "weights.bin"), size); err != nil {
		t.Fatal(err)
	}
	runtime.GC()
	var before runtime.MemStats
	runtime.ReadMemStats(&before)
	stop, peak := make(chan struct{}), make(chan uint64)
	go func() {
		var most uint64
		for {
			var now runtime.MemStats
			runtime.ReadMemStats(&now)
			most = max(most, now.HeapInuse+now.StackInuse)
			select {
			case <-stop:
				peak <- most
				return
			case <-time.After(5 * time.Millisecond):
			}
		}
	}()
	began := time.Now()
	_, err := s.Ship(t.Context(), dir)
	close(stop)
	most := <-peak
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("shipped %d MB in %s; memory in use went from %d to at most %d KB", received.Load()>>20, time.Since(began).Round(time.Millisecond), before.HeapInuse>>10, most>>10)
	if received.Load() < size {
		t.Errorf("only %d bytes were sent", received.Load())
	}
	if grown := int64(most) - int64(before.HeapInuse); grown > bound {
		t.Errorf("memory grew by %d bytes, more than %d", grown, bound)
	}
}

// TestPlainJSON: what other tools read is what was meant.
func TestPlainJSON(t *testing.T) {
	r := newRegistry(t)
	raw, err := r.image(t, ship(t, r.shipper(t), project(t)).Image).RawConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	var is struct {
		Created string `json:"created"`
		RootFS  struct {
			DiffIDs []string `json:"diff_ids"`
		} `json:"rootfs"`
	}
	if err := json.Unmarshal(raw, &is); err != nil || is.Created != "0001-01-01T00:00:00Z" || len(is.RootFS.DiffIDs) != 4 {
		t.Errorf("%s (%v)", raw, err)
	}
}
