//go:build bench

package image_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/moby/buildkit/client"
	"github.com/tonistiigi/fsutil"

	"github.com/sluice-dev/sluice/pkg/image"
	projects "github.com/sluice-dev/sluice/pkg/project"
)

// counted forwards connections to a registry and counts what is sent to it.
func counted(t *testing.T, to string) (host string, sent *atomic.Int64) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ln.Close() })
	sent = &atomic.Int64{}
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				s, err := net.Dial("tcp", to)
				if err != nil {
					_ = c.Close()
					return
				}
				go func() { _, _ = io.Copy(c, s); _ = c.Close() }()
				_, _ = io.Copy(countingWriter{s, sent}, c)
				_ = s.Close()
			}()
		}
	}()
	return ln.Addr().String(), sent
}

type countingWriter struct {
	io.Writer
	n *atomic.Int64
}

func (w countingWriter) Write(p []byte) (int, error) {
	n, err := w.Writer.Write(p)
	w.n.Add(int64(n))
	return n, err
}

// resident is the sum of what processes have in memory, in bytes. pids are asked for each time.
func resident(pids []int) int64 {
	var sum int64
	for _, pid := range pids {
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err != nil {
			continue
		}
		for _, line := range strings.Split(string(data), "\n") {
			if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
				n, _ := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(rest, "kB")), 10, 64)
				sum += n << 10
			}
		}
	}
	return sum
}

// peak runs f and gives the most that the processes had in memory meanwhile.
func peak(pids func() []int, f func()) int64 {
	stop, most := make(chan struct{}), make(chan int64)
	go func() {
		var m int64
		for {
			m = max(m, resident(pids()))
			select {
			case <-stop:
				most <- m
				return
			case <-time.After(10 * time.Millisecond):
			}
		}
	}()
	f()
	close(stop)
	return <-most
}

// named are the processes of a program.
func named(program string) []int {
	var out []int
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, d := range dirs {
		if comm, err := os.ReadFile(d + "/comm"); err == nil && strings.HasPrefix(program, strings.TrimSpace(string(comm))) && len(comm) > 1 {
			pid, _ := strconv.Atoi(filepath.Base(d))
			out = append(out, pid)
		}
	}
	return out
}

// variableBuild makes the test's own program have BuildKit build and push, as buildctl would, and end.
const variableBuild = "SLUICE_TEST_BUILD"

