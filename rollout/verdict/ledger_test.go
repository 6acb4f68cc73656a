package verdict

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func reports(t *testing.T, n int) []Evidence {
	t.Helper()
	e := New(defaults())
	out := []Evidence{}
	for i := range n {
		e.Observe(Label(i%2), 0.1, i%3 == 0)
		out = append(out, e)
	}
	return out
}

func update(t *testing.T, l *Ledger, epoch string, key Key, e Evidence, want Outcome) {
	t.Helper()
	if got, err := l.Update(epoch, key, e); err != nil || got != want {
		t.Fatalf("%s: %s, %v; want %s", epoch, got, err, want)
	}
}

func total(t *testing.T, l *Ledger, key Key, parts ...Evidence) {
	t.Helper()
	var want Evidence
	for _, p := range parts {
		if err := want.Merge(p); err != nil {
			t.Fatal(err)
		}
	}
	got, ok := l.Total(key)
	if !ok {
		t.Fatalf("nothing under %s", key)
	}
	same(t, want, got)
}

func TestLedgerKeepsTheLatestOfAnEpoch(t *testing.T) {
	r := reports(t, 30)
	var l Ledger
	if _, ok := l.Total("k"); ok {
		t.Error("an empty ledger has a total")
	}
	update(t, &l, "a", "k", r[4], Kept)
	update(t, &l, "a", "k", r[9], Kept)
	total(t, &l, "k", r[9])
	update(t, &l, "a", "k", r[9], Kept) // again
	update(t, &l, "a", "k", r[7], Stale)
	total(t, &l, "k", r[9])
	update(t, &l, "b", "k", r[19], Kept)
	update(t, &l, "b", "other", r[2], Kept)
	total(t, &l, "k", r[9], r[19])
	total(t, &l, "other", r[2])
	if got := l.Keys(); !slices.Equal(got, []Key{"k", "other"}) {
		t.Errorf("keys %v", got)
	}
	l.Keep("other")
	if _, ok := l.Total("k"); ok {
		t.Error("a key that was not kept has a total")
	}
	total(t, &l, "other", r[2])
}

func TestLedgerFoldsOnce(t *testing.T) {
	r := reports(t, 30)
	var l Ledger
	update(t, &l, "a", "k", r[9], Kept)
	update(t, &l, "b", "k", r[5], Kept)
	if !l.Fold("a") || l.Fold("a") || l.Fold("never seen") {
		t.Error("Fold says wrongly whether there was anything to fold")
	}
	total(t, &l, "k", r[9], r[5])
	update(t, &l, "a", "k", r[20], Folded)
	update(t, &l, "b", "k", r[6], Kept)
	total(t, &l, "k", r[9], r[6])
}

func TestLedgerRefuses(t *testing.T) {
	r := reports(t, 10)
	other := defaults()
	other.R1 = 5
	var l Ledger
	update(t, &l, "a", "k", r[5], Kept)
	sideways := New(defaults())
	sideways.ObserveGood(Treatment, 100)
	damaged := r[6]
	damaged.bad[Treatment] = 1000
	for name, c := range map[string]struct {
		epoch string
		key   Key
		e     Evidence
		says  string
	}{
		"other ratios":   {"a", "k", New(other), "ratios differ"},
		"empty":          {"a", "k", Evidence{}, "empty"},
		"not cumulative": {"a", "k", sideways, "not cumulative"},
		"damaged":        {"a", "k", damaged, "corrupted"},
		"no epoch":       {"", "k", r[5], "need 1 to"},
		"no key":         {"a", "", r[5], "need 1 to"},
		"long epoch":     {strings.Repeat("x", MaxNameLength+1), "k", r[5], "need 1 to"},
		"no UTF-8":       {"\xff", "k", r[5], "need 1 to"},
	} {
		if _, err := l.Update(c.epoch, c.key, c.e); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", name, err)
		}
	}
	total(t, &l, "k", r[5])
}

func TestLedgerIsBounded(t *testing.T) {
	r := reports(t, 3)
	var l Ledger
	var parts []Evidence
	const n = MaxEpochs + MaxFolded + 50
	for i := range n {
		update(t, &l, fmt.Sprintf("epoch-%d", i), "k", r[i%3], Kept)
		parts = append(parts, r[i%3])
	}
	total(t, &l, "k", parts...)
	a := l.accounts["k"]
	if len(a.epochs) != MaxEpochs || len(a.folded) != MaxFolded {
		t.Errorf("%d epochs and %d folded names are held", len(a.epochs), len(a.folded))
	}
	// The ones folded are those that reported longest ago.
	update(t, &l, fmt.Sprintf("epoch-%d", n-MaxEpochs), "k", r[2], Kept)
	update(t, &l, fmt.Sprintf("epoch-%d", n-MaxEpochs-1), "k", r[2], Folded)

	for i := range MaxKeys - 1 {
		update(t, &l, "a", Key(fmt.Sprintf("key-%d", i)), r[0], Kept)
	}
	if _, err := l.Update("a", "one more", r[0]); err == nil {
		t.Error("more than MaxKeys keys were taken")
	}
	l.Keep("k")
	update(t, &l, "a", "one more", r[0], Kept)
}

