package environment_test

import (
	"bytes"
	"context"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/parser"

	"github.com/sluice-dev/sluice/pkg/image/environment"
	"github.com/sluice-dev/sluice/pkg/project"
	"github.com/sluice-dev/sluice/rollout"
)

// The Dockerfile of each shape; those of the vectors stand beside them.
func TestDockerfile(t *testing.T) {
	const condaText = "dependencies: [python=3.12]"
	withEnv := func(env ...string) func(*testing.T) (*environment.Definition, error) {
		return func(t *testing.T) (*environment.Definition, error) {
			o := options()
			o.Resolve = func(context.Context, string, string) (environment.Image, error) {
				return environment.Image{Digest: baseDigest, Env: env}, nil
			}
			return environment.Load(t.Context(), files(t, map[string]string{"conda.yml": condaText}), project.Environment{BaseImage: "base:1", Conda: "conda.yml"}, o)
		}
	}
	for name, load := range map[string]func(*testing.T) (*environment.Definition, error){
		"steps":             step(nil, "RUN a", "RUN <<EOF\nb\nEOF\n", "ENV C=d"),
		"requirements":      reqs("a==1"),
		"editable":          reqs("-e ./p", "p/setup.py", ""),
		"conda brought":     cond(condaText),
		"conda micromamba":  withEnv("MAMBA_EXE=/bin/micromamba", "PATH=/opt/conda/bin"),
		"conda its own":     withEnv("PATH=/opt/miniconda3/bin:/usr/bin"),
		"conda not its own": withEnv("PATH=/usr/local/bin:/usr/bin"),
		"conda editable":    cond("dependencies: [pip, {pip: [-e ./p]}]", "p/setup.py", ""),
		"pinned base": func(t *testing.T) (*environment.Definition, error) {
			o := options()
			o.Resolve = images{"python:3@sha256:" + strings.Repeat("9", 64): baseDigest}.resolve
			return environment.Load(t.Context(), files(t, map[string]string{"it's.txt": "a"}),
				project.Environment{BaseImage: "python:3@sha256:" + strings.Repeat("9", 64), Requirements: "it's.txt"}, o)
		},
	} {
		t.Run(name, func(t *testing.T) {
			d, err := load(t)
			if err != nil {
				t.Fatal(err)
			}
			parsed, err := parser.Parse(bytes.NewReader(d.Dockerfile()))
			if err == nil {
				_, _, err = instructions.Parse(parsed.AST, nil)
			}
			if err != nil {
				t.Errorf("BuildKit does not read it: %v", err)
			}
			golden(t, filepath.Join("testdata/dockerfiles", strings.ReplaceAll(name, " ", "-")), d.Dockerfile())
		})
	}
}

