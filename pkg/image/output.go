package image

import (
	"archive/tar"
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/distribution/reference"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/sluice-dev/sluice/rollout"
)

const (
	// fieldOutput is the refusals' field for where an image is written to.
	fieldOutput = "--output"

	layoutFileName = "oci-layout"
	layoutVersion  = `{"imageLayoutVersion":"1.0.0"}`
	indexFileName  = "index.json"
	labelRefName   = ociPrefix + "ref.name"
	// labelContainerd is where containerd, and Docker on it, look for an image's name first.
	labelContainerd = "io.containerd.image.name"
)

// blob of an image: a layer, the configuration or the manifest.
type blob struct {
	v1.Hash
	size int64
	open func() (io.ReadCloser, error)
	// what the history says that it holds, of a layer of Sluice's own.
	what string
}

func bytesBlob(h v1.Hash, data []byte) blob {
	return blob{Hash: h, size: int64(len(data)), open: func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil }}
}

// path in a layout.
func (b blob) path() string { return "blobs/" + b.Algorithm + "/" + b.Hex }

func (b blob) String() string {
	if b.what == "" {
		return b.Hash.String()
	}
	return fmt.Sprintf("%s (%s)", b.what, b.Hash)
}

// copyTries is how often a blob of a registry is begun anew: with another login, which the one before may have outlived.
const copyTries = 3

// copy the blob to w, and see that it is what it is named after: the file that it comes from may have changed.
func (b blob) copy(w io.Writer) error {
	is := sha256.New()
	out := struct{ io.Writer }{io.MultiWriter(w, is)}
	var n int64
	for tries := 1; ; tries++ {
		more, err := b.copyFrom(out, n)
		n += more
		if err == nil {
			break
		}
		var broken errBroken
		if !errors.As(err, &broken) || tries == copyTries {
			return fmt.Errorf("copy %s: %w", b, err)
		}
	}
	sum := hex.EncodeToString(is.Sum(nil))
	switch {
	case sum == b.Hex && n == b.size:
		return nil
	case b.what != "":
		return refuse(rollout.ReasonUnsafeFile, "", "run it again when nothing writes to them: what was remembered of their content is forgotten now",
			"the files of %s are not what they were when their digest was made: they have %d bytes now and the digest sha256:%s", b, n, sum)
	}
	return fmt.Errorf("copy %s: came as %d bytes with the digest sha256:%s, not as %d", b, n, sum, b.size)
}

// copyFrom copies what is behind the first n bytes, and says how much it was.
func (b blob) copyFrom(w io.Writer, n int64) (int64, error) {
	r, err := b.open()
	if err != nil {
		return 0, err
	}
	defer func() { _ = r.Close() }()
	if _, err := io.CopyN(io.Discard, r, n); err != nil {
		return 0, err
	}
	return io.CopyBuffer(w, r, make([]byte, bufferSize))
}

// contentOf is what the history of an image says that its layers hold, of those that are Sluice's.
func contentOf(file *v1.ConfigFile, layers int) []string {
	out := []string{}
	for _, h := range file.History {
		switch {
		case h.EmptyLayer:
		case h.CreatedBy == createdBy:
			out = append(out, h.Comment)
		default:
			out = append(out, "")
		}
	}
	if len(out) != layers {
		return make([]string, layers) // it tells of other layers
	}
	return out
}

