package kube

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/sluice-dev/sluice/rollout"
)

// unusable is a configuration that no client can be made of, such as one whose certificates are none.
func unusable(err error) error {
	return &rollout.Error{
		Reason: rollout.ReasonInvalid, Field: "--kubeconfig", Message: "it cannot be used: " + err.Error(),
		Hint: "give the whole text of the file, as `kubectl config view --raw --minify` prints it",
	}
}

// unreached is the failure of the first questions that are asked of an API server, about the kinds that it has. Which kind
// was asked about says nothing, so that it is left out.
func unreached(host string, err error) error {
	if u, ok := errors.AsType[*url.Error](err); ok {
		return &rollout.Error{
			Reason: rollout.ReasonUnavailable, Message: fmt.Sprintf("the cluster's API server %s cannot be reached: %v", host, u.Err),
			Hint: "look at the address in the kubeconfig's context, and whether `kubectl get --raw /version` reaches it from here",
		}
	}
	if apierrors.IsForbidden(err) || apierrors.IsUnauthorized(err) {
		return sorted(err)
	}
	var status apierrors.APIStatus
	if errors.As(err, &status) && (status.Status().Code >= http.StatusInternalServerError || status.Status().Code == http.StatusTooManyRequests) {
		return &rollout.Error{
			Reason: rollout.ReasonUnavailable, Message: fmt.Sprintf("the cluster's API server %s does not answer: %s", host, status.Status().Message), Hint: "try again in a while",
		}
	}
	if status != nil {
		return &rollout.Error{
			Reason: rollout.ReasonInvalid, Field: "--kubeconfig", Message: fmt.Sprintf("what answers at %s is no API server of Kubernetes: %s", host, status.Status().Message),
			Hint: "look at the address in the kubeconfig's context",
		}
	}
	return fmt.Errorf("ask the API server %s which kinds it has: %w", host, err)
}
