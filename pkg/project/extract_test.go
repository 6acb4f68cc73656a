package project

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-dev/sluice/rollout"
)

func TestExtract(t *testing.T) {
	dir := files(t, t.TempDir(), golden())
	b, a := archive(t, dir)
	parent := t.TempDir()
	to := filepath.Join(parent, "v1")
	old := syscall.Umask(0o077)
	err := Extract(t.Context(), bytes.NewReader(b), to, ExtractOptions{Digest: a.Digest})
	syscall.Umask(old)
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range golden() {
		p := filepath.Join(to, name)
		info, err := os.Lstat(p)
		if err != nil {
			t.Error(err)
			continue
		}
		target, link := strings.CutPrefix(content, "->")
		mode := fs.FileMode(0o644)
		switch {
		case link:
			if got, err := os.Readlink(p); got != target {
				t.Errorf("%s leads to %q, not %q (%v)", name, got, target, err)
			}
			continue
		case strings.HasPrefix(content, "#!"):
			mode = 0o755
		}
		got, err := os.ReadFile(p)
		if err != nil || string(got) != content || info.Mode() != mode {
			t.Errorf("%s: %q with mode %v (%v)", name, got, info.Mode(), err)
		}
	}
	for _, d := range []string{"", "model", "model/deep", ".sluice/models"} {
		if info, err := os.Stat(filepath.Join(to, d)); err != nil || info.Mode() != fs.ModeDir|0o755 {
			t.Errorf("directory %s: %v (%v)", d, info.Mode(), err)
		}
	}
	if err := Extract(t.Context(), bytes.NewReader(b), to, ExtractOptions{}); !errors.Is(err, fs.ErrExist) {
		t.Errorf("a second time: %v", err)
	}
	if entries, err := os.ReadDir(parent); err != nil || len(entries) != 1 {
		t.Errorf("left behind: %v (%v)", entries, err)
	}
}

type entry struct {
	name, link, content string
	kind                byte
}

