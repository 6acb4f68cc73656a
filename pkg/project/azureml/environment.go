package azureml

import (
	"bytes"
	"fmt"
	"path"
	"reflect"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/parser"

	environments "github.com/sluice-dev/sluice/pkg/image/environment"
	"github.com/sluice-dev/sluice/pkg/project"
	"github.com/sluice-dev/sluice/rollout"
)

// environments reads the environment from whichever of the forms has it: the older fields of inferenceconfig.json, its
// environment, or a file of its own.
func (c *converter) environments(in Input, ic *inference) {
	d := c.inference
	legacy := ""
	for _, f := range []string{"runtime", "condaFile", "extraDockerfileSteps", "enableGpu", "cudaVersion", "baseImage", "baseImageRegistry"} {
		if legacy == "" && d.Has(f) && !empty(lookup(reflect.ValueOf(ic), f)) {
			legacy = f
		}
	}
	inline := d.Has("environment")
	if inline && legacy != "" && ic.Environment != nil {
		d.Refuse(refuse(rollout.ReasonInvalid, legacy, "keep one of them", "is of the older form, and excludes environment"))
	}
	if in.Environment != nil && (inline || legacy != "") {
		field := legacy
		if inline {
			field = "environment"
		}
		d.Refuse(refuse(rollout.ReasonInvalid, field, "keep one of them", "describes the environment, and so does %s", in.Environment.Name))
	}
	switch {
	case inline && ic.Environment != nil:
		c.environment(d, "environment.", c.source, ic.Environment)
	case !inline:
		c.legacy(d, ic)
	}
	if in.Environment != nil {
		var env environment
		d := c.open(in.Environment, Environment, &env, `begin it with {"docker": {"baseImage": "…"}}`)
		c.environment(d, "", cleanDir(in.Environment.Dir), &env)
	}
	if e := c.Manifest.Environment; e.BaseImage == "" && e.Dockerfile == "" && (e.Conda != "" || len(e.DockerSteps) > 0) {
		c.Changes = append(c.Changes, Change{Place: project.Place{File: in.Inference.Name}, Note: "Azure ML had a base image of its own; name one as environment.baseImage, or give --base-image or $SLUICE_BASE_IMAGE"})
	}
}

func cleanDir(dir string) string { return path.Clean("./" + dir) }

// legacy reads the fields of the older form of inferenceconfig.json.
func (c *converter) legacy(d *project.Document, ic *inference) {
	if ic.CondaFile != "" {
		c.conda(d, "condaFile", c.source, ic.CondaFile)
	}
	if name := ic.ExtraDockerfileSteps; name != "" {
		if text, ok := c.read(d, "extraDockerfileSteps", c.source, name); ok {
			c.steps(d, "extraDockerfileSteps", text, false)
		}
	}
	var address string
	const field = "baseImageRegistry"
	switch x := ic.BaseImageRegistry.(type) {
	case nil:
	case string:
		address = x
	case map[string]any:
		for _, key := range sortedKeys(x) {
			switch text, isText := x[key].(string); {
			case x[key] == nil || isText && text == "":
			case key == "username" || key == "password":
				d.Refuse(refuse(rollout.ReasonSecretFile, field+"."+key, loginWay, "%s", loginWhy))
			case key == "address" && isText:
				address = text
			case key == "address":
				d.Refuse(refuse(rollout.ReasonInvalid, field+"."+key, "put it in quotes", "text belongs here"))
			default:
				d.Refuse(refuse(rollout.ReasonUnknownField, field+"."+key, "known here are address, username and password", "unknown key %q", key))
			}
		}
	default:
		d.Refuse(refuse(rollout.ReasonInvalid, field, `write it as {"address": "registry.example"}`, "an address, or an object with one, belongs here"))
	}
	c.baseImage(d, "baseImage", ic.BaseImage, field, address)
}

