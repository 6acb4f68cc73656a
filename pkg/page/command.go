package page

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"mime"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/gorilla/mux"

	"github.com/sluice-dev/sluice/pkg/access/policy"
	"github.com/sluice-dev/sluice/pkg/cluster"
	"github.com/sluice-dev/sluice/pkg/page/login"
	"github.com/sluice-dev/sluice/rollout"
)

// Editor carries out what people ask for (cluster.Editing).
type Editor interface {
	// Edit is the function of that name of package cluster.
	Edit(ctx context.Context, key rollout.Key, req rollout.Request, change func(*rollout.Endpoint) (rollout.Op, error)) (*rollout.Endpoint, rollout.Outcome, error)
}

// Bounds of forms.
const (
	maxForm = 8 << 10
	// maxReason of a hold or a lock, in characters.
	maxReason      = 200
	commandTimeout = 10 * time.Second
)

// commandForm is one button with what belongs to it.
type commandForm struct {
	ID, Label string
	Command   policy.Command
	Version   string
	// Seen is what the viewer saw; the command is for that and for nothing that took its place.
	Seen string
	// Percent or Reason is asked for, if so.
	Percent, Reason bool
	Value           string
	Class           string
}

// commandGroup is what can be done to one version, or to the endpoint.
type commandGroup struct {
	Name, Class string
	Forms       []commandForm
}

type commandsView struct {
	Path, Token string
	// At is the endpoint's generation: with the rest of a form it says which press of which button it is.
	At     string
	Groups []commandGroup
}

// viewCommands that the person may give now; nil if there are none.
func viewCommands(e *rollout.Endpoint, who *login.Person) *commandsView {
	v := &commandsView{Path: "/endpoints/" + e.Key().String(), Token: who.Token(), At: strconv.FormatInt(e.Metadata.Generation, 10)}
	class := classes(e)
	add := func(g *commandGroup, f commandForm) {
		if !who.Permits(e.Key(), f.Command) {
			return
		}
		f.Seen = seen(e, f.Command, f.Version)
		f.ID = strings.TrimSuffix("do-"+string(f.Command)+"-"+f.Version, "-")
		g.Forms = append(g.Forms, f)
	}
	for i := range e.Spec.Versions {
		ver := &e.Spec.Versions[i]
		g := commandGroup{Name: ver.Name, Class: class(ver.Name)}
		switch {
		case ver.Type == rollout.Treatment:
			if e.Spec.Lock == nil {
				add(&g, commandForm{Command: policy.CommandPromote, Version: ver.Name, Label: "Promote", Class: "go"})
			}
			add(&g, commandForm{Command: policy.CommandRollback, Version: ver.Name, Label: "Roll back", Class: "stop"})
			if e.Spec.Lock == nil {
				add(&g, commandForm{Command: policy.CommandShift, Version: ver.Name, Label: "Set traffic", Percent: true, Value: ver.TrafficPercentile.String()})
			}
		case ver.Type == rollout.Control && e.Spec.ByRole(rollout.Standby) != nil:
			add(&g, commandForm{Command: policy.CommandRollback, Version: ver.Name, Label: "Roll back to " + e.Spec.ByRole(rollout.Standby).Name, Class: "stop"})
		}
		if len(g.Forms) > 0 {
			v.Groups = append(v.Groups, g)
		}
	}
	g := commandGroup{}
	if e.Spec.Hold == nil {
		add(&g, commandForm{Command: policy.CommandHold, Label: "Hold", Reason: true})
	} else if e.Spec.Lock == nil {
		add(&g, commandForm{Command: policy.CommandResume, Label: "Resume"})
	}
	if e.Spec.Lock == nil {
		add(&g, commandForm{Command: policy.CommandLock, Label: "Lock", Reason: true})
	} else {
		add(&g, commandForm{Command: policy.CommandUnlock, Label: "Unlock"})
	}
	if len(g.Forms) > 0 {
		v.Groups = append(v.Groups, g)
	}
	if len(v.Groups) == 0 {
		return nil
	}
	return v
}

