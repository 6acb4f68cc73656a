package local

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/sluice-dev/sluice/pkg/project"
	"github.com/sluice-dev/sluice/rollout"
)

// Archives keeps projects as they were shipped, by the SHA-256 of their bytes, and
// the trees unpacked from them. On this machine they are what images are in a
// cluster: NAME@sha256:HEX is the archive of that digest.
type Archives struct {
	archives, projects string
	log                *slog.Logger
	lock               *pathLock
	unpacking          *pathLock
}

// NewArchives uses, and makes if need be, the archives of a state directory.
func NewArchives(dir string, log *slog.Logger) (*Archives, error) {
	dir, err := filepath.Abs(dir) // trees are handed to processes that run elsewhere
	if err != nil {
		return nil, fmt.Errorf("open archives: %w", err)
	}
	a := &Archives{archives: filepath.Join(dir, "archives"), projects: filepath.Join(dir, "projects"), log: log}
	err = errors.Join(makeDir(a.archives), makeDir(a.projects))
	if err == nil {
		a.lock, err = newDirLock(dir, "archives")
	}
	if err == nil {
		a.unpacking, err = newDirLock(dir, "projects")
	}
	if err != nil {
		return nil, fmt.Errorf("open archives: %w", err)
	}
	removeStaleTemps(a.archives)
	removeStaleTemps(a.projects)
	return a, nil
}

const digestPrefix = "sha256:"

var hexPattern = regexp.MustCompile(`^[0-9a-f]{64}$`)

// hexOf is the hexadecimal part of a digest.
func hexOf(digest string) (string, bool) {
	h, is := strings.CutPrefix(digest, digestPrefix)
	return h, is && hexPattern.MatchString(h)
}

// DigestOf is the digest, sha256:HEX, of an image by digest (NAME@sha256:HEX).
func DigestOf(image string) (string, error) {
	_, digest, _ := strings.Cut(image, "@")
	if _, ok := hexOf(digest); !ok {
		return "", &rollout.Error{
			Reason: rollout.ReasonInvalid, Field: "image", Message: fmt.Sprintf("%q is not an image by digest", image),
			Hint: "name the image by digest: NAME@sha256:HEX",
		}
	}
	return digest, nil
}

func (a *Archives) archive(hex string) string { return filepath.Join(a.archives, hex+".tar") }
func (a *Archives) tree(hex string) string    { return filepath.Join(a.projects, hex) }
func (a *Archives) unused(hex string) string  { return filepath.Join(a.archives, hex+".unused") }

// Put stores what r reads as Write does.
func (a *Archives) Put(ctx context.Context, r io.Reader) (digest string, known bool, err error) {
	return a.Write(ctx, func(w io.Writer) error {
		if _, err := io.Copy(w, &contextReader{ctx, r}); err != nil {
			return fmt.Errorf("put archive: %w", err)
		}
		return nil
	})
}

// Write stores the archive that write writes, unless write fails, and returns its
// digest (sha256:HEX). known says that it was there already. Once Write returns, Collect
// leaves the archive alone for its grace period even if nothing names it yet. An error
// of write is returned as it is: most are mistakes in a project, which begin with file and line.
func (a *Archives) Write(ctx context.Context, write func(io.Writer) error) (digest string, known bool, err error) {
	f, err := os.CreateTemp(a.archives, tempPrefix+"put-*")
	if err != nil {
		return "", false, fmt.Errorf("put archive: %w", err)
	}
	defer func() {
		_ = f.Close()
		_ = os.Remove(f.Name())
	}()
	sum := sha256.New()
	if err := write(io.MultiWriter(f, sum)); err != nil {
		return "", false, err
	}
	if err := f.Sync(); err != nil {
		return "", false, fmt.Errorf("put archive: %w", err)
	}
	name := hex.EncodeToString(sum.Sum(nil))
	err = a.lock.with(ctx, func() error {
		if err := remove(a.unused(name)); err != nil {
			return err
		}
		if _, err := os.Lstat(a.archive(name)); err == nil {
			known = true
			return nil
		}
		if err := os.Rename(f.Name(), a.archive(name)); err != nil {
			return err
		}
		return syncDir(a.archives)
	})
	if err != nil {
		return "", false, fmt.Errorf("put archive: %w", err)
	}
	return digestPrefix + name, known, nil
}

// Has says whether an archive is there.
func (a *Archives) Has(digest string) bool {
	h, ok := hexOf(digest)
	if !ok {
		return false
	}
	_, err := os.Lstat(a.archive(h))
	return err == nil
}

