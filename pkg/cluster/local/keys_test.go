package local_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sluice-dev/sluice/pkg/access"
	"github.com/sluice-dev/sluice/pkg/cluster"
	"github.com/sluice-dev/sluice/pkg/cluster/clustertest"
	"github.com/sluice-dev/sluice/pkg/cluster/local"
	"github.com/sluice-dev/sluice/rollout"
)

func newKeys(t *testing.T, dir string) *local.Keys {
	t.Helper()
	k, err := local.NewKeys(dir, discard())
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func newHashes(t *testing.T, dir string) *local.KeyHashes {
	t.Helper()
	h, err := local.NewKeyHashes(dir, discard())
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func TestKeys(t *testing.T) {
	t.Run("one process", func(t *testing.T) {
		clustertest.Keys(t, func(t *testing.T) (cluster.Keys, cluster.KeyHashes) {
			k := newKeys(t, t.TempDir())
			return k, k
		})
	})
	t.Run("a router of its own", func(t *testing.T) {
		clustertest.Keys(t, func(t *testing.T) (cluster.Keys, cluster.KeyHashes) {
			dir := t.TempDir()
			return newKeys(t, dir), newHashes(t, dir)
		})
	})
}

func TestKeyFilesAreClosedToOthers(t *testing.T) {
	dir := t.TempDir()
	k := newKeys(t, dir)
	made, err := k.EnsureKeys(t.Context(), fraud)
	if err != nil {
		t.Fatal(err)
	}
	secretFiles := 0
	if err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || p == dir {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has mode %s", p, info.Mode())
		}
		if d.Type().IsRegular() {
			data, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			if strings.Contains(string(data), made.Primary) || strings.Contains(string(data), made.Secondary) {
				secretFiles++
				if !strings.HasPrefix(p, filepath.Join(dir, "keys")+"/") {
					t.Errorf("%s holds a key", p)
				}
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if secretFiles != 1 {
		t.Errorf("%d files hold keys, want 1", secretFiles)
	}

	path := filepath.Join(dir, "keys", "models", "fraud.json")
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := k.Keys(t.Context(), fraud); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("a file that others could read has now mode %s, %v", info.Mode(), err)
	}
}

func TestKeysSecretsStayOutOfErrors(t *testing.T) {
	dir := t.TempDir()
	k := newKeys(t, dir)
	if _, err := k.EnsureKeys(t.Context(), fraud); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "keys", "models", "fraud.json"), []byte(`{"primary": hunter2}`), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := k.Keys(t.Context(), fraud)
	if err == nil || errors.Is(err, cluster.ErrNotFound) || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("damaged keys: %v; want an error that quotes nothing", err)
	}
	if _, err := k.EnsureKeys(t.Context(), fraud); err == nil {
		t.Error("EnsureKeys replaced damaged keys, which clients may still hold, unasked")
	}
	if err := k.PutKeys(t.Context(), fraud, access.NewKeys()); err != nil {
		t.Errorf("put over damaged keys: %v", err)
	}
}

func TestHashesAreMended(t *testing.T) {
	dir := t.TempDir()
	k := newKeys(t, dir)
	other := rollout.Key{Namespace: "models", Name: "other"}
	a, err := k.EnsureKeys(t.Context(), fraud)
	if err != nil {
		t.Fatal(err)
	}
	b, err := k.EnsureKeys(t.Context(), other)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "keyhashes.json")
	for name, damage := range map[string]func() error{
		"gone":     func() error { return os.Remove(path) },
		"not JSON": func() error { return os.WriteFile(path, []byte("{"), 0o600) },
		"too long": func() error {
			return os.WriteFile(path, []byte(`{"endpoints":{"models/fraud":["`+strings.Repeat("a", 80)+`"]}}`), 0o600)
		},
		"one short": func() error { return os.WriteFile(path, []byte(`{"endpoints":{}}`), 0o600) }, // a crash between the two writes
	} {
		t.Run(name, func(t *testing.T) {
			if err := damage(); err != nil {
				t.Fatal(err)
			}
			fresh := newKeys(t, dir)
			for _, key := range []rollout.Key{fraud, other} {
				if _, err := fresh.EnsureKeys(t.Context(), key); err != nil {
					t.Fatal(err)
				}
			}
			m, err := newHashes(t, dir).KeyHashes(t.Context())
			if err != nil || !access.Allows(m[fraud], a.Primary) || !access.Allows(m[other], b.Secondary) || len(m) != 2 {
				t.Errorf("hashes: %v, %v", m, err)
			}
		})
	}
}

