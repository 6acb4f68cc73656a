// Package process is what the programs of Sluice share as processes: flags that
// variables can set, sockets inherited from a supervisor, and the lifeline that ends
// a process with its owner.
package process

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// Getenv looks a variable up in an environment as os.Environ gives it; the last one wins.
func Getenv(env []string, name string) string {
	for i := len(env) - 1; i >= 0; i-- {
		if k, v, _ := strings.Cut(env[i], "="); k == name {
			return v
		}
	}
	return ""
}

// Parse reads flags from args, then those that are not given from variables: the
// flag listen-fd from prefix + LISTEN_FD. Arguments that are no flags are an error.
func Parse(f *flag.FlagSet, args, env []string, prefix string) error {
	if err := f.Parse(args); err != nil {
		return err
	}
	if f.NArg() > 0 {
		return fmt.Errorf("unexpected argument %q", f.Arg(0))
	}
	given := map[string]bool{}
	f.Visit(func(fl *flag.Flag) { given[fl.Name] = true })
	var failed error
	f.VisitAll(func(fl *flag.Flag) {
		name := prefix + strings.ToUpper(strings.ReplaceAll(fl.Name, "-", "_"))
		if value := Getenv(env, name); value != "" && !given[fl.Name] {
			if err := f.Set(fl.Name, value); err != nil && failed == nil {
				failed = fmt.Errorf("%s: %w", name, err)
			}
		}
	})
	return failed
}

// StateDir is where a system on this machine keeps what outlives it:
// $XDG_STATE_HOME/sluice, by default ~/.local/state/sluice (XDG Base Directory Specification).
func StateDir(env []string) (string, error) {
	base := Getenv(env, "XDG_STATE_HOME")
	if home := Getenv(env, "HOME"); base == "" && home != "" {
		base = filepath.Join(home, ".local", "state")
	}
	if base == "" {
		return "", errors.New("there is no home directory: name the state directory with --state")
	}
	return filepath.Join(base, "sluice"), nil
}

// Listener listens on the address, or takes over the listening socket that was
// inherited as descriptor fd if that is not negative.
func Listener(fd int, address string) (net.Listener, error) {
	if fd < 0 {
		l, err := net.Listen("tcp", address)
		if err != nil {
			return nil, fmt.Errorf("listen on %s: %w", address, err)
		}
		return l, nil
	}
	file := inherited(fd, "listener")
	l, err := net.FileListener(file)
	_ = file.Close() // the listener has its own descriptor
	if err != nil {
		return nil, fmt.Errorf("take over descriptor %d: %w", fd, err)
	}
	return l, nil
}

// WithLifeline gives a context that ends when descriptor fd comes to its end of
// file: whoever holds the other end is gone. A negative fd is none.
func WithLifeline(ctx context.Context, fd int) (context.Context, context.CancelFunc) {
	ctx, stop := context.WithCancel(ctx)
	if fd >= 0 {
		go follow(ctx, inherited(fd, "lifeline"), stop)
	}
	return ctx, stop
}

// inherited is a descriptor that the parent process passed on.
func inherited(fd int, name string) *os.File {
	syscall.CloseOnExec(fd)
	return os.NewFile(uintptr(fd), name)
}

func follow(ctx context.Context, lifeline *os.File, stop func()) {
	var b [64]byte
	for ctx.Err() == nil {
		_, err := lifeline.Read(b[:])
		// Another process with the same pipe may have made it non-blocking.
		if errors.Is(err, syscall.EAGAIN) {
			time.Sleep(50 * time.Millisecond)
			continue
		}
		if err != nil {
			stop()
			return
		}
	}
}
