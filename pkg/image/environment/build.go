package environment

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/sluice-dev/sluice/rollout"
)

// Where things are in the build context.
const (
	// DockerfileName is the Dockerfile's path in a written build context. Nothing of the project has that
	// place: its .sluice never is in a build context.
	DockerfileName = reservedDir + "/Dockerfile"
	// packagesDir has what the installing of packages reads, by paths from the project's root.
	packagesDir = reservedDir + "/packages"
)

// Where things are in the image or while it is built.
const (
	// CondaPrefix is where the Conda environment is in the image.
	CondaPrefix = "/azureml-envs/sluice"
	// keptPackages is where packages that are installed as links to their sources stay.
	keptPackages    = "/opt/sluice/packages"
	mountedPackages = "/run/sluice/packages"
	mountedMamba    = "/run/sluice/micromamba"
	pipCache        = "/var/cache/sluice/pip"
	condaCache      = "/var/cache/sluice/conda"
	micromambaStage = "sluice-micromamba"
)

// condaTool is the program that installs a Conda definition.
type condaTool string

const (
	toolNone       condaTool = ""
	toolBrought    condaTool = "brought"
	toolMicromamba condaTool = "micromamba"
	toolConda      condaTool = "conda"
)

// condaTool tells by the base image's variables what it has: its own images set them.
func (d *Definition) condaTool() condaTool {
	if d.conda == nil {
		return toolNone
	}
	tool := toolBrought
	for _, kv := range d.base.Env {
		name, value, _ := strings.Cut(kv, "=")
		switch name {
		case "MAMBA_EXE":
			return toolMicromamba
		case "CONDA_DIR", "CONDA_EXE":
			tool = toolConda
		case "PATH":
			if slices.ContainsFunc(strings.Split(value, ":"), func(dir string) bool {
				return path.Base(dir) == "bin" && slices.Contains([]string{"conda", "miniconda", "miniconda3", "miniforge3", "anaconda3"}, path.Base(path.Dir(dir)))
			}) {
				tool = toolConda
			}
		}
	}
	return tool
}

// installPackages writes the instructions that install the packages, in the exec form, which no SHELL
// of a step changes.
func (d *Definition) installPackages(b *bytes.Buffer, tool condaTool) {
	if d.conda == nil && d.requirements == "" {
		return
	}
	dir := mountedPackages
	mounts := []string{"type=bind,source=" + packagesDir + ",target=" + mountedPackages + ",rw"}
	if d.editable() {
		// Such a package is used from where it was installed from, so that must stay.
		dir, mounts = keptPackages, nil
		fmt.Fprintf(b, "COPY %s %s\n", packagesDir, keptPackages)
	}
	mounts = append(mounts, "type=cache,target="+pipCache)
	variables := []string{
		"PIP_CACHE_DIR=" + pipCache, "PIP_DISABLE_PIP_VERSION_CHECK=1", "PIP_NO_INPUT=1", "PIP_ROOT_USER_ACTION=ignore",
		// Debian's Python refuses else (PEP 668); what it protects, a system that lives on, an image is not.
		"PIP_BREAK_SYSTEM_PACKAGES=1",
	}
	var command string
	if d.conda == nil {
		command = "python3 -m pip install --requirement " + quoted(d.requirements)
	} else {
		mounts = append(mounts, "type=cache,target="+condaCache)
		dir = path.Join(dir, path.Dir(d.conda.path))
		file := quoted(path.Base(d.conda.path))
		mamba := "micromamba"
		switch tool {
		case toolBrought:
			mounts = append(mounts, "type=bind,from="+micromambaStage+",source=/bin/micromamba,target="+mountedMamba)
			mamba = mountedMamba
			fallthrough
		case toolMicromamba:
			variables = append(variables, "MAMBA_ROOT_PREFIX="+condaCache)
			command = mamba + " create --yes --prefix " + CondaPrefix + " --file " + file
		default:
			variables = append(variables, "CONDA_PKGS_DIRS="+condaCache)
			command = "conda env create --prefix " + CondaPrefix + " --file " + file
		}
	}
	b.WriteString("RUN")
	for _, m := range mounts {
		b.WriteString(" --mount=" + m + " \\\n   ")
	}
	b.WriteString(" " + jsonString([]string{"/bin/sh", "-ec", "cd " + quoted(dir) + " && " + strings.Join(variables, " ") + " " + command}) + "\n")
	if d.conda != nil {
		fmt.Fprintf(b, "ENV PATH=%s/bin:$PATH\nENV AZUREML_CONDA_ENVIRONMENT_PATH=%s\n", CondaPrefix, CondaPrefix)
	}
}

// editable says whether a package is installed as a link to its source in the project.
func (d *Definition) editable() bool {
	return slices.ContainsFunc(d.pip, func(l pipLine) bool { return l.kind == pipEditable && l.local != "" })
}

