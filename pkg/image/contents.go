package image

import (
	"archive/tar"
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"maps"
	"path"
	"runtime"
	"slices"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/klauspost/compress/gzip"
	"golang.org/x/sync/errgroup"

	"github.com/sluice-dev/sluice/pkg/project"
	"github.com/sluice-dev/sluice/rollout"
)

// How a project is split into layers. An image stays well under the 127 layers that file systems stack.
const (
	// bigFile is the size from which a file has a layer of its own, so that it moves only when it changes.
	bigFile = 64 << 20
	// maxBigLayers of big files: with more files, neighbours share.
	maxBigLayers = 48
	// bundleSize of small model files in one layer; with more than maxBundles of that size, each holds more.
	bundleSize = 256 << 20
	maxBundles = 16
	// writtenBack is how old a file is when its pages usually are on the disk: a younger one is hashed again the next time, since
	// waiting for the disk can take longer than that.
	writtenBack = 35 * time.Second
	// maxLayers of an image: file systems stack 127.
	maxLayers = 120
)

// file is a file, or a symbolic link, on its way into an image.
type file struct {
	// path in the image, without the slash at its beginning.
	path string
	// link is the target of a symbolic link.
	link       string
	size       int64
	executable bool
	// info and open of a file; it is opened while the walk is at it.
	info fs.FileInfo
	open func() (io.ReadCloser, error)
	// model is where a model's file is: NAME/VERSION/PATH, as SetDigest has it; rest belongs to no model.
	model string
	rest  bool
}

// walk gives files in an order that is always the same, those of a directory together; with only not empty, it may leave
// all others out.
type walk func(ctx context.Context, only string, fn func(*file) error) error

// projectFiles are those that a project ships, and more behind them.
func projectFiles(l *project.Listing, more []*file) walk {
	modelPath := l.ModelPath()
	return func(ctx context.Context, only string, fn func(*file) error) error {
		below := ""
		if only != "" {
			below = strings.TrimPrefix("/"+only, ProjectDir+"/")
		}
		err := l.Contents(ctx, below, func(e *project.Content) error {
			f := &file{path: strings.TrimPrefix(path.Join(ProjectDir, e.Path), "/"), link: e.Target, size: e.Size, executable: e.Executable, info: e.Info, open: e.Open}
			if !e.Layout {
				f.model = modelPath(e.Path)
			}
			f.rest = f.model == ""
			return fn(f)
		})
		for _, f := range more {
			if err != nil || only != "" {
				break
			}
			err = fn(f)
		}
		return err
	}
}

// contents are files as layers: big files, small model files in bundles, and the rest.
type contents struct {
	walk   walk
	memory *memory
	// big is the size from which a file has a layer of its own.
	big int64
	// bigs is how many big files share a layer, bundle how many bytes of small model files.
	bigs   int
	bundle int64
	parts  []*part
}

// part is what makes one layer.
type part struct {
	slot
	what string
	// only is the path of a part that is one file.
	only string
	// key identifies content; changed is when that last changed, zero if the system does not tell, and modified when the
	// last of the files says that it was.
	key               string
	changed, modified time.Time
	// seen is when the files were looked at; it is before they are read.
	seen time.Time
	// settled says that key will be another one after whatever is written to the files from now on.
	settled bool
}

// old says whether what is worked out from the files may be remembered.
func (p *part) old() bool {
	return !p.changed.IsZero() && p.seen.Sub(p.changed) >= settled && p.seen.Sub(p.modified) >= writtenBack
}

// slot of a path: the n-th of a kind of layer.
type slot struct {
	kind slotKind
	n    int
}

type slotKind int

const (
	slotRest slotKind = iota
	slotBundle
	slotBig
)

// sorter gives the slots of paths that come in the order of a walk.
type sorter struct {
	c       *contents
	bigs    int
	bundles int
	bundled int64
}

