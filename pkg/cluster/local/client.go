package local

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/sluice-dev/sluice/pkg/cluster"
	"github.com/sluice-dev/sluice/pkg/cluster/internal/watch"
)

const (
	// reconnectMin and reconnectMax bound the pause before a lost supervisor is looked for again.
	reconnectMin = 20 * time.Millisecond
	reconnectMax = time.Second
	// silence is after how long without a heartbeat a stream counts as lost.
	silence = 3 * heartbeat
	// callTimeout bounds a call that changes something; the host answers in microseconds.
	callTimeout = 10 * time.Second
	// seenTimeout bounds how long a call waits until its change is in the snapshots, too.
	seenTimeout = time.Second
	// maxSnapshot bounds one line of the stream: 256 replicas, each with 4 KiB of message, and room.
	maxSnapshot = 16 << 20
)

// Client is the Host of another process. It keeps a copy of the fleets' state, which
// the host pushes within milliseconds of each change. When the host is gone it serves the
// last copy and looks for it again: routers go on with the replicas they know.
type Client struct {
	http *http.Client
	log  *slog.Logger
	stop context.CancelFunc
	done chan struct{}
	bell watch.Bell

	mu        sync.Mutex
	known     bool // a snapshot has come, ever
	connected bool
	last      snapshot
	err       error         // of the last attempt to connect
	tried     chan struct{} // closed after the first attempt
}

var _ cluster.Fleet = (*Client)(nil)

// Dial returns at once and connects, again and again, in the background until Close.
func Dial(socket string, log *slog.Logger) *Client {
	transport := &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		},
		MaxIdleConnsPerHost: 4, IdleConnTimeout: time.Minute, DisableCompression: true,
	}
	ctx, stop := context.WithCancel(context.Background())
	c := &Client{http: &http.Client{Transport: transport}, log: log, stop: stop, done: make(chan struct{}), tried: make(chan struct{})}
	go func() {
		defer close(c.done)
		defer transport.CloseIdleConnections()
		c.keepConnected(ctx)
	}()
	return c
}

// Close ends the connection. The last state can be read still.
func (c *Client) Close() error {
	c.stop()
	<-c.done
	return nil
}

func (c *Client) keepConnected(ctx context.Context) {
	pause := reconnectMin
	first := sync.OnceFunc(func() { close(c.tried) })
	defer first()
	for {
		began := time.Now()
		got, err := c.stream(ctx, first)
		if ctx.Err() != nil {
			return
		}
		c.mu.Lock()
		c.err, c.connected = err, false
		c.mu.Unlock()
		first()
		if got {
			c.log.Warn("connection to the supervisor is lost: the last state of the fleets stays in use", "err", err)
		}
		if got && time.Since(began) > time.Second {
			pause = reconnectMin
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(time.Duration(float64(pause) * (0.75 + 0.5*rand.Float64()))):
		}
		pause = min(2*pause, reconnectMax)
	}
}

// stream takes snapshots until the connection ends; got says whether one came.
func (c *Client) stream(ctx context.Context, first func()) (got bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	quiet := time.AfterFunc(silence, cancel)
	defer quiet.Stop()
	resp, err := c.send(ctx, http.MethodGet, "/v1/snapshots", nil)
	if err != nil {
		return false, err
	}
	defer func() { _ = resp.Body.Close() }()
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, maxSnapshot)
	for lines.Scan() {
		quiet.Reset(silence)
		if len(bytes.TrimSpace(lines.Bytes())) == 0 {
			continue
		}
		var s snapshot
		if err := json.Unmarshal(lines.Bytes(), &s); err != nil {
			return got, fmt.Errorf("read fleets: %w", err)
		}
		c.mu.Lock()
		c.last, c.known, c.connected = s, true, true
		c.mu.Unlock()
		got = true
		first()
		c.bell.Ring()
	}
	if err := lines.Err(); err != nil {
		return got, fmt.Errorf("read fleets: %w", err)
	}
	return got, errors.New("read fleets: the supervisor ended the connection")
}

// send makes a request and turns refusals back into the errors they were.
func (c *Client) send(ctx context.Context, method, path string, body any) (*http.Response, error) {
	var r io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return nil, err
		}
		r = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://supervisor"+path, r)
	if err != nil {
		return nil, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, fmt.Errorf("reach the supervisor: %w", err)
	}
	if resp.StatusCode == http.StatusOK {
		return resp, nil
	}
	defer func() { _ = resp.Body.Close() }()
	var f failure
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxFleetBody)).Decode(&f); err != nil {
		return nil, fmt.Errorf("reach the supervisor: it answers %s", resp.Status)
	}
	return nil, &remoteError{f}
}

// remoteError is an error that came over the wire.
type remoteError struct{ failure }

func (e *remoteError) Error() string { return e.Message }

