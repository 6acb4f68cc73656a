package cluster

import (
	"cmp"
	"regexp"
	"strconv"
	"strings"

	"github.com/sluice-dev/sluice/pkg/access"
	"github.com/sluice-dev/sluice/rollout"
)

// namespacePattern is a DNS label (RFC 1123), as Kubernetes wants of namespaces.
var namespacePattern = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`)

const maxNamespaceLen = 63

// ValidateKey checks the names of an endpoint and its namespace. Names that pass
// are safe as path elements on every file system. The error is a *rollout.Error.
func ValidateKey(key rollout.Key) error {
	if err := ValidateNamespace("metadata.namespace", key.Namespace); err != nil {
		return err
	}
	return rollout.ValidateName("metadata.name", "an endpoint", key.Name)
}

// ValidateNamespace checks the name of a namespace; field is where it was given.
func ValidateNamespace(field, namespace string) error {
	if len(namespace) > maxNamespaceLen || !namespacePattern.MatchString(namespace) {
		return &rollout.Error{
			Reason: rollout.ReasonInvalid, Field: field,
			Message: "\"" + namespace + "\" is not a name for a namespace",
			Hint:    "use 1 to 63 lower-case letters, digits and hyphens, beginning and ending with a letter or digit",
		}
	}
	return nil
}

// ValidateFleetKey checks the names in a fleet's key as ValidateKey does.
func ValidateFleetKey(key FleetKey) error {
	if err := ValidateKey(key.Endpoint); err != nil {
		return err
	}
	return rollout.ValidateName("version", "a version", key.Version)
}

// ValidateEndpoint checks what every backend checks before it stores a new
// endpoint: its kind, its names and every invariant of its spec.
func ValidateEndpoint(e *rollout.Endpoint) error {
	if (e.APIVersion != "" && e.APIVersion != rollout.APIVersion) || (e.Kind != "" && e.Kind != rollout.Kind) {
		return &rollout.Error{
			Reason: rollout.ReasonInvalid, Field: "kind",
			Message: "this is a " + e.APIVersion + " " + e.Kind,
			Hint:    "write apiVersion: " + rollout.APIVersion + " and kind: " + rollout.Kind,
		}
	}
	if err := ValidateKey(e.Key()); err != nil {
		return err
	}
	return e.Spec.Validate()
}

// ValidateKeys checks what is put as an endpoint's keys: an endpoint without any
// key would be closed to everyone.
func ValidateKeys(key rollout.Key, k access.Keys) error {
	if err := ValidateKey(key); err != nil {
		return err
	}
	if len(k.Hashes()) == 0 {
		return &rollout.Error{
			Reason: rollout.ReasonInvalid, Field: "keys", Message: "both keys are empty",
			Hint: "give at least the primary key, or make new ones with `sluice keys regenerate ENDPOINT`",
		}
	}
	return nil
}

// CompareKeys orders endpoints by namespace, then name.
func CompareKeys(a, b rollout.Key) int {
	return cmp.Or(strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.Name, b.Name))
}

// CompareFleetKeys orders fleets by endpoint, then version.
func CompareFleetKeys(a, b FleetKey) int {
	return cmp.Or(CompareKeys(a.Endpoint, b.Endpoint), strings.Compare(a.Version, b.Version))
}

// ValidateReplicas checks a replica count that is asked for.
func ValidateReplicas(n int) error {
	if n < 0 {
		return &rollout.Error{
			Reason: rollout.ReasonInvalid, Field: "replicas",
			Message: strconv.Itoa(n) + " replicas", Hint: "use 0 or more",
		}
	}
	return nil
}
