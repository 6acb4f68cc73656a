// Package page serves a page for people: the endpoints, their shares, how a treatment's share grew and on what
// evidence, and the record of who changed what. It is made here from what the store has, is complete without
// scripts, and follows changes by server-sent events. It reads endpoints and nothing else, and changes nothing but what somebody who
// has logged in and may do so asks for by a form.
package page

import (
	"bytes"
	"context"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"errors"
	"html/template"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/gorilla/mux"
	"golang.org/x/time/rate"

	"github.com/sluice-dev/sluice/pkg/cluster"
	"github.com/sluice-dev/sluice/pkg/page/login"
	"github.com/sluice-dev/sluice/rollout"
)

// Mode says who may see the page. But with ModeLogin, who may see it sees every endpoint that the server does.
type Mode string

// The modes.
const (
	// ModeNone: nobody; the paths are not there.
	ModeNone Mode = "none"
	// ModeLoopback: programs on the server's machine, by its loopback address and under a name of that; in a pod, whoever
	// may forward a port to it.
	ModeLoopback Mode = "loopback"
	// ModeAnyone: whoever reaches the server.
	ModeAnyone Mode = "anyone"
	// ModeLogin: who has logged in, and then the endpoints that the login's policy permits to read.
	ModeLogin Mode = "login"
)

// ParseMode reads a mode.
func ParseMode(s string) (Mode, error) {
	switch m := Mode(s); m {
	case ModeNone, ModeLoopback, ModeAnyone, ModeLogin:
		return m, nil
	}
	return "", &rollout.Error{Reason: rollout.ReasonInvalid, Field: "page", Message: strconv.Quote(s) + " says nothing about who may see the page", Hint: "use none, loopback, anyone or login"}
}

// EventsPath is where changes are told.
const EventsPath = "/apis/sluice/v1/events"

// Options of New. Store and Mode are required.
type Options struct {
	Store cluster.Reader
	Mode  Mode
	// Login lets people log in; required with ModeLogin. Nil: nobody can.
	Login Login
	// Editor carries out what people who have logged in ask for. Nil: the page changes nothing.
	Editor Editor
	// Next serves every other path.
	Next   http.Handler
	Logger *slog.Logger
	// Now is time.Now unless set.
	Now func() time.Time
}

// Bounds of the server.
const (
	maxListeners = 256
	// maxRenders at a time; others wait their turn.
	maxRenders    = 2
	renderTimeout = 5 * time.Second
	// perPage endpoints are listed on one page.
	perPage = 100
	// maxKept pages are kept, each as long as nothing that it shows has changed, for least at the least and keepFor at the most.
	maxKept = 64
	least   = 300 * time.Millisecond
	keepFor = 2 * time.Second
	// A page takes some milliseconds to make. Whoever asks for many leaves the rest of the server its time.
	rendersPerSecond = 20
)

// timing of events.
type timing struct{ beat, pace, write, life time.Duration }

// Page is the handler.
type Page struct {
	o       Options
	t       timing
	hub     *hub
	handler http.Handler
	renders chan struct{}
	rate    *rate.Limiter
	ending  chan struct{}
	end     sync.Once

	mu   sync.Mutex
	kept map[string]kept
}

// kept is a page as it was made at a position of the hub.
type kept struct {
	position string
	made     time.Time
	code     int
	body     []byte
}

// New makes the handler. Its goroutine ends with ctx.
func New(ctx context.Context, o Options) (*Page, error) {
	p, err := prepare(o)
	if err != nil {
		return nil, err
	}
	go p.hub.run(ctx, p.o.Store, p.o.Logger)
	return p, nil
}

