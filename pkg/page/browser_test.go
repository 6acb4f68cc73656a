package page

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/audits"
	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	cdpruntime "github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
	"github.com/golang-jwt/jwt/v5"

	"github.com/sluice-dev/sluice/pkg/api"
	"github.com/sluice-dev/sluice/pkg/autoscale"
	"github.com/sluice-dev/sluice/pkg/cluster"
	"github.com/sluice-dev/sluice/pkg/cluster/memory"
	"github.com/sluice-dev/sluice/pkg/control"
	"github.com/sluice-dev/sluice/pkg/page/login"
	"github.com/sluice-dev/sluice/pkg/telemetry"
	"github.com/sluice-dev/sluice/pkg/webhook"
	"github.com/sluice-dev/sluice/rollout"
	"github.com/sluice-dev/sluice/rollout/verdict"
)

// serveControlPlane runs the role api with the page, as the programs do, until stop is called, at the latest when the test ends.
func serveControlPlane(t *testing.T, store cluster.Store, address string, edit ...func(url string, o *Options)) (url string, stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	o := Options{Store: store, Mode: ModeLoopback, Next: api.Off()}
	for _, e := range edit {
		e("http://"+l.Addr().String(), &o)
	}
	p, err := New(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() {
		ended <- webhook.Run(ctx, webhook.Options{Roles: []webhook.Role{webhook.RoleAPI}, Listener: l, Store: store, API: p, Ending: p.Close, Grace: 20 * time.Second})
	}()
	stop = sync.OnceFunc(func() {
		began := time.Now()
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("the control plane ended with %v", err)
		}
		if took := time.Since(began); took > 10*time.Second {
			t.Errorf("the end took %s: open streams held it up", took)
		}
	})
	t.Cleanup(stop)
	return "http://" + l.Addr().String(), stop
}

// browser is a tab of a real Chromium, and what it complained about.
type browser struct {
	t      *testing.T
	ctx    context.Context
	mu     sync.Mutex
	errors []string
}

func openBrowser(t *testing.T) *browser {
	t.Helper()
	path := os.Getenv("CHROMIUM")
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome"} {
		if path == "" {
			path, _ = exec.LookPath(name)
		}
	}
	if path == "" {
		t.Skip("needs Chromium: install the package chromium, or name a program with $CHROMIUM; `make test` as root on Debian installs it")
	}
	ctx, cancel := chromedp.NewExecAllocator(context.Background(), append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath(path), chromedp.NoSandbox, chromedp.WSURLReadTimeout(time.Minute))...)
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewContext(ctx)
	t.Cleanup(cancel)
	ctx, cancel = context.WithTimeout(ctx, 3*time.Minute)
	t.Cleanup(cancel)
	b := &browser{t: t, ctx: ctx}
	if err := chromedp.Listen(ctx, func(event any) {
		switch e := event.(type) {
		case *cdpruntime.EventConsoleAPICalled:
			text := "console " + string(e.Type)
			for _, a := range e.Args {
				text += " " + string(a.Value) + a.Description
			}
			b.complain(text)
		case *cdpruntime.EventExceptionThrown:
			b.complain(fmt.Sprintf("exception: %+v", e.ExceptionDetails))
		case *log.EventEntryAdded:
			b.complain(fmt.Sprintf("log %s %s: %s %s", e.Entry.Source, e.Entry.Level, e.Entry.Text, e.Entry.URL))
		case *audits.EventIssueAdded:
			if d := e.Issue.Details; d != nil && d.GenericIssueDetails != nil {
				b.complain(fmt.Sprintf("issue %s: %+v", e.Issue.Code, *d.GenericIssueDetails))
				return
			}
			b.complain(fmt.Sprintf("issue %s: %+v", e.Issue.Code, e.Issue.Details))
		}
	}); err != nil {
		t.Fatalf("start %s: %v", path, err)
	}
	_, err := chromedp.Call(ctx, audits.Enable, cdp.Empty{})
	_, logErr := chromedp.Call(ctx, log.Enable, cdp.Empty{})
	_, runErr := chromedp.Call(ctx, cdpruntime.Enable, cdp.Empty{})
	if err := errors.Join(err, logErr, runErr); err != nil {
		t.Fatal(err)
	}
	return b
}

