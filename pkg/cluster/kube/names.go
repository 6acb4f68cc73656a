package kube

import (
	"crypto/sha256"
	"encoding/hex"
	"strings"

	"github.com/sluice-dev/sluice/pkg/cluster"
	"github.com/sluice-dev/sluice/rollout"
)

// childName is the name of the objects that a version has in its namespace: readable
// parts, cut, and a hash that keeps them apart. It has at most 62 characters, so that a Service may bear it.
func childName(key cluster.FleetKey) string {
	sum := sha256.Sum256([]byte(key.Endpoint.Name + "/" + key.Version))
	return cut(key.Endpoint.Name) + "-" + cut(key.Version) + "-" + hex.EncodeToString(sum[:3])
}

func cut(s string) string { return strings.TrimRight(s[:min(len(s), 27)], "-") }

// childLabels are on everything that a version has; the children are found by them.
func childLabels(key cluster.FleetKey) map[string]string {
	return map[string]string{
		LabelManagedBy: ManagedBy,
		LabelPart:      PartFleet,
		LabelEndpoint:  key.Endpoint.Name,
		LabelVersion:   key.Version,
	}
}

// fleetKey is the version that an object with these labels belongs to.
func fleetKey(namespace string, labels map[string]string) (cluster.FleetKey, bool) {
	key := cluster.FleetKey{Endpoint: rollout.Key{Namespace: namespace, Name: labels[LabelEndpoint]}, Version: labels[LabelVersion]}
	return key, key.Endpoint.Name != "" && key.Version != ""
}

// keysName is the name of the Secret with an endpoint's keys.
func keysName(endpoint string) string { return endpoint + "-keys" }
