package project

import (
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"path"
	"regexp"
	"slices"
	"strings"

	"github.com/sluice-dev/sluice/rollout"
)

// maxIncludes bounds the work for each path.
const maxIncludes = 1000

// VariableModelDir is the environment variable that tells a script where its
// models are.
const VariableModelDir = "AZUREML_MODEL_DIR"

// VariablePort is the environment variable that tells a server of the project's own
// where to listen.
const VariablePort = "PORT"

// modelPattern is Azure ML's pattern for names of models; it also keeps names and
// versions usable as parts of a path.
var modelPattern = regexp.MustCompile(`^[A-Za-z0-9][-._A-Za-z0-9]*$`)

// maxModelName is not in the pattern: compiling that took longer than most commands do.
const maxModelName = 255

var variablePattern = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

// Validate checks everything about m that can be checked without its files. The
// error joins one *rollout.Error per mistake.
func (m *Manifest) Validate() error {
	errs := m.check()
	out := make([]*Error, len(errs))
	for i, e := range errs {
		out[i] = &Error{File: ManifestName, Refusal: e}
	}
	return joinPositioned(out)
}

// checker collects refusals.
type checker struct{ errs []*rollout.Error }

func (c *checker) add(field, hint, format string, args ...any) {
	c.errs = append(c.errs, refuse(rollout.ReasonInvalid, field, hint, format, args...))
}

func (m *Manifest) check() []*rollout.Error {
	var c checker
	m.checkHead(&c)
	m.checkModels(&c)
	if ref := m.Environment.BaseImage; ref != "" {
		if e := CheckImage("environment.baseImage", ref); e != nil {
			c.errs = append(c.errs, e)
		}
	}
	for name := range m.Environment.Variables {
		field := fmt.Sprintf("environment.variables[%s]", name)
		if !variablePattern.MatchString(name) {
			c.add(field, "use letters, digits and underscores, not beginning with a digit", "%q is not the name of a variable", name)
		}
		c.reserved(field, name)
	}
	for name := range m.Version.EnvironmentVariables {
		c.reserved(fmt.Sprintf("version.environmentVariables[%s]", name), name)
	}
	m.checkScoring(&c)
	m.checkInclude(&c)
	m.checkTest(&c)
	if m.Version.Server != nil {
		c.add("version.server", "write it as scoring.command and scoring.server", "in a manifest the server stands under scoring")
	}
	settings := m.Version
	settings.Server = nil
	c.errs = append(c.errs, rollout.ValidateSettings("version", settings)...)
	if s := m.Scoring.Server; s != nil {
		// The same rules as for a version's server, under the manifest's own name.
		own := rollout.Settings{Server: &rollout.Server{Port: s.Port, ScorePath: s.ScorePath, HealthPath: s.HealthPath}}
		c.errs = append(c.errs, rollout.ValidateSettings("scoring", own)...)
	}
	if m.Strategy != nil {
		c.errs = append(c.errs, rollout.ValidateStrategy("strategy", *m.Strategy)...)
	}
	return c.errs
}

func (c *checker) reserved(field, name string) {
	if hint, reserved := Reserved(name); reserved {
		c.add(field, hint, "Sluice sets %s itself", name)
	}
}

// Reserved says of a variable whether Sluice sets it itself, whatever the manifest or a version
// says, and what to do instead.
func Reserved(name string) (hint string, reserved bool) {
	switch name {
	case VariableModelDir:
		return "remove it; the folder it names follows from models", true
	case VariablePort:
		return "remove it; a server of your own listens on the port in it, or on scoring.server.port", true
	}
	return "", false
}

func (m *Manifest) checkHead(c *checker) {
	for _, f := range []struct{ field, is, want string }{
		{"apiVersion", m.APIVersion, rollout.APIVersion},
		{"kind", m.Kind, Kind},
	} {
		switch f.is {
		case f.want:
		case "":
			c.add(f.field, fmt.Sprintf("write `%s: %s`", f.field, f.want), "is missing")
		default:
			c.add(f.field, fmt.Sprintf("write `%s: %s`", f.field, f.want), "%q is not known", f.is)
		}
	}
	if m.Endpoint == "" {
		c.add("endpoint", "name the endpoint that the project's versions join, such as `endpoint: fraud`", "is missing")
	} else if err := rollout.ValidateName("endpoint", "an endpoint", m.Endpoint); err != nil {
		c.errs = append(c.errs, asRefusal(err, "endpoint"))
	}
}

