package kube

import (
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/record"

	"github.com/sluice-dev/sluice/pkg/cluster/kube/v1alpha1"
	"github.com/sluice-dev/sluice/rollout"
)

// Events writes an event beside an endpoint for each condition that changed, so that
// `kubectl describe` tells the story. The caller calls close at the end.
func (c *Cluster) Events() (tell func(*rollout.Endpoint, rollout.Condition), close func(), err error) {
	events, err := corev1client.NewForConfig(c.config)
	if err != nil {
		return nil, nil, fmt.Errorf("make events: %w", err)
	}
	b := record.NewBroadcaster()
	b.StartRecordingToSink(&corev1client.EventSinkImpl{Interface: events.Events("")})
	r := b.NewRecorder(c.client.Scheme(), corev1.EventSource{Component: FieldManager})
	return func(e *rollout.Endpoint, x rollout.Condition) {
		gv := v1alpha1.GroupVersion()
		ref := &corev1.ObjectReference{
			APIVersion: gv.String(), Kind: rollout.Kind, Namespace: e.Metadata.Namespace, Name: e.Metadata.Name, UID: types.UID(e.Metadata.UID), ResourceVersion: e.Metadata.ResourceVersion,
		}
		kind, good := corev1.EventTypeNormal, "True"
		if x.Type != "Ready" {
			good = "False" // the others name troubles
		}
		if x.Status != good {
			kind = corev1.EventTypeWarning
		}
		message := strings.TrimSpace(x.Type + " is " + x.Status + ": " + x.Message)
		r.Event(ref, kind, x.Type, message)
	}, b.Shutdown, nil
}
