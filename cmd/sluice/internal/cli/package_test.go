//go:build unix

package cli

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

func names(t *testing.T, archive io.Reader) []string {
	t.Helper()
	var out []string
	for r := tar.NewReader(archive); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, h.Name)
	}
}

var shipped = []string{"score.py", "sluice.yaml"}

// What is no regular file is written to and stays what it is.
func TestPackageWritesThroughSpecialFiles(t *testing.T) {
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(fifo, link); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{fifo, link} {
		reader, err := os.OpenFile(fifo, os.O_RDWR, 0) // so that opening it to write does not wait
		if err != nil {
			t.Fatal(err)
		}
		got := make(chan []string, 1)
		go func() { got <- names(t, reader) }()
		if code, out, errs := runCLI(t, "package", tree(t), "-o", name); code != 0 {
			t.Fatalf("exit code %d: %s%s", code, out, errs)
		}
		if info, err := os.Lstat(fifo); err != nil || info.Mode()&fs.ModeNamedPipe == 0 {
			t.Fatalf("the pipe became %v, %v", info.Mode(), err)
		}
		if n := <-got; !slices.Equal(n, shipped) {
			t.Errorf("through %s came %v", name, n)
		}
		reader.Close()
	}
}

// An archive follows the links at its place, and only what they lead to is replaced.
func TestPackageFollowsLinks(t *testing.T) {
	dir, far := t.TempDir(), t.TempDir()
	for name, to := range map[string]string{filepath.Join(dir, "a"): "b", filepath.Join(dir, "b"): filepath.Join(far, "x.tar")} {
		if err := os.Symlink(to, name); err != nil {
			t.Fatal(err)
		}
	}
	for _, what := range []string{"a new file", "a file"} {
		if code, _, errs := runCLI(t, "package", tree(t), "-o", filepath.Join(dir, "a")); code != 0 {
			t.Fatal(what, code, errs)
		}
		for _, l := range []string{"a", "b"} {
			if info, err := os.Lstat(filepath.Join(dir, l)); err != nil || info.Mode()&fs.ModeSymlink == 0 {
				t.Errorf("%s: the link %s was replaced: %v", what, l, err)
			}
		}
		f, err := os.Open(filepath.Join(far, "x.tar"))
		if err != nil {
			t.Fatal(what, err)
		}
		if n := names(t, f); !slices.Equal(n, shipped) {
			t.Errorf("%s holds %v", what, n)
		}
		f.Close()
	}
	if left, _ := filepath.Glob(filepath.Join(far, ".*")); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

// An archive never ships in itself, nor do an earlier one at its place and the link to it.
func TestPackageTwiceIntoTheProject(t *testing.T) {
	dir := tree(t)
	if err := os.Symlink("x.tar", filepath.Join(dir, "latest")); err != nil {
		t.Fatal(err)
	}
	t.Chdir(dir)
	var digests []string
	for _, out := range []string{"x.tar", "x.tar", "latest"} {
		code, stdout, errs := runCLI(t, "package", ".", "-o", out, "-o", "json")
		if code != 0 {
			t.Fatal(code, errs)
		}
		var said struct{ Digest string }
		if err := json.Unmarshal([]byte(stdout), &said); err != nil {
			t.Fatal(err)
		}
		digests = append(digests, said.Digest)
		f, err := os.Open("x.tar")
		if err != nil {
			t.Fatal(err)
		}
		if n := names(t, f); slices.Contains(n, "x.tar") {
			t.Errorf("-o %s ships %v", out, n)
		}
		f.Close()
	}
	if digests[1] != digests[2] {
		t.Errorf("the digests %v, want the same by either name", digests)
	}
	if code, _, errs := runCLI(t, "package", ".", "-o", "score.py"); code != exitRefused || !strings.Contains(errs, "score.py is a part of the project") {
		t.Errorf("over the script: %d, %s", code, errs)
	}
	if text, err := os.ReadFile("score.py"); err != nil || !strings.HasPrefix(string(text), "def init") {
		t.Errorf("the script is %q, %v", text, err)
	}
	if code, _, errs := runCLI(t, "package", ".", "-o", t.TempDir()); code != exitRefused || !strings.Contains(errs, "is a directory") {
		t.Errorf("over a directory: %d, %s", code, errs)
	}
}

// On standard output the archive is alone: what is said of it goes to standard error.
func TestPackageToStdout(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	got := make(chan []byte, 1)
	go func() { b, _ := io.ReadAll(r); got <- b }()
	name := "/dev/fd/" + strconv.Itoa(int(w.Fd()))
	var errs bytes.Buffer
	code := Main(t.Context(), []string{"package", tree(t), "-o", name}, IO{In: strings.NewReader(""), Out: w, Err: &errs, Env: []string{"SLUICE_STATE=" + t.TempDir()}})
	w.Close()
	b := <-got
	if code != 0 || !slices.Equal(names(t, bytes.NewReader(b)), shipped) || bytes.Contains(b, []byte("digest")) || !strings.Contains(errs.String(), "digest") {
		t.Errorf("exit code %d, %d bytes, and it says %s", code, len(b), &errs)
	}
}

// TestInterrupted: what was ended says so, and is no mistake of Sluice's.
func TestInterrupted(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var errs bytes.Buffer
	code := Main(ctx, []string{"package", tree(t), "-o", "json"}, IO{In: strings.NewReader(""), Out: io.Discard, Err: &errs})
	if code != exitFailed || !strings.Contains(errs.String(), `"reasonCode":"interrupted"`) || strings.Contains(errs.String(), "canceled") {
		t.Errorf("%d: %s", code, errs.String())
	}
}
