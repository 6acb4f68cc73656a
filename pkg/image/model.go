package image

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"golang.org/x/sync/errgroup"

	"github.com/sluice-dev/sluice/pkg/project"
	"github.com/sluice-dev/sluice/rollout"
)

const (
	// modelsDir has the models that are fetched by uri, each below its set digest: so their layers do not depend
	// on what a project calls them.
	modelsDir = programDir + "/models"
	// labelModelFiles has the files of a model's image, in JSON, and labelModel their set digest.
	labelModelFiles = "dev.sluice.model.files"
	labelModel      = "dev.sluice.model"
	// maxModelFiles bounds what is read of a model's image before its layers are.
	maxModelFiles = 20_000
)

// ModelFile is a file of a model that does not lie in the project.
type ModelFile struct {
	// Path below the model's directory.
	Path       string `json:"path"`
	Size       int64  `json:"size"`
	SHA256     string `json:"sha256"`
	Executable bool   `json:"executable,omitempty"`
}

// Model that a manifest names by uri, as it goes into an image.
type Model struct {
	Name, Version string
	// Digest is the set digest of Files.
	Digest string
	Files  []ModelFile
	layers []addition
	// registry that has the layers, if one does.
	registry name.Registry
}

// dir of a model's files in an image. Its name is made of the set digest, and of which files are executable.
func dirOf(files []ModelFile) string {
	h := sha256.New()
	io.WriteString(h, setOf(files)) //nolint:errcheck // a hash has no errors
	for _, f := range files {
		if f.Executable {
			fmt.Fprintf(h, "\x00%s", f.Path)
		}
	}
	return modelsDir + "/" + hex.EncodeToString(h.Sum(nil))
}

func setOf(files []ModelFile) string {
	sums := map[string]string{}
	for _, f := range files {
		sums[f.Path] = f.SHA256
	}
	return SetDigest(sums)
}

// modelLinks lead from where scripts look for models to where these are.
func modelLinks(models []Model) []*file {
	var out []*file
	for _, m := range models {
		at := strings.TrimPrefix(path.Join(ProjectDir, project.LayoutPath(project.Model{Name: m.Name, Version: m.Version})), "/")
		dir := dirOf(m.Files)
		for _, f := range m.Files {
			out = append(out, &file{path: at + "/" + f.Path, link: dir + "/" + f.Path, rest: true})
		}
	}
	slices.SortFunc(out, func(a, b *file) int { return strings.Compare(a.path, b.path) })
	return out
}

// directory gives a model's files: one file, or all below a directory. Everything must be a regular file.
type directory struct {
	root *os.Root
	// only is a single file's name, as what it is called in the model.
	only, as string
}

func openModel(dir string) (*directory, error) {
	info, err := os.Stat(dir)
	if err != nil {
		return nil, refuse(rollout.ReasonInvalid, "model", "name a file or directory", "the model cannot be read: %v", err)
	}
	d := &directory{}
	if info.Mode().IsRegular() {
		// What it leads to, if it is a link: caches of models are made of these.
		name := filepath.Base(dir)
		if dir, err = filepath.EvalSymlinks(dir); err != nil {
			return nil, fmt.Errorf("find model: %w", err)
		}
		d.as = name
		dir, d.only = filepath.Split(filepath.Clean(dir))
		dir = filepath.Clean(dir)
	} else if !info.IsDir() {
		return nil, refuse(rollout.ReasonInvalid, "model", "name a file or directory", "%s is neither", dir)
	}
	d.root, err = os.OpenRoot(dir)
	return d, err
}

