package environment_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/sluice-dev/sluice/pkg/image/environment"
	"github.com/sluice-dev/sluice/pkg/project"
	"github.com/sluice-dev/sluice/rollout"
)

// decode reads a canonical form back, by its documentation alone.
func decode(form []byte) ([][]string, error) {
	rest, ok := bytes.CutPrefix(form, []byte("sluice-environment 1\n"))
	if !ok {
		return nil, errors.New("no first line")
	}
	var out [][]string
	for len(rest) > 0 {
		end := bytes.IndexAny(rest, " \n")
		if end < 0 {
			return nil, fmt.Errorf("no end behind %q", rest)
		}
		record := []string{string(rest[:end])}
		rest = rest[end:]
		for rest[0] == ' ' {
			colon := bytes.IndexByte(rest, ':')
			if colon < 0 {
				return nil, fmt.Errorf("no length in %q", rest)
			}
			n, err := strconv.Atoi(string(rest[1:colon]))
			if err != nil || len(rest) < colon+1+n+1 {
				return nil, fmt.Errorf("the length in %q: %w", rest, err)
			}
			record = append(record, string(rest[colon+1:colon+1+n]))
			rest = rest[colon+1+n:]
		}
		if rest[0] != '\n' {
			return nil, fmt.Errorf("no end before %q", rest)
		}
		rest = rest[1:]
		out = append(out, record)
	}
	return out, nil
}

// The form can be read back and gives what went in, so that no two definitions share one.
func FuzzCanonical(f *testing.F) {
	f.Add("RUN a", "RUN b", "d/f", "x")
	f.Add("RUN a 5:step", "COPY d /", "d/g\nfile", "1:2")
	f.Add("RUN <<EOF\nstep 1:a\nEOF", "COPY . /", "é", "\n")
	f.Fuzz(func(t *testing.T, one, two, name, content string) {
		dir := t.TempDir()
		if !filepath.IsLocal(name) || os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755) != nil || os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644) != nil {
			t.Skip()
		}
		d, err := tryLoad(t, dir, project.Environment{DockerSteps: []string{one, two, "COPY . /"}})
		if err != nil {
			if !refused(err) {
				t.Fatalf("no refusal: %v", err)
			}
			t.Skip()
		}
		records, err := decode(d.Canonical())
		if err != nil {
			t.Fatal(err)
		}
		sum := sha256.Sum256([]byte(content))
		want := [][]string{{"platform", "linux/amd64"}, {"base", baseDigest}}
		for _, s := range []string{one, two, "COPY . /"} {
			want = append(want, []string{"step", strings.ReplaceAll(s, "\r\n", "\n")})
		}
		entry := []string{"file", filepath.Clean(name), "file", hex.EncodeToString(sum[:])}
		if !slices.ContainsFunc(records, func(r []string) bool { return slices.Equal(r, entry) }) {
			t.Fatalf("%q is not in %q", entry, records)
		}
		for i, w := range want {
			if !slices.Equal(records[i], w) {
				t.Fatalf("record %d is %q, want %q", i, records[i], w)
			}
		}
	})
}

// refused says whether an error is one for people.
func refused(err error) bool {
	var refusal *rollout.Error
	return errors.As(err, &refusal)
}

// Comments, blank lines and white space never change requirements, and what counts of them says the same
// again when it is read.
func FuzzRequirements(f *testing.F) {
	for _, s := range []string{
		"numpy==1.26 # x\n", "a[b] >= 1 , <2 ; python_version == '3. 9'\\\n\n", "--hash=sha256:a", "a --hash=sha256:a \\\n --hash sha256:b",
		"-i https://h.example/simple", "-c c.txt\n./pkg[x] ; y", "-e git+https://h.example/x@y#egg=z", "a @ https://h.example/a#b # c", "-r c.txt", "-f './x y'",
		"--global-option='a  b'", "a;b @ c", "\\", "a \\\n# c\nb", "a@#https://h.example", "./pkg[x];-", "./pkg;#x",
	} {
		f.Add(s)
	}
	more := map[string]string{"c.txt": "x==1\n", "pkg/setup.py": ""}
	f.Fuzz(func(t *testing.T, text string) {
		d, err := requirements(t, text, more)
		if err != nil {
			if !refused(err) {
				t.Fatalf("no refusal: %v", err)
			}
			return
		}
		if strings.HasSuffix(strings.TrimRight(text, "\r\n"), `\`) {
			return // what is put behind it would belong to it
		}
		if bytes.Contains(d.Canonical(), []byte(":requirements.txt ")) {
			return // it lies in a local package, whose files count byte for byte
		}
		loose, err := requirements(t, "# first\n\n"+text+"\n  \t\n # last", more)
		if err != nil {
			t.Fatalf("with comments: %v", err)
		}
		if loose.Hash() != d.Hash() {
			t.Fatalf("comments change it:\n%s\n%s", d.Canonical(), loose.Canonical())
		}
		again, err := requirements(t, respelt(t, d), more)
		if err != nil {
			t.Fatalf("what counts of it, %q: %v", respelt(t, d), err)
		}
		if again.Hash() != d.Hash() {
			t.Fatalf("what counts of it is not read as it was:\n%s\n%s", d.Canonical(), again.Canonical())
		}
	})
}

// respelt writes a requirements file with what counts of a definition. Constraints stand in c.txt.
func respelt(t *testing.T, d *environment.Definition) string {
	records, err := decode(d.Canonical())
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for _, r := range records {
		switch r[0] {
		case "requirement":
			b.WriteString("\n" + r[1])
		case "editable":
			b.WriteString("\n-e " + shellWord(r[1]))
		case "with":
			b.WriteString(" " + shellWord(r[1]))
		case "option":
			b.WriteString("\n" + shellWord(r[1]))
		case "constraint":
			b.WriteString("\n-c c.txt")
		}
	}
	return b.String()
}

// shellWord quotes a word behind its NAME=, since pip looks for options before it unquotes.
func shellWord(s string) string {
	name, value, has := strings.Cut(s, "=")
	if !has || !strings.HasPrefix(s, "--") {
		name, value = "", s
	} else {
		name += "="
	}
	return name + "'" + strings.ReplaceAll(value, "'", `'\''`) + "'"
}
