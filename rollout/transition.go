package rollout

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Engine is the actor of what Sluice does by itself.
const Engine = "sluice"

// Request says who changes an endpoint, why and when.
type Request struct {
	// ID makes the change idempotent; it must be set.
	ID       string
	Actor    string
	Reason   Reason // ReasonRequested if empty
	Message  string
	Evidence string
	At       time.Time
	// Force skips the check that ready replicas can carry a share.
	Force bool
	// ForeignActor names who last edited shift fields outside Sluice, as far as known.
	ForeignActor string
}

// Outcome says what Apply did.
type Outcome struct {
	// Changed is false when the spec was right already or the id is known.
	Changed bool
	// Applied is false when only a foreign edit was recorded and the engine must look again.
	Applied bool
	// Message is one sentence for people.
	Message string
}

// Op is a transition: one of the types below.
type Op interface {
	// String is the change in one line.
	String() string
	apply(*work) (string, error)
}

// Deploy adds a version. The first becomes control and default; later ones join
// untyped at 0 and get their role by Update once they are ready.
type Deploy struct {
	Version Version
	// Strategy and Repositories, if set, become the endpoint's.
	Strategy     *Strategy
	Repositories []int64
}

// Update changes settings, claim, default or role of a version. Nil fields stay.
type Update struct {
	Version  string
	Percent  *Percent
	Default  bool
	Type     *Role
	Settings *Settings
}

// Shift sets a version's claim; by anyone but the engine it also sets the hold.
type Shift struct {
	Version string
	Percent Percent
}

// Promote makes a treatment control and default, with all traffic.
type Promote struct{ Version string }

// Rollback takes a treatment out, or a promoted control back to its standby.
type Rollback struct{ Version string }

// Retire takes role and claim from a version that is neither default nor control.
type Retire struct{ Version string }

// Prepare asks for replicas that can carry a share, without shifting anything.
type Prepare struct {
	Version string
	Percent Percent
}

// Hold stops advancing and promoting.
type Hold struct{ Reason string }

// Resume ends a hold.
type Resume struct{}

// Lock refuses all but Rollback, Hold and Unlock.
type Lock struct{ Reason string }

// Unlock ends a lock.
type Unlock struct{}

// Delete removes a version. NewDefault names the next default where it is not plain.
type Delete struct {
	Version    string
	NewDefault string
}

// SetAuth changes how scoring requests prove that they may.
type SetAuth struct{ Mode AuthMode }

// Bind lets a repository's workflows and comments act on the endpoint.
type Bind struct{ Repository int64 }

// Unbind ends that.
type Unbind struct{ Repository int64 }

func (o Deploy) String() string   { return "deploy " + o.Version.Name }
func (o Shift) String() string    { return fmt.Sprintf("traffic %s %s", o.Version, o.Percent) }
func (o Promote) String() string  { return "promote " + o.Version }
func (o Rollback) String() string { return "rollback " + o.Version }
func (o Prepare) String() string  { return fmt.Sprintf("prepare %s %s", o.Version, o.Percent) }
func (o Retire) String() string   { return "retire " + o.Version }
func (o Hold) String() string     { return "hold" }
func (o Resume) String() string   { return "resume" }
func (o Lock) String() string     { return "lock" }
func (o Unlock) String() string   { return "unlock" }
func (o SetAuth) String() string  { return "auth " + string(o.Mode) }
func (o Bind) String() string     { return fmt.Sprintf("bind repository %d", o.Repository) }
func (o Unbind) String() string   { return fmt.Sprintf("unbind repository %d", o.Repository) }
func (o Delete) String() string {
	if o.NewDefault != "" {
		return fmt.Sprintf("delete %s, new default %s", o.Version, o.NewDefault)
	}
	return "delete " + o.Version
}

func (o Update) String() string {
	s := "update " + o.Version
	if o.Type != nil {
		s += " type " + roleWord(*o.Type)
	}
	if o.Percent != nil {
		s += " percent " + o.Percent.String()
	}
	if o.Default {
		s += " default"
	}
	if o.Settings != nil {
		s += " settings"
	}
	return s
}

