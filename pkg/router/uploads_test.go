package router

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sluice-dev/sluice/pkg/router/upstream"
	"github.com/sluice-dev/sluice/rollout"
	"github.com/sluice-dev/sluice/rollout/verdict"
)

func TestUploadsLeft(t *testing.T) {
	u := uploads{grace: 10 * time.Second, rate: 64 << 10, most: 5 * time.Minute}
	for _, x := range []struct {
		n           int64
		taken, want time.Duration
	}{
		{0, 0, 10 * time.Second},
		{0, 10 * time.Second, 0},
		{64 << 10, 10 * time.Second, time.Second},
		{640 << 10, 5 * time.Second, 15 * time.Second},
		{maxBody, 0, 5 * time.Minute},
		{maxBody, 6 * time.Minute, -time.Minute},
	} {
		if got := u.left(x.n, x.taken); got != x.want {
			t.Errorf("%d bytes in %v: %v are left, want %v", x.n, x.taken, got, x.want)
		}
	}
	if d := defaultUploads(); d.grace > bodyStall || d.left(maxBody, 0) != d.most {
		t.Errorf("the defaults %+v", d)
	}
}

// dribble sends one byte after the other behind a head, until the router answers, and
// returns its answer.
func (h *harness) dribble(head string) (*http.Response, []byte) {
	h.t.Helper()
	c, err := net.Dial("tcp", h.addr)
	if err != nil {
		h.t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(2 * time.Second))
	_, _ = fmt.Fprintf(c, "POST %s HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\n%s\r\n\r\n", scoreURL, h.key, head)
	done := make(chan struct{})
	defer func() { <-done }()
	defer c.Close()
	go func() {
		defer close(done)
		for {
			if _, err := io.WriteString(c, "x"); err != nil {
				return
			}
			time.Sleep(5 * time.Millisecond)
		}
	}()
	br := bufio.NewReader(c)
	resp, err := http.ReadResponse(br, nil)
	if err == nil && resp.StatusCode == http.StatusContinue {
		resp, err = http.ReadResponse(br, nil)
	}
	if err != nil {
		h.t.Fatalf("no answer to who sends %s slowly: %v", head, err)
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(resp.Body)
	return resp, body
}

// A client that dribbles its body does not keep the only slot, and its slowness is no
// version's fault.
func TestSlowUploadsLoseTheirSlot(t *testing.T) {
	a, b := version("a", rollout.Control, 0), version("b", rollout.Treatment, 100_000)
	h := start(t, func(o *Options) {
		o.uploads = uploads{grace: 150 * time.Millisecond, rate: 1 << 20, most: time.Minute}
	}, a, b)
	h.edit(func(s *rollout.Spec) { s.Strategy = &rollout.Strategy{} })
	g := newGate(t, 1, echo)
	h.fleets.set("b", g.addr())
	h.serving(map[string]int{"b": 1})
	for i, head := range []string{"Content-Length: 1000000", "Content-Length: 1000\r\nExpect: 100-continue"} {
		resp, body := h.dribble(head)
		x := answer{status: resp.StatusCode, header: resp.Header, body: string(body)}
		if x.status != http.StatusRequestTimeout || x.code() != "body_too_slow" || !resp.Close || x.header.Get("Sluice-Version") != "b" {
			t.Errorf("%s: %+v, want 408 body_too_slow and a close", head, x)
		}
		h.eventually("it is counted", func() bool { return h.stats("b").Requests == int64(i+1) })
		if v := h.stats("b"); v.Bad != 0 || v.InFlight != 0 {
			t.Errorf("%s: %+v, want nothing bad and nothing in flight", head, v)
		}
	}
	if ev := h.evidence("b"); ev.Requests(verdict.Treatment)+ev.Requests(verdict.Control) != 0 {
		t.Errorf("slow clients are evidence: %+v", ev)
	}
	if x := h.score("next"); x.status != 200 || x.body != "next" {
		t.Errorf("the next request: %+v", x)
	}
}

// slowly reads bytes of its own making, one part after each pause.
type slowly struct {
	pause time.Duration
	part  int
	left  int
}

func (s *slowly) Read(p []byte) (int, error) {
	if s.left == 0 {
		return 0, io.EOF
	}
	time.Sleep(s.pause)
	n := min(len(p), s.part, s.left)
	s.left -= n
	return n, nil
}

func (*slowly) Close() error { return nil }

// The times of client and replica are counted apart: each is slow for itself only.
func TestUploadTimes(t *testing.T) {
	const part = 32 << 10
	for _, x := range []struct {
		name      string
		client    slowly
		replica   time.Duration // that it takes for each part
		chunked   bool
		isReplica bool
		err       error
		took      time.Duration
	}{
		{name: "both fast", client: slowly{part: part, left: maxBody}},
		{name: "a slow replica", client: slowly{part: part, left: 5 * part}, replica: 50 * time.Second, took: 250 * time.Second},
		{name: "a slow replica, chunked", client: slowly{part: part, left: 4 * part}, replica: 10 * time.Second, chunked: true, took: 130 * time.Second},
		{name: "a replica that takes too long in all", client: slowly{part: part, left: 100 * part}, replica: 50 * time.Second, isReplica: true, err: os.ErrDeadlineExceeded, took: 5 * time.Minute},
		{name: "a dribble", client: slowly{pause: time.Second, part: 1, left: part}, err: errBodyTooSlow, took: 11 * time.Second},
		{name: "half the rate", client: slowly{pause: time.Second, part: part, left: 100 * part}, err: errBodyTooSlow, took: 20 * time.Second},
		{name: "just the rate", client: slowly{pause: 500 * time.Millisecond, part: part, left: 100 * part}, took: 50 * time.Second},
		{name: "just the rate for ever", client: slowly{pause: 500 * time.Millisecond, part: part, left: maxBody}, err: errBodyTooSlow, took: 5 * time.Minute},
		{name: "a dribble at a slow replica", client: slowly{pause: time.Second, part: 1, left: part}, replica: 2 * time.Second, err: errBodyTooSlow, took: 22 * time.Second},
	} {
		t.Run(x.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancel(t.Context())
				near, far := net.Pipe()
				go func() {
					buf := make([]byte, 2*part)
					for {
						select {
						case <-ctx.Done():
							return
						case <-time.After(x.replica):
						}
						// What is written at once is read at once; a chunk is written in three pieces.
						if _, err := far.Read(buf); err != nil {
							return
						}
					}
				}()
				defer func() { cancel(); near.Close() }()
				length := int64(x.client.left)
				if x.chunked {
					length = -1
				}
				rt := &Router{opts: Options{uploads: defaultUploads()}}
				e := &exchange{router: rt, budget: time.Minute, r: &http.Request{ContentLength: length, Body: &x.client}}
				began := time.Now()
				isReplica, err := e.copyBody(&upstream.Conn{Conn: near}, &pump{})
				if took := time.Since(began); isReplica != x.isReplica || !errors.Is(err, x.err) || took.Round(time.Second) != x.took {
					t.Errorf("replica %v, %v after %v, want %v, %v after %v", isReplica, err, took, x.isReplica, x.err, x.took)
				}
			})
		})
	}
}
