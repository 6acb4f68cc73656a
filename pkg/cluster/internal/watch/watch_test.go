package watch

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"

	"github.com/sluice-dev/sluice/rollout"
)

func TestBellMergesAndCloses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(context.Background())
		var b Bell
		c := b.Listen(ctx)
		<-c
		b.Ring()
		b.Ring()
		<-c
		select {
		case <-c:
			t.Fatal("two rings before a read must be one")
		default:
		}
		cancel()
		synctest.Wait()
		if _, open := <-c; open {
			t.Fatal("the channel is open after its context ended")
		}
		b.Ring() // must not send on a closed channel
	})
}

func TestKeysTellTheLastChange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		var k Keys
		a, b := rollout.Key{Namespace: "n", Name: "a"}, rollout.Key{Namespace: "n", Name: "b"}
		c, err := k.Listen(ctx, func() ([]rollout.Key, error) {
			k.Changed(b) // a change during the listing
			return []rollout.Key{a}, nil
		})
		if err != nil {
			t.Fatal(err)
		}
		got := map[rollout.Key]bool{<-c: true, <-c: true}
		if !got[a] || !got[b] {
			t.Fatalf("began with %v, want a and b", got)
		}
		for i := range 100 {
			k.Changed(a)
			if i == 0 {
				synctest.Wait() // the first is on its way out while the others come
			}
		}
		n := 0
		for {
			synctest.Wait()
			select {
			case <-c:
				n++
				continue
			default:
			}
			break
		}
		if n != 2 {
			t.Fatalf("100 changes without a read came as %d keys, want 2: the one on its way and one for all after it", n)
		}
	})
}

func TestKeysForgetFailedListeners(t *testing.T) {
	var k Keys
	want := errors.New("no list")
	if _, err := k.Listen(t.Context(), func() ([]rollout.Key, error) { return nil, want }); !errors.Is(err, want) {
		t.Fatalf("err = %v, want %v", err, want)
	}
	if len(k.listeners) != 0 {
		t.Fatal("a listener that failed stays registered")
	}
}

func TestKeysPendingIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		var k Keys
		if _, err := k.Listen(ctx, func() ([]rollout.Key, error) { return nil, nil }); err != nil {
			t.Fatal(err)
		}
		for i := range 10_000 {
			k.Changed(rollout.Key{Namespace: "n", Name: fmt.Sprint("e", i%7)})
		}
		for l := range k.listeners {
			if len(l.order) > 7 {
				t.Fatalf("%d keys wait for 7 endpoints", len(l.order))
			}
		}
	})
}