func prepare(o Options) (*Page, error) {
	if o.Store == nil || o.Mode != ModeLoopback && o.Mode != ModeAnyone && o.Mode != ModeLogin {
		return nil, errors.New("make the page: it needs a store and whom to show it to")
	}
	if o.Mode == ModeLogin && o.Login == nil {
		return nil, errors.New("make the page: it is for who has logged in, and nobody can")
	}
	if o.Next == nil {
		o.Next = http.NotFoundHandler()
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	p := &Page{
		o: o, hub: newHub(maxListeners), renders: make(chan struct{}, maxRenders), ending: make(chan struct{}), rate: rate.NewLimiter(rendersPerSecond, rendersPerSecond), kept: map[string]kept{},
		t: timing{beat: 15 * time.Second, pace: 250 * time.Millisecond, write: 10 * time.Second, life: time.Hour},
	}
	r := mux.NewRouter()
	for path, h := range map[string]http.HandlerFunc{
		"/":                             p.list,
		"/endpoints/{namespace}/{name}": p.endpoint,
		"/assets/{file}":                p.asset,
	} {
		r.Handle(path, p.guarded(h)).Methods(http.MethodGet, http.MethodHead)
	}
	r.Handle(EventsPath, p.guarded(p.stream)).Methods(http.MethodGet)
	if o.Login != nil {
		r.Handle(login.Path, p.guarded(p.logIn)).Methods(http.MethodGet)
		r.Handle(login.CallbackPath, p.guarded(p.loggedIn)).Methods(http.MethodGet)
		r.Handle(login.LogoutPath, p.guarded(p.logOut)).Methods(http.MethodPost)
		r.Handle("/endpoints/{namespace}/{name}", p.guarded(p.command)).Methods(http.MethodPost)
	}
	r.PathPrefix("/").Handler(o.Next)
	p.handler = r
	return p, nil
}

// ServeHTTP implements http.Handler.
func (p *Page) ServeHTTP(w http.ResponseWriter, r *http.Request) { p.handler.ServeHTTP(w, r) }

// Close ends the streams of events, so that a server that ends need not wait for them. Pages are still served.
func (p *Page) Close() { p.end.Do(func() { close(p.ending) }) }

// contentPolicy lets the page use its own two files and nothing else; no text can become a script. What a form may do comes besides.
const contentPolicy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; " +
	"base-uri 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"

func (p *Page) guarded(next http.HandlerFunc) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		// Without a login there are no forms. With one, browsers say in Origin where a form comes from only if they may say so in Referer to the page itself.
		forms, referrer := "; form-action 'none'", "no-referrer"
		if p.o.Login != nil {
			forms, referrer = "; form-action 'self'", "same-origin"
		}
		h.Set("Content-Security-Policy", contentPolicy+forms)
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("X-Frame-Options", "DENY")
		h.Set("Referrer-Policy", referrer)
		h.Set("Cross-Origin-Opener-Policy", "same-origin")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		h.Set("Permissions-Policy", "camera=(), geolocation=(), microphone=()")
		h.Set("Cache-Control", "no-store")
		if p.o.Mode == ModeLoopback && !local(r) {
			refuse(w, http.StatusForbidden, "the page is shown on the server's own machine only, at a loopback address (--page)")
			return
		}
		next(w, r)
	})
}

// local says whether the request comes from this machine and asks for it by a name that is this machine's
// everywhere: under another one, a site that lets its name point here could read the answer (DNS rebinding).
func local(r *http.Request) bool {
	for _, name := range []string{"Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Real-Ip", "Via"} {
		if r.Header.Get(name) != "" {
			return false // for somebody else
		}
	}
	from, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil || !from.Addr().Unmap().IsLoopback() {
		return false
	}
	host := r.Host
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	if host == "localhost" {
		return true
	}
	ip, err := netip.ParseAddr(strings.Trim(host, "[]"))
	return err == nil && ip.IsLoopback()
}

func refuse(w http.ResponseWriter, code int, why string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(code)
	_, _ = w.Write([]byte(why + "\n")) // the client is gone: nothing to tell it
}

//go:embed assets
var embedded embed.FS

// file of the page, under a name that says what is in it, so that it may be kept for ever.
type file struct {
	kind string
	body []byte
}

// assets are the files by the names in their addresses, and those addresses by the files' own names.
type assets struct {
	files     map[string]file
	addresses map[string]string
}

var embeddedAssets = load()

func load() assets {
	a := assets{map[string]file{}, map[string]string{}}
	for name, kind := range map[string]string{"page.css": "text/css; charset=utf-8", "page.js": "text/javascript; charset=utf-8", "icon.svg": "image/svg+xml"} {
		b, err := embedded.ReadFile("assets/" + name)
		if err != nil {
			panic(err) // it is compiled in
		}
		sum := sha256.Sum256(b)
		base, ext, _ := strings.Cut(name, ".")
		named := base + "-" + hex.EncodeToString(sum[:6]) + "." + ext
		a.files[named], a.addresses[name] = file{kind, b}, "/assets/"+named
	}
	return a
}

func (p *Page) asset(w http.ResponseWriter, r *http.Request) {
	f, ok := embeddedAssets.files[mux.Vars(r)["file"]]
	if !ok {
		refuse(w, http.StatusNotFound, "there is nothing at this path")
		return
	}
	w.Header().Set("Content-Type", f.kind)
	w.Header().Set("Cache-Control", "public, max-age=31536000, immutable")
	_, _ = w.Write(f.body) // the client is gone: nothing to tell it
}

var templates = template.Must(template.New("").Funcs(template.FuncMap{
	"asset":  func(name string) string { return embeddedAssets.addresses[name] },
	"number": number, "clock": clock, "iso": func(t time.Time) string { return t.UTC().Format(time.RFC3339) },
}).ParseFS(embedded, "assets/*.html"))

// frame is what every page has around it.
type frame struct {
	Title string
	// Events is the address of what changes; Position is how far the page is.
	Events, Position string
	Now              time.Time
	List             *listView
	Endpoint         *endpointView
	// Missing says what is not there.
	Missing string
	// Who asks; nil without a login. LogIn is where to log in, for whoever can and has not.
	Who   *who
	LogIn string
	// All says that who has not logged in sees everything, too.
	All bool
	// Note is what came of what was asked for right before.
	Note *login.Note
	// Refusal stands in place of everything else.
	Refusal  *refusal
	Commands *commandsView
}