func roleWord(r Role) string {
	if r == Untyped {
		return "none"
	}
	return string(r)
}

// work is a spec in transition.
type work struct {
	spec   *Spec
	status *Status
	req    Request
}

// Apply carries out op on a copy of e and returns it, with the change appended to
// spec.changes. A known id, or an op that finds everything as it should be,
// returns e unchanged and says so. Errors are *Error, possibly joined.
//
// Shift fields that do not match the newest change's digest were edited by
// someone else: that is recorded first, with a hold, and the engine goes no further.
func Apply(e *Endpoint, req Request, op Op) (*Endpoint, Outcome, error) {
	if req.ID == "" {
		return nil, Outcome{}, refuse(ReasonInvalid, "id", "give the change an id", "a change without id cannot be made idempotent")
	}
	if e.Known(req.ID) {
		return e, Outcome{Message: "already done: this change is in the record"}, nil
	}
	if req.Reason == "" {
		req.Reason = ReasonRequested
	}
	if req.ForeignActor == "" {
		req.ForeignActor = e.Metadata.Editor
	}
	next := e.Clone()
	w := &work{spec: &next.Spec, status: &next.Status, req: req}

	foreign := w.spec.ForeignEdit()
	if foreign {
		if err := w.recordForeign(); err != nil {
			return nil, Outcome{}, err
		}
		if req.Actor == Engine {
			if err := next.Spec.Validate(); err != nil {
				return nil, Outcome{}, err
			}
			return next, Outcome{Changed: true, Message: "traffic was edited by hand: recorded and held"}, nil
		}
	}
	if l := w.spec.Lock; l != nil && !throughLock(op) {
		return nil, Outcome{}, refuse(ReasonLocked, "spec.lock", "unlock it first with `sluice unlock ENDPOINT`; rollback and hold work all the same",
			"the endpoint is locked by %s%s", l.Actor, because(l.Reason))
	}
	before := fingerprint(w.spec)
	wasActive, claims := map[string]bool{}, map[string]Percent{}
	for i := range w.spec.Versions {
		v := &w.spec.Versions[i]
		wasActive[v.Name], claims[v.Name] = w.spec.Active(v), w.spec.Effective(v.Name)
	}
	msg, err := op.apply(w)
	if err != nil {
		return nil, Outcome{}, err
	}
	for i := range w.spec.Versions {
		v := &w.spec.Versions[i]
		switch {
		case w.spec.Active(v):
			v.RetiredAt = time.Time{}
		case wasActive[v.Name]:
			v.RetiredAt = req.At
		}
		if was, known := claims[v.Name]; known && was != w.spec.Effective(v.Name) {
			v.PlannedPercentile = 0
		}
		if v.Type != Standby {
			v.StandbySince, v.StandbyReplicas = time.Time{}, 0
		}
	}
	if fingerprint(w.spec) == before && !foreign {
		return e, Outcome{Applied: true, Message: msg}, nil
	}
	if err := next.Spec.Validate(); err != nil {
		return nil, Outcome{}, err
	}
	if err := ValidateUpdate(&e.Spec, &next.Spec); err != nil {
		return nil, Outcome{}, err
	}
	_, isRollback := op.(Rollback)
	if err := w.record(Change{
		ID: req.ID, Actor: req.Actor, Action: op.String(), Reason: req.Reason, Message: req.Message,
		Evidence: req.Evidence, At: req.At, Digest: ShiftDigest(w.spec),
	}, isRollback); err != nil {
		return nil, Outcome{}, err
	}
	return next, Outcome{Changed: true, Applied: true, Message: msg}, nil
}

// throughLock says whether an operation works on a locked endpoint.
func throughLock(op Op) bool {
	switch o := op.(type) {
	case Rollback, Hold, Unlock:
		return true
	case Prepare:
		return o.Percent == 0 // gives back what was asked for
	default:
		return false
	}
}

