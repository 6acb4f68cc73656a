package router

import (
	"encoding/hex"
	"math/rand/v2"
	"net"
	"net/http"
	"strconv"
	"strings"
)

// Header names as net/http writes them.
const (
	headerVersion     = "Sluice-Version"
	headerPin         = "Azureml-Model-Deployment"
	headerRefused     = "Sluice-Refused"
	headerReason      = "Sluice-Reason"
	headerFleet       = "Sluice-Fleet"
	headerRequestID   = "X-Request-Id"
	headerMSRequestID = "X-Ms-Request-Id"
	ownPrefix         = "Sluice-"
)

// hopByHop says whether a header concerns one connection only (RFC 9110 section
// 7.6.1, and what proxies have always taken for such), or the framing, which is written anew.
func hopByHop(name string) bool {
	switch name {
	case "Connection", "Keep-Alive", "Proxy-Connection", "Proxy-Authenticate", "Proxy-Authorization",
		"Te", "Trailer", "Transfer-Encoding", "Upgrade", "Http2-Settings":
		return true
	}
	return false
}

// nominated are the headers that Connection names besides; nil mostly.
func nominated(h http.Header) map[string]bool {
	var out map[string]bool
	for _, line := range h["Connection"] {
		for name := range strings.SplitSeq(line, ",") {
			name = http.CanonicalHeaderKey(strings.TrimSpace(name))
			if name == "" || name == "Close" || name == "Keep-Alive" {
				continue
			}
			if out == nil {
				out = map[string]bool{}
			}
			out[name] = true
		}
	}
	return out
}

// head is what appendHead needs beside the client's request.
type head struct {
	target target
	// version that the replica is one of, as far as the router knows.
	version string
	id      string
	// hideKey keeps the Authorization header from the replica: it was the endpoint's key.
	hideKey bool
	// length of the body, or -1 for one in chunks; expect asks for a 100-continue.
	length int64
	expect bool
}

// appendHead writes the head of the request to a replica. net/http has checked names and
// values of the client's headers; framing and what the router vouches for is its own.
func appendHead(b []byte, r *http.Request, h *head) []byte {
	b = append(b, r.Method...)
	b = append(b, ' ')
	b = append(b, h.target.path...)
	b = append(b, h.target.query...)
	b = append(b, " HTTP/1.1\r\nHost: "...)
	b = append(b, r.Host...)
	b = append(b, "\r\n"...)
	drop := nominated(r.Header)
	for name, values := range r.Header {
		switch name {
		case "Content-Length", "Expect", headerRequestID, headerMSRequestID, headerPin, "X-Forwarded-For":
			continue
		case "Authorization":
			if h.hideKey {
				continue
			}
		}
		if hopByHop(name) || strings.HasPrefix(name, ownPrefix) || drop[name] {
			continue
		}
		for _, value := range values {
			b = appendHeader(b, name, value)
		}
	}
	b = append(b, headerFleet+": "...)
	b = append(b, h.target.key.Namespace...)
	b = append(b, '/')
	b = append(b, h.target.key.Name...)
	b = append(b, '/')
	b = append(b, h.version...)
	b = append(b, "\r\n"...)
	b = appendHeader(b, headerRequestID, h.id)
	b = appendHeader(b, headerMSRequestID, h.id)
	b = append(b, "X-Forwarded-For: "...)
	for _, before := range r.Header["X-Forwarded-For"] {
		b = append(b, before...)
		b = append(b, ", "...)
	}
	if client, _, err := net.SplitHostPort(r.RemoteAddr); err == nil {
		b = append(b, client...)
	} else {
		b = append(b, "unknown"...)
	}
	b = append(b, "\r\n"...)
	if r.Header["X-Forwarded-Proto"] == nil || drop["X-Forwarded-Proto"] {
		b = append(b, "X-Forwarded-Proto: http\r\n"...)
	}
	switch {
	case h.length < 0:
		b = append(b, "Transfer-Encoding: chunked\r\n"...)
	case h.length > 0 || r.Method != http.MethodGet && r.Method != http.MethodHead:
		b = append(b, "Content-Length: "...)
		b = strconv.AppendInt(b, h.length, 10)
		b = append(b, "\r\n"...)
	}
	if h.expect {
		b = append(b, "Expect: 100-continue\r\n"...)
	}
	return append(b, "\r\n"...)
}

func appendHeader(b []byte, name, value string) []byte {
	b = append(b, name...)
	b = append(b, ": "...)
	b = append(b, value...)
	return append(b, "\r\n"...)
}

// copyHeaders puts a replica's headers on the answer, but for those of the
// connection, of Sluice and of the request's ids.
func copyHeaders(to, from http.Header) {
	drop := nominated(from)
	for name, values := range from {
		if hopByHop(name) || strings.HasPrefix(name, ownPrefix) ||
			name == headerRequestID || name == headerMSRequestID || drop[name] {
			continue
		}
		to[name] = values
	}
	if _, has := from["Content-Type"]; !has {
		to["Content-Type"] = nil // or net/http would guess one
	}
}

// maxRequestID is the longest request id that is taken over, as at the gate.
const maxRequestID = 100

// requestID is the client's x-request-id if it can stand in a log line and in JSON as it
// is, or a new one.
func requestID(h http.Header) string {
	if v := h[headerRequestID]; len(v) == 1 && usableID(v[0]) {
		return v[0]
	}
	return newID()
}

func usableID(id string) bool {
	if id == "" || len(id) > maxRequestID {
		return false
	}
	for i := range len(id) {
		if c := id[i]; c <= ' ' || c > '~' || c == '"' || c == '\\' || c == '[' || c == ']' {
			return false
		}
	}
	return true
}

// newID is a random UUID (RFC 9562, version 4). Ids are no secrets.
func newID() string {
	var raw [16]byte
	for i := range 2 {
		u := rand.Uint64()
		for j := range 8 {
			raw[8*i+j] = byte(u >> (8 * j))
		}
	}
	raw[6] = raw[6]&0x0f | 0x40
	raw[8] = raw[8]&0x3f | 0x80
	var out [36]byte
	hex.Encode(out[0:8], raw[0:4])
	out[8] = '-'
	hex.Encode(out[9:13], raw[4:6])
	out[13] = '-'
	hex.Encode(out[14:18], raw[6:8])
	out[18] = '-'
	hex.Encode(out[19:23], raw[8:10])
	out[23] = '-'
	hex.Encode(out[24:36], raw[10:16])
	return string(out[:])
}
