package report

import (
	"context"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/xml"
	"fmt"
	"net/http"
	"strconv"
	"strings"

	"github.com/gorilla/mux"

	"github.com/sluice-dev/sluice/rollout"
)

// PicturePath is below which pictures are served.
const PicturePath = "/pictures/"

// Pictures of ramps, that comments link to. GitHub fetches them without a login, for whoever reads the comment; so the address
// of each has a signature, and whoever has no comment to read it from finds none. The zero value has no pictures. Safe for
// concurrent use.
type Pictures struct {
	url string
	key []byte
}

// minKey of the servers' key, in bytes: as long as what is derived from it.
const minKey = 32

// NewPictures that GitHub fetches below the address, such as https://sluice.example. Their key is derived from the servers' key, which
// sessions are made with too: 32 random bytes or more, the same in each server behind one address. It has to last: with another one the
// addresses in comments that are not written again lead nowhere. It is never a secret that somebody chose, such as the webhook's: addresses
// are in public comments, and with one of them guesses can be tried without asking anybody.
func NewPictures(address string, key []byte) (*Pictures, error) {
	if len(key) < minKey {
		message := fmt.Sprintf("the key that the one of pictures is derived from has %d bytes", len(key))
		if len(key) == 0 {
			message = "pictures in reports need a key that lasts, and none is given"
		}
		return nil, &rollout.Error{Reason: rollout.ReasonInvalid, Field: "api-session-key", Message: message,
			Hint: fmt.Sprintf("set SLUICE_API_SESSION_KEY, or name a file with --api-session-key-file: %d random bytes or more, such as of `openssl rand -hex 32`; or leave out --public-url", minKey)}
	}
	own, err := hkdf.Key(sha256.New, key, nil, "sluice report pictures", minKey)
	if err != nil {
		return nil, fmt.Errorf("derive key of pictures: %w", err)
	}
	return &Pictures{url: strings.TrimRight(address, "/"), key: own}, nil
}

// on says whether there are pictures: what is signed with nothing, anybody can sign.
func (o *Pictures) on() bool { return o != nil && len(o.key) > 0 }

// sign the place: HMAC-SHA-256, cut to 128 bits.
func (o *Pictures) sign(k rollout.Key, p PullRequest) string {
	m := hmac.New(sha256.New, o.key)
	_, _ = fmt.Fprintf(m, "sluice picture\x00%s\x00%s\x00%d\x00%d", k.Namespace, k.Name, p.Repository, p.Number) // a hash takes all
	return hex.EncodeToString(m.Sum(nil)[:16])
}

// Address of a pull request's picture. It is another one with each other content, because GitHub keeps what it fetched. Empty: there are none.
func (o *Pictures) Address(k rollout.Key, p PullRequest, picture string) string {
	if !o.on() {
		return ""
	}
	sum := sha256.Sum256([]byte(picture))
	return fmt.Sprintf("%s%s%s/%s/%d/%d/%s.svg?%x", o.url, PicturePath, k.Namespace, k.Name, p.Repository, p.Number, o.sign(k, p), sum[:4])
}

// PictureStore is what the handler of pictures reads.
type PictureStore interface {
	Get(ctx context.Context, key rollout.Key) (*rollout.Endpoint, error)
}