// seen digests what a command is about, as somebody saw it: who is control and standby, the version with its role, without one the
// treatments; and for what ends a hold or a lock, which. Shares are not in it: that a strategy goes on by a step makes no command another.
func seen(e *rollout.Endpoint, c policy.Command, version string) string {
	type part struct {
		Name, Revision string
		Type           rollout.Role
		Created        int64
	}
	what := struct {
		UID     string
		Command policy.Command
		Parts   []part
		Mark    *rollout.Mark
	}{UID: e.Metadata.UID, Command: c}
	for i := range e.Spec.Versions {
		v := &e.Spec.Versions[i]
		if v.Type == rollout.Control || v.Type == rollout.Standby || v.Name == version || version == "" && v.Type == rollout.Treatment {
			what.Parts = append(what.Parts, part{v.Name, v.Revision(), v.Type, v.CreatedAt.Unix()})
		}
	}
	switch c {
	case policy.CommandResume:
		what.Mark = e.Spec.Hold
	case policy.CommandUnlock:
		what.Mark = e.Spec.Lock
	}
	b, err := json.Marshal(what)
	if err != nil {
		return "" // it is made of texts and numbers
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:12])
}

func invalid(field, hint, format string, args ...any) *rollout.Error {
	return &rollout.Error{Reason: rollout.ReasonInvalid, Field: field, Message: fmt.Sprintf(format, args...), Hint: hint}
}

// form that was sent; of bounded size, and nothing from the address.
func (p *Page) form(w http.ResponseWriter, r *http.Request) (url.Values, error) {
	if kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || kind != "application/x-www-form-urlencoded" {
		return nil, invalid("Content-Type", "press a button of the page", "this is no form of the page")
	}
	r.Body = http.MaxBytesReader(w, r.Body, maxForm)
	if err := r.ParseForm(); err != nil {
		return nil, invalid("body", "press a button of the page", "the form cannot be read, or has more than %d bytes", maxForm)
	}
	return r.PostForm, nil
}

// notSent refuses what was not sent by the page itself: it is not said in a note, which would come up elsewhere.
func (p *Page) notSent(w http.ResponseWriter, r *http.Request, err error) {
	p.o.Logger.WarnContext(r.Context(), "form refused", "path", r.URL.Path, "reason", rollout.ReasonOf(err), "error", err)
	why := &refusal{Title: "Nothing was done", Reason: rollout.ReasonOf(err)}
	if all := rollout.AsErrors(err); len(all) > 0 {
		why.Text, why.Hint = all[0].Message+".", all[0].Hint
	}
	code := http.StatusForbidden
	if why.Reason == rollout.ReasonInvalid {
		code = http.StatusBadRequest
	}
	p.turnAway(w, r, code, why)
}

// asked is what a form asks for.
type asked struct {
	key     rollout.Key
	command policy.Command
	version string
	seen    string
	op      func(*rollout.Endpoint) (rollout.Op, error)
	// id of the change: the same for the same press of the same button, and nobody else's.
	id string
}

// command carries out what a form asks for, and leads back to the endpoint's page, which says what came of it.
func (p *Page) command(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), commandTimeout)
	defer cancel()
	key := rollout.Key{Namespace: mux.Vars(r)["namespace"], Name: mux.Vars(r)["name"]}
	who := p.o.Login.Person(r)
	if who == nil {
		p.turnAway(w, r, http.StatusForbidden, &refusal{Title: "Nothing was done", Text: "You have not logged in, or not within some hours.", LogIn: "Log in"})
		return
	}
	form, err := p.form(w, r)
	if err == nil {
		err = who.Sent(r, form.Get("token"))
	}
	if err == nil {
		if err = cluster.ValidateKey(key); err != nil {
			err = invalid("endpoint", "press a button of the page", "this is no endpoint's name")
		}
	}
	if err != nil {
		p.notSent(w, r, err)
		return
	}
	a, out, err := p.carryOut(ctx, who, key, form)
	attrs := []any{"name", a.id, "command", string(a.command), "actor", who.Actor(), "endpoint", key.String(), "version", a.version}
	text, bad := out.Message, err != nil
	switch refusals := rollout.AsErrors(err); {
	case err == nil:
		p.o.Logger.InfoContext(ctx, "command", append(attrs, "state", cluster.EntryDone, "reason", rollout.ReasonRequested, "result", text)...)
	case len(refusals) > 0:
		p.o.Logger.InfoContext(ctx, "command", append(attrs, "state", cluster.EntryRefused, "reason", refusals[0].Reason, "result", err.Error())...)
		text = "Nothing was done: " + refusals[0].Message + " (" + string(refusals[0].Reason) + ")"
		if refusals[0].Hint != "" {
			text += "; " + refusals[0].Hint
		}
	default:
		p.o.Logger.ErrorContext(ctx, "command given up", append(attrs, "error", err)...)
		text = "The endpoint cannot be changed at present: look at its record before you try again"
	}
	path := "/endpoints/" + key.String()
	who.Leave(w, path, onPage(strings.TrimSuffix(text, ".")), bad)
	seeOther(w, path)
}