func because(reason string) string {
	if reason == "" {
		return ""
	}
	return ": " + reason
}

// Known says whether the change of that id is in the record already.
func (e *Endpoint) Known(id string) bool {
	has := func(c Change) bool { return c.ID == id }
	return slices.ContainsFunc(e.Spec.Changes, has) || slices.ContainsFunc(e.Status.History, has)
}

// ShiftDigest is a hash over the shift fields: claims, types, default, strategy,
// hold and lock. A version without any part in traffic does not count, so that
// adding one is no foreign shift.
func ShiftDigest(s *Spec) string {
	type part struct {
		Name    string
		Type    Role
		Percent Percent
	}
	shift := struct {
		Parts    []part
		Default  string
		Strategy *Strategy
		Hold     *Mark
		Lock     *Mark
	}{Strategy: s.Strategy, Hold: s.Hold, Lock: s.Lock}
	if d := s.Default(); d != nil {
		shift.Default = d.Name
	}
	for i := range s.Versions {
		if v := &s.Versions[i]; v.Type != Untyped || v.TrafficPercentile > 0 {
			shift.Parts = append(shift.Parts, part{v.Name, v.Type, v.TrafficPercentile})
		}
	}
	slices.SortFunc(shift.Parts, func(a, b part) int { return strings.Compare(a.Name, b.Name) })
	return hashJSON(shift)
}

// fingerprint covers all of a spec but the record.
func fingerprint(s *Spec) string {
	c := *s
	c.Changes = nil
	return hashJSON(c)
}

func hashJSON(v any) string {
	b, err := json.Marshal(v)
	if err != nil { // the domain's types always marshal
		panic(err)
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:8])
}

// ForeignEdit says whether shift fields were edited since the newest recorded change.
func (s *Spec) ForeignEdit() bool {
	n := len(s.Changes)
	return n > 0 && s.Changes[n-1].Digest != ShiftDigest(s)
}

func (w *work) recordForeign() error {
	actor := w.req.ForeignActor
	if actor == "" {
		actor = "unknown"
	}
	was := ShiftDigest(w.spec)
	if w.spec.Hold == nil {
		w.spec.Hold = &Mark{Reason: "traffic was edited outside Sluice", Actor: actor}
	}
	return w.record(Change{
		ID: "foreign-" + was + "-after-" + w.spec.Changes[len(w.spec.Changes)-1].ID, Actor: actor, Action: "edit", Reason: ReasonForeignEdit,
		Message: "shift fields were edited outside Sluice; advancing is held", At: w.req.At, Digest: ShiftDigest(w.spec),
	}, true)
}

// record appends c; must drops the oldest entry of a full list even if the history lacks it.
func (w *work) record(c Change, must bool) error {
	for len(w.spec.Changes) >= MaxChanges {
		oldest := w.spec.Changes[0]
		kept := slices.ContainsFunc(w.status.History, func(h Change) bool { return h.ID == oldest.ID })
		if !kept && !must {
			return refuse(ReasonChangesFull, "spec.changes", "try again when the control role runs: it moves the record to the history; a rollback works all the same",
				"%d changes wait to be recorded", len(w.spec.Changes))
		}
		w.spec.Changes = slices.Delete(w.spec.Changes, 0, 1)
	}
	w.spec.Changes = append(w.spec.Changes, c)
	return nil
}

// RecordHistory copies into the history what it lacks of the changes, and says
// whether it lacked any. The history keeps the newest MaxHistory entries.
func RecordHistory(status *Status, changes []Change) bool {
	grew := false
	for _, c := range changes {
		if !slices.ContainsFunc(status.History, func(h Change) bool { return h.ID == c.ID }) {
			status.History = append(status.History, c)
			grew = true
		}
	}
	if n := len(status.History) - MaxHistory; n > 0 {
		status.History = slices.Delete(status.History, 0, n)
	}
	return grew
}

