package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"golang.org/x/sync/errgroup"

	"github.com/sluice-dev/sluice/rollout"
)

const (
	// inPiecesFrom is the size from which a layer is sent in pieces, so that a broken connection costs one of them.
	inPiecesFrom = 32 << 20
	// pieceSize is a trade of memory against the time that a piece's answer takes.
	pieceSize = 8 << 20
	// maxPiece is the most that a registry may ask a piece to be; with uploadsAtOnce it bounds memory.
	maxPiece = 24 << 20
	// uploadsAtOnce bounds memory, and connections.
	uploadsAtOnce = 3
	// uploadTries without progress end an upload; the pause before the first is firstPause, then twice the one before.
	uploadTries = 7
	firstPause  = 200 * time.Millisecond
	// maxMute is how often a session may fail to say where it stands before another is begun.
	maxMute = 2
	// maxPause is the longest, whatever a registry asks for.
	maxPause = 30 * time.Second
)

// answerWithin is how long a registry may take for an answer: at the end of an upload some copy all of it.
var answerWithin = map[string]time.Duration{
	http.MethodHead: time.Minute, http.MethodGet: time.Minute, http.MethodPost: time.Minute, http.MethodPatch: 5 * time.Minute, http.MethodPut: 15 * time.Minute,
}

// uploads sends large layers to a repository in pieces (OCI distribution specification, "Pushing a blob in
// chunks"), and goes on where a connection broke. The library's own writing sends all of a blob in one
// request, which for gigabytes seldom ends well.
type uploads struct {
	Client
	repo name.Repository
	// turn has a buffer for each upload that may still begin.
	turn chan []byte

	mu     sync.Mutex
	client *http.Client
}

func (c Client) uploads(repo name.Repository) *uploads {
	u := &uploads{Client: c, repo: repo, turn: make(chan []byte, uploadsAtOnce)}
	for range uploadsAtOnce {
		u.turn <- nil // made when it is first needed
	}
	return u
}

// errWhole is for registries that do not take a blob in pieces.
var errWhole = errors.New("the registry takes no pieces")

// errSource is what a layer could not be read for.
type errSource struct{ err error }

func (e errSource) Error() string { return "read layer: " + e.err.Error() }
func (e errSource) Unwrap() error { return e.err }

// send a layer, if it is large and the registry does not have it. Errors are those of Push.
func (u *uploads) send(ctx context.Context, l v1.Layer) error {
	size, err := l.Size()
	if err != nil || size < u.sized(inPiecesFrom) {
		return err
	}
	if err = u.open(ctx); err == nil {
		up := &upload{uploads: u, layer: l, size: size, piece: u.sized(pieceSize), told: time.Now()}
		err = up.send(ctx)
	}
	var source errSource
	switch {
	case err == nil || errors.Is(err, errWhole):
		return nil
	case errors.As(err, &source):
		doing := "push to " + u.repo.Name()
		if err := brokenOff(err, fieldRegistry, doing); err != nil {
			return err
		}
		return fmt.Errorf("%s: %w", doing, err)
	}
	return failure(err, fieldRegistry, "push to "+u.repo.Name(), u.repo.Registry, rollout.ReasonRegistryRefused)
}

// sendAll sends layers, several at once.
func (u *uploads) sendAll(ctx context.Context, layers []v1.Layer) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(jobs)
	for _, l := range layers {
		g.Go(func() error { return u.send(ctx, l) })
	}
	return g.Wait()
}

