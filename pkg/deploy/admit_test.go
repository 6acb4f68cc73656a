package deploy

import (
	"context"
	"errors"
	"testing"

	"github.com/sluice-dev/sluice/pkg/cluster"
)

// TestAdmit: what is not admitted does not join, and what is asked about is the image that would.
func TestAdmit(t *testing.T) {
	b := newBench(t, nil)
	o := b.options("one", 0)
	o.Timeout = 0
	no := errors.New("no")
	var asked Shipment
	o.Admit = func(_ context.Context, s Shipment) error {
		asked = s
		return no
	}
	if _, err := Run(t.Context(), o); !errors.Is(err, no) {
		t.Errorf("got %v", err)
	}
	if asked.Image == "" || asked.Name != "one" {
		t.Errorf("asked about %+v", asked)
	}
	if _, err := b.store.Get(t.Context(), at); !errors.Is(err, cluster.ErrNotFound) {
		t.Errorf("the endpoint: %v, want none", err)
	}
	o.Admit = func(context.Context, Shipment) error { return nil }
	if _, err := Run(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	b.version("one")
}
