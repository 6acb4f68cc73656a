package local

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/sluice-dev/sluice/pkg/cluster"
)

const (
	logSuffix = ".log"
	// oldLogSuffix is the former half of a log. Each half is bounded, so all of it is.
	oldLogSuffix = ".log.1"
	// logPoll is how often followers look for more.
	logPoll = 100 * time.Millisecond
	// maxLogLine is where a line without end is cut.
	maxLogLine = 64 << 10
	// keptLogs are how many ended replicas of a version keep their logs, and keptLogsFor how long.
	keptLogs    = 10
	keptLogsFor = 7 * 24 * time.Hour
)

// logFile is what one replica writes, over all restarts, bounded by halves: when the
// file is full it becomes the old half and a new one begins.
type logFile struct {
	path  string
	limit int64

	mu      sync.Mutex
	f       *os.File
	size    int64
	midLine bool
}

func openLogFile(path string, limit int64) (*logFile, error) {
	if err := makeDir(filepath.Dir(path)); err != nil {
		return nil, err
	}
	l := &logFile{path: path, limit: limit}
	return l, l.open()
}

func (l *logFile) open() error {
	f, err := os.OpenFile(l.path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, fileMode)
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if err != nil {
		return errors.Join(err, f.Close())
	}
	l.f, l.size, l.midLine = f, info.Size(), false
	return nil
}

// Write never fails: a full disk must not stop the replica that writes.
func (l *logFile) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.f == nil || len(p) == 0 {
		return len(p), nil
	}
	// Between lines, unless one has no end.
	if l.size+int64(len(p)) > l.limit && l.size > 0 && (!l.midLine || l.size > l.limit+maxLogLine) {
		_ = l.f.Close()
		l.f = nil
		_ = os.Rename(l.path, strings.TrimSuffix(l.path, logSuffix)+oldLogSuffix)
		if l.open() != nil {
			return len(p), nil
		}
	}
	n, _ := l.f.Write(p)
	l.size += int64(n)
	l.midLine = p[len(p)-1] != '\n'
	return len(p), nil
}

// note adds a line of the host's own.
func (l *logFile) note(format string, args ...any) {
	l.mu.Lock()
	midLine := l.midLine
	l.mu.Unlock()
	var b []byte
	if midLine {
		b = append(b, '\n')
	}
	b = fmt.Appendf(b, "%s host: ", time.Now().UTC().Format("2006-01-02T15:04:05.000Z"))
	_, _ = l.Write(append(fmt.Appendf(b, format, args...), '\n'))
}

func (l *logFile) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.f != nil {
		_ = l.f.Close()
		l.f = nil
	}
}

// lastLines keeps the end of what was written to it, for messages.
type lastLines struct {
	mu  sync.Mutex
	buf []byte
}

const (
	maxTailBytes = 4 << 10
	maxTailLines = 20
)

func (t *lastLines) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf = append(t.buf, p[max(0, len(p)-maxTailBytes):]...)
	if over := len(t.buf) - maxTailBytes; over > 0 {
		t.buf = slices.Delete(t.buf, 0, over)
	}
	return len(p), nil
}

func (t *lastLines) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	text := bytes.TrimRight(t.buf, "\n")
	if len(t.buf) == maxTailBytes { // the first line is cut
		if _, rest, found := bytes.Cut(text, []byte("\n")); found {
			text = rest
		}
	}
	lines := bytes.Split(text, []byte("\n"))
	lines = lines[max(0, len(lines)-maxTailLines):]
	return strings.ToValidUTF8(string(bytes.Join(lines, []byte("\n"))), "\uFFFD")
}

// Logs reads what replicas wrote, from their files: nobody else needs to run.
type Logs struct{ root string }

var _ cluster.LogReader = (*Logs)(nil)

// NewLogs reads the logs of a state directory.
func NewLogs(dir string) *Logs { return &Logs{root: filepath.Join(dir, "logs")} }

func (l *Logs) dir(key cluster.FleetKey) string {
	return filepath.Join(l.root, key.Endpoint.Namespace, key.Endpoint.Name, key.Version)
}