// open logs in, once.
func (u *uploads) open(ctx context.Context) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.client != nil {
		return nil
	}
	auth, err := authn.Resolve(ctx, u.keychain(), u.repo)
	if err != nil {
		return err
	}
	// HTTP/1.1: a stream of HTTP/2 shares its connection's window with the others, and is reset by proxies that
	// have had enough of a large one.
	base, ok := remote.DefaultTransport.(*http.Transport)
	if !ok {
		return errors.New("the default transport is none")
	}
	base = base.Clone()
	base.ForceAttemptHTTP2 = false
	base.Protocols = new(http.Protocols)
	base.Protocols.SetHTTP1(true)
	var counted http.RoundTripper = base
	if u.session != nil {
		counted = countedTransport{base, &u.session.sent}
	}
	for tries := 1; ; tries++ {
		t, err := transport.NewWithContext(ctx, u.repo.Registry, auth, counted, []string{u.repo.Scope(transport.PushScope)})
		if err == nil {
			u.client = &http.Client{Transport: t}
			return nil
		}
		if tries == uploadTries || !mayPass(err) || ctx.Err() != nil {
			return withoutURL(err)
		}
		select {
		case <-time.After(firstPause << (tries - 1)):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// upload is one layer's.
type upload struct {
	*uploads
	layer v1.Layer
	size  int64
	// at is the session's address, empty before it has begun; done bytes are there.
	at    *url.URL
	done  int64
	piece int64
	// from reads the layer from where it is.
	from   io.ReadCloser
	fromAt int64
	buf    []byte
	told   time.Time
	// mute is how often in a row the session did not say where it stands.
	mute int
	// odd is how often it was said that a piece does not belong where the answer before had put it.
	odd int
}

func (up *upload) send(ctx context.Context) (err error) {
	digest, err := up.layer.Digest()
	if err != nil {
		return err
	}
	defer func() {
		if up.from != nil {
			_ = up.from.Close()
		}
	}()
	blob := up.url("blobs/" + digest.String())
	if there, err := up.there(ctx, blob); err == nil && there {
		return nil
	}
	select {
	case up.buf = <-up.turn:
		defer func() { up.turn <- up.buf }()
	case <-ctx.Done():
		return ctx.Err()
	}
	var best int64
	for tries := 0; ; {
		var wait time.Duration
		if wait, err = up.run(ctx, digest); err != nil && ctx.Err() == nil {
			// What came to its end may have been answered into a broken connection.
			if there, e := up.there(ctx, blob); e == nil && there {
				return nil
			}
		}
		if err == nil || errors.Is(err, errWhole) || !mayPass(err) || ctx.Err() != nil {
			return err
		}
		if up.done > best {
			best, tries = up.done, 0
		}
		if tries++; tries >= uploadTries {
			if refusesPieces(err) {
				return errWhole
			}
			return err
		}
		wait = min(max(wait, firstPause<<(tries-1)), maxPause)
		up.progress("push to %s: %v; trying again in %s, with %d of %d MB sent", up.repo.Name(), err, wait, up.done>>20, up.size>>20)
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// mayPass tells whether it may work the next time.
func mayPass(err error) bool {
	var known *rollout.Error
	var again errAgain
	var said *transport.Error
	switch {
	case errors.As(err, &known):
		return false
	case errors.As(err, &again):
		return true
	case !errors.As(err, &said):
		return true // the connection's
	}
	switch said.StatusCode {
	case http.StatusRequestTimeout, http.StatusTooManyRequests, http.StatusNotFound, http.StatusRequestedRangeNotSatisfiable:
		return true // the session's, too
	}
	return said.StatusCode >= http.StatusInternalServerError
}

func (u *uploads) url(path string) string {
	return u.repo.Scheme() + "://" + u.repo.RegistryStr() + "/v2/" + u.repo.RepositoryStr() + "/" + path
}

// do gives the answer if its status is one of want; its body is read and closed.
func (u *uploads) do(ctx context.Context, method, address string, body []byte, header http.Header, want ...int) (*http.Response, time.Duration, error) {
	within, cancel := context.WithTimeout(ctx, answerWithin[method])
	defer cancel()
	req, err := http.NewRequestWithContext(within, method, address, bytes.NewReader(body))
	if err != nil {
		return nil, 0, withoutURL(err)
	}
	for k, v := range header {
		req.Header[k] = v
	}
	req.Header.Set("User-Agent", "sluice")
	resp, err := u.client.Do(req)
	if err != nil {
		if within.Err() != nil && ctx.Err() == nil {
			return nil, 0, fmt.Errorf("%s: no answer within %s", method, answerWithin[method])
		}
		return nil, 0, fmt.Errorf("%s: %w", method, withoutURL(err)) // the address has the session's secret
	}
	defer func() { _ = resp.Body.Close() }()
	if err := transport.CheckError(resp, want...); err != nil {
		seconds, _ := strconv.Atoi(resp.Header.Get("Retry-After"))
		var said *transport.Error
		if errors.As(err, &said) {
			said.Request = nil // its address has the session's secret, too
		}
		return nil, time.Duration(max(seconds, 0)) * time.Second, fmt.Errorf("%s: %w", method, err)
	}
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 64<<10))
	return resp, 0, nil
}

func (up *upload) there(ctx context.Context, blob string) (bool, error) {
	_, _, err := up.do(ctx, http.MethodHead, blob, nil, nil, http.StatusOK)
	if err == nil {
		return true, nil
	}
	var said *transport.Error
	if errors.As(err, &said) && said.StatusCode < http.StatusInternalServerError && said.StatusCode != http.StatusTooManyRequests {
		return false, nil // also 401 and 403, which some say of what is not there
	}
	return false, err
}

// run sends what is missing. wait is what the registry asks for before the next try.
func (up *upload) run(ctx context.Context, digest v1.Hash) (wait time.Duration, err error) {
	if wait, err := up.begin(ctx); err != nil {
		return wait, err
	}
	for up.done < up.size {
		if wait, err := up.next(ctx); err != nil {
			return wait, err
		}
	}
	q := up.at.Query()
	q.Set("digest", digest.String())
	end := *up.at
	end.RawQuery = q.Encode()
	_, wait, err = up.do(ctx, http.MethodPut, end.String(), nil, nil, http.StatusCreated, http.StatusNoContent)
	return wait, err
}

// begin asks where a session stands, or begins one.
func (up *upload) begin(ctx context.Context) (time.Duration, error) {
	if up.at != nil {
		wait, gone, err := up.resume(ctx)
		if err == nil {
			up.mute = 0
			return 0, nil
		}
		if up.mute++; !gone && up.mute < maxMute {
			return wait, err
		}
		if gone {
			up.at = nil
		}
	}
	resp, wait, err := up.do(ctx, http.MethodPost, up.url("blobs/uploads/"), nil, nil, http.StatusAccepted)
	if err != nil {
		return wait, err // if the registry is away as a whole, the session may come back with it
	}
	up.at, up.done, up.mute = nil, 0, 0
	if n, err := strconv.ParseInt(resp.Header.Get("OCI-Chunk-Min-Length"), 10, 64); err == nil && n > up.piece {
		if n > maxPiece {
			return 0, errWhole
		}
		up.piece = n
	}
	if n, err := strconv.ParseInt(resp.Header.Get("OCI-Chunk-Max-Length"), 10, 64); err == nil && n > 0 && n < up.piece {
		up.piece = n
	}
	return 0, up.located(resp)
}

// resume asks where the session stands. gone says that there is none any more.
func (up *upload) resume(ctx context.Context) (wait time.Duration, gone bool, err error) {
	resp, wait, err := up.do(ctx, http.MethodGet, up.at.String(), nil, nil, http.StatusNoContent, http.StatusOK)
	if err == nil {
		return 0, false, up.stands(resp)
	}
	var said *transport.Error
	gone = errors.As(err, &said) && said.StatusCode < http.StatusInternalServerError && said.StatusCode != http.StatusTooManyRequests
	return wait, gone, err
}

// located takes the session's address from an answer; it changes with each.
func (up *upload) located(resp *http.Response) error {
	at, err := resp.Location()
	if err != nil {
		if up.at != nil && errors.Is(err, http.ErrNoLocation) {
			return nil
		}
		return fmt.Errorf("read where to send to: %w", err)
	}
	up.at = at
	return nil
}

// stands takes from an answer how much is there: "Range: 0-LAST", or none for nothing.
func (up *upload) stands(resp *http.Response) error {
	if resp.Header.Get("Range") == "" {
		up.done = 0
		return up.located(resp)
	}
	last, ok := strings.CutPrefix(strings.TrimPrefix(resp.Header.Get("Range"), "bytes="), "0-")
	n, err := strconv.ParseInt(last, 10, 64)
	switch {
	case !ok || err != nil || n >= up.size:
		return fmt.Errorf("read how much is there: the registry said %q", resp.Header.Get("Range"))
	case n == 0:
		up.done = 0 // "0-0" is what registries say of nothing
	default:
		up.done = n + 1
	}
	return up.located(resp)
}

// next sends a piece.
func (up *upload) next(ctx context.Context) (time.Duration, error) {
	n := min(up.piece, up.size-up.done)
	if err := up.read(n); err != nil {
		return 0, err
	}
	header := http.Header{
		"Content-Type": {"application/octet-stream"}, "Content-Range": {fmt.Sprintf("%d-%d", up.done, up.done+n-1)},
	}
	resp, wait, err := up.do(ctx, http.MethodPatch, up.at.String(), up.buf[:n], header, http.StatusAccepted, http.StatusNoContent, http.StatusCreated, http.StatusOK)
	if err != nil {
		if refusesPieces(err) {
			// The first one: it takes none. A later one: perhaps where it was to begin was not what the registry has; but not twice.
			if up.odd++; up.done == 0 || up.odd > 1 {
				return 0, errWhole
			}
			return wait, errAgain{err}
		}
		return wait, err
	}
	// What the answer says of how much is there is not looked at: registries differ in what they say, and the digest
	// at the end decides.
	up.done += n
	if err := up.located(resp); err != nil {
		return 0, err
	}
	if time.Since(up.told) >= reportEvery {
		up.told = time.Now()
		up.progress("push to %s: %d of %d MB of a layer", up.repo.Name(), up.done>>20, up.size>>20)
	}
	return 0, nil
}

// errAgain is a refusal that a look at the session may mend.
type errAgain struct{ error }

func (e errAgain) Unwrap() error { return e.error }

// refusesPieces tells whether it is the piece that is refused, and not the blob.
func refusesPieces(err error) bool {
	var said *transport.Error
	if !errors.As(err, &said) {
		return false
	}
	switch said.StatusCode {
	case http.StatusBadRequest, http.StatusMethodNotAllowed, http.StatusLengthRequired, http.StatusRequestedRangeNotSatisfiable, http.StatusUnsupportedMediaType, http.StatusNotImplemented:
		return true
	}
	return false
}

// read fills the buffer with the n bytes from done on. A connection may have broken behind a piece that is not
// there: then the layer is read again from its beginning.
func (up *upload) read(n int64) error {
	if int64(cap(up.buf)) < n {
		up.buf = make([]byte, n)
	}
	err := up.readOn(n)
	if err != nil {
		if up.from != nil {
			_ = up.from.Close()
			up.from = nil
		}
		return errSource{err}
	}
	up.fromAt = up.done + n
	return nil
}

func (up *upload) readOn(n int64) error {
	if up.from == nil || up.fromAt > up.done {
		if up.from != nil {
			_ = up.from.Close()
		}
		var err error
		if up.from, err = up.layer.Compressed(); err != nil {
			return err
		}
		up.fromAt = 0
	}
	if skip := up.done - up.fromAt; skip > 0 {
		if _, err := io.CopyN(io.Discard, up.from, skip); err != nil {
			return err
		}
	}
	_, err := io.ReadFull(up.from, up.buf[:n])
	return err
}
