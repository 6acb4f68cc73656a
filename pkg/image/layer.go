package image

import (
	"archive/tar"
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/gzip"

	"github.com/sluice-dev/sluice/pkg/project"
	"github.com/sluice-dev/sluice/rollout"
)

// bufferSize of everything that streams; each stream has a few of them and nothing more.
const bufferSize = 256 << 10

// layer is a v1.Layer whose tar is written anew each time it is read, so that neither memory
// nor a second file holds it. Writing must give the same bytes each time.
type layer struct {
	write    func(io.Writer) error
	compress bool
	digest   v1.Hash
	diffID   v1.Hash
	size     int64
}

var _ v1.Layer = (*layer)(nil)

// newLayer writes the layer once to learn its digests.
//
// compress is for code and the like, which shrink to a third. Weights of models hardly shrink at
// all, and compressing them would cost a core minutes at deploy and each node some
// seconds at every start, so their layers stay as they are (the image specification has a media type for
// that, which all implementations must know). Such a layer needs only one hash, too.
func newLayer(compress bool, write func(io.Writer) error) (*layer, error) {
	l := &layer{write: write, compress: compress}
	packed, plain := &counter{}, sha256.New()
	blob := sha256.New()
	out := io.MultiWriter(blob, packed)
	var err error
	if compress {
		err = l.pack(out, plain)
	} else {
		err = buffered(out, write)
	}
	if err != nil {
		return nil, err
	}
	l.digest = v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(blob.Sum(nil))}
	l.diffID = l.digest
	if compress {
		l.diffID.Hex = hex.EncodeToString(plain.Sum(nil))
	}
	l.size = packed.n
	return l, nil
}

// pack writes the compressed layer to out, and the plain one to also.
func (l *layer) pack(out, also io.Writer) error {
	z, err := gzip.NewWriterLevel(out, gzip.BestSpeed)
	if err != nil {
		return err
	}
	if err := buffered(io.MultiWriter(z, also), l.write); err != nil {
		return err
	}
	return z.Close()
}

func buffered(w io.Writer, write func(io.Writer) error) error {
	b := bufio.NewWriterSize(w, bufferSize)
	if err := write(b); err != nil {
		return err
	}
	return b.Flush()
}

// Digest implements v1.Layer.
func (l *layer) Digest() (v1.Hash, error) { return l.digest, nil }

// DiffID implements v1.Layer.
func (l *layer) DiffID() (v1.Hash, error) { return l.diffID, nil }

// Size implements v1.Layer.
func (l *layer) Size() (int64, error) { return l.size, nil }

// MediaType implements v1.Layer.
func (l *layer) MediaType() (types.MediaType, error) {
	if l.compress {
		return types.OCILayer, nil
	}
	return types.OCIUncompressedLayer, nil
}

// Compressed implements v1.Layer. Closing it early ends the writing.
func (l *layer) Compressed() (io.ReadCloser, error) {
	if !l.compress {
		return l.Uncompressed()
	}
	return written(func(w io.Writer) error { return l.pack(w, io.Discard) }), nil
}

// Uncompressed implements v1.Layer. Closing it early ends the writing.
func (l *layer) Uncompressed() (io.ReadCloser, error) {
	return written(func(w io.Writer) error { return buffered(w, l.write) }), nil
}

// written is what write writes.
func written(write func(io.Writer) error) io.ReadCloser {
	r, w := io.Pipe()
	go func() { w.CloseWithError(write(w)) }()
	return r
}

type counter struct{ n int64 }

func (c *counter) Write(p []byte) (int, error) {
	c.n += int64(len(p))
	return len(p), nil
}

// tree writes the entries of a layer, each with the directories above it.
type tree struct {
	tw   *tar.Writer
	last []string // the directories above the entry before
	buf  []byte
}

func newTree(w io.Writer) *tree { return &tree{tw: tar.NewWriter(w)} }

func (t *tree) close() error { return t.tw.Close() }

