package runner

import (
	"encoding/hex"
	"math/rand/v2"
	"net/http"
)

// maxRequestID is the longest request id, as in Azure ML's server.
const maxRequestID = 100

// requestID is the request's x-request-id, or a new one if it has none that can stand
// in a log line and in JSON as it is. Ids are not secrets: a plain generator will do.
func requestID(h http.Header) string {
	if v := h["X-Request-Id"]; len(v) == 1 && usable(v[0]) {
		return v[0]
	}
	var raw [16]byte
	for i := range 2 {
		u := rand.Uint64()
		for j := range 8 {
			raw[8*i+j] = byte(u >> (8 * j))
		}
	}
	raw[6] = raw[6]&0x0f | 0x40 // RFC 9562: version 4,
	raw[8] = raw[8]&0x3f | 0x80 // variant 10
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

func usable(id string) bool {
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

// echoIDs puts the request's ids on the answer by the rules of Azure ML's server:
// x-ms-request-id is the client's id in its old name, else the request id.
func echoIDs(out, in http.Header, id string) {
	out["X-Request-Id"] = []string{id}
	legacy := first(in, "X-Ms-Request-Id")
	client := first(in, "X-Ms-Client-Request-Id")
	switch {
	case legacy != "" && client == "":
		client = legacy
	case legacy == "" && client != "":
		legacy = client
	case legacy == "":
		legacy = id
	}
	out["X-Ms-Request-Id"] = []string{legacy}
	if client != "" {
		out["X-Ms-Client-Request-Id"] = []string{client}
	}
	if v := in["Traceid"]; v != nil {
		out["Traceid"] = v
	}
}

func first(h http.Header, key string) string {
	if v := h[key]; len(v) > 0 && len(v[0]) <= maxRequestID {
		return v[0]
	}
	return ""
}