func (b *browser) complain(what string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.errors = append(b.errors, what)
}

// complaints since the last time.
func (b *browser) complaints() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	out := b.errors
	b.errors = nil
	return out
}

func (b *browser) do(err error) {
	b.t.Helper()
	if err != nil {
		b.t.Fatalf("%v; the browser says %q", err, b.complaints())
	}
}

func (b *browser) navigate(url string) {
	b.t.Helper()
	b.do(chromedp.Do(b.ctx, chromedp.Navigate(url)))
}

// look at a page in a width and a colour scheme.
func (b *browser) look(width int64, scheme string) {
	b.t.Helper()
	b.do(chromedp.Do(b.ctx, chromedp.EmulateViewport(width, 900)))
	_, err := chromedp.Call(b.ctx, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}}})
	b.do(err)
}

// evaluate an expression.
func evaluate[T any](b *browser, expression string) T {
	b.t.Helper()
	v, err := chromedp.Run(b.ctx, chromedp.Evaluate[T](expression))
	b.do(err)
	return v
}

// until an expression is true.
func (b *browser) until(what, expression string) {
	b.t.Helper()
	var last error
	for end := time.Now().Add(15 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		ok, err := chromedp.Run(b.ctx, chromedp.Evaluate[bool]("!!("+expression+")"))
		if ok {
			return
		}
		last = err
	}
	b.t.Fatalf("not within 15 s: %s (%v); the page says\n%s\nand the browser %q", what, last, evaluate[string](b, "document.body.innerText"), b.complaints())
}

// shoot writes a picture of the whole page.
func (b *browser) shoot(name string) {
	b.t.Helper()
	dir := os.Getenv("SLUICE_TEST_SCREENSHOTS")
	if dir == "" {
		return
	}
	png, err := chromedp.Run(b.ctx, chromedp.FullScreenshot(100))
	b.do(err)
	if err := os.WriteFile(filepath.Join(dir, name+".png"), png, 0o600); err != nil {
		b.t.Fatal(err)
	}
}

// TestInChromium: the page of every kind of endpoint, at a phone's width and a desk's, light and dark: nothing is wider
// than the window, no complaint of the browser, not about the policy either.
func TestInChromium(t *testing.T) {
	b := openBrowser(t)
	url, _ := serveControlPlane(t, tell(t, time.Now()), "127.0.0.1:0")
	for _, path := range []string{"/", "/endpoints/models/fraud", "/endpoints/models/churn", "/endpoints/models/ranking", "/endpoints/models/pricing-with-a-rather-long-name", "/endpoints/speech/transcribe"} {
		b.look(1280, "light")
		b.navigate(url + path)
		b.until(path+" is live", `document.getElementById("live").textContent === "live"`)
		for _, width := range []int64{360, 1280} {
			for _, scheme := range []string{"light", "dark"} {
				b.look(width, scheme)
				b.fits(path, width, scheme)
				b.shoot(fmt.Sprintf("%s-%d-%s", strings.Trim(strings.ReplaceAll(path, "/", "-"), "-")+"page", width, scheme))
			}
		}
		if said := b.complaints(); len(said) > 0 {
			t.Errorf("%s: the browser says %q", path, said)
		}
	}
	_, err := chromedp.Call(b.ctx, emulation.SetScriptExecutionDisabled, emulation.SetScriptExecutionDisabledParams{Value: true})
	b.do(err)
	b.navigate(url + "/endpoints/models/fraud")
	if text := evaluate[string](b, "document.body.innerText"); !strings.Contains(text, "as of 20") || !strings.Contains(text, "13 of 7,381 requests") || strings.Contains(text, "min ago") {
		t.Errorf("without scripts it says %s", text)
	}
}

