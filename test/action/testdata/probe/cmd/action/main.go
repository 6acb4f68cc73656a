// Command action is a container action for tests of what runs them: it says what it is given, writes
// outputs, a job summary, an annotation and a mask, and reaches a registry and a cluster's API server.
package main

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"regexp"
	"sort"
	"strings"
	"time"
)

// revision is stamped by the linker.
var revision = "compiled"

func main() {
	if err := run(); err != nil {
		fmt.Printf("::error file=sluice.yaml,line=3::%s\n", err)
		os.Exit(1)
	}
}

func run() error {
	fmt.Println("::group::What there is")
	env := os.Environ()
	sort.Strings(env)
	for _, e := range env {
		if strings.HasPrefix(e, "GITHUB_") || strings.HasPrefix(e, "INPUT_") && !strings.Contains(e, "KUBECONFIG") || strings.HasPrefix(e, "HOME=") {
			fmt.Println(e)
		}
	}
	fmt.Println("uid", os.Getuid())
	socket, err := os.Stat("/var/run/docker.sock")
	fmt.Println("engine's socket:", err == nil && socket.Mode().Type() == os.ModeSocket)
	builder, err := net.Dial("unix", strings.TrimPrefix(os.Getenv("BUILDKIT_HOST"), "unix://"))
	fmt.Println("builder:", err == nil)
	if err == nil {
		_ = builder.Close()
	}
	note, _ := os.ReadFile("/mnt/note")
	fmt.Printf("note: %s\n", note)
	fmt.Println("::endgroup::")
	fmt.Println("::add-mask::hush-hush")
	fmt.Println("this is hush-hush")
	temporary, err := os.CreateTemp("", "probe")
	if err != nil {
		return err
	}
	_ = os.Remove(temporary.Name())
	if _, err := x509.SystemCertPool(); err != nil {
		return err
	}
	manifest, err := os.ReadFile("sluice.yaml")
	if err != nil {
		return fmt.Errorf("read the workspace: %w", err)
	}
	payload, err := os.ReadFile(os.Getenv("GITHUB_EVENT_PATH"))
	if err != nil {
		return err
	}
	var event struct {
		Number int `json:"number"`
	}
	if err := json.Unmarshal(payload, &event); err != nil {
		return err
	}
	client := &http.Client{Timeout: 10 * time.Second}
	registry, err := get(client, "http://"+os.Getenv("INPUT_REGISTRY")+"/v2/_catalog")
	if err != nil {
		return err
	}
	kubeconfig := os.Getenv("INPUT_KUBECONFIG")
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(data(kubeconfig, "certificate-authority-data"))
	certificate, err := tls.X509KeyPair(data(kubeconfig, "client-certificate-data"), data(kubeconfig, "client-key-data"))
	if err != nil {
		return err
	}
	client.Transport = &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{certificate}}}
	version, err := get(client, field(kubeconfig, "server")+"/version")
	if err != nil {
		return err
	}
	if os.Getenv("INPUT_FAIL") == "true" {
		return fmt.Errorf("told to fail")
	}
	fmt.Println("::notice title=Probe::all reached")
	outputs := fmt.Sprintf("revision=%s\nregistry=%s\nlines<<END\none\ntwo\nEND\ncluster<<END\n%s\nEND\n", revision, strings.TrimSpace(registry), version)
	if err := add("GITHUB_OUTPUT", outputs); err != nil {
		return err
	}
	return add("GITHUB_STEP_SUMMARY", fmt.Sprintf("## Hello, %s\n\n| pull request | workspace |\n| --- | --- |\n| #%d | %d bytes |\n", os.Getenv("INPUT_GREETING"), event.Number, len(manifest)))
}

func get(client *http.Client, address string) (string, error) {
	resp, err := client.Get(address)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s answers %s: %s", address, resp.Status, body)
	}
	return string(body), err
}

// field is a value in a kubeconfig, which is read by its looks: this program has no dependencies.
func field(kubeconfig, name string) string {
	m := regexp.MustCompile(`(?m)^\s*` + name + `:\s*"?([^"\s]+)`).FindStringSubmatch(kubeconfig)
	if m == nil {
		return ""
	}
	return m[1]
}

func data(kubeconfig, name string) []byte {
	b, _ := base64.StdEncoding.DecodeString(field(kubeconfig, name))
	return b
}

func add(variable, text string) error {
	f, err := os.OpenFile(os.Getenv(variable), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	if end := f.Close(); err == nil {
		err = end
	}
	return err
}