func (w *work) version(name string) (*Version, error) {
	if v := w.spec.Version(name); v != nil {
		return v, nil
	}
	return nil, UnknownVersion(w.spec, name)
}

// UnknownVersion is the refusal of a name that no version has; it lists those there are.
func UnknownVersion(s *Spec, name string) *Error {
	return refuse(ReasonUnknownVersion, "version", "the versions are: "+strings.Join(names(s), ", "), "no version is called %q", name)
}

func names(s *Spec) []string {
	out := make([]string, len(s.Versions))
	for i := range s.Versions {
		out[i] = s.Versions[i].Name
	}
	return out
}

func (w *work) setDefault(v *Version) {
	for i := range w.spec.Versions {
		w.spec.Versions[i].IsDefault = false
	}
	v.IsDefault = true
}

// retire takes a version's part in traffic; the control inherits the default.
func (w *work) retire(v *Version) {
	wasDefault := w.spec.Default() == v
	v.Type, v.TrafficPercentile, v.IsDefault = Untyped, 0, false
	if wasDefault {
		if c := w.spec.ByRole(Control); c != nil {
			w.setDefault(c)
		}
	}
}

func (w *work) zeroClaims() {
	for i := range w.spec.Versions {
		w.spec.Versions[i].TrafficPercentile = 0
	}
}

const shiftHold = "traffic of %s was set by hand"

// endShiftHold ends the hold that a Shift of that version set: the version's rollout is over.
func (w *work) endShiftHold(name string) {
	if h := w.spec.Hold; h != nil && h.Reason == fmt.Sprintf(shiftHold, name) {
		w.spec.Hold = nil
	}
}

// enoughReady refuses a person's share that the version's ready slots cannot carry.
func (w *work) enoughReady(v *Version, share Percent) error {
	if w.req.Actor == Engine || w.req.Force {
		return nil
	}
	have, need := Slots(v, w.status, share)
	if have >= need {
		return nil
	}
	return refuse(ReasonNotEnoughReady, "version", "wait for more replicas with `--wait`, or insist with `--force`",
		"%s has %d ready slots, but %s per cent of the present demand needs %d", v.Name, have, share, need)
}

// headroom is how far the ready slots may stop short of the target utilisation: the
// autoscaler tolerates a tenth, the demand in the status lags by as much, and a rollout
// must never wait for replicas that nobody will add.
const headroom = 1.25

// Slots a version has ready, and how many the endpoint's present demand needs at
// that share: as many as keep them near the target utilisation, as far as
// the autoscaler's bounds allow, but always as many as the demand itself; at least one.
func Slots(v *Version, status *Status, share Percent) (have, need int) {
	have = status.Version(v.Name).ReadyReplicas * v.Slots()
	if share <= 0 {
		return have, 0
	}
	demand, scale := status.DemandSlots()*share.Fraction(), v.Scale()
	most := scale.Max
	if scale.Fixed >= 0 {
		most = scale.Fixed
	}
	comfortable := min(ceil(demand/(scale.Target*headroom)), most*v.Slots())
	return have, max(1, ceil(demand), comfortable)
}

