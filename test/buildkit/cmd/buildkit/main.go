// Command buildkit runs a command beside a buildkitd of its own, for tests:
//
//	buildkit run -- COMMAND [ARGUMENT...]   BUILDKIT_HOST tells the command where the daemon is, and
//	                                        SLUICE_TEST_BUILDKIT_DIR where its files are
//	buildkit run --docker -- COMMAND…       the same with Debian's Docker engine and DOCKER_HOST, in a network
//	                                        of its own; with --here in the caller's
//	buildkit build [--docker]               compiles the daemon only, or unpacks the engine; prints its path
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/sluice-dev/sluice/test/buildkit/internal/binary"
	"github.com/sluice-dev/sluice/test/buildkit/internal/daemon"
)

const usage = "use it as `buildkit run [--docker [--here]] [--dir DIRECTORY] -- COMMAND [ARGUMENT...]` or `buildkit build [--docker]`"

func main() {
	err := do(os.Args[1:])
	// The command has said itself what is wrong with it.
	var ended *exec.ExitError
	if errors.As(err, &ended) && ended.ExitCode() > 0 {
		os.Exit(ended.ExitCode())
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "buildkit: %v\n", err)
		os.Exit(1)
	}
}

func do(args []string) error {
	if len(args) == 0 {
		return errors.New(usage)
	}
	switch name, args := args[0], args[1:]; name {
	case daemon.KeepArg:
		return daemon.Keep(args)
	case daemon.BecomeArg:
		return daemon.Become(args)
	case "build":
		flags := flag.NewFlagSet(name, flag.ContinueOnError)
		engine := flags.Bool("docker", false, "the Docker engine instead, and what it needs")
		if err := flags.Parse(args); err != nil {
			return err
		}
		if flags.NArg() > 0 {
			return errors.New(usage)
		}
		p, err := find()
		if err != nil {
			return err
		}
		ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
		defer stop()
		var program string
		if *engine {
			if err = prepare(ctx, true, os.Stderr); err == nil {
				program, err = dockerd(ctx, p.cache, os.Stderr)
			}
		} else {
			program, err = binary.Build(ctx, p.module, p.cache, os.Stderr)
		}
		if err != nil {
			return err
		}
		fmt.Println(program)
		return nil
	case "run":
		flags := flag.NewFlagSet(name, flag.ContinueOnError)
		dir := flags.String("dir", "", "the daemon's directory, made and removed again (default one in .cache of this repository)")
		engine := flags.Bool("docker", false, "run a Docker engine instead")
		here := flags.Bool("here", false, "with --docker: the engine has this network and no bridge, so that its containers are in this network or in none")
		if err := flags.Parse(args); err != nil {
			return err
		}
		if flags.NArg() == 0 || *here && !*engine {
			return errors.New(usage)
		}
		kind := daemon.BuildKit
		switch {
		case *here:
			kind = daemon.DockerHere
		case *engine:
			kind = daemon.Docker
		}
		return run(*dir, kind, flags.Args())
	}
	return errors.New(usage)
}

func run(dir string, kind daemon.Kind, command []string) (err error) {
	engine := kind != daemon.BuildKit
	p, err := find()
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	defer stop()
	if err := prepare(ctx, engine, os.Stderr); err != nil {
		return err
	}
	variable, get := "BUILDKIT_HOST", func() (string, error) { return binary.Build(ctx, p.module, p.cache, os.Stderr) }
	if engine {
		variable, get = "DOCKER_HOST", func() (string, error) { return dockerd(ctx, p.cache, os.Stderr) }
	}
	program, err := get()
	if err != nil {
		return err
	}
	if dir, err = claim(dir, p.cache); err != nil {
		return fmt.Errorf("make directory: %w", err)
	}
	d, err := daemon.Start(kind, program, dir)
	if err != nil {
		_ = os.Remove(dir) // if nobody has come to fill it
		return err
	}
	defer func() {
		if end := d.Stop(); end != nil {
			err = errors.Join(err, end)
		}
	}()
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), variable+"="+d.Address(), "SLUICE_TEST_BUILDKIT_DIR="+dir)
	return d.Run(ctx, cmd)
}

