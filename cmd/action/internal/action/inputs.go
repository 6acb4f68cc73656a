package action

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sluice-dev/sluice/pkg/cluster"
	"github.com/sluice-dev/sluice/pkg/process"
	"github.com/sluice-dev/sluice/pkg/project"
	"github.com/sluice-dev/sluice/rollout"
)

// Commands.
const (
	commandDeploy   = "deploy"
	commandUpdate   = "update"
	commandPromote  = "promote"
	commandRollback = "rollback"
	commandTraffic  = "traffic"
	commandDelete   = "delete"
	commandStatus   = "status"
	commandPackage  = "package"
)

var commands = []string{commandDeploy, commandUpdate, commandPromote, commandRollback, commandTraffic, commandDelete, commandStatus, commandPackage}

// kind is how an input's text is read.
type kind int

const (
	text kind = iota
	boolean
	duration
	percent
	list
)

// input is one of action.yml's.
type input struct {
	name string
	kind kind
	// defaults is the value of an input that is not given, as action.yml has it.
	defaults string
	// secret values are masked in the log.
	secret bool
	// of are the commands that use it; none means all. Given to another it is a mistake, but for where things are: that
	// may be the same for all steps of a workflow.
	of []string
}

// table has every input, in action.yml's order.
var table = []input{
	{name: "command", defaults: commandDeploy},
	{name: "directory", defaults: "."},
	{name: "config"},
	{name: "inference-config"},
	{name: "deployment-config"},
	{name: "environment-file"},
	{name: "models", kind: list},
	{name: "leave-out", kind: list},
	{name: "endpoint"},
	{name: "namespace"},
	{name: "version"},
	{name: "description", of: []string{commandDeploy}},
	{name: "type", of: []string{commandDeploy, commandUpdate}},
	{name: "traffic-percentile", kind: percent, of: []string{commandDeploy, commandUpdate, commandTraffic}},
	{name: "is-default", kind: boolean, defaults: "false", of: []string{commandDeploy, commandUpdate}},
	{name: "new-default", of: []string{commandDelete}},
	{name: "force", kind: boolean, defaults: "false", of: []string{commandPromote, commandTraffic}},
	{name: "registry"},
	{name: "registry-username"},
	{name: "registry-password", secret: true},
	{name: "pull-registry"},
	{name: "insecure-registry", kind: list},
	{name: "global-registry"},
	{name: "builder"},
	{name: "rebuild", kind: boolean, defaults: "false", of: []string{commandDeploy, commandPackage}},
	{name: "base-image"},
	{name: "runner-image"},
	{name: "platform", defaults: "linux/amd64"},
	{name: "target"},
	{name: "kubeconfig", secret: true},
	{name: "context"},
	{name: "server"},
	{name: "server-audience"},
	{name: "router-url"},
	{name: "endpoint-key", secret: true},
	{name: "test-script", of: []string{commandDeploy}},
	{name: "wait", kind: boolean, defaults: "true"},
	{name: "timeout", kind: duration, defaults: "10m"},
	{name: "github-token", secret: true},
	{name: "dry-run", kind: boolean, defaults: "false"},
}

// inputs are their values. Those that are not given have their default.
type inputs struct {
	text    map[string]string
	given   map[string]bool
	lists   map[string][]string
	wait    time.Duration
	percent *rollout.Percent
	role    *rollout.Role
}

func (in *inputs) is(name string) bool { return in.text[name] == "true" }

// parse reads inputs from flags, and those that are not among these from variables as a workflow's runner sets them
// (INPUT_NAME, of which hyphens stay). All mistakes are told at once; each is a *rollout.Error whose field is the
// input's name.
func parse(args, env []string, usage io.Writer) (*inputs, error) {
	flags := flag.NewFlagSet("action", flag.ContinueOnError)
	flags.SetOutput(usage)
	flags.Usage = func() {
		_, _ = fmt.Fprint(usage, "Usage: action [flags]\n\nRuns as a step of a GitHub workflow, or by hand with flags: docs/action.md.\n\nFlags:\n")
		flags.PrintDefaults()
	}
	fromFlags := map[string]*string{}
	for _, i := range table {
		fromFlags[i.name] = flags.String(i.name, "", "the input of that name")
	}
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return nil, err
		}
		return nil, invalid("", "see --help", "%v", err)
	}
	if flags.NArg() > 0 {
		return nil, invalid("", "write --command "+flags.Arg(0)+" if that is meant", "unexpected argument %q", flags.Arg(0))
	}
	set := map[string]bool{}
	flags.Visit(func(f *flag.Flag) { set[f.Name] = true })

	env, err := withComposite(env)
	if err != nil {
		return nil, err
	}
	in := &inputs{text: map[string]string{}, given: map[string]bool{}, lists: map[string][]string{}}
	errs := unknownInputs(env)
	for _, i := range table {
		value := strings.TrimSpace(process.Getenv(env, "INPUT_"+strings.ToUpper(i.name)))
		if set[i.name] {
			value = strings.TrimSpace(*fromFlags[i.name])
		}
		in.given[i.name] = value != "" && value != i.defaults
		if value == "" {
			value = i.defaults
		}
		in.text[i.name] = value
		errs = append(errs, in.read(i, value)...)
	}
	// Names of repositories have none, but those of their owners may, and workflows cannot lower them.
	for _, name := range []string{"registry", "global-registry"} {
		in.text[name] = strings.ToLower(in.text[name])
	}
	errs = append(errs, in.check()...)
	if err := rollout.Joined(errs); err != nil {
		return in, err
	}
	return in, nil
}