func (s *sorter) next(f *file) slot {
	switch {
	case f.size >= s.c.big:
		s.bigs++
		return slot{slotBig, (s.bigs - 1) / s.c.bigs}
	case f.rest:
		return slot{kind: slotRest}
	}
	if s.bundled > 0 && s.bundled+f.size > s.c.bundle {
		s.bundles, s.bundled = s.bundles+1, 0
	}
	s.bundled += f.size
	return slot{slotBundle, s.bundles}
}

// planContents looks at what there is; it reads no file.
func (c Client) planContents(ctx context.Context, w walk, m *memory) (*contents, error) {
	return planContents(ctx, w, m, c.sized(bigFile), c.sized(bundleSize))
}

func planContents(ctx context.Context, w walk, m *memory, big, bundle int64) (*contents, error) {
	c := &contents{walk: w, memory: m, big: big}
	seen := time.Now()
	var bigs int
	var small int64
	if err := w(ctx, "", func(f *file) error {
		switch {
		case f.size >= big:
			bigs++
		case !f.rest:
			small += f.size
		}
		return nil
	}); err != nil {
		return nil, fmt.Errorf("plan layers: %w", err)
	}
	c.bigs = max(1, (bigs+maxBigLayers-1)/maxBigLayers)
	c.bundle = max(bundle, small/maxBundles+1)
	type growing struct {
		*part
		id *keyer
		n  int
	}
	at := map[slot]*growing{}
	s := sorter{c: c}
	if err := w(ctx, "", func(f *file) error {
		slot := s.next(f)
		g := at[slot]
		if g == nil {
			g = &growing{part: &part{slot: slot, seen: seen}, id: newKeyer()}
			at[slot] = g
			c.parts = append(c.parts, g.part)
		}
		g.n++
		g.only, g.what = f.path, strings.TrimPrefix("/"+f.path, ProjectDir+"/")
		g.id.add(f)
		return nil
	}); err != nil {
		return nil, fmt.Errorf("plan layers: %w", err)
	}
	for _, g := range at {
		g.key, g.changed, g.modified = g.id.sum(), g.id.lastChanged(), g.id.modified
		if g.kind != slotBig || g.n > 1 {
			g.only = ""
			g.what = map[slotKind]string{slotRest: "project", slotBundle: "models", slotBig: "large files"}[g.kind]
		}
	}
	// What changes most often lies on top.
	slices.SortStableFunc(c.parts, func(a, b *part) int {
		return -cmp.Compare(min(a.kind, 1), min(b.kind, 1))
	})
	return c, nil
}

// keyer makes a key of entries' paths and identities.
type keyer struct {
	h                 hash.Hash
	changed, modified time.Time
	unsure            bool
}

func newKeyer() *keyer {
	k := &keyer{h: sha256.New()}
	k.write(maker())
	return k
}

func (k *keyer) write(parts ...string) {
	for _, p := range parts {
		k.h.Write(binary.BigEndian.AppendUint32(nil, uint32(len(p)))) //nolint:gosec // paths are short
		io.WriteString(k.h, p)                                        //nolint:errcheck // a hash has no errors
	}
}

func (k *keyer) add(f *file) {
	k.write(f.path, f.model, f.link, fmt.Sprint(f.executable))
	if f.info != nil {
		k.file(f.info)
	}
}

// file adds what identifies a file's content.
func (k *keyer) file(info fs.FileInfo) {
	id, changed, ok := identity(info)
	if !ok {
		k.unsure = true
		id = fmt.Appendf(nil, "%d %d", info.Size(), info.ModTime().UnixNano())
	}
	k.write(string(id))
	if changed.After(k.changed) {
		k.changed = changed
	}
	if m := info.ModTime(); m.After(k.modified) {
		k.modified = m
	}
}

// lastChanged is when one of the files last changed, zero if that is not known.
func (k *keyer) lastChanged() time.Time {
	if k.unsure {
		return time.Time{}
	}
	return k.changed
}

func (k *keyer) sum() string { return hex.EncodeToString(k.h.Sum(nil)) }