// add writes an entry: a file of h.Size bytes of content, or a symbolic link. Of h only name, type, size,
// target and the execute bit count. Entries come with directories together.
func (t *tree) add(h *tar.Header, content io.Reader) error {
	// Such a file would remove another from the layers below instead of being one.
	if strings.HasPrefix(path.Base(h.Name), ".wh.") || strings.Contains(h.Name, "/.wh.") {
		return &rollout.Error{
			Reason: rollout.ReasonUnsafeFile, Message: fmt.Sprintf("%q cannot be in an image, where names that begin with .wh. stand for removed files", h.Name),
			Hint: "rename it, or keep it out by .amlignore",
		}
	}
	dirs := strings.Split(path.Dir(h.Name), "/")
	known := 0
	for known < len(dirs) && known < len(t.last) && dirs[known] == t.last[known] {
		known++
	}
	for i := known; i < len(dirs); i++ {
		dir := strings.Join(dirs[:i+1], "/")
		if dir == "." || dir == "var" || dir == "etc" { // the base's own, if it has them
			continue
		}
		if err := t.header(&tar.Header{Typeflag: tar.TypeDir, Name: dir + "/", Mode: 0o755}); err != nil {
			return err
		}
	}
	t.last = dirs
	mode := int64(0o644)
	switch {
	case h.Typeflag == tar.TypeSymlink:
		mode = 0o777
	case h.Mode&0o100 != 0:
		mode = 0o755
	}
	if err := t.header(&tar.Header{Typeflag: h.Typeflag, Name: h.Name, Linkname: h.Linkname, Size: h.Size, Mode: mode}); err != nil {
		return err
	}
	if h.Size == 0 || h.Typeflag != tar.TypeReg {
		return nil
	}
	if t.buf == nil {
		t.buf = make([]byte, bufferSize)
	}
	if _, err := io.CopyBuffer(t.tw, content, t.buf); err != nil {
		return fmt.Errorf("%s: %w", h.Name, err)
	}
	return nil
}

func (t *tree) header(h *tar.Header) error {
	h.ModTime, h.Format = time.Unix(0, 0), tar.FormatPAX
	return t.tw.WriteHeader(h)
}

// fileLayer has one file, as target.
func fileLayer(file, target string, executable bool, m *memory) (*layer, error) {
	seen := time.Now()
	info, err := os.Stat(file)
	if err != nil {
		return nil, err
	}
	mode := int64(0o644)
	if executable {
		mode = 0o755
	}
	write := func(w io.Writer) error { return writeFile(w, file, target, mode) }
	k := newKeyer()
	k.write(target, fmt.Sprint(executable))
	k.file(info)
	key := k.sum()
	if r, ok := m.get(key); ok && r.Compressed && r.Size > 0 {
		return r.layer(write), nil
	}
	settled := m.dir != "" && settleFile(file, info)
	l, err := newLayer(true, write)
	if err != nil {
		return nil, err
	}
	if settled {
		m.put(key, k.lastChanged(), seen, l.remembered(nil))
	}
	return l, nil
}

// settleFile is settle of a file that is not open; false if it is another one than info is of.
func settleFile(file string, info os.FileInfo) bool {
	file, err := filepath.EvalSymlinks(file)
	if err != nil {
		return false
	}
	root, err := os.OpenRoot(filepath.Dir(file))
	if err != nil {
		return false
	}
	defer func() { _ = root.Close() }()
	r, err := project.OpenUnchanged(root, filepath.Base(file), info)
	if err != nil {
		return false
	}
	defer func() { _ = r.Close() }()
	return settle(r)
}

// writeFile writes the tar of a layer that has one file, as target.
func writeFile(w io.Writer, file, target string, mode int64) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	t := newTree(w)
	if err := t.add(&tar.Header{Typeflag: tar.TypeReg, Name: strings.TrimPrefix(target, "/"), Size: info.Size(), Mode: mode}, f); err != nil {
		return err
	}
	return t.close()
}