func TestHashesOutliveTheirFile(t *testing.T) {
	dir := t.TempDir()
	k := newKeys(t, dir)
	made, err := k.EnsureKeys(t.Context(), fraud)
	if err != nil {
		t.Fatal(err)
	}
	var log recorder
	router, err := local.NewKeyHashes(dir, log.logger())
	if err != nil {
		t.Fatal(err)
	}
	check := func(what string) {
		t.Helper()
		m, err := router.KeyHashes(t.Context())
		if err != nil || !access.Allows(m[fraud], made.Primary) {
			t.Errorf("%s: %v, %v", what, m, err)
		}
	}
	check("at first")
	path := filepath.Join(dir, "keyhashes.json")
	if err := os.WriteFile(path, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	for range 5 {
		check("with a damaged file")
	}
	if n := strings.Count(log.String(), "cannot be read"); n != 1 {
		t.Errorf("logged %d times, want once:\n%s", n, log.String())
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	check("without the file")
	if _, err := newHashes(t, dir).KeyHashes(t.Context()); err != nil {
		t.Errorf("a new router without the file: %v", err)
	}
	if err := os.WriteFile(path, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := newHashes(t, dir).KeyHashes(t.Context()); err == nil {
		t.Error("a new router takes a damaged file for no keys")
	}
}

func TestKeysAcrossProcesses(t *testing.T) {
	dir := t.TempDir()
	watcher := process(t, "hashes", dir)
	out, err := watcher.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := watcher.Start(); err != nil {
		t.Fatal(err)
	}
	sc := bufio.NewScanner(out)
	counts := make(chan string, 100)
	go func() {
		defer close(counts)
		for sc.Scan() {
			counts <- sc.Text()
		}
	}()
	if first := <-counts; first != "0" {
		t.Fatalf("the watcher began with %s endpoints", first)
	}
	keys := map[string]bool{}
	for range 4 {
		b, err := process(t, "ensure", dir).Output()
		if err != nil {
			t.Fatal(err)
		}
		keys[string(b)] = true
	}
	if len(keys) != 1 {
		t.Errorf("4 processes got %d different keys", len(keys))
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	for {
		select {
		case n := <-counts:
			if n == "1" {
				return
			}
		case <-ctx.Done():
			t.Fatal("the watching process did not see the keys within 5s")
		}
	}
}

func TestLock(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	l, err := local.Lock(dir)
	if err != nil {
		t.Fatal(err)
	}
	_, err = local.Lock(dir)
	if !errors.Is(err, local.ErrLocked) || !strings.Contains(err.Error(), fmt.Sprintf("process %d", os.Getpid())) {
		t.Errorf("second lock: %v; want ErrLocked naming process %d", err, os.Getpid())
	}
	if err := l(); err != nil {
		t.Fatal(err)
	}

	cmd := process(t, "hold", dir)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	_, err = local.Lock(dir)
	if !errors.Is(err, local.ErrLocked) || !strings.Contains(err.Error(), fmt.Sprintf("process %d", cmd.Process.Pid)) {
		t.Errorf("lock held by another process: %v; want ErrLocked naming process %d", err, cmd.Process.Pid)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	l, err = local.Lock(dir)
	if err != nil {
		t.Fatalf("lock after its holder was killed: %v", err)
	}
	if err := l(); err != nil {
		t.Error(err)
	}
}
