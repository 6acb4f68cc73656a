// Package local has the ports of pkg/cluster on one machine: endpoints as YAML
// files, the journal and the keys as files, and replicas as processes. Several
// processes may use one state directory at once; each keeps to files and locks and needs
// nobody else, so that routers read on while the control role is gone.
//
// The state directory, all of it for one user only:
//
//	endpoints/NAMESPACE/NAME.yaml  each endpoint with its status (Store)
//	lastgood/NAMESPACE/NAME.yaml   what Sluice wrote there last, for when an edit by hand is refused
//	journal.jsonl                  commands (Journal)
//	keys/NAMESPACE/NAME.json       keys (Keys); routers never read them
//	keyhashes.json                 their hashes, which routers read (KeyHashes)
//	archives/SHA256.tar            projects as they were shipped (Archives)
//	projects/SHA256/               … unpacked
//	logs/NAMESPACE/ENDPOINT/VERSION/REPLICA.log
//	run/fleet.sock                 the supervisor's Host, for the others (Serve, Dial)
//	locks/                         what is locked by flock(2)
package local

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/google/uuid"

	"github.com/sluice-dev/sluice/pkg/cluster"
	"github.com/sluice-dev/sluice/pkg/cluster/internal/watch"
	"github.com/sluice-dev/sluice/rollout"
)

const (
	// settleTime is how long an edit by hand must rest before it counts: editors that
	// write in place leave the file empty or cut off for a moment.
	settleTime = 50 * time.Millisecond
	// settleLimit is when an edit counts although the file never rests.
	settleLimit = time.Second
	// vanishTime is how long a file must be gone before its endpoint is, unless Delete left
	// its mark: editors and copying tools that replace a file may remove the old one first, and what
	// follows the end of an endpoint (its fleets and keys go) cannot be undone.
	vanishTime = time.Second
	// deletedPrefix begins the name of the mark that Delete leaves and Create removes.
	deletedPrefix = ".deleted-"
)

// Store keeps each endpoint in a YAML file that people may read and edit.
//
// An edit by hand that is invalid is refused: readers go on with the last good
// content, the mistake is logged once and Problems gives it. A process that starts meanwhile
// goes on with what Sluice wrote last, of which a copy is kept elsewhere. A spec can still be
// written over it (a rollback must not wait for a typing mistake); the refused text is then
// kept beside it as NAME.yaml.rejected. A status is not: until the file is good again, or its
// spec is written, it is kept in this process's memory only. Where Sluice never wrote, and
// this process never saw good content, Get fails with *FileError and List leaves the endpoint out.
type Store struct {
	root string
	// copies has the last content that Sluice wrote of each endpoint. Only writers, who hold the
	// lock, make them.
	copies string
	log    *slog.Logger
	lock   *pathLock
	hub    watch.Keys

	mu    sync.Mutex
	known map[rollout.Key]*record
	// watchers are the live calls of Watch; the first starts looking at files, the last stops it.
	watchers int
	stop     context.CancelFunc
}

// record is what this process knows of one endpoint's file.
type record struct {
	// unsaved counts the statuses kept in memory only.
	unsaved int
	sum     [sha256.Size]byte
	judged  bool
	good    *stored // the last valid content; nil if there was none
	problem error   // of the present content
	gone    time.Time
	// told is the state that watchers were told about, seen the file as it was looked at then.
	told string
	seen fs.FileInfo
}

var _ cluster.Store = (*Store)(nil)

// NewStore uses, and makes if need be, the endpoints of a state directory.
func NewStore(dir string, log *slog.Logger) (*Store, error) {
	root := filepath.Join(dir, "endpoints")
	if err := makeDir(root); err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	lock, err := newDirLock(dir, "endpoints")
	if err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	s := &Store{root: root, copies: filepath.Join(dir, "lastgood"), log: log, lock: lock, known: map[rollout.Key]*record{}}
	for ns := range s.namespaces() {
		removeStaleTemps(filepath.Join(root, ns))
		removeStaleTemps(filepath.Join(s.copies, ns))
	}
	return s, nil
}