// blobs of an image, each once, the manifest last; and the descriptor of the image.
func blobs(img v1.Image) ([]blob, v1.Descriptor, error) {
	fail := func(err error) ([]blob, v1.Descriptor, error) {
		return nil, v1.Descriptor{}, fmt.Errorf("read image: %w", err)
	}
	layers, err := img.Layers()
	if err != nil {
		return fail(err)
	}
	m, err := img.Manifest()
	if err != nil {
		return fail(err)
	}
	config, err := img.RawConfigFile()
	if err != nil {
		return fail(err)
	}
	raw, err := img.RawManifest()
	if err != nil {
		return fail(err)
	}
	digest, err := img.Digest()
	if err != nil {
		return fail(err)
	}
	file, err := img.ConfigFile()
	if err != nil {
		return fail(err)
	}
	if len(layers) != len(m.Layers) {
		return fail(fmt.Errorf("it has %d layers and names %d", len(layers), len(m.Layers)))
	}
	var out []blob
	what := contentOf(file, len(layers))
	for i, l := range layers {
		d := m.Layers[i]
		if !slices.ContainsFunc(out, func(b blob) bool { return b.Hash == d.Digest }) {
			out = append(out, blob{d.Digest, d.Size, l.Compressed, what[i]})
		}
	}
	out = append(out, bytesBlob(m.Config.Digest, config), bytesBlob(digest, raw))
	for _, b := range out {
		if b.Algorithm != "sha256" {
			return fail(fmt.Errorf("%s is a digest of a kind that is not supported", b.Hash))
		}
	}
	return out, v1.Descriptor{
		MediaType: m.MediaType, Digest: digest, Size: int64(len(raw)),
		Platform: &v1.Platform{OS: file.OS, Architecture: file.Architecture, Variant: file.Variant},
	}, nil
}

// Layout is an OCI image layout to which images are added: a new one, which appears in its place only
// as a whole (see Close), or one that is there, which stays a good layout at every moment.
type Layout struct {
	dir string
	// work is where a new layout grows until it is whole; empty for one that is there.
	work  string
	files []fs.FileInfo
	// parents are directories above that were made for it, the innermost first.
	parents []string
}

// OpenLayout begins a layout in dir, which may be a layout, an empty directory or not there at all. Anything else there
// is refused with a *rollout.Error.
func OpenLayout(dir string) (*Layout, error) {
	fail := func(err error) (*Layout, error) { return nil, fmt.Errorf("open layout: %w", err) }
	if to, err := filepath.EvalSymlinks(dir); err == nil {
		dir = to // a link to a directory stays a link
	}
	l := &Layout{dir: dir}
	info, err := os.Stat(dir)
	switch {
	case err == nil && !info.IsDir():
		return nil, refuse(rollout.ReasonInvalid, fieldOutput, "name a directory", "%s is a file, and a layout is a directory", dir)
	case err == nil:
		l.files = append(l.files, info)
		entries, err := os.ReadDir(dir)
		if err != nil {
			return fail(err)
		}
		if len(entries) > 0 {
			if _, err := layout.FromPath(dir); err != nil {
				return nil, refuse(rollout.ReasonInvalid, fieldOutput, "name another directory, or empty this one", "%s has other files and is no OCI image layout", dir)
			}
			return l, nil
		}
	case !errors.Is(err, fs.ErrNotExist):
		return fail(err)
	}
	parent, name := filepath.Split(filepath.Clean(dir))
	parent = cmp.Or(parent, ".")
	if l.parents, err = missingDirs(parent); err != nil {
		return fail(err)
	}
	if err = os.MkdirAll(parent, 0o755); err == nil { //nolint:gosec // as any directory that is made by hand
		l.work, err = os.MkdirTemp(parent, "."+name+".tmp-*")
	}
	if err != nil {
		l.withdraw()
		return fail(err)
	}
	err = os.Chmod(l.work, 0o755) //nolint:gosec // as any directory that is made by hand
	if err == nil {
		err = writeWhole(filepath.Join(l.work, layoutFileName), []byte(layoutVersion))
	}
	if err == nil {
		info, err = os.Stat(l.work)
		l.files = append(l.files, info)
	}
	if err != nil {
		l.withdraw()
		return fail(err)
	}
	return l, nil
}

// missingDirs are those of a path that are not there, the innermost first.
func missingDirs(dir string) ([]string, error) {
	var out []string
	for dir = filepath.Clean(dir); ; dir = filepath.Dir(dir) {
		_, err := os.Stat(dir)
		if err == nil {
			return out, nil
		}
		if !errors.Is(err, fs.ErrNotExist) || dir == filepath.Dir(dir) {
			return nil, err
		}
		out = append(out, dir)
	}
}