// layers hashes all parts, several at once, and gives ready each as soon as its digest is known. sums has the SHA-256 of
// models' files.
func (c *contents) layers(ctx context.Context, ready func(context.Context, v1.Layer) error) (out []addition, sums map[string]string, err error) {
	made := make([]*layer, len(c.parts))
	found := make([]map[string]string, len(c.parts))
	g, hashing := errgroup.WithContext(ctx)
	turn := make(chan struct{}, runtime.GOMAXPROCS(0))
	for i, p := range c.parts {
		g.Go(func() error {
			select {
			case turn <- struct{}{}:
			case <-hashing.Done():
				return hashing.Err()
			}
			l, s, err := c.layer(hashing, p)
			<-turn
			if err != nil {
				return err
			}
			l.write = func(w io.Writer) error { return c.write(ctx, w, p, nil, nil) } // from now on
			made[i], found[i] = l, s
			if ready == nil {
				return nil
			}
			return ready(hashing, l)
		})
	}
	if err := g.Wait(); err != nil {
		return nil, nil, err
	}
	sums = map[string]string{}
	for i, p := range c.parts {
		out = append(out, addition{made[i], p.what})
		maps.Copy(sums, found[i])
	}
	return out, sums, nil
}

// layer of a part, and the sums of its model files. The layer is read with ctx.
func (c *contents) layer(ctx context.Context, p *part) (*layer, map[string]string, error) {
	if r, ok := c.memory.get(p.key); ok && r.Size > 0 {
		p.settled = true // it was when that was remembered
		return r.layer(nil), r.Sums, nil
	}
	p.settled = c.memory.dir != "" && p.old()
	compress := p.kind == slotRest
	if !compress {
		var err error
		if compress, err = shrinks(func(w io.Writer) error { return c.write(ctx, w, p, nil, nil) }); err != nil {
			return nil, nil, err
		}
	}
	sums := map[string]string{}
	l, err := newLayer(compress, func(w io.Writer) error {
		return c.write(ctx, w, p, sums, func(r io.Reader) {
			// What is written through a mapping changes the file's times only once the page is on the disk.
			p.settled = p.settled && settle(r)
		})
	})
	if err != nil {
		return nil, nil, err
	}
	if p.settled {
		c.memory.put(p.key, p.changed, p.seen, l.remembered(sums))
	}
	return l, sums, nil
}

// settle has what was written to a file that is open be on the disk, and tells whether its times will tell of whatever is
// written from now on.
func settle(r io.Reader) bool {
	s, ok := r.(interface{ Settle() bool })
	return ok && s.Settle()
}

// write a part's tar. It notes the SHA-256 of model files in sums, unless that is nil, and gives opened, unless that is nil,
// each file before it is read.
func (c *contents) write(ctx context.Context, w io.Writer, p *part, sums map[string]string, opened func(io.Reader)) error {
	t, s, key := newTree(w), sorter{c: c}, newKeyer()
	err := c.walk(ctx, p.only, func(f *file) error {
		if p.only != "" && f.path != p.only || p.only == "" && s.next(f) != p.slot {
			return nil
		}
		key.add(f)
		return f.write(ctx, t, sums, opened)
	})
	if err != nil {
		return err
	}
	if key.sum() != p.key {
		return errChanged()
	}
	return t.close()
}

func (f *file) write(ctx context.Context, t *tree, sums map[string]string, opened func(io.Reader)) error {
	h := &tar.Header{Typeflag: tar.TypeReg, Name: f.path, Size: f.size, Mode: 0o644}
	if f.info == nil {
		h.Typeflag, h.Linkname, h.Size = tar.TypeSymlink, f.link, 0
		return t.add(h, nil)
	}
	if f.executable {
		h.Mode = 0o755
	}
	r, err := f.open()
	if err != nil {
		return err
	}
	defer func() { _ = r.Close() }()
	if opened != nil {
		opened(r)
	}
	content := reading(ctx, r)
	if sums == nil || f.model == "" {
		return t.add(h, content)
	}
	sum := sha256.New()
	if err := t.add(h, io.TeeReader(content, sum)); err != nil {
		return err
	}
	sums[f.model] = hex.EncodeToString(sum.Sum(nil))
	return nil
}

