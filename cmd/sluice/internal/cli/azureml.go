package cli

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/sluice-dev/sluice/pkg/project"
	"github.com/sluice-dev/sluice/pkg/project/azureml"
	"github.com/sluice-dev/sluice/pkg/project/azureml/files"
	"github.com/sluice-dev/sluice/rollout"
)

// azureFlags name Azure ML's configuration files, and say what these do not.
type azureFlags struct {
	files.Names
	endpoint         string
	models, leaveOut []string
}

// Names of flags. Azure's command line has the first two as -ic and -dc, which no flag of pflag can be called.
const (
	flagInference   = "inference-config"
	flagDeployment  = "deployment-config"
	flagEnvironment = "environment-file"
	flagModel       = "model"
	flagLeaveOut    = "leave-out"
	flagEndpoint    = "endpoint"
)

// azureFlagSet are the flags of every command that reads a project.
func (a *app) azureFlagSet(f *pflag.FlagSet) {
	f.StringVar(&a.azure.Inference, flagInference, "", "Azure ML's inferenceconfig.json, instead of a sluice.yaml; also -ic FILE")
	f.StringVar(&a.azure.Deployment, flagDeployment, "", "Azure ML's deploymentconfig.json; also -dc FILE")
	f.StringVar(&a.azure.Environment, flagEnvironment, "", "Azure ML's azureml_environment.json")
	f.StringArrayVar(&a.azure.models, flagModel, nil, "NAME[:VERSION]=PATH or =oci://… of a model that ships, with --inference-config; VERSION is 1 unless given")
	f.StringSliceVar(&a.azure.leaveOut, flagLeaveOut, nil, "field of Azure ML's files to leave out where it would be refused, such as appInsightsEnabled")
}

// azureArgs makes Azure's -ic FILE and -dc FILE flags that pflag knows, for commands that have them.
func azureArgs(root *cobra.Command, args []string) []string {
	c, _, err := root.Find(args)
	if err != nil || c.Flags().Lookup(flagInference) == nil {
		return args
	}
	flag := func(name string) *pflag.Flag {
		if long, ok := strings.CutPrefix(name, "--"); ok {
			if f := c.Flags().Lookup(long); f != nil {
				return f
			}
			return c.InheritedFlags().Lookup(long)
		}
		if len(name) != 2 || name[0] != '-' || name[1] == '-' {
			return nil
		}
		if f := c.Flags().ShorthandLookup(name[1:]); f != nil {
			return f
		}
		return c.InheritedFlags().ShorthandLookup(name[1:])
	}
	out := make([]string, 0, len(args))
	for i := 0; i < len(args); i++ {
		arg := args[i]
		if arg == "--" {
			return append(out, args[i:]...)
		}
		name, _, has := strings.Cut(arg, "=")
		switch name {
		case "-ic":
			arg = "--" + flagInference + arg[len(name):]
		case "-dc":
			arg = "--" + flagDeployment + arg[len(name):]
		}
		out = append(out, arg)
		if name, _, _ := strings.Cut(arg, "="); !has && i+1 < len(args) {
			if f := flag(name); f != nil && f.NoOptDefVal == "" {
				i++
				out = append(out, args[i]) // its value, whatever that looks like
			}
		}
	}
	return out
}

