package local

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/sluice-dev/sluice/pkg/cluster"
	"github.com/sluice-dev/sluice/rollout"
)

// maxJournalLine bounds one record. GitHub's comments have at most 64 KiB.
const maxJournalLine = 1 << 20

// Journal keeps commands as lines of JSON in one file that only grows until Prune
// writes it anew. A line is on disk (fsync) before the call that wrote it returns.
// A last line without its end is what a crash left of a call that never returned: readers skip
// it and the next writer cuts it off. Any number of processes may use it.
type Journal struct {
	path string
	log  *slog.Logger
	lock *pathLock

	mu      sync.Mutex // guards what was read of the file
	file    fs.FileInfo
	offset  int64
	entries map[string]*cluster.Entry
	order   []string
	// lines that are in the file, live and superseded, and those that are no records.
	lines   int
	garbage [][]byte
}

var _ cluster.Journal = (*Journal)(nil)

// line is one record: an entry as claimed, or how one ended.
type line struct {
	Claim  *cluster.Entry `json:"claim,omitempty"`
	Finish *finish        `json:"finish,omitempty"`
}

type finish struct {
	Name   string             `json:"name"`
	State  cluster.EntryState `json:"state"`
	Reason rollout.Reason     `json:"reason,omitempty"`
	Result string             `json:"result,omitempty"`
}

// NewJournal uses, and makes if need be, the journal of a state directory.
func NewJournal(dir string, log *slog.Logger) (*Journal, error) {
	if err := makeDir(dir); err != nil {
		return nil, fmt.Errorf("open journal: %w", err)
	}
	lock, err := newDirLock(dir, "journal")
	if err != nil {
		return nil, fmt.Errorf("open journal: %w", err)
	}
	removeStaleTemps(dir)
	return &Journal{path: filepath.Join(dir, "journal.jsonl"), log: log, lock: lock, entries: map[string]*cluster.Entry{}}, nil
}

// Claim implements cluster.Journal.
func (j *Journal) Claim(ctx context.Context, e cluster.Entry) (cluster.Entry, bool, error) {
	if e.Name == "" {
		return cluster.Entry{}, false, errors.New("claim entry: it has no name")
	}
	e = copyEntry(&e)
	e.State, e.Reason, e.Result = cluster.EntryPending, "", ""
	if e.At.IsZero() {
		e.At = time.Now()
	}
	e.At = e.At.UTC().Round(0)
	out, won := e, false
	err := j.write(ctx, func() (*line, error) {
		if was := j.entries[e.Name]; was != nil {
			out = copyEntry(was)
			return nil, nil
		}
		won = true
		return &line{Claim: &e}, nil
	})
	if err != nil {
		return cluster.Entry{}, false, fmt.Errorf("claim entry %s: %w", e.Name, err)
	}
	return copyEntry(&out), won, nil
}

// Finish implements cluster.Journal.
func (j *Journal) Finish(ctx context.Context, name string, state cluster.EntryState, reason rollout.Reason, result string) error {
	err := j.write(ctx, func() (*line, error) {
		was := j.entries[name]
		if was == nil {
			return nil, cluster.ErrNotFound
		}
		if was.State == state && was.Reason == reason && was.Result == result {
			return nil, nil
		}
		return &line{Finish: &finish{name, state, reason, result}}, nil
	})
	if err != nil {
		return fmt.Errorf("finish entry %s: %w", name, err)
	}
	return nil
}

// Entries implements cluster.Journal.
func (j *Journal) Entries(context.Context) ([]cluster.Entry, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	f, err := os.Open(j.path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		j.forget()
	case err != nil:
		return nil, fmt.Errorf("list entries: %w", err)
	default:
		defer func() { _ = f.Close() }()
		if err := j.refresh(f); err != nil {
			return nil, fmt.Errorf("list entries: %w", err)
		}
	}
	return j.sorted(), nil
}