// Handler serves the pictures. Whatever there is none of, or has a wrong signature, is 404.
func (o *Pictures) Handler(store PictureStore) http.Handler {
	r := mux.NewRouter()
	r.HandleFunc(PicturePath+"{namespace}/{name}/{repository:[0-9]{1,19}}/{number:[0-9]{1,19}}/{signature:[0-9a-f]{32}}.svg", func(w http.ResponseWriter, r *http.Request) {
		v := mux.Vars(r)
		repository, err := strconv.ParseInt(v["repository"], 10, 64)
		number, other := strconv.Atoi(v["number"])
		k, p := rollout.Key{Namespace: v["namespace"], Name: v["name"]}, PullRequest{Repository: repository, Number: number}
		if err != nil || other != nil || !o.on() || !hmac.Equal([]byte(o.sign(k, p)), []byte(v["signature"])) {
			http.NotFound(w, r)
			return
		}
		picture := ""
		if e, err := store.Get(r.Context(), k); err == nil {
			picture = Picture(e, p)
		}
		if picture == "" {
			http.NotFound(w, r)
			return
		}
		h := w.Header()
		h.Set("Content-Type", "image/svg+xml")
		h.Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; sandbox")
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Cache-Control", "max-age=60")
		_, _ = w.Write([]byte(picture)) // the client is gone: nothing to tell it
	}).Methods(http.MethodGet, http.MethodHead)
	return r
}

// The picture's measures, in pixels.
const (
	pictureWide = 680
	pictureRow  = 24
	pictureBar  = 240
)

// colours by mark, on light and on dark ground.
const pictureStyle = `text{font:13px ui-sans-serif,system-ui,sans-serif;fill:#1f2328}.n{fill:#59636e}.t{fill:#d1d9e0}.d{fill:#1a7f37}.p{fill:#0969da}.h{fill:#9a6700}.x{fill:#cf222e}.f{fill:#afb8c1}` +
	`@media(prefers-color-scheme:dark){text{fill:#f0f6fc}.n{fill:#9198a1}.t{fill:#3d444d}.d{fill:#3fb950}.p{fill:#4493f8}.h{fill:#d29922}.x{fill:#f85149}.f{fill:#656c76}}`

// Picture of the ramp of the pull request's newest version at the endpoint, as SVG; empty where there is none to draw. It has nothing in
// it but the steps' shares, what became of each, and times.
func Picture(e *rollout.Endpoint, p PullRequest) string {
	versions := p.versions(e)
	if len(versions) == 0 {
		return ""
	}
	v := versions[0]
	s := standingOf(e, v)
	rows, before, after := stepsOf(e, v, s)
	if len(rows) == 0 {
		return ""
	}
	var b strings.Builder
	y := 0
	text := func(x int, class, t string) {
		if t == "" {
			return
		}
		fmt.Fprintf(&b, `<text x="%d" y="%d"`, x, y+16)
		if class != "" {
			fmt.Fprintf(&b, ` class="%s"`, class)
		}
		b.WriteString(">" + escaped(t) + "</text>")
	}
	left := func(n int, where string) {
		if n > 0 {
			text(24, "n", fmt.Sprintf("… %d steps %s", n, where))
			y += pictureRow
		}
	}
	left(before, "before")
	for _, r := range rows {
		class := map[string]string{"✓": "d", "▶": "p", "‖": "h", "✗": "x"}[r.mark]
		text(4, "", strings.TrimSpace(r.mark))
		text(24, "", r.percent.String()+" %")
		wide := max(2, int(int64(r.percent)*pictureBar/int64(rollout.Full)))
		fmt.Fprintf(&b, `<rect class="t" x="80" y="%d" width="%d" height="12" rx="3" opacity=".4"/>`, y+6, pictureBar)
		opacity := ""
		if class == "" { // not reached
			class, opacity = "f", ` opacity=".45"`
		}
		fmt.Fprintf(&b, `<rect class="%s" x="80" y="%d" width="%d" height="12" rx="3"%s/>`, class, y+6, wide, opacity)
		text(80+pictureBar+12, "n", r.note)
		y += pictureRow
	}
	left(after, "after")
	label := fmt.Sprintf("The steps of %s: %s", v.Name, title(s))
	return fmt.Sprintf(`<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %[1]d %[2]d" role="img"><title>%s</title><style>%s</style>%s</svg>`, pictureWide, y+4, escaped(label), pictureStyle, b.String())
}

// escaped text for XML.
func escaped(text string) string {
	var b strings.Builder
	_ = xml.EscapeText(&b, []byte(text)) // a builder takes all
	return b.String()
}
