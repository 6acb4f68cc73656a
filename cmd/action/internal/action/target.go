package action

import (
	"cmp"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"k8s.io/client-go/tools/clientcmd"

	"github.com/sluice-dev/sluice/pkg/access"
	"github.com/sluice-dev/sluice/pkg/cluster"
	"github.com/sluice-dev/sluice/pkg/cluster/kube"
	"github.com/sluice-dev/sluice/pkg/deploy"
	"github.com/sluice-dev/sluice/pkg/process"
	"github.com/sluice-dev/sluice/rollout"
)

// system is where endpoints are.
type system struct {
	endpoints cluster.Editor
	keys      deploy.Keys
	logs      cluster.LogReader
	namespace string
}

func (s *system) key(endpoint string) rollout.Key {
	return rollout.Key{Namespace: s.namespace, Name: endpoint}
}

// checkServer refuses what is no address of a server, and a token over the open network.
func checkServer(server string) *rollout.Error {
	u, err := url.Parse(server)
	switch {
	case err != nil || u.Host == "" || (u.Scheme != "https" && u.Scheme != "http") || u.RawQuery != "" || u.Fragment != "":
		return invalid("server", "write it as https://HOST", "%q is not the address of a server", server)
	case u.User != nil:
		return invalid("server", "leave the credentials out: the workflow proves itself by its token", "the address holds credentials")
	case u.Scheme == "http" && !access.Loopback(u.Hostname()):
		return invalid("server", "write https://", "a token would cross the network in plain text")
	}
	return nil
}

func (r *run) reachTarget(ctx context.Context) (*system, error) {
	if r.in.text["target"] == targetServer {
		return r.reachServer(ctx)
	}
	path, err := r.kubeconfig()
	if err != nil {
		return nil, err
	}
	ns := r.in.text["namespace"]
	if ns == "" {
		if _, ns, err = kube.Config(path, r.in.text["context"]); err != nil {
			return nil, kubeconfigRefused(err)
		}
	}
	k, err := kube.OpenClient(ctx, kube.OpenOptions{Kubeconfig: path, Context: r.in.text["context"], Namespaces: []string{ns}, SystemNamespace: ns, Logger: r.log})
	if err != nil {
		return nil, kubeconfigRefused(err)
	}
	return &system{endpoints: cluster.Editing(k.Store), keys: k.Keys, logs: k.Logs, namespace: ns}, nil
}

// kubeconfigRefused names inputs where the command line's flags would be named.
func kubeconfigRefused(err error) error {
	var e *rollout.Error
	if errors.As(err, &e) && e.Field == "--kubeconfig" {
		return invalid("kubeconfig", "give a kubeconfig that works, and one of its contexts with the input context", "%s", e.Message)
	}
	return err
}

// isKubeconfig tells the text of a kubeconfig from a path.
func isKubeconfig(s string) bool {
	return strings.ContainsAny(s, "\n{") || strings.HasPrefix(s, "apiVersion:")
}

