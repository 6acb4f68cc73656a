// Package watch fans changes out to listeners that may be slow: nothing is lost,
// bursts are merged, and a listener that does not read costs a bounded amount of memory.
package watch

import (
	"context"
	"sync"

	"github.com/sluice-dev/sluice/rollout"
)

// Bell tells its listeners that something changed. The zero value is ready for use.
type Bell struct {
	mu        sync.Mutex
	listeners map[chan struct{}]struct{}
}

// Ring wakes every listener. Rings that come before a listener has read the last are merged.
func (b *Bell) Ring() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for c := range b.listeners {
		select {
		case c <- struct{}{}:
		default:
		}
	}
}

// Listen returns a channel that is ready at once and after each Ring; it is
// closed when ctx ends.
func (b *Bell) Listen(ctx context.Context) <-chan struct{} {
	c := make(chan struct{}, 1)
	c <- struct{}{}
	b.mu.Lock()
	if b.listeners == nil {
		b.listeners = map[chan struct{}]struct{}{}
	}
	b.listeners[c] = struct{}{}
	b.mu.Unlock()
	context.AfterFunc(ctx, func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		delete(b.listeners, c)
		close(c)
	})
	return c
}

// Keys tells its listeners which endpoints changed. The zero value is ready for use.
type Keys struct {
	mu        sync.Mutex
	listeners map[*listener]struct{}
}

type listener struct {
	mu      sync.Mutex
	pending map[rollout.Key]struct{}
	order   []rollout.Key
	wake    chan struct{}
}

func (l *listener) add(keys []rollout.Key) {
	l.mu.Lock()
	for _, k := range keys {
		if _, there := l.pending[k]; !there {
			l.pending[k] = struct{}{}
			l.order = append(l.order, k)
		}
	}
	l.mu.Unlock()
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// next takes the oldest key out before it is sent: a change that comes while the
// listener is not reading then adds it again, so that the last change is always told.
func (l *listener) next() (rollout.Key, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.order) == 0 {
		return rollout.Key{}, false
	}
	k := l.order[0]
	l.order = l.order[1:]
	delete(l.pending, k)
	return k, true
}

// Changed tells every listener about these keys.
func (k *Keys) Changed(keys ...rollout.Key) {
	if len(keys) == 0 {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	for l := range k.listeners {
		l.add(keys)
	}
}

// Listen returns a channel with what initial returns, then every key that
// changes. Changes during initial are not lost. The channel is closed when ctx ends.
func (k *Keys) Listen(ctx context.Context, initial func() ([]rollout.Key, error)) (<-chan rollout.Key, error) {
	l := &listener{pending: map[rollout.Key]struct{}{}, wake: make(chan struct{}, 1)}
	k.mu.Lock()
	if k.listeners == nil {
		k.listeners = map[*listener]struct{}{}
	}
	k.listeners[l] = struct{}{}
	k.mu.Unlock()
	remove := func() {
		k.mu.Lock()
		defer k.mu.Unlock()
		delete(k.listeners, l)
	}
	first, err := initial()
	if err != nil {
		remove()
		return nil, err
	}
	l.add(first)
	out := make(chan rollout.Key)
	go func() {
		defer close(out)
		defer remove()
		for {
			key, ok := l.next()
			if !ok {
				select {
				case <-l.wake:
					continue
				case <-ctx.Done():
					return
				}
			}
			select {
			case out <- key:
			case <-ctx.Done():
				return
			}
		}
	}()
	return out, nil
}
