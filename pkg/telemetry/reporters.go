package telemetry

import (
	"context"
	"errors"
	"sync"
)

// Reporters are all routers that there are.
type Reporters []Reporter

// Reports asks them at the same time. The error joins those that did not answer;
// the reports of the others come with it.
func (rs Reporters) Reports(ctx context.Context) ([]Report, error) {
	reports := make([]Report, len(rs))
	errs := make([]error, len(rs))
	var wg sync.WaitGroup
	for i, r := range rs {
		wg.Go(func() { reports[i], errs[i] = r.Report(ctx) })
	}
	wg.Wait()
	out := make([]Report, 0, len(rs))
	for i := range rs {
		if errs[i] == nil {
			out = append(out, reports[i])
		}
	}
	return out, errors.Join(errs...)
}
