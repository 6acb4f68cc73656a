package kube

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/google/uuid"
	coordinationv1client "k8s.io/client-go/kubernetes/typed/coordination/v1"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
)

// Timing of leases, a little shorter than that of Kubernetes' own controllers. Candidates look every
// retryPeriod times 1 to 2.2, and count leaseDuration from the look that saw the last sign of life: another
// takes over at most leaseDuration and two such looks after it, 18.8 s.
const (
	leaseDuration = 10 * time.Second
	renewDeadline = 7 * time.Second
	retryPeriod   = 2 * time.Second
)

// Lead runs fn while this process holds the lease of that name in the system's
// namespace, again and again until ctx ends. A leader that cannot renew stops fn (its context ends)
// before anybody else may begin. What fn returns ends everything, unless its context had ended.
func (c *Cluster) Lead(ctx context.Context, name string, fn func(context.Context) error) error {
	leases, err := coordinationv1client.NewForConfig(c.config)
	if err != nil {
		return fmt.Errorf("lead %s: %w", name, err)
	}
	// The lock's events are of no use to anybody; the type wants the client all the same.
	var events corev1client.CoreV1Interface
	host, err := os.Hostname()
	if err != nil {
		return fmt.Errorf("lead %s: %w", name, err)
	}
	lock, err := resourcelock.New(resourcelock.LeasesResourceLock, c.options.SystemNamespace, name, events, leases,
		resourcelock.ResourceLockConfig{Identity: host + "_" + uuid.NewString()})
	if err != nil {
		return fmt.Errorf("lead %s: %w", name, err)
	}
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	for ctx.Err() == nil {
		if err := c.leadOnce(ctx, name, lock, fn, stop); err != nil {
			return fmt.Errorf("lead %s: %w", name, err)
		}
	}
	if cause := context.Cause(ctx); !errors.Is(cause, context.Canceled) {
		return cause
	}
	return nil
}

// leadOnce waits for the lease, runs fn while it is held, and gives it back only once fn has ended.
func (c *Cluster) leadOnce(ctx context.Context, name string, lock resourcelock.Interface, fn func(context.Context) error, stop context.CancelCauseFunc) error {
	electing, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	began, ended := make(chan struct{}), make(chan struct{})
	e, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
		Lock: lock, LeaseDuration: leaseDuration, RenewDeadline: renewDeadline, RetryPeriod: retryPeriod, ReleaseOnCancel: true, Name: name,
		Callbacks: leaderelection.LeaderCallbacks{
			OnStartedLeading: func(held context.Context) {
				close(began)
				defer close(ended)
				c.log.Info("leading", "lease", name)
				running, end := context.WithCancel(held)
				defer end()
				defer context.AfterFunc(ctx, end)()
				if err := fn(running); err != nil && running.Err() == nil {
					stop(fmt.Errorf("%s: %w", name, err))
				}
				c.log.Info("not leading any more", "lease", name)
			},
			OnStoppedLeading: func() {},
		},
	})
	if err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() {
		select {
		case <-began:
			<-ended
		case <-time.After(100 * time.Millisecond): // never led
		}
		cancel()
	})()
	e.Run(electing)
	select {
	case <-began:
		<-ended
	case <-time.After(100 * time.Millisecond):
	}
	return nil
}