func (s *Store) path(key rollout.Key) string {
	return filepath.Join(s.root, key.Namespace, key.Name+".yaml")
}

func (s *Store) copyPath(key rollout.Key) string {
	return filepath.Join(s.copies, key.Namespace, key.Name+".yaml")
}

// keepCopy keeps what was just written, under the lock. The copy is a second chance only: it is not
// synced, and a failure is logged.
func (s *Store) keepCopy(key rollout.Key, data []byte) {
	path := s.copyPath(key)
	err := makeDir(filepath.Dir(path))
	if err == nil {
		err = replaceFile(path, data, false)
	}
	if err != nil {
		s.log.Warn("no copy of the endpoint was kept: after a mistake in its file, processes that start cannot use it", "endpoint", key.String(), "err", err)
	}
}

// lastWritten is what Sluice wrote last, or nil. A copy that anything but Sluice touched does not count.
func (s *Store) lastWritten(key rollout.Key) *stored {
	data, info, err := readBounded(s.copyPath(key), maxEndpointFile)
	if err != nil || !writtenBySluice(data) {
		return nil
	}
	st, err := decodeEndpoint(s.copyPath(key), key, data, info.ModTime())
	if err != nil {
		return nil
	}
	return st
}

// Problems are the endpoints whose file is invalid at present, as far as this
// process has read them.
func (s *Store) Problems() map[rollout.Key]error {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := map[rollout.Key]error{}
	for k, r := range s.known {
		if r.problem != nil {
			out[k] = r.problem
		}
	}
	return out
}

// Get implements cluster.Reader.
func (s *Store) Get(ctx context.Context, key rollout.Key) (*rollout.Endpoint, error) {
	if err := cluster.ValidateKey(key); err != nil {
		return nil, fmt.Errorf("get endpoint %s: %w: %w", key, cluster.ErrNotFound, err)
	}
	l, err := s.look(ctx, key, false)
	if err == nil && l.good == nil {
		err = l.problem
	}
	if err != nil {
		return nil, fmt.Errorf("get endpoint %s: %w", key, err)
	}
	return l.good.endpoint.Clone(), nil
}

// List implements cluster.Reader.
func (s *Store) List(ctx context.Context) ([]*rollout.Endpoint, error) {
	var out []*rollout.Endpoint
	keys, err := s.keys()
	if err != nil {
		return nil, fmt.Errorf("list endpoints: %w", err)
	}
	for _, key := range keys {
		l, err := s.look(ctx, key, false)
		switch {
		case errors.Is(err, cluster.ErrNotFound):
		case err != nil:
			return nil, fmt.Errorf("list endpoints: %w", err)
		case l.good != nil: // else refuse logged why
			out = append(out, l.good.endpoint.Clone())
		}
	}
	return out, nil
}

// looked is what look found: what is in force, and what is wrong with the file.
type looked struct {
	good    *stored
	problem error
	// again is when the file will have rested; 0 if it has.
	again time.Duration
}

