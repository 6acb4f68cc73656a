package cli

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// load is an open loop of requests at a constant rate: each is sent when it is
// due, however slow the answers before it are.
type load struct {
	url    string
	key    string
	bodies [][]byte
	rate   int // requests per second
	client *http.Client

	sent, good, bad, refused atomic.Int64

	mu     sync.Mutex
	badBy  map[string]int64 // version → bad answers that clients saw
	lastly string           // newest bad answer's body
}

// maxInFlight bounds the generator itself: beyond it, requests are not sent.
const maxInFlight = 256

func newLoad(url, key string, bodies [][]byte, rate int) *load {
	return &load{
		url: url, key: key, bodies: bodies, rate: rate, badBy: map[string]int64{},
		client: &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: maxInFlight}},
	}
}

// run until ctx ends, and until the last answer is there.
func (l *load) run(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	defer l.client.CloseIdleConnections()
	slots := make(chan struct{}, maxInFlight)
	began := time.Now()
	for i := 0; ; i++ {
		due := began.Add(time.Duration(i) * time.Second / time.Duration(l.rate))
		select {
		case <-ctx.Done():
			return
		case <-time.After(time.Until(due)):
		}
		select {
		case slots <- struct{}{}:
		default:
			continue
		}
		body := l.bodies[i%len(l.bodies)]
		wg.Go(func() {
			defer func() { <-slots }()
			l.one(body)
		})
	}
}

func (l *load) one(body []byte) {
	req, err := http.NewRequest(http.MethodPost, l.url, bytes.NewReader(body))
	if err != nil {
		return
	}
	req.Header.Set("Authorization", "Bearer "+l.key)
	req.Header.Set("Content-Type", "application/json")
	l.sent.Add(1)
	version, text := "", ""
	resp, err := l.client.Do(req)
	if err == nil {
		version = resp.Header.Get("Sluice-Version")
		var b []byte
		b, err = io.ReadAll(io.LimitReader(resp.Body, 1<<20))
		_ = resp.Body.Close()
		if err == nil && resp.StatusCode != http.StatusOK {
			err = errors.New(resp.Status)
		}
		text = string(bytes.TrimSpace(b))
		if resp.StatusCode == http.StatusServiceUnavailable {
			l.refused.Add(1)
		}
	}
	if err == nil {
		l.good.Add(1)
		return
	}
	l.bad.Add(1)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.badBy[version]++
	if text != "" {
		l.lastly = text
	}
}

// badOf is how many bad answers clients got from a version.
func (l *load) badOf(version string) int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.badBy[version]
}
