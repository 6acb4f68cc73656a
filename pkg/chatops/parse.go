package chatops

import (
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/sluice-dev/sluice/pkg/cluster"
	"github.com/sluice-dev/sluice/pkg/markdown"
	"github.com/sluice-dev/sluice/pkg/project"
	"github.com/sluice-dev/sluice/rollout"
)

// Verb is what a command does.
type Verb string

// The verbs.
const (
	Promote  Verb = "promote"
	Rollback Verb = "rollback"
	Traffic  Verb = "traffic"
	Hold     Verb = "hold"
	Resume   Verb = "resume"
	Status   Verb = "status"
	Plan     Verb = "plan"
	Lock     Verb = "lock"
	Unlock   Verb = "unlock"
	Help     Verb = "help"
)

// prefix may stand before each command, so that nobody else's is meant: /sluice promote.
const prefix = "sluice"

// whole says whether the verb concerns the whole endpoint rather than a version.
func (v Verb) whole() bool { return v == Hold || v == Resume || v == Lock || v == Unlock }

// shows says whether the verb changes nothing.
func (v Verb) shows() bool { return v == Status || v == Plan || v == Help }

// reasoned says whether free text follows the verb.
func (v Verb) reasoned() bool { return v == Hold || v == Lock }

// button says whether a check run may have a button for the verb.
func (v Verb) button() bool { return v == Promote || v == Rollback || v == Hold || v == Resume }

// afterMerge says whether the verb works on a merged pull request too.
func (v Verb) afterMerge() bool { return v == Rollback || v == Hold || v.shows() }

// Limits of what one comment may ask.
const (
	// MaxCommands are carried out per comment; one more is refused and the rest not looked at.
	MaxCommands = 5
	// maxBody in bytes: GitHub takes 65,536 characters.
	maxBody = 4 * 65536
	// maxLine in bytes, its white space made single.
	maxLine = 256
	// maxReason of a hold or a lock, in runes.
	maxReason = 200
)

// commands are all verbs with their usage and what they do, for people.
var commands = []struct {
	verb        Verb
	usage, does string
}{
	{Promote, "/promote [ENDPOINT] [VERSION]", "makes the pull request's treatment the control, with all traffic"},
	{Rollback, "/rollback [ENDPOINT] [VERSION]", "takes it out of traffic, or goes back from it as the control to the standby; also on a merged pull request"},
	{Traffic, "/traffic PERCENT [ENDPOINT] [VERSION]", "gives it that share, such as `/traffic 20`, and holds its rollout"},
	{Hold, "/hold [REASON]", "stops advancing and promoting; the automatic rollback stays on; also on a merged pull request"},
	{Resume, "/resume [ENDPOINT]", "ends a hold"},
	{Lock, "/lock [REASON]", "refuses everything but rollback, hold and unlock"},
	{Unlock, "/unlock [ENDPOINT]", "ends a lock"},
	{Plan, "/plan [ENDPOINT]", "says what each command would do now, and does nothing"},
	{Status, "/status [ENDPOINT]", "says how it stands"},
	{Help, "/help", "lists these"},
}

// usage of each verb.
var usage = func() map[Verb]string {
	out := map[Verb]string{}
	for _, c := range commands {
		out[c.verb] = c.usage
	}
	return out
}()

// verbs by their names.
var verbs = func() map[string]bool {
	out := map[string]bool{}
	for _, c := range commands {
		out[string(c.verb)] = true
	}
	return out
}()

// Line is one command in a comment.
type Line struct {
	// Number of the line in the comment, from 1.
	Number int
	// Text as written, with white space made single. Parsing it again gives the same command.
	Text string
	Verb Verb
	// Percent is the share that /traffic asks for.
	Percent rollout.Percent
	// Names are endpoint, version or both, in that order.
	Names []string
	// Sole is what the only name is of, "endpoint" or "version", where the comment says so.
	Sole string
	// Reason of /hold and /lock, free text.
	Reason string
	// Prefixed says that /sluice stands before it.
	Prefixed bool
	// Err says why the command is refused; then only Number, Text and Verb are set.
	Err *rollout.Error
}

// command is a line that begins with a slash and a word. More than three spaces before it are indented code.
var command = regexp.MustCompile(`^ {0,3}/([A-Za-z]+)(?:[\s\p{Z}].*)?$`)

// Parse finds the commands in a comment: lines that begin with one of
//
//	/promote [ENDPOINT] [VERSION]
//	/rollback [ENDPOINT] [VERSION]
//	/traffic PERCENT [ENDPOINT] [VERSION]
//	/hold [REASON]
//	/resume [ENDPOINT]
//	/lock [REASON]
//	/unlock [ENDPOINT]
//	/plan [ENDPOINT]
//	/status [ENDPOINT]
//	/help
//
// each also with endpoint=ENDPOINT and version=VERSION, which may stand anywhere, and with /sluice before it, as in /sluice promote, in any case, outside code, quotes, tables and HTML. Lines that begin with
// another word belong to someone else and are passed over; a known verb with
// arguments that it does not take, or an unknown one after /sluice, comes back with Err set.
func Parse(body string) []Line { return parse(body, true) }