// each file in the order of paths, by its path in the model.
func (d *directory) each(ctx context.Context, fn func(path string, info fs.FileInfo) error) error {
	n := 0
	return fs.WalkDir(d.root.FS(), cmp.Or(d.only, "."), func(p string, e fs.DirEntry, err error) error {
		if err == nil {
			err = ctx.Err()
		}
		if err != nil || e.IsDir() {
			return err
		}
		if !plainName(p) {
			return refuse(rollout.ReasonUnsafeFile, "model", "rename it", "%q cannot be a file's name in a model: it is not UTF-8, or has control characters", p)
		}
		if strings.HasPrefix(path.Base(p), ".wh.") || strings.Contains(p, "/.wh.") {
			return refuse(rollout.ReasonUnsafeFile, "model", "rename it, or take it out of the directory", "%q cannot be in an image, where names that begin with .wh. stand for removed files", p)
		}
		if !e.Type().IsRegular() {
			return refuse(rollout.ReasonUnsafeFile, "model", "replace it by what it leads to, or remove it", "%s is no regular file", p)
		}
		if n++; n > maxModelFiles {
			return refuse(rollout.ReasonInvalid, "model", "pack small files into archives", "the model has more than %d files", maxModelFiles)
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		if d.only != "" {
			p = d.as
		}
		return fn(p, info)
	})
}

// open a file that each gave.
func (d *directory) open(p string, info fs.FileInfo) (io.ReadCloser, error) {
	if d.only != "" {
		p = d.only
	}
	return project.OpenUnchanged(d.root, p, info)
}

// plainName tells whether a path reads everywhere as it was written.
func plainName(p string) bool {
	return utf8.ValidString(p) && !strings.ContainsFunc(p, unicode.IsControl)
}

// sums of all files, several at once.
func (d *directory) sums(ctx context.Context, m *memory) ([]ModelFile, error) {
	var files []ModelFile
	var infos []fs.FileInfo
	seen := time.Now()
	if err := d.each(ctx, func(p string, info fs.FileInfo) error {
		files = append(files, ModelFile{Path: p, Size: info.Size(), Executable: info.Mode()&0o100 != 0})
		infos = append(infos, info)
		return nil
	}); err != nil {
		return nil, err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(runtime.GOMAXPROCS(0))
	for i := range files {
		g.Go(func() error {
			if err := ctx.Err(); err != nil {
				return err
			}
			k := newKeyer()
			k.write("sum")
			k.file(infos[i])
			key := k.sum()
			if r, ok := m.get(key); ok {
				files[i].SHA256 = r.Digest.Hex
				return nil
			}
			r, err := d.open(files[i].Path, infos[i])
			if err != nil {
				return err
			}
			defer func() { _ = r.Close() }()
			settled := m.dir != "" && seen.Sub(infos[i].ModTime()) >= writtenBack && settle(r)
			h := sha256.New()
			if _, err := io.CopyBuffer(h, reading(ctx, r), make([]byte, bufferSize)); err != nil {
				return err
			}
			files[i].SHA256 = hex.EncodeToString(h.Sum(nil))
			if !settled {
				return nil
			}
			m.put(key, k.lastChanged(), seen, remembered{Digest: v1.Hash{Algorithm: "sha256", Hex: files[i].SHA256}})
			return nil
		})
	}
	return files, g.Wait()
}

// PushedModel is what PushModel pushed.
type PushedModel struct {
	// Ref by digest, Digest that of the set of files (see SetDigest), Files and Bytes how much they are.
	Ref    string `json:"ref"`
	Digest string `json:"digest"`
	Files  int    `json:"files"`
	Bytes  int64  `json:"bytes"`
	Known  bool   `json:"known"`
}

// PushModel makes the file or directory into an image that has nothing but the model, and pushes it as ref,
// REGISTRY/NAME:TAG. Manifests name it by uri. Large files are a layer each. The same files give the same digest. What
// was hashed is kept in cacheDir, unless that is empty. Refusals are those of Push, also if only the tag cannot be written.
func (c Client) PushModel(ctx context.Context, dir, ref, cacheDir string) (PushedModel, error) {
	to, err := name.NewTag(ref, append(c.insecure(ref), name.StrictValidation)...)
	if err != nil {
		return PushedModel{}, badName("uri", "write it as oci://HOST[:PORT]/NAME:TAG, in lower case", ref, "a place to push to", err)
	}
	c, end, err := c.begin(ctx)
	if err != nil {
		return PushedModel{}, err
	}
	defer end()
	d, err := openModel(dir)
	if err != nil {
		return PushedModel{}, err
	}
	defer func() { _ = d.root.Close() }()
	memory := &memory{dir: cacheDir}
	files, err := d.sums(ctx, memory)
	if err != nil {
		return PushedModel{}, fmt.Errorf("read model: %w", err)
	}
	if len(files) == 0 {
		return PushedModel{}, refuse(rollout.ReasonInvalid, "model", "name where the model's files are", "%s holds no files", dir)
	}
	out := PushedModel{Digest: setOf(files), Files: len(files)}
	for _, f := range files {
		out.Bytes += f.Size
	}
	below := strings.TrimPrefix(dirOf(files), "/")
	plan, err := c.planContents(ctx, func(ctx context.Context, only string, fn func(*file) error) error {
		return d.each(ctx, func(p string, info fs.FileInfo) error {
			return fn(&file{
				path: below + "/" + p, size: info.Size(), executable: info.Mode()&0o100 != 0, info: info, model: p,
				open: func() (io.ReadCloser, error) { return d.open(p, info) },
			})
		})
	}, memory)
	if err != nil {
		return PushedModel{}, err
	}
	layers, sums, err := plan.layers(ctx, c.uploads(to.Context()).send)
	if err != nil {
		memory.forget()
		return PushedModel{}, fmt.Errorf("make layers: %w", err)
	}
	if SetDigest(sums) != out.Digest {
		return PushedModel{}, refuse(rollout.ReasonUnsafeFile, "model", "run it again when nothing writes to it", "the model changed while it was read")
	}
	list, err := json.Marshal(files)
	if err != nil {
		return PushedModel{}, err
	}
	img, err := stack(empty.Image, v1.Platform{OS: "linux", Architecture: "unknown"}, layers,
		v1.Config{Labels: map[string]string{labelModelFiles: string(list), labelModel: out.Digest}}, nil)
	if err != nil {
		return PushedModel{}, fmt.Errorf("make image: %w", err)
	}
	// Whoever has only the tag would find nothing, or an earlier model.
	pushed, known, err := c.push(ctx, img, to.Context(), to.TagStr(), func(err error) error {
		return failure(err, "uri", "tag "+to.Name(), to.Registry, rollout.ReasonRegistryRefused)
	})
	if err != nil {
		memory.forget()
		return PushedModel{}, err
	}
	out.Ref, out.Known = pushed.Name(), known
	return out, nil
}

// fetchModels gets the models that a manifest names by uri: those of registries as layers that go from there straight to
// where the image is pushed, or stay where they are if that is the same registry; those of other servers as files in
// TempDir, which clean removes.
func (s Shipper) fetchModels(ctx context.Context, m *project.Manifest, mem *memory) (out []Model, clean func(), err error) {
	var mu sync.Mutex
	var temporary []string
	clean = func() {
		mu.Lock()
		defer mu.Unlock()
		for _, f := range temporary {
			_ = os.Remove(f)
		}
	}
	for i, model := range m.Models {
		if model.URI == "" {
			continue
		}
		field := fmt.Sprintf("models[%d].uri", i)
		var got Model
		if rest, ok := strings.CutPrefix(model.URI, project.SchemeOCI+"://"); ok {
			got, err = s.registryModel(ctx, field, rest)
		} else {
			got, err = s.fileModel(ctx, field, s.signed(model), mem, func() (*os.File, error) {
				f, err := os.CreateTemp(s.TempDir, "sluice-model-*")
				if err == nil {
					mu.Lock()
					temporary = append(temporary, f.Name())
					mu.Unlock()
				}
				return f, err
			})
		}
		if err != nil {
			clean()
			return nil, nil, fmt.Errorf("fetch model %s: %w", model.Name, err)
		}
		got.Name, got.Version = model.Name, model.Version
		out = append(out, got)
	}
	return out, clean, nil
}

// signed is the model with what belongs behind its address.
func (s Shipper) signed(m project.Model) project.Model {
	if s.ModelQuery == nil {
		return m
	}
	query := strings.TrimPrefix(s.ModelQuery(m.Name), "?")
	switch {
	case query == "":
	case strings.Contains(m.URI, "?"):
		m.URI += "&" + query
	default:
		m.URI += "?" + query
	}
	return m
}

// registryModel is one that PushModel pushed.
func (c Client) registryModel(ctx context.Context, field, ref string) (Model, error) {
	r, err := name.ParseReference(ref, c.insecure(ref)...)
	if err != nil {
		return Model{}, badName(field, "write it as oci://HOST[:PORT]/NAME:TAG, or with @sha256:… for a fixed one", ref, "the name of a model", err)
	}
	fail := func(err error) (Model, error) {
		return Model{}, failure(err, field, "read model "+ref, r.Context().Registry, rollout.ReasonModelMissing)
	}
	no := func(format string, args ...any) (Model, error) {
		return Model{}, refuse(rollout.ReasonModelMissing, field, "push the model with `sluice model push PATH oci://REGISTRY/NAME:TAG`", "%s is no model: %s", ref, fmt.Sprintf(format, args...))
	}
	d, err := remote.Get(r, c.options(ctx)...)
	if err != nil {
		return fail(err)
	}
	if !d.MediaType.IsImage() {
		return no("it is a %s", d.MediaType)
	}
	img, err := d.Image()
	if err != nil {
		return fail(err)
	}
	config, err := img.ConfigFile()
	if err != nil {
		return fail(err)
	}
	out := Model{Digest: config.Config.Labels[labelModel], registry: r.Context().Registry}
	list := config.Config.Labels[labelModelFiles]
	if list == "" {
		return no("it does not say which files it has")
	}
	if err := json.Unmarshal([]byte(list), &out.Files); err != nil || len(out.Files) > maxModelFiles {
		return no("what it says of its files cannot be read")
	}
	for _, f := range out.Files {
		if sum, err := hex.DecodeString(f.SHA256); !fs.ValidPath(f.Path) || f.Path == "." || !plainName(f.Path) || err != nil || len(sum) != sha256.Size {
			return no("what it says of its files cannot be")
		}
	}
	if len(out.Files) == 0 || setOf(out.Files) != out.Digest {
		return no("its files are not those of its digest")
	}
	layers, err := img.Layers()
	if err != nil {
		return fail(err)
	}
	c.progress("model %s is %s, %d files", ref, out.Digest, len(out.Files))
	for _, l := range layers {
		out.layers = append(out.layers, addition{l, "model " + out.Digest})
	}
	return out, nil
}

// fileModel is a single file of a server.
func (c Client) fileModel(ctx context.Context, field string, m project.Model, mem *memory, temporary func() (*os.File, error)) (Model, error) {
	d := &download{client: c, field: field, model: m.Name, uri: m.URI, sum: m.SHA256, name: path.Base(uriPath(m.URI)), temporary: temporary}
	if !fs.ValidPath(d.name) || !plainName(d.name) || strings.HasPrefix(d.name, ".wh.") {
		return Model{}, refuse(rollout.ReasonInvalid, field, "give it an address that ends in the file's name", "the address names no file")
	}
	out := Model{Files: []ModelFile{{Path: d.name, SHA256: m.SHA256}}}
	out.Digest = setOf(out.Files)
	what := "model " + out.Digest
	target := strings.TrimPrefix(dirOf(out.Files), "/") + "/" + d.name
	k := newKeyer()
	k.write("uri", target, m.SHA256)
	key := k.sum()
	write := func(w io.Writer) error {
		name, err := d.get(ctx)
		if err != nil {
			return err
		}
		return writeFile(w, name, target, 0o644)
	}
	if r, ok := mem.get(key); ok && r.Size > 0 {
		out.layers = []addition{{r.layer(write), what}}
		return out, nil
	}
	compress, err := shrinks(write)
	if err != nil {
		return Model{}, err
	}
	l, err := newLayer(compress, write)
	if err != nil {
		return Model{}, err
	}
	mem.put(key, longAgo, longAgo.Add(2*settled), l.remembered(nil))
	out.layers = []addition{{l, what}}
	return out, nil
}