// onPage says in the page's words what a message says in the command line's.
func onPage(message string) string {
	return strings.NewReplacer("`sluice resume ENDPOINT`", "Resume", "unlock it first with `sluice unlock ENDPOINT`", "unlock it first").Replace(message)
}

func (p *Page) carryOut(ctx context.Context, who *login.Person, key rollout.Key, form url.Values) (asked, rollout.Outcome, error) {
	a, err := readForm(key, form)
	if err != nil {
		return a, rollout.Outcome{}, err
	}
	if p.o.Editor == nil || !who.Permits(key, a.command) {
		return a, rollout.Outcome{}, &rollout.Error{
			Reason: rollout.ReasonDenied, Field: "command", Message: fmt.Sprintf("nothing permits %s the command %s on endpoint %s", who.Actor(), a.command, key), Hint: "have the page's policy permit it",
		}
	}
	var words []string
	for _, name := range []string{"command", "version", "seen", "at", "percent", "reason"} {
		words = append(words, form.Get(name))
	}
	a.id = "page-" + who.Mark("command\x00"+key.String()+"\x00"+strings.Join(words, "\x00"))
	req := rollout.Request{ID: a.id, Actor: who.Actor(), Reason: rollout.ReasonRequested, Message: "a button of the page", At: p.o.Now().UTC()}
	_, out, err := p.o.Editor.Edit(ctx, key, req, func(e *rollout.Endpoint) (rollout.Op, error) {
		switch {
		case e.Metadata.UID == "":
			return nil, cluster.UnknownEndpoint(key)
		case e.Known(a.id): // the button was pressed twice: what it found then is not what it finds now
			return rollout.Resume{}, nil
		case seen(e, a.command, a.version) != a.seen:
			return nil, &rollout.Error{
				Reason: rollout.ReasonVersionChanged, Field: "version", Message: "the endpoint is not what the page showed: a version was replaced or has another role, or a hold or lock is another one",
				Hint: "look at it, and press again if it is still meant",
			}
		}
		return a.op(e)
	})
	return a, out, err
}

// readForm says what a form asks for. Errors are *rollout.Error.
func readForm(key rollout.Key, form url.Values) (asked, error) {
	a := asked{key: key, command: policy.Command(form.Get("command")), version: form.Get("version"), seen: form.Get("seen")}
	const hint = "press a button of the page"
	var op rollout.Op
	whole := false
	reason, err := reasonOf(form.Get("reason"))
	switch a.command {
	case policy.CommandPromote:
		op = rollout.Promote{Version: a.version}
	case policy.CommandRollback:
		op = rollout.Rollback{Version: a.version}
	case policy.CommandShift:
		percent, wrong := rollout.ValidatePercent("percent", strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(form.Get("percent")), "%")))
		if wrong != nil {
			err = wrong
		}
		op = rollout.Shift{Version: a.version, Percent: percent}
	case policy.CommandHold:
		op, whole = rollout.Hold{Reason: reason}, true
	case policy.CommandResume:
		op, whole = rollout.Resume{}, true
	case policy.CommandLock:
		op, whole = rollout.Lock{Reason: reason}, true
	case policy.CommandUnlock:
		op, whole = rollout.Unlock{}, true
	default:
		a.command = ""
		return a, invalid("command", hint, "the page has no such command")
	}
	switch {
	case whole && a.version != "":
		a.version, err = "", invalid("version", hint, "the command is for the endpoint, not for a version")
	case !whole && rollout.ValidateName("version", "a version", a.version) != nil:
		a.version, err = "", invalid("version", hint, "this is no version's name")
	case len(form.Get("at")) > 20:
		err = invalid("at", hint, "this is no form of the page")
	}
	a.op = func(e *rollout.Endpoint) (rollout.Op, error) {
		if v := e.Spec.Version(a.version); a.command == policy.CommandShift && v != nil && v.Type != rollout.Treatment {
			return nil, &rollout.Error{Reason: rollout.ReasonNotTreatment, Field: "version", Message: a.version + " is no treatment, and the page sets the traffic of treatments only", Hint: "use `sluice traffic`"}
		}
		return op, nil
	}
	return a, err
}

// reasonOf a hold or a lock: one line of text that is shown.
func reasonOf(s string) (string, error) {
	s = strings.TrimSpace(s)
	if utf8.RuneCountInString(s) > maxReason {
		return "", invalid("reason", "say less", "the reason has more than %d characters", maxReason)
	}
	if !utf8.ValidString(s) || strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return "", invalid("reason", "write one line of plain text", "the reason has characters that are not shown")
	}
	return s, nil
}