// quoted makes a word of sh.
func quoted(s string) string {
	if s != "" && strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._/-") == "" {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

// WriteContext writes what the build reads into dir, an empty directory: the files that counted, at
// their paths, with modes 0644 and 0755 and times 0, and the Dockerfile as DockerfileName. The image
// that a build of it gives does not depend on who wrote it where. A file that changed since the
// definition was loaded is refused: it would get into an image of another hash.
func (d *Definition) WriteContext(ctx context.Context, dir string) error {
	if err := d.writeContext(ctx, dir); err != nil {
		return fmt.Errorf("write build context: %w", err)
	}
	return nil
}

func (d *Definition) writeContext(ctx context.Context, dir string) error {
	left, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	if len(left) > 0 {
		return refuse(rollout.ReasonInvalid, "", "give an empty directory", "%s is not empty", dir)
	}
	t, err := openTree(d.dir)
	if err != nil {
		return err
	}
	defer t.close()
	out, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer func() { _ = out.Close() }()
	t.given = d.given
	w := contextWriter{from: t, to: out}
	for _, e := range d.context.sorted() {
		if err := w.entry(ctx, e, e.path); err != nil {
			return err
		}
	}
	for _, e := range d.packages.sorted() {
		if err := w.entry(ctx, e, packagesDir+"/"+e.path); err != nil {
			return err
		}
	}
	for _, p := range d.sources {
		if err := w.source(p); err != nil {
			return err
		}
	}
	for _, l := range d.sourceLinks {
		target := packagesDir + "/" + l.path
		if _, err := w.to.Lstat(target); err == nil {
			continue
		}
		if err := w.entry(ctx, l, target); err != nil {
			return err
		}
	}
	if err := w.write(DockerfileName, d.Dockerfile()); err != nil {
		return err
	}
	// It takes the place of the project's .dockerignore, which has done its work, and keeps the Dockerfile from
	// what COPY . copies.
	if err := w.write(DockerfileName+".dockerignore", []byte(DockerfileName+"*\n")); err != nil {
		return err
	}
	return w.finish()
}

// contextWriter writes a build context.
type contextWriter struct {
	from *tree
	to   *os.Root
	dirs []string // that were made, parents first
}

// parents makes the directories above a path, with a mode that no umask changes.
func (w *contextWriter) parents(p string) error {
	dir := path.Dir(p)
	if dir == "." || slices.Contains(w.dirs, dir) {
		return nil
	}
	if err := w.parents(dir); err != nil {
		return err
	}
	if err := w.to.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if err := w.to.Chmod(dir, 0o755); err != nil {
		return err
	}
	w.dirs = append(w.dirs, dir)
	return nil
}

func (w *contextWriter) changed(p string) error {
	return refuse(rollout.ReasonConflict, "", "load the environment again", "%s has changed since the environment was loaded", shown(p))
}

func (w *contextWriter) entry(ctx context.Context, e entry, target string) error {
	if err := w.parents(target); err != nil {
		return err
	}
	if e.mode == modeLink {
		if is, err := w.from.root.Readlink(e.path); err != nil || is != e.value {
			return w.changed(e.path)
		}
		return w.to.Symlink(e.value, target)
	}
	if data, given := w.from.given[e.path]; given {
		return w.create(target, 0o644, bytes.NewReader(data))
	}
	in, err := w.from.root.OpenFile(e.path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return w.changed(e.path)
	}
	if err != nil {
		return err
	}
	defer func() { _ = in.Close() }()
	perm := fs.FileMode(0o644)
	if e.mode == modeExec {
		perm = 0o755
	}
	h := sha256.New()
	if err := w.create(target, perm, io.TeeReader(readerWithContext{ctx, in}, h)); err != nil {
		return err
	}
	if hex.EncodeToString(h.Sum(nil)) != e.value {
		return w.changed(e.path)
	}
	return nil
}

// source writes one of the definition's own files as it was read.
func (w *contextWriter) source(s source) error {
	target := packagesDir + "/" + s.path
	if _, err := w.to.Lstat(target); err == nil {
		return nil // it is in a directory that counted as a whole
	}
	return w.write(target, s.data)
}

func (w *contextWriter) write(target string, data []byte) error {
	if err := w.parents(target); err != nil {
		return err
	}
	return w.create(target, 0o644, bytes.NewReader(data))
}

func (w *contextWriter) create(target string, perm fs.FileMode, r io.Reader) (err error) {
	f, err := w.to.OpenFile(target, os.O_WRONLY|os.O_CREATE|os.O_EXCL, perm)
	if err != nil {
		return err
	}
	defer func() {
		if cerr := f.Close(); err == nil {
			err = cerr
		}
		if err == nil {
			err = w.to.Chtimes(target, time.Unix(0, 0), time.Unix(0, 0))
		}
	}()
	if _, err := io.Copy(f, r); err != nil {
		return err
	}
	return f.Chmod(perm)
}

// finish sets the times of directories, which writing into them changed.
func (w *contextWriter) finish() error {
	for _, dir := range slices.Backward(w.dirs) {
		if err := w.to.Chtimes(dir, time.Unix(0, 0), time.Unix(0, 0)); err != nil {
			return err
		}
	}
	return nil
}
