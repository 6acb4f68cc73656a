// Package registry is an image registry for one machine: the OCI distribution specification over
// plain HTTP, with images in a directory.
//
// The work is olareg's, which keeps each repository as an OCI image layout. What is here makes it a
// server that one process runs, that ends without losing what is under way, and that tidies up after one that was
// killed.
package registry

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/gofrs/flock"
	"github.com/olareg/olareg"
	"github.com/olareg/olareg/config"

	"github.com/sluice-dev/sluice/rollout"
)

const (
	// keepUnnamed is how long blobs that no image has are kept, and uploads that nobody goes on with: longer than any
	// push takes.
	keepUnnamed = 24 * time.Hour
	// drain is how long requests that are under way get when the server ends.
	drain = 5 * time.Second

	lockName = ".lock"
)

// Listen listens on HOST:PORT. Registries have no users and no passwords here, so that an address which others
// than this machine reach is refused, with a *rollout.Error, unless anywhere is set.
func Listen(ctx context.Context, address string, anywhere bool) (net.Listener, error) {
	at, err := net.ResolveTCPAddr("tcp", address)
	if err != nil {
		return nil, &rollout.Error{Reason: rollout.ReasonInvalid, Field: "--listen", Message: fmt.Sprintf("%q is no address: %v", address, err), Hint: "write it as HOST:PORT, such as 127.0.0.1:5000"}
	}
	if !anywhere && !at.IP.IsLoopback() {
		return nil, &rollout.Error{
			Reason: rollout.ReasonInvalid, Field: "--listen", Message: fmt.Sprintf("%s is reached from other machines, and everybody who reaches the registry may change what is in it", address),
			Hint: "listen on 127.0.0.1, or say --anywhere if the network is yours alone",
		}
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", at.String())
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, &rollout.Error{Reason: rollout.ReasonConflict, Field: "--listen", Message: address + " is in use", Hint: "use what listens there, if it is a registry, or another port: --listen 127.0.0.1:5001"}
	}
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", address, err)
	}
	return l, nil
}

// Serve serves the images in dir, which it makes, until ctx ends; it closes l. Nothing is lost of what was answered
// with success, also if the process is killed: blobs, manifests and tags appear whole or not at all, and a manifest is
// refused until all that it names is there. (A machine that loses its power may lose the last seconds.) Two processes cannot serve one
// directory: the second gets a *rollout.Error with reason conflict. log may be nil; ready are called once nothing stands in
// the way of serving.
func Serve(ctx context.Context, l net.Listener, dir string, log *slog.Logger, ready ...func()) (err error) {
	defer func() { _ = l.Close() }()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("open registry: %w", err)
	}
	lock := flock.New(filepath.Join(dir, lockName))
	switch got, err := lock.TryLock(); {
	case err != nil:
		return fmt.Errorf("open registry: lock %s: %w", dir, err)
	case !got:
		return &rollout.Error{Reason: rollout.ReasonConflict, Field: "--dir", Message: "another process serves " + dir, Hint: "use that one, or another directory"}
	}
	defer func() { _ = lock.Unlock() }()
	if err := tidy(dir); err != nil {
		return fmt.Errorf("open registry: %w", err)
	}
	yes, no := true, false
	images := olareg.New(config.Config{
		Log: log,
		Storage: config.ConfigStorage{
			StoreType: config.StoreDir, RootDir: dir,
			// Endpoints name images by digest: those without a tag stay.
			GC: config.ConfigGC{GracePeriod: keepUnnamed, Untagged: &no},
		},
		// A blob that is deleted would take images with it: blobs go by themselves, once no image has them.
		API: config.ConfigAPI{DeleteEnabled: &yes, Blob: config.ConfigAPIBlob{DeleteEnabled: &no}},
	})
	turns := &turns{images: images, dir: dir}
	// Whoever reaches an address of this machine alone is on it, but for a browser that a page of somebody else's sends here by a
	// name of theirs.
	own := loopback(l.Addr())
	// Requests hold it for reading; whoever has it for writing knows that none is under way.
	var busy sync.RWMutex
	closed := false
	server := &http.Server{
		ReadHeaderTimeout: 10 * time.Second,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			busy.RLock()
			defer busy.RUnlock()
			switch {
			case closed:
			case own && !ownName(r.Host):
				http.Error(w, "this registry is for this machine, by the names localhost and 127.0.0.1", http.StatusMisdirectedRequest)
			default:
				turns.ServeHTTP(w, r)
			}
		}),
	}
	if log != nil {
		server.ErrorLog = slog.NewLogLogger(log.Handler(), slog.LevelWarn)
	}
	for _, f := range ready {
		f()
	}
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(l) }()
	select {
	case err = <-ended:
		err = fmt.Errorf("serve registry: %w", err)
	case <-ctx.Done():
		late, cancel := context.WithTimeout(context.WithoutCancel(ctx), drain)
		defer cancel()
		_ = server.Shutdown(late)
	}
	_ = server.Close()
	busy.Lock() // soon: their connections are closed
	closed = true
	busy.Unlock()
	if e := images.Close(); e != nil && log != nil {
		// It has tidied up less than it could have; it says that of repositories that were asked for in vain, too.
		log.Debug("the registry did not close cleanly", "error", e)
	}
	return err
}

func loopback(a net.Addr) bool {
	at, ok := a.(*net.TCPAddr)
	return ok && at.IP.IsLoopback()
}

// ownName says of a request's Host whether it is a name that no other than this machine has.
func ownName(host string) bool {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	host = strings.ToLower(strings.TrimSuffix(strings.Trim(host, "[]"), "."))
	ip := net.ParseIP(host)
	return host == "localhost" || strings.HasSuffix(host, ".localhost") || ip != nil && ip.IsLoopback() // RFC 6761, section 6.3
}

// tidy removes what a process that was killed had not finished: uploads, whose sessions it alone knew,
// and indexes on their way to their place.
func tidy(dir string) error {
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && d.Name() == "_uploads": // no part of a repository's name begins like that
			if err := os.RemoveAll(path); err != nil {
				return err
			}
			return fs.SkipDir
		case d.IsDir() && d.Name() == "blobs":
			return fs.SkipDir
		case d.Type().IsRegular() && strings.HasPrefix(d.Name(), "index.json."):
			return os.Remove(path)
		}
		return nil
	})
}
