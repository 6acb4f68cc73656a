//go:build !unix

package runner

import (
	"context"
	"errors"
	"net"
	"os"
	"syscall"
)

// Only the gate in front of an address runs here; Options refuses the rest.
const kernelGuards = false

func groupAttributes() *syscall.SysProcAttr        { return nil }
func guardGroup(*os.File, int) error               { return nil }
func killGroup(int)                                {}
func (p *process) terminate()                      { _ = p.cmd.Process.Kill() }
func (p *process) dumpStacks()                     {}
func (s *spawner) reapOrphans(ctx context.Context) { <-ctx.Done() }

func socketPair() (net.Conn, *os.File, error) {
	return nil, nil, errors.New("socket pairs are not supported on this system")
}

func inherited(fd int, name string) *os.File { return os.NewFile(uintptr(fd), name) }