// Logs implements cluster.LogReader. The logs of the last ten replicas that ended are kept, for a week.
func (l *Logs) Logs(ctx context.Context, key cluster.FleetKey, o cluster.LogOptions) (io.ReadCloser, error) {
	if err := cluster.ValidateFleetKey(key); err != nil {
		return nil, fmt.Errorf("read logs of %s: %w: %w", key, cluster.ErrNotFound, err)
	}
	dir := l.dir(key)
	if _, err := os.Stat(dir); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			err = cluster.ErrNotFound
		}
		return nil, fmt.Errorf("read logs of %s: %w", key, err)
	}
	ctx, cancel := context.WithCancel(ctx)
	r, w := io.Pipe()
	f := &follower{dir: dir, tail: o.Tail, out: w, files: map[string]*followed{}}
	go func() {
		defer cancel()
		defer f.close()
		_ = w.CloseWithError(f.run(ctx, o.Follow))
	}()
	return &logReader{PipeReader: r, cancel: cancel}, nil
}

type logReader struct {
	*io.PipeReader
	cancel context.CancelFunc
}

func (r *logReader) Close() error {
	r.cancel()
	return r.PipeReader.Close()
}

// follower writes the lines of all files in a directory, each behind its replica's name.
type follower struct {
	dir   string
	tail  int
	out   io.Writer
	files map[string]*followed
	began bool
}

// followed is one replica's log. It holds the file open, so that a half that is
// renamed away is read to its end.
type followed struct {
	name    string
	path    string
	f       *os.File
	partial []byte
}

func (f *follower) close() {
	for _, x := range f.files {
		if x.f != nil {
			_ = x.f.Close()
		}
	}
}

func (f *follower) run(ctx context.Context, follow bool) error {
	for {
		if err := f.pass(ctx); err != nil {
			return err
		}
		if !follow {
			for _, x := range f.files {
				if err := f.flush(x); err != nil {
					return err
				}
			}
			return nil
		}
		select {
		case <-ctx.Done():
			return nil // the reader asked for the end and gets a clean one
		case <-time.After(logPoll):
		}
	}
}

