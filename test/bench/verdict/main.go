// Command verdict measures the sequential tests of rollout/verdict by simulation: how
// often they are wrong, and how many treatment requests they need. All runs use the
// shipped code, one call of Observe per bad event.
package main

import (
	"bufio"
	"flag"
	"fmt"
	"io"
	"math"
	"os"
	"runtime"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/sluice-dev/sluice/rollout"
	"github.com/sluice-dev/sluice/rollout/verdict"
)

func main() {
	runs := flag.Int("runs", 2000, "runs per cell")
	quick := flag.Bool("quick", false, "200 runs per cell: a look, not a measurement")
	seed := flag.Uint64("seed", 1, "seed of the random numbers")
	workers := flag.Int("workers", runtime.GOMAXPROCS(0), "runs at a time; results do not depend on it")
	flag.Parse()
	if *quick {
		*runs = 200
	}
	if *runs < 1 || *workers < 1 || flag.NArg() > 0 {
		flag.Usage()
		os.Exit(2)
	}
	b := &bench{params: verdict.ParamsOf(rollout.Strategy{}), seed: *seed, runs: *runs, workers: *workers}
	if err := report(os.Stdout, b); err != nil {
		fmt.Fprintln(os.Stderr, "verdict:", err)
		os.Exit(1)
	}
}

func report(to io.Writer, b *bench) error {
	began := time.Now()
	out := bufio.NewWriter(to)
	p := b.params
	_, _ = fmt.Fprintf(out, "The verdict, simulated: %d runs per cell; r0 %g, r1 %g, maxBadPercent %g; ramp 1→5→20→50 %% after 500, 1,500, 3,500 treatment requests.\n",
		b.runs, p.R0, p.R1, p.MaxBadPercent)
	_, _ = fmt.Fprintf(out, "Every e-value is looked at after every request. Numbers of requests are the treatment's.\n")
	for _, t := range []func(*bench) table{falseAlarms, detection, promotion, falsePromotion, bounded, policy} {
		if err := out.Flush(); err != nil { // show each table when it is ready
			return err
		}
		t(b).print(out)
	}
	_, _ = fmt.Fprintf(out, "\n%d runs per cell took %s on %d workers.\n", b.runs, time.Since(began).Round(time.Second), b.workers)
	return out.Flush()
}

type table struct {
	title string
	notes []string
	rows  [][]string // the first is the head
}

func (t *table) add(cells ...string) { t.rows = append(t.rows, cells) }

func (t table) print(to io.Writer) {
	_, _ = fmt.Fprintf(to, "\n%s\n", t.title)
	w := tabwriter.NewWriter(to, 0, 0, 2, ' ', tabwriter.AlignRight)
	for _, r := range t.rows {
		_, _ = fmt.Fprintln(w, strings.Join(r, "\t")+"\t")
	}
	_ = w.Flush() // the buffered writer below keeps the error
	for _, n := range t.notes {
		_, _ = fmt.Fprintf(to, "  %s\n", n)
	}
}

const horizon = 50_000

func falseAlarms(b *bench) table {
	t := table{title: "1. False alarms: an equal treatment ever rolled back, over the ramp"}
	t.add("base bad rate", "α = 1 %", "α = 5 %")
	row := func(name string, s scenario) {
		s.ramp, s.horizon = ramp(), horizon
		rs := b.all(s, worse1)
		t.add(name, percent(share(rs, worse1)), percent(share(rs, worse5)))
	}
	for _, p := range []float64{0, 0.001, 0.01, 0.05} {
		row(number(100*p)+" %", scenario{control: p, treatment: p})
	}
	row("1 %, drifting ×19", scenario{control: 0.01, treatment: 0.01, drift: true})
	row("1 %, in bursts of 10, each observed", scenario{control: 0.01, treatment: 0.01, burst: 10})
	row("1 %, in bursts of 10, observed once", scenario{control: 0.01, treatment: 0.01, burst: 10, once: true})
	t.notes = []string{
		fmt.Sprintf("standard error of a rate of 1 %%: %s; of 5 %%: %s", percent(standardError(0.01, b.runs)), percent(standardError(0.05, b.runs))),
		fmt.Sprintf("until %s treatment requests; bursts: one cause breaks ten requests of one arm on average,", group(horizon)),
		"which breaks the promise unless the router observes such a cause once",
	}
	return t
}

