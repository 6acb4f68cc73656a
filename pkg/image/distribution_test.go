package image_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/validate"

	"github.com/sluice-dev/sluice/pkg/image"
	"github.com/sluice-dev/sluice/rollout"
)

// The tests in this file push to Docker's own registry (the CNCF's Distribution), which `make image-e2e` gets.
const variableDistribution = "SLUICE_TEST_DISTRIBUTION"

// distribution starts that registry, with its data in dir, and gives its address.
func distribution(t *testing.T, dir string) string {
	t.Helper()
	program := os.Getenv(variableDistribution)
	if program == "" {
		t.Skip("needs Docker's registry: run `make image-e2e`")
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	host := ln.Addr().String()
	_ = ln.Close()
	config := filepath.Join(t.TempDir(), "config.yml")
	if err := os.WriteFile(config, fmt.Appendf(nil, "version: 0.1\nlog: {level: error, accesslog: {disabled: true}}\nstorage: {filesystem: {rootdirectory: %q}}\nhttp: {addr: %q}\n", dir, host), 0o644); err != nil {
		t.Fatal(err)
	}
	c := exec.Command(program, "serve", config)
	c.Stdout, c.Stderr = io.Discard, io.Discard
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Process.Kill(); _ = c.Wait() })
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		resp, err := http.Get("http://" + host + "/v2/")
		if err == nil {
			_ = resp.Body.Close()
			return host
		}
		if time.Now().After(end) {
			t.Fatal(err)
		}
	}
}

// whole checks all tags of a repository: each names an image of which everything is there.
func whole(t *testing.T, host, repo string) []string {
	t.Helper()
	parsed, err := name.NewRepository(host + "/" + repo)
	if err != nil {
		t.Fatal(err)
	}
	tags, err := remote.List(parsed)
	if err != nil {
		if strings.Contains(err.Error(), "NAME_UNKNOWN") {
			return nil
		}
		t.Fatal(err)
	}
	for _, tag := range tags {
		img, err := remote.Image(parsed.Tag(tag))
		if err != nil {
			t.Fatalf("tag %s: %v", tag, err)
		}
		m, err := img.Manifest()
		if err != nil {
			t.Fatalf("tag %s: %v", tag, err)
		}
		for _, d := range append(slices.Clone(m.Layers), m.Config) {
			resp, err := http.Head("http://" + host + "/v2/" + repo + "/blobs/" + d.Digest.String())
			if err != nil {
				t.Fatal(err)
			}
			_ = resp.Body.Close()
			if resp.StatusCode != http.StatusOK || resp.ContentLength != d.Size {
				t.Fatalf("tag %s names an image without %s: status %d, %d bytes of %d", tag, d.Digest, resp.StatusCode, resp.ContentLength, d.Size)
			}
		}
	}
	return tags
}

// breaking forwards to a registry, and breaks the connection of the n-th piece if hurt gives n a number of bytes: that many
// of it still arrive. It counts pieces and their bytes that were forwarded.
func breaking(t *testing.T, to string, hurt func(n int64) (after int64, breaks bool)) (host string, pieces, forwarded *atomic.Int64) {
	t.Helper()
	pieces, forwarded = &atomic.Int64{}, &atomic.Int64{}
	proxy := &httputil.ReverseProxy{
		ErrorLog: log.New(io.Discard, "", 0),
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(&url.URL{Scheme: "http", Host: to})
			r.Out.Host = r.In.Host // by which the registry makes addresses
		},
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodPatch || r.ContentLength <= 0 {
			proxy.ServeHTTP(w, r)
			return
		}
		after, breaks := hurt(pieces.Add(1))
		if !breaks {
			forwarded.Add(r.ContentLength)
			proxy.ServeHTTP(w, r)
			return
		}
		if after > 0 {
			forwarded.Add(after)
			r.Body = io.NopCloser(io.MultiReader(io.LimitReader(r.Body, after), broken{}))
			proxy.ServeHTTP(httptest.NewRecorder(), r)
		}
		panic(http.ErrAbortHandler)
	}))
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	t.Cleanup(server.Close)
	return strings.TrimPrefix(server.URL, "http://"), pieces, forwarded
}

// TestDistributionGoesOn: a connection that breaks between pieces costs one of them. This registry does not go on with what it
// has of a piece that broke inside: then the layer is sent again, and the image arrives all the same.
func TestDistributionGoesOn(t *testing.T) {
	const size = 200 * mib
	dir := project(t)
	weights(t, filepath.Join(dir, "model/a.bin"), size, 1)
	for name, c := range map[string]struct {
		hurt func(n int64) (int64, bool)
		most int64
	}{
		"every third, before it arrives": {func(n int64) (int64, bool) { return 0, n%3 == 0 }, size + mib},
		"the fifth, inside":              {func(n int64) (int64, bool) { return 5 * mib, n == 5 }, size + 5*16*mib},
	} {
		t.Run(name, func(t *testing.T) {
			host := distribution(t, t.TempDir())
			through, pieces, forwarded := breaking(t, host, c.hurt)
			r := newRegistry(t)
			s := r.shipper(t)
			s.Registry = through + "/models"
			var said []string
			s.Progress = func(format string, args ...any) { said = append(said, fmt.Sprintf(format, args...)) }
			out := ship(t, s, dir)
			t.Logf("%d MiB in %d pieces, %d MiB forwarded", size/mib, pieces.Load(), forwarded.Load()/mib)
			// The runner's layer is sent whole.
			if n := forwarded.Load(); pieces.Load() < 13 || n < size || n > c.most+20*mib {
				t.Errorf("%d MiB were forwarded, want at most %d; said %q", n/mib, c.most/mib, said)
			}
			img, err := remote.Image(mustDigest(t, strings.Replace(out.Image, through, host, 1)))
			if err != nil {
				t.Fatal(err)
			}
			if err := validate.Image(img, validate.Fast); err != nil {
				t.Error(err)
			}
			whole(t, host, "models/fraud")
		})
	}
}

