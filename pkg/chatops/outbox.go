package chatops

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"time"
)

// Bounds of the outbox.
const (
	maxOutbox   = 8192             // and reactions have half of it
	sendTimeout = 90 * time.Second // includes waiting out a rate limit of a minute
	firstWait   = time.Second
	longestWait = 2 * time.Minute
	giveUpAfter = time.Hour
)

// Temporary is an error that may pass: the outbox tries again.
type Temporary interface {
	error
	Temporary() bool
}

// outbox sends replies and reactions one after the other, apart from the
// commands: those never wait for GitHub to take an answer. It is bounded; when it
// is full, the newest is dropped and logged.
type outbox struct {
	github  GitHub
	log     *slog.Logger
	overlap time.Duration

	mu       sync.Mutex
	items    []letter // in the order in which they are to be tried
	sending  bool
	draining bool
	wake     chan struct{}
	idle     chan struct{} // told whenever nothing is left
}

// letter is something to tell GitHub.
type letter struct {
	comment  Comment
	body     string   // a reply, or
	reaction Reaction // a reaction
	made     time.Time
	due      time.Time
	wait     time.Duration
	// doubt says that the reply may be there already.
	doubt bool
}

func newOutbox(g GitHub, log *slog.Logger, overlap time.Duration) *outbox {
	return &outbox{github: g, log: log, overlap: overlap, wake: make(chan struct{}, 1), idle: make(chan struct{}, 1)}
}

func (o *outbox) reply(c Comment, body string) { o.put(letter{comment: c, body: body}) }

// replyOnce is reply for what an earlier run may have answered, or another process may be answering: it has the overlap to do so.
func (o *outbox) replyOnce(c Comment, body string) {
	o.put(letter{comment: c, body: body, doubt: true, due: time.Now().Add(o.overlap)})
}

func (o *outbox) react(c Comment, r Reaction) { o.put(letter{comment: c, reaction: r}) }

func (o *outbox) put(l letter) {
	l.comment.Body = "" // not needed any more
	l.made, l.wait = time.Now(), firstWait
	o.mu.Lock()
	room := maxOutbox
	if l.body == "" {
		room /= 2
	}
	full := len(o.items) >= room
	if !full {
		o.items = append(o.items, l)
	}
	o.mu.Unlock()
	if full {
		o.log.Error("answer dropped: too many wait", "comment", l.comment.ID, "reaction", l.reaction)
		return
	}
	tell(o.wake)
}

func tell(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// run sends until ctx ends.
func (o *outbox) run(ctx context.Context) {
	for {
		l, wait, ok := o.next()
		if !ok {
			var timer <-chan time.Time
			if wait > 0 {
				timer = time.After(wait)
			}
			select {
			case <-o.wake:
			case <-timer:
			case <-ctx.Done():
				return
			}
			continue
		}
		o.send(ctx, l)
		if ctx.Err() != nil {
			return
		}
	}
}

// next takes the first letter that is due, replies before reactions; without one, it says how long until
// one is, 0 meaning that none waits.
func (o *outbox) next() (letter, time.Duration, bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.sending = false
	now := time.Now()
	var wait time.Duration
	first := -1
	for i := range o.items {
		l := &o.items[i]
		if o.draining || !l.due.After(now) {
			if l.body != "" {
				first = i
				break
			}
			if first < 0 {
				first = i
			}
		} else if d := l.due.Sub(now); wait == 0 || d < wait {
			wait = d
		}
	}
	if first >= 0 {
		l := o.items[first]
		o.items = slices.Delete(o.items, first, first+1)
		o.sending = true
		return l, 0, true
	}
	if len(o.items) == 0 {
		tell(o.idle)
	}
	return letter{}, wait, false
}

func (o *outbox) send(ctx context.Context, l letter) {
	ctx, cancel := context.WithTimeout(ctx, sendTimeout)
	defer cancel()
	var err error
	// What waited for long, behind others or for GitHub, another process may have answered after its overlap.
	if l.body != "" && (l.doubt || time.Since(l.made) > o.overlap/2) {
		var there bool
		// The clocks of both sides may differ.
		if there, err = o.github.Replied(ctx, l.comment.Repository, l.comment.PullRequest, markerOf(l.body), l.comment.CreatedAt.Add(-5*time.Minute)); there {
			return
		}
	}
	switch {
	case err != nil:
	case l.body != "":
		l.doubt = true // an answer that is lost may have been carried out
		err = o.github.Reply(ctx, l.comment.Repository, l.comment.PullRequest, l.body)
	default:
		err = o.github.React(ctx, l.comment.Repository, l.comment.ID, l.reaction)
	}
	if err == nil {
		return
	}
	var t Temporary
	passes := errors.As(err, &t) && t.Temporary() || errors.Is(err, context.DeadlineExceeded)
	o.mu.Lock()
	again := passes && !o.draining && time.Since(l.made) < giveUpAfter && len(o.items) < maxOutbox
	if again {
		l.due = time.Now().Add(l.wait)
		l.wait = min(2*l.wait, longestWait)
		o.items = append(o.items, l)
	}
	o.mu.Unlock()
	log := o.log.WarnContext
	if !again && l.body != "" {
		log = o.log.ErrorContext
	}
	log(ctx, "answer not taken by GitHub", "comment", l.comment.ID, "repository", l.comment.Repository.ID, "reaction", l.reaction, "again", again, "error", err)
}

// drain gives each letter one more try, until none is left or ctx ends.
func (o *outbox) drain(ctx context.Context) {
	o.mu.Lock()
	o.draining = true
	empty := len(o.items) == 0 && !o.sending
	o.mu.Unlock()
	tell(o.wake)
	for !empty {
		select {
		case <-o.idle:
		case <-ctx.Done():
			return
		}
		o.mu.Lock()
		empty = len(o.items) == 0 && !o.sending
		o.mu.Unlock()
	}
}
