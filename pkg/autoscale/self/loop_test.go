package self

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sluice-dev/sluice/pkg/telemetry"
)

// fake is a cluster with routers that a test paints.
type fake struct {
	mu      sync.Mutex
	began   time.Time
	pods    []Pod
	desired int
	p99     time.Duration
	routed  int64
	use     float64 // cores of each
	silent  bool
	refuses bool
}

func (f *fake) Reports(context.Context) (out []telemetry.Report, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	at := time.Since(f.began)
	for _, p := range f.pods {
		out = append(out, telemetry.Report{Epoch: p.Name, Elapsed: at, Router: telemetry.RouterReport{
			CPUSeconds: f.use * at.Seconds(), Routed: f.routed, RoutingP99Seconds: f.p99.Seconds() / 2, CPUWaitP99Seconds: f.p99.Seconds() / 2,
		}})
	}
	if f.silent {
		return out[1:], errors.New("no answer")
	}
	return out, nil
}

func (f *fake) Pods(context.Context) ([]Pod, int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.pods), f.desired, nil
}

func (f *fake) Resize(_ context.Context, r Resize) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.refuses {
		return fmt.Errorf("%w: quota", ErrRefused)
	}
	for i := range f.pods {
		if f.pods[i].Name == r.Pod {
			f.pods[i].CPU, f.pods[i].Has = r.To, r.To
		}
	}
	return nil
}

func (f *fake) Scale(_ context.Context, n int) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.desired = n
	for len(f.pods) < n {
		f.pods = append(f.pods, pod(fmt.Sprint("new-", len(f.pods)), 1000))
	}
	f.pods = f.pods[:n]
	return nil
}

// paint changes it.
func (f *fake) paint(edit func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	edit()
}

// start runs the loop in the bubble of synctest.
func start(t *testing.T, f *fake) (steps *[]Kind, log *bytes.Buffer) {
	t.Helper()
	f.began, f.desired = time.Now(), len(f.pods)
	steps, log = new([]Kind), new(bytes.Buffer)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() {
		done <- Run(ctx, Options{Settings: settings(), Reports: f, Pods: f, Scaler: f, Logger: slog.New(slog.NewTextHandler(log, nil)),
			Stepped: func(k Kind) { *steps = append(*steps, k) }})
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return steps, log
}

func wait(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// TestLoop: a rising load and its end, each step logged once with its figure.
func TestLoop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fake{pods: []Pod{pod("a", 1500)}, p99: 12 * time.Millisecond, routed: 1000, use: 1.4}
		steps, log := start(t, f)
		wait(46 * time.Second)
		if want := []Kind{CPUUp, PodsOut}; !slices.Equal(*steps, want) {
			t.Errorf("%q, want %q\n%s", *steps, want, log)
		}
		f.paint(func() { f.p99, f.use = time.Millisecond, 0.1 })
		wait(7 * time.Minute)
		if want := []Kind{CPUUp, PodsOut, CPUDown, CPUDown, PodsIn}; !slices.Equal(*steps, want) || len(f.pods) != 1 || f.pods[0].CPU != 1000 {
			t.Errorf("%q, want %q, %+v\n%s", *steps, want, f.pods, log)
		}
		if n := strings.Count(log.String(), "because="); n != 5 {
			t.Errorf("%d lines\n%s", n, log)
		}
		for _, says := range []string{"action=cpu_up pod=a from=1500m to=2 because=\"p99 routing time 12ms for 15s, over 5ms\"", "action=pods_out from=1 to=2", "action=cpu_down", "action=pods_in from=2 to=1 because=\"CPU use 10%"} {
			if !strings.Contains(log.String(), says) {
				t.Errorf("the log lacks %s\n%s", says, log)
			}
		}
	})
}

// TestLoopHolds: a missing report, and a p99 of too few requests, change nothing.
func TestLoopHolds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fake{pods: []Pod{pod("a", 1500), pod("b", 1500)}, p99: time.Second, routed: 1000, use: 1, silent: true}
		steps, log := start(t, f)
		wait(5 * time.Minute)
		f.paint(func() { f.silent, f.routed = false, fewRequests-1 })
		wait(5 * time.Minute)
		if len(*steps) != 0 {
			t.Errorf("%q\n%s", *steps, log)
		}
	})
}

// TestLoopRefused: a cluster that cannot resize, or may not, gets pods.
func TestLoopRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fake{pods: []Pod{pod("a", 1000)}, p99: time.Second, routed: 1000, use: 1, refuses: true}
		steps, log := start(t, f)
		wait(2 * time.Minute)
		if want := []Kind{PodsOut, PodsOut, Full}; !slices.Equal(*steps, want) || strings.Count(log.String(), "quota") != 1 {
			t.Errorf("%q, want %q\n%s", *steps, want, log)
		}
	})
	if err := Run(t.Context(), Options{}); err == nil {
		t.Error("settings without sense were taken")
	}
}