func (m *Manifest) checkModels(c *checker) {
	if n := len(m.Models); n > MaxModels {
		c.errs = append(c.errs, refuse(rollout.ReasonTooManyModels, "models",
			"put files that belong together into one directory and name that", "%d models, but at most %d can be named", n, MaxModels))
		return
	}
	seen := map[[2]string]int{}
	for i, model := range m.Models {
		f := fmt.Sprintf("models[%d]", i)
		for _, part := range []struct{ field, value, example string }{
			{f + ".name", model.Name, "name: fraud"}, {f + ".version", model.Version, `version: "3"`},
		} {
			if part.value == "" {
				c.add(part.field, fmt.Sprintf("write `%s`", part.example), "is missing")
			} else if !modelPattern.MatchString(part.value) || len(part.value) > maxModelName {
				c.add(part.field, "use 1 to 255 letters, digits, hyphens, dots and underscores, beginning with a letter or digit", "%q is not a model's name or version", part.value)
			}
		}
		key := [2]string{model.Name, model.Version}
		if first, dup := seen[key]; dup && model.Name != "" {
			c.add(f, "give it another version, or remove one of them", "model %s version %s stands twice, first as models[%d]", model.Name, model.Version, first)
		} else {
			seen[key] = i
		}
		switch {
		case model.Path == "" && model.URI == "":
			c.add(f+".path", "name the model's file or directory in the project, or give a uri", "is missing")
		case model.Path != "" && model.URI != "":
			c.add(f+".path", "keep one of them", "a model has a path or a uri, not both")
		case model.URI != "":
			c.modelURI(f, model)
		case model.SHA256 != "":
			c.add(f+".sha256", "remove it; the image's digest covers the project's files", "is for a uri of https://")
		case model.Path != "":
			if cleaned, ok := c.localPath(f+".path", model.Path); ok && cleaned == "." {
				c.add(f+".path", "keep the model in a file or directory of its own", "the whole project cannot be a model")
			}
		}
	}
}

var sha256Pattern = regexp.MustCompile(`^[0-9a-f]{64}$`)

// modelURI checks where a model is to be fetched from. No error quotes the address: it may be a signed one.
func (c *checker) modelURI(f string, m Model) {
	const forms = "write oci://REGISTRY/NAME:TAG for what `sluice model push` pushed, or https://HOST/FILE with sha256"
	u, err := url.Parse(m.URI)
	if err != nil || u.Host == "" {
		c.add(f+".uri", forms, "is no address")
		return
	}
	if u.User != nil {
		c.add(f+".uri", "take the credentials out; a registry's are read from where `docker login` keeps them", "has credentials in it")
		return
	}
	switch u.Scheme {
	case SchemeOCI:
		if m.SHA256 != "" {
			c.add(f+".sha256", "remove it, and write the uri as oci://REGISTRY/NAME@sha256:… to fix the content", "is for a uri of https://")
		}
		if u.RawQuery != "" || u.Fragment != "" || strings.Trim(u.Path, "/") == "" {
			c.add(f+".uri", forms, "names no model in a registry")
		}
	case "https":
		if base := path.Base(u.Path); base == "." || base == "/" || strings.HasSuffix(u.Path, "/") {
			c.add(f+".uri", forms, "names no file")
		}
		if !harmlessQuery(u.RawQuery) {
			c.add(f+".uri", "take it out, and set "+ModelQueryVariable(m.Name)+" to it where the image is made", "has a query that may be a signature, and the manifest is a part of each image")
		}
		if !sha256Pattern.MatchString(m.SHA256) {
			c.add(f+".sha256", "give the file's SHA-256 in 64 lower-case hexadecimal digits, as `sha256sum` prints it", "is missing or no SHA-256")
		}
	default:
		c.add(f+".uri", forms, "%s:// is not supported", u.Scheme)
	}
}

func (m *Manifest) checkScoring(c *checker) {
	s := m.Scoring
	if s.SourceDirectory != "" {
		c.localPath("scoring.sourceDirectory", s.SourceDirectory)
	}
	script, command := s.EntryScript != "", len(s.Command) > 0
	switch {
	case !script && !command:
		c.add("scoring", "write `entryScript: score.py`, or `command: [...]` for a server of your own", "needs an entryScript or a command")
	case script && command:
		c.add("scoring.command", "keep one of them", "an entryScript and a command exclude each other")
	case script:
		c.localPath("scoring.entryScript", s.EntryScript)
		switch s.Mode {
		case "", ModeServe:
			if s.Server != nil {
				c.add("scoring.server", "remove it, or use command or `mode: script`", "Sluice's own server runs an entryScript, so there is no other to describe")
			}
		case ModeScript:
		default:
			c.add("scoring.mode", "use serve (the default) or script", "%q is not a mode", s.Mode)
		}
	case command:
		if s.Command[0] == "" {
			c.add("scoring.command[0]", "name the program", "is empty")
		}
		if len(s.Arguments) > 0 {
			c.add("scoring.arguments", "append them to command", "a command has its arguments in itself")
		}
		if s.Mode != "" {
			c.add("scoring.mode", "remove it", "a mode is for an entryScript, not for a command")
		}
	}
}