// fits checks that nothing is wider than the window, and that all of it can be read.
func (b *browser) fits(path string, width int64, scheme string) {
	b.t.Helper()
	wide := evaluate[struct {
		Window, Page int
		Out          []string
	}](b, `({Window: document.documentElement.clientWidth, Page: document.documentElement.scrollWidth,
		Out: [...document.querySelectorAll("header *, main *")].filter((e) => e.getBoundingClientRect().right > document.documentElement.clientWidth + 1 && !e.closest(".sr, svg, thead")).map((e) => e.outerHTML.slice(0, 90))})`)
	if wide.Page > wide.Window || len(wide.Out) > 0 || int64(wide.Window) != width {
		b.t.Errorf("%s at %d px: the window has %d px, the page %d; too wide: %q", path, width, wide.Window, wide.Page, wide.Out)
	}
	for _, bad := range evaluate[[]string](b, unreadable) {
		b.t.Errorf("%s at %d px, %s: %s", path, width, scheme, bad)
	}
}

// unreadable lists texts with less contrast to what is behind them than 4.5:1 (WCAG 2.2, 1.4.3), pictures without words, and
// tables that have lost their roles.
const unreadable = `(() => {
	const rgba = (s) => (s.match(/[\d.]+/g) || []).map(Number);
	const light = ([r, g, b]) => [r, g, b].map((v) => v / 255).map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4).reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
	const behind = (e) => {
		for (; e; e = e.parentElement) {
			const c = rgba(getComputedStyle(e).backgroundColor);
			if (c.length === 3 || c[3] === 1) return c;
		}
		return [255, 255, 255];
	};
	const out = [];
	for (const e of document.querySelectorAll("body *")) {
		if (e.closest("svg") || !e.checkVisibility() || ![...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim())) continue;
		const [a, b] = [light(rgba(getComputedStyle(e).color)), light(behind(e))].sort((x, y) => y - x);
		const ratio = (a + 0.05) / (b + 0.05);
		if (ratio < 4.5) out.push("contrast " + ratio.toFixed(2) + " of " + e.outerHTML.slice(0, 80));
	}
	for (const e of document.querySelectorAll("svg")) {
		if (e.getAttribute("aria-hidden") !== "true" && !(e.getAttribute("role") === "img" && e.getAttribute("aria-label"))) out.push("no words for " + e.outerHTML.slice(0, 80));
	}
	for (const [what, role] of [["table", "table"], ["tr", "row"], ["td", "cell"], ["thead th", "columnheader"], ["tbody th", "rowheader"]]) {
		for (const e of document.querySelectorAll(what)) if (e.getAttribute("role") !== role) out.push("no role " + role + ": " + e.outerHTML.slice(0, 80));
	}
	for (const e of document.querySelectorAll("table")) if (!e.caption) out.push("a table without caption");
	for (const e of document.querySelectorAll("button, input:not([type=hidden])")) {
		if (!(e.textContent.trim() || e.getAttribute("aria-label"))) out.push("no words for " + e.outerHTML.slice(0, 80));
		if (e.checkVisibility() && e.getBoundingClientRect().height < 24) out.push("too small to hit: " + e.outerHTML.slice(0, 80));
	}
	if (document.querySelectorAll("h1").length !== 1) out.push("not one heading");
	return out;
})()`

// metered is one router whose versions answer well, so and so many requests each time that it is asked.
type metered struct {
	store    cluster.Reader
	mu       sync.Mutex
	began    time.Time
	requests map[string]int64
	evidence map[string]*verdict.Evidence
}

