//go:build unix && !linux

package runner

import (
	"context"
	"os"
	"syscall"
)

// kernelGuards: here the worker itself watches the guard pipe, and a custom server
// outlives a gate that is killed by kill -9.
const kernelGuards = false

func groupAttributes() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }

func guardGroup(*os.File, int) error { return nil }

func (s *spawner) reapOrphans(ctx context.Context) { <-ctx.Done() }
