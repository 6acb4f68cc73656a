package local

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"path/filepath"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"
)

const (
	// pollWatched is how often directories are looked at although the kernel tells of
	// changes: it can lose events, and some file systems (NFS, FUSE) send none for what others do.
	pollWatched = time.Second
	// pollBlind is how often they are looked at when the kernel cannot tell.
	pollBlind = 100 * time.Millisecond
)

// poker says when something in some directories may have changed.
type poker struct {
	notify *fsnotify.Watcher
	added  map[string]bool
	log    *slog.Logger
	poll   time.Duration
}

func newPoker(log *slog.Logger) *poker {
	p := &poker{added: map[string]bool{}, log: log, poll: pollWatched}
	w, err := fsnotify.NewWatcher()
	if err != nil {
		log.Warn("the kernel cannot tell of changed files: polling instead", "err", err)
		p.poll = pollBlind
		return p
	}
	p.notify = w
	return p
}

// add watches one more directory. One that is gone, or was removed and made anew, may be added again.
func (p *poker) add(dir string) {
	if p.notify == nil {
		return
	}
	if err := p.notify.Add(dir); err != nil {
		if !p.added[dir] && !errors.Is(err, fs.ErrNotExist) {
			p.log.Warn("watch directory: polling it instead", "dir", dir, "err", err)
			p.added[dir], p.poll = true, pollBlind
		}
		return
	}
	p.added[dir] = true
}

// run calls look at once, whenever something may have changed, at least each
// p.poll, and after the time that look returned if that is above 0. look gets the
// paths that are known to have changed.
func (p *poker) run(ctx context.Context, look func(changed map[string]bool) time.Duration) {
	var events <-chan fsnotify.Event
	var errs <-chan error
	if p.notify != nil {
		defer func() { _ = p.notify.Close() }()
		events, errs = p.notify.Events, p.notify.Errors
	}
	changed := map[string]bool{}
	note := func(ev fsnotify.Event) {
		if !strings.HasPrefix(filepath.Base(ev.Name), tempPrefix) {
			changed[ev.Name] = true
		}
	}
	timer := time.NewTimer(p.poll)
	defer timer.Stop()
	for {
		again := look(changed)
		clear(changed)
		if again <= 0 || again > p.poll {
			again = p.poll
		}
		timer.Reset(again)
		for waiting := true; waiting; {
			select {
			case <-ctx.Done():
				return
			case ev := <-events:
				note(ev)
			case err := <-errs: // an overflow: look at everything
				p.log.Debug("watch files", "err", err)
				waiting = false
			case <-timer.C:
				waiting = false
			}
			// One look for all that is known by now.
			for more := true; more; {
				select {
				case ev := <-events:
					note(ev)
				default:
					more = false
				}
			}
			if len(changed) > 0 {
				waiting = false
			}
		}
	}
}