func (o Deploy) apply(w *work) (string, error) {
	v := o.Version
	v.Settings = v.Settings.clone()
	if v.Name == "" {
		return "", ValidateName("version.name", "a version", v.Name)
	}
	if was := w.spec.Version(v.Name); was != nil {
		if was.Source.Commit != v.Source.Commit || was.Source.RepositoryID != v.Source.RepositoryID || (v.Source.Commit == "" && was.Image != v.Image) {
			return "", refuse(ReasonVersionExists, "version.name", "give it another name; a version never changes",
				"version %s exists, from repository %d, commit %q, as %s", v.Name, was.Source.RepositoryID, was.Source.Commit, was.Image)
		}
		return fmt.Sprintf("%s runs already as %s: nothing changed", v.Name, was.Image), nil
	}
	if errs := validateAsked("spec.versions["+v.Name+"]", v.Settings); len(errs) > 0 {
		return "", Joined(errs)
	}
	v.Type, v.TrafficPercentile, v.IsDefault = Untyped, 0, false
	v.CreatedAt, v.RetiredAt = w.req.At, time.Time{}
	var notes []string
	if len(w.spec.Versions) == 0 {
		v.Type, v.IsDefault = Control, true
		notes = append(notes, v.Name+" is the first version: control and default")
	} else {
		notes = append(notes, v.Name+" joined at 0 per cent")
	}
	if o.Strategy != nil {
		s := o.Strategy.clone()
		w.spec.Strategy = &s
	}
	for _, id := range o.Repositories {
		if !slices.Contains(w.spec.Repositories, id) {
			w.spec.Repositories = append(w.spec.Repositories, id)
		}
	}
	if v.Source.PullRequest != 0 {
		for i := range w.spec.Versions {
			old := &w.spec.Versions[i]
			same := old.Source.PullRequest == v.Source.PullRequest && old.Source.RepositoryID == v.Source.RepositoryID
			// A workflow that is run again keeps its number: what came later is not to make way for it.
			if same && v.Source.RunID != 0 && old.Source.RunID > v.Source.RunID {
				return "", refuse(ReasonSuperseded, "version", "nothing is to be done: the newer one takes its place",
					"%s of the same pull request was deployed by run %d, which is newer than %d", old.Name, old.Source.RunID, v.Source.RunID)
			}
			if old.Type == Treatment && old.Source.PullRequest == v.Source.PullRequest && old.Source.RepositoryID == v.Source.RepositoryID {
				w.retire(old)
				notes = append(notes, old.Name+", the pull request's earlier treatment, is retired")
			}
		}
	}
	if len(w.spec.Versions) >= MaxVersions {
		gone, err := w.evict()
		if err != nil {
			return "", err
		}
		notes = append(notes, gone+", the oldest without traffic, is evicted")
	}
	w.spec.Versions = append(w.spec.Versions, v)
	return strings.Join(notes, "; "), nil
}

// evict removes the oldest untyped version with claim 0 that is not the default; without one the oldest
// treatment with claim 0 that is overtaken.
func (w *work) evict() (string, error) {
	oldest := func(may func(*Version) bool) int {
		found := -1
		for i := range w.spec.Versions {
			v := &w.spec.Versions[i]
			if may(v) && (found < 0 || v.CreatedAt.Before(w.spec.Versions[found].CreatedAt)) {
				found = i
			}
		}
		return found
	}
	found := oldest(func(v *Version) bool { return !w.spec.Active(v) })
	if found < 0 {
		found = oldest(func(v *Version) bool {
			return v.TrafficPercentile == 0 && Overtaken(w.spec, v) && w.spec.Default() != v
		})
	}
	if found < 0 {
		var all []string
		for i := range w.spec.Versions {
			v := &w.spec.Versions[i]
			word := roleWord(v.Type)
			if w.spec.Default() == v {
				word += ", default"
			}
			all = append(all, fmt.Sprintf("%s (%s, %s)", v.Name, word, v.TrafficPercentile))
		}
		return "", refuse(ReasonTooManyVersions, "spec.versions", "delete one with `sluice delete ENDPOINT VERSION` or roll one back",
			"all %d versions have a part in traffic: %s", len(all), strings.Join(all, "; "))
	}
	name := w.spec.Versions[found].Name
	w.spec.Versions = slices.Delete(w.spec.Versions, found, found+1)
	return name, nil
}

