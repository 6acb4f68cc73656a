package kubernetes

import (
	"archive/zip"
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sluice-dev/sluice/pkg/image/build"
)

// wheel of a package greet whose greeting() says so.
func wheel(t *testing.T, version, greeting string) []byte {
	t.Helper()
	info := "greet-" + version + ".dist-info/"
	files := [][2]string{
		{"greet.py", fmt.Sprintf("def greeting():\n    return %q\n", greeting)},
		{info + "METADATA", "Metadata-Version: 2.1\nName: greet\nVersion: " + version + "\n"},
		{info + "WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"},
	}
	var record strings.Builder
	for _, f := range files {
		sum := sha256.Sum256([]byte(f[1]))
		fmt.Fprintf(&record, "%s,sha256=%s,%d\n", f[0], base64.RawURLEncoding.EncodeToString(sum[:]), len(f[1]))
	}
	fmt.Fprintf(&record, "%sRECORD,,\n", info)
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	for _, f := range append(files, [2]string{info + "RECORD", record.String()}) {
		w, err := z.Create(f[0])
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(f[1])); err != nil {
			t.Fatal(err)
		}
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// packageIndex serves wheels of greet 1.0 and 2.0, by the simple repository API (PEP 503).
func packageIndex(t *testing.T) string {
	t.Helper()
	wheels := map[string][]byte{
		"greet-1.0-py3-none-any.whl": wheel(t, "1.0", "hello from 1.0"),
		"greet-2.0-py3-none-any.whl": wheel(t, "2.0", "hello from 2.0"),
	}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		name := strings.TrimPrefix(r.URL.Path, "/simple/greet/")
		if b, is := wheels[name]; is {
			_, _ = w.Write(b)
			return
		}
		if name != "" || r.URL.Path != "/simple/greet/" {
			http.NotFound(w, r)
			return
		}
		w.Header().Set("Content-Type", "text/html")
		for name, b := range wheels {
			fmt.Fprintf(w, "<a href=\"%s#sha256=%x\">%s</a>\n", name, sha256.Sum256(b), name)
		}
	}))
	t.Cleanup(s.Close)
	return s.URL + "/simple/"
}

// installs is a docker step that has programs in Debian's packages: pip, for the packages after it, and one for the script to run.
const installs = `"RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends python3-pip hello && rm -rf /var/lib/apt/lists/*"`

// greets answers what pip's package and Debian's program say.
const greets = "    import greet, subprocess\n    d = {\"n\": greet.greeting() + \", \" + subprocess.check_output([\"hello\"], text=True).strip()}\n"