func makeTar(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		if e.kind == 0 {
			e.kind = tar.TypeReg
		}
		h := &tar.Header{Name: e.name, Linkname: e.link, Typeflag: e.kind, Size: int64(len(e.content)), Mode: 0o644}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, e.content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestExtractRefuses(t *testing.T) {
	ok := entry{name: "a", content: "x"}
	for _, c := range []struct {
		name    string
		data    []byte
		options ExtractOptions
		want    string
	}{
		{"upwards", makeTar(t, entry{name: "../x"}), ExtractOptions{}, "../x is not a path inside the project"},
		{"hidden upwards", makeTar(t, entry{name: "a/../../x"}), ExtractOptions{}, "is not a path inside the project"},
		{"absolute", makeTar(t, entry{name: "/etc/x"}), ExtractOptions{}, "/etc/x is not a path inside the project"},
		{"not in its shortest form", makeTar(t, entry{name: "a//b"}), ExtractOptions{}, "a//b is not a path inside the project"},
		{"the root", makeTar(t, entry{name: "."}), ExtractOptions{}, ". is not a path inside the project"},
		{"a directory", makeTar(t, entry{name: "d", kind: tar.TypeDir}), ExtractOptions{}, "d is neither a file nor a symbolic link"},
		{"a hard link", makeTar(t, ok, entry{name: "b", link: "a", kind: tar.TypeLink}), ExtractOptions{}, "b is neither a file nor a symbolic link"},
		{"a device", makeTar(t, entry{name: "b", kind: tar.TypeChar}), ExtractOptions{}, "b is neither"},
		{"a pipe", makeTar(t, entry{name: "b", kind: tar.TypeFifo}), ExtractOptions{}, "b is neither"},
		{"an absolute link", makeTar(t, entry{name: "b", link: "/etc", kind: tar.TypeSymlink}), ExtractOptions{}, "b leads to /etc, outside the project"},
		{"a link upwards", makeTar(t, entry{name: "b", link: "../x", kind: tar.TypeSymlink}), ExtractOptions{}, "the symbolic link b leaves the project"},
		{"links that leave together", makeTar(t, entry{name: "d/e/f", content: "x"}, entry{name: "j", link: "d/e", kind: tar.TypeSymlink}, entry{name: "k", link: "j/../../..", kind: tar.TypeSymlink}), ExtractOptions{}, "the symbolic link k leaves the project"},
		{"a file through a link", makeTar(t, entry{name: "d/x"}, entry{name: "j", link: "d", kind: tar.TypeSymlink}, entry{name: "j/y"}), ExtractOptions{}, "j/y is in j, which is no directory"},
		{"a file through a link upwards", makeTar(t, entry{name: "j", link: "..", kind: tar.TypeSymlink}, entry{name: "j/y"}), ExtractOptions{}, "j/y is in j, which is no directory"},
		{"a file in a file", makeTar(t, ok, entry{name: "a/b"}), ExtractOptions{}, "a/b is in a, which is no directory"},
		{"twice", makeTar(t, ok, ok), ExtractOptions{}, "a stands twice"},
		{"a file over a link", makeTar(t, entry{name: "b", link: "a", kind: tar.TypeSymlink}, entry{name: "b", content: "x"}), ExtractOptions{}, "b stands twice"},
		{"a link over a file", makeTar(t, ok, entry{name: "a", link: "b", kind: tar.TypeSymlink}), ExtractOptions{}, "a stands twice"},
		{"too many", makeTar(t, ok, entry{name: "b"}, entry{name: "c"}), ExtractOptions{MaxEntries: 2}, "too many entries"},
		{"too large", makeTar(t, ok, entry{name: "b", content: "12345"}), ExtractOptions{MaxBytes: 5}, "too large"},
		{"another digest", makeTar(t, ok), ExtractOptions{Digest: "sha256:" + strings.Repeat("0", 64)}, "the archive's digest is sha256:"},
		{"more behind the end", append(makeTar(t, ok), make([]byte, maxTrailer+pieceSize)...), ExtractOptions{}, "follow the archive's end"},
	} {
		t.Run(c.name, func(t *testing.T) {
			parent := t.TempDir()
			err := Extract(t.Context(), bytes.NewReader(c.data), filepath.Join(parent, "v"), c.options)
			if rollout.ReasonOf(err) != rollout.ReasonUnsafeFile || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %s", err, c.want)
			}
			if entries, err := os.ReadDir(parent); err != nil || len(entries) != 0 {
				t.Errorf("left behind: %v (%v)", entries, err)
			}
		})
	}
	whole := makeTar(t, entry{name: "a", content: strings.Repeat("x", 5000)})
	for name, r := range map[string]io.Reader{
		"cut":      bytes.NewReader(whole[:3000]),
		"no tar":   strings.NewReader(strings.Repeat("no tar at all ", 100)),
		"breaking": io.MultiReader(bytes.NewReader(whole[:1024]), errReader{}),
	} {
		parent := t.TempDir()
		if err := Extract(t.Context(), r, filepath.Join(parent, "v"), ExtractOptions{}); err == nil {
			t.Errorf("%s: accepted", name)
		}
		if entries, err := os.ReadDir(parent); err != nil || len(entries) != 0 {
			t.Errorf("%s left behind: %v (%v)", name, entries, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Extract(ctx, bytes.NewReader(whole), filepath.Join(t.TempDir(), "v"), ExtractOptions{}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

type errReader struct{}

func (errReader) Read([]byte) (int, error) { return 0, errors.New("the connection broke") }

// FuzzExtract: whatever the bytes, nothing appears outside the directory, and what is
// extracted has only files, directories and links that stay inside.
func FuzzExtract(f *testing.F) {
	f.Add(makeTar(f, entry{name: "a", content: "x"}, entry{name: "d/l", link: "../a", kind: tar.TypeSymlink}))
	f.Add(makeTar(f, entry{name: "j", link: "..", kind: tar.TypeSymlink}, entry{name: "j/y"}))
	f.Add(makeTar(f, entry{name: strings.Repeat("n", 200), link: "../" + strings.Repeat("m", 200), kind: tar.TypeSymlink}))
	f.Fuzz(func(t *testing.T, data []byte) {
		parent := t.TempDir()
		to := filepath.Join(parent, "v")
		err := Extract(t.Context(), bytes.NewReader(data), to, ExtractOptions{MaxBytes: 1 << 20, MaxEntries: 100, Unsynced: true})
		entries, readErr := os.ReadDir(parent)
		if readErr != nil {
			t.Fatal(readErr)
		}
		if err != nil {
			if len(entries) != 0 {
				t.Errorf("left behind: %v", entries)
			}
			return
		}
		if len(entries) != 1 || entries[0].Name() != "v" {
			t.Errorf("outside: %v", entries)
		}
		tr, err := openTree(to)
		if err != nil {
			t.Fatal(err)
		}
		defer tr.close()
		err = filepath.WalkDir(to, func(p string, e fs.DirEntry, err error) error {
			if err != nil || e.IsDir() || e.Type().IsRegular() {
				return err
			}
			rel, err := filepath.Rel(to, p)
			if err != nil {
				return err
			}
			if r, err := tr.resolve(filepath.ToSlash(rel)); err != nil || r.problem != "" {
				t.Errorf("%s (%v) %s (%v)", rel, e.Type(), r.problem, err)
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	})
}

// TestModelDir extracts projects and finds their models as a script would.
func TestModelDir(t *testing.T) {
	for _, c := range []struct {
		name    string
		models  string
		content map[string]string
		dir     string // relative to the project
		want    map[string]string
	}{
		{"none", "", nil, "", nil},
		{"a directory", `[{name: m, version: "3", path: model/}]`, map[string]string{"model/w.bin": "w", "model/a/b": "b"}, "model", map[string]string{"w.bin": "w", "a/b": "b"}},
		{"a file", `[{name: m, version: "3", path: deep/m.pkl}]`, map[string]string{"deep/m.pkl": "p", "deep/other": "o"}, ".sluice/models/m/3", map[string]string{"m.pkl": "p"}},
		{
			"several", `[{name: m, version: "3", path: model}, {name: m, version: "10", path: old}, {name: n, version: v1.0_a-b, path: n.onnx}]`,
			map[string]string{"model/w.bin": "w", "model/a/b": "b", "model/l": "->a", "old/w.bin": "o", "n.onnx": "n", "w.bin": "not a model"},
			".sluice/models", map[string]string{"m/3/w.bin": "w", "m/3/a/b": "b", "m/3/l/b": "b", "m/10/w.bin": "o", "n/v1.0_a-b/n.onnx": "n"},
		},
		{
			"one directory by a link", `[{name: m, version: "3", path: latest}]`,
			map[string]string{"latest": "->runs/7", "runs/7/w.bin": "w", "runs/6/w.bin": "old", ".gitignore": "runs\nlatest\n"}, "latest", map[string]string{"w.bin": "w"},
		},
		{
			"below a link", `[{name: m, version: "3", path: runs/latest/model}]`,
			map[string]string{"runs/latest": "->7", "runs/7/model/w.bin": "w", "runs/7/log": "no", ".gitignore": "runs\n"}, "runs/latest/model", map[string]string{"w.bin": "w"},
		},
		{
			"a file by a link", `[{name: m, version: "3", path: best.pkl}]`,
			map[string]string{"best.pkl": "->out/epoch9.pkl", "out/epoch9.pkl": "9", ".gitignore": "out\n"}, ".sluice/models/m/3", map[string]string{"best.pkl": "9"},
		},
		{
			"one in another", `[{name: m, version: "1", path: model}, {name: part, version: "1", path: model/part}]`,
			map[string]string{"model/part/w": "w", "model/x": "x"}, ".sluice/models", map[string]string{"m/1/part/w": "w", "m/1/x": "x", "part/1/w": "w"},
		},
		{
			"the same twice", `[{name: m, version: "1", path: model}, {name: m, version: "2", path: ./model/}]`,
			map[string]string{"model/w": "w"}, ".sluice/models", map[string]string{"m/1/w": "w", "m/2/w": "w"},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			content := map[string]string{"sluice.yaml": simple, "score.py": "x"}
			if c.models != "" {
				content["sluice.yaml"] += "models: " + c.models + "\n"
			}
			for p, s := range c.content {
				content[p] = s
			}
			dir := files(t, t.TempDir(), content)
			l := mustPlan(t, dir)
			b, a := archive(t, dir)
			to := filepath.Join(t.TempDir(), "v")
			if err := Extract(t.Context(), bytes.NewReader(b), to, ExtractOptions{Digest: a.Digest, Unsynced: true}); err != nil {
				t.Fatal(err)
			}
			m, err := Load(to)
			if err != nil {
				t.Fatal(err)
			}
			got, err := m.ModelDir(to)
			if err != nil {
				t.Fatal(err)
			}
			if c.dir == "" {
				if got != "" || l.ModelDir != "" {
					t.Errorf("%q, %q", got, l.ModelDir)
				}
				return
			}
			if got != filepath.Join(to, c.dir) || l.ModelDir != c.dir {
				t.Errorf("%q and %q, want %q", got, l.ModelDir, c.dir)
			}
			found := map[string]string{}
			for p := range c.want {
				content, err := os.ReadFile(filepath.Join(got, p))
				if err != nil {
					t.Error(err)
				}
				found[p] = string(content)
			}
			if d := cmp.Diff(c.want, found); d != "" {
				t.Error(d)
			}
			// Walking without following links to directories finds the files, too.
			walked := map[string]string{}
			real, err := filepath.EvalSymlinks(got)
			if err != nil {
				t.Fatal(err)
			}
			err = filepath.WalkDir(real, func(p string, e fs.DirEntry, err error) error {
				if err != nil || e.IsDir() {
					return err
				}
				if info, err := os.Stat(p); err != nil || info.IsDir() {
					return err
				}
				b, err := os.ReadFile(p)
				rel, relErr := filepath.Rel(real, p)
				walked[filepath.ToSlash(rel)] = string(b)
				return errors.Join(err, relErr)
			})
			if err != nil {
				t.Fatal(err)
			}
			for p, s := range walked {
				if c.want[p] != s {
					t.Errorf("walking finds %s: %q", p, s)
				}
			}
			for p, s := range c.want {
				if walked[p] != s && !strings.Contains(p, "/l/") {
					t.Errorf("walking does not find %s", p)
				}
			}
		})
	}
	// The layout's links count as links, not as files of the project.
	dir := files(t, t.TempDir(), map[string]string{"sluice.yaml": simple + "models: [{name: m, version: \"1\", path: m.pkl}]\n", "score.py": "x", "m.pkl": "x"})
	if l := mustPlan(t, dir); l.Files != 3 || l.Links != 0 || l.Layout != 1 {
		t.Errorf("%+v", l)
	}
	want := []string{"ship   m.pkl", "ship   score.py", "ship   sluice.yaml", "ship   .sluice/models/m/1/m.pkl -> ../../../../m.pkl  (models[0] m)"}
	if d := cmp.Diff(want, list(t, dir)); d != "" {
		t.Error(d)
	}
	if _, err := (&Manifest{Models: []Model{{Name: "m", Version: "1", Path: "gone"}}}).ModelDir(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v", err)
	}
}
