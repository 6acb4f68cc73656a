package page

import (
	"bytes"
	"cmp"
	"net/http"
	"net/url"
	"strings"

	"github.com/sluice-dev/sluice/pkg/access/policy"
	"github.com/sluice-dev/sluice/pkg/cluster"
	"github.com/sluice-dev/sluice/pkg/page/login"
	"github.com/sluice-dev/sluice/rollout"
)

// Login is how people log in (login.Login).
type Login interface {
	// Begin returns the address to send the browser to, from which it comes back by Finish, and then to a path.
	Begin(w http.ResponseWriter, r *http.Request, to string) (address string, err error)
	// Finish returns the path that Begin was told.
	Finish(w http.ResponseWriter, r *http.Request) (to string, err error)
	// End of the browser's session.
	End(w http.ResponseWriter)
	// Person who asks; nil without a login.
	Person(r *http.Request) *login.Person
}

// visitor is who asks.
type visitor struct {
	// person who has logged in; nil without a login.
	person *login.Person
	// all says that every endpoint is shown, whoever asks.
	all bool
}

func (v visitor) sees(key rollout.Key) bool {
	return v.all || v.person != nil && v.person.Permits(key, policy.CommandRead)
}

func (p *Page) visitor(r *http.Request) visitor {
	v := visitor{all: p.o.Mode != ModeLogin}
	if p.o.Login != nil {
		v.person = p.o.Login.Person(r)
	}
	return v
}

// admit who may see the page at all; the others are told to log in.
func (p *Page) admit(w http.ResponseWriter, r *http.Request) (visitor, bool) {
	v := p.visitor(r)
	if !v.all && v.person == nil {
		p.turnAway(w, r, http.StatusForbidden, &refusal{Title: "Log in", Text: "The endpoints are shown to those who have logged in.", LogIn: "Log in"})
		return v, false
	}
	return v, true
}

// who has logged in, as the page shows them.
type who struct{ Name, Actor, Token string }

// refusal of a request, and the way on.
type refusal struct {
	Title, Text, Hint string
	Reason            rollout.Reason
	// LogIn is the text of a link to log in; none if it is empty.
	LogIn string
}

// greet who asks, in the page's frame.
func (p *Page) greet(f *frame, v visitor, r *http.Request) {
	f.All = v.all
	switch {
	case v.person != nil:
		f.Who = &who{v.person.Name(), v.person.Actor(), v.person.Token()}
	case p.o.Login != nil:
		f.LogIn = login.Path + "?" + url.Values{"to": {returnPath(r.URL.Path)}}.Encode()
	}
}

// turnAway answers with a page that says why.
func (p *Page) turnAway(w http.ResponseWriter, r *http.Request, code int, why *refusal) {
	f := frame{Title: why.Title, Refusal: why, Now: p.o.Now()}
	p.greet(&f, p.visitor(r), r)
	if f.LogIn == "" {
		f.LogIn = login.Path
	}
	var b bytes.Buffer
	if err := templates.ExecuteTemplate(&b, "page.html", f); err != nil {
		p.o.Logger.WarnContext(r.Context(), "page not made", "path", r.URL.Path, "error", err)
		refuse(w, code, why.Title)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	if code == http.StatusServiceUnavailable || code == http.StatusTooManyRequests {
		w.Header().Set("Retry-After", "2")
	}
	w.WriteHeader(code)
	_, _ = w.Write(b.Bytes()) // the client is gone: nothing to tell it
}

// returnPath is a path of the page to come back to after a login: that of an endpoint, else the first. No other address is led to.
func returnPath(s string) string {
	rest, ok := strings.CutPrefix(s, "/endpoints/")
	namespace, name, both := strings.Cut(rest, "/")
	if !ok || !both || cluster.ValidateKey(rollout.Key{Namespace: namespace, Name: name}) != nil {
		return "/"
	}
	return s
}

// codes of a login's refusals.
var codes = map[rollout.Reason]int{
	rollout.ReasonTokenInvalid:    http.StatusBadRequest,
	rollout.ReasonDenied:          http.StatusForbidden,
	rollout.ReasonTooManyRequests: http.StatusTooManyRequests,
	rollout.ReasonUnavailable:     http.StatusServiceUnavailable,
}

// notLoggedIn says why. What is no refusal is in the log alone.
func (p *Page) notLoggedIn(w http.ResponseWriter, r *http.Request, err error) {
	why := &refusal{Title: "Nobody was logged in", Text: "Something failed inside Sluice.", Reason: rollout.ReasonInternal, LogIn: "Log in again"}
	if all := rollout.AsErrors(err); len(all) > 0 {
		why.Text, why.Hint, why.Reason = all[0].Message+".", all[0].Hint, all[0].Reason
	} else {
		p.o.Logger.ErrorContext(r.Context(), "login failed", "error", err)
	}
	p.turnAway(w, r, cmp.Or(codes[why.Reason], http.StatusInternalServerError), why)
}

func (p *Page) logIn(w http.ResponseWriter, r *http.Request) {
	// A login begins where somebody looks, not in a picture on another site.
	if dest := r.Header.Get("Sec-Fetch-Dest"); dest != "" && dest != "document" {
		refuse(w, http.StatusForbidden, "a login begins in a window of its own")
		return
	}
	address, err := p.o.Login.Begin(w, r, returnPath(r.URL.Query().Get("to")))
	if err != nil {
		p.o.Logger.WarnContext(r.Context(), "login not begun", "error", err)
		p.notLoggedIn(w, r, err)
		return
	}
	seeOther(w, address)
}

func (p *Page) loggedIn(w http.ResponseWriter, r *http.Request) {
	to, err := p.o.Login.Finish(w, r)
	if err != nil {
		p.notLoggedIn(w, r, err)
		return
	}
	seeOther(w, returnPath(to))
}

func (p *Page) logOut(w http.ResponseWriter, r *http.Request) {
	person := p.o.Login.Person(r)
	if person != nil {
		form, err := p.form(w, r)
		if err == nil {
			err = person.Sent(r, form.Get("token"))
		}
		if err != nil {
			p.notSent(w, r, err)
			return
		}
		p.o.Logger.InfoContext(r.Context(), "logout", "actor", person.Actor())
	}
	p.o.Login.End(w)
	seeOther(w, "/")
}

// seeOther leads to where the answer is (RFC 9110 section 15.4.4), without a body.
func seeOther(w http.ResponseWriter, address string) {
	w.Header().Set("Location", address)
	w.WriteHeader(http.StatusSeeOther)
}
