package chatops

import (
	"regexp"
	"slices"
	"strings"

	"github.com/sluice-dev/sluice/pkg/cluster"
	"github.com/sluice-dev/sluice/pkg/markdown"
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
)

// Limits of what one comment may ask.
const (
	// MaxCommands are carried out per comment; one more is refused and the rest not looked at.
	MaxCommands = 5
	// maxBody in bytes: GitHub takes 65,536 characters.
	maxBody = 4 * 65536
	// maxLine in bytes, its white space made single.
	maxLine = 256
	// maxReason of a hold, in runes.
	maxReason = 200
)

// usage of each verb, for people.
var usage = map[Verb]string{
	Promote:  "/promote [ENDPOINT] [VERSION]",
	Rollback: "/rollback [ENDPOINT] [VERSION]",
	Traffic:  "/traffic PERCENT [ENDPOINT] [VERSION]",
	Hold:     "/hold [REASON]",
	Resume:   "/resume [ENDPOINT]",
	Status:   "/status [ENDPOINT]",
}

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
	// Reason of /hold, free text.
	Reason string
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
//	/status [ENDPOINT]
//
// in any case, outside code, quotes and HTML comments. Lines that begin with
// another word belong to someone else and are passed over; a known verb with
// arguments that it does not take comes back with Err set.
func Parse(body string) []Line {
	if len(body) > maxBody || !strings.Contains(body, "/") {
		return nil
	}
	var out []Line
	for n, text := range plainLines(body) {
		l, ok := ParseLine(text)
		if !ok {
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
	use, known := usage[l.Verb]
	if !known {
		return Line{}, false
	}
	words := strings.Fields(strings.ToValidUTF8(text, "\uFFFD"))
	args := words[1:]
	fail := func(reason rollout.Reason, field, hint, format string, a ...any) (Line, bool) {
		return Line{Text: l.Text, Verb: l.Verb, Err: refuse(reason, field, hint, format, a...)}, true
	}
	l.Text = strings.Join(words, " ")
	if l.Verb == Hold {
		l.Reason = markdown.Cut(strings.Join(args, " "), maxReason)
		l.Text = strings.TrimSpace(words[0] + " " + l.Reason)
		return l, true
	}
	if len(l.Text) > maxLine {
		l.Text = "… " + markdown.Cut(l.Text, 40)
		return fail(rollout.ReasonInvalid, "comment", "write `"+use+"`", "the line is longer than any command")
	}

	atMost := 2
	switch l.Verb {
	case Traffic:
		if len(args) == 0 {
			return fail(rollout.ReasonPercentInvalid, "percent", "write `"+use+"`, such as `/traffic 20`", "/traffic needs the share that the treatment is to get")
		}
		p, err := rollout.ValidatePercent("percent", args[0])
		if err != nil {
			e := rollout.AsErrors(err)[0]
			return Line{Text: l.Text, Verb: l.Verb, Err: e}, true
		}
		l.Percent, args = p, args[1:]
	case Resume, Status:
		atMost = 1
	}
	if len(args) > atMost {
		return fail(rollout.ReasonInvalid, "comment", "write `"+use+"`", "/%s takes no more than that, but %q follows", l.Verb, strings.Join(args[atMost:], " "))
	}
	for i, a := range args {
		// An endpoint may be written with its namespace; a version stands last.
		ns, name, qualified := strings.Cut(a, "/")
		if !qualified {
			ns, name = "default", a
		}
		if cluster.ValidateKey(rollout.Key{Namespace: ns, Name: name}) != nil || qualified && i > 0 {
			return fail(rollout.ReasonInvalid, "comment", "write `"+use+"`; names have lower-case letters, digits and hyphens", "%q is not the name of an endpoint or a version", a)
		}
	}
	if len(args) > 0 {
		l.Names = slices.Clone(args)
	}
	return l, true
}