func (m *metered) Reports(ctx context.Context) ([]telemetry.Report, error) {
	e, err := m.store.Get(ctx, fraud)
	if err != nil {
		return nil, nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	r := telemetry.Report{Epoch: "one", Elapsed: time.Since(m.began)}
	control := e.Spec.ByRole(rollout.Control)
	for _, s := range e.Spec.Shares() {
		v := e.Spec.Version(s.Name)
		if s.Percent > 0 {
			m.requests[s.Name] += 40
		}
		r.Versions = append(r.Versions, telemetry.VersionReport{Endpoint: fraud, Version: s.Name, Requests: m.requests[s.Name], P50Seconds: 0.012, P99Seconds: 0.05, AppliedPercent: s.Percent})
		if v.Type != rollout.Treatment || control == nil || e.Spec.Strategy == nil {
			continue
		}
		p := verdict.ParamsOf(*e.Spec.Strategy)
		ev := m.evidence[s.Name]
		if ev == nil {
			ev = new(verdict.New(p))
			m.evidence[s.Name] = ev
		}
		if s.Percent > 0 {
			ev.ObserveGood(verdict.Treatment, 40)
			ev.ObserveGood(verdict.Control, 40)
		}
		r.Evidence = append(r.Evidence, telemetry.EvidenceReport{Endpoint: fraud, Treatment: s.Name, Key: string(verdict.KeyOf(v.Revision(), control.Revision(), p)), Saved: ev.Save()})
	}
	return []telemetry.Report{r}, nil
}

// TestLiveInChromium: a page that was opened before follows a rollout by the real control role to its end, a hold, and a
// restart of the server, and is never loaded again.
func TestLiveInChromium(t *testing.T) {
	b := openBrowser(t)
	store, fleet := memory.NewStore(), memory.NewFleet(memory.Behaviour{ReadyAfter: 50 * time.Millisecond})
	routers := &metered{store: store, began: time.Now(), requests: map[string]int64{}, evidence: map[string]*verdict.Evidence{}}
	ctx, stop := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := control.Run(ctx, control.Options{Store: store, Fleets: fleet, Keys: memory.NewKeys(), Routers: routers, Logger: slog.New(slog.DiscardHandler)}); err != nil {
			t.Errorf("control: %v", err)
		}
	})
	wg.Go(func() {
		_ = autoscale.Run(ctx, autoscale.Options{Endpoints: store, Fleets: fleet, Scaler: fleet, Routers: routers, Logger: slog.New(slog.DiscardHandler)})
	})
	defer wg.Wait()
	defer stop()
	url, restart := serveControlPlane(t, store, "127.0.0.1:0")
	n := 0
	edit := func(op rollout.Op) {
		t.Helper()
		n++
		for { // the control role writes as well
			e, err := store.Get(ctx, fraud)
			if err != nil {
				t.Fatal(err)
			}
			next, _, err := rollout.Apply(e, rollout.Request{ID: fmt.Sprint("person-", n), Actor: "github:alice", At: time.Now(), Force: true}, op)
			if err != nil {
				t.Fatal(err)
			}
			if _, err = store.Update(ctx, next); err == nil {
				return
			} else if !errors.Is(err, cluster.ErrConflict) {
				t.Fatal(err)
			}
		}
	}

	b.look(1280, "light")
	b.navigate(url + "/")
	b.until("the list is live", `document.getElementById("live").textContent === "live"`)
	if text := evaluate[string](b, "document.body.innerText"); !strings.Contains(text, "There are no endpoints yet") {
		t.Errorf("an empty list says %s", text)
	}
	evaluate[bool](b, "window.stays = true")
	s := &story{t: t, store: store, now: time.Now()}
	s.begin("models", "fraud")
	requests := int64(100)
	steps := []rollout.Step{{Percent: rollout.OnePercent}, {Percent: 10 * rollout.OnePercent}, {Percent: 50 * rollout.OnePercent}}
	for i := range steps {
		steps[i].MinRequests, steps[i].MinDuration = &requests, rollout.Duration(1500*time.Millisecond)
	}
	s.deploy(0, "sha-0000001", 1, 0, &rollout.Strategy{Steps: steps})
	if _, err := store.Create(ctx, s.e); err != nil {
		t.Fatal(err)
	}
	b.until("the new endpoint is in the list", `document.querySelector('a[href="/endpoints/models/fraud"]') && window.stays`)

	b.navigate(url + "/endpoints/models/fraud")
	b.until("the endpoint is live", `document.getElementById("live").textContent === "live" && document.querySelector("#shares .pill.good")`)
	evaluate[bool](b, `(window.stays = true, window.seen = [], new MutationObserver(() => {
		const row = [...document.querySelectorAll("#shares tbody tr")].find((r) => r.textContent.includes("pr-2-0000002"));
		const share = row && row.querySelector(".figure").textContent;
		if (share && window.seen.at(-1) !== share) window.seen.push(share);
	}).observe(document.body, {subtree: true, childList: true}), document.querySelector("#about details").open = true)`)
	edit(rollout.Deploy{Version: rollout.Version{Name: "pr-2-0000002", Image: image(2), Source: rollout.Source{RepositoryID: 74, PullRequest: 2}}})
	role := rollout.Treatment
	edit(rollout.Update{Version: "pr-2-0000002", Type: &role})
	b.until("the treatment has 10 %", `window.seen.includes("10 %")`)
	b.shoot("live")
	b.until("it is promoted", `window.seen.at(-1) === "100 %" && document.querySelector("#history").textContent.includes("promote pr-2-0000002")`)
	if seen := evaluate[[]string](b, "window.seen"); strings.TrimPrefix(strings.Join(seen, ", "), "0 %, ") != "1 %, 10 %, 50 %, 100 %" {
		t.Errorf("the page showed %q", seen)
	}
	b.until("requests are counted", `[...document.querySelectorAll('td[data-label="Requests"]')].some((e) => Number(e.textContent.replace(",", "")) >= 40)`)
	edit(rollout.Hold{Reason: "<b>lunch</b>"})
	b.until("the hold is shown", `document.querySelector(".banner") && document.querySelector(".banner").textContent.includes("Held by github:alice. <b>lunch</b>")`)
	if said := b.complaints(); len(said) > 0 {
		t.Errorf("the browser says %q", said)
	}
	if !evaluate[bool](b, `window.stays && document.querySelector("#about details").open`) {
		t.Error("the page was loaded anew, or closed what was open")
	}

	restart()
	b.until("it notices", `document.getElementById("live").className.includes("lost")`)
	edit(rollout.Resume{})
	serveControlPlane(t, store, strings.TrimPrefix(url, "http://"))
	b.until("it is live again, and has what it missed", `document.getElementById("live").textContent === "live" && !document.querySelector(".banner") && window.stays`)
}