// look reads an endpoint's file. Writers, who hold the lock, wait until an edit by
// hand has come to rest; readers get what was in force before it meanwhile.
func (s *Store) look(ctx context.Context, key rollout.Key, writing bool) (looked, error) {
	limit := time.Now().Add(settleLimit)
	for {
		if err := ctx.Err(); err != nil {
			return looked{}, err
		}
		data, info, err := readBounded(s.path(key), maxEndpointFile)
		s.mu.Lock()
		r := s.known[key]
		if r == nil {
			r = &record{}
		}
		wait := time.Duration(0)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			if r.good != nil && r.gone.IsZero() {
				r.gone = time.Now()
			}
			if left := vanishTime - time.Since(r.gone); r.good != nil && left > 0 && !s.deleted(key) {
				if !writing {
					l := looked{good: r.good, problem: r.problem, again: left}
					s.mu.Unlock()
					return l, nil
				}
				wait = 5 * time.Millisecond
				break
			}
			_, was := s.known[key]
			delete(s.known, key)
			s.mu.Unlock()
			if was {
				_ = os.Remove(s.copyPath(key)) // what comes under that name later is another endpoint
				s.hub.Changed(key)
			}
			return looked{}, cluster.ErrNotFound
		case err != nil:
			s.known[key] = r
			r.judged = false
			l := s.refuse(key, r, &FileError{Path: s.path(key), Err: err})
			s.mu.Unlock()
			return l, nil
		default:
			s.known[key] = r
			r.gone = time.Time{}
			sum := sha256.Sum256(data)
			if r.judged && r.sum == sum {
				l := looked{good: r.good, problem: r.problem}
				s.mu.Unlock()
				return l, nil
			}
			// A time in the future is a wrong clock, not a fresh edit.
			if age := time.Since(info.ModTime()); !writtenBySluice(data) && age >= 0 && age < settleTime && time.Now().Before(limit) {
				wait = settleTime - age
				if r.good != nil && !writing {
					l := looked{good: r.good, again: wait}
					s.mu.Unlock()
					return l, nil
				}
				break
			}
			l := s.judge(key, r, data, sum, info.ModTime())
			s.mu.Unlock()
			return l, nil
		}
		s.mu.Unlock()
		select {
		case <-ctx.Done():
			return looked{}, ctx.Err()
		case <-time.After(wait):
		}
	}
}

// judge takes up new content, or refuses it. It runs under s.mu.
func (s *Store) judge(key rollout.Key, r *record, data []byte, sum [sha256.Size]byte, modified time.Time) looked {
	st, err := decodeEndpoint(s.path(key), key, data, modified)
	r.sum, r.judged = sum, true
	if err != nil {
		return s.refuse(key, r, err)
	}
	if r.problem != nil {
		s.log.Info("endpoint file is good again", "endpoint", key.String())
	}
	r.good, r.problem, r.unsaved = st, nil, 0
	return looked{good: r.good}
}

// refuse notes, and logs once, what is wrong with the present content. It runs under s.mu.
func (s *Store) refuse(key rollout.Key, r *record, err error) looked {
	if r.good == nil {
		r.good = s.lastWritten(key)
	}
	if r.problem == nil || r.problem.Error() != err.Error() {
		if r.good != nil {
			s.log.Warn("endpoint file is refused: what was there before stays in force", "endpoint", key.String(), "err", err)
		} else {
			s.log.Error("endpoint file is refused: the endpoint is left out", "endpoint", key.String(), "err", err)
		}
	}
	r.problem = err
	return looked{good: r.good, problem: err}
}

func (s *Store) deletedMark(key rollout.Key) string {
	return filepath.Join(s.root, key.Namespace, deletedPrefix+key.Name)
}

// deleted says whether a file that is not there was removed by Delete.
func (s *Store) deleted(key rollout.Key) bool {
	_, err := os.Lstat(s.deletedMark(key))
	return err == nil
}

// namespaces are the directories that can be namespaces.
func (s *Store) namespaces() map[string]bool {
	out := map[string]bool{}
	entries, err := os.ReadDir(s.root)
	if err != nil {
		return out
	}
	for _, e := range entries {
		if cluster.ValidateKey(rollout.Key{Namespace: e.Name(), Name: "x"}) == nil {
			out[e.Name()] = true
		}
	}
	return out
}

// keys are those of all files, and those that may be missing for a moment only; sorted.
func (s *Store) keys() ([]rollout.Key, error) {
	found := map[rollout.Key]bool{}
	for ns := range s.namespaces() {
		entries, err := os.ReadDir(filepath.Join(s.root, ns))
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
			continue
		}
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			name, is := strings.CutSuffix(e.Name(), ".yaml")
			if key := (rollout.Key{Namespace: ns, Name: name}); is && cluster.ValidateKey(key) == nil {
				found[key] = true
			}
		}
	}
	s.mu.Lock()
	for k := range s.known {
		found[k] = true
	}
	s.mu.Unlock()
	return slices.SortedFunc(maps.Keys(found), cluster.CompareKeys), nil
}

