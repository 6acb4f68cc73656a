package report

import (
	"context"
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
// of each has a signature, and whoever has no comment to read it from finds none.
type Pictures struct {
	// URL by which GitHub reaches this server, such as https://sluice.example, without a slash at its end.
	URL string
	// Keys that addresses are signed with: the first for new ones, the others for those of older comments.
	Keys [][]byte
}

// sign the place under a key: HMAC-SHA-256, cut to 128 bits.
func sign(key []byte, k rollout.Key, p PullRequest) string {
	m := hmac.New(sha256.New, key)
	_, _ = fmt.Fprintf(m, "sluice picture\x00%s\x00%s\x00%d\x00%d", k.Namespace, k.Name, p.Repository, p.Number) // a hash takes all
	return hex.EncodeToString(m.Sum(nil)[:16])
}

// Address of a pull request's picture. It is another one with each other content, because GitHub keeps what it fetched.
func (o *Pictures) Address(k rollout.Key, p PullRequest, picture string) string {
	sum := sha256.Sum256([]byte(picture))
	return fmt.Sprintf("%s%s%s/%s/%d/%d/%s.svg?%x", o.URL, PicturePath, k.Namespace, k.Name, p.Repository, p.Number, sign(o.Keys[0], k, p), sum[:4])
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
		good := 0
		for _, key := range o.Keys {
			if hmac.Equal([]byte(sign(key, k, p)), []byte(v["signature"])) {
				good++
			}
		}
		if err != nil || other != nil || good == 0 {
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
		b.WriteString(">")
		_ = xml.EscapeText(&b, []byte(t)) // a builder takes all
		b.WriteString("</text>")
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
	var escaped strings.Builder
	_ = xml.EscapeText(&escaped, []byte(label)) // a builder takes all
	return fmt.Sprintf(`<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %[1]d %[2]d" role="img"><title>%s</title><style>%s</style>%s</svg>`, pictureWide, y+4, escaped.String(), pictureStyle, b.String())
}