// kubeconfig is the path of the file, or empty for the one that kubectl would use.
func (r *run) kubeconfig() (string, error) {
	given := r.in.text["kubeconfig"]
	composite := "use sluice-dev/sluice/action/composite, which runs on the runner itself, or give the kubeconfig as text: docs/action.md"
	path := ""
	switch {
	case isKubeconfig(given):
		dir, err := os.MkdirTemp(process.Getenv(r.env, "RUNNER_TEMP"), "sluice-*")
		if err != nil {
			return "", fmt.Errorf("keep kubeconfig: %w", err)
		}
		r.clean = append(r.clean, func() { _ = os.RemoveAll(dir) })
		path = filepath.Join(dir, "kubeconfig")
		if err := os.WriteFile(path, []byte(given), 0o600); err != nil {
			return "", fmt.Errorf("keep kubeconfig: %w", err)
		}
	case given != "":
		var err error
		if path, err = r.path("kubeconfig", given); err != nil {
			return "", err
		}
		if _, err := os.Stat(path); err != nil {
			shown := "of that name"
			if len(given) < 100 {
				shown = given
			} // what is longer may be a kubeconfig in some other form
			return "", invalid("kubeconfig", "name a file of the workspace, or give the kubeconfig's text from a secret", "there is no file %s in the workspace", shown)
		}
	default:
		// Those that a login step has written lie outside of what a container action sees.
		path = process.Getenv(r.env, "KUBECONFIG")
		if path != "" && !strings.Contains(path, string(filepath.ListSeparator)) {
			if _, err := os.Stat(path); err != nil {
				return "", invalid("kubeconfig", composite, "KUBECONFIG names %s, which is not there", path)
			}
		}
		home := process.Getenv(r.env, "HOME")
		_, err := os.Stat(filepath.Join(home, ".kube", "config"))
		if path == "" && err != nil && process.Getenv(r.env, "KUBERNETES_SERVICE_HOST") == "" {
			return "", invalid("kubeconfig", "give it the text of a kubeconfig from a secret, or name Sluice's webhook service with server", "it is not said how the cluster is reached")
		}
	}
	if path != "" && strings.Contains(path, string(filepath.ListSeparator)) {
		return path, nil // several: the client merges them
	}
	return path, r.checkKubeconfig(path, composite)
}

// checkKubeconfig refuses programs that are not here.
func (r *run) checkKubeconfig(path, hint string) error {
	if path == "" {
		return nil
	}
	text, err := os.ReadFile(path)
	if err == nil {
		r.maskKubeconfig(text)
	}
	config, err := clientcmd.LoadFromFile(path)
	if err != nil {
		return invalid("kubeconfig", "give the whole text of the file, as `kubectl config view --raw --minify` prints it", "it cannot be read: %s", withoutPath(err, path))
	}
	name := cmp.Or(r.in.text["context"], config.CurrentContext)
	c := config.Contexts[name]
	if c == nil {
		return invalid("context", "name one of its contexts", "the kubeconfig has no context %q", name)
	}
	user := config.AuthInfos[c.AuthInfo]
	if user == nil || user.Exec == nil {
		return nil
	}
	if _, err := exec.LookPath(user.Exec.Command); err != nil {
		return invalid("kubeconfig", hint, "it logs in by the program %q, which is not here", user.Exec.Command)
	}
	return nil
}

func withoutPath(err error, path string) string {
	return strings.ReplaceAll(err.Error(), path, "kubeconfig")
}

// kubeconfigSecrets are what a kubeconfig holds that must not show.
func kubeconfigSecrets(text []byte) []string {
	config, err := clientcmd.Load(text)
	if err != nil {
		return nil
	}
	var out []string
	for _, u := range config.AuthInfos {
		secrets := []string{u.Token, u.Password, string(u.ClientKeyData)}
		if len(u.ClientKeyData) > 0 {
			secrets = append(secrets, base64.StdEncoding.EncodeToString(u.ClientKeyData))
		}
		if u.AuthProvider != nil {
			for name, value := range u.AuthProvider.Config {
				if strings.Contains(name, "token") || strings.Contains(name, "secret") {
					secrets = append(secrets, value)
				}
			}
		}
		if u.Exec != nil {
			for _, e := range u.Exec.Env {
				secrets = append(secrets, e.Value)
			}
		}
		for _, s := range secrets {
			if s != "" {
				out = append(out, s)
			}
		}
	}
	return out
}

// ownKey is the endpoint's key that a workflow was given.
type ownKey string

// Keys implements deploy.Keys.
func (k ownKey) Keys(context.Context, rollout.Key) (access.Keys, error) {
	if k == "" {
		return access.Keys{}, errors.New("a server hands out no keys: give it with endpoint-key, or leave the test out")
	}
	return access.Keys{Primary: string(k)}, nil
}
