package node

import (
	"bytes"
	"crypto/tls"
	_ "embed"
	"encoding/base64"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"text/template"

	"golang.org/x/sys/unix"

	"github.com/sluice-dev/sluice/test/cluster/internal/pki"
)

//go:embed files.tmpl
var files string

// Write writes everything that the programs read: keys, certificates and settings.
func (n Node) Write() error {
	for _, dir := range []string{n.Logs(), n.VarLib(), n.VarLog(), n.etc("cni"), n.pki("")} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("make directory: %w", err)
		}
	}
	if err := os.Chmod(n.pki(""), 0o700); err != nil {
		return fmt.Errorf("close directory of keys: %w", err)
	}
	if err := n.writeKeys(); err != nil {
		return fmt.Errorf("write keys: %w", err)
	}
	all, err := template.New("files").Parse(files)
	if err != nil {
		return fmt.Errorf("parse templates: %w", err)
	}
	values := map[string]any{
		"Node": n, "Name": Name, "Address": Address, "Domain": Domain,
		"PodNetwork": PodNetwork, "RegistryPort": RegistryPort, "DNSReadyPort": dnsReadyPort,
		"ContainerdSocket": containerdSocket, "Snapshotter": snapshotter(n.Dir),
		"CA": n.pki("ca.crt"), "KubeletCert": n.pki("kubelet-server.crt"), "KubeletKey": n.pki("kubelet-server.key"),
		"ProxyKubeconfig": n.etc(Proxy + ".kubeconfig"), "DNSKubeconfig": n.etc(DNS + ".kubeconfig"),
		"CNIConfig": n.etc("cni"), "CertsD": n.etc("certs.d"),
	}
	for name, path := range map[string]string{
		"containerd": n.etc("containerd.toml"), "registry": n.etc(fmt.Sprintf("certs.d/localhost:%d/hosts.toml", RegistryPort)),
		"cni": n.etc("cni/10-pods.conflist"), "kubelet": n.etc("kubelet.yaml"), "proxy": n.etc("kube-proxy.yaml"),
		"dns": n.etc("Corefile"), "resolv": n.ResolvConf(),
	} {
		var body bytes.Buffer
		if err := all.ExecuteTemplate(&body, name, values); err != nil {
			return fmt.Errorf("fill template %s: %w", name, err)
		}
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return fmt.Errorf("make directory: %w", err)
		}
		if err := os.WriteFile(path, body.Bytes(), 0o644); err != nil {
			return fmt.Errorf("write settings: %w", err)
		}
	}
	return nil
}

// writeKeys makes an authority and what it signs. Every program is who Kubernetes expects it to be,
// so that the authorizers and RBAC rules at work are those of a real cluster.
func (n Node) writeKeys() error {
	ca, err := pki.NewAuthority("sluice-test-cluster")
	if err != nil {
		return err
	}
	if err := os.WriteFile(n.pki("ca.crt"), ca.PEM(), 0o644); err != nil {
		return err
	}
	const masters = "system:masters"
	loopback := net.IPv4(127, 0, 0, 1)
	api, err := ca.Server("kube-apiserver",
		[]string{"localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc." + Domain},
		[]net.IP{loopback, net.ParseIP(Address), net.ParseIP(kubernetesService)})
	if err != nil {
		return err
	}
	kubelet, err := ca.Server(Name, []string{Name, "localhost"}, []net.IP{net.ParseIP(Address), loopback})
	if err != nil {
		return err
	}
	admin, err := ca.Client("admin", masters)
	if err != nil {
		return err
	}
	toKubelet, err := ca.Client("kube-apiserver-kubelet-client", masters)
	if err != nil {
		return err
	}
	for name, pair := range map[string]pki.Pair{
		"apiserver": api, "kubelet-server": kubelet, "apiserver-kubelet-client": toKubelet, "admin": admin,
	} {
		if err := os.WriteFile(n.pki(name+".crt"), pair.Cert, 0o644); err != nil {
			return err
		}
		if err := os.WriteFile(n.pki(name+".key"), pair.Key, 0o600); err != nil {
			return err
		}
	}
	accounts, err := pki.SigningKey()
	if err != nil {
		return err
	}
	if err := os.WriteFile(n.pki("service-accounts.pub"), accounts.Cert, 0o644); err != nil {
		return err
	}
	if err := os.WriteFile(n.pki("service-accounts.key"), accounts.Key, 0o600); err != nil {
		return err
	}
	for _, user := range []struct{ path, name, group string }{
		{n.Kubeconfig(), "admin", masters},
		{n.etc(ControllerManager + ".kubeconfig"), "system:kube-controller-manager", ""},
		{n.etc(Scheduler + ".kubeconfig"), "system:kube-scheduler", ""},
		{n.etc(Kubelet + ".kubeconfig"), "system:node:" + Name, "system:nodes"},
		{n.etc(Proxy + ".kubeconfig"), "system:kube-proxy", ""},
		// Kubernetes has no role for CoreDNS of its own; for tests, all rights will do.
		{n.etc(DNS + ".kubeconfig"), "coredns", masters},
	} {
		var groups []string
		if user.group != "" {
			groups = append(groups, user.group)
		}
		pair, err := ca.Client(user.name, groups...)
		if err != nil {
			return err
		}
		if err := os.WriteFile(user.path, n.kubeconfig(ca.PEM(), pair), 0o600); err != nil {
			return err
		}
	}
	return nil
}

// AdminCertificate is who the kubeconfig's user is.
func (n Node) AdminCertificate() (tls.Certificate, error) {
	pair, err := tls.LoadX509KeyPair(n.pki("admin.crt"), n.pki("admin.key"))
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("load administrator's certificate: %w", err)
	}
	return pair, nil
}

func (n Node) kubeconfig(ca []byte, user pki.Pair) []byte {
	encode := base64.StdEncoding.EncodeToString
	return fmt.Appendf(nil, `apiVersion: v1
kind: Config
current-context: sluice-test
contexts:
- name: sluice-test
  context: {cluster: sluice-test, user: sluice-test}
clusters:
- name: sluice-test
  cluster:
    server: %s
    certificate-authority-data: %s
users:
- name: sluice-test
  user:
    client-certificate-data: %s
    client-key-data: %s
`, n.APIServerURL(), encode(ca), encode(user.Cert), encode(user.Key))
}

// snapshotter is containerd's for dir: an overlay cannot have an overlay, such as a container's root,
// as its upper directory.
func snapshotter(dir string) string {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err == nil && st.Type == unix.OVERLAYFS_SUPER_MAGIC {
		return "native"
	}
	return "overlayfs"
}
