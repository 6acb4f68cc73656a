package environment_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sluice-dev/sluice/pkg/image/environment"
	"github.com/sluice-dev/sluice/pkg/project"
	"github.com/sluice-dev/sluice/rollout"
)

var update = flag.Bool("update", false, "write what tests compare with")

const baseDigest = "sha256:1111111111111111111111111111111111111111111111111111111111111111"

// images resolves references as a registry would.
type images map[string]string

func (m images) resolve(_ context.Context, field, ref string) (environment.Image, error) {
	if d, ok := m[ref]; ok {
		return environment.Image{Digest: d}, nil
	}
	return environment.Image{}, &rollout.Error{Reason: rollout.ReasonBaseImageMissing, Field: field, Message: "no image " + ref}
}

// files writes a project. A name that ends in * is executable, a value that begins with "-> " a link.
func files(t testing.TB, content map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range content {
		p := filepath.Join(dir, strings.TrimSuffix(name, "*"))
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if to, link := strings.CutPrefix(text, "-> "); link {
			if err := os.Symlink(to, p); err != nil {
				t.Fatal(err)
			}
			continue
		}
		mode := fs.FileMode(0o644)
		if strings.HasSuffix(name, "*") {
			mode = 0o755
		}
		if err := os.WriteFile(p, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func options() environment.Options {
	return environment.Options{Resolve: images{
		"python:3.12-slim": baseDigest,
		"debian:12":        "sha256:" + strings.Repeat("3", 64),
		"tools:1":          "sha256:" + strings.Repeat("2", 64),
	}.resolve}
}

func load(t testing.TB, dir string, env project.Environment) *environment.Definition {
	t.Helper()
	d, err := tryLoad(t, dir, env)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func tryLoad(t testing.TB, dir string, env project.Environment) (*environment.Definition, error) {
	if env.BaseImage == "" && env.Dockerfile == "" {
		env.BaseImage = "python:3.12-slim"
	}
	return environment.Load(t.Context(), dir, env, options())
}

// requirements loads an environment with a requirements file and further files.
func requirements(t testing.TB, text string, more map[string]string) (*environment.Definition, error) {
	content := map[string]string{"requirements.txt": text}
	for name, text := range more {
		content[name] = text
	}
	return tryLoad(t, files(t, content), project.Environment{Requirements: "requirements.txt"})
}

func conda(t testing.TB, text string, more map[string]string) (*environment.Definition, error) {
	content := map[string]string{"conda.yml": text}
	for name, text := range more {
		content[name] = text
	}
	return tryLoad(t, files(t, content), project.Environment{Conda: "conda.yml"})
}

func steps(t testing.TB, more map[string]string, steps ...string) (*environment.Definition, error) {
	return tryLoad(t, files(t, more), project.Environment{DockerSteps: steps})
}

// TestVectors checks the published examples of the canonical form.
func TestVectors(t *testing.T) {
	dirs, err := filepath.Glob("testdata/vectors/*")
	if err != nil || len(dirs) < 5 {
		t.Fatalf("%d vectors, %v", len(dirs), err)
	}
	for _, dir := range dirs {
		t.Run(filepath.Base(dir), func(t *testing.T) {
			var vector struct {
				Platform string `json:"platform"`
				Images   images `json:"images"`
			}
			b, err := os.ReadFile(filepath.Join(dir, "vector.json"))
			if err != nil {
				t.Fatal(err)
			}
			if err := json.Unmarshal(b, &vector); err != nil {
				t.Fatal(err)
			}
			root := filepath.Join(dir, "project")
			env, err := project.LoadEnvironment(root)
			if err != nil {
				t.Fatal(err)
			}
			d, err := environment.Load(t.Context(), root, env, environment.Options{Platform: vector.Platform, Resolve: vector.Images.resolve})
			if err != nil {
				t.Fatal(err)
			}
			golden(t, filepath.Join(dir, "canonical"), d.Canonical())
			golden(t, filepath.Join(dir, "hash"), []byte(d.Hash()+"\n"))
			golden(t, filepath.Join(dir, "Dockerfile"), d.Dockerfile())
		})
	}
}

func golden(t *testing.T, file string, got []byte) {
	t.Helper()
	if *update {
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("%s (-want +got):\n%s", file, diff)
	}
}

// group are definitions with one hash.
type group []func(t *testing.T) (*environment.Definition, error)

func reqs(text string, more ...string) func(*testing.T) (*environment.Definition, error) {
	return func(t *testing.T) (*environment.Definition, error) { return requirements(t, text, pairs(more)) }
}

func cond(text string, more ...string) func(*testing.T) (*environment.Definition, error) {
	return func(t *testing.T) (*environment.Definition, error) { return conda(t, text, pairs(more)) }
}

func step(more []string, s ...string) func(*testing.T) (*environment.Definition, error) {
	return func(t *testing.T) (*environment.Definition, error) { return steps(t, pairs(more), s...) }
}

func own(more ...string) func(*testing.T) (*environment.Definition, error) {
	return func(t *testing.T) (*environment.Definition, error) {
		return tryLoad(t, files(t, pairs(more)), project.Environment{Dockerfile: "Dockerfile"})
	}
}

func pairs(kv []string) map[string]string {
	out := map[string]string{}
	for i := 0; i+1 < len(kv); i += 2 {
		out[kv[i]] = kv[i+1]
	}
	return out
}

// Within a group everything is the same environment; no two groups are.
func TestWhatCounts(t *testing.T) {
	with := func(change func(*project.Environment, *environment.Options)) func(*testing.T) (*environment.Definition, error) {
		return func(t *testing.T) (*environment.Definition, error) {
			env, o := project.Environment{BaseImage: "python:3.12-slim"}, options()
			change(&env, &o)
			return environment.Load(t.Context(), t.TempDir(), env, o)
		}
	}
	const hash = " --hash=sha256:aa"
	groups := map[string]group{
		"base": {
			with(func(*project.Environment, *environment.Options) {}),
			with(func(e *project.Environment, _ *environment.Options) { e.Variables = map[string]string{"A": "b"} }),
			with(func(_ *project.Environment, o *environment.Options) { o.Platform = "linux/amd64" }),
			with(func(_ *project.Environment, o *environment.Options) { o.Platform = "linux/x86_64" }),
			with(func(_ *project.Environment, o *environment.Options) { o.Platform = "linux/x86-64" }),
			with(func(_ *project.Environment, o *environment.Options) { o.Micromamba = "other:1" }),
			reqs("# none\n"), reqs(""), reqs("-r a.txt", "a.txt", ""),
			with(func(e *project.Environment, o *environment.Options) {
				e.BaseImage, o.Resolve = "mirror.example/python:3", images{"mirror.example/python:3": baseDigest}.resolve
			}),
		},
		"base moved": {with(func(e *project.Environment, _ *environment.Options) { e.BaseImage = "debian:12" })},
		"arm64": {
			with(func(_ *project.Environment, o *environment.Options) { o.Platform = "linux/arm64" }),
			with(func(_ *project.Environment, o *environment.Options) { o.Platform = "linux/arm64/v8" }),
			with(func(_ *project.Environment, o *environment.Options) { o.Platform = "linux/aarch64" }),
		},
		"arm v7": {with(func(_ *project.Environment, o *environment.Options) { o.Platform = "linux/arm/v7" })},

		"requirements": {
			reqs("numpy==1.26\nscipy>=1,<2\n"),
			reqs("# why\n\n  numpy == 1.26   # exactly\r\nscipy >=1, <2"),
			reqs("\ufeffnumpy==\\\n1.26\nscipy>=1,\\\n<2\n"),
			reqs("-r other.txt\nscipy>=1,<2", "other.txt", "numpy==1.26"),
			reqs("--requirement=sub/other.txt", "sub/other.txt", "numpy==1.26\n-r ../b.txt\n", "b.txt", "scipy>=1,<2"),
			reqs("-r l.txt", "l.txt", "-> sub/other.txt", "sub/other.txt", "numpy==1.26\nscipy>=1,<2"),
			reqs("numpy==1.26\u00a0# exactly\n\u00a0# x\nscipy>=1,<2"),
		},
		"requirements in another order": {reqs("scipy>=1,<2\nnumpy==1.26\n")},
		"another package":               {reqs("numpy==1.27\nscipy>=1,<2\n")},
		// A constraints file's -r names requirements, as in pip.
		"a package less": {reqs("numpy==1.26"), reqs("-c c.txt", "c.txt", "-r r.txt", "r.txt", "numpy==1.26")},
		"a constraint": {
			reqs("scipy>=1,<2\n-c c.txt", "c.txt", "numpy==1.26"),
			reqs("scipy>=1,<2\n-c other/c.txt #x", "other/c.txt", "#\nnumpy == 1.26"),
		},
		"a marker":                  {reqs(`numpy==1.26; python_version<"3.9"`), reqs(`numpy == 1.26 ; python_version < "3.9"`)},
		"another marker":            {reqs(`numpy==1.26; python_version<"3. 9"`)},
		"a fragment":                {reqs("pip @ https://h.example/p.zip#sha1=aa"), reqs("pip@https://h.example/p.zip#sha1=aa # x")},
		"another fragment":          {reqs("pip @ https://h.example/p.zip#sha1=ab")},
		"hashes":                    {reqs("numpy==1.26" + hash + " --hash sha256:bb"), reqs("numpy==1.26 \\\n " + hash + " \\\n --hash=sha256:bb  # x\n")},
		"a hash less":               {reqs("numpy==1.26" + hash)},
		"an index":                  {reqs("-i https://h.example/simple"), reqs("--index-url=https://h.example/simple\n"), reqs("--index-url   https://h.example/simple"), reqs("-ihttps://h.example/simple"), reqs("--pypi-url 'https://h.example/simple'")},
		"a further index":           {reqs("--extra-index-url https://h.example/simple")},
		"pre":                       {reqs("--pre")},
		"a local package":           {reqs("./pkg", "pkg/setup.py", "x"), reqs("pkg/", "pkg/setup.py", "x", "pkg/__pycache__/a.pyc", "y", "else.py", "z")},
		"a local package edited":    {reqs("./pkg", "pkg/setup.py", "y")},
		"a local package's file":    {reqs("./pkg", "pkg/setup.py", "x", "pkg/a.py", "")},
		"a local package's mode":    {reqs("./pkg", "pkg/setup.py*", "x")},
		"a local package, editable": {reqs("-e ./pkg", "pkg/setup.py", "x"), reqs("--editable=pkg", "pkg/setup.py", "x")},
		"a local package's extras":  {reqs("./pkg[a]", "pkg/setup.py", "x")},
		"a wheel":                   {reqs("a-1.0-py3-none-any.whl", "a-1.0-py3-none-any.whl", "x"), reqs("./a-1.0-py3-none-any.whl", "a-1.0-py3-none-any.whl", "x", ".dockerignore", "*.whl")},
		"found wheels":              {reqs("-f wheels\na", "wheels/a.whl", "x"), reqs("-r sub/r.txt\na", "sub/r.txt", "--find-links ../wheels", "wheels/a.whl", "x")},
		"found wheels edited":       {reqs("-f wheels\na", "wheels/a.whl", "y")},

		"conda": {
			cond("channels: [a, b]\ndependencies: [python=3.12, 'numpy>=1,<2', {pip: [x==1]}]"),
			cond("# c\nname: other\nprefix: /x\ndependencies:\n- python = 3.12 # c\n- numpy >=1, <2\n- pip:\n  - x == 1\nchannels:\n  - a\n\n  - b\n"),
			cond("channels: [a, b]\ndependencies: [python=3.12, 'numpy>=1,<2', {pip: ['-r r.txt']}]", "r.txt", "x==1"),
		},
		"conda, channels in another order": {cond("channels: [b, a]\ndependencies: [python=3.12, 'numpy>=1,<2', {pip: [x==1]}]")},
		"conda, packages in another order": {cond("channels: [a, b]\ndependencies: ['numpy>=1,<2', python=3.12, {pip: [x==1]}]")},
		"conda, another package":           {cond("channels: [a, b]\ndependencies: [python=3.12, 'numpy>=1,<3', {pip: [x==1]}]")},
		"conda, another pip package":       {cond("channels: [a, b]\ndependencies: [python=3.12, 'numpy>=1,<2', {pip: [x==2]}]")},
		"conda, no pip":                    {cond("channels: [a, b]\ndependencies: [python=3.12, 'numpy>=1,<2', x==1]")},
		"conda, other keys":                {cond("channels: [a]\ndependencies: [python]\nvariables: {A: 1, B: x}\nplatforms: [p]"), cond("platforms:\n- p\nvariables:\n  B: x\n  A: 1\nchannels: [a]\ndependencies: [python]")},
		"conda, other values":              {cond("channels: [a]\ndependencies: [python]\nvariables: {A: '1', B: x}\nplatforms: [p]")},

		"steps":             {step(nil, "RUN a", "RUN b"), step(nil, "RUN a", "RUN b"), step([]string{"unused", "x"}, "RUN a", "RUN b")},
		"steps, one":        {step(nil, "RUN a\nRUN b"), step(nil, "RUN a\r\nRUN b")},
		"steps, swapped":    {step(nil, "RUN b", "RUN a")},
		"steps, a space":    {step(nil, "RUN  a", "RUN b")},
		"steps, a comment":  {step(nil, "# x\nRUN a", "RUN b")},
		"a copied file":     {step([]string{"f", "x", "g", "y"}, "COPY f /"), step([]string{"f", "x", ".dockerignore", "g"}, "COPY f /")},
		"its contents":      {step([]string{"f", "y"}, "COPY f /")},
		"its mode":          {step([]string{"f*", "x"}, "COPY f /")},
		"a copied tree":     {step([]string{"d/f", "x", "d/.git/y", "z"}, "COPY d /"), step([]string{"d/f", "x", "d/g", "y", ".dockerignore", "d/g"}, "COPY d /")},
		"a file more":       {step([]string{"d/f", "x", "d/g", "y"}, "COPY d /")},
		"a file elsewhere":  {step([]string{"d/g", "x"}, "COPY d /")},
		"parents":           {step([]string{"src/a/b/1.py", "x", "src/2.py", "y", "else", "z"}, "COPY --parents src/**/*.py /"), step([]string{"src/a/b/1.py", "x", "src/2.py", "y"}, "COPY --parents src/**/*.py /")},
		"parents, edited":   {step([]string{"src/a/b/1.py", "x2", "src/2.py", "y"}, "COPY --parents src/**/*.py /")},
		"a link":            {step([]string{"d/f", "x", "d/l", "-> f"}, "COPY d /")},
		"a link, elsewhere": {step([]string{"d/f", "x", "d/l", "-> g"}, "COPY d /")},
		"a pattern":         {step([]string{"a/1.txt", "x", "b/2.txt", "y", "a/3.csv", "z"}, "COPY ?/*.txt /"), step([]string{"a/1.txt", "x", "b/2.txt", "y"}, "COPY ?/*.txt /")},
		"through a link":    {step([]string{"real/f", "x", "l", "-> real"}, "COPY l/f /")},
		"a mount":           {step([]string{"f", "x", "g", "y"}, "RUN --mount=target=/f,source=f true")},
		"a mount's file":    {step([]string{"f", "y"}, "RUN --mount=target=/f,source=f true")},
		"other mounts":      {step([]string{"f", "y"}, "RUN --mount=type=cache,target=/f --mount=type=secret,id=x true")},
		"a heredoc":         {step([]string{"f", "y"}, "COPY <<EOF /f\nx\nEOF")},
		"a download":        {step(nil, "ADD --checksum="+baseDigest+" https://h.example/f /")},
		"a repository":      {step(nil, "ADD --checksum="+strings.Repeat("a", 40)+" https://h.example/f.git /")},
		"an image's file":   {step(nil, "COPY --from=tools:1 /a /a")},
		"another's":         {step(nil, "COPY --from=debian:12 /a /a")},
		"a pinned image":    {step(nil, "COPY --from=x@"+baseDigest+" /a /a")},

		"own": {
			own("Dockerfile", "FROM debian:12\n", "f", "x"), own("Dockerfile", "FROM debian:12\r\n", "f", "x", ".git/x", "y", ".sluice/z", "y"),
		},
		"own, edited":         {own("Dockerfile", "FROM debian:12 \n", "f", "x")},
		"own, a file edited":  {own("Dockerfile", "FROM debian:12\n", "f", "y")},
		"own, ignored":        {own("Dockerfile", "FROM debian:12\n", ".dockerignore", "*\n", "f", "x"), own("Dockerfile", "FROM debian:12\n", ".dockerignore", "*", "f", "y"), own("Dockerfile", "FROM debian:12\n", "Dockerfile.dockerignore", "*")},
		"own, another image":  {own("Dockerfile", "FROM python:3.12-slim\n", "f", "x")},
		"own, several stages": {own("Dockerfile", "ARG V=12\nFROM debian:${V} AS a\nFROM scratch\nCOPY --from=a /x /x\nCOPY --from=0 /x /x\nCOPY --from=tools:1 $A/x /x\n")},
		"own, variable paths": {own("Dockerfile", "FROM debian:12\nARG V=1\nADD ./f-$V.tgz /a/$V m-$V.tar.gz data-${V}/x /\nCOPY f-$V.tgz /\nADD --checksum="+baseDigest+" https://h.example/$V /\n")},
		"own, a syntax":       {own("Dockerfile", "# syntax=tools:1\nFROM debian:12\n")},
		"own, a fixed syntax": {own("Dockerfile", "# syntax=tools@"+baseDigest+"\nFROM debian:12\n")},
	}
	seen := map[string]string{}
	for name, g := range groups {
		t.Run(name, func(t *testing.T) {
			var first *environment.Definition
			for i, make := range g {
				d, err := make(t)
				if err != nil {
					t.Fatal(i, err)
				}
				// A Dockerfile's line ends in the context are the file's own.
				if name == "own" && i == 1 {
					continue
				}
				if i == 0 {
					first = d
				} else if !bytes.Equal(first.Canonical(), d.Canonical()) {
					t.Errorf("%d differs (-first +this):\n%s", i, cmp.Diff(string(first.Canonical()), string(d.Canonical())))
				}
			}
			if other, taken := seen[first.Hash()]; taken {
				t.Errorf("has the hash of %q", other)
			}
			seen[first.Hash()] = name
		})
	}
}

// What is refused, where, and why.
func TestRefusals(t *testing.T) {
	noBase := func(t *testing.T) (*environment.Definition, error) {
		return environment.Load(t.Context(), t.TempDir(), project.Environment{}, options())
	}
	env := func(e project.Environment, more ...string) func(*testing.T) (*environment.Definition, error) {
		return func(t *testing.T) (*environment.Definition, error) { return tryLoad(t, files(t, pairs(more)), e) }
	}
	for name, c := range map[string]struct {
		load  func(*testing.T) (*environment.Definition, error)
		place string // FILE:LINE, or the field
		says  string
	}{
		"no base":            {noBase, "environment.baseImage", "names no base image"},
		"no name of a base":  {env(project.Environment{BaseImage: "p:1:2"}), "environment.baseImage", `"p:1:2" is not the name of an image`},
		"a base's address":   {env(project.Environment{BaseImage: "https://r.example/p:1"}), "environment.baseImage", "is not the name of an image"},
		"a base's password":  {env(project.Environment{BaseImage: "me:hunter2@r.example/p:1"}), "environment.baseImage", "has credentials in it"},
		"a step's password":  {step(nil, "COPY --from=me:hunter2@r.example/p:1 /f /"), "environment.dockerSteps[0]", "has credentials in it"},
		"no such base":       {env(project.Environment{BaseImage: "nothing:1"}), "environment.baseImage", "no image nothing:1"},
		"dockerfile and":     {env(project.Environment{Dockerfile: "D", Conda: "c"}), "environment.conda", "exclude each other"},
		"conda and":          {env(project.Environment{Requirements: "r", Conda: "c"}), "environment.requirements", "exclude each other"},
		"no requirements":    {env(project.Environment{Requirements: "r.txt"}), "environment.requirements", "there is no r.txt"},
		"outside":            {env(project.Environment{Requirements: "../r.txt"}), "environment.requirements", "not a path inside the project"},
		"linked outside":     {env(project.Environment{Requirements: "r.txt"}, "r.txt", "-> /etc/hostname"), "environment.requirements", "leaves the project"},
		"linked upwards":     {env(project.Environment{Requirements: "r.txt"}, "r.txt", "-> ../../x"), "environment.requirements", "leaves the project"},
		"linked in a circle": {env(project.Environment{Requirements: "r.txt"}, "r.txt", "-> r.txt"), "environment.requirements", "in a circle"},
		"a directory":        {env(project.Environment{Requirements: "d"}, "d/x", ""), "environment.requirements", "d is not a file"},

		"missing -r":           {reqs("a\n\n-r x.txt"), "requirements.txt:3", "there is no x.txt"},
		"missing -r below":     {reqs("-r sub/a.txt", "sub/a.txt", "\n-c b.txt"), "sub/a.txt:2", "there is no sub/b.txt"},
		"-r outside":           {reqs("-r ../x.txt"), "requirements.txt:1", "leaves the project"},
		"-r absolute":          {reqs("-r /etc/x.txt"), "requirements.txt:1", "leaves the project"},
		"-r address":           {reqs("-r https://h.example/x"), "requirements.txt:1", "its content is not known"},
		"a circle":             {reqs("-r a.txt", "a.txt", "x\n-r requirements.txt"), "a.txt:2", "requirements.txt → a.txt → requirements.txt"},
		"missing package":      {reqs("./pkg"), "requirements.txt:1", "there is no ./pkg in the project's root"},
		"missing wheel":        {reqs("a.whl"), "requirements.txt:1", "there is no a.whl"},
		"package outside":      {reqs("a\n-e ../pkg"), "requirements.txt:2", "leaves the project"},
		"package absolute":     {reqs("/opt/pkg"), "requirements.txt:1", "leaves the project"},
		"package by file":      {reqs("a @ file:///opt/pkg"), "requirements.txt:1", "leaves the project"},
		"empty package":        {reqs("./pkg", "pkg/x", "", ".dockerignore", "pkg/x"), "requirements.txt:1", "holds no files"},
		"an index on a disk":   {reqs("a\n--index-url ./simple", "simple/a/index.html", ""), "requirements.txt:2", "--index-url ./simple is no address on the web"},
		"-i on a disk":         {reqs("-i simple", "simple/a/index.html", ""), "requirements.txt:1", "--index-url simple is no address"},
		"extra on a disk":      {reqs("--extra-index-url ../x"), "requirements.txt:1", "--extra-index-url ../x is no address"},
		"an absolute index":    {reqs("--index-url /srv/simple"), "requirements.txt:1", "--index-url /srv/simple is no address"},
		"an index, no host":    {reqs("--index-url https:simple"), "requirements.txt:1", "is no address"},
		"links, other scheme":  {reqs("-f ftp://h.example/x"), "requirements.txt:1", "--find-links ftp://h.example/x is no address"},
		"links, absolute":      {reqs("-r sub/r.txt", "sub/r.txt", "-f /wheels", "sub/wheels/a.whl", ""), "sub/r.txt:1", "/wheels leaves the project"},
		"missing links":        {reqs("-f wheels"), "requirements.txt:1", "there is no wheels"},
		"unknown option":       {reqs("--index=x"), "requirements.txt:1", "the option --index is not known"},
		"option, no value":     {reqs("a\n-i"), "requirements.txt:2", "has no value"},
		"option, a value":      {reqs("--pre=1"), "requirements.txt:1", "has no value"},
		"global with a name":   {reqs("a --pre"), "requirements.txt:1", "no option of a single requirement"},
		"behind a tabulator":   {reqs("a\t--pre"), "requirements.txt:1", "behind a tabulator"},
		"behind a backslash":   {reqs("a\nb \\ # c\nd"), "requirements.txt:2", "only as the last character"},
		"hash alone":           {reqs("--hash=sha256:a"), "requirements.txt:1", "without a requirement"},
		"quote":                {reqs("-i 'x"), "requirements.txt:1", "not closed"},
		"a variable":           {reqs("a\n-i https://${TOKEN}@h.example"), "requirements.txt:2", "the value of ${TOKEN}"},
		"credentials":          {reqs("\n-i https://me:hunter2@h.example/simple"), "requirements.txt:2", "the address of h.example has credentials"},
		"a token":              {reqs("a @ https://hunter2@h.example/a.whl"), "requirements.txt:1", "credentials"},
		"credentials, git":     {reqs("a @ git+https://me:hunter2@h.example/a"), "requirements.txt:1", "credentials"},
		"credentials, links":   {reqs("-f https://me:hunter2@h.example/a"), "requirements.txt:1", "credentials"},
		"not a requirement":    {reqs("=1"), "requirements.txt:1", "is not a requirement"},
		"a control character":  {reqs("a\nb\x0bc"), "requirements.txt:2", "control character"},
		"not UTF-8":            {reqs("a\xff"), "requirements.txt", "is not UTF-8"},
		"a constraint's path":  {reqs("-c c.txt", "c.txt", "./a"), "c.txt:1", "cannot be a path"},
		"a line continued":     {reqs("a\nb\\\n --pre"), "requirements.txt:2", "no option of a single requirement"},
		"credentials in conda": {cond("channels: ['https://a:b@h.example']\ndependencies: []"), "conda.yml:1", "credentials"},
		"a token in conda":     {cond("channels:\n- https://h.example/t/abc/main\ndependencies: []"), "conda.yml:2", "credentials"},

		"conda, no YAML":      {cond("a: [\n"), "conda.yml:2", "is not YAML"},
		"conda, empty":        {cond("# x"), "conda.yml", "is empty"},
		"conda, a list":       {cond("- a"), "conda.yml:1", "keys and values belong here"},
		"conda, two":          {cond("dependencies: []\n---\na: b"), "conda.yml:2", "several documents"},
		"conda, twice":        {cond("channels: [a]\ndependencies: []\nchannels: [b]"), "conda.yml:3", "stands twice, first in line 1"},
		"conda, an alias":     {cond("channels: &x [a]\ndependencies: *x"), "conda.yml:2", "alias *x"},
		"conda, a merge":      {cond("x: &x {a: b}\ny:\n  <<: *x\ndependencies: []"), "conda.yml:3", "merge keys"},
		"conda, a tag":        {cond("dependencies: [!!str 3]"), "conda.yml:1", "tag"},
		"conda, a number":     {cond("dependencies:\n- 3.12"), "conda.yml:2", "must be text"},
		"conda, no list":      {cond("dependencies: python"), "conda.yml:1", "must be a list"},
		"conda, none":         {cond("channels: [a]"), "conda.yml:1", "no dependencies"},
		"conda, another key":  {cond("dependencies:\n- a\n- npm: [b]"), "conda.yml:3", "can be pip"},
		"conda, pip twice":    {cond("dependencies:\n- pip: [b]\n- pip: [c]"), "conda.yml:3", "two lists of pip"},
		"conda, pip's -r":     {cond("dependencies:\n- pip:\n  - a\n  - -r x.txt"), "conda.yml:4", "there is no x.txt"},
		"conda, a file":       {cond("dependencies: [./a.conda]"), "conda.yml:1", "is not installed"},
		"conda, a variable":   {cond("channels: ['https://$X/y']\ndependencies: [a]"), "conda.yml:1", "has a variable"},
		"conda, a disk":       {cond("channels: ['./x']\ndependencies: [a]"), "conda.yml:1", "a channel on a disk"},
		"conda, pip's number": {cond("dependencies: [{pip: [1]}]"), "conda.yml:1", "must be text"},

		"no step":           {step(nil, "RUN a", "FOO b"), "environment.dockerSteps[1]", "unknown instruction: FOO"},
		"a comment":         {step(nil, "# a"), "environment.dockerSteps[0]", "has no instruction"},
		"FROM":              {step(nil, "FROM a"), "environment.dockerSteps[0]", "has a FROM"},
		"goes on":           {step(nil, "RUN a \\"), "environment.dockerSteps[0]", "does not end where its text ends"},
		"heredoc goes on":   {step(nil, "RUN <<EOF\na"), "environment.dockerSteps[0]", "heredoc"},
		"no such file":      {step(nil, "RUN a\nCOPY f /"), "environment.dockerSteps[0]", "there is no f"},
		"no such files":     {step(nil, "COPY *.f /"), "environment.dockerSteps[0]", "there are no such files"},
		"ignored":           {step([]string{"f", "x", ".dockerignore", "f"}, "COPY f /"), "environment.dockerSteps[0]", "stays out of the build context by .dockerignore"},
		"git's":             {step([]string{".git/f", "x"}, "COPY .git/f /"), "environment.dockerSteps[0]", "stays out of the build context"},
		"COPY outside":      {step(nil, "COPY ../f /"), "environment.dockerSteps[0]", "leaves the project"},
		"COPY of a link":    {step([]string{"f", "-> /etc/hostname"}, "COPY f /"), "environment.dockerSteps[0]", "leaves the project"},
		"COPY of its link":  {step([]string{"d/f", "-> ../../x"}, "COPY d /"), "environment.dockerSteps[0]", "leaves the project"},
		"COPY a variable":   {step([]string{"f", "x"}, "ENV A=f\nCOPY $A /"), "environment.dockerSteps[0]", "a source with a variable"},
		"a download":        {step(nil, "ADD https://h.example/f /"), "environment.dockerSteps[0]", "its content is not known"},
		"a repository":      {step(nil, "ADD https://h.example/f.git#main /"), "environment.dockerSteps[0]", "its content is not known"},
		"a repository, ssh": {step(nil, "ADD git@h.example:f.git /"), "environment.dockerSteps[0]", "its content is not known"},
		"a branch":          {step(nil, "ADD --checksum="+baseDigest+" https://h.example/f.git /"), "environment.dockerSteps[0]", "its content is not known"},
		"--from a stage":    {step(nil, "COPY --from=0 /f /"), "environment.dockerSteps[0]", "names a stage"},
		"--from no image":   {step(nil, "COPY --from=nothing:1 /f /"), "environment.dockerSteps[0]", "no image nothing:1"},

		"own, none":                  {env(project.Environment{Dockerfile: "D"}), "environment.dockerfile", "there is no D"},
		"own, no FROM":               {own("Dockerfile", "RUN a\n"), "Dockerfile", "no build stage"},
		"own, unknown":               {own("Dockerfile", "FROM debian:12\n\nFOO a\n"), "Dockerfile:3", "unknown instruction"},
		"own, a variable":            {own("Dockerfile", "ARG A\nFROM $A\n"), "Dockerfile:2", "not known before the build"},
		"own, a builder's":           {own("Dockerfile", "FROM --platform=$BUILDPLATFORM debian:12\n"), "Dockerfile:1", "another platform"},
		"own, a download":            {own("Dockerfile", "FROM debian:12\nRUN a\nADD https://h.example/f /\n"), "Dockerfile:3", "its content is not known"},
		"own, a variable address":    {own("Dockerfile", "FROM debian:12\nARG V=x\nADD https://h.example/$V /f\n"), "Dockerfile:3", "ADD https://h.example/$V: its content"},
		"own, a variable host":       {own("Dockerfile", "FROM debian:12\nARG H=h.example\nADD git@${H}:org/f.git /f\n"), "Dockerfile:3", "ADD git@$H:org/f.git: a source with a variable"},
		"own, a variable scheme":     {own("Dockerfile", "FROM debian:12\nARG V=://h.example/f\nADD https$V /f\n"), "Dockerfile:3", "ADD https$V: a source with a variable"},
		"own, a variable slash":      {own("Dockerfile", "FROM debian:12\nARG V=/h.example/f\nADD https:/$V /f\n"), "Dockerfile:3", "ADD https:/$V: a source with a variable"},
		"own, a variable's whole":    {own("Dockerfile", "FROM debian:12\nARG V=x\nADD $V/f /f\n"), "Dockerfile:3", "ADD $V/f: a source with a variable"},
		"own, COPY with credentials": {own("Dockerfile", "FROM debian:12\nARG V=x\nCOPY https://me:$V@h.example/f /f\n"), "Dockerfile:3", "COPY https://…@h.example/f: COPY reads no address"},
		"own, no syntax":             {own("Dockerfile", "# syntax=nothing:1\nFROM debian:12\n"), "environment.dockerfile", "no image nothing:1"},
		"own, ONBUILD":               {own("Dockerfile", "FROM debian:12 AS a\nONBUILD ADD https://h.example/f /\nFROM a\n"), "Dockerfile:2", "its content is not known"},
		"own, ONBUILD of":            {own("Dockerfile", "FROM debian:12 AS a\nONBUILD COPY --from=nothing:1 /f /\nFROM a\n"), "environment.dockerfile", "no image nothing:1"},
		"own, a link":                {own("Dockerfile", "FROM debian:12\n", "l", "-> /etc/passwd"), "environment.dockerfile", "leaves the project"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := c.load(t)
			if err == nil {
				t.Fatal("is not refused")
			}
			var refusal *rollout.Error
			if !errors.As(err, &refusal) || refusal.Hint == "" && refusal.Reason != rollout.ReasonBaseImageMissing && !strings.Contains(name, "own") {
				t.Fatalf("no refusal with a way out: %v", err)
			}
			at := refusal.Field
			if positioned := project.Errors(err); len(positioned) > 0 {
				at = positioned[0].Place()
			}
			if at != c.place && !strings.HasPrefix(at, c.place+":") || !strings.Contains(err.Error(), c.says) {
				t.Errorf("at %s: %v, want %s: %s", at, err, c.place, c.says)
			}
			if strings.Contains(err.Error(), "\x00") || strings.Contains(err.Error(), `\x00`) {
				t.Errorf("the error has what stands for a variable: %q", err)
			}
			if strings.Contains(err.Error(), "hunter2") {
				t.Errorf("the error tells the password: %v", err)
			}
		})
	}
}

func TestNeeded(t *testing.T) {
	for _, c := range []struct {
		env  project.Environment
		want bool
	}{
		{project.Environment{Variables: map[string]string{"A": "b"}}, false},
		{project.Environment{DockerSteps: []string{"RUN a"}}, true},
		{project.Environment{Requirements: "r.txt"}, true},
		{project.Environment{Requirements: "none.txt"}, false},
		{project.Environment{Conda: "c.yml"}, true},
		{project.Environment{Dockerfile: "Dockerfile"}, true},
	} {
		dir := files(t, map[string]string{"r.txt": "a", "none.txt": "# a", "c.yml": "dependencies: []", "Dockerfile": "FROM scratch"})
		if got := load(t, dir, c.env).Needed(); got != c.want {
			t.Errorf("%+v: %t", c.env, got)
		}
	}
}

func TestUnpinned(t *testing.T) {
	d, err := requirements(t, `a==1.0
b
c>=1
d==1.*
e===1
f --hash=sha256:aa
g @ https://h.example/g.whl
h @ git+https://h.example/h@main
i @ git+https://h.example/i@0123456789012345678901234567890123456789
./pkg
J_k
-r more.txt
-c c.txt
-e git+https://h.example/l#egg=l
n @ hg+https://h.example/n@default
o @ hg+https://h.example/o@0123456789012345678901234567890123456789
p @ https://h.example/p.whl#sha256=`+strings.Repeat("a", 64)+`
q @ https://h.example/q.whl --hash=sha256:aa
`, map[string]string{"pkg/setup.py": "", "c.txt": "j-k==2\nb>1\n", "more.txt": "m ; python_version == '3.9'"})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"requirements.txt:2: b", "requirements.txt:3: c>=1", "requirements.txt:4: d==1.*", "requirements.txt:7: g @ https://h.example/g.whl", "requirements.txt:8: h @ git+https://h.example/h@main",
		"more.txt:1: m;python_version=='3.9'", "requirements.txt:14: -e git+https://h.example/l#egg=l", "requirements.txt:15: n @ hg+https://h.example/n@default",
	}
	if diff := cmp.Diff(want, d.Unpinned()); diff != "" {
		t.Errorf("requirements (-want +got):\n%s", diff)
	}
	d, err = conda(t, `dependencies:
- a
- b=1.0
- c==1.0
- d=1.0=py39_0
- e>=1
- f=1.*
- conda-forge::g
- conda-forge::h=1
- i 1.0
- j[version='>=1']
- https://h.example/l-1.0-0.conda
- https://h.example/m-1.0-0.conda#0123456789abcdef0123456789abcdef
- https://h.example/ch::n==1.0
- pip:
  - k
`, nil)
	if err != nil {
		t.Fatal(err)
	}
	want = []string{"conda.yml:2: a", "conda.yml:3: b=1.0", "conda.yml:6: e>=1", "conda.yml:7: f=1.*", "conda.yml:8: conda-forge::g", "conda.yml:9: conda-forge::h=1", "conda.yml:11: j[version='>=1']", "conda.yml:12: https://h.example/l-1.0-0.conda", "conda.yml:16: k"}
	if diff := cmp.Diff(want, d.Unpinned()); diff != "" {
		t.Errorf("conda (-want +got):\n%s", diff)
	}
}

func TestExplain(t *testing.T) {
	summary := func(make func(*testing.T) (*environment.Definition, error)) environment.Summary {
		t.Helper()
		d, err := make(t)
		if err != nil {
			t.Fatal(err)
		}
		// As it comes back from a file.
		b, err := json.Marshal(d.Summary())
		if err != nil {
			t.Fatal(err)
		}
		var s environment.Summary
		if err := json.Unmarshal(b, &s); err != nil {
			t.Fatal(err)
		}
		return s
	}
	base := func(ref, platform string) func(*testing.T) (*environment.Definition, error) {
		return func(t *testing.T) (*environment.Definition, error) {
			o := options()
			o.Platform = platform
			return environment.Load(t.Context(), t.TempDir(), project.Environment{BaseImage: ref}, o)
		}
	}
	for name, c := range map[string]struct {
		was, is func(*testing.T) (*environment.Definition, error)
		want    []string
	}{
		"nothing":       {reqs("a==1"), reqs("a == 1 # x"), nil},
		"a version":     {reqs("numpy==1.26\nb"), reqs("numpy==2.0\nb"), []string{"requirements.txt: numpy==1.26 → numpy==2.0"}},
		"a name":        {reqs("a\nb"), reqs("a\nc"), []string{"requirements.txt: removed b", "requirements.txt: added c"}},
		"the order":     {reqs("a\nb"), reqs("b\na"), []string{"requirements.txt: another order"}},
		"a hash":        {reqs("a==1 --hash=sha256:aa"), reqs("a==1 --hash=sha256:bb"), []string{"requirements.txt: a==1 --hash=sha256:aa → a==1 --hash=sha256:bb"}},
		"an index":      {reqs("-i https://a.example"), reqs("-i https://b.example"), []string{"requirements.txt: --index-url=https://a.example → --index-url=https://b.example"}},
		"below":         {reqs("-r a.txt", "a.txt", "x==1"), reqs("-r a.txt", "a.txt", "x==2"), []string{"a.txt: x==1 → x==2"}},
		"conda":         {cond("channels: [a]\ndependencies: [x=1, y]"), cond("channels: [a, b]\ndependencies: [x=2, y]"), []string{"conda.yml: x=1 → x=2", "conda.yml: added channel b"}},
		"a step":        {step(nil, "RUN a", "RUN b"), step(nil, "RUN b"), []string{"docker steps: removed RUN a"}},
		"other steps":   {step(nil, "RUN a"), step(nil, "RUN b"), []string{"docker steps: RUN a → RUN b"}},
		"a file":        {step([]string{"f", "x"}, "COPY f /"), step([]string{"f", "y"}, "COPY f /"), []string{"copied files: f changed"}},
		"a package":     {reqs("./p", "p/a", "x"), reqs("./p", "p/a", "x", "p/b", "y"), []string{"files of packages: added p/b"}},
		"an image":      {base("python:3.12-slim", ""), base("debian:12", ""), []string{"base image: python:3.12-slim (" + baseDigest + ") → debian:12 (sha256:" + strings.Repeat("3", 64) + ")"}},
		"a platform":    {base("debian:12", ""), base("debian:12", "linux/arm64"), []string{"platform: linux/amd64 → linux/arm64"}},
		"files swapped": {reqs("-r a.txt\n-r b.txt", "a.txt", "x", "b.txt", "y"), reqs("-r b.txt\n-r a.txt", "a.txt", "x", "b.txt", "y"), []string{"requirements.txt, b.txt, a.txt: another order: what stands behind -r or -c comes earlier or later among the other lines"}},
		"a file moved":  {reqs("-r a.txt\ny", "a.txt", "x"), reqs("y\n-r a.txt", "a.txt", "x"), []string{"requirements.txt, a.txt: another order: what stands behind -r or -c comes earlier or later among the other lines"}},
		"a kind":        {reqs("a"), base("python:3.12-slim", ""), []string{"requirements.txt: removed"}},
	} {
		t.Run(name, func(t *testing.T) {
			var got []string
			for _, change := range environment.Explain(summary(c.was), summary(c.is)) {
				got = append(got, change.String())
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
	was := summary(reqs("a"))
	was.Format = 0
	if got := environment.Explain(was, summary(reqs("a"))); len(got) != 1 || got[0].Kind != "format" {
		t.Errorf("another format: %v", got)
	}
}

// Every change that a hash sees is explained, and says so where the inputs are listed.
func TestInputs(t *testing.T) {
	d, err := reqs("numpy==1.26\n./p", "p/a", "x")(t)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, in := range d.Inputs() {
		if !strings.HasPrefix(in.Digest, "sha256:") || len(in.Digest) != len("sha256:")+64 {
			t.Errorf("%s has the digest %q", in.Name, in.Digest)
		}
		got = append(got, fmt.Sprintf("%s: %s", in.Name, in.Description))
	}
	want := []string{"platform: linux/amd64", "base image: python:3.12-slim is " + baseDigest + " now", "requirements.txt: 2 lines", "files of packages: 1 file"}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

// TestSecretsInAddresses: credentials are refused, and no message has them, nor a query.
func TestSecretsInAddresses(t *testing.T) {
	const sum = "sha256:1111111111111111111111111111111111111111111111111111111111111111"
	for text, says := range map[string]string{
		"--index-url bob:s3cret@index.example/simple\n":    "credentials in it",
		"--index-url https://bob:s3cret@index.example/s\n": "credentials in it",
		"a @ bob:s3cret@host.example/x.whl\n":              "what should be an address is none",
		"-r https://host.example/r.txt?sig=s3cret\n":       "its content is not known",
	} {
		_, err := requirements(t, text, nil)
		if err == nil || !strings.Contains(err.Error(), says) || strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%q: %v, want %q and no secret", text, err, says)
		}
	}
	for text, says := range map[string]string{
		"--extra-index-url https://h.example/simple?token=s3cret\n":      "a secret in its query, token",
		"--find-links https://h.example/simple?X-Amz-Signature=s3cret\n": "a secret in its query, X-Amz-Signature",
		"a @ https://h.example/a.whl?sv=1&sig=s3cret\n":                  "a secret in its query, sig",
		"a --config-settings=x=https://bob:s3cret@h.example/y\n":         "credentials in it",
	} {
		if _, err := requirements(t, text, nil); err == nil || !strings.Contains(err.Error(), says) || strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%q: %v, want %q and no secret", text, err, says)
		}
	}
	for _, text := range []string{
		"channels: ['bob:s3cret@h.example/ch']\ndependencies: [a]", "channels: [a]\nchannel_alias: https://bob:s3cret@h.example\ndependencies: [a]",
		"channels: ['https://h.example/ch?token=s3cret']\ndependencies: [a]", "channel_alias: https://h.example/t/s3cret/ch\ndependencies: [a]",
		"dependencies: ['bob:s3cret@h.example/ch::a']", "dependencies: [{pip: ['a @ https://h.example/a.whl?token=s3cret']}]",
	} {
		if _, err := conda(t, text, nil); rollout.ReasonOf(err) != rollout.ReasonInvalid || !strings.Contains(err.Error(), "conda.yml:") || strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%q: %v", text, err)
		}
	}
	instructions := map[string]bool{
		"RUN pip install --index-url https://bob:s3cret@h.example/s a":                true,
		"ENV PIP_INDEX_URL=https://bob:s3cret@h.example/s":                            true,
		"ADD --checksum=" + sum + " https://h.example/f?sig=s3cret /f":                true,
		"RUN git clone https://s3cret@h.example/r.git":                                true,
		"RUN <<EOF\ncurl 'https://h.example/f?a=b&token=s3cret'\nEOF":                 true,
		"RUN --mount=type=secret,id=p pip install -i https://bob:$(cat /p)@h.example": false,
		"RUN pip install -i https://bob:${PASSWORD}@h.example/s a":                    false,
		"RUN git clone ssh://git@h.example/r.git && curl https://h.example/@a/b?c=d":  false,
		"RUN curl https://h.example/f?token=$TOKEN":                                   false,
	}
	for text, secret := range instructions {
		for what, load := range map[string]func(*testing.T) (*environment.Definition, error){"step": step(nil, text), "own": own("Dockerfile", "FROM debian:12\n"+text+"\n")} {
			_, err := load(t)
			if secret && (rollout.ReasonOf(err) != rollout.ReasonInvalid || strings.Contains(err.Error(), "s3cret")) || !secret && err != nil {
				t.Errorf("%s %q: %v", what, text, err)
			}
		}
	}
	for step, says := range map[string]string{
		"ADD --checksum=" + sum + " https://bob:s3cret@host.example/x.tgz /x": "credentials in it",
		"ADD https://host.example/x.tgz?sig=s3cret /x":                        "its content is not known",
	} {
		dir := t.TempDir()
		_, err := environment.Load(t.Context(), dir, project.Environment{BaseImage: "base", DockerSteps: []string{step}}, environment.Options{
			Platform: environment.DefaultPlatform,
			Resolve: func(context.Context, string, string) (environment.Image, error) {
				return environment.Image{Digest: sum}, nil
			},
		})
		if err == nil || !strings.Contains(err.Error(), says) || strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%q: %v, want %q and no secret", step, err, says)
		}
	}
}

// TestBesides: what an image is being written to does not count, where it lies in the project.
func TestBesides(t *testing.T) {
	dir := files(t, map[string]string{"Dockerfile": "FROM debian:12\nCOPY . /\n", "f": "x"})
	hash := func(besides ...string) string {
		t.Helper()
		o := options()
		for _, b := range besides {
			info, err := os.Lstat(filepath.Join(dir, b))
			if err != nil {
				t.Fatal(err)
			}
			o.Besides = append(o.Besides, info)
		}
		d, err := environment.Load(t.Context(), dir, project.Environment{Dockerfile: "Dockerfile"}, o)
		if err != nil {
			t.Fatal(err)
		}
		return d.Hash()
	}
	was := hash()
	for name, text := range map[string]string{"out/blobs/a": "y", "image.tar": "z"} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if is := hash("out", "image.tar"); is != was {
		t.Error("it counts")
	}
	if is := hash("out"); is == was {
		t.Error("what is no output does not count")
	}
}
