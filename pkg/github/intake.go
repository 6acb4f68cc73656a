package github

import (
	"encoding/json"
	"errors"
	"io"
	"mime"
	"net/http"

	"github.com/google/go-github/v62/github"
	"golang.org/x/sync/semaphore"

	"github.com/sluice-dev/sluice/rollout"
)

// Bounds of the intake.
const (
	// MaxBody of a delivery in bytes: GitHub sends none that is larger.
	MaxBody = 25 << 20
	// Bodies up to smallBody share one allowance and larger ones another, so that no one can keep
	// comments out with bodies that are allowed to be large. Beyond it the answer is 503.
	smallBody = 1 << 20
	maxHeld   = 128 << 20
	heldUnit  = 32 << 10
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
	return &Intake{Events: events, secrets: kept, small: semaphore.NewWeighted(maxHeld), large: semaphore.NewWeighted(maxHeld)}, nil
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
	body, code, a := in.read(w, r)
	if body == nil {
		return code, a
	}
	if !Verify(in.secrets, signatures[0], body) {
		return refusal(http.StatusUnauthorized, "the signature is not that of this body under the webhook's secret")
	}
	return in.Handle(r.Context(), event, r.Header.Get(github.DeliveryIDHeader), body)
}

// errHeld says that too many bytes are being read at once.
var errHeld = errors.New("too many deliveries at once")

// metered takes room from an allowance for what arrives, not for what is announced.
type metered struct {
	r     io.Reader
	allow *semaphore.Weighted
	held  int64
	used  int64
}

func (m *metered) Read(p []byte) (int, error) {
	if m.used >= m.held {
		if !m.allow.TryAcquire(heldUnit) {
			return 0, errHeld
		}
		m.held += heldUnit
	}
	n, err := m.r.Read(p[:min(int64(len(p)), m.held-m.used)])
	m.used += int64(n)
	return n, err
}

func (m *metered) release() { m.allow.Release(m.held) }

// read returns nil and the answer if there is no body to go on with.
func (in *Intake) read(w http.ResponseWriter, r *http.Request) ([]byte, int, Answer) {
	allow := in.large
	if r.ContentLength >= 0 && r.ContentLength <= smallBody {
		allow = in.small
	}
	m := &metered{r: http.MaxBytesReader(w, r.Body, MaxBody), allow: allow}
	defer m.release()
	var body []byte
	var err error
	if r.ContentLength > MaxBody {
		err = &http.MaxBytesError{Limit: MaxBody}
	} else {
		body, err = io.ReadAll(m)
	}
	var tooLarge *http.MaxBytesError
	code, a := 0, Answer{}
	switch {
	case errors.As(err, &tooLarge):
		code, a = refusal(http.StatusRequestEntityTooLarge, "a delivery has at most %d bytes", MaxBody)
	case errors.Is(err, errHeld):
		code, a = refusal(http.StatusServiceUnavailable, "%v", errHeld)
	case err != nil || len(body) == 0:
		code, a = refusal(http.StatusBadRequest, "the body did not arrive")
	}
	if code != 0 {
		return nil, code, a
	}
	return body, 0, Answer{}
}
