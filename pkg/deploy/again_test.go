package deploy

import (
	"context"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/sluice-dev/sluice/rollout"
)

// TestFailedBefore: deploying what failed once says so again, with its reason, instead of
// calling the retired version deployed.
func TestFailedBefore(t *testing.T) {
	b := newBench(t, func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusBadGateway) })
	defer b.serve()()
	if _, err := Run(t.Context(), b.options("one", 0)); err != nil {
		t.Fatal(err)
	}
	o := b.options("two", 0)
	s := o.Shipper.(fixed)
	s.s.Test = &Test{Status: 200}
	o.Shipper = s
	if _, err := Run(t.Context(), o); rollout.ReasonOf(err) != rollout.ReasonSmokeFailed {
		t.Fatalf("got %v, want smoke_test_failed", err)
	}
	_, err := Run(t.Context(), o)
	if rollout.ReasonOf(err) != rollout.ReasonSmokeFailed || !strings.Contains(err.Error(), "failed when it was deployed") {
		t.Errorf("the same again: %v, want the earlier failure", err)
	}
	if v := b.version("two"); v.RetiredAt.IsZero() || v.Type != rollout.Untyped {
		t.Errorf("it is %+v, want it retired still", v)
	}
}

// TestRoomForTheShare: a percentile given in the deploy waits for the slots that carry it, or
// gives up without having taken any traffic.
func TestRoomForTheShare(t *testing.T) {
	for name, c := range map[string]struct {
		grows bool
		want  rollout.Reason
	}{
		"slots come":  {true, ""},
		"they do not": {false, rollout.ReasonNotEnoughReady},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, nil)
			stop := b.serve()
			if _, err := Run(t.Context(), b.options("one", 0)); err != nil {
				t.Fatal(err)
			}
			stop()
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			done := make(chan struct{})
			go func() { // control and autoscaler: ten slots once they are asked for
				defer close(done)
				for ctx.Err() == nil {
					if e, err := b.store.Get(ctx, at); err == nil {
						e.Status.Demand, e.Status.Versions = "6", nil
						for _, v := range e.Spec.Versions {
							st := rollout.VersionStatus{Name: v.Name, State: rollout.StateReady, Replicas: 1, ReadyReplicas: 1}
							if c.grows && v.PlannedPercentile > 0 {
								st.ReadyReplicas = 10
							}
							e.Status.Versions = append(e.Status.Versions, st)
						}
						_, _ = b.store.UpdateStatus(ctx, e)
					}
					time.Sleep(5 * time.Millisecond)
				}
			}()
			o := b.options("two", 0)
			half := 50 * rollout.OnePercent
			o.Percent, o.Timeout = &half, time.Second
			_, err := Run(t.Context(), o)
			cancel()
			<-done
			v := b.version("two")
			switch {
			case c.want == "" && (err != nil || v.TrafficPercentile != half || v.Type != rollout.Treatment):
				t.Errorf("%v, version %+v; want a treatment at 50", err, v)
			case c.want != "" && (rollout.ReasonOf(err) != c.want || v.TrafficPercentile != 0 || v.RetiredAt.IsZero()):
				t.Errorf("%v, version %+v; want %s and nothing claimed", err, v, c.want)
			}
		})
	}
}
