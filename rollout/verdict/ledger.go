package verdict

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"unicode/utf8"
)

// The bounds of a ledger.
const (
	// MaxKeys is how many comparisons a ledger holds.
	MaxKeys = 1024
	// MaxEpochs is how many router epochs it keeps apart per key.
	MaxEpochs = 64
	// MaxFolded is how many folded epochs per key it remembers by name.
	MaxFolded = 256
	// MaxNameLength is the longest name of an epoch or a key, in bytes.
	MaxNameLength = 128
)

// Outcome of a report to a ledger.
type Outcome string

// The outcomes.
const (
	// Kept: the report replaced the epoch's earlier one, or is its first.
	Kept Outcome = "kept"
	// Stale: the report is older than the one kept (they were reordered) and was ignored.
	Stale Outcome = "stale"
	// Folded: the epoch is closed and the report was ignored.
	Folded Outcome = "folded"
)

// Ledger adds up the evidence of many routers without counting any twice. Routers
// report what they have observed since their start, under an epoch that names that
// run of the process; the ledger keeps the latest report per key and epoch.
//
// An epoch that no longer reports goes on counting with its last report, so a router
// that cannot be reached for a while needs no attention. The number of epochs is bounded: beyond
// MaxEpochs the one that reported longest ago is folded (see Fold). A Ledger is
// not safe for concurrent use; the zero value is empty and ready.
type Ledger struct {
	accounts map[Key]*account
}

type account struct {
	// base is the sum of the folded epochs, and carries the ratios.
	base Evidence
	// epochs in the order of their names, so that sums do not depend on who reported last.
	epochs []entry
	// folded epochs' names, oldest first.
	folded []string
	// clock counts reports.
	clock int64
}

type entry struct {
	Epoch    string   `json:"epoch"`
	At       int64    `json:"at"`
	Evidence Evidence `json:"evidence"`
}

// Update records an epoch's cumulative evidence under a key, replacing its
// earlier one. A report with fewer observations than the one kept is stale. Errors: a
// report that is empty, damaged, taken with other ratios than the key's earlier ones, or
// not cumulative (some counts above and some below the one kept); a new key beyond MaxKeys.
func (l *Ledger) Update(epoch string, key Key, e Evidence) (Outcome, error) {
	out, err := l.update(epoch, key, e)
	if err != nil {
		return "", fmt.Errorf("record evidence of epoch %.40q under key %.40q: %w", epoch, key, err)
	}
	return out, nil
}

func (l *Ledger) update(epoch string, key Key, e Evidence) (Outcome, error) {
	if !named(epoch) || !named(string(key)) {
		return "", fmt.Errorf("epoch and key need 1 to %d bytes of UTF-8", MaxNameLength)
	}
	if err := e.check(); err != nil {
		return "", err
	}
	if e.r1 == 0 {
		return "", errors.New("it is empty")
	}
	a := l.accounts[key]
	if a == nil {
		if len(l.accounts) >= MaxKeys {
			return "", fmt.Errorf("%d comparisons are held already; Keep those that still run", MaxKeys)
		}
		a = &account{base: Evidence{r0: e.r0, r1: e.r1}}
		if l.accounts == nil {
			l.accounts = map[Key]*account{}
		}
		l.accounts[key] = a
	}
	if !a.base.comparable(e) {
		return "", fmt.Errorf("ratios differ: r0 %g and r1 %g against r0 %g and r1 %g", e.r0, e.r1, a.base.r0, a.base.r1)
	}
	if slices.Contains(a.folded, epoch) {
		return Folded, nil
	}
	i, found := a.find(epoch)
	if found {
		switch more, fewer := compare(e, a.epochs[i].Evidence); {
		case more && fewer:
			return "", errors.New("it is not cumulative: some counts rose and some fell")
		case fewer:
			return Stale, nil
		}
	}
	a.clock++
	if found {
		a.epochs[i].Evidence, a.epochs[i].At = e, a.clock
		return Kept, nil
	}
	a.epochs = slices.Insert(a.epochs, i, entry{epoch, a.clock, e})
	if len(a.epochs) > MaxEpochs {
		oldest := 0
		for j := range a.epochs {
			if a.epochs[j].At < a.epochs[oldest].At {
				oldest = j
			}
		}
		a.fold(oldest)
	}
	return Kept, nil
}

func named(s string) bool { return s != "" && len(s) <= MaxNameLength && utf8.ValidString(s) }

func (a *account) find(epoch string) (int, bool) {
	return slices.BinarySearchFunc(a.epochs, epoch, func(x entry, name string) int { return strings.Compare(x.Epoch, name) })
}

// compare says whether e has a count above, and one below, was's.
func compare(e, was Evidence) (more, fewer bool) {
	for l := range e.requests {
		more = more || e.requests[l] > was.requests[l] || e.bad[l] > was.bad[l]
		fewer = fewer || e.requests[l] < was.requests[l] || e.bad[l] < was.bad[l]
	}
	return more, fewer
}