// Create implements cluster.Writer.
func (s *Store) Create(ctx context.Context, e *rollout.Endpoint) (*rollout.Endpoint, error) {
	if err := errors.Join(cluster.ValidateEndpoint(e), validateSpec(&e.Spec)); err != nil {
		return nil, fmt.Errorf("create endpoint %s: %w", e.Key(), err)
	}
	key := e.Key()
	next := &rollout.Endpoint{
		APIVersion: rollout.APIVersion, Kind: rollout.Kind, Spec: e.Spec,
		Metadata: rollout.Metadata{
			Name: key.Name, Namespace: key.Namespace, UID: uuid.NewString(),
			Generation: 1, CreationTimestamp: time.Now().UTC().Truncate(time.Second),
		},
	}
	var out *rollout.Endpoint
	err := s.lock.with(ctx, func() error {
		if _, err := os.Lstat(s.path(key)); err == nil {
			return cluster.ErrExists
		} else if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		dir := filepath.Dir(s.path(key))
		if _, err := os.Lstat(dir); err != nil {
			if err := makeDir(dir); err != nil {
				return err
			}
			if err := syncDir(s.root); err != nil {
				return err
			}
		}
		var err error
		if out, err = s.write(key, next, 1); err != nil {
			return err
		}
		return remove(s.deletedMark(key))
	})
	if err != nil {
		return nil, fmt.Errorf("create endpoint %s: %w", key, err)
	}
	return out, nil
}

// Update implements cluster.Writer.
func (s *Store) Update(ctx context.Context, e *rollout.Endpoint) (*rollout.Endpoint, error) {
	return s.change(ctx, "update", e, s.write, func(l looked, next *rollout.Endpoint) (bool, error) {
		if err := errors.Join(e.Spec.Validate(), validateSpec(&e.Spec)); err != nil {
			return false, err
		}
		if err := rollout.ValidateUpdate(&next.Spec, &e.Spec); err != nil {
			return false, err
		}
		if l.problem == nil && sameJSON(next.Spec, e.Spec) {
			return false, nil
		}
		if l.problem != nil {
			path := s.path(e.Key())
			if err := keepRejected(path); err != nil {
				return false, err
			}
			s.log.Warn("endpoint file was invalid and is written over", "endpoint", e.Key().String(), "kept", path+rejectedSuffix)
		}
		next.Spec = e.Spec
		next.Metadata.Generation++
		return true, nil
	})
}

// UpdateStatus implements cluster.Writer.
func (s *Store) UpdateStatus(ctx context.Context, e *rollout.Endpoint) (*rollout.Endpoint, error) {
	store := func(key rollout.Key, next *rollout.Endpoint, counter int64) (*rollout.Endpoint, error) {
		if out, kept := s.keepStatus(key, next); kept {
			return out, nil
		}
		return s.write(key, next, counter)
	}
	return s.change(ctx, "update status of", e, store, func(l looked, next *rollout.Endpoint) (bool, error) {
		if sameJSON(next.Status, e.Status) {
			return false, nil
		}
		next.Status = e.Status
		return true, nil
	})
}

// Delete implements cluster.Writer.
func (s *Store) Delete(ctx context.Context, key rollout.Key, resourceVersion string) error {
	if err := cluster.ValidateKey(key); err != nil {
		return fmt.Errorf("delete endpoint %s: %w: %w", key, cluster.ErrNotFound, err)
	}
	err := s.lock.with(ctx, func() error {
		l, err := s.look(ctx, key, true)
		if err != nil {
			return err
		}
		switch {
		case resourceVersion == "":
		case l.good == nil:
			return l.problem
		case resourceVersion != l.good.endpoint.Metadata.ResourceVersion:
			return cluster.ErrConflict
		}
		if err := os.WriteFile(s.deletedMark(key), nil, fileMode); err != nil {
			return err
		}
		if err := os.Remove(s.path(key)); err != nil {
			return err
		}
		_ = os.Remove(s.path(key) + rejectedSuffix)
		_ = os.Remove(s.copyPath(key))
		if err := syncDir(filepath.Dir(s.path(key))); err != nil {
			return err
		}
		s.mu.Lock()
		delete(s.known, key)
		s.mu.Unlock()
		s.hub.Changed(key)
		return nil
	})
	if err != nil {
		return fmt.Errorf("delete endpoint %s: %w", key, err)
	}
	return nil
}