// TestBuiltEnvironment: docker steps run apt-get and pip installs from an index, for real; the first deploy builds, the second
// finds, a changed comment finds, a changed package builds, and what only the global registry has is copied; the image runs on the
// cluster, and what both installed answers.
func TestBuiltEnvironment(t *testing.T) {
	tool := os.Getenv("SLUICE_TEST_CLUSTER")
	if os.Getenv(build.HostVariable) == "" || tool == "" {
		t.Skip("needs BuildKit and the cluster of test/cluster: `make environment-e2e`")
	}
	in := install(t)
	in.remove(t, "built")
	t.Cleanup(func() { in.remove(t, "built") })
	// Builds reach package mirrors from the host's network, so this test is there too, and the router is led to it.
	var service corev1.Service
	if err := in.client.Get(t.Context(), client.ObjectKey{Namespace: system, Name: "sluice-router"}, &service); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(tool, "forward", "0:"+service.Spec.ClusterIP+":80").CombinedOutput()
	if err != nil {
		t.Fatalf("forward: %v\n%s", err, out)
	}
	router := "http://" + strings.TrimSpace(string(out))

	shared := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	t.Cleanup(shared.Close)
	global := strings.TrimPrefix(shared.URL, "http://") + "/shared"
	// Workspaces of this run's own: an earlier one may have left images, and what steps made, in the same registry.
	workspace := fmt.Sprintf("%s/built-%x", in.push, time.Now().UnixNano())
	other := workspace + "-other"

	index := packageIndex(t)
	deploy := func(version, requirements, workspace string) string {
		dir := project(t, "built", version, greets)
		edit(t, dir, "scoring:", "environment: {requirements: requirements.txt, dockerSteps: ["+installs+"]}\nscoring:")
		if err := os.WriteFile(filepath.Join(dir, "requirements.txt"), []byte("--index-url "+index+"\n"+requirements), 0o644); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		said, err := in.sluiceBoth("deploy", dir, "--version", version, "--router-url", router, "--registry", workspace, "--global-registry", global)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%s: deployed in %s", version, time.Since(began).Round(100*time.Millisecond))
		return said
	}
	builder := os.Getenv(build.HostVariable)
	const built, found, copied = "is not there yet: it is built", "is in the workspace registry", "is in the global registry: copied"
	for _, d := range []struct{ version, requirements, workspace, want, answer string }{
		{"one", "greet==1.0\n", workspace, built, "hello from 1.0"},
		{"two", "greet==1.0\n", workspace, found, "hello from 1.0"},
		{"three", "# a comment\ngreet == 1.0\n", workspace, found, "hello from 1.0"},
		{"four", "greet==2.0\n", workspace, built, "hello from 2.0"},
		{"five", "greet==2.0\n", other, copied, "hello from 2.0"},
	} {
		// Whatever is not to be built could not be.
		host := builder
		if d.want != built {
			host = "unix://" + filepath.Join(t.TempDir(), "nobody")
		}
		t.Setenv(build.HostVariable, host)
		if d.want == copied {
			share(t, workspace, global)
		}
		said := deploy(d.version, d.requirements, d.workspace)
		for _, outcome := range []string{built, found, copied} {
			if is := strings.Contains(said, outcome); is != (outcome == d.want) {
				t.Errorf("%s: %q is said: %t, want only %q, in\n%s", d.version, outcome, is, d.want, said)
			}
		}
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, router+"/api/v1/endpoint/"+models+"/built/score", strings.NewReader(`{"n": 1}`))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+in.key(t, "built"))
		req.Header.Set("Sluice-Version", d.version)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		var body bytes.Buffer
		_, _ = body.ReadFrom(resp.Body)
		_ = resp.Body.Close()
		want := fmt.Sprintf(`{"n": "%s, Hello, world!", "version": "%s"}`, d.answer, d.version)
		if resp.StatusCode != http.StatusOK || strings.TrimSpace(body.String()) != want {
			t.Errorf("%s answers %d %s, want %s", d.version, resp.StatusCode, &body, want)
		}
	}
	have := environments(t, workspace)
	if len(have) != 2 {
		t.Errorf("the workspace has %v, want an image for each of the two environments", have)
	}
	brought := environments(t, other)
	if len(brought) != 1 {
		t.Errorf("the other workspace has %v, want one environment", brought)
	}
	for tag, digest := range brought {
		if digest != have[tag] {
			t.Errorf("%s was copied as %s and is %s", tag, digest, have[tag])
		}
	}
}

// environments are the digests of a registry's images of environments, by tag.
func environments(t *testing.T, from string) map[string]v1.Hash {
	t.Helper()
	repo, err := name.NewRepository(from + "/environments")
	if err != nil {
		t.Fatal(err)
	}
	tags, err := remote.List(repo, remote.WithContext(t.Context()))
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]v1.Hash{}
	for _, tag := range tags {
		if !strings.HasPrefix(tag, "env-") {
			continue // what steps made is kept there too
		}
		is, err := remote.Head(repo.Tag(tag), remote.WithContext(t.Context()))
		if err != nil {
			t.Fatal(err)
		}
		out[tag] = is.Digest
	}
	return out
}

// share copies the environments of one registry to another.
func share(t *testing.T, from, to string) {
	t.Helper()
	for tag := range environments(t, from) {
		source, err := name.NewTag(from + "/environments:" + tag)
		if err != nil {
			t.Fatal(err)
		}
		target, err := name.NewTag(to + "/environments:" + tag)
		if err != nil {
			t.Fatal(err)
		}
		image, err := remote.Image(source, remote.WithContext(t.Context()))
		if err != nil {
			t.Fatal(err)
		}
		if err := remote.Write(target, image, remote.WithContext(t.Context())); err != nil {
			t.Fatal(err)
		}
	}
}
