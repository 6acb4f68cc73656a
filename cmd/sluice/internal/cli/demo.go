package cli

import (
	"bytes"
	"cmp"
	"context"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/sluice-dev/sluice"
	"github.com/sluice-dev/sluice/cmd/sluice/internal/up"
	"github.com/sluice-dev/sluice/pkg/cluster"
	"github.com/sluice-dev/sluice/pkg/deploy"
	"github.com/sluice-dev/sluice/pkg/page"
	"github.com/sluice-dev/sluice/pkg/project"
	"github.com/sluice-dev/sluice/pkg/telemetry"
	"github.com/sluice-dev/sluice/rollout"
)

const (
	demoRate    = 150 // requests per second
	demoTimeout = 90 * time.Second
)

func (a *app) demoCmd() *cobra.Command {
	var keep bool
	c := &cobra.Command{
		Use:   "demo",
		Short: "Watch a good version being promoted and a bad one rolled back, on this machine",
		Long: `Deploy a sample model repository as the control, send it real traffic, then deploy a
retrained copy (it climbs its steps and is promoted) and a copy with a mistake (it is
rolled back). Everything runs in a directory of its own and is gone afterwards.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return a.demo(c.Context(), keep) },
	}
	c.Flags().BoolVar(&keep, "keep", false, "keep the demo's directory and say where it is")
	return c
}

// demo is one run of the demonstration.
type demo struct {
	*app
	dir    string
	src    string
	sys    *system
	at     up.Addresses
	load   *load
	report *telemetry.HTTPReporter
	key    rollout.Key
	live   bool
	drawn  int
	began  time.Time
	// asked is when the person typed the command, compiling included, if the Makefile says so.
	asked time.Time
}

func (a *app) demo(ctx context.Context, keep bool) (err error) {
	if _, err := exec.LookPath("python3"); err != nil {
		return errors.New("the demo runs a Python model and finds no python3: install Python 3 (on Debian or Ubuntu: apt-get install python3) and try again")
	}
	dir, err := os.MkdirTemp("", "sluice-demo-")
	if err != nil {
		return fmt.Errorf("make a directory for the demo: %w", err)
	}
	if keep {
		defer func() { a.say("\nkept: %s", dir) }()
	} else {
		defer func() { _ = os.RemoveAll(dir) }()
	}
	d := &demo{app: a, dir: dir, src: filepath.Join(dir, "breast-cancer"), key: rollout.Key{Namespace: a.namespace, Name: "breast-cancer"}, began: time.Now()}
	if t, err := strconv.ParseInt(a.io.Getenv("SLUICE_DEMO_ASKED"), 10, 64); err == nil {
		d.asked = time.Unix(t, 0)
	}
	if f, ok := a.io.Out.(*os.File); ok {
		d.live = term.IsTerminal(int(f.Fd()))
	}
	sample, err := sluice.Sample()
	if err != nil {
		return err
	}
	if err := os.CopyFS(d.src, sample); err != nil {
		return fmt.Errorf("copy the sample repository: %w", err)
	}

	a.state = filepath.Join(dir, "state")
	logs, err := os.Create(filepath.Join(dir, "system.log"))
	if err != nil {
		return err
	}
	defer func() { _ = logs.Close() }()
	o := up.Options{State: a.state, Router: "127.0.0.1:0", API: "127.0.0.1:0", Admin: "127.0.0.1:0", Page: string(page.ModeLoopback), Out: logs, Logger: slog.New(slog.NewTextHandler(logs, nil))}
	if err := a.complete(&o); err != nil {
		return err
	}
	o.GitHub = false
	ready := make(chan up.Addresses, 1)
	o.Ready = func(at up.Addresses) { ready <- at }
	upCtx, stop := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- up.Run(upCtx, o) }()
	defer func() {
		stop()
		if uerr := <-ended; err == nil && uerr != nil {
			err = uerr
		}
	}()
	select {
	case d.at = <-ready:
	case err := <-ended:
		ended <- nil
		return err
	}
	if d.sys, err = a.open(ctx); err != nil {
		return err
	}
	d.report = telemetry.NewHTTPReporter("http://" + d.at.Admin)
	if err := d.run(ctx); err != nil {
		_ = logs.Sync()
		if tail := lastLines(logs.Name(), 20); tail != "" {
			a.say("\nthe system's last lines:\n%s", tail)
		}
		return err
	}
	return nil
}

func (d *demo) run(ctx context.Context) error {
	d.say("1. The sample repository becomes the control.")
	control, err := d.deploy(ctx)
	if err != nil {
		return err
	}
	if err := d.traffic(ctx); err != nil {
		return err
	}
	loadCtx, stopLoad := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		d.load.run(loadCtx)
	}()
	defer func() {
		stopLoad()
		<-done
	}()
	d.say("   %d requests per second of real rows flow to %s; the page at http://%s/ shows it", demoRate, d.load.url, d.at.API)

	d.say("\n2. A retrained copy becomes a treatment (python3 train.py --epochs 400).")
	if err := d.train(ctx); err != nil {
		return err
	}
	good, err := d.deploy(ctx)
	if err != nil {
		return err
	}
	e, err := d.watch(ctx, good, func(e *rollout.Endpoint) bool {
		v := e.Spec.Version(good)
		return v == nil || v.Type == rollout.Control || !v.RetiredAt.IsZero()
	})
	if err != nil {
		return err
	}
	if v := e.Spec.Version(good); v == nil || v.Type != rollout.Control {
		return fmt.Errorf("the good treatment %s was not promoted", good)
	}
	promoted := d.lastChange(e, "promote "+good)

	d.say("\n3. A copy with a mistake becomes a treatment (score.py looks large tumours up in a table that ends too early).")
	if err := d.breakScript(); err != nil {
		return err
	}
	bad, err := d.deploy(ctx)
	if err != nil {
		return err
	}
	e, err = d.watch(ctx, bad, func(e *rollout.Endpoint) bool {
		v := e.Spec.Version(bad)
		return v == nil || v.Type == rollout.Control || !v.RetiredAt.IsZero()
	})
	if err != nil {
		return err
	}
	if v := e.Spec.Version(bad); v == nil || v.RetiredAt.IsZero() {
		return fmt.Errorf("the bad treatment %s was not rolled back", bad)
	}
	rolled := d.lastChange(e, "rollback "+bad)
	stopLoad()
	<-done

	l := d.load
	d.say("\nWhat happened, and why")
	t := table{}
	t.add("  "+control, "first version: control; now "+word(e, control))
	t.add("  "+good, fmt.Sprintf("promoted after %s, rule %s", d.since(e, good, promoted), promoted.Evidence))
	t.add("  "+bad, fmt.Sprintf("rolled back after %s, rule %s", d.since(e, bad, rolled), rolled.Evidence))
	t.write(d.io.Out)
	d.say("Clients sent %d requests and saw %d bad answers: %d from %s, %d from %s, %d from %s.",
		l.sent.Load(), l.bad.Load(), l.badOf(control), control, l.badOf(good), good, l.badOf(bad), bad)
	if l.lastly != "" {
		d.say("The last of them: %s", l.lastly)
	}
	d.say("Took %s. Next: `sluice up`, and `sluice deploy` in a repository of your own.", time.Since(d.began).Round(time.Second))
	return nil
}

func (a *app) say(format string, args ...any) { _, _ = fmt.Fprintf(a.io.Out, format+"\n", args...) }

func word(e *rollout.Endpoint, name string) string {
	switch v := e.Spec.Version(name); {
	case v == nil:
		return "evicted"
	case v.Type != rollout.Untyped:
		return string(v.Type)
	default:
		return "without a role"
	}
}

func (d *demo) deploy(ctx context.Context) (string, error) {
	res, err := deploy.Run(ctx, deploy.Options{
		Dir: d.src, Namespace: d.namespace, Actor: d.actor(), Timeout: demoTimeout, Logger: d.log,
		Shipper: d.sys.Shipper(project.Source{}, nil), Endpoints: cluster.Editing(d.sys.Store), Keys: d.sys.Keys, Logs: d.sys.Logs,
		Progress: func(format string, args ...any) { d.say("   "+format, args...) },
	})
	if ctx.Err() != nil {
		err = ctx.Err() // what an interrupted deploy advises is gone with the demo
	}
	return res.Version, err
}

func (d *demo) train(ctx context.Context) error {
	cmd := exec.CommandContext(ctx, "python3", "-B", "train.py", "--epochs", "400")
	cmd.Dir = d.src
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("train the model: %w: %s", err, out)
	}
	d.say("   %s", bytes.TrimSpace(out))
	return nil
}

// breakScript puts a plausible mistake into the scoring script.
func (d *demo) breakScript() error {
	path := filepath.Join(d.src, "score.py")
	src, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	const before = "    z = model[\"bias\"]\n"
	const after = "    z = model[\"bias\"] + SIZE_BIAS[int(row[3]) // 400]\n"
	changed := strings.Replace(string(src), before, after, 1)
	changed = strings.Replace(changed, "model = None\n", "model = None\nSIZE_BIAS = [0.1, 0.0, -0.1]  # by area: up to 400, 800, 1200\n", 1)
	if changed == string(src) || !strings.Contains(changed, after) {
		return errors.New("the sample's score.py is not as the demo expects it")
	}
	return os.WriteFile(path, []byte(changed), 0o644)
}

// traffic makes the load from the rows of the data set.
func (d *demo) traffic(ctx context.Context) error {
	f, err := os.Open(filepath.Join(d.src, "data", "breast_cancer.csv"))
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	r := csv.NewReader(f)
	r.FieldsPerRecord = -1
	rows, err := r.ReadAll()
	if err != nil {
		return err
	}
	var bodies [][]byte
	for _, row := range rows[1:] {
		var x []float64
		for _, c := range row[:len(row)-1] {
			v, err := strconv.ParseFloat(c, 64)
			if err != nil {
				return err
			}
			x = append(x, v)
		}
		b, err := json.Marshal(map[string][][]float64{"data": {x}})
		if err != nil {
			return err
		}
		bodies = append(bodies, b)
	}
	e, err := d.sys.Store.Get(ctx, d.key)
	if err != nil {
		return err
	}
	keys, err := d.sys.Keys.Keys(ctx, d.key)
	if err != nil {
		return err
	}
	d.load = newLoad(e.Status.ScoringURI, keys.Primary, bodies, demoRate)
	return nil
}

// watch draws the table each second until the condition holds.
func (d *demo) watch(ctx context.Context, version string, until func(*rollout.Endpoint) bool) (*rollout.Endpoint, error) {
	ctx, cancel := context.WithTimeout(ctx, demoTimeout)
	defer cancel()
	d.drawn = 0
	look := time.NewTicker(100 * time.Millisecond)
	defer look.Stop()
	var drawn time.Time
	last := map[string]telemetry.VersionReport{}
	for {
		e, err := d.sys.Store.Get(ctx, d.key)
		if err == nil {
			over := until(e)
			if over || time.Since(drawn) >= time.Second {
				drawn = time.Now()
				d.draw(ctx, e, last)
			}
			if over {
				return e, nil
			}
		}
		select {
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.DeadlineExceeded) {
				return nil, fmt.Errorf("%s was neither promoted nor rolled back within %s", version, demoTimeout)
			}
			return nil, ctx.Err()
		case <-look.C:
		}
	}
}

// draw shows shares, requests, errors, latency and evidence as they are.
func (d *demo) draw(ctx context.Context, e *rollout.Endpoint, last map[string]telemetry.VersionReport) {
	rep, err := d.report.Report(ctx)
	if err != nil {
		return
	}
	by := map[string]telemetry.VersionReport{}
	for _, v := range rep.Versions {
		if v.Endpoint == d.key {
			by[v.Version] = v
		}
	}
	evidence := map[string]rollout.EvidenceStatus{}
	if r := e.Status.Rollout; r != nil {
		for _, ev := range r.Evidence {
			evidence[ev.Treatment] = ev
		}
	}
	t := table{}
	t.add(fmt.Sprintf("   %5.1fs", time.Since(d.began).Seconds()), "TYPE", "SHARE", "", "READY", "REQUESTS", "ERRORS", "P50", "P99", "EVIDENCE")
	for _, sh := range e.Spec.Shares() {
		v := e.Spec.Version(sh.Name)
		if !v.RetiredAt.IsZero() && time.Since(v.RetiredAt) > 5*time.Second {
			continue
		}
		m, st := by[sh.Name], e.Status.Version(sh.Name)
		note := ""
		if ev, ok := evidence[sh.Name]; ok {
			note = fmt.Sprintf("%s: bad rate at most %s %%, ln E worse %s", ev.Verdict, ev.BadUpperBound, ev.LogEvidenceWorse)
		}
		t.add("   "+sh.Name, cmp.Or(string(v.Type), "-"), sh.Percent.String()+"%", bar(sh.Percent, 20), fmt.Sprint(st.ReadyReplicas),
			fmt.Sprint(m.Requests), fmt.Sprint(m.Failed), millis(m.P50Seconds), millis(m.P99Seconds), note)
	}
	if !d.asked.IsZero() {
		d.say("   first line of the table %s after the command was typed, compiling included", time.Since(d.asked).Round(time.Second))
		d.asked = time.Time{}
	}
	var b bytes.Buffer
	t.write(&b)
	if d.live && d.drawn > 0 {
		_, _ = fmt.Fprintf(d.io.Out, "\x1b[%dA\x1b[J", d.drawn)
	}
	_, _ = io.Copy(d.io.Out, bytes.NewReader(b.Bytes()))
	d.drawn = bytes.Count(b.Bytes(), []byte("\n"))
}

func millis(seconds float64) string {
	if seconds == 0 {
		return "-"
	}
	return strconv.FormatFloat(seconds*1000, 'f', 1, 64) + "ms"
}

func (d *demo) lastChange(e *rollout.Endpoint, action string) rollout.Change {
	for i := len(e.Spec.Changes) - 1; i >= 0; i-- {
		if e.Spec.Changes[i].Action == action {
			return e.Spec.Changes[i]
		}
	}
	return rollout.Change{}
}

// since is the time from a version's first share to its last change.
func (d *demo) since(e *rollout.Endpoint, version string, c rollout.Change) string {
	for _, x := range e.Spec.Changes {
		if strings.HasPrefix(x.Action, "traffic "+version+" ") {
			return c.At.Sub(x.At).Round(100 * time.Millisecond).String()
		}
	}
	return "no traffic"
}

// lastLines of a file.
func lastLines(path string, n int) string {
	b, err := fs.ReadFile(os.DirFS(filepath.Dir(path)), filepath.Base(path))
	if err != nil {
		return ""
	}
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
