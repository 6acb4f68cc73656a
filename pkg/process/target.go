package process

import (
	"flag"
	"fmt"
	"strings"
)

// Target is what a program runs on.
type Target string

// The targets.
const (
	// TargetLocal is this machine.
	TargetLocal Target = "local"
	// TargetKubernetes is a cluster.
	TargetKubernetes Target = "kubernetes"
)

// Set implements flag.Value.
func (t *Target) Set(s string) error {
	switch Target(s) {
	case TargetLocal, TargetKubernetes:
		*t = Target(s)
		return nil
	}
	return fmt.Errorf("use %s or %s", TargetLocal, TargetKubernetes)
}

// String implements flag.Value.
func (t *Target) String() string { return string(*t) }

// Type names the value in the command line's help.
func (t *Target) Type() string { return "target" }

// Flag adds --target; this machine is the default.
func (t *Target) Flag(f *flag.FlagSet) {
	*t = TargetLocal
	f.Var(t, "target", "what to run on: local or kubernetes")
}

// Kubernetes are the flags of a program that works on a cluster.
type Kubernetes struct {
	Kubeconfig, Context string
	// Namespaces of the endpoints, with commas between; empty means all.
	Namespaces string
	// System is the installation's own namespace; empty means the one that the pod or context is in.
	System string
}

// Flags adds them.
func (k *Kubernetes) Flags(f *flag.FlagSet) {
	f.StringVar(&k.Kubeconfig, "kubeconfig", "", "with --target kubernetes: kubeconfig to use (default: the pod's service account, else as kubectl)")
	f.StringVar(&k.Context, "context", "", "with --target kubernetes: context of the kubeconfig")
	f.StringVar(&k.Namespaces, "watch-namespaces", "", "with --target kubernetes: namespaces of the endpoints, with commas between (default all)")
	f.StringVar(&k.System, "system-namespace", "", "with --target kubernetes: namespace of the installation (default: the pod's or the context's)")
}

// List of the namespaces.
func (k *Kubernetes) List() []string {
	var out []string
	for ns := range strings.SplitSeq(k.Namespaces, ",") {
		if ns = strings.TrimSpace(ns); ns != "" {
			out = append(out, ns)
		}
	}
	return out
}
