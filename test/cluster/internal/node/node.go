// Package node knows what a one-node Kubernetes is made of: its files, its addresses and the command
// lines of its programs.
package node

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"path/filepath"
)

// Addresses of the cluster. They are free to choose, since nobody else is in its network namespace.
const (
	// Name is the name of the node.
	Name = "sluice-node"
	// Address is the node's.
	Address = "172.31.255.1"
	// AddressBits is the length of its network.
	AddressBits = 24
	// PodNetwork is where pods get their addresses.
	PodNetwork = "10.244.0.0/24"
	// ServiceNetwork is where Services get theirs.
	ServiceNetwork = "10.96.0.0/16"
	// kubernetesService is the first address of ServiceNetwork, which the API server takes.
	kubernetesService = "10.96.0.1"
	// Domain is the DNS domain of Services.
	Domain = "cluster.local"
	// RegistryPort is where the image registry listens inside.
	RegistryPort = 5000
	// containerdSocket is in the namespace's own /run.
	containerdSocket = "/run/containerd/containerd.sock"
	etcdAddress      = "127.0.0.1:2379"
	dnsReadyPort     = 8181
)

// Names of components, as commands take them.
const (
	Etcd              = "etcd"
	APIServer         = "kube-apiserver"
	ControllerManager = "kube-controller-manager"
	Scheduler         = "kube-scheduler"
	Kubelet           = "kubelet"
	Proxy             = "kube-proxy"
	DNS               = "coredns"
	Containerd        = "containerd"
)

// Node is one cluster of one node.
type Node struct {
	// Dir has all its files.
	Dir string
	// APIPort is the API server's, inside and on the host alike.
	APIPort int
	// Kube and Pause are the programs, CNI is the directory of the CNI plugins and ContainerdPath the
	// container runtime, which finds runc on the PATH.
	Kube, Pause, CNI, ContainerdPath string
}

// Component is a program that runs while the cluster does.
type Component struct {
	Name string
	// Path is the executable and Args its arguments, the first of them its name.
	Path string
	Args []string
	// After is the component whose readiness it waits for before its first start, if any.
	After string
	// Ready is the address that tells its readiness: by HTTP if it begins with "http", else by
	// accepting a connection, on TCP or the Unix socket that it names. Empty means that nothing
	// waits for it.
	Ready string
}

// Kubeconfig is the administrator's, for the host and the inside alike.
func (n Node) Kubeconfig() string { return filepath.Join(n.Dir, "kubeconfig") }

// CA is the certificate of the authority that signed the API server's.
func (n Node) CA() string { return n.pki("ca.crt") }

// ResolvConf sends queries to the cluster's DNS.
func (n Node) ResolvConf() string { return n.etc("resolv.conf") }

// Logs is the directory of the components' output.
func (n Node) Logs() string { return filepath.Join(n.Dir, "log") }

// Data is what the programs keep; VarLib and VarLog take the places of /var/lib and /var/log.
func (n Node) Data() string { return filepath.Join(n.Dir, "data") }

// VarLib is what the cluster's processes see as /var/lib.
func (n Node) VarLib() string { return filepath.Join(n.Data(), "var-lib") }

// VarLog is what the cluster's processes see as /var/log.
func (n Node) VarLog() string { return filepath.Join(n.Data(), "var-log") }

// Cgroup is the control group of the cluster's pods. It differs between directories, so that two
// clusters can run at a time.
func (n Node) Cgroup() string {
	sum := sha256.Sum256([]byte(n.Dir))
	return "sluice-test-" + hex.EncodeToString(sum[:4])
}

// SandboxImage is the image of cmd/pause.
func (n Node) SandboxImage() string { return fmt.Sprintf("localhost:%d/pause:1", RegistryPort) }

// APIServerURL is the same inside and on the host.
func (n Node) APIServerURL() string { return fmt.Sprintf("https://127.0.0.1:%d", n.APIPort) }

func (n Node) etc(name string) string { return filepath.Join(n.Dir, "etc", name) }
func (n Node) pki(name string) string { return filepath.Join(n.Dir, "pki", name) }

// Components are all programs, in the order of their start.
func (n Node) Components() []Component {
	kube := func(name, after, ready string, args ...string) Component {
		return Component{Name: name, Path: n.Kube, Args: append([]string{name}, args...), After: after, Ready: ready}
	}
	api := fmt.Sprintf("%s/readyz", n.APIServerURL())
	return []Component{
		{
			Name: Containerd, Path: n.ContainerdPath, Ready: containerdSocket,
			Args: []string{Containerd, "--config", n.etc("containerd.toml")},
		},
		kube(Etcd, "", etcdAddress,
			"--name=default",
			"--data-dir="+filepath.Join(n.Data(), "etcd"),
			"--listen-client-urls=http://"+etcdAddress,
			"--advertise-client-urls=http://"+etcdAddress,
			"--listen-peer-urls=http://127.0.0.1:2380",
			"--initial-advertise-peer-urls=http://127.0.0.1:2380",
			"--initial-cluster=default=http://127.0.0.1:2380",
			// The cluster's data lives no longer than its test, and survives kill -9 all the same.
			"--unsafe-no-fsync",
			"--log-level=warn",
		),
		kube(APIServer, Etcd, api,
			"--etcd-servers=http://"+etcdAddress,
			fmt.Sprintf("--secure-port=%d", n.APIPort),
			"--advertise-address="+Address,
			"--tls-cert-file="+n.pki("apiserver.crt"),
			"--tls-private-key-file="+n.pki("apiserver.key"),
			"--client-ca-file="+n.pki("ca.crt"),
			"--kubelet-certificate-authority="+n.pki("ca.crt"),
			"--kubelet-client-certificate="+n.pki("apiserver-kubelet-client.crt"),
			"--kubelet-client-key="+n.pki("apiserver-kubelet-client.key"),
			"--kubelet-preferred-address-types=InternalIP",
			"--service-account-issuer=https://kubernetes.default.svc."+Domain,
			"--service-account-key-file="+n.pki("service-accounts.pub"),
			"--service-account-signing-key-file="+n.pki("service-accounts.key"),
			"--service-cluster-ip-range="+ServiceNetwork,
			"--authorization-mode=Node,RBAC",
			"--enable-admission-plugins=NodeRestriction",
			"--allow-privileged=true",
			"--profiling=false",
		),
		kube(ControllerManager, APIServer, "",
			"--kubeconfig="+n.etc(ControllerManager+".kubeconfig"),
			"--leader-elect=false",
			"--root-ca-file="+n.pki("ca.crt"),
			"--service-account-private-key-file="+n.pki("service-accounts.key"),
			"--use-service-account-credentials=true",
			"--allocate-node-cidrs=false",
			"--flex-volume-plugin-dir="+filepath.Join(n.VarLib(), "volume-plugins"),
			"--profiling=false",
		),
		kube(Scheduler, APIServer, "",
			"--kubeconfig="+n.etc(Scheduler+".kubeconfig"),
			"--leader-elect=false",
			"--profiling=false",
		),
		kube(Kubelet, APIServer, "",
			"--kubeconfig="+n.etc(Kubelet+".kubeconfig"),
			"--config="+n.etc("kubelet.yaml"),
			"--hostname-override="+Name,
			"--node-ip="+Address,
			"--root-dir=/var/lib/kubelet",
		),
		kube(Proxy, APIServer, "", "--config="+n.etc("kube-proxy.yaml")),
		kube(DNS, APIServer, fmt.Sprintf("http://127.0.0.1:%d/ready", dnsReadyPort), "-conf="+n.etc("Corefile")),
	}
}