func (m *Manifest) checkInclude(c *checker) {
	if n := len(m.Include); n > maxIncludes {
		c.add("include", "name directories, or use * and **", "%d patterns, but at most %d can be given", n, maxIncludes)
		return
	}
	for i, p := range m.Include {
		f := fmt.Sprintf("include[%d]", i)
		if strings.HasPrefix(p, "!") {
			c.add(f, "leave the pattern out; use .amlignore or .gitignore to keep a file out", "include cannot exclude")
			continue
		}
		cleaned, ok := c.localPath(f, p)
		if ok && cleaned == "." {
			c.add(f, "name what is meant, such as certs/", "the whole project cannot be included")
		}
	}
}

func (m *Manifest) checkTest(c *checker) {
	t := m.Test
	if t == nil {
		return
	}
	if t.Request == "" {
		c.add("test.request", "name a file with the request's body, such as samples/one.json", "is missing")
	} else {
		c.localPath("test.request", t.Request)
	}
	if s := t.Expect.Status; s != 0 && (s < 200 || s > 599) {
		c.add("test.expect.status", "use a status from 200 to 599; 200 is the default", "%d is not the status of an answer", s)
	}
}

// localPath checks a path's form: relative, with slashes, inside the project, and
// not in a place that never ships. It returns the path in its shortest form.
func (c *checker) localPath(field, p string) (string, bool) {
	const inside = "name something inside the project, relative to its root, such as model/"
	cleaned := path.Clean(p)
	switch {
	case p == "":
		c.add(field, inside, "is empty")
	case strings.Contains(p, `\`) && !strings.HasPrefix(field, "include"):
		c.add(field, "use slashes", "%q holds a backslash", p)
	case path.IsAbs(p) || len(p) > 1 && p[1] == ':':
		c.add(field, inside, "%q is an absolute path", p)
	case cleaned == ".." || strings.HasPrefix(cleaned, "../"):
		c.add(field, inside, "%q leaves the project", p)
	case neverShips(cleaned):
		c.add(field, "name something else", "%q is in a place that never ships", p)
	default:
		return cleaned, true
	}
	return "", false
}

// neverShips tells whether a path is in .git, at any depth, or in the root's .sluice.
func neverShips(p string) bool {
	parts := strings.Split(p, "/")
	return strings.EqualFold(parts[0], reservedDir) ||
		slices.ContainsFunc(parts, func(s string) bool { return strings.EqualFold(s, ".git") })
}

// asRefusal is err as a *rollout.Error.
func asRefusal(err error, field string) *rollout.Error {
	var r *rollout.Error
	if errors.As(err, &r) {
		return r
	}
	return refuse(rollout.ReasonInvalid, field, "", "%v", err)
}

// checkFiles checks what the manifest says about the project's files.
func (m *Manifest) checkFiles(t *tree) ([]*rollout.Error, error) {
	var c checker
	// exists resolves a path that check has passed, and says what is wrong with it.
	exists := func(field, p, want string, ok func(fs.FileMode) bool) error {
		var form checker
		if _, good := form.localPath(field, p); p == "" || !good {
			return nil // reported by check
		}
		r, err := t.resolve(path.Clean(p))
		if err != nil {
			return err
		}
		switch {
		case r.problem != "":
			c.errs = append(c.errs, refuse(rollout.ReasonUnsafeFile, field, "name something inside the project", "%s %s", p, r.problem))
		case r.info == nil:
			c.add(field, "create it, or correct the path", "%s does not exist in %s", p, t.dir)
		case neverShips(r.path):
			c.errs = append(c.errs, refuse(rollout.ReasonUnsafeFile, field, "name something else", "%s leads to %s, which never ships", p, r.path))
		case !ok(r.info.Mode()):
			c.add(field, "correct the path", "%s is %s, not %s", p, kindName(r.info.Mode()), want)
		}
		return nil
	}
	file := func(m fs.FileMode) bool { return m.IsRegular() }
	type want struct {
		field, path, kind string
		ok                func(fs.FileMode) bool
	}
	var wants []want
	if len(m.Models) <= MaxModels {
		for i, model := range m.Models {
			wants = append(wants, want{
				fmt.Sprintf("models[%d].path", i), model.Path, "a file or directory",
				func(m fs.FileMode) bool { return m.IsRegular() || m.IsDir() },
			})
		}
	}
	source := m.Scoring.SourceDirectory
	wants = append(wants, want{"scoring.sourceDirectory", source, "a directory", fs.FileMode.IsDir})
	if m.Scoring.EntryScript != "" {
		wants = append(wants, want{"scoring.entryScript", m.entryPath(), "a file", file})
	}
	if m.Test != nil {
		wants = append(wants, want{"test.request", m.Test.Request, "a file", file})
	}
	for _, w := range wants {
		if err := exists(w.field, w.path, w.kind, w.ok); err != nil {
			return nil, err
		}
	}
	return c.errs, nil
}

// entryPath is the entry script's path from the project's root.
func (m *Manifest) entryPath() string {
	return path.Join(m.Scoring.SourceDirectory, m.Scoring.EntryScript)
}
