package oidc

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"
)

// maxAnswer bounds what an issuer may say, in bytes.
const maxAnswer = 1 << 20

// sparing asks for an address at most once in a while, and gives the last answer otherwise: a key set asks
// its issuer for each token with a key id that it does not know, and anyone can make such tokens. Anything
// but 200 is an error, and so is asked again.
type sparing struct {
	base  http.RoundTripper
	every time.Duration
	now   func() time.Time

	mu   sync.Mutex
	kept map[string]answer
}

type answer struct {
	at     time.Time
	header http.Header
	body   []byte
}

// RoundTrip implements http.RoundTripper.
func (s *sparing) RoundTrip(r *http.Request) (*http.Response, error) {
	address := r.URL.String()
	s.mu.Lock()
	a, ok := s.kept[address]
	s.mu.Unlock()
	if !ok || s.now().Sub(a.at) >= s.every {
		resp, err := s.base.RoundTrip(r)
		if err != nil {
			return nil, err
		}
		defer func() { _ = resp.Body.Close() }() // only read
		body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
		switch {
		case err != nil:
			return nil, err
		case resp.StatusCode != http.StatusOK:
			return nil, fmt.Errorf("the issuer answers %s", resp.Status)
		case len(body) > maxAnswer:
			return nil, fmt.Errorf("the issuer answers with more than %d bytes", maxAnswer)
		}
		a = answer{at: s.now(), header: resp.Header, body: body}
		s.mu.Lock()
		s.kept[address] = a
		s.mu.Unlock()
	}
	return &http.Response{
		Status: "200 OK", StatusCode: http.StatusOK, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: a.header.Clone(), Body: io.NopCloser(bytes.NewReader(a.body)), ContentLength: int64(len(a.body)), Request: r,
	}, nil
}
