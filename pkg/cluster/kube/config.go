package kube

import (
	"fmt"
	"log/slog"
	"os"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/sluice-dev/sluice/rollout"
)

// namespaceFile has the namespace of the pod that this process runs in.
const namespaceFile = "/var/run/secrets/kubernetes.io/serviceaccount/namespace"

// Config is how to reach a cluster and the namespace to work in: by the service account
// inside a pod, unless a kubeconfig or a context is named; else as kubectl does it, by the file
// given, $KUBECONFIG or ~/.kube/config.
func Config(kubeconfig, context string) (*rest.Config, string, error) {
	if kubeconfig == "" && context == "" && os.Getenv(clientcmd.RecommendedConfigPathEnvVar) == "" {
		if c, err := rest.InClusterConfig(); err == nil {
			ns, err := os.ReadFile(namespaceFile)
			if err != nil {
				return nil, "", fmt.Errorf("read the pod's namespace: %w", err)
			}
			return c, string(ns), nil
		}
	}
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = kubeconfig
	loader := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, &clientcmd.ConfigOverrides{CurrentContext: context})
	c, err := loader.ClientConfig()
	if err != nil {
		return nil, "", &rollout.Error{
			Reason: rollout.ReasonInvalid, Field: "--kubeconfig", Message: err.Error(),
			Hint: "name a kubeconfig with --kubeconfig or $KUBECONFIG, and one of its contexts with --context; `kubectl config get-contexts` lists them",
		}
	}
	ns, _, err := loader.Namespace()
	if err != nil {
		return nil, "", fmt.Errorf("read the kubeconfig's namespace: %w", err)
	}
	return c, ns, nil
}

// OpenOptions of Open.
type OpenOptions struct {
	// Kubeconfig and Context as Config takes them.
	Kubeconfig, Context string
	// Namespaces whose endpoints are seen; none means all.
	Namespaces []string
	// SystemNamespace, by default the one that the pod or the context is in.
	SystemNamespace string
	Secrets         SecretScope
	// Patient is that of Options.
	Patient bool
	Logger  *slog.Logger
}

// Open is Config and New.
func Open(o OpenOptions) (*Cluster, error) {
	config, ns, err := Config(o.Kubeconfig, o.Context)
	if err != nil {
		return nil, err
	}
	if o.SystemNamespace == "" {
		o.SystemNamespace = ns
	}
	return New(config, Options{Namespaces: o.Namespaces, SystemNamespace: o.SystemNamespace, Secrets: o.Secrets, Patient: o.Patient, Logger: o.Logger})
}