// compositeInputs has the inputs of the composite action, in JSON: GitHub sets no variables for these.
const compositeInputs = "SLUICE_ACTION_INPUTS"

func withComposite(env []string) ([]string, error) {
	raw := process.Getenv(env, compositeInputs)
	if raw == "" {
		return env, nil
	}
	var values map[string]any
	if err := json.Unmarshal([]byte(raw), &values); err != nil {
		// What is in there may be secret.
		return nil, invalid(compositeInputs, "leave it to action/composite", "it is no JSON object")
	}
	env = slices.Clone(env)
	for name, v := range values {
		if v != nil {
			env = append(env, fmt.Sprintf("INPUT_%s=%v", strings.ToUpper(name), v))
		}
	}
	return env, nil
}

// unknownInputs are mistakes in names, of which GitHub only warns.
func unknownInputs(env []string) []*rollout.Error {
	names := make([]string, len(table))
	for n, i := range table {
		names[n] = i.name
	}
	var errs []*rollout.Error
	for _, kv := range env {
		k, value, _ := strings.Cut(kv, "=")
		name, is := strings.CutPrefix(k, "INPUT_")
		if name = strings.ToLower(name); !is || value == "" || slices.Contains(names, name) {
			continue
		}
		// Jobs may have variables of their own that begin so.
		near := project.Nearest(name, names)
		if near == "" {
			continue
		}
		hint := "did you mean " + near + "?"
		errs = append(errs, &rollout.Error{Reason: rollout.ReasonUnknownField, Field: name, Message: "there is no such input", Hint: hint})
	}
	slices.SortFunc(errs, func(a, b *rollout.Error) int { return strings.Compare(a.Field, b.Field) })
	return errs
}

func invalid(field, hint, format string, args ...any) *rollout.Error {
	return &rollout.Error{Reason: rollout.ReasonInvalid, Field: field, Message: fmt.Sprintf(format, args...), Hint: hint}
}

// read checks a value by its kind.
func (in *inputs) read(i input, value string) []*rollout.Error {
	var err *rollout.Error
	switch i.kind {
	case boolean:
		// YAML's other words for it reach programs as they were written.
		if value != "true" && value != "false" {
			if b, bad := strconv.ParseBool(strings.ToLower(value)); bad == nil {
				in.text[i.name], in.given[i.name] = strconv.FormatBool(b), strconv.FormatBool(b) != i.defaults
				break
			}
			err = invalid(i.name, "write true or false", "%q is neither true nor false", value)
		}
	case duration:
		d, bad := time.ParseDuration(value)
		switch {
		case bad != nil:
			err = invalid(i.name, "write it with its unit, such as 90s or 10m", "%q is not a duration", value)
		case d <= 0:
			err = invalid(i.name, "give more than 0, or set wait: false to wait for nothing", "%q is not a time to wait", value)
		}
		in.wait = d
	case percent:
		if value == "" {
			break
		}
		p, bad := rollout.ValidatePercent(i.name, value)
		if bad != nil {
			return rollout.AsErrors(bad)
		}
		in.percent = &p
	case list:
		for word := range strings.SplitSeq(strings.ReplaceAll(value, "\n", ","), ",") {
			if word = strings.TrimSpace(word); word != "" {
				in.lists[i.name] = append(in.lists[i.name], word)
			}
		}
	case text:
	}
	if err == nil {
		return nil
	}
	return []*rollout.Error{err}
}

