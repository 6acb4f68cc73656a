package image

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/sluice-dev/sluice/pkg/project"
	"github.com/sluice-dev/sluice/rollout"
)

// longAgo is when content that is named by its digest last changed.
var longAgo = time.Unix(1, 0)

const (
	downloadTries = 6
	// headerWait is how long a server may take to begin its answer.
	headerWait = time.Minute
	// stallWait is how long nothing may come.
	stallWait = time.Minute
)

// uriPath is an address's path.
func uriPath(uri string) string {
	u, err := url.Parse(uri)
	if err != nil {
		return ""
	}
	return u.Path
}

// download is a file of a server, fetched once, when it is first needed. It goes on where a connection broke. No message
// has the address's query, by which it may be signed.
type download struct {
	client           Client
	field, uri, name string
	model            string
	sum              string
	temporary        func() (*os.File, error)

	once sync.Once
	file string
	err  error
}

// get gives the name of the file, with the content that was asked for.
func (d *download) get(ctx context.Context) (string, error) {
	d.once.Do(func() { d.file, d.err = d.fetch(ctx) })
	return d.file, d.err
}

func (d *download) from() string {
	u, err := url.Parse(d.uri)
	if err != nil {
		return d.name
	}
	return u.Host + u.Path
}

func (d *download) fetch(ctx context.Context) (string, error) {
	f, err := d.temporary()
	if err != nil {
		return "", fmt.Errorf("make file for model: %w", err)
	}
	defer func() { _ = f.Close() }()
	base, ok := http.DefaultTransport.(*http.Transport)
	if !ok {
		return "", errors.New("the default transport is none")
	}
	t := base.Clone()
	t.ResponseHeaderTimeout = headerWait
	t.DisableCompression = true // the digest is the file's
	defer t.CloseIdleConnections()
	client := &http.Client{Transport: t, CheckRedirect: func(r *http.Request, via []*http.Request) error {
		if r.URL.Scheme != "https" || len(via) >= 10 {
			return refuse(rollout.ReasonModelUnreachable, d.field, "give the address that it ends at, if that is https://", "%s leads to an address that is not https://", d.from())
		}
		return nil
	}}
	x := &transfer{download: d, client: client, f: f, h: sha256.New(), told: time.Now()}
	for tries := 0; ; {
		was := x.n
		err := x.run(ctx)
		if err == nil {
			break
		}
		var known *rollout.Error
		if errors.As(err, &known) {
			return "", known
		}
		if ctx.Err() != nil {
			return "", ctx.Err()
		}
		var untrusted *tls.CertificateVerificationError
		if errors.As(err, &untrusted) {
			return "", refuse(rollout.ReasonModelUnreachable, d.field, "check the address; a certificate of your own has to be among those that this machine trusts (or in the file that SSL_CERT_FILE names)",
				"the certificate of %s is not trusted: %v", d.from(), withoutURL(untrusted.Err))
		}
		if errors.Is(err, syscall.ENOSPC) {
			return "", refuse(rollout.ReasonDiskFull, d.field, "free some, or let TMPDIR name a place with more", "no space is left for %s where files are kept for a while", d.name)
		}
		if x.n > was {
			tries = 0
		}
		if tries++; tries >= downloadTries {
			return "", refuse(rollout.ReasonModelUnreachable, d.field, "check the address, and that it can be reached from here", "%s cannot be fetched: %v", d.from(), withoutURL(err))
		}
		d.client.progress("fetching %s: %v; trying again", d.from(), withoutURL(err))
		select {
		case <-time.After(firstPause << tries):
		case <-ctx.Done():
			return "", ctx.Err()
		}
	}
	if is := hex.EncodeToString(x.h.Sum(nil)); is != d.sum && x.resumed {
		// It may have changed between the parts.
		x.n, x.resumed = 0, false
		if err := x.run(ctx); err != nil {
			return "", refuse(rollout.ReasonModelUnreachable, d.field, "check the address, and that it can be reached from here", "%s cannot be fetched: %v", d.from(), withoutURL(err))
		}
	}
	if is := hex.EncodeToString(x.h.Sum(nil)); is != d.sum {
		return "", refuse(rollout.ReasonModelMismatch, strings.TrimSuffix(d.field, "uri")+"sha256", "correct it if the file is the one that is meant",
			"%s has the SHA-256 %s, not %s", d.from(), is, d.sum)
	}
	if err := f.Close(); err != nil {
		return "", fmt.Errorf("write model: %w", err)
	}
	d.client.progress("fetched %s: %d MB", d.from(), x.n>>20)
	return f.Name(), nil
}

// withoutURL is an error without the address that the HTTP client puts before it.
func withoutURL(err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		return u.Err
	}
	return err
}

// transfer is a download on the way.
type transfer struct {
	*download
	client *http.Client
	f      *os.File
	h      hash.Hash
	n      int64
	// tag is what tells the file from a later one: its ETag, or when it was last changed. The digest tells in any case.
	tag     string
	resumed bool
	told    time.Time
	alive   func()
}

// run fetches what is missing.
func (x *transfer) run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stalled := time.AfterFunc(stallWait, func() { cancel(fmt.Errorf("nothing came for %s", stallWait)) })
	defer stalled.Stop()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, x.uri, nil)
	if err != nil {
		return refuse(rollout.ReasonInvalid, x.field, "correct the address", "the address cannot be read")
	}
	req.Header.Set("User-Agent", "sluice")
	if x.n > 0 {
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-", x.n))
		if x.tag != "" {
			req.Header.Set("If-Range", x.tag)
		}
	}
	resp, err := x.client.Do(req)
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			return cause
		}
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	switch {
	case resp.StatusCode == http.StatusPartialContent && x.n > 0 && strings.HasPrefix(resp.Header.Get("Content-Range"), fmt.Sprintf("bytes %d-", x.n)):
		x.resumed = true
	case resp.StatusCode == http.StatusOK:
		if _, err := x.f.Seek(0, io.SeekStart); err != nil {
			return err
		}
		if err := x.f.Truncate(0); err != nil {
			return err
		}
		x.n = 0
		x.h.Reset()
		x.resumed = false
		x.tag = resp.Header.Get("ETag")
		if x.tag == "" || strings.HasPrefix(x.tag, "W/") { // RFC 9110, section 13.1.5: not for weak ones
			x.tag = resp.Header.Get("Last-Modified")
		}
	case resp.StatusCode == http.StatusNotFound || resp.StatusCode == http.StatusGone:
		return refuse(rollout.ReasonModelMissing, x.field, "check the address", "%s is not there (status %d)", x.from(), resp.StatusCode)
	case resp.StatusCode == http.StatusUnauthorized || resp.StatusCode == http.StatusForbidden:
		return refuse(rollout.ReasonModelUnreachable, x.field, "use an address that needs no credentials, set "+project.ModelQueryVariable(x.model)+" to a signature that has not expired, or push the model to a registry with `sluice model push`",
			"%s does not allow it (status %d)", x.from(), resp.StatusCode)
	case resp.StatusCode < 500 && resp.StatusCode != http.StatusTooManyRequests && resp.StatusCode != http.StatusRequestTimeout:
		return refuse(rollout.ReasonModelUnreachable, x.field, "check the address", "%s answers with status %d", x.from(), resp.StatusCode)
	default:
		return fmt.Errorf("status %d", resp.StatusCode)
	}
	x.alive = func() { stalled.Reset(stallWait) }
	if _, err = io.CopyBuffer(x, resp.Body, make([]byte, bufferSize)); err != nil && context.Cause(ctx) != nil {
		return context.Cause(ctx)
	}
	return err
}

// Write implements io.Writer.
func (x *transfer) Write(p []byte) (int, error) {
	x.alive()
	n, err := x.f.Write(p)
	x.h.Write(p[:n])
	x.n += int64(n)
	if time.Since(x.told) >= reportEvery {
		x.told = time.Now()
		x.download.client.progress("fetching %s: %d MB", x.from(), x.n>>20)
	}
	return n, err
}