// claim makes the daemon's directory.
func claim(dir, cache string) (string, error) {
	if dir == "" {
		if err := os.MkdirAll(cache, 0o755); err != nil {
			return "", err
		}
		return os.MkdirTemp(cache, "buildkit-")
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	return dir, os.Mkdir(dir, 0o700)
}

// prepare makes sure that a daemon can run here, and installs what it needs from outside Go.
func prepare(ctx context.Context, engine bool, out io.Writer) error {
	if runtime.GOOS != "linux" || os.Getuid() != 0 {
		return errors.New("run daemon: it needs Linux and root: it makes namespaces, mounts and cgroups")
	}
	needs := []string{"runc"}
	if engine {
		needs = append(needs, "containerd")
	}
	var missing []string
	for _, program := range needs {
		if _, err := exec.LookPath(program); err != nil {
			missing = append(missing, program) // also the packages' names
		}
	}
	if len(missing) == 0 {
		return nil
	}
	if _, err := exec.LookPath("apt-get"); err != nil {
		return fmt.Errorf("run daemon: these are not on the PATH: %s; install them", strings.Join(missing, ", "))
	}
	fmt.Fprintln(out, "installing Debian packages: "+strings.Join(missing, " "))
	if err := apt(ctx, "", "update", "-qq"); err != nil {
		return err
	}
	return apt(ctx, "", append([]string{"install", "-y", "-qq", "--no-install-recommends"}, missing...)...)
}

func apt(ctx context.Context, dir string, args ...string) error {
	cmd := exec.CommandContext(ctx, "apt-get", args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
	if output, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("run apt-get %s: %w\n%s", strings.Join(args, " "), err, output)
	}
	return nil
}

// dockerd is the engine on the PATH, or else the one of Debian's package: unpacked, not installed, since the
// installation would start another and leave its network behind.
func dockerd(ctx context.Context, cache string, out io.Writer) (string, error) {
	if program, err := exec.LookPath("dockerd"); err == nil {
		return program, nil
	}
	dir := filepath.Join(cache, "docker-bin")
	program := filepath.Join(dir, "usr/sbin/dockerd")
	if _, err := os.Stat(program); err == nil {
		return program, nil
	}
	fmt.Fprintln(out, "unpacking Debian's docker.io")
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return "", fmt.Errorf("get engine: %w", err)
	}
	part, err := os.MkdirTemp(cache, "docker-bin-")
	if err != nil {
		return "", fmt.Errorf("get engine: %w", err)
	}
	defer func() { _ = os.RemoveAll(part) }()
	if err := apt(ctx, part, "update", "-qq"); err != nil {
		return "", fmt.Errorf("get engine: %w", err)
	}
	if err := apt(ctx, part, "download", "-qq", "docker.io"); err != nil {
		return "", fmt.Errorf("get engine: %w", err)
	}
	packages, err := filepath.Glob(filepath.Join(part, "docker.io_*.deb"))
	if err != nil || len(packages) != 1 {
		return "", fmt.Errorf("get engine: apt-get downloaded %q", packages)
	}
	root := filepath.Join(part, "root")
	if output, err := exec.CommandContext(ctx, "dpkg", "-x", packages[0], root).CombinedOutput(); err != nil {
		return "", fmt.Errorf("get engine: run dpkg: %w\n%s", err, output)
	}
	// Another run may have been quicker.
	if err := os.Rename(root, dir); err != nil && !errors.Is(err, unix.ENOTEMPTY) && !errors.Is(err, unix.EEXIST) {
		return "", fmt.Errorf("get engine: %w", err)
	}
	return program, nil
}

// paths are where things are: module is the source of this program, cache what outlives a run.
type paths struct{ module, cache string }

// moduleLine is how the go.mod of this module begins.
const moduleLine = "module github.com/sluice-dev/sluice/test/buildkit\n"

// find finds the repository above the working directory, or else above this program.
func find() (paths, error) {
	work, err := os.Getwd()
	if err != nil {
		return paths{}, fmt.Errorf("find working directory: %w", err)
	}
	program, err := os.Executable()
	if err != nil {
		return paths{}, fmt.Errorf("find program: %w", err)
	}
	for _, from := range []string{work, filepath.Dir(program)} {
		for dir := from; ; dir = filepath.Dir(dir) {
			module := filepath.Join(dir, "test", "buildkit")
			if body, err := os.ReadFile(filepath.Join(module, "go.mod")); err == nil && bytes.HasPrefix(body, []byte(moduleLine)) {
				return paths{module, filepath.Join(dir, ".cache")}, nil
			}
			if dir == filepath.Dir(dir) {
				break
			}
		}
	}
	return paths{}, errors.New("find sources: neither the working directory nor this program is inside Sluice's repository")
}
