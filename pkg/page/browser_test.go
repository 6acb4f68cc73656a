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

	"github.com/sluice-dev/sluice/pkg/api"
	"github.com/sluice-dev/sluice/pkg/cluster"
	"github.com/sluice-dev/sluice/pkg/webhook"
)

// serveControlPlane runs the role api with the page, as the programs do, and gives its address.
func serveControlPlane(t *testing.T, store cluster.Store, mode Mode) string {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p, err := New(ctx, Options{Store: store, Mode: mode, Next: api.Off()})
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() {
		ended <- webhook.Run(ctx, webhook.Options{Roles: []webhook.Role{webhook.RoleAPI}, Listener: l, Store: store, API: p, Ending: p.Close, Logger: slog.New(slog.DiscardHandler), Grace: 5 * time.Second})
	}()
	t.Cleanup(func() {
		began := time.Now()
		stop()
		if err := <-ended; err != nil {
			t.Errorf("the control plane ended with %v", err)
		}
		if took := time.Since(began); took > 3*time.Second {
			t.Errorf("the end took %s: open streams held it up", took)
		}
	})
	return "http://" + l.Addr().String()
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
		chromedp.ExecPath(path), chromedp.NoSandbox, chromedp.UserDataDir(t.TempDir()), chromedp.WSURLReadTimeout(time.Minute))...)
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
	url := serveControlPlane(t, tell(t, time.Now()), ModeLoopback)
	for _, path := range []string{"/", "/endpoints/models/fraud", "/endpoints/models/churn", "/endpoints/models/ranking", "/endpoints/models/pricing-with-a-rather-long-name", "/endpoints/speech/transcribe"} {
		b.look(1280, "light")
		b.navigate(url + path)
		b.until(path+" is live", `document.getElementById("live").textContent === "live"`)
		for _, width := range []int64{360, 1280} {
			for _, scheme := range []string{"light", "dark"} {
				b.look(width, scheme)
				wide := evaluate[struct {
					Window, Page int
					Out          []string
				}](b, `({Window: document.documentElement.clientWidth, Page: document.documentElement.scrollWidth,
					Out: [...document.querySelectorAll("main *")].filter((e) => e.getBoundingClientRect().right > document.documentElement.clientWidth + 1 && !e.closest(".sr, svg, thead")).map((e) => e.outerHTML.slice(0, 90))})`)
				if wide.Page > wide.Window || len(wide.Out) > 0 || int64(wide.Window) != width {
					t.Errorf("%s at %d px: the window has %d px, the page %d; too wide: %q", path, width, wide.Window, wide.Page, wide.Out)
				}
				b.shoot(fmt.Sprintf("%s-%d-%s", strings.Trim(strings.ReplaceAll(path, "/", "-"), "-")+"page", width, scheme))
			}
		}
		if said := b.complaints(); len(said) > 0 {
			t.Errorf("%s: the browser says %q", path, said)
		}
	}
}
