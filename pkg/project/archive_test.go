package project

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-dev/sluice/rollout"
)

// archive writes the archive of the project in dir into memory.
func archive(t testing.TB, dir string) ([]byte, Archive) {
	t.Helper()
	var b bytes.Buffer
	a, err := Write(context.Background(), &b, mustPlan(t, dir))
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(b.Bytes())
	if a.Digest != "sha256:"+hex.EncodeToString(sum[:]) || a.Size != int64(b.Len()) {
		t.Errorf("%+v, but the archive has %d bytes with the digest %x", a, b.Len(), sum)
	}
	return b.Bytes(), a
}

// golden is a project with one of everything, written out here so that its digest can be fixed.
func golden() map[string]string {
	return map[string]string{
		"sluice.yaml": simple + "models: [{name: b, version: \"2\", path: model/}, {name: a, version: \"1\", path: one.bin}]\n",
		"score.py":    "import os\n", "run.sh": "#!/bin/sh\n", "empty": "", "model/w.bin": "weights", "model/deep/x": "x", "one.bin": "1",
		"link": "->score.py", "a-b": "-", "a/b": "/", "a.b": ".", "ä/ö": "umlauts", strings.Repeat("long/", 30) + "name": "x",
		strings.Repeat("n", 120): "y", "model/link": "->w.bin", "dangling": "->" + strings.Repeat("t", 120),
	}
}

// TestArchiveGolden fixes the archive's bytes: another digest here, be it by another
// version of Go, means another archive for every project, and a line in the changelog.
func TestArchiveGolden(t *testing.T) {
	b, a := archive(t, files(t, t.TempDir(), golden()))
	const want = "sha256:65de3fd02b5adc1b7b5e2f0ce54483a21b07d85e1a37a2f3deb58f5f60fadd18"
	if a.Digest != want {
		t.Errorf("the digest is %s, not %s", a.Digest, want)
	}
	var got []string
	tr := tar.NewReader(bytes.NewReader(b))
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if !h.ModTime.Equal(time.Unix(0, 0)) || h.Uid != 0 || h.Gid != 0 || h.Uname != "" || h.Gname != "" || !h.AccessTime.IsZero() || !h.ChangeTime.IsZero() {
			t.Errorf("%s tells something of this machine: %+v", h.Name, h)
		}
		content, err := io.ReadAll(tr)
		if err != nil {
			t.Fatal(err)
		}
		name, target := strings.ReplaceAll(h.Name, "long/long", "ll"), strings.ReplaceAll(h.Linkname, "tttttttttt", "T")
		got = append(got, fmt.Sprintf("%c %o %s %s%q", h.Typeflag, h.Mode, name, target, content))
	}
	long := strings.ReplaceAll(strings.Repeat("long/", 30), "long/long", "ll")
	wantEntries := []string{
		`0 644 a-b "-"`, `0 644 a.b "."`, `0 644 a/b "/"`, `2 777 dangling TTTTTTTTTTTT""`, `0 644 empty ""`, `2 777 link score.py""`,
		`0 644 ` + long + `name "x"`, `0 644 model/deep/x "x"`, `2 777 model/link w.bin""`, `0 644 model/w.bin "weights"`,
		`0 644 ` + strings.Repeat("n", 120) + ` "y"`, `0 644 one.bin "1"`, `0 755 run.sh "#!/bin/sh\n"`, `0 644 score.py "import os\n"`,
		fmt.Sprintf("0 644 sluice.yaml %q", golden()["sluice.yaml"]), `0 644 ä/ö "umlauts"`,
		`2 777 .sluice/models/a/1/one.bin ../../../../one.bin""`, `2 777 .sluice/models/b/2/deep/x ../../../../../model/deep/x""`,
		`2 777 .sluice/models/b/2/link ../../../../model/link""`, `2 777 .sluice/models/b/2/w.bin ../../../../model/w.bin""`,
	}
	if d := cmp.Diff(wantEntries, got); d != "" {
		t.Error(d)
	}
	if a.Files != 16 {
		t.Errorf("%d files", a.Files)
	}
}

