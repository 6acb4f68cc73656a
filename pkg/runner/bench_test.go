//go:build unix

package runner

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// BenchmarkScore measures the gate and its worker as processes of their own, through
// HTTP, with one kept-alive connection per slot. Beside the time per request it reports
// the CPU time per request of the gate and of the worker, and their memory.
func BenchmarkScore(b *testing.B) {
	for _, bench := range []struct {
		name        string
		slots, body int
	}{
		{"slots=1/body=100B", 1, 100},
		{"slots=1/body=10kB", 1, 10_000},
		{"slots=1/body=1MB", 1, 1_000_000},
		{"slots=4/body=100B", 4, 100},
	} {
		b.Run(bench.name, func(b *testing.B) { benchmarkScore(b, bench.slots, bench.body) })
	}
}

func benchmarkScore(b *testing.B, slots, size int) {
	dir := b.TempDir()
	script := "import json\ndef init(): pass\ndef run(data): return {'sum': sum(json.loads(data)['data'][:10])}\n"
	if err := os.WriteFile(filepath.Join(dir, "score.py"), []byte(script), 0o600); err != nil {
		b.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	addr := ln.Addr().String()
	file, err := ln.(*net.TCPListener).File()
	if err != nil {
		b.Fatal(err)
	}
	_ = ln.Close()
	cmd := exec.Command(os.Args[0], "-listen-fd", "3", "-project-dir", dir, "-entry-script", "score.py",
		"-max-concurrent-requests", strconv.Itoa(slots), "-drain-linger", "-1s")
	cmd.Env = append(os.Environ(), "RUNNER_TEST_AS_MAIN=1")
	cmd.ExtraFiles = []*os.File{file}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	_ = file.Close()
	defer func() {
		_ = cmd.Process.Signal(os.Interrupt)
		_ = cmd.Wait()
	}()
	waitHealthy(b, addr)
	worker := children(cmd.Process.Pid)

	var body bytes.Buffer
	body.WriteString(`{"data": [1, 2, 3`)
	for body.Len() < size-4 {
		body.WriteString(", 1")
	}
	body.WriteString("]}")
	request := fmt.Appendf(nil, "POST /score HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nX-Request-Id: bench\r\nContent-Length: %d\r\n\r\n%s", body.Len(), body.Bytes())

	gate0, worker0 := cpuTime(b, cmd.Process.Pid), cpuTime(b, worker[0])
	b.SetBytes(int64(body.Len()))
	b.ResetTimer()
	var wg sync.WaitGroup
	for i := range slots {
		n := b.N / slots
		if i < b.N%slots {
			n++
		}
		wg.Go(func() {
			conn, err := net.Dial("tcp", addr)
			if err != nil {
				b.Error(err)
				return
			}
			defer func() { _ = conn.Close() }()
			in := bufio.NewReader(conn)
			for range n {
				if err := exchange(conn, in, request); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	b.StopTimer()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "req/s")
	b.ReportMetric((cpuTime(b, cmd.Process.Pid)-gate0).Seconds()*1e6/float64(b.N), "gate-µs/req")
	b.ReportMetric((cpuTime(b, worker[0])-worker0).Seconds()*1e6/float64(b.N), "worker-µs/req")
	b.ReportMetric(memory(b, cmd.Process.Pid), "gate-MB")
	b.ReportMetric(memory(b, worker[0]), "worker-MB")
}

// exchange is one request on a kept-alive connection, with as little work as can be.
func exchange(conn net.Conn, in *bufio.Reader, request []byte) error {
	if _, err := conn.Write(request); err != nil {
		return err
	}
	length := 0
	for first := true; ; first = false {
		line, err := in.ReadSlice('\n')
		if err != nil {
			return err
		}
		if first && !bytes.HasPrefix(line, []byte("HTTP/1.1 200 ")) {
			return fmt.Errorf("answer %q", line)
		}
		if len(line) == 2 {
			break
		}
		if v, ok := bytes.CutPrefix(line, []byte("Content-Length: ")); ok {
			if length, err = strconv.Atoi(string(bytes.TrimSpace(v))); err != nil {
				return err
			}
		}
	}
	_, err := io.CopyN(io.Discard, in, int64(length))
	return err
}

// cpuTime is what a process has used, by proc(5), in steps of 10 ms.
func cpuTime(b *testing.B, pid int) time.Duration {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		b.Skip("needs /proc:", err)
	}
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	user, _ := strconv.Atoi(fields[11])
	system, _ := strconv.Atoi(fields[12])
	return time.Duration(user+system) * 10 * time.Millisecond
}

// memory is the proportional share (shared pages divided among their users) in MB.
func memory(b *testing.B, pid int) float64 {
	rollup, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(rollup)) {
		if v, ok := strings.CutPrefix(line, "Pss:"); ok {
			kb, _ := strconv.Atoi(strings.Fields(v)[0])
			return float64(kb) / 1000
		}
	}
	return 0
}