func TestLedgerSavesAndLoads(t *testing.T) {
	r := reports(t, 30)
	var l Ledger
	update(t, &l, "a", "k", r[9], Kept)
	update(t, &l, "b", "k", r[5], Kept)
	update(t, &l, "<c>", "k", r[2], Kept)
	update(t, &l, "a", "other", r[1], Kept)
	l.Fold("b")
	saved := l.Save()
	var back Ledger
	if err := back.Load(saved); err != nil {
		t.Fatal(err)
	}
	if back.Save() != saved {
		t.Errorf("saved %q, then %q", saved, back.Save())
	}
	for _, k := range l.Keys() {
		want, _ := l.Total(k)
		if got, ok := back.Total(k); !ok || got != want {
			t.Errorf("%s came back as %+v, not %+v", k, got, want)
		}
	}
	update(t, &back, "b", "k", r[20], Folded)
	update(t, &back, "a", "k", r[4], Stale)

	// A loaded key does not replace one held.
	update(t, &back, "a", "k", r[20], Kept)
	if err := back.Load(saved); err != nil {
		t.Fatal(err)
	}
	total(t, &back, "k", r[20], r[5], r[2])

	var one Ledger
	if err := one.Load(l.Save("other", "unknown")); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(one.Keys(), []Key{"other"}) {
		t.Errorf("keys %v", one.Keys())
	}

	for i := range saved {
		c := byte('0')
		if saved[i] == c {
			c = '1'
		}
		var x Ledger
		if x.Load(saved[:i]+string(c)+saved[i+1:]) == nil || x.Load(saved[:i]) == nil || len(x.Keys()) != 0 {
			t.Fatalf("damage at byte %d went unnoticed", i)
		}
	}
	sealed := func(body string) string { return "l1 " + checksum(body) + " " + body }
	ev := `"` + r[0].Save() + `"`
	for name, body := range map[string]string{
		"no base":       `[{"key":"k"}]`,
		"no key":        `[{"base":` + ev + `}]`,
		"key twice":     `[{"key":"k","base":` + ev + `},{"key":"k","base":` + ev + `}]`,
		"no evidence":   `[{"key":"k","base":` + ev + `,"epochs":[{"epoch":"a","at":1}]}]`,
		"epoch twice":   `[{"key":"k","base":` + ev + `,"epochs":[{"epoch":"a","at":1,"evidence":` + ev + `},{"epoch":"a","at":1,"evidence":` + ev + `}]}]`,
		"folded, alive": `[{"key":"k","base":` + ev + `,"folded":["a"],"epochs":[{"epoch":"a","at":1,"evidence":` + ev + `}]}]`,
	} {
		var x Ledger
		if x.Load(sealed(body)) == nil {
			t.Errorf("%s: loaded", name)
		}
	}
}

// Against a model that keeps everything: no report is lost or counted twice,
// through reordering, repetition, folding, saving and loading.
func TestLedgerAgainstAModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		type id struct{ key, epoch int }
		sent := map[id][]Evidence{} // all reports, in the order of observation
		kept := map[id]Evidence{}
		closed := map[id]bool{}
		l := &Ledger{}
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			x := id{rapid.IntRange(0, 1).Draw(t, "key"), rapid.IntRange(0, 3).Draw(t, "epoch")}
			key, epoch := Key(fmt.Sprint("k", x.key)), fmt.Sprint("e", x.epoch)
			switch rapid.SampledFrom([]string{"observe", "observe", "observe", "resend", "fold", "restart"}).Draw(t, "do") {
			case "observe":
				e := New(defaults())
				if s := sent[x]; len(s) > 0 {
					e = s[len(s)-1]
				}
				for range rapid.IntRange(1, 5).Draw(t, "events") {
					v := eventGen().Draw(t, "event")
					e.Observe(v.label, v.rho, v.bad)
				}
				sent[x] = append(sent[x], e)
				if rapid.Bool().Draw(t, "lost") {
					continue
				}
				got, err := l.Update(epoch, key, e)
				if err != nil || (got == Folded) != closed[x] {
					t.Fatalf("%s, %v", got, err)
				}
				if got == Kept {
					kept[x] = e
				}
			case "resend":
				if len(sent[x]) == 0 {
					continue
				}
				e := rapid.SampledFrom(sent[x]).Draw(t, "which")
				got, err := l.Update(epoch, key, e)
				if err != nil {
					t.Fatal(err)
				}
				if got == Kept {
					kept[x] = e
				}
			case "fold":
				l.Fold(epoch)
				for y := range kept {
					if y.epoch == x.epoch {
						closed[y] = true
					}
				}
			case "restart":
				next := &Ledger{}
				if err := next.Load(l.Save()); err != nil {
					t.Fatal(err)
				}
				l = next
			}
			for k := range 2 {
				var want Evidence
				for y, e := range kept {
					if y.key == k {
						if err := want.Merge(e); err != nil {
							t.Fatal(err)
						}
					}
				}
				got, ok := l.Total(Key(fmt.Sprint("k", k)))
				if ok != !want.None() {
					t.Fatalf("key %d: total %v", k, ok)
				}
				if ok {
					same(t, want, got)
				}
			}
		}
	})
}
