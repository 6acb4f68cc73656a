package local

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sluice-dev/sluice/pkg/cluster"
	"github.com/sluice-dev/sluice/rollout"
)

var logKey = cluster.FleetKey{Endpoint: rollout.Key{Namespace: "models", Name: "fraud"}, Version: "v1"}

func newLog(t *testing.T, l *Logs, replica string, limit int64) *logFile {
	t.Helper()
	f, err := openLogFile(filepath.Join(l.dir(logKey), replica+logSuffix), limit)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(f.close)
	return f
}

func readLogs(t *testing.T, l *Logs, o cluster.LogOptions) []string {
	t.Helper()
	r, err := l.Logs(t.Context(), logKey, o)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Split(strings.TrimSuffix(string(b), "\n"), "\n")
}

func TestLogIsBounded(t *testing.T) {
	l := NewLogs(t.TempDir())
	f := newLog(t, l, "v1-a", 10_000)
	const lines = 2000
	for i := range lines {
		fmt.Fprintf(f, "line %04d of the replica\n", i)
	}
	var size int64
	entries, err := os.ReadDir(l.dir(logKey))
	if err != nil || len(entries) != 2 {
		t.Fatalf("%v, %v; want two halves", entries, err)
	}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil {
			t.Fatal(err)
		}
		size += info.Size()
		if info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %s", e.Name(), info.Mode())
		}
	}
	if size > 20_000 || size < 10_000 {
		t.Errorf("%d bytes are kept, want 10000 to 20000", size)
	}
	all := readLogs(t, l, cluster.LogOptions{})
	for i, got := range all {
		if want := fmt.Sprintf("v1-a line %04d of the replica", lines-len(all)+i); got != want {
			t.Fatalf("line %d of %d is %q, want %q", i, len(all), got, want)
		}
	}
	for _, n := range []int{1, 2, 399, 400, len(all), len(all) + 1} {
		got := readLogs(t, l, cluster.LogOptions{Tail: n})
		if len(got) != min(n, len(all)) || got[len(got)-1] != all[len(all)-1] {
			t.Errorf("tail %d gives %d lines that end with %q", n, len(got), got[len(got)-1])
		}
	}
}

func TestLogTailIsPerReplica(t *testing.T) {
	l := NewLogs(t.TempDir())
	a, b := newLog(t, l, "v1-a", 1<<20), newLog(t, l, "v1-b", 1<<20)
	fmt.Fprint(a, "a1\na2\na3\n")
	fmt.Fprint(b, "b1\nb2 without an end")
	got := readLogs(t, l, cluster.LogOptions{Tail: 2})
	want := map[string]bool{"v1-a a2": true, "v1-a a3": true, "v1-b b1": true, "v1-b b2 without an end": true}
	for _, line := range got {
		if !want[line] {
			t.Errorf("line %q", line)
		}
		delete(want, line)
	}
	if len(want) > 0 {
		t.Errorf("missing: %v", want)
	}
}

func TestLogFollowsAcrossHalves(t *testing.T) {
	l := NewLogs(t.TempDir())
	f := newLog(t, l, "v1-a", 2_000)
	fmt.Fprintln(f, "before")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	r, err := l.Logs(ctx, logKey, cluster.LogOptions{Follow: true, Tail: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	lines := bufio.NewScanner(r)
	next := func(want string) {
		t.Helper()
		if !lines.Scan() || lines.Text() != want {
			t.Fatalf("line %q, want %q (%v)", lines.Text(), want, lines.Err())
		}
	}
	next("v1-a before")
	for i := range 200 { // several halves, each read before the next begins
		fmt.Fprintf(f, "line %d\n", i)
		if i%50 == 49 {
			for k := i - 49; k <= i; k++ {
				next(fmt.Sprintf("v1-a line %d", k))
			}
		}
	}
	second := newLog(t, l, "v1-b", 2_000)
	fmt.Fprintln(second, "came later")
	next("v1-b came later")
	cancel()
	if lines.Scan() || lines.Err() != nil {
		t.Errorf("after the end: %q, %v", lines.Text(), lines.Err())
	}
}

func TestLogReaderThatStopsEarly(t *testing.T) {
	l := NewLogs(t.TempDir())
	f := newLog(t, l, "v1-a", 1<<20)
	for range 10_000 {
		fmt.Fprintln(f, "a line that fills buffers")
	}
	r, err := l.Logs(t.Context(), logKey, cluster.LogOptions{Follow: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(r, make([]byte, 100)); err != nil {
		t.Fatal(err)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	if _, err := r.Read(make([]byte, 1)); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("read after close: %v", err)
	}
}

func TestLogLineWithoutEndIsCut(t *testing.T) {
	l := NewLogs(t.TempDir())
	f := newLog(t, l, "v1-a", 1<<20)
	_, _ = f.Write(bytes.Repeat([]byte("x"), 3*maxLogLine))
	for _, line := range readLogs(t, l, cluster.LogOptions{}) {
		if len(line) > maxLogLine+len("v1-a ") {
			t.Errorf("a line has %d bytes", len(line))
		}
	}
}

func TestLogsOfNobody(t *testing.T) {
	if _, err := NewLogs(t.TempDir()).Logs(t.Context(), logKey, cluster.LogOptions{}); !errors.Is(err, cluster.ErrNotFound) {
		t.Errorf("err = %v, want ErrNotFound", err)
	}
}

func TestPruneLogs(t *testing.T) {
	l := NewLogs(t.TempDir())
	dir := l.dir(logKey)
	for i := range keptLogs + 5 {
		f := newLog(t, l, fmt.Sprintf("v1-%02d", i), 1<<20)
		fmt.Fprintln(f, "x")
		f.close()
		at := time.Now().Add(time.Duration(i-100) * time.Minute)
		if err := os.Chtimes(f.path, at, at); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "v1-00"+oldLogSuffix), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	system := filepath.Join(l.root, "system.log")
	if err := os.WriteFile(system, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	old := time.Now().Add(-30 * 24 * time.Hour)
	if err := os.Chtimes(system, old, old); err != nil {
		t.Fatal(err)
	}
	live := filepath.Join(dir, "v1-01"+logSuffix)
	if err := pruneLogs(l.root, func(path string) bool { return path == live }); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) != keptLogs+1 || entries[0].Name() != "v1-01.log" || entries[1].Name() != "v1-05.log" {
		t.Errorf("kept %v; want the live one and the newest %d", entries, keptLogs)
	}
	if _, err := os.Stat(system); err != nil {
		t.Errorf("a file that is no replica's: %v", err)
	}
}

func TestLastLines(t *testing.T) {
	var l lastLines
	if l.String() != "" {
		t.Errorf("empty: %q", l.String())
	}
	for i := range 1000 {
		fmt.Fprintf(&l, "line %d\n", i)
	}
	got := strings.Split(l.String(), "\n")
	if len(got) != maxTailLines || got[len(got)-1] != "line 999" || got[0] != "line 980" {
		t.Errorf("%d lines from %q to %q", len(got), got[0], got[len(got)-1])
	}
	_, _ = l.Write(bytes.Repeat([]byte("\xff"), 3*maxTailBytes))
	if s := l.String(); len(s) > 4*maxTailBytes || !strings.Contains(s, "\uFFFD") {
		t.Errorf("%d bytes of what is no text", len(s))
	}
}

func TestBackoff(t *testing.T) {
	const low, high = 200 * time.Millisecond, 10 * time.Second
	within := func(d, want time.Duration) bool { return d >= want*3/4 && d <= want*5/4 }
	var crashed backoff // after having been ready
	if d := crashed.next(low, high, true); d != 0 {
		t.Errorf("first restart of one that was ready waits %s", d)
	}
	want := low
	for i := range 12 {
		if d := crashed.next(low, high, i%2 == 0); !within(d, want) {
			t.Errorf("restart %d of one that was ready waits %s, want about %s", i+2, d, want)
		}
		want = min(2*want, high)
	}
	var failed backoff // never ready
	want = low
	for i := range 100 {
		if d := failed.next(low, high, false); !within(d, want) {
			t.Errorf("restart %d of one that never was ready waits %s, want about %s", i+1, d, want)
		}
		want = min(2*want, high)
	}
}