// TestArchiveReproducible writes the same content in other orders, with other times,
// umasks, owners and modes, and at other paths.
func TestArchiveReproducible(t *testing.T) {
	content := golden()
	_, want := archive(t, files(t, t.TempDir(), content))
	names := make([]string, 0, len(content))
	for name := range content {
		names = append(names, name)
	}
	for i, umask := range []int{0o022, 0o077, 0o000, 0o027} {
		slices.Sort(names)
		rand.New(rand.NewPCG(1, uint64(i))).Shuffle(len(names), func(a, b int) { names[a], names[b] = names[b], names[a] })
		dir := filepath.Join(t.TempDir(), strings.Repeat("another path/", i), "p")
		old := syscall.Umask(umask)
		for _, name := range names {
			files(t, dir, map[string]string{name: content[name]})
		}
		files(t, dir, map[string]string{"empty directory/": "", "another/empty/one/": ""})
		syscall.Umask(old)
		err := filepath.WalkDir(dir, func(p string, e fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			if e.Type().IsRegular() {
				// Other bits than the owner's x mean nothing.
				info, err := e.Info()
				if err != nil {
					return err
				}
				mode := info.Mode().Perm()&0o700 | fs.FileMode(i*0o11)
				if i == 3 {
					mode |= fs.ModeSetuid
				}
				if err := os.Chmod(p, mode); err != nil {
					return err
				}
				if err := os.Chtimes(p, time.Unix(int64(i)*1e8, 5), time.Unix(int64(i)*1e9, 123)); err != nil {
					return err
				}
			}
			if os.Getuid() == 0 {
				return os.Lchown(p, 1000+i, 2000+i)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if _, got := archive(t, dir); got != want {
			t.Errorf("umask %o: %+v, want %+v", umask, got, want)
		}
	}
}

// TestArchiveChanges: whatever makes a difference to a replica makes another digest.
func TestArchiveChanges(t *testing.T) {
	_, was := archive(t, files(t, t.TempDir(), golden()))
	seen := map[string]string{was.Digest: "nothing"}
	for name, change := range map[string]map[string]string{
		"content": {"empty": "x"}, "a new file": {"new": ""}, "a mode": {"score.py": "#!import os\n"}, "a target": {"link": "->run.sh"},
		"a link for a file": {"empty": "->score.py"}, "the manifest": {"sluice.yaml": golden()["sluice.yaml"] + "# comment\n"}, "a moved file": {"model/moved": "1"},
	} {
		content := golden()
		for p, c := range change {
			content[p] = c
		}
		_, now := archive(t, files(t, t.TempDir(), content))
		if same, dup := seen[now.Digest]; dup {
			t.Errorf("%s has the digest of %s", name, same)
		}
		seen[now.Digest] = name
	}
}

// TestArchiveRandomTrees: what is extracted is what shipped, and archives to the same bytes again.
func TestArchiveRandomTrees(t *testing.T) {
	for seed := range uint64(30) {
		r := rand.New(rand.NewPCG(seed, 2))
		rt := newRandomTree(r, gitIgnore)
		content := map[string]string{}
		for _, f := range rt.files {
			if strings.Contains(f, "\xff") {
				continue
			}
			content[f] = strings.Repeat("x", r.IntN(100_000))
			if r.IntN(4) == 0 {
				content[f] = "#!" + f
			}
		}
		for p, c := range rt.rules {
			if !strings.Contains(p, "\xff") {
				content[p] = c
			}
		}
		content["sluice.yaml"], content["zz/score.py"] = head+"include: [zz/score.py]\nscoring: {entryScript: score.py, sourceDirectory: zz}\n", "x"
		dir := files(t, t.TempDir(), content)
		l := mustPlan(t, dir)
		var b bytes.Buffer
		a, err := Write(t.Context(), &b, l)
		if err != nil {
			t.Fatal(err)
		}
		to := filepath.Join(t.TempDir(), "x")
		if err := Extract(t.Context(), &b, to, ExtractOptions{Digest: a.Digest, Unsynced: true}); err != nil {
			t.Fatal(err)
		}
		shipped := 0
		for e, err := range l.Entries(t.Context()) {
			if err != nil {
				t.Fatal(err)
			}
			if e.Action != Ship {
				continue
			}
			shipped++
			got, err := os.ReadFile(filepath.Join(to, e.Path))
			if err != nil || string(got) != content[e.Path] {
				t.Errorf("%q: %d bytes, want %d (%v)", e.Path, len(got), len(content[e.Path]), err)
			}
		}
		if shipped != a.Files || countFiles(t, to) != shipped {
			t.Errorf("%d files ship, %d are in the archive, %d were extracted", shipped, a.Files, countFiles(t, to))
		}
		if _, again := archive(t, to); again != a {
			t.Errorf("the extracted archive gives %+v, not %+v", again, a)
		}
	}
}

func countFiles(t testing.TB, dir string) int {
	t.Helper()
	n := 0
	err := filepath.WalkDir(dir, func(_ string, e fs.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			n++
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// onFirst calls f at the first write.
type onFirst struct {
	w io.Writer
	f func()
	n int
}

func (o *onFirst) Write(p []byte) (int, error) {
	if o.n++; o.n == 1 {
		o.f()
	}
	return o.w.Write(p)
}

// sparse makes a file of that size which takes no room.
func sparse(t testing.TB, p string, size int64) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(p)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.Truncate(size), f.Close()); err != nil {
		t.Fatal(err)
	}
}

// TestArchiveOfChangingFiles changes a file that is larger than the read-ahead while it is read.
func TestArchiveOfChangingFiles(t *testing.T) {
	const size = 4 * readAhead * pieceSize
	for name, change := range map[string]func(p string) error{
		"shorter": func(p string) error { return os.Truncate(p, size/2) },
		"longer":  func(p string) error { return os.Truncate(p, size+1) },
		"other content": func(p string) error {
			f, err := os.OpenFile(p, os.O_WRONLY, 0)
			if err != nil {
				return err
			}
			_, err = f.WriteAt([]byte("x"), size-1)
			return errors.Join(err, f.Close(), os.Chtimes(p, time.Time{}, time.Unix(1e9, 0)))
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := files(t, t.TempDir(), map[string]string{"sluice.yaml": simple, "score.py": "x"})
			p := filepath.Join(dir, "big")
			sparse(t, p, size)
			l := mustPlan(t, dir)
			_, err := Write(t.Context(), &onFirst{w: io.Discard, f: func() {
				if err := change(p); err != nil {
					t.Error(err)
				}
			}}, l)
			if rollout.ReasonOf(err) != rollout.ReasonUnsafeFile || !strings.Contains(err.Error(), "big changed while it was read") {
				t.Errorf("%v", err)
			}
		})
	}
}

func TestWriteStops(t *testing.T) {
	dir := files(t, t.TempDir(), map[string]string{"sluice.yaml": simple, "score.py": "x"})
	sparse(t, filepath.Join(dir, "big"), 64<<20)
	l := mustPlan(t, dir)
	before := runtime.NumGoroutine()
	if _, err := Write(t.Context(), failWriter{}, l); err == nil || !strings.Contains(err.Error(), "the disk is full") {
		t.Errorf("a writer that fails: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	if _, err := Write(ctx, &onFirst{w: io.Discard, f: cancel}, l); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	// A refusal that appears between Plan and Write still refuses.
	if err := os.WriteFile(filepath.Join(dir, ".env"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := Write(t.Context(), io.Discard, l); rollout.ReasonOf(err) != rollout.ReasonSecretFile {
		t.Errorf("a secret that came later: %v", err)
	}
	for deadline := time.Now().Add(10 * time.Second); runtime.NumGoroutine() > before; runtime.Gosched() {
		if time.Now().After(deadline) {
			t.Fatalf("%d goroutines, %d before", runtime.NumGoroutine(), before)
		}
	}
}

// TestArchiveMemory: memory does not grow with the tree. A gigabyte stands for ten.
func TestArchiveMemory(t *testing.T) {
	const limit = 64 << 20
	dir := files(t, t.TempDir(), map[string]string{"sluice.yaml": simple, "score.py": "x"})
	size := int64(1 << 30)
	if testing.Short() {
		size = 256 << 20
	}
	for i := range 8 {
		sparse(t, filepath.Join(dir, fmt.Sprintf("big/%d.bin", i)), size/8)
	}
	for i := range 40 {
		for j := range 100 {
			sparse(t, filepath.Join(dir, fmt.Sprintf("small/%d/%d", i, j)), 100)
		}
	}
	peak := watchMemory(t)
	start := time.Now()
	a, err := Write(t.Context(), io.Discard, mustPlan(t, dir))
	if err != nil {
		t.Fatal(err)
	}
	took := time.Since(start)
	heap, sys := peak()
	t.Logf("%d MiB in %v (%.0f MiB/s): heap peaked at %.1f MiB, memory from the system grew by %.1f MiB",
		a.Size>>20, took.Round(time.Millisecond), float64(a.Size>>20)/took.Seconds(), float64(heap)/(1<<20), float64(sys)/(1<<20))
	if heap > limit || sys > limit {
		t.Errorf("heap %d, growth %d: more than %d bytes", heap, sys, limit)
	}
	if a.Size < size {
		t.Errorf("the archive has %d bytes", a.Size)
	}
}

// watchMemory samples the heap until the returned function is called, which gives the
// highest heap in use above the one at the beginning, and how much more memory the
// program has from the system.
func watchMemory(t testing.TB) (peak func() (heap, sys uint64)) {
	t.Helper()
	runtime.GC()
	var first runtime.MemStats
	runtime.ReadMemStats(&first)
	var heap, sys atomic.Uint64
	stop, done := make(chan struct{}), make(chan struct{})
	sample := func() {
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		heap.Store(max(heap.Load(), m.HeapInuse-min(m.HeapInuse, first.HeapInuse)))
		sys.Store(max(sys.Load(), m.Sys-min(m.Sys, first.Sys)))
	}
	go func() {
		defer close(done)
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				sample()
			case <-stop:
				sample()
				return
			}
		}
	}()
	return func() (uint64, uint64) {
		close(stop)
		<-done
		return heap.Load(), sys.Load()
	}
}

// BenchmarkArchive measures writing an archive to nowhere and to a file; `sha256sum`
// on the same files is what it is compared with.
func BenchmarkArchive(b *testing.B) {
	for _, shape := range []struct {
		name  string
		count int
		size  int64
	}{{"8x64MiB", 8, 64 << 20}, {"2000x64KiB", 2000, 64 << 10}, {"5000x1KiB", 5000, 1 << 10}} {
		dir := files(b, b.TempDir(), map[string]string{"sluice.yaml": simple, "score.py": "x"})
		buf := make([]byte, shape.size)
		r := rand.NewChaCha8([32]byte{1})
		for i := range shape.count {
			if _, err := r.Read(buf); err != nil {
				b.Fatal(err)
			}
			p := filepath.Join(dir, fmt.Sprintf("data/%d/%d", i/100, i))
			if err := errors.Join(os.MkdirAll(filepath.Dir(p), 0o755), os.WriteFile(p, buf, 0o644)); err != nil {
				b.Fatal(err)
			}
		}
		l := mustPlan(b, dir)
		b.Run(shape.name+"/discard", func(b *testing.B) {
			b.SetBytes(int64(shape.count) * shape.size)
			for b.Loop() {
				if _, err := Write(b.Context(), io.Discard, l); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(shape.name+"/file", func(b *testing.B) {
			b.SetBytes(int64(shape.count) * shape.size)
			out, err := os.Create(filepath.Join(b.TempDir(), "out.tar"))
			if err != nil {
				b.Fatal(err)
			}
			for b.Loop() {
				if _, err := out.Seek(0, io.SeekStart); err != nil {
					b.Fatal(err)
				}
				if _, err := Write(b.Context(), out, l); err != nil {
					b.Fatal(err)
				}
			}
			_ = out.Close()
		})
		b.Run(shape.name+"/plan", func(b *testing.B) {
			for b.Loop() {
				if _, err := Plan(b.Context(), dir, l.manifest); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