// baseImage sets the base image, with its registry before it.
func (c *converter) baseImage(d *project.Document, field, image, registryField, registry string) {
	registry = strings.TrimSuffix(registry, "/")
	if image == "" {
		if registry != "" {
			d.Refuse(refuse(rollout.ReasonInvalid, registryField, "name the image, or remove the registry", "names the registry of a base image, but there is no base image"))
		}
		return
	}
	if !c.image(d, field, image) {
		return
	}
	note := ""
	if registry != "" && !strings.HasPrefix(image, registry+"/") {
		image = registry + "/" + image
		note = "with its registry"
		if !c.image(d, registryField, image) {
			return
		}
	}
	if registry != "" {
		c.became(d, registryField, "environment.baseImage", image, "")
	}
	c.Manifest.Environment.BaseImage = image
	c.became(d, field, "environment.baseImage", image, note)
}

// image refuses what is not the name of an image, and says whether it is one.
func (c *converter) image(d *project.Document, field, ref string) bool {
	e := project.CheckImage(field, ref)
	if e != nil {
		d.Refuse(e)
	}
	return e == nil
}

// environment reads an environment object; its paths are relative to dir, and prefix stands before its fields.
func (c *converter) environment(d *project.Document, prefix, dir string, e *environment) {
	c.rows(d, Environment, prefix, e, func(row Field, _ any) (string, bool) {
		return "the base image decides", row.Path == "docker.gpuSupport" && (e.Docker.BaseImage != "" || e.Docker.BaseDockerfile != "")
	})
	bad := func(field, hint, format string, args ...any) {
		d.Refuse(refuse(rollout.ReasonInvalid, prefix+field, hint, format, args...))
	}
	c.environmentName(d, prefix, e)
	env := &c.Manifest.Environment
	if len(e.EnvironmentVariables) > 0 {
		env.Variables = e.EnvironmentVariables
		c.became(d, prefix+"environmentVariables", "environment.variables", strings.Join(sortedKeys(env.Variables), ", "), "")
		for name := range env.Variables {
			c.origins["environment.variables["+name+"]"] = d.Place(prefix + "environmentVariables[" + name + "]")
		}
	}
	docker := e.Docker
	if docker.BaseImage != "" && docker.BaseDockerfile != "" {
		bad("docker.baseDockerfile", "keep one of them", "a base image and a Dockerfile for one exclude each other")
	} else if text := docker.BaseDockerfile; text != "" {
		ok := true
		if !strings.ContainsAny(strings.TrimSpace(text), " \t\n") { // a path, as the SDK took it
			text, ok = c.read(d, prefix+"docker.baseDockerfile", dir, text)
		}
		if ok {
			c.steps(d, prefix+"docker.baseDockerfile", text, true)
		}
	}
	c.baseImage(d, prefix+"docker.baseImage", docker.BaseImage, prefix+"docker.baseImageRegistry.address", docker.BaseImageRegistry.Address)

	inline := len(e.Python.CondaDependencies) > 0 && string(e.Python.CondaDependencies) != "null"
	file := e.Python.CondaDependenciesFile
	switch {
	case is(e.Python.UserManagedDependencies):
		const note = "python.userManagedDependencies says that the base image has the packages"
		if inline {
			c.dropped(d, prefix+"python.condaDependencies", note)
		}
		if file != "" {
			c.dropped(d, prefix+"python.condaDependenciesFile", note)
		}
	case inline && file != "":
		bad("python.condaDependenciesFile", "keep one of them", "a file and python.condaDependencies exclude each other")
	case file != "":
		c.conda(d, prefix+"python.condaDependenciesFile", dir, file)
	case inline:
		field := prefix + "python.condaDependencies"
		text, err := ordered(e.Python.CondaDependencies)
		if e.Python.CondaDependencies[0] != '{' || err != nil {
			d.Refuse(refuse(rollout.ReasonInvalid, field, `write it as {"channels": […], "dependencies": […]}`, "keys and values belong here: a Conda definition"))
			return
		}
		if err := environments.CheckConda(CondaName, text); err != nil {
			for _, e := range rollout.AsErrors(err) { // its line is one of the file that is not written
				d.Refuse(refuse(e.Reason, field, e.Hint, "%s", e.Message))
			}
			return
		}
		c.Files[CondaName] = text
		env.Conda = CondaName
		c.became(d, field, "environment.conda", CondaName, "a file of its own")
	}
}