// Prune implements cluster.Journal. It writes the file anew, one line for each entry.
func (j *Journal) Prune(ctx context.Context, before time.Time) error {
	err := j.lock.with(ctx, func() error {
		j.mu.Lock()
		defer j.mu.Unlock()
		f, err := os.Open(j.path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		defer func() { _ = f.Close() }()
		if err := j.refresh(f); err != nil {
			return err
		}
		old := func(e *cluster.Entry) bool { return e.At.Before(before) }
		kept := 0
		for _, e := range j.entries {
			if !old(e) {
				kept++
			}
		}
		// A finished entry has two lines; more than that is not worth keeping.
		if kept == len(j.entries) && j.lines <= 2*kept && len(j.garbage) == 0 {
			return nil
		}
		if err := j.keepGarbage(); err != nil {
			return err
		}
		var out bytes.Buffer
		for _, name := range j.order {
			e := j.entries[name]
			if old(e) {
				continue
			}
			b, err := json.Marshal(line{Claim: e})
			if err != nil {
				return err
			}
			out.Write(append(b, '\n'))
		}
		if err := writeAtomic(j.path, out.Bytes()); err != nil {
			return err
		}
		j.forget() // it is another file now
		return nil
	})
	if err != nil {
		return fmt.Errorf("prune entries: %w", err)
	}
	return nil
}

// write appends what decide returns, if anything, given all that is in the file.
func (j *Journal) write(ctx context.Context, decide func() (*line, error)) error {
	return j.lock.with(ctx, func() (err error) {
		j.mu.Lock()
		defer j.mu.Unlock()
		f, err := os.OpenFile(j.path, os.O_RDWR|os.O_CREATE, fileMode)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, f.Close()) }()
		if err := j.refresh(f); err != nil {
			return err
		}
		if j.offset == 0 { // perhaps new
			if err := syncDir(filepath.Dir(j.path)); err != nil {
				return err
			}
		}
		l, err := decide()
		if l == nil || err != nil {
			return err
		}
		b, err := json.Marshal(l)
		if err != nil {
			return err
		}
		if b = append(b, '\n'); len(b) > maxJournalLine {
			return fmt.Errorf("the record has %d bytes, more than %d", len(b), maxJournalLine)
		}
		// Under the lock nobody else is writing, so what follows the last whole line is torn.
		if err := f.Truncate(j.offset); err != nil {
			return err
		}
		_, err = f.WriteAt(b, j.offset)
		if err == nil {
			err = f.Sync()
		}
		if err != nil {
			// The caller is told that it did not happen, so it should not be there later.
			return errors.Join(err, f.Truncate(j.offset))
		}
		return j.refresh(f)
	})
}

func (j *Journal) forget() {
	j.file, j.offset, j.lines, j.order, j.garbage = nil, 0, 0, nil, nil
	j.entries = map[string]*cluster.Entry{}
}

// refresh reads the whole lines that were added since it read last, or everything if
// this is another file than then.
func (j *Journal) refresh(f *os.File) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if j.file == nil || !os.SameFile(j.file, info) || info.Size() < j.offset {
		j.forget()
	}
	j.file = info
	r := bufio.NewReaderSize(io.NewSectionReader(f, j.offset, info.Size()-j.offset), 64<<10)
	for {
		text, err := r.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			return nil // what is left has no end: torn, or still being written
		}
		if err != nil {
			return err
		}
		j.offset += int64(len(text))
		j.lines++
		j.take(text)
	}
}

func (j *Journal) take(text []byte) {
	var l line
	err := json.Unmarshal(text, &l)
	switch {
	case err == nil && l.Claim != nil && l.Claim.Name != "":
		if j.entries[l.Claim.Name] == nil {
			j.order = append(j.order, l.Claim.Name)
			j.entries[l.Claim.Name] = l.Claim
		}
	case err == nil && l.Finish != nil:
		if e := j.entries[l.Finish.Name]; e != nil {
			e.State, e.Reason, e.Result = l.Finish.State, l.Finish.Reason, l.Finish.Result
		}
	default:
		j.log.Error("journal has a line that is no record: skipped", "file", j.path, "line", j.lines, "bytes", len(text))
		j.garbage = append(j.garbage, bytes.Clone(text))
	}
}

// keepGarbage sets lines that could not be read aside before the file is written anew.
func (j *Journal) keepGarbage() error {
	if len(j.garbage) == 0 {
		return nil
	}
	f, err := os.OpenFile(j.path+".unreadable", os.O_WRONLY|os.O_CREATE|os.O_APPEND, fileMode)
	if err != nil {
		return err
	}
	_, err = f.Write(bytes.Join(j.garbage, nil))
	return errors.Join(err, f.Sync(), f.Close())
}

func (j *Journal) sorted() []cluster.Entry {
	out := make([]cluster.Entry, 0, len(j.order))
	for _, name := range j.order {
		out = append(out, copyEntry(j.entries[name]))
	}
	slices.SortStableFunc(out, func(a, b cluster.Entry) int { return a.At.Compare(b.At) })
	return out
}

func copyEntry(e *cluster.Entry) cluster.Entry {
	out := *e
	out.Origin = maps.Clone(e.Origin)
	return out
}
