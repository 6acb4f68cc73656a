// Package v1alpha1 has the Kubernetes objects of Sluice. They are thin wrappers:
// the domain's types in rollout carry the fields, their JSON names, their documentation
// and, as +kubebuilder comments, the rules that the API server checks.
//
// Read objects with encoding/json, as typed clients do: runtime.DefaultUnstructuredConverter knows
// nothing of how a rollout.Percent is written and takes 20 per cent for 0.02.
//
// Comments become the definitions under charts/sluice/files/crds (`make generate`).
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
// +kubebuilder:metadata:annotations="helm.sh/resource-policy=keep"
// +kubebuilder:printcolumn:name="Control",type=string,JSONPath=`.spec.versions[?(@.type=="control")].name`,description="The version that others are compared with."
// +kubebuilder:printcolumn:name="Treatments",type=string,JSONPath=`.status.summary.treatments`,description="The versions under test, oldest first."
// +kubebuilder:printcolumn:name="Share",type=string,JSONPath=`.status.summary.shares`,description="What the treatments get, in per cent."
// +kubebuilder:printcolumn:name="Ready",type=string,JSONPath=`.status.summary.ready`,description="Ready replicas of all that there are."
// +kubebuilder:printcolumn:name="Reason",type=string,JSONPath=`.status.summary.reason`,description="The most urgent news; empty when all is well."
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:printcolumn:name="Standby",type=string,priority=1,JSONPath=`.spec.versions[?(@.type=="standby")].name`,description="The way back."
// +kubebuilder:printcolumn:name="Hold",type=string,priority=1,JSONPath=`.spec.hold.reason`,description="Why advancing and promoting are held."
// +kubebuilder:printcolumn:name="Lock",type=string,priority=1,JSONPath=`.spec.lock.reason`,description="Why nothing but a rollback may move traffic."
// +kubebuilder:printcolumn:name="Scoring URI",type=string,priority=1,JSONPath=`.status.scoringUri`,description="Where requests go."
// +kubebuilder:validation:XValidation:rule="self.metadata.name.size() <= 32 && self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')",message="metadata.name: not a name for an endpoint; use 1 to 32 lower-case letters, digits and hyphens, beginning with a letter and not ending with a hyphen [invalid]"
type ModelEndpoint struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec rollout.Spec `json:"spec"`
	// +optional
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
// +kubebuilder:metadata:annotations="helm.sh/resource-policy=keep"
// +kubebuilder:printcolumn:name="Endpoint",type=string,JSONPath=`.spec.endpoint.name`
// +kubebuilder:printcolumn:name="Command",type=string,JSONPath=`.spec.command`
// +kubebuilder:printcolumn:name="Actor",type=string,JSONPath=`.spec.actor`
// +kubebuilder:printcolumn:name="State",type=string,JSONPath=`.status.state`,description="Absent means pending."
// +kubebuilder:printcolumn:name="Reason",type=string,JSONPath=`.status.reason`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.spec.at`
// +kubebuilder:printcolumn:name="Result",type=string,priority=1,JSONPath=`.status.result`
type JournalEntry struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// Spec is written once: what is carried out is what came.
	// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="the command of a journal entry never changes; record another entry [conflict]"
	Spec JournalSpec `json:"spec"`
	// +optional
	Status JournalStatus `json:"status,omitzero"`
}

// JournalSpec is the command as it came; it never changes.
type JournalSpec struct {
	// Endpoint that the command is for, if that was known when it was recorded: a comment on a
	// pull request names none.
	// +optional
	Endpoint JournalEndpoint `json:"endpoint,omitzero"`
	// Command as written.
	// +kubebuilder:validation:MaxLength=65536
	Command string `json:"command"`
	// Actor who wrote it.
	// +kubebuilder:validation:MaxLength=256
	Actor string `json:"actor,omitempty"`
	// Origin says where a reply goes; the intake's own words.
	// +kubebuilder:validation:MaxProperties=32
	Origin map[string]string `json:"origin,omitempty"`
	// At is when the command was recorded.
	// +kubebuilder:validation:Schemaless
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:Format=date-time
	At time.Time `json:"at"`
}

// JournalEndpoint names an endpoint.
type JournalEndpoint struct {
	// Namespace of the endpoint.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=63
	// +kubebuilder:validation:Pattern=`^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`
	Namespace string `json:"namespace"`
	// Name of the endpoint.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=32
	// +kubebuilder:validation:Pattern=`^[a-z]([-a-z0-9]*[a-z0-9])?$`
	Name string `json:"name"`
}

// JournalStatus says how the command ended.
type JournalStatus struct {
	// State is pending, done or refused; absent means pending.
	// +kubebuilder:validation:Enum=pending;done;refused
	State string `json:"state,omitempty"`
	// Reason code of how it ended.
	Reason rollout.Reason `json:"reason,omitempty"`
	// Result in words. It has no bound here: a reply that is too long must not keep a command open.
	Result string `json:"result,omitempty"`
}

// JournalEntryList is a list of them.
type JournalEntryList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []JournalEntry `json:"items"`
}
