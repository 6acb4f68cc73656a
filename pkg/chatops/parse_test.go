package chatops

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-dev/sluice/rollout"
)

// brief is a line as "number verb arguments", or "number refused reason".
func brief(l Line) string {
	if l.Err != nil {
		return fmt.Sprintf("%d refused %s", l.Number, l.Err.Reason)
	}
	out := []string{fmt.Sprint(l.Number), string(l.Verb)}
	if l.Verb == Traffic {
		out = append(out, l.Percent.String())
	}
	if l.Sole != "" {
		out = append(out, l.Sole+"=")
	}
	out = append(out, l.Names...)
	if l.Reason != "" {
		out = append(out, l.Reason)
	}
	return strings.Join(out, " ")
}

func briefs(body string) []string {
	out := []string{}
	for _, l := range Parse(body) {
		out = append(out, brief(l))
	}
	return out
}

func TestParse(t *testing.T) {
	for _, tc := range []struct {
		name, body string
		want       []string
	}{
		{"each verb", "/promote\n/rollback\n/traffic 20\n/status\n/resume", []string{"1 promote", "2 rollback", "3 traffic 20", "4 status", "5 resume"}},
		{"any case, as phones write", "/Promote\n/ROLLBACK", []string{"1 promote", "2 rollback"}},
		{"between prose", "Looks good.\n\n/traffic 12.5%\n\nThanks!", []string{"3 traffic 12.5"}},
		{"names", "/promote fraud\n/rollback models/fraud pr-41-3f9c2ab\n/traffic 5 pr-41-3f9c2ab", []string{"1 promote fraud", "2 rollback models/fraud pr-41-3f9c2ab", "3 traffic 5 pr-41-3f9c2ab"}},
		{"a reason is free text", "/hold wait for  *Ann* @bob", []string{"1 hold wait for *Ann* @bob"}},
		{"line endings and space at the ends", "  /promote  \r\n/status\t\r/hold", []string{"1 promote", "2 status", "3 hold"}},
		{"no-break space", "/traffic\u00a020", []string{"1 traffic 20"}},
		{"not at the beginning", "please /promote\n./promote\n- /promote\n**/promote**\n`/promote`", []string{}},
		{"other words and paths", "/deploy\n/promoted\n/usr/bin\n/promote-now\n/ promote\n//promote\n/\n/sluicepromote", []string{}},
		{"with the prefix", "/sluice promote fraud\n/Sluice TRAFFIC 20\n/sluice\n/sluice /rollback\n/sluice hold a b", []string{"1 promote fraud", "2 traffic 20", "3 help", "4 rollback", "5 hold a b"}},
		{"the other verbs", "/plan fraud\n/lock an audit\n/unlock\n/help", []string{"1 plan fraud", "2 lock an audit", "3 unlock", "4 help"}},
		{"mistyped", "/promot\n/sluice promot\n/sluice deploy", []string{"2 refused invalid", "3 refused invalid"}},
		{"quotes", "> /promote\n\n>/promote\n\n   > /promote\n\n/status", []string{"7 status"}},
		{"a quote's lazy continuation", "> He said\n/promote\n\n/status", []string{"4 status"}},
		{"after a quote's blank line", "> He said\n>\n/promote", []string{"3 promote"}},
		{"fences", "```\n/promote\n```\n~~~sh\n/promote\n~~~\n/status", []string{"7 status"}},
		{"a longer fence", "````\n```\n/promote\n````\n/status", []string{"5 status"}},
		{"a fence closed by the other kind only", "```\n~~~\n/promote", []string{}},
		{"no fence: text after backticks has one", "```a`b\n/promote", []string{"2 promote"}},
		{"a fence that a tab keeps open", "```\n\t```\n/promote\n```\n/status", []string{"5 status"}},
		{"a fence that never closes", "```\n/promote\n/status", []string{}},
		{"indented code", "    /promote\n\n\t/promote\n\n   /status", []string{"5 status"}},
		{"a code span over lines", "see `this\n/promote\nthat`\n/status", []string{"4 status"}},
		{"a backtick without twin", "it's ` odd\n/promote", []string{"2 promote"}},
		{"backticks without twins in two items", "- see `a\n/rollback\n- and b`", []string{"2 rollback"}},
		{"an escaped backtick", "see \\`this\n/promote\nthat`", []string{"2 promote"}},
		{"HTML comments", "<!-- hint:\n/promote\n\n/promote\n-->\n/status", []string{"6 status"}},
		{"an HTML comment within a paragraph", "text <!--\n/promote\n--> text\n/status", []string{"4 status"}},
		{"raw HTML", "<pre>\n/promote\n\n/promote\n</pre>\n/status", []string{"6 status"}},
		{"details are plain text", "<details>\n\n/status\n\n</details>", []string{"3 status"}},
		{"fences that open on an item's line", "- ```\n  /promote\n  ```\n\n1. ```sh\n   /promote\n   ```\n\n* ~~~\n  /promote\n  ~~~\n\n- 1. ```\n  /promote\n\n/status", []string{"14 promote", "16 status"}},
		{"after fences in items", "- ```\n  /promote\n  ```\n\n1. ```sh\n   /promote\n   ```\n\n* ~~~\n  /promote\n  ~~~\n\n/status", []string{"13 status"}},
		{"a fence that the end of its item closes", "- ```\n\ntext\n```\n/promote\n```", []string{}},
		{"a fence in an item that is none", "text\n2. ```\n   ```\n/promote\n", []string{}},
		{"quotes in items", "- > He said\n  /promote\n\n1. > He said\n/promote\n\n- * > He said\n/promote\n\n/status", []string{"10 status"}},
		{"a list that ends a quote", "> He said\n2. times\n/promote\n\n/status", []string{"3 promote", "5 status"}},
		{"HTML in items", "- <pre>\n  /promote\n  </pre>\n- <!--\n\n  /promote\n  -->\n\n/status", []string{"9 status"}},
		{"inline HTML", "see <pre>\n/promote\n</pre>\n\n<code>\n/promote\n</code>\n\n<blockquote>\n\n/promote\n\n</blockquote>\n\n/status", []string{"15 status"}},
		{"HTML that never closes", "see <KBD\nclass=a>\n/promote\n\n/promote", []string{}},
		{"HTML blocks", "<div>\n/promote\n</div>\n\n/status", []string{"5 status"}},
		{"inside of tags and links", "see <b title='\n/promote\n'>\n/plan\n\n[a](\n/promote\n)\n/status\n\n[a]:\n/promote\n\n![a](b)\n/status\n\n[a]: /b\n'c\n/promote\nd'", []string{"4 plan", "9 status", "15 status"}},
		{"no HTML", "`<pre>` \\<code> a <b\n/promote\n\na <s 1\n/status", []string{"2 promote", "5 status"}},
		{"an HTML comment that its own line ends", "<!-->\n/promote\n<!--->\n/status", []string{"2 promote", "4 status"}},
		{"beside lists", "/promote\n\n- tested\n  - twice\n* * *\n1. ok\n\n/status", []string{"1 promote", "8 status"}},
		{"a list's lazy continuation", "- tested\n/promote", []string{"2 promote"}},
		{"items of one kind", "1. Fixed `foo`\n2. Tests pass\n/promote\n\n- a `x`\n    - b\n/status\n\n* see <b>\n* c\n/plan\n\n3) a `x`\n\n1. a <b>\n   d `x`\n2. b\n3. c\n/hold",
			[]string{"3 promote", "7 status", "11 plan", "19 hold"}},
		{"items that are none, or of another kind", "1. a `x`\n   2. b\n/promote\n\n1. a `\n2) b\n/status `", []string{"3 promote", "7 refused invalid"}},
		{"code that looks like an item's text", "    - b `\n`\n/promote\n`\n\n-      c `\na `b\n/promote\nb` c\n\ntext\n\n    b `\n`\n/promote\n`\n\n/status", []string{"18 status"}},
		{"names of tags in prose", "It broke on pages with <script> tags.\n\n/rollback\n\n> use <pre>\n\n/status\n\nPut <var> and <KBD> there, <q>, <samp> and <del>\n/promote\n\n/plan\n\n- see <kbd>\n  # A\n  /promote\n\n/hold",
			[]string{"3 rollback", "7 status", "12 plan", "18 hold"}},
		{"tags that stay open", "<del>\n\n/promote\n\n</del>\n\nsee <div><kbd>\n\n/promote\n\n</kbd>\n\n> <pre>\n> </pre>\n\n/status\n\na <pre>\n\n> <pre>\n> </pre>\n\n/promote\n\n</pre>\n\n/plan\n\na <code>\n\n/promote",
			[]string{"16 status", "27 plan"}},
		{"tags alone on a line or not", "<b>LGTM</b>\n/promote\n\n<b>Error:</b>\n```\nx\n```\n\n/rollback\n\n<b>\n```\n/promote\n\n/plan\n\n<b\nx>\n/promote\n\n/status",
			[]string{"2 promote", "9 rollback", "15 plan", "19 promote", "21 status"}},
		{"among all sorts of things", "1. Run\n   ```sh\n   x\n   ```\n2. Look\n    - at `it`\n\n/status\n\n<details><summary>log</summary>\n\n```\nx\n```\n\n</details>\n\n/plan\n\n" +
			"<img src=x>\n\n> quoted\n\n- [ ] see <kbd>A</kbd>\n- [x] `<pre>`\n\n/promote\n<img src=y>", []string{"8 status", "18 plan", "27 promote"}},
		{"names that say what they are of", "/promote endpoint=fraud\n/promote version=v1\n/promote VERSION=v1 Endpoint=models/fraud\n/traffic version=v1 20 fraud\n/promote v1 endpoint=fraud",
			[]string{"1 promote endpoint= fraud", "2 promote version= v1", "3 promote models/fraud v1", "4 traffic 20 fraud v1", "5 promote fraud v1"}},
		{"a single one for what concerns an endpoint", "/resume endpoint=fraud\n/hold endpoint=fraud", []string{"1 resume endpoint= fraud", "2 hold endpoint=fraud"}},
		{"a share with a space", "/traffic 20 %\n/traffic 20 % fraud", []string{"1 traffic 20", "2 traffic 20 fraud"}},
		{"what such names contradict", "/promote endpoint=a endpoint=a\n/promote a b version=c\n/promote a b endpoint=c\n/status version=a\n/help endpoint=a", slices.Repeat([]string{"refused invalid"}, 5)},
		{"such names that are none", "/promote endpoint=\n/promote version=a/b\n/promote role=a\n/traffic 20% %\n/promote --endpoint a", slices.Repeat([]string{"refused invalid"}, 5)},
		{"such a name for a share", "/traffic version=a", []string{"1 refused percent_invalid"}},
		{"bad shares", "/traffic\n/traffic 101\n/traffic -1\n/traffic NaN\n/traffic 10.0001", slices.Repeat([]string{"refused percent_invalid"}, 5)},
		{"trailing arguments", "/promote fraud v1 now\n/status fraud x\n/traffic 20 a b c\n/promote It's\n/resume a b", slices.Repeat([]string{"refused invalid"}, 5)},
		{"names that are none", "/promote UPPER\n/promote fraud models/v1\n/promote a/b/c\n/promote -x\n/promote " + strings.Repeat("x", 33), slices.Repeat([]string{"refused invalid"}, 5)},
		{"a line too long", "/traffic 20 " + strings.Repeat("x ", 200), []string{"1 refused invalid"}},
		{"too many", strings.Repeat("/status\n", 9), []string{"1 status", "2 status", "3 status", "4 status", "5 status", "6 refused invalid"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			want := slices.Clone(tc.want)
			for i, w := range want {
				if strings.HasPrefix(w, "refused") { // each on a line of its own
					want[i] = fmt.Sprintf("%d %s", i+1, w)
				}
			}
			if diff := cmp.Diff(want, briefs(tc.body)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// TestRefusalsNameTheWayOut checks every refusal of the grammar.
func TestRefusalsNameTheWayOut(t *testing.T) {
	for _, body := range []string{"/traffic", "/traffic x", "/promote a b c", "/status a b", "/promote X", "/status version=a", "/promote endpoint=a endpoint=b", "/promote " + strings.Repeat("x", 300), strings.Repeat("/status\n", 6)} {
		lines := Parse(body)
		e := lines[len(lines)-1].Err
		if e == nil || e.Reason == "" || e.Field == "" || e.Message == "" || e.Hint == "" {
			t.Errorf("%.40q: %#v lacks reason, field, rule or way out", body, e)
		}
	}
}

func TestLongReasonIsCut(t *testing.T) {
	l := Parse("/hold " + strings.Repeat("é", 500))[0]
	if n := len([]rune(l.Reason)); n != maxReason+1 {
		t.Errorf("the reason has %d characters, want %d and an ellipsis", n, maxReason)
	}
	back, ok := ParseLine(l.Text)
	if !ok || back.Reason != l.Reason {
		t.Errorf("read back: %q", back.Reason)
	}
}

// What takes a library of Markdown long is read in seconds. A quarter of what GitHub allows is enough to tell by the test's time
// limit, also with the race detector.
func TestHugeBodies(t *testing.T) {
	for _, part := range []string{
		"`", "` `` ", "<!--", "<!--\n/status\n-->\n", "a `b\n", "<code ", "</code   ", "](", "a<b", "- ", "- * ", "- > ", "_a*", "[a](", "- <code>\n", "|a|b|\n", "<code title=\"",
	} {
		for _, begin := range []string{"", "a <b\n"} {
			Parse(begin + strings.Repeat(part, 16384/len(part)) + "x\n/status")
		}
	}
	if got := Parse("/status\n" + strings.Repeat("x", maxBody)); got != nil {
		t.Errorf("a body larger than GitHub allows has commands: %v", got)
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{
		"/promote", "/Rollback fraud pr-1-abcdef0", "/traffic 12.5%", "/traffic 1e1 models/fraud", "/hold because `x`\n/resume", "> /promote\n/status",
		"```\n/promote\n```", "<!--\n/promote\n-->", "a `\n/promote\n` b", "/traffic \x00\xff", "/traffic 20 % version=a endpoint=b/c", "/promote version=x", "/plan endpoint=", "/status\r/status\r\n/status", strings.Repeat("/status\n", 8),
		"\\`\n/promote", "- x\n  ~~~\n/promote", "/promote " + strings.Repeat("y", 300), "> a\n/b", "- ```\n  /promote\n  ```", "1. > a\n/b", "a <pre>\n/promote\n</pre>", "/hold " + strings.Repeat("\u200b", 300),
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, body string) {
		lines := Parse(body)
		if len(lines) > MaxCommands+1 {
			t.Fatalf("%d commands", len(lines))
		}
		raw := strings.Split(strings.ReplaceAll(strings.ReplaceAll(body, "\r\n", "\n"), "\r", "\n"), "\n")
		last := 0
		for i, l := range lines {
			if l.Number <= last || l.Number > len(raw) {
				t.Fatalf("line %d after line %d of %d", l.Number, last, len(raw))
			}
			last = l.Number
			written := strings.TrimLeft(raw[l.Number-1], " ")
			if !strings.HasPrefix(strings.ToLower(written), "/"+string(l.Verb)) {
				t.Fatalf("%q was read as %s", written, l.Verb)
			}
			if len(l.Text) > maxLine+4*maxReason {
				t.Fatalf("%d bytes go into the journal", len(l.Text))
			}
			// What the journal keeps means the same when it is read back: above all, a refusal stays one.
			back, ok := ParseLine(l.Text)
			switch {
			case !ok && l.Err == nil:
				t.Fatalf("%q cannot be read back", l.Text)
			case ok && (i == MaxCommands || brief(back) != strings.Replace(brief(l), fmt.Sprint(l.Number), "0", 1)):
				t.Fatalf("%q is %q, and read back %q", l.Text, brief(l), brief(back))
			case l.Err == nil && l.Verb == Traffic && (l.Percent < 0 || l.Percent > rollout.Full):
				t.Fatalf("share %s", l.Percent)
			}
		}
		if len(body) > 4000 {
			return
		}
		if got := Parse("> " + strings.Join(raw, "\n> ")); len(got) != 0 {
			t.Fatalf("quoted: %v", got)
		}
		fence := strings.Repeat("`", len(body)+3)
		if got := Parse(fence + "\n" + body + "\n" + fence); len(got) != 0 {
			t.Fatalf("in code: %v", got)
		}
	})
}

func TestSuggestions(t *testing.T) {
	for text, want := range map[string]string{
		"/sluice promot": "promote", "/sluice rolback": "rollback", "/sluice trafffic 20": "traffic", "/sluice satus": "status", "/sluice unlcok": "unlock",
		"/sluice deploy": "", "/sluice x": "", "/sluice " + strings.Repeat("promote", 30): "",
	} {
		l, ok := ParseLine(text)
		if !ok || l.Err == nil || !l.Prefixed {
			t.Fatalf("%s: %+v, %v", text, l, ok)
		}
		if got := strings.Contains(l.Err.Hint, "did you mean"); got != (want != "") || want != "" && !strings.Contains(l.Err.Hint, "`/sluice "+want+"`") {
			t.Errorf("%s: %s", text, l.Err.Hint)
		}
		if back, ok := ParseLine(l.Text); !ok || back.Err == nil {
			t.Errorf("%q is a command when it is read back", l.Text)
		}
	}
	if got := parse("/promote\n/sluice status\n/lgtm", false); len(got) != 1 || got[0].Verb != Status {
		t.Errorf("with the prefix only: %+v", got)
	}
}