func init() {
	args := os.Getenv(variableBuild)
	if args == "" {
		return
	}
	a := strings.Split(args, "|")
	if err := buildAndPush(context.Background(), a[0], a[1], a[2], a[3], a[4]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

func buildAndPush(ctx context.Context, address, dir, dockerfile, target, compression string) error {
	bk, err := client.New(ctx, address)
	if err != nil {
		return err
	}
	defer bk.Close()
	files, err := fsutil.NewFS(dir)
	if err != nil {
		return err
	}
	docker, err := fsutil.NewFS(dockerfile)
	if err != nil {
		return err
	}
	status := make(chan *client.SolveStatus)
	go func() {
		for range status { //nolint:revive // nobody looks
		}
	}()
	_, err = bk.Solve(ctx, nil, client.SolveOpt{
		Frontend: "dockerfile.v0", SharedKey: "bench",
		LocalMounts: map[string]fsutil.FS{"context": files, "dockerfile": docker},
		Exports: []client.ExportEntry{{Type: client.ExporterImage, Attrs: map[string]string{
			"name": target, "push": "true", "registry.insecure": "true", "oci-mediatypes": "true",
			// Else what another build has compressed is taken as it is.
			"compression": compression, "force-compression": "true",
		}}},
	}, status)
	return err
}

type figures struct {
	seconds float64
	sent    int64
	memory  int64
}

// TestBenchDeploy ships a model of 2 GiB, then a change of code, then a change of one of its eight files: by Sluice, and by
// BuildKit with a Dockerfile that is made well and one that is not. All push to the same registry, through a counter.
func TestBenchDeploy(t *testing.T) {
	address := os.Getenv("BUILDKIT_HOST")
	if address == "" {
		t.Fatal("needs BuildKit: run `make bench-images`")
	}
	registry := distribution(t, t.TempDir())
	host, sent := counted(t, registry)

	const files, size = 8, 256 << 20
	dir := project(t)
	weight := func(i int, seed uint64) {
		weights(t, filepath.Join(dir, "model", fmt.Sprintf("part-%d.safetensors", i)), size, seed)
	}
	for i := range files {
		weight(i, uint64(i))
	}
	git := func(args ...string) {
		t.Helper()
		c := exec.Command("git", append([]string{"-c", "user.name=t", "-c", "user.email=t@t.example", "-c", "core.compression=0"}, args...)...)
		c.Dir = dir
		if out, err := c.CombinedOutput(); err != nil {
			t.Fatalf("git %q: %v %s", args, err, out)
		}
	}
	// As in a checkout of which the model is not a part, but shipped all the same: its name is that of a commit only if
	// nothing differs, so the weights are tracked too.
	git("init", "-q")
	write(t, dir, "well/Dockerfile", fmt.Sprintf("FROM %s/base:1\nCOPY model /app/model\nCOPY src /app/src\n", host), "all/Dockerfile", fmt.Sprintf("FROM %s/base:1\nCOPY . .\n", host), ".dockerignore", ".git\nwell\nall\n", ".amlignore", "well\nall\n.dockerignore\n")
	git("add", "-A")
	git("commit", "-qm", "1")

	base, err := random.Image(20<<20, 1)
	if err != nil {
		t.Fatal(err)
	}
	layers, err := base.Layers()
	if err != nil {
		t.Fatal(err)
	}
	if base, err = mutate.AppendLayers(empty.Image, layers...); err != nil {
		t.Fatal(err)
	}
	if base, err = mutate.ConfigFile(base, &v1.ConfigFile{OS: "linux", Architecture: runtime.GOARCH, RootFS: must(t)(base.ConfigFile()).RootFS}); err != nil {
		t.Fatal(err)
	}
	tag, err := name.NewTag(host + "/base:1")
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(tag, base); err != nil {
		t.Fatal(err)
	}

	// Each peer is a process of its own, as a command line is.
	var running atomic.Int64
	child := func(variable string, args ...string) {
		c := exec.Command(os.Args[0])
		c.Env = append(os.Environ(), variable+"="+strings.Join(args, "|"))
		c.Stderr = os.Stderr
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		running.Store(int64(c.Process.Pid))
		if err := c.Wait(); err != nil {
			t.Fatal(err)
		}
	}
	buildkit := func(kind, compression string) {
		child(variableBuild, address, dir, filepath.Join(dir, kind), host+"/"+kind+"-"+compression+":1", compression)
	}
	s := newRegistry(t).shipper(t)
	cache := t.TempDir()
	sluice := func() { child(variableShip, host+"/models", s.RunnerFile, host+"/base:1", cache, dir) }
	type peer struct {
		name string
		run  func()
		pids func() []int
	}
	daemon := func() []int { return append(named("buildkitd"), int(running.Load())) }
	peers := []peer{
		{"sluice", sluice, func() []int { return []int{int(running.Load())} }},
		// Uncompressed is the faster by far: gzip, the default, takes a minute for each GiB of weights, and saves nothing.
		{"BuildKit, well-made Dockerfile", func() { buildkit("well", "uncompressed") }, daemon},
		{"BuildKit, COPY . .", func() { buildkit("all", "uncompressed") }, daemon},
	}
	stages := []string{"first deploy", "one line of code", "one weight file of eight"}
	got := map[string]map[string]figures{}
	var old []string
	for i, stage := range stages {
		switch i {
		case 1:
			write(t, dir, "src/score.py", "pass # better")
		case 2:
			weight(3, 99)
		}
		if i > 0 {
			git("commit", "-qam", stage)
		}
		if i == 0 {
			// As files that were not written just now; else they are hashed once more by the second deploy.
			for n := range files {
				old = append(old, filepath.Join(dir, "model", fmt.Sprintf("part-%d.safetensors", n)))
			}
			age(t, old...)
			git("status") // their times changed
		} else {
			age(t)
		}
		got[stage] = map[string]figures{}
		for _, p := range peers {
			before := sent.Load()
			began := time.Now()
			most := peak(p.pids, p.run)
			f := figures{time.Since(began).Seconds(), sent.Load() - before, most}
			got[stage][p.name] = f
			t.Logf("%s, %s: %.2f s, %.2f MiB sent, %d MiB memory", stage, p.name, f.seconds, float64(f.sent)/mib, f.memory/mib)
		}
	}
	var table strings.Builder
	w := tabwriter.NewWriter(&table, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "\t"+strings.Join(stages, "\t"))
	for _, p := range peers {
		fmt.Fprint(w, p.name)
		for _, stage := range stages {
			f := got[stage][p.name]
			fmt.Fprintf(w, "\t%.2f s, %.2f MiB sent, %d MiB memory", f.seconds, float64(f.sent)/mib, f.memory/mib)
		}
		fmt.Fprintln(w)
	}
	_ = w.Flush()
	t.Log("\n" + table.String())
	change := got[stages[1]]
	well := change[peers[1].name].seconds
	us := change["sluice"]
	t.Logf("change of code: %.1f times as fast as the well-made one (goal 5), %.3f MiB sent (goal < 1), memory %d MiB at most in any stage (goal 128)",
		well/us.seconds, float64(us.sent)/mib, max(got[stages[0]]["sluice"].memory, us.memory, got[stages[2]]["sluice"].memory)/mib)
	if us.sent >= mib {
		t.Errorf("%d bytes were sent for a change of code", us.sent)
	}

	// Hashing and packing alone, of files that are in memory already.
	pack, err := projects.Prepare(t.Context(), dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	runner, platform, err := image.RunnerFileLayer(s.RunnerFile)
	if err != nil {
		t.Fatal(err)
	}
	found, err := s.Find(t.Context(), "base", host+"/base:1", platform)
	if err != nil {
		t.Fatal(err)
	}
	best := func(f func()) time.Duration {
		var out time.Duration
		for range 3 {
			began := time.Now()
			f()
			if d := time.Since(began); out == 0 || d < out {
				out = d
			}
		}
		return out
	}
	packing := best(func() {
		if _, err := image.Assemble(t.Context(), image.Parts{Base: found, Runner: runner, Platform: platform, Package: pack}, nil); err != nil {
			t.Fatal(err)
		}
	})
	sum := best(func() {
		if out, err := exec.Command("sh", "-c", "sha256sum "+dir+"/model/*.safetensors").CombinedOutput(); err != nil {
			t.Fatalf("%v %s", err, out)
		}
	})
	rate := func(d time.Duration) float64 { return files * size / mib / d.Seconds() }
	t.Logf("hashing and packing %d MiB: %.0f MiB/s, sha256sum %.0f MiB/s, ratio %.2f (goal 0.8)", files*size/mib, rate(packing), rate(sum), sum.Seconds()/packing.Seconds())
}

func must(t *testing.T) func(*v1.ConfigFile, error) *v1.ConfigFile {
	return func(c *v1.ConfigFile, err error) *v1.ConfigFile {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
}