func mustDigest(t *testing.T, ref string) name.Digest {
	t.Helper()
	d, err := name.NewDigest(ref)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// variableShip makes the test's own program ship a project and end: so that a push can be killed.
const variableShip = "SLUICE_TEST_SHIP"

// shipAndExit is that program. Its arguments stand in the variable, with | between them.
func shipAndExit(args string) {
	a := strings.Split(args, "|")
	s := image.Shipper{Registry: a[0], RunnerFile: a[1], BaseImage: a[2], CacheDir: a[3]}
	if _, err := s.Ship(context.Background(), a[4]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// TestDistributionKilled: a push that is killed at any moment leaves no tag that names an incomplete image, and the next
// one finishes.
func TestDistributionKilled(t *testing.T) {
	host := distribution(t, t.TempDir())
	r := newRegistry(t)
	s := r.shipper(t)
	dir, cache := project(t), t.TempDir()
	run := func(after time.Duration) (killed bool, took time.Duration) {
		t.Helper()
		c := exec.Command(os.Args[0])
		c.Env = append(os.Environ(), variableShip+"="+strings.Join([]string{host + "/models", s.RunnerFile, s.BaseImage, cache, dir}, "|"))
		var said strings.Builder
		c.Stderr = &said
		began := time.Now()
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		if after > 0 {
			defer time.AfterFunc(after, func() { _ = c.Process.Kill() }).Stop()
		}
		err := c.Wait()
		var exit *exec.ExitError
		if errors.As(err, &exit) && exit.ExitCode() == -1 {
			return true, time.Since(began)
		}
		if err != nil {
			t.Fatalf("%v: %s", err, said.String())
		}
		return false, time.Since(began)
	}
	// One new layer is sent in pieces, the others whole.
	weights(t, filepath.Join(dir, "model/a.bin"), 66*mib, 1)
	change := func(seed uint64) {
		weights(t, filepath.Join(dir, "model/b.bin"), 34*mib, seed+1000)
		write(t, dir, "src/score.py", fmt.Sprintf("pass # %d", seed))
	}
	change(0)
	_, takes := run(0)
	want := len(whole(t, host, "models/fraud"))
	if want != 1 {
		t.Fatalf("%d tags after one push", want)
	}
	random := rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 1)) //nolint:gosec // times of kills
	kills, between := 0, 0
	for i := uint64(1); kills < 50; i++ {
		if i > 200 {
			t.Fatalf("only %d of %d pushes were killed before they ended", kills, i)
		}
		change(i)
		killed, _ := run(time.Duration(random.Int64N(int64(takes))))
		tags := len(whole(t, host, "models/fraud"))
		if killed {
			kills++
		}
		if tags == want && killed {
			between++ // the image is not there yet
		}
		if _, took := run(0); took < takes {
			takes = (takes + took) / 2
		}
		want++
		if tags := whole(t, host, "models/fraud"); len(tags) != want {
			t.Fatalf("%d tags after %d finished pushes", len(tags), want)
		}
	}
	t.Logf("50 pushes were killed, %d of them before the image had its tag; each was finished by the next", between)
	if between < 20 {
		t.Errorf("only %d kills came while there was something to lose", between)
	}
}

// TestDistributionDiskFull: a registry that can store nothing more is an error that says so, with no tag left.
func TestDistributionDiskFull(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to mount a small file system")
	}
	small := t.TempDir()
	if out, err := exec.Command("mount", "-t", "tmpfs", "-o", "size=60m", "sluice-test", small).CombinedOutput(); err != nil {
		t.Skipf("no small file system: %v %s", err, out)
	}
	host := ""
	t.Cleanup(func() { _ = exec.Command("umount", "-l", small).Run() })
	host = distribution(t, filepath.Join(small))
	r := newRegistry(t)
	s := r.shipper(t)
	s.Registry = host + "/models"
	dir := project(t)
	weights(t, filepath.Join(dir, "model/a.bin"), 80*mib, 1)
	_, err := s.Ship(t.Context(), dir)
	if reason := rollout.ReasonOf(err); err == nil || reason != rollout.ReasonRegistryUnreachable && reason != rollout.ReasonRegistryRefused || !strings.Contains(err.Error(), host) {
		t.Errorf("%v, want an error of the registry", err)
	}
	t.Log(err)
	if tags := whole(t, host, "models/fraud"); len(tags) > 0 {
		t.Errorf("tags %q name what is not there", tags)
	}
	if out, err := exec.Command("mount", "-o", "remount,size=300m", small).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	ship(t, s, dir)
	if tags := whole(t, host, "models/fraud"); len(tags) != 1 {
		t.Errorf("tags %q", tags)
	}
}