// readAzure reads the files that flags name, before anything is opened: they may say which system it is.
func (a *app) readAzure(c *cobra.Command, args []string) error {
	if c.Flags().Lookup(flagInference) == nil || c.Name() == convertName {
		return nil
	}
	if a.azure.Inference == "" {
		for _, name := range []string{flagDeployment, flagEnvironment, flagModel, flagLeaveOut} {
			if c.Flags().Changed(name) {
				return misuse("--"+name, "name the inferenceconfig.json with -ic FILE, or leave it out", "--%s goes with --%s", name, flagInference)
			}
		}
		if c.Name() == "package" && c.Flags().Changed(flagEndpoint) {
			return misuse("--"+flagEndpoint, "write it in sluice.yaml", "--%s goes with --%s", flagEndpoint, flagInference)
		}
		return nil
	}
	dir := "."
	if len(args) > 0 {
		dir = args[0]
	}
	o := a.azure
	if f := c.Flags().Lookup(flagEndpoint); f != nil {
		o.endpoint = f.Value.String()
	} else {
		o.endpoint = "environment" // an environment is the same for all
	}
	made, given, err := o.convert(dir)
	if err != nil {
		return err
	}
	a.manifest = given
	if c.Name() == "deploy" {
		return a.azureOptions(c, made)
	}
	return nil
}

// azureOptions sets the flags that deploymentconfig.json gives and nobody else.
func (a *app) azureOptions(c *cobra.Command, made *azureml.Converted) error {
	flags := made.Deploy.Flags()
	for i := 0; i+1 < len(flags); i += 2 {
		name, value := strings.TrimPrefix(flags[i], "--"), flags[i+1]
		f := c.Flags().Lookup(name)
		if f == nil {
			return fmt.Errorf("apply %s: there is no such flag", flags[i])
		}
		env := map[string]string{"target": "SLUICE_TARGET", "namespace": "SLUICE_NAMESPACE"}[name]
		if f.Changed || env != "" && a.io.Getenv(env) != "" || name == "context" && a.target != "kubernetes" {
			continue // what is said at the command line stands
		}
		if err := f.Value.Set(value); err != nil {
			return misuse(flags[i], "correct it in "+made.Origin(flags[i]).File, "%s %s: %v", flags[i], value, err)
		}
		a.progress("%s: %s %s", made.Origin(flags[i]).File, flags[i], value)
	}
	return nil
}

// convert makes a project of the files.
func (o azureFlags) convert(dir string) (*azureml.Converted, *project.Given, error) {
	models := make([]project.Model, len(o.models))
	for i, arg := range o.models {
		m, ok := azureml.ParseModel(arg)
		if !ok {
			return nil, nil, misuse("--"+flagModel, "write it as fraud:3=model/", "--%s %q is not NAME[:VERSION]=PATH", flagModel, arg)
		}
		models[i] = m
	}
	return files.Read(dir, o.Names, azureml.Options{Endpoint: o.endpoint, Models: models, LeaveOut: o.leaveOut})
}

const convertName = "convert"

