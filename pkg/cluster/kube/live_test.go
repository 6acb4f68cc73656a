package kube_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"github.com/sluice-dev/sluice/pkg/cluster"
	"github.com/sluice-dev/sluice/pkg/cluster/clustertest"
	"github.com/sluice-dev/sluice/pkg/cluster/kube"
	"github.com/sluice-dev/sluice/pkg/cluster/kube/v1alpha1"
	"github.com/sluice-dev/sluice/rollout"
)

// system is the tests' namespace for what belongs to the installation.
const system = "sluice-test-system"

// namespaces that the conformance suites use.
func namespaces() []string { return []string{"models", "other", "a", "b", "a-b", system} }

// live is a real cluster, or skips the test: SLUICE_TEST_KUBECONFIG names its kubeconfig.
type live struct {
	config *rest.Config
	client client.Client
}

func newLive(t *testing.T) *live {
	t.Helper()
	path := os.Getenv("SLUICE_TEST_KUBECONFIG")
	if path == "" {
		t.Skip("needs a cluster: `make cluster-up`, then SLUICE_TEST_KUBECONFIG=.cache/cluster/kubeconfig; `make cluster-e2e` does both")
	}
	config, _, err := kube.Config(path, "")
	if err != nil {
		t.Fatal(err)
	}
	config.QPS, config.Burst = 200, 400
	scheme := runtime.NewScheme()
	if err := errors.Join(clientgoscheme.AddToScheme(scheme), v1alpha1.AddToScheme(scheme)); err != nil {
		t.Fatal(err)
	}
	c, err := client.New(config, client.Options{Scheme: scheme})
	if err != nil {
		t.Fatal(err)
	}
	l := &live{config, c}
	l.install(t)
	return l
}

// install applies the definitions and makes the namespaces.
func (l *live) install(t *testing.T) {
	t.Helper()
	files, err := filepath.Glob("../../../charts/sluice/files/crds/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no definitions: %v", err)
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		u := &unstructured.Unstructured{}
		if err := yaml.Unmarshal(b, &u.Object); err != nil {
			t.Fatal(err)
		}
		if err := l.client.Apply(t.Context(), client.ApplyConfigurationFromUnstructured(u), client.ForceOwnership, client.FieldOwner("test")); err != nil {
			t.Fatal(err)
		}
		name := u.GetName()
		l.until(t, 20*time.Second, "definition "+name, func() error {
			if err := l.client.Get(t.Context(), client.ObjectKey{Name: name}, u); err != nil {
				return err
			}
			conditions, _, _ := unstructured.NestedSlice(u.Object, "status", "conditions")
			for _, c := range conditions {
				if m := c.(map[string]any); m["type"] == "Established" && m["status"] == "True" {
					return nil
				}
			}
			return errors.New("not established")
		})
	}
	for _, ns := range namespaces() {
		err := l.client.Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: ns}})
		if err != nil && !apierrors.IsAlreadyExists(err) {
			t.Fatal(err)
		}
	}
}

func (l *live) until(t *testing.T, limit time.Duration, what string, done func() error) {
	t.Helper()
	for deadline := time.Now().Add(limit); ; time.Sleep(20 * time.Millisecond) {
		err := done()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %s: %v", what, limit, err)
		}
	}
}

// clear removes everything of earlier tests.
func (l *live) clear(t *testing.T) {
	t.Helper()
	ctx := context.WithoutCancel(t.Context())
	l.until(t, time.Minute, "an empty cluster", func() error {
		left := 0
		for _, ns := range namespaces() {
			for _, list := range []client.ObjectList{
				&v1alpha1.ModelEndpointList{}, &appsv1.DeploymentList{}, &policyv1.PodDisruptionBudgetList{}, &v1alpha1.JournalEntryList{}, &corev1.PodList{}, &corev1.ServiceList{}, &corev1.SecretList{},
			} {
				if err := l.client.List(ctx, list, client.InNamespace(ns)); err != nil {
					return err
				}
				items, err := meta.ExtractList(list)
				if err != nil {
					return err
				}
				left += len(items)
				for _, o := range items {
					err := l.client.Delete(ctx, o.(client.Object), client.GracePeriodSeconds(0), client.PropagationPolicy(metav1.DeletePropagationBackground))
					if client.IgnoreNotFound(err) != nil {
						return err
					}
				}
			}
		}
		if left > 0 {
			return fmt.Errorf("%d objects are left", left)
		}
		return nil
	})
}

// open connects to the cluster; start follows it once its parts are made.
func (l *live) open(t *testing.T, secrets kube.SecretScope) (c *kube.Cluster, start func()) {
	t.Helper()
	c, err := kube.New(l.config, kube.Options{SystemNamespace: system, Secrets: secrets, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	t.Cleanup(stop)
	return c, func() {
		t.Helper()
		if err := c.Start(ctx); err != nil {
			t.Fatal(err)
		}
	}
}

func TestStore(t *testing.T) {
	l := newLive(t)
	clustertest.Store(t, func(t *testing.T) cluster.Store {
		l.clear(t)
		c, start := l.open(t, kube.SecretsNone)
		s, err := c.Store(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		start()
		return s
	})
}

func TestJournal(t *testing.T) {
	l := newLive(t)
	clustertest.Journal(t, func(t *testing.T) cluster.Journal {
		l.clear(t)
		c, _ := l.open(t, kube.SecretsNone)
		return c.Journal()
	})
}

// keys of an empty cluster, as a process that asks for them has them and as one that watches, and the hashes
// that the latter publishes, as a router has them.
func (l *live) keys(t *testing.T) (asking, watching *kube.Keys, hashes *kube.Hashes) {
	t.Helper()
	l.clear(t)
	c, start := l.open(t, kube.SecretsOfKeys)
	watching, err := c.WatchedKeys(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	start()
	ctx, stop := context.WithCancel(context.Background())
	t.Cleanup(stop)
	go func() { _ = watching.Publish(ctx, slog.New(slog.DiscardHandler)) }()
	r, start := l.open(t, kube.SecretsOfHashes)
	if hashes, err = r.Hashes(t.Context()); err != nil {
		t.Fatal(err)
	}
	start()
	return c.Keys(), watching, hashes
}

func TestKeys(t *testing.T) {
	l := newLive(t)
	for name, watched := range map[string]bool{"asking": false, "watching": true} {
		t.Run(name, func(t *testing.T) {
			clustertest.Keys(t, func(t *testing.T) (cluster.Keys, cluster.KeyHashes) {
				asking, watching, h := l.keys(t)
				if watched {
					return watching, h
				}
				return asking, h
			})
		})
	}
}

// TestHashesComeBack: a Secret of hashes that somebody deletes closes no endpoint, and is there again soon.
func TestHashesComeBack(t *testing.T) {
	l := newLive(t)
	_, k, h := l.keys(t)
	key := rollout.Key{Namespace: "models", Name: "fraud"}
	if _, err := k.EnsureKeys(t.Context(), key); err != nil {
		t.Fatal(err)
	}
	known := func() error {
		all, err := h.KeyHashes(t.Context())
		if err == nil && len(all[key]) != 2 {
			err = fmt.Errorf("hashes are %v", all)
		}
		return err
	}
	l.until(t, 10*time.Second, "hashes", known)
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: system, Name: kube.HashesName}}
	if err := l.client.Delete(t.Context(), secret); err != nil {
		t.Fatal(err)
	}
	l.until(t, 45*time.Second, "the Secret again", func() error {
		if err := known(); err != nil {
			t.Fatalf("meanwhile: %v", err)
		}
		return l.client.Get(t.Context(), client.ObjectKeyFromObject(secret), secret)
	})
}