// withdraw what was made, but not what others have put there meanwhile.
func (l *Layout) withdraw() {
	if l.work != "" {
		_ = os.RemoveAll(l.work)
	}
	for _, dir := range l.parents {
		_ = os.Remove(dir)
	}
}

// Files are what a project that the layout lies in must not ship.
func (l *Layout) Files() []fs.FileInfo { return l.files }

// Close makes a new layout appear in its place, if err is nil and something was added to it, and else
// leaves no trace of it. It gives back what went wrong.
func (l *Layout) Close(err error) error {
	if l.work == "" {
		return err
	}
	if err == nil {
		// An empty directory in its place goes first: Go renames over none.
		if err = os.Remove(l.dir); err == nil || errors.Is(err, fs.ErrNotExist) {
			err = os.Rename(l.work, l.dir)
		}
		if err == nil {
			return nil
		}
		err = fmt.Errorf("write layout: %w", err)
	}
	l.withdraw()
	return err
}

// Add an image under a name, in place of what had that name. Blobs that are there already are compared with their digests and
// stay, unless they are damaged; nothing names the image before all of it is there. Memory does not grow with the image.
func (l *Layout) Add(ctx context.Context, img v1.Image, ref string) error {
	if err := l.add(ctx, img, ref); err != nil {
		return unwritten(err, "write layout", l.dir)
	}
	return nil
}

func (l *Layout) add(ctx context.Context, img v1.Image, ref string) error {
	root := cmp.Or(l.work, l.dir)
	all, desc, err := blobs(img)
	if err != nil {
		return err
	}
	for _, b := range all {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := b.store(ctx, root); err != nil {
			return err
		}
	}
	index := &v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex}
	if path, err := layout.FromPath(root); err == nil {
		there, err := path.ImageIndex()
		if err == nil {
			index, err = there.IndexManifest()
		}
		if err != nil {
			return refuse(rollout.ReasonInvalid, fieldOutput, "mend it, or write to another directory", "%s, which names what is in the layout, cannot be read: %v", filepath.Join(root, indexFileName), err)
		}
	}
	desc.Annotations = map[string]string{labelRefName: ref}
	index.Manifests = append(slices.DeleteFunc(index.Manifests, func(d v1.Descriptor) bool { return d.Annotations[labelRefName] == ref }), desc)
	data, err := json.MarshalIndent(index, "", "  ")
	if err != nil {
		return err
	}
	return writeWhole(filepath.Join(root, indexFileName), data)
}

// store the blob in a layout, if it is not there, or not what it is named after. It appears under its name only as a whole.
func (b blob) store(ctx context.Context, root string) error {
	file := filepath.Join(root, filepath.FromSlash(b.path()))
	if there, err := b.is(ctx, file); there || err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil { //nolint:gosec // as the layout
		return err
	}
	return replaceFile(file, b.copy)
}

// is tells whether a file is the blob, to its last byte: a disk that was full, or lost its power, leaves others.
func (b blob) is(ctx context.Context, file string) (bool, error) {
	if info, err := os.Stat(file); err != nil || !info.Mode().IsRegular() || info.Size() != b.size {
		return false, nil //nolint:nilerr // it is written, and then said what is wrong
	}
	f, err := os.Open(file)
	if err != nil {
		return false, nil //nolint:nilerr // as above
	}
	defer func() { _ = f.Close() }()
	is := sha256.New()
	if _, err := io.CopyBuffer(is, reading(ctx, f), make([]byte, bufferSize)); err != nil {
		return false, ctx.Err()
	}
	return hex.EncodeToString(is.Sum(nil)) == b.Hex, nil
}

func writeWhole(file string, data []byte) error {
	return replaceFile(file, func(w io.Writer) error {
		_, err := w.Write(data)
		return err
	})
}

