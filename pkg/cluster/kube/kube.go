// Package kube has the ports of pkg/cluster on Kubernetes: endpoints and the
// journal as custom resources, versions as Deployments, keys in Secrets. One
// Cluster per process follows what its role needs through shared watches, so that reading
// costs no request; writes go to the API server, with strict field validation.
package kube

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"sync/atomic"
	"time"

	"github.com/go-logr/logr"
	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/selection"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	toolscache "k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	ctrllog "sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/sluice-dev/sluice/pkg/cluster/kube/v1alpha1"
)

// FieldManager names Sluice among the writers of an object's fields.
const FieldManager = v1alpha1.FieldManager

// Labels of everything that Sluice makes in a cluster.
const (
	LabelManagedBy = "app.kubernetes.io/managed-by"
	ManagedBy      = "sluice"
	// LabelPart is on all that is watched, and says what it is. The label above is Helm's in a
	// chart, so that it cannot tell what is Sluice's.
	LabelPart     = "sluice.dev/part"
	PartFleet     = "fleet"
	PartKeys      = "keys"
	PartRouter    = "router" // the Service that leads to every router's admin port
	LabelEndpoint = "sluice.dev/endpoint"
	LabelVersion  = "sluice.dev/version"
	// LabelRevision is on pods: the revision of the settings that they were started with.
	LabelRevision = "sluice.dev/revision"
	// annotationRenderer is on Deployments: what made them of a version's settings.
	annotationRenderer = "sluice.dev/renderer"
)

// Options of New.
type Options struct {
	// Namespaces whose endpoints are seen; none means all of them.
	Namespaces []string
	// SystemNamespace has what belongs to the installation: journal, key hashes, leases.
	SystemNamespace string
	// Secrets says which ones are watched.
	Secrets SecretScope
	// Patient makes watches wait for an API server that is away, rather than fail: for what runs on and on. Whoever has somebody waiting wants to hear of it at once.
	Patient bool
	Logger  *slog.Logger
}

// SecretScope is which Secrets a process watches; asking for single ones needs none.
type SecretScope int

// The scopes.
const (
	SecretsNone SecretScope = iota
	// SecretsOfKeys: those that Sluice made in the namespaces; for the control role.
	SecretsOfKeys
	// SecretsOfHashes: the one with the hashes of all keys; for routers.
	SecretsOfHashes
)

// Cluster is one process's connection to a cluster. Its parts are made by the methods
// Store, Fleets and so on, before Start; what none of them asked for is not watched.
type Cluster struct {
	options Options
	log     *slog.Logger
	config  *rest.Config
	client  client.WithWatch
	cache   cache.Cache
	// synced once everything was read: until then, what fails is told at once.
	synced *atomic.Bool
}

// New connects to nothing yet; it fails if the configuration makes no sense.
func New(config *rest.Config, o Options) (*Cluster, error) {
	scheme := runtime.NewScheme()
	if err := errors.Join(clientgoscheme.AddToScheme(scheme), v1alpha1.AddToScheme(scheme)); err != nil {
		return nil, fmt.Errorf("register kinds: %w", err)
	}
	// Watches and leases log through the process's one logger of controller-runtime, which complains until
	// it is set, and of klog.
	klog.SetSlogLogger(o.Logger)
	ctrllog.SetLogger(logr.FromSlogHandler(o.Logger.Handler()))
	config = rest.CopyConfig(config)
	if config.UserAgent == "" {
		config.UserAgent = "sluice"
	}
	// Bursts are short: a reconcile of one endpoint writes a handful of objects.
	config.QPS, config.Burst = 50, 100
	direct, err := client.NewWithWatch(config, client.Options{Scheme: scheme})
	if err != nil {
		return nil, unusable(err)
	}
	part, err := labels.NewRequirement(LabelPart, selection.Exists, nil)
	if err != nil {
		return nil, fmt.Errorf("make selector: %w", err)
	}
	ours := labels.NewSelector().Add(*part)
	slices := cache.ByObject{Label: ours, Transform: trimSlice}
	co := cache.Options{
		Scheme: scheme,
		ByObject: map[client.Object]cache.ByObject{
			&appsv1.Deployment{}:                     {Label: ours, Transform: trimDeployment},
			&corev1.Pod{}:                            {Label: ours, Transform: trimPod},
			&autoscalingv2.HorizontalPodAutoscaler{}: {Transform: trimAutoscaler},
		},
		// Everything is read again now and then only by who asks for it; watches resume by themselves.
		SyncPeriod:               durationOf(10 * time.Hour),
		DefaultWatchErrorHandler: watchFailed(o.Logger),
	}
	if len(o.Namespaces) > 0 {
		co.DefaultNamespaces = map[string]cache.Config{}
		for _, ns := range o.Namespaces {
			co.DefaultNamespaces[ns] = cache.Config{}
		}
	}
	if o.SystemNamespace != "" {
		system := cache.ByObject{Namespaces: map[string]cache.Config{o.SystemNamespace: {}}}
		co.ByObject[&v1alpha1.JournalEntry{}] = system
		if len(o.Namespaces) > 0 {
			// The routers' slices lie there, whether or not endpoints do.
			slices.Namespaces = map[string]cache.Config{o.SystemNamespace: {}}
			maps.Copy(slices.Namespaces, co.DefaultNamespaces)
		}
	}
	co.ByObject[&discoveryv1.EndpointSlice{}] = slices
	switch o.Secrets {
	case SecretsNone:
	case SecretsOfKeys:
		co.ByObject[&corev1.Secret{}] = cache.ByObject{Label: ours}
	case SecretsOfHashes:
		co.ByObject[&corev1.Secret{}] = cache.ByObject{
			Namespaces: map[string]cache.Config{o.SystemNamespace: {}}, Field: fields.OneTermEqualSelector("metadata.name", HashesName),
		}
	}
	watching, synced := config, &atomic.Bool{}
	if o.Patient {
		// Its own connection, apart from those of writes and leases, which are to fail at once.
		watching = rest.CopyConfig(config)
		if watching.Dial == nil {
			watching.Dial = (&net.Dialer{Timeout: 10 * time.Second, KeepAlive: 30 * time.Second}).DialContext
		}
		watching.Dial = patient(watching.Dial, synced.Load, o.Logger)
	}
	watched, err := cache.New(watching, co)
	if err != nil {
		return nil, unreached(config.Host, err)
	}
	return &Cluster{options: o, log: o.Logger, config: config, client: strict(direct), cache: watched, synced: synced}, nil
}

