package local_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sluice-dev/sluice/pkg/cluster"
	"github.com/sluice-dev/sluice/pkg/cluster/clustertest"
	"github.com/sluice-dev/sluice/pkg/cluster/local"
	"github.com/sluice-dev/sluice/rollout"
)

func stacks() string {
	b := make([]byte, 1<<20)
	return string(b[:runtime.Stack(b, true)])
}

func newJournal(t *testing.T, dir string) *local.Journal {
	t.Helper()
	j, err := local.NewJournal(dir, discard())
	if err != nil {
		t.Fatal(err)
	}
	return j
}

func TestJournal(t *testing.T) {
	clustertest.Journal(t, func(t *testing.T) cluster.Journal { return newJournal(t, t.TempDir()) })
}

type alternatingJournal struct {
	journals []*local.Journal
	n        atomic.Uint32
}

func (a *alternatingJournal) next() *local.Journal {
	return a.journals[int(a.n.Add(1))%len(a.journals)]
}
func (a *alternatingJournal) Claim(ctx context.Context, e cluster.Entry) (cluster.Entry, bool, error) {
	return a.next().Claim(ctx, e)
}
func (a *alternatingJournal) Finish(ctx context.Context, name string, state cluster.EntryState, reason rollout.Reason, result string) error {
	return a.next().Finish(ctx, name, state, reason, result)
}
func (a *alternatingJournal) Entries(ctx context.Context) ([]cluster.Entry, error) {
	return a.next().Entries(ctx)
}
func (a *alternatingJournal) Prune(ctx context.Context, before time.Time) error {
	return a.next().Prune(ctx, before)
}

func TestJournalSharedDirectory(t *testing.T) {
	clustertest.Journal(t, func(t *testing.T) cluster.Journal {
		dir := t.TempDir()
		return &alternatingJournal{journals: []*local.Journal{newJournal(t, dir), newJournal(t, dir), newJournal(t, dir)}}
	})
}

func TestJournalTornLine(t *testing.T) {
	for name, torn := range map[string]string{
		"half a line":  `{"claim":{"name":"c-2-1","endpo`,
		"whole JSON":   `{"claim":{"name":"c-2-1"}}`, // but without its end: the call never returned
		"zeros":        "\x00\x00\x00\x00\x00\x00",
		"a line break": "\n",
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			j := newJournal(t, dir)
			if _, won, err := j.Claim(t.Context(), cluster.Entry{Name: "c-1-1"}); err != nil || !won {
				t.Fatal(won, err)
			}
			path := filepath.Join(dir, "journal.jsonl")
			f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := f.WriteString(torn); err != nil {
				t.Fatal(err)
			}
			if err := f.Close(); err != nil {
				t.Fatal(err)
			}
			for _, j := range []*local.Journal{j, newJournal(t, dir)} {
				if es, err := j.Entries(t.Context()); err != nil || len(es) != 1 {
					t.Fatalf("entries beside a torn line: %v, %v", es, err)
				}
			}
			if _, won, err := j.Claim(t.Context(), cluster.Entry{Name: "c-2-1"}); err != nil || !won {
				t.Fatalf("claim what was torn: %v, %v; want true", won, err)
			}
			if err := j.Finish(t.Context(), "c-1-1", cluster.EntryDone, "", "ok"); err != nil {
				t.Fatal(err)
			}
			es, err := newJournal(t, dir).Entries(t.Context())
			if err != nil || len(es) != 2 || es[0].Result != "ok" || es[1].Name != "c-2-1" {
				t.Errorf("entries after more was written: %+v, %v", es, err)
			}
		})
	}
}