func (p *Page) list(w http.ResponseWriter, r *http.Request) {
	n, _ := strconv.Atoi(r.URL.Query().Get("page")) // what is no number is the first page
	n = max(min(n, 1000), 1)
	v, ok := p.admit(w, r)
	if !ok {
		return
	}
	p.serve(w, r, v, "/?page="+strconv.Itoa(n), rollout.Key{}, func(ctx context.Context, f *frame) (int, error) {
		all, err := p.o.Store.List(ctx)
		if err != nil {
			return 0, err
		}
		all = slices.DeleteFunc(slices.Clone(all), func(e *rollout.Endpoint) bool { return !v.sees(e.Key()) })
		f.Title, f.Events, f.List = "Endpoints", EventsPath, viewList(all, n)
		return http.StatusOK, nil
	})
}

func (p *Page) endpoint(w http.ResponseWriter, r *http.Request) {
	key := rollout.Key{Namespace: mux.Vars(r)["namespace"], Name: mux.Vars(r)["name"]}
	// A name that no endpoint can have is not looked for, nor kept.
	valid := cluster.ValidateKey(key) == nil
	cached := ""
	if valid {
		cached = "/endpoints/" + key.String()
	}
	v, ok := p.admit(w, r)
	if !ok {
		return
	}
	p.serve(w, r, v, cached, key, func(ctx context.Context, f *frame) (int, error) {
		f.Title = "No such endpoint"
		f.Missing = "There is no endpoint of this name."
		if !v.all { // one that the person may not see is none to them
			f.Missing = "There is no endpoint of this name that you may see."
		}
		if !valid || !v.sees(key) {
			return http.StatusNotFound, nil
		}
		f.Events = EventsPath + "?endpoint=" + key.String()
		e, err := p.o.Store.Get(ctx, key)
		if errors.Is(err, cluster.ErrNotFound) {
			return http.StatusNotFound, nil
		}
		if err != nil {
			return 0, err
		}
		f.Title, f.Missing, f.Endpoint = e.Key().String(), "", viewEndpoint(e, f.Now)
		if p.o.Editor != nil && v.person != nil {
			f.Commands = viewCommands(e, v.person)
		}
		return http.StatusOK, nil
	})
}

// serve a page: the kept one if nothing has changed since, else a new one, a few at a time.
// What somebody who has logged in sees is made for them alone.
func (p *Page) serve(w http.ResponseWriter, r *http.Request, v visitor, name string, only rollout.Key, fill func(context.Context, *frame) (int, error)) {
	ctx, cancel := context.WithTimeout(r.Context(), renderTimeout)
	defer cancel()
	select {
	case p.renders <- struct{}{}:
	case <-ctx.Done():
		w.Header().Set("Retry-After", "2")
		refuse(w, http.StatusServiceUnavailable, "the server is busy: try again in a moment")
		return
	}
	if v.person != nil {
		name = ""
	}
	k, err := p.page(ctx, name, only, func(ctx context.Context, f *frame) (int, error) {
		p.greet(f, v, r)
		// A script that takes the page again does not take the note away from who is about to look.
		if mode := r.Header.Get("Sec-Fetch-Mode"); v.person != nil && (mode == "" || mode == "navigate") {
			f.Note = v.person.Take(w, r)
		}
		return fill(ctx, f)
	})
	<-p.renders
	if err != nil {
		p.o.Logger.WarnContext(ctx, "page not made", "path", name, "error", err)
		w.Header().Set("Retry-After", "2")
		refuse(w, http.StatusServiceUnavailable, "the endpoints cannot be read at present: try again in a moment")
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.WriteHeader(k.code)
	_, _ = w.Write(k.body) // the client is gone: nothing to tell it
}

// page of a name, as kept or made anew; it shows the one endpoint, or all if only is none. A client that is told of a change
// and gets what was made before it sees that by the position, and asks again.
func (p *Page) page(ctx context.Context, name string, only rollout.Key, fill func(context.Context, *frame) (int, error)) (kept, error) {
	p.mu.Lock()
	k, ok := p.kept[name]
	p.mu.Unlock()
	if now := p.o.Now(); ok && now.Sub(k.made) < keepFor && !now.Before(k.made) && p.fresh(k, only, now) {
		return k, nil
	}
	if err := p.rate.Wait(ctx); err != nil {
		return kept{}, err
	}
	// The position comes first: what changes while the page is made makes it old.
	position, now := p.hub.position(), p.o.Now()
	f := frame{Position: position, Now: now}
	code, err := fill(ctx, &f)
	if err != nil {
		return kept{}, err
	}
	var b bytes.Buffer
	if err := templates.ExecuteTemplate(&b, "page.html", f); err != nil {
		return kept{}, err
	}
	k = kept{position: position, made: now, code: code, body: b.Bytes()}
	if name != "" && code == http.StatusOK {
		p.mu.Lock()
		if len(p.kept) >= maxKept {
			clear(p.kept)
		}
		p.kept[name] = k
		p.mu.Unlock()
	}
	return k, nil
}

func (p *Page) fresh(k kept, only rollout.Key, now time.Time) bool {
	if now.Sub(k.made) < least {
		return true
	}
	if !p.hub.following() {
		return false
	}
	keys, all, _ := p.hub.since(k.position, only)
	return !all && len(keys) == 0
}
