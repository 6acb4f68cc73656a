package router

import (
	"log/slog"
	"strings"
	"testing"

	"github.com/sluice-dev/sluice/pkg/router/dispatch"
)

func newDiscard() *slog.Logger { return slog.New(slog.DiscardHandler) }

type nothing struct{}

func (nothing) CloseIdle() {}
func (nothing) Close()     {}

func newScheduler() *dispatch.Scheduler {
	return dispatch.New(dispatch.Options{Open: func(string) dispatch.Backend { return nothing{} }})
}

func TestThrottle(t *testing.T) {
	var b strings.Builder
	h := newThrottle(slog.NewTextHandler(&b, nil), 3)
	log := slog.New(h)
	for range 10 {
		log.Warn("w")
	}
	log.Error("e")
	log.With("a", 1).WithGroup("g").Info("i")
	if n := strings.Count(b.String(), "level=WARN"); n < 3 || n > 6 { // a second may end in between
		t.Errorf("%d warnings", n)
	}
	if !strings.Contains(b.String(), "level=ERROR") || !strings.Contains(b.String(), "level=INFO") {
		t.Error("others were held back")
	}
	s := &throttleState{most: 2}
	for i, want := range []struct {
		second int64
		pass   bool
		held   int
	}{{1, true, 0}, {1, true, 0}, {1, false, 0}, {1, false, 0}, {2, true, 2}, {2, true, 0}} {
		if pass, held := s.take(want.second); pass != want.pass || held != want.held {
			t.Errorf("%d: %v %d", i, pass, held)
		}
	}
}

func TestBuffers(t *testing.T) {
	var p buffers
	var b *buffer
	for _, n := range []int{1, smallBuffer, smallBuffer + 1, largeBuffer, largeBuffer + 1, 10} {
		if got := p.buffer(&b, n); len(got) < n {
			t.Errorf("%d bytes for %d", len(got), n)
		}
	}
	p.release(b)
	p.release(nil)
}