// written lists a directory: modes, links, contents.
func written(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(dir, func(p string, e fs.DirEntry, err error) error {
		if err != nil || p == dir {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		name, err := filepath.Rel(dir, p)
		if err != nil {
			return err
		}
		switch {
		case e.IsDir():
			if info.Mode().Perm() != 0o755 || info.ModTime().Unix() != 0 {
				t.Errorf("directory %s has mode %v and time %v", name, info.Mode(), info.ModTime())
			}
		case info.Mode()&fs.ModeSymlink != 0:
			to, err := os.Readlink(p)
			if err != nil {
				return err
			}
			out[name] = "-> " + to
		default:
			if info.ModTime().Unix() != 0 {
				t.Errorf("%s has the time %v", name, info.ModTime())
			}
			b, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			out[name] = info.Mode().Perm().String() + " " + string(b)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestWriteContext(t *testing.T) {
	old := syscall.Umask(0o077)
	defer syscall.Umask(old)
	const dockerignore = "-rw-r--r-- .sluice/Dockerfile*\n"
	for name, c := range map[string]struct {
		load func(*testing.T) (*environment.Definition, error)
		want map[string]string // but the Dockerfile
	}{
		"steps": {
			step([]string{"s*", "x", "d/a", "y", "d/l", "-> a", "l", "-> d", "unused", "z", "sluice.yaml", "m"}, "COPY s l/ /"),
			map[string]string{"s": "-rwxr-xr-x x", "d/a": "-rw-r--r-- y", "d/l": "-> a", "l": "-> d"},
		},
		"requirements": {
			reqs("# c\n-r sub/r.txt\n./p", "sub/r.txt", "a", "p/a", "x", "p/__pycache__/b", "y", "unused", "z"),
			map[string]string{
				".sluice/packages/requirements.txt": "-rw-r--r-- # c\n-r sub/r.txt\n./p", ".sluice/packages/sub/r.txt": "-rw-r--r-- a", ".sluice/packages/p/a": "-rw-r--r-- x",
			},
		},
		"a package around its requirements": {
			reqs(".", "setup.py", "x"),
			map[string]string{".sluice/packages/requirements.txt": "-rw-r--r-- .", ".sluice/packages/setup.py": "-rw-r--r-- x"},
		},
		"through links": {
			reqs("-r l/r.txt", "real/r.txt", "a", "l", "-> real"),
			map[string]string{".sluice/packages/requirements.txt": "-rw-r--r-- -r l/r.txt", ".sluice/packages/real/r.txt": "-rw-r--r-- a", ".sluice/packages/l": "-> real"},
		},
		"a link to requirements": {
			reqs("-r l.txt", "l.txt", "-> real/r.txt", "real/r.txt", "a"),
			map[string]string{".sluice/packages/requirements.txt": "-rw-r--r-- -r l.txt", ".sluice/packages/real/r.txt": "-rw-r--r-- a", ".sluice/packages/l.txt": "-> real/r.txt"},
		},
		"own": {
			own("Dockerfile", "FROM scratch", "a", "x", ".dockerignore", "b", "b", "y"),
			map[string]string{"Dockerfile": "-rw-r--r-- FROM scratch", "a": "-rw-r--r-- x", ".dockerignore": "-rw-r--r-- b"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			d, err := c.load(t)
			if err != nil {
				t.Fatal(err)
			}
			dir := t.TempDir()
			if err := d.WriteContext(t.Context(), dir); err != nil {
				t.Fatal(err)
			}
			want := maps.Clone(c.want)
			want[environment.DockerfileName] = "-rw-r--r-- " + string(d.Dockerfile())
			want[environment.DockerfileName+".dockerignore"] = dockerignore
			if diff := cmp.Diff(want, written(t, dir)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if err := d.WriteContext(t.Context(), dir); rollout.ReasonOf(err) != rollout.ReasonInvalid {
				t.Errorf("into a directory with files: %v", err)
			}
		})
	}
}

// What changed after loading does not get into an image of the earlier hash.
func TestWriteContextOfChangedFiles(t *testing.T) {
	for name, change := range map[string]func(dir string) error{
		"contents": func(dir string) error { return os.WriteFile(filepath.Join(dir, "f"), []byte("y"), 0o644) },
		"removed":  func(dir string) error { return os.Remove(filepath.Join(dir, "f")) },
		"a link":   func(dir string) error { return os.Remove(filepath.Join(dir, "l")) },
	} {
		dir := files(t, map[string]string{"f": "x", "l": "-> f"})
		d := load(t, dir, project.Environment{DockerSteps: []string{"COPY l /"}})
		if err := change(dir); err != nil {
			t.Fatal(err)
		}
		if err := d.WriteContext(t.Context(), t.TempDir()); rollout.ReasonOf(err) != rollout.ReasonConflict {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// The same project elsewhere, under another umask, with other times, is the same environment.
func TestHashDoesNotDependOnTheMachine(t *testing.T) {
	content := map[string]string{"Dockerfile": "FROM scratch", "d/run*": "x", "d/l": "-> run"}
	first := load(t, files(t, content), project.Environment{Dockerfile: "Dockerfile"}).Hash()
	old := syscall.Umask(0o077)
	dir := files(t, content)
	syscall.Umask(old)
	if info, err := os.Stat(filepath.Join(dir, "Dockerfile")); err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("the umask did not work: %v, %v", info, err)
	}
	if second := load(t, dir, project.Environment{Dockerfile: "Dockerfile"}).Hash(); second != first {
		t.Errorf("%s and %s", first, second)
	}
}

func TestImages(t *testing.T) {
	d, err := step(nil, "COPY --from=tools:1 /a /a", "COPY --from=debian:12 /a /a", "RUN --mount=from=tools:1,target=/x true")(t)
	if err != nil {
		t.Fatal(err)
	}
	want := []environment.NamedImage{{"debian:12", "sha256:" + strings.Repeat("3", 64)}, {"tools:1", "sha256:" + strings.Repeat("2", 64)}}
	if !slices.Equal(d.Images(), want) {
		t.Errorf("got %v", d.Images())
	}
	if ref, digest := d.Base(); ref != "python:3.12-slim" || digest != baseDigest {
		t.Errorf("base %s %s", ref, digest)
	}
}

func TestLoadEnds(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := environment.Load(ctx, files(t, map[string]string{"Dockerfile": "FROM scratch"}), project.Environment{Dockerfile: "Dockerfile"}, options())
	if err == nil || ctx.Err() == nil || !strings.Contains(err.Error(), ctx.Err().Error()) {
		t.Errorf("got %v", err)
	}
}

// TestGivenFiles: files beside the project are as in it, the definition and what is copied as a whole.
func TestGivenFiles(t *testing.T) {
	given := map[string]string{"given.yml": "dependencies: [python=3.12, pip, {pip: [./p, -r more.txt]}]\n", "sluice.yaml": "m", "left.out": "l"}
	o := options()
	o.Files = map[string][]byte{}
	for name, text := range given {
		o.Files[name] = []byte(text)
	}
	const base = "python:3.12-slim"
	for name, env := range map[string]project.Environment{
		"conda":     {BaseImage: base, Conda: "given.yml"},
		"all":       {BaseImage: base, DockerSteps: []string{"COPY . /"}},
		"own":       {Dockerfile: "Dockerfile"},
		"some":      {BaseImage: base, DockerSteps: []string{"COPY p /"}},
		"all, pip":  {BaseImage: base, Requirements: "all.txt"},
		"conda too": {BaseImage: base, DockerSteps: []string{"COPY . /"}, Conda: "given.yml"},
	} {
		content := map[string]string{"p/a": "x", "more.txt": "numpy==2\n", "Dockerfile": "FROM scratch\n", ".dockerignore": "left.*\n", "all.txt": ".\n"}
		one, err := environment.Load(t.Context(), files(t, content), env, o)
		if err != nil {
			t.Fatal(err)
		}
		for name, text := range given {
			content[name] = text
		}
		two := load(t, files(t, content), env)
		if one.Hash() != two.Hash() || string(one.Dockerfile()) != string(two.Dockerfile()) {
			t.Errorf("%s: hash %s, want %s", name, one.Hash(), two.Hash())
		}
		var dirs [2]string
		for i, d := range []*environment.Definition{one, two} {
			dirs[i] = t.TempDir()
			if err := d.WriteContext(t.Context(), dirs[i]); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
		}
		if d := cmp.Diff(texts(t, dirs[1]), texts(t, dirs[0])); d != "" {
			t.Errorf("%s: the build's context (-in the project +given):\n%s", name, d)
		}
	}
}

// texts of the files below a directory.
func texts(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	if err := filepath.WalkDir(dir, func(p string, e os.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		data, err := os.ReadFile(p)
		out[p[len(dir):]] = string(data)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return out
}
