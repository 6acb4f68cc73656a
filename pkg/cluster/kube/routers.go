package kube

import (
	"context"
	"errors"
	"net"
	"strconv"
	"sync"

	discoveryv1 "k8s.io/api/discovery/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/sluice-dev/sluice/pkg/telemetry"
)

// Routers are the router pods, as the EndpointSlices of their admin Service tell.
type Routers struct {
	c *Cluster

	mu        sync.Mutex
	reporters map[string]*telemetry.HTTPReporter // by base address
}

// Routers of the installation.
func (c *Cluster) Routers(ctx context.Context) (*Routers, error) {
	r := &Routers{c: c, reporters: map[string]*telemetry.HTTPReporter{}}
	return r, c.inform(ctx, &discoveryv1.EndpointSlice{}, func(client.Object, bool) {})
}

// errNoRouter: without a router nothing is known of the traffic.
var errNoRouter = errors.New("no router is ready")

// Reports asks every router that serves, those that end included: what they still have
// in flight counts. The error joins those that did not answer.
func (r *Routers) Reports(ctx context.Context) ([]telemetry.Report, error) {
	var list discoveryv1.EndpointSliceList
	err := r.c.cache.List(ctx, &list, client.InNamespace(r.c.options.SystemNamespace), client.MatchingLabels{LabelPart: PartRouter}, client.UnsafeDisableDeepCopy)
	if err != nil {
		return nil, err
	}
	found := map[string]bool{}
	for i := range list.Items {
		s := &list.Items[i]
		if len(s.Ports) == 0 || s.Ports[0].Port == nil {
			continue
		}
		for _, e := range s.Endpoints {
			serves := e.Conditions.Serving == nil || *e.Conditions.Serving
			if len(e.Addresses) > 0 && serves {
				found["http://"+net.JoinHostPort(e.Addresses[0], strconv.Itoa(int(*s.Ports[0].Port)))] = true
			}
		}
	}
	if len(found) == 0 {
		return nil, errNoRouter
	}
	r.mu.Lock()
	all := telemetry.Reporters{}
	for base := range found {
		if r.reporters[base] == nil {
			r.reporters[base] = telemetry.NewHTTPReporter(base)
		}
		all = append(all, r.reporters[base])
	}
	for base := range r.reporters {
		if !found[base] {
			delete(r.reporters, base)
		}
	}
	r.mu.Unlock()
	return all.Reports(ctx)
}
