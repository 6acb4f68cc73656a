package project

import (
	"strconv"

	"github.com/sluice-dev/sluice/rollout"
)

// RunnerFlag is a flag of the runner (pkg/runner), which a variable can set as well.
type RunnerFlag struct{ Name, Value string }

// Flag is the flag as an argument.
func (f RunnerFlag) Flag() string { return "--" + f.Name + "=" + f.Value }

// RunnerCommand tells the runner what a replica runs.
type RunnerCommand struct {
	// Flags say how: the source directory, and where a server of the project's own listens.
	Flags []RunnerFlag
	// What is the rest of the arguments: the entry script or the command, with its own arguments.
	// It comes after all flags.
	What []string
}

// Args are all arguments, flags first.
func (c RunnerCommand) Args() []string {
	args := make([]string, 0, len(c.Flags)+len(c.What))
	for _, f := range c.Flags {
		args = append(args, f.Flag())
	}
	return append(args, c.What...)
}

// RunnerCommand is how the runner serves what s says. A version's server, if it has one,
// stands over the project's. The error is a *rollout.Error.
func (s Scoring) RunnerCommand(server *rollout.Server) (RunnerCommand, error) {
	var c RunnerCommand
	add := func(name, value string) {
		if value != "" {
			c.Flags = append(c.Flags, RunnerFlag{name, value})
		}
	}
	add("source-directory", s.SourceDirectory)
	if server == nil {
		server = &rollout.Server{}
		if own := s.Server; own != nil {
			server.Port, server.ScorePath, server.HealthPath = own.Port, own.ScorePath, own.HealthPath
		}
	}
	if server.Port != 0 {
		add("server-port", strconv.Itoa(server.Port))
	}
	add("score-path", server.ScorePath)
	add("health-path", server.HealthPath)

	command := server.Command
	if len(command) == 0 {
		command = s.Command
	}
	switch {
	case len(command) > 0:
		c.What = append([]string{"--command", "--"}, command...)
	case s.EntryScript != "":
		c.What = append([]string{"--entry-script=" + s.EntryScript, "--mode=" + string(s.EffectiveMode()), "--"}, s.Arguments...)
	default:
		return c, refuse(rollout.ReasonInvalid, "scoring", "set scoring.entryScript in "+ManifestName, "the project names neither an entry script nor a command")
	}
	return c, nil
}