// parse passes commands without /sluice before them over unless bare is set.
func parse(body string, bare bool) []Line {
	if len(body) > maxBody || !strings.Contains(body, "/") {
		return nil
	}
	var out []Line
	for n, text := range plainLines(body) {
		l, ok := ParseLine(text)
		if !ok || !bare && !l.Prefixed {
			continue
		}
		l.Number = n
		if len(out) == MaxCommands {
			// The text is none that ParseLine knows, so that it stays refused when it is read back.
			return append(out, Line{Number: n, Text: "… " + l.Text, Verb: l.Verb, Err: refuse(rollout.ReasonInvalid, "comment",
				"write another comment for the rest", "a comment carries at most %d commands; those from line %d on were not looked at", MaxCommands, n)})
		}
		out = append(out, l)
	}
	return out
}

// ParseLine reads one line as a command; false if it is none. Its Number is 0.
func ParseLine(text string) (Line, bool) {
	m := command.FindStringSubmatch(text)
	if m == nil {
		return Line{}, false
	}
	l := Line{Verb: Verb(strings.ToLower(m[1]))}
	words := strings.Fields(strings.ToValidUTF8(text, "\uFFFD"))
	name, args := words[0], words[1:]
	fail := func(reason rollout.Reason, field, hint, format string, a ...any) (Line, bool) {
		return Line{Text: l.Text, Verb: l.Verb, Prefixed: l.Prefixed, Err: refuse(reason, field, hint, format, a...)}, true
	}
	l.Text = strings.Join(words, " ")
	if l.Verb == prefix {
		l.Prefixed, l.Verb = true, Help
		if len(args) > 0 {
			l.Verb = Verb(strings.ToLower(strings.TrimPrefix(args[0], "/")))
			name, args = name+" "+args[0], args[1:]
		}
	}
	use, known := usage[l.Verb]
	switch {
	case !known && !l.Prefixed:
		return Line{}, false
	case !known:
		l.Text = markdown.Cut(l.Text, 80)
		hint := "`/sluice help` lists the commands"
		if near := project.Nearest(markdown.Cut(string(l.Verb), 20), slices.Sorted(maps.Keys(verbs))); near != "" {
			hint = "did you mean `/sluice " + near + "`? " + hint
		}
		return fail(rollout.ReasonInvalid, "comment", hint, "there is no command called %q", markdown.Cut(string(l.Verb), 40))
	case l.Verb.reasoned():
		l.Reason = markdown.Cut(strings.Join(args, " "), maxReason)
		l.Text = strings.TrimSpace(name + " " + l.Reason)
		return l, true
	}
	if len(l.Text) > maxLine {
		l.Text = "… " + markdown.Cut(l.Text, 40)
		return fail(rollout.ReasonInvalid, "comment", "write `"+use+"`", "the line is longer than any command")
	}

	atMost := 2
	switch l.Verb {
	case Resume, Unlock, Status, Plan:
		atMost = 1
	case Help:
		atMost = 0
	}
	keyed, rest := map[string]string{}, []string(nil)
	for _, a := range args {
		key, value, ok := strings.Cut(a, "=")
		key = strings.ToLower(key)
		switch _, twice := keyed[key]; {
		case !ok || key != "endpoint" && key != "version":
			rest = append(rest, a)
		case twice:
			return fail(rollout.ReasonInvalid, "comment", "write it once", "%s= stands there twice", key)
		case atMost == 0 || atMost == 1 && key == "version":
			return fail(rollout.ReasonInvalid, "comment", "write `"+use+"`", "/%s takes no %s=", l.Verb, key)
		default:
			keyed[key] = value
		}
	}
	if l.Verb == Traffic {
		if len(rest) == 0 {
			return fail(rollout.ReasonPercentInvalid, "percent", "write `"+use+"`, such as `/traffic 20`", "/traffic needs the share that the treatment is to get")
		}
		p, err := rollout.ValidatePercent("percent", rest[0])
		if err != nil {
			return Line{Text: l.Text, Verb: l.Verb, Prefixed: l.Prefixed, Err: rollout.AsErrors(err)[0]}, true
		}
		if len(rest) > 1 && rest[1] == "%" && !strings.HasSuffix(rest[0], "%") {
			rest = rest[1:]
		}
		l.Percent, rest = p, rest[1:]
	}
	if most := atMost - len(keyed); len(rest) > most {
		return fail(rollout.ReasonInvalid, "comment", "write `"+use+"`", "/%s takes no more than that, but %q follows", l.Verb, strings.Join(rest[most:], " "))
	}
	names := rest
	if name, ok := keyed["endpoint"]; ok {
		names = slices.Insert(names, 0, name)
	}
	if name, ok := keyed["version"]; ok {
		names = append(names, name)
	}
	if len(names) == 1 {
		for key := range keyed {
			l.Sole = key
		}
	}
	for i, a := range names {
		// An endpoint may be written with its namespace; a version stands last.
		ns, name, qualified := strings.Cut(a, "/")
		if !qualified {
			ns, name = "default", a
		}
		if cluster.ValidateKey(rollout.Key{Namespace: ns, Name: name}) != nil || qualified && (i > 0 || l.Sole == "version") {
			return fail(rollout.ReasonInvalid, "comment", "write `"+use+"`; names have lower-case letters, digits and hyphens", "%q is not the name of an endpoint or a version", a)
		}
	}
	l.Names = names
	return l, true
}