// environmentName refuses an environment that says no more than how it is called.
func (c *converter) environmentName(d *project.Document, prefix string, e *environment) {
	name, isText := e.Name.(string)
	if e.Name != nil && !isText {
		d.Refuse(refuse(rollout.ReasonInvalid, prefix+"name", "put it in quotes", "text belongs here, not %s", short(e.Name)))
		return
	}
	for _, taken := range []string{"Microsoft", "AzureML"} {
		if strings.HasPrefix(name, taken) {
			d.Refuse(refuse(rollout.ReasonInvalid, prefix+"name", "save the curated environment under a name of its own, with what it has",
				"names that begin with %s are those of Azure ML's curated environments, which cannot be looked up", taken))
			return
		}
	}
	if name != "" && !d.Has(prefix+"docker") && !d.Has(prefix+"python") {
		d.Refuse(refuse(rollout.ReasonInvalid, prefix+"name", registered, "has no more than a name"))
	}
}

// inside is the path from the project's root of a file that a field names relative to dir, if it is in the project.
func inside(dir, file string) (string, error) {
	name := path.Join(dir, file)
	switch {
	case strings.Contains(file, `\`):
		return "", fmt.Errorf("%q holds a backslash: use slashes", file)
	case path.IsAbs(file) || len(file) > 1 && file[1] == ':':
		return "", fmt.Errorf("%q is an absolute path", file)
	case name == ".." || strings.HasPrefix(name, "../"):
		return "", fmt.Errorf("%q leaves the project", file)
	}
	return name, nil
}

// insideHint is the way out of a path that is not inside.
const insideHint = "name something inside the project; the path is relative to the source directory, or in azureml_environment.json to that file's"

// conda takes a file with a Conda definition.
func (c *converter) conda(d *project.Document, field, dir, file string) {
	name, err := inside(dir, file)
	if err != nil {
		d.Refuse(refuse(rollout.ReasonInvalid, field, insideHint, "%v", err))
		return
	}
	c.Manifest.Environment.Conda = name
	c.became(d, field, "environment.conda", name, "")
}

// read reads a file of the project that a field names relative to dir.
func (c *converter) read(d *project.Document, field, dir, file string) (string, bool) {
	bad := func(hint, format string, args ...any) (string, bool) {
		d.Refuse(refuse(rollout.ReasonInvalid, field, hint, format, args...))
		return "", false
	}
	const hint = "create it, or correct the path, which is relative to the source directory"
	name, err := inside(dir, file)
	switch {
	case err != nil:
		return bad(insideHint, "%v", err)
	case c.o.ReadFile == nil:
		return bad(hint, "%s cannot be read here", name)
	}
	data, err := c.o.ReadFile(name)
	if err != nil {
		return bad(hint, "%s cannot be read: %v", name, err)
	}
	c.Read = append(c.Read, name)
	return string(data), true
}

// steps takes the instructions of a part of a Dockerfile as docker steps; with from, of a whole one, whose
// FROM is the base image.
func (c *converter) steps(d *project.Document, field, text string, from bool) {
	bad := func(hint, format string, args ...any) {
		d.Refuse(refuse(rollout.ReasonInvalid, field, hint, format, args...))
	}
	const several = "name the Dockerfile as environment.dockerfile in sluice.yaml"
	text = strings.ReplaceAll(text, "\r\n", "\n")
	if strings.ContainsRune(text, 0) {
		bad("remove it", "holds a NUL character")
		return
	}
	parsed, err := parser.Parse(strings.NewReader(text))
	if err != nil {
		bad("write instructions as in a Dockerfile", "cannot be read: %v", err)
		return
	}
	if parsed.EscapeToken != '\\' {
		bad("write \\ at the end of lines that go on", "the directive escape is not allowed")
		return
	}
	lines := strings.Split(text, "\n")
	env := &c.Manifest.Environment
	for i, n := range parsed.AST.Children {
		step := strings.TrimSpace(strings.Join(lines[n.StartLine-1:min(n.EndLine, len(lines))], "\n"))
		instruction := strings.ToLower(n.Value)
		switch {
		case instruction == "from" && from && i == 0:
			if n.Next == nil || n.Next.Next != nil || len(n.Flags) > 0 || strings.ContainsAny(n.Next.Value, "$") || n.Next.Value == "scratch" {
				bad(several, "what stands in line %d is no FROM with an image alone", n.StartLine)
				return
			}
			if !c.image(d, field, n.Next.Value) {
				return
			}
			env.BaseImage = n.Next.Value
			c.became(d, field, "environment.baseImage", env.BaseImage, "")
			continue
		case instruction == "from":
			bad(several, "has a FROM in line %d, but steps go on from one base image", n.StartLine)
			return
		case from && i == 0:
			bad("begin it with FROM IMAGE", "begins with %s", strings.ToUpper(n.Value))
			return
		}
		if (instruction == "copy" || instruction == "add") && c.source != "." && !hasFrom(n.Flags) {
			bad("copy by paths from the project's root, in a sluice.yaml: `sluice convert` without this field makes one",
				"line %d copies files by paths from the source directory, and docker steps copy by paths from the project's root", n.StartLine)
			continue
		}
		env.DockerSteps = append(env.DockerSteps, step)
		c.origins[fmt.Sprintf("environment.dockerSteps[%d]", len(env.DockerSteps)-1)] = d.Place(field)
	}
	if n := len(env.DockerSteps); n > 0 {
		c.became(d, field, "environment.dockerSteps", fmt.Sprintf("%d of them", n), "")
	}
}

func hasFrom(flags []string) bool {
	for _, f := range flags {
		if strings.HasPrefix(f, "--from") {
			return true
		}
	}
	return false
}

// comment is the line, from 1, of the first comment in JSON as JavaScript has them, outside of texts; 0 if there is none.
func comment(data []byte) int {
	text := bytes.TrimSpace(bytes.TrimPrefix(data, []byte("\xef\xbb\xbf")))
	begin := bytes.Index(data, text)
	if len(text) == 0 || text[0] != '{' && text[0] != '/' {
		return 0
	}
	quoted := false
	for i, b := range text {
		switch {
		case b == '"' && !(quoted && escaped(text[:i])):
			quoted = !quoted
		case !quoted && b == '/' && i+1 < len(text) && (text[i+1] == '/' || text[i+1] == '*') && (i == 0 || text[i-1] != ':' && text[i-1] != '/'):
			return 1 + bytes.Count(data[:begin+i], []byte("\n"))
		}
	}
	return 0
}

// escaped tells whether an odd number of backslashes stands at the end.
func escaped(text []byte) bool {
	return (len(text)-len(bytes.TrimRight(text, `\`)))%2 == 1
}

// normalJSON makes JSON what a reader of YAML takes: tabs between values are spaces, and characters beyond the Basic
// Multilingual Plane, which JSON may escape as two halves, are themselves. Lines stay what they were.
func normalJSON(data []byte) []byte {
	text := bytes.TrimPrefix(data, []byte("\xef\xbb\xbf"))
	if trimmed := bytes.TrimSpace(text); len(trimmed) == 0 || trimmed[0] != '{' {
		return text
	}
	out := make([]byte, 0, len(text))
	quoted := false
	for i := 0; i < len(text); i++ {
		b := text[i]
		switch {
		case !quoted && b == '\t':
			b = ' '
		case b == '"':
			quoted = !quoted
		case quoted && b == '\\' && i+1 < len(text):
			if r, ok := surrogates(text[i:]); ok {
				out = append(out, string(r)...)
				i += 11
				continue
			}
			if text[i+1] == '/' {
				i++
				b = '/'
				break
			}
			out = append(out, b)
			i++
			b = text[i]
		}
		out = append(out, b)
	}
	return out
}