func (o Update) apply(w *work) (string, error) {
	v, err := w.version(o.Version)
	if err != nil {
		return "", err
	}
	var notes []string
	if o.Settings != nil {
		if errs := validateAsked("spec.versions["+v.Name+"]", *o.Settings); len(errs) > 0 {
			return "", Joined(errs)
		}
		was := v.Revision()
		mergeSettings(&v.Settings, o.Settings.clone())
		notes = append(notes, "settings of "+v.Name+" are as asked")
		if v.Revision() != was {
			notes = append(notes, "its replicas are replaced, one after the other")
		}
	}
	if o.Type != nil && *o.Type != v.Type {
		switch *o.Type {
		case Control:
			if old := w.spec.ByRole(Control); old != nil {
				old.Type = Untyped
				notes = append(notes, old.Name+" is no longer the control")
			}
		case Standby:
			return "", refuse(ReasonInvalid, "type", "promote its treatment instead: the former control becomes the standby", "the standby cannot be given by hand")
		}
		v.Type = *o.Type
		notes = append(notes, fmt.Sprintf("%s is %s now", v.Name, roleWord(v.Type)))
	}
	if o.Percent != nil {
		v.TrafficPercentile = *o.Percent
		notes = append(notes, fmt.Sprintf("%s claims %s per cent", v.Name, v.TrafficPercentile))
	}
	if o.Default && w.spec.Default() != v || o.Default && !v.IsDefault {
		w.setDefault(v)
		notes = append(notes, v.Name+" is the default")
	}
	if len(notes) == 0 {
		notes = append(notes, v.Name+" is as asked")
	}
	return strings.Join(notes, "; "), nil
}

func mergeSettings(to *Settings, from Settings) {
	if from.Resources != nil {
		to.Resources = from.Resources
	}
	if from.Autoscale != nil {
		to.Autoscale, to.Replicas = from.Autoscale, nil
	}
	if from.Replicas != nil {
		to.Replicas, to.Autoscale = from.Replicas, nil
	}
	if from.Concurrency != nil {
		to.Concurrency = from.Concurrency
	}
	if from.ScoringTimeoutMs != 0 {
		to.ScoringTimeoutMs = from.ScoringTimeoutMs
	}
	if from.LivenessProbe != nil {
		to.LivenessProbe = from.LivenessProbe
	}
	if from.Server != nil {
		to.Server = from.Server
	}
	if from.EnvironmentVariables != nil {
		to.EnvironmentVariables = from.EnvironmentVariables
	}
	if from.DataCollection != nil {
		to.DataCollection = from.DataCollection
	}
	if from.Template != nil {
		to.Template = from.Template
	}
}

func (o Shift) apply(w *work) (string, error) {
	v, err := w.version(o.Version)
	if err != nil {
		return "", err
	}
	if o.Percent > v.TrafficPercentile {
		if err := w.enoughReady(v, o.Percent); err != nil {
			return "", err
		}
	}
	v.TrafficPercentile = o.Percent
	msg := fmt.Sprintf("%s claims %s per cent", v.Name, o.Percent)
	if w.req.Actor != Engine {
		if w.spec.Hold == nil {
			w.spec.Hold = &Mark{Reason: fmt.Sprintf(shiftHold, v.Name), Actor: w.req.Actor}
		}
		msg += "; advancing is held until `sluice resume ENDPOINT`"
	}
	return msg, nil
}

func (o Promote) apply(w *work) (string, error) {
	v, err := w.version(o.Version)
	if err != nil {
		return "", err
	}
	if v.Type == Control && w.spec.Default() == v && w.spec.Effective(v.Name) == Full {
		return v.Name + " is the control with all traffic already", nil
	}
	if v.Type != Treatment {
		return "", refuse(ReasonNotTreatment, "version", "make it one with `sluice update ENDPOINT VERSION --type treatment`",
			"%s is %s, and only a treatment can be promoted", v.Name, roleWord(v.Type))
	}
	if err := w.enoughReady(v, Full); err != nil {
		return "", err
	}
	msg := v.Name + " is control and default, with all traffic"
	if old := w.spec.ByRole(Standby); old != nil {
		w.retire(old)
	}
	if old := w.spec.ByRole(Control); old != nil {
		old.Type, old.StandbySince, old.StandbyReplicas = Standby, w.req.At, w.status.Version(old.Name).ReadyReplicas
		msg += "; " + old.Name + " is the standby"
	}
	w.zeroClaims()
	v.Type = Control
	w.setDefault(v)
	w.endShiftHold(v.Name)
	return msg, nil
}