func (a *account) fold(i int) {
	x := a.epochs[i]
	if err := a.base.Merge(x.Evidence); err != nil { // Update and Load admit only comparable evidence
		panic(err)
	}
	a.epochs = slices.Delete(a.epochs, i, i+1)
	a.folded = append(a.folded, x.Epoch)
	if n := len(a.folded) - MaxFolded; n > 0 {
		a.folded = slices.Delete(a.folded, 0, n)
	}
}

// Fold closes an epoch under all keys: its last report is added to the key's base, and
// what still arrives from it is ignored while its name is remembered (for the next
// MaxFolded epochs folded). Call it only when the process has ended for certain; not calling it costs
// only space. It says whether there was anything to fold.
func (l *Ledger) Fold(epoch string) bool {
	folded := false
	for _, a := range l.accounts {
		if i, found := a.find(epoch); found {
			a.fold(i)
			folded = true
		}
	}
	return folded
}

// Total evidence of a key over all epochs, and whether any was ever reported.
func (l *Ledger) Total(key Key) (Evidence, bool) {
	a := l.accounts[key]
	if a == nil {
		return Evidence{}, false
	}
	sum := a.base
	for i := range a.epochs {
		if err := sum.Merge(a.epochs[i].Evidence); err != nil { // Update and Load admit only comparable evidence
			panic(err)
		}
	}
	return sum, true
}

// Keys held, in order.
func (l *Ledger) Keys() []Key { return slices.Sorted(maps.Keys(l.accounts)) }

// Keep forgets all keys but these.
func (l *Ledger) Keep(keys ...Key) {
	for k := range l.accounts {
		if !slices.Contains(keys, k) {
			delete(l.accounts, k)
		}
	}
}

const ledgerFormat = "l1"

type savedAccount struct {
	Key    Key      `json:"key"`
	Clock  int64    `json:"clock"`
	Base   Evidence `json:"base"`
	Epochs []entry  `json:"epochs,omitempty"`
	Folded []string `json:"folded,omitempty"`
}

// Save is the exact state of these keys, or of all if none are given, as one string.
func (l *Ledger) Save(keys ...Key) string {
	if len(keys) == 0 {
		keys = l.Keys()
	}
	saved := []savedAccount{}
	for _, k := range keys {
		if a := l.accounts[k]; a != nil {
			saved = append(saved, savedAccount{k, a.clock, a.base, a.epochs, a.folded})
		}
	}
	body, err := json.Marshal(saved)
	if err != nil { // strings and integers only
		panic(err)
	}
	return ledgerFormat + " " + checksum(string(body)) + " " + string(body)
}

// Load adds the keys that Save wrote. A key that the ledger holds already stays as it
// is. On error (a changed character, another format, a broken bound) nothing is added.
func (l *Ledger) Load(saved string) error {
	loaded, err := parseLedger(saved)
	if err != nil {
		return fmt.Errorf("restore ledger: %w", err)
	}
	fresh := 0
	for k := range loaded {
		if l.accounts[k] == nil {
			fresh++
		}
	}
	if len(l.accounts)+fresh > MaxKeys {
		return fmt.Errorf("restore ledger: more than %d comparisons", MaxKeys)
	}
	if l.accounts == nil {
		l.accounts = map[Key]*account{}
	}
	for k, a := range loaded {
		if l.accounts[k] == nil {
			l.accounts[k] = a
		}
	}
	return nil
}

func parseLedger(saved string) (map[Key]*account, error) {
	format, rest, _ := strings.Cut(saved, " ")
	if format != ledgerFormat {
		return nil, fmt.Errorf("format %.16q is not %q, the one of this build", format, ledgerFormat)
	}
	sum, body, _ := strings.Cut(rest, " ")
	if checksum(body) != sum {
		return nil, fmt.Errorf("%w: its checksum is wrong", errCorrupted)
	}
	var list []savedAccount
	if err := json.Unmarshal([]byte(body), &list); err != nil {
		return nil, fmt.Errorf("%w: %w", errCorrupted, err)
	}
	out := map[Key]*account{}
	for _, s := range list {
		a := &account{base: s.Base, epochs: s.Epochs, folded: s.Folded, clock: s.Clock}
		if !named(string(s.Key)) || out[s.Key] != nil || len(a.epochs) > MaxEpochs || len(a.folded) > MaxFolded || a.base.r1 == 0 {
			return nil, fmt.Errorf("%w: key %.40q is repeated, empty or beyond the bounds", errCorrupted, s.Key)
		}
		for i, x := range a.epochs {
			if !named(x.Epoch) || (i > 0 && a.epochs[i-1].Epoch >= x.Epoch) || !a.base.comparable(x.Evidence) || slices.Contains(a.folded, x.Epoch) {
				return nil, fmt.Errorf("%w: epoch %.40q of key %.40q", errCorrupted, x.Epoch, s.Key)
			}
		}
		out[s.Key] = a
	}
	return out, nil
}