// TestLoginInChromium: somebody logs in, sees the buttons at every width and colour, writes while the page follows a change, promotes, sees it, and
// logs out; the same without scripts. Nothing is complained about, not by the content policy either.
func TestLoginInChromium(t *testing.T) {
	b := openBrowser(t)
	h := open(t, ModeLogin) // its issuer, policy and endpoints
	h.issuer.LogIn(jwt.MapClaims{"sub": "u-1", "name": "Ada Lovelace, whose name is rather long here", "email": "ada@example.com", "email_verified": true, "groups": []string{"oncall"}})
	page, _ := serveControlPlane(t, h.store, "127.0.0.1:0", func(url string, o *Options) {
		h.issuer.Register(url + login.CallbackPath)
		policy, err := login.ParsePolicy([]byte(pagePolicy))
		if err != nil {
			t.Fatal(err)
		}
		l, err := login.New(login.Config{Issuer: h.issuer.URL, ClientID: h.issuer.ClientID, ClientSecret: h.issuer.ClientSecret, URL: url, Policy: policy})
		if err != nil {
			t.Fatal(err)
		}
		o.Mode, o.Login, o.Editor = ModeLogin, l, cluster.Editing(h.store)
	})
	widths := func(what string) {
		t.Helper()
		for _, width := range []int64{360, 1280} {
			for _, scheme := range []string{"light", "dark"} {
				b.look(width, scheme)
				b.fits(what, width, scheme)
				b.shoot(fmt.Sprintf("%s-%d-%s", what, width, scheme))
			}
		}
	}
	click := func(selector string) {
		t.Helper()
		b.do(chromedp.Do(b.ctx, chromedp.Click(selector)))
	}
	const path = "/endpoints/models/fraud"
	b.look(1280, "light")
	b.navigate(page + path)
	if text := evaluate[string](b, "document.body.innerText"); !strings.Contains(text, "shown to those who have logged in") || strings.Contains(text, treatment) {
		t.Errorf("before: %s", text)
	}
	widths("login")
	b.look(1280, "light")
	// That the answer is 403 is what the browser says there; nothing else is.
	for _, said := range b.complaints() {
		if !strings.Contains(said, "403") {
			t.Errorf("before: the browser says %q", said)
		}
	}
	click("main a.button")
	b.until("the endpoint is there, with buttons", `location.pathname === "`+path+`" && document.getElementById("do-promote-`+treatment+`") && document.getElementById("live").textContent === "live"`)
	widths("buttons")
	b.look(1280, "light")

	// When another command takes the place of one, no button can be pressed for a moment: a click was for what was there before.
	evaluate[bool](b, `(window.calm = [], new MutationObserver(() => {
		const buttons = [...document.querySelectorAll("#commands button")];
		window.calm.push(buttons[0].id + " " + [!!document.getElementById("do-resume"), buttons.every((x) => x.disabled), buttons.some((x) => x.disabled)].join());
	}).observe(document.getElementById("main"), {childList: true}), document.getElementById("do-promote-`+treatment+`").focus(), true)`)
	h.edit("held", "cli:bob", rollout.Hold{})
	b.until("it is held", `document.getElementById("do-resume")`)
	b.until("buttons can be pressed again, and the one that had the focus has it", `![...document.querySelectorAll("#commands button")].some((x) => x.disabled) && document.activeElement.id === "do-promote-`+treatment+`"`)
	if got := evaluate[[]string](b, "window.calm.filter((x) => x.includes('true,'))"); len(got) == 0 || got[0] != "do-promote-"+treatment+" true,true,true" {
		t.Errorf("when it was held: %q", got)
	}
	h.edit("went-on", "cli:bob", rollout.Resume{})
	b.until("it goes on", `document.getElementById("do-hold") && !document.getElementById("do-hold").disabled`)
	// A step of the strategy makes no command another.
	evaluate[bool](b, `(window.calm = [], true)`)

	// What is being written stays while the page follows.
	evaluate[bool](b, `(window.stays = true, document.getElementById("do-hold-reason").focus(), document.getElementById("do-hold-reason").value = "lunch", true)`)
	h.edit("step", rollout.Engine, rollout.Shift{Version: treatment, Percent: 60 * rollout.OnePercent})
	b.until("the share is followed", `document.querySelector("#shares").textContent.includes("60 %") && window.stays`)
	if !evaluate[bool](b, `document.getElementById("do-hold-reason").value === "lunch" && document.activeElement.id === "do-hold-reason"`) {
		t.Error("what was being written is gone")
	}
	if got := evaluate[string](b, "window.calm.join()"); got == "" || strings.Contains(got, "true") {
		t.Errorf("at a step: %q", got)
	}
	click("#do-hold")
	b.until("it is held", `document.getElementById("note") && document.body.innerText.includes("Held by oidc:ada@example.com. lunch") && document.getElementById("live").textContent === "live"`)
	click("#do-promote-" + treatment)
	b.until("it is promoted", `document.getElementById("note").textContent.includes("is control and default") && document.querySelector("#history").textContent.includes("promote `+treatment+`") && !document.getElementById("do-promote-`+treatment+`")`)
	widths("promoted")
	b.look(1280, "light")
	b.until("it is live", `document.getElementById("live").textContent === "live"`)
	evaluate[bool](b, "window.stays = true")
	h.edit("resumed", "cli:bob", rollout.Resume{})
	b.until("it follows, and the note stays", `!document.body.innerText.includes("Held by") && document.getElementById("note") && window.stays`)
	if said := b.complaints(); len(said) > 0 {
		t.Errorf("the browser says %q", said)
	}
	click("#who button")
	b.until("it is logged out", `location.pathname === "/" && document.body.innerText.includes("shown to those who have logged in")`)
	b.complaints()

	_, err := chromedp.Call(b.ctx, emulation.SetScriptExecutionDisabled, emulation.SetScriptExecutionDisabledParams{Value: true})
	b.do(err)
	b.navigate(page + "/login?to=" + path)
	b.until("it is logged in without scripts", `document.getElementById("do-lock")`)
	click("#do-lock")
	b.until("it is locked", `document.getElementById("do-unlock") && document.getElementById("note").textContent.includes("locked")`)
	if e := h.endpoint(fraud); e.Spec.Lock == nil || e.Spec.Lock.Actor != "oidc:ada@example.com" {
		t.Errorf("lock %+v", e.Spec.Lock)
	}
	if said := b.complaints(); len(said) > 0 {
		t.Errorf("without scripts the browser says %q", said)
	}
}