func (o Rollback) apply(w *work) (string, error) {
	v, err := w.version(o.Version)
	if err != nil {
		return "", err
	}
	switch v.Type {
	case Treatment:
		if w.spec.ByRole(Control) == nil && w.spec.Default() == v && len(w.spec.Versions) > 1 {
			return "", refuse(ReasonNoControl, "spec.versions", "make another version the default first with `sluice update ENDPOINT VERSION --default`",
				"%s is the default and there is no control to take its traffic", v.Name)
		}
		w.retire(v)
		w.endShiftHold(v.Name)
		return v.Name + " is rolled back: it gets no traffic", nil
	case Control:
		sb := w.spec.ByRole(Standby)
		if sb == nil {
			return "", refuse(ReasonNoStandby, "version", "shift traffic to another version with `sluice update ENDPOINT VERSION --control --default`",
				"%s is the control and no standby is kept to go back to", v.Name)
		}
		w.zeroClaims()
		v.Type = Untyped
		sb.Type = Control
		w.setDefault(sb)
		w.endShiftHold(v.Name)
		return fmt.Sprintf("%s is rolled back: %s is control and default again", v.Name, sb.Name), nil
	default:
		if !w.spec.Active(v) {
			return v.Name + " gets no traffic already", nil
		}
		return "", refuse(ReasonNotTreatment, "version", "set its claim with `sluice traffic ENDPOINT VERSION 0`",
			"%s is %s, and only a treatment or a promoted control can be rolled back", v.Name, roleWord(v.Type))
	}
}

func (o Retire) apply(w *work) (string, error) {
	v, err := w.version(o.Version)
	if err != nil {
		return "", err
	}
	if v.Type == Control || w.spec.Default() == v && (w.spec.ByRole(Control) == nil || len(w.spec.Versions) == 1) {
		return "", refuse(ReasonInvalid, "version", "give its part to another version first", "%s serves traffic that nothing else would take", v.Name)
	}
	w.retire(v)
	if v.RetiredAt.IsZero() {
		v.RetiredAt = w.req.At
	}
	return v.Name + " is retired", nil
}

func (o Prepare) apply(w *work) (string, error) {
	v, err := w.version(o.Version)
	if err != nil {
		return "", err
	}
	v.PlannedPercentile = o.Percent
	if o.Percent > 0 {
		v.RetiredAt = time.Time{} // its replicas come back
	}
	return fmt.Sprintf("replicas of %s are prepared for %s per cent", v.Name, o.Percent), nil
}

func (o Hold) apply(w *work) (string, error) {
	if w.spec.Hold != nil && (o.Reason == "" || o.Reason == w.spec.Hold.Reason) {
		return "held already by " + w.spec.Hold.Actor + because(w.spec.Hold.Reason), nil
	}
	w.spec.Hold = &Mark{Reason: o.Reason, Actor: w.req.Actor}
	return "held: nothing advances or is promoted; the automatic rollback stays on", nil
}

func (Resume) apply(w *work) (string, error) {
	if w.spec.Hold == nil {
		return "nothing is held", nil
	}
	w.spec.Hold = nil
	return "resumed", nil
}

func (o Lock) apply(w *work) (string, error) {
	w.spec.Lock = &Mark{Reason: o.Reason, Actor: w.req.Actor}
	return "locked: only rollback, hold and unlock work", nil
}

func (Unlock) apply(w *work) (string, error) {
	if w.spec.Lock == nil {
		return "nothing is locked", nil
	}
	w.spec.Lock = nil
	return "unlocked", nil
}

func (o SetAuth) apply(w *work) (string, error) {
	if w.spec.AuthMode() == o.Mode {
		return "auth is " + string(o.Mode) + " already", nil
	}
	w.spec.Auth = &Auth{Mode: o.Mode}
	return "auth is " + string(o.Mode), nil
}

