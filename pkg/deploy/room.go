package deploy

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/sluice-dev/sluice/pkg/cluster"
	"github.com/sluice-dev/sluice/rollout"
)

// Room is a change that needs ready slots.
type Room struct {
	Endpoints cluster.Editor
	Key       rollout.Key
	Request   rollout.Request
	Op        rollout.Op
	// Version whose replicas are to carry Percent.
	Version  string
	Percent  rollout.Percent
	Timeout  time.Duration
	Progress Progress
}

// WithRoom has replicas prepared for a share, waits until they are ready, and carries the change out in the
// look that finds them so. What it could not do in time it takes back, and says with reason not_ready_in_time.
func WithRoom(ctx context.Context, o Room) (rollout.Outcome, error) {
	prepare := func(ctx context.Context, percent rollout.Percent, suffix string) error {
		req := o.Request
		req.ID += suffix
		_, _, err := o.Endpoints.Edit(ctx, o.Key, req, func(*rollout.Endpoint) (rollout.Op, error) {
			return rollout.Prepare{Version: o.Version, Percent: percent}, nil
		})
		return err
	}
	// What would be refused anyhow prepares nothing.
	e, err := o.Endpoints.Get(ctx, o.Key)
	if err != nil {
		return rollout.Outcome{}, fmt.Errorf("read endpoint %s: %w", o.Key, err)
	}
	would := o.Request
	would.Force = true
	if _, out, err := rollout.Apply(e, would, o.Op); err != nil || !out.Changed {
		return out, err
	}
	if err := prepare(ctx, o.Percent, "-prepare"); err != nil {
		return rollout.Outcome{}, err
	}
	out, err := o.wait(ctx)
	if err == nil {
		return out, nil
	}
	undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	if e := prepare(undo, 0, "-unprepare"); e != nil {
		err = errors.Join(err, fmt.Errorf("stop preparing: %w", e))
	}
	return rollout.Outcome{}, err
}

func (o Room) wait(ctx context.Context) (rollout.Outcome, error) {
	late := time.After(o.Timeout)
	said := ""
	for {
		e, err := o.Endpoints.Get(ctx, o.Key)
		if err != nil {
			return rollout.Outcome{}, fmt.Errorf("read endpoint %s: %w", o.Key, err)
		}
		v := e.Spec.Version(o.Version)
		if v == nil {
			return rollout.Outcome{}, rollout.UnknownVersion(&e.Spec, o.Version)
		}
		have, need := rollout.Slots(v, &e.Status, o.Percent)
		if have >= need {
			_, out, err := o.Endpoints.Edit(ctx, o.Key, o.Request, func(*rollout.Endpoint) (rollout.Op, error) { return o.Op, nil })
			// The demand or the replicas may have changed in between.
			if rollout.ReasonOf(err) != rollout.ReasonNotEnoughReady {
				return out, err
			}
		}
		if text := fmt.Sprintf("%s has %d of %d slots ready for %s %%", o.Version, have, need, o.Percent); text != said && o.Progress != nil {
			o.Progress("%s", text)
			said = text
		}
		select {
		case <-ctx.Done():
			return rollout.Outcome{}, fmt.Errorf("wait for room: %w", ctx.Err())
		case <-late:
			return rollout.Outcome{}, &rollout.Error{Reason: rollout.ReasonReadyTimeout, Field: "timeout", Message: fmt.Sprintf("not within %s: %s", o.Timeout, said), Hint: "give it more time, or a smaller share; `sluice status " + o.Key.Name + "` shows how far it is"}
		case <-time.After(200 * time.Millisecond):
		}
	}
}
