package v1alpha1

import (
	"bytes"
	"maps"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/sluice-dev/sluice/rollout"
)

// Endpoint is the domain's view of m; it shares nothing with m.
func (m *ModelEndpoint) Endpoint() *rollout.Endpoint {
	e := &rollout.Endpoint{
		APIVersion: rollout.APIVersion, Kind: rollout.Kind,
		Metadata: rollout.Metadata{
			Name: m.Name, Namespace: m.Namespace, UID: string(m.UID), ResourceVersion: m.ResourceVersion,
			Generation: m.Generation, CreationTimestamp: m.CreationTimestamp.UTC(), Editor: m.editor(),
		},
		Spec: m.Spec, Status: m.Status,
	}
	return e.Clone()
}

// FieldManager names Sluice among the writers of an object's fields.
const FieldManager = "sluice"

// editor is the field manager beside Sluice that wrote shift fields last, or "".
func (m *ModelEndpoint) editor() string {
	name, at := "", time.Time{}
	for i := range m.ManagedFields {
		f := &m.ManagedFields[i]
		if f.Manager == FieldManager || f.Subresource != "" || f.FieldsV1 == nil || f.Time != nil && f.Time.Before(&metav1.Time{Time: at}) {
			continue
		}
		for _, field := range []string{`"f:trafficPercentile"`, `"f:type"`, `"f:isDefault"`, `"f:strategy"`, `"f:hold"`, `"f:lock"`} {
			if bytes.Contains(f.FieldsV1.Raw, []byte(field)) {
				if name = f.Manager; f.Time != nil {
					at = f.Time.Time
				}
				break
			}
		}
	}
	return name
}

// DeepCopy of m.
func (m *ModelEndpoint) DeepCopy() *ModelEndpoint {
	if m == nil {
		return nil
	}
	out := &ModelEndpoint{TypeMeta: m.TypeMeta}
	m.ObjectMeta.DeepCopyInto(&out.ObjectMeta)
	c := (&rollout.Endpoint{Spec: m.Spec, Status: m.Status}).Clone()
	out.Spec, out.Status = c.Spec, c.Status
	return out
}

// DeepCopyObject implements runtime.Object.
func (m *ModelEndpoint) DeepCopyObject() runtime.Object { return m.DeepCopy() }

// DeepCopyObject implements runtime.Object.
func (l *ModelEndpointList) DeepCopyObject() runtime.Object {
	out := &ModelEndpointList{TypeMeta: l.TypeMeta, Items: make([]ModelEndpoint, len(l.Items))}
	l.ListMeta.DeepCopyInto(&out.ListMeta)
	for i := range l.Items {
		out.Items[i] = *l.Items[i].DeepCopy()
	}
	return out
}

// DeepCopy of j.
func (j *JournalEntry) DeepCopy() *JournalEntry {
	if j == nil {
		return nil
	}
	out := &JournalEntry{TypeMeta: j.TypeMeta, Spec: j.Spec, Status: j.Status}
	j.ObjectMeta.DeepCopyInto(&out.ObjectMeta)
	out.Spec.Origin = maps.Clone(j.Spec.Origin)
	return out
}

// DeepCopyObject implements runtime.Object.
func (j *JournalEntry) DeepCopyObject() runtime.Object { return j.DeepCopy() }

// DeepCopyObject implements runtime.Object.
func (l *JournalEntryList) DeepCopyObject() runtime.Object {
	out := &JournalEntryList{TypeMeta: l.TypeMeta, Items: make([]JournalEntry, len(l.Items))}
	l.ListMeta.DeepCopyInto(&out.ListMeta)
	for i := range l.Items {
		out.Items[i] = *l.Items[i].DeepCopy()
	}
	return out
}