// check looks at what inputs say together.
func (in *inputs) check() []*rollout.Error {
	var errs []*rollout.Error
	add := func(err *rollout.Error) { errs = append(errs, err) }
	command := in.text["command"]
	if !slices.Contains(commands, command) {
		hint := "use " + strings.Join(commands[:len(commands)-1], ", ") + " or " + commands[len(commands)-1]
		if near := project.Nearest(command, commands); near != "" {
			hint = "did you mean " + near + "? " + hint
		}
		add(invalid("command", hint, "%q is not a command", command))
		return errs
	}
	for _, i := range table {
		if len(i.of) > 0 && in.given[i.name] && !slices.Contains(i.of, command) {
			add(invalid(i.name, "leave it out, or use the command "+strings.Join(i.of, " or "), "%s has no meaning for the command %s", i.name, command))
		}
	}
	for name, what := range map[string]string{"endpoint": "an endpoint", "version": "a version", "new-default": "a version"} {
		if value := in.text[name]; value != "" {
			if err := rollout.ValidateName(name, what, value); err != nil {
				errs = append(errs, rollout.AsErrors(err)...)
			}
		}
	}
	if ns := in.text["namespace"]; ns != "" {
		if err := cluster.ValidateNamespace("namespace", ns); err != nil {
			errs = append(errs, rollout.AsErrors(err)...)
		}
	}
	switch role := in.text["type"]; role {
	case "":
	case string(rollout.Treatment), string(rollout.Control):
		r := rollout.Role(role)
		in.role = &r
	case "none":
		r := rollout.Untyped
		in.role = &r
	default:
		add(invalid("type", "use treatment, control or none", "%q is not a role that can be given", role))
	}
	if in.text["config"] != "" && (in.text["inference-config"] != "" || in.text["deployment-config"] != "") {
		add(invalid("config", "use config, or inference-config with deployment-config", "both say what to deploy"))
	}
	if in.text["config"] != "" && in.given["directory"] {
		add(invalid("directory", "leave one of them out: the manifest's directory is the project's", "config and directory both say where the project is"))
	}
	if in.text["deployment-config"] != "" && in.text["inference-config"] == "" {
		add(invalid("inference-config", "name both", "deployment-config says how to run what inference-config describes"))
	}
	for _, name := range []string{"models", "leave-out", "environment-file"} {
		if in.text[name] != "" && in.text["inference-config"] == "" {
			add(invalid(name, "leave it out, or name inference-config", "%s goes with inference-config", name))
		}
	}
	if command == commandTraffic && in.percent == nil && in.text["traffic-percentile"] == "" {
		add(invalid("traffic-percentile", "give the share, 0 to 100", "the command traffic needs it"))
	}
	if command == commandUpdate && in.percent == nil && in.role == nil && !in.is("is-default") {
		add(invalid("command", "give traffic-percentile, type or is-default", "update is asked to change nothing"))
	}
	if in.percent != nil && in.role != nil && *in.role == rollout.Untyped && command == commandDeploy && *in.percent > 0 {
		add(invalid("type", "use type: treatment, or leave traffic-percentile out", "a version without a role that takes traffic is judged by nobody"))
	}
	if command == commandDeploy && !in.is("wait") && (in.percent != nil || in.is("is-default")) {
		add(invalid("wait", "leave it out, or leave traffic-percentile and is-default out", "a deploy that does not wait gives the version no part in traffic"))
	}
	if (in.text["registry-username"] == "") != (in.text["registry-password"] == "") {
		add(invalid("registry-password", "give registry-username and registry-password, or neither", "one of the registry's credentials is missing"))
	}
	if in.text["registry-username"] != "" && in.text["registry"] == "" {
		add(invalid("registry", "name the registry that they are for", "registry-username and registry-password are for no registry"))
	}
	return append(errs, in.checkTarget()...)
}

// Targets.
const (
	targetKubeconfig = "kubeconfig"
	targetServer     = "server"
)

func (in *inputs) checkTarget() []*rollout.Error {
	var errs []*rollout.Error
	server := in.text["server"]
	switch in.text["target"] {
	case "":
		in.text["target"] = targetKubeconfig
		if server != "" {
			in.text["target"] = targetServer
		}
	case targetKubeconfig, targetServer:
	default:
		errs = append(errs, invalid("target", "use kubeconfig or server", "%q is no way to reach a cluster", in.text["target"]))
		return errs
	}
	at := in.text["target"]
	for _, name := range []string{"kubeconfig", "context"} {
		if at == targetServer && in.text[name] != "" {
			errs = append(errs, invalid(name, "leave it out, or server", "%s has no meaning with a server", name))
		}
	}
	for _, name := range []string{"server", "server-audience", "endpoint-key"} {
		if at == targetKubeconfig && in.text[name] != "" {
			errs = append(errs, invalid(name, "leave it out, or set target: server", "%s has no meaning with a kubeconfig", name))
		}
	}
	switch {
	case at == targetServer && server == "":
		errs = append(errs, invalid("server", "give the address of Sluice's webhook service, such as https://sluice.example", "target server needs it"))
	case server != "":
		if err := checkServer(server); err != nil {
			errs = append(errs, err)
		}
	}
	return errs
}