// pass writes all that is there by now.
func (f *follower) pass(ctx context.Context) error {
	entries, err := os.ReadDir(f.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	type found struct {
		name string
		at   time.Time
	}
	var news []found
	for _, e := range entries {
		name, is := strings.CutSuffix(e.Name(), logSuffix)
		if !is || f.files[name] != nil {
			continue
		}
		if info, err := e.Info(); err == nil {
			news = append(news, found{name, info.ModTime()})
		}
	}
	slices.SortFunc(news, func(a, b found) int { return a.at.Compare(b.at) })
	for _, n := range news {
		x := &followed{name: n.name, path: filepath.Join(f.dir, n.name+logSuffix)}
		if err := f.begin(ctx, x); err != nil {
			return err
		}
		f.files[n.name] = x
	}
	f.began = true
	for _, name := range slices.Sorted(maps.Keys(f.files)) {
		if err := f.more(ctx, f.files[name]); err != nil {
			return err
		}
	}
	return nil
}

// begin finds where to start: at the beginning of what is kept, or before its last lines.
func (f *follower) begin(ctx context.Context, x *followed) error {
	cur, err := os.Open(x.path)
	if err != nil {
		return ignoreGone(err)
	}
	x.f = cur
	old, err := os.Open(strings.TrimSuffix(x.path, logSuffix) + oldLogSuffix)
	if err != nil {
		old = nil
	} else {
		defer func() { _ = old.Close() }()
	}
	if f.tail > 0 && !f.began {
		start, lines, err := lastLinesStart(cur, f.tail)
		if err != nil {
			return err
		}
		if _, err := cur.Seek(start, io.SeekStart); err != nil {
			return err
		}
		if lines >= f.tail {
			return nil
		}
		if old != nil {
			start, _, err := lastLinesStart(old, f.tail-lines)
			if err != nil {
				return err
			}
			if _, err := old.Seek(start, io.SeekStart); err != nil {
				return err
			}
		}
	}
	if old != nil {
		return f.copy(ctx, x, old)
	}
	return nil
}

// more writes what was added to a log, also across its halves.
func (f *follower) more(ctx context.Context, x *followed) error {
	for range 2 {
		if x.f != nil {
			if err := f.copy(ctx, x, x.f); err != nil {
				return err
			}
		}
		now, err := os.Open(x.path)
		if err != nil {
			return ignoreGone(err)
		}
		if x.f != nil && sameFile(x.f, now) {
			_ = now.Close()
			return nil
		}
		// Renamed away since: what was written until then comes first.
		if x.f != nil {
			err = f.copy(ctx, x, x.f)
			_ = x.f.Close()
		}
		x.f = now
		if err != nil {
			return err
		}
	}
	return nil
}

func (f *follower) copy(ctx context.Context, x *followed, from *os.File) error {
	buf := make([]byte, 32<<10)
	for {
		if ctx.Err() != nil {
			return nil
		}
		n, err := from.Read(buf)
		x.partial = append(x.partial, buf[:n]...)
		for {
			i := bytes.IndexByte(x.partial, '\n')
			if i < 0 && len(x.partial) < maxLogLine {
				break
			}
			if i < 0 {
				i = maxLogLine - 1
			}
			if err := f.line(x, x.partial[:i]); err != nil {
				return err
			}
			x.partial = x.partial[min(i+1, len(x.partial)):]
		}
		if errors.Is(err, io.EOF) || n == 0 {
			x.partial = bytes.Clone(x.partial) // lets the large array go
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func (f *follower) flush(x *followed) error {
	if len(x.partial) == 0 {
		return nil
	}
	defer func() { x.partial = nil }()
	return f.line(x, x.partial)
}

func (f *follower) line(x *followed, text []byte) error {
	b := make([]byte, 0, len(x.name)+len(text)+2)
	b = append(append(append(append(b, x.name...), ' '), text...), '\n')
	_, err := f.out.Write(b)
	return err
}

// lastLinesStart is where the last n lines of a file begin, and how many there are.
func lastLinesStart(f *os.File, n int) (start int64, lines int, err error) {
	info, err := f.Stat()
	if err != nil {
		return 0, 0, err
	}
	end := info.Size()
	buf := make([]byte, 64<<10)
	for at := end; at > 0; {
		size := min(at, int64(len(buf)))
		at -= size
		if _, err := f.ReadAt(buf[:size], at); err != nil && !errors.Is(err, io.EOF) {
			return 0, 0, err
		}
		for i := size - 1; i >= 0; i-- {
			if buf[i] != '\n' || at+i == end-1 {
				continue // the end of the last line begins nothing
			}
			if lines++; lines == n {
				return at + i + 1, n, nil
			}
		}
	}
	if end > 0 {
		lines++
	}
	return 0, lines, nil
}

func sameFile(a, b *os.File) bool {
	x, errX := a.Stat()
	y, errY := b.Stat()
	return errX == nil && errY == nil && os.SameFile(x, y)
}

func ignoreGone(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// pruneLogs removes the logs of replicas that ended: all but the newest of each
// version, and those too. live says which replicas run, by path of their log.
func pruneLogs(root string, live func(path string) bool) error {
	type ended struct {
		path string
		at   time.Time
	}
	versions := map[string][]ended{}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return ignoreGone(err)
		}
		if !strings.HasSuffix(path, logSuffix) || !d.Type().IsRegular() || live(path) {
			return nil
		}
		// Files directly below the root are not replicas'.
		if rel, err := filepath.Rel(root, path); err != nil || strings.Count(rel, string(filepath.Separator)) != 3 {
			return nil
		}
		if info, err := d.Info(); err == nil {
			versions[filepath.Dir(path)] = append(versions[filepath.Dir(path)], ended{path, info.ModTime()})
		}
		return nil
	})
	errs := []error{ignoreGone(err)}
	for dir, logs := range versions {
		slices.SortFunc(logs, func(a, b ended) int { return b.at.Compare(a.at) })
		for i, l := range logs {
			if i >= keptLogs || time.Since(l.at) > keptLogsFor {
				errs = append(errs, remove(l.path), remove(strings.TrimSuffix(l.path, logSuffix)+oldLogSuffix))
			}
		}
		_ = os.Remove(dir) // if it is empty now
	}
	return errors.Join(errs...)
}