// watchFailed tells of watches that end.
func watchFailed(log *slog.Logger) toolscache.WatchErrorHandlerWithContext {
	return func(_ context.Context, r *toolscache.Reflector, err error) {
		level := slog.LevelDebug
		if apierrors.IsForbidden(err) || apierrors.IsNotFound(err) { // no right to it, or no definition: it will not pass by itself
			level = slog.LevelWarn
		}
		log.Log(context.Background(), level, "a watch ended and begins again", "of", r.TypeDescription(), "error", err)
	}
}

func durationOf(d time.Duration) *time.Duration { return &d }

// strict makes every write fail on fields that the API server does not know, instead of losing them.
func strict(c client.WithWatch) client.WithWatch {
	return strictClient{c, client.WithFieldValidation(client.WithFieldOwner(c, FieldManager), metav1.FieldValidationStrict)}
}

type strictClient struct {
	client.WithWatch
	writer client.Client
}

func (s strictClient) Create(ctx context.Context, o client.Object, opts ...client.CreateOption) error {
	return s.writer.Create(ctx, o, opts...)
}

func (s strictClient) Update(ctx context.Context, o client.Object, opts ...client.UpdateOption) error {
	return s.writer.Update(ctx, o, opts...)
}

func (s strictClient) Patch(ctx context.Context, o client.Object, p client.Patch, opts ...client.PatchOption) error {
	return s.writer.Patch(ctx, o, p, opts...)
}

func (s strictClient) Apply(ctx context.Context, o runtime.ApplyConfiguration, opts ...client.ApplyOption) error {
	return s.writer.Apply(ctx, o, opts...)
}

func (s strictClient) Status() client.SubResourceWriter { return s.writer.Status() }

func (s strictClient) SubResource(name string) client.SubResourceClient {
	return s.writer.SubResource(name)
}

// Start follows what was asked for until ctx ends. It returns once everything has been
// read for the first time, and fails if that does not happen within a minute.
func (c *Cluster) Start(ctx context.Context) error {
	failed := make(chan error, 1)
	go func() { failed <- c.cache.Start(ctx) }()
	first, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	synced := make(chan bool, 1)
	go func() { synced <- c.cache.WaitForCacheSync(first) }()
	select {
	case err := <-failed:
		if err == nil {
			err = ctx.Err()
		}
		return fmt.Errorf("follow the cluster: %w", err)
	case ok := <-synced:
		if !ok {
			return errors.New("follow the cluster: nothing could be read within a minute: is the API server reachable, and may this account list and watch what Sluice needs?")
		}
		c.synced.Store(true)
		return nil
	}
}

// inform calls fn for each event of a kind, from Start on, with the object as it is now, or as it
// was last if it is gone.
func (c *Cluster) inform(ctx context.Context, kind client.Object, fn func(o client.Object, gone bool)) error {
	informer, err := c.cache.GetInformer(ctx, kind, cache.BlockUntilSynced(false))
	if err != nil {
		return fmt.Errorf("watch %T: %w", kind, err)
	}
	tell := func(v any, gone bool) {
		if last, ok := v.(toolscache.DeletedFinalStateUnknown); ok {
			v = last.Obj
		}
		if o, ok := v.(client.Object); ok {
			fn(o, gone)
		}
	}
	_, err = informer.AddEventHandler(toolscache.ResourceEventHandlerFuncs{
		AddFunc:    func(v any) { tell(v, false) },
		UpdateFunc: func(_, v any) { tell(v, false) },
		DeleteFunc: func(v any) { tell(v, true) },
	})
	if err != nil {
		return fmt.Errorf("watch %T: %w", kind, err)
	}
	return nil
}