func detection(b *bench) table {
	t := table{title: "2. Requests to decide: base 1 %, share 5 %, α = 1 %, β = 5 %"}
	t.add("ratio", "rule", "median", "p90", "Wald floor", "floor at 5 %", "bad seen, median", "decided")
	for _, c := range []struct {
		ratio   float64
		horizon int64
	}{{1, 60_000}, {1.5, 200_000}, {2, 60_000}, {5, 10_000}, {20, 2_000}, {100, 1_000}} {
		s := scenario{control: 0.01, treatment: 0.01 * c.ratio, ramp: constant(0.05), horizon: c.horizon}
		x, level, null, name := worse1, alphaStrict, b.params.R0, "worse"
		if c.ratio == 1 {
			x, level, null, name = fine25, beta/2, b.params.R1, "not_worse"
		}
		rs := b.all(s, x)
		t.add("×"+number(c.ratio), name, requests(quantile(rs, x, 0.5)), requests(quantile(rs, x, 0.9)),
			float(wald(level, s.control, c.ratio, null)), float(waldAt(level, s.control, c.ratio, null, 0.05)),
			requests(badSeen(rs, x)), percent(share(rs, x)))
	}
	t.notes = []string{"Wald floor: the fewest on average for any test, with the control's rate known; at 5 %: with it learned from the control's bad events"}
	return t
}

func promotion(b *bench) table {
	t := table{title: "3. Requests to promote an equal treatment by not_worse alone: base 1 %, r1 2"}
	t.add("share", "level β = 5 %: median", "p90", "floor", "level β/2: median", "p90", "floor")
	row := func(name string, ph []phase, rho float64) {
		s := scenario{control: 0.01, treatment: 0.01, ramp: ph, horizon: 200_000}
		rs := b.all(s, fine25)
		t.add(name, requests(quantile(rs, fine5, 0.5)), requests(quantile(rs, fine5, 0.9)), float(waldAt(beta, s.control, 1, b.params.R1, rho)),
			requests(quantile(rs, fine25, 0.5)), requests(quantile(rs, fine25, 0.9)), float(waldAt(beta/2, s.control, 1, b.params.R1, rho)))
	}
	for _, rho := range []float64{0.01, 0.05, 0.10, 0.20, 0.50} {
		row(number(100*rho)+" %", constant(rho), rho)
	}
	row("ramp", ramp(), 0.01)
	t.notes = []string{"floor: at that share; for the ramp, at 1 %"}
	return t
}

func falsePromotion(b *bench) table {
	const more = 4
	runs := more * b.runs
	t := table{title: fmt.Sprintf("4. False promotions over the ramp, β = 5 %%: ever fit for promotion at r1 = 2 and above (%s runs per cell)", group(int64(runs)))}
	t.add("control", "treatment", "not_worse alone at β", "at β/2", "bounded at β/2", "either at β/2", "… before worse")
	for _, c := range []struct{ control, treatment float64 }{
		{0.001, 0.002}, {0.01, 0.02}, {0.05, 0.10},
		{0.005, 0.01}, {0.005, 0.0101}, {0.0051, 0.0102}, {0.002, 0.0101},
	} {
		s := scenario{control: c.control, treatment: c.treatment, ramp: ramp(), horizon: horizon}
		rs := b.many(runs, s, fine25, bound25)
		limit := b.params.MaxBadPercent / 100
		both, bound, first := percent(share(rs, fine25, bound25)), percent(share(rs, bound25)), percent(promotedFirst(rs))
		if c.treatment < limit {
			bound, both, first = "(allowed)", "(allowed)", "(allowed)"
		}
		t.add(number(100*c.control)+" %", number(100*c.treatment)+" %",
			percent(share(rs, fine5)), percent(share(rs, fine25)), bound, both, first)
	}
	t.notes = []string{
		fmt.Sprintf("until %s treatment requests; (allowed): below maxBadPercent a treatment may be promoted, however good its control is", group(horizon)),
		"before worse: with the rollback at α = 1 % on, as in a rollout",
		fmt.Sprintf("standard error of a rate of 2.5 %%: %s; of 5 %%: %s", percent(standardError(0.025, runs)), percent(standardError(0.05, runs))),
	}
	return t
}

