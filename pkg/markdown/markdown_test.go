package markdown_test

import (
	"strings"
	"testing"

	"github.com/sluice-dev/sluice/pkg/markdown"
)

func TestEscape(t *testing.T) {
	for in, want := range map[string]string{
		"plain words, and a stop.": "plain words, and a stop.",
		"12.5 per cent: x":         "12.5 per cent: x",
		"@bob":                     "@&#8203;bob",
		"a@b.c":                    "a@&#8203;b.c",
		"#1":                       `\#&#8203;1`,
		"acme/x#1":                 `acme/x\#&#8203;1`,
		"gh-1 and GH-2 but ugh-x":  "gh&#8203;-1 and GH&#8203;-2 but ugh&#8203;-x",
		"https://x.y":              "https:&#8203;//x.y",
		"WWW.x.y":                  "WWW&#8203;.x.y",
		"<b>&amp;":                 "&lt;b&gt;&amp;amp;",
		"*_~`|[]()!\\":             "\\*\\_\\~\\`&#124;\\[\\]()\\!\\\\",
		":tada:":                   ":&#8203;tada:",
		"a\r\n\tb\u2028c\u0000d":   "a b c d",
		"\u202eabc\u200b":          "abc",
		"\xff":                     "\uFFFD",
	} {
		if got := markdown.Escape(in); got != want {
			t.Errorf("escape(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestCode(t *testing.T) {
	for in, want := range map[string]string{
		"x":       "`x`",
		"a`b":     "``a`b``",
		"`":       "`` ` ``",
		"a``b`":   "``` a``b` ```",
		"@bob\nx": "`@bob x`",
		"":        "",
	} {
		if got := markdown.Code(in); got != want {
			t.Errorf("code(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestProse(t *testing.T) {
	for in, want := range map[string]string{
		"run `sluice status` now":  "run `sluice status` now",
		"one ` only @x":            "one \\` only @&#8203;x",
		"`a` and `b":               "`a` and \\`b",
		"``":                       "",
		strings.Repeat("a", 5000):  strings.Repeat("a", markdown.MaxProse) + "…",
		"` @everyone `  **` x `**": "`@everyone` \\*\\*`x`\\*\\*",
	} {
		if got := markdown.Prose(in); got != want {
			t.Errorf("prose(%q) = %q, want %q", in, got, want)
		}
	}
}
