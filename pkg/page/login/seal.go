package login

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"
)

// maxCookie bounds a cookie, in bytes: browsers take 4096 with its name and attributes (RFC 6265 section 6.1).
const maxCookie = 3800

// seal keeps one kind of what this server says to itself by way of a browser: nobody else can read it, change it, or show it as
// something of another kind. Nothing is stored, so that any server with the key understands it.
type seal struct {
	aead cipher.AEAD
	kind string
}

// newSeal derives a key of its own for each kind of content from the servers' key, which signs sessions of the API too (RFC 5869).
// What else must be the same for a content to count goes into context.
func newSeal(key []byte, kind, context string) (seal, error) {
	own, err := derive(key, kind, context)
	if err != nil {
		return seal{}, err
	}
	block, err := aes.NewCipher(own)
	if err != nil {
		return seal{}, fmt.Errorf("make cipher of cookies: %w", err)
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		return seal{}, fmt.Errorf("make cipher of cookies: %w", err)
	}
	return seal{aead, kind}, nil
}

func derive(key []byte, kind, context string) ([]byte, error) {
	own, err := hkdf.Key(sha256.New, key, nil, "sluice page login "+kind+"\x00"+context, 32)
	if err != nil {
		return nil, fmt.Errorf("derive key of cookies: %w", err)
	}
	return own, nil
}

// timed content.
type timed struct {
	Until int64           `json:"until"`
	Value json.RawMessage `json:"value"`
}

func (s seal) close(v any, until time.Time) (string, error) {
	inner, err := json.Marshal(v)
	if err != nil {
		return "", fmt.Errorf("write %s: %w", s.kind, err)
	}
	b, err := json.Marshal(timed{until.Unix(), inner})
	if err != nil {
		return "", fmt.Errorf("write %s: %w", s.kind, err)
	}
	return base64.RawURLEncoding.EncodeToString(s.aead.Seal(nil, nil, b, []byte(s.kind))), nil
}

var errNotOurs = errors.New("it is not of this server, or its time is over")

// open what close made, if its time is not over.
func (s seal) open(text string, now time.Time, into any) (until time.Time, err error) {
	if text == "" || len(text) > maxCookie {
		return time.Time{}, errNotOurs
	}
	b, err := base64.RawURLEncoding.DecodeString(text)
	if err != nil {
		return time.Time{}, errNotOurs
	}
	if b, err = s.aead.Open(nil, nil, b, []byte(s.kind)); err != nil {
		return time.Time{}, errNotOurs
	}
	var t timed
	if err := json.Unmarshal(b, &t); err != nil {
		return time.Time{}, errNotOurs
	}
	until = time.Unix(t.Until, 0)
	if !now.Before(until) {
		return time.Time{}, errNotOurs
	}
	return until, json.Unmarshal(t.Value, into)
}

// cookies of this server, by short names.
type cookies struct {
	secure bool
}

// name of a cookie. With https it begins with __Host-, so that no other host or path can have set it (RFC 6265bis section 4.1.3.2).
func (c cookies) name(short string) string {
	if c.secure {
		return "__Host-sluice-" + short
	}
	return "sluice-" + short
}

// set a cookie; an empty value takes it away. Lax, not Strict: the answer of the issuer is a navigation from another site, and so is a link to an
// endpoint. Neither sends it with a form of another site, and forms have a token besides.
func (c cookies) set(w http.ResponseWriter, short, value string, life time.Duration) {
	age := int(life / time.Second)
	if value == "" {
		age = -1
	}
	http.SetCookie(w, &http.Cookie{Name: c.name(short), Value: value, Path: "/", MaxAge: age, Secure: c.secure, HttpOnly: true, SameSite: http.SameSiteLaxMode})
}

// get a cookie; what is there twice was not set by this server alone.
func (c cookies) get(r *http.Request, short string) string {
	got := r.CookiesNamed(c.name(short))
	if len(got) != 1 {
		return ""
	}
	return got[0].Value
}

// random text of 128 bits or more.
func random() string { return strings.ToLower(rand.Text()) }

// mac of a text, as text.
func mac(key []byte, text string) string {
	m := hmac.New(sha256.New, key)
	m.Write([]byte(text))
	return base64.RawURLEncoding.EncodeToString(m.Sum(nil))
}

func same(a, b string) bool { return a != "" && hmac.Equal([]byte(a), []byte(b)) }