// replaceFile writes a file that takes its place once it is whole.
func replaceFile(file string, write func(io.Writer) error) error {
	f, err := os.CreateTemp(filepath.Dir(file), ".tmp-*")
	if err != nil {
		return err
	}
	err = write(f)
	if err == nil {
		err = f.Chmod(0o644)
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), file)
	}
	if err != nil {
		_ = os.Remove(f.Name())
	}
	return err
}

// WriteTarball writes an image as one file, for `docker load`, `podman load` and `ctr image import`: an OCI image
// layout that is also what `docker save` writes, so that the image keeps its digest where a store keeps digests. name is
// [HOST[:PORT]/]NAME:TAG. The same image gives the same bytes, and memory does not grow with it.
func WriteTarball(ctx context.Context, w io.Writer, img v1.Image, name string) error {
	if err := writeTarball(ctx, w, img, name); err != nil {
		return unwritten(err, "write tarball", "the tarball")
	}
	return nil
}

// unwritten is what it means that what could not be written.
func unwritten(err error, doing, what string) error {
	if err := brokenOff(err, fieldRegistry, doing); err != nil {
		return err
	}
	return fmt.Errorf("%s: %w", doing, diskFull(err, what, "free some, or write to another disk"))
}

func writeTarball(ctx context.Context, w io.Writer, img v1.Image, name string) error {
	ref, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return refuse(rollout.ReasonInvalid, fieldRegistry, "write it as HOST[:PORT][/PATH], in lower case", "%q is not the name of an image: %v", name, err)
	}
	tagged, ok := ref.(reference.NamedTagged)
	if !ok {
		return refuse(rollout.ReasonInvalid, fieldRegistry, "name the image as NAME:TAG", "%q has no tag", name)
	}
	all, desc, err := blobs(img)
	if err != nil {
		return err
	}
	desc.Annotations = map[string]string{labelContainerd: ref.String(), labelRefName: tagged.Tag()}
	index, err := json.Marshal(v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex, Manifests: []v1.Descriptor{desc}})
	if err != nil {
		return err
	}
	m, err := img.Manifest()
	if err != nil {
		return err
	}
	saved := tarball.Descriptor{Config: blob{Hash: m.Config.Digest}.path(), RepoTags: []string{reference.FamiliarString(ref)}}
	for _, l := range m.Layers {
		saved.Layers = append(saved.Layers, blob{Hash: l.Digest}.path())
	}
	manifest, err := json.Marshal(tarball.Manifest{saved})
	if err != nil {
		return err
	}
	tw := tar.NewWriter(w)
	entry := func(name string, size int64, write func(io.Writer) error) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		h := &tar.Header{Typeflag: tar.TypeReg, Name: name, Size: size, Mode: 0o644, ModTime: time.Unix(0, 0)}
		if write == nil {
			h.Typeflag, h.Mode = tar.TypeDir, 0o755
		}
		if err := tw.WriteHeader(h); err != nil || write == nil {
			return err
		}
		return write(tw)
	}
	text := func(name string, data []byte) error {
		return entry(name, int64(len(data)), func(w io.Writer) error { _, err := w.Write(data); return err })
	}
	for _, err := range []error{
		text(layoutFileName, []byte(layoutVersion)), text(indexFileName, index), text("manifest.json", manifest),
		entry("blobs/", 0, nil), entry("blobs/sha256/", 0, nil),
	} {
		if err != nil {
			return err
		}
	}
	for _, b := range all {
		if err := entry(b.path(), b.size, b.copy); err != nil {
			return err
		}
	}
	return tw.Close()
}

// AddTo adds the image to a layout under its version's name.
func (m Made) AddTo(ctx context.Context, l *Layout) error {
	err := l.Add(ctx, m.Image, m.Name)
	if err != nil {
		m.forget(ctx)
	}
	return err
}

// WriteTarball is WriteTarball of the image.
func (m Made) WriteTarball(ctx context.Context, w io.Writer, name string) error {
	err := WriteTarball(ctx, w, m.Image, name)
	if err != nil {
		m.forget(ctx)
	}
	return err
}
