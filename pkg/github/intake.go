package github

import (
	"encoding/json"
	"errors"
	"io"
	"mime"
	"net/http"
	"sync"

	"github.com/google/go-github/v62/github"
	"golang.org/x/sync/semaphore"

	"github.com/sluice-dev/sluice/rollout"
)

// Bounds of the intake.
const (
	// MaxBody of a delivery in bytes: GitHub sends none that is larger.
	MaxBody = 25 << 20
	// Bodies up to smallBody share one allowance and larger ones another, so that no one can keep
	// comments out with bodies that are allowed to be large. Beyond it the answer is 503. A body has its part of it until it is
	// handled. Whoever has no secret makes no more than that be used; what is signed is copied once, and so takes twice as much.
	smallBody = 1 << 20
	maxSmall  = 32 << 20
	// maxLarge has room for the largest there is, and then for no other.
	maxLarge = MaxBody + 1<<20
	// chunkSize is what one takes at least. There are more of them than the server has connections, so that connections on which
	// nothing comes keep nobody out.
	chunkSize = 8 << 10
)

// Intake is the handler of POST /webhooks/github. It checks that a delivery is
// GitHub's, hands it to Events, and answers as they do, or:
//
//	400 headers or a body that GitHub would not send
//	401 no valid signature
//	413 a body of more than 25 MB
//	415 a content type other than JSON
//	503 too many bytes arrive at once: deliver again
//
// GitHub does not deliver again by itself: Redeliverer asks it to.
type Intake struct {
	*Events
	secrets [][]byte
	small   *semaphore.Weighted
	large   *semaphore.Weighted
}

// NewIntake refuses to be without a secret: anyone could then command.
func NewIntake(secrets [][]byte, events *Events) (*Intake, error) {
	var kept [][]byte
	for _, s := range secrets {
		if len(s) > 0 {
			kept = append(kept, s)
		}
	}
	if len(kept) == 0 {
		return nil, &rollout.Error{
			Reason: rollout.ReasonInvalid, Field: "webhook-secret",
			Message: "the webhook has no secret, and without one anybody could command",
			Hint:    "set SLUICE_WEBHOOK_SECRET, or name a file of secrets, one per line, with --webhook-secret-file",
		}
	}
	return &Intake{Events: events, secrets: kept, small: semaphore.NewWeighted(maxSmall), large: semaphore.NewWeighted(maxLarge)}, nil
}

func (in *Intake) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	code, a := in.handle(w, r)
	if code >= 400 {
		// Nothing of an unsigned request goes into the log but where it came from.
		in.log.WarnContext(r.Context(), "delivery refused", "code", code, "message", a.Message, "remote", r.RemoteAddr)
	}
	w.Header().Set("Content-Type", "application/json")
	if code == http.StatusServiceUnavailable {
		w.Header().Set("Retry-After", "5")
	}
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(a) // the client is gone: nothing to tell it
}

func (in *Intake) handle(w http.ResponseWriter, r *http.Request) (int, Answer) {
	if r.Method != http.MethodPost {
		w.Header().Set("Allow", http.MethodPost)
		return refusal(http.StatusMethodNotAllowed, "deliveries are posted")
	}
	if t, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || t != "application/json" {
		return refusal(http.StatusUnsupportedMediaType, "set the webhook's content type to application/json")
	}
	signatures := r.Header.Values(SignatureHeader)
	if len(signatures) != 1 {
		return refusal(http.StatusUnauthorized, "a delivery needs one %s header", SignatureHeader)
	}
	event := r.Header.Get(github.EventTypeHeader)
	if event == "" {
		return refusal(http.StatusBadRequest, "a delivery needs an %s header", github.EventTypeHeader)
	}
	b, code, a := in.read(w, r)
	// Until the answer is known the body is there, and so is its part of the allowance.
	defer b.release()
	if code != 0 {
		return code, a
	}
	if !verify(in.secrets, signatures[0], b.parts) {
		return refusal(http.StatusUnauthorized, "the signature is not that of this body under the webhook's secret")
	}
	return in.Handle(r.Context(), event, r.Header.Get(github.DeliveryIDHeader), b.whole())
}

// errHeld says that too many bytes are held at once.
var errHeld = errors.New("too many deliveries at once")

// chunks of bodies, used again: what a body leaves behind is not left to the garbage collector, which would let as much again gather.
var chunks = sync.Pool{New: func() any { return new([chunkSize]byte) }}

// body of a delivery, in chunks for which there was room. It takes room for what arrives, not for what is announced, and never
// copies before it is known to be GitHub's.
type body struct {
	allow  *semaphore.Weighted
	held   int64
	size   int
	chunks []*[chunkSize]byte
}

// read to the end. After an error the body has what arrived.
func (b *body) read(r io.Reader) error {
	for {
		at := b.size % chunkSize
		if b.size == len(b.chunks)*chunkSize {
			if !b.allow.TryAcquire(chunkSize) {
				return errHeld
			}
			b.held += chunkSize
			b.chunks = append(b.chunks, chunks.Get().(*[chunkSize]byte))
		}
		n, err := r.Read(b.chunks[len(b.chunks)-1][at:])
		b.size += n
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// parts of it, in order.
func (b *body) parts(yield func([]byte) bool) {
	left := b.size
	for _, c := range b.chunks {
		n := min(left, chunkSize)
		if !yield(c[:n]) {
			return
		}
		left -= n
	}
}

// whole body in one piece. The chunks are given back; the room is not, because the piece needs it.
func (b *body) whole() []byte {
	out := make([]byte, 0, b.size)
	b.parts(func(p []byte) bool {
		out = append(out, p...)
		return true
	})
	b.reuse()
	return out
}

func (b *body) reuse() {
	for _, c := range b.chunks {
		chunks.Put(c)
	}
	b.chunks, b.size = nil, 0
}

// release what it holds; the body is gone then.
func (b *body) release() {
	b.reuse()
	b.allow.Release(b.held)
	b.held = 0
}

// read what arrives. The code is 0 if there is a body to go on with. The body is to be released in any case.
func (in *Intake) read(w http.ResponseWriter, r *http.Request) (*body, int, Answer) {
	b := &body{allow: in.large}
	if r.ContentLength >= 0 && r.ContentLength <= smallBody {
		b.allow = in.small
	}
	err := error(&http.MaxBytesError{Limit: MaxBody})
	if r.ContentLength <= MaxBody {
		err = b.read(http.MaxBytesReader(w, r.Body, MaxBody))
	}
	var tooLarge *http.MaxBytesError
	code, a := 0, Answer{}
	switch {
	case errors.As(err, &tooLarge):
		code, a = refusal(http.StatusRequestEntityTooLarge, "a delivery has at most %d bytes", MaxBody)
	case errors.Is(err, errHeld):
		code, a = refusal(http.StatusServiceUnavailable, "%v", errHeld)
	case err != nil || b.size == 0:
		code, a = refusal(http.StatusBadRequest, "the body did not arrive")
	}
	return b, code, a
}
