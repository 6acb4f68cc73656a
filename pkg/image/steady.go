package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
)

// steadyTries is how often a registry that asks for patience, or whose answer breaks off, is asked before it is given up.
const steadyTries = 5

// backoff of the library's own tries.
func backoff() remote.Backoff {
	return remote.Backoff{Duration: 500 * time.Millisecond, Factor: 2, Jitter: 0.1, Steps: steadyTries}
}

// steady is a transport that waits as long as a registry asks for (Retry-After: RFC 9110, section 10.2.3), and goes on with an
// answer that broke off. What fails before there is an answer, the library tries again itself.
type steady struct{ http.RoundTripper }

// RoundTrip implements http.RoundTripper.
func (t steady) RoundTrip(r *http.Request) (*http.Response, error) {
	for tries := 1; ; tries++ {
		resp, err := t.RoundTripper.RoundTrip(r)
		if err != nil {
			return nil, err
		}
		wait, asked := patience(resp)
		if !asked {
			return t.resuming(r, resp), nil
		}
		if hasBody(r) && r.GetBody == nil {
			// It cannot be sent again from here. The library does, and must not before it is time.
			if err := pause(r.Context(), wait); err != nil {
				_ = resp.Body.Close()
				return nil, err
			}
			return resp, nil
		}
		if tries == steadyTries {
			defer func() { _ = resp.Body.Close() }()
			return nil, errBusy{transport.CheckError(resp, http.StatusOK)}
		}
		_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 64<<10))
		_ = resp.Body.Close()
		if err := pause(r.Context(), wait); err != nil {
			return nil, err
		}
		if r, err = again(r); err != nil {
			return nil, err
		}
	}
}

// errBusy is what a registry that stays busy said. It is not temporary to the library, which would begin anew.
type errBusy struct{ error }

func (e errBusy) Unwrap() error { return e.error }

func hasBody(r *http.Request) bool { return r.Body != nil && r.Body != http.NoBody }

// again is the request as it was before it was sent.
func again(r *http.Request) (*http.Request, error) {
	next := r.Clone(r.Context())
	if !hasBody(r) {
		return next, nil
	}
	var err error
	if next.Body, err = r.GetBody(); err != nil {
		return nil, fmt.Errorf("send again: %w", err)
	}
	return next, nil
}

// patience is how long an answer asks to wait, if it does.
func patience(resp *http.Response) (time.Duration, bool) {
	said := resp.Header.Get("Retry-After")
	if said == "" || resp.StatusCode != http.StatusTooManyRequests && resp.StatusCode != http.StatusServiceUnavailable {
		return 0, false
	}
	wait := time.Duration(0)
	if seconds, err := strconv.Atoi(said); err == nil {
		wait = time.Duration(min(max(seconds, 0), int(maxPause/time.Second))) * time.Second
	} else if at, err := http.ParseTime(said); err == nil {
		wait = time.Until(at)
	}
	return min(max(wait, firstPause), maxPause), true
}

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// resuming is an answer whose body goes on where it breaks off, if it has one that a registry can be asked for again.
func (t steady) resuming(r *http.Request, resp *http.Response) *http.Response {
	if r.Method == http.MethodGet && resp.StatusCode == http.StatusOK {
		resp.Body = &resumed{t: t.RoundTripper, request: r, first: resp, body: resp.Body}
	}
	return resp
}

// resumed is the body of an answer.
type resumed struct {
	t       http.RoundTripper
	request *http.Request
	first   *http.Response
	body    io.ReadCloser
	// n bytes have come; err is what the body broke off with.
	n   int64
	err error
	// whole says that ranges are refused.
	whole bool
}

// errBroken is an answer that broke off, and stayed so.
type errBroken struct {
	what string
	n    int64
	err  error
}

func (e errBroken) Error() string {
	return fmt.Sprintf("%s breaks off after %d bytes: %v", e.what, e.n, e.err)
}
func (e errBroken) Unwrap() error { return e.err }

// Read implements io.Reader.
func (b *resumed) Read(p []byte) (int, error) {
	for tries := 1; ; tries++ {
		if b.err == nil {
			n, err := b.body.Read(p)
			b.n += int64(n)
			if err == nil || errors.Is(err, io.EOF) {
				return n, err
			}
			if size := b.first.ContentLength; size > 0 && b.n >= size {
				return n, io.EOF // that was all; some say of a part that it is as long as the whole
			}
			b.err = err
			if n > 0 {
				return n, nil
			}
		}
		if err := b.request.Context().Err(); err != nil {
			return 0, err
		}
		if tries == steadyTries {
			return 0, errBroken{b.what(), b.n, b.err}
		}
		if err := pause(b.request.Context(), firstPause<<tries); err != nil {
			return 0, err
		}
		if err := b.resume(); err != nil {
			var final errFinal
			if errors.As(err, &final) {
				return 0, errBroken{b.what(), b.n, final.error}
			}
			b.err = err
		}
	}
}

// Close implements io.Closer.
func (b *resumed) Close() error { return b.body.Close() }

// what is read, without an address that it was sent on to: that may be signed.
func (b *resumed) what() string {
	r := b.request
	for r.Response != nil && r.Response.Request != nil {
		r = r.Response.Request
	}
	return r.URL.Host + strings.TrimPrefix(r.URL.Path, "/v2")
}

// errFinal is an answer that no further try will change.
type errFinal struct{ error }

// resume asks for what is missing.
func (b *resumed) resume() error {
	next := b.request.Clone(b.request.Context())
	// What was unpacked on the way cannot be asked for by its bytes.
	if b.n > 0 && !b.first.Uncompressed && !b.whole {
		next.Header.Set("Range", fmt.Sprintf("bytes=%d-", b.n))
	}
	resp, err := b.t.RoundTrip(next)
	if err != nil {
		return err
	}
	skip := int64(0)
	switch {
	case !same(b.first, resp):
		err = errFinal{errors.New("it is another one meanwhile")}
	case resp.StatusCode == http.StatusPartialContent && strings.HasPrefix(resp.Header.Get("Content-Range"), fmt.Sprintf("bytes %d-", b.n)):
	case resp.StatusCode == http.StatusOK:
		skip = b.n
	case resp.StatusCode == http.StatusRequestedRangeNotSatisfiable && !b.whole:
		b.whole = true // some know no range without an end
		_ = resp.Body.Close()
		return b.resume()
	case resp.StatusCode >= http.StatusInternalServerError || resp.StatusCode == http.StatusTooManyRequests:
		err = fmt.Errorf("status %d", resp.StatusCode)
	default: // such as 401: whoever logged in has to do it again
		err = errFinal{fmt.Errorf("status %d to what is missing of it", resp.StatusCode)}
	}
	if err == nil {
		_, err = io.CopyN(io.Discard, resp.Body, skip)
	}
	if err != nil {
		_ = resp.Body.Close()
		return err
	}
	_ = b.body.Close()
	b.body, b.err = resp.Body, nil
	return nil
}

// same tells whether two answers are of the same content, as far as they say. Digests decide that in the end, but a tag has none.
func same(a, b *http.Response) bool {
	for _, name := range []string{"Docker-Content-Digest", "Etag"} {
		if x, y := a.Header.Get(name), b.Header.Get(name); x != "" && y != "" && x != y {
			return false
		}
	}
	return true
}