func TestJournalDamagedLine(t *testing.T) {
	dir := t.TempDir()
	j := newJournal(t, dir)
	path := filepath.Join(dir, "journal.jsonl")
	for i := range 3 {
		if _, _, err := j.Claim(t.Context(), cluster.Entry{Name: fmt.Sprintf("c-%d-1", i)}); err != nil {
			t.Fatal(err)
		}
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.SplitAfter(string(data), "\n")
	lines[1] = "#" + lines[1][1:]
	if err := os.WriteFile(path+".new", []byte(strings.Join(lines, "")), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
	var log recorder
	j, err = local.NewJournal(dir, log.logger())
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if es, err := j.Entries(t.Context()); err != nil || len(es) != 2 {
			t.Fatalf("entries beside a damaged line: %v, %v", es, err)
		}
	}
	if n := strings.Count(log.String(), "no record"); n != 1 {
		t.Errorf("logged %d times, want once:\n%s", n, log.String())
	}
	if err := j.Prune(t.Context(), time.Time{}); err != nil {
		t.Fatal(err)
	}
	if kept, err := os.ReadFile(path + ".unreadable"); err != nil || string(kept) != lines[1] {
		t.Errorf("the damaged line is kept as %q, %v", kept, err)
	}
	if es, err := j.Entries(t.Context()); err != nil || len(es) != 2 {
		t.Errorf("entries after Prune: %v, %v", es, err)
	}
}

func TestJournalPruneMakesTheFileSmall(t *testing.T) {
	dir := t.TempDir()
	a, b := newJournal(t, dir), newJournal(t, dir)
	old := time.Now().Add(-time.Hour)
	for i := range 40 {
		e := cluster.Entry{Name: fmt.Sprintf("c-%d-1", i), At: old, Command: strings.Repeat("x", 200)}
		if i%10 == 0 {
			e.At = time.Now()
		}
		if _, _, err := a.Claim(t.Context(), e); err != nil {
			t.Fatal(err)
		}
		for n := range 4 {
			if err := a.Finish(t.Context(), e.Name, cluster.EntryDone, "", fmt.Sprint(n)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if es, err := b.Entries(t.Context()); err != nil || len(es) != 40 {
		t.Fatalf("%d entries, %v", len(es), err)
	}
	path := filepath.Join(dir, "journal.jsonl")
	before, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Prune(t.Context(), time.Now().Add(-time.Minute)); err != nil {
		t.Fatal(err)
	}
	after, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if after.Size()*5 > before.Size() || after.Mode().Perm() != 0o600 {
		t.Errorf("%d bytes of %d are left, mode %s", after.Size(), before.Size(), after.Mode())
	}
	for _, j := range []*local.Journal{a, b} {
		es, err := j.Entries(t.Context())
		if err != nil || len(es) != 4 || es[3].Result != "3" {
			t.Errorf("entries after Prune: %+v, %v", es, err)
		}
		if _, won, err := j.Claim(t.Context(), cluster.Entry{Name: "c-0-1"}); won || err != nil {
			t.Errorf("claim of what is kept: %v, %v", won, err)
		}
	}
}

func TestJournalClaimsAcrossProcesses(t *testing.T) {
	dir := t.TempDir()
	const processes, names = 4, 25
	var outs []*strings.Builder
	var waits []func() error
	for range processes {
		cmd := process(t, "claim", dir, "c", fmt.Sprint(names))
		var out strings.Builder
		cmd.Stdout = &out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		outs, waits = append(outs, &out), append(waits, cmd.Wait)
	}
	won := map[string]int{}
	for i, w := range waits {
		if err := w(); err != nil {
			t.Fatal(err)
		}
		for _, name := range strings.Fields(outs[i].String()) {
			won[name]++
		}
	}
	for i := range names {
		if n := won[fmt.Sprintf("c-%d", i)]; n != 1 {
			t.Errorf("%d processes won c-%d, want 1", n, i)
		}
	}
}

// What Claim returned true for is there after the claimant is killed, whenever that was.
func TestJournalKeepsClaimsOfKilledProcesses(t *testing.T) {
	dir := t.TempDir()
	var claimed []string
	for round := range 6 {
		cmd := process(t, "claim", dir, fmt.Sprint("r", round))
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		sc := bufio.NewScanner(out)
		for i := 0; sc.Scan(); i++ {
			claimed = append(claimed, sc.Text())
			if i == 5+round {
				_ = cmd.Process.Kill()
			}
		}
		_ = cmd.Wait()
		j := newJournal(t, dir)
		es, err := j.Entries(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		there := map[string]bool{}
		for _, e := range es {
			there[e.Name] = true
		}
		for _, name := range claimed {
			if !there[name] {
				t.Fatalf("round %d: claim %s was won and is gone", round, name)
			}
		}
		if _, won, err := j.Claim(t.Context(), cluster.Entry{Name: fmt.Sprint("after-", round)}); err != nil || !won {
			t.Fatalf("claim after a crash: %v, %v", won, err)
		}
	}
}

func TestJournalRefusesWhatIsTooLong(t *testing.T) {
	j := newJournal(t, t.TempDir())
	if _, _, err := j.Claim(t.Context(), cluster.Entry{Name: "c-1-1", Command: strings.Repeat("x", 2<<20)}); err == nil {
		t.Error("an entry of 2 MiB was taken")
	}
	if es, err := j.Entries(t.Context()); err != nil || len(es) != 0 {
		t.Errorf("entries: %d, %v", len(es), err)
	}
}

func TestJournalWithoutDisk(t *testing.T) {
	dir := t.TempDir()
	j := newJournal(t, dir)
	// A directory where the file should be fails every write, also for root.
	if err := os.Mkdir(filepath.Join(dir, "journal.jsonl"), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, won, err := j.Claim(t.Context(), cluster.Entry{Name: "c-1-1"}); won || err == nil {
		t.Errorf("claim without a disk: %v, %v", won, err)
	}
	if err := j.Finish(t.Context(), "c-1-1", cluster.EntryDone, "", ""); err == nil || errors.Is(err, cluster.ErrNotFound) {
		t.Errorf("finish without a disk: %v", err)
	}
}