// change is the way of every write to an endpoint that is there: under the lock,
// from what is in force, if the caller saw just that.
func (s *Store) change(ctx context.Context, verb string, e *rollout.Endpoint, store func(rollout.Key, *rollout.Endpoint, int64) (*rollout.Endpoint, error), apply func(l looked, next *rollout.Endpoint) (bool, error)) (*rollout.Endpoint, error) {
	key := e.Key()
	if err := cluster.ValidateKey(key); err != nil {
		return nil, fmt.Errorf("%s endpoint %s: %w: %w", verb, key, cluster.ErrNotFound, err)
	}
	var out *rollout.Endpoint
	err := s.lock.with(ctx, func() error {
		l, err := s.look(ctx, key, true)
		if err != nil {
			return err
		}
		if l.good == nil {
			return l.problem
		}
		have := l.good.endpoint.Metadata.ResourceVersion
		if e.Metadata.ResourceVersion != have || (e.Metadata.UID != "" && e.Metadata.UID != l.good.endpoint.Metadata.UID) {
			return fmt.Errorf("resource version %q is not %q: %w", e.Metadata.ResourceVersion, have, cluster.ErrConflict)
		}
		next := l.good.endpoint.Clone()
		changed, err := apply(l, next)
		if err != nil {
			return err
		}
		if !changed {
			out = next
			return nil
		}
		out, err = store(key, next, l.good.counter+1)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("%s endpoint %s: %w", verb, key, err)
	}
	return out, nil
}

// keepStatus keeps next, whose status is new, in memory if the file is refused at present.
func (s *Store) keepStatus(key rollout.Key, next *rollout.Endpoint) (*rollout.Endpoint, bool) {
	s.mu.Lock()
	r := s.known[key]
	if r == nil || r.good == nil || r.problem == nil {
		s.mu.Unlock()
		return nil, false
	}
	if r.unsaved++; r.unsaved == 1 {
		s.log.Warn("endpoint file is refused: its status is kept in memory until it is mended", "endpoint", key.String())
	}
	// What cannot be written must not be kept either.
	data, err := encodeEndpoint(next, r.good.counter)
	if err == nil {
		_, err = decodeEndpoint(s.path(key), key, data, time.Now())
	}
	if err != nil {
		s.mu.Unlock()
		return nil, false // and write says so
	}
	version, _, _ := strings.Cut(r.good.endpoint.Metadata.ResourceVersion, ".")
	next = next.Clone()
	next.Metadata.ResourceVersion = fmt.Sprintf("%s.%d", version, r.unsaved)
	r.good = &stored{endpoint: next, counter: r.good.counter}
	r.told = r.state()
	s.mu.Unlock()
	s.hub.Changed(key)
	return next.Clone(), true
}

const rejectedSuffix = ".rejected"

// keepRejected keeps what is about to be written over. What cannot be read (a
// directory, a pipe, a file that is too large) is moved out of the way as it is.
func keepRejected(path string) error {
	data, _, err := readBounded(path, maxEndpointFile)
	if err != nil {
		return os.Rename(path, path+rejectedSuffix)
	}
	return writeAtomic(path+rejectedSuffix, data)
}

// write stores e and returns what readers get. It reads its own bytes back before
// it puts them in place: what cannot be read must never get there.
func (s *Store) write(key rollout.Key, e *rollout.Endpoint, counter int64) (*rollout.Endpoint, error) {
	data, err := encodeEndpoint(e, counter)
	if err != nil {
		return nil, err
	}
	st, err := decodeEndpoint(s.path(key), key, data, time.Now())
	if err != nil {
		return nil, fmt.Errorf("read back what would be stored: %w", err)
	}
	if err := writeAtomic(s.path(key), data); err != nil {
		return nil, err
	}
	s.keepCopy(key, data)
	s.mu.Lock()
	r := s.known[key]
	if r == nil {
		r = &record{}
		s.known[key] = r
	}
	r.sum, r.judged, r.good, r.problem, r.gone, r.unsaved = sha256.Sum256(data), true, st, nil, time.Time{}, 0
	r.told = r.state()
	s.mu.Unlock()
	s.hub.Changed(key)
	return st.endpoint.Clone(), nil
}

// state is one word for everything that watchers care about.
func (r *record) state() string {
	var b strings.Builder
	if r.good != nil {
		b.WriteString(r.good.endpoint.Metadata.ResourceVersion)
	}
	if r.problem != nil {
		b.WriteString(" " + r.problem.Error())
	}
	return b.String()
}

// Watch implements cluster.Reader. Changes by this process come at once, those by
// others when the kernel tells, edits by hand once they have come to rest, and all of
// them within about a second where the kernel does not tell.
func (s *Store) Watch(ctx context.Context) (<-chan rollout.Key, error) {
	c, err := s.hub.Listen(ctx, func() ([]rollout.Key, error) {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		s.startLooking(ctx)
		keys, err := s.keys()
		if err != nil {
			return nil, err
		}
		// What the listener is told of is known from now on, so that its end is noticed
		// even if nobody looked at it before.
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, key := range keys {
			if s.known[key] == nil {
				s.known[key] = &record{}
			}
		}
		return keys, nil
	})
	if err != nil {
		return nil, fmt.Errorf("watch endpoints: %w", err)
	}
	return c, nil
}

func (s *Store) startLooking(ctx context.Context) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.watchers++
	context.AfterFunc(ctx, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.watchers--; s.watchers == 0 {
			s.stop()
		}
	})
	if s.watchers > 1 {
		return
	}
	lookCtx, stop := context.WithCancel(context.WithoutCancel(ctx))
	s.stop = stop
	p := newPoker(s.log)
	p.add(s.root) // before the first look, so that nothing falls between
	for ns := range s.namespaces() {
		p.add(filepath.Join(s.root, ns))
	}
	go p.run(lookCtx, func(changed map[string]bool) time.Duration { return s.lookAll(lookCtx, p, changed) })
}