// promotedFirst is the share of runs in which a promotion rule fired before the rollback.
func promotedFirst(rs []result) float64 {
	k := 0
	for _, r := range rs {
		if at := min(r.at[fine25], r.at[bound25]); at != never && at < r.at[worse1] {
			k++
		}
	}
	return float64(k) / float64(len(rs))
}

func bounded(b *bench) table {
	limit := b.params.MaxBadPercent / 100
	t := table{title: "5. Requests to be bounded below 1 %, at β/2"}
	t.add("bad rate", "median", "p90", "Wald floor", "ever bounded")
	for _, p := range []float64{0, 0.0005, 0.001, 0.002, 0.003, 0.005, 0.01, 0.0101} {
		h := int64(100_000)
		s := scenario{treatment: p, ramp: constant(0.05), horizon: h}
		rs := b.all(s, bound25)
		floor := "–"
		if p < limit {
			floor = float(waldBound(beta/2, p, limit))
		}
		t.add(number(100*p)+" %", requests(quantile(rs, bound25, 0.5)), requests(quantile(rs, bound25, 0.9)), floor, percent(share(rs, bound25)))
	}
	t.notes = []string{fmt.Sprintf("until 100,000 treatment requests; the last two rows are false promotions, promised at most 2.5 %% (standard error %s)",
		percent(standardError(0.025, b.runs)))}
	return t
}

func policy(b *bench) table {
	t := table{title: "6. The whole policy over the ramp, α = 1 %, β = 5 %: which rule fires first"}
	t.add("control", "ratio", "worse", "not_worse", "bounded", "undecided", "median requests", "p90")
	for _, base := range []float64{0.001, 0.01, 0.05} {
		for _, ratio := range []float64{0, 1, 2, 5, 20} {
			s := scenario{control: base, treatment: min(1, base*ratio), ramp: ramp(), horizon: horizon}
			rs := b.all(s, worse1, fine25, bound25)
			var n [4]int
			at := make([]int64, len(rs))
			for i, r := range rs {
				at[i] = min(r.at[worse1], r.at[fine25], r.at[bound25])
				switch at[i] {
				case never:
					n[3]++
				case r.at[worse1]:
					n[0]++
				case r.at[fine25]:
					n[1]++
				default:
					n[2]++
				}
			}
			cells := []string{number(100*base) + " %", "×" + number(ratio)}
			for _, k := range n {
				cells = append(cells, percent(float64(k)/float64(len(rs))))
			}
			t.add(append(cells, requests(pick(at, 0.5)), requests(pick(at, 0.9)))...)
		}
	}
	return t
}

// standardError of a rate p measured in n runs.
func standardError(p float64, n int) float64 { return math.Sqrt(p * (1 - p) / float64(n)) }

func percent(f float64) string { return strconv.FormatFloat(100*f, 'f', 2, 64) + " %" }
func number(f float64) string  { return strconv.FormatFloat(f, 'g', 6, 64) }

func requests(n int64) string {
	if n == never {
		return "not yet"
	}
	return group(n)
}

func float(f float64) string { return group(int64(f + 0.5)) }

func group(n int64) string {
	s := strconv.FormatInt(n, 10)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}