// Open reads an archive. One that is not there is refused with image_missing.
func (a *Archives) Open(digest string) (io.ReadCloser, error) {
	h, ok := hexOf(digest)
	if !ok {
		return nil, fmt.Errorf("open archive: %q is not a digest", digest)
	}
	f, err := os.Open(a.archive(h))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, &rollout.Error{
			Reason: rollout.ReasonImageMissing, Field: "image", Message: "there is no archive with digest " + digest + " on this machine",
			Hint: "deploy the version again",
		}
	}
	if err != nil {
		return nil, fmt.Errorf("open archive: %w", err)
	}
	return f, nil
}

// Unpack gives the directory with an archive's files, which it makes if it is not
// there. Of many callers, in any process, one unpacks and the others wait. The tree
// is shared by all replicas of the digest: nothing may write into it but caches that
// are written atomically, as Python's are. An archive that is missing or damaged is
// refused with image_missing.
func (a *Archives) Unpack(ctx context.Context, digest string) (string, error) {
	h, ok := hexOf(digest)
	if !ok {
		return "", fmt.Errorf("unpack archive: %q is not a digest", digest)
	}
	dir := a.tree(h)
	if _, err := os.Lstat(dir); err == nil {
		return dir, nil
	}
	err := a.unpacking.with(ctx, func() error {
		if _, err := os.Lstat(dir); err == nil {
			return nil
		}
		r, err := a.Open(digest)
		if err != nil {
			return err
		}
		defer func() { _ = r.Close() }()
		err = project.Extract(ctx, r, dir, project.ExtractOptions{Digest: digest})
		if rollout.ReasonOf(err) == rollout.ReasonUnsafeFile || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, tar.ErrHeader) {
			return &rollout.Error{
				Reason: rollout.ReasonImageMissing, Field: "image", Message: fmt.Sprintf("the archive %s is damaged: %v", a.archive(h), err),
				Hint: "remove that file and deploy the version again",
			}
		}
		return err
	})
	if err != nil {
		return "", fmt.Errorf("unpack %s: %w", digest, err)
	}
	return dir, nil
}

// Collect removes archives, and their trees, that have not been in use for the
// grace period: that is, of which two or more calls found, over that time, that none of the
// images names them and Put did not store them again. Call it now and then with the
// images of all versions of all endpoints. It returns the digests it removed.
func (a *Archives) Collect(ctx context.Context, images []string, grace time.Duration) ([]string, error) {
	used := map[string]bool{}
	for _, image := range images {
		if digest, err := DigestOf(image); err == nil {
			h, _ := hexOf(digest)
			used[h] = true
		}
	}
	var removed []string
	err := a.lock.with(ctx, func() error {
		found := map[string]bool{}
		for dir, suffix := range map[string]string{a.archives: ".tar", a.projects: ""} {
			entries, err := os.ReadDir(dir)
			if err != nil {
				return err
			}
			for _, e := range entries {
				if h, is := strings.CutSuffix(e.Name(), suffix); is && hexPattern.MatchString(h) {
					found[h] = true
				}
			}
		}
		for h := range found {
			if err := ctx.Err(); err != nil {
				return err
			}
			gone, err := a.collect(ctx, h, used[h], grace)
			if err != nil {
				return err
			}
			if gone {
				removed = append(removed, digestPrefix+h)
			}
		}
		return nil
	})
	if err != nil {
		return removed, fmt.Errorf("collect archives: %w", err)
	}
	return removed, nil
}

func (a *Archives) collect(ctx context.Context, hex string, used bool, grace time.Duration) (bool, error) {
	mark := a.unused(hex)
	if used {
		return false, remove(mark)
	}
	info, err := os.Lstat(mark)
	if errors.Is(err, fs.ErrNotExist) && grace > 0 {
		return false, os.WriteFile(mark, nil, fileMode)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	if info != nil && time.Since(info.ModTime()) < grace {
		return false, nil
	}
	// Renamed first, so that nobody finds half a tree.
	err = a.unpacking.with(ctx, func() error {
		away := filepath.Join(a.projects, tempPrefix+"gone-"+hex)
		if err := os.RemoveAll(away); err != nil {
			return err
		}
		if err := os.Rename(a.tree(hex), away); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return os.RemoveAll(away)
	})
	if err != nil {
		return false, err
	}
	a.log.Info("removed an archive that nothing names any more", "digest", digestPrefix+hex)
	return true, errors.Join(remove(a.archive(hex)), remove(mark))
}

func remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// contextReader ends with ctx's error once ctx ends.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (r *contextReader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.r.Read(p)
}
