package e2e

import (
	"errors"
	"net/http"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/sluice-dev/sluice/rollout"
)

// code is the exit code of a command that sluice() ran.
func code(err error) int {
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode()
	}
	return 0
}

// TestFailingDeploys: what cannot serve is never in the way, and the error says why.
func TestFailingDeploys(t *testing.T) {
	s := start(t)
	s.must("deploy", "--version", "good", project(t, "echo", "good", quick, ""))
	for _, tc := range []struct {
		name, script, settings, say string
		code                        int
	}{
		{"raises-in-init", "def init():\n    raise RuntimeError('no weights here')\ndef run(data):\n    return 1\n", "", "no weights here", 1},
		{"no-run", "def init():\n    pass\n", "", "run", 1},
		{"syntax", "def init(:\n", "", "SyntaxError", 1},
		{"never-ready", "import time\ndef init():\n    time.sleep(60)\ndef run(data):\n    return 1\n", "", "not_ready_in_time", 7},
		{"smoke", "def init():\n    pass\ndef run(data):\n    raise ValueError('bad input')\n", "test: {request: one.json}\n", "smoke_test_failed", 1},
	} {
		dir := project(t, "echo", tc.name, tc.settings, "")
		write(t, dir+"/score.py", tc.script)
		write(t, dir+"/one.json", "{}")
		out, err := s.sluice("deploy", "--version", tc.name, "--timeout", "4s", dir)
		if code(err) != tc.code || err == nil || !strings.Contains(err.Error(), tc.say) {
			t.Errorf("%s: exit code %d, want %d and %q in: %v %s", tc.name, code(err), tc.code, tc.say, err, out)
		}
		v := s.endpoint("echo").Spec.Version(tc.name)
		if v == nil || v.Type != rollout.Untyped || v.TrafficPercentile != 0 || v.RetiredAt.IsZero() {
			t.Errorf("%s is %+v, want it untyped at 0 and retired", tc.name, v)
		}
	}
	if a := newClient(s.url("echo"), s.key("echo")).send(t.Context()); !a.ok() || a.version != "good" {
		t.Errorf("after the failures: %s", a)
	}
}

// TestWaysToServe: a server of one's own, a script that serves, arguments, and several models.
func TestWaysToServe(t *testing.T) {
	s := start(t)
	server := `import http.server, json, os, sys
class H(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def log_message(self, *a): pass
    def answer(self, body):
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def do_GET(self): self.answer(b"well")
    def do_POST(self):
        d = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.answer(json.dumps({"n": d["n"], "version": self.path + " " + " ".join(sys.argv[1:])}).encode())
http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), H).serve_forever()
`
	for name, scoring := range map[string]string{
		"own":    "scoring: {command: [python3, server.py, one, two], server: {scorePath: /predict, healthPath: /health}}",
		"script": "scoring: {entryScript: server.py, mode: script, arguments: [one, two]}",
	} {
		dir := project(t, name, "v", "", "")
		write(t, dir+"/server.py", server)
		write(t, dir+"/sluice.yaml", "apiVersion: sluice.dev/v1alpha1\nkind: Project\nendpoint: "+name+"\n"+scoring+"\n")
		s.must("deploy", "--version", "v", dir)
		if a := newClient(s.url(name), s.key(name)).send(t.Context()); !a.ok() {
			t.Errorf("%s: %s", name, a)
		}
	}

	dir := project(t, "models", "v", "models: [{name: a, version: \"1\", path: x.txt}, {name: b, version: \"2\", path: sub/}]\n", `
root = os.environ["AZUREML_MODEL_DIR"]
assert open(root + "/a/1/x.txt").read() == "first", "first model"
assert open(root + "/b/2/y.txt").read() == "second", "second model"
assert sys.argv[0].endswith("score.py")`)
	write(t, dir+"/x.txt", "first")
	if err := exec.Command("mkdir", dir+"/sub").Run(); err != nil {
		t.Fatal(err)
	}
	write(t, dir+"/sub/y.txt", "second")
	s.must("deploy", "--version", "v", dir)
	if a := newClient(s.url("models"), s.key("models")).send(t.Context()); !a.ok() {
		t.Errorf("several models: %s", a)
	}
}

// TestKeys: no key, a wrong one, a replaced one; both keys open; no endpoint of another opens.
func TestKeys(t *testing.T) {
	s := start(t)
	s.must("deploy", "--version", "v", project(t, "one", "v", "", ""))
	s.must("deploy", "--version", "v", project(t, "two", "v", "", ""))
	status := func(endpoint, key string) int { return newClient(s.url(endpoint), key).send(t.Context()).status }
	key := s.key("one")
	if got := status("one", key); got != http.StatusOK {
		t.Fatalf("with its key: %d", got)
	}
	for _, wrong := range []string{"", "x", key[:len(key)-1], key + "x", s.key("two")} {
		if got := status("one", wrong); got != http.StatusUnauthorized {
			t.Errorf("with the key %.3s… of %d characters: %d, want 401", wrong, len(wrong), got)
		}
	}
	s.must("keys", "regenerate", "one")
	eventually(t, 5*time.Second, "the old key is refused", func() error {
		if status("one", key) != http.StatusUnauthorized {
			return errors.New("it still opens")
		}
		return nil
	})
	if got := status("one", s.key("one")); got != http.StatusOK {
		t.Errorf("with the new key: %d", got)
	}
}
