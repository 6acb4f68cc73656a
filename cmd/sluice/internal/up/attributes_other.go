//go:build !linux

package up

import "syscall"

// Without a parent-death signal the lifeline alone ends children of a killed supervisor.
func childAttributes() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }
