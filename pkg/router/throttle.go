package router

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

// maxWarnings is how many warnings of the data path are logged in a second.
const maxWarnings = 10

// throttle is a slog.Handler that bounds warnings per second, so that a version that
// fails every request does not fill the disk. What it held back, the next one
// that passes says.
type throttle struct {
	slog.Handler
	state *throttleState
}

type throttleState struct {
	most int

	mu     sync.Mutex
	second int64
	passed int
	held   int
}

func newThrottle(h slog.Handler, most int) slog.Handler {
	return &throttle{h, &throttleState{most: most}}
}

// Handle implements slog.Handler.
func (t *throttle) Handle(ctx context.Context, r slog.Record) error {
	if r.Level == slog.LevelWarn {
		pass, held := t.state.take(time.Now().Unix())
		if !pass {
			return nil
		}
		if held > 0 {
			r = r.Clone()
			r.AddAttrs(slog.Int("heldBack", held))
		}
	}
	return t.Handler.Handle(ctx, r)
}

func (s *throttleState) take(second int64) (pass bool, held int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if second != s.second {
		s.second, s.passed = second, 0
	}
	if s.passed >= s.most {
		s.held++
		return false, 0
	}
	s.passed++
	held, s.held = s.held, 0
	return true, held
}

// WithAttrs implements slog.Handler.
func (t *throttle) WithAttrs(a []slog.Attr) slog.Handler {
	return &throttle{t.Handler.WithAttrs(a), t.state}
}

// WithGroup implements slog.Handler.
func (t *throttle) WithGroup(name string) slog.Handler {
	return &throttle{t.Handler.WithGroup(name), t.state}
}
