package kubernetes

import (
	"archive/zip"
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
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

// TestBuiltEnvironment: docker steps run apt-get and pip installs from an index, for real; the first deploy builds, the second
// finds, a changed comment finds, a changed package builds; the image runs on the cluster and answers.
func TestBuiltEnvironment(t *testing.T) {
	tool := os.Getenv("SLUICE_TEST_CLUSTER")
	if os.Getenv("BUILDKIT_HOST") == "" || tool == "" {
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

	index := packageIndex(t)
	deploy := func(version, requirements string) string {
		dir := project(t, "built", version, "    import greet\n    d = {\"n\": greet.greeting()}\n")
		edit(t, dir, "scoring:", "environment: {requirements: requirements.txt, dockerSteps: [\"RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends python3-pip\"]}\nscoring:")
		if err := os.WriteFile(filepath.Join(dir, "requirements.txt"), []byte("--index-url "+index+"\n"+requirements), 0o644); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		said, err := in.sluiceBoth("deploy", dir, "--version", version, "--router-url", router)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%s: deployed in %s", version, time.Since(began).Round(100*time.Millisecond))
		return said
	}
	built, found := "is not there yet: it is built", "is in the workspace registry"
	for _, d := range []struct{ version, requirements, want, not, answer string }{
		{"one", "greet==1.0\n", built, found, "hello from 1.0"},
		{"two", "greet==1.0\n", found, built, "hello from 1.0"},
		{"three", "# a comment\ngreet == 1.0\n", found, built, "hello from 1.0"},
		{"four", "greet==2.0\n", built, found, "hello from 2.0"},
	} {
		said := deploy(d.version, d.requirements)
		if !strings.Contains(said, d.want) || strings.Contains(said, d.not) {
			t.Errorf("%s: want %q and not %q in\n%s", d.version, d.want, d.not, said)
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
		if resp.StatusCode != http.StatusOK || !strings.Contains(body.String(), d.answer) {
			t.Errorf("%s answers %d %s, want %q", d.version, resp.StatusCode, &body, d.answer)
		}
	}
}