func (o Bind) apply(w *work) (string, error) {
	if o.Repository <= 0 {
		return "", refuse(ReasonInvalid, "repository", "give the number that `gh api repos/OWNER/NAME --jq .id` prints", "%d is not the id of a repository", o.Repository)
	}
	if slices.Contains(w.spec.Repositories, o.Repository) {
		return fmt.Sprintf("repository %d is bound already", o.Repository), nil
	}
	w.spec.Repositories = append(w.spec.Repositories, o.Repository)
	return fmt.Sprintf("repository %d is bound: its comments may act on the endpoint", o.Repository), nil
}

func (o Unbind) apply(w *work) (string, error) {
	if !slices.Contains(w.spec.Repositories, o.Repository) {
		return fmt.Sprintf("repository %d is not bound", o.Repository), nil
	}
	w.spec.Repositories = slices.DeleteFunc(w.spec.Repositories, func(id int64) bool { return id == o.Repository })
	return fmt.Sprintf("repository %d is not bound any more: its comments may not act on the endpoint", o.Repository), nil
}

func (o Delete) apply(w *work) (string, error) {
	v, err := w.version(o.Version)
	if err != nil {
		return "", err
	}
	if len(w.spec.Versions) == 1 {
		return "", refuse(ReasonLastVersion, "version", "delete the endpoint with `sluice delete ENDPOINT`", "%s is the last version", v.Name)
	}
	if v.Type == Control && w.spec.Strategy != nil {
		if t := w.spec.ByRole(Treatment); t != nil {
			return "", refuse(ReasonJudgementRuns, "version", "promote or roll back the treatment first, or give the control role away with `sluice update ENDPOINT VERSION --control`",
				"%s is the control that %s is judged against", v.Name, t.Name)
		}
	}
	wasControl, wasDefault := v.Type == Control, w.spec.Default() == v
	var next *Version
	switch {
	case o.NewDefault != "":
		if next, err = w.version(o.NewDefault); err != nil {
			return "", err
		}
		if next == v {
			return "", refuse(ReasonNewDefault, "newDefault", "name a version that stays", "%s is the one to be deleted", v.Name)
		}
	case wasDefault && len(w.spec.Versions) > 2:
		var rest []string
		for _, n := range names(w.spec) {
			if n != v.Name {
				rest = append(rest, n)
			}
		}
		return "", refuse(ReasonNewDefault, "newDefault", "say which with `--new-default VERSION`: "+strings.Join(rest, ", "),
			"%s is the default and several versions are left", v.Name)
	case wasDefault:
		for i := range w.spec.Versions {
			if &w.spec.Versions[i] != v {
				next = &w.spec.Versions[i]
			}
		}
	}
	if next == nil {
		next = w.spec.Default()
	}
	if o.NewDefault != "" || wasDefault {
		w.setDefault(next)
	}
	msg := v.Name + " is deleted"
	if wasControl {
		next.Type = Control
	}
	if wasControl || wasDefault || o.NewDefault != "" {
		msg += fmt.Sprintf("; %s is %s and default", next.Name, roleWord(next.Type))
	}
	w.spec.Versions = slices.DeleteFunc(w.spec.Versions, func(x Version) bool { return x.Name == o.Version })
	return msg, nil
}

// AsErrors lists the *Error values in err's tree, in order.
func AsErrors(err error) []*Error {
	var out []*Error
	var walk func(error)
	walk = func(err error) {
		if e, ok := err.(*Error); ok { //nolint:errorlint // the tree is walked by hand
			out = append(out, e)
			return
		}
		switch x := err.(type) { //nolint:errorlint // the tree is walked by hand
		case interface{ Unwrap() []error }:
			for _, e := range x.Unwrap() {
				walk(e)
			}
		default:
			if u := errors.Unwrap(err); u != nil {
				walk(u)
			}
		}
	}
	walk(err)
	return out
}
