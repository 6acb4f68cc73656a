package router

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/sluice-dev/sluice/rollout"
)

// cpu of this process so far.
func cpu() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// tiny answers requests on a connection with as little work as can be.
func tiny(c net.Conn, br *bufio.Reader) {
	reply := []byte("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 16\r\n\r\n{\"score\":0.1234}")
	for {
		length := 0
		for {
			line, err := br.ReadSlice('\n')
			if err != nil {
				return
			}
			if len(line) == 2 {
				break
			}
			if line[0] == 'C' && strings.HasPrefix(string(line), "Content-Length: ") {
				_, _ = fmt.Sscanf(string(line[16:]), "%d", &length)
			}
		}
		if _, err := br.Discard(length); err != nil {
			return
		}
		if _, err := c.Write(reply); err != nil {
			return
		}
	}
}

// drive n requests over each of so many connections; the durations of all.
func drive(b *testing.B, addr, path, key string, conns, n int) []time.Duration {
	body := strings.Repeat("x", 200)
	text := fmt.Sprintf("POST %s HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer %s\r\nContent-Type: application/json\r\nAccept: */*\r\nUser-Agent: bench\r\nContent-Length: %d\r\n\r\n%s", path, key, len(body), body)
	all := make([][]time.Duration, conns)
	var wg sync.WaitGroup
	for i := range conns {
		wg.Go(func() {
			c, err := net.Dial("tcp", addr)
			if err != nil {
				b.Error(err)
				return
			}
			defer func() { _ = c.Close() }()
			br := bufio.NewReader(c)
			for range n {
				start := time.Now()
				if _, err := io.WriteString(c, text); err != nil {
					b.Error(err)
					return
				}
				if !readReply(br) {
					b.Error("no good answer")
					return
				}
				all[i] = append(all[i], time.Since(start))
			}
		})
	}
	wg.Wait()
	return slices.Concat(all...)
}

func readReply(br *bufio.Reader) bool {
	ok, length := false, 0
	for {
		line, err := br.ReadSlice('\n')
		if err != nil {
			return false
		}
		switch {
		case len(line) == 2:
			_, err := br.Discard(length)
			return ok && err == nil
		case !ok:
			ok = strings.HasPrefix(string(line), "HTTP/1.1 200 ")
		case strings.HasPrefix(string(line), "Content-Length: "):
			_, _ = fmt.Sscanf(string(line[16:]), "%d", &length)
		}
	}
}

// BenchmarkHop compares a request through the router with one that goes straight to the
// replica. Client, router and replica share the process: the difference is the router's.
func BenchmarkHop(b *testing.B) {
	for _, conns := range []int{1, 16} {
		addr := rawReplica(b, tiny)
		v := version("a", rollout.Control, 0)
		v.Concurrency = &rollout.Concurrency{MaxConcurrentRequests: 64}
		t := version("b", rollout.Treatment, 10_000)
		t.Concurrency = v.Concurrency
		h := start(b, nil, v, t)
		h.edit(func(s *rollout.Spec) { s.Strategy = &rollout.Strategy{} })
		h.fleets.set("a", addr)
		h.fleets.set("b", addr)
		h.serving(map[string]int{"a": 1, "b": 1})
		for _, way := range []struct{ name, addr, path string }{{"direct", addr, "/score"}, {"router", h.addr, scoreURL}} {
			b.Run(fmt.Sprintf("%s/%d", way.name, conns), func(b *testing.B) {
				b.ReportAllocs()
				before := cpu()
				d := drive(b, way.addr, way.path, h.key, conns, max(b.N/conns, 1))
				used := cpu() - before
				slices.Sort(d)
				b.ReportMetric(float64(used.Nanoseconds())/float64(len(d))/1000, "cpu-µs/req")
				b.ReportMetric(float64(d[len(d)/2].Nanoseconds())/1000, "p50-µs")
				b.ReportMetric(float64(d[len(d)*99/100].Nanoseconds())/1000, "p99-µs")
			})
		}
	}
}

// BenchmarkNetHTTPProxyFloor is the cost of net/http's server alone, as a yardstick.
func BenchmarkNetHTTPServer(b *testing.B) {
	ln := listenLoopback(b)
	s := &http.Server{ReadHeaderTimeout: time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		w.Header().Set("Content-Length", "2")
		_, _ = io.WriteString(w, "ok")
	})}
	go func() { _ = s.Serve(ln) }()
	b.Cleanup(func() { _ = s.Close() })
	b.ReportAllocs()
	before := cpu()
	d := drive(b, ln.Addr().String(), "/", "k", 16, max(b.N/16, 1))
	b.ReportMetric(float64((cpu()-before).Nanoseconds())/float64(len(d))/1000, "cpu-µs/req")
}