func (e *remoteError) Unwrap() []error {
	var out []error
	if e.NotFound {
		out = append(out, cluster.ErrNotFound)
	}
	for _, r := range e.Refusals {
		out = append(out, r)
	}
	return out
}

func fleetPath(key cluster.FleetKey) string {
	return "/v1/fleets/" + url.PathEscape(key.Endpoint.Namespace) + "/" + url.PathEscape(key.Endpoint.Name) + "/" + url.PathEscape(key.Version)
}

// change makes a call and waits, while connected, until what it did can be read by Fleets.
func (c *Client) change(ctx context.Context, method, path string, body any) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	resp, err := c.send(ctx, method, path, body)
	if err != nil {
		return err
	}
	var a applied
	err = json.NewDecoder(resp.Body).Decode(&a)
	if err := errors.Join(err, resp.Body.Close()); err != nil {
		return fmt.Errorf("read the supervisor's answer: %w", err)
	}
	ctx, cancel = context.WithTimeout(ctx, seenTimeout)
	defer cancel()
	for range c.bell.Listen(ctx) {
		c.mu.Lock()
		seen := !c.connected || c.last.Run == a.Run && c.last.Seq >= a.Seq
		c.mu.Unlock()
		if seen {
			break
		}
	}
	return nil
}

// Apply implements cluster.FleetWriter.
func (c *Client) Apply(ctx context.Context, spec cluster.FleetSpec) error {
	if err := cluster.ValidateFleetKey(spec.Key); err != nil {
		return fmt.Errorf("apply fleet %s: %w", spec.Key, err)
	}
	if err := c.change(ctx, http.MethodPut, fleetPath(spec.Key), spec); err != nil {
		return fmt.Errorf("apply fleet %s: %w", spec.Key, err)
	}
	return nil
}

// Delete implements cluster.FleetWriter.
func (c *Client) Delete(ctx context.Context, key cluster.FleetKey) error {
	if cluster.ValidateFleetKey(key) != nil {
		return nil // there can be none
	}
	if err := c.change(ctx, http.MethodDelete, fleetPath(key), nil); err != nil {
		return fmt.Errorf("delete fleet %s: %w", key, err)
	}
	return nil
}

// Scale implements cluster.Scaler.
func (c *Client) Scale(ctx context.Context, key cluster.FleetKey, replicas int) error {
	if err := cluster.ValidateFleetKey(key); err != nil {
		return fmt.Errorf("scale fleet %s: %w: %w", key, cluster.ErrNotFound, err)
	}
	if err := c.change(ctx, http.MethodPut, fleetPath(key)+"/scale", scaleRequest{replicas}); err != nil {
		return fmt.Errorf("scale fleet %s: %w", key, err)
	}
	return nil
}

// Fleets implements cluster.FleetReader. It fails only if the host was never reached.
func (c *Client) Fleets(ctx context.Context) ([]cluster.FleetState, error) {
	select {
	case <-c.tried:
	case <-ctx.Done():
		return nil, fmt.Errorf("list fleets: %w", ctx.Err())
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.known {
		return nil, fmt.Errorf("list fleets: %w", cmp.Or(c.err, errors.New("the client was closed before it reached the supervisor")))
	}
	out := slices.Clone(c.last.Fleets)
	for i := range out {
		out[i].Replicas = slices.Clone(out[i].Replicas)
	}
	return out, nil
}

// Connected says whether the host is reached at present.
func (c *Client) Connected() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.connected
}

// WatchFleets implements cluster.FleetReader.
func (c *Client) WatchFleets(ctx context.Context) (<-chan struct{}, error) {
	return c.bell.Listen(ctx), nil
}

// Logs implements cluster.LogReader.
func (c *Client) Logs(ctx context.Context, key cluster.FleetKey, o cluster.LogOptions) (io.ReadCloser, error) {
	if err := cluster.ValidateFleetKey(key); err != nil {
		return nil, fmt.Errorf("read logs of %s: %w: %w", key, cluster.ErrNotFound, err)
	}
	q := url.Values{"follow": {strconv.FormatBool(o.Follow)}, "tail": {strconv.Itoa(o.Tail)}}
	resp, err := c.send(ctx, http.MethodGet, fleetPath(key)+"/logs?"+q.Encode(), nil)
	if err != nil {
		return nil, fmt.Errorf("read logs of %s: %w", key, err)
	}
	return &endsWithContext{resp.Body, ctx}, nil
}

// endsWithContext reports the end of its context as the end of the file, as following
// ends everywhere.
type endsWithContext struct {
	io.ReadCloser
	ctx context.Context //nolint:containedctx // that of the call that opened it
}

func (r *endsWithContext) Read(p []byte) (int, error) {
	n, err := r.ReadCloser.Read(p)
	if err != nil && r.ctx.Err() != nil {
		err = io.EOF
	}
	return n, err
}