func errChanged() error {
	return refuse(rollout.ReasonUnsafeFile, "", "run it again when nothing writes to them", "the files changed while they were read")
}

// reading is r for as long as ctx lasts.
func reading(ctx context.Context, r io.Reader) io.Reader { return &contextReader{ctx, r} }

type contextReader struct {
	ctx context.Context // of the one reading
	r   io.Reader
}

func (c *contextReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}

// SetDigest is one digest for a set of files, however they are packed: that of the text which GNU's sha256sum prints
// for them, in the order of the paths' bytes. sums are the files' SHA-256, in hexadecimal, by path.
//
//	find . -type f -printf '%P\0' | LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum
func SetDigest(sums map[string]string) string {
	h := sha256.New()
	escape := strings.NewReplacer("\\", `\\`, "\n", `\n`, "\r", `\r`)
	for _, p := range slices.Sorted(maps.Keys(sums)) {
		name := escape.Replace(p)
		if name != p {
			io.WriteString(h, "\\") //nolint:errcheck // a hash has no errors
		}
		fmt.Fprintf(h, "%s  %s\n", sums[p], name)
	}
	return "sha256:" + hex.EncodeToString(h.Sum(nil))
}

// Of what is at sampleFrom in a tar, sampleSize bytes tell whether compressing pays; the beginning may be a header that is
// not like the rest.
const (
	sampleFrom = 1 << 20
	sampleSize = 1 << 20
)

var errSampled = errors.New("enough")

// sampler keeps the sample of what is written to it, and ends the writing.
type sampler struct{ bytes.Buffer }

func (s *sampler) Write(p []byte) (int, error) {
	if s.Len() >= sampleFrom+sampleSize {
		return 0, errSampled
	}
	return s.Buffer.Write(p)
}

// shrinks tells whether compressing a tar saves a fifth or more. It depends on the content alone.
func shrinks(write func(io.Writer) error) (bool, error) {
	var s sampler
	if err := buffered(&s, write); err != nil && !errors.Is(err, errSampled) {
		return false, err
	}
	sample := s.Bytes()
	if len(sample) >= sampleFrom+sampleSize {
		sample = sample[sampleFrom : sampleFrom+sampleSize]
	}
	out := &counter{}
	z, err := gzip.NewWriterLevel(out, gzip.BestSpeed)
	if err != nil {
		return false, err
	}
	if _, err := z.Write(sample); err != nil {
		return false, err
	}
	if err := z.Close(); err != nil {
		return false, err
	}
	return out.n*5 <= int64(len(sample))*4, nil
}

// archiveDigest is the SHA-256 of the archive that project.Package would write of l, of which c are the layers; these have been
// made. It reads all of the project, unless nothing has changed since it last did.
func (c *contents) archiveDigest(ctx context.Context, l *project.Listing) (string, error) {
	key, changed, seen, remember := newKeyer(), time.Time{}, time.Time{}, true
	key.write("archive")
	for _, p := range c.parts {
		key.write(p.key)
		seen, remember = p.seen, remember && p.settled
		if p.changed.After(changed) {
			changed = p.changed
		}
	}
	if r, ok := c.memory.get(key.sum()); ok {
		return r.Digest.String(), nil
	}
	a, err := project.Write(ctx, io.Discard, l)
	if err != nil {
		return "", err
	}
	h, err := v1.NewHash(a.Digest)
	if err != nil {
		return "", err
	}
	// The name must be that of the content that the layers have.
	now, err := planContents(ctx, c.walk, c.memory, c.big, c.bundle)
	if err != nil {
		return "", err
	}
	if !slices.EqualFunc(c.parts, now.parts, func(a, b *part) bool { return a.key == b.key }) {
		return "", errChanged()
	}
	if remember {
		c.memory.put(key.sum(), changed, seen, remembered{Digest: h})
	}
	return a.Digest, nil
}