// lookAll tells watchers what changed since it looked last. It returns when to look
// again because an edit has not come to rest.
func (s *Store) lookAll(ctx context.Context, p *poker, changed map[string]bool) (again time.Duration) {
	p.add(s.root)
	for ns := range s.namespaces() {
		p.add(filepath.Join(s.root, ns))
	}
	keys, err := s.keys()
	if err != nil {
		s.log.Warn("look for changed endpoints", "err", err)
		return 0
	}
	for _, key := range keys {
		path := s.path(key)
		info, err := os.Stat(path)
		if err != nil {
			info = nil
		}
		s.mu.Lock()
		r := s.known[key]
		same := r != nil && sameStat(r.seen, info) && !changed[path]
		s.mu.Unlock()
		if same {
			continue
		}
		l, err := s.look(ctx, key, false)
		s.mu.Lock()
		tell := errors.Is(err, cluster.ErrNotFound)
		if r := s.known[key]; r != nil && err == nil {
			if r.seen = info; l.again > 0 {
				r.seen = nil
				again = max(again, l.again)
			}
			tell = r.told != r.state()
			r.told = r.state()
		}
		s.mu.Unlock()
		if tell {
			s.hub.Changed(key)
		}
	}
	return again
}

func sameStat(a, b fs.FileInfo) bool {
	return a != nil && b != nil && a.Size() == b.Size() && a.ModTime().Equal(b.ModTime()) && os.SameFile(a, b)
}

func sameJSON(a, b any) bool {
	x, errX := json.Marshal(a)
	y, errY := json.Marshal(b)
	return errX == nil && errY == nil && bytes.Equal(x, y)
}
