package autoscale

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"github.com/sluice-dev/sluice/pkg/cluster"
	"github.com/sluice-dev/sluice/pkg/cluster/memory"
	"github.com/sluice-dev/sluice/pkg/telemetry"
	"github.com/sluice-dev/sluice/rollout"
)

// busy is a router whose one version has a constant number of requests in flight.
type busy struct {
	began time.Time
	now   time.Time
	load  float64
}

func (b *busy) Reports(context.Context) ([]telemetry.Report, error) {
	at := b.now.Sub(b.began)
	return []telemetry.Report{{Epoch: "one", Elapsed: at, Versions: []telemetry.VersionReport{{
		Endpoint: rollout.Key{Namespace: "models", Name: "fraud"}, Version: "v1", InFlightSeconds: b.load * at.Seconds(), InFlight: int64(b.load), ServiceSeconds: 1,
	}}}}, nil
}

// painted shows a fleet as a test wants it.
type painted struct {
	cluster.FleetState
	scaled []int
}

func (p *painted) Fleets(context.Context) ([]cluster.FleetState, error) {
	return []cluster.FleetState{p.FleetState}, nil
}

func (p *painted) WatchFleets(context.Context) (<-chan struct{}, error) { return nil, nil }

func (p *painted) Scale(_ context.Context, _ cluster.FleetKey, n int) error {
	p.scaled, p.Desired = append(p.scaled, n), n
	return nil
}

// TestOthersAndFullClusters: what something else scales is left alone, and a cluster without
// room is not asked for more, until either is over.
func TestOthersAndFullClusters(t *testing.T) {
	store := memory.NewStore()
	key := rollout.Key{Namespace: "models", Name: "fraud"}
	most := 100
	e := &rollout.Endpoint{Metadata: rollout.Metadata{Namespace: key.Namespace, Name: key.Name}, Spec: rollout.Spec{Versions: []rollout.Version{{
		Name: "v1", Type: rollout.Control, IsDefault: true, Image: "x@sha256:0000000000000000000000000000000000000000000000000000000000000000",
		Settings: rollout.Settings{Autoscale: &rollout.Autoscale{MaxReplicas: &most}},
	}}}}
	if _, err := store.Create(t.Context(), e); err != nil {
		t.Fatal(err)
	}
	began := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	routers := &busy{began: began, now: began, load: 7}
	fleet := &painted{FleetState: cluster.FleetState{Key: cluster.FleetKey{Endpoint: key, Version: "v1"}, Desired: 1}}
	l := newLoop(Options{Endpoints: store, Fleets: fleet, Scaler: fleet, Routers: routers, Logger: slog.New(slog.DiscardHandler)})
	tick := func() {
		t.Helper()
		routers.now = routers.now.Add(Tick)
		if err := l.once(t.Context(), routers.now); err != nil {
			t.Fatal(err)
		}
	}
	fleet.ScaledBy = "HorizontalPodAutoscaler mine"
	for range 3 {
		tick()
	}
	if len(fleet.scaled) != 0 {
		t.Fatalf("scaled to %v although an HPA does", fleet.scaled)
	}
	fleet.ScaledBy = ""
	tick()
	if len(fleet.scaled) != 1 || fleet.Desired != 10 { // 7 busy slots at 70 per cent
		t.Fatalf("scaled to %v once the HPA is gone, want 10", fleet.scaled)
	}
	fleet.Replicas = []cluster.Replica{{Name: "p", State: cluster.ReplicaStarting, Reason: rollout.ReasonClusterFull, Message: "0/1 nodes are available"}}
	routers.load = 14
	for range 3 {
		tick()
	}
	if len(fleet.scaled) != 1 {
		t.Fatalf("scaled to %v although the cluster is full", fleet.scaled)
	}
	fleet.Replicas[0].Reason = rollout.ReasonStarting
	tick()
	if fleet.Desired <= 10 {
		t.Errorf("scaled to %v once there is room, want more than 10", fleet.scaled)
	}
}
