// Package v1alpha1 has the Kubernetes objects of Sluice. They are thin wrappers:
// the domain's types in rollout carry the fields, their JSON names and their documentation.
//
// +kubebuilder:object:generate=false
// +groupName=sluice.dev
package v1alpha1

import (
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/sluice-dev/sluice/rollout"
)

// GroupVersion of every object here.
func GroupVersion() schema.GroupVersion {
	return schema.GroupVersion{Group: "sluice.dev", Version: "v1alpha1"}
}

// AddToScheme registers the objects.
func AddToScheme(s *runtime.Scheme) error {
	s.AddKnownTypes(GroupVersion(), &ModelEndpoint{}, &ModelEndpointList{}, &JournalEntry{}, &JournalEntryList{})
	metav1.AddToGroupVersion(s, GroupVersion())
	return nil
}

// ModelEndpoint is a stable scoring address with one to six versions of a model behind it.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:path=modelendpoints,shortName=mep,categories=all
// +kubebuilder:subresource:status
type ModelEndpoint struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec   rollout.Spec   `json:"spec"`
	Status rollout.Status `json:"status,omitzero"`
}

// ModelEndpointList is a list of them.
type ModelEndpointList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []ModelEndpoint `json:"items"`
}

// JournalEntry is a command that came from outside, recorded before it is carried out.
// Its name is made from the command's origin, so that creating it claims the command.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:path=journalentries,singular=journalentry
// +kubebuilder:subresource:status
type JournalEntry struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec   JournalSpec   `json:"spec"`
	Status JournalStatus `json:"status,omitzero"`
}

// JournalSpec is the command as it came; it never changes.
type JournalSpec struct {
	// Endpoint that the command is for.
	Endpoint JournalEndpoint `json:"endpoint"`
	// Command as written.
	Command string `json:"command"`
	// Actor who wrote it.
	Actor string `json:"actor,omitempty"`
	// Origin says where a reply goes; the intake's own words.
	Origin map[string]string `json:"origin,omitempty"`
	// At is when the command was recorded.
	At time.Time `json:"at"`
}

// JournalEndpoint names an endpoint.
type JournalEndpoint struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
}

// JournalStatus says how the command ended.
type JournalStatus struct {
	// State is pending, done or refused; absent means pending.
	State  string         `json:"state,omitempty"`
	Reason rollout.Reason `json:"reason,omitempty"`
	Result string         `json:"result,omitempty"`
}

// JournalEntryList is a list of them.
type JournalEntryList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []JournalEntry `json:"items"`
}