func (a *app) convertCmd() *cobra.Command {
	var file string
	var force bool
	c := &cobra.Command{
		Use:   convertName + " [DIR]",
		Short: "Make a sluice.yaml of Azure ML's configuration files",
		Long: `Make a sluice.yaml of Azure ML's inferenceconfig.json, deploymentconfig.json and azureml_environment.json,
and say what became of each field: docs/azureml.md. Files that are not named are looked for in DIR by these names, the first two
also as .yml and .yaml. Paths in them are relative to the source directory, and this is to DIR. A Conda definition that
stands in the file is written to sluice-conda.yml in DIR.

"-o FILE" says where to, instead of DIR/sluice.yaml; - is standard output, and what became of the fields is then said on standard error. The words table, json and yaml after -o are the output format. No file that
exists with another content is written over without --force.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			dir := "."
			if len(args) > 0 {
				dir = args[0]
			}
			return a.convert(c, dir, file, force)
		},
	}
	f := c.Flags()
	a.azureFlagSet(f)
	f.StringVar(&a.azure.endpoint, flagEndpoint, "", "endpoint that the project's versions join: the name of the service, -n in Azure's command line")
	f.BoolVar(&force, "force", false, "write over files that exist")
	f.VarP(packageOutput{format: &a.output, file: &file}, "output", "o", "where to write to; table, json or yaml: the output format")
	return c
}

func (a *app) convert(c *cobra.Command, dir, file string, force bool) error {
	o := a.azure
	found := files.Find(dir)
	for _, f := range []struct {
		flag  string
		to    *string
		found string
	}{{flagInference, &o.Inference, found.Inference}, {flagDeployment, &o.Deployment, found.Deployment}, {flagEnvironment, &o.Environment, found.Environment}} {
		if !c.Flags().Changed(f.flag) {
			*f.to = f.found
		}
	}
	if o.Inference == "" {
		return misuse("--"+flagInference, "name it with -ic FILE", "there is no inferenceconfig.json in %s", dir)
	}
	made, _, err := o.convert(dir)
	if err != nil {
		return err
	}
	if file == "" {
		file = filepath.Join(dir, project.ManifestName)
	}
	written, err := a.writeConverted(made, dir, file, force)
	if err != nil {
		return err
	}
	if file == stdoutName {
		a = a.besideStdout()
	}
	deploy := append([]string{"sluice", "deploy"}, made.Deploy.Flags()...)
	if dir != "." {
		deploy = append(deploy, dir)
	}
	return a.print(struct {
		Written []string         `json:"written"`
		Changes []azureml.Change `json:"changes"`
		Deploy  []string         `json:"deploy"`
	}{written, made.Changes, deploy}, func(w io.Writer) {
		for _, ch := range made.Changes {
			_, _ = fmt.Fprintf(w, "%s: %s\n", (&project.Error{File: ch.Place.File, Line: ch.Place.Line}).Place(), ch)
		}
		for _, name := range written {
			_, _ = fmt.Fprintf(w, "written %s\n", name)
		}
		_, _ = fmt.Fprintf(w, "deploy it with: %s\n", shellWords(deploy))
		if len(made.Manifest.Models) == 0 {
			_, _ = fmt.Fprintln(w, "The files name no models: write them under models in it, or give --model NAME:VERSION=PATH.")
		}
	})
}

// shellWords are arguments as a person may type them.
func shellWords(words []string) string {
	out := make([]string, len(words))
	for i, s := range words {
		out[i] = s
		if s == "" || strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._/:@-") != "" {
			out[i] = "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
		}
	}
	return strings.Join(out, " ")
}

// writeConverted writes the manifest to file, and what it names besides into dir: all or, if one of them exists with another
// content and may not be written over, nothing.
func (a *app) writeConverted(made *azureml.Converted, dir, file string, force bool) ([]string, error) {
	type output struct {
		name string
		text []byte
	}
	var outputs []output
	if text, ok := made.Files[azureml.CondaName]; ok {
		outputs = append(outputs, output{filepath.Join(dir, azureml.CondaName), text})
	}
	outputs = append(outputs, output{file, made.Files[project.ManifestName]})
	names := make([]string, len(outputs))
	for i, o := range outputs {
		names[i] = o.name
		if o.name == stdoutName {
			continue
		}
		if _, err := os.Lstat(o.name); errors.Is(err, fs.ErrNotExist) || force {
			continue
		}
		if have, err := os.ReadFile(o.name); err == nil && string(have) == string(o.text) {
			continue
		}
		return nil, &rollout.Error{Reason: rollout.ReasonInvalid, Field: "--output", Message: o.name + " exists already", Hint: "give --force to write over it, or -o FILE for another one"}
	}
	for _, o := range outputs {
		write := replaceFile
		if o.name == stdoutName {
			write = func(_ string, text []byte) error { _, err := a.io.Out.Write(text); return err }
		}
		if err := write(o.name, o.text); err != nil {
			return nil, fmt.Errorf("write converted: %w", err)
		}
	}
	return names, nil
}

// replaceFile writes a file that appears complete or not at all.
func replaceFile(name string, text []byte) (err error) {
	f, err := os.CreateTemp(filepath.Dir(name), ".sluice-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name())
		}
	}()
	_, err = f.Write(text)
	if err = errors.Join(err, f.Chmod(0o644), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), name)
}
